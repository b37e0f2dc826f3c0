//! DataRow bodies: finding columns where they lie, and cutting hidden columns off.

use bytes::{BufMut, BytesMut};

use crate::error::Error;
use crate::wire::writer;

/// A shard's DataRow that is not one.
fn malformed() -> Error {
    Error::internal("a shard sent a DataRow that cannot be read")
}

/// Where the columns of one row lie in its body; kept and filled again for the next row.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields(Vec<Field>);

#[derive(Debug, Clone, Copy)]
struct Field {
    start: u32,
    end: u32,
    is_null: bool,
}

impl Fields {
    /// Looks where the columns of that body lie.
    ///
    /// # Errors
    /// A body whose columns are not `count`, or that ends too early or too late.
    pub(super) fn read(&mut self, body: &[u8], count: usize) -> Result<(), Error> {
        self.read_front(body, count, count)
    }

    /// As [`Fields::read`], for the first `needed` columns: what is behind them is not looked at.
    pub(super) fn read_front(&mut self, body: &[u8], count: usize, needed: usize) -> Result<(), Error> {
        self.0.clear();
        let Some((stated, _)) = body.split_first_chunk::<2>() else { return Err(malformed()) };
        if usize::try_from(i16::from_be_bytes(*stated)) != Ok(count) {
            return Err(malformed());
        }
        let mut at = 2;
        for _ in 0..needed.min(count) {
            let len = body.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(malformed)?;
            let len = i32::from_be_bytes(*len);
            let (start, is_null) = (at + 4, len < 0);
            at = start + len.max(0) as usize;
            if at > body.len() {
                return Err(malformed());
            }
            // A message is no longer than an i32 says.
            self.0.push(Field { start: start as u32, end: at as u32, is_null });
        }
        if at == body.len() || needed < count { Ok(()) } else { Err(malformed()) }
    }

    /// A column's bytes in the body that was read; `None` is NULL.
    pub(super) fn get<'b>(&self, body: &'b [u8], at: usize) -> Option<&'b [u8]> {
        let field = self.0.get(at).filter(|field| !field.is_null)?;
        body.get(field.start as usize..field.end as usize)
    }

    /// Bytes at the front of the body that the first `visible` columns take, their number included.
    pub(super) fn front_len(&self, visible: usize) -> usize {
        visible.checked_sub(1).and_then(|last| self.0.get(last)).map_or(2, |field| field.end as usize)
    }
}

/// One row that was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// Its body.
    pub(super) body: &'a [u8],
    /// Where its columns lie.
    pub(super) fields: &'a Fields,
}

impl<'a> Row<'a> {
    /// A column's bytes; `None` is NULL.
    pub(super) fn get(&self, at: usize) -> Option<&'a [u8]> {
        self.fields.get(self.body, at)
    }
}

/// Writes the DataRow with the first `visible` columns, which take `front` of its body.
pub(super) fn write_front(out: &mut BytesMut, front: &[u8], visible: usize) {
    writer::message(out, b'D', |out| {
        out.put_i16(i16::try_from(visible).unwrap_or(i16::MAX));
        out.put_slice(front.get(2..).unwrap_or_default());
    });
}
