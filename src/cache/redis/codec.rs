//! An entry as it lies in Redis: versioned, each part with its length, the whole with a checksum.
//!
//! `version:u8 key:bytes created_ms:u64 cost_us:u64 ttl_ms:u64 rows:u64 row_description_len:u64 answer:bytes xxh3:u64`, where
//! `bytes` is a u64 length and as many bytes, and all numbers are big endian. The checksum covers everything before it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use crate::cache::entry::Entry;
use crate::cache::key::Key;

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 1 + 8 * 8;

/// The entry's bytes.
pub(super) fn encode(key: &Key, entry: &Entry) -> Bytes {
    let mut out = BytesMut::with_capacity(FIXED_BYTES + key.bytes().len() + entry.bytes.len());
    out.put_u8(VERSION);
    out.put_u64(key.bytes().len() as u64);
    out.put_slice(key.bytes());
    out.put_u64(millis(entry.created.duration_since(UNIX_EPOCH).unwrap_or_default()));
    out.put_u64(u64::try_from(entry.cost.as_micros()).unwrap_or(u64::MAX));
    out.put_u64(millis(entry.ttl));
    out.put_u64(entry.rows);
    out.put_u64(entry.row_description_len as u64);
    out.put_u64(entry.bytes.len() as u64);
    out.put_slice(&entry.bytes);
    out.put_u64(xxh3_64(&out));
    out.freeze()
}

/// The entry, if the bytes are whole, of this version, and of this very key. It may be served for `remaining` from `asked_at`.
pub(super) fn decode(bytes: &Bytes, key: &Key, asked_at: Instant, remaining: Duration) -> Option<Entry> {
    let (body, mut sum) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    if sum.get_u64() != xxh3_64(body) {
        return None;
    }
    let mut rest = bytes.slice(..body.len());
    if rest.try_get_u8().ok()? != VERSION || part(&mut rest)? != key.bytes() {
        return None;
    }
    let created = UNIX_EPOCH.checked_add(Duration::from_millis(rest.try_get_u64().ok()?))?;
    let cost = Duration::from_micros(rest.try_get_u64().ok()?);
    let ttl = Duration::from_millis(rest.try_get_u64().ok()?);
    let rows = rest.try_get_u64().ok()?;
    let row_description_len = usize::try_from(rest.try_get_u64().ok()?).ok()?;
    let answer = part(&mut rest)?;
    if row_description_len > answer.len() || !rest.is_empty() {
        return None;
    }
    Some(Entry::new(answer, row_description_len, rows, cost, ttl).aged(
        created.min(SystemTime::now()),
        asked_at,
        remaining,
    ))
}

fn part(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(rest.try_get_u64().ok()?).ok()?;
    (length <= rest.len()).then(|| rest.split_to(length))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::faults::Switches;
    use crate::cache::{KeyBuilder, Protocol};

    fn key(text: &str) -> Key {
        KeyBuilder::new(Switches::default(), Protocol::Simple).statement(text.as_bytes()).build()
    }

    fn entry() -> Entry {
        Entry::new(Bytes::from_static(b"Trows"), 1, 3, Duration::from_micros(17), Duration::from_secs(60))
    }

    #[test]
    fn an_entry_comes_back_as_it_was() {
        let bytes = encode(&key("SELECT 1"), &entry());
        let back = decode(&bytes, &key("SELECT 1"), Instant::now(), Duration::from_secs(9)).expect("whole");
        assert_eq!((&back.bytes[..], back.row_description_len, back.rows), (&b"Trows"[..], 1, 3));
        assert_eq!((back.cost, back.ttl), (Duration::from_micros(17), Duration::from_secs(60)));
        assert!(back.remaining() <= Duration::from_secs(9));
    }

    #[test]
    fn a_key_of_the_same_hash_is_compared_in_full() {
        let (one, other) = (key("SELECT 1").with_hash(7), key("SELECT 2").with_hash(7));
        assert!(decode(&encode(&one, &entry()), &other, Instant::now(), Duration::from_secs(9)).is_none());
    }

    #[test]
    fn no_damaged_entry_is_read() {
        let bytes = encode(&key("SELECT 1"), &entry());
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert!(
                decode(&damaged.into(), &key("SELECT 1"), Instant::now(), Duration::from_secs(9)).is_none(),
                "byte {at}"
            );
            assert!(
                decode(&bytes.slice(..at), &key("SELECT 1"), Instant::now(), Duration::from_secs(9)).is_none(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn lengths_that_lie_are_no_panic() {
        // A checksum that is right over a length that is wrong.
        for length in [6_u64, 1 << 40, u64::MAX] {
            let mut out = BytesMut::new();
            out.put_u8(VERSION);
            out.put_u64(length);
            out.put_slice(b"short");
            out.put_u64(xxh3_64(&out));
            assert!(decode(&out.freeze(), &key("SELECT 1"), Instant::now(), Duration::from_secs(9)).is_none());
        }
    }

    proptest::proptest! {
        /// Whoever can write to Redis can make a right checksum.
        #[test]
        fn any_body_under_a_right_checksum_is_an_entry_or_none(
            body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120), is_ours: bool, length: u64,
        ) {
            let mut out = BytesMut::new();
            out.put_u8(VERSION);
            if is_ours {
                let whole = encode(&key("SELECT 1"), &entry());
                out.put_slice(&whole[1..9 + key("SELECT 1").bytes().len() + 32]);
                out.put_u64(length);
            }
            out.put_slice(&body);
            out.put_u64(xxh3_64(&out));
            if let Some(entry) = decode(&out.freeze(), &key("SELECT 1"), Instant::now(), Duration::from_secs(9)) {
                assert!(entry.row_description_len <= entry.bytes.len());
                assert!(entry.rows_and_tag().len() <= entry.bytes.len() && entry.age() >= Duration::ZERO);
            }
        }
    }
}
