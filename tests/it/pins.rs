//! A client is pinned for as long as what pins it is there, and no longer than the configuration lets it.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgherd::wire::writer;
use tokio::time::timeout;

use crate::harness::wire::{WireClient, bind, rows, tags};
use crate::relay::proxy::{PATIENCE, Proxy};

/// Statements that pin a client, some that do not end that, and one that does.
const STORIES: &[(&[&str], &[&str], &str)] = &[
    (&["select pg_advisory_lock(1)"], &["select 1"], "select pg_advisory_unlock(1)"),
    (
        &["select pg_advisory_lock(1)", "select pg_advisory_lock(1)"],
        &["select pg_advisory_unlock(1)", "select pg_advisory_unlock(7)"],
        "select pg_advisory_unlock(1)",
    ),
    (&["select pg_advisory_lock_shared(2), pg_advisory_lock(3)"], &[], "select pg_advisory_unlock_all()"),
    (&["begin; select pg_advisory_lock(4); rollback"], &["begin; commit"], "select pg_advisory_unlock(4)"),
    (&["create temp table t (a int)"], &["drop table if exists other", "create table p (a int)"], "drop table t"),
    (&["create temp sequence s", "create temp view v as select 1"], &["drop view v"], "discard temp"),
    (&["select 1 as a into temp t"], &["begin; drop table t; rollback"], "begin; drop table t; commit"),
    (&["begin; declare c cursor with hold for select 1; commit"], &["fetch c"], "close c"),
    (&["prepare p as select 1"], &["execute p"], "deallocate p"),
    (&["create temp table t (a int)", "select pg_advisory_lock(1)"], &["drop table t"], "select pg_advisory_unlock(1)"),
];

async fn simple(client: &mut WireClient, text: &str) {
    let answer = client.query(text).await;
    assert!(!tags(&answer).contains('E'), "{text}: {answer:?}");
}

async fn extended(client: &mut WireClient, text: &str) {
    let execute = |out: &mut BytesMut| {
        for text in text.split("; ") {
            writer::parse(out, b"", text.as_bytes(), &[]);
            bind(out, "", "", &[], 0);
            writer::execute(out, b"", 0);
        }
        writer::sync(out);
    };
    client.say(execute).await;
    let answer = client.until_ready().await;
    assert!(!tags(&answer).contains('E'), "{text}: {answer:?}");
}

#[tokio::test]
async fn pins_end_when_what_pinned_the_client_is_gone() {
    let proxy = Proxy::start("max_connections = 1").await;
    for &(pins, stays, ends) in STORIES {
        for is_simple in [true, false] {
            let mut client = proxy.wire().await;
            for &text in pins.iter().chain(stays) {
                if is_simple {
                    simple(&mut client, text).await
                } else {
                    extended(&mut client, text).await
                }
                if pins.last() == Some(&text) || stays.contains(&text) {
                    assert_eq!(proxy.pool().state().active, 1, "pinned behind {text}");
                }
            }
            if is_simple {
                simple(&mut client, ends).await
            } else {
                extended(&mut client, ends).await
            }
            proxy.at_rest().await;
            // The only server connection is free for others, and nothing is left on it.
            proxy.examine().await;
            simple(&mut client, "drop table if exists p").await;
        }
    }
}

/// Operators and functions of a client's own, found before PostgreSQL's, would tell that nothing is there.
#[tokio::test]
async fn a_client_cannot_hide_what_pins_it() {
    let proxy = Proxy::start("max_connections = 2").await;
    proxy
        .database
        .execute(
            "create schema evil;
             create function evil.no(oid, regclass) returns bool language sql as 'select false';
             create function evil.no(oid, oid) returns bool language sql as 'select false';
             create function evil.no(text, text) returns bool language sql as 'select false';
             create operator evil.= (leftarg = oid, rightarg = regclass, function = evil.no);
             create operator evil.= (leftarg = oid, rightarg = oid, function = evil.no);
             create operator evil.= (leftarg = text, rightarg = text, function = evil.no);",
        )
        .await;
    let mut client = proxy.wire().await;
    simple(&mut client, "set search_path to evil, pg_catalog").await;
    for text in ["create temp table t (a int)", "select pg_catalog.pg_advisory_lock(1)"] {
        simple(&mut client, text).await;
        assert_eq!(proxy.pool().state().active, 1, "pinned behind {text}");
    }
    simple(&mut client, "drop table t").await;
    assert_eq!(proxy.pool().state().active, 1, "the lock is still there");
    simple(&mut client, "select pg_catalog.pg_advisory_unlock_all()").await;
    proxy.at_rest().await;
    proxy.examine().await;
}

#[tokio::test]
async fn what_never_came_to_be_pins_nobody() {
    let proxy = Proxy::start("max_connections = 2").await;
    let straight = proxy.database.client().await;
    straight.batch_execute("select pg_advisory_lock(9)").await.expect("locked");
    let mut client = proxy.wire().await;
    for text in [
        "select pg_try_advisory_lock(9)",
        "begin; create temp table t (a int) on commit drop; commit",
        "begin; create temp table t (a int); rollback",
        "create temp table t (a int); select 1/0",
        "begin; declare c cursor with hold for select 1; rollback",
        "prepare p as select nothing from nowhere",
    ] {
        client.query(text).await;
        proxy.at_rest().await;
    }
    proxy.examine().await;
    let locked = "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(rows(&client.query(locked).await), [[Some("1".to_owned())]]);
}

#[tokio::test]
async fn a_client_is_pinned_for_as_long_as_may_be_and_not_within_a_transaction() {
    let limit = Duration::from_millis(400);
    let proxy = Proxy::start("max_connections = 3, pinned_max = \"400ms\"").await;
    let (mut pinned, mut busy, mut free) = (proxy.wire().await, proxy.wire().await, proxy.wire().await);
    let since = Instant::now();
    simple(&mut pinned, "create temp table mine (a int)").await;
    simple(&mut busy, "create temp table mine (a int)").await;
    simple(&mut busy, "begin").await;
    simple(&mut free, "create temp table mine (a int)").await;
    simple(&mut free, "drop table mine").await;
    let last = timeout(PATIENCE, pinned.ended()).await.expect("ended");
    assert_eq!(last[0].field(b'C').as_deref(), Some("53400"));
    assert_eq!(last[0].field(b'M').as_deref(), Some("terminating connection due to pool.pinned_max"));
    assert!(last[0].field(b'D').expect("a detail").contains("temporary-object"), "{last:?}");
    assert!(since.elapsed() >= limit);
    simple(&mut busy, "insert into mine values (1)").await;
    assert_eq!(tags(&busy.query("commit").await), "CZ", "its transaction ends in peace");
    let last = timeout(PATIENCE, busy.ended()).await.expect("ended");
    assert_eq!(last[0].field(b'C').as_deref(), Some("53400"));
    simple(&mut free, "select 1").await;
    proxy.examine().await;
}
