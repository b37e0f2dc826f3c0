//! Settings as a statement of the session finds them: what it has set, or what its servers gave it at login.

use super::Session;
use crate::backend::settings::Settings;
use crate::catalog::model::Catalog;
use crate::plan::rules::resolve_search_path;

/// `search_path` where nobody has said otherwise.
pub(super) const DEFAULT_PATH: &str = "\"$user\", public";

impl Session {
    /// Schemas as PostgreSQL resolves names for this session.
    pub(super) fn search_path(&self, catalog: &Catalog, role: &str) -> Vec<Box<str>> {
        let setting = self.setting("search_path").unwrap_or_else(|| DEFAULT_PATH.into());
        resolve_search_path(&setting, role, catalog)
    }

    /// `current_user`.
    pub(super) fn effective_role(&self) -> String {
        let set = |name| self.settings.now().get(name).filter(|role| *role != "none").map(str::to_owned);
        set("role")
            .or_else(|| set("session_authorization"))
            .unwrap_or_else(|| self.db.login_role(&self.user).to_owned())
    }

    /// What a setting is for this session.
    pub(super) fn setting(&self, name: &str) -> Option<Box<str>> {
        self.setting_among(self.settings.now(), name)
    }

    /// What a setting was for this session when its transaction began.
    pub(super) fn setting_at_begin(&self, name: &str) -> Option<Box<str>> {
        self.setting_among(&self.settings.current, name)
    }

    fn setting_among(&self, settings: &Settings, name: &str) -> Option<Box<str>> {
        match settings.get(name) {
            Some(value) => Some(value.into()),
            None => self.primary.baseline()?.setting(name).map(Into::into),
        }
    }

    pub(super) fn reported_at_login(&self, name: &str) -> Option<Box<str>> {
        let baseline = self.primary.baseline()?;
        baseline.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str().into())
    }
}
