//! Writes and transactions over shards.

mod cached;
mod chains;
mod commits;
mod copies;
mod crashes;
mod foreign_keys;
mod key_moves;
mod maintenance;
mod moves;
mod names;
mod own_reads;
mod own_writes;
mod queries;
mod random;
mod recovery;
mod several;
mod stage;
mod types;
