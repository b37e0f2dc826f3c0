//! Bounds and turns, on pools that are nothing but permits.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::sync::{AcquireError, OwnedSemaphorePermit};

use super::*;

/// A pool without connections: what is not held is free.
struct Pool {
    permits: Arc<Semaphore>,
    place: Place,
    /// How long what it does not use has been idle.
    idle: Duration,
}

impl Holder for Pool {
    fn surrender(&self, idle: Duration) -> bool {
        if idle > self.idle {
            return false;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return false };
        permit.forget();
        self.place.hand_back(1);
        true
    }
}

fn pool(ledger: &Arc<Ledger>, user: &str, server: &str, server_bound: Option<u32>, max: u32) -> Arc<Pool> {
    let permits = Arc::new(Semaphore::new(0));
    Arc::new_cyclic(|pool: &Weak<Pool>| {
        let newcomer = Newcomer { user, server, server_bound, max, permits: Arc::clone(&permits) };
        let holder: Weak<Pool> = Weak::clone(pool);
        Pool { place: ledger.join(&newcomer, holder), permits, idle: Duration::ZERO }
    })
}

fn ledger(bounds: Bounds) -> Arc<Ledger> {
    let ledger = Arc::new(Ledger::default());
    ledger.set_bounds(bounds);
    ledger
}

fn total(bound: u32) -> Bounds {
    Bounds { total: Some(bound), ..Bounds::default() }
}

type Queued = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>>>>;

/// A client that stands in its pool's queue.
struct Waiting<'p> {
    _queued: Queued,
    _asking: Asking<'p>,
}

/// Takes what there is for so many clients, who then work; those who wait are returned.
fn take(pool: &Pool, clients: usize) -> Vec<Waiting<'_>> {
    let mut waiting = Vec::new();
    for _ in 0..clients {
        let mut queued: Queued = Box::pin(Arc::clone(&pool.permits).acquire_owned());
        let cx = &mut Context::from_waker(Waker::noop());
        let asking = match pool.place.take_or_ask(queued.as_mut(), cx) {
            Ok(permit) => {
                permit.expect("open").forget();
                continue;
            }
            Err(asking) => asking,
        };
        match queued.as_mut().poll(cx) {
            Poll::Ready(permit) => permit.expect("open").forget(),
            Poll::Pending => waiting.push(Waiting { _queued: queued, _asking: asking }),
        }
    }
    waiting
}

/// A client gives its connection back.
fn give_back(pool: &Pool, age: Duration) {
    if pool.place.is_pressed() && pool.place.must_yield(age) {
        pool.place.hand_back(1);
    } else {
        pool.permits.add_permits(1);
    }
    pool.place.settle();
}

#[test]
fn without_bounds_a_pool_gets_what_it_may_have() {
    let ledger = ledger(Bounds::default());
    let a = pool(&ledger, "a", "s", None, 3);
    assert_eq!(take(&a, 5).len(), 2);
    assert_eq!((a.place.granted(), ledger.standings()[0].used), (3, 3));
    drop(a);
    assert_eq!(ledger.standings()[0].used, 0, "it is given up with the pool");
}

#[test]
fn what_lies_idle_in_the_pool_that_has_most_is_taken_for_who_waits() {
    let ledger = ledger(total(6));
    let (a, b, c) =
        (pool(&ledger, "a", "s", None, 9), pool(&ledger, "b", "s", None, 9), pool(&ledger, "c", "s", None, 9));
    assert!(take(&a, 4).is_empty() && take(&b, 2).is_empty());
    for _ in 0..4 {
        give_back(&a, Duration::ZERO);
    }
    give_back(&b, Duration::ZERO);
    assert!(take(&c, 2).is_empty());
    assert_eq!((a.place.granted(), b.place.granted(), c.place.granted()), (2, 2, 2));
    assert_eq!(ledger.taken_away(), 2);
}

#[test]
fn a_flood_gives_way_to_who_has_less_and_keeps_a_turn() {
    let ledger = ledger(total(4));
    let (flood, other) = (pool(&ledger, "a", "s", None, 100), pool(&ledger, "b", "s", None, 100));
    let _many = take(&flood, 50);
    assert_eq!(flood.place.granted(), 4);
    let waiting = take(&other, 2);
    assert_eq!(waiting.len(), 2);
    give_back(&flood, Duration::ZERO);
    assert_eq!((flood.place.granted(), other.place.granted()), (3, 1), "the next one that is free");
    give_back(&flood, Duration::ZERO);
    assert_eq!((flood.place.granted(), other.place.granted()), (2, 2), "until they have the same");
    let _third = take(&other, 1);
    give_back(&flood, Duration::MAX);
    assert_eq!((flood.place.granted(), other.place.granted()), (2, 2), "and no further");
}

#[test]
fn who_has_little_keeps_what_he_may_come_back_for() {
    let ledger = ledger(total(4));
    let (flood, other) = (pool(&ledger, "a", "s", None, 100), pool(&ledger, "b", "s", None, 100));
    assert!(take(&other, 1).is_empty());
    let _many = take(&flood, 50);
    give_back(&other, Duration::MAX);
    assert_eq!((flood.place.granted(), other.place.granted()), (3, 1));
    assert!(take(&other, 1).is_empty(), "it is still there");
}

#[test]
fn the_only_connection_goes_round() {
    let ledger = ledger(total(1));
    let (a, b) = (pool(&ledger, "a", "s", None, 9), pool(&ledger, "b", "s", None, 9));
    let _of_a = take(&a, 3);
    let _of_b = take(&b, 3);
    give_back(&a, TURN / 2);
    assert_eq!((a.place.granted(), b.place.granted()), (1, 0), "its turn is not over");
    give_back(&a, TURN);
    assert_eq!((a.place.granted(), b.place.granted()), (0, 1));
    give_back(&b, TURN);
    assert_eq!((a.place.granted(), b.place.granted()), (1, 0), "those who waited longer have not been forgotten");
}

#[test]
fn what_is_granted_to_a_client_is_not_taken_before_it_looks() {
    let ledger = ledger(total(1));
    let (flood, other) = (pool(&ledger, "a", "s", None, 9), pool(&ledger, "b", "s", None, 9));
    assert!(take(&flood, 1).is_empty());
    give_back(&flood, Duration::ZERO);
    let mut queued: Queued = Box::pin(Arc::clone(&other.permits).acquire_owned());
    let cx = &mut Context::from_waker(Waker::noop());
    let asking = other.place.take_or_ask(queued.as_mut(), cx).expect_err("the flood has it");
    assert_eq!((flood.place.granted(), other.place.granted()), (0, 1), "it was idle");
    let flooding = take(&flood, 3);
    assert_eq!((flooding.len(), other.place.granted()), (3, 1), "whoever comes now waits for his turn");
    assert!(queued.as_mut().poll(cx).is_ready());
    drop(asking);
}

#[test]
fn each_bound_holds_and_only_what_helps_is_taken() {
    let bounds = Bounds { users: HashMap::from([("a".into(), 2)]), ..total(10) };
    let ledger = ledger(bounds);
    let of_a = [pool(&ledger, "a", "s", Some(3), 9), pool(&ledger, "a", "t", None, 9)];
    let of_b = pool(&ledger, "b", "s", Some(3), 9);
    assert!(take(&of_a[0], 2).is_empty());
    assert_eq!(take(&of_a[1], 1).len(), 1, "the user has two");
    assert_eq!(take(&of_b, 5).len(), 4, "the database has three");
    assert_eq!(of_b.place.reached(), [(Kind::Database, 3)]);
    let _waits = take(&of_a[1], 1);
    give_back(&of_b, Duration::MAX);
    assert_eq!(of_b.place.granted(), 1, "what b has does not help a, who is at his own bound");
}

#[test]
fn who_may_use_the_reserve_goes_beyond_the_bound() {
    let bounds = Bounds { reserve: 1, privileged: HashSet::from(["boss".into()]), ..total(2) };
    let ledger = ledger(bounds);
    let (a, boss) = (pool(&ledger, "a", "s", None, 9), pool(&ledger, "boss", "s", None, 9));
    assert_eq!(take(&a, 3).len(), 1);
    assert!(take(&boss, 1).is_empty());
    assert_eq!(take(&boss, 1).len(), 1, "one and no more");
}

#[test]
fn a_smaller_bound_takes_what_is_free_at_once_and_the_rest_as_it_comes_back() {
    let ledger = ledger(total(4));
    let a = pool(&ledger, "a", "s", None, 9);
    assert!(take(&a, 4).is_empty());
    give_back(&a, Duration::ZERO);
    ledger.set_bounds(total(2));
    assert_eq!(a.place.granted(), 3);
    give_back(&a, Duration::ZERO);
    give_back(&a, Duration::ZERO);
    assert_eq!((a.place.granted(), a.permits.available_permits()), (2, 1));
}

#[test]
fn connections_for_nobody_in_particular_are_opened_only_while_nobody_wants_them() {
    let ledger = ledger(total(1));
    let (a, b) = (pool(&ledger, "a", "s", None, 9), pool(&ledger, "b", "s", None, 9));
    assert!(a.place.take_one_more() && !b.place.take_one_more());
    a.place.hand_back(1);
    let _of_b = take(&b, 2);
    assert!(!a.place.take_one_more());
}
