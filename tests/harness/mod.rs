//! Real servers on free ports for stories that read: given, when, then.
//!
//! One PostgreSQL server is shared by all tests of a binary; each test has a database of its own on it ([`fresh_database`]). A test that
//! stops or reconfigures a server starts one of its own on [`ground`].
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part of the harness")]

pub mod certificates;
pub mod faults;
pub mod proxy;
pub mod scripted;
pub mod serving;
pub mod tls;
pub mod wire;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pgherd::commands::demo::servers::{Binaries, Ground, PostgresOptions, PostgresServer};
use tokio_postgres::{Client, NoTls};

pub use certificates::certificates;
pub use proxy::Pgherd;

/// The temporary folder that all of this binary's servers stand in; `PGHERD_TEST_POSTGRES_BIN` names the folder of PostgreSQL's
/// programs, else the newest that is installed is taken.
pub fn ground() -> &'static Arc<Ground> {
    static GROUND: OnceLock<Arc<Ground>> = OnceLock::new();
    GROUND.get_or_init(|| {
        let ground = match std::env::var_os("PGHERD_TEST_POSTGRES_BIN") {
            Some(folder) => Binaries::of(folder.into()).and_then(Ground::with),
            None => Ground::new(),
        };
        ground.unwrap_or_else(|error| panic!("{error}"))
    })
}

/// Roles that are members of `scram`, `md5`, `cleartext` or `cert` must log in that way; all others are trusted.
const HBA: &str = "\
local   all         all                     trust
host    replication all       127.0.0.1/32  trust
host    all         +scram    127.0.0.1/32  scram-sha-256
host    all         +md5      127.0.0.1/32  md5
host    all         +cleartext 127.0.0.1/32 password
hostssl all         +cert     127.0.0.1/32  cert
hostnossl all       +cert     127.0.0.1/32  reject
host    all         all       127.0.0.1/32  trust
";

/// What the shared server is started with; tests that need a server of their own may begin from it.
pub fn options() -> PostgresOptions {
    PostgresOptions::default()
        .set("max_connections", 400)
        .set("max_prepared_transactions", 200)
        .set("jit", "off")
        .hba(HBA)
        .tls(certificates().server_files())
}

/// The server that all tests of this binary share. Never stop it, and change nothing but your own databases and roles.
pub fn primary() -> &'static PostgresServer {
    static PRIMARY: OnceLock<PostgresServer> = OnceLock::new();
    PRIMARY.get_or_init(|| start(&options()))
}

/// A server of the test's own.
pub fn start(options: &PostgresOptions) -> PostgresServer {
    let server = PostgresServer::start(ground(), options).unwrap_or_else(|error| panic!("{error}"));
    let roles = ["scram", "md5", "cleartext", "cert"].map(|role| format!("create role {role};")).join(" ");
    server.sql("postgres", &roles).unwrap_or_else(|error| panic!("{error}"));
    server
}

/// One database of a server, which the test that asked for it has to itself.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// The server's port on 127.0.0.1.
    pub port: u16,
}

impl Database {
    /// A libpq connection string as the superuser `postgres`, as the TOML takes it.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={}", self.port, self.name)
    }

    /// The same without a user: pgherd then logs in as the client's.
    pub fn address(&self) -> String {
        format!("host=127.0.0.1 port={} dbname={}", self.port, self.name)
    }

    /// A new connection straight to it, as `postgres`.
    pub async fn client(&self) -> Client {
        connect(&self.conninfo()).await
    }

    /// The same as another role, which must be trusted.
    pub async fn client_as(&self, role: &str) -> Client {
        connect(&format!("{} user={role}", self.address())).await
    }

    /// Runs statements on a connection of their own.
    pub async fn execute(&self, statements: &str) {
        self.client().await.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }
}

/// An empty database on the shared server.
pub async fn fresh_database() -> Database {
    database_on(primary()).await
}

/// As many empty databases on the shared server, to stand for shards.
pub async fn fresh_databases(count: usize) -> Vec<Database> {
    let mut databases = Vec::new();
    for _ in 0..count {
        databases.push(fresh_database().await);
    }
    databases
}

/// An empty database on that server.
pub async fn database_on(server: &PostgresServer) -> Database {
    let name = unique("db");
    let client = connect(&server.conninfo("postgres")).await;
    let strategy = quickest_strategy(&client).await;
    client.batch_execute(&format!("create database {name}{strategy}")).await.expect("create database");
    Database { name, port: server.port() }
}

/// How a database is made in the least time: by copying files, which takes a quarter of what it takes to write every page to the
/// WAL (PostgreSQL manual, `CREATE DATABASE`; before version 15 it is the only way and has no name).
async fn quickest_strategy(client: &Client) -> &'static str {
    let version = client.query_one("select current_setting('server_version_num')::int", &[]).await.expect("version");
    if version.get::<_, i32>(0) >= 150_000 { " strategy file_copy" } else { "" }
}

/// A login role on the shared server, member of `scram`, `md5`, `cleartext` or `cert`: its name. The password is `secret`.
pub async fn fresh_role(group: &str) -> String {
    let name = unique("role");
    let encryption = if group == "md5" { "md5" } else { "scram-sha-256" };
    let client = connect(&primary().conninfo("postgres")).await;
    let statements =
        format!("set password_encryption = '{encryption}'; create role {name} login password 'secret' in role {group}");
    client.batch_execute(&statements).await.expect("create role");
    name
}

/// A name that no other test of this binary has.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{prefix}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Connects by tokio-postgres without TLS; the connection is driven by a task of its own and ends with the client.
pub async fn connect(conninfo: &str) -> Client {
    try_connect(conninfo).await.unwrap_or_else(|error| panic!("cannot connect to {conninfo}: {error:?}"))
}

/// As [`connect`], for stories in which the connection may be refused.
pub async fn try_connect(conninfo: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Looks every few milliseconds until it is so; panics after the deadline, naming what did not come.
pub fn wait_until(deadline: Duration, what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !so() {
        assert!(Instant::now() < end, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As [`wait_until`], for conditions that await.
pub async fn eventually<F: Future<Output = bool>>(deadline: Duration, what: &str, mut so: impl FnMut() -> F) {
    let end = Instant::now() + deadline;
    while !so().await {
        assert!(Instant::now() < end, "waited {deadline:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
