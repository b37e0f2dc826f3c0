//! What operators see of the cache, and what they can do to it: entries, purges, quarantines, figures.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd::sql::fingerprint::fingerprint;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::fleet::{Fleet, Plan, TOKEN, redis};
use super::stage::{From, Stage, rows};
use crate::harness::{eventually, fresh_database};

const SCENE: &str = "
create table t (a int, b text); insert into t select g, 'b' || g from generate_series(1, 10) g;
create table parts (a int) partition by list (a);
create table part_one partition of parts for values in (1); insert into parts values (1);
create view sums as select sum(a) from t;
create schema shop; create table shop.\"Odd One\" (a int); insert into shop.\"Odd One\" values (7);
";

const PATIENCE: Duration = Duration::from_secs(30);
const SUM: &str = "select sum(a) from t";

fn digits(text: &str) -> String {
    format!("{:032x}", fingerprint(text.as_bytes(), true).0)
}

/// What a SHOW shows, each row by its columns' names.
async fn shown(console: &Client, command: &str) -> Vec<BTreeMap<String, String>> {
    let messages = console.simple_query(command).await.unwrap_or_else(|error| panic!("{command}: {error:?}"));
    let row = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let cell = |(at, column): (usize, &tokio_postgres::SimpleColumn)| {
                (column.name().to_owned(), row.get(at).unwrap_or("NULL").to_owned())
            };
            Some(row.columns().iter().enumerate().map(cell).collect())
        }
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

async fn entry(console: &Client, text: &str) -> Option<BTreeMap<String, String>> {
    let wanted = digits(text);
    shown(console, "show cache entries").await.into_iter().find(|entry| entry["fingerprint"] == wanted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_shown_with_what_they_saved() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    let console = stage.fleet.console(0).await;
    let slow = "select a, pg_sleep_for_a_while(0.05) from t where a < 3";
    stage.database.execute("create function pg_sleep_for_a_while(float8) returns text immutable language sql as 'select pg_sleep($1)::text'").await;
    stage.cached(&client, slow).await;
    stage.cached(&client, SUM).await;
    for _ in 0..4 {
        rows(&client, SUM).await;
        // As often as the other: then what took longer has saved more, however slow the machine is.
        rows(&client, slow).await;
    }
    let all = shown(&console, "show cache entries").await;
    assert_eq!(all[0]["fingerprint"], digits(slow), "what saved most comes first: {all:?}");
    let sum = entry(&console, SUM).await.expect("an entry");
    assert_eq!((sum["tables"].as_str(), sum["rows"].as_str(), sum["pinned"].as_str()), ("public.t", "1", "0"));
    assert_eq!((&sum["database"], sum["current"].as_str()), (&stage.database.name, "1"));
    assert!(["strict", "ttl"].contains(&sum["freshness"].as_str()), "{sum:?}");
    let of = |name: &str| sum[name].parse::<u64>().expect("a number");
    assert!(of("hits") >= 5 && of("bytes") > 512 && of("remaining_ms") > 1000, "{sum:?}");
    assert_eq!(of("saved_us"), of("hits") * of("cost_us"));
    // What was written since is still there, until somebody asks or room is needed; it is not served.
    rows(&client, "insert into t values (90)").await;
    let is_old = async || entry(&console, SUM).await.is_some_and(|entry| entry["current"] == "0");
    eventually(PATIENCE, "it is not current", is_old).await;
    let figures = &shown(&console, "show cache").await[0];
    assert!(figures["saved_us"].parse::<u64>().expect("a number") >= 50_000, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_forgets_what_it_says_and_no_more() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    let console = stage.fleet.console(0).await;
    let odd = "select max(a) from shop.\"Odd One\"";
    let (parts, of_view) = ("select count(*) from parts", "select * from sums");
    let purge = async |command: &str, texts: &[&str], gone: &[bool]| {
        for text in texts {
            stage.cached(&client, text).await;
        }
        let answered = shown(&console, command).await;
        assert_eq!(answered[0]["entries"], gone.iter().filter(|gone| **gone).count().to_string(), "{command}");
        for (text, gone) in texts.iter().zip(gone) {
            let expected = if *gone { From::Filled } else { From::Cache };
            assert_eq!(stage.ask(&client, text).await.1, expected, "{command}: {text}");
        }
    };
    let name = &stage.database.name;
    purge("purge table t", &[SUM, of_view, odd], &[true, true, false]).await;
    purge(&format!("purge {name} table shop.\"Odd One\""), &[SUM, odd], &[false, true]).await;
    // A partition's rows are its parent's.
    purge("purge table public.part_one", &[SUM, parts], &[false, true]).await;
    purge("purge table parts", &[SUM, parts], &[false, true]).await;
    purge(&format!("purge statement {}", digits(SUM)), &[SUM, of_view], &[true, false]).await;
    rows(&console, &format!("purge {name}")).await;
    assert!(shown(&console, "show cache entries").await.is_empty());

    let code = async |command: &str| {
        let error = console.simple_query(command).await.expect_err(command);
        error.code().map(|code| code.code().to_owned()).unwrap_or_default()
    };
    assert_eq!(code("purge table nothing_of_that_name").await, "42P01");
    assert_eq!(code("purge elsewhere").await, "3D000");
    assert_eq!(code("purge table a.b.c").await, "42601");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_pgherd_is_told_to_forget_no_other_serves() {
    let Some(redis) = redis() else { return };
    let database = fresh_database().await;
    database.execute(SCENE).await;
    let plan = Plan {
        users: vec!["postgres".into()],
        cache: "olap_only = false".into(),
        redis: vec![redis.url(), redis.url()],
        ..Plan::default()
    };
    let fleet = Fleet::start(&database, &plan).await;
    fleet.warm("postgres", SUM).await;
    let (one, other) = (fleet.client(0, "postgres").await, fleet.client(1, "postgres").await);
    let console = fleet.console(0).await;
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let by_http = async |what: &str| {
        let (head, body) = fleet.http(0, &format!("POST /cache/purge{what}"), &bearer).await;
        assert!(head.starts_with("HTTP/1.1 200") && body.contains("\"entries\":"), "{head} {body}");
    };
    let statement = digits(SUM);
    for way in 0..6 {
        let before = fleet.stats(1);
        // Written past pgherd: nobody knows.
        database.execute("insert into t values (1)").await;
        let old = rows(&other, SUM).await;
        assert!(fleet.stats(1).fills == before.fills, "still what was cached");
        match way {
            0 => drop(rows(&console, "purge").await),
            1 => drop(rows(&console, "purge table t").await),
            2 => drop(rows(&console, &format!("purge statement {statement}")).await),
            3 => by_http("").await,
            4 => by_http(&format!("?database={}&table=public.t", database.name)).await,
            _ => by_http(&format!("?statement={statement}")).await,
        }
        let new = rows(&other, SUM).await;
        assert_ne!(new, old, "way {way}");
        assert_eq!(rows(&one, SUM).await, new, "way {way}");
    }
    let (head, _) = fleet.http(0, "POST /cache/purge", "Authorization: Bearer wrong\r\n").await;
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    let (head, body) = fleet.http(0, "POST /cache/purge?table=nothing", &bearer).await;
    assert!(head.starts_with("HTTP/1.1 404") && body.contains("is known"), "{head} {body}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantine_is_shown_and_lifted_and_everything_is_counted() {
    let cache = "olap_only = false\naudit_one_in = 1\n[cache.tables]\n\"public.parts\" = \"off\"";
    let stage = Stage::with(fresh_database().await, SCENE, &[], cache).await;
    let client = stage.client("postgres").await;
    let console = stage.fleet.console(0).await;
    stage.cached(&client, SUM).await;
    rows(&client, "select count(*) from parts").await;
    stage.database.execute("insert into t values (1000)").await;
    let is_found = || async {
        rows(&client, SUM).await;
        stage.fleet.stats(0).quarantined > 0
    };
    eventually(PATIENCE, "a check finds it", is_found).await;
    let quarantined = shown(&console, "show cache quarantine").await;
    assert_eq!(quarantined[0]["fingerprint"], digits(SUM));
    rows(&client, SUM).await;

    let (_, metrics) = stage.fleet.http(0, "GET /metrics", "").await;
    let value = |series: &str| {
        let of = format!("{}{{cache=\"{}\"", series.split('{').next().unwrap_or_default(), stage.database.name);
        let rest = series.split_once('{').map_or("", |(_, rest)| rest);
        let found = metrics.lines().find(|line| line.starts_with(&of) && line.contains(rest));
        found
            .and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{series}: {metrics}"))
    };
    assert!(value("pgherd_cache_audits_total{reason=\"different\"") >= 1.0);
    assert!(value("pgherd_cache_bypasses_total{reason=\"quarantine\"") >= 1.0);
    assert!(value("pgherd_cache_saved_seconds_total") > 0.0 && value("pgherd_cache_quarantined") == 1.0);
    assert!(value("pgherd_cache_memory_max_bytes") > value("pgherd_cache_memory_bytes"));
    assert!(metrics.contains("pgherd_cache_refusals_total{reason=\"table-rule\"}"), "{metrics}");

    rows(&console, &format!("purge statement {}", digits(SUM))).await;
    assert!(shown(&console, "show cache quarantine").await.is_empty());
    stage.cached(&client, SUM).await;
}
