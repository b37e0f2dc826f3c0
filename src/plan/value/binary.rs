//! Values compared where they lie, in PostgreSQL's binary form: what rows are merged by, with nothing decoded into memory of its own.

use std::cmp::Ordering;

use super::numeric::{BASE, NAN, NEGATIVE, NEGATIVE_INFINITY, POSITIVE_INFINITY};
use super::{Kind, float, trim_padding};

/// Whether the bytes are the binary form of a value of that kind; the other functions take nothing else.
pub fn is_value(kind: Kind, bytes: &[u8]) -> bool {
    match kind {
        Kind::Bool => bytes.len() == 1,
        Kind::Int2 => bytes.len() == 2,
        Kind::Int4 | Kind::Date | Kind::Float4 => bytes.len() == 4,
        Kind::Int8 | Kind::Time | Kind::Timestamp | Kind::TimestampTz | Kind::Float8 => bytes.len() == 8,
        Kind::Interval | Kind::Uuid => bytes.len() == 16,
        Kind::Bytea | Kind::Text | Kind::Varchar | Kind::Bpchar => true,
        Kind::Numeric => Wide::read(bytes).is_some(),
    }
}

/// PostgreSQL's order of two values of one kind; texts by bytes, which is right only under byte-order collations.
pub fn compare(kind: Kind, a: &[u8], b: &[u8]) -> Ordering {
    match kind {
        Kind::Bool => a.first().map(|byte| *byte != 0).cmp(&b.first().map(|byte| *byte != 0)),
        Kind::Float4 | Kind::Float8 => float(floating(a), floating(b)),
        Kind::Interval => span(a).cmp(&span(b)),
        Kind::Uuid | Kind::Bytea | Kind::Text | Kind::Varchar => a.cmp(b),
        Kind::Bpchar => trim_padding(a).cmp(trim_padding(b)),
        Kind::Numeric => match (Wide::read(a), Wide::read(b)) {
            (Some(a), Some(b)) => a.compare(&b),
            (a, b) => a.is_some().cmp(&b.is_some()),
        },
        _ => integer(a).cmp(&integer(b)),
    }
}

/// A number that is never greater for the lesser of two values of one kind: where two numbers differ, so do the values.
pub fn prefix(kind: Kind, bytes: &[u8]) -> u64 {
    const SIGN: u64 = 1 << 63;
    match kind {
        Kind::Bool => u64::from(bytes.first().is_some_and(|byte| *byte != 0)),
        Kind::Float4 | Kind::Float8 => match floating(bytes) {
            value if value.is_nan() => u64::MAX,
            value => {
                let bits = (value + 0.0).to_bits();
                if bits & SIGN == 0 { bits | SIGN } else { !bits }
            }
        },
        Kind::Interval => {
            let clamped = span(bytes).clamp(i128::from(i64::MIN), i128::from(i64::MAX));
            clamped as i64 as u64 ^ SIGN
        }
        Kind::Uuid | Kind::Bytea | Kind::Text | Kind::Varchar => first_bytes(bytes),
        Kind::Bpchar => first_bytes(trim_padding(bytes)),
        Kind::Numeric => Wide::read(bytes).map_or(0, |wide| wide.prefix()),
        _ => integer(bytes) as u64 ^ SIGN,
    }
}

/// Whether values of that kind are equal where their [`prefix`]es are.
pub fn is_told_by_prefix(kind: Kind) -> bool {
    matches!(kind, Kind::Bool | Kind::Float4 | Kind::Float8)
        || kind.is_integer()
        || matches!(kind, Kind::Date | Kind::Time | Kind::Timestamp | Kind::TimestampTz)
}

/// Appends what [`super::Value::canonical`] does.
pub fn canonical(kind: Kind, bytes: &[u8], out: &mut Vec<u8>) {
    let text = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        out.extend_from_slice(bytes);
    };
    match kind {
        Kind::Bool => out.push(u8::from(bytes.first().is_some_and(|byte| *byte != 0))),
        Kind::Float4 | Kind::Float8 => {
            let value = floating(bytes);
            let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
            out.extend_from_slice(&value.to_be_bytes());
        }
        Kind::Interval => out.extend_from_slice(&span(bytes).to_be_bytes()),
        Kind::Uuid | Kind::Bytea | Kind::Text | Kind::Varchar => text(out, bytes),
        Kind::Bpchar => text(out, trim_padding(bytes)),
        Kind::Numeric => match Wide::read(bytes) {
            Some(Wide::Finite { negative, weight, digits }) => {
                out.push(3 + u8::from(negative));
                out.extend_from_slice(&weight.to_be_bytes());
                out.extend_from_slice(&((digits.len() / 2) as u32).to_be_bytes());
                out.extend_from_slice(digits);
            }
            Some(Wide::NegativeInfinity) => out.push(2),
            Some(Wide::Infinity) => out.push(1),
            Some(Wide::NaN) | None => out.push(0),
        },
        _ => out.extend_from_slice(&integer(bytes).to_be_bytes()),
    }
}

/// A big-endian integer of two, four or eight bytes.
pub(super) fn integer(bytes: &[u8]) -> i64 {
    match *bytes {
        [a, b] => i64::from(i16::from_be_bytes([a, b])),
        [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => i64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}

fn floating(bytes: &[u8]) -> f64 {
    match *bytes {
        [a, b, c, d] => f64::from(f32::from_be_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => f64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => f64::NAN,
    }
}

/// An interval as the microseconds that PostgreSQL compares (a month is 30 days).
pub(super) fn span(bytes: &[u8]) -> i128 {
    let part = |from: usize, to: usize| i128::from(integer(bytes.get(from..to).unwrap_or_default()));
    part(0, 8) + (part(8, 12) + part(12, 16) * 30) * 86_400_000_000
}

/// The first eight bytes, as if zeros followed.
fn first_bytes(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    let len = bytes.len().min(8);
    first[..len].copy_from_slice(&bytes[..len]);
    u64::from_be_bytes(first)
}

/// A `numeric` where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wide<'a> {
    /// Not a number.
    NaN,
    /// `Infinity`
    Infinity,
    /// `-Infinity`
    NegativeInfinity,
    /// Anything else; zero has no digits, no weight and no sign.
    Finite {
        /// Below zero.
        negative: bool,
        /// The power of 10000 of the first digit.
        weight: i32,
        /// Base-10000 digits of two bytes each, most significant first, without zeros at either end.
        digits: &'a [u8],
    },
}

impl<'a> Wide<'a> {
    /// Reads the binary form; `None` where [`super::Numeric::from_binary`] gives none.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (head, mut digits) = bytes.split_first_chunk::<8>()?;
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let is_digit = |pair: &[u8]| u16::from_be_bytes([pair[0], pair[1]]) < BASE as u16;
        if digits.len() != usize::from(word(0)) * 2 || word(6) > 0x3FFF || !digits.chunks_exact(2).all(is_digit) {
            return None;
        }
        let negative = match word(4) {
            0 => false,
            NEGATIVE => true,
            NAN => return Some(Self::NaN),
            POSITIVE_INFINITY => return Some(Self::Infinity),
            NEGATIVE_INFINITY => return Some(Self::NegativeInfinity),
            _ => return None,
        };
        let mut weight = i32::from(word(2) as i16);
        while let [0, 0, rest @ ..] = digits {
            (digits, weight) = (rest, weight - 1);
        }
        while let [rest @ .., 0, 0] = digits {
            digits = rest;
        }
        let is_zero = digits.is_empty();
        Some(Self::Finite { negative: negative && !is_zero, weight: if is_zero { 0 } else { weight }, digits })
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Finite { negative: a, .. }, Self::Finite { negative: b, .. }) if a != b => b.cmp(a),
            (Self::Finite { negative: true, .. }, Self::Finite { .. }) => other.magnitude().cmp(&self.magnitude()),
            (Self::Finite { .. }, Self::Finite { .. }) => self.magnitude().cmp(&other.magnitude()),
            _ => self.class().cmp(&other.class()),
        }
    }

    /// Zero first; then by weight, then by digits, whose bytes are in order as they lie.
    fn magnitude(&self) -> (bool, i32, &'a [u8]) {
        match *self {
            Self::Finite { weight, digits, .. } => (!digits.is_empty(), weight, digits),
            _ => (true, 0, &[]),
        }
    }

    fn class(&self) -> u8 {
        match self {
            Self::NegativeInfinity => 0,
            Self::Finite { .. } => 1,
            Self::Infinity => 2,
            Self::NaN => 3,
        }
    }

    /// Sign, weight and the first three digits, 14 bits each.
    fn prefix(&self) -> u64 {
        const ZERO: u64 = 1 << 63;
        match *self {
            Self::NegativeInfinity => 0,
            Self::Infinity => u64::MAX - 1,
            Self::NaN => u64::MAX,
            Self::Finite { digits: [], .. } => ZERO,
            Self::Finite { negative, weight, digits } => {
                let digit = |at: usize| digits.get(2 * at..2 * at + 2).map_or(0, |pair| integer(pair) as u64);
                let weight = (weight + 0x1_0000).clamp(0, 0x1_FFFF) as u64;
                let above = ZERO | 1 << 60 | weight << 42 | digit(0) << 28 | digit(1) << 14 | digit(2);
                if negative { !above } else { above }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Numeric, Value};
    use super::*;
    use proptest::prelude::*;

    /// Values of a kind in binary form, with those that lie at its edges.
    fn values(kind: Kind) -> BoxedStrategy<Vec<u8>> {
        let fixed = |len: usize| {
            prop_oneof![
                proptest::collection::vec(any::<u8>(), len),
                proptest::collection::vec(prop_oneof![Just(0_u8), Just(255)], len),
                (any::<u8>()).prop_map(move |last| {
                    let mut bytes = vec![0; len];
                    bytes[len - 1] = last;
                    bytes
                }),
            ]
            .boxed()
        };
        match kind {
            Kind::Bool => any::<bool>().prop_map(|value| vec![u8::from(value)]).boxed(),
            Kind::Int2 => fixed(2),
            Kind::Int4 | Kind::Date => fixed(4),
            Kind::Float4 => prop_oneof![
                any::<f32>(),
                Just(f32::NAN),
                Just(-0.0),
                Just(0.0),
                Just(f32::INFINITY),
                Just(f32::NEG_INFINITY)
            ]
            .prop_map(|value| value.to_be_bytes().to_vec())
            .boxed(),
            Kind::Float8 => prop_oneof![any::<f64>(), Just(f64::NAN), Just(-f64::NAN), Just(-0.0), Just(0.0)]
                .prop_map(|value| value.to_be_bytes().to_vec())
                .boxed(),
            Kind::Interval | Kind::Uuid => fixed(16),
            Kind::Numeric => prop_oneof![
                "-?[0-9]{1,30}(\\.[0-9]{0,20})?",
                "-?[0-9]{1,3}(\\.[0-9]{1,2})?",
                "-?0\\.0{0,9}[0-9]{1,5}",
                Just("NaN".to_owned()),
                Just("Infinity".to_owned()),
                Just("-Infinity".to_owned()),
                Just("0".to_owned()),
            ]
            .prop_map(|text| {
                let mut bytes = Vec::new();
                Numeric::parse(&text).expect("a number").to_binary(&mut bytes).expect("its bytes");
                bytes
            })
            .boxed(),
            Kind::Bytea | Kind::Text | Kind::Varchar | Kind::Bpchar => {
                prop_oneof!["[ab]{0,3} {0,3}", "[a-z]{0,20}"].prop_map(String::into_bytes).boxed()
            }
            Kind::Int8 | Kind::Time | Kind::Timestamp | Kind::TimestampTz => fixed(8),
        }
    }

    const KINDS: [Kind; 17] = [
        Kind::Bool,
        Kind::Int2,
        Kind::Int4,
        Kind::Int8,
        Kind::Float4,
        Kind::Float8,
        Kind::Numeric,
        Kind::Date,
        Kind::Time,
        Kind::Timestamp,
        Kind::TimestampTz,
        Kind::Interval,
        Kind::Uuid,
        Kind::Bytea,
        Kind::Text,
        Kind::Varchar,
        Kind::Bpchar,
    ];

    proptest! {
        #[test]
        fn a_value_where_it_lies_is_what_it_is_when_read(
            (kind, a, b) in proptest::sample::select(&KINDS[..]).prop_flat_map(|kind| (Just(kind), values(kind), values(kind)))
        ) {
            let read = |bytes: &[u8]| Value::from_binary(kind, bytes).expect("a value");
            prop_assert!(is_value(kind, &a));
            prop_assert_eq!(compare(kind, &a, &b), read(&a).compare(&read(&b)));
            let prefixes = prefix(kind, &a).cmp(&prefix(kind, &b));
            prop_assert!(prefixes.is_eq() || prefixes == compare(kind, &a, &b), "{prefixes:?}");
            prop_assert!(!is_told_by_prefix(kind) || prefixes == compare(kind, &a, &b));
            let (mut one, mut other) = (Vec::new(), Vec::new());
            canonical(kind, &a, &mut one);
            read(&a).canonical(&mut other);
            prop_assert_eq!(one, other);
        }

        #[test]
        fn bytes_are_a_value_exactly_if_they_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            for kind in KINDS {
                prop_assert_eq!(is_value(kind, &bytes), Value::from_binary(kind, &bytes).is_some(), "{:?}", kind);
            }
        }
    }

    #[test]
    fn zeros_around_digits_change_nothing() {
        let number = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        // 5, with a zero in front of it and one behind.
        let (plain, padded) = (number(&[1, 0, 0, 0, 5]), number(&[3, 1, 0, 4, 0, 5, 0]));
        assert_eq!(compare(Kind::Numeric, &plain, &padded), Ordering::Equal);
        assert_eq!(prefix(Kind::Numeric, &plain), prefix(Kind::Numeric, &padded));
        assert_eq!(Wide::read(&padded), Some(Wide::Finite { negative: false, weight: 0, digits: &[0, 5] }));
    }
}
