//! pgbench with 64 clients over 16 server connections, in its three protocols: nothing fails, and the balances add up.

use std::time::Duration;

use tokio::process::Command;

use crate::harness::{self, Database, Pgherd, fresh_database, ground};

/// Server connections that pgherd may open.
const POOL: u32 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_share_sixteen_servers() {
    let database = fresh_database().await;
    pgbench(database.port, &database, &["-i", "-q", "-s", "1"]).await;
    let pool = format!("pool = {{ max_connections = {POOL}, min_connections = 1 }}\n\n[cache]\nenabled = true");
    let pgherd = Pgherd::over(&database, &pool).await;
    let mut transactions = 0;
    for protocol in ["simple", "extended", "prepared"] {
        for script in [&["-S"][..], &[][..]] {
            let report = pgbench(
                pgherd.port,
                &database,
                &[&["-n", "-M", protocol, "-c", "64", "-j", "2", "-t", "25"], script].concat(),
            )
            .await;
            assert!(report.contains("number of failed transactions: 0 "), "{protocol} {script:?}: {report}");
            assert!(report.contains("processed: 1600/1600"), "{protocol} {script:?}: {report}");
            transactions += if script.is_empty() { 1600 } else { 0 };
        }
    }

    let straight = database.client().await;
    let sums = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
                       (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history),
                       (select count(*) from pgbench_history)";
    let row = straight.query_one(sums, &[]).await.expect("sums");
    let sums: Vec<i64> = (0..5).map(|column| row.get(column)).collect();
    assert_eq!((sums[0], sums[0], sums[0], transactions), (sums[1], sums[2], sums[3], sums[4]), "{sums:?}");

    let servers = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
                      and application_name not like '%control%'";
    let count: i64 = straight.query_one(servers, &[]).await.expect("count").get(0);
    assert!(count <= i64::from(POOL) + 4, "{count} server connections; a few may be the control plane's");
    pgherd.stop().await;
    harness::eventually(Duration::from_secs(10), "pgherd's connections are gone", async || {
        straight.query_one(servers, &[]).await.expect("count").get::<_, i64>(0) == 0
    })
    .await;
}

async fn pgbench(port: u16, database: &Database, arguments: &[&str]) -> String {
    let mut command = Command::new(ground().binaries().postgres_program("pgbench"));
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()]).args(arguments).arg(&database.name);
    let output = tokio::time::timeout(Duration::from_secs(120), command.kill_on_drop(true).output()).await;
    let output = output.expect("pgbench ends").expect("pgbench starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}
