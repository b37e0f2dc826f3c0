//! A statement over several shards, for this session: its legs are leased, its answer goes to the client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::cancel::deliver;
use super::context::Target;
use super::legs::Part;
use super::planned::Execution;
use super::portals::{Halt, Stream, rows_of};
use super::unstreamed::{Term, Unmerged};
use super::{Attached, Session};
use crate::backend::cancel::CancelTarget;
use crate::error::Error;
use crate::exec::fanout::{self, Failure, Gate, Leg, Run, Sink};
use crate::exec::merge::ResultFormats;
use crate::exec::relay::ClientSide;
use crate::plan::distribute::Streamed;
use crate::wire::backend::with_statement_name;
use crate::wire::frame::{Frame, Frames};

/// How long legs may take to come to rest after an error or a cancel.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A leased server connection as a leg.
pub(super) struct LeasedLeg {
    pub(super) attached: Attached,
    pub(super) cancel: Arc<CancelTarget>,
}

impl Leg for LeasedLeg {
    fn queue(&mut self) -> &mut BytesMut {
        self.attached.lease.server().queue()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.attached.lease.server().poll_flush(cx)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Error>> {
        self.attached.lease.server().poll_frame(cx)
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>, tag: u8) -> Poll<Result<Frames, Error>> {
        self.attached.lease.server().poll_frames(cx, tag)
    }

    fn cancel(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let target = Arc::clone(&self.cancel);
        Box::pin(async move { deliver(&target).await })
    }
}

impl Sink for ClientSide {
    fn queue(&mut self) -> &mut BytesMut {
        &mut self.outbuf
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_flush_queue(cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        self.poll_gone_client(cx)
    }
}

/// What became of a statement over several shards.
pub(super) enum Ran {
    /// The client has its answer.
    Answered,
    /// A shard's error, as the client is to get it.
    Failed(Bytes),
    /// pgherd does not merge the rows; the client has been sent nothing of the answer.
    Unmergeable(Unmerged),
}

impl Session {
    /// Runs a statement on its shards and passes the merged answer on. An error of a shard's comes back as the bytes that the
    /// client is to get.
    pub(super) async fn fan_out(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        streamed: &Arc<Streamed>,
    ) -> Result<Ran, Error> {
        if self.reads_within() {
            return Box::pin(self.fan_out_within(execution, described, streamed)).await;
        }
        let ran = Box::pin(self.fan_out_beside(execution, described, streamed, (self.term(), true))).await?;
        let (untold, term) = match ran {
            Ok(ran) => return Ok(ran),
            Err(stale) => stale,
        };
        let unanswered = &execution.unanswered[execution.unanswered.len() - untold..];
        let rest = Execution { unanswered, ..*execution };
        let ran = Box::pin(self.fan_out_beside(&rest, described, streamed, (term, false))).await?;
        ran.map_err(|_| Error::internal("what no cache has given has changed in it"))
    }

    /// As [`Session::fan_out`], on connections of its own; without `recalls` each part is run on its shard. `Err` inside: a part that was
    /// kept is not good any more; how many bytes at the end of what is unanswered the client still lacks, and what is left of the term.
    async fn fan_out_beside(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        streamed: &Arc<Streamed>,
        (term, recalls): (Term, bool),
    ) -> Result<Result<Ran, (usize, Term)>, Error> {
        let work = self.work_in(term);
        let (mut legs, holds) = match Box::pin(self.parts_of(execution, streamed, recalls)).await {
            Ok(begun) => begun,
            Err(error) => {
                self.cancel.slot.work_is_over();
                self.forget_unparsed(execution);
                return Err(error);
            }
        };
        let fresh = legs.iter().filter(|leg| matches!(leg, Part::Fresh(..))).count();
        self.db.metrics.fanout_legs.inc_by(fresh as u64);
        self.db.metrics.fanout_legs_cached.inc_by((legs.len() - fresh) as u64);
        let (formats, values, result_formats) = match execution.bind {
            Some((_, bind)) => (bind.formats.as_slice(), bind.values.as_slice(), bind.result_formats.as_slice()),
            None => (&[][..], &[][..], &[][..]),
        };
        let told = self.told_before(execution);
        let run = Run {
            plan: streamed,
            types: execution.types,
            parameter_formats: formats,
            values,
            formats: ResultFormats { codes: result_formats, extra_float_digits: self.extra_float_digits() },
            describe: described,
            told: told.as_deref(),
            max_rows: rows_of(execution.max_rows),
            unanswered: execution.unanswered,
            standard_conforming_strings: self.conforming_strings(),
            memory_bytes: self.db.fanout.memory_bytes,
            max_parallel: self.db.fanout.max_parallel,
            drain_timeout: DRAIN_TIMEOUT,
        };
        let keeper = self.gatekeeper(legs.len()).filter(|_| fresh > 0);
        let gate = keeper.as_ref().map(|it| Gate::new(it, holds.as_ref()));
        let (mut timed_out, since) = (false, Instant::now());
        let outcome = {
            let mut running =
                std::pin::pin!(fanout::run_under(&run, &mut legs, &mut self.client, &work, gate.as_ref()));
            match tokio::time::timeout(term.left, &mut running).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    timed_out = true;
                    work.cancel();
                    running.await
                }
            }
        };
        self.cancel.slot.work_is_over();
        self.db.metrics.fanout_legs_failed.inc_by(outcome.broken.len() as u64);
        let is_suspended = outcome.course.is_some();
        match (outcome.course, execution.bind) {
            (Some(course), Some((frame, bind))) => {
                let (plan, types) = (Arc::clone(streamed), execution.types.to_vec());
                // With a row limit all legs are run.
                let legs = legs.into_iter().filter_map(Part::into_leg).collect();
                let stream = Stream { legs, course, plan, types, bind: frame.clone() };
                self.keep_halted(bind.portal, Halt::Stream(Box::new(stream)));
            }
            _ => self.end_parts(legs, &outcome.broken, &outcome.given, outcome.result.is_ok()).await,
        }
        if outcome.result.is_ok()
            && let Some((_, bind)) = execution.bind.filter(|_| !is_suspended)
        {
            self.note_done(bind.portal);
        }
        let rest = term.after(since.elapsed());
        if outcome.is_stale {
            return Ok(Err((outcome.untold, rest)));
        }
        self.ran(execution, (outcome.result, outcome.untold), timed_out, rest).map(Ok)
    }

    /// What became of a statement whose legs are at rest; `untold` is how many bytes of what is unanswered the client was not given,
    /// `term` what is left for another try.
    pub(super) fn ran(
        &mut self,
        execution: &Execution<'_>,
        (result, untold): (Result<u64, Failure>, usize),
        timed_out: bool,
        term: Term,
    ) -> Result<Ran, Error> {
        let untold = &execution.unanswered[execution.unanswered.len() - untold..];
        match &result {
            // The coordinator goes on with what the client has been answered so far.
            Err(Failure::Unmergeable(..)) => self.out().extend_from_slice(untold),
            Err(_) if untold.starts_with(b"1") => self.forget_unparsed(execution),
            _ => {}
        }
        match result {
            Ok(_) => Ok(Ran::Answered),
            Err(Failure::Server(frame)) => Ok(Ran::Failed(match execution.bind {
                Some((_, bind)) => with_statement_name(frame.body(), bind.statement).freeze(),
                None => frame.bytes,
            })),
            Err(Failure::Own(_)) if timed_out => Err(super::failure::too_slow("fanout.query_timeout")),
            Err(Failure::Unmergeable(why, error)) => Ok(Ran::Unmergeable(Unmerged { why, error, term })),
            Err(Failure::Own(error)) => Err(error),
        }
    }

    /// An error is what the client gets where it waits for ParseComplete: there is no such statement.
    pub(super) fn forget_unparsed(&mut self, execution: &Execution<'_>) {
        if let Some((_, bind)) = execution.bind.filter(|_| execution.unanswered.starts_with(b"1")) {
            self.forget_statement(bind.statement);
        }
    }

    pub(super) fn extra_float_digits(&self) -> i32 {
        const DEFAULT: i32 = 1;
        self.setting("extra_float_digits").and_then(|digits| digits.parse().ok()).unwrap_or(DEFAULT)
    }

    pub(super) async fn lease_leg(&mut self, target: Target) -> Result<LeasedLeg, Error> {
        let settings = self.settings_beside().await?;
        let pool = self.pool(target);
        let mut lease = self.wait_for_lease(&pool).await?;
        self.check_defaults(target, &pool, &settings)?;
        crate::backend::reset::apply(lease.server(), &settings).await?;
        let server = lease.server();
        server.unnamed = None;
        server.take_over();
        let cancel = Arc::clone(&server.cancel_target);
        Ok(LeasedLeg { attached: Attached { lease, target }, cancel })
    }
}

/// Gives the legs back; those that did not come to rest are closed.
pub(super) fn release(legs: Vec<LeasedLeg>, broken: &[usize]) {
    for (at, mut leg) in legs.into_iter().enumerate() {
        if broken.contains(&at) {
            leg.attached.lease.discard();
        } else {
            leg.attached.lease.server().hand_back();
            leg.attached.lease.release();
        }
    }
}
