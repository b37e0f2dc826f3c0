//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677; PostgreSQL manual, 55.3), with ring's primitives.

pub mod client;
mod keys;
pub mod server;
mod store;

pub use keys::{ScramKeys, ScramVerifier};
pub use store::ScramStore;

use thiserror::Error;

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// PostgreSQL's default number of PBKDF2 rounds.
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// PBKDF2 rounds that a server may ask of us: more is an attack on our processor.
pub const MAX_ITERATIONS: u32 = 100_000;

const END_POINT_HEADER: &str = "p=tls-server-end-point,,";

/// Why an exchange ended without a login.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum ScramError {
    /// A message that the RFC does not allow.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The proof does not fit the verifier: a wrong password.
    #[error("the SCRAM proof does not match")]
    WrongProof,
    /// The TLS channel of one side is not that of the other: someone sits between.
    #[error("SCRAM channel binding check failed")]
    ChannelBinding,
    /// The client believes that we cannot bind the channel, and we offered it.
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    /// The client names another role to act as.
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// The server asks for another salt or number of rounds than our keys were made with.
    #[error("the server's SCRAM secret has another salt or iteration count than the one in the configuration")]
    OtherVerifier,
    /// The server asks for more rounds than we will spend.
    #[error("the server asks for over {MAX_ITERATIONS} SCRAM iterations")]
    TooManyIterations,
    /// The server could not prove that it knows the password.
    #[error("the server could not prove that it knows the password")]
    WrongServer,
}

/// A random text of 24 printable characters without a comma.
fn nonce() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 18]>())
}

/// The value of `name=value`.
fn attribute<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.strip_prefix(name)?.strip_prefix('=')
}
