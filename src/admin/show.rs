//! What SHOW shows: the columns of each topic, and its rows as they are now.

use super::World;
use super::command::{TOPICS, Topic};
use super::stats::{self, Part};
use super::value::{Column, Row, Type, Value};
use super::{cache, connections, limits, settings};
use crate::session::clients::{Client, Clients};

use Type::{Int, Numeric, Text};

/// Columns of a topic; SHOW HELP has none.
pub(super) fn columns(topic: Topic) -> Vec<Column> {
    match topic {
        Topic::Help => Vec::new(),
        Topic::Pools => connections::POOLS.to_vec(),
        Topic::Clients | Topic::Servers => connections::CONNECTIONS.to_vec(),
        Topic::Databases => connections::DATABASES.to_vec(),
        Topic::Users => connections::USERS.to_vec(),
        Topic::Shards => connections::SHARDS.to_vec(),
        Topic::Pins => connections::PINS.to_vec(),
        Topic::Listeners => listener_columns(),
        Topic::Stats => stats::columns(Part::Both),
        Topic::StatsTotals => stats::columns(Part::Totals),
        Topic::StatsAverages => stats::columns(Part::Averages),
        Topic::Totals => stats::ALL_COLUMNS.to_vec(),
        Topic::Lists => vec![("list", Text), ("items", Int)],
        Topic::Config => settings::COLUMNS.to_vec(),
        Topic::Mem => vec![("name", Text), ("size", Int), ("used", Int), ("free", Int), ("memtotal", Numeric)],
        Topic::Version => vec![("version", Text)],
        Topic::State => vec![("key", Text), ("value", Text)],
        Topic::Limits => limits::COLUMNS.to_vec(),
        Topic::Cache => cache::columns(),
        Topic::CacheEntries => cache::ENTRIES.to_vec(),
        Topic::CacheQuarantine => cache::QUARANTINE.to_vec(),
        Topic::Statements => vec![
            ("database", Text),
            ("id", Numeric),
            ("name", Text),
            ("query", Text),
            ("parameter_types", Text),
            ("holders", Int),
            ("accepted", Int),
        ],
    }
}

/// Its rows.
pub(super) fn rows(world: &dyn World, topic: Topic) -> Vec<Row> {
    match topic {
        Topic::Help => Vec::new(),
        Topic::Pools => connections::pools(world),
        Topic::Clients => connections::clients(world),
        Topic::Servers => connections::servers(world),
        Topic::Databases => connections::databases(world),
        Topic::Users => connections::users(world),
        Topic::Shards => connections::shards(world),
        Topic::Pins => connections::pins(world),
        Topic::Listeners => listeners(world),
        Topic::Stats => stats::rows(world, Part::Both),
        Topic::StatsTotals => stats::rows(world, Part::Totals),
        Topic::StatsAverages => stats::rows(world, Part::Averages),
        Topic::Totals => stats::all(world),
        Topic::Lists => lists(world),
        Topic::Config => settings::rows(&world.config()),
        Topic::Mem => memory(world),
        Topic::Version => vec![vec![format!("pgherd {}", env!("CARGO_PKG_VERSION")).into()]],
        Topic::State => state(world),
        Topic::Limits => limits::rows(world),
        Topic::Cache => cache::rows(world),
        Topic::CacheEntries => cache::entries(world),
        Topic::CacheQuarantine => cache::quarantine(world),
        Topic::Statements => statements(world),
    }
}

/// The detail of SHOW HELP's notice.
pub(super) fn help() -> String {
    let topics: Vec<String> = TOPICS.iter().map(|(word, _)| word.to_ascii_uppercase()).collect();
    let commands = [
        "PAUSE [<db>]",
        "RESUME [<db>]",
        "SUSPEND",
        "RECONNECT [<db>]",
        "WAIT_CLOSE [<db>]",
        "KILL [<db>]",
        "KILL_CLIENT <id>",
        "DISABLE <db>",
        "ENABLE <db>",
        "PURGE [<db>] [TABLE [<schema>.]<table>|STATEMENT <fingerprint>]",
        "RELOAD",
        "SHUTDOWN [WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]",
    ];
    let mut text = String::new();
    for some in topics.chunks(7) {
        text.push_str(&format!("\n\tSHOW {}", some.join("|")));
    }
    for command in commands {
        text.push_str(&format!("\n\t{command}"));
    }
    text
}

fn lists(world: &dyn World) -> Vec<Row> {
    let databases = world.databases();
    let servers: usize = databases.iter().flat_map(|it| it.pools()).map(|(_, pool)| pool.roster().all().len()).sum();
    let items: [(&str, usize); 12] = [
        ("databases", databases.len() + 1),
        ("users", world.config().users.len()),
        ("pools", connections::pools(world).len()),
        ("free_clients", 0),
        ("used_clients", world.clients().count() + world.consoles()),
        ("login_clients", 0),
        ("free_servers", 0),
        ("used_servers", servers),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    items.into_iter().map(|(name, count)| vec![name.into(), count.into()]).collect()
}

fn state(world: &dyn World) -> Vec<Row> {
    use crate::backend::gate::Passage;
    let databases = world.databases();
    let is = |passages: &[Passage]| {
        !databases.is_empty() && databases.iter().all(|it| passages.contains(&it.gate.passage()))
    };
    let suspended = is(&[Passage::Suspended]);
    let paused = !suspended && is(&[Passage::Suspended, Passage::Paused, Passage::Killed]);
    let yes = |so: bool| if so { "yes" } else { "no" };
    let states = [("active", !suspended && !paused), ("paused", paused), ("suspended", suspended)];
    states.into_iter().map(|(key, so)| vec![key.into(), yes(so).into()]).collect()
}

/// Sizes are those of the slots themselves, without what they point to; the last line is the whole process.
fn memory(world: &dyn World) -> Vec<Row> {
    let slot = |name: &str, size: usize, used: usize| -> Row {
        vec![name.into(), size.into(), used.into(), 0_u64.into(), (size * used).into()]
    };
    let databases = world.databases();
    let servers = databases.iter().flat_map(|it| it.pools()).map(|(_, pool)| pool.roster().all().len()).sum();
    let mut rows = vec![
        slot("client_slots", size_of::<Client>(), world.clients().count()),
        slot("server_slots", size_of::<crate::backend::roster::Listed>(), servers),
    ];
    for known in cache::distinct(world) {
        let (stats, name) = (known.cache.stats(), known.database.config.name.as_str());
        let shard = known.shard.map_or_else(String::new, |shard| format!("_shard{shard}"));
        rows.push(vec![
            format!("cache_{name}{shard}").into(),
            Value::from(stats.bytes.checked_div(stats.entries).unwrap_or(0)),
            stats.entries.into(),
            0_u64.into(),
            stats.bytes.into(),
        ]);
    }
    if let Some(bytes) = resident_bytes() {
        rows.push(vec!["process_resident".into(), bytes.into(), 1_u64.into(), 0_u64.into(), bytes.into()]);
    }
    rows
}

/// From the kernel, in pages of 4 KiB, as every Linux that pgherd is built for has them.
fn resident_bytes() -> Option<u64> {
    const PAGE: u64 = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(text.split_whitespace().nth(1)?.parse::<u64>().ok()? * PAGE)
}

fn listener_columns() -> Vec<Column> {
    vec![
        ("database", Text),
        ("host", Text),
        ("port", Int),
        ("remote_pid", Int),
        ("channels", Int),
        ("clients", Int),
        ("received", Numeric),
        ("delivered", Numeric),
        ("losses", Numeric),
        ("too_slow", Numeric),
    ]
}

/// A row for each database that somebody has listened in.
fn listeners(world: &dyn World) -> Vec<Row> {
    let row = |database: std::sync::Arc<crate::session::context::Database>| -> Option<Row> {
        let figures = database.listener_figures()?;
        let primary = &database.config.primary;
        Some(vec![
            database.config.name.as_str().into(),
            primary.host.as_str().into(),
            u64::from(primary.port).into(),
            u64::try_from(figures.pid).unwrap_or(0).into(),
            figures.channels.into(),
            figures.clients.into(),
            figures.received.into(),
            figures.delivered.into(),
            figures.lost.into(),
            figures.too_slow.into(),
        ])
    };
    world.databases().into_iter().filter_map(row).collect()
}

fn statements(world: &dyn World) -> Vec<Row> {
    let mut rows = Vec::new();
    for database in world.databases() {
        for statement in database.statements.all() {
            let types: Vec<String> = statement.types().iter().map(u32::to_string).collect();
            rows.push(vec![
                database.config.name.as_str().into(),
                statement.id.into(),
                (*statement.server_name).into(),
                String::from_utf8_lossy(statement.text()).into_owned().into(),
                types.join(",").into(),
                // One of them is this look itself.
                std::sync::Arc::strong_count(&statement).saturating_sub(1).into(),
                statement.is_accepted().into(),
            ]);
        }
    }
    rows
}

/// The clients of one database, or of all.
pub(super) fn clients_of(clients: &Clients, database: Option<&str>) -> Vec<std::sync::Arc<Client>> {
    let mut all = clients.all();
    all.retain(|client| database.is_none_or(|name| client.database.name == name));
    all
}
