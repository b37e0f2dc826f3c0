//! The console's rows: columns with PgBouncer's types, values in either of the protocol's formats.

use bytes::{BufMut, BytesMut};

use crate::wire::writer;

/// A column's type, as PgBouncer has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// `text`
    Text,
    /// `int4`
    Int,
    /// `numeric`, for figures that grow without bound.
    Numeric,
}

impl Type {
    /// Object id and size in PostgreSQL's catalog.
    fn oid_and_size(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int => (23, 4),
            Self::Numeric => (1700, -1),
        }
    }
}

/// A column: its name and type.
pub(super) type Column = (&'static str, Type);

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// NULL.
    Null,
    /// A text.
    Text(String),
    /// A whole number, of the column's type.
    Number(u64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Number(flag.into())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// One row.
pub(super) type Row = Vec<Value>;

/// `T`; `formats` as in a Bind: none, one for all, or one for each column.
pub(super) fn row_description(out: &mut BytesMut, columns: &[Column], formats: &[i16]) {
    writer::message(out, b'T', |out| {
        out.put_i16(i16::try_from(columns.len()).unwrap_or(i16::MAX));
        for (at, (name, of_type)) in columns.iter().enumerate() {
            let (oid, size) = of_type.oid_and_size();
            writer::cstr(out, name.as_bytes());
            out.put_i32(0);
            out.put_i16(0);
            out.put_u32(oid);
            out.put_i16(size);
            out.put_i32(-1);
            out.put_i16(i16::from(is_binary(formats, at)));
        }
    });
}

/// `D`
pub(super) fn data_row(out: &mut BytesMut, columns: &[Column], row: &[Value], formats: &[i16]) {
    writer::message(out, b'D', |out| {
        out.put_i16(i16::try_from(row.len()).unwrap_or(i16::MAX));
        for (at, ((_, of_type), value)) in columns.iter().zip(row).enumerate() {
            put_value(out, *of_type, value, is_binary(formats, at));
        }
    });
}

fn is_binary(formats: &[i16], column: usize) -> bool {
    let format = if formats.len() == 1 { formats.first() } else { formats.get(column) };
    format == Some(&1)
}

fn put_value(out: &mut BytesMut, of_type: Type, value: &Value, is_binary: bool) {
    match (value, of_type) {
        (Value::Null, _) => out.put_i32(-1),
        (Value::Text(text), _) => put_bytes(out, text.as_bytes()),
        (Value::Number(number), Type::Int) if is_binary => {
            out.put_i32(4);
            out.put_i32(i32::try_from(*number).unwrap_or(i32::MAX));
        }
        (Value::Number(number), Type::Int) => put_bytes(out, (*number).min(i32::MAX as u64).to_string().as_bytes()),
        (Value::Number(number), Type::Numeric) if is_binary => put_numeric(out, *number),
        (Value::Number(number), _) => put_bytes(out, number.to_string().as_bytes()),
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    out.put_slice(bytes);
}

/// As PostgreSQL's `numeric_send`: digits of base 10,000, the weight of the first, sign, display scale.
fn put_numeric(out: &mut BytesMut, number: u64) {
    let mut digits = Vec::new();
    let mut rest = number;
    while rest > 0 {
        digits.push((rest % 10_000) as i16);
        rest /= 10_000;
    }
    let count = i16::try_from(digits.len()).unwrap_or(i16::MAX);
    out.put_i32(8 + 2 * i32::from(count));
    out.put_i16(count);
    out.put_i16((count - 1).max(0));
    out.put_i16(0);
    out.put_i16(0);
    digits.iter().rev().for_each(|digit| out.put_i16(*digit));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_both_formats() {
        let columns = [("a", Type::Int), ("b", Type::Numeric), ("c", Type::Text)];
        let row = [Value::Number(7), Value::Number(123_450_006), Value::Null];
        let mut out = BytesMut::new();
        data_row(&mut out, &columns, &row, &[]);
        assert_eq!(&out[5..], b"\0\x03\0\0\0\x017\0\0\0\x09123450006\xff\xff\xff\xff");
        out.clear();
        data_row(&mut out, &columns, &row, &[1]);
        let binary = b"\0\x03\0\0\0\x04\0\0\0\x07\0\0\0\x0e\0\x03\0\x02\0\0\0\0\0\x01\x09\x29\0\x06\xff\xff\xff\xff";
        assert_eq!(&out[5..], binary);
    }
}
