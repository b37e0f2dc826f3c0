//! Answers that roles share: which role may be given another's.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use parking_lot::RwLock;

use super::Session;
use super::context::Target;
use crate::catalog::model::Catalog;
use crate::catalog::rights::{self, Rights};
use crate::plan::CachedRead;

/// Roles whose rights are remembered before the memory of them starts over.
const ROLES: usize = 1000;

/// A version of the catalog, and a role's rights in it; `None` where they could not be told.
type Known = (u64, Option<Arc<Rights>>);

/// What roles may read.
#[derive(Debug, Default)]
pub(super) struct RightsOfRoles {
    known: RwLock<HashMap<Box<str>, Known>>,
    /// One session asks at a time; the others find what it was told.
    turn: tokio::sync::Mutex<()>,
}

impl RightsOfRoles {
    fn get(&self, role: &str, version: u64) -> Option<Option<Arc<Rights>>> {
        self.known.read().get(role).filter(|(of, _)| *of == version).map(|(_, rights)| rights.clone())
    }

    fn note(&self, role: &str, version: u64, rights: Option<Arc<Rights>>) {
        let mut known = self.known.write();
        if known.len() >= ROLES {
            *known = HashMap::new();
        }
        known.insert(role.into(), (version, rights));
    }
}

impl Session {
    /// What stands in the key of an answer in place of the role, where roles share it: what the search path means to this one, and what
    /// ALTER ROLE and ALTER DATABASE give to its login. `None` where it has answers of its own.
    pub(super) async fn shared_identity(&mut self, read: &CachedRead) -> Option<String> {
        let needs = read.shared_by_readers_of.as_deref()?;
        let catalog = self.db.catalog.current();
        if catalog.version != read.catalog_version {
            return None;
        }
        let role = self.effective_role();
        let path = self.search_path(&catalog, &role);
        let rights = self.rights_of(&role, &catalog).await?;
        if rights.allow(needs, &path) {
            return self.identity_of_readers(&path);
        }
        #[cfg(feature = "faults")]
        if self.db.cache.as_ref().is_some_and(|cache| cache.shares_with_anyone()) {
            return self.identity_of_readers(&path);
        }
        None
    }

    fn identity_of_readers(&self, path: &[Box<str>]) -> Option<String> {
        let baseline = self.primary.baseline()?;
        let mut identity: String = path.iter().flat_map(|schema| [schema, "\0"]).collect();
        identity.push_str(&baseline.defaults);
        Some(identity)
    }

    async fn rights_of(&mut self, role: &str, catalog: &Catalog) -> Option<Arc<Rights>> {
        if let Some(known) = self.db.rights.get(role, catalog.version) {
            return known;
        }
        // Who holds a server connection does not wait for another.
        if self.server.is_some() {
            return None;
        }
        let db = Arc::clone(&self.db);
        let _turn = db.rights.turn.lock().await;
        if let Some(known) = db.rights.get(role, catalog.version) {
            return known;
        }
        let mut lease = self.wait_for_lease(&self.pool(Target::Primary)).await.ok()?;
        let rights = match rights::read(lease.server(), role, catalog).await {
            Ok(rights) => rights.map(Arc::new),
            Err(error) => {
                tracing::debug!(%error, role, "what a role may read cannot be told: it shares no answers");
                lease.server().mark_broken();
                None
            }
        };
        lease.release();
        db.rights.note(role, catalog.version, rights.clone());
        rights
    }
}
