//! Whatever changes rows changes the answer, at once: the write is committed, and the very next read shows it.

use tokio_postgres::Client;

use super::stage::{From, Stage, rows};
use crate::harness::wire::{bind, rows as wire_rows, tags};
use crate::harness::{database_on, options, start};
use pgherd::wire::writer;

const SCENE: &str = "
create table plain (id int primary key, v int); insert into plain values (1, 1), (2, 2);
create table audit (v int); insert into audit values (0);
create function audit() returns trigger language plpgsql as 'begin insert into audit values (new.v); return null; end';
create table audited (id int, v int); create trigger audit after insert or update on audited for each row execute function audit();
create table late_audited (id int, v int);
create constraint trigger audit after insert on late_audited deferrable initially deferred for each row execute function audit();
create table parent (id int primary key, v int); insert into parent values (1, 1), (2, 2), (3, 3);
create table child (parent int references parent on delete cascade on update cascade, v int); insert into child values (1, 1), (2, 2);
create table grandchild (parent int references parent on delete set null on update cascade, v int); insert into grandchild values (1, 1), (2, 2), (3, 3);
create table part (id int, v int) partition by range (id);
create table part_1 partition of part for values from (0) to (10);
create table part_2 partition of part for values from (10) to (20);
create table part_3 (id int, v int); insert into part_3 values (25, 1000);
insert into part values (1, 1), (11, 2);
create table elder (id int, v int); create table younger () inherits (elder); insert into elder values (1, 1); insert into younger values (2, 2);
create view plain_view as select id, v from plain where id > 0;
create view deep_view as select v from plain_view;
create table ruled (id int, v int); create rule away as on insert to ruled do instead insert into plain values (new.id, new.v);
create view unwritable as select id + 0 as id, v from plain;
create function write_through() returns trigger language plpgsql as 'begin insert into plain values (new.id, new.v); return new; end';
create trigger instead instead of insert on unwritable for each row execute function write_through();
create materialized view snapshot as select sum(v) as v from plain;
create function add_plain(int) returns int language sql as 'insert into plain values ($1, $1) returning v';
create procedure add_by_procedure(int) language sql as 'insert into plain values ($1, $1)';
create type mood as enum ('sad', 'happy'); create table moods (m mood); insert into moods values ('sad');
create table copied (id int, v int); insert into copied values (1, 1);
create sequence numbers;
create table counted (v int default nextval('numbers'), w int); insert into counted (w) values (1);
";

/// A cached read, a write, and that the next read shows it. The write goes through another connection.
async fn shows(stage: &Stage, reader: &Client, writer: &Client, read: &str, write: &str) {
    let before = stage.cached(reader, read).await;
    writer.batch_execute(write).await.unwrap_or_else(|error| panic!("{write}: {error:?}"));
    let after = rows(reader, read).await;
    assert_eq!(after, stage.truth(read).await, "{read} after {write}");
    assert_ne!(after, before, "{write} was to change {read}");
}

async fn all_show(writes: &[(&str, &str)]) {
    let stage = Stage::set(SCENE, &[]).await;
    let (reader, writer) = (stage.client("postgres").await, stage.client("postgres").await);
    for (read, write) in writes {
        shows(&stage, &reader, &writer, read, write).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_writes() {
    let sum = "select sum(v) from plain";
    all_show(&[
        (sum, "insert into plain values (3, 3)"),
        (sum, "update plain set v = v + 1"),
        (sum, "delete from plain where id = 3"),
        (sum, "insert into plain values (1, 50) on conflict (id) do update set v = excluded.v"),
        (
            sum,
            "merge into plain p using (values (1, 60)) n (id, v) on p.id = n.id when matched then update set v = n.v",
        ),
        (sum, "with gone as (delete from plain where id = 1 returning v) select * from gone"),
        (sum, "explain analyze insert into plain values (4, 4)"),
        (sum, "insert into plain select 5, count(*) from parent"),
        (sum, "select 1; insert into plain values (6, 6); select 2"),
        (sum, "begin; insert into plain values (7, 7); commit"),
        (sum, "prepare p as insert into plain values (8, 8); execute p; deallocate p"),
        (sum, "do 'begin insert into plain values (9, 9); end'"),
        (sum, "call add_by_procedure(10)"),
        (sum, "select add_plain(11)"),
        (sum, "begin; declare c cursor for select add_plain(13); fetch all from c; commit"),
        (sum, "truncate plain"),
        ("select sum(v) from copied", "truncate copied cascade"),
        ("select max(w), count(v) from counted", "insert into counted (w) values (2)"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_reach_further_than_their_text() {
    all_show(&[
        ("select sum(v) from audit", "insert into audited values (1, 5)"),
        ("select sum(v) from audit", "update audited set v = 6"),
        ("select sum(v) from audit", "begin; insert into late_audited values (1, 7); commit"),
        ("select sum(parent) from child", "update parent set id = 10 where id = 1"),
        ("select sum(parent) from child", "update parent set id = 20 where id = 10"),
        ("select count(*) from child", "delete from parent where id = 20"),
        ("select count(parent) from grandchild", "delete from parent where id = 3"),
        ("select sum(v) from part", "insert into part_1 values (2, 10)"),
        ("select sum(v) from part_2", "insert into part values (12, 20)"),
        ("select sum(v) from part_2", "update part set id = 13 where id = 1"),
        ("select sum(v) from part_1", "update part set id = 14 where id = 2"),
        ("select sum(v) from part", "alter table part attach partition part_3 for values from (20) to (30)"),
        ("select sum(v) from part", "insert into part_3 values (26, 2000)"),
        ("select sum(v) from part", "alter table part detach partition part_3"),
        ("select sum(v) from elder", "insert into younger values (3, 30)"),
        ("select sum(v) from younger", "update elder set v = v + 1"),
        ("select sum(v) from only elder", "update only elder set v = v + 1"),
        ("select sum(v) from deep_view", "insert into plain values (3, 3)"),
        ("select sum(v) from plain", "update plain_view set v = 100 where id = 1"),
        ("select sum(v) from plain", "insert into ruled values (30, 30)"),
        ("select sum(v) from plain", "insert into unwritable values (31, 31)"),
        ("select v from snapshot", "refresh materialized view snapshot"),
        ("select sum(v) from deep_view", "truncate plain"),
        ("select count(*) from grandchild", "truncate parent cascade"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_the_catalog() {
    all_show(&[
        ("select * from plain order by id", "alter table plain add column w int default 7"),
        ("select * from plain order by id", "alter table plain alter column w type text using 'w' || w"),
        ("select * from plain order by id", "alter table plain drop column w"),
        ("select sum(v) from deep_view", "create or replace view plain_view as select id, v * 2 as v from plain"),
        ("select max(m) from moods", "alter type mood rename value 'sad' to 'gloomy'"),
        ("select sum(v) from copied", "alter table copied rename to was_copied; create table copied as select 9 as v"),
        ("select count(*) from elder", "drop table younger"),
        ("select sum(w) from counted", "alter table counted alter column w type int using w * 3"),
        // A trigger that is new: the next write reaches further than before.
        ("select sum(v) from audit", "create trigger audit after update on parent for each row execute function audit(); update parent set v = 70 where id = 1"),
        ("select sum(v) from audit", "update parent set v = 80 where id = 2"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_column_comes_with_its_description() {
    let stage = Stage::set("create table t (a int); insert into t values (1);", &[]).await;
    let (mut wire, writer) = (stage.wire().await, stage.client("postgres").await);
    stage.cached(&writer, "select * from t").await;
    let before = wire.query("select * from t").await;
    writer.batch_execute("alter table t add column b text default 'new'").await.expect("alter");
    let after = wire.query("select * from t").await;
    assert_eq!((tags(&before), tags(&after)), ("TDCZ".into(), "TDCZ".into()));
    assert_eq!((before[0].body[1], after[0].body[1]), (1, 2), "columns in the row description");
    assert_eq!(wire_rows(&after), [["1".to_owned(), "new".into()].map(Some)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_from_the_client() {
    let stage = Stage::set(SCENE, &[]).await;
    let (reader, mut wire) = (stage.client("postgres").await, stage.wire().await);
    stage.cached(&reader, "select sum(v) from copied").await;
    wire.say(|out| writer::query(out, b"copy copied from stdin")).await;
    wire.expect("G").await;
    wire.say(|out| {
        writer::message(out, b'd', |out| out.extend_from_slice(b"2\t5\n"));
        writer::message(out, b'c', |_| {});
    })
    .await;
    assert_eq!(tags(&wire.until_ready().await), "CZ");
    assert_eq!(rows(&reader, "select sum(v) from copied").await[0][0].as_deref(), Some("6"));
    stage.cached(&reader, "select sum(v) from copied").await;
    let out = wire.query("copy (insert into copied values (9, 9) returning id) to stdout").await;
    assert_eq!(tags(&out), "HdcCZ");
    assert_eq!(rows(&reader, "select sum(v) from copied").await[0][0].as_deref(), Some("15"));
    // One that fails leaves everything as it was.
    stage.cached(&reader, "select sum(v) from copied").await;
    wire.say(|out| writer::query(out, b"copy copied from stdin")).await;
    wire.expect("G").await;
    wire.say(|out| {
        writer::message(out, b'd', |out| out.extend_from_slice(b"3\t7\n"));
        writer::message(out, b'f', |out| writer::cstr(out, b"no"));
    })
    .await;
    assert_eq!(tags(&wire.until_ready().await), "EZ");
    assert_eq!(stage.cached(&reader, "select sum(v) from copied").await[0][0].as_deref(), Some("15"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ways_to_commit_without_a_sync() {
    let stage = Stage::set(SCENE, &[]).await;
    let (reader, mut wire) = (stage.client("postgres").await, stage.wire().await);
    let sum = "select sum(v) from plain";
    let execute = |out: &mut bytes::BytesMut, text: &str| {
        writer::parse(out, b"", text.as_bytes(), &[]);
        bind(out, "", "", &[], 0);
        writer::execute(out, b"", 0);
    };
    let before = stage.cached(&reader, sum).await;
    wire.say(|out| {
        execute(out, "begin");
        execute(out, "insert into plain values (20, 20)");
        execute(out, "commit");
        writer::flush(out);
    })
    .await;
    let mut tag = String::new();
    while tag != "COMMIT" {
        let message = wire.next().await;
        tag = if message.tag == b'C' { message.text() } else { tag };
    }
    let after = rows(&reader, sum).await;
    assert_eq!(after, stage.truth(sum).await);
    assert_ne!(after, before);
    wire.say(writer::sync).await;
    wire.until_ready().await;

    // A function call by its message of its own (PostgreSQL manual, 55.2.5).
    stage.cached(&reader, sum).await;
    let oid = stage.truth("select 'add_plain(int)'::regprocedure::oid").await[0][0].clone().expect("an oid");
    let oid: u32 = oid.parse().expect("a number");
    wire.say(|out| {
        writer::message(out, b'F', |out| {
            out.extend_from_slice(&oid.to_be_bytes());
            out.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]);
            out.extend_from_slice(b"21\0\0");
        });
    })
    .await;
    assert_eq!(tags(&wire.until_ready().await), "VZ");
    assert_eq!(rows(&reader, sum).await, stage.truth(sum).await);

    // Two transactions in one go, the second's commit after the first's answer.
    stage.cached(&reader, sum).await;
    wire.say(|out| {
        execute(out, "insert into plain values (22, 22)");
        writer::sync(out);
        execute(out, "insert into plain select 23, 23 from pg_sleep(0.2)");
        writer::sync(out);
    })
    .await;
    wire.until_ready().await;
    rows(&reader, sum).await;
    rows(&reader, sum).await;
    wire.until_ready().await;
    assert_eq!(rows(&reader, sum).await, stage.truth(sum).await);

    // The same, and a transaction that stays open behind it: its own rows must show.
    wire.say(|out| {
        execute(out, "insert into plain values (24, 24)");
        writer::sync(out);
        execute(out, "begin");
        execute(out, "insert into plain values (25, 25)");
        writer::sync(out);
    })
    .await;
    wire.until_ready().await;
    wire.until_ready().await;
    let others = rows(&reader, sum).await;
    assert_ne!(wire_rows(&wire.query(sum).await), others);
    wire.query("rollback").await;
    assert_eq!(wire_rows(&wire.query(sum).await), others);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_see_their_own_rows_and_nobody_elses() {
    let stage = Stage::set(SCENE, &[]).await;
    let (one, other) = (stage.client("postgres").await, stage.client("postgres").await);
    let sum = "select sum(v) from plain";
    let before = stage.cached(&one, sum).await;
    one.batch_execute("begin").await.expect("begin");
    assert_eq!(stage.ask(&one, sum).await, (before.clone(), From::Cache), "before its first write");
    one.batch_execute("insert into plain values (40, 40)").await.expect("insert");
    let own = rows(&one, sum).await;
    assert_ne!(own, before);
    assert_eq!(rows(&other, sum).await, before);
    one.batch_execute("savepoint s; delete from plain; rollback to s").await.expect("savepoint");
    assert_eq!(rows(&one, sum).await, own);
    one.batch_execute("rollback").await.expect("rollback");
    assert_eq!(rows(&one, sum).await, before);
    assert_eq!(stage.cached(&other, sum).await, before);
    // A snapshot that is older than what is cached.
    for level in ["repeatable read", "serializable"] {
        one.batch_execute(&format!("begin isolation level {level}")).await.expect("begin");
        let old = rows(&one, "select sum(v) from plain").await;
        other.batch_execute("update plain set v = v + 1").await.expect("update");
        let new = stage.cached(&other, sum).await;
        assert_ne!(new, old);
        assert_eq!(rows(&one, sum).await, old, "{level}");
        one.batch_execute("commit").await.expect("commit");
        assert_eq!(rows(&one, sum).await, new);
    }
    one.batch_execute("set session characteristics as transaction isolation level repeatable read").await.expect("set");
    one.batch_execute("begin").await.expect("begin");
    let old = rows(&one, sum).await;
    other.batch_execute("update plain set v = v + 1").await.expect("update");
    for _ in 0..3 {
        assert_ne!(rows(&other, sum).await, old);
    }
    assert_eq!(rows(&one, sum).await, old);
    one.batch_execute("commit").await.expect("commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_transactions() {
    let server = start(&options().set("max_prepared_transactions", 4));
    let stage = Stage::with(database_on(&server).await, SCENE, &[], "olap_only = false").await;
    let (reader, writer) = (stage.client("postgres").await, stage.client("postgres").await);
    let sum = "select sum(v) from plain";
    let before = stage.cached(&reader, sum).await;
    writer.batch_execute("begin").await.expect("begin");
    writer.batch_execute("insert into plain values (50, 50)").await.expect("insert");
    writer.batch_execute("prepare transaction 'one'").await.expect("prepare");
    assert_eq!(stage.cached(&reader, sum).await, before);
    stage.client("postgres").await.batch_execute("commit prepared 'one'").await.expect("commit");
    assert_ne!(rows(&reader, sum).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_gone_before_its_answer() {
    let stage = Stage::set(SCENE, &[]).await;
    let reader = stage.client("postgres").await;
    let sum = "select sum(v) from plain";
    for id in 60..70 {
        rows(&reader, sum).await;
        rows(&reader, sum).await;
        let mut wire = stage.wire().await;
        let insert = format!("insert into plain select {id}, 1 from pg_sleep(0.02)");
        wire.say(|out| writer::query(out, insert.as_bytes())).await;
        if id % 2 == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(id % 7 * 5)).await;
        }
        wire.reset();
        // Whether it was committed or cancelled, from some moment on everybody agrees.
        crate::harness::eventually(std::time::Duration::from_secs(20), "the write is settled", || async {
            let running = "select count(*) from pg_stat_activity where query like 'insert into plain select%' and state <> 'idle'";
            stage.fleet.stats(0).doubts == 0 && stage.truth(running).await[0][0].as_deref() == Some("0")
        })
        .await;
        assert_eq!(rows(&reader, sum).await, stage.truth(sum).await);
    }
    assert_eq!(stage.cached(&reader, sum).await, stage.truth(sum).await);
}
