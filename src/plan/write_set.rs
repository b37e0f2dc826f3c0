//! What a query string may change, for the cache's epochs: never less than it does.

use super::functions::{self, Called, Conduct};
use super::{WriteSet, names};
use crate::catalog::model::{Catalog, RelationKind};
use crate::sql::facts::{Class, Facts, Name, Statement};

/// The relations that a query string run on the primary may change, to the end of cascades, partitions and views.
///
/// `search_path` is as [`super::search_path::resolve_search_path`] gives it. A name that the catalog does not know, code that it does
/// not show, and everything that is opaque put the whole database into the set.
pub fn write_set(facts: &Facts, catalog: &Catalog, search_path: &[Box<str>]) -> WriteSet {
    let mut set = WriteSet::default();
    for statement in &facts.statements {
        add(&mut set, statement, catalog, search_path);
    }
    if set.database {
        set.relations.clear();
    }
    set.relations.sort_unstable();
    set.relations.dedup();
    set
}

/// The fault of ignoring cascades: only what the string names.
#[cfg(feature = "faults")]
pub fn named_only(facts: &Facts, catalog: &Catalog, search_path: &[Box<str>]) -> WriteSet {
    let mut set = write_set(facts, catalog, search_path);
    let names = facts.statements.iter().flat_map(|statement| &statement.writes);
    let named: Vec<_> = names.flat_map(|name| names::candidates(name, catalog, search_path)).collect();
    if !named.is_empty() && !set.catalog {
        set.relations = named.into_iter().map(|relation| relation.oid).collect();
        set.database = false;
    }
    set
}

fn add(set: &mut WriteSet, statement: &Statement, catalog: &Catalog, search_path: &[Box<str>]) {
    match statement.class {
        Class::Empty | Class::Show | Class::ExplainRoute | Class::Transaction(_) => return,
        Class::Ddl | Class::Opaque => {
            set.database = true;
            set.catalog = true;
            return;
        }
        Class::Read | Class::Session | Class::CopyOut | Class::CopyIn | Class::Write | Class::Utility => {}
    }
    set.database |= calls_unseen_code(statement, catalog, search_path);
    for name in &statement.writes {
        written(set, name, catalog, search_path);
    }
}

/// Whether something that the statement runs may write what its text does not name.
fn calls_unseen_code(statement: &Statement, catalog: &Catalog, search_path: &[Box<str>]) -> bool {
    let runs = !(statement.class == Class::Utility && statement.writes.is_empty());
    let of_statement = functions::called(statement, catalog, search_path);
    let of_views = statement
        .reads
        .iter()
        .chain(&statement.writes)
        .flat_map(|name| names::candidates(name, catalog, search_path))
        .flat_map(|relation| functions::view_calls(relation, catalog));
    let runs_queries = !matches!(statement.class, Class::Session | Class::Utility) || !statement.reads.is_empty();
    runs && (of_statement.into_iter().chain(of_views).any(|called| called.conduct == Conduct::Volatile)
        || (runs_queries && catalog.has_impure_user_casts))
}

fn written(set: &mut WriteSet, name: &Name, catalog: &Catalog, search_path: &[Box<str>]) {
    let candidates = names::candidates(name, catalog, search_path);
    if candidates.is_empty() {
        // Not known yet, temporary, or made by this very statement (SELECT INTO).
        set.database = true;
        set.catalog = true;
    }
    for relation in candidates {
        if names::is_system(relation) {
            // A rule on pg_settings only calls set_config(); any other is the catalog itself.
            let settings = &*relation.name == "pg_settings";
            set.database |= !settings;
            set.catalog |= !settings;
            continue;
        }
        set.database |= relation.writes_opaque || relation.kind == RelationKind::Other;
        set.relations.extend(&relation.writes);
    }
}

/// Whether the string calls code of a user's that says it does not write. Only a READ ONLY transaction shows whether that is so:
/// a STABLE function may call a volatile one.
pub fn trusts_user_code(facts: &Facts, catalog: &Catalog, search_path: &[Box<str>]) -> bool {
    let trusted = |called: &Called| called.user_defined && called.conduct != Conduct::Volatile;
    facts.statements.iter().any(|statement| {
        functions::called(statement, catalog, search_path).iter().any(trusted)
            || (statement.reads.iter().chain(&statement.writes))
                .flat_map(|name| names::candidates(name, catalog, search_path))
                .any(|relation| functions::view_calls(relation, catalog).iter().any(trusted))
    })
}

/// Whether the statement calls code of a user's that may change the session unseen: `set_config` in a volatile function.
pub fn may_change_session(facts: &Facts, catalog: &Catalog, search_path: &[Box<str>]) -> bool {
    facts.statements.iter().any(|statement| {
        functions::called(statement, catalog, search_path)
            .iter()
            .any(|called| called.user_defined && called.conduct == Conduct::Volatile)
    })
}
