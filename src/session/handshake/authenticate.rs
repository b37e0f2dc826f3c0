//! Who a client is, and whether it may have the database that it asks for.

use std::sync::Arc;

use super::client::{Client, Stop};
use super::{HandshakeContext, check_encryption};
use crate::auth::password;
use crate::auth::scram::server::Offer;
use crate::auth::scram::{ScramError, ScramKeys, ScramVerifier};
use crate::config::model::{AuthMethod, CONSOLE_DATABASES, Config, Database, User};
use crate::error::{Error, ErrorKind};
use crate::net::stream::Stream;
use crate::wire::authentication::{self, Authentication, SaslInitialResponse};
use crate::wire::frontend::Malformed;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{self, Replication, StartupMessage};

/// Where somebody was let in.
pub(super) enum Entrance {
    /// To a database.
    Database(Admitted),
    /// To the console.
    Console { user: Arc<User>, is_admin: bool },
}

/// Who was let in, and to what.
pub(super) struct Admitted {
    pub(super) user: Arc<User>,
    pub(super) database: Arc<Database>,
    pub(super) keys: Option<ScramKeys>,
}

/// Authenticates and leaves AuthenticationOk in the client's `outbuf`.
pub(super) async fn authenticate(
    client: &mut Client,
    context: &HandshakeContext,
    startup: &StartupMessage,
) -> Result<Entrance, Stop> {
    check_encryption(&client.stream, context.config.listen.tls.mode)?;
    if startup.negotiate {
        startup::negotiate_protocol_version(&mut client.outbuf, startup);
    }
    let Some(user) = context.config.users.get(&startup.user).map(Arc::clone) else {
        // A whole exchange with a verifier that nothing fits: what does not exist looks like a wrong password.
        scram(client, context.scram.mock(&startup.user), &startup.user).await?;
        return Err(wrong_password(&startup.user, "there is no such user").into());
    };
    let keys = prove(client, context, &user).await?;
    authentication::request(&mut client.outbuf, &Authentication::Ok);
    // As PostgreSQL does: which databases there are is told only to those who are known.
    if let Some(kind) = startup.replication {
        let database = replicated(&context.config, &user, &startup.database, kind)?;
        return Ok(Entrance::Database(Admitted { user, database, keys }));
    }
    if CONSOLE_DATABASES.contains(&startup.database.as_str()) {
        let is_admin = may_use_console(&context.config, &user, &startup.database)?;
        return Ok(Entrance::Console { user, is_admin });
    }
    let database = database(&context.config, &user, &startup.database)?;
    Ok(Entrance::Database(Admitted { user, database, keys }))
}

async fn prove(client: &mut Client, context: &HandshakeContext, user: &User) -> Result<Option<ScramKeys>, Stop> {
    match user.auth {
        AuthMethod::Scram => {
            let Some(verifier) = verifier(context, user) else {
                scram(client, context.scram.mock(&user.name), &user.name).await?;
                return Err(wrong_password(&user.name, "the user has no usable password or scram_secret").into());
            };
            scram(client, verifier, &user.name).await.map(Some)
        }
        AuthMethod::Md5 => md5(client, user).await.map(|()| None),
        AuthMethod::Cleartext => cleartext(client, user).await.map(|()| None),
        AuthMethod::Cert => certificate(&client.stream, user).map(|()| None).map_err(Stop::from),
        AuthMethod::Trust => trust(&client.stream, user).map(|()| None).map_err(Stop::from),
    }
}

fn verifier(context: &HandshakeContext, user: &User) -> Option<Arc<ScramVerifier>> {
    match (&user.scram_secret, &user.password) {
        (Some(secret), _) => ScramVerifier::parse(secret).map(Arc::new),
        (None, Some(password)) => Some(context.scram.verifier(&user.name, password)),
        (None, None) => None,
    }
}

async fn scram(client: &mut Client, verifier: Arc<ScramVerifier>, user: &str) -> Result<ScramKeys, Stop> {
    let end_point = client.stream.tls_info().and_then(|info| info.end_point.clone());
    let offer = Offer { verifier, end_point: end_point.as_deref() };
    authentication::request(&mut client.outbuf, &Authentication::Sasl { mechanisms: offer.mechanisms() });
    client.flush().await?;

    let frame = client.read_response().await?;
    let response = SaslInitialResponse::parse(frame.body()).map_err(malformed)?;
    let data = match response.data {
        Some(data) => frame.bytes.slice_ref(data),
        // A client may leave its first message out; the challenge is empty then (PostgreSQL does the same).
        None => {
            authentication::request(&mut client.outbuf, &Authentication::SaslContinue(b""));
            client.flush().await?;
            let frame = client.read_response().await?;
            frame.bytes.slice_ref(frame.body())
        }
    };
    let challenge = offer.first(response.mechanism, &data).map_err(|error| refusal(user, error))?;
    let message = challenge.message().as_bytes();
    authentication::request(&mut client.outbuf, &Authentication::SaslContinue(message));
    client.flush().await?;

    let frame = client.read_response().await?;
    let proven = challenge.finish(frame.body()).map_err(|error| refusal(user, error))?;
    authentication::request(&mut client.outbuf, &Authentication::SaslFinal(proven.message.as_bytes()));
    Ok(proven.keys)
}

async fn md5(client: &mut Client, user: &User) -> Result<(), Stop> {
    let salt: [u8; 4] = rand::random();
    authentication::request(&mut client.outbuf, &Authentication::Md5Password { salt });
    client.flush().await?;
    let frame = client.read_response().await?;
    let response = authentication::password(frame.body()).map_err(malformed)?;
    let Some(password) = &user.password else {
        return Err(wrong_password(&user.name, "no password is configured for the user").into());
    };
    let expected = password::md5_response(user.name.as_bytes(), password.expose().as_bytes(), salt);
    if password::equal(response, expected.as_bytes()) {
        return Ok(());
    }
    Err(wrong_password(&user.name, "the md5 does not match").into())
}

async fn cleartext(client: &mut Client, user: &User) -> Result<(), Stop> {
    if client.stream.tls_info().is_none() {
        let message = format!("cleartext password authentication of user \"{}\" requires TLS", user.name);
        return Err(denied(message).hint("Connect with sslmode=require.").into());
    }
    authentication::request(&mut client.outbuf, &Authentication::CleartextPassword);
    client.flush().await?;
    let frame = client.read_response().await?;
    let given = authentication::password(frame.body()).map_err(malformed)?;
    let fits = user.password.as_ref().is_some_and(|password| password::equal(given, password.expose().as_bytes()));
    // PostgreSQL takes no empty password, whatever is stored.
    if fits && !given.is_empty() {
        return Ok(());
    }
    Err(wrong_password(&user.name, "the password does not match").into())
}

fn certificate(stream: &Stream, user: &User) -> Result<(), Error> {
    let Some(info) = stream.tls_info().filter(|info| info.client_verified) else {
        return Err(denied("connection requires a valid client certificate".to_owned()));
    };
    if info.client_common_name.as_deref() == Some(&user.name) {
        return Ok(());
    }
    let seen = info.client_common_name.as_deref().unwrap_or("(none)").to_owned();
    Err(denied(format!("certificate authentication failed for user \"{}\"", user.name))
        .cause(format!("the certificate's common name is {seen:?}")))
}

fn trust(stream: &Stream, user: &User) -> Result<(), Error> {
    if stream.is_loopback() {
        return Ok(());
    }
    Err(denied(format!("trust authentication of user \"{}\" is for local connections only", user.name))
        .hint("Give the user a password and auth = \"scram\", or connect from this machine."))
}

/// Whether the user may do everything in the console, or only look.
fn may_use_console(config: &Config, user: &User, database: &str) -> Result<bool, Error> {
    let is_admin = config.admin.users.contains(&user.name);
    if is_admin || config.admin.stats_users.contains(&user.name) {
        return Ok(is_admin);
    }
    let message = format!("permission denied for database \"{database}\"");
    Err(Error::new(ErrorKind::Auth, SqlState::INSUFFICIENT_PRIVILEGE, message)
        .detail("This is pgherd's console.")
        .hint("Name the user in [admin] users or stats_users of proxy.toml.")
        .fatal())
}

fn database(config: &Config, user: &User, name: &str) -> Result<Arc<Database>, Error> {
    let Some(database) = config.databases.get(name) else {
        let message = format!("database \"{name}\" does not exist");
        return Err(Error::new(ErrorKind::Auth, SqlState::INVALID_CATALOG_NAME, message).fatal());
    };
    if user.databases.is_empty() || user.databases.iter().any(|allowed| allowed == name) {
        return Ok(Arc::clone(database));
    }
    let message = format!("permission denied for database \"{name}\"");
    Err(Error::new(ErrorKind::Auth, SqlState::INSUFFICIENT_PRIVILEGE, message)
        .detail("User does not have CONNECT privilege.")
        .fatal())
}

/// The database whose primary a replication connection goes to. A physical one names none: it is the only one that allows
/// replication to this user, or all that do are on one server.
fn replicated(config: &Config, user: &User, name: &str, kind: Replication) -> Result<Arc<Database>, Error> {
    let denied = |message: String, hint: &str| {
        Err(Error::new(ErrorKind::Auth, SqlState::INSUFFICIENT_PRIVILEGE, message).hint(hint).fatal())
    };
    if !user.replication {
        let message = format!("permission denied for user \"{}\" to open replication connections", user.name);
        return denied(message, "Set replication = true in the user's [[user]] of proxy.toml.");
    }
    let may_connect = |database: &Database| user.databases.is_empty() || user.databases.contains(&database.name);
    let allowed: Vec<&Arc<Database>> =
        config.databases.values().filter(|database| database.replication && may_connect(database)).collect();
    if let Some(named) = allowed.iter().find(|database| database.name == name) {
        return Ok(Arc::clone(named));
    }
    if kind == Replication::Logical {
        let known = database(config, user, name)?;
        let message = format!("database \"{}\" does not allow replication connections", known.name);
        return denied(message, "Set replication = true in its [[database]] of proxy.toml.");
    }
    let server = |database: &Database| (database.primary.host.clone(), database.primary.port);
    match allowed.as_slice() {
        [] => denied(
            "no database allows replication connections".into(),
            "Set replication = true in a [[database]] of proxy.toml: its primary is the server.",
        ),
        [first, others @ ..] if others.iter().all(|other| server(other) == server(first)) => Ok(Arc::clone(first)),
        several => {
            let names: Vec<&str> = several.iter().map(|database| database.name.as_str()).collect();
            let message = "which server to replicate is not known: several databases allow it".to_owned();
            Err(Error::new(ErrorKind::Auth, SqlState::INVALID_CATALOG_NAME, message)
                .detail(format!("These are {}.", names.join(", ")))
                .hint("Name one in the user's databases, or in the connection string where the client lets you.")
                .fatal())
        }
    }
}

fn refusal(user: &str, error: ScramError) -> Error {
    match error {
        ScramError::WrongProof => wrong_password(user, "the SCRAM proof does not match"),
        ScramError::Malformed(what) => Error::protocol("malformed SCRAM message").detail(what),
        ScramError::AuthorizationIdentity => Error::refused(error.to_string()).fatal(),
        other => denied(other.to_string()),
    }
}

/// PostgreSQL's own words, the same for every reason; the reason is for the log.
fn wrong_password(user: &str, reason: &'static str) -> Error {
    let message = format!("password authentication failed for user \"{user}\"");
    Error::new(ErrorKind::Auth, SqlState::INVALID_PASSWORD, message).cause(reason).fatal()
}

fn denied(message: String) -> Error {
    Error::new(ErrorKind::Auth, SqlState::INVALID_AUTHORIZATION, message).fatal()
}

fn malformed(what: Malformed) -> Error {
    Error::protocol("invalid password packet").detail(what.0)
}
