//! Servers: connecting to them and cancelling on them.

pub mod cancel;
pub mod connect;
mod login;
