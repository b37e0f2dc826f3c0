//! The express: a whole request that is known to go to the primary as it stands, read once and copied once.
//!
//! What most clients send most of the time is one simple Query, or one flight of Parse, Bind, Describe, Execute and Sync over the
//! unnamed portal, of a statement whose like has gone to the primary before. Whatever is not exactly that takes the usual way
//! ([`super::turn`]) from its first byte: nothing is taken from the client before it is certain.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::Instant;

use super::context::Target;
use super::{Prepared, Session};
use crate::backend::expect::{About, Expect};
use crate::error::Error;
use crate::limits;
use crate::sql::facts::{Class, SharedFacts};
use crate::wire::frame::{self, Body, Frame, HEADER_LEN};
use crate::wire::frontend;
use crate::wire::writer::{self, TransactionStatus};

/// Bytes of a Sync.
pub(super) const SYNC_LEN: usize = HEADER_LEN;

/// A request at the front of what the client has sent: where its messages begin and end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// One Query.
    Query { end: usize },
    /// Parse of the unnamed statement or none, Bind to the unnamed portal, Describe of it or none, Execute of it, Sync.
    Flight { parse_end: usize, bind_end: usize, is_described: bool, end: usize },
}

impl Request {
    /// Reads the request at the front of `sent`, if it is one of these and whole.
    fn read(sent: &[u8]) -> Option<Self> {
        const UNNAMED_PORTAL: &[u8] = b"D\0\0\0\x06P\0";
        const UNNAMED_EXECUTE: &[u8] = b"E\0\0\0\x09\0";
        let whole = |from: usize, tag: u8| {
            let header = frame::peek(sent.get(from..)?, limits::MESSAGE_BYTES).ok()??;
            (header.tag == tag && sent.len() - from >= header.total).then_some(from + header.total)
        };
        if let Some(end) = whole(0, b'Q') {
            return Some(Self::Query { end });
        }
        let is_unnamed = |at: usize| sent.get(at + HEADER_LEN) == Some(&0);
        let parse_end = whole(0, b'P').filter(|_| is_unnamed(0)).unwrap_or(0);
        let bind_end = whole(parse_end, b'B').filter(|_| is_unnamed(parse_end))?;
        let is_described = sent.get(bind_end..)?.starts_with(UNNAMED_PORTAL);
        let execute = bind_end + if is_described { UNNAMED_PORTAL.len() } else { 0 };
        let sync = whole(execute, b'E').filter(|_| sent[execute..].starts_with(UNNAMED_EXECUTE))?;
        let end = whole(sync, b'S')?;
        (end - sync == SYNC_LEN).then_some(Self::Flight { parse_end, bind_end, is_described, end })
    }
}

/// A request that goes by express, and what it executes.
enum Ticket {
    Query { end: usize, facts: SharedFacts, leaves_no_trace: bool },
    Flight { bind: Range<usize>, is_described: bool, end: usize, prepared: Arc<Prepared>, leaves_no_trace: bool },
}

impl Ticket {
    fn facts(&self) -> &SharedFacts {
        match self {
            Self::Query { facts, .. } => facts,
            Self::Flight { prepared, .. } => &prepared.facts,
        }
    }

    /// Whether it writes nothing that anybody would have to be told.
    fn leaves_no_trace(&self) -> bool {
        match self {
            Self::Query { leaves_no_trace, .. } | Self::Flight { leaves_no_trace, .. } => *leaves_no_trace,
        }
    }
}

impl Session {
    /// Sends the request at the front of what the client has sent on to the primary, if it is one that goes by express.
    ///
    /// # Errors
    /// It could not be sent: what the client is to be told. Of a flight its Sync is still to be handled then.
    pub(super) async fn go_by_express(&mut self) -> Result<bool, Error> {
        let Some(ticket) = self.ticket() else { return Ok(false) };
        self.in_extended = matches!(ticket, Ticket::Flight { .. });
        self.since = Instant::now();
        self.timed_out = false;
        match self.board(&ticket).await {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => {
                let taken = match ticket {
                    Ticket::Query { end, .. } => end,
                    Ticket::Flight { end, .. } => end - SYNC_LEN,
                };
                self.client.inbuf.advance(taken);
                return Err(error);
            }
        }
        match ticket {
            Ticket::Query { end, .. } => self.send_query(end),
            Ticket::Flight { bind, is_described, end, prepared, .. } => {
                self.send_flight(bind, is_described, end, &prepared);
            }
        }
        Ok(true)
    }

    /// Takes a server connection and notes what is about to run on it. Returns false if it must be prepared there first.
    async fn board(&mut self, ticket: &Ticket) -> Result<bool, Error> {
        let server = self.attach(Target::Primary).await?;
        if let Ticket::Flight { bind: Range { start: 0, .. }, prepared, .. } = ticket {
            let is_held = match &prepared.identity {
                None => server.unnamed == Some(prepared.serial),
                Some(identity) => server.held.touch(identity.id),
            };
            if !is_held {
                return Ok(false);
            }
        }
        if !ticket.leaves_no_trace() {
            self.flight_target = Some(Target::Primary);
            let noted = Box::pin(self.note_execution(ticket.facts())).await;
            self.flight_target = None;
            noted?;
            Box::pin(self.before_commit()).await?;
        }
        Ok(true)
    }

    /// The request at the front of what the client has sent, if it is whole and nothing is to be done before it.
    pub(super) fn request(&self) -> Option<Request> {
        let may_be_one = matches!(self.client.inbuf.first(), Some(b'Q' | b'P' | b'B')) && self.is_clear();
        may_be_one.then(|| Request::read(&self.client.inbuf)).flatten()
    }

    /// Judges the request at the front of what the client has sent.
    fn ticket(&mut self) -> Option<Ticket> {
        match self.request()? {
            Request::Query { end } => {
                let text = frontend::query(self.client.inbuf.get(HEADER_LEN..end)?).ok()?;
                let facts = self.db.shared.analyzer.facts(text, self.conforming_strings());
                let leaves_no_trace = self.may_go_by_express(&facts)?;
                Some(Ticket::Query { end, facts, leaves_no_trace })
            }
            Request::Flight { parse_end, bind_end, is_described, end } => {
                let prepared = match parse_end {
                    0 => self.prepared_before(parse_end..bind_end)?,
                    _ => self.prepared_now(parse_end)?,
                };
                let leaves_no_trace = self.may_go_by_express(&prepared.facts)?;
                let bind = parse_end..bind_end;
                Some(Ticket::Flight { bind, is_described, end, prepared, leaves_no_trace })
            }
        }
    }

    /// Whether nothing stands between the client's next message and the primary.
    fn is_clear(&self) -> bool {
        let is_held_back = self.passing > 0 || self.skipping || self.hidden_sync || !self.flight.is_empty();
        if is_held_back || self.settings.is_uncertain() {
            return false;
        }
        match &self.server {
            // A BEGIN that no server knows of yet goes first: see `attach`.
            None if !self.lazy_begin.is_empty() => self.status == TransactionStatus::InTransaction,
            None => self.status == TransactionStatus::Idle,
            Some(attached) => {
                attached.target == Target::Primary
                    && self.status != TransactionStatus::Failed
                    && attached.lease.awaits_nothing(self.status)
            }
        }
    }

    /// Whether a statement with these facts always goes to the primary and changes nothing of the session: `None` if not, else
    /// whether it also writes nothing that anybody would have to be told.
    fn may_go_by_express(&mut self, facts: &SharedFacts) -> Option<bool> {
        let is_plain = facts
            .single()
            .is_some_and(|only| matches!(only.class, Class::Read | Class::Write) && only.effects.is_empty())
            && !self.db.may_run_unseen(facts);
        if !is_plain || !self.db.is_planned() {
            return is_plain.then_some(true);
        }
        if self.plans_look_beyond_facts() {
            return None;
        }
        self.turn_to_memory(self.db.catalog.version());
        let writes_nothing = self.memo.primary_that_writes_nothing(facts.fingerprint)?;
        if facts.class() != Class::Read || self.db.writes_unseen(facts.fingerprint) {
            return Some(false);
        }
        Some(writes_nothing.unwrap_or_else(|| self.written_by(facts).is_nothing()))
    }

    /// The statement that a Bind names, if it is one that goes by express.
    pub(super) fn prepared_before(&mut self, bind: Range<usize>) -> Option<Arc<Prepared>> {
        let (_, name) = frontend::bind_names(self.client.inbuf.get(bind.start + HEADER_LEN..bind.end)?)?;
        let prepared = match name {
            b"" => Arc::clone(self.unnamed.as_ref()?),
            name => Arc::clone(self.named.get(name)?),
        };
        let is_ready = match &prepared.identity {
            Some(identity) => identity.is_accepted() && self.is_read_as_things_are(&prepared),
            None => true,
        };
        is_ready.then_some(prepared)
    }

    /// The statement of the Parse at the front, if it is one that goes by express.
    fn prepared_now(&mut self, end: usize) -> Option<Arc<Prepared>> {
        if let Some(prepared) = self.parsed_again(end) {
            return Some(prepared);
        }
        let text = frontend::parse_names(self.client.inbuf.get(HEADER_LEN..end)?)?.1;
        let facts = self.db.shared.analyzer.facts_of_parse(text, self.conforming_strings());
        self.may_go_by_express(&facts)?;
        self.parsed_now(end)
    }

    /// The statement of the Parse at the front, whatever it is.
    pub(super) fn parsed_now(&mut self, end: usize) -> Option<Arc<Prepared>> {
        if let Some(prepared) = self.parsed_again(end) {
            return Some(prepared);
        }
        let frame = Frame { bytes: Bytes::copy_from_slice(self.client.inbuf.get(..end)?) };
        let (_, prepared) = self.read_parse(&frame).ok()?;
        Some(prepared)
    }

    /// The unnamed statement, if the Parse at the front is the one that made it.
    fn parsed_again(&self, end: usize) -> Option<Arc<Prepared>> {
        let message = self.client.inbuf.get(..end)?;
        let last = self.unnamed.as_ref()?;
        if last.parse != message || last.conforming != self.conforming_strings() {
            return None;
        }
        // Nothing is on its way (`is_clear`), so that no answer can mistake one for the other.
        let is_the_same = Arc::ptr_eq(&last.under, &self.settings.current)
            && last.told.parameters().is_none()
            && last.identity.is_none();
        Some(match is_the_same {
            true => Arc::clone(last),
            false => {
                let serial = self.db.statements.next_serial();
                Arc::new(last.again(serial, &self.settings.current, self.settings.exact()))
            }
        })
    }

    fn send_query(&mut self, end: usize) {
        let Some(attached) = &mut self.server else { return };
        let server = attached.lease.server();
        server.unnamed = None;
        server.outbuf.extend_from_slice(&self.client.inbuf[..end]);
        server.expects.push(Expect::Query);
        self.unnamed = None;
        self.client.inbuf.advance(end);
    }

    fn send_flight(&mut self, bind: Range<usize>, is_described: bool, end: usize, prepared: &Arc<Prepared>) {
        // Next time it may be pgherd that gives the rows.
        let told = self.db.is_planned().then(|| Arc::clone(&prepared.told));
        let Some(attached) = &mut self.server else { return };
        let server = attached.lease.server();
        let sent = &self.client.inbuf[..end];
        if bind.start > 0 {
            server.unnamed = Some(prepared.serial);
            let client_name = Some((Bytes::new(), prepared.serial));
            server.expects.push(Expect::Parse { hidden: false, statement: None, client_name });
            self.unnamed = Some(Arc::clone(prepared));
            if !is_described {
                prepared.told.forget_rows();
            }
        }
        let mut kept = false;
        match &prepared.identity {
            Some(identity) if bind.start == 0 => {
                kept = is_described && self.status == TransactionStatus::Idle && server.kept.keep(sent, bind.end);
                write_renamed_bind(&mut server.outbuf, &sent[..bind.end], identity.server_name.as_bytes());
                server.outbuf.extend_from_slice(&sent[bind.end..]);
            }
            _ => server.outbuf.extend_from_slice(sent),
        }
        server.expects.push(Expect::Bind(About { serial: prepared.serial, kept }));
        if is_described {
            server.expects.push(Expect::Describe(told, About::default()));
        }
        server.expects.push(Expect::Execute);
        server.expects.push(Expect::Sync { hidden: false });
        self.only_statements = false;
        if self.status == TransactionStatus::InTransaction {
            // Outside a transaction the portal is gone with the Sync.
            self.forget_suspended(b"");
            self.portals.insert(Bytes::new(), Arc::clone(prepared));
        }
        self.client.inbuf.advance(end);
    }
}

/// Appends a Bind to the unnamed portal, the client's name of its statement replaced.
fn write_renamed_bind(out: &mut BytesMut, bind: &[u8], name: &[u8]) {
    let mut body = Body::new(&bind[HEADER_LEN..]);
    let _ = (body.cstr(), body.cstr());
    writer::message(out, b'B', |out| {
        writer::cstr(out, b"");
        writer::cstr(out, name);
        out.extend_from_slice(body.rest());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(out: &mut BytesMut, portal: &[u8], statement: &[u8]) {
        writer::message(out, b'B', |out| {
            writer::cstr(out, portal);
            writer::cstr(out, statement);
            out.extend_from_slice(&[0; 6]);
        });
    }

    fn flight(parse: Option<&[u8]>, portal: &[u8], max_rows: i32, ends: bool) -> BytesMut {
        let mut out = BytesMut::new();
        if let Some(name) = parse {
            writer::parse(&mut out, name, b"select 1", &[]);
        }
        bind(&mut out, portal, b"s");
        writer::describe(&mut out, b'P', portal);
        writer::execute(&mut out, portal, max_rows);
        if ends {
            writer::sync(&mut out);
        }
        out
    }

    #[test]
    fn a_query_and_a_flight_over_the_unnamed_portal_are_taken_whole() {
        let mut query = BytesMut::new();
        writer::query(&mut query, b"select 1");
        assert_eq!(Request::read(&query), Some(Request::Query { end: query.len() }));
        for parse in [None, Some(&b""[..])] {
            let sent = flight(parse, b"", 7, true);
            let request = Request::read(&sent).expect("a flight");
            assert!(matches!(request, Request::Flight { is_described: true, end, .. } if end == sent.len()));
        }
    }

    #[test]
    fn what_follows_is_left_alone() {
        let mut sent = flight(None, b"", 0, true);
        let alone = Request::read(&sent);
        writer::query(&mut sent, b"select 2");
        assert!(alone.is_some());
        assert_eq!(Request::read(&sent), alone);
    }

    #[test]
    fn half_a_request_and_names_are_not() {
        for sent in [flight(Some(b"s"), b"", 0, true), flight(None, b"p", 0, true), flight(None, b"", 0, false)] {
            assert_eq!(Request::read(&sent), None);
        }
        let whole = flight(Some(b""), b"", 0, true);
        for end in 0..whole.len() {
            assert_eq!(Request::read(&whole[..end]), None, "{end} bytes");
        }
        assert_eq!(Request::read(b"Q\0\0\0\x01"), None);
    }
}
