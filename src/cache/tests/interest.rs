//! What nobody looks at is written without a word to Redis; who begins to look waits until every pgherd has said what it has open.

use super::loss::{Counters, read_counters, write_counters};
use super::redis_server::*;
use super::*;
use crate::config::model::Redis;

const ORDERS: u32 = 16_400;
const CUSTOMERS: u32 = 16_401;

struct Pair {
    redis: RedisServer,
    one: Member,
    other: Member,
    count: Key,
}

impl Pair {
    /// Two pgherds, of which both have served already, and nobody has looked at ORDERS.
    async fn new(faults: Faults) -> Self {
        let redis = RedisServer::start().await;
        // Long enough for what a story does between two heartbeats.
        let settings = Redis { lease: LEASE * 4, ..redis.settings() };
        let config = Cache { redis: Some(settings), ..config() };
        let backends = Arc::default();
        let one = Member::join_with(config.clone(), &backends, 1, faults).await;
        let other = Member::join_with(config, &backends, 2, faults).await;
        // The machine is shared.
        let patient = Duration::from_secs(10);
        for member in [&one, &other] {
            member.cache.shared.as_ref().expect("with Redis").be_patient(patient);
        }
        let count = key(&one.cache, "SELECT count(*) FROM orders");
        one.fill(&key(&one.cache, "SELECT name FROM customers"), &[CUSTOMERS], "Ada").await;
        Self { redis, one, other, count }
    }

    /// Whether a doubt about ORDERS, or everything, stands in Redis.
    async fn is_marked(&self) -> bool {
        let Some(fred::types::Value::Array(keys)) = self.redis.command(&["KEYS", "*:state"]).await else {
            panic!("no state")
        };
        let name = keys[0].as_string().expect("a name");
        let sets = self.redis.command(&["HMGET", &name, "d:0", &format!("d:{ORDERS}")]).await.expect("an answer");
        sets.into_array().iter().any(|set| !set.is_null())
    }

    /// From here on one hears nothing, just after it has heard all.
    async fn one_goes_deaf(&self) {
        self.one_rests().await;
        self.one_hears(false);
    }

    fn one_hears(&self, hears: bool) {
        self.one.cache.shared.as_ref().expect("with Redis").be_deaf(!hears);
    }

    /// Waits until one relies on what it knows: a write of what nobody looks at goes by without a word.
    async fn one_rests(&self) {
        until("a write goes without a word", || async {
            let before = self.unwatched();
            self.one.write(&[ORDERS + 100]).await.settle();
            self.unwatched() > before
        })
        .await;
    }

    fn unwatched(&self) -> u64 {
        self.one.cache.stats().unwatched_writes
    }

    /// A write of one that Redis is not told of.
    async fn unsaid(&self) -> Doubt {
        let before = self.unwatched();
        let write = self.one.write(&[ORDERS]).await;
        assert_eq!(self.unwatched(), before + 1, "{:?}", self.one.cache.stats());
        assert!(!self.is_marked().await);
        write
    }
}

#[tokio::test]
async fn redis_hears_nothing_of_writes_that_nobody_looks_at() {
    let pair = Pair::new(Faults::default()).await;
    pair.one_rests().await;
    for _ in 0..100 {
        pair.unsaid().await.settle();
    }
    // A process that Redis does not know of yet is told of first: others could not know that it may write.
    let mut unknown = pair.one.cache.epochs().open(BackendId { pid: 77, start_us: 7 });
    let before = pair.unwatched();
    unknown.raise(&writes(&[ORDERS])).await.expect("raise");
    assert!(pair.is_marked().await);
    assert_eq!(pair.unwatched(), before);
    unknown.settle();
    // So is one that comes from another catalog, or may reach everything.
    for other in [
        WriteSetView { catalog_version: CATALOG - 1, ..writes(&[ORDERS]) },
        WriteSetView { database: true, ..writes(&[ORDERS]) },
    ] {
        let mut doubt = pair.one.cache.epochs().open(pair.one.backend);
        doubt.raise(&other).await.expect("raise");
        assert!(pair.is_marked().await);
        assert_eq!(pair.unwatched(), before);
        doubt.settle();
        pair.one.settled().await;
    }
}

#[tokio::test]
async fn what_is_open_is_said_when_somebody_begins_to_look() {
    let pair = Pair::new(Faults::default()).await;
    pair.one_rests().await;
    let write = pair.unsaid().await;
    let early = must_fill(&pair.other.cache, &pair.count, &[ORDERS]).await;
    until("the open write is marked", || pair.is_marked()).await;
    assert_eq!(early.store(answer("10")).await, Stored::Yes, "in memory, where it is not served from");
    pair.other.refuses(&pair.count, &[ORDERS], "a write is in doubt").await;
    write.settle();
    pair.other.fill(&pair.count, &[ORDERS], "11").await;
    assert_eq!(must_hit(&pair.one.cache, &pair.count, &[ORDERS]).await.0, "11");
    // From here on it is said before.
    let write = pair.one.write(&[ORDERS]).await;
    assert_eq!(must_bypass(&pair.other.cache, &pair.count, &[ORDERS]).await, "a write is in doubt");
    write.settle();
}

#[tokio::test]
async fn a_write_that_ends_before_its_pgherd_hears_is_made_good() {
    let pair = Pair::new(Faults::default()).await;
    pair.one_goes_deaf().await;
    let early = must_fill(&pair.other.cache, &pair.count, &[ORDERS]).await;
    pair.unsaid().await.settle();
    early.store(answer("10")).await;
    pair.one_hears(true);
    // Filled, and not served what was read before.
    pair.other.fill(&pair.count, &[ORDERS], "11").await;
}

#[tokio::test]
async fn who_has_just_written_what_it_is_the_first_to_look_at_keeps_the_answer() {
    let pair = Pair::new(Faults::default()).await;
    pair.one_rests().await;
    pair.unsaid().await.settle();
    must_fill(&pair.one.cache, &pair.count, &[ORDERS]).await.store(answer("10")).await;
    assert_eq!(must_hit(&pair.one.cache, &pair.count, &[ORDERS]).await.0, "10");
    // Another that has written it without a word has its say.
    let names = key(&pair.one.cache, "SELECT name FROM others");
    let others = [ORDERS + 7];
    pair.one_goes_deaf().await;
    let before = pair.unwatched();
    pair.one.write(&others).await.settle();
    assert_eq!(pair.unwatched(), before + 1);
    let early = must_fill(&pair.other.cache, &names, &others).await;
    early.store(answer("Ada")).await;
    pair.one_hears(true);
    pair.other.fill(&names, &others, "Bea").await;
}

#[tokio::test]
async fn an_answer_is_kept_back_until_all_have_heard_and_then_shared() {
    let pair = Pair::new(Faults::default()).await;
    pair.one_goes_deaf().await;
    let early = must_fill(&pair.other.cache, &pair.count, &[ORDERS]).await;
    early.store(answer("10")).await;
    // Whoever asks waits with it, and nobody runs the statement again.
    let waiting = tokio::spawn({
        let (cache, count) = (pair.other.cache.clone(), pair.count.clone());
        async move { must_hit(&cache, &count, &[ORDERS]).await }
    });
    until("it waits", || async { pair.other.cache.stats().waits == 1 }).await;
    assert!(!waiting.is_finished());
    pair.one_hears(true);
    assert_eq!(waiting.await.expect("served").0, "10");
    until("it is shared", || async {
        matches!(pair.one.cache.lookup(&pair.count, &[ORDERS], CATALOG).await, Lookup::Hit { tier: Tier::Redis, .. })
    })
    .await;
}

#[tokio::test]
async fn a_pgherd_that_is_slow_to_say_holds_nobody_up() {
    let pair = Pair::new(Faults::default()).await;
    pair.one_goes_deaf().await;
    let early = must_fill(&pair.other.cache, &pair.count, &[ORDERS]).await;
    pair.other.cache.shared.as_ref().expect("with Redis").be_patient(Duration::ZERO);
    early.store(answer("10")).await;
    // Whoever asks runs the statement himself, and waits for nobody.
    for _ in 0..3 {
        let reason = must_bypass(&pair.other.cache, &pair.count, &[ORDERS]).await;
        assert_eq!(reason, "a pgherd does not say yet what it writes");
    }
    pair.one_hears(true);
    until("it may be relied on", || async {
        !matches!(pair.other.cache.lookup(&pair.count, &[ORDERS], CATALOG).await, Lookup::Bypass(_))
    })
    .await;
    assert_eq!(must_hit(&pair.other.cache, &pair.count, &[ORDERS]).await.0, "10", "what is in memory is good now");
}

#[tokio::test]
async fn what_is_new_is_waited_for_however_long_ago_something_else_was() {
    let pair = Pair::new(Faults::default()).await;
    let patience = Duration::from_millis(100);
    pair.other.cache.shared.as_ref().expect("with Redis").be_patient(patience);
    // Nobody asks again, so nobody here hears that all have acted upon it.
    drop(must_fill(&pair.other.cache, &pair.count, &[ORDERS]).await);
    tokio::time::sleep(patience * 2).await;
    must_fill(&pair.other.cache, &key(&pair.one.cache, "SELECT 1 FROM other"), &[ORDERS + 7]).await;
}

#[tokio::test]
async fn nobody_is_served_until_all_know_of_a_changed_catalog() {
    let pair = Pair::new(Faults::default()).await;
    let names = key(&pair.one.cache, "SELECT name FROM customers, orders");
    pair.other.fill(&names, &[CUSTOMERS, ORDERS], "Ada").await;
    pair.one_goes_deaf().await;
    let mut ddl = pair.other.cache.epochs().open(pair.other.backend);
    ddl.raise(&WriteSetView { catalog: true, ..writes(&[]) }).await.expect("raise");
    ddl.settle();
    pair.other.settled().await;
    load_catalog(&pair.other.cache);
    let early = must_fill(&pair.other.cache, &names, &[CUSTOMERS, ORDERS]).await;
    // Of the trigger that was made, and writes CUSTOMERS, this one knows nothing.
    let before = pair.unwatched();
    pair.one.write(&[ORDERS + 100]).await.settle();
    assert_eq!(pair.unwatched(), before + 1);
    early.store(answer("Ada")).await;
    pair.one_hears(true);
    pair.other.fill(&names, &[CUSTOMERS, ORDERS], "Bea").await;
}

#[tokio::test]
async fn who_leaves_or_dies_without_having_heard_takes_nothing_along() {
    for dies in [false, true] {
        let pair = Pair::new(Faults::default()).await;
        pair.one_goes_deaf().await;
        let early = must_fill(&pair.other.cache, &pair.count, &[ORDERS]).await;
        pair.unsaid().await.settle();
        early.store(answer("10")).await;
        match dies {
            false => pair.one.shutdown.cancel(),
            true => pair.one.cache.shared.as_ref().expect("with Redis").cut_off(true),
        }
        if dies {
            pair.one_hears(true);
            pair.one.cache.shared.as_ref().expect("with Redis").cut_off(false);
        }
        pair.other.fill(&pair.count, &[ORDERS], "11").await;
    }
}

#[tokio::test]
async fn what_nobody_looks_at_any_more_is_written_without_a_word_again() {
    let pair = Pair::new(Faults::default()).await;
    pair.other.fill(&pair.count, &[ORDERS], "10").await;
    until("writes go without a word", || async {
        let before = pair.unwatched();
        pair.one.write(&[ORDERS]).await.settle();
        pair.one.settled().await;
        pair.unwatched() > before
    })
    .await;
    pair.one_rests().await;
    pair.unsaid().await.settle();
    // And who looks again begins anew.
    let write = pair.unsaid().await;
    assert!(matches!(pair.other.cache.lookup(&pair.count, &[ORDERS], CATALOG).await, Lookup::Fill(_)));
    until("the open write is marked", || pair.is_marked()).await;
    write.settle();
    pair.other.fill(&pair.count, &[ORDERS], "12").await;
}

/// Two pgherds whose readers look now and then, so that what is looked at comes and goes under the writers' hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_sees_an_old_answer_while_what_is_looked_at_comes_and_goes() {
    let pair = Pair::new(Faults::default()).await;
    let counters = Arc::new(Counters::default());
    let (mut writers, mut readers) = (Vec::new(), Vec::new());
    for member in [&pair.one, &pair.other] {
        writers.push(tokio::spawn(write_counters(member.cache.clone(), member.backend, counters.clone())));
        for rest in [150, 220] {
            let rest = Duration::from_millis(rest);
            readers.push(tokio::spawn(read_counters(member.cache.clone(), counters.clone(), rest)));
        }
    }
    let unwatched = || pair.one.cache.stats().unwatched_writes + pair.other.cache.stats().unwatched_writes;
    until("much was written without a word", || async { unwatched() > 200 }).await;
    counters.stop.cancel();
    let mut hits = 0;
    for reader in readers {
        hits += reader.await.expect("no stale answer");
    }
    for writer in writers {
        writer.await.expect("a writer");
    }
    assert!(hits > 50, "{hits} hits: {:?}", pair.one.cache.stats());
}

/// The same steps with and without each fault: what must be a miss, is served.
#[tokio::test]
async fn each_fault_is_found() {
    for faults in [
        Faults::default(),
        Faults { serve_before_all_act: true, ..Faults::default() },
        Faults { act_without_past_writes: true, ..Faults::default() },
        Faults { act_without_open_writes: true, ..Faults::default() },
    ] {
        let pair = Pair::new(faults).await;
        // Served before, or after, it is known what was written meanwhile?
        pair.one_goes_deaf().await;
        let early = must_fill(&pair.other.cache, &pair.count, &[ORDERS]).await;
        pair.unsaid().await.settle();
        early.store(answer("10")).await;
        pair.one_hears(true);
        let served = matches!(pair.other.cache.lookup(&pair.count, &[ORDERS], CATALOG).await, Lookup::Hit { .. });
        assert_eq!(served, faults.serve_before_all_act || faults.act_without_past_writes, "{faults:?}");
        if served {
            continue;
        }
        // Filled while a write is open that was not said?
        let pair = Pair::new(faults).await;
        pair.one_rests().await;
        let write = pair.unsaid().await;
        let early = must_fill(&pair.other.cache, &pair.count, &[ORDERS]).await;
        early.store(answer("10")).await;
        let served = matches!(pair.other.cache.lookup(&pair.count, &[ORDERS], CATALOG).await, Lookup::Hit { .. });
        assert_eq!(served, faults.act_without_open_writes, "{faults:?}");
        write.settle();
    }
}
