//! Stories of one cache in one process, a random-interleaving model of its protocol, and the same with Redis.

mod fleet;
mod interest;
mod legs;
mod loss;
mod memory;
mod model;
mod redis_server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;

use super::*;

pub(super) const BACKEND: BackendId = BackendId { pid: 4711, start_us: 1_700_000_000_000_000 };
/// The catalog version that all tests' snapshots have.
pub(super) const CATALOG: u64 = 1;

pub(super) fn config() -> Cache {
    Cache {
        enabled: true,
        ttl: Duration::from_secs(300),
        memory_bytes: 64 << 20,
        max_entry_bytes: 1 << 20,
        consistency: Consistency::Strict,
        redis: None,
        wal: None,
        tables: BTreeMap::new(),
        statements: BTreeMap::new(),
        olap_only: false,
        min_cost: Duration::ZERO,
        in_transactions: true,
        audit_one_in: 0,
        stale_on_error: false,
        share_roles: false,
        shards: false,
    }
}

pub(super) fn solo() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

pub(super) fn cache_with(faults: Faults) -> Arc<ResultCache> {
    let cache = ResultCache::with_faults("app", &config(), solo(), faults).expect("configuration");
    load_catalog(&cache);
    cache
}

pub(super) fn cache() -> Arc<ResultCache> {
    cache_with(Faults::default())
}

/// Tells the cache that the tests' catalog is the present one.
pub(super) fn load_catalog(cache: &ResultCache) {
    let as_of = *cache.catalog_epoch().borrow();
    cache.catalog_loaded(CATALOG, as_of);
}

pub(super) fn key(cache: &ResultCache, text: &str) -> Key {
    cache.key(Protocol::Simple).identity("app", "alice", "alice").statement(text.as_bytes()).build()
}

pub(super) fn answer(text: &str) -> Entry {
    Entry::new(Bytes::copy_from_slice(text.as_bytes()), 0, 1, Duration::from_millis(3), Duration::from_secs(60))
}

pub(super) fn writes(relations: &[u32]) -> WriteSetView<'_> {
    WriteSetView { database: false, catalog: false, relations, catalog_version: CATALOG }
}

/// The ticket of a lookup that must be a miss.
pub(super) async fn must_fill(cache: &Arc<ResultCache>, key: &Key, relations: &[u32]) -> FillTicket {
    match cache.lookup(key, relations, CATALOG).await {
        Lookup::Fill(ticket) => ticket,
        other => panic!("expected a miss, got {other:?}"),
    }
}

/// The text, the tier and the label of a lookup that must be a hit.
pub(super) async fn must_hit(cache: &Arc<ResultCache>, key: &Key, relations: &[u32]) -> (String, Tier, Freshness) {
    match cache.lookup(key, relations, CATALOG).await {
        Lookup::Hit { entry, tier, label, .. } => (String::from_utf8_lossy(&entry.bytes).into_owned(), tier, label),
        other => panic!("expected a hit, got {other:?}"),
    }
}

/// The reason of a lookup that must be turned away.
pub(super) async fn must_bypass(cache: &Arc<ResultCache>, key: &Key, relations: &[u32]) -> &'static str {
    match cache.lookup(key, relations, CATALOG).await {
        Lookup::Bypass(reason) => reason,
        other => panic!("expected to be turned away, got {other:?}"),
    }
}
