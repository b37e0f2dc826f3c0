//! Server connections of one (database, user, server): bb8 behind FIFO permits.
//!
//! bb8 alone is not fair: a task that gives a connection back can take it again before one that waits. A semaphore with as
//! many permits as connections hands them out in order of arrival, so that bb8 never has to make anyone wait.
//!
//! bb8 opens connections, counts them and closes them when they are old or idle. Between two transactions that follow each
//! other closely a connection does not go back to it: it waits on a stack of its own, which costs one short lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bb8::{ManageConnection, PooledConnection};
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::connect::{self, Login};
use super::gate::Gate;
use super::reset;
use super::roster::{Arrival, Roster};
use super::server::ServerConn;
use crate::config::model::{Pool as PoolConfig, ServerAddress};
use crate::error::{Error, ErrorKind};
use crate::net::home;
use crate::telemetry::metrics::PoolMetrics;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::TransactionStatus;

/// What a fresh login to this server looks like, before any session has set anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baseline {
    /// ParameterStatus at login, in the server's order.
    pub parameters: Vec<(String, String)>,
    /// Values of the settings that decide what a query returns, by name, in order of name.
    pub settings: Vec<(String, String)>,
    /// When the server was started, as it says, for telling its processes apart after a restart.
    pub server_started: String,
}

impl Baseline {
    /// The value of a setting at login, by lower-case name.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let at = self.settings.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok()?;
        Some(&self.settings[at].1)
    }
}

/// Learns of the server processes that connections lead to.
pub trait ProcessObserver: Send + Sync {
    /// A connection to that process, started at that time (microseconds since 1970), is there.
    fn opened(&self, pid: i32, start_us: i64);
    /// It is not there any more.
    fn closed(&self, pid: i32, start_us: i64);
}

/// Makes and judges connections for bb8.
pub struct Manager {
    address: ServerAddress,
    login: Login,
    statements: usize,
    baseline: Arc<ArcSwapOption<Baseline>>,
    metrics: PoolMetrics,
    observer: Option<Arc<dyn ProcessObserver>>,
    roster: Arc<Roster>,
    /// Why the last attempt to connect failed.
    failed: watch::Sender<Option<Error>>,
}

impl Manager {
    async fn open(&self) -> Result<Box<ServerConn>, Error> {
        let connected = connect::connect(&self.address, &self.login).await?;
        let mut server = Box::new(ServerConn::new(connected, &self.address, &self.login.tls, self.statements));
        let read = tokio::time::timeout(self.login.connect_timeout, reset::read_baseline(&mut server)).await;
        let baseline = read.map_err(|_| timed_out("reading a new server connection's settings"))??;
        if self.baseline.load().as_deref() != Some(&baseline) {
            self.baseline.store(Some(Arc::new(baseline)));
        }
        Ok(server)
    }
}

impl ManageConnection for Manager {
    // Boxed, because bb8 moves connections in and out of its queue by value.
    type Connection = Box<ServerConn>;
    type Error = Error;

    async fn connect(&self) -> Result<Box<ServerConn>, Error> {
        let epoch = self.roster.gate.epoch();
        let _logging_in = self.roster.logs_in();
        if self.roster.gate.wants_none() {
            return Err(not_now());
        }
        let mut server = self.open().await.inspect_err(|error| {
            self.metrics.connect_failures.inc();
            // bb8 would let those who wait for a connection wait until their time is up.
            self.failed.send_replace(Some(error.again()));
        })?;
        self.metrics.connects.inc();
        let stream = &server.stream;
        server.listing = Some(self.roster.arrives(Arrival {
            pid: server.pid,
            local: stream.local(),
            peer: stream.peer().address(),
            tls: stream.tls_info().map(|info| info.version),
            epoch,
        }));
        if self.roster.gate.epoch() != epoch {
            return Err(not_now());
        }
        if let Some(observer) = &self.observer {
            server.observe(Arc::clone(observer));
        }
        Ok(server)
    }

    async fn is_valid(&self, _: &mut Box<ServerConn>) -> Result<(), Error> {
        Ok(())
    }

    fn has_broken(&self, server: &mut Box<ServerConn>) -> bool {
        !server.is_reusable()
    }
}

/// Stacks of connections at hand; threads beyond so many share them.
const STACKS: usize = 16;

type Pooled = PooledConnection<'static, Manager>;

/// Connections that were given back a moment ago: a stack for each of pgherd's threads, the latest on top.
#[derive(Default)]
struct Warm {
    stacks: [Mutex<Vec<Pooled>>; STACKS],
    /// How many there are in all.
    count: AtomicUsize,
    max_lifetime: Option<Duration>,
    is_closed: AtomicBool,
    roster: Arc<Roster>,
}

impl Warm {
    /// One of this thread's if there is one, else another's.
    fn take(&self) -> Option<Pooled> {
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
        if !is_old && !self.is_closed.load(Ordering::Acquire) {
            stack.push(server);
            self.count.fetch_add(1, Ordering::AcqRel);
        }
        drop(stack);
        self.roster.kept();
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        drop(self.take_idle(Duration::ZERO));
    }

    /// Takes those out that nobody has wanted for so long; the rest stays in its order.
    fn take_idle(&self, idle: Duration) -> Vec<Pooled> {
        let mut idle_ones = Vec::new();
        for stack in &self.stacks {
            let mut stack = stack.lock();
            let still_warm = stack.iter().position(|server| server.idle_since.elapsed() < idle).unwrap_or(stack.len());
            idle_ones.extend(stack.drain(..still_warm));
            self.count.fetch_sub(still_warm, Ordering::AcqRel);
        }
        idle_ones
    }
}

/// A pool: see the module's description.
pub struct Pool {
    pool: bb8::Pool<Manager>,
    warm: Arc<Warm>,
    baseline: Arc<ArcSwapOption<Baseline>>,
    permits: Arc<Semaphore>,
    acquire_timeout: Duration,
    max_connections: u32,
    address: ServerAddress,
    metrics: PoolMetrics,
    roster: Arc<Roster>,
    /// Why the last attempt to connect failed.
    failed: watch::Sender<Option<Error>>,
}

/// What a pool reports to, and who may hold it up.
pub struct Around {
    /// Its figures.
    pub metrics: PoolMetrics,
    /// Whether its connections may be used.
    pub gate: Arc<Gate>,
    /// Learns of its server processes.
    pub observer: Option<Arc<dyn ProcessObserver>>,
}

/// A server connection on loan. Giving it back is done on purpose by [`Lease::release`]; dropping it is the safe loss.
pub struct Lease {
    /// Always there, until the lease is dropped.
    server: Option<Pooled>,
    warm: Arc<Warm>,
    /// After the connection, so that whoever gets it next finds one.
    _permit: OwnedSemaphorePermit,
}

impl Lease {
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
    pub fn release(mut self) {
        let now = Instant::now();
        if let Some(listing) = &self.held().listing {
            listing.given_back(now, self.held().held.len());
        }
        if self.held().is_reusable()
            && !is_outdated(self.held())
            && let Some(mut server) = self.server.take()
        {
            server.idle_since = now;
            self.warm.keep(server);
        }
    }

    /// Closes the connection instead of giving it back.
    pub fn discard(self) {}
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Not given back on purpose: a task that panicked or was dropped half way knows nothing of the session it leaves behind.
        if let Some(server) = &mut self.server {
            server.mark_broken();
        }
    }
}

/// How many connections a pool has, and what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolState {
    /// Open connections.
    pub connections: u32,
    /// Those on loan.
    pub active: u32,
    /// Connections at most.
    pub max: u32,
}

impl Pool {
    /// A pool that connects when first asked, and keeps `min_connections` from then on.
    pub fn new(address: ServerAddress, login: Login, config: &PoolConfig, around: Around) -> Self {
        let Around { metrics, gate, observer } = around;
        let roster = Arc::new(Roster::new(gate));
        let baseline = Arc::new(ArcSwapOption::empty());
        let failed = watch::Sender::new(None);
        let manager = Manager {
            address: address.clone(),
            login,
            statements: config.prepared_statements,
            baseline: Arc::clone(&baseline),
            metrics: metrics.clone(),
            observer,
            roster: Arc::clone(&roster),
            failed: failed.clone(),
        };
        let pool = bb8::Pool::builder()
            .max_size(config.max_connections)
            .min_idle(Some(config.min_connections.min(config.max_connections)))
            .idle_timeout(config.idle_timeout)
            .max_lifetime(config.max_lifetime)
            .connection_timeout(config.connect_timeout)
            .test_on_check_out(false)
            .retry_connection(false)
            .build_unchecked(manager);
        let warm = Warm { max_lifetime: config.max_lifetime, roster: Arc::clone(&roster), ..Warm::default() };
        Self {
            pool,
            warm: Arc::new(warm),
            baseline,
            permits: Arc::new(Semaphore::new(config.max_connections as usize)),
            acquire_timeout: config.acquire_timeout,
            max_connections: config.max_connections,
            address,
            metrics,
            roster,
            failed,
        }
    }

    /// Takes no new clients any more; connections that come back are closed.
    pub fn close(&self) {
        self.permits.close();
        self.warm.close();
    }

    /// Gives connections that nobody has wanted for so long back to bb8, which closes them in time.
    pub fn cool(&self, idle: Duration) {
        drop(self.warm.take_idle(idle));
    }

    /// Brings the figures up to date; called before they are read.
    pub fn publish_state(&self) {
        let state = self.state();
        self.metrics.active.set(i64::from(state.active));
        self.metrics.idle.set(i64::from(state.connections.saturating_sub(state.active)));
        self.metrics.max.set(i64::from(state.max));
    }

    /// The server behind it.
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// How long clients have waited for its connections, all together.
    pub fn waited(&self) -> Duration {
        self.metrics.wait.sum()
    }

    /// Its connections, one by one.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// Closes the connections that nobody uses and that were made before the last PAUSE, KILL or RECONNECT.
    pub fn close_outdated(&self) {
        self.cool(Duration::ZERO);
        let mut looked_at = Vec::new();
        for _ in 0..self.pool.state().idle_connections {
            let Some(Ok(mut server)) = self.pool.get_owned().now_or_never() else { break };
            if is_outdated(&server) {
                server.mark_broken();
            }
            looked_at.push(server);
        }
    }

    /// Waits until no connection is left that was made before the last PAUSE, KILL or RECONNECT.
    pub async fn outdated_are_closed(&self) {
        let closed = self.roster.wait_until(|roster| {
            self.close_outdated();
            roster.logging_in() == 0 && !roster.all().iter().any(|listed| roster.is_outdated(listed))
        });
        closed.await;
    }

    /// Waits until nobody holds a connection; to be asked while the gate is shut.
    pub async fn all_given_back(&self) {
        self.roster.wait_until(|roster| !roster.all().iter().any(|listed| listed.is_active())).await;
    }

    /// What a fresh login looks like, once one has been made.
    pub fn baseline(&self) -> Option<Arc<Baseline>> {
        self.baseline.load_full()
    }

    /// Its connections.
    pub fn state(&self) -> PoolState {
        let active =
            self.max_connections as usize - self.permits.available_permits().min(self.max_connections as usize);
        PoolState { connections: self.pool.state().connections, active: active as u32, max: self.max_connections }
    }

    /// Takes a connection, in order of arrival. Connections that died while idle are noticed here, not by a statement.
    ///
    /// # Errors
    /// None became free within the acquire timeout, or the server cannot be reached.
    pub async fn acquire(&self) -> Result<Lease, Error> {
        loop {
            if self.roster.gate.is_shut() {
                let _waiting = Waiting::new(&self.metrics);
                self.roster.gate.opened().await;
            }
            let permit = match Arc::clone(&self.permits).try_acquire_owned() {
                Ok(permit) => {
                    self.metrics.wait.observe(Duration::ZERO);
                    permit
                }
                Err(_) => {
                    let (_waiting, since) = (Waiting::new(&self.metrics), Instant::now());
                    let permit = self.wait_for_permit().await;
                    self.metrics.wait.observe(since.elapsed());
                    permit?
                }
            };
            if self.roster.gate.is_shut() {
                // The next in line will wait at the gate, too.
                continue;
            }
            let taken = match self.take_warm(permit) {
                Ok(lease) => Some(lease),
                Err(permit) => self.connect(permit).await?,
            };
            if let Some(lease) = taken {
                return Ok(lease);
            }
        }
    }

    /// As [`Pool::acquire`], where nobody has to be waited for.
    pub fn try_acquire(&self) -> Option<Lease> {
        if self.roster.gate.is_shut() {
            return None;
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        let lease = self.take_warm(permit).ok()?;
        self.metrics.wait.observe(Duration::ZERO);
        Some(lease)
    }

    /// A connection that was given back a moment ago and has not died since.
    fn take_warm(&self, permit: OwnedSemaphorePermit) -> Result<Lease, OwnedSemaphorePermit> {
        while let Some(mut server) = self.warm.take() {
            server.check_idle();
            server.move_here();
            if server.is_reusable() && !is_outdated(&server) {
                return Ok(self.lend(server, permit));
            }
            server.mark_broken();
        }
        Err(permit)
    }

    /// A connection from bb8, old or new; `None` if the gate was shut meanwhile.
    async fn connect(&self, permit: OwnedSemaphorePermit) -> Result<Option<Lease>, Error> {
        let mut failed = self.failed.subscribe();
        loop {
            let got = tokio::select! {
                biased;
                got = self.pool.get_owned() => got,
                () = self.roster.gate.shut() => return Ok(None),
                _ = failed.changed() => match &*failed.borrow() {
                    Some(error) => return Err(error.again()),
                    None => continue,
                },
            };
            let mut server = match got {
                Ok(server) => server,
                Err(_) if self.roster.gate.is_shut() => return Ok(None),
                Err(error) => return Err(self.cannot_connect(error)),
            };
            server.check_idle();
            server.move_here();
            if server.is_reusable() && !is_outdated(&server) {
                return Ok(Some(self.lend(server, permit)));
            }
            server.mark_broken();
        }
    }

    fn lend(&self, server: Pooled, permit: OwnedSemaphorePermit) -> Lease {
        if let Some(listing) = &server.listing {
            listing.taken();
        }
        Lease { server: Some(server), warm: Arc::clone(&self.warm), _permit: permit }
    }

    async fn wait_for_permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        let wait = Arc::clone(&self.permits).acquire_owned();
        match tokio::time::timeout(self.acquire_timeout, wait).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => {
                let message =
                    "terminating connection: its database was closed by a shutdown or a changed configuration";
                Err(Error::new(ErrorKind::Shutdown, SqlState::ADMIN_SHUTDOWN, message).hint("Connect again.").fatal())
            }
            Err(_) => Err(self.none_became_free()),
        }
    }

    fn none_became_free(&self) -> Error {
        self.metrics.acquire_timeouts.inc();
        Error::new(
            ErrorKind::Pool,
            SqlState::TOO_MANY_CONNECTIONS,
            format!("no server connection became free within {:?}", self.acquire_timeout),
        )
        .detail(format!("All {} connections to {} are in use.", self.max_connections, self.address))
        .hint("Raise pool.max_connections, shorten transactions, or raise pool.acquire_timeout.")
    }

    fn cannot_connect(&self, error: bb8::RunError<Error>) -> Error {
        match error {
            bb8::RunError::User(error) => error,
            bb8::RunError::TimedOut => timed_out(&format!("connecting to {}", self.address)),
        }
    }

    /// Tries the idle connections: the ones whose server is gone are closed, at least one is asked for an answer.
    ///
    /// # Errors
    /// The server cannot be reached or does not answer.
    pub async fn check_health(&self, deadline: Duration) -> Result<(), Error> {
        let check = async {
            let mut lease = self.acquire().await?;
            lease.server().run("").await?;
            lease.release();
            Ok(())
        };
        tokio::time::timeout(deadline, check).await.map_err(|_| timed_out(&format!("checking {}", self.address)))?
    }
}

/// Whether a connection was made before the last PAUSE, KILL or RECONNECT.
fn is_outdated(server: &ServerConn) -> bool {
    server.listing.as_ref().is_some_and(super::roster::Listing::is_outdated)
}

/// A connection that is not made, or not kept, because of a PAUSE, KILL or RECONNECT.
fn not_now() -> Error {
    let message = "the database was paused, killed or reconnected meanwhile";
    Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT_NOW, message)
}

/// Counts a client that waits, however its wait ends.
struct Waiting<'a>(&'a PoolMetrics);

impl<'a> Waiting<'a> {
    fn new(metrics: &'a PoolMetrics) -> Self {
        metrics.waiting.inc();
        Self(metrics)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.dec();
    }
}

fn timed_out(doing: &str) -> Error {
    Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, format!("timeout while {doing}"))
        .hint("See that the server is up and reachable from pgherd, or raise pool.connect_timeout.")
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("address", &self.address).field("state", &self.state()).finish()
    }
}
