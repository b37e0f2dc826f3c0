//! What a client sends without waiting for what it asked before: it is looked up once that is answered.

use bytes::BytesMut;
use pgherd::wire::writer;
use tokio_postgres::SimpleQueryMessage;

use super::stage::Stage;
use crate::harness::wire::{Message, WireClient, bind, rows, tags};

const SCENE: &str = "
create table t (a int); insert into t select generate_series(1, 10);
create table u (a int);
";

const SUM: &str = "select sum(a) from t";

/// Sends all of it at once, and returns the answer to each.
async fn at_once(wire: &mut WireClient, turns: usize, fill: impl FnOnce(&mut BytesMut)) -> Vec<Vec<Message>> {
    wire.say(fill).await;
    let mut answers = Vec::new();
    for _ in 0..turns {
        answers.push(wire.until_ready().await);
    }
    answers
}

fn flight(out: &mut BytesMut, text: &str) {
    writer::parse(out, b"", text.as_bytes(), &[]);
    bind(out, "", "", &[], 0);
    writer::describe(out, b'P', b"");
    writer::execute(out, b"", 0);
    writer::sync(out);
}

fn sum(answer: &[Message]) -> String {
    rows(answer).remove(0).remove(0).expect("a sum")
}

/// How many statements have ended.
async fn statements(stage: &Stage) -> u64 {
    let console = stage.fleet.console(0).await;
    let shown = console.simple_query("show stats").await.expect("figures");
    let count = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) if row.get("database") == Some(&stage.database.name) => {
            row.get("total_query_count")?.parse().ok()
        }
        _ => None,
    };
    shown.iter().find_map(count).expect("a count")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_something_that_is_not_cached_is_answered_from_the_cache() {
    let stage = Stage::set(SCENE, &[]).await;
    stage.cached(&stage.client("postgres").await, SUM).await;
    let mut wire = stage.wire().await;
    // There is an answer for each protocol.
    at_once(&mut wire, 1, |out| flight(out, SUM)).await;
    let (hits, ended) = (stage.fleet.stats(0).memory_hits, statements(&stage).await);
    let answers = at_once(&mut wire, 7, |out| {
        writer::query(out, b"select random()");
        writer::query(out, SUM.as_bytes());
        writer::query(out, SUM.as_bytes());
        writer::query(out, b"insert into u values (1)");
        flight(out, SUM);
        flight(out, SUM);
        flight(out, "select random()");
    })
    .await;
    let told: Vec<String> = answers.iter().map(|answer| tags(answer)).collect();
    assert_eq!(told, ["TDCZ", "TDCZ", "TDCZ", "CZ", "12TDCZ", "12TDCZ", "12TDCZ"]);
    for at in [1, 2, 4, 5] {
        assert_eq!(sum(&answers[at]), "55");
    }
    assert_eq!(stage.fleet.stats(0).memory_hits - hits, 4);
    assert_eq!(statements(&stage).await - ended, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_before_it_is_seen() {
    let stage = Stage::set(SCENE, &[]).await;
    stage.cached(&stage.client("postgres").await, SUM).await;
    let mut wire = stage.wire().await;
    for round in 0..5 {
        let before = 55 + 6 * round;
        let answers = at_once(&mut wire, 9, |out| {
            writer::query(out, SUM.as_bytes());
            writer::query(out, b"insert into t values (1)");
            writer::query(out, SUM.as_bytes());
            writer::query(out, b"begin");
            writer::query(out, b"insert into t values (100)");
            flight(out, SUM);
            writer::query(out, b"rollback");
            flight(out, "insert into t values (5)");
            flight(out, SUM);
        })
        .await;
        let sums: Vec<String> = [0, 2, 5, 8].iter().map(|&at| sum(&answers[at])).collect();
        assert_eq!(sums, [before, before + 1, before + 101, before + 6].map(|sum| sum.to_string()), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_before_it_is_told_first() {
    let stage = Stage::set(SCENE, &[]).await;
    stage.cached(&stage.client("postgres").await, SUM).await;
    let mut wire = stage.wire().await;
    at_once(&mut wire, 1, |out| flight(out, SUM)).await;
    let answers = at_once(&mut wire, 6, |out| {
        flight(out, "select 1 / count(*) from u");
        flight(out, SUM);
        // Of a transaction that has failed nothing is answered from the cache either.
        writer::query(out, b"begin");
        flight(out, "select 1 / count(*) from u");
        flight(out, SUM);
        writer::query(out, b"commit");
    })
    .await;
    let told: Vec<String> = answers.iter().map(|answer| tags(answer)).collect();
    assert_eq!(told, ["12TEZ", "12TDCZ", "CZ", "12TEZ", "EZ", "CZ"]);
    assert_eq!(sum(&answers[1]), "55");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_one_pipeline_is_not_that_of_the_next_one_that_is_flushed() {
    let stage = Stage::set(SCENE, &[]).await;
    let mut wire = stage.wire().await;
    for before in ["release s", "select 1 / 0", "select pg_sleep(0.05), 1 / 0"] {
        let answers = at_once(&mut wire, 3, |out| {
            writer::query(out, before.as_bytes());
            for value in [1, 2] {
                writer::parse(out, b"", format!("insert into u values ({value})").as_bytes(), &[]);
                writer::flush(out);
                bind(out, "", "", &[], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
            }
        })
        .await;
        let told: Vec<String> = answers.iter().map(|answer| tags(answer)).collect();
        assert!(told[0].ends_with("EZ"), "{before}: {told:?}");
        assert_eq!(told[1..], ["12CZ", "12CZ"], "{before}");
    }
    let answer = at_once(&mut wire, 1, |out| writer::query(out, b"select count(*) from u")).await;
    assert_eq!(sum(&answer[0]), "6");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_what_was_flushed_skips_up_to_its_sync() {
    let stage = Stage::set(SCENE, &[]).await;
    let mut wire = stage.wire().await;
    let answers = at_once(&mut wire, 3, |out| {
        writer::query(out, b"select 1");
        writer::parse(out, b"", b"insert into nowhere values (1)", &[]);
        writer::flush(out);
        run_insert(out);
        writer::sync(out);
        run_insert(out);
        writer::sync(out);
    })
    .await;
    let told: Vec<String> = answers.iter().map(|answer| tags(answer)).collect();
    assert_eq!(told, ["TDCZ", "EZ", "12CZ"]);
}

fn run_insert(out: &mut BytesMut) {
    writer::parse(out, b"", b"insert into u values (7)", &[]);
    bind(out, "", "", &[], 0);
    writer::execute(out, b"", 0);
}
