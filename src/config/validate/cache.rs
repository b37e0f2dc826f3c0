//! `[cache]`: the result cache and its shared tier.

use std::collections::BTreeMap;
use std::time::Duration;

use super::redis;
use crate::config::model::{Cache, CacheRule, Consistency, OnRedisLoss, Wal};
use crate::config::raw::Table;
use crate::config::{names, units};

/// Bytes of memory below which a cache only costs.
const LEAST_MEMORY_BYTES: u64 = 1 << 20;

/// The shortest time within which a write made elsewhere can be told of.
const SHORTEST_LAG: Duration = Duration::from_millis(50);

pub(super) fn read(table: &Table<'_>) -> Cache {
    let consistency = [Consistency::Strict, Consistency::Bounded][table.choice("consistency").unwrap_or(0)];
    let on_loss = [OnRedisLoss::Wait, OnRedisLoss::RefuseWrite][table.choice("on_redis_loss").unwrap_or(0)];
    let redis = redis::read(&table.table("redis"), consistency, on_loss);
    if table.has("on_redis_loss") && !table.has("redis") {
        table.warn("on_redis_loss", "there is no Redis to lose", "remove it, or add redis = { url = \"...\" }");
    }
    let cache = Cache {
        enabled: table.flag("enabled"),
        ttl: table.duration("ttl"),
        memory_bytes: table.size("memory"),
        max_entry_bytes: usize::try_from(table.size("max_entry")).unwrap_or(usize::MAX),
        consistency,
        redis,
        wal: wal(&table.table("wal")),
        tables: tables(table),
        statements: statements(table),
        olap_only: table.flag("olap_only"),
        min_cost: table.duration_or_off("min_cost").unwrap_or_default(),
        in_transactions: table.choice("in_transactions") != Some(1),
        audit_one_in: table.count("audit_one_in", 0..u64::MAX).unwrap_or(0),
        stale_on_error: table.flag("stale_on_error"),
        share_roles: table.flag("share_roles"),
        shards: table.flag("shards"),
    };
    if cache.shards && cache.consistency == Consistency::Bounded {
        let problem =
            "nothing is cached by shard: parts of an answer that are not of one moment cannot be put together";
        table.warn("shards", problem, "use consistency = \"strict\", or shards = false");
    }
    if cache.memory_bytes < LEAST_MEMORY_BYTES {
        table.fault("memory", "this is too little to hold results in", "give at least \"1MiB\"");
    }
    if cache.max_entry_bytes == 0 || cache.max_entry_bytes as u64 > cache.memory_bytes {
        table.fault("max_entry", "one result must fit into memory", "give more than nothing and at most memory");
    }
    if let Some(redis) = &cache.redis
        && redis.ttl < cache.ttl
    {
        table.warn("ttl", "an entry outlives its copy in Redis", "let redis.ttl be at least ttl");
    }
    cache
}

/// `[cache] wal`.
fn wal(table: &Table<'_>) -> Option<Wal> {
    if !table.is_present() {
        return None;
    }
    let publication = table.text_or_default("publication").unwrap_or_default();
    if publication.is_empty() || !publication.bytes().all(|byte| byte.is_ascii_graphic() && !b"'\"\\".contains(&byte)) {
        table.fault(
            "publication",
            "this is not the name of a publication",
            "write it in ASCII, without quotes and blanks",
        );
    }
    let max_lag = table.duration("max_lag");
    if max_lag < SHORTEST_LAG {
        table.fault("max_lag", "the server cannot be asked that often", "give at least \"50ms\"");
    }
    Some(Wal { publication, max_lag })
}

/// `[cache.tables]`: names become `schema.table` as PostgreSQL stores them.
fn tables(table: &Table<'_>) -> BTreeMap<String, CacheRule> {
    let name = |typed: &str| match names::qualified(typed) {
        Ok((schema, name)) => Ok(format!("{}.{name}", schema.as_deref().unwrap_or("public"))),
        Err(problem) => Err(problem),
    };
    rules(table, "tables", name, "write schema.table in quotes, as \"public.orders\" = \"30s\"")
}

/// `[cache.statements]`: names are fingerprints, as EXPLAIN (ROUTE) shows them.
fn statements(table: &Table<'_>) -> BTreeMap<u128, CacheRule> {
    let fingerprint = |typed: &str| match (typed.len(), u128::from_str_radix(typed, 16)) {
        (32, Ok(fingerprint)) if typed.bytes().all(|byte| byte.is_ascii_hexdigit()) => Ok(fingerprint),
        _ => Err("this is not a fingerprint".into()),
    };
    rules(table, "statements", fingerprint, "write the 32 digits that EXPLAIN (ROUTE) shows")
}

fn rules<N: Ord>(
    table: &Table<'_>,
    key: &str,
    read: impl Fn(&str) -> Result<N, String>,
    help: &str,
) -> BTreeMap<N, CacheRule> {
    let mut out = BTreeMap::new();
    for (typed, value) in table.by_name(key) {
        let fault =
            |problem: String, help: &str| table.fault(key, format!("\"{}\": {problem}", typed.escape_debug()), help);
        let name = match read(&typed) {
            Ok(name) => name,
            Err(problem) => {
                fault(problem, help);
                continue;
            }
        };
        let rule = match value.as_str() {
            "off" => CacheRule::Never,
            "pin" => CacheRule::Pin,
            text => match units::duration(text) {
                Ok(ttl) if !ttl.is_zero() => CacheRule::Ttl(ttl),
                Ok(_) => CacheRule::Never,
                Err(problem) => {
                    fault(problem.to_string(), "write a duration, as \"30s\", or \"off\", or \"pin\"");
                    continue;
                }
            },
        };
        if out.insert(name, rule).is_some() {
            fault("stands here twice".into(), "keep one of the two");
        }
    }
    out
}
