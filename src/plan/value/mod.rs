//! Values of the types that pgherd reads itself, decoded from text or binary form and compared exactly as PostgreSQL does.

pub mod binary;
pub mod datetime;
pub mod numeric;

use std::cmp::Ordering;

pub use numeric::{Decimal, Numeric};

use crate::catalog::model::Oid;

/// A type that pgherd can read and compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`
    Numeric,
    /// `date`
    Date,
    /// `time`
    Time,
    /// `timestamp`
    Timestamp,
    /// `timestamptz`
    TimestampTz,
    /// `interval`
    Interval,
    /// `uuid`
    Uuid,
    /// `bytea`
    Bytea,
    /// `text` and `name`
    Text,
    /// `varchar`
    Varchar,
    /// `char(n)`
    Bpchar,
}

impl Kind {
    /// The kind of that type, if it is one of ours.
    pub fn of(oid: Oid) -> Option<Self> {
        Some(match oid {
            16 => Self::Bool,
            17 => Self::Bytea,
            19 | 25 => Self::Text,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            700 => Self::Float4,
            701 => Self::Float8,
            1042 => Self::Bpchar,
            1043 => Self::Varchar,
            1082 => Self::Date,
            1083 => Self::Time,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            1186 => Self::Interval,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            _ => return None,
        })
    }

    /// Whether its order and equality hang on a collation.
    pub fn is_collatable(self) -> bool {
        matches!(self, Self::Text | Self::Varchar | Self::Bpchar)
    }

    /// Whether it is one of the three integer types, whose operators mix freely.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int2 | Self::Int4 | Self::Int8)
    }
}

/// One value, not NULL. Values of the same [`Kind`] can be compared.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `boolean`
    Bool(bool),
    /// Integers; days of a date; microseconds of times and timestamps.
    Int(i64),
    /// `real` and `double precision`
    Float(f64),
    /// `numeric`
    Numeric(Numeric),
    /// An interval as the microseconds that PostgreSQL compares (a month is 30 days).
    Span(i128),
    /// `uuid`, `bytea`, texts; `char(n)` without its padding.
    Bytes(Box<[u8]>),
}

impl Value {
    /// Bytes of memory beyond its own size.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Numeric(Numeric::Finite(decimal)) => size_of_val(decimal.digits.as_slice()),
            _ => 0,
        }
    }

    /// Reads PostgreSQL's binary form; `None` if the bytes are not one.
    pub fn from_binary(kind: Kind, bytes: &[u8]) -> Option<Self> {
        Some(match kind {
            Kind::Bool => Self::Bool(*bytes.first().filter(|_| bytes.len() == 1)? != 0),
            Kind::Int2 => Self::Int(i64::from(i16::from_be_bytes(bytes.try_into().ok()?))),
            Kind::Int4 | Kind::Date => Self::Int(i64::from(i32::from_be_bytes(bytes.try_into().ok()?))),
            Kind::Int8 | Kind::Time | Kind::Timestamp | Kind::TimestampTz => {
                Self::Int(i64::from_be_bytes(bytes.try_into().ok()?))
            }
            Kind::Float4 => Self::Float(f64::from(f32::from_be_bytes(bytes.try_into().ok()?))),
            Kind::Float8 => Self::Float(f64::from_be_bytes(bytes.try_into().ok()?)),
            Kind::Numeric => Self::Numeric(Numeric::from_binary(bytes)?),
            Kind::Interval => interval(bytes)?,
            Kind::Uuid => Self::Bytes(Some(bytes).filter(|bytes| bytes.len() == 16)?.into()),
            Kind::Bytea | Kind::Text | Kind::Varchar => Self::Bytes(bytes.into()),
            Kind::Bpchar => Self::Bytes(trim_padding(bytes).into()),
        })
    }

    /// Reads a text form that means the same under all settings; `None` for every other spelling, and for what PostgreSQL refuses.
    pub fn parse(kind: Kind, text: &str) -> Option<Self> {
        Some(match kind {
            Kind::Bool => Self::Bool(boolean(text)?),
            Kind::Int2 => Self::Int(integer(text).filter(|&value| i16::try_from(value).is_ok())?),
            Kind::Int4 => Self::Int(integer(text).filter(|&value| i32::try_from(value).is_ok())?),
            Kind::Int8 => Self::Int(integer(text)?),
            Kind::Numeric => Self::Numeric(Numeric::parse(text)?),
            Kind::Date => Self::Int(datetime::date(text)?),
            Kind::Time => Self::Int(datetime::time(text)?),
            Kind::Timestamp => Self::Int(datetime::timestamp(text)?),
            Kind::TimestampTz => Self::Int(datetime::timestamptz(text)?),
            Kind::Uuid => Self::Bytes(uuid(text)?.into()),
            Kind::Bytea => Self::Bytes(bytea(text)?.into()),
            Kind::Text | Kind::Varchar => Self::Bytes(text.as_bytes().into()),
            Kind::Bpchar => Self::Bytes(trim_padding(text.as_bytes()).into()),
            Kind::Float4 | Kind::Float8 | Kind::Interval => return None,
        })
    }

    /// PostgreSQL's order of two values of one kind; texts by bytes, which is right only under byte-order collations.
    pub fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => float(*a, *b),
            (Self::Numeric(a), Self::Numeric(b)) => a.compare(b),
            (Self::Span(a), Self::Span(b)) => a.cmp(b),
            (Self::Bytes(a), Self::Bytes(b)) => a.cmp(b),
            _ => Ordering::Equal,
        }
    }

    /// Appends bytes that are the same for two values of one kind exactly if PostgreSQL calls the values equal.
    pub fn canonical(&self, out: &mut Vec<u8>) {
        match self {
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Int(value) => out.extend_from_slice(&value.to_be_bytes()),
            Self::Float(value) => {
                let value = if value.is_nan() { f64::NAN } else { *value + 0.0 };
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::Numeric(value) => canonical_numeric(value, out),
            Self::Span(value) => out.extend_from_slice(&value.to_be_bytes()),
            Self::Bytes(value) => {
                out.extend_from_slice(&(value.len() as u64).to_be_bytes());
                out.extend_from_slice(value);
            }
        }
    }
}

/// PostgreSQL's order of floats: NaN is equal to itself and greater than all else, -0 equals 0.
pub fn float(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn canonical_numeric(value: &Numeric, out: &mut Vec<u8>) {
    match value {
        Numeric::NaN => out.push(0),
        Numeric::Infinity => out.push(1),
        Numeric::NegativeInfinity => out.push(2),
        Numeric::Finite(value) => {
            out.push(3 + u8::from(value.negative));
            out.extend_from_slice(&value.weight.to_be_bytes());
            out.extend_from_slice(&(value.digits.len() as u32).to_be_bytes());
            value.digits.iter().for_each(|digit| out.extend_from_slice(&digit.to_be_bytes()));
        }
    }
}

fn interval(bytes: &[u8]) -> Option<Value> {
    let bytes: &[u8; 16] = bytes.try_into().ok()?;
    let word = |at: usize| i128::from(i32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
    let micros = i128::from(i64::from_be_bytes(*bytes.first_chunk()?));
    Some(Value::Span(micros + (word(8) + word(12) * 30) * 86_400_000_000))
}

fn trim_padding(bytes: &[u8]) -> &[u8] {
    let kept = bytes.iter().rposition(|&byte| byte != b' ').map_or(0, |last| last + 1);
    &bytes[..kept]
}

fn blank_trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b')
}

fn integer(text: &str) -> Option<i64> {
    let text = blank_trimmed(text);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// `boolin`: any unique prefix of true, false, yes, no, on, off; 1 and 0.
fn boolean(text: &str) -> Option<bool> {
    let text = blank_trimmed(text).to_ascii_lowercase();
    if text.is_empty() {
        return None;
    }
    match text.as_str() {
        "1" | "on" => Some(true),
        "0" | "of" | "off" => Some(false),
        text if "true".starts_with(text) || "yes".starts_with(text) => Some(true),
        text if "false".starts_with(text) || "no".starts_with(text) => Some(false),
        _ => None,
    }
}

fn uuid(text: &str) -> Option<Vec<u8>> {
    let bare = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    let is_hyphenated =
        bare.len() == 36 && bare.bytes().enumerate().all(|(at, byte)| (byte == b'-') == matches!(at, 8 | 13 | 18 | 23));
    let digits: String = if is_hyphenated { bare.replace('-', "") } else { bare.to_owned() };
    hex(&digits).filter(|bytes| bytes.len() == 16)
}

fn bytea(text: &str) -> Option<Vec<u8>> {
    match text.strip_prefix("\\x") {
        Some(digits) => hex(digits),
        None if text.contains('\\') || !text.is_ascii() => None,
        None => Some(text.as_bytes().to_vec()),
    }
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let nibble = |byte: u8| (byte as char).to_digit(16);
    let pairs = digits.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some((nibble(pair[0])? * 16 + nibble(pair[1])?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        value.canonical(&mut out);
        out
    }

    #[test]
    fn equal_values_are_the_same_bytes_and_others_are_not() {
        let numeric = |text| Value::parse(Kind::Numeric, text).expect(text);
        assert_eq!(canonical(&numeric("1.0")), canonical(&numeric("1.00")));
        assert_ne!(canonical(&numeric("1.0")), canonical(&numeric("-1")));
        assert_eq!(canonical(&Value::Float(-0.0)), canonical(&Value::Float(0.0)));
        assert_eq!(canonical(&Value::Float(f64::NAN)), canonical(&Value::Float(-f64::NAN)));
        let padded = |text| Value::parse(Kind::Bpchar, text).expect(text);
        assert_eq!(canonical(&padded("a  ")), canonical(&padded("a")));
    }

    #[test]
    fn nan_is_the_greatest_float() {
        assert_eq!(float(f64::NAN, f64::INFINITY), Ordering::Greater);
        assert_eq!(float(f64::NAN, f64::NAN), Ordering::Equal);
        assert_eq!(float(-0.0, 0.0), Ordering::Equal);
    }

    #[test]
    fn an_interval_is_compared_by_its_length() {
        let of = |micros: i64, days: i32, months: i32| {
            let bytes = [&micros.to_be_bytes()[..], &days.to_be_bytes(), &months.to_be_bytes()].concat();
            Value::from_binary(Kind::Interval, &bytes).expect("16 bytes")
        };
        assert_eq!(of(86_400_000_000, 0, 0).compare(&of(0, 1, 0)), Ordering::Equal);
        assert_eq!(of(0, 31, 0).compare(&of(0, 0, 1)), Ordering::Greater);
    }

    #[test]
    fn texts_that_are_no_value_are_none() {
        assert_eq!(Value::parse(Kind::Int2, "40000"), None);
        assert_eq!(Value::parse(Kind::Int4, "1.5"), None);
        assert_eq!(Value::parse(Kind::Bool, "o"), None);
        assert_eq!(Value::parse(Kind::Bool, "tr"), Some(Value::Bool(true)));
        assert_eq!(Value::parse(Kind::Uuid, "0-0"), None);
        assert_eq!(Value::parse(Kind::Bytea, "\\x0"), None);
        assert_eq!(Value::from_binary(Kind::Int4, b"\0"), None);
    }
}
