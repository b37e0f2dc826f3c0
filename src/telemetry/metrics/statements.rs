//! One database's figures on statements, handed to a session once.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Histogram, LabelText};

/// What sort of plan a statement got: the label `plan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlanClass {
    /// Forwarded to the primary.
    Primary,
    /// Forwarded to a replica.
    Replica,
    /// Answered from the cache, or run to fill it.
    Cached,
    /// Forwarded to one shard.
    Shard,
    /// Run on several shards and merged.
    FanOut,
    /// Run by PostgreSQL on rows that several shards shipped.
    Gather,
    /// Writes on several shards.
    Scatter,
    /// Answered by pgherd itself.
    Local,
    /// Refused.
    Refused,
}

impl PlanClass {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 9] = [
        Self::Primary,
        Self::Replica,
        Self::Cached,
        Self::Shard,
        Self::FanOut,
        Self::Gather,
        Self::Scatter,
        Self::Local,
        Self::Refused,
    ];

    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Cached => "cached",
            Self::Shard => "shard",
            Self::FanOut => "fanout",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::Local => "local",
            Self::Refused => "refused",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlanLabels {
    database: LabelText,
    plan: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DatabaseLabels {
    database: LabelText,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FallbackLabels {
    database: LabelText,
    reason: &'static str,
}

/// Every database's figures.
#[derive(Debug, Clone, Default)]
pub(super) struct Databases {
    duration: Family<PlanLabels, Histogram>,
    statements: Family<PlanLabels, Counter>,
    transactions: Family<DatabaseLabels, Counter>,
    client_bytes_in: Family<DatabaseLabels, Counter>,
    client_bytes_out: Family<DatabaseLabels, Counter>,
    fanout_legs: Family<DatabaseLabels, Counter>,
    fanout_legs_failed: Family<DatabaseLabels, Counter>,
    fanout_legs_cached: Family<DatabaseLabels, Counter>,
    fanout_fallbacks: Family<FallbackLabels, Counter>,
    transactions_recovered: Family<DatabaseLabels, Counter>,
    transactions_orphaned: Family<DatabaseLabels, Gauge>,
}

/// The figures of one database: atomics only.
#[derive(Debug)]
pub struct DatabaseMetrics {
    statements: [(Counter, Histogram); PlanClass::ALL.len()],
    /// Transactions that ended, those of a single statement included.
    pub transactions: Counter,
    /// Bytes that clients sent.
    pub bytes_in: Counter,
    /// Bytes that clients were sent.
    pub bytes_out: Counter,
    /// Legs of fan-outs that were started.
    pub fanout_legs: Counter,
    /// Legs of fan-outs that ended in an error or were cancelled.
    pub fanout_legs_failed: Counter,
    /// Shards' parts of answers that were replayed from the cache: no leg was started.
    pub fanout_legs_cached: Counter,
    /// Fan-outs that were given up for PostgreSQL to merge, because of their rows' types.
    pub fanout_fallbacks_types: Counter,
    /// The same because of the memory that their groups need.
    pub fanout_fallbacks_memory: Counter,
    /// Prepared transactions that a crash had left and recovery has finished.
    pub transactions_recovered: Counter,
    /// Prepared transactions of other configurations, found at the last look.
    pub transactions_orphaned: Gauge,
}

impl DatabaseMetrics {
    /// Counts a statement that has ended, and the time from its arrival to its end.
    pub fn statement(&self, plan: PlanClass, time: Duration) {
        let (count, duration) = &self.statements[plan as usize];
        count.inc();
        duration.observe(time);
    }

    /// The time that statements took, all together.
    pub fn statement_time(&self) -> Duration {
        self.statements.iter().map(|(_, duration)| duration.sum()).sum()
    }

    /// How many statements of a class have ended.
    pub fn statements(&self, plan: PlanClass) -> u64 {
        self.statements[plan as usize].0.get()
    }
}

impl Databases {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("statements", "Statements that have ended, by plan", self.statements.clone());
        let help = "Time from a statement's arrival to its end, by plan";
        registry.register("statement_duration_seconds", help, self.duration.clone());
        registry.register("transactions", "Transactions that have ended", self.transactions.clone());
        registry.register("client_received_bytes", "Bytes that clients sent", self.client_bytes_in.clone());
        registry.register("client_sent_bytes", "Bytes that clients were sent", self.client_bytes_out.clone());
        registry.register("fanout_legs", "Legs of fan-outs that were started", self.fanout_legs.clone());
        let help = "Legs of fan-outs that ended in an error or were cancelled";
        registry.register("fanout_legs_failed", help, self.fanout_legs_failed.clone());
        let help = "Shards' parts of answers that were replayed from the cache";
        registry.register("fanout_legs_cached", help, self.fanout_legs_cached.clone());
        let help = "Fan-outs that were given up, and run once more for PostgreSQL to merge, by reason";
        registry.register("fanout_fallbacks", help, self.fanout_fallbacks.clone());
        let help = "Prepared transactions that a crash had left and recovery has finished";
        registry.register("transactions_recovered", help, self.transactions_recovered.clone());
        let help = "Prepared transactions of other configurations, found at the last look";
        registry.register("transactions_orphaned", help, self.transactions_orphaned.clone());
    }

    pub(super) fn database(&self, name: &str) -> Arc<DatabaseMetrics> {
        let labels = DatabaseLabels { database: name.into() };
        let fallbacks = |reason| {
            let labels = FallbackLabels { database: name.into(), reason };
            self.fanout_fallbacks.get_or_create_owned(&labels)
        };
        let statements = PlanClass::ALL.map(|plan| {
            let labels = PlanLabels { database: name.into(), plan: plan.label() };
            (self.statements.get_or_create_owned(&labels), self.duration.get_or_create_owned(&labels))
        });
        Arc::new(DatabaseMetrics {
            statements,
            transactions: self.transactions.get_or_create_owned(&labels),
            bytes_in: self.client_bytes_in.get_or_create_owned(&labels),
            bytes_out: self.client_bytes_out.get_or_create_owned(&labels),
            fanout_legs: self.fanout_legs.get_or_create_owned(&labels),
            fanout_legs_failed: self.fanout_legs_failed.get_or_create_owned(&labels),
            fanout_legs_cached: self.fanout_legs_cached.get_or_create_owned(&labels),
            fanout_fallbacks_types: fallbacks("types"),
            fanout_fallbacks_memory: fallbacks("memory"),
            transactions_recovered: self.transactions_recovered.get_or_create_owned(&labels),
            transactions_orphaned: self.transactions_orphaned.get_or_create_owned(&labels),
        })
    }
}
