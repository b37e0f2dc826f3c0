//! Tables of which only rows with certain keys can count: those that stand in an equality with a column of another table. When that
//! table is shipped first and turns out to have few keys, the shards send only rows with one of them.
//!
//! Leaving a row out is right if no place where the statement names the table could make use of it. At each place one equality must
//! hold for every row that is used: in WHERE or an inner join's condition where no outer join can put NULLs in its place, in the condition of
//! the LEFT JOIN that the table is the joined side of, or between `IN`'s two sides. Whatever is around that place, it sees the same
//! rows. Columns that cannot be told for sure bind nothing.

mod frame;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use sqlparser::ast::{Expr, GroupByExpr, Query, Select, SelectItem, SetExpr, Statement, TableFactor, Visit, Visitor};

use self::frame::{Factor, Found, Frame, Item, Reach, conjuncts, equalities, using};
use super::block::{self, Side};
use super::model::{Input, KeyList};
use super::scope::parts;
use super::ship::quoted;
use crate::catalog::model::{Catalog, Column, Oid, Relation};

/// Types whose texts mean the same value under any settings, and whose `=` is PostgreSQL's own for that very type.
const TYPES: [&str; 8] = ["int2", "int4", "int8", "numeric", "text", "varchar", "bpchar", "uuid"];

/// `default`
const DEFAULT_COLLATION: Oid = 100;

/// Objects with smaller oids are PostgreSQL's own.
const FIRST_USER_OID: Oid = 16384;

/// What binds a table at one place of the statement: its column must equal that column of another table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bond {
    /// The column.
    pub(super) column: Box<str>,
    /// The type of both.
    pub(super) type_name: Box<str>,
    /// The other table.
    pub(super) of: Box<str>,
    /// Its column.
    pub(super) of_column: Box<str>,
}

/// For each table that is bound wherever the statement names it: what binds it at each of those places.
pub(super) type Bonds = BTreeMap<Box<str>, Vec<Vec<Bond>>>;

/// What `=` between two columns of one type can mean.
#[derive(Debug, Clone, Copy)]
pub(super) struct Equals {
    /// Whether users have made operators of that name.
    has_user_made: bool,
    /// Whether PostgreSQL's own are looked for first.
    own_first: bool,
}

impl Equals {
    pub(super) fn new(input: &Input<'_>, coordinator: &Catalog) -> Self {
        let has_user_made = [input.catalog, coordinator].iter().any(|it| it.user_operators.contains_key("="));
        Self { has_user_made, own_first: input.search_path.first().is_some_and(|first| **first == *"pg_catalog") }
    }

    /// Whether it is PostgreSQL's own. `varchar` has none of its own: one that a user made for it would go before that of `text`.
    fn is_own(self, type_name: &str) -> bool {
        !self.has_user_made || (self.own_first && type_name != "varchar")
    }
}

/// Finds them. `relation` tells which relation a table's name means.
pub(super) fn bonds<'a, F>(tree: &Statement, catalog: &Catalog, equals: Equals, relation: F) -> Bonds
where
    F: Fn(&str) -> Option<&'a Arc<Relation>>,
{
    let Statement::Query(query) = tree else { return Bonds::new() };
    // Before 14 a list of keys is gone through for each row.
    if (1..140_000).contains(&catalog.server_version) {
        return Bonds::new();
    }
    let mut count = Count { relation: &relation, places: BTreeMap::new() };
    let _ = tree.visit(&mut count);
    let places = count.places;
    let mut finder = Finder { catalog, equals, relation: &relation, found: Bonds::new(), members: BTreeMap::new() };
    finder.query(query, None);
    let is_whole = |name: &str, all: &[Vec<Bond>]| {
        places.get(name) == Some(&all.len()) && all.iter().all(|bonds| !bonds.is_empty())
    };
    let mut found = finder.found;
    found.retain(|name, all| is_whole(name, all));
    found
}

/// The bonds of one table as its shipment tells them: tables by their place in `tables`. Empty unless both columns are shipped, which
/// `is_shipped` says of a table and a column.
pub(super) fn key_lists(
    bonds: &[Vec<Bond>],
    tables: &[Box<str>],
    table: &str,
    is_shipped: impl Fn(&str, &str) -> bool,
) -> Vec<Vec<KeyList>> {
    let list = |bond: &Bond| {
        let of = tables.iter().position(|name| *name == bond.of)?;
        let is_there = is_shipped(table, &bond.column) && is_shipped(&bond.of, &bond.of_column);
        is_there.then(|| KeyList {
            column: quoted(&bond.column).into(),
            type_name: bond.type_name.clone(),
            of,
            of_column: quoted(&bond.of_column).into(),
        })
    };
    let mut places: Vec<Vec<KeyList>> = Vec::new();
    for bonds in bonds {
        let mut place: Vec<KeyList> = Vec::new();
        for found in bonds.iter().filter_map(list) {
            if !place.contains(&found) {
                place.push(found);
            }
        }
        if !places.contains(&place) {
            places.push(place);
        }
    }
    if places.iter().any(Vec::is_empty) { Vec::new() } else { places }
}

struct Finder<'c, F> {
    catalog: &'c Catalog,
    equals: Equals,
    relation: &'c F,
    found: Bonds,
    /// The column before `IN`, by where the tree of the query behind it lies.
    members: BTreeMap<usize, (Arc<Relation>, Column)>,
}

impl<'a, F: Fn(&str) -> Option<&'a Arc<Relation>>> Finder<'_, F> {
    fn query(&mut self, query: &Query, outer: Option<&Frame<'_>>) {
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.query(&cte.query, outer);
        }
        let member = self.members.remove(&address(query)).filter(|_| is_plain(query));
        self.body(&query.body, outer, member);
        self.within(&query.order_by, None);
        self.within(&query.limit_clause, None);
    }

    fn body(&mut self, body: &SetExpr, outer: Option<&Frame<'_>>, member: Option<(Arc<Relation>, Column)>) {
        match body {
            SetExpr::Select(select) => self.select(select, outer, member),
            SetExpr::Query(query) => self.query(query, outer),
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left, outer, None);
                self.body(right, outer, None);
            }
            other => self.within(other, None),
        }
    }

    /// The queries in an expression or clause.
    fn within(&mut self, node: &impl Visit, outer: Option<&Frame<'_>>) {
        let _ = node.visit(&mut Within { finder: self, outer, depth: 0 });
    }

    fn select(&mut self, select: &Select, outer: Option<&Frame<'_>>, member: Option<(Arc<Relation>, Column)>) {
        let Ok(factors) = block::factors(&select.from) else { return self.within(select, None) };
        let frame = self.frame(&factors, outer);
        self.bind(select, &factors, &frame, member);
        for (_, _, constraint, factor) in &factors {
            self.within(*constraint, None);
            match factor {
                TableFactor::Derived { lateral: false, subquery, .. } => self.query(subquery, outer),
                TableFactor::Derived { subquery, .. } => self.query(subquery, None),
                other => self.within(*other, None),
            }
        }
        self.within(&select.projection, Some(&frame));
        self.within(&select.selection, Some(&frame));
        self.within(&select.having, Some(&frame));
        self.within(&select.distinct, None);
        self.within(&select.group_by, None);
        self.within(&select.named_window, None);
    }

    fn frame<'o>(&self, factors: &[Factor<'_>], outer: Option<&'o Frame<'o>>) -> Frame<'o> {
        let item = |at: usize| {
            let (chain, side, _, factor) = factors[at];
            let later = factors[at + 1..].iter();
            let is_missing = later.filter(|it| it.0 == chain).any(|later| matches!(later.1, Side::Right | Side::Full));
            let (shown, relation) = self.table(factor);
            Item { shown, relation, is_nullable: is_missing || matches!(side, Side::Left | Side::Full) }
        };
        let merged = factors.iter().flat_map(|factor| using(factor.2)).map(Box::from).collect();
        Frame { items: (0..factors.len()).map(item).collect(), merged, outer }
    }

    fn table(&self, factor: &TableFactor) -> (Option<Box<str>>, Option<Arc<Relation>>) {
        let (name, alias) = match factor {
            TableFactor::Table { name, alias, args: None, .. } => (Some(name), alias.as_ref()),
            TableFactor::Derived { alias, .. } => (None, alias.as_ref()),
            _ => return (None, None),
        };
        let table = name.and_then(parts).map(|(_, table)| table);
        let shown = alias.map(|alias| alias.name.value.as_str()).or(table).map(Box::from);
        let is_renamed = alias.is_some_and(|alias| !alias.columns.is_empty());
        (shown, table.and_then(|table| (self.relation)(table)).filter(|_| !is_renamed).cloned())
    }

    /// Notes what binds each of the items, and what IN asks of the query behind it.
    fn bind(
        &mut self,
        select: &Select,
        factors: &[Factor<'_>],
        frame: &Frame<'_>,
        member: Option<(Arc<Relation>, Column)>,
    ) {
        let equalities = equalities(select, factors, frame);
        let mut all: Vec<Vec<Bond>> = frame.items.iter().map(|_| Vec::new()).collect();
        for (reach, a, b) in equalities {
            for (a, b) in [(a, b), (b, a)] {
                let is_bound = match reach {
                    Reach::All => frame.items.get(a.index).is_some_and(|item| !item.is_nullable),
                    Reach::Joined(joined) => a.index == joined,
                };
                if a.level == 0 && is_bound {
                    all[a.index].extend(self.bond((a.relation, a.column), (b.relation, b.column)));
                }
            }
        }
        if let (Some((relation, column)), Some(given)) = (member, only_column(select, frame))
            && is_without_groups(select)
            && !frame.items[given.index].is_nullable
        {
            all[given.index].extend(self.bond((given.relation, given.column), (&relation, &column)));
        }
        for condition in select.selection.iter().flat_map(conjuncts) {
            self.condition(condition, frame, &mut all);
        }
        for (item, bonds) in frame.items.iter().zip(all) {
            if let Some(relation) = &item.relation {
                self.found.entry(relation.name.clone()).or_default().push(bonds);
            }
        }
    }

    /// `column IN (query)` and `EXISTS (query)` that must hold.
    fn condition(&mut self, condition: &Expr, frame: &Frame<'_>, all: &mut [Vec<Bond>]) {
        let is_free = |found: &Found<'_>| found.level == 0 && !frame.items[found.index].is_nullable;
        let (Expr::InSubquery { subquery, negated: false, .. } | Expr::Exists { subquery, negated: false }) = condition
        else {
            return;
        };
        let SetExpr::Select(inner) = &*subquery.body else { return };
        let Ok(factors) = block::factors(&inner.from) else { return };
        let within = self.frame(&factors, Some(frame));
        if let Expr::InSubquery { expr, .. } = condition {
            let Some(tested) = frame.column(expr).filter(is_free) else { return };
            self.members.insert(address(subquery), (Arc::clone(tested.relation), tested.column.clone()));
            if let Some(given) = only_column(inner, &within) {
                all[tested.index].extend(self.bond((tested.relation, tested.column), (given.relation, given.column)));
            }
        } else if is_plain(subquery) && is_without_groups(inner) && inner.projection.iter().all(is_simple) {
            for (_, a, b) in equalities(inner, &factors, &within).into_iter().filter(|found| found.0 == Reach::All) {
                for (a, b) in [(a, b), (b, a)] {
                    let outside = Found { level: a.level.wrapping_sub(1), ..a };
                    if b.level == 0 && is_free(&outside) {
                        all[a.index].extend(self.bond((a.relation, a.column), (b.relation, b.column)));
                    }
                }
            }
        }
    }

    /// The bond of a column to another table's, where PostgreSQL's own `=` of one type compares them.
    fn bond(&self, (relation, column): (&Arc<Relation>, &Column), of: (&Arc<Relation>, &Column)) -> Option<Bond> {
        let (other, of) = of;
        let known = self.catalog.types.get(&column.type_oid)?;
        let is_fit = column.type_oid < FIRST_USER_OID
            && &*known.schema == "pg_catalog"
            && TYPES.contains(&&*known.name)
            && self.equals.is_own(&known.name)
            && column.type_oid == of.type_oid
            && column.collation == of.collation
            && self.is_deterministic(column.collation)
            && relation.name != other.name;
        is_fit.then(|| Bond {
            column: column.name.clone(),
            type_name: known.name.clone(),
            of: other.name.clone(),
            of_column: of.name.clone(),
        })
    }

    fn is_deterministic(&self, collation: Oid) -> bool {
        let known = match collation {
            0 => return true,
            DEFAULT_COLLATION => self.catalog.default_collation.as_ref(),
            other => self.catalog.collations.get(&other),
        };
        known.is_some_and(|known| known.deterministic)
    }
}

/// The column of its own that is all that a query gives.
fn only_column<'f>(select: &Select, frame: &'f Frame<'_>) -> Option<Found<'f>> {
    match select.projection.as_slice() {
        [SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }] => {
            frame.column(expr).filter(|found| found.level == 0)
        }
        _ => None,
    }
}

/// Whether the query gives all rows of its SELECT, or asks whether there are any.
fn is_plain(query: &Query) -> bool {
    query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none() && query.locks.is_empty()
}

/// Whether its rows are those of FROM and WHERE; the select list is to be looked at beside this.
fn is_without_groups(select: &Select) -> bool {
    let is_grouped =
        !matches!(&select.group_by, GroupByExpr::Expressions(keys, more) if keys.is_empty() && more.is_empty());
    let is_one_of_each = matches!(select.distinct, Some(sqlparser::ast::Distinct::On(_)));
    !is_grouped && !is_one_of_each && select.having.is_none() && select.qualify.is_none()
}

/// Whether an item of a select list calls nothing that makes one row of many.
fn is_simple(item: &SelectItem) -> bool {
    match item {
        SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => true,
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
            matches!(expr, Expr::Value(_) | Expr::Identifier(_) | Expr::CompoundIdentifier(_))
        }
        _ => false,
    }
}

/// A name for a query's tree, no more.
fn address(query: &Query) -> usize {
    std::ptr::from_ref(query).addr()
}

/// Looks for queries, but not within those.
struct Within<'w, 'c, 'o, F> {
    finder: &'w mut Finder<'c, F>,
    outer: Option<&'w Frame<'o>>,
    depth: usize,
}

impl<'a, F: Fn(&str) -> Option<&'a Arc<Relation>>> Visitor for Within<'_, '_, '_, F> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.depth == 0 {
            self.finder.query(query, self.outer);
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth = self.depth.saturating_sub(1);
        ControlFlow::Continue(())
    }
}

/// Counts the places where tables are named.
struct Count<'c, F> {
    relation: &'c F,
    places: BTreeMap<Box<str>, usize>,
}

impl<'a, F: Fn(&str) -> Option<&'a Arc<Relation>>> Visitor for Count<'_, F> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, .. } = factor
            && let Some(relation) = parts(name).and_then(|(_, table)| (self.relation)(table))
        {
            *self.places.entry(relation.name.clone()).or_default() += 1;
        }
        ControlFlow::Continue(())
    }
}
