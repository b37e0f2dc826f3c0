//! A statement over several shards, for this session: its legs are leased, its answer goes to the client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::cancel::deliver;
use super::context::Target;
use super::planned::Execution;
use super::{Attached, Session};
use crate::backend::cancel::CancelTarget;
use crate::error::Error;
use crate::exec::fanout::{self, Failure, Leg, Run, Sink};
use crate::exec::merge::ResultFormats;
use crate::exec::relay::ClientSide;
use crate::plan::distribute::Streamed;
use crate::wire::backend::with_statement_name;
use crate::wire::frame::Frame;
use crate::wire::writer;

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
    /// pgherd cannot merge such rows; the client has been sent nothing.
    Unmergeable(Error),
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
        let mut legs = Vec::with_capacity(streamed.shards.len());
        for &shard in &streamed.shards {
            match self.lease_leg(Target::Shard(shard)).await {
                Ok(leg) => legs.push(leg),
                Err(error) => {
                    self.forget_unparsed(execution);
                    return Err(error);
                }
            }
        }
        self.db.metrics.fanout_legs.inc_by(legs.len() as u64);
        let limited = limited(streamed, execution.max_rows);
        let work = CancellationToken::new();
        self.cancel.slot.aim_at_work(work.clone());
        let latch = match self.latch_snapshots(streamed.shards.len(), &work).await {
            Ok(latch) => latch,
            Err(error) => {
                self.cancel.slot.work_is_over();
                release(legs, &[]);
                return Err(error);
            }
        };
        let (formats, values, result_formats) = match execution.bind {
            Some((_, bind)) => (bind.formats.as_slice(), bind.values.as_slice(), bind.result_formats.as_slice()),
            None => (&[][..], &[][..], &[][..]),
        };
        let run = Run {
            plan: limited.as_ref().unwrap_or(streamed),
            types: execution.types,
            parameter_formats: formats,
            values,
            formats: ResultFormats { codes: result_formats, extra_float_digits: self.extra_float_digits() },
            describe: described,
            unanswered: execution.unanswered,
            standard_conforming_strings: self.conforming_strings(),
            memory_bytes: self.db.fanout.memory_bytes,
            max_parallel: self.db.fanout.max_parallel,
            drain_timeout: DRAIN_TIMEOUT,
        };
        let mut timed_out = false;
        let outcome = {
            let mut running = std::pin::pin!(fanout::run_under(&run, &mut legs, &mut self.client, &work, latch));
            match tokio::time::timeout(self.db.fanout.query_timeout, &mut running).await {
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
        release(legs, &outcome.broken);
        let untold = &execution.unanswered[execution.unanswered.len() - outcome.untold..];
        match &outcome.result {
            // The coordinator goes on with what the client has been answered so far.
            Err(Failure::Unmergeable(_)) => self.out().extend_from_slice(untold),
            Err(_) if untold.starts_with(b"1") => self.forget_unparsed(execution),
            _ => {}
        }
        match outcome.result {
            Ok(rows) => {
                self.suspend_if_limited(execution, rows);
                Ok(Ran::Answered)
            }
            Err(Failure::Server(frame)) => Ok(Ran::Failed(match execution.bind {
                Some((_, bind)) => with_statement_name(frame.body(), bind.statement).freeze(),
                None => frame.bytes,
            })),
            Err(Failure::Own(_)) if timed_out => Err(super::failure::too_slow("fanout.query_timeout")),
            Err(Failure::Unmergeable(error)) => Ok(Ran::Unmergeable(error)),
            Err(Failure::Own(error)) => Err(error),
        }
    }

    /// An error is what the client gets where it waits for ParseComplete: there is no such statement.
    fn forget_unparsed(&mut self, execution: &Execution<'_>) {
        if let Some((_, bind)) = execution.bind.filter(|_| execution.unanswered.starts_with(b"1")) {
            self.forget_statement(bind.statement);
        }
    }

    fn extra_float_digits(&self) -> i32 {
        const DEFAULT: i32 = 1;
        self.setting("extra_float_digits").and_then(|digits| digits.parse().ok()).unwrap_or(DEFAULT)
    }

    pub(super) async fn lease_leg(&mut self, target: Target) -> Result<LeasedLeg, Error> {
        let mut lease = self.wait_for_lease(&self.pool(target)).await?;
        crate::backend::reset::apply(lease.server(), &self.settings.current).await?;
        let server = lease.server();
        server.unnamed = None;
        server.take_over();
        let cancel = Arc::clone(&server.cancel_target);
        Ok(LeasedLeg { attached: Attached { lease, target }, cancel })
    }

    /// An Execute that took all the rows it asked for leaves a suspended portal, as in PostgreSQL; nothing can resume it.
    fn suspend_if_limited(&mut self, execution: &Execution<'_>, rows: u64) {
        let max_rows = execution.max_rows;
        if max_rows <= 0 || rows != u64::from(max_rows.unsigned_abs()) {
            return;
        }
        let mut tag = BytesMut::new();
        writer::command_complete(&mut tag, &format!("SELECT {rows}"));
        let out = self.out();
        if out.ends_with(&tag) {
            out.truncate(out.len() - tag.len());
            writer::portal_suspended(out);
            if let Some((_, bind)) = execution.bind {
                self.suspended.get_or_insert_default().0.insert(Bytes::copy_from_slice(bind.portal));
            }
        }
    }

    /// The portal of that name is another, or none.
    pub(super) fn forget_suspended(&mut self, portal: &[u8]) {
        if let Some(suspended) = &mut self.suspended {
            suspended.0.remove(portal);
        }
    }

    /// Refuses an Execute of a portal that a fan-out has suspended: its legs have been given back.
    pub(super) fn refuse_resuming(&self, portal: &[u8]) -> Result<(), Error> {
        if self.suspended.as_ref().is_none_or(|suspended| !suspended.0.contains(portal)) {
            return Ok(());
        }
        Err(Error::refused("a portal over several shards cannot be resumed after it was given a row limit")
            .hint("Ask for all rows at once, or page by LIMIT and a key."))
    }
}

/// The plan with Execute's row limit as its own, if that is the smaller.
fn limited(streamed: &Arc<Streamed>, max_rows: i32) -> Option<Arc<Streamed>> {
    let most = u64::try_from(max_rows).ok().filter(|&rows| rows > 0)?;
    let limit = streamed.limit.map_or(most, |limit| limit.min(most));
    Some(Arc::new(Streamed { limit: Some(limit), ..Streamed::clone(streamed) }))
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
