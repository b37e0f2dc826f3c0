//! A transaction that has failed takes nothing but its end, and PostgreSQL has its own word for whatever else is asked: a mistake in the
//! grammar comes first, then a name that is not there, then SQLSTATE 25P02; and what gives no rows is described.

use bytes::{BufMut, Bytes, BytesMut};

use super::extended::malformed;
use super::planned::aborted;
use super::{Prepared, Session};
use crate::backend::expect::Expect;
use crate::error::Error;
use crate::sql::facts::{Class, Facts};
use crate::sql::lexer::Lexer;
use crate::wire::frame::Frame;
use crate::wire::frontend;
use crate::wire::writer::{self, TransactionStatus};

impl Session {
    /// Whether the transaction has failed before any server knew of it.
    pub(super) fn has_failed_alone(&self) -> bool {
        self.status == TransactionStatus::Failed && self.server.is_none()
    }

    /// The transaction that failed without the server at hand fails there, too: whatever the client asks next is that server's to say.
    pub(super) async fn fail_on_server(&mut self) -> Result<(), Error> {
        self.wait_for_answers().await?;
        let Some(server) = self.held_server() else { return Ok(()) };
        let failed = server.run("pgherd has failed the transaction").await;
        match server.status {
            TransactionStatus::Failed => Ok(()),
            _ => failed.and(Err(Error::internal("a transaction has not failed on its server"))).map_err(Error::fatal),
        }
    }

    /// Sees to a portal that is described or executed while its transaction has failed. Whether it is there comes first, and pgherd's own
    /// are on no server.
    pub(super) fn check_portal_of_failed(&self, portal: &[u8]) -> Result<(), Error> {
        let is_own = || self.is_halted(portal) || (self.server.is_none() && self.portals.contains_key(portal));
        if self.status == TransactionStatus::Failed && is_own() { Err(aborted()) } else { Ok(()) }
    }

    /// What a failed transaction tells of a statement that gives no rows, if a server need not be asked.
    pub(super) fn describe_in_failed(&self, prepared: &Prepared) -> Option<Bytes> {
        let types = match prepared.told.parameters() {
            _ if self.status != TransactionStatus::Failed || !gives_no_rows(&prepared.facts, &prepared.text) => {
                return None;
            }
            Some(types) => types,
            None if prepared.facts.statements.iter().all(|it| it.parameters == 0) && prepared.types.is_empty() => &[],
            None => return None,
        };
        let count = u16::try_from(types.len()).ok()?;
        let mut out = BytesMut::new();
        writer::message(&mut out, b't', |out| {
            out.put_u16(count);
            types.iter().for_each(|&oid| out.put_u32(oid));
        });
        writer::no_data(&mut out);
        Some(out.freeze())
    }

    /// Whether that is known of the statement of that name.
    pub(super) fn is_described_in_failed(&self, name: &[u8]) -> bool {
        self.statement(name).is_some_and(|prepared| self.describe_in_failed(&prepared).is_some())
    }

    /// Answers what stands in front of the message that a transaction refuses which has failed before any server knew of it.
    pub(super) async fn answer_front_of_failed(&mut self, unit: &[Frame]) -> Result<(), Error> {
        if !self.has_failed_alone() {
            return Ok(());
        }
        for frame in unit {
            match frame.tag() {
                b'C' => self.on_close(frame.clone()).await?,
                b'D' if frame.body().first() == Some(&b'S') => {
                    let name = frontend::target(frame.body()).map_err(|error| malformed("Describe", error))?.name;
                    let told = self.statement(name).and_then(|prepared| self.describe_in_failed(&prepared));
                    let Some(told) = told else { return Ok(()) };
                    self.answer_with(told);
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Gives the client an answer of pgherd's own in its turn.
    pub(super) fn answer_with(&mut self, bytes: Bytes) {
        match self.held_server() {
            Some(server) => server.expects.push(Expect::Inject(bytes)),
            None => self.out().extend_from_slice(&bytes),
        }
        self.inject();
    }
}

/// Whether a statement is known to give no rows: what it is says so, or its first word and that there is no RETURNING.
fn gives_no_rows(facts: &Facts, text: &[u8]) -> bool {
    let Some(statement) = facts.single() else { return false };
    match statement.class {
        Class::Session | Class::Ddl | Class::CopyIn | Class::CopyOut => true,
        Class::Write => {
            let mut tokens = Lexer::new(text, true).significant();
            let first = tokens.next();
            let writes =
                first.is_some_and(|it| ["insert", "update", "delete"].iter().any(|word| it.is_word(text, word)));
            writes && !tokens.any(|token| token.is_word(text, "returning"))
        }
        _ => false,
    }
}
