//! The console's language: words, quoted names and strings, semicolons; what it means, or why it means nothing.

use crate::error::{Error, ErrorKind};
use crate::session::purge::{self, Purge, TableName};
use crate::wire::sqlstate::SqlState;

/// Drivers' settings that a console need not heed.
const CLIENT_SETTINGS: [&str; 11] = [
    "application_name",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "search_path",
    "standard_conforming_strings",
    "statement_timeout",
    "timezone",
];

/// What SHOW can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    Help,
    Pools,
    Clients,
    Servers,
    Databases,
    Users,
    Stats,
    StatsTotals,
    StatsAverages,
    Totals,
    Lists,
    Config,
    Mem,
    Version,
    State,
    Cache,
    CacheEntries,
    CacheQuarantine,
    Shards,
    Pins,
    Listeners,
    Statements,
    Limits,
}

/// Every topic by its word.
pub(super) const TOPICS: [(&str, Topic); 23] = [
    ("help", Topic::Help),
    ("pools", Topic::Pools),
    ("clients", Topic::Clients),
    ("servers", Topic::Servers),
    ("databases", Topic::Databases),
    ("users", Topic::Users),
    ("stats", Topic::Stats),
    ("stats_totals", Topic::StatsTotals),
    ("stats_averages", Topic::StatsAverages),
    ("totals", Topic::Totals),
    ("lists", Topic::Lists),
    ("config", Topic::Config),
    ("mem", Topic::Mem),
    ("version", Topic::Version),
    ("state", Topic::State),
    ("cache", Topic::Cache),
    ("cache entries", Topic::CacheEntries),
    ("cache quarantine", Topic::CacheQuarantine),
    ("shards", Topic::Shards),
    ("pins", Topic::Pins),
    ("listeners", Topic::Listeners),
    ("statements", Topic::Statements),
    ("limits", Topic::Limits),
];

/// How SHUTDOWN goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// At once.
    Now,
    /// When the transactions under way have ended, or their time is up: as SIGTERM.
    WaitForServers,
    /// When every client has left of its own accord.
    WaitForClients,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Show(Topic),
    Pause(Option<String>),
    Resume(Option<String>),
    Reconnect(Option<String>),
    WaitClose(Option<String>),
    Kill(Option<String>),
    KillClient(u64),
    Disable(String),
    Enable(String),
    Suspend,
    /// Lets the cache of one database, or all caches, forget.
    Purge(Option<String>, Purge),
    Reload,
    Shutdown(Shutdown),
    /// A driver's setting, which changes nothing here.
    Set,
}

impl Command {
    /// The tag of its CommandComplete.
    pub(super) fn tag(&self) -> &'static str {
        match self {
            Self::Show(_) => "SHOW",
            Self::Pause(_) => "PAUSE",
            Self::Resume(_) => "RESUME",
            Self::Reconnect(_) => "RECONNECT",
            Self::WaitClose(_) => "WAIT_CLOSE",
            Self::Kill(_) => "KILL",
            Self::KillClient(_) => "KILL_CLIENT",
            Self::Disable(_) => "DISABLE",
            Self::Enable(_) => "ENABLE",
            Self::Suspend => "SUSPEND",
            Self::Purge(..) => "PURGE",
            Self::Reload => "RELOAD",
            Self::Shutdown(_) => "SHUTDOWN",
            Self::Set => "SET",
        }
    }

    /// Whether it only looks.
    pub(super) fn is_harmless(&self) -> bool {
        matches!(self, Self::Show(_) | Self::Set)
    }
}

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word, folded to lower case.
    Word(String),
    /// A name in double quotes or a string in single quotes, as it stands.
    Quoted(String),
    /// Anything else, one character.
    Other(char),
}

/// Reads a text of commands with semicolons between them; empty ones are left out.
///
/// # Errors
/// What the first that is not a command is, with SQLSTATE 42601.
pub(super) fn read(text: &str) -> Result<Vec<Command>, Error> {
    let tokens = tokens(text)?;
    let commands = tokens.split(|token| *token == Token::Other(';')).filter(|command| !command.is_empty());
    commands.map(|command| one(command).ok_or_else(|| unknown(text))).collect()
}

fn one(tokens: &[Token]) -> Option<Command> {
    let (Token::Word(verb), rest) = tokens.split_first()? else { return None };
    match verb.as_str() {
        "set" => return set(rest),
        "purge" => return purge(rest),
        _ => {}
    }
    let arguments = rest.iter().map(|token| match token {
        Token::Word(text) | Token::Quoted(text) => Some(text.as_str()),
        Token::Other(_) => None,
    });
    let arguments: Vec<&str> = arguments.collect::<Option<_>>()?;
    let name = |name: &&str| (*name).to_owned();
    Some(match (verb.as_str(), arguments.as_slice()) {
        ("show", [_, ..]) => {
            let topic = arguments.join(" ").to_ascii_lowercase();
            Command::Show(TOPICS.iter().find(|(word, _)| *word == topic)?.1)
        }
        ("pause", [] | [_]) => Command::Pause(arguments.first().map(name)),
        ("resume", [] | [_]) => Command::Resume(arguments.first().map(name)),
        ("reconnect", [] | [_]) => Command::Reconnect(arguments.first().map(name)),
        ("wait_close", [] | [_]) => Command::WaitClose(arguments.first().map(name)),
        ("kill", [] | [_]) => Command::Kill(arguments.first().map(name)),
        ("kill_client", [id]) => Command::KillClient(id.parse().ok()?),
        ("disable", [database]) => Command::Disable(name(database)),
        ("enable", [database]) => Command::Enable(name(database)),
        ("suspend", []) => Command::Suspend,
        ("reload", []) => Command::Reload,
        ("shutdown", []) => Command::Shutdown(Shutdown::Now),
        ("shutdown", ["wait_for_servers"]) => Command::Shutdown(Shutdown::WaitForServers),
        ("shutdown", ["wait_for_clients"]) => Command::Shutdown(Shutdown::WaitForClients),
        _ => return None,
    })
}

/// `PURGE [db]`, `PURGE [db] TABLE [schema.]table`, `PURGE [db] STATEMENT fingerprint`. A database that is called as one of those
/// two words needs double quotes.
fn purge(tokens: &[Token]) -> Option<Command> {
    let is_what = |token: &Token| matches!(token, Token::Word(word) if word == "table" || word == "statement");
    let (database, rest) = match tokens {
        [] => (None, tokens),
        [first, ..] if is_what(first) => (None, tokens),
        [Token::Word(name) | Token::Quoted(name), rest @ ..] => (Some(name.clone()), rest),
        _ => return None,
    };
    let what = match rest {
        [] => Purge::All,
        [Token::Word(what), Token::Word(digits) | Token::Quoted(digits)] if what == "statement" => {
            Purge::Statement(purge::fingerprint(digits)?)
        }
        [Token::Word(what), name @ ..] if what == "table" => Purge::Table(table(name)?),
        _ => return None,
    };
    Some(Command::Purge(database, what))
}

/// A name in one or two parts: dots in words divide, those in quotes do not.
fn table(tokens: &[Token]) -> Option<TableName> {
    let mut parts = vec![String::new()];
    for token in tokens {
        match token {
            Token::Quoted(name) => parts.last_mut()?.push_str(name),
            Token::Word(word) => {
                let mut pieces = word.split('.');
                parts.last_mut()?.push_str(pieces.next()?);
                parts.extend(pieces.map(str::to_owned));
            }
            Token::Other(_) => return None,
        }
    }
    TableName::of(parts)
}

/// `SET name = value` and `SET name TO value`, for what drivers set when they connect.
fn set(tokens: &[Token]) -> Option<Command> {
    let words = match tokens {
        [Token::Word(scope), rest @ ..] if scope == "session" => rest,
        all => all,
    };
    let [Token::Word(name), between, _, ..] = words else { return None };
    let is_assignment = *between == Token::Other('=') || *between == Token::Word("to".into());
    (is_assignment && CLIENT_SETTINGS.contains(&name.as_str())).then_some(Command::Set)
}

fn unknown(text: &str) -> Error {
    const SHOWN: usize = 60;
    let shown: String = text.trim().chars().take(SHOWN).collect();
    let error = Error::new(ErrorKind::Refused, SqlState::SYNTAX_ERROR, format!("invalid command '{shown}'"));
    let first = shown.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    match first.as_str() {
        "begin" | "start" | "commit" | "rollback" | "end" | "abort" => {
            error.hint("The console has no transactions: use autocommit. SHOW HELP lists its commands.")
        }
        "set" => {
            error.hint("Settings stand in proxy.toml; RELOAD applies them. SHOW HELP lists the console's commands.")
        }
        _ => error.hint("Use SHOW HELP for the list of commands."),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, Error> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '-' if chars.peek() == Some(&'-') => while chars.next_if(|c| *c != '\n').is_some() {},
            '/' if chars.peek() == Some(&'*') => {
                let mut before = ' ';
                chars.next();
                loop {
                    match chars.next() {
                        Some('/') if before == '*' => break,
                        Some(c) => before = c,
                        None => return Err(unknown(text)),
                    }
                }
            }
            '"' | '\'' => {
                let mut quoted = String::new();
                loop {
                    match chars.next() {
                        Some(end) if end == c && chars.next_if_eq(&c).is_none() => break,
                        Some(inner) => quoted.push(inner),
                        None => return Err(unknown(text)),
                    }
                }
                tokens.push(Token::Quoted(quoted));
            }
            c if is_word(c) => {
                let mut word = c.to_ascii_lowercase().to_string();
                while let Some(c) = chars.next_if(|c| is_word(*c)) {
                    word.push(c.to_ascii_lowercase());
                }
                tokens.push(Token::Word(word));
            }
            c => tokens.push(Token::Other(c)),
        }
    }
    Ok(tokens)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '-' || c == '.' || c == '$'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Command {
        let mut commands = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(commands.len(), 1, "{text}");
        commands.remove(0)
    }

    #[test]
    fn commands_are_read_whatever_their_case_and_comments() {
        assert_eq!(only("Show Pools;"), Command::Show(Topic::Pools));
        assert_eq!(only("/* a tool */ SHOW stats_totals -- all"), Command::Show(Topic::StatsTotals));
        assert_eq!(only("pause"), Command::Pause(None));
        assert_eq!(only("PAUSE App"), Command::Pause(Some("app".into())));
        assert_eq!(only("PAUSE \"My \"\"App\""), Command::Pause(Some("My \"App".into())));
        assert_eq!(only("kill_client 12"), Command::KillClient(12));
        assert_eq!(only("shutdown wait_for_clients"), Command::Shutdown(Shutdown::WaitForClients));
        assert_eq!(only("SHOW CACHE Entries"), Command::Show(Topic::CacheEntries));
        assert_eq!(only("SET extra_float_digits = 3"), Command::Set);
        assert_eq!(only("set client_encoding to 'UTF8'"), Command::Set);
        assert_eq!(read(" ; ;").expect("nothing"), []);
        assert_eq!(read("show users; show lists").expect("two").len(), 2);
    }

    #[test]
    fn purges_are_read_with_and_without_a_database() {
        let table = |database: Option<&str>, schema: Option<&str>, name: &str| {
            let table = TableName { schema: schema.map(str::to_owned), name: name.to_owned() };
            Command::Purge(database.map(str::to_owned), Purge::Table(table))
        };
        assert_eq!(only("PURGE"), Command::Purge(None, Purge::All));
        assert_eq!(only("purge \"table\""), Command::Purge(Some("table".into()), Purge::All));
        assert_eq!(only("purge table Orders"), table(None, None, "orders"));
        assert_eq!(only("purge app table shop.orders"), table(Some("app"), Some("shop"), "orders"));
        assert_eq!(only("purge app table \"Shop\".orders"), table(Some("app"), Some("Shop"), "orders"));
        assert_eq!(only("purge app table shop.\"My.Orders\""), table(Some("app"), Some("shop"), "My.Orders"));
        let digits = "0000000000000000000000000000002a";
        let statement = Purge::Statement(42);
        assert_eq!(only(&format!("PURGE STATEMENT {digits}")), Command::Purge(None, statement.clone()));
        assert_eq!(only(&format!("PURGE app STATEMENT '{digits}'")), Command::Purge(Some("app".into()), statement));
        for text in ["purge app all", "purge statement 2a", "purge table", "purge table a.b.c", "purge table (a)"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_command_is_a_syntax_error_with_a_hint() {
        for text in
            ["select 1", "show", "show nothing", "pause a b", "disable", "begin", "set x = 1", "show \"pools", "/* "]
        {
            let error = read(text).expect_err(text);
            assert_eq!(error.sqlstate(), SqlState::SYNTAX_ERROR, "{text}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("SHOW HELP")), "{text}");
        }
    }
}
