//! The rows of an INSERT's query on their way: collected from the answer, put in arrays, one set for each shard.

mod array;
mod describe;

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use self::array::Array;
pub use self::describe::{Described, describe};
use crate::error::{Error, ErrorKind};
use crate::exec::fanout::Sink;
use crate::plan::distribute::{Carrier, InsertSelect, Part};
use crate::wire::frame::{self, Body};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// What a server takes in one message.
pub(super) const MOST_BYTES: usize = 1_000_000_000;

/// Takes an answer's rows.
pub struct Collected<'c, S> {
    /// Who has asked: nothing is read for somebody who is gone.
    client: &'c mut S,
    queue: BytesMut,
    rows: Vec<Bytes>,
    bytes: usize,
    limit: usize,
}

impl<'c, S: Sink> Collected<'c, S> {
    /// Takes that many bytes of rows at most.
    pub fn new(client: &'c mut S, limit: usize) -> Self {
        Self { client, queue: BytesMut::new(), rows: Vec::new(), bytes: 0, limit }
    }

    /// The DataRows' bodies.
    ///
    /// # Errors
    /// They are too many.
    pub fn rows(mut self) -> Result<Vec<Bytes>, Error> {
        self.take()?;
        Ok(self.rows)
    }

    fn take(&mut self) -> Result<(), Error> {
        let unreadable = |error: frame::FrameError| Error::internal(error.to_string());
        while let Some(frame) = frame::cut(&mut self.queue, usize::MAX).map_err(unreadable)? {
            if frame.tag() != b'D' {
                continue;
            }
            self.bytes += frame.bytes.len();
            if self.bytes > self.limit {
                return Err(too_many(self.limit));
            }
            self.rows.push(frame.bytes.slice(frame::HEADER_LEN..));
        }
        Ok(())
    }
}

impl<S: Sink> Sink for Collected<'_, S> {
    fn queue(&mut self) -> &mut BytesMut {
        &mut self.queue
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(self.take())
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        self.client.poll_gone(cx)
    }
}

fn too_many(limit: usize) -> Error {
    let message = format!("INSERT ... SELECT moves more than {limit} bytes of rows between shards");
    Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, message)
        .hint("Raise fanout.memory, or insert fewer rows at once.")
}

/// The fields of a DataRow's body.
pub fn fields(row: &[u8]) -> Result<Vec<Option<&[u8]>>, Error> {
    let read = || {
        let mut body = Body::new(row);
        let mut fields = Vec::new();
        for _ in 0..body.i16()? {
            fields.push(match usize::try_from(body.i32()?) {
                Ok(len) => Some(body.bytes(len)?),
                Err(_) => None,
            });
        }
        Some(fields)
    };
    read().ok_or_else(|| Error::internal("a row that cannot be read"))
}

/// Rows with those columns alone.
///
/// # Errors
/// A row that lacks one.
pub fn picked(rows: &[Bytes], columns: &[usize]) -> Result<Vec<Bytes>, Error> {
    rows.iter()
        .map(|row| {
            let fields = fields(row)?;
            let mut out = BytesMut::new();
            writer::data_row(&mut out, columns.iter().map(|at| fields.get(*at).copied().flatten()));
            Ok(out.freeze().slice(frame::HEADER_LEN..))
        })
        .collect()
}

/// The bodies of the DataRows among messages.
pub fn rows_among(messages: &[Bytes]) -> Vec<Bytes> {
    let rows = messages.iter().filter(|message| message.first() == Some(&b'D'));
    rows.map(|message| message.slice(frame::HEADER_LEN..)).collect()
}

/// Columns of rows as arrays.
///
/// # Errors
/// A row that lacks one.
pub fn arrays(rows: &[Bytes], columns: &[(usize, &Carrier)]) -> Result<Vec<(i16, Bytes)>, Error> {
    let mut arrays: Vec<Array> = columns.iter().map(|(_, carrier)| Array::new(carrier.form)).collect();
    for row in rows {
        let fields = fields(row)?;
        for ((at, _), array) in columns.iter().zip(&mut arrays) {
            array.push(*fields.get(*at).ok_or_else(|| Error::internal("a row without one of its columns"))?);
        }
    }
    Ok(arrays.into_iter().map(Array::finish).collect())
}

/// What each shard inserts: the rows, of which `keys` are the shard keys, from parameter `first` on.
///
/// # Errors
/// A row that belongs to no shard, or more than a server takes.
pub fn parts(
    plan: &InsertSelect,
    carriers: &[Carrier],
    rows: &[Bytes],
    keys: &[Bytes],
    first: usize,
) -> Result<Vec<Part>, Error> {
    let sql: std::sync::Arc<str> = plan.sql(carriers, first).into();
    let columns: Vec<(usize, &Carrier)> = carriers.iter().enumerate().collect();
    let part = |shard, numbers: Vec<usize>, more: Vec<(i16, Bytes)>| {
        let bytes: usize = more.iter().map(|(_, value)| value.len()).sum();
        if bytes > MOST_BYTES || first + more.len() > usize::from(u16::MAX) {
            return Err(too_many(MOST_BYTES));
        }
        Ok(Part { shard, sql: std::sync::Arc::clone(&sql), rows: numbers, is_verbatim: false, more })
    };
    if plan.is_on_primary() {
        return Ok(vec![part(0, (0..rows.len()).collect(), arrays(rows, &columns)?)?]);
    }
    if plan.is_everywhere() {
        let more = arrays(rows, &columns)?;
        return (0..plan.shards).map(|shard| part(shard, Vec::new(), more.clone())).collect();
    }
    let mut shards: Vec<(Vec<usize>, Vec<Bytes>)> = vec![Default::default(); plan.shards];
    for (number, (row, key)) in rows.iter().zip(keys).enumerate() {
        let placed = plan.place(&fields(key)?).map_err(|refusal| Error::refused(refusal.message).hint(refusal.hint))?;
        for shard in placed {
            let (numbers, given) = shards.get_mut(shard).ok_or_else(|| Error::internal("there is no such shard"))?;
            numbers.push(number);
            given.push(row.clone());
        }
    }
    // Where there are no rows one shard says so.
    let is_empty = rows.is_empty();
    let chosen =
        shards.into_iter().enumerate().filter(|(at, (numbers, _))| !numbers.is_empty() || (is_empty && *at == 0));
    chosen.map(|(shard, (numbers, given))| part(shard, numbers, arrays(&given, &columns)?)).collect()
}
