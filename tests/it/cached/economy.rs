//! What is worth keeping, what rules say of it, who shares a fill and its failure, and checks of what is served.

use std::time::Duration;

use futures_util::future::join_all;
use pgherd::commands::demo::servers::StopMode;
use pgherd::sql::fingerprint::fingerprint;

use super::stage::{From, Stage, rows};
use crate::harness::{database_on, eventually, fresh_database, options, start};

const SCENE: &str = "
create table t (a int, b text); insert into t select g, 'b' || g from generate_series(1, 10) g;
create table never (a int); insert into never values (1);
create table often (a int); insert into often values (1);
";

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_by_table_and_by_statement() {
    let of = |text: &str| format!("{:032x}", fingerprint(text.as_bytes(), true).0);
    let (allowed, forbidden) = ("select max(a), 'allowed' from never", "select max(a), count(*) from t");
    let rules = format!(
        "olap_only = false\nmin_cost = \"1h\"\n[cache.tables]\n\"public.never\" = \"off\"\n\"public.often\" = \"1s\"\n\
         \"public.warm\" = \"pin\"\n[cache.statements]\n\"{}\" = \"pin\"\n\"{}\" = \"off\"\n",
        of(allowed),
        of(forbidden)
    );
    let stage = Stage::with(fresh_database().await, SCENE, &[], &rules).await;
    let client = stage.client("postgres").await;
    assert_eq!(stage.why(&client, "select sum(a) from never").await, "primary: table-rule");
    assert_eq!(stage.why(&client, forbidden).await, "primary: statement-rule");
    stage.cached(&client, allowed).await;
    // Nothing else has cost an hour.
    for _ in 0..3 {
        assert_eq!(stage.ask(&client, "select sum(a) from t").await.1, From::Primary);
    }
    assert!(stage.fleet.stats(0).rejected_cheap > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_may_be_left_out() {
    let stage = Stage::with(fresh_database().await, SCENE, &[], "olap_only = false\nin_transactions = \"never\"").await;
    let client = stage.client("postgres").await;
    let text = "select sum(a) from t";
    stage.cached(&client, text).await;
    client.batch_execute("begin").await.expect("begun");
    assert_eq!(stage.ask(&client, text).await.1, From::Primary);
    assert_eq!(stage.why(&client, text).await, "primary: in-transaction");
    client.batch_execute("commit").await.expect("committed");
    assert_eq!(stage.ask(&client, text).await.1, From::Cache);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_who_wait_share_a_failure_and_the_next_try_runs_again() {
    let stage = Stage::set(SCENE, &[]).await;
    let mut lock = stage.database.client().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.extend(join_all((0..100).map(|_| stage.client("postgres"))).await);
    }
    let before = stage.fleet.stats(0);
    let lock = lock.transaction().await.expect("begin");
    lock.batch_execute("lock table t in access exclusive mode; insert into t values (0)").await.expect("locked");
    let text = "select sum(100 / a) from t";
    let asking = join_all(clients.iter().map(|client| client.simple_query(text)));
    let watching = async {
        let all = || async { stage.fleet.stats(0).waits - before.waits >= 999 };
        eventually(PATIENCE, "all but one wait", all).await;
        let running = "select count(*) from pg_stat_activity where datname = current_database() and query like '%100 / a%' \
                       and wait_event_type = 'Lock'";
        let running = rows(&stage.database.client().await, running).await;
        lock.commit().await.expect("committed");
        running
    };
    let (answers, running) = tokio::join!(asking, watching);
    assert_eq!(running[0][0].as_deref(), Some("1"), "one execution");
    for answer in &answers {
        let error = answer.as_ref().expect_err("a division by zero");
        assert_eq!(error.code().map(|code| code.code()), Some("22012"), "{error:?}");
    }
    let after = stage.fleet.stats(0);
    assert_eq!((after.failed_fills - before.failed_fills, after.shared_failures - before.shared_failures), (1, 999));
    rows(&clients[0], "delete from t where a = 0").await;
    assert_eq!(stage.cached(&clients[1], text).await, stage.truth(text).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_fill_can_be_cancelled_alone() {
    let stage = Stage::set(SCENE, &[]).await;
    let mut lock = stage.database.client().await;
    let (filler, waiter) = (stage.client("postgres").await, stage.client("postgres").await);
    let before = stage.fleet.stats(0);
    let lock = lock.transaction().await.expect("begin");
    lock.batch_execute("lock table t in access exclusive mode").await.expect("locked");
    let text = "select sum(a), 'waited for' from t";
    let cancelling = async {
        let misses = || async { stage.fleet.stats(0).misses > before.misses };
        eventually(PATIENCE, "one fills", misses).await;
        let cancel = waiter.cancel_token();
        let cancelling = async {
            let waits = || async { stage.fleet.stats(0).waits > before.waits };
            eventually(PATIENCE, "the other waits", waits).await;
            cancel.cancel_query(tokio_postgres::NoTls).await.expect("cancelled");
        };
        let (waited, ()) = tokio::join!(waiter.simple_query(text), cancelling);
        let error = waited.expect_err("cancelled");
        assert_eq!(error.code().map(|code| code.code()), Some("57014"), "{error:?}");
        lock.commit().await.expect("committed");
    };
    let (filled, ()) = tokio::join!(rows(&filler, text), cancelling);
    assert_eq!(filled[0][0].as_deref(), Some("55"));
    assert_eq!(rows(&waiter, text).await, filled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_a_large_answer_slowly_holds_up_nobody() {
    let stage = Stage::with(fresh_database().await, SCENE, &[], "olap_only = false\nmax_entry = \"64MiB\"").await;
    let client = stage.client("postgres").await;
    let large = "select repeat('x', 4000000), a from t group by a order by a";
    let answer = stage.cached(&client, large).await;
    let mut slow = stage.wire().await;
    slow.say(|out| (0..3).for_each(|_| pgherd::wire::writer::query(out, large.as_bytes()))).await;
    for _ in 0..50 {
        assert_eq!(stage.ask(&client, "select sum(a) from t").await.0[0][0].as_deref(), Some("55"));
    }
    assert_eq!(stage.cached(&client, large).await, answer);
    for _ in 0..3 {
        let told = crate::harness::wire::rows(&slow.until_ready().await);
        assert_eq!(told, answer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_finds_an_answer_that_a_write_past_pgherd_made_wrong() {
    let stage = Stage::with(fresh_database().await, SCENE, &[], "olap_only = false\naudit_one_in = 1").await;
    let client = stage.client("postgres").await;
    let (text, other) = ("select sum(a) from t", "select sum(a) from often");
    stage.cached(&client, text).await;
    stage.cached(&client, other).await;
    let equal = || async {
        rows(&client, text).await;
        stage.fleet.stats(0).audits_equal > 0
    };
    eventually(PATIENCE, "a check finds nothing wrong", equal).await;
    assert_eq!(stage.fleet.stats(0).audits_different, 0);
    stage.database.execute("insert into t values (1000)").await;
    let found = || async {
        rows(&client, text).await;
        stage.fleet.stats(0).audits_different > 0
    };
    eventually(PATIENCE, "a check finds it", found).await;
    // Neither served nor kept any more; what else there is stays.
    for _ in 0..3 {
        let (answer, from) = stage.ask(&client, text).await;
        assert_eq!((answer[0][0].as_deref(), from), (Some("1055"), From::Primary));
    }
    stage.cached(&client, other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_answer_is_better_than_none_where_the_file_says_so() {
    for asked_for in [true, false] {
        let server = start(&options());
        let database = database_on(&server).await;
        let cache = format!("olap_only = false\nstale_on_error = {asked_for}");
        let stage = Stage::with_database(database, SCENE, &[], &cache, "").await;
        let client = stage.client("postgres").await;
        let text = "select sum(a) from t";
        let old = stage.cached(&client, text).await;
        rows(&client, "insert into t values (1000)").await;
        server.stop(StopMode::Immediate).expect("stopped");
        let answer = tokio::time::timeout(PATIENCE, client.simple_query(text)).await.expect("in time");
        if asked_for {
            answer.expect("an old answer");
            assert_eq!(rows(&client, text).await, old);
            assert!(stage.fleet.stats(0).stale_on_error > 0);
        } else {
            answer.expect_err("no answer");
        }
    }
}
