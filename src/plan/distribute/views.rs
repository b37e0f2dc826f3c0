//! Views over tables of the shards. A statement that reads one is judged with the view's query in its place; what the shards run names
//! the view itself, so that PostgreSQL judges who may read what.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use sqlparser::ast::{ObjectNamePart, Query, Statement, TableFactor, Visit, Visitor};

use super::analysis::Analysis;
use super::constant::Constants;
use super::functions::Functions;
use super::gather::{self, ctes};
use super::model::{Distributed, Input, Streamed};
use super::refuse::refuse;
use super::scope::parts;
use super::ship::quoted;
use super::source::Source;
use super::{LONG_NAME, gather_check, planned};
use crate::catalog::model::{Catalog, Relation, RelationKind};
use crate::config::model::Database;
use crate::plan::{Reason, Refusal};
use crate::sql::parse;

/// Bytes of a statement with the queries of its views.
const LONGEST: usize = 256 * 1024;

/// Views within views.
const DEEPEST: usize = 16;

/// Whether a relation of the shards is a view over nothing but the configuration's tables.
pub fn is_over_tables(relation: &Relation, catalog: &Catalog, database: &Database) -> bool {
    let is_view = |it: &Relation| it.kind == RelationKind::View && it.definition.is_some();
    if !is_view(relation) {
        return false;
    }
    let tables: BTreeSet<u32> = database
        .tables
        .iter()
        .filter_map(|table| catalog.relation(&table.schema, &table.name))
        .flat_map(|relation| relation.reads.iter().copied().chain([relation.oid]))
        .collect();
    let is_known = |oid: &u32| tables.contains(oid) || catalog.relations.get(oid).is_some_and(|it| is_view(it));
    relation.reads.iter().any(|oid| tables.contains(oid))
        && relation.reads.iter().all(|oid| *oid == relation.oid || is_known(oid))
}

/// A view where a statement names it.
struct Place {
    view: Arc<Relation>,
    /// Where its name stands.
    range: Range<usize>,
    has_alias: bool,
}

/// Plans a statement that reads views; `None` where it reads none.
///
/// # Errors
/// It cannot be answered exactly.
pub(super) fn plan(input: &Input<'_>, tree: &Statement, source: &Source<'_>) -> Option<Result<Distributed, Refusal>> {
    if !input.catalog.has_views {
        return None;
    }
    let places = places(input, tree, source);
    if places.is_empty() {
        return None;
    }
    Some(judged(input, tree, source, &places))
}

fn judged(input: &Input<'_>, tree: &Statement, source: &Source<'_>, places: &[Place]) -> Result<Distributed, Refusal> {
    let edits = edits(input, places, 0)?;
    let text = applied(source.text, &edits)?;
    let scs = input.session.standard_conforming_strings;
    let unread = || refuse("view", "a view that pgherd cannot read", "name the tables that it is made of");
    let expanded = parse::parse(text.as_bytes(), scs).ok_or_else(unread)?;
    let inner = Input { text: &text, ..*input };
    let expanded_source = Source::new(&text, scs);
    let mut analysis = Analysis::new(Constants { input: &inner, source: &expanded_source });
    let why = match planned(&inner, &expanded, &expanded_source, &mut analysis) {
        // The shard runs the client's own text.
        Ok(Distributed::Streamed(streamed)) if streamed.shards.len() == 1 => {
            let reason = Reason { code: "shard-key", text: "the rows of one shard alone can count".into() };
            return Ok(Distributed::Shard { shard: streamed.shards[0], reason });
        }
        Ok(Distributed::Streamed(streamed)) => match put_back(&streamed, source.text, &edits) {
            Some(streamed) => return Ok(Distributed::Streamed(Arc::new(streamed))),
            None => refuse("view", "a view's query comes apart", "name the tables that it is made of"),
        },
        // It did not come as far as the tables.
        Ok(Distributed::Elsewhere) => {
            refuse("view", "a view's query in this form", "name the tables that it is made of")
        }
        Err(why) if why.code == LONG_NAME => return Err(why),
        Err(why) => why,
        Ok(planned) => return Ok(planned),
    };
    gather::plan(input, tree, source, why)
}

/// Where a statement names views over tables of the shards.
fn places(input: &Input<'_>, tree: &Statement, source: &Source<'_>) -> Vec<Place> {
    let mut finder = Finder { input, source, ctes: ctes(tree), places: Vec::new() };
    let _ = tree.visit(&mut finder);
    finder.places.sort_by_key(|place| place.range.start);
    finder.places
}

struct Finder<'a> {
    input: &'a Input<'a>,
    source: &'a Source<'a>,
    ctes: BTreeSet<Box<str>>,
    places: Vec<Place>,
}

impl Finder<'_> {
    fn place(&self, factor: &TableFactor) -> Option<Place> {
        let TableFactor::Table { name, alias, args: None, sample: None, with_ordinality: false, .. } = factor else {
            return None;
        };
        let (schema, table) = parts(name).filter(|_| name.0.len() < 3)?;
        let view = match schema {
            Some(schema) => self.input.catalog.relation(schema, table),
            None if self.ctes.contains(table) => None,
            None => self.input.catalog.resolve(self.input.search_path, table),
        }
        .filter(|relation| is_over_tables(relation, self.input.catalog, self.input.database))?;
        let Some(ObjectNamePart::Identifier(first)) = name.0.first() else { return None };
        let begin = self.source.place_of(parse::offset(first.span.start)?)?;
        let range = self.source.range_of(begin, begin + 2 * (name.0.len() - 1))?;
        Some(Place { view: Arc::clone(view), range, has_alias: alias.is_some() })
    }
}

impl Visitor for Finder<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        self.places.extend(self.place(factor));
        ControlFlow::Continue(())
    }
}

/// A view's name and its query, which takes the name's place.
struct Edit {
    range: Range<usize>,
    with: String,
}

fn edits(input: &Input<'_>, places: &[Place], depth: usize) -> Result<Vec<Edit>, Refusal> {
    let edit = |place: &Place| {
        let query = query_of(input, &place.view, depth)?;
        let alias = if place.has_alias { String::new() } else { format!(" AS {}", quoted(&place.view.name)) };
        Ok(Edit { range: place.range.clone(), with: format!("({query}){alias}") })
    };
    places.iter().map(edit).collect()
}

fn applied(text: &str, edits: &[Edit]) -> Result<String, Refusal> {
    let (mut out, mut at) = (String::new(), 0);
    for edit in edits {
        out += text.get(at..edit.range.start).unwrap_or_default();
        out += &edit.with;
        at = edit.range.end;
    }
    out += text.get(at..).unwrap_or_default();
    if out.len() > LONGEST {
        return Err(refuse("view", "views whose queries are this long", "name the tables that they are made of"));
    }
    Ok(out)
}

/// A view's query, with those of the views that it reads.
fn query_of(input: &Input<'_>, view: &Relation, depth: usize) -> Result<String, Refusal> {
    if depth >= DEEPEST {
        return Err(refuse("view", "views that read views this deep", "name the tables that they are made of"));
    }
    let read = Definition::of(view)?;
    let places = places(&as_written(input, read.text), &read.tree, &read.source);
    applied(read.text, &edits(input, &places, depth + 1)?)
}

/// The input that a definition is read with: it was written down by PostgreSQL, under no search path.
pub(super) fn as_written<'a>(input: &Input<'a>, text: &'a str) -> Input<'a> {
    Input { text, search_path: &[], ..*input }
}

/// Whether a view's query can be read anew on the coordinator, under the client's settings.
///
/// # Errors
/// What in it could mean something else there.
pub(super) fn check(
    input: &Input<'_>,
    source: &Source<'_>,
    functions: Functions<'_>,
    coordinator: &Catalog,
) -> Result<(), Refusal> {
    gather_check::check(source, functions, coordinator)?;
    if !input.session.same_encoding && !source.text.is_ascii() {
        let message =
            "a view whose query has other letters than ASCII's, under another client_encoding than the servers'";
        return Err(refuse("view", message, "SET client_encoding to the servers' encoding"));
    }
    // It was written for PostgreSQL's own, and one of a user's could fit better under the client's search path.
    let is_users = |name: &str| {
        [input.catalog, coordinator].iter().any(|catalog| {
            catalog.user_operators.contains_key(name)
                || catalog.functions.get(name).into_iter().flatten().any(|function| function.user_defined)
        })
    };
    match source.unqualified(is_users) {
        None => Ok(()),
        Some(name) => {
            let message = format!(
                "a view that uses PostgreSQL's own {name}, of which there is a user's as well, over several shards"
            );
            Err(refuse("view", message, "name the tables that the view is made of"))
        }
    }
}

/// A view's query as it was read.
pub(super) struct Definition<'a> {
    pub(super) text: &'a str,
    pub(super) tree: Statement,
    pub(super) source: Source<'a>,
}

impl<'a> Definition<'a> {
    /// # Errors
    /// pgherd cannot read it, or it locks rows.
    pub(super) fn of(view: &'a Relation) -> Result<Self, Refusal> {
        let unread = |what: &str| {
            let message = format!("\"{}\" is a view {what}", view.name);
            refuse("view", message, "name the tables that it is made of")
        };
        let text = view.definition.as_deref().ok_or_else(|| unread("whose query is not known yet"))?;
        // Where a backslash is in a constant, PostgreSQL has written it as E'...'.
        let tree = parse::parse(text.as_bytes(), true).filter(|tree| matches!(tree, Statement::Query(_)));
        let tree = tree.ok_or_else(|| unread("that pgherd cannot read"))?;
        if tree.visit(&mut Locks).is_break() {
            return Err(unread("that locks rows"));
        }
        Ok(Self { text, tree, source: Source::new(text, true) })
    }
}

struct Locks;

impl Visitor for Locks {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if query.locks.is_empty() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// The plan with the views' names in place of their queries; `None` where a query does not stand there whole, once.
fn put_back(streamed: &Streamed, text: &str, edits: &[Edit]) -> Option<Streamed> {
    let (place, length) = streamed.inserted;
    let inserted = streamed.sql.char_indices().nth(place).map_or(streamed.sql.len(), |(at, _)| at);
    let (mut sql, mut done) = (String::new(), 0);
    for edit in edits {
        let rest = streamed.sql.get(done..)?;
        let at = rest.find(&edit.with)?;
        if length > 0 && done + at < inserted {
            // Places of errors are counted from where something was put in.
            return None;
        }
        sql += rest.get(..at)?;
        sql += text.get(edit.range.clone())?;
        done += at + edit.with.len();
    }
    sql += streamed.sql.get(done..)?;
    let is_whole = edits.iter().all(|edit| !sql.contains(&edit.with));
    is_whole.then(|| Streamed { sql: sql.into(), ..streamed.clone() })
}
