//! The decision where a statement runs: pure functions from facts, session, catalog and configuration to a plan.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::model::Oid;

/// Where a statement runs, and why.
#[derive(Debug, Clone)]
pub enum Plan {
    /// On the primary, forwarded untouched.
    Primary(Reason),
    /// On a replica, forwarded untouched, in a READ ONLY transaction.
    Replica(Reason),
    /// From the cache, or on the primary in a READ ONLY transaction to fill it.
    Cached(Arc<CachedRead>),
    /// On one shard, forwarded untouched.
    Shard {
        /// Index into the database's shards.
        shard: usize,
        /// Why this one.
        reason: Reason,
    },
    /// On several shards, merged by pgherd.
    FanOut(Arc<distribute::Streamed>),
    /// Answered by pgherd itself.
    Local(Local),
    /// Not at all: `0A000` with the clause and a hint.
    Refuse(Refusal),
}

/// Why a plan was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Stable, for metrics and tests: `write`, `volatile-function`, `point-read`.
    pub code: &'static str,
    /// For people.
    pub text: Cow<'static, str>,
}

/// What the cache needs to know of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedRead {
    /// Every relation that the answer depends on (views' bases and partitions included), sorted; oids of the primary.
    pub relations: Vec<Oid>,
    /// The catalog version that `relations` was computed from.
    pub catalog_version: u64,
    /// How long the answer may be kept.
    pub ttl: Duration,
    /// Why it is cached.
    pub reason: Reason,
}

/// What a statement may change, for the cache's epochs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteSet {
    /// Everything: opaque writes and DDL.
    pub database: bool,
    /// The catalog itself changes too (DDL, GRANT, ALTER ... SET).
    pub catalog: bool,
    /// The relations, to the end of cascades and partitions; oids of the primary.
    pub relations: Vec<Oid>,
}

/// What pgherd answers itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// An empty query string.
    Empty,
    /// `EXPLAIN (ROUTE) ...`: the inner statement's text.
    ExplainRoute(Box<str>),
}

/// A refusal: becomes `0A000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Stable, for metrics and tests.
    pub code: &'static str,
    /// What cannot be done, naming the clause.
    pub message: String,
    /// What to do instead.
    pub hint: String,
}

pub mod distribute;
pub mod hash;
pub mod value;
