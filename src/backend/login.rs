//! Logging in on a server: startup packet, authentication, and what the server reports until it is ready.

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::connect::{Connected, Login, lost};
use crate::auth::password;
use crate::auth::scram::client::{Answer, Binding, Proof, Start};
use crate::auth::scram::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError};
use crate::config::model::{ChannelBinding, ServerAddress};
use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::net::framed::read_frame;
use crate::net::stream::Stream;
use crate::wire::authentication::{self, Authentication};
use crate::wire::backend::{self, BackendKeyData, ErrorFields, ParameterStatus, ServerError};
use crate::wire::frame::Frame;
use crate::wire::frontend::Malformed;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup;
use crate::wire::writer::TransactionStatus;

/// The protocol asked for: 3.2 brings servers longer secrets only, and some poolers refuse to negotiate.
const MINOR: u16 = 0;

/// Logs in on a stream whose encryption is settled. The caller sets the deadline.
pub(super) async fn login(stream: Stream, address: &ServerAddress, login: &Login) -> Result<Connected, Error> {
    let user = address.user.as_deref().unwrap_or(&login.user);
    let database = address.dbname.as_deref().unwrap_or(&login.database);
    let mut session = Session { stream, inbuf: BytesMut::new(), address, login, user };
    let mut parameters = vec![("user", user), ("database", database)];
    // A name of pgherd's own would be what a client that gave none is told is its own.
    parameters.extend(address.application_name.as_deref().map(|name| ("application_name", name)));
    parameters.extend(login.startup.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    session.send(|out| startup::startup_message(out, MINOR, &parameters)).await?;
    session.authenticate().await?;
    let reports = session.until_ready().await?;
    Ok(Connected {
        stream: session.stream,
        inbuf: session.inbuf,
        user: user.to_owned(),
        database: database.to_owned(),
        pid: reports.pid,
        secret: reports.secret,
        parameters: reports.parameters,
        minor: MINOR,
    })
}

struct Session<'a> {
    stream: Stream,
    inbuf: BytesMut,
    address: &'a ServerAddress,
    login: &'a Login,
    user: &'a str,
}

#[derive(Default)]
struct Reports {
    pid: i32,
    secret: Bytes,
    parameters: Vec<(String, String)>,
}

impl Session<'_> {
    async fn send(&mut self, fill: impl FnOnce(&mut BytesMut)) -> Result<(), Error> {
        let mut out = BytesMut::new();
        fill(&mut out);
        self.stream.write_all_buf(&mut out).await.map_err(|cause| lost(self.address, cause))?;
        self.stream.flush().await.map_err(|cause| lost(self.address, cause))
    }

    /// The next message that is neither an error nor a notice.
    async fn next(&mut self) -> Result<Frame, Error> {
        loop {
            let read = read_frame(&mut self.stream, &mut self.inbuf, limits::AUTH_MESSAGE_BYTES).await;
            let frame = read.map_err(|cause| self.broken(&cause.to_string()).cause(cause))?;
            let Some(frame) = frame else {
                return Err(lost(self.address, std::io::ErrorKind::UnexpectedEof.into()));
            };
            match frame.tag() {
                b'E' => return Err(self.refused(&frame)),
                b'N' => tracing::debug!(server = %self.address, "the server sent a notice at login"),
                b'v' => return Err(self.broken("it does not speak protocol 3.0")),
                _ => return Ok(frame),
            }
        }
    }

    async fn authenticate(&mut self) -> Result<(), Error> {
        let mut bound = false;
        loop {
            let frame = self.next().await?;
            let request = self.authentication(&frame)?;
            let demands_binding = self.address.channel_binding == ChannelBinding::Require && !bound;
            match request {
                Authentication::Ok if demands_binding => return Err(self.unbound("it asked for no proof at all")),
                Authentication::Ok => return Ok(()),
                Authentication::Sasl { mechanisms } => bound = self.scram(&mechanisms).await?,
                _ if demands_binding => return Err(self.unbound("it asked for a password instead of SCRAM")),
                Authentication::Md5Password { salt } => {
                    let secret = self.password()?.to_owned();
                    let response = password::md5_response(self.user.as_bytes(), secret.as_bytes(), salt);
                    self.send(|out| authentication::password_message(out, response.as_bytes())).await?;
                }
                Authentication::CleartextPassword => {
                    if self.stream.tls_info().is_none() && !self.stream.is_loopback() {
                        return Err(self
                            .failed("it asks for the password in cleartext over a connection without TLS")
                            .hint("Use sslmode=require, or let the server's pg_hba.conf ask for scram-sha-256."));
                    }
                    let secret = self.password()?.to_owned();
                    self.send(|out| authentication::password_message(out, secret.as_bytes())).await?;
                }
                other => {
                    return Err(self.failed(&format!("it asks for an authentication that is not supported: {other:?}")));
                }
            }
        }
    }

    /// A whole SASL exchange; whether the channel was bound.
    async fn scram(&mut self, mechanisms: &[&[u8]]) -> Result<bool, Error> {
        let end_point = self.stream.tls_info().and_then(|info| info.end_point.clone());
        let (mechanism, binding) = self.choose(mechanisms, end_point.as_deref())?;
        let start = Start::new(binding);
        self.send(|out| authentication::sasl_initial_response(out, mechanism, start.message().as_bytes())).await?;

        let frame = self.next().await?;
        let Authentication::SaslContinue(challenge) = self.authentication(&frame)? else {
            return Err(self.broken("it sent no SCRAM challenge"));
        };
        let answer = self.prove(start, challenge)?;
        self.send(|out| authentication::sasl_response(out, answer.message().as_bytes())).await?;

        let frame = self.next().await?;
        let Authentication::SaslFinal(proof) = self.authentication(&frame)? else {
            return Err(self.broken("it sent no SCRAM proof of its own"));
        };
        answer.finish(proof).map_err(|error| self.failed(&error.to_string()).cause(error))?;
        Ok(matches!(binding, Binding::EndPoint(_)))
    }

    /// Picks the mechanism and what to say of the channel, by libpq's rules.
    fn choose<'b>(
        &self,
        mechanisms: &[&[u8]],
        end_point: Option<&'b [u8]>,
    ) -> Result<(&'static str, Binding<'b>), Error> {
        let offers = |name: &str| mechanisms.contains(&name.as_bytes());
        let wanted = self.address.channel_binding;
        let plus = offers(SCRAM_SHA_256_PLUS);
        match end_point.filter(|_| wanted != ChannelBinding::Disable) {
            Some(hash) if plus => return Ok((SCRAM_SHA_256_PLUS, Binding::EndPoint(hash))),
            _ if plus && self.stream.tls_info().is_none() => {
                return Err(self.broken("it offered SCRAM-SHA-256-PLUS over a connection without TLS"));
            }
            _ if wanted == ChannelBinding::Require => return Err(self.unbound("the channel cannot be bound")),
            Some(_) if offers(SCRAM_SHA_256) => return Ok((SCRAM_SHA_256, Binding::NotOffered)),
            None if offers(SCRAM_SHA_256) => return Ok((SCRAM_SHA_256, Binding::None)),
            _ => {}
        }
        let names: Vec<_> = mechanisms.iter().map(|name| String::from_utf8_lossy(name)).collect();
        Err(self.failed(&format!("it offers no SASL mechanism that is supported, only {}", names.join(", "))))
    }

    fn prove(&self, start: Start, challenge: &[u8]) -> Result<Answer, Error> {
        let password = self.address.password.as_ref().or(self.login.password.as_ref());
        let proof = match (password, &self.login.scram_keys) {
            (Some(password), _) => Proof::Password(password.expose().as_bytes()),
            // The keys are the client's: they prove its own name and no other.
            (None, Some(keys)) if self.user == self.login.user => Proof::Keys(keys),
            (None, _) => return Err(self.no_password()),
        };
        start.challenge(challenge, proof).map_err(|error| {
            let failed = self.failed(&error.to_string()).cause(error);
            if error != ScramError::OtherVerifier {
                return failed;
            }
            failed.hint("Copy the role's secret from the server's pg_authid.rolpassword, or configure the password.")
        })
    }

    /// Reads what the server reports until it is ready for the first statement.
    async fn until_ready(&mut self) -> Result<Reports, Error> {
        let mut reports = Reports::default();
        loop {
            let frame = self.next().await?;
            match frame.tag() {
                b'S' => {
                    let status = ParameterStatus::parse(frame.body()).map_err(|what| self.malformed(what))?;
                    if reports.parameters.len() >= limits::SETTINGS {
                        return Err(self.broken("it reports more settings than pgherd keeps"));
                    }
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    reports.parameters.push((text(status.name), text(status.value)));
                }
                b'K' => {
                    let key = BackendKeyData::parse(frame.body()).map_err(|what| self.malformed(what))?;
                    (reports.pid, reports.secret) = (key.pid, Bytes::copy_from_slice(key.secret));
                }
                b'Z' => {
                    return match backend::ready_for_query(frame.body()) {
                        Ok(TransactionStatus::Idle) => Ok(reports),
                        _ => Err(self.broken("it is not idle after the login")),
                    };
                }
                tag => return Err(self.broken(&format!("it sent {:?} before it was ready", tag as char))),
            }
        }
    }

    fn authentication<'f>(&self, frame: &'f Frame) -> Result<Authentication<'f>, Error> {
        if frame.tag() != b'R' {
            return Err(self.broken(&format!("it sent {:?} instead of an authentication request", frame.tag() as char)));
        }
        Authentication::parse(frame.body()).map_err(|what| self.malformed(what))
    }

    fn password(&self) -> Result<&str, Error> {
        let password = self.address.password.as_ref().or(self.login.password.as_ref());
        password.map(|password| password.expose()).ok_or_else(|| self.no_password())
    }

    fn no_password(&self) -> Error {
        self.failed("it asks for a password and none is configured").hint(
            "Give the user a password or password_file, or write user and password into the server's connection string.",
        )
    }

    /// The server's own refusal.
    fn refused(&self, frame: &Frame) -> Error {
        let fields = match ErrorFields::parse(frame.body()) {
            Ok(fields) => fields.to_server_error(),
            Err(what) => return self.malformed(what),
        };
        let state = match fields.code.as_str() {
            "3D000" => SqlState::INVALID_CATALOG_NAME,
            "53300" => SqlState::TOO_MANY_CONNECTIONS,
            "57P01" => SqlState::ADMIN_SHUTDOWN,
            "57P03" => SqlState::CANNOT_CONNECT_NOW,
            _ => SqlState::CANNOT_CONNECT,
        };
        let message = format!("server {} refused the login of user \"{}\"", self.address, self.user);
        let error = Error::new(ErrorKind::Backend, state, message).detail(fields.to_string());
        let error = match hint(&fields) {
            Some(hint) => error.hint(hint),
            None => error,
        };
        error.cause(fields)
    }

    fn failed(&self, why: &str) -> Error {
        let message = format!("could not log in on server {} as user \"{}\": {why}", self.address, self.user);
        Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, message)
    }

    fn broken(&self, why: &str) -> Error {
        let message = format!("server {} broke the protocol at login: {why}", self.address);
        Error::new(ErrorKind::Backend, SqlState::PROTOCOL_VIOLATION, message)
    }

    fn malformed(&self, what: Malformed) -> Error {
        self.broken(what.0)
    }

    fn unbound(&self, why: &str) -> Error {
        self.failed(&format!("channel_binding=require, but {why}"))
    }
}

/// What to do about a server's refusal: its own hint, else ours.
fn hint(error: &ServerError) -> Option<String> {
    let ours = match error.code.as_str() {
        "28P01" => "The password that pgherd has for this role is not the server's.",
        "28000" => "The server's pg_hba.conf decides who may log in from where, and how.",
        "3D000" => "Name the database in the server's connection string (dbname=...) if it is called otherwise there.",
        "53300" => "Lower max_connections in pgherd, or raise it at the server.",
        _ => return error.hint.clone(),
    };
    error.hint.clone().or_else(|| Some(ours.to_owned()))
}
