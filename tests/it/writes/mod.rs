//! Writes and transactions over shards.

mod cached;
mod commits;
mod copies;
mod crashes;
mod defaults;
mod key_moves;
mod moves;
mod own_reads;
mod own_writes;
mod queries;
mod random;
mod recovery;
mod several;
mod stage;
mod types;
