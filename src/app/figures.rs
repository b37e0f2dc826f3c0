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
            evictions: stats.evictions,
            rejected_cheap: stats.rejected_cheap,
            rejected_full: stats.rejected_full,
            failed_fills: stats.failed_fills,
            shared_failures: stats.shared_failures,
            stale_on_error: stats.stale_on_error,
            refreshes: stats.refreshes,
            saved_us: stats.saved_us,
            audits_equal: stats.audits_equal,
            audits_different: stats.audits_different,
            audits_inconclusive: stats.audits_inconclusive,
            bypass_quarantine: stats.bypass_quarantine,
            unknown_outcomes: stats.unknown_outcomes,
            unmarked_writes: stats.unmarked_writes,
            unwatched_writes: stats.unwatched_writes,
            replica_fills: stats.replica_fills,
            replica_fallbacks: stats.replica_fallbacks,
            shared_lookups: stats.shared_lookups,
            registrations: stats.registrations,
            members_removed: stats.members_removed,
            purges: stats.purges,
            capacity: stats.capacity,
            quarantined: stats.quarantined,
            bytes: stats.bytes,
            entries: stats.entries,
            doubts: stats.doubts,
        })
    })
}
