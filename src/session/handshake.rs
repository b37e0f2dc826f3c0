//! From a fresh socket to an authenticated client: TLS, startup packet, authentication (PostgreSQL manual, 55.2.1).

mod authenticate;
mod client;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use self::authenticate::Entrance;
use self::client::{Client, Stop};
use crate::auth::scram::{ScramKeys, ScramStore};
use crate::config::model::{Config, Database, ListenTlsMode, User};
use crate::error::{Error, ErrorKind};
use crate::net::stream::Stream;
use crate::net::tls::ServerTls;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{Replication, StartupMessage, StartupPacket};

/// The first byte of a TLS record that opens a handshake, which no startup packet can have.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a client that is turned away may take to hear why.
const TURNING_AWAY: Duration = Duration::from_secs(2);

/// What a handshake is judged by. A reload makes a new one, and shares `scram`.
#[derive(Debug, Clone)]
pub struct HandshakeContext {
    /// Users, databases, and the rules of `[listen]`.
    pub config: Arc<Config>,
    /// Our certificate; `None` declines TLS.
    pub tls: Option<Arc<ServerTls>>,
    /// Verifiers derived so far.
    pub scram: Arc<ScramStore>,
}

/// What a connection turned out to want.
#[derive(Debug)]
pub enum Handshake {
    /// A session, by someone who may have it.
    Session(Box<Authenticated>),
    /// A replication connection, by someone who may have it.
    Replication(Box<Authenticated>, Replication),
    /// The console, by someone who may use it.
    Console(Box<Operator>),
    /// A statement of another connection to be cancelled. The connection is closed when that has been done.
    Cancel {
        /// The process id we gave out.
        pid: i32,
        /// The secret we gave out with it.
        secret: Bytes,
        /// Closing it tells the client that the request has been passed on.
        stream: Stream,
    },
    /// Nothing: the peer closed before it asked or proved anything, as port probes and password prompts do.
    Closed,
}

/// A client that proved who it is and may use the console.
#[derive(Debug)]
pub struct Operator {
    /// The client's socket.
    pub stream: Stream,
    /// Bytes that it sent already beyond the login.
    pub inbuf: BytesMut,
    /// What waits to be sent to it: AuthenticationOk.
    pub outbuf: BytesMut,
    /// Who it is.
    pub user: Arc<User>,
    /// Whether it may do more than look.
    pub is_admin: bool,
}

/// A client that proved who it is.
#[derive(Debug)]
pub struct Authenticated {
    /// The client's socket.
    pub stream: Stream,
    /// Bytes that it sent already beyond the login.
    pub inbuf: BytesMut,
    /// What waits to be sent to it: AuthenticationOk. The caller adds to it and flushes.
    pub outbuf: BytesMut,
    /// Who it is.
    pub user: Arc<User>,
    /// What it asked for, and may have.
    pub database: Arc<Database>,
    /// What else its startup packet said.
    pub startup: StartupParameters,
    /// What SCRAM left us: lets us log in as this user on servers that hold the same verifier.
    pub client_keys: Option<ScramKeys>,
}

/// What a startup packet said beyond user and database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupParameters {
    /// The minor version of protocol 3 that was agreed on: 0 or 2 (longer cancel secrets).
    pub minor: u16,
    /// Settings in the order in which PostgreSQL applies them; a later one overrides. Not validated yet.
    pub settings: Vec<(String, String)>,
}

/// Takes a fresh connection to the point where it may have a session, within `listen.login_timeout`.
///
/// # Errors
/// Whatever kept it from that. A client that could be told has been told (ErrorResponse, FATAL) and the stream is closed.
pub async fn accept(stream: Stream, context: &HandshakeContext) -> Result<Handshake, Error> {
    let deadline = Instant::now() + context.config.listen.login_timeout;
    let opened = match open(stream, context, deadline).await {
        Ok(opened) => opened,
        Err(Stop::Closed) => return Ok(Handshake::Closed),
        Err(Stop::Failed(error)) => return Err(error),
    };
    match opened {
        Opened::Startup(client, startup) => prove(client, context, startup).await,
        Opened::Other(handshake) => Ok(handshake),
    }
}

/// As [`accept`] for those whose user name `admit` takes; the others are told `refusal`, before anything is proved, as by [`turn_away`].
///
/// # Errors
/// As those two.
pub async fn accept_some(
    stream: Stream,
    context: &HandshakeContext,
    refusal: Error,
    admit: impl FnOnce(&str) -> bool,
) -> Result<Handshake, Error> {
    let deadline = Instant::now() + context.config.listen.login_timeout.min(TURNING_AWAY);
    match open(stream, context, deadline).await {
        Ok(Opened::Startup(mut client, startup)) if admit(&startup.user) => {
            client.extend(Instant::now() + context.config.listen.login_timeout);
            prove(client, context, startup).await
        }
        Ok(Opened::Startup(client, _)) => Err(client.refuse(refusal).await),
        Ok(Opened::Other(handshake)) => Ok(handshake),
        Err(Stop::Closed) => Ok(Handshake::Closed),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Has a client prove who it says it is.
async fn prove(mut client: Client, context: &HandshakeContext, startup: StartupMessage) -> Result<Handshake, Error> {
    match authenticate::authenticate(&mut client, context, &startup).await {
        Ok(Entrance::Console { user, is_admin }) => {
            let Client { stream, inbuf, outbuf, .. } = client;
            Ok(Handshake::Console(Box::new(Operator { stream, inbuf, outbuf, user, is_admin })))
        }
        Ok(Entrance::Database(admitted)) => {
            let authenticated = Box::new(Authenticated {
                stream: client.stream,
                inbuf: client.inbuf,
                outbuf: client.outbuf,
                user: admitted.user,
                database: admitted.database,
                startup: StartupParameters { minor: startup.minor, settings: startup.settings },
                client_keys: admitted.keys,
            });
            Ok(match startup.replication {
                Some(kind) => Handshake::Replication(authenticated, kind),
                None => Handshake::Session(authenticated),
            })
        }
        Err(Stop::Closed) => Ok(Handshake::Closed),
        Err(Stop::Failed(error)) => Err(client.refuse(error).await),
    }
}

/// Turns a client away before it is authenticated, for reasons such as a limit, in a way that drivers can show.
///
/// Encryption is settled first, since a driver that asked for TLS reads no error before. A CancelRequest is not turned away: it
/// holds no place for long, and is what frees one.
///
/// # Errors
/// The refusal itself once it was told, or what kept it from being told.
pub async fn turn_away(stream: Stream, context: &HandshakeContext, refusal: Error) -> Result<Handshake, Error> {
    let deadline = Instant::now() + context.config.listen.login_timeout.min(TURNING_AWAY);
    match open(stream, context, deadline).await {
        Ok(Opened::Startup(client, _)) => Err(client.refuse(refusal).await),
        Ok(Opened::Other(handshake)) => Ok(handshake),
        Err(Stop::Closed) => Ok(Handshake::Closed),
        Err(Stop::Failed(error)) => Err(error),
    }
}

enum Opened {
    Startup(Client, StartupMessage),
    Other(Handshake),
}

/// Settles encryption and waits for what the client wants.
async fn open(stream: Stream, context: &HandshakeContext, deadline: Instant) -> Result<Opened, Stop> {
    let mut client = Client::new(stream, deadline);
    let tls = context.tls.as_deref().filter(|_| !client.stream.is_unix());
    let (mut tls_settled, mut gss_settled) = (false, false);
    if let Some(tls) = tls
        && client.peek_byte().await? == TLS_HANDSHAKE
    {
        client = client.encrypt(tls).await?;
        tls_settled = true;
        if !client.stream.tls_info().is_some_and(|info| info.alpn) {
            let message = "received direct SSL connection request without ALPN protocol negotiation extension";
            return Err(client.refuse(Error::protocol(message)).await.into());
        }
    }
    loop {
        let packet = match client.read_startup().await {
            Ok(packet) => packet,
            Err(Stop::Failed(error)) => return Err(client.refuse(error).await.into()),
            Err(Stop::Closed) => return Err(Stop::Closed),
        };
        match packet {
            StartupPacket::SslRequest if !tls_settled => {
                tls_settled = true;
                client.answer(if tls.is_some() { b"S" } else { b"N" }, "SSL").await?;
                if let Some(tls) = tls {
                    client = client.encrypt(tls).await?;
                }
            }
            StartupPacket::GssEncRequest if !gss_settled => {
                gss_settled = true;
                client.answer(b"N", "GSSAPI encryption").await?;
            }
            StartupPacket::SslRequest => return Err(client.refuse(unexpected("1234.5679")).await.into()),
            StartupPacket::GssEncRequest => return Err(client.refuse(unexpected("1234.5680")).await.into()),
            StartupPacket::Cancel(request) => {
                let (pid, secret, stream) = (request.pid, request.secret, client.stream);
                return Ok(Opened::Other(Handshake::Cancel { pid, secret, stream }));
            }
            StartupPacket::Startup(startup) => return Ok(Opened::Startup(client, startup)),
        }
    }
}

/// PostgreSQL reads a request that comes a second time as a protocol version.
fn unexpected(version: &str) -> Error {
    let message = format!("unsupported frontend protocol {version}: server supports 3.0 to 3.2");
    Error::new(ErrorKind::Protocol, SqlState::FEATURE_NOT_SUPPORTED, message).fatal()
}

/// Whether a connection is encrypted as `[listen] tls` demands. Unix sockets are exempt: libpq has no TLS there.
fn check_encryption(stream: &Stream, mode: ListenTlsMode) -> Result<(), Error> {
    let refused = |message: &str| Err(Error::new(ErrorKind::Auth, SqlState::INVALID_AUTHORIZATION, message).fatal());
    match (mode, stream.tls_info()) {
        _ if stream.is_unix() => Ok(()),
        (ListenTlsMode::Off | ListenTlsMode::Prefer, _) | (ListenTlsMode::Require, Some(_)) => Ok(()),
        (ListenTlsMode::VerifyClient, Some(info)) if info.client_verified => Ok(()),
        (ListenTlsMode::VerifyClient, Some(_)) => refused("connection requires a valid client certificate"),
        (ListenTlsMode::Require | ListenTlsMode::VerifyClient, None) => {
            refused("connection requires TLS").map_err(|error: Error| error.hint("Connect with sslmode=require."))
        }
    }
}
