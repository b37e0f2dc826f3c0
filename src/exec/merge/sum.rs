//! A sum of numerics: in one wide integer as long as it fits, which it nearly always does, and exactly beyond.

use super::fixed::Fixed;
use super::numeric;
use crate::plan::value::binary::Wide;
use crate::plan::value::numeric::BASE;
use crate::plan::value::{Decimal, Numeric};

/// See the module's description.
#[derive(Debug, Clone, Default)]
pub(super) struct NumericSum {
    /// In units of 10000 to the power of `-places`.
    units: i128,
    places: u32,
    /// The largest display scale that was seen.
    scale: i32,
    /// The sum, once it did not fit any more.
    wide: Option<Box<Numeric>>,
    has_any: bool,
}

impl NumericSum {
    /// Adds a value in binary form; false if the bytes are none.
    pub(super) fn add(&mut self, bytes: &[u8]) -> bool {
        let Some(value) = Wide::read(bytes) else { return false };
        let scale = bytes.get(6..8).map_or(0, |scale| i32::from(scale[0]) << 8 | i32::from(scale[1]));
        if self.wide.is_none()
            && let Some((units, places)) = self.with(value)
        {
            *self = Self { units, places, scale: self.scale.max(scale), wide: None, has_any: true };
            return true;
        }
        let Some(value) = Numeric::from_binary(bytes) else { return false };
        self.wide = Some(Box::new(self.value().map_or_else(|| value.clone(), |sum| numeric::add(&sum, &value))));
        self.has_any = true;
        true
    }

    /// Adds an integer.
    pub(super) fn add_integer(&mut self, value: i64) {
        let units = unit(self.places).and_then(|unit| i128::from(value).checked_mul(unit)?.checked_add(self.units));
        match (units, &self.wide) {
            (Some(units), None) => self.units = units,
            _ => {
                let value = Numeric::from_i128(i128::from(value));
                self.wide =
                    Some(Box::new(self.value().map_or_else(|| value.clone(), |sum| numeric::add(&sum, &value))));
            }
        }
        self.has_any = true;
    }

    /// The sum with that value in units of some places, if that fits.
    fn with(&self, value: Wide<'_>) -> Option<(i128, u32)> {
        let Wide::Finite { negative, weight, digits } = value else { return None };
        let lowest = weight - (digits.len() / 2) as i32 + 1;
        let places = self.places.max(u32::try_from(-lowest).unwrap_or(0));
        let mut magnitude: i128 = 0;
        for pair in digits.chunks_exact(2) {
            let digit = i128::from(u16::from_be_bytes([pair[0], pair[1]]));
            magnitude = magnitude.checked_mul(i128::from(BASE))?.checked_add(digit)?;
        }
        let shift = u32::try_from(i64::from(lowest) + i64::from(places)).ok()?;
        let magnitude = if shift == 0 { magnitude } else { magnitude.checked_mul(unit(shift)?)? };
        let units = match places - self.places {
            0 => self.units,
            more => self.units.checked_mul(unit(more)?)?,
        };
        Some((units.checked_add(if negative { -magnitude } else { magnitude })?, places))
    }

    /// The sum in a machine's integer, if it fits.
    pub(super) fn fixed(&self) -> Option<Fixed> {
        if self.wide.is_some() || !self.has_any {
            return None;
        }
        let scale = u32::try_from(self.scale).ok()?;
        let decimals = self.places.checked_mul(4)?;
        let magnitude = match decimals.checked_sub(scale) {
            None => self.units.unsigned_abs().checked_mul(10_u128.checked_pow(scale - decimals)?)?,
            Some(0) => self.units.unsigned_abs(),
            Some(unseen) => {
                let unit = 10_u128.checked_pow(unseen)?;
                Some(self.units.unsigned_abs()).filter(|units| units.is_multiple_of(unit))? / unit
            }
        };
        Some(Fixed { negative: self.units < 0, magnitude, scale })
    }

    /// The sum divided by that count, as [`numeric::average`] has it, if all of it fits.
    pub(super) fn average(&self, count: i64) -> Option<Fixed> {
        let count = u128::try_from(count).ok().filter(|&count| count > 0)?;
        if self.wide.is_some() || !self.has_any {
            return None;
        }
        let units = self.units.unsigned_abs();
        let (weight, first) = leading(units);
        let weight = if units == 0 { 0 } else { weight - i32::try_from(self.places).ok()? };
        let scale = numeric::quotient_scale((weight, first), leading(count), self.scale);
        let (scale, decimals) = (u32::try_from(scale).ok()?, self.places.checked_mul(4)?);
        let (dividend, divisor) = match scale.checked_sub(decimals) {
            Some(more) => (units.checked_mul(10_u128.checked_pow(more)?)?, count),
            None => (units, count.checked_mul(10_u128.checked_pow(decimals - scale)?)?),
        };
        // The remainder is less than the divisor, so this is rounding half away from zero.
        let up = u128::from(dividend % divisor >= divisor.div_ceil(2));
        Some(Fixed { negative: self.units < 0, magnitude: dividend / divisor + up, scale })
    }

    /// The sum; `None` of nothing.
    pub(super) fn value(&self) -> Option<Numeric> {
        if let Some(wide) = &self.wide {
            return Some((**wide).clone());
        }
        match Numeric::from_i128(self.units) {
            _ if !self.has_any => None,
            Numeric::Finite(sum) => {
                let weight = if sum.digits.is_empty() { 0 } else { sum.weight - self.places as i32 };
                Some(Numeric::Finite(Decimal { weight, scale: self.scale, ..sum }))
            }
            other => Some(other),
        }
    }
}

/// The power of 10000 that a number's first digit to that base stands for, and that digit.
fn leading(mut value: u128) -> (i32, i32) {
    let mut weight = 0;
    while value >= BASE as u128 {
        value /= BASE as u128;
        weight += 1;
    }
    (weight, value as i32)
}

/// 10000 to that power, if it fits.
fn unit(power: u32) -> Option<i128> {
    i128::from(BASE).checked_pow(power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = Numeric> {
        let text = prop_oneof![
            4 => "-?[0-9]{1,12}(\\.[0-9]{1,6})?",
            1 => "-?[0-9]{1,60}(\\.[0-9]{0,40})?",
            1 => "-?0\\.0{0,60}[0-9]{1,5}",
            1 => Just("0.00".to_owned()),
        ];
        let special = prop_oneof![Just("NaN".to_owned()), Just("Infinity".to_owned()), Just("-Infinity".to_owned())];
        prop_oneof![40 => text, 1 => special].prop_map(|text| Numeric::parse(&text).expect("a number"))
    }

    proptest! {
        #[test]
        fn a_sum_is_what_adding_one_by_one_gives(values in proptest::collection::vec(number(), 0..12), whole in any::<i64>()) {
            let (mut sum, mut wanted) = (NumericSum::default(), None);
            for value in &values {
                let mut bytes = Vec::new();
                value.to_binary(&mut bytes).expect("its bytes");
                prop_assert!(sum.add(&bytes));
                wanted = Some(wanted.map_or_else(|| value.clone(), |sum| numeric::add(&sum, value)));
                prop_assert_eq!(sum.value(), wanted.clone());
            }
            sum.add_integer(whole);
            let whole = Numeric::from_i128(i128::from(whole));
            prop_assert_eq!(sum.value(), Some(wanted.map_or_else(|| whole.clone(), |sum| numeric::add(&sum, &whole))));
        }
    }

    proptest! {
        #[test]
        fn what_fits_in_an_integer_is_written_as_what_does_not(values in proptest::collection::vec(number(), 1..6), count in prop_oneof![1_i64..200, 1_i64..i64::MAX]) {
            let mut sum = NumericSum::default();
            for value in &values {
                let mut bytes = Vec::new();
                value.to_binary(&mut bytes).expect("its bytes");
                prop_assert!(sum.add(&bytes));
            }
            let text = |fixed: Fixed| {
                let mut out = bytes::BytesMut::new();
                fixed.write(&mut out);
                String::from_utf8(out.to_vec()).expect("digits")
            };
            let value = sum.value().expect("a sum");
            if let Some(fixed) = sum.fixed() {
                prop_assert_eq!(text(fixed), value.to_string());
            }
            if let Some(fixed) = sum.average(count) {
                prop_assert_eq!(text(fixed), numeric::average(&value, count).expect("divisible").to_string());
            }
        }
    }

    #[test]
    fn nothing_has_no_sum_and_no_bytes_are_no_value() {
        assert_eq!(NumericSum::default().value(), None);
        assert!(!NumericSum::default().add(b"\0"));
    }
}
