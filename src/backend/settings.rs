//! What a session has set, as PostgreSQL itself reports it, and the SQL that turns one state into another.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

/// Settings by lower-case name, with the values that the server reported. `role` and `session_authorization` are settings too.
/// A name that is absent has the value a fresh login would give it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Settings(BTreeMap<Box<str>, Box<str>>);

/// Settings as they are shared between a session and the servers that carry them.
pub type SharedSettings = Arc<Settings>;

/// Nothing set: the same for all who have set nothing.
pub fn none() -> SharedSettings {
    static NONE: LazyLock<SharedSettings> = LazyLock::new(SharedSettings::default);
    Arc::clone(&NONE)
}

/// Settings that the server reports by ParameterStatus whenever they change (PostgreSQL manual, 55.2.7), in lower case.
/// Later versions report more; fewer is safe, since the rest is read back.
const REPORTED: [&str; 7] = [
    "application_name",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "session_authorization",
    "standard_conforming_strings",
    "timezone",
];

/// Settings that parse analysis reads: a statement prepared under one value keeps its meaning under another.
const PARSE_RELEVANT: [&str; 15] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "role",
    "search_path",
    "session_authorization",
    "standard_conforming_strings",
    "timezone",
    "transform_null_equals",
];
const XMLOPTION: &str = "xmloption";

/// Of these, what decides in which schemas names are looked up. PostgreSQL reads a prepared statement anew where that has changed
/// since it read it last, and then under everything else that is set by then.
const PATH_RELEVANT: [&str; 3] = ["role", "search_path", "session_authorization"];

/// Whether a change of `name` is announced by the server on its own.
pub fn is_reported(name: &str) -> bool {
    REPORTED.contains(&name)
}

impl Settings {
    /// The value of `name` (lower case), if the session set it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| &**value)
    }

    /// The value of `name` in the spelling that servers report it in, if the session set it. A walk without a copy: few are set.
    pub fn get_as_reported(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Notes a value.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.into(), value.into());
    }

    /// Forgets a value: the setting has its default again.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Names and values in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// How many are set.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether parse analysis reads that setting.
    pub fn is_parse_relevant(name: &str) -> bool {
        PARSE_RELEVANT.contains(&name) || name == XMLOPTION
    }

    /// Whether that setting decides in which schemas names are looked up.
    pub fn is_path_relevant(name: &str) -> bool {
        PATH_RELEVANT.contains(&name)
    }

    /// Whether both have the same settings but for those that decide in which schemas names are looked up.
    pub fn is_same_beyond_path(&self, other: &Self) -> bool {
        fn beyond(settings: &Settings) -> impl Iterator<Item = (&str, &str)> {
            settings.iter().filter(|(name, _)| !Settings::is_path_relevant(name))
        }
        beyond(self).eq(beyond(other))
    }

    /// Whether both name the same schemas in the same order for the same role.
    pub fn has_same_path(&self, other: &Self) -> bool {
        PATH_RELEVANT.iter().all(|name| self.get(name) == other.get(name))
    }

    /// Every setting that parse analysis reads.
    pub fn parse_relevant_names() -> impl Iterator<Item = &'static str> {
        PARSE_RELEVANT.into_iter().chain([XMLOPTION])
    }

    /// The part that parse analysis reads.
    #[must_use]
    pub fn parse_relevant(&self) -> Self {
        Self(
            self.0
                .iter()
                .filter(|(name, _)| Self::is_parse_relevant(name))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect(),
        )
    }

    /// These settings with the parse-relevant ones replaced by those of `other`.
    #[must_use]
    pub fn with_parse_relevant_of(&self, other: &Self) -> Self {
        let mut merged = self.clone();
        merged.0.retain(|name, _| !Self::is_parse_relevant(name));
        merged.0.extend(other.0.iter().map(|(name, value)| (name.clone(), value.clone())));
        merged
    }

    /// The SQL that turns a server with `self` into one with `wanted`, or `None` where they are equal.
    ///
    /// Identity goes back first and forward last, since a role may not be allowed to set what the login role set;
    /// `set_config` is used because `SET` would quote a list such as search_path into one name.
    pub fn difference_sql(&self, wanted: &Self) -> Option<String> {
        if self == wanted {
            return None;
        }
        let identity_moves = ["session_authorization", "role"].iter().any(|name| self.get(name) != wanted.get(name));
        let mut sql = String::new();
        if identity_moves {
            sql.push_str("RESET ROLE;RESET SESSION AUTHORIZATION;");
        }
        let mut calls = String::new();
        for (name, _) in self.iter().filter(|(name, _)| !is_identity(name) && wanted.get(name).is_none()) {
            let _ = write!(sql, "RESET {};", quoted_setting(name));
        }
        for (name, value) in wanted.iter().filter(|(name, value)| !is_identity(name) && self.get(name) != Some(value)) {
            let separator = if calls.is_empty() { "" } else { "," };
            let _ = write!(calls, "{separator}pg_catalog.set_config({},{},false)", literal(name), literal(value));
        }
        if !calls.is_empty() {
            let _ = write!(sql, "SELECT {calls};");
        }
        if identity_moves {
            if let Some(user) = wanted.get("session_authorization") {
                let _ = write!(sql, "SET SESSION AUTHORIZATION {};", literal(user));
            }
            if let Some(role) = wanted.get("role") {
                let _ = write!(sql, "SET ROLE {};", literal(role));
            }
        }
        Some(sql)
    }
}

fn is_identity(name: &str) -> bool {
    matches!(name, "role" | "session_authorization")
}

/// A string literal that means the same whatever `standard_conforming_strings` and `client_encoding` say.
pub fn literal(text: &str) -> String {
    if text.is_ascii() && !text.contains('\\') {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let mut literal = String::from(" E'");
    for character in text.chars() {
        let _ = match character {
            '\'' => write!(literal, "''"),
            '\\' => write!(literal, "\\\\"),
            character if character.is_ascii() => write!(literal, "{character}"),
            character => write!(literal, "\\U{:08X}", u32::from(character)),
        };
    }
    literal.push('\'');
    literal
}

/// A quoted identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A setting's name with each of its dotted parts quoted.
fn quoted_setting(name: &str) -> String {
    name.split('.').map(identifier).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        pairs.iter().for_each(|(name, value)| settings.set(name, value));
        settings
    }

    #[test]
    fn equal_states_need_no_sql() {
        let state = settings(&[("timezone", "UTC")]);
        assert_eq!(state.difference_sql(&state.clone()), None);
    }

    #[test]
    fn a_setting_is_found_in_the_servers_spelling() {
        let session = settings(&[("datestyle", "ISO, DMY"), ("timezone", "UTC")]);
        assert_eq!(session.get_as_reported("TimeZone"), Some("UTC"));
        assert_eq!(session.get_as_reported("DateStyle"), Some("ISO, DMY"));
        assert_eq!(session.get_as_reported("server_version"), None);
    }

    #[test]
    fn a_list_is_set_as_a_list_and_what_is_gone_is_reset() {
        let server = settings(&[("app.tenant", "7"), ("timezone", "UTC")]);
        let session = settings(&[("search_path", "a, \"B\""), ("timezone", "UTC")]);
        assert_eq!(
            server.difference_sql(&session).as_deref(),
            Some(r#"RESET "app"."tenant";SELECT pg_catalog.set_config('search_path','a, "B"',false);"#)
        );
    }

    #[test]
    fn identity_goes_back_first_and_forward_last() {
        let server = settings(&[("role", "alice")]);
        let session = settings(&[("role", "bob"), ("statement_timeout", "5s")]);
        assert_eq!(
            server.difference_sql(&session).as_deref(),
            Some(
                "RESET ROLE;RESET SESSION AUTHORIZATION;SELECT \
                 pg_catalog.set_config('statement_timeout','5s',false);SET ROLE 'bob';"
            )
        );
    }

    #[test]
    fn a_value_cannot_leave_its_literal() {
        assert_eq!(literal(r"a'b\'c"), r" E'a''b\\''c'");
        assert_eq!(literal("é'"), r" E'\U000000E9'''");
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
    }
}
