//! One process, no Redis.

use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::*;

const ORDERS: u32 = 16_400;
const CUSTOMERS: u32 = 16_401;

#[tokio::test]
async fn an_answer_is_served_until_its_relation_is_written() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let ticket = must_fill(&cache, &count, &[ORDERS]).await;
    assert_eq!(ticket.store(answer("10")).await, Stored::Yes);
    assert_eq!(must_hit(&cache, &count, &[ORDERS]).await, ("10".into(), Tier::Memory, Freshness::Strict));

    let mut write = cache.epochs().open(BACKEND);
    write.raise(&writes(&[ORDERS])).await.expect("raise");
    assert_eq!(must_bypass(&cache, &count, &[ORDERS]).await, "a write is in doubt");
    write.settle();

    let ticket = must_fill(&cache, &count, &[ORDERS]).await;
    assert_eq!(ticket.store(answer("11")).await, Stored::Yes);
    assert_eq!(must_hit(&cache, &count, &[ORDERS]).await.0, "11");
}

#[tokio::test]
async fn a_write_elsewhere_leaves_an_answer_alone() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    must_fill(&cache, &count, &[ORDERS]).await.store(answer("10")).await;
    let mut write = cache.epochs().open(BACKEND);
    write.raise(&writes(&[CUSTOMERS])).await.expect("raise");
    assert_eq!(must_hit(&cache, &count, &[ORDERS]).await.0, "10");
    write.settle();
    assert_eq!(must_hit(&cache, &count, &[ORDERS]).await.0, "10");
}

#[tokio::test]
async fn a_slow_fill_cannot_store_what_a_commit_made_old() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let slow = must_fill(&cache, &count, &[ORDERS]).await;
    let mut write = cache.epochs().open(BACKEND);
    write.raise(&writes(&[ORDERS])).await.expect("raise");
    write.settle();
    assert_eq!(slow.store(answer("10")).await, Stored::No("written to meanwhile"));
    must_fill(&cache, &count, &[ORDERS]).await;
}

#[tokio::test]
async fn a_fill_is_not_stored_while_a_write_is_in_doubt() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let fill = must_fill(&cache, &count, &[ORDERS]).await;
    let mut write = cache.epochs().open(BACKEND);
    write.raise(&writes(&[ORDERS])).await.expect("raise");
    assert_eq!(fill.store(answer("10")).await, Stored::No("written to meanwhile"));
    write.settle();
}

#[tokio::test]
async fn two_writers_are_two_doubts() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let (mut one, mut other) = (cache.epochs().open(BACKEND), cache.epochs().open(BACKEND));
    one.raise(&writes(&[ORDERS])).await.expect("raise");
    other.raise(&writes(&[ORDERS])).await.expect("raise");
    one.settle();
    must_bypass(&cache, &count, &[ORDERS]).await;
    other.settle();
    must_fill(&cache, &count, &[ORDERS]).await;
    assert_eq!(cache.stats().doubts, 0);
}

#[tokio::test]
async fn an_opaque_write_puts_everything_in_doubt() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    must_fill(&cache, &count, &[ORDERS]).await.store(answer("10")).await;
    let mut write = cache.epochs().open(BACKEND);
    write.raise(&WriteSetView { database: true, ..writes(&[]) }).await.expect("raise");
    must_bypass(&cache, &count, &[ORDERS]).await;
    write.settle();
    must_fill(&cache, &count, &[ORDERS]).await;
}

#[tokio::test]
async fn nothing_is_served_from_an_old_catalog() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    must_fill(&cache, &count, &[ORDERS]).await.store(answer("10")).await;
    let mut changes = cache.catalog_epoch();
    changes.mark_unchanged();

    let mut ddl = cache.epochs().open(BACKEND);
    ddl.raise(&WriteSetView { catalog: true, ..writes(&[]) }).await.expect("raise");
    ddl.settle();
    assert!(changes.has_changed().expect("sender lives"));
    assert_eq!(must_bypass(&cache, &count, &[ORDERS]).await, "the catalog is being reloaded");

    // A snapshot that was begun before the change says nothing about the present catalog.
    let present = *changes.borrow();
    cache.catalog_loaded(CATALOG + 1, CatalogEpoch(present.0 ^ 1));
    must_bypass(&cache, &count, &[ORDERS]).await;
    cache.catalog_loaded(CATALOG + 1, present);
    must_bypass(&cache, &count, &[ORDERS]).await;
    assert!(matches!(cache.lookup(&count, &[ORDERS], CATALOG + 1).await, Lookup::Fill(_)));
}

#[tokio::test]
async fn a_write_planned_before_a_catalog_change_may_reach_further_than_it_knew() {
    let cache = cache();
    let totals = key(&cache, "SELECT * FROM totals");
    // An INSERT is on its way to the server when CREATE TRIGGER overtakes it: it will write `customers` too.
    let mut insert = cache.epochs().open(BACKEND);
    insert.raise(&writes(&[ORDERS])).await.expect("raise");
    let mut ddl = cache.epochs().open(BACKEND);
    ddl.raise(&WriteSetView { catalog: true, ..writes(&[]) }).await.expect("raise");
    ddl.settle();
    load_catalog(&cache);
    must_bypass(&cache, &totals, &[CUSTOMERS]).await;
    insert.settle();
    must_fill(&cache, &totals, &[CUSTOMERS]).await;

    // And one that is planned with the old catalog after the change.
    cache.catalog_changed();
    let mut insert = cache.epochs().open(BACKEND);
    insert.raise(&writes(&[ORDERS])).await.expect("raise");
    load_catalog(&cache);
    must_bypass(&cache, &totals, &[CUSTOMERS]).await;
    insert.settle();
    must_fill(&cache, &totals, &[CUSTOMERS]).await;
}

#[tokio::test]
async fn an_unknown_outcome_stays_in_doubt_until_the_server_process_is_gone() {
    struct Server(Mutex<Option<BackendId>>, tokio::sync::Semaphore);
    #[async_trait::async_trait]
    impl BackendChecker for Server {
        async fn backend_gone(&self, backend: BackendId) -> Result<bool, Error> {
            self.1.add_permits(1);
            Ok(*self.0.lock() != Some(backend))
        }

        async fn open_transactions(&self) -> Result<Vec<OpenTransaction>, Error> {
            Ok(Vec::new())
        }
    }
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let server = Arc::new(Server(Mutex::new(Some(BACKEND)), tokio::sync::Semaphore::new(0)));
    let shutdown = CancellationToken::new();
    let background = tokio::spawn(cache.clone().run(server.clone(), shutdown.clone()));

    let mut write = cache.epochs().open(BACKEND);
    write.raise(&writes(&[ORDERS])).await.expect("raise");
    write.abandon();
    server.1.acquire_many(2).await.expect("the server is asked").forget();
    must_bypass(&cache, &count, &[ORDERS]).await;

    *server.0.lock() = None;
    let ticket = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            match cache.lookup(&count, &[ORDERS], CATALOG).await {
                Lookup::Fill(ticket) => break ticket,
                _ => tokio::task::yield_now().await,
            }
        }
    });
    ticket.await.expect("the doubt is settled").store(answer("11")).await;
    assert_eq!(cache.stats().unknown_outcomes, 1);
    shutdown.cancel();
    background.await.expect("the task ends");
}

#[tokio::test]
async fn a_dropped_doubt_is_an_unknown_outcome() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let mut write = cache.epochs().open(BACKEND);
    write.raise(&writes(&[ORDERS])).await.expect("raise");
    drop(write);
    must_bypass(&cache, &count, &[ORDERS]).await;
    drop(cache.epochs().open(BACKEND));
    assert_eq!(cache.stats().unknown_outcomes, 1);
}

#[tokio::test]
async fn all_who_wait_get_the_one_fill() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let ticket = must_fill(&cache, &count, &[ORDERS]).await;
    let waiters: Vec<_> = (0..20)
        .map(|_| {
            let (cache, count) = (cache.clone(), count.clone());
            tokio::spawn(async move { must_hit(&cache, &count, &[ORDERS]).await.0 })
        })
        .collect();
    while cache.stats().waits < 20 {
        tokio::task::yield_now().await;
    }
    ticket.store(answer("10")).await;
    for waiter in waiters {
        assert_eq!(waiter.await.expect("a hit"), "10");
    }
    assert_eq!((cache.stats().misses, cache.stats().fills), (1, 1));
}

#[tokio::test]
async fn the_next_who_waits_fills_when_the_filler_fails() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let failing = must_fill(&cache, &count, &[ORDERS]).await;
    let filled = Arc::new(Mutex::new(0));
    let waiters: Vec<_> = (0..5)
        .map(|_| {
            let (cache, count, filled) = (cache.clone(), count.clone(), filled.clone());
            tokio::spawn(async move {
                match cache.lookup(&count, &[ORDERS], CATALOG).await {
                    Lookup::Fill(ticket) => {
                        *filled.lock() += 1;
                        assert_eq!(ticket.store(answer("10")).await, Stored::Yes);
                    }
                    Lookup::Hit { entry, .. } => assert_eq!(&entry.bytes[..], b"10"),
                    other => panic!("{other:?}"),
                }
            })
        })
        .collect();
    while cache.stats().waits < 5 {
        tokio::task::yield_now().await;
    }
    drop(failing);
    for waiter in waiters {
        waiter.await.expect("served");
    }
    assert_eq!(*filled.lock(), 1);
    assert_eq!(cache.stats().abandoned_fills, 1);
}

#[tokio::test]
async fn who_waits_is_sent_on_when_the_answer_cannot_be_cached() {
    let cache = cache();
    let large = key(&cache, "SELECT * FROM orders");
    let ticket = must_fill(&cache, &large, &[ORDERS]).await;
    let waiter = tokio::spawn({
        let (cache, large) = (cache.clone(), large.clone());
        async move { must_bypass(&cache, &large, &[ORDERS]).await }
    });
    while cache.stats().waits < 1 {
        tokio::task::yield_now().await;
    }
    ticket.uncacheable("a notice came with it");
    assert_eq!(waiter.await.expect("sent on"), "a notice came with it");
}

#[tokio::test]
async fn nobody_waits_for_ever_for_a_slow_fill() {
    let mut cache = cache();
    Arc::get_mut(&mut cache).expect("not shared yet").fill_wait = Duration::from_millis(20);
    let count = key(&cache, "SELECT count(*) FROM orders");
    let _slow = must_fill(&cache, &count, &[ORDERS]).await;
    assert_eq!(must_bypass(&cache, &count, &[ORDERS]).await, "another fill is slow");
}

#[tokio::test]
async fn an_answer_is_as_large_as_allowed_and_no_larger() {
    let cache = cache();
    let (fits, large) = (key(&cache, "SELECT 1"), key(&cache, "SELECT 2"));
    let limit = config().max_entry_bytes;
    let stored = must_fill(&cache, &fits, &[ORDERS]).await.store(answer(&"x".repeat(limit))).await;
    assert_eq!(stored, Stored::Yes);
    let stored = must_fill(&cache, &large, &[ORDERS]).await.store(answer(&"x".repeat(limit + 1))).await;
    assert_eq!(stored, Stored::No("larger than an entry may be"));
    assert_eq!(must_bypass(&cache, &large, &[ORDERS]).await, "larger than an entry may be");
}

#[tokio::test]
async fn memory_stays_within_its_bound() {
    let bound = 4 << 20;
    let config = Cache { memory_bytes: bound, ..config() };
    let cache = ResultCache::new("app", &config, solo()).expect("configuration");
    load_catalog(&cache);
    for i in 0..200 {
        let text = key(&cache, &format!("SELECT {i}"));
        must_fill(&cache, &text, &[ORDERS]).await.store(answer(&"x".repeat(100_000))).await;
        assert!(cache.stats().bytes <= bound, "{} bytes after {i}", cache.stats().bytes);
    }
    assert!(cache.stats().evictions > 100, "{:?}", cache.stats());
    assert!(cache.stats().entries > 30, "{} entries", cache.stats().entries);
}

#[tokio::test]
async fn an_answer_that_has_outlived_its_time_is_not_served() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let brief = Entry::new(Bytes::from_static(b"10"), 0, 1, Duration::ZERO, Duration::ZERO);
    assert_eq!(must_fill(&cache, &count, &[ORDERS]).await.store(brief).await, Stored::Yes);
    must_fill(&cache, &count, &[ORDERS]).await;
}

#[tokio::test]
async fn an_answers_time_is_counted_from_when_its_statement_was_sent() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let second = Duration::from_secs(1);
    let slow = Entry::new(Bytes::from_static(b"10"), 0, 1, 2 * second, 3 * second).as_of(Instant::now() - 2 * second);
    assert!(slow.remaining() <= second, "{:?}", slow.remaining());
    let slower = slow.clone().as_of(Instant::now() - 3 * second);
    assert_eq!(must_fill(&cache, &count, &[ORDERS]).await.store(slow).await, Stored::Yes);
    must_hit(&cache, &count, &[ORDERS]).await;
    assert!(slower.remaining().is_zero());
}

#[tokio::test]
async fn only_who_is_alone_calls_memory_strict() {
    let solo = Arc::new(AtomicBool::new(false));
    let cache = ResultCache::new("app", &config(), solo.clone()).expect("configuration");
    load_catalog(&cache);
    let count = key(&cache, "SELECT count(*) FROM orders");
    must_fill(&cache, &count, &[ORDERS]).await.store(answer("10")).await;
    assert_eq!(must_hit(&cache, &count, &[ORDERS]).await.2, Freshness::Ttl);

    // Others may have written before: what was cached then is not strict now.
    solo.store(true, Ordering::Release);
    must_fill(&cache, &count, &[ORDERS]).await.store(answer("11")).await;
    assert_eq!(must_hit(&cache, &count, &[ORDERS]).await, ("11".into(), Tier::Memory, Freshness::Strict));
    solo.store(false, Ordering::Release);
    assert_eq!(must_hit(&cache, &count, &[ORDERS]).await.2, Freshness::Ttl);
}

#[tokio::test]
async fn keys_of_one_hash_do_not_answer_for_each_other() {
    let cache = cache();
    let one = key(&cache, "SELECT 1").with_hash(7);
    let other = key(&cache, "SELECT 2").with_hash(7);
    must_fill(&cache, &one, &[ORDERS]).await.store(answer("1")).await;
    must_fill(&cache, &other, &[ORDERS]).await.store(answer("2")).await;
    assert_eq!(must_hit(&cache, &one, &[ORDERS]).await.0, "1");
    assert_eq!(must_hit(&cache, &other, &[ORDERS]).await.0, "2");
}

#[tokio::test]
async fn a_purge_forgets() {
    let cache = cache();
    let (one, other) = (key(&cache, "SELECT 1"), key(&cache, "SELECT 2"));
    must_fill(&cache, &one, &[ORDERS]).await.store(answer("1")).await;
    must_fill(&cache, &other, &[CUSTOMERS]).await.store(answer("2")).await;
    let _ = cache.purge(Purge::Relations(&[ORDERS]));
    must_fill(&cache, &one, &[ORDERS]).await.store(answer("1")).await;
    must_hit(&cache, &other, &[CUSTOMERS]).await;
    let _ = cache.purge(Purge::All);
    assert_eq!(cache.stats().entries, 0);
    // What was asked before a purge is not kept after it.
    let before = must_fill(&cache, &one, &[ORDERS]).await;
    assert_eq!(cache.purge(Purge::Statement(0)).entries(), 0);
    assert_eq!(before.store(answer("1")).await, Stored::No("purged meanwhile"));
    must_fill(&cache, &one, &[ORDERS]).await;
    must_fill(&cache, &other, &[CUSTOMERS]).await;
}

#[tokio::test]
async fn a_churn_of_distinct_answers_stays_within_the_bound() {
    let cache = ResultCache::new("app", &Cache { memory_bytes: 4 << 20, ..config() }, solo()).expect("configuration");
    load_catalog(&cache);
    for number in 0..30_000 {
        let one = key(&cache, &format!("SELECT {number}"));
        let text = "x".repeat(number % 3000);
        assert_eq!(must_fill(&cache, &one, &[ORDERS]).await.store(answer(&text)).await, Stored::Yes);
        let stats = cache.stats();
        assert!(stats.bytes <= 4 << 20, "{stats:?}");
    }
    let stats = cache.stats();
    assert!(stats.bytes > 3 << 20 && stats.evictions == 30_000 - stats.entries, "{stats:?}");
}

#[tokio::test]
async fn a_key_that_was_hit_is_answered_at_once_until_something_stands_against_it() {
    let cache = cache();
    let count = key(&cache, "SELECT count(*) FROM orders");
    let at_once = || match cache.at_once(&count, &[ORDERS], CATALOG) {
        AtOnce::Hit(entry) => Some(entry.bytes.clone()),
        AtOnce::Ask(_) => panic!("there is no Redis"),
        AtOnce::No => None,
    };
    assert_eq!(at_once(), None);
    must_fill(&cache, &count, &[ORDERS]).await.store(answer("10")).await;
    let hits = cache.stats().memory_hits;
    assert_eq!(at_once().as_deref(), Some(&b"10"[..]));
    assert_eq!(cache.stats().memory_hits, hits + 1);
    // Other relations than it was filled from are another reading of the same text.
    for relations in [&[][..], &[CUSTOMERS], &[ORDERS, CUSTOMERS]] {
        assert!(matches!(cache.at_once(&count, relations, CATALOG), AtOnce::No), "{relations:?}");
    }
    assert!(matches!(cache.at_once(&count, &[ORDERS], CATALOG - 1), AtOnce::No), "an older catalog");
    let mut write = cache.epochs().open(BACKEND);
    write.raise(&writes(&[ORDERS])).await.expect("raise");
    assert_eq!(at_once(), None);
    write.settle();
    assert_eq!(at_once(), None);
    must_fill(&cache, &count, &[ORDERS]).await.store(answer("11")).await;
    assert_eq!(at_once().as_deref(), Some(&b"11"[..]));
    cache.catalog_changed();
    assert_eq!(at_once(), None);
}

#[tokio::test]
async fn becoming_the_only_one_makes_what_was_cached_before_a_miss_at_once() {
    let solo = Arc::new(AtomicBool::new(false));
    let cache = ResultCache::new("app", &config(), solo.clone()).expect("configuration");
    load_catalog(&cache);
    let count = key(&cache, "SELECT count(*) FROM orders");
    must_fill(&cache, &count, &[ORDERS]).await.store(answer("10")).await;
    assert!(matches!(cache.at_once(&count, &[ORDERS], CATALOG), AtOnce::Hit(_)));
    solo.store(true, Ordering::SeqCst);
    assert!(matches!(cache.at_once(&count, &[ORDERS], CATALOG), AtOnce::No));
}
