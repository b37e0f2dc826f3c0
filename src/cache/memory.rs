//! The first tier: answers in this process's memory, bounded in bytes, of which those that were dear and are asked for stay.
//!
//! What goes when there is no room is decided as in GreedyDual-Size-Frequency (Cherkasova 1998): an answer is worth the time that it
//! saved since it was last looked at, for each of its bytes, on top of the worth of what went last. A hit takes one shard's lock for
//! reading and counts itself; the ledger of worths is touched by inserts alone, and brought up to date for whoever is next to go.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::entry::Entry;
use super::epochs::Noted;
use super::key::Key;
use super::stats::CacheStats;

/// What an entry costs beside its own bytes and its key's: the maps and the ledger, whose nodes are half full, and reference counts.
const OVERHEAD_BYTES: usize = 640;
/// Locks that hits are spread over.
const SHARDS: usize = 16;
/// Worth is counted in so many parts of a microsecond for each byte.
const PARTS: u64 = 1024;

/// Hits that count at once, so that what was asked for much, once, does not stay for ever.
const MOST_HITS: u64 = 64;

/// An answer with the epochs that it depends on.
#[derive(Debug)]
pub(crate) struct Held {
    /// The answer.
    pub(crate) entry: Arc<Entry>,
    /// This process's epochs as noted before the fill ran.
    pub(crate) noted: Noted,
    /// Redis' epochs as noted before the fill ran, in the form that its scripts compare; empty without Redis.
    pub(crate) shared: Bytes,
    /// How often it was served.
    pub(crate) hits: AtomicU64,
}

impl Held {
    pub(crate) fn new(entry: Entry, noted: Noted, shared: Bytes) -> Self {
        Self { entry: Arc::new(entry), noted, shared, hits: AtomicU64::new(0) }
    }
}

/// A key's hash is one already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

/// An answer as a shard holds it, with its place in the ledger.
#[derive(Debug)]
struct Slot {
    held: Arc<Held>,
    serial: u64,
    bytes: u64,
    is_pinned: bool,
}

type Shard = RwLock<HashMap<Key, Slot, BuildHasherDefault<AsItIs>>>;

/// Who goes next: by worth, the older first.
#[derive(Debug, Default)]
struct Ledger {
    by_worth: BTreeMap<(u64, u64), Place>,
    /// Worth by serial, to find an entry's place again.
    worths: HashMap<u64, u64>,
    bytes: u64,
    entries: u64,
    /// What the last who went was worth: the floor for who comes.
    floor: u64,
    next: u64,
}

#[derive(Debug)]
struct Place {
    key: Key,
    held: Arc<Held>,
    bytes: u64,
    /// Its hits when its worth was last counted.
    seen: u64,
}

/// The tier itself.
#[derive(Debug)]
pub(crate) struct Memory {
    shards: Box<[Shard]>,
    ledger: Mutex<Ledger>,
    capacity_bytes: u64,
    stats: Arc<CacheStats>,
}

impl Memory {
    pub(crate) fn new(capacity_bytes: u64, stats: Arc<CacheStats>) -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Self { shards, ledger: Mutex::default(), capacity_bytes, stats }
    }

    /// What is held under this very key, whatever its epochs.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Held>> {
        let held = self.shard(key).read().get(key).map(|slot| slot.held.clone())?;
        (!held.entry.remaining().is_zero()).then_some(held)
    }

    /// Takes an answer in, after letting go of what is worth less where there is no room. One that is pinned goes only when it is
    /// replaced, too old or purged. Returns whether there was room.
    pub(crate) fn insert(&self, key: Key, held: Arc<Held>, is_pinned: bool) -> bool {
        let bytes = weight(&key, &held);
        let mut ledger = self.ledger.lock();
        self.take_out(&mut ledger, &key, None);
        if !self.make_room(&mut ledger, bytes) {
            self.stats.add(|stats| &stats.rejected_full);
            return false;
        }
        ledger.next += 1;
        let serial = ledger.next;
        ledger.bytes += bytes;
        ledger.entries += 1;
        if !is_pinned {
            let worth = ledger.floor.saturating_add(worth(&held, 1, bytes));
            ledger.worths.insert(serial, worth);
            let place = Place { key: key.clone(), held: held.clone(), bytes, seen: 0 };
            ledger.by_worth.insert((worth, serial), place);
        }
        self.shard(&key).write().insert(key, Slot { held, serial, bytes, is_pinned });
        true
    }

    /// Lets go of what is worth least until that many bytes fit.
    fn make_room(&self, ledger: &mut Ledger, bytes: u64) -> bool {
        if bytes > self.capacity_bytes {
            return false;
        }
        while ledger.bytes + bytes > self.capacity_bytes {
            let Some(((at, serial), place)) = ledger.by_worth.pop_first() else { return false };
            let hits = place.held.hits.load(Relaxed);
            let is_old = place.held.entry.remaining().is_zero();
            if hits > place.seen && !is_old {
                // It was asked for since: its worth is counted anew, and that it was asked for is used up.
                let again = at.saturating_add(worth(&place.held, (hits - place.seen + 1).min(MOST_HITS), place.bytes));
                ledger.worths.insert(serial, again);
                ledger.by_worth.insert((again, serial), Place { seen: hits, ..place });
                continue;
            }
            ledger.floor = ledger.floor.max(at);
            ledger.worths.remove(&serial);
            ledger.bytes -= place.bytes;
            ledger.entries -= 1;
            self.shard(&place.key).write().remove(&place.key);
            if !is_old {
                self.stats.add(|stats| &stats.evictions);
            }
        }
        true
    }

    /// Takes out what is under a key, if it is still that one.
    fn take_out(&self, ledger: &mut Ledger, key: &Key, only: Option<u64>) {
        let mut shard = self.shard(key).write();
        if only.is_some_and(|serial| shard.get(key).is_none_or(|slot| slot.serial != serial)) {
            return;
        }
        let Some(slot) = shard.remove(key) else { return };
        drop(shard);
        ledger.bytes -= slot.bytes;
        ledger.entries -= 1;
        if let Some(worth) = ledger.worths.remove(&slot.serial) {
            ledger.by_worth.remove(&(worth, slot.serial));
        }
    }

    /// Lets go of everything.
    pub(crate) fn clear(&self) {
        let mut ledger = self.ledger.lock();
        self.shards.iter().for_each(|shard| shard.write().clear());
        *ledger = Ledger { next: ledger.next, ..Ledger::default() };
    }

    /// Lets go of what may not be served any more; of all that `gone` says so of. Returns how many went.
    pub(crate) fn sweep(&self, gone: impl Fn(&Key, &Held) -> bool) -> usize {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            found.extend(
                shard.iter().filter(|(key, slot)| gone(key, &slot.held)).map(|(key, slot)| (key.clone(), slot.serial)),
            );
        }
        for (key, serial) in &found {
            // One at a time, so that nobody waits for all of them.
            self.take_out(&mut self.ledger.lock(), key, Some(*serial));
        }
        found.len()
    }

    /// Everything that is held, in no order: key, answer, bytes, whether it is pinned.
    pub(crate) fn all(&self) -> Vec<(Key, Arc<Held>, u64, bool)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(
                shard.read().iter().map(|(key, slot)| (key.clone(), slot.held.clone(), slot.bytes, slot.is_pinned)),
            );
        }
        all
    }

    /// Entries and bytes held now.
    pub(crate) fn size(&self) -> (u64, u64) {
        let ledger = self.ledger.lock();
        (ledger.entries, ledger.bytes)
    }

    /// Bytes that may be held.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity_bytes
    }

    fn shard(&self, key: &Key) -> &Shard {
        // `% SHARDS` of a table of SHARDS elements; other bits than those that place it within the shard's map.
        &self.shards[(key.hash() >> 64) as usize % SHARDS]
    }
}

fn weight(key: &Key, held: &Held) -> u64 {
    let parts = [key.bytes().len(), held.entry.bytes.len(), held.shared.len(), held.noted.bytes()];
    (OVERHEAD_BYTES + parts.into_iter().map(block_bytes).sum::<usize>()) as u64
}

/// What the allocator takes for so many bytes: mimalloc's blocks have four sizes between powers of two, and larger ones whole slices.
fn block_bytes(bytes: usize) -> usize {
    const SLICE_BYTES: usize = 64 * 1024;
    match bytes {
        0..=64 => bytes.next_multiple_of(8),
        65..=0x8_0000 => bytes.next_multiple_of(1 << ((bytes - 1).ilog2() - 2)),
        _ => bytes.next_multiple_of(SLICE_BYTES),
    }
}

/// The time that so many hits save, for each byte.
fn worth(held: &Held, hits: u64, bytes: u64) -> u64 {
    let cost_us = u64::try_from(held.entry.cost.as_micros()).unwrap_or(u64::MAX);
    (cost_us + 1).saturating_mul(PARTS).saturating_mul(hits) / bytes.max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::epochs::LocalEpochs;
    use crate::cache::faults::Switches;
    use crate::cache::key::{KeyBuilder, Protocol};

    fn key(number: usize) -> Key {
        KeyBuilder::new(Switches::default(), Protocol::Simple).statement(number.to_string().as_bytes()).build()
    }

    fn noted() -> Noted {
        let epochs = LocalEpochs::new(Switches::default());
        epochs.loaded(1, *epochs.watch().borrow());
        epochs.note(&[], 1).expect("settled")
    }

    fn held(bytes: usize, cost: Duration, ttl: Duration) -> Arc<Held> {
        let answer = Bytes::from(vec![b'x'; bytes]);
        Arc::new(Held::new(Entry::new(answer, 0, 1, cost, ttl), noted(), Bytes::new()))
    }

    fn memory(bytes: u64) -> Memory {
        Memory::new(bytes, Arc::default())
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn blocks_have_the_allocators_sizes() {
        for (bytes, block) in
            [(0, 0), (1, 8), (64, 64), (65, 80), (1024, 1024), (1025, 1280), (2049, 2560), (600_000, 655_360)]
        {
            assert_eq!(block_bytes(bytes), block, "{bytes}");
        }
    }

    #[test]
    fn what_was_dear_stays_and_what_was_cheap_goes() {
        let memory = memory(100_000);
        assert!(memory.insert(key(0), held(1000, 1000 * MS, HOUR), false));
        for number in 1..1000 {
            assert!(memory.insert(key(number), held(1000, MS, HOUR), false));
        }
        assert!(memory.get(&key(0)).is_some());
        assert!(memory.get(&key(1)).is_none() && memory.get(&key(999)).is_some());
    }

    #[test]
    fn what_is_asked_for_stays() {
        let memory = memory(100_000);
        for number in 0..5000 {
            if let Some(held) = memory.get(&key(3)) {
                held.hits.fetch_add(1, Relaxed);
            }
            memory.insert(key(number), held(1000, MS, HOUR), false);
        }
        assert!(memory.get(&key(3)).is_some() && memory.get(&key(4)).is_none());
        // What nobody asks for any more goes in the end.
        for number in 5000..20_000 {
            memory.insert(key(number), held(1000, MS, HOUR), false);
        }
        assert!(memory.get(&key(3)).is_none());
    }

    #[test]
    fn the_bound_holds_and_the_books_balance() {
        let memory = memory(50_000);
        for number in 0..2000_usize {
            memory.insert(key(number % 70), held(number % 7 * 500, MS * (number % 5) as u32, HOUR), number % 70 == 7);
            let (entries, bytes) = memory.size();
            let all = memory.all();
            assert!(bytes <= 50_000, "{bytes}");
            assert_eq!((entries as usize, bytes), (all.len(), all.iter().map(|(.., bytes, _)| bytes).sum()));
        }
        memory.clear();
        assert_eq!(memory.size(), (0, 0));
    }

    #[test]
    fn what_is_pinned_goes_for_nobody() {
        let memory = memory(20_000);
        assert!(memory.insert(key(0), held(8000, MS, HOUR), true));
        assert!(memory.insert(key(1), held(8000, MS, HOUR), true));
        for number in 2..100 {
            memory.insert(key(number), held(1000, 1000 * MS, HOUR), false);
        }
        assert!(memory.get(&key(0)).is_some() && memory.get(&key(1)).is_some());
        assert!(!memory.insert(key(100), held(8000, MS, HOUR), true), "there is no room for a third");
        assert!(!memory.insert(key(101), held(30_000, MS, HOUR), false), "larger than all there is");
    }

    #[test]
    fn what_is_too_old_is_swept_out() {
        let memory = memory(1_000_000);
        for number in 0..100 {
            memory.insert(key(number), held(100, MS, if number < 60 { Duration::ZERO } else { HOUR }), false);
        }
        assert_eq!(memory.sweep(|_, held| held.entry.remaining().is_zero()), 60);
        assert_eq!(memory.size().0, 40);
        assert!(memory.get(&key(0)).is_none() && memory.get(&key(60)).is_some());
    }
}
