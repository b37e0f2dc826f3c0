//! A replication connection (`replication=true` or `database` in its startup packet): a server connection of its own, relayed byte
//! for byte in both directions for as long as either side wants.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::AsyncWrite;

use super::clients::ListedClient;
use super::context::{Database, Target};
use super::failure;
use super::handshake::Authenticated;
use crate::backend::cancel::CancelTarget;
use crate::backend::connect::{self, Connected};
use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::net::stream::Stream;
use crate::shutdown::Drain;
use crate::wire::frame;
use crate::wire::startup::Replication;
use crate::wire::writer::{self, TransactionStatus};

/// How long the last words to either side may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves a client that wants to replicate until either side ends it.
///
/// # Errors
/// What ended it early; the client has been told where it could be.
pub async fn serve(db: Arc<Database>, client: Authenticated, kind: Replication, drain: &Drain) -> Result<(), Error> {
    let mut listed = db.shared.clients.enter(&client.user, &db.config, &client.stream);
    listed.replicates(kind);
    let cancel = db.shared.cancel_keys.register(super::secret_len(client.startup.minor));
    let Authenticated { stream, inbuf, outbuf, user, startup, .. } = client;
    let mut relay = Relay {
        client: stream,
        server: None,
        to_client: Passage { buf: outbuf, ..Passage::default() },
        to_server: Passage { buf: inbuf, ..Passage::default() },
        state: State::Idle,
    };
    relay.to_client.clear_all();
    let kill_switch = listed.kill_switch();
    let work = async {
        let mut login = db.login(&user, Target::Primary);
        login.startup = vec![("replication".to_owned(), kind.parameter().to_owned())];
        login.startup.extend(startup.settings);
        tokio::select! {
            () = db.gate.opened() => {}
            () = drain.begun() => return Err(failure::shutting_down()),
        }
        let connected = connect::connect(&db.config.primary, &login).await.map_err(Error::fatal)?;
        cancel.slot.aim_at(Arc::new(CancelTarget {
            address: db.config.primary.clone(),
            tls: login.tls.clone(),
            pid: connected.pid,
            secret: connected.secret.clone(),
        }));
        relay.greet(connected, cancel.pid(), cancel.slot.secret());
        let _counted = db.shared.metrics.replicating(&db.config.name);
        tracing::info!(user = user.name, database = db.config.name, kind = kind.label(), "replication begins");
        relay.run(&db, drain, &mut listed).await
    };
    let served = {
        let work = pin!(work);
        kill_switch.or(work).await
    };
    if cancel.slot.clear() {
        cancel.slot.delivered().await;
    }
    relay.end(served.as_ref().err()).await;
    let rest = listed.rest(relay.client.traffic());
    db.metrics.bytes_in.inc_by(rest.read);
    db.metrics.bytes_out.inc_by(rest.written);
    served
}

/// What the server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It waits for a command.
    Idle,
    /// It carries one out: sends a base backup, or answers a query.
    Busy,
    /// It streams changes, which has no end of its own.
    Streaming,
}

/// Why the relay came to its end.
enum Ended {
    Client,
    Server,
}

struct Relay {
    client: Stream,
    server: Option<Stream>,
    to_client: Passage,
    to_server: Passage,
    state: State,
}

impl Relay {
    /// Tells the client what the server said at login, with a cancel key of pgherd's own.
    fn greet(&mut self, connected: Connected, pid: i32, secret: &[u8]) {
        let out = &mut self.to_client.buf;
        for (name, value) in &connected.parameters {
            writer::parameter_status(out, name, value);
        }
        writer::message(out, b'K', |out| {
            out.put_i32(pid);
            out.put_slice(secret);
        });
        writer::ready_for_query(out, TransactionStatus::Idle);
        self.to_client.clear_all();
        self.to_client.buf.extend_from_slice(&connected.inbuf);
        self.server = Some(connected.stream);
    }

    async fn run(&mut self, db: &Database, drain: &Drain, listed: &mut ListedClient) -> Result<(), Error> {
        let mut drained = pin!(drain.begun());
        let mut barred = pin!(db.gate.barred());
        let mut closed = pin!(db.closed.cancelled());
        // What came with the login is looked at first.
        self.to_server.scan(|tag| note_command(&mut self.state, tag))?;
        self.to_client.scan(|tag| note_answer(&mut self.state, tag))?;
        let (mut ends, mut ends_now) = (false, false);
        let ended = poll_fn(|cx| {
            ends_now = ends_now || closed.as_mut().poll(cx).is_ready();
            ends = ends || ends_now || drained.as_mut().poll(cx).is_ready() || barred.as_mut().poll(cx).is_ready();
            let ended = self.poll(cx, ends);
            if let Some(traffic) = listed.uncounted(self.client.traffic()) {
                db.metrics.bytes_in.inc_by(traffic.read);
                db.metrics.bytes_out.inc_by(traffic.written);
            }
            match ended {
                // A backup may come to its end; what has no end has none to wait for.
                Poll::Pending if ends_now || (ends && self.state != State::Busy && self.to_client.is_between()) => {
                    Poll::Ready(Err(failure::shutting_down()))
                }
                other => other,
            }
        })
        .await?;
        let side = match ended {
            Ended::Client => "client",
            Ended::Server => "server",
        };
        tracing::info!(side, database = db.config.name, "replication ended");
        Ok(())
    }

    /// Moves bytes until either side is gone. While the connection `ends`, nothing new is begun: the message at hand is finished.
    fn poll(&mut self, cx: &mut Context<'_>, ends: bool) -> Poll<Result<Ended, Error>> {
        let Some(server) = &mut self.server else { return Poll::Ready(Ok(Ended::Server)) };
        loop {
            let mut moved = false;
            if self.to_client.poll_write(cx, &mut self.client).is_err() {
                return Poll::Ready(Ok(Ended::Client));
            }
            // Whoever is gone is noticed by reading; a write that fails is no reason to lose what the server said before.
            let _ = self.to_server.poll_write(cx, server);
            if ends && self.state != State::Busy && self.to_client.is_between() {
                return Poll::Pending;
            }
            if self.to_client.has_room() {
                match self.to_client.poll_read(cx, server) {
                    Poll::Ready(Ok(read)) if read > 0 => {
                        self.to_client.scan(|tag| note_answer(&mut self.state, tag))?;
                        moved = true;
                    }
                    Poll::Ready(_) if self.to_client.ready == 0 => return Poll::Ready(Ok(Ended::Server)),
                    // The client is still to take what the server said last.
                    Poll::Ready(_) | Poll::Pending => {}
                }
            }
            if self.to_server.has_room() {
                match self.to_server.poll_read(cx, &mut self.client) {
                    Poll::Ready(Ok(read)) if read > 0 => {
                        self.to_server.scan(|tag| note_command(&mut self.state, tag))?;
                        moved = true;
                    }
                    Poll::Ready(_) if self.to_server.ready == 0 => return Poll::Ready(Ok(Ended::Client)),
                    Poll::Ready(_) | Poll::Pending => {}
                }
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// Says goodbye to both sides.
    async fn end(&mut self, reason: Option<&Error>) {
        if let Some(error) = reason
            && self.to_client.is_between()
            && !self.to_client.said_farewell
            && error.kind() != ErrorKind::Io
        {
            writer::error_response(&mut self.to_client.buf, error);
            self.to_client.clear_all();
        }
        let farewell = async {
            poll_fn(|cx| self.to_client.poll_write_all(cx, &mut self.client)).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut self.client).await
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        let Some(server) = &mut self.server else { return };
        if self.to_server.is_between() {
            writer::terminate(&mut self.to_server.buf);
            self.to_server.clear_all();
        }
        let farewell = async {
            poll_fn(|cx| self.to_server.poll_write_all(cx, server)).await?;
            tokio::io::AsyncWriteExt::shutdown(server).await
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

/// What a message of the server's says about what it does.
fn note_answer(state: &mut State, tag: u8) {
    match tag {
        b'W' => *state = State::Streaming,
        b'Z' => *state = State::Idle,
        _ => {}
    }
}

/// What a message of the client's makes the server do.
fn note_command(state: &mut State, tag: u8) {
    if matches!(tag, b'Q' | b'P' | b'B' | b'E' | b'F') && *state == State::Idle {
        *state = State::Busy;
    }
}

/// One direction: bytes on their way, and where a message ends.
#[derive(Debug, Default)]
struct Passage {
    buf: BytesMut,
    /// Bytes at the front that may go on.
    ready: usize,
    /// Bytes of the message at hand that are still to come behind them.
    left: usize,
    /// A FATAL error has passed.
    said_farewell: bool,
}

impl Passage {
    fn has_room(&self) -> bool {
        self.buf.len() < limits::CLIENT_QUEUE_BYTES
    }

    /// Whether everything that was begun is written, to the end of a message.
    fn is_between(&self) -> bool {
        self.ready == 0 && self.left == 0
    }

    /// All that is there may go.
    fn clear_all(&mut self) {
        self.ready = self.buf.len();
    }

    /// Lets what was read go on, and notes each message that begins in it.
    fn scan(&mut self, mut note: impl FnMut(u8)) -> Result<(), Error> {
        loop {
            let behind = self.buf.len() - self.ready;
            let step = self.left.min(behind);
            self.ready += step;
            self.left -= step;
            if self.left > 0 {
                return Ok(());
            }
            let rest = &self.buf[self.ready..];
            match frame::peek(rest, limits::MESSAGE_BYTES) {
                Ok(Some(header)) => {
                    note(header.tag);
                    // "SFATAL" is the first field, in whatever language the second is (`V` since 9.6).
                    self.said_farewell = header.tag == b'E' && contains(rest, b"VFATAL\0");
                    self.left = header.total;
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(Error::protocol(error.to_string())),
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, from: &mut Stream) -> Poll<io::Result<usize>> {
        if self.buf.capacity() - self.buf.len() < limits::READ_CHUNK_BYTES / 2 {
            self.buf.reserve(limits::READ_CHUNK_BYTES);
        }
        tokio_util::io::poll_read_buf(Pin::new(from), cx, &mut self.buf)
    }

    /// Writes what may go as far as it goes now.
    fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> io::Result<()> {
        match self.poll_write_all(cx, to) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        while self.ready > 0 {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.buf[..self.ready]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => {
                    self.buf.advance(written);
                    self.ready -= written;
                }
            }
        }
        Pin::new(to).poll_flush(cx)
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).take(200).any(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_pass_in_any_pieces_and_each_is_seen_once() {
        let mut all = BytesMut::new();
        writer::message(&mut all, b'W', |out| out.put_slice(&[0; 3]));
        writer::message(&mut all, b'd', |out| out.put_slice(&[7; 1000]));
        writer::ready_for_query(&mut all, TransactionStatus::Idle);
        for piece in [1, 3, 7, 500, 2000] {
            let mut passage = Passage::default();
            let (mut tags, mut passed) = (Vec::new(), Vec::new());
            for bytes in all.chunks(piece) {
                passage.buf.extend_from_slice(bytes);
                passage.scan(|tag| tags.push(tag)).expect("messages");
                passed.extend_from_slice(&passage.buf.split_to(passage.ready));
                passage.ready = 0;
            }
            assert_eq!(tags, b"WdZ", "{piece}");
            assert!(passage.is_between() && passed == all, "{piece}");
        }
    }

    #[test]
    fn a_backup_is_busy_and_a_stream_is_not() {
        let mut state = State::Idle;
        note_command(&mut state, b'Q');
        assert_eq!(state, State::Busy);
        note_answer(&mut state, b'H');
        assert_eq!(state, State::Busy);
        note_answer(&mut state, b'Z');
        note_command(&mut state, b'Q');
        note_answer(&mut state, b'W');
        note_command(&mut state, b'd');
        assert_eq!(state, State::Streaming);
    }

    #[test]
    fn an_end_that_was_announced_is_no_surprise() {
        let mut passage = Passage::default();
        writer::error_response(&mut passage.buf, &failure::shutting_down());
        passage.scan(|_| ()).expect("a message");
        assert!(passage.said_farewell);
    }
}
