//! Every key that the TOML may hold, with its type, default and whether a reload applies it: the one list that reading,
//! suggestions, defaults and `docs/configuration.md` agree on.

/// What kind of value a key takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A string.
    Text,
    /// A string that is never shown.
    Secret,
    /// A path, relative to the TOML's folder.
    Path,
    /// `"30s"`
    Duration,
    /// `"30s"`, or `"off"` for no limit.
    DurationOrOff,
    /// `"64MiB"` or bytes.
    Size,
    /// A whole number.
    Count,
    /// `true` or `false`.
    Flag,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// An array of strings.
    Texts,
    /// An array of strings that may hold passwords.
    Secrets,
    /// An array of strings and numbers.
    Values,
    /// A string, or an array of strings.
    TextOrTexts,
    /// A string or a number, or an array of them.
    ValueOrValues,
    /// A table with keys of its own.
    Table(&'static Section),
    /// An array of tables.
    Tables(&'static Section),
    /// A table whose keys the user chooses; values are durations, `"off"` or `"pin"`.
    DurationByName,
}

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// At the next reload of the file.
    Live,
    /// Only after a restart; a reload says so.
    Restart,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is when nothing is said, as it would be typed; `None` where there is no default.
    pub default: Option<&'static str>,
    /// When a change takes effect.
    pub applies: Applies,
}

/// One table of keys.
#[derive(Debug)]
pub struct Section {
    /// Its path as documentation writes it, without indexes: `database.table`.
    pub path: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
    /// Keys of the design that this version does not have, with what to use instead.
    pub unsupported: &'static [(&'static str, &'static str)],
}

impl Section {
    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const fn key(name: &'static str, kind: Kind, default: Option<&'static str>) -> Key {
    Key { name, kind, default, applies: Applies::Live }
}

const fn fixed(name: &'static str, kind: Kind, default: Option<&'static str>) -> Key {
    Key { name, kind, default, applies: Applies::Restart }
}

use Kind::{Choice, Count, Duration, DurationByName, DurationOrOff, Flag, Path, Secret, Secrets, Size, Table, Tables};
use Kind::{Text, TextOrTexts, Texts, ValueOrValues, Values};

/// The top of the file.
pub static ROOT: Section = Section {
    path: "",
    keys: &[
        fixed("threads", Count, None),
        fixed("listen", Table(&LISTEN), None),
        key("pool", Table(&POOL), None),
        key("database", Tables(&DATABASE), None),
        key("user", Tables(&USER), None),
        fixed("cache", Table(&CACHE), None),
        fixed("fanout", Table(&FANOUT), None),
        key("admin", Table(&ADMIN), None),
        key("limits", Table(&LIMITS), None),
        key("security", Table(&SECURITY), None),
        key("telemetry", Table(&TELEMETRY), None),
    ],
    unsupported: &[],
};

static LISTEN: Section = Section {
    path: "listen",
    keys: &[
        fixed("address", Text, Some("127.0.0.1:6432")),
        fixed("unix_socket_dir", Path, None),
        fixed("http", Text, None),
        key("tls", Table(&LISTEN_TLS), None),
        key("max_clients", Count, Some("10000")),
        key("login_timeout", Duration, Some("60s")),
        fixed("shutdown_timeout", Duration, Some("30s")),
        fixed("drain_delay", DurationOrOff, Some("off")),
        fixed("handover", Path, None),
    ],
    unsupported: &[],
};

static LISTEN_TLS: Section = Section {
    path: "listen.tls",
    keys: &[
        key("mode", Choice(&["off", "prefer", "require", "verify-client"]), Some("off")),
        key("cert", Path, None),
        key("key", Path, None),
        key("client_ca", Path, None),
    ],
    unsupported: &[],
};

static POOL: Section = Section { path: "pool", keys: POOL_KEYS, unsupported: &[] };

static DATABASE_POOL: Section = Section { path: "database.pool", keys: POOL_KEYS, unsupported: &[] };

/// Words of a pool's mode. `statement` is not among them: see `validate::pool`.
pub const POOL_MODES: &[&str] = &["transaction", "session"];

/// How LISTEN works in transaction mode.
pub const LISTEN_MODES: &[&str] = &["shared", "pin"];

/// What listening clients get when their listener was lost.
pub const LISTENER_LOSS: &[&str] = &["close", "notice"];

const POOL_KEYS: &[Key] = &[
    key("mode", Choice(POOL_MODES), Some("transaction")),
    key("max_connections", Count, Some("100")),
    key("min_connections", Count, Some("10")),
    key("max_database_connections", Count, None),
    key("acquire_timeout", Duration, Some("30s")),
    key("idle_timeout", DurationOrOff, Some("600s")),
    key("max_lifetime", DurationOrOff, Some("1800s")),
    key("connect_timeout", Duration, Some("10s")),
    key("health_check_interval", Duration, Some("60s")),
    key("query_timeout", DurationOrOff, Some("off")),
    key("idle_transaction_timeout", DurationOrOff, Some("off")),
    key("client_idle_timeout", DurationOrOff, Some("off")),
    key("prepared_statements", Count, Some("500")),
    key("pinned_max", DurationOrOff, Some("off")),
    key("listen", Choice(LISTEN_MODES), Some("shared")),
    key("on_listener_loss", Choice(LISTENER_LOSS), Some("close")),
    key("notification_queue", Size, Some("1MiB")),
];

static DATABASE: Section = Section {
    path: "database",
    keys: &[
        key("name", Text, None),
        key("primary", Secret, None),
        key("replicas", Secrets, None),
        key("reads", Choice(&["primary", "replica"]), Some("primary")),
        key("shards", Secrets, None),
        key("coordinator", Secret, None),
        key("table", Tables(&TABLE), None),
        key("shard_by", Choice(&["table", "schema"]), Some("table")),
        key("schemas", Texts, None),
        key("schema", Tables(&SCHEMA), None),
        key("pool", Table(&DATABASE_POOL), None),
        key("max_clients", Count, None),
        key("cache", Flag, Some("true")),
        key("replication", Flag, Some("false")),
        key("olap_timeout", Duration, Some("30s")),
        key("parallel_partitions", Count, None),
        key("parallel_partitions_from", Size, Some("64MiB")),
        key("two_phase", Table(&TWO_PHASE), None),
    ],
    unsupported: &[],
};

/// Words of `database.two_phase.latch`.
pub const LATCHES: &[&str] = &["fleet", "local", "off"];

static TWO_PHASE: Section = Section {
    path: "database.two_phase",
    keys: &[
        key("user", Text, None),
        key("password", Secret, None),
        key("latch", Choice(LATCHES), Some("fleet")),
        key("lock_timeout", Duration, Some("10s")),
    ],
    unsupported: &[],
};

static TABLE: Section = Section {
    path: "database.table",
    keys: &[
        key("name", Text, None),
        key("reference", Flag, Some("false")),
        key("shard_key", TextOrTexts, None),
        key("method", Choice(&["hash", "range", "list"]), None),
        key("ranges", Tables(&RANGE), None),
        key("lists", Tables(&LIST), None),
        key("default_shard", Count, None),
        key("group", Text, None),
    ],
    unsupported: &[],
};

static SCHEMA: Section =
    Section { path: "database.schema", keys: &[key("name", Text, None), key("shard", Count, None)], unsupported: &[] };

static RANGE: Section = Section {
    path: "database.table.ranges",
    keys: &[key("from", ValueOrValues, None), key("to", ValueOrValues, None), key("shard", Count, None)],
    unsupported: &[],
};

static LIST: Section = Section {
    path: "database.table.lists",
    keys: &[key("values", Values, None), key("null", Flag, Some("false")), key("shard", Count, None)],
    unsupported: &[],
};

static USER: Section = Section {
    path: "user",
    keys: &[
        key("name", Text, None),
        key("auth", Choice(&["scram", "md5", "cleartext", "cert", "trust"]), Some("scram")),
        key("password", Secret, None),
        key("password_file", Path, None),
        key("scram_secret", Secret, None),
        key("databases", Texts, None),
        key("pool_mode", Choice(POOL_MODES), None),
        fixed("max_connections", Count, None),
        key("max_clients", Count, None),
        key("max_server_connections", Count, None),
        key("may_use_reserve", Flag, Some("false")),
        key("replication", Flag, Some("false")),
    ],
    unsupported: &[
        ("auth_query", "name each user in a [[user]] with password_file, password or scram_secret"),
        ("passthrough", "give the password of each user in a [[user]], or user and password in the connection string"),
    ],
};

static CACHE: Section = Section {
    path: "cache",
    keys: &[
        fixed("enabled", Flag, Some("false")),
        fixed("ttl", Duration, Some("5m")),
        fixed("memory", Size, Some("256MiB")),
        fixed("max_entry", Size, Some("4MiB")),
        fixed("consistency", Choice(&["strict", "bounded"]), Some("strict")),
        fixed("olap_only", Flag, Some("true")),
        fixed("min_cost", DurationOrOff, Some("off")),
        fixed("in_transactions", Choice(&["until-write", "never"]), Some("until-write")),
        fixed("audit_one_in", Count, Some("0")),
        fixed("stale_on_error", Flag, Some("false")),
        fixed("share_roles", Flag, Some("false")),
        fixed("shards", Flag, Some("false")),
        fixed("on_redis_loss", Choice(&["wait", "refuse-write"]), Some("wait")),
        fixed("redis", Table(&REDIS), None),
        fixed("wal", Table(&WAL), None),
        fixed("tables", DurationByName, None),
        fixed("statements", DurationByName, None),
    ],
    unsupported: &[],
};

static REDIS: Section = Section {
    path: "cache.redis",
    keys: &[
        fixed("url", Secret, None),
        fixed("ttl", Duration, Some("1h")),
        fixed("timeout", Duration, Some("5ms")),
        fixed("prefix", Text, Some("pgherd:")),
        fixed("lease", Duration, Some("10s")),
        fixed("replicas", Count, Some("0")),
        fixed("max_entry", Size, Some("4MiB")),
        fixed("compress_above", Size, Some("64KiB")),
        fixed("ca", Path, None),
    ],
    unsupported: &[],
};

static WAL: Section = Section {
    path: "cache.wal",
    keys: &[fixed("publication", Text, Some("pgherd")), fixed("max_lag", Duration, Some("1s"))],
    unsupported: &[],
};

static FANOUT: Section = Section {
    path: "fanout",
    keys: &[
        fixed("max_parallel", Count, Some("4")),
        fixed("memory", Size, Some("64MiB")),
        fixed("pure_functions", Texts, None),
        fixed("query_timeout", Duration, Some("30s")),
        fixed("max_shipped_rows", Count, Some("10000000")),
        fixed("max_shipped_bytes", Size, Some("1GiB")),
        fixed("key_list_max", Count, Some("20000")),
        fixed("key_moves", Choice(&["refuse", "move"]), Some("refuse")),
    ],
    unsupported: &[(
        "coordinator",
        "name it in the [[database]]: types and functions there must be the database's own",
    )],
};

static ADMIN: Section = Section {
    path: "admin",
    keys: &[key("users", Texts, None), key("stats_users", Texts, None), key("http_token", Secret, None)],
    unsupported: &[],
};

static LIMITS: Section = Section {
    path: "limits",
    keys: &[
        key("server_connections", Count, None),
        key("reserved_server_connections", Count, Some("0")),
        key("reserved_clients", Count, Some("3")),
    ],
    unsupported: &[],
};

static SECURITY: Section = Section {
    path: "security",
    keys: &[key("max_connections_per_ip", Count, None), key("rate_limit_per_minute", Count, None)],
    unsupported: &[(
        "audit_log",
        "remove it; PostgreSQL's own log_statement or the pgaudit extension record statements",
    )],
};

static TELEMETRY: Section = Section {
    path: "telemetry",
    keys: &[
        key("log", Text, Some("info")),
        fixed("format", Choice(&["text", "json"]), Some("text")),
        key("slow_statement", DurationOrOff, Some("off")),
    ],
    unsupported: &[("otlp", "remove it; logs go to standard error and metrics to [listen] http")],
};

/// Every section, each once, with the shared ones under each of their paths.
pub fn sections() -> Vec<&'static Section> {
    fn walk(section: &'static Section, out: &mut Vec<&'static Section>) {
        out.push(section);
        for key in section.keys {
            if let Table(inner) | Tables(inner) = key.kind {
                walk(inner, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(&ROOT, &mut out);
    out
}
