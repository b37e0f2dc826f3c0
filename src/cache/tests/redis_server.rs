//! A throw-away Redis, and a pgherd's worth of cache on it.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::Config as FredConfig;
use fred::types::{Builder, CustomCommand, Value};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::*;
use crate::config::model::{OnRedisLoss, Redis, Secret};

pub(super) const LEASE: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for the thing itself.
pub(super) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// `redis-server` on a free port, without a disk.
pub(super) struct RedisServer {
    pub(super) port: u16,
    process: Option<Child>,
    directory: tempfile::TempDir,
}

impl RedisServer {
    pub(super) async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let mut server = Self { port, process: None, directory: tempfile::tempdir().expect("a directory") };
        server.launch().await;
        server
    }

    async fn launch(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.current_dir(self.directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().expect("redis-server is installed"));
        until("Redis answers PING", || async { self.command(&["PING"]).await.is_some() }).await;
    }

    /// Kills it and starts another in its place.
    pub(super) async fn restart(&mut self) {
        self.kill();
        self.launch().await;
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("ours to kill");
            process.wait().expect("it ends");
        }
    }

    /// Stops it where it stands: its sockets still take bytes.
    pub(super) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on with whatever bytes it has.
    pub(super) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
    }

    /// Runs one command on a connection of its own.
    pub(super) async fn command(&self, words: &[&str]) -> Option<Value> {
        let config = FredConfig::from_url(&format!("redis://127.0.0.1:{}", self.port)).expect("a URL");
        let client: Client = Builder::from_config(config).build().expect("a client");
        let task = client.init().await.ok()?;
        let (name, args) = words.split_first().expect("a command");
        let command = CustomCommand::new((*name).to_owned(), None, false);
        let args: Vec<Value> = args.iter().map(|word| Value::from(*word)).collect();
        let value = client.custom::<Value, _>(command, args).await.ok();
        task.abort();
        value
    }

    pub(super) fn settings(&self) -> Redis {
        Redis {
            url: Secret::new(format!("redis://127.0.0.1:{}/0", self.port)),
            ttl: Duration::from_secs(3600),
            // Generous: the machine is shared, and these tests are not about being late.
            timeout: Duration::from_millis(500),
            prefix: "test:".into(),
            lease: LEASE,
            on_loss: OnRedisLoss::Wait,
            replicas: 0,
            max_entry_bytes: 4 << 20,
            compress_above_bytes: 64 << 10,
            ca: None,
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The server processes that PostgreSQL would say are alive, how often it was asked, and transactions that are open.
#[derive(Default)]
pub(super) struct Backends(
    pub(super) Mutex<BTreeSet<BackendId>>,
    pub(super) AtomicU64,
    pub(super) Mutex<Vec<OpenTransaction>>,
);

#[async_trait::async_trait]
impl BackendChecker for Backends {
    async fn backend_gone(&self, backend: BackendId) -> Result<bool, Error> {
        let gone = !self.0.lock().contains(&backend);
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(gone)
    }

    async fn open_transactions(&self) -> Result<Vec<OpenTransaction>, Error> {
        Ok(self.2.lock().clone())
    }
}

/// One pgherd of a fleet: its cache, and its background task.
pub(super) struct Member {
    pub(super) cache: Arc<ResultCache>,
    pub(super) background: JoinHandle<()>,
    pub(super) shutdown: CancellationToken,
    pub(super) backend: BackendId,
}

impl Member {
    pub(super) async fn join(redis: &Redis, backends: &Arc<Backends>, number: i32) -> Self {
        Self::join_with(Cache { redis: Some(redis.clone()), ..config() }, backends, number, Faults::default()).await
    }

    pub(super) async fn join_with(config: Cache, backends: &Arc<Backends>, number: i32, faults: Faults) -> Self {
        let member = Self::absent(config, backends, number, faults);
        until("the member is registered", || async { member.is_registered() }).await;
        let backend = member.backend;
        until("its server process is published", || async { member.published(backend) }).await;
        load_catalog(&member.cache);
        member
    }

    /// A member that may or may not reach Redis.
    pub(super) fn absent(config: Cache, backends: &Arc<Backends>, number: i32, faults: Faults) -> Self {
        let alone = Arc::new(AtomicBool::new(false));
        let cache = ResultCache::with_faults("app", &config, alone, faults).expect("configuration");
        let backend = BackendId { pid: 1000 + number, start_us: 1_700_000_000_000_000 };
        backends.0.lock().insert(backend);
        cache.epochs().publish_backend(backend);
        cache.set_scope("7301-1-170000");
        let shutdown = CancellationToken::new();
        let background = tokio::spawn(cache.clone().run(backends.clone(), shutdown.clone()));
        Self { cache, background, shutdown, backend }
    }

    pub(super) fn is_registered(&self) -> bool {
        self.cache.shared.as_ref().is_some_and(|shared| shared.is_up())
    }

    fn published(&self, backend: BackendId) -> bool {
        self.cache.shared.as_ref().is_some_and(|shared| shared.has_published(backend))
    }

    /// A write that stands in doubt.
    pub(super) async fn write(&self, relations: &[u32]) -> Doubt {
        let mut doubt = self.cache.epochs().open(self.backend);
        doubt.raise(&writes(relations)).await.expect("raise");
        doubt
    }

    /// Fills the key as soon as that is possible; also the way to wait until nothing stands against it.
    pub(super) async fn fill(&self, key: &Key, relations: &[u32], text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            load_catalog(&self.cache);
            match self.cache.lookup(key, relations, CATALOG).await {
                Lookup::Fill(ticket) => {
                    // Looked up again, since the answer is shared only when every member says what it writes of this.
                    if ticket.store(answer(text)).await == Stored::Yes
                        && matches!(self.cache.lookup(key, relations, CATALOG).await, Lookup::Hit { .. })
                    {
                        return;
                    }
                }
                Lookup::Hit { entry, .. } => panic!("served {:?} instead of a miss", entry.bytes),
                Lookup::Bypass(_) | Lookup::Failed(_) => {}
            }
            assert!(Instant::now() < deadline, "can never be filled: {:?}", self.cache.stats());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits for a lookup to be turned away for that reason; anything served before is a fault.
    pub(super) async fn refuses(&self, key: &Key, relations: &[u32], reason: &str) {
        until(reason, || async {
            load_catalog(&self.cache);
            matches!(self.cache.lookup(key, relations, CATALOG).await, Lookup::Bypass(why) if why == reason)
        })
        .await;
    }

    /// Waits until Redis has been told of every outcome.
    pub(super) async fn settled(&self) {
        until("every write is settled", || async { self.cache.shared.as_ref().is_some_and(|shared| shared.is_idle()) })
            .await;
    }

    /// Ends the process as `kill -9` would: nothing is said to Redis.
    pub(super) async fn dies(&self) {
        self.background.abort();
        until("the task is gone", || async { self.background.is_finished() }).await;
        if let Some(shared) = &self.cache.shared {
            shared.die();
        }
    }
}
