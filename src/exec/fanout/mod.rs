//! Running a distributed statement: one leg a shard, rows merged as they come, one error at most, every leg left clean.

mod ending;
mod explain;
mod gate;
mod leg;
mod replay;
mod resume;
mod snapshot;

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;

use ending::{broken, give_up, located};
pub(in crate::exec) use explain::line_of;
pub use explain::plans;
use gate::Snapshots;
pub use gate::{Gate, Holds};
pub use leg::{Given, Leg};
use leg::{Progress, SINK_HIGH_BYTES, SINK_LOW_BYTES, Stage};
pub use replay::Replay;
pub use resume::{Course, abandon, resume};
pub use snapshot::{Prepared, Readiness, prepare};

use crate::backend::signature::{Signature, Whence};
use crate::catalog::model::Oid;
use crate::error::{Error, ErrorKind};
use crate::exec::merge::description::{Description, format_of};
use crate::exec::merge::{Merger, ResultFormats};
use crate::plan::distribute::{Streamed, Unstreamed};
use crate::wire::frame::{Frame, Frames, HEADER_LEN};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// Bytes that a leg may always have queued, however many legs there are.
const LEAST_CREDIT_BYTES: usize = 64 * 1024;

/// Bytes beyond which a leg's rows wait in its socket: more would fill memory and end no sooner.
const MOST_CREDIT_BYTES: usize = 1024 * 1024;

/// Where the answer goes: a client's socket, usually.
pub trait Sink: Send {
    /// Where bytes for the client are queued.
    fn queue(&mut self) -> &mut BytesMut;
    /// Sends what is queued; ready when nothing is left. Legs are not read while the queue is full.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>>;

    /// Ready when nobody is there any more to take the answer: the shards then work for nothing.
    fn poll_gone(&mut self, _cx: &mut Context<'_>) -> Poll<Error> {
        Poll::Pending
    }
}

/// One statement to run.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// How it was split.
    pub plan: &'a Streamed,
    /// Declared parameter types, as the client's Parse gave them.
    pub types: &'a [Oid],
    /// Format codes of the parameters.
    pub parameter_formats: &'a [i16],
    /// Parameters; `None` is NULL.
    pub values: &'a [Option<&'a [u8]>],
    /// How the client wants its columns.
    pub formats: ResultFormats<'a>,
    /// Whether the client is sent a RowDescription.
    pub describe: bool,
    /// What the client was told of the statement before.
    pub told: Option<&'a Signature>,
    /// Rows after which the portal is suspended; `None` for all.
    pub max_rows: Option<u64>,
    /// ParseComplete and BindComplete, as far as the client is to be given them when a shard has said so.
    pub unanswered: &'a [u8],
    /// The session's setting of that name.
    pub standard_conforming_strings: bool,
    /// `fanout.memory`
    pub memory_bytes: usize,
    /// Legs that run at once, where the merge does not need all of them.
    pub max_parallel: usize,
    /// How long legs may take to become idle after an error or a cancel.
    pub drain_timeout: Duration,
}

/// What ended a fan-out early.
#[derive(Debug)]
pub enum Failure {
    /// A shard's ErrorResponse, fit to be sent to the client as it is.
    Server(Frame),
    /// pgherd's own: a refusal, a limit, a cancel, a lost connection.
    Own(Error),
    /// pgherd does not merge the rows, for that reason; of the answer nothing has been sent, its RowDescription neither.
    Unmergeable(Unstreamed, Error),
}

/// How a fan-out ended.
#[derive(Debug)]
pub struct Outcome {
    /// Rows sent, or what went wrong. On success CommandComplete is queued in the sink already.
    pub result: Result<u64, Failure>,
    /// Legs that are not idle and drained: their connections must be closed. Ascending.
    pub broken: Vec<usize>,
    /// How many bytes at the end of [`Run::unanswered`] the client has not been given.
    pub untold: usize,
    /// What each leg gave.
    pub given: Vec<Given>,
    /// How it goes on, if the portal is suspended: PortalSuspended is queued in the sink then, and the legs are not at rest.
    pub course: Option<Course>,
    /// It failed because a part that was kept from before does not hold any more; no row has been sent, and no RowDescription.
    pub is_stale: bool,
}

/// Runs the statement: leg `i` is a connection to shard `plan.shards[i]`, idle and outside of a transaction.
///
/// The sink gets RowDescription (if asked for), DataRows and CommandComplete; nothing after an error. `cancel` ends the statement
/// with `57014`. When it returns every leg is idle and drained, or listed as broken.
pub async fn run<L: Leg, S: Sink>(run: &Run<'_>, legs: &mut [L], sink: &mut S, cancel: &CancellationToken) -> Outcome {
    run_under(run, legs, sink, cancel, None).await
}

/// As [`run`], with snapshots that are taken behind a gate, by all legs at once.
pub async fn run_under<L: Leg, S: Sink>(
    run: &Run<'_>,
    legs: &mut [L],
    sink: &mut S,
    cancel: &CancellationToken,
    gate: Option<&Gate<'_>>,
) -> Outcome {
    let fanout = Fanout::new(run, legs.len(), gate);
    fanout.carry_on(legs, sink, cancel).await
}

/// As [`run_under`], within a transaction that has written: legs that say that they are within it see what it wrote, and go on behind
/// the statement. After an error those that met it have failed. They are needed for what comes next: a portal is suspended only to
/// end there, rows that are left are read and forgotten.
pub async fn run_within<L: Leg, S: Sink>(
    run: &Run<'_>,
    legs: &mut [L],
    sink: &mut S,
    cancel: &CancellationToken,
    gate: Option<&Gate<'_>>,
) -> Outcome {
    let mut fanout = Fanout::new(run, legs.len(), gate);
    fanout.is_within = true;
    // A cancel would end the transaction: nothing may have to be begun again.
    fanout.snapshots.plans_first = gate.is_some();
    for (progress, _) in fanout.legs.iter_mut().zip(legs.iter()).filter(|(_, leg)| leg.is_within()) {
        *progress = Progress::WITHIN;
    }
    fanout.carry_on(legs, sink, cancel).await
}

/// As [`run`], on legs that [`prepare`] has brought into one snapshot.
pub async fn run_prepared<L: Leg, S: Sink>(
    run: &Run<'_>,
    prepared: &Prepared,
    legs: &mut [L],
    sink: &mut S,
    cancel: &CancellationToken,
) -> Outcome {
    let mut fanout = Fanout::new(run, legs.len(), None);
    fanout.legs.fill_with(|| Progress::PREPARED);
    fanout.prepared = Some(prepared);
    fanout.carry_on(legs, sink, cancel).await
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "canceling statement due to user request")
}

/// A fan-out as it goes.
struct Fanout<'a> {
    run: &'a Run<'a>,
    legs: Vec<Progress>,
    description: Option<Description>,
    merger: Option<Merger>,
    next: usize,
    /// What is left of [`Run::unanswered`].
    unanswered: &'a [u8],
    /// The RowDescription, which comes behind that, and with groups not before they are complete.
    describes: BytesMut,
    /// How all legs come by their snapshots.
    snapshots: Snapshots<'a>,
    /// How many have theirs.
    bound: usize,
    /// What the legs run, where each has a text of its own.
    prepared: Option<&'a Prepared>,
    /// Whether nothing of it may be left open.
    is_within: bool,
}

/// What a leg had to say.
enum Event {
    /// DataRows, or one other message.
    Frames(usize, Frames),
    Lost(usize, Error),
    SinkLost(Error),
}

impl<'a> Fanout<'a> {
    fn new(run: &'a Run<'a>, legs: usize, gate: Option<&'a Gate<'a>>) -> Self {
        let legs = (0..legs).map(|_| Progress::NEW).collect();
        let (unanswered, describes) = (run.unanswered, BytesMut::new());
        Self {
            run,
            legs,
            description: None,
            merger: None,
            next: 0,
            unanswered,
            describes,
            snapshots: Snapshots::behind(gate),
            bound: 0,
            prepared: None,
            is_within: false,
        }
    }

    /// Streams up to the end, the pause, or an error that leaves every leg clean.
    async fn carry_on<L: Leg, S: Sink>(mut self, legs: &mut [L], sink: &mut S, cancel: &CancellationToken) -> Outcome {
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Failure::Own(cancelled())),
            result = self.stream(legs, sink) => result,
        };
        if result.is_err() {
            self.snapshots.give_latch_free();
            give_up(&mut self.legs, legs, self.run.drain_timeout).await;
        }
        let is_stale = self.snapshots.is_stale;
        if matches!(result, Err(Failure::Server(_) | Failure::Own(_))) && self.unanswered.is_empty() && !is_stale {
            // PostgreSQL's comes before an error, too.
            self.give_description(sink.queue());
        }
        let (untold, given) = (self.unanswered.len(), self.legs.iter().map(|progress| progress.given).collect());
        let is_suspended = result.is_ok() && self.is_paused() && !self.is_within;
        let broken = if is_suspended { Vec::new() } else { broken(&self.legs) };
        let course = is_suspended.then(|| Course::of(self));
        Outcome { result, broken, untold, given, course, is_stale }
    }

    /// Opens legs and merges their rows to the end, or to the pause.
    async fn stream<L: Leg, S: Sink>(&mut self, legs: &mut [L], sink: &mut S) -> Result<u64, Failure> {
        if legs.len() != self.run.plan.shards.len() || legs.is_empty() {
            return Err(Failure::Own(Error::internal("a fan-out has as many legs as shards")));
        }
        self.start(legs);
        let before = self.merger.as_ref().map_or(0, Merger::rows);
        if let Some(merger) = &mut self.merger {
            merger.allow(self.run.max_rows, sink.queue()).map_err(Failure::Own)?;
        }
        while !self.legs.iter().all(Progress::is_over) && !self.stands_still() {
            if self.snapshots.is_next(&self.legs) {
                self.pass_gate(legs, sink).await?;
            }
            let Some(event) = self.event_in_time(legs, sink).await else {
                self.start_over(legs).await?;
                continue;
            };
            match event {
                Event::Frames(at, frames) => self.take(at, frames, legs, sink)?,
                Event::Lost(at, error) => {
                    self.legs[at].stage = Stage::Broken;
                    return Err(Failure::Own(error));
                }
                Event::SinkLost(error) => return Err(Failure::Own(error)),
            }
        }
        self.give_description(sink.queue());
        let Some(merger) = &mut self.merger else {
            return Err(Failure::Own(Error::internal("no shard described its rows")));
        };
        while merger.finish(sink.queue(), SINK_HIGH_BYTES).map_err(Failure::Own)? {
            poll_fn(|cx| sink.poll_flush(cx)).await.map_err(Failure::Own)?;
        }
        let (rows, is_paused) = (merger.rows() - before, merger.is_paused());
        self.snapshots.verdict().await.map_err(Failure::Own)?;
        if is_paused {
            writer::portal_suspended(sink.queue());
        } else {
            writer::command_complete(sink.queue(), &format!("SELECT {rows}"));
        }
        Ok(rows)
    }

    /// Whether the portal has its rows.
    fn is_paused(&self) -> bool {
        self.merger.as_ref().is_some_and(Merger::is_paused)
    }

    /// Whether the legs wait for the portal to go on: but not before everybody has a snapshot, for which others wait.
    fn stands_still(&self) -> bool {
        !self.snapshots.are_awaited() && self.is_paused() && !self.is_within
    }

    /// Whether further rows are nobody's.
    fn forgets_rows(&self) -> bool {
        self.is_within && self.is_paused()
    }

    /// Opens waiting legs as far as may run at once.
    fn start<L: Leg>(&mut self, legs: &mut [L]) {
        if let Some(prepared) = self.prepared {
            for ((progress, leg), sql) in self.legs.iter_mut().zip(legs).zip(&prepared.sqls) {
                if progress.stage == Stage::Described {
                    progress.go_on(leg.queue(), sql, self.run);
                }
            }
            return;
        }
        let at_once = Merger::needs_all_legs(self.run.plan) || self.snapshots.are_awaited();
        let most = if at_once { legs.len() } else { self.run.max_parallel.max(1) };
        let mut running = self.legs.iter().filter(|leg| leg.stage != Stage::Waiting && !leg.is_over()).count();
        for (progress, leg) in self.legs.iter_mut().zip(legs) {
            if progress.stage == Stage::Waiting && running < most {
                let plans_first = self.snapshots.plans_first && !leg.is_kept();
                progress.open(leg.queue(), self.run, plans_first);
                running += 1;
            }
        }
    }

    /// Waits for a message of any leg whose rows there is room for.
    async fn event<L: Leg, S: Sink>(&mut self, legs: &mut [L], sink: &mut S) -> Event {
        let credit = (self.run.memory_bytes / legs.len().max(1)).clamp(LEAST_CREDIT_BYTES, MOST_CREDIT_BYTES);
        let forgets_rows = self.forgets_rows();
        // Until then it may have to begin again.
        let awaits_others = self.snapshots.are_awaited();
        poll_fn(|cx| {
            if sink.queue().len() >= SINK_LOW_BYTES
                && let Poll::Ready(Err(error)) = sink.poll_flush(cx)
            {
                return Poll::Ready(Event::SinkLost(error));
            }
            if let Poll::Ready(error) = sink.poll_gone(cx) {
                return Poll::Ready(Event::SinkLost(error));
            }
            let is_full = sink.queue().len() >= SINK_HIGH_BYTES;
            let count = legs.len();
            for offset in 0..count {
                let at = (self.next + offset) % count;
                let (progress, leg) = (&self.legs[at], &mut legs[at]);
                if progress.is_over() || matches!(progress.stage, Stage::Waiting | Stage::Described) {
                    continue;
                }
                if let Poll::Ready(Err(error)) = leg.poll_flush(cx) {
                    return Poll::Ready(Event::Lost(at, error));
                }
                let held = self.merger.as_ref().map_or(0, |merger| merger.held_bytes(at));
                if progress.is_bound && (awaits_others || is_full || (held >= credit && !forgets_rows)) {
                    continue;
                }
                match leg.poll_frames(cx, b'D') {
                    Poll::Pending => {}
                    Poll::Ready(Ok(frames)) => {
                        self.next = at + 1;
                        return Poll::Ready(Event::Frames(at, frames));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Event::Lost(at, error)),
                }
            }
            self.next = (self.next + 1) % count.max(1);
            // Nothing to read: what there is may go, however little.
            if let Poll::Ready(Err(error)) = sink.poll_flush(cx) {
                return Poll::Ready(Event::SinkLost(error));
            }
            Poll::Pending
        })
        .await
    }

    fn take<L: Leg, S: Sink>(
        &mut self,
        at: usize,
        frames: Frames,
        legs: &mut [L],
        sink: &mut S,
    ) -> Result<(), Failure> {
        let frame = match (self.legs[at].stage, frames.bytes.first()) {
            (Stage::Running, Some(b'D')) => {
                self.legs[at].gives(&frames);
                if self.forgets_rows() {
                    return Ok(());
                }
                let merger = self.merger.as_mut().ok_or_else(unexpected)?;
                return merger.push(at, frames, sink.queue()).map_err(|error| unmerged(merger, error));
            }
            _ => &Frame { bytes: frames.bytes },
        };
        match (self.legs[at].stage, frame.tag()) {
            (Stage::Running, b'C') => {
                self.legs[at].has_given_all();
                let merger = self.merger.as_mut().ok_or_else(unexpected)?;
                merger.end(at, sink.queue()).map_err(|error| unmerged(merger, error))
            }
            (Stage::Describing, b'T') => self.described(at, frame, legs, sink),
            (_, b'E') => Err(Failure::Server(located(frame, self.run.plan.inserted))),
            (_, b'Z') => {
                self.legs[at].ready(frame.body().first().copied().unwrap_or(0));
                if self.legs[at].stage == Stage::Broken {
                    return Err(unexpected());
                }
                self.start(legs);
                Ok(())
            }
            (_, b'1') => {
                self.tell(frame, sink.queue());
                Ok(())
            }
            (Stage::Planning, b'2') => {
                self.legs[at].stage = Stage::Described;
                Ok(())
            }
            (_, b'2') => {
                self.bound += 1;
                self.legs[at].is_bound = true;
                self.tell(frame, sink.queue());
                if self.bound == self.legs.len() {
                    self.snapshots.are_taken();
                    self.describe(sink.queue());
                }
                Ok(())
            }
            // ParameterDescription; BEGIN's and COMMIT's tags; notices and settings of the server's own; the portal's Close.
            (_, b't' | b'C' | b'N' | b'S' | b'A' | b'3') => Ok(()),
            _ => {
                self.legs[at].stage = Stage::Broken;
                Err(unexpected())
            }
        }
    }

    /// The first shard that has taken the client's Parse or Bind answers it. What one of them refuses, all refuse.
    fn tell(&mut self, frame: &Frame, out: &mut BytesMut) {
        let Some(rest) = self.unanswered.strip_prefix(&frame.bytes[..]) else { return };
        out.extend_from_slice(&frame.bytes);
        self.unanswered = rest;
        self.describe(out);
    }

    /// The RowDescription's turn: as long as no group is given PostgreSQL may have to merge them, and describe them itself.
    fn describe(&mut self, out: &mut BytesMut) {
        if self.unanswered.is_empty()
            && !self.snapshots.are_awaited()
            && !self.merger.as_ref().is_some_and(Merger::gives_at_the_end)
        {
            self.give_description(out);
        }
    }

    /// Gives the client the RowDescription, if it lacks one: it goes by that from now on.
    fn give_description(&mut self, out: &mut BytesMut) {
        let description = self.describes.split();
        out.extend_from_slice(&description);
        if let (Some(told), Some(body)) = (self.run.told, description.get(HEADER_LEN..)) {
            told.note_rows(body);
        }
    }

    fn described<L: Leg, S: Sink>(
        &mut self,
        at: usize,
        frame: &Frame,
        legs: &mut [L],
        sink: &mut S,
    ) -> Result<(), Failure> {
        let description = Description::read(frame.body()).map_err(Failure::Own)?;
        match &self.description {
            Some(first) if !self.is_alike(first, &description) => {
                let message =
                    format!("shard {} describes the result otherwise than the others", self.run.plan.shards[at]);
                let error = Error::new(ErrorKind::Backend, SqlState::FEATURE_NOT_SUPPORTED, message);
                return Err(Failure::Own(error.hint("the shards' tables differ: bring their definitions in line")));
            }
            Some(_) => {}
            None => {
                let (plan, formats) = (self.run.plan, self.run.formats);
                formats.check(description.columns.len() - plan.hidden).map_err(Failure::Own)?;
                let mut merger = Merger::new(plan, &description, formats, legs.len(), self.run.memory_bytes)
                    .map_err(|error| Failure::Unmergeable(Unstreamed::Types, error))?;
                merger.allow(self.run.max_rows, sink.queue()).map_err(Failure::Own)?;
                self.merger = Some(merger);
                let visible = description.columns.len() - plan.hidden;
                let shown = self.prepared.map_or(&description, |prepared| &prepared.description);
                if self.prepared.is_some() && !shown.is_start_of(&description, visible) {
                    let error = Error::internal("partitions give other columns than their table");
                    return Err(Failure::Unmergeable(Unstreamed::Types, error));
                }
                if self.run.describe {
                    shown.write(&mut self.describes, visible, formats.codes);
                    self.describe(sink.queue());
                } else if let Some(told) = self.run.told {
                    let whence = Whence::Elsewhere(formats.codes);
                    told.check_rows(frame.body(), plan.hidden, whence).map_err(Failure::Own)?;
                }
                self.description = Some(description.clone());
            }
        }
        self.legs[at].is_described();
        if !self.snapshots.are_awaited() {
            self.legs[at].run(legs[at].queue(), self.run, description.columns.len(), false);
        }
        Ok(())
    }

    fn is_alike(&self, first: &Description, other: &Description) -> bool {
        let visible = first.columns.len().saturating_sub(self.run.plan.hidden);
        let format = |at| if at < visible { format_of(self.run.formats.codes, at) } else { 1 };
        first.is_alike(other, format)
    }
}

/// An error of the merge. Only groups have a limit, and as long as none was given PostgreSQL may merge them instead.
fn unmerged(merger: &Merger, error: Error) -> Failure {
    match error.kind() == ErrorKind::Limit && merger.rows() == 0 {
        true => Failure::Unmergeable(Unstreamed::Memory, error),
        false => Failure::Own(error),
    }
}

fn unexpected() -> Failure {
    Failure::Own(Error::internal("a shard sent a message that does not belong here"))
}
