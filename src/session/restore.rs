//! RESET, SET TO DEFAULT and DISCARD ALL go back to what the client asked for at startup. A server connection is shared, so its own
//! idea of that is its login's: the startup value is set again right behind, in the same transaction, by a statement that the
//! client is told nothing of.

use std::collections::VecDeque;
use std::fmt::Write as _;

use bytes::BytesMut;

use super::Session;
use super::context::Target;
use crate::backend::expect::Expect;
use crate::backend::reset;
use crate::backend::server::ServerConn;
use crate::backend::settings::{Settings, literal};
use crate::error::Error;
use crate::sql::facts::{Effect, Facts, Statement};
use crate::sql::statement_ends;
use crate::wire::frame::Frame;
use crate::wire::frontend;
use crate::wire::writer;

/// The name of the statement and of the portal by which a startup value is set again.
const NAME: &[u8] = b"pgherd_restore";

impl Session {
    /// A Query with its startup values set again wherever it resets them, and which of its statements are pgherd's. `None`
    /// where it resets none.
    pub(super) fn with_startup_values(&self, frame: &Frame, facts: &Facts) -> Option<(BytesMut, VecDeque<bool>)> {
        let startup = &self.settings.startup;
        if startup.is_empty() || !facts.statements.iter().any(|it| restored(it, startup).is_some()) {
            return None;
        }
        let text = frontend::query(frame.body()).ok()?;
        let ends = statement_ends(text, self.conforming_strings());
        if ends.len() != facts.statements.len() {
            return None;
        }
        let (mut spliced, mut hidden, mut begin) = (BytesMut::new(), VecDeque::new(), 0);
        for (statement, end) in facts.statements.iter().zip(ends) {
            spliced.extend_from_slice(text.get(begin..end)?);
            hidden.push_back(false);
            begin = end;
            if let Some(sql) = restored(statement, startup) {
                spliced.extend_from_slice(b";");
                spliced.extend_from_slice(sql.as_bytes());
                hidden.push_back(true);
            }
        }
        spliced.extend_from_slice(text.get(begin..)?);
        Some((spliced, hidden))
    }

    /// What sets the startup values again behind a statement that is executed by messages.
    pub(super) fn startup_values_after(&self, facts: &Facts) -> Option<String> {
        let startup = &self.settings.startup;
        if startup.is_empty() { None } else { restored(facts.single()?, startup) }
    }

    /// `DISCARD ALL` on the server connection that the client keeps, or that must say what else it changes.
    pub(super) async fn discard_on_server(&mut self) -> Result<(), Error> {
        let target = self.server.as_ref().map_or(Target::Primary, |attached| attached.target);
        self.attach(target).await?;
        // A cancel that comes late must not hit what pgherd runs.
        self.untie_cancel().await;
        let start = std::sync::Arc::clone(&self.settings.startup);
        let Some(attached) = &mut self.server else { return Ok(()) };
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        let told = server.parameters.clone();
        reset::discard_all(server).await.map_err(Error::fatal)?;
        reset::apply(server, &start).await.map_err(Error::fatal)?;
        self.cancel.slot.aim_at(std::sync::Arc::clone(&server.cancel_target));
        let changed: Vec<_> = server.parameters.iter().filter(|parameter| !told.contains(parameter)).cloned().collect();
        self.settings.start_over();
        self.named.clear();
        self.drop_unnamed();
        self.pins.clear();
        self.stop_listening();
        self.must_discard = false;
        let status = self.status;
        let out = self.out();
        writer::command_complete(out, "DISCARD ALL");
        for (name, value) in &changed {
            writer::parameter_status(out, name, value);
        }
        writer::ready_for_query(out, status);
        self.release_if_at_rest(tokio::time::Instant::now()).await
    }
}

/// Sets startup values again, in the client's own pipeline.
pub(super) fn queue(server: &mut ServerConn, sql: &str) {
    let out = &mut server.outbuf;
    // An error may have kept an earlier one from being closed.
    writer::close(out, b'S', NAME);
    writer::parse(out, NAME, sql.as_bytes(), &[]);
    writer::message(out, b'B', |out| {
        writer::cstr(out, NAME);
        writer::cstr(out, NAME);
        out.extend_from_slice(&[0; 6]);
    });
    writer::execute(out, NAME, 0);
    writer::close(out, b'P', NAME);
    writer::close(out, b'S', NAME);
    for expect in [
        Expect::Close { hidden: true },
        Expect::Parse { hidden: true, statement: None, client_name: None },
        Expect::HiddenBind,
        Expect::HiddenExecute,
        Expect::Close { hidden: true },
        Expect::Close { hidden: true },
    ] {
        server.expects.push(expect);
    }
}

/// What sets those startup values again that a statement takes away.
fn restored(statement: &Statement, startup: &Settings) -> Option<String> {
    let mut calls = String::new();
    let mut call = |name: &str, value: &str, local: bool| {
        let separator = if calls.is_empty() { "SELECT " } else { "," };
        let _ = write!(calls, "{separator}pg_catalog.set_config({},{},{local})", literal(name), literal(value));
    };
    for effect in &statement.effects {
        let (name, local) = match effect {
            Effect::Reset(name) => (name, false),
            Effect::ResetLocal(name) => (name, true),
            Effect::ResetAll => {
                // It leaves the role alone.
                startup.iter().filter(|(name, _)| *name != "role").for_each(|(name, value)| call(name, value, false));
                continue;
            }
            Effect::DiscardAll => {
                startup.iter().for_each(|(name, value)| call(name, value, false));
                continue;
            }
            _ => continue,
        };
        // A session authorization that goes back takes the role back with it.
        let name = if &**name == "session_authorization" { "role" } else { name };
        if let Some(value) = startup.get(name) {
            call(name, value, local);
        }
    }
    (!calls.is_empty()).then_some(calls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Analyzer;

    fn set_again(text: &str) -> Option<String> {
        let mut startup = Settings::default();
        [("role", "r"), ("timezone", "Asia/Tokyo"), ("work_mem", "5MB")]
            .iter()
            .for_each(|(name, value)| startup.set(name, value));
        restored(Analyzer::new().facts(text.as_bytes(), true).single().expect("one"), &startup)
    }

    #[test]
    fn what_a_statement_resets_is_set_again() {
        let call = |name, value, local| format!("pg_catalog.set_config('{name}','{value}',{local})");
        let zone = |local| Some(format!("SELECT {}", call("timezone", "Asia/Tokyo", local)));
        assert_eq!(set_again("reset time zone"), zone(false));
        assert_eq!(set_again("set timezone to default"), zone(false));
        assert_eq!(set_again("set local time zone default"), zone(true));
        assert_eq!(set_again("reset role"), Some(format!("SELECT {}", call("role", "r", false))));
        let both = format!("SELECT {},{}", call("timezone", "Asia/Tokyo", false), call("work_mem", "5MB", false));
        assert_eq!(set_again("reset all"), Some(both));
        assert_eq!(set_again("reset session authorization"), set_again("reset role"));
        for text in ["set role none", "reset datestyle", "set timezone to utc", "select 1"] {
            assert_eq!(set_again(text), None, "{text}");
        }
    }
}
