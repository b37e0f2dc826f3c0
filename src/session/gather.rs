//! A statement that PostgreSQL merges, for this session: legs and coordinator are leased, the answer goes to the client.

use std::sync::Arc;

use bytes::Bytes;

use super::Session;
use super::context::Target;
use super::fan_out::{DRAIN_TIMEOUT, LeasedLeg, release};
use super::planned::Execution;
use super::portals::Halt;
use super::unstreamed::Term;
use crate::error::Error;
use crate::exec::coordinator::{self, Budget, Run};
use crate::exec::fanout::Failure;
use crate::plan::distribute::Gathered;
use crate::sql::facts::Class;

impl Session {
    /// Ships rows to the coordinator, runs the statement there and passes its answer on. An error of a server's comes back as
    /// the bytes that the client is to get.
    pub(super) async fn gather(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        gathered: &Arc<Gathered>,
        term: Term,
    ) -> Result<Result<(), Bytes>, Error> {
        let work = self.work_in(term);
        let mut legs = match self.gathering_legs(&gathered.shards).await {
            Ok(legs) => legs,
            Err(error) => {
                self.cancel.slot.work_is_over();
                return Err(error);
            }
        };
        self.db.metrics.fanout_legs.inc_by(legs.len() as u64);
        let (formats, values, result_formats) = match execution.bind {
            Some((_, bind)) => (bind.formats.as_slice(), bind.values.as_slice(), bind.result_formats.as_slice()),
            None => (&[][..], &[][..], &[][..]),
        };
        let told = self.told_before(execution);
        let fanout = &self.db.fanout;
        let run = Run {
            plan: gathered,
            text: execution.text,
            types: execution.types,
            parameter_formats: formats,
            values,
            result_formats,
            describe: described,
            told: told.as_deref(),
            tells_no_data: described && execution.bind.is_some(),
            max_rows: execution.max_rows,
            budget: Budget::from(fanout),
            drain_timeout: DRAIN_TIMEOUT,
        };
        let two_phase = self.db.two_phase.clone();
        let mut timed_out = false;
        let outcome = {
            let mut running =
                std::pin::pin!(coordinator::run(&run, &mut legs, &mut self.client, &work, two_phase.as_deref()));
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
        if let (Ok(true), Some((_, bind))) = (&outcome.result, execution.bind)
            && let Some(leg) = legs.pop()
        {
            self.keep_halted(bind.portal, Halt::Gathered { leg, is_verbatim: gathered.is_verbatim });
        }
        release(legs, &outcome.broken);
        let is_read = execution.facts.single().is_some_and(|statement| statement.class == Class::Read);
        match outcome.result {
            Ok(suspended) => {
                if let Some((_, bind)) = execution.bind.filter(|_| !suspended && is_read) {
                    self.note_done(bind.portal);
                }
                Ok(Ok(()))
            }
            Err(Failure::Server(frame)) => Ok(Err(frame.bytes)),
            Err(Failure::Own(_)) if timed_out => Err(super::failure::too_slow("fanout.query_timeout")),
            Err(Failure::Own(error) | Failure::Unmergeable(_, error)) => Err(error),
        }
    }

    /// A connection to each shard, and one to the coordinator.
    async fn gathering_legs(&mut self, shards: &[usize]) -> Result<Vec<LeasedLeg>, Error> {
        let mut legs = Vec::with_capacity(shards.len() + 1);
        for &shard in shards {
            legs.push(self.lease_leg(Target::Shard(shard)).await?);
        }
        // Always last: who waits for it holds all else, so that two statements cannot wait for each other.
        legs.push(self.lease_leg(Target::Coordinator).await?);
        Ok(legs)
    }
}
