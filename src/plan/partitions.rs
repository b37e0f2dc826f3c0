//! Whether a read of a partitioned table is split over several connections to its server, which share one snapshot.

use std::sync::Arc;

use super::distribute::{self, Leaf, Parameters, Split, SplitTable};
use super::rules::{Input, Transaction};
use super::{Reason, Refusal, names};
use crate::catalog::model::{Catalog, Oid, Persistence, Relation, RelationKind};
use crate::catalog::partitions::Partitions;
use crate::config::model::SplitScans;
use crate::sql::facts::{Name, Route, Statement};
use crate::sql::lexer::Lexer;
use crate::sql::literal;

/// Bytes of a page, unless the server was built otherwise.
const PAGE_BYTES: u64 = 8192;

/// Partitions that a statement is split over at most: each is named in a text, and locked once more.
const MOST_LEAVES: usize = 1000;

/// Whether the database's scans may be split and the statement may name a partitioned table.
pub(super) fn names_one(input: &Input<'_>, statement: &Statement) -> bool {
    let (Some(_), Some(catalog)) = (wanted(input), input.catalog) else { return false };
    statement.reads.iter().any(|name| is_partitioned(name, catalog, input.session.search_path))
}

fn wanted(input: &Input<'_>) -> Option<SplitScans> {
    input.database.split_scans.filter(|_| !input.database.is_distributed())
}

fn is_partitioned(name: &Name, catalog: &Catalog, search_path: &[Box<str>]) -> bool {
    names::candidates(name, catalog, search_path).iter().any(|found| found.kind == RelationKind::PartitionedTable)
}

fn no<T>(code: &'static str, text: &'static str) -> Result<T, Reason> {
    Err(Reason { code, text: text.into() })
}

/// Splits a read that names a partitioned table.
///
/// # Errors
/// Why it runs on one connection, as it stands.
pub(super) fn decide(input: &Input<'_>, statement: &Statement) -> Result<Arc<Split>, Reason> {
    let shape = statement.shape;
    if shape.key_equality && !shape.aggregate && !shape.group_by && !shape.distinct {
        return no("partitions-lookup", "rows that a column's value finds are no scan of the partitions");
    }
    session(input, statement)?;
    let (Some(wanted), Some(catalog), Some(sizes)) = (wanted(input), input.catalog, input.partitions) else {
        return no("partitions-unknown", "how large the partitions are has not been read yet");
    };
    let parent = parent(input, statement, catalog)?;
    let leaves = leaves(parent, catalog, sizes)?;
    let pages: u64 = leaves.iter().map(|leaf| leaf.pages).sum();
    if pages.saturating_mul(PAGE_BYTES) < wanted.from_bytes {
        return no("partitions-small", "the partitions are smaller than database.parallel_partitions_from");
    }
    // One leg would have four fifths to read, and the others little to save it.
    if leaves.iter().any(|leaf| leaf.pages.saturating_mul(5) > pages.saturating_mul(4)) {
        return no("partitions-uneven", "one partition holds nearly all of the rows");
    }
    let legs = wanted.legs.min(leaves.len());
    let parameters =
        input.bound.map(|bound| Parameters { types: bound.types, formats: bound.formats, values: bound.values });
    let asked = distribute::Input {
        text: input.text,
        statement,
        catalog,
        database: input.database,
        search_path: input.session.search_path,
        pure_functions: &input.fanout.pure_functions,
        key_moves: input.fanout.key_moves,
        session: distribute::Session {
            standard_conforming_strings: input.session.standard_conforming_strings,
            same_encoding: input.session.same_encoding,
        },
        parameters: parameters.or((statement.parameters == 0).then_some(Parameters::NONE)),
        coordinator: None,
        unstreamed: None,
        split: Some(SplitTable { oid: parent.oid, legs }),
    };
    let split =
        distribute::split(&asked, parent, leaves, &keys(parent, sizes)).map_err(|refusal| why(input, refusal))?;
    Ok(Arc::new(split))
}

/// Why the planner does not split it, in words that speak of partitions.
fn why(input: &Input<'_>, refusal: Refusal) -> Reason {
    match refusal.code {
        code if code.starts_with("partitions-") && code != "partitions-shape" => {
            Reason { code, text: refusal.message.into() }
        }
        _ if input.bound.is_none() && input.facts.single().is_some_and(|statement| statement.parameters > 0) => {
            Reason { code: "partitions-bind", text: "its parameters are not known yet".into() }
        }
        _ => {
            let text = format!("it cannot be put together from parts: {}", refusal.message);
            Reason { code: "partitions-shape", text: text.into() }
        }
    }
}

fn session(input: &Input<'_>, statement: &Statement) -> Result<(), Reason> {
    if input.facts.hint.route == Some(Route::Primary) {
        return no("hint", "the text asks for the primary");
    }
    if input.session.in_transaction != Transaction::Outside || input.session.pinned {
        return no("partitions-transaction", "the session's server answers it");
    }
    if statement.explain || statement.locks_rows || !statement.effects.is_empty() || statement.shape.sampled {
        return no("partitions-not-plain", "it locks, samples, measures or touches the session");
    }
    if input.session.has_temporary_objects {
        return no("partitions-temporary", "a name may be a temporary table's");
    }
    if !input.session.text_is_plain || !input.session.same_encoding {
        return no("partitions-encoding", "client_encoding is not the server's own");
    }
    Ok(())
}

/// The partitioned table that the statement names.
fn parent<'a>(input: &Input<'a>, statement: &Statement, catalog: &'a Catalog) -> Result<&'a Arc<Relation>, Reason> {
    let path = input.session.search_path;
    let mut all = statement.reads.iter().filter(|name| is_partitioned(name, catalog, path));
    let (Some(name), None) = (all.next(), all.next()) else {
        return no("partitions-several", "it names more than one partitioned table");
    };
    // A role that may not use a schema passes over it: that is asked of the server.
    let found = match &name.schema {
        Some(schema) => catalog.relation(schema, &name.name),
        None => catalog.resolve(path, &name.name),
    };
    match found.filter(|found| found.kind == RelationKind::PartitionedTable && !found.columns.is_empty()) {
        Some(found) if found.row_security => no("partitions-row-security", "row-level security decides what is shown"),
        Some(found) => Ok(found),
        None => no("partitions-unknown", "the name may mean another table"),
    }
}

/// The partitions that hold its rows.
fn leaves(parent: &Relation, catalog: &Catalog, sizes: &Partitions) -> Result<Vec<Leaf>, Reason> {
    let mut leaves = Vec::new();
    for &oid in parent.reads.iter().filter(|&&oid| oid != parent.oid) {
        let Some(part) = catalog.relations.get(&oid) else {
            return no("partitions-kind", "a partition is temporary or not known yet");
        };
        match (part.kind, part.persistence, sizes.pages.get(&oid)) {
            (RelationKind::PartitionedTable, _, _) => {}
            (RelationKind::Table, Persistence::Permanent | Persistence::Unlogged, Some(&pages)) => {
                leaves.push(Leaf { oid, schema: part.schema.clone(), name: part.name.clone(), pages });
            }
            _ => return no("partitions-kind", "a partition is a foreign table, temporary or not known yet"),
        }
    }
    match leaves.len() {
        0 | 1 => no("partitions-few", "there are fewer than two partitions"),
        count if count > MOST_LEAVES => {
            no("partitions-many", "there are more partitions than can be named in one text")
        }
        _ => Ok(leaves),
    }
}

/// Columns that the table or one of its partitions is partitioned by.
fn keys(parent: &Relation, sizes: &Partitions) -> Vec<Box<str>> {
    let definitions = parent.reads.iter().filter_map(|oid: &Oid| sizes.keys.get(oid));
    let mut keys: Vec<Box<str>> = Vec::new();
    for definition in definitions {
        let text = definition.as_bytes();
        // The first word is RANGE, LIST or HASH.
        let words = Lexer::new(text, true).significant().skip(1).filter_map(|token| literal::identifier(token, text));
        keys.extend(words.map(Into::into));
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}
