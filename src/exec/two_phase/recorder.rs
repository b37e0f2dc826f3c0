//! One connection to a server as the role that clients cannot use: it writes and reads decisions, and finishes prepared transactions.
//!
//! Whoever begins transactions over several servers holds, on the server that decides, an advisory lock for as long as the
//! connection lives that alone may write COMMIT there. An abort record can be forgotten once that lock is free: nobody can write
//! COMMIT beside it any more.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::Rng as _;
use tokio_postgres::error::SqlState as Code;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::gid::{PREFIX, Place, Transaction};
use crate::backend::connect::Login;
use crate::backend::control::{self, Control};
use crate::config::model::ServerAddress;
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every participant commits.
    Commit,
    /// Every participant rolls back.
    Abort,
}

impl Outcome {
    fn read(text: &str) -> Self {
        if text == "commit" { Self::Commit } else { Self::Abort }
    }
}

/// A prepared transaction whose name begins as pgherd's do.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Its name.
    pub gid: String,
    /// The role that prepared it.
    pub owner: String,
    /// Seconds since then, by the server's clock.
    pub age_s: f64,
}

/// A decision as it is written down.
#[derive(Debug, Clone)]
pub struct Record {
    /// See [`Transaction::key`].
    pub key: String,
    /// What was decided.
    pub outcome: Outcome,
    /// Who takes part.
    pub participants: Vec<Option<Place>>,
    /// Whether the connection that may write COMMIT is still there.
    pub is_alive: bool,
    /// Seconds since it was written.
    pub age_s: f64,
}

/// See the module's description.
pub struct Recorder {
    control: Control,
    /// The database that it is connected to.
    pub place: Place,
    coordinator: i64,
    next: AtomicU64,
}

const SCHEMA: &str = "\
CREATE SCHEMA IF NOT EXISTS pgherd;
CREATE TABLE IF NOT EXISTS pgherd.settled (start timestamptz PRIMARY KEY);
INSERT INTO pgherd.settled SELECT pg_catalog.pg_postmaster_start_time()
    WHERE pg_catalog.to_regclass('pgherd.decision') IS NULL ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS pgherd.decision (
    transaction text PRIMARY KEY,
    coordinator int8 NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('commit', 'abort')),
    participants text[] NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE TABLE IF NOT EXISTS pgherd.unfinished (
    latch int8 PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
REVOKE ALL ON SCHEMA pgherd FROM PUBLIC;
REVOKE ALL ON pgherd.decision, pgherd.unfinished, pgherd.settled FROM PUBLIC;";

impl Recorder {
    /// Connects, and makes the tables if they are not there.
    ///
    /// # Errors
    /// The server cannot be reached, does not allow prepared transactions, or the role may not do what it must.
    pub async fn connect(address: &ServerAddress, login: &Login) -> Result<Self, Error> {
        let control = control::connect(address, login).await?;
        prepare_session(&control.client, address).await?;
        let place = read_place(&control.client).await?;
        let coordinator = rand::rng().random_range(1..=i64::MAX);
        let lock = format!("SELECT pg_catalog.pg_advisory_lock({coordinator})");
        control.client.batch_execute(&lock).await.map_err(failed)?;
        Ok(Self { control, place, coordinator, next: AtomicU64::new(1) })
    }

    /// Whether the connection is known to have ended.
    pub fn is_closed(&self) -> bool {
        self.control.client.is_closed()
    }

    /// The connection.
    pub fn client(&self) -> &Client {
        &self.control.client
    }

    /// A new transaction that is decided here.
    pub fn begin(&self) -> Transaction {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Transaction { decider: self.place, coordinator: self.coordinator, number }
    }

    /// Writes COMMIT, unless somebody has written ABORT before.
    ///
    /// # Errors
    /// What was decided is not known.
    pub async fn commit(&self, transaction: &Transaction, participants: &[Place]) -> Result<Outcome, Error> {
        if transaction.coordinator != self.coordinator {
            return Err(Error::internal("only the connection that a transaction began on may decide to commit it"));
        }
        self.decide(transaction, "commit", participants).await
    }

    /// Writes ABORT, unless somebody has written COMMIT before.
    ///
    /// # Errors
    /// What was decided is not known.
    pub async fn abort(&self, transaction: &Transaction) -> Result<Outcome, Error> {
        self.decide(transaction, "abort", &[]).await
    }

    /// Both put a row under the same key: whoever commits first has decided.
    async fn decide(&self, transaction: &Transaction, outcome: &str, places: &[Place]) -> Result<Outcome, Error> {
        let key = transaction.key();
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        let insert = "INSERT INTO pgherd.decision (transaction, coordinator, outcome, participants) VALUES ($1, $2, $3, $4) \
                      ON CONFLICT (transaction) DO NOTHING";
        let client = &self.control.client;
        let inserted =
            client.execute(insert, &[&key, &transaction.coordinator, &outcome, &places]).await.map_err(failed)?;
        if inserted == 1 {
            return Ok(Outcome::read(outcome));
        }
        let known = "SELECT outcome FROM pgherd.decision WHERE transaction = $1";
        let row = client.query_opt(known, &[&key]).await.map_err(failed)?;
        // A row that has gone again had nothing left to say to anyone but the one who may write COMMIT, and that is not us.
        Ok(row.map_or(Outcome::Abort, |row| Outcome::read(row.get(0))))
    }

    /// What was decided, if anything was.
    ///
    /// # Errors
    /// The server failed.
    pub async fn outcome(&self, transaction: &Transaction) -> Result<Option<Outcome>, Error> {
        let known = "SELECT outcome FROM pgherd.decision WHERE transaction = $1";
        let row = self.control.client.query_opt(known, &[&transaction.key()]).await.map_err(failed)?;
        Ok(row.map(|row| Outcome::read(row.get(0))))
    }

    /// Whether the connection that may write COMMIT for that transaction is still there.
    ///
    /// # Errors
    /// The server failed.
    pub async fn is_alive(&self, coordinator: i64) -> Result<bool, Error> {
        let row = self.control.client.query_one(IS_ALIVE, &[&coordinator]).await.map_err(failed)?;
        Ok(row.get(0))
    }

    /// Forgets a decision that every participant has carried out.
    ///
    /// # Errors
    /// The server failed.
    pub async fn forget(&self, key: &str) -> Result<(), Error> {
        let sql = "DELETE FROM pgherd.decision WHERE transaction = $1";
        self.control.client.execute(sql, &[&key]).await.map(|_| ()).map_err(failed)
    }

    /// Every decision that is written down here.
    ///
    /// # Errors
    /// The server failed.
    pub async fn records(&self) -> Result<Vec<Record>, Error> {
        let sql = format!(
            "SELECT transaction, outcome, participants, \
             EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() - decided_at)::float8, ({}) FROM pgherd.decision AS d",
            IS_ALIVE.replace("$1", "d.coordinator")
        );
        let rows = self.control.client.query(&sql, &[]).await.map_err(failed)?;
        let record = |row: &tokio_postgres::Row| Record {
            key: row.get(0),
            outcome: Outcome::read(row.get(1)),
            participants: row.get::<_, Vec<String>>(2).iter().map(|text| Place::parse(text)).collect(),
            age_s: row.get(3),
            is_alive: row.get(4),
        };
        Ok(rows.iter().map(record).collect())
    }

    /// Prepared transactions of this database that a pgherd has named.
    ///
    /// # Errors
    /// The server failed.
    pub async fn prepared(&self) -> Result<Vec<Prepared>, Error> {
        let sql = "SELECT gid, owner::text, EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() - prepared)::float8 \
                   FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() \
                   AND pg_catalog.starts_with(gid, $1)";
        let rows = self.control.client.query(sql, &[&PREFIX]).await.map_err(failed)?;
        Ok(rows.iter().map(|row| Prepared { gid: row.get(0), owner: row.get(1), age_s: row.get(2) }).collect())
    }

    /// Carries a decision out for one prepared transaction. One that is gone has been finished by somebody else.
    ///
    /// # Errors
    /// The server failed, or the role may not act as the transaction's owner.
    pub async fn finish(&self, prepared: &Prepared, outcome: Outcome) -> Result<(), Error> {
        let verb = if outcome == Outcome::Commit { "COMMIT" } else { "ROLLBACK" };
        let quoted = format!("{verb} PREPARED '{}'", prepared.gid.replace('\'', "''"));
        let client = &self.control.client;
        match finished(client.batch_execute(&quoted).await) {
            Err(error) if error.code() == Some(&Code::INSUFFICIENT_PRIVILEGE) => {}
            other => return other.map_err(failed),
        }
        // Neither the owner nor a superuser: as a member of the owner's role it may act as the owner.
        let owner = prepared.owner.replace('"', "\"\"");
        client.batch_execute(&format!("SET ROLE \"{owner}\"")).await.map_err(failed)?;
        let done = finished(client.batch_execute(&quoted).await);
        client.batch_execute("RESET ROLE").await.map_err(failed)?;
        done.map_err(failed)
    }
}

/// The lock of [`Recorder::connect`], as `pg_locks` shows it.
const IS_ALIVE: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted \
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
    AND l.objsubid = 1 AND l.classid::int8 = ($1::int8 >> 32) AND l.objid::int8 = ($1::int8 & 4294967295))";

fn finished(result: Result<(), tokio_postgres::Error>) -> Result<(), tokio_postgres::Error> {
    match result {
        Err(error) if error.code() == Some(&Code::UNDEFINED_OBJECT) => Ok(()),
        other => other,
    }
}

async fn prepare_session(client: &Client, address: &ServerAddress) -> Result<(), Error> {
    // synchronous_commit stays as the server has it, but never off: a decision is one only when it is on disk.
    let session = "SET synchronous_commit = on; SET lock_timeout = '10s'; SET statement_timeout = '30s'; \
                   SET search_path = pg_catalog; SET default_transaction_isolation = 'read committed'; \
                   SET default_transaction_read_only = off";
    client.batch_execute(session).await.map_err(failed)?;
    let asked = "SELECT current_setting('max_prepared_transactions')::int4, to_regclass('pgherd.decision') IS NOT NULL \
                 AND to_regclass('pgherd.unfinished') IS NOT NULL AND to_regclass('pgherd.settled') IS NOT NULL";
    let row = client.query_one(asked, &[]).await.map_err(failed)?;
    if row.get::<_, i32>(0) == 0 {
        let message = format!("{address} has max_prepared_transactions = 0");
        return Err(Error::new(ErrorKind::Refused, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
            .hint("Set max_prepared_transactions to at least max_connections there, and restart the server."));
    }
    if !row.get::<_, bool>(1) {
        // Two pgherds may start at once: the second finds everything there.
        let lock = "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('pgherd schema', 0));";
        let made = client.batch_execute(&format!("{lock} {SCHEMA} COMMIT")).await;
        if let Err(error) = made {
            let _ = client.batch_execute("ROLLBACK").await;
            return Err(failed(error).hint("Give the role of two_phase the right to CREATE in this database."));
        }
    }
    let owned = "SELECT bool_and(c.relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)) \
                 AND (SELECT nspowner FROM pg_namespace WHERE nspname = 'pgherd') = \
                 (SELECT oid FROM pg_roles WHERE rolname = current_user) \
                 FROM pg_class AS c WHERE c.oid IN ('pgherd.decision'::regclass, 'pgherd.unfinished'::regclass, \
                 'pgherd.settled'::regclass)";
    if client.query_one(owned, &[]).await.map_err(failed)?.get::<_, Option<bool>>(0) != Some(true) {
        let message = format!("the schema pgherd on {address} belongs to another role than the one of two_phase");
        return Err(Error::new(ErrorKind::Refused, SqlState::INSUFFICIENT_PRIVILEGE, message)
            .hint("Drop it, or give it and its tables to that role."));
    }
    Ok(())
}

async fn read_place(client: &Client) -> Result<Place, Error> {
    let sql = "SELECT system_identifier::text, (SELECT oid FROM pg_database WHERE datname = current_database()) \
               FROM pg_control_system()";
    let row = client.query_one(sql, &[]).await.map_err(failed)?;
    let system: i64 = row.get::<_, &str>(0).parse().map_err(|_| Error::internal("a system identifier is a number"))?;
    Ok(Place { system: system as u64, database: row.get(1) })
}

/// The rows of a simple query, as text.
pub(super) fn rows(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

/// A statement of pgherd's own that failed.
pub(super) fn failed(error: tokio_postgres::Error) -> Error {
    let said = error.as_db_error().map_or_else(|| "the connection was lost".to_owned(), |db| db.message().to_owned());
    Error::new(
        ErrorKind::Backend,
        SqlState::CONNECTION_FAILURE,
        "cannot write or read what was decided about transactions",
    )
    .detail(said)
    .cause(error)
}
