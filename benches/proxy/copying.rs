//! COPY FROM over four shards of one server, beside a plain COPY into one table of it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use pgherd::commands::demo::servers::ServerError;

use crate::client::{Client, Door};
use crate::figures::Spread;
use crate::herd::{Herd, Place, SHARDS, shard_name};
use crate::targets::{Entrance, Yard, door};
use crate::{Options, failed};

/// psql sends COPY's data in messages of this size.
const COPY_DATA_BYTES: usize = 8 * 1024;
/// What the kernel counts processor time in.
const TICKS_PER_SECOND: f64 = 100.0;

/// One COPY: its seconds, and the processor time of servers and proxy in microseconds for each row.
#[derive(Default)]
struct Sample {
    seconds: f64,
    server_us: f64,
    proxy_us: f64,
}

/// Measures and prints.
///
/// # Errors
/// Something does not start, or a client failed.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let (rounds, rows) = (options.rounds(2), options.rows);
    println!("\n### COPY FROM over shards\n\n{rounds} rounds of {rows} rows, one client, {SHARDS} shards.");
    println!(
        "\n| table | plain, s | over shards, s | plain, server CPU us/row | over shards, servers | proxy | together : plain | wall, over shards : plain |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for (name, key) in [("without an index", "not null"), ("with a primary key", "primary key")] {
        let table =
            |name: &str| format!("create table {name} (k int8 {key}, g int4 not null, v numeric(12, 2), word text)");
        let herd = Herd::start(yard, &table("t"), &[("t", "k")])?;
        // Of another name: on the primary one of the shards' tables would be ambiguous.
        yard.server.sql("bench", &format!("drop table if exists plain; {}", table("plain")))?;
        let mut samples = Vec::new();
        for round in 0..rounds {
            let mut pair = [Sample::default(), Sample::default()];
            for turn in 0..2 {
                let is_over_shards = (turn + round) % 2 == 1;
                yard.server.sql("bench", "truncate plain")?;
                for shard in 0..SHARDS {
                    yard.server.sql(&shard_name(shard), "truncate t")?;
                }
                yard.server.sql("bench", "checkpoint")?;
                let way = match is_over_shards {
                    true => herd.through(Place::Together),
                    false => door(yard.server.port(), Entrance::default()),
                };
                let into = if is_over_shards { "t" } else { "plain" };
                let sample = measure(yard, &herd, &way, into, rows).map_err(|error| failed(name, error))?;
                eprintln!(
                    "round {} {name}, over shards {is_over_shards}: {:.1} s, {:.2} + {:.2} us/row",
                    round + 1,
                    sample.seconds,
                    sample.server_us,
                    sample.proxy_us
                );
                pair[usize::from(is_over_shards)] = sample;
                if is_over_shards {
                    check(yard, rows)?;
                }
            }
            samples.push(pair);
        }
        print(name, &samples);
    }
    Ok(())
}

/// All rows are there, and each shard has its part.
fn check(yard: &Yard<'_>, rows: u64) -> Result<(), ServerError> {
    let mut all = 0;
    for shard in 0..SHARDS {
        let count = yard.server.sql(&shard_name(shard), "select count(*) from t")?;
        let count = count.first().and_then(|row| row.first()?.as_deref()?.parse::<u64>().ok()).unwrap_or(0);
        if count == 0 {
            return Err(ServerError(format!("shard {shard} has got nothing")));
        }
        all += count;
    }
    if all == rows { Ok(()) } else { Err(ServerError(format!("{all} rows have come of {rows}"))) }
}

fn measure(yard: &Yard<'_>, herd: &Herd, door: &Door, into: &str, rows: u64) -> io::Result<Sample> {
    let mut client = door.enter()?;
    client.query("select 1")?;
    let server = || yard.server.pid().map_or(f64::NAN, tree_seconds);
    let (server_before, proxy_before, began) = (server(), herd.running.cpu_time(), Instant::now());
    copy(&mut client, into, rows)?;
    let seconds = began.elapsed().as_secs_f64();
    let per_row = 1e6 / rows as f64;
    let proxy_us = herd.running.cpu_since(proxy_before).unwrap_or(f64::NAN) * per_row;
    let sample = Sample { seconds, server_us: (server() - server_before) * per_row, proxy_us };
    client.leave()?;
    Ok(sample)
}

/// As psql does: messages of 8 KiB, each sent when it is full.
fn copy(client: &mut Client, into: &str, rows: u64) -> io::Result<()> {
    client.query(&format!("copy {into} from stdin"))?;
    let mut out = BytesMut::from(&b"d\0\0\0\0"[..]);
    for row in 0..rows {
        let line = format!("{row}\t{}\t{}.{:02}\t{row:032x}\n", row % 1000, row % 100_000, row % 100);
        out.put_slice(line.as_bytes());
        if out.len() >= COPY_DATA_BYTES || row + 1 == rows {
            let len = out.len() as u32 - 1;
            out[1..5].copy_from_slice(&len.to_be_bytes());
            client.send(&out)?;
            out.truncate(5);
        }
    }
    // CopyDone.
    client.ask(&[b'c', 0, 0, 0, 4], &mut [0; 4096]).map(drop)
}

/// Processor time of a process, of its children, and of those of them that have ended, in seconds.
fn tree_seconds(root: u32) -> f64 {
    // Of each process: its parent, its own ticks, and those of children that it has outlived.
    let mut all: HashMap<u32, (u32, u64, u64)> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        all.extend(stat(pid).map(|stat| (pid, stat)));
    }
    let own = all.get(&root).map_or(0, |(_, own, outlived)| own + outlived);
    let children: u64 = all.values().filter(|(parent, ..)| *parent == root).map(|(_, own, _)| own).sum();
    (own + children) as f64 / TICKS_PER_SECOND
}

fn stat(pid: u32) -> Option<(u32, u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((number(1)? as u32, number(11)? + number(12)?, number(13)? + number(14)?))
}

fn print(name: &str, samples: &[[Sample; 2]]) {
    let show = |digits: usize, of: &dyn Fn(&[Sample; 2]) -> f64| {
        Spread::of(samples.iter().map(of)).show(digits).unwrap_or_default()
    };
    let together = |sample: &Sample| sample.server_us + sample.proxy_us;
    let cells = [
        show(1, &|[plain, _]| plain.seconds),
        show(1, &|[_, over]| over.seconds),
        show(2, &|[plain, _]| plain.server_us),
        show(2, &|[_, over]| over.server_us),
        show(2, &|[_, over]| over.proxy_us),
        show(2, &|[plain, over]| together(over) / plain.server_us),
        show(2, &|[plain, over]| over.seconds / plain.seconds),
    ];
    println!("| {name} | {} |", cells.join(" | "));
}
