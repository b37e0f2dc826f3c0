//! COPY into several shards: rows go on as they come, and one error at most comes back, with the line of the client's own data.

mod split;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use std::future::poll_fn;
use std::task::Poll;

pub use split::{Row, Splitter};

use crate::backend::server::ServerConn;
use crate::error::Error;
use crate::exec::scatter::Failure;
use crate::plan::distribute::{CopiedIn, Placed};
use crate::wire::frame::{Body, Frame};
use crate::wire::writer;

/// Rows of a shard that go in one message, and what a connection may have queued.
const MESSAGE_BYTES: usize = 32 * 1024;
const QUEUE_BYTES: usize = 128 * 1024;

/// Lines that are remembered, so that an error can name one.
const REMEMBERED_LINES: usize = 1 << 26;

/// In place of a shard's number: every shard has that line.
const ALL: u8 = u8::MAX;

/// A COPY under way. A connection on which something is left open is broken.
pub struct Spread<'a> {
    plan: &'a CopiedIn,
    splitter: Splitter<'a>,
    servers: Vec<&'a mut ServerConn>,
    pending: Vec<BytesMut>,
    /// Whose each line was.
    lines: Vec<u8>,
    /// The first line that nobody could place.
    unreadable: Option<usize>,
    /// Whether each server still owes its ReadyForQuery, and the error that it has told already.
    is_open: Vec<bool>,
    errors: Vec<Option<Frame>>,
}

impl<'a> Spread<'a> {
    /// Begins the COPY on all servers, one for each shard; the frame is their CopyInResponse.
    ///
    /// # Errors
    /// One of them would not; then none is left in it.
    pub async fn start(
        plan: &'a CopiedIn,
        sql: &[u8],
        mut servers: Vec<&'a mut ServerConn>,
    ) -> Result<(Self, Frame), Failure> {
        let answers = join_all(servers.iter_mut().map(|server| begin(server, sql))).await;
        let (mut response, mut failure) = (None, None);
        let is_open = answers.iter().map(|answer| matches!(answer, Ok(Ok(_)))).collect();
        for answer in answers {
            match answer {
                Ok(Ok(frame)) => response = Some(frame),
                Ok(Err(message)) => failure = failure.or(Some(Failure::Server(message, 2))),
                Err(error) => failure = Some(Failure::Own(error)),
            }
        }
        let pending = servers.iter().map(|_| BytesMut::new()).collect();
        let errors = servers.iter().map(|_| None).collect();
        let splitter = Splitter::new(plan);
        let spread = Self { plan, splitter, servers, pending, lines: Vec::new(), unreadable: None, is_open, errors };
        match (failure, response) {
            (None, Some(frame)) => Ok((spread, frame)),
            (failure, _) => {
                spread.give_up("another shard refused it").await;
                Err(failure.unwrap_or_else(|| Failure::Own(Error::internal("a COPY without servers"))))
            }
        }
    }

    /// Takes more of the client's data. False if the rest is of no use: something has failed.
    ///
    /// # Errors
    /// A server was lost, or a row is too long.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        self.splitter.push(bytes);
        while let Some(row) = self.splitter.next_row()? {
            if !self.take(&row).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn take(&mut self, row: &Row) -> Result<bool, Error> {
        let (from, to, whose) = match row.placed {
            Placed::On(shard) => (shard, shard + 1, u8::try_from(shard).unwrap_or(ALL - 1)),
            Placed::Everywhere => (0, self.servers.len(), ALL),
            Placed::Unreadable => {
                self.unreadable.get_or_insert(self.lines.len() + 1);
                (0, 1, 0)
            }
            // A shard that has had no line yet would take other ends of line for its own.
            Placed::Ambiguous => {
                self.unreadable.get_or_insert(self.lines.len() + 1);
                (0, 0, 0)
            }
        };
        let known = (row.lines as usize).min(REMEMBERED_LINES.saturating_sub(self.lines.len()));
        self.lines.extend(std::iter::repeat_n(whose, known));
        for shard in from..to {
            let Some(pending) = self.pending.get_mut(shard) else { continue };
            pending.extend_from_slice(&row.bytes);
            if pending.len() >= MESSAGE_BYTES && !self.send(shard).await? {
                return Ok(false);
            }
        }
        Ok(self.unreadable.is_none())
    }

    /// Sends what is pending for a shard; false if it has failed.
    async fn send(&mut self, shard: usize) -> Result<bool, Error> {
        let (Some(server), Some(pending)) = (self.servers.get_mut(shard), self.pending.get_mut(shard)) else {
            return Ok(true);
        };
        if !pending.is_empty() {
            writer::message(server.queue(), b'd', |out| out.put_slice(pending));
            pending.clear();
        }
        if server.queue().len() < QUEUE_BYTES {
            return Ok(true);
        }
        // What a server does not take waits here, and so does the client.
        server.flush().await?;
        match poll_fn(|cx| Poll::Ready(server.poll_frame(cx))).await {
            Poll::Ready(frame) => {
                let frame = frame?;
                let has_failed = frame.tag() == b'E';
                if let (true, Some(told)) = (has_failed, self.errors.get_mut(shard)) {
                    *told = Some(frame);
                }
                Ok(!has_failed)
            }
            Poll::Pending => Ok(true),
        }
    }

    /// The client has no more.
    ///
    /// # Errors
    /// A shard's error with the line of the client's data, or a key that nobody could read.
    pub async fn finish(mut self) -> Result<u64, Failure> {
        if self.unreadable.is_none()
            && let Some(row) = self.splitter.rest()
        {
            self.take(&row).await.map_err(Failure::Own)?;
        }
        for (server, pending) in self.servers.iter_mut().zip(&mut self.pending) {
            if !pending.is_empty() {
                writer::message(server.queue(), b'd', |out| out.put_slice(pending));
            }
            writer::message(server.queue(), b'c', |_| {});
        }
        let answers = self.end().await;
        let (mut counts, mut first) = (Vec::new(), None::<(usize, Frame)>);
        for (shard, answer) in answers.into_iter().enumerate() {
            match answer.map_err(Failure::Own)? {
                Ok(count) => counts.push(count),
                Err(frame) => {
                    let (line, frame) = self.located(shard, frame);
                    if first.as_ref().is_none_or(|(known, _)| line < *known) {
                        first = Some((line, frame));
                    }
                }
            }
        }
        if let Some((_, frame)) = first {
            return Err(Failure::Server(frame.bytes, 2));
        }
        if let Some(line) = self.unreadable {
            let what = format!("COPY over several shards cannot read the shard key in line {line}");
            let hint = "Write it as the column shows it, in ISO form, all lines with the same end (a newline), and \\. on a line of its own.";
            return Err(Failure::Own(Error::refused(what).hint(hint)));
        }
        if !self.plan.is_everywhere() {
            return Ok(counts.iter().sum());
        }
        match counts.first() {
            Some(first) if counts.iter().all(|count| count == first) => Ok(*first),
            _ => Err(Failure::Own(Error::internal("shards have copied different numbers of rows"))),
        }
    }

    /// Ends it everywhere without a result.
    pub async fn give_up(mut self, why: &str) {
        for server in &mut self.servers {
            writer::message(server.queue(), b'f', |out| writer::cstr(out, why.as_bytes()));
        }
        self.end().await;
    }

    /// Reads every server to the end of its COPY. `Err` inside is its ErrorResponse.
    async fn end(&mut self) -> Vec<Result<Result<u64, Frame>, Error>> {
        let told = self.errors.iter_mut().map(Option::take);
        let each = self.servers.iter_mut().zip(&self.is_open).zip(told);
        let ended = join_all(each.map(|((server, is_open), told)| end(server, *is_open, told))).await;
        for (server, ended) in self.servers.iter_mut().zip(&ended) {
            if ended.is_err() {
                server.mark_broken();
            }
        }
        ended
    }

    /// The error with the line of the client's data in place of the shard's own.
    fn located(&self, shard: usize, frame: Frame) -> (usize, Frame) {
        let context = context_of(&frame);
        let Some((before, number, behind)) = context.as_deref().and_then(line_in) else { return (usize::MAX, frame) };
        let mut left = number;
        let is_its = |&&whose: &&u8| whose == ALL || usize::from(whose) == shard;
        let at = self.lines.iter().enumerate().filter(|(_, whose)| is_its(whose)).find(|_| {
            left -= 1;
            left == 0
        });
        let Some((at, _)) = at else { return (usize::MAX - 1, frame) };
        let context = format!("{before}{}{behind}", at + 1);
        (at + 1, with_context(&frame, &context))
    }
}

/// `COPY t, line 3, column a: "x"`: what stands around the number.
fn line_in(context: &str) -> Option<(&str, usize, &str)> {
    let start = context.starts_with("COPY ").then(|| context.find(", line "))?? + ", line ".len();
    let rest = &context[start..];
    let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let number: usize = rest[..len].parse().ok().filter(|&number| number > 0)?;
    Some((&context[..start], number, &rest[len..]))
}

fn context_of(frame: &Frame) -> Option<String> {
    let mut body = Body::new(frame.body());
    while let Some(code) = body.u8().filter(|&code| code != 0) {
        let text = body.cstr()?;
        if code == b'W' {
            return Some(String::from_utf8_lossy(text).into_owned());
        }
    }
    None
}

fn with_context(frame: &Frame, context: &str) -> Frame {
    let mut bytes = BytesMut::new();
    writer::message(&mut bytes, b'E', |out| {
        let mut body = Body::new(frame.body());
        while let Some(code) = body.u8().filter(|&code| code != 0) {
            let Some(text) = body.cstr() else { break };
            out.put_u8(code);
            writer::cstr(out, if code == b'W' { context.as_bytes() } else { text });
        }
        out.put_u8(0);
    });
    Frame { bytes: bytes.freeze() }
}

/// `Err` inside is the server's ErrorResponse; then the server is idle in its failed transaction.
async fn begin(server: &mut ServerConn, sql: &[u8]) -> Result<Result<Frame, Bytes>, Error> {
    server.take_over();
    server.unnamed = None;
    writer::query(server.queue(), sql);
    server.flush().await?;
    let mut refused = None;
    loop {
        let frame = server.read_frame().await?;
        server.note(&frame);
        match frame.tag() {
            b'G' => return Ok(Ok(frame)),
            b'E' => refused = Some(frame.bytes),
            b'Z' => return Ok(refused.map_or_else(|| Err(Bytes::new()), Err)),
            _ => {}
        }
    }
}

/// Reads to the end of the COPY.
async fn end(server: &mut ServerConn, is_open: bool, told: Option<Frame>) -> Result<Result<u64, Frame>, Error> {
    if !is_open {
        // What it is sent now it takes for what is left of a COPY that has failed.
        server.flush().await?;
        server.hand_back();
        return Ok(Ok(0));
    }
    server.flush().await?;
    let (mut count, mut refused) = (0, told);
    loop {
        let frame = server.read_frame().await?;
        server.note(&frame);
        match frame.tag() {
            b'C' => {
                let tag = String::from_utf8_lossy(frame.body()).into_owned();
                count = tag.trim_end_matches('\0').strip_prefix("COPY ").and_then(|n| n.parse().ok()).unwrap_or(0);
            }
            b'E' => refused = refused.or(Some(frame)),
            b'Z' => break,
            _ => {}
        }
    }
    server.hand_back();
    Ok(refused.map_or(Ok(count), Err))
}

#[cfg(test)]
mod tests {
    use super::line_in;

    #[test]
    fn the_line_of_an_error_is_found() {
        assert_eq!(line_in("COPY t, line 31, column a: \"x\""), Some(("COPY t, line ", 31, ", column a: \"x\"")));
        assert_eq!(line_in("COPY t, line 7"), Some(("COPY t, line ", 7, "")));
        assert_eq!(line_in("SQL function \"f\", line 3"), None);
    }
}
