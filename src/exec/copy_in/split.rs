//! A stream of COPY data cut into rows, as PostgreSQL's own reader cuts it.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};

use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::plan::distribute::{CopiedIn, Form, Placed};
use crate::wire::sqlstate::SqlState;

/// What stands before the rows of a binary COPY, flags and the length of what may follow included.
const BINARY_HEADER_LEN: usize = 19;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// A piece of the stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Its bytes, end of line included.
    pub bytes: Bytes,
    /// Which shards get it.
    pub placed: Placed,
    /// How many lines of the input it takes.
    pub lines: u32,
}

/// See the module's description.
pub struct Splitter<'p> {
    plan: &'p CopiedIn,
    buf: BytesMut,
    /// How far into the buffer the present row has been looked at, and what was found there.
    seen: usize,
    in_quote: bool,
    was_escape: bool,
    lines: u32,
    /// Carriage returns outside of quotes.
    returns: u32,
    is_head: bool,
    /// Whether lines end with a carriage return too; known from the first.
    has_return: Option<bool>,
    is_over: bool,
}

impl<'p> Splitter<'p> {
    /// Before the first byte.
    pub fn new(plan: &'p CopiedIn) -> Self {
        let is_head = plan.has_header || plan.form == Form::Binary;
        Self {
            plan,
            buf: BytesMut::new(),
            seen: 0,
            in_quote: false,
            was_escape: false,
            lines: 1,
            returns: 0,
            is_head,
            has_return: None,
            is_over: false,
        }
    }

    /// More of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        // Text behind the mark that ends it is ignored by PostgreSQL; bytes behind the trailer of a binary COPY are an error, and go on.
        if !self.is_over || self.plan.form == Form::Binary {
            self.buf.extend_from_slice(bytes);
        }
    }

    /// The next whole row.
    ///
    /// # Errors
    /// It is longer than any message may be.
    pub fn next_row(&mut self) -> Result<Option<Row>, Error> {
        let row = match &self.plan.form {
            Form::Binary => self.binary(),
            _ => self.end_of_line().map(|end| self.line(end)),
        };
        if row.is_none() && self.buf.len() > limits::MESSAGE_BYTES {
            let message = "a row of COPY data is too long";
            return Err(Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, message));
        }
        Ok(row)
    }

    /// What is left when the client has no more: a last line without its end.
    pub fn rest(&mut self) -> Option<Row> {
        if self.buf.is_empty() {
            return None;
        }
        if self.plan.form == Form::Binary {
            let bytes = self.buf.split().freeze();
            return Some(Row { bytes, placed: Placed::Unreadable, lines: 1 });
        }
        let end = self.buf.len();
        Some(self.line(end))
    }

    /// Behind the end of the first line that is not within quotes.
    fn end_of_line(&mut self) -> Option<usize> {
        while self.skip_plain_bytes()
            && let Some(&byte) = self.buf.get(self.seen)
        {
            self.seen += 1;
            match &self.plan.form {
                Form::Csv { quote, escape, .. } => {
                    if self.in_quote && byte == *escape && escape != quote {
                        self.was_escape = !self.was_escape;
                    }
                    if byte == *quote && !self.was_escape {
                        self.in_quote = !self.in_quote;
                    }
                    if byte != *escape || escape == quote {
                        self.was_escape = false;
                    }
                }
                _ => {
                    if self.was_escape {
                        self.was_escape = false;
                        self.lines += u32::from(byte == b'\n');
                        continue;
                    }
                    self.was_escape = byte == b'\\';
                }
            }
            self.returns += u32::from(byte == b'\r' && !self.in_quote);
            if byte == b'\n' {
                if !self.in_quote {
                    return Some(self.seen);
                }
                self.lines += 1;
            }
        }
        None
    }

    /// Goes on to the next byte that can mean something; false if there is none.
    fn skip_plain_bytes(&mut self) -> bool {
        let meaning = match &self.plan.form {
            _ if self.was_escape => return true,
            Form::Csv { quote, escape, .. } if quote == escape => *quote,
            Form::Csv { .. } => return true,
            Form::Text { .. } | Form::Binary => b'\\',
        };
        let next = memchr::memchr3(b'\n', b'\r', meaning, self.buf.get(self.seen..).unwrap_or_default());
        self.seen = next.map_or(self.buf.len(), |next| self.seen + next);
        next.is_some()
    }

    fn line(&mut self, end: usize) -> Row {
        let bytes = self.buf.split_to(end).freeze();
        let lines = std::mem::replace(&mut self.lines, 1);
        (self.seen, self.in_quote, self.was_escape) = (0, false, false);
        let is_head = std::mem::take(&mut self.is_head);
        let placed = match self.body(&bytes) {
            None => Placed::Ambiguous,
            Some(body) if self.is_mark(body, &bytes) => {
                // What follows is no data.
                self.is_over = true;
                self.buf.clear();
                Placed::Everywhere
            }
            Some(body) if self.has_mark(body) => Placed::Ambiguous,
            Some(_) if is_head => Placed::Everywhere,
            Some(body) => self.place(body),
        };
        Row { bytes, placed, lines }
    }

    /// A line without its end; `None` if it ends otherwise than the first one, or has such an end within.
    fn body<'b>(&mut self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let returns = std::mem::take(&mut self.returns);
        let Some(line) = bytes.strip_suffix(b"\n") else { return (returns == 0).then_some(bytes) };
        let stripped = line.strip_suffix(b"\r");
        // PostgreSQL takes a carriage return for an end, or for an error: by what the first line was.
        let is_alike = returns == u32::from(stripped.is_some())
            && *self.has_return.get_or_insert(stripped.is_some()) == stripped.is_some();
        is_alike.then_some(stripped.unwrap_or(line))
    }

    /// Whether a line is the mark that ends the data. In CSV it is one only with an end of line.
    fn is_mark(&self, body: &[u8], bytes: &[u8]) -> bool {
        body == b"\\."
            && match self.plan.form {
                Form::Csv { .. } => self.plan.ends_by_mark && bytes.len() > body.len(),
                _ => true,
            }
    }

    /// Whether the mark stands among other bytes of a line: PostgreSQL ends there, or says that it is an error, by its version
    /// and by what the lines before ended with.
    fn has_mark(&self, body: &[u8]) -> bool {
        match &self.plan.form {
            // A quote made of one of the two begins what the mark may end.
            Form::Csv { quote, .. } => matches!(quote, b'\\' | b'.') && body.starts_with(b"\\."),
            _ => {
                let mut rest = body;
                while let Some(at) = memchr::memchr(b'\\', rest) {
                    if rest.get(at + 1) == Some(&b'.') {
                        return true;
                    }
                    rest = rest.get(at + 2..).unwrap_or_default();
                }
                false
            }
        }
    }

    fn place(&self, body: &[u8]) -> Placed {
        let plan = self.plan;
        match &plan.form {
            Form::Csv { delimiter, quote, escape, null } => plan.place(|at| {
                let (value, is_quoted) = csv_field(body, at, *delimiter, *quote, *escape)?;
                Some(Some(value).filter(|value| is_quoted || value != null))
            }),
            Form::Text { delimiter, null } => plan.place(|at| match text_field(body, at, *delimiter)? {
                field if field == null.as_slice() => Some(None),
                field if !field.contains(&b'\\') => Some(Some(Cow::Borrowed(field))),
                field => Some(Some(Cow::Owned(unescaped(field)?))),
            }),
            Form::Binary => Placed::Unreadable,
        }
    }

    fn binary(&mut self) -> Option<Row> {
        let everywhere = |bytes| Row { bytes, placed: Placed::Everywhere, lines: 0 };
        if self.is_over {
            return (!self.buf.is_empty()).then(|| everywhere(self.buf.split().freeze()));
        }
        if self.is_head {
            let head = self.buf.get(..BINARY_HEADER_LEN)?;
            let extension = (&head[15..]).get_u32() as usize;
            if !head.starts_with(SIGNATURE) {
                // PostgreSQL says what is wrong with it.
                self.is_over = true;
                return Some(everywhere(self.buf.split().freeze()));
            }
            if extension > limits::AUTH_MESSAGE_BYTES {
                return Some(Row { placed: Placed::Ambiguous, ..everywhere(self.buf.split().freeze()) });
            }
            if self.buf.len() < BINARY_HEADER_LEN + extension {
                return None;
            }
            self.is_head = false;
            return Some(everywhere(self.buf.split_to(BINARY_HEADER_LEN + extension).freeze()));
        }
        let mut rest = self.buf.as_ref();
        let fields = rest.try_get_i16().ok()?;
        if fields == -1 {
            self.is_over = true;
            return Some(Row { lines: 1, ..everywhere(self.buf.split_to(2).freeze()) });
        }
        let mut keys: Vec<Option<Option<&[u8]>>> = vec![None; self.plan.fields.len()];
        for at in 0..usize::try_from(fields).unwrap_or(0) {
            let len = rest.try_get_i32().ok()?;
            let value = match usize::try_from(len) {
                Err(_) => None,
                Ok(len) => {
                    let value = rest.get(..len)?;
                    rest.advance(len);
                    Some(value)
                }
            };
            if let Some(place) = self.plan.fields.iter().position(|field| *field == at) {
                keys[place] = Some(value);
            }
        }
        let len = self.buf.len() - rest.len();
        let placed = self.plan.place(|at| {
            let place = self.plan.fields.iter().position(|field| *field == at)?;
            keys.get(place).copied().flatten()
        });
        Some(Row { bytes: self.buf.split_to(len).freeze(), placed, lines: 1 })
    }
}

fn text_field(line: &[u8], field: usize, delimiter: u8) -> Option<&[u8]> {
    let (mut at, mut start, mut number) = (0, 0, 0);
    while at < line.len() {
        if line[at] == b'\\' {
            at += 2;
            continue;
        }
        if line[at] == delimiter {
            if number == field {
                return line.get(start..at);
            }
            (number, start) = (number + 1, at + 1);
        }
        at += 1;
    }
    (number == field).then(|| line.get(start..)).flatten()
}

/// What a field with backslashes means; `None` for escapes by number, which nobody writes for a shard key.
fn unescaped(field: &[u8]) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            value.push(byte);
            continue;
        }
        value.push(match bytes.next()? {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'x' | b'0'..=b'7' => return None,
            other => *other,
        });
    }
    Some(value)
}

fn csv_field(line: &[u8], field: usize, delimiter: u8, quote: u8, escape: u8) -> Option<(Vec<u8>, bool)> {
    let mut at = 0;
    for number in 0.. {
        let (mut value, mut is_quoted, mut in_quote) = (Vec::new(), false, false);
        while let Some(&byte) = line.get(at) {
            if in_quote {
                let next = line.get(at + 1).copied();
                if byte == escape && next.is_some_and(|next| next == escape || next == quote) {
                    value.extend(next);
                    at += 1;
                } else if byte == quote {
                    in_quote = false;
                } else {
                    value.push(byte);
                }
            } else if byte == delimiter {
                break;
            } else if byte == quote {
                (in_quote, is_quoted) = (true, true);
            } else {
                value.push(byte);
            }
            at += 1;
        }
        if number == field {
            return (!in_quote).then_some((value, is_quoted));
        }
        if at >= line.len() {
            return None;
        }
        at += 1;
    }
    None
}
