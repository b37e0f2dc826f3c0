//! What befalls a fleet: each fault that is known of, in an order that nobody knows.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pgherd::commands::demo::servers::{PostgresServer, RedisServer, StopMode};
use rand::seq::SliceRandom;
use tokio::time::sleep;

use super::fleet::{Fleet, Herd};
use super::seat::Line;
use super::world::World;
use crate::harness::faults::Faults;

/// One thing that goes wrong, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// SIGKILL, and back, empty.
    RedisKilled,
    /// FLUSHALL.
    RedisEmptied,
    /// SIGSTOP, and SIGCONT.
    RedisFrozen,
    /// One pgherd cannot reach Redis.
    RedisCut,
    RedisSlow,
    /// Nothing passes, and nothing is said.
    RedisStalled,
    /// One pgherd's connections to PostgreSQL are cut, and can be made anew.
    PostgresCut,
    PostgresSlow,
    PostgresStalled,
    /// One pgherd cannot reach PostgreSQL.
    PostgresAway,
    /// SIGKILL of one pgherd, which comes back.
    HerdKilled,
    /// SIGSTOP of one pgherd, and SIGCONT.
    HerdFrozen,
    /// SIGTERM of one pgherd, which comes back.
    HerdEnded,
    /// `pg_terminate_backend`.
    BackendsKilled,
    /// The primary is stopped and started.
    PostgresRestarted,
    /// The primary's processes are killed and it recovers.
    PostgresCrashed,
    /// The replica replays nothing.
    ReplicaPaused,
    /// The replica is stopped and started.
    ReplicaRestarted,
    /// Redis loses everything while one pgherd cannot reach it.
    RedisEmptiedWhileCut,
    /// Redis loses everything just after one pgherd was killed.
    HerdKilledAndRedisEmptied,
    /// Redis loses everything while one pgherd is frozen.
    RedisEmptiedWhileFrozen,
}

impl Act {
    /// Those that the design answers for.
    pub(super) const ALL: [Self; 20] = [
        Self::RedisKilled,
        Self::RedisEmptied,
        Self::RedisFrozen,
        Self::RedisCut,
        Self::RedisSlow,
        Self::RedisStalled,
        Self::PostgresCut,
        Self::PostgresSlow,
        Self::PostgresStalled,
        Self::PostgresAway,
        Self::HerdKilled,
        Self::HerdFrozen,
        Self::HerdEnded,
        Self::BackendsKilled,
        Self::PostgresRestarted,
        Self::PostgresCrashed,
        Self::ReplicaPaused,
        Self::ReplicaRestarted,
        Self::RedisEmptiedWhileCut,
        Self::HerdKilledAndRedisEmptied,
    ];
    /// Those that it does not.
    const MORE: [Self; 1] = [Self::RedisEmptiedWhileFrozen];

    /// The acts that are asked for by name in `PGHERD_SOAK_FAULTS`, or all.
    pub(super) fn wanted() -> Vec<Self> {
        let Ok(names) = std::env::var("PGHERD_SOAK_FAULTS") else { return Self::ALL.to_vec() };
        let named = |name: &str| {
            let found = Self::ALL.into_iter().chain(Self::MORE).find(|act| format!("{act:?}") == name.trim());
            found.unwrap_or_else(|| panic!("PGHERD_SOAK_FAULTS: there is no {name}"))
        };
        names.split(',').filter(|name| !name.is_empty()).map(named).collect()
    }
}

/// Who does it, and to whom.
pub(super) struct Nemesis<'a> {
    pub(super) world: &'a World,
    pub(super) fleet: &'a Fleet,
    pub(super) redis: &'a RedisServer,
    pub(super) postgres: &'a PostgresServer,
    pub(super) replica: &'a PostgresServer,
    /// What it may do.
    pub(super) acts: Vec<Act>,
    /// The longest that nothing happens between two acts.
    pub(super) calm: Duration,
    pub(super) start: Instant,
    /// What was done when.
    pub(super) done: Mutex<Vec<String>>,
}

impl Nemesis<'_> {
    /// Goes on until dropped or `until` says so; never stops half way.
    pub(super) async fn rage(&self, until: &(dyn Fn() -> bool + Sync)) {
        let mut deck = Vec::new();
        while !until() {
            self.wait(self.calm.mul_f64(rand::random_range(0.3..1.0)), until).await;
            if self.acts.is_empty() || until() {
                continue;
            }
            if deck.is_empty() {
                deck = self.acts.clone();
                deck.shuffle(&mut rand::rng());
            }
            let Some(act) = deck.pop() else { continue };
            let at = rand::random_range(0..self.fleet.herds.len());
            let began = self.start.elapsed();
            self.perform(act, &self.fleet.herds[at]).await;
            self.done.lock().push(format!("{began:.1?} to {:.1?}: {act:?} at {at}", self.start.elapsed()));
        }
    }

    async fn wait(&self, total: Duration, until: &(dyn Fn() -> bool + Sync)) {
        let end = Instant::now() + total;
        while Instant::now() < end && !until() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn perform(&self, act: Act, herd: &Herd) {
        let faults = Faults::default();
        let slow = Faults { delay: between(5, 60), ..faults };
        match act {
            Act::RedisKilled => {
                tokio::task::block_in_place(|| self.redis.kill9()).expect("killed");
                sleep(between(0, 2000)).await;
                tokio::task::block_in_place(|| self.redis.restart()).expect("restarted");
            }
            Act::RedisEmptied => self.empty_redis().await,
            Act::RedisFrozen => {
                signal_pid(self.redis.pid(), "-STOP");
                sleep(between(50, 2500)).await;
                signal_pid(self.redis.pid(), "-CONT");
            }
            Act::RedisCut => {
                herd.to_redis.set(Faults { down: true, ..faults });
                sleep(between(100, 3500)).await;
                herd.to_redis.heal();
            }
            Act::RedisSlow => {
                herd.to_redis.set(slow);
                sleep(between(500, 3000)).await;
                herd.to_redis.heal();
            }
            Act::RedisStalled => {
                herd.to_redis.set(Faults { paused: true, ..faults });
                sleep(between(50, 3000)).await;
                herd.to_redis.heal();
            }
            Act::PostgresCut => herd.to_postgres.cut(),
            Act::PostgresSlow => {
                herd.to_postgres.set(slow);
                sleep(between(500, 2000)).await;
                herd.to_postgres.heal();
            }
            Act::PostgresStalled => {
                herd.to_postgres.set(Faults { paused: true, ..faults });
                sleep(between(50, 2500)).await;
                herd.to_postgres.heal();
            }
            Act::PostgresAway => {
                herd.to_postgres.set(Faults { down: true, ..faults });
                sleep(between(100, 2500)).await;
                herd.to_postgres.heal();
            }
            Act::HerdKilled => {
                herd.look().await;
                tokio::task::block_in_place(|| herd.end("-KILL"));
                sleep(between(0, 2500)).await;
                herd.start();
            }
            Act::HerdFrozen => {
                herd.signal("-STOP");
                sleep(between(50, 3500)).await;
                herd.signal("-CONT");
            }
            Act::HerdEnded => {
                herd.look().await;
                tokio::task::block_in_place(|| herd.end("-TERM"));
                herd.start();
            }
            Act::BackendsKilled => self.kill_backends().await,
            Act::PostgresRestarted => restart(self.postgres, StopMode::Fast),
            Act::PostgresCrashed => restart(self.postgres, StopMode::Immediate),
            Act::ReplicaRestarted => restart(self.replica, StopMode::Fast),
            Act::ReplicaPaused => {
                self.tell_replica("select pg_wal_replay_pause()").await;
                sleep(between(50, 3000)).await;
                self.tell_replica("select pg_wal_replay_resume()").await;
            }
            Act::HerdKilledAndRedisEmptied => self.lose_redis_beside_a_kill(herd).await,
            Act::RedisEmptiedWhileFrozen => {
                herd.signal("-STOP");
                self.empty_redis().await;
                sleep(between(500, 3500)).await;
                herd.signal("-CONT");
            }
            Act::RedisEmptiedWhileCut => {
                herd.to_redis.set(Faults { down: true, ..faults });
                sleep(between(0, 600)).await;
                self.empty_redis().await;
                sleep(between(500, 3500)).await;
                herd.to_redis.heal();
            }
        }
    }

    async fn lose_redis_beside_a_kill(&self, herd: &Herd) {
        herd.look().await;
        tokio::task::block_in_place(|| herd.end("-KILL"));
        self.empty_redis().await;
        sleep(between(0, 2500)).await;
        herd.start();
    }

    async fn tell_replica(&self, sql: &str) {
        let (port, name) = (self.replica.port(), &self.world.database.name);
        let Some(line) = Line::open(&format!("host=127.0.0.1 port={port} user=postgres dbname={name}")).await else {
            return;
        };
        let _ = line.client.simple_query(sql).await;
    }

    async fn empty_redis(&self) {
        use tokio::io::AsyncWriteExt;
        if let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", self.redis.port())).await {
            let _ = stream.write_all(b"FLUSHALL\r\nQUIT\r\n").await;
            let mut answer = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
        }
    }

    /// Some of the clients' server processes, and not those of pgherd's own connections: losing the connection that says so in
    /// PostgreSQL while Redis is lost too is a case that the design leaves open.
    async fn kill_backends(&self) {
        let Some(line) = Line::open(&self.world.database.conninfo()).await else { return };
        let text = "select pg_terminate_backend(pid) from pg_stat_activity \
                    where usename <> 'postgres' and datname = current_database() and random() < 0.5";
        let _ = line.client.simple_query(text).await;
    }
}

fn restart(server: &PostgresServer, mode: StopMode) {
    tokio::task::block_in_place(|| server.restart(mode)).expect("PostgreSQL comes back");
}

fn between(least_ms: u64, most_ms: u64) -> Duration {
    Duration::from_millis(rand::random_range(least_ms..=most_ms))
}

fn signal_pid(pid: Option<u32>, signal: &str) {
    let Some(pid) = pid else { return };
    let sent = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "kill {signal} {pid}");
}
