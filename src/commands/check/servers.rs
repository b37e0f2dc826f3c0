//! Every server of every database: can it be reached, can each user log in, is it what the TOML says it is?

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::join_all;

use super::client::Client;
use super::report::Report;
use crate::backend::connect::Login;
use crate::config::model::{Config, Database, ServerAddress, User};
use crate::error::Error;
use crate::net::tls::ClientTls;

/// What a server is to its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Primary,
    Replica(usize),
    Shard(usize),
    /// Where PostgreSQL merges, if it is not the primary.
    Coordinator,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Replica(index) => write!(f, "replica {index}"),
            Self::Shard(index) => write!(f, "shard {index}"),
            Self::Coordinator => f.write_str("coordinator"),
        }
    }
}

/// One server of one database, with the first connection that could be made to it.
pub(super) struct Server {
    pub(super) part: Part,
    /// For findings: `database app, shard 1 (10.0.1.2:5432/app)`.
    pub(super) place: String,
    pub(super) address: ServerAddress,
    /// Roles that users of this database log in as here.
    pub(super) roles: Vec<String>,
    pub(super) client: Option<Client>,
    /// What the server may have: `None` if it did not say.
    pub(super) capacity: Option<u64>,
}

/// Users that may connect to a database.
pub(super) fn users_of<'c>(config: &'c Config, database: &Database) -> Vec<&'c Arc<User>> {
    let may = |user: &&Arc<User>| user.databases.is_empty() || user.databases.contains(&database.name);
    config.users.values().filter(may).collect()
}

/// Tries every server of a database, all at once.
pub(super) async fn try_all(config: &Config, database: &Database, tls: &ClientTls, report: &mut Report) -> Vec<Server> {
    let users = users_of(config, database);
    if users.is_empty() {
        let place = format!("database {}", database.name);
        report.warning(place, "no user may connect to it", "name it in a [[user]]'s databases");
    }
    let parts = std::iter::once((Part::Primary, &database.primary))
        .chain(database.replicas.iter().enumerate().map(|(index, address)| (Part::Replica(index), address)))
        .chain(database.shards.iter().enumerate().map(|(index, address)| (Part::Shard(index), address)))
        .chain(database.coordinator.iter().map(|address| (Part::Coordinator, address)));
    let tried = parts.map(|(part, address)| try_one(database, part, address, &users, tls));
    let mut servers = Vec::new();
    for (server, findings) in join_all(tried).await {
        report.extend(findings);
        servers.push(server);
    }
    compare(&mut servers, report).await;
    servers
}

async fn try_one(
    database: &Database,
    part: Part,
    address: &ServerAddress,
    users: &[&Arc<User>],
    tls: &ClientTls,
) -> (Server, Report) {
    let mut report = Report::default();
    let place = format!("database {}, {part} ({address})", database.name);
    let mut server = Server { part, place, address: address.clone(), roles: Vec::new(), client: None, capacity: None };
    let mut unreachable = false;
    for (role, user) in logins(address, users) {
        if unreachable {
            break;
        }
        let login = Login {
            user: user.name.clone(),
            password: user.password.clone(),
            scram_keys: None,
            startup: Vec::new(),
            database: database.name.clone(),
            connect_timeout: database.pool.connect_timeout,
            tls: tls.clone(),
        };
        match Client::connect(address, &login).await {
            Ok(client) => {
                report.ok(&server.place, format!("{role} can log in"));
                server.client.get_or_insert(client);
            }
            Err(error) => {
                unreachable = !is_refusal(&error);
                login_failed(&mut report, &server.place, &role, user, address, &error);
            }
        }
        server.roles.push(role);
    }
    if let Some(mut client) = server.client.take() {
        inspect(&mut server, &mut client, &mut report).await;
        server.client = Some(client);
    }
    (server, report)
}

/// Roles to log in as, each once, with a user that does.
fn logins<'u>(address: &ServerAddress, users: &[&'u Arc<User>]) -> BTreeMap<String, &'u Arc<User>> {
    let role = |user: &Arc<User>| address.user.clone().unwrap_or_else(|| user.name.clone());
    users.iter().map(|user| (role(user), *user)).collect()
}

/// Whether the server answered at all: then another user may still get in.
fn is_refusal(error: &Error) -> bool {
    let cause = std::error::Error::source(error);
    cause.is_some_and(|cause| cause.downcast_ref::<crate::wire::backend::ServerError>().is_some())
}

fn login_failed(report: &mut Report, place: &str, role: &str, user: &User, address: &ServerAddress, error: &Error) {
    let mut text = format!("{role} cannot log in: {}", error.message());
    if let Some(detail) = error.detail_text() {
        text = format!("{text}\n{detail}");
    }
    if user.password.is_none() && address.password.is_none() {
        let help = "pgherd has no password of this user: give one, or let pg_hba.conf ask for none";
        report.fault(place, text, help);
    } else {
        report.fault(place, text, error.hint_text().unwrap_or("check address, user, password and pg_hba.conf"));
    }
}

/// Version, recovery, and how many connections the server has to give.
async fn inspect(server: &mut Server, client: &mut Client, report: &mut Report) {
    report.ok(&server.place, format!("PostgreSQL {}, database {}", client.version, client.database));
    let sql = "SELECT pg_is_in_recovery(), current_setting('server_version_num'), current_setting('max_connections'), \
         current_setting('superuser_reserved_connections'), current_setting('reserved_connections', true)";
    let row = match client.rows(sql).await {
        Ok(rows) => rows.into_iter().next().unwrap_or_default(),
        Err(error) => {
            report.fault(&server.place, format!("it does not answer a query: {}", error.message()), "look at its log");
            return;
        }
    };
    let number = |index: usize| row.get(index).and_then(|value| value.as_deref()?.parse::<u64>().ok());
    let in_recovery = row.first().and_then(|value| value.as_deref()) == Some("t");
    match (server.part, in_recovery) {
        (Part::Replica(_), false) => {
            report.fault(&server.place, "it is not in recovery: it is no replica", "name a streaming replica");
        }
        (Part::Primary | Part::Shard(_) | Part::Coordinator, true) => {
            report.fault(&server.place, "it is in recovery: it takes no writes", "name the server that takes writes");
        }
        _ => {}
    }
    if number(1).is_some_and(|version| version < 130_000) {
        let help = "pgherd is tested with PostgreSQL 13 and later";
        report.warning(&server.place, format!("PostgreSQL {} is no longer maintained", client.version), help);
    }
    server.capacity = number(2).map(|max| max.saturating_sub(number(3).unwrap_or(0) + number(4).unwrap_or(0)));
}

/// What the servers of one database must have in common.
async fn compare(servers: &mut [Server], report: &mut Report) {
    let mut identifiers: Vec<(Part, String, String)> = Vec::new();
    for server in servers.iter_mut() {
        let Some(client) = &mut server.client else { continue };
        // Some installations let only monitoring roles see it; then nothing can be told.
        let found = client.value("SELECT system_identifier FROM pg_control_system()").await;
        if let Ok(Some(identifier)) = found {
            identifiers.push((server.part, server.place.clone(), identifier));
        }
    }
    let primary = identifiers.iter().find(|(part, ..)| *part == Part::Primary).map(|(_, _, identifier)| identifier);
    let Some(primary) = primary else { return };
    for (part, place, identifier) in &identifiers {
        if matches!(part, Part::Replica(_)) && identifier != primary {
            let text = "it is a replica of another server: their system identifiers differ";
            report.fault(place, text, "name a replica of this database's primary");
        }
    }
}

/// Compares what the pools may open with what each server has to give.
pub(super) fn compare_capacity(config: &Config, databases: &[(&Database, Vec<Server>)], report: &mut Report) {
    let mut wanted: BTreeMap<(String, u16), (u64, u64, Option<u64>)> = BTreeMap::new();
    for (database, servers) in databases {
        let users = users_of(config, database);
        for server in servers {
            let entry = wanted.entry((server.address.host.clone(), server.address.port)).or_default();
            entry.2 = entry.2.or(server.capacity);
            for user in &users {
                let max = u64::from(user.max_connections.unwrap_or(database.pool.max_connections));
                entry.0 += max;
                entry.1 += u64::from(database.pool.min_connections).min(max);
            }
        }
    }
    for ((host, port), (max, min, capacity)) in wanted {
        let Some(capacity) = capacity else { continue };
        let place = format!("server {host}:{port}");
        let text =
            |wanted: u64, what: &str| format!("pools may {what} {wanted} connections; it has {capacity} to give");
        if min > capacity {
            let help = "lower min_connections, or raise the server's max_connections";
            report.fault(place, text(min, "keep open"), help);
        } else if max > capacity {
            let help = "lower max_connections of [pool], a database or a user, or raise the server's max_connections";
            report.warning(place, text(max, "open"), help);
        } else {
            report.ok(place, text(max, "open"));
        }
    }
}
