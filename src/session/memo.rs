//! What a session has already found out about statements of a fingerprint, so that the same point read is not planned again.
//!
//! Only what follows from facts, catalog and settings is kept; all of it is forgotten when one of those changes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::backend::settings::SharedSettings;
use crate::plan::{Plan, WriteSet};
use crate::sql::fingerprint::Fingerprint;

/// Fingerprints remembered before the memory of them starts over.
const FINGERPRINTS: usize = 256;

/// Reasons for the primary that follow from a statement's facts alone, whatever its literals and parameters are.
const BY_FACTS_ALONE: [&str; 5] = ["point-read", "write", "session", "show", "cache-off"];

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct PlanMemo {
    catalog_version: u64,
    settings: SharedSettings,
    known: HashMap<Fingerprint, Known, BuildHasherDefault<AsItIs>>,
}

/// A fingerprint is a hash already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

/// What is known of one fingerprint.
#[derive(Debug, Clone, Default)]
struct Known {
    is_primary: bool,
    writes: Option<Written>,
}

/// What a statement may write, and whether it may change the session unseen.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    /// `None` is nothing.
    pub(super) set: Option<Arc<WriteSet>>,
    /// A function of a user's may change the session.
    pub(super) changes_session: bool,
    /// It calls code of a user's that says it does not write.
    pub(super) trusts_code: bool,
}

impl Written {
    /// Whether nobody would have to be told.
    pub(super) fn is_nothing(&self) -> bool {
        self.set.is_none() && !self.changes_session && !self.trusts_code
    }
}

impl PlanMemo {
    /// Forgets everything if the catalog or the settings are not those that it was found out under.
    pub(super) fn check(&mut self, catalog_version: u64, settings: &SharedSettings) {
        if self.catalog_version != catalog_version || !Arc::ptr_eq(&self.settings, settings) {
            self.known.clear();
            self.catalog_version = catalog_version;
            self.settings = Arc::clone(settings);
        }
    }

    /// Whether statements of that fingerprint always go to the primary.
    pub(super) fn is_primary(&self, fingerprint: Fingerprint) -> bool {
        self.known.get(&fingerprint).is_some_and(|known| known.is_primary)
    }

    /// Notes a plan, if it would be the same for every statement of that fingerprint.
    pub(super) fn note_plan(&mut self, fingerprint: Fingerprint, plan: &Plan) {
        if let Plan::Primary(reason) = plan
            && BY_FACTS_ALONE.contains(&reason.code)
        {
            self.entry(fingerprint).is_primary = true;
        }
    }

    /// What statements of that fingerprint write, if it is known.
    pub(super) fn written(&self, fingerprint: Fingerprint) -> Option<Written> {
        self.known.get(&fingerprint)?.writes.clone()
    }

    /// Whether statements of that fingerprint write nothing that anybody would have to be told, if it is known.
    pub(super) fn writes_nothing(&self, fingerprint: Fingerprint) -> Option<bool> {
        self.known.get(&fingerprint)?.writes.as_ref().map(Written::is_nothing)
    }

    /// Notes what statements of that fingerprint write.
    pub(super) fn note_written(&mut self, fingerprint: Fingerprint, written: Written) {
        self.entry(fingerprint).writes = Some(written);
    }

    fn entry(&mut self, fingerprint: Fingerprint) -> &mut Known {
        if self.known.len() >= FINGERPRINTS {
            self.known.clear();
        }
        self.known.entry(fingerprint).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Reason;

    fn primary(code: &'static str) -> Plan {
        Plan::Primary(Reason { code, text: "".into() })
    }

    #[test]
    fn what_depends_on_literals_is_not_kept() {
        let mut memo = PlanMemo::default();
        memo.note_plan(Fingerprint(1), &primary("point-read"));
        memo.note_plan(Fingerprint(2), &primary("stable-function"));
        assert!(memo.is_primary(Fingerprint(1)));
        assert!(!memo.is_primary(Fingerprint(2)));
    }

    #[test]
    fn another_catalog_or_other_settings_start_over() {
        let mut memo = PlanMemo::default();
        let settings = SharedSettings::default();
        memo.check(1, &settings);
        memo.note_plan(Fingerprint(1), &primary("write"));
        memo.check(1, &settings);
        assert!(memo.is_primary(Fingerprint(1)));
        memo.check(2, &settings);
        assert!(!memo.is_primary(Fingerprint(1)));
        memo.note_plan(Fingerprint(1), &primary("write"));
        memo.check(2, &SharedSettings::default());
        assert!(!memo.is_primary(Fingerprint(1)));
    }
}
