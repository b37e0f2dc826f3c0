//! What opens a connection, before messages have tags: startup, TLS and GSS requests, and cancels (PostgreSQL manual, 55.7).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::Body;
use super::options;
use super::sqlstate::SqlState;
use super::writer::{cstr, message};
use crate::error::{Error, ErrorKind};
use crate::limits;

/// The newest minor version of protocol 3 that pgherd speaks.
pub const NEWEST_MINOR: u16 = 2;
/// Bytes of a cancel secret at most (PostgreSQL manual, BackendKeyData).
pub const CANCEL_SECRET_BYTES: usize = 256;

const MAJOR: u16 = 3;
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// One packet without a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartupPacket {
    /// The client wants a session.
    Startup(StartupMessage),
    /// The client asks for TLS; one byte answers.
    SslRequest,
    /// The client asks for GSSAPI encryption; one byte answers.
    GssEncRequest,
    /// The client wants a statement of another connection cancelled; nothing answers.
    Cancel(CancelRequest),
}

/// Who wants a session, and with which settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// The minor version that both sides speak: the client's, or ours if that is older.
    pub minor: u16,
    /// The role.
    pub user: String,
    /// The database; the user's name where the client named none.
    pub database: String,
    /// Whether a replication connection is wanted, and of which kind.
    pub replication: Option<Replication>,
    /// Settings in the order in which PostgreSQL applies them: those of `options`, then those sent by name. A later one overrides.
    pub settings: Vec<(String, String)>,
    /// `_pq_.` options of the protocol, none of which pgherd knows.
    pub unsupported_options: Vec<String>,
    /// Whether the client must be told of an older minor version or of unsupported options.
    pub negotiate: bool,
}

/// A kind of replication connection (PostgreSQL manual, 55.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// `replication=true`: of the whole server; the database means nothing.
    Physical,
    /// `replication=database`: connected to a database, and taking its SQL too.
    Logical,
}

impl Replication {
    /// The value of the startup parameter.
    pub fn parameter(self) -> &'static str {
        match self {
            Self::Physical => "true",
            Self::Logical => "database",
        }
    }

    /// What it is called where it is shown.
    pub fn label(self) -> &'static str {
        match self {
            Self::Physical => "physical",
            Self::Logical => "logical",
        }
    }
}

/// The key of the connection whose statement is to be cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// The process id from BackendKeyData.
    pub pid: i32,
    /// The secret from BackendKeyData.
    pub secret: Bytes,
}

/// Cuts the packet at the front of `buf` out, without its length; `None` until it is complete.
///
/// # Errors
/// A length that no startup packet may have.
pub fn cut(buf: &mut BytesMut) -> Result<Option<Bytes>, Error> {
    let Some((head, _)) = buf.split_at_checked(4) else { return Ok(None) };
    let total = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if !(8..=4 + limits::STARTUP_PACKET_BYTES).contains(&total) {
        return Err(Error::protocol("invalid length of startup packet"));
    }
    if buf.len() < total {
        return Ok(None);
    }
    let mut packet = buf.split_to(total).freeze();
    packet.advance(4);
    Ok(Some(packet))
}

/// Reads a packet that [`cut`] returned.
///
/// # Errors
/// An unknown protocol, or a layout, name or value that PostgreSQL would not take; all are fatal.
pub fn read(mut packet: Bytes) -> Result<StartupPacket, Error> {
    if packet.len() < 4 {
        return Err(Error::protocol("invalid length of startup packet"));
    }
    match packet.get_u32() {
        SSL_REQUEST => Ok(StartupPacket::SslRequest),
        GSSENC_REQUEST => Ok(StartupPacket::GssEncRequest),
        CANCEL_REQUEST => cancel(packet).map(StartupPacket::Cancel),
        version => startup(version, &packet).map(StartupPacket::Startup),
    }
}

fn cancel(mut packet: Bytes) -> Result<CancelRequest, Error> {
    if !(5..=4 + CANCEL_SECRET_BYTES).contains(&packet.len()) {
        return Err(Error::protocol("invalid length of query cancel packet"));
    }
    Ok(CancelRequest { pid: packet.get_i32(), secret: packet })
}

fn startup(version: u32, packet: &[u8]) -> Result<StartupMessage, Error> {
    let (major, minor) = ((version >> 16) as u16, (version & 0xffff) as u16);
    if major != MAJOR {
        return Err(Error::new(
            ErrorKind::Protocol,
            SqlState::FEATURE_NOT_SUPPORTED,
            format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{NEWEST_MINOR}"),
        )
        .fatal());
    }
    let mut draft = Draft::default();
    let mut body = Body::new(packet);
    loop {
        let name = text("name", body.cstr())?;
        if name.is_empty() {
            break;
        }
        draft.set(name, body.cstr())?;
    }
    if !body.rest().is_empty() {
        return Err(Error::protocol("invalid startup packet layout: expected terminator as last byte"));
    }
    draft.finish(minor)
}

#[derive(Default)]
struct Draft {
    user: String,
    database: String,
    replication: Option<Replication>,
    from_options: Vec<(String, String)>,
    by_name: Vec<(String, String)>,
    unsupported_options: Vec<String>,
}

impl Draft {
    fn set(&mut self, name: &str, value: Option<&[u8]>) -> Result<(), Error> {
        // PostgreSQL takes any bytes here and keeps ASCII only; what is no UTF-8 could not be sent on in a SET.
        if name == "application_name" {
            let value = value.ok_or_else(layout)?;
            let value = String::from_utf8(value.to_vec())
                .unwrap_or_else(|_| value.iter().map(|&b| if b.is_ascii() { b as char } else { '?' }).collect());
            self.by_name.push((name.to_owned(), value));
            return Ok(());
        }
        let value = text(name, value)?;
        match name {
            "user" => value.clone_into(&mut self.user),
            "database" => value.clone_into(&mut self.database),
            "replication" => self.replication = replication(value)?,
            "options" => self.from_options = options::settings(value)?,
            _ if name.starts_with("_pq_.") => self.unsupported_options.push(name.to_owned()),
            _ => self.by_name.push((name.to_owned(), value.to_owned())),
        }
        Ok(())
    }

    fn finish(self, requested: u16) -> Result<StartupMessage, Error> {
        if self.user.is_empty() {
            return Err(Error::new(
                ErrorKind::Auth,
                SqlState::INVALID_AUTHORIZATION,
                "no PostgreSQL user name specified in startup packet",
            )
            .fatal());
        }
        let mut settings = self.from_options;
        settings.extend(self.by_name);
        Ok(StartupMessage {
            minor: requested.min(NEWEST_MINOR),
            database: if self.database.is_empty() { self.user.clone() } else { self.database },
            user: self.user,
            replication: self.replication,
            settings,
            negotiate: requested > NEWEST_MINOR || !self.unsupported_options.is_empty(),
            unsupported_options: self.unsupported_options,
        })
    }
}

fn layout() -> Error {
    Error::protocol("invalid startup packet layout: expected terminator as last byte")
}

fn text<'a>(what: &str, bytes: Option<&'a [u8]>) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes.ok_or_else(layout)?).map_err(|_| {
        let message = format!("invalid byte sequence for encoding \"UTF8\" in startup parameter \"{what}\"");
        Error::new(ErrorKind::Protocol, SqlState::CHARACTER_NOT_IN_REPERTOIRE, message).fatal()
    })
}

/// PostgreSQL's parse_bool (any unique prefix, any case), and `database`.
fn replication(value: &str) -> Result<Option<Replication>, Error> {
    let lower = value.to_ascii_lowercase();
    let prefix_of = |word: &str, least: usize| lower.len() >= least && word.starts_with(&lower);
    if lower == "database" {
        return Ok(Some(Replication::Logical));
    }
    if lower == "1" || prefix_of("true", 1) || prefix_of("yes", 1) || prefix_of("on", 2) {
        return Ok(Some(Replication::Physical));
    }
    if lower == "0" || prefix_of("false", 1) || prefix_of("no", 1) || prefix_of("off", 2) {
        return Ok(None);
    }
    let message = format!("invalid value for parameter \"replication\": \"{value}\"");
    Err(Error::new(ErrorKind::Protocol, SqlState::INVALID_PARAMETER_VALUE, message)
        .hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
        .fatal())
}

/// NegotiateProtocolVersion: the minor version that we will speak, and the options that we do not know.
pub fn negotiate_protocol_version(out: &mut BytesMut, startup: &StartupMessage) {
    message(out, b'v', |out| {
        out.put_u16(MAJOR);
        out.put_u16(startup.minor);
        out.put_u32(u32::try_from(startup.unsupported_options.len()).unwrap_or(u32::MAX));
        startup.unsupported_options.iter().for_each(|name| cstr(out, name.as_bytes()));
    });
}

/// A StartupMessage for protocol 3.`minor`.
pub fn startup_message(out: &mut BytesMut, minor: u16, parameters: &[(&str, &str)]) {
    untagged(out, |out| {
        out.put_u16(MAJOR);
        out.put_u16(minor);
        for (name, value) in parameters {
            cstr(out, name.as_bytes());
            cstr(out, value.as_bytes());
        }
        out.put_u8(0);
    });
}

/// An SSLRequest.
pub fn ssl_request(out: &mut BytesMut) {
    untagged(out, |out| out.put_u32(SSL_REQUEST));
}

/// A CancelRequest; a secret over [`CANCEL_SECRET_BYTES`] is cut there, which no server gives out.
pub fn cancel_request(out: &mut BytesMut, pid: i32, secret: &[u8]) {
    untagged(out, |out| {
        out.put_u32(CANCEL_REQUEST);
        out.put_i32(pid);
        out.put_slice(&secret[..secret.len().min(CANCEL_SECRET_BYTES)]);
    });
}

fn untagged(out: &mut BytesMut, fill: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_u32(0);
    fill(out);
    let len = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

#[cfg(test)]
#[path = "startup_tests.rs"]
mod tests;
