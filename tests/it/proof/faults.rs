//! Each fault that is put into pgherd's cache on purpose is to be found by the checker within a minute; docs/proof.md says which were. By hand, since pgherd has to be
//! built with them: `cargo test --locked --features faults --test it -- proof::faults --test-threads 1 --nocapture`.

use std::time::Duration;

use pgherd::cache::Faults;

use super::fleet::Plan;
use super::nemesis::Act;
use super::run::{Run, run};

/// How the checker says it, and what must befall the fleet for the fault to matter.
type Trial = (&'static str, &'static str, &'static [Act]);

const TRIALS: [Trial; 23] = [
    ("no_second_raise", "STALE", &[]),
    ("doubt_as_flag", "STALE", &[]),
    ("store_without_comparing", "STALE", &[]),
    ("no_role_in_key", "FOREIGN", &[]),
    ("no_cascades", "STALE", &[]),
    ("no_search_path_in_key", "FOREIGN", &[]),
    ("no_time_zone_in_key", "FOREIGN", &[]),
    ("no_tenant_in_key", "FOREIGN", &[]),
    ("no_parameters_in_key", "FOREIGN", &[]),
    ("invalidate_after_commit", "STALE", &[]),
    ("settle_before_commit", "STALE", &[]),
    ("unknown_is_settled", "STALE", &[Act::PostgresCut]),
    ("ignore_catalog_changes", "STALE", &[]),
    ("serve_while_lapsed", "STALE", &[Act::RedisCut]),
    ("serve_without_redis", "STALE", &[Act::RedisCut]),
    ("serve_while_young", "STALE", &[Act::RedisEmptied]),
    ("register_without_doubts", "STALE", &[Act::RedisCut]),
    ("serve_before_all_act", "STALE", &[Act::RedisEmptied]),
    ("act_without_open_writes", "STALE", &[Act::RedisEmptied]),
    ("act_without_past_writes", "STALE", &[Act::RedisEmptied]),
    ("ignore_orphans", "STALE", &[Act::HerdKilledAndRedisEmptied]),
    ("any_replica", "STALE", &[Act::ReplicaPaused]),
    ("share_with_anyone", "FOREIGN", &[]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_found_within_a_minute() {
    let only = std::env::var("PGHERD_FAULT").unwrap_or_default();
    let mut missed = Vec::new();
    for (name, telling, acts) in TRIALS.into_iter().filter(|(name, ..)| only.is_empty() || only == *name) {
        let plan = Plan { herds: 2, cache: "ttl = \"5m\"".into(), fault: name.into() };
        let trial = Run {
            time: Duration::from_secs(60),
            stop_at_violation: true,
            plan,
            bound: None,
            acts: acts.to_vec(),
            calm: Duration::from_millis(800),
        };
        let Some(summary) = run(&trial).await else { return };
        match summary.violations.iter().find(|(_, what)| what.starts_with(telling)) {
            Some((at, what)) => eprintln!("{name}: found after {at:.1?} by {what}\n  {summary}"),
            None => {
                eprintln!("{name}: NOT FOUND: {summary} {:?}", summary.violations);
                missed.push(name);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn there_is_a_trial_for_each_fault() {
    let tried: Vec<&str> = TRIALS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(tried, Faults::NAMES);
}
