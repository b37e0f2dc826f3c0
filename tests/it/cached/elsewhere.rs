//! Writes made straight to the primary are told of by its WAL: a cached answer does not miss them for longer than the bound.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::stage::{Stage, rows};
use crate::harness::{Database, database_on, eventually, options, start};
use pgherd::commands::demo::servers::PostgresServer;

const MAX_LAG: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);
const FOLLOWED: &str = "olap_only = false\nwal = { max_lag = \"300ms\" }";
const SCENE: &str = "
create publication pgherd for all tables;
create table plain (id int primary key, v int); insert into plain values (1, 1), (2, 2);
create table part (id int primary key, v int) partition by range (id);
create table part_1 partition of part for values from (0) to (10); insert into part values (1, 1);
create table parent (id int primary key); insert into parent values (1), (2);
create table child (id int primary key, parent int references parent on delete cascade); insert into child values (1, 1), (2, 2);
";

fn logical_server() -> PostgresServer {
    start(&options().set("wal_level", "logical"))
}

async fn stage(database: &Database) -> Stage {
    Stage::with(database.clone(), SCENE, &[], FOLLOWED).await
}

/// Asks until a read has begun later than the bound after `committed`, which must show the truth.
async fn is_seen_in_time(stage: &Stage, client: &Client, read: &str, committed: Instant) {
    loop {
        let is_due = committed.elapsed() > MAX_LAG;
        let answer = rows(client, read).await;
        if is_due {
            assert_eq!(answer, stage.truth(read).await, "{read}");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_past_pgherd_is_seen_within_the_bound() {
    let server = logical_server();
    let database = database_on(&server).await;
    let stage = stage(&database).await;
    let (client, elsewhere) = (stage.client("postgres").await, database.client().await);
    let changes = [
        ("select sum(v) from plain", "update plain set v = v + 1"),
        ("select count(*) from plain", "delete from plain where id = 1"),
        ("select sum(v) from part", "insert into part_1 values (2, 2)"),
        ("select count(*) from child", "delete from parent where id = 1"),
        ("select count(*) from plain", "truncate plain"),
        ("select sum(v) from part", "begin; set local synchronous_commit = off; update part set v = 7; commit"),
    ];
    for (read, write) in changes {
        let before = stage.cached(&client, read).await;
        elsewhere.batch_execute(write).await.expect(write);
        is_seen_in_time(&stage, &client, read, Instant::now()).await;
        assert_ne!(rows(&client, read).await, before, "{write} was to change {read}");
        // And it is cached again.
        stage.cached(&client, read).await;
    }
    assert!(stage.fleet.stats(0).told_elsewhere >= changes.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_while_nobody_follows_is_not_missed() {
    let server = logical_server();
    let database = database_on(&server).await;
    let stage = stage(&database).await;
    let (client, elsewhere) = (stage.client("postgres").await, database.client().await);
    let read = "select sum(v) from plain";
    for _ in 0..3 {
        stage.cached(&client, read).await;
        let cut_off =
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgherd follower'";
        elsewhere.batch_execute(&format!("{cut_off}; update plain set v = v + 1")).await.expect("cut off and written");
        is_seen_in_time(&stage, &client, read, Instant::now()).await;
    }
    stage.cached(&client, read).await;
    let slots = "select count(*) from pg_replication_slots where slot_name like 'pgherd%'";
    assert_eq!(stage.truth(slots).await, [[Some("1".to_owned())]], "no slot is left behind");
}

/// A publication that names its tables may lose one: what is written to it from then on is told to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaves_its_publication_is_not_served() {
    let server = logical_server();
    let database = database_on(&server).await;
    let scene = "create table plain (id int primary key, v int); insert into plain values (1, 1), (2, 2);
        create table other (id int primary key); create publication pgherd for table plain, other;";
    let stage = Stage::with(database.clone(), scene, &[], FOLLOWED).await;
    let (client, elsewhere) = (stage.client("postgres").await, database.client().await);
    let read = "select sum(v) from plain";
    for _ in 0..3 {
        stage.cached(&client, read).await;
        elsewhere.batch_execute("alter publication pgherd drop table plain").await.expect("dropped");
        elsewhere.batch_execute("update plain set v = v + 1").await.expect("written");
        is_seen_in_time(&stage, &client, read, Instant::now()).await;
        elsewhere.batch_execute("alter publication pgherd add table plain").await.expect("added");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_publication_nothing_is_served() {
    let server = logical_server();
    let database = database_on(&server).await;
    let stage = stage(&database).await;
    let (client, elsewhere) = (stage.client("postgres").await, database.client().await);
    let read = "select sum(v) from plain";
    stage.cached(&client, read).await;
    elsewhere.batch_execute("drop publication pgherd; update plain set v = v + 1").await.expect("dropped");
    is_seen_in_time(&stage, &client, read, Instant::now()).await;
    eventually(PATIENCE, "lookups are turned away", async || {
        let before = stage.fleet.stats(0);
        rows(&client, read).await;
        let after = stage.fleet.stats(0);
        after.bypass_elsewhere > before.bypass_elsewhere && after.memory_hits == before.memory_hits
    })
    .await;
    elsewhere.batch_execute("create publication pgherd for all tables").await.expect("made again");
    stage.client("postgres").await;
    eventually(PATIENCE, "it is served again", async || {
        rows(&client, read).await;
        stage.fleet.stats(0).bypass_elsewhere > 0 && {
            let before = stage.fleet.stats(0).memory_hits;
            rows(&client, read).await;
            stage.fleet.stats(0).memory_hits > before
        }
    })
    .await;
}
