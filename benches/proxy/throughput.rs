//! pgbench through everything: medians of TPS, latency and the proxy's CPU time per transaction.

use std::time::Instant;

use pgherd::commands::demo::servers::ServerError;

use crate::figures::{Column, Sheet};
use crate::targets::{Entrance, Running, Target, Yard};
use crate::{Options, Protocol, Workload, failed, in_turn, name};

/// One pgbench run.
pub(crate) struct Sample {
    pub(crate) tps: f64,
    pub(crate) latency_ms: f64,
    pub(crate) cpu_us: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// Something does not start, or pgbench failed.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    // As part of everything, rather many short rounds than few long ones.
    let (rounds, seconds) = if options.is_all() { (8, 1) } else { (5, 4) };
    let (rounds, seconds) = (options.rounds(rounds), options.seconds(seconds));
    let running = yard.start(&options.only, Entrance::default())?;
    if options.protocols.contains(&Protocol::Prepared) && options.only.contains(&Target::Pgbouncer) {
        eprintln!("PgBouncer before 1.21 cannot do prepared statements under transaction pooling: left out there");
    }
    let mut sheet = Sheet::new();
    for round in 0..rounds {
        for &protocol in &options.protocols {
            for &clients in &options.clients {
                for (target, running) in in_turn(round, &running) {
                    if *target == Target::Pgbouncer && protocol == Protocol::Prepared {
                        continue;
                    }
                    let sample = measure(options.workload, yard, running, protocol, clients, seconds)?;
                    let cpu = sample.cpu_us.map(|us| format!(", {us:.1} us CPU")).unwrap_or_default();
                    let (way, through) = (name(protocol), name(*target));
                    eprintln!("round {} {way} {clients:>3} {through:<9} {:>8.0} tps{cpu}", round + 1, sample.tps);
                    sheet.add((protocol, clients), *target, sample);
                }
            }
        }
    }
    println!(
        "\n### Throughput\n\n{rounds} rounds of {seconds} s, medians; in brackets the lowest and the highest round."
    );
    let columns = [
        Column::compared("TPS", 0, |sample: &Sample| Some(sample.tps)),
        Column::new("latency ms", 3, |sample| Some(sample.latency_ms)),
        Column::compared("proxy CPU us/tx", 1, |sample| sample.cpu_us),
    ];
    sheet.print(&["protocol", "clients"], |(protocol, clients)| vec![name(*protocol), clients.to_string()], &columns);
    Ok(())
}

pub(crate) fn measure(
    workload: Workload,
    yard: &Yard<'_>,
    running: &Running,
    protocol: Protocol,
    clients: u32,
    seconds: u32,
) -> Result<Sample, ServerError> {
    let mut pgbench = yard.ground.command(yard.ground.binaries().postgres_program("pgbench"));
    pgbench.args(["-n", "-h", "127.0.0.1", "-U", "postgres", "-M", name(protocol).as_str()]);
    pgbench.args(["-p", &running.port.to_string(), "-c", &clients.to_string(), "-j", &clients.min(2).to_string()]);
    pgbench.args(["-T", &seconds.to_string()]);
    if workload == Workload::Select {
        pgbench.arg("-S");
    }
    let (before, began) = (running.cpu_time(), Instant::now());
    let output = pgbench.arg("bench").output().map_err(|error| failed("cannot start pgbench", error))?;
    let cpu = running.cpu_since(before);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let broken = || ServerError(format!("pgbench failed after {:?}:\n{text}{errors}", began.elapsed()));
    if !output.status.success() || !text.contains("number of failed transactions: 0") {
        return Err(broken());
    }
    let number = |label: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(label))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let transactions = number("number of transactions actually processed: ").ok_or_else(broken)?;
    Ok(Sample {
        tps: number("tps = ").ok_or_else(broken)?,
        latency_ms: number("latency average = ").ok_or_else(broken)?,
        cpu_us: cpu.map(|seconds| seconds * 1e6 / transactions),
    })
}
