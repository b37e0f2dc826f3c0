//! Messages sent ahead of their answers: what pgherd believes at the time of asking may be wrong by the time of the answer.

use pgherd::wire::writer;

use super::proxy::Proxy;
use crate::harness::wire::{bind, rows, tags};

/// What a session asked for before its DISCARD ALL has changed the server, whoever answers the DISCARD ALL.
#[tokio::test]
async fn a_discard_behind_a_set_in_one_go_leaves_nothing_behind() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy.database.execute("do $$ begin if not exists (select from pg_roles where rolname = 'relay_someone') then create role relay_someone; end if; end $$").await;
    for set in [
        "set work_mem to '1MB'",
        "set role relay_someone",
        "set app.tenant to '7'",
        "begin; set local work_mem to '2MB'",
    ] {
        let mut client = proxy.wire().await;
        client
            .say(|out| {
                writer::query(out, set.as_bytes());
                writer::query(out, b"discard all");
                writer::query(out, b"rollback");
            })
            .await;
        for _ in 0..3 {
            client.until_ready().await;
        }
        proxy.examine().await;
        let shown =
            client.query("select current_user, current_setting('work_mem'), current_setting('app.tenant', true)").await;
        let values = rows(&shown).remove(0);
        assert_eq!(values[..2], [Some("postgres".to_owned()), Some("4MB".to_owned())], "after {set}");
        assert!(values[2].as_deref().unwrap_or_default().is_empty(), "after {set}: {values:?}");
    }
}

#[tokio::test]
async fn a_rejected_parse_does_not_take_a_later_one_of_the_same_name_with_it() {
    let proxy = Proxy::start("max_connections = 1").await;
    for name in ["", "s1"] {
        let mut client = proxy.wire().await;
        client
            .say(|out| {
                writer::parse(out, name.as_bytes(), b"selct 1", &[]);
                writer::sync(out);
                writer::parse(out, name.as_bytes(), b"select 2", &[]);
                writer::sync(out);
            })
            .await;
        assert_eq!(tags(&client.until_ready().await), "EZ");
        assert_eq!(tags(&client.until_ready().await), "1Z");
        client
            .say(|out| {
                bind(out, "", name, &[], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
            })
            .await;
        assert_eq!(rows(&client.until_ready().await), [[Some("2".to_owned())]], "{name:?}");
    }
    proxy.examine().await;
}

#[tokio::test]
async fn what_was_asked_for_before_terminate_is_done() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy.database.execute("create table t (a int)").await;
    for n in 0..20 {
        let mut client = proxy.wire().await;
        client
            .say(|out| {
                writer::query(out, format!("select pg_sleep(0.05); insert into t values ({n})").as_bytes());
                writer::terminate(out);
            })
            .await;
        drop(client);
    }
    proxy.at_rest().await;
    let count = proxy.client().await.query_one("select count(*) from t", &[]).await.expect("count");
    assert_eq!(count.get::<_, i64>(0), 20);
}

/// A pipeline with no Sync at all, then a client that leaves: neither its transaction nor its statements stay.
#[tokio::test]
async fn a_pipeline_without_its_sync_is_undone() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy.database.execute("create table t (a int)").await;
    for flush in [false, true] {
        let mut client = proxy.wire().await;
        client
            .say(|out| {
                writer::parse(out, b"i", b"insert into t values (1)", &[]);
                bind(out, "", "i", &[], 0);
                writer::execute(out, b"", 0);
                if flush {
                    writer::flush(out);
                }
            })
            .await;
        if flush {
            client.expect("12C").await;
        }
        drop(client);
        let mut other = proxy.wire().await;
        assert_eq!(rows(&other.query("select count(*) from t").await), [[Some("0".to_owned())]]);
    }
    proxy.examine().await;
}
