//! The simple protocol, and what every execution of a statement does to the session.

use super::Session;
use super::context::Target;
use super::extended::malformed;
use super::pin::Pin;
use crate::backend::expect::Expect;
use crate::config::model::PoolMode;
use crate::error::Error;
use crate::sql::facts::{Class, Effect, Facts, SharedFacts, TransactionControl};
use crate::wire::frame::Frame;
use crate::wire::frontend;
use crate::wire::writer::{self, TransactionStatus};

impl Session {
    pub(super) async fn on_query(&mut self, frame: Frame) -> Result<(), Error> {
        self.in_extended = false;
        self.skipping = false;
        let text = frontend::query(frame.body()).map_err(|error| malformed("Query", error))?;
        let facts = self.db.shared.analyzer.facts(text, self.conforming_strings());
        self.unnamed = None;
        if self.answers_itself(&facts).await? {
            return Ok(());
        }
        if self.db.is_planned() {
            return self.go_simple(&frame, text, &facts).await;
        }
        self.relay_query(&frame, &facts).await
    }

    /// Sends a Query on to the server where it runs.
    pub(super) async fn relay_query(&mut self, frame: &Frame, facts: &SharedFacts) -> Result<(), Error> {
        self.refuse_sequence_state(facts)?;
        let target = self.target_for(facts)?;
        self.attach(target).await?;
        self.note_execution(facts).await?;
        self.before_commit().await?;
        let server = self.attach(target).await?;
        server.unnamed = None;
        server.outbuf.extend_from_slice(&frame.bytes);
        server.expects.push(Expect::Query);
        Ok(())
    }

    /// Statements about prepared statements that live in pgherd, not on a server.
    async fn answers_itself(&mut self, facts: &Facts) -> Result<bool, Error> {
        let Some(statement) = facts.single() else { return Ok(false) };
        if self.pins.any() || self.mode == PoolMode::Session || self.status == TransactionStatus::Failed {
            return Ok(false);
        }
        let tag = match statement.effects.as_slice() {
            [Effect::DeallocateAll] => {
                self.named.clear();
                "DEALLOCATE ALL"
            }
            [Effect::Deallocate(name)] if self.named.contains_key(name.as_bytes()) => {
                self.named.remove(name.as_bytes());
                "DEALLOCATE"
            }
            [Effect::DiscardAll] if self.status == TransactionStatus::Idle => {
                self.named.clear();
                self.settings.start_over();
                "DISCARD ALL"
            }
            _ => return Ok(false),
        };
        self.wait_for_answers().await?;
        let status = self.status;
        let out = self.out();
        writer::command_complete(out, tag);
        writer::ready_for_query(out, status);
        Ok(true)
    }

    /// `currval` and `lastval` speak of what this session's own server connection did, which outside a transaction is
    /// nobody's in particular.
    pub(super) fn refuse_sequence_state(&self, facts: &Facts) -> Result<(), Error> {
        let reads_it = facts.effects().any(|effect| *effect == Effect::SequenceState);
        let has_own_server =
            self.mode == PoolMode::Session || self.pins.any() || self.status != TransactionStatus::Idle;
        if !reads_it || has_own_server || facts.statements.len() > 1 {
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
                Class::Transaction(TransactionControl::BeginReadOnly) => self.read_only = true,
                _ => {}
            }
        }
        for effect in facts.effects() {
            self.settings.note_effect(effect);
            if let Some(pin) = Pin::of(effect) {
                self.pin(pin);
            }
            match effect {
                Effect::DiscardAll => (self.forgets_statements, self.forgets_pins) = (true, true),
                Effect::DeallocateAll => self.forgets_statements = true,
                Effect::Opaque => {
                    if let Some(server) = self.held_server() {
                        server.dirty = true;
                    }
                }
                _ => {}
            }
        }
        self.note_writes(facts).await
    }

    fn pin(&mut self, pin: Pin) {
        if self.mode == PoolMode::Transaction && self.pins.add(pin) {
            self.db.shared.metrics.pin(pin.label());
            tracing::debug!(reason = pin.label(), "client pinned to its server");
        }
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
