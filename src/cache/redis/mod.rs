//! The second tier, shared by a fleet: entries in Redis, and with them the epochs and doubts of all pgherds of one database.
//!
//! All coherence state lies in one hash, so that it is lost as a whole or not at all, and each step is one Lua script. The hash
//! is named after the PostgreSQL server and the Redis process, so that a restart of either starts from nothing.

mod codec;
mod connection;
mod keeper;
mod orphans;
mod place;
mod registry;
mod script;
mod sight;
mod writes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use fred::types::Value;
use fred::types::config::Config as FredConfig;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};

use self::connection::{Connection, Failure, Reply};
pub(crate) use self::registry::Announced;
use self::registry::Registry;
use self::script::Script;
use self::sight::Sight;
pub(crate) use self::writes::{Raise, Raised};
use super::entry::Entry;
use super::epochs::{CatalogEpoch, DATABASE, LocalEpochs};
use super::faults::Switches;
use super::key::Key;
use super::stats::CacheStats;
use crate::config::model::{OnRedisLoss, Redis};
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// Lookups and stores in a row that may fail before Redis is no longer asked, until a heartbeat gets through.
const FAILURES: u32 = 5;
/// The shortest lease: a third of it must hold a round trip and a pause of the scheduler.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);
/// How long commands that keep the protocol going (raise, settle, heartbeat) may take before the connection is given up.
const PATIENCE: Duration = Duration::from_millis(250);
/// Answers that may wait at once until every pgherd says what it writes of what they are read from.
const WAITING: usize = 64;
/// How long a write that cannot go on without Redis waits for it before it is refused.
const REFUSAL: Duration = Duration::from_secs(1);

/// What Redis said to a lookup.
#[derive(Debug)]
pub(crate) enum Found {
    /// The answer that memory holds is still good.
    Same,
    /// An answer, and the epochs that it stands on.
    Entry(Box<Entry>, Bytes),
    /// None that may be served; the epochs for a fill, and whether some pgherd does not yet say what it writes of this.
    Nothing(Bytes, bool),
    /// Nothing may be served now: a write is in doubt.
    Doubt,
    /// The fleet knows of another state of the catalog.
    Catalog(Option<u64>),
    /// Redis is late, gone, or not to be trusted yet.
    Unavailable(&'static str),
}

/// The tier itself.
pub(crate) struct Shared {
    fred: FredConfig,
    settings: Redis,
    /// Prefix and database; the scope comes behind it.
    space: String,
    member: String,
    scope: watch::Sender<Option<String>>,
    /// Set exactly while this pgherd is registered, as far as it knows. Changed under the registry's lock.
    connection: ArcSwapOption<Connection>,
    /// Grows with each change of `connection`.
    changes: watch::Sender<u64>,
    registry: Mutex<Registry>,
    /// What PostgreSQL says of pgherds that are cut off from Redis.
    sight: Mutex<Option<Sight>>,
    /// Something is there for the settler.
    work: Notify,
    /// Redis has been told of something.
    told: Notify,
    suspects: Mutex<Vec<String>>,
    suspected: Notify,
    failures: AtomicU32,
    /// How long, in ms, others may be waited for until they say what they write.
    slow_after: AtomicU64,
    /// For answers that wait until they may be relied on.
    pub(crate) waiting: Arc<Semaphore>,
    /// Tokens for what is not a write; those of writes never come so far.
    announced: AtomicU64,
    solo: Arc<AtomicBool>,
    stats: Arc<CacheStats>,
    faults: Switches,
    #[cfg(test)]
    cut_off: AtomicBool,
    #[cfg(test)]
    deaf: AtomicBool,
}

impl Shared {
    /// Reads the settings; connects to nothing.
    pub(crate) fn new(
        database: &str,
        settings: &Redis,
        solo: Arc<AtomicBool>,
        stats: Arc<CacheStats>,
        faults: Switches,
    ) -> Result<Self, Error> {
        let scheme = settings.url.expose().split(':').next().unwrap_or_default();
        let base = scheme.trim_end_matches("-sentinel").trim_end_matches("-cluster");
        if !matches!(base, "redis" | "rediss" | "valkey" | "valkeys") {
            return Err(config_error("cache.redis.url must begin with redis:// or rediss://".into()));
        }
        if settings.lease < SHORTEST_LEASE {
            return Err(config_error(format!("cache.redis.lease must be at least {SHORTEST_LEASE:?}")));
        }
        let fred = place::configured(settings)?;
        Ok(Self {
            fred,
            settings: settings.clone(),
            space: format!("{}{{{database}}}", settings.prefix),
            member: format!("{:016x}", rand::random::<u64>()),
            scope: watch::Sender::new(None),
            connection: ArcSwapOption::empty(),
            changes: watch::Sender::new(0),
            registry: Mutex::default(),
            sight: Mutex::default(),
            work: Notify::new(),
            told: Notify::new(),
            suspects: Mutex::default(),
            suspected: Notify::new(),
            failures: AtomicU32::new(0),
            slow_after: AtomicU64::new(millis(PATIENCE)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            announced: AtomicU64::new(1 << 63),
            solo,
            stats,
            faults,
            #[cfg(test)]
            cut_off: AtomicBool::new(false),
            #[cfg(test)]
            deaf: AtomicBool::new(false),
        })
    }

    /// Names the PostgreSQL server: nothing that was cached of another is seen.
    pub(crate) fn set_scope(&self, scope: &str) {
        let changed = self.scope.send_if_modified(|known| {
            let changed = known.as_deref() != Some(scope);
            *known = Some(scope.to_owned());
            changed
        });
        if changed {
            let mut registry = self.registry.lock();
            registry.leave_scope();
            self.disconnect(None);
            drop(registry);
        }
    }

    /// Whether this pgherd is registered, as far as it knows.
    pub(crate) fn is_up(&self) -> bool {
        self.connection.load().is_some()
    }

    /// Asks for an entry; `held` is the epochs of what memory holds, empty for nothing.
    pub(crate) async fn lookup(&self, key: &Key, relations: &[u32], catalog: CatalogEpoch, held: &[u8]) -> Found {
        let Some(connection) = self.asked() else { return Found::Unavailable("Redis is not available") };
        let nonce: [u8; 16] = rand::random();
        let mut args: Vec<Value> = vec![
            text(&connection.generation),
            number(catalog.0),
            Value::Bytes(Bytes::copy_from_slice(&nonce)),
            Value::Bytes(Bytes::copy_from_slice(held)),
            statement(key),
        ];
        push_relations(&mut args, relations);
        let asked_at = Instant::now();
        match connection.call_for(Script::Lookup, key, args, self.settings.timeout).await {
            Ok(reply) => self.found(&connection, key, asked_at, &reply).await,
            Err(failure) => {
                self.failed(&connection, &failure);
                Found::Unavailable("Redis is late or gone")
            }
        }
    }

    async fn found(&self, connection: &Arc<Connection>, key: &Key, asked_at: Instant, reply: &Reply) -> Found {
        self.failures.store(0, Ordering::Relaxed);
        match reply.word() {
            "same" => Found::Same,
            "hit" => {
                let remaining = Duration::from_millis(reply.number(3).unwrap_or(0));
                match decoded(reply.bytes(2), key, asked_at, remaining, self.settings.max_entry_bytes).await {
                    Some(entry) => Found::Entry(Box::new(entry), reply.bytes(1)),
                    None => Found::Nothing(reply.bytes(1), false),
                }
            }
            "miss" => {
                if reply.text(2) == "outdated" {
                    self.stats.add(|stats| &stats.outdated);
                }
                let new = reply.text(4);
                if !new.is_empty() {
                    self.registry.lock().looks_at(new.split(',').filter_map(|oid| oid.parse().ok()), asked_at);
                }
                self.nothing(reply.bytes(1), reply.number(3))
            }
            "doubt" => Found::Doubt,
            "catalog" => Found::Catalog(reply.number(1)),
            "young" => Found::Unavailable("Redis holds a new generation"),
            "lapsed" => Found::Unavailable("a pgherd's registration has lapsed"),
            "generation" => {
                self.disconnect(Some(connection));
                Found::Unavailable("Redis was emptied")
            }
            other => {
                tracing::warn!(word = other, "Redis answered a lookup with something else");
                Found::Unavailable("Redis gave no sense")
            }
        }
    }

    /// Whether an entry is one for Redis. What is larger stays in memory, which asks for its epochs alone.
    pub(crate) fn takes(&self, entry: &Entry) -> bool {
        entry.bytes.len() <= self.settings.max_entry_bytes
    }

    fn slow_after(&self) -> Duration {
        Duration::from_millis(self.slow_after.load(Ordering::Relaxed))
    }

    /// What a lookup is told that found nothing, and for how long there have been pgherds that do not say what they write. Where one is slow
    /// nobody fills, or waits for who does.
    fn nothing(&self, epochs: Bytes, pending_for: Option<u64>) -> Found {
        match pending_for.map(Duration::from_millis) {
            None => Found::Nothing(epochs, false),
            Some(so_long) if so_long < self.slow_after() => Found::Nothing(epochs, true),
            Some(_) => Found::Unavailable("a pgherd does not say yet what it writes"),
        }
    }

    /// Waits until every pgherd says what it writes of what is looked at here, but not long. Whether what was noted before still holds
    /// then.
    pub(crate) async fn is_relied_on(
        &self,
        key: &Key,
        relations: &[u32],
        catalog: CatalogEpoch,
        noted: &Bytes,
    ) -> bool {
        let deadline = Instant::now() + self.slow_after();
        let mut pause = Duration::from_millis(1);
        while Instant::now() < deadline {
            match self.lookup(key, relations, catalog, noted).await {
                Found::Nothing(epochs, true) if epochs == *noted => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PATIENCE / 4);
                }
                found => return matches!(found, Found::Same),
            }
        }
        false
    }

    /// Stores an entry if the epochs are still `noted`. Returns why not.
    pub(crate) async fn store(
        &self,
        key: &Key,
        entry: &Entry,
        ttl: Duration,
        relations: &[u32],
        catalog: CatalogEpoch,
        noted: &Bytes,
    ) -> Result<(), &'static str> {
        let Some(connection) = self.asked() else { return Err("Redis is not available") };
        // By Redis' clock, and counted from here: neither making the body nor a store that is late on its way makes anything live longer.
        let expires_ms = connection.redis_ms(Instant::now()).saturating_add(millis(ttl));
        let body = encoded(key, entry, self.settings.compress_above_bytes).await;
        let mut args: Vec<Value> = vec![
            text(&connection.generation),
            number(catalog.0),
            Value::Bytes(noted.clone()),
            Value::Bytes(body),
            number(expires_ms.clamp(1, i64::MAX as u64)),
            statement(key),
        ];
        push_relations(&mut args, relations);
        match connection.call_for(Script::Store, key, args, self.settings.timeout.max(PATIENCE)).await {
            Ok(reply) if reply.word() == "ok" => Ok(()),
            Ok(reply) if reply.word() == "pending" => Err("a pgherd does not say yet what it writes of this"),
            Ok(_) => Err("written to meanwhile"),
            Err(failure) => {
                self.failed(&connection, &failure);
                Err("Redis is late or gone")
            }
        }
    }

    /// Takes over the fleet's state of the catalog, unless Redis has yet to hear of a newer one from here.
    pub(crate) fn follow_catalog(&self, local: &LocalEpochs, epoch: Option<u64>) {
        if let Some(epoch) = epoch.map(CatalogEpoch)
            && !self.registry.lock().is_changing_catalog()
        {
            local.catalog_is(epoch, None);
        }
    }

    /// How long an entry may lie in Redis that memory may serve for a time, of `usual` at most.
    pub(crate) fn ttl(&self, entry: &Entry, usual: Duration, bounded: bool) -> Duration {
        // A shorter time than usual was asked for by a rule or a hint: it holds in every tier.
        if bounded || entry.ttl < usual { self.settings.ttl.min(entry.remaining()) } else { self.settings.ttl }
    }

    /// The connection, unless Redis has failed so often that it is left in peace.
    fn asked(&self) -> Option<Arc<Connection>> {
        if self.failures.load(Ordering::Relaxed) >= FAILURES || !self.may_serve() {
            return None;
        }
        self.connection.load_full()
    }

    /// A lookup or a store went wrong.
    fn failed(&self, connection: &Arc<Connection>, failure: &Failure) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES {
            tracing::warn!(%failure, "Redis keeps failing: it is not asked until it answers a heartbeat");
        }
        self.count(failure);
        if connection.is_broken() {
            self.disconnect(Some(connection));
        }
    }

    fn count(&self, failure: &Failure) {
        match failure {
            Failure::Late => self.stats.add(|stats| &stats.redis_timeouts),
            Failure::Broken(_) => self.stats.add(|stats| &stats.redis_errors),
        }
    }

    /// Gives a connection up (or whichever there is): from here on this pgherd does not count as registered.
    fn disconnect(&self, broken: Option<&Arc<Connection>>) {
        let known = self.connection.load_full();
        let Some(known) = known else { return };
        if broken.is_none_or(|broken| Arc::ptr_eq(broken, &known)) {
            let known = Some(known);
            let before = self.connection.compare_and_swap(&known, None);
            if let (Some(before), Some(known)) = (before.as_ref(), &known)
                && Arc::ptr_eq(before, known)
            {
                known.close();
                self.changes.send_modify(|count| *count += 1);
            }
        }
    }

    fn expiry(&self, connection: &Connection, sent_at: Instant) -> u64 {
        connection.redis_ms(sent_at) + millis(self.settings.lease)
    }

    /// Grows with each registration gained or lost.
    pub(crate) fn registrations(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn wait_on_loss(&self) -> bool {
        self.settings.on_loss == OnRedisLoss::Wait
    }
}

/// What tests look at, and do to it.
#[cfg(test)]
impl Shared {
    pub(crate) fn is_idle(&self) -> bool {
        self.registry.lock().is_idle()
    }

    pub(crate) fn open(&self) -> usize {
        self.registry.lock().open_count()
    }

    pub(crate) fn has_published(&self, backend: super::doubt::BackendId) -> bool {
        self.registry.lock().is_published(backend)
    }

    /// The connection is gone, and nothing is said.
    pub(crate) fn die(&self) {
        self.disconnect(None);
    }

    pub(crate) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::SeqCst)
    }

    /// From here on this pgherd sends no heartbeats, and so hears nothing of what others look at; or does again.
    pub(crate) fn be_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::SeqCst);
    }

    /// From here on a pgherd that does not say what it writes is waited for that long.
    pub(crate) fn be_patient(&self, patience: Duration) {
        self.slow_after.store(millis(patience), Ordering::Relaxed);
    }

    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::SeqCst)
    }

    /// From here on this pgherd alone cannot reach Redis, or can again.
    pub(crate) fn cut_off(&self, cut: bool) {
        self.cut_off.store(cut, Ordering::SeqCst);
        if cut {
            self.disconnect(None);
        }
    }
}

/// An entry's bytes. To make those of a large one takes a while, in which others of this thread go on.
async fn encoded(key: &Key, entry: &Entry, compress_above: usize) -> Bytes {
    if entry.bytes.len() <= super::LARGE_BYTES {
        return codec::encode(key, entry, compress_above);
    }
    let (key, entry) = (key.clone(), entry.clone());
    let encoding = tokio::task::spawn_blocking(move || codec::encode(&key, &entry, compress_above));
    encoding.await.unwrap_or_default()
}

/// The entry, as [`encoded`] has made it.
async fn decoded(bytes: Bytes, key: &Key, asked_at: Instant, remaining: Duration, longest: usize) -> Option<Entry> {
    if bytes.len() <= super::LARGE_BYTES {
        return codec::decode(&bytes, key, asked_at, remaining, longest);
    }
    let key = key.clone();
    tokio::task::spawn_blocking(move || codec::decode(&bytes, &key, asked_at, remaining, longest)).await.ok()?
}

fn config_error(message: String) -> Error {
    Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, message)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn text(value: &str) -> Value {
    Value::String(value.into())
}

fn number(value: u64) -> Value {
    Value::String(value.to_string().into())
}

/// A statement's fingerprint as the scripts know it.
fn statement(key: &Key) -> Value {
    text(&format!("{:032x}", key.fingerprint()))
}

/// The oids as the scripts read them, the database among them.
fn push_relations(args: &mut Vec<Value>, relations: &[u32]) {
    args.push(number(u64::from(DATABASE)));
    args.extend(relations.iter().filter(|oid| **oid != DATABASE).map(|oid| number(u64::from(*oid))));
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("member", &self.member)
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}
