//! The writers' side: putting relations in doubt before a commit can be sent, and what to do while Redis cannot be told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fred::types::Value;
use tokio::time::Instant as Deadline;

use super::connection::Connection;
use super::registry::Announced;
use super::script::Script;
use super::{PATIENCE, REFUSAL, Shared, number, text};
use crate::cache::doubt::BackendId;
use crate::cache::epochs::CatalogEpoch;
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// What a write puts in doubt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raise<'a> {
    pub(crate) token: u64,
    pub(crate) backend: BackendId,
    /// All relations so far, sorted; 0 is the database.
    pub(crate) relations: &'a [u32],
    /// The catalog's state that they were computed from, if it is the present one.
    pub(crate) catalog: Option<CatalogEpoch>,
}

/// How a raise ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Raised {
    /// It stands in Redis; this is the fleet's state of the catalog.
    Marked(Option<u64>),
    /// Redis need not be told: nobody looks at what is written.
    Unwatched,
    /// Redis could not be told, but nobody serves anything by now.
    Unmarked,
}

impl Shared {
    /// Puts relations in doubt for the whole fleet, or makes sure that nobody serves.
    pub(crate) async fn raise(&self, raise: Raise<'_>) -> Result<Raised, Error> {
        self.registry.lock().enter(raise.token, raise.backend, raise.relations);
        let patience = Deadline::now() + REFUSAL.max(self.settings.timeout);
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let connection = self.connection.load_full();
            if let Some(at) = connection.as_ref().and_then(|connection| self.settles_at(connection)) {
                let at = if self.wait_on_loss() { at } else { at.min(patience) };
                tokio::select! {
                    _ = changes.changed() => {}
                    () = tokio::time::sleep_until(at) => {}
                }
                if !self.wait_on_loss() && Deadline::now() >= patience {
                    return Err(self.refused("others may still be served by the Redis that was there before"));
                }
                continue;
            }
            if connection.as_ref().is_some_and(|connection| self.goes_unwatched(connection, raise)) {
                return Ok(Raised::Unwatched);
            }
            if let Some(connection) = connection
                && let Some(raised) = self.try_raise(&connection, raise).await
            {
                // Asked last: what was marked under the name of a server that is gone is seen by nobody.
                if self.is_in_sight() {
                    return Ok(raised);
                }
                if Deadline::now() >= patience {
                    return Err(self.refused("PostgreSQL does not say whether it is the server that it was"));
                }
            }
            if let Some(raised) = self.without_redis(raise, patience)? {
                return Ok(raised);
            }
            let until = self.next_look(raise.token, patience);
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Whether nobody looks at what is written. Whoever begins to, waits for this pgherd to say what it has open.
    fn goes_unwatched(&self, connection: &Arc<Connection>, raise: Raise<'_>) -> bool {
        let registry = self.registry.lock();
        let is_up = self.is_mine(connection) && !connection.is_broken();
        let unwatched = is_up && registry.is_unwatched(raise.token, raise.catalog, self.settings.lease);
        drop(registry);
        let unwatched = unwatched && self.is_in_sight();
        if unwatched {
            self.stats.add(|stats| &stats.unwatched_writes);
        }
        unwatched
    }

    /// Until when a write must wait because others may still be served by the process whose place this one has taken.
    fn settles_at(&self, connection: &Connection) -> Option<Deadline> {
        let at = connection.settles_at.map(Deadline::from_std).filter(|at| *at > Deadline::now());
        at.filter(|_| !self.solo.load(Ordering::Acquire))
    }

    async fn try_raise(&self, connection: &Arc<Connection>, raise: Raise<'_>) -> Option<Raised> {
        self.registry.lock().sending(raise.token);
        let mut args: Vec<Value> = vec![
            text(&connection.generation),
            text(&self.member),
            number(connection.fence),
            text(&self.token(raise.token)),
            raise.catalog.map_or_else(|| text(""), |epoch| number(epoch.0)),
            text(&backend_name(raise.backend)),
        ];
        args.extend(raise.relations.iter().map(|oid| number(u64::from(*oid))));
        match connection.call_surely(Script::Raise, args, PATIENCE.max(self.settings.timeout)).await {
            Ok(reply) if reply.word() == "ok" => {
                self.registry.lock().raised(raise.backend);
                return Some(Raised::Marked(reply.number(1)));
            }
            Ok(reply) => tracing::info!(why = reply.word(), "registering with Redis again"),
            Err(failure) => {
                self.count(&failure);
                tracing::warn!(%failure, "a write could not be marked in Redis");
            }
        }
        let registry = self.registry.lock();
        self.disconnect(Some(connection));
        drop(registry);
        None
    }

    /// Whether the write can go on without Redis, or not at all; `None` is not yet.
    fn without_redis(&self, raise: Raise<'_>, patience: Deadline) -> Result<Option<Raised>, Error> {
        let mut registry = self.registry.lock();
        if self.is_up() {
            return Ok(None);
        }
        let impatient = Deadline::now() >= patience;
        if !self.wait_on_loss() {
            return if impatient { Err(self.refused("the cache's Redis cannot be told of it")) } else { Ok(None) };
        }
        let lapses_at = registry.lapses_at(raise.token, self.settings.lease);
        let known = lapses_at.is_some() && registry.is_published(raise.backend);
        if !known && !self.solo.load(Ordering::Acquire) {
            // Those who serve would not know that there is someone to wait for.
            return match impatient {
                true => Err(self.refused("the cache's Redis has not been reached since this server connection began, or another pgherd caches the database without it")),
                false => Ok(None),
            };
        }
        if lapses_at.is_some_and(|at| std::time::Instant::now() < at) {
            return Ok(None);
        }
        if !self.is_flagged() {
            // Redis may be back, emptied, and others may be there already: nobody there waits for us.
            return Ok(None);
        }
        registry.goes_unmarked();
        self.stats.add(|stats| &stats.unmarked_writes);
        Ok(Some(Raised::Unmarked))
    }

    /// When to look again, if nothing changes before.
    fn next_look(&self, token: u64, patience: Deadline) -> Deadline {
        let registry = self.registry.lock();
        let lapses_at = registry.lapses_at(token, self.settings.lease).map(Deadline::from_std);
        let soonest = Deadline::now() + Duration::from_millis(5);
        [Some(patience), lapses_at].into_iter().flatten().filter(|at| *at > soonest).min().unwrap_or(soonest)
    }

    fn refused(&self, why: &str) -> Error {
        self.stats.add(|stats| &stats.refused_writes);
        Error::new(ErrorKind::Cache, SqlState::CANNOT_CONNECT_NOW, format!("the write was not sent: {why}"))
            .hint("Try again when Redis is reachable (pgherd's log says what is in the way); cache.on_redis_loss says what a write does without it.")
    }

    /// The outcome is known. Returns at once; Redis is told in the background.
    pub(crate) fn settle(&self, token: u64, catalog: Option<CatalogEpoch>) {
        let mut registry = self.registry.lock();
        if registry.settle(token, catalog) {
            self.work.notify_one();
        }
    }

    /// Something has changed without a write of ours. Redis is told in the background; see [`Shared::is_told`].
    pub(crate) fn announce(&self, announced: Announced<'_>) -> u64 {
        let token = self.announced.fetch_add(1, Ordering::Relaxed);
        self.registry.lock().announce(token, announced);
        self.work.notify_one();
        token
    }

    /// Waits until Redis has been told of that announcement; whether it was within that time.
    pub(crate) async fn is_told(&self, token: u64, within: Duration) -> bool {
        let told = async {
            loop {
                let next = self.told.notified();
                if !self.registry.lock().has(token) {
                    return;
                }
                next.await;
            }
        };
        tokio::time::timeout(within, told).await.is_ok()
    }

    /// A server connection was opened: it may write later while Redis cannot be reached.
    pub(crate) fn publish(&self, backend: BackendId) {
        self.registry.lock().publish(backend);
        self.work.notify_one();
    }

    /// A server connection was closed.
    pub(crate) fn retire(&self, backend: BackendId) {
        self.registry.lock().retire(backend);
        self.work.notify_one();
    }

    pub(super) fn token(&self, token: u64) -> String {
        format!("{}:{token:x}", self.member)
    }
}

/// How a server process is written in Redis.
pub(super) fn backend_name(backend: BackendId) -> String {
    format!("{}@{}", backend.pid, backend.start_us)
}

/// The server process of that name.
pub(super) fn backend_named(name: &str) -> Option<BackendId> {
    let (pid, start_us) = name.split_once('@')?;
    Some(BackendId { pid: pid.parse().ok()?, start_us: start_us.parse().ok()? })
}
