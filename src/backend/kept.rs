//! The flight that a server was sent last, kept so that it can be sent once more where its first message was refused.
//!
//! What a server has refused at its first message has had no effect: everything behind it is skipped up to its Sync.

use std::sync::Arc;

use bytes::BytesMut;

use super::expect::{About, Expect};
use super::server::ServerConn;
use super::signature::Signature;
use crate::wire::frame::{self, Body, HEADER_LEN};
use crate::wire::writer::{self, TransactionStatus};

/// Bytes of a flight that are kept at most: it costs a copy.
const KEPT_BYTES: usize = 4096;

/// One flight: a Bind or a Describe of a statement, and what was sent behind it.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: BytesMut,
    first_len: usize,
    messages: usize,
    /// The client is told what it gets.
    described: bool,
    /// It ends with a Sync, which may be pgherd's own.
    synced: Option<bool>,
}

impl Kept {
    /// Keeps a whole flight: Bind, Describe of the portal, Execute and Sync. Returns false for one that is too long.
    pub fn keep(&mut self, flight: &[u8], bind_len: usize) -> bool {
        if flight.len() > KEPT_BYTES {
            return false;
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(flight);
        (self.first_len, self.messages, self.described, self.synced) = (bind_len, 4, true, Some(false));
        true
    }

    fn begin(&mut self, message: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(message);
        (self.first_len, self.messages, self.synced) = (message.len(), 1, None);
        self.described = message.first() == Some(&b'D');
    }

    /// Adds a message to the flight that was begun, if it goes right behind it: `owed` answers are on their way.
    fn add(&mut self, message: &[u8], owed: usize) {
        if self.messages == 0
            || self.messages != owed
            || self.synced.is_some()
            || self.bytes.len() + message.len() > KEPT_BYTES
        {
            self.messages = 0;
            return;
        }
        self.bytes.extend_from_slice(message);
        self.messages += 1;
        self.described |= message.starts_with(b"D");
    }

    /// Whether it is all that was asked, `owed` answers of which have not come, and may be asked again.
    fn is_repeatable(&self, owed: usize) -> bool {
        self.messages == owed && self.described && (self.synced.is_some() || self.bytes.first() == Some(&b'D'))
    }
}

impl ServerConn {
    /// Keeps a message about a statement as the first of a flight, if nothing came before it that may have had an effect.
    pub fn begin_kept(&mut self, message: &[u8]) -> bool {
        let is_first = self.expects.is_empty()
            && !self.expects.is_unsynced()
            && self.status == TransactionStatus::Idle
            && message.len() <= KEPT_BYTES;
        if is_first {
            self.kept.begin(message);
        }
        is_first
    }

    /// Keeps a message that goes out now behind the flight that was begun.
    pub fn add_kept(&mut self, message: &[u8]) {
        self.kept.add(message, self.expects.len());
    }

    /// Keeps a Sync that goes out now, which is the client's own or hidden from it.
    pub fn add_kept_sync(&mut self, hidden: bool) {
        self.add_kept(b"S\0\0\0\x04");
        self.kept.synced = Some(hidden);
    }

    /// Whether an error that comes now leaves nothing behind but the flight that was kept, which can be sent again.
    pub(super) fn may_repeat(&self, about: About) -> bool {
        about.kept && self.status == TransactionStatus::Idle && self.kept.is_repeatable(self.expects.len())
    }

    /// Ends what an error has left of the flight that was kept, as far as its Sync.
    pub fn end_refused(&mut self) {
        if !self.expects.hide_sync() {
            writer::sync(&mut self.outbuf);
            self.expects.push(Expect::Sync { hidden: true });
        }
    }

    /// Sends the flight that was kept once more, its statement under another name. That is not done twice.
    pub fn repeat_kept(&mut self, statement: &[u8], serial: u64, told: &Arc<Signature>) {
        let about = About { serial, kept: false };
        let (first, mut rest) = self.kept.bytes.split_at(self.kept.first_len);
        let mut body = Body::new(&first[HEADER_LEN..]);
        if first.first() == Some(&b'D') {
            writer::describe(&mut self.outbuf, b'S', statement);
            self.expects.push(Expect::Describe(Some(Arc::clone(told)), about));
        } else {
            let (portal, _) = (body.cstr().unwrap_or_default(), body.cstr());
            writer::message(&mut self.outbuf, b'B', |out| {
                writer::cstr(out, portal);
                writer::cstr(out, statement);
                out.extend_from_slice(body.rest());
            });
            self.expects.push(Expect::Bind(about));
        }
        self.outbuf.extend_from_slice(rest);
        while let Ok(Some(header)) = frame::peek(rest, KEPT_BYTES) {
            self.expects.push(match header.tag {
                b'D' => Expect::Describe(Some(Arc::clone(told)), About::default()),
                b'E' => Expect::Execute,
                _ => Expect::Sync { hidden: self.kept.synced == Some(true) },
            });
            rest = rest.get(header.total..).unwrap_or_default();
        }
        if self.kept.synced.is_none() {
            writer::flush(&mut self.outbuf);
        }
        self.kept.messages = 0;
    }
}
