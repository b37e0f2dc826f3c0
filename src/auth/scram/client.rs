//! The client's side of a SCRAM exchange: each state is consumed by the next.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::keys::{Key, ScramKeys, hmac_sha256, sha256, xor};
use super::{END_POINT_HEADER, MAX_ITERATIONS, ScramError, attribute, nonce};

/// What proves who we are.
#[derive(Debug, Clone, Copy)]
pub enum Proof<'a> {
    /// The password.
    Password(&'a [u8]),
    /// Keys that a client's own login left us, which fit one salt and number of rounds.
    Keys(&'a ScramKeys),
}

/// What we say about the TLS channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding<'a> {
    /// We do not bind: no TLS, or not wanted.
    None,
    /// We would bind, but the server did not offer it. A server that did will see that someone sits between.
    NotOffered,
    /// The hash of the server's certificate.
    EndPoint(&'a [u8]),
}

/// Before the server's first message: [`Start::message`] is to be sent.
#[derive(Debug)]
pub struct Start {
    nonce: String,
    bound: String,
    message: String,
}

impl Start {
    /// Chooses a nonce.
    pub fn new(binding: Binding<'_>) -> Self {
        let (header, data) = match binding {
            Binding::None => ("n,,", &[][..]),
            Binding::NotOffered => ("y,,", &[][..]),
            Binding::EndPoint(hash) => (END_POINT_HEADER, hash),
        };
        let nonce = nonce();
        let bound = STANDARD.encode([header.as_bytes(), data].concat());
        Self { message: format!("{header}n=,r={nonce}"), bound, nonce }
    }

    /// The client-first-message. The user's name is left out, as libpq does: the startup packet has it.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Takes the server's challenge and makes the proof; spends PBKDF2's rounds if it is by password.
    ///
    /// # Errors
    /// A malformed message, more rounds than we will spend, or keys that do not fit.
    pub fn challenge(self, message: &[u8], proof: Proof<'_>) -> Result<Answer, ScramError> {
        let message = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("it is not UTF-8"))?;
        let mut attributes = message.split(',');
        let nonce = attributes.next().and_then(|nonce| attribute(nonce, "r"));
        let nonce = nonce
            .filter(|nonce| nonce.starts_with(&self.nonce) && nonce.len() > self.nonce.len())
            .ok_or(ScramError::Malformed("the nonce does not extend ours"))?;
        let salt = attributes.next().and_then(|salt| STANDARD.decode(attribute(salt, "s")?).ok());
        let salt = salt.ok_or(ScramError::Malformed("the salt is missing"))?;
        let iterations = attributes.next().and_then(|count| attribute(count, "i")?.parse::<u32>().ok());
        let iterations =
            iterations.filter(|&count| count > 0).ok_or(ScramError::Malformed("the iteration count is missing"))?;
        if iterations > MAX_ITERATIONS {
            return Err(ScramError::TooManyIterations);
        }
        let derived;
        let keys = match proof {
            Proof::Password(password) => {
                derived = ScramKeys::derive(password, &salt, iterations);
                &derived
            }
            Proof::Keys(keys) if keys.salt == salt && keys.iterations == iterations => keys,
            Proof::Keys(_) => return Err(ScramError::OtherVerifier),
        };
        let without_proof = format!("c={},r={nonce}", self.bound);
        let signed = format!("n=,r={},{message},{without_proof}", self.nonce);
        let signature = hmac_sha256(&sha256(&keys.client_key), signed.as_bytes());
        Ok(Answer {
            message: format!("{without_proof},p={}", STANDARD.encode(xor(&keys.client_key, &signature))),
            expected: hmac_sha256(&keys.server_key, signed.as_bytes()),
        })
    }
}

/// After the server's first message: [`Answer::message`] is to be sent.
pub struct Answer {
    message: String,
    expected: Key,
}

impl Answer {
    /// The client-final-message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Checks the server's proof that it knows the password too.
    ///
    /// # Errors
    /// A malformed message, or a proof that does not hold.
    pub fn finish(self, message: &[u8]) -> Result<(), ScramError> {
        let text = std::str::from_utf8(message).ok().and_then(|text| attribute(text, "v"));
        let proof = text.and_then(|text| STANDARD.decode(text.split(',').next().unwrap_or_default()).ok());
        let proof = proof.ok_or(ScramError::Malformed("the server's proof is missing"))?;
        if crate::auth::password::equal(&proof, &self.expected) { Ok(()) } else { Err(ScramError::WrongServer) }
    }
}
