//! The result cache of one database: whole answers in memory and in Redis, matched only while the relations they were read
//! from have not been written since. Knows nothing of sessions or plans; `docs/design/cache-epochs.md` has the protocol.

mod doubt;
mod entry;
mod epochs;
mod faults;
mod flight;
mod key;
mod memory;
mod stats;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moka::sync::Cache as Memo;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::doubt::{BackendChecker, BackendId, Doubt, Epochs, WriteSetView};
pub use self::entry::Entry;
pub use self::epochs::CatalogEpoch;
#[cfg(any(test, feature = "faults"))]
pub use self::faults::Faults;
pub use self::key::{Key, KeyBuilder, Protocol};
pub use self::stats::{CacheStats, CacheStatsSnapshot};

use self::epochs::{Noted, Unsettled};
use self::faults::Switches;
use self::flight::{Flights, Joined, Turn};
use self::memory::{Held, Memory};
use crate::config::model::{Cache, Consistency};
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// How long a lookup waits for another session's fill of the same key before it runs the statement itself.
const FILL_WAIT: Duration = Duration::from_secs(10);
/// How long a key stays known as one whose answer cannot be cached.
const UNCACHEABLE_FOR: Duration = Duration::from_secs(10);
/// How many such keys are remembered.
const UNCACHEABLE_KEYS: u64 = 10_000;
/// How often PostgreSQL is asked about the server processes of writes whose outcome is not known.
const UNKNOWN_CHECK: Duration = Duration::from_millis(250);

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// This process's memory.
    Memory,
    /// Redis.
    Redis,
}

/// What a cached answer promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// What the query would have returned after the last commit acknowledged through any pgherd of this fleet.
    Strict,
    /// At most the configured time old, by configuration.
    Bounded,
    /// At most the configured time old, because other pgherds may write without telling this one.
    Ttl,
}

impl Freshness {
    /// The label as people and metrics see it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Bounded => "bounded",
            Self::Ttl => "ttl",
        }
    }
}

/// What a lookup gives.
#[derive(Debug)]
pub enum Lookup {
    /// The answer.
    Hit {
        /// Its bytes.
        entry: Arc<Entry>,
        /// Where it came from.
        tier: Tier,
        /// What it promises.
        label: Freshness,
    },
    /// Not there: run the statement on the primary, READ ONLY, in a transaction that begins after this moment, and store it.
    Fill(FillTicket),
    /// Run the statement without the cache, for this reason.
    Bypass(&'static str),
}

/// What became of a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is there.
    Yes,
    /// It is not, for this reason; the answer itself is as good as any.
    No(&'static str),
}

/// The result cache of one database.
#[derive(Debug)]
pub struct ResultCache {
    memory: Memory,
    flights: Arc<Flights>,
    epochs: Arc<Epochs>,
    stats: Arc<CacheStats>,
    uncacheable: Memo<u128, &'static str>,
    consistency: Consistency,
    max_entry_bytes: usize,
    fill_wait: Duration,
    /// Whether this pgherd is known to be the only one; `app` sets it.
    solo: Arc<AtomicBool>,
    /// Whether it was so at the last lookup: what was cached before must not pass for strict after.
    was_solo: Mutex<bool>,
    faults: Switches,
}

impl ResultCache {
    /// A cache for the database that clients call `database`. `solo` tells whether this pgherd is the only one; without Redis
    /// answers are labelled `strict` only while it is.
    pub fn new(database: &str, config: &Cache, solo: Arc<AtomicBool>) -> Result<Arc<Self>, Error> {
        Self::build(database, config, solo, Switches::default())
    }

    /// The same with faults in it.
    #[cfg(any(test, feature = "faults"))]
    pub fn with_faults(
        database: &str,
        config: &Cache,
        solo: Arc<AtomicBool>,
        faults: Faults,
    ) -> Result<Arc<Self>, Error> {
        Self::build(database, config, solo, faults.into())
    }

    fn build(_database: &str, config: &Cache, solo: Arc<AtomicBool>, faults: Switches) -> Result<Arc<Self>, Error> {
        if config.redis.is_some() {
            return Err(Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, "cache.redis cannot be used yet"));
        }
        let stats = Arc::new(CacheStats::default());
        Ok(Arc::new(Self {
            memory: Memory::new(config.memory_bytes),
            flights: Arc::default(),
            epochs: Arc::new(Epochs::new(faults, stats.clone())),
            stats,
            uncacheable: Memo::builder().max_capacity(UNCACHEABLE_KEYS).time_to_live(UNCACHEABLE_FOR).build(),
            consistency: config.consistency,
            max_entry_bytes: config.max_entry_bytes,
            fill_wait: FILL_WAIT,
            was_solo: Mutex::new(solo.load(Ordering::Acquire)),
            solo,
            faults,
        }))
    }

    /// Starts a key.
    pub fn key(&self, protocol: Protocol) -> KeyBuilder {
        KeyBuilder::new(self.faults, protocol)
    }

    /// What writers talk to.
    pub fn epochs(&self) -> &Arc<Epochs> {
        &self.epochs
    }

    /// The answer, or the turn to fill it in. `relations` is everything that the answer depends on, sorted, as computed from
    /// `catalog_version`. Waits while another session of this process fills the same key.
    pub async fn lookup(self: &Arc<Self>, key: &Key, relations: &[u32], catalog_version: u64) -> Lookup {
        let deadline = tokio::time::Instant::now() + self.fill_wait;
        if let Some(reason) = self.uncacheable.get(&key.hash()) {
            self.stats.add(|stats| &stats.bypass_uncacheable);
            return Lookup::Bypass(reason);
        }
        loop {
            let label = self.label();
            let noted = match self.note(relations, catalog_version) {
                Ok(noted) => noted,
                Err(unsettled) => return self.unsettled(unsettled),
            };
            if let Some(hit) = self.recall(key, &noted, label) {
                return hit;
            }
            match self.flights.join(key) {
                // Another fill may have ended between the look into memory and the turn.
                Joined::Mine(turn) => {
                    return self.recall(key, &noted, label).unwrap_or_else(|| self.fill(turn, noted));
                }
                Joined::Theirs(waiting) => {
                    self.stats.add(|stats| &stats.waits);
                    if tokio::time::timeout_at(deadline, flight::ended(waiting)).await.is_err() {
                        self.stats.add(|stats| &stats.bypass_wait);
                        return Lookup::Bypass("another fill is slow");
                    }
                    if let Some(reason) = self.uncacheable.get(&key.hash()) {
                        self.stats.add(|stats| &stats.bypass_uncacheable);
                        return Lookup::Bypass(reason);
                    }
                }
            }
        }
    }

    /// The state of the catalog as this process knows it, and its changes. Whoever loads the catalog reads it before loading,
    /// tells [`ResultCache::catalog_loaded`] after, and loads again when it changes.
    pub fn catalog_epoch(&self) -> watch::Receiver<CatalogEpoch> {
        self.epochs.local.watch()
    }

    /// Catalog `version` of this process was read wholly after `as_of` was the catalog's state. Until this has been said of
    /// the present state, nothing is served or filled, and writes put the whole database in doubt.
    pub fn catalog_loaded(&self, version: u64, as_of: CatalogEpoch) {
        self.epochs.local.loaded(version, as_of);
    }

    /// The catalog was found to have been changed by someone else: nothing cached before is served again.
    pub fn catalog_changed(&self) {
        self.epochs.local.catalog_changed(None);
    }

    /// Forgets everything.
    pub fn purge(&self) {
        self.epochs.local.renew_all();
        self.memory.clear();
    }

    /// Forgets every answer that was read from that relation.
    pub fn purge_relation(&self, oid: u32) {
        self.epochs.local.renew(oid);
    }

    /// The counters, and what memory holds.
    pub fn stats(&self) -> CacheStatsSnapshot {
        let (entries, bytes) = self.memory.size();
        let doubts = self.epochs.open.load(Ordering::Relaxed);
        CacheStatsSnapshot { entries, bytes, doubts, ..self.stats.snapshot() }
    }

    /// What must go on in the background, until `shutdown`: settling writes of unknown outcome. `app` spawns it, and ends it
    /// after the last session.
    pub async fn run(self: Arc<Self>, checker: Arc<dyn BackendChecker>, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.settle_unknown(checker)).await;
    }

    async fn settle_unknown(&self, checker: Arc<dyn BackendChecker>) {
        loop {
            if self.epochs.check_unknown(checker.as_ref()).await {
                tokio::time::sleep(UNKNOWN_CHECK).await;
            } else {
                self.epochs.unknown_added.notified().await;
            }
        }
    }

    /// What a hit will promise. To be asked before epochs are noted: what others wrote while this pgherd was not alone left
    /// no trace here, so everything is renewed when it becomes the only one.
    fn label(&self) -> Freshness {
        if self.consistency == Consistency::Bounded {
            return Freshness::Bounded;
        }
        let solo = self.solo.load(Ordering::Acquire);
        let mut was_solo = self.was_solo.lock();
        if solo && !*was_solo {
            self.epochs.local.renew_all();
        }
        *was_solo = solo;
        if solo { Freshness::Strict } else { Freshness::Ttl }
    }

    fn note(&self, relations: &[u32], catalog_version: u64) -> Result<Noted, Unsettled> {
        self.epochs.local.note(relations, catalog_version)
    }

    fn recall(&self, key: &Key, noted: &Noted, label: Freshness) -> Option<Lookup> {
        let held = self.memory.get(key)?;
        if held.noted != *noted {
            self.stats.add(|stats| &stats.outdated);
            return None;
        }
        self.stats.add(|stats| &stats.memory_hits);
        Some(Lookup::Hit { entry: held.entry.clone(), tier: Tier::Memory, label })
    }

    fn fill(self: &Arc<Self>, turn: Turn, noted: Noted) -> Lookup {
        self.stats.add(|stats| &stats.misses);
        Lookup::Fill(FillTicket { cache: self.clone(), turn: Some(turn), noted })
    }

    fn unsettled(&self, unsettled: Unsettled) -> Lookup {
        match unsettled {
            Unsettled::Doubt => {
                self.stats.add(|stats| &stats.bypass_doubt);
                Lookup::Bypass("a write is in doubt")
            }
            Unsettled::Catalog => {
                self.stats.add(|stats| &stats.bypass_catalog);
                Lookup::Bypass("the catalog is being reloaded")
            }
        }
    }
}

/// The turn to fill one key. Dropping it lets the next who waits fill.
#[derive(Debug)]
pub struct FillTicket {
    cache: Arc<ResultCache>,
    turn: Option<Turn>,
    noted: Noted,
}

impl FillTicket {
    /// Stores the answer, if nothing that it depends on has been written since the lookup, or may be being written now.
    pub async fn store(mut self, entry: Entry) -> Stored {
        let Some(turn) = self.turn.take() else { return Stored::No("no turn") };
        let cache = self.cache.clone();
        if entry.bytes.len() > cache.max_entry_bytes {
            cache.stats.add(|stats| &stats.rejected_large);
            cache.uncacheable.insert(turn.key().hash(), "larger than an entry may be");
            return Stored::No("larger than an entry may be");
        }
        let noted = self.stamp();
        if !cache.epochs.local.holds(&noted) {
            cache.stats.add(|stats| &stats.rejected_stale);
            return Stored::No("written to meanwhile");
        }
        let held = Held { entry: Arc::new(entry), noted, shared: Box::default() };
        cache.memory.insert(turn.key().clone(), Arc::new(held));
        cache.stats.add(|stats| &stats.fills);
        Stored::Yes
    }

    /// The answer turned out to be one that cannot be cached: those who wait, and who ask in the next seconds, do without.
    pub fn uncacheable(mut self, reason: &'static str) {
        if let Some(turn) = self.turn.take() {
            self.cache.uncacheable.insert(turn.key().hash(), reason);
        }
    }

    fn stamp(&self) -> Noted {
        if self.cache.faults.store_without_comparing() {
            return self.cache.epochs.local.restamp(&self.noted);
        }
        self.noted.clone()
    }
}

impl Drop for FillTicket {
    fn drop(&mut self) {
        if self.turn.is_some() {
            self.cache.stats.add(|stats| &stats.abandoned_fills);
        }
    }
}

#[cfg(test)]
mod tests;
