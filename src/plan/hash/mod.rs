//! PostgreSQL's own hash partitioning: the extended hash functions under `HASH_PARTITION_SEED`, and the combining step of
//! `satisfies_hash_partition` (src/backend/partitioning/partbounds.c).

pub mod jenkins;

use crate::plan::value::{Kind, Numeric, Value};

/// `HASH_PARTITION_SEED`
const SEED: u64 = 0x7A5B_2236_7996_DCFD;

/// The remainder of a key under `modulus`: the partition, and so the shard, that a row with it belongs to.
///
/// `None` where a column's type has no hash function here, or `modulus` is 0. NULL adds nothing, as PostgreSQL has it.
pub fn remainder(key: &[(Kind, Option<&Value>)], modulus: usize) -> Option<usize> {
    let mut row = 0;
    for (kind, value) in key {
        if let Some(value) = value {
            row = combine(row, extended(*kind, value, SEED)?);
        }
    }
    usize::try_from(row.checked_rem(u64::try_from(modulus).ok()?)?).ok()
}

/// Whether values of the kind have a hash function here.
pub fn is_hashed(kind: Kind) -> bool {
    !matches!(kind, Kind::Float4 | Kind::Float8 | Kind::Time | Kind::Interval)
}

/// `hash_combine64`
fn combine(a: u64, b: u64) -> u64 {
    a ^ b.wrapping_add(0x49a0_f4dd_15e5_a8e3).wrapping_add(a << 54).wrapping_add(a >> 7)
}

/// The type's `...extended` hash function. Integers of all widths that are equal hash alike.
pub fn extended(kind: Kind, value: &Value, seed: u64) -> Option<u64> {
    match (kind, value) {
        (Kind::Bool, Value::Bool(value)) => Some(jenkins::uint32(u32::from(*value), seed)),
        (Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Timestamp | Kind::TimestampTz, Value::Int(value)) => {
            Some(int8(*value, seed))
        }
        (Kind::Date, Value::Int(value)) => Some(jenkins::uint32(i32::try_from(*value).ok()? as u32, seed)),
        (Kind::Numeric, Value::Numeric(value)) => Some(numeric(value, seed)),
        (Kind::Uuid | Kind::Bytea | Kind::Text | Kind::Varchar | Kind::Bpchar, Value::Bytes(value)) => {
            Some(jenkins::bytes(value, seed))
        }
        _ => None,
    }
}

/// `hashint8extended`, which folds the upper half in so that small values hash as `hashint4extended` has them.
fn int8(value: i64, seed: u64) -> u64 {
    let (low, high) = (value as u32, (value >> 32) as u32);
    jenkins::uint32(low ^ if value >= 0 { high } else { !high }, seed)
}

/// `hash_numeric_extended`: scale and outer zeros do not count.
fn numeric(value: &Numeric, seed: u64) -> u64 {
    let Some((weight, digits)) = value.significant() else { return seed };
    if digits.is_empty() {
        return seed.wrapping_sub(1);
    }
    let bytes: Vec<u8> = digits.iter().flat_map(|digit| digit.to_le_bytes()).collect();
    jenkins::bytes(&bytes, seed) ^ i64::from(weight) as u64
}
