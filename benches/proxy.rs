//! pgbench through PostgreSQL itself, PgBouncer and pgherd, interleaved: medians of TPS, latency and the proxy's CPU time per transaction.
//!
//! `cargo bench --bench proxy -- --rounds 5 --seconds 4`; docs/benchmarks.md says how to read the table.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use pgherd::commands::demo::servers::{Ground, PostgresOptions, PostgresServer, ServerError, Supervisor, free_port};

/// Server connections that each proxy may open.
const POOL: u32 = 16;

#[derive(Debug, Clone, Parser)]
#[command(name = "proxy")]
struct Options {
    /// How often each combination is measured; the table shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// pgbench clients.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    clients: Vec<u32>,
    /// Protocols.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "simple,extended,prepared")]
    protocols: Vec<Protocol>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "direct,pgbouncer,pgherd")]
    only: Vec<Target>,
    /// `select` reads one row by its key, `tpcb` is pgbench's default transaction.
    #[arg(long, value_enum, default_value = "select")]
    workload: Workload,
    /// pgbench's scale: 100,000 accounts each.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// pgherd's runtime threads; as many as cores if left out.
    #[arg(long)]
    threads: Option<usize>,
    /// The pgherd binary; the one built with this program if left out.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_pgherd"))]
    pgherd: PathBuf,
    /// Set by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Protocol {
    Simple,
    Extended,
    Prepared,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Target {
    Direct,
    Pgbouncer,
    Pgherd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    Select,
    Tpcb,
}

/// One pgbench run.
#[derive(Debug, Clone, Copy)]
struct Sample {
    tps: f64,
    latency_ms: f64,
    cpu_us: Option<f64>,
}

/// Something with a port to measure; a proxy also has a process.
struct Running {
    port: u16,
    process: Option<Supervisor>,
}

type Samples = BTreeMap<(Protocol, u32, Target), Vec<Sample>>;

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench" || argument == "--help") {
        // `cargo test --all-targets` comes by here too, and wants no minutes of pgbench.
        println!("measures only under `cargo bench --bench proxy`");
        return ExitCode::SUCCESS;
    }
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), ServerError> {
    let ground = Ground::new()?;
    let settings = PostgresOptions::default().set("shared_buffers", "256MB").set("max_wal_size", "4GB");
    let server = PostgresServer::start(&ground, &settings.set("autovacuum", "off"))?;
    server.sql("postgres", "create database bench")?;
    let pgbench = ground.binaries().postgres_program("pgbench");
    let port = server.port().to_string();
    let scale = options.scale.to_string();
    Ground::run(ground.command(&pgbench).args([
        "-i",
        "-q",
        "-s",
        &scale,
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        "postgres",
        "bench",
    ]))?;
    server.sql("bench", "vacuum analyze")?;
    server.sql("bench", "checkpoint")?;

    let mut targets = BTreeMap::new();
    for &target in &options.only {
        if let Some(running) = start(target, &ground, &server, options)? {
            targets.insert(target, running);
        }
    }
    let mut samples = Samples::new();
    for round in 0..options.rounds {
        measure_round(round, options, &ground, &targets, &mut samples)?;
    }
    print_table(options, &samples);
    Ok(())
}

fn start(
    target: Target,
    ground: &Arc<Ground>,
    server: &PostgresServer,
    options: &Options,
) -> Result<Option<Running>, ServerError> {
    match target {
        Target::Direct => Ok(Some(Running { port: server.port(), process: None })),
        Target::Pgbouncer => start_pgbouncer(ground, server),
        Target::Pgherd => start_pgherd(ground, server, options).map(Some),
    }
}

/// Transaction pooling, no TLS, TCP to the server: as for pgherd.
fn start_pgbouncer(ground: &Arc<Ground>, server: &PostgresServer) -> Result<Option<Running>, ServerError> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    folders.push(PathBuf::from("/usr/sbin"));
    let Some(program) = folders.iter().map(|folder| folder.join("pgbouncer")).find(|path| path.exists()) else {
        eprintln!("PgBouncer is not installed (apt-get install pgbouncer): it is left out");
        return Ok(None);
    };
    let (folder, port) = (ground.server_folder("pgbouncer")?, free_port()?);
    let users = folder.join("userlist.txt");
    ground.write(&users, "\"postgres\" \"\"\n")?;
    let config = folder.join("pgbouncer.ini");
    let text = format!(
        "[databases]\nbench = host=127.0.0.1 port={} dbname=bench user=postgres\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
         pool_mode = transaction\ndefault_pool_size = {POOL}\nmin_pool_size = {POOL}\nmax_client_conn = 500\n\
         log_connections = 0\nlog_disconnections = 0\n",
        server.port(),
        users.display()
    );
    ground.write(&config, &text)?;
    let mut process =
        Supervisor::new(ground, &folder, &[&program.to_string_lossy(), &config.to_string_lossy()], "KILL")?;
    process.start(|_| answers(port))?;
    Ok(Some(Running { port, process: Some(process) }))
}

fn start_pgherd(ground: &Arc<Ground>, server: &PostgresServer, options: &Options) -> Result<Running, ServerError> {
    let (folder, port) = (ground.server_folder("pgherd")?, free_port()?);
    // A copy, because the unprivileged user may not be able to look into the build's folder.
    let program = folder.join("pgherd");
    fs::copy(&options.pgherd, &program)
        .map_err(|error| ServerError(format!("cannot copy {}: {error}", options.pgherd.display())))?;
    let config = folder.join("proxy.toml");
    let threads = options.threads.map(|threads| format!("threads = {threads}\n")).unwrap_or_default();
    let text = format!(
        "{threads}[listen]\naddress = \"127.0.0.1:{port}\"\n\n[pool]\nmode = \"transaction\"\nmax_connections = {POOL}\n\
         min_connections = {POOL}\n\n[[database]]\nname = \"bench\"\n\
         primary = \"host=127.0.0.1 port={} dbname=bench user=postgres sslmode=disable\"\n\n\
         [[user]]\nname = \"postgres\"\nauth = \"trust\"\n\n[cache]\nenabled = true\n\n[telemetry]\nlog = \"warn\"\n",
        server.port()
    );
    ground.write(&config, &text)?;
    let command = [&*program.to_string_lossy(), "serve", "--config", &*config.to_string_lossy()];
    let mut process = Supervisor::new(ground, &folder, &command, "KILL")?;
    process.start(|_| answers(port))?;
    Ok(Running { port, process: Some(process) })
}

/// Whether a statement comes back through that port.
fn answers(port: u16) -> bool {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return false };
    let ask = async {
        let conninfo = format!("host=127.0.0.1 port={port} user=postgres dbname=bench connect_timeout=2");
        let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        client.simple_query("select 1").await
    };
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(5), ask).await })
        .is_ok_and(|answer| answer.is_ok())
}

fn measure_round(
    round: usize,
    options: &Options,
    ground: &Ground,
    targets: &BTreeMap<Target, Running>,
    samples: &mut Samples,
) -> Result<(), ServerError> {
    for &protocol in &options.protocols {
        for &clients in &options.clients {
            let mut order: Vec<Target> = targets.keys().copied().collect();
            // Each round begins with another one, so that nobody always runs on the caches that somebody else warmed.
            let turn = round % order.len().max(1);
            order.rotate_left(turn);
            for target in order {
                let running = &targets[&target];
                if target == Target::Pgbouncer
                    && protocol == Protocol::Prepared
                    && round == 0
                    && clients == options.clients[0]
                {
                    eprintln!(
                        "PgBouncer before 1.21 cannot do prepared statements under transaction pooling: left out there"
                    );
                }
                if target == Target::Pgbouncer && protocol == Protocol::Prepared {
                    continue;
                }
                let sample = measure(options, ground, running, protocol, clients)?;
                let cpu = sample.cpu_us.map(|us| format!(", {us:.1} us CPU")).unwrap_or_default();
                eprintln!(
                    "round {} {} {clients:>3} {:<9} {:>8.0} tps{cpu}",
                    round + 1,
                    name(protocol),
                    name(target),
                    sample.tps
                );
                samples.entry((protocol, clients, target)).or_default().push(sample);
            }
        }
    }
    Ok(())
}

fn measure(
    options: &Options,
    ground: &Ground,
    running: &Running,
    protocol: Protocol,
    clients: u32,
) -> Result<Sample, ServerError> {
    let mut pgbench = ground.command(ground.binaries().postgres_program("pgbench"));
    pgbench.args(["-n", "-h", "127.0.0.1", "-U", "postgres", "-M", name(protocol).as_str()]);
    pgbench.args(["-p", &running.port.to_string(), "-c", &clients.to_string(), "-j", &clients.min(2).to_string()]);
    pgbench.args(["-T", &options.seconds.to_string()]);
    if options.workload == Workload::Select {
        pgbench.arg("-S");
    }
    let pid = running.process.as_ref().and_then(Supervisor::pid);
    let (before, began) = (pid.and_then(cpu_time), Instant::now());
    let output =
        pgbench.arg("bench").output().map_err(|error| ServerError(format!("cannot start pgbench: {error}")))?;
    let after = pid.and_then(cpu_time);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let failed = || ServerError(format!("pgbench failed after {:?}:\n{text}{errors}", began.elapsed()));
    if !output.status.success() || !text.contains("number of failed transactions: 0") {
        return Err(failed());
    }
    let number = |label: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(label))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let transactions = number("number of transactions actually processed: ").ok_or_else(failed)?;
    let cpu = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    Ok(Sample {
        tps: number("tps = ").ok_or_else(failed)?,
        latency_ms: number("latency average = ").ok_or_else(failed)?,
        cpu_us: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / transactions),
    })
}

/// CPU time of a process: nanoseconds from its threads' schedstat, or hundredths of seconds from its stat.
fn cpu_time(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of_thread =
        |path: &Path| -> Option<u64> { fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok() };
    let nanoseconds: Option<u64> = threads.flatten().map(|entry| of_thread(&entry.path().join("schedstat"))).sum();
    nanoseconds.filter(|&sum| sum > 0).map(Duration::from_nanos).or_else(|| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 10))
    })
}

fn print_table(options: &Options, samples: &Samples) {
    println!(
        "\n{} rounds of {} s, medians; in brackets the lowest and the highest round\n",
        options.rounds, options.seconds
    );
    println!(
        "| protocol | clients | through | TPS | latency ms | proxy CPU us/tx | CPU, pgherd : PgBouncer | TPS, pgherd : PgBouncer |"
    );
    println!("|---|---:|---|---:|---:|---:|---:|---:|");
    for (&(protocol, clients, target), runs) in samples {
        let rival = samples.get(&(protocol, clients, Target::Pgbouncer)).filter(|_| target == Target::Pgherd);
        let ratio = |of: fn(&Sample) -> Option<f64>| {
            let rival = rival?;
            let mut ratios: Vec<f64> = runs.iter().zip(rival).filter_map(|(a, b)| Some(of(a)? / of(b)?)).collect();
            Some(format!("{} [{}]", fixed(median(&mut ratios)?, 2), range(&ratios, 2)))
        };
        let of = |get: fn(&Sample) -> Option<f64>, digits: usize| {
            let mut values: Vec<f64> = runs.iter().filter_map(get).collect();
            median(&mut values).map(|middle| format!("{} [{}]", fixed(middle, digits), range(&values, digits)))
        };
        let tps = of(|sample| Some(sample.tps), 0).unwrap_or_default();
        let latency = of(|sample| Some(sample.latency_ms), 3).unwrap_or_default();
        let cpu = of(|sample| sample.cpu_us, 1).unwrap_or_else(|| "-".to_owned());
        let cpu_ratio = ratio(|sample| sample.cpu_us).unwrap_or_default();
        let tps_ratio = ratio(|sample| Some(sample.tps)).unwrap_or_default();
        println!(
            "| {} | {clients} | {} | {tps} | {latency} | {cpu} | {cpu_ratio} | {tps_ratio} |",
            name(protocol),
            name(target)
        );
    }
}

/// The middle value; sorts on the way.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Lowest and highest of sorted values.
fn range(sorted: &[f64], digits: usize) -> String {
    let ends = sorted.first().zip(sorted.last());
    ends.map(|(low, high)| format!("{} - {}", fixed(*low, digits), fixed(*high, digits))).unwrap_or_default()
}

fn fixed(value: f64, digits: usize) -> String {
    format!("{value:.digits$}")
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
