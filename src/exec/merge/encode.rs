//! Values that pgherd computed itself, written as PostgreSQL writes them in text or binary form.

use bytes::{BufMut, BytesMut};

use super::shortest::Shortest;
use crate::plan::value::{Kind, Numeric, Value};

/// A computed value of a type that pgherd writes.
#[derive(Debug, Clone, PartialEq)]
pub enum Computed {
    /// NULL
    Null,
    /// `smallint`
    Int2(i16),
    /// `integer`
    Int4(i32),
    /// `bigint`
    Int8(i64),
    /// `numeric`
    Numeric(Numeric),
    /// `real`
    Float4(f32),
    /// `double precision`
    Float8(f64),
    /// `boolean`
    Bool(bool),
}

impl Computed {
    /// An integer of that kind, which it fits: bit by bit, integers of one size give integers of that size.
    pub fn integer(kind: Kind, value: i64) -> Self {
        match kind {
            Kind::Int2 => Self::Int2(value as i16),
            Kind::Int4 => Self::Int4(value as i32),
            _ => Self::Int8(value),
        }
    }

    /// Appends the value's bytes; false for NULL, which has none.
    pub fn write(&self, is_binary: bool, out: &mut BytesMut) -> bool {
        match (self, is_binary) {
            (Self::Null, _) => return false,
            (Self::Int2(value), true) => out.put_i16(*value),
            (Self::Int2(value), false) => integer(i64::from(*value), out),
            (Self::Int4(value), true) => out.put_i32(*value),
            (Self::Int4(value), false) => integer(i64::from(*value), out),
            (Self::Int8(value), true) => out.put_i64(*value),
            (Self::Int8(value), false) => integer(*value, out),
            (Self::Numeric(value), true) => {
                let mut bytes = Vec::new();
                if value.to_binary(&mut bytes).is_none() {
                    return false;
                }
                out.put_slice(&bytes);
            }
            (Self::Numeric(value), false) => value.write_text(out),
            (Self::Float4(value), true) => out.put_f32(*value),
            (Self::Float4(value), false) => {
                out.put_slice(float_text(f64::from(*value), Shortest::of_f32, *value, 6).as_bytes());
            }
            (Self::Float8(value), true) => out.put_f64(*value),
            (Self::Float8(value), false) => out.put_slice(float_text(*value, Shortest::of_f64, *value, 15).as_bytes()),
            (Self::Bool(value), true) => out.put_u8(u8::from(*value)),
            (Self::Bool(value), false) => out.put_u8(if *value { b't' } else { b'f' }),
        }
        true
    }

    /// The value for comparing; `None` for NULL.
    pub fn value(&self) -> Option<Value> {
        Some(match self {
            Self::Null => return None,
            Self::Int2(value) => Value::Int(i64::from(*value)),
            Self::Int4(value) => Value::Int(i64::from(*value)),
            Self::Int8(value) => Value::Int(*value),
            Self::Numeric(value) => Value::Numeric(value.clone()),
            Self::Float4(value) => Value::Float(f64::from(*value)),
            Self::Float8(value) => Value::Float(*value),
            Self::Bool(value) => Value::Bool(*value),
        })
    }
}

fn integer(value: i64, out: &mut BytesMut) {
    if value < 0 {
        out.put_u8(b'-');
    }
    // 19 digits at most.
    let (mut digits, mut at, mut rest) = ([0; 20], 20, value.unsigned_abs());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// PostgreSQL's shortest text that reads back the same (`extra_float_digits` of 1 or more); from 10 to the power of `limit` on, and
/// below 0.0001, with an exponent.
fn float_text<T>(value: f64, shortest: impl Fn(T) -> Shortest, own: T, limit: i32) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    let sign = if value.is_sign_negative() { "-" } else { "" };
    if value.is_infinite() {
        return format!("{sign}Infinity");
    }
    let Shortest { digits, exponent } = shortest(own);
    if !(-4..limit).contains(&exponent) {
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        return format!("{sign}{first}{point}{rest}e{exponent_sign}{:02}", exponent.abs());
    }
    if exponent < 0 {
        return format!("{sign}0.{}{digits}", "0".repeat((-exponent - 1) as usize));
    }
    let whole = exponent as usize + 1;
    if digits.len() <= whole {
        return format!("{sign}{digits}{}", "0".repeat(whole - digits.len()));
    }
    format!("{sign}{}.{}", &digits[..whole], &digits[whole..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &Computed) -> String {
        let mut out = BytesMut::new();
        assert!(value.write(false, &mut out));
        String::from_utf8(out.to_vec()).expect("text")
    }

    #[test]
    fn integers_print_as_postgresql_prints_them() {
        for value in [0, 1, -1, 10, 1_234_567_890, i64::MAX, i64::MIN] {
            assert_eq!(text(&Computed::Int8(value)), value.to_string());
        }
        assert!(!Computed::Null.write(true, &mut BytesMut::new()));
    }

    #[test]
    fn floats_print_as_postgresql_prints_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (1.0 / 3.0, "0.3333333333333333"),
            (123_456.789, "123456.789"),
            (1e15, "1e+15"),
            (999_999_999_999_999.0, "999999999999999"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e300, "1e+300"),
            (1e23, "9.999999999999999e+22"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(self::text(&Computed::Float8(value)), text, "{value}");
        }
        assert_eq!(text(&Computed::Float4(1e6)), "1e+06");
        assert_eq!(text(&Computed::Float4(0.1)), "0.1");
        assert_eq!(text(&Computed::Float4(123_456.0)), "123456");
    }
}
