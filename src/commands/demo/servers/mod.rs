//! Throw-away PostgreSQL and Redis servers for the demo, the tests and the benchmark: on loopback, as an unprivileged user, gone when we are.
//!
//! Each server runs under a small `sh` that reads a pipe from this process. The pipe ends when the process does, however it ends,
//! and then the shell stops the server and removes its folder.

mod binaries;
mod ground;
mod postgres;
mod redis;
mod supervisor;

pub use binaries::Binaries;
pub use ground::{Ground, free_port};
pub use postgres::{PostgresOptions, PostgresServer, StopMode, TlsFiles};
pub use redis::RedisServer;
pub use supervisor::Supervisor;

/// Why a throw-away server could not be had, in words for a person at a terminal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ServerError(pub String);

impl ServerError {
    fn io(doing: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self(format!("{doing}: {error}"))
    }
}
