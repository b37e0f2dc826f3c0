//! The cache's figures: read from the cache itself at each scrape, so that a hit costs nothing here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::LabelText;

/// A cache's figures at one moment. Counts only grow; those that say "now" or "may hold" do not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheSnapshot {
    /// Answers from memory.
    pub hits_memory: u64,
    /// Answers from Redis.
    pub hits_redis: u64,
    /// Lookups that found nothing and led to a fill.
    pub misses: u64,
    /// Lookups that waited for another session's fill.
    pub waits: u64,
    /// Lookups that found an entry older than a write.
    pub outdated: u64,
    /// Lookups turned away because a write was in doubt.
    pub bypass_doubt: u64,
    /// Lookups turned away because the catalog had changed.
    pub bypass_catalog: u64,
    /// Lookups turned away because Redis was late, gone or not yet trusted.
    pub bypass_redis: u64,
    /// Lookups turned away because writes made past pgherd were not known up to the bound.
    pub bypass_elsewhere: u64,
    /// Transactions that the primary's WAL told of.
    pub told_elsewhere: u64,
    /// How long ago all writes made past pgherd were known, in milliseconds.
    pub elsewhere_lag_ms: u64,
    /// Lookups turned away after waiting too long for another session's fill.
    pub bypass_wait: u64,
    /// Lookups of statements whose answers are known not to be cacheable.
    pub bypass_uncacheable: u64,
    /// Fills stored.
    pub fills: u64,
    /// Answers to fill with that came from a replica.
    pub replica_fills: u64,
    /// Answers to fill with that a replica was to give, and the primary gave.
    pub replica_fallbacks: u64,
    /// Lookups of answers that roles share.
    pub shared_lookups: u64,
    /// Fills given up by the filler.
    pub abandoned_fills: u64,
    /// Fills not stored because of a write while they ran.
    pub rejected_stale: u64,
    /// Fills not stored because they were too large.
    pub rejected_large: u64,
    /// Fills stored in memory but not in Redis.
    pub rejected_redis: u64,
    /// Times that a write put relations in doubt.
    pub raises: u64,
    /// Relations and databases given a new epoch.
    pub invalidations: u64,
    /// Writes refused because Redis could not be told of them.
    pub refused_writes: u64,
    /// Answers dropped from memory for want of room.
    pub evictions: u64,
    /// Fills not stored because they cost PostgreSQL too little.
    pub rejected_cheap: u64,
    /// Fills not stored because everything else in memory is pinned.
    pub rejected_full: u64,
    /// Fills whose statement failed.
    pub failed_fills: u64,
    /// Lookups that were given the error of a fill that they waited for.
    pub shared_failures: u64,
    /// Old answers served because PostgreSQL could not be reached.
    pub stale_on_error: u64,
    /// Entries filled again before their time was up.
    pub refreshes: u64,
    /// Microseconds that PostgreSQL would have taken for what was served.
    pub saved_us: u64,
    /// Hits that were run again and found to be right.
    pub audits_equal: u64,
    /// Hits that were run again and found to be wrong.
    pub audits_different: u64,
    /// Hits that were run again while something was written.
    pub audits_inconclusive: u64,
    /// Lookups turned away because a check of the statement's answers found another one.
    pub bypass_quarantine: u64,
    /// Writes whose outcome became unknown.
    pub unknown_outcomes: u64,
    /// Writes that went on without a mark after waiting out the lease.
    pub unmarked_writes: u64,
    /// Writes that Redis was not told of because nobody looks at what they change.
    pub unwatched_writes: u64,
    /// Times that this pgherd registered with Redis.
    pub registrations: u64,
    /// Dead members that this pgherd removed.
    pub members_removed: u64,
    /// Purges asked for.
    pub purges: u64,
    /// Bytes that memory may hold.
    pub capacity: u64,
    /// Fingerprints whose answers are not served because a check found another one.
    pub quarantined: u64,
    /// Redis commands that failed.
    pub redis_errors: u64,
    /// Redis commands that were late.
    pub redis_timeouts: u64,
    /// Bytes held in memory.
    pub bytes: u64,
    /// Entries held in memory.
    pub entries: u64,
    /// Writes now in doubt in this pgherd.
    pub doubts: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabels {
    cache: LabelText,
    tier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    cache: LabelText,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    cache: LabelText,
}

/// Reads a cache's figures; `None` once it is no more.
pub type ReadCache = Box<dyn Fn() -> Option<CacheSnapshot> + Send + Sync>;

/// Every cache that was registered, by name.
#[derive(Clone, Default)]
pub(super) struct Caches(Arc<RwLock<Vec<(LabelText, ReadCache)>>>);

impl Caches {
    pub(super) fn register(&self, name: &str, read: ReadCache) {
        let name = LabelText::from(name);
        let mut caches = self.0.write();
        caches.retain(|(other, _)| *other != name);
        caches.push((name, read));
    }
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.read().iter().map(|(name, _)| name)).finish()
    }
}

type Field = fn(&CacheSnapshot) -> u64;

const HITS: [(&str, Field); 2] = [("memory", |s| s.hits_memory), ("redis", |s| s.hits_redis)];

/// A label's value and what it counts.
type Reason = (&'static str, Field);

/// Counters by reason.
const BY_REASON: [(&str, &str, &[Reason]); 4] = [
    (
        "cache_bypasses",
        "Lookups turned away, by reason",
        &[
            ("doubt", |s| s.bypass_doubt),
            ("catalog", |s| s.bypass_catalog),
            ("redis", |s| s.bypass_redis),
            ("wait", |s| s.bypass_wait),
            ("elsewhere", |s| s.bypass_elsewhere),
            ("uncacheable", |s| s.bypass_uncacheable),
            ("quarantine", |s| s.bypass_quarantine),
        ],
    ),
    (
        "cache_stores_rejected",
        "Fills that were not stored, by reason",
        &[
            ("stale", |s| s.rejected_stale),
            ("large", |s| s.rejected_large),
            ("cheap", |s| s.rejected_cheap),
            ("full", |s| s.rejected_full),
            ("redis", |s| s.rejected_redis),
        ],
    ),
    (
        "cache_audits",
        "Hits that were run again and compared, by what came of it",
        &[
            ("equal", |s| s.audits_equal),
            ("different", |s| s.audits_different),
            ("inconclusive", |s| s.audits_inconclusive),
        ],
    ),
    (
        "cache_redis_errors",
        "Redis commands without an answer in time",
        &[("failed", |s| s.redis_errors), ("late", |s| s.redis_timeouts)],
    ),
];

const COUNTERS: [(&str, &str, Field); 23] = [
    ("cache_misses", "Lookups that found nothing and led to a fill", |s| s.misses),
    ("cache_waits", "Lookups that waited for another session's fill", |s| s.waits),
    ("cache_outdated", "Lookups that found an entry older than a write", |s| s.outdated),
    ("cache_fills", "Fills stored", |s| s.fills),
    ("cache_replica_fills", "Fills answered by a replica", |s| s.replica_fills),
    ("cache_replica_fallbacks", "Fills that a replica was to answer and the primary did", |s| s.replica_fallbacks),
    ("cache_shared_lookups", "Lookups of results that roles share", |s| s.shared_lookups),
    ("cache_abandoned_fills", "Fills given up by the filler", |s| s.abandoned_fills),
    ("cache_raises", "Times that a write put relations in doubt", |s| s.raises),
    ("cache_invalidations", "Relations and databases given a new epoch", |s| s.invalidations),
    ("cache_told_elsewhere", "Transactions that the primary's WAL told of", |s| s.told_elsewhere),
    ("cache_refused_writes", "Writes refused because Redis could not be told of them", |s| s.refused_writes),
    ("cache_evictions", "Results dropped from memory for want of room", |s| s.evictions),
    ("cache_failed_fills", "Fills whose statement failed", |s| s.failed_fills),
    ("cache_shared_failures", "Lookups given the error of a fill that they waited for", |s| s.shared_failures),
    ("cache_stale_on_error", "Old results served because PostgreSQL could not be reached", |s| s.stale_on_error),
    ("cache_refreshes", "Results filled again before their time was up", |s| s.refreshes),
    ("cache_unknown_outcomes", "Writes whose outcome became unknown", |s| s.unknown_outcomes),
    ("cache_unwatched_writes", "Writes that Redis was not told of because nobody looks at what they change", |s| {
        s.unwatched_writes
    }),
    ("cache_unmarked_writes", "Writes that went on without Redis after waiting out the lease", |s| s.unmarked_writes),
    ("cache_registrations", "Times that this pgherd registered with Redis", |s| s.registrations),
    ("cache_members_removed", "Dead pgherds that this one removed from Redis", |s| s.members_removed),
    ("cache_purges", "Purges asked for", |s| s.purges),
];

const GAUGES: [(&str, &str, Field); 6] = [
    ("cache_memory_bytes", "Bytes of results held in memory", |s| s.bytes),
    ("cache_memory_max_bytes", "Bytes of results that memory may hold", |s| s.capacity),
    ("cache_entries", "Results held in memory", |s| s.entries),
    ("cache_quarantined", "Statements whose results are not served because one was wrong", |s| s.quarantined),
    ("cache_doubts", "Writes now in doubt", |s| s.doubts),
    ("cache_elsewhere_lag_milliseconds", "How long ago all writes made past pgherd were known", |s| s.elsewhere_lag_ms),
];

impl Collector for Caches {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let snapshots: Vec<(LabelText, CacheSnapshot)> =
            self.0.read().iter().filter_map(|(name, read)| Some((name.clone(), read()?))).collect();
        if snapshots.is_empty() {
            return Ok(());
        }
        let mut hits = encoder.encode_descriptor("cache_hits", "Answers from the cache", None, MetricType::Counter)?;
        for (name, snapshot) in &snapshots {
            for (tier, field) in HITS {
                let labels = TierLabels { cache: name.clone(), tier };
                ConstCounter::new(field(snapshot)).encode(hits.encode_family(&labels)?)?;
            }
        }
        for (metric, help, reasons) in BY_REASON {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
            for (name, snapshot) in &snapshots {
                for &(reason, field) in reasons {
                    let labels = ReasonLabels { cache: name.clone(), reason };
                    ConstCounter::new(field(snapshot)).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        for (metric, help, field) in COUNTERS {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
            for (name, snapshot) in &snapshots {
                let labels = CacheLabels { cache: name.clone() };
                ConstCounter::new(field(snapshot)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Seconds that PostgreSQL would have taken for what was served";
        let mut saved = encoder.encode_descriptor("cache_saved_seconds", help, None, MetricType::Counter)?;
        for (name, snapshot) in &snapshots {
            let seconds = Duration::from_micros(snapshot.saved_us).as_secs_f64();
            ConstCounter::new(seconds).encode(saved.encode_family(&CacheLabels { cache: name.clone() })?)?;
        }
        for (metric, help, field) in GAUGES {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for (name, snapshot) in &snapshots {
                let labels = CacheLabels { cache: name.clone() };
                let value = i64::try_from(field(snapshot)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
