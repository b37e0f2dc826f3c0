//! Pgherds that cannot reach Redis say so in PostgreSQL, where everybody looks: a Redis that has lost its memory does not know
//! who is missing.
//!
//! Who is cut off raises a flag there and waits for one lease before it writes without a mark; who serves has looked within the
//! last lease and seen no flag. `app` raises the flag, and looks.

use std::time::{Duration, Instant};

use super::Shared;

/// What `app` has told of PostgreSQL's flags.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sight {
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

    /// PostgreSQL was asked after `asked_at`, and no flag was up.
    pub(crate) fn no_flag_is_up(&self, asked_at: Instant) {
        self.sight.lock().get_or_insert_default().clear_at = Some(asked_at);
    }

    /// This pgherd's own flag is up since then, or is about to go down.
    pub(crate) fn own_flag(&self, since: Option<Instant>) {
        self.sight.lock().get_or_insert_default().own_since = since;
        self.changes.send_modify(|count| *count += 1);
    }

    /// Whether nobody writes without a mark now, as far as PostgreSQL's flags tell.
    pub(super) fn may_serve(&self) -> bool {
        let lease = self.settings.lease;
        self.sight.lock().is_none_or(|sight| sight.clear_at.is_some_and(|at| at.elapsed() < lease))
    }

    /// Whether everybody who serves would have seen this pgherd's flag by now.
    pub(super) fn is_flagged(&self) -> bool {
        let wait = self.settings.lease + margin(self.settings.lease);
        self.sight.lock().is_none_or(|sight| sight.own_since.is_some_and(|since| since.elapsed() > wait))
    }
}

/// What two clocks may differ in over one lease.
fn margin(lease: Duration) -> Duration {
    (lease / 20).max(Duration::from_millis(50))
}
