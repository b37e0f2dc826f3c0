//! One read on a server connection of its own, in a READ ONLY transaction: fills of the cache and reads on replicas.
//!
//! A function that says it is STABLE may still call one that writes. READ ONLY makes PostgreSQL say so (SQLSTATE 25006), and
//! as long as nothing of the answer has been passed on, the statement can be run again as the write that it is.

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use crate::backend::server::ServerConn;
use crate::backend::signature::{Signature, Whence};
use crate::error::{Error, ErrorKind};
use crate::exec::capture::Capture;
use crate::exec::relay::ClientSide;
use crate::limits;
use crate::wire::backend::{ErrorFields, with_statement_name};
use crate::wire::frame::Frame;
use crate::wire::frontend;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// Bytes of an answer that are held back, since a write shows itself before or with the first rows.
const HELD_BACK_BYTES: usize = 64 * 1024;

/// Bytes of a large answer that a client is given, or that are taken from a server, before it is the turn of others: sockets whose
/// other end is fast have more at once.
const TURN_BYTES: usize = 512 * 1024;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Read<'a> {
    /// The statement's text.
    pub text: &'a [u8],
    /// How it is asked.
    pub protocol: Protocol<'a>,
    /// Whether to end it by ROLLBACK, which undoes what a function may have set for the session.
    pub undo: bool,
}

/// How a read is asked.
#[derive(Debug, Clone, Copy)]
pub enum Protocol<'a> {
    /// By a simple Query.
    Simple,
    /// By Parse, Bind, Describe and Execute.
    Extended {
        /// Declared parameter types.
        types: &'a [u32],
        /// The client's Bind, names and all; only what follows the names is used.
        bind: &'a [u8],
        /// Whether the client asked for the row description.
        described: bool,
        /// What the client was told of the statement before.
        told: Option<&'a Signature>,
        /// ParseComplete and BindComplete, as far as the client is to be given them when the server has said so.
        unanswered: &'a [u8],
    },
}

/// How a read ended.
#[derive(Debug)]
pub enum Outcome {
    /// It was answered, CommandComplete included: here, or where there is nothing it was passed on.
    Done(Option<Captured>),
    /// The server's error was passed on.
    Failed {
        /// Whether it came behind the ParseComplete that the client waits for.
        parsed: bool,
        /// The ErrorResponse.
        message: Bytes,
        /// How far the server had come: ParseComplete, BindComplete.
        came_to: (bool, bool),
    },
    /// The statement writes after all. Nothing was passed on.
    Writes,
    /// Its rows are not those that the client was told of. Nothing was passed on.
    Changed,
}

/// A whole answer, as it can be served again.
#[derive(Debug)]
pub struct Captured {
    /// RowDescription (or NoData), rows, CommandComplete.
    pub bytes: Capture,
    /// Bytes of the RowDescription at its front.
    pub row_description_len: usize,
    /// Rows in it.
    pub rows: u64,
}

/// Runs a read and passes its answer on as it comes. With `capture` an answer of up to so many bytes is held back until it is
/// whole, so that no client that reads slowly keeps others waiting who want the same answer.
///
/// # Errors
/// The server failed or broke the protocol (it is broken then), or the client is gone.
pub async fn run(
    server: &mut ServerConn,
    read: Read<'_>,
    client: &mut ClientSide,
    capture: Option<usize>,
) -> Result<Outcome, Error> {
    server.take_over();
    queue(server, read);
    server.flush().await?;
    let mut answer = Answer::new(read.protocol, capture);
    // BEGIN's and COMMIT's ReadyForQuery frame the one in the middle.
    let (mut ready, mut turn) = (0, 0);
    while ready < 3 {
        let frame = server.read_frame().await?;
        let_others(&mut turn, frame.bytes.len()).await;
        server.note(&frame);
        match frame.tag() {
            b'Z' => ready += 1,
            b'E' if ready != 1 => return Err(own_statement_failed(server, frame.body())),
            b'S' | b'A' => {}
            _ if ready == 1 => answer.take(&frame, client).await?,
            _ => {}
        }
    }
    server.hand_back();
    answer.finish(client)
}

/// Runs a read for nobody but pgherd: its whole answer, unless it is an error or comes with a notice.
///
/// # Errors
/// The server failed or broke the protocol, or has more than `limit` bytes to say (it is broken then).
pub async fn again(server: &mut ServerConn, read: Read<'_>, limit: usize) -> Result<Option<Captured>, Error> {
    server.take_over();
    queue(server, read);
    server.flush().await?;
    let (mut ready, mut turn, mut is_plain) = (0, 0, true);
    let mut answer = Captured { bytes: Capture::default(), row_description_len: 0, rows: 0 };
    while ready < 3 {
        let frame = server.read_frame().await?;
        let_others(&mut turn, frame.bytes.len()).await;
        server.note(&frame);
        match frame.tag() {
            b'Z' => ready += 1,
            b'E' if ready != 1 => return Err(own_statement_failed(server, frame.body())),
            tag @ (b'T' | b'n' | b'D' | b'C' | b'I') if ready == 1 => {
                if answer.bytes.len() + frame.bytes.len() > limit {
                    return Err(Error::internal("an answer that was asked for again is larger than it may be"));
                }
                match tag {
                    b'T' | b'n' => answer.row_description_len = frame.bytes.len(),
                    b'D' => answer.rows += 1,
                    _ => {}
                }
                answer.bytes.push(&frame.bytes);
            }
            b'E' | b'N' => is_plain = false,
            _ => {}
        }
    }
    server.hand_back();
    Ok(is_plain.then_some(answer))
}

/// Counts bytes of one's turn, and lets others have theirs when it is over.
async fn let_others(turn: &mut usize, bytes: usize) {
    *turn += bytes;
    if *turn >= TURN_BYTES {
        *turn = 0;
        tokio::task::yield_now().await;
    }
}

/// Writes an answer from where it lies, behind what is queued for the client, and at its pace.
///
/// # Errors
/// The client is gone.
pub async fn send(client: &mut ClientSide, answer: &[u8]) -> Result<(), Error> {
    client.flush().await?;
    let gone = |error| Error::new(ErrorKind::Io, SqlState::CONNECTION_FAILURE, "client is gone").cause(error).fatal();
    let mut pieces = answer.chunks(TURN_BYTES).peekable();
    while let Some(piece) = pieces.next() {
        client.stream.write_all(piece).await.map_err(gone)?;
        if pieces.peek().is_some() {
            tokio::task::yield_now().await;
        }
    }
    client.stream.flush().await.map_err(gone)
}

fn queue(server: &mut ServerConn, read: Read<'_>) {
    server.unnamed = None;
    let out = server.queue();
    writer::query(out, b"BEGIN READ ONLY");
    match read.protocol {
        Protocol::Simple => writer::query(out, read.text),
        Protocol::Extended { types, bind, .. } => {
            writer::parse(out, b"", read.text, types);
            writer::message(out, b'B', |out| {
                out.extend_from_slice(b"\0\0");
                out.extend_from_slice(behind_names(bind));
            });
            writer::describe(out, b'P', b"");
            writer::execute(out, b"", 0);
            writer::sync(out);
        }
    }
    writer::query(out, if read.undo { b"ROLLBACK" } else { b"COMMIT" });
}

/// What follows portal and statement name in a Bind's body.
fn behind_names(bind: &[u8]) -> &[u8] {
    let mut body = crate::wire::frame::Body::new(bind);
    let _ = (body.cstr(), body.cstr());
    body.rest()
}

fn own_statement_failed(server: &mut ServerConn, body: &[u8]) -> Error {
    server.mark_broken();
    crate::backend::failure::server_error(body)
}

/// An answer on its way to the client.
struct Answer<'a> {
    unanswered: &'a [u8],
    /// The client's name of the statement, which the server was given none of.
    statement: &'a [u8],
    /// What has not been passed on yet.
    held: BytesMut,
    /// The whole answer so far, where it may be kept; nothing of it has been passed on then.
    captured: Option<Capture>,
    limit: usize,
    described: bool,
    came_to: (bool, bool),
    row_description_len: usize,
    rows: u64,
    passed_on: bool,
    told: Option<&'a Signature>,
    is_changed: bool,
    outcome: Option<Outcome>,
}

impl<'a> Answer<'a> {
    fn new(protocol: Protocol<'a>, capture: Option<usize>) -> Self {
        Self {
            unanswered: match protocol {
                Protocol::Simple => b"",
                Protocol::Extended { unanswered, .. } => unanswered,
            },
            statement: match protocol {
                Protocol::Simple => b"",
                Protocol::Extended { bind, .. } => frontend::bind_names(bind).map_or(b"", |(_, statement)| statement),
            },
            held: BytesMut::new(),
            captured: capture.map(|_| Capture::default()),
            limit: capture.unwrap_or(0),
            came_to: (false, false),
            described: !matches!(protocol, Protocol::Extended { described: false, .. }),
            row_description_len: 0,
            rows: 0,
            passed_on: false,
            told: match protocol {
                Protocol::Extended { told, .. } => told,
                Protocol::Simple => None,
            },
            is_changed: false,
            outcome: None,
        }
    }

    async fn take(&mut self, frame: &Frame, client: &mut ClientSide) -> Result<(), Error> {
        if self.is_for_nobody() {
            return Ok(());
        }
        match frame.tag() {
            tag @ (b'1' | b'2') => {
                self.came_to = (true, tag == b'2');
                if self.unanswered.first() == Some(&tag) {
                    let (told, rest) = self.unanswered.split_at(frame.bytes.len().min(self.unanswered.len()));
                    self.held.extend_from_slice(told);
                    self.unanswered = rest;
                }
                return Ok(());
            }
            b'N' => self.give_up_capture(),
            b'E' => {
                let writes = ErrorFields::parse(frame.body())
                    .is_ok_and(|fields| fields.code() == SqlState::READ_ONLY_SQL_TRANSACTION.code());
                if writes && !self.passed_on {
                    self.outcome = Some(Outcome::Writes);
                    return Ok(());
                }
                self.give_up_capture();
                let parsed = !self.unanswered.starts_with(b"1");
                let message = Bytes::copy_from_slice(&frame.bytes);
                self.outcome = Some(Outcome::Failed { parsed, message, came_to: self.came_to });
                if !self.statement.is_empty() {
                    self.held.extend_from_slice(&with_statement_name(frame.body(), self.statement));
                    return Ok(());
                }
            }
            b'D' => self.rows += 1,
            b'T' | b'n' => {
                self.row_description_len = frame.bytes.len();
                match self.told.filter(|_| frame.tag() == b'T') {
                    Some(told) if self.described => told.note_rows(frame.body()),
                    Some(told) => self.is_changed = told.check_rows(frame.body(), 0, Whence::Here).is_err(),
                    None => {}
                }
            }
            b'C' | b'I' => self.outcome = Some(Outcome::Done(None)),
            tag => return Err(unexpected(tag)),
        }
        if self.captured.as_ref().is_some_and(|captured| captured.len() + frame.bytes.len() > self.limit) {
            self.give_up_capture();
        }
        if let Some(captured) = &mut self.captured {
            captured.push(&frame.bytes);
            return Ok(());
        }
        if self.described || !matches!(frame.tag(), b'T' | b'n') {
            self.held.extend_from_slice(&frame.bytes);
        }
        if self.held.len() > HELD_BACK_BYTES && !self.is_changed {
            self.pass_on(client);
            if client.outbuf.len() > limits::CLIENT_QUEUE_BYTES {
                client.flush().await?;
            }
        }
        Ok(())
    }

    /// The answer will not be kept: what was held back is passed on with the rest.
    fn give_up_capture(&mut self) {
        if let Some(captured) = self.captured.take() {
            captured.pieces_from(self.unwanted_description()).for_each(|piece| self.held.extend_from_slice(piece));
        }
    }

    /// Bytes at the front of what was captured that the client has not asked for.
    fn unwanted_description(&self) -> usize {
        if self.described { 0 } else { self.row_description_len }
    }

    fn pass_on(&mut self, client: &mut ClientSide) {
        self.passed_on = true;
        client.outbuf.extend_from_slice(&self.held);
        self.held.clear();
    }

    /// Whether the rows are not the client's, and nobody else's either.
    fn is_for_nobody(&self) -> bool {
        self.is_changed && self.captured.is_none()
    }

    fn finish(mut self, client: &mut ClientSide) -> Result<Outcome, Error> {
        if self.is_for_nobody() {
            return Ok(Outcome::Changed);
        }
        match self.outcome.take() {
            Some(Outcome::Writes) => Ok(Outcome::Writes),
            Some(Outcome::Done(_)) => {
                self.pass_on(client);
                let (row_description_len, rows) = (self.row_description_len, self.rows);
                let captured = self.captured.take();
                let captured = captured.map(|bytes| Captured { bytes, row_description_len, rows });
                Ok(Outcome::Done(captured))
            }
            Some(failed @ Outcome::Failed { .. }) => {
                self.pass_on(client);
                Ok(failed)
            }
            Some(Outcome::Changed) => Ok(Outcome::Changed),
            None => Err(unexpected(b'Z')),
        }
    }
}

fn unexpected(tag: u8) -> Error {
    Error::new(ErrorKind::Backend, SqlState::PROTOCOL_VIOLATION, "server broke the protocol")
        .detail(format!("message {:?} in the answer to a read", tag as char))
        .fatal()
}
