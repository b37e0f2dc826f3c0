//! A client that is pinned: for how long it may be, and whether what pins it is still there.

use tokio::time::Instant;

use super::Session;
use super::pin::{Pin, Pins};
use crate::config::model::PoolMode;
use crate::error::{Error, ErrorKind};
use crate::sql::facts::{Class, Effect, Facts};
use crate::wire::sqlstate::SqlState;

/// Whether each of [`KNOWABLE`] still holds; asked outside a transaction, where no lock is a transaction's. Whatever lies in a
/// temporary schema depends on it: that is how PostgreSQL finds it when the session ends. Every name is PostgreSQL's own, whatever
/// the client's search_path: it must not give away a server with something of its own on it.
const STILL_THERE: &str = "SELECT \
    EXISTS (SELECT FROM pg_catalog.pg_depend \
            WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
            AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()), \
    EXISTS (SELECT FROM pg_catalog.pg_locks \
            WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND locktype OPERATOR(pg_catalog.=) 'advisory'), \
    EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable), \
    EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)";

/// Pins that a server can be asked for, in the order of [`STILL_THERE`]'s columns.
const KNOWABLE: [Pin; 4] = [Pin::Temporary, Pin::AdvisoryLock, Pin::HoldCursor, Pin::Prepared];

/// What is kept of a client that is pinned.
#[derive(Debug)]
pub(super) struct Pinned {
    /// When it was.
    since: Instant,
    /// Pins that may be gone, or that never came to be: their transaction may have failed.
    doubtful: Pins,
}

impl Session {
    /// The client keeps its server connection from now on.
    pub(super) fn pin(&mut self, pin: Pin) {
        if self.mode != PoolMode::Transaction {
            return;
        }
        if self.pins.add(pin) {
            self.db.shared.metrics.pin(pin.label());
            tracing::debug!(reason = pin.label(), "client pinned to its server");
        }
        self.pinned
            .get_or_insert_with(|| Box::new(Pinned { since: Instant::now(), doubtful: Pins::default() }))
            .doubtful
            .add(pin);
    }

    /// Notes which pins a statement may end.
    pub(super) fn note_unpinning(&mut self, facts: &Facts) {
        let Some(pinned) = &mut self.pinned else { return };
        let mut doubt = |pin: Pin| {
            pinned.doubtful.add(pin);
        };
        for statement in &facts.statements {
            match statement.class {
                Class::Ddl => doubt(Pin::Temporary),
                Class::Opaque => KNOWABLE.into_iter().for_each(&mut doubt),
                _ => {}
            }
            for effect in &statement.effects {
                match effect {
                    Effect::DiscardTemp => doubt(Pin::Temporary),
                    Effect::AdvisoryUnlock => doubt(Pin::AdvisoryLock),
                    Effect::CloseCursor => doubt(Pin::HoldCursor),
                    Effect::Deallocate(_) | Effect::DeallocateAll => doubt(Pin::Prepared),
                    _ => {}
                }
            }
        }
    }

    /// Whether the server is to be asked which pins are still there.
    pub(super) fn has_doubtful_pins(&self) -> bool {
        self.pinned
            .as_ref()
            .is_some_and(|it| KNOWABLE.into_iter().any(|pin| self.pins.has(pin) && it.doubtful.has(pin)))
    }

    /// Asks the server at hand, which is at rest, which pins are still there. Where it does not say they stay.
    pub(super) async fn examine_pins(&mut self) -> Result<(), Error> {
        let Some(attached) = &mut self.server else { return Ok(()) };
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        let answer = match server.run(STILL_THERE).await {
            Ok(rows) => rows.into_iter().next().unwrap_or_default(),
            Err(error) if server.is_broken() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "a server did not say what pins its client");
                Vec::new()
            }
        };
        for (pin, is_there) in KNOWABLE.into_iter().zip(answer) {
            if is_there.as_deref() == Some("f") {
                self.pins.remove(pin);
            }
        }
        if let Some(pinned) = &mut self.pinned {
            pinned.doubtful.clear();
        }
        if !self.pins.any() {
            self.pinned = None;
        }
        Ok(())
    }

    /// When the client has been pinned for too long.
    pub(super) fn pinned_until(&self) -> Option<Instant> {
        let pinned = self.pinned.as_ref()?;
        Some(pinned.since + self.db.config.pool.pinned_max?)
    }

    /// Why a client that has been pinned for too long is sent away.
    pub(super) fn pinned_too_long(&self) -> Error {
        let reasons: Vec<&str> = self.pins.iter().map(Pin::label).collect();
        let message = "terminating connection due to pool.pinned_max";
        Error::new(ErrorKind::Limit, SqlState::CONFIGURATION_LIMIT_EXCEEDED, message)
            .detail(format!("The client kept its server connection because of: {}.", reasons.join(", ")))
            .hint("Give up what keeps it sooner, raise pool.pinned_max, or use pool mode \"session\".")
            .fatal()
    }
}
