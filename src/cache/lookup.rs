//! Looking up: memory, then Redis, then the turn to fill.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::epochs::{CatalogEpoch, Noted, Unsettled};
use super::fill::FillTicket;
use super::flight::{self, Joined, Turn, Waiting};
use super::key::Key;
use super::memory::Held;
use super::redis::{Found, Shared};
use super::{Freshness, Lookup, ResultCache, Tier};
use crate::config::model::Consistency;

/// Hits that make an entry one that is asked for all the time.
const HOT: u64 = 8;

/// Whether an entry that is asked for all the time is so near its end that one who asks for it had better fill it again, while
/// all others are served.
pub(super) fn is_due(held: &Held) -> bool {
    held.hits.load(Ordering::Relaxed) >= HOT && held.entry.remaining() < held.entry.ttl / 10
}

/// One lookup's circumstances.
#[derive(Clone, Copy)]
struct Asked<'a> {
    key: &'a Key,
    relations: &'a [u32],
    catalog: CatalogEpoch,
    label: Freshness,
}

impl ResultCache {
    /// The answer, or the turn to fill it in. `relations` is everything that the answer depends on, sorted, as computed from
    /// `catalog_version`. Waits while another session of this process fills the same key.
    pub async fn lookup(self: &Arc<Self>, key: &Key, relations: &[u32], catalog_version: u64) -> Lookup {
        let mut deadline = None;
        loop {
            let label = self.label(relations);
            let waiting = match self.look(key, relations, catalog_version, label).await {
                Ok(found) => return found,
                Err(waiting) => waiting,
            };
            self.stats.add(|stats| &stats.waits);
            let until = *deadline.get_or_insert_with(|| Instant::now() + self.fill_wait);
            match tokio::time::timeout_at(until, flight::ended(waiting)).await {
                Ok(None) => {}
                Ok(Some(failure)) => {
                    self.stats.add(|stats| &stats.shared_failures);
                    return Lookup::Failed(failure);
                }
                Err(_) => {
                    self.stats.add(|stats| &stats.bypass_wait);
                    return Lookup::Bypass("another fill is slow");
                }
            }
        }
    }

    /// As [`ResultCache::lookup`], once: `Err` is another session's turn to fill the same key. `label` was asked for before.
    pub(super) async fn look(
        self: &Arc<Self>,
        key: &Key,
        relations: &[u32],
        catalog_version: u64,
        label: Freshness,
    ) -> Result<Lookup, Waiting> {
        if self.is_quarantined(key) {
            self.stats.add(|stats| &stats.bypass_quarantine);
            return Ok(Lookup::Bypass("a check found another answer"));
        }
        if self.elsewhere.as_ref().is_some_and(|elsewhere| !elsewhere.is_known()) {
            self.stats.add(|stats| &stats.bypass_elsewhere);
            return Ok(Lookup::Bypass("writes made elsewhere are not known"));
        }
        let noted = self.epochs.local.note(relations, catalog_version);
        let catalog = self.epochs.local.current(catalog_version);
        let (noted, catalog) = match (noted, catalog) {
            (Ok(noted), Some(catalog)) => (noted, catalog),
            (Err(Unsettled::Doubt), _) => return Ok(self.in_doubt()),
            (_, None) | (Err(Unsettled::Catalog), _) => return Ok(self.old_catalog()),
        };
        let asked = Asked { key, relations, catalog, label };
        if let Some(held) = self.recall(key, &noted)
            && let Some(answer) = self.confirm(asked, held.clone(), &noted).await
        {
            if is_due(&held)
                && matches!(answer, Lookup::Hit { .. })
                && let Joined::Mine(turn) = self.flights.join(key)
            {
                self.stats.add(|stats| &stats.refreshes);
                return Ok(self.fill(asked, turn, noted, (held.shared.clone(), false)));
            }
            return Ok(answer);
        }
        // Asked after memory: a hit need not.
        if let Some(reason) = self.uncacheable.get(&key.hash()) {
            self.stats.add(|stats| &stats.bypass_uncacheable);
            return Ok(Lookup::Bypass(reason));
        }
        match self.flights.join(key) {
            Joined::Mine(turn) => Ok(self.take_turn(asked, turn, noted).await),
            Joined::Theirs(waiting) => Err(waiting),
        }
    }

    /// Whether nothing is known of a question that keeps its answer out of the cache.
    pub fn is_worth_asking(&self, key: &Key) -> bool {
        !self.is_quarantined(key) && self.uncacheable.get(&key.hash()).is_none()
    }

    /// What memory holds, if this process knows of no reason against it.
    fn recall(&self, key: &Key, noted: &Noted) -> Option<Arc<Held>> {
        let held = self.memory.get(key)?;
        if held.noted != *noted {
            self.stats.add(|stats| &stats.outdated);
            return None;
        }
        Some(held)
    }

    /// Whether the fleet knows of a reason against it; `None` if it has to be filled anew.
    async fn confirm(&self, asked: Asked<'_>, held: Arc<Held>, noted: &Noted) -> Option<Lookup> {
        let Some(shared) = self.asks_redis() else { return Some(self.hit(&held, Tier::Memory, asked.label)) };
        match shared.lookup(asked.key, asked.relations, asked.catalog, &held.shared).await {
            Found::Same => Some(self.hit(&held, Tier::Memory, asked.label)),
            Found::Unavailable(_) if self.faults.serve_without_redis() => {
                Some(self.hit(&held, Tier::Memory, asked.label))
            }
            Found::Nothing(..) => {
                self.stats.add(|stats| &stats.outdated);
                None
            }
            found => self.unless_nothing(asked, found, noted),
        }
    }

    /// Nobody else of this process is filling. Another fill may have ended between the look into memory and the turn.
    async fn take_turn(self: &Arc<Self>, asked: Asked<'_>, turn: Turn, noted: Noted) -> Lookup {
        let held = self.memory.get(asked.key).filter(|held| held.noted == noted);
        let shared = self.shared.as_ref();
        let (Some(shared), None) = (shared, held.as_ref().filter(|_| self.asks_redis().is_none())) else {
            return match held {
                Some(held) => self.hit(&held, Tier::Memory, asked.label),
                None => self.fill(asked, turn, noted, (bytes::Bytes::new(), false)),
            };
        };
        let epochs = held.as_ref().map(|held| &held.shared[..]).unwrap_or_default();
        match (shared.lookup(asked.key, asked.relations, asked.catalog, epochs).await, held) {
            (Found::Same, Some(held)) => self.hit(&held, Tier::Memory, asked.label),
            (Found::Nothing(epochs, is_pending), _) => self.fill(asked, turn, noted, (epochs, is_pending)),
            (Found::Doubt | Found::Unavailable(_), _) if self.consistency == Consistency::Bounded => {
                self.fill(asked, turn, noted, (bytes::Bytes::new(), false))
            }
            (found, _) => self.unless_nothing(asked, found, &noted).unwrap_or(Lookup::Bypass("Redis gave no sense")),
        }
    }

    fn unless_nothing(&self, asked: Asked<'_>, found: Found, noted: &Noted) -> Option<Lookup> {
        Some(match found {
            Found::Entry(entry, epochs) => {
                let held = Arc::new(Held::new(entry.fitted(), noted.clone(), epochs));
                self.memory.insert(asked.key.clone(), held.clone(), false);
                self.hit(&held, Tier::Redis, asked.label)
            }
            Found::Doubt => self.in_doubt(),
            Found::Catalog(epoch) => {
                if let Some(shared) = &self.shared {
                    shared.follow_catalog(&self.epochs.local, epoch);
                }
                self.old_catalog()
            }
            Found::Unavailable(reason) => {
                self.stats.add(|stats| &stats.bypass_redis);
                Lookup::Bypass(reason)
            }
            Found::Same | Found::Nothing(..) => return None,
        })
    }

    /// Redis, where an answer from memory needs its word.
    pub(super) fn asks_redis(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref().filter(|_| self.consistency == Consistency::Strict)
    }

    fn hit(&self, held: &Held, tier: Tier, label: Freshness) -> Lookup {
        let count = match tier {
            Tier::Memory => &self.stats.memory_hits,
            Tier::Redis => &self.stats.redis_hits,
        };
        let number = self.count_hit(count, held);
        let is_sampled = self.audit_one_in > 0 && number.is_multiple_of(self.audit_one_in);
        Lookup::Hit { entry: held.entry.clone(), tier, label, is_sampled }
    }

    /// Which one it is of its tier.
    pub(super) fn count_hit(&self, count: &AtomicU64, held: &Held) -> u64 {
        held.hits.fetch_add(1, Ordering::Relaxed);
        let saved_us = u64::try_from(held.entry.cost.as_micros()).unwrap_or(u64::MAX);
        self.stats.saved_us.fetch_add(saved_us, Ordering::Relaxed);
        count.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn fill(self: &Arc<Self>, asked: Asked<'_>, turn: Turn, noted: Noted, epochs: (bytes::Bytes, bool)) -> Lookup {
        self.stats.add(|stats| &stats.misses);
        let stale = if self.stale_on_error { self.memory.get(asked.key).map(|held| held.entry.clone()) } else { None };
        let ticket = FillTicket::new(self.clone(), turn, noted, epochs, asked.relations.into(), asked.catalog);
        Lookup::Fill(ticket.with_stale(stale))
    }

    fn in_doubt(&self) -> Lookup {
        self.stats.add(|stats| &stats.bypass_doubt);
        Lookup::Bypass("a write is in doubt")
    }

    fn old_catalog(&self) -> Lookup {
        self.stats.add(|stats| &stats.bypass_catalog);
        Lookup::Bypass("the catalog is being reloaded")
    }

    /// What a hit will promise. To be asked before epochs are noted: what others wrote while this pgherd was not alone left
    /// no trace here, so everything is renewed when it becomes the only one.
    pub(super) fn label(&self, relations: &[u32]) -> Freshness {
        if self.consistency == Consistency::Bounded {
            return Freshness::Bounded;
        }
        if self.shared.is_some() {
            return Freshness::Strict;
        }
        let solo = self.solo.load(Ordering::Acquire);
        if self.was_solo.load(Ordering::Acquire) != solo {
            let _one_at_a_time = self.becoming_solo.lock();
            if solo && !self.was_solo.load(Ordering::Acquire) {
                self.epochs.local.renew_all();
            }
            self.was_solo.store(solo, Ordering::Release);
        }
        let is_told = || self.elsewhere.as_ref().is_some_and(|elsewhere| elsewhere.follows(relations));
        match solo {
            true => Freshness::Strict,
            false if is_told() => Freshness::Bounded,
            false => Freshness::Ttl,
        }
    }
}
