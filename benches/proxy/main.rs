//! What a proxy costs: PostgreSQL itself, PgBouncer and pgherd under the same loads, interleaved, in one run.
//!
//! `cargo bench --bench proxy -- --measure all`; docs/benchmarks.md says what is measured and how to read the tables.
#![allow(clippy::print_stdout, unreachable_pub, reason = "a program that prints tables, in several files")]

mod bulk;
mod cache;
mod client;
mod connect;
mod copying;
mod figures;
mod forwarder;
#[path = "../../tests/harness/mod.rs"]
#[allow(unused_imports, reason = "the benchmark uses a part of the harness")]
mod harness;
mod herd;
mod latency;
mod memory;
mod merging;
mod slow;
mod targets;
mod throughput;
mod tpch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use pgherd::commands::demo::servers::{Ground, PostgresOptions, PostgresServer, ServerError};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::targets::{Target, Yard};

#[derive(Debug, Clone, Parser)]
#[command(name = "proxy")]
struct Options {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "throughput")]
    measure: Vec<Measure>,
    /// How often each combination is measured; the tables show medians. Each measure has its own default.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of one measurement, where time bounds it. Each measure has its own default.
    #[arg(long)]
    seconds: Option<u32>,
    /// Clients of `throughput`.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    clients: Vec<u32>,
    /// Protocols of `throughput`.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "simple,extended,prepared")]
    protocols: Vec<Protocol>,
    /// Through what to go.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "direct,forwarder,pgbouncer,pgherd")]
    only: Vec<Target>,
    /// Of `throughput`: `select` reads one row by its key, `tpcb` is pgbench's default transaction.
    #[arg(long, value_enum, default_value = "select")]
    workload: Workload,
    /// Clients of `memory`.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    idle_clients: Vec<usize>,
    /// Scale factor of `tpch`: 1 is some 1 GiB of data.
    #[arg(long, default_value_t = 0.1)]
    tpch_scale: f64,
    /// Shards of `tpch`, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "2,4")]
    tpch_shards: Vec<usize>,
    /// Rows of `bulk`, `merge` and `copy`.
    #[arg(long, default_value_t = 2_000_000)]
    rows: u64,
    /// MiB of the result that a slow client takes.
    #[arg(long, default_value_t = 2048)]
    slow_mib: u64,
    /// pgbench's scale: 100,000 accounts each.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// pgherd's runtime threads; as many as the load needs if left out.
    #[arg(long)]
    threads: Option<usize>,
    /// The pgherd binary; the one built with this program if left out.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_pgherd"))]
    pgherd: PathBuf,
    /// Parts of `cache`; all of them if left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    cache_parts: Vec<CachePart>,
    /// Distinct answers of `cache`'s churn.
    #[arg(long, default_value_t = 100_000)]
    distinct: u64,
    /// Serves these bytes as the answer to everything: what `cache` compares with.
    #[arg(long, hide = true, requires = "echo_port")]
    echo: Option<PathBuf>,
    #[arg(long, hide = true)]
    echo_port: Option<u16>,
    /// Set by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Measure {
    /// pgbench: transactions per second, latency, CPU per transaction.
    Throughput,
    /// Memory per idle client, and the CPU that idle clients take.
    Memory,
    /// COPY FROM, COPY TO and SELECT of many rows: CPU per GiB.
    Bulk,
    /// Resident memory while a slow client takes a large result.
    Slow,
    /// Connect, query, disconnect: CPU per connection.
    Connect,
    /// One client's mean latency, and percentiles under a mixed load.
    Latency,
    /// Rows of four shards merged: wall time, CPU for each million rows, resident memory. Not part of `all`.
    Merge,
    /// COPY FROM over four shards beside a plain COPY: CPU of servers and proxy. Not part of `all`.
    Copy,
    /// TPC-H over four shards beside one PostgreSQL, both layouts. Not part of `all`.
    Tpch,
    /// The result cache: hits beside a bare hop and pgpool-II, large answers, Redis, writes.
    Cache,
    /// All of one server.
    All,
}

impl Measure {
    /// What takes its own data, over shards, and minutes.
    fn is_of_shards(self) -> bool {
        matches!(self, Self::Merge | Self::Copy | Self::Tpch)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CachePart {
    /// Hits of memory: throughput, CPU per hit.
    Hits,
    /// Answers of 1 MiB.
    Large,
    /// Resident memory under a churn of distinct answers; other clients beside an answer of 64 MiB.
    Bounds,
    /// Hits of Redis, and what `strict` costs.
    Redis,
    /// pgbench's default transaction with the cache off and on.
    Writes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Protocol {
    Simple,
    Extended,
    Prepared,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    Select,
    Tpcb,
}

impl Options {
    fn measures(&self, measure: Measure) -> bool {
        self.measure.contains(&measure) || self.is_all() && !measure.is_of_shards()
    }

    /// Whether pgbench's tables are needed.
    fn needs_pgbench(&self) -> bool {
        self.measure.iter().any(|measure| !measure.is_of_shards())
    }

    fn is_all(&self) -> bool {
        self.measure.contains(&Measure::All)
    }

    fn rounds(&self, default: usize) -> usize {
        self.rounds.unwrap_or(default).max(1)
    }

    fn seconds(&self, default: u32) -> u32 {
        self.seconds.unwrap_or(default).max(1)
    }

    /// The targets that are proxies.
    fn proxies(&self) -> Vec<Target> {
        self.only.iter().copied().filter(|target| matches!(target, Target::Pgbouncer | Target::Pgherd)).collect()
    }
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench" || argument == "--help") {
        // `cargo test --all-targets` comes by here too, and wants no minutes of load.
        println!("measures only under `cargo bench --bench proxy`");
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let ended = match (&options.echo, options.echo_port) {
        (Some(answer), Some(port)) => cache::echo::serve(port, answer).map_err(|error| failed("echo", error)),
        _ => run(&options),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), ServerError> {
    raise_file_limit();
    let ground = Ground::new()?;
    let settings = PostgresOptions::default().set("shared_buffers", "512MB").set("max_wal_size", "4GB");
    let server = PostgresServer::start(&ground, &settings.set("autovacuum", "off").set("jit", "off"))?;
    server.sql("postgres", "create database bench")?;
    if options.needs_pgbench() {
        let pgbench = ground.binaries().postgres_program("pgbench");
        let (port, scale) = (server.port().to_string(), options.scale.to_string());
        let mut initialize = ground.command(&pgbench);
        initialize.args(["-i", "-q", "-s", &scale, "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "bench"]);
        Ground::run(&mut initialize)?;
        server.sql("bench", "vacuum analyze")?;
        server.sql("bench", "checkpoint")?;
    }

    let yard = Yard { ground: &ground, server: &server, pgherd: &options.pgherd, threads: options.threads };
    type Program = fn(&Options, &Yard<'_>) -> Result<(), ServerError>;
    let programs: [(Measure, Program); 10] = [
        (Measure::Memory, memory::run),
        (Measure::Connect, connect::run),
        (Measure::Bulk, bulk::run),
        (Measure::Slow, slow::run),
        (Measure::Latency, latency::run),
        (Measure::Throughput, throughput::run),
        (Measure::Merge, merging::run),
        (Measure::Copy, copying::run),
        (Measure::Tpch, tpch::run),
        (Measure::Cache, cache::run),
    ];
    for (measure, program) in programs {
        if options.measures(measure) {
            let began = Instant::now();
            program(options, &yard)?;
            eprintln!("{} took {:.0} s", name(measure), began.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// As many open files as the system allows, for the load generator and the proxies that it starts.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        eprintln!("the limit of open files stays as it is: {error}");
    }
}

/// A load that failed, in the words of this program.
fn failed(doing: impl std::fmt::Display, error: impl std::fmt::Display) -> ServerError {
    ServerError(format!("{doing}: {error}"))
}

/// Each round begins with another one, so that nobody always runs on the caches that somebody else warmed.
fn in_turn<T>(round: usize, among: &[T]) -> impl Iterator<Item = &T> {
    (0..among.len()).map(move |at| &among[(at + round) % among.len()])
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
