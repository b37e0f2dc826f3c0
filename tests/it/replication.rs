//! Replication connections through the port, by PostgreSQL's own programs and by hand.

use std::process::Command;
use std::time::Duration;

use pgherd::commands::demo::servers::{Ground, PostgresServer};
use pgherd::wire::writer;
use tokio::time::timeout;

use crate::harness::wire::{WireClient, rows, tags};
use crate::harness::{self, Database, Pgherd, database_on, eventually, fresh_database, ground};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server with everything that replication wants, and a pgherd before one of its databases that allows it.
struct Stage {
    server: PostgresServer,
    database: Database,
    pgherd: Pgherd,
}

async fn stage() -> Stage {
    let options = harness::options().set("wal_level", "logical").set("wal_keep_size", "64MB");
    let server = tokio::task::spawn_blocking(move || harness::start(&options)).await.expect("a server");
    let database = database_on(&server).await;
    let (_, cert, key) = harness::certificates().paths();
    let pgherd = Pgherd::start(&format!(
        "[[database]]\nname = \"{}\"\nprimary = \"{} sslmode=require\"\nreplication = true\npool = {{ min_connections = 0 }}\n\
         [[user]]\nname = \"postgres\"\nauth = \"trust\"\nreplication = true\n\
         [[user]]\nname = \"guest\"\nauth = \"trust\"\n[admin]\nusers = [\"postgres\"]\n\
         [listen]\naddress = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n\
         tls = {{ mode = \"prefer\", cert = \"{}\", key = \"{}\" }}\n",
        database.name,
        database.address(),
        cert.display(),
        key.display()
    ))
    .await;
    Stage { server, database, pgherd }
}

impl Stage {
    fn conninfo(&self) -> String {
        self.pgherd.conninfo("postgres", &self.database.name)
    }

    /// A program of PostgreSQL's, told where pgherd is.
    fn program(&self, name: &str) -> Command {
        let mut command = ground().command(ground().binaries().postgres_program(name));
        command.args(["-h", "127.0.0.1", "-p", &self.pgherd.port.to_string(), "-U", "postgres"]);
        command
    }

    async fn lsn(&self) -> String {
        let row = self.database.client().await.query_one("select pg_current_wal_lsn()::text", &[]).await;
        row.expect("an lsn").get(0)
    }

    async fn raw(&self, kind: &str) -> WireClient {
        let mut client = WireClient::bare(self.pgherd.port).await;
        let parameters = [("user", "postgres"), ("database", self.database.name.as_str()), ("replication", kind)];
        client.startup(0x0003_0000, &parameters).await;
        for message in client.until_ready().await {
            assert_ne!(message.tag, b'E', "{message:?}");
            if message.tag == b'K' {
                client.key = message.body;
            }
        }
        client
    }

    /// A raw client that streams WAL.
    async fn streaming(&self) -> WireClient {
        let mut client = self.raw("true").await;
        let lsn = self.lsn().await;
        client.say(|out| writer::query(out, format!("START_REPLICATION PHYSICAL {lsn}").as_bytes())).await;
        client.expect("W").await;
        client
    }
}

async fn run(mut command: Command) {
    let ran = tokio::task::spawn_blocking(move || Ground::run(&mut command)).await.expect("joined");
    ran.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_made_by_pg_basebackup_and_streams_through_the_port() {
    let stage = stage().await;
    stage.database.execute("create table t as select n, repeat('x', 500) from generate_series(1, 20000) n").await;
    for sslmode in ["require", "disable"] {
        let conninfo = format!("{} sslmode={sslmode}", stage.conninfo());
        let options = harness::options();
        let replica =
            tokio::task::block_in_place(|| stage.server.replica_through(&conninfo, &options)).expect("a replica");
        stage.database.execute("insert into t values (0, 'behind the backup')").await;
        let copy = Database { name: stage.database.name.clone(), port: replica.port() };
        let client = copy.client().await;
        let count = "select count(*) from t where n > 0";
        assert_eq!(client.query_one(count, &[]).await.expect("counted").get::<_, i64>(0), 20_000, "sslmode={sslmode}");
        let streamed = "select 1 from t where n = 0";
        eventually(PATIENCE, "it streams", async || !client.query(streamed, &[]).await.expect("asked").is_empty())
            .await;
        stage.database.execute("delete from t where n = 0").await;
        let replication = format!("database=\"{}\"", stage.database.name);
        assert_eq!(stage.pgherd.metric("pgherd_replication_connections", &replication).await, 1.0);
        let console = stage.pgherd.client("pgherd").await;
        let clients = console.simple_query("show clients").await.expect("shown");
        let is_shown = clients.iter().any(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get("replication") == Some("physical"),
            _ => false,
        });
        assert!(is_shown, "SHOW CLIENTS shows it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_receivewal_and_pg_recvlogical_get_what_is_written() {
    let stage = stage().await;
    let folder = ground().server_folder("wal").expect("a folder");
    let start = stage.lsn().await;
    let mut slot = stage.program("pg_recvlogical");
    slot.args(["-d", &stage.database.name, "--slot", "through", "--create-slot", "-P", "test_decoding"]);
    run(slot).await;
    stage
        .database
        .execute("create table t (a int); insert into t select generate_series(1, 1000); select pg_switch_wal()")
        .await;
    stage.database.execute("insert into t values (4711)").await;
    let end = stage.lsn().await;

    let mut wal = stage.program("pg_receivewal");
    wal.arg("-D").arg(&folder).args(["--no-loop", "--no-sync", "--endpos", &end]);
    run(wal).await;
    let received: Vec<_> =
        std::fs::read_dir(&folder).expect("a folder").map(|it| it.expect("a file").file_name()).collect();
    assert!(!received.is_empty(), "segments from {start} to {end}");

    let changes = folder.join("changes");
    let mut logical = stage.program("pg_recvlogical");
    logical.args(["-d", &stage.database.name, "--slot", "through", "--start", "--no-loop", "--endpos", &end, "-f"]);
    logical.arg(&changes);
    run(logical).await;
    let text = std::fs::read_to_string(&changes).expect("changes");
    assert_eq!(text.matches("INSERT").count(), 1001, "{}", &text[..text.len().min(500)]);
    assert!(text.contains("a[integer]:4711"));
    let mut drop = stage.program("pg_recvlogical");
    drop.args(["-d", &stage.database.name, "--slot", "through", "--drop-slot"]);
    run(drop).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_subscribes_through_the_port() {
    let stage = stage().await;
    let subscriber = fresh_database().await;
    let table = "create table t (a int primary key, b text)";
    stage
        .database
        .execute(&format!(
            "{table}; insert into t select n, 'old' from generate_series(1, 5000) n; create publication p for table t"
        ))
        .await;
    subscriber.execute(table).await;
    let name = harness::unique("subscription");
    subscriber
        .client()
        .await
        .batch_execute(&format!("create subscription {name} connection '{}' publication p", stage.conninfo()))
        .await
        .expect("subscribed");
    let client = subscriber.client().await;
    let count = async |of: &str| {
        let sql = format!("select count(*) from t where b = '{of}'");
        client.query_one(&sql, &[]).await.expect("counted").get::<_, i64>(0)
    };
    eventually(PATIENCE, "the copy is there", async || count("old").await == 5000).await;
    let writer = stage.pgherd.client(&stage.database.name).await;
    writer
        .batch_execute("insert into t values (0, 'new'); update t set b = 'new' where a <= 10")
        .await
        .expect("written");
    eventually(PATIENCE, "changes come", async || count("new").await == 11).await;
    client.batch_execute(&format!("alter subscription {name} disable")).await.expect("disabled");
    client.batch_execute(&format!("drop subscription {name}")).await.expect("dropped");
    let slots = "select 1 from pg_replication_slots";
    assert!(stage.database.client().await.query(slots, &[]).await.expect("slots").is_empty(), "and its slot with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_sql_and_cancel_work_by_hand() {
    let stage = stage().await;
    let mut client = stage.raw("database").await;
    let system = rows(&client.query("IDENTIFY_SYSTEM").await);
    assert_eq!(system[0][3].as_deref(), Some(stage.database.name.as_str()));
    assert_eq!(rows(&client.query("select 1").await), [[Some("1".to_owned())]]);
    client.say(|out| writer::query(out, b"select pg_sleep(60)")).await;
    let straight = stage.database.client().await;
    let running = "select 1 from pg_stat_activity where state = 'active' and query = 'select pg_sleep(60)'";
    eventually(PATIENCE, "it runs", async || !straight.query(running, &[]).await.expect("asked").is_empty()).await;
    client.cancel().await;
    let answer = client.until_ready().await;
    assert_eq!(answer.iter().find(|it| it.tag == b'E').and_then(|it| it.field(b'C')).as_deref(), Some("57014"));
    client.say(writer::terminate).await;
    assert!(client.ended().await.is_empty());
    let gone = "select 1 from pg_stat_replication";
    eventually(PATIENCE, "its server process is gone", async || {
        straight.query(gone, &[]).await.expect("asked").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_replicate_is_told_so() {
    let stage = stage().await;
    let closed = Pgherd::over(&stage.database, "pool = { min_connections = 0 }").await;
    for (port, user) in [(stage.pgherd.port, "guest"), (closed.port, "postgres")] {
        for kind in ["true", "database"] {
            let mut client = WireClient::bare(port).await;
            client
                .startup(0x0003_0000, &[("user", user), ("database", &stage.database.name), ("replication", kind)])
                .await;
            let last = client.until_ready().await;
            let error = last.last().expect("a message");
            assert_eq!((error.tag, error.field(b'C').as_deref()), (b'E', Some("42501")), "{user}: {error:?}");
            assert!(error.field(b'H').expect("a hint").contains("replication = true"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_with_kill_pause_and_drain_and_with_their_server() {
    let stage = stage().await;
    let console = stage.pgherd.client("pgherd").await;
    let ended = async |mut client: WireClient| {
        let last = timeout(PATIENCE, client.ended()).await.expect("ended");
        let error = last.last().expect("a message").clone();
        assert_eq!((error.tag, error.field(b'C').as_deref()), (b'E', Some("57P01")), "{last:?}");
    };
    let client = stage.streaming().await;
    console.batch_execute(&format!("kill {}", stage.database.name)).await.expect("killed");
    ended(client).await;
    console.batch_execute(&format!("resume {}", stage.database.name)).await.expect("resumed");
    let client = stage.streaming().await;
    console.batch_execute(&format!("pause {}", stage.database.name)).await.expect("paused");
    ended(client).await;
    console.batch_execute(&format!("resume {}", stage.database.name)).await.expect("resumed");
    let mut client = stage.streaming().await;
    let kill = "select pg_terminate_backend(pid) from pg_stat_replication";
    stage.database.execute(kill).await;
    let last = timeout(PATIENCE, client.ended()).await.expect("ended");
    assert!(tags(&last).ends_with('E') || tags(&last).ends_with('C') || last.is_empty(), "{last:?}");
    let client = stage.streaming().await;
    drop(console);
    stage.pgherd.stop().await;
    ended(client).await;
}
