//! The proof that the cache is never wrong: a history checker over pgherds in processes of their own, one Redis and one
//! PostgreSQL, while everything that can fail fails. `docs/proof.md` tells what it does, how to run it, and what it has shown.

mod chains;
mod checker;
mod definitions;
#[cfg(feature = "faults")]
mod faults;
mod fleet;
mod load;
mod nemesis;
mod pgpool;
mod reads;
mod run;
mod seat;
mod world;
mod writes;
