//! PostgreSQL's md5 and cleartext passwords (PostgreSQL manual, 55.2.1).

use std::fmt::Write;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// What a client answers to AuthenticationMD5Password: `md5` and 32 hex digits.
pub fn md5_response(user: &[u8], password: &[u8], salt: [u8; 4]) -> String {
    let inner = hex(&Md5::new().chain_update(password).chain_update(user).finalize());
    format!("md5{}", hex(&Md5::new().chain_update(inner).chain_update(salt).finalize()))
}

/// Whether two secrets are equal, in a time that depends on their lengths alone.
pub fn equal(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_md5_response_is_the_one_that_postgres_protocol_gives() {
        let salt = [0x2a, 0x3d, 0x8f, 0xe0];
        assert_eq!(md5_response(b"md5_user", b"password", salt), "md562af4dd09bbb41884907a838a3233294");
        let theirs = postgres_protocol::authentication::md5_hash(b"u", b"\xff", [0, 1, 2, 255]);
        assert_eq!(md5_response(b"u", b"\xff", [0, 1, 2, 255]), theirs);
    }

    #[test]
    fn equality_is_of_all_bytes() {
        assert!(equal(b"", b"") && equal(b"ab", b"ab"));
        assert!(!equal(b"ab", b"aB") && !equal(b"ab", b"a") && !equal(b"", b"a"));
    }
}
