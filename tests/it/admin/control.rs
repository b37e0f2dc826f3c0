//! PAUSE and its kin: what clients see of them is a wait, or what was asked for.

use pgherd::admin::Shutdown;
use pgherd::commands::demo::servers::StopMode;
use tokio::time::timeout;

use super::{PATIENCE, code, pgherd_before, pool_of, row, scene, shown};
use crate::harness::{self, database_on, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_restarts_behind_a_pause_and_clients_only_wait() {
    let server = harness::start(&harness::options());
    let database = database_on(&server).await;
    database.execute("create table t (a int)").await;
    let pgherd = pgherd_before(&database, "max_connections = 3").await;
    let console = pgherd.client("pgherd").await;
    let mut working = Vec::new();
    for n in 0..8 {
        let client = pgherd.client(&database.name).await;
        working.push(tokio::spawn(async move {
            for step in 0..40 {
                if n % 2 == 0 {
                    client.execute("insert into t select $1::int from pg_sleep(0.01)", &[&step]).await?;
                } else {
                    let text = format!("begin; insert into t values ({step}); select pg_sleep(0.01); commit");
                    client.batch_execute(&text).await?;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            Ok::<_, tokio_postgres::Error>(())
        }));
    }
    let busy = async || {
        let pool = pool_of(&console, &database.name).await;
        ["sv_active", "sv_idle"].iter().map(|state| pool[*state].parse::<u32>().expect("a count")).sum::<u32>() == 3
    };
    eventually(PATIENCE, "all server connections are there", busy).await;
    timeout(PATIENCE, console.batch_execute("pause")).await.expect("in time").expect("paused");
    assert!(shown(&console, "show servers").await.is_empty());
    assert_eq!(row(&console, "show databases", "name", &database.name).await["paused"], "1");
    let waits = async || pool_of(&console, &database.name).await["cl_waiting"] == "8";
    eventually(PATIENCE, "every client waits", waits).await;
    server.restart(StopMode::Fast).expect("restarted");
    console.batch_execute("resume").await.expect("resumed");
    for client in working {
        timeout(PATIENCE, client).await.expect("in time").expect("joined").expect("no error reached a client");
    }
    let rows: i64 = database.client().await.query_one("select count(*) from t", &[]).await.expect("a count").get(0);
    assert_eq!(rows, 8 * 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_waits_for_the_transaction_under_way() {
    let (database, pgherd, console) = scene().await;
    let client = pgherd.client(&database.name).await;
    client.batch_execute("begin; select 1").await.expect("begun");
    let name = database.name.clone();
    let pausing = tokio::spawn(async move {
        console.batch_execute(&format!("pause {name}")).await.expect("paused");
        console
    });
    let other = pgherd.client("pgherd").await;
    let paused = async || row(&other, "show databases", "name", &database.name).await["paused"] == "1";
    eventually(PATIENCE, "the gate is shut", paused).await;
    assert!(!pausing.is_finished());
    client.batch_execute("select 2").await.expect("the transaction goes on");
    client.batch_execute("commit").await.expect("and ends");
    let console = timeout(PATIENCE, pausing).await.expect("in time").expect("joined");
    assert_eq!(code(&console, &format!("pause {}", database.name)).await, "55000");
    assert_eq!(code(&console, "pause nothing").await, "3D000");
    console.batch_execute("resume").await.expect("resumed");
    assert_eq!(code(&console, "resume").await, "55000");
    client.batch_execute("select 3").await.expect("served again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspend_keeps_the_server_connections_and_holds_statements() {
    let (database, pgherd, console) = scene().await;
    let client = pgherd.client(&database.name).await;
    client.batch_execute("select 1").await.expect("an answer");
    let pids = async || -> Vec<String> {
        shown(&console, "show servers").await.iter().map(|server| server["remote_pid"].clone()).collect()
    };
    let before = pids().await;
    console.batch_execute("suspend").await.expect("suspended");
    let waiting = tokio::spawn(async move { client.batch_execute("select 2").await });
    let waits = async || pool_of(&console, &database.name).await["cl_waiting"] == "1";
    eventually(PATIENCE, "the client waits", waits).await;
    console.batch_execute("resume").await.expect("resumed");
    waiting.await.expect("joined").expect("served");
    let after = pids().await;
    assert!(!before.is_empty() && before.iter().all(|pid| after.contains(pid)), "{before:?} are among {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnect_replaces_idle_connections_at_once_and_busy_ones_after_their_transaction() {
    let (database, pgherd, console) = scene().await;
    let (idle, busy) = (pgherd.client(&database.name).await, pgherd.client(&database.name).await);
    busy.batch_execute("begin").await.expect("begun");
    let pid = "select pg_backend_pid()";
    let busy_pid: i32 = busy.query_one(pid, &[]).await.expect("a pid").get(0);
    let idle_pid: i32 = idle.query_one(pid, &[]).await.expect("a pid").get(0);
    console.batch_execute("reconnect").await.expect("reconnected");
    let servers = shown(&console, "show servers").await;
    assert_eq!(servers.len(), 1, "{servers:?}");
    assert_eq!((servers[0]["remote_pid"].clone(), servers[0]["close_needed"].as_str()), (busy_pid.to_string(), "1"));
    let now: i32 = idle.query_one(pid, &[]).await.expect("a pid").get(0);
    assert!(now != idle_pid && now != busy_pid);
    let same: i32 = busy.query_one(pid, &[]).await.expect("the same").get(0);
    assert_eq!(same, busy_pid);
    busy.batch_execute("commit").await.expect("committed");
    timeout(PATIENCE, console.batch_execute("wait_close")).await.expect("in time").expect("closed");
    let left = shown(&console, "show servers").await;
    assert!(left.iter().all(|row| row["remote_pid"] != busy_pid.to_string() && row["close_needed"] == "0"), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_ends_clients_in_any_state_and_new_ones_wait_for_resume() {
    let (database, pgherd, console) = scene().await;
    let name = database.name.clone();
    let (idle, open) = (pgherd.client(&name).await, pgherd.client(&name).await);
    let running = pgherd.client(&name).await;
    open.batch_execute("begin; select 1").await.expect("begun");
    let asleep = tokio::spawn(async move { running.batch_execute("select pg_sleep(60)").await });
    let all_active = async || pool_of(&console, &name).await["sv_active"] == "2";
    eventually(PATIENCE, "two are at work", all_active).await;
    timeout(PATIENCE, console.batch_execute(&format!("kill {name}"))).await.expect("in time").expect("killed");
    let error = timeout(PATIENCE, asleep).await.expect("in time").expect("joined").expect_err("killed");
    assert_eq!(error.code().map(|code| code.code()), Some("57P01"), "{error:?}");
    assert!(shown(&console, "show servers").await.is_empty());
    eventually(PATIENCE, "the others are gone", async || idle.is_closed() && open.is_closed()).await;
    let straight = database.client().await;
    let sleeps = "select 1 from pg_stat_activity where datname = current_database() and query like 'select pg_sleep%'";
    let over = async || straight.query(sleeps, &[]).await.expect("query").is_empty();
    eventually(PATIENCE, "its statement is cancelled", over).await;

    let conninfo = pgherd.conninfo("postgres", &name);
    let newcomer = tokio::spawn(async move { harness::connect(&conninfo).await.batch_execute("select 1").await });
    let waits = async || pool_of(&console, &name).await["cl_waiting"] == "1";
    eventually(PATIENCE, "the newcomer waits", waits).await;
    console.batch_execute(&format!("resume {name}")).await.expect("resumed");
    timeout(PATIENCE, newcomer).await.expect("in time").expect("joined").expect("served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_can_be_killed_and_a_database_be_closed_to_new_ones() {
    let (database, pgherd, console) = scene().await;
    let (one, other) = (pgherd.client(&database.name).await, pgherd.client(&database.name).await);
    let id = shown(&console, "show clients").await[0]["id"].clone();
    console.batch_execute(&format!("kill_client {id}")).await.expect("killed");
    eventually(PATIENCE, "it is gone", async || one.is_closed()).await;
    let unlisted = async || shown(&console, "show clients").await.iter().all(|row| row["id"] != id);
    eventually(PATIENCE, "nor is it listed", unlisted).await;
    assert_eq!(code(&console, &format!("kill_client {id}")).await, "55000");
    console.batch_execute(&format!("disable {}", database.name)).await.expect("disabled");
    let refused =
        harness::try_connect(&pgherd.conninfo("postgres", &database.name)).await.map(|_| ()).expect_err("refused");
    assert_eq!(refused.code().map(|code| code.code()), Some("57P03"));
    other.batch_execute("select 1").await.expect("who is in stays");
    console.batch_execute(&format!("enable {}", database.name)).await.expect("enabled");
    pgherd.client(&database.name).await.batch_execute("select 1").await.expect("served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_is_told_to_whoever_runs_pgherd() {
    let (_database, pgherd, console) = scene().await;
    assert_eq!(code(&console, "reload").await, "F0000", "it was not started from a file");
    console.batch_execute("shutdown wait_for_clients").await.expect("told");
    let how = timeout(PATIENCE, pgherd.told_to_shut_down()).await.expect("in time");
    assert_eq!(how, Shutdown::WaitForClients);
}
