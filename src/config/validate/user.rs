//! `[[user]]`: how clients prove who they are, and what servers are logged in with.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{files, pool};
use crate::config::model::{AuthMethod, Secret, User};
use crate::config::raw::Table;

/// Bytes of a password at most; PostgreSQL's own clients stop at 1024.
const PASSWORD_BYTES: usize = 1024;

pub(super) fn read(table: &Table<'_>) -> User {
    use AuthMethod::{Cert, Cleartext, Md5, Scram, Trust};
    let user = User {
        name: table.required_text("name", "give the name that clients log in with").unwrap_or_default(),
        auth: [Scram, Md5, Cleartext, Cert, Trust][table.choice("auth").unwrap_or(0)],
        password: password(table),
        scram_secret: scram_secret(table),
        databases: table.texts("databases"),
        replication: table.flag("replication"),
        pool_mode: table.has("pool_mode").then(|| pool::mode(table, "pool_mode")).flatten(),
        max_connections: table.count("max_connections", 1..pool::MAX_CONNECTIONS + 1).map(|count| count as u32),
        max_clients: table.count("max_clients", 1..1_000_001).map(|count| count as usize),
        max_server_connections: table
            .count("max_server_connections", 1..pool::MAX_CONNECTIONS + 1)
            .map(|count| count as u32),
        may_use_reserve: table.flag("may_use_reserve"),
    };
    check_proof(table, user.auth);
    user
}

/// Each method needs something to check the proof against.
fn check_proof(table: &Table<'_>, auth: AuthMethod) {
    let has_password = table.has("password") || table.has("password_file");
    let needed = match auth {
        AuthMethod::Scram if !has_password && !table.has("scram_secret") => "password_file, password or scram_secret",
        AuthMethod::Md5 | AuthMethod::Cleartext if !has_password => "password_file or password",
        _ => "",
    };
    if !needed.is_empty() {
        table.fault("auth", "there is nothing to check this user's proof against", format!("give {needed}"));
    }
    if table.has("scram_secret") && auth != AuthMethod::Scram {
        table.fault("scram_secret", "only auth = \"scram\" can use it", "set auth = \"scram\", or give a password");
    }
}

fn password(table: &Table<'_>) -> Option<Secret> {
    let given: Vec<&str> =
        ["password", "password_file", "scram_secret"].into_iter().filter(|key| table.has(key)).collect();
    if let [first, second, ..] = given[..] {
        table.fault(second, format!("this user has a {first} too"), "keep one of them");
    }
    let (key, text) = match table.text("password") {
        Some(text) => ("password", text),
        None => ("password_file", from_file(table)?),
    };
    if text.is_empty() {
        table.fault(key, "the password is empty", "PostgreSQL never accepts an empty password; give another");
        return None;
    }
    if text.len() > PASSWORD_BYTES || text.contains(['\0', '\n', '\r']) {
        let help = format!("it is one line of at most {PASSWORD_BYTES} bytes");
        table.fault(key, "this cannot be a password", help);
        return None;
    }
    Some(Secret::new(text))
}

/// The file's text without the newline that editors put at its end.
fn from_file(table: &Table<'_>) -> Option<String> {
    let path = table.path_of("password_file")?;
    let fault = |problem: String, help: &str| {
        table.fault("password_file", problem, help);
        None
    };
    let bytes = match files::read(&path) {
        Ok(bytes) => bytes,
        Err(problem) => return fault(problem, "check the path; it is relative to the folder of this file"),
    };
    files::warn_if_world_readable(table, "password_file", &path);
    match String::from_utf8(bytes) {
        Ok(text) => {
            Some(text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).to_string())
        }
        Err(_) => fault(format!("{} is not UTF-8", path.display()), "write the password as UTF-8 text"),
    }
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, as `pg_authid.rolpassword` holds it.
fn scram_secret(table: &Table<'_>) -> Option<String> {
    let text = table.text("scram_secret")?;
    if is_scram_secret(&text) {
        return Some(text);
    }
    let help = "copy it from PostgreSQL: SELECT rolpassword FROM pg_authid WHERE rolname = '...'";
    table.fault("scram_secret", "this is not a SCRAM-SHA-256 secret", help);
    None
}

fn is_scram_secret(text: &str) -> bool {
    let parts = || {
        let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored, server) = keys.split_once(':')?;
        let is_key = |key: &str| STANDARD.decode(key).is_ok_and(|key| key.len() == 32);
        let salted = STANDARD.decode(salt).is_ok_and(|salt| !salt.is_empty());
        let iterated = iterations.parse::<u32>().is_ok_and(|count| count > 0);
        Some(iterated && salted && is_key(stored) && is_key(server))
    };
    parts().unwrap_or(false)
}
