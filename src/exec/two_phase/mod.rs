//! Transactions over several servers: all or nothing, whoever dies.
//!
//! Every participant that has written prepares; then the decision is written as a record on one of them; then all commit. Recovery
//! puts an abort record under the same key: whichever of the two commits is the decision. See `docs/design/two-phase-commit.md`.

pub mod commit;
mod fleet;
pub mod gid;
pub mod latch;
mod recorder;
mod recover;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;

use crate::backend::connect::Login;
use crate::config::model::{LatchScope, ServerAddress};
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;
use gid::{Place, Transaction};
use latch::Latch;
pub use recorder::{Outcome, Prepared, Recorder};
pub use recover::Report;

/// A server of a database, and the connection on which decisions are written there.
struct Server {
    address: ServerAddress,
    login: Login,
    recorder: tokio::sync::Mutex<Option<Arc<Recorder>>>,
}

/// What a database needs for transactions over its servers: the primary is server 0, the shards follow.
pub struct TwoPhase {
    servers: Vec<Server>,
    /// Keeps reads over several shards out of commits over several shards.
    pub latch: Arc<Latch>,
    /// How long a statement of a transaction over several servers waits for a lock.
    pub lock_timeout: Duration,
    /// Something was left for recovery to finish.
    pub left_over: tokio::sync::Notify,
    /// No two servers go by the same name.
    are_distinct: AtomicBool,
    /// One pass of recovery at a time.
    passing: tokio::sync::Mutex<()>,
    /// Transactions of this process that have not come by the latch yet, and so decide nothing.
    waiting: Mutex<HashSet<Transaction>>,
}

/// A transaction that decides nothing as long as this is kept.
struct Waits<'a>(&'a TwoPhase, Transaction);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().remove(&self.1);
    }
}

impl TwoPhase {
    /// Connects to nothing yet.
    pub fn new(servers: Vec<(ServerAddress, Login)>, latch: LatchScope, lock_timeout: Duration) -> Arc<Self> {
        let fleet = servers.first().filter(|_| latch == LatchScope::Fleet).cloned();
        let servers =
            servers.into_iter().map(|(address, login)| Server { address, login, recorder: Default::default() });
        let latch = Latch::new(latch != LatchScope::Off, fleet);
        Arc::new(Self {
            servers: servers.collect(),
            latch: Arc::new(latch),
            lock_timeout,
            left_over: Default::default(),
            are_distinct: AtomicBool::new(false),
            passing: Default::default(),
            waiting: Default::default(),
        })
    }

    /// Begins a transaction that waits for the latch.
    fn wait(&self, transaction: Transaction) -> Waits<'_> {
        self.waiting.lock().insert(transaction);
        Waits(self, transaction)
    }

    fn waits(&self, transaction: &Transaction) -> bool {
        self.waiting.lock().contains(transaction)
    }

    /// How many servers there are.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// The connection on which decisions are written on that server.
    ///
    /// # Errors
    /// The server cannot be reached, or is not fit for transactions over several servers.
    pub async fn recorder(&self, server: usize) -> Result<Arc<Recorder>, Error> {
        let server = self.servers.get(server).ok_or_else(|| Error::internal("there is no such server"))?;
        let mut slot = server.recorder.lock().await;
        if let Some(recorder) = slot.as_ref().filter(|recorder| !recorder.is_closed()) {
            return Ok(Arc::clone(recorder));
        }
        *slot = None;
        let recorder = Arc::new(Recorder::connect(&server.address, &server.login).await?);
        *slot = Some(Arc::clone(&recorder));
        Ok(recorder)
    }

    /// What that server's database is called in names and records.
    ///
    /// # Errors
    /// As [`TwoPhase::recorder`].
    pub async fn place(&self, server: usize) -> Result<Place, Error> {
        Ok(self.recorder(server).await?.place)
    }

    /// Makes sure, once, that a decider's name means one server: copies of a cluster have the same system identifier.
    ///
    /// # Errors
    /// Two servers cannot be told apart, or one has never been reached.
    pub async fn tell_apart(&self) -> Result<(), Error> {
        if self.are_distinct.load(Ordering::Relaxed) {
            return Ok(());
        }
        let places = join_all((0..self.servers.len()).map(|at| self.place(at))).await;
        let mut known: Vec<(Place, &ServerAddress)> = Vec::new();
        for (place, server) in places.into_iter().zip(&self.servers) {
            let place = place?;
            let is_twin = |it: &&(Place, &ServerAddress)| it.0 == place && *it.1 != server.address;
            if let Some((_, other)) = known.iter().find(is_twin) {
                let message = format!("{other} and {} have the same system identifier and database", server.address);
                return Err(Error::new(ErrorKind::Refused, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message).hint(
                    "Which of them decides about a transaction could not be told. Give each a cluster of its own by initdb, \
                     or write the address alike where it is one server.",
                ));
            }
            known.push((place, &server.address));
        }
        self.are_distinct.store(true, Ordering::Relaxed);
        Ok(())
    }
}
