//! `pgherd explain "SQL"`: which plan a statement would get and why, decided from the servers' catalogs without running it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use crate::backend::connect::Login;
use crate::backend::control;
use crate::catalog::load::{load, read_views};
use crate::catalog::model::Catalog;
use crate::catalog::partitions::{self, Partitions};
use crate::config;
use crate::config::model::{Config, Database, ServerAddress, User};
use crate::error::Error;
use crate::net::tls::ClientTls;
use crate::plan::rules::{self, Input, SessionView, Transaction};
use crate::plan::search_path::listed;
use crate::plan::{Plan, explain};
use crate::sql::Analyzer;

/// Arguments of `pgherd explain`.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The statement; `-` reads it from standard input.
    pub sql: String,
    /// The database, as clients name it; without it, the only one.
    #[arg(short, long)]
    pub database: Option<String>,
    /// The user; without it, the first who may connect to the database.
    #[arg(short, long)]
    pub user: Option<String>,
}

/// Prints the plan. Fails if the statement would be refused, or if nothing could be told.
pub fn main(path: &Path, arguments: &Arguments) -> ExitCode {
    let said = super::serve::runtime()
        .map_err(|error| format!("the runtime cannot be started: {error}"))
        .and_then(|runtime| runtime.block_on(Box::pin(run(path.to_path_buf(), arguments))));
    match said {
        Ok(explained) => {
            let _ = write!(io::stdout().lock(), "{}", table(&explained.rows));
            if explained.refused { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(problem) => {
            eprintln!("pgherd: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// A plan as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Property and value.
    pub rows: Vec<(String, String)>,
    /// Whether pgherd would refuse the statement.
    pub refused: bool,
}

/// Decides where the statement would run for a new session of that user, outside a transaction.
///
/// # Errors
/// The configuration's faults, a name that it does not have, or a server that cannot be asked; for people.
pub async fn run(path: PathBuf, arguments: &Arguments) -> Result<Explained, String> {
    let config = config::load(&path).map_err(|faults| faults.to_string())?;
    let sql = statement(&arguments.sql)?;
    let database = database_of(&config, arguments.database.as_deref())?;
    let user = user_of(&config, database, arguments.user.as_deref())?;
    let tls = ClientTls::new();
    let (primary, session) = ask(database, &database.primary, user, &tls).await?;
    let shards = match database.shards.first() {
        Some(shard) => Some(ask(database, shard, user, &tls).await?.0),
        None => None,
    };
    let coordinator = match &database.coordinator {
        Some(server) => Some(ask(database, server, user, &tls).await?.0),
        None => None,
    };
    let partitions = match database.split_scans {
        Some(_) => Some(sizes(database, user, &tls).await?),
        None => None,
    };
    let facts = Analyzer::new().facts(sql.as_bytes(), session.conforming_strings);
    let search_path = rules::resolve_search_path(&session.search_path, &session.role, &primary);
    let listed_path = listed(&session.search_path, &session.role);
    let view = SessionView {
        role: &session.role,
        search_path: &search_path,
        listed_path: &listed_path,
        in_transaction: Transaction::Outside,
        pinned: false,
        server_attached: false,
        has_temporary_objects: false,
        path_is_known: true,
        read_only: false,
        standard_conforming_strings: session.conforming_strings,
        same_encoding: session.server_is_utf8,
        text_is_plain: true,
    };
    let plan = rules::decide(&Input {
        facts: &facts,
        text: &sql,
        session: &view,
        catalog: Some(&primary),
        database,
        cache: &config.cache,
        fanout: &config.fanout,
        shards: shards.as_ref(),
        bound: None,
        coordinator: coordinator.as_ref().or(Some(&primary)),
        unstreamed: None,
        partitions: partitions.as_ref(),
    });
    let refused = matches!(plan, Plan::Refuse(_));
    let mut rows = vec![("database".into(), database.name.clone()), ("user".into(), user.name.clone())];
    rows.extend(explain::render(&plan, &facts, true));
    Ok(Explained { rows, refused })
}

fn statement(argument: &str) -> Result<String, String> {
    if argument != "-" {
        return Ok(argument.to_string());
    }
    io::read_to_string(io::stdin()).map_err(|error| format!("standard input cannot be read: {error}"))
}

fn database_of<'c>(config: &'c Config, name: Option<&str>) -> Result<&'c Arc<Database>, String> {
    let names = || config.databases.keys().cloned().collect::<Vec<_>>().join(", ");
    match name {
        Some(name) => config.databases.get(name).ok_or_else(|| format!("no database \"{name}\"; there is {}", names())),
        None if config.databases.len() > 1 => Err(format!("say which database with --database: {}", names())),
        None => config.databases.values().next().ok_or_else(|| "the configuration names no database".into()),
    }
}

fn user_of<'c>(config: &'c Config, database: &Database, name: Option<&str>) -> Result<&'c Arc<User>, String> {
    let may = |user: &&Arc<User>| user.databases.is_empty() || user.databases.contains(&database.name);
    let mut users = config.users.values().filter(may);
    let found = match name {
        Some(name) => users.find(|user| user.name == name),
        None => users.next(),
    };
    let who = name.map_or("no user".into(), |name| format!("user \"{name}\" does not exist or"));
    found.ok_or_else(|| format!("{who} may not connect to database \"{}\"", database.name))
}

/// What a new session on a server begins with.
struct NewSession {
    role: String,
    search_path: String,
    conforming_strings: bool,
    server_is_utf8: bool,
}

fn said(error: Error) -> String {
    let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
    format!("{}{cause}", error.message())
}

fn login(database: &Database, address: &ServerAddress, user: &User, tls: &ClientTls) -> Login {
    Login {
        user: address.user.clone().unwrap_or_else(|| user.name.clone()),
        password: address.password.clone().or_else(|| user.password.clone()),
        scram_keys: None,
        startup: Vec::new(),
        database: address.dbname.clone().unwrap_or_else(|| database.name.clone()),
        connect_timeout: address.connect_timeout.unwrap_or(database.pool.connect_timeout),
        tls: tls.clone(),
    }
}

/// How large the primary's partitions are.
async fn sizes(database: &Database, user: &User, tls: &ClientTls) -> Result<Partitions, String> {
    let login = login(database, &database.primary, user, tls);
    let control = control::connect(&database.primary, &login).await.map_err(said)?;
    partitions::load(&control.client).await.map_err(said)
}

async fn ask(
    database: &Database,
    address: &ServerAddress,
    user: &User,
    tls: &ClientTls,
) -> Result<(Catalog, NewSession), String> {
    let login = login(database, address, user, tls);
    let control = control::connect(address, &login).await.map_err(said)?;
    let mut catalog = load(&control.client).await.map_err(said)?;
    read_views(&control.client, &mut catalog).await.map_err(said)?;
    let sql = "SELECT current_user::text, current_setting('search_path'), \
         current_setting('standard_conforming_strings') = 'on', current_setting('server_encoding') = 'UTF8'";
    let row =
        control.client.query_one(sql, &[]).await.map_err(|error| format!("{address} does not answer: {error}"))?;
    let read = || {
        Ok::<_, tokio_postgres::Error>(NewSession {
            role: row.try_get(0)?,
            search_path: row.try_get(1)?,
            conforming_strings: row.try_get(2)?,
            server_is_utf8: row.try_get(3)?,
        })
    };
    let session = read().map_err(|error| format!("{address} does not say its settings: {error}"))?;
    Ok((catalog, session))
}

/// Two columns, the values below each other.
fn table(rows: &[(String, String)]) -> String {
    let width = rows.iter().map(|(property, _)| property.chars().count()).max().unwrap_or(0);
    let indent = " ".repeat(width + 2);
    rows.iter()
        .map(|(property, value)| format!("{property:<width$}  {}\n", value.replace('\n', &format!("\n{indent}"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(databases: &[&str]) -> Config {
        let mut text = String::from("[[user]]\nname = \"b\"\nauth = \"trust\"\ndatabases = [\"one\"]\n");
        text.push_str("[[user]]\nname = \"a\"\nauth = \"trust\"\ndatabases = []\n");
        for name in databases {
            text.push_str(&format!("[[database]]\nname = \"{name}\"\nprimary = \"host=x\"\n"));
        }
        let loaded = config::parse(&text, Path::new("x.toml"), Path::new("/"), &|_| None);
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config
    }

    #[test]
    fn the_database_need_not_be_said_where_there_is_one() {
        assert_eq!(database_of(&config(&["one"]), None).expect("the only one").name, "one");
        let two = config(&["one", "two"]);
        assert!(database_of(&two, None).expect_err("which?").contains("one, two"));
        assert_eq!(database_of(&two, Some("two")).expect("named").name, "two");
        assert!(database_of(&two, Some("three")).is_err());
    }

    #[test]
    fn the_user_must_be_allowed_in() {
        let config = config(&["one", "two"]);
        let two = database_of(&config, Some("two")).expect("named");
        assert_eq!(user_of(&config, two, None).expect("the first").name, "a");
        assert!(user_of(&config, two, Some("b")).expect_err("not allowed").contains("\"b\""));
    }

    #[test]
    fn values_stand_below_each_other() {
        let rows = [("plan".to_string(), "primary".to_string()), ("why".to_string(), "a\nb".to_string())];
        assert_eq!(table(&rows), "plan  primary\nwhy   a\n      b\n");
    }
}
