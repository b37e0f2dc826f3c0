//! What SCRAM derives from a password: the verifier that a server keeps, and the keys that a client needs.

use std::fmt;
use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};

use super::DEFAULT_ITERATIONS;

pub(super) type Key = [u8; 32];

/// What proofs of one password are checked against.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    /// PBKDF2 rounds.
    pub iterations: u32,
    /// PBKDF2's salt.
    pub salt: Vec<u8>,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
}

impl ScramVerifier {
    /// Reads PostgreSQL's stored form, `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let key = |text: &str| Key::try_from(STANDARD.decode(text).ok()?).ok();
        Some(Self {
            iterations: iterations.parse().ok().filter(|&iterations| iterations > 0)?,
            salt: STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?,
            stored_key: key(stored)?,
            server_key: key(server)?,
        })
    }

    /// Spends the rounds on a password.
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        ScramKeys::derive(password, salt, iterations).verifier()
    }

    /// A verifier that no password fits, for a user that does not exist; the same for the same key and name.
    pub(super) fn mock(key: &Key, user: &str) -> Self {
        let make = |what: &str| hmac_sha256(key, format!("{what}:{user}").as_bytes());
        Self {
            iterations: DEFAULT_ITERATIONS,
            salt: make("salt")[..16].to_vec(),
            stored_key: make("stored key"),
            server_key: make("server key"),
        }
    }
}

/// PostgreSQL's stored form: it is a secret, for the configuration and nowhere else.
impl fmt::Display for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] =
            [self.salt.as_slice(), &self.stored_key, &self.server_key].map(|bytes| STANDARD.encode(bytes));
        write!(f, "SCRAM-SHA-256${}:{salt}${stored}:{server}", self.iterations)
    }
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramVerifier(***)")
    }
}

/// What a client needs to log in on any server whose verifier has the same salt and rounds, without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// PBKDF2 rounds.
    pub iterations: u32,
    /// PBKDF2's salt.
    pub salt: Vec<u8>,
    pub(super) client_key: Key,
    pub(super) server_key: Key,
}

impl ScramKeys {
    /// Spends the rounds on a password, prepared as PostgreSQL does: SASLprep, or its bytes where that fails.
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let prepared = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
        let password = prepared.as_ref().map_or(password, |text| text.as_bytes());
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        let mut salted = Key::default();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password, &mut salted);
        Self {
            iterations: rounds.get(),
            salt: salt.to_vec(),
            client_key: hmac_sha256(&salted, b"Client Key"),
            server_key: hmac_sha256(&salted, b"Server Key"),
        }
    }

    pub(super) fn verifier(&self) -> ScramVerifier {
        ScramVerifier {
            iterations: self.iterations,
            salt: self.salt.clone(),
            stored_key: sha256(&self.client_key),
            server_key: self.server_key,
        }
    }
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKeys(***)")
    }
}

pub(super) fn hmac_sha256(key: &Key, data: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data);
    let mut out = Key::default();
    out.copy_from_slice(tag.as_ref());
    out
}

pub(super) fn sha256(data: &[u8]) -> Key {
    let mut out = Key::default();
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

pub(super) fn xor(left: &Key, right: &Key) -> Key {
    std::array::from_fn(|i| left[i] ^ right[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    // From PostgreSQL's regression test `password.sql`: the verifier of the empty password with a fixed salt.
    const OF_EMPTY: &str = "SCRAM-SHA-256$4096:hpFyHTUsSWcR7O9P$LgZFIt6Oqdo27ZFKbZ2nV+vtnYM995pDh9ca6WSi120=:\
                            qVV5NeluNfUPkwm7Vqat25RjSPLkGeoZBQs6wVv+um4=";

    #[test]
    fn a_stored_verifier_is_the_one_that_its_password_derives() {
        let stored = ScramVerifier::parse(OF_EMPTY).expect("valid");
        assert_eq!((stored.iterations, stored.to_string().as_str()), (4096, OF_EMPTY));
        assert_eq!(ScramVerifier::derive(b"", &stored.salt, 4096), stored);
        assert_ne!(ScramVerifier::derive(b"x", &stored.salt, 4096), stored);
    }

    #[test]
    fn what_is_no_verifier_is_none() {
        for text in [
            "",
            "md5abc",
            "SCRAM-SHA-256$4096:$a:b",
            &OF_EMPTY.replace("4096", "0"),
            &OF_EMPTY.replace("4096", "x"),
            &OF_EMPTY.replace("um4=", "um4"),
            &OF_EMPTY[..OF_EMPTY.len() - 8],
        ] {
            assert!(ScramVerifier::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_password_is_prepared_by_saslprep_where_that_is_possible() {
        let derive = |password: &[u8]| ScramVerifier::derive(password, b"salt", 2);
        // U+2168 (roman nine) is IX under NFKC; a byte that is no UTF-8 stays as it is.
        assert_eq!(derive("\u{2168}".as_bytes()), derive(b"IX"));
        assert_ne!(derive(b"\xff"), derive(b"\xfe"));
    }

    #[test]
    fn keys_do_not_show() {
        let verifier = ScramVerifier::parse(OF_EMPTY).expect("valid");
        assert_eq!(format!("{verifier:?}"), "ScramVerifier(***)");
    }
}
