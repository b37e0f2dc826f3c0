//! Each fault that is put into the cache on purpose is found by the checker within a minute.

use pgherd::cache::Faults;

use super::load::{Run, run};

/// Runs the checker until it has found something, for a minute at most.
async fn finds(name: &str, faults: Faults, telling: &str) {
    let Some(summary) = run(Run { seconds: 60, stop_at_violation: true, lose_redis: false, faults }).await else {
        return;
    };
    let first = summary.violations.iter().find(|(_, what)| what.contains(telling));
    let (at, what) = first.unwrap_or_else(|| panic!("{name} was not found: {summary} {:?}", summary.violations));
    eprintln!("fault {name}: found after {at:?} by {what}\n  {summary}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_second_raise() {
    finds("no second raise", Faults { no_second_raise: true, ..Faults::default() }, "STALE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubt_that_is_a_flag() {
    finds("doubt as a flag", Faults { doubt_as_flag: true, ..Faults::default() }, "STALE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storing_without_comparing_epochs() {
    finds("no comparison", Faults { store_without_comparing: true, ..Faults::default() }, "STALE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_left_out_of_the_key() {
    finds("no role in the key", Faults { no_role_in_key: true, ..Faults::default() }, "FOREIGN").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cascade_ignored() {
    finds("no cascades", Faults { no_cascades: true, ..Faults::default() }, "STALE").await;
}
