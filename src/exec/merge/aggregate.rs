//! One aggregate of one group: partial results in, the final value out.

use std::cmp::Ordering;

use super::encode::Computed;
use super::fixed::Fixed;
use super::numeric;
use super::row::Row;
use super::sum::NumericSum;
use super::types::{Reader, refused, unreadable};
use crate::error::{Error, ErrorKind};
use crate::plan::distribute::{Aggregate, BitOperation, Collating};
use crate::plan::value::{Kind, Value};
use crate::wire::sqlstate::SqlState;

/// How an aggregate is merged, its types settled.
#[derive(Debug, Clone)]
pub(super) enum Method {
    Count(Reader),
    Sum(Reader),
    Avg { sum: Reader, count: Reader },
    Best { partial: Reader, wanted: Ordering },
    Bool { partial: Reader, all: bool },
    Bits { partial: Reader, operation: BitOperation },
}

/// What has been seen of one aggregate in one group.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// A count, sum or boolean.
    Value(Computed),
    /// A sum of numerics.
    Numeric(NumericSum),
    /// A sum of floats and a count.
    Avg(Computed, i64),
    /// A sum of numerics or integers and a count.
    NumericAvg(NumericSum, i64),
    /// The least or greatest, with the bytes of the visible columns that show it.
    Best(Option<Value>, Vec<Option<Box<[u8]>>>),
}

impl Method {
    /// Settles the types of an aggregate's partial results.
    ///
    /// # Errors
    /// `0A000` for a type that pgherd does not merge exactly.
    pub(super) fn new(aggregate: &Aggregate, reader: impl Fn(usize) -> Result<Reader, Error>) -> Result<Self, Error> {
        let summable = |reader: Reader, what: &str| match reader.kind {
            Kind::Int8 | Kind::Numeric | Kind::Float4 | Kind::Float8 => Ok(reader),
            _ => Err(refused(&format!("{what} over this type"))),
        };
        let best = |partial: usize, collating: Collating, wanted: Ordering| {
            let partial = reader(partial)?;
            partial.check_order(collating, "min() or max()")?;
            Ok(Self::Best { partial, wanted })
        };
        match *aggregate {
            Aggregate::Count { partial } => Ok(Self::Count(reader(partial)?)),
            Aggregate::Sum { partial } => Ok(Self::Sum(summable(reader(partial)?, "sum()")?)),
            Aggregate::Avg { sum, count } => {
                let sum = summable(reader(sum)?, "avg()")?;
                if sum.kind == Kind::Float4 {
                    return Err(refused("avg() over an expression of type real"));
                }
                Ok(Self::Avg { sum, count: reader(count)? })
            }
            Aggregate::Min { partial, collating } => best(partial, collating, Ordering::Less),
            Aggregate::Max { partial, collating } => best(partial, collating, Ordering::Greater),
            Aggregate::BoolAnd { partial } => Ok(Self::Bool { partial: reader(partial)?, all: true }),
            Aggregate::BoolOr { partial } => Ok(Self::Bool { partial: reader(partial)?, all: false }),
            Aggregate::Bits { partial, operation } => {
                let partial = reader(partial)?;
                if !matches!(partial.kind, Kind::Int2 | Kind::Int4 | Kind::Int8) {
                    return Err(refused("bitwise aggregates over this type"));
                }
                Ok(Self::Bits { partial, operation })
            }
        }
    }

    /// The kind of the final value.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Count(_) => Kind::Int8,
            Self::Sum(partial)
            | Self::Best { partial, .. }
            | Self::Bool { partial, .. }
            | Self::Bits { partial, .. } => partial.kind,
            Self::Avg { sum, .. } if matches!(sum.kind, Kind::Float4 | Kind::Float8) => Kind::Float8,
            Self::Avg { .. } => Kind::Numeric,
        }
    }

    pub(super) fn start(&self) -> State {
        match self {
            Self::Count(_) => State::Value(Computed::Int8(0)),
            Self::Sum(partial) if partial.kind == Kind::Numeric => State::Numeric(NumericSum::default()),
            Self::Sum(_) | Self::Bool { .. } | Self::Bits { .. } => State::Value(Computed::Null),
            Self::Avg { sum, .. } if matches!(sum.kind, Kind::Float4 | Kind::Float8) => State::Avg(Computed::Null, 0),
            Self::Avg { .. } => State::NumericAvg(NumericSum::default(), 0),
            Self::Best { .. } => State::Best(None, Vec::new()),
        }
    }

    /// Takes one shard's partial result in; `shown` are visible columns that show it.
    pub(super) fn take(&self, state: &mut State, row: &Row<'_>, shown: &[usize]) -> Result<(), Error> {
        match (self, state) {
            (Self::Count(partial) | Self::Sum(partial), State::Value(total)) => {
                if let Some(value) = partial.read(row)? {
                    *total = add(total, &value, partial.kind)?;
                }
            }
            (Self::Bool { partial, all }, State::Value(total)) => {
                if let Some(Value::Bool(value)) = partial.read(row)? {
                    *total = Computed::Bool(match total {
                        Computed::Bool(seen) if *all => *seen && value,
                        Computed::Bool(seen) => *seen || value,
                        _ => value,
                    });
                }
            }
            (Self::Bits { partial, operation }, State::Value(total)) => {
                if let Some(Value::Int(value)) = partial.read(row)? {
                    let merged = match (total.value(), operation) {
                        (Some(Value::Int(seen)), BitOperation::And) => seen & value,
                        (Some(Value::Int(seen)), BitOperation::Or) => seen | value,
                        (Some(Value::Int(seen)), BitOperation::Xor) => seen ^ value,
                        _ => value,
                    };
                    *total = Computed::integer(partial.kind, merged);
                }
            }
            (Self::Sum(partial), State::Numeric(total)) => {
                if row.get(partial.at).is_some_and(|bytes| !total.add(bytes)) {
                    return Err(unreadable());
                }
            }
            (Self::Avg { sum, count }, State::Avg(total, rows)) => {
                let (Some(value), Some(Value::Int(more))) = (sum.read(row)?, count.read(row)?) else {
                    return Ok(());
                };
                check_spread(total, *rows, &value, more)?;
                *total = add(total, &value, sum.kind)?;
                *rows = rows.checked_add(more).ok_or_else(|| out_of_range("bigint out of range"))?;
            }
            (Self::Avg { sum, count }, State::NumericAvg(total, rows)) => {
                let (Some(bytes), Some(Value::Int(more))) = (row.get(sum.at), count.read(row)?) else {
                    return Ok(());
                };
                if sum.kind == Kind::Numeric && !total.add(bytes) {
                    return Err(unreadable());
                }
                if let (true, Some(Value::Int(value))) = (sum.kind != Kind::Numeric, sum.read(row)?) {
                    total.add_integer(value);
                }
                *rows = rows.checked_add(more).ok_or_else(|| out_of_range("bigint out of range"))?;
            }
            (Self::Best { partial, wanted }, State::Best(best, bytes)) => {
                let Some(value) = partial.read(row)? else { return Ok(()) };
                if best.as_ref().is_none_or(|best| value.compare(best) == *wanted) {
                    *bytes = shown.iter().map(|&at| row.get(at).map(Into::into)).collect();
                    *best = Some(value);
                }
            }
            _ => return Err(Error::internal("an aggregate's state is not its own")),
        }
        Ok(())
    }
}

impl State {
    /// The final value of a count, sum, average or boolean; NULL for the others.
    pub(super) fn computed(&self) -> Computed {
        match self {
            Self::Value(value) => value.clone(),
            Self::Numeric(sum) => sum.value().map_or(Computed::Null, Computed::Numeric),
            Self::Avg(_, 0) | Self::Best(..) => Computed::Null,
            Self::Avg(Computed::Float8(sum), count) => Computed::Float8(sum / *count as f64),
            Self::Avg(..) => Computed::Null,
            Self::NumericAvg(sum, count) => {
                let average = sum.value().and_then(|sum| numeric::average(&sum, *count));
                average.map_or(Computed::Null, Computed::Numeric)
            }
        }
    }

    /// The final value of a sum or average of numerics, if it fits in a machine's integer.
    pub(super) fn fixed(&self) -> Option<Fixed> {
        match self {
            Self::Numeric(sum) => sum.fixed(),
            Self::NumericAvg(sum, count) => sum.average(*count),
            Self::Value(_) | Self::Avg(..) | Self::Best(..) => None,
        }
    }

    /// The final value for comparing.
    pub(super) fn value(&self) -> Option<Value> {
        match self {
            Self::Best(best, _) => best.clone(),
            other => other.computed().value(),
        }
    }

    /// Bytes of memory beyond its own size.
    pub(super) fn weight(&self) -> usize {
        let shown = match self {
            Self::Best(best, bytes) => {
                let shown = bytes.iter().flatten().map(|bytes| bytes.len()).sum::<usize>();
                best.as_ref().map_or(0, Value::heap_bytes) + size_of_val(bytes.as_slice()) + shown
            }
            _ => 0,
        };
        size_of::<Self>() + shown
    }
}

fn out_of_range(message: &str) -> Error {
    Error::new(ErrorKind::Backend, SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message)
}

fn add(total: &Computed, value: &Value, kind: Kind) -> Result<Computed, Error> {
    Ok(match (total, value) {
        (Computed::Null, Value::Int(value)) => Computed::Int8(*value),
        (Computed::Null, Value::Float(value)) if kind == Kind::Float4 => Computed::Float4(*value as f32),
        (Computed::Null, Value::Float(value)) => Computed::Float8(*value),
        (Computed::Int8(a), Value::Int(b)) => {
            Computed::Int8(a.checked_add(*b).ok_or_else(|| out_of_range("bigint out of range"))?)
        }
        (Computed::Float4(a), Value::Float(b)) => {
            let (b, sum) = (*b as f32, *a + *b as f32);
            Computed::Float4(finite_sum(sum, sum.is_infinite() && a.is_finite() && b.is_finite())?)
        }
        (Computed::Float8(a), Value::Float(b)) => {
            let sum = a + b;
            Computed::Float8(finite_sum(sum, sum.is_infinite() && a.is_finite() && b.is_finite())?)
        }
        _ => return Err(Error::internal("partial results of one aggregate differ in type")),
    })
}

fn finite_sum<T>(sum: T, overflows: bool) -> Result<T, Error> {
    if overflows { Err(out_of_range("value out of range: overflow")) } else { Ok(sum) }
}

/// PostgreSQL's float average tracks the sum of squares too, and fails where that overflows (`float8_combine`).
fn check_spread(total: &Computed, rows: i64, value: &Value, more: i64) -> Result<(), Error> {
    let (Computed::Float8(a), Value::Float(b)) = (total, value) else { return Ok(()) };
    let (n, m) = (rows as f64, more as f64);
    if rows == 0 || more == 0 || !a.is_finite() || !b.is_finite() {
        return Ok(());
    }
    let difference = a / n - b / m;
    finite_sum((), (n * m * difference * difference / (n + m)).is_infinite())
}
