//! A statement over several shards, for this session.

use super::Session;
use super::planned::Execution;
use crate::error::Error;
use crate::plan::distribute::Streamed;

impl Session {
    /// Runs a statement on its shards and passes the merged answer on.
    pub(super) async fn fan_out(&mut self, _: &Execution<'_>, _: bool, _: &Streamed) -> Result<(), Error> {
        Err(Error::refused("fan-out"))
    }
}
