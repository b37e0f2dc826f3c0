//! The simple protocol, and what every execution of a statement does to the session.

use std::sync::Arc;

use super::Session;
use super::context::Target;
use super::extended::malformed;
use super::pin::Pin;
use super::route::asks_route;
use crate::backend::expect::Expect;
use crate::backend::settings::Settings;
use crate::backend::statements::NAME_PREFIX;
use crate::error::{Error, ErrorKind};
use crate::sql::facts::{Class, Effect, Facts, SharedFacts, TransactionControl};
use crate::wire::frame::Frame;
use crate::wire::frontend;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

impl Session {
    pub(super) async fn on_query(&mut self, frame: Frame) -> Result<(), Error> {
        self.in_extended = false;
        self.skipping = false;
        let text = frontend::query(frame.body()).map_err(|error| malformed("Query", error))?;
        let facts = self.db.shared.analyzer.facts(text, self.conforming_strings());
        self.drop_unnamed();
        if self.suspended.is_some() {
            let all = self.status == TransactionStatus::Idle;
            Box::pin(self.close_halted(Some(&b""[..]).filter(|_| !all))).await;
        }
        if self.answers_itself(&facts).await? {
            return Ok(());
        }
        if self.db.is_planned() || asks_route(&facts) {
            return self.go_simple(&frame, text, &facts).await;
        }
        self.relay_query(&frame, &facts).await
    }

    /// Sends a Query on to the server where it runs.
    pub(super) async fn relay_query(&mut self, frame: &Frame, facts: &SharedFacts) -> Result<(), Error> {
        self.refuse_sequence_state(facts).await?;
        if facts.effects().any(|effect| matches!(effect, Effect::DeallocateAll | Effect::DiscardAll)) {
            // Whether it has worked is told by the answers from here on.
            self.wait_for_answers().await?;
        }
        let target = self.target_for(facts)?;
        self.attach(target).await?;
        self.hide_statements(facts, target).await?;
        self.note_execution(facts).await?;
        self.before_commit().await?;
        let spliced = self.with_startup_values(frame, facts);
        let server = self.attach(target).await?;
        server.unnamed = None;
        match spliced {
            Some((text, hidden)) => {
                writer::query(&mut server.outbuf, &text);
                server.expects.push(Expect::Spliced(hidden));
            }
            None => {
                server.outbuf.extend_from_slice(&frame.bytes);
                server.expects.push(Expect::Query);
            }
        }
        if self.forgets_statements || self.awaits_listening() {
            // What the client sends next must find the statements gone, or its LISTEN done.
            self.wait_for_answers().await?;
        }
        if self.suspended.is_some() {
            Box::pin(self.settle_portals(facts)).await?;
        }
        Ok(())
    }

    /// Statements about prepared statements that live in pgherd, not on a server.
    async fn answers_itself(&mut self, facts: &Facts) -> Result<bool, Error> {
        let Some(statement) = facts.single() else { return Ok(false) };
        if !matches!(statement.effects.as_slice(), [Effect::DeallocateAll | Effect::Deallocate(_) | Effect::DiscardAll])
        {
            return Ok(false);
        }
        // What was asked before decides about the transaction, the pins and the settings that this is about.
        self.wait_for_answers().await?;
        if self.status == TransactionStatus::Failed {
            return Ok(false);
        }
        let told = Arc::clone(&self.settings.current);
        let has_own_server = self.keeps_server();
        let tag = match statement.effects.as_slice() {
            [Effect::DeallocateAll] if !has_own_server => {
                self.named.clear();
                "DEALLOCATE ALL"
            }
            [Effect::Deallocate(name)] if self.named.contains_key(name.as_bytes()) => {
                self.named.remove(name.as_bytes());
                "DEALLOCATE"
            }
            [Effect::DiscardAll] if self.status == TransactionStatus::Idle && !self.is_mid_flight() => {
                if has_own_server || self.settings.has_identity() {
                    self.discard_on_server().await?;
                    return Ok(true);
                }
                self.named.clear();
                self.settings.start_over();
                self.stop_listening();
                "DISCARD ALL"
            }
            _ => return Ok(false),
        };
        let status = self.status;
        let out = self.out();
        writer::command_complete(out, tag);
        self.report_changes_since(&told);
        writer::ready_for_query(self.out(), status);
        Ok(true)
    }

    /// Tells the client which of the settings that servers report are no longer what they were.
    fn report_changes_since(&mut self, told: &Settings) {
        let Some(baseline) = self.db.pool(&self.user, Target::Primary).baseline() else { return };
        let now = Arc::clone(&self.settings.current);
        for (name, at_login) in &baseline.parameters {
            let lower = name.to_ascii_lowercase();
            let value = now.get(&lower).unwrap_or(at_login);
            if told.get(&lower).unwrap_or(at_login) != value {
                writer::parameter_status(self.out(), name, value);
            }
        }
    }

    /// `currval` and `lastval` speak of what this session's own server connection did, which outside a transaction is
    /// nobody's in particular.
    pub(super) async fn refuse_sequence_state(&mut self, facts: &Facts) -> Result<(), Error> {
        if facts.statements.len() > 1 || !facts.effects().any(|effect| *effect == Effect::SequenceState) {
            return Ok(());
        }
        self.wait_for_answers().await?;
        if self.keeps_server() || self.status != TransactionStatus::Idle {
            return Ok(());
        }
        Err(Error::refused("currval() and lastval() outside a transaction cannot be answered in transaction pooling")
            .hint("Use INSERT ... RETURNING, or run nextval() and currval() in one transaction, or use pool mode \"session\"."))
    }

    /// Notes what a statement that is about to run does to the session, and to what others may have cached.
    pub(super) async fn note_execution(&mut self, facts: &SharedFacts) -> Result<(), Error> {
        for statement in &facts.statements {
            match statement.class {
                Class::Transaction(TransactionControl::BeginOther | TransactionControl::SetTransaction) => {
                    self.isolated = true
                }
                Class::Transaction(TransactionControl::BeginReadOnly | TransactionControl::SetTransactionReadOnly) => {
                    self.read_only = true
                }
                _ => {}
            }
        }
        if facts.effects().next().is_some()
            || facts.statements.iter().any(|it| matches!(it.class, Class::Transaction(_)))
        {
            self.settings.forget_exact();
        }
        self.note_cursors(facts)?;
        self.note_work(facts);
        let mut asks_listening = false;
        self.note_unseen(facts);
        for effect in facts.effects() {
            refuse_pgherds_names(effect)?;
            self.isolated |= sets_isolation(effect);
            self.settings.note_effect(effect);
            if let Some(pin) = Pin::of(effect) {
                self.pin(pin);
            }
            match effect {
                Effect::DiscardAll => (self.forgets_statements, self.forgets_pins) = (true, true),
                Effect::DeallocateAll => self.forgets_statements = true,
                Effect::Listen(_) | Effect::Unlisten(_) | Effect::UnlistenAll => asks_listening = true,
                Effect::Opaque => {
                    if let Some(server) = self.held_server() {
                        server.dirty = true;
                    }
                }
                _ => {}
            }
        }
        if self.pinned.is_some() {
            self.note_unpinning(facts);
        }
        if asks_listening || self.listening.is_some() {
            Box::pin(self.note_listening(facts, asks_listening)).await?;
        }
        self.note_writes(facts).await
    }

    /// Whether a plain string literal takes backslashes as they are.
    pub(super) fn conforming_strings(&self) -> bool {
        self.settings.current.get("standard_conforming_strings") != Some("off")
    }

    /// Where a statement runs that says nothing about it.
    pub(super) fn default_target(&self) -> Target {
        self.server.as_ref().map_or(Target::Primary, |attached| attached.target)
    }
}

/// Whether the transaction may have another isolation from then on.
fn sets_isolation(effect: &Effect) -> bool {
    match effect {
        Effect::Set(name) | Effect::SetLocal(name) => {
            matches!(&**name, "transaction_isolation" | "transaction_deferrable")
        }
        _ => false,
    }
}

/// Statements that pgherd prepared, perhaps for others, are out of reach for SQL: as if they did not exist.
fn refuse_pgherds_names(effect: &Effect) -> Result<(), Error> {
    match effect {
        Effect::Execute(name) | Effect::Deallocate(name) | Effect::Prepare(name) if name.starts_with(NAME_PREFIX) => {
            let message = format!("prepared statement \"{name}\" does not exist");
            Err(Error::new(ErrorKind::Refused, SqlState::INVALID_STATEMENT_NAME, message)
                .hint("Names that begin with pgherd_ are pgherd's own."))
        }
        _ => Ok(()),
    }
}
