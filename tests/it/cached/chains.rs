//! Chains of numbered versions: what was sent, what was acknowledged, what somebody has seen.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One row (or set of rows) whose version only grows. One writer at a time extends it, so that versions are committed in order.
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
    /// Held by the writer that extends it.
    pub(super) pen: tokio::sync::Mutex<()>,
}

/// All chains, and what was found wrong.
#[derive(Debug)]
pub(super) struct Chains {
    chains: Vec<Chain>,
    start: Instant,
    violations: Mutex<Vec<(Duration, String)>>,
}

/// What a reader knew before it asked.
#[derive(Debug)]
pub(super) struct Before {
    floors: Vec<i64>,
    /// Whether a commit to what is read was acknowledged within the last ten milliseconds.
    pub(super) is_near: bool,
}

/// What counts as near a commit.
const NEAR: Duration = Duration::from_millis(10);

impl Chains {
    pub(super) fn new(ids: &[i32]) -> Self {
        let chain = |&id: &i32| Chain {
            id,
            sent: AtomicI64::new(0),
            acked: AtomicI64::new(0),
            seen: AtomicI64::new(0),
            acked_us: AtomicU64::new(0),
            pen: tokio::sync::Mutex::default(),
        };
        Self { chains: ids.iter().map(chain).collect(), start: Instant::now(), violations: Mutex::default() }
    }

    pub(super) fn get(&self, id: i32) -> &Chain {
        self.chains.iter().find(|chain| chain.id == id).unwrap_or_else(|| panic!("there is no chain {id}"))
    }

    /// Every commit that was acknowledged, and every version that was seen, before now must show.
    pub(super) fn before(&self, ids: &[i32]) -> Before {
        let now_us = self.now_us();
        let mut before = Before { floors: Vec::with_capacity(ids.len()), is_near: false };
        for &id in ids {
            let chain = self.get(id);
            before.floors.push(chain.acked.load(Ordering::SeqCst).max(chain.seen.load(Ordering::SeqCst)));
            let acked_us = chain.acked_us.load(Ordering::SeqCst);
            before.is_near |= acked_us > 0 && now_us.saturating_sub(acked_us) < NEAR.as_micros() as u64;
        }
        before
    }

    /// Compares what was read with what had to be there and what could.
    pub(super) fn judge(
        &self,
        what: &str,
        ids: &[i32],
        before: &Before,
        read: &[(i32, i64, String)],
        marks: &[String],
    ) {
        let found: Vec<i32> = read.iter().map(|(id, ..)| *id).collect();
        let known: Vec<String> = read.iter().zip(marks).map(|((id, v, _), mark)| format!("{id}:{v}:{mark}")).collect();
        if found != ids {
            self.violation(format!("FOREIGN {what}: rows of {found:?} where {ids:?} should be; {known:?}"));
            return;
        }
        for (((id, v, mark), floor), expected) in read.iter().zip(&before.floors).zip(marks) {
            let chain = self.get(*id);
            let ceiling = chain.sent.load(Ordering::SeqCst);
            if v < floor {
                self.violation(format!("STALE {what}: chain {id} was {v}, known before: {floor}"));
            } else if *v > ceiling {
                self.violation(format!("UNCOMMITTED {what}: chain {id} was {v}, sent so far: {ceiling}"));
            }
            if mark != expected {
                self.violation(format!("FOREIGN {what}: chain {id} says {mark:?} instead of {expected:?}"));
            }
            chain.seen.fetch_max(*v, Ordering::SeqCst);
        }
    }

    pub(super) fn violation(&self, what: String) {
        let mut violations = self.violations.lock();
        violations.push((self.start.elapsed(), what));
    }

    pub(super) fn violations(&self) -> Vec<(Duration, String)> {
        self.violations.lock().clone()
    }

    pub(super) fn is_violated(&self) -> bool {
        !self.violations.lock().is_empty()
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A commit was acknowledged.
    pub(super) fn acknowledged(&self, chain: &Chain, version: i64) {
        chain.acked.fetch_max(version, Ordering::SeqCst);
        chain.acked_us.store(self.now_us(), Ordering::SeqCst);
    }
}

impl Chain {
    /// The version to write next; from here on it may be seen.
    pub(super) fn next(&self) -> i64 {
        self.sent.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The version that stands now, for a writer that holds the pen.
    pub(super) fn latest(&self) -> i64 {
        self.sent.load(Ordering::SeqCst)
    }
}
