//! SHOW CONFIG: the settings in force by their keys in proxy.toml, and those that tools look for under PgBouncer's names.

use std::time::Duration;

use super::value::{Column, Row, Type, Value};
use crate::config::keys::{self, Applies};
use crate::config::model::{Config, Consistency, ListenTlsMode, LogFormat, OnRedisLoss, Pool, PoolMode, Redis};

pub(super) const COLUMNS: [Column; 4] =
    [("key", Type::Text), ("value", Type::Text), ("default", Type::Text), ("changeable", Type::Text)];

/// Settings of single databases and users are in SHOW DATABASES and SHOW USERS; secrets are nowhere.
pub(super) fn rows(config: &Config) -> Vec<Row> {
    let mut rows: Vec<Row> = own(config)
        .into_iter()
        .map(|(path, value)| {
            let key = key_of(path);
            let changeable = key.is_some_and(|key| key.applies == Applies::Live);
            row(path, value, key.and_then(|key| key.default).unwrap_or_default(), changeable)
        })
        .collect();
    let address = config.listen.address;
    let pgbouncers = [
        ("admin_users", config.admin.users.join(", "), true),
        ("listen_addr", address.ip().to_string(), false),
        ("listen_port", address.port().to_string(), false),
        ("max_client_conn", config.listen.max_clients.to_string(), true),
        ("client_login_timeout", config.listen.login_timeout.as_secs().to_string(), true),
        ("max_db_connections", config.pool.max_database_connections.unwrap_or(0).to_string(), true),
        ("max_user_connections", "0".into(), false),
        ("stats_users", config.admin.stats_users.join(", "), true),
    ];
    rows.extend(pgbouncers.into_iter().map(|(name, value, changeable)| row(name, value, "", changeable)));
    rows.sort_by_key(|row| format!("{:?}", row[0]));
    rows
}

fn row(key: &str, value: String, default: &str, changeable: bool) -> Row {
    vec![key.into(), Value::Text(value), default.into(), if changeable { "yes" } else { "no" }.into()]
}

fn key_of(path: &str) -> Option<&'static keys::Key> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    keys::sections().into_iter().find(|known| known.path == section)?.key(name)
}

fn own(config: &Config) -> Vec<(&'static str, String)> {
    let Config { listen, cache, fanout, limits, security, telemetry, .. } = config;
    let tls = match listen.tls.mode {
        ListenTlsMode::Off => "off",
        ListenTlsMode::Prefer => "prefer",
        ListenTlsMode::Require => "require",
        ListenTlsMode::VerifyClient => "verify-client",
    };
    let consistency = match cache.consistency {
        Consistency::Strict => "strict",
        Consistency::Bounded => "bounded",
    };
    let format = match telemetry.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let optional = |count: Option<String>| count.unwrap_or_default();
    let mut settings = vec![
        ("threads", optional(config.threads.map(|count| count.to_string()))),
        ("listen.address", listen.address.to_string()),
        ("listen.http", optional(listen.http.map(|address| address.to_string()))),
        ("listen.unix_socket_dir", optional(listen.unix_socket_dir.as_ref().map(|path| path.display().to_string()))),
        ("listen.max_clients", listen.max_clients.to_string()),
        ("listen.login_timeout", time(listen.login_timeout)),
        ("listen.shutdown_timeout", time(listen.shutdown_timeout)),
        ("listen.drain_delay", off_or(listen.drain_delay)),
        ("listen.handover", optional(listen.handover.as_ref().map(|path| path.display().to_string()))),
        ("listen.tls.mode", tls.into()),
        ("admin.users", config.admin.users.join(", ")),
        ("admin.stats_users", config.admin.stats_users.join(", ")),
        ("cache.enabled", cache.enabled.to_string()),
        ("cache.ttl", time(cache.ttl)),
        ("cache.memory", cache.memory_bytes.to_string()),
        ("cache.max_entry", cache.max_entry_bytes.to_string()),
        ("cache.consistency", consistency.into()),
        ("cache.olap_only", cache.olap_only.to_string()),
        ("cache.min_cost", off_or((!cache.min_cost.is_zero()).then_some(cache.min_cost))),
        ("cache.in_transactions", if cache.in_transactions { "until-write" } else { "never" }.into()),
        ("cache.audit_one_in", cache.audit_one_in.to_string()),
        ("cache.stale_on_error", cache.stale_on_error.to_string()),
        ("cache.share_roles", cache.share_roles.to_string()),
        ("cache.shards", cache.shards.to_string()),
        ("limits.server_connections", optional(limits.server_connections.map(|count| count.to_string()))),
        ("limits.reserved_server_connections", limits.reserved_server_connections.to_string()),
        ("limits.reserved_clients", limits.reserved_clients.to_string()),
        ("fanout.max_parallel", fanout.max_parallel.to_string()),
        ("fanout.memory", fanout.memory_bytes.to_string()),
        ("fanout.query_timeout", time(fanout.query_timeout)),
        ("security.max_connections_per_ip", optional(security.max_connections_per_ip.map(|count| count.to_string()))),
        ("security.rate_limit_per_minute", optional(security.rate_limit_per_minute.map(|count| count.to_string()))),
        ("telemetry.log", telemetry.log.clone()),
        ("telemetry.format", format.into()),
        ("telemetry.slow_statement", off_or(telemetry.slow_statement)),
    ];
    settings.extend(of_pool(&config.pool));
    settings.extend(cache.redis.as_ref().map(of_redis).unwrap_or_default());
    settings.extend(cache.wal.iter().flat_map(|wal| {
        [("cache.wal.publication", wal.publication.clone()), ("cache.wal.max_lag", time(wal.max_lag))]
    }));
    settings
}

/// `[pool]`: what databases begin from. What holds for one is in SHOW DATABASES.
fn of_pool(pool: &Pool) -> Vec<(&'static str, String)> {
    let mode = match pool.mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
    };
    let bound = pool.max_database_connections.map(|count| count.to_string());
    vec![
        ("pool.mode", mode.into()),
        ("pool.max_connections", pool.max_connections.to_string()),
        ("pool.min_connections", pool.min_connections.to_string()),
        ("pool.max_database_connections", bound.unwrap_or_default()),
        ("pool.acquire_timeout", time(pool.acquire_timeout)),
        ("pool.idle_timeout", off_or(pool.idle_timeout)),
        ("pool.max_lifetime", off_or(pool.max_lifetime)),
        ("pool.connect_timeout", time(pool.connect_timeout)),
        ("pool.health_check_interval", time(pool.health_check_interval)),
        ("pool.query_timeout", off_or(pool.query_timeout)),
        ("pool.idle_transaction_timeout", off_or(pool.idle_transaction_timeout)),
        ("pool.client_idle_timeout", off_or(pool.client_idle_timeout)),
        ("pool.prepared_statements", pool.prepared_statements.to_string()),
    ]
}

/// `[cache] redis`, where there is one, without its password.
fn of_redis(redis: &Redis) -> Vec<(&'static str, String)> {
    let on_loss = match redis.on_loss {
        OnRedisLoss::Wait => "wait",
        OnRedisLoss::RefuseWrite => "refuse-write",
    };
    vec![
        ("cache.on_redis_loss", on_loss.into()),
        ("cache.redis.url", without_password(redis.url.expose())),
        ("cache.redis.ttl", time(redis.ttl)),
        ("cache.redis.timeout", time(redis.timeout)),
        ("cache.redis.prefix", redis.prefix.clone()),
        ("cache.redis.lease", time(redis.lease)),
    ]
}

/// A URL from which everything is gone that may be secret: who logs in, and what stands behind a question mark.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
    let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
    format!("{scheme}://{}", address.split('?').next().unwrap_or_default())
}

fn off_or(limit: Option<Duration>) -> String {
    limit.map_or_else(|| "off".into(), time)
}

fn time(time: Duration) -> String {
    match time.subsec_millis() {
        0 => format!("{}s", time.as_secs()),
        _ => format!("{}ms", time.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_of_a_redis_url_is_shown() {
        for url in ["redis://u:p@ss@h:6379/2?password=x", "redis://:pss@h:6379/2", "redis://h:6379/2"] {
            assert_eq!(without_password(url), "redis://h:6379/2", "{url}");
        }
    }
}
