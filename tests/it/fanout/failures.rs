//! Errors, cancels, limits and slow clients: one error at most, every leg idle afterwards, memory bounded.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use pgherd::error::Error;
use pgherd::exec::fanout::{self, Failure, Run, Sink};
use pgherd::exec::merge::ResultFormats;
use pgherd::plan::distribute::{Distributed, Parameters, Streamed, Unstreamed};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::cluster::{Cluster, error};
use super::leg::Collected;
use crate::harness;

fn plan(cluster: &Cluster, text: &str) -> std::sync::Arc<Streamed> {
    match cluster.plan(text, Some(Parameters::NONE)) {
        Ok(Distributed::Streamed(plan)) => plan,
        other => panic!("{text}: {other:?}"),
    }
}

fn run(plan: &Streamed, memory_bytes: usize) -> Run<'_> {
    Run {
        plan,
        types: &[],
        parameter_formats: &[],
        values: &[],
        formats: ResultFormats { codes: &[0], extra_float_digits: 1 },
        describe: true,
        told: None,
        max_rows: None,
        unanswered: b"",
        standard_conforming_strings: true,
        memory_bytes,
        max_parallel: 4,
        drain_timeout: Duration::from_secs(60),
    }
}

#[tokio::test]
async fn the_first_error_wins_and_the_other_legs_are_free_again() {
    let cluster = Cluster::start(4).await;
    for text in [
        "select id, 1 / (id - 200) from orders order by id",
        "select id, 1 / (id - 200) from orders",
        "select sum(1 / (id - 200)) from orders",
    ] {
        let plan = plan(&cluster, text);
        let mut legs = cluster.legs(&plan.shards).await;
        let outcome =
            fanout::run(&run(&plan, 1 << 20), &mut legs, &mut Collected::default(), &CancellationToken::new()).await;
        let Err(Failure::Server(frame)) = outcome.result else { panic!("{outcome:?}") };
        assert_eq!(error(&frame).0, "22012");
        assert!(outcome.broken.is_empty());
        for leg in &mut legs {
            assert!(leg.is_idle().await);
        }
    }
}

#[tokio::test]
async fn an_errors_position_points_into_the_clients_text() {
    let cluster = Cluster::start(2).await;
    let text = "select id from orders where no_such_column > 1 order by id";
    let wanted = cluster.oracle(text, &[], &[], &[0]).await.error;
    let plan = plan(&cluster, text);
    let mut legs = cluster.legs(&plan.shards).await;
    let outcome =
        fanout::run(&run(&plan, 1 << 20), &mut legs, &mut Collected::default(), &CancellationToken::new()).await;
    let Err(Failure::Server(frame)) = outcome.result else { panic!("{outcome:?}") };
    assert_eq!(Some(error(&frame)), wanted);
    let position = frame.body().windows(4).any(|window| window == b"P29\0");
    assert!(position, "{:?}", String::from_utf8_lossy(frame.body()));
}

#[tokio::test]
async fn a_cancel_reaches_every_leg() {
    let cluster = Cluster::start(2).await;
    // Hours of work on each shard, and no function that a distributed statement may not call.
    let text = "select count(*) from orders a join orders b on a.customer_id = b.customer_id join orders c on c.customer_id = a.customer_id \
        join orders d on d.customer_id = a.customer_id join orders e on e.customer_id = a.customer_id join orders f on f.customer_id = a.customer_id \
        join orders g on g.customer_id = a.customer_id join orders h on h.customer_id = a.customer_id";
    let plan = plan(&cluster, text);
    let mut legs = cluster.legs(&plan.shards).await;
    let token = CancellationToken::new();
    let observer = cluster.shards[0].client().await;
    let watch = async {
        let busy = "select count(*) from pg_stat_activity where datname = current_database() and state = 'active' and pid <> pg_backend_pid()";
        while observer.query_one(busy, &[]).await.expect("activity").get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
        token.cancel();
    };
    let run = run(&plan, 1 << 20);
    let mut sink = Collected::default();
    let (outcome, ()) = tokio::join!(fanout::run(&run, &mut legs, &mut sink, &token), watch);
    let Err(Failure::Own(error)) = outcome.result else { panic!("{outcome:?}") };
    assert_eq!(error.sqlstate().code(), "57014");
    assert!(outcome.broken.is_empty());
    for leg in &mut legs {
        assert!(leg.is_idle().await);
    }
}

#[tokio::test]
async fn groups_beyond_the_memory_allowed_are_refused_unless_they_come_in_order() {
    let cluster = Cluster::start(2).await;
    let sorted_by_aggregate = "select id, count(*) from orders group by id order by count(*)";
    let in_order = "select id, count(*) from orders group by id";
    for (text, memory_bytes, fits) in
        [(sorted_by_aggregate, 1 << 20, true), (sorted_by_aggregate, 4096, false), (in_order, 4096, true)]
    {
        let plan = plan(&cluster, text);
        let mut legs = cluster.legs(&plan.shards).await;
        let outcome =
            fanout::run(&run(&plan, memory_bytes), &mut legs, &mut Collected::default(), &CancellationToken::new())
                .await;
        match outcome.result {
            Ok(rows) => assert!(fits && rows == 400, "{text}"),
            Err(Failure::Unmergeable(Unstreamed::Memory, error)) => {
                assert!(!fits && error.sqlstate().code() == "54000", "{error:?}");
            }
            Err(other) => panic!("{other:?}"),
        }
        assert!(outcome.broken.is_empty());
        for leg in &mut legs {
            assert!(leg.is_idle().await);
        }
    }
}

/// A client that takes one piece in many polls, and remembers how much was queued at most.
#[derive(Default)]
struct Slow {
    queue: BytesMut,
    most: usize,
    polls: usize,
    taken: usize,
}

impl Sink for Slow {
    fn queue(&mut self) -> &mut BytesMut {
        &mut self.queue
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.most = self.most.max(self.queue.len());
        self.polls += 1;
        if self.polls.is_multiple_of(8) {
            let piece = self.queue.len().min(16 * 1024);
            self.taken += self.queue.split_to(piece).len();
        }
        if self.queue.is_empty() {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[tokio::test]
async fn a_slow_client_slows_the_shards_and_not_memory() {
    let cluster = Cluster::start(2).await;
    for text in ["select id, repeat('x', 20000) from orders", "select id, repeat('x', 20000) from orders order by id"] {
        let plan = plan(&cluster, text);
        let mut legs = cluster.legs(&plan.shards).await;
        let mut sink = Slow::default();
        let outcome = fanout::run(&run(&plan, 256 * 1024), &mut legs, &mut sink, &CancellationToken::new()).await;
        assert!(matches!(outcome.result, Ok(400)), "{outcome:?}");
        assert!(sink.taken + sink.queue.len() > 400 * 20_000);
        assert!(sink.most < 1024 * 1024, "{}", sink.most);
    }
}

/// A client that takes nothing until it is told to.
#[derive(Default)]
struct Stuck {
    queue: BytesMut,
    queued: Arc<AtomicUsize>,
    takes: CancellationToken,
    /// Wakes whoever has been told that nothing is taken.
    waits: Option<std::pin::Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Sink for Stuck {
    fn queue(&mut self) -> &mut BytesMut {
        &mut self.queue
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.queued.store(self.queue.len(), Relaxed);
        if !self.takes.is_cancelled() {
            let waits = self.waits.get_or_insert_with(|| Box::pin(self.takes.clone().cancelled_owned()));
            std::task::ready!(waits.as_mut().poll(cx));
        }
        self.queue.clear();
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_keeps_no_shard_from_its_snapshot() {
    const DEADLINE: Duration = Duration::from_secs(20);
    let cluster = Cluster::start(2).await;
    let plan = plan(&cluster, "select id, repeat('x', 200000) from orders");
    let mut legs = cluster.legs(&plan.shards).await;
    let (mut holder, observer) = (cluster.shards[1].client().await, cluster.shards[1].client().await);
    let held = holder.transaction().await.expect("begin");
    held.batch_execute("lock table orders in access exclusive mode").await.expect("lock");
    let mut sink = Stuck::default();
    let (queued, takes) = (Arc::clone(&sink.queued), sink.takes.clone());
    let is_so = async |what: &str| observer.query_one(what, &[]).await.expect("a look").get::<_, bool>(0);
    let watch = async {
        harness::eventually(DEADLINE, "one shard waits", async || {
            is_so("select count(*) > 0 from pg_locks where not granted").await
        })
        .await;
        harness::eventually(DEADLINE, "the client's queue is full", async || queued.load(Relaxed) >= 256 * 1024).await;
        held.rollback().await.expect("rollback");
        let gives = "select count(*) > 0 from pg_stat_activity where datname = current_database() and wait_event = 'ClientWrite'";
        harness::eventually(DEADLINE, "that shard gives its rows", async || is_so(gives).await).await;
        takes.cancel();
    };
    let (run, never) = (run(&plan, 1 << 20), CancellationToken::new());
    let (outcome, ()) = tokio::join!(fanout::run(&run, &mut legs, &mut sink, &never), watch);
    assert!(matches!(outcome.result, Ok(400)), "{outcome:?}");
}

#[tokio::test]
async fn a_shard_that_goes_away_is_an_error_and_its_leg_is_broken() {
    let cluster = Cluster::start(2).await;
    let plan = plan(&cluster, "select id from orders order by id");
    let mut legs = cluster.legs(&plan.shards).await;
    let client = cluster.shards[1].client().await;
    let kill = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    client.query(kill, &[]).await.expect("terminate");
    let outcome =
        fanout::run(&run(&plan, 1 << 20), &mut legs, &mut Collected::default(), &CancellationToken::new()).await;
    assert!(outcome.result.is_err());
    assert_eq!(outcome.broken, [1]);
    assert!(legs[0].is_idle().await);
}
