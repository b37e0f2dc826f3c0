//! One turn: a message of the client's is handled, then bytes move until there is another.

use std::future::{Future, poll_fn};
use std::task::Poll;

use bytes::Buf;
use tokio::time::{Duration, Instant};

use super::Session;
use crate::error::Error;
use crate::exec::relay::{self, Event};
use crate::limits;
use crate::telemetry::metrics::PlanClass;
use crate::wire::frame::{self, Frame};
use crate::wire::writer::TransactionStatus;

/// Bytes of a Bind beyond which it is passed on as it comes instead of being held.
const STREAMED_BIND_BYTES: usize = 256 * 1024;
/// How long a server may take to act on the cancel that a timeout sent it.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

impl Session {
    /// Handles messages until the client leaves.
    pub(super) async fn serve(&mut self) -> Result<(), Error> {
        loop {
            while self.may_take_more()
                && let Some(frame) = self.next_frame().await?
            {
                if frame.tag() == b'X' {
                    return Ok(());
                }
                if let Err(error) = self.handle(frame).await {
                    self.fail(error).await?;
                }
            }
            if !self.wait(true).await? {
                return Ok(());
            }
        }
    }

    /// Whether the queue to the server is short enough for another message.
    fn may_take_more(&mut self) -> bool {
        self.server.as_mut().is_none_or(|attached| attached.lease.server().outbuf.len() < limits::SERVER_QUEUE_BYTES)
    }

    /// The client's next whole message, if it is there. Large COPY data and Binds are passed on as they come.
    async fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if self.passing > 0 {
                self.pass_on();
                if self.passing > 0 {
                    return Ok(None);
                }
                self.release_if_late().await?;
            }
            let header = match frame::peek(&self.client.inbuf, limits::MESSAGE_BYTES) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(None),
                Err(error) => return Err(Error::protocol(error.to_string())),
            };
            if header.tag == b'd' {
                self.begin_copy_data(header.total);
                continue;
            }
            if self.client.inbuf.len() >= header.total {
                return Ok(Some(Frame { bytes: self.client.inbuf.split_to(header.total).freeze() }));
            }
            if header.tag == b'B'
                && header.total > STREAMED_BIND_BYTES
                && self.client.inbuf.len() >= limits::READ_CHUNK_BYTES
            {
                self.stream_bind(header).await?;
                continue;
            }
            let limit = match header.tag {
                b'Q' | b'P' => limits::STATEMENT_BYTES,
                b'B' | b'F' => limits::MESSAGE_BYTES,
                _ => limits::AUTH_MESSAGE_BYTES,
            };
            if header.total > limit {
                return Err(super::failure::too_long(header, limit));
            }
            return Ok(None);
        }
    }

    /// COPY data go to a server that takes them, or that may be about to: not every driver waits until it is asked. Outside
    /// COPY PostgreSQL ignores them (an error may have ended it before the client knew), and so do we.
    fn begin_copy_data(&mut self, total: usize) {
        self.passing = total;
        if let Some(server) = self.held_server()
            && (server.copying_in || !server.expects.is_empty())
        {
            server.unfinished = total;
        }
    }

    /// Moves bytes of a message that nobody must look at: to the server that has its beginning, or nowhere.
    fn pass_on(&mut self) {
        let step = self.passing.min(self.client.inbuf.len());
        if let Some(attached) = &mut self.server {
            let server = attached.lease.server();
            if server.unfinished > 0 {
                server.outbuf.extend_from_slice(&self.client.inbuf[..step]);
                server.unfinished -= step;
            }
        }
        self.client.inbuf.advance(step);
        self.passing -= step;
    }

    /// A server that was at rest but for the end of a message, which has come now.
    async fn release_if_late(&mut self) -> Result<(), Error> {
        if self.status != TransactionStatus::Idle || !self.held_server().is_some_and(|server| server.is_at_rest()) {
            return Ok(());
        }
        if let Some(server) = self.held_server() {
            server.flush().await?;
        }
        self.release_if_at_rest().await
    }

    async fn handle(&mut self, frame: Frame) -> Result<(), Error> {
        self.in_extended = !matches!(frame.tag(), b'Q' | b'F' | b'c' | b'f');
        if self.held_server().is_none_or(|server| server.expects.is_empty()) {
            self.since = Instant::now();
            self.timed_out = false;
        }
        match frame.tag() {
            b'Q' => self.on_query(frame).await,
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'F' if self.skipping => Ok(()),
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'S' if self.db.is_planned() => self.hold(frame).await,
            b'S' => self.on_sync(frame).await,
            b'P' => self.on_parse(frame).await,
            b'B' => self.on_bind(frame).await,
            b'D' => self.on_describe(frame).await,
            b'E' => self.on_execute(frame).await,
            b'C' => self.on_close(frame),
            b'H' => self.on_flush(frame).await,
            b'F' => self.on_function_call(frame).await,
            b'c' | b'f' => {
                self.on_copy_end(&frame);
                Ok(())
            }
            tag => Err(Error::protocol(format!("invalid frontend message type {tag}"))),
        }
    }

    /// The client has no more COPY data.
    fn on_copy_end(&mut self, frame: &Frame) {
        if let Some(attached) = &mut self.server {
            let server = attached.lease.server();
            if server.copying_in {
                server.outbuf.extend_from_slice(&frame.bytes);
                server.copying_in = false;
            } else if !server.expects.is_empty() {
                server.outbuf.extend_from_slice(&frame.bytes);
                server.expects.copy_ended_early();
            }
        }
    }

    /// Moves bytes until something happened, and acts on it. Returns false when the client is gone.
    pub(super) async fn wait(&mut self, read_client: bool) -> Result<bool, Error> {
        let mut seen = std::mem::take(&mut self.seen);
        let deadline = self.deadline();
        let may_be_sent_away = read_client && self.server.is_none() && self.status == TransactionStatus::Idle;
        let moved = poll_fn(|cx| {
            if may_be_sent_away && self.drain.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(super::failure::shutting_down()));
            }
            let server = self.server.as_mut().map(|attached| attached.lease.server());
            relay::poll(cx, &mut self.client, server, &mut seen, read_client)
        });
        let event = match deadline {
            None => Some(moved.await),
            Some(at) => tokio::time::timeout_at(at, moved).await.ok(),
        };
        self.seen = seen;
        let Some(event) = event else { return self.on_deadline().await.map(|()| true) };
        let event = event?;
        self.absorb().await?;
        match event {
            Event::FromClient | Event::FromServer => Ok(true),
            Event::ClientGone => Ok(false),
            Event::ServerGone => Err(super::failure::server_gone()),
        }
    }

    /// When the present state has lasted too long, if the configuration sets a limit to it.
    fn deadline(&mut self) -> Option<Instant> {
        let pool = &self.db.config.pool;
        let running = self.server.as_mut().is_some_and(|attached| !attached.lease.server().expects.is_empty());
        let limit = match (running, self.status) {
            (true, _) if self.timed_out => pool.query_timeout.map(|limit| limit + CANCEL_GRACE),
            (true, _) => pool.query_timeout,
            (false, TransactionStatus::Idle) => pool.client_idle_timeout,
            (false, _) => pool.idle_transaction_timeout,
        };
        limit.map(|limit| self.since + limit)
    }

    /// The present state has lasted too long: a statement is cancelled, an idle client is sent away.
    async fn on_deadline(&mut self) -> Result<(), Error> {
        let running = self.held_server().is_some_and(|server| !server.expects.is_empty());
        match (running, self.status) {
            (true, _) if self.timed_out => Err(super::failure::server_does_not_cancel()),
            (true, _) => {
                self.timed_out = true;
                self.cancel.slot.fire().await;
                Ok(())
            }
            (false, TransactionStatus::Idle) => Err(super::failure::idle_too_long()),
            (false, _) => Err(super::failure::idle_in_transaction_too_long()),
        }
    }

    /// Acts on what the server said.
    async fn absorb(&mut self) -> Result<(), Error> {
        if self.seen.errors > 0 {
            self.errors_in_turn += std::mem::take(&mut self.seen.errors);
            self.must_discard |= std::mem::take(&mut self.seen.stale_plan);
            for name in std::mem::take(&mut self.seen.consequences.lost_names) {
                self.forget_statement(&name);
            }
        }
        for (name, _) in self.seen.reported.drain(..) {
            self.settings.note_reported(&name);
        }
        if std::mem::take(&mut self.seen.hidden_ready) {
            self.after_hidden_ready().await?;
        }
        let Some(status) = self.seen.ready.take() else { return Ok(()) };
        self.since = Instant::now();
        if self.seen.hidden_error.take().is_some() {
            return Err(Error::internal("the server refused a statement of pgherd's own").fatal());
        }
        self.status = status;
        let class = match self.server.as_ref().map(|attached| attached.target) {
            Some(super::context::Target::Shard(_)) => PlanClass::Shard,
            _ => PlanClass::Primary,
        };
        self.note_statement(class);
        let succeeded = std::mem::take(&mut self.errors_in_turn) == 0;
        self.note_turn_outcome(succeeded);
        if status == TransactionStatus::Idle {
            self.db.metrics.transactions.inc();
            self.transaction_is_over();
            self.settle_writes();
            self.release_if_at_rest().await?;
        }
        Ok(())
    }

    /// A ReadyForQuery came that the client knows nothing of: after a lazy BEGIN, or after a Flush that became a Sync.
    async fn after_hidden_ready(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.hidden_sync) {
            self.skipping |= std::mem::take(&mut self.errors_in_turn) > 0;
            if let Some(attached) = &mut self.server {
                self.status = attached.lease.server().status;
            }
        }
        if self.status == TransactionStatus::Idle { self.release_if_at_rest().await } else { Ok(()) }
    }

    /// `DISCARD ALL` and `DEALLOCATE ALL` have worked, or have not.
    fn note_turn_outcome(&mut self, succeeded: bool) {
        let statements = std::mem::take(&mut self.forgets_statements);
        let pins = std::mem::take(&mut self.forgets_pins);
        if !succeeded {
            // What part of the string had run is not known.
            self.must_discard |= statements;
            return;
        }
        if statements {
            self.named.clear();
            self.unnamed = None;
            if let Some(attached) = &mut self.server {
                attached.lease.server().held.clear();
            }
        }
        if pins {
            self.pins.clear();
        }
    }

    /// Waits until the server has answered everything, so that an answer of pgherd's own comes in its turn.
    pub(super) async fn wait_for_answers(&mut self) -> Result<(), Error> {
        while let Some(attached) = &mut self.server
            && !attached.lease.server().expects.is_empty()
        {
            if !self.wait(false).await? {
                return Err(super::failure::client_gone());
            }
        }
        Ok(())
    }
}
