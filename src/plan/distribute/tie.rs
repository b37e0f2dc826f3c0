//! What a condition says of shard keys: which shards it leaves to a relation, and which keys it makes equal.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use sqlparser::ast::{BinaryOperator, Expr, Value as Literal};

use super::constant::Constants;
use super::scope::{Resolved, Scope};
use crate::plan::shard_key::{Layout, Limits, ShardSet};
use crate::plan::value::Value;

/// Combinations of limits that are kept for one relation; beyond that only the shards are.
const MOST_BOXES: usize = 64;

/// What a condition leaves to one relation.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    /// Shards with rows of use.
    pub(super) shards: ShardSet,
    /// Limits for each column of the key: one of these holds. Kept for keys of several columns alone.
    boxes: Vec<Vec<Limits>>,
}

/// What a condition leaves, by index of the relation.
pub(super) type Sets = BTreeMap<usize, Reach>;

impl Reach {
    pub(super) fn of(shards: ShardSet) -> Self {
        Self { shards, boxes: Vec::new() }
    }

    fn limited(layout: &Layout, position: usize, limits: Limits) -> Self {
        let mut whole = vec![Limits::Any; layout.key.len()];
        if let Some(limit) = whole.get_mut(position) {
            *limit = limits;
        }
        let shards = layout.reached(&whole);
        let boxes = if layout.key.len() > 1 { vec![whole] } else { Vec::new() };
        Self { shards, boxes }
    }

    /// What this and another condition leave together.
    pub(super) fn and(&mut self, other: Self, layout: Option<&Layout>) {
        self.shards.retain(|shard| other.shards.contains(shard));
        if self.boxes.is_empty() || other.boxes.is_empty() {
            if self.boxes.is_empty() {
                self.boxes = other.boxes;
            }
            return;
        }
        if self.boxes.len() * other.boxes.len() > MOST_BOXES {
            if other.boxes.len() < self.boxes.len() {
                self.boxes = other.boxes;
            }
            return;
        }
        let both = |a: &[Limits], b: &[Limits]| a.iter().zip(b).map(|(a, b)| a.and(b)).collect::<Vec<_>>();
        self.boxes = self.boxes.iter().flat_map(|a| other.boxes.iter().map(|b| both(a, b))).collect();
        if let Some(layout) = layout {
            let left: ShardSet = self.boxes.iter().flat_map(|limits| layout.reached(limits)).collect();
            self.shards.retain(|shard| left.contains(shard));
        }
    }

    /// What one of two conditions leaves.
    fn or(&mut self, mut other: Self) {
        self.shards.append(&mut other.shards);
        if self.boxes.is_empty() || other.boxes.is_empty() || self.boxes.len() + other.boxes.len() > MOST_BOXES {
            self.boxes.clear();
        } else {
            self.boxes.append(&mut other.boxes);
        }
    }
}

/// An equality between columns of two shard keys that stand at the same place in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    /// The one relation.
    pub(super) a: usize,
    /// The other.
    pub(super) b: usize,
    /// The column's place in both keys.
    pub(super) position: usize,
    /// How many columns the keys have.
    pub(super) columns: usize,
}

/// Pairs of relations that links make equal in their whole keys.
pub(super) fn whole(links: &[Link]) -> Vec<(usize, usize)> {
    let mut pairs: BTreeMap<(usize, usize), (Vec<usize>, usize)> = BTreeMap::new();
    for link in links {
        let pair = (link.a.min(link.b), link.a.max(link.b));
        let (positions, columns) = pairs.entry(pair).or_insert_with(|| (Vec::new(), link.columns));
        *columns = link.columns;
        if !positions.contains(&link.position) {
            positions.push(link.position);
        }
    }
    pairs.into_iter().filter(|(_, (positions, columns))| positions.len() == *columns).map(|(pair, _)| pair).collect()
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
        let mut sets = self.within(condition);
        for (inner, shards) in self.correlated(condition) {
            self.and(&mut sets, Sets::from([(inner, Reach::of(shards))]));
        }
        sets
    }

    /// Narrows `sets` by what another condition leaves that must hold too.
    pub(super) fn and(&self, sets: &mut Sets, more: Sets) {
        for (index, reach) in more {
            match sets.get_mut(&index) {
                Some(known) => known.and(reach, self.scope.sources.get(index).and_then(|source| source.layout())),
                None => {
                    sets.insert(index, reach);
                }
            }
        }
    }

    fn within(&self, condition: &Expr) -> Sets {
        match condition {
            Expr::Nested(inner) => self.within(inner),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                let mut sets = self.within(left);
                self.and(&mut sets, self.within(right));
                sets
            }
            Expr::BinaryOp { left, op: BinaryOperator::Or, right } => self.or(self.within(left), self.within(right)),
            Expr::BinaryOp { left, op, right } => self.comparison(left, op, right),
            Expr::InList { expr, list, negated: false } => match self.key(expr) {
                Some(_) => self.one(self.key(expr), |layout, at| {
                    let mut values = Vec::new();
                    for item in list {
                        values.extend(self.value(layout, at, item)?.map(Some));
                    }
                    Some(Limits::Values(values))
                }),
                None if row(expr).is_some() && !list.is_empty() => {
                    let each = list.iter().map(|item| self.comparison(expr, &BinaryOperator::Eq, item));
                    each.reduce(|a, b| self.or(a, b)).unwrap_or_default()
                }
                None => Sets::new(),
            },
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
                self.one(self.key(left), |layout, at| {
                    let kind = layout.key.get(at)?.prunable()?;
                    let values = self.constants.array(right, kind)?;
                    Some(Limits::Values(values.into_iter().flatten().map(Some).collect()))
                })
            }
            Expr::Between { expr, negated: false, low, high } => self.one(self.key(expr), |layout, at| {
                let low = self.compared(layout, at, low, &[Ordering::Greater, Ordering::Equal])?;
                let high = self.compared(layout, at, high, &[Ordering::Less, Ordering::Equal])?;
                Some(low.and(&high))
            }),
            // An outer join's missing rows are NULL on every shard.
            Expr::IsNull(expr) => {
                let key = self.key(expr).filter(|key| !key.source.nullable);
                self.one(key, |layout, at| layout.key.get(at)?.prunable().map(|_| Limits::Values(vec![None])))
            }
            _ => Sets::new(),
        }
    }

    fn or(&self, left: Sets, mut right: Sets) -> Sets {
        let both = left.into_iter().filter_map(|(index, mut reach)| {
            reach.or(right.remove(&index)?);
            Some((index, reach))
        });
        both.collect()
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
        if let (Some(left), Some(right)) = (row(left), row(right)) {
            let mut sets = Sets::new();
            if holds == [Ordering::Equal] && left.len() == right.len() {
                left.iter().zip(right).for_each(|(left, right)| self.and(&mut sets, self.comparison(left, op, right)));
            }
            return sets;
        }
        let leaf = |key: Option<Resolved<'a>>, constant: &Expr, holds: &[Ordering]| {
            self.one(key, |layout, at| self.compared(layout, at, constant, holds))
        };
        match (self.key(left), self.key(right)) {
            (Some(key), None) => leaf(Some(key), right, holds),
            (None, Some(key)) => {
                let flipped: Vec<Ordering> = holds.iter().map(|ordering| ordering.reverse()).collect();
                leaf(Some(key), left, &flipped)
            }
            _ => Sets::new(),
        }
    }

    /// Relations whose keys equal an outer one's lie where the outer one's rows are.
    pub(super) fn correlated(&self, condition: &Expr) -> Vec<(usize, ShardSet)> {
        let mut links: Vec<(Link, &'a ShardSet)> = Vec::new();
        for (a, b) in equalities(condition) {
            let (Some(a), Some(b)) = (self.key(a), self.key(b)) else { continue };
            let (inner, outer) = match (a.level, b.level) {
                (0, 1..) => (a, b),
                (1.., 0) => (b, a),
                _ => continue,
            };
            let (Some((x, at)), Some((y, to))) = (inner.key(), outer.key()) else { continue };
            if at == to && x.is_colocated(y) {
                // Relations further out are told apart by level and index, beside which inner ones keep their own numbers.
                let other = self.scope.sources.len() + outer.level * 1000 + outer.index;
                let link = Link { a: inner.index, b: other, position: at, columns: x.key.len() };
                links.push((link, &outer.source.tied));
            }
        }
        let all: Vec<Link> = links.iter().map(|(link, _)| *link).collect();
        let pairs = whole(&all).into_iter();
        pairs
            .filter_map(|(inner, other)| {
                let (_, shards) = links.iter().find(|(link, _)| link.a == inner && link.b == other)?;
                Some((inner, (*shards).clone()))
            })
            .collect()
    }

    fn one(&self, key: Option<Resolved<'a>>, limits: impl FnOnce(&Layout, usize) -> Option<Limits>) -> Sets {
        let found = key.filter(|key| key.level == 0).and_then(|key| {
            let (layout, at) = key.key()?;
            Some((key.index, Reach::limited(layout, at, limits(layout, at)?)))
        });
        found.into_iter().collect()
    }

    fn key(&self, expr: &Expr) -> Option<Resolved<'a>> {
        self.scope.column(expr).filter(|found| found.key().is_some())
    }

    /// The constant that a column of the key is compared with; `Some(None)` is NULL, which equals nothing.
    fn value(&self, layout: &Layout, at: usize, expr: &Expr) -> Option<Option<Value>> {
        self.constants.read(expr, layout.key.get(at)?.prunable()?)
    }

    fn compared(&self, layout: &Layout, at: usize, expr: &Expr, holds: &[Ordering]) -> Option<Limits> {
        let column = layout.key.get(at)?;
        // Under transform_null_equals it is IS NULL.
        if holds == [Ordering::Equal] && is_null(expr) {
            return None;
        }
        let kind = if holds == [Ordering::Equal] { column.prunable()? } else { column.ordered()? };
        match self.constants.read(expr, kind)? {
            // A comparison with NULL is never true.
            None => Some(Limits::Values(Vec::new())),
            Some(value) => Some(Limits::compared(holds, value)),
        }
    }

    /// Equalities that the condition makes between columns of shard keys, all in this scope.
    pub(super) fn links(&self, condition: &Expr) -> Vec<Link> {
        let link = |(a, b): (&Expr, &Expr)| {
            let (a, b) = self.key(a).zip(self.key(b)).filter(|(a, b)| a.level == 0 && b.level == 0)?;
            self.link(a.index, b.index, &a.column.name, &b.column.name)
        };
        equalities(condition).into_iter().filter_map(link).collect()
    }

    /// The link between two relations that such an equality makes.
    pub(super) fn link(&self, a: usize, b: usize, column_of_a: &str, column_of_b: &str) -> Option<Link> {
        let (x, y) = (self.scope.sources.get(a)?.layout()?, self.scope.sources.get(b)?.layout()?);
        let (position, other) = (x.position(column_of_a)?, y.position(column_of_b)?);
        // A relation that is equal to itself is bound to nobody.
        (a != b && position == other && x.is_colocated(y)).then_some(Link { a, b, position, columns: x.key.len() })
    }

    /// The column of a key that one row of an INSERT brings, as stored; `None` if it cannot be told before the server evaluates it.
    pub(super) fn inserted(
        constants: Constants<'a>,
        column: &crate::plan::shard_key::KeyColumn,
        expr: &Expr,
    ) -> Option<Option<Value>> {
        let kind = column.kind?;
        let value = constants.read(expr, kind)?;
        let is_stored_as_is = |value: &Value| super::constant::is_stored_as_is(value, &column.column, kind);
        value.as_ref().is_none_or(is_stored_as_is).then_some(value)
    }
}

/// Whether an expression is the word NULL.
fn is_null(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_null(inner),
        Expr::Value(value) => value.value == Literal::Null,
        _ => false,
    }
}

/// The fields of a row constructor.
fn row(expr: &Expr) -> Option<&[Expr]> {
    match expr {
        Expr::Tuple(fields) if fields.len() > 1 => Some(fields),
        _ => None,
    }
}

/// Both sides of every `=` that must hold, fields of rows one by one.
fn equalities(condition: &Expr) -> Vec<(&Expr, &Expr)> {
    match condition {
        Expr::Nested(inner) => equalities(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => [equalities(left), equalities(right)].concat(),
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => match (row(left), row(right)) {
            (Some(a), Some(b)) if a.len() == b.len() => a.iter().zip(b).collect(),
            _ => vec![(left, right)],
        },
        _ => Vec::new(),
    }
}
