//! Transaction control in all of PostgreSQL's forms (`TransactionStmt` of its grammar, and SET TRANSACTION).

use super::facts::{Class, Effect, Statement, TransactionControl};
use super::piece::{Found, Piece};

/// Facts of a transaction control statement; `None` for any other.
pub(super) fn recognise(piece: Piece<'_>) -> Option<Found> {
    use TransactionControl::{Commit, Prepare, Release, Rollback, Savepoint};
    let control = match piece.lower(0).as_str() {
        "begin" => begin(piece, if piece.is_one(1, &["work", "transaction"]) { 2 } else { 1 }),
        "start" if piece.is(1, "transaction") => begin(piece, 2),
        "commit" | "end" => end(piece, Commit),
        "rollback" | "abort" => end(piece, Rollback),
        "savepoint" => Savepoint,
        "release" => Release,
        "prepare" if piece.is(1, "transaction") => Prepare,
        "set" => return set(piece),
        _ => return None,
    };
    let savepoint = match control {
        Savepoint => piece.identifier(1),
        Release => piece.identifier(piece.skip(1, "savepoint")),
        TransactionControl::RollbackTo => rolled_back_to(piece),
        _ => None,
    };
    let savepoint = savepoint.map(Into::into);
    Some(Statement { savepoint, ..Statement::new(Class::Transaction(control)) }.into())
}

/// The savepoint in `ROLLBACK [WORK | TRANSACTION] TO [SAVEPOINT] name`.
fn rolled_back_to(piece: Piece<'_>) -> Option<String> {
    let to = if piece.is(1, "to") { 1 } else { 2 };
    // A savepoint may be called so, too.
    let named = piece.skip(to + 1, "savepoint");
    piece.identifier(named).or_else(|| piece.identifier(to + 1))
}

fn begin(piece: Piece<'_>, modes: usize) -> TransactionControl {
    let modes = piece.from(modes);
    let mut read_only = false;
    let mut other = false;
    for at in 0..modes.tokens.len() {
        if modes.are(at, &["read", "only"]) {
            read_only = true;
        } else if modes.are(at, &["read", "write"]) {
            read_only = false;
        } else if modes.is(at, "repeatable") || modes.is(at, "serializable") {
            other = true;
        } else if modes.is(at, "deferrable") {
            other |= at == 0 || !modes.is(at - 1, "not");
        }
    }
    match (other, read_only) {
        (true, _) => TransactionControl::BeginOther,
        (false, true) => TransactionControl::BeginReadOnly,
        (false, false) => TransactionControl::Begin,
    }
}

fn end(piece: Piece<'_>, control: TransactionControl) -> TransactionControl {
    if piece.is(1, "prepared") {
        return TransactionControl::FinishPrepared;
    }
    let at = if piece.is_one(1, &["work", "transaction"]) { 2 } else { 1 };
    if piece.is(at, "to") && control == TransactionControl::Rollback {
        TransactionControl::RollbackTo
    } else if piece.are(at, &["and", "chain"]) {
        if control == TransactionControl::Commit {
            TransactionControl::CommitAndChain
        } else {
            TransactionControl::RollbackAndChain
        }
    } else {
        control
    }
}

/// `SET [LOCAL | SESSION] TRANSACTION ...` and `SET SESSION CHARACTERISTICS AS TRANSACTION ...`
fn set(piece: Piece<'_>) -> Option<Found> {
    let at = if piece.is_one(1, &["local", "session"]) { 2 } else { 1 };
    let mut statement = Statement::new(Class::Transaction(TransactionControl::SetTransaction));
    if piece.is(at, "transaction") && !is_assignment(piece, at + 1) {
        let modes = piece.from(at + 1);
        let control = match begin(piece, at + 1) {
            _ if modes.is(0, "snapshot") => TransactionControl::SetTransaction,
            TransactionControl::Begin => TransactionControl::SetTransactionPlain,
            TransactionControl::BeginReadOnly => TransactionControl::SetTransactionReadOnly,
            _ => TransactionControl::SetTransaction,
        };
        return Some(Statement::new(Class::Transaction(control)).into());
    }
    if piece.is(1, "constraints") && !is_assignment(piece, 2) {
        return Some(Statement::new(Class::Transaction(constraints(piece))).into());
    }
    if !piece.are(at, &["characteristics", "as", "transaction"]) && !piece.are(1, &["session", "characteristics"]) {
        return None;
    }
    for (keyword, setting) in [
        ("isolation", "default_transaction_isolation"),
        ("read", "default_transaction_read_only"),
        ("deferrable", "default_transaction_deferrable"),
    ] {
        if mentions(piece, keyword) {
            statement.effects.push(Effect::Set(setting.into()));
        }
    }
    Some(statement.into())
}

/// `SET CONSTRAINTS { ALL | name, ... } { DEFERRED | IMMEDIATE }`
fn constraints(piece: Piece<'_>) -> TransactionControl {
    let is_all = piece.is(2, "all") && piece.is_one(3, &["deferred", "immediate"]) && piece.token(4).is_none();
    if is_all { TransactionControl::SetAllConstraints } else { TransactionControl::SetConstraints }
}

/// `READ` of `READ ONLY`, not of `READ COMMITTED`.
fn mentions(piece: Piece<'_>, keyword: &str) -> bool {
    (0..piece.tokens.len())
        .any(|at| piece.is(at, keyword) && (keyword != "read" || piece.is_one(at + 1, &["only", "write"])))
}

pub(super) fn is_assignment(piece: Piece<'_>, at: usize) -> bool {
    piece.bytes(at) == b"=" || piece.is(at, "to") || piece.is_punctuation(at, b'.')
}
