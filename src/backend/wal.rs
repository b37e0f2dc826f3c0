//! Following a database's changes by logical replication, for whoever must know what was written past pgherd.
//!
//! The slot is temporary: it goes with its connection, so that a pgherd that is not there keeps no WAL on the server's disk. Who
//! follows anew knows nothing of what happened in between.

use std::time::SystemTime;

use super::connect::{self, Login};
use super::failure::{misbehaved, server_error};
use super::server::ServerConn;
use super::settings::{identifier, literal};
use crate::config::model::ServerAddress;
use crate::error::Error;
use crate::wire::pgoutput::{self, Streamed};
use crate::wire::writer;

/// Microseconds between 1970 and 2000, where PostgreSQL's clock begins.
const MICROS_1970_TO_2000: i64 = 946_684_800_000_000;

/// What a stream has told.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// A transaction that changed these relations, sorted, has committed.
    Committed(Vec<u32>),
    /// Everything that was committed before that position of the WAL has been told.
    Reached(u64),
}

/// A stream of changes of one publication.
pub struct Follower {
    server: ServerConn,
    /// Relations that the transaction at hand has changed.
    changed: Vec<u32>,
    /// Up to where the WAL has been read.
    reached: u64,
}

impl Follower {
    /// Begins to follow: what commits from now on is told.
    ///
    /// # Errors
    /// The server cannot be reached, does not let this login replicate, has no slot left, or its `wal_level` is not `logical`.
    pub async fn begin(address: &ServerAddress, login: &Login, publication: &str) -> Result<Self, Error> {
        let mut login = login.clone();
        login.startup = vec![("replication".to_owned(), "database".to_owned())];
        let mut address = address.clone();
        address.application_name = Some("pgherd follower".to_owned());
        let connected = connect::connect(&address, &login).await?;
        let mut server = ServerConn::new(connected, &address, &login.tls, 0);
        let slot = identifier(&format!("pgherd_{:016x}", rand::random::<u64>()));
        server.run(&format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")).await?;
        let names = literal(&identifier(publication));
        let start = format!(
            "START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names {})",
            names.trim_start()
        );
        writer::query(server.queue(), start.as_bytes());
        server.flush().await?;
        loop {
            let frame = server.read_frame().await?;
            match frame.tag() {
                b'W' => return Ok(Self { server, changed: Vec::new(), reached: 0 }),
                b'E' => return Err(server_error(frame.body())),
                _ => server.note(&frame),
            }
        }
    }

    /// Says what has been taken in, and asks up to where the WAL has been read: answered by [`News::Reached`].
    ///
    /// # Errors
    /// The connection was lost.
    pub async fn ask(&mut self) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(now.as_micros()).unwrap_or(i64::MAX) - MICROS_1970_TO_2000;
        let update = pgoutput::status_update(self.reached, micros);
        writer::message(self.server.queue(), b'd', |out| out.extend_from_slice(&update));
        self.server.flush().await
    }

    /// The next news. May be dropped and called again.
    ///
    /// # Errors
    /// The connection was lost, or the server refused to go on: a table may have gone from the publication, or the publication itself.
    pub async fn next(&mut self) -> Result<News, Error> {
        loop {
            let frame = self.server.read_frame().await?;
            match frame.tag() {
                b'd' => {
                    let told = pgoutput::read(frame.body()).ok_or_else(|| misbehaved("a change cannot be read"))?;
                    if let Some(news) = self.take_in(told) {
                        return Ok(news);
                    }
                }
                b'E' => return Err(server_error(frame.body())),
                b'c' => return Err(misbehaved("the stream of changes has ended")),
                _ => self.server.note(&frame),
            }
        }
    }

    fn take_in(&mut self, told: Streamed) -> Option<News> {
        match told {
            Streamed::Begin => self.changed.clear(),
            Streamed::Changed(relations) => {
                for relation in relations {
                    if let Err(place) = self.changed.binary_search(&relation) {
                        self.changed.insert(place, relation);
                    }
                }
            }
            Streamed::Commit { end } => {
                self.reached = self.reached.max(end);
                let changed = std::mem::take(&mut self.changed);
                return (!changed.is_empty()).then_some(News::Committed(changed));
            }
            Streamed::KeepAlive { end, .. } => {
                self.reached = self.reached.max(end);
                return Some(News::Reached(end));
            }
            Streamed::Other => {}
        }
        None
    }
}
