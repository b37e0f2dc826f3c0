//! pgherd itself, in this process, on ports of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use pgherd::app::{self, Running};
use pgherd::config;
use tokio_postgres::Client;

use super::wire::WireClient;
use super::{Database, connect, ground};

/// A running pgherd. Stop it with [`Self::stop`] where the story is about its end.
pub struct Pgherd {
    running: Running,
    pub port: u16,
}

impl Pgherd {
    /// Starts on port 0 from a TOML text; `[listen]` is added if it has none.
    pub async fn start(toml: &str) -> Self {
        Self::try_start(toml).await.unwrap_or_else(|error| panic!("pgherd does not start: {error}\n{toml}"))
    }

    /// As [`Self::start`], for stories in which it must not.
    pub async fn try_start(toml: &str) -> Result<Self, String> {
        let listen = "[listen]\naddress = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n";
        let listen = if toml.contains("[listen]") { "" } else { listen };
        let text = format!("{toml}\n{listen}");
        let loaded = config::parse(&text, Path::new("proxy.toml"), ground().folder(), &|name| std::env::var(name).ok());
        let config = loaded.map_err(|faults| faults.to_string())?.config;
        let running = app::start(Arc::new(config), None).await.map_err(|error| format!("{error:?}"))?;
        let port = running.address().port();
        Ok(Self { running, port })
    }

    /// From a file, which `[listen]` must be in; it is watched for changes.
    pub async fn start_from(path: &Path) -> Self {
        let config = config::load(path).unwrap_or_else(|faults| panic!("{faults}"));
        let running = app::start(Arc::new(config), Some(path.to_path_buf())).await.expect("pgherd starts");
        let port = running.address().port();
        Self { running, port }
    }

    /// In front of one database, under the same name, for user `postgres` without a password. `rest` is more TOML, such as a
    /// `[cache]`; it may begin with keys of the `[[database]]`.
    pub async fn over(database: &Database, rest: &str) -> Self {
        let user = "[[user]]\nname = \"postgres\"\nauth = \"trust\"";
        let (name, conninfo) = (&database.name, database.conninfo());
        Self::start(&format!("[[database]]\nname = \"{name}\"\nprimary = \"{conninfo}\"\n{rest}\n\n{user}\n")).await
    }

    /// A connection by tokio-postgres as `postgres`.
    pub async fn client(&self, database: &str) -> Client {
        connect(&self.conninfo("postgres", database)).await
    }

    /// The same as another user.
    pub async fn client_as(&self, user: &str, database: &str) -> Client {
        connect(&self.conninfo(user, database)).await
    }

    /// A raw connection as `postgres`, logged in.
    pub async fn wire(&self, database: &str) -> WireClient {
        WireClient::login(self.port, "postgres", database).await
    }

    /// A libpq connection string through pgherd.
    pub fn conninfo(&self, user: &str, database: &str) -> String {
        format!("host=127.0.0.1 port={} user={user} dbname={database}", self.port)
    }

    /// Where `/metrics` and `/healthz` answer.
    pub fn http(&self) -> SocketAddr {
        self.running.http_address().expect("[listen] http is set")
    }

    /// The databases that it serves.
    pub fn databases(&self) -> Vec<Arc<pgherd::session::context::Database>> {
        self.running.databases()
    }

    /// The body of `/metrics`.
    pub async fn metrics(&self) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.http()).await.expect("connect");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.expect("send");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("read");
        text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).expect("a body")
    }

    /// The sum of a metric's samples whose labels contain `label`.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.metrics().await;
        let of_name = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        let of_name = of_name.filter(|(key, _)| key.split('{').next() == Some(name) && key.contains(label));
        of_name.filter_map(|(_, value)| value.parse::<f64>().ok()).sum()
    }

    /// Waits until a console asks for the end.
    pub async fn told_to_shut_down(&self) -> pgherd::admin::Shutdown {
        self.running.told_to_shut_down().await
    }

    /// Shuts it down and waits until it has.
    pub async fn stop(self) {
        self.running.stop().await;
    }
}
