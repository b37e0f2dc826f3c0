//! The databases that are served now, by name; a reload replaces what changed and keeps the rest with its pools.

use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::HashMap;

use crate::config::model::{Config, Database as DatabaseConfig};
use crate::session::context::Database;

type ByName = HashMap<String, Arc<Database>>;

/// See the module's description.
#[derive(Default)]
pub(super) struct Databases(ArcSwap<ByName>);

impl Databases {
    /// The database of that name.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Database>> {
        self.0.load().get(name).cloned()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Database>> {
        self.0.load().values().cloned().collect()
    }

    /// Takes over a configuration. `open` makes a database that is new or has changed;
    /// clients of what is gone are sent away at their next transaction.
    pub(super) fn replace(&self, config: &Config, mut open: impl FnMut(&Arc<DatabaseConfig>) -> Arc<Database>) {
        let before = self.0.load();
        let after: ByName = config
            .databases
            .iter()
            .map(|(name, wanted)| {
                let kept = before.get(name).filter(|known| known.config == *wanted).cloned();
                (name.clone(), kept.unwrap_or_else(|| open(wanted)))
            })
            .collect();
        for gone in before.values().filter(|known| !after.values().any(|kept| Arc::ptr_eq(kept, known))) {
            gone.close();
        }
        self.0.store(Arc::new(after));
    }
}
