//! VACUUM, ANALYZE and their like reach every server that has what they are about, and each server's failure is told.

use pgherd::wire::writer;

use super::stage::{Stage, ok, say};
use crate::answers::{MANNERS, ask};
use crate::harness::wire::{Message, WireClient, bind, tags};
use crate::harness::{self, Database};

/// How many rows the statistics give a table; -1 is never counted.
async fn counted(database: &Database, table: &str) -> f32 {
    let sql = format!("select reltuples from pg_class where oid = '{table}'::regclass");
    database.client().await.query_one(&sql, &[]).await.expect("read").get(0)
}

/// How many rows there are.
async fn held(database: &Database, table: &str) -> f32 {
    let row = database.client().await.query_one(&format!("select count(*)::float4 from {table}"), &[]).await;
    row.expect("read").get(0)
}

fn error(messages: &[Message]) -> &Message {
    messages.iter().find(|message| message.tag == b'E').unwrap_or_else(|| panic!("no error in {messages:?}"))
}

async fn clients(stage: &Stage) -> (harness::Pgherd, WireClient) {
    let pgherd = stage.pgherd().await;
    let client = pgherd.wire("app").await;
    (pgherd, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_are_taken_on_every_server() {
    let stage = Stage::set(3).await;
    let (_pgherd, mut client) = clients(&stage).await;
    ok(&mut client, "insert into local_notes values (1, 'a'), (2, 'b')").await;
    assert_eq!(ok(&mut client, "analyze accounts").await, "ANALYZE");
    for shard in &stage.shards {
        assert_eq!(counted(shard, "accounts").await, held(shard, "accounts").await);
        assert!(counted(shard, "rates").await < 0.0, "nobody asked for it");
    }
    assert_eq!(ok(&mut client, "analyze rates (code), entries").await, "ANALYZE");
    for shard in &stage.shards {
        assert_eq!(counted(shard, "rates").await, 2.0);
    }
    assert!(counted(&stage.primary, "local_notes").await < 0.0);
    assert_eq!(ok(&mut client, "analyze local_notes").await, "ANALYZE");
    assert_eq!(counted(&stage.primary, "local_notes").await, 2.0);
    // All there is, everywhere.
    ok(&mut client, "insert into local_notes values (3, 'c')").await;
    ok(&mut client, "insert into rates values ('c', 3)").await;
    assert_eq!(ok(&mut client, "analyze").await, "ANALYZE");
    assert_eq!(counted(&stage.primary, "local_notes").await, 3.0);
    for shard in &stage.shards {
        assert_eq!(counted(shard, "rates").await, 3.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_are_postgresqls_in_every_manner() {
    let stage = Stage::set(2).await;
    let (_pgherd, mut client) = clients(&stage).await;
    ok(&mut client, "create index owners on accounts (owner)").await;
    for (sql, tag) in [
        ("vacuum", "VACUUM"),
        ("vacuum (analyze) accounts, rates", "VACUUM"),
        ("vacuum full entries", "VACUUM"),
        ("analyze", "ANALYZE"),
        ("reindex table accounts", "REINDEX"),
        ("reindex index owners", "REINDEX"),
        ("reindex index concurrently owners", "REINDEX"),
        ("reindex schema public", "REINDEX"),
        ("cluster accounts using owners", "CLUSTER"),
        ("cluster", "CLUSTER"),
    ] {
        for manner in MANNERS {
            let answer = ask(&mut client, manner, sql).await;
            assert_eq!((answer.error, answer.tag.as_str(), answer.status), (None, tag, 'I'), "{manner:?} {sql}");
        }
    }
    // They commit as they run, so that nothing is left to be finished.
    stage.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_on_one_shard_is_told_by_its_name_and_done_on_the_others() {
    let stage = Stage::set(3).await;
    let (_pgherd, mut client) = clients(&stage).await;
    stage.shards[1].execute("alter table accounts drop column owner").await;
    let answer = client.query("analyze accounts (owner)").await;
    let failed = error(&answer);
    assert_eq!(failed.field(b'C').as_deref(), Some("42703"), "{failed:?}");
    let detail = failed.field(b'D').unwrap_or_default();
    assert!(detail.contains("Failed on shard 1") && detail.contains("column \"owner\""), "{detail}");
    assert!(detail.contains("Done on shard 0") && detail.contains("shard 2"), "{detail}");
    for at in [0, 2] {
        assert_eq!(counted(&stage.shards[at], "accounts").await, held(&stage.shards[at], "accounts").await);
    }
    // In the extended protocol nothing of the answer is said twice.
    client
        .say(|out| {
            writer::parse(out, b"", b"analyze accounts (owner)", &[]);
            bind(out, "", "", &[], 0);
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    let answer = client.until_ready().await;
    assert_eq!(tags(&answer), "12EZ", "{answer:?}");
    assert_eq!(ok(&mut client, "select count(*) from rates").await, "SELECT 1", "the session goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_does_not_keep_the_others_from_it() {
    let server = harness::start(&harness::options());
    let lost = harness::database_on(&server).await;
    let mut shards = harness::fresh_databases(1).await;
    shards.push(lost);
    let stage = Stage::over(shards, "").await;
    let (_pgherd, mut client) = clients(&stage).await;
    ok(&mut client, "analyze").await;
    stage.shards[0].execute("insert into rates values ('x', 1), ('y', 2)").await;
    drop(server);
    let answer = client.query("analyze rates").await;
    let detail = error(&answer).field(b'D').unwrap_or_default();
    assert!(detail.contains("Failed on shard 1") && detail.contains("Done on shard 0"), "{answer:?}");
    assert_eq!(counted(&stage.shards[0], "rates").await, 4.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_transaction_it_is_postgresqls_error_or_refused() {
    let stage = Stage::set(2).await;
    let (_pgherd, mut client) = clients(&stage).await;
    for (sql, code) in [
        ("vacuum", "25001"),
        ("vacuum accounts", "25001"),
        ("reindex schema public", "25001"),
        ("analyze", "0A000"),
        ("analyze accounts", "0A000"),
        ("reindex table accounts", "0A000"),
    ] {
        ok(&mut client, "begin").await;
        let answer = say(&mut client, sql).await;
        assert_eq!((answer.code(), answer.status), (Some(code), 'E'), "{sql}: {:?}", answer.error);
        ok(&mut client, "rollback").await;
    }
    for sql in ["analyze; select 1", "analyze local_notes, accounts", "select 1; vacuum accounts"] {
        let answer = say(&mut client, sql).await;
        assert_eq!((answer.code(), answer.status), (Some("0A000"), 'I'), "{sql}: {:?}", answer.error);
    }
    ok(&mut client, "begin").await;
    assert_eq!(ok(&mut client, "analyze local_notes").await, "ANALYZE", "of the primary alone");
    ok(&mut client, "commit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_every_server() {
    let stage = Stage::set(2).await;
    let (_pgherd, mut client) = clients(&stage).await;
    // Somebody keeps it from its table on one shard.
    let holder = stage.shards[1].client().await;
    holder.batch_execute("begin; lock table accounts in access exclusive mode").await.expect("locked");
    client.say(|out| writer::query(out, b"vacuum accounts")).await;
    let observer = stage.shards[1].client().await;
    let waits = "select count(*) from pg_stat_activity where query = 'vacuum accounts' and wait_event_type = 'Lock'";
    harness::eventually(std::time::Duration::from_secs(20), "it waits for the lock", async || {
        observer.query_one(waits, &[]).await.expect("read").get::<_, i64>(0) == 1
    })
    .await;
    client.cancel().await;
    let answer = client.until_ready().await;
    let failed = error(&answer);
    assert_eq!(failed.field(b'C').as_deref(), Some("57014"), "{answer:?}");
    assert!(failed.field(b'D').unwrap_or_default().contains("Done on shard 0"), "{answer:?}");
    holder.batch_execute("rollback").await.expect("rolled back");
    assert_eq!(ok(&mut client, "vacuum accounts").await, "VACUUM");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warnings_of_several_servers_are_told_once() {
    let stage = Stage::set(2).await;
    let role = harness::unique("sweeper");
    // Roles belong to servers: all of these are on one.
    stage.primary.execute(&format!("create role {role}")).await;
    let (_pgherd, mut client) = clients(&stage).await;
    ok(&mut client, &format!("set role {role}")).await;
    let answer = client.query("vacuum accounts").await;
    let notices: Vec<_> = answer.iter().filter(|message| message.tag == b'N').collect();
    assert_eq!((notices.len(), tags(&answer).as_str()), (1, "NCZ"), "{answer:?}");
    assert!(notices[0].field(b'M').unwrap_or_default().contains("accounts"), "{answer:?}");
}
