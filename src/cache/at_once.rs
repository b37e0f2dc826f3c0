//! The short way to a hit: a key that was looked up before, answered from memory without a note of epochs, a turn or a wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ResultCache;
use super::entry::Entry;
use super::key::Key;
use super::lookup::is_due;
use super::memory::Held;
use super::redis::Found;

/// What memory says at once.
#[derive(Debug)]
pub enum AtOnce {
    /// The answer.
    Hit(Arc<Entry>),
    /// Memory has it, and Redis must say that it holds: see [`ResultCache::confirm_at_once`].
    Ask(ToConfirm),
    /// Nothing that can be served without more ado: look it up.
    No,
}

/// What memory holds, as far as this process knows.
#[derive(Debug)]
pub struct ToConfirm(Arc<Held>);

impl ResultCache {
    /// The answer for a key, if [`ResultCache::lookup`] would give it from memory and do nothing else: no check of the hit, no
    /// refresh. `relations` and `catalog_version` as there.
    pub fn at_once(&self, key: &Key, relations: &[u32], catalog_version: u64) -> AtOnce {
        if self.is_quarantined(key) || self.elsewhere.as_ref().is_some_and(|elsewhere| !elsewhere.is_known()) {
            return AtOnce::No;
        }
        // Asked before the epochs are looked at: what was cached while others may have written goes when it changes.
        self.label(relations);
        let Some(held) = self.memory.get(key) else { return AtOnce::No };
        let is_next_sampled = || {
            let number = self.stats.memory_hits.load(Ordering::Relaxed) + 1;
            self.audit_one_in > 0 && number.is_multiple_of(self.audit_one_in)
        };
        let is_good = held.noted.is_of(relations)
            && self.epochs.local.is_current(catalog_version)
            && self.epochs.local.holds(&held.noted);
        if !is_good || is_due(&held) || is_next_sampled() {
            return AtOnce::No;
        }
        if self.asks_redis().is_some() {
            return AtOnce::Ask(ToConfirm(held));
        }
        self.count_hit(&self.stats.memory_hits, &held);
        AtOnce::Hit(held.entry.clone())
    }

    /// The answer, if Redis says that it still holds.
    pub async fn confirm_at_once(
        &self,
        key: &Key,
        relations: &[u32],
        catalog_version: u64,
        ToConfirm(held): ToConfirm,
    ) -> Option<Arc<Entry>> {
        let (shared, catalog) = (self.asks_redis()?, self.epochs.local.current(catalog_version)?);
        match shared.lookup(key, relations, catalog, &held.shared).await {
            Found::Same => {
                self.count_hit(&self.stats.memory_hits, &held);
                Some(held.entry.clone())
            }
            _ => None,
        }
    }
}
