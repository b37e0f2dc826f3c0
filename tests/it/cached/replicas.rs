//! Answers that a replica gives to be kept: only what the primary would have said.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI32};
use std::time::Duration;

use pgherd::commands::demo::servers::{PostgresOptions, PostgresServer};

use super::stage::{From, Stage, rows};
use crate::harness::{database_on, eventually, ground};

const PATIENCE: Duration = Duration::from_secs(20);
const SCENE: &str = "create table t (a int); insert into t select generate_series(1, 100)";

struct Pair {
    replica: PostgresServer,
    stage: Stage,
    primary: PostgresServer,
}

impl Pair {
    /// A primary, a replica with those settings, and a pgherd that reads from it.
    async fn set(settings: &[(&str, &str)]) -> Self {
        Self::with(settings, "").await
    }

    /// The same with more TOML in `[cache]`.
    async fn with(settings: &[(&str, &str)], cache: &str) -> Self {
        let primary = PostgresServer::start(ground(), &PostgresOptions::default()).expect("primary");
        let options =
            settings.iter().fold(PostgresOptions::default(), |options, (name, value)| options.set(name, value));
        let replica = primary.replica(&options).expect("replica");
        let stage = stage(&primary, &replica, cache).await;
        Self { replica, stage, primary }
    }

    async fn replica_says(&self, sql: &str, wanted: &str) {
        let says =
            || async { self.replica.sql(&self.stage.database.name, sql).is_ok_and(|told| says_just(&told, wanted)) };
        eventually(PATIENCE, sql, says).await;
    }

    /// From here on commits wait for that standby.
    async fn waits_for_standbys(&self, names: &str) {
        let of = format!("alter system set synchronous_standby_names = '{names}'");
        self.primary.sql("postgres", &of).expect("set");
        self.primary.sql("postgres", "select pg_reload_conf()").expect("reload");
        let is_so = || async {
            self.primary.sql("postgres", "show synchronous_standby_names").is_ok_and(|told| says_just(&told, names))
        };
        eventually(PATIENCE, "the primary has read it", is_so).await;
    }

    /// How often a replica gave an answer to keep, and how often the primary had to.
    fn counts(&self) -> (u64, u64) {
        let stats = self.stage.fleet.stats(0);
        (stats.replica_fills, stats.replica_fallbacks)
    }
}

/// Whether that is all that was told.
fn says_just(told: &[Vec<Option<String>>], wanted: &str) -> bool {
    told.first().and_then(|row| row.first()?.as_deref()) == Some(wanted)
}

async fn stage(primary: &PostgresServer, replica: &PostgresServer, cache: &str) -> Stage {
    let database = database_on(primary).await;
    let replicas = format!("host=127.0.0.1 port={} dbname={}", replica.port(), database.name);
    let more = format!("replicas = [\"{replicas}\"]\nreads = \"replica\"\n");
    Stage::with_database(database, SCENE, &[], &format!("olap_only = false\n{cache}"), &more).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_fills_what_it_has_replayed() {
    let pair = Pair::set(&[]).await;
    pair.replica_says("select count(*) from t", "100").await;
    let client = pair.stage.client("postgres").await;
    let text = "select sum(a) from t";
    // WAL that no commit has waited for, of a checkpoint say, may take its time to be flushed: then the primary is asked, and for a second replicas
    // are left in peace.
    let added = AtomicI32::new(0);
    eventually(PATIENCE, "a replica fills", || async {
        assert_eq!(pair.stage.cached(&client, text).await, pair.stage.truth(text).await);
        let a = added.fetch_add(1, SeqCst);
        let below_two = client.query_one("select count(*) from t where a < $1", &[&2]).await.expect("a row");
        assert_eq!(below_two.get::<_, i64>(0), i64::from(a) + 1);
        client.batch_execute("insert into t values (0)").await.expect("insert");
        pair.counts().0 > 0
    })
    .await;
    let told = rows(&client, &format!("explain (route) {text}")).await;
    assert!(told.contains(&vec![Some("filled from".into()), Some("a replica".into())]), "{told:?}");

    // One that is behind, or gone, fills nothing.
    pair.replica_says("select pg_wal_replay_pause()", "").await;
    let counts = pair.counts();
    client.batch_execute("insert into t values (2000)").await.expect("insert");
    assert_eq!(pair.stage.cached(&client, text).await, pair.stage.truth(text).await);
    assert_eq!(pair.counts().0, counts.0);
    assert!(pair.counts().1 > counts.1);
    pair.replica_says("select pg_wal_replay_resume()", "").await;
    drop(pair.replica);
    client.batch_execute("insert into t values (3000)").await.expect("insert");
    assert_eq!(pair.stage.cached(&client, text).await, pair.stage.truth(text).await);
    assert_eq!(pair.stage.fleet.stats(0).replica_fills, counts.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_would_say_something_else_is_not_asked() {
    let pair = Pair::set(&[("extra_float_digits", "0")]).await;
    pair.replica_says("select count(*) from t", "100").await;
    let client = pair.stage.client("postgres").await;
    let text = "select sum(a / 3.0::float8) from t";
    assert_ne!(pair.replica.sql(&pair.stage.database.name, text).ok(), Some(pair.stage.truth(text).await));
    assert_eq!(pair.stage.cached(&client, text).await, pair.stage.truth(text).await);
    assert_eq!(pair.counts().0, 0);
    assert!(pair.counts().1 > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_replica_fails_the_primary_answers() {
    // As a conflict with recovery does, this ends what takes long.
    let pair = Pair::set(&[("statement_timeout", "60ms")]).await;
    pair.replica_says("select count(*) from t", "100").await;
    let client = pair.stage.client("postgres").await;
    let text = "select count(*) from t, generate_series(1, 20000)";
    let before = pair.counts();
    assert_eq!(pair.stage.ask(&client, text).await, (vec![vec![Some("2000000".into())]], From::Filled));
    assert_eq!(pair.counts(), (before.0, before.1 + 1));
    let error = client.simple_query("select sum(1 / (a - 50)) from t").await.expect_err("a division by zero");
    assert_eq!(error.code().map(|code| code.code()), Some("22012"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_while_a_replica_reads_is_not_missed() {
    let pair = Pair::set(&[]).await;
    pair.replica_says("select count(*) from t", "100").await;
    let (reader, writer) = (pair.stage.client("postgres").await, pair.stage.client("postgres").await);
    let text = "select count(*) from t, generate_series(1, 60000)";
    let active = "select count(*) > 0 from pg_stat_activity where query like '%60000%' and state = 'active' and pid <> pg_backend_pid()";
    for round in 1..=30 {
        let (_, before) = pair.counts();
        let (answer, overtaken) = tokio::join!(rows(&reader, text), async {
            for _ in 0..200 {
                if pair.replica.sql(&pair.stage.database.name, active).is_ok_and(|told| says_just(&told, "t")) {
                    writer.batch_execute("insert into t values (0)").await.expect("insert");
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            false
        });
        let _ = answer;
        assert_eq!(rows(&writer, text).await, pair.stage.truth(text).await);
        if overtaken && pair.counts().1 > before {
            return;
        }
        writer.batch_execute("insert into t values (0)").await.expect("insert");
        assert!(round < 30, "a write never came between: {:?}", pair.counts());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_another_server_is_not_asked() {
    let (ours, theirs) = (
        PostgresServer::start(ground(), &PostgresOptions::default()).expect("ours"),
        PostgresServer::start(ground(), &PostgresOptions::default()).expect("theirs"),
    );
    let replica = theirs.replica(&PostgresOptions::default()).expect("replica");
    let stage = stage(&ours, &replica, "").await;
    let name = &stage.database.name;
    theirs.sql("postgres", &format!("create database {name}")).expect("database");
    theirs.sql(name, "create table t (a int); insert into t values (-1)").expect("another table");
    // Both come from one copy, as a system's identifier shows. Its WAL is longer.
    for _ in 0..4 {
        theirs.sql(name, "insert into t select 1 from generate_series(1, 10000); select pg_switch_wal()").expect("WAL");
    }
    let has_it = || async { replica.sql(name, "select count(*) from t").is_ok_and(|told| says_just(&told, "40001")) };
    eventually(PATIENCE, "the replica has replayed", has_it).await;
    let client = stage.client("postgres").await;
    let text = "select sum(a) from t";
    assert_eq!(stage.cached(&client, text).await, vec![vec![Some("5050".into())]]);
    let stats = stage.fleet.stats(0);
    assert_eq!(stats.replica_fills, 0);
    assert!(stats.replica_fallbacks > 0, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_larger_than_an_entry_comes_from_the_primary() {
    let pair = Pair::with(&[], "max_entry = \"64KiB\"").await;
    pair.replica_says("select count(*) from t", "100").await;
    let client = pair.stage.client("postgres").await;
    let text = "select repeat('x', 10000), max(a) from t group by a order by 2";
    let before = pair.counts();
    assert_eq!(pair.stage.ask(&client, text).await, (pair.stage.truth(text).await, From::Primary));
    assert_eq!(pair.counts(), (before.0, before.1 + 1));
    // That is known the next time.
    assert_eq!(rows(&client, text).await.len(), 100);
    assert_eq!(pair.counts(), (before.0, before.1 + 1));
}

/// A commit that waits for a synchronous standby is seen on a replica already, and by nobody on the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_shows_before_the_primary_does_is_given_to_nobody() {
    let pair = Pair::set(&[]).await;
    pair.replica_says("select count(*) from t", "100").await;
    let direct = pair.stage.database.client().await;
    direct.batch_execute("set synchronous_commit = local; create table other (a int)").await.expect("create");
    let (reader, writer) = (pair.stage.client("postgres").await, pair.stage.client("postgres").await);
    let text = "select count(*) from t";
    for _ in 0..4 {
        let nothing = "delete from t where a = -1";
        let before = pair.counts();
        let mut old = Vec::new();
        while pair.counts().0 == before.0 {
            writer.batch_execute(nothing).await.expect("a write that changes nothing");
            old = pair.stage.cached(&reader, text).await;
        }
        writer.batch_execute(nothing).await.expect("a write that changes nothing");
        // The reader finds nothing kept, and a replica that has to catch up.
        pair.replica_says("select pg_wal_replay_pause()", "").await;
        pair.waits_for_standbys("nobody").await;
        direct.batch_execute("insert into other values (1)").await.expect("insert");
        let is_released = AtomicBool::new(false);
        let reading = async { (rows(&reader, text).await, is_released.load(SeqCst)) };
        let ((answer, was_released), ()) = tokio::join!(reading, async {
            let asked = "select count(*) > 0 from pg_stat_activity \
                         where query like '%pg_control_recovery() r' and query_start > now() - interval '20 ms'";
            let name = &pair.stage.database.name;
            // It waits for a fifth of a second; where it is gone by now there is nothing to see.
            let _ = (0..20).any(|_| pair.replica.sql(name, asked).is_ok_and(|told| says_just(&told, "t")));
            let commit = writer.batch_execute("insert into t values (7)");
            let meanwhile = async {
                let sleeps = "select count(*) > 0 from pg_stat_activity where wait_event = 'SyncRep'";
                eventually(PATIENCE, "the commit waits", || async {
                    pair.primary.sql("postgres", sleeps).is_ok_and(|told| says_just(&told, "t"))
                })
                .await;
                pair.replica_says("select pg_wal_replay_resume()", "").await;
                let has_it = format!("select count(*) > {} from t", old[0][0].as_deref().unwrap_or_default());
                pair.replica_says(&has_it, "t").await;
                assert_eq!(rows(&pair.stage.client("postgres").await, text).await, old, "nobody sees it yet");
                is_released.store(true, SeqCst);
                pair.waits_for_standbys("").await;
            };
            let (done, ()) = tokio::join!(commit, meanwhile);
            done.expect("committed");
        });
        assert!(was_released || answer == old, "seen before its commit: {answer:?} after {old:?}");
    }
}
