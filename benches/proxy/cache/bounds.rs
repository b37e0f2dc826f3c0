//! What the cache's bound is worth: resident memory under a churn of distinct answers, and other clients beside one of 64 MiB.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pgherd::commands::demo::servers::ServerError;

use super::load::query;
use crate::client::Door;
use crate::figures::Spread;
use crate::targets::{Entrance, Running, Yard, door, resident_kib};
use crate::{Options, failed};

/// What the cache of the churn may take.
const MEMORY_MIB: u64 = 64;
/// Clients that ask for what nobody has asked for.
const CLIENTS: u64 = 8;
/// How often each of the others asks beside a large answer.
const EVERY: Duration = Duration::from_millis(2);
const OTHERS: usize = 4;

/// Measures and prints.
pub(super) fn churn(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let cache = format!("enabled = true\nolap_only = false\nmemory = \"{MEMORY_MIB}MiB\"");
    let pgherd = yard.start_pgherd(Entrance::default(), &cache)?;
    let (port, pid) = (pgherd.port, pgherd.pid());
    yard.server.sql(
        "bench",
        "create table churn as select md5(n::text) as word from generate_series(1, 40) n; analyze churn",
    )?;
    // Everything but the cache has its size by then.
    ask_distinct(port, 0, 2_000).map_err(|error| failed("warming up", error))?;
    purge(&pgherd)?;
    let before = pgherd.resident_kib().unwrap_or(f64::NAN);
    let (began, is_over) = (Instant::now(), AtomicBool::new(false));
    let (asked, most) = thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = 0.0_f64;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(pid.and_then(resident_kib).unwrap_or(0.0));
                thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let asked = ask_distinct(port, 2_000, options.distinct);
        is_over.store(true, Ordering::Relaxed);
        (asked, watching.join().unwrap_or(f64::NAN))
    });
    asked.map_err(|error| failed("the churn", error))?;
    let after = pgherd.resident_kib().unwrap_or(f64::NAN);
    let (mib, bound) = (|kib: f64| kib / 1024.0, MEMORY_MIB as f64);
    println!(
        "\n### Churn\n\n{} distinct answers of some 1.7 KiB in {:.0} s through a cache of {MEMORY_MIB} MiB: resident memory grew from {:.1} \
         MiB by {:.1} MiB at most, {:.2} of the bound (aim: at most 1.05), and was {:.1} MiB more at the end.",
        options.distinct,
        began.elapsed().as_secs_f64(),
        mib(before),
        mib(most - before),
        mib(most - before) / bound,
        mib(after - before)
    );
    drop(pgherd);
    yard.server.sql("bench", "drop table churn").map(|_| ())
}

/// Nobody holds anything any more, but what the allocator keeps is kept.
fn purge(pgherd: &Running) -> Result<(), ServerError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed("starting a runtime", error))?;
    runtime.block_on(async {
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=pgherd", pgherd.port);
        let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls)
            .await
            .map_err(|error| failed("the console", error))?;
        let task = tokio::spawn(connection);
        client.simple_query("purge").await.map_err(|error| failed("PURGE", error))?;
        task.abort();
        Ok(())
    })
}

fn ask_distinct(port: u16, from: u64, many: u64) -> io::Result<()> {
    let next = AtomicU64::new(from);
    let ask = || {
        let mut client = door(port, Entrance::default()).enter()?;
        let mut buf = vec![0; 64 * 1024];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= from + many {
                return client.leave();
            }
            client.ask(&query(&format!("select word, {at} from churn")), &mut buf)?;
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a client's thread panicked")))
        })
    })
}

/// Measures and prints.
pub(super) fn huge(yard: &Yard<'_>) -> Result<(), ServerError> {
    yard.server.sql(
        "bench",
        "create table huge as select n, repeat(md5(n::text), 256) as filler from generate_series(1, 8100) n",
    )?;
    yard.server.sql("bench", "vacuum analyze huge")?;
    let cache = "enabled = true\nolap_only = false\nmemory = \"256MiB\"\nmax_entry = \"128MiB\"";
    let pgherd = yard.start_pgherd(Entrance::default(), cache)?;
    let door = door(pgherd.port, Entrance::default());
    let large = query("select n, filler from huge");
    let ask = |times: usize| {
        let mut client = door.enter()?;
        let mut buf = vec![0; 256 * 1024];
        let mut bytes = 0;
        for _ in 0..times {
            bytes = client.ask(&large, &mut buf)?;
        }
        Ok(bytes)
    };
    println!("\n### Beside an answer of 64 MiB\n\n{OTHERS} clients ask every {EVERY:?} for a row by its key; ms.\n");
    println!("| meanwhile | p50 | p99 | max |\n|---|---:|---:|---:|");
    type Meanwhile<'a> = Box<dyn FnOnce() -> io::Result<u64> + Send + 'a>;
    let idle = || {
        thread::sleep(Duration::from_secs(2));
        Ok(0)
    };
    let parts: [(&str, Meanwhile<'_>); 3] = [
        ("nothing", Box::new(idle)),
        ("it is filled and stored", Box::new(|| ask(1))),
        ("it is served, 10 times", Box::new(|| ask(10))),
    ];
    for (what, meanwhile) in parts {
        let latencies = beside(&door, meanwhile).map_err(|error| failed(what, error))?;
        let at = |share: f64| latencies.quantile(share).unwrap_or(f64::NAN);
        println!("| {what} | {:.2} | {:.2} | {:.2} |", at(0.5), at(0.99), at(1.0));
    }
    drop(pgherd);
    yard.server.sql("bench", "drop table huge").map(|_| ())
}

fn beside(door: &Door, meanwhile: impl FnOnce() -> io::Result<u64> + Send) -> io::Result<Spread> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let others: Vec<_> = (0..OTHERS).map(|_| scope.spawn(|| keep_asking(door, &is_over))).collect();
        thread::sleep(Duration::from_millis(100));
        let done = meanwhile();
        is_over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for other in others {
            all.extend(other.join().unwrap_or_else(|_| Err(io::Error::other("a client's thread panicked")))?);
        }
        done.map(|_| Spread::of(all))
    })
}

/// Milliseconds from when each request was due.
fn keep_asking(door: &Door, is_over: &AtomicBool) -> io::Result<Vec<f64>> {
    let mut client = door.enter()?;
    let (mut due, mut took, mut buf) = (Instant::now(), Vec::new(), vec![0; 4096]);
    let request = query("SELECT abalance FROM pgbench_accounts WHERE aid = 7");
    while !is_over.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        client.ask(&request, &mut buf)?;
        took.push(due.elapsed().as_secs_f64() * 1e3);
        due += EVERY;
    }
    Ok(took)
}
