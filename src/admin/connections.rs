//! Pools, clients, servers, databases and users, in PgBouncer's columns.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::value::{Column, Row, Type, Value};
use super::{CONSOLE, World};
use crate::backend::gate::Passage;
use crate::backend::pool::Pool;
use crate::config::model::{PoolMode, User};
use crate::session::clients::{Activity, Client};
use crate::session::context::{Database, Target};
use crate::session::pin::Pin;

use Type::{Int, Numeric, Text};

pub(super) const POOLS: [Column; 17] = [
    ("database", Text),
    ("user", Text),
    ("cl_active", Int),
    ("cl_waiting", Int),
    ("cl_active_cancel_req", Int),
    ("cl_waiting_cancel_req", Int),
    ("sv_active", Int),
    ("sv_active_cancel", Int),
    ("sv_being_canceled", Int),
    ("sv_idle", Int),
    ("sv_used", Int),
    ("sv_tested", Int),
    ("sv_login", Int),
    ("maxwait", Int),
    ("maxwait_us", Int),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
];

pub(super) const CONNECTIONS: [Column; 21] = [
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("replication", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int),
    ("local_addr", Text),
    ("local_port", Int),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int),
    ("wait_us", Int),
    ("close_needed", Int),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int),
    ("tls", Text),
    ("application_name", Text),
    ("prepared_statements", Int),
    ("id", Numeric),
];

pub(super) const DATABASES: [Column; 18] = [
    ("name", Text),
    ("host", Text),
    ("port", Int),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int),
    ("min_pool_size", Int),
    // As PgBouncer called it up to 1.23, and as it calls it since.
    ("reserve_pool", Int),
    ("reserve_pool_size", Int),
    ("server_lifetime", Int),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
    ("max_connections", Int),
    ("current_connections", Int),
    ("max_client_connections", Int),
    ("current_client_connections", Int),
    ("paused", Int),
    ("disabled", Int),
];

pub(super) const USERS: [Column; 8] = [
    ("name", Text),
    ("pool_size", Int),
    ("reserve_pool_size", Int),
    ("pool_mode", Text),
    ("max_user_connections", Int),
    ("current_connections", Int),
    ("max_user_client_connections", Int),
    ("current_client_connections", Int),
];

pub(super) const SHARDS: [Column; 11] = [
    ("database", Text),
    ("role", Text),
    ("number", Int),
    ("host", Text),
    ("port", Int),
    ("dbname", Text),
    ("pools", Int),
    ("active", Int),
    ("idle", Int),
    ("login", Int),
    ("outdated", Int),
];

pub(super) const PINS: [Column; 7] = [
    ("database", Text),
    ("user", Text),
    ("client", Numeric),
    ("server", Numeric),
    ("reasons", Text),
    ("application_name", Text),
    ("since_request", Text),
];

fn mode_word(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
    }
}

/// Connections of some pools: those in use, those free, logins under way.
#[derive(Default, Clone, Copy)]
struct Count {
    active: u64,
    idle: u64,
    login: u64,
    outdated: u64,
}

impl Count {
    fn add(&mut self, pool: &Pool) {
        let roster = pool.roster();
        for listed in roster.all() {
            if listed.is_active() {
                self.active += 1;
            } else {
                self.idle += 1;
            }
            self.outdated += u64::from(roster.is_outdated(&listed));
        }
        self.login += u64::from(roster.logging_in());
    }

    fn of<'p>(pools: impl Iterator<Item = &'p Arc<Pool>>) -> Self {
        let mut count = Self::default();
        pools.for_each(|pool| count.add(pool));
        count
    }

    fn all(self) -> u64 {
        self.active + self.idle
    }
}

#[derive(Default)]
struct PoolRow {
    clients: u64,
    waiting: u64,
    longest_wait: Duration,
    servers: Count,
    mode: Option<PoolMode>,
}

/// A row for each database and user, over all servers of the database.
pub(super) fn pools(world: &dyn World) -> Vec<Row> {
    let mut pools: BTreeMap<(String, String), PoolRow> = BTreeMap::new();
    let all_clients = world.clients();
    for client in all_clients.all() {
        let row = pools.entry((client.database.name.clone(), client.user.name.clone())).or_default();
        if client.activity() == Activity::Waiting {
            row.waiting += 1;
            row.longest_wait = row.longest_wait.max(all_clients.waiting(&client));
        } else {
            row.clients += 1;
        }
        row.mode = row.mode.or(Some(client.user.pool_mode.unwrap_or(client.database.pool.mode)));
    }
    let config = world.config();
    for database in world.databases() {
        for ((user, _), pool) in database.pools() {
            let own = config.users.get(&user).and_then(|user| user.pool_mode);
            let row = pools.entry((database.config.name.clone(), user)).or_default();
            row.servers.add(&pool);
            row.mode = row.mode.or(Some(own.unwrap_or(database.config.pool.mode)));
        }
    }
    let console = console_pool(world);
    pools.into_iter().map(|((database, user), row)| pool_row(database, user, &row)).chain([console]).collect()
}

fn pool_row(database: String, user: String, row: &PoolRow) -> Row {
    let none = || Value::from(0_u64);
    vec![
        database.into(),
        user.into(),
        row.clients.into(),
        row.waiting.into(),
        none(),
        none(),
        row.servers.active.into(),
        none(),
        none(),
        row.servers.idle.into(),
        none(),
        none(),
        row.servers.login.into(),
        row.longest_wait.as_secs().into(),
        row.longest_wait.subsec_micros().into(),
        row.mode.map(mode_word).into(),
        Value::Null,
    ]
}

fn console_pool(world: &dyn World) -> Row {
    let mut row =
        pool_row(CONSOLE.into(), CONSOLE.into(), &PoolRow { clients: world.consoles() as u64, ..PoolRow::default() });
    row[15] = "statement".into();
    row
}

/// PgBouncer's form, in UTC: `2026-11-23 17:55:31 UTC`.
fn moment(at: SystemTime) -> Value {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60).into()
}

/// Year, month and day of a day since 1970 (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let part = (5 * of_year + 2) / 153;
    let month = if part < 10 { part + 3 } else { part - 9 };
    (year + era * 400 + u64::from(month <= 2), month, of_year - (153 * part + 2) / 5 + 1)
}

fn end(address: Option<SocketAddr>) -> [Value; 2] {
    match address {
        Some(address) => [address.ip().to_string().into(), u64::from(address.port()).into()],
        None => ["unix".into(), 0_u64.into()],
    }
}

fn pointer(kind: char, id: u64) -> Value {
    if id == 0 { "".into() } else { format!("{kind}{id}").into() }
}

pub(super) fn clients(world: &dyn World) -> Vec<Row> {
    let clients = world.clients();
    clients.all().iter().map(|client| client_row(client, &clients)).collect()
}

fn client_row(client: &Client, clients: &crate::session::clients::Clients) -> Row {
    let state = match client.activity() {
        Activity::Idle => "idle",
        Activity::Waiting => "waiting",
        Activity::Active => "active",
    };
    let waited = clients.waiting(client);
    let [addr, port] = end(client.peer);
    let [local_addr, local_port] = end(client.local);
    vec![
        "C".into(),
        client.user.name.as_str().into(),
        client.database.name.as_str().into(),
        client.replication().into(),
        state.into(),
        addr,
        port,
        local_addr,
        local_port,
        moment(clients.connected_at(client)),
        moment(clients.asked_at(client)),
        waited.as_secs().into(),
        waited.subsec_micros().into(),
        0_u64.into(),
        pointer('c', client.id),
        pointer('s', client.server()),
        0_u64.into(),
        client.tls.unwrap_or_default().into(),
        client.application_name().map_or_else(|| "".into(), |name| Value::Text(name.into())),
        client.statements().into(),
        client.id.into(),
    ]
}

pub(super) fn servers(world: &dyn World) -> Vec<Row> {
    let clients = world.clients().all();
    let names: BTreeMap<u64, &Arc<Client>> = clients.iter().map(|client| (client.id, client)).collect();
    let mut rows = Vec::new();
    for database in world.databases() {
        for ((user, target), pool) in database.pools() {
            for listed in pool.roster().all() {
                let client = names.get(&listed.client());
                let [addr, port] = match listed.peer {
                    Some(_) => end(listed.peer),
                    None => ["unix".into(), u64::from(pool.address().port).into()],
                };
                let [local_addr, local_port] = end(listed.local);
                rows.push(vec![
                    "S".into(),
                    database.address(target).user.as_deref().unwrap_or(&user).into(),
                    database.config.name.as_str().into(),
                    "none".into(),
                    if listed.is_active() { "active" } else { "idle" }.into(),
                    addr,
                    port,
                    local_addr,
                    local_port,
                    moment(listed.connected_at),
                    moment(listed.taken_at()),
                    0_u64.into(),
                    0_u64.into(),
                    pool.roster().is_outdated(&listed).into(),
                    pointer('s', listed.id),
                    pointer('c', listed.client()),
                    u64::try_from(listed.pid).unwrap_or(0).into(),
                    listed.tls.unwrap_or_default().into(),
                    client
                        .and_then(|client| client.application_name())
                        .map_or_else(|| "".into(), |name| Value::Text(name.into())),
                    listed.statements().into(),
                    listed.id.into(),
                ]);
            }
        }
    }
    rows
}

pub(super) fn databases(world: &dyn World) -> Vec<Row> {
    let clients = world.clients().all();
    let mut rows: Vec<Row> = world.databases().iter().map(|database| database_row(database, &clients)).collect();
    rows.sort_by_key(|row| format!("{:?}", row[0]));
    let mut console: Row = vec![Value::from(0_u64); DATABASES.len()];
    console[0] = CONSOLE.into();
    console[1] = Value::Null;
    console[2] = u64::from(world.config().listen.address.port()).into();
    console[3] = CONSOLE.into();
    console[4] = CONSOLE.into();
    console[10] = "statement".into();
    console[11] = Value::Null;
    console[15] = world.consoles().into();
    rows.push(console);
    rows
}

fn database_row(database: &Database, clients: &[Arc<Client>]) -> Row {
    let config = &database.config;
    let (primary, pool) = (&config.primary, &config.pool);
    let pools = database.pools();
    let current = Count::of(pools.iter().map(|(_, pool)| pool)).all();
    let is_here = |client: &&Arc<Client>| client.database.name == config.name;
    vec![
        config.name.as_str().into(),
        primary.host.as_str().into(),
        u64::from(primary.port).into(),
        primary.dbname.as_deref().unwrap_or(&config.name).into(),
        primary.user.as_deref().into(),
        pool.max_connections.into(),
        pool.min_connections.into(),
        0_u64.into(),
        0_u64.into(),
        pool.max_lifetime.map_or(0, |lifetime| lifetime.as_secs()).into(),
        mode_word(pool.mode).into(),
        Value::Null,
        pool.max_database_connections.unwrap_or(0).into(),
        current.into(),
        config.max_clients.unwrap_or(0).into(),
        clients.iter().filter(is_here).count().into(),
        (database.gate.passage() != Passage::Open).into(),
        database.gate.is_disabled().into(),
    ]
}

pub(super) fn users(world: &dyn World) -> Vec<Row> {
    let (clients, databases) = (world.clients().all(), world.databases());
    let row = |user: &Arc<User>| -> Row {
        let pools: Vec<Arc<Pool>> = databases
            .iter()
            .flat_map(|database| database.pools())
            .filter(|((name, _), _)| *name == user.name)
            .map(|(_, pool)| pool)
            .collect();
        vec![
            user.name.as_str().into(),
            user.max_connections.into(),
            Value::Null,
            user.pool_mode.map(mode_word).into(),
            user.max_server_connections.unwrap_or(0).into(),
            Count::of(pools.iter()).all().into(),
            user.max_clients.unwrap_or(0).into(),
            clients.iter().filter(|client| client.user.name == user.name).count().into(),
        ]
    };
    world.config().users.values().map(row).collect()
}

/// A row for each server of each database.
pub(super) fn shards(world: &dyn World) -> Vec<Row> {
    let mut rows = Vec::new();
    for database in world.databases() {
        let config = &database.config;
        let targets = std::iter::once(Target::Primary)
            .chain((0..config.replicas.len()).map(Target::Replica))
            .chain((0..config.shards.len()).map(Target::Shard))
            .chain(config.coordinator.as_ref().map(|_| Target::Coordinator));
        let pools = database.pools();
        for target in targets {
            let address = database.address(target);
            let here: Vec<&Arc<Pool>> = pools.iter().filter(|((_, it), _)| *it == target).map(|(_, it)| it).collect();
            let count = Count::of(here.iter().copied());
            let (role, number) = match target {
                Target::Primary => ("primary", 0),
                Target::Replica(number) => ("replica", number),
                Target::Shard(number) => ("shard", number),
                Target::Coordinator => ("coordinator", 0),
            };
            rows.push(vec![
                config.name.as_str().into(),
                role.into(),
                number.into(),
                address.host.as_str().into(),
                u64::from(address.port).into(),
                address.dbname.as_deref().unwrap_or(&config.name).into(),
                here.len().into(),
                count.active.into(),
                count.idle.into(),
                count.login.into(),
                count.outdated.into(),
            ]);
        }
    }
    rows
}

/// A row for each client that keeps its server connection beyond its transaction.
pub(super) fn pins(world: &dyn World) -> Vec<Row> {
    let clients = world.clients();
    let pinned = clients.all().into_iter().filter(|client| client.pins().any());
    let row = |client: Arc<Client>| -> Row {
        let reasons: Vec<&str> = client.pins().iter().map(Pin::label).collect();
        vec![
            client.database.name.as_str().into(),
            client.user.name.as_str().into(),
            client.id.into(),
            client.server().into(),
            reasons.join(",").into(),
            client.application_name().map_or_else(|| "".into(), |name| Value::Text(name.into())),
            moment(clients.asked_at(&client)),
        ]
    };
    pinned.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_in_utc() {
        let at = |seconds: u64| moment(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC".into());
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 UTC".into());
        assert_eq!(at(1_795_456_531), "2026-11-23 17:55:31 UTC".into());
    }
}
