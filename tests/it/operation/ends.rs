//! How a pgherd ends: readiness first, then idle clients, then the others at the end of their transactions; and with exit code 0.

use std::time::{Duration, Instant};

use super::{PATIENCE, shown, toml};
use crate::harness::serving::{Serving, free_port, get};
use crate::harness::{self, Database, eventually, try_connect, wait_until};

struct Scene {
    database: Database,
    port: u16,
    http: u16,
    serving: Serving,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn new(listen: &str) -> Self {
        let database = harness::fresh_database().await;
        let (port, http, folder) = (free_port(), free_port(), tempfile::tempdir().expect("a folder"));
        let listen = format!("[listen]\naddress = \"127.0.0.1:{port}\"\nhttp = \"127.0.0.1:{http}\"\n{listen}");
        let path = folder.path().join("proxy.toml");
        std::fs::write(&path, toml(&database, "max_connections = 3", &["postgres"], &listen)).expect("written");
        let serving = Serving::start(&path);
        let scene = Self { database, port, http, serving, _folder: folder };
        wait_until(PATIENCE, "ready", || scene.is_ready());
        scene
    }

    fn is_ready(&self) -> bool {
        get(self.http, "/healthz/ready").starts_with("HTTP/1.1 200")
    }

    fn conninfo(&self, user: &str, database: &str) -> String {
        format!("host=127.0.0.1 port={} user={user} dbname={database}", self.port)
    }

    async fn client(&self) -> tokio_postgres::Client {
        harness::connect(&self.conninfo("postgres", &self.database.name)).await
    }

    async fn console(&self) -> tokio_postgres::Client {
        harness::connect(&self.conninfo("boss", "pgherd")).await
    }

    async fn is_refused(&self) -> bool {
        try_connect(&self.conninfo("postgres", &self.database.name)).await.is_err()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_fails_readiness_first_and_lets_transactions_end() {
    let mut scene = Scene::new("drain_delay = \"1s\"\n").await;
    let (idle, busy) = (scene.client().await, scene.client().await);
    busy.batch_execute("begin; create table made ()").await.expect("begun");
    scene.serving.signal("-TERM");
    wait_until(PATIENCE, "it is not ready", || !scene.is_ready());
    assert!(get(scene.http, "/healthz/ready").contains("draining"));
    // Whoever has not heard of it yet is still served, and nobody is sent away.
    scene.client().await.batch_execute("select 1").await.expect("served");
    idle.batch_execute("select 1").await.expect("served");
    eventually(PATIENCE, "idle clients are sent away", async || idle.is_closed()).await;
    eventually(PATIENCE, "and no new ones are taken", async || scene.is_refused().await).await;
    assert!(scene.serving.is_running() && get(scene.http, "/healthz/live").starts_with("HTTP/1.1 200"));
    assert!(get(scene.http, "/metrics").contains("pgherd_clients"), "figures to the end");
    busy.batch_execute("select 2").await.expect("the transaction goes on");
    busy.batch_execute("commit").await.expect("and is committed");
    assert_eq!(scene.serving.ended(PATIENCE), Some(0), "{}", scene.serving.log());
    let made = scene.database.client().await.query("select 1 from pg_class where relname = 'made'", &[]).await;
    assert_eq!(made.expect("rows").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_never_ends_is_given_its_time_and_a_second_signal_gives_none() {
    let mut scene = Scene::new("shutdown_timeout = \"1s\"\n").await;
    let busy = scene.client().await;
    busy.batch_execute("begin; select 1").await.expect("begun");
    let begun = Instant::now();
    scene.serving.signal("-TERM");
    assert_eq!(scene.serving.ended(PATIENCE), Some(0), "{}", scene.serving.log());
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(scene.serving.log().contains("ending clients in mid-transaction"), "{}", scene.serving.log());
    eventually(PATIENCE, "its client is gone", async || busy.is_closed()).await;

    let mut scene = Scene::new("shutdown_timeout = \"60s\"\n").await;
    let busy = scene.client().await;
    busy.batch_execute("begin; select 1").await.expect("begun");
    scene.serving.signal("-TERM");
    scene.serving.wait_for_log("draining");
    assert!(scene.serving.is_running());
    scene.serving.signal("-TERM");
    assert_eq!(scene.serving.ended(PATIENCE), Some(0), "{}", scene.serving.log());
    assert!(scene.serving.log().contains("ending now"), "{}", scene.serving.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_cuts_the_drain_delay_short() {
    let mut scene = Scene::new("drain_delay = \"1h\"\n").await;
    let idle = scene.client().await;
    scene.serving.signal("-TERM");
    wait_until(PATIENCE, "it is not ready", || !scene.is_ready());
    scene.serving.signal("-TERM");
    assert_eq!(scene.serving.ended(PATIENCE), Some(0), "{}", scene.serving.log());
    eventually(PATIENCE, "its client is gone", async || idle.is_closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_ends_it_at_once_or_when_clients_have_left_or_when_transactions_have_ended() {
    let mut scene = Scene::new("").await;
    let (client, console) = (scene.client().await, scene.console().await);
    console.batch_execute("shutdown wait_for_clients").await.expect("told");
    eventually(PATIENCE, "no new clients", async || scene.is_refused().await).await;
    client.batch_execute("begin; select 1; commit; select 2").await.expect("who is there stays");
    assert!(scene.serving.is_running());
    drop(client);
    assert_eq!(scene.serving.ended(PATIENCE), Some(0), "{}", scene.serving.log());

    let mut scene = Scene::new("").await;
    let (idle, busy, console) = (scene.client().await, scene.client().await, scene.console().await);
    busy.batch_execute("begin; select 1").await.expect("begun");
    console.batch_execute("shutdown wait_for_servers").await.expect("told");
    eventually(PATIENCE, "idle clients are sent away", async || idle.is_closed()).await;
    busy.batch_execute("commit").await.expect("committed");
    assert_eq!(scene.serving.ended(PATIENCE), Some(0), "{}", scene.serving.log());

    let mut scene = Scene::new("").await;
    let (busy, console) = (scene.client().await, scene.console().await);
    busy.batch_execute("begin; select 1").await.expect("begun");
    assert_eq!(shown(&console, "show clients").await.len(), 1);
    console.batch_execute("shutdown").await.expect("told");
    assert_eq!(scene.serving.ended(PATIENCE), Some(0), "{}", scene.serving.log());
    eventually(PATIENCE, "everybody is gone", async || busy.is_closed() && console.is_closed()).await;
}
