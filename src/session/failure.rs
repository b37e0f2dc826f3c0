//! Errors of pgherd's own: how they reach the client in their turn, and how the client's transaction learns of them.

use bytes::{Bytes, BytesMut};

use super::Session;
use crate::backend::expect::Expect;
use crate::error::{Error, ErrorKind};
use crate::wire::frame::Header;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

/// A statement that no PostgreSQL accepts: it makes a transaction fail as pgherd's refusal says it did.
pub(super) const POISON: &[u8] = b"pgherd refused the statement";

impl Session {
    /// Tells the client of an error that ends its statement. A fatal one ends the session.
    pub(super) async fn fail(&mut self, error: Error) -> Result<(), Error> {
        if error.is_fatal() {
            return Err(error);
        }
        let in_doubt = self.held_server().is_some_and(|server| {
            server.is_broken() && (server.status != TransactionStatus::Idle || !server.expects.is_empty())
        });
        let was_its_own = self.keeps_server() && self.held_server().is_some_and(|server| server.is_broken());
        if in_doubt || was_its_own {
            // A transaction or a session's state was lost with the server: what follows must not run without it.
            return Err(error.fatal());
        }
        self.forget_doing();
        tracing::debug!(%error, kind = error.kind().label(), "statement refused");
        self.db.shared.metrics.error(error.kind());
        let mut message = BytesMut::new();
        writer::error_response(&mut message, &error);
        self.fail_with(message.freeze());
        if !self.in_extended {
            // If nothing was sent to a server, no ReadyForQuery will see to this.
            self.release_if_at_rest(tokio::time::Instant::now()).await?;
        }
        Ok(())
    }

    /// Gives the client an ErrorResponse as the answer to its statement, and fails its transaction.
    pub(super) fn fail_with(&mut self, message: Bytes) {
        let simple = !self.in_extended;
        if !simple && (self.skipping || self.held_server().is_some_and(|server| server.expects.is_skipping())) {
            // An error before it has been told: PostgreSQL would not have looked at this message at all.
            self.skipping = true;
            return;
        }
        if self.needs_poison() {
            self.poison(message, simple);
        } else {
            self.out().extend_from_slice(&message);
            if self.status == TransactionStatus::InTransaction {
                self.status = TransactionStatus::Failed;
            }
            if simple {
                let status = self.status;
                writer::ready_for_query(self.out(), status);
            }
        }
        self.skipping = !simple;
        if self.held_server().is_some_and(|server| server.is_broken()) {
            self.abandon_writes();
            self.server = None;
        }
    }

    /// Whether the server at hand has something open that fails with the statement.
    fn needs_poison(&mut self) -> bool {
        self.held_server().is_some_and(|server| {
            !server.is_broken()
                && (server.status != TransactionStatus::Idle
                    || server.expects.is_unsynced()
                    || !server.expects.is_empty())
        })
    }

    /// A read whose error the client has been told, and which ran beside the client's transaction, fails that transaction, as it would have
    /// on one server. Whether the server at hand ends the statement, by its ReadyForQuery.
    pub(super) fn failed_aside(&mut self, simple: bool) -> bool {
        let open = self.needs_poison();
        if open {
            self.poison(Bytes::new(), simple);
        }
        if self.status == TransactionStatus::InTransaction {
            self.status = TransactionStatus::Failed;
        }
        self.skipping = !simple;
        open && simple
    }

    /// Makes the server fail where the client is to see pgherd's error, so that its transaction is failed too.
    fn poison(&mut self, error: Bytes, simple: bool) {
        let Some(server) = self.held_server() else { return };
        server.expects.push(Expect::Poison(error));
        if simple {
            writer::query(&mut server.outbuf, POISON);
            server.expects.push(Expect::Query);
        } else {
            writer::parse(&mut server.outbuf, b"", POISON, &[]);
        }
        server.unnamed = Some(crate::backend::server::UNKNOWN_STATEMENT);
    }

    /// Tells the client why its session ends, if it still listens.
    pub(super) async fn say_goodbye(&mut self, error: &Error) {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);
        if error.kind() == ErrorKind::Io {
            return;
        }
        let mut mid_message = false;
        if let Some(attached) = &mut self.server {
            let server = attached.lease.server();
            server.spill(&mut self.client.outbuf);
            mid_message = server.is_mid_message();
        }
        if !mid_message && !self.seen.farewell {
            // Behind half a row it would be taken for the row's other half.
            writer::error_response(&mut self.client.outbuf, error);
        }
        let _ = tokio::time::timeout(PATIENCE, self.client.flush()).await;
    }
}

/// A message that is over its limit: what follows it cannot be found any more.
pub(super) fn too_long(header: Header, limit: usize) -> Error {
    Error::new(
        ErrorKind::Limit,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("message of {} bytes is over pgherd's limit of {limit}", header.total),
    )
    .hint("Send large values as parameters or by COPY, which have no such limit.")
    .fatal()
}

/// The server went away while it owed an answer or held a transaction.
pub(super) fn server_gone() -> Error {
    Error::new(ErrorKind::Backend, SqlState::CONNECTION_FAILURE, "server closed the connection unexpectedly")
        .detail("Whether the last statement ran is not known.")
        .hint("Connect again; check what was committed before repeating a write.")
        .fatal()
}

/// The server went away and has said why.
pub(super) fn server_said_why() -> Error {
    Error::new(ErrorKind::Backend, SqlState::CONNECTION_FAILURE, "server ended the connection").fatal()
}

/// A statement ran into its timeout and its server did not act on the cancel.
pub(super) fn server_does_not_cancel() -> Error {
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "canceling statement due to pool.query_timeout")
        .detail("The server did not answer the cancel request.")
        .hint("Whether the statement ran is not known. See what it does, or raise pool.query_timeout.")
        .fatal()
}

/// pgherd ends.
pub(super) fn shutting_down() -> Error {
    let message = "terminating connection due to administrator command";
    Error::new(ErrorKind::Shutdown, SqlState::ADMIN_SHUTDOWN, message).fatal()
}

/// A transaction of the client's whose BEGIN, told as done already, has failed where it was to run: by a cancel, or a timeout.
pub(super) fn not_begun(said: &str) -> Error {
    Error::new(ErrorKind::Backend, SqlState::CONNECTION_FAILURE, "the transaction could not be begun on the server")
        .detail(format!("The server said: {said}"))
        .hint("Nothing of it was done: connect again and repeat it.")
        .fatal()
}

/// The client has cancelled its statement.
pub(super) fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "canceling statement due to user request")
}

/// A statement ran for longer than that setting allows.
pub(super) fn too_slow(setting: &str) -> Error {
    let message = format!("canceling statement due to {setting}");
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, message)
        .hint(format!("Ask for less at once, or raise {setting}."))
}

/// A client lay idle for too long.
pub(super) fn idle_too_long() -> Error {
    Error::new(
        ErrorKind::Limit,
        SqlState::IDLE_SESSION_TIMEOUT,
        "terminating connection due to pool.client_idle_timeout",
    )
    .hint("Connect again when there is something to do, or raise pool.client_idle_timeout.")
    .fatal()
}

/// A transaction lay idle for too long.
pub(super) fn idle_in_transaction_too_long() -> Error {
    Error::new(
        ErrorKind::Limit,
        SqlState::IDLE_IN_TRANSACTION_TIMEOUT,
        "terminating connection due to pool.idle_transaction_timeout",
    )
    .detail("The transaction was rolled back.")
    .hint("End transactions before anything else is waited for, or raise pool.idle_transaction_timeout.")
    .fatal()
}

/// The client went away while pgherd waited for its server.
pub(super) fn client_gone() -> Error {
    Error::new(ErrorKind::Io, SqlState::CONNECTION_FAILURE, "client is gone").fatal()
}
