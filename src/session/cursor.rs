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
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::TransactionStatus;

/// What a transaction begins with that makes temporary tables, whatever the client made of it.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

impl Session {
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
