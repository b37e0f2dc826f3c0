//! Taking a server connection and giving it back in a known state, or not at all.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::context::Target;
use super::{Attached, Session};
use crate::backend::expect::Expect;
use crate::backend::pool::{Baseline, Lease, Pool};
use crate::backend::reset::{self, ANSWERING_SETTINGS};
use crate::backend::scan::Seen;
use crate::backend::server::ServerConn;
use crate::backend::settings::{Settings, SharedSettings};
use crate::config::model::PoolMode;
use crate::error::Error;
use crate::net::spare;
use crate::wire::writer::{self, TransactionStatus};

/// How long a server may take to be brought to rest after its client left.
const CLEAN_UP_DEADLINE: Duration = Duration::from_secs(5);

impl Session {
    /// The server connection of that target: the one held, or one from the pool with this session's settings on it.
    pub(super) async fn attach(&mut self, target: Target) -> Result<&mut ServerConn, Error> {
        let holds_another = self.server.as_ref().is_some_and(|attached| attached.target != target);
        if holds_another && self.held_server().is_some_and(|server| !server.expects.is_unsynced()) {
            // A pipeline: the transaction there may be over as soon as it has answered.
            Box::pin(self.wait_for_answers()).await?;
        }
        if holds_another && self.span.is_some() {
            Box::pin(self.switch_to(target)).await?;
        }
        if self.server.is_none() && !self.attach_at_once(target) {
            let mut attached = Box::pin(self.borrow_server(target)).await?;
            self.begin_span();
            for (at, statement) in self.lazy_begin.drain(..).enumerate() {
                match at {
                    0 => attached.lease.server().queue_hidden_begin(&statement),
                    _ => attached.lease.server().queue_hidden_query(&statement),
                }
            }
            self.server = Some(attached);
            if self.status == TransactionStatus::Failed {
                Box::pin(self.fail_on_server()).await?;
            }
        }
        match &mut self.server {
            Some(attached) if attached.target == target => Ok(attached.lease.server()),
            _ => Err(Error::refused("a transaction cannot span several servers")
                .hint("End the transaction first, let it touch one shard or the primary only, or configure database.two_phase.")),
        }
    }

    /// Takes a server connection that is free now and needs nothing done to it, which is the rule.
    fn attach_at_once(&mut self, target: Target) -> bool {
        if target != Target::Primary || !self.lazy_begin.is_empty() {
            return false;
        }
        let Some(mut lease) = self.primary.try_acquire() else { return false };
        if lease.server().settings != self.settings.current {
            lease.release();
            return false;
        }
        self.cancel.slot.aim_at(Arc::clone(&lease.server().cancel_target));
        self.listed.asks(self.since.into_std());
        self.listed.holds(lease.lent_to(self.listed.id(), self.since.into_std()));
        self.server = Some(Attached { lease, target });
        true
    }

    /// A server connection from the pool with these settings on it.
    pub(super) async fn lease_with(&mut self, target: Target, settings: &SharedSettings) -> Result<Lease, Error> {
        let pool = self.pool(target);
        loop {
            let mut lease = self.wait_for_lease(&pool).await?;
            self.listed.holds(lease.lent_to(self.listed.id(), self.since.into_std()));
            self.check_defaults(target, &pool, settings)?;
            // Equal settings are the same ones, as a rule: see `Database::share_settings`.
            if lease.server().settings == *settings || Box::pin(self.fit(lease.server(), settings)).await? {
                return Ok(lease);
            }
        }
    }

    /// Whether another server gives a login the settings that the primary gives, but for these, which the session has set itself.
    ///
    /// # Errors
    /// It does not: the client would be told of one value and be given answers under another.
    pub(super) fn check_defaults(&self, target: Target, pool: &Pool, settings: &Settings) -> Result<(), Error> {
        if target == Target::Primary {
            return Ok(());
        }
        let Some(ours) = self.primary.baseline().filter(|ours| !pool.is_set_as(ours)) else { return Ok(()) };
        let Some(theirs) = pool.baseline() else { return Ok(()) };
        let is_other = |name: &&&str| ours.setting(name) != theirs.setting(name) && settings.get(name).is_none();
        let Some(name) = ANSWERING_SETTINGS.iter().find(is_other) else { return Ok(()) };
        let value = |of: &Baseline| of.setting(name).unwrap_or("nothing").to_owned();
        let (ours, theirs, address) = (value(&ours), value(&theirs), pool.address());
        Err(Error::refused(format!("{name} is \"{theirs}\" at login on {address}, and \"{ours}\" on the primary"))
            .hint("Give it the same value on every server (ALTER DATABASE, ALTER ROLE, postgresql.conf)."))
    }

    /// Gives a server connection these settings; false if another must be tried.
    async fn fit(&self, server: &mut ServerConn, settings: &SharedSettings) -> Result<bool, Error> {
        let was_set = !server.settings.is_empty();
        #[cfg(feature = "faults")]
        if *self.db.leak.lock() == Some(super::context::Leak::Settings) {
            server.settings = Arc::clone(settings);
        }
        match reset::apply(server, settings).await {
            Ok(()) => Ok(true),
            // What another client had set may be why (a statement_timeout of a millisecond): that connection is closed now.
            Err(error) if was_set => {
                tracing::debug!(%error, "a server connection could not be given its settings");
                Ok(false)
            }
            Err(error) => Err(error.fatal()),
        }
    }

    /// A server connection from that pool as it comes. While it is waited for, others see that the client waits, and it is
    /// noticed if the client leaves.
    pub(super) async fn wait_for_lease(&mut self, pool: &Pool) -> Result<Lease, Error> {
        const TERMINATE: &[u8] = b"X\0\0\0\x04";
        self.listed.waits(self.since.into_std());
        let mut listens = true;
        let mut acquiring = pin!(pool.acquire_by(&mut self.alarm));
        let acquired = poll_fn(|cx| {
            if let Poll::Ready(acquired) = acquiring.as_mut().poll(cx) {
                return Poll::Ready(acquired);
            }
            if listens && let Poll::Ready(gone) = self.client.poll_gone_client(cx) {
                // What was asked for before a Terminate is done, as PostgreSQL does it.
                if !self.client.inbuf.ends_with(TERMINATE) {
                    return Poll::Ready(Err(gone));
                }
                listens = false;
            }
            spare::give_back(&mut self.client.inbuf);
            Poll::Pending
        })
        .await;
        self.listed.holds(self.server.as_ref().map_or(0, |attached| attached.lease.number()));
        acquired
    }

    /// Whether the client needs this very server connection beyond its transaction.
    pub(super) fn keeps_server(&self) -> bool {
        self.mode == PoolMode::Session || self.pins.any()
    }

    /// The server connection that is held, if there is one.
    pub(super) fn held_server(&mut self) -> Option<&mut ServerConn> {
        self.server.as_mut().map(|attached| attached.lease.server())
    }

    /// Gives the server back at the end of a transaction, unless the client needs this very one. `now` is the time.
    pub(super) async fn release_if_at_rest(&mut self, now: Instant) -> Result<(), Error> {
        let Some(attached) = &mut self.server else { return Ok(()) };
        if !attached.lease.server().is_at_rest() {
            return Ok(());
        }
        if !self.keeps_server()
            && self.needs_no_care()
            && !self.cancel.slot.clear()
            && let Some(mut attached) = self.server.take()
        {
            attached.lease.server().spill(&mut self.client.outbuf);
            attached.lease.release_at(now.into_std());
            self.note_whereabouts();
            return Ok(());
        }
        Box::pin(self.release_with_care()).await
    }

    /// Whether pgherd runs nothing of its own on the server before it is given back: a client that has its answer may send a
    /// cancel, which must not hit that.
    pub(super) fn needs_no_care(&mut self) -> bool {
        !self.settings.must_read_back() && self.holds_nothing_odd()
    }

    /// Whether nothing but settings can be left on the server at hand.
    pub(super) fn holds_nothing_odd(&mut self) -> bool {
        !self.must_discard
            && !self.server_listens()
            && !self.changes_code
            && self.held_server().is_some_and(|server| !server.dirty)
    }

    /// Gives the server back once its session is known and clean.
    async fn release_with_care(&mut self) -> Result<(), Error> {
        if self.server_listens() || self.has_doubtful_pins() {
            self.untie_cancel().await;
            if self.server_listens() {
                self.unlisten_server().await?;
            }
            if self.has_doubtful_pins() {
                self.examine_pins().await?;
            }
            self.retie_cancel();
        }
        if self.keeps_server() {
            self.note_whereabouts();
            return self.refresh_own_server().await;
        }
        // First, since a cancel that comes late must not hit what pgherd runs.
        self.untie_cancel().await;
        self.read_back().await?;
        self.read_code().await;
        let Some(mut attached) = self.server.take() else { return Ok(()) };
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        #[cfg(feature = "faults")]
        if *self.db.leak.lock() == Some(super::context::Leak::Dirt) {
            server.dirty = false;
        }
        if server.dirty || std::mem::take(&mut self.must_discard) {
            // Not the client's business if it fails: the connection is closed then.
            let _ = tokio::time::timeout(CLEAN_UP_DEADLINE, reset::discard_all(server)).await;
        }
        attached.lease.release();
        self.note_whereabouts();
        Ok(())
    }

    /// Brings what is believed of a server that stays with its client up to date.
    async fn refresh_own_server(&mut self) -> Result<(), Error> {
        if !self.settings.must_read_back() && !self.must_discard && !self.changes_code {
            return Ok(());
        }
        self.untie_cancel().await;
        self.read_back().await?;
        self.read_code().await;
        let Some(attached) = &mut self.server else { return Ok(()) };
        let server = attached.lease.server();
        if std::mem::take(&mut self.must_discard) {
            // What it holds is not known: all statements are prepared again when they are needed.
            server.spill(&mut self.client.outbuf);
            server.close_statements().await?;
        }
        self.retie_cancel();
        Ok(())
    }

    /// A cancel of this client's reaches the server at hand again.
    fn retie_cancel(&mut self) {
        if let Some(attached) = &mut self.server {
            self.cancel.slot.aim_at(Arc::clone(&attached.lease.server().cancel_target));
        }
    }

    /// Learns what the session's settings are now from the server that has them.
    async fn read_back(&mut self) -> Result<(), Error> {
        if !self.settings.must_read_back() {
            return Ok(());
        }
        let Some(attached) = &mut self.server else { return Ok(()) };
        let baseline = self.primary.baseline();
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        let names = self.settings.names_to_read(&server.settings);
        let now = reset::read_back(server, &server.settings.clone(), &names, baseline.as_deref()).await?;
        server.settings = Arc::new(now);
        let on_server = Arc::clone(&server.settings);
        self.settings.settle(&on_server);
        Ok(())
    }

    /// Learns which code changes sessions unseen, where the client has made or dropped some.
    async fn read_code(&mut self) {
        if !std::mem::take(&mut self.changes_code) {
            return;
        }
        let has_tenants = self.db.config.schemas.is_some();
        let is_told = |target| target == Target::Primary || (has_tenants && matches!(target, Target::Shard(_)));
        let Some(attached) = self.server.as_mut().filter(|attached| is_told(attached.target)) else { return };
        let target = attached.target;
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        let learned = match target {
            Target::Shard(shard) => self.db.learn_unseen_of_shard(server, shard).await,
            _ => self.db.learn_unseen(server).await,
        };
        if let Err(error) = learned {
            // Not the client's business. The connection's session is not what was expected: it is closed.
            tracing::warn!(%error, "cannot read which functions change the session");
            server.mark_broken();
        }
    }

    /// No cancel of this client's reaches the server any more; one that is on its way is waited for.
    pub(super) async fn untie_cancel(&mut self) {
        if self.cancel.slot.clear() {
            self.cancel.slot.delivered().await;
        }
    }

    /// The client was killed: what its server runs for it is cancelled, and the server connection is closed.
    pub(super) async fn cut_server_off(&mut self) {
        let Some(server) = self.held_server() else { return };
        let busy = !server.expects.is_empty();
        server.mark_broken();
        if busy {
            let _ = tokio::time::timeout(CLEAN_UP_DEADLINE, self.cancel.slot.fire()).await;
        }
    }

    /// The client has left, at any moment: its server is brought to rest under a deadline, or closed.
    pub(super) async fn give_up_server(&mut self) {
        let server_listens = self.server_listens();
        let Some(mut attached) = self.server.take() else { return };
        let server = attached.lease.server();
        let is_clean = server.is_reusable()
            && self.mode != PoolMode::Session
            && !self.pins.any()
            && !server.dirty
            && !self.must_discard
            && !server_listens
            && !self.settings.must_read_back();
        if server.unfinished > 0 {
            // It would take whatever comes next for the rest of a message.
            server.mark_broken();
        }
        if !is_clean && !server.is_broken() {
            let busy = !server.expects.is_empty();
            if busy && self.has_said_goodbye {
                // What was asked for before Terminate runs to its end, as far as there is time.
                let _ = tokio::time::timeout(CLEAN_UP_DEADLINE, finish_answers(server)).await;
            }
            if !server.expects.is_empty() && !server.is_broken() {
                self.cancel.slot.fire().await;
            }
            let cleaned = tokio::time::timeout(CLEAN_UP_DEADLINE, bring_to_rest(server)).await;
            if !matches!(cleaned, Ok(Ok(()))) {
                server.mark_broken();
            }
        }
        self.untie_cancel().await;
        if attached.lease.server().is_reusable() {
            // The transaction is over on the server, one way or the other. Else the doubt stays until its process is gone.
            self.settle_writes_on(self.db.written_at(attached.target));
        }
        attached.lease.release();
    }
}

/// Ends COPY, pipeline and transaction on a server whose client is gone, then throws its session state away.
async fn bring_to_rest(server: &mut ServerConn) -> Result<(), Error> {
    if server.unfinished > 0 {
        return Err(Error::internal("the client left in the middle of a message"));
    }
    if server.copying_in {
        writer::message(&mut server.outbuf, b'f', |out| writer::cstr(out, b"client is gone"));
        server.copying_in = false;
    }
    if server.expects.is_unsynced() {
        // A Sync alone would commit what the client never asked to be committed: an error undoes it.
        writer::parse(&mut server.outbuf, b"", super::failure::POISON, &[]);
        server.expects.push(Expect::Poison(bytes::Bytes::new()));
        writer::sync(&mut server.outbuf);
        server.expects.push(Expect::Sync { hidden: true });
    }
    finish_answers(server).await?;
    if server.copying_in {
        // It asked for COPY data just now: the Sync that was sent is not answered.
        return Err(Error::internal("a COPY began while its client left"));
    }
    if server.status != TransactionStatus::Idle {
        server.run("ROLLBACK").await?;
    }
    reset::discard_all(server).await
}

/// Reads everything that a server still owes, for nobody; stops where it asks for COPY data.
async fn finish_answers(server: &mut ServerConn) -> Result<(), Error> {
    let mut nowhere = bytes::BytesMut::new();
    let mut seen = Seen::default();
    server.flush().await?;
    loop {
        server.scan(&mut nowhere, &mut seen)?;
        server.spill(&mut nowhere);
        nowhere.clear();
        if server.expects.is_empty() || server.copying_in {
            return Ok(());
        }
        server.read_more().await?;
    }
}
