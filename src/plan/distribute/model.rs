//! What the distribution planner reads and decides, as data.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::catalog::model::{Catalog, Oid};
use crate::config::model::{Database, KeyMoves};
use crate::plan::Reason;
use crate::plan::value::Numeric;
use crate::sql::facts;

/// Everything a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The text of one statement.
    pub text: &'a str,
    /// Its facts.
    pub statement: &'a facts::Statement,
    /// The catalog of a shard; all shards are alike (`check` looks).
    pub catalog: &'a Catalog,
    /// The database's shards and tables.
    pub database: &'a Database,
    /// Schemas as PostgreSQL resolves them for this session, `pg_catalog` included.
    pub search_path: &'a [Box<str>],
    /// `fanout.pure_functions`: `schema.name(type, ...)`.
    pub pure_functions: &'a [String],
    /// `fanout.key_moves`
    pub key_moves: KeyMoves,
    /// What of the session's settings changes how the text is read.
    pub session: Session,
    /// What Bind brought; `None` before Bind.
    pub parameters: Option<Parameters<'a>>,
    /// The catalog of the server that merges what pgherd does not; `None` while it is not known: such statements are refused.
    pub coordinator: Option<&'a Catalog>,
    /// Why it is not to be streamed, whatever its shape.
    pub unstreamed: Option<Unstreamed>,
    /// A partitioned table whose partitions several connections of one server read: the legs are what shards are elsewhere.
    pub split: Option<SplitTable>,
}

/// Why a statement is not to be streamed that could be by its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unstreamed {
    /// Streaming has been tried, and the rows turned out not to be of types that pgherd compares.
    Types,
    /// Streaming has been tried, and the groups turned out to need more memory than they may.
    Memory,
    /// Streamed rows are of no use to whoever asks.
    Wrapped,
}

/// A partitioned table of one server, which is spread over legs by a key that no column has; every leg sees all other tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitTable {
    /// The table.
    pub oid: Oid,
    /// How many legs there are, two or more.
    pub legs: usize,
}

/// Settings that change how a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The setting of that name.
    pub standard_conforming_strings: bool,
    /// Whether `client_encoding` is the servers' own, so that a text's bytes are what a server hashes.
    pub same_encoding: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self { standard_conforming_strings: true, same_encoding: true }
    }
}

/// Parameters as Parse and Bind gave them.
#[derive(Debug, Clone, Copy)]
pub struct Parameters<'a> {
    /// Declared types; 0 or missing is unspecified.
    pub types: &'a [Oid],
    /// Format codes: none, one for all, or one each.
    pub formats: &'a [i16],
    /// Values; `None` is NULL.
    pub values: &'a [Option<&'a [u8]>],
}

impl<'a> Parameters<'a> {
    /// No parameters: a simple query.
    pub const NONE: Parameters<'static> = Parameters { types: &[], formats: &[], values: &[] };

    /// Declared type (0: unspecified), whether it is binary, and the value of `$number`; `None` if Bind brought none.
    pub fn get(&self, number: usize) -> Option<(Oid, bool, Option<&'a [u8]>)> {
        let at = number.checked_sub(1)?;
        let value = *self.values.get(at)?;
        let format = match self.formats {
            [] => 0,
            [only] => *only,
            each => *each.get(at)?,
        };
        Some((self.types.get(at).copied().unwrap_or(0), format == 1, value))
    }
}

/// Where a statement over sharded tables runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Distributed {
    /// It names no sharded and no reference table: not a matter of the shards.
    Elsewhere,
    /// Forwarded untouched to one shard.
    Shard {
        /// Index into the database's shards.
        shard: usize,
        /// Why this one.
        reason: Reason,
    },
    /// Rewritten, run on several shards, merged.
    Streamed(Arc<Streamed>),
    /// Rows are shipped to a server that runs the statement itself.
    Gathered(Arc<Gathered>),
    /// A write on several shards, in one transaction over them.
    Scattered(Arc<super::scatter::Scattered>),
    /// A query's rows, read first and inserted where they belong, in one transaction over the shards.
    InsertSelect(Arc<super::InsertSelect>),
    /// An UPDATE whose rows move to the shards that their new keys belong to, in one transaction over the shards.
    KeyMove(Arc<super::KeyMove>),
    /// It has parameters that are not known yet: describe it on any shard, plan again after Bind.
    NeedsBind,
}

/// A statement that runs on several shards and is merged as rows stream in.
#[derive(Debug, Clone, PartialEq)]
pub struct Streamed {
    /// Shards whose rows can count, ascending; never empty.
    pub shards: Vec<usize>,
    /// What each of them runs: the original text with hidden columns put in behind its own and its tail replaced.
    pub sql: Box<str>,
    /// Columns at the end that the client does not see; they travel in binary form.
    pub hidden: usize,
    /// Where, in characters of `sql`, text was put in, and how much: error positions behind it move.
    pub inserted: (usize, usize),
    /// How rows become the answer's rows.
    pub merge: Merge,
    /// The answer's order; empty is any.
    pub sort: Vec<Sort>,
    /// What visible columns must be called that rows are sorted by: a `*` may have come to stand for others.
    pub named: Vec<(usize, Box<str>)>,
    /// Rows skipped at the front.
    pub offset: u64,
    /// Rows at most.
    pub limit: Option<u64>,
    /// Why it is so.
    pub reason: Reason,
}

/// A statement that PostgreSQL merges: rows of its tables are shipped into temporary tables of one server, where it then runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gathered {
    /// Shards that rows are read from, ascending; the first also describes the statement.
    pub shards: Vec<usize>,
    /// What is shipped, one for each table.
    pub shipments: Vec<Shipment>,
    /// What fails on the coordinator unless every name of the statement means a shipped table there: a SELECT of one boolean.
    pub probe: Box<str>,
    /// Views that are made there of what was shipped, those that others read first.
    pub views: Vec<View>,
    /// What runs there: the original text, schemas of shipped tables replaced.
    pub sql: Box<str>,
    /// Whether it is the original text to the letter, so that error positions hold.
    pub is_verbatim: bool,
    /// Whether `client_encoding` is the servers' own, so that texts which one server sent can be written to another.
    pub same_encoding: bool,
    /// Why it is not streamed.
    pub reason: Reason,
}

/// A view of the shards that is made anew on the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The view, as people write it.
    pub view: Box<str>,
    /// The temporary view's name, quoted.
    pub name: Box<str>,
    /// Makes the temporary view.
    pub create: Box<str>,
    /// As [`Gathered::probe`], for its name.
    pub probe: Box<str>,
    /// What fails on a shard for whoever may not read the view; `None` for one that only other views read.
    pub allowed: Option<Box<str>>,
}

/// The rows of one table on their way to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shipment {
    /// The table, as people write it.
    pub table: Box<str>,
    /// The temporary table's name, quoted.
    pub name: Box<str>,
    /// Whether only views name it.
    pub is_of_views: bool,
    /// Which of the plan's shards it is read from, by place in `Gathered::shards`.
    pub from: Vec<usize>,
    /// Makes the temporary table.
    pub create: Box<str>,
    /// What each shard sends: a SELECT.
    pub select: Box<str>,
    /// The same without the statement's own conditions on the table, where there are such: one of them may fail on a row that the
    /// statement would never have judged.
    pub select_all: Option<Box<str>>,
    /// `COPY ... FROM STDIN`, for the coordinator.
    pub load: Box<str>,
    /// Run behind it: a primary key that GROUP BY may rely on.
    pub key: Option<Box<str>>,
    /// Run behind it if there are many rows: indexes for sub-queries that look rows up, and ANALYZE.
    pub tune: Vec<Box<str>>,
    /// Whether rows travel in COPY's binary format; else in its text format, with settings that make texts exact.
    pub is_binary: bool,
    /// For each place where the statement names the table, what rows of it must have to be of any use there: all of these. Empty if
    /// some place may use any row.
    pub key_lists: Vec<Vec<KeyList>>,
}

/// A column whose values count only where another table's column has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyList {
    /// The column, quoted.
    pub column: Box<str>,
    /// The type of both, in `pg_catalog`.
    pub type_name: Box<str>,
    /// The other table, by place in `Gathered::shipments`.
    pub of: usize,
    /// Its column, quoted.
    pub of_column: Box<str>,
}

impl Shipment {
    /// The rows that each shard sends: with the statement's own conditions on the table, or without.
    pub fn plain(&self, with_conditions: bool) -> &str {
        self.select_all.as_ref().filter(|_| !with_conditions).unwrap_or(&self.select)
    }

    /// What each shard runs to send the rows of that SELECT.
    pub fn unload(&self, select: &[u8]) -> Vec<u8> {
        let format: &[u8] = if self.is_binary { b" (FORMAT binary)" } else { b"" };
        [b"COPY (", select, b") TO STDOUT", format].concat()
    }
}

/// How the shards' rows become the answer's rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Merge {
    /// Each is one.
    Rows,
    /// Those of one group become one.
    Groups(Groups),
}

/// Rows of one group, from several shards, become one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Groups {
    /// What rows of one group have in common; empty for one group over all rows.
    pub keys: Vec<Key>,
    /// What is computed over a group.
    pub aggregates: Vec<Aggregate>,
    /// Where a visible column comes from; columns that are not listed are carried over from one of the group's rows.
    pub outputs: Vec<(usize, Output)>,
    /// Which groups are shown.
    pub having: Option<Condition>,
    /// The order in which each shard gives its groups, by all keys; empty is any. It is then the answer's, too.
    pub order: Vec<Sort>,
}

/// A hidden column that rows of one group are equal in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Which hidden column, from 0.
    pub hidden: usize,
    /// What is known of its collation, if its type has one.
    pub collating: Collating,
}

/// What is known of a text's collation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Collating {
    /// Nothing: texts can neither be grouped nor sorted.
    Unknown,
    /// Equal means equal bytes: texts can be grouped.
    Deterministic,
    /// It sorts by bytes: texts can be grouped and sorted.
    Bytes,
}

/// One aggregate, merged from the shards' partial results in hidden columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    /// Sum of counts.
    Count {
        /// The hidden column with `count(...)`.
        partial: usize,
    },
    /// Sum of sums.
    Sum {
        /// The hidden column with `sum(...)`.
        partial: usize,
    },
    /// Sum of sums divided by sum of counts.
    Avg {
        /// The hidden column with `sum(...)`.
        sum: usize,
        /// The hidden column with `count(...)`.
        count: usize,
    },
    /// The least.
    Min {
        /// The hidden column with `min(...)`.
        partial: usize,
        /// What is known of its collation.
        collating: Collating,
    },
    /// The greatest.
    Max {
        /// The hidden column with `max(...)`.
        partial: usize,
        /// What is known of its collation.
        collating: Collating,
    },
    /// True if all are.
    BoolAnd {
        /// The hidden column with `bool_and(...)`.
        partial: usize,
    },
    /// True if one is.
    BoolOr {
        /// The hidden column with `bool_or(...)`.
        partial: usize,
    },
    /// Bit by bit, of integers.
    Bits {
        /// The hidden column with the same aggregate.
        partial: usize,
        /// How two of them become one.
        operation: BitOperation,
    },
}

/// What `bit_and`, `bit_or` and `bit_xor` do with two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitOperation {
    /// `&`
    And,
    /// `|`
    Or,
    /// `#`
    Xor,
}

/// Where a visible column of a group comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The aggregate of that number.
    Aggregate(usize),
}

/// A condition on a group, three-valued as in SQL.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// All hold.
    And(Box<Self>, Box<Self>),
    /// One holds.
    Or(Box<Self>, Box<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// An aggregate of integers, numeric or float against a number.
    Compare {
        /// Which aggregate.
        aggregate: usize,
        /// The results of comparing aggregate and number that hold.
        holds: Vec<Ordering>,
        /// The number.
        number: Numeric,
    },
    /// Whether an aggregate is NULL.
    IsNull {
        /// Which aggregate.
        aggregate: usize,
        /// `IS NOT NULL`
        negated: bool,
    },
}

/// One sort key of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    /// What is compared.
    pub by: SortBy,
    /// `DESC`
    pub descending: bool,
    /// Whether NULLs come before all else.
    pub nulls_first: bool,
}

/// What a sort key compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    /// A hidden column.
    Hidden(Key),
    /// The visible column of that number, from 0, in the form in which the client wants it, and what is known of its collation.
    Visible(usize, Collating),
    /// The aggregate of that number.
    Aggregate(usize),
}
