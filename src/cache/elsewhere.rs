//! Writes made past every pgherd, as the primary's WAL tells of them: which relations are followed, and up to when they are known.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};

/// What is known of writes made elsewhere.
#[derive(Debug)]
pub(super) struct Elsewhere {
    max_lag: Duration,
    /// Everything committed before that moment has been taken in; nothing before the first time, or since the stream was lost.
    known_until: ArcSwapOption<Instant>,
    /// Relations whose changes the stream tells of.
    followed: ArcSwap<HashSet<u32>>,
}

impl Elsewhere {
    pub(super) fn new(max_lag: Duration) -> Self {
        Self { max_lag, known_until: ArcSwapOption::empty(), followed: ArcSwap::default() }
    }

    /// Whether nothing was committed longer than the bound ago that has not been taken in.
    pub(super) fn is_known(&self) -> bool {
        self.known_until.load().as_ref().is_some_and(|until| until.elapsed() <= self.max_lag)
    }

    /// How long ago all was known; `None` if it never was.
    pub(super) fn lag(&self) -> Option<Duration> {
        self.known_until.load().as_ref().map(|until| until.elapsed())
    }

    /// Whether the stream tells of changes of all of these.
    pub(super) fn follows(&self, relations: &[u32]) -> bool {
        let followed = self.followed.load();
        relations.iter().all(|relation| followed.contains(relation))
    }

    pub(super) fn set_followed(&self, relations: HashSet<u32>) {
        self.followed.store(Arc::new(relations));
    }

    pub(super) fn known_until(&self, moment: Option<Instant>) {
        self.known_until.store(moment.map(Arc::new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_before_the_first_word_and_after_the_bound() {
        let elsewhere = Elsewhere::new(Duration::from_secs(60));
        assert!(!elsewhere.is_known() && elsewhere.lag().is_none());
        elsewhere.known_until(Some(Instant::now()));
        assert!(elsewhere.is_known());
        elsewhere.known_until(Instant::now().checked_sub(Duration::from_secs(61)));
        assert!(!elsewhere.is_known());
        elsewhere.known_until(None);
        assert!(!elsewhere.is_known());
    }

    #[test]
    fn an_answer_is_followed_if_all_that_it_was_read_from_is() {
        let elsewhere = Elsewhere::new(Duration::from_secs(1));
        elsewhere.set_followed(HashSet::from([1, 2]));
        assert!(elsewhere.follows(&[1, 2]) && elsewhere.follows(&[]));
        assert!(!elsewhere.follows(&[1, 3]));
    }
}
