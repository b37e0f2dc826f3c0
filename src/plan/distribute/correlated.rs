//! Columns by which sub-queries look rows up for each row outside: the coordinator indexes them, as a schema made for such
//! statements would. It changes how fast an answer comes, never which.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use sqlparser::ast::{BinaryOperator, Expr, Query, Select, SetExpr, Statement, TableFactor, Visit, Visitor};

use super::scope::parts;
use crate::catalog::model::Relation;

/// Column lists to index, by relation.
pub(super) type Indexes = BTreeMap<Box<str>, BTreeSet<Vec<Box<str>>>>;

/// Finds them in a statement over these relations.
pub(super) fn indexes<'a>(tree: &Statement, relation: impl Fn(&str) -> Option<&'a Arc<Relation>>) -> Indexes {
    let mut finder = Finder { relation, indexes: Indexes::new() };
    let _ = tree.visit(&mut finder);
    finder.indexes
}

struct Finder<F> {
    relation: F,
    indexes: Indexes,
}

impl<'a, F: Fn(&str) -> Option<&'a Arc<Relation>>> Finder<F> {
    fn query(&mut self, query: &Query) {
        if let SetExpr::Select(select) = &*query.body {
            self.select(select);
        }
    }

    fn select(&mut self, select: &Select) {
        let factors = select
            .from
            .iter()
            .flat_map(|item| std::iter::once(&item.relation).chain(item.joins.iter().map(|join| &join.relation)));
        let inner: Vec<(&str, &Arc<Relation>)> = factors.filter_map(|factor| self.source(factor)).collect();
        let mut found: BTreeMap<Box<str>, Vec<Box<str>>> = BTreeMap::new();
        for (a, b) in select.selection.iter().flat_map(equalities) {
            let ((Some(column), None) | (None, Some(column))) = (owner(&inner, a), owner(&inner, b)) else { continue };
            let columns = found.entry(column.0.name.clone()).or_default();
            if !columns.iter().any(|known| **known == *column.1) {
                columns.push(column.1.into());
            }
        }
        for (relation, columns) in found {
            self.indexes.entry(relation).or_default().insert(columns);
        }
    }

    fn source<'s>(&self, factor: &'s TableFactor) -> Option<(&'s str, &'a Arc<Relation>)> {
        let TableFactor::Table { name, alias, args: None, .. } = factor else { return None };
        let (_, table) = parts(name)?;
        Some((alias.as_ref().map_or(table, |alias| alias.name.value.as_str()), (self.relation)(table)?))
    }
}

impl<'a, F: Fn(&str) -> Option<&'a Arc<Relation>>> Visitor for Finder<F> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Subquery(query) | Expr::Exists { subquery: query, .. } | Expr::InSubquery { subquery: query, .. } => {
                self.query(query)
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Both sides of every `=` that stands between ANDs.
fn equalities(condition: &Expr) -> Vec<(&Expr, &Expr)> {
    match condition {
        Expr::Nested(inner) => equalities(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => [equalities(left), equalities(right)].concat(),
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => vec![(left, right)],
        _ => Vec::new(),
    }
}

/// The relation of the list that a column belongs to, with the column's name.
fn owner<'e, 'a>(inner: &[(&str, &'a Arc<Relation>)], expr: &'e Expr) -> Option<(&'a Arc<Relation>, &'e str)> {
    let (alias, name) = match expr {
        Expr::Identifier(name) => (None, name.value.as_str()),
        Expr::CompoundIdentifier(names) => match names.as_slice() {
            [alias, name] => (Some(alias.value.as_str()), name.value.as_str()),
            _ => return None,
        },
        _ => return None,
    };
    let mut found = inner.iter().filter(|(known, relation)| {
        alias.is_none_or(|alias| alias == *known) && relation.columns.iter().any(|column| *column.name == *name)
    });
    found.next().map(|(_, relation)| (*relation, name))
}
