//! Redis emptied, restarted, frozen or gone, in the middle of things.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use super::redis_server::*;
use super::*;
use crate::config::model::{OnRedisLoss, Redis};

const ORDERS: u32 = 16_400;
const CUSTOMERS: u32 = 16_401;

#[tokio::test]
async fn a_flushall_in_the_middle_of_a_write_loses_no_doubt() {
    let redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    let one = Member::join(&redis.settings(), &backends, 1).await;
    let other = Member::join(&redis.settings(), &backends, 2).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    other.fill(&count, &[ORDERS], "10").await;
    let write = one.write(&[ORDERS]).await;
    redis.command(&["FLUSHALL"]).await.expect("done");
    let flushed = Instant::now();
    // Nothing is served or filled until everyone must have come back; by then the doubt has.
    until("a lease has passed", || async {
        load_catalog(&other.cache);
        let looked = other.cache.lookup(&count, &[ORDERS], CATALOG).await;
        assert!(matches!(looked, Lookup::Bypass(_)), "{looked:?} after {:?}", flushed.elapsed());
        matches!(looked, Lookup::Bypass("a write is in doubt"))
    })
    .await;
    assert!(flushed.elapsed() >= LEASE, "{:?}", flushed.elapsed());
    write.settle();
    other.fill(&count, &[ORDERS], "11").await;
}

#[tokio::test]
async fn a_restart_in_the_middle_of_a_write_loses_no_doubt() {
    let mut redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    let one = Member::join(&redis.settings(), &backends, 1).await;
    let other = Member::join(&redis.settings(), &backends, 2).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    other.fill(&count, &[ORDERS], "10").await;
    let write = one.write(&[ORDERS]).await;
    redis.restart().await;
    other.refuses(&count, &[ORDERS], "a write is in doubt").await;
    write.settle();
    other.fill(&count, &[ORDERS], "11").await;
    assert_eq!((one.cache.stats().registrations, other.cache.stats().registrations), (2, 2));
}

#[tokio::test]
async fn without_redis_strict_reads_do_without_the_cache() {
    let mut redis = RedisServer::start().await;
    let one = Member::join(&redis.settings(), &Arc::default(), 1).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    one.fill(&count, &[ORDERS], "10").await;
    redis.kill();
    let began = Instant::now();
    for _ in 0..1_000 {
        let looked = one.cache.lookup(&count, &[ORDERS], CATALOG).await;
        assert!(matches!(looked, Lookup::Bypass(_)), "{looked:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_redis_that_hangs_is_left_in_peace() {
    let redis = RedisServer::start().await;
    let settings = Redis { timeout: Duration::from_millis(5), lease: Duration::from_secs(30), ..redis.settings() };
    let one = Member::join(&settings, &Arc::default(), 1).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    redis.freeze();
    let began = Instant::now();
    for _ in 0..1_000 {
        let looked = one.cache.lookup(&count, &[ORDERS], CATALOG).await;
        assert!(matches!(looked, Lookup::Bypass(_)), "{looked:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(one.cache.stats().redis_timeouts, 5);
    redis.thaw();
}

#[tokio::test]
async fn a_writer_that_is_cut_off_waits_until_nobody_serves() {
    let redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    let one = Member::join(&redis.settings(), &backends, 1).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    one.fill(&count, &[ORDERS], "10").await;
    redis.freeze();
    let began = Instant::now();
    let write = one.write(&[ORDERS]).await;
    // The last renewal was sent up to a third of a lease before.
    assert!(began.elapsed() >= LEASE * 6 / 10, "{:?}", began.elapsed());
    assert!(began.elapsed() < LEASE * 5, "{:?}", began.elapsed());
    assert_eq!(one.cache.stats().unmarked_writes, 1);
    write.settle();
    // The next waits no more.
    let began = Instant::now();
    one.write(&[CUSTOMERS]).await.settle();
    assert!(began.elapsed() < LEASE / 2, "{:?}", began.elapsed());

    // Redis goes on with the old renewals that lie in its sockets, and whoever reads there must see them as lapsed.
    redis.thaw();
    let other = Member::join(&redis.settings(), &backends, 2).await;
    other.fill(&count, &[ORDERS], "11").await;
    until("one is back", || async { one.is_registered() }).await;
    load_catalog(&one.cache);
    other.fill(&key(&one.cache, "SELECT 2"), &[CUSTOMERS], "12").await;
}

#[tokio::test]
async fn a_renewal_that_redis_reads_late_renews_nothing() {
    let redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    let one = Member::join(&redis.settings(), &backends, 1).await;
    let other = Member::join(&redis.settings(), &backends, 2).await;
    let names = key(&one.cache, "SELECT name FROM customers");
    other.fill(&names, &[CUSTOMERS], "Ada").await;
    other.fill(&key(&one.cache, "SELECT count(*) FROM orders"), &[ORDERS], "10").await;
    // The heartbeats of both lie in the frozen server's sockets when the write goes on without a mark.
    redis.freeze();
    one.write(&[ORDERS]).await.settle();
    // The first one's mark lies there too, and will be read late; of this one Redis has heard nothing.
    one.write(&[CUSTOMERS]).await.settle();
    assert_eq!(one.cache.stats().unmarked_writes, 2);
    one.cache.shared.as_ref().expect("with Redis").cut_off(true);
    redis.thaw();
    until("the other is back", || async { other.is_registered() }).await;
    let end = Instant::now() + LEASE * 2;
    while Instant::now() < end {
        load_catalog(&other.cache);
        let looked = other.cache.lookup(&names, &[CUSTOMERS], CATALOG).await;
        assert!(matches!(looked, Lookup::Bypass(_)), "{looked:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    one.cache.shared.as_ref().expect("with Redis").cut_off(false);
    other.fill(&names, &[CUSTOMERS], "Bea").await;
}

#[tokio::test]
async fn what_was_cached_before_an_unmarked_write_is_not_served_after() {
    let redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    let one = Member::join(&redis.settings(), &backends, 1).await;
    let other = Member::join(&redis.settings(), &backends, 2).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    other.fill(&count, &[ORDERS], "10").await;
    // Only `one` is cut off: its connection stays dead while the other's is not.
    let shared = one.cache.shared.as_ref().expect("with Redis");
    shared.cut_off(true);
    let write = one.write(&[ORDERS]).await;
    assert_eq!(one.cache.stats().unmarked_writes, 1);
    let looked = other.cache.lookup(&count, &[ORDERS], CATALOG).await;
    assert!(matches!(looked, Lookup::Bypass("a pgherd's registration has lapsed")), "{looked:?}");
    write.settle();
    let looked = other.cache.lookup(&count, &[ORDERS], CATALOG).await;
    assert!(matches!(looked, Lookup::Bypass("a pgherd's registration has lapsed")), "{looked:?}");
    shared.cut_off(false);
    other.fill(&count, &[ORDERS], "11").await;
}

#[tokio::test]
async fn a_write_through_a_server_connection_that_redis_does_not_know_is_refused() {
    let mut redis = RedisServer::start().await;
    let one = Member::join(&redis.settings(), &Arc::default(), 1).await;
    redis.kill();
    let stranger = BackendId { pid: 99, start_us: 1 };
    let mut doubt = one.cache.epochs().open(stranger);
    let error = doubt.raise(&writes(&[ORDERS])).await.expect_err("nobody would wait for it");
    assert_eq!(error.sqlstate().code(), "57P03");
    assert!(error.hint_text().is_some());
    doubt.settle();
    // Who is the only one needs nobody's leave.
    one.cache.solo.store(true, std::sync::atomic::Ordering::Release);
    let mut doubt = one.cache.epochs().open(stranger);
    doubt.raise(&writes(&[ORDERS])).await.expect("alone");
    doubt.settle();
}

#[tokio::test]
async fn a_write_before_redis_was_ever_reached_is_refused() {
    let mut redis = RedisServer::start().await;
    redis.kill();
    let absent = Cache { redis: Some(redis.settings()), ..config() };
    let one = Member::absent(absent, &Arc::default(), 1, Faults::default());
    let mut doubt = one.cache.epochs().open(one.backend);
    let error = doubt.raise(&writes(&[ORDERS])).await.expect_err("the others would not know");
    assert_eq!(error.kind(), crate::error::ErrorKind::Cache);
    doubt.settle();
}

#[tokio::test]
async fn refuse_write_refuses() {
    let mut redis = RedisServer::start().await;
    let settings = Redis { on_loss: OnRedisLoss::RefuseWrite, lease: Duration::from_secs(30), ..redis.settings() };
    let one = Member::join(&settings, &Arc::default(), 1).await;
    redis.kill();
    let began = Instant::now();
    let mut doubt = one.cache.epochs().open(one.backend);
    // Anything: what nobody looks at may go by without a word for a while.
    let anything = WriteSetView { database: true, ..writes(&[]) };
    let error = doubt.raise(&anything).await.expect_err("refused");
    assert_eq!(error.sqlstate().code(), "57P03");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(one.cache.stats().refused_writes, 1);
    doubt.settle();
    redis.restart().await;
    until("writes are taken again", || async {
        let mut doubt = one.cache.epochs().open(one.backend);
        let taken = doubt.raise(&writes(&[ORDERS])).await.is_ok();
        doubt.settle();
        taken
    })
    .await;
}

#[tokio::test]
async fn a_settle_that_redis_missed_is_made_good() {
    let redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    let one = Member::join(&redis.settings(), &backends, 1).await;
    let other = Member::join(&redis.settings(), &backends, 2).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    other.fill(&count, &[ORDERS], "10").await;
    let write = one.write(&[ORDERS]).await;
    one.cache.shared.as_ref().expect("with Redis").cut_off(true);
    write.settle();
    assert_eq!(must_bypass(&other.cache, &count, &[ORDERS]).await, "a write is in doubt");
    one.cache.shared.as_ref().expect("with Redis").cut_off(false);
    other.fill(&count, &[ORDERS], "11").await;
}

/// A table of three counters for a database: what was committed, and what was acknowledged of that.
#[derive(Default)]
pub(super) struct Counters {
    committed: [AtomicU64; 3],
    acknowledged: [AtomicU64; 3],
    pub(super) stop: CancellationToken,
}

pub(super) async fn write_counters(cache: Arc<ResultCache>, backend: BackendId, counters: Arc<Counters>) -> u64 {
    let mut written = 0;
    while !counters.stop.is_cancelled() {
        let at = usize::try_from(written % 3).expect("small");
        let mut doubt = cache.epochs().open(backend);
        if doubt.raise(&writes(&[u32::try_from(at).expect("small") + 1])).await.is_ok() {
            tokio::task::yield_now().await;
            let value = counters.committed[at].fetch_add(1, SeqCst) + 1;
            tokio::task::yield_now().await;
            counters.acknowledged[at].fetch_max(value, SeqCst);
        }
        doubt.settle();
        written += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    written
}

/// Returns the hits. Between looks at all three it rests for that long.
pub(super) async fn read_counters(cache: Arc<ResultCache>, counters: Arc<Counters>, rest: Duration) -> u64 {
    let mut hits = 0;
    for round in 0_usize.. {
        if counters.stop.is_cancelled() {
            break;
        }
        if round % 30 == 29 {
            tokio::time::sleep(rest).await;
        }
        load_catalog(&cache);
        let at = round % 3;
        let owed = counters.acknowledged[at].load(SeqCst);
        let set = [u32::try_from(at).expect("small") + 1];
        match cache.lookup(&key(&cache, &format!("{at}")), &set, CATALOG).await {
            Lookup::Hit { entry, .. } => {
                hits += 1;
                let value: u64 = String::from_utf8_lossy(&entry.bytes).parse().expect("a number");
                assert!(value >= owed, "stale: {value} < {owed}");
            }
            Lookup::Fill(ticket) => {
                let value = counters.committed[at].load(SeqCst);
                tokio::task::yield_now().await;
                ticket.store(answer(&value.to_string())).await;
            }
            Lookup::Bypass(_) | Lookup::Failed(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    hits
}

/// Two pgherds on one Redis that is emptied, frozen and killed under them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_sees_an_old_answer_whatever_happens_to_redis() {
    let mut redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    let one = Member::join(&redis.settings(), &backends, 1).await;
    let other = Member::join(&redis.settings(), &backends, 2).await;
    let counters = Arc::new(Counters::default());
    let (mut writers, mut readers) = (Vec::new(), Vec::new());
    for member in [&one, &other] {
        writers.push(tokio::spawn(write_counters(member.cache.clone(), member.backend, counters.clone())));
        readers.push(tokio::spawn(read_counters(member.cache.clone(), counters.clone(), Duration::ZERO)));
        readers.push(tokio::spawn(read_counters(member.cache.clone(), counters.clone(), Duration::ZERO)));
    }
    let pause = || tokio::time::sleep(LEASE * 3);
    pause().await;
    redis.command(&["FLUSHALL"]).await.expect("done");
    pause().await;
    redis.freeze();
    pause().await;
    redis.thaw();
    pause().await;
    redis.kill();
    pause().await;
    redis.restart().await;
    pause().await;
    pause().await;
    counters.stop.cancel();
    let (mut hits, mut written) = (0, 0);
    for reader in readers {
        hits += reader.await.expect("no stale answer");
    }
    for writer in writers {
        written += writer.await.expect("a writer");
    }
    let stats = [one.cache.stats(), other.cache.stats()];
    assert!(hits > 100 && written > 100, "only {hits} hits, {written} writes: {stats:?}");
    assert!(stats.iter().any(|stats| stats.unmarked_writes > 0), "{stats:?}");
    assert!(stats.iter().all(|stats| stats.registrations > 2), "{stats:?}");
}

#[tokio::test]
async fn what_a_dead_pgherd_left_under_way_is_waited_for_when_redis_knows_nothing_of_it() {
    let redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    let one = Member::join(&redis.settings(), &backends, 1).await;
    let other = Member::join(&redis.settings(), &backends, 2).await;
    let count = key(&other.cache, "SELECT count(*) FROM orders");
    other.fill(&count, &[ORDERS], "10").await;
    let transaction = |pid, name: &str| OpenTransaction { pid, name: name.into() };
    // Killed while a commit of its own is on its way, of which nobody knows after the loss; and the living are in transactions, too.
    std::mem::forget(one.write(&[ORDERS]).await);
    let (dead, living) = (one.backend.pid, other.backend.pid);
    one.dies().await;
    redis.command(&["FLUSHALL"]).await.expect("done");
    *backends.2.lock() = vec![transaction(dead, "3/7"), transaction(living, "4/1")];
    let nothing_is_served = async || {
        let since = Instant::now();
        while since.elapsed() < LEASE * 2 {
            load_catalog(&other.cache);
            let looked = other.cache.lookup(&count, &[ORDERS], CATALOG).await;
            assert!(matches!(looked, Lookup::Bypass(_)), "{looked:?} after {:?}", since.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    nothing_is_served().await;
    // Its process has gone, and it is prepared: whoever likes may commit it.
    *backends.2.lock() = vec![transaction(0, "700 pgherd:1.1:1:1:0"), transaction(living, "4/1")];
    nothing_is_served().await;
    other.refuses(&count, &[ORDERS], "Redis holds a new generation").await;
    // What begins after that is somebody else's.
    *backends.2.lock() = vec![transaction(dead, "3/8"), transaction(4711, "5/1"), transaction(living, "4/1")];
    other.fill(&count, &[ORDERS], "11").await;
}

#[tokio::test]
async fn the_fault_of_not_waiting_for_it_is_seen() {
    let redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    backends.2.lock().push(OpenTransaction { pid: 99, name: "3/7".into() });
    let faults = Faults { ignore_orphans: true, ..Faults::default() };
    let config = Cache { redis: Some(redis.settings()), ..config() };
    let one = Member::join_with(config, &backends, 1, faults).await;
    one.fill(&key(&one.cache, "SELECT count(*) FROM orders"), &[ORDERS], "10").await;
}
