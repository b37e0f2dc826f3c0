//! Writes and transactions over shards.

mod behind_errors;
mod beside;
mod cached;
mod commits;
mod copies;
mod crashes;
mod key_moves;
mod moves;
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
