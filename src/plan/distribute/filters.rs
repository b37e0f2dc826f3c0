//! Conditions that speak of one table alone: the shards apply them before they ship its rows.
//!
//! What is sent is the client's own text, and only where that text, parsed again, is the condition that was meant.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, JoinConstraint, Select, SetExpr,
    Statement, TableFactor, Visit, Visitor,
};

use super::block::{self, Side};
use super::check::check;
use super::functions::Functions;
use super::scope::parts;
use super::ship::quoted;
use super::source::Source;
use crate::catalog::model::Relation;
use crate::sql::parse;

/// What rows of a table must satisfy to be of any use to the statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    /// What the condition calls the table, if not by its name.
    pub(super) alias: Option<String>,
    /// The condition.
    pub(super) sql: String,
    /// The columns that it names.
    columns: BTreeSet<String>,
}

impl Filter {
    /// The condition where the table is called as in another one's: there its row goes by this one's name once more.
    fn under(&self, other: &Self, table: &str) -> String {
        if self.alias == other.alias {
            return format!("({})", self.sql);
        }
        let name = |filter: &Self| quoted(filter.alias.as_deref().unwrap_or(table));
        let (outer, inner) = (name(other), name(self));
        // Not all columns: the client may lack the right to read some.
        let columns: Vec<String> = self.columns.iter().map(|column| format!("{outer}.{}", quoted(column))).collect();
        format!("EXISTS (SELECT 1 FROM (SELECT {}) AS {inner} WHERE {})", columns.join(", "), self.sql)
    }
}

/// Reads a statement's conditions.
pub(super) struct Reader<'a, F> {
    pub(super) source: &'a Source<'a>,
    pub(super) functions: Functions<'a>,
    pub(super) standard_conforming_strings: bool,
    /// The relation that an unqualified or qualified name means.
    pub(super) relation: F,
}

/// The conditions of every relation, where each of its occurrences has one.
pub(super) fn filters<'a, F>(tree: &Statement, reader: Reader<'a, F>) -> BTreeMap<Box<str>, Filter>
where
    F: Fn(&str) -> Option<&'a Arc<Relation>>,
{
    let mut finder = Finder { reader, occurrences: BTreeMap::new(), found: BTreeMap::new() };
    let _ = tree.visit(&mut finder);
    let Finder { occurrences, found, .. } = finder;
    let whole = |(name, all): (Box<str>, Vec<Filter>)| {
        let first = all.first()?;
        if occurrences.get(&name) != Some(&all.len()) {
            return None;
        }
        let sql = all.iter().map(|filter| filter.under(first, &name)).collect::<Vec<_>>().join(" OR ");
        Some((name, Filter { sql, ..first.clone() }))
    };
    found.into_iter().filter_map(whole).collect()
}

struct Finder<'a, F> {
    reader: Reader<'a, F>,
    /// How often each relation stands in a FROM list.
    occurrences: BTreeMap<Box<str>, usize>,
    found: BTreeMap<Box<str>, Vec<Filter>>,
}

/// One item of a FROM list.
struct Item<'s, 'a> {
    shown: &'s str,
    alias: Option<&'s str>,
    relation: Option<&'a Arc<Relation>>,
    /// Whether an outer join can put NULLs in place of its rows.
    is_nullable: bool,
}

impl<'a, F: Fn(&str) -> Option<&'a Arc<Relation>>> Finder<'a, F> {
    fn select(&mut self, select: &Select) {
        let Ok(factors) = block::factors(&select.from) else { return };
        let sides: Vec<(usize, Side)> = factors.iter().map(|factor| (factor.0, factor.1)).collect();
        let item = |at: usize| {
            let (chain, side, _, factor) = factors[at];
            let later =
                sides[at + 1..].iter().any(|later| later.0 == chain && matches!(later.1, Side::Right | Side::Full));
            self.item(factor, later || matches!(side, Side::Left | Side::Full))
        };
        let items: Vec<Item<'_, 'a>> = (0..factors.len()).map(item).collect();
        let merged: Vec<&str> = factors.iter().flat_map(|factor| using(factor.2)).collect();
        for at in 0..items.len() {
            let item = &items[at];
            let Some(relation) = item.relation else { continue };
            let mut conditions: Vec<&Expr> = Vec::new();
            if !item.is_nullable {
                conditions.extend(select.selection.iter().flat_map(conjuncts));
            }
            for (place, (_, side, constraint, _)) in factors.iter().enumerate() {
                // What an outer join's own condition says of the joined table drops rows of that table alone.
                let counts = match side {
                    Side::Inner => !item.is_nullable,
                    Side::Left => place == at,
                    Side::Right | Side::Full => false,
                };
                if let JoinConstraint::On(condition) = constraint
                    && counts
                {
                    conditions.extend(conjuncts(condition));
                }
            }
            let (mut texts, mut columns) = (Vec::new(), BTreeSet::new());
            for condition in conditions {
                let Some(text) = self.said(condition, at, &items, &merged) else { continue };
                texts.push(format!("({text})"));
                columns.extend(Names::of(condition).columns.into_iter().filter_map(|(alias, name)| {
                    let is_its_own = alias.is_none_or(|alias| alias == item.shown)
                        && relation.columns.iter().any(|column| *column.name == *name);
                    is_its_own.then_some(name)
                }));
            }
            if !texts.is_empty() {
                let filter = Filter { alias: item.alias.map(str::to_owned), sql: texts.join(" AND "), columns };
                self.found.entry(relation.name.clone()).or_default().push(filter);
            }
        }
    }

    fn item<'s>(&self, factor: &'s TableFactor, is_nullable: bool) -> Item<'s, 'a> {
        let nothing = Item { shown: "", alias: None, relation: None, is_nullable };
        let alias = match factor {
            TableFactor::Table { alias, .. } | TableFactor::Derived { alias, .. } => alias.as_ref(),
            _ => None,
        };
        let shown = alias.map(|alias| alias.name.value.as_str());
        let TableFactor::Table { name, args: None, .. } = factor else {
            return Item { shown: shown.unwrap_or_default(), ..nothing };
        };
        let Some((_, table)) = parts(name) else { return nothing };
        let is_renamed = alias.is_some_and(|alias| !alias.columns.is_empty());
        let relation = (self.reader.relation)(table).filter(|_| !is_renamed);
        Item { shown: shown.unwrap_or(table), alias: shown, relation, ..nothing }
    }

    /// What must hold of a row of that item alone where the condition holds: all of it, or what is said of the item in each of its
    /// alternatives.
    fn said(&self, condition: &Expr, at: usize, items: &[Item<'_, 'a>], merged: &[&str]) -> Option<String> {
        if let Expr::Nested(inner) = condition {
            return self.said(inner, at, items, merged);
        }
        if self.speaks_of(condition, at, items, merged) {
            return self.text(condition);
        }
        match condition {
            Expr::BinaryOp { op: BinaryOperator::And, .. } => {
                let each = conjuncts(condition).into_iter().filter_map(|part| self.said(part, at, items, merged));
                let said: Vec<String> = each.map(|text| format!("({text})")).collect();
                (!said.is_empty()).then(|| said.join(" AND "))
            }
            Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
                let (left, right) = (self.said(left, at, items, merged)?, self.said(right, at, items, merged)?);
                Some(format!("({left}) OR ({right})"))
            }
            _ => None,
        }
    }

    /// Whether a condition can be judged by the rows of that item, wherever it is judged.
    fn speaks_of(&self, condition: &Expr, at: usize, items: &[Item<'_, 'a>], merged: &[&str]) -> bool {
        let names = Names::of(condition);
        let owns = |item: &Item<'_, 'a>, name: &str| {
            item.relation.is_some_and(|relation| relation.columns.iter().any(|column| *column.name == *name))
        };
        let is_its_own = |(alias, name): &(Option<String>, String)| match alias {
            Some(alias) => {
                let meant: Vec<usize> = (0..items.len()).filter(|&item| items[item].shown == alias.as_str()).collect();
                meant == [at] && owns(&items[at], name)
            }
            None => {
                !merged.contains(&name.as_str())
                    && owns(&items[at], name)
                    && (0..items.len()).filter(|&item| item != at).all(|item| !owns(&items[item], name))
            }
        };
        names.is_plain
            && !names.columns.is_empty()
            && names.columns.iter().all(is_its_own)
            && check(condition, self.reader.functions).is_ok_and(|findings| findings.one_shard.is_none())
    }

    /// The condition as the client wrote it.
    fn text(&self, condition: &Expr) -> Option<String> {
        let mut first = First(None);
        let _ = condition.visit(&mut first);
        let mut place = self.reader.source.place_of(first.0?)?;
        // One level of parentheses more at a time, until it is the whole condition.
        for _ in 0..4 {
            let (text, before) = self.reader.source.condition_around(place)?;
            if self.reads_as(text, condition) {
                return Some(text.to_owned());
            }
            place = before?;
        }
        None
    }

    fn reads_as(&self, text: &str, condition: &Expr) -> bool {
        let whole = format!("SELECT 1 WHERE {text}");
        let Some(Statement::Query(query)) = parse::parse(whole.as_bytes(), self.reader.standard_conforming_strings)
        else {
            return false;
        };
        let is_plain = query.order_by.is_none() && query.limit_clause.is_none() && query.with.is_none();
        match *query.body {
            SetExpr::Select(select) if is_plain => select.selection.as_ref() == Some(condition),
            _ => false,
        }
    }
}

impl<'a, F: Fn(&str) -> Option<&'a Arc<Relation>>> Visitor for Finder<'a, F> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.select(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: None, .. } = factor
            && let Some(relation) = parts(name).and_then(|(_, table)| (self.reader.relation)(table))
        {
            *self.occurrences.entry(relation.name.clone()).or_default() += 1;
        }
        ControlFlow::Continue(())
    }
}

fn using(constraint: &JoinConstraint) -> Vec<&str> {
    match constraint {
        JoinConstraint::Using(columns) => columns.iter().filter_map(|column| Some(parts(column)?.1)).collect(),
        _ => Vec::new(),
    }
}

/// What stands between the ANDs of a condition.
fn conjuncts(condition: &Expr) -> Vec<&Expr> {
    match condition {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => [conjuncts(left), conjuncts(right)].concat(),
        other => vec![other],
    }
}

/// The columns that an expression names.
struct Names {
    /// Whether there is nothing in it but columns, constants without parameters, operators and functions.
    is_plain: bool,
    columns: Vec<(Option<String>, String)>,
}

impl Names {
    fn of(condition: &Expr) -> Self {
        let mut names = Self { is_plain: true, columns: Vec::new() };
        let _ = condition.visit(&mut names);
        names
    }
}

/// Whether a function is given `*` or `t.*`: columns that are not named.
fn takes_rows(function: &Function) -> bool {
    let FunctionArguments::List(list) = &function.args else { return false };
    list.args.iter().any(|argument| match argument {
        FunctionArg::Unnamed(arg) | FunctionArg::Named { arg, .. } | FunctionArg::ExprNamed { arg, .. } => {
            !matches!(arg, FunctionArgExpr::Expr(_))
        }
    })
}

/// Where the first column of an expression stands.
struct First(Option<usize>);

impl Visitor for First {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let ident = match expr {
            Expr::Identifier(ident) => Some(ident),
            Expr::CompoundIdentifier(idents) => idents.first(),
            _ => None,
        };
        if let Some(start) = ident.and_then(|ident| parse::offset(ident.span.start)) {
            self.0 = Some(self.0.map_or(start, |first| first.min(start)));
        }
        ControlFlow::Continue(())
    }
}

impl Visitor for Names {
    type Break = ();

    fn pre_visit_query(&mut self, _: &sqlparser::ast::Query) -> ControlFlow<()> {
        self.is_plain = false;
        ControlFlow::Break(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(name) => self.columns.push((None, name.value.clone())),
            Expr::CompoundIdentifier(names) => match names.as_slice() {
                [alias, name] => self.columns.push((Some(alias.value.clone()), name.value.clone())),
                _ => self.is_plain = false,
            },
            Expr::CompoundFieldAccess { .. }
            | Expr::Subquery(_)
            | Expr::Exists { .. }
            | Expr::Wildcard(_)
            | Expr::QualifiedWildcard(..) => self.is_plain = false,
            Expr::Function(function) => self.is_plain &= !takes_rows(function),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &sqlparser::ast::ValueWithSpan) -> ControlFlow<()> {
        // COPY takes no parameters.
        self.is_plain &= !matches!(value.value, sqlparser::ast::Value::Placeholder(_));
        ControlFlow::Continue(())
    }
}
