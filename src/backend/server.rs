//! One logged-in connection to a PostgreSQL server: its socket, its buffers, and everything pgherd believes of its session.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::cancel::CancelTarget;
use super::connect::Connected;
use super::expect::{Expect, Expects};
use super::failure::{lost, misbehaved};
use super::kept::Kept;
use super::pool::ProcessObserver;
use super::roster::Listing;
use super::settings::SharedSettings;
use super::statements::Held;
use crate::config::model::ServerAddress;
use crate::error::Error;
use crate::limits;
use crate::net::stream::Stream;
use crate::net::tls::ClientTls;
use crate::wire::frame::{self, Frame, Frames};
use crate::wire::writer::{self, TransactionStatus};

/// Stands where the serial of an unnamed statement would: some statement that no session can mean.
pub const UNKNOWN_STATEMENT: u64 = 0;

/// A server connection: see the module's description.
pub struct ServerConn {
    /// Its socket.
    pub stream: Stream,
    /// What was read from it and not yet passed on. The first `cleared` bytes may go to the client.
    pub inbuf: BytesMut,
    /// What is to be sent to it.
    pub outbuf: BytesMut,
    /// Its socket's TLS may hold bytes that were taken out of `outbuf` and are not sent yet.
    pub unflushed: bool,
    /// Bytes at the front of `inbuf` that may go to the client as they are.
    pub cleared: usize,
    /// Answers that it owes.
    pub expects: Expects,
    /// Its process id.
    pub pid: i32,
    /// Where a cancel of what it runs goes.
    pub cancel_target: Arc<CancelTarget>,
    /// When its process was started, in microseconds since 1970; tells it from a later process of the same id.
    pub backend_start_us: i64,
    /// When it had read its configuration, and what a query's result depends on as it was then, as far as anybody asked.
    pub conduct: Option<(Box<str>, Arc<str>)>,
    /// What it reported by ParameterStatus, by name as reported.
    pub parameters: Vec<(String, String)>,
    /// What is set on it, exactly.
    pub settings: SharedSettings,
    /// Named statements that it holds.
    pub held: Held,
    /// What it was sent last, where that may have to be sent once more.
    pub kept: Kept,
    /// Which Parse its unnamed statement came from.
    pub unnamed: Option<u64>,
    /// The transaction status it reported last.
    pub status: TransactionStatus,
    /// It takes COPY data now.
    pub copying_in: bool,
    /// Code ran on it that may have changed its session in ways nobody saw.
    pub dirty: bool,
    /// When it was connected.
    pub connected_at: Instant,
    /// When it was last given back.
    pub idle_since: Instant,
    /// Its place in its pool's roster.
    pub(super) listing: Option<Listing>,
    /// Bytes of a client's message, begun in `outbuf`, that are still to come: until then nothing else may be sent to it.
    pub unfinished: usize,
    /// Bytes of the message at hand that are still to be passed on unread.
    pub(super) passing: usize,
    /// Something went wrong on it: it is never used again.
    pub(super) broken: bool,
    /// Messages go over it that `expects` does not know of: until they are all answered it cannot be given to another.
    taken_over: bool,
    pub(super) observer: Option<Arc<dyn ProcessObserver>>,
}

impl Drop for ServerConn {
    fn drop(&mut self) {
        if let Some(observer) = &self.observer {
            observer.closed(self.pid, self.backend_start_us);
        }
    }
}

impl ServerConn {
    /// A connection that has just logged in.
    pub fn new(connected: Connected, address: &ServerAddress, tls: &ClientTls, statements: usize) -> Self {
        let now = Instant::now();
        let cancel_target = Arc::new(CancelTarget {
            address: address.clone(),
            tls: tls.clone(),
            pid: connected.pid,
            secret: connected.secret,
        });
        Self {
            cancel_target,
            stream: connected.stream,
            inbuf: connected.inbuf,
            outbuf: BytesMut::new(),
            unflushed: false,
            cleared: 0,
            expects: Expects::default(),
            pid: connected.pid,
            backend_start_us: 0,
            conduct: None,
            parameters: connected.parameters,
            settings: SharedSettings::default(),
            held: Held::new(statements),
            kept: Kept::default(),
            unnamed: None,
            status: TransactionStatus::Idle,
            copying_in: false,
            dirty: false,
            connected_at: now,
            idle_since: now,
            listing: None,
            unfinished: 0,
            passing: 0,
            broken: false,
            taken_over: false,
            observer: None,
        }
    }

    /// Whether it may be given to another client: every Sync answered, nothing buffered, no transaction, nothing broken.
    pub fn is_reusable(&self) -> bool {
        !self.broken
            && !self.taken_over
            && self.expects.is_empty()
            && !self.expects.is_unsynced()
            && self.status == TransactionStatus::Idle
            && !self.copying_in
            && self.passing == 0
            && self.unfinished == 0
            && self.inbuf.is_empty()
            && self.outbuf.is_empty()
            && !self.unflushed
    }

    /// Whether nothing is owed and it is outside a transaction; its buffers may still hold bytes for the client.
    pub fn is_at_rest(&self) -> bool {
        !self.broken
            && self.unfinished == 0
            && self.expects.is_empty()
            && !self.expects.is_unsynced()
            && self.status == TransactionStatus::Idle
    }

    /// Whether a message has gone to the client in part: nothing else may be put behind it.
    pub fn is_mid_message(&self) -> bool {
        self.passing > 0
    }

    /// Someone sends messages that `expects` does not know of. Until [`ServerConn::hand_back`] it cannot be given to another
    /// client, so that a future dropped half way loses the connection and nothing else.
    pub fn take_over(&mut self) {
        self.taken_over = true;
    }

    /// All those messages are answered.
    pub fn hand_back(&mut self) {
        self.taken_over = false;
    }

    /// Makes this thread the one that hears of its socket.
    pub fn move_here(&mut self) {
        self.broken |= self.stream.move_here().is_err();
    }

    /// Marks it as never to be used again.
    pub fn mark_broken(&mut self) {
        self.broken = true;
    }

    /// Whether it was marked broken.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// A value that the server reported, by lower-case name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Where messages to the server are written; [`ServerConn::flush`] or the relay sends them.
    pub fn queue(&mut self) -> &mut BytesMut {
        &mut self.outbuf
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// The socket failed; the connection is broken.
    pub async fn flush(&mut self) -> Result<(), Error> {
        // Broken first and whole again at the end, so that a future dropped half way leaves a broken connection.
        let before = std::mem::replace(&mut self.broken, true);
        self.stream.write_all(&self.outbuf).await.map_err(lost)?;
        self.outbuf.clear();
        // TLS may still hold a part of it.
        self.stream.flush().await.map_err(lost)?;
        self.unflushed = false;
        self.broken = before;
        Ok(())
    }

    /// Reads one whole message. Not for the relay: it holds the message in memory.
    ///
    /// # Errors
    /// The socket failed or the server broke the protocol; the connection is broken.
    pub async fn read_frame(&mut self) -> Result<Frame, Error> {
        loop {
            match frame::cut(&mut self.inbuf, limits::MESSAGE_BYTES) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => {
                    self.broken = true;
                    return Err(misbehaved(error.to_string()));
                }
            }
            self.read_more().await?;
        }
    }

    /// Sends what is queued; ready when nothing is left. Dropping a fan-out half way leaves bytes here, so it is not reusable.
    ///
    /// # Errors
    /// The socket failed; the connection is broken.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.outbuf.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        self.unflushed = true;
        while !self.outbuf.is_empty() {
            match std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outbuf)) {
                Ok(written) if written > 0 => self.outbuf.advance(written),
                result => {
                    self.broken = true;
                    return Poll::Ready(Err(lost(
                        result.err().unwrap_or_else(|| std::io::ErrorKind::WriteZero.into()),
                    )));
                }
            }
        }
        std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx)).map_err(lost)?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// The next whole message, noted.
    ///
    /// # Errors
    /// As [`ServerConn::read_frame`].
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Error>> {
        loop {
            if let Some(frame) = self.cut()? {
                return Poll::Ready(Ok(frame));
            }
            std::task::ready!(self.poll_more(cx))?;
        }
    }

    /// The next whole messages: of that type, which says nothing of the session, as many as are at hand; or one of another, noted.
    ///
    /// # Errors
    /// As [`ServerConn::read_frame`].
    pub fn poll_frames(&mut self, cx: &mut Context<'_>, tag: u8) -> Poll<Result<Frames, Error>> {
        loop {
            if let Ok(Some(frames)) = frame::cut_all(&mut self.inbuf, tag, limits::MESSAGE_BYTES) {
                return Poll::Ready(Ok(frames));
            }
            if let Some(frame) = self.cut()? {
                return Poll::Ready(Ok(frame.into()));
            }
            std::task::ready!(self.poll_more(cx))?;
        }
    }

    /// The next whole message of those that have been read, noted.
    fn cut(&mut self) -> Result<Option<Frame>, Error> {
        let cut = frame::cut(&mut self.inbuf, limits::MESSAGE_BYTES).map_err(|error| {
            self.broken = true;
            misbehaved(error.to_string())
        })?;
        if let Some(frame) = &cut {
            self.note(frame);
        }
        Ok(cut)
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inbuf.reserve(limits::READ_CHUNK_BYTES);
        match std::task::ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.inbuf)) {
            Ok(read) if read > 0 => Poll::Ready(Ok(())),
            result => {
                self.broken = true;
                Poll::Ready(Err(lost(result.err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into()))))
            }
        }
    }

    /// Notes what a message of any time says: ParameterStatus changes `parameters`, ReadyForQuery `status`.
    pub fn note(&mut self, frame: &Frame) {
        match frame.tag() {
            b'Z' => match frame.body().first().copied().and_then(TransactionStatus::from_byte) {
                Some(status) => self.status = status,
                None => self.broken = true,
            },
            b'S' => {
                self.note_parameter(frame.body());
            }
            _ => {}
        }
    }

    pub(super) fn note_parameter(&mut self, body: &[u8]) -> Option<(String, String)> {
        let mut body = frame::Body::new(body);
        let name = String::from_utf8_lossy(body.cstr()?).into_owned();
        let value = String::from_utf8_lossy(body.cstr()?).into_owned();
        match self.parameters.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => known.clone_from(&value),
            None => self.parameters.push((name.clone(), value.clone())),
        }
        Some((name, value))
    }

    /// Takes what came while nobody listened: ParameterStatus and notices are noted, an end or anything else breaks it.
    /// Costs no system call unless the socket is readable.
    pub fn check_idle(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let mut chunk = [MaybeUninit::uninit(); 1024];
        loop {
            let mut read = tokio::io::ReadBuf::uninit(&mut chunk);
            match tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut self.stream), &mut context, &mut read) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) if !read.filled().is_empty() => self.inbuf.extend_from_slice(read.filled()),
                Poll::Ready(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
        while !self.inbuf.is_empty() {
            match frame::cut(&mut self.inbuf, limits::READ_CHUNK_BYTES) {
                Ok(Some(frame)) if matches!(frame.tag(), b'S' | b'N') => self.note(&frame),
                // Half a message, an ErrorResponse (the server is going away) or anything else unasked for.
                _ => {
                    self.broken = true;
                    return;
                }
            }
        }
    }

    /// Queues a Query of pgherd's own whose answer nobody sees; for the relay, in the client's own flight.
    pub fn queue_hidden_query(&mut self, text: &[u8]) {
        writer::query(&mut self.outbuf, text);
        self.unnamed = None;
        self.expects.push(Expect::HiddenQuery);
    }

    /// As [`ServerConn::queue_hidden_query`], for a BEGIN: if it fails the server skips what comes next up to a Sync, and does not
    /// run it by itself.
    pub fn queue_hidden_begin(&mut self, text: &[u8]) {
        writer::parse(&mut self.outbuf, b"", text, &[]);
        // The unnamed portal of the unnamed statement: no formats, no parameters.
        writer::message(&mut self.outbuf, b'B', |out| out.put_bytes(0, 2 + 3 * size_of::<u16>()));
        writer::execute(&mut self.outbuf, b"", 0);
        writer::close(&mut self.outbuf, b'S', b"");
        self.unnamed = None;
        self.expects.push(Expect::HiddenBegin);
    }

    /// Reads some more bytes, for [`ServerConn::scan`].
    ///
    /// # Errors
    /// The server is gone; the connection is broken.
    pub async fn read_more(&mut self) -> Result<(), Error> {
        self.inbuf.reserve(limits::READ_CHUNK_BYTES);
        match self.stream.read_buf(&mut self.inbuf).await {
            Ok(read) if read > 0 => Ok(()),
            result => {
                self.broken = true;
                Err(lost(result.err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into())))
            }
        }
    }

    /// Says goodbye as a client should, without waiting.
    pub async fn close(mut self) {
        writer::terminate(&mut self.outbuf);
        let _ = self.stream.write_all(&self.outbuf).await;
        let _ = self.stream.shutdown().await;
    }
}

impl std::fmt::Debug for ServerConn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConn").field("pid", &self.pid).field("status", &self.status).finish_non_exhaustive()
    }
}
