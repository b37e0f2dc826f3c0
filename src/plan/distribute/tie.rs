//! What a condition says of shard keys: which shards it leaves to a relation, and which keys it makes equal.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use sqlparser::ast::{BinaryOperator, Expr};

use super::constant::Constants;
use super::scope::{Resolved, Scope};
use crate::plan::distribute::Collating;
use crate::plan::shard_key::{Layout, ShardSet};
use crate::plan::value::{Kind, Value};

/// Shards that a condition leaves, by index of the relation.
pub(super) type Sets = BTreeMap<usize, ShardSet>;

/// Narrows `sets` by another condition that must hold too.
pub(super) fn narrow(sets: &mut Sets, index: usize, to: ShardSet) {
    match sets.get_mut(&index) {
        Some(set) => set.retain(|shard| to.contains(shard)),
        None => {
            sets.insert(index, to);
        }
    }
}

/// Reads conditions of one scope.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ties<'a> {
    pub(super) constants: Constants<'a>,
    pub(super) scope: &'a Scope<'a>,
}

impl<'a> Ties<'a> {
    /// What the condition's being true leaves.
    pub(super) fn sets(&self, condition: &Expr) -> Sets {
        match condition {
            Expr::Nested(inner) => self.sets(inner),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                let mut sets = self.sets(left);
                self.sets(right).into_iter().for_each(|(index, set)| narrow(&mut sets, index, set));
                sets
            }
            Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
                let mut other = self.sets(right);
                let both = self.sets(left).into_iter().filter_map(|(index, mut set)| {
                    set.append(&mut other.remove(&index)?);
                    Some((index, set))
                });
                both.collect()
            }
            Expr::BinaryOp { left, op, right } => self.comparison(left, op, right),
            Expr::InList { expr, list, negated: false } => self.one(self.key(expr), |layout| {
                let mut set = ShardSet::new();
                for item in list {
                    set.append(&mut self.equal(layout, item)?);
                }
                Some(set)
            }),
            Expr::Between { expr, negated: false, low, high } => self.one(self.key(expr), |layout| {
                let mut set = self.compared(layout, low, &[Ordering::Greater, Ordering::Equal])?;
                let high = self.compared(layout, high, &[Ordering::Less, Ordering::Equal])?;
                set.retain(|shard| high.contains(shard));
                Some(set)
            }),
            // An outer join's missing rows are NULL on every shard.
            Expr::IsNull(expr) => {
                let key = self.key(expr).filter(|key| !key.source.nullable);
                self.one(key, |layout| Some(layout.equal(None)))
            }
            _ => Sets::new(),
        }
    }

    fn comparison(&self, left: &Expr, op: &BinaryOperator, right: &Expr) -> Sets {
        let holds: &[Ordering] = match op {
            BinaryOperator::Eq => &[Ordering::Equal],
            BinaryOperator::Lt => &[Ordering::Less],
            BinaryOperator::LtEq => &[Ordering::Less, Ordering::Equal],
            BinaryOperator::Gt => &[Ordering::Greater],
            BinaryOperator::GtEq => &[Ordering::Greater, Ordering::Equal],
            _ => return Sets::new(),
        };
        let leaf = |key: Option<Resolved<'a>>, constant: &Expr, holds: &[Ordering]| {
            self.one(key, |layout| match holds {
                [Ordering::Equal] => self.equal(layout, constant),
                holds => self.compared(layout, constant, holds),
            })
        };
        let (left_key, right_key) = (self.key(left), self.key(right));
        match (left_key, right_key) {
            (Some(a), Some(b)) if holds == [Ordering::Equal] => self.correlated(a, b),
            (Some(key), None) => leaf(Some(key), right, holds),
            (None, Some(key)) => {
                let flipped: Vec<Ordering> = holds.iter().map(|ordering| ordering.reverse()).collect();
                leaf(Some(key), left, &flipped)
            }
            _ => Sets::new(),
        }
    }

    /// An inner relation's key that equals an outer one's lies where the outer one's rows are.
    fn correlated(&self, a: Resolved<'a>, b: Resolved<'a>) -> Sets {
        let (inner, outer) = match (a.level, b.level) {
            (0, 0) => return Sets::new(),
            (0, _) => (a, b),
            (_, 0) => (b, a),
            _ => return Sets::new(),
        };
        match (inner.key(), outer.key()) {
            (Some(x), Some(y)) if x.is_colocated(y) => Sets::from([(inner.index, outer.source.tied.clone())]),
            _ => Sets::new(),
        }
    }

    fn one(&self, key: Option<Resolved<'a>>, set: impl FnOnce(&Layout) -> Option<ShardSet>) -> Sets {
        let found = key.filter(|key| key.level == 0).and_then(|key| Some((key.index, set(key.key()?)?)));
        found.into_iter().collect()
    }

    fn key(&self, expr: &Expr) -> Option<Resolved<'a>> {
        self.scope.column(expr).filter(|found| found.key().is_some())
    }

    fn equal(&self, layout: &Layout, expr: &Expr) -> Option<ShardSet> {
        let kind = prunable(layout)?;
        match self.constants.read(expr, kind)? {
            // `key = NULL` is never true.
            None => Some(ShardSet::new()),
            Some(value) => Some(layout.equal(Some(&value))),
        }
    }

    fn compared(&self, layout: &Layout, expr: &Expr, holds: &[Ordering]) -> Option<ShardSet> {
        let kind = prunable(layout).filter(|kind| !kind.is_collatable() || layout.collating == Collating::Bytes)?;
        match self.constants.read(expr, kind)? {
            None => Some(ShardSet::new()),
            Some(value) => Some(layout.compared(holds, &value)),
        }
    }

    /// Pairs of relations whose shard keys the condition makes equal, both in this scope.
    pub(super) fn links(&self, condition: &Expr) -> Vec<(usize, usize)> {
        match condition {
            Expr::Nested(inner) => self.links(inner),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                let mut links = self.links(left);
                links.append(&mut self.links(right));
                links
            }
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                let pair = self.key(left).zip(self.key(right)).filter(|(a, b)| a.level == 0 && b.level == 0);
                pair.and_then(|(a, b)| a.key()?.is_colocated(b.key()?).then_some((a.index, b.index)))
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// The key that one row of an INSERT brings, as stored; `None` if it cannot be told before the server evaluates it.
    pub(super) fn inserted(constants: Constants<'a>, layout: &Layout, expr: &Expr) -> Option<Option<Value>> {
        let kind = layout.kind?;
        let value = constants.read(expr, kind)?;
        let is_stored_as_is = |value: &Value| super::constant::is_stored_as_is(value, &layout.column, kind);
        value.as_ref().is_none_or(is_stored_as_is).then_some(value)
    }
}

/// Kinds whose equality with a constant says where a row lies; `char(n)` compares in too many ways.
fn prunable(layout: &Layout) -> Option<Kind> {
    layout.kind.filter(|&kind| kind != Kind::Bpchar)
}
