//! Portals over several shards that outlive the message that executes them: bound in one flight and executed in another, or
//! suspended by a row limit while their legs wait.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::Session;
use super::extended::malformed;
use super::fan_out::{DRAIN_TIMEOUT, LeasedLeg, release};
use crate::error::{Error, ErrorKind};
use crate::exec::coordinator;
use crate::exec::fanout::{self, Course, Failure, Run};
use crate::exec::merge::ResultFormats;
use crate::plan::distribute::Streamed;
use crate::wire::frame::Frame;
use crate::wire::frontend;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

/// Portals by name, and the moment of the session's settings since which they stand where they stand. Boxed where there are any: an idle
/// session is small.
#[derive(Default)]
pub(super) struct Suspended(HashMap<Bytes, (u32, Halt)>);

/// Where a portal stands.
pub(super) enum Halt {
    /// It is bound and was not executed.
    Bound(Frame),
    /// It has given all its rows.
    Done,
    /// It has given as many as its row limit let it, and the others are not kept.
    Spent,
    /// Its shards have more rows.
    Stream(Box<Stream>),
    /// The coordinator has more rows.
    Gathered {
        /// Its connection, in a transaction.
        leg: LeasedLeg,
        /// Whether error positions are those of the client's text.
        is_verbatim: bool,
    },
}

/// A fan-out that stands still.
pub(super) struct Stream {
    pub(super) legs: Vec<LeasedLeg>,
    pub(super) course: Course,
    pub(super) plan: Arc<Streamed>,
    pub(super) types: Vec<u32>,
    pub(super) bind: Frame,
}

impl Session {
    /// Keeps a portal for later messages.
    pub(super) fn keep_halted(&mut self, portal: &[u8], halt: Halt) {
        let moment = self.settings.changes();
        self.suspended.get_or_insert_default().0.insert(Bytes::copy_from_slice(portal), (moment, halt));
    }

    /// The Bind of a portal that a former flight bound and did not execute.
    pub(super) fn bound_before(&self, portal: &[u8]) -> Option<Frame> {
        match self.suspended.as_ref()?.0.get(portal)? {
            (_, Halt::Bound(bind)) => Some(bind.clone()),
            _ => None,
        }
    }

    /// Fails as PostgreSQL does where a portal is there already; the unnamed one gives way. Outside of a transaction those at hand are gone.
    pub(super) fn check_unbound(&self, portal: &[u8]) -> Result<(), Error> {
        if portal.is_empty() || self.status == TransactionStatus::Idle || !self.is_halted(portal) {
            return Ok(());
        }
        let message = format!("cursor \"{}\" already exists", String::from_utf8_lossy(portal));
        Err(Error::new(ErrorKind::Refused, SqlState::DUPLICATE_CURSOR, message))
    }

    /// Whether a portal is bound that is there already.
    pub(super) fn binds_again(&self, unit: &[Frame]) -> bool {
        let mut binds = unit.iter().filter(|frame| frame.tag() == b'B' && self.suspended.is_some());
        binds.any(|frame| {
            frontend::bind_names(frame.body()).is_some_and(|(portal, _)| self.check_unbound(portal).is_err())
        })
    }

    /// Whether a later Execute of that portal goes on where a former one stopped.
    pub(super) fn is_halted(&self, portal: &[u8]) -> bool {
        self.suspended.as_ref().is_some_and(|suspended| suspended.0.contains_key(portal))
    }

    /// The portal of that name is another, or none. Connections that it kept are closed: [`Session::close_halted`] is kinder.
    pub(super) fn forget_suspended(&mut self, portal: &[u8]) {
        if let Some(suspended) = &mut self.suspended {
            suspended.0.remove(portal);
        }
    }

    /// Ends a portal and gives back what it kept; all of them without a name.
    pub(super) async fn close_halted(&mut self, portal: Option<&[u8]>) {
        let Some(suspended) = &mut self.suspended else { return };
        let halted: Vec<Halt> = match portal {
            Some(portal) => suspended.0.remove(portal).into_iter().map(|(_, halt)| halt).collect(),
            None => std::mem::take(&mut suspended.0).into_values().map(|(_, halt)| halt).collect(),
        };
        if suspended.0.is_empty() {
            self.suspended = None;
        }
        for halt in halted {
            match halt {
                Halt::Bound(_) | Halt::Done | Halt::Spent => {}
                Halt::Stream(stream) => {
                    let Stream { mut legs, course, .. } = *stream;
                    let broken = fanout::abandon(course, &mut legs, DRAIN_TIMEOUT).await;
                    release(legs, &broken);
                }
                Halt::Gathered { mut leg, .. } => {
                    let is_fit = coordinator::abandon(&mut leg, DRAIN_TIMEOUT).await;
                    release(vec![leg], if is_fit { &[] } else { &[0] });
                }
            }
        }
    }

    /// Executes a suspended portal again. An error of a server's comes back as the bytes that the client is to get.
    pub(super) async fn resume(&mut self, portal: &[u8], max_rows: i32) -> Result<Result<(), Bytes>, Error> {
        let halt = self.suspended.as_mut().and_then(|suspended| suspended.0.remove(portal)).map(|(_, halt)| halt);
        let work = CancellationToken::new();
        self.cancel.slot.aim_at_work(work.clone());
        let limit = self.db.fanout.query_timeout;
        let late = work.clone();
        let watch = tokio::time::sleep(limit);
        let mut timed_out = false;
        let result = {
            let mut running = std::pin::pin!(self.go_on(portal, halt, max_rows, &work));
            tokio::select! {
                result = &mut running => result,
                () = watch => {
                    timed_out = true;
                    late.cancel();
                    running.await
                }
            }
        };
        self.cancel.slot.work_is_over();
        match result {
            Ok(()) => Ok(Ok(())),
            Err(Failure::Server(frame)) => Ok(Err(frame.bytes)),
            Err(Failure::Own(_)) if timed_out => Err(super::failure::too_slow("fanout.query_timeout")),
            Err(Failure::Own(error) | Failure::Unmergeable(_, error)) => Err(error),
        }
    }

    async fn go_on(
        &mut self,
        portal: &[u8],
        halt: Option<Halt>,
        max_rows: i32,
        work: &CancellationToken,
    ) -> Result<(), Failure> {
        match halt {
            Some(Halt::Done) => {
                writer::command_complete(self.out(), "SELECT 0");
                self.keep_halted(portal, Halt::Done);
                Ok(())
            }
            Some(Halt::Spent) => Err(Failure::Own(
                Error::refused("more rows of a portal over several shards, in a transaction that has written")
                    .hint("Fetch all of its rows at once, or commit before it."),
            )),
            Some(Halt::Stream(stream)) => self.go_on_streaming(portal, *stream, max_rows, work).await,
            Some(Halt::Gathered { mut leg, is_verbatim }) => {
                let resumed =
                    coordinator::resume(is_verbatim, max_rows, &mut leg, &mut self.client, work, DRAIN_TIMEOUT);
                let (result, is_fit) = resumed.await;
                match result {
                    Ok(true) => self.keep_halted(portal, Halt::Gathered { leg, is_verbatim }),
                    _ => {
                        release(vec![leg], if is_fit { &[] } else { &[0] });
                        self.keep_halted(portal, Halt::Done);
                    }
                }
                result.map(|_| ())
            }
            _ => Err(Failure::Own(Error::internal("a portal that is resumed was suspended"))),
        }
    }

    async fn go_on_streaming(
        &mut self,
        portal: &[u8],
        stream: Stream,
        max_rows: i32,
        work: &CancellationToken,
    ) -> Result<(), Failure> {
        let Stream { mut legs, course, plan, types, bind } = stream;
        let bound = frontend::bind(bind.body()).map_err(|error| Failure::Own(malformed("Bind", error)))?;
        let run = Run {
            plan: &plan,
            types: &types,
            parameter_formats: &bound.formats,
            values: &bound.values,
            formats: ResultFormats { codes: &bound.result_formats, extra_float_digits: self.extra_float_digits() },
            describe: false,
            told: None,
            max_rows: rows_of(max_rows),
            unanswered: b"",
            standard_conforming_strings: self.conforming_strings(),
            memory_bytes: self.db.fanout.memory_bytes,
            max_parallel: self.db.fanout.max_parallel,
            drain_timeout: DRAIN_TIMEOUT,
        };
        let outcome = fanout::resume(&run, course, &mut legs, &mut self.client, work).await;
        match outcome.course {
            Some(course) => {
                let bind = bind.clone();
                self.keep_halted(portal, Halt::Stream(Box::new(Stream { legs, course, plan, types, bind })));
            }
            None => {
                release(legs, &outcome.broken);
                self.keep_halted(portal, Halt::Done);
            }
        }
        outcome.result.map(|_| ())
    }

    /// Notes that a portal has given all its rows: it may be asked for more.
    pub(super) fn note_done(&mut self, portal: &[u8]) {
        self.keep_halted(portal, Halt::Done);
    }

    /// Whether the transaction, and the settings at hand, let a portal of a former flight go on. PostgreSQL has read its constants and
    /// parameters by now, and shows each row as the settings say when it is fetched.
    pub(super) fn check_resuming(&self, portal: &[u8]) -> Result<(), Error> {
        if self.status == TransactionStatus::Failed {
            return Err(super::planned::aborted());
        }
        match self.suspended.as_ref().and_then(|suspended| suspended.0.get(portal)) {
            None | Some((_, Halt::Done | Halt::Spent)) => Ok(()),
            Some((moment, _)) if *moment == self.settings.changes() => Ok(()),
            Some(_) => Err(Error::refused("a portal over several shards of before settings were changed")
                .hint("Change settings before the portal is bound, or fetch all of its rows before.")),
        }
    }
}

/// Execute's row limit.
pub(super) fn rows_of(max_rows: i32) -> Option<u64> {
    u64::try_from(max_rows).ok().filter(|&rows| rows > 0)
}
