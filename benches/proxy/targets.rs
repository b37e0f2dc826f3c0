//! What is measured: PostgreSQL itself, and PgBouncer and pgherd in front of it as processes of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use pgherd::auth::scram::{DEFAULT_ITERATIONS, ScramKeys, ScramVerifier};
use pgherd::commands::demo::servers::{Ground, PostgresServer, ServerError, Supervisor, free_port};

use crate::client::Door;
use crate::forwarder::Forwarder;
use crate::harness::certificates;

/// Server connections that each proxy may open.
const POOL: u32 = 16;
/// Clients that each proxy lets in.
const MAX_CLIENTS: u32 = 15_000;
/// The user that logs in by SCRAM.
const SCRAM_USER: &str = "app";
const PASSWORD: &[u8] = b"secret";
const SALT: &[u8] = b"sixteen bytes ok";

/// Which way statements go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Target {
    /// PostgreSQL itself.
    Direct,
    /// Bytes copied both ways, and nothing else: what any proxy takes at least. Each client has a server connection of its own.
    Forwarder,
    Pgbouncer,
    Pgherd,
}

/// How clients come in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entrance {
    pub scram: bool,
    pub tls: bool,
}

/// Something with a port to measure; a proxy also has a process.
pub struct Running {
    pub port: u16,
    process: Option<Supervisor>,
    forwarder: Option<Forwarder>,
}

impl Running {
    /// Processor time that the proxy has used: nanoseconds from its threads' schedstat, or hundredths of seconds from its stat.
    pub fn cpu_time(&self) -> Option<Duration> {
        if let Some(forwarder) = &self.forwarder {
            return forwarder.cpu_time();
        }
        let pid = self.pid()?;
        cpu_time(pid).map(|own| own + children(pid).into_iter().filter_map(cpu_time).sum::<Duration>())
    }

    /// Processor time since an earlier [`Running::cpu_time`], in seconds.
    pub fn cpu_since(&self, before: Option<Duration>) -> Option<f64> {
        Some(self.cpu_time()?.saturating_sub(before?).as_secs_f64())
    }

    /// The proxy's resident memory in KiB.
    pub fn resident_kib(&self) -> Option<f64> {
        resident_kib(self.pid()?)
    }

    /// The proxy's process.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Supervisor::pid)
    }
}

/// Processor time that a process has used.
fn cpu_time(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of_thread =
        |path: &Path| -> Option<u64> { fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok() };
    let nanoseconds: Option<u64> = threads.flatten().map(|entry| of_thread(&entry.path().join("schedstat"))).sum();
    nanoseconds.filter(|&sum| sum > 0).map(Duration::from_nanos).or_else(|| {
        let fields = stat(pid)?;
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 10))
    })
}

/// The fields of a process' stat behind its name.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// The processes that a process has started; some proxies have one for each client.
fn children(pid: u32) -> Vec<u32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&child| stat(child).is_some_and(|fields| fields.get(1).is_some_and(|of| of.parse() == Ok(pid))))
        .collect()
}

/// A program of the system's, wherever it is installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    folders.push(PathBuf::from("/usr/sbin"));
    folders.iter().map(|folder| folder.join(name)).find(|path| path.exists())
}

/// A process' resident memory in KiB.
pub fn resident_kib(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Starts what is to be measured.
pub struct Yard<'a> {
    pub ground: &'a Arc<Ground>,
    pub server: &'a PostgresServer,
    /// The pgherd binary.
    pub pgherd: &'a Path,
    /// pgherd's threads, if they are not its default.
    pub threads: Option<usize>,
}

impl Yard<'_> {
    /// Starts all of them, as far as they are there.
    ///
    /// # Errors
    /// One of them does not start.
    pub fn start(&self, targets: &[Target], entrance: Entrance) -> Result<Vec<(Target, Running)>, ServerError> {
        let mut running = Vec::new();
        for &target in targets {
            running.extend(self.start_one(target, entrance)?.map(|started| (target, started)));
        }
        Ok(running)
    }

    fn start_one(&self, target: Target, entrance: Entrance) -> Result<Option<Running>, ServerError> {
        match target {
            Target::Direct => Ok(Some(Running { port: self.server.port(), process: None, forwarder: None })),
            Target::Forwarder => {
                let forwarder = Forwarder::start(self.server.port())?;
                Ok(Some(Running { port: forwarder.port, process: None, forwarder: Some(forwarder) }))
            }
            Target::Pgbouncer => self.start_pgbouncer(entrance),
            Target::Pgherd => self.start_pgherd(entrance, "enabled = true").map(Some),
        }
    }

    /// Transaction pooling, TCP without TLS to the server: as for pgherd.
    fn start_pgbouncer(&self, entrance: Entrance) -> Result<Option<Running>, ServerError> {
        let Some(program) = installed("pgbouncer") else {
            eprintln!("PgBouncer is not installed (apt-get install pgbouncer): it is left out");
            return Ok(None);
        };
        let (folder, port) = (self.ground.server_folder("pgbouncer")?, free_port()?);
        let users = folder.join("userlist.txt");
        let text = format!("\"postgres\" \"\"\n\"{SCRAM_USER}\" \"{}\"\n", scram_secret());
        self.ground.write(&users, &text)?;
        let config = folder.join("pgbouncer.ini");
        let auth = if entrance.scram { "scram-sha-256" } else { "trust" };
        let tls = match entrance.tls {
            true => {
                let (cert, key) = self.write_certificate(&folder)?;
                format!(
                    "client_tls_sslmode = allow\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\n",
                    cert.display(),
                    key.display()
                )
            }
            false => String::new(),
        };
        let text = format!(
            "[databases]\nbench = host=127.0.0.1 port={} dbname=bench user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = {auth}\n\
             auth_file = {}\n{tls}pool_mode = transaction\ndefault_pool_size = {POOL}\nmin_pool_size = {POOL}\n\
             max_client_conn = {MAX_CLIENTS}\nlog_connections = 0\nlog_disconnections = 0\n",
            self.server.port(),
            users.display()
        );
        self.ground.write(&config, &text)?;
        self.run(&folder, &[&program.to_string_lossy(), &config.to_string_lossy()], port, entrance).map(Some)
    }

    /// pgherd with that TOML in `[cache]`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_pgherd(&self, entrance: Entrance, cache: &str) -> Result<Running, ServerError> {
        self.start_pgherd_on("bench", entrance, cache)
    }

    /// The same in front of another database of the server: one that somebody caches without Redis is his alone.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_pgherd_on(&self, database: &str, entrance: Entrance, cache: &str) -> Result<Running, ServerError> {
        let (folder, port) = (self.ground.server_folder("pgherd")?, free_port()?);
        let threads = self.threads.map(|threads| format!("threads = {threads}\n")).unwrap_or_default();
        let tls = match entrance.tls {
            true => {
                let (cert, key) = self.write_certificate(&folder)?;
                format!("tls = {{ mode = \"prefer\", cert = \"{}\", key = \"{}\" }}\n", cert.display(), key.display())
            }
            false => String::new(),
        };
        let text = format!(
            "{threads}[listen]\naddress = \"127.0.0.1:{port}\"\nmax_clients = {MAX_CLIENTS}\n{tls}\n\
             [pool]\nmode = \"transaction\"\nmax_connections = {POOL}\nmin_connections = {POOL}\n\n\
             [[database]]\nname = \"bench\"\n\
             primary = \"host=127.0.0.1 port={} dbname={database} user=postgres sslmode=disable\"\n\n\
             [[user]]\nname = \"postgres\"\nauth = \"trust\"\n\n\
             [[user]]\nname = \"{SCRAM_USER}\"\nscram_secret = \"{}\"\n\n\
             [admin]\nusers = [\"postgres\"]\n\n[cache]\n{cache}\n\n[telemetry]\nlog = \"warn\"\n",
            self.server.port(),
            scram_secret()
        );
        self.serve(&folder, &text, port, entrance)
    }

    /// pgherd in front of what `toml` says, its own port aside.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_pgherd_of(&self, toml: &str) -> Result<Running, ServerError> {
        let (folder, port) = (self.ground.server_folder("pgherd")?, free_port()?);
        let threads = self.threads.map(|threads| format!("threads = {threads}\n")).unwrap_or_default();
        let text = format!("{threads}[listen]\naddress = \"127.0.0.1:{port}\"\n{toml}");
        self.serve(&folder, &text, port, Entrance::default())
    }

    fn serve(&self, folder: &Path, toml: &str, port: u16, entrance: Entrance) -> Result<Running, ServerError> {
        // A copy, because the unprivileged user may not be able to look into the build's folder.
        let program = folder.join("pgherd");
        fs::copy(self.pgherd, &program)
            .map_err(|error| ServerError(format!("cannot copy {}: {error}", self.pgherd.display())))?;
        let config = folder.join("proxy.toml");
        self.ground.write(&config, toml)?;
        let command = [&*program.to_string_lossy(), "serve", "--config", &*config.to_string_lossy()];
        self.run(folder, &command, port, entrance)
    }

    /// Runs a program in a folder of its own until somebody can log in to that port.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn run(&self, folder: &Path, command: &[&str], port: u16, entrance: Entrance) -> Result<Running, ServerError> {
        let mut process = Supervisor::new(self.ground, folder, command, "KILL")?;
        let door = door(port, entrance);
        process.start(|_| door.enter().and_then(|mut client| client.query("select 1")).is_ok())?;
        Ok(Running { port, process: Some(process), forwarder: None })
    }

    fn write_certificate(&self, folder: &Path) -> Result<(PathBuf, PathBuf), ServerError> {
        let (cert, key) = (folder.join("server.crt"), folder.join("server.key"));
        self.ground.write(&cert, &certificates().server.cert)?;
        self.ground.write(&key, &certificates().server.key)?;
        Ok((cert, key))
    }
}

/// The way in to something that was started for that entrance.
pub fn door(port: u16, entrance: Entrance) -> Door {
    let tls = entrance.tls.then(|| crate::client::tls_config(&certificates().ca));
    let (database, keys) = ("bench".to_owned(), || ScramKeys::derive(PASSWORD, SALT, DEFAULT_ITERATIONS));
    match entrance.scram {
        true => Door { port, user: SCRAM_USER, database, keys: Some(Arc::new(keys())), tls },
        false => Door { port, user: "postgres", database, keys: None, tls },
    }
}

fn scram_secret() -> String {
    ScramVerifier::derive(PASSWORD, SALT, DEFAULT_ITERATIONS).to_string()
}
