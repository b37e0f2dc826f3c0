//! What this pgherd has open: the doubts and server processes that it must tell Redis of again whenever it registers, and when
//! it last sent what keeps its registration alive. And of which writes Redis need not be told, because nobody looks at what they change.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::cache::doubt::BackendId;
use crate::cache::epochs::{CatalogEpoch, DATABASE};

/// A write under way, as Redis may know it.
#[derive(Debug)]
struct Open {
    /// What it may write, sorted; 0 is the database.
    relations: Vec<u32>,
    /// The server process that it runs on; a purge has none.
    backend: Option<BackendId>,
    /// The latest renewal that was sent before all of `relations` stood here. A renewal that is sent later either is a
    /// registration, which carries this doubt, or counts in `last_heartbeat`.
    renewed_before: Option<Instant>,
    /// Whether Redis may have its token.
    sent: bool,
    /// Its outcome is known: Redis is to forget it.
    settled: bool,
    /// Redis is being told of it by what acts upon news: it cannot be told to forget it before it has answered.
    acting: bool,
    /// The catalog's state that it brings when it is settled.
    catalog: Option<CatalogEpoch>,
    /// The fingerprint whose answers are to be forgotten.
    statement: Option<u128>,
}

#[derive(Debug, Default)]
struct Backend {
    /// Whether Redis knows that this member writes through it.
    published: bool,
    /// Whether it is closed: to be forgotten when nothing is open on it.
    retired: bool,
    open: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Registry {
    open: HashMap<u64, Open>,
    to_settle: VecDeque<u64>,
    backends: HashMap<BackendId, Backend>,
    fence: u64,
    last_renewal: Option<Instant>,
    last_heartbeat: Option<Instant>,
    /// Writes went on without a mark; the next registration gives the database a new epoch.
    unmarked: u64,
    /// Settled changes of the catalog that Redis is being told of.
    catalog_changes: usize,
    interest: Interest,
}

/// What the fleet looks at, as this pgherd acts upon it.
#[derive(Debug, Default)]
struct Interest {
    /// The value of Redis' counter that this is of.
    number: u64,
    /// The catalog's state then.
    catalog: Option<CatalogEpoch>,
    relations: HashSet<u32>,
    /// When the last renewal that Redis has answered was sent; what is above may be out of date since then.
    as_of: Option<Instant>,
    /// What was written without a word, and when it was last settled, as far back as something may be looked at that is not above.
    unsaid: HashMap<u32, Instant>,
}

/// What is said to Redis when this pgherd begins to act upon news.
#[derive(Debug)]
pub(super) struct Acting {
    pub(super) number: u64,
    sent_at: Instant,
    /// What was written without a word and may be looked at since.
    pub(super) written: Vec<u32>,
    /// Open writes that may reach what is looked at, with all that they may write.
    pub(super) open: Vec<(u64, Vec<u32>)>,
}

/// The part of a lease for which a pgherd relies on what it last heard: others begin to serve from a Redis that has lost its memory
/// when a whole lease is over.
const RELIED_ON: (u32, u32) = (2, 3);

/// What a registration carries.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) fence: u64,
    pub(super) sent_at: Instant,
    pub(super) tokens: Vec<u64>,
    pub(super) backends: Vec<BackendId>,
    pub(super) renew_database: bool,
    pub(super) change_catalog: bool,
    unmarked: u64,
    /// Settled before: the registration does not carry them, which settles them.
    done: Vec<u64>,
    retired: Vec<BackendId>,
}

/// One settled write.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) token: u64,
    pub(super) relations: Vec<u32>,
    pub(super) catalog: Option<CatalogEpoch>,
    pub(super) statement: Option<u128>,
}

/// Something that was changed elsewhere, or is to be forgotten.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Announced<'a> {
    /// Relations with a new epoch; 0 is the database.
    pub(crate) relations: &'a [u32],
    /// The catalog's new state.
    pub(crate) catalog: Option<CatalogEpoch>,
    /// The fingerprint whose answers are to be forgotten.
    pub(crate) statement: Option<u128>,
}

impl Registry {
    /// Enters a write, or adds relations to it. Must come before anything is sent for it.
    pub(super) fn enter(&mut self, token: u64, backend: BackendId, relations: &[u32]) {
        let renewed_before = self.last_renewal;
        if let Some(open) = self.open.get_mut(&token) {
            open.relations = relations.to_vec();
            open.renewed_before = renewed_before;
            return;
        }
        self.backends.entry(backend).or_default().open += 1;
        let relations = relations.to_vec();
        let open = Open {
            relations,
            backend: Some(backend),
            renewed_before,
            sent: false,
            settled: false,
            acting: false,
            catalog: None,
            statement: None,
        };
        self.open.insert(token, open);
    }

    /// Whether Redis need not be told of that write, which has been entered: nobody looks at any of it, or will before this pgherd has
    /// said what it has open then. What Redis was told of stays told.
    pub(super) fn is_unwatched(&self, token: u64, catalog: Option<CatalogEpoch>, lease: Duration) -> bool {
        let Some(open) = self.open.get(&token).filter(|open| !open.sent) else { return false };
        let published = open.backend.is_some_and(|backend| self.is_published(backend));
        let (part, whole) = RELIED_ON;
        let is_fresh = |at: Instant| at.elapsed() < lease * part / whole;
        published
            && catalog.is_some()
            && catalog == self.interest.catalog
            && self.interest.as_of.is_some_and(is_fresh)
            && !open.relations.iter().any(|oid| *oid == DATABASE || self.interest.relations.contains(oid))
    }

    /// Up to which value of Redis' counter this pgherd acts.
    pub(super) fn acts_upon(&self) -> u64 {
        self.interest.number
    }

    /// A heartbeat that was sent at that moment has been answered with the fleet's state of the catalog and the counter's value. If it brought
    /// what is looked at now, this pgherd acts upon that from here on; what is returned must reach Redis, and [`Registry::acted`] be told.
    pub(super) fn heard(
        &mut self,
        sent_at: Instant,
        number: u64,
        catalog: Option<CatalogEpoch>,
        relations: Option<HashSet<u32>>,
    ) -> Option<Acting> {
        self.interest.as_of = Some(sent_at);
        let Some(relations) = relations else {
            self.forget_unsaid(sent_at);
            return None;
        };
        let interest = &mut self.interest;
        // With another catalog a write may have reached, or reach, what nobody computed then.
        let is_other_catalog = interest.catalog != catalog;
        (interest.number, interest.catalog, interest.relations) = (number, catalog, relations);
        let mut written: Vec<u32> = interest.unsaid.keys().copied().collect();
        match is_other_catalog {
            true if !written.is_empty() => written = vec![DATABASE],
            true => {}
            false => written.retain(|oid| interest.relations.contains(oid)),
        }
        let mut open_now = Vec::new();
        for (token, open) in &mut self.open {
            let is_looked_at = |oid: &u32| *oid == DATABASE || interest.relations.contains(oid);
            if open.sent || open.settled || !(is_other_catalog || open.relations.iter().any(is_looked_at)) {
                continue;
            }
            (open.sent, open.acting) = (true, true);
            let more = is_other_catalog.then_some(DATABASE);
            open_now.push((*token, open.relations.iter().copied().chain(more).collect()));
        }
        Some(Acting { number, sent_at, written, open: open_now })
    }

    /// This pgherd is the first to look at these, since that moment or later: what it had settled by then is seen by all who look.
    pub(super) fn looks_at(&mut self, relations: impl Iterator<Item = u32>, since: Instant) {
        for oid in relations {
            if self.interest.unsaid.get(&oid).is_some_and(|at| *at < since) {
                self.interest.unsaid.remove(&oid);
            }
        }
    }

    /// Whatever is looked at now was so before, or this pgherd did not know: what was settled before has been seen by all that is kept of it.
    fn forget_unsaid(&mut self, before: Instant) {
        self.interest.unsaid.retain(|_, at| *at >= before);
    }

    /// Redis has been told of that.
    pub(super) fn acted(&mut self, acting: &Acting) {
        self.forget_unsaid(acting.sent_at);
        for (token, _) in &acting.open {
            if let Some(open) = self.open.get_mut(token) {
                open.acting = false;
                if open.settled {
                    self.to_settle.push_back(*token);
                }
            }
        }
    }

    /// A raise is about to be sent.
    pub(super) fn sending(&mut self, token: u64) {
        if let Some(open) = self.open.get_mut(&token) {
            open.sent = true;
        }
    }

    /// A raise has been acknowledged, which also published the server process.
    pub(super) fn raised(&mut self, backend: BackendId) {
        if let Some(backend) = self.backends.get_mut(&backend) {
            backend.published = true;
        }
    }

    /// From when on no registration can be alive that does not carry this doubt; `None` if there never was one.
    pub(super) fn lapses_at(&self, token: u64, lease: Duration) -> Option<Instant> {
        let before = self.open.get(&token).and_then(|open| open.renewed_before);
        before.max(self.last_heartbeat).map(|sent| sent + lease + margin(lease))
    }

    /// Whether Redis knows of the server process, so that nobody takes this member for dead while it lives.
    pub(super) fn is_published(&self, backend: BackendId) -> bool {
        self.backends.get(&backend).is_some_and(|backend| backend.published)
    }

    /// A write goes on although Redis could not be told.
    pub(super) fn goes_unmarked(&mut self) {
        self.unmarked += 1;
    }

    /// A write's outcome is known. Returns whether Redis is to be told.
    pub(super) fn settle(&mut self, token: u64, catalog: Option<CatalogEpoch>) -> bool {
        let Some(open) = self.open.get_mut(&token) else { return false };
        if !open.sent && catalog.is_none() {
            let now = Instant::now();
            self.interest.unsaid.extend(open.relations.iter().map(|oid| (*oid, now)));
            self.forget(token);
            return false;
        }
        // A change of the catalog is told in any case.
        open.sent = true;
        open.settled = true;
        open.catalog = catalog;
        self.catalog_changes += usize::from(catalog.is_some());
        if open.acting {
            return false;
        }
        self.to_settle.push_back(token);
        true
    }

    /// Redis is told as of a write that is settled.
    pub(super) fn announce(&mut self, token: u64, announced: Announced<'_>) {
        let Announced { relations, catalog, statement } = announced;
        let open = Open {
            relations: relations.to_vec(),
            statement,
            backend: None,
            renewed_before: None,
            sent: true,
            settled: false,
            acting: false,
            catalog: None,
        };
        self.open.insert(token, open);
        self.settle(token, catalog);
        // A registration would settle it by not carrying it, which is too little for a purge.
        self.unmarked += 1;
    }

    /// The next settled writes that Redis is to be told of. They stay entered until `forget`.
    pub(super) fn take_settled(&mut self, most: usize) -> Vec<Settled> {
        let mut batch = Vec::new();
        while batch.len() < most {
            let Some(token) = self.to_settle.pop_front() else { break };
            if let Some(open) = self.open.get(&token) {
                batch.push(Settled {
                    token,
                    relations: open.relations.clone(),
                    catalog: open.catalog,
                    statement: open.statement,
                });
            }
        }
        batch
    }

    /// They could not be told after all.
    pub(super) fn settle_again(&mut self, batch: &[Settled]) {
        let open = batch.iter().filter(|settled| self.open.contains_key(&settled.token));
        self.to_settle.extend(open.map(|settled| settled.token));
    }

    /// Whether a change of the catalog was made here that Redis may not know of yet.
    pub(super) fn is_changing_catalog(&self) -> bool {
        self.catalog_changes > 0
    }

    /// Redis has forgotten it, or never knew.
    pub(super) fn forget(&mut self, token: u64) {
        let Some(open) = self.open.remove(&token) else { return };
        if open.settled && open.catalog.is_some() {
            self.catalog_changes = self.catalog_changes.saturating_sub(1);
        }
        if let Some(backend) = open.backend.and_then(|backend| self.backends.get_mut(&backend)) {
            backend.open = backend.open.saturating_sub(1);
        }
    }

    /// Whether Redis has yet to be told of it.
    pub(super) fn has(&self, token: u64) -> bool {
        self.open.contains_key(&token)
    }

    /// A server connection was opened.
    pub(super) fn publish(&mut self, backend: BackendId) {
        self.backends.entry(backend).or_default();
    }

    /// A server connection was closed.
    pub(super) fn retire(&mut self, backend: BackendId) {
        if let Some(backend) = self.backends.get_mut(&backend) {
            backend.retired = true;
        }
    }

    /// Server processes that Redis is to be told of, and those it is to forget.
    pub(super) fn backend_changes(&self) -> (Vec<BackendId>, Vec<BackendId>) {
        let wanted = |published: bool, retired: bool| {
            let chosen = self.backends.iter().filter(move |(_, backend)| {
                backend.published == published && backend.retired == retired && (!retired || backend.open == 0)
            });
            chosen.map(|(id, _)| *id).collect()
        };
        (wanted(false, false), wanted(true, true))
    }

    /// Redis has been told of those changes.
    pub(super) fn backends_told(&mut self, published: &[BackendId], retired: &[BackendId]) {
        for id in published {
            self.raised(*id);
        }
        for id in retired {
            self.backends.remove(id);
        }
    }

    /// A heartbeat is about to be sent.
    pub(super) fn heartbeat(&mut self) -> Instant {
        let now = Instant::now();
        self.last_renewal = Some(now);
        self.last_heartbeat = Some(now);
        now
    }

    /// A registration is about to be sent, with all that is open.
    pub(super) fn register(&mut self) -> Registration {
        self.fence += 1;
        let sent_at = Instant::now();
        self.last_renewal = Some(sent_at);
        let mut tokens = Vec::new();
        let mut done = Vec::new();
        let mut change_catalog = false;
        for (token, open) in &mut self.open {
            // Whatever was on its way when the last connection ended has come to nothing, or will.
            open.acting = false;
            if open.settled {
                change_catalog |= open.catalog.is_some();
                done.push(*token);
            } else {
                open.sent = true;
                tokens.push(*token);
            }
        }
        let is_closed = |backend: &Backend| backend.retired && backend.open == 0;
        let (retired, kept): (Vec<_>, Vec<_>) = self.backends.iter().partition(|(_, backend)| is_closed(backend));
        Registration {
            fence: self.fence,
            sent_at,
            tokens,
            backends: kept.into_iter().map(|(id, _)| *id).collect(),
            renew_database: self.unmarked > 0 || !self.interest.unsaid.is_empty(),
            change_catalog,
            unmarked: self.unmarked,
            done,
            retired: retired.into_iter().map(|(id, _)| *id).collect(),
        }
    }

    /// The registration has been acknowledged, and what is looked at been told: this pgherd acts upon it.
    pub(super) fn registered(
        &mut self,
        registration: &Registration,
        number: u64,
        catalog: Option<CatalogEpoch>,
        relations: HashSet<u32>,
    ) {
        let interest = &mut self.interest;
        (interest.number, interest.catalog, interest.relations) = (number, catalog, relations);
        interest.as_of = Some(registration.sent_at);
        self.forget_unsaid(registration.sent_at);
        for token in &registration.done {
            self.forget(*token);
        }
        // What was settled while the registration was on its way may have been told to Redis before it, and brought back by it.
        for token in &registration.tokens {
            if self.open.get(token).is_some_and(|open| open.settled) {
                self.to_settle.push_back(*token);
            }
        }
        self.backends_told(&registration.backends, &registration.retired);
        if self.unmarked == registration.unmarked {
            self.unmarked = 0;
        }
    }

    /// The PostgreSQL server has changed, and the members there do not know of this one yet.
    pub(super) fn leave_scope(&mut self) {
        self.last_renewal = None;
        self.last_heartbeat = None;
        self.interest.as_of = None;
        for backend in self.backends.values_mut() {
            backend.published = false;
        }
        for open in self.open.values_mut() {
            open.renewed_before = None;
        }
    }

    /// How many writes are entered.
    #[cfg(test)]
    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing is open.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }
}

/// What two clocks may differ in over one lease.
fn margin(lease: Duration) -> Duration {
    (lease / 20).max(Duration::from_millis(50))
}
