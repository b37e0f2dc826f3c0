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

    /// Its client has prepared it anew, and not asked what it gives.
    pub fn forget_rows(&self) {
        *self.rows.lock() = Bytes::new();
    }

    /// Sees to it that a client who does not ask may be given rows that a RowDescription with this body speaks of, the last `hidden`
    /// columns aside.
    ///
    /// # Errors
    /// It was told of others: `cached plan must not change result type`.
    pub fn check_rows(&self, body: &[u8], hidden: usize, whence: Whence<'_>) -> Result<(), Error> {
        let told = self.rows.lock().clone();
        let are_as_told = told.is_empty() || *told == *body || are_alike(&told, body, hidden, whence).unwrap_or(false);
        if are_as_told { Ok(()) } else { Err(changed()) }
    }
}

/// Where rows come from that a client was told of before.
#[derive(Debug, Clone, Copy)]
pub enum Whence<'a> {
    /// The database that told it, or a copy of that: oids mean the same there.
    Here,
    /// Another one, in these formats (as in Bind: none, one for all, one each). Types that users made have other oids there; no value
    /// holds one in text, nor where it is of a fixed length.
    Elsewhere(&'a [i16]),
}

impl Whence<'_> {
    fn is_same_type(self, at: usize, a: &Column<'_>, b: &Column<'_>) -> bool {
        let Self::Elsewhere(formats) = self else { return a.type_oid == b.type_oid };
        let is_text = match formats {
            [] => true,
            [all] => *all == 0,
            each => each.get(at).is_none_or(|format| *format == 0),
        };
        let are_users = a.type_oid >= FIRST_USER_OID && b.type_oid >= FIRST_USER_OID;
        a.type_oid == b.type_oid || (are_users && a.size == b.size && (is_text || a.size > 0))
    }
}

const CHANGED: &str = "cached plan must not change result type";

/// PostgreSQL's refusal of a statement whose rows have become others. Drivers prepare anew when they read the routine's name.
pub fn changed() -> Error {
    const BODY: &[u8] =
        b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0Fplancache.c\0RRevalidateCachedQuery\0\0";
    Error::refused(CHANGED).verbatim(Bytes::from_static(BODY))
}

/// Whether an error is that.
pub fn is_changed(error: &Error) -> bool {
    error.message() == CHANGED
}

/// Whether two RowDescriptions' columns have the same names, types and modifiers; of the second all but the last `hidden`. Names that
/// are not ASCII say nothing: they come in whatever encoding the client had.
fn are_alike(told: &[u8], given: &[u8], hidden: usize, whence: Whence<'_>) -> Option<bool> {
    let (mut told, mut given) = (Body::new(told), Body::new(given));
    let count = usize::try_from(told.i16()?).ok()?;
    if usize::try_from(given.i16()?).ok()? != count + hidden {
        return Some(false);
    }
    for at in 0..count {
        let (a, b) = (Column::read(&mut told)?, Column::read(&mut given)?);
        let is_same_name = a.name == b.name || !(a.name.is_ascii() && b.name.is_ascii());
        if !is_same_name || a.typmod != b.typmod || !whence.is_same_type(at, &a, &b) {
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
        let check = |columns: &[(&str, u32, i16, i32)], hidden| told.check_rows(&rows(columns), hidden, Whence::Here);
        let (int, text) = (("a", 23, 4, -1), ("b", 25, -1, -1));
        assert!(check(&[int], 0).is_ok(), "it was told nothing yet");
        told.note_rows(&rows(&[int, text]));
        assert!(check(&[int, text], 0).is_ok());
        assert!(check(&[int, text, ("hidden", 20, 8, -1)], 1).is_ok());
        for others in [
            &[int][..],
            &[int, text, ("c", 25, -1, -1)],
            &[("a", 20, 8, -1), text],
            &[("A", 23, 4, -1), text],
            &[int, ("b", 1043, -1, 14)],
        ] {
            let error = check(others, 0).expect_err("other rows");
            assert_eq!(
                (error.sqlstate().code(), error.message()),
                ("0A000", "cached plan must not change result type")
            );
        }
        told.note_rows(&rows(&[int]));
        assert!(check(&[int], 0).is_ok(), "it has asked again");
    }

    #[test]
    fn types_that_users_made_have_other_oids_elsewhere() {
        let told = Signature::default();
        let (mood, fields) = (("mood", 16_400, 4, -1), ("fields", 16_402, -1, -1));
        told.note_rows(&rows(&[mood, fields]));
        let check = |columns: &[(&str, u32, i16, i32)], given| told.check_rows(&rows(columns), 0, given).is_ok();
        let there = [("mood", 16_500, 4, -1), ("fields", 16_502, -1, -1)];
        assert!(check(&there, Whence::Elsewhere(&[])) && check(&there, Whence::Elsewhere(&[1, 0])));
        assert!(!check(&there, Whence::Elsewhere(&[1])), "what it holds in binary form may be an oid");
        assert!(!check(&there, Whence::Here));
        assert!(!check(&[("mood", 23, 4, -1), fields], Whence::Elsewhere(&[])));
        assert!(told.check_rows(b"\0\x02mood", 0, Whence::Here).is_err(), "cut short");
    }

    #[test]
    fn a_name_in_another_encoding_is_the_same_name() {
        let told = Signature::default();
        let mut latin = rows(&[("pr?nom", 25, -1, -1)]);
        latin[4] = 0xe9;
        told.note_rows(&latin);
        assert!(told.check_rows(&rows(&[("pr\u{e9}nom", 25, -1, -1)]), 0, Whence::Here).is_ok());
        assert!(told.check_rows(&rows(&[("pr\u{e9}nom", 23, 4, -1)]), 0, Whence::Here).is_err());
    }
}
