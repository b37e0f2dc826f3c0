//! A pgherd that is run: bounds and turns, reloads, ends, upgrades, and what tools made for PgBouncer make of it.

mod ends;
mod limits;
mod pause;
mod pgbouncer;
mod reload;
mod turns;
mod upgrade;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::harness::Database;

const PATIENCE: Duration = Duration::from_secs(20);

/// A `[[database]]` of that name and `[[user]]`s, who all log in to the server as `postgres`; `boss` administers.
fn toml(database: &Database, pool: &str, users: &[&str], more: &str) -> String {
    let users: String = users.iter().map(|user| format!("[[user]]\nname = \"{user}\"\nauth = \"trust\"\n")).collect();
    format!(
        "[pool]\nmin_connections = 0\n{pool}\n[[database]]\nname = \"{}\"\nprimary = \"{}\"\n{users}\
         [[user]]\nname = \"boss\"\nauth = \"trust\"\n[admin]\nusers = [\"boss\"]\n{more}\n",
        database.name,
        database.conninfo()
    )
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

/// The row of SHOW LIMITS.
async fn limit(console: &Client, limit: &str) -> BTreeMap<String, String> {
    let rows = shown(console, "show limits").await;
    rows.iter().find(|row| row["limit"] == limit).unwrap_or_else(|| panic!("{limit} in {rows:?}")).clone()
}

/// SQLSTATE, detail and hint of a refusal.
fn told(error: &tokio_postgres::Error) -> (String, String, String) {
    let said = error.as_db_error().unwrap_or_else(|| panic!("not said by anybody: {error:?}"));
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    (said.code().code().to_owned(), text(said.detail()), text(said.hint()))
}
