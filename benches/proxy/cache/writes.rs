//! What the cache costs those who write: pgbench's default transaction with the cache off, on, and on with a Redis.

use pgherd::commands::demo::servers::{RedisServer, ServerError};

use super::redis::{COPY, copy_of_bench, with_redis};
use super::table::{Figure, Table};
use crate::targets::{Entrance, Yard};
use crate::throughput::{self, Sample};
use crate::{Options, Protocol, Workload, in_turn, name};

const CLIENTS: u32 = 16;

const CPU: Figure<Sample> = Figure { title: "proxy CPU us/tx", digits: 1, of: |sample| sample.cpu_us };
const LATENCY: Figure<Sample> = Figure { title: "latency ms", digits: 2, of: |sample| Some(sample.latency_ms) };

/// Measures and prints.
pub(super) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let (rounds, seconds) = (options.rounds(7), options.seconds(4));
    copy_of_bench(yard)?;
    let start = |cache: &str| yard.start_pgherd(Entrance::default(), cache);
    let mut running = vec![("off", start("enabled = false")?), ("memory", start("enabled = true")?)];
    let redis = RedisServer::start(yard.ground)?;
    if let Some(redis) = &redis {
        running.push((
            "memory and Redis",
            yard.start_pgherd_on(COPY, Entrance::default(), &with_redis(redis.port(), ""))?,
        ));
    }
    for protocol in options.protocols.iter().copied().filter(|protocol| *protocol != Protocol::Extended) {
        let mut table = Table::new();
        for round in 0..rounds {
            for (target, running) in in_turn(round, &running) {
                let sample = throughput::measure(Workload::Tpcb, yard, running, protocol, CLIENTS, seconds)?;
                let cpu = sample.cpu_us.unwrap_or_default();
                eprintln!(
                    "round {} {} cache {target:<16} {:>6.0} tps, {cpu:.1} us CPU",
                    round + 1,
                    name(protocol),
                    sample.tps
                );
                table.add(target, sample);
            }
        }
        println!(
            "\n### TPC-B, {} protocol\n\n{rounds} rounds of {seconds} s, {CLIENTS} clients, by the cache.",
            name(protocol)
        );
        table.print(&[Figure { title: "TPS", digits: 0, of: |sample| Some(sample.tps) }, LATENCY, CPU]);
        table.compare(&CPU, "memory", "off", "aim: at most 1.03");
        table.compare(&CPU, "memory and Redis", "off", "aim: at most 1.10");
        table.compare(&LATENCY, "memory", "off", "no aim");
        table.compare(&LATENCY, "memory and Redis", "off", "no aim");
    }
    Ok(())
}
