//! What the result cache costs and gives: hits beside a bare hop and pgpool-II, large answers, Redis, and writes.

mod bounds;
pub(crate) mod echo;
mod load;
mod pgpool;
mod redis;
mod table;
mod writes;

use std::time::Duration;

use pgherd::commands::demo::servers::{ServerError, free_port};

use self::load::Sample;
use self::table::{Figure, Table};
use crate::targets::{Entrance, Running, Yard, door};
use crate::{Options, failed, in_turn};

/// The question of a dashboard.
pub(super) const QUESTION: &str = "select bid, count(*), avg(abalance) from pgbench_accounts group by bid";
/// Clients that ask it.
const CLIENTS: usize = 16;
/// Some 1 MiB.
const LARGE: &str = "select distinct id, filler from large";

const PER_SECOND: Figure<Sample> = Figure { title: "answers/s", digits: 0, of: |sample| Some(sample.per_second) };
const CPU: Figure<Sample> = Figure { title: "CPU us each", digits: 2, of: |sample| sample.cpu_us };
const MEAN: Figure<Sample> = Figure { title: "mean us", digits: 1, of: |sample| Some(sample.mean_us) };
const P99: Figure<Sample> = Figure { title: "p99 us", digits: 0, of: |sample| Some(sample.p99_us) };
const MIB: Figure<Sample> = Figure { title: "MiB/s", digits: 0, of: |sample| Some(sample.mib_per_second) };

/// Measures and prints.
///
/// # Errors
/// Something does not start, or a client failed.
pub(crate) fn run(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    use crate::CachePart;
    let measures = |part| options.cache_parts.is_empty() || options.cache_parts.contains(&part);
    if measures(CachePart::Hits) {
        hits(options, yard)?;
    }
    if measures(CachePart::Large) {
        large(options, yard)?;
    }
    if measures(CachePart::Bounds) {
        bounds::churn(options, yard)?;
        bounds::huge(yard)?;
    }
    if measures(CachePart::Redis) {
        redis::run(options, yard)?;
    }
    if measures(CachePart::Writes) {
        writes::run(options, yard)?;
    }
    Ok(())
}

fn hits(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let (rounds, seconds) = (options.rounds(7), options.seconds(2));
    let mut running = vec![("echo", start_echo(yard, QUESTION)?)];
    running.extend(pgpool::start(yard)?.map(|started| ("pgpool", started)));
    running.push(("pgherd", yard.start_pgherd(Entrance::default(), "enabled = true")?));
    let mut table = Table::new();
    measure(&mut table, &running, rounds, seconds, QUESTION, CLIENTS)?;
    println!("\n### Hits\n\n{rounds} rounds of {seconds} s, {CLIENTS} clients; {QUESTION}");
    table.print(&[PER_SECOND, CPU, MEAN, P99]);
    table.compare(&PER_SECOND, "pgherd", "pgpool", "aim: at least 2.5");
    table.compare(&CPU, "pgherd", "echo", "aim: at most 1.6");
    Ok(())
}

fn large(options: &Options, yard: &Yard<'_>) -> Result<(), ServerError> {
    let (rounds, seconds) = (options.rounds(7), options.seconds(2));
    // 8 KiB each, under a compression that is none.
    yard.server.sql(
        "bench",
        "create table large as select id, repeat(md5(id::text), 256) as filler from generate_series(1, 128) id",
    )?;
    yard.server.sql("bench", "vacuum analyze large")?;
    let running =
        [("echo", start_echo(yard, LARGE)?), ("pgherd", yard.start_pgherd(Entrance::default(), "enabled = true")?)];
    for clients in [1, CLIENTS] {
        let mut table = Table::new();
        measure(&mut table, &running, rounds, seconds, LARGE, clients)?;
        println!("\n### Large hits\n\n{rounds} rounds of {seconds} s, answers of some 1 MiB, clients: {clients}");
        table.print(&[MIB, CPU, MEAN, P99]);
        table.compare(&MIB, "pgherd", "echo", "aim: at least 0.8");
        table.compare(&CPU, "pgherd", "echo", "no aim");
    }
    drop(running);
    yard.server.sql("bench", "drop table large").map(|_| ())
}

/// Warms them up until each answers without PostgreSQL, and asks them in turn.
fn measure(
    table: &mut Table<Sample>,
    running: &[(&str, Running)],
    rounds: usize,
    seconds: u32,
    text: &str,
    clients: usize,
) -> Result<(), ServerError> {
    for (target, running) in running {
        ask(target, running, clients, text, Duration::from_millis(500))?;
    }
    for round in 0..rounds {
        for (target, running) in in_turn(round, running) {
            let sample = ask(target, running, clients, text, Duration::from_secs(seconds.into()))?;
            let cpu = sample.cpu_us.unwrap_or_default();
            eprintln!("round {} {target:<16} {:>8.0} answers/s, {cpu:.2} us CPU", round + 1, sample.per_second);
            table.add(target, sample);
        }
    }
    Ok(())
}

fn ask(target: &str, running: &Running, clients: usize, text: &str, lasting: Duration) -> Result<Sample, ServerError> {
    load::ask(running, &door(running.port, Entrance::default()), clients, text, lasting)
        .map_err(|error| failed(format!("asking {target}"), error))
}

/// A bare hop that answers as PostgreSQL does.
fn start_echo(yard: &Yard<'_>, text: &str) -> Result<Running, ServerError> {
    let answer = load::answer(&door(yard.server.port(), Entrance::default()), text)
        .map_err(|error| failed("asking PostgreSQL", error))?;
    let (folder, port) = (yard.ground.server_folder("echo")?, free_port()?);
    let file = folder.join("answer");
    yard.ground.write(&file, "")?;
    std::fs::write(&file, answer).map_err(|error| failed("writing the answer", error))?;
    let itself = std::env::current_exe().map_err(|error| failed("finding this program", error))?;
    let program = folder.join("echo");
    std::fs::copy(itself, &program).map_err(|error| failed("copying this program", error))?;
    let (program, file, port_text) = (program.to_string_lossy(), file.to_string_lossy(), port.to_string());
    yard.run(&folder, &[&*program, "--bench", "--echo", &*file, "--echo-port", &port_text], port, Entrance::default())
}
