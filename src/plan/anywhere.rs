//! Statements that name no relation and are the same on every server: what they give is computed from their arguments, from settings
//! that a session's servers share, and from the clock of their transaction.

use crate::catalog::model::{Catalog, FIRST_USER_OID, Oid};
use crate::plan::functions::{self, Called, Conduct};
use crate::sql::facts::{Class, Effect, Name, Statement};

/// regproc, regprocedure, regoper, regoperator, regclass, regtype, regconfig, regdictionary, regnamespace, regrole, regcollation: a text
/// that becomes one of them is looked up in the catalog of the server at hand.
const LOOKED_UP: [Oid; 11] = [24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191];

/// What a statement may be judged by.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// The primary's catalog.
    pub catalog: &'a Catalog,
    /// Schemas as PostgreSQL resolves names.
    pub search_path: &'a [Box<str>],
    /// Declared types of its parameters.
    pub types: &'a [Oid],
    /// Whether the session logs in as the same role everywhere.
    pub same_role: bool,
}

/// Whether a statement runs as well on any server that its transaction has. What names a relation does not, nor what looks something up
/// by name, takes a lock, sends a message, moves a sequence or says where it is.
pub fn runs_anywhere(statement: &Statement, judged: Judged<'_>) -> bool {
    let is_bare = statement.reads.is_empty() && statement.writes.is_empty();
    match statement.class {
        Class::Empty | Class::Show | Class::Transaction(_) => true,
        Class::Session => is_bare && is_computed(statement, judged),
        Class::Read => is_bare && !statement.locks_rows && is_computed(statement, judged),
        _ => false,
    }
}

/// Whether it asks what sequences of the session gave: the server tells that they gave it.
pub fn asks_sequences(statement: &Statement) -> bool {
    statement.effects.contains(&Effect::SequenceState)
}

fn is_computed(statement: &Statement, judged: Judged<'_>) -> bool {
    let Judged { catalog, search_path, types, same_role } = judged;
    let is_foreign = |oid: &Oid| *oid >= FIRST_USER_OID || LOOKED_UP.contains(oid);
    !catalog.has_impure_user_casts
        && !types.iter().any(is_foreign)
        && !statement.operators.iter().any(|name| catalog.user_operators.contains_key(name))
        && statement.casts.iter().all(|name| is_plain_type(name, catalog))
        && statement.value_functions.iter().all(|name| is_shared_value(name, same_role))
        && functions::called(statement, catalog, search_path).iter().all(is_shared)
}

/// A type of PostgreSQL's own whose input function looks nothing up.
fn is_plain_type(name: &Name, catalog: &Catalog) -> bool {
    let of_system = name.schema.as_deref().is_none_or(|schema| schema == "pg_catalog");
    let mut known = catalog.types.values().filter(|known| known.name == name.name).peekable();
    of_system
        && known.peek().is_some()
        && known.all(|known| &*known.schema == "pg_catalog")
        && !name.name.trim_start_matches('_').starts_with("reg")
}

fn is_shared_value(name: &str, same_role: bool) -> bool {
    match name {
        "current_date" | "current_time" | "current_timestamp" | "localtime" | "localtimestamp" => true,
        "current_role" | "current_user" | "session_user" | "user" => same_role,
        _ => false,
    }
}

fn is_shared(called: &Called) -> bool {
    if called.user_defined {
        return false;
    }
    match called.conduct {
        Conduct::Pure => true,
        // Those that say in which database or schema they run do not.
        Conduct::Keyed => {
            !matches!(&*called.name, "current_catalog" | "current_database" | "current_schema" | "current_schemas")
        }
        Conduct::Stable | Conduct::Harmless | Conduct::Volatile => is_of_session(&called.name),
    }
}

/// What reads the clock, chance, or the session's settings. `currval` and `lastval` are their caller's to judge.
fn is_of_session(name: &str) -> bool {
    functions::is_clock(name)
        || matches!(
            name,
            "clock_timestamp"
                | "currval"
                | "current_setting"
                | "gen_random_uuid"
                | "lastval"
                | "pg_sleep"
                | "pg_sleep_for"
                | "pg_sleep_until"
                | "random"
                | "random_normal"
                | "set_config"
                | "timeofday"
                | "uuidv4"
                | "uuidv7"
        )
}
