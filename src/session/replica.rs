//! Choosing a replica that has replayed what must be seen: what this session wrote, or all that a fill of the cache has to show.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::Target;
use super::{Attached, Session};
use crate::backend::pool::Lease;
use crate::backend::reset::RESULT_SETTINGS;
use crate::backend::server::ServerConn;
use crate::backend::settings::literal;
use crate::cache::FillTicket;
use crate::error::{Error, ErrorKind};
use crate::exec::readonly::{self, Captured, Read};
use crate::wire::sqlstate::SqlState;

/// How long a read waits for a replica to catch up before it goes to the primary.
const CATCH_UP: Duration = Duration::from_millis(200);
/// How often a replica is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// How long fills do without replicas after none had caught up.
const REST: Duration = Duration::from_secs(1);
/// Bytes of a WAL page, of its header, and of the header of a segment's first page.
const WAL_PAGE: u64 = 8192;
const PAGE_HEADER: u64 = 24;
const SEGMENT_HEADER: u64 = 40;

/// Settings that, beside those that a cache's key holds, may be other ones on another server and then change what a query returns.
const SERVER_SETTINGS: [&str; 7] = [
    "integer_datetimes",
    "lc_collate",
    "lc_ctype",
    "local_preload_libraries",
    "server_encoding",
    "server_version_num",
    "timezone_abbreviations",
];

/// Where the primary's WAL ended at some moment: in which server's history, on which timeline, at which byte.
#[derive(Debug)]
pub(super) struct Position {
    system: String,
    timeline: u32,
    lsn: u64,
}

/// How far a replica has come; a server that is none has come nowhere.
const REPLAYED: &str = "SELECT pg_catalog.pg_conf_load_time()::pg_catalog.text, CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() END::pg_catalog.text";

const POSITION: &str = "SELECT pg_catalog.pg_conf_load_time()::pg_catalog.text, c.system_identifier::pg_catalog.text, pg_catalog.substr(pg_catalog.pg_walfile_name(w.lsn), 1, 8), \
     w.lsn::pg_catalog.text, pg_catalog.pg_current_wal_flush_lsn()::pg_catalog.text, \
     pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))::pg_catalog.text \
     FROM pg_catalog.pg_current_wal_insert_lsn() w(lsn), pg_catalog.pg_control_system() c";

impl Position {
    fn of(row: Vec<Option<String>>) -> Option<Self> {
        let [_, system, timeline, inserted, flushed, segment] = <[Option<String>; 6]>::try_from(row).ok()?;
        let (inserted, flushed) = (bytes(&inserted?)?, bytes(&flushed?)?);
        Some(Self {
            system: system?,
            timeline: u32::from_str_radix(&timeline?, 16).ok()?,
            lsn: end_of_records(inserted, flushed, segment?.parse().ok()?),
        })
    }

    /// Asks a replica whether it has replayed the primary's WAL so far. A standby that was left behind on another timeline has what the
    /// primary never had; its last restart point or the WAL that it needs to be consistent says which one it is on.
    fn is_replayed(&self) -> String {
        let Self { system, timeline, lsn } = self;
        let (system, lsn) = (literal(system), literal(&format!("{:X}/{:X}", lsn >> 32, lsn & u64::from(u32::MAX))));
        format!(
            "SELECT pg_catalog.pg_is_in_recovery() AND pg_catalog.pg_last_wal_replay_lsn() OPERATOR(pg_catalog.>=) {lsn} \
             AND s.system_identifier::pg_catalog.text OPERATOR(pg_catalog.=) {system} \
             AND pg_catalog.int4larger(c.timeline_id, r.min_recovery_end_timeline) OPERATOR(pg_catalog.=) {timeline} \
             FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() r"
        )
    }
}

/// A `pg_lsn` as a number.
fn bytes(lsn: &str) -> Option<u64> {
    let (high, low) = lsn.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}

/// Where the last record ends. At the front of a page the place for the next one is behind the page's header, and no replica comes so far.
fn end_of_records(inserted: u64, flushed: u64, segment: u64) -> u64 {
    let ahead = inserted.saturating_sub(flushed);
    let is_header = (ahead == PAGE_HEADER && flushed.is_multiple_of(WAL_PAGE))
        || (ahead == SEGMENT_HEADER && segment > 0 && flushed.is_multiple_of(segment));
    if is_header { flushed } else { inserted }
}

impl Session {
    /// A replica that has replayed this session's last write, or `None`: then the primary answers.
    pub(super) async fn fresh_replica(&mut self) -> Option<Target> {
        if let Some(None) = self.last_write {
            self.last_write = Some(Some(Arc::new(self.position_of_primary().await?.0)));
        }
        let mut targets: Vec<Target> = Vec::new();
        for target in self.db.replicas_in_turn() {
            let pool = self.pool(target);
            // Before anybody has logged in there its settings are not known.
            let is_known = pool.baseline().is_some() || self.wait_for_lease(&pool).await.map(Lease::release).is_ok();
            if is_known && self.check_defaults(target, &pool, self.settings.now()).is_ok() {
                targets.push(target);
            }
        }
        let Some(position) = self.last_write.clone().flatten() else { return targets.first().copied() };
        let sql = position.is_replayed();
        for target in targets {
            let Ok(mut lease) = self.wait_for_lease(&self.pool(target)).await else { continue };
            let has_it = catches_up(lease.server(), &sql, || false).await;
            lease.release();
            if has_it {
                // A replica that has it keeps it; another one may not, so the position is not forgotten.
                return Some(target);
            }
        }
        None
    }

    /// The whole answer of a replica that showed all that had been committed when the ticket was given, and nothing that was not;
    /// when it was asked, and how long it took. `None` leaves it to the primary: no replica has caught up, there was an error (a
    /// conflict with recovery, say), the answer is larger than an entry, or what it read has been written to meanwhile. A replica may show
    /// a commit before the primary does, so only what may be stored is given to a client. `cancels` is how many there were when the statement began.
    ///
    /// # Errors
    /// The client is gone, has cancelled, or it took too long.
    pub(super) async fn answer_of_replica(
        &mut self,
        read: Read<'_>,
        ticket: &FillTicket,
        cancels: u64,
    ) -> Result<Option<(Captured, (Instant, Duration))>, Error> {
        if self.db.replicas_rest() {
            return Ok(None);
        }
        let began = Instant::now();
        for target in self.db.replicas_in_turn() {
            let borrowed = tokio::time::timeout(CATCH_UP, self.borrow_server(target)).await;
            let mut borrowed = match borrowed {
                Ok(Ok(borrowed)) => borrowed,
                Ok(Err(error)) if error.kind() == ErrorKind::Io => return Err(error),
                _ => continue,
            };
            if self.has_all_of_now(&mut borrowed, cancels).await {
                return self.ask_replica(borrowed, read, ticket, (began, cancels)).await;
            }
            self.give_back(borrowed).await;
            self.unless_cancelled(cancels)?;
        }
        self.db.let_replicas_rest(REST);
        Ok(None)
    }

    async fn ask_replica(
        &mut self,
        mut borrowed: Attached,
        read: Read<'_>,
        ticket: &FillTicket,
        (began, cancels): (Instant, u64),
    ) -> Result<Option<(Captured, (Instant, Duration))>, Error> {
        let started = Instant::now();
        let running = readonly::again(borrowed.lease.server(), read, self.db.cache_config.max_entry_bytes);
        let answer = tokio::time::timeout(self.db.config.olap_timeout, running).await;
        let (took, is_cancelled) = (started.elapsed(), self.cancel.slot.fired() != cancels);
        if answer.is_err() {
            self.cancel.slot.fire().await;
        }
        if !matches!(answer, Ok(Ok(_))) {
            borrowed.lease.server().mark_broken();
        }
        self.give_back(borrowed).await;
        match answer {
            Ok(Ok(Some(captured))) => Ok(ticket.holds().await.then_some((captured, (began, took)))),
            _ if is_cancelled => Err(cancelled()),
            Ok(_) => Ok(None),
            Err(_) => Err(super::failure::too_slow("database.olap_timeout")),
        }
    }

    /// Whether the server on that connection is a replica that has replayed all that was committed when this was called, and answers as the
    /// primary does. One that was further than the primary then is a replica of something else, be it of the same origin.
    async fn has_all_of_now(&mut self, borrowed: &mut Attached, cancels: u64) -> bool {
        let server = borrowed.lease.server();
        #[cfg(feature = "faults")]
        if self.db.cache.as_ref().is_some_and(|cache| cache.asks_any_replica()) {
            return true;
        }
        let Some(Ok([loaded, replayed])) = row(server, REPLAYED).await.map(<[_; 2]>::try_from) else { return false };
        let Some(replayed) = replayed.as_deref().and_then(bytes) else { return false };
        let conduct = self.conduct_of(server, loaded).await;
        let Some((position, wanted)) = self.position_of_primary().await else { return false };
        if replayed > position.lsn || conduct.is_none() || conduct != wanted {
            return false;
        }
        let server = borrowed.lease.server();
        let slot = Arc::clone(&self.cancel.slot);
        catches_up(server, &position.is_replayed(), || slot.fired() != cancels).await
    }

    fn unless_cancelled(&self, cancels: u64) -> Result<(), Error> {
        if self.cancel.slot.fired() == cancels { Ok(()) } else { Err(cancelled()) }
    }

    /// A position in the primary's WAL that is not before any commit that has been acknowledged, and what a query's result depends on beside
    /// data and session: see [`Session::conduct_of`].
    async fn position_of_primary(&mut self) -> Option<(Position, Option<Arc<str>>)> {
        let asking = async {
            let mut lease = self.wait_for_lease(&self.pool(Target::Primary)).await.ok()?;
            let row = row(lease.server(), POSITION).await;
            let loaded = row.as_ref().and_then(|row| row.first()?.clone());
            let conduct = self.conduct_of(lease.server(), loaded).await;
            lease.release();
            Some((Position::of(row?)?, conduct))
        };
        tokio::time::timeout(CATCH_UP, asking).await.ok()?
    }

    /// What a query's result depends on, on that connection, beside data and session: settings as its login has them, and the version of the
    /// database's collation where the server tells it. Asked again when the server has read its configuration again.
    async fn conduct_of(&self, server: &mut ServerConn, loaded: Option<String>) -> Option<Arc<str>> {
        let loaded = loaded?;
        if let Some((at, conduct)) = &server.conduct
            && **at == *loaded
        {
            return Some(Arc::clone(conduct));
        }
        let conduct: Arc<str> = row(server, &self.ask_for_conduct()).await?.into_iter().next()??.into();
        server.conduct = Some((loaded.into(), Arc::clone(&conduct)));
        Some(conduct)
    }

    fn ask_for_conduct(&self) -> String {
        let names: Vec<String> = RESULT_SETTINGS.iter().chain(&SERVER_SETTINGS).map(|name| literal(name)).collect();
        let version = self.primary.baseline().and_then(|baseline| {
            let (_, version) = baseline.parameters.iter().find(|(name, _)| name == "server_version")?;
            version.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
        });
        let collation = match version {
            Some(15..) => {
                "(SELECT pg_catalog.pg_database_collation_actual_version(d.oid) FROM pg_catalog.pg_database d \
                 WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"
            }
            _ => "''",
        };
        format!(
            "SELECT pg_catalog.concat({collation}, ' ', pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat(s.name, '=', s.reset_val), ',' ORDER BY s.name))) \
             FROM pg_catalog.pg_settings s WHERE pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) ANY (ARRAY[{}]) \
             OR pg_catalog.starts_with(s.name, 'plpgsql.')",
            names.join(",")
        )
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "canceling statement due to user request")
}

/// Asks a replica until it says yes; false when it has not soon, cannot be asked, or `is_over`.
async fn catches_up(server: &mut ServerConn, sql: &str, is_over: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + CATCH_UP;
    loop {
        match server.run(sql).await {
            Ok(rows) if rows.first().and_then(|row| row.first()?.as_deref()) == Some("t") => return true,
            Ok(_) if Instant::now() < deadline && !is_over() => tokio::time::sleep(ASK_EVERY).await,
            _ => return false,
        }
    }
}

/// What a server answers in one row.
async fn row(server: &mut ServerConn, sql: &str) -> Option<Vec<Option<String>>> {
    match server.run(sql).await {
        Ok(rows) => rows.into_iter().next(),
        Err(error) => {
            tracing::debug!(%error, "a server does not tell what must be known before a replica is asked");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_bytes() {
        assert_eq!(bytes("1/A0"), Some((1 << 32) + 160));
        assert_eq!((bytes(""), bytes("1"), bytes("x/1")), (None, None, None));
        let row = |values: [&str; 6]| values.map(|value| Some(value.to_owned())).to_vec();
        let position = Position::of(row(["now", "7", "0000000A", "1/10", "1/10", "16777216"])).expect("a position");
        assert_eq!((position.timeline, position.lsn), (10, (1 << 32) + 16));
        assert!(position.is_replayed().contains("'1/10'"));
        assert!(Position::of(vec![None; 6]).is_none() && Position::of(Vec::new()).is_none());
    }

    #[test]
    fn a_header_is_no_record() {
        const SEGMENT: u64 = 16 << 20;
        assert_eq!(end_of_records(8192 + 24, 8192, SEGMENT), 8192);
        assert_eq!(end_of_records(SEGMENT + 40, SEGMENT, SEGMENT), SEGMENT);
        // What is between may be the rest of a record, or one that is not flushed.
        assert_eq!(end_of_records(8192 + 40, 8192, SEGMENT), 8192 + 40);
        assert_eq!(end_of_records(8192 + 48, 8192, SEGMENT), 8192 + 48);
        assert_eq!(end_of_records(9000 + 24, 9000, SEGMENT), 9024);
        assert_eq!(end_of_records(9000, 9000, SEGMENT), 9000);
    }
}
