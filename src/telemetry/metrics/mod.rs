//! Every figure behind `/metrics`. Callers take handles once (per client, pool, database) and then touch atomics only.

mod cache;
mod histogram;
mod label;
mod listener;
mod pool;
mod statements;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use cache::{CacheSnapshot, ReadCache};
pub use histogram::Histogram;
pub use label::LabelText;
pub use listener::ListenerMetrics;
pub use pool::{PoolLabels, PoolMetrics};
pub use statements::{DatabaseMetrics, PlanClass};

use crate::error::ErrorKind;

/// The type of what [`Metrics::encode`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClientLabels {
    database: LabelText,
    user: LabelText,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// All figures of one pgherd.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    clients: Family<ClientLabels, Gauge>,
    logins: Family<ClientLabels, Counter>,
    rejected: Family<ReasonLabels, Counter>,
    databases: statements::Databases,
    pools: pool::Pools,
    listeners: listener::Listeners,
    refusals: Family<CodeLabels, Counter>,
    cache_refusals: Family<ReasonLabels, Counter>,
    pins: Family<ReasonLabels, Counter>,
    errors: Family<KindLabels, Counter>,
    reloads: Family<ResultLabels, Counter>,
    reload_ok: Gauge,
    caches: cache::Caches,
    /// Threads that serve clients.
    pub threads: Gauge,
    /// Sessions that moved from one to another.
    pub moves: Counter,
}

/// Counts one logged-in client for as long as it lives.
#[derive(Debug)]
pub struct ClientCount(Gauge);

impl Drop for ClientCount {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All figures at nothing.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("pgherd")),
            clients: Family::default(),
            logins: Family::default(),
            rejected: Family::default(),
            databases: statements::Databases::default(),
            pools: pool::Pools::default(),
            listeners: listener::Listeners::default(),
            refusals: Family::default(),
            cache_refusals: Family::default(),
            pins: Family::default(),
            errors: Family::default(),
            reloads: Family::default(),
            reload_ok: Gauge::default(),
            caches: cache::Caches::default(),
            threads: Gauge::default(),
            moves: Counter::default(),
        };
        metrics.reload_ok.set(1);
        metrics.threads.set(1);
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut guard = self.registry.lock();
        let registry = &mut *guard;
        registry.register("build", "Which pgherd this is", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let started: Gauge = Gauge::default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        started.set(i64::try_from(now).unwrap_or(i64::MAX));
        registry.register("start_time_seconds", "When this pgherd started, in seconds since 1970", started);
        registry.register("threads", "Threads that serve clients at the moment", self.threads.clone());
        registry.register("session_moves", "Sessions that moved from one thread to another", self.moves.clone());
        registry.register("clients", "Clients that are logged in", self.clients.clone());
        registry.register("logins", "Clients that logged in", self.logins.clone());
        registry.register("clients_rejected", "Clients turned away before they were logged in", self.rejected.clone());
        self.databases.register(registry);
        self.pools.register(registry);
        self.listeners.register(registry);
        registry.register("refusals", "Statements refused with 0A000, by code", self.refusals.clone());
        let help = "Reads that were planned and cannot be cached, by the code that EXPLAIN (ROUTE) shows";
        registry.register("cache_refusals", help, self.cache_refusals.clone());
        registry.register("pins", "Server connections pinned to a client, by reason", self.pins.clone());
        registry.register("errors", "Errors of pgherd's own sent to clients, by kind", self.errors.clone());
        registry.register("config_reloads", "Reloads of the configuration, by result", self.reloads.clone());
        let help = "Whether the configuration was good when it was last read";
        registry.register("config_last_reload_successful", help, self.reload_ok.clone());
        registry.register_collector(Box::new(self.caches.clone()));
    }

    /// The whole of `/metrics`, in OpenMetrics' text form.
    ///
    /// # Errors
    /// Never in practice; whatever the encoder says.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::with_capacity(16 * 1024);
        text::encode(&mut out, &self.registry.lock())?;
        Ok(out)
    }

    /// Counts a client that has logged in, until what is returned is dropped.
    pub fn client(&self, database: &str, user: &str) -> ClientCount {
        let labels = ClientLabels { database: database.into(), user: user.into() };
        self.logins.get_or_create(&labels).inc();
        let gauge = self.clients.get_or_create_owned(&labels);
        gauge.inc();
        ClientCount(gauge)
    }

    /// Counts a client that was turned away: `auth`, `tls`, `limit`, `database`, `timeout`, `protocol` and their like.
    pub fn client_rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// The figures of one database; take them once.
    pub fn database(&self, name: &str) -> Arc<DatabaseMetrics> {
        self.databases.database(name)
    }

    /// The figures of one pool; take them once.
    pub fn pool(&self, labels: PoolLabels) -> PoolMetrics {
        self.pools.pool(labels)
    }

    /// The figures of one database's listener; take them once.
    pub fn listener(&self, database: &str) -> ListenerMetrics {
        self.listeners.listener(database)
    }

    /// Counts a replication connection, until what is returned is dropped.
    pub fn replicating(&self, database: &str) -> ClientCount {
        self.listeners.replicating(database)
    }

    /// Forgets the gauges of a pool that is no more.
    pub fn remove_pool(&self, labels: &PoolLabels) {
        self.pools.remove(labels);
    }

    /// Counts a refusal (`0A000`) by its stable code.
    pub fn refusal(&self, code: &'static str) {
        self.refusals.get_or_create(&CodeLabels { code }).inc();
    }

    /// Counts a read that was planned and cannot be cached, by its stable code.
    pub fn cache_refusal(&self, reason: &'static str) {
        self.cache_refusals.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a pin of a server connection to a client.
    pub fn pin(&self, reason: &'static str) {
        self.pins.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts an error of pgherd's own.
    pub fn error(&self, kind: ErrorKind) {
        self.errors.get_or_create(&KindLabels { kind: kind.label() }).inc();
    }

    /// Counts a reload of the configuration.
    pub fn reload(&self, applied: bool) {
        let result = if applied { "applied" } else { "refused" };
        self.reloads.get_or_create(&ResultLabels { result }).inc();
        self.reload_ok.set(i64::from(applied));
    }

    /// Has a cache's figures read at each scrape; a later one of the same name takes the place of an earlier one.
    pub fn register_cache(&self, name: &str, read: ReadCache) {
        self.caches.register(name, read);
    }
}

#[cfg(test)]
mod tests;
