//! Which server connections a pool has and what they do, for whoever wants to look: a slot of atomics for each, written where
//! a connection is taken and given back. Only coming and going takes a lock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::gate::Gate;

/// The server connections of one pool.
#[derive(Debug, Default)]
pub struct Roster {
    /// Whether they may be used.
    pub gate: Arc<Gate>,
    servers: Mutex<HashMap<u64, Arc<Listed>>>,
    logging_in: AtomicU32,
    taken: AtomicU64,
    closed: AtomicU64,
    /// Microseconds that connections now closed have lived, all together.
    lifetime_us: AtomicU64,
    /// Microseconds that clients have held connections, all together.
    held_us: AtomicU64,
    /// A connection went, or was given back.
    changed: Notify,
}

/// What a pool's connections did since the pool was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Times that one was taken.
    pub taken: u64,
    /// Times that one was closed.
    pub closed: u64,
    /// How long the closed ones lived, all together.
    pub lifetime: Duration,
    /// How long clients held them, all together.
    pub held: Duration,
}

/// One server connection.
#[derive(Debug)]
pub struct Listed {
    /// Its number, which nothing else in this process has.
    pub id: u64,
    /// The server process.
    pub pid: i32,
    /// Our end of it.
    pub local: Option<SocketAddr>,
    /// The other end of it.
    pub peer: Option<SocketAddr>,
    /// The TLS version, where there is TLS.
    pub tls: Option<&'static str>,
    /// When it was made.
    pub connected_at: SystemTime,
    connected: Instant,
    epoch: u64,
    active: AtomicBool,
    client: AtomicU64,
    taken_us: AtomicU64,
    statements: AtomicU32,
}

impl Listed {
    /// Whether somebody holds it.
    pub fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    /// The number of the client that holds it; 0 if none does, or pgherd itself.
    pub fn client(&self) -> u64 {
        self.client.load(Relaxed)
    }

    /// When it was last taken.
    pub fn taken_at(&self) -> SystemTime {
        self.connected_at + Duration::from_micros(self.taken_us.load(Relaxed))
    }

    /// Prepared statements that it held when it was last given back.
    pub fn statements(&self) -> u32 {
        self.statements.load(Relaxed)
    }
}

/// A connection's place in a roster, for as long as the connection lives.
#[derive(Debug)]
pub struct Listing {
    roster: Arc<Roster>,
    listed: Arc<Listed>,
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.roster.servers.lock().remove(&self.listed.id);
        self.roster.closed.fetch_add(1, Relaxed);
        self.roster.lifetime_us.fetch_add(micros(self.listed.connected.elapsed()), Relaxed);
        self.roster.changed.notify_waiters();
    }
}

/// What is known of a connection that was just made.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) pid: i32,
    pub(super) local: Option<SocketAddr>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) tls: Option<&'static str>,
    /// The gate's epoch when it was begun.
    pub(super) epoch: u64,
}

impl Listing {
    /// Somebody takes the connection.
    pub(super) fn taken(&self) {
        self.listed.active.store(true, Relaxed);
        self.roster.taken.fetch_add(1, Relaxed);
    }

    /// That client has it, for what it asked at that time.
    pub(super) fn lent_to(&self, client: u64, since: Instant) {
        self.listed.client.store(client, Relaxed);
        self.listed.taken_us.store(micros(since.saturating_duration_since(self.listed.connected)), Relaxed);
    }

    /// It is given back.
    pub(super) fn given_back(&self, now: Instant, statements: usize) {
        if self.listed.client.swap(0, Relaxed) != 0 {
            let until = micros(now.saturating_duration_since(self.listed.connected));
            let held = until.saturating_sub(self.listed.taken_us.load(Relaxed));
            self.roster.held_us.fetch_add(held, Relaxed);
        }
        self.listed.statements.store(u32::try_from(statements).unwrap_or(u32::MAX), Relaxed);
        self.listed.active.store(false, Relaxed);
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.listed.id
    }

    /// Whether it was made before the last PAUSE, KILL or RECONNECT: then it is not used again.
    pub fn is_outdated(&self) -> bool {
        self.listed.epoch != self.roster.gate.epoch()
    }
}

/// Counts a login that is under way, however it ends.
pub(super) struct LoggingIn<'a>(&'a Roster);

impl Drop for LoggingIn<'_> {
    fn drop(&mut self) {
        self.0.logging_in.fetch_sub(1, Relaxed);
        self.0.changed.notify_waiters();
    }
}

impl Roster {
    /// An empty one behind that gate.
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self { gate, ..Self::default() }
    }

    /// A connection was given back and lies where others find it.
    pub(super) fn kept(&self) {
        if self.gate.is_shut() {
            self.changed.notify_waiters();
        }
    }

    /// A login begins.
    pub(super) fn logs_in(&self) -> LoggingIn<'_> {
        self.logging_in.fetch_add(1, Relaxed);
        LoggingIn(self)
    }

    /// A connection was made.
    pub(super) fn arrives(self: &Arc<Self>, arrival: Arrival) -> Listing {
        let Arrival { pid, local, peer, tls, epoch } = arrival;
        let listed = Arc::new(Listed {
            id: self.gate.next_id(),
            pid,
            local,
            peer,
            tls,
            connected_at: SystemTime::now(),
            connected: Instant::now(),
            epoch,
            active: AtomicBool::new(false),
            client: AtomicU64::new(0),
            taken_us: AtomicU64::new(0),
            statements: AtomicU32::new(0),
        });
        self.servers.lock().insert(listed.id, Arc::clone(&listed));
        Listing { roster: Arc::clone(self), listed }
    }

    /// All connections, in order of their numbers.
    pub fn all(&self) -> Vec<Arc<Listed>> {
        let mut all: Vec<_> = self.servers.lock().values().cloned().collect();
        all.sort_unstable_by_key(|listed| listed.id);
        all
    }

    /// How many there are, logins under way included.
    pub(super) fn open(&self) -> usize {
        self.servers.lock().len() + self.logging_in() as usize
    }

    /// How many of them nobody holds.
    pub(super) fn idle(&self) -> usize {
        self.servers.lock().values().filter(|listed| !listed.is_active()).count()
    }

    /// Whether a connection was made before the last PAUSE, KILL or RECONNECT.
    pub fn is_outdated(&self, listed: &Listed) -> bool {
        listed.epoch != self.gate.epoch()
    }

    /// Logins under way.
    pub fn logging_in(&self) -> u32 {
        self.logging_in.load(Relaxed)
    }

    /// What its connections did.
    pub fn totals(&self) -> Totals {
        Totals {
            taken: self.taken.load(Relaxed),
            closed: self.closed.load(Relaxed),
            lifetime: Duration::from_micros(self.lifetime_us.load(Relaxed)),
            held: Duration::from_micros(self.held_us.load(Relaxed)),
        }
    }

    /// Waits until `so` holds; looks whenever a connection goes or is given back while the gate is shut.
    pub(super) async fn wait_until(&self, so: impl Fn(&Self) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if so(self) {
                return;
            }
            changed.await;
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(roster: &Roster) -> Arrival {
        Arrival { pid: 7, local: None, peer: None, tls: None, epoch: roster.gate.epoch() }
    }

    #[tokio::test]
    async fn a_connection_is_listed_while_it_lives_and_outdated_after_an_epoch() {
        let roster = Arc::new(Roster::new(Arc::default()));
        let listing = roster.arrives(arrival(&roster));
        listing.taken();
        listing.lent_to(5, Instant::now());
        let listed = &roster.all()[0];
        assert!(listed.is_active() && listed.client() == 5 && !roster.is_outdated(listed));
        roster.gate.next_epoch();
        assert!(listing.is_outdated());
        listing.given_back(Instant::now() + Duration::from_millis(3), 2);
        assert!(!listed.is_active() && listed.client() == 0 && listed.statements() == 2);
        assert!(roster.totals().held >= Duration::from_millis(2));
        let waiting = Arc::clone(&roster);
        let waiter = tokio::spawn(async move { waiting.wait_until(|roster| roster.all().is_empty()).await });
        tokio::task::yield_now().await;
        drop(listing);
        waiter.await.expect("told");
        assert_eq!((roster.totals().taken, roster.totals().closed), (1, 1));
    }
}
