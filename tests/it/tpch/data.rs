//! TPC-H's data: whole in one database, and the same rows spread over shards.

use std::fmt::{Display, Write as _};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::sync::OnceCell;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};

use crate::harness::{self, Database, Pgherd};

/// A hundredth of the smallest database that the standard knows: 60,000 line items.
const SCALE: f64 = 0.01;

/// The scale factor of this run.
pub(super) fn scale() -> f64 {
    std::env::var("PGHERD_TPCH_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(SCALE)
}

/// How tables lie on the shards. Orders and line items always go together, by order key; nation and region are always whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// All other tables are whole on every shard.
    References,
    /// Customers, suppliers, parts and their suppliers lie by their own keys.
    OwnKeys,
}

/// Sharded tables: name, key, and a table whose partitions tell the key's shard.
const BY_ORDER: [(&str, &str, &str); 2] = [("orders", "o_orderkey", "by_big"), ("lineitem", "l_orderkey", "by_big")];
const BY_OWN_KEY: [(&str, &str, &str); 4] = [
    ("customer", "c_custkey", "by_int"),
    ("supplier", "s_suppkey", "by_int"),
    ("part", "p_partkey", "by_int"),
    ("partsupp", "ps_partkey", "by_int"),
];

/// How texts sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collation {
    /// As the servers' locale says; pgherd leaves that to PostgreSQL.
    Locale,
    /// By bytes.
    C,
}

impl Collation {
    fn name(self) -> &'static str {
        match self {
            Self::Locale => "C.UTF-8",
            Self::C => "C",
        }
    }
}

impl Layout {
    fn sharded(self) -> Vec<(&'static str, &'static str, &'static str)> {
        match self {
            Self::References => BY_ORDER.to_vec(),
            Self::OwnKeys => [&BY_ORDER[..], &BY_OWN_KEY].concat(),
        }
    }

    fn references(self) -> Vec<&'static str> {
        let others = BY_OWN_KEY.iter().map(|(name, ..)| *name).filter(|_| self == Self::References);
        ["nation", "region"].into_iter().chain(others).collect()
    }
}

/// One PostgreSQL with everything, and pgherd in front of shards with their parts.
pub(super) struct Herd {
    pub(super) whole: Database,
    pub(super) pgherd: Pgherd,
    toml: String,
}

impl Herd {
    pub(super) async fn start(layout: Layout, collation: Collation, shards: usize, cached: bool) -> Self {
        let whole = loaded(collation).await;
        let primary = harness::fresh_database().await;
        // What PostgreSQL merges it must compare as the shards do.
        let coordinator = database_in(collation.name()).await;
        let mut toml = format!("[[database]]\nname = \"tpch\"\nprimary = \"{}\"\n", primary.conninfo());
        let _ = write!(toml, "coordinator = \"{}\"\nshards = [", coordinator.conninfo());
        for shard in 0..shards {
            let _ = write!(toml, "\"{}\", ", part_of(whole, layout, shards, shard).await.conninfo());
        }
        toml.push_str("]\n");
        for (name, key, _) in layout.sharded() {
            let _ = write!(
                toml,
                "[[database.table]]\nname = \"public.{name}\"\nshard_key = \"{key}\"\nmethod = \"hash\"\n"
            );
        }
        for name in layout.references() {
            let _ = write!(toml, "[[database.table]]\nname = \"public.{name}\"\nreference = true\n");
        }
        toml += "[[user]]\nname = \"postgres\"\nauth = \"trust\"\n";
        let _ = write!(toml, "[cache]\nenabled = {cached}\n[fanout]\nquery_timeout = \"300s\"\n");
        Self { whole: whole.clone(), pgherd: Pgherd::start(&toml).await, toml }
    }
}

impl Herd {
    /// Another pgherd before the same servers, with more keys in `[fanout]`.
    pub(super) async fn another(&self, keys: &str) -> Pgherd {
        Pgherd::start(&format!("{}{keys}", self.toml)).await
    }
}

/// The database with everything, made once.
async fn loaded(collation: Collation) -> &'static Database {
    static BY_LOCALE: OnceCell<Database> = OnceCell::const_new();
    static BY_BYTES: OnceCell<Database> = OnceCell::const_new();
    match collation {
        Collation::Locale => BY_LOCALE.get_or_init(|| async { load(database_in(collation.name()).await).await }).await,
        Collation::C => BY_BYTES.get_or_init(|| async { load(database_in(collation.name()).await).await }).await,
    }
}

async fn database_in(locale: &str) -> Database {
    let database = Database { name: harness::unique("tpch"), port: harness::primary().port() };
    let server = harness::connect(&harness::primary().conninfo("postgres")).await;
    let create =
        format!("create database {} template template0 lc_collate '{locale}' lc_ctype '{locale}'", database.name);
    server.batch_execute(&create).await.expect("create database");
    database
}

async fn load(whole: Database) -> Database {
    whole.execute(include_str!("schema.sql")).await;
    let tables = [
        ("region", rows(RegionGenerator::new(scale(), 1, 1).iter())),
        ("nation", rows(NationGenerator::new(scale(), 1, 1).iter())),
        ("part", rows(PartGenerator::new(scale(), 1, 1).iter())),
        ("supplier", rows(SupplierGenerator::new(scale(), 1, 1).iter())),
        ("partsupp", rows(PartSuppGenerator::new(scale(), 1, 1).iter())),
        ("customer", rows(CustomerGenerator::new(scale(), 1, 1).iter())),
        ("orders", rows(OrderGenerator::new(scale(), 1, 1).iter())),
        ("lineitem", rows(LineItemGenerator::new(scale(), 1, 1).iter())),
    ];
    let client = whole.client().await;
    for (name, rows) in tables {
        let copy = format!("copy {name} from stdin (delimiter '|')");
        let mut sink = pin!(client.copy_in(&copy).await.expect("copy"));
        sink.send(Bytes::from(rows)).await.expect("send");
        sink.finish().await.expect("loaded");
    }
    client.batch_execute("analyze").await.expect("analyze");
    whole
}

/// dbgen's lines, whose every value ends in `|`.
fn rows(rows: impl Iterator<Item = impl Display>) -> String {
    let mut text = String::new();
    for row in rows {
        let _ = write!(text, "{row}");
        assert_eq!(text.pop(), Some('|'), "a line of dbgen's ends in a delimiter");
        text.push('\n');
    }
    text
}

/// A copy of the whole database without the rows of other shards.
async fn part_of(whole: &Database, layout: Layout, shards: usize, shard: usize) -> Database {
    static ONE_COPY_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let part = Database { name: harness::unique("tpch"), port: whole.port };
    let copying = ONE_COPY_AT_A_TIME.lock().await;
    let server = harness::connect(&harness::primary().conninfo("postgres")).await;
    let copy = format!("create database {} template {} strategy file_copy", part.name, whole.name);
    // Only a database that nobody is connected to can be copied; sessions of other tests' come and go.
    harness::eventually(Duration::from_secs(120), "the database can be copied", async || {
        match server.batch_execute(&copy).await {
            Ok(()) => true,
            Err(error) if error.code().is_some_and(|code| code.code() == "55006") => false,
            Err(error) => panic!("{copy}: {error:?}"),
        }
    })
    .await;
    drop(copying);
    let client = part.client().await;
    for (name, key, partitions) in layout.sharded() {
        let delete = format!(
            "delete from {name} where not satisfies_hash_partition('{partitions}'::regclass, {shards}, {shard}, {key})"
        );
        client.batch_execute(&delete).await.expect("delete");
    }
    client.batch_execute("drop table by_int, by_big; analyze").await.expect("analyze");
    part
}
