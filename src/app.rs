//! The only place that wires the parts together: configuration in, a running pgherd out.

mod accept;
mod checker;
mod console;
mod databases;
mod door;
mod figures;
mod flags;
mod follow;
mod handover;
mod homes;
mod solo;
mod transactions;
mod upkeep;
mod workers;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::databases::Databases;
use self::door::Door;
use self::handover::{Handover, Predecessor};
use self::homes::{Home, Names};
use self::workers::Workers;
use crate::admin::Shutdown;
use crate::auth::scram::ScramStore;
use crate::backend::gate::Gate;
use crate::backend::ledger::Bounds;
use crate::config::model::{Config, Database as DatabaseConfig};
use crate::config::reload::{self, Reload};
use crate::error::{Error, ErrorKind};
use crate::http::{self, Readiness};
use crate::net::listener::Listener;
use crate::net::tls::{ClientTls, ServerTls};
use crate::session::cancel::CancelKeys;
use crate::session::clients::Clients;
use crate::session::context::{Database, Shared};
use crate::session::handshake::HandshakeContext;
use crate::shutdown::Drain;
use crate::sql::Analyzer;
use crate::telemetry::{self, metrics::Metrics};
use crate::wire::sqlstate::SqlState;

/// What every task of a running pgherd may need.
struct House {
    config: ArcSwap<Config>,
    handshake: ArcSwap<HandshakeContext>,
    door: Arc<Door>,
    databases: Databases,
    /// By primary or shard.
    homes: Mutex<HashMap<String, Home>>,
    names: Names,
    /// By database, kept over reloads.
    gates: Mutex<HashMap<String, Arc<Gate>>>,
    console: console::Controls,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    /// No new clients; those that are idle are sent away.
    drain: Drain,
    /// Everything ends.
    stop: CancellationToken,
    /// The HTTP side ends.
    http_stop: CancellationToken,
    /// From the process before this one, and to the one after it.
    handover: Handover,
    sessions: TaskTracker,
    /// The threads that serve them.
    workers: Workers,
    tasks: TaskTracker,
    #[cfg(feature = "faults")]
    faults: crate::cache::Faults,
}

/// A running pgherd.
pub struct Running {
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    house: Arc<House>,
}

/// Starts pgherd: binds its sockets, opens its databases, and returns. With a `path` the file is watched for changes.
///
/// # Errors
/// A socket cannot be bound or a certificate not be read; the error says what to do.
pub async fn start(config: Arc<Config>, path: Option<PathBuf>) -> Result<Running, Error> {
    let metrics = Arc::new(Metrics::new());
    let tasks = TaskTracker::new();
    let shared = Arc::new(Shared {
        analyzer: Analyzer::new(),
        cancel_keys: Arc::new(CancelKeys::default()),
        clients: Arc::new(Clients::default()),
        ledger: Arc::default(),
        tls: ClientTls::new(),
        metrics: Arc::clone(&metrics),
        tasks: tasks.clone(),
    });
    let handshake = handshake_context(&config, Arc::new(ScramStore::new()))?;
    let mut predecessor = match &config.listen.handover {
        Some(path) => Predecessor::find(path).await?,
        None => None,
    };
    let listener = listen_tcp(&config, &mut predecessor)?;
    let address = listener.local_addr().ok_or_else(|| Error::internal("the listening socket has no address"))?;
    let stop = CancellationToken::new();
    let house = Arc::new(House {
        door: Arc::new(Door::new(&config)),
        config: ArcSwap::new(Arc::clone(&config)),
        handshake: ArcSwap::from_pointee(handshake),
        databases: Databases::default(),
        homes: Mutex::default(),
        names: Names::default(),
        gates: Mutex::default(),
        console: console::Controls::default(),
        shared,
        metrics,
        readiness: Readiness::default(),
        drain: Drain::default(),
        workers: Workers::new(config.threads, &stop),
        http_stop: stop.child_token(),
        stop,
        handover: Handover::default(),
        sessions: TaskTracker::new(),
        tasks,
        #[cfg(feature = "faults")]
        faults: crate::cache::Faults::from_environment().map_err(Error::internal)?,
    });
    house.shared.ledger.set_bounds(bounds(&config));
    house.open_databases(&config);
    let unix = listen_unix(&config, address, &mut predecessor)?;
    if let Some(path) = path {
        let _ = house.console.path.set(path.clone());
        house.watch_configuration(&path, Arc::clone(&config));
    }
    house.tasks.spawn(upkeep::check_health(Arc::clone(&house)));
    house.tasks.spawn(Arc::clone(&house).keep_averages());
    house.tasks.spawn(workers::balance(Arc::clone(&house)));
    if predecessor.is_some() {
        house.wait_to_take_over().await;
    }
    // Not before: whoever asks at that socket whether pgherd is ready must not hear that this process is not yet.
    let http_address = house.listen_http(&config, &mut predecessor).await?;
    house.open_doors(&config, listener, unix);
    if let Some(path) = &config.listen.handover {
        house.take_over_from(predecessor, path.clone());
    }
    house.readiness.set_listening(true);
    tracing::info!(%address, "listening");
    Ok(Running { address, http_address, house })
}

/// Names under which listening sockets go from one process to the next: what the configuration says of them.
fn tcp_name(config: &Config) -> String {
    format!("tcp {}", config.listen.address)
}

fn unix_name(config: &Config) -> Option<String> {
    Some(format!("unix {} {}", config.listen.address.port(), config.listen.unix_socket_dir.as_ref()?.display()))
}

fn listen_tcp(config: &Config, predecessor: &mut Option<Predecessor>) -> Result<Listener, Error> {
    match predecessor.as_mut().and_then(|it| it.take(&tcp_name(config))) {
        Some(socket) => Listener::take_tcp(socket),
        None => Listener::bind_tcp(config.listen.address),
    }
}

fn listen_unix(
    config: &Config,
    address: SocketAddr,
    predecessor: &mut Option<Predecessor>,
) -> Result<Option<Listener>, Error> {
    let (Some(directory), Some(name)) = (&config.listen.unix_socket_dir, unix_name(config)) else { return Ok(None) };
    let listener = match predecessor.as_mut().and_then(|it| it.take(&name)) {
        Some(socket) => Listener::take_unix(socket, directory, address.port())?,
        None => Listener::bind_unix(directory, address.port())?,
    };
    Ok(Some(listener))
}

/// Runs pgherd until it is told to stop (SIGINT, SIGTERM, the console), or until another process has taken over. A second signal ends
/// it at once.
///
/// # Errors
/// As [`start`].
pub async fn run(config: Arc<Config>, path: Option<PathBuf>) -> Result<(), Error> {
    let shutdown_timeout = config.listen.shutdown_timeout;
    let mut signals = Signals::listen()?;
    let running = start(config, path).await?;
    let drain_delay = running.house.config.load().listen.drain_delay.unwrap_or_default();
    let ending = async {
        let how = tokio::select! {
            () = signals.next() => None,
            how = running.told_to_shut_down() => Some(how),
            () = running.handed_over() => {
                running.follow_the_clients(shutdown_timeout).await;
                Some(Shutdown::WaitForServers)
            }
        };
        tracing::info!("draining: no new clients, open transactions may end");
        tokio::select! {
            () = running.end(how, drain_delay, shutdown_timeout) => {}
            () = signals.next() => tracing::warn!("told to stop once more: ending now"),
        }
    };
    ending.await;
    running.finish().await;
    Ok(())
}

/// SIGTERM and SIGINT from now on, none missed.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Running {
    /// Where PostgreSQL clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/metrics` and `/healthz` answer.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Its figures.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.house.metrics
    }

    /// The databases that it serves.
    pub fn databases(&self) -> Vec<Arc<Database>> {
        self.house.databases.all()
    }

    /// Spreads the clients over so many threads now, whatever the load; the load decides again soon after.
    pub fn use_threads(&self, count: usize) {
        self.house.workers.use_exactly(count);
    }

    /// Lets open transactions end, for as long as `patience` says, then ends everything.
    pub async fn drain(self, patience: Duration) {
        self.send_clients_away(patience).await;
        self.finish().await;
    }

    /// Brings all clients to their end as a console asked for it, or as a signal: readiness fails first, and new clients are still
    /// taken for as long as `delay` says.
    async fn end(&self, how: Option<Shutdown>, delay: Duration, patience: Duration) {
        match how {
            None => {
                self.house.readiness.set_draining();
                tokio::time::sleep(delay).await;
                self.send_clients_away(patience).await;
            }
            Some(how) => self.shut_clients_out(how, patience).await,
        }
    }

    /// Sends idle clients away at once and the others at the end of their transactions, for as long as `patience` says.
    async fn send_clients_away(&self, patience: Duration) {
        self.house.readiness.set_draining();
        self.house.handover.withdraw();
        self.house.drain.begin();
        self.house.shared.clients.wake_all();
        self.house.sessions.close();
        if tokio::time::timeout(patience, self.house.sessions.wait()).await.is_err() {
            tracing::warn!(clients = self.house.sessions.len(), "shutdown timeout: ending clients in mid-transaction");
        }
    }

    /// Ends everything now.
    pub async fn stop(self) {
        self.drain(console::AT_ONCE).await;
    }

    async fn finish(&self) {
        // A second signal may have come before the first had any effect.
        self.house.drain.begin();
        self.house.stop.cancel();
        for database in self.house.databases.all() {
            database.close();
        }
        self.house.tasks.close();
        self.house.tasks.wait().await;
    }
}

impl House {
    /// Opens what the configuration names; what has not changed keeps its pools.
    fn open_databases(self: &Arc<Self>, config: &Arc<Config>) {
        self.databases.replace(config, |wanted| self.open_database(wanted, config));
        let checked = config.databases.values().map(|db| (db.name.as_str(), db.pool.health_check_interval));
        self.readiness.set_databases(checked);
    }

    /// Opens a database. All databases of one primary, and those that a reload replaces, share one cache and one catalog:
    /// sessions of each may write there, and must mark the same epochs.
    fn open_database(self: &Arc<Self>, wanted: &Arc<DatabaseConfig>, config: &Config) -> Arc<Database> {
        let home = self.home(wanted, config);
        let shared = Arc::clone(&self.shared);
        let mut database = Database::new(Arc::clone(wanted), shared, config, home.cache, home.solo);
        database.catalog = home.catalog;
        database.shard_caches = self.shard_caches(wanted, config);
        database.gate = self.gate(&wanted.name);
        let database = Arc::new(database);
        if wanted.split_scans.is_some() {
            database.catalog.measure_partitions();
        }
        if database.is_planned() {
            let (house, kept) = (Arc::clone(self), Arc::clone(&database));
            self.tasks.spawn(upkeep::keep_catalog(house, kept, upkeep::Kept::Primary));
        }
        if let Some(two_phase) = &database.two_phase {
            let (house, recovered) = (Arc::clone(self), Arc::clone(&database));
            self.tasks.spawn(transactions::recover(house, recovered, Arc::clone(two_phase)));
        }
        if database.shard_catalog.is_some() {
            let (house, kept) = (Arc::clone(self), Arc::clone(&database));
            self.tasks.spawn(upkeep::keep_catalog(house, kept, upkeep::Kept::Shards));
        }
        for shard in 0..database.shard_caches.len() {
            let (house, kept) = (Arc::clone(self), Arc::clone(&database));
            self.tasks.spawn(upkeep::keep_catalog(house, kept, upkeep::Kept::CacheOf(shard)));
        }
        if database.coordinator_catalog.is_some() {
            let (house, kept) = (Arc::clone(self), Arc::clone(&database));
            self.tasks.spawn(upkeep::keep_catalog(house, kept, upkeep::Kept::Coordinator));
        }
        database
    }

    /// The gate before that database: what is paused stays paused over a reload.
    fn gate(&self, database: &str) -> Arc<Gate> {
        let ids = Arc::clone(&self.shared.clients.ids);
        Arc::clone(self.gates.lock().entry(database.to_owned()).or_insert_with(|| Arc::new(Gate::new(ids))))
    }

    /// Accepts clients from now on, and lets a later process have the sockets.
    fn open_doors(self: &Arc<Self>, config: &Config, listener: Listener, unix: Option<Listener>) {
        if config.listen.handover.is_some() {
            self.handover.offer(tcp_name(config), listener.share());
            if let (Some(name), Some(unix)) = (unix_name(config), &unix) {
                self.handover.offer(name, unix.share());
            }
        }
        for listener in std::iter::once(listener).chain(unix) {
            self.tasks.spawn(accept::accept_loop(Arc::clone(self), listener));
        }
    }

    async fn listen_http(
        self: &Arc<Self>,
        config: &Config,
        predecessor: &mut Option<Predecessor>,
    ) -> Result<Option<SocketAddr>, Error> {
        let Some(address) = config.listen.http else { return Ok(None) };
        let name = format!("http {address}");
        let listener = match predecessor.as_mut().and_then(|it| it.take(&name)) {
            Some(socket) => TcpListener::from_std(socket.into())?,
            None => TcpListener::bind(address).await.map_err(|error| {
                let message = format!("cannot listen on {address} for HTTP");
                Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, message)
                    .hint("Choose another listen.http, or end what uses that port.")
                    .cause(error)
            })?,
        };
        let bound = listener.local_addr()?;
        if config.listen.handover.is_some() {
            self.handover.offer(name, listener.as_fd().try_clone_to_owned());
        }
        let (metrics, readiness, stop) = (Arc::clone(&self.metrics), self.readiness.clone(), self.http_stop.clone());
        self.tasks.spawn(http::serve(listener, metrics, readiness, self.view(), stop));
        Ok(Some(bound))
    }

    fn watch_configuration(self: &Arc<Self>, path: &std::path::Path, config: Arc<Config>) {
        let (watcher, mut changes) = Reload::new(path, config);
        let metrics = Arc::clone(&self.metrics);
        let stop = self.stop.clone();
        self.tasks.spawn(async move { watcher.run(stop, |applied| metrics.reload(applied)).await });
        let house = Arc::clone(self);
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = house.stop.cancelled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
                let config = Arc::clone(&changes.borrow_and_update());
                house.take_over(&config);
            }
        });
    }

    /// Applies a changed configuration as far as that can be done live.
    fn take_over(self: &Arc<Self>, config: &Arc<Config>) {
        let _alone = self.console.applying.lock();
        let scram = Arc::clone(&self.handshake.load().scram);
        match handshake_context(config, scram) {
            Ok(context) => self.handshake.store(Arc::new(context)),
            Err(error) => {
                tracing::error!(%error, "the new configuration's certificates cannot be used: nothing changed");
                self.metrics.reload(false);
                return;
            }
        }
        for setting in reload::needs_restart(&self.config.load(), config) {
            tracing::warn!(setting, "a change of this setting needs a restart");
        }
        self.door.apply(config);
        self.shared.ledger.set_bounds(bounds(config));
        if let Err(error) = telemetry::log::set_filter(&config.telemetry.log) {
            tracing::error!(error, "the log filter stays as it is");
        }
        self.config.store(Arc::clone(config));
        self.open_databases(config);
        tracing::info!("configuration applied");
    }
}

/// What the configuration says of server connections over several pools.
fn bounds(config: &Config) -> Bounds {
    let users = config.users.values();
    Bounds {
        total: config.limits.server_connections,
        reserve: config.limits.reserved_server_connections,
        users: users.clone().filter_map(|user| Some((user.name.clone(), user.max_server_connections?))).collect(),
        privileged: users.map(|user| user.name.clone()).filter(|name| config.may_use_reserve(name)).collect(),
    }
}

fn handshake_context(config: &Arc<Config>, scram: Arc<ScramStore>) -> Result<HandshakeContext, Error> {
    let tls = ServerTls::load(&config.listen.tls)?.map(Arc::new);
    Ok(HandshakeContext { config: Arc::clone(config), tls, scram })
}
