//! Shards on one machine: databases of one server, with pgherd in front of them together and of each by itself.

use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgherd::commands::demo::servers::ServerError;
use pgherd::wire::writer;

use crate::client::Door;
use crate::targets::{Entrance, Running, Yard, door, resident_kib};

/// How many shards there are where nothing else is said.
pub const SHARDS: usize = 4;
/// How often memory is looked at.
const LOOKING: Duration = Duration::from_millis(10);
/// Who writes down what transactions over several shards came to.
const DECIDER: &str = "decider";
const READ_BYTES: usize = 256 * 1024;

/// pgherd in front of shards.
pub struct Herd {
    pub running: Running,
    /// PostgreSQL's own port.
    server: u16,
}

/// A database of the shards together, and each shard by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Together,
    Alone(usize),
}

impl Place {
    fn database(self) -> String {
        match self {
            Self::Together => "herd".to_owned(),
            Self::Alone(shard) => shard_name(shard),
        }
    }
}

/// The database that is that shard.
pub fn shard_name(shard: usize) -> String {
    format!("shard{shard}")
}

impl Herd {
    /// Makes the shards' databases (`definitions` is run in each) and starts pgherd; `tables` are sharded tables and their keys.
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(yard: &Yard<'_>, definitions: &str, tables: &[(&str, &str)]) -> Result<Self, ServerError> {
        Self::start_with(yard, definitions, tables, &[], SHARDS)
    }

    /// The same with reference tables, over so many shards.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        yard: &Yard<'_>,
        definitions: &str,
        tables: &[(&str, &str)],
        references: &[&str],
        shards: usize,
    ) -> Result<Self, ServerError> {
        let role = format!(
            "do $$ begin if not exists (select from pg_roles where rolname = '{DECIDER}') then create role {DECIDER} login superuser; end if; end $$"
        );
        yard.server.sql("postgres", &role)?;
        for shard in 0..shards {
            let name = shard_name(shard);
            yard.server.sql("postgres", &format!("drop database if exists {name}"))?;
            yard.server.sql("postgres", &format!("create database {name}"))?;
            yard.server.sql(&name, definitions)?;
        }
        let running = yard.start_pgherd_of(&toml(yard, tables, references, shards))?;
        Ok(Self { running, server: yard.server.port() })
    }

    /// The way in through pgherd.
    pub fn through(&self, place: Place) -> Door {
        Door { database: place.database(), ..door(self.running.port, Entrance::default()) }
    }

    /// The way in straight to PostgreSQL.
    pub fn direct(&self, shard: usize) -> Door {
        Door { database: shard_name(shard), ..door(self.server, Entrance::default()) }
    }
}

fn toml(yard: &Yard<'_>, tables: &[(&str, &str)], references: &[&str], shards: usize) -> String {
    let server =
        |name: &str| format!("host=127.0.0.1 port={} dbname={name} user=postgres sslmode=disable", yard.server.port());
    let mut toml = String::from("[pool]\nmin_connections = 1\nmax_connections = 16\n");
    toml += "[telemetry]\nlog = \"warn\"\n[fanout]\nquery_timeout = \"10m\"\nmax_shipped_bytes = \"64GiB\"\nmax_shipped_rows = 1000000000\n";
    toml += "[[user]]\nname = \"postgres\"\nauth = \"trust\"\n";
    let _ = write!(toml, "[[database]]\nname = \"bench\"\nprimary = \"{}\"\n", server("bench"));
    let names: Vec<String> = (0..shards).map(shard_name).collect();
    for name in &names {
        let _ = write!(toml, "[[database]]\nname = \"{name}\"\nprimary = \"{}\"\n", server(name));
    }
    let all: Vec<String> = names.iter().map(|name| format!("\"{}\"", server(name))).collect();
    let _ = write!(
        toml,
        "[[database]]\nname = \"herd\"\nprimary = \"{0}\"\ncoordinator = \"{0}\"\nshards = [{1}]\ntwo_phase = {{ user = \"{DECIDER}\" }}\n",
        server("bench"),
        all.join(", ")
    );
    for (name, key) in tables {
        let _ =
            write!(toml, "[[database.table]]\nname = \"public.{name}\"\nshard_key = \"{key}\"\nmethod = \"hash\"\n");
    }
    for name in references {
        let _ = write!(toml, "[[database.table]]\nname = \"public.{name}\"\nreference = true\n");
    }
    toml
}

/// Asks all at the same time, each on a connection of its own, and takes their answers; returns the seconds until the last one's end.
///
/// # Errors
/// A connection failed, or somebody answered with an error.
pub fn ask_together(doors: &[Door], text: &str) -> io::Result<f64> {
    let mut clients = Vec::new();
    for door in doors {
        let mut client = door.enter()?;
        client.query("select 1")?;
        clients.push(client);
    }
    let mut request = BytesMut::new();
    writer::query(&mut request, text.as_bytes());
    let (request, began) = (&request, Instant::now());
    thread::scope(|scope| {
        let running: Vec<_> = clients
            .iter_mut()
            .map(|client| scope.spawn(move || client.ask(request, &mut vec![0; READ_BYTES])))
            .collect();
        running.into_iter().try_for_each(|client| match client.join() {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(io::Error::other("a client's thread has ended")),
        })
    })?;
    let took = began.elapsed().as_secs_f64();
    clients.into_iter().try_for_each(|client| client.leave())?;
    Ok(took)
}

/// Does something and returns with its result the most that the process has been resident meanwhile, in KiB.
pub fn watched<T>(pid: Option<u32>, work: impl FnOnce() -> T) -> (T, f64) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut highest = f64::MIN;
            while !is_over.load(Ordering::Relaxed) {
                highest = highest.max(pid.and_then(resident_kib).unwrap_or(f64::MIN));
                thread::sleep(LOOKING);
            }
            highest
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        (done, watcher.join().unwrap_or(f64::NAN))
    })
}
