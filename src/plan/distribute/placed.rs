//! The shard of a row, by its key as a server gave it.

use super::constant::is_stored_as_is;
use super::refuse::refuse;
use crate::plan::Refusal;
use crate::plan::shard_key::{KeyColumn, Layout};
use crate::plan::value::Value;

/// Nobody takes a row.
pub(super) fn no_shard(layout: &Layout) -> Refusal {
    let message = format!("no shard takes a row with this value of {}", layout.names());
    let hint = "add the value's range or list entry to the table's configuration, or set default_shard";
    refuse("no-shard", message, hint)
}

/// The shard of a row whose key's columns are these, in binary form; `unreadable` is what to say where nobody can tell.
pub(super) fn shard_of<'b>(
    layout: &Layout,
    key: impl Iterator<Item = Option<&'b [u8]>>,
    unreadable: impl Fn(&Layout) -> Refusal,
) -> Result<usize, Refusal> {
    let read = |(column, bytes): (&KeyColumn, Option<&[u8]>)| {
        let Some(bytes) = bytes else { return Some(None) };
        let kind = column.kind?;
        let value = Value::from_binary(kind, bytes);
        value.filter(|value| is_stored_as_is(value, &column.column, kind)).map(Some)
    };
    let key: Option<Vec<Option<Value>>> = layout.key.iter().zip(key).map(read).collect();
    layout.place(&key.ok_or_else(|| unreadable(layout))?).ok_or_else(|| no_shard(layout))
}
