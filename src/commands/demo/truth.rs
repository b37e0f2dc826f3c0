//! What PostgreSQL itself answers: on the primary, and for what is spread over the shards on one database that holds it all.

use std::pin::pin;

use futures_util::{SinkExt, StreamExt};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::data;
use super::herd::Herd;

/// An answer as text: names of columns, rows, and the command's row count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answer {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<Option<String>>>,
    pub(super) affected: u64,
}

/// Which database knows the right answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Oracle {
    /// The primary.
    Primary,
    /// All shards' rows together.
    Together,
}

/// Connections straight to the servers, past pgherd.
pub(super) struct Truth {
    primary: Client,
    together: Client,
    shards: Vec<Client>,
}

impl Truth {
    /// Connects, and copies what the shards hold into one database.
    pub(super) async fn gather(herd: &Herd) -> Result<Self, tokio_postgres::Error> {
        let mut shards = Vec::new();
        for shard in &herd.shards {
            shards.push(connect(&shard.conninfo("shop")).await?);
        }
        let primary = connect(&herd.primary.conninfo("shop")).await?;
        let together = connect(&herd.primary.conninfo("together")).await?;
        let truth = Self { primary, together, shards };
        for table in data::SHARDED {
            truth.refresh(table).await?;
        }
        copy(&truth.shards[0], &truth.together, "countries").await?;
        truth.together.batch_execute("analyze").await?;
        Ok(truth)
    }

    /// Copies a sharded table anew from every shard.
    pub(super) async fn refresh(&self, table: &str) -> Result<(), tokio_postgres::Error> {
        self.together.batch_execute(&format!("truncate {table}")).await?;
        for shard in &self.shards {
            copy(shard, &self.together, table).await?;
        }
        Ok(())
    }

    /// What PostgreSQL answers.
    pub(super) async fn ask(&self, oracle: Oracle, sql: &str) -> Result<Answer, tokio_postgres::Error> {
        match oracle {
            Oracle::Primary => ask(&self.primary, sql).await,
            Oracle::Together => ask(&self.together, sql).await,
        }
    }
}

/// Connects by tokio-postgres; a task of its own drives the connection.
pub(super) async fn connect(conninfo: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Runs one statement and keeps its answer as text.
pub(super) async fn ask(client: &Client, sql: &str) -> Result<Answer, tokio_postgres::Error> {
    let mut answer = Answer::default();
    for message in client.simple_query(sql).await? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                answer.columns = columns.iter().map(|column| column.name().to_owned()).collect();
            }
            SimpleQueryMessage::Row(row) => {
                answer.rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
            }
            SimpleQueryMessage::CommandComplete(rows) => answer.affected = rows,
            _ => {}
        }
    }
    Ok(answer)
}

async fn copy(from: &Client, to: &Client, table: &str) -> Result<(), tokio_postgres::Error> {
    let mut rows = pin!(from.copy_out(&format!("copy {table} to stdout (format binary)")).await?);
    let mut sink = pin!(to.copy_in(&format!("copy {table} from stdin (format binary)")).await?);
    while let Some(piece) = rows.next().await {
        sink.feed(piece?).await?;
    }
    sink.finish().await.map(drop)
}
