//! The first tier: answers in this process's memory, bounded in bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::Expiry;
use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::entry::Entry;
use super::epochs::Noted;
use super::key::Key;
use super::stats::CacheStats;

/// What an entry costs beside its own bytes and its key's: the map's node, the reference counts, moka's bookkeeping.
const OVERHEAD_BYTES: usize = 512;

/// An answer with the epochs that it depends on.
#[derive(Debug)]
pub(crate) struct Held {
    /// The answer.
    pub(crate) entry: Arc<Entry>,
    /// This process's epochs as noted before the fill ran.
    pub(crate) noted: Noted,
    /// Redis' epochs as noted before the fill ran, in the form that its scripts compare; empty without Redis.
    pub(crate) shared: Bytes,
}

/// The tier itself.
#[derive(Debug)]
pub(crate) struct Memory {
    cache: Cache<Key, Arc<Held>>,
}

struct UntilDeadline;

impl Expiry<Key, Arc<Held>> for UntilDeadline {
    fn expire_after_create(&self, _key: &Key, held: &Arc<Held>, _now: Instant) -> Option<Duration> {
        Some(held.entry.remaining())
    }

    fn expire_after_update(
        &self,
        _key: &Key,
        held: &Arc<Held>,
        _now: Instant,
        _left: Option<Duration>,
    ) -> Option<Duration> {
        Some(held.entry.remaining())
    }
}

fn weight(key: &Key, held: &Arc<Held>) -> u32 {
    let bytes = OVERHEAD_BYTES + key.bytes().len() + held.entry.bytes.len() + held.shared.len() + held.noted.bytes();
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Memory {
    pub(crate) fn new(capacity_bytes: u64, stats: Arc<CacheStats>) -> Self {
        let on_removal = move |_key: Arc<Key>, _held: Arc<Held>, cause: RemovalCause| {
            if cause == RemovalCause::Size {
                stats.add(|stats| &stats.evictions);
            }
        };
        let cache = Cache::builder()
            .max_capacity(capacity_bytes)
            .weigher(weight)
            .expire_after(UntilDeadline)
            .eviction_listener(on_removal)
            .build();
        Self { cache }
    }

    /// What is held under this very key, whatever its epochs.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Held>> {
        self.cache.get(key).filter(|held| !held.entry.remaining().is_zero())
    }

    /// Takes an answer in, then lets go of what is over the bound: moka would otherwise put that off, and large answers add up.
    pub(crate) fn insert(&self, key: Key, held: Arc<Held>) {
        self.cache.insert(key, held);
        self.cache.run_pending_tasks();
    }

    /// Lets go of everything.
    pub(crate) fn clear(&self) {
        self.cache.invalidate_all();
        self.cache.run_pending_tasks();
    }

    /// Entries and bytes held now.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.cache.entry_count(), self.cache.weighted_size())
    }
}
