//! Rows of the shards that go into a table of the primary, or make one there.

use std::sync::Arc;

use sqlparser::ast::{Statement, TableObject};

use super::super::model::{Distributed, Input};
use super::super::refuse::{clause, refuse};
use super::super::scatter::holds_query;
use super::super::scope::parts;
use super::super::select_into::{self, across};
use super::super::source::Source;
use super::{Goal, InsertSelect, answered, assembled, cut, reason};
use crate::catalog::model::{Catalog, Persistence, Relation, RelationKind};
use crate::plan::Refusal;
use crate::sql::facts::{self, Name};
use crate::sql::{self, parse};

/// Plans an INSERT of rows from the shards into a table of the primary, whose catalog is given.
///
/// # Errors
/// As INSERT into a table of the shards; or it has parameters or RETURNING, which no server could describe.
pub fn insert_into_primary(input: &Input<'_>, primary: &Catalog) -> Result<Arc<InsertSelect>, Refusal> {
    let scs = input.session.standard_conforming_strings;
    let tree = parse::parse(input.text.as_bytes(), scs).ok_or_else(across)?;
    let Statement::Insert(insert) = &tree else { return Err(across()) };
    let TableObject::TableName(name) = &insert.table else { return Err(across()) };
    let (schema, name) = parts(name).ok_or_else(across)?;
    let relation = match schema {
        Some(schema) => primary.relation(schema, name),
        None => primary.resolve(input.search_path, name),
    };
    let is_table = |relation: &&Arc<Relation>| {
        matches!(relation.kind, RelationKind::Table | RelationKind::PartitionedTable)
            && relation.persistence != Persistence::Temporary
    };
    let relation = relation.filter(is_table).ok_or_else(across)?;
    if !select_into::is_query(insert) {
        return Err(clause("mixed", "a sub-query over the shards in INSERT ... VALUES into a table of the primary"));
    }
    if input.statement.parameters > 0 || insert.returning.is_some() {
        let what = "parameters and RETURNING in INSERT ... SELECT from the shards into a table of the primary";
        return Err(refuse(
            "insert-select",
            what,
            "write the values as constants; select what was inserted afterwards",
        ));
    }
    if holds_query(&insert.on) {
        return Err(clause("sub-query", "a sub-query in ON CONFLICT of INSERT ... SELECT"));
    }
    let source = Source::new(input.text, scs);
    match assembled(input, insert, &source, (relation, primary), Goal::Primary)? {
        Distributed::InsertSelect(plan) => Ok(plan),
        _ => Err(across()),
    }
}

/// Plans `CREATE TABLE ... AS` over the shards: the table is made on the primary.
///
/// # Errors
/// The query cannot be answered, or its columns could have other collations than pgherd can tell.
pub fn create_on_primary(input: &Input<'_>) -> Result<Arc<InsertSelect>, Refusal> {
    let refused =
        |what: &str, hint: &str| Err(refuse("create-table-as", format!("{what} in CREATE TABLE AS over shards"), hint));
    let scs = input.session.standard_conforming_strings;
    let source = Source::new(input.text, scs);
    let range = source.query_of_create().ok_or_else(across)?;
    let made = source.created_table().filter(|(schema, _)| schema.as_ref().is_none_or(|it| !it.starts_with("pg_temp")));
    let Some((schema, name)) = made.filter(|_| input.statement.parameters == 0) else {
        return refused(
            "another form than a plain table, or a parameter,",
            "create a plain table, and write values as constants",
        );
    };
    if input.database.tables.iter().any(|table| *table.name == *name) {
        return refused("the name of a table of the shards", "give the new table another name");
    }
    const DEFAULT_COLLATION: u32 = 100;
    let is_plain = |name: &Name| {
        let relation = match &name.schema {
            Some(schema) => input.catalog.relation(schema, &name.name),
            None => input.catalog.resolve(input.search_path, &name.name),
        };
        relation.is_none_or(|it| it.columns.iter().all(|column| [0, DEFAULT_COLLATION].contains(&column.collation)))
    };
    let cut = cut(input, &source, Some(range), None)?;
    let read = sql::facts_of(cut.query, scs);
    let is_default =
        read.single().is_some_and(|it| it.reads.iter().all(is_plain) && !may_give_names(it, input.catalog));
    if !is_default || source.identifiers().contains("collate") {
        return refused("a collation of its own", "create the table first, and INSERT into it");
    }
    let goal = Goal::NewTable;
    Ok(Arc::new(InsertSelect {
        answered: answered(input, cut.query, &goal)?,
        query: cut.query.into(),
        table: schema.map_or_else(|| name.clone(), |schema| format!("{schema}.{name}")).into(),
        before: cut.before.into(),
        added: "".into(),
        casts: Vec::new(),
        behind: cut.behind(),
        moments: Vec::new(),
        serial: None,
        reason: reason(&goal),
        goal,
        key: Vec::new(),
        shards: input.database.shards.len(),
    }))
}

/// Whether something in the query can be of type `name`, which has a collation of its own that texts made of it take over.
fn may_give_names(query: &facts::Statement, catalog: &Catalog) -> bool {
    const NAMES: [u32; 2] = [19, 1003];
    const MOMENTS: [&str; 5] = ["current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"];
    let gives_names = |name: &Name| {
        let functions = catalog.functions.get(&name.name).into_iter().flatten();
        functions.into_iter().any(|function| NAMES.contains(&function.result))
    };
    query.functions.iter().any(gives_names)
        || query.casts.iter().any(|name| matches!(&*name.name, "name" | "_name"))
        || query.value_functions.iter().any(|name| !MOMENTS.contains(&&**name))
}
