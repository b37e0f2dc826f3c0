//! Messages sent ahead of their answers: what pgherd believes at the time of asking may be wrong by the time of the answer.

use bytes::BytesMut;
use pgherd::wire::writer;

use super::proxy::Proxy;
use crate::harness::wire::{Message, WireClient, bind, rows, tags};

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

/// Parse, Bind and Execute of a statement.
fn run(out: &mut BytesMut, name: &str, text: &str) {
    writer::parse(out, name.as_bytes(), text.as_bytes(), &[]);
    bind(out, "", name, &[], 0);
    writer::execute(out, b"", 0);
}

#[tokio::test]
async fn a_statement_that_the_server_has_is_prepared_anywhere_in_a_pipeline() {
    let proxy = Proxy::start("max_connections = 1").await;
    for _ in 0..3 {
        let mut client = proxy.wire().await;
        client
            .say(|out| {
                run(out, "", "select 1");
                run(out, "k", "select 2");
                writer::parse(out, b"", b"select 3", &[]);
                writer::parse(out, b"l", b"select 4", &[]);
                writer::sync(out);
            })
            .await;
        assert_eq!(tags(&client.until_ready().await), "12DC12DC11Z");
        client
            .say(|out| {
                bind(out, "", "l", &[], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
            })
            .await;
        assert_eq!(rows(&client.until_ready().await), [[Some("4".to_owned())]]);
    }
    proxy.examine().await;
}

#[tokio::test]
async fn a_statement_whose_parse_was_skipped_does_not_run() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy.database.execute("create table t (a int)").await;
    const INSERT: &str = "insert into t values (1)";
    // The server has it, by somebody else.
    let mut other = proxy.wire().await;
    other
        .say(|out| {
            writer::parse(out, b"mine", INSERT.as_bytes(), &[]);
            writer::sync(out)
        })
        .await;
    assert_eq!(tags(&other.until_ready().await), "1Z");
    for name in ["s", ""] {
        let mut client = proxy.wire().await;
        client
            .say(|out| {
                writer::execute(out, b"nowhere", 0);
                writer::parse(out, name.as_bytes(), INSERT.as_bytes(), &[]);
                writer::sync(out);
                bind(out, "", name, &[], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
                writer::describe(out, b'S', name.as_bytes());
                writer::sync(out);
            })
            .await;
        let answers = [client.until_ready().await, client.until_ready().await, client.until_ready().await];
        let code = |answer: &[Message]| answer.first().and_then(|message| message.field(b'C'));
        let codes: Vec<_> = answers.iter().map(|answer| (tags(answer), code(answer))).collect();
        let said = |code: &str| ("EZ".to_owned(), Some(code.to_owned()));
        assert_eq!(codes, [said("34000"), said("26000"), said("26000")], "{name:?}");
    }
    let mut client = proxy.wire().await;
    assert_eq!(rows(&client.query("select count(*) from t").await), [[Some("0".to_owned())]]);
    proxy.examine().await;
}

#[tokio::test]
async fn an_unnamed_statement_outlives_parses_that_were_skipped_and_none_that_failed() {
    let proxy = Proxy::start("max_connections = 1").await;
    type Fill = fn(&mut BytesMut);
    let behind: [(Fill, &str); 5] = [
        (|out| writer::execute(out, b"nowhere", 0), "1"),
        // The statement between has been heard, what stands behind the error has not.
        (
            |out| {
                writer::parse(out, b"", b"select 3", &[]);
                writer::execute(out, b"nowhere", 0);
            },
            "3",
        ),
        (
            |out| {
                writer::execute(out, b"nowhere", 0);
                writer::parse(out, b"", b"select 3", &[]);
            },
            "1",
        ),
        (|out| writer::parse(out, b"", b"select from where", &[]), "26000"),
        (
            |out| {
                writer::close(out, b'S', b"");
                writer::execute(out, b"nowhere", 0);
            },
            "26000",
        ),
    ];
    for (at, (fill, wanted)) in behind.into_iter().enumerate() {
        let straight = WireClient::login(proxy.database.port, "postgres", &proxy.database.name).await;
        for (mut client, who) in [(straight, "PostgreSQL"), (proxy.wire().await, "pgherd")] {
            client
                .say(|out| {
                    writer::parse(out, b"", b"select 1", &[]);
                    writer::sync(out);
                })
                .await;
            client.until_ready().await;
            client
                .say(|out| {
                    fill(out);
                    writer::parse(out, b"", b"select 2", &[]);
                    writer::sync(out);
                    bind(out, "", "", &[], 0);
                    writer::execute(out, b"", 0);
                    writer::sync(out);
                })
                .await;
            client.until_ready().await;
            let answer = client.until_ready().await;
            let told = answer.first().and_then(|message| message.field(b'C'));
            let said = told.or_else(|| rows(&answer).first().and_then(|row| row[0].clone()));
            assert_eq!(said.as_deref(), Some(wanted), "{at} by {who}");
        }
    }
    proxy.examine().await;
}

#[tokio::test]
async fn a_parse_shows_what_a_suspended_portal_has_written() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy.database.execute("create table t (a int); insert into t values (1), (2)").await;
    for round in 0..3 {
        let mut client = proxy.wire().await;
        client
            .say(|out| {
                let update = format!("update t set a = a + 10 where a % 10 > 0 returning {round}");
                writer::parse(out, b"", update.as_bytes(), &[]);
                bind(out, "p", "", &[], 0);
                writer::execute(out, b"p", 1);
                run(out, "k", "select sum(a) from t");
                writer::sync(out);
            })
            .await;
        let answer = client.until_ready().await;
        assert_eq!(tags(&answer), "12Ds12DCZ");
        assert_eq!(rows(&answer)[1], [Some((3 + 20 * (round + 1)).to_string())]);
    }
    proxy.examine().await;
}
