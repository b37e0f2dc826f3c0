//! Moving bytes between a client and the server it holds, both ways at once, undecoded wherever nobody must look.
//!
//! One poll serves both sockets in one task: no task per server, no channel, no lock. What a slow client does not take stays
//! in its server's socket.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;

use crate::backend::scan::Seen;
use crate::backend::server::ServerConn;
use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::net::spare;
use crate::net::stream::Stream;
use crate::wire::sqlstate::SqlState;

/// The client's end: its socket, what it sent and is not yet handled, what it is to get.
pub struct ClientSide {
    /// Its socket.
    pub stream: Stream,
    /// What it sent.
    pub inbuf: BytesMut,
    /// What it is to get before anything that a server has cleared.
    pub outbuf: BytesMut,
}

/// Why the relay came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The client sent something.
    FromClient,
    /// The server sent something that was scanned; see [`Seen`].
    FromServer,
    /// The client is gone.
    ClientGone,
    /// The server is gone.
    ServerGone,
}

/// Moves bytes until something happened that the session must look at. `read_client` is off while what the client sent
/// before cannot be handled yet.
///
/// # Errors
/// The server broke the protocol.
pub fn poll(
    cx: &mut Context<'_>,
    client: &mut ClientSide,
    mut server: Option<&mut ServerConn>,
    seen: &mut Seen,
    read_client: bool,
) -> Poll<Result<Event, Error>> {
    let was_stuck = is_stuck(client, server.as_deref());
    if let Some(server) = server.as_deref_mut()
        && (server.unflushed || !server.outbuf.is_empty())
    {
        let written = poll_write_all(cx, &mut server.stream, &mut server.outbuf);
        // TLS may have taken everything and sent only a part of it: then nothing but a flush sends the rest.
        server.unflushed = written.is_pending();
        if let Poll::Ready(Err(_)) = written {
            // What the server said before it went may still be there to read; only then is it known to be gone.
            server.outbuf.clear();
            server.mark_broken();
        }
    }
    loop {
        if poll_flush_client(cx, client, server.as_deref_mut()).is_err() {
            return Poll::Ready(Ok(Event::ClientGone));
        }
        let Some(server) = server.as_deref_mut() else { break };
        match poll_server(cx, client, server, seen) {
            // Only rows so far: write them and read on, nobody has to decide anything.
            Poll::Ready(Ok(Event::FromServer)) if seen.ready.is_none() && !seen.calls && !server.expects.is_empty() => {
            }
            Poll::Ready(event) => return Poll::Ready(event),
            Poll::Pending => break,
        }
    }
    let stuck = is_stuck(client, server.as_deref());
    if was_stuck && !stuck {
        // Messages that were read already may be handled now, and nothing else would wake the session to do it.
        return Poll::Ready(Ok(Event::FromClient));
    }
    let read = match read_client && !stuck {
        true => poll_read(cx, &mut client.stream, &mut client.inbuf),
        false => Poll::Pending,
    };
    match read {
        Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Ok(Event::ClientGone)),
        Poll::Ready(Ok(_)) => Poll::Ready(Ok(Event::FromClient)),
        Poll::Pending => {
            // While an answer is on its way they are about to be needed again.
            if server.is_none_or(|server| server.expects.is_empty()) {
                spare::give_back(&mut client.inbuf);
                spare::give_back(&mut client.outbuf);
            }
            Poll::Pending
        }
    }
}

/// Gives the client what a server has cleared for it, as far as its socket takes it. That it is gone is found by the next poll.
pub fn hand_over(cx: &mut Context<'_>, client: &mut ClientSide, server: Option<&mut ServerConn>) {
    let _ = poll_flush_client(cx, client, server);
}

/// Whether a queue is so full that the client's next message must wait.
pub fn is_stuck(client: &ClientSide, server: Option<&ServerConn>) -> bool {
    client.outbuf.len() >= limits::CLIENT_QUEUE_BYTES
        || server.is_some_and(|server| {
            server.outbuf.len() >= limits::SERVER_QUEUE_BYTES || server.expects.len() >= limits::SERVER_QUEUE_MESSAGES
        })
}

/// Reads from the server as long as the client keeps up, and scans what came.
fn poll_server(
    cx: &mut Context<'_>,
    client: &mut ClientSide,
    server: &mut ServerConn,
    seen: &mut Seen,
) -> Poll<Result<Event, Error>> {
    if client.outbuf.len() >= limits::CLIENT_QUEUE_BYTES || server.cleared >= limits::READ_CHUNK_BYTES {
        return Poll::Pending;
    }
    match ready!(poll_read(cx, &mut server.stream, &mut server.inbuf)) {
        Ok(0) | Err(_) => {
            server.mark_broken();
            Poll::Ready(Ok(Event::ServerGone))
        }
        Ok(_) => Poll::Ready(server.scan(&mut client.outbuf, seen).map(|()| Event::FromServer)),
    }
}

/// Writes what the client is to get: first its own queue, then, straight from the server's buffer, what is cleared.
fn poll_flush_client(
    cx: &mut Context<'_>,
    client: &mut ClientSide,
    server: Option<&mut ServerConn>,
) -> std::io::Result<()> {
    if !client.outbuf.is_empty() {
        match poll_write_all(cx, &mut client.stream, &mut client.outbuf) {
            Poll::Ready(result) => result?,
            Poll::Pending => return Ok(()),
        }
    }
    let Some(server) = server else { return Ok(()) };
    while server.cleared > 0 {
        match Pin::new(&mut client.stream).poll_write(cx, &server.inbuf[..server.cleared]) {
            Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(written)) => {
                server.inbuf.advance(written);
                server.cleared -= written;
            }
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(()),
        }
    }
    // A TLS stream holds records back until it is flushed; on a plain socket this does nothing.
    match Pin::new(&mut client.stream).poll_flush(cx) {
        Poll::Ready(result) => result,
        Poll::Pending => Ok(()),
    }
}

fn poll_write_all(cx: &mut Context<'_>, stream: &mut Stream, buf: &mut BytesMut) -> Poll<std::io::Result<()>> {
    while !buf.is_empty() {
        match ready!(Pin::new(&mut *stream).poll_write(cx, buf))? {
            0 => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
            written => buf.advance(written),
        }
    }
    Pin::new(stream).poll_flush(cx)
}

/// Reads once into `buf`'s spare room. Room larger than the data tells tokio that the socket is empty, which saves a read;
/// a buffer that was filled to the brim grows.
fn poll_read(cx: &mut Context<'_>, stream: &mut Stream, buf: &mut BytesMut) -> Poll<std::io::Result<usize>> {
    const SMALL: usize = 4 * 1024;
    spare::lend(buf);
    if buf.capacity() - buf.len() < SMALL {
        buf.reserve((buf.capacity() * 2).clamp(SMALL, limits::READ_CHUNK_BYTES * 2));
    }
    tokio_util::io::poll_read_buf(Pin::new(stream), cx, buf)
}

impl ClientSide {
    /// Ready when the client is gone. What it sends meanwhile is kept, up to a limit, for when its turn comes.
    pub fn poll_gone_client(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        while self.inbuf.len() < limits::READ_CHUNK_BYTES {
            match ready!(poll_read(cx, &mut self.stream, &mut self.inbuf)) {
                Ok(0) => return Poll::Ready(gone(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(gone(error)),
            }
        }
        Poll::Pending
    }

    /// Writes everything that is queued for the client.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn flush(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|cx| self.poll_flush_queue(cx)).await
    }

    /// Writes what is queued for the client; ready when nothing is left.
    ///
    /// # Errors
    /// The client is gone.
    pub fn poll_flush_queue(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        poll_write_all(cx, &mut self.stream, &mut self.outbuf).map_err(gone)
    }
}

fn gone(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, SqlState::CONNECTION_FAILURE, "client is gone").cause(error).fatal()
}
