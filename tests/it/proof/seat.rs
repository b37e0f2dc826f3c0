//! A client's place: a connection that is made again when it was lost, through whatever stands on that port.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, NoTls};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long anything may take before its connection is given up, and its outcome counts as unknown.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(40);

/// A connection; its task goes with it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) client: Arc<Client>,
    task: JoinHandle<()>,
}

impl Line {
    /// Connects; `None` where nobody answers in time, or not well.
    pub(super) async fn open(conninfo: &str) -> Option<Self> {
        let connected = tokio::time::timeout(CONNECT, tokio_postgres::connect(conninfo, NoTls)).await;
        let (client, connection) = connected.ok()?.ok()?;
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Some(Self { client: Arc::new(client), task })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where one writer sits at one pgherd.
#[derive(Debug)]
pub(super) struct Seat {
    conninfo: String,
    line: Option<Line>,
    tried_at: Option<Instant>,
}

impl Seat {
    pub(super) fn at(conninfo: String) -> Self {
        Self { conninfo, line: None, tried_at: None }
    }

    /// The connection; `None` while there is none to be had.
    pub(super) async fn client(&mut self) -> Option<Arc<Client>> {
        if self.line.as_ref().is_some_and(|line| line.client.is_closed()) {
            self.line = None;
        }
        if self.line.is_none() && self.tried_at.is_none_or(|at| at.elapsed() > PAUSE) {
            self.line = Line::open(&self.conninfo).await;
            self.tried_at = Some(Instant::now());
        }
        self.line.as_ref().map(|line| Arc::clone(&line.client))
    }

    /// Gives the connection up, with whatever is on its way.
    pub(super) fn leave(&mut self) {
        self.line = None;
    }
}

/// Whether an error says no more than that a server, a link or a process was lost or busy, which is what faults do.
pub(super) fn is_loss(error: &Error) -> bool {
    let Some(code) = error.code() else { return true };
    let busy = [&SqlState::T_R_DEADLOCK_DETECTED, &SqlState::LOCK_NOT_AVAILABLE];
    ["08", "53", "57"].contains(&&code.code()[..2]) || busy.contains(&code)
}
