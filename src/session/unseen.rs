//! Code of a database's own that changes a session unseen: read from the server when it may have changed, asked for every statement
//! where there is any. The server connection that has run some is reset before anybody else gets it.

use std::sync::Arc;

use super::Session;
use super::context::{Database, Target};
use crate::backend::pool::Pool;
use crate::backend::server::ServerConn;
use crate::error::Error;
use crate::plan::unseen::{DIGEST, FUNCTIONS, REACHES, USES, Unseen};
use crate::sql::facts::{Class, Facts};

impl Database {
    /// Asks a primary's connection for the code that changes sessions unseen, if it is not what it was.
    ///
    /// # Errors
    /// The server failed.
    pub async fn learn_unseen(&self, server: &mut ServerConn) -> Result<(), Error> {
        if let Some((digest, unseen)) = read_unseen(server, self.unseen_digest().as_deref()).await? {
            self.note_unseen(&digest, unseen);
        }
        Ok(())
    }

    /// The same of a shard that holds schemas of tenants, with whatever code is in them.
    ///
    /// # Errors
    /// The server failed.
    pub async fn learn_unseen_of_shard(&self, server: &mut ServerConn, shard: usize) -> Result<(), Error> {
        let known = self.shards_unseen.read().get(&shard).map(|known| known.0.clone());
        if let Some(found) = read_unseen(server, known.as_deref()).await? {
            self.shards_unseen.write().insert(shard, found);
        }
        Ok(())
    }

    /// The same on a connection of that pool, which is the primary's or a shard's.
    ///
    /// # Errors
    /// There is none, or it failed.
    pub async fn learn_unseen_from(&self, pool: &Arc<Pool>, target: Target) -> Result<(), Error> {
        let mut lease = pool.acquire().await?;
        match target {
            Target::Shard(shard) => self.learn_unseen_of_shard(lease.server(), shard).await?,
            _ => self.learn_unseen(lease.server()).await?,
        }
        lease.release();
        Ok(())
    }

    /// Whether a statement may run such code on that shard; true while nobody has looked.
    fn may_run_unseen_on(&self, shard: usize, facts: &Facts) -> bool {
        self.shards_unseen.read().get(&shard).is_none_or(|(_, unseen)| unseen.may_run(facts))
    }
}

/// Reads such code, unless the digest is still the same.
async fn read_unseen(server: &mut ServerConn, known: Option<&str>) -> Result<Option<(Box<str>, Unseen)>, Error> {
    let digest = server.run(DIGEST).await?.into_iter().flatten().flatten().next().unwrap_or_default();
    if known == Some(&*digest) {
        return Ok(None);
    }
    let functions = server.run(FUNCTIONS).await?;
    let (uses, reaches) = (server.run(USES).await?, server.run(REACHES).await?);
    Ok(Some((digest.as_str().into(), Unseen::read(&functions, &uses, &reaches))))
}

impl Session {
    /// Notes what a statement may do that its text does not show.
    pub(super) fn note_unseen(&mut self, facts: &Facts) {
        const MAKES: [&str; 4] = ["create", "alter", "drop", "replace"];
        self.changes_code |= facts.statements.iter().any(|statement| match statement.class {
            Class::Ddl => true,
            Class::Opaque => MAKES.iter().any(|word| statement.identifiers.iter().any(|known| &**known == *word)),
            _ => false,
        });
        let may_run = match self.server.as_ref().map(|attached| attached.target) {
            None => return,
            Some(Target::Shard(shard)) if self.db.config.schemas.is_some() => self.db.may_run_unseen_on(shard, facts),
            Some(_) => self.db.may_run_unseen(facts),
        };
        if may_run && let Some(server) = self.held_server() {
            server.dirty = true;
        }
    }
}
