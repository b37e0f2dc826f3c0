//! One run of the checker: servers, fleet, load and nemesis put together, and what came of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pgherd::commands::demo::servers::{PostgresServer, RedisServer};
use tokio::task::JoinSet;

use super::fleet::{Fleet, Plan};
use super::load::{Load, Scene};
use super::nemesis::{Act, Nemesis};
use super::world::World;
use crate::harness::{self, database_on, ground};

/// What a run is to do.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    pub(super) time: Duration,
    /// Ends at the first violation.
    pub(super) stop_at_violation: bool,
    pub(super) plan: Plan,
    /// How old a read may be; nothing under `strict`.
    pub(super) bound: Option<Duration>,
    pub(super) acts: Vec<Act>,
    pub(super) calm: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) reads: u64,
    pub(super) hits: u64,
    pub(super) near: u64,
    /// Answers to keep that a replica gave.
    pub(super) from_replica: u64,
    /// Lookups of answers that roles share.
    pub(super) shared: u64,
    pub(super) lost_reads: u64,
    pub(super) writes: u64,
    pub(super) failed: String,
    pub(super) time: Duration,
    pub(super) violations: Vec<(Duration, String)>,
    /// What befell the fleet.
    pub(super) done: Vec<String>,
    /// pgherds that ended on their own.
    pub(super) fallen: usize,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = |part: u64| part as f64 * 100.0 / self.reads.max(1) as f64;
        let Self { reads, hits, near, writes, failed, lost_reads, time, from_replica, shared, .. } = self;
        let (hits_share, near_share, found) = (share(*hits), share(*near), self.violations.len());
        let faults = self.done.len();
        write!(
            f,
            "{time:.0?}: {reads} reads, {hits} of them hits ({hits_share:.0}%), {near} within 10 ms of a commit \
             ({near_share:.0}%), {from_replica} answers to keep were a replica's, {shared} lookups were shared by roles, {writes} commits, {faults} faults, {found} violations; {lost_reads} reads were lost, \
             writes without a good end: {failed}"
        )
    }
}

/// A server that can be stopped without stopping anybody else's, and a world on it.
pub(super) async fn stage() -> (PostgresServer, World) {
    // A fault may stop a client for seconds with its transaction open.
    let options = harness::options().set("deadlock_timeout", "200ms").set("log_min_messages", "fatal");
    let server = harness::start(&options);
    let world = World::make(database_on(&server).await).await;
    (server, world)
}

/// Runs; `None` where there is no Redis to be had.
pub(super) async fn run(run: &Run) -> Option<Summary> {
    let redis = redis()?;
    let (postgres, world) = stage().await;
    let replica = postgres.replica(&harness::options()).expect("a replica");
    let fleet = Fleet::start(&world, [&postgres, &replica], &redis, &run.plan).await;
    let ports = fleet.herds.iter().map(|herd| herd.port).collect();
    let scene = Scene::new(world, ports, run.bound);
    let before = fleet.figures();
    let tasks = scene.populate(Load::USUAL);
    let nemesis = Nemesis {
        world: &scene.world,
        fleet: &fleet,
        redis: &redis,
        postgres: &postgres,
        replica: &replica,
        acts: run.acts.clone(),
        calm: run.calm,
        start: scene.start,
        done: Mutex::default(),
    };
    let is_over = || {
        let late = scene.start.elapsed() >= run.time;
        let over = late || (run.stop_at_violation && scene.chains.is_violated());
        if over {
            scene.stop.store(true, Ordering::SeqCst);
        }
        over
    };
    let fallen = tokio::join!(nemesis.rage(&is_over), keep_looking(&fleet, &scene)).1;
    let time = scene.start.elapsed();
    end(tasks).await;
    if !run.stop_at_violation {
        // Whatever has happened, the cache comes back.
        futures_util::future::join_all(fleet.herds.iter().map(|herd| herd.warm(&scene.world))).await;
    }
    fleet.look().await;
    let mut summary = summary(&scene, time);
    let after = fleet.figures();
    [summary.hits, summary.from_replica, summary.shared] = std::array::from_fn(|at| after[at] - before[at]);
    summary.done = nemesis.done.into_inner();
    summary.fallen = fallen;
    Some(summary)
}

pub(super) fn summary(scene: &Scene, time: Duration) -> Summary {
    let counts = &scene.counts;
    Summary {
        reads: counts.reads.load(Ordering::SeqCst),
        near: counts.near.load(Ordering::SeqCst),
        lost_reads: counts.lost_reads.load(Ordering::SeqCst),
        writes: counts.writes.load(Ordering::SeqCst),
        failed: format!("{:?}", counts.failed.lock()),
        time,
        violations: scene.chains.violations(),
        ..Summary::default()
    }
}

pub(super) async fn end(mut tasks: JoinSet<()>) {
    while let Some(task) = tasks.join_next().await {
        task.expect("no task panics");
    }
}

/// Looks at everybody's figures, and for those who fell. A long run says now and then how it goes.
async fn keep_looking(fleet: &Fleet, scene: &Arc<Scene>) -> usize {
    let mut fallen = 0;
    let mut told = Instant::now();
    while !scene.is_over() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        fleet.look().await;
        for herd in fleet.herds.iter().filter(|herd| herd.has_fallen()) {
            fallen += 1;
            scene.chains.violation(format!("FALLEN: {}", herd.last_words()));
            herd.start();
        }
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            let so_far = Summary { hits: fleet.figures()[0], ..summary(scene, scene.start.elapsed()) };
            eprintln!("{so_far}");
        }
    }
    fallen
}

/// A Redis of the test's own, or `None` where it is not installed.
fn redis() -> Option<RedisServer> {
    let started = RedisServer::start(ground()).unwrap_or_else(|error| panic!("{error}"));
    if started.is_none() {
        assert!(std::env::var_os("CI").is_none(), "redis-server is not installed");
        eprintln!("NOT TESTED: redis-server is not installed");
    }
    started
}
