//! Server connections of a pool: those at hand, and those on loan.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bb8::PooledConnection;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::ledger::Place;
use super::manager::Manager;
use super::roster::Roster;
use super::server::ServerConn;
use crate::net::home;
use crate::telemetry::metrics::PoolMetrics;
use crate::wire::writer::TransactionStatus;

/// Stacks of connections at hand; threads beyond so many share them.
const STACKS: usize = 16;

pub(super) type Pooled = PooledConnection<'static, Manager>;

/// Connections that were given back a moment ago: a stack for each of pgherd's threads, the latest on top.
pub(super) struct Warm {
    stacks: [Mutex<Vec<Pooled>>; STACKS],
    /// How many there are in all.
    count: AtomicUsize,
    max_lifetime: Option<Duration>,
    is_closed: AtomicBool,
    roster: Arc<Roster>,
    metrics: PoolMetrics,
    /// The pool's place among those that share bounds with it.
    pub(super) place: Place,
}

impl Warm {
    pub(super) fn new(max_lifetime: Option<Duration>, roster: Arc<Roster>, metrics: PoolMetrics, place: Place) -> Self {
        let (count, is_closed) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { stacks: Default::default(), count, max_lifetime, is_closed, roster, metrics, place }
    }

    /// One of this thread's if there is one, else another's.
    pub(super) fn take(&self) -> Option<Pooled> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let from = home::here();
        let found = (from..from + STACKS).find_map(|at| self.stacks[at % STACKS].lock().pop());
        self.count.fetch_sub(usize::from(found.is_some()), Ordering::AcqRel);
        found
    }

    /// Keeps a connection, unless bb8 must see it to close it.
    fn keep(&self, server: Pooled) {
        let is_old = self.max_lifetime.is_some_and(|limit| server.idle_since - server.connected_at >= limit);
        let mut stack = self.stacks[home::here() % STACKS].lock();
        if !is_old && !self.is_closed() {
            stack.push(server);
            self.count.fetch_add(1, Ordering::AcqRel);
        }
        drop(stack);
        self.roster.kept();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        drop(self.take_idle(Duration::ZERO));
    }

    /// The one of some thread's that has been there longest, if it has been idle for so long.
    pub(super) fn take_coldest(&self, idle: Duration) -> Option<Pooled> {
        let found = self.stacks.iter().find_map(|stack| {
            let mut stack = stack.lock();
            let is_cold = stack.first().is_some_and(|server| server.idle_since.elapsed() >= idle);
            is_cold.then(|| stack.remove(0))
        });
        self.count.fetch_sub(usize::from(found.is_some()), Ordering::AcqRel);
        found
    }

    /// Takes those out that nobody has wanted for so long; the rest stays in its order.
    pub(super) fn take_idle(&self, idle: Duration) -> Vec<Pooled> {
        let mut idle_ones = Vec::new();
        for stack in &self.stacks {
            let mut stack = stack.lock();
            let still_warm = stack.iter().position(|server| server.idle_since.elapsed() < idle).unwrap_or(stack.len());
            idle_ones.extend(stack.drain(..still_warm));
            self.count.fetch_sub(still_warm, Ordering::AcqRel);
        }
        idle_ones
    }

    /// Whether a connection that is given back is closed for another pool's sake.
    fn must_yield(&self, server: &ServerConn, now: Instant) -> bool {
        let yields =
            self.place.is_pressed() && self.place.must_yield(now.saturating_duration_since(server.connected_at));
        if yields {
            self.metrics.closed("turn");
        }
        yields
    }
}

/// A server connection on loan. Giving it back is done on purpose by [`Lease::release`]; dropping it is the safe loss.
pub struct Lease {
    /// Always there, until the lease is dropped.
    server: Option<Pooled>,
    warm: Arc<Warm>,
    /// Always there, too. Given back after the connection, so that whoever gets it finds one.
    permit: Option<OwnedSemaphorePermit>,
    /// The connection is closed for another pool's sake, and what the pool was granted for it goes there.
    yields: bool,
}

impl Lease {
    pub(super) fn new(server: Pooled, warm: &Arc<Warm>, permit: OwnedSemaphorePermit) -> Self {
        Self { server: Some(server), warm: Arc::clone(warm), permit: Some(permit), yields: false }
    }

    fn held(&self) -> &ServerConn {
        self.server.as_ref().expect("a lease has its connection until it is dropped")
    }

    /// The server connection.
    pub fn server(&mut self) -> &mut ServerConn {
        self.server.as_mut().expect("a lease has its connection until it is dropped")
    }

    /// Whether a pipeline is open on it.
    pub fn is_unsynced(&self) -> bool {
        self.held().expects.is_unsynced() || !self.held().expects.is_empty()
    }

    /// Whether everything that was sent is answered, and its transaction stands where the client believes.
    pub fn awaits_nothing(&self, status: TransactionStatus) -> bool {
        let server = self.held();
        let is_busy = self.is_unsynced() || server.unfinished > 0 || server.copying_in;
        !is_busy && !server.is_broken() && server.status == status
    }

    /// The connection's number in its pool's roster.
    pub fn number(&self) -> u64 {
        self.held().listing.as_ref().map_or(0, super::roster::Listing::id)
    }

    /// Notes which client has it, for what that client asked at that time; returns the connection's number.
    pub fn lent_to(&self, client: u64, since: Instant) -> u64 {
        self.held().listing.as_ref().map_or(0, |listing| {
            listing.lent_to(client, since);
            listing.id()
        })
    }

    /// Gives the connection back; it is closed if it is not reusable.
    pub fn release(self) {
        self.release_at(Instant::now());
    }

    /// As [`Lease::release`], for who knows what time it is.
    pub fn release_at(mut self, now: Instant) {
        if let Some(listing) = &self.held().listing {
            listing.given_back(now, self.held().held.len());
        }
        if self.held().is_reusable()
            && !is_outdated(self.held())
            && !self.yields_at(now)
            && let Some(mut server) = self.server.take()
        {
            server.idle_since = now;
            self.warm.keep(server);
        }
    }

    fn yields_at(&mut self, now: Instant) -> bool {
        self.yields = self.warm.must_yield(self.held(), now);
        self.yields
    }

    /// Closes the connection instead of giving it back.
    pub fn discard(self) {}
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Not given back on purpose: a task that panicked or was dropped half way knows nothing of the session it leaves behind.
        if let Some(mut server) = self.server.take() {
            self.yields = self.yields || self.warm.must_yield(&server, Instant::now());
            server.mark_broken();
        }
        let Some(permit) = self.permit.take() else { return };
        let place = &self.warm.place;
        if self.yields || self.warm.is_closed() {
            permit.forget();
            place.hand_back(1);
        } else {
            drop(permit);
        }
        if place.is_pressed() {
            place.settle();
        }
    }
}

/// Whether a connection was made before the last PAUSE, KILL or RECONNECT.
pub(super) fn is_outdated(server: &ServerConn) -> bool {
    server.listing.as_ref().is_some_and(super::roster::Listing::is_outdated)
}
