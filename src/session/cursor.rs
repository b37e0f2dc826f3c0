//! DECLARE of a cursor over several shards: the coordinator becomes the transaction's server and keeps it; FETCH, MOVE and CLOSE go
//! there as they go to any server.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::context::Target;
use super::fan_out::{DRAIN_TIMEOUT, LeasedLeg, release};
use super::planned::Execution;
use super::{Attached, Session};
use crate::error::{Error, ErrorKind};
use crate::exec::coordinator::{self, Budget, Opening, Run};
use crate::exec::fanout::Failure;
use crate::plan::distribute::Gathered;
use crate::sql::facts::{Class, Effect, Facts, Statement};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::TransactionStatus;

/// What a transaction begins with that makes temporary tables, whatever the client made of it.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// Which server of a transaction has which cursor.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    known: Vec<(Box<str>, Target)>,
    /// The transaction has gone back to a savepoint: some may have gone with it.
    may_be_gone: bool,
}

impl Cursors {
    pub(super) fn may_be_gone(&mut self) {
        self.may_be_gone = true;
    }

    /// Notes what a statement about a cursor does on that server.
    ///
    /// # Errors
    /// Another server has a cursor of that name.
    fn note(&mut self, statement: &Statement, target: Target) -> Result<(), Error> {
        let declares = |effect: &Effect| matches!(effect, Effect::Cursor | Effect::HoldCursor);
        if statement.explain {
            return Ok(());
        }
        if statement.effects.contains(&Effect::CloseCursor) {
            self.known.retain(|(name, _)| statement.cursor.as_ref().is_some_and(|closed| closed != name));
            return Ok(());
        }
        let Some(name) = statement.cursor.as_ref().filter(|_| statement.effects.iter().any(declares)) else {
            return Ok(());
        };
        match self.known.iter().position(|(known, _)| known == name) {
            Some(at) if self.known[at].1 == target => Ok(()),
            Some(_) if self.may_be_gone => Err(Error::refused(
                "a cursor called as one that another server of the transaction had before a savepoint",
            )
            .hint("Give it another name.")),
            Some(_) => {
                let message = format!("cursor \"{name}\" already exists");
                Err(Error::new(ErrorKind::Refused, SqlState::DUPLICATE_CURSOR, message))
            }
            None => {
                self.known.push((name.clone(), target));
                Ok(())
            }
        }
    }

    /// The servers whose cursors a statement uses.
    fn used<'a>(&'a self, statement: &'a Statement) -> impl Iterator<Item = Target> + 'a {
        let closes_all = statement.effects.contains(&Effect::CloseCursor) && statement.cursor.is_none();
        let is_meant = move |name: &str| closes_all || statement.cursor.as_deref() == Some(name);
        self.known.iter().filter(move |(name, _)| is_meant(name)).map(|(_, target)| *target)
    }
}

impl Session {
    /// The server that has the cursors which FETCH, MOVE and CLOSE name.
    ///
    /// # Errors
    /// Several have.
    pub(super) fn target_of_cursors(&self, facts: &Facts) -> Result<Option<Target>, Error> {
        let Some(span) = &self.span else { return Ok(None) };
        let uses = facts.statements.iter().filter(|it| it.class == Class::Session && it.reads.is_empty());
        let mut targets = uses.flat_map(|statement| span.cursors.used(statement));
        let Some(first) = targets.next() else { return Ok(None) };
        if targets.any(|target| target != first) {
            return Err(Error::refused("a statement about cursors that several servers have")
                .hint("Send a statement for each cursor."));
        }
        Ok(Some(first))
    }

    /// Notes the cursors that a statement declares or closes on the server at hand.
    pub(super) fn note_cursors(&mut self, facts: &Facts) -> Result<(), Error> {
        let target = self.default_target();
        let Some(span) = &mut self.span else { return Ok(()) };
        facts.statements.iter().try_for_each(|statement| span.cursors.note(statement, target))
    }

    /// Ships the rows and declares the cursor. An error of a server's comes back as the bytes that the client is to get.
    pub(super) async fn declare_cursor(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        gathered: &Arc<Gathered>,
    ) -> Result<Result<(), Bytes>, Error> {
        let target = if self.db.config.coordinator.is_some() { Target::Coordinator } else { Target::Primary };
        self.check_place_for_cursor(target)?;
        let mut legs = Vec::with_capacity(gathered.shards.len() + 1);
        for &shard in &gathered.shards {
            legs.push(self.lease_leg(Target::Shard(shard)).await?);
        }
        let held = self.server.take().map(as_leg);
        let is_begun = held.is_some();
        match held {
            Some(leg) => legs.push(leg),
            None => legs.push(self.lease_leg(target).await?),
        }
        self.db.metrics.fanout_legs.inc_by(legs.len() as u64);
        let work = CancellationToken::new();
        self.cancel.slot.aim_at_work(work.clone());
        let savepoints: Vec<String> =
            self.lazy_begin.iter().skip(1).map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        let begin: Vec<&str> = std::iter::once(BEGIN).chain(savepoints.iter().map(String::as_str)).collect();
        let opening = Opening {
            begin: if is_begun { &[] } else { &begin },
            read_only: !is_begun && self.begins_read_only(),
            serial: self.db.statements.next_serial(),
        };
        let (formats, values) = super::explain::parameters(execution);
        let fanout = &self.db.fanout;
        let run = Run {
            plan: gathered,
            text: execution.text,
            types: execution.types,
            parameter_formats: formats,
            values,
            result_formats: &[],
            describe: false,
            told: None,
            tells_no_data: false,
            max_rows: 0,
            budget: Budget::from(fanout),
            drain_timeout: DRAIN_TIMEOUT,
        };
        let two_phase = self.db.two_phase.clone();
        let mut timed_out = false;
        let (result, mut broken) = {
            let mut running =
                std::pin::pin!(coordinator::declare(&run, opening, &mut legs, &work, two_phase.as_deref()));
            match tokio::time::timeout(fanout.query_timeout, &mut running).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    timed_out = true;
                    work.cancel();
                    running.await
                }
            }
        };
        self.cancel.slot.work_is_over();
        self.db.metrics.fanout_legs_failed.inc_by(broken.len() as u64);
        let is_broken = broken.last() == Some(&gathered.shards.len());
        if is_begun || (result.is_ok() && !is_broken) {
            if let Some(leg) = legs.pop() {
                self.keep_as_server(leg, is_broken);
            }
            broken.retain(|&at| at < gathered.shards.len());
        }
        release(legs, &broken);
        match result {
            Ok(()) => {
                self.answer_tag(execution, described, "DECLARE CURSOR");
                Ok(Ok(()))
            }
            Err(Failure::Server(frame)) => Ok(Err(frame.bytes)),
            Err(Failure::Own(_)) if timed_out => Err(super::failure::too_slow("fanout.query_timeout")),
            Err(Failure::Own(error) | Failure::Unmergeable(_, error)) => Err(error),
        }
    }

    /// A cursor needs a transaction that has no server yet, or has the coordinator.
    fn check_place_for_cursor(&self, target: Target) -> Result<(), Error> {
        if self.status == TransactionStatus::Idle {
            let message = "DECLARE CURSOR can only be used in transaction blocks";
            return Err(Error::new(ErrorKind::Refused, SqlState::NO_ACTIVE_SQL_TRANSACTION, message));
        }
        if self.server.as_ref().is_some_and(|attached| attached.target != target) {
            return Err(Error::refused("a cursor over several shards in a transaction that has a server already")
                .hint("Declare it first in its transaction, or end the transaction."));
        }
        if self.server.is_none() && self.begins_read_only() && self.lazy_begin.len() > 1 {
            return Err(Error::refused("a cursor over several shards behind a savepoint in a READ ONLY transaction")
                .hint("Declare it before the first savepoint."));
        }
        Ok(())
    }

    /// Whether the transaction that no server knows of yet is READ ONLY.
    fn begins_read_only(&self) -> bool {
        let says_write = self.lazy_begin.first().is_some_and(|text| {
            String::from_utf8_lossy(text)
                .split(|c: char| !c.is_ascii_alphabetic())
                .any(|it| it.eq_ignore_ascii_case("write"))
        });
        self.read_only
            || (!says_write && self.setting_at_begin("default_transaction_read_only").as_deref() == Some("on"))
    }

    /// From now on the transaction is there.
    fn keep_as_server(&mut self, leg: LeasedLeg, is_broken: bool) {
        let LeasedLeg { mut attached, cancel } = leg;
        attached.lease.server().hand_back();
        if is_broken {
            attached.lease.server().mark_broken();
        }
        self.cancel.slot.aim_at(cancel);
        self.listed.holds(attached.lease.lent_to(self.listed.id(), self.since.into_std()));
        self.lazy_begin.clear();
        // A transaction with temporary tables cannot be prepared: no other server joins it.
        self.span = None;
        self.server = Some(attached);
    }
}

/// The session's own server as a leg.
fn as_leg(mut attached: Attached) -> LeasedLeg {
    let server = attached.lease.server();
    server.unnamed = None;
    server.take_over();
    let cancel = Arc::clone(&server.cancel_target);
    LeasedLeg { attached, cancel }
}
