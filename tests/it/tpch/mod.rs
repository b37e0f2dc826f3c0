//! TPC-H through pgherd: each of the 22 queries equals one PostgreSQL's answer.
//!
//! Two layouts, two and four shards, the simple and the extended protocol. `--nocapture` shows the table; `PGHERD_SOAK=1` runs all
//! layouts, `PGHERD_TPCH_SCALE=0.1` over ten times the data.

mod answers;
mod data;
mod queries;
mod shipped;

use std::fmt::Write as _;

use self::answers::{Answer, extended, same, simple};
use self::data::{Collation, Herd, Layout};
use self::queries::{Tpch, queries};

/// What became of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Equal,
    Refused(String),
    Wrong(String),
}

fn judge(query: &Tpch, given: Result<Answer, tokio_postgres::Error>, wanted: &Answer) -> Outcome {
    match given {
        Ok(given) if same(query, &given, wanted) => Outcome::Equal,
        Ok(given) => Outcome::Wrong(format!("{} rows instead of {}", given.rows.len(), wanted.rows.len())),
        Err(error) => match error.as_db_error() {
            Some(db) if db.code().code() == "0A000" && db.hint().is_some() => Outcome::Refused(db.message().to_owned()),
            Some(db) => Outcome::Wrong(format!("{}: {}", db.code().code(), db.message())),
            None => Outcome::Wrong(error.to_string()),
        },
    }
}

async fn story(layout: Layout, collation: Collation, shards: usize, cached: bool) {
    let herd = Herd::start(layout, collation, shards, cached).await;
    let (oracle, through) = (herd.whole.client().await, herd.pgherd.client("tpch").await);
    let (mut table, mut wrong, mut equal, mut empty) = (String::new(), Vec::new(), Vec::new(), 0);
    for query in queries(data::scale()) {
        let mut outcomes = Vec::new();
        let started = std::time::Instant::now();
        let wanted = [simple(&oracle, &query.text).await, extended(&oracle, &query.text).await].map(|answer| {
            answer.unwrap_or_else(|error| panic!("query {} fails on PostgreSQL: {error:?}", query.number))
        });
        // Twice where there is time, so that what the first turn left behind (statements, cached answers) meets the second.
        for _ in 0..if is_soak() { 2 } else { 1 } {
            outcomes.push(judge(&query, simple(&through, &query.text).await, &wanted[0]));
            outcomes.push(judge(&query, extended(&through, &query.text).await, &wanted[1]));
        }
        let took = started.elapsed().as_millis();
        let shown = match &outcomes[0] {
            outcome if outcomes.iter().any(|other| other != outcome) => format!("DIFFERS {outcomes:?}"),
            Outcome::Equal => format!("equal, {} rows", wanted[0].rows.len()),
            Outcome::Refused(message) => format!("refused: {message}"),
            Outcome::Wrong(why) => format!("WRONG: {why}"),
        };
        let is_consistent = outcomes.iter().all(|outcome| *outcome == outcomes[0]);
        if !is_consistent || matches!(outcomes[0], Outcome::Wrong(_)) {
            wrong.push(query.number);
        }
        if is_consistent && outcomes[0] == Outcome::Equal {
            equal.push(query.number);
            empty += usize::from(wanted[0].rows.is_empty());
        }
        let _ = writeln!(table, "| Q{} | {layout:?} | {collation:?} | {shards} | {shown} | {took} ms |", query.number);
    }
    eprintln!("| query | layout | collation | shards | outcome |\n|---|---|---|---|---|\n{table}{} equal", equal.len());
    assert!(wrong.is_empty(), "wrong or unlike in the two protocols: {wrong:?}\n{table}");
    assert_eq!(equal.len(), 22, "all of them\n{table}");
    assert_eq!(empty, 0, "an empty answer shows little\n{table}");
    let legs = herd.pgherd.metric("pgherd_fanout_legs_total", "tpch").await;
    assert!(legs >= (shards * equal.len()) as f64, "they did run over the shards: {legs} legs");
    herd.pgherd.stop().await;
}

/// The other layouts take minutes.
fn is_soak() -> bool {
    std::env::var_os("PGHERD_SOAK").is_some()
}

#[tokio::test]
async fn two_shards_and_reference_tables() {
    story(Layout::References, Collation::C, 2, false).await;
}

#[tokio::test]
async fn four_shards_and_reference_tables() {
    if !is_soak() {
        return;
    }
    story(Layout::References, Collation::C, 4, true).await;
}

#[tokio::test]
async fn four_shards_and_reference_tables_sorted_by_locale() {
    if !is_soak() {
        return;
    }
    story(Layout::References, Collation::Locale, 4, false).await;
}

#[tokio::test]
async fn two_shards_and_every_table_by_its_own_key() {
    if !is_soak() {
        return;
    }
    story(Layout::OwnKeys, Collation::C, 2, true).await;
}

#[tokio::test]
async fn four_shards_and_every_table_by_its_own_key() {
    story(Layout::OwnKeys, Collation::C, 4, false).await;
}

#[tokio::test]
async fn four_shards_and_every_table_by_its_own_key_sorted_by_locale() {
    if !is_soak() {
        return;
    }
    story(Layout::OwnKeys, Collation::Locale, 4, true).await;
}
