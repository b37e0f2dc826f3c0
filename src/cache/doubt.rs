//! A write under way, from before it can commit until its outcome is known.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::epochs::{CatalogEpoch, LocalEpochs};
use super::faults::Switches;
use super::redis::{Announced, Raise, Raised, Shared};
use super::stats::CacheStats;
use crate::error::Error;

/// A server process: its pid alone is used again after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId {
    /// Its process id.
    pub pid: i32,
    /// `pg_stat_activity.backend_start`, in microseconds since 1970.
    pub start_us: i64,
}

/// What a transaction may change, as the planner computed it.
#[derive(Debug, Clone, Copy)]
pub struct WriteSetView<'a> {
    /// Everything may change: opaque writes and DDL.
    pub database: bool,
    /// The catalog may change; implies `database`.
    pub catalog: bool,
    /// Relations that may change, to the end of cascades and partitions.
    pub relations: &'a [u32],
    /// The catalog version that `relations` was computed from.
    pub catalog_version: u64,
}

/// A transaction of a client of this database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OpenTransaction {
    /// Its server process; 0 if it is prepared, and needs none.
    pub pid: i32,
    /// Its virtual transaction id, or what it was prepared as.
    pub name: String,
}

impl OpenTransaction {
    /// Whether it is prepared: it ends when somebody ends it.
    pub fn is_prepared(&self) -> bool {
        self.pid == 0
    }
}

/// Asks PostgreSQL about its server processes; given by `app`, which has a connection for it.
#[async_trait::async_trait]
pub trait BackendChecker: Send + Sync {
    /// Whether that very process is gone, and with it what it had prepared, so that nothing it was doing can commit any more. An error
    /// means not known.
    async fn backend_gone(&self, backend: BackendId) -> Result<bool, Error>;

    /// All transactions that clients have open in this database; then, asked after them, those that are prepared, where pgherd prepares any.
    async fn open_transactions(&self) -> Result<Vec<OpenTransaction>, Error>;
}

/// Epochs and doubts of one database: what writers talk to.
pub struct Epochs {
    pub(crate) local: LocalEpochs,
    pub(crate) shared: Option<Arc<Shared>>,
    next_token: AtomicU64,
    pub(crate) open: AtomicU64,
    stats: Arc<CacheStats>,
    /// Writes whose outcome is not known; each waits for its server process to be gone.
    unknown: Mutex<Vec<Unknown>>,
    pub(crate) unknown_added: Notify,
    faults: Switches,
}

struct Unknown {
    token: u64,
    backend: BackendId,
    marked: Vec<u32>,
    catalog: bool,
}

impl Epochs {
    pub(crate) fn new(faults: Switches, stats: Arc<CacheStats>, shared: Option<Arc<Shared>>) -> Self {
        Self {
            local: LocalEpochs::new(faults),
            shared,
            next_token: AtomicU64::new(1),
            open: AtomicU64::new(0),
            stats,
            unknown: Mutex::default(),
            unknown_added: Notify::new(),
            faults,
        }
    }

    /// A write to come, on that server process. Nothing is in doubt until the first `raise`.
    pub fn open(self: &Arc<Self>, backend: BackendId) -> Doubt {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        Doubt { token, backend, marked: Vec::new(), told: 0, catalog: false, ended: false, epochs: self.clone() }
    }

    /// A server connection was opened. Only through those known here does a write go on while Redis cannot be reached.
    pub fn publish_backend(&self, backend: BackendId) {
        if let Some(shared) = &self.shared {
            shared.publish(backend);
        }
    }

    /// A server connection was closed.
    pub fn retire_backend(&self, backend: BackendId) {
        if let Some(shared) = &self.shared {
            shared.retire(backend);
        }
    }

    fn end(&self, token: u64, marked: &[u32], catalog: bool) {
        if marked.is_empty() {
            return;
        }
        let (renewed, changed) = self.local.settle(token, marked, catalog);
        if let Some(shared) = self.shared.as_ref().filter(|_| self.faults.invalidate_after_commit()) {
            shared.announce(Announced { relations: marked, ..Announced::default() });
        }
        if let Some(shared) = &self.shared {
            shared.settle(token, changed);
        }
        self.stats.invalidations.fetch_add(renewed, Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Settles those writes of unknown outcome whose server process is gone. Returns whether any are left.
    pub(crate) async fn check_unknown(&self, checker: &dyn BackendChecker) -> bool {
        let mut backends: Vec<BackendId> = self.unknown.lock().iter().map(|unknown| unknown.backend).collect();
        backends.sort_unstable();
        backends.dedup();
        for backend in backends {
            match checker.backend_gone(backend).await {
                Ok(true) => self.backend_is_gone(backend),
                Ok(false) => {}
                Err(error) => tracing::warn!(pid = backend.pid, %error, "cannot ask whether a server process is gone"),
            }
        }
        !self.unknown.lock().is_empty()
    }

    fn backend_is_gone(&self, backend: BackendId) {
        let gone: Vec<Unknown> = self.unknown.lock().extract_if(.., |unknown| unknown.backend == backend).collect();
        for unknown in gone {
            self.end(unknown.token, &unknown.marked, unknown.catalog);
        }
    }
}

impl fmt::Debug for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epochs").field("open", &self.open).finish_non_exhaustive()
    }
}

/// One transaction's mark on what it may have written. Dropping it without a word means that the outcome is not known.
#[must_use = "a doubt that is dropped stays until the server process is gone"]
pub struct Doubt {
    token: u64,
    backend: BackendId,
    /// What is marked in this process, sorted; the database is relation 0.
    marked: Vec<u32>,
    /// How many of `marked` the fleet is known to know of.
    told: usize,
    catalog: bool,
    ended: bool,
    epochs: Arc<Epochs>,
}

impl Doubt {
    /// Puts what the transaction may write in doubt, beside what it already has. Must be complete before the first byte is
    /// sent that can lead to a commit. May be called for each statement, and run while the statement does. After an error the
    /// statement must not be sent; the doubt is still there, to be settled when the outcome of what was sent before is known.
    pub async fn raise(&mut self, writes: &WriteSetView<'_>) -> Result<(), Error> {
        let faults = self.epochs.faults;
        if writes.catalog && faults.ignore_catalog_changes() {
            return Ok(());
        }
        let before = self.marked.len();
        self.catalog |= writes.catalog;
        let database = writes.database || writes.catalog;
        let local = &self.epochs.local;
        let current = local.current(writes.catalog_version);
        local.raise(self.token, &mut self.marked, writes.relations, database, writes.catalog_version);
        if self.marked.len() > before {
            self.epochs.stats.add(|stats| &stats.raises);
            if before == 0 {
                self.epochs.open.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.marked.len() > self.told && !faults.invalidate_after_commit() {
            self.tell(current).await?;
        }
        if faults.settle_before_commit() {
            self.epochs.end(self.token, &std::mem::take(&mut self.marked), self.catalog);
            self.told = 0;
        }
        Ok(())
    }

    async fn tell(&mut self, catalog: Option<CatalogEpoch>) -> Result<(), Error> {
        if let Some(shared) = &self.epochs.shared {
            let raise = Raise { token: self.token, backend: self.backend, relations: &self.marked, catalog };
            if let Raised::Marked(epoch) = shared.raise(raise).await? {
                shared.follow_catalog(&self.epochs.local, epoch);
            }
        }
        self.told = self.marked.len();
        Ok(())
    }

    /// Whether anything has been put in doubt.
    pub fn is_raised(&self) -> bool {
        !self.marked.is_empty()
    }

    /// The server has acknowledged the commit or the rollback, or nothing that could commit was ever sent: what was in doubt
    /// gets new epochs. Returns at once.
    pub fn settle(mut self) {
        self.ended = true;
        self.epochs.end(self.token, &self.marked, self.catalog);
    }

    /// The connection was lost before the outcome was known: the doubt stays until the server process is gone.
    pub fn abandon(self) {
        drop(self);
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if self.ended || self.marked.is_empty() {
            return;
        }
        self.epochs.stats.add(|stats| &stats.unknown_outcomes);
        if self.epochs.faults.unknown_is_settled() {
            self.epochs.end(self.token, &self.marked, self.catalog);
            return;
        }
        self.epochs.unknown.lock().push(Unknown {
            token: self.token,
            backend: self.backend,
            marked: std::mem::take(&mut self.marked),
            catalog: self.catalog,
        });
        self.epochs.unknown_added.notify_one();
    }
}

impl fmt::Debug for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doubt").field("token", &self.token).field("backend", &self.backend).finish_non_exhaustive()
    }
}
