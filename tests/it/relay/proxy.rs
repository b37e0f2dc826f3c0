//! A pgherd of the test's own in this process, and a look behind it: every server connection, against what pgherd believes of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgherd::app::{self, Running};
use pgherd::backend::pool::{Lease, Pool};
use pgherd::backend::server::ServerConn;
use pgherd::config;

use crate::harness::wire::WireClient;
use crate::harness::{self, Database, eventually};

/// How long anything may take to settle.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running pgherd before one database.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    pub(crate) database: Database,
    running: Running,
}

impl Proxy {
    /// Before a database of its own. `pool` holds more keys of its `pool` table, such as `max_connections = 2`.
    pub(crate) async fn start(pool: &str) -> Self {
        Self::before(harness::fresh_database().await, pool).await
    }

    /// Before that database.
    pub(crate) async fn before(database: Database, pool: &str) -> Self {
        let address = database.address();
        Self::at(database, &address, pool).await
    }

    /// Before that database, reached by that connection string.
    pub(crate) async fn at(database: Database, address: &str, pool: &str) -> Self {
        Self::with(database, address, pool, "").await
    }

    /// The same with more TOML.
    pub(crate) async fn with(database: Database, address: &str, pool: &str, more: &str) -> Self {
        let text = format!(
            "threads = 3\n[listen]\naddress = \"127.0.0.1:0\"\n[[database]]\nname = \"{}\"\nprimary = \"{address}\"\n\
             pool = {{ min_connections = 0, {pool} }}\n[[user]]\nname = \"postgres\"\nauth = \"trust\"\n{more}",
            database.name
        );
        let loaded = config::parse(&text, Path::new("proxy.toml"), harness::ground().folder(), &|_| None);
        let config = loaded.unwrap_or_else(|faults| panic!("{faults}\n{text}")).config;
        let running = app::start(Arc::new(config), None).await.expect("pgherd starts");
        Self { port: running.address().port(), database, running }
    }

    /// A raw client, logged in as `postgres`.
    pub(crate) async fn wire(&self) -> WireClient {
        WireClient::login(self.port, "postgres", &self.database.name).await
    }

    /// A raw client with startup parameters, after its greeting; the greeting's messages.
    pub(crate) async fn wire_with(&self, parameters: &[(&str, &str)]) -> (WireClient, Vec<harness::wire::Message>) {
        let mut client = WireClient::bare(self.port).await;
        let own = [("user", "postgres"), ("database", self.database.name.as_str())];
        client.startup(0x0003_0000, &[&own[..], parameters].concat()).await;
        let greeting = client.until_ready().await;
        (client, greeting)
    }

    /// A client by tokio-postgres.
    pub(crate) async fn client(&self) -> tokio_postgres::Client {
        harness::connect(&self.conninfo()).await
    }

    /// A libpq connection string.
    pub(crate) fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={}", self.port, self.database.name)
    }

    /// Its only pool, once a client has come.
    pub(crate) fn pool(&self) -> Arc<Pool> {
        let pools = self.running.databases()[0].pools();
        Arc::clone(&pools.first().expect("a client has come").1)
    }

    /// Waits until this query is answered from the cache.
    pub(crate) async fn caches(&self, query: &str) {
        let client = self.client().await;
        let hits = || {
            let databases = self.running.databases();
            let stats = databases[0].cache.as_ref().expect("a cache").stats();
            stats.memory_hits + stats.redis_hits
        };
        eventually(PATIENCE, "the cache answers", || async {
            let before = hits();
            client.simple_query(query).await.expect("an answer");
            hits() > before
        })
        .await;
    }

    /// Waits until no client holds a server connection.
    pub(crate) async fn at_rest(&self) {
        let pool = self.pool();
        eventually(PATIENCE, "every server connection is given back", async || pool.state().active == 0).await;
    }

    /// Waits until nobody holds a server connection, takes all of them, and compares each with what pgherd believes of it.
    pub(crate) async fn examine(&self) {
        self.at_rest().await;
        let pool = self.pool();
        let mut leases = Vec::new();
        for _ in 0..pool.state().max {
            let mut lease = pool.acquire().await.expect("a server connection");
            // One that was killed a moment ago may not have heard of it yet.
            while lease.server().run("").await.is_err() {
                lease = pool.acquire().await.expect("a server connection");
            }
            leases.push(lease);
        }
        for lease in &mut leases {
            examine(lease.server()).await;
        }
        assert!(pool.state().connections <= pool.state().max, "{:?}", pool.state());
        leases.into_iter().for_each(Lease::release);
        assert_eq!(pool.state().active, 0);
    }

    /// Spreads its clients over so many threads.
    pub(crate) fn use_threads(&self, count: usize) {
        self.running.use_threads(count);
    }

    /// How often one of them has moved to another.
    pub(crate) fn moves(&self) -> u64 {
        self.running.metrics().moves.get()
    }

    /// What the shared listener does, once somebody has listened.
    pub(crate) fn listener(&self) -> Option<pgherd::backend::listener::Figures> {
        self.running.databases()[0].listener_figures()
    }

    /// Has it leak between sessions.
    #[cfg(feature = "faults")]
    pub(crate) fn leaks(&self, leak: Option<pgherd::session::context::Leak>) {
        *self.running.databases()[0].leak.lock() = leak;
    }

    /// Ends it in its own time.
    pub(crate) async fn drain(self, patience: Duration) {
        self.running.drain(patience).await;
    }

    /// Ends it now.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }
}

/// What a session may leave behind, as SQL that must return nothing.
const LEFTOVERS: [(&str, &str); 4] = [
    ("advisory lock", "select objid from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'"),
    ("temporary object", "select relname from pg_class where relnamespace = pg_my_temp_schema()"),
    ("cursor", "select name from pg_cursors"),
    ("listening channel", "select * from pg_listening_channels()"),
];

/// A value as `encode(convert_to(...), 'hex')` shows it, whatever the connection's encoding.
fn hex(value: &str) -> String {
    value.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares one server connection's session with what pgherd believes of it.
pub(crate) async fn examine(server: &mut ServerConn) {
    assert!(server.is_reusable(), "{server:?}");
    let believed: BTreeMap<String, String> =
        server.settings.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut held: Vec<String> = server.held.names().map(str::to_owned).collect();
    held.sort();

    let settings = "select lower(name), encode(convert_to(current_setting(name), 'UTF8'), 'hex') from pg_settings
                       where source = 'session' and setting is distinct from reset_val";
    for row in server.run(settings).await.expect("settings") {
        let (name, value) = (row[0].clone().expect("name"), row[1].clone().expect("value"));
        assert_eq!(
            believed.get(&name).map(|value| hex(value)),
            Some(value),
            "{name} is set on the server; pgherd believes {believed:?}"
        );
    }
    for (name, value) in &believed {
        let sql = format!("select encode(convert_to(current_setting('{name}'), 'UTF8'), 'hex')");
        let rows = server.run(&sql).await.expect("a setting");
        assert_eq!(rows[0][0], Some(hex(value)), "{name} is believed to be set to {value}");
    }
    let role = server.run("select current_setting('role')").await.expect("role")[0][0].clone().expect("role");
    assert_eq!(role, believed.get("role").cloned().unwrap_or_else(|| "none".into()), "role");
    let user = server.run("select session_user").await.expect("a user")[0][0].clone().expect("a user");
    assert_eq!(
        user,
        believed.get("session_authorization").cloned().unwrap_or_else(|| "postgres".into()),
        "session_user"
    );
    let rows = server.run("select name from pg_prepared_statements order by 1").await.expect("statements");
    let names: Vec<String> = rows.into_iter().filter_map(|row| row[0].clone()).collect();
    let mut names_sorted = names;
    names_sorted.sort();
    assert_eq!(names_sorted, held, "prepared statements against those believed to be held");
    for (what, sql) in LEFTOVERS {
        let rows = server.run(sql).await.expect(what);
        assert!(rows.is_empty(), "{what} left behind: {rows:?}");
    }
}
