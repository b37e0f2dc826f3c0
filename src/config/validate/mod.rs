//! What was meant: each table of the file becomes its part of [`Config`], then the parts are checked against each other.

mod cache;
mod cross;
mod database;
mod files;
mod listen;
mod pool;
mod redis;
mod rest;
mod schema;
mod table;
mod user;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::env::Lookup;
use super::fault::Fault;
use super::model::{Config, Database, User};
use super::raw::{Document, Table};

/// Threads at most; more than any machine has would only be a slip of the finger.
const THREADS: u64 = 1024;

/// What came of one text.
pub(crate) struct Outcome {
    /// There if and only if there are no faults.
    pub(crate) config: Option<Config>,
    /// What is wrong.
    pub(crate) faults: Vec<Fault>,
    /// What is unwise.
    pub(crate) warnings: Vec<Fault>,
}

/// Reads a whole file's text. Paths in it are relative to `base`.
pub(crate) fn text(text: &str, base: &Path, env: Lookup<'_>) -> Outcome {
    let document = Document::new(text, base, env);
    let tree = document.parse();
    let config = config(&document.root(&tree));
    drop(tree);
    let (faults, warnings) = document.into_findings();
    Outcome { config: faults.is_empty().then_some(config), faults, warnings }
}

fn config(root: &Table<'_>) -> Config {
    let listen_table = root.table("listen");
    let listen = listen::read(&listen_table);
    let pool = pool::read(&root.table("pool"), None);
    let database_tables = root.tables("database");
    let databases: Vec<Database> = database_tables.iter().map(|table| database::read(table, &pool)).collect();
    let user_tables = root.tables("user");
    let users: Vec<User> = user_tables.iter().map(user::read).collect();
    let cache_table = root.table("cache");
    let config = Config {
        listen,
        pool,
        databases: BTreeMap::new(),
        users: BTreeMap::new(),
        cache: cache::read(&cache_table),
        fanout: rest::fanout(&root.table("fanout")),
        admin: rest::admin(&root.table("admin")),
        limits: rest::limits(&root.table("limits")),
        security: rest::security(&root.table("security")),
        telemetry: rest::telemetry(&root.table("telemetry")),
        threads: root.count("threads", 1..THREADS + 1).map(|threads| threads as usize),
    };
    let tables = cross::Tables { root, listen: &listen_table, databases: &database_tables, users: &user_tables };
    cross::check(&tables, &config, &databases, &users);
    Config {
        databases: databases.into_iter().map(|database| (database.name.clone(), Arc::new(database))).collect(),
        users: users.into_iter().map(|user| (user.name.clone(), Arc::new(user))).collect(),
        ..config
    }
}

#[cfg(test)]
mod tests;
