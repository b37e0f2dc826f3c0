//! One turn: a message of the client's is handled, then bytes move until there is another.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Buf;
use tokio::time::{Duration, Instant};

use super::{Served, Session};
use crate::config::model::PoolMode;
use crate::error::Error;
use crate::exec::relay::{self, Event};
use crate::limits;
use crate::telemetry::metrics::PlanClass;
use crate::wire::frame::{self, Frame};
use crate::wire::writer::{self, TransactionStatus};

/// Bytes of a Bind beyond which it is passed on as it comes instead of being held.
const STREAMED_BIND_BYTES: usize = 256 * 1024;
/// How long a server may take to act on the cancel that a timeout sent it.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

impl Session {
    /// Handles messages until the client leaves.
    pub(super) async fn serve(&mut self) -> Result<Served, Error> {
        loop {
            while self.may_take_more() {
                let gone = match self.answered_before() {
                    Some(request) => Box::pin(self.answer_at_once(request)).await,
                    None => self.go_by_express().await,
                };
                match gone {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => {
                        Box::pin(self.fail(error)).await?;
                        continue;
                    }
                }
                if self.client.inbuf.is_empty() {
                    break;
                }
                // Boxed, as is all that is not done for every statement: an idle client keeps no room for it.
                let frame = match self.small_frame() {
                    Some(frame) => Some(frame),
                    None => Box::pin(self.next_frame()).await?,
                };
                let Some(frame) = frame else { break };
                if frame.tag() == b'X' {
                    self.has_said_goodbye = true;
                    return Ok(Served::ClientLeft);
                }
                if let Err(error) = Box::pin(self.handle(frame)).await {
                    Box::pin(self.fail(error)).await?;
                }
            }
            if self.surplus.is_any() && self.is_free_to_move() && self.surplus.take() {
                return Ok(Served::Moves);
            }
            if !self.wait(true).await? {
                return Ok(Served::ClientLeft);
            }
        }
    }

    /// Whether nothing of this session is under way on this thread.
    fn is_free_to_move(&self) -> bool {
        self.server.is_none()
            && self.status == TransactionStatus::Idle
            && self.passing == 0
            && self.flight.is_empty()
            && self.client.inbuf.is_empty()
            && self.client.stream.can_move()
    }

    /// Whether the queue to the server is short enough for another message.
    fn may_take_more(&mut self) -> bool {
        let server = self.server.as_mut().map(|attached| attached.lease.server());
        if let Some(server) = server
            && server.expects.len() >= limits::SERVER_QUEUE_MESSAGES
        {
            // Its answers may lie in its own buffer until it is asked for them.
            if server.expects.is_unsynced() && server.outbuf.is_empty() {
                writer::flush(&mut server.outbuf);
            }
            return false;
        }
        let server = self.server.as_mut().map(|attached| &*attached.lease.server());
        !relay::is_stuck(&self.client, server)
    }

    /// Waits until it is known whether the server takes COPY data: a client may send it without having been asked.
    async fn settle_copy(&mut self) -> Result<(), Error> {
        let mut flushed = false;
        while let Some(server) = self.held_server()
            && !server.copying_in
            && !server.expects.is_skipping()
            && server.expects.may_start_copy()
        {
            if !flushed && server.expects.is_unsynced() {
                writer::flush(&mut server.outbuf);
                flushed = true;
            }
            if !self.wait(false).await? {
                return Err(super::failure::client_gone());
            }
        }
        Ok(())
    }

    /// The client's next message, if it is there as a whole and no part of a COPY.
    fn small_frame(&mut self) -> Option<Frame> {
        let header = frame::peek(&self.client.inbuf, limits::AUTH_MESSAGE_BYTES).ok()??;
        let is_here = self.passing == 0 && self.client.inbuf.len() >= header.total;
        let is_plain = is_here && !matches!(header.tag, b'd' | b'c' | b'f');
        is_plain.then(|| Frame { bytes: self.client.inbuf.split_to(header.total).freeze() })
    }

    /// The client's next whole message, if it is there. Large COPY data and Binds are passed on as they come.
    async fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if self.passing > 0 {
                self.pass_on();
                if self.passing > 0 {
                    return Ok(None);
                }
                if self.status == TransactionStatus::Idle
                    && let Some(server) = self.held_server()
                    && server.is_at_rest()
                {
                    // The COPY has failed while its last message was still on its way.
                    server.flush().await?;
                    self.release_if_at_rest(Instant::now()).await?;
                }
            }
            let header = match frame::peek(&self.client.inbuf, limits::MESSAGE_BYTES) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(None),
                Err(error) => return Err(Error::protocol(error.to_string())),
            };
            if matches!(header.tag, b'd' | b'c' | b'f') {
                self.flight_must_be_relayed().await?;
                self.settle_copy().await?;
            }
            if header.tag == b'd' {
                self.passing = header.total;
                // COPY data outside COPY is ignored by PostgreSQL too: an error may have ended it before the client knew.
                self.passing_to_server = self.held_server().is_some_and(|server| server.copying_in);
                continue;
            }
            if self.client.inbuf.len() >= header.total {
                return Ok(Some(Frame { bytes: self.client.inbuf.split_to(header.total).freeze() }));
            }
            // Where a shard key may be among its values, it is looked at as a whole.
            let is_distributed = self.db.config.is_distributed();
            if header.tag == b'B'
                && header.total > if is_distributed { limits::BIND_BYTES } else { STREAMED_BIND_BYTES }
                && self.client.inbuf.len() >= limits::READ_CHUNK_BYTES
            {
                self.stream_bind(header).await?;
                continue;
            }
            let limit = match header.tag {
                b'Q' | b'P' => limits::STATEMENT_BYTES,
                b'B' => limits::MESSAGE_BYTES,
                b'F' => limits::BIND_BYTES,
                _ => limits::AUTH_MESSAGE_BYTES,
            };
            if header.total > limit {
                return Err(super::failure::too_long(header, limit));
            }
            return Ok(None);
        }
    }

    /// Moves bytes of a message that nobody must look at: to the server, or nowhere.
    fn pass_on(&mut self) {
        let step = self.passing.min(self.client.inbuf.len());
        // What has begun to go to a server must go there to its end, or the server would take what follows for the rest of it.
        if self.passing_to_server
            && let Some(attached) = &mut self.server
        {
            let server = attached.lease.server();
            server.outbuf.extend_from_slice(&self.client.inbuf[..step]);
            server.unfinished = self.passing - step;
        }
        self.client.inbuf.advance(step);
        self.passing -= step;
        self.passing_to_server &= self.passing > 0;
    }

    async fn handle(&mut self, frame: Frame) -> Result<(), Error> {
        self.in_extended = !matches!(frame.tag(), b'Q' | b'F' | b'c' | b'f');
        if self.held_server().is_none_or(|server| server.expects.is_empty()) {
            self.since = Instant::now();
            self.timed_out = false;
        }
        if matches!(frame.tag(), b'Q' | b'F') {
            self.flight_goes_first().await?;
        }
        let skipping = self.skipping || self.held_server().is_some_and(|server| server.expects.is_skipping());
        match frame.tag() {
            // After an error in the extended protocol PostgreSQL drops everything up to the Sync, a Query included.
            b'Q' | b'F' if skipping => Ok(()),
            b'Q' => self.on_query(frame).await,
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'F' if self.skipping => Ok(()),
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'S' if self.db.is_planned() || self.may_ask_route(&frame) => {
                self.hold(frame).await
            }
            b'S' => self.on_sync(frame).await,
            b'P' => self.on_parse(frame).await,
            b'B' => self.on_bind(frame).await,
            b'D' => self.on_describe(frame).await,
            b'E' => self.on_execute(frame).await,
            b'C' => self.on_close(frame).await,
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
            }
        }
    }

    /// Moves bytes until something happened, and acts on it. Returns false when the client is gone.
    pub(super) async fn wait(&mut self, read_client: bool) -> Result<bool, Error> {
        let deadline = self.deadline();
        let may_be_sent_away = read_client
            && self.status == TransactionStatus::Idle
            && self.held_server().is_none_or(|server| server.is_at_rest());
        let event = poll_fn(|cx| {
            if may_be_sent_away && self.drain.has_begun() {
                return Poll::Ready(Some(Err(super::failure::shutting_down())));
            }
            if self.listening.is_some()
                && let Poll::Ready(error) = self.poll_notifications(cx, may_be_sent_away)
            {
                return Poll::Ready(Some(Err(error)));
            }
            let server = self.server.as_mut().map(|attached| attached.lease.server());
            let moved = relay::poll(cx, &mut self.client, server, &mut self.seen, read_client);
            let is_answered = moved.is_ready() && self.seen.ready.is_some() && self.seen.reported.is_empty();
            if is_answered && self.listening.is_none() && self.needs_no_care() {
                // Before anything else is done: from the server's buffer, without a copy.
                let server = self.server.as_mut().map(|attached| attached.lease.server());
                relay::hand_over(cx, &mut self.client, server);
            }
            if self.listening.is_some() && moved.is_pending() && self.has_more_to_tell(may_be_sent_away) {
                cx.waker().wake_by_ref();
            }
            match (moved, deadline) {
                (Poll::Ready(event), _) => Poll::Ready(Some(event)),
                (Poll::Pending, Some(at)) => self.alarm.poll_at(at, cx).map(|()| None),
                (Poll::Pending, None) => Poll::Pending,
            }
        })
        .await;
        let Some(event) = event else { return Box::pin(self.on_deadline()).await.map(|()| true) };
        let event = event?;
        self.absorb().await?;
        match event {
            Event::FromClient | Event::FromServer => Ok(true),
            Event::ClientGone => Ok(false),
            // The client has been told by the server itself.
            Event::ServerGone if self.seen.farewell => Err(super::failure::server_said_why()),
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
        let deadline = limit.map(|limit| self.since + limit);
        if self.pinned.is_none() || running || self.status != TransactionStatus::Idle {
            return deadline;
        }
        deadline.into_iter().chain(self.pinned_until()).min()
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
            (false, TransactionStatus::Idle) if self.pinned_until().is_some_and(|at| at <= Instant::now()) => {
                Err(self.pinned_too_long())
            }
            (false, TransactionStatus::Idle) => Err(super::failure::idle_too_long()),
            (false, _) => Err(super::failure::idle_in_transaction_too_long()),
        }
    }

    /// Acts on what the server said.
    async fn absorb(&mut self) -> Result<(), Error> {
        self.seen.calls = false;
        let mut errors_of_turns = 0;
        if self.seen.errors > 0 || self.seen.errors_of_turns > 0 || self.errors_in_turn > 0 {
            self.tell_statement_errors()?;
            if self.seen.ready.is_some() {
                errors_of_turns = std::mem::take(&mut self.errors_in_turn);
            }
            errors_of_turns += std::mem::take(&mut self.seen.errors_of_turns);
            self.errors_in_turn += std::mem::take(&mut self.seen.errors);
        }
        for lost in std::mem::take(&mut self.seen.consequences.lost_names) {
            self.lose_statement(&lost);
        }
        for (name, _) in self.seen.reported.drain(..) {
            self.settings.note_reported(&name);
        }
        if let Some(said) = self.seen.hidden_error.take() {
            return Err(super::failure::not_begun(&said));
        }
        if std::mem::take(&mut self.seen.hidden_ready) {
            Box::pin(self.after_hidden_ready()).await?;
        }
        let Some(status) = self.seen.ready.take() else { return Ok(()) };
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.since, now);
        self.status = status;
        let class = match self.server.as_ref().map(|attached| attached.target) {
            Some(super::context::Target::Shard(_)) => PlanClass::Shard,
            _ => PlanClass::Primary,
        };
        // Several that a client sends without waiting may be answered at once.
        for _ in 0..std::mem::take(&mut self.seen.turns) {
            self.note_time(class, took);
        }
        self.note_turn_outcome(errors_of_turns == 0);
        // Behind this answer more may be under way already, whose writes and portals are noted with those that are done.
        let more = self.held_server().is_some_and(|server| !server.expects.is_empty() || server.expects.is_unsynced());
        if !more {
            self.unnamed_before.clear();
        }
        if status == TransactionStatus::InTransaction && !more {
            self.transaction_goes_on();
        }
        if status == TransactionStatus::Idle {
            self.db.metrics.transactions.inc();
        }
        if status == TransactionStatus::Idle && !more {
            if self.suspended.is_some() {
                Box::pin(self.close_halted(None)).await;
            }
            self.transaction_is_over();
            self.settle_writes();
            self.release_if_at_rest(now).await?;
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
        if self.status == TransactionStatus::Idle { self.release_if_at_rest(Instant::now()).await } else { Ok(()) }
    }

    /// `DISCARD ALL` and `DEALLOCATE ALL` have worked, or have not, in a string of statements.
    fn note_turn_outcome(&mut self, succeeded: bool) {
        let statements = std::mem::take(&mut self.forgets_statements);
        let pins = std::mem::take(&mut self.forgets_pins);
        if self.listening.is_some() {
            self.listening_turn_is_over(succeeded);
        }
        if !succeeded {
            // What part of the string had run is not known.
            self.must_discard |= statements;
            return;
        }
        if statements {
            // The unnamed statement, like the one that said so, stays.
            self.named.clear();
            if let Some(attached) = &mut self.server {
                attached.lease.server().held.clear();
            }
        }
        if pins {
            self.pins.clear();
            self.pinned = None;
            self.stop_listening();
            self.seen.takes_notifications = self.mode == PoolMode::Session;
        }
    }

    /// Waits until the server has answered everything, so that an answer of pgherd's own comes in its turn.
    pub(super) async fn wait_for_answers(&mut self) -> Result<(), Error> {
        if let Some(server) = self.held_server()
            && (server.expects.is_unsynced() || server.expects.ends_unflushed())
        {
            // Without it they would lie in the server's own buffer until a Sync.
            writer::flush(&mut server.outbuf);
        }
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
