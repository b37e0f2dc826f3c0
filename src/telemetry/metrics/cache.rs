//! The cache's figures: read from the cache itself at each scrape, so that a hit costs nothing here.

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::LabelText;

/// A cache's figures at one moment. Counts only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheSnapshot {
    /// Answers from memory.
    pub hits_memory: u64,
    /// Answers from Redis.
    pub hits_redis: u64,
    /// Lookups that found nothing to serve.
    pub misses: u64,
    /// Lookups that waited for another client's fill.
    pub joined_fills: u64,
    /// Queries run to fill the cache.
    pub fills: u64,
    /// Results that were stored.
    pub stores: u64,
    /// Results that were not stored because an epoch had moved, something was in doubt, or they were too large.
    pub stores_rejected: u64,
    /// Epochs raised.
    pub invalidations: u64,
    /// Entries dropped for want of room.
    pub evictions: u64,
    /// Requests to Redis that failed or came late.
    pub redis_errors: u64,
    /// Bytes held in memory.
    pub bytes: u64,
    /// Entries held in memory.
    pub entries: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HitLabels {
    cache: LabelText,
    tier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    cache: LabelText,
}

/// Reads a cache's figures.
pub type ReadCache = Box<dyn Fn() -> CacheSnapshot + Send + Sync>;

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

const COUNTERS: [(&str, &str, Field); 8] = [
    ("cache_misses", "Lookups that found nothing to serve", |s| s.misses),
    ("cache_joined_fills", "Lookups that waited for another client's fill", |s| s.joined_fills),
    ("cache_fills", "Queries run to fill the cache", |s| s.fills),
    ("cache_stores", "Results that were stored", |s| s.stores),
    ("cache_stores_rejected", "Results not stored: epoch moved, in doubt, or too large", |s| s.stores_rejected),
    ("cache_invalidations", "Epochs raised", |s| s.invalidations),
    ("cache_evictions", "Entries dropped for want of room", |s| s.evictions),
    ("cache_redis_errors", "Requests to Redis that failed or came late", |s| s.redis_errors),
];

const GAUGES: [(&str, &str, Field); 2] = [
    ("cache_memory_bytes", "Bytes of results held in memory", |s| s.bytes),
    ("cache_entries", "Results held in memory", |s| s.entries),
];

impl Collector for Caches {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let snapshots: Vec<(LabelText, CacheSnapshot)> =
            self.0.read().iter().map(|(name, read)| (name.clone(), read())).collect();
        if snapshots.is_empty() {
            return Ok(());
        }
        let mut hits =
            encoder.encode_descriptor("cache_hits", "Answers from the cache, by tier", None, MetricType::Counter)?;
        for (name, snapshot) in &snapshots {
            for (tier, count) in [("memory", snapshot.hits_memory), ("redis", snapshot.hits_redis)] {
                let labels = HitLabels { cache: name.clone(), tier };
                ConstCounter::new(count).encode(hits.encode_family(&labels)?)?;
            }
        }
        for (metric, help, field) in COUNTERS {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
            for (name, snapshot) in &snapshots {
                ConstCounter::new(field(snapshot))
                    .encode(family.encode_family(&CacheLabels { cache: name.clone() })?)?;
            }
        }
        for (metric, help, field) in GAUGES {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for (name, snapshot) in &snapshots {
                let value = i64::try_from(field(snapshot)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&CacheLabels { cache: name.clone() })?)?;
            }
        }
        Ok(())
    }
}
