//! Answers that roles share: which role may be given another's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};
use parking_lot::RwLock;

use super::Session;
use crate::backend::server::ServerConn;
use crate::backend::settings::literal;
use crate::catalog::model::{Catalog, Oid};
use crate::catalog::rights::{self, Rights};
use crate::error::Error;
use crate::plan::CachedRead;
use crate::plan::share::is_read_alike;

/// Roles whose rights are remembered before the memory of them starts over.
const ROLES: usize = 1000;

/// How long a role shares nothing whose rights could not be told, and how long they may take.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(2);

/// A role's rights, in a version of the catalog.
#[derive(Debug)]
struct Known {
    version: u64,
    /// `None` where they could not be told.
    rights: Option<Arc<Rights>>,
    asked_at: Instant,
}

/// What roles may read.
#[derive(Debug, Default)]
pub(super) struct RightsOfRoles {
    known: RwLock<HashMap<Box<str>, Known>>,
    /// One session asks at a time; the others share nothing meanwhile.
    turn: tokio::sync::Mutex<()>,
}

impl RightsOfRoles {
    fn get(&self, role: &str, version: u64) -> Option<Option<Arc<Rights>>> {
        let known = self.known.read();
        let known = known.get(role).filter(|known| known.version == version)?;
        let is_good = known.rights.is_some() || known.asked_at.elapsed() < ASK_AGAIN;
        is_good.then(|| known.rights.clone())
    }

    fn note(&self, role: &str, version: u64, rights: Option<Arc<Rights>>) {
        let mut known = self.known.write();
        if known.len() >= ROLES {
            *known = HashMap::new();
        }
        known.insert(role.into(), Known { version, rights, asked_at: Instant::now() });
    }
}

impl Session {
    /// What stands in the key of an answer in place of the role, where roles share it: what the search path means to this one, and what
    /// ALTER ROLE and ALTER DATABASE give to its login. `None` where it has answers of its own.
    pub(super) async fn shared_identity(&mut self, read: &CachedRead, types: &[Oid]) -> Option<String> {
        let needs = read.shared_by_readers_of.as_deref()?;
        if !types.iter().all(|oid| is_read_alike(*oid)) {
            return None;
        }
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
        let _turn = db.rights.turn.try_lock().ok()?;
        let mut lease = self.primary.try_acquire()?;
        let told = tokio::time::timeout(PATIENCE, read(lease.server(), role, catalog)).await;
        if !matches!(told, Ok(Ok(_))) {
            tracing::debug!(?told, role, "what a role may read cannot be told: it shares no answers");
            lease.server().mark_broken();
        }
        lease.release();
        let rights = told.ok().and_then(Result::ok).flatten().map(Arc::new);
        db.rights.note(role, catalog.version, rights.clone());
        rights
    }
}

/// Asks for the rights of `role`, whatever the session's path says. `None` where they are not those of that state of the catalog:
/// something was granted or revoked since.
///
/// # Errors
/// The server failed, or does not let this login ask.
async fn read(server: &mut ServerConn, role: &str, catalog: &Catalog) -> Result<Option<Rights>, Error> {
    let [digest, privileges] = rights::STATE;
    // Privileges are looked up as they are when asked, not as the statement's snapshot has them: so nothing may change meanwhile.
    server.run("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY").await?;
    server.run("SET LOCAL search_path = pg_catalog, pg_temp").await?;
    let before = server.run(digest).await?;
    let rights = Rights::of_rows(server.run(&rights::question(&literal(role))).await?);
    let privileges = server.run(privileges).await?;
    let after = server.run(digest).await?;
    server.run("COMMIT").await?;
    let is_of_catalog = first(&privileges) == Some(&*catalog.privileges) && first(&before).is_some();
    Ok((is_of_catalog && before == after).then_some(rights))
}

fn first(rows: &[Vec<Option<String>>]) -> Option<&str> {
    rows.first()?.first()?.as_deref()
}
