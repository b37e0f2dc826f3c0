//! What is cached and what is not, for how long, and what happens around a fill.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::fleet::{Fleet, Plan, redis};
use super::stage::{From, Stage, rows};
use crate::harness::faults::{Faults, Forwarder};
use crate::harness::wire::{bind, tags};
use crate::harness::{eventually, fresh_database};
use pgherd::commands::demo::servers::RedisServer;
use pgherd::wire::writer;

const SCENE: &str = "
create table t (a int, b text); insert into t select g, 'b' || g from generate_series(1, 10) g;
create unlogged table unlogged (a int); insert into unlogged values (1);
create table other (a int); insert into other values (0);
create sequence s;
create function volatile_f() returns int language sql as 'select 1';
create function stable_f() returns bigint language sql stable as 'select count(*) from t';
create function pure_f(bigint) returns bigint language sql immutable as 'select $1 + 1';
create function writes(bigint) returns bigint language plpgsql as 'begin insert into other values (1); return $1; end';
create function lies(n bigint) returns bigint language plpgsql immutable as 'begin return writes(n); end';
create function lies_less(n bigint) returns bigint language plpgsql stable as 'begin return writes(n); end';
create function notices(n bigint) returns bigint language plpgsql immutable as 'begin raise notice ''seen''; return n; end';
create function changes_the_session(n bigint) returns bigint language plpgsql immutable as
  'begin perform set_config(''timezone'', ''Asia/Tokyo'', false); return n; end';
create function secret() returns bigint language sql immutable security definer as 'select 1::bigint';
create view clock as select a, now() from t;
create view stable_view as select stable_f() as n;
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_route_says_why() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    let reasons = [
        ("select sum(a) from t", "cached: cacheable"),
        ("select pure_f(sum(a)) from t", "cached: cacheable"),
        ("/* pgherd: cache=off */ select sum(a) from t", "primary: hint"),
        ("select now(), sum(a) from t", "primary: stable-function"),
        ("select current_timestamp, sum(a) from t", "primary: volatile-function"),
        ("select session_user, sum(a) from t", "primary: volatile-function"),
        ("select random(), sum(a) from t", "primary: volatile-function"),
        ("select clock_timestamp(), sum(a) from t", "primary: volatile-function"),
        ("select txid_current(), sum(a) from t", "primary: stable-function"),
        ("select current_setting('timezone'), sum(a) from t", "primary: stable-function"),
        ("select nextval('s'), sum(a) from t", "primary: volatile-function"),
        ("select volatile_f(), sum(a) from t", "primary: volatile-function"),
        ("select stable_f(), sum(a) from t", "primary: stable-function"),
        ("select secret(), sum(a) from t", "primary: security-definer"),
        ("select sum(a) from clock", "primary: stable-function"),
        ("select sum(n) from stable_view", "primary: stable-function"),
        ("select a from t for update", "primary: row-locks"),
        ("select count(*) from t tablesample system (50)", "primary: sample"),
        ("select max(ctid::text) from t", "primary: system-columns"),
        ("select count(*) from pg_class", "primary: system-catalog"),
        ("select sum(a) from unlogged", "primary: unlogged-table"),
        ("select last_value from s", "primary: not-a-table"),
        ("select sum(a) from nowhere", "primary: unknown-relation"),
        ("insert into t values (1)", "primary: write"),
        ("select sum(a) from t; select 1", "primary: multi-statement"),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in reasons {
        let why = if text.contains("; ") { continue } else { stage.why(&client, text).await };
        if why != expected {
            wrong.push(format!("{text}: {why} instead of {expected}"));
        }
        if expected.starts_with("cached") || text.contains("nowhere") || text.starts_with("insert") {
            continue;
        }
        rows(&client, text).await;
        let (_, from) = stage.ask(&client, text).await;
        if from != From::Primary {
            wrong.push(format!("{text} came from {from:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_says_it_does_not_write_and_does() {
    let stage = Stage::set(SCENE, &[]).await;
    let (client, reader) = (stage.client("postgres").await, stage.client("postgres").await);
    for (text, first) in [
        ("select lies(sum(a)) from t", "cached: cacheable"),
        ("select lies_less(sum(a)) from t", "primary: stable-function"),
    ] {
        assert_eq!(stage.why(&client, text).await, first);
        for round in 0..3 {
            let before = stage.cached(&reader, "select sum(a) from other").await;
            assert_eq!(rows(&client, text).await[0][0].as_deref(), Some("55"), "{text}");
            assert_ne!(rows(&reader, "select sum(a) from other").await, before, "{text}, round {round}");
            assert_eq!(stage.why(&client, text).await, "primary: writes-unseen", "{text}");
        }
    }
    // By the extended protocol, where Parse and Bind have been answered before it is found out.
    let before = stage.cached(&reader, "select sum(a) from other").await;
    let row = client.query_one("select lies(sum(a) + $1::bigint) from t", &[&1_i64]).await.expect("an answer");
    assert_eq!(row.get::<_, i64>(0), 56);
    assert_ne!(rows(&reader, "select sum(a) from other").await, before);
    // In a transaction that has written already it runs where it stands.
    for _ in 0..2 {
        let before = stage.cached(&reader, "select sum(a) from other").await;
        client.batch_execute("begin; update t set b = 'x' where a = 1").await.expect("begin");
        rows(&client, "select lies(sum(a) + 7), 'new' from t").await;
        client.batch_execute("commit").await.expect("commit");
        assert_ne!(rows(&reader, "select sum(a) from other").await, before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_changes_the_session_changes_nobody_elses() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    rows(&client, "select changes_the_session(sum(a)) from t").await;
    for _ in 0..8 {
        let zones =
            rows(&stage.client("postgres").await, "select current_setting('timezone') where random() < 2").await;
        assert_ne!(zones[0][0].as_deref(), Some("Asia/Tokyo"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_table_stands_in_front() {
    let stage = Stage::set(SCENE, &[]).await;
    let (one, other) = (stage.client("postgres").await, stage.client("postgres").await);
    let text = "select count(*) from t";
    let real = stage.cached(&one, text).await;
    one.batch_execute("create temp table t (a int); insert into t values (1)").await.expect("temp table");
    for _ in 0..3 {
        assert_eq!(rows(&one, text).await[0][0].as_deref(), Some("1"));
        assert_eq!(stage.cached(&other, text).await, real);
    }
    assert_eq!(rows(&one, "select count(*) from public.t").await, real);
    one.batch_execute("drop table pg_temp.t").await.expect("drop");
    assert_eq!(rows(&one, text).await, real);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_notices_and_parts_are_not_kept() {
    let stage = Stage::set(SCENE, &[]).await;
    let (client, mut wire) = (stage.client("postgres").await, stage.wire().await);
    for _ in 0..3 {
        assert_eq!(tags(&wire.query("select 1 / (count(*) - 10) from t").await), "TEZ");
        assert_eq!(tags(&wire.query("select notices(count(*)) from t").await), "TNDCZ");
        assert_eq!(tags(&wire.query("select a / (a - 10) from t").await), "TDDDDDDDDDEZ");
    }
    // A portal that is fetched in parts, then the whole.
    for _ in 0..3 {
        let text = b"select a from t order by a";
        wire.say(|out| {
            writer::parse(out, b"", text, &[]);
            bind(out, "", "", &[], 0);
            writer::execute(out, b"", 4);
            writer::execute(out, b"", 4);
            writer::sync(out);
        })
        .await;
        assert_eq!(tags(&wire.until_ready().await), "12DDDDsDDDDsZ");
        wire.say(|out| {
            writer::parse(out, b"", text, &[]);
            bind(out, "", "", &[], 0);
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
        assert_eq!(tags(&wire.until_ready().await), "12DDDDDDDDDDCZ");
    }
    assert_eq!(stage.cached(&client, "select count(*) from t").await[0][0].as_deref(), Some("10"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_fill_for_all_who_wait() {
    let stage = Stage::set(SCENE, &[]).await;
    let mut lock = stage.database.client().await;
    let clients = join_all((0..200).map(|_| stage.client("postgres"))).await;
    let before = stage.fleet.stats(0);
    let lock = lock.transaction().await.expect("begin");
    lock.batch_execute("lock table t in access exclusive mode").await.expect("lock");
    let asking = join_all(clients.iter().map(|client| rows(client, "select sum(a), 'slow' from t")));
    let watching = async {
        eventually(Duration::from_secs(30), "all but one wait", || async {
            stage.fleet.stats(0).waits - before.waits >= 199
        })
        .await;
        let running = "select count(*) from pg_stat_activity where datname = current_database() and query like '%slow%' \
                       and wait_event_type = 'Lock'";
        let running = rows(&stage.database.client().await, running).await;
        lock.commit().await.expect("commit");
        running
    };
    let (answers, running) = tokio::join!(asking, watching);
    assert_eq!(running[0][0].as_deref(), Some("1"), "one execution");
    assert!(answers.iter().all(|answer| answer[0][0].as_deref() == Some("55")));
    let after = stage.fleet.stats(0);
    assert_eq!((after.fills - before.fills, after.memory_hits - before.memory_hits), (1, 199), "{after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_grows_only_so_old() {
    let stage = Stage::with(fresh_database().await, SCENE, &[], "ttl = \"1s\"").await;
    let client = stage.client("postgres").await;
    let hinted = "/* pgherd: ttl=1h */ select sum(a) from t";
    let (text, kept) = ("select sum(a) from t", stage.cached(&client, hinted).await);
    stage.cached(&client, text).await;
    // Past pgherd, so that nobody tells it.
    stage.database.execute("insert into t values (1000)").await;
    eventually(Duration::from_secs(10), "the answer is renewed", || async { rows(&client, text).await != kept }).await;
    assert_eq!(stage.ask(&client, hinted).await, (kept, From::Cache), "the text asked for an hour");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_under_another_name_of_the_same_database_is_seen() {
    let database = fresh_database().await;
    let alias = format!("[[database]]\nname = \"alias\"\nprimary = \"{}\"\ncache = false\n", database.address());
    let stage = Stage::with(database, SCENE, &[], &format!("olap_only = false\n{alias}")).await;
    let reader = stage.client("postgres").await;
    let writer = stage.fleet.client_with(0, "postgres", "dbname=alias").await;
    let text = "select sum(a) from t";
    let kept = stage.cached(&reader, text).await;
    writer.batch_execute("insert into t values (1000)").await.expect("written");
    assert_ne!(stage.ask(&reader, text).await.0, kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_too_large_is_not_kept() {
    let stage = Stage::with(fresh_database().await, SCENE, &[], "max_entry = \"4KiB\"").await;
    let client = stage.client("postgres").await;
    let text = "select repeat('x', 1000), a from t group by a order by a";
    for _ in 0..3 {
        let (answer, from) = stage.ask(&client, text).await;
        assert_eq!((answer.len(), from), (10, From::Primary));
    }
    stage.cached(&client, "select repeat('x', 100), a from t group by a order by a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_shares_its_answers_and_does_without_redis_when_it_is_gone() {
    let Some(redis) = redis() else { return };
    let database = fresh_database().await;
    database.execute(SCENE).await;
    let plan = Plan {
        users: vec!["postgres".into()],
        redis: vec![redis.url(), redis.url()],
        cache: "ttl = \"5m\"".into(),
        database: String::new(),
    };
    let fleet = Fleet::start(&database, &plan).await;
    fleet.warm("postgres", "select count(*) from t").await;
    let (one, other) = (fleet.client(0, "postgres").await, fleet.client(1, "postgres").await);
    let text = "select sum(a) from t";
    assert_eq!(rows(&one, text).await, rows(&other, text).await);
    eventually(Duration::from_secs(10), "the second finds what the first has filled", || async {
        rows(&one, "select sum(a) as shared from t").await;
        rows(&other, "select sum(a) as shared from t").await;
        fleet.stats(1).redis_hits > 0
    })
    .await;
    one.batch_execute("insert into t values (100)").await.expect("insert");
    assert_eq!(rows(&other, text).await[0][0].as_deref(), Some("155"));

    redis.kill9().expect("killed");
    for number in 0..20_i64 {
        let client = if number % 2 == 0 { &one } else { &other };
        client.batch_execute("insert into t values (1)").await.expect("a write without Redis");
        let read = rows(if number % 2 == 0 { &other } else { &one }, text).await;
        assert_eq!(read[0][0].as_deref(), Some(&*(156 + number).to_string()));
    }
    redis.restart().expect("restarted");
    fleet.warm("postgres", text).await;
    assert_eq!(rows(&one, text).await[0][0].as_deref(), Some("175"));
    fleet.stop().await;
}

/// Two pgherds; the first reaches Redis through a link that can be cut.
async fn fleet_with_a_link(redis: &RedisServer) -> (Fleet, Forwarder) {
    let database = fresh_database().await;
    database.execute(SCENE).await;
    let link = Forwarder::to(redis.port()).await;
    let plan = Plan {
        users: vec!["postgres".into()],
        redis: vec![format!("redis://127.0.0.1:{}/0", link.port), redis.url()],
        cache: "ttl = \"5m\"".into(),
        database: String::new(),
    };
    (Fleet::start(&database, &plan).await, link)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pgherd_that_is_cut_off_from_redis_commits_when_nobody_serves() {
    let Some(redis) = redis() else { return };
    let (fleet, link) = fleet_with_a_link(&redis).await;
    let text = "select sum(a) from t";
    fleet.warm("postgres", text).await;
    let (cut, other) = (fleet.client(0, "postgres").await, fleet.client(1, "postgres").await);
    for round in 0..3_i64 {
        link.set(Faults { down: true, ..Faults::default() });
        for number in 1..=5_i64 {
            cut.batch_execute("insert into t values (1)").await.expect("a write without Redis");
            let expected = (55 + round * 5 + number).to_string();
            assert_eq!(rows(&other, text).await[0][0].as_deref(), Some(&*expected));
        }
        link.heal();
        fleet.warm("postgres", text).await;
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_back_empty_is_served_from_only_when_all_are_back() {
    let Some(redis) = redis() else { return };
    let (fleet, _link) = fleet_with_a_link(&redis).await;
    let text = "select sum(a) from t";
    fleet.warm("postgres", text).await;
    let (one, other) = (fleet.client(0, "postgres").await, fleet.client(1, "postgres").await);
    let mut expected = 55;
    for _ in 0..3 {
        redis.kill9().expect("killed");
        // Longer than any pause between two attempts to come back.
        let down = Instant::now();
        while down.elapsed() < Duration::from_millis(2500) {
            one.batch_execute("insert into t values (1)").await.expect("a write without Redis");
            expected += 1;
            assert_eq!(rows(&other, text).await[0][0].as_deref(), Some(&*expected.to_string()));
        }
        redis.restart().expect("restarted");
        let back = Instant::now();
        while back.elapsed() < Duration::from_secs(3) {
            one.batch_execute("insert into t values (1)").await.expect("a write while Redis is coming back");
            expected += 1;
            for _ in 0..3 {
                assert_eq!(rows(&other, text).await[0][0].as_deref(), Some(&*expected.to_string()));
            }
        }
        fleet.warm("postgres", text).await;
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_has_forgotten_a_pgherd_which_cannot_reach_it() {
    let Some(redis) = redis() else { return };
    let (fleet, link) = fleet_with_a_link(&redis).await;
    let text = "select sum(a) from t";
    fleet.warm("postgres", text).await;
    let (cut, other) = (fleet.client(0, "postgres").await, fleet.client(1, "postgres").await);
    link.set(Faults { down: true, ..Faults::default() });
    redis.restart().expect("restarted");
    let start = Instant::now();
    let mut expected = 55;
    // The second alone is registered in what Redis knows now, for several leases.
    while start.elapsed() < Duration::from_secs(5) {
        cut.batch_execute("insert into t values (1)").await.expect("a write without Redis");
        expected += 1;
        for _ in 0..3 {
            assert_eq!(rows(&other, text).await[0][0].as_deref(), Some(&*expected.to_string()));
        }
    }
    link.heal();
    fleet.warm("postgres", text).await;
    assert_eq!(rows(&other, text).await[0][0].as_deref(), Some(&*expected.to_string()));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pgherd_that_is_alone_writes_before_it_has_reached_redis() {
    let Some(redis) = redis() else { return };
    redis.kill9().expect("killed");
    let database = fresh_database().await;
    database.execute(SCENE).await;
    let plan = Plan { users: vec!["postgres".into()], redis: vec![redis.url()], ..Plan::default() };
    let first = Fleet::start(&database, &plan).await;
    let writer = first.client(0, "postgres").await;
    eventually(Duration::from_secs(20), "it knows that it is alone", || async {
        writer.batch_execute("insert into t values (1)").await.is_ok()
    })
    .await;
    let second = Fleet::start(&database, &plan).await;
    redis.restart().expect("restarted");
    let text = "select sum(a) from t";
    second.warm("postgres", text).await;
    first.warm("postgres", text).await;
    let (reader, truth) = (second.client(0, "postgres").await, database.client().await);
    for _ in 0..10 {
        writer.batch_execute("insert into t values (1)").await.expect("a write");
        assert_eq!(rows(&reader, text).await, rows(&truth, text).await);
    }
    first.stop().await;
    second.stop().await;
}
