//! What PostgreSQL says of the fleet: whether it is the server that everything is named after, and which pgherds cannot reach Redis.
//!
//! Who is cut off from Redis raises a flag in PostgreSQL and waits for one lease before it writes without a mark; who serves has
//! looked within the last lease and seen no flag: a Redis that has lost its memory does not know who is missing. And who serves, or
//! marks what it writes, has seen within the last lease that PostgreSQL is the server of that scope: after a restart nobody may go on
//! under the old name, where the others do not look. `app` raises the flag, and looks.

use std::time::{Duration, Instant};

use super::Shared;

/// What `app` has told of PostgreSQL. Each moment is good for the scope that was there to be seen only.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    scope: String,
    /// A moment at which that server was there, or before.
    seen_at: Option<Instant>,
    /// A moment at which no flag was up, or before.
    clear_at: Option<Instant>,
    /// A moment at which this pgherd's own flag was up, since when it has stayed so.
    own_since: Option<Instant>,
}

impl Shared {
    /// From here on serving needs a look at the flags, and a write without a mark needs a flag.
    pub(crate) fn begin_watch(&self) {
        self.sight.lock().get_or_insert_default();
    }

    /// The server of that scope was asked after `asked_at`; whether no flag was up.
    pub(crate) fn was_looked_at(&self, scope: &str, asked_at: Instant, is_clear: bool) {
        let was_in_sight = self.is_in_sight();
        self.see(scope, |sight| {
            sight.seen_at = Some(asked_at);
            sight.clear_at = is_clear.then_some(asked_at);
        });
        if !was_in_sight {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// This pgherd's own flag is up since then at the server of that scope, or is about to go down.
    pub(crate) fn own_flag(&self, scope: &str, since: Option<Instant>) {
        self.see(scope, |sight| sight.own_since = since);
        self.changes.send_modify(|count| *count += 1);
    }

    /// PostgreSQL cannot be looked at, nor a flag be known to be up.
    pub(crate) fn lose_sight(&self) {
        *self.sight.lock() = Some(Sight::default());
        self.changes.send_modify(|count| *count += 1);
    }

    fn see(&self, scope: &str, what: impl FnOnce(&mut Sight)) {
        let mut sight = self.sight.lock();
        let sight = sight.get_or_insert_default();
        if sight.scope != scope {
            *sight = Sight { scope: scope.to_owned(), ..Sight::default() };
        }
        what(sight);
    }

    /// Whether nobody writes without a mark now, as far as PostgreSQL's flags tell.
    pub(super) fn may_serve(&self) -> bool {
        self.holds(|sight, lease| sight.clear_at.is_some_and(|at| at.elapsed() < lease))
    }

    /// Whether PostgreSQL is still the server of this scope, as far as anybody looked: marks made under another name are not seen.
    pub(super) fn is_in_sight(&self) -> bool {
        self.holds(|sight, lease| sight.seen_at.is_some_and(|at| at.elapsed() < lease))
    }

    /// Whether everybody who serves would have seen this pgherd's flag by now.
    pub(super) fn is_flagged(&self) -> bool {
        let flagged = |sight: &Sight, lease: Duration| {
            sight.own_since.is_some_and(|since| since.elapsed() > lease + margin(lease))
        };
        self.is_in_sight() && self.holds(flagged)
    }

    fn holds(&self, question: impl FnOnce(&Sight, Duration) -> bool) -> bool {
        let sight = self.sight.lock();
        let Some(sight) = sight.as_ref() else { return true };
        self.scope.borrow().as_deref() == Some(sight.scope.as_str()) && question(sight, self.settings.lease)
    }
}

/// What two clocks may differ in over one lease.
fn margin(lease: Duration) -> Duration {
    (lease / 20).max(Duration::from_millis(50))
}
