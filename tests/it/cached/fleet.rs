//! pgherds in this process, in front of one database, that share one Redis.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgherd::app::{self, Running};
use pgherd::cache::CacheStatsSnapshot;
use pgherd::commands::demo::servers::RedisServer;
use pgherd::config::{self, model::Config};
use tokio_postgres::Client;

use crate::harness::{Database, eventually, ground, try_connect};

/// What lets a story steer a fleet over HTTP.
pub(super) const TOKEN: &str = "a-token-for-stories";

/// What to start a fleet with.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// Login roles, trusted.
    pub(super) users: Vec<String>,
    /// More TOML in `[[database]]`.
    pub(super) database: String,
    /// More TOML in `[cache]`.
    pub(super) cache: String,
    /// URLs of Redis, one for each pgherd; none is one pgherd without Redis.
    pub(super) redis: Vec<String>,
}

/// Running pgherds.
pub(super) struct Fleet {
    herds: Vec<Running>,
    database: String,
}

impl Fleet {
    /// Starts as many pgherds as there are Redis URLs, one without Redis if there are none, and waits until they cache.
    pub(super) async fn start(database: &Database, plan: &Plan) -> Self {
        let mut fleet = Self { herds: Vec::new(), database: database.name.clone() };
        let urls = if plan.redis.is_empty() { vec![None] } else { plan.redis.iter().map(Some).collect() };
        for url in urls {
            let config = Arc::new(configuration(database, plan, url.map(String::as_str)));
            let running = app::start(config, None).await;
            fleet.herds.push(running.unwrap_or_else(|error| panic!("pgherd does not start: {error:?}")));
        }
        fleet
    }

    pub(super) fn len(&self) -> usize {
        self.herds.len()
    }

    /// A libpq connection string through one of them.
    pub(super) fn conninfo(&self, herd: usize, user: &str) -> String {
        let port = self.herds[herd].address().port();
        format!("host=127.0.0.1 port={port} user={user} dbname={}", self.database)
    }

    /// A connection through one of them. While pgherd reads the catalog for the first time it may have to wait.
    pub(super) async fn client(&self, herd: usize, user: &str) -> Client {
        self.client_with(herd, user, "").await
    }

    /// The same with more in the connection string.
    pub(super) async fn client_with(&self, herd: usize, user: &str, more: &str) -> Client {
        let conninfo = format!("{} {more}", self.conninfo(herd, user));
        try_connect(&conninfo).await.unwrap_or_else(|error| panic!("cannot connect to {conninfo}: {error:?}"))
    }

    /// The port of one of them.
    pub(super) fn port(&self, herd: usize) -> u16 {
        self.herds[herd].address().port()
    }

    /// Its console.
    pub(super) async fn console(&self, herd: usize) -> Client {
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=pgherd", self.port(herd));
        try_connect(&conninfo).await.expect("a console")
    }

    /// The head and body of an answer to an HTTP request to one of them.
    pub(super) async fn http(&self, herd: usize, request: &str, headers: &str) -> (String, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = self.herds[herd].http_address().expect("[listen] http is set");
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        let request =
            format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("read");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        (head.to_owned(), body.to_owned())
    }

    /// What a pgherd's cache has counted.
    pub(super) fn stats(&self, herd: usize) -> CacheStatsSnapshot {
        let databases = self.herds[herd].databases();
        databases.iter().find_map(|database| database.cache.as_ref().map(|cache| cache.stats())).unwrap_or_default()
    }

    /// Answers from the cache so far.
    pub(super) fn hits(&self) -> u64 {
        (0..self.len()).map(|herd| self.stats(herd)).map(|stats| stats.memory_hits + stats.redis_hits).sum()
    }

    /// Waits until each pgherd answers this query from its cache.
    pub(super) async fn warm(&self, user: &str, query: &str) {
        for herd in 0..self.len() {
            let client = self.client(herd, user).await;
            eventually(Duration::from_secs(30), "the cache answers", || async {
                let before = self.stats(herd);
                client.simple_query(query).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
                let after = self.stats(herd);
                after.memory_hits + after.redis_hits > before.memory_hits + before.redis_hits
            })
            .await;
        }
    }

    pub(super) async fn stop(self) {
        for herd in self.herds {
            herd.stop().await;
        }
    }
}

fn configuration(database: &Database, plan: &Plan, redis: Option<&str>) -> Config {
    let users: String =
        plan.users.iter().map(|name| format!("[[user]]\nname = \"{name}\"\nauth = \"trust\"\n")).collect();
    let redis = redis.map(|url| format!("redis = {{ url = \"{url}\", timeout = \"100ms\", lease = \"1s\" }}\n"));
    let (name, address) = (&database.name, database.address());
    let text = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n\
         [admin]\nusers = [\"postgres\"]\nhttp_token = \"{TOKEN}\"\n[pool]\nmin_connections = 4\nmax_connections = 30\n\
         [[database]]\nname = \"{name}\"\nprimary = \"{address}\"\n{}{users}\
         [cache]\nenabled = true\n{}\n{}",
        plan.database,
        plan.cache,
        redis.unwrap_or_default()
    );
    let loaded = config::parse(&text, Path::new("proxy.toml"), ground().folder(), &|_| None);
    loaded.unwrap_or_else(|faults| panic!("{faults}\n{text}")).config
}

/// A Redis of the test's own, or `None` where it is not installed.
pub(super) fn redis() -> Option<RedisServer> {
    let started = RedisServer::start(ground()).unwrap_or_else(|error| panic!("{error}"));
    if started.is_none() {
        assert!(std::env::var_os("CI").is_none(), "redis-server is not installed");
        eprintln!("NOT TESTED: redis-server is not installed");
    }
    started
}
