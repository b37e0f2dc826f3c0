//! `[pool]`, and a database's own `pool`, which overrides it key by key.

use std::time::Duration;

use crate::config::model::{ListenMode, OnListenerLoss, Pool, PoolMode};
use crate::config::raw::Table;

/// Connections at most that a file may ask of one server: PostgreSQL's own MAX_BACKENDS.
pub(super) const MAX_CONNECTIONS: u64 = 262_143;

/// Reads a pool; what is not typed comes from `base`, or from the defaults where there is none.
pub(super) fn read(table: &Table<'_>, base: Option<&Pool>) -> Pool {
    let inherits = |key: &str| base.filter(|_| !table.has(key));
    let duration = |key: &str, of: fn(&Pool) -> Duration| inherits(key).map_or_else(|| table.duration(key), of);
    let or_off =
        |key: &str, of: fn(&Pool) -> Option<Duration>| inherits(key).map_or_else(|| table.duration_or_off(key), of);
    let count = |key: &str, lowest: u64, of: fn(&Pool) -> u32| {
        inherits(key).map_or_else(|| table.count(key, lowest..MAX_CONNECTIONS + 1).unwrap_or(1) as u32, of)
    };
    let pool = Pool {
        mode: inherits("mode").map_or_else(|| mode(table, "mode").unwrap_or(PoolMode::Transaction), |pool| pool.mode),
        max_connections: count("max_connections", 1, |pool| pool.max_connections),
        min_connections: min_connections(table, base),
        max_database_connections: inherits("max_database_connections").map_or_else(
            || table.count("max_database_connections", 1..MAX_CONNECTIONS + 1).map(|count| count as u32),
            |pool| pool.max_database_connections,
        ),
        acquire_timeout: duration("acquire_timeout", |pool| pool.acquire_timeout),
        idle_timeout: or_off("idle_timeout", |pool| pool.idle_timeout),
        max_lifetime: or_off("max_lifetime", |pool| pool.max_lifetime),
        connect_timeout: duration("connect_timeout", |pool| pool.connect_timeout),
        health_check_interval: duration("health_check_interval", |pool| pool.health_check_interval),
        query_timeout: or_off("query_timeout", |pool| pool.query_timeout),
        idle_transaction_timeout: or_off("idle_transaction_timeout", |pool| pool.idle_transaction_timeout),
        client_idle_timeout: or_off("client_idle_timeout", |pool| pool.client_idle_timeout),
        prepared_statements: count("prepared_statements", 0, |pool| pool.prepared_statements as u32) as usize,
        pinned_max: or_off("pinned_max", |pool| pool.pinned_max),
        listen: inherits("listen").map_or_else(|| listen(table), |pool| pool.listen),
        on_listener_loss: inherits("on_listener_loss").map_or_else(|| on_loss(table), |pool| pool.on_listener_loss),
        notification_queue: inherits("notification_queue").map_or_else(|| queue(table), |pool| pool.notification_queue),
    };
    check_bounds(table, &pool);
    Pool { min_connections: pool.min_connections.min(pool.max_connections), ..pool }
}

/// A mode word; `statement` is known, but not to this version.
pub(super) fn mode(table: &Table<'_>, key: &str) -> Option<PoolMode> {
    if table.has(key) && table.text(key).as_deref() == Some("statement") {
        table.fault(key, "statement pooling is not supported in this version", "use \"transaction\" or \"session\"");
        return None;
    }
    [PoolMode::Transaction, PoolMode::Session].get(table.choice(key)?).copied()
}

fn listen(table: &Table<'_>) -> ListenMode {
    if table.choice("listen") == Some(1) { ListenMode::Pin } else { ListenMode::Shared }
}

fn on_loss(table: &Table<'_>) -> OnListenerLoss {
    if table.choice("on_listener_loss") == Some(1) { OnListenerLoss::Notice } else { OnListenerLoss::Close }
}

/// Room for at least one notification: PostgreSQL's payloads have up to 8000 bytes.
fn queue(table: &Table<'_>) -> usize {
    const LEAST: u64 = 16 * 1024;
    let bytes = table.size("notification_queue");
    if bytes < LEAST {
        table.fault("notification_queue", "that is too little for a few notifications", "at least 16KiB");
    }
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn min_connections(table: &Table<'_>, base: Option<&Pool>) -> u32 {
    match base {
        Some(base) if !table.has("min_connections") => base.min_connections,
        _ => table.count("min_connections", 0..MAX_CONNECTIONS + 1).unwrap_or(0) as u32,
    }
}

/// A typed minimum above the maximum is a fault; a default one is silently cut to the maximum by `read`.
fn check_bounds(table: &Table<'_>, pool: &Pool) {
    if table.has("min_connections") && pool.min_connections > pool.max_connections {
        let problem = format!("the minimum is above max_connections = {}", pool.max_connections);
        table.fault("min_connections", problem, "lower it, or raise max_connections");
    }
    if let (Some(idle), Some(lifetime)) = (pool.idle_timeout, pool.max_lifetime)
        && table.has("idle_timeout")
        && idle > lifetime
    {
        table.warn("idle_timeout", "it is longer than max_lifetime, so it never ends anything", "lower it");
    }
}
