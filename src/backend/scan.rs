//! Reading what a server sends: which of it is the client's, which is pgherd's own, and what it says of the session.

use bytes::{Buf, Bytes, BytesMut};

use super::expect::{Consequences, Verdict};
use super::failure::misbehaved;
use super::own::is_stale_plan;
use super::server::{ServerConn, UNKNOWN_STATEMENT};
use super::statements::NAME_PREFIX;
use crate::error::Error;
use crate::limits;
use crate::net::spare;
use crate::wire::backend::ErrorFields;
use crate::wire::frame::{self, HEADER_LEN};
use crate::wire::writer::TransactionStatus;

/// Bytes of a message that is held until it is whole; larger ones pass as they come where nobody must read them.
const HELD_UP_TO: usize = 64 * 1024;
/// The length that a ReadyForQuery claims.
const READY_LEN: usize = 5;

/// An error that speaks of a statement: by the name that it has on the server, or because its result type changed.
#[derive(Debug)]
pub struct StatementError {
    /// The ErrorResponse's body.
    pub body: Bytes,
    /// Which of all Parses the statement came from; 0 where the client's name for it means nothing.
    pub serial: u64,
    /// Its result type has changed.
    pub is_stale: bool,
    /// Nothing has had an effect, and what was asked can be asked again.
    pub may_repeat: bool,
}

/// What scanning a server's bytes showed.
#[derive(Debug, Default)]
pub struct Seen {
    /// Set by the session: notifications of this server are its client's.
    pub takes_notifications: bool,
    /// The last ReadyForQuery's status, if one came.
    pub ready: Option<TransactionStatus>,
    /// How many ReadyForQuery came.
    pub turns: u32,
    /// A ReadyForQuery came that only pgherd had asked for.
    pub hidden_ready: bool,
    /// The session must act before more is read: COPY data was asked for, or an error speaks of a statement.
    pub calls: bool,
    /// Set by the session: it tells errors that speak of a statement.
    pub tells_statements: bool,
    /// Such an error. Nothing behind it has been scanned.
    pub statement_error: Option<Box<StatementError>>,
    /// It said why it goes away.
    pub farewell: bool,
    /// Rows passed on.
    pub rows: u64,
    /// Errors passed on behind the last ReadyForQuery that is the client's.
    pub errors: u32,
    /// Those before it.
    pub errors_of_turns: u32,
    /// A notice was passed on.
    pub notices: u32,
    /// The message of the last error of what is hidden.
    pub hidden_error: Option<Box<str>>,
    /// Settings it reported as changed.
    pub reported: Vec<(String, String)>,
    /// What failed Parses left behind.
    pub consequences: Consequences,
}

impl Seen {
    /// A ReadyForQuery came that is the client's: errors from here on are of another turn.
    fn turn_is_over(&mut self, status: TransactionStatus) {
        self.ready = Some(status);
        self.turns += 1;
        self.errors_of_turns += std::mem::take(&mut self.errors);
    }
}

impl ServerConn {
    /// Scans what was read, clears for the client what is the client's, and swallows what is not. What must go to the
    /// client before bytes still in `inbuf` is appended to `out`.
    ///
    /// # Errors
    /// The server broke the protocol; the connection is broken.
    pub fn scan(&mut self, out: &mut BytesMut, seen: &mut Seen) -> Result<(), Error> {
        self.scan_plain(out, seen);
        if self.cleared == self.inbuf.len() && self.passing == 0 {
            return Ok(());
        }
        let result = self.scan_messages(out, seen);
        self.broken |= result.is_err();
        result
    }

    /// Clears the whole messages at the front that answer what was asked and say nothing else: nearly all there are.
    fn scan_plain(&mut self, out: &mut BytesMut, seen: &mut Seen) {
        while let Some(&[tag, a, b, c, d, status, ..]) = self.inbuf.get(self.cleared..)
            && self.passing == 0
        {
            let len = u32::from_be_bytes([a, b, c, d]) as usize;
            // Those of four bytes (ParseComplete and its like) are the last of what came only where nothing more was asked.
            if len < 4 || len >= self.inbuf.len() - self.cleared || !self.expects.is_plain_answer(tag) {
                return;
            }
            match tag {
                b'D' => seen.rows += 1,
                b'T' => self.expects.note_rows(&self.inbuf[self.cleared + HEADER_LEN..=self.cleared + len]),
                b'C' => self.copying_in = false,
                b'Z' => {
                    let Some(status) = TransactionStatus::from_byte(status).filter(|_| len == READY_LEN) else {
                        return;
                    };
                    self.status = status;
                    seen.turn_is_over(status);
                    self.copying_in = false;
                }
                _ => {}
            }
            self.cleared += len + 1;
            if self.expects.note_plain_answer(tag) {
                self.inject(out);
            }
        }
    }

    /// Moves what is cleared into `out`, so that the server is free of it.
    pub fn spill(&mut self, out: &mut BytesMut) {
        if self.cleared > 0 {
            spare::lend(out);
            out.extend_from_slice(&self.inbuf[..self.cleared]);
            self.inbuf.advance(self.cleared);
            self.cleared = 0;
        }
    }

    fn scan_messages(&mut self, out: &mut BytesMut, seen: &mut Seen) -> Result<(), Error> {
        loop {
            if self.passing > 0 {
                let step = self.passing.min(self.inbuf.len() - self.cleared);
                self.cleared += step;
                self.passing -= step;
                if self.passing > 0 {
                    return Ok(());
                }
            }
            let rest = self.inbuf.len() - self.cleared;
            let header = match frame::peek(&self.inbuf[self.cleared..], limits::MESSAGE_BYTES) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(()),
                Err(error) => return Err(misbehaved(error.to_string())),
            };
            if matches!(header.tag, b'D' | b'd') && !self.expects.hides_rows() {
                self.answer(header.tag, seen)?;
                seen.rows += u64::from(header.tag == b'D');
                self.passing = header.total;
                continue;
            }
            if header.total > HELD_UP_TO && self.pass_unread(header, seen)? {
                continue;
            }
            if rest < header.total {
                let missing = header.total - rest;
                self.inbuf.reserve(missing);
                return Ok(());
            }
            if header.tag == b't' && seen.tells_statements && self.waits_with_types(header) {
                return Ok(());
            }
            match self.judge(header, seen)? {
                Verdict::Forward => self.cleared += header.total,
                Verdict::Swallow => {
                    self.spill(out);
                    self.inbuf.advance(header.total);
                    if seen.statement_error.is_some() || seen.hidden_error.is_some() {
                        return Ok(());
                    }
                }
                Verdict::Replace(bytes) => {
                    self.spill(out);
                    self.inbuf.advance(header.total);
                    out.extend_from_slice(&bytes);
                }
            }
            self.inject(out);
        }
    }

    /// Lets a large message pass as it comes instead of holding it: a client can make a notice, an error or a function's
    /// result as large as it likes. Returns false for one that must be held.
    fn pass_unread(&mut self, header: frame::Header, seen: &mut Seen) -> Result<bool, Error> {
        if self.expects.is_hidden() || self.expects.is_poisoned() || self.expects.is_empty() {
            return Ok(false);
        }
        match header.tag {
            b'N' => seen.notices += 1,
            b'V' => drop(self.answer(b'V', seen)?),
            b'E' => {
                self.copying_in = false;
                seen.errors += 1;
                self.answer(b'E', seen)?;
                self.act_on_losses(seen);
            }
            _ => return Ok(false),
        }
        self.passing = header.total;
        Ok(true)
    }

    /// Puts in what is due before the server's next message.
    pub fn inject(&mut self, out: &mut BytesMut) {
        while let Some(bytes) = self.expects.take_injection() {
            self.spill(out);
            out.extend_from_slice(&bytes);
        }
    }

    fn answer(&mut self, tag: u8, seen: &mut Seen) -> Result<Verdict, Error> {
        self.expects
            .answer(tag, &mut seen.consequences)
            .map_err(|unexpected| misbehaved(format!("message {:?} answers nothing", unexpected.0 as char)))
    }

    fn judge(&mut self, header: frame::Header, seen: &mut Seen) -> Result<Verdict, Error> {
        let hidden = self.expects.is_hidden();
        let unasked = if hidden { Verdict::Swallow } else { Verdict::Forward };
        match header.tag {
            b'N' => {
                seen.notices += u32::from(!hidden);
                return Ok(unasked);
            }
            // Of a client that does not listen on its own server a notification can only be somebody else's, or come by the listener too.
            b'A' if seen.takes_notifications => return Ok(Verdict::Forward),
            b'A' => return Ok(Verdict::Swallow),
            b'S' => {
                let body = self.copy_body(header);
                seen.reported.extend(self.note_parameter(&body));
                return Ok(unasked);
            }
            b'E' if self.expects.is_empty() => {
                // Unasked: the server is going away (admin shutdown, idle timeout). The client is told as PostgreSQL would.
                self.broken = true;
                seen.errors += 1;
                seen.farewell = true;
                return Ok(Verdict::Forward);
            }
            b'E' => {
                self.judge_error(header, hidden, seen);
                if seen.statement_error.is_some() {
                    self.answer(b'E', seen)?;
                    self.act_on_losses(seen);
                    return Ok(Verdict::Swallow);
                }
            }
            b't' if seen.tells_statements && self.is_asked_again(header) => return Ok(Verdict::Swallow),
            b't' => self.expects.note_parameters(&self.inbuf[self.cleared + HEADER_LEN..self.cleared + header.total]),
            b'T' => self.expects.note_rows(&self.inbuf[self.cleared + HEADER_LEN..self.cleared + header.total]),
            b'G' | b'W' => {
                self.copying_in = true;
                seen.calls = true;
                self.expects.copy_in_started();
            }
            b'C' => {
                self.copying_in = false;
                if self.expects.is_begun() {
                    self.status = TransactionStatus::InTransaction;
                }
            }
            b'Z' => {
                let byte = self.inbuf[self.cleared..self.cleared + header.total].last().copied();
                let status = byte.and_then(TransactionStatus::from_byte);
                self.status = status.ok_or_else(|| misbehaved("ReadyForQuery without a status"))?;
                self.copying_in = false;
                if self.expects.is_hidden_ready() {
                    seen.hidden_ready = true;
                } else {
                    seen.turn_is_over(self.status);
                }
            }
            _ => {}
        }
        let verdict = self.answer(header.tag, seen)?;
        self.act_on_losses(seen);
        Ok(verdict)
    }

    /// Parses and Closes that did not happen: what is believed of the server follows.
    fn act_on_losses(&mut self, seen: &mut Seen) {
        for statement in seen.consequences.lost_statements.drain(..) {
            // Behind the next Sync it may have been sent once more, for what was believed of the server until now.
            if !self.expects.prepares(statement.id) {
                self.held.remove(statement.id);
            }
        }
        let lost_close = std::mem::take(&mut seen.consequences.lost_close);
        if lost_close || std::mem::take(&mut seen.consequences.lost_unnamed) {
            self.unnamed = Some(UNKNOWN_STATEMENT);
        }
        self.dirty |= lost_close;
    }

    fn judge_error(&mut self, header: frame::Header, hidden: bool, seen: &mut Seen) {
        self.copying_in = false;
        let body = self.copy_body(header);
        if hidden {
            let fields = ErrorFields::parse(&body).ok();
            seen.calls = true;
            seen.hidden_error = Some(fields.as_ref().and_then(|fields| fields.get(b'M')).unwrap_or_default().into());
        } else {
            seen.errors += 1;
            let fields = ErrorFields::parse(&body).ok();
            seen.farewell |= fields.as_ref().is_some_and(ErrorFields::is_fatal);
            if let Some(fields) = fields.filter(|_| seen.tells_statements) {
                seen.statement_error = self.statement_error(&fields, &body).map(Box::new);
                seen.calls |= seen.statement_error.is_some();
            }
        }
    }

    /// An error that the session tells itself, since it speaks of a statement.
    fn statement_error(&self, fields: &ErrorFields<'_>, body: &Bytes) -> Option<StatementError> {
        let about = self.expects.subject()?;
        let is_stale = is_stale_plan(fields);
        let is_named = matches!(fields.code(), "08P01" | "26000" | "42P05") && fields.message().contains(NAME_PREFIX);
        (is_stale || is_named).then(|| StatementError {
            body: body.clone(),
            serial: about.serial,
            is_stale,
            may_repeat: is_stale && self.may_repeat(about),
        })
    }

    /// Whether a statement's parameters are not told yet: of one whose result type changed PostgreSQL tells them and then fails.
    fn waits_with_types(&self, types: frame::Header) -> bool {
        let Some(about) = self.expects.subject() else { return false };
        let behind = self.inbuf.get(self.cleared + types.total..).unwrap_or_default();
        self.may_repeat(about)
            && match frame::peek(behind, limits::MESSAGE_BYTES) {
                Ok(Some(next)) => next.tag == b'E' && next.total <= HELD_UP_TO && behind.len() < next.total,
                other => other.is_ok(),
            }
    }

    /// Whether a Describe is about to fail and to be sent once more.
    fn is_asked_again(&self, types: frame::Header) -> bool {
        let Some(about) = self.expects.subject() else { return false };
        let behind = self.inbuf.get(self.cleared + types.total..).unwrap_or_default();
        let Ok(Some(next)) = frame::peek(behind, HELD_UP_TO) else { return false };
        next.tag == b'E'
            && self.may_repeat(about)
            && behind
                .get(HEADER_LEN..next.total)
                .is_some_and(|body| ErrorFields::parse(body).as_ref().is_ok_and(is_stale_plan))
    }

    fn copy_body(&self, header: frame::Header) -> Bytes {
        Bytes::copy_from_slice(&self.inbuf[self.cleared + HEADER_LEN..self.cleared + header.total])
    }
}
