//! Server connections of one (database, user, server): bb8 behind FIFO permits.
//!
//! bb8 alone is not fair: a task that gives a connection back can take it again before one that waits. A semaphore with as
//! many permits as connections hands them out in order of arrival, so that bb8 never has to make anyone wait. The permits are what
//! the [`Ledger`] has granted: bounds over several pools are its business.
//!
//! bb8 opens connections, counts them and closes them when they are old or idle. Between two transactions that follow each
//! other closely a connection does not go back to it: it waits on a stack of its own, which costs one short lock.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::alarm::Alarm;
use super::connect::Login;
use super::gate::Gate;
pub use super::lease::Lease;
use super::lease::{Pooled, Warm, is_outdated};
use super::ledger::{Holder, Kind, LINGER, Ledger, Newcomer};
pub use super::manager::{Baseline, ProcessObserver};
use super::manager::{Manager, timed_out};
use super::roster::Roster;
use crate::config::model::{Pool as PoolConfig, ServerAddress};
use crate::error::{Error, ErrorKind};
use crate::telemetry::metrics::PoolMetrics;
use crate::wire::sqlstate::SqlState;

/// A pool: see the module's description.
pub struct Pool {
    own: Arc<Connections>,
    baseline: Arc<ArcSwapOption<Baseline>>,
    /// Its baseline, and another pool's that was found to have the same settings.
    alike: ArcSwapOption<(Arc<Baseline>, Arc<Baseline>)>,
    min_connections: u32,
    /// Somebody is about to open as many connections as are to be kept.
    is_refilling: AtomicBool,
    acquire_timeout: Duration,
    max_connections: u32,
    address: ServerAddress,
    metrics: PoolMetrics,
    roster: Arc<Roster>,
    /// Why the last attempt to connect failed.
    failed: watch::Sender<Option<Error>>,
}

/// A pool's connections, and what its clients queue for.
struct Connections {
    pool: bb8::Pool<Manager>,
    warm: Arc<Warm>,
    permits: Arc<Semaphore>,
    roster: Arc<Roster>,
    metrics: PoolMetrics,
}

impl Connections {
    /// Closes a connection that nobody has used for so long.
    fn close_one(&self, idle: Duration) -> bool {
        let idle = self.warm.take_coldest(idle).or_else(|| {
            // Where there is none, asking bb8 for one would make it open one.
            (self.pool.state().idle_connections > 0).then(|| self.pool.get_owned().now_or_never()?.ok()).flatten()
        });
        idle.map(|mut server| server.mark_broken()).is_some()
    }
}

impl Holder for Connections {
    fn surrender(&self, idle: Duration) -> bool {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return false };
        let place = &self.warm.place;
        while self.roster.open() >= place.granted() as usize {
            if !self.close_one(idle) {
                return false;
            }
            self.metrics.closed("turn");
        }
        permit.forget();
        place.hand_back(1);
        true
    }
}

/// What a pool reports to, and who may hold it up.
pub struct Around {
    /// Bounds that it shares with other pools.
    pub ledger: Arc<Ledger>,
    /// The user it is for.
    pub user: String,
    /// The database it is for.
    pub database: String,
    /// Its figures.
    pub metrics: PoolMetrics,
    /// Whether its connections may be used.
    pub gate: Arc<Gate>,
    /// Learns of its server processes.
    pub observer: Option<Arc<dyn ProcessObserver>>,
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
        let Around { ledger, user, database, metrics, gate, observer } = around;
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
            .idle_timeout(config.idle_timeout)
            .max_lifetime(config.max_lifetime)
            .connection_timeout(config.connect_timeout)
            .test_on_check_out(false)
            .retry_connection(false)
            .build_unchecked(manager);
        let permits = Arc::new(Semaphore::new(0));
        let own = Arc::new_cyclic(|own| {
            let newcomer = Newcomer {
                user: &user,
                server: &format!("{database} on {address}"),
                server_bound: config.max_database_connections,
                max: config.max_connections,
                permits: Arc::clone(&permits),
            };
            let own: std::sync::Weak<Connections> = std::sync::Weak::clone(own);
            let place = ledger.join(&newcomer, own);
            let warm = Arc::new(Warm::new(config.max_lifetime, Arc::clone(&roster), metrics.clone(), place));
            Connections { pool, warm, permits, roster: Arc::clone(&roster), metrics: metrics.clone() }
        });
        Self {
            own,
            baseline,
            alike: ArcSwapOption::empty(),
            min_connections: config.min_connections.min(config.max_connections),
            is_refilling: AtomicBool::new(false),
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
        let unused = self.own.permits.forget_permits(usize::MAX >> 3);
        self.own.permits.close();
        self.own.warm.close();
        self.own.warm.place.hand_back(unused);
        self.own.warm.place.settle();
    }

    /// Gives up what was granted for connections that have been closed since, and says whether there are fewer than are to be kept.
    pub fn trim(&self) -> bool {
        let Connections { permits, roster, warm, .. } = &*self.own;
        while permits.available_permits() > roster.idle()
            && let Ok(permit) = Arc::clone(permits).try_acquire_owned()
        {
            permit.forget();
            warm.place.hand_back(1);
        }
        let is_used = roster.totals().taken > 0 && !warm.is_closed();
        is_used && !roster.gate.is_shut() && roster.open() < self.min_connections as usize
    }

    /// Opens connections until there are as many as are to be kept, as far as no other pool wants what it takes.
    pub async fn refill(&self) {
        let Connections { pool, permits, roster, warm, .. } = &*self.own;
        if self.is_refilling.swap(true, Ordering::AcqRel) {
            return;
        }
        while self.trim() && warm.place.take_one_more() {
            let Ok(server) = pool.dedicated_connection().await else {
                warm.place.hand_back(1);
                break;
            };
            if pool.add(server).is_err() || roster.gate.is_shut() {
                warm.place.hand_back(1);
                break;
            }
            permits.add_permits(1);
        }
        warm.place.settle();
        self.is_refilling.store(false, Ordering::Release);
    }

    /// Gives connections that nobody has wanted for so long back to bb8, which closes them in time.
    pub fn cool(&self, idle: Duration) {
        drop(self.own.warm.take_idle(idle));
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
        for _ in 0..self.own.pool.state().idle_connections {
            let Some(Ok(mut server)) = self.own.pool.get_owned().now_or_never() else { break };
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

    /// Whether its logins have the settings of those with that baseline; so it is while nobody has logged in.
    pub fn is_set_as(&self, other: &Arc<Baseline>) -> bool {
        let Some(own) = self.baseline() else { return true };
        let known = self.alike.load();
        let is_known = |(one, two): &(_, _)| Arc::ptr_eq(one, &own) && Arc::ptr_eq(two, other);
        if known.as_deref().is_some_and(is_known) {
            return true;
        }
        let is_alike = own.settings == other.settings;
        if is_alike {
            self.alike.store(Some(Arc::new((own, Arc::clone(other)))));
        }
        is_alike
    }

    /// Its connections.
    pub fn state(&self) -> PoolState {
        let active = self.own.warm.place.granted().saturating_sub(self.own.permits.available_permits() as u32);
        PoolState { connections: self.own.pool.state().connections, active, max: self.max_connections }
    }

    /// Takes a connection, in order of arrival. Connections that died while idle are noticed here, not by a statement.
    ///
    /// # Errors
    /// None became free within the acquire timeout, or the server cannot be reached.
    pub async fn acquire(&self) -> Result<Lease, Error> {
        self.acquire_by(&mut Alarm::default()).await
    }

    /// As [`Pool::acquire`], for who has an alarm that nothing else needs meanwhile. Boxed in here is what the wait for a connection that
    /// others use has no need of.
    ///
    /// # Errors
    /// As [`Pool::acquire`].
    pub async fn acquire_by(&self, alarm: &mut Alarm) -> Result<Lease, Error> {
        loop {
            if self.roster.gate.is_shut() {
                let _waiting = Waiting::new(&self.metrics);
                Box::pin(self.roster.gate.opened()).await;
            }
            let permit = match Arc::clone(&self.own.permits).try_acquire_owned() {
                Ok(permit) => {
                    self.metrics.wait.observe(Duration::ZERO);
                    permit
                }
                Err(_) => self.wait_for_permit(alarm).await?,
            };
            if self.roster.gate.is_shut() {
                // The next in line will wait at the gate, too.
                continue;
            }
            let taken = match self.take_warm(permit) {
                Ok(lease) => Some(lease),
                Err(permit) => Box::pin(self.connect(permit)).await?,
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
        let permit = Arc::clone(&self.own.permits).try_acquire_owned().ok()?;
        let lease = self.take_warm(permit).ok()?;
        self.metrics.wait.observe(Duration::ZERO);
        Some(lease)
    }

    /// A connection that nobody has to wait for: one that is idle, or a new one where no bound is reached and no other pool wants it.
    pub async fn acquire_if_free(&self) -> Option<Lease> {
        let Connections { permits, warm, .. } = &*self.own;
        if self.roster.gate.is_shut() {
            return None;
        }
        if permits.available_permits() == 0 && warm.place.take_one_more() {
            permits.add_permits(1);
            warm.place.settle();
        }
        let permit = Arc::clone(permits).try_acquire_owned().ok()?;
        self.metrics.wait.observe(Duration::ZERO);
        match self.take_warm(permit) {
            Ok(lease) => Some(lease),
            Err(permit) => Box::pin(self.connect(permit)).await.ok().flatten(),
        }
    }

    /// A connection that was given back a moment ago and has not died since.
    fn take_warm(&self, permit: OwnedSemaphorePermit) -> Result<Lease, OwnedSemaphorePermit> {
        while let Some(mut server) = self.own.warm.take() {
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
                got = self.own.pool.get_owned() => got,
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
        Lease::new(server, &self.own.warm, permit)
    }

    async fn wait_for_permit(&self, alarm: &mut Alarm) -> Result<OwnedSemaphorePermit, Error> {
        let (_waiting, since) = (Waiting::new(&self.metrics), Instant::now());
        let place = &self.own.warm.place;
        let deadline = since + self.acquire_timeout;
        let mut wait = pin!(Arc::clone(&self.own.permits).acquire_owned());
        let asked = poll_fn(|cx| Poll::Ready(place.take_or_ask(wait.as_mut(), cx))).await;
        let (mut got, _asking) = match asked {
            Ok(got) => (Some(got), None),
            Err(asking) => (None, Some(asking)),
        };
        loop {
            // What was left to somebody for a while may be had after that.
            let until = if place.is_pressed() { deadline.min(Instant::now() + LINGER) } else { deadline };
            let wait = poll_fn(|cx| match got.take().map_or_else(|| wait.as_mut().poll(cx), Poll::Ready) {
                Poll::Ready(got) => Poll::Ready(Some(got)),
                Poll::Pending => alarm.poll_at(until.into(), cx).map(|()| None),
            });
            match wait.await {
                Some(Ok(permit)) => {
                    self.metrics.wait.observe(since.elapsed());
                    return Ok(permit);
                }
                Some(Err(_)) => {
                    let message =
                        "terminating connection: its database was closed by a shutdown or a changed configuration";
                    let error = Error::new(ErrorKind::Shutdown, SqlState::ADMIN_SHUTDOWN, message);
                    return Err(error.hint("Connect again.").fatal());
                }
                None if Instant::now() >= deadline => {
                    self.metrics.wait.observe(since.elapsed());
                    return Err(self.none_became_free());
                }
                None => place.settle(),
            }
        }
    }

    fn none_became_free(&self) -> Error {
        self.metrics.acquire_timeouts.inc();
        Error::new(
            ErrorKind::Pool,
            SqlState::TOO_MANY_CONNECTIONS,
            format!("no server connection became free within {:?}", self.acquire_timeout),
        )
        .detail(self.what_is_in_use())
        .hint("Raise the bound, shorten transactions, or raise pool.acquire_timeout.")
    }

    /// Which bound keeps the pool from one more connection.
    fn what_is_in_use(&self) -> String {
        let granted = self.own.warm.place.granted();
        match self.own.warm.place.reached().first() {
            _ if granted >= self.max_connections => {
                format!("All {granted} connections to {} are in use: pool.max_connections.", self.address)
            }
            Some((Kind::Total, bound)) => {
                format!("All {bound} server connections of this pgherd are in use: limits.server_connections.")
            }
            Some((Kind::Database, bound)) => {
                let address = &self.address;
                format!(
                    "All {bound} connections of this database to {address} are in use: pool.max_database_connections."
                )
            }
            Some((Kind::User, bound)) => {
                format!("All {bound} server connections of this user are in use: user.max_server_connections.")
            }
            None => format!("The {granted} connections to {} are in use, and others are being opened.", self.address),
        }
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
        let taken_before = self.roster.totals().taken;
        match tokio::time::timeout(deadline, check).await {
            Ok(checked) => checked,
            // All were in use, and clients were served by them meanwhile.
            Err(_) if self.roster.totals().taken > taken_before => Ok(()),
            Err(_) => Err(timed_out(&format!("checking {}", self.address))),
        }
    }
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

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("address", &self.address).field("state", &self.state()).finish()
    }
}
