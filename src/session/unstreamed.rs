//! Statements over several shards that streaming turned out not to answer: PostgreSQL merges them, in a run of their own.
//!
//! Nothing of their answer has been sent by then, and what was run was read on connections of its own, so that it does no harm to
//! run it again.

use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::Session;
use super::planned::Execution;
use crate::error::Error;
use crate::plan::Plan;
use crate::plan::distribute::{Answered, Unstreamed};

/// What is left to a statement of its time, and how many cancels there had been before it began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    /// Of `fanout.query_timeout`.
    pub(super) left: Duration,
    cancels: u64,
}

impl Term {
    /// What is left when so much time has passed.
    pub(super) fn after(self, took: Duration) -> Self {
        Self { left: self.left.saturating_sub(took), ..self }
    }
}

/// A statement that was given up.
#[derive(Debug)]
pub(super) struct Unmerged {
    pub(super) why: Unstreamed,
    /// What the client gets if nobody merges it.
    pub(super) error: Error,
    pub(super) term: Term,
}

impl Session {
    /// The term of a statement that begins now.
    pub(super) fn term(&self) -> Term {
        Term { left: self.db.fanout.query_timeout, cancels: self.cancel.slot.fired() }
    }

    /// What a cancel ends from now on. One that came between two runs has ended it.
    pub(super) fn work_in(&self, term: Term) -> CancellationToken {
        let work = CancellationToken::new();
        self.cancel.slot.aim_at_work(work.clone());
        if self.cancel.slot.fired() != term.cancels {
            work.cancel();
        }
        work
    }

    /// Has PostgreSQL merge what pgherd turned out not to merge. An error of a server's comes back as the bytes that the client is
    /// to get.
    pub(super) async fn gather_instead(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        unmerged: Unmerged,
    ) -> Result<Result<(), Bytes>, Error> {
        let Unmerged { why, error, term } = unmerged;
        match self.plan_instead(execution, why).await? {
            Some(Plan::Gather(gathered)) => Box::pin(self.gather(execution, described, &gathered, term)).await,
            _ => Err(error),
        }
    }

    /// How PostgreSQL merges it, with what is around it (INSERT, EXPLAIN); `None` where it does not. What is too large for pgherd is
    /// not put on the primary unless that is named as the coordinator.
    pub(super) async fn plan_instead(
        &mut self,
        execution: &Execution<'_>,
        why: Unstreamed,
    ) -> Result<Option<Plan>, Error> {
        if why == Unstreamed::Memory && self.db.config.coordinator.is_none() {
            return Ok(None);
        }
        let plan = self.plan_knowing(execution, Some(why)).await?;
        let is_gathered = match &plan {
            Plan::Gather(_) => true,
            Plan::InsertSelect(insert) => matches!(insert.answered, Answered::Gathered(_)),
            Plan::Explain(explained) => matches!(explained.plan, Plan::Gather(_)),
            _ => false,
        };
        if !is_gathered {
            return Ok(None);
        }
        let (metrics, reason) = (&self.db.metrics, if why == Unstreamed::Memory { "memory" } else { "types" });
        if why == Unstreamed::Memory { &metrics.fanout_fallbacks_memory } else { &metrics.fanout_fallbacks_types }
            .inc();
        tracing::debug!(database = self.db.config.name, reason, "a fan-out is given up: PostgreSQL merges its rows");
        Ok(Some(plan))
    }
}
