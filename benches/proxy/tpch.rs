//! TPC-H over four shards of one server beside one database of it with everything: each query's time, and where it goes.

#[path = "../../tests/it/tpch/queries.rs"]
mod queries;

use std::fmt::Display;
use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use futures_util::SinkExt;
use pgherd::commands::demo::servers::ServerError;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};

use self::queries::{Tpch, queries};
use crate::herd::{Herd, Place, SHARDS, shard_name};
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
    for layout in [Layout::References, Layout::OwnKeys] {
        let references: Vec<&str> =
            TABLES.into_iter().filter(|name| !layout.keys().iter().any(|(table, _)| table == name)).collect();
        let herd = Herd::start_with(yard, SCHEMA, layout.keys(), &references)?;
        let door = herd.through(Place::Together);
        let through = format!("host=127.0.0.1 port={} user=postgres dbname={}", door.port, door.database);
        let began = Instant::now();
        runtime.block_on(load(&through, options.tpch_scale)).map_err(|error| failed("the shards", words(&error)))?;
        eprintln!("{layout:?}: loaded in {:.0} s", began.elapsed().as_secs_f64());
        for shard in 0..SHARDS {
            yard.server.sql(&shard_name(shard), "vacuum analyze")?;
        }
        yard.server.sql("bench", "checkpoint")?;
        println!("\n### TPC-H, scale {}, {layout:?}, {SHARDS} shards\n", options.tpch_scale);
        println!(
            "| query | how | one PostgreSQL, s | through pgherd, s | ratio | slowest shard, s | shipping, s | MiB | coordinator, s | pgherd : shard + shipping + coordinator |"
        );
        println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|");
        runtime.block_on(all(&whole, &through, options.tpch_scale))?;
    }
    Ok(())
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

type Rows = Vec<Vec<Option<String>>>;

async fn rows(client: &Client, text: &str) -> Result<Rows, tokio_postgres::Error> {
    let messages = client.simple_query(text).await?;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
        _ => None,
    });
    Ok(rows.collect())
}

/// Every query once to warm up and once for its time.
async fn all(whole: &str, through: &str, scale: f64) -> Result<(), ServerError> {
    let oracle = connect(whole).await.map_err(|error| failed("whole", error))?;
    let pgherd = connect(through).await.map_err(|error| failed("pgherd", error))?;
    let (mut sums, mut differ) = ([0.0; 2], Vec::new());
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
        if sorted(given) != sorted(wanted) {
            differ.push(name.clone());
        }
        let plan = rows(&pgherd, &format!("explain (analyze) {}", query.text)).await;
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
    if differ.is_empty() { Ok(()) } else { Err(ServerError(format!("answers differ: {differ:?}"))) }
}

fn sorted(mut rows: Rows) -> Rows {
    rows.sort();
    rows
}

async fn timed(client: &Client, query: &Tpch) -> Result<(Rows, f64), tokio_postgres::Error> {
    rows(client, &query.text).await?;
    let began = Instant::now();
    let rows = rows(client, &query.text).await?;
    Ok((rows, began.elapsed().as_secs_f64()))
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
    fn read(plan: &Rows) -> Self {
        let mut parts = Self { how: "shard", ..Self::default() };
        for line in plan.iter().filter_map(|row| row.first()?.as_deref()) {
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
