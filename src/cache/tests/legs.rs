//! Answers that are put together with those of other servers: strict ones, and never one that is waited for.

use std::sync::atomic::Ordering;

use super::*;

const ACCOUNTS: u32 = 16_400;

async fn at_hand(cache: &Arc<ResultCache>, key: &Key) -> Option<AtHand> {
    cache.recall_strict(key, &[ACCOUNTS], CATALOG).await
}

#[tokio::test]
async fn what_was_written_between_two_looks_is_not_good_at_the_second() {
    let cache = cache();
    let sum = key(&cache, "SELECT sum(balance) FROM accounts");
    assert!(at_hand(&cache, &sum).await.is_none());
    must_fill(&cache, &sum, &[ACCOUNTS]).await.store(answer("10")).await;
    let found = at_hand(&cache, &sum).await.expect("it is there");
    assert!(cache.still_holds(&sum, &[ACCOUNTS], CATALOG, &found).await);
    let mut write = cache.epochs().open(BACKEND);
    write.raise(&writes(&[ACCOUNTS])).await.expect("raise");
    assert!(!cache.still_holds(&sum, &[ACCOUNTS], CATALOG, &found).await, "in doubt");
    assert!(at_hand(&cache, &sum).await.is_none());
    write.settle();
    assert!(!cache.still_holds(&sum, &[ACCOUNTS], CATALOG, &found).await, "another epoch");
    must_fill(&cache, &sum, &[ACCOUNTS]).await.store(answer("11")).await;
    assert!(!cache.still_holds(&sum, &[ACCOUNTS], CATALOG, &found).await, "the old one never again");
    let found = at_hand(&cache, &sum).await.expect("it is there");
    assert_eq!(cache.serve_at_hand(&found).bytes.as_ref(), b"11");
    assert_eq!(cache.stats().memory_hits, 1);
}

#[tokio::test]
async fn nobody_waits_for_another_fill() {
    let cache = cache();
    let sum = key(&cache, "SELECT sum(balance) FROM accounts");
    let Lookup::Fill(ticket) = cache.lookup_strict(&sum, &[ACCOUNTS], CATALOG).await else { panic!("a turn") };
    let second = cache.lookup_strict(&sum, &[ACCOUNTS], CATALOG).await;
    assert!(matches!(second, Lookup::Bypass("another session is filling it")), "{second:?}");
    ticket.store(answer("10")).await;
    assert!(matches!(cache.lookup_strict(&sum, &[ACCOUNTS], CATALOG).await, Lookup::Hit { .. }));
}

#[tokio::test]
async fn nothing_is_given_while_others_may_write_without_telling() {
    let solo = solo();
    let cache = ResultCache::new("app", &config(), Arc::clone(&solo)).expect("configuration");
    load_catalog(&cache);
    let sum = key(&cache, "SELECT sum(balance) FROM accounts");
    must_fill(&cache, &sum, &[ACCOUNTS]).await.store(answer("10")).await;
    let found = at_hand(&cache, &sum).await.expect("it is there");
    solo.store(false, Ordering::Release);
    assert!(at_hand(&cache, &sum).await.is_none());
    assert!(!cache.still_holds(&sum, &[ACCOUNTS], CATALOG, &found).await);
    assert!(matches!(cache.lookup_strict(&sum, &[ACCOUNTS], CATALOG).await, Lookup::Bypass(_)));
    solo.store(true, Ordering::Release);
    assert!(at_hand(&cache, &sum).await.is_none(), "what was written meanwhile left no trace");
}
