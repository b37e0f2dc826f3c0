//! What a server does wrong, in pgherd's words.

use crate::error::{Error, ErrorKind};
use crate::wire::backend::ErrorFields;
use crate::wire::sqlstate::SqlState;

/// The error of pgherd's that stands for an ErrorResponse of a server: its SQLSTATE is not ours to name, so it is detail; but that the
/// server process was ended is the same to the client, whoever was spoken to.
pub fn server_error(body: &[u8]) -> Error {
    match ErrorFields::parse(body) {
        Ok(fields) => {
            let error = fields.to_server_error();
            let was_ended = error.severity == "FATAL" && error.code.starts_with("57P");
            let state = if was_ended { SqlState::ADMIN_SHUTDOWN } else { SqlState::INTERNAL_ERROR };
            Error::new(ErrorKind::Backend, state, error.message.clone())
                .detail(format!("The server said {}: {}", error.code, error.message))
                .cause(error)
        }
        Err(_) => misbehaved("an ErrorResponse cannot be read"),
    }
}

/// The server's end of the connection is gone.
pub(super) fn lost(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Backend, SqlState::CONNECTION_FAILURE, "server closed the connection unexpectedly")
        .hint("The statement may or may not have run: check before repeating it.")
        .cause(error)
}

/// The server sent what no PostgreSQL sends.
pub(super) fn misbehaved(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Backend, SqlState::PROTOCOL_VIOLATION, "server broke the protocol").detail(what)
}
