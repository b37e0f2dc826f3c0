//! Clients that vanish at random moments leave no server connection with anything of theirs.
//!
//! The quick tier drops 300; `PGHERD_SOAK=1` drops 10,000 (`PGHERD_SOAK_DROPS` any other number, `PGHERD_SOAK_SEED` repeats a run).

use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use pgherd::wire::writer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::proxy::{PATIENCE, Proxy};
use crate::harness;
use crate::harness::wire::{WireClient, bind};

const CLIENTS_AT_ONCE: usize = 24;
const DROPS_A_BATCH: usize = 100;

/// What one client says, and up to which message it listens before it goes on.
enum Step {
    /// Sends, and waits for ReadyForQuery.
    Ask(BytesMut),
    /// Sends, and waits for CopyInResponse.
    AskForCopy(BytesMut),
    /// Sends, and waits for nothing.
    Tell(BytesMut),
}

fn said(fill: impl FnOnce(&mut BytesMut)) -> BytesMut {
    let mut out = BytesMut::new();
    fill(&mut out);
    out
}

fn query(text: &str) -> Step {
    Step::Ask(said(|out| writer::query(out, text.as_bytes())))
}

fn told(text: &str) -> Step {
    Step::Tell(said(|out| writer::query(out, text.as_bytes())))
}

fn prepared(name: &str, text: &str, sync: bool) -> Step {
    let bytes = said(|out| {
        writer::parse(out, name.as_bytes(), text.as_bytes(), &[]);
        writer::describe(out, b'S', name.as_bytes());
        bind(out, "", name, &[], 0);
        writer::execute(out, b"", 0);
        if sync { writer::sync(out) } else { writer::flush(out) }
    });
    if sync { Step::Ask(bytes) } else { Step::Tell(bytes) }
}

fn copy_data(rows: usize, bytes_a_message: usize) -> Step {
    let text = "1\tsome text\n".repeat(rows);
    Step::Tell(said(|out| {
        for chunk in text.as_bytes().chunks(bytes_a_message) {
            writer::message(out, b'd', |out| out.put_slice(chunk));
        }
    }))
}

/// One client's life, were it to live on to its end.
fn life(random: &mut StdRng, role: &str) -> Vec<Step> {
    let n = random.random_range(0..1_000_000);
    match random.random_range(0..24) {
        0 => vec![query("select 1"), told("select n, repeat('x', 500) from generate_series(1, 20000) n")],
        1 => vec![
            query("begin"),
            query(&format!("insert into t values ({n}, 'x')")),
            query("savepoint a"),
            query("rollback"),
        ],
        2 => vec![
            query("set timezone to 'Asia/Tokyo'"),
            query("set work_mem to '1MB'"),
            query("set search_path to other, public"),
            query("select 1"),
        ],
        3 => vec![query(&format!("set role {role}")), query("select current_user"), told("reset role")],
        4 => vec![
            query("begin"),
            query(&format!("set role {role}; set datestyle to german")),
            query("savepoint a"),
            query("set work_mem to '3MB'"),
            query("rollback to a"),
            query("commit"),
            query("select 1"),
        ],
        5 => vec![
            query("create temp table mine (a int)"),
            query("insert into mine values (1)"),
            query("select * from mine"),
        ],
        6 => vec![query(&format!("listen channel_{}", n % 7)), query("notify channel_1, 'x'"), query("select 1")],
        7 => vec![
            query(&format!("select pg_advisory_lock({n})")),
            query("select 1"),
            query("begin"),
            query(&format!("select pg_advisory_xact_lock({n})")),
        ],
        8 => vec![
            query("begin; declare c cursor with hold for select * from generate_series(1, 10)"),
            query("fetch 2 from c"),
            query("commit"),
            query("fetch 1 from c"),
        ],
        9 => (0..5)
            .map(|_| {
                prepared(
                    &format!("s{}", random.random_range(0..1000)),
                    &format!("select {}", random.random_range(0..40)),
                    true,
                )
            })
            .collect(),
        10 => vec![
            prepared("", "select 1/0", true),
            prepared("x", &format!("insert into t values ({n}, 'y')"), false),
            prepared("", "select nonsense", false),
        ],
        kind => life_with_copies_and_pipelines(kind, n),
    }
}

fn copy(text: &str) -> Step {
    Step::AskForCopy(said(|out| writer::query(out, text.as_bytes())))
}

fn life_with_copies_and_pipelines(kind: u32, n: i32) -> Vec<Step> {
    match kind {
        11 => vec![
            copy("copy t from stdin"),
            copy_data(20_000, 100_000),
            copy_data(1, 5),
            Step::Ask(said(|out| writer::message(out, b'c', |_| {}))),
        ],
        12 => vec![
            copy("copy t from stdin"),
            Step::Tell(said(|out| writer::message(out, b'd', |out| out.put_slice(b"nonsense\n")))),
            copy_data(50_000, 300_000),
            Step::Tell(said(|out| writer::message(out, b'c', |_| {}))),
            query("select 1"),
        ],
        13 => vec![told("copy (select repeat('c', 300) from generate_series(1, 50000)) to stdout"), query("select 1")],
        14 => vec![told("select pg_sleep(0.3)"), query("select 1")],
        15 => vec![
            query("prepare p as select 1"),
            query("execute p"),
            query("do $$ begin perform set_config('app.do', 'x', false); end $$"),
        ],
        16 => vec![
            query("set datestyle to dmy"),
            prepared("d", "select '01/02/2003'::date", true),
            query("begin; set local datestyle to ymd"),
            prepared("e", "select '01/02/2003'::date", true),
            query("commit"),
            prepared("e", "select 1", true),
        ],
        17 => vec![
            Step::Tell(said(|out| {
                writer::parse(out, b"", b"select length($1)", &[25]);
                bind(out, "", "", &[Some(&"b".repeat(2_000_000))], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
            })),
            query("select 1"),
        ],
        18 => vec![
            query("begin isolation level serializable"),
            query("select count(*) from t"),
            query("select 1/0"),
            query("select 1"),
            query("rollback"),
        ],
        19 => vec![
            query(&format!("select set_config('app.tenant', '{n}', false)")),
            query("select 1"),
            query("reset app.tenant"),
            query("discard all"),
        ],
        20 => vec![
            told("begin"),
            told("set work_mem to '2MB'"),
            told("discard all"),
            told("commit"),
            told("discard all"),
            query("select 1"),
        ],
        21 => vec![
            Step::AskForCopy(said(|out| {
                writer::parse(out, b"", b"copy t from stdin", &[]);
                bind(out, "", "", &[], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
            })),
            copy_data(10, 1000),
            Step::Tell(said(|out| writer::message(out, b'c', |_| {}))),
            Step::Ask(said(writer::sync)),
        ],
        22 => vec![
            Step::Tell(said(|out| {
                (0..50).for_each(|n| {
                    writer::parse(out, format!("p{n}").as_bytes(), format!("select {n}").as_bytes(), &[]);
                    bind(out, "", &format!("p{n}"), &[], 0);
                    writer::execute(out, b"", 0);
                    if n % 10 == 9 {
                        writer::sync(out);
                    }
                })
            })),
            query("deallocate all"),
            query("select 1"),
        ],
        _ => vec![
            query("select lo_creat(-1)"),
            query("begin; select setseed(0.5); select random()"),
            query("set session authorization default"),
            query("commit"),
        ],
    }
}

/// Lives a part of a life, and vanishes: between two messages, inside one, or while answers come.
async fn vanish(port: u16, database: String, role: String, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let steps = life(&mut random, &role);
    let last = random.random_range(0..=steps.len());
    let mut client = WireClient::login(port, "postgres", &database).await;
    for (at, step) in steps.into_iter().enumerate() {
        let (mut bytes, until) = match step {
            Step::Ask(bytes) => (bytes, Some(&b"Z"[..])),
            Step::AskForCopy(bytes) => (bytes, Some(&b"GZ"[..])),
            Step::Tell(bytes) => (bytes, None),
        };
        let is_last = at == last;
        if is_last && random.random_bool(0.5) {
            bytes.truncate(random.random_range(0..=bytes.len()));
        }
        client.send(&bytes).await;
        if is_last {
            break;
        }
        if let Some(until) = until {
            let answered =
                async { while client.try_next().await.is_some_and(|message| !until.contains(&message.tag)) {} };
            let answered = tokio::time::timeout(PATIENCE - Duration::from_secs(1), answered).await;
            assert!(answered.is_ok(), "life {seed}: step {at} is never answered");
        }
    }
    tokio::time::sleep(Duration::from_micros(random.random_range(0..3000))).await;
    match random.random_range(0..3) {
        0 => client.reset(),
        1 => {
            // The other side may have closed already.
            client.send(b"X\0\0\0\x04").await;
        }
        _ => {}
    }
}

async fn drop_clients(drops: usize, mode: &str) {
    let seed: u64 =
        std::env::var("PGHERD_SOAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("seed {seed}");
    let (role, since) = (harness::unique("soak"), Instant::now());
    let proxy = Proxy::start(&format!("max_connections = 4, prepared_statements = 20, mode = \"{mode}\"")).await;
    let setup =
        format!("create role {role}; create table t (a int, b text); grant all on t to {role}; create schema other");
    proxy.database.execute(&setup).await;
    proxy.wire().await.query("select 1").await;
    let (mut dropped, mut running) = (0, JoinSet::new());
    while dropped < drops {
        for _ in 0..DROPS_A_BATCH.min(drops - dropped) {
            if running.len() >= CLIENTS_AT_ONCE {
                running.join_next().await.expect("some run").expect("a client's life");
            }
            let client =
                vanish(proxy.port, proxy.database.name.clone(), role.clone(), seed.wrapping_add(dropped as u64));
            running.spawn(client);
            dropped += 1;
        }
        while let Some(ended) = running.join_next().await {
            ended.expect("a client's life");
        }
        proxy.examine().await;
    }
    // One more may listen for all clients.
    let servers = "select count(*) from pg_stat_activity
                    where datname = current_database() and pid <> pg_backend_pid() and application_name <> 'pgherd listener'";
    let count: i64 = proxy.database.client().await.query_one(servers, &[]).await.expect("count").get(0);
    assert!(count <= 4, "{count} server connections behind a pool of 4");
    eprintln!("{drops} clients dropped in {mode} mode in {:?}", since.elapsed());
    proxy.stop().await;
}

fn drops() -> usize {
    let set = |name: &str| std::env::var(name).ok();
    match set("PGHERD_SOAK_DROPS").and_then(|drops| drops.parse().ok()) {
        Some(drops) => drops,
        None if set("PGHERD_SOAK").is_some() => 10_000,
        None => 300,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_vanish_leave_nothing_behind() {
    drop_clients(drops(), "transaction").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_vanish_leave_nothing_behind_in_session_mode() {
    drop_clients(drops() / 10, "session").await;
}
