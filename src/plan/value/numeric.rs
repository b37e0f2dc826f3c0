//! PostgreSQL's `numeric`: base-10000 digits with a weight and a display scale, from and to its binary and text forms.

use std::cmp::Ordering;

use bytes::{BufMut, BytesMut};

/// Decimal digits in one base-10000 digit.
pub const DIGIT_WIDTH: i32 = 4;
/// The base.
pub const BASE: i32 = 10_000;

pub(super) const NEGATIVE: u16 = 0x4000;
pub(super) const NAN: u16 = 0xC000;
pub(super) const POSITIVE_INFINITY: u16 = 0xD000;
pub(super) const NEGATIVE_INFINITY: u16 = 0xF000;

/// A value of type `numeric`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Numeric {
    /// Not a number: equal to itself, greater than all else.
    NaN,
    /// `Infinity`
    Infinity,
    /// `-Infinity`
    NegativeInfinity,
    /// Anything else.
    Finite(Decimal),
}

/// A finite value: sign, digits times 10000^(weight - index), and how many decimals are shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decimal {
    /// Below zero; never for zero itself.
    pub negative: bool,
    /// The power of 10000 of the first digit.
    pub weight: i32,
    /// Decimals shown in text.
    pub scale: i32,
    /// Base-10000 digits, most significant first, without zeros at either end.
    pub digits: Vec<i16>,
}

impl Decimal {
    /// Strips zeros at both ends; zero has no digits, no weight and no sign.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        let leading = self.digits.iter().take_while(|&&digit| digit == 0).count();
        self.digits.drain(..leading);
        self.weight -= leading as i32;
        let kept = self.digits.iter().rposition(|&digit| digit != 0).map_or(0, |last| last + 1);
        self.digits.truncate(kept);
        if self.digits.is_empty() {
            self.weight = 0;
            self.negative = false;
        }
        self
    }

    /// The base-10000 digit of that power, 0 outside.
    pub fn digit(&self, power: i32) -> i16 {
        usize::try_from(self.weight - power).ok().and_then(|at| self.digits.get(at)).copied().unwrap_or(0)
    }

    /// Compares magnitudes.
    pub fn compare_magnitude(&self, other: &Self) -> Ordering {
        match (self.digits.is_empty(), other.digits.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => self.weight.cmp(&other.weight).then_with(|| self.digits.cmp(&other.digits)),
        }
    }
}

impl Numeric {
    /// An integer, with scale 0.
    pub fn from_i128(value: i128) -> Self {
        let mut rest = value.unsigned_abs();
        let mut digits = Vec::with_capacity(6);
        while rest > u128::from(u64::MAX) {
            digits.push((rest % BASE as u128) as i16);
            rest /= BASE as u128;
        }
        // Divisions of words that the processor has an instruction for.
        let mut rest = rest as u64;
        while rest > 0 {
            digits.push((rest % BASE as u64) as i16);
            rest /= BASE as u64;
        }
        digits.reverse();
        let weight = digits.len() as i32 - 1;
        Self::Finite(Decimal { negative: value < 0, weight, scale: 0, digits }.normalized())
    }

    /// Reads the binary form: counts and digits as 16-bit integers.
    pub fn from_binary(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        let (count, weight, sign, scale) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let digits: Vec<i16> = words.map(|word| word as i16).collect();
        if !bytes.len().is_multiple_of(2) || digits.len() != usize::from(count) {
            return None;
        }
        if digits.iter().any(|digit| !(0..BASE as i16).contains(digit)) || scale > 0x3FFF {
            return None;
        }
        let finite = |negative| {
            let decimal = Decimal { negative, weight: i32::from(weight as i16), scale: i32::from(scale), digits };
            Some(Self::Finite(decimal.normalized()))
        };
        match sign {
            0 => finite(false),
            NEGATIVE => finite(true),
            NAN => Some(Self::NaN),
            POSITIVE_INFINITY => Some(Self::Infinity),
            NEGATIVE_INFINITY => Some(Self::NegativeInfinity),
            _ => None,
        }
    }

    /// Appends the binary form; `None` for a value beyond what it can hold.
    pub fn to_binary(&self, out: &mut Vec<u8>) -> Option<()> {
        let mut head = |count: u16, weight: i16, sign: u16, scale: u16| {
            for word in [count, weight as u16, sign, scale] {
                out.extend_from_slice(&word.to_be_bytes());
            }
        };
        match self {
            Self::NaN => head(0, 0, NAN, 0),
            Self::Infinity => head(0, 0, POSITIVE_INFINITY, 0x20),
            Self::NegativeInfinity => head(0, 0, NEGATIVE_INFINITY, 0x20),
            Self::Finite(value) => {
                let sign = if value.negative { NEGATIVE } else { 0 };
                let count = u16::try_from(value.digits.len()).ok().filter(|&count| count <= 0x7FFF)?;
                head(count, i16::try_from(value.weight).ok()?, sign, u16::try_from(value.scale).ok()?);
                value.digits.iter().for_each(|digit| out.extend_from_slice(&digit.to_be_bytes()));
            }
        }
        Some(())
    }

    /// Reads the text form; `None` for what `numeric_in` refuses, and for the spellings that came with PostgreSQL 16.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        if unsigned.eq_ignore_ascii_case("nan") {
            return (unsigned.len() == text.len()).then_some(Self::NaN);
        }
        if unsigned.eq_ignore_ascii_case("infinity") || unsigned.eq_ignore_ascii_case("inf") {
            return Some(if negative { Self::NegativeInfinity } else { Self::Infinity });
        }
        let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
            Some(at) => (&unsigned[..at], parse_exponent(&unsigned[at + 1..])?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Self::from_decimals(negative, whole, fraction, exponent)
    }

    fn from_decimals(negative: bool, whole: &str, fraction: &str, exponent: i32) -> Option<Self> {
        let scale = (fraction.len() as i64 - i64::from(exponent)).max(0);
        // Decimal digits, of which `point` stand before the decimal point; padded so that groups of four meet it.
        let point = whole.len() as i64 + i64::from(exponent);
        if scale > 16_383 || point.abs() > 131_072 {
            return None;
        }
        let lead = (-point).rem_euclid(4) as usize;
        let mut decimals = vec![b'0'; lead];
        decimals.extend(whole.bytes().chain(fraction.bytes()));
        decimals.resize(decimals.len().div_ceil(4) * 4, b'0');
        let digits = decimals
            .chunks_exact(4)
            .map(|group| group.iter().fold(0, |digit, &byte| digit * 10 + i16::from(byte - b'0')))
            .collect();
        let weight = ((point + lead as i64) / 4 - 1) as i32;
        Some(Self::Finite(Decimal { negative, weight, scale: scale as i32, digits }.normalized()))
    }

    /// Weight and digits without outer zeros; `None` for NaN and the infinities.
    pub fn significant(&self) -> Option<(i32, &[i16])> {
        match self {
            Self::Finite(value) => Some((value.weight, &value.digits)),
            _ => None,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::NegativeInfinity => 0,
            Self::Finite(_) => 1,
            Self::Infinity => 2,
            Self::NaN => 3,
        }
    }

    /// PostgreSQL's order: -Infinity, numbers by value, Infinity, NaN.
    pub fn compare(&self, other: &Self) -> Ordering {
        let (Self::Finite(a), Self::Finite(b)) = (self, other) else { return self.rank().cmp(&other.rank()) };
        match (a.negative, b.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => a.compare_magnitude(b),
            (true, true) => b.compare_magnitude(a),
        }
    }
}

fn parse_exponent(text: &str) -> Option<i32> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten().filter(|exponent: &i32| exponent.abs() <= 131_072)
}

impl std::fmt::Display for Numeric {
    /// As [`Numeric::write_text`] writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = BytesMut::new();
        self.write_text(&mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl Numeric {
    /// Appends the value as `numeric_out` prints it.
    pub fn write_text(&self, out: &mut BytesMut) {
        let value = match self {
            Self::NaN => return out.put_slice(b"NaN"),
            Self::Infinity => return out.put_slice(b"Infinity"),
            Self::NegativeInfinity => return out.put_slice(b"-Infinity"),
            Self::Finite(value) => value,
        };
        if value.negative {
            out.put_u8(b'-');
        }
        let top = value.weight.max(0);
        let first = four_digits(value.digit(top));
        let leading = first.iter().take(3).take_while(|&&digit| digit == b'0').count();
        out.put_slice(&first[leading..]);
        (0..top).rev().for_each(|power| out.put_slice(&four_digits(value.digit(power))));
        let scale = usize::try_from(value.scale).unwrap_or(0);
        if scale == 0 {
            return;
        }
        out.put_u8(b'.');
        let end = out.len() + scale;
        let mut power = -1;
        while out.len() < end {
            out.put_slice(&four_digits(value.digit(power)));
            power -= 1;
        }
        out.truncate(end);
    }
}

/// A base-10000 digit as decimal ones.
fn four_digits(digit: i16) -> [u8; 4] {
    let digit = digit.unsigned_abs();
    [digit / 1000, digit / 100 % 10, digit / 10 % 10, digit % 10].map(|decimal| b'0' + decimal as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(text: &str) -> Numeric {
        Numeric::parse(text).expect(text)
    }

    #[test]
    fn text_survives_a_round_trip_with_its_scale() {
        for text in [
            "0",
            "0.00",
            "1",
            "-1.50",
            "10000",
            "12345678901234567890123456789.0001",
            "0.000000001",
            "NaN",
            "-Infinity",
            "100000000",
        ] {
            let value = numeric(text);
            assert_eq!(value.to_string(), text);
            let mut binary = Vec::new();
            value.to_binary(&mut binary).expect("fits");
            assert_eq!(Numeric::from_binary(&binary), Some(value), "{text}");
        }
    }

    #[test]
    fn exponents_move_the_point_as_numeric_in_does() {
        assert_eq!(numeric("1.5e3").to_string(), "1500");
        assert_eq!(numeric("1.5e-3").to_string(), "0.0015");
        assert_eq!(numeric("-.5").to_string(), "-0.5");
        assert_eq!(numeric("5.").to_string(), "5");
        assert_eq!(numeric("-0.00").to_string(), "0.00");
    }

    #[test]
    fn what_numeric_in_refuses_is_none() {
        for text in ["", " ", ".", "1e", "1_000", "0x10", "--1", "-NaN", "1.2.3", "e5", "1e999999999"] {
            assert_eq!(Numeric::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn values_are_ordered_by_value_and_nan_is_last() {
        let order = ["-Infinity", "-10000.1", "-10000", "-0.5", "0.00", "0.5", "10000", "10000.10", "Infinity", "NaN"];
        for (i, a) in order.iter().enumerate() {
            for (j, b) in order.iter().enumerate() {
                assert_eq!(numeric(a).compare(&numeric(b)), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(numeric("1.0").compare(&numeric("1.00")), Ordering::Equal);
    }

    #[test]
    fn a_malformed_binary_form_is_none() {
        assert_eq!(Numeric::from_binary(b""), None);
        assert_eq!(Numeric::from_binary(b"\0\x01\0\0\0\0\0\0"), None);
        assert_eq!(Numeric::from_binary(b"\0\x01\0\0\0\0\0\0\x27\x10"), None);
        assert_eq!(Numeric::from_binary(b"\0\0\0\0\x12\x34\0\0"), None);
    }
}
