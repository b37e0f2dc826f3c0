//! What no table of the file can say alone: names that are twice there or nowhere, and methods that need something elsewhere.

use std::collections::HashMap;

use crate::config::model::{AuthMethod, CONSOLE_DATABASES, Config, Database, ListenTlsMode, User};
use crate::config::raw::Table;

/// The tables that the parts came from, to place faults.
pub(super) struct Tables<'a, 'd> {
    /// The top of the file.
    pub(super) root: &'a Table<'d>,
    /// `[listen]`
    pub(super) listen: &'a Table<'d>,
    /// Each `[[database]]`.
    pub(super) databases: &'a [Table<'d>],
    /// Each `[[user]]`.
    pub(super) users: &'a [Table<'d>],
}

pub(super) fn check(tables: &Tables<'_, '_>, config: &Config, databases: &[Database], users: &[User]) {
    if databases.is_empty() && !tables.root.has("database") {
        tables.root.fault("database", "there is no database to serve", "add a [[database]] with name and primary");
    }
    if users.is_empty() && !tables.root.has("user") {
        tables.root.fault("user", "there is no user who could log in", "add a [[user]] with name and password_file");
    }
    refuse_duplicates(tables.databases, databases.iter().map(|database| &database.name));
    refuse_duplicates(tables.users, users.iter().map(|user| &user.name));
    for (table, user) in tables.users.iter().zip(users) {
        check_auth(table, user, config);
        check_databases(table, user, databases);
        check_server_login(table, user, databases);
    }
    if config.cache.enabled && !databases.is_empty() && databases.iter().all(|database| !database.cache) {
        let table = tables.root.table("cache");
        table.warn("enabled", "every database has cache = false", "let one of them be cached, or set enabled = false");
    }
    check_trust(tables, config, users);
    check_console(tables, config, users);
    for (table, database) in tables.databases.iter().zip(databases) {
        check_two_phase(table, database, users);
        if CONSOLE_DATABASES.contains(&database.name.as_str()) {
            table.fault("name", "this is the console's name", "give the database another name");
        }
    }
}

/// What was decided must be out of the clients' reach.
fn check_two_phase(table: &Table<'_>, database: &Database, users: &[User]) {
    let Some(two_phase) = &database.two_phase else { return };
    let mut addresses = std::iter::once(&database.primary).chain(&database.shards);
    let is_login = addresses.any(|address| address.user.as_ref() == Some(&two_phase.user));
    if is_login || users.iter().any(|user| user.name == two_phase.user) {
        let table = table.table("two_phase");
        table.fault("user", "clients log in on the servers as this role", "name a role that no client uses");
    }
}

/// Whoever may use the console is a user like any other first.
fn check_console(tables: &Tables<'_, '_>, config: &Config, users: &[User]) {
    let table = tables.root.table("admin");
    for (key, names) in [("users", &config.admin.users), ("stats_users", &config.admin.stats_users)] {
        for name in names.iter().filter(|name| !users.iter().any(|user| user.name == **name)) {
            let near = crate::config::raw::nearest(name, users.iter().map(|user| user.name.as_str()));
            let help =
                near.map_or_else(|| "add a [[user]] of this name".into(), |near| format!("did you mean \"{near}\"?"));
            table.fault(key, format!("there is no user \"{}\"", name.escape_debug()), help);
        }
    }
}

fn refuse_duplicates<'n>(tables: &[Table<'_>], names: impl Iterator<Item = &'n String>) {
    let mut seen: HashMap<&str, &Table<'_>> = HashMap::new();
    for (name, table) in names.zip(tables) {
        if name.is_empty() {
            continue;
        }
        if let Some(first) = seen.insert(name, table) {
            table.fault("name", format!("{} has this name too", first.path()), "names must differ");
        }
    }
}

fn check_auth(table: &Table<'_>, user: &User, config: &Config) {
    let tls = &config.listen.tls;
    match user.auth {
        AuthMethod::Cert if tls.mode == ListenTlsMode::Off => {
            table.fault("auth", "certificates need TLS", "set [listen] tls = { mode = \"require\", ... }");
        }
        AuthMethod::Cert if tls.client_ca.is_none() => {
            let help = "name the authorities in [listen] tls = { client_ca = \"...\" }";
            table.fault("auth", "there is nothing to check client certificates against", help);
        }
        AuthMethod::Cleartext if tls.mode == ListenTlsMode::Off => {
            let help = "set [listen] tls = { mode = \"require\", ... }, or auth = \"scram\"";
            table.fault("auth", "a cleartext password may only travel under TLS", help);
        }
        _ => {}
    }
}

fn check_databases(table: &Table<'_>, user: &User, databases: &[Database]) {
    for name in &user.databases {
        if databases.iter().any(|database| database.name == *name) {
            continue;
        }
        let near = crate::config::raw::nearest(name, databases.iter().map(|database| database.name.as_str()));
        let help =
            near.map_or_else(|| "name a [[database]] of this file".into(), |near| format!("did you mean \"{near}\"?"));
        table.fault("databases", format!("there is no database \"{}\"", name.escape_debug()), help);
    }
}

/// A verifier proves the client to pgherd, but not pgherd to a server.
fn check_server_login(table: &Table<'_>, user: &User, databases: &[Database]) {
    if user.scram_secret.is_none() {
        return;
    }
    let reaches = |database: &&Database| user.databases.is_empty() || user.databases.contains(&database.name);
    let without = databases.iter().filter(reaches).find(|database| {
        let mut servers = std::iter::once(&database.primary).chain(&database.replicas).chain(&database.shards);
        let mut servers = servers.by_ref().chain(&database.coordinator);
        servers.any(|server| server.password.is_none())
    });
    if let Some(database) = without {
        let problem = format!("pgherd has no password for the servers of database \"{}\"", database.name);
        let help =
            "servers that ask for one will refuse; give user and password in the connection string, or password_file";
        table.warn("scram_secret", problem, help);
    }
}

fn check_trust(tables: &Tables<'_, '_>, config: &Config, users: &[User]) {
    let trusted = users.iter().position(|user| user.auth == AuthMethod::Trust);
    if let Some(table) = trusted.and_then(|index| tables.users.get(index))
        && !config.listen.address.ip().is_loopback()
        && tables.listen.has("address")
    {
        let problem = "trust holds only for clients on this machine; others will be turned away";
        table.warn("auth", problem, "use \"scram\" for clients from elsewhere");
    }
}
