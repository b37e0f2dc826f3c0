//! Counters of one result cache, and a snapshot of them for telemetry.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters that only grow. Written with relaxed order: they guide people, not the protocol.
        #[derive(Debug, Default)]
        pub struct CacheStats {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// What the counters, and the gauges beside them, were at one moment.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct CacheStatsSnapshot {
            $($(#[$doc])* pub $name: u64,)*
            /// Entries in memory now.
            pub entries: u64,
            /// Bytes in memory now, keys and overhead included.
            pub bytes: u64,
            /// Bytes that memory may hold.
            pub capacity: u64,
            /// Fingerprints whose answers are not served because a check found another one.
            pub quarantined: u64,
            /// Writes now in doubt in this pgherd.
            pub doubts: u64,
            /// How long ago all writes made past pgherd were known, in milliseconds; 0 if they are not followed.
            pub elsewhere_lag_ms: u64,
        }

        impl CacheStats {
            pub(crate) fn snapshot(&self) -> CacheStatsSnapshot {
                CacheStatsSnapshot { $($name: self.$name.load(Relaxed),)* ..Default::default() }
            }
        }
    };
}

counters! {
    /// Answers from memory.
    memory_hits,
    /// Answers from Redis.
    redis_hits,
    /// Lookups that found nothing and became the filler.
    misses,
    /// Fills stored.
    fills,
    /// Answers to fill with that came from a replica.
    replica_fills,
    /// Answers to fill with that a replica was to give, and the primary gave.
    replica_fallbacks,
    /// Fills not stored because an epoch moved, a doubt arose or the catalog changed while they ran.
    rejected_stale,
    /// Answers dropped from memory for want of room.
    evictions,
    /// Fills not stored because they were too large.
    rejected_large,
    /// Fills that were stored in memory but not in Redis, which was late or gone.
    rejected_redis,
    /// Fills not stored because they cost PostgreSQL too little.
    rejected_cheap,
    /// Fills not stored because everything else in memory is pinned.
    rejected_full,
    /// Fills whose statement failed.
    failed_fills,
    /// Lookups that were given the error of a fill that they waited for.
    shared_failures,
    /// Answers older than a write or than their time that were served because PostgreSQL could not be reached.
    stale_on_error,
    /// Entries that were filled again before their time was up.
    refreshes,
    /// Microseconds that PostgreSQL would have taken for what was served.
    saved_us,
    /// Hits that were run again and found to be right.
    audits_equal,
    /// Hits that were run again and found to be wrong.
    audits_different,
    /// Hits that were run again while something was written, so that nothing can be said.
    audits_inconclusive,
    /// Fills given up by the filler.
    abandoned_fills,
    /// Lookups that found an entry older than a write.
    outdated,
    /// Lookups turned away because a write was in doubt.
    bypass_doubt,
    /// Lookups turned away because the relations came from an old catalog.
    bypass_catalog,
    /// Lookups turned away because Redis was late, gone, or not yet trusted.
    bypass_redis,
    /// Lookups turned away because writes made past pgherd were not known up to the bound.
    bypass_elsewhere,
    /// Transactions made past pgherd, or told of once more, that changed something.
    told_elsewhere,
    /// Lookups turned away after waiting too long for another session's fill.
    bypass_wait,
    /// Lookups turned away because this statement's answer is known not to be cacheable.
    bypass_uncacheable,
    /// Lookups turned away because a check of the statement's answers found another one.
    bypass_quarantine,
    /// Lookups of answers that roles share.
    shared_lookups,
    /// Lookups that waited for another session's fill.
    waits,
    /// Times that a write put relations in doubt.
    raises,
    /// Relations and databases given a new epoch.
    invalidations,
    /// Writes whose outcome became unknown.
    unknown_outcomes,
    /// Redis commands that failed.
    redis_errors,
    /// Redis commands that were late.
    redis_timeouts,
    /// Times that this pgherd registered itself anew.
    registrations,
    /// Dead members that this pgherd removed.
    members_removed,
    /// Writes that went on without a mark after waiting out the lease.
    unmarked_writes,
    /// Writes that Redis was not told of because nobody looks at what they change.
    unwatched_writes,
    /// Writes refused because Redis could not be told of them.
    refused_writes,
    /// Purges asked for.
    purges,
}

impl CacheStats {
    pub(crate) fn add(&self, counter: impl Fn(&Self) -> &AtomicU64) {
        counter(self).fetch_add(1, Relaxed);
    }
}
