//! Recovery: what a crash left prepared is finished as it was decided, and what nobody decided is aborted.
//!
//! Run at start, from time to time, and by whoever finds a mark that a commit was cut short. Any number of pgherds may do it at once.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;

use super::TwoPhase;
use super::gid::{Place, Transaction};
use super::recorder::{Outcome, Prepared, Record, Recorder};
use crate::error::Error;

/// How long a transaction that nobody has decided is left alone while the pgherd that began it is connected.
const GRACE_S: f64 = 60.0;

/// Which transactions a pass leaves undecided that nobody has decided, for [`GRACE_S`] at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spared {
    /// Those whose pgherd is connected.
    Alive,
    /// Those of this process that wait for the latch: they decide nothing before the reads that hold it have given it back.
    Waiting,
}

/// What a pass found and did.
#[derive(Debug, Default)]
pub struct Report {
    /// Prepared transactions that were committed.
    pub committed: usize,
    /// Prepared transactions that were rolled back.
    pub rolled_back: usize,
    /// Prepared transactions whose decider is no server of this configuration: somebody else's, or an older one's.
    pub orphans: Vec<String>,
    /// What could not be done, by server.
    pub failures: Vec<(usize, Error)>,
}

impl Report {
    /// Whether no transaction that was decided is left unfinished on any server.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }
}

/// What a server was found to hold.
struct Found {
    recorder: Arc<Recorder>,
    records: Vec<Record>,
    prepared: Vec<Prepared>,
}

impl TwoPhase {
    /// Finishes what can be finished. Failures are in the report: what could not be reached is tried again at the next pass.
    pub async fn recover(&self) -> Report {
        self.pass(Spared::Alive).await
    }

    /// As [`TwoPhase::recover`], and aborts what nobody has decided: to be called under the latch for reads, where what other
    /// processes have prepared may be about to be committed by one that has lost the latch.
    pub(super) async fn settle_all(&self) -> Report {
        self.pass(Spared::Waiting).await
    }

    async fn pass(&self, spared: Spared) -> Report {
        let _alone = self.passing.lock().await;
        let mut report = Report::default();
        // Decisions of all servers first, then what is prepared on any: whoever is found to have decided to commit had everything
        // prepared by then, so that what is not prepared any more is finished.
        let mut read = Vec::new();
        for (at, result) in join_all((0..self.servers()).map(|at| self.records(at))).await.into_iter().enumerate() {
            match result {
                Ok((recorder, records)) => read.push((at, recorder, records)),
                Err(error) => report.failures.push((at, error)),
            }
        }
        let mut found = Vec::new();
        let prepared = join_all(read.iter().map(|(_, recorder, _)| recorder.prepared())).await;
        for ((at, recorder, records), prepared) in read.into_iter().zip(prepared) {
            match prepared {
                Ok(prepared) => found.push((at, Found { recorder, records, prepared })),
                Err(error) => report.failures.push((at, error)),
            }
        }
        let mut left = HashSet::new();
        for (at, one) in &found {
            for prepared in &one.prepared {
                match self.resolve(&found, &one.recorder, prepared, spared).await {
                    Ok(Resolved::Done(Outcome::Commit)) => report.committed += 1,
                    Ok(Resolved::Done(Outcome::Abort)) => report.rolled_back += 1,
                    Ok(Resolved::InFlight(transaction)) => _ = left.insert(transaction),
                    Ok(Resolved::Unknown) if report.failures.is_empty() => report.orphans.push(prepared.gid.clone()),
                    // Its decider may be the one that cannot be reached.
                    Ok(Resolved::Unknown) => {}
                    Err(error) => {
                        left.extend(Transaction::parse(&prepared.gid));
                        report.failures.push((*at, error));
                    }
                }
            }
        }
        let left: HashSet<(Place, String)> = left.into_iter().map(|it| (it.decider, it.key())).collect();
        for (at, one) in &found {
            if let Err(error) = forget_finished(&found, one, &left).await {
                report.failures.push((*at, error));
            }
        }
        report
    }

    async fn resolve(
        &self,
        found: &[(usize, Found)],
        holder: &Recorder,
        prepared: &Prepared,
        spared: Spared,
    ) -> Result<Resolved, Error> {
        let Some(transaction) = Transaction::parse(&prepared.gid) else { return Ok(Resolved::Unknown) };
        let Some((_, decider)) = found.iter().find(|(_, one)| one.recorder.place == transaction.decider) else {
            return Ok(Resolved::Unknown);
        };
        let decider = &decider.recorder;
        let may_be_spared = prepared.age_s < GRACE_S && (spared == Spared::Alive || self.waits(&transaction));
        let outcome = match decider.outcome(&transaction).await? {
            Some(outcome) => outcome,
            None if may_be_spared && decider.is_alive(transaction.coordinator).await? => {
                return Ok(Resolved::InFlight(transaction));
            }
            None => decider.abort(&transaction).await?,
        };
        holder.finish(prepared, outcome).await?;
        Ok(Resolved::Done(outcome))
    }

    async fn records(&self, server: usize) -> Result<(Arc<Recorder>, Vec<Record>), Error> {
        let recorder = self.recorder(server).await?;
        let records = recorder.records().await?;
        Ok((recorder, records))
    }
}

enum Resolved {
    Done(Outcome),
    InFlight(Transaction),
    Unknown,
}

/// Forgets decisions of this server's that everybody has carried out, and that nobody can take back.
async fn forget_finished(
    found: &[(usize, Found)],
    decider: &Found,
    left: &HashSet<(Place, String)>,
) -> Result<(), Error> {
    let is_there = |place: &Option<Place>| found.iter().any(|(_, one)| Some(one.recorder.place) == *place);
    for record in &decider.records {
        if left.contains(&(decider.recorder.place, record.key.clone())) {
            continue;
        }
        let is_over = match record.outcome {
            Outcome::Commit => record.participants.iter().all(is_there) && (!record.is_alive || record.age_s > GRACE_S),
            // As long as somebody may still write COMMIT, it must find this.
            Outcome::Abort => !record.is_alive,
        };
        if is_over {
            decider.recorder.forget(&record.key).await?;
        }
    }
    Ok(())
}
