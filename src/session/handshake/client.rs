//! A client that is not authenticated yet: reading and writing under one deadline.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::net::framed;
use crate::net::spare;
use crate::net::stream::Stream;
use crate::net::tls::ServerTls;
use crate::wire::frame::Frame;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{self, StartupPacket};
use crate::wire::writer;

/// How long telling a client why it was refused may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a handshake does not go on.
pub(super) enum Stop {
    /// The peer closed between two messages.
    Closed,
    /// Something went wrong.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The client's socket and buffers until it is authenticated.
pub(super) struct Client {
    pub(super) stream: Stream,
    pub(super) inbuf: BytesMut,
    pub(super) outbuf: BytesMut,
    deadline: Instant,
}

impl Client {
    pub(super) fn new(stream: Stream, deadline: Instant) -> Self {
        let mut outbuf = BytesMut::new();
        // Room for everything up to the greeting; a session gives it back when it first waits.
        spare::lend(&mut outbuf);
        Self { stream, inbuf: BytesMut::new(), outbuf, deadline }
    }

    /// The client has until then.
    pub(super) fn extend(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// The first byte of what the client sends, left in the socket.
    pub(super) async fn peek_byte(&self) -> Result<u8, Stop> {
        match within(self.deadline, self.stream.peek_byte()).await? {
            Ok(Some(byte)) => Ok(byte),
            Ok(None) => Err(Stop::Closed),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(Stop::Closed),
            Err(error) => Err(Stop::Failed(error.into())),
        }
    }

    /// The next packet without a tag.
    pub(super) async fn read_startup(&mut self) -> Result<StartupPacket, Stop> {
        let read = within(self.deadline, framed::read_startup(&mut self.stream, &mut self.inbuf)).await??;
        Ok(startup::read(read.ok_or(Stop::Closed)?)?)
    }

    /// The next message, which must be an answer to an authentication request.
    pub(super) async fn read_response(&mut self) -> Result<Frame, Stop> {
        let read = framed::read_frame(&mut self.stream, &mut self.inbuf, limits::AUTH_MESSAGE_BYTES);
        let frame = within(self.deadline, read).await??.ok_or(Stop::Closed)?;
        if frame.tag() == b'p' {
            return Ok(frame);
        }
        Err(Error::protocol(format!("expected password response, got message type {}", frame.tag())).into())
    }

    /// Sends what waits in `outbuf`.
    pub(super) async fn flush(&mut self) -> Result<(), Stop> {
        let Self { stream, outbuf, deadline, .. } = self;
        let sent = within(*deadline, async {
            stream.write_all_buf(outbuf).await?;
            stream.flush().await
        });
        sent.await?.map_err(|error| Stop::Failed(error.into()))
    }

    /// Answers a request for encryption by one byte.
    ///
    /// Whatever came behind the request was not encrypted: someone may have put it there (CVE-2021-23214).
    pub(super) async fn answer(&mut self, byte: &[u8], what: &str) -> Result<(), Stop> {
        self.outbuf.extend_from_slice(byte);
        self.flush().await?;
        if self.inbuf.is_empty() {
            return Ok(());
        }
        let error = Error::protocol(format!("received unencrypted data after {what} request"))
            .detail("This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.");
        // After an "S" the client speaks TLS and could not read this.
        Err(if byte == b"N" { self.refuse_in_place(error).await } else { error }.into())
    }

    /// Takes the TLS handshake.
    pub(super) async fn encrypt(self, tls: &ServerTls) -> Result<Self, Stop> {
        let stream = within(self.deadline, tls.accept(self.stream)).await??;
        Ok(Self { stream, ..self })
    }

    /// Tells the client why, closes the stream, and gives the error back.
    pub(super) async fn refuse(mut self, error: Error) -> Error {
        self.refuse_in_place(error).await
    }

    async fn refuse_in_place(&mut self, error: Error) -> Error {
        // A socket that failed takes no message.
        if error.kind() == ErrorKind::Io {
            return error;
        }
        let error = error.fatal();
        writer::error_response(&mut self.outbuf, &error);
        let _ = timeout(FAREWELL, async {
            self.stream.write_all_buf(&mut self.outbuf).await?;
            self.stream.shutdown().await
        })
        .await;
        error
    }
}

async fn within<T>(deadline: Instant, future: impl Future<Output = T>) -> Result<T, Error> {
    timeout_at(deadline, future).await.map_err(|_| {
        Error::new(ErrorKind::Auth, SqlState::QUERY_CANCELED, "canceling authentication due to timeout").fatal()
    })
}
