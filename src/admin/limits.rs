//! SHOW LIMITS: how full the bounds are that several pools or clients share, and who waits below them.

use super::World;
use super::value::{Column, Row, Type, Value};
use crate::backend::ledger::Kind;
use crate::session::clients::Activity;

pub(super) const COLUMNS: [Column; 5] =
    [("limit", Type::Text), ("of", Type::Text), ("used", Type::Int), ("max", Type::Int), ("waiting", Type::Int)];

/// `max` is NULL where there is no bound; `waiting` counts clients, or for bounds on server connections pools that want more.
pub(super) fn rows(world: &dyn World) -> Vec<Row> {
    let config = world.config();
    let clients = world.clients().all();
    let row = |limit: &str, of: &str, used: usize, max: Option<usize>, waiting: usize| -> Row {
        vec![limit.into(), of.into(), used.into(), max.map_or(Value::Null, Value::from), waiting.into()]
    };
    let waiting = clients.iter().filter(|client| client.activity() == Activity::Waiting).count();
    let all = clients.len() + world.consoles();
    let mut rows = vec![row("listen.max_clients", "", all, Some(config.listen.max_clients), waiting)];
    for database in config.databases.values().filter(|database| database.max_clients.is_some()) {
        let here = || clients.iter().filter(|client| client.database.name == database.name);
        let waiting = here().filter(|client| client.activity() == Activity::Waiting).count();
        rows.push(row("database.max_clients", &database.name, here().count(), database.max_clients, waiting));
    }
    for user in config.users.values().filter(|user| user.max_clients.is_some()) {
        let here = || clients.iter().filter(|client| client.user.name == user.name);
        let waiting = here().filter(|client| client.activity() == Activity::Waiting).count();
        rows.push(row("user.max_clients", &user.name, here().count(), user.max_clients, waiting));
    }
    for standing in world.standings() {
        let limit = match standing.kind {
            Kind::Total => "limits.server_connections",
            Kind::Database => "pool.max_database_connections",
            Kind::User => "user.max_server_connections",
        };
        let max = standing.bound.map(|bound| bound as usize);
        rows.push(row(limit, &standing.name, standing.used as usize, max, standing.waiting));
    }
    rows
}
