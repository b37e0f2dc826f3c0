//! What the sessions of one database share: its pools, its statements, its catalog and its cache.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::backend::connect::Login;
use crate::backend::pool::Pool;
use crate::backend::statements::Registry;
use crate::config::model::{Database as DatabaseConfig, PoolMode, ServerAddress, User};
use crate::error::Error;
use crate::net::tls::ClientTls;
use crate::session::cancel::CancelKeys;
use crate::sql::Analyzer;
use crate::telemetry::metrics::PoolLabels;
use crate::telemetry::metrics::{DatabaseMetrics, Metrics};

/// A server of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// The one that takes writes.
    Primary,
    /// A replica, by index.
    Replica(usize),
    /// A shard, by index.
    Shard(usize),
}

/// What every session of this pgherd shares.
pub struct Shared {
    /// Reads statements.
    pub analyzer: Analyzer,
    /// Everybody's cancel keys.
    pub cancel_keys: Arc<CancelKeys>,
    /// Certificates towards servers.
    pub tls: ClientTls,
    /// Counts what happens.
    pub metrics: Arc<Metrics>,
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
    pools: Mutex<HashMap<(String, Target), Arc<Pool>>>,
    accepted: Mutex<Accepted>,
}

impl Database {
    /// A database with no connection yet.
    pub fn new(config: Arc<DatabaseConfig>, shared: Arc<Shared>) -> Self {
        Self {
            metrics: shared.metrics.database(&config.name),
            config,
            shared,
            statements: Registry::default(),
            pools: Mutex::default(),
            accepted: Mutex::default(),
        }
    }

    /// Whether a plan can be anything but "the primary": only then are flights held back until they are understood.
    pub fn is_planned(&self) -> bool {
        self.config.cache || !self.config.tables.is_empty() || !self.config.replicas.is_empty()
    }

    /// The server behind a target.
    pub fn address(&self, target: Target) -> &ServerAddress {
        match target {
            Target::Primary => &self.config.primary,
            Target::Replica(index) => &self.config.replicas[index],
            Target::Shard(index) => &self.config.shards[index],
        }
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
        let login = Login {
            user: address.user.clone().unwrap_or_else(|| user.name.clone()),
            password: address.password.clone().or_else(|| user.password.clone()),
            scram_keys: None,
            database: address.dbname.clone().unwrap_or_else(|| self.config.name.clone()),
            connect_timeout: address.connect_timeout.unwrap_or(config.connect_timeout),
            tls: self.shared.tls.clone(),
        };
        let labels = PoolLabels {
            database: self.config.name.as_str().into(),
            user: user.name.as_str().into(),
            server: address.to_string().as_str().into(),
        };
        let pool = Arc::new(Pool::new(address, login, &config, self.shared.metrics.pool(labels)));
        pools.insert((user.name.clone(), target), Arc::clone(&pool));
        pool
    }

    /// Every pool there is, with its user and server.
    pub fn pools(&self) -> Vec<((String, Target), Arc<Pool>)> {
        self.pools.lock().iter().map(|(key, pool)| (key.clone(), Arc::clone(pool))).collect()
    }

    /// The database is gone from the configuration: its pools take no new clients and close what comes back.
    pub fn close(&self) {
        for (_, pool) in self.pools.lock().drain() {
            pool.close();
        }
    }

    /// When that user's clients give their connections back.
    pub fn pool_mode(&self, user: &User) -> PoolMode {
        user.pool_mode.unwrap_or(self.config.pool.mode)
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

/// The error for a database that has no server of the kind a plan asked for.
pub fn no_such_server(target: Target) -> Error {
    Error::internal(format!("the plan names a server that is not configured: {target:?}"))
}
