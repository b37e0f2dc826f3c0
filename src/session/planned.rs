//! What a plan means for the session: which server a statement goes to, and what others must learn of its writes.

use super::Session;
use super::context::Target;
use crate::error::Error;
use crate::sql::facts::{Facts, SharedFacts};

impl Session {
    /// The server where a statement runs that is passed on.
    pub(super) fn target_for(&self, _facts: &Facts) -> Result<Target, Error> {
        Ok(self.default_target())
    }

    /// Notes what a statement that is about to run may write.
    pub(super) async fn note_writes(&mut self, _facts: &SharedFacts) -> Result<(), Error> {
        Ok(())
    }

    /// Notes that something is about to run that may write anything.
    pub(super) async fn note_opaque_write(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Puts what was written in doubt before the first byte is sent that can lead to a commit.
    pub(super) async fn before_commit(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// What is held back goes on its way: something follows that cannot be held.
    pub(super) async fn flight_must_be_relayed(&mut self) -> Result<(), Error> {
        Ok(())
    }
}
