//! `[cache] redis`: the shared tier's address and times.

use std::time::Duration;

use crate::config::model::{Consistency, OnRedisLoss, Redis, Secret};
use crate::config::raw::Table;

/// What a lease must at least be: several round trips and a pause of the process.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

pub(super) fn read(table: &Table<'_>, consistency: Consistency, on_loss: OnRedisLoss) -> Option<Redis> {
    if !table.is_present() {
        return None;
    }
    let url = table.required_text("url", "write redis://host:6379/0, or rediss:// for TLS");
    let redis = Redis {
        url: Secret::new(url.clone().unwrap_or_default()),
        ttl: table.duration("ttl"),
        timeout: table.duration("timeout"),
        prefix: table.text_or_default("prefix").unwrap_or_default(),
        lease: table.duration("lease"),
        on_loss,
        replicas: u32::try_from(table.count("replicas", 0..101).unwrap_or(0)).unwrap_or(0),
        max_entry_bytes: usize::try_from(table.size("max_entry")).unwrap_or(usize::MAX),
        compress_above_bytes: usize::try_from(table.size("compress_above")).unwrap_or(usize::MAX),
        ca: table.path_of("ca"),
    };
    if redis.lease < SHORTEST_LEASE {
        table.fault("lease", "a pause of the process could outlast it", "give at least \"1s\"");
    }
    if redis.timeout >= redis.lease {
        table.fault("timeout", "an answer may not take as long as the lease", "give less than lease");
    }
    check_url(table, &url?, &redis, consistency);
    Some(redis)
}

fn check_url(table: &Table<'_>, url: &str, redis: &Redis, consistency: Consistency) {
    let help = "write redis://user:password@host:6379/0, or rediss:// for TLS";
    let Some((scheme, rest)) = url.split_once("://") else {
        table.fault("url", "this is not a Redis URL", help);
        return;
    };
    let spread = scheme.ends_with("-cluster") || scheme.ends_with("-sentinel");
    let known = ["redis", "rediss", "valkey", "valkeys"];
    let base = scheme.trim_end_matches("-cluster").trim_end_matches("-sentinel");
    if !known.contains(&base) {
        table.fault("url", format!("the scheme \"{}\" is not known", scheme.escape_debug()), help);
    } else if spread && consistency == Consistency::Strict && redis.replicas == 0 {
        // Their failover can lose acknowledged writes, and with them the raise of an epoch.
        let problem =
            "consistency = \"strict\" cannot be kept with a cluster or sentinel, whose failover can lose a write";
        let help = "set replicas to how many replicas each master has, name one server with redis://, or set consistency = \"bounded\"";
        table.fault("url", problem, help);
    } else if redis.ca.is_some() && !(base.ends_with("ss") || base == "valkeys") {
        table.fault("ca", "the connection is not encrypted", "write rediss:// in url, or remove it");
    } else if rest.is_empty() || fred::types::config::Config::from_url(url).is_err() {
        table.fault("url", "this Redis URL cannot be read", help);
    }
}
