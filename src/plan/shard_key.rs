//! Which shard a key's value belongs to, and which shards a comparison with the key leaves in question.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::catalog::model::{Catalog, Collation, Column, Oid, Relation};
use crate::config::model::{Distribution, Table};
use crate::plan::distribute::Collating;
use crate::plan::hash;
use crate::plan::value::{Kind, Value};

/// Shards that can hold rows of interest.
pub type ShardSet = BTreeSet<usize>;

/// The oid of the `default` collation.
const DEFAULT_COLLATION: Oid = 100;

/// The oid of type `name`.
const NAME_OID: Oid = 19;

/// How one table's rows lie on the shards, ready to be asked.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The shard key's column.
    pub column: Column,
    /// Its type, where pgherd can read it; otherwise nothing is ever pruned.
    pub kind: Option<Kind>,
    /// What is known of its collation.
    pub collating: Collating,
    shards: usize,
    parts: Parts,
}

#[derive(Debug, Clone, PartialEq)]
enum Parts {
    Hash,
    Range(Vec<(Option<Value>, Option<Value>, usize)>),
    List(Vec<(Option<Value>, usize)>),
    /// Bounds in a spelling or of a type that pgherd does not read.
    Unreadable(Distribution),
}

impl Layout {
    /// The layout of a sharded table; `None` for a reference table, or if the relation lacks the key's column.
    pub fn new(table: &Table, relation: &Relation, catalog: &Catalog, shards: usize) -> Option<Self> {
        let name = match &table.distribution {
            Distribution::Reference => return None,
            Distribution::Hash { column } | Distribution::Range { column, .. } | Distribution::List { column, .. } => {
                column
            }
        };
        let column = relation.columns.iter().find(|column| *column.name == **name)?.clone();
        let collating = collating(column.collation, catalog);
        // `name` cuts what is stored in it, and a nondeterministic collation calls different bytes equal.
        let is_readable = |kind: &Kind| !kind.is_collatable() || collating >= Collating::Deterministic;
        let kind = Kind::of(column.type_oid).filter(|kind| column.type_oid != NAME_OID && is_readable(kind));
        let parts = kind.and_then(|kind| parts(&table.distribution, kind));
        let parts = parts.unwrap_or_else(|| Parts::Unreadable(table.distribution.clone()));
        Some(Self { column, kind, collating, shards, parts })
    }

    /// Every shard.
    pub fn all(&self) -> ShardSet {
        (0..self.shards).collect()
    }

    /// Whether rows with equal keys lie on the same shard: same method, same type and collation, same parts.
    pub fn is_colocated(&self, other: &Self) -> bool {
        let parts = match (&self.parts, &other.parts) {
            (Parts::Unreadable(_), _) | (_, Parts::Unreadable(_)) => false,
            (a, b) => a == b,
        };
        parts && self.column.type_oid == other.column.type_oid && self.column.collation == other.column.collation
    }

    /// The shard that a row with this key belongs to; `None` if no part takes it or pgherd cannot tell.
    pub fn place(&self, key: Option<&Value>) -> Option<usize> {
        match &self.parts {
            Parts::Hash => hash::remainder(self.kind?, key, self.shards),
            Parts::Range(ranges) => {
                let key = key.filter(|_| self.is_ordered())?;
                ranges.iter().find(|(from, to, _)| holds(from.as_ref(), to.as_ref(), key)).map(|part| part.2)
            }
            Parts::List(values) => values.iter().find(|(value, _)| same(value.as_ref(), key)).map(|part| part.1),
            Parts::Unreadable(_) => None,
        }
    }

    /// Shards with rows whose key equals the value (NULL: whose key is NULL); none if no part takes it.
    pub fn equal(&self, key: Option<&Value>) -> ShardSet {
        let is_readable = match &self.parts {
            Parts::Hash => self.kind.is_some_and(|kind| kind != Kind::Bpchar),
            Parts::Range(_) => self.is_ordered(),
            Parts::List(_) => self.kind.is_some_and(|kind| kind != Kind::Bpchar),
            Parts::Unreadable(_) => false,
        };
        if is_readable { self.place(key).into_iter().collect() } else { self.all() }
    }

    /// Shards with rows whose key compares to the value with one of `holds` (`key < value`: Less).
    pub fn compared(&self, holds: &[Ordering], value: &Value) -> ShardSet {
        if !self.is_ordered() {
            return self.all();
        }
        let (less, equal, greater) =
            (holds.contains(&Ordering::Less), holds.contains(&Ordering::Equal), holds.contains(&Ordering::Greater));
        match &self.parts {
            Parts::Range(ranges) => ranges
                .iter()
                .filter(|(from, to, _)| {
                    let below = from.as_ref().is_none_or(|from| match from.compare(value) {
                        Ordering::Less => true,
                        Ordering::Equal => equal,
                        Ordering::Greater => false,
                    });
                    let above = to.as_ref().is_none_or(|to| to.compare(value) == Ordering::Greater);
                    (less && below) || (greater && above) || (equal && holds.len() == 1 && below && above)
                })
                .map(|part| part.2)
                .collect(),
            Parts::List(values) => values
                .iter()
                .filter(|(listed, _)| listed.as_ref().is_some_and(|listed| holds.contains(&listed.compare(value))))
                .map(|part| part.1)
                .collect(),
            Parts::Hash | Parts::Unreadable(_) => self.all(),
        }
    }

    fn is_ordered(&self) -> bool {
        self.kind
            .is_some_and(|kind| kind != Kind::Bpchar && (!kind.is_collatable() || self.collating == Collating::Bytes))
    }
}

fn parts(distribution: &Distribution, kind: Kind) -> Option<Parts> {
    let read = |text: &String| Value::parse(kind, text);
    match distribution {
        Distribution::Reference => None,
        Distribution::Hash { .. } => Some(Parts::Hash).filter(|_| hash::remainder(kind, None, 1).is_some()),
        Distribution::Range { ranges, .. } => {
            let bound = |text: &Option<String>| text.as_ref().map_or(Some(None), |text| read(text).map(Some));
            let ranges: Option<Vec<_>> =
                ranges.iter().map(|part| Some((bound(&part.from)?, bound(&part.to)?, part.shard))).collect();
            Some(Parts::Range(ranges?))
        }
        Distribution::List { parts, .. } => {
            let mut values = Vec::new();
            for part in parts {
                for text in &part.values {
                    let value = match text {
                        Some(text) => Some(read(text)?),
                        None => None,
                    };
                    values.push((value, part.shard));
                }
            }
            Some(Parts::List(values))
        }
    }
}

fn holds(from: Option<&Value>, to: Option<&Value>, key: &Value) -> bool {
    from.is_none_or(|from| from.compare(key) != Ordering::Greater)
        && to.is_none_or(|to| to.compare(key) == Ordering::Greater)
}

fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.compare(b) == Ordering::Equal,
        _ => false,
    }
}

/// What is known of a collation by its oid; types without one count as `Bytes`.
pub fn collating(collation: Oid, catalog: &Catalog) -> Collating {
    let known: Option<&Collation> = match collation {
        0 => return Collating::Bytes,
        DEFAULT_COLLATION => catalog.default_collation.as_ref(),
        oid => catalog.collations.get(&oid),
    };
    match known {
        None => Collating::Unknown,
        Some(collation) if collation.is_byte_order() => Collating::Bytes,
        Some(collation) if collation.deterministic => Collating::Deterministic,
        Some(_) => Collating::Unknown,
    }
}
