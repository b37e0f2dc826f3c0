//! The URI form of a connection string: `postgresql://[user[:password]@][host][:port][/dbname][?key=value&...]`.

use super::dsn::{DsnError, shown};

/// The keys and values of a URI, without its scheme, in the order in which they override one another.
pub(super) fn pairs(rest: &str) -> Result<Vec<(String, String)>, DsnError> {
    let mut pairs = Vec::new();
    let (before, query) = rest.split_once('?').map_or((rest, ""), |(before, query)| (before, query));
    let (authority, path) = before.split_once('/').map_or((before, ""), |(authority, path)| (authority, path));
    // The last @ ends the user's part: a password may hold one that nobody percent-encoded.
    let (userinfo, hostspec) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if let Some(userinfo) = userinfo {
        let (user, password) = userinfo.split_once(':').map_or((userinfo, None), |(u, p)| (u, Some(p)));
        push(&mut pairs, "user", user)?;
        push(&mut pairs, "password", password.unwrap_or_default())?;
    }
    let (host, port) = host_and_port(hostspec)?;
    push(&mut pairs, "host", host)?;
    push(&mut pairs, "port", port)?;
    push(&mut pairs, "dbname", path)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(error(format!("missing \"=\" after {} in the connection URI", shown(pair))));
        };
        let (key, value) = (decode("key", key)?, decode(key, value)?);
        // JDBC's way to say it, which libpq takes too.
        if key == "ssl" && value == "true" {
            pairs.push(("sslmode".to_owned(), "require".to_owned()));
        } else {
            pairs.push((key, value));
        }
    }
    Ok(pairs)
}

fn host_and_port(hostspec: &str) -> Result<(&str, &str), DsnError> {
    if hostspec.contains(',') {
        let mut several = error("the connection URI names several servers".to_owned());
        several.hint =
            Some("a connection string of pgherd names one server; list replicas under `replicas`".to_owned());
        return Err(several);
    }
    if let Some(inside) = hostspec.strip_prefix('[') {
        let Some((host, after)) = inside.split_once(']') else {
            return Err(error("an IPv6 address in the connection URI has no \"]\"".to_owned()));
        };
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if after.is_empty() => Ok((host, "")),
            None => Err(error("only a port may follow the \"]\" of an IPv6 address".to_owned())),
        };
    }
    Ok(hostspec.split_once(':').unwrap_or((hostspec, "")))
}

fn push(pairs: &mut Vec<(String, String)>, key: &str, raw: &str) -> Result<(), DsnError> {
    if !raw.is_empty() {
        pairs.push((key.to_owned(), decode(key, raw)?));
    }
    Ok(())
}

/// Percent-decodes; `what` names the part in an error, so that a password is never shown.
fn decode(what: &str, raw: &str) -> Result<String, DsnError> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.split_at_checked(2);
        let value = digits.and_then(|(two, _)| Some(hex(two[0])? << 4 | hex(two[1])?));
        let (Some((_, tail)), Some(value)) = (digits, value) else {
            return Err(error(format!(
                "{what:?} in the connection URI holds a \"%\" that two hex digits do not follow"
            )));
        };
        if value == 0 {
            return Err(error(format!("{what:?} in the connection URI holds a zero byte")));
        }
        bytes.push(value);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| error(format!("{what:?} in the connection URI is not UTF-8")))
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn error(message: String) -> DsnError {
    DsnError { message, hint: None }
}
