//! Prepared statements over shared server connections: each means what its own client prepared.

use pgherd::wire::writer;

use super::proxy::Proxy;
use crate::harness::wire::{Message, WireClient, bind, rows, tags};

async fn parse(client: &mut WireClient, name: &str, text: &str) -> Vec<Message> {
    client
        .say(|out| {
            writer::parse(out, name.as_bytes(), text.as_bytes(), &[]);
            writer::sync(out);
        })
        .await;
    client.until_ready().await
}

async fn run(client: &mut WireClient, name: &str) -> Vec<Message> {
    client
        .say(|out| {
            bind(out, "", name, &[], 0);
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    client.until_ready().await
}

fn value(messages: &[Message]) -> Option<String> {
    rows(messages).first().and_then(|row| row[0].clone())
}

#[tokio::test]
async fn an_unnamed_statement_is_never_another_clients() {
    let proxy = Proxy::start("max_connections = 2").await;
    let mut clients = Vec::new();
    for n in 0..6 {
        let mut client = proxy.wire().await;
        assert_eq!(tags(&parse(&mut client, "", &format!("select {n}")).await), "1Z");
        clients.push(client);
    }
    // Hold one server, so that the others meet on the one that is left, and then the other way round.
    for _ in 0..2 {
        let mut holder = proxy.wire().await;
        holder.query("begin").await;
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(value(&run(client, "").await), Some(n.to_string()));
        }
        let mut second = proxy.wire().await;
        second.query("begin").await;
        holder.query("rollback").await;
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(value(&run(client, "").await), Some(n.to_string()));
        }
        second.query("rollback").await;
    }
    drop(clients);
    proxy.examine().await;
}

/// A hidden Parse that was skipped has prepared nothing, whatever lies in the unnamed statement.
#[tokio::test]
async fn an_unnamed_statement_whose_parse_was_skipped_is_not_there() {
    let proxy = Proxy::start("max_connections = 1").await;
    let mut mine = proxy.wire().await;
    parse(&mut mine, "", "select 'mine'").await;
    let mut other = proxy.wire().await;
    parse(&mut other, "", "select 'the other''s'").await;
    mine.query("begin; savepoint a").await;
    // A Query has destroyed it.
    assert_eq!(tags(&run(&mut mine, "").await), "EZ");
    mine.query("rollback").await;
    parse(&mut mine, "", "select 'mine'").await;
    parse(&mut other, "", "select 'the other''s'").await;
    mine.say(|out| {
        bind(out, "", "unknown", &[], 0);
        bind(out, "", "", &[], 0);
        writer::sync(out);
    })
    .await;
    assert_eq!(tags(&mine.until_ready().await), "EZ");
    assert_eq!(value(&run(&mut mine, "").await), Some("mine".to_owned()));
    assert_eq!(value(&run(&mut other, "").await), Some("the other's".to_owned()));
    drop((mine, other));
    proxy.examine().await;
}

#[tokio::test]
async fn more_statements_than_a_server_keeps_are_prepared_again() {
    let proxy = Proxy::start("max_connections = 1, prepared_statements = 3").await;
    let mut client = proxy.wire().await;
    for n in 0..10 {
        parse(&mut client, &format!("s{n}"), &format!("select {n}")).await;
    }
    for _ in 0..3 {
        for n in [9, 0, 5, 3, 8, 1] {
            assert_eq!(value(&run(&mut client, &format!("s{n}")).await), Some(n.to_string()));
        }
        proxy.examine().await;
    }
    // Many in one flight: some are closed again before their answers come.
    client
        .say(|out| {
            for n in 0..10 {
                bind(out, "", &format!("s{n}"), &[], 0);
                writer::execute(out, b"", 0);
            }
            writer::sync(out);
        })
        .await;
    let answers = client.until_ready().await;
    assert_eq!(rows(&answers).len(), 10);
    proxy.examine().await;
}

/// A portal keeps its plan: what it was bound from may have made room for others before it is executed.
#[tokio::test]
async fn a_statement_that_makes_room_in_mid_flight_is_executed_all_the_same() {
    let proxy = Proxy::start("max_connections = 1, prepared_statements = 2").await;
    let mut client = proxy.wire().await;
    for n in 0..6 {
        parse(&mut client, &format!("s{n}"), &format!("select {n} from generate_series(1, 2)")).await;
    }
    for transaction in [false, true] {
        if transaction {
            client.query("begin").await;
        }
        client
            .say(|out| {
                for n in 0..6 {
                    bind(out, &format!("p{n}"), &format!("s{n}"), &[], 0);
                }
                for n in 0..6 {
                    writer::execute(out, format!("p{n}").as_bytes(), 1);
                }
                // Suspended ones go on, and a statement that is gone by now is there again.
                for n in 0..6 {
                    writer::execute(out, format!("p{n}").as_bytes(), 0);
                    bind(out, "", &format!("s{n}"), &[], 0);
                    writer::describe(out, b'S', format!("s{}", (n + 3) % 6).as_bytes());
                    writer::execute(out, b"", 0);
                }
                writer::sync(out);
            })
            .await;
        let answers = client.until_ready().await;
        let told = format!("222222{}{}Z", "Ds".repeat(6), "DC2tTDDC".repeat(6));
        assert_eq!(tags(&answers), told, "{answers:?}");
        let values: Vec<String> = rows(&answers).into_iter().filter_map(|row| row[0].clone()).collect();
        let again = (0..6).flat_map(|n| [n; 3]);
        assert_eq!(values, (0..6).chain(again).map(|n| n.to_string()).collect::<Vec<_>>());
        client.query("commit").await;
        proxy.examine().await;
    }
}

/// Making room means a Close; if an error skips it the server still holds what it was to forget.
#[tokio::test]
async fn a_close_that_was_skipped_does_not_confuse_the_next_parse() {
    let proxy = Proxy::start("max_connections = 1, prepared_statements = 2").await;
    let mut client = proxy.wire().await;
    for n in 0..4 {
        parse(&mut client, &format!("s{n}"), &format!("select {n}")).await;
    }
    for _ in 0..3 {
        client
            .say(|out| {
                bind(out, "", "unknown", &[], 0);
                for n in 0..4 {
                    bind(out, "", &format!("s{n}"), &[], 0);
                }
                writer::sync(out);
            })
            .await;
        assert_eq!(tags(&client.until_ready().await), "EZ");
        proxy.examine().await;
        for n in 0..4 {
            assert_eq!(value(&run(&mut client, &format!("s{n}")).await), Some(n.to_string()));
        }
        proxy.examine().await;
    }
}

/// What a skipped Parse was to prepare is prepared behind the Sync, before anybody has heard that it was skipped, and then once more.
#[tokio::test]
async fn a_statement_that_was_skipped_and_sent_again_is_known_to_be_there() {
    let proxy = Proxy::start("max_connections = 1").await;
    let mut client = proxy.wire().await;
    for n in 0..20 {
        let text = format!("select 'the same', {n}");
        client
            .say(|out| {
                writer::parse(out, b"", b"select 1/0", &[]);
                bind(out, "", "", &[], 0);
                writer::execute(out, b"", 0);
                writer::parse(out, b"a", text.as_bytes(), &[]);
                writer::sync(out);
                writer::parse(out, b"b", text.as_bytes(), &[]);
            })
            .await;
        assert_eq!(tags(&client.until_ready().await), "1EZ");
        client
            .say(|out| {
                writer::parse(out, b"c", text.as_bytes(), &[]);
                bind(out, "", "c", &[], 0);
                writer::execute(out, b"", 0);
                writer::close(out, b'S', b"b");
                writer::close(out, b'S', b"c");
                writer::sync(out);
            })
            .await;
        assert_eq!(tags(&client.until_ready().await), "112DC33Z");
    }
    drop(client);
    proxy.examine().await;
}

#[tokio::test]
async fn a_constant_keeps_the_meaning_of_the_settings_it_was_prepared_under() {
    const DATE: &str = "select to_char('01/02/2003'::date, 'YYYY-MM-DD')";
    let proxy = Proxy::start("max_connections = 2").await;
    let (mut mdy, mut dmy, mut local) = (proxy.wire().await, proxy.wire().await, proxy.wire().await);
    dmy.query("set datestyle to dmy").await;
    parse(&mut mdy, "s", DATE).await;
    parse(&mut dmy, "s", DATE).await;
    // Prepared while a SET LOCAL is in force, so the settings at hand are the transaction's alone.
    local.query("begin; set local datestyle to dmy").await;
    parse(&mut local, "s", DATE).await;
    assert_eq!(value(&run(&mut local, "s").await).as_deref(), Some("2003-02-01"));
    local.query("commit").await;
    for _ in 0..2 {
        // Another server than before, and then the one before.
        let mut holder = proxy.wire().await;
        holder.query("begin").await;
        for (client, wanted) in [(&mut mdy, "2003-01-02"), (&mut dmy, "2003-02-01"), (&mut local, "2003-02-01")] {
            assert_eq!(value(&run(client, "s").await).as_deref(), Some(wanted));
        }
        holder.query("rollback").await;
    }
    // A statement prepared before is used where a SET LOCAL is in force: its own meaning, or a refusal; and nobody else's changes.
    mdy.query("begin; set local datestyle to dmy").await;
    parse(&mut mdy, "t", DATE).await;
    let answers = run(&mut mdy, "s").await;
    match answers.iter().find(|message| message.tag == b'E') {
        Some(error) => assert_eq!(error.field(b'C').as_deref(), Some("0A000"), "{error:?}"),
        None => assert_eq!(value(&answers).as_deref(), Some("2003-01-02")),
    }
    mdy.query("rollback").await;
    for (name, wanted) in [("s", "2003-01-02"), ("t", "2003-02-01")] {
        assert_eq!(value(&run(&mut mdy, name).await).as_deref(), Some(wanted), "{name}");
    }
    let mut fresh = proxy.wire().await;
    parse(&mut fresh, "s", DATE).await;
    assert_eq!(value(&run(&mut fresh, "s").await).as_deref(), Some("2003-01-02"));
    proxy.examine().await;
}

#[tokio::test]
async fn a_statement_whose_result_type_changed_works_when_it_is_prepared_again() {
    for mode in ["transaction", "session"] {
        let proxy = Proxy::start(&format!("max_connections = 1, mode = \"{mode}\"")).await;
        proxy.database.execute("create table t (a int); insert into t values (1)").await;
        let mut client = proxy.wire().await;
        parse(&mut client, "s", "select * from t").await;
        assert_eq!(tags(&run(&mut client, "s").await), "2DCZ");
        proxy.database.execute("alter table t add b int default 7").await;
        let stale = run(&mut client, "s").await;
        assert_eq!(tags(&stale), "EZ");
        assert_eq!(stale[0].field(b'C').as_deref(), Some("0A000"));
        // What a driver does then.
        parse(&mut client, "s2", "select * from t").await;
        assert_eq!(rows(&run(&mut client, "s2").await), [[Some("1".to_owned()), Some("7".to_owned())]], "{mode}");
        assert_eq!(rows(&run(&mut client, "s").await).len(), 1, "{mode}: pgherd prepares it again by itself");
        drop(client);
        proxy.examine().await;
    }
}

#[tokio::test]
async fn statements_of_pgherds_own_are_out_of_reach() {
    let proxy = Proxy::start("max_connections = 1").await;
    let mut owner = proxy.wire().await;
    parse(&mut owner, "s", "select 'secret'").await;
    run(&mut owner, "s").await;
    let listed = proxy.wire().await.query("select name, statement from pg_prepared_statements").await;
    assert!(rows(&listed).is_empty(), "another client's statement is shown: {listed:?}");
    run(&mut owner, "s").await;
    proxy.at_rest().await;
    let mut lease = proxy.pool().acquire().await.expect("a server connection");
    let name = lease.server().held.names().next().expect("one statement").to_owned();
    lease.release();
    let mut other = proxy.wire().await;
    for text in [format!("execute {name}"), format!("deallocate {name}"), format!("begin; deallocate {name}; commit")] {
        let answers = other.query(&text).await;
        assert_eq!(answers[0].field(b'C').as_deref(), Some("26000"), "{text}: {answers:?}");
    }
    assert_eq!(value(&run(&mut owner, "s").await).as_deref(), Some("secret"));
    proxy.examine().await;
}

#[tokio::test]
async fn deallocate_of_a_protocol_statement_is_understood_in_every_mode() {
    for mode in ["transaction", "session"] {
        let proxy = Proxy::start(&format!("max_connections = 1, mode = \"{mode}\"")).await;
        let mut client = proxy.wire().await;
        for all in ["deallocate s", "deallocate all", "discard all"] {
            parse(&mut client, "s", "select 1").await;
            let done = client.query(all).await;
            assert_eq!(tags(&done), "CZ", "{mode} {all}: {done:?}");
            let gone = run(&mut client, "s").await;
            assert_eq!(gone[0].field(b'C').as_deref(), Some("26000"), "{mode} {all}");
            assert_eq!(tags(&parse(&mut client, "s", "select 2").await), "1Z");
            assert_eq!(value(&run(&mut client, "s").await).as_deref(), Some("2"));
            client.query("deallocate s").await;
        }
        drop(client);
        proxy.examine().await;
    }
}
