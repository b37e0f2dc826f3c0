//! RowDescription: read from a shard, compared between shards, written for the client.

use bytes::{BufMut, Bytes, BytesMut};

use crate::catalog::model::Oid;
use crate::error::Error;
use crate::wire::frame::Body;
use crate::wire::writer;

/// One column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: Bytes,
    /// The table it comes from, 0 for none.
    pub table: Oid,
    /// Its attribute number there.
    pub attribute: i16,
    /// Its type.
    pub type_oid: Oid,
    /// `typlen`
    pub size: i16,
    /// Its type modifier.
    pub typmod: i32,
}

/// The columns of a result, hidden ones included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// In order.
    pub columns: Vec<Column>,
}

impl Description {
    /// Reads the body of a RowDescription.
    ///
    /// # Errors
    /// A body that ends too early or too late.
    pub fn read(body: &[u8]) -> Result<Self, Error> {
        Self::parse(body).ok_or_else(|| Error::internal("a shard sent a RowDescription that cannot be read"))
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let mut body = Body::new(body);
        let count = usize::try_from(body.i16()?).ok()?;
        let mut columns = Vec::new();
        for _ in 0..count {
            let name = Bytes::copy_from_slice(body.cstr()?);
            let (table, attribute, type_oid) = (body.i32()? as u32, body.i16()?, body.i32()? as u32);
            let (size, typmod, _format) = (body.i16()?, body.i32()?, body.i16()?);
            columns.push(Column { name, table, attribute, type_oid, size, typmod });
        }
        body.rest().is_empty().then_some(Self { columns })
    }

    /// Whether rows of another server mean the same: names, types and modifiers; tables may have other oids. So may types that
    /// users made, as long as no value holds an oid: in text, and of types of fixed length (enums) in binary form.
    pub fn is_alike(&self, other: &Self, formats: impl Fn(usize) -> i16) -> bool {
        const FIRST_USER_OID: Oid = 16384;
        let same_type = |at: usize, a: &Column, b: &Column| {
            let are_users = a.type_oid >= FIRST_USER_OID && b.type_oid >= FIRST_USER_OID;
            a.type_oid == b.type_oid || (are_users && (formats(at) == 0 || (a.size > 0 && a.size == b.size)))
        };
        let same =
            |(at, (a, b)): (usize, (&Column, &Column))| a.name == b.name && a.typmod == b.typmod && same_type(at, a, b);
        self.columns.len() == other.columns.len() && self.columns.iter().zip(&other.columns).enumerate().all(same)
    }

    /// Whether the first `visible` columns of another description from the same server are these, whatever tables they come from.
    pub fn is_start_of(&self, other: &Self, visible: usize) -> bool {
        let bare = |column: &Column| Column { table: 0, attribute: 0, ..column.clone() };
        self.columns.iter().map(bare).eq(other.columns.iter().take(visible).map(bare))
    }

    /// The same without type modifiers, which shipped columns do not have.
    pub fn without_modifiers(&self) -> Self {
        Self { columns: self.columns.iter().map(|column| Column { typmod: -1, ..column.clone() }).collect() }
    }

    /// Writes the client's RowDescription: the first `visible` columns in these formats.
    pub fn write(&self, out: &mut BytesMut, visible: usize, formats: &[i16]) {
        writer::message(out, b'T', |out| {
            out.put_i16(i16::try_from(visible).unwrap_or(i16::MAX));
            for (at, column) in self.columns.iter().take(visible).enumerate() {
                writer::cstr(out, &column.name);
                out.put_u32(column.table);
                out.put_i16(column.attribute);
                out.put_u32(column.type_oid);
                out.put_i16(column.size);
                out.put_i32(column.typmod);
                out.put_i16(format_of(formats, at));
            }
        });
    }
}

/// The format code of a column: none is text, one is for all, else one each.
pub fn format_of(formats: &[i16], at: usize) -> i16 {
    match formats {
        [] => 0,
        [all] => *all,
        each => each.get(at).copied().unwrap_or(0),
    }
}
