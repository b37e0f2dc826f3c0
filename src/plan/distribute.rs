//! How a statement over sharded tables is split: one shard, streamed over several, or refused.

/// A statement that runs on several shards and is merged as rows stream in.
#[derive(Debug, Clone, PartialEq)]
pub struct Streamed {}
