//! The latch over the fleet: an advisory lock on the primary, with a mark for a commit that was cut short.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;
use tokio_postgres::error::SqlState as Code;

use super::latch::{Kind, Suspicion};
use super::recorder::{Recorder, failed, rows};
use crate::backend::connect::Login;
use crate::config::model::ServerAddress;
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// The advisory lock's key.
const LOCK: &str = "pg_catalog.hashtextextended('pgherd latch', 0)";

/// How long the lock's connection may take to say that it is still there.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// The connection that holds the lock for all of this pgherd's sessions.
pub(super) struct Fleet {
    address: ServerAddress,
    login: Login,
    /// Empty while the lock is being taken or given back, so that a connection on which that was cut short is not used again.
    connection: Mutex<Option<Arc<Held>>>,
    /// Since which start of the primary everything that was cut short has been finished.
    clean_since: Mutex<Option<String>>,
}

struct Held {
    recorder: Recorder,
    /// Names this connection's mark.
    id: AtomicI64,
}

impl Fleet {
    pub(super) fn new(address: ServerAddress, login: Login) -> Self {
        Self { address, login, connection: Default::default(), clean_since: Mutex::default() }
    }

    /// Takes the lock. Tells a read if a commit may have been cut short.
    pub(super) async fn lock(&self, kind: Kind) -> Result<Option<Suspicion>, Error> {
        let known = self.connection.lock().take().filter(|held| !held.recorder.is_closed());
        let held = match known {
            Some(held) => held,
            None => Arc::new(self.connect().await?),
        };
        let sql = match kind {
            Kind::Read => format!(
                "SELECT pg_catalog.pg_advisory_lock_shared({LOCK}); \
                 SELECT (SELECT pg_catalog.count(*) FROM pgherd.unfinished), pg_catalog.pg_postmaster_start_time(), \
                 EXISTS (SELECT FROM pgherd.settled WHERE start = pg_catalog.pg_postmaster_start_time())"
            ),
            // Without waiting for the disk: what a crash of the primary takes with it is told by its start.
            Kind::Commit => format!(
                "SET synchronous_commit = off; SELECT pg_catalog.pg_advisory_lock({LOCK}); \
                 INSERT INTO pgherd.unfinished (latch) VALUES ({}) ON CONFLICT DO NOTHING",
                held.id.load(Ordering::Relaxed)
            ),
        };
        let messages = held.recorder.client().simple_query(&sql).await.map_err(not_taken)?;
        *self.connection.lock() = Some(held);
        let last = rows(&messages).pop().unwrap_or_default();
        match (kind, last.as_slice()) {
            (Kind::Commit, _) => Ok(None),
            (Kind::Read, [Some(marks), Some(start), Some(settled)]) => {
                let is_clean = marks == "0" && self.clean_since.lock().as_ref() == Some(start);
                let is_settled = marks == "0" && settled == "t";
                Ok((!is_clean).then(|| Suspicion { start: start.clone(), is_settled }))
            }
            _ => Err(Error::internal("the latch's answer cannot be read")),
        }
    }

    /// Everything that had been cut short is finished. Called while the lock is held shared: no commit is under way.
    pub(super) async fn note_clean(&self, start: String) -> Result<(), Error> {
        let Some(held) = self.connection.lock().clone() else { return Err(lost()) };
        let settled = "DELETE FROM pgherd.unfinished; \
                       DELETE FROM pgherd.settled WHERE start <> pg_catalog.pg_postmaster_start_time(); \
                       INSERT INTO pgherd.settled VALUES (pg_catalog.pg_postmaster_start_time()) ON CONFLICT DO NOTHING";
        held.recorder.client().batch_execute(settled).await.map_err(failed)?;
        *self.clean_since.lock() = Some(start);
        Ok(())
    }

    /// Asks on the lock's connection whether it is still there: then the lock was held until now. What is asked is on its way when
    /// this has been polled once, before anything that is sent on that connection later.
    ///
    /// # Errors
    /// It is not, or does not answer.
    pub(super) async fn check(&self) -> Result<(), Error> {
        let held = self.connection.lock().clone();
        let held = held.filter(|held| !held.recorder.is_closed()).ok_or_else(lost)?;
        let answer = tokio::time::timeout(CHECK_TIMEOUT, held.recorder.client().batch_execute("SELECT 1")).await;
        match answer {
            Ok(answer) => answer.map_err(|error| lost().cause(error)),
            Err(_) => {
                // Nobody is to rely on it any more.
                self.connection.lock().take_if(|known| Arc::ptr_eq(known, &held));
                Err(lost())
            }
        }
    }

    /// Gives the lock back; the mark stays if something was not finished.
    pub(super) async fn unlock(&self, kind: Kind, is_finished: bool) {
        let Some(held) = self.connection.lock().take() else { return };
        let client = held.recorder.client();
        let given_back = match kind {
            Kind::Read => client.batch_execute(&format!("SELECT pg_catalog.pg_advisory_unlock_shared({LOCK})")).await,
            Kind::Commit => {
                let mark = format!("DELETE FROM pgherd.unfinished WHERE latch = {}", held.id.load(Ordering::Relaxed));
                let mark = if is_finished { mark } else { String::new() };
                let unlock = format!("SELECT pg_catalog.pg_advisory_unlock({LOCK})");
                // Two statements in one flight: the mark is gone before anybody can look for it.
                let (unmarked, unlocked) = tokio::join!(client.batch_execute(&mark), client.batch_execute(&unlock));
                unmarked.and(unlocked)
            }
        };
        match given_back {
            Ok(()) => {
                if !is_finished {
                    // The mark that was left is not this connection's to delete any more.
                    held.id.store(rand::rng().random(), Ordering::Relaxed);
                }
                *self.connection.lock() = Some(held);
            }
            Err(error) => tracing::warn!(%error, "the latch's connection was lost"),
        }
    }

    async fn connect(&self) -> Result<Held, Error> {
        let recorder = Recorder::connect(&self.address, &self.login).await?;
        Ok(Held { recorder, id: AtomicI64::new(rand::rng().random()) })
    }
}

fn lost() -> Error {
    let message = "the connection to the primary that keeps reads and commits over several shards apart was lost";
    Error::new(ErrorKind::Backend, SqlState::SERIALIZATION_FAILURE, message).hint("Try again.")
}

fn not_taken(error: tokio_postgres::Error) -> Error {
    if error.code() == Some(&Code::LOCK_NOT_AVAILABLE) {
        let message = "another pgherd did not give the latch over commits free in time";
        return Error::new(ErrorKind::Cancelled, SqlState::LOCK_NOT_AVAILABLE, message).cause(error);
    }
    failed(error)
}
