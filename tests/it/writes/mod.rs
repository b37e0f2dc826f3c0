//! Writes and transactions over shards.

mod behind_errors;
mod beside;
mod cached;
mod chains;
mod commits;
mod copies;
mod crashes;
mod defaults;
mod foreign_keys;
mod key_moves;
mod latch;
mod maintenance;
mod moves;
mod names;
mod own_reads;
mod own_writes;
mod policies;
mod queries;
mod random;
mod recovery;
mod settings;
mod several;
mod stage;
mod types;
