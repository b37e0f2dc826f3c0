//! Keeps the result cache informed of writes made past every pgherd, by logical replication from the primary.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use super::House;
use super::upkeep::connect_control;
use crate::backend::wal::{Follower, News};
use crate::cache::ResultCache;
use crate::config::model::Wal;
use crate::error::{Error, ErrorKind};
use crate::session::context::{Database, Target};
use crate::wire::pgoutput::parse_position;
use crate::wire::sqlstate::SqlState;

/// Between attempts to follow.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked which relations the publication has.
const PUBLICATION_ROUND: Duration = Duration::from_secs(1);
/// Questions without an answer beyond which no more are asked.
const OPEN_QUESTIONS: usize = 64;
/// Bytes of a page of WAL, and of the header of its first one in a file: the next record goes behind it.
const PAGE_BYTES: u64 = 8192;
const LONG_HEADER_BYTES: u64 = 40;

/// Follows until pgherd ends. `database` is the name of the cache's database: a reload may put another in its place, with the same cache.
pub(super) async fn keep_following(house: Weak<House>, database: String, cache: Arc<ResultCache>, wal: Wal) {
    let Some(stop) = house.upgrade().map(|house| house.stop.clone()) else { return };
    loop {
        let round = async {
            let Some(house) = house.upgrade() else { return Ok(()) };
            let Some(database) = house.databases.get(&database) else { return Ok(()) };
            database.gate.opened().await;
            tokio::select! {
                // A paused database has no connection to its servers, not even pgherd's own.
                () = database.gate.shut() => Ok(()),
                () = database.closed.cancelled() => Ok(()),
                ended = follow(&house, &database, &cache, &wal) => ended,
            }
        };
        let Some(ended) = stop.run_until_cancelled(round).await else { return };
        cache.follows_no_more();
        if let Err(error) = ended {
            tracing::warn!(%error, database, "writes made past pgherd are not followed; nothing is served from the cache meanwhile");
        }
        if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
            return;
        }
    }
}

async fn follow(house: &House, database: &Database, cache: &ResultCache, wal: &Wal) -> Result<(), Error> {
    let control = connect_control(house, database, Target::Primary).await?;
    let client = &control.client;
    see_that_all_is_published(client, &wal.publication).await?;
    let sql = look_sql(client).await?;
    let (_, publication) = look(client, &sql, &wal.publication).await?;
    let mut follower = begin(house, database, wal).await?;
    // What was written before is not known.
    cache.follows_anew();
    cache.set_followed(published(client, &wal.publication).await?);
    tracing::info!(database = database.config.name, publication = wal.publication, "following writes made past pgherd");
    let mut looked_at = Instant::now();
    let mut asked: VecDeque<(Instant, u64)> = VecDeque::new();
    let mut round = tokio::time::interval((wal.max_lag / 4).clamp(Duration::from_millis(10), RETRY));
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = follower.next() => match news? {
                News::Committed(relations) => apply(database, cache, &relations).await?,
                News::Reached(end) => {
                    while let Some((moment, _)) = asked.pop_front_if(|(_, position)| *position <= end) {
                        cache.knows_writes_until(moment);
                    }
                }
            },
            _ = round.tick() => {
                if looked_at.elapsed() >= PUBLICATION_ROUND {
                    cache.set_followed(published(client, &wal.publication).await?);
                    looked_at = Instant::now();
                }
                if asked.len() < OPEN_QUESTIONS {
                    let now = Instant::now();
                    let (end, state) = look(client, &sql, &wal.publication).await?;
                    if state.is_none() || state != publication {
                        // Since 18 a stream goes on without its publication, and tells of nothing.
                        return Err(Error::new(
                            ErrorKind::Config,
                            SqlState::CONFIG_FILE_ERROR,
                            format!("the publication \"{}\" of cache.wal has changed", wal.publication.escape_debug()),
                        ));
                    }
                    asked.push_back((now, end));
                }
                follower.ask().await?;
            }
        }
    }
}

/// Begins to follow as the first user who may.
async fn begin(house: &House, database: &Database, wal: &Wal) -> Result<Follower, Error> {
    let config = house.config.load_full();
    let mut result = Err(Error::internal("no user may connect to this database"));
    for user in config.users.values() {
        if user.databases.is_empty() || user.databases.contains(&database.config.name) {
            let login = database.login(user, Target::Primary);
            result = Follower::begin(database.address(Target::Primary), &login, &wal.publication).await;
            if result.is_ok() {
                break;
            }
        }
    }
    result.map_err(|error| {
        error.hint(
            "cache.wal needs wal_level = logical, a free replication slot and sender, and a role with REPLICATION.",
        )
    })
}

/// A transaction has committed that changed these relations.
async fn apply(database: &Database, cache: &ResultCache, relations: &[u32]) -> Result<(), Error> {
    let catalog = database.catalog.current();
    let mut changed = Vec::new();
    let mut is_known = catalog.version > 0;
    for oid in relations {
        match catalog.relations.get(oid) {
            Some(relation) => changed.extend_from_slice(&relation.writes),
            None => is_known = false,
        }
    }
    changed.sort_unstable();
    changed.dedup();
    cache.written_elsewhere(&changed, !is_known, catalog.version).await
}

/// What [`look`] asks this server.
async fn look_sql(client: &Client) -> Result<String, Error> {
    let row = client.query_one("SELECT pg_catalog.current_setting('server_version_num')::int4", &[]).await;
    let version: i32 = row.and_then(|row| row.try_get(0)).map_err(cannot_ask)?;
    let parts = |table: &str, of: &str| {
        format!(
            "(SELECT pg_catalog.concat(pg_catalog.count(*), ' ', pg_catalog.sum(r.oid::pg_catalog.int8 * 31 + \
             r.xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.{table} r WHERE r.{of} = p.oid)"
        )
    };
    let schemas = if version >= 150_000 { parts("pg_publication_namespace", "pnpubid") } else { "''".to_owned() };
    // Not the flushed position alone: a commit may be acknowledged before it is flushed (synchronous_commit = off).
    Ok(format!(
        "SELECT pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text, pg_catalog.pg_current_wal_flush_lsn()::pg_catalog.text, \
         (SELECT pg_catalog.concat_ws('/', p.oid, p.xmin, {}, {schemas}) FROM pg_catalog.pg_publication p WHERE p.pubname = $1)",
        parts("pg_publication_rel", "prpubid"),
    ))
}

/// A position in the WAL behind everything that has been committed up to now, and the state of the publication by then: what names it
/// and its parts, and who wrote that last. While it stays the same all that was committed meanwhile has been published.
async fn look(client: &Client, sql: &str, publication: &str) -> Result<(u64, Option<String>), Error> {
    let row = client.query_one(sql, &[&publication]).await.map_err(cannot_ask)?;
    let position = |at: usize| {
        let text: String = row.try_get(at).map_err(cannot_ask)?;
        parse_position(&text).ok_or_else(|| Error::internal("a position in the WAL cannot be read"))
    };
    let (inserted, flushed) = (position(0)?, position(1)?);
    // Where a page is full the next record goes behind the header of the next one, which no record ends at.
    let is_page_end = flushed % PAGE_BYTES == 0 && inserted.saturating_sub(flushed) <= LONG_HEADER_BYTES;
    Ok((if is_page_end { flushed } else { inserted }, row.try_get(2).map_err(cannot_ask)?))
}

/// The publication must tell of everything that changes rows.
async fn see_that_all_is_published(client: &Client, publication: &str) -> Result<(), Error> {
    let sql = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_catalog.pg_publication WHERE pubname = $1";
    let row = client.query_opt(sql, &[&publication]).await.map_err(cannot_ask)?;
    let problem = match row.map(|row| row.try_get::<_, bool>(0)).transpose().map_err(cannot_ask)? {
        Some(true) => return Ok(()),
        Some(false) => "does not publish all of INSERT, UPDATE, DELETE and TRUNCATE",
        None => "does not exist",
    };
    let message = format!("the publication \"{}\" of cache.wal {problem}", publication.escape_debug());
    Err(Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, message)
        .hint("On the primary: CREATE PUBLICATION pgherd FOR ALL TABLES. Tables without a primary key need a REPLICA IDENTITY."))
}

/// The relations whose changes the publication tells of: its tables, their partitions, and views and parents, which have no rows of
/// their own. Tables with a row filter, unlogged and foreign tables and materialized views are not among them.
async fn published(client: &Client, publication: &str) -> Result<HashSet<u32>, Error> {
    let sql = "WITH told AS (\
               SELECT c.oid FROM pg_catalog.pg_publication_tables t \
               JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname \
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename \
               WHERE t.pubname = $1 AND pg_catalog.to_jsonb(t) ->> 'rowfilter' IS NULL) \
               SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relkind IN ('v', 'p') OR (c.relkind = 'r' AND c.relpersistence = 'p' \
               AND (c.oid IN (SELECT oid FROM told) OR c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace \
               OR pg_catalog.pg_partition_root(c.oid) IN (SELECT oid FROM told)))";
    let rows = client.query(sql, &[&publication]).await.map_err(cannot_ask)?;
    rows.iter().map(|row| row.try_get::<_, u32>(0).map_err(cannot_ask)).collect()
}

fn cannot_ask(error: tokio_postgres::Error) -> Error {
    Error::internal("cannot ask the primary about its WAL").cause(error)
}
