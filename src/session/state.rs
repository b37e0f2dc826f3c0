//! What a session has changed: its settings, and what of them is not known exactly at the moment.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::backend::reset::RESULT_SETTINGS;
use crate::backend::settings::{Settings, SharedSettings, is_reported, none};
use crate::sql::facts::Effect;

/// What a transaction is, which no other takes over from it.
const OF_TRANSACTION: [&str; 3] = ["transaction_deferrable", "transaction_isolation", "transaction_read_only"];

/// The settings of one session.
#[derive(Debug)]
pub(super) struct SessionSettings {
    /// What it has set, as its servers reported it.
    pub(super) current: SharedSettings,
    /// What it asked for at startup: what RESET goes back to.
    pub(super) startup: SharedSettings,
    parse_relevant: SharedSettings,
    touched: BTreeSet<Box<str>>,
    everything_touched: bool,
    /// Something that parse analysis reads may have changed.
    parse_is_uncertain: bool,
    /// That is more than the schemas in which names are looked up.
    beyond_path_is_uncertain: bool,
    /// What is set in the transaction at hand. Boxed where there is any: an idle session is small.
    within: Option<Box<Within>>,
    /// How often something may have changed that decides what statements mean or how rows are shown.
    changes: u32,
}

/// What a transaction sets.
#[derive(Debug, Default)]
struct Within {
    /// What is set until it ends.
    local: BTreeSet<Box<str>>,
    /// Something was set whose name is not known.
    opaque: bool,
    /// What parse analysis reads, once it was asked for.
    exact: Option<SharedSettings>,
    /// All that is set, once it was asked for.
    all: Option<SharedSettings>,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            current: none(),
            startup: none(),
            parse_relevant: none(),
            touched: BTreeSet::new(),
            everything_touched: false,
            parse_is_uncertain: false,
            beyond_path_is_uncertain: false,
            within: None,
            changes: 0,
        }
    }
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
        if relevant.is_empty() {
            self.parse_relevant = none();
        } else if *self.parse_relevant != relevant {
            self.parse_relevant = Arc::new(relevant);
        }
        self.current = current;
    }

    /// Whether a change is under way whose outcome is not read back yet.
    pub(super) fn is_uncertain(&self) -> bool {
        let is_set = |within: &Within| !within.local.is_empty() || within.opaque;
        self.must_read_back() || self.within.as_deref().is_some_and(is_set)
    }

    /// What is set now, where the transaction at hand may have set something else: as far as it was asked for.
    pub(super) fn now(&self) -> &SharedSettings {
        self.asked_for().unwrap_or(&self.current)
    }

    /// Whether [`SessionSettings::now`] is what is set now.
    pub(super) fn is_known(&self) -> bool {
        !self.is_uncertain() || self.asked_for().is_some()
    }

    fn asked_for(&self) -> Option<&SharedSettings> {
        self.within.as_ref()?.all.as_ref()
    }

    /// Whether a server of the transaction at hand can be asked for all that may have changed in it. How texts are to be read cannot
    /// change between two looks at one of them.
    pub(super) fn can_be_asked_for(&self) -> bool {
        let is_opaque = self.within.as_ref().is_some_and(|within| within.opaque);
        !is_opaque && !self.changed_within(&self.current).contains("standard_conforming_strings")
    }

    /// Every name whose value may be another within the transaction at hand.
    pub(super) fn changed_within(&self, on_server: &Settings) -> BTreeSet<Box<str>> {
        let mut names = self.names_to_read(on_server);
        names.extend(self.within.iter().flat_map(|within| within.local.iter().cloned()));
        names.retain(|name| !OF_TRANSACTION.contains(&&**name));
        names
    }

    /// Notes all that is set in the transaction at hand, and what of it parse analysis reads where that was asked for, too.
    pub(super) fn note_within(&mut self, all: Settings) {
        let within = self.within.get_or_insert_default();
        if self.parse_is_uncertain {
            within.exact = Some(Arc::new(all.parse_relevant()));
        }
        within.all = Some(Arc::new(all));
    }

    /// The settings of a session for which nothing but these has ever been set.
    pub(super) fn as_if_outside(&self, now: SharedSettings) -> Self {
        let mut settings = Self { startup: Arc::clone(&self.startup), ..Self::default() };
        settings.replace(now);
        settings
    }

    /// What parse analysis reads in the transaction at hand, if it was asked for since the last change.
    pub(super) fn exact(&self) -> Option<SharedSettings> {
        if self.parse_is_uncertain { self.exact_within().cloned() } else { Some(Arc::clone(&self.parse_relevant)) }
    }

    /// What parse analysis reads, as far as that is certain, if nothing is uncertain but where names are looked up.
    pub(super) fn exact_beyond_path(&self) -> Option<&SharedSettings> {
        if self.beyond_path_is_uncertain { self.exact_within() } else { Some(&self.parse_relevant) }
    }

    fn exact_within(&self) -> Option<&SharedSettings> {
        self.within.as_ref()?.exact.as_ref()
    }

    /// The session's settings as they are now; nobody's while what parse analysis reads may be something else.
    pub(super) fn as_they_are(&self) -> SharedSettings {
        if self.parse_is_uncertain { Arc::default() } else { Arc::clone(&self.current) }
    }

    /// Whether what parse analysis reads is as it was outside the transaction at hand.
    pub(super) fn parse_is_certain(&self) -> bool {
        !self.parse_is_uncertain
    }

    /// Whether that is what parse analysis reads.
    pub(super) fn is_parse_relevant_part(&self, settings: &SharedSettings) -> bool {
        !self.parse_is_uncertain && (Arc::ptr_eq(&self.parse_relevant, settings) || self.parse_relevant == *settings)
    }

    /// Tells a moment from another between which something may have changed that decides what statements mean or how rows are shown.
    pub(super) fn changes(&self) -> u32 {
        self.changes
    }

    /// Notes what parse analysis reads in the transaction at hand.
    pub(super) fn note_exact(&mut self, exact: SharedSettings) {
        self.within.get_or_insert_default().exact = Some(exact);
    }

    /// Something is about to run that may change settings: ROLLBACK TO as well as SET.
    pub(super) fn forget_exact(&mut self) {
        if let Some(within) = &mut self.within {
            (within.exact, within.all) = (None, None);
        }
    }

    /// Whether something must be read back before the server may go.
    pub(super) fn must_read_back(&self) -> bool {
        self.everything_touched || !self.touched.is_empty()
    }

    /// Notes what a statement that is about to be sent may change.
    pub(super) fn note_effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Set(name) | Effect::SetLocal(name) | Effect::Reset(name) | Effect::ResetLocal(name) => {
                self.doubt(name);
            }
            Effect::ResetAll | Effect::DiscardAll | Effect::OpaqueSettings => {
                (self.parse_is_uncertain, self.beyond_path_is_uncertain) = (true, true);
                self.changes = self.changes.wrapping_add(1);
            }
            _ => {}
        }
        if *effect == Effect::OpaqueSettings {
            self.within.get_or_insert_default().opaque = true;
        }
        match effect {
            Effect::Set(name) | Effect::Reset(name) => self.touch(name.clone()),
            Effect::SetLocal(name) | Effect::ResetLocal(name) => {
                note_name(&mut self.within.get_or_insert_default().local, name)
            }
            Effect::ResetAll | Effect::DiscardAll => self.everything_touched = true,
            _ => {}
        }
    }

    /// A setting may have changed, and its value is not known.
    fn doubt(&mut self, name: &str) {
        let is_relevant = Settings::is_parse_relevant(name);
        self.changes = self.changes.wrapping_add(u32::from(is_relevant || RESULT_SETTINGS.contains(&name)));
        self.parse_is_uncertain |= is_relevant;
        self.beyond_path_is_uncertain |= is_relevant && !Settings::is_path_relevant(name);
    }

    /// Notes that a setting may have changed.
    fn touch(&mut self, name: Box<str>) {
        note_name(&mut self.touched, &name);
    }

    /// Notes that the server reported a change.
    pub(super) fn note_reported(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        if is_reported(&name) {
            self.doubt(&name);
            self.forget_exact();
            self.touch(name.into());
        }
    }

    /// Every name whose value must be read back.
    pub(super) fn names_to_read(&self, on_server: &Settings) -> BTreeSet<Box<str>> {
        let mut names = self.touched.clone();
        if self.everything_touched {
            // What was asked for at startup comes back.
            let all = self.current.iter().chain(on_server.iter()).chain(self.startup.iter());
            names.extend(all.map(|(name, _)| Box::from(name)));
        }
        names
    }

    /// Takes over what was read back: `on_server` is what the server has now.
    pub(super) fn settle(&mut self, on_server: &SharedSettings) {
        self.settled(Arc::clone(on_server));
    }

    /// Nothing of what may have changed has.
    pub(super) fn settle_as_before(&mut self) {
        self.settled(Arc::clone(&self.current));
    }

    fn settled(&mut self, current: SharedSettings) {
        self.replace(current);
        self.touched.clear();
        self.everything_touched = false;
        self.transaction_ended();
    }

    /// `SET LOCAL` is over; what else has changed is not known before it is read back.
    pub(super) fn transaction_ended(&mut self) {
        self.within = None;
        self.parse_is_uncertain = self.must_read_back();
        self.beyond_path_is_uncertain &= self.parse_is_uncertain;
    }

    /// `DISCARD ALL` has been executed.
    pub(super) fn start_over(&mut self) {
        self.settled(Arc::clone(&self.startup));
    }

    /// Whether the session acts as somebody else than its login, or began so.
    pub(super) fn has_identity(&self) -> bool {
        let is_set =
            |settings: &Settings| ["role", "session_authorization"].iter().any(|name| settings.get(name).is_some());
        is_set(&self.current) || is_set(&self.startup)
    }
}

/// Another session authorization takes the role with it.
fn note_name(names: &mut BTreeSet<Box<str>>, name: &str) {
    if name == "session_authorization" {
        names.insert("role".into());
    }
    names.insert(name.into());
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
    fn a_discard_leaves_what_was_asked_for_at_startup() {
        let mut session = SessionSettings::new(Arc::new(settings(&[("role", "x"), ("timezone", "Asia/Tokyo")])));
        session.replace(Arc::new(settings(&[("role", "y"), ("work_mem", "1MB")])));
        assert!(session.has_identity());
        session.start_over();
        assert_eq!(*session.current, settings(&[("role", "x"), ("timezone", "Asia/Tokyo")]));
        assert!(!session.is_uncertain());
    }

    #[test]
    fn another_session_authorization_may_take_the_role_with_it() {
        let mut session = SessionSettings::default();
        session.note_effect(&Effect::Set("session_authorization".into()));
        assert!(session.names_to_read(&Settings::default()).contains("role"));
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
    fn what_decides_of_rows_is_counted_and_nothing_else() {
        let mut session = SessionSettings::default();
        let before = session.changes();
        session.note_effect(&Effect::SetLocal("statement_timeout".into()));
        assert_eq!(session.changes(), before);
        for name in ["datestyle", "bytea_output", "role"] {
            let before = session.changes();
            session.note_effect(&Effect::SetLocal(name.into()));
            assert_ne!(session.changes(), before, "{name}");
        }
    }

    #[test]
    fn what_a_transaction_has_set_is_known_until_something_may_have_set_it_anew() {
        let mut session = SessionSettings::new(Arc::new(settings(&[("timezone", "Asia/Tokyo")])));
        session.note_effect(&Effect::SetLocal("session_authorization".into()));
        session.note_effect(&Effect::Set("work_mem".into()));
        session.note_effect(&Effect::SetLocal("transaction_read_only".into()));
        assert!(!session.is_known() && session.can_be_asked_for());
        let names = session.changed_within(&Settings::default());
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        assert_eq!(names, ["role", "session_authorization", "work_mem"]);
        let within = settings(&[("timezone", "Asia/Tokyo"), ("work_mem", "1MB")]);
        session.note_within(within.clone());
        assert_eq!((session.is_known(), &**session.now()), (true, &within));
        assert_eq!(session.exact().as_deref(), Some(&settings(&[("timezone", "Asia/Tokyo")])));
        session.forget_exact();
        assert!(!session.is_known());
        session.transaction_ended();
        assert_eq!(**session.now(), settings(&[("timezone", "Asia/Tokyo")]));
        assert!(session.must_read_back());
    }

    #[test]
    fn how_texts_are_read_and_what_has_no_name_cannot_be_asked_for() {
        for effect in [Effect::SetLocal("standard_conforming_strings".into()), Effect::OpaqueSettings] {
            let mut session = SessionSettings::default();
            session.note_effect(&effect);
            assert!(!session.can_be_asked_for(), "{effect:?}");
        }
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
