//! Answers in both protocols, and when two of them are equal.

use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::queries::Tpch;

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
pub(super) struct Answer {
    pub(super) columns: Vec<(String, u32)>,
    pub(super) rows: Vec<Vec<Option<Vec<u8>>>>,
}

/// By a simple query.
pub(super) async fn simple(client: &Client, text: &str) -> Result<Answer, tokio_postgres::Error> {
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

/// By a prepared statement, its values in binary.
pub(super) async fn extended(client: &Client, text: &str) -> Result<Answer, tokio_postgres::Error> {
    let statement = client.prepare(text).await?;
    let columns = statement.columns().iter().map(|column| (column.name().to_owned(), column.type_().oid())).collect();
    let rows = client.query(&statement, &[]).await?;
    let row = |row: &tokio_postgres::Row| (0..row.len()).map(|at| row.get::<_, Raw>(at).0).collect();
    Ok(Answer { columns, rows: rows.iter().map(row).collect() })
}

/// Equal where ORDER BY fixes the order; rows that tie in it may stand in any order among themselves.
pub(super) fn same(query: &Tpch, given: &Answer, wanted: &Answer) -> bool {
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
