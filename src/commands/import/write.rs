//! PgBouncer's settings in pgherd's words.

use std::fmt::Write as _;

use super::Imported;
use super::ini::{self, File};

/// Settings of how PgBouncer itself runs, which pgherd leaves to whoever starts it.
const OF_THE_PROCESS: [&str; 6] = ["logfile", "pidfile", "user", "syslog", "syslog_facility", "syslog_ident"];

/// A TOML string; `${` would be an environment variable.
fn quoted(text: &str) -> String {
    toml::Value::String(text.replace("${", "$${")).to_string()
}

struct Writer {
    file: File,
    toml: String,
    notes: Vec<String>,
}

pub(super) fn toml(file: File, users: &[(String, String)]) -> Imported {
    let mut writer = Writer { file, toml: String::new(), notes: Vec::new() };
    writer.listen();
    writer.pool();
    writer.databases();
    writer.users(users);
    writer.admin(users);
    writer.leftovers();
    Imported { toml: writer.toml, notes: writer.notes }
}

impl Writer {
    fn setting(&mut self, key: &str) -> Option<String> {
        self.file.take("pgbouncer", key).filter(|value| !value.is_empty())
    }

    fn line(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.toml, "{key} = {value}");
    }

    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// A whole number; what is none is left out, with a note.
    fn number(&mut self, of: &str, value: &str) -> Option<String> {
        let number = value.trim().parse::<u32>().ok().map(|number| number.to_string());
        if number.is_none() {
            self.note(format!("{of} = {value}: not a number"));
        }
        number
    }

    /// A setting that is a whole number.
    fn count(&mut self, key: &str) -> Option<String> {
        let value = self.setting(key)?;
        self.number(key, &value)
    }

    /// Seconds, or PgBouncer's default.
    fn seconds(&mut self, key: &str, default: &str) -> String {
        let value = self.setting(key).unwrap_or_else(|| default.to_owned());
        match value.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => value,
            _ => {
                self.note(format!("{key} = {value}: not a number of seconds"));
                default.to_owned()
            }
        }
    }

    fn duration(&mut self, key: &str, default: &str) -> String {
        let seconds: f64 = self.seconds(key, default).parse().unwrap_or(0.0);
        format!("\"{}ms\"", (seconds * 1000.0).round() as u64).replace("000ms", "s")
    }

    /// 0 is PgBouncer's word for "off".
    fn duration_or_off(&mut self, key: &str, default: &str) -> String {
        let duration = self.duration(key, default);
        if duration == "\"0ms\"" { "\"off\"".into() } else { duration }
    }

    fn listen(&mut self) {
        self.toml.push_str("# Imported from PgBouncer's configuration.\n\n[listen]\n");
        let port = self.setting("listen_port").unwrap_or_else(|| "6432".into());
        let addresses = self.setting("listen_addr").unwrap_or_default();
        let mut listed = addresses.split(',').map(str::trim);
        let first = match listed.next().unwrap_or_default() {
            "*" | "0.0.0.0" => "0.0.0.0".to_owned(),
            "localhost" => "127.0.0.1".to_owned(),
            "" => {
                self.note("listen_addr: PgBouncer listens on Unix sockets only, pgherd on a TCP address, too");
                "127.0.0.1".to_owned()
            }
            name if name.contains(':') => format!("[{name}]"),
            name => name.to_owned(),
        };
        let others: Vec<&str> = listed.collect();
        if !others.is_empty() {
            self.note(format!("listen_addr: pgherd listens on one address; without {}", others.join(", ")));
        }
        self.line("address", &quoted(&format!("{first}:{port}")));
        if let Some(directory) = self.setting("unix_socket_dir") {
            self.line("unix_socket_dir", &quoted(&directory));
        }
        let clients = self.count("max_client_conn").unwrap_or_else(|| "100".into());
        self.line("max_clients", &clients);
        let login = self.duration("client_login_timeout", "60");
        self.line("login_timeout", &login);
        self.tls();
    }

    fn tls(&mut self) {
        let mode = match self.setting("client_tls_sslmode").as_deref() {
            None | Some("disable") => None,
            Some("allow" | "prefer") => Some("prefer"),
            Some("require") => Some("require"),
            Some(_) => Some("verify-client"),
        };
        let files = ["client_tls_cert_file", "client_tls_key_file", "client_tls_ca_file"].map(|key| self.setting(key));
        let Some(mode) = mode else { return };
        let mut table = format!("mode = {}", quoted(mode));
        for (key, path) in ["cert", "key", "client_ca"].into_iter().zip(files) {
            if let Some(path) = path {
                let _ = write!(table, ", {key} = {}", quoted(&path));
            }
        }
        self.line("tls", &format!("{{ {table} }}"));
    }

    fn mode(&mut self, of: &str, mode: &str) -> &'static str {
        match mode {
            "session" => "\"session\"",
            "transaction" => "\"transaction\"",
            _ => {
                self.note(format!("{of} = {mode}: there is no statement pooling; it became \"transaction\""));
                "\"transaction\""
            }
        }
    }

    fn pool(&mut self) {
        self.toml.push_str("\n[pool]\n");
        let mode = self.setting("pool_mode").unwrap_or_else(|| "session".into());
        let mode = self.mode("pool_mode", &mode);
        self.line("mode", mode);
        let size = self.count("default_pool_size").unwrap_or_else(|| "20".into());
        self.line("max_connections", &size);
        let least = self.count("min_pool_size").unwrap_or_else(|| "0".into());
        let least = if least.parse::<u64>().unwrap_or(0) > size.parse().unwrap_or(u64::MAX) { size } else { least };
        self.line("min_connections", &least);
        if let Some(bound) = self.count("max_db_connections").filter(|bound| bound != "0") {
            self.line("max_database_connections", &bound);
        }
        let mut wait = self.duration("query_wait_timeout", "120");
        if wait == "\"0ms\"" {
            self.note("query_wait_timeout = 0: pgherd always has a limit; it became a day");
            wait = "\"24h\"".into();
        }
        self.line("acquire_timeout", &wait);
        let connect = self.duration("server_connect_timeout", "15");
        self.line("connect_timeout", &connect);
        for (key, of, default) in [
            ("idle_timeout", "server_idle_timeout", "600"),
            ("max_lifetime", "server_lifetime", "3600"),
            ("query_timeout", "query_timeout", "0"),
            ("idle_transaction_timeout", "idle_transaction_timeout", "0"),
            ("client_idle_timeout", "client_idle_timeout", "0"),
        ] {
            let value = self.duration_or_off(of, default);
            self.line(key, &value);
        }
        if let Some(statements) = self.count("max_prepared_statements").filter(|count| count != "0") {
            self.line("prepared_statements", &statements);
        }
    }

    fn databases(&mut self) {
        let sslmode = self.setting("server_tls_sslmode");
        let ca = self.setting("server_tls_ca_file");
        let of_each = self.count("max_db_client_connections").filter(|limit| limit != "0");
        for (name, text) in self.file.take_section("databases") {
            if name == "*" {
                self.note("database *: name each database in a [[database]]");
                continue;
            }
            if name == "pgbouncer" || name == "pgherd" {
                self.note(format!("database {name}: this is the console's name"));
                continue;
            }
            let (mut address, mut pool, mut clients) = (Vec::new(), Vec::new(), of_each.clone());
            for (key, value) in ini::pairs(&text) {
                match key.as_str() {
                    "host" if value.contains(',') => {
                        self.note(format!("database {name}, host = {value}: only the first is taken"));
                        address.push(("host", value.split(',').next().unwrap_or_default().to_owned()));
                    }
                    "host" => address.push(("host", value)),
                    "port" => address.push(("port", value)),
                    "dbname" => address.push(("dbname", value)),
                    "user" => address.push(("user", value)),
                    "password" => address.push(("password", value)),
                    "application_name" => address.push(("application_name", value)),
                    "pool_size" | "min_pool_size" | "max_db_connections" | "max_db_client_connections" => {
                        let Some(number) = self.number(&format!("database {name}, {key}"), &value) else { continue };
                        match key.as_str() {
                            "pool_size" => pool.push(format!("max_connections = {number}")),
                            "min_pool_size" => pool.push(format!("min_connections = {number}")),
                            _ if number == "0" => {}
                            "max_db_connections" => pool.push(format!("max_database_connections = {number}")),
                            _ => clients = Some(number),
                        }
                    }
                    "pool_mode" => {
                        pool.push(format!("mode = {}", self.mode(&format!("database {name}, pool_mode"), &value)))
                    }
                    "server_lifetime" => {
                        let lifetime = self.number(&format!("database {name}, {key}"), &value);
                        pool.extend(lifetime.map(|seconds| format!("max_lifetime = \"{seconds}s\"")));
                    }
                    _ => self.note(format!("database {name}, {key}: there is no such setting")),
                }
            }
            if !address.iter().any(|(key, _)| *key == "host") {
                self.note(format!("database {name}: PgBouncer connects by its unix_socket_dir; it became host=/tmp"));
                address.insert(0, ("host", "/tmp".into()));
            }
            address.extend(sslmode.clone().map(|mode| ("sslmode", mode)));
            address.extend(ca.clone().map(|path| ("sslrootcert", path)));
            let primary: Vec<String> =
                address.iter().map(|(key, value)| format!("{key}={}", conninfo(value))).collect();
            self.toml.push_str("\n[[database]]\n");
            self.line("name", &quoted(&name));
            self.line("primary", &quoted(&primary.join(" ")));
            if let Some(clients) = clients {
                self.line("max_clients", &clients);
            }
            if !pool.is_empty() {
                self.line("pool", &format!("{{ {} }}", pool.join(", ")));
            }
        }
    }

    fn users(&mut self, users: &[(String, String)]) {
        let auth_type = self.setting("auth_type").unwrap_or_else(|| "md5".into());
        let mut of_users = self.file.take_section("users");
        let of_each =
            [("max_server_connections", "max_user_connections"), ("max_clients", "max_user_client_connections")]
                .map(|(key, of)| (key, of, self.setting(of)));
        if !matches!(auth_type.as_str(), "scram-sha-256" | "md5" | "plain" | "trust" | "any" | "cert") {
            self.note(format!("auth_type = {auth_type}: users became auth = \"scram\""));
        }
        for (name, secret) in users {
            let proof = match (auth_type.as_str(), secret.as_str()) {
                ("trust" | "any", _) => "auth = \"trust\"".to_owned(),
                ("cert", _) => "auth = \"cert\"".to_owned(),
                (_, secret) if secret.starts_with("SCRAM-SHA-256$") => {
                    format!("auth = \"scram\"\nscram_secret = {}", quoted(secret))
                }
                (_, secret) if secret.len() == 35 && secret.starts_with("md5") => {
                    self.note(format!("user {name}: an md5 hash is not enough, give the password or a SCRAM secret"));
                    continue;
                }
                (_, "") => {
                    self.note(format!("user {name}: an empty password is never accepted"));
                    continue;
                }
                ("md5", secret) => format!("auth = \"md5\"\npassword = {}", quoted(secret)),
                ("plain", secret) => format!("auth = \"cleartext\"\npassword = {}", quoted(secret)),
                (_, secret) => format!("auth = \"scram\"\npassword = {}", quoted(secret)),
            };
            let _ = write!(self.toml, "\n[[user]]\nname = {}\n{proof}\n", quoted(name));
            let own: Vec<_> =
                of_users.iter().filter(|(of, _)| of == name).flat_map(|(_, text)| ini::pairs(text)).collect();
            of_users.retain(|(of, _)| of != name);
            for (key, of, each) in &of_each {
                let limit = own.iter().find(|(own, _)| own == of).map(|(_, value)| value).or(each.as_ref());
                if let Some(limit) = limit.filter(|limit| *limit != "0") {
                    self.line(key, limit);
                }
            }
            for (key, value) in own {
                match key.as_str() {
                    "max_user_connections" | "max_user_client_connections" => {}
                    "pool_mode" => {
                        let mode = self.mode(&format!("user {name}, pool_mode"), &value);
                        self.line("pool_mode", mode);
                    }
                    "pool_size" => self.line("max_connections", &value),
                    _ => self.note(format!("user {name}, {key}: there is no such setting")),
                }
            }
        }
        for (name, _) in of_users {
            self.note(format!("user {name} of [users]: it is not in auth_file"));
        }
    }

    fn admin(&mut self, users: &[(String, String)]) {
        let written = |name: &str| self.toml.contains(&format!("[[user]]\nname = {}\n", quoted(name)));
        let known: Vec<&str> = users.iter().map(|(name, _)| name.as_str()).filter(|name| written(name)).collect();
        let mut lines = Vec::new();
        for (key, of) in [("users", "admin_users"), ("stats_users", "stats_users")] {
            let listed = self.setting(of).unwrap_or_default();
            let (there, missing): (Vec<&str>, Vec<&str>) =
                listed.split(',').map(str::trim).filter(|name| !name.is_empty()).partition(|name| known.contains(name));
            if !there.is_empty() {
                lines.push((key, there.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")));
            }
            for name in missing {
                self.note(format!("{of}: there is no user {name}"));
            }
        }
        if !lines.is_empty() {
            self.toml.push_str("\n[admin]\n");
            lines.iter().for_each(|(key, names)| self.line(key, &format!("[{names}]")));
        }
    }

    fn leftovers(&mut self) {
        for line in std::mem::take(&mut self.file.strange) {
            self.note(format!("line {line:?}: not a setting"));
        }
        for (section, key, value) in std::mem::take(&mut self.file).rest() {
            if section == "pgbouncer" && OF_THE_PROCESS.contains(&key.as_str()) {
                self.note(format!("{key} = {value}: a matter of whoever starts pgherd, which logs to standard error"));
            } else {
                self.note(format!("[{section}] {key} = {value}: there is no such setting"));
            }
        }
    }
}

/// A value in a connection string.
fn conninfo(value: &str) -> String {
    if !value.is_empty() && value.chars().all(|c| c.is_alphanumeric() || "._-/:".contains(c)) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
