//! INSERT, UPDATE and DELETE on sharded and reference tables: what they write to, and to which shards.

use sqlparser::ast::{
    Assignment, AssignmentTarget, ConflictTarget, Delete, Expr, FromTable, Insert, ObjectName, OnConflictAction,
    OnInsert, SetExpr, TableObject, TableWithJoins, Update, UpdateTableFromKind,
};

use super::analysis::{Analysis, Block, Tie};
use super::placed::no_shard;
use super::refuse::refuse;
use super::scatter::{Sharded, Written};
use super::scope::{Role, parts};
use super::select_into::{self, Home};
use super::tie::Ties;
use crate::catalog::model::Relation;
use crate::config::model::KeyMoves;
use crate::plan::Refusal;
use crate::plan::shard_key::{KeyColumn, Layout};

/// EXPLAIN would run on one shard what has to be done on all.
pub(super) fn explained(name: &str) -> Refusal {
    refuse(
        "reference-write",
        format!("EXPLAIN of a write to reference table \"{name}\", which would have to reach every shard"),
        "use EXPLAIN (ROUTE)",
    )
}

fn several() -> Refusal {
    refuse(
        "multi-shard-write",
        "this form of write is not supported on sharded tables",
        "write by equality with one value of the shard key",
    )
}

fn key_change(column: &str, hint: &str) -> Refusal {
    refuse(
        "shard-key-update",
        format!("\"{column}\" is the shard key: changing it could move the row to another shard"),
        hint,
    )
}

/// What to do instead where rows could move, were it asked for.
const ASK_FOR_MOVES: &str =
    "delete the row and insert it anew, or set fanout.key_moves = \"move\" to let an UPDATE move its rows";

/// What to do instead where they never move.
const INSERT_ANEW: &str = "delete the row and insert it anew";

/// An INSERT: each of its rows belongs to one shard.
pub(super) fn insert(analysis: &mut Analysis<'_>, insert: &Insert) -> Result<Written, Refusal> {
    let TableObject::TableName(name) = &insert.table else { return Err(several()) };
    let (schema, table) = parts(name).ok_or_else(several)?;
    let (relation, role) = analysis.relation(schema, table)?;
    analysis.expressions(&insert.returning, None, &Vec::new())?;
    analysis.expressions(&insert.on, None, &Vec::new())?;
    let (layout, relation) = match (role, relation) {
        (Role::Reference, Some(relation)) => {
            return walk_query(analysis, insert).map(|_| Written::Reference(relation));
        }
        (Role::Sharded(layout), Some(relation)) => (layout, relation),
        _ => return walk_source(analysis, insert).map(|_| Written::Elsewhere),
    };
    let block = walk_query(analysis, insert)?;
    conflict(&layout, insert)?;
    if select_into::is_query(insert) {
        let (home, width) = select_into::home(analysis, insert, &layout, &relation, block.as_ref());
        let mut shards = block.map_or_else(|| Err(select_into::across()), |block| Ok(block.joined.shards));
        match home {
            Home::Source => {}
            Home::Shard(shard) => analysis.take(shard),
            Home::Unknown => analysis.tie = Tie::Many,
        }
        if home != Home::Source && analysis.tie == Tie::Many {
            shards = Err(select_into::across());
        }
        return Ok(Written::Sharded(Sharded { relation, rows: Vec::new(), shards, width, moves: None }));
    }
    let rows = rows(analysis, insert, &layout, &relation)?;
    rows.iter().for_each(|&shard| analysis.take(shard));
    let shards = Ok(rows.iter().copied().collect());
    Ok(Written::Sharded(Sharded { relation, rows, shards, width: None, moves: None }))
}

fn walk_source<'o>(analysis: &mut Analysis<'_>, insert: &Insert) -> Result<Option<Block<'o>>, Refusal> {
    match &insert.source {
        Some(query) => analysis.query(query, None, &Vec::new()),
        None => Ok(None),
    }
}

/// Walks the query of an INSERT into a table of the shards; what the walk does not read the coordinator may.
fn walk_query<'o>(analysis: &mut Analysis<'_>, insert: &Insert) -> Result<Option<Block<'o>>, Refusal> {
    let walked = walk_source(analysis, insert);
    if walked.is_err() && select_into::is_query(insert) {
        (analysis.tie, analysis.touches_sharded) = (Tie::Many, true);
        return Ok(None);
    }
    walked
}

fn conflict(layout: &Layout, insert: &Insert) -> Result<(), Refusal> {
    match &insert.on {
        None => Ok(()),
        Some(OnInsert::OnConflict(conflict)) => {
            if let Some(ConflictTarget::OnConstraint(_)) = &conflict.conflict_target {
                // The constraint's columns are PostgreSQL's to know; `check` refuses unique keys without the shard key.
            }
            match &conflict.action {
                OnConflictAction::DoNothing => Ok(()),
                OnConflictAction::DoUpdate(update) => assignments(layout, &update.assignments),
            }
        }
        Some(_) => Err(several()),
    }
}

/// The shard of each row.
fn rows(analysis: &Analysis<'_>, insert: &Insert, layout: &Layout, relation: &Relation) -> Result<Vec<usize>, Refusal> {
    let Some(SetExpr::Values(values)) = insert.source.as_ref().map(|query| &*query.body) else {
        return Err(refuse(
            "insert-select",
            "INSERT into a sharded table takes VALUES with the shard key as a constant or parameter",
            "read the rows first and insert them with VALUES",
        ));
    };
    // PostgreSQL says so itself, whichever shard is asked.
    if values.rows.iter().any(|row| row.len() != values.rows[0].len()) {
        return Ok(vec![0; values.rows.len()]);
    }
    let column_names: Vec<&str> = match insert.columns.as_slice() {
        [] => relation.columns.iter().map(|column| &*column.name).collect(),
        listed => listed.iter().filter_map(|name| Some(parts(name)?.1)).collect(),
    };
    let places: Vec<Option<usize>> =
        layout.key.iter().map(|it| column_names.iter().position(|name| **name == *it.column.name)).collect();
    let mut shards = Vec::new();
    for row in &values.rows {
        let field = |(it, at): (&KeyColumn, &Option<usize>)| match at.and_then(|at| row.get(at)) {
            Some(expr) => Ties::inserted(analysis.constants, it, expr).ok_or_else(|| unknown_key(it)),
            None if it.column.has_default => Err(unknown_key(it)),
            None => Ok(None),
        };
        let key: Result<Vec<_>, Refusal> = layout.key.iter().zip(&places).map(field).collect();
        shards.push(layout.place(&key?).ok_or_else(|| no_shard(layout))?);
    }
    Ok(shards)
}

fn unknown_key(key: &KeyColumn) -> Refusal {
    refuse(
        "insert-key",
        format!(
            "the value of shard key \"{}\" is not a constant or parameter that pgherd can read as the column stores it",
            key.column.name
        ),
        "give the key as a plain literal or parameter of the column's own type, ISO dates with their offset",
    )
}

/// An UPDATE: of rows on one shard or on several, the key itself unchanged.
pub(super) fn update(analysis: &mut Analysis<'_>, update: &Update) -> Result<Written, Refusal> {
    let mut from = vec![update.table.clone()];
    match &update.from {
        None => {}
        Some(UpdateTableFromKind::BeforeSet(more) | UpdateTableFromKind::AfterSet(more)) => {
            from.extend(more.iter().cloned())
        }
    }
    if !update.order_by.is_empty() || update.limit.is_some() {
        return Err(several());
    }
    let (layout, mut written) = target(analysis, &from, update.selection.as_ref(), |scope, analysis| {
        analysis.expressions(&update.assignments, Some(scope), &Vec::new())?;
        analysis.expressions(&update.returning, Some(scope), &Vec::new())
    })?;
    if let (Some(layout), Written::Sharded(sharded)) = (layout, &mut written)
        && let Some(column) = changed_key(&layout, &update.assignments)
    {
        let is_computed = layout.key.iter().any(|it| it.column.is_generated);
        if analysis.constants.input.key_moves == KeyMoves::Refuse || is_computed {
            return Err(key_change(&column, if is_computed { INSERT_ANEW } else { ASK_FOR_MOVES }));
        }
        sharded.moves = Some(Box::new(layout));
    }
    Ok(written)
}

/// A DELETE: of rows on one shard or on several.
pub(super) fn delete(analysis: &mut Analysis<'_>, delete: &Delete) -> Result<Written, Refusal> {
    let (FromTable::WithFromKeyword(tables) | FromTable::WithoutKeyword(tables)) = &delete.from;
    let mut from = tables.clone();
    from.extend(delete.using.iter().flatten().cloned());
    if !delete.order_by.is_empty() || delete.limit.is_some() || !delete.tables.is_empty() {
        return Err(several());
    }
    let (_, written) = target(analysis, &from, delete.selection.as_ref(), |scope, analysis| {
        analysis.expressions(&delete.returning, Some(scope), &Vec::new())
    })?;
    Ok(written)
}

/// Walks the block whose first relation is written; its layout, if it is sharded.
fn target(
    analysis: &mut Analysis<'_>,
    from: &[TableWithJoins],
    selection: Option<&Expr>,
    rest: impl FnOnce(&super::scope::Scope<'_>, &mut Analysis<'_>) -> Result<(), Refusal>,
) -> Result<(Option<Layout>, Written), Refusal> {
    let block = analysis.block(from, selection, None, &Vec::new())?;
    rest(&block.scope, analysis)?;
    let target = block.scope.sources.first().ok_or_else(several)?;
    let relation = target.relation.clone();
    match (&target.role, relation) {
        (Role::Reference, Some(relation)) => Ok((None, Written::Reference(relation))),
        (Role::Sharded(layout), Some(relation)) => {
            let shards = block.joined.together.map(|()| block.joined.shards);
            Ok((
                Some((**layout).clone()),
                Written::Sharded(Sharded { relation, rows: Vec::new(), shards, width: None, moves: None }),
            ))
        }
        (Role::Reference | Role::Sharded(_), None) => Err(several()),
        (Role::Derived | Role::Foreign, _) => Ok((None, Written::Elsewhere)),
    }
}

/// Whether none of the assignments changes the shard key, where rows cannot move.
pub(super) fn assignments(layout: &Layout, assignments: &[Assignment]) -> Result<(), Refusal> {
    changed_key(layout, assignments).map_or(Ok(()), |column| Err(key_change(&column, INSERT_ANEW)))
}

/// A column of the shard key that the assignments change; one that is computed from others may be changed by any of them.
fn changed_key(layout: &Layout, assignments: &[Assignment]) -> Option<String> {
    let is_key = |name: &&ObjectName| parts(name).is_none_or(|(_, name)| layout.position(name).is_some());
    let changed = |assignment: &Assignment| {
        let name = match &assignment.target {
            AssignmentTarget::ColumnName(name) => Some(name).filter(is_key),
            AssignmentTarget::Tuple(names) => names.iter().find(is_key),
        };
        name.map(|name| parts(name).map_or("", |(_, name)| name).to_owned())
    };
    let computed = layout.key.iter().find(|it| it.column.is_generated && !assignments.is_empty());
    assignments.iter().find_map(changed).or_else(|| computed.map(|it| it.column.name.to_string()))
}
