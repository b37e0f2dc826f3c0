//! What people write: proxy.toml, connection strings, PgBouncer's files. Any text is a configuration or a list of faults.

use std::path::Path;

use pgherd::commands::import;
use pgherd::config::{self, dsn};

pub const TOMLS: &[&[u8]] = &[
    b"[listen]\naddress = \"127.0.0.1:6432\"\n[[database]]\nname = \"a\"\nprimary = \"host=h user=u\"\n",
    b"[pool]\nmax_connections = \"${N:-5}\"\nmode = \"session\"\n[[user]]\nname = \"a\"\npassword = \"b\"\n[cache]\nenabled = true\nttl = \"1h30m\"\nmemory = \"64MiB\"\n",
    b"[[database]]\nname = 'a'\nprimary = 'postgresql://u:p@[::1]:5433/d?sslmode=require'\nshards = ['host=a', 'host=b']\n[[database.table]]\nname = 's.t'\nshard_key = 'id'\nmethod = 'list'\nlists = [{ values = ['x', 1], shard = 0 }, { values = [], null = true, shard = 1 }]\n",
    b"[databases]\napp = host=127.0.0.1 port=5432 dbname=app pool_size=7\n* = host=x\n[pgbouncer]\nlisten_port = 6432\npool_mode = transaction\nserver_idle_timeout = 1e3\nadmin_users = a, b\n",
];

pub const DSNS: &[&[u8]] = &[
    b"host=h port=5432 user='a b' password='it\\'s' dbname=d sslmode=verify-full",
    b"postgresql://us%65r:pa%3Ass@[2001:db8::1]:5433/db?connect_timeout=3&sslmode=disable",
    b"postgres:///d?host=/run/postgresql&port=6000",
];

/// proxy.toml, and PgBouncer's file, which becomes one.
pub fn toml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let env = |name: &str| name.len().is_multiple_of(2).then(|| "7".to_owned());
    let read = |text: &str| config::parse(text, Path::new("proxy.toml"), Path::new("/nowhere"), &env);
    match read(text) {
        Ok(loaded) => assert_eq!(read(text).map(|again| again.config).ok(), Some(loaded.config)),
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
    let imported = import::translate(text, "\"ann\" \"se\"\"cret\"\n");
    let table = imported.toml.parse::<toml::Table>();
    assert!(table.is_ok(), "{table:?}\n{}", imported.toml);
}

/// Connection strings of either form.
pub fn dsn(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match dsn::parse(text) {
        Ok(address) => {
            let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
            let mut again = format!("host={} port={}", quoted(&address.host), address.port);
            for (key, value) in [("dbname", &address.dbname), ("user", &address.user)] {
                again += &value.as_ref().map(|value| format!(" {key}={}", quoted(value))).unwrap_or_default();
            }
            let again = dsn::parse(&again).expect("what was read can be written");
            assert_eq!(
                (again.host, again.port, again.dbname, again.user),
                (address.host, address.port, address.dbname, address.user)
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
