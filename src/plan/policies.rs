//! Row-level security over shards: each shard judges its rows itself, by what that shard holds.

use super::rules::Input;
use super::sharded::refusal;
use super::{Refusal, names};
use crate::catalog::model::{Catalog, Oid, Relation};
use crate::config::model::Distribution;
use crate::sql::facts::Class;

/// Refuses statements over sharded tables whose policies read what no shard has the whole of: they would show, and let change, other
/// rows than on one server. Policies that look at the row, at settings and at reference tables are the same everywhere.
///
/// # Errors
/// A policy of a table that the statement names, or that a view of it reads, is such a one.
pub(super) fn check(input: &Input<'_>, shards: &Catalog) -> Result<(), Refusal> {
    let statements = input.facts.statements.iter().filter(|it| it.class != Class::Ddl);
    for name in statements.flat_map(|it| it.reads.iter().chain(&it.writes)) {
        let secured = names::candidates(name, shards, input.session.search_path);
        for relation in secured.into_iter().filter(|relation| relation.row_security) {
            for base in relation.reads.iter().filter_map(|oid| shards.relations.get(oid)) {
                check_base(input, shards, base)?;
            }
        }
    }
    Ok(())
}

fn check_base(input: &Input<'_>, shards: &Catalog, base: &Relation) -> Result<(), Refusal> {
    if !base.row_security || distribution(input, base).is_none_or(|it| *it == Distribution::Reference) {
        return Ok(());
    }
    let read = |oid: &&Oid| {
        let Some(other) = shards.relations.get(*oid).filter(|other| other.oid != base.oid) else { return false };
        match distribution(input, other) {
            Some(distribution) => *distribution != Distribution::Reference,
            // Partitions and children belong to it.
            None => !names::is_system(other) && !base.writes.contains(oid),
        }
    };
    let Some(other) = base.reads.iter().find(read).and_then(|oid| shards.relations.get(oid)) else { return Ok(()) };
    Err(refusal(
        "row-security",
        format!(
            "a policy of {}.{} reads {}.{}, of which each shard has its own rows only",
            base.schema, base.name, other.schema, other.name
        ),
        "Make that a reference table, or let the policy look at the row and at settings.",
    ))
}

fn distribution<'a>(input: &Input<'a>, relation: &Relation) -> Option<&'a Distribution> {
    let mut tables = input.database.tables.iter();
    let table = tables.find(|table| *table.schema == *relation.schema && *table.name == *relation.name);
    table.map(|table| &table.distribution)
}
