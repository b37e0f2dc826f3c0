//! Transactions of which several servers are part: what belongs to no shard, cursors, constraints and modes are one database's for the
//! client.

use super::herd::Herd;
use crate::answers::{Answer, MANNERS, ask};
use crate::harness;
use crate::harness::wire::{WireClient, rows};

const ROLE: &str = "do $$ begin create role decider login superuser; \
                    exception when duplicate_object or unique_violation then null; end $$";

async fn say(client: &mut WireClient, text: &str) -> Answer {
    Answer::read(&client.query(text).await)
}

async fn ok(client: &mut WireClient, text: &str) -> Answer {
    let answer = say(client, text).await;
    assert_eq!(answer.error, None, "{text}");
    answer
}

async fn value(client: &mut WireClient, text: &str) -> Option<String> {
    ok(client, text).await.column(0).remove(0)
}

/// Two shards and two-phase commit, and a customer of each shard.
async fn herd() -> (Herd, [i32; 2]) {
    let keys = "two_phase = { user = \"decider\" }\n";
    let herd = Herd::with_keys(harness::fresh_databases(2).await, keys, "[cache]\nenabled = false\n").await;
    herd.primary.execute(ROLE).await;
    herd.whole.execute("create table local_notes (id int4); insert into local_notes values (1)").await;
    let customers = customers(&herd).await;
    (herd, customers)
}

async fn customers(herd: &Herd) -> [i32; 2] {
    let mut found = [0; 2];
    for (shard, customer) in herd.shards.iter().zip(&mut found) {
        let client = shard.client().await;
        let row = client.query_one("select min(customer_id) from lines", &[]).await.expect("a customer");
        *customer = row.get(0);
    }
    found
}

#[tokio::test]
async fn what_belongs_to_the_database_runs_on_the_primary_whatever_shard_is_held() {
    let (herd, [one, other]) = herd().await;
    herd.primary.execute("create sequence numbers_of_all").await;
    for shard in &herd.shards {
        shard.execute("create sequence numbers_of_all start 1000").await;
    }
    let (mut client, mut second) = (herd.client().await, herd.client().await);
    let mut listener = WireClient::login(herd.primary.port, "postgres", &herd.primary.name).await;
    ok(&mut listener, "listen told").await;
    for (session, customer) in [(&mut client, one), (&mut second, other)] {
        ok(session, "begin").await;
        ok(session, &format!("update lines set n = n where customer_id = {customer}")).await;
    }
    let lock = "select pg_try_advisory_xact_lock(7)";
    assert_eq!(value(&mut client, lock).await.as_deref(), Some("t"));
    assert_eq!(value(&mut second, lock).await.as_deref(), Some("f"), "it is one lock for all");
    for (text, wanted) in [
        ("select to_regclass('local_notes') is not null", "t"),
        ("select 'local_notes'::regclass::text", "local_notes"),
        ("select has_table_privilege('local_notes', 'select')", "t"),
        ("select nextval('numbers_of_all')", "1"),
        ("select setval('numbers_of_all', 7)", "7"),
        ("select current_database()", &herd.primary.name),
        ("select 1 + length('ab')", "3"),
    ] {
        ok(&mut client, &format!("update lines set n = n where customer_id = {one}")).await;
        assert_eq!(value(&mut client, text).await.as_deref(), Some(wanted), "{text}");
    }
    let refused = say(&mut client, "select lastval()").await;
    assert_eq!((refused.code(), refused.status), (Some("0A000"), 'E'), "{refused:?}");
    ok(&mut client, "rollback").await;
    ok(&mut client, "begin").await;
    ok(&mut client, &format!("update lines set n = n where customer_id = {one}")).await;
    ok(&mut client, "select pg_notify('told', 'x')").await;
    ok(&mut client, "commit").await;
    let told = listener.query("select 1").await;
    assert!(told.iter().any(|message| message.tag == b'A'), "{told:?}");
    ok(&mut client, "begin").await;
    ok(&mut client, &format!("update lines set n = n where customer_id = {one}")).await;
    let object = value(&mut client, "select lo_creat(-1)").await.expect("an oid");
    ok(&mut client, "commit").await;
    let sql = format!("select count(*) from pg_largeobject_metadata where oid = {object}");
    let there = herd.primary.client().await.query_one(&sql, &[]).await.expect("a count");
    assert_eq!(there.get::<_, i64>(0), 1, "a large object of the primary");
    ok(&mut second, "rollback").await;
}

#[tokio::test]
async fn without_two_phase_a_shards_transaction_is_refused_what_belongs_to_the_primary() {
    let herd = Herd::start(2, false).await;
    let [one, _] = customers(&herd).await;
    let mut client = herd.client().await;
    for manner in MANNERS {
        for text in
            ["select nextval('numbers')", "select pg_try_advisory_xact_lock(7)", "select to_regclass('local_notes')"]
        {
            ok(&mut client, "begin").await;
            ok(&mut client, &format!("update lines set n = n where customer_id = {one}")).await;
            for text in ["select 1", "select now() is null", "select set_config('a.b', 'c', true)", "select lower('X')"]
            {
                assert_eq!(ask(&mut client, manner, text).await.error, None, "{manner:?} {text}");
            }
            let refused = ask(&mut client, manner, text).await;
            assert_eq!((refused.code(), refused.status), (Some("0A000"), 'E'), "{manner:?} {text}: {refused:?}");
            ok(&mut client, "rollback").await;
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_cursor_is_fetched_from_the_server_that_has_it() {
    let (herd, [one, other]) = herd().await;
    for manner in MANNERS {
        let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
        for text in [
            "begin",
            &format!("declare c cursor for select sale_id from lines where customer_id = {one} order by 1"),
            "select count(*) from local_notes",
            "fetch 2 from c",
            &format!("update lines set n = n + 1 where customer_id = {other}"),
            "move c",
            "fetch c",
            "savepoint s",
            &format!("declare d cursor for select sale_id from lines where customer_id = {other} order by 1"),
            "fetch c",
            "fetch d",
            "close c",
            "fetch forward 2 from d",
            "rollback to s",
            "fetch d",
            "rollback",
            "begin",
            &format!("declare c cursor for select sale_id from lines where customer_id = {one} order by 1"),
            &format!("update lines set n = n + 1 where customer_id = {other}"),
            &format!("declare c cursor for select sale_id from lines where customer_id = {other}"),
            "rollback",
        ] {
            let (wanted, given) = (ask(&mut oracle, manner, text).await, ask(&mut client, manner, text).await);
            assert_eq!(given, wanted, "{manner:?} {text}");
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn set_constraints_reaches_every_server_of_the_transaction() {
    const UNIQUE: &str =
        "alter table lines add constraint once unique (customer_id, sale_id) deferrable initially deferred";
    let (herd, [one, other]) = herd().await;
    herd.whole.execute(UNIQUE).await;
    for shard in &herd.shards {
        shard.execute(UNIQUE).await;
    }
    let again = |customer: i32| {
        format!(
            "insert into lines (customer_id, sale_id) select customer_id, max(sale_id) from lines where customer_id = {customer} group by 1"
        )
    };
    let touch = |customer: i32| format!("update lines set n = n where customer_id = {customer}");
    let immediate = "set constraints all immediate";
    for manner in MANNERS {
        for script in [
            vec![immediate.to_owned(), again(one)],
            vec![touch(one), immediate.to_owned(), again(other)],
            vec![touch(one), touch(other), immediate.to_owned(), again(one)],
            vec![again(one), touch(other), immediate.to_owned()],
            vec!["savepoint constraints".into(), immediate.to_owned(), "rollback to constraints".into(), again(one)],
            vec![immediate.to_owned(), "set constraints all deferred".into(), again(one), touch(other)],
            vec![touch(one), "set constraints once immediate".into(), again(one)],
        ] {
            let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
            ok(&mut oracle, "begin").await;
            ok(&mut client, "begin").await;
            for text in &script {
                let (wanted, given) = (ask(&mut oracle, manner, text).await, ask(&mut client, manner, text).await);
                assert_eq!(given, wanted, "{manner:?} {text} of {script:?}");
            }
            ok(&mut oracle, "rollback").await;
            ok(&mut client, "rollback").await;
        }
        // By name nobody knows on which of several servers it is.
        let mut client = herd.client().await;
        for texts in [
            [touch(one), touch(other), "set constraints once immediate".into()],
            [touch(one), "set constraints once immediate".into(), touch(other)],
        ] {
            ok(&mut client, "begin").await;
            ok(&mut client, &texts[0]).await;
            ok(&mut client, &texts[1]).await;
            let refused = ask(&mut client, manner, &texts[2]).await;
            assert_eq!((refused.code(), refused.status), (Some("0A000"), 'E'), "{manner:?} {refused:?}");
            ok(&mut client, "rollback").await;
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn set_transaction_says_what_it_says() {
    let (herd, [one, _]) = herd().await;
    let count = "select count(*), sum(qty) from sales";
    for manner in MANNERS {
        for set in [
            "set transaction isolation level read committed",
            "set transaction read only",
            "set transaction read write, isolation level read committed",
        ] {
            let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
            let write = format!("update lines set n = n where customer_id = {one}");
            for text in ["begin", set, count, &write, "rollback"] {
                let (wanted, given) = (ask(&mut oracle, manner, text).await, ask(&mut client, manner, text).await);
                assert_eq!(given, wanted, "{manner:?} {set}: {text}");
            }
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn an_extensions_overloads_take_no_function_away() {
    let shards = harness::fresh_databases(2).await;
    for shard in &shards {
        shard.execute("create extension citext").await;
    }
    let herd = Herd::over(shards, "[cache]\nenabled = false\n").await;
    let [one, _] = customers(&herd).await;
    herd.whole.execute("create extension citext").await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for manner in MANNERS {
        for text in [
            &format!("select min(id), max(region), max(qty) from sales where customer_id = {one}"),
            &format!(
                "select replace(region, 'o', 'x'), split_part(region, 'o', 1) from sales where customer_id = {one} order by id"
            ),
            "select replace(region, 'o', 'x') from sales order by id",
        ] {
            let (wanted, given) = (ask(&mut oracle, manner, text).await, ask(&mut client, manner, text).await);
            assert_eq!(given, wanted, "{manner:?} {text}");
        }
    }
    assert_eq!(rows(&client.query("select 1").await).len(), 1);
    herd.comes_to_rest().await;
}
