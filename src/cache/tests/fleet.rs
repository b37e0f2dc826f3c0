//! Several pgherds that share one Redis, which works.

use super::redis_server::*;
use super::*;
use crate::config::model::{Redis, Secret};

const ORDERS: u32 = 16_400;
const CUSTOMERS: u32 = 16_401;

async fn two() -> (RedisServer, Arc<Backends>, Member, Member) {
    let redis = RedisServer::start().await;
    let backends = Arc::new(Backends::default());
    let one = Member::join(&redis.settings(), &backends, 1).await;
    let other = Member::join(&redis.settings(), &backends, 2).await;
    (redis, backends, one, other)
}

#[tokio::test]
async fn what_one_has_filled_the_other_serves() {
    let (_redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    one.fill(&count, &[ORDERS], "10").await;
    assert_eq!(must_hit(&one.cache, &count, &[ORDERS]).await, ("10".into(), Tier::Memory, Freshness::Strict));
    assert_eq!(must_hit(&other.cache, &count, &[ORDERS]).await, ("10".into(), Tier::Redis, Freshness::Strict));
    assert_eq!(must_hit(&other.cache, &count, &[ORDERS]).await, ("10".into(), Tier::Memory, Freshness::Strict));
}

#[tokio::test]
async fn a_new_generation_serves_nothing_for_one_lease() {
    let redis = RedisServer::start().await;
    let began = std::time::Instant::now();
    let one = Member::join(&redis.settings(), &Arc::default(), 1).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    assert_eq!(must_bypass(&one.cache, &count, &[ORDERS]).await, "Redis holds a new generation");
    one.fill(&count, &[ORDERS], "10").await;
    assert!(began.elapsed() >= LEASE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_write_through_one_is_seen_by_the_other() {
    let (_redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    let names = key(&one.cache, "SELECT name FROM customers");
    other.fill(&count, &[ORDERS], "10").await;
    other.fill(&names, &[CUSTOMERS], "Ada").await;
    let write = one.write(&[ORDERS]).await;
    assert_eq!(must_bypass(&other.cache, &count, &[ORDERS]).await, "a write is in doubt");
    assert_eq!(must_hit(&other.cache, &names, &[CUSTOMERS]).await.0, "Ada");
    write.settle();
    other.fill(&count, &[ORDERS], "11").await;
    assert_eq!(must_hit(&one.cache, &count, &[ORDERS]).await.0, "11");
}

#[tokio::test]
async fn a_fill_that_began_before_a_commit_elsewhere_is_not_stored() {
    let (_redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    other.fill(&count, &[ORDERS], "9").await;
    one.write(&[ORDERS]).await.settle();
    until("the write is settled", || async {
        matches!(other.cache.lookup(&count, &[ORDERS], CATALOG).await, Lookup::Fill(_))
    })
    .await;
    let slow = must_fill(&other.cache, &count, &[ORDERS]).await;
    let write = one.write(&[ORDERS]).await;
    write.settle();
    until("the write is settled", || async { one.cache.shared.as_ref().is_some_and(|shared| shared.is_idle()) }).await;
    assert_eq!(slow.store(answer("10")).await, Stored::No("written to meanwhile"));
    must_fill(&one.cache, &count, &[ORDERS]).await;
    must_fill(&other.cache, &count, &[ORDERS]).await;
}

#[tokio::test]
async fn writers_on_both_are_two_doubts() {
    let (_redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    other.fill(&count, &[ORDERS], "10").await;
    let (first, second) = (one.write(&[ORDERS]).await, other.write(&[ORDERS]).await);
    first.settle();
    until("one has settled", || async { one.cache.shared.as_ref().is_some_and(|shared| shared.is_idle()) }).await;
    assert_eq!(must_bypass(&one.cache, &count, &[ORDERS]).await, "a write is in doubt");
    second.settle();
    one.fill(&count, &[ORDERS], "12").await;
}

#[tokio::test]
async fn a_change_of_the_catalog_reaches_the_fleet() {
    let (_redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    let totals = key(&one.cache, "SELECT * FROM totals");
    other.fill(&count, &[ORDERS], "10").await;
    let mut changes = other.cache.catalog_epoch();
    changes.mark_unchanged();
    // Planned before the change, on its way to the server.
    let mut early = other.write(&[ORDERS]).await;
    let mut ddl = one.cache.epochs().open(one.backend);
    ddl.raise(&WriteSetView { catalog: true, ..writes(&[]) }).await.expect("raise");
    ddl.settle();
    changes.changed().await.expect("told");
    // The one that made the change knows nothing of that write but what Redis says.
    one.refuses(&totals, &[CUSTOMERS], "a write is in doubt").await;
    one.settled().await;
    one.refuses(&totals, &[CUSTOMERS], "a write is in doubt").await;
    // What the transaction does next is computed from the new catalog.
    early.raise(&writes(&[CUSTOMERS])).await.expect("raise");
    early.settle();
    other.fill(&totals, &[CUSTOMERS], "1").await;

    // A write planned with the old catalog by someone who has not heard of the new one.
    let mut ddl = one.cache.epochs().open(one.backend);
    ddl.raise(&WriteSetView { catalog: true, ..writes(&[]) }).await.expect("raise");
    ddl.settle();
    until("one has settled", || async { one.cache.shared.as_ref().is_some_and(|shared| shared.is_idle()) }).await;
    let late = other.write(&[ORDERS]).await;
    one.refuses(&totals, &[CUSTOMERS], "a write is in doubt").await;
    late.settle();
    one.fill(&totals, &[CUSTOMERS], "2").await;
}

#[tokio::test]
async fn a_purge_and_a_change_made_elsewhere_reach_the_fleet() {
    let (_redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    let names = key(&one.cache, "SELECT name FROM customers");
    other.fill(&count, &[ORDERS], "10").await;
    other.fill(&names, &[CUSTOMERS], "Ada").await;
    one.cache.purge(Purge::Relations(&[ORDERS])).told().await.expect("told");
    one.settled().await;
    assert_eq!(must_hit(&other.cache, &names, &[CUSTOMERS]).await.0, "Ada");
    other.fill(&count, &[ORDERS], "11").await;
    one.cache.purge(Purge::All).told().await.expect("told");
    one.settled().await;
    other.fill(&names, &[CUSTOMERS], "Bea").await;
    let mut changes = other.cache.catalog_epoch();
    changes.mark_unchanged();
    one.cache.catalog_changed();
    one.settled().await;
    changes.changed().await.expect("told");
    other.fill(&count, &[ORDERS], "12").await;
    // Made while Redis cannot be reached, it is made good after.
    let shared = one.cache.shared.as_ref().expect("with Redis");
    shared.cut_off(true);
    let purged = one.cache.purge(Purge::Relations(&[ORDERS]));
    shared.cut_off(false);
    purged.told().await.expect("told");
    other.fill(&count, &[ORDERS], "13").await;
}

#[tokio::test]
async fn a_statement_that_is_purged_by_one_is_forgotten_by_all() {
    let (_redis, _, one, other) = two().await;
    let of = |cache: &ResultCache, text: &str, fingerprint| {
        cache
            .key(Protocol::Simple)
            .identity("app", "a", "a")
            .statement(text.as_bytes())
            .fingerprint(fingerprint)
            .build()
    };
    let (count, names) = (of(&one.cache, "SELECT count(*)", 7), of(&one.cache, "SELECT name", 8));
    other.fill(&count, &[ORDERS], "10").await;
    other.fill(&names, &[ORDERS], "Ada").await;
    let slow = must_fill(&other.cache, &of(&one.cache, "SELECT count( * )", 7), &[ORDERS]).await;
    // The one that is told to holds nothing of it itself.
    assert_eq!(one.cache.purge(Purge::Statement(7)).told().await.expect("told"), 0);
    must_fill(&other.cache, &count, &[ORDERS]).await;
    must_fill(&one.cache, &count, &[ORDERS]).await;
    assert_eq!(must_hit(&other.cache, &names, &[ORDERS]).await.0, "Ada");
    assert_eq!(slow.store(answer("10")).await, Stored::No("written to meanwhile"));
    other.fill(&count, &[ORDERS], "11").await;
    assert_eq!(must_hit(&one.cache, &count, &[ORDERS]).await.0, "11");
}

#[tokio::test]
async fn a_purge_reaches_those_that_answer_from_memory_alone() {
    let redis = RedisServer::start().await;
    let settings = Cache { consistency: Consistency::Bounded, redis: Some(redis.settings()), ..config() };
    let backends = Arc::new(Backends::default());
    let one = Member::join_with(settings.clone(), &backends, 1, Faults::default()).await;
    let other = Member::join_with(settings, &backends, 2, Faults::default()).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    other.fill(&count, &[ORDERS], "10").await;
    assert_eq!(must_hit(&other.cache, &count, &[ORDERS]).await.2, Freshness::Bounded);
    one.cache.purge(Purge::Relations(&[ORDERS])).told().await.expect("told");
    until("the other has heard of it", || async {
        !matches!(other.cache.lookup(&count, &[ORDERS], CATALOG).await, Lookup::Hit { .. })
    })
    .await;
}

#[tokio::test]
async fn a_purge_that_redis_does_not_hear_of_says_so() {
    let (redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    one.fill(&count, &[ORDERS], "10").await;
    let shared = one.cache.shared.as_ref().expect("with Redis");
    shared.cut_off(true);
    let error = one.cache.purge(Purge::All).told().await.expect_err("nobody was told");
    assert!(error.to_string().contains("Redis cannot be told"), "{error}");
    // By now its registration has lapsed, and the other serves nothing until it is back.
    other.refuses(&count, &[ORDERS], "a pgherd's registration has lapsed").await;
    drop(redis);
}

#[tokio::test]
async fn a_member_that_leaves_is_not_waited_for() {
    let (_redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    other.fill(&count, &[ORDERS], "10").await;
    one.shutdown.cancel();
    until("one has left", || async { one.background.is_finished() }).await;
    let until = std::time::Instant::now() + LEASE * 2;
    while std::time::Instant::now() < until {
        assert_eq!(must_hit(&other.cache, &count, &[ORDERS]).await.0, "10");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_member_that_died_is_removed_when_its_server_processes_are_gone() {
    let (_redis, backends, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    let names = key(&one.cache, "SELECT name FROM customers");
    other.fill(&names, &[CUSTOMERS], "Ada").await;
    let write = one.write(&[ORDERS]).await;
    one.dies().await;
    other.refuses(&names, &[CUSTOMERS], "a pgherd's registration has lapsed").await;
    // Asked twice, so that the first answer has been acted on.
    until("the server is asked", || async { backends.1.load(std::sync::atomic::Ordering::SeqCst) >= 2 }).await;
    assert_eq!(other.cache.stats().members_removed, 0);
    other.refuses(&names, &[CUSTOMERS], "a pgherd's registration has lapsed").await;
    // Its COMMIT may be running still. Now the server says that it is not.
    backends.0.lock().remove(&one.backend);
    other.fill(&count, &[ORDERS], "11").await;
    other.fill(&names, &[CUSTOMERS], "Ada").await;
    assert_eq!(other.cache.stats().members_removed, 1);
    std::mem::forget(write);
}

#[tokio::test]
async fn a_script_flush_is_made_good() {
    let (redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    one.fill(&count, &[ORDERS], "10").await;
    redis.command(&["SCRIPT", "FLUSH"]).await.expect("done");
    assert_eq!(must_hit(&other.cache, &count, &[ORDERS]).await.0, "10");
    other.write(&[ORDERS]).await.settle();
    one.fill(&count, &[ORDERS], "11").await;
}

#[tokio::test]
async fn a_damaged_entry_is_a_miss() {
    let (redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    one.fill(&count, &[ORDERS], "10").await;
    let Some(fred::types::Value::Array(keys)) = redis.command(&["KEYS", "*:e:*"]).await else { panic!("no keys") };
    assert_eq!(keys.len(), 1);
    let name = keys[0].as_string().expect("a name");
    redis.command(&["HSET", &name, "b", "nonsense"]).await.expect("done");
    must_fill(&other.cache, &count, &[ORDERS]).await.store(answer("10")).await;
    must_hit(&other.cache, &count, &[ORDERS]).await;
}

#[tokio::test]
async fn another_server_is_another_world() {
    let (_redis, _, one, other) = two().await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    one.fill(&count, &[ORDERS], "10").await;
    let write = one.write(&[CUSTOMERS]).await;
    one.cache.set_scope("7301-2-180000");
    other.cache.set_scope("7301-2-180000");
    // The write that was open when the server changed still stands against everything.
    other.refuses(&count, &[ORDERS], "a write is in doubt").await;
    write.settle();
    other.fill(&count, &[ORDERS], "9").await;
}

#[tokio::test]
async fn bounded_memory_answers_alone() {
    let mut redis = RedisServer::start().await;
    let bounded = Cache { redis: Some(redis.settings()), consistency: Consistency::Bounded, ..config() };
    let backends = Arc::default();
    let one = Member::join_with(bounded.clone(), &backends, 1, Faults::default()).await;
    let other = Member::join_with(bounded, &backends, 2, Faults::default()).await;
    let count = key(&one.cache, "SELECT count(*) FROM orders");
    until("the generation is old enough", || async {
        match one.cache.lookup(&count, &[ORDERS], CATALOG).await {
            Lookup::Fill(ticket) => ticket.store(answer("10")).await,
            _ => Stored::Yes,
        };
        one.cache.epochs.local.renew(ORDERS);
        matches!(other.cache.lookup(&count, &[ORDERS], CATALOG).await, Lookup::Hit { tier: Tier::Redis, .. })
    })
    .await;
    redis.kill();
    assert_eq!(must_hit(&other.cache, &count, &[ORDERS]).await, ("10".into(), Tier::Memory, Freshness::Bounded));
    // Its own writes are seen even so.
    other.write(&[ORDERS]).await.settle();
    other.fill(&count, &[ORDERS], "11").await;
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let redis = |url: &str| Redis {
        url: Secret::new(url),
        ttl: Duration::from_secs(1),
        timeout: Duration::from_millis(5),
        prefix: String::new(),
        lease: LEASE,
        on_loss: crate::config::model::OnRedisLoss::Wait,
        replicas: 0,
        max_entry_bytes: 4 << 20,
        compress_above_bytes: 64 << 10,
        ca: None,
    };
    let build = |redis| ResultCache::new("app", &Cache { redis: Some(redis), ..config() }, solo());
    for url in ["http://a", "unix:///tmp/x", "a:6379"] {
        let error = build(redis(url)).expect_err(url);
        assert!(error.message().starts_with("cache.redis.url"), "{error}");
    }
    let error = build(Redis { lease: Duration::from_millis(99), ..redis("redis://a") }).expect_err("short");
    assert!(error.message().contains("lease"), "{error}");
    assert!(build(Redis { lease: Duration::from_millis(100), ..redis("rediss://u:p@a:6380/3") }).is_ok());
}

/// The same steps with and without each fault: what must be a miss, is served.
#[tokio::test]
async fn each_fault_is_found() {
    let redis = RedisServer::start().await;
    for faults in [
        Faults::default(),
        Faults { no_second_raise: true, ..Faults::default() },
        Faults { doubt_as_flag: true, ..Faults::default() },
        Faults { store_without_comparing: true, ..Faults::default() },
    ] {
        let backends = Arc::default();
        // A fleet of its own for each fault.
        let settings = Redis { prefix: format!("{faults:?}:"), ..redis.settings() };
        let config = Cache { redis: Some(settings), ..config() };
        let one = Member::join_with(config.clone(), &backends, 1, faults).await;
        let other = Member::join_with(config, &backends, 2, faults).await;
        let count = key(&one.cache, "SELECT count(*) FROM orders");
        other.fill(&count, &[ORDERS], "10").await;

        // Old after a commit?
        one.write(&[ORDERS]).await.settle();
        one.settled().await;
        let old = matches!(other.cache.lookup(&count, &[ORDERS], CATALOG).await, Lookup::Hit { .. });
        assert_eq!(old, faults.no_second_raise, "{faults:?}");
        if old {
            continue;
        }
        // Stored although written to meanwhile?
        let slow = must_fill(&other.cache, &count, &[ORDERS]).await;
        one.write(&[ORDERS]).await.settle();
        one.settled().await;
        let stored = slow.store(answer("10")).await == Stored::Yes;
        assert_eq!(stored, faults.store_without_comparing, "{faults:?}");
        if stored {
            must_hit(&other.cache, &count, &[ORDERS]).await;
            continue;
        }
        // Served or filled although one of two writers is not done?
        let (first, second) = (one.write(&[ORDERS]).await, one.write(&[ORDERS]).await);
        first.settle();
        until("the first is settled", || async { one.cache.shared.as_ref().is_some_and(|shared| shared.open() == 1) })
            .await;
        let filled = matches!(other.cache.lookup(&count, &[ORDERS], CATALOG).await, Lookup::Fill(_));
        assert_eq!(filled, faults.doubt_as_flag, "{faults:?}");
        second.settle();
    }
}
