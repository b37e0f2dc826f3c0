//! A cache's figures, as metrics want them: neither knows of the other.

use std::sync::Arc;

use crate::cache::ResultCache;
use crate::telemetry::metrics::{CacheSnapshot, ReadCache};

/// Reads a cache for as long as it is there.
pub(super) fn of_cache(cache: &Arc<ResultCache>) -> ReadCache {
    let cache = Arc::downgrade(cache);
    Box::new(move || {
        let stats = cache.upgrade()?.stats();
        Some(CacheSnapshot {
            hits_memory: stats.memory_hits,
            hits_redis: stats.redis_hits,
            misses: stats.misses,
            waits: stats.waits,
            outdated: stats.outdated,
            bypass_doubt: stats.bypass_doubt,
            bypass_catalog: stats.bypass_catalog,
            bypass_redis: stats.bypass_redis,
            bypass_elsewhere: stats.bypass_elsewhere,
            told_elsewhere: stats.told_elsewhere,
            elsewhere_lag_ms: stats.elsewhere_lag_ms,
            bypass_wait: stats.bypass_wait,
            bypass_uncacheable: stats.bypass_uncacheable,
            fills: stats.fills,
            abandoned_fills: stats.abandoned_fills,
            rejected_stale: stats.rejected_stale,
            rejected_large: stats.rejected_large,
            rejected_redis: stats.rejected_redis,
            raises: stats.raises,
            invalidations: stats.invalidations,
            refused_writes: stats.refused_writes,
            redis_errors: stats.redis_errors,
            redis_timeouts: stats.redis_timeouts,
            bytes: stats.bytes,
            entries: stats.entries,
            doubts: stats.doubts,
        })
    })
}
