//! libpq's connection strings, keyword/value and URI, into a [`ServerAddress`] (PostgreSQL manual, 34.1.1).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::model::{ChannelBinding, Secret, ServerAddress, SslMode};

/// The keys that a connection string may hold.
pub const KEYS: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "user",
];

/// What is wrong with a connection string. Neither text holds a value of `password`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DsnError {
    /// What is wrong, naming the key.
    pub message: String,
    /// What to write instead, where that can be said.
    pub hint: Option<String>,
}

impl DsnError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for DsnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " (hint: {hint})"))
    }
}

impl std::error::Error for DsnError {}

/// Reads a connection string of either form.
///
/// Defaults are libpq's, save that a missing host is `localhost` and that neither environment nor password file is read.
///
/// # Errors
/// A key that pgherd does not know, a value that its key does not allow, or a string that is not well formed.
pub fn parse(text: &str) -> Result<ServerAddress, DsnError> {
    let text = text.trim();
    let uri = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
    let pairs = match uri {
        Some(rest) => super::dsn_uri::pairs(rest)?,
        None => keyword_values(text)?,
    };
    let mut draft = Draft::default();
    for (key, value) in pairs {
        draft.set(&key, value)?;
    }
    draft.finish()
}

/// Splits `key = value key='va\'lue'` as libpq's conninfo_parse does.
fn keyword_values(text: &str) -> Result<Vec<(String, String)>, DsnError> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|&c| c != '=' && !c.is_ascii_whitespace()) {
            key.push(c);
        }
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if chars.next_if_eq(&'=').is_none() {
            return Err(DsnError::new(format!("missing \"=\" after {} in the connection string", shown(&key)))
                .hint("write `host=... dbname=...` or `postgresql://host/dbname`"));
        }
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let value = if chars.next_if_eq(&'\'').is_some() { quoted(&key, &mut chars)? } else { bare(&mut chars) };
        pairs.push((key, value));
    }
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn quoted(key: &str, chars: &mut Chars<'_>) -> Result<String, DsnError> {
    let mut value = String::new();
    loop {
        match chars.next() {
            Some('\'') => return Ok(value),
            Some('\\') => value.extend(chars.next()),
            Some(c) => value.push(c),
            None => return Err(DsnError::new(format!("the quoted value of {key:?} has no end"))),
        }
    }
}

fn bare(chars: &mut Chars<'_>) -> String {
    let mut value = String::new();
    while let Some(c) = chars.next_if(|c| !c.is_ascii_whitespace()) {
        if c == '\\' { value.extend(chars.next()) } else { value.push(c) }
    }
    value
}

/// The keys seen so far; a later one overrides an earlier one, and an empty value is as if the key were not there.
#[derive(Default)]
struct Draft {
    host: Option<String>,
    port: Option<u16>,
    dbname: Option<String>,
    user: Option<String>,
    password: Option<Secret>,
    sslmode: Option<SslMode>,
    sslrootcert: Option<PathBuf>,
    sslcert: Option<PathBuf>,
    sslkey: Option<PathBuf>,
    direct: bool,
    channel_binding: Option<ChannelBinding>,
    application_name: Option<String>,
    connect_timeout: Option<Duration>,
}

impl Draft {
    fn set(&mut self, key: &str, value: String) -> Result<(), DsnError> {
        if value.contains('\0') {
            return Err(DsnError::new(format!("the value of {key:?} holds a zero byte")));
        }
        let text = (!value.is_empty()).then_some(value);
        match key {
            "host" => self.host = text.map(host).transpose()?,
            "port" => self.port = text.map(|text| port(&text)).transpose()?,
            "dbname" => self.dbname = text,
            "user" => self.user = text,
            "password" => self.password = text.map(Secret::new),
            "sslmode" => self.sslmode = text.map(|text| sslmode(&text)).transpose()?,
            "sslrootcert" => self.sslrootcert = text.map(PathBuf::from),
            "sslcert" => self.sslcert = text.map(PathBuf::from),
            "sslkey" => self.sslkey = text.map(PathBuf::from),
            "sslnegotiation" => {
                self.direct = match text.as_deref() {
                    None | Some("postgres") => false,
                    Some("direct") => true,
                    Some(other) => return Err(invalid(key, other, "postgres, direct")),
                }
            }
            "channel_binding" => {
                self.channel_binding = text.map(|text| channel_binding(&text)).transpose()?;
            }
            "application_name" => self.application_name = text,
            "connect_timeout" => self.connect_timeout = text.map_or(Ok(None), |text| connect_timeout(&text))?,
            _ => return Err(unknown(key)),
        }
        Ok(())
    }

    fn finish(self) -> Result<ServerAddress, DsnError> {
        let system = self.sslrootcert.as_ref().is_some_and(|path| path.as_os_str() == "system");
        let sslmode = self.sslmode.unwrap_or(if system { SslMode::VerifyFull } else { SslMode::Prefer });
        if system && sslmode != SslMode::VerifyFull {
            return Err(DsnError::new("a weak sslmode may not be used with sslrootcert=system")
                .hint("write sslmode=verify-full, or leave sslmode out"));
        }
        let demanded = matches!(sslmode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull);
        if self.direct && !demanded {
            return Err(DsnError::new("a weak sslmode may not be used with sslnegotiation=direct")
                .hint("use sslmode=require, verify-ca or verify-full"));
        }
        match (&self.sslcert, &self.sslkey) {
            (Some(_), None) => return Err(DsnError::new("sslcert is given without sslkey")),
            (None, Some(_)) => return Err(DsnError::new("sslkey is given without sslcert")),
            _ => {}
        }
        Ok(ServerAddress {
            host: self.host.unwrap_or_else(|| "localhost".to_owned()),
            port: self.port.unwrap_or(5432),
            dbname: self.dbname,
            user: self.user,
            password: self.password,
            sslmode,
            sslrootcert: self.sslrootcert,
            sslcert: self.sslcert,
            sslkey: self.sslkey,
            sslnegotiation_direct: self.direct,
            channel_binding: self.channel_binding.unwrap_or(ChannelBinding::Prefer),
            application_name: self.application_name,
            connect_timeout: self.connect_timeout,
        })
    }
}

fn host(text: String) -> Result<String, DsnError> {
    match text.as_str() {
        name if name.contains(',') => Err(DsnError::new("\"host\" names several servers")
            .hint("a connection string of pgherd names one server; list replicas under `replicas`")),
        name if name.starts_with('@') => Err(DsnError::new("\"host\" names an abstract Unix socket")
            .hint("use the directory of a Unix socket in the file system, or TCP")),
        _ => Ok(text),
    }
}

fn port(text: &str) -> Result<u16, DsnError> {
    if text.contains(',') {
        return Err(
            DsnError::new("\"port\" names several ports").hint("a connection string of pgherd names one server")
        );
    }
    match text.trim().parse() {
        Ok(0) | Err(_) => Err(invalid("port", text, "a number from 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

fn sslmode(text: &str) -> Result<SslMode, DsnError> {
    Ok(match text {
        "disable" => SslMode::Disable,
        "allow" => SslMode::Allow,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        other => return Err(invalid("sslmode", other, "disable, allow, prefer, require, verify-ca, verify-full")),
    })
}

fn channel_binding(text: &str) -> Result<ChannelBinding, DsnError> {
    Ok(match text {
        "disable" => ChannelBinding::Disable,
        "prefer" => ChannelBinding::Prefer,
        "require" => ChannelBinding::Require,
        other => return Err(invalid("channel_binding", other, "disable, prefer, require")),
    })
}

/// Whole seconds; zero and below wait for ever, as in libpq.
fn connect_timeout(text: &str) -> Result<Option<Duration>, DsnError> {
    let seconds: i32 = text.trim().parse().map_err(|_| invalid("connect_timeout", text, "whole seconds"))?;
    Ok(u64::try_from(seconds).ok().filter(|&seconds| seconds > 0).map(Duration::from_secs))
}

fn invalid(key: &str, value: &str, allowed: &str) -> DsnError {
    DsnError::new(format!("invalid value {value:?} of {key:?}")).hint(format!("allowed: {allowed}"))
}

/// A key for an error; what cannot be a key is not shown, since it may be a URI whose scheme has a slip, password and all.
pub(super) fn shown(key: &str) -> String {
    let is_word = key.len() <= 40 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if is_word { format!("{key:?}") } else { "a text that is no key".to_owned() }
}

fn unknown(key: &str) -> DsnError {
    let error = DsnError::new(format!("unsupported key {} in the connection string", shown(key)));
    match key {
        "hostaddr" => return error.hint("write the address as \"host\""),
        "options" => return error.hint("set defaults with ALTER ROLE or ALTER DATABASE on the server"),
        "target_session_attrs" | "load_balance_hosts" => {
            return error.hint("name the primary under `primary` and the others under `replicas`");
        }
        _ => {}
    }
    let nearest = KEYS.iter().map(|known| (strsim::damerau_levenshtein(known, key), known)).min();
    match nearest {
        Some((distance, known)) if distance <= 2 => error.hint(format!("did you mean {known:?}?")),
        _ => error.hint(format!("supported keys: {}", KEYS.join(", "))),
    }
}

impl ServerAddress {
    /// Whether `host` is the directory of a Unix socket.
    pub fn is_unix(&self) -> bool {
        self.host.starts_with('/')
    }

    /// Where the Unix socket lies, if `host` is a directory.
    pub fn unix_path(&self) -> Option<PathBuf> {
        self.is_unix().then(|| PathBuf::from(&self.host).join(format!(".s.PGSQL.{}", self.port)))
    }
}

/// `host:port/dbname`: for people and logs, without user and password.
impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)?;
        } else {
            write!(f, "{}:{}", self.host, self.port)?;
        }
        self.dbname.as_ref().map_or(Ok(()), |dbname| write!(f, "/{dbname}"))
    }
}

#[cfg(test)]
#[path = "dsn_tests.rs"]
mod tests;
