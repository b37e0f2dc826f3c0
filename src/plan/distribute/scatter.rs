//! Writes that concern several shards: the same text everywhere, or the rows of an INSERT each where it belongs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use sqlparser::ast::{Expr, Insert, SetExpr, Statement};

use super::model::{Distributed, Input};
use super::refuse::{clause, refuse};
use super::source::Source;
use crate::catalog::model::{Column, DefaultKind, Relation};
use crate::plan::shard_key::ShardSet;
use crate::plan::{Reason, Refusal};

/// A write that runs on several shards, in one transaction over them.
#[derive(Debug, Clone, PartialEq)]
pub struct Scattered {
    /// What each shard runs, by shard, ascending; never empty.
    pub parts: Vec<Part>,
    /// What the client is told.
    pub tally: Tally,
    /// Writes under that name come in the same order on all shards: a lock of that name is taken first.
    pub serial: Option<Box<str>>,
    /// Defaults that are the same for all rows of the statement, to be computed once: for each an expression that gives it as a literal.
    /// Where the `n`th belongs in a part's text stands [`marker`]`(n)`.
    pub moments: Vec<Box<str>>,
    /// Whether it changes the shards' catalogs.
    pub is_ddl: bool,
    /// Why it is so.
    pub reason: Reason,
}

/// Stands for a value that is not known yet; no statement's text can hold a NUL.
pub fn marker(number: usize) -> String {
    format!("\0{number}\0")
}

/// What one shard runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Index into the database's shards.
    pub shard: usize,
    /// The text.
    pub sql: Arc<str>,
    /// Which of an INSERT's rows they are; empty where the shard runs the client's own text.
    pub rows: Vec<usize>,
}

/// What becomes of the shards' answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tally {
    /// Each shard has its own rows: counts are added, rows are put together.
    Sum,
    /// All shards do the same: one speaks for all, and their counts must agree.
    Alike,
}

/// What a write writes to.
#[derive(Debug)]
pub(super) enum Written {
    /// A table that is not on the shards.
    Elsewhere,
    /// A reference table.
    Reference(Arc<Relation>),
    /// A sharded table.
    Sharded(Sharded),
}

/// A write to a sharded table.
#[derive(Debug)]
pub(super) struct Sharded {
    pub(super) relation: Arc<Relation>,
    /// The shard of each row of an INSERT.
    pub(super) rows: Vec<usize>,
    /// Shards where rows can be that are changed, if they can be told apart.
    pub(super) shards: Result<ShardSet, Refusal>,
}

/// Splits a write to a reference table: every shard does the same.
pub(super) fn reference(
    input: &Input<'_>,
    tree: &Statement,
    relation: &Relation,
    touches_sharded: bool,
    inner_queries: usize,
    one_shard: Option<Refusal>,
) -> Result<Distributed, Refusal> {
    if touches_sharded {
        return Err(clause("reference-write", "a write to a reference table from sharded ones"));
    }
    if inner_queries > 0 {
        return Err(clause("sub-query", "a sub-query in a write to a reference table"));
    }
    let takes_from_others = match tree {
        Statement::Update(update) => update.from.is_some(),
        Statement::Delete(delete) => delete.using.is_some(),
        _ => false,
    };
    if takes_from_others {
        return Err(clause("reference-write", "FROM or USING in a write to a reference table"));
    }
    if let Some(refusal) = one_shard {
        return Err(refusal);
    }
    if let Statement::Insert(insert) = tree {
        values(insert)?;
        for (column, _) in left_out(insert, relation) {
            if column.default > DefaultKind::Constant {
                return Err(refuse(
                    "default",
                    format!("the default of \"{}\" could be another one on each shard", column.name),
                    "give the column's value in the statement",
                ));
            }
        }
    }
    quiet(relation)?;
    let shards = 0..input.database.shards.len();
    let serial = format!("{}.{}", relation.schema, relation.name).into();
    everywhere(input, shards.collect(), Tally::Alike, Some(serial), "every shard has the whole reference table")
}

/// Splits a write to rows of several shards.
pub(super) fn sharded(
    input: &Input<'_>,
    tree: &Statement,
    source: &Source<'_>,
    written: Sharded,
    inner_queries: usize,
    one_shard: Option<Refusal>,
) -> Result<Distributed, Refusal> {
    if inner_queries > 0 {
        return Err(clause("sub-query", "a sub-query in a write"));
    }
    if let Some(refusal) = one_shard {
        return Err(refusal);
    }
    quiet(&written.relation)?;
    match tree {
        Statement::Insert(insert) => rows(input, insert, source, &written),
        _ => {
            let shards = written.shards?.into_iter().collect();
            everywhere(input, shards, Tally::Sum, None, "rows of several shards can be concerned")
        }
    }
}

/// Code of a user's that runs with a write could look at the clock, or at other rows.
fn quiet(relation: &Relation) -> Result<(), Refusal> {
    if !relation.writes_opaque {
        return Ok(());
    }
    let message = format!("a write to several shards of \"{}\", which has triggers or the like", relation.name);
    Err(refuse("trigger", message, "tie the statement to one value of the shard key"))
}

fn everywhere(
    input: &Input<'_>,
    shards: Vec<usize>,
    tally: Tally,
    serial: Option<Box<str>>,
    why: &'static str,
) -> Result<Distributed, Refusal> {
    let sql: Arc<str> = input.text.into();
    let parts = shards.into_iter().map(|shard| Part { shard, sql: Arc::clone(&sql), rows: Vec::new() }).collect();
    let reason = Reason { code: "multi-shard-write", text: why.into() };
    finished(input, Scattered { parts, tally, serial, moments: Vec::new(), is_ddl: false, reason })
}

/// A write over several shards needs a commit over several shards.
pub(super) fn finished(input: &Input<'_>, scattered: Scattered) -> Result<Distributed, Refusal> {
    if let ([only], false) = (scattered.parts.as_slice(), scattered.is_ddl)
        && only.rows.is_empty()
    {
        return Ok(Distributed::Shard { shard: only.shard, reason: scattered.reason });
    }
    if input.database.two_phase.is_none() {
        let is_reference = scattered.tally == Tally::Alike && !scattered.is_ddl;
        return Err(refuse(
            if is_reference { "reference-write" } else { "multi-shard-write" },
            "a write to several shards needs two-phase commit, so that it is done on all of them or on none",
            "configure database.two_phase, or write by equality with one value of the shard key",
        ));
    }
    Ok(Distributed::Scattered(Arc::new(scattered)))
}

/// The rows of `VALUES`.
fn values(insert: &Insert) -> Result<&[sqlparser::ast::Parens<Vec<Expr>>], Refusal> {
    let query = insert.source.as_ref();
    let is_plain = query.is_some_and(|query| {
        query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none()
    });
    match query.map(|query| &*query.body) {
        Some(SetExpr::Values(values)) if is_plain => Ok(&values.rows),
        _ => Err(refuse(
            "insert-select",
            "INSERT into tables of several shards takes plain VALUES",
            "read the rows first and insert them with VALUES",
        )),
    }
}

/// Columns that get their defaults, and whether no row speaks of them.
fn left_out<'r>(insert: &Insert, relation: &'r Relation) -> Vec<(&'r Column, bool)> {
    let rows = match insert.source.as_ref().map(|query| &*query.body) {
        Some(SetExpr::Values(values)) => values.rows.as_slice(),
        _ => &[],
    };
    let is_default = |expr: &Expr| matches!(expr, Expr::Identifier(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("default"));
    let place = |column: &Column, at: usize| match insert.columns.as_slice() {
        [] => Some(at),
        listed => listed.iter().position(|it| super::scope::parts(it).is_some_and(|(_, it)| *it == *column.name)),
    };
    let mut left_out = Vec::new();
    for (at, column) in relation.columns.iter().enumerate() {
        let place = place(column, at);
        let is_given = place.is_some_and(|at| rows.iter().all(|row| row.get(at).is_some_and(|expr| !is_default(expr))));
        if !is_given {
            left_out.push((column, place.is_none()));
        }
    }
    left_out
}

/// Columns that are to be added for their defaults' sake, and how these are computed.
fn moments(insert: &Insert, source: &Source<'_>, relation: &Relation) -> Result<(Added, Vec<Box<str>>), Refusal> {
    let mut added = Added { columns: String::new(), values: String::new(), at: source.end_of_columns() };
    let mut moments: Vec<Box<str>> = Vec::new();
    for (column, is_free) in left_out(insert, relation) {
        if column.default != DefaultKind::Moment {
            continue;
        }
        let (Some((expression, type_name)), true, Some(_)) = (&column.moment, is_free, added.at) else {
            let what = format!(
                "the default of \"{}\" is one for all rows of a statement, not one for each shard",
                column.name
            );
            let hint = "list the columns that are given values, or give this one its value in the statement";
            return Err(refuse("default", what, hint));
        };
        added.columns += &format!(", \"{}\"", column.name.replace('"', "\"\""));
        added.values += &format!(", {}::{type_name}", marker(moments.len()));
        // The text that JSON has of it means the same under every setting.
        let text = format!("pg_catalog.to_json(({expression})::{type_name}) OPERATOR(pg_catalog.#>>) '{{}}'");
        moments.push(format!("COALESCE(pg_catalog.quote_literal({text}), 'NULL')").into());
    }
    Ok((added, moments))
}

/// Each row of an INSERT where it belongs.
fn rows(input: &Input<'_>, insert: &Insert, source: &Source<'_>, written: &Sharded) -> Result<Distributed, Refusal> {
    let unreadable = || clause("insert", "this form of INSERT");
    let trees = values(insert)?;
    let texts = source.rows_of_values().filter(|texts| texts.len() == trees.len()).ok_or_else(unreadable)?;
    if written.rows.len() != texts.len() {
        return Err(unreadable());
    }
    let (added, moments) = moments(insert, source, &written.relation)?;
    let mut by_shard: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    written.rows.iter().enumerate().for_each(|(at, shard)| by_shard.entry(*shard).or_default().push(at));
    let parts = by_shard.into_iter().map(|(shard, rows)| {
        let sql = spliced(input.text, &texts, &rows, &added);
        Part { shard, sql, rows }
    });
    let reason = Reason { code: "multi-shard-write", text: "its rows belong to several shards".into() };
    let parts = parts.collect();
    finished(input, Scattered { parts, tally: Tally::Sum, serial: None, moments, is_ddl: false, reason })
}

/// Columns that the text leaves out and that are given values all the same.
struct Added {
    columns: String,
    values: String,
    /// Where the list of columns ends.
    at: Option<usize>,
}

/// The text with those of its rows.
fn spliced(text: &str, texts: &[Range<usize>], rows: &[usize], added: &Added) -> Arc<str> {
    let (Some(first), Some(last)) = (texts.first(), texts.last()) else { return text.into() };
    let row = |row: &usize| {
        let row = text.get(texts.get(*row)?.clone())?;
        Some(format!("{}{})", row.strip_suffix(')')?, added.values))
    };
    let kept: Vec<String> = rows.iter().filter_map(row).collect();
    let columns = added.at.filter(|at| *at < first.start).unwrap_or(first.start);
    let (head, values) = (&text[..columns], &text[columns..first.start]);
    format!("{head}{}{values}{}{}", added.columns, kept.join(", "), &text[last.end..]).into()
}
