//! Code of a database's own that changes a session unseen: read from the server when it may have changed, asked for every statement
//! where there is any. The server connection that has run some is reset before anybody else gets it.

use std::sync::Arc;

use super::Session;
use super::context::Database;
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
        let digest = server.run(DIGEST).await?.into_iter().flatten().flatten().next().unwrap_or_default();
        if self.unseen_digest().as_deref() == Some(&digest) {
            return Ok(());
        }
        let functions = server.run(FUNCTIONS).await?;
        let (uses, reaches) = (server.run(USES).await?, server.run(REACHES).await?);
        self.note_unseen(&digest, Unseen::read(&functions, &uses, &reaches));
        Ok(())
    }

    /// The same on a connection of that pool.
    ///
    /// # Errors
    /// There is none, or it failed.
    pub async fn learn_unseen_from(&self, pool: &Arc<Pool>) -> Result<(), Error> {
        let mut lease = pool.acquire().await?;
        self.learn_unseen(lease.server()).await?;
        lease.release();
        Ok(())
    }
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
        if self.db.may_run_unseen(facts)
            && let Some(server) = self.held_server()
        {
            server.dirty = true;
        }
    }
}
