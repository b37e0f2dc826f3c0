//! What a cached answer is known by: everything that can change it, hashed to 128 bits and kept whole for comparison.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use super::faults::Switches;

/// The form in which the answer goes out: the same rows are different bytes in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A simple Query: RowDescription, rows, CommandComplete.
    Simple,
    /// Bind and Execute without Describe: no RowDescription.
    Extended,
    /// Bind, Describe of the portal, Execute.
    ExtendedDescribed,
    /// One shard's part of an answer: the statement's RowDescription, rows, CommandComplete.
    Leg,
}

/// A finished key: cheap to clone, compared in full.
#[derive(Clone)]
pub struct Key(Arc<Inner>);

struct Inner {
    hash: u128,
    fingerprint: u128,
    bytes: Box<[u8]>,
}

impl Key {
    /// Copied: an allocator that shrinks a block may leave it as large as it was.
    fn new(bytes: &[u8], fingerprint: u128) -> Self {
        Self(Arc::new(Inner { hash: xxh3_128(bytes), fingerprint, bytes: bytes.into() }))
    }

    /// The key of a text and nothing else.
    #[cfg(test)]
    pub(crate) fn of_text(text: &str) -> Self {
        KeyBuilder::new(Switches::default(), Protocol::Simple).statement(text.as_bytes()).build()
    }

    /// A key with a hash of the caller's choosing, to show that collisions are compared in full.
    #[cfg(test)]
    pub(crate) fn with_hash(&self, hash: u128) -> Self {
        Self(Arc::new(Inner { hash, fingerprint: self.0.fingerprint, bytes: self.0.bytes.clone() }))
    }

    /// The 128-bit hash (XXH3), which names the entry in Redis.
    pub fn hash(&self) -> u128 {
        self.0.hash
    }

    /// The fingerprint of the statement: what purges and rules call it by. No part of the key itself, which holds the text.
    pub fn fingerprint(&self) -> u128 {
        self.0.fingerprint
    }

    /// Everything the key was built from, each part with its length before it.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.hash == other.0.hash && self.0.bytes == other.0.bytes)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.0.hash);
    }
}

impl fmt::Debug for Key {
    /// The hash alone: the bytes hold the client's parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:032x})", self.0.hash)
    }
}

/// Builds a [`Key`]. The steps are in the order of the methods; each must be called, with nothing to say where there is nothing.
#[derive(Debug)]
pub struct KeyBuilder {
    bytes: Vec<u8>,
    fingerprint: u128,
    faults: Switches,
}

/// Version of the layout below; a change of it must change every key.
const LAYOUT: u8 = 2;

impl KeyBuilder {
    pub(crate) fn new(faults: Switches, protocol: Protocol) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.push(LAYOUT);
        bytes.push(match protocol {
            Protocol::Simple => b's',
            Protocol::Extended => b'e',
            Protocol::ExtendedDescribed => b'd',
            Protocol::Leg => b'l',
        });
        Self { bytes, fingerprint: 0, faults }
    }

    /// Who asks, and where: the database, the role that the statement runs as, and the session's authorization.
    #[must_use]
    pub fn identity(mut self, database: &str, role: &str, session_authorization: &str) -> Self {
        self.part(database.as_bytes());
        if !self.faults.no_role_in_key() {
            self.part(role.as_bytes());
            self.part(session_authorization.as_bytes());
        }
        self
    }

    /// The statement's text as the server would get it.
    #[must_use]
    pub fn statement(mut self, text: &[u8]) -> Self {
        self.part(text);
        self
    }

    /// The statement's fingerprint, which may be left out.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: u128) -> Self {
        self.fingerprint = fingerprint;
        self
    }

    /// Parse's parameter types and Bind's formats, as sent.
    #[must_use]
    pub fn parameter_types(mut self, types: &[u32], formats: &[i16]) -> Self {
        self.count(types.len());
        for oid in types {
            self.bytes.extend_from_slice(&oid.to_be_bytes());
        }
        self.formats(formats);
        self
    }

    /// Bind's parameter values; `None` is NULL.
    #[must_use]
    pub fn parameters<'a>(mut self, values: impl IntoIterator<Item = Option<&'a [u8]>>) -> Self {
        let faults = self.faults;
        for value in values.into_iter().filter(|_| !faults.no_parameters_in_key()) {
            match value {
                Some(bytes) => {
                    self.bytes.push(1);
                    self.part(bytes);
                }
                None => self.bytes.push(0),
            }
        }
        self.bytes.push(2);
        self
    }

    /// Bind's result formats, as sent.
    #[must_use]
    pub fn result_formats(mut self, formats: &[i16]) -> Self {
        self.formats(formats);
        self
    }

    /// Every setting that can change the result, always in the same order.
    #[must_use]
    pub fn settings<'a>(mut self, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut count = 0;
        let faults = self.faults;
        for (name, value) in settings.into_iter().filter(|(name, _)| !faults.leaves_out(name)) {
            self.part(name.as_bytes());
            self.part(value.as_bytes());
            count += 1;
        }
        self.count(count);
        self
    }

    /// The key.
    pub fn build(self) -> Key {
        Key::new(&self.bytes, self.fingerprint)
    }

    fn formats(&mut self, formats: &[i16]) {
        self.count(formats.len());
        for format in formats {
            self.bytes.extend_from_slice(&format.to_be_bytes());
        }
    }

    fn part(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    fn count(&mut self, length: usize) {
        self.bytes.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> KeyBuilder {
        KeyBuilder::new(Switches::default(), Protocol::Extended)
    }

    fn plain(role: &str, text: &str, values: &[Option<&[u8]>], settings: &[(&str, &str)]) -> Key {
        builder()
            .identity("app", role, "login")
            .statement(text.as_bytes())
            .parameter_types(&[23], &[0])
            .parameters(values.iter().copied())
            .result_formats(&[1])
            .settings(settings.iter().copied())
            .build()
    }

    #[test]
    fn each_part_makes_another_key() {
        let keys = [
            plain("a", "SELECT 1", &[], &[("TimeZone", "UTC")]),
            plain("b", "SELECT 1", &[], &[("TimeZone", "UTC")]),
            plain("a", "SELECT 2", &[], &[("TimeZone", "UTC")]),
            plain("a", "SELECT 1", &[None], &[("TimeZone", "UTC")]),
            plain("a", "SELECT 1", &[Some(b"")], &[("TimeZone", "UTC")]),
            plain("a", "SELECT 1", &[Some(b"1")], &[("TimeZone", "UTC")]),
            plain("a", "SELECT 1", &[], &[("TimeZone", "CET")]),
            plain("a", "SELECT 1", &[], &[]),
        ];
        for (i, one) in keys.iter().enumerate() {
            for (j, other) in keys.iter().enumerate() {
                assert_eq!(one == other, i == j, "{i} {j}");
                assert_eq!(one.hash() == other.hash(), i == j, "{i} {j}");
            }
        }
        assert_eq!(keys[0], plain("a", "SELECT 1", &[], &[("TimeZone", "UTC")]));
    }

    #[test]
    fn text_that_moves_from_one_part_to_the_next_makes_another_key() {
        let one = builder().identity("app", "ab", "c").statement(b"x").build();
        let other = builder().identity("app", "a", "bc").statement(b"x").build();
        assert_ne!(one, other);
    }

    #[test]
    fn keys_of_one_hash_are_compared_in_full() {
        let one = plain("a", "SELECT 1", &[], &[]).with_hash(7);
        let other = plain("a", "SELECT 2", &[], &[]).with_hash(7);
        assert_ne!(one, other);
    }

    #[test]
    fn the_fault_leaves_the_role_out() {
        let faults = super::super::Faults { no_role_in_key: true, ..Default::default() };
        let key = |role| KeyBuilder::new(faults.into(), Protocol::Simple).identity("app", role, role).build();
        assert_eq!(key("a"), key("b"));
    }
}
