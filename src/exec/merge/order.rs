//! Comparing rows by sort keys as ORDER BY does: where they lie, and as values of their own.

use std::cmp::Ordering;

use super::row::Row;
use super::types::{Reader, refused, unreadable};
use crate::error::Error;
use crate::plan::distribute::Sort;
use crate::plan::value::{Kind, Value, binary};

/// A row's sort keys; `None` is NULL.
pub(super) type Keys = Vec<Option<Value>>;

/// The order of two rows.
pub(super) fn compare(sort: &[Sort], a: &[Option<Value>], b: &[Option<Value>]) -> Ordering {
    let each = sort.iter().zip(a.iter().zip(b)).map(|(sort, (a, b))| match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) if sort.nulls_first => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) if sort.nulls_first => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) if sort.descending => b.compare(a),
        (Some(a), Some(b)) => a.compare(b),
    });
    each.into_iter().find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
}

/// One sort key of rows that are compared where they lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct SortKey {
    reader: Reader,
    /// Whether it stands there as digits.
    is_digits: bool,
    descending: bool,
    nulls_first: bool,
}

impl SortKey {
    /// A key that is there in binary form, or as text.
    ///
    /// # Errors
    /// A type whose text does not tell the value by itself.
    pub(super) fn new(reader: Reader, is_text: bool, sort: &Sort) -> Result<Self, Error> {
        let is_digits = is_text && reader.kind.is_integer();
        if is_text && !is_digits && !reader.kind.is_collatable() {
            return Err(refused("ORDER BY of a value in text form"));
        }
        Ok(Self { reader, is_digits, descending: sort.descending, nulls_first: sort.nulls_first })
    }

    /// The column that it is read from.
    pub(super) fn column(&self) -> usize {
        self.reader.at
    }

    /// A number that is never greater for the row that comes first.
    ///
    /// # Errors
    /// The row's value cannot be read.
    pub(super) fn rank(&self, row: &Row<'_>) -> Result<(u8, u64), Error> {
        let Some(bytes) = row.get(self.reader.at) else { return Ok((if self.nulls_first { 0 } else { 2 }, 0)) };
        let prefix = match self.is_digits {
            true => binary::prefix(Kind::Int8, &digits(bytes).ok_or_else(unreadable)?.to_be_bytes()),
            false if binary::is_value(self.reader.kind, bytes) => binary::prefix(self.reader.kind, bytes),
            false => return Err(unreadable()),
        };
        Ok((1, if self.descending { !prefix } else { prefix }))
    }

    /// Whether rows of one rank are equal in this key.
    pub(super) fn is_told_by_rank(&self) -> bool {
        binary::is_told_by_prefix(self.reader.kind)
    }

    /// The order of two rows that have ranks.
    pub(super) fn compare(&self, a: &Row<'_>, b: &Row<'_>) -> Ordering {
        match (a.get(self.reader.at), b.get(self.reader.at)) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) if self.nulls_first => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) if self.nulls_first => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) if self.descending => self.compare_values(b, a),
            (Some(a), Some(b)) => self.compare_values(a, b),
        }
    }

    fn compare_values(&self, a: &[u8], b: &[u8]) -> Ordering {
        if self.is_digits { digits(a).cmp(&digits(b)) } else { binary::compare(self.reader.kind, a, b) }
    }
}

/// An integer as `int8out` writes it.
fn digits(bytes: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match bytes {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    // Below zero there is one more than above.
    let below_zero = digits.iter().try_fold(0_i64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { value.checked_mul(10)?.checked_sub(i64::from(digit)) }
    })?;
    match (digits.is_empty(), is_negative) {
        (true, _) => None,
        (false, true) => Some(below_zero),
        (false, false) => below_zero.checked_neg(),
    }
}

#[cfg(test)]
mod tests {
    use super::digits;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_integer_of_eight_bytes_is_not_read() {
        for text in ["", "-", "1x", "--1", " 1", "9223372036854775808", "-9223372036854775809", "1.0"] {
            assert_eq!(digits(text.as_bytes()), None, "{text}");
        }
        assert_eq!(digits(b"007"), Some(7));
    }

    proptest! {
        #[test]
        fn an_integer_is_what_its_digits_say(value in prop_oneof![any::<i64>(), -100..100_i64, Just(i64::MIN), Just(i64::MAX)]) {
            prop_assert_eq!(digits(value.to_string().as_bytes()), Some(value));
        }
    }
}
