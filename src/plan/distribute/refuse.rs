//! Refusals by name: the clause that is not done, and what to do instead.

use crate::plan::Refusal;

/// A refusal with its stable code.
pub(super) fn refuse(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into(), hint: hint.into() }
}

const ONE_SHARD: &str =
    "tie every sharded table to one value of its shard key (key = value), so that one shard can answer it";

/// A clause that works on one shard only.
pub(super) fn clause(code: &'static str, what: &str) -> Refusal {
    refuse(code, format!("{what} is not supported over several shards"), ONE_SHARD)
}
