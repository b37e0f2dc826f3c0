//! Writes and transactions over shards.

mod commits;
mod crashes;
mod random;
mod recovery;
mod several;
mod stage;
