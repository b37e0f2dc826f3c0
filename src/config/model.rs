//! What the TOML meant: typed, defaulted and checked. Everything else in pgherd reads settings from here.

mod sharding;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::sharding::{Distribution, ListPart, RangePart, SchemaPattern, Schemas, Table};

/// The whole configuration, as one value that a reload replaces.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// `[pool]`: what the databases' own pool settings begin from.
    pub pool: Pool,
    /// Databases by the name that clients use.
    pub databases: BTreeMap<String, Arc<Database>>,
    /// Users by name.
    pub users: BTreeMap<String, Arc<User>>,
    /// The result cache.
    pub cache: Cache,
    /// Fan-out over shards.
    pub fanout: Fanout,
    /// Who may use the console.
    pub admin: Admin,
    /// Bounds on all of pgherd.
    pub limits: Limits,
    /// Limits on clients.
    pub security: Security,
    /// Logs and metrics.
    pub telemetry: Telemetry,
    /// Runtime threads; `None` is one per core.
    pub threads: Option<usize>,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// Where PostgreSQL clients connect.
    pub address: SocketAddr,
    /// A directory for a Unix socket `.s.PGSQL.<port>`, if one is wanted.
    pub unix_socket_dir: Option<PathBuf>,
    /// Where `/metrics` and `/healthz` answer.
    pub http: Option<SocketAddr>,
    /// TLS towards clients.
    pub tls: ListenTls,
    /// Clients at most, all databases together.
    pub max_clients: usize,
    /// How long a client may take from connecting to being authenticated.
    pub login_timeout: Duration,
    /// How long a drain waits for open transactions.
    pub shutdown_timeout: Duration,
    /// How long new clients are still taken after SIGTERM, while `/healthz/ready` says that they should not be sent here.
    pub drain_delay: Option<Duration>,
    /// A Unix socket over which another process may take over.
    pub handover: Option<PathBuf>,
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    /// Whether TLS is offered, demanded, or demanded with a client certificate.
    pub mode: ListenTlsMode,
    /// The server's certificate chain (PEM).
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
    /// The authorities that client certificates are checked against (PEM), for `verify-client` and `auth = "cert"`.
    pub client_ca: Option<PathBuf>,
}

/// Whether TLS is offered or demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenTlsMode {
    /// SSLRequest is declined.
    Off,
    /// TLS is there for whom asks.
    Prefer,
    /// A client without TLS is turned away.
    Require,
    /// A client without TLS and a valid certificate is turned away.
    VerifyClient,
}

/// When a client gives its server connection back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// At the end of each transaction.
    Transaction,
    /// When the client leaves.
    Session,
}

/// Bounds and times of one pool: `[pool]`, overridden by a `[[database]]` or a `[[user]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// When a server connection is given back.
    pub mode: PoolMode,
    /// Server connections at most, per (database, user, server).
    pub max_connections: u32,
    /// Server connections kept open at least.
    pub min_connections: u32,
    /// Server connections of one database to one server at most, all users together.
    pub max_database_connections: Option<u32>,
    /// How long a client waits for a server connection.
    pub acquire_timeout: Duration,
    /// How long a connection above the minimum may lie idle.
    pub idle_timeout: Option<Duration>,
    /// How old a server connection may grow.
    pub max_lifetime: Option<Duration>,
    /// How long connecting to a server and logging in may take.
    pub connect_timeout: Duration,
    /// How often idle connections are tried.
    pub health_check_interval: Duration,
    /// How long a statement may run; `None` is for ever.
    pub query_timeout: Option<Duration>,
    /// How long a transaction may lie idle; `None` is for ever.
    pub idle_transaction_timeout: Option<Duration>,
    /// How long a client may lie idle outside a transaction; `None` is for ever.
    pub client_idle_timeout: Option<Duration>,
    /// Prepared statements kept on one server connection.
    pub prepared_statements: usize,
    /// How long a client of transaction mode may keep its server connection beyond its transactions; `None` is for ever.
    pub pinned_max: Option<Duration>,
    /// How LISTEN works in transaction mode.
    pub listen: ListenMode,
    /// What listening clients get when the listener's connection was lost.
    pub on_listener_loss: OnListenerLoss,
    /// Bytes of notifications that wait for one client.
    pub notification_queue: usize,
}

/// How LISTEN works in transaction mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenMode {
    /// One server connection of pgherd's own listens for all clients of a database.
    Shared,
    /// Each client that listens keeps a server connection.
    Pin,
}

/// What clients that listen get when notifications may have been lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnListenerLoss {
    /// Their connections are closed, as a server's end would close them.
    Close,
    /// A notice; they listen on.
    Notice,
}

/// Where reads go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// To the primary.
    Primary,
    /// To a replica that has replayed this session's last write.
    Replica,
}

/// One `[[database]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// The name clients connect to.
    pub name: String,
    /// The server that takes writes.
    pub primary: ServerAddress,
    /// Its streaming replicas.
    pub replicas: Vec<ServerAddress>,
    /// Where reads go.
    pub reads: Reads,
    /// The shards, in the order that hash remainders and `on` numbers refer to.
    pub shards: Vec<ServerAddress>,
    /// Where PostgreSQL merges what pgherd does not; `None` is the primary.
    pub coordinator: Option<ServerAddress>,
    /// Sharded and reference tables.
    pub tables: Vec<Table>,
    /// Schemas that each lie whole on one shard; `None` where tables are spread one by one.
    pub schemas: Option<Schemas>,
    /// The pool's settings, defaults filled in.
    pub pool: Pool,
    /// Clients of this database at most.
    pub max_clients: Option<usize>,
    /// Whether results of this database may be cached.
    pub cache: bool,
    /// Whether replication connections to its primary are allowed.
    pub replication: bool,
    /// Plan and time out a statement of this database as OLAP after this long.
    pub olap_timeout: Duration,
    /// Scans of partitioned tables that are split over several connections of the primary; `None` splits none.
    pub split_scans: Option<SplitScans>,
    /// How transactions over several shards are committed; `None` refuses them.
    pub two_phase: Option<TwoPhase>,
}

impl Database {
    /// Whether statements of it may go to shards.
    pub fn is_distributed(&self) -> bool {
        !self.tables.is_empty() || self.schemas.is_some()
    }

    /// Whether the primary's database and those of all shards have one name.
    pub fn has_one_name(&self) -> bool {
        let name_of = |server: &ServerAddress| server.dbname.as_deref().unwrap_or(&self.name).to_owned();
        let name = name_of(&self.primary);
        self.shards.iter().all(|shard| name_of(shard) == name)
    }
}

/// `database.parallel_partitions` and what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitScans {
    /// Connections that one scan uses at most, two or more.
    pub legs: usize,
    /// Bytes that the table's partitions must have together.
    pub from_bytes: u64,
}

/// `[database.two_phase]`
#[derive(Debug, Clone, PartialEq)]
pub struct TwoPhase {
    /// The role that writes decisions and finishes what a crash left behind; no client may use it.
    pub user: String,
    /// Its password, where the servers ask for one.
    pub password: Option<Secret>,
    /// What keeps a read over several shards from falling into a commit over several shards.
    pub latch: LatchScope,
    /// How long a statement of a transaction over several shards waits for a lock.
    pub lock_timeout: Duration,
}

/// How far the latch between reads and commits over several shards reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatchScope {
    /// All pgherds, by an advisory lock on the primary.
    Fleet,
    /// This pgherd alone.
    Local,
    /// There is none: a read may see a part of a commit.
    Off,
}

/// A server, from a libpq connection string or URI (PostgreSQL manual, 34.1.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// A host name, an IP address, or the directory of a Unix socket (leading `/`).
    pub host: String,
    /// The port, which also names the Unix socket.
    pub port: u16,
    /// The database on that server; `None` is the name the client used.
    pub dbname: Option<String>,
    /// The role to log in as; `None` is the client's own user name.
    pub user: Option<String>,
    /// The password for `user`, if it is not the `[[user]]`'s own.
    pub password: Option<Secret>,
    /// How TLS is used.
    pub sslmode: SslMode,
    /// Authorities for `verify-ca` and `verify-full` (PEM); `None` is the system's.
    pub sslrootcert: Option<PathBuf>,
    /// The client certificate (PEM).
    pub sslcert: Option<PathBuf>,
    /// Its key (PEM).
    pub sslkey: Option<PathBuf>,
    /// Direct TLS without SSLRequest (PostgreSQL 17 and later).
    pub sslnegotiation_direct: bool,
    /// Whether channel binding is demanded of the server.
    pub channel_binding: ChannelBinding,
    /// `application_name` at login.
    pub application_name: Option<String>,
    /// How long connecting may take, if the string says so.
    pub connect_timeout: Option<Duration>,
}

/// libpq's `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelBinding {
    /// Never used.
    Disable,
    /// Used where the server offers it.
    Prefer,
    /// Login fails without it.
    Require,
}

/// libpq's `sslmode` (PostgreSQL manual, 34.19).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// No TLS unless the server insists.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// TLS, without looking at the certificate.
    Require,
    /// TLS, and the certificate's chain must hold.
    VerifyCa,
    /// TLS, and chain and host name must hold.
    VerifyFull,
}

/// One `[[user]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// The name clients log in with.
    pub name: String,
    /// How they prove it.
    pub auth: AuthMethod,
    /// What the proof is checked against, and what servers are logged in with.
    pub password: Option<Secret>,
    /// A stored `SCRAM-SHA-256$...` verifier, instead of a password.
    pub scram_secret: Option<String>,
    /// Databases this user may connect to; empty is all.
    pub databases: Vec<String>,
    /// Whether this user may open replication connections.
    pub replication: bool,
    /// Pool mode for this user, if not the database's.
    pub pool_mode: Option<PoolMode>,
    /// Server connections at most for this user, if not the database's.
    pub max_connections: Option<u32>,
    /// Clients at most that are logged in as this user.
    pub max_clients: Option<usize>,
    /// Server connections of this user at most, all databases and servers together.
    pub max_server_connections: Option<u32>,
    /// Gets in when the house is full; administrators of the console do anyway.
    pub may_use_reserve: bool,
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// SCRAM-SHA-256, and -PLUS over TLS (RFC 5802, RFC 7677).
    Scram,
    /// PostgreSQL's md5.
    Md5,
    /// The password itself; only over TLS.
    Cleartext,
    /// A client certificate whose common name is the user.
    Cert,
    /// No proof; only where the TOML says so, and only from loopback or a Unix socket.
    Trust,
}

/// `[cache]`
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// Whether results are cached at all.
    pub enabled: bool,
    /// How old an answer from memory may grow.
    pub ttl: Duration,
    /// Bytes of results in memory.
    pub memory_bytes: u64,
    /// Bytes of one result at most.
    pub max_entry_bytes: usize,
    /// What an answer promises.
    pub consistency: Consistency,
    /// The shared tier.
    pub redis: Option<Redis>,
    /// Writes made past every pgherd are followed.
    pub wal: Option<Wal>,
    /// Rules by `schema.table`.
    pub tables: BTreeMap<String, CacheRule>,
    /// Rules by fingerprint.
    pub statements: BTreeMap<u128, CacheRule>,
    /// Whether only analytical shapes are cached (`true`) or every cacheable read.
    pub olap_only: bool,
    /// What an answer must have cost PostgreSQL to be kept.
    pub min_cost: Duration,
    /// Whether a transaction is served before its first write.
    pub in_transactions: bool,
    /// One of so many hits is run again and compared; 0 is none.
    pub audit_one_in: u64,
    /// Whether an answer that is too old is served while PostgreSQL cannot be reached.
    pub stale_on_error: bool,
    /// Whether roles that may read the same are given the same answer.
    pub share_roles: bool,
    /// Whether each shard's part of an answer is cached, by shard.
    pub shards: bool,
}

/// How answers are kept that read a table, or that a statement gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheRule {
    /// Not at all.
    Never,
    /// For that long at most.
    Ttl(Duration),
    /// Whatever else there is no room for, and however little they cost.
    Pin,
}

/// What a cached answer promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// What the query would have returned after the last commit acknowledged through any pgherd of this Redis.
    Strict,
    /// At most the TTL old.
    Bounded,
}

/// What happens to a write while Redis cannot be told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRedisLoss {
    /// It waits until no other pgherd can serve a strict hit, then goes on.
    Wait,
    /// It is refused.
    RefuseWrite,
}

/// `[cache] redis = {...}`
#[derive(Debug, Clone, PartialEq)]
pub struct Redis {
    /// `redis://` or `rediss://`, with user, password and database number.
    pub url: Secret,
    /// How long an entry stays in Redis.
    pub ttl: Duration,
    /// How long an answer may take before it counts as a miss.
    pub timeout: Duration,
    /// Prefix of all keys.
    pub prefix: String,
    /// How long a registration holds without being renewed.
    pub lease: Duration,
    /// What a write does while Redis is gone.
    pub on_loss: OnRedisLoss,
    /// Replicas that must have what keeps answers fresh before it counts; all that can be promoted.
    pub replicas: u32,
    /// Larger answers stay in memory.
    pub max_entry_bytes: usize,
    /// Larger answers are compressed.
    pub compress_above_bytes: usize,
    /// PEM of the authorities that sign the server's certificate; the system's where there is none.
    pub ca: Option<PathBuf>,
}

/// `[cache] wal = {...}`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wal {
    /// The publication on the primary that tells of changes.
    pub publication: String,
    /// How long after its commit such a write may still be unknown.
    pub max_lag: Duration,
}

/// `[fanout]`
#[derive(Debug, Clone, PartialEq)]
pub struct Fanout {
    /// Legs of one statement that run at once.
    pub max_parallel: usize,
    /// Bytes buffered by one statement at most.
    pub memory_bytes: usize,
    /// Functions outside pg_catalog that a distributed statement may call, as `schema.name(type, ...)`.
    pub pure_functions: Vec<String>,
    /// How long a distributed statement may run.
    pub query_timeout: Duration,
    /// Rows that one statement may ship to the coordinator.
    pub max_shipped_rows: u64,
    /// Bytes that one statement may ship to the coordinator.
    pub max_shipped_bytes: u64,
    /// Keys of one table at most that rows of another are left out by; 0 leaves none out.
    pub key_list_max: u64,
    /// What becomes of an UPDATE of the shard key.
    pub key_moves: KeyMoves,
}

/// What becomes of an UPDATE that changes the shard key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyMoves {
    /// It is refused.
    Refuse,
    /// Its rows move to the shards that they belong to from then on.
    Move,
}

/// `[admin]`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Admin {
    /// Users who may do everything in the console.
    pub users: Vec<String>,
    /// Users who may look.
    pub stats_users: Vec<String>,
    /// What an HTTP request must bear that changes something; without it none may.
    pub http_token: Option<Secret>,
}

/// The names that the console answers to.
pub const CONSOLE_DATABASES: [&str; 2] = ["pgherd", "pgbouncer"];

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Server connections at most, of all databases and users together.
    pub server_connections: Option<u32>,
    /// So many more, and so many more of each database, for those who may use the reserve.
    pub reserved_server_connections: u32,
    /// Clients beyond `listen.max_clients`, for those who may use the reserve.
    pub reserved_clients: usize,
}

/// `[security]`
#[derive(Debug, Clone, PartialEq)]
pub struct Security {
    /// Clients at most from one address.
    pub max_connections_per_ip: Option<usize>,
    /// New connections per minute from one address.
    pub rate_limit_per_minute: Option<u32>,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// A filter as in `RUST_LOG`.
    pub log: String,
    /// How log lines look.
    pub format: LogFormat,
    /// Statements slower than this are logged.
    pub slow_statement: Option<Duration>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A text that never shows in logs, errors or `Debug`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Config {
    /// Whether that user gets in when the house is full.
    pub fn may_use_reserve(&self, user: &str) -> bool {
        self.users.get(user).is_some_and(|known| known.may_use_reserve) || self.admin.users.iter().any(|it| it == user)
    }
}

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for sending, never for showing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("\"***\"")
    }
}
