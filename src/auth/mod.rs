//! Proving who one is, on both sides: SCRAM-SHA-256, md5 and cleartext as pure exchanges. No sockets.

pub mod password;
pub mod scram;
