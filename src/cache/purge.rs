//! Purges: what is to be forgotten, here at once and by the whole fleet as soon as Redis has been told.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::ResultCache;
use super::epochs::DATABASE;
use super::key::Key;
use super::redis::{Announced, Shared};
use crate::config::model::Consistency;
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// How long a purge waits for Redis to be told of it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge<'a> {
    /// Everything, and every quarantine.
    All,
    /// Every answer that was read from any of these relations.
    Relations(&'a [u32]),
    /// Every answer to statements of that fingerprint, and its quarantine.
    Statement(u128),
}

/// A purge that this process has made. The rest of the fleet hears of it in the background.
#[derive(Debug)]
#[must_use = "the fleet may not have been told yet"]
pub struct Purged {
    entries: u64,
    announced: Option<(Arc<Shared>, u64)>,
}

impl ResultCache {
    /// Forgets, here at once: what was being filled meanwhile is not kept either. Pgherds that serve `strict` answers serve none of
    /// it from the moment that Redis has been told, which [`Purged::told`] waits for; `bounded` ones forget everything at their next
    /// heartbeat, a third of a lease later at most. Where the fleet has no Redis, others know nothing of it.
    pub fn purge(&self, what: Purge<'_>) -> Purged {
        self.stats.add(|stats| &stats.purges);
        let (entries, announced) = match what {
            Purge::All => {
                let (entries, _) = self.memory.size();
                self.quarantine.clear();
                self.forget();
                (entries, Announced { relations: &[DATABASE], ..Announced::default() })
            }
            Purge::Relations(relations) => {
                relations.iter().for_each(|&oid| self.epochs.local.renew(oid));
                let is_it = |relation| relations.contains(&relation);
                let gone = self.memory.sweep(|_, held| held.noted.relations().any(is_it));
                (gone as u64, Announced { relations, ..Announced::default() })
            }
            Purge::Statement(fingerprint) => {
                self.quarantine.lift(fingerprint);
                // Fills under way see it when they are to be stored.
                self.statements_purged.fetch_add(1, Relaxed);
                let gone = self.memory.sweep(|key: &Key, _| key.fingerprint() == fingerprint);
                (gone as u64, Announced { statement: Some(fingerprint), ..Announced::default() })
            }
        };
        let announced = self.shared.as_ref().map(|shared| (Arc::clone(shared), self.announce(shared, announced)));
        Purged { entries, announced }
    }

    /// Tells the fleet. Where memory answers without asking Redis, only a change of the catalog is heard of by all.
    fn announce(&self, shared: &Shared, announced: Announced<'_>) -> u64 {
        match self.consistency {
            Consistency::Strict => shared.announce(announced),
            Consistency::Bounded => {
                let catalog = Some(self.epochs.local.catalog_changed(None));
                shared.announce(Announced { relations: &[DATABASE], catalog, ..announced })
            }
        }
    }
}

impl Purged {
    /// How many answers went from this process's memory.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Waits until Redis has been told, where there is one. Returns how many answers went from this process's memory.
    ///
    /// # Errors
    /// It cannot be reached for the time being. It is told when it can be; until this pgherd's registration has lapsed others may
    /// go on serving.
    pub async fn told(self) -> Result<u64, Error> {
        let Some((shared, token)) = self.announced else { return Ok(self.entries) };
        if shared.is_told(token, PATIENCE).await {
            return Ok(self.entries);
        }
        let message = "this pgherd has forgotten it, but Redis cannot be told now";
        Err(Error::new(ErrorKind::Cache, SqlState::CANNOT_CONNECT_NOW, message).detail(
            "The others are told as soon as Redis can be reached; they serve nothing once this pgherd's lease is over.",
        ))
    }
}
