//! Decimal numbers that fit in a machine's integers, as sums and averages nearly always do, written without any allocation.

use bytes::{BufMut, BytesMut};

/// A number of so many decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fixed {
    pub(super) negative: bool,
    /// Its digits, the decimals among them.
    pub(super) magnitude: u128,
    pub(super) scale: u32,
}

impl Fixed {
    /// Appends the number as `numeric_out` prints it.
    pub(super) fn write(self, out: &mut BytesMut) {
        // 39 digits at most, and as many decimals as there may be in front of the first of them.
        let mut digits = [b'0'; 40];
        let mut at = digits.len();
        let mut rest = self.magnitude;
        while rest > 0 {
            // Divisions of 128 bits are slow: one for 19 digits.
            let mut low = u64::try_from(rest % 10_u128.pow(19)).unwrap_or(0);
            rest /= 10_u128.pow(19);
            let end = at;
            while low > 0 {
                at -= 1;
                digits[at] = b'0' + (low % 10) as u8;
                low /= 10;
            }
            if rest > 0 {
                at = end - 19;
            }
        }
        let digits = &digits[at..];
        if self.negative && self.magnitude > 0 {
            out.put_u8(b'-');
        }
        let scale = self.scale as usize;
        let (whole, decimals) = digits.split_at(digits.len().saturating_sub(scale));
        out.put_slice(if whole.is_empty() { b"0" } else { whole });
        if scale > 0 {
            out.put_u8(b'.');
            out.put_bytes(b'0', scale - decimals.len());
            out.put_slice(decimals);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::value::Numeric;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_is_written_as_it_is_read(text in "-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,20})?", more in "[1-9][0-9]{0,18}") {
            for text in [text.clone(), text.replacen(char::is_numeric, &more, 1)] {
                let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
                let Ok(magnitude) = format!("{}{decimals}", whole.trim_start_matches('-')).parse() else { continue };
                let negative = text.starts_with('-');
                let mut out = BytesMut::new();
                Fixed { negative, magnitude, scale: decimals.len() as u32 }.write(&mut out);
                let wanted = Numeric::parse(&text).expect("a number").to_string();
                prop_assert_eq!(std::str::from_utf8(&out).expect("digits"), wanted);
            }
        }
    }
}
