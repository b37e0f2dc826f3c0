//! Whether statements may take server connections of a database now: what PAUSE, SUSPEND, KILL, DISABLE and RECONNECT move.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::watch;

/// What a gate lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passage {
    /// Everything.
    #[default]
    Open,
    /// Nobody gets a server connection; those that are there stay.
    Suspended,
    /// Nobody gets a server connection, and there are to be none.
    Paused,
    /// As [`Passage::Paused`], after all clients were dropped.
    Killed,
}

/// One database's gate, shared by its pools; it outlives a reload that replaces them.
#[derive(Debug)]
pub struct Gate {
    passage: watch::Sender<Passage>,
    /// Whether `passage` is anything but open: what a checkout looks at, for one load.
    shut: AtomicBool,
    /// No new clients.
    disabled: AtomicBool,
    /// Server connections of an earlier epoch are closed instead of being used again.
    epoch: AtomicU64,
    ids: Arc<AtomicU64>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Gate {
    /// An open gate; server connections behind it get their numbers from `ids`.
    pub fn new(ids: Arc<AtomicU64>) -> Self {
        Self {
            passage: watch::Sender::default(),
            shut: AtomicBool::new(false),
            disabled: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            ids,
        }
    }

    /// Whether nobody gets through.
    pub fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// What it lets through.
    pub fn passage(&self) -> Passage {
        *self.passage.borrow()
    }

    /// Whether there are to be no server connections at all.
    pub fn wants_none(&self) -> bool {
        matches!(self.passage(), Passage::Paused | Passage::Killed)
    }

    /// Changes what it lets through; returns what it was.
    pub fn set(&self, passage: Passage) -> Passage {
        let before = self.passage.send_replace(passage);
        self.shut.store(passage != Passage::Open, Ordering::Release);
        before
    }

    /// Waits until it is open.
    pub async fn opened(&self) {
        // The sender lives as long as `self`.
        let _ = self.passage.subscribe().wait_for(|passage| *passage == Passage::Open).await;
    }

    /// Waits until it is shut.
    pub async fn shut(&self) {
        let _ = self.passage.subscribe().wait_for(|passage| *passage != Passage::Open).await;
    }

    /// Waits until there are to be no server connections at all.
    pub async fn barred(&self) {
        let is_barred = |passage: &Passage| matches!(passage, Passage::Paused | Passage::Killed);
        let _ = self.passage.subscribe().wait_for(is_barred).await;
    }

    /// Says whether new clients are turned away.
    pub fn set_disabled(&self, disabled: bool) {
        self.disabled.store(disabled, Ordering::Relaxed);
    }

    /// Whether new clients are turned away.
    pub fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Relaxed)
    }

    /// The epoch that server connections made now belong to.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Every server connection made so far is closed as soon as nobody uses it.
    pub fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// A number that nothing else in this process has.
    pub(super) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_at_a_gate_goes_on_when_it_opens() {
        let gate = Arc::new(Gate::default());
        assert_eq!(gate.set(Passage::Paused), Passage::Open);
        assert!(gate.is_shut() && gate.wants_none());
        let waiting = Arc::clone(&gate);
        let waiter = tokio::spawn(async move { waiting.opened().await });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        gate.set(Passage::Open);
        waiter.await.expect("goes on");
        gate.set(Passage::Suspended);
        gate.shut().await;
        assert!(gate.is_shut() && !gate.wants_none());
    }
}
