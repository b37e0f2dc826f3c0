//! Statements whose result type has changed, and errors that speak of statements by the names that they have on servers.
//!
//! PostgreSQL refuses a prepared statement whose result type has changed for as long as it is prepared (SQLSTATE 0A000): rows of another
//! shape are not for a client that knows the old one. So a flight is sent once more, the statement prepared anew, only where the client
//! asks in that flight what it gets, where nothing of it has had an effect, and outside of transactions. Otherwise the client gets the
//! error once, and its next use finds the statement prepared anew.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::meaning::send_parse;
use super::planned::Execution;
use super::{Prepared, Session};
use crate::backend::expect::Expect;
use crate::backend::scan::StatementError;
use crate::backend::signature::{self, Signature};
use crate::backend::statements::Identity;
use crate::error::Error;
use crate::wire::backend::renamed;
use crate::wire::frame::{Body, Frame};
use crate::wire::frontend;
use crate::wire::writer::{self, TransactionStatus};

/// What `unknown_name` puts behind a name that would mean something on the server.
pub(super) const UNKNOWN: &[u8] = b" (unknown)";

impl Session {
    /// Acts on errors that speak of statements: a flight is sent once more, or the client is told by its own names.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub(super) fn tell_statement_errors(&mut self) -> Result<(), Error> {
        while let Some(error) = self.seen.statement_error.take() {
            let found = self.named.iter().find(|(_, prepared)| prepared.serial == error.serial);
            let found = found.map(|(name, prepared)| (name.clone(), Arc::clone(prepared)));
            let renewed = match &found {
                Some((name, prepared)) if error.is_stale => self.renew(name, prepared),
                _ => None,
            };
            match (renewed, found) {
                (Some(new), Some((_, old))) if error.may_repeat && self.is_under_its_own_settings(&old) => {
                    self.seen.errors = self.seen.errors.saturating_sub(1);
                    self.repeat(&old, &new);
                }
                (_, found) => {
                    let told = in_clients_words(&error, found.as_ref());
                    writer::message(self.out(), b'E', |out| out.put_slice(&told));
                }
            }
            let Some(attached) = &mut self.server else { return Ok(()) };
            attached.lease.server().scan(&mut self.client.outbuf, &mut self.seen)?;
        }
        Ok(())
    }

    /// Takes the new identity of a statement whose result type has changed. One that has its meaning on one server alone has none.
    fn renew(&mut self, name: &Bytes, old: &Arc<Prepared>) -> Option<Arc<Identity>> {
        let identity = old.identity.as_ref().filter(|identity| identity.parsed_under().is_some())?;
        let new = self.db.statements.renew(identity);
        self.named.insert(name.clone(), Arc::new(old.renewed(Arc::clone(&new))));
        Some(new)
    }

    /// A statement whose result type has changed for another client is taken as it is now.
    pub(super) fn renew_if_retired(&mut self, name: &[u8]) -> bool {
        let Some((name, prepared)) = self.named.get_key_value(name) else { return false };
        if !prepared.identity.as_ref().is_some_and(|identity| identity.is_retired()) {
            return false;
        }
        let (name, prepared) = (name.clone(), Arc::clone(prepared));
        self.renew(&name, &prepared).is_some()
    }

    /// Sees to a statement whose result type has changed for another client, before its Bind goes out: a client that does not ask what
    /// it gets is told as PostgreSQL would tell it. Returns false if it was.
    pub(super) fn renews_before(&mut self, bind: &Frame, is_described: bool) -> bool {
        let Some((_, name)) = frontend::bind_names(bind.body()) else { return true };
        if self.status == TransactionStatus::Failed || !self.renew_if_retired(name) || is_described {
            return true;
        }
        let mut message = BytesMut::new();
        writer::error_response(&mut message, &signature::changed());
        self.fail_with(message.freeze());
        false
    }

    /// What the client was told of the statement that a portal runs.
    pub(super) fn told_of(&self, portal: &[u8]) -> Option<Arc<Signature>> {
        self.portals.get(portal).map(|prepared| Arc::clone(&prepared.told))
    }

    /// What the client was told of the statement that it executes, which it may have prepared long before.
    pub(super) fn told_before(&self, execution: &Execution<'_>) -> Option<Arc<Signature>> {
        self.told_of(execution.bind?.1.portal)
    }

    /// Whether the client has sent a Describe of the portal right behind its Bind.
    pub(super) fn describes_next(&self, bind: &Frame) -> bool {
        let Some((portal, _)) = frontend::bind_names(bind.body()) else { return false };
        let mut next = Body::new(&self.client.inbuf);
        next.u8() == Some(b'D') && next.i32().is_some() && next.u8() == Some(b'P') && next.cstr() == Some(portal)
    }

    /// Whether a statement can be prepared as things are: under the settings that it was prepared under.
    pub(super) fn is_under_its_own_settings(&self, prepared: &Prepared) -> bool {
        let then = prepared.identity.as_ref().and_then(|identity| identity.parsed_under());
        then.is_some_and(|then| self.settings.exact().is_some_and(|now| now == *then))
    }

    /// Sends what was refused once more, with the statement prepared anew.
    fn repeat(&mut self, old: &Prepared, new: &Arc<Identity>) {
        let told = self.named.values().find(|prepared| prepared.serial == old.serial);
        let told = told.map(|prepared| Arc::clone(&prepared.told)).unwrap_or_default();
        let Some(server) = self.held_server() else { return };
        server.end_refused();
        if let Some(old) = &old.identity
            && server.held.take(old.id)
        {
            writer::close(&mut server.outbuf, b'S', old.server_name.as_bytes());
            server.expects.push(Expect::Close { hidden: true });
        }
        if !server.held.touch(new.id) {
            send_parse(server, new, None);
        }
        server.repeat_kept(new.server_name.as_bytes(), old.serial, &told);
    }
}

/// An ErrorResponse's body with the client's name of the statement where the server's stands.
fn in_clients_words(error: &StatementError, found: Option<&(Bytes, Arc<Prepared>)>) -> BytesMut {
    let known = found.and_then(|(name, prepared)| Some((name, prepared.identity.as_ref()?.server_name.as_bytes())));
    match known {
        Some((name, server_name)) => renamed(&error.body, server_name, name),
        // What it would mean on the server was made not to.
        None if error.serial == 0 => renamed(&error.body, UNKNOWN, b""),
        None => BytesMut::from(&error.body[..]),
    }
}
