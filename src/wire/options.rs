//! The `options` of a StartupMessage: the server's command line, of which `-c` and `--` settings are read (PostgreSQL manual, 20.1.4).

use super::sqlstate::SqlState;
use crate::error::{Error, ErrorKind};

/// The settings that `options` names, in order.
///
/// # Errors
/// A switch other than `-c name=value` and `--name=value`, or one without its value.
pub fn settings(options: &str) -> Result<Vec<(String, String)>, Error> {
    let mut settings = Vec::new();
    let mut words = split(options).into_iter();
    while let Some(word) = words.next() {
        let setting = if let Some(long) = word.strip_prefix("--") {
            long.to_owned()
        } else if let Some(attached) = word.strip_prefix("-c") {
            if attached.is_empty() { words.next().ok_or_else(|| invalid(&word))? } else { attached.to_owned() }
        } else {
            return Err(refused(&word));
        };
        let Some((name, value)) = setting.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            let switch = if word.starts_with("--") { "--" } else { "-c " };
            return Err(error(SqlState::SYNTAX_ERROR, format!("{switch}{setting} requires a value")));
        };
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

/// Splits at white space that no backslash precedes, as PostgreSQL's pg_split_opts does.
fn split(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = options.chars().peekable();
    loop {
        while chars.next_if(|&c| is_space(c)).is_some() {}
        if chars.peek().is_none() {
            return words;
        }
        let mut word = String::new();
        while let Some(c) = chars.next_if(|&c| !is_space(c)) {
            if c == '\\' { word.extend(chars.next()) } else { word.push(c) }
        }
        words.push(word);
    }
}

/// C's isspace, which has the vertical tab that `is_ascii_whitespace` leaves out.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

fn invalid(word: &str) -> Error {
    error(SqlState::SYNTAX_ERROR, format!("invalid command-line argument for server process: {word}"))
}

fn refused(word: &str) -> Error {
    error(SqlState::FEATURE_NOT_SUPPORTED, format!("unsupported switch in the startup options: {word}"))
        .hint("Write settings as -c name=value or --name=value.")
}

fn error(state: SqlState, message: String) -> Error {
    let kind = if state == SqlState::FEATURE_NOT_SUPPORTED { ErrorKind::Refused } else { ErrorKind::Protocol };
    Error::new(kind, state, message).fatal()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(options: &str) -> Vec<(String, String)> {
        settings(options).expect(options)
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn every_way_to_write_a_setting_is_read() {
        for text in ["-c work_mem=1MB", "-cwork_mem=1MB", "--work_mem=1MB", "--work-mem=1MB", "  -c\twork-mem=1MB\n"] {
            assert_eq!(pairs(text), [pair("work_mem", "1MB")], "{text}");
        }
        assert_eq!(pairs(""), []);
        assert_eq!(pairs("-c a= --b=c=d"), [pair("a", ""), pair("b", "c=d")]);
    }

    #[test]
    fn a_backslash_keeps_white_space_and_itself() {
        assert_eq!(pairs(r"-c search_path=a,\ b\\c"), [pair("search_path", r"a, b\c")]);
        assert_eq!(pairs(r"-c a=b\"), [pair("a", "b")]);
    }

    #[test]
    fn other_switches_are_refused_by_name() {
        let table =
            [("-d 5", "0A000", "-d"), ("-c", "42601", "-c"), ("--x", "42601", "--x"), ("-c x", "42601", "-c x")];
        for (text, state, named) in table {
            let error = settings(text).expect_err(text);
            assert_eq!(error.sqlstate().code(), state, "{text}");
            assert!(error.message().contains(named) && error.is_fatal(), "{text}: {error}");
        }
    }
}
