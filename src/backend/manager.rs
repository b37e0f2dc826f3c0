//! Makes and judges server connections for a pool, and notes what a fresh login looks like.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bb8::ManageConnection;
use tokio::sync::watch;

use super::connect::{self, Login};
use super::reset;
use super::roster::{Arrival, Roster};
use super::server::ServerConn;
use crate::config::model::ServerAddress;
use crate::error::{Error, ErrorKind};
use crate::telemetry::metrics::PoolMetrics;
use crate::wire::sqlstate::SqlState;

/// What a fresh login to this server looks like, before any session has set anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baseline {
    /// ParameterStatus at login, in the server's order.
    pub parameters: Vec<(String, String)>,
    /// Values of the settings that decide what a query returns, by name, in order of name.
    pub settings: Vec<(String, String)>,
    /// When the server was started, as it says, for telling its processes apart after a restart.
    pub server_started: String,
    /// What ALTER ROLE and ALTER DATABASE give to this login, as one text.
    pub defaults: String,
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
pub(super) struct Manager {
    pub(super) address: ServerAddress,
    pub(super) login: Login,
    pub(super) statements: usize,
    pub(super) baseline: Arc<ArcSwapOption<Baseline>>,
    pub(super) metrics: PoolMetrics,
    pub(super) observer: Option<Arc<dyn ProcessObserver>>,
    pub(super) roster: Arc<Roster>,
    /// Why the last attempt to connect failed.
    pub(super) failed: watch::Sender<Option<Error>>,
}

impl Manager {
    /// Also tells whether ALTER ROLE or ALTER DATABASE has given this connection other defaults than those before it have.
    async fn open(&self) -> Result<(Box<ServerConn>, bool), Error> {
        let connected = connect::connect(&self.address, &self.login).await?;
        let mut server = Box::new(ServerConn::new(connected, &self.address, &self.login.tls, self.statements));
        let read = tokio::time::timeout(self.login.connect_timeout, reset::read_baseline(&mut server)).await;
        let baseline = read.map_err(|_| timed_out("reading a new server connection's settings"))??;
        let mut differs = false;
        let known = self.baseline.load_full();
        if known.as_deref() != Some(&baseline) {
            // Of servers that take turns behind one name each may have its own.
            let before = known.filter(|known| known.server_started == baseline.server_started);
            differs = before.is_some_and(|known| known.defaults != baseline.defaults);
            self.baseline.store(Some(Arc::new(baseline)));
        }
        Ok((server, differs))
    }
}

impl ManageConnection for Manager {
    // Boxed, because bb8 moves connections in and out of its queue by value.
    type Connection = Box<ServerConn>;
    type Error = Error;

    async fn connect(&self) -> Result<Box<ServerConn>, Error> {
        let mut epoch = self.roster.gate.epoch();
        let _logging_in = self.roster.logs_in();
        if self.roster.gate.wants_none() {
            return Err(not_now());
        }
        let (mut server, differs) = self.open().await.inspect_err(|error| {
            self.metrics.connect_failures.inc();
            // bb8 would let those who wait for a connection wait until their time is up.
            self.failed.send_replace(Some(error.again()));
        })?;
        self.metrics.connects.inc();
        if differs && self.roster.gate.epoch() == epoch {
            // A session must not find other defaults from one transaction to the next: the older connections go.
            self.roster.gate.next_epoch();
            epoch = self.roster.gate.epoch();
        }
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

/// A connection that is not made, or not kept, because of a PAUSE, KILL or RECONNECT.
fn not_now() -> Error {
    let message = "the database was paused, killed or reconnected meanwhile";
    Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT_NOW, message)
}

pub(super) fn timed_out(doing: &str) -> Error {
    Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, format!("timeout while {doing}"))
        .hint("See that the server is up and reachable from pgherd, or raise pool.connect_timeout.")
}
