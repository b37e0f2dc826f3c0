//! The extended protocol where plans matter: messages are held up to Sync or Flush, then handled one execution at a time.

use bytes::Bytes;

use super::Session;
use super::context::Target;
use super::extended::{malformed, names_cursor};
use super::planned::{Execution, Way};
use super::portals::Halt;
use super::route::{NO_ROWS, ROUTE};
use super::unit::{asks_one_portal, asks_one_thing, describes_another, executes_again, prepares, statement_of};
use crate::backend::expect::Expect;
use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::sql::facts::SharedFacts;
use crate::wire::frame::Frame;
use crate::wire::frontend;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

/// Messages of the extended protocol that wait for their Sync.
#[derive(Debug, Default)]
pub(super) struct Flight {
    frames: Vec<Frame>,
    bytes: usize,
}

impl Flight {
    /// Whether nothing is held back.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// A statement as far as a plan must know it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) facts: SharedFacts,
    pub(super) text: Bytes,
    pub(super) types: Vec<u32>,
    /// It was prepared in an earlier flight.
    pub(super) is_earlier: bool,
}

impl Session {
    /// Holds a message back, or lets what is held back go at Sync and Flush.
    pub(super) async fn hold(&mut self, frame: Frame) -> Result<(), Error> {
        match frame.tag() {
            b'S' => {
                self.run_flight(true).await?;
                if self.suspended.is_some() && self.status == TransactionStatus::Idle {
                    Box::pin(self.close_halted(None)).await;
                }
                self.only_statements = true;
                if std::mem::take(&mut self.ignores_sync) {
                    return Ok(());
                }
                self.on_sync(frame).await
            }
            b'H' => {
                self.run_flight(false).await?;
                self.end_of_flush().await
            }
            _ => {
                self.flight.bytes += frame.bytes.len();
                self.flight.frames.push(frame);
                if self.flight.bytes > limits::FLIGHT_BYTES {
                    self.flight = Flight::default();
                    return Err(too_long());
                }
                Ok(())
            }
        }
    }

    /// What is held back goes on its way: something follows that cannot be held.
    pub(super) async fn flight_must_be_relayed(&mut self) -> Result<(), Error> {
        if self.db.is_planned() { self.run_flight(false).await } else { Ok(()) }
    }

    /// A Query or FunctionCall ends a pipeline that has no Sync, and is not heard if something in it failed.
    pub(super) async fn flight_goes_first(&mut self) -> Result<(), Error> {
        if self.flight.frames.is_empty() {
            return Ok(());
        }
        let simple = !std::mem::replace(&mut self.in_extended, true);
        self.run_flight(false).await?;
        self.in_extended = !simple;
        self.wait_for_answers().await
    }

    /// Handles what is held back. Errors of single executions are the client's; what is returned ends the session.
    /// `ends` says whether a Sync follows.
    async fn run_flight(&mut self, ends: bool) -> Result<(), Error> {
        let frames = std::mem::take(&mut self.flight).frames;
        if frames.is_empty() {
            return Ok(());
        }
        if self.hidden_sync {
            // An error in what was flushed before makes PostgreSQL skip all of this.
            self.wait_for_answers().await?;
        }
        let mut rest = frames.as_slice();
        while !rest.is_empty() && !self.is_unheard() {
            let end = rest.iter().position(|frame| frame.tag() == b'E').map_or(rest.len(), |at| at + 1);
            let (unit, behind) = rest.split_at(end);
            let is_last = ends && behind.iter().all(|frame| frame.tag() == b'C');
            if let Err(error) = Box::pin(self.run_unit(unit, behind, is_last)).await {
                self.fail(error).await?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// After a Flush that brought no execution nothing is open: the server is asked to sync, and is free.
    pub(super) async fn end_of_flush(&mut self) -> Result<(), Error> {
        let only_statements = self.only_statements;
        let Some(server) = self.held_server() else { return Ok(()) };
        if !server.expects.is_unsynced() || server.expects.is_skipping() {
            return Ok(());
        }
        if only_statements {
            writer::sync(&mut server.outbuf);
            server.add_kept_sync(true);
            server.expects.push(Expect::Sync { hidden: true });
            self.hidden_sync = true;
        } else {
            writer::flush(&mut server.outbuf);
        }
        Ok(())
    }

    /// Handles the messages up to one Execute, or those at the end that execute nothing; `behind` is what follows them,
    /// and whether nothing behind them can fail before a Sync.
    pub(super) async fn run_unit(&mut self, unit: &[Frame], behind: &[Frame], is_last: bool) -> Result<(), Error> {
        for (at, frame) in unit.iter().enumerate() {
            let named = statement_of(frame).filter(|name| !unit[..at].iter().any(|before| prepares(before, name)));
            if let Some(name) = named {
                self.wait_for_doubtful_parse(name).await?;
            }
        }
        if self.is_known_unit(unit)? {
            return self.relay_unit(unit, super::context::Target::Primary).await;
        }
        let unit = &unit[self.run_front(unit, behind).await?..];
        if unit.is_empty() {
            return Ok(());
        }
        let way = match self.way_of_unit(unit).await {
            Ok(way) => way.settled(unit, behind, self.status),
            Err(error) => {
                self.answer_front_of_failed(unit).await?;
                return Err(error);
            }
        };
        self.refuse_in_pipeline(&way, is_last)?;
        self.check_others(unit, &way).await?;
        let only_statements = unit.iter().all(|frame| !matches!(frame.tag(), b'B' | b'E'));
        let is_aside = !self.has_failed_alone() && self.describes_beside(way.relay_target());
        if only_statements && !matches!(way, Way::Describe(_)) && is_aside {
            return self.describe_aside(unit, way.relay_target()).await;
        }
        match way {
            Way::Relay(target) => return self.relay_unit(unit, target).await,
            Way::Describe(_) => return self.answer_unit(unit, way).await,
            _ => {}
        }
        let described = unit.iter().rposition(|frame| frame.tag() == b'D' && frame.body().first() == Some(&b'S'));
        let Some(at) = described else { return self.answer_unit(unit, way).await };
        // The types of parameters and columns are a server's to tell; what they are may change the plan.
        drop(way);
        let (statements, rest) = unit.split_at(at + 1);
        let way = self.way_of_unit(statements).await?;
        if matches!(way, Way::Bind) {
            return Err(described_alone());
        }
        let target = way.relay_target();
        if matches!(way, Way::Describe(_)) {
            self.answer_unit(statements, way).await?;
        } else if self.describes_beside(target) {
            self.describe_aside(statements, target).await?;
        } else {
            self.relay_unit(statements, target).await?;
            self.end_of_flush().await?;
            self.wait_for_answers().await?;
        }
        if self.is_unheard() || rest.is_empty() {
            return Ok(());
        }
        let way = self.way_of_unit(rest).await?.settled(rest, behind, self.status);
        self.refuse_in_pipeline(&way, is_last)?;
        match way {
            Way::Relay(target) => self.relay_unit(rest, target).await,
            way => self.answer_unit(rest, way).await,
        }
    }

    /// Prepares and describes outside the client's transaction, which must not be tied to a server by that. A server that the
    /// transaction has already waits meanwhile.
    async fn describe_aside(&mut self, unit: &[Frame], target: super::context::Target) -> Result<(), Error> {
        let beside = self.settings_beside().await?;
        let within = self.settings.is_uncertain().then(|| self.settings.as_if_outside(beside));
        let within = within.map(|beside| std::mem::replace(&mut self.settings, beside));
        let (begin, status) = (std::mem::take(&mut self.lazy_begin), self.status);
        let held = self.server.take();
        // Whatever the pipeline has executed, it was not there: that server is given its Sync.
        let only_statements = std::mem::replace(&mut self.only_statements, true);
        let mut result = self.relay_unit(unit, target).await;
        if result.is_ok() {
            result = self.end_of_flush().await;
        }
        if result.is_ok() {
            result = self.wait_for_answers().await;
        }
        self.only_statements &= only_statements;
        if let Some(within) = within {
            self.settings = within;
        }
        self.lazy_begin = begin;
        self.status = status;
        if self.skipping && status == TransactionStatus::InTransaction {
            self.status = TransactionStatus::Failed;
        }
        if let Some(held) = held {
            self.return_to(held);
        }
        result
    }

    /// Goes back to the transaction's own server, which fails if what was described elsewhere did.
    fn return_to(&mut self, mut held: super::Attached) {
        if let Some(mut aside) = self.server.take() {
            aside.lease.server().spill(&mut self.client.outbuf);
            if !aside.lease.server().is_at_rest() {
                aside.lease.server().mark_broken();
            }
            aside.lease.release();
        }
        let server = held.lease.server();
        if self.skipping && server.status != TransactionStatus::Idle {
            writer::parse(&mut server.outbuf, b"", super::failure::POISON, &[]);
            server.unnamed = Some(crate::backend::server::UNKNOWN_STATEMENT);
            server.expects.push(Expect::Poison(Bytes::new()));
        }
        self.cancel.slot.aim_at(std::sync::Arc::clone(&server.cancel_target));
        self.server = Some(held);
    }

    /// Whether a statement is described by a server that the transaction does not have, while it has another at rest.
    fn describes_beside(&mut self, target: super::context::Target) -> bool {
        let Some(attached) = &self.server else { return true };
        matches!(target, Target::Shard(_))
            && attached.target != target
            && (self.span.is_none() || self.db.two_phase.is_none() || self.may_relocate())
            && attached.lease.awaits_nothing(TransactionStatus::InTransaction)
            && self.can_plan_by_settings()
            && self.holds_nothing_odd()
    }

    async fn relay_unit(&mut self, unit: &[Frame], target: super::context::Target) -> Result<(), Error> {
        self.flight_target = Some(target);
        let is_described = unit.iter().any(|frame| frame.tag() == b'D' && frame.body().first() == Some(&b'P'));
        let mut result = Ok(());
        for frame in unit {
            let frame = frame.clone();
            self.only_statements &= !matches!(frame.tag(), b'B' | b'E');
            result = match frame.tag() {
                b'P' => self.on_parse(frame).await,
                b'B' => self.bind_statement(frame, is_described).await,
                b'D' => self.on_describe(frame).await,
                b'E' => self.on_execute(frame).await,
                _ => self.on_close(frame).await,
            };
            if result.is_err() {
                break;
            }
        }
        self.flight_target = None;
        result
    }

    /// Where a unit runs: planned by what it executes, or by the statements that it only prepares or describes.
    async fn way_of_unit(&mut self, unit: &[Frame]) -> Result<Way, Error> {
        let executed = match unit.last().filter(|frame| frame.tag() == b'E') {
            Some(frame) => Some(frontend::execute(frame.body()).map_err(|error| malformed("Execute", error))?),
            None => None,
        };
        let Some(execute) = executed else { return self.way_of_statements(unit).await };
        let bind = self.bind_of(unit, execute.portal)?;
        let Some(bind) = bind else {
            if self.is_halted(execute.portal) {
                self.check_resuming(execute.portal)?;
                if unit.iter().any(|frame| frame.tag() == b'D' && frame.body().first() == Some(&b'P')) {
                    return Err(described_alone());
                }
                return Ok(Way::Resume);
            }
            self.check_portal_of_failed(execute.portal)?;
            // A portal of an earlier flight, or none: its server, or the server's own error.
            return Ok(Way::Relay(self.default_target()));
        };
        let bound = frontend::bind(bind.body()).map_err(|error| malformed("Bind", error))?;
        let Some(asked) = self.asked_of_portal(unit, execute.portal, bound.statement)? else {
            return Ok(Way::Relay(self.default_target()));
        };
        let execution = Execution {
            facts: &asked.facts,
            text: &asked.text,
            types: &asked.types,
            bind: Some((&bind, &bound)),
            max_rows: execute.max_rows,
            unanswered: b"",
        };
        let way = self.way(&execution).await?;
        let way = if asked.is_earlier { self.way_as_read(bound.statement, way).await? } else { way };
        if !binds(unit, execute.portal) && !matches!(way, Way::Fail(_)) {
            self.check_resuming(execute.portal)?;
        }
        if matches!(way, Way::Relay(_) | Way::ReadOnly(_)) && self.bound_before(execute.portal).is_some() {
            return Err(Error::refused("a portal that was bound over several shards would run on one server now")
                .hint("Bind it again."));
        }
        if matches!(way, Way::FanOut(_)) && self.reads_within() && !binds(unit, execute.portal) {
            // It was to see what was there when it was bound.
            return Err(Error::refused("a portal over several shards of before its transaction's writes")
                .hint("Bind it again."));
        }
        Ok(way)
    }

    /// The statement that a portal runs: what it was bound to, if that was in a former flight.
    fn asked_of_portal(&self, unit: &[Frame], portal: &[u8], statement: &[u8]) -> Result<Option<Asked>, Error> {
        let bound = self.bound_before(portal).and_then(|_| self.portals.get(portal));
        match bound.filter(|_| !binds(unit, portal)) {
            Some(prepared) => Ok(Some(Asked {
                facts: prepared.facts.clone(),
                text: prepared.text(),
                types: prepared.known_types(),
                is_earlier: false,
            })),
            None => self.asked(unit, statement),
        }
    }

    /// Whether the unit executes a statement that is known to go to the primary: then nothing else in it matters.
    fn is_known_unit(&mut self, unit: &[Frame]) -> Result<bool, Error> {
        let Some(execute) = unit.last().filter(|frame| frame.tag() == b'E') else { return Ok(false) };
        let execute = frontend::execute(execute.body()).map_err(|error| malformed("Execute", error))?;
        let bound = |frame: &&Frame| frame.tag() == b'B';
        let names = unit.iter().rev().find(bound).and_then(|frame| frontend::bind_names(frame.body()));
        let Some((portal, name)) = names else { return Ok(false) };
        if portal != execute.portal || !self.lazy_begin.is_empty() || self.status == TransactionStatus::Failed {
            return Ok(false);
        }
        let Some(asked) = self.asked(unit, name)? else { return Ok(false) };
        let is_known = self.is_known_primary(&asked.facts)
            && self.server.as_ref().is_none_or(|attached| attached.target == super::context::Target::Primary);
        self.read_ahead = Some((asked.text, asked.facts));
        Ok(is_known)
    }

    async fn way_of_statements(&mut self, unit: &[Frame]) -> Result<Way, Error> {
        let mut way = Way::Relay(self.default_target());
        for frame in unit {
            if frame.tag() == b'B'
                && let Some(bound) = self.way_of_bind(unit, frame).await?
            {
                return Ok(bound);
            }
            let name = match frame.tag() {
                b'P' => frontend::parse(frame.body()).map_err(|error| malformed("Parse", error))?.name,
                b'D' => match frontend::target(frame.body()).map_err(|error| malformed("Describe", error))? {
                    target if !target.is_portal => target.name,
                    target => {
                        self.check_portal_of_failed(target.name)?;
                        if self.is_halted(target.name) {
                            return Err(described_alone());
                        }
                        continue;
                    }
                },
                b'B' => frontend::bind(frame.body()).map_err(|error| malformed("Bind", error))?.statement,
                _ => continue,
            };
            let asked = self.asked(unit, name)?.filter(|_| frame.tag() != b'D' || !self.is_described_in_failed(name));
            if let Some(asked) = asked {
                let execution = Execution::described(&asked.facts, &asked.text, &asked.types);
                way = match self.way(&execution).await? {
                    Way::InsertSelect(plan) if plan.is_on_primary() => {
                        if unit.iter().any(|frame| frame.tag() == b'B') {
                            return Err(described_alone());
                        }
                        Way::Describe(NO_ROWS)
                    }
                    Way::Explain(_) => {
                        if unit.iter().any(|frame| frame.tag() == b'B') {
                            return Err(described_alone());
                        }
                        Way::Describe(&ROUTE)
                    }
                    way if names_cursor(&asked.facts) => Way::Relay(way.describe_target()),
                    way => Way::Relay(self.where_described(&way)),
                };
            }
        }
        Ok(way)
    }

    /// The Bind of a portal within a unit.
    fn bind_of(&self, unit: &[Frame], portal: &[u8]) -> Result<Option<Frame>, Error> {
        for frame in unit.iter().rev().filter(|frame| frame.tag() == b'B') {
            let bind = frontend::bind(frame.body()).map_err(|error| malformed("Bind", error))?;
            if bind.portal == portal {
                return Ok(Some(frame.clone()));
            }
        }
        Ok(self.bound_before(portal))
    }

    /// The statement of that name: prepared within the unit, or before; none if the unit closes it.
    pub(super) fn asked(&self, unit: &[Frame], name: &[u8]) -> Result<Option<Asked>, Error> {
        for frame in unit.iter().rev().filter(|frame| matches!(frame.tag(), b'P' | b'C')) {
            if frame.tag() == b'C' {
                let closed = frontend::target(frame.body()).map_err(|error| malformed("Close", error))?;
                if !closed.is_portal && closed.name == name {
                    return Ok(None);
                }
                continue;
            }
            let parse = frontend::parse(frame.body()).map_err(|error| malformed("Parse", error))?;
            if parse.name == name {
                let text = frame.bytes.slice_ref(parse.text);
                let facts = match &self.read_ahead {
                    Some((read, facts)) if std::ptr::eq(&**read, &*text) => facts.clone(),
                    _ => self.db.shared.analyzer.facts_of_parse(parse.text, self.conforming_strings()),
                };
                return Ok(Some(Asked { facts, text, types: parse.types, is_earlier: false }));
            }
        }
        Ok(self.statement(name).map(|prepared| Asked {
            facts: prepared.facts.clone(),
            text: prepared.text(),
            types: prepared.known_types(),
            is_earlier: true,
        }))
    }

    /// Handles a unit that pgherd answers itself.
    async fn answer_unit(&mut self, unit: &[Frame], way: Way) -> Result<(), Error> {
        if describes_another(unit) {
            return Err(Error::refused(
                "a portal is described in front of one over several shards, or from the cache, that is executed",
            )
            .hint("Send Sync between the two, or describe the statement."));
        }
        self.wait_for_answers().await?;
        if self.is_unheard() {
            return Ok(());
        }
        let mut way = Some(way);
        let mut described = false;
        // What a server says to the client's own Parse and Bind is told as it says it: either may be what fails.
        let is_told = asks_one_portal(unit) && way.as_ref().is_some_and(Way::is_read_aside) && !self.binds_again(unit);
        let unanswered = if is_told {
            if unit.iter().any(|frame| frame.tag() == b'P') { PARSED_AND_BOUND } else { BOUND }
        } else {
            b""
        };
        let description = match &way {
            Some(Way::Describe(description)) => Some(*description),
            _ => None,
        };
        for frame in unit {
            if let (b'D', Some(description)) = (frame.tag(), description) {
                self.answer_in_turn(description);
            }
            match frame.tag() {
                b'P' => {
                    self.learn_exact_settings().await?;
                    let (name, prepared) = self.read_parse(frame)?;
                    self.keep_statement(&name, prepared);
                    if unanswered.is_empty() {
                        self.answer_in_turn(b"1\0\0\0\x04");
                    }
                }
                b'B' => {
                    let bind = frontend::bind(frame.body()).map_err(|error| malformed("Bind", error))?;
                    if self.suspended.is_some() {
                        self.check_unbound(bind.portal)?;
                        Box::pin(self.close_halted(Some(bind.portal))).await;
                    }
                    if let Some(prepared) = self.statement(bind.statement) {
                        self.keep_portal(bind.portal, prepared)?;
                    }
                    if matches!(way, Some(Way::Bind)) {
                        self.keep_halted(bind.portal, Halt::Bound(frame.clone()));
                    }
                    if unanswered.is_empty() {
                        self.answer_in_turn(BOUND);
                    }
                }
                b'D' => described = true,
                b'C' => self.on_close(frame.clone()).await?,
                _ => {
                    if let Some(way) = way.take() {
                        self.go_extended(unit, frame, described, unanswered, way).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Executes one portal of a unit that pgherd answers itself.
    async fn go_extended(
        &mut self,
        unit: &[Frame],
        execute: &Frame,
        described: bool,
        unanswered: &[u8],
        way: Way,
    ) -> Result<(), Error> {
        let execute = frontend::execute(execute.body()).map_err(|error| malformed("Execute", error))?;
        if matches!(way, Way::Resume) {
            self.wait_for_answers().await?;
            if let Err(message) = Box::pin(self.resume(execute.portal, execute.max_rows)).await? {
                self.fail_with(message);
            }
            return Ok(());
        }
        let Some(bind) = self.bind_of(unit, execute.portal)? else {
            return Err(Error::internal("a planned portal has no Bind"));
        };
        let bound = frontend::bind(bind.body()).map_err(|error| malformed("Bind", error))?;
        let Some(asked) = self.asked_of_portal(unit, execute.portal, bound.statement)? else {
            return Err(Error::internal("a planned portal has no statement"));
        };
        self.begin_halted(execute.portal);
        let execution = Execution {
            facts: &asked.facts,
            text: &asked.text,
            types: &asked.types,
            bind: Some((&bind, &bound)),
            max_rows: execute.max_rows,
            unanswered,
        };
        Box::pin(self.go(&execution, described, way)).await?;
        self.forget_begun(execute.portal);
        Ok(())
    }
}

/// Whether a portal of that name is bound in the unit.
fn binds(unit: &[Frame], portal: &[u8]) -> bool {
    let mut binds = unit.iter().filter(|frame| frame.tag() == b'B');
    binds.any(|frame| frontend::bind_names(frame.body()).is_some_and(|(name, _)| name == portal))
}

/// BindComplete.
const BOUND: &[u8] = b"2\0\0\0\x04";
/// ParseComplete and BindComplete.
const PARSED_AND_BOUND: &[u8] = b"1\0\0\0\x042\0\0\0\x04";

impl Way {
    /// A portal that is wanted again, or others beside it: only the transaction's own server can keep them.
    fn settled(self, unit: &[Frame], behind: &[Frame], status: TransactionStatus) -> Self {
        let is_aside = match &self {
            Self::ReadOnly(target) => !matches!(target, Target::Shard(_)),
            Self::Hit(..) | Self::Failed(_) | Self::Fill(..) | Self::Split(_) | Self::Empty => true,
            _ => false,
        };
        let is_alone = asks_one_thing(unit) && !executes_again(behind);
        // A transaction that failed before any server knew of it stays here: what still works in it is empty.
        if is_aside && !is_alone && status != TransactionStatus::Failed { Self::Relay(Target::Primary) } else { self }
    }
}

pub(super) fn described_alone() -> Error {
    Error::refused("a portal over several shards cannot be described on its own")
        .hint("Describe it in the flight that binds and executes it, or describe the statement.")
}

fn too_long() -> Error {
    let limit = limits::FLIGHT_BYTES;
    Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, format!("more than {limit} bytes before a Sync"))
        .hint("Send Sync more often, or use COPY for bulk data.")
}
