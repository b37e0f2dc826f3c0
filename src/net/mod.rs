//! Sockets: listening, connecting, and TLS on both sides, behind one stream type.

pub mod framed;
pub mod handover;
pub mod home;
pub mod listener;
pub mod spare;
pub mod stream;
pub mod tls;
