//! Savepoints of a transaction that no server knows of yet.

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// Words that name no savepoint without quotes: PostgreSQL's reserved ones, and those that name only functions and types
/// (`pg_get_keywords()`, 12 to 18).
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "binary",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "group",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "natural",
    "not",
    "notnull",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "overlaps",
    "placing",
    "primary",
    "references",
    "returning",
    "right",
    "select",
    "session_user",
    "similar",
    "some",
    "symmetric",
    "system_user",
    "table",
    "tablesample",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
];

/// How many of the statements that no server knows of stay after `ROLLBACK TO` a savepoint, if one of them set it.
pub(super) fn savepoint_named_in(lazy_begin: &[Bytes], name: &str) -> Option<usize> {
    let is_it = |savepoint: &Bytes| {
        let text = std::str::from_utf8(savepoint).unwrap_or_default();
        let mut words = words(text);
        words.next().is_some_and(|word| word.eq_ignore_ascii_case("savepoint"))
            && words.next().is_some_and(|known| folded(known) == name)
    };
    // The first is BEGIN; the savepoint itself stays.
    lazy_begin.iter().skip(1).collect::<Vec<_>>().into_iter().rposition(is_it).map(|at| at + 2)
}

/// Forgets the savepoint that one of the statements set that no server knows of, and those behind it; what else stands there stays.
pub(super) fn release(lazy_begin: &mut Vec<Bytes>, at: usize) {
    let behind = lazy_begin.split_off(at);
    lazy_begin.extend(behind.into_iter().filter(|text| !is_plain_savepoint(text)));
}

/// What PostgreSQL says of a savepoint that was not set.
pub(super) fn no_savepoint(name: &str) -> Error {
    let message = format!("savepoint \"{name}\" does not exist");
    Error::new(ErrorKind::Refused, SqlState::INVALID_SAVEPOINT_SPECIFICATION, message)
}

fn words(text: &str) -> std::str::SplitAsciiWhitespace<'_> {
    text.trim_end_matches([';', ' ', '\n']).split_ascii_whitespace()
}

/// An identifier as PostgreSQL folds it; it holds letters, digits and underscores only.
fn folded(name: &str) -> String {
    match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
        Some(quoted) => quoted.to_owned(),
        None => name.to_ascii_lowercase(),
    }
}

/// `SAVEPOINT name` and no more: nothing in it that a server could refuse.
pub(super) fn is_plain_savepoint(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let words: Vec<&str> = text.trim_end_matches([';', ' ', '\n']).split_ascii_whitespace().collect();
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match words.as_slice() {
        [savepoint, name] if savepoint.eq_ignore_ascii_case("savepoint") => {
            let quoted = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
            let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
            let bare = starts_well && !RESERVED.contains(&&*name.to_ascii_lowercase());
            quoted.is_some_and(|name| !name.is_empty() && is_name(name)) || (bare && is_name(name))
        }
        _ => false,
    }
}
