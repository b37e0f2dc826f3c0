//! The extended protocol: clients' statement names become pgherd's, and a statement is prepared on whatever server needs it.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::context::Target;
use super::meaning::send_parse;
use super::{Prepared, Session};
use crate::backend::expect::{About, Expect, LostName};
use crate::backend::statements::NAME_PREFIX;
use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::sql::facts::{Class, Effect, Facts};
use crate::wire::frame::{Frame, HEADER_LEN, Header};
use crate::wire::frontend::{self, Malformed};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

impl Session {
    pub(super) async fn on_parse(&mut self, frame: Frame) -> Result<(), Error> {
        self.wait_for_doubtful_name(&frame).await?;
        self.learn_exact_settings().await?;
        let prepared = self.read_parse(&frame)?;
        self.forward_parse(prepared).await
    }

    /// A name that is taken may come free: its Parse may have failed without anybody having heard of it yet.
    async fn wait_for_doubtful_name(&mut self, frame: &Frame) -> Result<(), Error> {
        let parse = frontend::parse(frame.body()).map_err(|error| malformed("Parse", error))?;
        if !parse.name.is_empty() && self.named.contains_key(parse.name) {
            self.wait_for_answers().await?;
        }
        Ok(())
    }

    /// A statement whose Parse is not answered yet may turn out not to be there, if a Sync stands between: nothing may run under its name
    /// then, and an error must speak of that name.
    pub(super) async fn wait_for_doubtful_parse(&mut self, name: &[u8]) -> Result<(), Error> {
        let Some(serial) = self.statement(name).map(|statement| statement.serial) else { return Ok(()) };
        match self.held_server().is_some_and(|server| server.expects.may_skip(serial)) {
            true => self.wait_for_answers().await,
            false => Ok(()),
        }
    }

    /// Reads a Parse and notes what it prepares.
    pub(super) fn read_parse(&mut self, frame: &Frame) -> Result<(Bytes, Arc<Prepared>), Error> {
        let parse = frontend::parse(frame.body()).map_err(|error| malformed("Parse", error))?;
        let facts = match self.read_ahead.take() {
            Some((text, facts)) if std::ptr::eq(&*text, parse.text) => facts,
            _ => self.db.shared.analyzer.facts_of_parse(parse.text, self.conforming_strings()),
        };
        let name = frame.bytes.slice_ref(parse.name);
        let identity = if name.is_empty() {
            None
        } else {
            if self.named.len() >= limits::PREPARED_STATEMENTS {
                return Err(too_many("prepared statements", limits::PREPARED_STATEMENTS));
            }
            if self.named.contains_key(&name) {
                if self.status == TransactionStatus::Failed {
                    return Err(super::planned::aborted());
                }
                return Err(Error::new(
                    ErrorKind::Protocol,
                    SqlState::DUPLICATE_PREPARED_STATEMENT,
                    format!("prepared statement \"{}\" already exists", String::from_utf8_lossy(&name)),
                ));
            }
            let text = frame.bytes.slice_ref(parse.text);
            let statements = &self.db.statements;
            Some(match self.settings.exact() {
                Some(under) if !names_cursor(&facts) => statements.intern(text, &parse.types, &under),
                under => statements.private(text, &parse.types, under),
            })
        };
        let text = match &identity {
            Some(identity) => identity.text().clone(),
            None => frame.bytes.slice_ref(parse.text),
        };
        let types = parse.types;
        let parse = if identity.is_some() { Bytes::new() } else { frame.bytes.clone() };
        Ok((
            name,
            Arc::new(Prepared {
                identity,
                serial: self.db.statements.next_serial(),
                parse,
                text,
                types,
                told: Arc::default(),
                facts,
                conforming: self.conforming_strings(),
                under: self.settings.as_they_are(),
                read_under: self.settings.exact(),
            }),
        ))
    }

    /// Keeps a statement under the client's name for it.
    pub(super) fn keep_statement(&mut self, name: &Bytes, prepared: Arc<Prepared>) {
        if name.is_empty() {
            let before = self.unnamed.replace(prepared);
            if self.held_server().is_some_and(|server| !server.expects.is_empty()) {
                // What stands before it in the pipeline may fail, and then it is not heard.
                if self.unnamed_before.len() == limits::UNNAMED_BEFORE {
                    self.unnamed_before.remove(0);
                }
                self.unnamed_before.extend(before);
            }
        } else {
            self.named.insert(Bytes::copy_from_slice(name), prepared);
        }
    }

    pub(super) async fn forward_parse(&mut self, (name, prepared): (Bytes, Arc<Prepared>)) -> Result<(), Error> {
        self.refuse_sequence_state(&prepared.facts).await?;
        if self.status == TransactionStatus::Failed && prepared.identity.is_some() && !ends_transaction(&prepared.facts)
        {
            // It may be prepared where nobody looks whether the transaction has failed.
            self.wait_for_answers().await?;
            let is_accepted = prepared.identity.as_ref().is_some_and(|identity| identity.is_accepted());
            let is_judged = self.server.is_some() && !is_accepted && super::planned::is_unread(&prepared.facts);
            if self.status == TransactionStatus::Failed && !self.skipping && !is_judged {
                return Err(super::planned::aborted());
            }
        }
        if self.server.is_some() {
            // Behind an error of the server that is left PostgreSQL would not look at it.
            let target = self.target_for(&prepared.facts)?;
            if self.attach(target).await?.expects.is_skipping() {
                return Ok(());
            }
        }
        self.keep_statement(&name, Arc::clone(&prepared));
        let sent = self.send_clients_parse(&name, prepared).await;
        if sent.is_err() {
            self.forget_statement(&name);
        }
        sent
    }

    async fn send_clients_parse(&mut self, name: &Bytes, prepared: Arc<Prepared>) -> Result<(), Error> {
        let name = name.clone();
        if self.server.is_none() && prepared.identity.as_ref().is_some_and(|identity| identity.is_accepted()) {
            self.answer_in_turn(b"1\0\0\0\x04");
            return Ok(());
        }
        let target = self.target_for(&prepared.facts)?;
        self.attach(target).await?;
        self.hide_statements(&prepared.facts, target).await?;
        let server = self.attach(target).await?;
        if server.expects.is_skipping() {
            self.lose_statement(&LostName { name, serial: prepared.serial, is_skipped: true });
            return Ok(());
        }
        match &prepared.identity {
            None => {
                server.unnamed = Some(prepared.serial);
                server.outbuf.extend_from_slice(&prepared.parse);
                let client_name = Some((name, prepared.serial));
                server.expects.push(Expect::Parse { hidden: false, statement: None, client_name });
            }
            Some(identity)
                if server.held.touch(identity.id) && (server.expects.owes_ready() || server.expects.may_suspend()) =>
            {
                // What was synced before may have failed the transaction: only the server knows, so it is asked in earnest. So it is where
                // a Parse makes rows visible.
                writer::close(&mut server.outbuf, b'S', identity.server_name.as_bytes());
                server.expects.push(Expect::Close { hidden: true });
                identity.write_parse(&mut server.outbuf);
                server.expects.push(Expect::Reparse(Arc::clone(identity), name, prepared.serial));
            }
            Some(identity) if server.held.touch(identity.id) => {
                server.expects.push(Expect::HeldParse(name, prepared.serial));
                self.inject();
            }
            Some(identity) => {
                let identity = Arc::clone(identity);
                send_parse(server, &identity, Some((name, prepared.serial)));
            }
        }
        Ok(())
    }

    pub(super) async fn on_bind(&mut self, frame: Frame) -> Result<(), Error> {
        let is_described = self.describes_next(&frame);
        self.bind_statement(frame, is_described).await
    }

    /// Handles a Bind. `is_described`: what its portal gives is asked for behind it.
    pub(super) async fn bind_statement(&mut self, frame: Frame, is_described: bool) -> Result<(), Error> {
        if let Some((_, statement)) = frontend::bind_names(frame.body()) {
            self.wait_for_doubtful_parse(statement).await?;
        }
        if !self.renews_before(&frame, is_described) {
            return Ok(());
        }
        self.forward_bind(&frame.bytes, 0).await
    }

    /// Passes a Bind on, its statement's name replaced; `missing` bytes of it follow later.
    async fn forward_bind(&mut self, bytes: &[u8], missing: usize) -> Result<(), Error> {
        let body = &bytes[HEADER_LEN..];
        let Some((portal, name)) = frontend::bind_names(body) else {
            return Err(malformed("Bind", Malformed("a name has no end")));
        };
        let prepared = self.statement(name);
        let target = self.flight_target.unwrap_or_else(|| self.default_target());
        self.attach(target).await?;
        if let Some(prepared) = &prepared {
            self.hide_statements(&prepared.facts, target).await?;
        }
        let prepared = self.as_read_now(name, prepared, target).await?;
        let server_name = match &prepared {
            Some(prepared) => self.ensure_held(name, prepared, target).await?,
            None => self.unknown_name(name),
        };
        // Behind whatever had to be waited for: a transaction that ends takes its portals with it.
        match &prepared {
            Some(prepared) if portal.is_empty() => self.note_work(&prepared.facts),
            // It may be asked for later.
            _ => self.transaction_has_worked(),
        }
        match &prepared {
            Some(prepared) => self.keep_portal(portal, Arc::clone(prepared))?,
            None => drop(self.portals.remove(portal)),
        }
        let server = self.attach(target).await?;
        if server.expects.is_skipping() {
            return Ok(());
        }
        let serial = prepared.as_ref().map_or(0, |prepared| prepared.serial);
        let about = About { serial, kept: missing == 0 && serial > 0 && server.begin_kept(bytes) };
        let rest = &body[portal.len() + name.len() + 2..];
        let total = portal.len() + server_name.len() + 2 + rest.len() + missing + 4;
        server.outbuf.put_u8(b'B');
        server.outbuf.put_i32(i32::try_from(total).map_err(|_| too_many("bytes in a Bind", limits::MESSAGE_BYTES))?);
        writer::cstr(&mut server.outbuf, portal);
        writer::cstr(&mut server.outbuf, &server_name);
        server.outbuf.put_slice(rest);
        server.expects.push(Expect::Bind(about));
        Ok(())
    }

    /// A Bind too large to hold: its names are rewritten, the rest is passed on as it comes.
    pub(super) async fn stream_bind(&mut self, header: Header) -> Result<(), Error> {
        self.in_extended = true;
        let begin = self.client.inbuf.split().freeze();
        let missing = header.total - begin.len();
        let result = if self.skipping { Ok(()) } else { self.start_stream_bind(&begin, missing).await };
        self.passing = missing;
        if let Err(error) = result {
            return self.fail(error).await;
        }
        self.passing_to_server = false;
        if !self.skipping
            && let Some(server) = self.held_server()
            && !server.expects.is_skipping()
        {
            server.unfinished = missing;
            self.passing_to_server = true;
        }
        Ok(())
    }

    async fn start_stream_bind(&mut self, begin: &[u8], missing: usize) -> Result<(), Error> {
        self.flight_must_be_relayed().await?;
        if self.db.config.is_distributed() {
            return Err(too_many("bytes in a Bind where a shard key may be among them", limits::BIND_BYTES));
        }
        self.forward_bind(begin, missing).await
    }

    pub(super) async fn on_describe(&mut self, frame: Frame) -> Result<(), Error> {
        let describe = frontend::target(frame.body()).map_err(|error| malformed("Describe", error))?;
        if describe.is_portal {
            let target = self.target_of_portal(describe.name)?;
            // Next time it may be pgherd that gives the rows.
            let told = self.told_of(describe.name).filter(|_| self.db.is_planned());
            let server = self.attach(target).await?;
            if !server.expects.is_skipping() {
                server.outbuf.extend_from_slice(&frame.bytes);
                server.add_kept(&frame.bytes);
                server.expects.push(Expect::Describe(told, About::default()));
            }
            return Ok(());
        }
        self.wait_for_doubtful_parse(describe.name).await?;
        self.renew_if_retired(describe.name);
        let prepared = self.statement(describe.name);
        if let Some(told) = prepared.as_ref().and_then(|prepared| self.describe_in_failed(prepared)) {
            self.answer_with(told);
            return Ok(());
        }
        let target =
            prepared.as_ref().map_or(Ok(self.default_target()), |prepared| self.target_for(&prepared.facts))?;
        self.attach(target).await?;
        let prepared = self.as_read_now(describe.name, prepared, target).await?;
        let server_name = match &prepared {
            Some(prepared) => self.ensure_held(describe.name, prepared, target).await?,
            None => self.unknown_name(describe.name),
        };
        let may_repeat = prepared.as_ref().is_some_and(|prepared| self.is_under_its_own_settings(prepared));
        let server = self.attach(target).await?;
        if !server.expects.is_skipping() {
            let serial = prepared.as_ref().map_or(0, |prepared| prepared.serial);
            let about = About { serial, kept: may_repeat && server.begin_kept(&frame.bytes) };
            writer::describe(&mut server.outbuf, b'S', &server_name);
            server.expects.push(Expect::Describe(prepared.map(|prepared| Arc::clone(&prepared.told)), about));
        }
        Ok(())
    }

    pub(super) async fn on_execute(&mut self, frame: Frame) -> Result<(), Error> {
        let execute = frontend::execute(frame.body()).map_err(|error| malformed("Execute", error))?;
        let facts = self.portals.get(execute.portal).map(|prepared| Arc::clone(&prepared.facts));
        let target = self.target_of_portal(execute.portal)?;
        self.attach(target).await?;
        if self.held_server().is_some_and(|server| server.expects.is_skipping()) {
            return Ok(());
        }
        if let Some(facts) = &facts
            && self.deallocates_itself(facts).await?
        {
            return Ok(());
        }
        if let Some(facts) = &facts
            && facts.effects().any(|effect| matches!(effect, Effect::DeallocateAll | Effect::DiscardAll))
        {
            // Whether it has worked is told by the answers from here on.
            self.wait_for_answers().await?;
            self.attach(target).await?;
        }
        match &facts {
            Some(facts) => self.note_execution(facts).await?,
            // A cursor of SQL's, or a portal that pgherd has lost sight of: it may run anything.
            None => self.note_opaque_write().await?,
        }
        let restored = facts.as_deref().and_then(|facts| self.startup_values_after(facts));
        let server = self.attach(target).await?;
        if !server.expects.is_skipping() {
            server.outbuf.extend_from_slice(&frame.bytes);
            server.add_kept(&frame.bytes);
            server.expects.push(Expect::Execute);
            if execute.max_rows > 0 {
                server.expects.note_row_limit();
            }
            if let Some(sql) = restored {
                super::restore::queue(server, &sql);
            }
        }
        self.after_listening().await?;
        if let Some(facts) = facts.as_ref().filter(|_| self.suspended.is_some()) {
            Box::pin(self.settle_portals(facts)).await?;
        }
        self.after_deallocation().await
    }

    pub(super) async fn on_close(&mut self, frame: Frame) -> Result<(), Error> {
        let close = frontend::target(frame.body()).map_err(|error| malformed("Close", error))?;
        if close.is_portal {
            self.portals.remove(close.name);
            if self.suspended.is_some() {
                Box::pin(self.close_halted(Some(close.name))).await;
            }
            if let Some(server) = self.held_server() {
                if !server.expects.is_skipping() {
                    server.outbuf.extend_from_slice(&frame.bytes);
                    server.expects.push(Expect::Close { hidden: false });
                }
                return Ok(());
            }
        } else if self.statement(close.name).is_some() {
            if self.held_server().is_some_and(|server| !server.expects.is_empty()) {
                // What stands before it in the pipeline may fail, and then it is not heard; and an error before it may name it.
                self.wait_for_answers().await?;
            }
            if self.held_server().is_none_or(|server| !server.expects.is_skipping()) {
                self.forget_statement(close.name);
            }
        } else if self.keeps_server()
            && !close.name.is_empty()
            && !close.name.starts_with(NAME_PREFIX.as_bytes())
            && let Some(server) = self.held_server()
        {
            // PREPARE may have made it.
            if !server.expects.is_skipping() {
                server.outbuf.extend_from_slice(&frame.bytes);
                server.expects.push(Expect::Close { hidden: false });
            }
            return Ok(());
        }
        if self.held_server().is_some_and(|server| server.expects.is_skipping()) {
            return Ok(());
        }
        self.answer_in_turn(b"3\0\0\0\x04");
        Ok(())
    }

    pub(super) async fn on_flush(&mut self, _: Frame) -> Result<(), Error> {
        if let Some(server) = self.held_server()
            && !server.expects.is_skipping()
        {
            writer::flush(&mut server.outbuf);
        }
        Ok(())
    }

    pub(super) async fn on_sync(&mut self, _: Frame) -> Result<(), Error> {
        self.skipping = false;
        self.before_commit().await?;
        if let Some(server) = self.held_server() {
            if server.copying_in {
                // PostgreSQL ignores Sync while it takes COPY data.
                return Ok(());
            }
            writer::sync(&mut server.outbuf);
            server.add_kept_sync(false);
            server.expects.push(Expect::Sync { hidden: false });
            if self.awaits_listening() {
                self.wait_for_answers().await?;
            }
            return Ok(());
        }
        let status = self.status;
        writer::ready_for_query(self.out(), status);
        Ok(())
    }

    /// The statement of that name, if the client has prepared it.
    pub(super) fn statement(&self, name: &[u8]) -> Option<Arc<Prepared>> {
        if name.is_empty() { self.unnamed.clone() } else { self.named.get(name).cloned() }
    }

    /// Acts on a Parse that prepared nothing. The client may have prepared another statement under its name since.
    pub(super) fn lose_statement(&mut self, lost: &LostName) {
        let is_last = self.statement(&lost.name).is_some_and(|prepared| prepared.serial == lost.serial);
        match (lost.name.is_empty(), lost.is_skipped) {
            (false, _) | (true, false) if is_last => self.forget_statement(&lost.name),
            (true, true) if is_last => self.unnamed = self.unnamed_before.pop(),
            (true, true) => self.unnamed_before.retain(|it| it.serial != lost.serial),
            // PostgreSQL drops the unnamed statement before it reads the next.
            (true, false) => self.unnamed_before.retain(|it| it.serial > lost.serial),
            (false, _) => {}
        }
    }

    /// Drops a statement that failed or was closed.
    pub(super) fn forget_statement(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.drop_unnamed();
        } else {
            self.named.remove(name);
        }
    }

    /// Drops the unnamed statement, and what it would be if the last Parse turned out to be skipped.
    pub(super) fn drop_unnamed(&mut self) {
        self.unnamed = None;
        self.unnamed_before.clear();
    }

    /// Notes which statement a portal runs.
    pub(super) fn keep_portal(&mut self, portal: &[u8], prepared: Arc<Prepared>) -> Result<(), Error> {
        self.check_unbound(portal)?;
        self.forget_suspended(portal);
        if let Some(known) = self.portals.get_mut(portal) {
            // PostgreSQL refuses a second portal of a name unless the first has silently gone: which of the two statements an
            // Execute runs is not known then, so whatever either leaves behind is thrown away.
            self.must_discard |= !portal.is_empty();
            *known = prepared;
            return Ok(());
        }
        if self.portals.len() >= limits::PORTALS {
            return Err(too_many("open portals", limits::PORTALS));
        }
        self.portals.insert(Bytes::copy_from_slice(portal), prepared);
        Ok(())
    }

    /// The name under which an unknown statement is passed on, so that the server's own error speaks of it; never one that
    /// means something on the server.
    fn unknown_name(&mut self, name: &[u8]) -> Bytes {
        if name.is_empty() {
            // Another client's unnamed statement may still lie there.
            if let Some(server) = self.held_server()
                && !server.expects.is_skipping()
                && server.unnamed.take().is_some()
            {
                writer::close(&mut server.outbuf, b'S', b"");
                server.expects.push(Expect::Close { hidden: true });
            }
            return Bytes::new();
        }
        if self.pins.any() && !name.starts_with(NAME_PREFIX.as_bytes()) {
            return Bytes::copy_from_slice(name);
        }
        let mut other = BytesMut::from(name);
        if other.starts_with(NAME_PREFIX.as_bytes()) {
            other.put_slice(super::renewal::UNKNOWN);
        }
        other.freeze()
    }

    fn target_of_portal(&self, portal: &[u8]) -> Result<Target, Error> {
        match self.portals.get(portal) {
            Some(prepared) => self.target_for(&prepared.facts),
            None => Ok(self.default_target()),
        }
    }
}

/// Whether it is FETCH or MOVE, or another statement about a cursor. What such a one gives was found out when its cursor was there:
/// PostgreSQL breaks down where it is described behind that cursor's end, so it is nobody's but its client's.
pub(super) fn names_cursor(facts: &Facts) -> bool {
    facts.statements.iter().any(|statement| statement.cursor.is_some())
}

/// Whether a failed transaction takes it.
fn ends_transaction(facts: &Facts) -> bool {
    facts.statements.iter().all(|statement| matches!(statement.class, Class::Empty | Class::Transaction(_)))
}

/// A message whose body its type does not allow.
pub(super) fn malformed(what: &str, error: Malformed) -> Error {
    // As in PostgreSQL the session lives on: where the message ends is known.
    Error::new(ErrorKind::Protocol, SqlState::PROTOCOL_VIOLATION, format!("invalid {what} message: {}", error.0))
}

fn too_many(what: &str, limit: usize) -> Error {
    Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, format!("more than {limit} {what}"))
        .hint("Close what is not needed any more.")
}
