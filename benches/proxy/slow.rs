//! How much a proxy's resident memory grows while a slow client takes a large result.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgherd::commands::demo::servers::ServerError;
use pgherd::wire::writer;

use crate::client::{Client, Door};
use crate::figures::{Column, Sheet};
use crate::targets::{Entrance, Running, Yard, door, resident_kib};
use crate::{Options, failed, name};

/// A row's one value.
const VALUE_BYTES: u64 = 1000;
/// What a row takes beyond its value: tag, length, number of columns, length of the value.
const ROW_BYTES: u64 = VALUE_BYTES + 11;
const MIB: u64 = 1 << 20;
/// How long the client is slow, at the beginning and again near the end.
const SLOW: Duration = Duration::from_secs(5);
/// What it takes at a time while it is slow: some 3 MiB a second.
const SIP_BYTES: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(20);
/// How often memory is looked at.
const LOOKING: Duration = Duration::from_millis(5);

struct Sample {
    mib: f64,
    seconds: f64,
    growth_kib: Option<f64>,
    cpu_ms_per_gib: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// Something does not start, or a client failed.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let mut sheet = Sheet::new();
    for tls in [false, true] {
        let entrance = Entrance { scram: false, tls };
        for (target, running) in yard.start(&options.proxies(), entrance)? {
            let sample = measure(&running, &door(running.port, entrance), options.slow_mib)
                .map_err(|error| failed(format!("a slow client of {}", name(target)), error))?;
            let growth = sample.growth_kib.unwrap_or_default();
            eprintln!("slow client, TLS {tls}, {}: grew by {growth:.0} KiB", name(target));
            sheet.add(tls, target, sample);
        }
    }
    println!(
        "\n### A slow client\n\nIt takes {} MiB: some 3 MiB/s for {} s, then as fast as they come, then slowly for {} s again.",
        options.slow_mib,
        SLOW.as_secs(),
        SLOW.as_secs()
    );
    let columns = [
        Column::new("MiB", 0, |sample: &Sample| Some(sample.mib)),
        Column::new("s", 1, |sample| Some(sample.seconds)),
        Column::new("highest growth, KiB", 0, |sample| sample.growth_kib),
        Column::compared("proxy CPU ms/GiB", 0, |sample| sample.cpu_ms_per_gib),
    ];
    sheet.print(&["way in"], |&tls| vec![if tls { "TLS" } else { "plain" }.to_owned()], &columns);
    Ok(())
}

fn measure(running: &Running, door: &Door, mib: u64) -> io::Result<Sample> {
    let mut client = door.enter()?;
    for _ in 0..100 {
        client.query("select 1")?;
    }
    let (resident, cpu, began) = (running.resident_kib(), running.cpu_time(), Instant::now());
    let (pid, is_over) = (running.pid(), AtomicBool::new(false));
    let (bytes, highest) = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut highest = f64::MIN;
            while !is_over.load(Ordering::Relaxed) {
                highest = highest.max(pid.and_then(resident_kib).unwrap_or(f64::MIN));
                thread::sleep(LOOKING);
            }
            highest
        });
        let taken = take(&mut client, mib * MIB);
        is_over.store(true, Ordering::Relaxed);
        (taken, watcher.join().unwrap_or(f64::NAN))
    });
    let (bytes, seconds) = (bytes? as f64, began.elapsed().as_secs_f64());
    let cpu = running.cpu_since(cpu);
    client.leave()?;
    Ok(Sample {
        mib: bytes / MIB as f64,
        seconds,
        growth_kib: resident.map(|before| highest - before),
        cpu_ms_per_gib: cpu.map(|seconds| seconds * 1e3 / (bytes / (1 << 30) as f64)),
    })
}

/// Asks for so many bytes and takes them.
fn take(client: &mut Client, wanted: u64) -> io::Result<u64> {
    ask(client, wanted)?;
    let (mut bytes, mut fast) = (0, vec![0; 1 << 20]);
    // The last slow part begins when so much is left.
    let last = wanted - wanted / 20;
    for until in [wanted / 2, wanted] {
        let began = Instant::now();
        while began.elapsed() < SLOW && bytes < until {
            if sip(client, &mut bytes)? {
                return Ok(bytes);
            }
        }
        while bytes < if until == wanted { u64::MAX } else { last } {
            if client.read_some(&mut fast, &mut bytes)? {
                return Ok(bytes);
            }
        }
    }
    Ok(bytes)
}

/// Asks for a result of so many bytes.
///
/// # Errors
/// The connection failed.
pub(crate) fn ask(client: &mut Client, bytes: u64) -> io::Result<()> {
    let mut request = BytesMut::new();
    let rows = bytes.div_ceil(ROW_BYTES);
    writer::query(
        &mut request,
        format!("select repeat('x', {VALUE_BYTES} + 0 * generate_series(1, {rows}))").as_bytes(),
    );
    client.send(&request)
}

/// Takes a little, and pauses.
///
/// # Errors
/// The connection failed, or the server answered with an error.
pub(crate) fn sip(client: &mut Client, bytes: &mut u64) -> io::Result<bool> {
    let is_over = client.read_some(&mut [0; SIP_BYTES], bytes)?;
    thread::sleep(PAUSE);
    Ok(is_over)
}
