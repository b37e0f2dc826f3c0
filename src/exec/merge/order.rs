//! Comparing rows by sort keys as ORDER BY does.

use std::cmp::Ordering;

use crate::plan::distribute::Sort;
use crate::plan::value::Value;

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
