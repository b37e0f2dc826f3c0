//! TPC-H over two and four shards of one server beside one database of it with everything: each query's time, and where it goes.

#[path = "../../tests/it/tpch/answers.rs"]
mod answers;
#[path = "../../tests/it/tpch/queries.rs"]
mod queries;

use std::fmt::Display;
use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use futures_util::SinkExt;
use pgherd::commands::demo::servers::ServerError;
use tokio_postgres::{Client, NoTls};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};

use self::answers::{Answer, extended, same, simple};
use self::queries::{Tpch, queries};
use crate::herd::{Herd, Place, shard_name};
use crate::targets::Yard;
use crate::{Options, failed};

/// Bytes of one message of COPY data.
const COPY_DATA_BYTES: usize = 64 * 1024;
const SCHEMA: &str = include_str!("../../tests/it/tpch/schema.sql");
const TABLES: [&str; 8] = ["region", "nation", "part", "supplier", "partsupp", "customer", "orders", "lineitem"];

/// How tables lie on the shards: orders and line items by order key, nation and region whole, the others as it says.
#[derive(Debug, Clone, Copy)]
enum Layout {
    References,
    OwnKeys,
}

impl Layout {
    fn keys(self) -> &'static [(&'static str, &'static str)] {
        const ALL: [(&str, &str); 6] = [
            ("orders", "o_orderkey"),
            ("lineitem", "l_orderkey"),
            ("customer", "c_custkey"),
            ("supplier", "s_suppkey"),
            ("part", "p_partkey"),
            ("partsupp", "ps_partkey"),
        ];
        match self {
            Self::References => &ALL[..2],
            Self::OwnKeys => &ALL,
        }
    }
}

/// Measures and prints.
///
/// # Errors
/// Something does not start, a client failed, or an answer differs from PostgreSQL's.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|it| failed("tokio", it))?;
    yard.server.sql("postgres", "drop database if exists whole")?;
    yard.server.sql("postgres", "create database whole")?;
    yard.server.sql("whole", SCHEMA)?;
    let whole = yard.server.conninfo("whole");
    runtime.block_on(load(&whole, options.tpch_scale)).map_err(|error| failed("whole", words(&error)))?;
    yard.server.sql("whole", "vacuum analyze")?;
    for &shards in &options.tpch_shards {
        for layout in [Layout::References, Layout::OwnKeys] {
            over(options, yard, &runtime, (&whole, shards, layout))?;
        }
    }
    Ok(())
}

/// Loads so many shards in that layout, and asks them.
fn over(
    options: &Options,
    yard: &Yard<'_>,
    runtime: &tokio::runtime::Runtime,
    (whole, shards, layout): (&str, usize, Layout),
) -> Result<(), ServerError> {
    let references: Vec<&str> =
        TABLES.into_iter().filter(|name| !layout.keys().iter().any(|(table, _)| table == name)).collect();
    let herd = Herd::start_with(yard, SCHEMA, layout.keys(), &references, shards)?;
    let door = herd.through(Place::Together);
    let through = format!("host=127.0.0.1 port={} user=postgres dbname={}", door.port, door.database);
    let began = Instant::now();
    runtime.block_on(load(&through, options.tpch_scale)).map_err(|error| failed("the shards", words(&error)))?;
    eprintln!("{layout:?}, {shards} shards: loaded in {:.0} s", began.elapsed().as_secs_f64());
    for shard in 0..shards {
        yard.server.sql(&shard_name(shard), "vacuum analyze")?;
    }
    yard.server.sql("bench", "checkpoint")?;
    println!("\n### TPC-H, scale {}, {layout:?}, {shards} shards\n", options.tpch_scale);
    println!(
        "| query | how | one PostgreSQL, s | through pgherd, s | ratio | slowest shard, s | shipping, s | MiB | coordinator, s | pgherd : shard + shipping + coordinator |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    runtime.block_on(all(whole, &through, options.tpch_scale))
}

async fn connect(conninfo: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            eprintln!("a connection has ended: {error}");
        }
    });
    Ok(client)
}

/// What the server said, which the library's own words leave out.
fn words(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
}

async fn load(conninfo: &str, scale: f64) -> Result<(), tokio_postgres::Error> {
    let client = connect(conninfo).await?;
    copy(&client, "region", RegionGenerator::new(scale, 1, 1).iter()).await?;
    copy(&client, "nation", NationGenerator::new(scale, 1, 1).iter()).await?;
    copy(&client, "part", PartGenerator::new(scale, 1, 1).iter()).await?;
    copy(&client, "supplier", SupplierGenerator::new(scale, 1, 1).iter()).await?;
    copy(&client, "partsupp", PartSuppGenerator::new(scale, 1, 1).iter()).await?;
    copy(&client, "customer", CustomerGenerator::new(scale, 1, 1).iter()).await?;
    copy(&client, "orders", OrderGenerator::new(scale, 1, 1).iter()).await?;
    copy(&client, "lineitem", LineItemGenerator::new(scale, 1, 1).iter()).await
}

/// dbgen's lines, whose every value ends in `|`.
async fn copy(
    client: &Client,
    table: &str,
    rows: impl Iterator<Item = impl Display>,
) -> Result<(), tokio_postgres::Error> {
    use std::fmt::Write as _;
    let mut sink = pin!(client.copy_in(&format!("copy {table} from stdin (delimiter '|')")).await?);
    let mut text = String::new();
    for row in rows {
        let _ = write!(text, "{row}");
        text.pop();
        text.push('\n');
        if text.len() >= COPY_DATA_BYTES {
            sink.send(Bytes::from(std::mem::take(&mut text))).await?;
        }
    }
    sink.send(Bytes::from(text)).await?;
    sink.finish().await.map(drop)
}

/// Every query once to warm up, once for its time, and once more in the extended protocol.
async fn all(whole: &str, through: &str, scale: f64) -> Result<(), ServerError> {
    let oracle = connect(whole).await.map_err(|error| failed("whole", error))?;
    let pgherd = connect(through).await.map_err(|error| failed("pgherd", error))?;
    let (mut sums, mut differ, mut equal) = ([0.0; 2], Vec::new(), 0);
    for query in queries(scale) {
        let name = format!("Q{}", query.number);
        let (wanted, direct) = timed(&oracle, &query).await.map_err(|error| failed(&name, words(&error)))?;
        let (given, taken) = match timed(&pgherd, &query).await {
            Ok(answer) => answer,
            Err(error) => {
                println!("| {name} | fails: {} | {direct:.2} | - | - | - | - | - | - | - |", words(&error));
                differ.push(name);
                continue;
            }
        };
        if [0, 1].iter().all(|&at| same(&query, &given[at], &wanted[at])) {
            equal += 1;
        } else {
            differ.push(name.clone());
        }
        let plan = simple(&pgherd, &format!("explain (analyze) {}", query.text)).await;
        let parts = Parts::read(&plan.map_err(|error| failed(&name, words(&error)))?);
        let all = parts.shard + parts.shipping + parts.coordinator;
        println!(
            "| {name} | {} | {direct:.2} | {taken:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {:.2} | {:.2} |",
            parts.how,
            taken / direct,
            parts.shard,
            parts.shipping,
            parts.mib,
            parts.coordinator,
            taken / all
        );
        sums = [sums[0] + direct, sums[1] + taken];
    }
    println!("| all | | {:.1} | {:.1} | {:.2} | | | | | |", sums[0], sums[1], sums[1] / sums[0]);
    println!("\n{equal} of 22 equal in both protocols");
    if differ.is_empty() { Ok(()) } else { Err(ServerError(format!("answers differ: {differ:?}"))) }
}

/// The answers in both protocols, and how long the simple one took.
async fn timed(client: &Client, query: &Tpch) -> Result<([Answer; 2], f64), tokio_postgres::Error> {
    simple(client, &query.text).await?;
    let began = Instant::now();
    let answer = simple(client, &query.text).await?;
    let taken = began.elapsed().as_secs_f64();
    Ok(([answer, extended(client, &query.text).await?], taken))
}

/// What EXPLAIN ANALYZE says of a distributed query.
#[derive(Debug, Default)]
struct Parts {
    how: &'static str,
    shard: f64,
    shipping: f64,
    mib: f64,
    coordinator: f64,
}

impl Parts {
    fn read(plan: &Answer) -> Self {
        let mut parts = Self { how: "shard", ..Self::default() };
        for line in plan.rows.iter().filter_map(|row| row.first()?.as_deref()) {
            let line = String::from_utf8_lossy(line);
            let line = line.trim_start();
            let figure = |name: &str| -> f64 {
                let rest = line.split_once(name).map_or("", |(_, rest)| rest);
                rest.split([' ', ')']).find(|word| !word.is_empty()).and_then(|word| word.parse().ok()).unwrap_or(0.0)
            };
            if line.starts_with("Fan-Out") {
                parts.how = "streamed";
                parts.mib += figure("bytes=") / f64::from(1 << 20);
            } else if line.starts_with("Merge by PostgreSQL") {
                parts.how = "gathered";
            } else if line.starts_with("->  Ship ") {
                parts.shipping += figure("time=") / 1e3;
                parts.mib += figure("bytes=") / f64::from(1 << 20);
            } else if line.starts_with("->  Shard ") {
                parts.shard = parts.shard.max(figure("time=") / 1e3);
            } else if line.starts_with("Execution Time:") && parts.how != "streamed" {
                parts.coordinator += figure("Execution Time:") / 1e3;
            }
        }
        parts
    }
}
