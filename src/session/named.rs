//! Where SQL speaks of prepared statements: clients' names live in pgherd, and what a server connection holds is not one client's.

use std::sync::Arc;

use super::Session;
use super::context::Target;
use crate::error::Error;
use crate::sql::facts::{Effect, Facts};
use crate::wire::writer::TransactionStatus;

impl Session {
    /// `pg_prepared_statements` would show what others have prepared: it is gone before anybody looks.
    pub(super) async fn hide_statements(&mut self, facts: &Facts, target: Target) -> Result<(), Error> {
        self.show_channels(facts, target).await?;
        if !facts.effects().any(|effect| *effect == Effect::StatementsShown) {
            return Ok(());
        }
        if let Some(attached) = &mut self.server
            && attached.lease.server().expects.is_unsynced()
        {
            let own: Vec<&str> =
                self.named.values().filter_map(|it| it.identity.as_ref()).map(|it| &*it.server_name).collect();
            if attached.lease.server().held.names().all(|name| own.contains(&name)) {
                return Ok(());
            }
            return Err(Error::refused("pg_prepared_statements cannot be read in the middle of a pipeline")
                .hint("Send Sync before it."));
        }
        self.wait_for_answers().await?;
        self.attach(target).await?;
        let Some(attached) = &mut self.server else { return Ok(()) };
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        server.close_statements().await
    }

    /// Executes DEALLOCATE of what lives in pgherd, in its turn of a pipeline. False: it is the server's.
    pub(super) async fn deallocates_itself(&mut self, facts: &Facts) -> Result<bool, Error> {
        let Some([effect @ (Effect::Deallocate(_) | Effect::DeallocateAll)]) =
            facts.single().map(|it| it.effects.as_slice())
        else {
            return Ok(false);
        };
        // What stands before it in the pipeline may fail, and then it is not heard.
        self.wait_for_answers().await?;
        if self.skipping || self.held_server().is_some_and(|server| server.expects.is_skipping()) {
            return Ok(true);
        }
        if self.status == TransactionStatus::Failed {
            return Ok(false);
        }
        match effect {
            Effect::Deallocate(name) if self.named.remove(name.as_bytes()).is_some() => {
                self.answer_in_turn(b"C\0\0\0\x0fDEALLOCATE\0");
            }
            Effect::DeallocateAll if !self.keeps_server() => {
                self.named.clear();
                self.answer_in_turn(b"C\0\0\0\x13DEALLOCATE ALL\0");
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What follows in a pipeline must know that the server has forgotten every statement.
    pub(super) async fn after_deallocation(&mut self) -> Result<(), Error> {
        if !self.forgets_statements {
            return Ok(());
        }
        self.wait_for_answers().await?;
        if let Some(server) = self.held_server().filter(|server| !server.expects.is_skipping()) {
            server.held.clear();
            self.named.clear();
            // What is prepared behind it in the same pipeline stays.
            self.forgets_statements = false;
            if self.forgets_pins {
                // DISCARD ALL: what was asked for at startup is set until the pipeline ends, one way or the other.
                self.settings.note_exact(Arc::new(self.settings.startup.parse_relevant()));
            }
        }
        Ok(())
    }
}
