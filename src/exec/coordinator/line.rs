//! One connection of a statement that PostgreSQL merges: what it still owes, and how it is left clean.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;

use crate::error::Error;
use crate::exec::fanout::{Failure, Leg};
use crate::wire::frame::{Frame, Frames};
use crate::wire::writer;

/// How long a connection that is to come to rest may be silent before it is cancelled once more.
const CANCEL_AGAIN: Duration = Duration::from_millis(500);

/// A connection to a shard or to the coordinator.
#[derive(Debug)]
pub(in crate::exec) struct Line<'l, L> {
    leg: &'l mut L,
    /// ReadyForQuery that are still to come.
    owed: u32,
    /// Whether the last one said idle.
    is_idle: bool,
    /// Whether the server waits for COPY data.
    pub(super) is_copying: bool,
    is_broken: bool,
}

impl<'l, L: Leg> Line<'l, L> {
    pub(in crate::exec) fn new(leg: &'l mut L) -> Self {
        Self { leg, owed: 0, is_idle: true, is_copying: false, is_broken: false }
    }

    /// A connection that is drained, within a transaction.
    pub(super) fn within(leg: &'l mut L) -> Self {
        Self { is_idle: false, ..Self::new(leg) }
    }

    /// Where bytes for the server are queued.
    pub(in crate::exec) fn out(&mut self) -> &mut BytesMut {
        self.leg.queue()
    }

    /// Queues a statement.
    pub(in crate::exec) fn query(&mut self, sql: &str) {
        self.query_bytes(sql.as_bytes());
    }

    /// Queues a statement in whatever encoding.
    pub(super) fn query_bytes(&mut self, sql: &[u8]) {
        writer::query(self.leg.queue(), sql);
        self.owed += 1;
    }

    /// Queues Sync behind messages of the extended protocol.
    pub(in crate::exec) fn sync(&mut self) {
        writer::sync(self.leg.queue());
        self.owed += 1;
    }

    /// Whether everything that was asked has been answered.
    pub(in crate::exec) fn is_settled(&self) -> bool {
        self.owed == 0
    }

    /// Sends what is queued.
    pub(in crate::exec) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let flushed = self.leg.poll_flush(cx);
        flushed.map(|result| result.map_err(|error| self.lost(error)))
    }

    /// The next message; what is queued goes out meanwhile.
    pub(in crate::exec) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Failure>> {
        if let Poll::Ready(Err(failure)) = self.poll_flush(cx) {
            return Poll::Ready(Err(failure));
        }
        match self.leg.poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.lost(error))),
            Poll::Ready(Ok(frame)) => {
                if frame.tag() == b'Z' {
                    self.owed = self.owed.saturating_sub(1);
                    self.is_idle = frame.body() == b"I";
                }
                Poll::Ready(Ok(frame))
            }
        }
    }

    /// The next messages: of that type as many as are at hand, or one of another; what is queued goes out meanwhile.
    pub(super) fn poll_frames(&mut self, cx: &mut Context<'_>, tag: u8) -> Poll<Result<Frames, Failure>> {
        if let Poll::Ready(Err(failure)) = self.poll_flush(cx) {
            return Poll::Ready(Err(failure));
        }
        match self.leg.poll_frames(cx, tag) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.lost(error))),
            Poll::Ready(Ok(frames)) => {
                if let [b'Z', _, _, _, _, status] = frames.bytes[..] {
                    self.owed = self.owed.saturating_sub(1);
                    self.is_idle = status == b'I';
                }
                Poll::Ready(Ok(frames))
            }
        }
    }

    /// The next message; an ErrorResponse is a failure.
    pub(in crate::exec) async fn frame(&mut self) -> Result<Frame, Failure> {
        let frame = poll_fn(|cx| self.poll_frame(cx)).await?;
        if frame.tag() == b'E' { Err(Failure::Server(frame)) } else { Ok(frame) }
    }

    /// Reads until everything asked is answered, and hands every message on the way to `see`.
    pub(in crate::exec) async fn settle(&mut self, mut see: impl FnMut(&Frame)) -> Result<(), Failure> {
        while self.owed > 0 {
            let frame = self.frame().await?;
            see(&frame);
        }
        Ok(())
    }

    fn lost(&mut self, error: Error) -> Failure {
        self.is_broken = true;
        Failure::Own(error)
    }

    /// Whether it is idle and drained.
    pub(in crate::exec) fn is_at_rest(&self) -> bool {
        !self.is_broken && self.owed == 0 && self.is_idle && !self.is_copying
    }

    /// Whether it is drained, in whatever transaction.
    pub(super) fn has_stopped(&self) -> bool {
        !self.is_broken && self.owed == 0 && !self.is_copying
    }

    /// Ends whatever runs and throws everything away, but lets the transaction be.
    pub(super) async fn come_to_a_stop(&mut self) {
        if self.owed > 0 && !self.is_broken {
            self.leg.cancel().await;
        }
        if std::mem::take(&mut self.is_copying) {
            writer::message(self.leg.queue(), b'f', |out| writer::cstr(out, b"given up"));
        }
        if !self.is_broken {
            // A round trip lets a cancel pass that came too late for its statement.
            self.sync();
        }
        self.drain().await;
    }

    /// Ends whatever runs and the transaction, throwing everything away.
    pub(in crate::exec) async fn bring_to_rest(&mut self) {
        if self.owed > 0 && !self.is_broken {
            self.leg.cancel().await;
        }
        if std::mem::take(&mut self.is_copying) {
            writer::message(self.leg.queue(), b'f', |out| writer::cstr(out, b"given up"));
        }
        // The first round trip lets a cancel pass that came too late for its statement.
        for _ in 0..3 {
            if self.is_broken || self.is_at_rest() {
                return;
            }
            self.query("ROLLBACK");
            self.drain().await;
        }
    }

    async fn drain(&mut self) {
        while self.owed > 0 && !self.is_broken {
            match tokio::time::timeout(CANCEL_AGAIN, poll_fn(|cx| self.poll_frame(cx))).await {
                // CopyInResponse: what was to be copied is not.
                Ok(Ok(frame)) if frame.tag() == b'G' => {
                    writer::message(self.leg.queue(), b'f', |out| writer::cstr(out, b"given up"));
                }
                Ok(_) => {}
                // The first cancel may have come before the statement began: then PostgreSQL ignored it.
                Err(_) => self.leg.cancel().await,
            }
        }
    }
}
