//! The decision itself: one query string, one session, one plan.

use super::cacheable::cacheable;
use super::distribute::Unstreamed;
use super::functions::{self, Conduct};
use super::{Local, Plan, Reason, Refusal, names, partitions, sharded, tenant};
use crate::catalog::model::{Catalog, Oid, Persistence, RelationKind};
use crate::catalog::partitions::Partitions;
use crate::config::model::{Cache, Database, Fanout, Reads};
use crate::sql::explain_route_inner;
use crate::sql::facts::{Class, Facts, Route, Statement};

pub use super::search_path::{creates_temporary, resolve_search_path};
#[cfg(feature = "faults")]
pub use super::write_set::named_only;
pub use super::write_set::{may_change_session, trusts_user_code, write_set};

/// Everything that a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Facts of `text`.
    pub facts: &'a Facts,
    /// The query string.
    pub text: &'a str,
    /// The session that asks.
    pub session: &'a SessionView<'a>,
    /// The primary's catalog.
    pub catalog: Option<&'a Catalog>,
    /// The database's servers and tables.
    pub database: &'a Database,
    /// `[cache]`
    pub cache: &'a Cache,
    /// `[fanout]`
    pub fanout: &'a Fanout,
    /// The catalog of shard 0; all shards are alike.
    pub shards: Option<&'a Catalog>,
    /// What Bind brought. `None` is a simple query, or an extended one before Bind: decide again with it.
    pub bound: Option<&'a Bound<'a>>,
    /// The catalog of the server that merges what pgherd does not.
    pub coordinator: Option<&'a Catalog>,
    /// Why a statement is not to be streamed, whatever its shape.
    pub unstreamed: Option<Unstreamed>,
    /// How large the primary's partitions are, where scans of them may be split.
    pub partitions: Option<&'a Partitions>,
}

/// What of a session matters to where a statement runs.
#[derive(Debug, Clone, Copy)]
pub struct SessionView<'a> {
    /// The effective role (`current_user`).
    pub role: &'a str,
    /// Schemas as [`resolve_search_path`] gives them.
    pub search_path: &'a [Box<str>],
    /// Schemas as search_path lists them, `"$user"` replaced, whether the primary has them or not.
    pub listed_path: &'a [String],
    /// Whether that is known: a change of it may be under way whose outcome nobody has been told.
    pub path_is_known: bool,
    /// Where its transaction stands.
    pub in_transaction: Transaction,
    /// Whether a server is kept for it beyond transactions.
    pub pinned: bool,
    /// Whether it holds a server now.
    pub server_attached: bool,
    /// Whether it has made temporary tables, views or sequences.
    pub has_temporary_objects: bool,
    /// Whether its transaction is READ ONLY.
    pub read_only: bool,
    /// The setting of that name.
    pub standard_conforming_strings: bool,
    /// Whether `client_encoding` is the servers' own.
    pub same_encoding: bool,
    /// Whether the text's bytes can be read without knowing its encoding: not for SJIS, BIG5, GBK, UHC, GB18030, JOHAB and
    /// SHIFT_JIS_2004, whose characters hold ASCII bytes, unless the text is ASCII.
    pub text_is_plain: bool,
}

/// Where a session's transaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transaction {
    /// There is none: each statement is its own.
    Outside,
    /// READ COMMITTED, and nothing has been written yet.
    VirginReadCommitted,
    /// READ COMMITTED, and something may have been written.
    Written,
    /// REPEATABLE READ or SERIALIZABLE.
    Isolated,
    /// It has failed and waits for its end.
    Failed,
}

/// Parameters as Parse and Bind gave them.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    /// Declared types; 0 or missing is unspecified.
    pub types: &'a [Oid],
    /// Format codes: none, one for all, or one each.
    pub formats: &'a [i16],
    /// Values; `None` is NULL.
    pub values: &'a [Option<&'a [u8]>],
    /// Formats that the answer's columns are asked in.
    pub result_formats: &'a [i16],
}

/// Decides where a query string runs. Pure: the same input gives the same plan.
pub fn decide(input: &Input<'_>) -> Plan {
    if input.facts.statements.is_empty() {
        return Plan::Local(Local::Empty);
    }
    if input.facts.statements.iter().any(|statement| statement.class == Class::ExplainRoute) {
        return explain_route(input);
    }
    if let Some(plan) = tenant::decide(input) {
        return plan;
    }
    if let Some(plan) = sharded::decide(input) {
        return plan;
    }
    let Some(statement) = input.facts.single() else {
        return primary("multi-statement", "a string of several statements runs in one place");
    };
    match statement.class {
        Class::Read => read(input, statement),
        Class::Empty => Plan::Local(Local::Empty),
        Class::ExplainRoute => explain_route(input),
        Class::Show => primary("show", "settings are the session's own"),
        Class::Session => primary("session", "it changes the session"),
        Class::Transaction(_) => primary("transaction", "transactions are the primary's"),
        Class::CopyOut | Class::CopyIn => primary("copy", "COPY is forwarded as it is"),
        Class::Write => primary("write", "it writes"),
        Class::Ddl => primary("ddl", "it changes the catalog"),
        Class::Utility => primary("utility", "it maintains, locks or explains"),
        Class::Opaque => primary("opaque", "what it does cannot be read off its text"),
    }
}

pub(super) fn primary(code: &'static str, text: &'static str) -> Plan {
    Plan::Primary(Reason { code, text: text.into() })
}

fn explain_route(input: &Input<'_>) -> Plan {
    let inner = explain_route_inner(input.text.as_bytes(), input.session.standard_conforming_strings);
    match inner.and_then(|at| input.text.get(at..)).filter(|_| input.facts.single().is_some()) {
        Some(inner) => Plan::Local(Local::ExplainRoute(inner.trim_start().into())),
        None => Plan::Refuse(Refusal {
            code: "explain-route",
            message: "EXPLAIN (ROUTE) takes one statement, alone in its query string".into(),
            hint: "Send EXPLAIN (ROUTE) and the statement on their own.".into(),
        }),
    }
}

fn read(input: &Input<'_>, statement: &Statement) -> Plan {
    let why_not = match cacheable(input, statement) {
        Ok(cached) => {
            let from_replica = replica(input, statement).is_ok();
            return Plan::Cached(std::sync::Arc::new(super::CachedRead { from_replica, ..cached }));
        }
        Err(reason) => reason,
    };
    match replica(input, statement) {
        Ok(reason) => Plan::Replica(reason),
        Err(reason) if reason.code == "reads-primary" && partitions::names_one(input, statement) => {
            match partitions::decide(input, statement) {
                Ok(split) => Plan::Split(split),
                Err(reason) => Plan::Primary(reason),
            }
        }
        // Where neither is wanted there is nothing to explain but that it is a read.
        Err(reason) if reason.code == "reads-primary" && why_not.code == "cache-off" => {
            primary("read", "reads of this database go to the primary")
        }
        Err(reason) if reason.code == "reads-primary" => Plan::Primary(why_not),
        Err(reason) => Plan::Primary(reason),
    }
}

/// Whether a replica may answer, and why or why not.
fn replica(input: &Input<'_>, statement: &Statement) -> Result<Reason, Reason> {
    let no = |code, text: &'static str| Err(Reason { code, text: text.into() });
    let asked = input.facts.hint.route;
    let wanted = input.database.reads == Reads::Replica || asked == Some(Route::Replica);
    if input.database.replicas.is_empty() || !wanted {
        return no("reads-primary", "reads of this database go to the primary");
    }
    if asked == Some(Route::Primary) {
        return no("hint", "the text asks for the primary");
    }
    if input.session.in_transaction != Transaction::Outside || input.session.pinned {
        return no("in-transaction", "the session's server answers it");
    }
    if statement.explain || statement.locks_rows || !statement.effects.is_empty() {
        return no("not-plain", "it locks, measures or touches the session");
    }
    if !input.session.text_is_plain {
        return no("client-encoding", "the text's encoding may hide quotes in its characters");
    }
    let Some(catalog) = input.catalog else {
        return no("no-catalog", "the server's catalog has not been read yet");
    };
    for called in functions::called(statement, catalog, input.session.search_path) {
        let local = called.conduct == Conduct::Stable && !called.user_defined && !functions::is_clock(&called.name);
        if called.conduct > Conduct::Stable || local {
            let text = format!("{} may write, or answers otherwise on a replica", called.name);
            return Err(Reason { code: "volatile-function", text: text.into() });
        }
    }
    on_replica(input, statement, catalog)?;
    Ok(Reason { code: "read", text: "a read that cannot write".into() })
}

/// Whether a replica holds all that is read.
fn on_replica(input: &Input<'_>, statement: &Statement, catalog: &Catalog) -> Result<(), Reason> {
    for name in &statement.reads {
        let candidates = names::candidates(name, catalog, input.session.search_path);
        let temporary = name.schema.is_none() && input.session.has_temporary_objects;
        if candidates.is_empty() || temporary {
            let text = format!("{} is not known or may be temporary", names::display(name));
            return Err(Reason { code: "unknown-relation", text: text.into() });
        }
        for relation in candidates {
            let volatile = functions::view_calls(relation, catalog);
            let parts = || relation.reads.iter().map(|oid| catalog.relations.get(oid));
            let plain = parts().all(|part| {
                part.is_some_and(|part| {
                    part.persistence == Persistence::Permanent
                        && !matches!(
                            part.kind,
                            RelationKind::ForeignTable | RelationKind::Sequence | RelationKind::Other
                        )
                        && !names::is_system(part)
                })
            });
            if !plain || volatile.iter().any(|called| called.conduct > Conduct::Stable) {
                let text = format!("{} is not the same on a replica", names::display(name));
                return Err(Reason { code: "primary-relation", text: text.into() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
