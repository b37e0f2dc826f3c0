//! pgherds as processes of their own, each with links to PostgreSQL and Redis that can be cut, slowed down and stopped.

use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use pgherd::commands::demo::servers::{PostgresServer, RedisServer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::seat::Line;
use super::world::World;
use crate::harness::eventually;
use crate::harness::faults::Forwarder;
use crate::harness::serving::{Serving, free_port};

/// How long a look at a pgherd's figures may take: it may be frozen.
const LOOK: Duration = Duration::from_millis(500);

/// Figures that are added up: answers from the cache, answers to keep that a replica gave, lookups of answers that roles share.
const COUNTED: [&str; 3] = ["pgherd_cache_hits", "pgherd_cache_replica_fills", "pgherd_cache_shared_lookups"];

/// How a fleet is to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pub(super) herds: usize,
    /// More TOML in `[cache]`.
    pub(super) cache: String,
    /// The name of a fault that every pgherd is to have; empty for none.
    pub(super) fault: String,
}

/// One pgherd.
pub(super) struct Herd {
    file: PathBuf,
    fault: String,
    pub(super) port: u16,
    http: u16,
    serving: Mutex<Option<Serving>>,
    pub(super) to_redis: Forwarder,
    pub(super) to_postgres: Forwarder,
    /// The port of the replica that this one reads from: the first does.
    replica: Option<u16>,
    /// What this process and those before it have counted, as far as anybody looked before they ended.
    figures: Mutex<[u64; COUNTED.len()]>,
    /// How many processes came before this one, and what it has counted itself.
    process: Mutex<(u64, [u64; COUNTED.len()])>,
}

/// All of them.
pub(super) struct Fleet {
    pub(super) herds: Vec<Herd>,
    _folder: TempDir,
}

impl Fleet {
    /// Starts them, and waits until they cache.
    pub(super) async fn start(
        world: &World,
        [primary, replica]: [&PostgresServer; 2],
        redis: &RedisServer,
        plan: &Plan,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut herds = Vec::new();
        for number in 0..plan.herds {
            let (to_redis, to_postgres) = (Forwarder::to(redis.port()).await, Forwarder::to(primary.port()).await);
            let place = folder.path().join(number.to_string());
            std::fs::create_dir(&place).expect("a folder");
            let herd = Herd {
                file: place.join("proxy.toml"),
                fault: plan.fault.clone(),
                port: free_port(),
                http: free_port(),
                serving: Mutex::default(),
                to_redis,
                to_postgres,
                replica: (number == 0).then(|| replica.port()),
                figures: Mutex::default(),
                process: Mutex::default(),
            };
            std::fs::write(&herd.file, herd.toml(world, plan)).expect("written");
            herd.start();
            herds.push(herd);
        }
        let fleet = Self { herds, _folder: folder };
        for herd in &fleet.herds {
            herd.warm(world).await;
        }
        fleet
    }

    /// Answers from the cache, answers to keep that a replica gave, and lookups of answers that roles share: of all processes that there were.
    pub(super) fn figures(&self) -> [u64; COUNTED.len()] {
        let all: Vec<_> = self.herds.iter().map(|herd| *herd.figures.lock()).collect();
        std::array::from_fn(|at| all.iter().map(|figures| figures[at]).sum())
    }

    /// Looks at everybody's figures.
    pub(super) async fn look(&self) {
        futures_util::future::join_all(self.herds.iter().map(Herd::look)).await;
    }
}

impl Herd {
    fn toml(&self, world: &World, plan: &Plan) -> String {
        let user = |name: &String| format!("[[user]]\nname = \"{name}\"\nauth = \"trust\"\n");
        let users: String = world.logins().iter().map(user).collect();
        let (port, http, name) = (self.port, self.http, &world.database.name);
        let (postgres, redis) = (self.to_postgres.port, self.to_redis.port);
        let replica =
            |port: u16| format!("replicas = [\"host=127.0.0.1 port={port} dbname={name}\"]\nreads = \"replica\"\n");
        let replicas = self.replica.map(replica).unwrap_or_default();
        format!(
            "threads = 1\n[telemetry]\nlog = \"warn\"\n\
             [listen]\naddress = \"127.0.0.1:{port}\"\nhttp = \"127.0.0.1:{http}\"\n\
             [pool]\nmin_connections = 2\nmax_connections = 20\nacquire_timeout = \"5s\"\nconnect_timeout = \"3s\"\n\
             [[database]]\nname = \"{name}\"\nprimary = \"host=127.0.0.1 port={postgres} dbname={name}\"\n{replicas}{users}\
             [cache]\nenabled = true\nolap_only = false\nshare_roles = true\n{}\n\
             redis = {{ url = \"redis://127.0.0.1:{redis}/0\", timeout = \"500ms\", lease = \"2s\" }}\n",
            plan.cache
        )
    }

    /// Starts its process.
    pub(super) fn start(&self) {
        let environment = [("PGHERD_FAULT", self.fault.as_str())];
        *self.serving.lock() = Some(Serving::start_with(&self.file, &environment));
    }

    /// Ends its process with that signal, and waits for the end.
    pub(super) fn end(&self, signal: &str) {
        let Some(mut serving) = self.serving.lock().take() else { return };
        serving.signal(signal);
        serving.ended(Duration::from_secs(40));
        let mut process = self.process.lock();
        *process = (process.0 + 1, Default::default());
    }

    /// Sends its process a signal that does not end it.
    pub(super) fn signal(&self, signal: &str) {
        self.serving.lock().iter().for_each(|serving| serving.signal(signal));
    }

    /// Whether it ended on its own.
    pub(super) fn has_fallen(&self) -> bool {
        self.serving.lock().as_mut().is_some_and(|serving| !serving.is_running())
    }

    /// The last lines that it said.
    pub(super) fn last_words(&self) -> String {
        let log = self.serving.lock().as_ref().map(Serving::log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Takes the figures over.
    pub(super) async fn look(&self) {
        let asked = self.process.lock().0;
        let Ok(Ok(text)) = tokio::time::timeout(LOOK, self.metrics()).await else { return };
        let mut process = self.process.lock();
        // What a process that has ended meanwhile has said is not to be counted as another's.
        if process.0 != asked {
            return;
        }
        for (at, name) in COUNTED.iter().enumerate() {
            let now = sum_of(&text, name).unwrap_or(0).max(process.1[at]);
            self.figures.lock()[at] += now - process.1[at];
            process.1[at] = now;
        }
    }

    /// The sum of all figures whose names begin so.
    async fn figure(&self, name: &str) -> Option<u64> {
        let text = tokio::time::timeout(LOOK, self.metrics()).await.ok()?.ok()?;
        sum_of(&text, name)
    }

    async fn metrics(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// Waits until it answers from its cache.
    pub(super) async fn warm(&self, world: &World) {
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname={}", self.port, world.database.name);
        eventually(Duration::from_secs(60), "the cache answers", || async {
            let Some(line) = Line::open(&conninfo).await else { return false };
            let before = self.figure("pgherd_cache_hits").await;
            for _ in 0..3 {
                let _ = line.client.simple_query("select count(*) from shop.one").await;
            }
            before.is_some() && self.figure("pgherd_cache_hits").await > before
        })
        .await;
    }
}

fn sum_of(metrics: &str, name: &str) -> Option<u64> {
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    let values: Vec<u64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}
