//! Settings that a session has changed within its transaction, where it holds on one server and reads on others: the server that has
//! them is asked, once after each change, and whoever reads beside it is given the same.

use std::sync::Arc;

use super::Session;
use super::pin::Pin;
use super::planned::aborted;
use crate::backend::reset;
use crate::backend::settings::{Settings, SharedSettings};
use crate::error::Error;
use crate::sql::facts::{Class, Facts, Statement};
use crate::wire::writer::TransactionStatus;

impl Session {
    /// What a connection is given that works for this session beside its transaction.
    ///
    /// # Errors
    /// The transaction has changed settings in a way that cannot be followed.
    pub(super) async fn settings_beside(&mut self) -> Result<SharedSettings, Error> {
        if !self.settings.is_known() {
            Box::pin(self.learn_settings()).await?;
        }
        if !self.settings.is_known() || self.has_opaque_settings() {
            return Err(Error::refused("a statement over several servers where the session's settings are not known")
                .hint("Change settings by SET, and before the transaction."));
        }
        Ok(Arc::clone(self.settings.now()))
    }

    /// Before a statement is planned by them: what decides how its names are read is asked for, in the middle of a pipeline as well.
    pub(super) async fn learn_what_names_mean(&mut self, facts: &Facts) -> Result<(), Error> {
        if self.settings.parse_is_certain() || self.settings.is_known() || names_nothing(facts) {
            return Ok(());
        }
        let is_within = self.status == TransactionStatus::InTransaction && self.settings.can_be_asked_for();
        if is_within && self.db.config.is_distributed() && self.is_mid_flight() {
            self.come_to_rest().await?;
            if self.status == TransactionStatus::Failed || self.skipping {
                return Err(aborted());
            }
        }
        self.learn_settings().await
    }

    /// Asks the transaction's server for the settings that may have changed in it, if that is possible and has not been done.
    pub(super) async fn learn_settings(&mut self) -> Result<(), Error> {
        if self.settings.is_known() || !self.can_learn_settings() {
            return Ok(());
        }
        self.wait_for_answers().await?;
        if self.status != TransactionStatus::InTransaction {
            return Ok(());
        }
        let mut names = self.settings.changed_within(&self.settings.current);
        if !self.settings.parse_is_certain() {
            names.extend(Settings::parse_relevant_names().map(Box::from));
        }
        let Some(attached) = &mut self.server else { return Ok(()) };
        let baseline = self.db.pool(&self.user, attached.target).baseline();
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        let told = server.parameters.clone();
        match reset::read_back(server, &self.settings.current, &names, baseline.as_deref()).await {
            Ok(within) => {
                self.settings.note_within(within);
                Ok(())
            }
            Err(error) => {
                self.tell_what_was_undone(&told);
                Err(error)
            }
        }
    }

    /// Whether a server is there that could be asked now.
    fn can_learn_settings(&self) -> bool {
        self.db.config.is_distributed()
            && self.status == TransactionStatus::InTransaction
            && self.settings.can_be_asked_for()
            && self.server.is_some()
            && !self.is_mid_flight()
    }

    /// Whether what the session has set is known, or can be asked for and changes no plan.
    pub(super) fn can_plan_by_settings(&self) -> bool {
        let can_learn = || self.settings.parse_is_certain() && self.can_learn_settings();
        !self.has_opaque_settings() && (self.settings.is_known() || can_learn())
    }

    /// Whether the session has set what has no name in its texts: only the server that it is pinned to has that.
    fn has_opaque_settings(&self) -> bool {
        self.db.config.is_distributed() && self.pins.has(Pin::OpaqueSettings)
    }

    /// Whether what a text means is what it would mean outside of the transaction, or as is known within.
    pub(super) fn names_are_certain(&self) -> bool {
        self.settings.is_known() || (self.db.config.is_distributed() && self.settings.parse_is_certain())
    }

    /// What a setting that was changed within the transaction is now, for whoever is to set it elsewhere.
    pub(super) fn value_within(&self, name: &str) -> Option<Box<str>> {
        let login = || Box::from(self.db.login_role(&self.user));
        match self.settings.now().get(name) {
            Some(value) => Some(value.into()),
            None if name == "role" => Some("none".into()),
            None if name == "session_authorization" => Some(login()),
            None => self.setting(name).or_else(|| self.reported_at_login(name)),
        }
    }
}

/// Whether a statement depends on no names: transaction control, SET, SHOW.
fn names_nothing(facts: &Facts) -> bool {
    let is_plain = |class| matches!(class, Class::Empty | Class::Show | Class::Session | Class::Transaction(_));
    facts.statements.iter().all(|statement| is_plain(statement.class) && statement.reads.is_empty())
}

/// Whether all that a query does is to set settings whose names it gives, or to tell some: run once more on another server with the
/// same settings, it would say the same.
pub(super) fn only_sets(statement: &Statement) -> bool {
    const ABOUT_SETTINGS: [&str; 4] = ["set_config", "current_setting", "coalesce", "nullif"];
    const ABOUT_ROLES: [&str; 5] = ["current_user", "session_user", "current_role", "user", "system_user"];
    const PLAIN_TYPES: [&str; 12] =
        ["text", "varchar", "name", "bool", "boolean", "int2", "int4", "int8", "int", "integer", "bigint", "uuid"];
    let is_own = |schema: Option<&str>| schema.is_none_or(|schema| schema == "pg_catalog");
    statement.class == Class::Read
        && statement.reads.is_empty()
        && statement.writes.is_empty()
        && statement.operators.is_empty()
        && statement.fields.is_empty()
        && !statement.explain
        && statement.value_functions.iter().all(|name| ABOUT_ROLES.contains(&&**name))
        && statement
            .functions
            .iter()
            .all(|called| is_own(called.schema.as_deref()) && ABOUT_SETTINGS.contains(&&*called.name))
        && statement.casts.iter().all(|cast| is_own(cast.schema.as_deref()) && PLAIN_TYPES.contains(&&*cast.name))
}
