//! A write over several shards, for this session: in the client's transaction, or in one of its own that is committed at once.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::Session;
use super::cancel::deliver;
use super::context::Target;
use super::planned::{Execution, Way};
use super::span::{latch_snapshots, parts};
use crate::backend::cancel::CancelTarget;
use crate::backend::server::ServerConn;
use crate::error::Error;
use crate::exec::fanout::Sink;
use crate::exec::key_move::{Hold, hold};
use crate::exec::relay::ClientSide;
use crate::exec::scatter::{self, Answer, Failure, Statement};
use crate::exec::two_phase::commit::command;
use crate::plan::distribute::{KeyMove, Part, Scattered, marker};
use crate::wire::frame::HEADER_LEN;
use crate::wire::writer::{self, TransactionStatus};

impl Session {
    /// Runs a write on its shards. The inner error is the ErrorResponse that the client is to get.
    pub(super) async fn scatter(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        scattered: &Scattered,
    ) -> Result<Result<(), Bytes>, Error> {
        self.spread(execution, described, Spread::Parts(scattered)).await
    }

    /// Runs what is written on several shards, in the client's transaction or in one of its own.
    pub(super) async fn spread(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        spread: Spread<'_>,
    ) -> Result<Result<(), Bytes>, Error> {
        let is_own = self.status == TransactionStatus::Idle;
        if is_own {
            self.lazy_begin = vec![Bytes::from_static(b"BEGIN")];
            self.status = TransactionStatus::InTransaction;
        }
        let outcome = match spread {
            Spread::Parts(scattered) => Box::pin(self.scatter_within(execution, scattered)).await,
            Spread::Moves(moved) => Box::pin(self.move_within(execution, moved)).await,
        };
        let told = self.told_before(execution);
        let formats = execution.bind.map_or(&[][..], |(_, bind)| bind.result_formats.as_slice());
        let outcome = outcome.and_then(|answer| answer.is_as_told(told.as_deref().filter(|_| !described), formats));
        let (answer, committed) = match (outcome, is_own) {
            (Ok(answer), false) => (answer, Ok(())),
            (Ok(answer), true) => (answer, Box::pin(self.end_everywhere(true)).await?.map(|_| ())),
            (Err(failure), is_own) => {
                if is_own {
                    // The client hears of what failed; that it was rolled back goes without saying.
                    let _ = Box::pin(self.end_everywhere(false)).await?;
                }
                return match failure {
                    Failure::Server(message, told) => {
                        self.tell_as_far(execution, told);
                        Ok(Err(message))
                    }
                    Failure::Own(error) => Err(error),
                };
            }
        };
        if is_own && matches!(spread, Spread::Parts(scattered) if scattered.is_ddl) && committed.is_ok() {
            self.learn_changed_shards().await;
        }
        if let (Spread::Parts(Scattered { is_ddl: true, .. }), Some(span)) = (spread, &mut self.span) {
            let changes = execution.facts.statements.iter().filter(|_| !is_truncate(execution.text));
            span.changed_tables.extend(changes.flat_map(|statement| statement.identifiers.iter().cloned()));
        }
        self.tell_as_far(execution, 2);
        if let Err(message) = committed {
            return Ok(Err(message));
        }
        if let (Some(told), Some(description)) = (told.filter(|_| described), &answer.description) {
            told.note_rows(&description[HEADER_LEN..]);
        }
        self.answer_scattered(execution, described, answer);
        Ok(Ok(()))
    }

    /// ParseComplete and BindComplete, as far as a shard has said them.
    pub(super) fn tell_as_far(&mut self, execution: &Execution<'_>, told: usize) {
        const COMPLETE_LEN: usize = 5;
        let awaited = execution.unanswered.len() / COMPLETE_LEN;
        // A Parse of pgherd's own comes first where the client's statement was prepared before.
        let told = told.saturating_sub(2 - awaited.min(2)).min(awaited);
        self.out().extend_from_slice(&execution.unanswered[..told * COMPLETE_LEN]);
        if let Some((_, bind)) = execution.bind.filter(|_| awaited == 2 && told == 0) {
            self.forget_statement(bind.statement);
        }
    }

    fn answer_scattered(&mut self, execution: &Execution<'_>, described: bool, answer: Answer) {
        let is_simple = execution.bind.is_none();
        let out = self.out();
        match answer.description {
            Some(description) if is_simple || described => out.extend_from_slice(&description),
            None if !is_simple && described => writer::no_data(out),
            _ => {}
        }
        answer.messages.iter().for_each(|message| out.extend_from_slice(message));
        writer::command_complete(out, &answer.tag);
    }

    async fn scatter_within(&mut self, execution: &Execution<'_>, scattered: &Scattered) -> Result<Answer, Failure> {
        let of = |part: &Part| if scattered.is_on_primary { Target::Primary } else { Target::Shard(part.shard) };
        self.assemble(scattered.parts.iter().map(of)).await.map_err(Failure::Own)?;
        if scattered.is_on_primary {
            self.note_writes_of_own(execution.facts).await.map_err(Failure::Own)?;
        } else {
            let shards = scattered.parts.iter().map(|part| part.shard);
            self.note_writes_on_shards(shards, execution.facts).map_err(Failure::Own)?;
        }
        let work = self.begin_work().await;
        let outcome = Box::pin(self.run_scattered(execution, scattered, &work)).await;
        self.cancel.slot.work_is_over();
        outcome
    }

    /// Has servers take part in the transaction, with nothing under way.
    pub(super) async fn assemble(&mut self, targets: impl Iterator<Item = Target>) -> Result<(), Error> {
        for target in targets {
            self.attach(target).await?;
            self.transaction_has_worked();
        }
        self.come_to_rest().await
    }

    /// Notes that something is about to be written on those servers, which a cancel request then ends.
    pub(super) async fn begin_work(&mut self) -> CancellationToken {
        self.written = true;
        self.settings.forget_exact();
        self.begin_reading().await
    }

    /// As [`Session::begin_work`], for what is only read.
    pub(super) async fn begin_reading(&mut self) -> CancellationToken {
        if let Some(attached) = &mut self.server {
            attached.lease.server().spill(&mut self.client.outbuf);
        }
        let work = CancellationToken::new();
        self.untie_cancel().await;
        self.cancel.slot.aim_at_work(work.clone());
        work
    }

    /// What Parse and Bind brought.
    pub(super) fn statement_of<'e>(&self, execution: &Execution<'e>) -> Statement<'e> {
        let (formats, values, result_formats) = match execution.bind {
            Some((_, bind)) => (bind.formats.as_slice(), bind.values.as_slice(), bind.result_formats.as_slice()),
            None => (&[][..], &[][..], &[][..]),
        };
        Statement {
            types: execution.types,
            formats,
            values,
            result_formats,
            standard_conforming_strings: self.conforming_strings(),
            memory_bytes: self.db.fanout.memory_bytes,
            holds: scatter::RETURNING,
        }
    }

    async fn run_scattered(
        &mut self,
        execution: &Execution<'_>,
        scattered: &Scattered,
        work: &CancellationToken,
    ) -> Result<Answer, Failure> {
        let statement = self.statement_of(execution);
        let mut all: Vec<(usize, &mut ServerConn)> =
            parts(&mut self.server, &mut self.span).into_iter().map(|part| (part.at, part.server)).collect();
        all.sort_by_key(|(at, _)| *at);
        let place = |part: &Part| if scattered.is_on_primary { 0 } else { part.shard + 1 };
        let is_wanted = |at: usize| scattered.parts.iter().any(|part| place(part) == at);
        let mut servers: Vec<&mut ServerConn> =
            all.into_iter().filter(|(at, _)| is_wanted(*at)).map(|(_, server)| server).collect();
        if servers.len() != scattered.parts.len() {
            return Err(Failure::Own(Error::internal("a shard of a write is missing")));
        }
        let reads = scattered.reads && servers.len() > 1;
        let db = Arc::clone(&self.db);
        let halt = halting(servers.iter().map(|server| Arc::clone(&server.cancel_target)).collect());
        let running = async {
            if let Some(name) = &scattered.serial {
                let turn = take_turn(&mut servers, name);
                let mut turn = std::pin::pin!(turn);
                tokio::select! {
                    biased;
                    taken = &mut turn => taken?,
                    () = work.cancelled() => tokio::join!(halt(), turn).1?,
                }
            }
            if !scattered.still.is_empty() {
                for server in &mut servers {
                    hold(server, &scattered.still, Hold::Still, work, halt()).await?;
                }
            }
            let parts = with_moments(&mut servers, scattered).await?;
            if !reads {
                return scatter::run(servers, &parts, scattered.tally, &statement, work, halt()).await;
            }
            // Whoever holds a lock on its tables may need the latch to give it free: those locks come first.
            let again = servers.iter_mut().map(|server| &mut **server).collect();
            scatter::read(again, &parts, &statement, work, halt()).await?;
            let latch = latch_snapshots(&db, parts.len(), work).await.map_err(Failure::Own)?;
            match latch {
                Some(latch) => {
                    scatter::run_under(latch, servers, &parts, scattered.tally, &statement, work, halt()).await
                }
                None => scatter::run(servers, &parts, scattered.tally, &statement, work, halt()).await,
            }
        };
        let answer = while_awaited(&mut self.client, work, running).await?;
        has_all(execution, answer)
    }

    /// The shards' catalogs are others now: what follows must be planned by them.
    pub(super) async fn learn_changed_shards(&mut self) {
        self.db.catalog_may_have_changed();
        let (Some(two_phase), Some(catalog)) = (self.db.two_phase.clone(), self.db.shard_catalog.clone()) else {
            return;
        };
        let learned = async {
            let recorder = two_phase.recorder(1).await?;
            catalog.refresh(recorder.client()).await
        };
        if let Err(error) = learned.await {
            tracing::warn!(%error, "the shards' changed catalog cannot be read yet");
        }
    }

    /// A write that commits by itself cannot stand in the middle of a pipeline, which is one transaction up to its Sync.
    pub(super) fn refuse_in_pipeline(&self, way: &Way, is_last: bool) -> Result<(), Error> {
        if matches!(way, Way::Scatter(_) | Way::InsertSelect(_) | Way::KeyMove(_) | Way::CopyIn(_) | Way::Maintain(_))
            && self.status == TransactionStatus::Idle
            && !is_last
        {
            return Err(Error::refused(
                "a write or maintenance over several servers in a pipeline with other statements",
            )
            .hint("Send BEGIN before them, or Sync behind each."));
        }
        Ok(())
    }
}

/// Whether a text is seen at once to leave tables what they are.
fn is_truncate(text: &[u8]) -> bool {
    text.trim_ascii_start().get(..8).is_some_and(|word| word.eq_ignore_ascii_case(b"truncate"))
}

/// What is written on several shards.
#[derive(Clone, Copy)]
pub(super) enum Spread<'p> {
    /// A part on each.
    Parts(&'p Scattered),
    /// Rows that move between them.
    Moves(&'p KeyMove),
}

/// Cancels what runs on these servers, as often as it is called.
pub(super) fn halting(
    targets: Vec<Arc<CancelTarget>>,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    let targets: Arc<[Arc<CancelTarget>]> = targets.into();
    move || {
        let targets = Arc::clone(&targets);
        Box::pin(async move {
            join_all(targets.iter().map(|target| deliver(target))).await;
        })
    }
}

/// Runs something to its end; when the client has gone meanwhile, it is cancelled.
pub(super) async fn while_awaited<T>(
    client: &mut ClientSide,
    work: &CancellationToken,
    running: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut running = std::pin::pin!(running);
    let gone = std::future::poll_fn(|cx| client.poll_gone(cx));
    tokio::select! {
        biased;
        answer = &mut running => answer,
        error = gone => {
            work.cancel();
            let _ = running.await;
            Err(Failure::Own(error))
        }
    }
}

/// The answer, if Execute's row limit does not cut it off.
pub(super) fn has_all(execution: &Execution<'_>, answer: Answer) -> Result<Answer, Failure> {
    let limit = usize::try_from(execution.max_rows).unwrap_or(0);
    if limit > 0 && answer.rows >= limit {
        let error = Error::refused("a row limit on RETURNING over several shards");
        return Err(Failure::Own(error.hint("Execute it without a row limit.")));
    }
    Ok(answer)
}

/// The parts with the values of defaults that are computed once, on the first server.
async fn with_moments<'s>(
    servers: &mut [&mut ServerConn],
    scattered: &'s Scattered,
) -> Result<Cow<'s, [Part]>, Failure> {
    let (false, Some(first)) = (scattered.moments.is_empty(), servers.first_mut()) else {
        return Ok(Cow::Borrowed(&scattered.parts));
    };
    let rows = first.run(&format!("SELECT {}", scattered.moments.join(", "))).await.map_err(Failure::Own)?;
    let values = rows.into_iter().next().unwrap_or_default();
    let mut parts = scattered.parts.clone();
    for (number, value) in values.into_iter().enumerate() {
        let value = value.ok_or_else(|| Failure::Own(Error::internal("a default has no value")))?;
        for part in &mut parts {
            part.sql = part.sql.replace(&marker(number), &value).into();
        }
    }
    Ok(Cow::Owned(parts))
}

/// Writes of one name come in one order: whoever has the first server's lock is the first everywhere.
pub(super) async fn take_turn(servers: &mut [&mut ServerConn], name: &str) -> Result<(), Failure> {
    let name = name.replace('\'', "''");
    let sql = format!("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pgherd write {name}', 0))");
    let of = |answer: Result<Result<(), Bytes>, Error>| match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(message)) => Err(Failure::Server(message, 2)),
        Err(error) => Err(Failure::Own(error.fatal())),
    };
    let Some((first, rest)) = servers.split_first_mut() else { return Ok(()) };
    of(command(first, &sql).await)?;
    join_all(rest.iter_mut().map(|server| command(server, &sql))).await.into_iter().try_for_each(of)
}
