//! What a prepared statement means on a server that many clients share.
//!
//! PostgreSQL reads a statement's text at Parse and keeps what it read: `'01/02/2003'::date` stays 2 January after
//! `SET DateStyle = DMY`. It reads the text once more where the schemas that names are looked up in have changed since it did so last, and
//! then under all that is set by then; the same where the tables that it speaks of have changed (`RevalidateCachedQuery` in its
//! `plancache.c`). A server's copy of a statement serves many clients, so all who use it must have the same of what else parse analysis
//! looks at: that is part of its [`Identity`], and who has set something else gets another identity at the next use.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use super::context::Target;
use super::pin::Pin;
use super::planned::Way;
use super::{Prepared, Session};
use crate::backend::expect::Expect;
use crate::backend::reset;
use crate::backend::server::ServerConn;
use crate::backend::settings::{Settings, SharedSettings, literal};
use crate::backend::statements::Identity;
use crate::catalog::model::FIRST_USER_OID;
use crate::error::Error;
use crate::plan::search_path;
use crate::wire::writer::{self, TransactionStatus};

/// In place of a `search_path` that has been set for one transaction and was not asked for.
const UNKNOWN_PATH: &str = "\0";

impl Session {
    /// Whether nothing has been set since a statement was used last that would make it another one on servers.
    pub(super) fn is_read_as_things_are(&self, prepared: &Prepared) -> bool {
        if self.settings.parse_is_certain() && Arc::ptr_eq(&prepared.under, &self.settings.current) {
            return true;
        }
        let used_under = prepared.identity.as_ref().and_then(|identity| identity.used_under());
        used_under.or(prepared.read_under.as_ref()).is_some_and(|its| self.settings.is_parse_relevant_part(its))
    }

    /// A statement that is about to be used, as PostgreSQL would have read it by then.
    pub(super) async fn as_read_now(
        &mut self,
        name: &[u8],
        prepared: Option<Arc<Prepared>>,
        target: Target,
    ) -> Result<Option<Arc<Prepared>>, Error> {
        match prepared {
            Some(prepared) if !self.is_read_as_things_are(&prepared) && !self.takes_nothing() => {
                Box::pin(self.read_again(name, prepared, target)).await.map(Some)
            }
            prepared => Ok(prepared),
        }
    }

    /// Nothing that is sent now is read: the transaction has failed, or the server skips to the next Sync.
    fn takes_nothing(&mut self) -> bool {
        self.status == TransactionStatus::Failed || self.held_server().is_none_or(|server| server.expects.is_skipping())
    }

    async fn read_again(
        &mut self,
        name: &[u8],
        prepared: Arc<Prepared>,
        target: Target,
    ) -> Result<Arc<Prepared>, Error> {
        let is_on_server = self.held_server().is_some_and(|server| server.unnamed == Some(prepared.serial));
        let Some(then) = prepared.read_under.clone().filter(|_| prepared.identity.is_some() || !is_on_server) else {
            return Ok(prepared);
        };
        if self.settings.exact_beyond_path().is_none_or(|now| !now.is_same_beyond_path(&then)) {
            self.learn_exact_settings().await?;
            // While it was waited for, a transaction may have ended and its server been given back.
            self.attach(target).await?;
        }
        let now = match self.settings_now() {
            Some(now) => now,
            None if has_constants(&prepared.text) => return Err(self.read_under_others()),
            // In the middle of a pipeline nobody can be asked: but it means the same whatever is set.
            None => return Ok(prepared),
        };
        let identity = match &prepared.identity {
            Some(identity) if identity.parsed_under().is_none() => return Ok(prepared),
            Some(identity) if *identity.used_under().unwrap_or(&then) == now => return Ok(prepared),
            Some(identity) => Arc::clone(identity.own()),
            None if then.is_same_beyond_path(&now) => return Ok(prepared),
            None => self.db.statements.intern(prepared.text.clone(), &prepared.types, &then),
        };
        let (identity, read_under) = if then.is_same_beyond_path(&now) {
            // Where names are looked up elsewhere now, the server sees for itself.
            (self.by_path(&prepared, identity, &now), now)
        } else if self.path_has_moved(&then, &now, target).await? {
            let before = self.keep_as_read(name, &prepared, &identity, then);
            return self.read_elsewhere(name, &before, now, target).await;
        } else {
            (self.db.statements.intern_used_under(&identity, &then, &now), then)
        };
        Ok(self.keep_as_read(name, &prepared, &identity, read_under))
    }

    /// What a statement is on servers that is read as it was, but for where names are looked up. Where schemas lie on different shards it
    /// cannot be read there first as it was: the schemas of then need not be there.
    fn by_path(&self, prepared: &Prepared, identity: Arc<Identity>, now: &SharedSettings) -> Arc<Identity> {
        let has_moved = identity.parsed_under().is_some_and(|then| !then.has_same_path(now));
        let is_known = now.get("search_path") != Some(UNKNOWN_PATH);
        if self.db.config.schemas.is_none() || !has_moved || !is_known {
            return identity;
        }
        // They stay of the types that they were of. What users make has other oids on each shard.
        let told = prepared.told.parameters().unwrap_or_default().iter();
        let told = told.map(|&oid| if oid < FIRST_USER_OID { oid } else { 0 });
        let declared = prepared.types.iter().copied();
        let types: Vec<u32> = declared.chain(told.skip(prepared.types.len())).collect();
        self.db.statements.intern(identity.text().clone(), &types, now)
    }

    /// A statement that PostgreSQL reads anew under all that is set now. It must still give what it gave, which only a server can tell,
    /// and its parameters stay of the types that they were of.
    async fn read_elsewhere(
        &mut self,
        name: &[u8],
        prepared: &Arc<Prepared>,
        now: SharedSettings,
        target: Target,
    ) -> Result<Arc<Prepared>, Error> {
        let Some(before) = prepared.identity.clone() else { return Ok(Arc::clone(prepared)) };
        self.ensure_held(name, prepared, target).await?;
        let server = self.ask_now(target).await?;
        let told = server.parameters.clone();
        let types = server.parameter_types(&before).await;
        // It has been read under what are not its settings.
        if server.held.take(before.id) {
            writer::close(&mut server.outbuf, b'S', before.server_name.as_bytes());
            server.expects.push(Expect::Close { hidden: true });
        }
        match types {
            Ok(types) => {
                let identity = self.db.statements.intern(before.text().clone(), &types, &now);
                Ok(self.keep_as_read(name, prepared, &identity, now))
            }
            Err(error) => {
                self.tell_what_was_undone(&told);
                self.keep_as_unread(name, prepared);
                Err(error)
            }
        }
    }

    /// An error of what pgherd has asked has ended the client's transaction: settings went back with it, which the client is to know.
    pub(super) fn tell_what_was_undone(&mut self, told: &[(String, String)]) {
        let Some(attached) = &mut self.server else { return };
        let server = attached.lease.server();
        for (name, value) in server.parameters.iter().filter(|parameter| !told.contains(parameter)) {
            writer::parameter_status(&mut self.client.outbuf, name, value);
        }
    }

    /// Where a statement of an earlier flight goes that is planned as if it were read now: what has constants in it that PostgreSQL
    /// would not read anew means what a server says.
    ///
    /// # Errors
    /// It would go to shards, by what it says now.
    pub(super) async fn way_as_read(&mut self, name: &[u8], way: Way) -> Result<Way, Error> {
        let is_as_planned = |it: &Arc<Prepared>| {
            self.is_read_as_things_are(it)
                && it.identity.as_ref().is_none_or(|identity| identity.used_under().is_none())
        };
        let Some(prepared) = self.statement(name).filter(|it| !is_as_planned(it)) else { return Ok(way) };
        if !self.takes_nothing() && self.settings_now().is_none() {
            self.learn_exact_settings().await?;
        }
        if let (Some(then), Some(now)) = (&prepared.read_under, self.settings_now())
            && then.is_same_beyond_path(&now)
        {
            if let Some(identity) = &prepared.identity {
                // Names may be looked up elsewhere now: PostgreSQL has read it anew by then.
                let identity = self.by_path(&prepared, Arc::clone(identity.own()), &now);
                self.keep_as_read(name, &prepared, &identity, now);
            }
            return Ok(way);
        }
        match way {
            way if !has_constants(&prepared.text) => Ok(way),
            Way::Relay(Target::Shard(_))
            | Way::ReadOnly(Target::Shard(_))
            | Way::FanOut(_)
            | Way::Gather(_)
            | Way::Cursor(_)
            | Way::ExplainOver(_)
            | Way::Scatter(_)
            | Way::InsertSelect(_)
            | Way::KeyMove(_)
            | Way::Bind => {
                Err(Error::refused("a statement prepared under other settings cannot be planned over shards")
                    .hint("Prepare it again."))
            }
            Way::ReadOnly(_) | Way::Split(_) | Way::Hit(..) | Way::Failed(_) | Way::Fill(..) => {
                Ok(Way::Relay(Target::Primary))
            }
            way => Ok(way),
        }
    }

    fn keep_as_read(
        &mut self,
        name: &[u8],
        prepared: &Prepared,
        identity: &Arc<Identity>,
        read_under: SharedSettings,
    ) -> Arc<Prepared> {
        let under = self.settings.as_they_are();
        let prepared = Arc::new(prepared.read_again(Arc::clone(identity), under, read_under));
        self.keep_statement(&Bytes::copy_from_slice(name), Arc::clone(&prepared));
        prepared
    }

    /// Notes that a statement could not be read: PostgreSQL tries once more at its next use, wherever names are looked up by then.
    fn keep_as_unread(&mut self, name: &[u8], prepared: &Prepared) {
        let Some(own) = prepared.identity.as_ref().map(|identity| Arc::clone(identity.own())) else { return };
        let mut then = own.parsed_under().map(|then| Settings::clone(then)).unwrap_or_default();
        then.set("search_path", UNKNOWN_PATH);
        self.keep_as_read(name, prepared, &own, Arc::new(then));
    }

    /// What parse analysis reads now; the path may be unknown where it is set for one transaction.
    fn settings_now(&self) -> Option<SharedSettings> {
        self.settings.exact().or_else(|| {
            let mut now = Settings::clone(self.settings.exact_beyond_path()?);
            now.set("search_path", UNKNOWN_PATH);
            Some(Arc::new(now))
        })
    }

    /// Whether names are looked up in other schemas now than then. Which of those that are listed exist, and may be used, is the
    /// server's to tell.
    async fn path_has_moved(&mut self, then: &Settings, now: &Settings, target: Target) -> Result<bool, Error> {
        if then.has_same_path(now) {
            return Ok(false);
        }
        if [then, now].iter().any(|settings| settings.get("search_path") == Some(UNKNOWN_PATH)) {
            return Ok(true);
        }
        let sql = format!("SELECT {} IS DISTINCT FROM {}", self.schemas_sql(then), self.schemas_sql(now));
        if self.held_server().is_none_or(|server| server.expects.is_unsynced()) {
            return Err(self.read_under_others());
        }
        let rows = self.ask_now(target).await?.run(&sql).await?;
        Ok(rows.first().and_then(|row| row.first()).is_none_or(|moved| moved.as_deref() != Some("f")))
    }

    /// A server that has answered all that it was asked, for a question of pgherd's own.
    async fn ask_now(&mut self, target: Target) -> Result<&mut ServerConn, Error> {
        self.wait_for_answers().await?;
        self.attach(target).await?;
        // Behind a lease come its transaction's first statements.
        self.wait_for_answers().await?;
        let Some(attached) = &mut self.server else { return Err(Error::internal("a server was given back unasked")) };
        let server = attached.lease.server();
        if server.status == TransactionStatus::Failed {
            // What was waited for has failed it: nothing can be asked any more.
            return Err(super::planned::aborted());
        }
        server.spill(&mut self.client.outbuf);
        Ok(server)
    }

    /// An expression for the schemas that these settings make PostgreSQL look into, in order.
    fn schemas_sql(&self, settings: &Settings) -> String {
        let is_set = |name: &str| settings.get(name).filter(|role| *role != "none");
        let login = self.db.login_role(&self.user);
        let has_temporary_schema = self.pins.has(Pin::Temporary);
        let role = is_set("role").or_else(|| is_set("session_authorization")).unwrap_or(login);
        let path = settings.get("search_path").map(str::to_owned).or_else(|| self.value_at_login("search_path"));
        let mut names = String::new();
        for name in search_path::listed(path.as_deref().unwrap_or_default(), role) {
            let _ = write!(names, "{}{}", if names.is_empty() { "" } else { "," }, literal(&name));
        }
        format!(
            "(SELECT pg_catalog.array_agg(coalesce(n.oid, 0) ORDER BY l.place) \
             FROM pg_catalog.unnest(ARRAY[{names}]::pg_catalog.text[]) WITH ORDINALITY l(name, place) \
             LEFT JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) l.name \
             AND pg_catalog.has_schema_privilege({}, n.oid, 'USAGE') \
             WHERE n.oid IS NOT NULL OR ({has_temporary_schema} AND l.name OPERATOR(pg_catalog.=) 'pg_temp'))",
            literal(role)
        )
    }

    /// What a setting is that the client has not set.
    fn value_at_login(&self, name: &str) -> Option<String> {
        self.primary.baseline().and_then(|baseline| baseline.setting(name).map(str::to_owned))
    }

    /// Sees to it that the attached server holds a statement, and returns its name there.
    pub(super) async fn ensure_held(
        &mut self,
        client_name: &[u8],
        prepared: &Arc<Prepared>,
        target: Target,
    ) -> Result<Bytes, Error> {
        let Some(identity) = &prepared.identity else {
            self.ensure_unnamed(prepared);
            return Ok(Bytes::new());
        };
        let name = Bytes::copy_from_slice(identity.server_name.as_bytes());
        let server = self.attach(target).await?;
        if server.expects.is_skipping() || server.held.touch(identity.id) {
            return Ok(name);
        }
        if self.settings.exact().is_none() {
            self.learn_exact_settings().await?;
            let server = self.attach(target).await?;
            if server.expects.is_skipping() || server.held.touch(identity.id) {
                return Ok(name);
            }
        }
        let now = self.settings.exact();
        // A failed transaction takes nothing but its own end, which no setting changes the meaning of.
        let failed = self.status == TransactionStatus::Failed;
        let same = now.is_some_and(|now| identity.parsed_under().is_some_and(|then| *then == now));
        let Some(server) = self.held_server() else { return Ok(name) };
        if same || failed {
            send_parse(server, identity, None);
        } else {
            let done = self.prepare_under_its_own_settings(identity, target).await;
            if done.is_err() && identity.used_under().is_some() {
                self.keep_as_unread(client_name, prepared);
            }
            done?;
        }
        Ok(name)
    }

    /// Sees to it that the client's unnamed statement is the one on the attached server.
    fn ensure_unnamed(&mut self, prepared: &Arc<Prepared>) {
        #[cfg(feature = "faults")]
        if *self.db.leak.lock() == Some(super::context::Leak::Unnamed) {
            return;
        }
        if let Some(server) = self.held_server()
            && server.unnamed != Some(prepared.serial)
            && !server.expects.is_skipping()
        {
            server.unnamed = Some(prepared.serial);
            server.outbuf.extend_from_slice(&prepared.parse);
            server.expects.push(Expect::Parse { hidden: true, statement: None, client_name: None });
        }
    }

    /// Asks the server what parse analysis reads now, where a SET in the transaction at hand has made that uncertain. In the
    /// middle of a pipeline it cannot be asked.
    pub(super) async fn learn_exact_settings(&mut self) -> Result<(), Error> {
        if self.settings.exact().is_some() || self.skipping {
            return Ok(());
        }
        if self.held_server().is_none_or(|server| server.expects.is_unsynced() || server.unfinished > 0) {
            return Ok(());
        }
        self.wait_for_answers().await?;
        let Some(attached) = &mut self.server else { return Ok(()) };
        let baseline = self.db.pool(&self.user, attached.target).baseline();
        let server = attached.lease.server();
        if server.status != TransactionStatus::InTransaction {
            return Ok(());
        }
        server.spill(&mut self.client.outbuf);
        let names = Settings::parse_relevant_names().map(Box::from).collect();
        let exact = reset::read_back(server, &Settings::default(), &names, baseline.as_deref()).await?;
        self.settings.note_exact(Arc::new(exact));
        Ok(())
    }

    /// Prepares a statement under the settings it had when the client prepared it.
    async fn prepare_under_its_own_settings(&mut self, identity: &Arc<Identity>, target: Target) -> Result<(), Error> {
        let in_pipeline = self.held_server().is_some_and(|server| server.expects.is_unsynced());
        let then = match (identity.parsed_under(), self.settings.exact()) {
            (Some(then), Some(_)) if !in_pipeline => Arc::clone(then),
            _ => return Err(self.read_under_others()),
        };
        self.ask_now(target).await?;
        if self.settings.is_uncertain() {
            return self.prepare_in_transaction(identity, &then, target).await;
        }
        let now = Arc::clone(&self.settings.current);
        let then = Arc::new(now.with_parse_relevant_of(&then));
        let server = self.ask_now(target).await?;
        if server.held.touch(identity.id) {
            return Ok(());
        }
        reset::apply(server, &then).await?;
        let prepared = prepare(server, identity).await;
        if server.status == TransactionStatus::Failed {
            // The transaction's end undoes what was set in it; whether all of it is not worth finding out.
            server.settings = now;
            server.dirty = true;
        } else {
            reset::apply(server, &now).await?;
        }
        prepared
    }

    /// The same where a SET in the transaction at hand must stay in force behind it, and go as it would have gone: what is set for
    /// the Parse, and set back, is set for this transaction alone.
    async fn prepare_in_transaction(
        &mut self,
        identity: &Arc<Identity>,
        then: &Settings,
        target: Target,
    ) -> Result<(), Error> {
        let Some(now) = self.settings.exact() else { return Err(self.read_under_others()) };
        let (Some(there), Some(back)) = (self.set_local_sql(&now, then), self.set_local_sql(then, &now)) else {
            return Err(self.read_under_others());
        };
        let server = self.ask_now(target).await?;
        let told = server.parameters.clone();
        let mut prepared = server.run(&there).await.map(|_| ());
        if prepared.is_ok() {
            prepared = prepare(server, identity).await;
        }
        if server.status != TransactionStatus::Failed {
            prepared = prepared.and(server.run(&back).await.map(|_| ()));
        }
        if prepared.is_err() {
            self.tell_what_was_undone(&told);
        }
        prepared
    }

    /// What turns `from` into `to` until the transaction ends. `None` where that cannot be said.
    fn set_local_sql(&self, from: &Settings, to: &Settings) -> Option<String> {
        let mut calls = String::new();
        // Identity last: a role may set nothing that its login may.
        let (identity, others): (Vec<_>, Vec<_>) =
            Settings::parse_relevant_names().partition(|name| matches!(*name, "role" | "session_authorization"));
        for name in others.into_iter().chain(identity.into_iter().rev()).filter(|name| from.get(name) != to.get(name)) {
            let value = match (to.get(name), name) {
                (Some(value), _) => value.to_owned(),
                (None, "role") => "none".to_owned(),
                (None, "session_authorization") => self.db.login_role(&self.user).to_owned(),
                (None, name) => self.value_at_login(name)?,
            };
            let separator = if calls.is_empty() { "SELECT " } else { "," };
            let _ = write!(calls, "{separator}pg_catalog.set_config({},{},true)", literal(name), literal(&value));
        }
        (!calls.is_empty()).then_some(calls)
    }

    /// What is refused where it cannot be known, or not be done, as PostgreSQL would.
    fn read_under_others(&mut self) -> Error {
        let in_pipeline = self.held_server().is_some_and(|server| server.expects.is_unsynced());
        let when = if in_pipeline { "in the middle of a pipeline" } else { "behind a SET in the same transaction" };
        Error::refused(format!("a statement prepared under other settings cannot be used {when}"))
            .hint("Send Sync before it, or prepare it again.")
    }
}

/// Whether there may be constants in a text that settings give their meaning: strings, in quotes or dollars, and NULL.
fn has_constants(text: &[u8]) -> bool {
    let in_dollars = text.windows(2).any(|pair| pair[0] == b'$' && !pair[1].is_ascii_digit());
    in_dollars || text.contains(&b'\'') || text.windows(4).any(|word| word.eq_ignore_ascii_case(b"null"))
}

/// Prepares a statement on a server and waits for the answer.
async fn prepare(server: &mut ServerConn, identity: &Arc<Identity>) -> Result<(), Error> {
    let evicted = server.held.insert(Arc::clone(identity));
    let prepared = server.prepare(identity, evicted.as_deref()).await;
    if prepared.is_err() {
        server.held.remove(identity.id);
    }
    prepared
}

/// Prepares a statement on a server, making room if need be. `client_name` is set where the client waits for the answer.
pub(super) fn send_parse(server: &mut ServerConn, identity: &Arc<Identity>, client_name: Option<(Bytes, u64)>) {
    if let Some(evicted) = server.held.insert(Arc::clone(identity)) {
        writer::close(&mut server.outbuf, b'S', evicted.server_name.as_bytes());
        server.expects.push(Expect::Close { hidden: true });
    }
    identity.write_parse(&mut server.outbuf);
    let hidden = client_name.is_none();
    server.expects.push(Expect::Parse { hidden, statement: Some(Arc::clone(identity)), client_name });
}
