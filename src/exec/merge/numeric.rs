//! Sums and averages of `numeric`, with the scale and the rounding that PostgreSQL gives them.

use std::cmp::Ordering;

use crate::plan::value::numeric::{BASE, DIGIT_WIDTH};
use crate::plan::value::{Decimal, Numeric};

/// `NUMERIC_MIN_SIG_DIGITS`
const MIN_SIGNIFICANT_DIGITS: i32 = 16;
/// `NUMERIC_MAX_DISPLAY_SCALE`
const MAX_DISPLAY_SCALE: i32 = 1_000;

/// `a + b`: the larger scale; NaN wins, opposite infinities are NaN.
pub fn add(a: &Numeric, b: &Numeric) -> Numeric {
    match (a, b) {
        (Numeric::Finite(a), Numeric::Finite(b)) => Numeric::Finite(add_finite(a, b)),
        (Numeric::NaN, _) | (_, Numeric::NaN) => Numeric::NaN,
        (Numeric::Infinity, Numeric::NegativeInfinity) | (Numeric::NegativeInfinity, Numeric::Infinity) => Numeric::NaN,
        (Numeric::Finite(_), infinity) | (infinity, _) => infinity.clone(),
    }
}

/// `sum / count` as `numeric_div` has it; `None` for a count of zero or less.
pub fn average(sum: &Numeric, count: i64) -> Option<Numeric> {
    let divisor = u64::try_from(count).ok().filter(|&count| count > 0)?;
    let Numeric::Finite(sum) = sum else { return Some(sum.clone()) };
    let Numeric::Finite(count) = Numeric::from_i128(i128::from(count)) else { return None };
    Some(Numeric::Finite(divide(sum, divisor, division_scale(sum, &count))))
}

fn add_finite(a: &Decimal, b: &Decimal) -> Decimal {
    let scale = a.scale.max(b.scale);
    let low = |value: &Decimal| value.weight - value.digits.len() as i32 + 1;
    let (top, bottom) = (a.weight.max(b.weight) + 1, low(a).min(low(b)));
    let (negative, larger, smaller, sign) = match (a.negative == b.negative, a.compare_magnitude(b)) {
        (true, _) => (a.negative, a, b, 1),
        (false, Ordering::Less) => (b.negative, b, a, -1),
        (false, _) => (a.negative, a, b, -1),
    };
    let mut digits = Vec::with_capacity((top - bottom + 1).max(0) as usize);
    let mut carry = 0;
    for power in bottom..=top {
        let digit = i32::from(larger.digit(power)) + sign * i32::from(smaller.digit(power)) + carry;
        carry = digit.div_euclid(BASE);
        digits.push(digit.rem_euclid(BASE) as i16);
    }
    digits.reverse();
    Decimal { negative, weight: top, scale, digits }.normalized()
}

/// `select_div_scale` (src/backend/utils/adt/numeric.c)
fn division_scale(dividend: &Decimal, divisor: &Decimal) -> i32 {
    let leading = |value: &Decimal| match value.digits.first() {
        Some(&first) => (value.weight, i32::from(first)),
        None => (0, 0),
    };
    quotient_scale(leading(dividend), leading(divisor), dividend.scale.max(divisor.scale))
}

/// The same from the weight of each number's first digit to the base of 10000 and that digit, and the larger scale of the two.
pub(super) fn quotient_scale(dividend: (i32, i32), divisor: (i32, i32), scale: i32) -> i32 {
    let mut weight = dividend.0 - divisor.0;
    if dividend.1 <= divisor.1 {
        weight -= 1;
    }
    (MIN_SIGNIFICANT_DIGITS - weight * DIGIT_WIDTH).max(scale).clamp(0, MAX_DISPLAY_SCALE)
}

/// Long division, rounded half away from zero at `scale` decimals.
fn divide(dividend: &Decimal, divisor: u64, scale: i32) -> Decimal {
    // One group more than shown holds the digit that decides the rounding.
    let bottom = -(scale.div_euclid(DIGIT_WIDTH) + 2);
    let mut rest: u128 = 0;
    let top = dividend.weight.max(0);
    let mut digits = Vec::new();
    for power in (bottom..=top).rev() {
        rest = rest * BASE as u128 + dividend.digit(power) as u128;
        // Below the base: the rest before was less than the divisor.
        digits.push((rest / u128::from(divisor)) as i16);
        rest %= u128::from(divisor);
    }
    round(&mut digits, top, scale);
    Decimal { negative: dividend.negative, weight: top + 1, scale, digits }.normalized()
}

/// Rounds digits whose first has the power `top`, and puts one in front for the carry.
fn round(digits: &mut Vec<i16>, top: i32, scale: i32) {
    digits.insert(0, 0);
    // Index of the group that holds the last shown decimal, and the value of one in that decimal.
    let group = (top + 1 + (scale - 1).div_euclid(DIGIT_WIDTH) + 1) as usize;
    let place = (scale - 1).rem_euclid(DIGIT_WIDTH);
    let unit = 10_i32.pow((DIGIT_WIDTH - 1 - place) as u32);
    let next = if unit > 1 {
        i32::from(digits.get(group).copied().unwrap_or(0)) % unit / (unit / 10)
    } else {
        i32::from(digits.get(group + 1).copied().unwrap_or(0)) / (BASE / 10)
    };
    digits.truncate(group + 1);
    let Some(last) = digits.last_mut() else { return };
    *last -= (i32::from(*last) % unit) as i16;
    let mut carry = if next >= 5 { unit } else { 0 };
    for digit in digits.iter_mut().rev() {
        let sum = i32::from(*digit) + carry;
        *digit = (sum % BASE) as i16;
        carry = sum / BASE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numeric(text: &str) -> Numeric {
        Numeric::parse(text).expect(text)
    }

    #[test]
    fn averages_have_postgresqls_scale() {
        for (sum, count, wanted) in [
            ("10", 4, "2.5000000000000000"),
            ("1", 3, "0.33333333333333333333"),
            ("2", 3, "0.66666666666666666667"),
            ("100000", 3, "33333.333333333333"),
            ("0", 7, "0.00000000000000000000"),
            ("-1.50", 2, "-0.75000000000000000000"),
            ("12345678901234567890", 7, "1763668414462081127"),
            ("NaN", 2, "NaN"),
            ("-Infinity", 2, "-Infinity"),
        ] {
            assert_eq!(average(&numeric(sum), count).expect("divisible").to_string(), wanted, "{sum} / {count}");
        }
        assert_eq!(average(&numeric("1"), 0), None);
    }

    #[test]
    fn nan_and_infinities_add_up_as_postgresql_has_them() {
        assert_eq!(add(&numeric("Infinity"), &numeric("-Infinity")), Numeric::NaN);
        assert_eq!(add(&numeric("1"), &numeric("-Infinity")), Numeric::NegativeInfinity);
        assert_eq!(add(&numeric("NaN"), &numeric("Infinity")), Numeric::NaN);
        assert_eq!(add(&numeric("1.50"), &numeric("-1.5")).to_string(), "0.00");
    }

    proptest! {
        #[test]
        fn sums_equal_those_of_scaled_integers(a in -10_i128.pow(30)..10_i128.pow(30), b in -10_i128.pow(30)..10_i128.pow(30), scale in 0_usize..12) {
            let text = |value: i128| {
                let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
                let (whole, fraction) = digits.split_at(digits.len() - scale);
                let point = if scale > 0 { "." } else { "" };
                format!("{}{whole}{point}{fraction}", if value < 0 { "-" } else { "" })
            };
            prop_assert_eq!(add(&numeric(&text(a)), &numeric(&text(b))).to_string(), text(a + b));
        }

        #[test]
        fn averages_are_rounded_half_away_from_zero(sum in -10_i128.pow(17)..10_i128.pow(17), count in 1_i64..1_000_000) {
            let average = average(&numeric(&sum.to_string()), count).expect("divisible");
            let Numeric::Finite(value) = &average else { return Err(TestCaseError::fail("finite")) };
            let unit = 10_i128.pow(value.scale as u32);
            let magnitude = (sum.abs() * unit * 2 + i128::from(count)) / (i128::from(count) * 2);
            let shown: i128 = average.to_string().replace(['.', '-'], "").parse().expect("digits");
            prop_assert_eq!(shown, magnitude, "{} / {} = {}", sum, count, average);
        }

        #[test]
        fn every_text_comes_back_from_its_binary_form(text in "-?[0-9]{1,40}(\\.[0-9]{1,30})?") {
            let value = numeric(&text);
            let mut binary = Vec::new();
            value.to_binary(&mut binary).expect("fits");
            prop_assert_eq!(Numeric::from_binary(&binary), Some(value));
        }
    }
}
