//! Writes that concern several shards: the same text everywhere, or the rows of an INSERT each where it belongs.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use sqlparser::ast::{Expr, Insert, Query, SelectItem, SetExpr, Statement, Visit, Visitor};

use super::analysis::Analysis;
use super::check::Findings;
use super::defaults;
use super::functions::Functions;
use super::insert_select;
use super::model::{Distributed, Input};
use super::once::{self, Edits};
use super::refuse::{clause, refuse};
use super::select_into;
use super::source::Source;
use super::steady::is_steady;
use crate::catalog::model::{Column, DefaultKind, Relation};
use crate::config::model::KeyMoves;
use crate::plan::shard_key::{Layout, ShardSet};
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
    /// Sharded tables of which no row may move from shard to shard while it runs: each is locked against that first.
    pub still: Vec<Box<str>>,
    /// Defaults that are the same for all rows of the statement, to be computed once: for each an expression that gives it as a literal.
    /// Where the `n`th belongs in a part's text stands [`marker`]`(n)`.
    pub moments: Vec<Box<str>>,
    /// Whether it reads rows that it does not change: they are to be those of one moment on all shards.
    pub reads: bool,
    /// Whether it changes the shards' catalogs.
    pub is_ddl: bool,
    /// Whether its only part runs on the primary instead of a shard.
    pub is_on_primary: bool,
    /// Why it is so.
    pub reason: Reason,
}

/// Whether a query stands in a tree.
pub(super) fn holds_query(tree: &impl Visit) -> bool {
    struct Finder;
    impl Visitor for Finder {
        type Break = ();

        fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    tree.visit(&mut Finder).is_break()
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
    /// Which of an INSERT's rows they are; empty where it is about all that the shard has.
    pub rows: Vec<usize>,
    /// Whether it is the client's own text, to the letter.
    pub is_verbatim: bool,
    /// Parameters behind the statement's own: format codes and values.
    pub more: Vec<(i16, Bytes)>,
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
    /// How many columns an INSERT's query gives, where it is one and they can be counted.
    pub(super) width: Option<usize>,
    /// How the table's rows lie, where an UPDATE changes their shard key.
    pub(super) moves: Option<Box<Layout>>,
}

/// A write of which is known what it writes to.
pub(super) struct Write<'w, 'a> {
    pub(super) input: &'w Input<'a>,
    pub(super) tree: &'w Statement,
    pub(super) source: &'w Source<'a>,
    pub(super) analysis: &'w Analysis<'a>,
    pub(super) functions: Functions<'w>,
    pub(super) findings: Findings,
}

impl Write<'_, '_> {
    /// Splits a write to a reference table: every shard does the same.
    pub(super) fn reference(self, relation: &Relation) -> Result<Distributed, Refusal> {
        match self.tree {
            Statement::Insert(insert) if select_into::is_query(insert) => {
                // What each shard would read otherwise is read once.
                self.alike(relation).or_else(|_| insert_select::plan(&self, insert, relation))
            }
            _ => self.alike(relation),
        }
    }

    fn alike(&self, relation: &Relation) -> Result<Distributed, Refusal> {
        if self.analysis.touches_sharded {
            return Err(clause("reference-write", "a write to a reference table from sharded ones"));
        }
        let takes_from_others = match self.tree {
            Statement::Update(update) => update.from.is_some(),
            Statement::Delete(delete) => delete.using.is_some(),
            _ => false,
        };
        if takes_from_others {
            return Err(clause("reference-write", "FROM or USING in a write to a reference table"));
        }
        let takes_rows = matches!(self.tree, Statement::Insert(insert) if select_into::is_query(insert));
        if (takes_rows || self.analysis.inner_queries > 0) && !is_steady(self.tree, self.functions) {
            return Err(clause("sub-query", "a query that can give others of its rows on each shard,"));
        }
        if let Some(refusal) = &self.findings.one_shard {
            return Err(refusal.clone());
        }
        if let Statement::Insert(insert) = self.tree {
            if !takes_rows {
                values(insert)?;
            }
            let width = if takes_rows { width(insert) } else { None };
            for (column, _) in left_out(insert, relation, width) {
                if column.default > DefaultKind::Constant {
                    return Err(defaults::differs(column));
                }
            }
        }
        defaults::check_assigned(self.tree, relation, true)?;
        quiet(relation)?;
        let shards = 0..self.input.database.shards.len();
        let serial = format!("{}.{}", relation.schema, relation.name).into();
        self.everywhere(shards.collect(), Tally::Alike, Some(serial), "every shard has the whole reference table")
    }

    /// Splits a write to rows of several shards.
    pub(super) fn sharded(self, written: Sharded) -> Result<Distributed, Refusal> {
        if let Statement::Insert(insert) = self.tree
            && select_into::is_query(insert)
        {
            return self.staying(insert, &written).or_else(|_| insert_select::plan(&self, insert, &written.relation));
        }
        if self.analysis.inner_queries > 0 {
            if self.analysis.is_loose {
                return Err(clause(
                    "sub-query",
                    "a sub-query over other rows than those with the same shard key in a write",
                ));
            }
            if self.analysis.is_apart && !is_steady(self.tree, self.functions) {
                return Err(clause("sub-query", "a query that can give others of its rows on each shard,"));
            }
        }
        if let Some(refusal) = &self.findings.one_shard {
            return Err(refusal.clone());
        }
        defaults::check_assigned(self.tree, &written.relation, false)?;
        quiet(&written.relation)?;
        match self.tree {
            Statement::Insert(insert) => self.rows(insert, &written),
            _ => {
                let shards = written.shards?.into_iter().collect();
                self.everywhere(shards, Tally::Sum, None, "rows of several shards can be concerned")
            }
        }
    }

    /// An INSERT of rows that belong to the shards which they are read from.
    fn staying(&self, insert: &Insert, written: &Sharded) -> Result<Distributed, Refusal> {
        if holds_query(&insert.returning) || holds_query(&insert.on) {
            return Err(clause("sub-query", "a sub-query in RETURNING or ON CONFLICT of INSERT ... SELECT"));
        }
        if let Some(refusal) = &self.findings.one_shard {
            return Err(refusal.clone());
        }
        defaults::check_assigned(self.tree, &written.relation, false)?;
        quiet(&written.relation)?;
        let lacks = left_out(insert, &written.relation, written.width.or_else(|| width(insert)));
        if let Some((column, _)) = lacks.iter().find(|(column, _)| column.default == DefaultKind::Moment) {
            return Err(one_for_all(column));
        }
        written.shards.clone()?;
        let shards = select_into::shards(self.input, insert, self.source)?.into_iter().collect();
        self.everywhere(shards, Tally::Sum, None, "each row belongs to the shard that it is read from")
    }

    /// What is put in place of `now()` and its like, if they are there.
    pub(super) fn edits(&self, first: usize) -> Result<Edits, Refusal> {
        if !self.findings.has_moment {
            return Ok(Edits::default());
        }
        Edits::of(self.source, first).ok_or_else(|| clause("stable-function", "now() and its like in RETURNING"))
    }

    /// Tables whose rows must stay where they are meanwhile: a row that has left one shard may not be seen yet on another.
    fn still(&self) -> Vec<Box<str>> {
        match self.input.key_moves {
            KeyMoves::Refuse => Vec::new(),
            KeyMoves::Move => self.analysis.sharded.iter().cloned().collect(),
        }
    }

    /// Whether rows are read beside those that are written. Those are locked before they are changed, and read once more where
    /// another transaction has changed them meanwhile.
    fn reads(&self) -> bool {
        self.analysis.inner_queries > 0
            || match self.tree {
                Statement::Insert(insert) => select_into::is_query(insert),
                Statement::Update(update) => update.from.is_some(),
                Statement::Delete(delete) => delete.using.is_some(),
                _ => true,
            }
    }

    fn everywhere(
        &self,
        shards: Vec<usize>,
        tally: Tally,
        serial: Option<Box<str>>,
        why: &'static str,
    ) -> Result<Distributed, Refusal> {
        let edits = self.edits(0)?;
        let text = self.input.text;
        let sql: Arc<str> = edits.slice(text, 0..text.len()).into();
        let is_verbatim = edits.is_empty();
        let part = |shard| Part { shard, sql: Arc::clone(&sql), rows: Vec::new(), is_verbatim, more: Vec::new() };
        let parts = shards.into_iter().map(part).collect();
        let reason = Reason { code: "multi-shard-write", text: why.into() };
        finished(
            self.input,
            Scattered {
                parts,
                tally,
                serial,
                still: self.still(),
                moments: edits.moments,
                reads: self.reads(),
                is_ddl: false,
                is_on_primary: false,
                reason,
            },
        )
    }

    /// Each row of an INSERT where it belongs.
    fn rows(&self, insert: &Insert, written: &Sharded) -> Result<Distributed, Refusal> {
        let unreadable = || clause("insert", "this form of INSERT");
        let trees = values(insert)?;
        let texts = self.source.rows_of_values().filter(|texts| texts.len() == trees.len()).ok_or_else(unreadable)?;
        if written.rows.len() != texts.len() {
            return Err(unreadable());
        }
        let (added, mut moments) = moments(insert, self.source, &written.relation)?;
        let edits = self.edits(moments.len())?;
        moments.extend(edits.moments.iter().cloned());
        let mut by_shard: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        written.rows.iter().enumerate().for_each(|(at, shard)| by_shard.entry(*shard).or_default().push(at));
        let parts = by_shard.into_iter().map(|(shard, rows)| {
            let sql = spliced(self.input.text, &texts, &rows, &added, &edits);
            Part { shard, sql, rows, is_verbatim: false, more: Vec::new() }
        });
        let reason = Reason { code: "multi-shard-write", text: "its rows belong to several shards".into() };
        let parts = parts.collect();
        finished(
            self.input,
            Scattered {
                parts,
                tally: Tally::Sum,
                serial: None,
                still: Vec::new(),
                moments,
                reads: false,
                is_ddl: false,
                is_on_primary: false,
                reason,
            },
        )
    }
}

/// Code of a user's that runs with a write could look at the clock, or at other rows.
pub(super) fn quiet(relation: &Relation) -> Result<(), Refusal> {
    if !relation.writes_opaque {
        return Ok(());
    }
    let message = format!("a write to several shards of \"{}\", which has triggers or the like", relation.name);
    Err(refuse("trigger", message, "tie the statement to one value of the shard key"))
}

pub(super) fn one_for_all(column: &Column) -> Refusal {
    let what = format!("the default of \"{}\" is one for all rows of a statement, not one for each shard", column.name);
    refuse("default", what, "list the columns that are given values, or give this one its value in the statement")
}

/// How many columns an INSERT's query gives, where that can be counted without knowing its tables.
pub(super) fn width(insert: &Insert) -> Option<usize> {
    let query = insert.source.as_ref()?;
    let SetExpr::Select(select) = &*query.body else { return None };
    let is_one = |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
    select.projection.iter().all(is_one).then_some(select.projection.len())
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

/// Columns that get their defaults, and whether no row speaks of them. `width` is how many columns a query gives; where it is not
/// known and the statement lists none, any column may get its default.
pub(super) fn left_out<'r>(insert: &Insert, relation: &'r Relation, width: Option<usize>) -> Vec<(&'r Column, bool)> {
    let rows = match insert.source.as_ref().map(|query| &*query.body) {
        Some(SetExpr::Values(values)) => values.rows.as_slice(),
        _ => &[],
    };
    let place = |column: &Column, at: usize| match insert.columns.as_slice() {
        [] => Some(at),
        listed => listed.iter().position(|it| super::scope::parts(it).is_some_and(|(_, it)| *it == *column.name)),
    };
    let mut left_out = Vec::new();
    for (at, column) in relation.columns.iter().enumerate() {
        let place = place(column, at);
        let is_given = match select_into::is_query(insert) {
            true => place.is_some_and(|at| width.map_or(!insert.columns.is_empty(), |width| at < width)),
            false => place
                .is_some_and(|at| rows.iter().all(|row| row.get(at).is_some_and(|expr| !defaults::is_default(expr)))),
        };
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
    for (column, is_free) in left_out(insert, relation, None) {
        if column.default != DefaultKind::Moment {
            continue;
        }
        let (Some((expression, type_name)), true, Some(_)) = (&column.moment, is_free, added.at) else {
            return Err(one_for_all(column));
        };
        added.columns += &format!(", \"{}\"", column.name.replace('"', "\"\""));
        added.values += &format!(", {}::{type_name}", marker(moments.len()));
        moments.push(once::literal(expression, type_name));
    }
    Ok((added, moments))
}

/// Columns that the text leaves out and that are given values all the same.
struct Added {
    columns: String,
    values: String,
    /// Where the list of columns ends.
    at: Option<usize>,
}

/// The text with those of its rows.
fn spliced(text: &str, texts: &[Range<usize>], rows: &[usize], added: &Added, edits: &Edits) -> Arc<str> {
    let (Some(first), Some(last)) = (texts.first(), texts.last()) else { return text.into() };
    let row = |row: &usize| {
        let row = edits.slice(text, texts.get(*row)?.clone());
        Some(format!("{}{})", row.strip_suffix(')')?, added.values))
    };
    let kept: Vec<String> = rows.iter().filter_map(row).collect();
    let columns = added.at.filter(|at| *at < first.start).unwrap_or(first.start);
    let (head, values) = (&text[..columns], &text[columns..first.start]);
    let tail = edits.slice(text, last.end..text.len());
    format!("{head}{}{values}{}{tail}", added.columns, kept.join(", ")).into()
}
