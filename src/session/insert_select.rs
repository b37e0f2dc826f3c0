//! INSERT of a query's rows that go where they belong, for this session: described by a shard, read as any query over shards, and
//! then written in the client's transaction.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::Session;
use super::context::Target;
use super::declared::{portable, types_in, values_in};
use super::explain::parameters;
use super::fan_out::{DRAIN_TIMEOUT, LeasedLeg, release};
use super::planned::Execution;
use crate::catalog::model::{Catalog, Type};
use crate::error::Error;
use crate::exec::coordinator::{self, Budget};
use crate::exec::fanout::{self, Failure, Gate};
use crate::exec::insert_select::{self, Collected, Described};
use crate::exec::merge::ResultFormats;
use crate::exec::merge::description::Column;
use crate::exec::scatter::{self, Statement};
use crate::plan::Plan;
use crate::plan::distribute::{
    Answered, Carrier, Gathered, InsertSelect, Part, Scattered, Streamed, Tally, Unstreamed,
};
use crate::wire::frame::Frame;

/// A query's rows.
struct Rows {
    /// How each column travels.
    carriers: Vec<Carrier>,
    /// Types and modifiers of the columns.
    types: Vec<(u32, i32)>,
    /// DataRows' bodies.
    rows: Vec<Bytes>,
}

/// Why there are none.
pub(super) enum Unread {
    /// A server's ErrorResponse.
    Server(Bytes),
    /// pgherd's own error.
    Own(Error),
    /// pgherd does not merge the rows, for that reason.
    Unmergeable(Unstreamed, Error),
}

impl Session {
    /// Runs it. The inner error is the ErrorResponse that the client is to get.
    pub(super) async fn insert_select(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        plan: &Arc<InsertSelect>,
    ) -> Result<Result<(), Bytes>, Error> {
        self.check_own_reads().map_err(|refusal| self.refused(refusal))?;
        let mut told = Vec::new();
        // Mistakes are told before anything is read, and in the client's own text, where a shard has all that it names.
        if !plan.is_on_primary() {
            told = match self.described(execution.text, execution.types).await? {
                Ok(whole) => whole.types,
                Err(message) => {
                    self.tell_as_far(execution, 0);
                    return Ok(Err(message));
                }
            };
        }
        let types = portable(&told);
        let execution = &Execution { types: &types, ..*execution };
        let parts = match self.parts_of_insert(execution, &told, plan).await? {
            Ok(parts) => parts,
            Err(message) => {
                self.tell_as_far(execution, 2);
                return Ok(Err(message));
            }
        };
        let scattered = Scattered {
            parts,
            tally: if plan.is_everywhere() { Tally::Alike } else { Tally::Sum },
            serial: plan.serial.clone(),
            still: Vec::new(),
            moments: plan.moments.clone(),
            is_ddl: false,
            reads: false,
            is_on_primary: plan.is_on_primary(),
            reason: plan.reason.clone(),
        };
        self.scatter(execution, described, &scattered).await
    }

    /// What each shard inserts.
    async fn parts_of_insert(
        &mut self,
        execution: &Execution<'_>,
        told: &[u32],
        plan: &InsertSelect,
    ) -> Result<Result<Vec<Part>, Bytes>, Error> {
        let rows = match self.rows_of_query(execution, told, plan).await? {
            Ok(rows) => rows,
            Err(message) => return Ok(Err(message)),
        };
        let keys = match self.keys_of(plan, &rows).await? {
            Ok(keys) => keys,
            Err(message) => return Ok(Err(message)),
        };
        let first = execution.bind.map_or(0, |(_, bind)| bind.values.len()) + 1;
        if let Err(message) = self.check_types_of_parts(execution, told, plan, &rows.carriers, first).await? {
            return Ok(Err(message));
        }
        insert_select::parts(plan, &rows.carriers, &rows.rows, &keys, first).map(Ok)
    }

    /// What a shard says of a statement.
    pub(super) async fn described_by_shard(
        &mut self,
        sql: &[u8],
        types: &[u32],
    ) -> Result<Result<Described, Bytes>, Error> {
        let mut leg = self.lease_leg(Target::Shard(0)).await?;
        let described = insert_select::describe(leg.attached.lease.server(), sql, types).await;
        release(vec![leg], if described.is_ok() { &[] } else { &[0] });
        described
    }

    /// The same, by the transaction's own connection where it has written there: others may not see what it has made, or wait for it.
    pub(super) async fn described(&mut self, sql: &[u8], types: &[u32]) -> Result<Result<Described, Bytes>, Error> {
        if !self.reads_within() || !self.takes_part(Target::Shard(0)) {
            return self.described_by_shard(sql, types).await;
        }
        let server = self.own_shard(0).await?;
        server.take_over();
        let described = insert_select::describe(server, sql, types).await;
        match described.is_ok() {
            true => server.hand_back(),
            false => server.mark_broken(),
        }
        described
    }

    /// Reads the query's rows.
    async fn rows_of_query(
        &mut self,
        execution: &Execution<'_>,
        told: &[u32],
        plan: &InsertSelect,
    ) -> Result<Result<Rows, Bytes>, Error> {
        let types = types_in(&plan.query, execution.types, self.conforming_strings());
        let execution = &Execution { types: &types, ..*execution };
        let described = match self.described(plan.query.as_bytes(), &types).await? {
            Ok(described) => described,
            Err(message) => return Ok(Err(without_position(message))),
        };
        self.check_types_of_query(execution, told, plan, &described.types)?;
        let columns = described.columns.map(|it| it.columns).unwrap_or_default();
        let Some(catalog) = self.db.shard_catalog.as_ref().map(|handle| handle.current()) else {
            return Err(Error::internal("the shards' catalog is gone"));
        };
        let carrier = |column: &Column| {
            let carrier = Carrier::of(column.type_oid, &catalog)?;
            match plan.makes_table() {
                true => {
                    carrier.becoming(&String::from_utf8_lossy(&column.name), (column.type_oid, column.typmod), &catalog)
                }
                false => Ok(carrier),
            }
        };
        let carriers: Result<Vec<Carrier>, _> = columns.iter().map(carrier).collect();
        let carriers = carriers.map_err(|refusal| self.refused(refusal))?;
        if plan.is_on_primary() {
            self.check_types_of_primary(&columns, &catalog)?;
        }
        let formats: Vec<i16> = carriers.iter().map(Carrier::format).collect();
        let rows = match &plan.answered {
            Answered::Streamed(streamed) => match self.streamed_rows(execution, streamed, &formats).await {
                // The coordinator does not see what the transaction has written.
                Err(Unread::Unmergeable(_, error)) if self.reads_within() => return Err(error),
                Err(Unread::Unmergeable(why, error)) => match self.gathered_instead(execution, why).await? {
                    Some(gathered) => self.gathered_rows(execution, plan, &gathered, &formats).await,
                    None => return Err(error),
                },
                rows => rows,
            },
            Answered::Gathered(gathered) => self.gathered_rows(execution, plan, gathered, &formats).await,
        };
        let rows = match rows {
            Ok(rows) => rows,
            Err(Unread::Server(message)) => return Ok(Err(message)),
            Err(Unread::Own(error) | Unread::Unmergeable(_, error)) => return Err(error),
        };
        let types = columns.iter().map(|column| (column.type_oid, column.typmod)).collect();
        Ok(Ok(Rows { carriers, types, rows }))
    }

    /// How PostgreSQL answers a query whose rows pgherd turned out not to merge.
    async fn gathered_instead(
        &mut self,
        execution: &Execution<'_>,
        why: Unstreamed,
    ) -> Result<Option<Arc<Gathered>>, Error> {
        Ok(match self.plan_instead(execution, why).await? {
            Some(Plan::InsertSelect(plan)) => match &plan.answered {
                Answered::Gathered(gathered) => Some(Arc::clone(gathered)),
                Answered::Streamed(_) => None,
            },
            _ => None,
        })
    }

    /// Types that users made must be there, too, where rows go.
    fn check_types_of_primary(&self, columns: &[Column], shards: &Catalog) -> Result<(), Error> {
        let primary = self.db.catalog.current();
        for known in columns.iter().filter_map(|column| shards.types.get(&column.type_oid)) {
            let is_it = |it: &&Type| {
                (&it.schema, &it.name, it.kind, &it.labels) == (&known.schema, &known.name, known.kind, &known.labels)
            };
            if primary.types.values().find(is_it).is_none() {
                return Err(Error::refused(format!(
                    "the primary does not have the type \"{}\" of the shards",
                    known.name
                ))
                .hint("Create it there alike, or cast the column to a type of PostgreSQL's own."));
            }
        }
        Ok(())
    }

    async fn streamed_rows(
        &mut self,
        execution: &Execution<'_>,
        streamed: &Arc<Streamed>,
        formats: &[i16],
    ) -> Result<Vec<Bytes>, Unread> {
        if self.reads_within() {
            return self.rows_within(execution, streamed, formats).await;
        }
        let mut legs = self.legs_of(&streamed.shards).await.map_err(Unread::Own)?;
        let work = CancellationToken::new();
        self.cancel.slot.aim_at_work(work.clone());
        let keeper = self.gatekeeper(legs.len());
        let gate = keeper.as_ref().map(|it| Gate::new(it, None));
        let run = self.run_of(execution, streamed, formats);
        let mut sink = Collected::new(&mut self.client, self.db.fanout.memory_bytes);
        let mut timed_out = false;
        let outcome = {
            let mut running = std::pin::pin!(fanout::run_under(&run, &mut legs, &mut sink, &work, gate.as_ref()));
            match tokio::time::timeout(self.db.fanout.query_timeout, &mut running).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    timed_out = true;
                    work.cancel();
                    running.await
                }
            }
        };
        let result = outcome.result.map(|_| sink.rows());
        self.cancel.slot.work_is_over();
        release(legs, &outcome.broken);
        collected(result, timed_out)
    }

    /// How a query that pgherd merges is run.
    pub(super) fn run_of<'r>(
        &self,
        execution: &'r Execution<'_>,
        streamed: &'r Streamed,
        formats: &'r [i16],
    ) -> fanout::Run<'r> {
        let (parameter_formats, values) = parameters(execution);
        fanout::Run {
            plan: streamed,
            types: execution.types,
            parameter_formats,
            values,
            formats: ResultFormats { codes: formats, extra_float_digits: self.extra_float_digits() },
            describe: false,
            told: None,
            max_rows: None,
            unanswered: b"",
            standard_conforming_strings: self.conforming_strings(),
            memory_bytes: self.db.fanout.memory_bytes,
            max_parallel: self.db.fanout.max_parallel,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }

    async fn gathered_rows(
        &mut self,
        execution: &Execution<'_>,
        plan: &InsertSelect,
        gathered: &Arc<Gathered>,
        formats: &[i16],
    ) -> Result<Vec<Bytes>, Unread> {
        let mut legs = self.legs_of(&gathered.shards).await.map_err(Unread::Own)?;
        // Always last: who waits for it holds all else, so that two statements cannot wait for each other.
        legs.push(self.lease_leg(Target::Coordinator).await.map_err(Unread::Own)?);
        let work = CancellationToken::new();
        self.cancel.slot.aim_at_work(work.clone());
        let (parameter_formats, values) = parameters(execution);
        let values = values_in(&plan.query, values, self.conforming_strings());
        let fanout = &self.db.fanout;
        let run = coordinator::Run {
            plan: gathered,
            text: plan.query.as_bytes(),
            types: execution.types,
            parameter_formats,
            values: &values,
            result_formats: formats,
            describe: false,
            told: None,
            tells_no_data: false,
            max_rows: 0,
            budget: Budget {
                rows: fanout.max_shipped_rows,
                bytes: fanout.max_shipped_bytes,
                keys: fanout.key_list_max,
            },
            drain_timeout: DRAIN_TIMEOUT,
        };
        let two_phase = self.db.two_phase.clone();
        let mut sink = Collected::new(&mut self.client, fanout.memory_bytes);
        let mut timed_out = false;
        let outcome = {
            let mut running = std::pin::pin!(coordinator::run(&run, &mut legs, &mut sink, &work, two_phase.as_deref()));
            match tokio::time::timeout(fanout.query_timeout, &mut running).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    timed_out = true;
                    work.cancel();
                    running.await
                }
            }
        };
        let result = outcome.result.map(|_| sink.rows());
        self.cancel.slot.work_is_over();
        release(legs, &outcome.broken);
        collected(result, timed_out)
    }

    async fn legs_of(&mut self, shards: &[usize]) -> Result<Vec<LeasedLeg>, Error> {
        let mut legs = Vec::with_capacity(shards.len() + 1);
        for &shard in shards {
            legs.push(self.lease_leg(Target::Shard(shard)).await?);
        }
        self.db.metrics.fanout_legs.inc_by(legs.len() as u64);
        Ok(legs)
    }

    /// The shard keys of the rows, as their columns store them: what an assignment makes of a value PostgreSQL says.
    async fn keys_of(&mut self, plan: &InsertSelect, rows: &Rows) -> Result<Result<Vec<Bytes>, Bytes>, Error> {
        let (of_key, carriers): (Vec<usize>, Vec<Carrier>) =
            plan.key_columns().into_iter().filter_map(|at| Some((at, rows.carriers.get(at)?.clone()))).unzip();
        if of_key.len() < plan.key_columns().len() {
            return Err(Error::refused("INSERT of a query's rows that lack their shard key")
                .hint("Let the query give the shard key's column, too."));
        }
        let is_as_given = plan.is_key_as_given(&rows.types) && carriers.iter().all(|it| it.format() == 1);
        if of_key.is_empty() || rows.rows.is_empty() || is_as_given {
            return insert_select::picked(&rows.rows, &of_key).map(Ok);
        }
        let columns: Vec<(usize, &Carrier)> = of_key.iter().copied().zip(&carriers).collect();
        let part = Part {
            shard: 0,
            sql: plan.sql_of_keys(&carriers).into(),
            rows: Vec::new(),
            is_verbatim: false,
            more: insert_select::arrays(&rows.rows, &columns)?,
        };
        let statement = Statement {
            types: &[],
            formats: &[],
            values: &[],
            result_formats: &[1],
            standard_conforming_strings: self.conforming_strings(),
            memory_bytes: self.db.fanout.memory_bytes,
            holds: scatter::RETURNING,
        };
        let work = CancellationToken::new();
        let parts = std::slice::from_ref(&part);
        let answer = if self.reads_within() {
            let server = vec![self.own_shard(0).await?];
            scatter::run(server, parts, Tally::Sum, &statement, &work, std::future::ready(())).await
        } else {
            let mut leg = self.lease_leg(Target::Shard(0)).await?;
            let server = vec![leg.attached.lease.server()];
            let answer = scatter::run(server, parts, Tally::Sum, &statement, &work, std::future::ready(())).await;
            let is_lost = matches!(answer, Err(scatter::Failure::Own(_)));
            release(vec![leg], if is_lost { &[0] } else { &[] });
            answer
        };
        match answer {
            Ok(answer) => Ok(Ok(insert_select::rows_among(&answer.messages))),
            Err(scatter::Failure::Server(message, _)) => Ok(Err(message)),
            Err(scatter::Failure::Own(error)) => Err(error),
        }
    }
}

pub(super) fn without_position(message: Bytes) -> Bytes {
    coordinator::without_position(&Frame { bytes: message }).bytes
}

pub(super) fn collected(
    result: Result<Result<Vec<Bytes>, Error>, Failure>,
    timed_out: bool,
) -> Result<Vec<Bytes>, Unread> {
    match result {
        Ok(rows) => rows.map_err(Unread::Own),
        // The query is a part of the client's text at most: a place in it means nothing to the client.
        Err(Failure::Server(frame)) => Err(Unread::Server(without_position(frame.bytes))),
        Err(Failure::Own(_)) if timed_out => Err(Unread::Own(super::failure::too_slow("fanout.query_timeout"))),
        Err(Failure::Own(error)) => Err(Unread::Own(error)),
        Err(Failure::Unmergeable(why, error)) => Err(Unread::Unmergeable(why, error)),
    }
}
