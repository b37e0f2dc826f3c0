//! Reads over several shards within a transaction that has written: its own server connections are the legs, so that each sees what was
//! written there.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::Session;
use super::cancel::deliver;
use super::context::Target;
use super::insert_select::{Unread, collected};
use super::planned::Execution;
use super::span::parts;
use crate::backend::cancel::CancelTarget;
use crate::backend::server::ServerConn;
use crate::error::Error;
use crate::exec::fanout::{self, Leg};
use crate::exec::insert_select::Collected;
use crate::plan::Plan;
use crate::plan::distribute::Streamed;
use crate::plan::rules::Transaction;
use crate::sql::lexer::Lexer;
use crate::wire::frame::{Frame, Frames};
use crate::wire::writer::TransactionStatus;

/// A server of the transaction as a leg.
struct OwnLeg<'s> {
    server: &'s mut ServerConn,
    cancel: Arc<CancelTarget>,
}

impl Leg for OwnLeg<'_> {
    fn queue(&mut self) -> &mut BytesMut {
        self.server.queue()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.server.poll_flush(cx)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Error>> {
        self.server.poll_frame(cx)
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>, tag: u8) -> Poll<Result<Frames, Error>> {
        self.server.poll_frames(cx, tag)
    }

    fn cancel(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let target = Arc::clone(&self.cancel);
        Box::pin(async move { deliver(&target).await })
    }
}

impl Session {
    /// Rows are placed by the tables' columns as they were when the catalog was read.
    ///
    /// # Errors
    /// The transaction has changed the table that rows are to be inserted into.
    pub(super) fn check_tables(&self, execution: &Execution<'_>, plan: &Plan) -> Result<(), Error> {
        let Some(span) = self.span.as_ref().filter(|span| !span.changed_tables.is_empty()) else { return Ok(()) };
        let is_on_shards = matches!(
            plan,
            Plan::Shard { .. } | Plan::Scatter(_) | Plan::InsertSelect(_) | Plan::CopyIn(_) | Plan::KeyMove(_)
        );
        let mut written = execution.facts.statements.iter().flat_map(|statement| &statement.writes);
        if is_on_shards
            && !is_update_or_delete(execution.text)
            && written.any(|name| span.changed_tables.contains(&name.name))
        {
            return Err(Error::refused("INSERT, COPY and MERGE into a table that the transaction has changed")
                .hint("Commit the change first."));
        }
        Ok(())
    }

    /// Whether a read over several shards must be the transaction's own.
    pub(super) fn reads_within(&self) -> bool {
        self.status == TransactionStatus::InTransaction && self.transaction_view() == Transaction::Written
    }

    /// Whether the transaction's own servers can read for it, where they must.
    ///
    /// # Errors
    /// It has changed tables, which are planned for as they were, or how it stands is not certain.
    pub(super) fn check_transaction(&self) -> Result<(), Error> {
        if self.transaction_view() != Transaction::Written {
            return Ok(());
        }
        if !self.reads_within() || self.settings.is_uncertain() {
            return Err(Error::refused("INSERT of a query's rows where the session's settings are not known")
                .hint("Change settings by SET, and before the transaction."));
        }
        if self.span.as_ref().is_some_and(|span| !span.changed_tables.is_empty()) {
            return Err(Error::refused("INSERT of a query's rows in a transaction that has changed tables")
                .hint("Commit the change first."));
        }
        Ok(())
    }

    /// The transaction's own connection to a shard, with nothing under way.
    pub(super) async fn own_shard(&mut self, shard: usize) -> Result<&mut ServerConn, Error> {
        self.assemble(std::iter::once(Target::Shard(shard))).await?;
        let server = self.held_server().ok_or_else(|| Error::internal("a shard of the transaction is missing"))?;
        Ok(server)
    }

    /// The rows of a query as the transaction's own servers give them.
    pub(super) async fn rows_within(
        &mut self,
        execution: &Execution<'_>,
        streamed: &Streamed,
        formats: &[i16],
    ) -> Result<Vec<Bytes>, Unread> {
        self.assemble(streamed.shards.iter().copied().map(Target::Shard)).await.map_err(Unread::Own)?;
        let work = self.begin_work().await;
        let rows = Box::pin(self.read_within(execution, streamed, formats, &work)).await;
        self.cancel.slot.work_is_over();
        rows
    }

    async fn read_within(
        &mut self,
        execution: &Execution<'_>,
        streamed: &Streamed,
        formats: &[i16],
        work: &CancellationToken,
    ) -> Result<Vec<Bytes>, Unread> {
        let latch = self.latch_snapshots(streamed.shards.len(), work).await.map_err(Unread::Own)?;
        let run = self.run_of(execution, streamed, formats);
        let all = parts(&mut self.server, &mut self.span).into_iter();
        let shard = |at: usize| at.checked_sub(1).filter(|shard| streamed.shards.contains(shard));
        let mut servers: Vec<_> = all.filter_map(|part| Some((shard(part.at)?, part.server))).collect();
        servers.sort_by_key(|(shard, _)| *shard);
        if !servers.iter().map(|(shard, _)| shard).eq(&streamed.shards) {
            return Err(Unread::Own(Error::internal("a shard of a query is missing")));
        }
        let mut legs: Vec<OwnLeg<'_>> = servers.into_iter().map(|(_, server)| taken(server)).collect();
        let mut sink = Collected::new(&mut self.client, self.db.fanout.memory_bytes);
        let mut timed_out = false;
        let outcome = {
            let mut running = std::pin::pin!(fanout::run_within(&run, &mut legs, &mut sink, work, latch));
            match tokio::time::timeout(self.db.fanout.query_timeout, &mut running).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    timed_out = true;
                    work.cancel();
                    running.await
                }
            }
        };
        for (at, leg) in legs.into_iter().enumerate() {
            match outcome.broken.contains(&at) {
                true => leg.server.mark_broken(),
                false => leg.server.hand_back(),
            }
        }
        collected(outcome.result.map(|_| sink.rows()), timed_out)
    }
}

fn taken(server: &mut ServerConn) -> OwnLeg<'_> {
    server.unnamed = None;
    server.take_over();
    let cancel = Arc::clone(&server.cancel_target);
    OwnLeg { server, cancel }
}

/// Whether the statement changes rows where they are.
fn is_update_or_delete(text: &[u8]) -> bool {
    let first = Lexer::new(text, true).significant().next();
    first.is_some_and(|token| token.is_word(text, "update") || token.is_word(text, "delete"))
}
