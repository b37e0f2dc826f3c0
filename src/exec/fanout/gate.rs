//! Where the legs' locks end and their snapshots begin: all legs hold the locks of their tables before the latch over commits is taken,
//! so that under it nobody waits for a lock, and no commit waits for a reader that waits.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use super::leg::{Progress, Stage};
use super::{Failure, Fanout, Leg, Sink, give_up};
use crate::error::{Error, ErrorKind};
use crate::exec::two_phase::TwoPhase;
use crate::exec::two_phase::latch::{Guard, Kind, Left};
use crate::wire::sqlstate::SqlState;

/// How long legs may take over their snapshots under the latch, before they are made to plan without it first.
const PATIENCE: Duration = Duration::from_millis(250);

/// Tells whether what was kept from before still holds.
pub type Holds = Box<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// What a statement passes between its locks and its snapshots.
pub struct Gate<'a> {
    two_phase: &'a TwoPhase,
    holds: Option<&'a Holds>,
}

impl<'a> Gate<'a> {
    /// The latch over commits. `holds` is asked under it, where a part of the answer was kept from before.
    pub fn new(two_phase: &'a TwoPhase, holds: Option<&'a Holds>) -> Self {
        Self { two_phase, holds }
    }

    /// `None` if what was kept does not hold.
    async fn enter(&self) -> Result<Option<Guard>, Error> {
        let guard = self.two_phase.enter(Kind::Read).await?;
        match self.holds {
            Some(holds) if !holds().await => Ok(None),
            _ => Ok(Some(guard)),
        }
    }
}

/// How the legs of a statement come by their snapshots.
pub(super) struct Snapshots<'a> {
    gate: Option<&'a Gate<'a>>,
    step: Step,
    /// Legs make their plans before the gate, too: that locks what Parse does not lock.
    pub(super) plans_first: bool,
    /// What was kept from before does not hold any more.
    pub(super) is_stale: bool,
}

enum Step {
    /// Locks are awaited.
    Locking,
    /// Snapshots are being taken, until then at the latest.
    Taking(Guard, Instant),
    /// They are there; whether no commit over several shards came between them is being asked.
    Taken(Option<Left>),
}

impl<'a> Snapshots<'a> {
    /// Without a gate each leg takes its own as it comes.
    pub(super) fn behind(gate: Option<&'a Gate<'a>>) -> Self {
        let step = if gate.is_some() { Step::Locking } else { Step::Taken(None) };
        Self { gate, step, plans_first: false, is_stale: false }
    }

    /// Whether some leg has none yet that the others wait for.
    pub(super) fn are_awaited(&self) -> bool {
        !matches!(self.step, Step::Taken(_))
    }

    /// Whether the gate comes next: all legs hold their locks.
    pub(super) fn is_next(&self, legs: &[Progress]) -> bool {
        matches!(self.step, Step::Locking) && legs.iter().all(|leg| leg.stage == Stage::Described)
    }

    /// All legs have theirs.
    pub(super) fn are_taken(&mut self) {
        let taken = std::mem::replace(&mut self.step, Step::Taken(None));
        self.step = match taken {
            Step::Taking(guard, _) => Step::Taken(Some(guard.leave())),
            other => other,
        };
    }

    /// The statement has failed, or begins again.
    pub(super) fn give_latch_free(&mut self) {
        if matches!(self.step, Step::Taking(..)) {
            self.step = Step::Locking;
        }
    }

    /// Whether no commit over several shards came between the snapshots.
    pub(super) async fn verdict(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.step, Step::Taken(None)) {
            Step::Taken(Some(left)) => left.verdict().await,
            _ => Ok(()),
        }
    }

    /// Until when the snapshots must be there.
    fn deadline(&self) -> Option<Instant> {
        match self.step {
            Step::Taking(_, deadline) => Some(deadline),
            _ => None,
        }
    }
}

impl Fanout<'_> {
    /// What comes next; `None` if the snapshots take too long.
    pub(super) async fn event_in_time<L: Leg, S: Sink>(
        &mut self,
        legs: &mut [L],
        sink: &mut S,
    ) -> Option<super::Event> {
        match self.snapshots.deadline() {
            Some(deadline) => tokio::time::timeout_at(deadline, self.event(legs, sink)).await.ok(),
            None => Some(self.event(legs, sink).await),
        }
    }

    /// All legs hold their locks: takes the latch, and has them take their snapshots.
    pub(super) async fn pass_gate<L: Leg, S: Sink>(&mut self, legs: &mut [L], sink: &mut S) -> Result<(), Failure> {
        let (Some(gate), Some(description)) = (self.snapshots.gate, &self.description) else {
            return Err(Failure::Own(Error::internal("a gate is passed by legs that are described")));
        };
        let entered = tokio::select! {
            biased;
            error = poll_fn(|cx| sink.poll_gone(cx)) => Err(error),
            entered = gate.enter() => entered,
        };
        let Some(guard) = entered.map_err(Failure::Own)? else {
            self.snapshots.is_stale = true;
            let message = "parts of an answer that were kept have changed since the statement began";
            return Err(Failure::Own(Error::new(ErrorKind::Backend, SqlState::SERIALIZATION_FAILURE, message)));
        };
        let patience = match self.snapshots.plans_first {
            // Whoever commits waits no longer than that for the latch.
            true => gate.two_phase.lock_timeout / 2,
            false => PATIENCE,
        };
        self.snapshots.step = Step::Taking(guard, Instant::now() + patience);
        for (progress, leg) in self.legs.iter_mut().zip(legs) {
            progress.run(leg.queue(), self.run, description.columns.len(), true);
        }
        Ok(())
    }

    /// A leg that does not come by its snapshot waits for a lock that only planning takes: the latch is given free, and all legs
    /// lock that, too, before they come back.
    pub(super) async fn start_over<L: Leg>(&mut self, legs: &mut [L]) -> Result<(), Failure> {
        self.snapshots.give_latch_free();
        if self.snapshots.plans_first {
            let message =
                "shards did not take the snapshots of a read in time, while commits over several shards waited";
            let error = Error::new(ErrorKind::Cancelled, SqlState::LOCK_NOT_AVAILABLE, message);
            return Err(Failure::Own(
                error.hint("Somebody holds locks on partitions or child tables there; try again."),
            ));
        }
        give_up(&mut self.legs, legs, self.run.drain_timeout).await;
        if self.legs.iter().any(|progress| progress.stage != Stage::Done) {
            return Err(Failure::Own(Error::internal("a shard did not let go of a statement that is to begin again")));
        }
        (self.bound, self.snapshots.plans_first) = (0, true);
        for (progress, leg) in self.legs.iter_mut().zip(legs.iter_mut()) {
            leg.rewind();
            *progress = Progress::NEW;
        }
        self.start(legs);
        Ok(())
    }
}
