//! The digits that PostgreSQL writes a float with: the fewest that lie strictly between the halfway points to its neighbours, and of
//! those the nearest (`src/common/d2s.c`, which never accepts the halfway points themselves and rounds ties to even).
//!
//! By exact integers, after Steele and White (How to Print Floating-Point Numbers Accurately, 1990).

use std::cmp::Ordering;

/// A float's digits without zeros at the end, and the exponent of ten of the first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortest {
    pub(super) digits: String,
    pub(super) exponent: i32,
}

/// A float's parts.
#[derive(Debug, Clone, Copy)]
struct Parts {
    /// With the bit that is not stored.
    mantissa: u64,
    /// Of two.
    exponent: i32,
    /// Whether the next smaller float is only half as far away as the next greater one.
    is_closer_below: bool,
}

impl Shortest {
    /// Of a finite `double precision`, its sign left out.
    pub(super) fn of_f64(value: f64) -> Self {
        let bits = value.to_bits();
        Self::of(parts(bits & ((1 << 52) - 1), (bits >> 52 & 0x7ff) as i32, 52, 1075))
    }

    /// Of a finite `real`, its sign left out.
    pub(super) fn of_f32(value: f32) -> Self {
        let bits = value.to_bits();
        Self::of(parts(u64::from(bits & ((1 << 23) - 1)), (bits >> 23 & 0xff) as i32, 23, 150))
    }

    fn of(parts: Parts) -> Self {
        if parts.mantissa == 0 {
            return Self { digits: "0".to_owned(), exponent: 0 };
        }
        let mut state = State::new(parts);
        let exponent = state.scale(parts);
        let mut digits = Vec::new();
        loop {
            let digit = state.next_digit();
            let (fits_below, fits_above) = state.fits();
            if !fits_below && !fits_above {
                digits.push(b'0' + digit);
                state.grow();
                continue;
            }
            let is_up = match (fits_below, fits_above) {
                (true, false) => false,
                (false, _) => true,
                (true, true) => match state.halfway() {
                    Ordering::Less => false,
                    Ordering::Greater => true,
                    Ordering::Equal => digit % 2 == 1,
                },
            };
            digits.push(b'0' + digit);
            return Self::finished(digits, exponent, is_up);
        }
    }

    /// Adds one at the end, if it is up, and drops zeros there.
    fn finished(mut digits: Vec<u8>, mut exponent: i32, is_up: bool) -> Self {
        if is_up {
            let nines = digits.iter().rev().take_while(|digit| **digit == b'9').count();
            digits.truncate(digits.len() - nines);
            match digits.last_mut() {
                Some(last) => *last += 1,
                None => {
                    digits.push(b'1');
                    exponent += 1;
                }
            }
        }
        let zeros = digits.iter().rev().take_while(|digit| **digit == b'0').count();
        digits.truncate((digits.len() - zeros).max(1));
        Self { digits: digits.into_iter().map(char::from).collect(), exponent }
    }
}

fn parts(stored: u64, exponent: i32, width: u32, bias: i32) -> Parts {
    match exponent {
        0 => Parts { mantissa: stored, exponent: 1 - bias, is_closer_below: false },
        _ => Parts {
            mantissa: stored | 1 << width,
            exponent: exponent - bias,
            is_closer_below: stored == 0 && exponent > 1,
        },
    }
}

/// What is left of the value, and how far it may be missed below and above, all in parts of `unit`.
struct State {
    rest: Natural,
    unit: Natural,
    below: Natural,
    above: Natural,
}

impl State {
    fn new(parts: Parts) -> Self {
        // Halves of the distance below are whole numbers, too.
        let shift = if parts.is_closer_below { 2 } else { 1 };
        let positive = parts.exponent.max(0).unsigned_abs();
        let negative = parts.exponent.min(0).unsigned_abs();
        Self {
            rest: Natural::of(parts.mantissa).shifted(positive + shift),
            unit: Natural::of(1).shifted(negative + shift),
            below: Natural::of(1).shifted(positive),
            above: Natural::of(1).shifted(positive + shift - 1),
        }
    }

    /// Brings the value between one and ten units; returns the exponent of ten that it took.
    fn scale(&mut self, parts: Parts) -> i32 {
        let value = parts.mantissa as f64;
        let estimate = value.log10() + f64::from(parts.exponent) * std::f64::consts::LOG10_2;
        let mut exponent = estimate.floor() as i32;
        for _ in 0..exponent {
            self.unit.multiply(10);
        }
        for _ in exponent..0 {
            self.grow();
        }
        // The estimate may be one off.
        if self.rest.compare(&self.unit) == Ordering::Less {
            self.grow();
            exponent -= 1;
        }
        let mut ten_units = self.unit.clone();
        ten_units.multiply(10);
        if self.rest.compare(&ten_units) != Ordering::Less {
            self.unit = ten_units;
            exponent += 1;
        }
        exponent
    }

    fn grow(&mut self) {
        [&mut self.rest, &mut self.below, &mut self.above].into_iter().for_each(|it| it.multiply(10));
    }

    /// Takes the next digit off.
    fn next_digit(&mut self) -> u8 {
        let mut digit = 0;
        while self.rest.compare(&self.unit) != Ordering::Less {
            self.rest.subtract(&self.unit);
            digit += 1;
        }
        digit
    }

    /// Whether the digits so far lie strictly within bounds, as they are and with one more at the end.
    fn fits(&self) -> (bool, bool) {
        let mut over = self.rest.clone();
        over.add(&self.above);
        (self.rest.compare(&self.below) == Ordering::Less, over.compare(&self.unit) == Ordering::Greater)
    }

    /// How what is left compares with half a unit.
    fn halfway(&self) -> Ordering {
        let mut twice = self.rest.clone();
        twice.multiply(2);
        twice.compare(&self.unit)
    }
}

/// A natural number of any size, least part first, without zeros at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Natural(Vec<u32>);

impl Natural {
    fn of(value: u64) -> Self {
        Self(vec![value as u32, (value >> 32) as u32]).trimmed()
    }

    fn trimmed(mut self) -> Self {
        self.trim();
        self
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    /// Times two to that power.
    fn shifted(self, bits: u32) -> Self {
        let mut shifted = vec![0; (bits / 32) as usize];
        let mut carry = 0;
        for part in self.0 {
            let wide = u64::from(part) << (bits % 32) | carry;
            shifted.push(wide as u32);
            carry = wide >> 32;
        }
        shifted.push(carry as u32);
        Self(shifted).trimmed()
    }

    fn multiply(&mut self, factor: u32) {
        let mut carry = 0;
        for part in &mut self.0 {
            let wide = u64::from(*part) * u64::from(factor) + carry;
            *part = wide as u32;
            carry = wide >> 32;
        }
        self.0.push(carry as u32);
        self.trim();
    }

    fn add(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()) + 1, 0);
        let mut carry = 0;
        for (at, part) in self.0.iter_mut().enumerate() {
            let wide = u64::from(*part) + u64::from(other.0.get(at).copied().unwrap_or(0)) + carry;
            *part = wide as u32;
            carry = wide >> 32;
        }
        self.trim();
    }

    /// Takes off one that is not greater.
    fn subtract(&mut self, other: &Self) {
        let mut borrow = 0;
        for (at, part) in self.0.iter_mut().enumerate() {
            let taken = i64::from(*part) - i64::from(other.0.get(at).copied().unwrap_or(0)) - borrow;
            *part = taken as u32;
            borrow = i64::from(taken < 0);
        }
        self.trim();
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(value: f64) -> String {
        let Shortest { digits, exponent } = Shortest::of_f64(value);
        format!("{digits}e{exponent}")
    }

    #[test]
    fn halfway_points_are_never_taken_and_ties_go_to_even() {
        // As PostgreSQL 15 writes them.
        for (value, text) in [
            (1e23, "9999999999999999e22"),
            (2_f64.powi(-25), "29802322387695312e-8"),
            (9_007_199_254_740_992.0, "9007199254740992e15"),
            (5e-324, "5e-324"),
            (1e-323, "1e-323"),
            (f64::MIN_POSITIVE, "22250738585072014e-308"),
            (f64::MAX, "17976931348623157e308"),
            (0.0, "0e0"),
            (100.0, "1e2"),
            (0.3, "3e-1"),
            (9.5, "95e0"),
        ] {
            assert_eq!(told(value), text, "{value:e}");
        }
    }

    #[test]
    fn digits_read_back_as_the_same_float_and_are_never_fewer_than_needed() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..3_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = f64::from_bits(seed & !(1 << 63));
            if value.is_finite() {
                let Shortest { digits, exponent } = Shortest::of_f64(value);
                let text = format!("{}.{}e{exponent}", &digits[..1], &digits[1..]);
                assert_eq!(text.parse::<f64>().expect("a float").to_bits(), value.to_bits(), "{value:e} {text}");
                let known = format!("{value:e}");
                let fewest = known.split('e').next().map_or(0, |it| it.len() - usize::from(it.contains('.')));
                assert!(digits.len() >= fewest && digits.len() <= 17, "{value:e} {text}");
            }
            let value = f32::from_bits((seed >> 33) as u32);
            if value.is_finite() {
                let Shortest { digits, exponent } = Shortest::of_f32(value);
                let text = format!("{}.{}e{exponent}", &digits[..1], &digits[1..]);
                assert_eq!(text.parse::<f32>().expect("a float").to_bits(), value.to_bits(), "{value:e} {text}");
            }
        }
    }
}
