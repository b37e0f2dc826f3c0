//! The harness itself: servers start, stop, replicate, and vanish with their parent.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pgherd::commands::demo::servers::{Ground, PostgresOptions, PostgresServer, RedisServer, StopMode};

use crate::harness::{self, wait_until};

#[tokio::test]
async fn every_test_has_a_database_of_its_own() {
    let (one, two) = (harness::fresh_database().await, harness::fresh_database().await);
    one.client().await.batch_execute("create table only_here (a int)").await.expect("create");
    let rows =
        two.client().await.query("select 1 from pg_class where relname = 'only_here'", &[]).await.expect("query");
    assert!(rows.is_empty());
}

#[test]
fn a_server_survives_a_crash_and_is_gone_when_dropped() {
    let server = PostgresServer::start(harness::ground(), &PostgresOptions::default()).expect("server");
    server.sql("postgres", "create table kept as select 42 as a; checkpoint").expect("create");
    server.kill9().expect("kill");
    assert_eq!(server.pid(), None);
    assert!(server.sql("postgres", "select 1").is_err(), "a killed server does not answer");
    server.restart(StopMode::Fast).expect("restart");
    assert_eq!(server.sql("postgres", "select a from kept").expect("select"), [[Some("42".to_owned())]]);
    let folder = server.socket_folder().to_path_buf();
    drop(server);
    assert!(!folder.exists(), "the data are removed");
}

#[test]
fn a_replica_streams_what_the_primary_commits() {
    let primary = PostgresServer::start(harness::ground(), &PostgresOptions::default()).expect("primary");
    let replica = primary.replica(&PostgresOptions::default()).expect("replica");
    primary.sql("postgres", "create table t as select 7 as a").expect("create");
    replica
        .wait_for("select count(*) from pg_class where relname = 't'", "1", "the table did not arrive")
        .expect("wait");
    let refused = replica.sql("postgres", "insert into t values (8)").expect_err("a replica is read only");
    assert!(refused.0.contains("25006"), "{refused}");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let options = PostgresOptions::default().set("shared_buffers", "nonsense");
    let error = PostgresServer::start(harness::ground(), &options).expect_err("a bad setting");
    assert!(error.0.contains("shared_buffers") && error.0.contains("nonsense"), "{error}");
}

#[test]
fn redis_starts_empty_again_after_a_kill() {
    let Some(redis) = RedisServer::start(harness::ground()).expect("redis") else {
        assert!(std::env::var_os("CI").is_none(), "redis-server is not installed");
        return;
    };
    let before = redis.pid();
    redis.restart().expect("restart");
    assert!(before.is_some() && redis.pid().is_some() && redis.pid() != before);
}

/// Child half of the next test: prints where its server stands, then waits to be killed.
#[test]
#[ignore = "started by the next test as a process of its own"]
fn child_with_a_server() {
    let ground = Ground::new().expect("ground");
    let server = PostgresServer::start(&ground, &PostgresOptions::default()).expect("server");
    let text = format!("{}\n{}", ground.folder().display(), server.pid().expect("running"));
    std::fs::write(std::env::var("PGHERD_TEST_OUT").expect("set by the parent"), text).expect("write");
    loop {
        std::thread::park();
    }
}

#[test]
fn servers_and_data_go_when_their_parent_is_killed() {
    let out = harness::ground().folder().join("child-with-a-server");
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--ignored", "--exact", "servers::child_with_a_server"])
        .env("PGHERD_TEST_OUT", &out)
        .stdout(Stdio::null())
        .spawn()
        .expect("child");
    let told = || std::fs::read_to_string(&out).ok().and_then(|text| Some(text.split_once('\n')?.0.to_owned()));
    wait_until(Duration::from_secs(60), "the child has its server", || told().is_some());
    let folder = told().expect("told");
    assert!(Path::new(&folder).join("pg1/data/postmaster.pid").exists());
    child.kill().expect("SIGKILL");
    child.wait().expect("reaped");
    wait_until(Duration::from_secs(30), "the folder is gone", || !Path::new(&folder).exists());
}
