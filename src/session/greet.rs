//! The first words to a client that has proved who it is: its settings as a server reports them, its cancel key, and
//! ReadyForQuery.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::BufMut;

use super::Session;
use super::context::Target;
use super::state::SessionSettings;
use crate::backend::pool::Baseline;
use crate::backend::reset;
use crate::backend::settings::Settings;
use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::wire::backend::ServerError;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// What the server reports of a role that is asked for at startup.
const IS_SUPERUSER: &str = "is_superuser";

impl Session {
    /// Takes over the startup parameters and greets the client.
    pub(super) async fn greet(&mut self, startup: Vec<(String, String)>) -> Result<(), Error> {
        let pool = Arc::clone(&self.primary);
        let settings = self.startup_settings(startup).await.map_err(|error| in_the_servers_words(error).fatal())?;
        let baseline = match pool.baseline() {
            Some(baseline) => baseline,
            None => {
                self.wait_for_lease(&pool).await.map_err(Error::fatal)?.release();
                pool.baseline().ok_or_else(|| Error::internal("a server connection has no settings").fatal())?
            }
        };
        if self.db.unseen_digest().is_none() {
            self.db.learn_unseen_from(&pool, Target::Primary).await.map_err(Error::fatal)?;
        }
        self.settings = SessionSettings::new(self.db.share_settings(settings));
        self.write_greeting(&baseline);
        self.client.flush().await
    }

    fn write_greeting(&mut self, baseline: &Baseline) {
        let settings = Arc::clone(&self.settings.current);
        let (pid, slot) = (self.cancel.pid(), Arc::clone(&self.cancel.slot));
        let status = self.status;
        let superuser = settings.get("role").and_then(|role| self.db.accepted_value(IS_SUPERUSER, role));
        let out = self.out();
        for (name, value) in &baseline.parameters {
            let is_superuser = name == IS_SUPERUSER;
            let set = if is_superuser { superuser.as_deref() } else { settings.get_as_reported(name) };
            let value = set.unwrap_or(value);
            writer::parameter_status(out, name, value);
        }
        writer::message(out, b'K', |out| {
            out.put_i32(pid);
            out.put_slice(slot.secret());
        });
        writer::ready_for_query(out, status);
    }

    /// The startup parameters with the values that a server makes of them: asked for once a value, remembered afterwards.
    async fn startup_settings(&mut self, startup: Vec<(String, String)>) -> Result<Settings, Error> {
        let mut wanted = Settings::default();
        for (name, value) in &startup {
            wanted.set(&name.to_ascii_lowercase(), value);
        }
        if wanted.len() > limits::SETTINGS {
            return Err(Error::protocol(format!("more than {} startup parameters", limits::SETTINGS)));
        }
        let mut known = Settings::default();
        for (name, value) in wanted.iter() {
            if let Some(reported) = self.db.accepted_value(name, value) {
                known.set(name, &reported);
            }
        }
        let knows_role = wanted.get("role").is_none_or(|role| self.db.accepted_value(IS_SUPERUSER, role).is_some());
        if known.len() == wanted.len() && knows_role {
            return Ok(known);
        }
        self.ask_server(wanted).await
    }

    /// Sets the values on a server and reads back what it made of them.
    async fn ask_server(&mut self, wanted: Settings) -> Result<Settings, Error> {
        let pool = Arc::clone(&self.primary);
        let mut lease = self.wait_for_lease(&pool).await?;
        let server = lease.server();
        let names: BTreeSet<Box<str>> = wanted.iter().map(|(name, _)| name.into()).collect();
        let wanted = Arc::new(wanted);
        reset::apply(server, &wanted).await?;
        let reported = reset::read_back(server, &Settings::default(), &names, None).await?;
        server.settings = Arc::new(reported.clone());
        for (name, value) in wanted.iter() {
            if let Some(reported) = reported.get(name) {
                self.db.note_accepted(name, value, reported);
            }
        }
        if let (Some(role), Some(superuser)) = (wanted.get("role"), server.parameter(IS_SUPERUSER)) {
            self.db.note_accepted(IS_SUPERUSER, role, superuser);
        }
        lease.release();
        Ok(reported)
    }
}

/// A startup parameter that the server does not take: the client gets the error that PostgreSQL would have given it.
fn in_the_servers_words(error: Error) -> Error {
    let Some(said) = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<ServerError>()) else {
        return error;
    };
    match said.code.as_str() {
        "42704" => Error::new(ErrorKind::Protocol, SqlState::UNDEFINED_OBJECT, said.message.clone()),
        "22023" => Error::new(ErrorKind::Protocol, SqlState::INVALID_PARAMETER_VALUE, said.message.clone()),
        "42501" => Error::new(ErrorKind::Protocol, SqlState::INSUFFICIENT_PRIVILEGE, said.message.clone()),
        _ => error,
    }
}
