//! INSERT of a query's rows that need not belong where they are read: the query is answered as any over the shards, and each of its
//! rows is inserted on the shard that it belongs to, or on all of them.

mod primary;

use std::ops::Range;
use std::sync::Arc;

use sqlparser::ast::{Expr, Insert, Query, SelectItem, SetExpr, Statement, Value as Literal};

pub use self::primary::{create_on_primary, insert_into_primary};
use super::analysis::table;
use super::check::{check, check_write, names_a_moment};
use super::defaults;
use super::model::{Distributed, Input, Merge, Streamed};
use super::once;
use super::placed::shard_of;
use super::refuse::{clause, refuse};
use super::scatter::{Write, holds_query, left_out, marker, one_for_all, quiet};
use super::scope::parts;
use super::select_into::across;
use super::ship::{quoted, type_of};
use super::source::Source;
use crate::catalog::model::{Catalog, Column, DefaultKind, FIRST_USER_OID, Relation};
use crate::plan::shard_key::{KeyColumn, Layout};
use crate::plan::{Reason, Refusal};
use crate::sql::facts::{Class, Facts};
use crate::sql::{self, parse};

/// An INSERT whose rows come from a query over the shards and go where they belong.
#[derive(Debug, Clone, PartialEq)]
pub struct InsertSelect {
    /// How the query is answered.
    pub answered: Answered,
    /// The query's text.
    pub query: Box<str>,
    /// The table, as people write it.
    pub table: Box<str>,
    /// The statement's text before its query.
    before: Box<str>,
    /// What is selected behind the query's columns: defaults that are one for all rows.
    added: Box<str>,
    /// Columns of the query that are cast first.
    casts: Vec<Cast>,
    /// The statement's text behind its query.
    behind: Box<str>,
    /// As those of [`super::Scattered`].
    pub moments: Vec<Box<str>>,
    /// Where its rows go.
    goal: Goal,
    /// Where the shard key is, column by column.
    key: Vec<Place>,
    /// How many shards there are.
    pub shards: usize,
    /// Writes under that name come in the same order on all shards.
    pub serial: Option<Box<str>>,
    /// Why it is so.
    pub reason: Reason,
}

/// A column of the query that is read as a text and cast to the type of what it goes to.
#[derive(Debug, Clone, PartialEq)]
struct Cast {
    /// Which of the columns it is.
    at: usize,
    /// The type, as it is written.
    type_name: Box<str>,
    /// The number of the parameter that it is, if it is one.
    parameter: Option<usize>,
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq)]
enum Goal {
    /// Each to the shard that it belongs to.
    Owners(Layout),
    /// All of them to every shard: to a reference table.
    Everywhere,
    /// To a table of the primary.
    Primary,
    /// To one that they make on the primary.
    NewTable,
}

/// Where one column of the shard key is.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    /// Which of the query's columns it is; `None` is a column that no row speaks of.
    at: Option<usize>,
    /// Its type as it is written in a cast.
    type_name: Box<str>,
}

/// How the query of an INSERT is answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answered {
    /// Its shards' rows are merged by pgherd.
    Streamed(Arc<Streamed>),
    /// By PostgreSQL, on the coordinator.
    Gathered(Arc<super::Gathered>),
}

impl InsertSelect {
    /// What a shard runs: its rows come in arrays, from that parameter on.
    pub fn sql(&self, columns: &[super::Carrier], first: usize) -> String {
        let value = |(at, column)| {
            let value = super::carrier::selected(column, at);
            match self.casts.iter().find(|cast| cast.at == at) {
                Some(cast) => format!("CAST({value} AS {})", cast.type_name),
                None => value,
            }
        };
        let selected = columns.iter().enumerate().map(value).collect::<Vec<_>>().join(", ");
        let from = super::carrier::rows_from(columns, first);
        format!("{}SELECT {selected}{} FROM {from}{}", self.before, self.added, self.behind)
    }

    /// What gives the shard keys as their columns store them, from rows in arrays of the key's columns alone.
    pub fn sql_of_keys(&self, columns: &[super::Carrier]) -> String {
        let given = self.key.iter().filter(|place| place.at.is_some()).zip(columns).enumerate();
        let keys: Vec<String> = given
            .map(|(at, (place, column))| format!("CAST({} AS {})", super::carrier::value(column, at), place.type_name))
            .collect();
        format!("SELECT {} FROM {}", keys.join(", "), super::carrier::rows_from(columns, 1))
    }

    /// Which of the query's columns the shard key is read from.
    pub fn key_columns(&self) -> Vec<usize> {
        self.key.iter().filter_map(|place| place.at).collect()
    }

    /// Whether values of the query's columns, of these types and modifiers, are the shard key as its columns store it.
    pub fn is_key_as_given(&self, types: &[(u32, i32)]) -> bool {
        let Goal::Owners(layout) = &self.goal else { return true };
        layout.key.iter().zip(&self.key).all(|(column, place)| match place.at.and_then(|at| types.get(at)) {
            None => true,
            Some(&(type_oid, typmod)) => {
                type_oid == column.column.type_oid && (column.column.typmod == -1 || column.column.typmod == typmod)
            }
        })
    }

    /// The shards of a row whose key's columns are these, in binary form.
    ///
    /// # Errors
    /// No shard takes such a row, or nobody can tell.
    pub fn place(&self, given: &[Option<&[u8]>]) -> Result<Range<usize>, Refusal> {
        let Goal::Owners(layout) = &self.goal else { return Ok(0..self.shards) };
        let mut given = given.iter();
        let key = self.key.iter().map(|place| if place.at.is_some() { given.next().copied().flatten() } else { None });
        let shard = shard_of(layout, key, unreadable)?;
        Ok(shard..shard + 1)
    }

    /// Whether the parameter of that number is a column of the query that is read as a text first.
    pub fn casts_parameter(&self, number: usize) -> bool {
        self.casts.iter().any(|cast| cast.parameter == Some(number))
    }

    /// Whether rows go to all shards.
    pub fn is_everywhere(&self) -> bool {
        self.goal == Goal::Everywhere
    }

    /// Whether rows go to a table of the primary.
    pub fn is_on_primary(&self) -> bool {
        matches!(self.goal, Goal::Primary | Goal::NewTable)
    }

    /// Whether they make a table there.
    pub fn makes_table(&self) -> bool {
        self.goal == Goal::NewTable
    }

    /// What its rows go by, for people.
    pub fn spread(&self) -> String {
        match &self.goal {
            Goal::Owners(layout) => format!("by shard key {}", layout.names()),
            Goal::Everywhere => format!("to all {} shards", self.shards),
            Goal::Primary => "on the primary".into(),
            Goal::NewTable => "made on the primary".into(),
        }
    }
}

fn unreadable(layout: &Layout) -> Refusal {
    let message = format!("INSERT of a query's rows whose shard key {} pgherd cannot read", layout.names());
    refuse("insert-select", message, "read the rows first and insert them with VALUES")
}

/// Plans an INSERT of a query's rows into a table of the shards, wherever they belong.
///
/// # Errors
/// The query cannot be answered, or the statement does more than put rows where they belong.
pub(super) fn plan(write: &Write<'_, '_>, insert: &Insert, relation: &Relation) -> Result<Distributed, Refusal> {
    let input = write.input;
    if input.database.two_phase.is_none() {
        let hint = "configure database.two_phase: then it is done on all shards or on none";
        return Err(refuse("insert-select", "INSERT of a query's rows on several shards", hint));
    }
    if !input.session.same_encoding {
        let message = "INSERT of a query's rows under another client_encoding than the servers'";
        return Err(refuse("insert-select", message, "use their encoding"));
    }
    if holds_query(&insert.returning) || holds_query(&insert.on) {
        return Err(clause("sub-query", "a sub-query in RETURNING or ON CONFLICT of INSERT ... SELECT"));
    }
    for found in [check_write(&insert.on, write.functions)?, check_write(&insert.returning, write.functions)?] {
        if found.has_moment {
            return Err(clause(
                "stable-function",
                "now() and its like in ON CONFLICT or RETURNING of INSERT ... SELECT",
            ));
        }
        found.one_shard.map_or(Ok(()), Err)?;
    }
    quiet(relation)?;
    let configured = table(input.database, relation).ok_or_else(across)?;
    let layout = Layout::new(configured, relation, input.catalog, input.database.shards.len());
    let goal = layout.map_or(Goal::Everywhere, Goal::Owners);
    defaults::check_assigned(write.tree, relation, goal == Goal::Everywhere)?;
    assembled(input, insert, write.source, (relation, input.catalog), goal)
}

fn assembled(
    input: &Input<'_>,
    insert: &Insert,
    source: &Source<'_>,
    (relation, catalog): (&Relation, &Catalog),
    goal: Goal,
) -> Result<Distributed, Refusal> {
    let listed: Vec<&str> = match insert.columns.as_slice() {
        [] => relation.columns.iter().map(|column| &*column.name).collect(),
        listed => listed.iter().filter_map(|name| Some(parts(name)?.1)).collect(),
    };
    let cut = cut(input, source, source.query_of_insert(), insert.source.as_deref())?;
    let casts = casts(insert, catalog, |at| {
        relation.columns.iter().find(|column| listed.get(at).is_some_and(|name| **name == *column.name))
    })?;
    let answered = answered(input, cut.query, &goal)?;
    let (before, added, moments) = match goal {
        Goal::Primary => (cut.before.to_owned(), String::new(), Vec::new()),
        _ => selected_defaults(insert, relation, cut.before, goal == Goal::Everywhere)?,
    };
    let key = match &goal {
        Goal::Owners(layout) => key(layout, &listed, input.catalog)?,
        _ => Vec::new(),
    };
    let name = format!("{}.{}", relation.schema, relation.name);
    Ok(Distributed::InsertSelect(Arc::new(InsertSelect {
        answered,
        query: cut.query.into(),
        table: name.as_str().into(),
        before: before.into(),
        added: added.into(),
        casts,
        behind: cut.behind(),
        moments,
        serial: (goal == Goal::Everywhere).then(|| name.into()),
        reason: reason(&goal),
        goal,
        key,
        shards: input.database.shards.len(),
    })))
}

fn reason(goal: &Goal) -> Reason {
    let text = match goal {
        Goal::Owners(_) => "its rows are read first, and each goes to the shard that it belongs to",
        Goal::Everywhere => "its rows are read first, and every shard gets all of them",
        Goal::Primary => "its rows are read first, and go to the primary",
        Goal::NewTable => "its rows are read first, and make a table of the primary",
    };
    Reason { code: "insert-select", text: text.into() }
}

/// A statement's text around its query.
struct Cut<'a> {
    before: &'a str,
    query: &'a str,
    behind: &'a str,
}

impl Cut<'_> {
    fn behind(&self) -> Box<str> {
        if self.behind.is_empty() { "".into() } else { format!(" {}", self.behind.trim_start()).into() }
    }
}

/// Cuts the query out, if what is cut out is read as a query, and as just that one where it is given.
fn cut<'a>(
    input: &Input<'a>,
    source: &Source<'a>,
    range: Option<Range<usize>>,
    query: Option<&Query>,
) -> Result<Cut<'a>, Refusal> {
    let range = range.ok_or_else(across)?;
    let text = source.slice(&range);
    match (parse::parse(text.as_bytes(), input.session.standard_conforming_strings), query) {
        (Some(Statement::Query(read)), Some(query)) if *read == *query => {}
        (Some(Statement::Query(_)), None) => {}
        _ => return Err(across()),
    }
    let (before, behind) = (input.text.get(..range.start), input.text.get(range.end..source.end()));
    let (Some(before), Some(behind)) = (before, behind) else { return Err(across()) };
    Ok(Cut { before, query: text, behind })
}

/// Which of the listed columns are the shard key.
fn key(layout: &Layout, listed: &[&str], catalog: &Catalog) -> Result<Vec<Place>, Refusal> {
    let place = |it: &KeyColumn| {
        let at = listed.iter().position(|name| **name == *it.column.name);
        if it.kind.is_none() || (at.is_none() && it.column.has_default) {
            return None;
        }
        Some(Place { at, type_name: type_of(&it.column, catalog)?.into() })
    };
    layout.key.iter().map(|it| place(it).ok_or_else(|| unreadable(layout))).collect()
}

/// The text before the query and what is selected behind its columns, so that defaults which are one for all rows are.
fn selected_defaults(
    insert: &Insert,
    relation: &Relation,
    before: &str,
    is_reference: bool,
) -> Result<(String, String, Vec<Box<str>>), Refusal> {
    let (mut columns, mut added, mut moments) = (String::new(), String::new(), Vec::new());
    for (column, is_free) in left_out(insert, relation, super::scatter::width(insert)) {
        if is_reference && column.default == DefaultKind::PerRow {
            return Err(defaults::differs(column));
        }
        if column.default != DefaultKind::Moment {
            continue;
        }
        let (Some((expression, type_name)), true) = (&column.moment, is_free) else {
            return Err(one_for_all(column));
        };
        columns += &format!(", {}", quoted(&column.name));
        added += &format!(", {}::{type_name}", marker(moments.len()));
        moments.push(once::literal(expression, type_name));
    }
    if moments.is_empty() {
        return Ok((before.to_owned(), added, moments));
    }
    let open = before.trim_end().strip_suffix(')').ok_or_else(across)?;
    Ok((format!("{open}{columns}) "), added, moments))
}

/// Columns of constants without a type of their own, with the types of the columns that they go to: PostgreSQL reads them as such,
/// and not as the texts that the query alone gives. So are parameters that go to columns of types that users made.
fn casts<'r>(
    insert: &Insert,
    catalog: &Catalog,
    column: impl Fn(usize) -> Option<&'r Column>,
) -> Result<Vec<Cast>, Refusal> {
    let query = insert.source.as_ref().ok_or_else(across)?;
    let SetExpr::Select(select) = &*query.body else { return Ok(Vec::new()) };
    let untyped = || {
        let what = "a constant without a type in the select list of INSERT ... SELECT whose rows move";
        refuse("insert-select", what, "write its type: '2026-01-01'::date, NULL::int4")
    };
    let mut casts = Vec::new();
    let mut is_counted = true;
    for (at, item) in select.projection.iter().enumerate() {
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
            // How many columns it stands for is not counted here.
            is_counted = false;
            continue;
        };
        let goes_to = column(at).filter(|_| is_counted);
        let is_made = goes_to.is_some_and(|column| column.type_oid >= FIRST_USER_OID);
        let parameter = parameter(expr).filter(|_| is_made);
        if !is_untyped(expr) && parameter.is_none() {
            continue;
        }
        let goes_to = goes_to.ok_or_else(untyped)?;
        let name = read_as(goes_to, catalog).ok_or_else(untyped)?;
        if name.is_some() && constant_text(expr).is_some_and(names_a_moment) {
            let what = "a constant such as 'now' in the select list of INSERT ... SELECT whose rows move";
            return Err(refuse("stable-function", what, "write now() or current_date"));
        }
        casts.extend(name.map(|type_name| Cast { at, type_name, parameter }));
    }
    Ok(casts)
}

/// The text of a constant.
fn constant_text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Nested(inner) => constant_text(inner),
        Expr::Value(value) => match &value.value {
            Literal::SingleQuotedString(text) | Literal::EscapedStringLiteral(text) => Some(text),
            Literal::DollarQuotedString(quoted) => Some(&quoted.value),
            _ => None,
        },
        _ => None,
    }
}

/// The type that a constant without one is read as where it goes to that column: the inner `None` is a text, as it is anyway; the
/// outer one that nobody can say it by a cast.
pub(super) fn read_as(column: &Column, catalog: &Catalog) -> Option<Option<Box<str>>> {
    const TEXTS: [u32; 3] = [25, 1042, 1043];
    if TEXTS.contains(&column.type_oid) {
        return Some(None);
    }
    let known = catalog.types.get(&column.type_oid)?;
    // What an interval's fields are is read off its modifier, and a cast from text may be a user's.
    if (&*known.name == "interval" && column.typmod >= 0) || catalog.has_user_casts {
        return None;
    }
    Some(Some(format!("{}.{}", quoted(&known.schema), quoted(&known.name)).into()))
}

/// Whether it is a constant that takes its type from what it is used for.
pub(super) fn is_untyped(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_untyped(inner),
        Expr::Value(value) => matches!(
            value.value,
            Literal::Null
                | Literal::SingleQuotedString(_)
                | Literal::EscapedStringLiteral(_)
                | Literal::UnicodeStringLiteral(_)
                | Literal::DollarQuotedString(_)
        ),
        _ => false,
    }
}

/// The number of a parameter that stands alone.
fn parameter(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Nested(inner) => parameter(inner),
        Expr::Value(value) => match &value.value {
            Literal::Placeholder(name) => name.strip_prefix('$')?.parse().ok(),
            _ => None,
        },
        _ => None,
    }
}

/// How the query is answered.
fn answered(input: &Input<'_>, text: &str, goal: &Goal) -> Result<Answered, Refusal> {
    let scs = input.session.standard_conforming_strings;
    let tree =
        parse::parse(text.as_bytes(), scs).filter(|tree| matches!(tree, Statement::Query(_))).ok_or_else(across)?;
    let facts: Facts = sql::facts_of(text, scs);
    let statement = facts.single().ok_or_else(across)?;
    if statement.class != Class::Read || statement.locks_rows || !statement.writes.is_empty() {
        return Err(clause("insert-select", "a query that locks or writes rows in INSERT ... SELECT"));
    }
    let shard = match super::plan(&Input { text, statement, ..*input })? {
        Distributed::Streamed(streamed) => return Ok(Answered::Streamed(streamed)),
        Distributed::Gathered(gathered) => return Ok(Answered::Gathered(gathered)),
        Distributed::Shard { shard, .. } => shard,
        Distributed::Elsewhere if matches!(goal, Goal::Primary | Goal::NewTable) => {
            let message = "the shards do not have this table of the configuration";
            return Err(refuse("unknown-table", message, "create it on every shard"));
        }
        Distributed::Elsewhere => 0,
        _ => return Err(across()),
    };
    // It is read in a READ ONLY transaction of its own.
    let functions = super::functions::Functions { catalog: input.catalog, pure_functions: input.pure_functions };
    check(&tree, functions)?.one_shard.map_or(Ok(()), Err)?;
    Ok(Answered::Streamed(Arc::new(Streamed {
        shards: vec![shard],
        sql: text.into(),
        hidden: 0,
        inserted: (text.len(), 0),
        merge: Merge::Rows,
        sort: Vec::new(),
        named: Vec::new(),
        offset: 0,
        limit: None,
        reason: Reason { code: "shard-key", text: "one shard answers it".into() },
    })))
}
