//! No stale and no foreign row, whatever happens to whom.

use std::time::Duration;

use super::fleet::Plan;
use super::nemesis::Act;
use super::run::{Run, Summary, run};

/// How long an answer may be served under `bounded`.
const BOUND: Duration = Duration::from_secs(1);

/// Seconds that are asked for: some for every day, an hour for the proof.
fn soak() -> Option<u64> {
    number("PGHERD_SOAK_SECONDS")
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

fn strict(seconds: u64) -> Run {
    Run {
        time: Duration::from_secs(seconds),
        plan: Plan { herds: 3, cache: "ttl = \"5m\"".into(), ..Plan::default() },
        acts: Act::wanted(),
        // In a short run as many things happen as there is time for, in a long one the cache is to serve, too.
        calm: Duration::from_millis(number("PGHERD_SOAK_CALM_MS").unwrap_or(if seconds < 60 { 1500 } else { 8000 })),
        ..Run::default()
    }
}

fn bounded(seconds: u64) -> Run {
    let run = strict(seconds);
    let cache = format!("ttl = \"{}ms\"\nconsistency = \"bounded\"", BOUND.as_millis());
    Run { plan: Plan { cache, ..run.plan }, bound: Some(BOUND), ..run }
}

async fn proves(name: &str, wanted: Run) {
    let Some(summary) = run(&wanted).await else { return };
    eprintln!("{name}: {summary}");
    for (at, violation) in summary.violations.iter().take(10) {
        eprintln!("  {at:?}: {violation}");
    }
    if !summary.violations.is_empty() {
        eprintln!("{}", summary.done.join("\n"));
    }
    assert!(summary.violations.is_empty(), "{name}: {summary}");
    assert_eq!(summary.fallen, 0, "{name}: {summary}");
    // That the cache answers, now that all is well again, was waited for.
    assert!(summary.reads > 0 && summary.writes > 0, "there was something to see: {summary}");
    if wanted.time >= Duration::from_secs(60) {
        shares(name, &summary);
    }
}

/// A run that is long enough must have seen what it is to prove: beside all other tests a short one has few hits.
fn shares(name: &str, summary: &Summary) {
    assert!(summary.hits * 2 >= summary.reads, "{name}: at least half of the reads are hits: {summary}");
    assert!(summary.near * 10 >= summary.reads, "{name}: a tenth of the reads start near a commit: {summary}");
    assert!(summary.from_replica > 0 && summary.shared > 0, "{name}: a replica filled, and roles shared: {summary}");
    assert!(summary.writes > 100, "{name}: there was much to see: {summary}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stale_and_no_foreign_row() {
    proves("strict", strict(soak().unwrap_or(18))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_older_than_the_bound() {
    // Every day a few seconds: what differs is the clock.
    proves("bounded", bounded(soak().unwrap_or(6))).await;
}
