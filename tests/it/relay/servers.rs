//! Servers that die, are busy, or are wanted by too many; and pgherd's own end.

use std::time::{Duration, Instant};

use pgherd::commands::demo::servers::{PostgresOptions, PostgresServer};
use pgherd::wire::writer;
use tokio::time::timeout;

use super::proxy::{PATIENCE, Proxy};
use crate::harness::wire::{bind, rows, tags};
use crate::harness::{self, Pgherd, database_on, eventually};

/// Ends every server process of that database but the one that asks, and waits until each is gone with its sockets (pgherd may have
/// opened others by then, for its catalog).
async fn kill_all(straight: &tokio_postgres::Client) {
    let killed = straight
        .query_one(
            "select array_agg(pid) filter (where pg_terminate_backend(pid)) from pg_stat_activity
              where datname = current_database() and pid <> pg_backend_pid()",
            &[],
        )
        .await
        .expect("killed");
    let killed: Option<Vec<i32>> = killed.get(0);
    let killed = killed.expect("at least one to kill");
    let lives = |pid: &i32| std::fs::exists(format!("/proc/{pid}")).expect("proc");
    eventually(PATIENCE, "they are gone", async || !killed.iter().any(lives)).await;
}

#[tokio::test]
async fn a_server_that_died_while_idle_is_noticed_before_a_statement_is_sent() {
    let proxy = Proxy::start("max_connections = 3").await;
    let mut client = proxy.wire().await;
    let straight = proxy.database.client().await;
    for _ in 0..5 {
        client.query("select 1").await;
        kill_all(&straight).await;
        assert_eq!(rows(&client.query("select 1").await), [[Some("1".to_owned())]]);
    }
    proxy.examine().await;
}

#[tokio::test]
async fn a_server_that_dies_in_a_statement_or_a_transaction_ends_its_client_and_no_other() {
    let proxy = Proxy::start("max_connections = 3").await;
    let straight = proxy.database.client().await;
    let mut bystander = proxy.wire().await;
    for before in ["select pg_sleep(60)", "begin", "listen here"] {
        let mut client = proxy.wire().await;
        if before.contains("sleep") {
            client.say(|out| pgherd::wire::writer::query(out, before.as_bytes())).await;
            let running =
                "select 1 from pg_stat_activity where datname = current_database() and query like 'select pg_sleep%'";
            eventually(PATIENCE, "it runs", async || !straight.query(running, &[]).await.expect("query").is_empty())
                .await;
        } else {
            client.query(before).await;
        }
        kill_all(&straight).await;
        let last = timeout(PATIENCE, client.ended()).await.expect("told and closed");
        assert_eq!(tags(&last).trim_start_matches('T'), "E", "{before}: {last:?}");
        assert_eq!(last[last.len() - 1].field(b'C').as_deref(), Some("57P01"), "in the server's own words");
        assert_eq!(rows(&bystander.query("select 1").await), [[Some("1".to_owned())]], "{before}");
    }
    proxy.examine().await;
}

#[tokio::test]
async fn a_large_message_reaches_a_server_that_is_slow_to_read_it() {
    let database = harness::fresh_database().await;
    for tls in ["require", "disable"] {
        let address = format!("{} sslmode={tls}", database.address());
        let proxy = Proxy::at(database.clone(), &address, "max_connections = 1").await;
        let mut client = proxy.wire().await;
        let large = "x".repeat(8 << 20);
        let say = |out: &mut bytes::BytesMut| {
            use pgherd::wire::writer;
            for (text, value) in [("select pg_sleep(0.3)::text, $1::text", "small"), ("select 1, length($1)", &large)] {
                writer::parse(out, b"", text.as_bytes(), &[25]);
                bind(out, "", "", &[Some(value)], 0);
                writer::execute(out, b"", 0);
            }
            writer::sync(out);
        };
        client.say(say).await;
        let answers = timeout(PATIENCE, client.until_ready()).await.expect("answered");
        assert_eq!(rows(&answers)[1], [Some("1".to_owned()), Some((8 << 20).to_string())], "sslmode={tls}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_restarts_is_used_again() {
    let server = harness::start(&harness::options());
    let proxy = Proxy::before(database_on(&server).await, "max_connections = 3").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = proxy.wire().await;
        client.query("set work_mem to '1MB'").await;
        clients.push(client);
    }
    server.restart(pgherd::commands::demo::servers::StopMode::Fast).expect("restarted");
    for client in &mut clients {
        let shown = client.query("show work_mem").await;
        assert_eq!(rows(&shown), [[Some("1MB".to_owned())]]);
    }
    drop(clients);
    proxy.examine().await;
    proxy.stop().await;
}

#[tokio::test]
async fn clients_are_served_in_order_of_arrival_and_told_when_it_takes_too_long() {
    let proxy = Proxy::start("max_connections = 1, acquire_timeout = \"2s\"").await;
    let mut holder = proxy.wire().await;
    holder.query("begin").await;
    let mut waiting = Vec::new();
    for n in 0..5 {
        let mut client = proxy.wire().await;
        client
            .say(|out| pgherd::wire::writer::query(out, format!("select {n}, clock_timestamp()::text").as_bytes()))
            .await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        waiting.push(client);
    }
    holder.query("commit").await;
    let mut times = Vec::new();
    for client in &mut waiting {
        times.push(rows(&client.until_ready().await)[0][1].clone().expect("a time"));
    }
    assert!(times.is_sorted(), "{times:?}");

    holder.query("begin").await;
    let since = Instant::now();
    let late = waiting[0].query("select 1").await;
    assert_eq!((tags(&late).as_str(), late[0].field(b'C').as_deref()), ("EZ", Some("53300")));
    assert!(since.elapsed() >= Duration::from_secs(2));
    holder.query("commit").await;
    assert_eq!(rows(&waiting[0].query("select 1").await).len(), 1, "its session lives on");
    proxy.examine().await;
}

#[tokio::test]
async fn a_cancel_reaches_its_own_statement_and_none_after_it() {
    let proxy = Proxy::start("max_connections = 1").await;
    let mut client = proxy.wire().await;
    client.say(|out| pgherd::wire::writer::query(out, b"select pg_sleep(60)")).await;
    let straight = proxy.database.client().await;
    let running = "select 1 from pg_stat_activity where datname = current_database() and query like 'select pg_sleep%' and state = 'active'";
    eventually(PATIENCE, "it runs", async || !straight.query(running, &[]).await.expect("query").is_empty()).await;
    client.cancel().await;
    let answers = client.until_ready().await;
    assert_eq!(answers.iter().find(|it| it.tag == b'E').and_then(|it| it.field(b'C')).as_deref(), Some("57014"));

    // A storm of cancels of a client that runs nothing, while another uses the only server.
    let mut other = proxy.wire().await;
    for _ in 0..100 {
        let (answers, ()) = tokio::join!(other.query("select pg_sleep(0.001), 7"), client.cancel());
        assert_eq!(rows(&answers).len(), 1, "{answers:?}");
    }
    // And of one that sets, so that pgherd has something to run itself in between: its session lives.
    for _ in 0..100 {
        client.say(|out| pgherd::wire::writer::query(out, b"set work_mem to '1MB'")).await;
        client.cancel().await;
        client.until_ready().await;
    }
    assert_eq!(rows(&client.query("select 1").await).len(), 1);
    drop((client, other));
    proxy.examine().await;
}

#[tokio::test]
async fn timeouts_end_statements_transactions_and_idle_clients() {
    let proxy = Proxy::start(
        "max_connections = 2, query_timeout = \"300ms\", idle_transaction_timeout = \"300ms\", client_idle_timeout = \"1s\"",
    )
    .await;
    let mut client = proxy.wire().await;
    let answers = client.query("select pg_sleep(60)").await;
    assert_eq!(answers.iter().find(|it| it.tag == b'E').and_then(|it| it.field(b'C')).as_deref(), Some("57014"));
    client.query("begin").await;
    let last = timeout(PATIENCE, client.ended()).await.expect("ended");
    assert_eq!(last.last().and_then(|it| it.field(b'C')).as_deref(), Some("25P03"));
    let mut idle = proxy.wire().await;
    let last = timeout(PATIENCE, idle.ended()).await.expect("ended");
    assert_eq!(last.last().and_then(|it| it.field(b'C')).as_deref(), Some("57P05"));
    proxy.examine().await;
}

/// Those who are in a transaction may end it; those who are not are sent away, even if they hold a server.
#[tokio::test]
async fn a_drain_sends_idle_clients_away_and_lets_transactions_end() {
    let proxy = Proxy::start("max_connections = 4").await;
    let (mut idle, mut pinned, mut busy) = (proxy.wire().await, proxy.wire().await, proxy.wire().await);
    idle.query("select 1").await;
    pinned.query("listen here").await;
    busy.query("begin; create table t (a int)").await;
    let database = proxy.database.clone();
    let drained = tokio::spawn(proxy.drain(PATIENCE));
    for client in [&mut idle, &mut pinned] {
        let last = timeout(PATIENCE, client.ended()).await.expect("sent away");
        assert_eq!(last.last().and_then(|it| it.field(b'C')).as_deref(), Some("57P01"));
    }
    assert_eq!(tags(&busy.query("commit").await), "CZ");
    timeout(PATIENCE, busy.ended()).await.expect("sent away after its transaction");
    timeout(PATIENCE, drained).await.expect("drained").expect("in order");
    database.execute("insert into t values (1)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_behind_a_begin_that_fails_on_its_server_does_not_run_by_itself() {
    let primary = PostgresServer::start(harness::ground(), &PostgresOptions::default()).expect("primary");
    let database = database_on(&primary).await;
    // A standby refuses this BEGIN, as a cancel that comes early or a timeout can have any server do.
    let begin = "begin read write";
    let standby = primary.replica(&PostgresOptions::default()).expect("replica");
    eventually(PATIENCE, "it has the database", async || standby.sql(&database.name, "select 1").is_ok()).await;
    // Where there are shards a transaction begins on the server of its first statement.
    let shard = harness::fresh_database().await;
    let toml = format!(
        "[[database]]\nname = \"app\"\nprimary = \"host=127.0.0.1 port={} dbname={}\"\nshards = [\"{}\"]\n\
         [[database.table]]\nname = \"public.t\"\nshard_key = \"k\"\nmethod = \"hash\"\n\
         [[user]]\nname = \"postgres\"\nauth = \"trust\"\n",
        standby.port(),
        database.name,
        shard.conninfo()
    );
    let pgherd = Pgherd::start(&toml).await;
    for extended in [false, true] {
        let mut client = pgherd.wire("app").await;
        let told = client.query(begin).await;
        assert_eq!(tags(&told), "CZ", "before any server knows of it: {told:?}");
        let text = "select pg_advisory_lock(7)";
        client
            .say(|out| {
                if extended {
                    writer::parse(out, b"", text.as_bytes(), &[]);
                    bind(out, "", "", &[], 0);
                    writer::execute(out, b"", 0);
                    writer::sync(out);
                } else {
                    writer::query(out, text.as_bytes());
                }
            })
            .await;
        let told = timeout(PATIENCE, client.ended()).await.expect("told and closed");
        assert_eq!(tags(&told), "E", "nothing has run: {told:?}");
        let error = &told[0];
        assert_eq!(error.field(b'S').as_deref(), Some("FATAL"));
        assert_eq!(error.field(b'C').as_deref(), Some("08006"));
        assert!(error.field(b'D').is_some_and(|said| said.contains("during recovery")), "{told:?}");
    }
    // Others go on.
    let mut other = pgherd.wire("app").await;
    assert_eq!(tags(&other.query("begin isolation level repeatable read").await), "CZ");
    assert_eq!(rows(&other.query("select 1").await), [[Some("1".to_owned())]]);
    assert_eq!(tags(&other.query("commit").await), "CZ");
}
