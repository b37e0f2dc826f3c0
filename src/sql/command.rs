//! Statements that are known by their leading keywords: everything but queries and DML, which `walk` reads from a tree.

use super::analyzer::analyze_piece;
use super::facts::{Class, Effect, Statement};
use super::lexer::{Token, TokenKind};
use super::mentions::mentions;
use super::piece::{Found, Piece};
use super::settings;
use super::transaction;

/// Facts of a statement that its first words explain; `None` for queries and DML.
pub(super) fn recognise(piece: Piece<'_>) -> Option<Found> {
    if let Some(found) = transaction::recognise(piece).or_else(|| settings::recognise(piece)) {
        return Some(found);
    }
    let found = match piece.lower(0).as_str() {
        "explain" => return Some(explain(piece)),
        "copy" => return Some(copy(piece)),
        "declare" => return Some(declare(piece)),
        // What its strings hold may be reached, so the facts are this text's alone.
        "prepare" => return Some(Found { statement: prepare(piece), literal_sensitive: true }),
        "execute" => {
            let mut found = opaque(piece);
            found.statement.effects =
                piece.identifier(1).map(|name| Effect::Execute(name.into())).into_iter().collect();
            return Some(found);
        }
        "deallocate" => {
            let at = piece.skip(1, "prepare");
            session(match piece.identifier(at)? {
                name if name == "all" && piece.is(at, "all") => Effect::DeallocateAll,
                name => Effect::Deallocate(name.into()),
            })
        }
        "fetch" | "move" => Statement { cursor: last_name(piece), ..Statement::new(Class::Session) },
        "close" => {
            let name = last_name(piece).filter(|_| !piece.is(1, "all"));
            Statement { cursor: name, ..session(Effect::CloseCursor) }
        }
        "listen" => session(Effect::Listen(channel(piece))),
        "unlisten" if piece.bytes(1) == b"*" => session(Effect::UnlistenAll),
        "unlisten" => session(Effect::Unlisten(channel(piece))),
        "load" => session(Effect::Load),
        "do" | "call" => {
            let mut found = opaque(piece);
            found.statement.effects.push(Effect::Opaque);
            return Some(found);
        }
        "refresh" => refresh(piece),
        "notify" => Statement { identifiers: piece.identifiers(), ..Statement::new(Class::Utility) },
        "lock" | "vacuum" | "analyze" | "analyse" | "reindex" | "cluster" | "checkpoint" | "repack" => {
            let (identifiers, mentions) = (piece.identifiers(), mentions(piece));
            Statement { identifiers, mentions, ..Statement::new(Class::Utility) }
        }
        "truncate" => truncate(piece),
        "create" => create(piece),
        "alter" | "drop" | "grant" | "revoke" | "comment" | "security" | "import" | "reassign" => ddl(piece),
        _ => return None,
    };
    Some(found.into())
}

/// A statement that pgherd cannot read: what it names is all that is known, so the facts are this text's alone.
pub(super) fn opaque(piece: Piece<'_>) -> Found {
    let identifiers = piece.identifiers_and_bodies();
    let mut statement = Statement { identifiers, ..Statement::new(Class::Opaque) };
    statement.effects = super::walk::effects_by_name(piece);
    Found { statement, literal_sensitive: true }
}

/// A statement inside of another. None that may hold one in its turn is allowed there, so that no text makes this deep.
fn nested(piece: Piece<'_>) -> Found {
    if piece.is_one(0, &["explain", "declare", "prepare", "copy"]) { opaque(piece) } else { analyze_piece(piece) }
}

fn session(effect: Effect) -> Statement {
    Statement { effects: vec![effect], ..Statement::new(Class::Session) }
}

/// The name that a statement about a cursor ends in.
fn last_name(piece: Piece<'_>) -> Option<Box<str>> {
    piece.identifier(piece.tokens.len().checked_sub(1)?).map(Into::into)
}

/// The channel that LISTEN or UNLISTEN names; empty for a name in an encoding that is not UTF-8.
fn channel(piece: Piece<'_>) -> Box<str> {
    let name = piece.identifier(1).unwrap_or_default();
    if name.contains(char::REPLACEMENT_CHARACTER) { Box::default() } else { name.into() }
}

fn ddl(piece: Piece<'_>) -> Statement {
    let identifiers = piece.identifiers();
    let temporary = identifiers.iter().any(|name| name.starts_with("pg_temp"));
    let effects = if temporary { vec![Effect::TemporaryObject] } else { Vec::new() };
    Statement { identifiers, mentions: mentions(piece), effects, ..Statement::new(Class::Ddl) }
}

fn create(piece: Piece<'_>) -> Statement {
    let mut statement = ddl(piece);
    let at = if piece.are(1, &["or", "replace"]) { 3 } else { 1 };
    let at = if piece.is_one(at, &["global", "local"]) { at + 1 } else { at };
    if piece.is_one(at, &["temp", "temporary"]) && !statement.effects.contains(&Effect::TemporaryObject) {
        statement.effects.push(Effect::TemporaryObject);
    }
    statement
}

fn truncate(piece: Piece<'_>) -> Statement {
    let mut statement = ddl(piece);
    let mut at = piece.skip(1, "table");
    while let Some((name, next)) = piece.name(piece.skip(at, "only")) {
        statement.writes.push(name);
        let star = usize::from(piece.bytes(next) == b"*");
        if !piece.is_punctuation(next + star, b',') {
            break;
        }
        at = next + star + 1;
    }
    statement
}

/// `REFRESH MATERIALIZED VIEW [CONCURRENTLY] name`
fn refresh(piece: Piece<'_>) -> Statement {
    let (identifiers, mentions) = (piece.identifiers(), mentions(piece));
    let mut statement = Statement { identifiers, mentions, ..Statement::new(Class::Utility) };
    statement.writes.extend(piece.name(piece.skip(3, "concurrently")).map(|(name, _)| name));
    statement
}

/// `PREPARE name [(types)] AS statement`: nothing runs yet, but what an EXECUTE may reach is named here.
fn prepare(piece: Piece<'_>) -> Statement {
    let Some(name) = piece.identifier(1) else { return opaque(piece).statement };
    let mut statement = session(Effect::Prepare(name.into()));
    statement.identifiers = piece.identifiers_and_bodies();
    let inner = (2..piece.tokens.len()).find(|&at| piece.is(at, "as")).map(|at| nested(piece.from(at + 1)));
    if inner.is_none_or(|inner| !inner.statement.effects.is_empty()) {
        statement.effects.push(Effect::Opaque);
    }
    statement
}

/// `DECLARE name ... CURSOR [WITH HOLD] FOR query`: the query's facts, which FETCH will run.
fn declare(piece: Piece<'_>) -> Found {
    // The name comes first, and may be `cursor` too.
    let Some(cursor) = (2..piece.tokens.len()).find(|&at| piece.is(at, "cursor")) else { return opaque(piece) };
    let hold = piece.are(cursor + 1, &["with", "hold"]);
    let Some(query) = (cursor..piece.tokens.len()).find(|&at| piece.is(at, "for")) else { return opaque(piece) };
    let mut found = nested(piece.from(query + 1));
    if found.statement.class == Class::Read {
        found.statement.class = Class::Session;
    } else if found.statement.class != Class::Opaque {
        found = opaque(piece);
    }
    found.statement.cursor = piece.identifier(1).map(Into::into);
    found.statement.effects.push(if hold { Effect::HoldCursor } else { Effect::Cursor });
    found
}

/// What stands behind EXPLAIN and its options.
pub(super) struct Explained {
    /// The token that its statement begins with.
    pub(super) inner: usize,
    pub(super) analyze: bool,
    route: bool,
    /// A literal says whether it is ANALYZE: `(ANALYZE 0)` and `(ANALYZE 1)` have one fingerprint.
    by_literal: bool,
}

pub(super) fn explained(piece: Piece<'_>) -> Option<Explained> {
    let mut found = Explained { inner: 1, analyze: false, route: false, by_literal: false };
    let is_query = piece.is_punctuation(2, b'(') || piece.is_one(2, &["select", "with", "values", "table"]);
    if piece.is_punctuation(1, b'(') && !is_query {
        found.inner = piece.behind_parenthesis(1)?;
        for at in 2..found.inner {
            if !piece.is_punctuation(at - 1, b'(') && !piece.is_punctuation(at - 1, b',') {
                continue;
            }
            let value = piece.lower(at + 1);
            let on = !matches!(value.trim_matches('\''), "off" | "false" | "0");
            // An option's name may be quoted.
            match piece.identifier(at).as_deref() {
                Some("analyze" | "analyse") => found.analyze = on,
                Some("route") => found.route = on,
                _ => continue,
            }
            let literal = |token: Token| token.kind == TokenKind::Number || token.kind.is_string();
            found.by_literal |= piece.token(at + 1).is_some_and(literal);
        }
    } else {
        if piece.is_one(1, &["analyze", "analyse"]) {
            found.analyze = true;
            found.inner += 1;
        }
        found.inner = piece.skip(found.inner, "verbose");
    }
    Some(found)
}

fn explain(piece: Piece<'_>) -> Found {
    let Some(Explained { inner, analyze, route, by_literal }) = explained(piece) else { return opaque(piece) };
    if route {
        return Found { statement: Statement::new(Class::ExplainRoute), literal_sensitive: by_literal };
    }
    let inner = piece.from(inner);
    let mut found = if inner.is(0, "declare") { declare(inner) } else { nested(inner) };
    found.statement.explain = true;
    found.literal_sensitive |= by_literal;
    if !analyze && found.statement.class != Class::Opaque {
        let statement = &mut found.statement;
        statement.class = Class::Utility;
        let written = std::mem::take(&mut statement.writes);
        statement.reads.extend(written);
        statement.functions.clear();
        statement.effects.clear();
        statement.locks_rows = false;
    }
    found
}

/// Where the statement behind `EXPLAIN (ROUTE)` begins in `text`, in bytes.
pub fn explain_route_inner(text: &[u8], standard_conforming_strings: bool) -> Option<usize> {
    let pieces = super::piece::split(text, standard_conforming_strings);
    let piece = Piece { text, tokens: pieces.first()? };
    let found = explained(piece).filter(|found| piece.is(0, "explain") && found.route)?;
    // Comments before it belong to it: they may hold a hint.
    piece.token(found.inner)?;
    Some(piece.token(found.inner.checked_sub(1)?)?.end)
}

/// COPY in every form; what moves through the client's connection is told apart from what the server reads or writes itself.
fn copy(piece: Piece<'_>) -> Found {
    if piece.is_punctuation(1, b'(') {
        return copy_query(piece).unwrap_or_else(|| opaque(piece));
    }
    copy_table(piece).unwrap_or_else(|| opaque(piece))
}

/// `COPY (query) TO STDOUT | 'file' | PROGRAM 'command'`
fn copy_query(piece: Piece<'_>) -> Option<Found> {
    let behind = piece.behind_parenthesis(1)?;
    let mut found = nested(piece.range(2, behind - 1));
    if !piece.is(behind, "to") {
        return None;
    }
    let to_client = piece.is_one(behind + 1, &["stdout", "stdin"]);
    if piece.is(behind + 1, "program") || found.statement.class == Class::Opaque {
        return None;
    }
    if found.statement.class == Class::Read {
        found.statement.class = if to_client { Class::CopyOut } else { Class::Utility };
    }
    Some(found)
}

/// `COPY [BINARY] table [(columns)] FROM | TO ...`
fn copy_table(piece: Piece<'_>) -> Option<Found> {
    let at = if piece.is(1, "binary") && !piece.is_one(2, &["from", "to"]) { 2 } else { 1 };
    let (name, mut at) = piece.name(at)?;
    if piece.is_punctuation(at, b'(') {
        at = piece.behind_parenthesis(at)?;
    }
    let (from, to) = (piece.is(at, "from"), piece.is(at, "to"));
    let client = piece.is_one(at + 1, &["stdin", "stdout"]);
    if piece.is(at + 1, "program") || !(from || to) {
        return None;
    }
    let mut statement = Statement::new(match (from, client) {
        (true, true) => Class::CopyIn,
        (true, false) => Class::Write,
        (false, true) => Class::CopyOut,
        (false, false) => Class::Utility,
    });
    if to {
        statement.reads.push(name);
        return Some(statement.into());
    }
    statement.writes.push(name);
    // Only a WHERE can call functions: whatever stands before a parenthesis there is taken for one.
    if let Some(filter) = (at..piece.tokens.len()).find(|&place| piece.is(place, "where")) {
        let mut place = filter + 1;
        while place < piece.tokens.len() {
            match piece.name(place) {
                Some((called, next)) if piece.is_punctuation(next, b'(') => {
                    statement.functions.push(called);
                    place = next;
                }
                Some((_, next)) => place = next,
                None => place += 1,
            }
        }
        statement.effects = super::walk::effects_by_name(piece.from(filter));
    }
    Some(statement.into())
}
