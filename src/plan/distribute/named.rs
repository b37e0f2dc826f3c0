//! Which table of the configuration a name in DDL means, as PostgreSQL resolves it.

use sqlparser::ast::ObjectName;

use super::model::Input;
use super::refuse::refuse;
use super::scope::parts;
use crate::config::model::Table;
use crate::plan::Refusal;
use crate::sql::facts::Name;

/// The table as people write it.
pub(super) fn of(table: &Table) -> String {
    format!("{}.{}", table.schema, table.name)
}

/// The name of a relation that is there already.
pub(super) fn existing(name: &ObjectName) -> Option<Name> {
    let (schema, name) = parts(name)?;
    Some(Name { schema: schema.map(Into::into), name: name.into() })
}

/// The name of a relation that is made: without a schema it goes into the first of the path.
pub(super) fn created(input: &Input<'_>, name: &ObjectName) -> Option<Name> {
    let mut name = existing(name)?;
    if name.schema.is_none() {
        name.schema = input.search_path.iter().find(|schema| &***schema != "pg_catalog").cloned();
    }
    Some(name)
}

/// The table of the configuration that a name means; `None` if it means none.
///
/// # Errors
/// Several of them are called so in schemas of the path. PostgreSQL passes over those that the role may not use, so that any may be meant.
pub(super) fn configured<'i>(input: &Input<'i>, name: &ObjectName) -> Result<Option<&'i Table>, Refusal> {
    let Some(name) = existing(name) else { return Ok(None) };
    let is_in_path = |table: &&Table| input.search_path.iter().any(|schema| **schema == *table.schema);
    match &name.schema {
        Some(_) => Ok(candidates(input, &name).next()),
        None => only(candidates(input, &name).filter(is_in_path)),
    }
}

/// As [`configured`], for a name that is known to mean one of them: a schema that only the shards have is not in the path.
///
/// # Errors
/// Several of them may be meant.
pub(super) fn meant<'i>(input: &Input<'i>, name: &Name) -> Result<Option<&'i Table>, Refusal> {
    let is_in_path = |table: &&Table| input.search_path.iter().any(|schema| **schema == *table.schema);
    match only(candidates(input, name).filter(|table| name.schema.is_some() || is_in_path(table)))? {
        Some(table) => Ok(Some(table)),
        None => only(candidates(input, name)),
    }
}

/// What the primary has been given a moment ago need not be known yet: only in the first schema of the path no other can hide the table.
///
/// # Errors
/// A name without a schema whose table is in a later one.
pub(super) fn first_of_path(input: &Input<'_>, name: &Name) -> Result<(), Refusal> {
    let first = input.search_path.iter().find(|schema| &***schema != "pg_catalog");
    let (None, Some(first)) = (&name.schema, first) else { return Ok(()) };
    let schema = match meant(input, name)? {
        Some(table) => Some(table.schema.as_str()),
        None => input.catalog.resolve(input.search_path, &name.name).map(|relation| &*relation.schema),
    };
    let is_later = |schema: &&str| **schema != **first && input.search_path.iter().any(|it| **it == **schema);
    match schema.filter(is_later) {
        None => Ok(()),
        Some(schema) => {
            let message = format!("\"{0}\" may be {first}.{0} or {schema}.{0} by search_path", name.name);
            Err(refuse("ambiguous-name", message, "write the table's schema"))
        }
    }
}

fn candidates<'i>(input: &Input<'i>, name: &Name) -> impl Iterator<Item = &'i Table> {
    let (schema, name) = (name.schema.clone(), name.name.clone());
    let is_it =
        move |table: &&Table| *table.name == *name && schema.as_deref().is_none_or(|schema| *table.schema == *schema);
    input.database.tables.iter().filter(is_it)
}

fn only<'i>(mut tables: impl Iterator<Item = &'i Table>) -> Result<Option<&'i Table>, Refusal> {
    match (tables.next(), tables.next()) {
        (Some(one), Some(other)) => {
            let message = format!("\"{}\" may be {} or {}", one.name, of(one), of(other));
            Err(refuse("ambiguous-name", message, "write the table's schema"))
        }
        (found, _) => Ok(found),
    }
}
