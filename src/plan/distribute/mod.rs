//! How a statement over sharded tables is split: one shard, streamed over several, or refused.

mod model;

pub use model::{
    Aggregate, Collating, Condition, Distributed, Groups, Input, Key, Merge, Output, Parameters, Session, Sort, SortBy,
    Streamed,
};
