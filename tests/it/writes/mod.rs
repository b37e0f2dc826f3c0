//! Writes and transactions over shards.

mod commits;
mod crashes;
mod recovery;
mod stage;
