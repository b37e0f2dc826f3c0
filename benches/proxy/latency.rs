//! One client's mean latency, and percentiles under a mixed load beside a client that reads slowly.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use pgherd::commands::demo::servers::ServerError;
use pgherd::wire::writer;

use crate::client::{Client, Door};
use crate::figures::{Column, Sheet, Spread};
use crate::harness::wire::bind;
use crate::targets::{Entrance, Target, Yard, door};
use crate::{Options, Protocol, failed, in_turn, name, slow};

/// How long one client keeps at one target before it is the next one's turn: short, so that all see the same weather.
const SLICE: Duration = Duration::from_millis(250);
/// Clients of the mixed load, and how often each of them asks: a load that leaves processor time over.
const CLIENTS: u32 = 16;
const EVERY: Duration = Duration::from_millis(16);
/// The slow client's result is larger than it can take in time.
const SLOW_BYTES: u64 = 1 << 30;

/// Microseconds of one client's requests.
struct Alone {
    mean: f64,
    p50: f64,
}

/// Milliseconds below which that share of requests was answered, and the longest.
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// Measures and prints.
///
/// # Errors
/// Something does not start, or a client failed.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let running = yard.start(&options.only, Entrance::default())?;
    let doors: Vec<(Target, Door)> =
        running.iter().map(|(target, running)| (*target, door(running.port, Entrance::default()))).collect();
    let accounts = u64::from(options.scale) * 100_000;
    one_client(options, &doors, accounts).map_err(|error| failed("one client", error))?;
    mixed(options, &doors, accounts).map_err(|error| failed("the mixed load", error))
}

fn one_client(options: &Options, doors: &[(Target, Door)], accounts: u64) -> io::Result<()> {
    let rounds = options.rounds(20);
    let mut sheet = Sheet::new();
    let mut clients: Vec<(Target, Client)> = Vec::new();
    for (target, door) in doors {
        clients.push((*target, door.enter()?));
    }
    for protocol in [Protocol::Simple, Protocol::Extended] {
        for round in 0..rounds {
            for at in 0..clients.len() {
                let turn = (at + round) % clients.len();
                let (target, client) = &mut clients[turn];
                let (began, mut latencies) = (Instant::now(), Vec::new());
                while began.elapsed() < SLICE {
                    let asked = Instant::now();
                    client.ask(&by_key(protocol, rand::random_range(1..=accounts)), &mut [0; 4096])?;
                    latencies.push(asked.elapsed().as_secs_f64() * 1e6);
                }
                let mean = latencies.iter().sum::<f64>() / latencies.len() as f64;
                let p50 = Spread::of(latencies).median().unwrap_or(f64::NAN);
                sheet.add(protocol, *target, Alone { mean, p50 });
            }
        }
    }
    println!("\n### Latency of one client\n\n{rounds} rounds of {} ms, reads of one row by key.", SLICE.as_millis());
    let columns = [
        Column::compared("mean us", 1, |alone: &Alone| Some(alone.mean)),
        Column::compared("p50 us", 1, |alone| Some(alone.p50)),
    ];
    sheet.print(&["protocol"], |protocol| vec![name(*protocol)], &columns);
    Ok(())
}

fn mixed(options: &Options, doors: &[(Target, Door)], accounts: u64) -> io::Result<()> {
    let (rounds, seconds) = (options.rounds(4), options.seconds(3));
    let mut sheet = Sheet::new();
    for round in 0..rounds {
        for (target, door) in in_turn(round, doors) {
            let latencies = under_load(door, Duration::from_secs(seconds.into()), accounts)?;
            for (of, kind) in [(None, "all"), (Some(Kind::Read), "reads by key")] {
                let some = latencies.iter().filter(|(kind, _)| of.is_none_or(|of| of == *kind));
                let spread = Spread::of(some.map(|(_, latency)| latency.as_secs_f64() * 1e3));
                let at = |share: f64| spread.quantile(share).unwrap_or(f64::NAN);
                let percentiles =
                    Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) };
                if of.is_none() {
                    let (p50, p99, through) = (percentiles.p50, percentiles.p99, name(*target));
                    eprintln!("round {} mixed {through}: p50 {p50:.2} ms, p99 {p99:.2} ms", round + 1);
                }
                sheet.add(kind, *target, percentiles);
            }
        }
    }
    println!(
        "\n### Latency under a mixed load\n\n{rounds} rounds of {seconds} s: {CLIENTS} clients ask each {:.0} times a second (of 20: 16 \
         reads of a row by key, 1 of 500 rows, 3 updates), and one more reads a large result at 3 MiB/s. ms from when a request was due.",
        1.0 / EVERY.as_secs_f64()
    );
    let columns = [
        Column::compared("p50", 2, |percentiles: &Percentiles| Some(percentiles.p50)),
        Column::new("p90", 2, |percentiles| Some(percentiles.p90)),
        Column::compared("p99", 2, |percentiles| Some(percentiles.p99)),
        Column::compared("p99.9", 2, |percentiles| Some(percentiles.p999)),
        Column::new("max", 1, |percentiles| Some(percentiles.max)),
    ];
    sheet.print(&["requests"], |kind| vec![(*kind).to_owned()], &columns);
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Many,
    Write,
}

/// Every request with the time from when it was due until its answer was there.
fn under_load(door: &Door, lasting: Duration, accounts: u64) -> io::Result<Vec<(Kind, Duration)>> {
    let is_over = AtomicBool::new(false);
    let mut slow = door.enter()?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(door.enter()?);
    }
    let began = Instant::now();
    thread::scope(|scope| {
        let slow = scope.spawn(|| {
            slow::ask(&mut slow, SLOW_BYTES)?;
            let mut bytes = 0;
            while !is_over.load(Ordering::Relaxed) {
                if slow::sip(&mut slow, &mut bytes)? {
                    break;
                }
            }
            io::Result::Ok(())
        });
        let shifted = clients.into_iter().zip(0..);
        let threads: Vec<_> = shifted
            .map(|(client, at)| {
                scope.spawn(move || keep_asking(client, began + EVERY * at / CLIENTS, lasting, accounts))
            })
            .collect();
        let mut all = Vec::new();
        let mut ended = Ok(());
        for thread in threads {
            match thread.join().unwrap_or_else(|_| Err(io::Error::other("a client's thread panicked"))) {
                Ok(some) => all.extend(some),
                Err(error) => ended = Err(error),
            }
        }
        is_over.store(true, Ordering::Relaxed);
        slow.join().unwrap_or_else(|_| Err(io::Error::other("the slow client's thread panicked")))?;
        ended.map(|()| all)
    })
}

/// Asks by the clock, not when the last answer came: who answers late is not asked less.
fn keep_asking(
    mut client: Client,
    first: Instant,
    lasting: Duration,
    accounts: u64,
) -> io::Result<Vec<(Kind, Duration)>> {
    let (mut due, mut latencies, mut buf) = (first, Vec::new(), vec![0; 64 * 1024]);
    while due < first + lasting {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let key = rand::random_range(1..=accounts);
        let (kind, request) = match rand::random_range(0..20) {
            0 => {
                (Kind::Many, simple(&format!("select * from pgbench_accounts where aid between {key} and {key} + 499")))
            }
            1..=3 => {
                (Kind::Write, simple(&format!("update pgbench_accounts set abalance = abalance + 1 where aid = {key}")))
            }
            _ => (Kind::Read, by_key(Protocol::Simple, key)),
        };
        client.ask(&request, &mut buf)?;
        latencies.push((kind, due.elapsed()));
        due += EVERY;
    }
    client.leave()?;
    Ok(latencies)
}

fn simple(text: &str) -> BytesMut {
    let mut out = BytesMut::new();
    writer::query(&mut out, text.as_bytes());
    out
}

/// What pgbench -S asks.
fn by_key(protocol: Protocol, key: u64) -> BytesMut {
    if protocol == Protocol::Simple {
        return simple(&format!("SELECT abalance FROM pgbench_accounts WHERE aid = {key};"));
    }
    let mut out = BytesMut::new();
    writer::parse(&mut out, b"", b"SELECT abalance FROM pgbench_accounts WHERE aid = $1;", &[]);
    bind(&mut out, "", "", &[Some(&key.to_string())], 0);
    writer::describe(&mut out, b'P', b"");
    writer::execute(&mut out, b"", 0);
    out.put_slice(b"S\0\0\0\x04");
    out
}
