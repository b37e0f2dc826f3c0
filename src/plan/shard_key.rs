//! Which shard a key's value belongs to, and which shards a comparison with the key leaves in question.

mod limits;

use std::collections::BTreeSet;

pub use self::limits::{Bound, Limits};
use self::limits::{Cut, Span, same};
use crate::catalog::model::{Catalog, Collation, Column, DefaultKind, Oid, Relation};
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

/// Keys that are looked at one by one; beyond that every shard is in question.
const MOST_KEYS: usize = 4096;

/// A name that no column has.
const NAMELESS: &str = "\0";

/// How one table's rows lie on the shards, ready to be asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The shard key's columns.
    pub key: Vec<KeyColumn>,
    shards: usize,
    parts: Parts,
}

/// One column of a shard key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyColumn {
    /// The column.
    pub column: Column,
    /// Its type, where pgherd can read it; otherwise nothing is ever pruned.
    pub kind: Option<Kind>,
    /// What is known of its collation.
    pub collating: Collating,
}

impl KeyColumn {
    /// The kind, where equality with a constant says where a row lies; `char(n)` compares in too many ways.
    pub fn prunable(&self) -> Option<Kind> {
        self.kind.filter(|&kind| kind != Kind::Bpchar)
    }

    /// The kind, where pgherd orders its values as PostgreSQL does.
    pub fn ordered(&self) -> Option<Kind> {
        self.prunable().filter(|kind| !kind.is_collatable() || self.collating == Collating::Bytes)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Parts {
    Hash,
    /// Ranges with their shards, and the shard of all other rows.
    Range(Vec<(Span, usize)>, Option<usize>),
    /// Values with their shards, and the shard of all other rows.
    List(Vec<(Option<Value>, usize)>, Option<usize>),
    /// Bounds in a spelling or of a type that pgherd does not read.
    Unreadable(Distribution),
}

impl Layout {
    /// The layout of a sharded table; `None` for a reference table, or if the relation lacks a column of the key.
    pub fn new(table: &Table, relation: &Relation, catalog: &Catalog, shards: usize) -> Option<Self> {
        let key: Option<Vec<KeyColumn>> =
            table.distribution.key().iter().map(|name| key_column(name, relation, catalog)).collect();
        let key = key.filter(|key| !key.is_empty())?;
        let kinds: Option<Vec<Kind>> = key.iter().map(|column| column.kind).collect();
        let parts = kinds.and_then(|kinds| parts(&table.distribution, &kinds));
        let parts = parts.unwrap_or_else(|| Parts::Unreadable(table.distribution.clone()));
        Some(Self { key, shards, parts })
    }

    /// The layout of a table whose rows lie on shards as nobody can tell: no column has the key.
    pub fn without_key(shards: usize) -> Self {
        let column = Column {
            name: NAMELESS.into(),
            type_oid: 0,
            typmod: -1,
            collation: 0,
            not_null: false,
            has_default: false,
            is_generated: false,
            default: DefaultKind::None,
            moment: None,
        };
        let key = vec![KeyColumn { column, kind: None, collating: Collating::Unknown }];
        Self { key, shards, parts: Parts::Unreadable(Distribution::Reference) }
    }

    /// Every shard.
    pub fn all(&self) -> ShardSet {
        (0..self.shards).collect()
    }

    /// Where a column stands in the key, if it is part of it.
    pub fn position(&self, column: &str) -> Option<usize> {
        self.key.iter().position(|it| *it.column.name == *column)
    }

    /// The key's columns as people read them.
    pub fn names(&self) -> String {
        self.key.iter().map(|it| format!("\"{}\"", it.column.name)).collect::<Vec<_>>().join(", ")
    }

    /// Whether rows with equal keys lie on the same shard: same method, same types and collations, same parts.
    pub fn is_colocated(&self, other: &Self) -> bool {
        let parts = match (&self.parts, &other.parts) {
            (Parts::Unreadable(_), _) | (_, Parts::Unreadable(_)) => false,
            (a, b) => a == b,
        };
        let is_alike = |(a, b): (&KeyColumn, &KeyColumn)| {
            a.column.type_oid == b.column.type_oid && a.column.collation == b.column.collation
        };
        parts && self.key.len() == other.key.len() && self.key.iter().zip(&other.key).all(is_alike)
    }

    /// The shard that a row with this key belongs to; `None` if no part takes it or pgherd cannot tell.
    pub fn place(&self, key: &[Option<Value>]) -> Option<usize> {
        if key.len() != self.key.len() {
            return None;
        }
        match &self.parts {
            Parts::Hash => {
                let kinds: Option<Vec<Kind>> = self.key.iter().map(|column| column.kind).collect();
                let key: Vec<_> = kinds?.into_iter().zip(key.iter().map(Option::as_ref)).collect();
                hash::remainder(&key, self.shards)
            }
            Parts::Range(ranges, default) => {
                if self.key.iter().any(|column| column.ordered().is_none()) {
                    return None;
                }
                // Ranges take no NULL.
                let Some(values) = key.iter().cloned().collect::<Option<Vec<Value>>>() else { return *default };
                let whole = Span { from: Cut::before(values.clone()), to: Cut::behind(values) };
                ranges.iter().find(|(part, _)| part.meets(&whole)).map(|part| part.1).or(*default)
            }
            Parts::List(values, default) => {
                let key = key.first()?;
                let found = values.iter().find(|(value, _)| same(value.as_ref(), key.as_ref()));
                found.map(|part| part.1).or(*default)
            }
            Parts::Unreadable(_) => None,
        }
    }

    /// Shards with rows whose keys lie within the limits, one for each column.
    pub fn reached(&self, limits: &[Limits]) -> ShardSet {
        match &self.parts {
            Parts::Unreadable(_) => self.all(),
            Parts::Hash => self.each(limits).unwrap_or_else(|| self.all()),
            Parts::List(values, default) => match limits {
                [Limits::Values(_)] => self.each(limits).unwrap_or_else(|| self.all()),
                [between @ Limits::Between(..)] => {
                    let listed = values.iter().filter(|(value, _)| value.is_some() && between.allows(value.as_ref()));
                    listed.map(|part| part.1).chain(*default).collect()
                }
                _ => self.all(),
            },
            Parts::Range(ranges, default) => self.within(limits, ranges, *default).unwrap_or_else(|| self.all()),
        }
    }

    /// The shards of all keys that lists of values make together; `None` where one is not limited to a list, or there are too many.
    fn each(&self, limits: &[Limits]) -> Option<ShardSet> {
        if self.key.iter().any(|column| column.prunable().is_none()) {
            return None;
        }
        let lists: Option<Vec<&Vec<Option<Value>>>> = limits
            .iter()
            .map(|limits| match limits {
                Limits::Values(values) => Some(values),
                _ => None,
            })
            .collect();
        let mut keys: Vec<Vec<Option<Value>>> = vec![Vec::new()];
        for list in lists? {
            keys = extended(&keys, list)?;
        }
        Some(keys.iter().filter_map(|key| self.place(key)).collect())
    }

    /// Shards of ranges that the limits meet; `None` where they cannot be told apart.
    fn within(&self, limits: &[Limits], ranges: &[(Span, usize)], default: Option<usize>) -> Option<ShardSet> {
        if self.key.iter().any(|column| column.ordered().is_none()) {
            return None;
        }
        let mut shards = ShardSet::new();
        let mut may_be_null = false;
        let mut prefixes: Vec<Vec<Option<Value>>> = vec![Vec::new()];
        let mut next = &Limits::Any;
        for limit in limits {
            next = limit;
            let Limits::Values(values) = limit else { break };
            may_be_null |= values.iter().any(Option::is_none);
            let given: Vec<Option<Value>> = values.iter().filter(|value| value.is_some()).cloned().collect();
            prefixes = extended(&prefixes, &given)?;
            next = &Limits::Any;
        }
        may_be_null |= limits.iter().any(|limit| *limit == Limits::Any || limit.allows(None));
        // A column behind the first that is no list may be limited to nothing at all.
        if limits.iter().any(|limit| matches!(limit, Limits::Values(values) if values.is_empty())) {
            return Some(shards);
        }
        for prefix in prefixes {
            let span = Span::new(prefix.into_iter().flatten().collect(), next);
            let met: Vec<&(Span, usize)> = ranges.iter().filter(|(part, _)| part.meets(&span)).collect();
            shards.extend(met.iter().map(|part| part.1));
            let parts: Vec<&Span> = met.iter().map(|part| &part.0).collect();
            if !span.is_covered(&parts) {
                shards.extend(default);
            }
        }
        shards.extend(default.filter(|_| may_be_null));
        Some(shards)
    }
}

/// Every key with each of the values behind it; `None` if these are too many.
fn extended(keys: &[Vec<Option<Value>>], values: &[Option<Value>]) -> Option<Vec<Vec<Option<Value>>>> {
    if keys.len().saturating_mul(values.len()) > MOST_KEYS {
        return None;
    }
    let one = |key: &Vec<Option<Value>>, value: &Option<Value>| key.iter().chain([value]).cloned().collect();
    Some(keys.iter().flat_map(|key| values.iter().map(move |value| one(key, value))).collect())
}

fn key_column(name: &str, relation: &Relation, catalog: &Catalog) -> Option<KeyColumn> {
    let column = relation.columns.iter().find(|column| *column.name == *name)?.clone();
    let collating = collating(column.collation, catalog);
    // `name` cuts what is stored in it, and a nondeterministic collation calls different bytes equal.
    let is_readable = |kind: &Kind| !kind.is_collatable() || collating >= Collating::Deterministic;
    let kind = Kind::of(column.type_oid).filter(|kind| column.type_oid != NAME_OID && is_readable(kind));
    Some(KeyColumn { column, kind, collating })
}

fn parts(distribution: &Distribution, kinds: &[Kind]) -> Option<Parts> {
    match distribution {
        Distribution::Reference => None,
        Distribution::Hash { .. } => {
            let is_hashed = |kind: &Kind| hash::is_hashed(*kind);
            Some(Parts::Hash).filter(|_| kinds.iter().all(is_hashed))
        }
        Distribution::Range { ranges, default, .. } => {
            let read = |values: &[String]| -> Option<Vec<Value>> {
                values.iter().zip(kinds).map(|(text, kind)| Value::parse(*kind, text)).collect()
            };
            let ranges: Option<Vec<_>> = ranges
                .iter()
                .map(|part| {
                    let from = Cut::before(part.from.as_deref().map_or(Some(Vec::new()), read)?);
                    let to = match part.to.as_deref() {
                        Some(to) => Cut::before(read(to)?),
                        None => Cut::behind(Vec::new()),
                    };
                    Some((Span { from, to }, part.shard))
                })
                .collect();
            Some(Parts::Range(ranges?, *default))
        }
        Distribution::List { parts, default, .. } => {
            let kind = *kinds.first()?;
            let mut values = Vec::new();
            for part in parts {
                for text in &part.values {
                    let value = match text {
                        Some(text) => Some(Value::parse(kind, text)?),
                        None => None,
                    };
                    values.push((value, part.shard));
                }
            }
            Some(Parts::List(values, *default))
        }
    }
}

/// Whether an expression of a type with that collation can have another one than what it is made from: one that does not sort by bytes
/// and is not the database's own.
pub fn brings_collation(collation: Oid, catalog: &Catalog) -> bool {
    collation != DEFAULT_COLLATION && collating(collation, catalog) != Collating::Bytes
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
