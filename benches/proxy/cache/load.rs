//! The load of this measure: clients on one thread that send the same bytes again as soon as the answer is there.

use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgherd::wire::writer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::Door;
use crate::figures::Spread;
use crate::targets::Running;

/// What came of it.
pub(super) struct Sample {
    pub(super) per_second: f64,
    pub(super) mib_per_second: f64,
    pub(super) mean_us: f64,
    pub(super) p99_us: f64,
    /// Processor time of the server's side for each answer.
    pub(super) cpu_us: Option<f64>,
}

/// A simple Query.
pub(super) fn query(text: &str) -> BytesMut {
    let mut out = BytesMut::new();
    writer::query(&mut out, text.as_bytes());
    out
}

/// The bytes of an answer, as they come.
pub(super) fn answer(door: &Door, text: &str) -> io::Result<Vec<u8>> {
    let mut client = door.enter()?;
    client.send(&query(text))?;
    let (mut answer, mut buf) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let mut read = 0;
        let is_over = client.read_some(&mut buf, &mut read)?;
        answer.extend_from_slice(&buf[..read as usize]);
        if is_over {
            return Ok(answer);
        }
    }
}

/// So many clients ask that for so long. The answer is known by its length, so that the load itself costs little.
pub(super) fn ask(running: &Running, door: &Door, clients: usize, text: &str, lasting: Duration) -> io::Result<Sample> {
    let length = answer(door, text)?.len();
    let mut sockets = Vec::new();
    for _ in 0..clients {
        sockets.push(door.enter()?.into_socket()?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (cpu_before, began) = (running.cpu_time(), Instant::now());
    let request = query(text).freeze();
    let latencies = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for socket in sockets {
            socket.set_nonblocking(true)?;
            tasks.spawn(keep_asking(TcpStream::from_std(socket)?, request.clone(), length, began + lasting));
        }
        let mut all = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            all.extend(ended.map_err(io::Error::other)??);
        }
        io::Result::Ok(all)
    })?;
    let (took, cpu) = (began.elapsed().as_secs_f64(), running.cpu_since(cpu_before));
    let answers = latencies.len() as f64;
    let mean_us = latencies.iter().sum::<f64>() / answers;
    Ok(Sample {
        per_second: answers / took,
        mib_per_second: answers * length as f64 / took / f64::from(1 << 20),
        mean_us,
        p99_us: Spread::of(latencies).quantile(0.99).unwrap_or(f64::NAN),
        cpu_us: cpu.map(|seconds| seconds * 1e6 / answers),
    })
}

async fn keep_asking(
    mut socket: TcpStream,
    request: bytes::Bytes,
    length: usize,
    until: Instant,
) -> io::Result<Vec<f64>> {
    let mut latencies = Vec::new();
    let mut buf = vec![0; 256 * 1024];
    let mut asked = Instant::now();
    while asked < until {
        socket.write_all(&request).await?;
        let mut left = length;
        while left > 0 {
            let read = socket.read(&mut buf).await?;
            if read == 0 || read > left {
                return Err(io::Error::other("an answer of another length"));
            }
            left -= read;
        }
        if buf[0] == b'E' {
            return Err(io::Error::other("an error for an answer"));
        }
        let now = Instant::now();
        latencies.push((now - asked).as_secs_f64() * 1e6);
        asked = now;
    }
    Ok(latencies)
}
