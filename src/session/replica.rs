//! Choosing a replica that has replayed what must be seen: what this session wrote, or all that a fill of the cache has to show.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Session;
use super::context::Target;
use crate::backend::settings::literal;
use crate::cache::FillTicket;
use crate::error::{Error, ErrorKind};
use crate::exec::readonly::{self, Captured, Read};
use crate::wire::sqlstate::SqlState;

/// How long a read waits for a replica to catch up before it goes to the primary.
const CATCH_UP: Duration = Duration::from_millis(200);
/// How often a replica is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// Where the primary's WAL ended at some moment: in which server's history, on which timeline, at which byte.
#[derive(Debug)]
pub(super) struct Position {
    system: String,
    /// As the names of WAL files have it: eight hexadecimal digits.
    timeline: String,
    lsn: String,
}

const POSITION: &str = "SELECT c.system_identifier::pg_catalog.text, pg_catalog.substr(pg_catalog.pg_walfile_name(w.lsn), 1, 8), \
     w.lsn::pg_catalog.text FROM pg_catalog.pg_current_wal_insert_lsn() w(lsn), pg_catalog.pg_control_system() c";

/// How far a replica has come, where it is one.
const REPLAYED: &str = "SELECT pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text";

impl Position {
    /// Asks a replica whether it has replayed the primary's WAL so far. A standby that was left behind on another timeline has what the
    /// primary never had: its checkpoints are of that timeline.
    fn is_replayed(&self) -> String {
        let (system, lsn) = (literal(&self.system), literal(&self.lsn));
        let timeline = u32::from_str_radix(&self.timeline, 16).unwrap_or_default();
        format!(
            "SELECT pg_catalog.pg_last_wal_replay_lsn() OPERATOR(pg_catalog.>=) {lsn} \
             AND s.system_identifier::pg_catalog.text OPERATOR(pg_catalog.=) {system} \
             AND c.timeline_id OPERATOR(pg_catalog.=) {timeline} \
             FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c"
        )
    }

    /// Whether the primary's WAL had come so far.
    fn is_behind(&self, lsn: &str) -> bool {
        bytes(&self.lsn).is_none_or(|own| bytes(lsn).is_none_or(|other| own < other))
    }
}

/// A `pg_lsn` as a number.
fn bytes(lsn: &str) -> Option<u64> {
    let (high, low) = lsn.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}

impl Session {
    /// A replica that has replayed this session's last write, or `None`: then the primary answers.
    pub(super) async fn fresh_replica(&mut self) -> Option<Target> {
        if let Some(None) = self.last_write {
            self.last_write = Some(Some(Arc::new(self.position_of_primary().await?)));
        }
        match self.last_write.clone().flatten() {
            // A replica that has it keeps it; another one may not, so the position is not forgotten.
            Some(position) => self.replica_at(&position).await,
            None => self.db.replicas_in_turn().next(),
        }
    }

    /// The whole answer of a replica that showed all that had been committed when the ticket was given, and nothing that was not;
    /// when it was asked, and how long it took. `None` leaves it to the primary: no replica has caught up, there was an error (a
    /// conflict with recovery, say), or what it read has been written to meanwhile. A replica may show a commit before the primary
    /// does, so only what may be stored is given to a client.
    ///
    /// # Errors
    /// The client is gone, has cancelled, or it took too long.
    pub(super) async fn answer_of_replica(
        &mut self,
        read: Read<'_>,
        ticket: &FillTicket,
    ) -> Result<Option<(Captured, (Instant, Duration))>, Error> {
        let (cancels, began) = (self.cancel.slot.fired(), Instant::now());
        let Some(target) = self.replica_of_now().await else { return Ok(None) };
        let mut borrowed = match self.borrow_server(target).await {
            Ok(borrowed) => borrowed,
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(_) => return Ok(None),
        };
        let started = Instant::now();
        let answer = if self.reads_alike(target) {
            let running = readonly::again(borrowed.lease.server(), read, self.db.cache_config.max_entry_bytes);
            tokio::time::timeout(self.db.config.olap_timeout, running).await
        } else {
            Ok(Ok(None))
        };
        let took = started.elapsed();
        if !matches!(answer, Ok(Ok(_))) {
            self.cancel.slot.fire().await;
            borrowed.lease.server().mark_broken();
        }
        self.give_back(borrowed).await;
        let Ok(answer) = answer else { return Err(super::failure::too_slow("database.olap_timeout")) };
        if self.cancel.slot.fired() != cancels && !matches!(answer, Ok(Some(_))) {
            let message = "canceling statement due to user request";
            return Err(Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, message));
        }
        let Ok(Some(captured)) = answer else { return Ok(None) };
        Ok(ticket.holds().await.then_some((captured, (began, took))))
    }

    /// Whether the same question has the same answer there as on the primary: the servers are of one version, and give this login the
    /// same settings.
    fn reads_alike(&self, target: Target) -> bool {
        let (Some(here), Some(there)) = (self.primary.baseline(), self.pool(target).baseline()) else { return false };
        let version = |parameters: &[(String, String)]| {
            parameters.iter().find(|(name, _)| name == "server_version").map(|(_, version)| version.clone())
        };
        here.settings == there.settings
            && here.defaults == there.defaults
            && version(&here.parameters) == version(&there.parameters)
    }

    /// A replica that has replayed all that was committed when this was called. One that was further than the primary then is a replica of
    /// something else, be it of the same origin.
    async fn replica_of_now(&mut self) -> Option<Target> {
        #[cfg(feature = "faults")]
        if self.db.cache.as_ref().is_some_and(|cache| cache.asks_any_replica()) {
            return self.db.replicas_in_turn().next();
        }
        for target in self.db.replicas_in_turn() {
            let Some(replayed) = self.ask(target, REPLAYED).await else { continue };
            let position = self.position_of_primary().await?;
            if !position.is_behind(&replayed) && self.catches_up(target, &position.is_replayed()).await {
                return Some(target);
            }
        }
        None
    }

    /// A replica that has replayed the primary's WAL up to there.
    async fn replica_at(&mut self, position: &Position) -> Option<Target> {
        let sql = position.is_replayed();
        for target in self.db.replicas_in_turn() {
            if self.catches_up(target, &sql).await {
                return Some(target);
            }
        }
        None
    }

    /// A position in the primary's WAL that is not before any commit that has been acknowledged.
    async fn position_of_primary(&mut self) -> Option<Position> {
        let mut lease = self.wait_for_lease(&self.pool(Target::Primary)).await.ok()?;
        let rows = lease.server().run(POSITION).await.ok()?;
        lease.release();
        let row: [Option<String>; 3] = rows.into_iter().next()?.try_into().ok()?;
        let [Some(system), Some(timeline), Some(lsn)] = row else { return None };
        Some(Position { system, timeline, lsn })
    }

    async fn catches_up(&mut self, target: Target, sql: &str) -> bool {
        tokio::time::timeout(CATCH_UP, self.wait_for_replay(target, sql)).await.unwrap_or(false)
    }

    /// What a server answers in one value.
    async fn ask(&mut self, target: Target, sql: &str) -> Option<String> {
        let asking = async {
            let mut lease = self.wait_for_lease(&self.pool(target)).await.ok()?;
            let rows = lease.server().run(sql).await.ok()?;
            lease.release();
            rows.into_iter().next()?.into_iter().next()?
        };
        tokio::time::timeout(CATCH_UP, asking).await.ok()?
    }

    /// Waits until a replica says yes; false where it cannot be asked.
    async fn wait_for_replay(&mut self, target: Target, sql: &str) -> bool {
        let Ok(mut lease) = self.wait_for_lease(&self.pool(target)).await else { return false };
        loop {
            match lease.server().run(sql).await {
                Ok(rows) => {
                    if rows.first().and_then(|row| row.first()?.as_deref()) == Some("t") {
                        lease.release();
                        return true;
                    }
                }
                Err(_) => return false,
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_ordered_by_bytes() {
        let at = |lsn: &str| Position { system: "1".into(), timeline: "00000001".into(), lsn: lsn.into() };
        assert!(at("0/FF").is_behind("1/0") && at("0/9").is_behind("0/10"));
        assert!(!at("1/0").is_behind("0/FFFFFFFF") && !at("A/B").is_behind("A/B"));
        assert!(at("0/1").is_behind("") && at("").is_behind("0/1"));
    }
}
