//! One pool's figures, handed to the pool once.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Histogram, LabelText};

/// Which pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabels {
    /// The database as clients name it.
    pub database: LabelText,
    /// The user that the pool logs in for.
    pub user: LabelText,
    /// The server, as `host:port/dbname`.
    pub server: LabelText,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CloseLabels {
    database: LabelText,
    user: LabelText,
    server: LabelText,
    reason: &'static str,
}

/// Every pool's figures.
#[derive(Debug, Clone, Default)]
pub(super) struct Pools {
    idle: Family<PoolLabels, Gauge>,
    active: Family<PoolLabels, Gauge>,
    max: Family<PoolLabels, Gauge>,
    waiting: Family<PoolLabels, Gauge>,
    wait: Family<PoolLabels, Histogram>,
    acquire_timeouts: Family<PoolLabels, Counter>,
    connects: Family<PoolLabels, Counter>,
    connect_failures: Family<PoolLabels, Counter>,
    closes: Family<CloseLabels, Counter>,
}

/// The figures of one pool: cheap to clone, atomics below.
#[derive(Debug, Clone)]
pub struct PoolMetrics {
    /// Server connections that nobody uses.
    pub idle: Gauge,
    /// Server connections that a client holds.
    pub active: Gauge,
    /// The bound on both together.
    pub max: Gauge,
    /// Clients that wait for a connection.
    pub waiting: Gauge,
    /// How long clients waited, those that did not have to included.
    pub wait: Histogram,
    /// Waits that ended without a connection.
    pub acquire_timeouts: Counter,
    /// Connections made.
    pub connects: Counter,
    /// Connections that could not be made.
    pub connect_failures: Counter,
    closes: Family<CloseLabels, Counter>,
    labels: PoolLabels,
}

impl PoolMetrics {
    /// Counts a closed connection: `idle`, `lifetime`, `dirty`, `error`, `health`, `reset`, `shutdown` and their like.
    pub fn closed(&self, reason: &'static str) {
        let PoolLabels { database, user, server } = self.labels.clone();
        self.closes.get_or_create(&CloseLabels { database, user, server, reason }).inc();
    }
}

impl Pools {
    pub(super) fn register(&self, registry: &mut Registry) {
        let gauge = |registry: &mut Registry, name, help, family: &Family<PoolLabels, Gauge>| {
            registry.register(name, help, family.clone());
        };
        gauge(registry, "pool_idle_connections", "Server connections that nobody uses", &self.idle);
        gauge(registry, "pool_active_connections", "Server connections that a client holds", &self.active);
        gauge(registry, "pool_max_connections", "Server connections that the pool may have", &self.max);
        gauge(registry, "pool_waiting_clients", "Clients that wait for a server connection", &self.waiting);
        registry.register("pool_wait_seconds", "How long clients waited for a server connection", self.wait.clone());
        let counter = |registry: &mut Registry, name, help, family: &Family<PoolLabels, Counter>| {
            registry.register(name, help, family.clone());
        };
        counter(registry, "pool_acquire_timeouts", "Waits that ended without a connection", &self.acquire_timeouts);
        counter(registry, "pool_connects", "Server connections made", &self.connects);
        counter(registry, "pool_connect_failures", "Server connections that could not be made", &self.connect_failures);
        registry.register("pool_closes", "Server connections closed, by reason", self.closes.clone());
    }

    pub(super) fn pool(&self, labels: PoolLabels) -> PoolMetrics {
        PoolMetrics {
            idle: self.idle.get_or_create_owned(&labels),
            active: self.active.get_or_create_owned(&labels),
            max: self.max.get_or_create_owned(&labels),
            waiting: self.waiting.get_or_create_owned(&labels),
            wait: self.wait.get_or_create_owned(&labels),
            acquire_timeouts: self.acquire_timeouts.get_or_create_owned(&labels),
            connects: self.connects.get_or_create_owned(&labels),
            connect_failures: self.connect_failures.get_or_create_owned(&labels),
            closes: self.closes.clone(),
            labels,
        }
    }

    /// Forgets the gauges of a pool that is no more; its counters stay, as Prometheus wants of counters.
    pub(super) fn remove(&self, labels: &PoolLabels) {
        for family in [&self.idle, &self.active, &self.max, &self.waiting] {
            family.remove(labels);
        }
    }
}
