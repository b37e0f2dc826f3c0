//! What goes wrong in the middle of a fan-out ends it once, everywhere, and leaves every server connection fit for the next.

use std::time::{Duration, Instant};

use pgherd::commands::demo::servers::{PostgresServer, StopMode};
use pgherd::wire::writer;

use super::herd::Herd;
use crate::answers::{Answer, MANNERS, Manner, ask};
use crate::harness;
use crate::harness::wire::{WireClient, bind};

/// Hours of work on each shard, and no function that a statement over shards may not call.
const ENDLESS: &str = "select count(*) from slow a, countries c1, countries c2, countries c3, countries c4, countries c5, countries c6, \
    countries c7, countries c8, countries c9, countries c10, countries c11, countries c12";

async fn is_well(herd: &Herd, client: &mut WireClient) {
    let text = "select region, count(*), sum(amount) from sales group by region order by region";
    let wanted = ask(&mut herd.oracle().await, Manner::Binary, text).await;
    assert_eq!(ask(client, Manner::Binary, text).await, wanted);
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn an_error_of_one_shard_in_mid_result_is_the_clients_one_error() {
    let herd = Herd::start(4, true).await;
    let mut client = herd.client().await;
    for text in [
        "select id, 1 / (id - 200) from sales",
        "select id, 1 / (id - 200) from sales order by id",
        "select sum(1 / (id - 200)) from sales",
        "select region, count(*) from sales group by region having min(1 / (id - 200)) > 0",
        "select k, repeat('x', 2000), 1 / (k - 2999) from slow",
    ] {
        for manner in MANNERS {
            let wanted = ask(&mut herd.oracle().await, manner, text).await;
            let given = ask(&mut client, manner, text).await;
            // Rows before the error are PostgreSQL's way too; which ones, nothing fixes.
            assert!(
                given.code() == Some("0A000") || given.error == wanted.error,
                "{text} {manner:?}: {:?}",
                given.error
            );
            assert_eq!((given.tag.as_str(), given.status), ("", 'I'), "{text}");
            assert_eq!(wanted.code(), Some("22012"));
        }
    }
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn a_cancel_ends_every_leg() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    for manner in [Manner::Simple, Manner::Text] {
        let began = Instant::now();
        client
            .say(|out| match manner {
                Manner::Simple => writer::query(out, ENDLESS.as_bytes()),
                _ => {
                    writer::parse(out, b"", ENDLESS.as_bytes(), &[]);
                    bind(out, "", "", &[], 1);
                    writer::execute(out, b"", 0);
                    writer::sync(out);
                }
            })
            .await;
        herd.every_shard_works().await;
        client.cancel().await;
        let answer = Answer::read(&client.until_ready().await);
        assert_eq!((answer.code(), answer.status), (Some("57014"), 'I'), "{answer:?}");
        assert!(began.elapsed() < Duration::from_secs(20));
        is_well(&herd, &mut client).await;
    }
    // A cancel that comes when nothing runs hurts nothing that runs later.
    client.cancel().await;
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn a_client_that_disappears_leaves_no_leg_behind() {
    let herd = Herd::start(2, false).await;
    for reset in [false, true] {
        let mut client = herd.client().await;
        client.say(|out| writer::query(out, ENDLESS.as_bytes())).await;
        herd.every_shard_works().await;
        if reset {
            client.reset()
        } else {
            drop(client)
        }
        herd.comes_to_rest().await;
        is_well(&herd, &mut herd.client().await).await;
    }
}

#[tokio::test]
async fn a_statement_that_runs_too_long_is_ended_on_every_shard() {
    let shards = harness::fresh_databases(2).await;
    let herd = Herd::over(shards, "[fanout]\nquery_timeout = \"300ms\"\n").await;
    let mut client = herd.client().await;
    for manner in MANNERS {
        let answer = ask(&mut client, manner, ENDLESS).await;
        assert_eq!((answer.code(), answer.status), (Some("57014"), 'I'), "{answer:?}");
        herd.comes_to_rest().await;
    }
    // The servers' own limit says so in PostgreSQL's words.
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    client.query("set statement_timeout to '300ms'").await;
    let answer = ask(&mut client, Manner::Text, ENDLESS).await;
    assert_eq!(answer.error, Some(("57014".into(), "canceling statement due to statement timeout".into())));
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn a_shard_that_is_down_is_named_and_the_others_are_released() {
    let server = PostgresServer::start(harness::ground(), &harness::options()).expect("server");
    let herd = Herd::with_own_server(3, &server).await;
    let mut client = herd.client().await;
    is_well(&herd, &mut client).await;
    server.stop(StopMode::Immediate).expect("stop");
    for manner in MANNERS {
        let answer = ask(&mut client, manner, "select count(*) from sales").await;
        let (code, message) = answer.error.clone().expect("an error");
        assert!(code.starts_with("08") || code.starts_with("57"), "{manner:?}: {code} {message}");
        let says_why = !message.contains("internal") && !message.contains("timeout");
        assert!(!message.is_empty() && says_why, "told at once and in the server's or the system's words: {message}");
        assert_eq!(answer.status, 'I');
    }
    let on_others = say_for_each_customer(&mut client).await;
    assert!((1..37).contains(&on_others), "{on_others} of 37 customers are on shards that run");
    harness::eventually(Duration::from_secs(20), "the others are released", async || {
        herd.pgherd.metric("pgherd_pool_active_connections", "").await == 0.0
    })
    .await;
    server.restart(StopMode::Fast).expect("restart");
    let text = "select count(*) from sales";
    let wanted = ask(&mut herd.oracle().await, Manner::Simple, text).await;
    harness::eventually(Duration::from_secs(30), "it answers again", async || {
        ask(&mut herd.client().await, Manner::Simple, text).await == wanted
    })
    .await;
    is_well(&herd, &mut client).await;
}

/// How many customers' rows can be read.
async fn say_for_each_customer(client: &mut WireClient) -> usize {
    let mut answered = 0;
    for customer in 0..37 {
        let text = format!("select count(*) from sales where customer_id = {customer}");
        answered += usize::from(ask(client, Manner::Simple, &text).await.error.is_none());
    }
    answered
}

#[tokio::test]
async fn a_shards_server_process_that_dies_in_mid_statement_is_an_error_and_no_more() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    client.say(|out| writer::query(out, ENDLESS.as_bytes())).await;
    herd.every_shard_works().await;
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()
        and pid <> pg_backend_pid() and state = 'active'";
    herd.shards[1].client().await.query(kill, &[]).await.expect("terminate");
    let answer = Answer::read(&client.until_ready().await);
    let code = answer.code().expect("an error").to_owned();
    assert!(code.starts_with("08") || code.starts_with("57P"), "{answer:?}");
    assert_eq!(answer.status, 'I');
    is_well(&herd, &mut client).await;
}

/// Bytes of this process in memory.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_shards_back() {
    const ROWS: usize = 3000;
    const WIDTH: usize = 100_000;
    let herd = Herd::start(2, false).await;
    for order in ["", " order by k"] {
        let mut client = herd.client().await;
        let text = format!("select k, repeat('x', {WIDTH}) from slow{order}");
        let before = resident_bytes();
        client.say(|out| writer::query(out, text.as_bytes())).await;
        // Every shard is stuck in sending: whatever pgherd holds, it is not the 300 MB of the result.
        let stuck =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'ClientWrite'";
        for shard in &herd.shards {
            let observer = shard.client().await;
            harness::eventually(Duration::from_secs(30), "the shard waits for the client", async || {
                observer.query_one(stuck, &[]).await.expect("activity").get::<_, i64>(0) == 1
            })
            .await;
        }
        // Other stories share this process, so there is room for theirs.
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 150_000_000, "{grown} bytes more in memory");
        let mut rows = 0;
        loop {
            let message = client.next().await;
            match message.tag {
                b'D' => {
                    assert!(message.body.len() > WIDTH);
                    rows += 1;
                }
                b'Z' => break,
                b'T' | b'C' => {}
                _ => panic!("{message:?}"),
            }
        }
        assert_eq!(rows, ROWS);
        herd.comes_to_rest().await;
    }
}
