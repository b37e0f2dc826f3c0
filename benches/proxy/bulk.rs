//! COPY FROM, COPY TO and SELECT of many rows: the proxy's CPU for each GiB that it relays.

use std::io;
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use pgherd::commands::demo::servers::ServerError;
use pgherd::wire::writer;

use crate::client::{Client, Door};
use crate::figures::{Column, Sheet};
use crate::targets::{Entrance, Running, Yard, door};
use crate::{Options, failed, in_turn};

/// psql sends COPY's data in messages of this size.
const COPY_DATA_BYTES: usize = 8 * 1024;
const READ_BYTES: usize = 256 * 1024;
const GIB: f64 = (1 << 30) as f64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    CopyFrom,
    CopyTo,
    Select,
}

struct Sample {
    mib: f64,
    mib_per_second: f64,
    cpu_ms_per_gib: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// Something does not start, or a client failed.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let (rounds, rows) = (options.rounds(3), options.rows);
    yard.server
        .sql("bench", "create unlogged table bulk (id int8, word text); create unlogged table bulk_in (like bulk)")?;
    let filler = "select n, md5(n::text) || repeat(md5((n * 7)::text), 2)";
    yard.server.sql("bench", &format!("insert into bulk {filler} from generate_series(1, {rows}) n"))?;
    yard.server.sql("bench", "vacuum analyze bulk")?;
    yard.server.sql("bench", "checkpoint")?;
    let running = yard.start(&options.only, Entrance::default())?;
    let mut sheet = Sheet::new();
    for round in 0..rounds {
        for way in [Way::CopyTo, Way::Select, Way::CopyFrom] {
            for (target, running) in in_turn(round, &running) {
                if way == Way::CopyFrom {
                    yard.server.sql("bench", "truncate bulk_in")?;
                }
                let sample = measure(running, &door(running.port, Entrance::default()), way, rows)
                    .map_err(|error| failed(format!("{way:?}"), error))?;
                let cpu = sample.cpu_ms_per_gib.unwrap_or_default();
                eprintln!("round {} {way:?} {target:?}: {:.0} MiB, {cpu:.0} ms CPU/GiB", round + 1, sample.mib);
                sheet.add(way, *target, sample);
            }
        }
    }
    yard.server.sql("bench", "drop table bulk, bulk_in")?;
    println!("\n### Bulk\n\n{rounds} rounds of {rows} rows, one client.");
    let columns = [
        Column::new("MiB", 0, |sample: &Sample| Some(sample.mib)),
        Column::compared("MiB/s", 0, |sample| Some(sample.mib_per_second)),
        Column::compared("proxy CPU ms/GiB", 0, |sample| sample.cpu_ms_per_gib),
    ];
    let named = |way: &Way| match way {
        Way::CopyFrom => "COPY FROM".to_owned(),
        Way::CopyTo => "COPY TO".to_owned(),
        Way::Select => "SELECT".to_owned(),
    };
    sheet.print(&["what"], |way| vec![named(way)], &columns);
    Ok(())
}

fn measure(running: &Running, door: &Door, way: Way, rows: u64) -> io::Result<Sample> {
    let mut client = door.enter()?;
    client.query("select 1")?;
    let mut buf = vec![0; READ_BYTES];
    let (before, began) = (running.cpu_time(), Instant::now());
    let mut read_all = |text: &str| {
        let mut request = BytesMut::new();
        writer::query(&mut request, text.as_bytes());
        client.ask(&request, &mut buf)
    };
    let bytes = match way {
        Way::CopyTo => read_all("copy bulk to stdout")?,
        Way::Select => read_all("select * from bulk")?,
        Way::CopyFrom => copy_in(&mut client, rows)?,
    };
    let (took, cpu) = (began.elapsed().as_secs_f64(), running.cpu_since(before));
    client.leave()?;
    let bytes = bytes as f64;
    Ok(Sample {
        mib: bytes / (1 << 20) as f64,
        mib_per_second: bytes / (1 << 20) as f64 / took,
        cpu_ms_per_gib: cpu.map(|seconds| seconds * 1e3 / (bytes / GIB)),
    })
}

/// As psql does: messages of 8 KiB, each sent when it is full.
fn copy_in(client: &mut Client, rows: u64) -> io::Result<u64> {
    let filler = "0123456789abcdef".repeat(6);
    client.query("copy bulk_in from stdin")?;
    let (mut out, mut bytes) = (message(), 0);
    for row in 0..rows {
        out.put_slice(row.to_string().as_bytes());
        out.put_u8(b'\t');
        out.put_slice(filler.as_bytes());
        out.put_u8(b'\n');
        if out.len() >= COPY_DATA_BYTES || row + 1 == rows {
            let len = out.len() as u32 - 1;
            out[1..5].copy_from_slice(&len.to_be_bytes());
            client.send(&out)?;
            bytes += out.len() as u64;
            out.truncate(5);
        }
    }
    // CopyDone.
    client.ask(&[b'c', 0, 0, 0, 4], &mut [0; 4096])?;
    Ok(bytes)
}

fn message() -> BytesMut {
    BytesMut::from(&b"d\0\0\0\0"[..])
}
