//! Statements whose result type changes: prepared anew and asked again where nobody can be misled by it, and never twice.

use pgherd::wire::writer;

use super::proxy::Proxy;
use crate::harness::wire::{Message, WireClient, bind, rows, tags};

async fn prepare(client: &mut WireClient, text: &str) {
    client
        .say(|out| {
            writer::parse(out, b"s", text.as_bytes(), &[]);
            writer::describe(out, b'S', b"s");
            writer::sync(out);
        })
        .await;
    assert!(tags(&client.until_ready().await).starts_with("1t"));
}

/// As libpq executes a prepared statement: it asks each time what it gets.
async fn described(client: &mut WireClient) -> Vec<Message> {
    client
        .say(|out| {
            bind(out, "", "s", &[], 0);
            writer::describe(out, b'P', b"");
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    client.until_ready().await
}

/// As drivers do that keep what they were told when they prepared.
async fn undescribed(client: &mut WireClient) -> Vec<Message> {
    client
        .say(|out| {
            bind(out, "", "s", &[], 0);
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    client.until_ready().await
}

fn is_stale(answer: &[Message]) -> bool {
    tags(answer) == "EZ"
        && answer[0].field(b'C').as_deref() == Some("0A000")
        && answer[0].field(b'R').as_deref() == Some("RevalidateCachedQuery")
        && answer[0].field(b'M').as_deref() == Some("cached plan must not change result type")
}

fn width(answer: &[Message]) -> usize {
    rows(answer).first().map_or(0, Vec::len)
}

#[tokio::test]
async fn a_client_that_asks_what_it_gets_never_sees_the_error() {
    for (mode, servers) in [("transaction", 1), ("transaction", 3), ("session", 3)] {
        let proxy = Proxy::start(&format!("max_connections = {servers}, mode = \"{mode}\"")).await;
        proxy.database.execute("create table t (a int); insert into t values (1)").await;
        let (mut one, mut two) = (proxy.wire().await, proxy.wire().await);
        for client in [&mut one, &mut two] {
            prepare(client, "select * from t").await;
            assert_eq!(tags(&described(client).await), "2TDCZ");
        }
        for columns in 2..5 {
            proxy.database.execute(&format!("alter table t add c{columns} int")).await;
            for client in [&mut one, &mut two] {
                for _ in 0..2 {
                    let answer = described(client).await;
                    assert_eq!(tags(&answer), "2TDCZ", "{mode}, {columns} columns: {answer:?}");
                    assert_eq!(width(&answer), columns);
                }
            }
        }
        // Taken to pieces: the last message comes later than the others.
        proxy.database.execute("alter table t drop c4").await;
        one.say(|out| {
            bind(out, "", "s", &[], 0);
            writer::describe(out, b'P', b"");
        })
        .await;
        one.say(|out| {
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
        let answer = one.until_ready().await;
        assert!(tags(&answer) == "2TDCZ" && width(&answer) == 3, "{answer:?}");
        drop((one, two));
        proxy.examine().await;
    }
}

#[tokio::test]
async fn what_is_asked_again_is_done_once() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy.database.execute("create table t (a serial)").await;
    let mut client = proxy.wire().await;
    prepare(&mut client, "insert into t default values returning *").await;
    for columns in 1..6 {
        let answer = described(&mut client).await;
        assert_eq!(rows(&answer)[0][0], Some(columns.to_string()), "no value of the sequence was lost: {answer:?}");
        proxy.database.execute(&format!("alter table t add c{columns} int")).await;
    }
    assert_eq!(rows(&client.query("select count(*) from t").await)[0][0].as_deref(), Some("5"));
    drop(client);
    proxy.examine().await;
}

/// Rows of another shape are not for a client that knows the old one: it is told once, by PostgreSQL or in its words.
#[tokio::test]
async fn a_client_that_does_not_ask_is_told_once() {
    let proxy = Proxy::start("max_connections = 2").await;
    proxy.database.execute("create table t (a int); insert into t values (1)").await;
    let mut clients = [proxy.wire().await, proxy.wire().await, proxy.wire().await];
    for client in &mut clients {
        prepare(client, "select * from t").await;
        assert_eq!(tags(&undescribed(client).await), "2DCZ");
    }
    proxy.database.execute("alter table t add b int").await;
    for client in &mut clients {
        let answer = undescribed(client).await;
        assert!(is_stale(&answer), "{answer:?}");
        let mut holder = proxy.wire().await;
        holder.query("begin").await;
        for _ in 0..2 {
            assert_eq!(width(&undescribed(client).await), 2, "on whatever server");
        }
        holder.query("rollback").await;
    }
    // Who prepares it only now has nothing to be told.
    let mut late = proxy.wire().await;
    prepare(&mut late, "select * from t").await;
    assert_eq!(width(&undescribed(&mut late).await), 2);
    drop((clients, late));
    proxy.examine().await;
}

#[tokio::test]
async fn a_transaction_is_never_repeated() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy.database.execute("create table t (a int); create table log (n int)").await;
    let (mut client, mut other) = (proxy.wire().await, proxy.wire().await);
    for client in [&mut client, &mut other] {
        prepare(client, "select * from t").await;
        described(client).await;
    }
    proxy.database.execute("alter table t add b int").await;
    client.query("begin; insert into log values (1)").await;
    assert!(is_stale(&described(&mut client).await));
    let failed = client.query("select 1").await;
    assert_eq!(failed[0].field(b'C').as_deref(), Some("25P02"));
    client.query("rollback").await;
    assert_eq!(tags(&described(&mut client).await), "2TCZ");
    // In a transaction another client is told too where it does not ask, and then the transaction has failed.
    other.query("begin; insert into log values (2)").await;
    assert!(is_stale(&undescribed(&mut other).await));
    assert_eq!(tags(&other.query("commit").await), "CZ");
    assert_eq!(tags(&undescribed(&mut other).await), "2CZ");
    assert_eq!(rows(&client.query("select count(*) from log").await)[0][0].as_deref(), Some("0"));
    drop((client, other));
    proxy.examine().await;
}

#[tokio::test]
async fn behind_other_statements_of_its_pipeline_nothing_is_repeated() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy.database.execute("create table t (a int); create table log (n serial)").await;
    let mut client = proxy.wire().await;
    prepare(&mut client, "select * from t").await;
    client.say(|out| writer::parse(out, b"log", b"insert into log default values", &[])).await;
    described(&mut client).await;
    proxy.database.execute("alter table t add b int").await;
    let pipeline = |out: &mut bytes::BytesMut, syncs: bool| {
        for name in ["log", "s", "log"] {
            bind(out, "", name, &[], 0);
            writer::describe(out, b'P', b"");
            writer::execute(out, b"", 0);
            if syncs {
                writer::sync(out);
            }
        }
        writer::sync(out);
    };
    client.say(|out| pipeline(out, false)).await;
    let answer = client.until_ready().await;
    assert_eq!(tags(&answer), "2nCEZ");
    assert!(is_stale(&answer[3..]));
    assert_eq!(tags(&described(&mut client).await), "2TCZ");
    assert_eq!(rows(&client.query("select count(*) from log").await)[0][0].as_deref(), Some("0"));
    // Each a transaction of its own, and more under way behind it: what stands behind must not run before it.
    proxy.database.execute("alter table t add c int").await;
    client.say(|out| pipeline(out, true)).await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(tags(&client.until_ready().await));
    }
    assert_eq!(answers, ["2nCZ", "EZ", "2nCZ", "Z"]);
    assert_eq!(rows(&client.query("select count(*) from log").await)[0][0].as_deref(), Some("2"));
    drop(client);
    proxy.examine().await;
}

/// PostgreSQL would never tell a client that prepares a text only now that somebody else has prepared it before.
#[tokio::test]
async fn who_prepares_what_others_hold_learns_its_new_type() {
    for syncs in [true, false] {
        let proxy = Proxy::start("max_connections = 1").await;
        proxy.database.execute("create table t (a int)").await;
        let mut early = proxy.wire().await;
        prepare(&mut early, "select * from t where a = $1").await;
        proxy.database.execute("alter table t alter a type bigint, add b int").await;
        let mut late = proxy.wire().await;
        late.say(|out| {
            writer::parse(out, b"s", b"select * from t where a = $1", &[]);
            writer::describe(out, b'S', b"s");
            if syncs { writer::sync(out) } else { writer::flush(out) }
        })
        .await;
        let answer = late.expect(if syncs { "1tTZ" } else { "1tT" }).await;
        assert_eq!(answer[1].body, [0, 1, 0, 0, 0, 20], "the parameter is a bigint now");
        assert_eq!(answer[2].body[..2], [0, 2]);
        if !syncs {
            late.say(writer::sync).await;
            late.expect("Z").await;
        }
        early
            .say(|out| {
                writer::describe(out, b'S', b"s");
                writer::sync(out);
            })
            .await;
        assert_eq!(early.expect("tTZ").await[1].body[..2], [0, 2]);
        drop((early, late));
        proxy.examine().await;
    }
}

#[tokio::test]
async fn a_statement_that_means_nothing_any_more_fails_as_it_would() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy.database.execute("create table t (a int, b int)").await;
    let mut client = proxy.wire().await;
    prepare(&mut client, "select *, b from t").await;
    described(&mut client).await;
    proxy.database.execute("alter table t add c int").await;
    assert_eq!(tags(&described(&mut client).await), "2TCZ");
    proxy.database.execute("alter table t drop b").await;
    let answer = described(&mut client).await;
    assert_eq!(answer[0].field(b'C').as_deref(), Some("42703"), "{answer:?}");
    proxy.database.execute("alter table t add b int").await;
    assert_eq!(tags(&described(&mut client).await), "2TCZ");
    drop(client);
    proxy.examine().await;
}
