//! UPDATE that changes the shard key: PostgreSQL computes the new rows where they lie, rows that stay are updated there, and those
//! whose new key belongs to another shard are inserted there and deleted here.

use std::ops::Range;
use std::sync::Arc;

use sqlparser::ast::{
    AssignmentTarget, Expr, ObjectName, SelectItem, SetExpr, Statement, TableFactor, TableWithJoins, Update,
    Value as Literal,
};

use super::analysis::{Tie, table};
use super::carrier::{self, Carrier};
use super::constant::Constants;
use super::defaults::is_default;
use super::insert_select::{is_untyped, read_as};
use super::model::Distributed;
use super::once::Edits;
use super::placed::{no_shard, shard_of};
use super::refuse::refuse;
use super::scatter::{Sharded, Write, quiet};
use super::scope::parts;
use super::ship::{quoted, type_of};
use super::tie::Ties;
use crate::catalog::model::{Catalog, Column, ForeignKey, Oid, Relation, RelationKind};
use crate::config::model::Distribution;
use crate::plan::shard_key::Layout;
use crate::plan::{Reason, Refusal};
use crate::sql::parse;

/// Objects with smaller oids are PostgreSQL's own, with the same oids everywhere.
const FIRST_USER_OID: Oid = 16384;

/// An UPDATE whose rows go where their new keys belong.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyMove {
    /// The table, as people write it.
    pub table: Box<str>,
    /// Its schema.
    pub schema: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// How many columns it has.
    pub width: usize,
    /// Shards that have rows which are changed, ascending.
    pub sources: Vec<usize>,
    /// Shards that rows can belong to from then on, ascending.
    pub targets: Vec<usize>,
    /// What a source is asked: it locks the rows and gives of each where it lies, its new shard key and its new columns.
    pub select: Box<str>,
    /// The statement's text before WHERE, and its RETURNING.
    update: (Box<str>, Box<str>),
    /// What its columns are qualified with, quoted, and whether that is an alias.
    alias: (Box<str>, bool),
    /// The columns that rows are made of, quoted.
    columns: Vec<Box<str>>,
    layout: Layout,
    /// As those of [`super::Scattered`].
    pub moments: Vec<Box<str>>,
    /// Why it is so.
    pub reason: Reason,
}

impl KeyMove {
    /// All shards that take part, ascending.
    pub fn shards(&self) -> Vec<usize> {
        let mut shards = [&*self.sources, &*self.targets].concat();
        shards.sort_unstable();
        shards.dedup();
        shards
    }

    /// How many columns of an answer are the key, behind the first.
    pub fn key_width(&self) -> usize {
        self.layout.key.len()
    }

    /// Changes rows that stay; where they lie is the parameter of that number.
    pub fn update(&self, places: usize) -> String {
        let (head, returning) = &self.update;
        format!("{head} WHERE {}.ctid = ANY (${places}::pg_catalog.tid[]){returning}", self.alias.0)
    }

    /// Inserts rows that come in arrays, from that parameter on.
    pub fn insert(&self, columns: &[Carrier], first: usize) -> String {
        let (alias, is_alias) = &self.alias;
        let alias = if *is_alias { format!(" AS {alias}") } else { String::new() };
        let values: Vec<String> = columns.iter().enumerate().map(|(at, column)| carrier::value(column, at)).collect();
        format!(
            "INSERT INTO {}{alias} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}{}",
            self.target(),
            self.columns.join(", "),
            values.join(", "),
            carrier::rows_from(columns, first),
            self.update.1
        )
    }

    /// Deletes rows that leave; where they lie is the parameter of that number.
    pub fn delete(&self, places: usize) -> String {
        format!("DELETE FROM {} WHERE ctid = ANY (${places}::pg_catalog.tid[])", self.target())
    }

    fn target(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// The shard of a row whose new key's columns are these, in binary form.
    ///
    /// # Errors
    /// No shard takes such a row, or nobody can tell.
    pub fn place(&self, key: &[Option<&[u8]>]) -> Result<usize, Refusal> {
        shard_of(&self.layout, key.iter().copied(), unreadable)
    }

    /// The shard key, for people.
    pub fn key(&self) -> String {
        self.layout.names()
    }
}

fn unreadable(layout: &Layout) -> Refusal {
    let message = format!("an UPDATE of the shard key {}, which pgherd cannot read,", layout.names());
    refuse("key-move", message, INSTEAD)
}

const INSTEAD: &str = "delete the rows and insert them anew";

fn refused(what: &str) -> Refusal {
    refuse("key-move", format!("{what} in an UPDATE that moves rows between shards"), INSTEAD)
}

/// EXPLAIN would run on one shard what rows leave.
pub(super) fn explained() -> Refusal {
    refuse("key-move", "EXPLAIN of an UPDATE that moves rows between shards", "use EXPLAIN (ROUTE)")
}

/// One assignment: the column, and what it gets.
struct Assigned<'t> {
    column: &'t str,
    value: &'t Expr,
    text: Range<usize>,
}

/// Plans an UPDATE of the shard key.
///
/// # Errors
/// It cannot be shown that what comes out is what one PostgreSQL would do.
pub(super) fn plan(write: &Write<'_, '_>, written: Sharded) -> Result<Distributed, Refusal> {
    let (Statement::Update(update), Some(layout)) = (write.tree, &written.moves) else {
        return Err(refused("this form of statement"));
    };
    let target = constant_target(write.analysis.constants, layout, update)?;
    if let (Tie::One(shard), Some(target)) = (write.analysis.tie, target)
        && shard == target
    {
        let text = "every sharded table is tied to one shard, and the new key belongs there, too";
        return Ok(Distributed::Shard { shard, reason: Reason { code: "shard-key", text: text.into() } });
    }
    asked_for_alone(write, update)?;
    movable(write, &written.relation, layout)?;
    let sources = match (write.analysis.tie, written.shards) {
        (Tie::One(shard), _) => vec![shard],
        (_, shards) => shards?.into_iter().collect(),
    };
    let targets = target.map_or_else(|| layout.all().into_iter().collect(), |shard| vec![shard]);
    assembled(write, update, &written.relation, layout, (sources, targets))
}

/// Whether the statement has nothing that could come out otherwise where its rows are read first.
fn asked_for_alone(write: &Write<'_, '_>, update: &Update) -> Result<(), Refusal> {
    let input = write.input;
    if input.database.two_phase.is_none() {
        return Err(refuse(
            "key-move",
            "an UPDATE that moves rows between shards needs two-phase commit, so that they are on one of them whatever happens",
            "configure database.two_phase, or delete the rows and insert them anew",
        ));
    }
    if !input.session.same_encoding {
        let message = "an UPDATE that moves rows between shards under another client_encoding than the servers'";
        return Err(refuse("key-move", message, "use their encoding"));
    }
    if update.from.is_some() {
        return Err(refused("FROM"));
    }
    if write.analysis.inner_queries > 0 {
        return Err(refused("a sub-query"));
    }
    if let Some(refusal) = &write.findings.one_shard {
        return Err(refusal.clone());
    }
    Ok(())
}

/// Whether a row of the table is the same after it was deleted and inserted elsewhere, and nothing else has changed by that.
fn movable(write: &Write<'_, '_>, relation: &Relation, layout: &Layout) -> Result<(), Refusal> {
    quiet(relation)?;
    let of = |what: &str| {
        let message = format!("an UPDATE that moves rows of \"{}\", {what}, between shards", relation.name);
        Err(refuse("key-move", message, INSTEAD))
    };
    if relation.is_referenced {
        return of("to which foreign keys refer");
    }
    if relation.kind != RelationKind::Table || relation.reads != [relation.oid] || relation.writes != [relation.oid] {
        return of("which has partitions, children or parents");
    }
    if relation.row_security {
        return of("which has row-level security");
    }
    if relation.is_judged_late {
        return of("which has a deferrable unique or exclusion constraint");
    }
    if !relation.foreign_keys.iter().all(|key| is_kept(write, layout, key)) {
        return of(
            "which has a foreign key that is not valid, or whose rows need not be on the shard where a row belongs",
        );
    }
    Ok(())
}

/// Whether a foreign key finds its rows wherever a row of the table belongs.
fn is_kept(write: &Write<'_, '_>, layout: &Layout, key: &ForeignKey) -> bool {
    let input = write.input;
    let found = input.catalog.relations.get(&key.table).and_then(|it| Some((it, table(input.database, it)?)));
    let Some((relation, configured)) = found.filter(|_| key.is_valid) else { return false };
    if configured.distribution == Distribution::Reference {
        return true;
    }
    let other = Layout::new(configured, relation, input.catalog, input.database.shards.len());
    other.is_some_and(|other| {
        let mut pairs = layout.key.iter().zip(&other.key);
        let is_paired = |own: &str, theirs: &str| {
            key.columns
                .iter()
                .zip(&key.referenced)
                .any(|(column, referenced)| **column == *own && **referenced == *theirs)
        };
        layout.is_colocated(&other) && pairs.all(|(own, theirs)| is_paired(&own.column.name, &theirs.column.name))
    })
}

/// Columns with what they are assigned.
fn assignments(update: &Update) -> Result<Vec<(&str, &Expr)>, Refusal> {
    let mut found = Vec::new();
    for assignment in &update.assignments {
        match (&assignment.target, &assignment.value) {
            (AssignmentTarget::ColumnName(name), value) => found.push((column(name)?, value)),
            (AssignmentTarget::Tuple(names), Expr::Tuple(values)) if names.len() == values.len() => {
                for (name, value) in names.iter().zip(values) {
                    found.push((column(name)?, value));
                }
            }
            _ => return Err(refused("this form of SET")),
        }
    }
    Ok(found)
}

/// The column that is assigned to as a whole.
fn column(name: &ObjectName) -> Result<&str, Refusal> {
    match parts(name) {
        Some((None, name)) => Ok(name),
        _ => Err(refused("an assignment to a part of a column")),
    }
}

/// The shard that all rows belong to from then on, if their new key is known.
fn constant_target(constants: Constants<'_>, layout: &Layout, update: &Update) -> Result<Option<usize>, Refusal> {
    let assigned = assignments(update)?;
    let mut key = Vec::new();
    for column in &layout.key {
        let value = assigned.iter().find(|(name, _)| **name == *column.column.name);
        match value.and_then(|(_, value)| Ties::inserted(constants, column, value)) {
            Some(value) => key.push(value),
            None => return Ok(None),
        }
    }
    layout.place(&key).map(Some).ok_or_else(|| no_shard(layout))
}

fn assembled(
    write: &Write<'_, '_>,
    update: &Update,
    relation: &Relation,
    layout: &Layout,
    (sources, targets): (Vec<usize>, Vec<usize>),
) -> Result<Distributed, Refusal> {
    let input = write.input;
    let pieces = Pieces::cut(write, update).ok_or_else(|| refused("this form of UPDATE"))?;
    let edits = write.edits(0)?;
    let (alias, is_alias) = alias(update).ok_or_else(|| refused("this form of UPDATE"))?;
    let row = Row {
        alias: quoted(alias),
        assigned: pieces.assigned,
        edits: &edits,
        text: input.text,
        catalog: input.catalog,
    };
    let columns: Vec<&Column> = relation.columns.iter().filter(|column| !column.is_generated).collect();
    let mut selected = vec![format!("{}.ctid", row.alias)];
    for it in &layout.key {
        it.kind.ok_or_else(|| unreadable(layout))?;
        selected.push(row.key(&it.column).ok_or_else(|| unreadable(layout))??);
    }
    for column in &columns {
        selected.push(row.value(column)?.0);
    }
    let piece = |range: &Range<usize>| edits.slice(input.text, range.clone());
    let condition = pieces.condition.as_ref().map_or_else(String::new, |it| format!(" WHERE {}", piece(it)));
    let returning = pieces.returning.as_ref().map_or_else(String::new, |it| format!(" RETURNING {}", piece(it)));
    let select =
        format!("SELECT {} FROM {}{condition} FOR UPDATE OF {}", selected.join(", "), piece(&pieces.table), row.alias);
    Ok(Distributed::KeyMove(Arc::new(KeyMove {
        table: format!("{}.{}", relation.schema, relation.name).into(),
        schema: relation.schema.clone(),
        name: relation.name.clone(),
        width: relation.columns.len(),
        sources,
        targets,
        select: select.into(),
        update: (piece(&pieces.head).into(), returning.into()),
        alias: (row.alias.as_str().into(), is_alias),
        columns: columns.iter().map(|column| quoted(&column.name).into()).collect(),
        layout: layout.clone(),
        moments: edits.moments.clone(),
        reason: Reason {
            code: "key-move",
            text: "rows whose new shard key belongs to another shard move there".into(),
        },
    })))
}

/// What the table's columns are qualified with, and whether that is an alias.
fn alias(update: &Update) -> Option<(&str, bool)> {
    let TableFactor::Table { name, alias, .. } = &update.table.relation else { return None };
    match alias {
        Some(alias) => Some((&alias.name.value, true)),
        None => Some((parts(name)?.1, false)),
    }
}

/// New rows, as a query gives them.
struct Row<'t, 'e> {
    alias: String,
    assigned: Vec<Assigned<'t>>,
    edits: &'e Edits,
    text: &'e str,
    catalog: &'e Catalog,
}

impl Row<'_, '_> {
    /// What a column is from then on, and whether it is what it was.
    fn value(&self, column: &Column) -> Result<(String, bool), Refusal> {
        let Some(assigned) = self.assigned.iter().find(|it| *it.column == *column.name) else {
            return Ok((format!("{}.{}", self.alias, quoted(&column.name)), true));
        };
        if is_default(assigned.value) {
            return Err(refused("DEFAULT"));
        }
        let text = self.edits.slice(self.text, assigned.text.clone());
        // A parameter of a type that users made has no type of its own, either: it has another oid on each shard.
        let is_made = column.type_oid >= FIRST_USER_OID && is_parameter(assigned.value);
        if !is_made && !is_untyped(assigned.value) {
            return Ok((format!("({text})"), false));
        }
        let untyped = || refused(&format!("a constant without a type for \"{}\"", column.name));
        Ok(match read_as(column, self.catalog).ok_or_else(untyped)? {
            Some(name) => (format!("CAST({text} AS {name})"), false),
            None => (format!("({text})"), false),
        })
    }

    /// The same of a column of the shard key, as the column will store it. `None` where its type cannot be written.
    fn key(&self, column: &Column) -> Option<Result<String, Refusal>> {
        match self.value(column) {
            Ok((value, true)) => Some(Ok(value)),
            Ok((value, false)) => Some(Ok(format!("CAST({value} AS {})", type_of(column, self.catalog)?))),
            Err(refusal) => Some(Err(refusal)),
        }
    }
}

fn is_parameter(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_parameter(inner),
        Expr::Value(value) => matches!(value.value, Literal::Placeholder(_)),
        _ => false,
    }
}

/// The statement's text in pieces that are read as what they are in it.
struct Pieces<'t> {
    head: Range<usize>,
    table: Range<usize>,
    assigned: Vec<Assigned<'t>>,
    condition: Option<Range<usize>>,
    returning: Option<Range<usize>>,
}

impl<'t> Pieces<'t> {
    fn cut(write: &Write<'_, '_>, update: &'t Update) -> Option<Self> {
        let clauses = write.source.update()?;
        let scs = write.input.session.standard_conforming_strings;
        let read = |range: &Range<usize>, before: &str| {
            parse::parse(format!("{before} {}", write.source.slice(range)).as_bytes(), scs)
        };
        let is_expr = |range: &Range<usize>, expr: &Expr| {
            let items = read(range, "SELECT").and_then(selected);
            matches!(items.as_deref(), Some([SelectItem::UnnamedExpr(read)]) if *read == *expr)
        };
        if read(&clauses.table, "SELECT FROM").and_then(from)? != [update.table.clone()] {
            return None;
        }
        let condition = match (&clauses.condition, &update.selection) {
            (None, None) => true,
            (Some(range), Some(expr)) => is_expr(range, expr),
            _ => false,
        };
        let returning = match (&clauses.returning, &update.returning) {
            (None, None) => true,
            (Some(range), Some(items)) => {
                // OLD would be nothing where a row is inserted.
                let names_old = (0..write.source.len()).any(|at| {
                    write.source.name_at(at).is_some_and(|name| name == "old")
                        && write.source.range_of(at, at).is_some_and(|it| it.start >= range.start)
                });
                !names_old && read(range, "SELECT").and_then(selected).as_ref() == Some(items)
            }
            _ => false,
        };
        if !condition || !returning || clauses.values.len() != update.assignments.len() {
            return None;
        }
        let mut texts = Vec::new();
        for (assignment, (whole, fields)) in update.assignments.iter().zip(clauses.values) {
            match &assignment.target {
                AssignmentTarget::ColumnName(_) => texts.push(whole),
                AssignmentTarget::Tuple(_) => texts.extend(fields),
            }
        }
        let assigned = assignments(update).ok()?;
        if texts.len() != assigned.len() {
            return None;
        }
        let pairs = assigned.into_iter().zip(texts);
        let assigned: Vec<Assigned<'t>> =
            pairs.map(|((column, value), text)| Assigned { column, value, text }).collect();
        assigned.iter().all(|it| is_expr(&it.text, it.value)).then_some(Self {
            head: clauses.head,
            table: clauses.table,
            assigned,
            condition: clauses.condition,
            returning: clauses.returning,
        })
    }
}

/// The select list of a plain SELECT.
fn selected(tree: Statement) -> Option<Vec<SelectItem>> {
    match tree {
        Statement::Query(query) => match *query.body {
            SetExpr::Select(select) => Some(select.projection),
            _ => None,
        },
        _ => None,
    }
}

/// The FROM list of a plain SELECT.
fn from(tree: Statement) -> Option<Vec<TableWithJoins>> {
    match tree {
        Statement::Query(query) => match *query.body {
            SetExpr::Select(select) => Some(select.from),
            _ => None,
        },
        _ => None,
    }
}
