//! Where a statement runs that the shards are not asked for: on the primary, unless it is as good on the server that the transaction has.

use super::Session;
use super::context::Target;
use super::planned::Execution;
use super::seen_settings::DEFAULT_PATH;
use crate::error::Error;
use crate::plan::anywhere::{Judged, asks_sequences, runs_anywhere};
use crate::plan::search_path::listed;

impl Session {
    /// What is the same on every server (COMMIT, SET, SELECT 1) runs where the transaction is, all else on the primary.
    ///
    /// # Errors
    /// It asks what a sequence gave, and several servers may have been asked for it.
    pub(super) fn target_of_primary(&self, execution: &Execution<'_>) -> Result<Target, Error> {
        let at_hand = self.default_target();
        if at_hand == Target::Primary && !self.spans_servers() {
            return Ok(at_hand);
        }
        let statements = &execution.facts.statements;
        let of_cursors = self.target_of_cursors(execution.facts)?;
        if !self.is_same_everywhere(execution) {
            return match of_cursors {
                Some(target) if target != Target::Primary => {
                    Err(Error::refused("a cursor of a shard is used together with what the primary has")
                        .hint("Send the statements one by one."))
                }
                _ => Ok(Target::Primary),
            };
        }
        if self.spans_servers() && statements.iter().any(asks_sequences) {
            return Err(Error::refused("currval() and lastval() in a transaction over several servers")
                .hint("Use INSERT ... RETURNING, or what nextval() gave."));
        }
        Ok(of_cursors.unwrap_or(at_hand))
    }

    /// Whether a statement is answered alike by every server.
    pub(super) fn is_same_everywhere(&self, execution: &Execution<'_>) -> bool {
        let catalog = self.db.catalog.current();
        let search_path = self.search_path(&catalog, &self.effective_role());
        let judged = Judged {
            catalog: &catalog,
            search_path: &search_path,
            types: execution.types,
            same_role: self.db.config.shards.iter().all(|shard| shard.user == self.db.config.primary.user),
        };
        execution.facts.statements.iter().all(|statement| runs_anywhere(statement, judged))
    }

    /// The schemas that search_path lists for that role, where they say which shard is meant. What the transaction at hand has set
    /// counts; `None` where that is not known.
    pub(super) fn listed_path(&self, role: &str) -> Option<Vec<String>> {
        if !self.db.config.is_distributed() {
            return Some(Vec::new());
        }
        if self.settings.parse_is_certain() {
            return Some(listed(&self.setting("search_path").unwrap_or_else(|| DEFAULT_PATH.into()), role));
        }
        let exact = self.settings.exact()?;
        let baseline = self.primary.baseline()?;
        let path = exact.get("search_path").or_else(|| baseline.setting("search_path")).unwrap_or(DEFAULT_PATH);
        let is_set = |name: &str| exact.get(name).filter(|role| *role != "none");
        let login = self.db.login_role(&self.user);
        Some(listed(path, is_set("role").or_else(|| is_set("session_authorization")).unwrap_or(login)))
    }
}
