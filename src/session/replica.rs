//! Choosing a replica that has replayed what this session wrote.

use std::time::Duration;

use super::Session;
use super::context::Target;

/// How long a read waits for a replica to catch up before it goes to the primary.
const CATCH_UP: Duration = Duration::from_millis(200);
/// How often a replica is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(5);

impl Session {
    /// A replica that has replayed this session's last write, or `None`: then the primary answers.
    pub(super) async fn fresh_replica(&mut self) -> Option<Target> {
        if let Some(None) = self.last_write {
            self.last_write = Some(Some(self.ask_for_lsn().await?));
        }
        for target in self.db.replicas_in_turn() {
            let Some(Some(lsn)) = &self.last_write else { return Some(target) };
            let lsn = lsn.clone();
            if tokio::time::timeout(CATCH_UP, self.wait_for_replay(target, &lsn)).await.unwrap_or(false) {
                // A replica that has it keeps it; another one may not, so the position is not forgotten.
                return Some(target);
            }
        }
        None
    }

    /// A position in the primary's WAL that is not before this session's last commit.
    async fn ask_for_lsn(&mut self) -> Option<String> {
        let mut lease = self.wait_for_lease(&self.pool(Target::Primary)).await.ok()?;
        let rows = lease.server().run("SELECT pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text").await.ok()?;
        lease.release();
        rows.into_iter().next()?.into_iter().next()?
    }

    /// Waits until a replica has replayed up to `lsn`; false where it cannot be asked.
    async fn wait_for_replay(&mut self, target: Target, lsn: &str) -> bool {
        let sql = format!("SELECT pg_catalog.pg_last_wal_replay_lsn() >= {}", crate::backend::settings::literal(lsn));
        let Ok(mut lease) = self.wait_for_lease(&self.pool(target)).await else { return false };
        loop {
            match lease.server().run(&sql).await {
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
