//! A cached answer: the server's own bytes, and what must be known to replay them.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

/// An answer exactly as the server sent it: RowDescription (where the protocol has it), DataRows, CommandComplete.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The bytes, ready to be written.
    pub bytes: Bytes,
    /// How many of them, from the start, are the RowDescription; 0 where there is none.
    pub row_description_len: usize,
    /// How many DataRows there are.
    pub rows: u64,
    /// When the statement that gave them had been answered.
    pub created: SystemTime,
    /// How long it took the server: what a hit saves.
    pub cost: Duration,
    /// How long the entry may be served.
    pub ttl: Duration,
    deadline: Instant,
}

impl Entry {
    /// An answer that is complete now.
    pub fn new(bytes: Bytes, row_description_len: usize, rows: u64, cost: Duration, ttl: Duration) -> Self {
        Self {
            row_description_len: row_description_len.min(bytes.len()),
            bytes,
            rows,
            created: SystemTime::now(),
            cost,
            ttl,
            deadline: Instant::now() + ttl,
        }
    }

    /// The same answer, of a statement that was sent at `began`: from then on others may have written what it does not show, and
    /// from then on its time is counted.
    #[must_use]
    pub fn as_of(mut self, began: Instant) -> Self {
        self.deadline = began + self.ttl;
        self
    }

    /// The same answer in memory that is no larger than it.
    #[must_use]
    pub(crate) fn fitted(self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), ..self }
    }

    /// [`Entry::fitted`], of a large one beside the threads that serve: to copy it takes a while.
    pub(crate) async fn fitted_aside(self) -> Self {
        if self.bytes.len() <= super::LARGE_BYTES {
            return self.fitted();
        }
        let entry = self.clone();
        tokio::task::spawn_blocking(|| entry.fitted()).await.unwrap_or(self)
    }

    /// The same answer, given at `created`, to be served for `remaining` from `asked_at` only.
    #[must_use]
    pub(crate) fn aged(mut self, created: SystemTime, asked_at: Instant, remaining: Duration) -> Self {
        self.created = created;
        self.deadline = asked_at + remaining.min(self.ttl);
        self
    }

    /// The RowDescription, or NoData; empty where there is neither.
    pub fn row_description(&self) -> &[u8] {
        &self.bytes[..self.row_description_len]
    }

    /// The bytes behind the RowDescription.
    pub fn rows_and_tag(&self) -> Bytes {
        self.bytes.slice(self.row_description_len..)
    }

    /// How long the entry may still be served.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// How old the answer is.
    pub fn age(&self) -> Duration {
        SystemTime::now().duration_since(self.created).unwrap_or_default()
    }
}
