//! Reads over several shards within a transaction that has written: its own server connections are the legs, so that each sees what was
//! written there. A shard that it has not reached has nothing of its own, and is read beside it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::cancel::deliver;
use super::context::Target;
use super::fan_out::{LeasedLeg, Ran, release};
use super::insert_select::{Unread, collected};
use super::planned::Execution;
use super::portals::{Halt, rows_of};
use super::span::{Span, parts};
use super::{Attached, Session};
use crate::backend::cancel::CancelTarget;
use crate::backend::server::ServerConn;
use crate::config::model::Table;
use crate::error::Error;
use crate::exec::fanout::{self, Gate, Leg, Outcome, Run, Sink};
use crate::exec::insert_select::Collected;
use crate::exec::two_phase::TwoPhase;
use crate::plan::distribute::Streamed;
use crate::plan::rules::Transaction;
use crate::plan::{Plan, Refusal};
use crate::sql::facts::{Facts, Name};
use crate::sql::lexer::Lexer;
use crate::wire::frame::{Frame, Frames};
use crate::wire::writer::TransactionStatus;

/// A leg of a read within a transaction.
enum OwnLeg<'s> {
    /// A server of the transaction.
    Within(&'s mut ServerConn, Arc<CancelTarget>),
    /// A connection to a shard that the transaction has not reached.
    Beside(&'s mut LeasedLeg),
}

impl<'s> OwnLeg<'s> {
    fn taken(server: &'s mut ServerConn) -> Self {
        server.unnamed = None;
        server.take_over();
        let cancel = Arc::clone(&server.cancel_target);
        Self::Within(server, cancel)
    }

    fn server(&mut self) -> &mut ServerConn {
        match self {
            Self::Within(server, _) => server,
            Self::Beside(leg) => leg.attached.lease.server(),
        }
    }
}

impl Leg for OwnLeg<'_> {
    fn is_within(&self) -> bool {
        matches!(self, Self::Within(..))
    }

    fn queue(&mut self) -> &mut BytesMut {
        self.server().queue()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.server().poll_flush(cx)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Error>> {
        self.server().poll_frame(cx)
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>, tag: u8) -> Poll<Result<Frames, Error>> {
        self.server().poll_frames(cx, tag)
    }

    fn cancel(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let target = match self {
            Self::Within(_, target) => Arc::clone(target),
            Self::Beside(leg) => Arc::clone(&leg.cancel),
        };
        Box::pin(async move { deliver(&target).await })
    }
}

/// Connections to shards that a transaction has not reached, by shard.
type Beside = Vec<(usize, LeasedLeg)>;

/// How such a read ended.
struct Read {
    outcome: Outcome,
    timed_out: bool,
    /// A server of the transaction is lost, and the transaction with it.
    is_lost: bool,
}

impl Session {
    /// Rows are placed by the tables' columns as they were when the catalog was read.
    ///
    /// # Errors
    /// The transaction has changed the table that rows are to be inserted into, or made one that no catalog knows yet.
    pub(super) fn check_tables(&self, execution: &Execution<'_>, plan: &Plan) -> Result<(), Error> {
        let Some(span) = self.span.as_ref().filter(|span| !span.changed_tables.is_empty()) else { return Ok(()) };
        let is_on_shards = matches!(
            plan,
            Plan::Shard { .. } | Plan::Scatter(_) | Plan::InsertSelect(_) | Plan::CopyIn(_) | Plan::KeyMove(_)
        );
        let mut written = execution.facts.statements.iter().flat_map(|statement| &statement.writes);
        if is_on_shards
            && (matches!(plan, Plan::KeyMove(_)) || !is_update_or_delete(execution.text))
            && written.any(|name| span.changed_tables.contains(&name.name))
        {
            return Err(Error::refused(
                "INSERT, COPY, MERGE and changes of the shard key of a table that the transaction has changed",
            )
            .hint("Commit the change first."));
        }
        let is_made = |name: &Name| {
            let is_it = |table: &Table| {
                *table.name == *name.name && name.schema.as_deref().is_none_or(|schema| *schema == *table.schema)
            };
            span.changed_tables.contains(&name.name) && self.db.config.tables.iter().any(is_it)
        };
        let mut named = execution.facts.statements.iter().flat_map(|it| it.reads.iter().chain(&it.writes));
        if matches!(plan, Plan::Primary(_)) && named.any(is_made) {
            return Err(Error::refused("a table of the shards that the transaction has made").hint("Commit it first."));
        }
        Ok(())
    }

    /// Whether a read over several shards must be the transaction's own.
    pub(super) fn reads_within(&self) -> bool {
        self.status == TransactionStatus::InTransaction && self.transaction_view() == Transaction::Written
    }

    /// The plan, refused where it must be carried out within the transaction and cannot be.
    pub(super) fn judged_within(&self, plan: Plan) -> Plan {
        let refusal = match plan {
            Plan::FanOut(_) | Plan::InsertSelect(_) => self.check_own_reads().err(),
            _ => None,
        };
        refusal.map_or(plan, Plan::Refuse)
    }

    /// Whether the transaction's own servers can read for it, where they must.
    ///
    /// # Errors
    /// It has changed tables, which are planned for as they were, or how it stands is not certain.
    pub(super) fn check_own_reads(&self) -> Result<(), Refusal> {
        let refused = |what: &str, hint: &str| {
            let message = format!("a statement over several shards {what}");
            Err(Refusal { code: "own-writes", message, hint: hint.into() })
        };
        if self.transaction_view() != Transaction::Written {
            return Ok(());
        }
        if !self.reads_within() || !self.can_plan_by_settings() {
            return refused(
                "where the session's settings are not known",
                "Change settings by SET, and before the transaction.",
            );
        }
        if self.span.as_ref().is_some_and(|span| !span.changed_tables.is_empty()) {
            return refused("in a transaction that has changed tables", "Commit the change first.");
        }
        let is_shards_coordinator =
            self.takes_part(Target::Coordinator) && self.db.written_at(Target::Coordinator) != Target::Primary;
        if is_shards_coordinator {
            return refused(
                "in a transaction that has written, and has a cursor on a coordinator that is a shard, too",
                "Commit first, or name a coordinator that is no shard.",
            );
        }
        Ok(())
    }

    /// Whether a read of a transaction that has written elsewhere runs beside it: on a shard that has nothing of it, where it cannot
    /// go itself. That shard shows what is committed, as it would within the transaction.
    pub(super) fn may_read_beside(&self, facts: &Facts, target: Target) -> bool {
        self.db.two_phase.is_none()
            && self.reads_within()
            && self.check_own_reads().is_ok()
            && !self.takes_part(target)
            && !self.is_mid_flight()
            && !self.db.writes_unseen(facts.fingerprint)
    }

    /// Whether the transaction has a connection to that server.
    pub(super) fn takes_part(&self, target: Target) -> bool {
        let others = self.span.iter().flat_map(|span| span.others.iter());
        self.server.iter().chain(others).any(|attached| attached.target == target)
    }

    /// The transaction's own connection to a shard, with nothing under way.
    pub(super) async fn own_shard(&mut self, shard: usize) -> Result<&mut ServerConn, Error> {
        self.assemble(std::iter::once(Target::Shard(shard))).await?;
        let server = self.held_server().ok_or_else(|| Error::internal("a shard of the transaction is missing"))?;
        Ok(server)
    }

    /// Runs a statement on its shards within the transaction; as [`Session::fan_out`].
    pub(super) async fn fan_out_within(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        streamed: &Streamed,
    ) -> Result<Ran, Error> {
        let term = self.term();
        let beside = match self.legs_beside(&streamed.shards).await {
            Ok(beside) => beside,
            Err(error) => {
                self.forget_unparsed(execution);
                return Err(error);
            }
        };
        self.db.metrics.fanout_legs.inc_by(streamed.shards.len() as u64);
        let work = self.begin_reading().await;
        let read = Box::pin(self.answer_within(execution, described, streamed, beside, &work)).await;
        self.cancel.slot.work_is_over();
        self.aim_cancel();
        let Read { outcome, timed_out, is_lost } = match read {
            Ok(read) => read,
            Err(error) => {
                self.forget_unparsed(execution);
                return Err(error);
            }
        };
        self.db.metrics.fanout_legs_failed.inc_by(outcome.broken.len() as u64);
        if is_lost {
            return Err(super::failure::server_gone());
        }
        if let (Ok(rows), Some((_, bind))) = (&outcome.result, execution.bind) {
            match rows_of(execution.max_rows) == Some(*rows) {
                true => self.keep_halted(bind.portal, Halt::Spent),
                false => self.note_done(bind.portal),
            }
        }
        self.ran(execution, (outcome.result, outcome.untold), timed_out, term)
    }

    async fn answer_within(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        streamed: &Streamed,
        beside: Beside,
        work: &CancellationToken,
    ) -> Result<Read, Error> {
        let keeper = self.gatekeeper(streamed.shards.len());
        let formats = execution.bind.map_or(&[][..], |(_, bind)| bind.result_formats.as_slice());
        let told = self.told_before(execution);
        let run = Run {
            describe: described,
            told: told.as_deref(),
            max_rows: rows_of(execution.max_rows),
            unanswered: execution.unanswered,
            ..self.run_of(execution, streamed, formats)
        };
        let limit = self.db.fanout.query_timeout;
        read_within(
            &run,
            (&mut self.server, &mut self.span, beside),
            &mut self.client,
            (work, keeper.as_deref()),
            limit,
        )
        .await
    }

    /// A connection to each of these shards that the transaction has not reached, in their order, with nothing under way.
    async fn legs_beside(&mut self, shards: &[usize]) -> Result<Beside, Error> {
        self.come_to_rest().await?;
        let mut beside = Vec::new();
        for &shard in shards {
            if !self.takes_part(Target::Shard(shard)) {
                beside.push((shard, self.lease_leg(Target::Shard(shard)).await?));
            }
        }
        Ok(beside)
    }

    /// The rows of a query as the transaction's own servers give them.
    pub(super) async fn rows_within(
        &mut self,
        execution: &Execution<'_>,
        streamed: &Streamed,
        formats: &[i16],
    ) -> Result<Vec<Bytes>, Unread> {
        self.assemble(streamed.shards.iter().copied().map(Target::Shard)).await.map_err(Unread::Own)?;
        let work = self.begin_work().await;
        let rows = Box::pin(self.collect_within(execution, streamed, formats, &work)).await;
        self.cancel.slot.work_is_over();
        rows
    }

    async fn collect_within(
        &mut self,
        execution: &Execution<'_>,
        streamed: &Streamed,
        formats: &[i16],
        work: &CancellationToken,
    ) -> Result<Vec<Bytes>, Unread> {
        let keeper = self.gatekeeper(streamed.shards.len());
        let run = self.run_of(execution, streamed, formats);
        let limit = self.db.fanout.query_timeout;
        let mut sink = Collected::new(&mut self.client, self.db.fanout.memory_bytes);
        let servers = (&mut self.server, &mut self.span, Vec::new());
        let read =
            read_within(&run, servers, &mut sink, (work, keeper.as_deref()), limit).await.map_err(Unread::Own)?;
        collected(read.outcome.result.map(|_| sink.rows()), read.timed_out)
    }
}

/// Servers to read on: the one at hand, the transaction's others, and those beside it.
type Servers<'s> = (&'s mut Option<Attached>, &'s mut Option<Box<Span>>, Beside);

/// Reads on servers of a transaction, and brings them to rest.
async fn read_within<S: Sink>(
    run: &Run<'_>,
    (server, span, mut beside): Servers<'_>,
    sink: &mut S,
    (work, keeper): (&CancellationToken, Option<&TwoPhase>),
    limit: Duration,
) -> Result<Read, Error> {
    let mut legs = legs_of(server, span, &mut beside, &run.plan.shards)?;
    let gate = keeper.map(|it| Gate::new(it, None));
    let mut timed_out = false;
    let outcome = {
        let mut running = std::pin::pin!(fanout::run_within(run, &mut legs, sink, work, gate.as_ref()));
        match tokio::time::timeout(limit, &mut running).await {
            Ok(outcome) => outcome,
            Err(_) => {
                timed_out = true;
                work.cancel();
                running.await
            }
        }
    };
    let mut is_lost = false;
    for (at, mut leg) in legs.into_iter().enumerate() {
        let is_broken = outcome.broken.contains(&at);
        is_lost |= is_broken && leg.is_within();
        match is_broken {
            true => leg.server().mark_broken(),
            false => leg.server().hand_back(),
        }
    }
    give_back(beside);
    Ok(Read { outcome, timed_out, is_lost })
}

/// The legs of a read, in the order of its shards.
fn legs_of<'s>(
    server: &'s mut Option<Attached>,
    span: &'s mut Option<Box<Span>>,
    beside: &'s mut Beside,
    shards: &[usize],
) -> Result<Vec<OwnLeg<'s>>, Error> {
    let wanted = |at: usize| at.checked_sub(1).filter(|shard| shards.contains(shard));
    let within = parts(server, span).into_iter();
    let within = within.filter_map(|part| Some((wanted(part.at)?, OwnLeg::taken(part.server))));
    let mut legs: Vec<_> = within.chain(beside.iter_mut().map(|(shard, leg)| (*shard, OwnLeg::Beside(leg)))).collect();
    legs.sort_by_key(|(shard, _)| *shard);
    if !legs.iter().map(|(shard, _)| shard).eq(shards) {
        return Err(Error::internal("a shard of a query is missing"));
    }
    Ok(legs.into_iter().map(|(_, leg)| leg).collect())
}

fn give_back(beside: Beside) {
    release(beside.into_iter().map(|(_, leg)| leg).collect(), &[]);
}

/// Whether the statement changes rows where they are.
fn is_update_or_delete(text: &[u8]) -> bool {
    let first = Lexer::new(text, true).significant().next();
    first.is_some_and(|token| token.is_word(text, "update") || token.is_word(text, "delete"))
}
