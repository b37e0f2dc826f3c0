//! One client: how it gets in, and what it may do once it is.

pub mod handshake;
