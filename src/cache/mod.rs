//! The result cache of one database: whole answers in memory and in Redis, matched only while the relations they were read
//! from have not been written since. Knows nothing of sessions or plans; `docs/design/cache-epochs.md` has the protocol.

mod at_once;
mod doubt;
mod elsewhere;
mod entry;
mod epochs;
mod faults;
mod fill;
mod flight;
mod key;
mod legs;
mod lookup;
mod memory;
mod purge;
mod redis;
mod stats;
mod steer;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache as Memo;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::at_once::AtOnce;
pub use self::doubt::{BackendChecker, BackendId, Doubt, Epochs, OpenTransaction, WriteSetView};
pub use self::entry::Entry;
pub use self::epochs::CatalogEpoch;
#[cfg(any(test, feature = "faults"))]
pub use self::faults::Faults;
pub use self::fill::{FillTicket, Stored};
pub use self::flight::Failure;
pub use self::key::{Key, KeyBuilder, Protocol};
pub use self::legs::AtHand;
pub use self::purge::{Purge, Purged};
pub use self::stats::{CacheStats, CacheStatsSnapshot};
pub use self::steer::{Audit, Listed, Verdict};

use self::elsewhere::Elsewhere;
use self::epochs::DATABASE;
use self::faults::Switches;
use self::flight::Flights;
use self::memory::Memory;
use self::redis::{Announced, Shared};
use crate::config::model::{Cache, Consistency};
use crate::error::Error;

/// How long a lookup waits for another session's fill of the same key before it runs the statement itself.
const FILL_WAIT: Duration = Duration::from_secs(60);
/// How long a key stays known as one whose answer cannot be cached.
const UNCACHEABLE_FOR: Duration = Duration::from_secs(10);
/// How many such keys are remembered.
const UNCACHEABLE_KEYS: u64 = 10_000;
/// How often memory lets go of what is too old.
const SWEEP: Duration = Duration::from_secs(30);
/// Answers larger than that are copied, packed and unpacked beside the threads that serve.
const LARGE_BYTES: usize = 256 << 10;
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
        /// Whether it is one of those that are to be checked.
        is_sampled: bool,
    },
    /// Not there: run the statement on the primary, READ ONLY, in a transaction that begins after this moment, and store it.
    Fill(FillTicket),
    /// Run the statement without the cache, for this reason.
    Bypass(&'static str),
    /// The fill that this lookup waited for failed: this is its error, and as good as one's own.
    Failed(Failure),
}

/// The result cache of one database.
#[derive(Debug)]
pub struct ResultCache {
    memory: Memory,
    flights: Arc<Flights>,
    epochs: Arc<Epochs>,
    shared: Option<Arc<Shared>>,
    stats: Arc<CacheStats>,
    uncacheable: Memo<u128, &'static str>,
    consistency: Consistency,
    ttl: Duration,
    max_entry_bytes: usize,
    min_cost: Duration,
    audit_one_in: u64,
    is_auditing: AtomicBool,
    stale_on_error: bool,
    quarantine: steer::Quarantine,
    /// Purges by fingerprint so far.
    statements_purged: AtomicU64,
    fill_wait: Duration,
    /// Writes made past every pgherd, where they are followed.
    elsewhere: Option<Elsewhere>,
    /// Whether this pgherd is known to be the only one; `app` sets it.
    solo: Arc<AtomicBool>,
    /// Whether it was so at the last lookup: what was cached before must not pass for strict after.
    was_solo: AtomicBool,
    becoming_solo: Mutex<()>,
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

    fn build(database: &str, config: &Cache, solo: Arc<AtomicBool>, faults: Switches) -> Result<Arc<Self>, Error> {
        let stats = Arc::new(CacheStats::default());
        let shared = config
            .redis
            .as_ref()
            .map(|redis| Shared::new(database, redis, solo.clone(), stats.clone(), faults).map(Arc::new))
            .transpose()?;
        Ok(Arc::new(Self {
            memory: Memory::new(config.memory_bytes, stats.clone()),
            flights: Arc::default(),
            epochs: Arc::new(Epochs::new(faults, stats.clone(), shared.clone())),
            shared,
            stats,
            uncacheable: Memo::builder().max_capacity(UNCACHEABLE_KEYS).time_to_live(UNCACHEABLE_FOR).build(),
            consistency: config.consistency,
            ttl: config.ttl,
            max_entry_bytes: config.max_entry_bytes,
            min_cost: config.min_cost,
            audit_one_in: config.audit_one_in,
            is_auditing: AtomicBool::new(false),
            stale_on_error: config.stale_on_error,
            quarantine: steer::Quarantine::default(),
            statements_purged: AtomicU64::new(0),
            fill_wait: FILL_WAIT,
            elsewhere: config.wal.as_ref().map(|wal| Elsewhere::new(wal.max_lag)),
            was_solo: AtomicBool::new(solo.load(Ordering::Acquire)),
            becoming_solo: Mutex::default(),
            solo,
            faults,
        }))
    }

    /// Whether this pgherd is registered with Redis.
    pub fn is_registered(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.is_up())
    }

    /// Registrations gained and lost; `None` without Redis.
    pub fn registrations(&self) -> Option<watch::Receiver<u64>> {
        self.shared.as_ref().map(|shared| shared.registrations())
    }

    /// `app` is going to look for pgherds that say in PostgreSQL that they cannot reach Redis, and to say so for this one.
    /// Until it has looked nothing is served.
    pub fn begin_watch(&self) {
        self.shared.iter().for_each(|shared| shared.begin_watch());
    }

    /// The server of that scope was asked after `asked_at` who says that it cannot reach Redis; `is_clear` is that nobody does. Good for one lease.
    pub fn was_looked_at(&self, scope: &str, asked_at: Instant, is_clear: bool) {
        self.shared.iter().for_each(|shared| shared.was_looked_at(scope, asked_at, is_clear));
    }

    /// The server cannot be asked any more: until it can, nothing is served, and no mark is good enough to commit on.
    pub fn cannot_look(&self) {
        self.shared.iter().for_each(|shared| shared.lose_sight());
    }

    /// This pgherd says so to the server of that scope since then; `None` is said before it is taken back, or when that may have been lost.
    pub fn says_it_is_cut_off(&self, scope: &str, since: Option<Instant>) {
        self.shared.iter().for_each(|shared| shared.own_flag(scope, since));
    }

    /// Writes made past every pgherd are told of from now on. What was written before is not known.
    pub fn follows_anew(&self) {
        self.forget_everywhere();
    }

    /// They are not told of any more: nothing is served or filled.
    pub fn follows_no_more(&self) {
        self.knows_until(None);
    }

    /// Everything committed before that moment has been told of.
    pub fn knows_writes_until(&self, moment: Instant) {
        self.knows_until(Some(moment));
    }

    fn knows_until(&self, moment: Option<Instant>) {
        self.elsewhere.iter().for_each(|elsewhere| elsewhere.known_until(moment));
    }

    /// The relations whose changes are told of.
    pub fn set_followed(&self, relations: HashSet<u32>) {
        self.elsewhere.iter().for_each(|elsewhere| elsewhere.set_followed(relations.clone()));
    }

    /// Somebody has written these relations, or anything at all if `database` says so. As computed from that version of the catalog.
    ///
    /// # Errors
    /// The fleet could not be told.
    pub async fn written_elsewhere(
        &self,
        relations: &[u32],
        database: bool,
        catalog_version: u64,
    ) -> Result<(), Error> {
        let mut doubt = self.epochs.open(BackendId { pid: 0, start_us: 0 });
        let writes = WriteSetView { database, catalog: false, relations, catalog_version };
        let raised = doubt.raise(&writes).await;
        doubt.settle();
        self.stats.add(|stats| &stats.told_elsewhere);
        raised
    }

    /// Whether the fault of ignoring cascades is on; the planner is not the cache's, so the session asks.
    #[cfg(feature = "faults")]
    pub fn ignores_cascades(&self) -> bool {
        self.faults.no_cascades()
    }

    /// The fault of taking any replica for one that has replayed everything.
    #[cfg(feature = "faults")]
    pub fn asks_any_replica(&self) -> bool {
        self.faults.any_replica()
    }

    /// The fault of giving roles each other's answers whatever they may read.
    #[cfg(feature = "faults")]
    pub fn shares_with_anyone(&self) -> bool {
        self.faults.share_with_anyone()
    }

    /// Starts a key.
    pub fn key(&self, protocol: Protocol) -> KeyBuilder {
        KeyBuilder::new(self.faults, protocol)
    }

    /// What writers talk to.
    pub fn epochs(&self) -> &Arc<Epochs> {
        &self.epochs
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

    /// The catalog was found to have been changed by someone else: nothing cached before is served again, here or elsewhere.
    pub fn catalog_changed(&self) {
        let epoch = self.epochs.local.catalog_changed(None);
        if let Some(shared) = &self.shared {
            shared.announce(Announced { relations: &[DATABASE], catalog: Some(epoch), ..Announced::default() });
        }
    }

    fn forget(&self) {
        self.epochs.local.renew_all();
        self.memory.clear();
    }

    /// The counters, and what memory holds.
    pub fn stats(&self) -> CacheStatsSnapshot {
        let (entries, bytes) = self.memory.size();
        let doubts = self.epochs.open.load(Ordering::Relaxed);
        let lag = self.elsewhere.as_ref().and_then(Elsewhere::lag).unwrap_or_default();
        let elsewhere_lag_ms = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        let (capacity, quarantined) = (self.memory.capacity(), self.quarantine.size());
        CacheStatsSnapshot { entries, bytes, capacity, quarantined, doubts, elsewhere_lag_ms, ..self.stats.snapshot() }
    }

    /// Names the PostgreSQL server that answers come from: its system identifier, timeline and start. Until this is known
    /// Redis is not used; when it changes (failover, restart) nothing cached before is served again.
    pub fn set_scope(&self, scope: &str) {
        if let Some(shared) = &self.shared {
            shared.set_scope(scope);
        }
        self.forget();
    }

    /// What must go on in the background, until `shutdown`: settling writes of unknown outcome, and with Redis staying
    /// registered there. `app` spawns it, and ends it after the last session.
    pub async fn run(self: Arc<Self>, checker: Arc<dyn BackendChecker>, shutdown: CancellationToken) {
        let Some(shared) = &self.shared else {
            let both = async { tokio::join!(self.settle_unknown(checker.as_ref()), self.keep_sweeping()) };
            shutdown.run_until_cancelled(both).await;
            return;
        };
        let all = async {
            let keeping = shared.keep(&self.epochs.local, checker.as_ref());
            tokio::join!(self.settle_unknown(checker.as_ref()), keeping, self.keep_sweeping());
        };
        shutdown.run_until_cancelled(Box::pin(all)).await;
        shared.leave().await;
    }

    /// Lets go of what is too old, which nobody may ask for again.
    async fn keep_sweeping(&self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.memory.sweep(|_, held| held.entry.remaining().is_zero());
        }
    }

    async fn settle_unknown(&self, checker: &dyn BackendChecker) {
        loop {
            if self.epochs.check_unknown(checker).await {
                tokio::time::sleep(UNKNOWN_CHECK).await;
            } else {
                self.epochs.unknown_added.notified().await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
