//! Rows of four shards merged: pgherd beside the same statements asked of the shards directly, and relayed without merging.

use std::io;

use pgherd::commands::demo::servers::ServerError;

use crate::client::Door;
use crate::figures::Spread;
use crate::herd::{Herd, Place, SHARDS, ask_together, shard_name, watched};
use crate::targets::Yard;
use crate::{Options, failed};

/// One group of `group by g` has this many rows.
const ROWS_OF_GROUP: u64 = 100;

/// What is asked, and how many rows of the shards it takes.
struct Case {
    name: &'static str,
    text: &'static str,
    rows: u64,
}

/// One round of a case.
#[derive(Default)]
struct Sample {
    direct_seconds: f64,
    relayed_seconds: f64,
    merged_seconds: f64,
    /// Of pgherd, for a million of the shards' rows.
    relayed_cpu_ms: f64,
    merged_cpu_ms: f64,
    growth_mib: f64,
}

/// Measures and prints.
///
/// # Errors
/// Something does not start, or a client failed.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let (rounds, rows) = (options.rounds(3), options.rows);
    let definitions = "create table t (k int8 primary key, g int4 not null, v numeric(12, 2), word text);
        create table by_k (k int8) partition by hash (k)";
    let herd = Herd::start(yard, definitions, &[("t", "k")])?;
    for shard in 0..SHARDS {
        let groups = rows.div_ceil(ROWS_OF_GROUP);
        let fill = format!(
            "insert into t select n, n * 7919 % {groups}, (n * 31 % 100000) / 100.0, md5(n::text)
             from generate_series(1::int8, {rows}) n where satisfies_hash_partition('by_k'::regclass, {SHARDS}, {shard}, n)"
        );
        yard.server.sql(&shard_name(shard), &fill)?;
        yard.server.sql(&shard_name(shard), "vacuum analyze t")?;
    }
    yard.server.sql("bench", "checkpoint")?;
    let cases = [
        Case { name: "ordered", text: "select * from t order by k", rows },
        Case { name: "ordered by numeric and key", text: "select * from t order by v desc, k", rows },
        Case { name: "concatenated", text: "select * from t", rows },
        Case {
            name: "groups",
            text: "select g, count(*), sum(v), avg(v) from t group by g",
            rows: SHARDS as u64 * rows.div_ceil(ROWS_OF_GROUP),
        },
    ];
    println!("\n### Merging\n\n{rounds} rounds, {rows} rows over {SHARDS} shards.");
    println!(
        "\n| what | direct, s | relayed, s | merged, s | merged : direct | CPU ms per million rows, relayed | merged | merged : relayed | resident above idle, MiB |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for case in &cases {
        let mut samples = Vec::new();
        for round in 0..rounds {
            let sample = measure(&herd, case, round).map_err(|error| failed(case.name, error))?;
            eprintln!(
                "round {} {}: direct {:.2} s, merged {:.2} s, CPU {:.0} against {:.0} ms",
                round + 1,
                case.name,
                sample.direct_seconds,
                sample.merged_seconds,
                sample.merged_cpu_ms,
                sample.relayed_cpu_ms
            );
            samples.push(sample);
        }
        print(case, &samples);
    }
    Ok(())
}

fn measure(herd: &Herd, case: &Case, round: usize) -> io::Result<Sample> {
    let mut sample = Sample::default();
    let doors = |way: &dyn Fn(usize) -> Door| -> Vec<Door> { (0..SHARDS).map(way).collect() };
    let millions = case.rows as f64 / 1e6;
    herd.through(Place::Together).enter()?.query("select 1")?;
    let idle = herd.running.resident_kib().unwrap_or_default();
    for turn in 0..3 {
        let before = herd.running.cpu_time();
        let cpu = || herd.running.cpu_since(before).unwrap_or(f64::NAN) * 1e3 / millions;
        match (turn + round) % 3 {
            0 => sample.direct_seconds = ask_together(&doors(&|shard| herd.direct(shard)), case.text)?,
            1 => {
                let alone = doors(&|shard| herd.through(Place::Alone(shard)));
                sample.relayed_seconds = ask_together(&alone, case.text)?;
                sample.relayed_cpu_ms = cpu();
            }
            _ => {
                let together = [herd.through(Place::Together)];
                let (took, highest) = watched(herd.running.pid(), || ask_together(&together, case.text));
                sample.merged_seconds = took?;
                sample.merged_cpu_ms = cpu();
                sample.growth_mib = (highest - idle) / 1024.0;
            }
        }
    }
    Ok(sample)
}

fn print(case: &Case, samples: &[Sample]) {
    let show = |digits: usize, of: &dyn Fn(&Sample) -> f64| {
        Spread::of(samples.iter().map(of)).show(digits).unwrap_or_default()
    };
    let cells = [
        show(2, &|sample| sample.direct_seconds),
        show(2, &|sample| sample.relayed_seconds),
        show(2, &|sample| sample.merged_seconds),
        show(2, &|sample| sample.merged_seconds / sample.direct_seconds),
        show(0, &|sample| sample.relayed_cpu_ms),
        show(0, &|sample| sample.merged_cpu_ms),
        show(2, &|sample| sample.merged_cpu_ms / sample.relayed_cpu_ms),
        show(1, &|sample| sample.growth_mib),
    ];
    println!("| {} | {} |", case.name, cells.join(" | "));
}
