//! The same rows whole in one PostgreSQL, and over shards behind pgherd.

use std::fmt::Write as _;
use std::time::Duration;

use pgherd::commands::demo::servers::PostgresServer;

use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};

const SCHEMA: &str = include_str!("schema.sql");
const SHARDED: [(&str, &str); 6] = [
    ("sales", "customer_id"),
    ("lines", "customer_id"),
    ("nothing", "k"),
    ("slow", "k"),
    ("odd", "k"),
    ("worded", "k"),
];

pub(super) struct Herd {
    pub(super) whole: Database,
    pub(super) shards: Vec<Database>,
    /// Also the coordinator, unless another is named.
    pub(super) primary: Database,
    pub(super) pgherd: Pgherd,
}

fn schema(shards: usize, shard: usize) -> String {
    SCHEMA.replace("%shards%", &shards.to_string()).replace("%shard%", &shard.to_string())
}

impl Herd {
    pub(super) async fn start(shards: usize, cached: bool) -> Self {
        Self::over(harness::fresh_databases(shards).await, &format!("[cache]\nenabled = {cached}\n")).await
    }

    /// With the last shard on a server of its own.
    pub(super) async fn with_own_server(shards: usize, server: &PostgresServer) -> Self {
        let mut databases = harness::fresh_databases(shards - 1).await;
        databases.push(harness::database_on(server).await);
        Self::over(databases, "[cache]\nenabled = false\n").await
    }

    /// Two shards, and a coordinator that is not the primary.
    pub(super) async fn coordinated_by(coordinator: &Database) -> Self {
        let key = format!("coordinator = \"{}\"\n", coordinator.conninfo());
        Self::with_keys(harness::fresh_databases(2).await, &key, "[cache]\nenabled = false\n").await
    }

    pub(super) async fn over(shards: Vec<Database>, rest: &str) -> Self {
        Self::with_keys(shards, "", rest).await
    }

    /// `keys` belong to the `[[database]]`.
    pub(super) async fn with_keys(shards: Vec<Database>, keys: &str, rest: &str) -> Self {
        let (whole, primary) = (harness::fresh_database().await, harness::fresh_database().await);
        whole.execute(&schema(1, 0)).await;
        // The primary is the coordinator too: it has the shards' types.
        let types =
            "create schema pad; create type pad.other as (a int); create type mood as enum ('sad', 'ok', 'happy');
            create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
            create domain den as text collate \"und-x-icu\"; create domain dci as text collate ci;
            create type fields as (s text collate \"und-x-icu\", c text collate ci, n int4);
            create type status as enum ('old', 'new');
            create schema alt; create collation alt.ci (provider = icu, locale = 'und');
            create table local_notes (id int4); insert into local_notes values (1)";
        primary.execute(types).await;
        let mut toml = format!("[[database]]\nname = \"app\"\nprimary = \"{}\"\n{keys}shards = [", primary.conninfo());
        for (at, shard) in shards.iter().enumerate() {
            shard.execute(&schema(shards.len(), at)).await;
            let _ = write!(toml, "\"{}\", ", shard.conninfo());
        }
        toml += "]\n";
        for (name, key) in SHARDED {
            let _ = write!(
                toml,
                "[[database.table]]\nname = \"public.{name}\"\nshard_key = \"{key}\"\nmethod = \"hash\"\n"
            );
        }
        toml += "[[database.table]]\nname = \"public.countries\"\nreference = true\n";
        toml += "[[user]]\nname = \"postgres\"\nauth = \"trust\"\n";
        toml += "[pool]\nmin_connections = 0\nacquire_timeout = \"5s\"\nconnect_timeout = \"5s\"\n";
        toml += rest;
        Self { whole, shards, primary, pgherd: Pgherd::start(&toml).await }
    }

    /// Straight to the one PostgreSQL.
    pub(super) async fn oracle(&self) -> WireClient {
        WireClient::login(self.whole.port, "postgres", &self.whole.name).await
    }

    /// Through pgherd.
    pub(super) async fn client(&self) -> WireClient {
        self.pgherd.wire("app").await
    }

    /// Waits until nobody holds a server connection and no shard works any more.
    pub(super) async fn comes_to_rest(&self) {
        const DEADLINE: Duration = Duration::from_secs(20);
        harness::eventually(DEADLINE, "every server connection is given back", async || {
            self.pgherd.metric("pgherd_pool_active_connections", "").await == 0.0
        })
        .await;
        for shard in &self.shards {
            let observer = shard.client().await;
            harness::eventually(DEADLINE, "the shard has come to rest", async || {
                let busy: i64 = observer.query_one(BUSY, &[]).await.expect("activity").get(0);
                busy == 0
            })
            .await;
        }
    }

    /// Waits until every shard works on a client's statement; pgherd's own look at the catalog does not count.
    pub(super) async fn every_shard_works(&self) {
        let works = BUSY.replace("<> 'idle'", "= 'active' and query like '%countries c12%'");
        for shard in &self.shards {
            let observer = shard.client().await;
            harness::eventually(Duration::from_secs(20), "the shard works", async || {
                observer.query_one(&works, &[]).await.expect("activity").get::<_, i64>(0) > 0
            })
            .await;
        }
    }
}

/// Sessions of this database that run something or stand in a transaction.
const BUSY: &str =
    "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
    and backend_type = 'client backend' and state <> 'idle'";
