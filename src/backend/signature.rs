//! What a client was told of a statement that it has prepared: its parameters' types, and the rows that it gives.
//!
//! PostgreSQL refuses a prepared statement whose rows have become others, since a client goes by what it was told of them. Where a
//! statement has been prepared on no server as a whole, or on one that never knew it before, nobody but pgherd can.

use std::sync::OnceLock;

use bytes::Bytes;
use parking_lot::Mutex;

use super::own::read_types;
use crate::error::Error;
use crate::wire::frame::Body;

/// The first oid of what users make (`FirstNormalObjectId`).
const FIRST_USER_OID: u32 = 16384;

/// What servers have said of one statement of one client's.
#[derive(Debug, Default)]
pub struct Signature {
    parameters: OnceLock<Vec<u32>>,
    /// The body of the last RowDescription; empty where there was none.
    rows: Mutex<Bytes>,
}

impl Signature {
    /// Its parameters' types, once a server has told them.
    pub fn parameters(&self) -> Option<&[u32]> {
        self.parameters.get().map(Vec::as_slice)
    }

    /// Notes the body of a ParameterDescription. What was told first stays.
    pub(super) fn note_parameters(&self, body: &[u8]) {
        if let Some(types) = read_types(body) {
            let _ = self.parameters.set(types);
        }
    }

    /// Notes the body of a RowDescription that the client is sent.
    pub fn note_rows(&self, body: &[u8]) {
        let mut rows = self.rows.lock();
        if **rows != *body {
            *rows = Bytes::copy_from_slice(body);
        }
    }

    /// The body of the last RowDescription; empty where there was none.
    pub fn rows(&self) -> Bytes {
        self.rows.lock().clone()
    }

    /// Its client has prepared it anew, and not asked what it gives.
    pub fn forget_rows(&self) {
        *self.rows.lock() = Bytes::new();
    }

    /// Sees to it that a client who does not ask may be given rows that a RowDescription with this body speaks of, the last `hidden`
    /// columns aside.
    ///
    /// # Errors
    /// It was told of others: `cached plan must not change result type`.
    pub fn check_rows(&self, body: &[u8], hidden: usize) -> Result<(), Error> {
        let told = self.rows();
        let are_as_told =
            told.is_empty() || std::ptr::eq(&*told, body) || are_alike(&told, body, hidden).unwrap_or(false);
        if are_as_told { Ok(()) } else { Err(changed()) }
    }
}

/// PostgreSQL's refusal of a statement whose rows have become others. Drivers prepare anew when they read the routine's name.
pub fn changed() -> Error {
    const BODY: &[u8] =
        b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0Fplancache.c\0RRevalidateCachedQuery\0\0";
    Error::refused("cached plan must not change result type").verbatim(Bytes::from_static(BODY))
}

/// Whether two RowDescriptions' columns have the same names, types and modifiers; of the second all but the last `hidden`. Tables have
/// other oids on another server, formats are Bind's, and types that users made are as long there at least.
fn are_alike(told: &[u8], given: &[u8], hidden: usize) -> Option<bool> {
    let (mut told, mut given) = (Body::new(told), Body::new(given));
    let count = usize::try_from(told.i16()?).ok()?;
    if usize::try_from(given.i16()?).ok()? != count + hidden {
        return Some(false);
    }
    for _ in 0..count {
        let (a, b) = (Column::read(&mut told)?, Column::read(&mut given)?);
        let are_users = a.type_oid >= FIRST_USER_OID && b.type_oid >= FIRST_USER_OID;
        let is_same_type = a.type_oid == b.type_oid || (are_users && a.size == b.size);
        if a.name != b.name || a.typmod != b.typmod || !is_same_type {
            return Some(false);
        }
    }
    Some(true)
}

struct Column<'a> {
    name: &'a [u8],
    type_oid: u32,
    size: i16,
    typmod: i32,
}

impl<'a> Column<'a> {
    fn read(body: &mut Body<'a>) -> Option<Self> {
        let name = body.cstr()?;
        let (_table, _attribute, type_oid) = (body.i32()?, body.i16()?, body.i32()? as u32);
        let (size, typmod, _format) = (body.i16()?, body.i32()?, body.i16()?);
        Some(Self { name, type_oid, size, typmod })
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;

    /// A RowDescription's body: names, type oids, sizes and modifiers.
    fn rows(columns: &[(&str, u32, i16, i32)]) -> BytesMut {
        let mut body = BytesMut::new();
        body.put_i16(columns.len() as i16);
        for (name, type_oid, size, typmod) in columns {
            body.extend_from_slice(name.as_bytes());
            body.put_u8(0);
            body.put_u32(70_000);
            body.put_i16(1);
            body.put_u32(*type_oid);
            body.put_i16(*size);
            body.put_i32(*typmod);
            body.put_i16(0);
        }
        body
    }

    #[test]
    fn rows_of_other_columns_are_not_for_a_client_that_was_told() {
        let told = Signature::default();
        let (int, text) = (("a", 23, 4, -1), ("b", 25, -1, -1));
        assert!(told.check_rows(&rows(&[int]), 0).is_ok(), "it was told nothing yet");
        told.note_rows(&rows(&[int, text]));
        assert!(told.check_rows(&rows(&[int, text]), 0).is_ok());
        assert!(told.check_rows(&rows(&[int, text, ("hidden", 20, 8, -1)]), 1).is_ok());
        for others in [
            &[int][..],
            &[int, text, ("c", 25, -1, -1)],
            &[("a", 20, 8, -1), text],
            &[("A", 23, 4, -1), text],
            &[int, ("b", 1043, -1, 14)],
        ] {
            let error = told.check_rows(&rows(others), 0).expect_err("other rows");
            assert_eq!(
                (error.sqlstate().code(), error.message()),
                ("0A000", "cached plan must not change result type")
            );
        }
        told.note_rows(&rows(&[int]));
        assert!(told.check_rows(&rows(&[int]), 0).is_ok(), "it has asked again");
    }

    #[test]
    fn types_that_users_made_have_other_oids_elsewhere() {
        let told = Signature::default();
        told.note_rows(&rows(&[("mood", 16_400, 4, -1)]));
        assert!(told.check_rows(&rows(&[("mood", 16_500, 4, -1)]), 0).is_ok());
        assert!(told.check_rows(&rows(&[("mood", 16_500, -1, -1)]), 0).is_err());
        assert!(told.check_rows(&rows(&[("mood", 23, 4, -1)]), 0).is_err());
        assert!(told.check_rows(b"\0\x01mood", 0).is_err(), "cut short");
    }
}
