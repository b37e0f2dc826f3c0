//! Groups that the shards give in the order of their keys: equal ones then meet at the front of the streams, and none is kept.

use sqlparser::ast::{BinaryOperator, DataType, Expr, UnaryOperator};

use super::items::{Meant, wrapped};
use super::model::{Collating, Key, Sort, SortBy};
use super::scope::parts;
use super::stream::Job;
use crate::plan::value::Kind;

/// Built-in functions that never give a text.
const NO_TEXT: [&str; 12] = [
    "date_trunc",
    "date_part",
    "date_bin",
    "extract",
    "abs",
    "floor",
    "ceil",
    "ceiling",
    "round",
    "trunc",
    "mod",
    "width_bucket",
];

/// What rows are grouped by, and how shards can give it in an order that pgherd knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupKey {
    pub(super) key: Key,
    sorted: Option<SortedAs>,
}

#[derive(Debug, Clone, Copy)]
enum SortedAs {
    /// As it stands there.
    Itself,
    /// A text, by its bytes: equal texts are equal bytes.
    Bytes,
}

impl GroupKey {
    pub(super) fn new(job: &mut Job<'_>, meant: &Meant<'_>) -> Self {
        let sorted = sorted_as(job, meant);
        Self { key: job.key(meant), sorted }
    }
}

/// The order by all keys that the answer's begins with; empty where the shards cannot give one.
pub(super) fn order(job: &mut Job<'_>, keys: &[GroupKey], sort: &[Sort]) -> Vec<Sort> {
    let hidden_of = |sort: &Sort| match sort.by {
        SortBy::Hidden(key) => Some(key.hidden),
        SortBy::Visible(..) | SortBy::Aggregate(_) => None,
    };
    let mut order: Vec<Sort> = Vec::new();
    for wanted in sort {
        let as_it_is =
            |key: &GroupKey| hidden_of(wanted) == Some(key.key.hidden) && matches!(key.sorted, Some(SortedAs::Itself));
        if !keys.iter().any(as_it_is) {
            return Vec::new();
        }
        if order.iter().all(|known| hidden_of(known) != hidden_of(wanted)) {
            order.push(*wanted);
        }
    }
    for group in keys {
        let key = match group.sorted {
            None => return Vec::new(),
            Some(SortedAs::Itself) => group.key,
            Some(SortedAs::Bytes) => by_bytes(job, group.key),
        };
        let sort = Sort { by: SortBy::Hidden(key), descending: false, nulls_first: false };
        if order.iter().all(|known| hidden_of(known) != Some(key.hidden)) {
            order.push(sort);
        }
    }
    order
}

/// The same text under a collation that sorts by bytes.
fn by_bytes(job: &mut Job<'_>, key: Key) -> Key {
    let text = job.columns.text(key.hidden).to_owned();
    let hidden = job.columns.add(wrapped(&format!("{text} COLLATE pg_catalog.\"C\"")));
    Key { hidden, collating: Collating::Bytes }
}

fn sorted_as(job: &Job<'_>, meant: &Meant<'_>) -> Option<SortedAs> {
    let expr = match meant {
        Meant::Item(at) => job.items.all[*at].expr,
        Meant::Expr(expr, _) => Some(*expr),
    };
    let column = match (expr, meant) {
        (Some(expr), _) => job.scope.column(expr).filter(|found| found.level == 0),
        (None, Meant::Item(at)) => job.column_of(&job.items.all[*at]),
        (None, Meant::Expr(..)) => None,
    };
    if let Some(found) = column {
        let kind = Kind::of(found.column.type_oid)?;
        return match job.collating_of(found.column.collation) {
            _ if !kind.is_collatable() => Some(SortedAs::Itself),
            Collating::Bytes => Some(SortedAs::Itself),
            // Padding does not count, and bytes would.
            Collating::Deterministic if kind != Kind::Bpchar => Some(SortedAs::Bytes),
            Collating::Deterministic | Collating::Unknown => None,
        };
    }
    let expr = expr?;
    (job.collating(expr) == Collating::Bytes || is_no_text(job, expr)).then_some(SortedAs::Itself)
}

/// Whether an expression is certain to give no text.
fn is_no_text(job: &Job<'_>, expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_no_text(job, inner),
        Expr::Extract { .. } | Expr::Ceil { .. } | Expr::Floor { .. } => true,
        Expr::IsNull(_) | Expr::IsNotNull(_) | Expr::IsTrue(_) | Expr::IsFalse(_) | Expr::Between { .. } => true,
        Expr::Cast { data_type, .. } => is_no_text_type(data_type),
        Expr::UnaryOp { op, .. } => matches!(op, UnaryOperator::Minus | UnaryOperator::Plus | UnaryOperator::Not),
        Expr::BinaryOp { op, .. } => matches!(
            op,
            BinaryOperator::Plus
                | BinaryOperator::Minus
                | BinaryOperator::Multiply
                | BinaryOperator::Divide
                | BinaryOperator::Modulo
                | BinaryOperator::Eq
                | BinaryOperator::NotEq
                | BinaryOperator::Lt
                | BinaryOperator::LtEq
                | BinaryOperator::Gt
                | BinaryOperator::GtEq
                | BinaryOperator::And
                | BinaryOperator::Or
        ),
        Expr::Function(function) => parts(&function.name)
            .is_some_and(|(schema, name)| NO_TEXT.contains(&name) && job.functions.is_built_in(schema, name)),
        _ => false,
    }
}

fn is_no_text_type(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::SmallInt(_)
            | DataType::Int(_)
            | DataType::Integer(_)
            | DataType::BigInt(_)
            | DataType::Int2(_)
            | DataType::Int4(_)
            | DataType::Int8(_)
            | DataType::Numeric(_)
            | DataType::Decimal(_)
            | DataType::Real
            | DataType::DoublePrecision
            | DataType::Boolean
            | DataType::Bool
            | DataType::Date
            | DataType::Timestamp(..)
            | DataType::Uuid
    )
}
