//! Who may have how many server connections: bounds over several pools, and turns between pools that want more than there are.
//!
//! A pool asks for each connection beyond those it has been granted, and its grants are the permits that its clients queue for.
//! Nobody comes here to take a connection that the pool has already.
//!
//! Where a bound is reached, a pool that wants more gets, in this order: a connection that nobody uses, from the pool that has most
//! (from one that has no more than itself only after [`LINGER`]); else the next one that is given back by a user with two more than it has; and one who has none gets one from any other, whose turn
//! is over after [`TURN`]. So a user who floods pgherd with clients slows his own only.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// How long the only connection of a user stays his while he has work for it and another has none: a login costs milliseconds.
pub const TURN: Duration = Duration::from_millis(25);

/// How long an idle connection is left to a user who has no more than the one who wants it: he may come back for it in a moment.
pub const LINGER: Duration = Duration::from_millis(250);

/// Bounds that do not belong to one pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Server connections in total.
    pub total: Option<u32>,
    /// So many more than `total` and than each database's bound may be had by those who may use the reserve.
    pub reserve: u32,
    /// Server connections of a user, all databases together.
    pub users: HashMap<String, u32>,
    /// Who may use the reserve.
    pub privileged: HashSet<String>,
}

/// What a pool can do for the ledger.
pub(super) trait Holder: Send + Sync {
    /// Closes a connection that nobody has used for so long, or gives up one that it has not opened. False if there is none.
    fn surrender(&self, idle: Duration) -> bool;
}

/// A pool that joins.
pub(super) struct Newcomer<'a> {
    pub(super) user: &'a str,
    /// Pools of one database on one server have the same.
    pub(super) server: &'a str,
    /// All of them together may have so many.
    pub(super) server_bound: Option<u32>,
    /// It may have so many itself.
    pub(super) max: u32,
    /// What its clients queue for: a permit for each connection that it has been granted.
    pub(super) permits: Arc<Semaphore>,
}

/// What a bound is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All server connections of this pgherd.
    Total,
    /// Those of a database on one server.
    Database,
    /// Those of a user.
    User,
}

/// A bound as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it is on.
    pub kind: Kind,
    /// Which user, or which database on which server; empty for the total.
    pub name: String,
    /// Connections that have been granted.
    pub used: u32,
    /// How many there may be; `None` without a bound.
    pub bound: Option<u32>,
    /// Pools below it that want more.
    pub waiting: usize,
}

/// All bounds of a pgherd: see the module's description.
#[derive(Debug, Default)]
pub struct Ledger {
    state: Mutex<State>,
    /// Pools that want more than they have.
    wanting: AtomicUsize,
    /// Connections that one pool gave up for another.
    taken_away: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    bounds: Bounds,
    members: HashMap<u64, Member>,
    total: u32,
    users: HashMap<String, u32>,
    servers: HashMap<String, Server>,
    /// Members that want more, in the order of their turns.
    queue: VecDeque<u64>,
    next: u64,
}

#[derive(Debug, Default)]
struct Server {
    granted: u32,
    bound: Option<u32>,
}

struct Member {
    user: String,
    server: String,
    max: u32,
    granted: u32,
    permits: Arc<Semaphore>,
    shown: Arc<Shown>,
    holder: Weak<dyn Holder>,
}

/// What a member's pool sees and says of it without a lock.
#[derive(Debug, Default)]
struct Shown {
    /// Connections that it may have.
    granted: AtomicU32,
    /// Clients that wait for one.
    waiting: AtomicU32,
    /// Grants that none of those has taken yet.
    unclaimed: AtomicU32,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("user", &self.user).field("granted", &self.granted).finish_non_exhaustive()
    }
}

impl Member {
    fn wants_more(&self) -> bool {
        let Shown { waiting, unclaimed, .. } = &*self.shown;
        self.granted < self.max && waiting.load(Ordering::SeqCst) > unclaimed.load(Ordering::Relaxed)
    }

    fn has_spare(&self) -> bool {
        self.granted > 0 && self.permits.available_permits() > 0
    }
}

/// What is to be done next, outside the lock.
enum Step {
    TakeFrom(u64, Weak<dyn Holder>, Duration),
    Rest,
}

impl State {
    fn count(&self, kind: Kind, member: &Member) -> u32 {
        match kind {
            Kind::Total => self.total,
            Kind::Database => self.servers.get(&member.server).map_or(0, |server| server.granted),
            Kind::User => self.users.get(&member.user).copied().unwrap_or(0),
        }
    }

    fn bound(&self, kind: Kind, member: &Member) -> Option<u32> {
        let reserve = if self.bounds.privileged.contains(&member.user) { self.bounds.reserve } else { 0 };
        match kind {
            Kind::Total => self.bounds.total.map(|bound| bound.saturating_add(reserve)),
            Kind::Database => self.servers.get(&member.server)?.bound.map(|bound| bound.saturating_add(reserve)),
            Kind::User => self.bounds.users.get(&member.user).copied(),
        }
    }

    /// The bounds that keep a member from one more.
    fn reached(&self, member: &Member) -> Vec<Kind> {
        let is_reached =
            |kind: &Kind| self.bound(*kind, member).is_some_and(|bound| self.count(*kind, member) >= bound);
        [Kind::Total, Kind::Database, Kind::User].into_iter().filter(is_reached).collect()
    }

    /// Whether what one member gives up lets another have more under that bound.
    fn shares(kind: Kind, one: &Member, other: &Member) -> bool {
        match kind {
            Kind::Total => true,
            Kind::Database => one.server == other.server,
            Kind::User => one.user == other.user,
        }
    }

    /// What a member has of that bound: the user's part of the total, the pool's part of the others.
    fn part(&self, kind: Kind, member: &Member) -> u32 {
        if kind == Kind::Total { self.count(Kind::User, member) } else { member.granted }
    }

    /// Whether one has less of that bound than the other, or nothing at all.
    fn has_less(&self, kind: Kind, one: &Member, other: &Member) -> bool {
        let part = self.part(kind, one);
        part == 0 || part < self.part(kind, other)
    }

    fn is_over(&self, member: &Member) -> bool {
        let is_over = |kind: Kind| self.bound(kind, member).is_some_and(|bound| self.count(kind, member) > bound);
        [Kind::Total, Kind::Database, Kind::User].into_iter().any(is_over)
    }

    fn change(&mut self, id: u64, by: i64) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let new = |count: u32| u32::try_from((i64::from(count) + by).max(0)).unwrap_or(u32::MAX);
        member.granted = new(member.granted);
        member.shown.granted.store(member.granted, Ordering::Relaxed);
        self.total = new(self.total);
        let server = self.servers.entry(member.server.clone()).or_default();
        server.granted = new(server.granted);
        let of_user = self.users.entry(member.user.clone()).or_default();
        *of_user = new(*of_user);
    }

    fn enqueue(&mut self, id: u64) {
        if !self.queue.contains(&id) {
            self.queue.push_back(id);
        }
    }

    fn grant(&mut self, id: u64) {
        self.change(id, 1);
        if let Some(member) = self.members.get_mut(&id) {
            member.shown.unclaimed.fetch_add(1, Ordering::Relaxed);
            member.permits.add_permits(1);
        }
    }

    /// Where in the queue the member stands that gets the next connection that is free: of those who may have one more, the one
    /// that has least, and of equals the one that has waited longest.
    fn whose_turn(&self) -> Option<usize> {
        let all = self.queue.iter().enumerate().filter_map(|(at, id)| Some((at, self.members.get(id)?)));
        let may_have_one = all.filter(|(_, member)| self.reached(member).is_empty());
        let turn = may_have_one.min_by_key(|(at, member)| {
            let of_user = self.bounds.total.map(|_| self.count(Kind::User, member));
            (of_user, member.granted, *at)
        });
        turn.map(|(at, _)| at)
    }

    /// Grants what there is room for, in turns; returns whom to take something from, so that there is more.
    fn next_step(&mut self, tried: &HashSet<u64>) -> Step {
        let over = self.members.iter().find(|(id, it)| !tried.contains(id) && it.has_spare() && self.is_over(it));
        if let Some((id, member)) = over {
            return Step::TakeFrom(*id, Weak::clone(&member.holder), Duration::ZERO);
        }
        self.queue.retain(|id| self.members.get(id).is_some_and(Member::wants_more));
        while let Some(at) = self.whose_turn() {
            let Some(id) = self.queue.remove(at) else { break };
            self.grant(id);
            if self.members.get(&id).is_some_and(Member::wants_more) {
                self.queue.push_back(id);
            }
        }
        for id in &self.queue {
            let Some(member) = self.members.get(id) else { continue };
            let reached = self.reached(member);
            let spare = self.members.iter().filter(|(other, it)| {
                let helps = || reached.iter().all(|kind| Self::shares(*kind, it, member));
                *other != id && !tried.contains(other) && it.has_spare() && helps()
            });
            if let Some((other, it)) = spare.max_by_key(|(other, it)| (self.part(reached[0], it), it.granted, **other))
            {
                let linger = if self.has_less(reached[0], member, it) { Duration::ZERO } else { LINGER };
                return Step::TakeFrom(*other, Weak::clone(&it.holder), linger);
            }
        }
        Step::Rest
    }

    /// Whether a member should give the connection at hand up for one that waits.
    fn must_yield(&self, id: u64, is_wanted: bool, age: Duration) -> bool {
        let Some(me) = self.members.get(&id) else { return true };
        if self.is_over(me) {
            return true;
        }
        self.queue.iter().filter(|other| **other != id).filter_map(|other| self.members.get(other)).any(|other| {
            let reached = self.reached(other);
            if !other.wants_more() || reached.is_empty() || !reached.iter().all(|kind| Self::shares(*kind, me, other)) {
                return false;
            }
            let (mine, theirs) = (self.part(reached[0], me), self.part(reached[0], other));
            match is_wanted {
                false => self.has_less(reached[0], other, me),
                true => theirs + 1 < mine || (theirs == 0 && age >= TURN),
            }
        })
    }
}

impl Ledger {
    /// Takes over other bounds; who has more than they allow gives up what is free now, and the rest as it is given back.
    pub fn set_bounds(&self, bounds: Bounds) {
        self.state.lock().bounds = bounds;
        self.settle();
    }

    /// The bounds, those without a limit only where they are the total.
    pub fn standings(&self) -> Vec<Standing> {
        let state = self.state.lock();
        let waiting = |kind: Kind, is_below: &dyn Fn(&Member) -> bool| {
            let waits =
                |id: &&u64| state.members.get(id).is_some_and(|it| is_below(it) && state.reached(it).contains(&kind));
            state.queue.iter().filter(waits).count()
        };
        let total = Standing {
            kind: Kind::Total,
            name: String::new(),
            used: state.total,
            bound: state.bounds.total,
            waiting: waiting(Kind::Total, &|_| true),
        };
        let servers =
            state.servers.iter().filter(|(_, server)| server.bound.is_some()).map(|(name, server)| Standing {
                kind: Kind::Database,
                name: name.clone(),
                used: server.granted,
                bound: server.bound,
                waiting: waiting(Kind::Database, &|it| it.server == *name),
            });
        let users = state.bounds.users.iter().map(|(name, bound)| Standing {
            kind: Kind::User,
            name: name.clone(),
            used: state.users.get(name).copied().unwrap_or(0),
            bound: Some(*bound),
            waiting: waiting(Kind::User, &|it| it.user == *name),
        });
        let mut rest: Vec<Standing> = servers.chain(users).collect();
        rest.sort_by(|a, b| (a.kind as u8, &a.name).cmp(&(b.kind as u8, &b.name)));
        std::iter::once(total).chain(rest).collect()
    }

    /// Connections that one pool gave up for another since the start.
    pub fn taken_away(&self) -> usize {
        self.taken_away.load(Ordering::Relaxed)
    }

    /// A pool joins.
    pub(super) fn join(self: &Arc<Self>, newcomer: &Newcomer<'_>, holder: Weak<dyn Holder>) -> Place {
        let mut state = self.state.lock();
        state.next += 1;
        let (id, shown) = (state.next, Arc::<Shown>::default());
        // The latest word on it: a reload makes other pools.
        state.servers.entry(newcomer.server.to_owned()).or_default().bound = newcomer.server_bound;
        let member = Member {
            user: newcomer.user.to_owned(),
            server: newcomer.server.to_owned(),
            max: newcomer.max,
            granted: 0,
            permits: Arc::clone(&newcomer.permits),
            shown: Arc::clone(&shown),
            holder,
        };
        state.members.insert(id, member);
        Place { ledger: Arc::clone(self), id, max: newcomer.max, shown }
    }

    /// Gives whoever wants more what can be had now.
    pub fn settle(&self) {
        let mut tried = HashSet::new();
        loop {
            let step = {
                let mut state = self.state.lock();
                let step = state.next_step(&tried);
                let over = state.members.values().any(|member| state.is_over(member));
                self.wanting.store(state.queue.len() + usize::from(over), Ordering::SeqCst);
                match step {
                    // Whoever gives something back looks for those that want, who must look once more behind that.
                    Step::Rest => state.next_step(&tried),
                    step => step,
                }
            };
            let Step::TakeFrom(id, holder, idle) = step else { return };
            // Outside the lock: it comes here to give back what it closes.
            if holder.upgrade().is_some_and(|holder| holder.surrender(idle)) {
                self.taken_away.fetch_add(1, Ordering::Relaxed);
            } else {
                tried.insert(id);
            }
        }
    }
}

/// A pool's place among all; given up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    ledger: Arc<Ledger>,
    id: u64,
    max: u32,
    shown: Arc<Shown>,
}

/// A client that waits for a connection of its pool.
pub(super) struct Asking<'a>(&'a Place);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        // Under the lock: who grants something has just looked for whom, and nobody else would ever claim it.
        let _state = self.0.ledger.state.lock();
        let Shown { waiting, unclaimed, .. } = &*self.0.shown;
        waiting.fetch_sub(1, Ordering::Relaxed);
        let less = |unclaimed: u32| unclaimed.checked_sub(1);
        let _ = unclaimed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Place {
    /// Takes a permit that is there. Else a client begins to wait, which asks for one more connection unless the pool has all that it may
    /// have itself. It stands in its pool's queue by then: what is granted is its own at once, and not to be had by whoever looks for
    /// something that nobody uses.
    pub(super) fn take_or_ask<F: Future + ?Sized>(
        &self,
        queued: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Result<F::Output, Asking<'_>> {
        if let Poll::Ready(taken) = queued.poll(cx) {
            return Ok(taken);
        }
        self.shown.waiting.fetch_add(1, Ordering::SeqCst);
        if self.granted() < self.max {
            self.ledger.state.lock().enqueue(self.id);
            self.ledger.settle();
        }
        Err(Asking(self))
    }

    /// One more for nobody in particular, if that leaves no other wanting: without a permit yet.
    pub(super) fn take_one_more(&self) -> bool {
        let mut state = self.ledger.state.lock();
        let is_free = state.queue.is_empty();
        let member = state.members.get(&self.id).filter(|_| is_free);
        let so = member.is_some_and(|member| member.granted < self.max && state.reached(member).is_empty());
        if so {
            state.change(self.id, 1);
        }
        so
    }

    /// The bounds that keep the pool from one more connection.
    pub(super) fn reached(&self) -> Vec<(Kind, u32)> {
        let state = self.ledger.state.lock();
        let Some(member) = state.members.get(&self.id) else { return Vec::new() };
        let reached = state.reached(member).into_iter();
        reached.filter_map(|kind| Some((kind, state.bound(kind, member)?))).collect()
    }

    /// Connections that it may have now.
    pub(super) fn granted(&self) -> u32 {
        self.shown.granted.load(Ordering::Relaxed)
    }

    /// So many are given back. Whoever wants them gets them with the next [`Place::settle`].
    pub(super) fn hand_back(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let mut state = self.ledger.state.lock();
        state.change(self.id, -count);
        // Behind those that have waited while it had its turn.
        state.queue.retain(|id| *id != self.id);
        if self.shown.waiting.load(Ordering::SeqCst) > 0 {
            state.queue.push_back(self.id);
        }
    }

    /// Gives whoever wants more what can be had now.
    pub(super) fn settle(&self) {
        self.ledger.settle();
    }

    /// Whether any pool wants more than it has: what is looked at when a connection is given back.
    pub(super) fn is_pressed(&self) -> bool {
        self.ledger.wanting.load(Ordering::SeqCst) > 0
    }

    /// Whether a connection that is free now should be closed for another pool's sake.
    pub(super) fn must_yield(&self, age: Duration) -> bool {
        let is_wanted = self.shown.waiting.load(Ordering::Relaxed) > 0;
        let yields = self.ledger.state.lock().must_yield(self.id, is_wanted, age);
        self.ledger.taken_away.fetch_add(usize::from(yields), Ordering::Relaxed);
        yields
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.ledger.state.lock();
        let granted = state.members.get(&self.id).map_or(0, |member| member.granted);
        state.change(self.id, -i64::from(granted));
        if let Some(member) = state.members.remove(&self.id)
            && !state.members.values().any(|other| other.server == member.server)
        {
            state.servers.remove(&member.server);
        }
        drop(state);
        self.ledger.settle();
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
