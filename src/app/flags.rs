//! The flag that a pgherd raises in PostgreSQL while it cannot reach Redis, and the look at everybody's flags.
//!
//! Redis knows who has registered; a Redis that was emptied does not know who is missing. An advisory lock, held shared by each
//! pgherd that is cut off, tells it to those who would serve.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::Client;

use super::House;
use super::homes::target_at;
use super::solo::read_scope;
use super::upkeep::connect_control;
use crate::cache::ResultCache;
use crate::error::Error;
use crate::session::context::Database;

/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// Keeps the flag and looks at the others', until the cache's database is gone or pgherd ends. `database` is its name: a reload
/// may put another in its place, with the same cache. `place` is which of its servers.
pub(super) async fn keep_watch(
    house: Weak<House>,
    database: String,
    place: String,
    cache: Arc<ResultCache>,
    lease: Duration,
) {
    let Some(mut changes) = cache.registrations() else { return };
    cache.begin_watch();
    let Some(stop) = house.upgrade().map(|house| house.stop.clone()) else { return };
    loop {
        let round = async {
            let Some((house, database)) = present(&house, &database) else { return Ok(()) };
            let Some(target) = target_at(&database, &place) else { return Ok(()) };
            let control = connect_control(&house, &database, target).await?;
            drop((house, database));
            // A connection leads to one process of the server, for as long as it lasts.
            let scope = read_scope(&control.client).await?;
            let ended = watch_on(&control.client, &scope, &cache, &mut changes, lease).await;
            cache.cannot_look();
            ended
        };
        let Some(ended) = stop.run_until_cancelled(round).await else { return };
        if let Err(error) = ended {
            tracing::warn!(%error, database, "cannot look for pgherds that cannot reach Redis");
        }
        if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
            return;
        }
    }
}

fn present(house: &Weak<House>, database: &str) -> Option<(Arc<House>, Arc<Database>)> {
    let house = house.upgrade()?;
    let database = house.databases.get(database)?;
    Some((house, database))
}

async fn watch_on(
    client: &Client,
    scope: &str,
    cache: &ResultCache,
    changes: &mut watch::Receiver<u64>,
    lease: Duration,
) -> Result<(), Error> {
    let mut is_up = false;
    loop {
        changes.mark_unchanged();
        let is_registered = cache.is_registered();
        if !is_registered && !is_up {
            client.query_one(&sql("pg_catalog.pg_advisory_lock_shared"), &[]).await.map_err(failed)?;
            is_up = true;
            cache.says_it_is_cut_off(scope, Some(Instant::now()));
            changes.mark_unchanged();
        } else if is_registered && is_up {
            cache.says_it_is_cut_off(scope, None);
            client.query_one(&sql("pg_catalog.pg_advisory_unlock_shared"), &[]).await.map_err(failed)?;
            is_up = false;
            changes.mark_unchanged();
        }
        let asked_at = Instant::now();
        let row = client.query_one(FLAGS, &[]).await.map_err(failed)?;
        cache.was_looked_at(scope, asked_at, row.try_get::<_, i64>(0).map_err(failed)? == 0);
        // A change that came while PostgreSQL was asked is looked at again at once.
        if cache.is_registered() != is_up {
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(lease / 4) => {}
            }
        }
    }
}

/// The lock: its class says what it is for, so that it can be found among all.
const CLASS: i32 = 0x7067_6864;

fn sql(function: &str) -> String {
    format!("SELECT {function}({CLASS}, 1)")
}

const FLAGS: &str = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted \
                     AND classid = 1885825124 AND objid = 1 AND objsubid = 2 \
                     AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

fn failed(error: tokio_postgres::Error) -> Error {
    Error::internal("PostgreSQL does not answer").cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_look_is_for_the_lock_that_is_taken() {
        assert!(FLAGS.contains(&format!("classid = {CLASS} ")));
    }
}
