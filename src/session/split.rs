//! A scan of a partitioned table, split over several connections to the primary: legs are taken only where nobody has to be waited
//! for, and whatever does not work out runs on one connection, as if nothing had been tried.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::answer::Carried;
use super::context::Target;
use super::fan_out::{DRAIN_TIMEOUT, LeasedLeg, release};
use super::planned::{Execution, Way};
use super::{Attached, Session};
use crate::backend::signature;
use crate::error::Error;
use crate::exec::fanout::{self, Failure, Readiness, Run, Sink};
use crate::exec::merge::ResultFormats;
use crate::exec::relay::ClientSide;
use crate::limits;
use crate::plan::distribute::{Leaf, Split, Streamed, Unstreamed};
use crate::sql::fingerprint::Fingerprint;
use crate::wire::backend::with_statement_name;
use crate::wire::frame::{Body, Frame};

/// Statements remembered that cannot be split, before the memory of them starts over.
const UNSPLIT: usize = 10_000;

/// Bytes of an answer that are held back, so that the statement can still be run in another way.
const HELD_BYTES: usize = limits::CLIENT_QUEUE_BYTES / 2;

/// Statements that PostgreSQL did not take when they were split, by role, as of one version of the catalog.
#[derive(Debug, Default)]
pub(super) struct Unsplit(Mutex<(u64, Statements)>);

/// Fingerprints with the role that asked.
type Statements = HashSet<(Fingerprint, Box<str>)>;

impl Unsplit {
    fn note(&self, catalog: u64, fingerprint: Fingerprint, role: &str) {
        let mut known = self.0.lock();
        if known.0 != catalog || known.1.len() >= UNSPLIT {
            *known = (catalog, HashSet::new());
        }
        known.1.insert((fingerprint, role.into()));
    }

    /// Whether that role's statements of that fingerprint are among them.
    pub(super) fn has(&self, catalog: u64, fingerprint: Fingerprint, role: &str) -> bool {
        let known = self.0.lock();
        known.0 == catalog && !known.1.is_empty() && known.1.contains(&(fingerprint, role.into()))
    }
}

/// Holds the beginning of an answer back.
struct Held<'c> {
    client: &'c mut ClientSide,
    bytes: BytesMut,
    /// Whether some of it is on its way: nothing can be taken back then.
    has_begun: bool,
    /// Whether all of it must fit.
    is_whole: bool,
    is_gone: bool,
    /// Whether it did not fit.
    is_too_large: bool,
}

impl Held<'_> {
    fn let_go(&mut self) {
        self.has_begun = true;
        self.client.outbuf.unsplit(self.bytes.split());
    }
}

impl Sink for Held<'_> {
    fn queue(&mut self) -> &mut BytesMut {
        if self.has_begun { &mut self.client.outbuf } else { &mut self.bytes }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if !self.has_begun && self.bytes.len() < HELD_BYTES {
            return Poll::Ready(Ok(()));
        }
        if self.has_begun {
            return self.client.poll_flush_queue(cx);
        }
        if self.is_whole {
            self.is_too_large = true;
            return Poll::Ready(Err(Error::internal("the answer is too large to be held back")));
        }
        self.let_go();
        self.client.poll_flush_queue(cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let gone = self.client.poll_gone_client(cx);
        self.is_gone |= gone.is_ready();
        gone
    }
}

/// How a split scan ended that the client is not to be told of in these words.
enum Undone {
    /// The statement runs in the usual way. `for_good`: its like need not be tried again.
    Plainly { why: &'static str, for_good: bool },
    /// The client gets this error.
    Failed(Failure),
}

impl Session {
    /// What becomes of a statement that could be split.
    pub(super) fn way_of_split(&self, execution: &Execution<'_>, split: Arc<Split>) -> Way {
        let is_only_described = execution.bind.is_none() && self.in_extended;
        match is_only_described || execution.max_rows > 0 || self.server.is_some() {
            true => Way::Relay(Target::Primary),
            false => Way::Split(split),
        }
    }

    /// Runs a scan on as many connections as are free, or says that it is to run on one.
    pub(super) async fn scan_split(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        split: &Arc<Split>,
    ) -> Result<Carried, Error> {
        let Ok(text) = std::str::from_utf8(execution.text) else { return Ok(Carried::Writes(Target::Primary)) };
        let catalog = self.db.catalog.version();
        let mut legs = self.free_legs(split.streamed.shards.len()).await;
        let dealt = split.deal(legs.len());
        if dealt.len() < 2 {
            release(legs, &[]);
            return Ok(Carried::Writes(Target::Primary));
        }
        release(legs.split_off(dealt.len()), &[]);
        let work = CancellationToken::new();
        self.cancel.slot.aim_at_work(work.clone());
        let (outcome, broken, timed_out) =
            self.timed(execution, described, (split, text), &dealt, &mut legs, &work).await;
        self.cancel.slot.work_is_over();
        self.db.metrics.fanout_legs.inc_by(legs.len() as u64);
        self.db.metrics.fanout_legs_failed.inc_by(broken.len() as u64);
        release(legs, &broken);
        match outcome {
            Ok(()) => Ok(Carried::Answered),
            Err(Undone::Plainly { why, for_good }) => {
                tracing::debug!(database = self.db.config.name, why, "a scan is not split");
                if for_good {
                    self.db.unsplit.note(catalog, execution.facts.fingerprint, &self.effective_role());
                }
                Ok(Carried::Writes(Target::Primary))
            }
            Err(Undone::Failed(Failure::Server(frame))) => {
                let message = match execution.bind {
                    Some((_, bind)) => with_statement_name(frame.body(), bind.statement).freeze(),
                    None => frame.bytes,
                };
                self.fail_with(message);
                Ok(Carried::Failed)
            }
            Err(Undone::Failed(_)) if timed_out => Err(super::failure::too_slow("pool.query_timeout")),
            Err(Undone::Failed(Failure::Own(error) | Failure::Unmergeable(_, error))) => Err(error),
        }
    }

    /// As many connections as are free, up to that many; in the session's state, each a leg.
    pub(super) async fn free_legs(&mut self, most: usize) -> Vec<LeasedLeg> {
        let mut legs = Vec::new();
        while legs.len() < most {
            let Some(mut lease) = self.primary.acquire_if_free().await else { break };
            // A connection that cannot be brought there is closed.
            if crate::backend::reset::apply(lease.server(), &self.settings.current).await.is_err() {
                break;
            }
            let server = lease.server();
            server.unnamed = None;
            server.take_over();
            let cancel = Arc::clone(&server.cancel_target);
            legs.push(LeasedLeg { attached: Attached { lease, target: Target::Primary }, cancel });
        }
        legs
    }

    /// Runs it within `pool.query_timeout`; how it ended, legs that did not come to rest, and whether it took too long.
    async fn timed(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        of: (&Split, &str),
        dealt: &[Vec<&Leaf>],
        legs: &mut [LeasedLeg],
        work: &CancellationToken,
    ) -> (Result<(), Undone>, Vec<usize>, bool) {
        let limit = self.db.config.pool.query_timeout.map(|limit| limit.saturating_sub(self.since.elapsed()));
        let mut running = std::pin::pin!(self.carried_by(execution, described, of, dealt, legs, work));
        let Some(limit) = limit else {
            let (result, broken) = running.await;
            return (result, broken, false);
        };
        match tokio::time::timeout(limit, &mut running).await {
            Ok((result, broken)) => (result, broken, false),
            Err(_) => {
                work.cancel();
                let (result, broken) = running.await;
                (result, broken, true)
            }
        }
    }

    /// Brings the legs into one snapshot and merges what they give.
    async fn carried_by(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        (split, text): (&Split, &str),
        dealt: &[Vec<&Leaf>],
        legs: &mut [LeasedLeg],
        work: &CancellationToken,
    ) -> (Result<(), Undone>, Vec<usize>) {
        let (formats, values, result_formats) = match execution.bind {
            Some((_, bind)) => (bind.formats.as_slice(), bind.values.as_slice(), bind.result_formats.as_slice()),
            None => (&[][..], &[][..], &[][..]),
        };
        let streamed = Streamed { shards: (0..legs.len()).collect(), ..Streamed::clone(&split.streamed) };
        let told = self.told_before(execution);
        let run = Run {
            plan: &streamed,
            types: execution.types,
            parameter_formats: formats,
            values,
            formats: ResultFormats { codes: result_formats, extra_float_digits: self.extra_float_digits() },
            describe: described,
            told: told.as_deref(),
            max_rows: None,
            unanswered: execution.unanswered,
            standard_conforming_strings: self.conforming_strings(),
            memory_bytes: self.db.fanout.memory_bytes,
            max_parallel: legs.len(),
            drain_timeout: DRAIN_TIMEOUT,
        };
        let prepared = match fanout::prepare(&run, (split, text), dealt, legs, work).await {
            (Ok(Readiness::Ready(prepared)), _) => prepared,
            (Ok(Readiness::Otherwise(why)), broken) => {
                return (Err(Undone::Plainly { why, for_good: false }), broken);
            }
            (Err(failure), broken) => return (Err(undone(failure, work)), broken),
        };
        let run = Run { types: &prepared.types, ..run };
        let (bytes, is_whole) = (BytesMut::new(), split.is_limited);
        let client = &mut self.client;
        let mut held = Held { client, bytes, has_begun: false, is_whole, is_gone: false, is_too_large: false };
        let outcome = fanout::run_prepared(&run, &prepared, legs, &mut held, work).await;
        let result = match outcome.result {
            Ok(_) => Ok(()),
            Err(failure) if held.has_begun || held.is_gone => Err(Undone::Failed(failure)),
            Err(Failure::Own(_)) if held.is_too_large => {
                Err(Undone::Plainly { why: "its rows are too many to be held back", for_good: true })
            }
            Err(failure) => Err(undone(failure, work)),
        };
        if !matches!(result, Err(Undone::Plainly { .. })) {
            held.let_go();
        }
        let untold = &execution.unanswered[execution.unanswered.len() - outcome.untold..];
        if matches!(result, Err(Undone::Failed(_))) && untold.starts_with(b"1") {
            self.forget_unparsed(execution);
        }
        (result, outcome.broken)
    }
}

/// What to make of a failure that the client has seen nothing of.
fn undone(failure: Failure, work: &CancellationToken) -> Undone {
    if work.is_cancelled() {
        return Undone::Failed(failure);
    }
    match failure {
        Failure::Server(frame) => match code(&frame) {
            // Cancelled, by statement_timeout or by an operator: once is enough.
            Some(code) if code == "57014" => Undone::Failed(Failure::Server(frame)),
            // What cannot be parsed or may not be read in parts; all else may be otherwise next time.
            Some(code) => Undone::Plainly {
                why: "a part of it failed",
                for_good: code.starts_with("42") || code.starts_with("0A"),
            },
            None => Undone::Plainly { why: "a part of it failed", for_good: false },
        },
        // What the client was told of does not hold any more, wherever it runs.
        Failure::Own(error) if signature::is_changed(&error) => Undone::Failed(Failure::Own(error)),
        Failure::Own(_) => Undone::Plainly { why: "a connection was lost", for_good: false },
        Failure::Unmergeable(Unstreamed::Memory, _) => {
            Undone::Plainly { why: "its groups need more than fanout.memory", for_good: false }
        }
        Failure::Unmergeable(..) => {
            Undone::Plainly { why: "its columns are of types that are not merged", for_good: true }
        }
    }
}

/// An ErrorResponse's SQLSTATE.
fn code(frame: &Frame) -> Option<String> {
    let mut body = Body::new(frame.body());
    while let Some(field) = body.u8().filter(|&field| field != 0) {
        let text = body.cstr()?;
        if field == b'C' {
            return Some(String::from_utf8_lossy(text).into_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_split_is_known_until_the_catalog_changes() {
        let unsplit = Unsplit::default();
        unsplit.note(1, Fingerprint(7), "ann");
        assert!(unsplit.has(1, Fingerprint(7), "ann"));
        assert!(!unsplit.has(1, Fingerprint(7), "bob") && !unsplit.has(1, Fingerprint(8), "ann"));
        assert!(!unsplit.has(2, Fingerprint(7), "ann"));
        unsplit.note(2, Fingerprint(8), "ann");
        assert!(!unsplit.has(1, Fingerprint(7), "ann"));
        for number in 0..=UNSPLIT {
            unsplit.note(2, Fingerprint(number as u128), "ann");
        }
        assert!(unsplit.0.lock().1.len() <= UNSPLIT);
    }
}
