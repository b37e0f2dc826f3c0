//! Writers and readers on a fleet, until the time is up or something was found wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::Error;

use super::chains::{Chain, Chains};
use super::reads::{Profile, Reader, ZONES};
use super::seat::{Line, PATIENCE, Seat};
use super::world::{World, definition_chains, row_chains};
use super::{definitions, writes};

/// What all tasks share.
pub(super) struct Scene {
    pub(super) world: World,
    /// Where readers and writers connect.
    pub(super) ports: Vec<u16>,
    pub(super) chains: Chains,
    pub(super) start: Instant,
    pub(super) stop: AtomicBool,
    /// The chain that was written last.
    written: watch::Sender<i32>,
    pub(super) counts: Counts,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) reads: AtomicU64,
    pub(super) near: AtomicU64,
    pub(super) lost_reads: AtomicU64,
    pub(super) writes: AtomicU64,
    /// Writes that did not end well, by SQLSTATE.
    pub(super) failed: Mutex<BTreeMap<String, u64>>,
}

impl Counts {
    /// Whether fewer reads than an eighth were asked for just behind a commit to what they read.
    fn is_far_from_commits(&self) -> bool {
        self.near.load(Ordering::Relaxed) * 8 < self.reads.load(Ordering::Relaxed)
    }
}

/// How much is done at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    writers: usize,
    /// One of each kind at least.
    readers: usize,
    /// Reads that a writer starts the moment its commit is acknowledged.
    at_once: usize,
    /// Of how many writes one changes a definition.
    definition_one_in: u32,
}

impl Load {
    pub(super) const USUAL: Self = Self { writers: 4, readers: 12, at_once: 6, definition_one_in: 40 };
}

impl Scene {
    pub(super) fn new(world: World, ports: Vec<u16>, bound: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            world,
            ports,
            chains: Chains::new(&super::world::all_chains(), bound),
            start: Instant::now(),
            stop: AtomicBool::new(false),
            written: watch::Sender::new(100),
            counts: Counts::default(),
        })
    }

    /// Starts everybody.
    pub(super) fn populate(self: &Arc<Self>, load: Load) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let mut posts = (0..).map(|number| Post::new(profile(number, (number + number / PROFILES) % self.ports.len())));
        for _ in 0..load.readers {
            tasks.spawn(keep_reading(Arc::clone(self), posts.next().expect("as many as are asked for")));
        }
        for _ in 0..load.writers {
            tasks.spawn(keep_writing(Arc::clone(self), load, posts.by_ref().take(load.at_once).collect()));
        }
        tasks.spawn(keep_clearing(Arc::clone(self)));
        tasks
    }

    pub(super) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn failed(&self, error: Option<&Error>) {
        let code = error.map_or("no answer in time".to_owned(), |error| {
            error.code().map_or("connection lost".to_owned(), |code| code.code().to_owned())
        });
        *self.counts.failed.lock().entry(code).or_default() += 1;
    }
}

/// How many kinds of readers there are.
const PROFILES: usize = 10;

/// The readers' sessions. The first two, and the sixth, differ in nothing but the role; 6 and 7 in nothing but the tenant, 8 from 3 in
/// nothing but the search path, and 9 from 3 in nothing but the time zone. What one has filled is there for all pgherds.
fn profile(number: usize, herd: usize) -> Profile {
    let [utc, tokyo, phoenix] = ZONES;
    let (owner, zone, schema, extended, tenant) = match number % PROFILES {
        0 => (0, utc, "north", false, 0),
        1 => (1, utc, "north", false, 0),
        2 => (2, tokyo, "south", true, 0),
        3 => (1, phoenix, "south", false, 1),
        4 => (0, tokyo, "north", true, 1),
        5 => (2, utc, "north", false, 0),
        6 => (1, tokyo, "south", true, 0),
        7 => (1, tokyo, "south", true, 1),
        8 => (1, phoenix, "north", false, 1),
        _ => (1, utc, "south", false, 1),
    };
    Profile { herd, owner, zone, schema, tenant, extended }
}

/// Where one reader is, whether it is connected or not.
struct Post {
    profile: Profile,
    reader: Option<Reader>,
    tried_at: Option<Instant>,
}

impl Post {
    fn new(profile: Profile) -> Self {
        Self { profile, reader: None, tried_at: None }
    }

    async fn man(&mut self, scene: &Scene) {
        if self.reader.is_none() && self.tried_at.is_none_or(|at| at.elapsed() > Duration::from_millis(40)) {
            let port = scene.ports[self.profile.herd];
            self.reader = Reader::open(port, &scene.world, self.profile.clone()).await;
            self.tried_at = Some(Instant::now());
        }
    }

    /// Asks for something that holds that chain, or for anything else if there is no such thing and `or_else`.
    async fn ask(&mut self, scene: &Scene, chain: i32, times: usize, or_else: bool) {
        self.man(scene).await;
        let Some(reader) = &mut self.reader else { return };
        let aimed = reader.of_chain(chain);
        let at = match aimed.len() {
            few @ 1.. => aimed[rand::random_range(0..few)],
            _ if or_else => rand::random_range(0..reader.reads.len()),
            _ => return,
        };
        let ended = reader.ask(&scene.chains, at, times, rand::random_bool(0.1)).await;
        scene.counts.reads.fetch_add(ended.reads, Ordering::Relaxed);
        scene.counts.near.fetch_add(ended.near, Ordering::Relaxed);
        if ended.is_lost {
            scene.counts.lost_reads.fetch_add(1, Ordering::Relaxed);
            self.reader = None;
        }
    }
}

async fn keep_reading(scene: Arc<Scene>, mut post: Post) {
    let mut written = scene.written.subscribe();
    while !scene.is_over() {
        // Where hits are so cheap that hardly any read comes just behind a commit, nobody asks before there is another.
        let is_hasty = scene.counts.is_far_from_commits();
        let patience = Duration::from_millis(if is_hasty { 250 } else { 15 });
        if post.reader.is_none() || is_hasty || rand::random_bool(0.7) {
            let _ = tokio::time::timeout(patience, written.changed()).await;
        }
        let chain = *written.borrow_and_update();
        // As a page that is looked at by many: the same again and again.
        let (times, most) = if is_hasty { (1, 24) } else { (rand::random_range(1..7), 72) };
        for _ in 0..times {
            post.ask(&scene, chain, rand::random_range(8..most), true).await;
        }
    }
}

async fn keep_writing(scene: Arc<Scene>, load: Load, mut posts: Vec<Post>) {
    let conninfo = |port: &u16| {
        let (user, name) = (&scene.world.writer, &scene.world.database.name);
        format!("host=127.0.0.1 port={port} user={user} dbname={name}")
    };
    let mut seats: Vec<Seat> = scene.ports.iter().map(|port| Seat::at(conninfo(port))).collect();
    while !scene.is_over() {
        let Some(id) = write_once(&scene, load, &mut seats).await else {
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        };
        scene.written.send_replace(id);
        // At once, here and where it was not written: filled, and found.
        join_all(posts.iter_mut().map(|post| post.ask(&scene, id, 3, false))).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(15..80))).await;
    }
}

/// Writes some chain, which it returns, unless nobody could be asked to.
async fn write_once(scene: &Scene, load: Load, seats: &mut [Seat]) -> Option<i32> {
    let is_definition = rand::random_ratio(1, load.definition_one_in);
    let ids = if is_definition { definition_chains() } else { row_chains() };
    // Items more often than the rest: two writers are to overlap on them.
    let items = if is_definition { 0 } else { 8 };
    let id = if rand::random_bool(0.5) && items > 0 {
        ids[rand::random_range(0..items)]
    } else {
        ids[rand::random_range(items..ids.len())]
    };
    let chain = scene.chains.get(id);
    let Ok(_pen) = chain.pen.try_lock() else { return None };
    let (here, there) = (rand::random_range(0..seats.len()), rand::random_range(0..seats.len()));
    let client = seats[here].client().await?;
    let other = seats[there].client().await.unwrap_or_else(|| Arc::clone(&client));
    let dice = rand::random_range(0..840);
    let write = written(scene, chain, &client, &other, is_definition, dice);
    match tokio::time::timeout(PATIENCE, Box::pin(write)).await {
        Ok(Ok(())) => {
            scene.counts.writes.fetch_add(1, Ordering::Relaxed);
        }
        ended => {
            scene.failed(ended.ok().and_then(Result::err).as_ref());
            seats[here].leave();
            seats[there].leave();
        }
    }
    Some(id)
}

async fn written(
    scene: &Scene,
    chain: &Chain,
    client: &tokio_postgres::Client,
    other: &tokio_postgres::Client,
    is_definition: bool,
    dice: u32,
) -> Result<(), Error> {
    if is_definition {
        return definitions::write(&scene.chains, chain, &scene.world, client, other, dice).await;
    }
    writes::write(&scene.chains, chain, client, other, dice).await
}

/// Rolls back what was prepared and left, straight in PostgreSQL: nobody ever saw anything of it.
async fn keep_clearing(scene: Arc<Scene>) {
    let mut line = None;
    while !scene.is_over() {
        tokio::time::sleep(Duration::from_millis(250)).await;
        if line.is_none() {
            line = Line::open(&scene.world.database.conninfo()).await;
        }
        let Some(open) = &line else { continue };
        let old = "select gid from pg_prepared_xacts where prepared < clock_timestamp() - interval '2 s'";
        match open.client.query(old, &[]).await {
            Ok(rows) => {
                for row in rows {
                    let gid: String = row.get(0);
                    let _ = open.client.batch_execute(&format!("rollback prepared '{gid}'")).await;
                }
            }
            Err(_) => line = None,
        }
    }
}
