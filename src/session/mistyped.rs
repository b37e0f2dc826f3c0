//! A statement with a mistake in its grammar is told as PostgreSQL tells it, not as one that pgherd cannot read.

use super::Session;
use super::context::Target;
use super::fan_out::release;
use super::planned::Execution;
use crate::exec::insert_select::describe;
use crate::plan::Refusal;
use crate::sql::facts::Class;
use crate::wire::backend::ErrorFields;
use crate::wire::frame::HEADER_LEN;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::TransactionStatus;

impl Session {
    /// Whether the primary's grammar refuses what pgherd could not read: the primary is to say so itself then. Where no connection is
    /// free to ask it on, nobody knows.
    pub(super) async fn is_mistyped(&mut self, execution: &Execution<'_>, refusal: &Refusal) -> bool {
        let is_unread = refusal.code == "names-shards"
            && execution.facts.single().is_some_and(|statement| statement.class == Class::Opaque);
        let is_elsewhere = self.server.as_ref().is_some_and(|attached| attached.target != Target::Primary);
        if !is_unread || is_elsewhere || self.status == TransactionStatus::Failed {
            return false;
        }
        let Some(mut leg) = self.free_legs(1).await.pop() else { return false };
        let described = describe(leg.attached.lease.server(), execution.text, execution.types).await;
        release(vec![leg], if described.is_ok() { &[] } else { &[0] });
        let Ok(Err(message)) = described else { return false };
        let fields = message.get(HEADER_LEN..).and_then(|body| ErrorFields::parse(body).ok());
        fields.is_some_and(|fields| fields.get(b'C') == Some(SqlState::SYNTAX_ERROR.code()))
    }
}
