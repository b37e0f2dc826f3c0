//! The PostgreSQL wire protocol, pure: bytes in, values out. No sockets.

pub mod frame;
pub mod frontend;
pub mod sqlstate;
pub mod writer;
