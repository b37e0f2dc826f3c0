//! One column's values as an array parameter, in PostgreSQL's binary form or as text.

use bytes::{BufMut, Bytes, BytesMut};

use crate::plan::distribute::Carried;

/// An array that grows.
pub(super) struct Array {
    form: Carried,
    values: BytesMut,
    count: i32,
    has_null: bool,
}

impl Array {
    pub(super) fn new(form: Carried) -> Self {
        Self { form, values: BytesMut::new(), count: 0, has_null: false }
    }

    pub(super) fn push(&mut self, value: Option<&[u8]>) {
        let is_first = self.count == 0;
        self.count = self.count.saturating_add(1);
        self.has_null |= value.is_none();
        match (self.form, value) {
            (Carried::Binary(_), None) => self.values.put_i32(-1),
            (Carried::Binary(_), Some(value)) => {
                self.values.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
                self.values.put_slice(value);
            }
            (_, value) => {
                if !is_first {
                    self.values.put_u8(b',');
                }
                match value {
                    None => self.values.put_slice(b"NULL"),
                    Some(value) => self.quote(value),
                }
            }
        }
    }

    fn quote(&mut self, value: &[u8]) {
        self.values.put_u8(b'"');
        for &byte in value {
            if matches!(byte, b'"' | b'\\') {
                self.values.put_u8(b'\\');
            }
            self.values.put_u8(byte);
        }
        self.values.put_u8(b'"');
    }

    /// The parameter's format code and value.
    pub(super) fn finish(self) -> (i16, Bytes) {
        let mut out = BytesMut::with_capacity(self.values.len() + 20);
        let Carried::Binary(element) = self.form else {
            out.put_u8(b'{');
            out.put_slice(&self.values);
            out.put_u8(b'}');
            return (0, out.freeze());
        };
        // PostgreSQL's array_send: dimensions, whether there are NULLs, the element type; of each dimension length and lower bound.
        out.put_i32(i32::from(self.count > 0));
        out.put_i32(i32::from(self.has_null));
        out.put_u32(element);
        if self.count > 0 {
            out.put_i32(self.count);
            out.put_i32(1);
            out.put_slice(&self.values);
        }
        (1, out.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted() {
        let mut array = Array::new(Carried::Text);
        [Some(&b"a"[..]), None, Some(b"NULL"), Some(b"q\"\\,{}"), Some(b"")].into_iter().for_each(|it| array.push(it));
        assert_eq!(array.finish(), (0, Bytes::from_static(br#"{"a",NULL,"NULL","q\"\\,{}",""}"#)));
    }

    #[test]
    fn binary_arrays_have_their_header() {
        let mut array = Array::new(Carried::Binary(23));
        assert_eq!(Array::new(Carried::Binary(23)).finish().1.len(), 12);
        array.push(Some(&[0, 0, 0, 7]));
        array.push(None);
        let wanted = b"\0\0\0\x01\0\0\0\x01\0\0\0\x17\0\0\0\x02\0\0\0\x01\0\0\0\x04\0\0\0\x07\xff\xff\xff\xff";
        assert_eq!(array.finish(), (1, Bytes::from_static(wanted)));
    }
}
