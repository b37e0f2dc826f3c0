//! Finishing what crashes left of transactions over several servers: at start, from time to time, and when somebody asks for it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::House;
use crate::exec::two_phase::TwoPhase;
use crate::session::context::Database;

/// How often a look is taken when all is well, and how soon again when something could not be finished.
const ROUND: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// See the module's description.
pub(super) async fn recover(house: Arc<House>, database: Arc<Database>, two_phase: Arc<TwoPhase>) {
    let mut told = HashSet::new();
    let mut was_complete = true;
    loop {
        tokio::select! {
            () = database.closed.cancelled() => return,
            () = house.stop.cancelled() => return,
            () = database.gate.opened() => {}
        }
        let report = tokio::select! {
            () = database.closed.cancelled() => return,
            () = house.stop.cancelled() => return,
            report = two_phase.recover() => report,
        };
        let name = database.config.name.as_str();
        if report.committed + report.rolled_back > 0 {
            let (committed, rolled_back) = (report.committed, report.rolled_back);
            tracing::warn!(
                database = name,
                committed,
                rolled_back,
                "finished transactions that a crash had left prepared"
            );
        }
        for gid in &report.orphans {
            if told.insert(gid.clone()) {
                let hint =
                    "no server of this configuration decides about it: finish it by hand, or by the pgherd that can";
                tracing::error!(database = name, gid, hint, "a prepared transaction of another configuration");
            }
        }
        let metrics = &database.metrics;
        metrics.transactions_recovered.inc_by((report.committed + report.rolled_back) as u64);
        metrics.transactions_orphaned.set(report.orphans.len() as i64);
        if was_complete || report.is_complete() {
            for (server, error) in &report.failures {
                let hint = error.hint_text();
                tracing::warn!(database = name, server, %error, hint, "cannot look for transactions that a crash left prepared");
            }
        }
        was_complete = report.is_complete();
        tokio::select! {
            () = database.closed.cancelled() => return,
            () = house.stop.cancelled() => return,
            () = two_phase.left_over.notified() => {}
            () = tokio::time::sleep(if was_complete { ROUND } else { RETRY }) => {}
        }
    }
}
