//! One logged-in connection to a PostgreSQL server: its socket, its buffers, and everything pgherd believes of its session.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::cancel::CancelTarget;
use super::connect::Connected;
use super::expect::{Consequences, Expect, Expects, Verdict};
use super::failure::{lost, misbehaved};
use super::own::is_stale_plan;
use super::pool::ProcessObserver;
use super::roster::Listing;
use super::settings::SharedSettings;
use super::statements::Held;
use crate::config::model::ServerAddress;
use crate::error::Error;
use crate::limits;
use crate::net::spare;
use crate::net::stream::Stream;
use crate::net::tls::ClientTls;
use crate::wire::backend::ErrorFields;
use crate::wire::frame::{self, Frame, HEADER_LEN};
use crate::wire::writer::{self, TransactionStatus};

/// Bytes of a message that is held until it is whole; larger ones pass as they come where nobody must read them.
const HELD_UP_TO: usize = 64 * 1024;
/// Stands where the serial of an unnamed statement would: some statement that no session can mean.
pub const UNKNOWN_STATEMENT: u64 = 0;
/// Bytes of answers up to which copying them is cheaper than keeping the server waiting for the client's socket.
const COPY_UP_TO: usize = 8 * 1024;

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
    /// What it reported by ParameterStatus, by name as reported.
    pub parameters: Vec<(String, String)>,
    /// What is set on it, exactly.
    pub settings: SharedSettings,
    /// Named statements that it holds.
    pub held: Held,
    /// Which generation of statements those are.
    pub generation: u64,
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
    passing: usize,
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

/// What scanning a server's bytes showed.
#[derive(Debug, Default)]
pub struct Seen {
    /// The last ReadyForQuery's status, if one came.
    pub ready: Option<TransactionStatus>,
    /// A ReadyForQuery came that only pgherd had asked for.
    pub hidden_ready: bool,
    /// It asked for COPY data.
    pub copy_in: bool,
    /// It said why it goes away.
    pub farewell: bool,
    /// Rows passed on.
    pub rows: u64,
    /// Errors passed on.
    pub errors: u32,
    /// A notice was passed on.
    pub notices: u32,
    /// The server said that a kept plan's result type changed.
    pub stale_plan: bool,
    /// SQLSTATE of the last error of a hidden query.
    pub hidden_error: Option<Bytes>,
    /// Settings it reported as changed.
    pub reported: Vec<(String, String)>,
    /// What failed Parses left behind.
    pub consequences: Consequences,
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
            parameters: connected.parameters,
            settings: SharedSettings::default(),
            held: Held::new(statements),
            generation: 0,
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
            match frame::cut(&mut self.inbuf, limits::MESSAGE_BYTES) {
                Ok(Some(frame)) => {
                    self.note(&frame);
                    return Poll::Ready(Ok(frame));
                }
                Ok(None) => {}
                Err(error) => {
                    self.broken = true;
                    return Poll::Ready(Err(misbehaved(error.to_string())));
                }
            }
            self.inbuf.reserve(limits::READ_CHUNK_BYTES);
            match std::task::ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.inbuf)) {
                Ok(read) if read > 0 => {}
                result => {
                    self.broken = true;
                    return Poll::Ready(Err(lost(
                        result.err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into()),
                    )));
                }
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

    fn note_parameter(&mut self, body: &[u8]) -> Option<(String, String)> {
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

    /// Scans what was read, clears for the client what is the client's, and swallows what is not. What must go to the
    /// client before bytes still in `inbuf` is appended to `out`.
    ///
    /// # Errors
    /// The server broke the protocol; the connection is broken.
    pub fn scan(&mut self, out: &mut BytesMut, seen: &mut Seen) -> Result<(), Error> {
        let result = self.scan_messages(out, seen);
        if result.is_err() {
            self.broken = true;
        } else if self.cleared <= COPY_UP_TO {
            self.spill(out);
        }
        result
    }

    /// Moves what is cleared into `out`, so that the server is free of it.
    pub fn spill(&mut self, out: &mut BytesMut) {
        if self.cleared > 0 {
            spare::lend(out);
            out.extend_from_slice(&self.inbuf[..self.cleared]);
            self.inbuf.advance(self.cleared);
            self.cleared = 0;
        }
    }

    fn scan_messages(&mut self, out: &mut BytesMut, seen: &mut Seen) -> Result<(), Error> {
        loop {
            if self.passing > 0 {
                let step = self.passing.min(self.inbuf.len() - self.cleared);
                self.cleared += step;
                self.passing -= step;
                if self.passing > 0 {
                    return Ok(());
                }
            }
            let rest = self.inbuf.len() - self.cleared;
            let header = match frame::peek(&self.inbuf[self.cleared..], limits::MESSAGE_BYTES) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(()),
                Err(error) => return Err(misbehaved(error.to_string())),
            };
            if matches!(header.tag, b'D' | b'd') && !self.expects.is_hidden() {
                self.answer(header.tag, seen)?;
                seen.rows += u64::from(header.tag == b'D');
                self.passing = header.total;
                continue;
            }
            if header.total > HELD_UP_TO && self.pass_unread(header, seen)? {
                continue;
            }
            if rest < header.total {
                let missing = header.total - rest;
                self.inbuf.reserve(missing);
                return Ok(());
            }
            match self.judge(header, seen)? {
                Verdict::Forward => self.cleared += header.total,
                Verdict::Swallow => {
                    self.spill(out);
                    self.inbuf.advance(header.total);
                }
                Verdict::Replace(bytes) => {
                    self.spill(out);
                    self.inbuf.advance(header.total);
                    out.extend_from_slice(&bytes);
                }
            }
            self.inject(out);
        }
    }

    /// Lets a large message pass as it comes instead of holding it: a client can make a notice, an error or a function's
    /// result as large as it likes. Returns false for one that must be held.
    fn pass_unread(&mut self, header: frame::Header, seen: &mut Seen) -> Result<bool, Error> {
        if self.expects.is_hidden() || self.expects.is_poisoned() || self.expects.is_empty() {
            return Ok(false);
        }
        match header.tag {
            b'N' => seen.notices += 1,
            b'V' => drop(self.answer(b'V', seen)?),
            b'E' => {
                self.copying_in = false;
                seen.errors += 1;
                self.answer(b'E', seen)?;
                self.act_on_losses(seen);
            }
            _ => return Ok(false),
        }
        self.passing = header.total;
        Ok(true)
    }

    /// Puts in what is due before the server's next message.
    pub fn inject(&mut self, out: &mut BytesMut) {
        while let Some(bytes) = self.expects.take_injection() {
            self.spill(out);
            out.extend_from_slice(&bytes);
        }
    }

    fn answer(&mut self, tag: u8, seen: &mut Seen) -> Result<Verdict, Error> {
        self.expects
            .answer(tag, &mut seen.consequences)
            .map_err(|unexpected| misbehaved(format!("message {:?} answers nothing", unexpected.0 as char)))
    }

    fn judge(&mut self, header: frame::Header, seen: &mut Seen) -> Result<Verdict, Error> {
        let hidden = self.expects.is_hidden();
        let unasked = if hidden { Verdict::Swallow } else { Verdict::Forward };
        match header.tag {
            b'N' => {
                seen.notices += u32::from(!hidden);
                return Ok(unasked);
            }
            b'A' => return Ok(Verdict::Forward),
            b'S' => {
                let body = self.copy_body(header);
                seen.reported.extend(self.note_parameter(&body));
                return Ok(unasked);
            }
            b'E' if self.expects.is_empty() => {
                // Unasked: the server is going away (admin shutdown, idle timeout). The client is told as PostgreSQL would.
                self.broken = true;
                seen.errors += 1;
                seen.farewell = true;
                return Ok(Verdict::Forward);
            }
            b'E' => self.judge_error(header, hidden, seen),
            b't' => {
                let body = self.copy_body(header);
                self.expects.learn_types(&body);
            }
            b'G' | b'W' => {
                self.copying_in = true;
                seen.copy_in = true;
                self.expects.copy_in_started();
            }
            b'C' => self.copying_in = false,
            b'Z' => {
                let byte = self.inbuf[self.cleared..self.cleared + header.total].last().copied();
                let status = byte.and_then(TransactionStatus::from_byte);
                self.status = status.ok_or_else(|| misbehaved("ReadyForQuery without a status"))?;
                self.copying_in = false;
                if self.expects.is_hidden_ready() {
                    seen.hidden_ready = true;
                } else {
                    seen.ready = Some(self.status);
                }
            }
            _ => {}
        }
        let verdict = self.answer(header.tag, seen)?;
        self.act_on_losses(seen);
        Ok(verdict)
    }

    /// Parses and Closes that did not happen: what is believed of the server follows.
    fn act_on_losses(&mut self, seen: &mut Seen) {
        for statement in seen.consequences.lost_statements.drain(..) {
            self.held.remove(statement.id);
        }
        let lost_close = std::mem::take(&mut seen.consequences.lost_close);
        if lost_close || std::mem::take(&mut seen.consequences.lost_unnamed) {
            self.unnamed = Some(UNKNOWN_STATEMENT);
        }
        self.dirty |= lost_close;
    }

    fn judge_error(&mut self, header: frame::Header, hidden: bool, seen: &mut Seen) {
        self.copying_in = false;
        let body = self.copy_body(header);
        if hidden {
            seen.hidden_error = Some(body);
        } else {
            seen.errors += 1;
            let fields = ErrorFields::parse(&body).ok();
            seen.farewell |= fields.as_ref().is_some_and(ErrorFields::is_fatal);
            seen.stale_plan |= fields.as_ref().is_some_and(is_stale_plan);
        }
    }

    fn copy_body(&self, header: frame::Header) -> Bytes {
        Bytes::copy_from_slice(&self.inbuf[self.cleared + HEADER_LEN..self.cleared + header.total])
    }

    /// Queues a Query of pgherd's own whose answer nobody sees; for the relay, in the client's own flight.
    pub fn queue_hidden_query(&mut self, text: &[u8]) {
        writer::query(&mut self.outbuf, text);
        self.unnamed = None;
        self.expects.push(Expect::HiddenQuery);
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
