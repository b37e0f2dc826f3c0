//! One pgherd with its cache, and where its answers come from.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::fleet::{Fleet, Plan};
use crate::harness::wire::WireClient;
use crate::harness::{Database, fresh_database};

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// The cache.
    Cache,
    /// The primary; the cache kept it.
    Filled,
    /// The primary.
    Primary,
}

/// Rows of an answer, as text.
pub(super) type Rows = Vec<Vec<Option<String>>>;

/// A pgherd in front of a database of its own.
pub(super) struct Stage {
    pub(super) fleet: Fleet,
    pub(super) database: Database,
}

impl Stage {
    /// Sets the scene by `sql` and starts a pgherd that caches every read it can, for `postgres` and these users.
    pub(super) async fn set(sql: &str, users: &[&str]) -> Self {
        Self::with(fresh_database().await, sql, users, "olap_only = false").await
    }

    /// The same on that database, with that TOML in `[cache]`.
    pub(super) async fn with(database: Database, sql: &str, users: &[&str], cache: &str) -> Self {
        Self::with_database(database, sql, users, cache, "").await
    }

    /// The same with more TOML in `[[database]]`.
    pub(super) async fn with_database(database: Database, sql: &str, users: &[&str], cache: &str, more: &str) -> Self {
        database.execute(&format!("create table warm (a int); {sql}")).await;
        let users = ["postgres"].iter().chain(users).map(|name| (*name).to_owned()).collect();
        let plan = Plan { users, cache: cache.into(), database: more.into(), ..Plan::default() };
        let fleet = Fleet::start(&database, &plan).await;
        fleet.warm("postgres", "select count(*) from warm").await;
        Self { fleet, database }
    }

    pub(super) async fn client(&self, user: &str) -> Client {
        self.fleet.client(0, user).await
    }

    pub(super) async fn wire(&self) -> WireClient {
        WireClient::login(self.fleet.port(0), "postgres", &self.database.name).await
    }

    /// Asks by the simple protocol.
    pub(super) async fn ask(&self, client: &Client, sql: &str) -> (Rows, From) {
        let before = self.fleet.stats(0);
        let rows = rows(client, sql).await;
        (rows, self.since(&before))
    }

    /// Where the answers since then came from; exact while nobody else asks.
    pub(super) fn since(&self, before: &pgherd::cache::CacheStatsSnapshot) -> From {
        let after = self.fleet.stats(0);
        match (
            after.memory_hits + after.redis_hits > before.memory_hits + before.redis_hits,
            after.fills > before.fills,
        ) {
            (true, _) => From::Cache,
            (false, true) => From::Filled,
            (false, false) => From::Primary,
        }
    }

    /// Sees to it that a read is answered from the cache, and returns the answer.
    pub(super) async fn cached(&self, client: &Client, sql: &str) -> Rows {
        let (first, _) = self.ask(client, sql).await;
        for _ in 0..200 {
            let (again, from) = self.ask(client, sql).await;
            assert_eq!(again, first, "{sql}");
            if from == From::Cache {
                return again;
            }
            // What was written just now may still be settling, and DDL makes pgherd read the catalog again.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("{sql} is never answered from the cache: {:?} {:?}", self.why(client, sql).await, self.fleet.stats(0));
    }

    /// The code of the reason for the plan of a statement.
    pub(super) async fn why(&self, client: &Client, sql: &str) -> String {
        let told = rows(client, &format!("explain (route) {sql}")).await;
        let value = |row: &Vec<Option<String>>| row.get(1).cloned().flatten().unwrap_or_default();
        let of = |name: &str| told.iter().find(|row| row[0].as_deref() == Some(name)).map(value).unwrap_or_default();
        format!("{}: {}", of("plan"), of("reason"))
    }

    /// What PostgreSQL itself answers.
    pub(super) async fn truth(&self, sql: &str) -> Rows {
        rows(&self.database.client().await, sql).await
    }
}

/// The rows of all answers to a query string.
pub(super) async fn rows(client: &Client, sql: &str) -> Rows {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}
