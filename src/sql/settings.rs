//! SET, RESET, SHOW and DISCARD in all of PostgreSQL's forms (`VariableSetStmt` of its grammar).

use super::facts::{Class, Effect, Statement};
use super::piece::{Found, Piece};
use super::transaction::is_assignment;

/// Facts of a statement about settings; `None` for any other.
pub(super) fn recognise(piece: Piece<'_>) -> Option<Found> {
    let statement = match piece.lower(0).as_str() {
        "set" => Statement { effects: vec![set(piece)], ..Statement::new(Class::Session) },
        "reset" => Statement { effects: vec![reset(piece)], ..Statement::new(Class::Session) },
        "discard" => Statement { effects: vec![discard(piece)], ..Statement::new(Class::Session) },
        "show" => Statement::new(Class::Show),
        _ => return None,
    };
    Some(statement.into())
}

fn discard(piece: Piece<'_>) -> Effect {
    match piece.lower(1).as_str() {
        "all" => Effect::DiscardAll,
        "temp" | "temporary" => Effect::DiscardTemp,
        "plans" | "sequences" => Effect::Discard,
        _ => Effect::Opaque,
    }
}

fn reset(piece: Piece<'_>) -> Effect {
    match special(piece, 1) {
        _ if piece.is(1, "all") => Effect::ResetAll,
        Some((setting, _)) => Effect::Reset(setting.into()),
        None if piece.are(1, &["transaction", "isolation"]) => Effect::Reset("transaction_isolation".into()),
        None => setting(piece, 1).map_or(Effect::OpaqueSettings, |(name, _)| Effect::Reset(name)),
    }
}

fn set(piece: Piece<'_>) -> Effect {
    // `session` and `local` may also be what a setting is called: then `TO`, `=` or a dot follows.
    let scoped = piece.is_one(1, &["session", "local"]) && !is_assignment(piece, 2);
    let authorization = piece.are(1, &["session", "authorization"]);
    let local = scoped && piece.is(1, "local");
    let at = if scoped && !authorization { 2 } else { 1 };
    let (name, value): (Box<str>, usize) = match special(piece, at) {
        Some((name, value)) => (name.into(), value),
        None => match setting(piece, at) {
            Some((name, next)) => (name, next + 1),
            None => return Effect::OpaqueSettings,
        },
    };
    let to_default = piece.is(value, "default") || (&*name == "timezone" && piece.is(value, "local"));
    match (&*name, local) {
        ("seed", _) => Effect::ServerState,
        (_, true) if to_default => Effect::ResetLocal(name),
        (_, true) => Effect::SetLocal(name),
        _ if to_default => Effect::Reset(name),
        _ => Effect::Set(name),
    }
}

/// The spellings that are no plain name: which setting they mean, and where their value stands.
fn special(piece: Piece<'_>, at: usize) -> Option<(&'static str, usize)> {
    if is_assignment(piece, at + 1) {
        return None;
    }
    if piece.are(at, &["time", "zone"]) {
        Some(("timezone", at + 2))
    } else if piece.are(at, &["session", "authorization"]) {
        Some(("session_authorization", at + 2))
    } else if piece.are(at, &["xml", "option"]) {
        Some(("xmloption", at + 2))
    } else if piece.is(at, "role") {
        Some(("role", at + 1))
    } else if piece.is(at, "names") {
        // `SET NAMES` alone is `SET NAMES DEFAULT`.
        Some(("client_encoding", at + 1))
    } else if piece.is(at, "schema") {
        Some(("search_path", at + 1))
    } else if piece.is(at, "seed") {
        Some(("seed", at + 1))
    } else {
        None
    }
}

/// A setting's name, dotted for an extension's, in lower case as PostgreSQL compares it.
fn setting(piece: Piece<'_>, at: usize) -> Option<(Box<str>, usize)> {
    let mut name = piece.identifier(at)?;
    let mut at = at + 1;
    while piece.is_punctuation(at, b'.') {
        name = format!("{name}.{}", piece.identifier(at + 1)?);
        at += 2;
    }
    Some((name.to_ascii_lowercase().into(), at))
}
