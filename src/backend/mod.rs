//! Servers: connecting to them, pooling the connections, and knowing what each of them carries.

pub mod alarm;
pub mod cancel;
pub mod connect;
pub mod control;
pub mod expect;
pub mod failure;
pub mod gate;
pub mod kept;
pub(crate) mod lease;
pub mod ledger;
pub mod listener;
mod login;
mod manager;
mod own;
pub mod pool;
pub mod reset;
pub mod roster;
pub mod scan;
pub mod server;
pub mod settings;
pub mod signature;
pub mod statements;
pub mod wal;
