//! A scan of one server's partitioned table, split over several connections: which partitions each of them reads, and by what text.
//!
//! The planner sees the table spread over legs by a key that no column has, so that it lets nothing pass but what is right however the
//! rows lie. What each leg runs has a sub-query over its own partitions where the table's name stands.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use sqlparser::ast::{Expr, Query, SetExpr, Statement, TableFactor, Visit, Visitor};

use super::model::{Distributed, Input, Merge, SplitTable, Streamed};
use super::refuse::refuse;
use super::scope::parts;
use super::ship::quoted;
use super::source::Source;
use crate::catalog::model::{Oid, Relation};
use crate::plan::Refusal;
use crate::sql::parse;

/// A statement over one partitioned table, read by several connections of its server.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// How the legs' rows are merged, and the text in which the table is still named; its shards are the legs.
    pub streamed: Arc<Streamed>,
    /// The table.
    pub table: Oid,
    /// Where its name stands, in bytes of that text.
    at: Range<usize>,
    /// What columns are qualified with, where the text gives the table no alias; quoted.
    alias: Option<Box<str>>,
    /// The table's columns in their order, quoted.
    columns: Box<str>,
    /// The table and all its partitions, sorted.
    pub tree: Vec<Oid>,
    /// Partitions that hold rows, the largest first.
    pub leaves: Vec<Leaf>,
    /// Every table that the statement names, that one included.
    pub named: Vec<Named>,
    /// Whether rows may be evaluated that PostgreSQL would never have come to.
    pub is_limited: bool,
}

/// A partition that holds rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its oid.
    pub oid: Oid,
    /// Its schema.
    pub schema: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Its size.
    pub pages: u64,
}

impl Leaf {
    /// As SQL names it.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// A table as the statement names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name, quoted, with the schema if the statement gives one.
    pub name: Box<str>,
    /// What the catalog says that it means.
    pub oid: Oid,
}

impl Split {
    /// The partitions dealt out to so many legs, so that they have about as much to read; never more legs than partitions.
    pub fn deal(&self, legs: usize) -> Vec<Vec<&Leaf>> {
        let legs = legs.clamp(1, self.leaves.len().max(1));
        let mut dealt: Vec<(u64, Vec<&Leaf>)> = vec![(0, Vec::new()); legs];
        for leaf in &self.leaves {
            // Of legs with equally little to do the one with the fewest partitions: none is left with nothing.
            if let Some(least) = dealt.iter_mut().min_by_key(|(pages, leaves)| (*pages, leaves.len())) {
                least.0 += leaf.pages;
                least.1.push(leaf);
            }
        }
        dealt.into_iter().map(|(_, leaves)| leaves).filter(|leaves| !leaves.is_empty()).collect()
    }

    /// What a leg runs that reads these partitions.
    pub fn sql_of(&self, leaves: &[&Leaf]) -> String {
        let parts: Vec<String> =
            leaves.iter().map(|leaf| format!("SELECT {} FROM ONLY {}", self.columns, leaf.quoted())).collect();
        let sql = &self.streamed.sql;
        let (before, behind) =
            (sql.get(..self.at.start).unwrap_or_default(), sql.get(self.at.end..).unwrap_or_default());
        let alias = self.alias.as_ref().map_or(String::new(), |alias| format!(" AS {alias}"));
        format!("{before}({}){alias}{behind}", parts.join(" UNION ALL "))
    }
}

/// Splits a statement that names `parent`, whose partitions with rows are `leaves`, over so many legs.
///
/// # Errors
/// It is not of a shape that is merged as rows come, or PostgreSQL had better run it alone.
pub fn split(input: &Input<'_>, parent: &Relation, mut leaves: Vec<Leaf>, keys: &[Box<str>]) -> Result<Split, Refusal> {
    let Some(SplitTable { legs, .. }) = input.split else { return Err(other_shape()) };
    let Distributed::Streamed(streamed) = super::plan(input)? else { return Err(other_shape()) };
    let streamed = Arc::unwrap_or_clone(streamed);
    let scs = input.session.standard_conforming_strings;
    let tree = parse::parse(input.text.as_bytes(), scs).ok_or_else(other_shape)?;
    let Statement::Query(query) = &tree else { return Err(other_shape()) };
    worth_it(query, &streamed, keys)?;
    let source = Source::new(input.text, scs);
    let place = Place::find(input, parent, query, &source)?;
    let at = place.within(&source, &streamed).ok_or_else(other_shape)?;
    let columns: Vec<String> = parent.columns.iter().map(|column| quoted(&column.name)).collect();
    let named = named(input)?;
    leaves.sort_by(|a, b| b.pages.cmp(&a.pages).then(a.oid.cmp(&b.oid)));
    let is_limited = streamed.limit.is_some();
    // Behind the name other text stands than the client's: no position there means anything to it.
    let inserted = (streamed.inserted.0, usize::MAX / 2);
    let what = streamed.reason.text.replace("all shards", "all of them");
    let reason = crate::plan::Reason {
        code: "partitions",
        text: format!("partitions of {}.{} over several connections: {}", parent.schema, parent.name, what).into(),
    };
    let streamed = Streamed { shards: (0..legs).collect(), inserted, reason, ..streamed };
    Ok(Split {
        streamed: Arc::new(streamed),
        table: parent.oid,
        at,
        alias: place.alias,
        columns: columns.join(", ").into(),
        tree: parent.reads.clone(),
        leaves,
        named,
        is_limited,
    })
}

fn other_shape() -> Refusal {
    refuse("partitions-shape", "this form of statement is not split over partitions", "")
}

/// Refuses what PostgreSQL ends sooner when it runs it alone.
fn worth_it(query: &Query, streamed: &Streamed, keys: &[Box<str>]) -> Result<(), Refusal> {
    if streamed.merge == Merge::Rows && streamed.sort.is_empty() && streamed.limit.is_some() {
        return Err(refuse("partitions-limit", "a LIMIT without ORDER BY ends as soon as it has its rows", ""));
    }
    let SetExpr::Select(select) = &*query.body else { return Err(other_shape()) };
    if select.selection.visit(&mut Mentions { keys }).is_break() {
        let message = "conditions on the partition key let PostgreSQL pass over partitions itself";
        return Err(refuse("partitions-key", message, ""));
    }
    Ok(())
}

/// Ends at a column that has one of these names.
struct Mentions<'k> {
    keys: &'k [Box<str>],
}

impl Visitor for Mentions<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let name = match expr {
            Expr::Identifier(name) => Some(name),
            Expr::CompoundIdentifier(names) => names.last(),
            _ => None,
        };
        let is_key = name.is_some_and(|name| self.keys.iter().any(|key| **key == *name.value));
        if is_key { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// The one place where the statement names the table.
struct Place {
    /// The bytes of the name in the client's text.
    range: Range<usize>,
    alias: Option<Box<str>>,
}

impl Place {
    fn find(input: &Input<'_>, parent: &Relation, query: &Query, source: &Source<'_>) -> Result<Self, Refusal> {
        let mut finder = Finder { input, parent, found: Vec::new(), is_plain: true, called: None };
        let _: ControlFlow<()> = query.visit(&mut finder);
        let Finder { found, is_plain, called, .. } = finder;
        let ([(start, parts, alias)], true) = (found.as_slice(), is_plain) else { return Err(other_shape()) };
        if query.visit(&mut Whole { row: called.as_deref().unwrap_or_default(), parent }).is_break() {
            return Err(refuse("partitions-row", "a row as a whole is of the table's own type", ""));
        }
        let first = start.and_then(|start| source.place_of(start)).ok_or_else(other_shape)?;
        let last = first + 2 * (parts - 1);
        let is_only = first.checked_sub(1).and_then(|before| source.name_at(before)).is_some_and(|word| word == "only");
        let range = source.range_of(first, last).filter(|_| !is_only).ok_or_else(other_shape)?;
        Ok(Self { range, alias: alias.clone() })
    }

    /// Where the name stands in the text with hidden columns, which are put in straight before FROM.
    fn within(&self, source: &Source<'_>, streamed: &Streamed) -> Option<Range<usize>> {
        let from = source.clauses()?.from;
        let (at, len) = streamed.inserted;
        let moved_from = streamed.sql.char_indices().nth(at.checked_add(len)?)?.0;
        let shift = moved_from.checked_sub(from)?;
        let moved = self.range.start + shift..self.range.end + shift;
        let is_it = self.range.start > from && streamed.sql.get(moved.clone()) == Some(source.slice(&self.range));
        is_it.then_some(moved)
    }
}

/// Where a name begins, how many parts it has, and what it must be called where something else takes its place.
type Found = (Option<usize>, usize, Option<Box<str>>);

struct Finder<'f> {
    input: &'f Input<'f>,
    parent: &'f Relation,
    found: Vec<Found>,
    /// Whether nothing stands with the name that a sub-query cannot have.
    is_plain: bool,
    /// What the table's columns are qualified with.
    called: Option<String>,
}

impl Visitor for Finder<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let TableFactor::Table {
            name,
            alias,
            args: None,
            with_hints,
            version,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
        } = factor
        else {
            return ControlFlow::Continue(());
        };
        let Some((schema, table)) = parts(name) else { return ControlFlow::Continue(()) };
        let catalog = self.input.catalog;
        let relation = match schema {
            Some(schema) => catalog.relation(schema, table),
            None => catalog.resolve(self.input.search_path, table),
        };
        if relation.is_none_or(|relation| relation.oid != self.parent.oid) {
            return ControlFlow::Continue(());
        }
        self.is_plain &= with_hints.is_empty()
            && version.is_none()
            && !with_ordinality
            && partitions.is_empty()
            && json_path.is_none()
            && sample.is_none()
            && index_hints.is_empty()
            && alias.as_ref().is_none_or(|alias| alias.columns.is_empty());
        let start = name.0.first().and_then(|part| part.as_ident()).and_then(|ident| parse::offset(ident.span.start));
        let own = alias.is_none().then(|| quoted(table).into());
        self.called = Some(alias.as_ref().map_or_else(|| table.to_owned(), |alias| alias.name.value.clone()));
        self.found.push((start, name.0.len(), own));
        ControlFlow::Continue(())
    }
}

/// Ends where the table's row is named as a whole.
struct Whole<'w> {
    row: &'w str,
    parent: &'w Relation,
}

impl Visitor for Whole<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let is_row = matches!(expr, Expr::Identifier(name) if name.value == self.row)
            && self.parent.columns.iter().all(|column| *column.name != *self.row);
        if is_row { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// The tables that the statement names.
fn named(input: &Input<'_>) -> Result<Vec<Named>, Refusal> {
    let mut named: Vec<Named> = Vec::new();
    for name in &input.statement.reads {
        let found = match &name.schema {
            Some(schema) => input.catalog.relation(schema, &name.name),
            None => input.catalog.resolve(input.search_path, &name.name),
        };
        let oid = found.ok_or_else(other_shape)?.oid;
        let written = match &name.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&name.name)),
            None => quoted(&name.name),
        };
        let one = Named { name: written.into(), oid };
        if !named.contains(&one) {
            named.push(one);
        }
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Reason;

    fn split_of(pages: &[u64]) -> Split {
        let leaf = |(at, pages): (usize, &u64)| Leaf {
            oid: at as Oid,
            schema: "s".into(),
            name: format!("leaf \"{at}\"").into(),
            pages: *pages,
        };
        let sql = "select count(*) , count(*) AS pgherd_0 from t where a > 1";
        let at = sql.find("t where").expect("it is there");
        let streamed = Streamed {
            shards: vec![0, 1],
            sql: sql.into(),
            hidden: 1,
            inserted: (0, 0),
            merge: Merge::Rows,
            sort: Vec::new(),
            named: Vec::new(),
            offset: 0,
            limit: None,
            reason: Reason { code: "", text: "".into() },
        };
        Split {
            streamed: Arc::new(streamed),
            table: 1,
            at: at..at + 1,
            alias: Some("\"t\"".into()),
            columns: "\"a\"".into(),
            tree: Vec::new(),
            leaves: pages.iter().enumerate().map(leaf).collect(),
            named: Vec::new(),
            is_limited: false,
        }
    }

    #[test]
    fn legs_have_about_as_much_to_read_and_none_has_nothing() {
        let split = split_of(&[90, 50, 30, 20, 10]);
        let loads: Vec<u64> = split.deal(2).iter().map(|leaves| leaves.iter().map(|leaf| leaf.pages).sum()).collect();
        assert_eq!(loads, [100, 100]);
        assert_eq!(split_of(&[0, 0, 0]).deal(8).len(), 3);
        assert!(split_of(&[7, 0, 0, 0]).deal(4).iter().all(|leaves| leaves.len() == 1));
    }

    #[test]
    fn partitions_stand_where_the_table_stood() {
        let split = split_of(&[2, 1]);
        let leaves: Vec<&Leaf> = split.leaves.iter().collect();
        assert_eq!(
            split.sql_of(&leaves),
            "select count(*) , count(*) AS pgherd_0 from (SELECT \"a\" FROM ONLY \"s\".\"leaf \"\"0\"\"\" UNION ALL \
             SELECT \"a\" FROM ONLY \"s\".\"leaf \"\"1\"\"\") AS \"t\" where a > 1"
        );
    }
}
