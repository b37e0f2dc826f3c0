//! The concurrent checker: no stale and no foreign row, whatever happens to Redis.

use super::load::{Run, Summary, run};

/// Seconds to run: some for every day, a minute and more for a soak.
fn seconds() -> u64 {
    std::env::var("PGHERD_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(18)
}

fn verdict(name: &str, summary: &Summary) {
    eprintln!("{name}: {summary}");
    for (at, violation) in summary.violations.iter().take(10) {
        eprintln!("  {at:?}: {violation}");
    }
    assert!(summary.violations.is_empty(), "{name}: {summary}\n{}", summary.notes);
}

/// Whether this is a run long enough to ask for shares of hits and near reads: beside all other tests a short one has few.
fn is_soak() -> bool {
    seconds() >= 60
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pgherds_show_no_stale_and_no_foreign_row() {
    let Some(summary) = run(Run { seconds: seconds(), lose_redis: true, ..Run::default() }).await else { return };
    verdict("checker", &summary);
    assert!(summary.hits > 0 && summary.near > 0 && summary.writes > 0, "there was something to see: {summary}");
    if is_soak() {
        assert!(summary.hits * 2 >= summary.reads, "at least half of the reads are hits: {summary}\n{}", summary.notes);
        assert!(summary.near * 10 >= summary.reads, "a tenth of the reads start near a commit: {summary}");
        assert!(summary.writes > 100, "there was much to see: {summary}");
    }
}
