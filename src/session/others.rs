//! What a unit of a flight speaks of beside the statement that decides where it goes: statements of other servers are prepared and described
//! there, in front of it, and what would have to be bound there is refused.

use super::Session;
use super::context::Target;
use super::extended::{malformed, names_cursor};
use super::flight::Asked;
use super::planned::{Execution, Way};
use super::unit::{decides, front, statement_of, subject_of};
use crate::error::Error;
use crate::sql::facts::Name;
use crate::wire::frame::Frame;
use crate::wire::frontend;

impl Session {
    /// Prepares and describes what a unit has in front that is not the statement which decides where it goes, each where it belongs.
    /// Returns how many of its messages have been seen to.
    pub(super) async fn run_front(&mut self, unit: &[Frame], behind: &[Frame]) -> Result<usize, Error> {
        let front = front(unit);
        if front == 0 || !self.db.config.is_distributed() {
            return Ok(0);
        }
        let mut rest = &unit[..front];
        while let Some(first) = rest.iter().find_map(subject_of) {
            let is_another = |frame: &Frame| subject_of(frame).is_some_and(|name| name != first);
            let (group, others) = rest.split_at(rest.iter().position(is_another).unwrap_or(rest.len()));
            Box::pin(self.run_unit(group, behind, false)).await?;
            if self.skipping {
                return Ok(unit.len());
            }
            rest = others;
        }
        if front < unit.len() {
            self.end_of_flush().await?;
            self.wait_for_answers().await?;
        }
        Ok(if self.skipping { unit.len() } else { front })
    }

    /// Sees to it that all that a unit speaks of is found where the unit goes.
    ///
    /// # Errors
    /// Some of it would have to be bound, described or prepared on another server.
    pub(super) async fn check_others(&mut self, unit: &[Frame], way: &Way) -> Result<(), Error> {
        if !self.db.config.is_distributed() {
            return Ok(());
        }
        let (own, bound_at) = decides(unit);
        for (at, frame) in unit.iter().enumerate() {
            let Some(name) = subject_of(frame).or_else(|| statement_of(frame)) else { continue };
            if at == bound_at || (frame.tag() != b'B' && Some(name) == own) {
                continue;
            }
            let Some(asked) = self.asked(unit, name)? else { continue };
            let described = Execution::described(&asked.facts, &asked.text, &asked.types);
            if let Way::Relay(target) = way
                && (self.is_same_everywhere(&described) || self.is_found_at(*target, frame, &asked).await?)
            {
                continue;
            }
            return Err(Error::refused("statements of several servers that are bound in front of one Execute")
                .hint("Prepare them in front, and bind each right before it is executed."));
        }
        Ok(())
    }

    /// Whether what a message speaks of is found on that server: a portal's rows may be on one alone.
    async fn is_found_at(&mut self, target: Target, frame: &Frame, asked: &Asked) -> Result<bool, Error> {
        let described = Execution::described(&asked.facts, &asked.text, &asked.types);
        if frame.tag() != b'B' {
            let there = self.way(&described).await?.describe_target();
            return Ok(target == there || (!names_cursor(&asked.facts) && self.is_alike(target, there)));
        }
        let bound = frontend::bind(frame.body()).map_err(|error| malformed("Bind", error))?;
        let way = self.way(&Execution { bind: Some((frame, &bound)), ..described }).await?;
        Ok(matches!(way, Way::Relay(there) | Way::ReadOnly(there) if there == target))
    }

    /// Where a Bind goes that nothing in its flight executes, where that is not where its statement is described.
    pub(super) async fn way_of_bind(&mut self, unit: &[Frame], frame: &Frame) -> Result<Option<Way>, Error> {
        if !self.db.config.is_distributed() {
            return Ok(None);
        }
        let bound = frontend::bind(frame.body()).map_err(|error| malformed("Bind", error))?;
        let Some(asked) = self.asked(unit, bound.statement)? else { return Ok(None) };
        let tables = &self.db.config.tables;
        let is_known = |name: &Name| tables.iter().any(|table| *table.name == *name.name);
        let statements = &asked.facts.statements;
        if !statements.iter().any(|statement| statement.reads.iter().chain(&statement.writes).any(is_known)) {
            return Ok(None);
        }
        let described = Execution::described(&asked.facts, &asked.text, &asked.types);
        let way = self.way(&Execution { bind: Some((frame, &bound)), ..described }).await?;
        let way = if asked.is_earlier { self.way_as_read(bound.statement, way).await? } else { way };
        match way {
            Way::FanOut(_) | Way::Gather(_) | Way::ExplainOver(_) => {}
            Way::Relay(target) | Way::ReadOnly(target @ Target::Shard(_)) => return Ok(Some(Way::Relay(target))),
            Way::Scatter(_) | Way::InsertSelect(_) | Way::KeyMove(_) | Way::CopyIn(_) | Way::Cursor(_) => {
                return Err(Error::refused("a portal over several shards that changes something, bound alone")
                    .hint("Bind and execute it before Sync."));
            }
            _ => return Ok(None),
        }
        let is_alone = unit.iter().filter(|frame| frame.tag() == b'B').count() == 1;
        let is_described = unit.iter().any(|frame| frame.tag() == b'D' && frame.body().first() == Some(&b'P'));
        if is_alone && !is_described {
            return Ok(Some(Way::Bind));
        }
        Err(Error::refused(
            "a portal over several shards that is described, or bound with others, before it is executed",
        )
        .hint("Bind and execute it before Sync, or describe the statement."))
    }

    /// Where a statement is described that goes this way: any shard that is at hand knows as much of it as any other.
    pub(super) fn where_described(&self, way: &Way) -> Target {
        let there = way.describe_target();
        let at_hand = self.default_target();
        if self.is_alike(at_hand, there) { at_hand } else { there }
    }

    /// Whether statements mean the same on both servers.
    fn is_alike(&self, one: Target, other: Target) -> bool {
        let are_shards = matches!((one, other), (Target::Shard(_), Target::Shard(_)));
        one == other || (are_shards && self.db.config.schemas.is_none())
    }
}
