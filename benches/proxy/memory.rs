//! Resident memory per idle client, and the CPU that idle clients take.

use std::io;
use std::thread;
use std::time::Duration;

use pgherd::commands::demo::servers::ServerError;

use crate::client::{Client, Door};
use crate::figures::{Column, Sheet};
use crate::targets::{Entrance, Running, Yard, door};
use crate::{Options, failed, in_turn, name};

/// How long a proxy may tidy up before its memory is read.
const SETTLING: Duration = Duration::from_millis(300);
/// How long idle clients are watched.
const WATCHING: Duration = Duration::from_secs(10);
/// From so many clients on their CPU is measured.
const MANY: usize = 10_000;
/// Clients that come first and stay, so that what is needed once is there, and what the start needed has been given back.
const WARMING: usize = 200;
/// How long it is let alone before it is looked at again, how often at most, and when it is at rest.
const RESTING: Duration = Duration::from_millis(700);
const MOST_RESTS: usize = 8;
const STEADY_KIB: f64 = 64.0;
/// Threads that connect clients.
const CONNECTING: usize = 4;

struct Sample {
    /// KiB for each client that has connected.
    connected: Option<f64>,
    /// KiB for each client after one query.
    queried: Option<f64>,
    /// Milliseconds of CPU in a second with all clients idle.
    idle_cpu_ms: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// Something does not start, or a client failed.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let rounds = options.rounds(2);
    let proxies = options.proxies();
    let mut sheet = Sheet::new();
    for round in 0..rounds {
        for &clients in &options.idle_clients {
            for tls in [false, true] {
                for &target in in_turn(round, &proxies) {
                    let entrance = Entrance { scram: false, tls };
                    // A process of its own for each: memory that was once needed may not be given back.
                    let Some((_, running)) = yard.start(&[target], entrance)?.pop() else { continue };
                    let is_watched = clients >= MANY && round + 1 == rounds;
                    let sample = measure(&running, &door(running.port, entrance), clients, is_watched)
                        .map_err(|error| failed(format!("{clients} clients of {}", name(target)), error))?;
                    let kib = sample.queried.unwrap_or_default();
                    eprintln!("round {} {clients} clients, TLS {tls}, {}: {kib:.2} KiB each", round + 1, name(target));
                    sheet.add((clients, tls), target, sample);
                }
            }
        }
    }
    println!(
        "\n### Memory\n\n{rounds} rounds, KiB of resident memory for each client: VmRSS against that before they came."
    );
    let columns = [
        Column::compared("KiB connected", 2, |sample: &Sample| sample.connected),
        Column::compared("KiB after a query", 2, |sample| sample.queried),
        Column::new("CPU of all while idle, ms/s", 3, |sample| sample.idle_cpu_ms),
    ];
    let cells =
        |&(clients, tls): &(usize, bool)| vec![clients.to_string(), if tls { "TLS" } else { "plain" }.to_owned()];
    sheet.print(&["clients", "way in"], cells, &columns);
    Ok(())
}

fn measure(running: &Running, door: &Door, clients: usize, is_watched: bool) -> io::Result<Sample> {
    let mut first = crowd(door, WARMING)?;
    for client in &mut first {
        client.query("select 1")?;
    }
    let before = at_rest(running, door)?;
    let each = || {
        thread::sleep(SETTLING);
        Some((running.resident_kib()? - before?) / clients as f64)
    };
    let mut crowd = crowd(door, clients)?;
    let connected = each();
    for client in &mut crowd {
        client.query("select 1")?;
    }
    let queried = each();
    let mut idle_cpu_ms = None;
    if is_watched {
        let before = running.cpu_time();
        thread::sleep(WATCHING);
        idle_cpu_ms = running.cpu_since(before).map(|seconds| seconds * 1e3 / WATCHING.as_secs_f64());
    }
    Ok(Sample { connected, queried, idle_cpu_ms })
}

/// Resident memory once a few comings and goings change it no more: an allocator keeps what the start needed until it is used.
fn at_rest(running: &Running, door: &Door) -> io::Result<Option<f64>> {
    let mut last = None;
    for _ in 0..MOST_RESTS {
        for _ in 0..WARMING {
            let mut client = door.enter()?;
            client.query("select 1")?;
            client.leave()?;
        }
        thread::sleep(RESTING);
        let now = running.resident_kib();
        if last.zip(now).is_some_and(|(last, now): (f64, f64)| (last - now).abs() < STEADY_KIB) {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

fn crowd(door: &Door, clients: usize) -> io::Result<Vec<Client>> {
    thread::scope(|scope| {
        let enter = |count: usize| (0..count).map(|_| door.enter()).collect::<io::Result<Vec<Client>>>();
        let shares = (0..CONNECTING).map(|at| (clients + at) / CONNECTING);
        let threads: Vec<_> = shares.map(|share| scope.spawn(move || enter(share))).collect();
        let mut crowd = Vec::with_capacity(clients);
        for thread in threads {
            crowd.extend(thread.join().map_err(|_| io::Error::other("a connecting thread panicked"))??);
        }
        Ok(crowd)
    })
}
