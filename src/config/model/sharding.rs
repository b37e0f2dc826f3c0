//! How a database is spread over its shards: by tables, each by its key, or by whole schemas.

use std::collections::BTreeMap;

/// One `[[database.table]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// How its rows are spread.
    pub distribution: Distribution,
    /// Tables of one group lie together: equal keys on the same shard.
    pub group: Option<String>,
}

/// How a table's rows are spread over the shards.
#[derive(Debug, Clone, PartialEq)]
pub enum Distribution {
    /// The whole table on every shard.
    Reference,
    /// By PostgreSQL's hash partitioning: shard `i` of `n` holds `MODULUS n, REMAINDER i`.
    Hash {
        /// The shard key's columns.
        columns: Vec<String>,
    },
    /// By ranges of the key, lower bound included, upper excluded.
    Range {
        /// The shard key's columns.
        columns: Vec<String>,
        /// The ranges, none overlapping.
        ranges: Vec<RangePart>,
        /// Where rows lie that no range takes.
        default: Option<usize>,
    },
    /// By listed values of the key.
    List {
        /// The shard key's column.
        column: String,
        /// The values by shard.
        parts: Vec<ListPart>,
        /// Where rows lie whose value is not listed.
        default: Option<usize>,
    },
}

impl Distribution {
    /// The shard key's columns; none for a reference table.
    pub fn key(&self) -> &[String] {
        match self {
            Self::Reference => &[],
            Self::Hash { columns } | Self::Range { columns, .. } => columns,
            Self::List { column, .. } => std::slice::from_ref(column),
        }
    }

    /// Whether equal keys lie on the same shard, whatever their columns are called.
    pub fn is_alike(&self, other: &Self) -> bool {
        self.key().len() == other.key().len()
            && match (self, other) {
                (Self::Hash { .. }, Self::Hash { .. }) => true,
                (Self::Range { ranges: a, default: x, .. }, Self::Range { ranges: b, default: y, .. }) => {
                    a == b && x == y
                }
                (Self::List { parts: a, default: x, .. }, Self::List { parts: b, default: y, .. }) => a == b && x == y,
                _ => false,
            }
    }
}

/// One range of a range-sharded table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangePart {
    /// Lower bound in PostgreSQL's text form, included; `None` is unbounded. With fewer values than the key has columns it
    /// lies before every key that begins with them.
    pub from: Option<Vec<String>>,
    /// Upper bound, excluded; otherwise as the lower one.
    pub to: Option<Vec<String>>,
    /// Index into `shards`.
    pub shard: usize,
}

/// The listed values of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPart {
    /// Values in PostgreSQL's text form; `None` is NULL.
    pub values: Vec<Option<String>>,
    /// Index into `shards`.
    pub shard: usize,
}

/// `shard_by = "schema"`: which schemas are spread over the shards, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schemas {
    /// Those whose shard is named.
    pub listed: BTreeMap<String, usize>,
    /// Those that go by a hash of their name.
    pub hashed: Vec<SchemaPattern>,
}

/// A schema's name, or what names of schemas begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaPattern {
    /// This name.
    Name(String),
    /// Every name that begins so.
    Prefix(String),
}

impl SchemaPattern {
    /// Whether the schema is one of those meant.
    pub fn matches(&self, schema: &str) -> bool {
        match self {
            Self::Name(name) => name == schema,
            Self::Prefix(prefix) => schema.starts_with(prefix.as_str()),
        }
    }
}
