//! The end of a transaction over several servers: one writer commits plainly, several by two-phase commit.

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Duration, Instant};

use super::TwoPhase;
use super::gid::{Place, Transaction};
use super::latch::{Guard, Kind};
use super::recorder::{Outcome, Recorder};
use crate::backend::server::ServerConn;
use crate::error::{Error, ErrorKind};
use crate::wire::backend::ErrorFields;
use crate::wire::frame::HEADER_LEN;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// How long a client waits until a participant that was lost has carried out what was decided.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(100);

/// One server's part of a transaction.
pub struct Part<'a> {
    /// Its connection, in the transaction, with nothing under way.
    pub server: &'a mut ServerConn,
    /// Which server of [`TwoPhase`].
    pub at: usize,
}

/// How a transaction ended.
#[derive(Debug)]
pub enum Ended {
    /// Everywhere.
    Committed,
    /// Nowhere; the ErrorResponse of the server that would not.
    RolledBack(Bytes),
}

/// Runs one statement of pgherd's own. `Err` inside is the server's ErrorResponse.
///
/// # Errors
/// The connection was lost.
pub async fn command(server: &mut ServerConn, text: &str) -> Result<Result<(), Bytes>, Error> {
    server.take_over();
    server.unnamed = None;
    writer::query(server.queue(), text.as_bytes());
    server.flush().await?;
    let mut outcome = Ok(());
    loop {
        let frame = server.read_frame().await?;
        server.note(&frame);
        match frame.tag() {
            b'E' => outcome = Err(frame.bytes),
            b'Z' => break,
            _ => {}
        }
    }
    server.hand_back();
    Ok(outcome)
}

/// Runs a statement on all parts at once.
pub async fn everywhere(parts: &mut [Part<'_>], text: &str) -> Vec<Result<Result<(), Bytes>, Error>> {
    join_all(parts.iter_mut().map(|part| command(part.server, text))).await
}

/// Rolls back on all parts; who cannot be told rolls back when its connection is closed.
pub async fn roll_back(parts: &mut [Part<'_>]) {
    let answers = everywhere(parts, "ROLLBACK").await;
    for (part, answer) in parts.iter_mut().zip(answers) {
        if !matches!(answer, Ok(Ok(()))) {
            part.server.mark_broken();
        }
    }
}

/// Commits on all parts or on none. When it returns no part is in a transaction, or its connection is broken.
///
/// # Errors
/// The transaction is rolled back; with SQLSTATE 08007 what became of it is not known or not visible everywhere yet.
pub async fn commit(two_phase: Option<&TwoPhase>, parts: &mut [Part<'_>]) -> Result<Ended, Error> {
    let writers = match find_writers(parts).await {
        Ok(writers) => writers,
        Err(error) => {
            roll_back(parts).await;
            return Err(error);
        }
    };
    // Those that have written first.
    let mut at = 0;
    for (index, writes) in writers.iter().enumerate() {
        if *writes {
            parts.swap(at, index);
            at += 1;
        }
    }
    let (writers, readers) = parts.split_at_mut(at);
    if let [] | [_] = writers {
        return commit_plainly(writers, readers).await;
    }
    let prepared = match two_phase {
        Some(two_phase) => begin(two_phase, writers).await,
        None => Err(no_two_phase()),
    };
    let (two_phase, recorder, transaction, places) = match (two_phase, prepared) {
        (Some(two_phase), Ok((recorder, transaction, places))) => (two_phase, recorder, transaction, places),
        (_, Err(error)) => {
            roll_back(parts).await;
            return Err(error);
        }
        (None, Ok(_)) => return Err(Error::internal("a transaction without its records")),
    };
    let run = Run { two_phase, recorder: &recorder, transaction, places };
    let ended = run.carry_out(writers).await;
    finish_readers(readers, &ended).await;
    if matches!(ended, Ok(Ended::Committed)) {
        let key = transaction.key();
        // The client need not wait for that.
        tokio::spawn(async move {
            if let Err(error) = recorder.forget(&key).await {
                tracing::debug!(%error, "a decision is left for recovery to forget");
            }
        });
    }
    ended
}

fn no_two_phase() -> Error {
    Error::refused("a transaction that has written on several servers cannot be committed without two-phase commit")
        .hint("Configure database.two_phase, or let each transaction write on one shard.")
}

/// Which parts have a transaction id: they have written, or locked rows.
async fn find_writers(parts: &mut [Part<'_>]) -> Result<Vec<bool>, Error> {
    let sql = "SELECT pg_catalog.txid_current_if_assigned() IS NOT NULL";
    let answers = join_all(parts.iter_mut().map(|part| part.server.run(sql))).await;
    // Nothing has been committed yet, so what is lost with its connection is certain.
    let lost = |cause: Error| {
        Error::new(ErrorKind::Backend, SqlState::TRANSACTION_ROLLBACK, "a server of the transaction was lost before COMMIT")
            .detail("The transaction has been rolled back on all servers.")
            .hint("Repeat it. A server that is not at hand is idle: idle_in_transaction_session_timeout must leave it the time.")
            .cause(cause)
    };
    answers
        .into_iter()
        .map(|answer| {
            Ok(answer.map_err(lost)?.first().and_then(|row| row.first().cloned().flatten()).as_deref() != Some("f"))
        })
        .collect()
}

async fn commit_plainly(writers: &mut [Part<'_>], readers: &mut [Part<'_>]) -> Result<Ended, Error> {
    let outcome = match writers.first_mut() {
        Some(writer) => command(writer.server, "COMMIT").await,
        None => Ok(Ok(())),
    };
    let ended = match outcome {
        Ok(Ok(())) => Ok(Ended::Committed),
        Ok(Err(message)) => Ok(Ended::RolledBack(message)),
        Err(error) => {
            let message = "a shard was lost while it committed";
            Err(Error::new(ErrorKind::Backend, SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
                .detail("Whether the transaction was committed is not known.")
                .cause(error)
                .fatal())
        }
    };
    finish_readers(readers, &ended).await;
    ended
}

/// Who has not written has no rows to lose, but settings and notifications.
async fn finish_readers(readers: &mut [Part<'_>], ended: &Result<Ended, Error>) {
    if !matches!(ended, Ok(Ended::Committed)) {
        return roll_back(readers).await;
    }
    let answers = everywhere(readers, "COMMIT").await;
    for (part, answer) in readers.iter_mut().zip(answers) {
        if !matches!(answer, Ok(Ok(()))) {
            part.server.mark_broken();
        }
    }
}

/// Whether nothing is prepared under that name any more.
fn is_over(answer: &Result<Result<(), Bytes>, Error>) -> bool {
    match answer {
        Ok(Ok(())) => true,
        // It was never prepared, or somebody else was faster.
        Ok(Err(message)) => ErrorFields::parse(message.get(HEADER_LEN..).unwrap_or_default())
            .is_ok_and(|fields| fields.to_server_error().code == SqlState::UNDEFINED_OBJECT.code()),
        Err(_) => false,
    }
}

async fn begin(
    two_phase: &TwoPhase,
    writers: &[Part<'_>],
) -> Result<(std::sync::Arc<Recorder>, Transaction, Vec<Place>), Error> {
    two_phase.tell_apart().await?;
    let decider = writers.first().map_or(0, |part| part.at);
    let recorder = two_phase.recorder(decider).await?;
    let places = join_all(writers.iter().map(|part| two_phase.place(part.at))).await;
    let places: Result<Vec<Place>, Error> = places.into_iter().collect();
    let transaction = recorder.begin();
    Ok((recorder, transaction, places?))
}

/// One two-phase commit.
struct Run<'a> {
    two_phase: &'a TwoPhase,
    recorder: &'a Recorder,
    transaction: Transaction,
    places: Vec<Place>,
}

impl Run<'_> {
    async fn carry_out(&self, writers: &mut [Part<'_>]) -> Result<Ended, Error> {
        let waits = self.two_phase.wait(self.transaction);
        let answers = self.each(writers, "PREPARE TRANSACTION").await;
        if answers.iter().any(|answer| !matches!(answer, Ok(Ok(())))) {
            return self.give_up(writers, answers).await;
        }
        let mut guard = match self.enter().await {
            Ok(guard) => guard,
            Err(error) => {
                self.undo(writers).await;
                return Err(error);
            }
        };
        drop(waits);
        guard.decides();
        match self.decide().await {
            Ok(Outcome::Commit) => {}
            Ok(Outcome::Abort) => {
                guard.is_finished();
                self.undo(writers).await;
                let message = "the transaction over several shards was rolled back before it was committed";
                return Err(Error::new(ErrorKind::Backend, SqlState::TRANSACTION_ROLLBACK, message)
                    .detail(
                        "Its commit took longer than a minute, or somebody else put an end to what a crash had left.",
                    )
                    .hint("Run the transaction again."));
            }
            Err(error) => {
                writers.iter_mut().for_each(|part| part.server.mark_broken());
                self.two_phase.left_over.notify_one();
                let message = "whether a transaction over several shards was committed is not known";
                return Err(Error::new(ErrorKind::Backend, SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
                    .detail("It is committed on all of its shards, or on none.")
                    .cause(error)
                    .fatal());
            }
        }
        let answers = self.each(writers, "COMMIT PREPARED").await;
        if answers.iter().all(|answer| matches!(answer, Ok(Ok(())))) {
            guard.is_finished();
            drop(guard);
            return Ok(Ended::Committed);
        }
        drop(guard);
        self.wait_until_finished(writers, answers).await
    }

    async fn enter(&self) -> Result<Guard, Error> {
        let entered = tokio::time::timeout(self.two_phase.lock_timeout, self.two_phase.enter(Kind::Commit)).await;
        let guard = entered.map_err(|_| {
            let message = "reads over several shards did not give the latch over commits free in time";
            Error::new(ErrorKind::Cancelled, SqlState::LOCK_NOT_AVAILABLE, message)
        })??;
        guard.check().await?;
        Ok(guard)
    }

    async fn each(&self, writers: &mut [Part<'_>], verb: &str) -> Vec<Result<Result<(), Bytes>, Error>> {
        let one = async |(part, it): (usize, &mut Part<'_>)| {
            command(it.server, &format!("{verb} '{}'", self.transaction.gid(part))).await
        };
        join_all(writers.iter_mut().enumerate().map(one)).await
    }

    /// Somebody did not prepare: nobody commits.
    async fn give_up(
        &self,
        writers: &mut [Part<'_>],
        answers: Vec<Result<Result<(), Bytes>, Error>>,
    ) -> Result<Ended, Error> {
        self.undo(writers).await;
        let mut told = None;
        for answer in answers {
            match answer {
                Ok(Ok(())) => {}
                Ok(Err(message)) => told = told.or(Some(Ok(Ended::RolledBack(message)))),
                Err(error) => {
                    let message = "a shard was lost while the transaction was being prepared: it is rolled back";
                    let lost = Error::new(ErrorKind::Backend, SqlState::CONNECTION_FAILURE, message).cause(error);
                    told = told.or(Some(Err(lost)));
                }
            }
        }
        told.unwrap_or_else(|| Err(Error::internal("a transaction was given up for nothing")))
    }

    /// Nothing was decided, or to abort: whoever can be told is told, the others learn it from recovery.
    async fn undo(&self, writers: &mut [Part<'_>]) {
        let answers = self.each(writers, "ROLLBACK PREPARED").await;
        if !answers.iter().all(is_over) {
            // So that recovery need not wait whether somebody still decides.
            let _ = self.recorder.abort(&self.transaction).await;
            self.two_phase.left_over.notify_one();
        }
        writers
            .iter_mut()
            .zip(answers)
            .filter(|(_, answer)| answer.is_err())
            .for_each(|(part, _)| part.server.mark_broken());
    }

    /// Writes COMMIT. If the connection is lost over it, another connection finds out what was written, and writes ABORT if nothing was.
    async fn decide(&self) -> Result<Outcome, Error> {
        let mut failure = match self.recorder.commit(&self.transaction, &self.places).await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            tokio::time::sleep(AGAIN).await;
            let asked = async {
                let decider = (0..self.two_phase.servers()).map(|at| self.two_phase.recorder(at));
                let reached = join_all(decider).await.into_iter().flatten();
                let mut decider = reached.filter(|recorder| recorder.place == self.transaction.decider);
                let decider = decider.next().ok_or_else(|| Error::internal("the decider cannot be reached"))?;
                let outcome = decider.abort(&self.transaction).await?;
                // COMMIT may have been written, carried out and forgotten in the meantime, but not while a part is prepared.
                let is_prepared = decider.prepared().await?.iter().any(|it| it.gid == self.transaction.gid(0));
                if outcome == Outcome::Abort && !is_prepared {
                    return Err(Error::internal("somebody else has finished the transaction and forgotten how"));
                }
                Ok(outcome)
            };
            match asked.await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// It is committed; the client hears of it when it is so everywhere.
    async fn wait_until_finished(
        &self,
        writers: &mut [Part<'_>],
        answers: Vec<Result<Result<(), Bytes>, Error>>,
    ) -> Result<Ended, Error> {
        // Without the decider nobody else can be finished.
        let mut missing: Vec<usize> = writers.first().map(|part| part.at).into_iter().collect();
        for (part, answer) in writers.iter_mut().zip(answers) {
            if !matches!(answer, Ok(Ok(()))) {
                part.server.mark_broken();
                missing.push(part.at);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.two_phase.recover().await;
            if !report.failures.iter().any(|(at, _)| missing.contains(at)) {
                return Ok(Ended::Committed);
            }
            if Instant::now() >= deadline {
                self.two_phase.left_over.notify_one();
                let message = "the transaction is committed, but a shard that was lost does not show it yet";
                return Err(Error::new(ErrorKind::Backend, SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
                    .detail("It is finished there as soon as the shard can be reached.")
                    .fatal());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
