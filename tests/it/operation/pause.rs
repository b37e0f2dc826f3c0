//! PAUSE, restart of the primary, RESUME, while pgbench works: it sees a wait and nothing else.

use std::time::{Duration, Instant};

use pgherd::commands::demo::servers::StopMode;
use tokio::time::timeout;

use super::{PATIENCE, shown, toml};
use crate::harness::{self, Pgherd, database_on, eventually, ground};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_restarts_under_pgbench() {
    let server = harness::start(&harness::options());
    let database = database_on(&server).await;
    let run = |port: u16, arguments: &[&str]| {
        let mut command = tokio::process::Command::new(ground().binaries().postgres_program("pgbench"));
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()]).args(arguments);
        command.arg(&database.name).kill_on_drop(true);
        async move {
            let output = command.output().await.expect("pgbench starts");
            let text =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            assert!(output.status.success(), "{text}");
            text
        }
    };
    run(database.port, &["-i", "-q", "-s", "1"]).await;
    let pgherd = Pgherd::start(&toml(&database, "max_connections = 8", &["postgres"], "")).await;
    let console = pgherd.client_as("boss", "pgherd").await;
    let load = tokio::spawn(run(pgherd.port, &["-n", "-M", "prepared", "-c", "24", "-j", "2", "-T", "4"]));
    let works = async || shown(&console, "show servers").await.len() >= 8;
    eventually(PATIENCE, "pgbench works", works).await;
    let begun = Instant::now();
    timeout(PATIENCE, console.batch_execute("pause")).await.expect("in time").expect("paused");
    tokio::task::block_in_place(|| server.restart(StopMode::Fast)).expect("restarted");
    console.batch_execute("resume").await.expect("resumed");
    let waited = begun.elapsed();
    let report = timeout(PATIENCE, load).await.expect("in time").expect("joined");
    assert!(report.contains("number of failed transactions: 0 "), "{report}");
    let done = "select (select count(*) from pgbench_history),
                       (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)";
    let row = database.client().await.query_one(done, &[]).await.expect("a row");
    let processed = report.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let processed: i64 = processed.and_then(|count| count.split('/').next()?.trim().parse().ok()).expect("a count");
    eprintln!("a wait of {waited:?} in {processed} transactions");
    assert!(processed > 100, "it went on: {report}");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (processed, true), "each is there, and once");
    assert!(waited < Duration::from_secs(15), "{waited:?}");
}
