//! The latch: reads over several shards take their snapshots while no commit over several shards is half done.
//!
//! Any number of reads, or any number of commits, at a time: the two take turns. Whoever comes first in a turn takes the fleet's lock
//! for all who join, whoever leaves last gives it back.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::TwoPhase;
use super::fleet::Fleet;
use crate::backend::connect::Login;
use crate::config::model::ServerAddress;
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// How long a read waits for a commit that was cut short to be finished, and how often it tries.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
const AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// What the latch is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Snapshots on several shards.
    Read,
    /// From a decision until all participants have committed.
    Commit,
}

impl Kind {
    fn other(self) -> Self {
        match self {
            Self::Read => Self::Commit,
            Self::Commit => Self::Read,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening,
    Open(Kind),
    Closing,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Whose turn the last one was.
    last: Kind,
    /// How many are inside.
    inside: usize,
    /// How many wait, by kind.
    waiting: [usize; 2],
    /// Tickets given out, and how many had been when the present turn began.
    tickets: u64,
    invited: u64,
    /// Something of this turn was not finished.
    unfinished: bool,
    /// Without a fleet: something may have been cut short before.
    is_suspect: bool,
}

/// See the module's description.
pub struct Latch {
    is_on: bool,
    fleet: Option<Fleet>,
    state: Mutex<State>,
    changed: Notify,
}

/// Holds the latch.
pub struct Guard {
    latch: Option<Arc<Latch>>,
    kind: Kind,
    /// Something was decided that not every participant has carried out yet.
    is_half_done: bool,
    /// It has just taken the lock itself.
    is_fresh: bool,
}

/// A latch that was given back; whether it had been held to the end is being asked.
#[must_use]
pub struct Left(Option<tokio::task::JoinHandle<Result<(), Error>>>);

impl Left {
    /// Whether no commit can have come in between while the latch was thought to be held.
    ///
    /// # Errors
    /// That is not known: what was read under it must not be taken for one moment's.
    pub async fn verdict(self) -> Result<(), Error> {
        match self.0 {
            None => Ok(()),
            Some(asked) => asked.await.unwrap_or_else(|_| Err(Error::internal("the latch's task has died"))),
        }
    }
}

impl Latch {
    pub(super) fn new(is_on: bool, fleet: Option<(ServerAddress, Login)>) -> Self {
        let state = State {
            phase: Phase::Idle,
            last: Kind::Read,
            inside: 0,
            waiting: [0; 2],
            tickets: 0,
            invited: 0,
            unfinished: false,
            is_suspect: true,
        };
        let fleet = fleet.map(|(address, login)| Fleet::new(address, login));
        Self { is_on, fleet, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    fn settle(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_waiters();
    }

    /// Joins the present turn, or begins one: then the caller opens it for all.
    async fn join(self: &Arc<Self>, kind: Kind) -> Joined {
        let ticket = {
            let mut state = self.state.lock();
            state.tickets += 1;
            state.tickets
        };
        let mut waiting = None;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.state.lock();
                let others_wait = state.waiting[kind.other() as usize] > 0;
                match state.phase {
                    Phase::Idle if state.last != kind || !others_wait => {
                        state.phase = Phase::Opening;
                        return Joined::First(Opening { latch: Arc::clone(self), is_open: false });
                    }
                    Phase::Open(open) if open == kind && (!others_wait || ticket <= state.invited) => {
                        state.inside += 1;
                        return Joined::Inside(Guard::of(self, kind));
                    }
                    _ => {}
                }
                if waiting.is_none() {
                    state.waiting[kind as usize] += 1;
                    waiting = Some(Waiting(self, kind));
                }
            }
            changed.await;
        }
    }
}

enum Joined {
    Inside(Guard),
    First(Opening),
}

struct Waiting<'a>(&'a Latch, Kind);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.settle(|state| state.waiting[self.1 as usize] -= 1);
    }
}

/// A reason to look, before the first snapshot of a turn, for commits that were cut short.
pub(super) struct Suspicion {
    /// The primary's start; empty without a fleet.
    pub(super) start: String,
    /// This pgherd has not looked yet, but somebody had since that start, and nobody has left a mark: whoever commits holds the latch
    /// while it does, so that only what was decided before is to be finished.
    pub(super) is_settled: bool,
}

/// Whoever drops it without having opened lets somebody else try.
struct Opening {
    latch: Arc<Latch>,
    is_open: bool,
}

impl Opening {
    fn open(mut self, kind: Kind) -> Guard {
        self.is_open = true;
        self.latch.settle(|state| {
            (state.phase, state.last, state.inside) = (Phase::Open(kind), kind, 1);
            (state.invited, state.unfinished) = (state.tickets, false);
        });
        Guard::of(&self.latch, kind)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.is_open {
            // Whether the fleet's lock was taken is not known: its connection was left out of its place, and is closed.
            self.latch.settle(|state| state.phase = Phase::Idle);
        }
    }
}

impl TwoPhase {
    /// Takes the latch. A read also waits until whatever was cut short is finished.
    ///
    /// # Errors
    /// The primary cannot be reached, somebody keeps the latch for too long, or what was cut short cannot be finished now.
    pub async fn enter(&self, kind: Kind) -> Result<Guard, Error> {
        if !self.latch.is_on {
            return Ok(Guard { latch: None, kind, is_half_done: false, is_fresh: false });
        }
        let opening = match self.latch.join(kind).await {
            Joined::Inside(guard) => return Ok(guard),
            Joined::First(opening) => opening,
        };
        let latch = &self.latch;
        let suspect = match &latch.fleet {
            Some(fleet) => fleet.lock(kind).await?,
            None => (kind == Kind::Read && latch.state.lock().is_suspect)
                .then(|| Suspicion { start: String::new(), is_settled: false }),
        };
        // From here on whoever gives up must give the lock back.
        let guard = opening.open_alone(kind);
        if let Some(suspicion) = suspect {
            self.finish_what_was_cut_short(suspicion).await?;
        }
        let mut guard = guard.open();
        guard.is_fresh = true;
        Ok(guard)
    }

    async fn finish_what_was_cut_short(&self, suspicion: Suspicion) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let report = match suspicion.is_settled {
                true => self.recover().await,
                // A COMMIT that is being written must be decided before any snapshot is taken.
                false => self.settle_all().await,
            };
            if report.is_complete() {
                match &self.latch.fleet {
                    Some(fleet) => fleet.note_clean(suspicion.start).await?,
                    None => self.latch.state.lock().is_suspect = false,
                }
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let message = "a transaction over several shards may have been committed on a part of them only";
                let error = Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT_NOW, message);
                let cause = report.failures.into_iter().next().map(|(_, error)| error);
                let error = error.hint("It is finished as soon as all servers can be reached; try again then.");
                return Err(match cause {
                    Some(cause) => error.cause(cause),
                    None => error,
                });
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl Opening {
    /// The lock is held, but nobody may join yet.
    fn open_alone(mut self, kind: Kind) -> Alone {
        self.is_open = true;
        Alone(Some((Self { latch: Arc::clone(&self.latch), is_open: true }, kind)))
    }
}

/// Holds the latch while nobody may join.
struct Alone(Option<(Opening, Kind)>);

impl Alone {
    fn open(mut self) -> Guard {
        match self.0.take() {
            Some((opening, kind)) => opening.open(kind),
            None => Guard { latch: None, kind: Kind::Read, is_half_done: false, is_fresh: false },
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Some((opening, kind)) = self.0.take() {
            drop(opening.open(kind));
        }
    }
}

impl Guard {
    fn of(latch: &Arc<Latch>, kind: Kind) -> Self {
        Self { latch: Some(Arc::clone(latch)), kind, is_half_done: false, is_fresh: false }
    }

    /// Whether the latch is held now, after all that the caller did before: to be asked before anything is decided under it. From
    /// then on the mark speaks for the caller, even if the lock is lost.
    ///
    /// # Errors
    /// Its connection was lost.
    pub async fn check(&self) -> Result<(), Error> {
        match self.latch.as_ref().and_then(|latch| latch.fleet.as_ref()) {
            Some(fleet) if !self.is_fresh => fleet.check().await,
            _ => Ok(()),
        }
    }

    /// Gives the latch back, and asks whether it had been held until now.
    pub fn leave(self) -> Left {
        let Some(latch) = self.latch.clone().filter(|latch| latch.fleet.is_some()) else { return Left(None) };
        Left(Some(tokio::spawn(async move {
            let asked = async {
                match &latch.fleet {
                    Some(fleet) => fleet.check().await,
                    None => Ok(()),
                }
            };
            // The question goes first on the connection: the lock is given back behind it.
            let (asked, ()) = tokio::join!(biased; asked, async move { drop(self) });
            asked
        })))
    }

    /// Something is about to be decided. Until [`Guard::is_finished`], whoever reads next must see to it first.
    pub fn decides(&mut self) {
        self.is_half_done = true;
    }

    /// Every participant has carried out what was decided.
    pub fn is_finished(&mut self) {
        self.is_half_done = false;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(latch) = self.latch.take() else { return };
        let kind = self.kind;
        let is_finished = {
            let mut state = latch.state.lock();
            state.unfinished |= self.is_half_done;
            state.is_suspect |= self.is_half_done;
            state.inside -= 1;
            if state.inside > 0 {
                return;
            }
            state.phase = Phase::Closing;
            !state.unfinished
        };
        if latch.fleet.is_none() {
            latch.settle(|state| state.phase = Phase::Idle);
            return;
        }
        tokio::spawn(async move {
            if let Some(fleet) = &latch.fleet {
                fleet.unlock(kind, is_finished).await;
            }
            latch.settle(|state| state.phase = Phase::Idle);
        });
    }
}
