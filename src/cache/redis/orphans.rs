//! What was under way when Redis lost its memory, and has nobody left who would say so: transactions of a pgherd that was killed at that time.
//!
//! A new generation serves nothing for one lease: by then every pgherd that lives has said what it has open. Then PostgreSQL is asked which
//! transactions clients have open on server processes that no member writes through; until these have ended nothing is served.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{Connection, Failure};
use super::script::Script;
use super::writes::backend_named;
use super::{PATIENCE, Shared, text};
use crate::cache::doubt::{BackendChecker, OpenTransaction};

/// Between two looks.
const AGAIN: Duration = Duration::from_millis(100);
/// How long PostgreSQL may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// After that long people are told what is waited for.
const PATIENT: Duration = Duration::from_secs(10);

impl Shared {
    /// Sees to it that the generation is served from once nothing can commit any more that nobody answers for. Returns then, or when the connection
    /// is no more.
    pub(super) async fn wait_for_orphans(
        &self,
        connection: &Arc<Connection>,
        left: Duration,
        checker: &dyn BackendChecker,
    ) {
        tokio::time::sleep(left).await;
        let began = Instant::now();
        let (mut orphans, mut is_told): (Option<HashSet<OpenTransaction>>, bool) = (None, false);
        while self.is_mine(connection) {
            match self.look_for_orphans(connection, orphans.take(), checker).await {
                Ok(None) => return,
                Ok(Some(left)) => {
                    if began.elapsed() > PATIENT && !std::mem::replace(&mut is_told, true) {
                        let pids: Vec<i32> = left.iter().map(|transaction| transaction.pid).collect();
                        tracing::warn!(
                            ?pids,
                            "Redis lost its memory, and these server processes, which no pgherd answers for, are still in the transactions of \
                             that time: nothing is cached until they end"
                        );
                    }
                    orphans = Some(left);
                }
                Err(failure) => tracing::debug!(%failure, "cannot ask for transactions that nobody answers for"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What is left of `before`, or what there is in the first place; `None` when there is nothing to wait for.
    async fn look_for_orphans(
        &self,
        connection: &Connection,
        before: Option<HashSet<OpenTransaction>>,
        checker: &dyn BackendChecker,
    ) -> Result<Option<HashSet<OpenTransaction>>, Failure> {
        // Asked first: who registers later has said what it has open.
        let mut open = HashSet::new();
        if !self.faults.ignore_orphans() {
            let asked = tokio::time::timeout(ASK_TIMEOUT, checker.open_transactions()).await;
            let asked = asked.map_err(|_| Failure::Late)?;
            open = asked.map_err(|error| Failure::Broken(error.to_string()))?.into_iter().collect();
        }
        let ask = |is_over: bool| {
            let mut args = self.identity(connection);
            args.push(text(if is_over { "1" } else { "0" }));
            connection.call_surely(Script::Orphans, args, PATIENCE)
        };
        let reply = self.expect_ok(ask(false).await?)?;
        if reply.text(1).is_empty() {
            return Ok(None);
        }
        let answered_for: HashSet<i32> =
            reply.texts_from(2).filter_map(backend_named).map(|backend| backend.pid).collect();
        // One that was running at the last look may be prepared by now.
        let may_be_prepared = before.as_ref().is_none_or(|before| !before.iter().all(OpenTransaction::is_prepared));
        open.retain(|transaction| {
            let was_there = before.as_ref().is_none_or(|before| before.contains(transaction));
            match transaction.is_prepared() {
                true => was_there || may_be_prepared,
                false => was_there && !answered_for.contains(&transaction.pid),
            }
        });
        if open.is_empty() {
            self.expect_ok(ask(true).await?)?;
            return Ok(None);
        }
        Ok(Some(open))
    }
}
