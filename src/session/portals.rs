//! Portals over several shards that outlive the message that executes them: bound in one flight and executed in another, or
//! suspended by a row limit while their legs wait.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::Session;
use super::extended::malformed;
use super::fan_out::{DRAIN_TIMEOUT, LeasedLeg, release};
use super::levels::Levels;
use crate::error::{Error, ErrorKind};
use crate::exec::coordinator;
use crate::exec::fanout::{self, Course, Failure, Run};
use crate::exec::merge::ResultFormats;
use crate::plan::distribute::Streamed;
use crate::sql::facts::{Class, Facts, Statement, TransactionControl};
use crate::wire::frame::Frame;
use crate::wire::frontend;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

/// Portals by name, and the savepoints that they stand behind. Boxed where there are any: an idle session is small.
#[derive(Default)]
pub(super) struct Suspended {
    portals: HashMap<Bytes, Kept>,
    levels: Levels,
}

/// A portal.
struct Kept {
    /// The moment of the session's settings since which it stands where it stands.
    moment: u32,
    /// How many of the savepoints stand before its Bind.
    level: usize,
    halt: Halt,
}

/// Where a portal stands.
pub(super) enum Halt {
    /// It is bound and was not executed.
    Bound(Frame),
    /// It has given all its rows.
    Done,
    /// It is being executed, or an error has ended that: PostgreSQL does not run it again.
    Failed,
    /// It may have gone with a savepoint.
    Doubtful,
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
    /// Keeps a portal for later messages. One that is being executed stands behind the savepoints that it stood behind.
    pub(super) fn keep_halted(&mut self, portal: &[u8], halt: Halt) {
        let moment = self.settings.changes();
        let suspended = self.suspended.get_or_insert_default();
        let level = match suspended.portals.get(portal) {
            Some(Kept { halt: Halt::Failed, level, .. }) => *level,
            _ => suspended.levels.now(),
        };
        suspended.portals.insert(Bytes::copy_from_slice(portal), Kept { moment, level, halt });
    }

    fn halt_of(&self, portal: &[u8]) -> Option<&Halt> {
        self.suspended.as_ref()?.portals.get(portal).map(|kept| &kept.halt)
    }

    /// The Bind of a portal that a former flight bound and did not execute.
    pub(super) fn bound_before(&self, portal: &[u8]) -> Option<Frame> {
        match self.halt_of(portal)? {
            Halt::Bound(bind) => Some(bind.clone()),
            _ => None,
        }
    }

    /// A portal is about to be executed for the first time. If it was bound in a former flight it is kept, and of no use where that fails.
    pub(super) fn begin_halted(&mut self, portal: &[u8]) {
        match self.bound_before(portal) {
            Some(_) => drop(self.take_halt(portal)),
            None => self.forget_suspended(portal),
        }
    }

    /// Such a portal has been executed, and nothing is kept of it.
    pub(super) fn forget_begun(&mut self, portal: &[u8]) {
        if matches!(self.halt_of(portal), Some(Halt::Failed)) && !self.is_unheard() {
            self.forget_suspended(portal);
        }
    }

    /// Where a portal stands, for whoever executes it.
    fn take_halt(&mut self, portal: &[u8]) -> Option<Halt> {
        let kept = self.suspended.as_mut()?.portals.get_mut(portal)?;
        Some(std::mem::replace(&mut kept.halt, Halt::Failed))
    }

    /// Fails as PostgreSQL does where a portal is there already; the unnamed one gives way. Outside of a transaction those at hand are gone.
    pub(super) fn check_unbound(&self, portal: &[u8]) -> Result<(), Error> {
        if portal.is_empty() || self.status == TransactionStatus::Idle || !self.is_halted(portal) {
            return Ok(());
        }
        if matches!(self.halt_of(portal), Some(Halt::Doubtful)) {
            return Err(doubtful());
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
        self.suspended.as_ref().is_some_and(|suspended| suspended.portals.contains_key(portal))
    }

    /// The portal of that name is another, or none. Connections that it kept are closed: [`Session::close_halted`] is kinder.
    pub(super) fn forget_suspended(&mut self, portal: &[u8]) {
        if let Some(suspended) = &mut self.suspended {
            suspended.portals.remove(portal);
        }
    }

    /// Ends a portal and gives back what it kept; all of them without a name.
    pub(super) async fn close_halted(&mut self, portal: Option<&[u8]>) {
        let Some(suspended) = &mut self.suspended else { return };
        let halted: Vec<Kept> = match portal {
            Some(portal) => suspended.portals.remove(portal).into_iter().collect(),
            None => std::mem::take(&mut suspended.portals).into_values().collect(),
        };
        if suspended.portals.is_empty() {
            self.suspended = None;
        }
        for Kept { halt, .. } in halted {
            match halt {
                Halt::Bound(_) | Halt::Done | Halt::Failed | Halt::Doubtful | Halt::Spent => {}
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

    /// Waits for what was just sent, where it may take portals with it, or decides which of them a savepoint will take.
    pub(super) async fn settle_portals(&mut self, facts: &Facts) -> Result<(), Error> {
        let mut controls = facts.statements.iter().filter_map(control).peekable();
        if controls.peek().is_none() {
            return Ok(());
        }
        // The end of a transaction is told by the Sync that is the client's own.
        let ends = controls.any(|control| control == Control::End);
        match ends {
            true => self.wait_for_answers().await?,
            false => self.come_to_rest().await?,
        }
        if facts.single().is_none() && self.status == TransactionStatus::Failed {
            // How far it has come is not known.
            let kept = self.suspended.iter_mut().flat_map(|suspended| suspended.portals.values_mut());
            kept.for_each(|kept| kept.halt = Halt::Doubtful);
        } else if !self.is_unheard() && (ends || self.status != TransactionStatus::Failed) {
            self.portals_after(facts).await;
        }
        Ok(())
    }

    /// Statements have worked: some of the portals may have gone with a savepoint, or all with their transaction.
    pub(super) async fn portals_after(&mut self, facts: &Facts) {
        for statement in &facts.statements {
            let (Some(control), Some(suspended)) = (control(statement), &mut self.suspended) else { continue };
            let name = statement.savepoint.as_deref().unwrap_or_default();
            match control {
                Control::Savepoint => suspended.levels.set(name),
                Control::Release => {
                    let level = suspended.levels.release(name);
                    suspended.portals.values_mut().for_each(|kept| kept.level = kept.level.min(level));
                }
                Control::RollbackTo => {
                    let stays = suspended.levels.go_back(name);
                    let gone =
                        suspended.portals.iter().filter(|(_, kept)| stays.is_none_or(|level| kept.level > level));
                    let gone: Vec<Bytes> = gone.map(|(name, _)| name.clone()).collect();
                    for portal in gone {
                        self.close_halted(Some(&portal)).await;
                    }
                }
                Control::End => self.close_halted(None).await,
            }
        }
    }

    /// Executes a suspended portal again. An error of a server's comes back as the bytes that the client is to get.
    pub(super) async fn resume(&mut self, portal: &[u8], max_rows: i32) -> Result<Result<(), Bytes>, Error> {
        self.spill();
        let halt = self.take_halt(portal);
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
            Some(Halt::Spent) => {
                self.keep_halted(portal, Halt::Spent);
                Err(Failure::Own(
                    Error::refused("more rows of a portal over several shards, in a transaction that has written")
                        .hint("Fetch all of its rows at once, or commit before it."),
                ))
            }
            Some(Halt::Doubtful) => {
                self.keep_halted(portal, Halt::Doubtful);
                Err(Failure::Own(doubtful()))
            }
            Some(Halt::Failed) => {
                let message = format!("portal \"{}\" cannot be run", String::from_utf8_lossy(portal));
                Err(Failure::Own(Error::new(ErrorKind::Refused, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)))
            }
            Some(Halt::Stream(stream)) => self.go_on_streaming(portal, *stream, max_rows, work).await,
            Some(Halt::Gathered { mut leg, is_verbatim }) => {
                let resumed =
                    coordinator::resume(is_verbatim, max_rows, &mut leg, &mut self.client, work, DRAIN_TIMEOUT);
                let (result, is_fit) = resumed.await;
                if let Ok(true) = result {
                    self.keep_halted(portal, Halt::Gathered { leg, is_verbatim });
                    return Ok(());
                }
                release(vec![leg], if is_fit { &[] } else { &[0] });
                if result.is_ok() {
                    self.keep_halted(portal, Halt::Done);
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
                if outcome.result.is_ok() {
                    self.keep_halted(portal, Halt::Done);
                }
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
        match self.suspended.as_ref().and_then(|suspended| suspended.portals.get(portal)) {
            None | Some(Kept { halt: Halt::Done | Halt::Spent | Halt::Failed | Halt::Doubtful, .. }) => Ok(()),
            Some(kept) if kept.moment == self.settings.changes() => Ok(()),
            Some(_) => Err(Error::refused("a portal over several shards of before settings were changed")
                .hint("Change settings before the portal is bound, or fetch all of its rows before.")),
        }
    }
}

/// What a statement does to the portals of its transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Control {
    Savepoint,
    Release,
    RollbackTo,
    End,
}

fn control(statement: &Statement) -> Option<Control> {
    use TransactionControl::{
        Commit, CommitAndChain, Prepare, Release, Rollback, RollbackAndChain, RollbackTo, Savepoint,
    };
    match statement.class {
        Class::Transaction(Savepoint) => Some(Control::Savepoint),
        Class::Transaction(Release) => Some(Control::Release),
        Class::Transaction(RollbackTo) => Some(Control::RollbackTo),
        Class::Transaction(Commit | CommitAndChain | Rollback | RollbackAndChain | Prepare) => Some(Control::End),
        _ => None,
    }
}

fn doubtful() -> Error {
    Error::refused("a portal over several shards behind savepoints in a query string that failed")
        .hint("Send SAVEPOINT, RELEASE and ROLLBACK TO as statements of their own.")
}

/// Execute's row limit.
pub(super) fn rows_of(max_rows: i32) -> Option<u64> {
    u64::try_from(max_rows).ok().filter(|&rows| rows > 0)
}
