//! EXPLAIN of a statement over several shards, for this session.

use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::Session;
use super::context::Target;
use super::fan_out::{DRAIN_TIMEOUT, LeasedLeg, release};
use super::planned::Execution;
use crate::error::Error;
use crate::exec::coordinator::{self, Budget};
use crate::exec::explain::{self, Manner, Ran};
use crate::exec::fanout::{self, Failure, Sink};
use crate::exec::merge::ResultFormats;
use crate::exec::merge::description::{Column, Description};
use crate::plan::distribute::{Gathered, Streamed};
use crate::plan::{Explained, Plan};
use crate::wire::writer;

/// Where rows go that nobody is to see: they are counted.
#[derive(Debug, Default)]
struct Counted {
    queue: BytesMut,
    bytes: u64,
}

impl Sink for Counted {
    fn queue(&mut self) -> &mut BytesMut {
        &mut self.queue
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.bytes += self.queue.len() as u64;
        self.queue.clear();
        Poll::Ready(Ok(()))
    }
}

impl Session {
    /// Where a statement would run, and why; nothing is run.
    pub(super) async fn explain_route(
        &mut self,
        execution: &Execution<'_>,
        inner: &str,
    ) -> Result<Vec<(String, String)>, Error> {
        let facts = self.db.shared.analyzer.facts(inner.as_bytes(), self.conforming_strings());
        let execution = Execution { facts: &facts, text: inner.as_bytes(), ..*execution };
        let plan = self.plan(&execution).await?;
        let mut rows = crate::plan::explain::render(&plan, &facts, self.conforming_strings());
        if let (Plan::FanOut(streamed), false) = (&plan, self.db.shard_caches.is_empty() || self.reads_within()) {
            rows.push(("cached by shard".to_owned(), self.cached_by_shard(&execution, streamed)));
        }
        if matches!(plan, Plan::FanOut(_)) && self.reads_within() {
            rows.push((
                "within".to_owned(),
                "the transaction: it sees what it has written, and nothing is cached".to_owned(),
            ));
        }
        Ok(rows)
    }

    /// Tells how the statement would run, and with ANALYZE how it has. An error of a server's comes back as the bytes that the
    /// client is to get.
    pub(super) async fn explain_over(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        explained: &Explained,
    ) -> Result<Result<(), Bytes>, Error> {
        let work = CancellationToken::new();
        let mut legs: Vec<LeasedLeg> = Vec::new();
        let (shards, with_coordinator) = match &explained.plan {
            Plan::FanOut(streamed) => (streamed.shards.clone(), false),
            Plan::Gather(gathered) => (gathered.shards.clone(), true),
            _ => return Err(Error::internal("only statements over several shards are explained here")),
        };
        for shard in shards {
            legs.push(self.lease_leg(Target::Shard(shard)).await?);
        }
        if with_coordinator {
            legs.push(self.lease_leg(Target::Coordinator).await?);
        }
        self.db.metrics.fanout_legs.inc_by(legs.len() as u64);
        self.cancel.slot.aim_at_work(work.clone());
        let mut timed_out = false;
        let (result, broken) = {
            let mut running = std::pin::pin!(self.told(execution, explained, &mut legs, &work));
            match tokio::time::timeout(self.db.fanout.query_timeout, &mut running).await {
                Ok(told) => told,
                Err(_) => {
                    timed_out = true;
                    work.cancel();
                    running.await
                }
            }
        };
        self.cancel.slot.work_is_over();
        release(legs, &broken);
        match result {
            Ok(lines) => {
                self.answer_plan(execution, described, &lines);
                Ok(Ok(()))
            }
            Err(Failure::Server(frame)) => Ok(Err(coordinator::without_position(&frame).bytes)),
            Err(Failure::Own(_)) if timed_out => Err(super::failure::too_slow("fanout.query_timeout")),
            Err(Failure::Unmergeable(why, error)) => match self.plan_instead(execution, why).await? {
                Some(Plan::Explain(instead)) => Box::pin(self.explain_over(execution, described, &instead)).await,
                _ => Err(error),
            },
            Err(Failure::Own(error)) => Err(error),
        }
    }

    async fn told(
        &self,
        execution: &Execution<'_>,
        explained: &Explained,
        legs: &mut [LeasedLeg],
        work: &CancellationToken,
    ) -> (Result<Vec<String>, Failure>, Vec<usize>) {
        let has_values = execution.bind.is_some_and(|(_, bind)| !bind.values.is_empty());
        let standard_conforming_strings = self.conforming_strings();
        let manner = Manner { asked: &explained.asked, masks: has_values, standard_conforming_strings };
        match &explained.plan {
            Plan::FanOut(streamed) => self.told_of_stream(execution, streamed, manner, legs, work).await,
            Plan::Gather(gathered) => self.told_of_gathering(execution, explained, gathered, manner, legs, work).await,
            _ => (Err(Failure::Own(Error::internal("nothing else is explained here"))), Vec::new()),
        }
    }

    async fn told_of_stream(
        &self,
        execution: &Execution<'_>,
        streamed: &Streamed,
        manner: Manner<'_>,
        legs: &mut [LeasedLeg],
        work: &CancellationToken,
    ) -> (Result<Vec<String>, Failure>, Vec<usize>) {
        let (formats, values) = parameters(execution);
        let run = fanout::Run {
            plan: streamed,
            types: execution.types,
            parameter_formats: formats,
            values,
            formats: ResultFormats { codes: &[], extra_float_digits: 1 },
            describe: false,
            told: None,
            max_rows: None,
            unanswered: b"",
            standard_conforming_strings: manner.standard_conforming_strings,
            memory_bytes: self.db.fanout.memory_bytes,
            max_parallel: self.db.fanout.max_parallel,
            drain_timeout: DRAIN_TIMEOUT,
        };
        let plans = match fanout::plans(&run, &manner.asked.written, legs, work).await {
            (Ok(plans), _) => plans,
            (Err(failure), broken) => return (Err(failure), broken),
        };
        if !manner.asked.analyze {
            return (Ok(explain::streamed(streamed, &plans, None, manner)), Vec::new());
        }
        // What the shards send and what becomes of it is not in their own plans: it is run once more, for nobody.
        let since = Instant::now();
        let mut sink = Counted::default();
        let outcome = fanout::run(&run, legs, &mut sink, work).await;
        let bytes = sink.bytes + sink.queue.len() as u64;
        let told = outcome.result.map(|rows| {
            let ran = Ran { given: outcome.given, rows, bytes, took: since.elapsed() };
            explain::streamed(streamed, &plans, Some(&ran), manner)
        });
        (told, outcome.broken)
    }

    async fn told_of_gathering(
        &self,
        execution: &Execution<'_>,
        explained: &Explained,
        gathered: &Gathered,
        manner: Manner<'_>,
        legs: &mut [LeasedLeg],
        work: &CancellationToken,
    ) -> (Result<Vec<String>, Failure>, Vec<usize>) {
        let (formats, values) = parameters(execution);
        let run = coordinator::Run {
            plan: gathered,
            text: explained.text.as_bytes(),
            types: execution.types,
            parameter_formats: formats,
            values,
            result_formats: &[],
            describe: false,
            told: None,
            tells_no_data: false,
            max_rows: 0,
            budget: Budget::from(&self.db.fanout),
            drain_timeout: DRAIN_TIMEOUT,
        };
        let (told, broken) = coordinator::explain(&run, manner.asked, legs, work).await;
        (told.map(|told| explain::gathered(gathered, &told, manner)), broken)
    }

    fn answer_plan(&mut self, execution: &Execution<'_>, described: bool, lines: &[String]) {
        const TEXT_OID: u32 = 25;
        let formats = execution.bind.map_or(&[][..], |(_, bind)| bind.result_formats.as_slice());
        let name = Bytes::from_static(b"QUERY PLAN");
        let column = Column { name, table: 0, attribute: 0, type_oid: TEXT_OID, size: -1, typmod: -1 };
        let out = self.out();
        if described {
            Description { columns: vec![column] }.write(out, 1, formats);
        }
        for line in lines {
            writer::data_row(out, [Some(line.as_bytes())].into_iter());
        }
        writer::command_complete(out, "EXPLAIN");
    }
}

pub(super) fn parameters<'e>(execution: &'e Execution<'_>) -> (&'e [i16], &'e [Option<&'e [u8]>]) {
    match execution.bind {
        Some((_, bind)) => (bind.formats.as_slice(), bind.values.as_slice()),
        None => (&[], &[]),
    }
}
