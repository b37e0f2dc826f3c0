//! Prepared statements whose rows become others: a client that does not ask what it gets must not be given them unseen, whoever would
//! notice. PostgreSQL says `cached plan must not change result type` for as long as the statement is prepared.

use std::time::Duration;

use pgherd::wire::writer;

use super::herd::Herd;
use crate::answers::Answer;
use crate::harness;
use crate::harness::wire::{Message, WireClient, bind, tags};

/// What changes tables, and what changes them back.
const CHANGES: [(&str, &str); 5] = [
    ("alter table lines add extra text", "alter table lines drop extra"),
    ("alter table lines rename n to renamed", "alter table lines rename renamed to n"),
    ("alter table lines alter n type int8", "alter table lines alter n type int4"),
    ("alter table lines alter sku type varchar(20)", "alter table lines alter sku type text"),
    ("alter table lines drop n", "alter table lines add n int4"),
];

/// Statements over shards of each kind.
const STATEMENTS: [(&str, &str); 9] = [
    ("streamed", "select * from lines"),
    ("in order", "select n, sku from lines order by n, sku, sale_id limit 3"),
    ("groups", "select sku, max(n) as most from lines group by sku order by sku"),
    ("merged by PostgreSQL", "select a.*, b.n from lines a join lines b on a.n = b.n and a.sku = b.sku limit 5"),
    ("windows", "select sku, n, row_number() over (order by n, sku, sale_id) from lines order by 3 limit 3"),
    ("one shard", "select * from lines where customer_id = 7 order by sale_id limit 3"),
    ("returning", "update lines set sale_id = sale_id where sale_id < 5 returning *"),
    ("inserted", "insert into lines (customer_id, sale_id) values (1, -1), (2, -2), (3, -3), (4, -4) returning *"),
    (
        "query inserted",
        "insert into lines (customer_id, sale_id) select customer_id, -id from sales where id < 9 returning *",
    ),
];

async fn herd() -> Herd {
    let shards = harness::fresh_databases(3).await;
    let role = "do $$ begin create role decider login superuser; \
                exception when duplicate_object or unique_violation then null; end $$";
    for shard in &shards {
        shard.execute(role).await;
    }
    Herd::with_keys(shards, "two_phase = { user = \"decider\" }\n", "[cache]\nenabled = false\n").await
}

async fn prepare(client: &mut WireClient, text: &str) {
    client
        .say(|out| {
            writer::parse(out, b"s", text.as_bytes(), &[]);
            writer::describe(out, b'S', b"s");
            writer::sync(out);
        })
        .await;
    let answer = client.until_ready().await;
    assert!(tags(&answer).starts_with("1t"), "{text}: {answer:?}");
}

async fn forget(client: &mut WireClient) {
    client
        .say(|out| {
            writer::close(out, b'S', b"s");
            writer::sync(out);
        })
        .await;
    client.expect("3Z").await;
}

async fn execute(client: &mut WireClient, is_described: bool) -> Vec<Message> {
    client
        .say(|out| {
            bind(out, "", "s", &[], 1);
            if is_described {
                writer::describe(out, b'P', b"");
            }
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    client.until_ready().await
}

fn is_stale(answer: &[Message]) -> bool {
    Answer::read(answer).code() == Some("0A000")
        && answer
            .iter()
            .any(|message| message.tag == b'E' && message.field(b'R').as_deref() == Some("RevalidateCachedQuery"))
}

/// Changes the tables everywhere.
async fn change(herd: &Herd, sql: &str) {
    herd.whole.execute(sql).await;
    assert_eq!(Answer::read(&herd.client().await.query(sql).await).error, None, "{sql}");
}

#[tokio::test]
async fn rows_of_another_shape_are_not_for_a_client_that_does_not_ask() {
    let herd = herd().await;
    for (change_it, change_back) in CHANGES {
        let mut pairs = Vec::new();
        for (kind, text) in STATEMENTS {
            let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
            for client in [&mut oracle, &mut client] {
                prepare(client, text).await;
                assert!(!tags(&execute(client, false).await).contains('E'), "{kind}");
            }
            pairs.push((kind, oracle, client));
        }
        change(&herd, change_it).await;
        for (kind, oracle, client) in &mut pairs {
            let wanted = execute(oracle, false).await;
            let given = execute(client, false).await;
            if Answer::read(&wanted).error.is_none() {
                assert_eq!(Answer::read(&given).error, None, "{change_it}, {kind}");
                continue;
            }
            // One shard's own connection may have been given away; nobody else's rows come by it either way.
            assert_eq!(Answer::read(&given).error, Answer::read(&wanted).error, "{change_it}, {kind}");
            assert_eq!(is_stale(&given), is_stale(&wanted), "{change_it}, {kind}: {given:?}");
            // What the coordinator merges is told of as bound before any server looks at it.
            assert_eq!(tags(&given).trim_start_matches('2'), "EZ", "{change_it}, {kind}");
        }
        // Who asks is given what there is, and goes by that.
        for (kind, _, client) in &mut pairs {
            let asked = execute(client, true).await;
            let code = Answer::read(&asked).code().map(str::to_owned);
            if code.is_none() {
                assert!(!tags(&execute(client, false).await).contains('E'), "{change_it}, {kind}");
            } else {
                assert_eq!(code.as_deref(), Some("42703"), "{change_it}, {kind}: {asked:?}");
            }
        }
        change(&herd, change_back).await;
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_write_that_would_give_other_rows_has_not_happened() {
    let herd = herd().await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    let text = "update lines set sku = sku || '!' where sale_id < 9 returning *";
    let count = "select count(*) from lines where sku like '%!'";
    for client in [&mut oracle, &mut client] {
        prepare(client, text).await;
    }
    change(&herd, "alter table lines add extra text").await;
    for within in [false, true] {
        let mut said = Vec::new();
        for client in [&mut oracle, &mut client] {
            if within {
                client.query("begin").await;
            }
            let answer = execute(client, false).await;
            assert!(is_stale(&answer), "{answer:?}");
            let status = Answer::read(&answer).status;
            if within {
                let after = Answer::read(&client.query("select 1").await);
                assert_eq!(after.code(), Some("25P02"));
                client.query("rollback").await;
            }
            said.push((tags(&answer), status, Answer::read(&client.query(count).await).rows));
        }
        assert_eq!(said[0], said[1], "within a transaction: {within}");
    }
    for client in [&mut oracle, &mut client] {
        forget(client).await;
        prepare(client, text).await;
    }
    let (wanted, given) = (execute(&mut oracle, false).await, execute(&mut client, false).await);
    assert_eq!(Answer::read(&given).sorted(), Answer::read(&wanted).sorted());
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn what_was_kept_is_no_exception() {
    let herd = Herd::start(3, true).await;
    herd.primary.execute("create table kept (a int4); insert into kept values (1)").await;
    let text = "select *, count(*) over () from kept";
    let mut client = herd.client().await;
    prepare(&mut client, text).await;
    for _ in 0..3 {
        assert_eq!(tags(&execute(&mut client, false).await), "2DCZ");
    }
    let altered = herd.client().await.query("alter table kept add b int4 default 2").await;
    assert_eq!(Answer::read(&altered).error, None);
    harness::eventually(Duration::from_secs(20), "it is kept in its new shape", async || {
        Answer::read(&herd.client().await.query(text).await).columns.len() == 3
    })
    .await;
    let answer = execute(&mut client, false).await;
    assert!(is_stale(&answer), "{answer:?}");
    let asked = Answer::read(&execute(&mut client, true).await);
    assert_eq!((asked.columns.len(), asked.rows.len()), (3, 1));
    assert!(!tags(&execute(&mut client, false).await).contains('E'), "it knows now");
    herd.comes_to_rest().await;
}
