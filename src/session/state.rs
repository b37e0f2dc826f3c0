//! What a session has changed: its settings, and what of them is not known exactly at the moment.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::backend::settings::{Settings, SharedSettings, is_reported};
use crate::sql::facts::Effect;

/// The settings of one session.
#[derive(Debug, Default)]
pub(super) struct SessionSettings {
    /// What it has set, as its servers reported it.
    pub(super) current: SharedSettings,
    /// What it asked for at startup: what RESET goes back to.
    pub(super) startup: SharedSettings,
    parse_relevant: SharedSettings,
    touched: BTreeSet<Box<str>>,
    reset: BTreeSet<Box<str>>,
    everything_touched: bool,
    local: bool,
    /// Something that parse analysis reads may have changed.
    parse_is_uncertain: bool,
    /// What parse analysis reads in the transaction at hand, once it was asked for.
    exact: Option<SharedSettings>,
    /// Startup values that a RESET under way takes away.
    restorable: BTreeSet<Box<str>>,
}

impl SessionSettings {
    /// The settings of a session that asked for these at startup.
    pub(super) fn new(startup: SharedSettings) -> Self {
        let mut settings = Self { startup: Arc::clone(&startup), ..Self::default() };
        settings.replace(startup);
        settings
    }

    /// Replaces the whole map.
    pub(super) fn replace(&mut self, current: SharedSettings) {
        let relevant = current.parse_relevant();
        if *self.parse_relevant != relevant {
            self.parse_relevant = Arc::new(relevant);
        }
        self.current = current;
    }

    /// Whether a change is under way whose outcome is not read back yet.
    pub(super) fn is_uncertain(&self) -> bool {
        self.local || self.must_read_back()
    }

    /// What parse analysis reads in the transaction at hand, if it was asked for since the last change.
    pub(super) fn exact(&self) -> Option<SharedSettings> {
        if self.parse_is_uncertain { self.exact.clone() } else { Some(Arc::clone(&self.parse_relevant)) }
    }

    /// Notes what parse analysis reads in the transaction at hand.
    pub(super) fn note_exact(&mut self, exact: SharedSettings) {
        self.exact = Some(exact);
    }

    /// Something is about to run that may change settings: ROLLBACK TO as well as SET.
    pub(super) fn forget_exact(&mut self) {
        self.exact = None;
    }

    /// Whether something must be read back before the server may go.
    pub(super) fn must_read_back(&self) -> bool {
        self.everything_touched || !self.touched.is_empty()
    }

    /// Notes what a statement that is about to be sent may change.
    pub(super) fn note_effect(&mut self, effect: &Effect) {
        self.parse_is_uncertain |= match effect {
            Effect::Set(name) | Effect::SetLocal(name) | Effect::Reset(name) => Settings::is_parse_relevant(name),
            Effect::ResetAll | Effect::DiscardAll | Effect::OpaqueSettings => true,
            _ => false,
        };
        match effect {
            Effect::Set(name) => self.touch(name),
            Effect::Reset(name) => {
                self.touch(name);
                self.reset.insert(name.clone());
                self.restorable.extend(self.startup.get(name).map(|_| name.clone()));
            }
            Effect::SetLocal(_) => self.local = true,
            Effect::ResetAll | Effect::DiscardAll => {
                self.everything_touched = true;
                self.restorable.extend(self.startup.iter().map(|(name, _)| Box::from(name)));
            }
            _ => {}
        }
    }

    /// Notes that a setting may change. The session's authorization takes the role with it: it becomes `none`.
    fn touch(&mut self, name: &str) {
        self.touched.insert(name.into());
        if name == "session_authorization" {
            self.touched.insert("role".into());
        }
    }

    /// Whether a RESET has just taken startup values away.
    pub(super) fn has_restorable(&self) -> bool {
        !self.restorable.is_empty()
    }

    /// The startup values that a RESET has just taken away.
    pub(super) fn take_restorable(&mut self) -> BTreeSet<Box<str>> {
        std::mem::take(&mut self.restorable)
    }

    /// Notes that the server reported a change.
    pub(super) fn note_reported(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        if is_reported(&name) {
            self.parse_is_uncertain |= Settings::is_parse_relevant(&name);
            self.exact = None;
            self.touch(&name);
        }
    }

    /// Every name whose value must be read back.
    pub(super) fn names_to_read(&self, on_server: &Settings) -> BTreeSet<Box<str>> {
        let mut names = self.touched.clone();
        if self.everything_touched {
            names.extend(self.current.iter().chain(on_server.iter()).map(|(name, _)| Box::from(name)));
        }
        names
    }

    /// Takes over what was read back: `on_server` is what the server has now. A setting that RESET gave its default is
    /// given its startup value, as one PostgreSQL would.
    pub(super) fn settle(&mut self, on_server: &SharedSettings) {
        let goes_back = |name: &str| self.everything_touched || self.reset.contains(name);
        let restored: Vec<(&str, &str)> =
            self.startup.iter().filter(|(name, _)| goes_back(name) && on_server.get(name).is_none()).collect();
        let current = if restored.is_empty() {
            Arc::clone(on_server)
        } else {
            let mut settings = Settings::clone(on_server);
            restored.iter().for_each(|(name, value)| settings.set(name, value));
            Arc::new(settings)
        };
        self.settled(current);
    }

    fn settled(&mut self, current: SharedSettings) {
        self.replace(current);
        self.touched.clear();
        self.reset.clear();
        self.everything_touched = false;
        self.transaction_ended();
    }

    /// `SET LOCAL` is over; what else has changed is not known before it is read back.
    pub(super) fn transaction_ended(&mut self) {
        self.local = false;
        self.parse_is_uncertain = self.must_read_back();
        self.exact = None;
    }

    /// `DISCARD ALL` that no server had to be asked for.
    pub(super) fn start_over(&mut self) {
        self.settled(Arc::clone(&self.startup));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        pairs.iter().for_each(|(name, value)| settings.set(name, value));
        settings
    }

    #[test]
    fn reset_goes_back_to_the_startup_value() {
        let mut session = SessionSettings::new(Arc::new(settings(&[("timezone", "Asia/Tokyo")])));
        session.note_effect(&Effect::Reset("timezone".into()));
        assert!(session.must_read_back());
        session.settle(&Arc::new(Settings::default()));
        assert!(session.take_restorable().contains("timezone"));
        assert_eq!(session.current.get("timezone"), Some("Asia/Tokyo"));
        assert!(!session.is_uncertain());
    }

    #[test]
    fn set_local_is_uncertain_until_the_transaction_ends_but_needs_no_reading_back() {
        let mut session = SessionSettings::default();
        session.note_effect(&Effect::SetLocal("search_path".into()));
        assert!(session.is_uncertain() && !session.must_read_back());
        session.transaction_ended();
        assert!(!session.is_uncertain());
    }

    #[test]
    fn an_authorization_takes_the_role_with_it() {
        let mut session = SessionSettings::new(Arc::new(settings(&[("role", "ann")])));
        session.note_effect(&Effect::Set("session_authorization".into()));
        let names = session.names_to_read(&Settings::default());
        assert_eq!(names.iter().map(|name| &**name).collect::<Vec<_>>(), ["role", "session_authorization"]);
    }

    #[test]
    fn reset_all_reads_back_what_session_and_server_had() {
        let mut session = SessionSettings::new(Arc::new(settings(&[("a.b", "1")])));
        session.note_effect(&Effect::ResetAll);
        let names = session.names_to_read(&settings(&[("role", "x")]));
        assert_eq!(names.iter().map(|name| &**name).collect::<Vec<_>>(), ["a.b", "role"]);
    }
}
