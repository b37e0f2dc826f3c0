//! Taking a server connection and giving it back in a known state, or not at all.

use std::sync::Arc;
use std::time::Duration;

use super::Session;
use super::context::Target;
use crate::backend::reset;
use crate::backend::server::{Seen, ServerConn};
use crate::config::model::PoolMode;
use crate::error::Error;
use crate::wire::writer::{self, TransactionStatus};

/// How long a server may take to be brought to rest after its client left.
const CLEAN_UP_DEADLINE: Duration = Duration::from_secs(5);

impl Session {
    /// The server connection of that target: the one held, or one from the pool with this session's settings on it.
    pub(super) async fn attach(&mut self, target: Target) -> Result<&mut ServerConn, Error> {
        if self.server.is_none() {
            let mut attached = self.borrow_server(target).await?;
            for statement in self.lazy_begin.drain(..) {
                attached.lease.server().queue_hidden_query(&statement);
            }
            self.server = Some(attached);
        }
        match &mut self.server {
            Some(attached) if attached.target == target => Ok(attached.lease.server()),
            _ => Err(Error::refused("a transaction cannot span several servers")
                .hint("End the transaction first, or let it touch one shard or the primary only.")),
        }
    }

    /// The server connection that is held, if there is one.
    pub(super) fn held_server(&mut self) -> Option<&mut ServerConn> {
        self.server.as_mut().map(|attached| attached.lease.server())
    }

    /// Gives the server back at the end of a transaction, unless the client needs this very one.
    pub(super) async fn release_if_at_rest(&mut self) -> Result<(), Error> {
        if self.mode == PoolMode::Session || self.pins.any() {
            return Ok(());
        }
        let Some(attached) = &mut self.server else { return Ok(()) };
        if !attached.lease.server().is_at_rest() {
            return Ok(());
        }
        self.read_back().await?;
        let Some(mut attached) = self.server.take() else { return Ok(()) };
        self.untie_cancel().await;
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        if server.dirty || std::mem::take(&mut self.must_discard) {
            // Not the client's business if it fails: the connection is closed then.
            let _ = tokio::time::timeout(CLEAN_UP_DEADLINE, reset::discard_all(server)).await;
        }
        attached.lease.release();
        Ok(())
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

    /// No cancel of this client's reaches the server any more; one that is on its way is waited for.
    pub(super) async fn untie_cancel(&mut self) {
        if self.cancel.slot.clear() {
            self.cancel.slot.delivered().await;
        }
    }

    /// The client has left, at any moment: its server is brought to rest under a deadline, or closed.
    pub(super) async fn give_up_server(&mut self) {
        let Some(mut attached) = self.server.take() else { return };
        let server = attached.lease.server();
        let is_clean = server.is_reusable()
            && !self.pins.any()
            && !server.dirty
            && !self.must_discard
            && !self.settings.must_read_back();
        if !is_clean {
            let busy = !server.expects.is_empty();
            if busy {
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
            self.settle_writes();
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
        writer::sync(&mut server.outbuf);
        server.expects.push(crate::backend::expect::Expect::Sync { hidden: true });
    }
    let mut nowhere = bytes::BytesMut::new();
    let mut seen = Seen::default();
    server.flush().await?;
    loop {
        server.scan(&mut nowhere, &mut seen)?;
        server.spill(&mut nowhere);
        nowhere.clear();
        if server.expects.is_empty() {
            break;
        }
        server.read_more().await?;
    }
    if server.status != TransactionStatus::Idle {
        server.run("ROLLBACK").await?;
    }
    reset::discard_all(server).await
}
