//! Chains of numbered versions: what was sent, what was acknowledged, what somebody has seen, and what a read must therefore show.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One row (or set of rows) whose version only grows. One writer at a time extends it, and every write says "if it is older than
/// this": a commit whose outcome nobody knows changes nothing when it comes late.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) id: i32,
    /// The newest version whose commit may have been sent.
    sent: AtomicI64,
    /// The newest version whose commit was acknowledged.
    acked: AtomicI64,
    /// The newest version that a reader has seen.
    seen: AtomicI64,
    /// When `acked` changed last, in microseconds since the start.
    acked_us: AtomicU64,
    /// What was known when, for runs under a bound: moments and versions, both growing.
    known: Mutex<VecDeque<(u64, i64)>>,
    /// Held by the writer that extends it.
    pub(super) pen: tokio::sync::Mutex<()>,
}

/// All chains, and what was found wrong.
#[derive(Debug)]
pub(super) struct Chains {
    chains: Vec<Chain>,
    start: Instant,
    /// How old a read may be; nothing where it may not be old at all.
    bound: Option<Duration>,
    violations: Mutex<Vec<(Duration, String)>>,
}

/// What a reader knew before it asked.
#[derive(Debug)]
pub(super) struct Before {
    floors: Vec<i64>,
    /// Whether a commit to what is read was acknowledged within the last ten milliseconds.
    pub(super) is_near: bool,
}

/// Rows of an answer: chain, version, mark.
pub(super) type Rows = Vec<(i32, i64, String)>;

/// What counts as near a commit.
const NEAR: Duration = Duration::from_millis(10);
/// Violations that are kept; a fault that is found is found again and again.
const KEPT: usize = 1000;

impl Chains {
    pub(super) fn new(ids: &[i32], bound: Option<Duration>) -> Self {
        let chain = |&id: &i32| Chain {
            id,
            sent: AtomicI64::new(0),
            acked: AtomicI64::new(0),
            seen: AtomicI64::new(0),
            acked_us: AtomicU64::new(0),
            known: Mutex::default(),
            pen: tokio::sync::Mutex::default(),
        };
        let chains = ids.iter().map(chain).collect();
        Self { chains, start: Instant::now(), bound, violations: Mutex::default() }
    }

    pub(super) fn get(&self, id: i32) -> &Chain {
        self.chains.iter().find(|chain| chain.id == id).unwrap_or_else(|| panic!("there is no chain {id}"))
    }

    /// Every commit that was acknowledged, and every version that was seen, before now (or before the bound) must show.
    pub(super) fn before(&self, ids: &[i32]) -> Before {
        let now_us = self.now_us();
        let mut before = Before { floors: Vec::with_capacity(ids.len()), is_near: false };
        for &id in ids {
            let chain = self.get(id);
            before.floors.push(match self.bound {
                None => chain.newest(),
                Some(bound) => now_us.checked_sub(micros(bound)).map_or(0, |at_us| chain.newest_at(at_us)),
            });
            let acked_us = chain.acked_us.load(Ordering::SeqCst);
            before.is_near |= acked_us > 0 && now_us.saturating_sub(acked_us) < micros(NEAR);
        }
        before
    }

    /// Compares what was read with what had to be there and what could.
    pub(super) fn judge(
        &self,
        what: &dyn Fn() -> String,
        ids: &[i32],
        before: &Before,
        read: &[(i32, i64, String)],
        expected: &dyn Fn(i64) -> Option<String>,
    ) {
        if !read.iter().map(|(id, ..)| id).eq(ids) {
            self.violation(format!("FOREIGN {}: {read:?} where rows of {ids:?} should be", what()));
            return;
        }
        for ((id, v, mark), floor) in read.iter().zip(&before.floors) {
            let chain = self.get(*id);
            let ceiling = chain.latest();
            if v < floor {
                self.violation(format!("STALE {}: chain {id} was {v}, known before: {floor}", what()));
            } else if *v > ceiling {
                self.violation(format!("UNCOMMITTED {}: chain {id} was {v}, sent so far: {ceiling}", what()));
            }
            if let Some(expected) = expected(*v).filter(|expected| expected != mark) {
                self.violation(format!("FOREIGN {}: chain {id} says {mark:?} instead of {expected:?}", what()));
            }
            self.has_seen(chain, *v);
        }
    }

    /// The same where only the version's being even or odd can be read.
    pub(super) fn judge_parity(&self, what: &dyn Fn() -> String, id: i32, before: &Before, is_odd: bool) {
        let chain = self.get(id);
        let floor = before.floors.first().copied().unwrap_or(0);
        let v = floor + i64::from((floor % 2 == 1) != is_odd);
        if v > chain.latest() {
            let ceiling = chain.latest();
            self.violation(format!("STALE {}: odd is {is_odd}, versions from {floor} to {ceiling}", what()));
        }
        if self.bound.is_none() {
            self.has_seen(chain, v);
        }
    }

    pub(super) fn violation(&self, what: String) {
        let mut violations = self.violations.lock();
        if violations.len() < KEPT {
            violations.push((self.start.elapsed(), what));
        }
    }

    pub(super) fn violations(&self) -> Vec<(Duration, String)> {
        self.violations.lock().clone()
    }

    pub(super) fn is_violated(&self) -> bool {
        !self.violations.lock().is_empty()
    }

    /// A commit was acknowledged.
    pub(super) fn acknowledged(&self, chain: &Chain, version: i64) {
        chain.acked.fetch_max(version, Ordering::SeqCst);
        chain.acked_us.store(self.now_us(), Ordering::SeqCst);
        self.remember(chain, version);
    }

    fn has_seen(&self, chain: &Chain, version: i64) {
        if chain.seen.fetch_max(version, Ordering::SeqCst) < version {
            self.remember(chain, version);
        }
    }

    /// From now on it is known that this version is there.
    fn remember(&self, chain: &Chain, version: i64) {
        let Some(bound) = self.bound else { return };
        let mut known = chain.known.lock();
        let now_us = self.now_us();
        if known.back().is_none_or(|(_, newest)| *newest < version) {
            known.push_back((now_us, version));
        }
        // What a read may still have to show is the newest from before the bound, and all after it.
        let long_ago = now_us.saturating_sub(2 * micros(bound));
        while known.get(1).is_some_and(|(at, _)| *at < long_ago) {
            known.pop_front();
        }
    }

    fn now_us(&self) -> u64 {
        micros(self.start.elapsed())
    }
}

impl Chain {
    /// The version to write next; from here on it may be seen.
    pub(super) fn next(&self) -> i64 {
        self.sent.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The version that was begun last.
    pub(super) fn latest(&self) -> i64 {
        self.sent.load(Ordering::SeqCst)
    }

    fn newest(&self) -> i64 {
        self.acked.load(Ordering::SeqCst).max(self.seen.load(Ordering::SeqCst))
    }

    fn newest_at(&self, at_us: u64) -> i64 {
        let known = self.known.lock();
        known.iter().rev().find(|(known_us, _)| *known_us <= at_us).map_or(0, |(_, version)| *version)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[test]
fn the_checker_knows_old_new_and_impossible_reads() {
    let chains = Chains::new(&[1, 2], None);
    let read = |before: &Before, v: i64, mark: &str| {
        chains.judge(&|| "a read".into(), &[1], before, &[(1, v, mark.into())], &|v| Some(format!("mark {v}")));
        chains.violations.lock().drain(..).map(|(_, what)| what).collect::<Vec<_>>().join("; ")
    };
    let chain = chains.get(1);
    assert_eq!(chain.next(), 1);
    let early = chains.before(&[1]);
    assert!(!early.is_near);
    // Sent, and not acknowledged: either is right, until somebody has seen it.
    assert_eq!(read(&early, 0, "mark 0"), "");
    assert_eq!(read(&early, 1, "mark 1"), "");
    assert_eq!(read(&early, 0, "mark 0"), "");
    let after = chains.before(&[1]);
    assert!(read(&after, 0, "mark 0").starts_with("STALE"));
    assert!(read(&after, 2, "mark 2").starts_with("UNCOMMITTED"));
    assert!(read(&after, 1, "mark 0").starts_with("FOREIGN"));
    chain.next();
    chains.acknowledged(chain, 2);
    let last = chains.before(&[1]);
    assert!(last.is_near);
    assert!(read(&last, 1, "mark 1").starts_with("STALE"));
    chains.judge(&|| "a read".into(), &[1], &last, &[], &|_| None);
    assert!(chains.is_violated(), "no rows at all");
}

#[test]
fn under_a_bound_old_is_what_was_known_before_it() {
    let chains = Chains::new(&[1], Some(Duration::from_millis(200)));
    let chain = chains.get(1);
    chain.next();
    chains.acknowledged(chain, 1);
    assert_eq!(chains.before(&[1]).floors, [0], "just now");
    std::thread::sleep(Duration::from_millis(210));
    assert_eq!(chains.before(&[1]).floors, [1], "longer ago than the bound");
    let parity = |is_odd| chains.judge_parity(&|| "a right".into(), 1, &chains.before(&[1]), is_odd);
    parity(true);
    assert!(!chains.is_violated());
    parity(false);
    assert!(chains.is_violated(), "only 2 would be even, and nobody has sent it");
}
