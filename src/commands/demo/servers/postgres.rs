//! A throw-away PostgreSQL server: started from a copied template, stopped, killed, restarted, replicated.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::supervisor::Supervisor;
use super::{Ground, ServerError, free_port};

/// What a server is to be like, beyond the defaults.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
    hba: Option<String>,
    tls: Option<TlsFiles>,
    own_initdb: bool,
}

/// What a server needs to speak TLS, as PEM texts.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// The authority that client certificates are checked against.
    pub ca: String,
}

impl PostgresOptions {
    /// Sets a parameter of postgresql.conf, in place of any default of ours.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Replaces pg_hba.conf, which otherwise trusts every local connection.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.to_owned());
        self
    }

    /// Turns TLS on.
    #[must_use]
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Runs `initdb` for this server alone, so that its system identifier differs from its siblings'.
    #[must_use]
    pub fn own_initdb(mut self) -> Self {
        self.own_initdb = true;
        self
    }
}

/// How a server is stopped (PostgreSQL manual, `pg_ctl stop`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends sessions, writes a checkpoint.
    Fast,
    /// Ends at once; the next start recovers.
    Immediate,
}

/// A running (or stopped) throw-away server. Dropping it stops it and removes its data.
#[derive(Debug)]
pub struct PostgresServer {
    // Dropped before the ground, whose keeper waits for the servers' folders to go.
    supervisor: Mutex<Supervisor>,
    folder: PathBuf,
    port: u16,
    ground: Arc<Ground>,
}

/// Fast and small: nothing here needs to survive a power cut.
const DEFAULTS: &[(&str, &str)] = &[
    ("listen_addresses", "'127.0.0.1'"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("max_connections", "200"),
    ("max_prepared_transactions", "20"),
    ("shared_buffers", "64MB"),
    ("logging_collector", "off"),
    ("log_line_prefix", "'%m [%p] %q%u@%d '"),
];

impl PostgresServer {
    /// Starts a server on a free port of 127.0.0.1 and waits until it takes connections. User `postgres` needs no password.
    ///
    /// # Errors
    /// The server does not start; the tail of its log is in the text.
    pub fn start(ground: &Arc<Ground>, options: &PostgresOptions) -> Result<Self, ServerError> {
        let mut result = Self::try_start(ground, options);
        // Somebody else may have taken the port between our look and the server's.
        for _ in 0..3 {
            match result {
                Err(ServerError(text)) if text.contains("could not bind") => result = Self::try_start(ground, options),
                other => return other,
            }
        }
        result
    }

    fn try_start(ground: &Arc<Ground>, options: &PostgresOptions) -> Result<Self, ServerError> {
        let folder = ground.server_folder("pg")?;
        let data = folder.join("data");
        if options.own_initdb {
            ground.initdb(&data)?;
        } else {
            let template = ground.template()?;
            Ground::run(ground.command("cp").arg("-Rp").arg(template).arg(&data))?;
        }
        Self::launch(ground, folder, options)
    }

    /// A streaming replica of this server, from a copy of its data while it runs; waits until it streams.
    ///
    /// # Errors
    /// The copy fails, the replica does not start, or does not stream in time.
    pub fn replica(&self, options: &PostgresOptions) -> Result<Self, ServerError> {
        let folder = self.ground.server_folder("pg")?;
        let data = folder.join("data");
        let label = self.back_up(&data)?;
        self.ground.write(&data.join("backup_label"), &label)?;
        self.ground.write(&data.join("standby.signal"), "")?;
        let primary = format!("{} application_name={}", self.conninfo("postgres"), name_of(&folder));
        self.streaming(folder, &options.clone().set("primary_conninfo", primary))
    }

    /// The same by `pg_basebackup` and that connection string, which may lead here through something.
    ///
    /// # Errors
    /// The backup or the start failed, or the replica does not stream.
    pub fn replica_through(&self, conninfo: &str, options: &PostgresOptions) -> Result<Self, ServerError> {
        let folder = self.ground.server_folder("pg")?;
        let mut backup = self.ground.command(self.ground.binaries().postgres_program("pg_basebackup"));
        backup.arg("-d").arg(format!("{conninfo} application_name={}", name_of(&folder)));
        backup.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"]).arg(folder.join("data"));
        Ground::run(&mut backup)?;
        self.streaming(folder, options)
    }

    fn streaming(&self, folder: PathBuf, options: &PostgresOptions) -> Result<Self, ServerError> {
        let replica = Self::launch(&self.ground, folder, options)?;
        replica.wait_for(
            "select count(*) from pg_stat_wal_receiver where status = 'streaming'",
            "1",
            "the replica does not stream",
        )?;
        Ok(replica)
    }

    /// Copies the data as the manual's low-level backup does (26.3.3), which needs no program that not every distribution of the
    /// server has; returns the backup's label.
    fn back_up(&self, to: &Path) -> Result<String, ServerError> {
        let conninfo = self.conninfo("postgres");
        let mut copy = self.ground.command("cp");
        copy.arg("-Rp").arg(self.folder.join("data")).arg(to);
        let label = in_a_runtime(async move {
            let (client, connection) =
                tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.map_err(failed)?;
            let connection = tokio::spawn(connection);
            client.batch_execute("select pg_backup_start('replica', true)").await.map_err(failed)?;
            Ground::run(&mut copy)?;
            let row = client.query_one("select labelfile from pg_backup_stop(false)", &[]).await.map_err(failed)?;
            connection.abort();
            Ok(row.get(0))
        })?;
        for left in ["postmaster.pid", "postmaster.opts"] {
            let path = to.join(left);
            fs::remove_file(&path)
                .map_err(|error| ServerError::io(format!("cannot remove {}", path.display()), &error))?;
        }
        Ok(label)
    }

    fn launch(ground: &Arc<Ground>, folder: PathBuf, options: &PostgresOptions) -> Result<Self, ServerError> {
        let (data, port) = (folder.join("data"), free_port()?);
        configure(ground, &folder, port, options)?;
        let program = ground.binaries().postgres_program("postgres");
        let command = [&*program.to_string_lossy(), "-D", &*data.to_string_lossy()];
        let supervisor = Supervisor::new(ground, &folder, &command, "QUIT")?;
        let server = Self { supervisor: Mutex::new(supervisor), folder, port, ground: ground.clone() };
        server.up()?;
        Ok(server)
    }

    fn up(&self) -> Result<(), ServerError> {
        let pid_file = self.folder.join("data/postmaster.pid");
        self.supervisor().start(|pid| is_ready(&pid_file, pid))
    }

    /// Stops the server and waits for its end; its data stay.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop(&self, mode: StopMode) -> Result<(), ServerError> {
        self.supervisor().stop(match mode {
            StopMode::Fast => "INT",
            StopMode::Immediate => "QUIT",
        })
    }

    /// Kills the server as a crash would: SIGKILL to the postmaster, whose children then notice. The next start recovers.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn kill9(&self) -> Result<(), ServerError> {
        self.supervisor().stop("KILL")
    }

    /// Stops the server if it runs, and starts it on the same port.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&self, mode: StopMode) -> Result<(), ServerError> {
        self.stop(mode)?;
        // After a kill, orphaned children hold the old shared memory for some milliseconds and the new postmaster refuses to start.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.up() {
                Err(ServerError(text)) if text.contains("shared memory") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return other,
            }
        }
    }

    /// Runs statements as `postgres` on a connection of its own and returns the text of the last result's rows.
    /// Blocking, and safe to call from async code: it works on a thread of its own.
    ///
    /// # Errors
    /// The server cannot be reached or a statement fails.
    pub fn sql(&self, dbname: &str, statements: &str) -> Result<Vec<Vec<Option<String>>>, ServerError> {
        let (conninfo, statements) = (self.conninfo(dbname), statements.to_owned());
        in_a_runtime(async move { run_statements(&conninfo, &statements).await.map_err(failed) })
    }

    /// Asks again and again until the query's first value is `wanted`; at most 30 seconds.
    ///
    /// # Errors
    /// The value did not come in time: `otherwise` and the server's log are in the text.
    pub fn wait_for(&self, query: &str, wanted: &str, otherwise: &str) -> Result<(), ServerError> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let rows = self.sql("postgres", query)?;
            if rows.first().and_then(|row| row.first()).is_some_and(|value| value.as_deref() == Some(wanted)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ServerError(format!("{otherwise}; its log ends with:\n{}", self.log_tail())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A libpq connection string over TCP.
    pub fn conninfo(&self, dbname: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={dbname}", self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// The postmaster's process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.supervisor().pid()
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self) -> String {
        self.supervisor().log_tail()
    }

    /// The server's whole log so far.
    pub fn log(&self) -> String {
        let path = self.supervisor().log();
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    fn supervisor(&self) -> MutexGuard<'_, Supervisor> {
        self.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Appends to postgresql.conf, where the last value counts: also over those that a replica copied from its primary.
fn configure(ground: &Ground, folder: &Path, port: u16, options: &PostgresOptions) -> Result<(), ServerError> {
    let data = folder.join("data");
    let path = data.join("postgresql.conf");
    let mut text = fs::read_to_string(&path)
        .map_err(|error| ServerError::io(format!("cannot read {}", path.display()), &error))?;
    let mut add = |name: &str, value: &str| text.push_str(&format!("{name} = {value}\n"));
    DEFAULTS.iter().for_each(|(name, value)| add(name, value));
    add("port", &port.to_string());
    add("unix_socket_directories", &format!("'{}'", folder.display()));
    if let Some(files) = &options.tls {
        for (name, pem) in [("server.crt", &files.cert), ("server.key", &files.key), ("root.crt", &files.ca)] {
            ground.write(&data.join(name), pem)?;
        }
        add("ssl", "on");
        add("ssl_ca_file", "'root.crt'");
    }
    options.settings.iter().for_each(|(name, value)| add(name, &format!("'{}'", value.replace('\'', "''"))));
    ground.write(&path, &text)?;
    options.hba.as_ref().map_or(Ok(()), |lines| ground.write(&data.join("pg_hba.conf"), lines))
}

/// The postmaster writes its state into line 8 of its lock file, as `pg_ctl` reads it; line 1 tells ours from one left by a crash.
fn is_ready(pid_file: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    let mut lines = text.lines().map(str::trim);
    lines.next() == Some(pid.to_string().as_str()) && matches!(lines.nth(6), Some("ready" | "standby"))
}

/// Blocks until that is done, on a thread of its own: whoever asks may be in a runtime already.
fn in_a_runtime<T: Send + 'static>(
    work: impl Future<Output = Result<T, ServerError>> + Send + 'static,
) -> Result<T, ServerError> {
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| ServerError::io("cannot build a runtime", &error))?.block_on(work)
    });
    worker.join().unwrap_or_else(|_| Err(ServerError("the query's thread panicked".to_owned())))
}

async fn run_statements(conninfo: &str, statements: &str) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    let mut rows = Vec::new();
    for message in client.simple_query(statements).await? {
        match message {
            tokio_postgres::SimpleQueryMessage::RowDescription(_) => rows.clear(),
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
            }
            _ => {}
        }
    }
    connection.abort();
    Ok(rows)
}

fn failed(error: tokio_postgres::Error) -> ServerError {
    ServerError(match error.as_db_error() {
        Some(db) => format!("{}: {} ({})", db.severity(), db.message(), db.code().code()),
        None => format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()),
    })
}
