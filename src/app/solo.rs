//! Whether this pgherd is the only one of a database: said by an advisory lock on the primary, held by the control connection.
//!
//! Without Redis whoever holds the lock answers `strict`. With Redis everybody who is to register there holds it shared first.
//! One who has not reached Redis yet may hold it exclusively: then nobody else can be registered, so that it may write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_postgres::Client;

use super::checker::Predecessors;
use crate::cache::ResultCache;
use crate::config::model::ServerAddress;
use crate::error::Error;

/// How long Redis may take before this pgherd asks to be the only one.
const PATIENCE: Duration = Duration::from_secs(1);

/// A server whose answers are cached, or are not.
pub(super) struct Place<'a> {
    /// The name of the database, as clients call it.
    pub(super) database: &'a str,
    pub(super) address: &'a ServerAddress,
    pub(super) cache: Option<&'a Arc<ResultCache>>,
    /// Whether this pgherd is the only one there.
    pub(super) solo: &'a AtomicBool,
    /// Which server the cache believes it answers for.
    pub(super) scope: &'a Mutex<Option<String>>,
    pub(super) has_redis: bool,
    /// What a pgherd that was killed has left there may be prepared, and be committed much later.
    pub(super) is_shard: bool,
}

/// What one control connection holds; all of it goes with the connection.
#[derive(Debug, Default)]
pub(super) struct SoloLock {
    shared: bool,
    exclusive: bool,
    shared_since: Option<Instant>,
    scope_is_told: bool,
    /// Since when it waits for a pgherd that holds the lock for itself, and whether that was said.
    shut_out: Option<(Instant, bool)>,
    /// What may still be committed for a pgherd that held the lock before.
    predecessors: Predecessors,
}

impl SoloLock {
    /// Takes and gives back what the present state asks for. Returns whether it is what it should be.
    pub(super) async fn keep(&mut self, place: &Place<'_>, client: &Client) -> Result<bool, Error> {
        let Some(cache) = place.cache else { return Ok(true) };
        if !place.has_redis {
            let is_settled = self.hold_exclusively(place, client).await?;
            self.tell_scope(place, cache, client).await?;
            return Ok(is_settled);
        }
        if !self.shared {
            self.shared = ask(client, "pg_try_advisory_lock_shared").await?;
            self.shared_since = Some(Instant::now());
        }
        if !self.shared {
            // Somebody writes who has not reached Redis: nothing may be served beside that one.
            self.complain(place);
            return Ok(false);
        }
        self.shut_out = None;
        self.tell_scope(place, cache, client).await?;
        if cache.is_registered() {
            if self.exclusive {
                place.solo.store(false, Ordering::Release);
                ask(client, "pg_advisory_unlock").await?;
                self.exclusive = false;
            }
            return Ok(true);
        }
        let is_late = self.shared_since.is_some_and(|since| since.elapsed() > PATIENCE);
        if is_late {
            self.hold_exclusively(place, client).await?;
        }
        Ok(is_late)
    }

    /// Says once who is in the way, if that lasts.
    fn complain(&mut self, place: &Place<'_>) {
        let (since, is_said) = self.shut_out.get_or_insert_with(|| (Instant::now(), false));
        if !*is_said && since.elapsed() > PATIENCE {
            *is_said = true;
            tracing::warn!(
                database = place.database,
                server = %place.address,
                "another pgherd caches this database of this server without this Redis: nothing is served from the cache and writes \
                 wait or are refused, until it ends or is given the same cache.redis"
            );
        }
    }

    /// Tells the cache which server it is about, if that is another one than before.
    async fn tell_scope(&mut self, place: &Place<'_>, cache: &ResultCache, client: &Client) -> Result<(), Error> {
        if !self.scope_is_told {
            let scope = read_scope(client).await?;
            let mut known = place.scope.lock();
            if known.as_ref() != Some(&scope) {
                cache.set_scope(&scope);
                *known = Some(scope);
            }
            self.scope_is_told = true;
        }
        Ok(())
    }

    /// False is that somebody must be waited for who held it before.
    async fn hold_exclusively(&mut self, place: &Place<'_>, client: &Client) -> Result<bool, Error> {
        if !self.exclusive {
            self.exclusive = ask(client, "pg_try_advisory_lock").await?;
            if !self.exclusive {
                return Ok(true);
            }
            self.predecessors = Predecessors::default();
        }
        // With Redis it is for writing alone: who serves from there has waited.
        if place.is_shard && !place.has_redis && !self.predecessors.have_ended(client).await? {
            return Ok(false);
        }
        place.solo.store(true, Ordering::Release);
        Ok(true)
    }
}

async fn ask(client: &Client, function: &str) -> Result<bool, Error> {
    let sql = format!(
        "SELECT pg_catalog.{function}(pg_catalog.hashtextextended('pgherd cache of ' || pg_catalog.current_database(), 0))"
    );
    let failed = |error| Error::internal("cannot ask for the solo lock").cause(error);
    client.query_one(&sql, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)
}

/// What names the server that answers come from: another cluster, a promotion or a restart gives another name.
pub(super) async fn read_scope(client: &tokio_postgres::Client) -> Result<String, Error> {
    let sql = "SELECT pg_catalog.format('%s:%s:%s:%s', \
               (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
               (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), \
               EXTRACT(EPOCH FROM pg_catalog.pg_postmaster_start_time()), pg_catalog.current_database())";
    let failed = |error| Error::internal("cannot ask which server this is").cause(error);
    client.query_one(sql, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)
}
