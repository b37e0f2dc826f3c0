//! Hidden columns' types: which pgherd reads, which it may group and sort by.

use super::description::Description;
use super::row::Row;
use crate::error::Error;
use crate::plan::distribute::{Collating, Key};
use crate::plan::value::{Kind, Value};

/// A type or collation that pgherd will not compare by itself.
pub(super) fn refused(what: &str) -> Error {
    Error::refused(format!("{what} cannot be merged over several shards")).hint(
        "tie the statement to one value of the shard key, or group by the shard key, so that the shards do the work",
    )
}

/// A value that is not of its type.
pub(super) fn unreadable() -> Error {
    Error::internal("a shard sent a value that is not of its column's type")
}

/// Reads one hidden column of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader {
    /// Index among all columns.
    pub(super) at: usize,
    /// Its type.
    pub(super) kind: Kind,
}

impl Reader {
    /// A reader of that hidden column.
    ///
    /// # Errors
    /// `0A000` for a type that pgherd does not read.
    pub(super) fn new(description: &Description, visible: usize, hidden: usize) -> Result<Self, Error> {
        let at = visible + hidden;
        let column = description.columns.get(at).ok_or_else(|| Error::internal("a hidden column is missing"))?;
        let kind =
            Kind::of(column.type_oid).ok_or_else(|| refused(&format!("a value of type oid {}", column.type_oid)))?;
        Ok(Self { at, kind })
    }

    /// A reader of a column that rows are grouped by.
    pub(super) fn grouped(description: &Description, visible: usize, key: Key) -> Result<Self, Error> {
        let reader = Self::new(description, visible, key.hidden)?;
        if reader.kind.is_collatable() && key.collating < Collating::Deterministic {
            return Err(refused("GROUP BY or DISTINCT of a text whose collation is not known to be deterministic"));
        }
        Ok(reader)
    }

    /// A reader of a column that rows are sorted by.
    pub(super) fn sorted(description: &Description, visible: usize, key: Key) -> Result<Self, Error> {
        let reader = Self::new(description, visible, key.hidden)?;
        reader.check_order(key.collating, "ORDER BY")?;
        Ok(reader)
    }

    /// A reader of a visible column that rows are sorted by.
    pub(super) fn shown(description: &Description, at: usize, collating: Collating) -> Result<Self, Error> {
        let reader = Self::new(description, at, 0)?;
        reader.check_order(collating, "ORDER BY")?;
        Ok(reader)
    }

    /// Refuses texts whose collation does not sort by bytes.
    pub(super) fn check_order(&self, collating: Collating, what: &str) -> Result<(), Error> {
        if self.kind.is_collatable() && collating < Collating::Bytes {
            return Err(refused(&format!("{what} of a text whose collation does not sort by bytes")));
        }
        Ok(())
    }

    /// The column's value in a row; `None` is NULL.
    pub(super) fn read(&self, row: &Row<'_>) -> Result<Option<Value>, Error> {
        let Some(bytes) = row.get(self.at) else { return Ok(None) };
        Value::from_binary(self.kind, bytes).map(Some).ok_or_else(unreadable)
    }
}
