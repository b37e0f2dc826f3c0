//! The server's side of a SCRAM exchange: each state is consumed by the next.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::keys::{Key, ScramKeys, ScramVerifier, hmac_sha256, sha256, xor};
use super::{END_POINT_HEADER, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError, attribute, nonce};

/// Before the client's first message.
#[derive(Debug)]
pub struct Offer<'a> {
    /// What proofs are checked against.
    pub verifier: Arc<ScramVerifier>,
    /// The hash of our certificate (`tls-server-end-point`), if the client came by TLS.
    pub end_point: Option<&'a [u8]>,
}

impl<'a> Offer<'a> {
    /// The mechanisms to offer, the preferred one first.
    pub fn mechanisms(&self) -> Vec<&'static [u8]> {
        let plus = self.end_point.map(|_| SCRAM_SHA_256_PLUS.as_bytes());
        plus.into_iter().chain([SCRAM_SHA_256.as_bytes()]).collect()
    }

    /// Takes the client's choice and first message.
    ///
    /// # Errors
    /// A mechanism that was not offered, a malformed message, or a channel binding that is not ours.
    pub fn first(self, mechanism: &[u8], message: &[u8]) -> Result<Challenge, ScramError> {
        let plus = match mechanism {
            name if name == SCRAM_SHA_256.as_bytes() => false,
            name if name == SCRAM_SHA_256_PLUS.as_bytes() && self.end_point.is_some() => true,
            _ => return Err(ScramError::Malformed("a mechanism that was not offered")),
        };
        let message = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("it is not UTF-8"))?;
        let (header, bare) = gs2_header(message)?;
        let mut bound = header.as_bytes().to_vec();
        match (header, plus) {
            ("n,,", false) => {}
            ("y,,", false) if self.end_point.is_some() => return Err(ScramError::Downgrade),
            ("y,,", false) => {}
            (END_POINT_HEADER, true) => bound.extend_from_slice(self.end_point.unwrap_or_default()),
            _ => return Err(ScramError::Malformed("the channel binding does not fit the mechanism")),
        }
        let nonce = format!("{}{}", client_nonce(bare)?, nonce());
        let message = format!("r={nonce},s={},i={}", STANDARD.encode(&self.verifier.salt), self.verifier.iterations);
        Ok(Challenge {
            verifier: self.verifier,
            bound: STANDARD.encode(bound),
            signed: format!("{bare},{message}"),
            nonce,
            message,
        })
    }
}

/// Splits the GS2 header off a client-first-message.
fn gs2_header(message: &str) -> Result<(&str, &str), ScramError> {
    let mut commas = message.match_indices(',').map(|(at, _)| at);
    let (Some(first), Some(second)) = (commas.next(), commas.next()) else {
        return Err(ScramError::Malformed("its header has no end"));
    };
    if second != first + 1 {
        return Err(ScramError::AuthorizationIdentity);
    }
    Ok(message.split_at(second + 1))
}

/// The nonce of a client-first-message-bare. The user name in it is ignored, as PostgreSQL does.
fn client_nonce(bare: &str) -> Result<&str, ScramError> {
    let mut attributes = bare.split(',');
    if attributes.next().and_then(|user| attribute(user, "n")).is_none() {
        return Err(ScramError::Malformed("the user name is missing"));
    }
    let nonce = attributes.next().and_then(|nonce| attribute(nonce, "r"));
    nonce
        .filter(|nonce| !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or(ScramError::Malformed("the nonce is missing or not printable"))
}

/// After the client's first message: [`Challenge::message`] has been sent.
#[derive(Debug)]
pub struct Challenge {
    verifier: Arc<ScramVerifier>,
    /// The base64 text that the client must repeat, channel binding included.
    bound: String,
    /// The first two parts of the AuthMessage.
    signed: String,
    nonce: String,
    message: String,
}

/// A proof that held.
#[derive(Debug)]
pub struct Proven {
    /// What the client needs to see that we know the password too.
    pub message: String,
    /// What lets us log in as that user on servers that hold the same verifier.
    pub keys: ScramKeys,
}

impl Challenge {
    /// The server-first-message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Takes the client's proof.
    ///
    /// # Errors
    /// A malformed message, another channel, or a proof that does not hold.
    pub fn finish(self, message: &[u8]) -> Result<Proven, ScramError> {
        let message = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("it is not UTF-8"))?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(ScramError::Malformed("the proof is missing"))?;
        let mut attributes = without_proof.split(',');
        match attributes.next().and_then(|binding| attribute(binding, "c")) {
            Some(binding) if binding == self.bound => {}
            Some(_) => return Err(ScramError::ChannelBinding),
            None => return Err(ScramError::Malformed("the channel binding is missing")),
        }
        if attributes.next().and_then(|nonce| attribute(nonce, "r")) != Some(&self.nonce) {
            return Err(ScramError::Malformed("the nonce is not ours"));
        }
        let proof = STANDARD.decode(proof).ok().and_then(|proof| Key::try_from(proof).ok());
        let proof = proof.ok_or(ScramError::Malformed("the proof is not 32 bytes"))?;

        let signed = format!("{},{without_proof}", self.signed);
        let signature = hmac_sha256(&self.verifier.stored_key, signed.as_bytes());
        let client_key = xor(&proof, &signature);
        if !crate::auth::password::equal(&sha256(&client_key), &self.verifier.stored_key) {
            return Err(ScramError::WrongProof);
        }
        let server_key = self.verifier.server_key;
        Ok(Proven {
            message: format!("v={}", STANDARD.encode(hmac_sha256(&server_key, signed.as_bytes()))),
            keys: ScramKeys {
                iterations: self.verifier.iterations,
                salt: self.verifier.salt.clone(),
                client_key,
                server_key,
            },
        })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
