//! `[fanout]`, `[admin]`, `[limits]`, `[security]` and `[telemetry]`.

use tracing_subscriber::EnvFilter;

use super::pool::MAX_CONNECTIONS;
use crate::config::model::{Admin, Fanout, KeyMoves, Limits, LogFormat, Secret, Security, Telemetry};
use crate::config::names;
use crate::config::raw::{Table, nearest};

/// Bytes that one leg must at least be able to hold: one frame of a usual row.
const LEAST_MEMORY_BYTES: u64 = 64 << 10;

/// What nobody guesses over a network.
const LEAST_TOKEN_BYTES: usize = 16;

/// Keys that one statement can hold without PostgreSQL taking long to plan it.
const MOST_KEYS: u64 = 100_000;

pub(super) fn fanout(table: &Table<'_>) -> Fanout {
    let memory = table.size("memory");
    if memory < LEAST_MEMORY_BYTES {
        table.fault("memory", "this is too little to merge rows in", "give at least \"64KiB\"");
    }
    let pure_functions = table.texts("pure_functions").into_iter().filter_map(|text| match names::function(&text) {
        Ok(function) => Some(function),
        Err(problem) => {
            let help = "write schema.name(type, ...), as \"public.slug(text)\"";
            table.fault("pure_functions", format!("\"{}\": {problem}", text.escape_debug()), help);
            None
        }
    });
    Fanout {
        max_parallel: table.count("max_parallel", 1..1025).unwrap_or(1) as usize,
        memory_bytes: usize::try_from(memory).unwrap_or(usize::MAX),
        pure_functions: pure_functions.collect(),
        query_timeout: table.duration("query_timeout"),
        max_shipped_rows: table.count("max_shipped_rows", 1..1 << 48).unwrap_or(1),
        max_shipped_bytes: table.size("max_shipped_bytes"),
        key_list_max: table.count("key_list_max", 0..MOST_KEYS + 1).unwrap_or(0),
        key_moves: [KeyMoves::Refuse, KeyMoves::Move][table.choice("key_moves").unwrap_or(0)],
    }
}

pub(super) fn admin(table: &Table<'_>) -> Admin {
    let http_token = table.text("http_token");
    if http_token
        .as_ref()
        .is_some_and(|token| token.len() < LEAST_TOKEN_BYTES || !token.bytes().all(|b| b.is_ascii_graphic()))
    {
        let problem = format!("this is no token of {LEAST_TOKEN_BYTES} characters or more, without spaces");
        table.fault(
            "http_token",
            problem,
            "write \"${PGHERD_HTTP_TOKEN}\" and set that to the output of: openssl rand -hex 32",
        );
    }
    let http_token = http_token.map(Secret::new);
    Admin { users: table.texts("users"), stats_users: table.texts("stats_users"), http_token }
}

pub(super) fn limits(table: &Table<'_>) -> Limits {
    let count = |key: &str, lowest: u64| table.count(key, lowest..MAX_CONNECTIONS + 1).map(|count| count as u32);
    Limits {
        server_connections: count("server_connections", 1),
        reserved_server_connections: count("reserved_server_connections", 0).unwrap_or(0),
        reserved_clients: table.count("reserved_clients", 0..1001).unwrap_or(0) as usize,
    }
}

pub(super) fn security(table: &Table<'_>) -> Security {
    Security {
        max_connections_per_ip: table.count("max_connections_per_ip", 1..1_000_001).map(|count| count as usize),
        rate_limit_per_minute: table.count("rate_limit_per_minute", 1..100_000_001).map(|count| count as u32),
    }
}

/// Levels of the log, from none to all.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A word of a filter that stands where a level does and is none: it would be taken for a part of some program, of which all is shown.
fn no_level(filter: &str) -> Option<&str> {
    let is_level =
        |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level)) || word.parse::<u8>().is_ok();
    let is_part = |word: &str| word.contains(['=', '[', ']', '{', '}']) || word.contains("::");
    filter.split(',').map(str::trim).find(|word| !word.is_empty() && !is_level(word) && !is_part(word))
}

pub(super) fn telemetry(table: &Table<'_>) -> Telemetry {
    let log = table.text_or_default("log").unwrap_or_default();
    if let Err(error) = EnvFilter::builder().parse(&log) {
        table.fault("log", format!("this filter cannot be read: {error}"), "write \"info\", or \"info,pgherd=debug\"");
    } else if let Some(word) = no_level(&log) {
        let near = nearest(word, LEVELS.into_iter()).map_or(String::new(), |near| format!("did you mean \"{near}\"? "));
        let help = format!(
            "{near}Levels are {}; a part of pgherd has its own as in \"info,pgherd::cache=debug\"",
            LEVELS.join(", ")
        );
        table.fault("log", format!("\"{}\" is no level", word.escape_debug()), help);
    }
    Telemetry {
        log,
        format: [LogFormat::Text, LogFormat::Json][table.choice("format").unwrap_or(0)],
        slow_statement: table.duration_or_off("slow_statement"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_parts_of_the_log_are_read_and_other_words_are_not() {
        for log in ["off", "INFO", "info,pgherd=debug", "warn, pgherd::cache=trace,hyper=off", "pgherd::plan", "3", ""]
        {
            assert_eq!(no_level(log), None, "{log}");
        }
        assert_eq!(no_level("verbose"), Some("verbose"));
        assert_eq!(no_level("info, debgu"), Some("debgu"));
    }
}
