//! A leg without a connection: what a shard said before, said once more.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use super::Leg;
use crate::error::Error;
use crate::limits;
use crate::wire::frame::{self, Frame, Frames};

const IN_TRANSACTION: &[u8] = b"Z\0\0\0\x05T";
const IDLE: &[u8] = b"Z\0\0\0\x05I";
const PARSED: &[u8] = b"1\0\0\0\x04";
const BOUND: &[u8] = b"2\0\0\0\x04";

/// See the module's description. It answers whatever it is sent as a shard would that runs the statement in a transaction of its own.
#[derive(Debug)]
pub struct Replay {
    /// RowDescription of the statement, DataRows, CommandComplete.
    answer: Bytes,
    description_len: usize,
    said: Said,
    /// How much of the answer has been given.
    at: usize,
    /// What is sent goes nowhere.
    queue: BytesMut,
}

/// What was said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    Begun,
    Parsed,
    Described,
    Bound,
    All,
}

impl Replay {
    /// Of an answer whose first `description_len` bytes are its RowDescription; it is not copied.
    pub fn new(answer: Bytes, description_len: usize) -> Self {
        let description_len = description_len.min(answer.len());
        Self { answer, description_len, said: Said::Nothing, at: 0, queue: BytesMut::new() }
    }

    fn next(&mut self) -> Result<Frames, Error> {
        let (said, bytes) = match self.said {
            Said::Nothing => (Said::Begun, Bytes::from_static(IN_TRANSACTION)),
            Said::Begun => (Said::Parsed, Bytes::from_static(PARSED)),
            Said::Parsed => {
                self.at = self.description_len;
                (Said::Described, self.answer.slice(..self.at))
            }
            Said::Described => (Said::Bound, Bytes::from_static(BOUND)),
            Said::Bound => return self.rows(),
            Said::All => (Said::All, Bytes::from_static(IDLE)),
        };
        self.said = said;
        Ok(Frames { bytes, count: 1 })
    }

    /// The next DataRows, some at a time, or what ends them.
    fn rows(&mut self) -> Result<Frames, Error> {
        let from = self.at;
        let mut count = 0;
        while self.at - from < limits::READ_CHUNK_BYTES {
            let rest = self.answer.get(self.at..).unwrap_or_default();
            let Ok(Some(header)) = frame::peek(rest, usize::MAX) else {
                return Err(Error::internal("an answer that was kept has no end"));
            };
            if header.tag != b'D' && count > 0 {
                break;
            }
            if header.total > rest.len() {
                return Err(Error::internal("an answer that was kept is cut off"));
            }
            self.at += header.total;
            count += 1;
            if header.tag != b'D' {
                self.said = Said::All;
                break;
            }
        }
        Ok(Frames { bytes: self.answer.slice(from..self.at), count })
    }
}

impl Leg for Replay {
    fn queue(&mut self) -> &mut BytesMut {
        &mut self.queue
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.queue.clear();
        Poll::Ready(Ok(()))
    }

    /// Whoever reads one message at a time waits for the end: it comes at once.
    fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Frame, Error>> {
        self.said = Said::All;
        Poll::Ready(Ok(Frame { bytes: Bytes::from_static(IDLE) }))
    }

    fn poll_frames(&mut self, _cx: &mut Context<'_>, _tag: u8) -> Poll<Result<Frames, Error>> {
        Poll::Ready(self.next())
    }

    fn is_kept(&self) -> bool {
        true
    }

    fn rewind(&mut self) {
        (self.said, self.at) = (Said::Nothing, 0);
        self.queue.clear();
    }

    fn cancel(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;
    use crate::wire::writer;

    fn answer(rows: usize, row_bytes: usize) -> (Bytes, usize) {
        let mut out = BytesMut::new();
        writer::message(&mut out, b'T', |out| out.put_u16(0));
        let description_len = out.len();
        for _ in 0..rows {
            writer::message(&mut out, b'D', |out| out.put_bytes(7, row_bytes));
        }
        writer::command_complete(&mut out, &format!("SELECT {rows}"));
        (out.freeze(), description_len)
    }

    fn tags(replay: &mut Replay, until: usize) -> (Vec<u8>, usize, usize) {
        let (mut tags, mut rows, mut most) = (Vec::new(), 0, 0);
        while tags.len() < until {
            let frames = replay.next().expect("frames");
            let tag = frames.bytes[0];
            assert_eq!(frames.bodies().count(), frames.count);
            if tag == b'D' {
                rows += frames.count;
                most = most.max(frames.bytes.len());
            }
            if tag != b'D' || tags.last() != Some(&b'D') {
                tags.push(tag);
            }
        }
        (tags, rows, most)
    }

    #[test]
    fn it_says_what_a_shard_says() {
        for (rows, row_bytes) in [(0, 0), (1, 10), (5000, 100)] {
            let (bytes, description_len) = answer(rows, row_bytes);
            let mut replay = Replay::new(bytes, description_len);
            let wanted: &[u8] = if rows == 0 { b"Z1T2CZZ" } else { b"Z1T2DCZZ" };
            let (said, seen, most) = tags(&mut replay, wanted.len());
            assert_eq!((said.as_slice(), seen), (wanted, rows));
            assert!(most < limits::READ_CHUNK_BYTES + row_bytes + 10, "{most}");
        }
    }

    #[test]
    fn what_was_cut_off_is_an_error() {
        let (bytes, description_len) = answer(3, 10);
        let mut replay = Replay::new(bytes.slice(..bytes.len() - 20), description_len);
        let mut steps = (0..10).map(|_| replay.next());
        assert!(steps.any(|step| step.is_err()));
    }
}
