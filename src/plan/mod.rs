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
        /// Whether it is a plain read whose answer does not depend on the transaction it runs in, as long as nothing has been
        /// written there: it need not tie a transaction to this shard.
        detachable: bool,
        /// Why this one.
        reason: Reason,
    },
    /// On several shards, merged by pgherd.
    FanOut(Arc<distribute::Streamed>),
    /// On the primary, by several connections that each read some partitions of a table, merged by pgherd.
    Split(Arc<distribute::Split>),
    /// By PostgreSQL, from rows that the shards ship to a coordinator.
    Gather(Arc<distribute::Gathered>),
    /// A cursor that the coordinator keeps for the transaction, over rows that the shards ship.
    Cursor(Arc<distribute::Gathered>),
    /// EXPLAIN of a statement that runs on several shards.
    Explain(Arc<Explained>),
    /// Maintenance on several servers, on each by itself.
    Maintain(Arc<Maintained>),
    /// A write on several shards, in one transaction over them.
    Scatter(Arc<distribute::Scattered>),
    /// A query's rows, read from the shards and inserted where they belong.
    InsertSelect(Arc<distribute::InsertSelect>),
    /// An UPDATE whose rows move to the shards that their new keys belong to.
    KeyMove(Arc<distribute::KeyMove>),
    /// COPY FROM STDIN whose rows go to several shards.
    CopyIn(Arc<distribute::CopiedIn>),
    /// Over sharded tables, with parameters that decide where and are not known yet: describe it on any shard, decide again after Bind.
    NeedsBind(Reason),
    /// Answered by pgherd itself.
    Local(Local),
    /// Not at all: `0A000` with the clause and a hint.
    Refuse(Refusal),
}

impl Plan {
    /// What sort of plan it is, as metrics and people call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Primary(_) => "primary",
            Self::Replica(_) => "replica",
            Self::Cached(_) => "cached",
            Self::Shard { .. } => "shard",
            Self::FanOut(_) | Self::Split(_) => "fan-out",
            Self::Gather(_) => "gather",
            Self::Cursor(_) => "cursor",
            Self::Explain(_) => "explain",
            Self::Maintain(_) => "maintain",
            Self::Scatter(_) => "scatter",
            Self::InsertSelect(_) => "insert-select",
            Self::KeyMove(_) => "key-move",
            Self::CopyIn(_) => "copy-in",
            Self::NeedsBind(_) => "needs-bind",
            Self::Local(_) => "local",
            Self::Refuse(_) => "refuse",
        }
    }

    /// Why it was taken; a refusal and a local answer say it themselves.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Primary(reason) | Self::Replica(reason) | Self::NeedsBind(reason) | Self::Shard { reason, .. } => {
                Some(reason)
            }
            Self::Cached(cached) => Some(&cached.reason),
            Self::FanOut(streamed) => Some(&streamed.reason),
            Self::Split(split) => Some(&split.streamed.reason),
            Self::Gather(gathered) | Self::Cursor(gathered) => Some(&gathered.reason),
            Self::Explain(explained) => explained.plan.reason(),
            Self::Maintain(maintained) => Some(&maintained.reason),
            Self::Scatter(scattered) => Some(&scattered.reason),
            Self::InsertSelect(moved) => Some(&moved.reason),
            Self::KeyMove(moved) => Some(&moved.reason),
            Self::CopyIn(copied) => Some(&copied.reason),
            Self::Local(_) | Self::Refuse(_) => None,
        }
    }

    /// The stable code of the reason.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Local(Local::Empty) => "empty",
            Self::Local(Local::ExplainRoute(_)) => "explain-route",
            Self::Refuse(refusal) => refusal.code,
            other => other.reason().map_or("", |reason| reason.code),
        }
    }
}

/// An EXPLAIN of a statement that runs on several shards.
#[derive(Debug, Clone)]
pub struct Explained {
    /// What is asked for.
    pub asked: crate::sql::Explaining,
    /// How the statement would run: [`Plan::FanOut`] or [`Plan::Gather`].
    pub plan: Plan,
    /// The statement without EXPLAIN.
    pub text: Box<str>,
}

/// VACUUM, ANALYZE and their like on several servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintained {
    /// Whether the primary runs it.
    pub on_primary: bool,
    /// The shards that run it.
    pub shards: Vec<usize>,
    /// Whether PostgreSQL itself refuses it within a transaction block.
    pub only_alone: bool,
    /// Why there.
    pub reason: Reason,
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
    /// Every relation that the answer depends on (views' bases and partitions included), sorted; oids of the server that answers.
    pub relations: Vec<Oid>,
    /// The catalog version that `relations` was computed from.
    pub catalog_version: u64,
    /// How long the answer may be kept.
    pub ttl: Duration,
    /// Whether it stays in memory whatever else there is no room for.
    pub is_pinned: bool,
    /// Whether a replica may be asked for the answer.
    pub from_replica: bool,
    /// Relations that a role must be able to read to be given the answer that another was given; `None` where each has its own.
    pub shared_by_readers_of: Option<Box<[Oid]>>,
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

impl WriteSet {
    /// Whether nothing may change.
    pub fn is_empty(&self) -> bool {
        !self.database && !self.catalog && self.relations.is_empty()
    }

    /// Adds what another statement may change, to relations in ascending order.
    pub fn add(&mut self, other: &Self) {
        self.database |= other.database;
        self.catalog |= other.catalog;
        for oid in &other.relations {
            if let Err(at) = self.relations.binary_search(oid) {
                self.relations.insert(at, *oid);
            }
        }
    }
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

mod functions;
mod maintain;
mod mentioned;
mod moment;
mod names;
mod partitions;
mod policies;
mod sharded;
mod unnamed;
mod wrapped;
mod write_set;

pub mod anywhere;
pub mod cacheable;
pub mod distribute;
pub mod explain;
pub mod hash;
pub mod rules;
pub mod search_path;
pub mod shard_key;
pub(crate) mod share;
pub mod tenant;
pub mod unseen;
pub mod value;
