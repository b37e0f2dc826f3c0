//! Asking PostgreSQL what may still be committed: by server processes that are there, and, where pgherd prepares transactions, by
//! whoever ends those.

use std::collections::{HashMap, HashSet};
use std::sync::Weak;

use parking_lot::Mutex;
use tokio_postgres::Client;

use super::House;
use super::homes::target_at;
use super::upkeep::connect_control;
use crate::backend::control::Control;
use crate::cache::{BackendChecker, BackendId, OpenTransaction};
use crate::error::Error;

/// Server processes that are gone, with what was prepared then; more are forgotten, and asked about anew.
const GONE: usize = 10_000;

/// Asks the server at one place.
pub(super) struct Checker {
    /// For logging in.
    house: Weak<House>,
    /// The name of a database that has that server.
    database: String,
    place: String,
    /// Whether transactions may be prepared there, which their server processes need not outlive.
    prepares: bool,
    /// What was prepared when a server process was found to be gone, as far as it is still there.
    gone: Mutex<HashMap<BackendId, HashSet<OpenTransaction>>>,
}

impl Checker {
    pub(super) fn new(house: Weak<House>, database: String, place: String, prepares: bool) -> Self {
        Self { house, database, place, prepares, gone: Mutex::default() }
    }

    async fn connect(&self) -> Result<Control, Error> {
        let gone = || Error::internal("the database is gone");
        let house = self.house.upgrade().ok_or_else(gone)?;
        let database = house.databases.get(&self.database).ok_or_else(gone)?;
        let target = target_at(&database, &self.place).ok_or_else(gone)?;
        connect_control(&house, &database, target).await
    }

    /// Whether all that was prepared when that process was first found to be gone has ended. `now` was asked for after it was.
    fn has_left_nothing(&self, backend: BackendId, now: Vec<OpenTransaction>) -> bool {
        let now: HashSet<OpenTransaction> = now.into_iter().collect();
        let mut gone = self.gone.lock();
        if gone.len() >= GONE && !gone.contains_key(&backend) {
            gone.clear();
        }
        let left = gone.entry(backend).or_insert_with(|| now.clone());
        left.retain(|it| now.contains(it));
        // One that has left nothing is not forgotten: the next look would begin anew.
        left.is_empty()
    }
}

#[async_trait::async_trait]
impl BackendChecker for Checker {
    async fn backend_gone(&self, backend: BackendId) -> Result<bool, Error> {
        let control = self.connect().await?;
        let sql = "SELECT pg_catalog.floor(EXTRACT(EPOCH FROM backend_start) * 1000000)::pg_catalog.int8 \
                   FROM pg_catalog.pg_stat_activity WHERE pid = $1";
        let failed = |error| Error::internal("cannot ask for a server process").cause(error);
        let rows = control.client.query(sql, &[&backend.pid]).await.map_err(failed)?;
        // A start that may not be seen is not known to be another's.
        let started: Option<Option<i64>> = rows.first().map(|row| row.try_get(0).unwrap_or(None));
        let is_gone = match started {
            None => true,
            Some(None) => false,
            Some(Some(start_us)) => start_us != backend.start_us,
        };
        if !is_gone || !self.prepares {
            return Ok(is_gone);
        }
        // Asked after: what it has prepared was there before it went.
        let now = prepared(&control.client).await?;
        Ok(self.has_left_nothing(backend, now))
    }

    async fn open_transactions(&self) -> Result<Vec<OpenTransaction>, Error> {
        let control = self.connect().await?;
        let mut open = running(&control.client).await?;
        if self.prepares {
            // Asked after: one that is being prepared stands in the one list or in the other.
            open.extend(prepared(&control.client).await?);
        }
        Ok(open)
    }
}

/// What clients run in the database of that connection.
async fn running(client: &Client) -> Result<Vec<OpenTransaction>, Error> {
    // Autovacuum has no user. Whoever is in a transaction holds the lock of its virtual id.
    let sql = "SELECT l.pid, l.virtualtransaction FROM pg_catalog.pg_locks l \
               JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
               WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND a.usesysid IS NOT NULL \
               AND a.datname = pg_catalog.current_database() AND l.pid <> pg_catalog.pg_backend_pid()";
    ask(client, sql).await
}

/// What is prepared there.
async fn prepared(client: &Client) -> Result<Vec<OpenTransaction>, Error> {
    let sql = "SELECT 0, pg_catalog.concat(transaction, ' ', gid) FROM pg_catalog.pg_prepared_xacts \
               WHERE database = pg_catalog.current_database()";
    ask(client, sql).await
}

async fn ask(client: &Client, sql: &str) -> Result<Vec<OpenTransaction>, Error> {
    let failed = |error| Error::internal("cannot ask for open transactions").cause(error);
    let rows = client.query(sql, &[]).await.map_err(failed)?;
    let transaction = |row: &tokio_postgres::Row| {
        Ok(OpenTransaction { pid: row.try_get(0).map_err(failed)?, name: row.try_get(1).map_err(failed)? })
    };
    rows.iter().map(transaction).collect()
}

/// What was under way on a server when this pgherd became the only one there: of one that was killed, some may be prepared, and be
/// committed by recovery long after.
#[derive(Debug, Default)]
pub(super) struct Predecessors {
    left: Option<HashSet<OpenTransaction>>,
}

impl Predecessors {
    /// Whether all of it has ended by now. To be asked again until it has.
    pub(super) async fn have_ended(&mut self, client: &Client) -> Result<bool, Error> {
        if self.left.as_ref().is_some_and(HashSet::is_empty) {
            return Ok(true);
        }
        let mut open: HashSet<OpenTransaction> = running(client).await?.into_iter().collect();
        open.extend(prepared(client).await?);
        if let Some(before) = &self.left {
            // One that was running at the last look may be prepared by now.
            let may_be_prepared = !before.iter().all(OpenTransaction::is_prepared);
            open.retain(|it| before.contains(it) || (may_be_prepared && it.is_prepared()));
        }
        let has_ended = open.is_empty();
        self.left = Some(open);
        Ok(has_ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(name: &str) -> OpenTransaction {
        OpenTransaction { pid: 0, name: name.into() }
    }

    #[test]
    fn a_process_is_gone_when_what_was_prepared_then_has_ended() {
        let checker = Checker::new(Weak::new(), "app".into(), "place".into(), true);
        let backend = BackendId { pid: 7, start_us: 1 };
        assert!(!checker.has_left_nothing(backend, vec![transaction("a"), transaction("b")]));
        assert!(!checker.has_left_nothing(backend, vec![transaction("b"), transaction("later")]));
        assert!(checker.has_left_nothing(backend, vec![transaction("later")]), "who came later is no business of it");
        assert!(checker.has_left_nothing(backend, vec![transaction("still later")]), "it stays gone");
        assert!(checker.has_left_nothing(BackendId { pid: 8, start_us: 1 }, Vec::new()));
    }
}
