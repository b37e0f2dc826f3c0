//! An UPDATE whose rows move between shards, for this session: in the client's transaction, or in one of its own that is committed at
//! once.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::context::Target;
use super::planned::Execution;
use super::scatter::{Spread, halting, has_all, while_awaited};
use super::span::{Span, parts};
use super::{Attached, Session};
use crate::backend::server::ServerConn;
use crate::error::Error;
use crate::exec::key_move::{Line, Ready};
use crate::exec::scatter::{Answer, Failure, Statement};
use crate::plan::distribute::KeyMove;

impl Session {
    /// Runs it. The inner error is the ErrorResponse that the client is to get.
    pub(super) async fn move_rows(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        plan: &KeyMove,
    ) -> Result<Result<(), Bytes>, Error> {
        self.spread(execution, described, Spread::Moves(plan)).await
    }

    pub(super) async fn move_within(&mut self, execution: &Execution<'_>, plan: &KeyMove) -> Result<Answer, Failure> {
        self.assemble(plan.shards().into_iter().map(Target::Shard)).await.map_err(Failure::Own)?;
        self.note_writes_on_shards(plan.shards().into_iter(), execution.facts).map_err(Failure::Own)?;
        let work = self.begin_work().await;
        let outcome = Box::pin(self.run_moves(execution, plan, &work)).await;
        self.cancel.slot.work_is_over();
        outcome
    }

    async fn run_moves(
        &mut self,
        execution: &Execution<'_>,
        plan: &KeyMove,
        work: &CancellationToken,
    ) -> Result<Answer, Failure> {
        let statement = self.statement_of(execution);
        let ready: Ready = {
            let servers = shards_of(&mut self.server, &mut self.span, plan)?;
            let halt = halting(servers.iter().map(|(_, server)| Arc::clone(&server.cancel_target)).collect());
            let mut line = Line::new(servers, work, halt);
            while_awaited(&mut self.client, work, Box::pin(line.begin(plan, execution.text, &statement))).await?
        };
        let catalog = self.db.shard_catalog.as_ref().map(|handle| handle.current());
        let catalog = catalog.ok_or_else(|| Failure::Own(Error::internal("the shards' catalog is gone")))?;
        // Types that users made are known by the oids that shard 0 has for them.
        let described = match self.described(ready.select.as_bytes(), &ready.types).await.map_err(Failure::Own)? {
            Ok(described) => described,
            Err(message) => return Err(Failure::Server(super::insert_select::without_position(message), 0)),
        };
        let statement = Statement { types: &ready.types, ..statement };
        let servers = shards_of(&mut self.server, &mut self.span, plan)?;
        let halt = halting(servers.iter().map(|(_, server)| Arc::clone(&server.cancel_target)).collect());
        let mut line = Line::new(servers, work, halt);
        let moving = Box::pin(line.finish(plan, &ready, &statement, &described, &catalog));
        let answer = while_awaited(&mut self.client, work, moving).await?;
        has_all(execution, answer)
    }
}

/// The servers that take part, by shard, in ascending order.
fn shards_of<'s>(
    server: &'s mut Option<Attached>,
    span: &'s mut Option<Box<Span>>,
    plan: &KeyMove,
) -> Result<Vec<(usize, &'s mut ServerConn)>, Failure> {
    let shards = plan.shards();
    let shard = |at: usize| at.checked_sub(1).filter(|shard| shards.contains(shard));
    let all = parts(server, span).into_iter();
    let mut servers: Vec<_> = all.filter_map(|part| Some((shard(part.at)?, part.server))).collect();
    servers.sort_by_key(|(shard, _)| *shard);
    let is_whole = servers.len() == shards.len();
    if is_whole { Ok(servers) } else { Err(Failure::Own(Error::internal("a shard of a move is missing"))) }
}
