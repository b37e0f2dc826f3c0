//! This process's epochs and doubts: which relations have a write under way, and since when each has been as it is.
//!
//! A relation's epoch is a number that was never used before. It is made when a lookup first asks for it and unmade when a
//! write to the relation has ended, so that what was read before that write can never be matched again. While a write's
//! transaction counter stands in the relation's set of doubts, the relation is neither served nor filled. Relation 0 stands
//! for the whole database; everything depends on it.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::faults::Switches;

/// The pseudo relation that stands for the whole database (`InvalidOid` is no relation's oid).
pub(crate) const DATABASE: u32 = 0;

const SHARDS: usize = 64;

/// The state of the catalog that a snapshot was loaded in: a number that changes with each change of the catalog. Not ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CatalogEpoch(pub(crate) u64);

/// The epochs that a fill noted, by relation, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Noted(Box<[(u32, u64)]>);

impl Noted {
    /// The relations, without the one that stands for the whole database.
    pub(crate) fn relations(&self) -> impl Iterator<Item = u32> + use<'_> {
        self.0.iter().map(|(oid, _)| *oid).filter(|oid| *oid != DATABASE)
    }

    /// Whether these are the relations whose epochs were noted, the one that stands for the whole database aside.
    pub(crate) fn is_of(&self, relations: &[u32]) -> bool {
        let mut noted = self.relations();
        relations.iter().all(|oid| noted.next() == Some(*oid)) && noted.next().is_none()
    }

    pub(crate) fn bytes(&self) -> usize {
        std::mem::size_of_val::<[(u32, u64)]>(&self.0)
    }
}

/// Why relations can be neither served nor filled now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsettled {
    /// A write is in doubt.
    Doubt,
    /// The relations were computed from a catalog that has changed since.
    Catalog,
}

#[derive(Debug, Default)]
struct Relation {
    /// 0 is absent.
    epoch: u64,
    doubts: Vec<u64>,
}

/// Oids are spread well enough by one multiplication; SipHash would cost more than the rest of a lookup.
#[derive(Default)]
struct OidHasher(u64);

impl std::hash::Hasher for OidHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, oid: u32) {
        self.0 = (self.0 ^ u64::from(oid)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

type Shard = Mutex<HashMap<u32, Relation, BuildHasherDefault<OidHasher>>>;

/// Epochs and doubts of one database in this process.
pub(crate) struct LocalEpochs {
    shards: Box<[Shard]>,
    /// Epochs are taken from here; never 0.
    next: AtomicU64,
    /// How many doubts the whole database is in: lets a settle skip relation 0.
    database_doubts: AtomicUsize,
    /// Held for writing while a catalog change is settled, which must see every doubt that is open.
    gate: RwLock<CatalogState>,
    catalog: watch::Sender<CatalogEpoch>,
    faults: Switches,
}

#[derive(Debug)]
struct CatalogState {
    epoch: CatalogEpoch,
    /// The oldest of this process's catalog versions that shows the catalog of `epoch`.
    loaded: Option<u64>,
}

impl LocalEpochs {
    pub(crate) fn new(faults: Switches) -> Self {
        let epoch = CatalogEpoch(fresh_catalog_epoch());
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            next: AtomicU64::new(1),
            database_doubts: AtomicUsize::new(0),
            gate: RwLock::new(CatalogState { epoch, loaded: None }),
            catalog: watch::Sender::new(epoch),
            faults,
        }
    }

    /// The epochs of the database and of `relations`, made where absent.
    pub(crate) fn note(&self, relations: &[u32], catalog_version: u64) -> Result<Noted, Unsettled> {
        if !self.is_current(catalog_version) {
            return Err(Unsettled::Catalog);
        }
        let mut noted = Vec::with_capacity(relations.len() + 1);
        for &oid in std::iter::once(&DATABASE).chain(relations) {
            let mut shard = self.shard(oid).lock();
            let relation = shard.entry(oid).or_default();
            if !relation.doubts.is_empty() {
                return Err(Unsettled::Doubt);
            }
            if relation.epoch == 0 {
                relation.epoch = self.next.fetch_add(1, Ordering::Relaxed);
            }
            noted.push((oid, relation.epoch));
        }
        Ok(Noted(noted.into_boxed_slice()))
    }

    /// Whether nothing that `noted` depends on has been written, or may be being written, since.
    ///
    /// The relations are looked at one after the other, which is enough: an epoch never comes back, so one that is found
    /// unmoved without doubts has had none since it was noted, and all of them held together when the first was looked at.
    pub(crate) fn holds(&self, noted: &Noted) -> bool {
        noted.0.iter().all(|&(oid, epoch)| {
            let shard = self.shard(oid).lock();
            shard.get(&oid).is_some_and(|relation| relation.epoch == epoch && relation.doubts.is_empty())
        })
    }

    /// The stamp of `noted`'s relations as they are now: for the fault of storing without comparing.
    pub(crate) fn restamp(&self, noted: &Noted) -> Noted {
        let now = noted.0.iter().map(|&(oid, _)| {
            let mut shard = self.shard(oid).lock();
            let relation = shard.entry(oid).or_default();
            if relation.epoch == 0 {
                relation.epoch = self.next.fetch_add(1, Ordering::Relaxed);
            }
            (oid, relation.epoch)
        });
        Noted(now.collect())
    }

    /// Adds `token` to the relations' sets of doubts and names in `marked` those that are new. A set of relations computed
    /// from an old catalog may lack some: then the whole database is put in doubt.
    pub(crate) fn raise(&self, token: u64, marked: &mut Vec<u32>, relations: &[u32], database: bool, version: u64) {
        let gate = self.gate.read();
        let database = database || gate.loaded.is_none_or(|loaded| version < loaded);
        for &oid in database.then_some(&DATABASE).into_iter().chain(relations) {
            if let Err(place) = marked.binary_search(&oid) {
                marked.insert(place, oid);
                self.mark(token, oid);
            }
        }
    }

    /// Takes `token` out of all sets, giving those relations new epochs. After a change of the catalog every write that is
    /// still open may reach relations that its raise did not know of: it is put in doubt for the whole database.
    /// Returns how many epochs are new, and the catalog's new state.
    pub(crate) fn settle(&self, token: u64, marked: &[u32], catalog: bool) -> (u64, Option<CatalogEpoch>) {
        let changed = catalog.then(|| self.catalog_changed(Some(token)));
        let gate = self.gate.read();
        let mut renewed = 0;
        for &oid in marked {
            renewed += u64::from(self.unmark(token, oid));
        }
        // A change of the catalog may have put this write's whole database in doubt behind its back.
        if marked.first() != Some(&DATABASE) && self.database_doubts.load(Ordering::Acquire) > 0 {
            renewed += u64::from(self.unmark(token, DATABASE));
        }
        drop(gate);
        (renewed, changed)
    }

    /// Gives everything a new epoch: what was cached is never matched again. Doubts stay.
    pub(crate) fn renew_all(&self) {
        if let Some(database) = self.shard(DATABASE).lock().get_mut(&DATABASE) {
            database.epoch = 0;
        }
    }

    /// Gives one relation a new epoch.
    pub(crate) fn renew(&self, oid: u32) {
        if let Some(relation) = self.shard(oid).lock().get_mut(&oid) {
            relation.epoch = 0;
        }
    }

    /// Whether `version` shows the catalog as it is.
    pub(crate) fn is_current(&self, version: u64) -> bool {
        self.gate.read().loaded.is_some_and(|loaded| version >= loaded)
    }

    /// The state of the catalog, if `version` shows it.
    pub(crate) fn current(&self, version: u64) -> Option<CatalogEpoch> {
        let gate = self.gate.read();
        gate.loaded.filter(|loaded| version >= *loaded).map(|_| gate.epoch)
    }

    /// The catalog's state now, and its changes.
    pub(crate) fn watch(&self) -> watch::Receiver<CatalogEpoch> {
        self.catalog.subscribe()
    }

    /// Notes that this process's catalog `version` was read wholly after the catalog was known to be in the state `as_of`.
    pub(crate) fn loaded(&self, version: u64, as_of: CatalogEpoch) {
        let mut gate = self.gate.write();
        if gate.epoch == as_of && gate.loaded.is_none_or(|loaded| version < loaded) {
            gate.loaded = Some(version);
        }
    }

    /// The catalog has changed: here (`by` is the write that did it) or elsewhere.
    pub(crate) fn catalog_changed(&self, by: Option<u64>) -> CatalogEpoch {
        let epoch = CatalogEpoch(fresh_catalog_epoch());
        self.catalog_is(epoch, by);
        epoch
    }

    /// Takes over the fleet's state of the catalog.
    pub(crate) fn catalog_is(&self, epoch: CatalogEpoch, by: Option<u64>) {
        if self.gate.read().epoch == epoch {
            return;
        }
        let mut gate = self.gate.write();
        if gate.epoch == epoch {
            return;
        }
        let mut open: Vec<u64> = Vec::new();
        for shard in &self.shards {
            open.extend(shard.lock().values().flat_map(|relation| &relation.doubts));
        }
        open.sort_unstable();
        open.dedup();
        for token in open.into_iter().filter(|token| Some(*token) != by) {
            self.mark(token, DATABASE);
        }
        self.renew_all();
        gate.epoch = epoch;
        gate.loaded = None;
        drop(gate);
        self.catalog.send_replace(epoch);
    }

    fn shard(&self, oid: u32) -> &Shard {
        // `% SHARDS` of a table of SHARDS elements.
        &self.shards[oid as usize % SHARDS]
    }

    fn mark(&self, token: u64, oid: u32) {
        let mut shard = self.shard(oid).lock();
        let doubts = &mut shard.entry(oid).or_default().doubts;
        if !doubts.contains(&token) {
            doubts.push(token);
            if oid == DATABASE {
                self.database_doubts.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Whether `token` was there.
    fn unmark(&self, token: u64, oid: u32) -> bool {
        let mut shard = self.shard(oid).lock();
        let Some(relation) = shard.get_mut(&oid) else { return false };
        let before = relation.doubts.len();
        if self.faults.doubt_as_flag() {
            relation.doubts.clear();
        } else {
            relation.doubts.retain(|other| *other != token);
        }
        let removed = before - relation.doubts.len();
        if oid == DATABASE {
            self.database_doubts.fetch_sub(removed, Ordering::AcqRel);
        }
        if self.faults.no_second_raise() {
            return removed > 0;
        }
        if removed > 0 || self.faults.doubt_as_flag() {
            relation.epoch = 0;
        }
        if relation.epoch == 0 && relation.doubts.is_empty() {
            shard.remove(&oid);
        }
        removed > 0
    }
}

/// Random, so that states of two processes or of two Redis generations are never taken for one another; never 0.
pub(crate) fn fresh_catalog_epoch() -> u64 {
    rand::random_range(1..=u64::MAX)
}

impl std::fmt::Debug for LocalEpochs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalEpochs").field("catalog", &*self.gate.read()).finish_non_exhaustive()
    }
}
