//! Whether this pgherd is the only one of a database: said by an advisory lock on the primary, held by the control connection.
//!
//! Without Redis whoever holds the lock answers `strict`. With Redis everybody who is to register there holds it shared first.
//! One who has not reached Redis yet may hold it exclusively: then nobody else can be registered, so that it may write.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::cache::ResultCache;
use crate::error::Error;
use crate::session::context::Database;

/// How long Redis may take before this pgherd asks to be the only one.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one control connection holds; all of it goes with the connection.
#[derive(Debug, Default)]
pub(super) struct SoloLock {
    shared: bool,
    exclusive: bool,
    shared_since: Option<Instant>,
    scope_is_told: bool,
    /// Since when it waits for a pgherd that holds the lock for itself, and whether that was said.
    shut_out: Option<(Instant, bool)>,
}

impl SoloLock {
    /// Takes and gives back what the present state asks for. Returns whether it is what it should be.
    pub(super) async fn keep(
        &mut self,
        database: &Database,
        cache: &ResultCache,
        client: &Client,
    ) -> Result<bool, Error> {
        if database.cache_config.redis.is_none() {
            self.hold_exclusively(database, client).await?;
            self.tell_scope(database, cache, client).await?;
            return Ok(true);
        }
        if !self.shared {
            self.shared = ask(client, "pg_try_advisory_lock_shared").await?;
            self.shared_since = Some(Instant::now());
        }
        if !self.shared {
            // Somebody writes who has not reached Redis: nothing may be served beside that one.
            self.complain(database);
            return Ok(false);
        }
        self.shut_out = None;
        self.tell_scope(database, cache, client).await?;
        if cache.is_registered() {
            if self.exclusive {
                database.solo.store(false, Ordering::Release);
                ask(client, "pg_advisory_unlock").await?;
                self.exclusive = false;
            }
            return Ok(true);
        }
        let is_late = self.shared_since.is_some_and(|since| since.elapsed() > PATIENCE);
        if is_late {
            self.hold_exclusively(database, client).await?;
        }
        Ok(is_late)
    }

    /// Says once who is in the way, if that lasts.
    fn complain(&mut self, database: &Database) {
        let (since, is_said) = self.shut_out.get_or_insert_with(|| (Instant::now(), false));
        if !*is_said && since.elapsed() > PATIENCE {
            *is_said = true;
            tracing::warn!(
                database = database.config.name,
                "another pgherd caches this database of this server without this Redis: nothing is served from the cache and writes \
                 wait or are refused, until it ends or is given the same cache.redis"
            );
        }
    }

    /// Tells the cache which server it is about, if that is another one than before.
    async fn tell_scope(&mut self, database: &Database, cache: &ResultCache, client: &Client) -> Result<(), Error> {
        if !self.scope_is_told {
            let scope = read_scope(client).await?;
            let mut known = database.scope.lock();
            if known.as_ref() != Some(&scope) {
                cache.set_scope(&scope);
                *known = Some(scope);
            }
            self.scope_is_told = true;
        }
        Ok(())
    }

    async fn hold_exclusively(&mut self, database: &Database, client: &Client) -> Result<(), Error> {
        if !self.exclusive && ask(client, "pg_try_advisory_lock").await? {
            self.exclusive = true;
            database.solo.store(true, Ordering::Release);
        }
        Ok(())
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
