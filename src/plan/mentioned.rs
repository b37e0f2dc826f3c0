//! DDL, LOCK and maintenance whose form is not read: refused where a name in it means a sharded or reference table, or what belongs
//! to one.

use std::sync::Arc;

use super::names::{candidates, display};
use super::rules::Input;
use super::sharded::{Place, place, refusal};
use super::{Refusal, distribute};
use crate::catalog::model::Relation;
use crate::config::model::Table;
use crate::sql::facts::{Class, Name, Statement};
use crate::sql::lexer::{Lexer, Token};

/// The code of the refusal of a materialized view: no table of the primary can stand for it.
pub(super) const MATERIALIZED: &str = "materialized-view";

/// Whether none of a statement's identifiers can mean a table of the shards, as PostgreSQL resolves names.
///
/// # Errors
/// One does, or nobody can tell.
pub(super) fn check(input: &Input<'_>, statement: &Statement) -> Result<(), Refusal> {
    let mut tables = input.database.tables.iter();
    match tables.find_map(|table| meaning(input, statement, table)) {
        Some(refusal) => Err(refusal),
        None => attached(input, statement),
    }
}

/// Refuses what names an index, a sequence or a view that lies on the shards because its table does.
fn attached(input: &Input<'_>, statement: &Statement) -> Result<(), Refusal> {
    let verbs: [&[&str]; 3] = [&["alter"], &["drop"], &["comment", "on"]];
    let kinds = ["index", "sequence", "view"];
    let is_of = |verb: &[&str]| kinds.iter().any(|kind| leads(input, &[verb, &[kind]].concat()));
    if statement.class != Class::Ddl || !verbs.iter().any(|verb| is_of(verb)) {
        return Ok(());
    }
    match statement.mentions.iter().find(|name| lies_on_shards(input, name)) {
        Some(name) if is_on_primary(input, name) => Err(ambiguous(name)),
        Some(name) => {
            let message = format!("this form of DDL on {}, which lies on the shards", display(name));
            Err(refusal("names-shards", message, "Run it on each shard, and pgherd check after it."))
        }
        None => Ok(()),
    }
}

/// Whether a name may mean what belongs to a table of the configuration: an index, a column's sequence, or a view over such tables.
pub(super) fn lies_on_shards(input: &Input<'_>, name: &Name) -> bool {
    let Some(shards) = input.shards else { return false };
    let is_configured = |owner: &Arc<Relation>| {
        input.database.tables.iter().any(|table| *table.schema == *owner.schema && *table.name == *owner.name)
    };
    let belongs = |relation: &&Arc<Relation>| {
        shards.relations.get(&relation.table).is_some_and(is_configured)
            || distribute::is_over_tables(relation, shards, input.database)
    };
    candidates(name, shards, input.session.search_path).iter().any(belongs)
}

pub(super) fn is_on_primary(input: &Input<'_>, name: &Name) -> bool {
    input.catalog.is_some_and(|catalog| !candidates(name, catalog, input.session.search_path).is_empty())
}

/// What is called alike on the primary and on the shards.
pub(super) fn ambiguous(name: &Name) -> Refusal {
    let message = format!("{} lies on the shards, and there is one of that name on the primary", display(name));
    refusal("ambiguous-name", message, "Rename the one on the primary, on that server itself.")
}

/// Why a statement is refused that may mean this table; `None` where it does not.
fn meaning(input: &Input<'_>, statement: &Statement, table: &Table) -> Option<Refusal> {
    let may_mean = |name: &&Name| {
        *name.name == *table.name && name.schema.as_deref().is_none_or(|schema| *schema == *table.schema)
    };
    let mut bare = false;
    for name in statement.mentions.iter().filter(may_mean) {
        if name.schema.is_some() {
            return Some(refused(input, statement, table, false));
        }
        // What stands before it in a string may change the path.
        let is_known = input.facts.single().is_some();
        match place(input, name) {
            Ok(Place::Primary | Place::Nowhere) if is_known => {}
            Err(refusal) if refusal.code == "ambiguous-name" => return Some(refusal),
            _ => bare = true,
        }
    }
    bare.then(|| refused(input, statement, table, true))
}

/// `is_bare`: the name is the table's only as search_path says, or means something else altogether.
fn refused(input: &Input<'_>, statement: &Statement, table: &Table, is_bare: bool) -> Refusal {
    let table = format!("{}.{}", table.schema, table.name);
    if statement.class == Class::Ddl && leads(input, &["create", "materialized", "view"]) {
        let message = format!(
            "a materialized view over {table}, which lies on the shards: PostgreSQL fills one from the tables of its own server"
        );
        let hint = "CREATE TABLE ... AS SELECT keeps the answer in a table of the primary (make another and rename it to renew it); [cache] keeps answers by itself; a plain view is made on every shard.";
        return refusal(MATERIALIZED, message, hint);
    }
    let what = match statement.class {
        Class::Ddl => "this form of DDL on",
        _ if leads(input, &["lock"]) => "LOCK of",
        _ => "this form of maintenance of",
    };
    let message = format!("{what} the sharded or reference table {table}");
    let hint = if is_bare {
        "Run it on each shard, and pgherd check after it. If something else is meant by that name, write its schema."
    } else {
        "Run it on each shard, and pgherd check after it."
    };
    refusal("names-shards", message, hint)
}

/// Whether the text begins with these words.
fn leads(input: &Input<'_>, words: &[&str]) -> bool {
    let text = input.text.as_bytes();
    let tokens = Lexer::new(text, input.session.standard_conforming_strings).significant();
    let first: Vec<Token> = tokens.take(words.len()).collect();
    first.len() == words.len() && first.iter().zip(words).all(|(token, word)| token.is_word(text, word))
}
