//! TPC-H through pgherd: each of the 22 queries equals one PostgreSQL's answer.
//!
//! Two layouts, two and four shards, the simple and the extended protocol. `--nocapture` shows the table; `PGHERD_SOAK=1` runs all
//! layouts, `PGHERD_TPCH_SCALE=0.1` over ten times the data.

mod data;
mod queries;
mod shipped;

use std::fmt::Write as _;

use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use self::data::{Collation, Herd, Layout};
use self::queries::{Tpch, queries};

/// A value as it came, whatever its type.
struct Raw(Option<Vec<u8>>);

impl FromSql<'_> for Raw {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(raw.to_vec())))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// An answer: names (and types, where the protocol tells them) of its columns, and its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    columns: Vec<(String, u32)>,
    rows: Vec<Vec<Option<Vec<u8>>>>,
}

/// What became of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Equal,
    Refused(String),
    Wrong(String),
}

async fn simple(client: &Client, text: &str) -> Result<Answer, tokio_postgres::Error> {
    let mut answer = Answer { columns: Vec::new(), rows: Vec::new() };
    for message in client.simple_query(text).await? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                answer.columns = columns.iter().map(|column| (column.name().to_owned(), 0)).collect();
            }
            SimpleQueryMessage::Row(row) => {
                let value = |at| row.get(at).map(|text: &str| text.as_bytes().to_vec());
                answer.rows.push((0..row.len()).map(value).collect());
            }
            _ => {}
        }
    }
    Ok(answer)
}

async fn extended(client: &Client, text: &str) -> Result<Answer, tokio_postgres::Error> {
    let statement = client.prepare(text).await?;
    let columns = statement.columns().iter().map(|column| (column.name().to_owned(), column.type_().oid())).collect();
    let rows = client.query(&statement, &[]).await?;
    let row = |row: &tokio_postgres::Row| (0..row.len()).map(|at| row.get::<_, Raw>(at).0).collect();
    Ok(Answer { columns, rows: rows.iter().map(row).collect() })
}

/// Equal where ORDER BY fixes the order; rows that tie in it may stand in any order among themselves.
fn same(query: &Tpch, given: &Answer, wanted: &Answer) -> bool {
    let keys = |answer: &Answer| -> Vec<Vec<Option<Vec<u8>>>> {
        answer.rows.iter().map(|row| query.sorted_by.iter().map(|&at| row[at].clone()).collect()).collect()
    };
    let sorted = |answer: &Answer| {
        let mut rows = answer.rows.clone();
        rows.sort();
        rows
    };
    given.columns == wanted.columns && keys(given) == keys(wanted) && sorted(given) == sorted(wanted)
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
