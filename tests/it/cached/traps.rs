//! What caches in front of PostgreSQL get wrong: one story for each kind of mistake. Where a kind has a file of its own, its
//! story here is the shortest one that would show it.
//!
//! | mistake | stories |
//! |---|---|
//! | role, privileges, REVOKE | `a_privilege_taken_away_past_pgherd`, `identity::what_is_revoked_is_not_served_any_more`, `identity::each_role_has_answers_of_its_own` |
//! | row-level security | `tenants` |
//! | search_path | `identity::a_name_means_what_the_search_path_says`, `a_statement_that_was_prepared_under_another_search_path` |
//! | settings that change the text | `identity::settings_that_change_the_text_are_part_of_the_question` |
//! | formats and types | `identity::formats_types_and_values_of_parameters_are_part_of_the_question` |
//! | volatile and stable functions | `conduct::explain_route_says_why`, `what_depends_on_the_moment_is_never_kept` |
//! | temporary, unlogged, foreign, system tables, locks, samples, `SELECT INTO`, writing CTEs | `relations_that_have_no_epoch`, `reads_that_write`, `conduct::a_temporary_table_stands_in_front` |
//! | own writes | `visible::transactions_see_their_own_rows_and_nobody_elses` |
//! | a slow fill that a commit overtakes | `a_fill_that_a_commit_overtakes` |
//! | writes that are not seen | `visible::writes_that_reach_further_than_their_text`, `conduct::an_answer_grows_only_so_old` |
//! | a fill from a replica that lags | `a_replica_that_lags_fills_nothing` |
//! | parts, errors, notices | `conduct::errors_notices_and_parts_are_not_kept` |
//! | answers without an order | `an_answer_without_an_order_is_the_same_again` |
//! | Redis late, gone, damaged, shared with another version; keys that collide | `cache::tests::{fleet, loss}`, `cache::tests::memory::keys_of_one_hash_do_not_answer_for_each_other` |
//! | DDL | `visible::changes_of_the_catalog`, `visible::a_new_column_comes_with_its_description` |

use std::time::Duration;

use pgherd::commands::demo::servers::{PostgresOptions, PostgresServer};

use super::stage::{From, Stage, rows};
use crate::harness::{Database, database_on, eventually, fresh_database, ground, unique};

const SCENE: &str = "
create table t (a int, b text); insert into t select g, 'b' || g from generate_series(1, 10) g;
create unlogged table unlogged (a int);
create foreign data wrapper nowhere; create server nowhere foreign data wrapper nowhere;
create foreign table far (a int) server nowhere;
create view over_far as select a from far;
create sequence numbers;
create materialized view stored as select sum(a) as a from t;
create function waits(n bigint) returns bigint language plpgsql immutable as
  'begin perform pg_advisory_xact_lock_shared(20261124); return n; end';
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_privilege_taken_away_past_pgherd() {
    let ann = unique("ann");
    let sql = format!(
        "create role {ann} login; create role {ann}_group; grant {ann}_group to {ann};
         create table secrets (a int); insert into secrets values (1); grant select on secrets to {ann}_group;"
    );
    let stage = Stage::set(&sql, &[&ann]).await;
    let as_ann = stage.client(&ann).await;
    let text = "select sum(a) from secrets";
    // In another database of the server, by somebody who knows nothing of pgherd.
    let elsewhere = fresh_database().await;
    let version = elsewhere.client().await.query_one("select current_setting('server_version_num')::int", &[]).await;
    // Since PostgreSQL 16 it is each membership that is inherited or not.
    let inherit = match version.expect("a version").get::<_, i32>(0) {
        160_000.. => ["false", "true"].map(|it| format!("grant {ann}_group to {ann} with inherit {it}")),
        _ => ["noinherit", "inherit"].map(|it| format!("alter role {ann} {it}")),
    };
    let member = [format!("revoke {ann}_group from {ann}"), format!("grant {ann}_group to {ann}")];
    for [taken, given] in [member, inherit] {
        stage.cached(&as_ann, text).await;
        elsewhere.execute(&taken).await;
        eventually(Duration::from_secs(40), "the answer is refused", || async {
            as_ann.simple_query(text).await.is_err()
        })
        .await;
        elsewhere.execute(&given).await;
        eventually(Duration::from_secs(5), "the answer is given", || async { as_ann.simple_query(text).await.is_ok() })
            .await;
    }
    stage.cached(&as_ann, text).await;
    stage.database.execute(&format!("revoke select on secrets from {ann}_group")).await;
    eventually(Duration::from_secs(40), "the answer is refused", || async { as_ann.simple_query(text).await.is_err() })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_was_prepared_under_another_search_path() {
    let sql = "create schema one; create table one.t as select 'one' as v; create schema two; create table two.t as select 'two' as v;";
    let stage = Stage::set(sql, &[]).await;
    let client = stage.client("postgres").await;
    let read = async |path: &str, statement: &tokio_postgres::Statement| {
        client.batch_execute(&format!("set search_path to {path}")).await.expect("set");
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(client.query_one(statement, &[]).await.expect("a row").get::<_, String>(0));
        }
        seen
    };
    client.batch_execute("set search_path to one").await.expect("set");
    let statement = client.prepare("select max(v) from t").await.expect("prepared");
    for path in ["one", "two", "one", "two"] {
        assert_eq!(read(path, &statement).await, [path; 3]);
    }
    assert!(stage.fleet.hits() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_depends_on_the_moment_is_never_kept() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    for text in [
        "select current_date, count(*) from t",
        "select localtime, count(*) from t",
        "select count(*) from t where now() > '2020-01-01'",
        "select count(*) from t where 'today'::date > '2020-01-01'",
        "select count(*), pg_backend_pid() from t",
        "select count(*), txid_current() from t",
        "select count(*) from t, (select statement_timestamp()) moment",
    ] {
        rows(&client, text).await;
        assert_eq!(stage.ask(&client, text).await.1, From::Primary, "{text}");
        assert!(stage.why(&client, text).await.starts_with("primary: "), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relations_that_have_no_epoch() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    for (text, code) in [
        ("select count(*) from unlogged", "unlogged-table"),
        ("select count(*) from far", "foreign-table"),
        ("select count(*) from over_far", "foreign-table"),
        ("select count(*) from t, pg_class", "system-catalog"),
        ("select count(*) from information_schema.tables", "system-catalog"),
        ("select last_value from numbers", "not-a-table"),
        ("select count(*) from t tablesample bernoulli (50)", "sample"),
        ("select a from t where a < 3 for share", "row-locks"),
        ("with locked as (select a from t for update) select count(*) from locked", "row-locks"),
        ("select max(xmin::text) from t", "system-columns"),
    ] {
        assert_eq!(stage.why(&client, text).await, format!("primary: {code}"), "{text}");
    }
    // A materialized view is as fresh as its last REFRESH, and is kept until the next.
    let before = stage.cached(&client, "select a from stored").await;
    client.batch_execute("insert into t values (100)").await.expect("insert");
    assert_eq!(rows(&client, "select a from stored").await, before);
    client.batch_execute("refresh materialized view stored").await.expect("refresh");
    assert_ne!(rows(&client, "select a from stored").await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_write() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    let sum = "select sum(a) from t";
    for (number, text) in [
        "with gone as (delete from t where a = 1 returning a) select count(*) from gone",
        "with new as (insert into t values (50) returning a) select a from new",
        "select nextval('numbers'), sum(a) from t",
        "select a into copied from t",
        "create table copied_too as select a from t",
    ]
    .into_iter()
    .enumerate()
    {
        let before = stage.cached(&client, sum).await;
        let (_, from) = stage.ask(&client, text).await;
        assert_eq!(from, From::Primary, "{text}");
        assert_eq!(rows(&client, sum).await, stage.truth(sum).await, "{text}");
        assert_eq!(rows(&client, sum).await != before, number < 2, "{text}");
    }
    assert_eq!(
        stage.cached(&client, "select count(*) from copied").await,
        stage.truth("select count(*) from copied").await
    );
}

/// The fill's snapshot is older than the commit, and its answer comes after: whoever waits for it may have it, nobody later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_that_a_commit_overtakes() {
    let stage = Stage::set(SCENE, &[]).await;
    let (filler, writer, holder) =
        (stage.client("postgres").await, stage.client("postgres").await, stage.database.client().await);
    let text = "select waits(sum(a)) from t";
    stage.cached(&filler, text).await;
    for round in 1..=3 {
        writer.batch_execute(&format!("insert into t values ({round}000)")).await.expect("insert");
        holder.batch_execute("begin; select pg_advisory_xact_lock(20261124)").await.expect("held");
        let filling = rows(&filler, text);
        let overtaking = async {
            let waiting =
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'advisory'";
            eventually(Duration::from_secs(20), "the fill is under way", || async {
                stage.truth(waiting).await[0][0].as_deref() == Some("1")
            })
            .await;
            writer.batch_execute("insert into t values (1)").await.expect("overtaken");
            holder.batch_execute("commit").await.expect("let go");
        };
        let (old, ()) = tokio::join!(filling, overtaking);
        let truth = stage.truth("select sum(a) from t").await;
        assert_ne!(old, truth, "its snapshot was older");
        for _ in 0..3 {
            assert_eq!(rows(&filler, text).await, truth, "round {round}");
        }
    }
    let stats = stage.fleet.stats(0);
    // The insert before may still have been in doubt when a fill began: then nothing was to be kept from the first.
    assert!(stats.rejected_stale >= 1 && stats.rejected_stale + stats.bypass_doubt >= 3, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lags_fills_nothing() {
    let primary = PostgresServer::start(ground(), &PostgresOptions::default()).expect("primary");
    let replica = primary.replica(&PostgresOptions::default()).expect("replica");
    let database: Database = database_on(&primary).await;
    let replicas = format!("host=127.0.0.1 port={} dbname={}", replica.port(), database.name);
    let stage = Stage::with_database(
        database,
        SCENE,
        &[],
        "olap_only = false",
        &format!("replicas = [\"{replicas}\"]\nreads = \"replica\"\n"),
    )
    .await;
    let client = stage.client("postgres").await;
    let text = "select sum(a) from t";
    stage.cached(&client, text).await;
    let pause = || async { replica.sql(&stage.database.name, "select pg_wal_replay_pause()").is_ok() };
    eventually(Duration::from_secs(20), "the replica has the database, and stops", pause).await;
    for _ in 0..3 {
        client.batch_execute("insert into t values (1000)").await.expect("insert");
        let truth = stage.truth(text).await;
        for _ in 0..3 {
            assert_eq!(rows(&stage.client("postgres").await, text).await, truth);
        }
        assert_eq!(stage.cached(&client, text).await, truth);
    }
}

/// PostgreSQL may give rows without ORDER BY in any order; from the cache they come as they came the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_an_order_is_the_same_again() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    let text = "select b, count(*) from t group by b";
    let first = stage.cached(&client, text).await;
    for _ in 0..5 {
        assert_eq!(stage.ask(&client, text).await, (first.clone(), From::Cache));
    }
}
