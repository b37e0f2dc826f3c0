//! DataRow bodies: finding a column's bytes, and cutting hidden columns off.

use bytes::{BufMut, BytesMut};

use crate::error::Error;
use crate::wire::frame::Body;
use crate::wire::writer;

/// A shard's DataRow that is not one.
fn malformed() -> Error {
    Error::internal("a shard sent a DataRow that cannot be read")
}

/// The columns' bytes; NULL is `None`.
///
/// # Errors
/// A body whose columns are not `count`, or that ends too early or too late.
pub(super) fn columns(body: &[u8], count: usize) -> Result<Vec<Option<&[u8]>>, Error> {
    let mut body = Body::new(body);
    let stated = body.i16().and_then(|stated| usize::try_from(stated).ok()).ok_or_else(malformed)?;
    if stated != count {
        return Err(malformed());
    }
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        let len = body.i32().ok_or_else(malformed)?;
        columns.push(match usize::try_from(len) {
            Ok(len) => Some(body.bytes(len).ok_or_else(malformed)?),
            Err(_) => None,
        });
    }
    if body.rest().is_empty() { Ok(columns) } else { Err(malformed()) }
}

/// Bytes at the front of a body that the first `visible` columns take, count included.
///
/// # Errors
/// A body that ends too early.
pub(super) fn visible_len(body: &[u8], visible: usize) -> Result<usize, Error> {
    let mut rest = Body::new(body);
    rest.i16().ok_or_else(malformed)?;
    for _ in 0..visible {
        let len = rest.i32().ok_or_else(malformed)?;
        if let Ok(len) = usize::try_from(len) {
            rest.bytes(len).ok_or_else(malformed)?;
        }
    }
    Ok(body.len() - rest.rest().len())
}

/// Writes the DataRow with its first `visible` columns, whose bytes are `body[..len]`.
pub(super) fn write_front(out: &mut BytesMut, front: &[u8], visible: usize) {
    writer::message(out, b'D', |out| {
        out.put_i16(i16::try_from(visible).unwrap_or(i16::MAX));
        out.put_slice(front.get(2..).unwrap_or_default());
    });
}
