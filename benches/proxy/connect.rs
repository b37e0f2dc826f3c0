//! Connect, query, disconnect: how many a second, and the proxy's CPU for each.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pgherd::commands::demo::servers::ServerError;

use crate::client::Door;
use crate::figures::{Column, Sheet};
use crate::targets::{Entrance, Running, Yard, door};
use crate::{Options, failed, in_turn, name};

/// Clients that connect at the same time.
const CLIENTS: usize = 4;
/// How long a proxy may still be busy with clients that have left.
const SETTLING: Duration = Duration::from_millis(50);

struct Sample {
    per_second: f64,
    cpu_us: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// Something does not start, or a client failed.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let (rounds, seconds) = (options.rounds(5), options.seconds(1));
    let mut sheet = Sheet::new();
    for (scram, tls) in [(false, false), (true, false), (false, true), (true, true)] {
        let entrance = Entrance { scram, tls };
        let running = yard.start(&options.proxies(), entrance)?;
        for (_, running) in &running {
            measure(running, &door(running.port, entrance), Duration::from_millis(200))
                .map_err(|error| failed("warming up", error))?;
        }
        for round in 0..rounds {
            for (target, running) in in_turn(round, &running) {
                let lasting = Duration::from_secs(seconds.into());
                let sample = measure(running, &door(running.port, entrance), lasting)
                    .map_err(|error| failed(format!("connecting to {}", name(*target)), error))?;
                let (each, through) = (sample.cpu_us.unwrap_or_default(), name(*target));
                eprintln!("round {} {}: {through} {each:.1} us CPU a connection", round + 1, named(&entrance));
                sheet.add(entrance, *target, sample);
            }
        }
    }
    println!("\n### Connect, query, disconnect\n\n{rounds} rounds of {seconds} s, {CLIENTS} clients at a time.");
    let columns = [
        Column::compared("connections/s", 0, |sample: &Sample| Some(sample.per_second)),
        Column::compared("proxy CPU us each", 1, |sample| sample.cpu_us),
    ];
    sheet.print(&["way in"], |entrance| vec![named(entrance)], &columns);
    Ok(())
}

fn named(entrance: &Entrance) -> String {
    let login = if entrance.scram { "SCRAM" } else { "trust" };
    if entrance.tls { format!("{login}, TLS") } else { login.to_owned() }
}

fn measure(running: &Running, door: &Door, lasting: Duration) -> io::Result<Sample> {
    let (before, began) = (running.cpu_time(), Instant::now());
    let is_over = AtomicBool::new(false);
    let visit = || -> io::Result<u64> {
        let mut visits = 0;
        while began.elapsed() < lasting && !is_over.load(Ordering::Relaxed) {
            let once = door.enter().and_then(|mut client| client.query("select 1").and_then(|_| client.leave()));
            once.inspect_err(|_| is_over.store(true, Ordering::Relaxed))?;
            visits += 1;
        }
        Ok(visits)
    };
    let visits = thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(visit)).collect();
        let visits = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a client's thread panicked"))));
        visits.sum::<io::Result<u64>>()
    })?;
    let took = began.elapsed().as_secs_f64();
    thread::sleep(SETTLING);
    let cpu = running.cpu_since(before);
    Ok(Sample { per_second: visits as f64 / took, cpu_us: cpu.map(|seconds| seconds * 1e6 / visits as f64) })
}
