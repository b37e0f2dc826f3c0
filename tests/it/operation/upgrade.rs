//! The upgrade in place, with real processes: nobody is refused, and what was acknowledged is there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::NoTls;

use super::{PATIENCE, toml};
use crate::harness::serving::{Serving, free_port, get};
use crate::harness::{self, Database, eventually, ground, wait_until};

/// How long the load may go on, and a process may take to end.
const LONG: Duration = Duration::from_secs(40);

/// Where it listens, and the file that says so.
struct Place {
    port: u16,
    http: u16,
    folder: tempfile::TempDir,
}

impl Place {
    fn new(database: &Database, pool: &str) -> Self {
        let place = Self { port: free_port(), http: free_port(), folder: tempfile::tempdir().expect("a folder") };
        let listen = format!(
            "[listen]\naddress = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\nhandover = \"handover\"\nunix_socket_dir = \".\"\n",
            place.port, place.http
        );
        std::fs::write(place.file(), toml(database, pool, &["postgres"], &listen)).expect("written");
        place
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("proxy.toml")
    }

    fn conninfo(&self, database: &Database) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={}", self.port, database.name)
    }

    fn start(&self) -> Serving {
        Serving::start(&self.file())
    }

    fn is_ready(&self) -> bool {
        get(self.http, "/healthz/ready").starts_with("HTTP/1.1 200")
    }
}

/// What happened to clients that reconnect whenever they are sent away.
#[derive(Default)]
struct Tally {
    acknowledged: AtomicU64,
    connects: AtomicU64,
    refused: AtomicU64,
    sent_away: AtomicU64,
    probes_failed: AtomicU64,
}

struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Clients that insert, each statement a transaction, so many to a connection.
    fn start(conninfo: &str, http: u16, per_connection: &[u32]) -> Self {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
        let mut tasks = Vec::new();
        for (client, &per_connection) in per_connection.iter().enumerate() {
            let (conninfo, stop, tally) = (conninfo.to_owned(), Arc::clone(&stop), Arc::clone(&tally));
            tasks.push(tokio::spawn(async move { insert(client, &conninfo, per_connection, &stop, &tally).await }));
        }
        let (probing, probed) = (Arc::clone(&stop), Arc::clone(&tally));
        tasks.push(tokio::task::spawn_blocking(move || {
            while !probing.load(Ordering::Relaxed) {
                let answer = get(http, "/healthz/ready");
                if !answer.starts_with("HTTP/1.1 200") {
                    eprintln!("not ready: {answer:?}");
                    probed.probes_failed.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }));
        Self { stop, tally, tasks }
    }

    async fn end(self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            timeout(LONG, task).await.expect("in time").expect("joined");
        }
        self.tally
    }
}

async fn insert(client: usize, conninfo: &str, per_connection: u32, stop: &AtomicBool, tally: &Tally) {
    let mut number = 0_i64;
    while !stop.load(Ordering::Relaxed) {
        tally.connects.fetch_add(1, Ordering::Relaxed);
        let (session, connection) = match tokio_postgres::connect(conninfo, NoTls).await {
            Ok(connected) => connected,
            Err(error) => {
                eprintln!("refused: {error:?}");
                tally.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            }
        };
        tokio::spawn(connection);
        for _ in 0..per_connection {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            number += 1;
            let text = format!("insert into acknowledged values ({client}, {number})");
            if session.batch_execute(&text).await.is_err() {
                // Whether it was done is not known: the next one has another number.
                tally.sent_away.fetch_add(1, Ordering::Relaxed);
                break;
            }
            session.batch_execute(&format!("insert into told values ({client}, {number})")).await.ok();
            tally.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn tables(database: &Database) {
    database
        .execute("create table acknowledged (client int, number bigint); create table told (client int, number bigint)")
        .await;
}

/// What clients were told that it is done, and is not.
async fn lost(database: &Database) -> i64 {
    let sql =
        "select count(*) from (select client, number from told except select client, number from acknowledged) lost";
    database.client().await.query_one(sql, &[]).await.expect("a count").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restarts_under_load_refuse_nobody_and_lose_nothing() {
    let database = harness::fresh_database().await;
    tables(&database).await;
    let place = Place::new(&database, "max_connections = 8");
    let mut serving = place.start();
    wait_until(PATIENCE, "ready", || place.is_ready());
    let load = Load::start(&place.conninfo(&database), place.http, &[1, 1, 20, 20, u32::MAX, u32::MAX]);
    let pgbench = pgbench(&database, place.port, 6);
    for _ in 0..2 {
        let before = load.tally.acknowledged.load(Ordering::Relaxed);
        let work = async || load.tally.acknowledged.load(Ordering::Relaxed) > before + 50;
        eventually(PATIENCE, "clients work", work).await;
        let next = place.start();
        let code = tokio::task::spawn_blocking(move || (serving.ended(LONG), serving.log())).await.expect("joined");
        assert_eq!(code.0, Some(0), "{}", code.1);
        assert!(code.1.contains("another process has taken over"), "{}", code.1);
        serving = next;
    }
    let tally = load.end().await;
    let (worked, report) = timeout(LONG, pgbench).await.expect("in time").expect("joined");
    let figure = |count: &AtomicU64| count.load(Ordering::Relaxed);
    eprintln!(
        "two upgrades: {} acknowledged, {} connects, {} refused, {} sent away; pgbench: {}",
        figure(&tally.acknowledged),
        figure(&tally.connects),
        figure(&tally.refused),
        figure(&tally.sent_away),
        report.lines().filter(|line| line.contains("transactions")).collect::<Vec<_>>().join(", ")
    );
    assert!(worked && report.contains("number of failed transactions: 0 "), "{report}");
    assert_eq!((figure(&tally.refused), figure(&tally.probes_failed), lost(&database).await), (0, 0, 0));
    assert!(figure(&tally.sent_away) >= 2, "those who stay for ever are sent away");
    serving.signal("-TERM");
    assert_eq!(serving.ended(PATIENCE), Some(0), "{}", serving.log());
    assert!(!place.folder.path().join("handover").exists(), "it leaves nothing behind");
}

/// pgbench with a connection for each transaction.
fn pgbench(database: &Database, port: u16, seconds: u32) -> JoinHandle<(bool, String)> {
    let script = ground().folder().join(harness::unique("script"));
    std::fs::write(&script, "insert into acknowledged values (-1, 1);\n").expect("written");
    let mut command = tokio::process::Command::new(ground().binaries().postgres_program("pgbench"));
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string(), "-n", "-C", "-c", "4"]);
    command.args(["-T", &seconds.to_string(), "-f"]).arg(Path::new(&script)).arg(&database.name).kill_on_drop(true);
    tokio::spawn(async move {
        let output = command.output().await.expect("pgbench starts");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.success(), text)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_goes_on_over_an_upgrade_and_its_cancel_finds_it() {
    let database = harness::fresh_database().await;
    let place = Place::new(&database, "max_connections = 4");
    let mut old = place.start();
    wait_until(PATIENCE, "ready", || place.is_ready());
    let in_transaction = harness::connect(&place.conninfo(&database)).await;
    in_transaction.batch_execute("begin; create table made ()").await.expect("begun");
    let running = harness::connect(&place.conninfo(&database)).await;
    let cancel = running.cancel_token();
    let running = tokio::spawn(async move { running.batch_execute("select pg_sleep(60)").await });
    let straight = database.client().await;
    let sleeps = "select 1 from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(60)'";
    eventually(PATIENCE, "it runs", async || !straight.query(sleeps, &[]).await.expect("rows").is_empty()).await;

    let mut new = place.start();
    old.wait_for_log("another process has taken over");
    new.wait_for_log("took over");
    let through_the_file =
        format!("host={} port={} user=postgres dbname={}", place.folder.path().display(), place.port, database.name);
    harness::connect(&through_the_file).await.batch_execute("select 1").await.expect("the Unix socket goes along");
    cancel.cancel_query(NoTls).await.expect("sent");
    let error = timeout(PATIENCE, running).await.expect("in time").expect("joined").expect_err("cancelled");
    assert_eq!(error.code().map(|code| code.code()), Some("57014"), "{error:?}");
    assert!(old.is_running(), "a transaction is still open");
    in_transaction.batch_execute("commit").await.expect("committed by the old process");
    assert_eq!(old.ended(PATIENCE), Some(0), "{}", old.log());
    let made = straight.query("select 1 from pg_class where relname = 'made'", &[]).await.expect("rows");
    assert_eq!(made.len(), 1);
    assert!(place.folder.path().join(format!(".s.PGSQL.{}", place.port)).exists(), "the new one's file is left alone");
    new.wait_for_log("the process before this one has ended");
    assert!(new.is_running() && place.is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_for_the_sockets_and_does_not_take_over_changes_nothing() {
    let database = harness::fresh_database().await;
    let place = Place::new(&database, "max_connections = 4");
    let mut serving = place.start();
    wait_until(PATIENCE, "ready", || place.is_ready());
    let path = place.folder.path().join("handover");
    let stream = tokio::net::UnixStream::connect(&path).await.expect("connected");
    let sockets = pgherd::net::handover::receive(&stream).await.expect("sockets");
    let kinds: Vec<&str> = sockets.iter().filter_map(|(name, _)| name.split(' ').next()).collect();
    assert_eq!(kinds, ["http", "tcp", "unix"]);
    drop((stream, sockets));
    serving.wait_for_log("did not take over");
    harness::connect(&place.conninfo(&database)).await.batch_execute("select 1").await.expect("served");

    // A second process that cannot start: its file has a fault; and one that another program answers.
    let folder = tempfile::tempdir().expect("a folder");
    let listener = tokio::net::UnixListener::bind(folder.path().join("handover")).expect("bound");
    let text = std::fs::read_to_string(place.file()).expect("the file");
    std::fs::write(folder.path().join("proxy.toml"), text).expect("written");
    let mut other = Serving::start(&folder.path().join("proxy.toml"));
    let (mut answering, _) = listener.accept().await.expect("it asks");
    tokio::io::AsyncWriteExt::write_all(&mut answering, b"hello\n").await.expect("said");
    assert_eq!(other.ended(PATIENCE), Some(1), "{}", other.log());
    assert!(other.log().contains("cannot take over"), "{}", other.log());
    assert!(serving.is_running() && place.is_ready());
}
