//! Server connections over several pools: bounds that hold, and turns that nobody is kept from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::Client;

use super::{PATIENCE, limit, shown, told, toml};
use crate::harness::{self, Database, Pgherd, eventually};

/// pgherd's connections to a database, the most that a look saw at once.
async fn watch(database: &Database, stop: Arc<AtomicBool>) -> i64 {
    let straight = database.client().await;
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
                  and backend_type = 'client backend' and state is not null";
    let mut most = 0;
    while !stop.load(Ordering::Relaxed) {
        most = most.max(straight.query_one(sql, &[]).await.expect("a count").get(0));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    most
}

/// Clients of `flood` that never stop asking, until they are told to.
async fn flood(pgherd: &Pgherd, database: &str, clients: usize) -> (Arc<AtomicBool>, Arc<AtomicU32>) {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    for _ in 0..clients {
        let conninfo = pgherd.conninfo("flood", database);
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        tokio::spawn(async move {
            let client = harness::connect(&conninfo).await;
            while !stop.load(Ordering::Relaxed) {
                client.batch_execute("select pg_sleep(0.002)").await.expect("an answer");
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    eventually(PATIENCE, "the flood is there", async || done.load(Ordering::Relaxed) > clients as u32).await;
    (stop, done)
}

/// The longest of so many statements, one after the other.
async fn longest(client: &Client, statements: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..statements {
        let begun = Instant::now();
        timeout(PATIENCE, client.batch_execute("select 1")).await.expect("in time").expect("an answer");
        longest = longest.max(begun.elapsed());
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_users_flood_does_not_starve_another_under_any_bound() {
    for (pool, more, most) in [
        ("", "[limits]\nserver_connections = 4\n", 4),
        ("max_database_connections = 3", "", 3),
        ("", "[limits]\nserver_connections = 1\n", 1),
    ] {
        let database = harness::fresh_database().await;
        let pgherd = Pgherd::start(&toml(&database, pool, &["flood", "other"], more)).await;
        let (stop, done) = flood(&pgherd, &database.name, 30).await;
        let watching = tokio::spawn({
            let (database, stop) = (database.clone(), Arc::clone(&stop));
            async move { watch(&database, stop).await }
        });
        let other = timeout(PATIENCE, pgherd.client_as("other", &database.name)).await.expect("gets in");
        let (begun, before) = (Instant::now(), done.load(Ordering::Relaxed));
        let longest = longest(&other, 20).await;
        let (took, flooded) = (begun.elapsed(), done.load(Ordering::Relaxed) - before);
        // A few statements take less time than a login, which a connection that changes hands begins with.
        eventually(PATIENCE, "nor does the flood starve", async || {
            other.batch_execute("select 1").await.expect("an answer");
            done.load(Ordering::Relaxed) > before
        })
        .await;
        stop.store(true, Ordering::Relaxed);
        let seen = watching.await.expect("joined");
        eprintln!(
            "{pool}{more}: longest {longest:?}, 20 statements in {took:?}, {flooded} of the flood's, {seen} connections"
        );
        assert!(longest < Duration::from_secs(2), "{longest:?} under {pool}{more}");
        // A server process whose connection was just closed may be seen for a moment longer.
        assert!(seen <= most + 2, "{seen} connections under {pool}{more}");
        let turns = pgherd.metric("pgherd_pool_closes_total", "reason=\"turn\"").await;
        assert!(turns >= 1.0, "somebody gave way");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_idle_is_taken_for_who_waits_and_a_held_one_is_not() {
    let database = harness::fresh_database().await;
    let (name, more) = (&database.name, "[limits]\nserver_connections = 2\nreserved_server_connections = 1\n");
    let pgherd = Pgherd::start(&toml(&database, "acquire_timeout = \"1s\"", &["a", "b"], more)).await;
    let console = pgherd.client_as("boss", "pgherd").await;
    let of_a = [pgherd.client_as("a", name).await, pgherd.client_as("a", name).await];
    for client in &of_a {
        client.batch_execute("begin; select 1").await.expect("begun");
    }
    assert_eq!(limit(&console, "limits.server_connections").await["used"], "2");

    let error = harness::try_connect(&pgherd.conninfo("b", name)).await;
    let b = match error {
        // The settings of a login are known already: the wait is at the first statement.
        Ok(b) => {
            let error = b.batch_execute("select 1").await.expect_err("all are held");
            let (code, detail, hint) = told(&error);
            assert_eq!((code.as_str(), detail.contains("limits.server_connections")), ("53300", true), "{detail}");
            assert!(hint.contains("pool.acquire_timeout"), "{hint}");
            b
        }
        Err(error) => {
            let (code, detail, _) = told(&error);
            assert_eq!((code.as_str(), detail.contains("limits.server_connections")), ("53300", true), "{detail}");
            of_a[0].batch_execute("commit").await.expect("committed");
            let b = pgherd.client_as("b", name).await;
            of_a[0].batch_execute("begin; select 1").await.expect("begun again");
            b
        }
    };
    pgherd.client_as("boss", name).await.batch_execute("select 1").await.expect("the reserve is there for him");

    let waiting = tokio::spawn(async move { b.batch_execute("select 1").await.map(|()| b) });
    let waits = async || limit(&console, "limits.server_connections").await["waiting"] == "1";
    eventually(PATIENCE, "it is shown that one waits", waits).await;
    let pools = shown(&console, "show pools").await;
    let of_b = pools.iter().find(|row| row["user"] == "b").expect("a pool");
    assert_eq!(of_b["cl_waiting"], "1");
    let begun = Instant::now();
    of_a[0].batch_execute("commit").await.expect("committed");
    let b = waiting.await.expect("joined").expect("what nobody uses any more");
    assert!(begun.elapsed() < Duration::from_millis(900));
    drop(b);
    assert_eq!(of_a[1].query_one("select 7", &[]).await.expect("still his").get::<_, i32>(0), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_bound_spans_databases_and_a_reload_moves_it() {
    let databases = harness::fresh_databases(2).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    let text = |bound: u32| {
        let second = format!(
            "[[database]]\nname = \"{}\"\nprimary = \"{}\"\n[[user]]\nname = \"a\"\nauth = \"trust\"\nmax_server_connections = {bound}\n\
             [listen]\naddress = \"127.0.0.1:0\"\n",
            databases[1].name,
            databases[1].conninfo()
        );
        toml(&databases[0], "acquire_timeout = \"1s\"", &[], &second)
    };
    std::fs::write(&path, text(1)).expect("written");
    let pgherd = Pgherd::start_from(&path).await;
    let console = pgherd.client_as("boss", "pgherd").await;
    let one = pgherd.client_as("a", &databases[0].name).await;
    let other = pgherd.client_as("a", &databases[1].name).await;
    one.batch_execute("begin; select 1").await.expect("begun");
    let (code, detail, _) = told(&other.batch_execute("select 1").await.expect_err("he has one already"));
    assert_eq!((code.as_str(), detail.contains("user.max_server_connections")), ("53300", true), "{detail}");
    let waiting = tokio::spawn(async move { other.batch_execute("select 1").await });
    std::fs::write(&path, text(2)).expect("written");
    console.batch_execute("reload").await.expect("reloaded");
    waiting.await.expect("joined").expect("there is room now");
    one.batch_execute("commit").await.expect("the transaction under way went on");
}
