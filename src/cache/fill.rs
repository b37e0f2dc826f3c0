//! A turn to fill one key, from the lookup that missed to the answer that is stored.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::ResultCache;
use super::entry::Entry;
use super::epochs::{CatalogEpoch, Noted};
use super::flight::{Failure, Turn};
use super::key::Key;
use super::memory::Held;
use super::redis::{Found, Shared};
use crate::config::model::Consistency;

/// Why an answer is not kept that costs PostgreSQL less than `cache.min_cost`.
pub(crate) const CHEAP: &str = "cheaper than an entry is worth";

/// What became of a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is there.
    Yes,
    /// It is not, for this reason; the answer itself is as good as any.
    No(&'static str),
}

/// The turn to fill one key. Dropping it lets the next who waits fill.
#[derive(Debug)]
pub struct FillTicket {
    cache: Arc<ResultCache>,
    turn: Option<Turn>,
    noted: Noted,
    /// Redis' epochs as noted by the lookup; empty where it could not be asked.
    epochs: Bytes,
    /// Whether some pgherd did not say yet what it writes of this.
    is_pending: bool,
    relations: Box<[u32]>,
    catalog: CatalogEpoch,
    is_pinned: bool,
    /// Whether roles share the answer.
    is_shared_by_roles: bool,
    /// What was there, older than a write.
    stale: Option<Arc<Entry>>,
    /// Purges by fingerprint before the lookup.
    statements_purged: u64,
}

impl FillTicket {
    pub(crate) fn new(
        cache: Arc<ResultCache>,
        turn: Turn,
        noted: Noted,
        (epochs, is_pending): (Bytes, bool),
        relations: Box<[u32]>,
        catalog: CatalogEpoch,
    ) -> Self {
        let statements_purged = cache.statements_purged.load(Relaxed);
        Self {
            cache,
            turn: Some(turn),
            noted,
            epochs,
            is_pending,
            relations,
            catalog,
            is_pinned: false,
            is_shared_by_roles: false,
            stale: None,
            statements_purged,
        }
    }

    pub(crate) fn with_stale(mut self, stale: Option<Arc<Entry>>) -> Self {
        self.stale = stale;
        self
    }

    /// What may be served if PostgreSQL cannot be reached; `None` where the configuration does not ask for it.
    pub fn stale(&self) -> Option<Arc<Entry>> {
        let stale = self.stale.clone()?;
        self.cache.stats.add(|stats| &stats.stale_on_error);
        Some(stale)
    }

    /// The answer is to stay in memory whatever else there is no room for.
    #[must_use]
    pub fn pinned(mut self, is_pinned: bool) -> Self {
        self.is_pinned = is_pinned;
        self
    }

    /// Roles share the answer, but not one role's troubles.
    #[must_use]
    pub fn shared_by_roles(mut self, is_shared: bool) -> Self {
        self.is_shared_by_roles = is_shared;
        self
    }

    /// Whether a replica may be asked for the answer: every pgherd says what it writes of this, so [`FillTicket::holds`] can be told.
    pub fn may_ask_replica(&self) -> bool {
        !self.is_pending && (self.cache.asks_redis().is_none() || !self.epochs.is_empty())
    }

    /// Whether nothing that the answer depends on has been written since the lookup, or may be being written now.
    pub async fn holds(&self) -> bool {
        if !self.cache.epochs.local.holds(&self.noted) {
            return false;
        }
        let (Some(shared), Some(turn)) = (self.cache.asks_redis(), &self.turn) else { return self.turn.is_some() };
        let found = shared.lookup(turn.key(), &self.relations, self.catalog, &self.epochs).await;
        matches!(found, Found::Same)
    }

    /// Counts how the question to a replica ended.
    pub fn replica_answered(&self, it_did: bool) {
        self.cache.stats.add(|stats| if it_did { &stats.replica_fills } else { &stats.replica_fallbacks });
    }

    /// The statement failed: all who wait get its error, and who asks next runs it again. Where roles wait it must be one that any of them would
    /// get, else the next of them has its turn.
    pub fn fail(mut self, failure: Failure) {
        if self.is_shared_by_roles && !failure.is_of_data() {
            return;
        }
        if let Some(turn) = self.turn.take() {
            self.cache.stats.add(|stats| &stats.failed_fills);
            turn.fail(failure);
        }
    }

    /// Stores the answer, if nothing that it depends on has been written since the lookup, or may be being written now. Those
    /// who wait go on as soon as memory has it; Redis is told after.
    pub async fn store(mut self, entry: Entry) -> Stored {
        let Some(turn) = self.turn.take() else { return Stored::No("no turn") };
        let cache = self.cache.clone();
        let key = turn.key().clone();
        if entry.bytes.len() > cache.max_entry_bytes {
            cache.stats.add(|stats| &stats.rejected_large);
            cache.uncacheable.insert(key.hash(), "larger than an entry may be");
            return Stored::No("larger than an entry may be");
        }
        if entry.cost < cache.min_cost && !self.is_pinned {
            cache.stats.add(|stats| &stats.rejected_cheap);
            cache.uncacheable.insert(key.hash(), CHEAP);
            return Stored::No(CHEAP);
        }
        if cache.faults.store_without_comparing() {
            self.restamp(&key).await;
        }
        let entry = entry.fitted_aside().await;
        if cache.statements_purged.load(Relaxed) != self.statements_purged {
            // By whatever fingerprint: purges are rare, and this answer is filled again.
            cache.stats.add(|stats| &stats.rejected_stale);
            return Stored::No("purged meanwhile");
        }
        if !cache.epochs.local.holds(&self.noted) {
            cache.stats.add(|stats| &stats.rejected_stale);
            return Stored::No("written to meanwhile");
        }
        let held = Arc::new(Held::new(entry, self.noted.clone(), self.epochs.clone()));
        cache.memory.insert(key.clone(), held.clone(), self.is_pinned);
        if self.is_pending {
            cache.stats.add(|stats| &stats.fills);
            let waiting = cache.shared.as_ref().and_then(|shared| shared.waiting.clone().try_acquire_owned().ok());
            let Some(permit) = waiting else { return Stored::Yes };
            // Where memory answers alone nobody need wait.
            let turn = cache.asks_redis().map(|_| turn);
            tokio::spawn(async move {
                self.share_later(key, held, turn).await;
                drop(permit);
            });
            return Stored::Yes;
        }
        drop(turn);
        let stored = match &cache.shared {
            Some(shared) if !self.epochs.is_empty() && shared.takes(&held.entry) => {
                self.share(shared, &key, &held.entry).await
            }
            _ => Stored::Yes,
        };
        if stored == Stored::Yes {
            cache.stats.add(|stats| &stats.fills);
        }
        stored
    }

    /// Gives the answer to Redis when it may be relied on. Until then nobody else need run the statement: who waits goes on waiting.
    async fn share_later(self, key: Key, held: Arc<Held>, turn: Option<Turn>) {
        let Some(shared) = self.cache.shared.clone() else { return };
        if !shared.is_relied_on(&key, &self.relations, self.catalog, &self.epochs).await {
            self.cache.stats.add(|stats| &stats.rejected_redis);
            return;
        }
        drop(turn);
        if shared.takes(&held.entry) {
            self.share(&shared, &key, &held.entry).await;
        }
    }

    async fn share(&self, shared: &Shared, key: &Key, entry: &Entry) -> Stored {
        let bounded = self.cache.consistency == Consistency::Bounded;
        let ttl = shared.ttl(entry, self.cache.ttl, bounded);
        match shared.store(key, entry, ttl, &self.relations, self.catalog, &self.epochs).await {
            Ok(()) => Stored::Yes,
            Err("written to meanwhile") => {
                self.cache.stats.add(|stats| &stats.rejected_stale);
                Stored::No("written to meanwhile")
            }
            Err(_) => {
                // Memory has it, and Redis is asked before that is served.
                self.cache.stats.add(|stats| &stats.rejected_redis);
                Stored::Yes
            }
        }
    }

    /// The answer turned out to be one that cannot be cached: those who wait, and who ask in the next seconds, do without.
    pub fn uncacheable(mut self, reason: &'static str) {
        if let Some(turn) = self.turn.take() {
            self.cache.uncacheable.insert(turn.key().hash(), reason);
        }
    }

    /// The fault of storing without comparing: the epochs of now instead of those noted.
    async fn restamp(&mut self, key: &Key) {
        self.noted = self.cache.epochs.local.restamp(&self.noted);
        if let Some(shared) = &self.cache.shared {
            match shared.lookup(key, &self.relations, self.catalog, &[]).await {
                Found::Nothing(epochs, _) | Found::Entry(_, epochs) => self.epochs = epochs,
                _ => {}
            }
        }
    }
}

impl Drop for FillTicket {
    fn drop(&mut self) {
        if self.turn.is_some() {
            self.cache.stats.add(|stats| &stats.abandoned_fills);
        }
    }
}
