//! From a server's address to a raw, authenticated connection, with libpq's meaning of `sslmode` (PostgreSQL manual, 34.19).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::login;
use crate::auth::scram::ScramKeys;
use crate::config::model::{Secret, ServerAddress, SslMode};
use crate::error::{Error, ErrorKind};
use crate::net::stream::Stream;
use crate::net::tls::ClientTls;
use crate::wire::backend::ServerError;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup;

/// Who logs in. What the server's own connection string says of user, password, database and time goes before it.
#[derive(Debug, Clone)]
pub struct Login {
    /// The role.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// Keys that the client's own SCRAM login left, for when there is no password.
    pub scram_keys: Option<Arc<ScramKeys>>,
    /// The database.
    pub database: String,
    /// What else the startup packet carries, for a connection that is one client's alone: nothing else may be in it, since the
    /// values would be what RESET goes back to.
    pub startup: Vec<(String, String)>,
    /// How long all of it may take.
    pub connect_timeout: Duration,
    /// TLS settings, shared by all connections.
    pub tls: ClientTls,
}

/// A connection that is logged in and idle: ReadyForQuery has been read.
#[derive(Debug)]
pub struct Connected {
    /// The server's socket.
    pub stream: Stream,
    /// Bytes read beyond ReadyForQuery (a notice or a ParameterStatus, at most).
    pub inbuf: BytesMut,
    /// The role that was logged in.
    pub user: String,
    /// The database that was connected to.
    pub database: String,
    /// The server's process; 0 where it gave no cancel key.
    pub pid: i32,
    /// What a CancelRequest must carry; empty where the server gave none.
    pub secret: Bytes,
    /// What the server reported of its settings, in order; a later one overrides.
    pub parameters: Vec<(String, String)>,
    /// The minor version of protocol 3 in use.
    pub minor: u16,
}

/// Connects, settles encryption and logs in, all under one deadline.
///
/// The startup packet carries user, database and `application_name` alone: what else it carried would become the values
/// that RESET goes back to, for every client that uses the connection later.
///
/// # Errors
/// [`ErrorKind::Backend`], naming the server. Where the server itself refused, its message is the detail and a
/// [`ServerError`] the cause. [`ErrorKind::Config`] for certificate files that cannot be used.
pub async fn connect(address: &ServerAddress, login: &Login) -> Result<Connected, Error> {
    let limit = address.connect_timeout.unwrap_or(login.connect_timeout);
    match timeout(limit, Box::pin(attempts(address, login))).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(address, limit)),
    }
}

async fn attempts(address: &ServerAddress, login: &Login) -> Result<Connected, Error> {
    let stream = open(address, &login.tls).await?;
    let result = login::login(stream, address, login).await;
    let Err(refused) = &result else { return result };
    // `allow`: the server may insist on TLS. Only its own word counts, and not one that TLS cannot change.
    if address.sslmode != SslMode::Allow || address.is_unix() || !may_want_tls(refused) {
        return result;
    }
    let stream = Stream::connect(address).await?;
    match request_tls(address, stream, &login.tls).await? {
        Answer::Encrypted(stream) => login::login(stream, address, login).await,
        Answer::Declined(_) => result,
    }
}

fn may_want_tls(error: &Error) -> bool {
    let server = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<ServerError>());
    server.is_some_and(|server| {
        !matches!(server.code.as_str(), "28P01" | "3D000" | "53300" | "57P01" | "57P02" | "57P03")
    })
}

/// Connects and settles encryption as far as that comes before the first packet.
pub async fn open(address: &ServerAddress, tls: &ClientTls) -> Result<Stream, Error> {
    let stream = Stream::connect(address).await?;
    // libpq ignores sslmode on Unix sockets.
    if address.is_unix() {
        return Ok(stream);
    }
    match address.sslmode {
        SslMode::Disable | SslMode::Allow => Ok(stream),
        _ if address.sslnegotiation_direct => tls.connect(address, stream).await,
        SslMode::Prefer => match request_tls(address, stream, tls).await? {
            Answer::Encrypted(stream) | Answer::Declined(stream) => Ok(stream),
        },
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => match request_tls(address, stream, tls).await? {
            Answer::Encrypted(stream) => Ok(stream),
            Answer::Declined(_) => {
                let message = format!("server {address} does not support TLS, but TLS was required");
                Err(Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, message)
                    .hint("Turn `ssl` on at the server, or choose a weaker sslmode in the connection string."))
            }
        },
    }
}

enum Answer {
    Encrypted(Stream),
    Declined(Stream),
}

/// Sends SSLRequest. The answer is read as one byte and no more: what follows it belongs to TLS (CVE-2021-23222).
async fn request_tls(address: &ServerAddress, mut stream: Stream, tls: &ClientTls) -> Result<Answer, Error> {
    let mut request = BytesMut::new();
    startup::ssl_request(&mut request);
    let lost = |cause| lost(address, cause);
    stream.write_all_buf(&mut request).await.map_err(lost)?;
    match stream.read_u8().await.map_err(lost)? {
        b'S' => tls.connect(address, stream).await.map(Answer::Encrypted),
        b'N' => Ok(Answer::Declined(stream)),
        // An error's text here was not authenticated by anyone: it is not shown (CVE-2024-10977).
        other => {
            let message = format!("server {address} answered an SSLRequest by byte {other:#04x}");
            Err(Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, message)
                .hint("Is that a PostgreSQL server? It may also be out of connections."))
        }
    }
}

/// The connection went away before it was usable.
pub(super) fn lost(address: &ServerAddress, cause: std::io::Error) -> Error {
    let message = format!("lost the connection to server {address} while logging in: {cause}");
    Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, message).cause(cause)
}

/// The deadline passed.
pub(super) fn timed_out(address: &ServerAddress, limit: Duration) -> Error {
    let message = format!("server {address} could not be connected to within {limit:?}");
    Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, message)
        .hint("Is the server reachable and not overloaded? connect_timeout sets how long to wait.")
}
