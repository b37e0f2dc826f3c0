//! RELOAD: what did not change keeps its server connections and goes on counting, what changed is made anew, and a bad file does nothing.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::{PATIENCE, shown, told};
use crate::harness::{self, Database, Pgherd, eventually};

fn text(databases: &[Database], pool_of_second: &str, more: &str) -> String {
    let database = |database: &Database, pool: &str| {
        format!(
            "[[database]]\nname = \"{}\"\nprimary = \"{}\"\npool = {{ {pool} }}\n",
            database.name,
            database.conninfo()
        )
    };
    format!(
        "[pool]\nmin_connections = 0\n{}{}[[user]]\nname = \"postgres\"\nauth = \"trust\"\n\
         [admin]\nusers = [\"postgres\"]\n[listen]\naddress = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n{more}",
        database(&databases[0], "max_connections = 3"),
        database(&databases[1], pool_of_second)
    )
}

/// The server processes behind a database, and its row of SHOW STATS.
async fn state(console: &Client, database: &str) -> (Vec<String>, BTreeMap<String, String>) {
    let servers = shown(console, "show servers").await;
    let pids = servers.iter().filter(|row| row["database"] == database).map(|row| row["remote_pid"].clone()).collect();
    let stats = shown(console, "show stats").await;
    (pids, stats.iter().find(|row| row["database"] == database).expect("a row").clone())
}

fn figure(row: &BTreeMap<String, String>, name: &str) -> u64 {
    row[name].parse().expect("a figure")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_touches_nothing_but_what_changed() {
    let databases = harness::fresh_databases(2).await;
    let (kept, changed) = (&databases[0].name, &databases[1].name);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    std::fs::write(&path, text(&databases, "max_connections = 3", "")).expect("written");
    let pgherd = Pgherd::start_from(&path).await;
    let console = pgherd.client("pgherd").await;
    let (of_kept, of_changed) = (pgherd.client(kept).await, pgherd.client(changed).await);
    of_kept.batch_execute("set application_name = 'here'").await.expect("set");
    for client in [&of_kept, &of_changed] {
        for _ in 0..5 {
            client.simple_query("select 1").await.expect("an answer");
        }
    }
    let (in_transaction, open) = (pgherd.client(kept).await, pgherd.client(changed).await);
    for client in [&in_transaction, &open] {
        client.batch_execute("begin; select 1").await.expect("begun");
    }
    // What a client has its answer of is counted a moment later.
    let counted = async || figure(&state(&console, kept).await.1, "total_query_count") == 7;
    eventually(PATIENCE, "all queries are counted", counted).await;
    let (before, before_changed) = (state(&console, kept).await, state(&console, changed).await);

    std::fs::write(&path, text(&databases, "max_connections = 2, query_timeout = \"7s\"", "")).expect("written");
    console.batch_execute("reload").await.expect("reloaded");
    assert_eq!(row(&console, "show databases", changed).await["pool_size"], "2");
    for client in [&of_kept, &in_transaction] {
        client.simple_query("select 1").await.expect("served as before");
    }
    let counted = async || figure(&state(&console, kept).await.1, "total_query_count") >= 9;
    eventually(PATIENCE, "the others are counted, too", counted).await;
    let after = state(&console, kept).await;
    assert!(before.0.iter().all(|pid| after.0.contains(pid)), "{:?} became {:?}", before.0, after.0);
    assert_eq!(figure(&after.1, "total_query_count"), figure(&before.1, "total_query_count") + 2);
    let assigned = ["total_server_assignment_count"].map(|name| (figure(&before.1, name), figure(&after.1, name)))[0];
    assert!(assigned.1 > assigned.0, "{assigned:?} {before:?} {after:?}");
    assert_eq!(figure(&after.1, "total_server_closed_count"), figure(&before.1, "total_server_closed_count"));
    let shown: String = of_kept.query_one("show application_name", &[]).await.expect("a row").get(0);
    assert_eq!(shown, "here");

    // The other's transaction ends where it began, then its client is sent away; its figures go on.
    open.batch_execute("select 2; commit").await.expect("the transaction under way goes on");
    let (code, _, hint) = told(&of_changed.batch_execute("select 1").await.expect_err("its pool is gone"));
    assert_eq!((code.as_str(), hint.as_str()), ("57P01", "Connect again."));
    pgherd.client(changed).await.simple_query("select 1").await.expect("served by the new pool");
    let gone = async || state(&console, changed).await.0.iter().all(|pid| !before_changed.0.contains(pid));
    eventually(PATIENCE, "the old connections are gone", gone).await;
    let after_changed = state(&console, changed).await;
    assert!(figure(&after_changed.1, "total_query_count") > figure(&before_changed.1, "total_query_count"));
    in_transaction.batch_execute("commit").await.expect("committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_faults_changes_nothing_and_each_is_named() {
    let databases = harness::fresh_databases(2).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    std::fs::write(&path, text(&databases, "max_connections = 3", "")).expect("written");
    let pgherd = Pgherd::start_from(&path).await;
    let console = pgherd.client("pgherd").await;
    let client = pgherd.client(&databases[1].name).await;
    client.simple_query("select 1").await.expect("an answer");
    std::fs::write(&path, text(&databases, "max_connections = 0", "max_client = 1\n")).expect("written");
    let (code, detail, _) = told(&console.batch_execute("reload").await.expect_err("refused"));
    assert_eq!(code, "F0000");
    assert!(detail.contains("max_connections") && detail.contains("did you mean \"max_clients\"?"), "{detail}");
    client.simple_query("select 1").await.expect("served as before");
    assert_eq!(row(&console, "show databases", &databases[1].name).await["pool_size"], "3");

    // A database that the file no longer names is closed; its name is unknown then.
    let without = text(&databases, "max_connections = 3", "");
    let second = format!("[[database]]\nname = \"{}\"", databases[1].name);
    let begin = without.find(&second).expect("it is there");
    let end = begin + without[begin..].find("[[user]]").expect("users");
    std::fs::write(&path, [&without[..begin], &without[end..]].concat()).expect("written");
    console.batch_execute("reload").await.expect("reloaded");
    let (code, _, _) = told(&client.simple_query("select 1").await.map(|_| ()).expect_err("closed"));
    assert_eq!(code, "57P01");
    let refused = harness::try_connect(&pgherd.conninfo("postgres", &databases[1].name)).await.map(|_| ());
    assert_eq!(told(&refused.expect_err("unknown")).0, "3D000");
}

async fn row(console: &Client, command: &str, name: &str) -> BTreeMap<String, String> {
    let rows = shown(console, command).await;
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("{name} in {rows:?}")).clone()
}
