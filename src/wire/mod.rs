//! The PostgreSQL wire protocol, pure: bytes in, values out. No sockets.

pub mod authentication;
pub mod backend;
pub mod frame;
pub mod frontend;
pub mod options;
pub mod pgoutput;
pub mod sqlstate;
pub mod startup;
pub mod writer;
