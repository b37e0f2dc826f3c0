//! Looking into a cache: its entries, and checks of what it serves.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;

use super::entry::Entry;
use super::epochs::DATABASE;
use super::key::Key;
use super::memory::Held;
use super::redis::{Announced, Found};
use super::{Freshness, ResultCache};
use crate::config::model::Consistency;

/// One entry of memory, as people are shown it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The statement's fingerprint.
    pub fingerprint: u128,
    /// Bytes in memory, key and overhead included.
    pub bytes: u64,
    /// Rows of the answer.
    pub rows: u64,
    /// How long PostgreSQL took for it.
    pub cost: Duration,
    /// How often it was served by this process.
    pub hits: u64,
    /// How old it is.
    pub age: Duration,
    /// How long it may still be served.
    pub remaining: Duration,
    /// The relations that it was read from, by oid.
    pub relations: Vec<u32>,
    /// What it promises.
    pub freshness: Freshness,
    /// Whether nothing that it depends on has been written since.
    pub is_current: bool,
    /// Whether it stays whatever else there is no room for.
    pub is_pinned: bool,
}

/// Statements whose answers are not served any more.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    is_any: AtomicBool,
    fingerprints: RwLock<HashSet<u128>>,
}

/// A hit that is to be run again and compared.
#[derive(Debug)]
pub struct Audit {
    cache: Arc<ResultCache>,
    key: Key,
    held: Arc<Held>,
    relations: Box<[u32]>,
    catalog_version: u64,
}

impl ResultCache {
    /// What is in memory: so many at most, those that have saved most.
    pub fn entries(&self, most: usize) -> Vec<Listed> {
        let list = |(key, held, bytes, is_pinned): (Key, Arc<Held>, u64, bool)| Listed {
            fingerprint: key.fingerprint(),
            bytes,
            rows: held.entry.rows,
            cost: held.entry.cost,
            hits: held.hits.load(Relaxed),
            age: held.entry.age(),
            remaining: held.entry.remaining(),
            relations: held.noted.relations().collect(),
            freshness: self.freshness(&held.noted.relations().collect::<Vec<_>>()),
            is_current: self.epochs.local.holds(&held.noted),
            is_pinned,
        };
        let saved = |held: &Held| {
            let hits = u32::try_from(held.hits.load(Relaxed)).unwrap_or(u32::MAX);
            held.entry.cost.saturating_mul(hits)
        };
        let mut all: Vec<_> = self.memory.all().into_iter().map(|one| (saved(&one.1), one)).collect();
        all.sort_by_key(|(saved, one)| std::cmp::Reverse((*saved, one.2)));
        all.truncate(most);
        all.into_iter().map(|(_, one)| list(one)).collect()
    }

    /// What an answer that was read from these relations promises now.
    fn freshness(&self, relations: &[u32]) -> Freshness {
        match self.consistency {
            Consistency::Bounded => Freshness::Bounded,
            Consistency::Strict if self.shared.is_some() || self.solo.load(Relaxed) => Freshness::Strict,
            Consistency::Strict if self.elsewhere.as_ref().is_some_and(|it| it.follows(relations)) => {
                Freshness::Bounded
            }
            Consistency::Strict => Freshness::Ttl,
        }
    }

    /// Forgets everything, in the whole fleet.
    pub(super) fn forget_everywhere(&self) {
        self.forget();
        if let Some(shared) = &self.shared {
            shared.announce(Announced { relations: &[DATABASE], ..Announced::default() });
        }
    }

    /// Statements whose answers are not served because one was found to be wrong.
    pub fn quarantined(&self) -> Vec<u128> {
        self.quarantine.fingerprints.read().iter().copied().collect()
    }

    pub(super) fn is_quarantined(&self, key: &Key) -> bool {
        self.quarantine.is_any.load(Relaxed) && self.quarantine.fingerprints.read().contains(&key.fingerprint())
    }

    /// Counts a lookup by a key that roles share.
    pub fn count_shared_lookup(&self) {
        self.stats.add(|stats| &stats.shared_lookups);
    }

    /// What is needed to check the entry that was just served; `None` where nothing can be said of it.
    pub fn audit(
        self: &Arc<Self>,
        key: &Key,
        entry: &Arc<Entry>,
        relations: &[u32],
        catalog_version: u64,
    ) -> Option<Audit> {
        let held = self.memory.get(key).filter(|held| Arc::ptr_eq(&held.entry, entry))?;
        // Where writes made elsewhere are followed, a good answer may miss one for a while.
        if self.elsewhere.is_some() {
            return None;
        }
        // One at a time: what is checked is dear to ask for.
        if self.freshness(relations) != Freshness::Strict || self.is_auditing.swap(true, Relaxed) {
            return None;
        }
        Some(Audit { cache: self.clone(), key: key.clone(), held, relations: relations.into(), catalog_version })
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.cache.is_auditing.store(false, Relaxed);
    }
}

impl Quarantine {
    fn put(&self, fingerprint: u128) {
        self.fingerprints.write().insert(fingerprint);
        self.is_any.store(true, Relaxed);
    }

    pub(super) fn size(&self) -> u64 {
        if self.is_any.load(Relaxed) { self.fingerprints.read().len() as u64 } else { 0 }
    }

    pub(super) fn lift(&self, fingerprint: u128) {
        let mut fingerprints = self.fingerprints.write();
        fingerprints.remove(&fingerprint);
        self.is_any.store(!fingerprints.is_empty(), Relaxed);
    }

    pub(super) fn clear(&self) {
        self.fingerprints.write().clear();
        self.is_any.store(false, Relaxed);
    }
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// PostgreSQL gives the same rows.
    Equal,
    /// It gives others, though nothing was written: the statement's answers are not served any more.
    Different,
    /// Something was written meanwhile.
    Inconclusive,
}

impl Audit {
    /// Compares what was served with what PostgreSQL answers now. `again` is a whole answer to the same question, asked after
    /// the hit. Rows may come in another order, as they may from PostgreSQL itself where there is no ORDER BY.
    pub async fn judge(self, again: &Bytes) -> Verdict {
        let is_equal = sorted(&again[..]) == sorted(&self.held.entry.bytes);
        let stats = &self.cache.stats;
        if is_equal {
            stats.add(|stats| &stats.audits_equal);
            return Verdict::Equal;
        }
        if !self.still_holds().await {
            stats.add(|stats| &stats.audits_inconclusive);
            return Verdict::Inconclusive;
        }
        stats.add(|stats| &stats.audits_different);
        let fingerprint = self.key.fingerprint();
        self.cache.quarantine.put(fingerprint);
        self.cache.memory.sweep(|key, _| key.fingerprint() == fingerprint);
        tracing::error!(
            fingerprint = format!("{fingerprint:032x}"),
            age_ms = self.held.entry.age().as_millis() as u64,
            "an answer from the cache is not PostgreSQL's: its statement is not cached any more"
        );
        Verdict::Different
    }

    /// Whether nothing that the answer depends on has been written since it was given, nor is being written.
    async fn still_holds(&self) -> bool {
        let is_strict = self.cache.freshness(&self.relations) == Freshness::Strict;
        if !is_strict || !self.cache.epochs.local.holds(&self.held.noted) {
            return false;
        }
        let Some(shared) = &self.cache.shared else { return true };
        let Some(catalog) = self.cache.epochs.local.current(self.catalog_version) else { return false };
        let found = shared.lookup(&self.key, &self.relations, catalog, &self.held.shared).await;
        matches!(found, Found::Same)
    }
}

/// The messages of an answer, in an order of their own.
fn sorted(mut answer: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some(length) = answer.get(1..5).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes) {
        let end = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1).min(answer.len()).max(1);
        let (message, rest) = answer.split_at(end);
        messages.push(message);
        answer = rest;
    }
    messages.push(answer);
    messages.sort_unstable();
    messages
}
