//! What a server still owes an answer to, in the order it was asked.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::signature::Signature;
use super::statements::Identity;

/// ParseComplete.
const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";

/// Which statement a Bind or a Describe speaks of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct About {
    /// The Parse that it came from; 0 where the client's name for it means nothing to pgherd.
    pub serial: u64,
    /// It is the first message of what `ServerConn::kept` holds.
    pub kept: bool,
}

/// One answer that is on its way.
#[derive(Debug)]
pub enum Expect {
    /// A simple Query of the client's: everything up to its ReadyForQuery is the client's.
    Query,
    /// A simple Query of the client's in which pgherd has put statements of its own: which of those still to be answered are
    /// pgherd's, in order.
    Spliced(VecDeque<bool>),
    /// A FunctionCall of the client's.
    FunctionCall,
    /// A Query of pgherd's own: nothing up to its ReadyForQuery reaches the client.
    HiddenQuery,
    /// All that BEGIN brings in the extended protocol without a Sync, CloseComplete last: it is pgherd's own, and if it fails the server
    /// skips what the client has sent behind it.
    HiddenBegin,
    /// ParseComplete. Hidden where the client did not ask for it.
    Parse {
        /// Whether pgherd asked, not the client.
        hidden: bool,
        /// The statement, if it is one that the server keeps by name.
        statement: Option<Arc<Identity>>,
        /// The name that the client gave it, and which of its Parses this was.
        client_name: Option<(Bytes, u64)>,
    },
    /// BindComplete.
    Bind(About),
    /// BindComplete that the client has been given already.
    HiddenBind,
    /// ParameterDescription, and RowDescription or NoData. What the client is told is noted where somebody wants it.
    Describe(Option<Arc<Signature>>, About),
    /// Rows, and CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// The same of a portal that the client knows nothing of.
    HiddenExecute,
    /// CloseComplete. Hidden where the client did not ask for it.
    Close {
        /// Whether pgherd asked, not the client.
        hidden: bool,
    },
    /// ReadyForQuery. Hidden where the client sent Flush and pgherd made it a Sync.
    Sync {
        /// Whether pgherd asked, not the client.
        hidden: bool,
    },
    /// An error of the server's, provoked by pgherd so that its transaction fails; the client gets this error instead.
    Poison(Bytes),
    /// ParseComplete of a statement that the server held and, asked just before, has closed. The client's name for it, and which of its
    /// Parses this was.
    Reparse(Arc<Identity>, Bytes, u64),
    /// Nothing from the server, which holds the statement already: ParseComplete, if the server gets so far. The client's name for it,
    /// and which of its Parses this was.
    HeldParse(Bytes, u64),
    /// Nothing from the server: these bytes go to the client when everything before them is answered.
    Inject(Bytes),
}

impl Expect {
    /// A ReadyForQuery ends it.
    fn brings_ready(&self) -> bool {
        matches!(self, Self::Query | Self::Spliced(_) | Self::FunctionCall | Self::HiddenQuery | Self::Sync { .. })
    }
}

/// What becomes of a server's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the client.
    Forward,
    /// It was for pgherd.
    Swallow,
    /// The client gets these bytes instead.
    Replace(Bytes),
}

/// A message that nothing asked for: the connection cannot be trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unexpected(pub u8);

/// A Parse that prepared nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct LostName {
    /// The client's name for the statement.
    pub name: Bytes,
    /// Which Parse it was.
    pub serial: u64,
    /// Something before it failed: the server has not looked at it, and what the name meant before it still means.
    pub is_skipped: bool,
}

/// What one server message changed, for the session to act on.
#[derive(Debug, Default)]
pub struct Consequences {
    /// Parses that failed or were skipped: the client's names that mean nothing now, or what they meant before.
    pub lost_names: Vec<LostName>,
    /// Statements that the server does not hold after all.
    pub lost_statements: Vec<Arc<Identity>>,
    /// A Parse of the unnamed statement failed or was skipped: what the server holds there is not known.
    pub lost_unnamed: bool,
    /// A Close of pgherd's own was skipped: the server still holds what it was to forget.
    pub lost_close: bool,
}

/// The queue of answers owed.
#[derive(Debug, Default)]
pub struct Expects {
    queue: VecDeque<Expect>,
    /// An extended-protocol error was answered and no Sync has been sent since: the server skips all else.
    skipping: bool,
    /// Extended messages were sent since the last Sync.
    unsynced: bool,
    /// Among them an Execute that may leave its portal suspended.
    suspending: bool,
}

impl Expects {
    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the server ignores everything up to the next Sync.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether extended messages were sent that no Sync has closed: the server may hold an implicit transaction.
    pub fn is_unsynced(&self) -> bool {
        self.unsynced || self.skipping
    }

    /// An Execute with a row limit was sent: what it writes is seen by what is parsed after it, and not by what was (each Parse is a
    /// command of its own to PostgreSQL, and the end of a suspended portal is not).
    pub fn note_row_limit(&mut self) {
        self.suspending = true;
    }

    /// Whether such an Execute was sent since the last Sync.
    pub fn may_suspend(&self) -> bool {
        self.suspending
    }

    /// How many answers are owed.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether a ReadyForQuery is to come, with a transaction status that is not known yet.
    pub fn owes_ready(&self) -> bool {
        self.queue.iter().any(Expect::brings_ready)
    }

    /// Whether that Parse is on its way and may be skipped, for an error before it, while what is sent now is not: a Sync stands between.
    pub fn may_skip(&self, serial: u64) -> bool {
        let is_it = |expect: &Expect| match expect {
            Expect::Parse { client_name: Some((_, it)), .. } | Expect::Reparse(_, _, it) | Expect::HeldParse(_, it) => {
                *it == serial
            }
            _ => false,
        };
        self.queue.iter().skip_while(|expect| !is_it(expect)).any(Expect::brings_ready)
    }

    /// Whether something runs that may ask for COPY data.
    pub fn may_start_copy(&self) -> bool {
        self.queue.iter().any(|expect| matches!(expect, Expect::Query | Expect::Spliced(_) | Expect::Execute))
    }

    /// Whether a Parse of that statement is on its way.
    pub fn prepares(&self, id: u64) -> bool {
        self.queue.iter().any(|expect| match expect {
            Expect::Reparse(statement, ..) | Expect::Parse { statement: Some(statement), .. } => statement.id == id,
            _ => false,
        })
    }

    /// Whether the next error is to be told in pgherd's words.
    pub fn is_poisoned(&self) -> bool {
        matches!(self.queue.front(), Some(Expect::Poison(_)))
    }

    /// Whether what the server sends now is for pgherd alone.
    pub fn is_hidden(&self) -> bool {
        matches!(self.queue.front(), Some(Expect::HiddenQuery | Expect::HiddenBegin))
    }

    /// Whether what was asked for last is not answered before a Flush, or what comes with the client's next message.
    pub fn ends_unflushed(&self) -> bool {
        matches!(self.queue.back(), Some(Expect::HiddenBegin))
    }

    /// Whether BEGIN has worked, if that message is a CommandComplete.
    pub fn is_begun(&self) -> bool {
        matches!(self.queue.front(), Some(Expect::HiddenBegin))
    }

    /// Whether the rows that the server sends now are for pgherd alone.
    pub fn hides_rows(&self) -> bool {
        match self.queue.front() {
            Some(Expect::HiddenQuery | Expect::HiddenExecute) => true,
            Some(Expect::Spliced(hidden)) => hidden.front() == Some(&true),
            _ => false,
        }
    }

    /// Whether the ReadyForQuery that comes next is for pgherd alone.
    pub fn is_hidden_ready(&self) -> bool {
        matches!(self.queue.front(), Some(Expect::HiddenQuery | Expect::Sync { hidden: true }))
    }

    /// Which statement an error that comes now would speak of.
    pub fn subject(&self) -> Option<About> {
        match self.queue.front()? {
            Expect::Bind(about) | Expect::Describe(_, about) => Some(*about),
            Expect::Parse { client_name: Some((_, serial)), .. } | Expect::Reparse(_, _, serial) => {
                Some(About { serial: *serial, kept: false })
            }
            _ => None,
        }
    }

    /// The Sync that comes next is not the client's any more, whose own comes later. Returns false if none is on its way.
    pub fn hide_sync(&mut self) -> bool {
        match self.queue.front_mut() {
            Some(Expect::Sync { hidden }) => *hidden = true,
            _ => return false,
        }
        true
    }

    /// A ParameterDescription has come: notes what it says, if somebody wants that.
    pub fn note_parameters(&self, body: &[u8]) {
        if let Some(Expect::Describe(Some(told), _)) = self.queue.front() {
            told.note_parameters(body);
        }
    }

    /// A RowDescription has come: notes what it says, if somebody wants that.
    pub fn note_rows(&self, body: &[u8]) {
        if let Some(Expect::Describe(Some(told), _)) = self.queue.front() {
            told.note_rows(body);
        }
    }

    /// Notes that something was sent which will be answered.
    pub fn push(&mut self, expect: Expect) {
        match expect {
            Expect::Sync { .. } => (self.skipping, self.unsynced, self.suspending) = (false, false, false),
            // They end an implicit transaction as a Sync does, unless the server is skipping.
            Expect::Query | Expect::Spliced(_) | Expect::FunctionCall | Expect::HiddenQuery => self.unsynced = false,
            // Behind it a transaction block is open: a Sync would end nothing.
            Expect::HiddenBegin | Expect::Inject(_) | Expect::HeldParse(..) => {}
            _ => self.unsynced = true,
        }
        self.queue.push_back(expect);
    }

    /// The bytes to put before the server's next message, if it is their turn.
    pub fn take_injection(&mut self) -> Option<Bytes> {
        if !matches!(self.queue.front(), Some(Expect::Inject(_) | Expect::HeldParse(..))) {
            return None;
        }
        match self.queue.pop_front() {
            Some(Expect::Inject(bytes)) => Some(bytes),
            Some(Expect::HeldParse(..)) => Some(Bytes::from_static(PARSE_COMPLETE)),
            _ => None,
        }
    }

    /// The server waits for COPY data: it ignores every Sync sent so far (PostgreSQL manual, 55.2.6), since the client's COPY
    /// data is held back until this is known.
    pub fn copy_in_started(&mut self) {
        self.queue.retain(|expect| !matches!(expect, Expect::Sync { .. }));
        if matches!(self.queue.front(), Some(Expect::Execute)) {
            self.unsynced = true;
        }
    }

    /// Whether that message answers what is owed first, goes to the client as it is and changes nothing else.
    pub fn is_plain_answer(&self, tag: u8) -> bool {
        match self.queue.front() {
            Some(Expect::Query) => matches!(tag, b'T' | b'D' | b'C' | b'I' | b'Z'),
            Some(Expect::Execute) => matches!(tag, b'D' | b'C' | b'I' | b's'),
            Some(Expect::Parse { hidden: false, statement: None, .. }) => tag == b'1',
            Some(Expect::Bind(_)) => tag == b'2',
            Some(Expect::Describe(..)) => matches!(tag, b'T' | b'n'),
            Some(Expect::Close { hidden: false }) => tag == b'3',
            Some(Expect::Sync { hidden: false }) => tag == b'Z',
            _ => false,
        }
    }

    /// Notes a message that [`Expects::is_plain_answer`]. Returns whether bytes are due that are to be put in behind it.
    pub fn note_plain_answer(&mut self, tag: u8) -> bool {
        let goes_on = matches!(tag, b'D') || (tag != b'Z' && matches!(self.queue.front(), Some(Expect::Query)));
        if goes_on {
            return false;
        }
        self.queue.pop_front();
        matches!(self.queue.front(), Some(Expect::Inject(_) | Expect::HeldParse(..)))
    }

    /// Matches one server message (not one of N, A, S) with what is owed.
    ///
    /// # Errors
    /// The message answers nothing that was asked.
    pub fn answer(&mut self, tag: u8, consequences: &mut Consequences) -> Result<Verdict, Unexpected> {
        let Some(front) = self.queue.front() else { return Err(Unexpected(tag)) };
        if let (Expect::Parse { statement: Some(statement), .. }, b'1') = (front, tag) {
            statement.note_parsed(true);
        }
        if matches!(front, Expect::Spliced(_)) {
            return self.answer_spliced(tag);
        }
        match (front, tag) {
            (Expect::Poison(error), b'E') => {
                let verdict = Verdict::Replace(error.clone());
                self.queue.pop_front();
                if !matches!(self.queue.front(), Some(Expect::Query)) {
                    self.skip_to_sync(consequences);
                }
                Ok(verdict)
            }
            (Expect::HiddenQuery, b'Z') => self.done(Verdict::Swallow),
            (Expect::HiddenQuery, _) | (Expect::HiddenBegin, b'1' | b'2' | b'C') => Ok(Verdict::Swallow),
            (Expect::HiddenBegin, b'3') => self.done(Verdict::Swallow),
            (Expect::HiddenBegin, b'E') => {
                self.skip_to_sync(consequences);
                Ok(Verdict::Swallow)
            }
            (Expect::Query | Expect::FunctionCall, b'Z') => self.done(Verdict::Forward),
            (Expect::Query, b'T' | b'D' | b'C' | b'I' | b'E' | b'G' | b'H' | b'W' | b'd' | b'c') => {
                Ok(Verdict::Forward)
            }
            (Expect::FunctionCall, b'V' | b'E') => Ok(Verdict::Forward),
            (Expect::Sync { hidden: true }, b'Z') => self.done(Verdict::Swallow),
            (Expect::Sync { hidden: false }, b'Z') => self.done(Verdict::Forward),
            (Expect::Parse { hidden: true, .. }, b'1')
            | (Expect::Close { hidden: true }, b'3')
            | (Expect::HiddenBind, b'2') => self.done(Verdict::Swallow),
            (Expect::Parse { .. } | Expect::Reparse(..), b'1')
            | (Expect::Close { .. }, b'3')
            | (Expect::Bind(_), b'2') => self.done(Verdict::Forward),
            (Expect::Describe(..), b't') => Ok(Verdict::Forward),
            (Expect::Describe(..), b'T' | b'n') | (Expect::Execute, b'C' | b'I' | b's') => self.done(Verdict::Forward),
            (Expect::Execute, b'D' | b'G' | b'H' | b'W' | b'd' | b'c') => Ok(Verdict::Forward),
            (Expect::HiddenExecute, b'D') => Ok(Verdict::Swallow),
            (Expect::HiddenExecute, b'C') => self.done(Verdict::Swallow),
            (Expect::Inject(_) | Expect::HeldParse(..), _) => Err(Unexpected(tag)),
            (_, b'E') => {
                self.skip_to_sync(consequences);
                Ok(Verdict::Forward)
            }
            _ => Err(Unexpected(tag)),
        }
    }

    /// Of a Query with statements of pgherd's in it the client is told what its own statements bring.
    fn answer_spliced(&mut self, tag: u8) -> Result<Verdict, Unexpected> {
        let Some(Expect::Spliced(hidden)) = self.queue.front_mut() else { return Err(Unexpected(tag)) };
        let verdict = if hidden.front() == Some(&true) { Verdict::Swallow } else { Verdict::Forward };
        match tag {
            b'Z' => self.done(Verdict::Forward),
            b'C' => {
                hidden.pop_front();
                Ok(verdict)
            }
            b'T' | b'D' => Ok(verdict),
            b'I' | b'E' | b'G' | b'H' | b'W' | b'd' | b'c' => Ok(Verdict::Forward),
            _ => Err(Unexpected(tag)),
        }
    }

    fn done(&mut self, verdict: Verdict) -> Result<Verdict, Unexpected> {
        self.queue.pop_front();
        Ok(verdict)
    }

    /// An error in the extended protocol: everything up to the next Sync is not answered any more, a Query included.
    fn skip_to_sync(&mut self, consequences: &mut Consequences) {
        let mut is_skipped = false;
        let lost = |(name, serial), is_skipped| LostName { name, serial, is_skipped };
        while let Some(front) = self.queue.front() {
            if matches!(front, Expect::Sync { .. }) {
                return;
            }
            match self.queue.pop_front() {
                Some(Expect::Parse { statement, client_name, .. }) => {
                    consequences.lost_unnamed |= statement.is_none();
                    if let Some(statement) = &statement {
                        statement.note_parsed(false);
                    }
                    consequences.lost_names.extend(client_name.map(|it| lost(it, is_skipped)));
                    consequences.lost_statements.extend(statement);
                }
                Some(Expect::Reparse(statement, name, serial)) => {
                    consequences.lost_names.push(lost((name, serial), is_skipped));
                    // If it is skipped, so was the Close before it.
                    consequences.lost_statements.extend((!is_skipped).then_some(statement));
                }
                Some(Expect::HeldParse(name, serial)) => {
                    consequences.lost_names.push(lost((name, serial), is_skipped));
                }
                Some(Expect::Close { hidden: true }) => consequences.lost_close = true,
                Some(Expect::Query | Expect::Spliced(_) | Expect::HiddenQuery | Expect::Poison(_)) => {
                    consequences.lost_unnamed = true
                }
                _ => {}
            }
            is_skipped = true;
        }
        self.skipping = true;
    }
}

#[cfg(test)]
mod tests;
