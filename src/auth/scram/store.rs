//! Derived verifiers, so that PBKDF2's rounds are spent once per user and password instead of at each login.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::DEFAULT_ITERATIONS;
use super::keys::{Key, ScramVerifier};
use crate::config::model::Secret;

/// The verifiers of one process, and the key that unknown users' mock verifiers are made from.
///
/// It holds one entry for each user that logged in by password; names come from the configuration, never from a client.
pub struct ScramStore {
    mock_key: Key,
    derived: Mutex<HashMap<String, (Secret, Arc<ScramVerifier>)>>,
}

impl ScramStore {
    /// An empty store with a random mock key.
    pub fn new() -> Self {
        Self { mock_key: rand::random(), derived: Mutex::new(HashMap::new()) }
    }

    /// The verifier of a user's password: the same salt at each login, until the password changes.
    pub fn verifier(&self, user: &str, password: &Secret) -> Arc<ScramVerifier> {
        if let Some((_, verifier)) = self.derived.lock().get(user).filter(|(known, _)| known == password) {
            return Arc::clone(verifier);
        }
        let salt: [u8; 16] = rand::random();
        let verifier = Arc::new(ScramVerifier::derive(password.expose().as_bytes(), &salt, DEFAULT_ITERATIONS));
        self.derived.lock().insert(user.to_owned(), (password.clone(), Arc::clone(&verifier)));
        verifier
    }

    /// A verifier that nothing fits, stable for a name as a real one is.
    pub fn mock(&self, user: &str) -> Arc<ScramVerifier> {
        Arc::new(ScramVerifier::mock(&self.mock_key, user))
    }
}

impl Default for ScramStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ScramStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramStore").field("users", &self.derived.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_derived_once_and_again_when_it_changes() {
        let store = ScramStore::new();
        let first = store.verifier("me", &Secret::new("one"));
        assert!(Arc::ptr_eq(&first, &store.verifier("me", &Secret::new("one"))));
        let second = store.verifier("me", &Secret::new("two"));
        assert_eq!(*second, ScramVerifier::derive(b"two", &second.salt, second.iterations));
        assert_ne!(first.salt, store.verifier("you", &Secret::new("one")).salt);
    }

    #[test]
    fn a_mock_looks_like_a_real_one() {
        let store = ScramStore::new();
        let real = store.verifier("me", &Secret::new("one"));
        let mock = store.mock("nobody");
        assert_eq!((mock.salt.len(), mock.iterations), (real.salt.len(), real.iterations));
        assert_eq!(mock, store.mock("nobody"));
        assert_ne!(mock.salt, store.mock("somebody").salt);
        assert_ne!(mock.salt, ScramStore::new().mock("nobody").salt);
    }
}
