//! Transfers between shards while pgherds and servers are killed: no reader sees another total, and nothing acknowledged is lost.
//!
//! Each is killed once in the quick tier; `PGHERD_SOAK_SECONDS=600` goes on so long, with 32 clients and a server for each shard.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pgherd::commands::demo::servers::{PostgresServer, RedisServer, StopMode};
use rand::Rng as _;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::stage::Stage;
use crate::harness::serving::{Serving, free_port};
use crate::harness::{self, Database};

const ACCOUNTS: i32 = 40;
const TOTAL: i64 = ACCOUNTS as i64 * 100;

/// What all tasks share.
struct Bank {
    ports: [u16; 2],
    ends: AtomicBool,
    acknowledged: Mutex<Vec<String>>,
    /// Transfers whose COMMIT was not answered, or refused.
    unanswered: AtomicU64,
    sums: AtomicU64,
    failed_sums: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Bank {
    fn goes_on(&self) -> bool {
        !self.ends.load(Ordering::Relaxed)
    }

    async fn client(&self, at: usize) -> Option<Client> {
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=app connect_timeout=3", self.ports[at % 2]);
        let client = harness::try_connect(&conninfo).await.ok();
        if client.is_none() {
            tokio::task::yield_now().await;
        }
        client
    }
}

/// Some money from one account to another, with an entry for each.
async fn transfer(client: &Client, name: &str) -> Result<(), tokio_postgres::Error> {
    let (from, to, amount) = {
        let mut dice = rand::rng();
        let from = dice.random_range(1..=ACCOUNTS);
        (from, (from + dice.random_range(1..ACCOUNTS) - 1) % ACCOUNTS + 1, dice.random_range(1..4))
    };
    client.batch_execute("begin").await?;
    for (account, amount) in [(from, -amount), (to, amount)] {
        let update = format!("update accounts set balance = balance + {amount} where id = {account}");
        let entry = format!("insert into entries (account_id, amount, note) values ({account}, {amount}, '{name}')");
        for sql in [update, entry] {
            if let Err(error) = client.batch_execute(&sql).await {
                client.batch_execute("rollback").await?;
                return Err(error);
            }
        }
    }
    client.batch_execute("commit").await
}

async fn transfers(bank: Arc<Bank>, who: usize) {
    let mut number = 0;
    let mut client = None;
    while bank.goes_on() {
        let Some(connected) = client.as_ref() else {
            client = bank.client(who + number).await;
            number += 1;
            continue;
        };
        number += 1;
        let name = format!("{who}.{number}");
        match transfer(connected, &name).await {
            Ok(()) => bank.acknowledged.lock().push(name),
            Err(_) => {
                bank.unanswered.fetch_add(1, Ordering::Relaxed);
                if connected.is_closed() {
                    client = None;
                }
            }
        }
    }
}

/// A read of the primary, cached where Redis lets it be.
async fn notes(bank: Arc<Bank>, who: usize) {
    let mut client = None;
    while bank.goes_on() {
        let Some(connected) = client.as_ref() else {
            client = bank.client(who).await;
            continue;
        };
        if connected.query_one("select count(*) from local_notes", &[]).await.is_err() && connected.is_closed() {
            client = None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The sum of all balances, by way of the coordinator or merged by pgherd.
async fn sum(client: &Client, is_streamed: bool) -> Result<i64, tokio_postgres::Error> {
    if !is_streamed {
        return Ok(client.query_one("select sum(balance)::int8 from accounts", &[]).await?.get(0));
    }
    let messages = client.simple_query("select sum(balance) from accounts").await?;
    let sum = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    Ok(sum.expect("a sum"))
}

async fn sums(bank: Arc<Bank>, who: usize, is_streamed: bool) {
    let mut client = None;
    while bank.goes_on() {
        let Some(connected) = client.as_ref() else {
            client = bank.client(who).await;
            continue;
        };
        match sum(connected, is_streamed).await {
            Ok(sum) => {
                bank.sums.fetch_add(1, Ordering::Relaxed);
                if sum != TOTAL {
                    bank.wrong.lock().push(format!("reader {who} saw {sum}"));
                }
            }
            Err(_) => {
                bank.failed_sums.fetch_add(1, Ordering::Relaxed);
                if connected.is_closed() {
                    client = None;
                }
            }
        }
    }
}

fn file(stage: &Stage, port: u16, http: u16) -> PathBuf {
    let folder = harness::ground().folder().join(harness::unique("bank"));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("proxy.toml");
    let listen = format!("[listen]\naddress = \"127.0.0.1:{port}\"\nhttp = \"127.0.0.1:{http}\"\n");
    std::fs::write(&path, format!("{}\n{listen}", stage.toml)).expect("a file");
    path
}

/// Who can be killed.
struct Targets {
    pgherds: [Serving; 2],
    files: [PathBuf; 2],
    /// The shards' servers, and the primary's.
    servers: Arc<Vec<PostgresServer>>,
    redis: Option<Arc<RedisServer>>,
    ports: [u16; 2],
    http: [u16; 2],
}

impl Targets {
    /// pgherds, servers, and Redis.
    fn count(&self) -> usize {
        self.pgherds.len() + self.servers.len() + 1
    }

    /// Kills one, and starts it anew.
    async fn strike(&mut self, victim: usize) {
        match victim {
            0 | 1 => {
                self.pgherds[victim].signal("-KILL");
                self.pgherds[victim].ended(Duration::from_secs(5));
                self.pgherds[victim] = Serving::start(&self.files[victim]);
            }
            _ if victim < 2 + self.servers.len() => {
                let servers = Arc::clone(&self.servers);
                let again = tokio::task::spawn_blocking(move || {
                    let server = &servers[victim - 2];
                    server.kill9()?;
                    server.restart(StopMode::Immediate)
                });
                again.await.expect("a thread").expect("the server starts anew");
            }
            _ => {
                let Some(redis) = self.redis.clone() else { return };
                let again = tokio::task::spawn_blocking(move || redis.restart());
                again.await.expect("a thread").expect("Redis starts anew");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_pgherds_and_servers_lose_nothing_and_show_nobody_half_a_transfer() {
    let stage = Box::pin(strikes("")).await;
    drop(stage);
}

/// As above, with what each shard gives to an answer cached, and with nothing old in it afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_shown_half_of_a_transfer_or_what_was_before_it_where_shards_are_cached() {
    let Some((stage, targets, ports)) = Box::pin(strikes("olap_only = false\nshards = true\n")).await else { return };
    let all = "select id, balance from accounts order by id";
    let mut truth: Vec<(i32, i64)> = Vec::new();
    for shard in &stage.shards {
        let rows = shard.client().await.query(all, &[]).await.expect("rows");
        truth.extend(rows.iter().map(|row| (row.get::<_, i32>(0), row.get::<_, i64>(1))));
    }
    truth.sort_unstable();
    for (port, pgherd) in ports.iter().zip(&targets.pgherds) {
        let client = harness::connect(&format!("host=127.0.0.1 port={port} user=postgres dbname=app")).await;
        for _ in 0..3 {
            let rows = client.query(all, &[]).await.expect("rows");
            let told: Vec<(i32, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            assert_eq!(told, truth, "{}", pgherd.log());
            assert_eq!(sum(&client, true).await.expect("a sum"), TOTAL);
        }
        // It comes back to serving from the caches.
        harness::eventually(Duration::from_secs(60), "parts are replayed again", async || {
            replayed(&client, &targets, *port).await
        })
        .await;
    }
}

/// Whether a read of all accounts is replayed as a whole.
async fn replayed(client: &Client, targets: &Targets, port: u16) -> bool {
    let at = targets.ports.iter().position(|known| *known == port).expect("one of them");
    let figure = || {
        let text = crate::harness::serving::get(targets.http[at], "/metrics");
        let of = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        of("pgherd_fanout_legs_cached_total")
    };
    let before = figure();
    client.query("select id, balance from accounts order by id", &[]).await.expect("rows");
    figure() >= before + 4.0
}

/// What is left of it all: `None` where there is no Redis.
async fn strikes(cache: &str) -> Option<(Stage, Targets, [u16; 2])> {
    let lasts = std::env::var("PGHERD_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let lasts = lasts.map_or(Duration::ZERO, Duration::from_secs);
    let options = harness::options().own_initdb();
    // In the quick tier two shards a server: one that is killed takes two participants along.
    let (shards_of_one, clients, readers) = if lasts.is_zero() { (2, 6, 2) } else { (1, 32, 4) };
    let shard_servers = 4 / shards_of_one;
    let servers: Arc<Vec<PostgresServer>> = Arc::new((0..=shard_servers).map(|_| harness::start(&options)).collect());
    let redis = RedisServer::start(harness::ground()).expect("Redis starts").map(Arc::new);
    let mut shards: Vec<Database> = Vec::new();
    for server in &servers[..shard_servers] {
        for _ in 0..shards_of_one {
            shards.push(harness::database_on(server).await);
        }
    }
    let mut stage = Stage::between(harness::database_on(&servers[shard_servers]).await, shards, "").await;
    if let Some(redis) = &redis {
        // Reads of the primary are cached beside it all: its loss is nobody's loss.
        // With a cache for each shard there are many leases to be kept, on a machine that others use as well.
        let times = if cache.is_empty() {
            "timeout = \"100ms\", lease = \"1s\""
        } else {
            "timeout = \"500ms\", lease = \"3s\""
        };
        let redis = format!("redis = {{ url = \"{}\", {times} }}", redis.url());
        stage.toml += &format!("[cache]\nenabled = true\n{cache}{redis}\n");
    }
    let ports = [free_port(), free_port()];
    let has_redis = redis.is_some();
    let http = [free_port(), free_port()];
    let files = [file(&stage, ports[0], http[0]), file(&stage, ports[1], http[1])];
    let pgherds = [Serving::start(&files[0]), Serving::start(&files[1])];
    let mut targets = Targets { pgherds, files, servers, redis, ports, http };
    let bank = Arc::new(Bank {
        ports,
        ends: AtomicBool::new(false),
        acknowledged: Mutex::default(),
        unanswered: AtomicU64::new(0),
        sums: AtomicU64::new(0),
        failed_sums: AtomicU64::new(0),
        wrong: Mutex::default(),
    });
    let mut tasks = Vec::new();
    for who in 0..clients {
        tasks.push(tokio::spawn(transfers(Arc::clone(&bank), who)));
    }
    for who in 0..readers {
        tasks.push(tokio::spawn(sums(Arc::clone(&bank), who, !cache.is_empty())));
        tasks.push(tokio::spawn(notes(Arc::clone(&bank), who)));
    }
    let end = Instant::now() + lasts;
    let (mut strikes, victims) = (0, targets.count());
    let mut killed = vec![0; victims];
    while strikes < victims || Instant::now() < end {
        // Not before somebody has got something done since the last strike.
        let (done, read) = (bank.acknowledged.lock().len() + 10, bank.sums.load(Ordering::Relaxed) + 3);
        harness::eventually(Duration::from_secs(150), "transfers and sums after a strike", async || {
            bank.acknowledged.lock().len() >= done && bank.sums.load(Ordering::Relaxed) >= read
        })
        .await;
        // In the quick tier each once, in order; then whoever it meets.
        let victim = if strikes < victims { strikes } else { rand::rng().random_range(0..victims) };
        targets.strike(victim).await;
        killed[victim] += 1;
        strikes += 1;
    }
    bank.ends.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no panic");
    }
    harness::eventually(Duration::from_secs(60), "no transaction is left prepared", async || {
        stage.left_over().await.0 == 0
    })
    .await;
    let wrong = bank.wrong.lock().clone();
    assert!(wrong.is_empty(), "{} sums of {}: {wrong:?}", wrong.len(), bank.sums.load(Ordering::Relaxed));
    let (mut total, mut parts) = (0, std::collections::HashMap::<String, usize>::new());
    for shard in &stage.shards {
        let client = shard.client().await;
        let sum: i64 = client.query_one("select sum(balance)::int8 from accounts", &[]).await.expect("sum").get(0);
        total += sum;
        for row in client.query("select note from entries", &[]).await.expect("entries") {
            *parts.entry(row.get(0)).or_default() += 1;
        }
    }
    let halves: Vec<_> = parts.iter().filter(|(_, count)| **count != 2).collect();
    assert!(halves.is_empty() && total == TOTAL, "total {total}, halves {halves:?}");
    let acknowledged = bank.acknowledged.lock().clone();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !parts.contains_key(*name)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    eprintln!(
        "{} kills (two pgherds, {shard_servers} servers of shards, the primary, Redis: {killed:?}), {clients} clients, {} transfers acknowledged, {} failed, {} sums, {} failed",
        strikes,
        acknowledged.len(),
        bank.unanswered.load(Ordering::Relaxed),
        bank.sums.load(Ordering::Relaxed),
        bank.failed_sums.load(Ordering::Relaxed)
    );
    has_redis.then_some((stage, targets, ports))
}
