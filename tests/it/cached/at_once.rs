//! A question that was answered from the cache before is answered without a plan: as long as nothing that the plan hung on has changed.

use super::stage::{From, Stage, rows};
use crate::harness::wire::{WireClient, bind, tags};
use pgherd::wire::writer;

const SCENE: &str = "
create table t (a int, b text, at timestamptz);
insert into t select g, 'b' || g, '2026-01-01 12:00:00Z' from generate_series(1, 10) g;
create table secret (a int); insert into secret values (7);
create schema other; create table other.t (a int); insert into other.t values (1000);
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_changes_is_another_question() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    let text = "select max(at), sum(a) from t";
    let utc = stage.cached(&client, text).await;
    for _ in 0..3 {
        assert_eq!(stage.ask(&client, text).await, (utc.clone(), From::Cache));
        client.batch_execute("set timezone = 'Asia/Tokyo'").await.expect("set");
        let tokyo = rows(&client, text).await;
        assert_ne!(tokyo, utc);
        assert_eq!(stage.cached(&client, text).await, tokyo);
        client.batch_execute("reset timezone").await.expect("reset");
        assert_eq!(rows(&client, text).await, utc);
    }
    let sum = "select sum(a) from t";
    let here = stage.cached(&client, sum).await;
    client.batch_execute("set search_path = other, public").await.expect("set");
    assert_eq!(rows(&client, sum).await[0][0].as_deref(), Some("1000"));
    client.batch_execute("reset search_path; create temp table t (a int)").await.expect("a temporary table");
    assert_eq!(rows(&client, sum).await[0][0], None);
    client.batch_execute("drop table pg_temp.t").await.expect("drop");
    assert_eq!(rows(&client, sum).await, here);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_has_written_sees_its_own_rows() {
    let stage = Stage::set(SCENE, &[]).await;
    let (client, other) = (stage.client("postgres").await, stage.client("postgres").await);
    let text = "select sum(a) from t";
    for round in 1..=3 {
        let before = stage.cached(&client, text).await;
        stage.cached(&other, text).await;
        client.batch_execute("begin; insert into t (a) values (1)").await.expect("written");
        let own = rows(&client, text).await;
        assert_eq!(own[0][0].as_deref(), Some((55 + round).to_string().as_str()));
        assert_eq!(rows(&other, text).await, before);
        client.batch_execute("commit").await.expect("committed");
        assert_eq!((rows(&client, text).await, rows(&other, text).await), (own.clone(), own));
    }
    client.batch_execute("begin isolation level repeatable read").await.expect("begun");
    let snapshot = rows(&client, text).await;
    other.batch_execute("insert into t (a) values (5)").await.expect("written");
    assert_eq!(rows(&client, text).await, snapshot);
    client.batch_execute("commit").await.expect("over");
    assert_ne!(rows(&client, text).await, snapshot);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_were_taken_and_tables_that_were_changed() {
    let role = "create role asks_at_once login; grant select on secret to asks_at_once;";
    let stage = Stage::set(&format!("{SCENE}{role}"), &["asks_at_once"]).await;
    let (reader, owner) = (stage.client("asks_at_once").await, stage.client("postgres").await);
    let text = "select max(a) from secret";
    stage.cached(&reader, text).await;
    owner.batch_execute("revoke select on secret from asks_at_once").await.expect("revoked");
    let refused = reader.simple_query(text).await.expect_err("no rights any more");
    assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{refused:?}");
    owner.batch_execute("grant select on secret to asks_at_once").await.expect("granted");
    assert_eq!(stage.cached(&reader, text).await[0][0].as_deref(), Some("7"));
    owner.batch_execute("alter table secret alter a type text using 'x' || a").await.expect("altered");
    assert_eq!(rows(&reader, text).await[0][0].as_deref(), Some("x7"));
    assert_eq!(stage.cached(&reader, text).await[0][0].as_deref(), Some("x7"));
    owner.batch_execute("drop table secret").await.expect("dropped");
    assert!(reader.simple_query(text).await.is_err());
}

/// One flight over the unnamed portal.
async fn flight(
    wire: &mut WireClient,
    parse: Option<&str>,
    name: &str,
    value: &str,
    describe: bool,
    most: i32,
) -> String {
    wire.say(|out| {
        if let Some(text) = parse {
            writer::parse(out, name.as_bytes(), text.as_bytes(), &[]);
        }
        bind(out, "", name, &[Some(value)], 0);
        if describe {
            writer::describe(out, b'P', b"");
        }
        writer::execute(out, b"", most);
        writer::sync(out);
    })
    .await;
    tags(&wire.until_ready().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_extended_protocol_says_what_it_always_says() {
    let stage = Stage::set(SCENE, &[]).await;
    let mut wire = stage.wire().await;
    let text = "select a, count(*) from t where a < $1::int group by a";
    let before = stage.fleet.stats(0).memory_hits;
    for _ in 0..20 {
        assert_eq!(flight(&mut wire, Some(text), "", "4", true, 0).await, "12TDDDCZ");
        assert_eq!(flight(&mut wire, Some(text), "", "4", false, 0).await, "12DDDCZ");
        // The Parse that was answered has made a statement.
        assert_eq!(flight(&mut wire, None, "", "3", true, 0).await, "2TDDCZ");
        assert_eq!(flight(&mut wire, None, "", "3", false, 2).await, "2DDsZ");
    }
    assert!(stage.fleet.stats(0).memory_hits > before + 20);
    assert_eq!(flight(&mut wire, Some(text), "named", "4", true, 0).await, "12TDDDCZ");
    for _ in 0..5 {
        assert_eq!(flight(&mut wire, None, "named", "4", true, 0).await, "2TDDDCZ");
        assert_eq!(flight(&mut wire, None, "named", "2", false, 0).await, "2DCZ");
    }
    // A Query makes the unnamed statement go.
    assert_eq!(flight(&mut wire, Some(text), "", "4", true, 0).await, "12TDDDCZ");
    assert_eq!(tags(&wire.query("select count(*) from t").await), "TDCZ");
    assert_eq!(flight(&mut wire, None, "", "4", true, 0).await, "EZ");
    // What was prepared under other settings says what it said then.
    wire.query("set timezone = 'Asia/Tokyo'").await;
    for _ in 0..3 {
        assert_eq!(flight(&mut wire, None, "named", "4", true, 0).await, "2TDDDCZ");
    }
}
