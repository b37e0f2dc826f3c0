//! What the sessions of one database share: its pools, its statements, its catalog and its cache.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use foldhash::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::connect::Login;
use crate::backend::gate::Gate;
use crate::backend::ledger::Ledger;
use crate::backend::listener::{self, Listener};
use crate::backend::pool::{Around, Pool, ProcessObserver};
use crate::backend::settings::{Settings, SharedSettings};
use crate::backend::statements::Registry;
use crate::cache::{BackendId, ResultCache};
use crate::catalog::refresh::CatalogHandle;
use crate::config::model::{
    Cache as CacheConfig, Config, Database as DatabaseConfig, Fanout as FanoutConfig, PoolMode, ServerAddress, User,
};
use crate::error::{Error, ErrorKind};
use crate::exec::two_phase::TwoPhase;
use crate::net::tls::ClientTls;
use crate::plan::unseen::Unseen;
use crate::session::cancel::CancelKeys;
use crate::session::clients::Clients;
use crate::session::memo::PlanMemories;
use crate::sql::Analyzer;
use crate::sql::facts::Facts;
use crate::sql::fingerprint::Fingerprint;
use crate::telemetry::metrics::PoolLabels;
use crate::telemetry::metrics::{DatabaseMetrics, Metrics};
use crate::wire::sqlstate::SqlState;

/// A server of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// The one that takes writes.
    Primary,
    /// A replica, by index.
    Replica(usize),
    /// A shard, by index.
    Shard(usize),
    /// Where PostgreSQL merges what pgherd does not.
    Coordinator,
}

/// What every session of this pgherd shares.
pub struct Shared {
    /// Reads statements.
    pub analyzer: Analyzer,
    /// Everybody's cancel keys.
    pub cancel_keys: Arc<CancelKeys>,
    /// All clients.
    pub clients: Arc<Clients>,
    /// Bounds on server connections that several pools share.
    pub ledger: Arc<Ledger>,
    /// Certificates towards servers.
    pub tls: ClientTls,
    /// Counts what happens.
    pub metrics: Arc<Metrics>,
    /// Work in the background that pgherd's end waits for.
    pub tasks: TaskTracker,
}

/// Values of startup parameters that a server of this database has accepted, with the form it reported them in.
type Accepted = HashMap<(Box<str>, Box<str>), Box<str>>;

/// Startup parameter values remembered before the memory of them starts over.
const ACCEPTED_VALUES: usize = 4096;

/// One database as its sessions see it.
pub struct Database {
    /// Its configuration.
    pub config: Arc<DatabaseConfig>,
    /// What all databases share.
    pub shared: Arc<Shared>,
    /// Prepared statements of all its clients.
    pub statements: Registry,
    /// Its figures.
    pub metrics: Arc<DatabaseMetrics>,
    /// Whether its servers may be used now.
    pub gate: Arc<Gate>,
    /// Listens for all its clients, once one has asked.
    listener: OnceLock<Arc<Listener>>,
    pools: Mutex<HashMap<(String, Target), Arc<Pool>>>,
    /// What is known of statements already.
    pub(super) plan_memories: PlanMemories,
    accepted: Mutex<Accepted>,
    shared_settings: Mutex<HashSet<SharedSettings>>,
    /// What the primary's catalog says.
    pub catalog: Arc<CatalogHandle>,
    /// What shard 0's catalog says; all shards are alike.
    pub shard_catalog: Option<Arc<CatalogHandle>>,
    /// What the coordinator's catalog says, where that is another server than the primary.
    pub coordinator_catalog: Option<Arc<CatalogHandle>>,
    /// `[cache]`
    pub cache_config: CacheConfig,
    /// `[fanout]`
    pub fanout: FanoutConfig,
    /// Statements that take longer are logged.
    pub slow_statement: Option<Duration>,
    /// The result cache, where it is on.
    pub cache: Option<Arc<ResultCache>>,
    /// What is cached of each shard, by number; empty where nothing is.
    pub shard_caches: Vec<ShardCache>,
    /// How transactions over several servers end, where that is configured.
    pub two_phase: Option<Arc<TwoPhase>>,
    /// Whether this pgherd is known to be the only one that writes to this database.
    pub solo: Arc<AtomicBool>,
    /// Which server the cache believes it answers for.
    pub scope: Mutex<Option<String>>,
    /// Wakes whoever keeps the catalogs.
    pub catalog_changed: watch::Sender<u64>,
    /// How many catalogs are still to be read for the first time.
    catalogs_missing: watch::Sender<usize>,
    /// Statements that turned out to write though nothing in their text says so.
    unseen_writers: RwLock<HashSet<Fingerprint>>,
    /// Code that changes sessions unseen, with the digest of the catalogs that it was read from.
    unseen: ArcSwapOption<(Box<str>, Unseen)>,
    /// Whether there is any such code: all that most databases are ever asked.
    has_unseen: AtomicBool,
    /// The same of the shards, where they hold schemas of tenants.
    pub(super) shards_unseen: RwLock<HashMap<usize, (Box<str>, Unseen)>>,
    next_replica: AtomicUsize,
    /// Until when fills do without replicas.
    replicas_rest_until: Mutex<Option<Instant>>,
    /// What roles may read, where they share answers.
    pub(super) rights: super::rights::RightsOfRoles,
    /// Statements that are not split over partitions.
    pub(super) unsplit: super::split::Unsplit,
    /// What is done wrong on purpose, so that the tests can show that they would find it.
    #[cfg(feature = "faults")]
    pub leak: Mutex<Option<Leak>>,
    /// Ends what is done for this database in the background.
    pub closed: CancellationToken,
}

/// A leak between sessions that can be put in on purpose. Exists under the cargo feature `faults` alone.
#[cfg(feature = "faults")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leak {
    /// A server connection is taken for one that has the session's settings.
    Settings,
    /// What nobody saw on a server connection stays there.
    Dirt,
    /// The unnamed statement that lies on a server connection is taken for the session's own.
    Unnamed,
}

/// A shard as its cache knows it: a server of its own, whose oids and catalog are nobody else's.
pub struct ShardCache {
    /// Parts of answers, with the epochs and doubts of that shard.
    pub cache: Arc<ResultCache>,
    /// That shard's catalog.
    pub catalog: Arc<CatalogHandle>,
    /// Whether this pgherd is known to be the only one that writes there.
    pub solo: Arc<AtomicBool>,
    /// Which server the cache believes it answers for.
    pub scope: Mutex<Option<String>>,
}

/// Tells the cache of a server's processes.
struct Published(Arc<ResultCache>);

impl ProcessObserver for Published {
    fn opened(&self, pid: i32, start_us: i64) {
        self.0.epochs().publish_backend(BackendId { pid, start_us });
    }

    fn closed(&self, pid: i32, start_us: i64) {
        self.0.epochs().retire_backend(BackendId { pid, start_us });
    }
}

/// How long a statement waits for the catalogs to be read for the first time.
const CATALOG_PATIENCE: Duration = Duration::from_secs(10);

/// Different startup settings that are shared.
const SHARED_SETTINGS: usize = 1000;

/// Fingerprints of unseen writers remembered before the memory of them starts over.
const UNSEEN_WRITERS: usize = 10_000;

impl Database {
    /// A database with no connection yet.
    pub fn new(
        config: Arc<DatabaseConfig>,
        shared: Arc<Shared>,
        whole: &Config,
        cache: Option<Arc<ResultCache>>,
        solo: Arc<AtomicBool>,
    ) -> Self {
        let has_shards = config.is_distributed();
        // Whose scans may be split runs without a catalog meanwhile, as if they might not.
        let needs_catalog = cache.is_some() || has_shards || !config.replicas.is_empty();
        let missing = usize::from(needs_catalog) + usize::from(has_shards);
        let has_coordinator = has_shards && config.coordinator.is_some();
        Self {
            catalog: Arc::new(CatalogHandle::new()),
            coordinator_catalog: has_coordinator.then(|| Arc::new(CatalogHandle::new())),
            shard_catalog: has_shards.then(|| Arc::new(CatalogHandle::with_views())),
            cache_config: whole.cache.clone(),
            fanout: whole.fanout.clone(),
            slow_statement: whole.telemetry.slow_statement,
            cache,
            shard_caches: Vec::new(),
            two_phase: has_shards.then(|| two_phase(&config, &shared)).flatten(),
            solo,
            scope: Mutex::default(),
            catalog_changed: watch::Sender::new(0),
            catalogs_missing: watch::Sender::new(missing),
            unseen_writers: RwLock::default(),
            unseen: ArcSwapOption::empty(),
            has_unseen: AtomicBool::new(false),
            shards_unseen: RwLock::default(),
            next_replica: AtomicUsize::new(0),
            replicas_rest_until: Mutex::default(),
            rights: super::rights::RightsOfRoles::default(),
            unsplit: super::split::Unsplit::default(),
            #[cfg(feature = "faults")]
            leak: Mutex::default(),
            closed: CancellationToken::new(),
            gate: Arc::new(Gate::new(Arc::clone(&shared.clients.ids))),
            listener: OnceLock::new(),
            metrics: shared.metrics.database(&config.name),
            config,
            shared,
            statements: Registry::default(),
            pools: Mutex::default(),
            plan_memories: PlanMemories::default(),
            accepted: Mutex::default(),
            shared_settings: Mutex::default(),
        }
    }

    /// Whether a plan can be anything but "the primary": only then are flights held back until they are understood.
    pub fn is_planned(&self) -> bool {
        self.cache.is_some()
            || self.config.is_distributed()
            || !self.config.replicas.is_empty()
            || self.config.split_scans.is_some()
    }

    /// The server behind a target.
    pub fn address(&self, target: Target) -> &ServerAddress {
        match target {
            Target::Primary => &self.config.primary,
            Target::Replica(index) => &self.config.replicas[index],
            Target::Shard(index) => &self.config.shards[index],
            Target::Coordinator => self.config.coordinator.as_ref().unwrap_or(&self.config.primary),
        }
    }

    /// The server behind a target, for people.
    pub fn place_of(&self, target: Target) -> String {
        let what = match target {
            Target::Primary => "the primary".to_owned(),
            Target::Replica(at) => format!("replica {at}"),
            Target::Shard(at) => format!("shard {at}"),
            Target::Coordinator => "the coordinator".to_owned(),
        };
        format!("{what} ({})", self.address(target))
    }

    /// The pool of that user on that server.
    pub fn pool(&self, user: &User, target: Target) -> Arc<Pool> {
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.get(&(user.name.clone(), target)) {
            return Arc::clone(pool);
        }
        let address = self.address(target).clone();
        let mut config = self.config.pool.clone();
        if let Some(max) = user.max_connections {
            config.max_connections = max;
        }
        let login = self.login(user, target);
        let labels = PoolLabels {
            database: self.config.name.as_str().into(),
            user: user.name.as_str().into(),
            server: address.to_string().as_str().into(),
        };
        let around = Around {
            ledger: Arc::clone(&self.shared.ledger),
            user: user.name.clone(),
            database: self.config.name.clone(),
            metrics: self.shared.metrics.pool(labels),
            gate: Arc::clone(&self.gate),
            observer: self.observer(target),
        };
        let pool = Arc::new(Pool::new(address, login, &config, around));
        pools.insert((user.name.clone(), target), Arc::clone(&pool));
        pool
    }

    /// The fleet must know which processes of a server whose answers are cached this pgherd may be writing through.
    fn observer(&self, target: Target) -> Option<Arc<dyn ProcessObserver>> {
        let cache = match target {
            Target::Primary => self.cache.as_ref()?,
            Target::Shard(shard) => &self.shard_caches.get(shard)?.cache,
            Target::Replica(_) | Target::Coordinator => return None,
        };
        Some(Arc::new(Published(Arc::clone(cache))))
    }

    /// Whose answers a write through a connection to that target may change: the coordinator may be a shard, by the same address.
    pub fn written_at(&self, target: Target) -> Target {
        match (target, &self.config.coordinator) {
            (Target::Coordinator, Some(address)) => {
                let is_it = |shard: &ServerAddress| {
                    (&shard.host, shard.port, &shard.dbname) == (&address.host, address.port, &address.dbname)
                };
                self.config.shards.iter().position(is_it).map_or(Target::Primary, Target::Shard)
            }
            (Target::Shard(_), _) => target,
            _ => Target::Primary,
        }
    }

    /// Who listens at the primary for all clients.
    pub fn listener(&self) -> &Arc<Listener> {
        self.listener.get_or_init(|| {
            let ground = listener::Ground {
                address: self.config.primary.clone(),
                gate: Arc::clone(&self.gate),
                closed: self.closed.clone(),
                tasks: self.shared.tasks.clone(),
                metrics: self.shared.metrics.listener(&self.config.name),
            };
            Listener::new(ground, &self.config.pool)
        })
    }

    /// What its listener does, if there is one.
    pub fn listener_figures(&self) -> Option<listener::Figures> {
        self.listener.get().map(|listener| listener.figures())
    }

    /// Waits until its listener has no connection.
    pub async fn listener_is_closed(&self) {
        if let Some(listener) = self.listener.get() {
            listener.is_closed().await;
        }
    }

    /// How that user's connections log in on a server.
    pub fn login(&self, user: &User, target: Target) -> Login {
        let address = self.address(target);
        Login {
            user: address.user.clone().unwrap_or_else(|| user.name.clone()),
            password: address.password.clone().or_else(|| user.password.clone()),
            scram_keys: None,
            startup: Vec::new(),
            database: address.dbname.clone().unwrap_or_else(|| self.config.name.clone()),
            connect_timeout: address.connect_timeout.unwrap_or(self.config.pool.connect_timeout),
            tls: self.shared.tls.clone(),
        }
    }

    /// Every pool there is, with its user and server.
    pub fn pools(&self) -> Vec<((String, Target), Arc<Pool>)> {
        self.pools.lock().iter().map(|(key, pool)| (key.clone(), Arc::clone(pool))).collect()
    }

    /// The database is gone from the configuration: its pools take no new clients and close what comes back.
    pub fn close(&self) {
        self.closed.cancel();
        for (_, pool) in self.pools.lock().drain() {
            pool.close();
        }
    }

    /// The role that a user's server connections log in as.
    pub fn login_role<'a>(&'a self, user: &'a User) -> &'a str {
        self.config.primary.user.as_deref().unwrap_or(&user.name)
    }

    /// Waits until the catalogs have been read, as far as plans need them.
    ///
    /// # Errors
    /// They could not be read for some time.
    pub async fn wait_for_catalogs(&self) -> Result<(), Error> {
        if *self.catalogs_missing.borrow() == 0 {
            return Ok(());
        }
        let mut missing = self.catalogs_missing.subscribe();
        let read = missing.wait_for(|missing| *missing == 0);
        match tokio::time::timeout(CATALOG_PATIENCE, read).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Backend,
                SqlState::CANNOT_CONNECT_NOW,
                "the servers' catalogs have not been read yet",
            )
            .hint("See in pgherd's log why not: a server may be down, or the login be refused.")),
        }
    }

    /// One of the catalogs has been read for the first time.
    pub fn catalog_is_there(&self) {
        self.catalogs_missing.send_modify(|missing| *missing = missing.saturating_sub(1));
    }

    /// Something was run that may have changed the catalog.
    pub fn catalog_may_have_changed(&self) {
        self.catalog_changed.send_modify(|times| *times += 1);
    }

    /// Whether statements of that fingerprint turned out to write though their text does not say so.
    pub fn writes_unseen(&self, fingerprint: Fingerprint) -> bool {
        let writers = self.unseen_writers.read();
        !writers.is_empty() && writers.contains(&fingerprint)
    }

    /// Notes that statements of that fingerprint write.
    pub fn note_unseen_write(&self, fingerprint: Fingerprint) {
        let mut writers = self.unseen_writers.write();
        if writers.len() >= UNSEEN_WRITERS {
            writers.clear();
        }
        writers.insert(fingerprint);
    }

    /// Whether a statement may run code that changes the session unseen.
    pub fn may_run_unseen(&self, facts: &Facts) -> bool {
        self.has_unseen.load(Ordering::Relaxed)
            && self.unseen.load().as_ref().is_some_and(|known| known.1.may_run(facts))
    }

    /// The digest of the catalogs that such code was last read from; `None` before the first time.
    pub fn unseen_digest(&self) -> Option<Box<str>> {
        self.unseen.load().as_ref().map(|known| known.0.clone())
    }

    /// Notes which code that is.
    pub fn note_unseen(&self, digest: &str, unseen: Unseen) {
        let any = !unseen.is_empty();
        self.unseen.store(Some(Arc::new((digest.into(), unseen))));
        self.has_unseen.store(any, Ordering::Relaxed);
    }

    /// Whether none of them has caught up a moment ago.
    pub(super) fn replicas_rest(&self) -> bool {
        self.replicas_rest_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Fills do without replicas for that long.
    pub(super) fn let_replicas_rest(&self, time: Duration) {
        *self.replicas_rest_until.lock() = Some(Instant::now() + time);
    }

    /// The replicas, each time starting with another one.
    pub fn replicas_in_turn(&self) -> impl Iterator<Item = Target> + use<> {
        let (count, first) = (self.config.replicas.len(), self.next_replica.fetch_add(1, Ordering::Relaxed));
        (0..count).map(move |step| Target::Replica((first + step) % count))
    }

    /// When that user's clients give their connections back.
    pub fn pool_mode(&self, user: &User) -> PoolMode {
        user.pool_mode.unwrap_or(self.config.pool.mode)
    }

    /// Startup settings as clients share them that asked for the same: whether a server has them is one comparison of
    /// pointers then.
    pub fn share_settings(&self, settings: Settings) -> SharedSettings {
        let mut shared = self.shared_settings.lock();
        if let Some(known) = shared.get(&settings) {
            return Arc::clone(known);
        }
        if shared.len() >= SHARED_SETTINGS {
            shared.retain(|settings| Arc::strong_count(settings) > 1);
        }
        let settings = Arc::new(settings);
        if shared.len() < SHARED_SETTINGS {
            shared.insert(Arc::clone(&settings));
        }
        settings
    }

    /// What a server made of that startup value, if one has seen it.
    pub fn accepted_value(&self, name: &str, value: &str) -> Option<Box<str>> {
        self.accepted.lock().get(&(name.into(), value.into())).cloned()
    }

    /// Notes what a server made of a startup value.
    pub fn note_accepted(&self, name: &str, value: &str, reported: &str) {
        let mut accepted = self.accepted.lock();
        if accepted.len() >= ACCEPTED_VALUES {
            accepted.clear();
        }
        accepted.insert((name.into(), value.into()), reported.into());
    }
}

/// Connects to nothing yet.
fn two_phase(config: &DatabaseConfig, shared: &Shared) -> Option<Arc<TwoPhase>> {
    let wanted = config.two_phase.as_ref()?;
    let server = |address: &ServerAddress| {
        let login = Login {
            user: wanted.user.clone(),
            password: wanted.password.clone(),
            scram_keys: None,
            startup: Vec::new(),
            database: address.dbname.clone().unwrap_or_else(|| config.name.clone()),
            connect_timeout: address.connect_timeout.unwrap_or(config.pool.connect_timeout),
            tls: shared.tls.clone(),
        };
        (address.clone(), login)
    };
    let servers = std::iter::once(&config.primary).chain(&config.shards).map(server).collect();
    Some(TwoPhase::new(servers, wanted.latch, wanted.lock_timeout))
}
