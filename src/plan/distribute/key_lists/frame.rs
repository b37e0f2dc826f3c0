//! Names within FROM lists, as far as it is certain which column each means, and the equalities that joins and WHERE make of them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use sqlparser::ast::{BinaryOperator, Expr, JoinConstraint, Select, TableFactor};

use super::super::block::Side;
use super::super::check::VALUE_FUNCTIONS;
use super::super::scope::parts;
use crate::catalog::model::{Column, Relation};

/// One item of a FROM list.
#[derive(Debug)]
pub(super) struct Item {
    /// What columns are qualified with; `None` where that is not known.
    pub(super) shown: Option<Box<str>>,
    /// `None` where its columns are not known.
    pub(super) relation: Option<Arc<Relation>>,
    /// Whether an outer join can put NULLs in place of its rows.
    pub(super) is_nullable: bool,
}

/// The FROM list of one SELECT, within that of another.
#[derive(Debug)]
pub(super) struct Frame<'o> {
    pub(super) items: Vec<Item>,
    /// Columns that USING merges.
    pub(super) merged: BTreeSet<Box<str>>,
    /// What can be seen beyond it; `None` also where that is not followed.
    pub(super) outer: Option<&'o Self>,
}

/// A column that a name was resolved to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'f> {
    pub(super) relation: &'f Arc<Relation>,
    pub(super) column: &'f Column,
    /// The relation's place in its FROM list.
    pub(super) index: usize,
    /// How many queries further out that is.
    pub(super) level: usize,
}

impl Frame<'_> {
    /// The column that an expression in WHERE is.
    pub(super) fn column(&self, expr: &Expr) -> Option<Found<'_>> {
        self.resolved(expr, 0..self.items.len(), self.outer)
    }

    /// The same, where only some of the items can be seen.
    fn resolved<'f>(&'f self, expr: &Expr, seen: Range<usize>, outer: Option<&'f Self>) -> Option<Found<'f>> {
        match expr {
            Expr::Nested(inner) => self.resolved(inner, seen, outer),
            Expr::Identifier(name) => {
                let is_function = name.quote_style.is_none() && VALUE_FUNCTIONS.contains(&name.value.as_str());
                if is_function { None } else { self.unqualified(&name.value, seen, outer) }
            }
            Expr::CompoundIdentifier(names) => match names.as_slice() {
                [table, name] => self.qualified(&table.value, &name.value, seen, outer),
                _ => None,
            },
            _ => None,
        }
    }

    fn at(&self, index: usize, name: &str) -> Option<Found<'_>> {
        let relation = self.items.get(index)?.relation.as_ref()?;
        let column = relation.columns.iter().find(|column| *column.name == *name)?;
        Some(Found { relation, column, index, level: 0 })
    }

    fn unqualified<'f>(&'f self, name: &str, seen: Range<usize>, outer: Option<&'f Self>) -> Option<Found<'f>> {
        if self.merged.contains(name) {
            return None;
        }
        let mut owners = seen.clone().filter_map(|index| self.at(index, name));
        match (owners.next(), owners.next()) {
            (Some(only), None) => Some(only),
            (None, _) if self.items.get(seen)?.iter().all(|item| item.relation.is_some()) => {
                let outer = outer?;
                further(outer.unqualified(name, 0..outer.items.len(), outer.outer)?)
            }
            _ => None,
        }
    }

    fn qualified<'f>(
        &'f self,
        table: &str,
        name: &str,
        mut seen: Range<usize>,
        outer: Option<&'f Self>,
    ) -> Option<Found<'f>> {
        let shown = |index: &usize| self.items.get(*index).and_then(|item| item.shown.as_deref());
        let mut meant = seen.clone().filter(|index| shown(index) == Some(table));
        match (meant.next(), meant.next()) {
            (Some(only), None) => self.at(only, name),
            (None, _) if seen.all(|index| shown(&index).is_some()) => {
                let outer = outer?;
                further(outer.qualified(table, name, 0..outer.items.len(), outer.outer)?)
            }
            _ => None,
        }
    }
}

fn further(found: Found<'_>) -> Option<Found<'_>> {
    Some(Found { level: found.level + 1, ..found })
}

/// Which items an equality binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// All that no outer join can put NULLs in place of.
    All,
    /// The joined side of that LEFT JOIN.
    Joined(usize),
}

/// Two columns of which each row that is used holds equal values.
pub(super) type Equality<'f> = (Reach, Found<'f>, Found<'f>);

/// A table of a FROM list with how it joins.
pub(super) type Factor<'s> = (usize, Side, &'s JoinConstraint, &'s TableFactor);

/// Equalities of columns that hold for every row that WHERE and joins let through, or that a LEFT JOIN finds.
pub(super) fn equalities<'f>(select: &Select, factors: &[Factor<'_>], frame: &'f Frame<'_>) -> Vec<Equality<'f>> {
    let mut all = Vec::new();
    for (a, b) in select.selection.iter().flat_map(equal) {
        all.extend(frame.column(a).zip(frame.column(b)).map(|(a, b)| (Reach::All, a, b)));
    }
    for (at, (chain, side, constraint, _)) in factors.iter().enumerate() {
        let reach = match side {
            Side::Inner => Reach::All,
            Side::Left => Reach::Joined(at),
            Side::Right | Side::Full => continue,
        };
        let first = factors.iter().position(|factor| factor.0 == *chain).unwrap_or(at);
        match constraint {
            JoinConstraint::On(condition) => {
                // A join's condition sees what stands before it in its chain; what is further out is not looked for.
                let seen = |expr| frame.resolved(expr, first..at + 1, None);
                all.extend(equal(condition).into_iter().filter_map(|(a, b)| Some((reach, seen(a)?, seen(b)?))));
            }
            JoinConstraint::Using(_) => {
                for name in using(constraint) {
                    // The only one before it that has such a column, and no other that may.
                    let is_known = frame.items[first..at].iter().all(|item| item.relation.is_some());
                    let mut owners = (first..at).filter_map(|index| frame.at(index, name));
                    if let (true, Some(a), None, Some(b)) = (is_known, owners.next(), owners.next(), frame.at(at, name))
                    {
                        all.push((reach, a, b));
                    }
                }
            }
            _ => {}
        }
    }
    all
}

/// Both sides of every `=` that must hold; of alternatives those that stand in each.
fn equal(condition: &Expr) -> Vec<(&Expr, &Expr)> {
    match condition {
        Expr::Nested(inner) => equal(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => [equal(left), equal(right)].concat(),
        Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
            let other = equal(right);
            let is_there = |(a, b): &(&Expr, &Expr)| other.contains(&(*a, *b)) || other.contains(&(*b, *a));
            equal(left).into_iter().filter(is_there).collect()
        }
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => vec![(left, right)],
        _ => Vec::new(),
    }
}

pub(super) fn conjuncts(condition: &Expr) -> Vec<&Expr> {
    match condition {
        Expr::Nested(inner) => conjuncts(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => [conjuncts(left), conjuncts(right)].concat(),
        other => vec![other],
    }
}

pub(super) fn using(constraint: &JoinConstraint) -> Vec<&str> {
    match constraint {
        JoinConstraint::Using(columns) => columns.iter().filter_map(|column| Some(parts(column)?.1)).collect(),
        _ => Vec::new(),
    }
}
