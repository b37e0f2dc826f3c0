//! SHOW CACHE and its kin: each cache's figures, its entries, and statements whose answers are not served.

use std::sync::Arc;
use std::time::Duration;

use super::World;
use super::value::{Column, Row, Type, Value};
use crate::cache::{CacheStatsSnapshot, ResultCache};
use crate::session::context::Database;

use Type::{Int, Numeric, Text};

/// Entries that SHOW CACHE ENTRIES shows of each cache: those that have saved most.
const SHOWN: usize = 1000;

type Figure = (&'static str, fn(&CacheStatsSnapshot) -> u64);

const FIGURES: [Figure; 49] = [
    ("entries", |stats| stats.entries),
    ("bytes", |stats| stats.bytes),
    ("hits_memory", |stats| stats.memory_hits),
    ("hits_redis", |stats| stats.redis_hits),
    ("misses", |stats| stats.misses),
    ("waits", |stats| stats.waits),
    ("outdated", |stats| stats.outdated),
    ("fills", |stats| stats.fills),
    ("fills_abandoned", |stats| stats.abandoned_fills),
    ("rejected_stale", |stats| stats.rejected_stale),
    ("rejected_large", |stats| stats.rejected_large),
    ("evictions", |stats| stats.evictions),
    ("bypass_doubt", |stats| stats.bypass_doubt),
    ("bypass_catalog", |stats| stats.bypass_catalog),
    ("bypass_redis", |stats| stats.bypass_redis),
    ("bypass_uncacheable", |stats| stats.bypass_uncacheable),
    ("doubts", |stats| stats.doubts),
    ("invalidations", |stats| stats.invalidations),
    ("redis_errors", |stats| stats.redis_errors + stats.redis_timeouts),
    ("saved_us", |stats| stats.saved_us),
    ("rejected_cheap", |stats| stats.rejected_cheap),
    ("refreshes", |stats| stats.refreshes),
    ("failed_fills", |stats| stats.failed_fills),
    ("shared_failures", |stats| stats.shared_failures),
    ("stale_on_error", |stats| stats.stale_on_error),
    ("audits_equal", |stats| stats.audits_equal),
    ("audits_different", |stats| stats.audits_different),
    ("audits_inconclusive", |stats| stats.audits_inconclusive),
    ("quarantined", |stats| stats.quarantined),
    ("capacity", |stats| stats.capacity),
    ("rejected_full", |stats| stats.rejected_full),
    ("rejected_redis", |stats| stats.rejected_redis),
    ("bypass_elsewhere", |stats| stats.bypass_elsewhere),
    ("bypass_wait", |stats| stats.bypass_wait),
    ("bypass_quarantine", |stats| stats.bypass_quarantine),
    ("told_elsewhere", |stats| stats.told_elsewhere),
    ("elsewhere_lag_ms", |stats| stats.elsewhere_lag_ms),
    ("raises", |stats| stats.raises),
    ("unknown_outcomes", |stats| stats.unknown_outcomes),
    ("unmarked_writes", |stats| stats.unmarked_writes),
    ("unwatched_writes", |stats| stats.unwatched_writes),
    ("refused_writes", |stats| stats.refused_writes),
    ("registrations", |stats| stats.registrations),
    ("members_removed", |stats| stats.members_removed),
    ("purges", |stats| stats.purges),
    ("redis_late", |stats| stats.redis_timeouts),
    ("replica_fills", |stats| stats.replica_fills),
    ("replica_fallbacks", |stats| stats.replica_fallbacks),
    ("shared_lookups", |stats| stats.shared_lookups),
];

pub(super) const ENTRIES: [Column; 14] = [
    ("database", Text),
    ("fingerprint", Text),
    ("bytes", Numeric),
    ("rows", Numeric),
    ("cost_us", Numeric),
    ("hits", Numeric),
    ("saved_us", Numeric),
    ("age_ms", Numeric),
    ("remaining_ms", Numeric),
    ("tables", Text),
    ("freshness", Text),
    ("current", Int),
    ("pinned", Int),
    ("server", Text),
];

pub(super) const QUARANTINE: [Column; 3] = [("database", Text), ("fingerprint", Text), ("server", Text)];

pub(super) fn columns() -> Vec<Column> {
    let figures = FIGURES.iter().map(|(name, _)| (*name, Numeric));
    std::iter::once(("database", Text)).chain(figures).chain([("server", Text)]).collect()
}

pub(super) fn rows(world: &dyn World) -> Vec<Row> {
    let row = |known: Known| {
        let stats = known.cache.stats();
        let figures = FIGURES.iter().map(|(_, figure)| Value::from(figure(&stats)));
        let server = Value::from(known.server());
        std::iter::once(known.database.config.name.as_str().into()).chain(figures).chain([server]).collect()
    };
    distinct(world).into_iter().map(row).collect()
}

/// A cache, and whose answers it keeps.
pub(super) struct Known {
    pub(super) database: Arc<Database>,
    /// Those of that shard; of the primary without.
    pub(super) shard: Option<usize>,
    pub(super) cache: Arc<ResultCache>,
}

impl Known {
    fn server(&self) -> String {
        self.shard.map_or_else(|| "primary".to_owned(), |shard| format!("shard {shard}"))
    }
}

/// Databases of one server share a cache: it is shown under the first of them.
pub(super) fn distinct(world: &dyn World) -> Vec<Known> {
    let mut found: Vec<Known> = Vec::new();
    for database in world.databases() {
        let shards = database.shard_caches.iter().enumerate().map(|(shard, known)| (Some(shard), &known.cache));
        for (shard, cache) in database.cache.iter().map(|cache| (None, cache)).chain(shards) {
            if !found.iter().any(|known| Arc::ptr_eq(&known.cache, cache)) {
                found.push(Known { database: Arc::clone(&database), shard, cache: Arc::clone(cache) });
            }
        }
    }
    found
}

/// What memory holds, those that have saved most first.
pub(super) fn entries(world: &dyn World) -> Vec<Row> {
    let mut rows = Vec::new();
    for known in distinct(world) {
        let (cache, database) = (&known.cache, &known.database);
        let of_shard = known.shard.and_then(|shard| database.shard_caches.get(shard));
        let catalog = of_shard.map_or(&database.catalog, |of_shard| &of_shard.catalog).current();
        let name = |oid: &u32| match catalog.relations.get(oid) {
            Some(relation) => format!("{}.{}", relation.schema, relation.name),
            // Dropped since, or not known yet.
            None => oid.to_string(),
        };
        for entry in cache.entries(SHOWN) {
            let tables: Vec<String> = entry.relations.iter().map(name).collect();
            rows.push(vec![
                database.config.name.as_str().into(),
                format!("{:032x}", entry.fingerprint).into(),
                entry.bytes.into(),
                entry.rows.into(),
                micros(entry.cost).into(),
                entry.hits.into(),
                micros(entry.cost).saturating_mul(entry.hits).into(),
                millis(entry.age).into(),
                millis(entry.remaining).into(),
                tables.join(", ").into(),
                entry.freshness.label().into(),
                entry.is_current.into(),
                entry.is_pinned.into(),
                known.server().into(),
            ]);
        }
    }
    rows
}

/// Statements whose answers are not served any more because a check found another one.
pub(super) fn quarantine(world: &dyn World) -> Vec<Row> {
    let mut rows = Vec::new();
    for known in distinct(world) {
        for fingerprint in known.cache.quarantined() {
            let (database, fingerprint) = (known.database.config.name.as_str(), format!("{fingerprint:032x}"));
            rows.push(vec![database.into(), fingerprint.into(), known.server().into()]);
        }
    }
    rows
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
