//! Answers of several servers that are to show one moment: each is looked up in its own server's cache, and nobody is waited for.
//!
//! What is given here is `strict` or not at all: an answer that may be older than the others' would tear the whole.

use std::sync::Arc;

use super::entry::Entry;
use super::key::Key;
use super::lookup::is_due;
use super::memory::Held;
use super::redis::Found;
use super::{Freshness, Lookup, ResultCache};

/// What memory holds for a key, and was found good a moment ago.
#[derive(Debug, Clone)]
pub struct AtHand(Arc<Held>);

impl ResultCache {
    /// What memory has for a key and may be served now. `relations` and `catalog_version` as for [`ResultCache::lookup`].
    pub async fn recall_strict(&self, key: &Key, relations: &[u32], catalog_version: u64) -> Option<AtHand> {
        if self.is_quarantined(key) || self.elsewhere.as_ref().is_some_and(|elsewhere| !elsewhere.is_known()) {
            return None;
        }
        // Before the epochs are looked at: see `label`.
        if self.label(relations) != Freshness::Strict {
            return None;
        }
        let at_hand = AtHand(self.memory.get(key)?);
        // Who finds it due fills it again: that needs a turn.
        if is_due(&at_hand.0) || !self.still_holds(key, relations, catalog_version, &at_hand).await {
            return None;
        }
        Some(at_hand)
    }

    /// Whether it may be served now. If so it may have been at every moment since it was found good before: epochs never come back.
    pub async fn still_holds(&self, key: &Key, relations: &[u32], catalog_version: u64, at_hand: &AtHand) -> bool {
        if self.label(relations) != Freshness::Strict {
            return false;
        }
        let held = &at_hand.0;
        let is_good = held.noted.is_of(relations)
            && self.epochs.local.is_current(catalog_version)
            && self.epochs.local.holds(&held.noted);
        let Some(shared) = self.asks_redis().filter(|_| is_good) else { return is_good };
        let Some(catalog) = self.epochs.local.current(catalog_version) else { return false };
        matches!(shared.lookup(key, relations, catalog, &held.shared).await, Found::Same)
    }

    /// It is served.
    pub fn serve_at_hand(&self, at_hand: &AtHand) -> Arc<Entry> {
        self.count_hit(&self.stats.memory_hits, &at_hand.0);
        at_hand.0.entry.clone()
    }

    /// As [`ResultCache::lookup`], for what is strict only, and without waiting for another session's fill.
    pub async fn lookup_strict(self: &Arc<Self>, key: &Key, relations: &[u32], catalog_version: u64) -> Lookup {
        let label = self.label(relations);
        if label != Freshness::Strict {
            return Lookup::Bypass("others may write without telling");
        }
        let found = self.look(key, relations, catalog_version, label).await;
        found.unwrap_or(Lookup::Bypass("another session is filling it"))
    }
}
