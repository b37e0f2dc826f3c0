//! Constants that a shard key is compared with: literals, typed literals, casts and bound parameters.
//!
//! A constant counts only if it coerces to the key's type without changing the operator that PostgreSQL would choose.

use sqlparser::ast::{
    ArrayElemTypeDef, CastKind, DataType, ExactNumberInfo, Expr, TimezoneInfo, UnaryOperator, Value as Literal,
    ValueWithSpan,
};

use super::array;
use super::model::Input;
use super::source::Source;
use crate::catalog::model::{Column, Oid};
use crate::plan::value::{Decimal, Kind, Numeric, Value};
use crate::sql::parse;

const UNKNOWN: Oid = 705;

/// A constant: NULL or a value of the key's kind.
pub(super) type Constant = Option<Value>;

/// Reads constants of one statement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Constants<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) source: &'a Source<'a>,
}

impl Constants<'_> {
    /// The expression's value as the key's kind; `None` if it is not a constant, or not one of a fitting type.
    pub(super) fn read(&self, expr: &Expr, kind: Kind) -> Option<Constant> {
        match expr {
            Expr::Nested(inner) => self.read(inner, kind),
            Expr::Value(value) => self.literal(value, kind),
            Expr::UnaryOp { op: UnaryOperator::Plus, expr } => self.number(expr, kind, false),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => self.number(expr, kind, true),
            Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr, data_type, format: None } => {
                self.cast(expr, kind_of(data_type)?, kind)
            }
            Expr::TypedString(typed) => {
                let named = kind_of(&typed.data_type)?;
                convert(self.literal(&typed.value, named)?, named, kind)
            }
            _ => None,
        }
    }

    /// The elements of a constant array of the key's kind: `ARRAY[...]`, `'{...}'` or a parameter; `None` if it is not one that
    /// can be read. A NULL array has none.
    pub(super) fn array(&self, expr: &Expr, kind: Kind) -> Option<Vec<Constant>> {
        match expr {
            Expr::Nested(inner) => self.array(inner, kind),
            // Of elements without a type it is text[], and its operator another one than the key's, if there is one.
            Expr::Array(array) if !kind.is_collatable() && array.elem.iter().all(|it| self.is_untyped(it)) => None,
            Expr::Array(array) => self.all(&array.elem, kind),
            Expr::Cast {
                kind: CastKind::Cast | CastKind::DoubleColon,
                expr,
                data_type: DataType::Array(ArrayElemTypeDef::SquareBracket(element, None)),
                format: None,
            } => {
                let named = kind_of(element)?;
                let elements = match &**expr {
                    Expr::Value(value) => self.written_array(value, named)?,
                    Expr::Array(array) => self.all(&array.elem, named)?,
                    expr => self.array(expr, named)?,
                };
                elements.into_iter().map(|element| convert(element, named, kind)).collect()
            }
            Expr::Value(value) => self.written_array(value, kind),
            _ => None,
        }
    }

    fn all(&self, elements: &[Expr], kind: Kind) -> Option<Vec<Constant>> {
        elements.iter().map(|element| self.read(element, kind)).collect()
    }

    /// Whether a value takes the type that its place asks for.
    fn is_untyped(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Nested(inner) => self.is_untyped(inner),
            Expr::Value(ValueWithSpan { value: Literal::Null | Literal::SingleQuotedString(_), .. }) => true,
            Expr::Value(ValueWithSpan { value: Literal::Placeholder(name), .. }) => {
                let number = name.strip_prefix('$').and_then(|number| number.parse().ok());
                let parameter = number.and_then(|number| self.input.parameters?.get(number));
                parameter.is_none_or(|(oid, ..)| oid == 0 || oid == UNKNOWN)
            }
            _ => false,
        }
    }

    fn written_array(&self, value: &ValueWithSpan, kind: Kind) -> Option<Vec<Constant>> {
        match &value.value {
            Literal::Null => Some(Vec::new()),
            Literal::SingleQuotedString(text) if !self.source.is_national(parse::offset(value.span.start)?) => {
                self.elements(text, kind)
            }
            Literal::Placeholder(name) => {
                let number = name.strip_prefix('$')?.parse().ok()?;
                let (oid, is_binary, bytes) = self.input.parameters?.get(number)?;
                let named = if oid == 0 || oid == UNKNOWN { kind } else { element_kind(oid)? };
                let elements = match bytes {
                    None => Vec::new(),
                    Some(bytes) if is_binary => {
                        let is_readable =
                            !named.is_collatable() || self.input.session.same_encoding || bytes.is_ascii();
                        array::from_binary(bytes, named).filter(|_| is_readable)?
                    }
                    Some(bytes) => self.elements(std::str::from_utf8(bytes).ok()?, named)?,
                };
                elements.into_iter().map(|element| convert(element, named, kind)).collect()
            }
            _ => None,
        }
    }

    fn elements(&self, text: &str, kind: Kind) -> Option<Vec<Constant>> {
        let element = |text: Option<String>| match text {
            None => Some(None),
            Some(text) => self.text(&text, kind).map(Some),
        };
        array::parse(text)?.into_iter().map(element).collect()
    }

    fn cast(&self, expr: &Expr, named: Kind, kind: Kind) -> Option<Constant> {
        let value = match expr {
            Expr::Value(ValueWithSpan { value: Literal::Placeholder(name), .. }) => self.parameter(name, named)?,
            expr => self.read(expr, named)?,
        };
        convert(value, named, kind)
    }

    fn literal(&self, value: &ValueWithSpan, kind: Kind) -> Option<Constant> {
        match &value.value {
            Literal::Null => Some(None),
            Literal::Boolean(value) if kind == Kind::Bool => Some(Some(Value::Bool(*value))),
            Literal::Number(digits, _) => number(digits, kind, false).map(Some),
            Literal::SingleQuotedString(text) => {
                if self.source.is_national(parse::offset(value.span.start)?) {
                    return None;
                }
                self.text(text, kind).map(Some)
            }
            Literal::Placeholder(name) => self.parameter(name, kind),
            _ => None,
        }
    }

    fn number(&self, expr: &Expr, kind: Kind, negative: bool) -> Option<Constant> {
        match expr {
            Expr::Value(ValueWithSpan { value: Literal::Number(digits, _), .. }) => {
                number(digits, kind, negative).map(Some)
            }
            _ => None,
        }
    }

    fn text(&self, text: &str, kind: Kind) -> Option<Value> {
        let is_readable = self.input.session.same_encoding || text.is_ascii();
        Value::parse(kind, text).filter(|_| is_readable)
    }

    fn parameter(&self, name: &str, kind: Kind) -> Option<Constant> {
        let number = name.strip_prefix('$')?.parse().ok()?;
        let (oid, is_binary, bytes) = self.input.parameters?.get(number)?;
        let named = if oid == 0 || oid == UNKNOWN { kind } else { Kind::of(oid)? };
        let value = match bytes {
            None => None,
            Some(bytes) if is_binary => {
                let is_readable = !named.is_collatable() || self.input.session.same_encoding || bytes.is_ascii();
                Some(Value::from_binary(named, bytes).filter(|_| is_readable)?)
            }
            Some(bytes) => Some(self.text(std::str::from_utf8(bytes).ok()?, named)?),
        };
        convert(value, named, kind)
    }

    /// A row count of LIMIT or OFFSET: NULL or a number; `None` if it is neither a constant nor a bound parameter.
    pub(super) fn count(&self, expr: &Expr) -> Option<Option<i64>> {
        match self.read(expr, Kind::Int8)? {
            None => Some(None),
            Some(Value::Int(count)) => Some(Some(count)),
            Some(_) => None,
        }
    }
}

/// The kind of an array type's elements.
fn element_kind(oid: Oid) -> Option<Kind> {
    Some(match oid {
        1000 => Kind::Bool,
        1001 => Kind::Bytea,
        1005 => Kind::Int2,
        1007 => Kind::Int4,
        1009 => Kind::Text,
        1015 => Kind::Varchar,
        1016 => Kind::Int8,
        1115 => Kind::Timestamp,
        1182 => Kind::Date,
        1185 => Kind::TimestampTz,
        1231 => Kind::Numeric,
        2951 => Kind::Uuid,
        _ => return None,
    })
}

/// A value of type `from` where a column of type `to` is meant, if the operator stays one of the key's own.
fn convert(value: Constant, from: Kind, to: Kind) -> Option<Constant> {
    let is_text = |kind| matches!(kind, Kind::Text | Kind::Varchar);
    match value {
        value if from == to => Some(value),
        value if from.is_integer() && to.is_integer() => Some(value),
        value if is_text(from) && is_text(to) => Some(value),
        Some(Value::Int(value)) if from.is_integer() && to == Kind::Numeric => {
            Some(Some(Value::Numeric(Numeric::from_i128(i128::from(value)))))
        }
        _ => None,
    }
}

fn number(digits: &str, kind: Kind, negative: bool) -> Option<Value> {
    if kind.is_integer() {
        let value: i64 = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
        return Some(Value::Int(if negative { -value } else { value }));
    }
    let sign = if negative { "-" } else { "" };
    (kind == Kind::Numeric).then(|| Numeric::parse(&format!("{sign}{digits}")).map(Value::Numeric))?
}

/// The kind that a type's name stands for, where it has no modifier that could change a value.
fn kind_of(data_type: &DataType) -> Option<Kind> {
    Some(match data_type {
        DataType::SmallInt(None) | DataType::Int2(None) => Kind::Int2,
        DataType::Int(None) | DataType::Integer(None) | DataType::Int4(None) => Kind::Int4,
        DataType::BigInt(None) | DataType::Int8(None) => Kind::Int8,
        DataType::Numeric(ExactNumberInfo::None) | DataType::Decimal(ExactNumberInfo::None) => Kind::Numeric,
        DataType::Text => Kind::Text,
        DataType::Varchar(None) | DataType::CharacterVarying(None) => Kind::Varchar,
        DataType::Uuid => Kind::Uuid,
        DataType::Bytea => Kind::Bytea,
        DataType::Bool | DataType::Boolean => Kind::Bool,
        DataType::Date => Kind::Date,
        DataType::Timestamp(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => Kind::Timestamp,
        DataType::Timestamp(None, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => Kind::TimestampTz,
        _ => return None,
    })
}

/// Whether storing the value in the column leaves it as it is: PostgreSQL rounds and trims to the column's modifier.
pub(super) fn is_stored_as_is(value: &Value, column: &Column, kind: Kind) -> bool {
    let within = |low: i64, high: i64, value: i64| (low..=high).contains(&value);
    let modifier = column.typmod;
    match (value, kind) {
        (Value::Int(value), Kind::Int2) => within(i64::from(i16::MIN), i64::from(i16::MAX), *value),
        (Value::Int(value), Kind::Int4) => within(i64::from(i32::MIN), i64::from(i32::MAX), *value),
        (Value::Int(value), Kind::Timestamp | Kind::TimestampTz) => match modifier {
            0..=5 => value % 10_i64.pow(6 - modifier as u32) == 0 || *value == i64::MAX || *value == i64::MIN,
            _ => true,
        },
        (Value::Numeric(Numeric::Finite(value)), Kind::Numeric) if modifier >= 4 => {
            // The scale is an 11-bit signed number in the modifier's low bits.
            let scale = (((modifier - 4) & 0x7ff) ^ 1024) - 1024;
            decimals(value) <= scale
        }
        (Value::Bytes(value), Kind::Varchar | Kind::Bpchar) if modifier >= 4 => {
            std::str::from_utf8(value).is_ok_and(|text| text.chars().count() as i64 <= i64::from(modifier - 4))
        }
        _ => true,
    }
}

/// Decimals that are needed to write the value, trailing zeros left out; below zero for multiples of ten.
fn decimals(value: &Decimal) -> i32 {
    let Some(last) = value.digits.last() else { return i32::MIN };
    let trailing = (0..4).take_while(|&place| last % 10_i16.pow(place + 1) == 0).count() as i32;
    (value.digits.len() as i32 - 1 - value.weight) * 4 - trailing
}
