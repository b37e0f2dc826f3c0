//! HAVING on merged groups: aggregates against numbers, IS NULL, joined by AND, OR, NOT.

use std::cmp::Ordering;

use sqlparser::ast::{BinaryOperator, Expr, UnaryOperator, Value as Literal, ValueWithSpan};

use super::group::Aggregates;
use super::model::Condition;
use super::refuse::refuse;
use super::stream::Job;
use crate::plan::Refusal;
use crate::plan::value::{Kind, Numeric, Value};

/// Reads a condition on groups.
///
/// # Errors
/// Anything but comparisons of an aggregate with a number.
pub(super) fn read(job: &mut Job<'_>, aggregates: &mut Aggregates, expr: &Expr) -> Result<Condition, Refusal> {
    match expr {
        Expr::Nested(inner) => read(job, aggregates, inner),
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => Ok(Condition::Not(Box::new(read(job, aggregates, expr)?))),
        Expr::BinaryOp { left, op: op @ (BinaryOperator::And | BinaryOperator::Or), right } => {
            let (left, right) = (Box::new(read(job, aggregates, left)?), Box::new(read(job, aggregates, right)?));
            Ok(if *op == BinaryOperator::And { Condition::And(left, right) } else { Condition::Or(left, right) })
        }
        Expr::BinaryOp { left, op, right } => {
            let holds = holds(op).ok_or_else(unsupported)?;
            if let Some(number) = number(job, right) {
                return compare(job, aggregates, left, holds, number);
            }
            let number = number(job, left).ok_or_else(unsupported)?;
            let flipped = holds.into_iter().map(Ordering::reverse).collect();
            compare(job, aggregates, right, flipped, number)
        }
        Expr::Between { expr, negated, low, high } => {
            let (low, high) = (number(job, low).ok_or_else(unsupported)?, number(job, high).ok_or_else(unsupported)?);
            let low = compare(job, aggregates, expr, vec![Ordering::Greater, Ordering::Equal], low)?;
            let high = compare(job, aggregates, expr, vec![Ordering::Less, Ordering::Equal], high)?;
            let both = Condition::And(Box::new(low), Box::new(high));
            Ok(if *negated { Condition::Not(Box::new(both)) } else { both })
        }
        Expr::IsNull(inner) => is_null(job, aggregates, inner, false),
        Expr::IsNotNull(inner) => is_null(job, aggregates, inner, true),
        _ => Err(unsupported()),
    }
}

fn unsupported() -> Refusal {
    refuse(
        "having",
        "HAVING over groups of several shards compares aggregates with numbers only",
        "group by the shard key, or filter in the client",
    )
}

fn compare(
    job: &mut Job<'_>,
    aggregates: &mut Aggregates,
    expr: &Expr,
    holds: Vec<Ordering>,
    number: Numeric,
) -> Result<Condition, Refusal> {
    let aggregate = aggregates.of(job, expr)?.ok_or_else(unsupported)?;
    Ok(Condition::Compare { aggregate, holds, number })
}

fn is_null(job: &mut Job<'_>, aggregates: &mut Aggregates, expr: &Expr, negated: bool) -> Result<Condition, Refusal> {
    let aggregate = aggregates.of(job, expr)?.ok_or_else(unsupported)?;
    Ok(Condition::IsNull { aggregate, negated })
}

/// A number, or a parameter declared as one. An undeclared parameter takes the aggregate's type, which is not known yet.
fn number(job: &Job<'_>, expr: &Expr) -> Option<Numeric> {
    if let Expr::Value(ValueWithSpan { value: Literal::Placeholder(name), .. }) = expr {
        let number = name.strip_prefix('$')?.parse().ok()?;
        let (oid, _, _) = job.constants.input.parameters?.get(number)?;
        Kind::of(oid).filter(|kind| kind.is_integer() || *kind == Kind::Numeric)?;
    }
    if matches!(expr, Expr::Value(ValueWithSpan { value: Literal::SingleQuotedString(_) | Literal::Null, .. })) {
        return None;
    }
    match job.constants.read(expr, Kind::Numeric)?? {
        Value::Numeric(value) => Some(value),
        _ => None,
    }
}

fn holds(op: &BinaryOperator) -> Option<Vec<Ordering>> {
    use Ordering::{Equal, Greater, Less};
    Some(match op {
        BinaryOperator::Eq => vec![Equal],
        BinaryOperator::NotEq => vec![Less, Greater],
        BinaryOperator::Lt => vec![Less],
        BinaryOperator::LtEq => vec![Less, Equal],
        BinaryOperator::Gt => vec![Greater],
        BinaryOperator::GtEq => vec![Greater, Equal],
        _ => return None,
    })
}
