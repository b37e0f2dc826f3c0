//! An entry as it lies in Redis: versioned, each part with its length, the whole with a checksum.
//!
//! `version:u8 key:bytes created_ms:u64 cost_us:u64 ttl_ms:u64 rows:u64 row_description_len:u64 length:u64 form:u8 answer:bytes xxh3:u64`,
//! where `bytes` is a u64 length and as many bytes, and all numbers are big endian. `length` is the answer's own, `form` says whether it lies
//! there as it is (0) or compressed by zstd (1). The checksum covers everything before it.

use std::io::Read;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use xxhash_rust::xxh3::xxh3_64;

use crate::cache::entry::Entry;
use crate::cache::key::Key;

const VERSION: u8 = 2;
const FIXED_BYTES: usize = 2 + 8 * 9;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// zstd's level 1: answers are text and shrink well enough by it.
const LEVEL: CompressionLevel = CompressionLevel::Fastest;

/// The entry's bytes. An answer that is larger than `compress_above` is compressed, if that makes it smaller.
pub(super) fn encode(key: &Key, entry: &Entry, compress_above: usize) -> Bytes {
    let compressed = (entry.bytes.len() > compress_above)
        .then(|| compress_to_vec(&entry.bytes[..], LEVEL))
        .filter(|compressed| compressed.len() < entry.bytes.len());
    let (form, answer) = match &compressed {
        Some(compressed) => (ZSTD, &compressed[..]),
        None => (PLAIN, &entry.bytes[..]),
    };
    let mut out = BytesMut::with_capacity(FIXED_BYTES + key.bytes().len() + answer.len());
    out.put_u8(VERSION);
    out.put_u64(key.bytes().len() as u64);
    out.put_slice(key.bytes());
    out.put_u64(millis(entry.created.duration_since(UNIX_EPOCH).unwrap_or_default()));
    out.put_u64(u64::try_from(entry.cost.as_micros()).unwrap_or(u64::MAX));
    out.put_u64(millis(entry.ttl));
    out.put_u64(entry.rows);
    out.put_u64(entry.row_description_len as u64);
    out.put_u64(entry.bytes.len() as u64);
    out.put_u8(form);
    out.put_u64(answer.len() as u64);
    out.put_slice(answer);
    out.put_u64(xxh3_64(&out));
    out.freeze()
}

/// The entry, if the bytes are whole, of this version, of this very key, and its answer no larger than `longest`. It may be served
/// for `remaining` from `asked_at`.
pub(super) fn decode(
    bytes: &Bytes,
    key: &Key,
    asked_at: Instant,
    remaining: Duration,
    longest: usize,
) -> Option<Entry> {
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
    let length = usize::try_from(rest.try_get_u64().ok()?).ok().filter(|length| *length <= longest)?;
    let form = rest.try_get_u8().ok()?;
    let answer = unpacked(form, part(&mut rest)?, length)?;
    if row_description_len > answer.len() || !rest.is_empty() {
        return None;
    }
    Some(Entry::new(answer, row_description_len, rows, cost, ttl).aged(
        created.min(SystemTime::now()),
        asked_at,
        remaining,
    ))
}

/// The answer, if it has that length.
fn unpacked(form: u8, answer: Bytes, length: usize) -> Option<Bytes> {
    let answer = match form {
        PLAIN => answer,
        ZSTD => {
            let mut unpacked = Vec::with_capacity(length);
            // One byte more shows that it is another answer; what the frame says beyond is not made.
            let packed = StreamingDecoder::new(&answer[..]).ok()?;
            packed.take(length as u64 + 1).read_to_end(&mut unpacked).ok()?;
            unpacked.into()
        }
        _ => return None,
    };
    (answer.len() == length).then_some(answer)
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

    const LONGEST: usize = 1 << 20;

    fn key(text: &str) -> Key {
        KeyBuilder::new(Switches::default(), Protocol::Simple).statement(text.as_bytes()).build()
    }

    fn entry() -> Entry {
        Entry::new(Bytes::from_static(b"Trows"), 1, 3, Duration::from_micros(17), Duration::from_secs(60))
    }

    #[test]
    fn an_entry_comes_back_as_it_was() {
        let bytes = encode(&key("SELECT 1"), &entry(), usize::MAX);
        let back = decode(&bytes, &key("SELECT 1"), Instant::now(), Duration::from_secs(9), LONGEST).expect("whole");
        assert_eq!((&back.bytes[..], back.row_description_len, back.rows), (&b"Trows"[..], 1, 3));
        assert_eq!((back.cost, back.ttl), (Duration::from_micros(17), Duration::from_secs(60)));
        assert!(back.remaining() <= Duration::from_secs(9));
    }

    #[test]
    fn a_large_answer_is_compressed_and_comes_back_as_it_was() {
        let large = |bytes: Vec<u8>| Entry::new(bytes.into(), 7, 3, Duration::ZERO, Duration::from_secs(60));
        let text: Vec<u8> = (0..50_000_u32).flat_map(|number| number.to_string().into_bytes()).collect();
        let noise: Vec<u8> = (0..50_000).map(|_| rand::random()).collect();
        for (answer, shrinks) in [(text, true), (noise, false)] {
            let plain = encode(&key("SELECT 1"), &large(answer.clone()), usize::MAX);
            let packed = encode(&key("SELECT 1"), &large(answer.clone()), 10_000);
            assert_eq!(packed.len() < plain.len() * 2 / 3, shrinks, "{} of {}", packed.len(), plain.len());
            for bytes in [&plain, &packed] {
                let back =
                    decode(bytes, &key("SELECT 1"), Instant::now(), Duration::from_secs(9), LONGEST).expect("whole");
                assert_eq!((&back.bytes[..], back.row_description_len), (&answer[..], 7));
                assert!(
                    decode(bytes, &key("SELECT 1"), Instant::now(), Duration::from_secs(9), answer.len() - 1).is_none()
                );
            }
        }
    }

    #[test]
    fn a_frame_that_unpacks_to_more_or_less_than_it_says_is_no_entry() {
        let packed = compress_to_vec(&[b'x'; 5000][..], LEVEL);
        for (length, is_whole) in [(5000, true), (4999, false), (5001, false), (1 << 40, false)] {
            let mut out = BytesMut::new();
            let whole = encode(&key("SELECT 1"), &entry(), usize::MAX);
            out.put_slice(&whole[..9 + key("SELECT 1").bytes().len() + 40]);
            out.put_u64(length);
            out.put_u8(ZSTD);
            out.put_u64(packed.len() as u64);
            out.put_slice(&packed);
            out.put_u64(xxh3_64(&out));
            let read = decode(&out.freeze(), &key("SELECT 1"), Instant::now(), Duration::from_secs(9), LONGEST);
            assert_eq!(read.is_some(), is_whole, "{length}");
        }
    }

    #[test]
    fn a_key_of_the_same_hash_is_compared_in_full() {
        let (one, other) = (key("SELECT 1").with_hash(7), key("SELECT 2").with_hash(7));
        assert!(
            decode(&encode(&one, &entry(), usize::MAX), &other, Instant::now(), Duration::from_secs(9), LONGEST)
                .is_none()
        );
    }

    #[test]
    fn no_damaged_entry_is_read() {
        let bytes = encode(&key("SELECT 1"), &entry(), usize::MAX);
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert!(
                decode(&damaged.into(), &key("SELECT 1"), Instant::now(), Duration::from_secs(9), LONGEST).is_none(),
                "byte {at}"
            );
            assert!(
                decode(&bytes.slice(..at), &key("SELECT 1"), Instant::now(), Duration::from_secs(9), LONGEST).is_none(),
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
            assert!(decode(&out.freeze(), &key("SELECT 1"), Instant::now(), Duration::from_secs(9), LONGEST).is_none());
        }
    }

    proptest::proptest! {
        /// Whoever can write to Redis can make a right checksum.
        #[test]
        fn any_body_under_a_right_checksum_is_an_entry_or_none(
            body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120),
            is_ours: bool,
            length in 0..130_u64,
            form in 0..3_u8,
        ) {
            let mut out = BytesMut::new();
            out.put_u8(VERSION);
            if is_ours {
                let whole = encode(&key("SELECT 1"), &entry(), usize::MAX);
                out.put_slice(&whole[1..9 + key("SELECT 1").bytes().len() + 32]);
                out.put_u64(length / 2);
                out.put_u64(length);
                out.put_u8(form);
                out.put_u64(body.len() as u64);
            }
            out.put_slice(&body);
            out.put_u64(xxh3_64(&out));
            if let Some(entry) = decode(&out.freeze(), &key("SELECT 1"), Instant::now(), Duration::from_secs(9), LONGEST) {
                assert!(entry.row_description_len <= entry.bytes.len());
                assert!(entry.rows_and_tag().len() <= entry.bytes.len() && entry.age() >= Duration::ZERO);
            }
        }
    }
}
