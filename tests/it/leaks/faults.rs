//! Each leak that is put in on purpose is found.

use std::time::Duration;

use pgherd::session::context::Leak;

use super::{Run, soak};

async fn finds(leak: Leak, telling: &str) {
    let run = Run { leak: Some(leak), kills: false, time: Duration::from_secs(60), ..Run::over(4) };
    let found = soak(run).await;
    assert!(found.iter().any(|what| what.contains(telling)), "{leak:?} was not found: {found:?}");
    eprintln!("{leak:?}: {} found, the first {}", found.len(), found[0].lines().next().unwrap_or_default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_stay_are_found() {
    finds(Leak::Settings, "FOREIGN").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_saw_and_stays_is_found() {
    finds(Leak::Dirt, "FOREIGN").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unnamed_statement_of_anothers_is_found() {
    finds(Leak::Unnamed, "life").await;
}
