//! Which of pgherd's threads a socket belongs to: the one whose reactor hears of it.
//!
//! A socket may be used by any thread, but each time it becomes ready its own thread must wake the one that uses it. So a
//! socket moves along when its user does.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// The number of this thread: 0 unless [`settle`] was called on it.
pub fn here() -> usize {
    HERE.get()
}

/// Gives this thread its number.
pub fn settle(number: usize) {
    HERE.set(number);
}

/// How many of its sessions a thread would rather see on another one.
#[derive(Debug, Default)]
pub struct Surplus(AtomicUsize);

impl Surplus {
    /// From now on that many are to go.
    pub fn set(&self, sessions: usize) {
        self.0.store(sessions, Ordering::Relaxed);
    }

    /// Whether one is to go; nobody has to.
    pub fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// One goes, if it is still asked for.
    pub fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_its_own_number() {
        settle(3);
        let other = std::thread::spawn(here).join().expect("a number");
        assert_eq!((here(), other), (3, 0));
        settle(0);
    }

    #[test]
    fn no_more_go_than_were_asked_for() {
        let surplus = Surplus::default();
        assert!(!surplus.is_any() && !surplus.take());
        surplus.set(2);
        assert!(surplus.take() && surplus.take());
        assert!(!surplus.is_any() && !surplus.take());
    }
}
