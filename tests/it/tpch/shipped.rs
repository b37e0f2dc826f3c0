//! What the queries ship to the coordinator, with lists of keys and without; `--nocapture` shows it.

use std::collections::BTreeMap;
use std::time::Instant;

use super::data::{self, Collation, Herd, Layout};
use super::queries::queries;
use super::simple;
use crate::harness::Pgherd;

/// Rows and bytes that EXPLAIN ANALYZE tells of all shipped tables, and the milliseconds that the query itself then takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Shipped {
    rows: f64,
    bytes: f64,
    millis: f64,
}

/// By query; those that ship nothing are left out.
async fn shipped(pgherd: &Pgherd) -> BTreeMap<u32, Shipped> {
    let client = pgherd.client("tpch").await;
    let mut all = BTreeMap::new();
    for query in queries(data::scale()) {
        let plan = simple(&client, &format!("explain (analyze) {}", query.text)).await.expect("a plan");
        let text = |row: Vec<Option<Vec<u8>>>| String::from_utf8(row[0].clone().unwrap_or_default()).expect("text");
        let mut sum = Shipped::default();
        for line in plan.rows.into_iter().map(text) {
            let figure = |name: &str| -> f64 {
                let rest = line.split_once(name).map_or("", |(_, rest)| rest);
                rest.split([' ', ')']).find(|word| !word.is_empty()).and_then(|word| word.parse().ok()).unwrap_or(0.0)
            };
            if line.trim_start().starts_with("->  Ship ") {
                sum.rows += figure("(rows=");
                sum.bytes += figure("bytes=");
            }
        }
        if sum.rows > 0.0 {
            let since = Instant::now();
            simple(&client, &query.text).await.expect("an answer");
            all.insert(query.number, Shipped { millis: since.elapsed().as_secs_f64() * 1e3, ..sum });
        }
    }
    all
}

/// Queries that must ship at most that share of what they ship without.
async fn story(layout: Layout, gains: &[(u32, f64)]) {
    let herd = Herd::start(layout, Collation::C, 4, false).await;
    let without = herd.another("key_list_max = 0\n").await;
    let (on, off) = (shipped(&herd.pgherd).await, shipped(&without).await);
    eprintln!("{layout:?}: query, rows and KiB and ms without lists of keys, with them, share of the rows");
    for (query, before) in &off {
        let after = on.get(query).copied().unwrap_or_default();
        let figures = |it: Shipped| format!("{:>8} {:>8.0} {:>6.0}", it.rows, it.bytes / 1024.0, it.millis);
        eprintln!("Q{query:<3} {}   {}   {:.3}", figures(*before), figures(after), after.rows / before.rows);
        assert!(after.rows <= before.rows, "Q{query} ships more");
    }
    for (query, share) in gains {
        let (on, off) = (on.get(query).copied().unwrap_or_default(), off[query]);
        assert!(on.rows <= off.rows * share, "Q{query} ships {on:?} instead of {off:?}");
    }
    without.stop().await;
    herd.pgherd.stop().await;
}

#[tokio::test]
async fn rows_with_keys_that_count_beside_reference_tables() {
    story(Layout::References, &[(8, 0.1), (17, 0.1), (20, 0.3)]).await;
}

#[tokio::test]
async fn rows_with_keys_that_count_where_every_table_has_its_own() {
    story(Layout::OwnKeys, &[(2, 0.5), (7, 0.2), (8, 0.1), (17, 0.1), (19, 0.1), (20, 0.3)]).await;
}
