//! The console on a running pgherd: who may use it, what it shows, and what clients see of what it does.

mod control;
mod import;
mod show;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::harness::{self, Database, Pgherd, eventually};

const PATIENCE: Duration = Duration::from_secs(20);

/// A pgherd before that database: `postgres` administers it, `watcher` may look, `guest` neither.
async fn pgherd_before(database: &Database, pool: &str) -> Pgherd {
    let users: String = ["postgres", "watcher", "guest"]
        .map(|name| format!("[[user]]\nname = \"{name}\"\nauth = \"trust\"\n"))
        .concat();
    Pgherd::start(&format!(
        "[[database]]\nname = \"{}\"\nprimary = \"{}\"\npool = {{ min_connections = 0, {pool} }}\n{users}\
         [admin]\nusers = [\"postgres\"]\nstats_users = [\"watcher\"]\n",
        database.name,
        database.conninfo()
    ))
    .await
}

async fn scene() -> (Database, Pgherd, Client) {
    let database = harness::fresh_database().await;
    let pgherd = pgherd_before(&database, "max_connections = 4").await;
    let console = pgherd.client("pgherd").await;
    // The first health check has opened a connection and given it back: the next one is not due while the story lasts.
    let is_checked = async || {
        let servers = shown(&console, "show servers").await;
        !servers.is_empty() && servers.iter().all(|server| server["state"] == "idle")
    };
    eventually(PATIENCE, "the first health check is over", is_checked).await;
    (database, pgherd, console)
}

/// What a SHOW shows, each row by its columns' names.
async fn shown(console: &Client, command: &str) -> Vec<BTreeMap<String, String>> {
    let messages = console.simple_query(command).await.unwrap_or_else(|error| panic!("{command}: {error:?}"));
    let mut rows = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let cell = |(at, column): (usize, &tokio_postgres::SimpleColumn)| {
                (column.name().to_owned(), row.get(at).unwrap_or("NULL").to_owned())
            };
            rows.push(row.columns().iter().enumerate().map(cell).collect());
        }
    }
    rows
}

/// The row whose column has that value, once there is one: what is shown follows what a client was told by a moment.
async fn row(console: &Client, command: &str, column: &str, value: &str) -> BTreeMap<String, String> {
    row_with(console, command, &[(column, value)]).await
}

/// The row whose columns have those values, once there is one.
async fn row_with(console: &Client, command: &str, wanted: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut found = None;
    let what = format!("{command}: {wanted:?}");
    let looked = async || {
        let is_it = |row: &BTreeMap<String, String>| {
            wanted.iter().all(|(column, value)| row.get(*column).is_some_and(|it| it == value))
        };
        shown(console, command).await.into_iter().find(is_it)
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while found.is_none() {
        assert!(
            std::time::Instant::now() < deadline,
            "waited in vain for {what} in {:?}",
            shown(console, command).await
        );
        found = looked().await;
    }
    found.expect("a row")
}

/// The row of SHOW POOLS for `postgres` on that database.
async fn pool_of(console: &Client, database: &str) -> BTreeMap<String, String> {
    let rows = shown(console, "show pools").await;
    let found = rows.iter().find(|row| row["database"] == database && row["user"] == "postgres");
    found.unwrap_or_else(|| panic!("no pool in {rows:?}")).clone()
}

/// The SQLSTATE that a statement fails with.
async fn code(client: &Client, statement: &str) -> String {
    let error = client.simple_query(statement).await.expect_err(statement);
    error.code().unwrap_or_else(|| panic!("{statement}: {error:?}")).code().to_owned()
}
