//! The second tier: what a hit costs a pgherd whose memory is empty, in round trips of Redis, and what `strict` costs over `bounded`.

use std::time::{Duration, Instant};

use pgherd::commands::demo::servers::{RedisServer, ServerError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::table::{Figure, Table};
use super::{CLIENTS, CPU, MEAN, P99, PER_SECOND, QUESTION, measure};
use crate::figures::Spread;
use crate::harness::faults::{Faults, Forwarder};
use crate::targets::{Entrance, Yard, door};
use crate::{Options, failed};

/// The database for those with a Redis.
pub(super) const COPY: &str = "bench_redis";
/// How far Redis is away, one way.
const DELAY: Duration = Duration::from_millis(10);
/// Answers that one pgherd fills and another, which has never seen them, serves.
const ANSWERS: usize = 100;

struct Trip {
    round_trip_ms: f64,
    hit_ms: f64,
}

/// Measures and prints.
pub(super) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let Some(redis) = RedisServer::start(yard.ground)? else {
        eprintln!("redis-server is not installed (apt-get install redis-server): the measures with it are left out");
        return Ok(());
    };
    copy_of_bench(yard)?;
    cold(options, yard, &redis)?;
    let (rounds, seconds) = (options.rounds(5), options.seconds(2));
    let mut running = Vec::new();
    for (target, database, cache) in [
        ("memory alone", "bench", "enabled = true".to_owned()),
        ("Redis, bounded", COPY, with_redis(redis.port(), "consistency = \"bounded\"")),
        ("Redis, strict", COPY, with_redis(redis.port(), "")),
    ] {
        running.push((target, yard.start_pgherd_on(database, Entrance::default(), &cache)?));
    }
    for clients in [1, CLIENTS] {
        let mut table = Table::new();
        measure(&mut table, &running, rounds, seconds, QUESTION, clients)?;
        println!("\n### Hits of memory, beside a Redis\n\n{rounds} rounds of {seconds} s, clients: {clients}");
        table.print(&[PER_SECOND, CPU, MEAN, P99]);
        table.compare(&CPU, "Redis, strict", "Redis, bounded", "no aim");
    }
    Ok(())
}

/// Makes the database for those with a Redis, if it is not there yet.
pub(super) fn copy_of_bench(yard: &Yard<'_>) -> Result<(), ServerError> {
    if yard.server.sql("postgres", &format!("select 1 from pg_database where datname = '{COPY}'"))?.is_empty() {
        yard.server.sql("postgres", &format!("create database {COPY} template bench"))?;
        yard.server.sql(COPY, "vacuum analyze")?;
    }
    Ok(())
}

/// `[cache]` with a Redis there.
pub(super) fn with_redis(port: u16, more: &str) -> String {
    format!(
        "enabled = true\n{more}\nredis = {{ url = \"redis://127.0.0.1:{port}/0\", timeout = \"200ms\", lease = \"5s\" }}\n"
    )
}

fn cold(options: &Options, yard: &Yard<'_>, redis: &RedisServer) -> Result<(), ServerError> {
    let rounds = options.rounds(3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| failed("starting a runtime", error))?;
    let forwarder = runtime.block_on(Forwarder::to(redis.port()));
    let near = yard.start_pgherd_on(COPY, Entrance::default(), &with_redis(redis.port(), ""))?;
    // One that goes would have the others ask nobody until its lease has run out.
    let mut all = Vec::new();
    let mut table = Table::new();
    for round in 0..rounds {
        // Nobody has asked this one before.
        forwarder.set(Faults { delay: DELAY, ..Faults::default() });
        let far = yard.start_pgherd_on(COPY, Entrance::default(), &with_redis(forwarder.port, ""))?;
        let enter = |port| door(port, Entrance::default()).enter().map_err(|error| failed("connecting", error));
        let (mut near, mut far_client) = (enter(near.port)?, enter(far.port)?);
        let text = |at: usize| format!("select count(*) + {at} + {round} * {ANSWERS} from pgbench_tellers");
        let deadline = Instant::now() + Duration::from_secs(60);
        for at in 0.. {
            // Registrations and first looks at the catalog and at a table take a while: until then nothing is shared.
            let (before, text) = (
                hits_redis(&runtime, far.port)?,
                format!("select count(*) - {round} - {at} * {ANSWERS} from pgbench_tellers"),
            );
            near.query(&text).map_err(|error| failed("warming up", error))?;
            far_client.query(&text).map_err(|error| failed("warming up", error))?;
            if hits_redis(&runtime, far.port)? > before {
                break;
            }
            if Instant::now() > deadline {
                return Err(ServerError("nothing comes to be shared through Redis".into()));
            }
        }
        for at in 0..ANSWERS {
            near.query(&text(at)).map_err(|error| failed("filling", error))?;
        }
        let round_trip_ms = runtime.block_on(ping(forwarder.port)).map_err(|error| failed("PING", error))?;
        let before = hits_redis(&runtime, far.port)?;
        let mut took = Vec::new();
        for at in 0..ANSWERS {
            let began = Instant::now();
            far_client.query(&text(at)).map_err(|error| failed("a cold hit", error))?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        let hits = hits_redis(&runtime, far.port)? - before;
        if hits != ANSWERS as u64 {
            return Err(ServerError(format!("{hits} of {ANSWERS} answers came from Redis")));
        }
        let hit_ms = Spread::of(took).median().unwrap_or(f64::NAN);
        eprintln!("round {} cold: {hit_ms:.2} ms, a round trip {round_trip_ms:.2} ms", round + 1);
        all.push(far);
        table.add("pgherd", Trip { round_trip_ms, hit_ms });
    }
    println!(
        "\n### Hits of Redis by a pgherd that has never seen the answer\n\n{rounds} rounds of {ANSWERS} answers; Redis is {DELAY:?} away, each way."
    );
    table.print(&[
        Figure { title: "PING ms", digits: 2, of: |trip| Some(trip.round_trip_ms) },
        Figure { title: "hit ms", digits: 2, of: |trip| Some(trip.hit_ms) },
        Figure {
            title: "round trips (aim: at most 1.5)",
            digits: 2,
            of: |trip| Some(trip.hit_ms / trip.round_trip_ms),
        },
    ]);
    Ok(())
}

async fn ping(port: u16) -> std::io::Result<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut took = Vec::new();
    for _ in 0..ANSWERS {
        let began = Instant::now();
        stream.write_all(b"PING\r\n").await?;
        stream.read_exact(&mut [0; 7]).await?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Spread::of(took).median().unwrap_or(f64::NAN))
}

/// Hits of Redis so far, from the console.
fn hits_redis(runtime: &tokio::runtime::Runtime, port: u16) -> Result<u64, ServerError> {
    runtime.block_on(async {
        let conninfo = format!("host=127.0.0.1 port={port} user=postgres dbname=pgherd");
        let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls)
            .await
            .map_err(|error| failed("the console", error))?;
        let task = tokio::spawn(connection);
        let rows = client.simple_query("show cache").await.map_err(|error| failed("SHOW CACHE", error))?;
        task.abort();
        let row = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let hits = row.and_then(|row| row.get("hits_redis")?.parse().ok());
        hits.ok_or_else(|| ServerError("SHOW CACHE shows no hits_redis".into()))
    })
}
