//! A transaction whose only server has done nothing yet but take its settings and savepoints: it goes on where a statement needs it.

use std::fmt::Write as _;
use std::sync::Arc;

use super::context::Target;
use super::span::tell;
use super::within::only_sets;
use super::{Attached, Session};
use crate::backend::reset;
use crate::backend::settings::literal;
use crate::error::Error;
use crate::exec::two_phase::commit;
use crate::sql::facts::{Class, Effect, Facts, Statement};
use crate::wire::writer::TransactionStatus;

impl Session {
    /// The transaction's server has done something that no other could do in its place.
    pub(super) fn transaction_has_worked(&mut self) {
        if let Some(span) = &mut self.span {
            span.has_worked = true;
        }
    }

    /// Notes what a statement that is about to run means for that. Where a transaction has one snapshot, its first query takes it.
    pub(super) fn note_work(&mut self, facts: &Facts) {
        let takes_snapshot = |statement: &Statement| statement.class == Class::Read;
        if !facts.statements.iter().all(leaves_nothing)
            || (self.is_isolated() && facts.statements.iter().any(takes_snapshot))
        {
            self.transaction_has_worked();
        }
    }

    /// Something was run that no other server can be told.
    pub(super) fn nobody_joins_any_more(&mut self) {
        if let Some(span) = &mut self.span {
            (span.has_worked, span.cannot_grow) = (true, true);
        }
    }

    /// Whether another server can take the place of the one at hand.
    pub(super) fn may_relocate(&self) -> bool {
        let is_idle = self.span.as_ref().is_some_and(|span| {
            span.others.is_empty() && !span.has_worked && !span.cannot_grow && span.set_by_query.is_empty()
        });
        is_idle && self.server.is_some() && !self.keeps_server()
    }

    /// The transaction begins anew on another server, and is over on the one at hand, which had nothing of it but settings.
    pub(super) async fn relocate(&mut self, target: Target) -> Result<(), Error> {
        let Some(span) = &self.span else { return Err(Error::internal("there is nothing to relocate")) };
        let script = span.script()?;
        let settings = Arc::clone(&self.settings.current);
        let lease = self.lease_with(target, &settings).await?;
        let mut next = Attached { lease, target };
        tell(&mut next, &script).await?;
        self.untie_cancel().await;
        if let Some(mut former) = self.server.replace(next) {
            let server = former.lease.server();
            server.spill(&mut self.client.outbuf);
            let is_over = matches!(commit::command(server, "ROLLBACK").await, Ok(Ok(())));
            if !is_over {
                server.mark_broken();
            } else if server.dirty {
                let _ = reset::discard_all(server).await;
            }
            former.lease.release();
        }
        self.aim_cancel();
        self.note_whereabouts();
        Ok(())
    }

    /// What a query has set is what the transaction's server says: from now on others can be told, and those that take part are.
    ///
    /// # Errors
    /// One of them would not, or it cannot be asked for in the middle of a pipeline.
    pub(super) async fn repeat_what_a_query_set(&mut self) -> Result<(), Error> {
        let Some(effects) = self.span.as_mut().map(|span| std::mem::take(&mut span.set_by_query)) else {
            return Ok(());
        };
        if effects.is_empty() || self.status != TransactionStatus::InTransaction {
            return Ok(());
        }
        self.learn_settings().await?;
        let sql = if self.settings.is_known() { self.set_again_sql(&effects) } else { None };
        let Some(span) = &mut self.span else { return Ok(()) };
        match sql {
            Some(sql) => {
                span.repeat(sql.as_bytes());
                match self.tell_others(&sql).await? {
                    None => Ok(()),
                    Some(message) => Err(crate::backend::failure::server_error(
                        message.get(crate::wire::frame::HEADER_LEN..).unwrap_or_default(),
                    )),
                }
            }
            None if span.others.is_empty() => {
                span.cannot_grow = true;
                Ok(())
            }
            None => Err(Error::refused("settings that a query has set, in a transaction over several servers")
                .hint("Send Sync behind the query, or use SET.")),
        }
    }

    /// What sets the same elsewhere.
    fn set_again_sql(&self, effects: &[Effect]) -> Option<String> {
        let mut sql = String::new();
        for effect in effects {
            let (name, is_local) = match effect {
                Effect::Set(name) => (name, false),
                Effect::SetLocal(name) => (name, true),
                _ => return None,
            };
            let value = literal(&self.value_within(name)?);
            let separator = if sql.is_empty() { "SELECT " } else { ", " };
            let _ = write!(sql, "{separator}pg_catalog.set_config({}, {value}, {is_local})", literal(name));
        }
        Some(sql)
    }
}

/// Whether a server that has run a statement is no other than one that has not, but for what every server of a transaction is told.
pub(super) fn leaves_nothing(statement: &Statement) -> bool {
    let sets = |effect: &Effect| {
        matches!(
            effect,
            Effect::Set(_)
                | Effect::SetLocal(_)
                | Effect::Reset(_)
                | Effect::ResetLocal(_)
                | Effect::ResetAll
                | Effect::OpaqueSettings
        )
    };
    match statement.class {
        Class::Empty | Class::Show | Class::Transaction(_) => true,
        Class::Session => statement.reads.is_empty() && statement.effects.iter().all(sets),
        _ => only_sets(statement) && statement.effects.iter().all(sets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::facts_of;

    fn leaves(text: &str) -> bool {
        facts_of(text, true).statements.iter().all(leaves_nothing)
    }

    #[test]
    fn settings_savepoints_and_what_shows_them_leave_nothing() {
        for text in [
            "set local timezone = 'UTC'",
            "set role x",
            "reset all",
            "show work_mem",
            "savepoint s",
            "rollback to s",
            "select 1",
            "select set_config('app.tenant', $1, true)",
            "select coalesce(current_setting('app.tenant', true), '')",
            "select pg_catalog.set_config('app.tenant', current_user::text, false), current_setting('a.b')",
        ] {
            assert!(leaves(text), "{text}");
        }
    }

    #[test]
    fn all_else_is_work() {
        for text in [
            "select now()",
            "select set_config('app.tenant', nextval('s')::text, true)",
            "select set_config('app.tenant', name, true) from tenants",
            "select current_timestamp",
            "select 'x'::regclass",
            "select a.set_config('b', 'c', true)",
            "select pg_advisory_xact_lock(1)",
            "listen x",
            "declare c cursor for select 1",
            "prepare p as select 1",
            "lock table t",
            "update t set a = 1",
            "do 'begin end'",
        ] {
            assert!(!leaves(text), "{text}");
        }
    }
}
