//! Writers and readers on a fleet, until the time is up or something was found wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use pgherd::commands::demo::servers::RedisServer;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::chains::Chains;
use super::fleet::{Fleet, Plan};
use super::reads::{Profile, Reader, ZONES};
use super::world::{World, all_chains};
use super::writes;
use crate::harness::faults::{Faults, Forwarder};

/// What a run is to do.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    pub(super) seconds: u64,
    /// Ends at the first violation.
    pub(super) stop_at_violation: bool,
    /// Redis is killed and comes back, and one pgherd is cut off from it for a while.
    pub(super) lose_redis: bool,
    #[cfg(feature = "faults")]
    pub(super) faults: pgherd::cache::Faults,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) reads: u64,
    pub(super) hits: u64,
    pub(super) near: u64,
    pub(super) writes: u64,
    pub(super) failed_writes: u64,
    pub(super) violations: Vec<(Duration, String)>,
    pub(super) notes: String,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = |part: u64| part as f64 * 100.0 / self.reads.max(1) as f64;
        write!(
            f,
            "{} reads, {} hits ({:.0}%), {} within 10 ms of a commit ({:.0}%), {} commits, {} writes failed, {} violations",
            self.reads,
            self.hits,
            share(self.hits),
            self.near,
            share(self.near),
            self.writes,
            self.failed_writes,
            self.violations.len()
        )
    }
}

/// What all tasks share.
struct Scene {
    fleet: Fleet,
    world: World,
    chains: Chains,
    stop: AtomicBool,
    /// The chain that was written last.
    written: watch::Sender<i32>,
    reads: AtomicU64,
    near: AtomicU64,
    writes: AtomicU64,
    failed: AtomicU64,
}

const WRITERS: usize = 4;
/// Always two of a kind, one at each pgherd.
const READERS: usize = 12;
/// Reads that a writer starts the moment its commit is acknowledged.
const AT_ONCE: usize = 8;

/// Runs the load; `None` where there is no Redis to be had.
pub(super) async fn run(run: Run) -> Option<Summary> {
    let redis = super::fleet::redis()?;
    let world = World::make().await;
    let link = Forwarder::to(redis.port()).await;
    // One pgherd is further away from Redis than the other.
    link.set(far());
    let plan = Plan {
        users: world.logins(),
        cache: "ttl = \"5m\"".into(),
        database: String::new(),
        redis: vec![format!("redis://127.0.0.1:{}/0", link.port), redis.url()],
        #[cfg(feature = "faults")]
        faults: run.faults,
    };
    let fleet = Fleet::start(&world.database, &plan).await;
    fleet.warm("postgres", "select count(*) from shop.log").await;
    let scene = Arc::new(Scene {
        fleet,
        world,
        chains: Chains::new(&all_chains()),
        stop: AtomicBool::new(false),
        written: watch::Sender::new(100),
        reads: AtomicU64::default(),
        near: AtomicU64::default(),
        writes: AtomicU64::default(),
        failed: AtomicU64::default(),
    });
    let hits_before = scene.fleet.hits();
    let mut tasks = JoinSet::new();
    for _ in 0..WRITERS {
        tasks.spawn(keep_writing(Arc::clone(&scene)));
    }
    for number in 0..READERS {
        tasks.spawn(keep_reading(Arc::clone(&scene), number));
    }
    spend(&scene, &run, &redis, &link).await;
    scene.stop.store(true, Ordering::SeqCst);
    while let Some(task) = tasks.join_next().await {
        task.expect("no task panics");
    }
    let notes = (0..scene.fleet.len()).map(|herd| format!("{:?}\n", scene.fleet.stats(herd))).collect();
    let summary = Summary {
        reads: scene.reads.load(Ordering::SeqCst),
        hits: scene.fleet.hits() - hits_before,
        near: scene.near.load(Ordering::SeqCst),
        writes: scene.writes.load(Ordering::SeqCst),
        failed_writes: scene.failed.load(Ordering::SeqCst),
        violations: scene.chains.violations(),
        notes,
    };
    if let Some(scene) = Arc::into_inner(scene) {
        scene.fleet.stop().await;
    }
    Some(summary)
}

fn far() -> Faults {
    Faults { delay: Duration::from_millis(3), ..Faults::default() }
}

/// Lets the time pass, and Redis go and come back in it.
async fn spend(scene: &Scene, run: &Run, redis: &RedisServer, link: &Forwarder) {
    let (start, total) = (Instant::now(), Duration::from_secs(run.seconds));
    let mut acts = [(0.35, 0), (0.42, 1), (0.65, 2), (0.70, 3)].into_iter().filter(|_| run.lose_redis).peekable();
    while start.elapsed() < total && !(run.stop_at_violation && scene.chains.is_violated()) {
        if let Some((_, act)) = acts.next_if(|(share, _)| start.elapsed() >= total.mul_f64(*share)) {
            match act {
                0 => redis.kill9().expect("killed"),
                1 => redis.restart().expect("restarted"),
                2 => link.set(Faults { down: true, ..far() }),
                _ => link.set(far()),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The readers' sessions. The first two, and the sixth, differ in nothing but the role.
fn profile(number: usize, herd: usize) -> Profile {
    let [utc, tokyo, phoenix] = ZONES;
    let (owner, zone, schema, extended) = match number % 6 {
        0 => (0, utc, "north", false),
        1 => (1, utc, "north", false),
        2 => (2, tokyo, "south", true),
        3 => (1, phoenix, "south", false),
        4 => (0, tokyo, "north", true),
        _ => (2, utc, "north", false),
    };
    Profile { herd, owner, zone, schema, extended }
}

async fn keep_reading(scene: Arc<Scene>, number: usize) {
    let mut reader = Reader::open(&scene.fleet, &scene.world, profile(number / 2, number % 2)).await;
    let mut written = scene.written.subscribe();
    while !scene.stop.load(Ordering::Relaxed) {
        if rand::random_bool(0.7) {
            let _ = tokio::time::timeout(Duration::from_millis(15), written.changed()).await;
        }
        let aimed = reader.of_chain(*written.borrow_and_update());
        let at = match aimed.len() {
            few @ 1.. => aimed[rand::random_range(0..few)],
            _ => rand::random_range(0..reader.reads.len()),
        };
        // As a page that is looked at by many: the same again and again.
        for _ in 0..rand::random_range(4..16) {
            read(&scene, &mut reader, at).await;
        }
    }
}

async fn read(scene: &Scene, reader: &mut Reader, at: usize) {
    let ended = reader.ask(&scene.chains, at, rand::random_bool(0.1)).await;
    scene.reads.fetch_add(u64::from(ended.was_read), Ordering::Relaxed);
    scene.near.fetch_add(u64::from(ended.is_near && ended.was_read), Ordering::Relaxed);
}

/// Reads something that holds that chain, if the reader asks for any such thing.
async fn read_one_of(scene: &Scene, reader: &mut Reader, chain: i32) {
    let aimed = reader.of_chain(chain);
    if !aimed.is_empty() {
        let at = aimed[rand::random_range(0..aimed.len())];
        // Filled, and found.
        for _ in 0..3 {
            read(scene, reader, at).await;
        }
    }
}

async fn keep_writing(scene: Arc<Scene>) {
    let ids = all_chains();
    let mut clients = Vec::new();
    let mut readers = Vec::new();
    for herd in 0..scene.fleet.len() {
        clients.push(scene.fleet.client(herd, &scene.world.writer).await);
    }
    for at in 0..AT_ONCE {
        readers.push(Reader::open(&scene.fleet, &scene.world, profile(at / 4 * 2, usize::from(at % 4 > 0))).await);
    }
    while !scene.stop.load(Ordering::Relaxed) {
        // Items more often than the rest: two writers are to overlap on them.
        let id =
            if rand::random_bool(0.5) { ids[rand::random_range(0..8)] } else { ids[rand::random_range(8..ids.len())] };
        let chain = scene.chains.get(id);
        let Ok(pen) = chain.pen.try_lock() else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let herd = rand::random_range(0..clients.len());
        let dice = rand::random_range(0..120);
        let written = writes::write(&scene.chains, chain, &clients[herd], dice).await;
        drop(pen);
        scene.written.send_replace(id);
        if let Err(error) = written {
            scene.failed.fetch_add(1, Ordering::Relaxed);
            eprintln!("a write failed: {error:?}");
            clients[herd] = scene.fleet.client(herd, &scene.world.writer).await;
            continue;
        }
        scene.writes.fetch_add(1, Ordering::Relaxed);
        // At once, here and where it was not written.
        join_all(readers.iter_mut().map(|reader| read_one_of(&scene, reader, id))).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(30..150))).await;
    }
}
