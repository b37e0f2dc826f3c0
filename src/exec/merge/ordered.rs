//! Streams of one order, merged into one of the same: rows stay where they were read, and keys are compared there.

use std::cmp::Ordering;
use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::due::Due;
use super::order::SortKey;
use super::row::{self, Fields, Row};
use crate::error::Error;
use crate::wire::frame::{self, Frames, HEADER_LEN};

/// Bytes that queued rows cost beside themselves, however few they are.
const QUEUED_OVERHEAD_BYTES: usize = 96;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Ordered {
    keys: Vec<SortKey>,
    columns: usize,
    visible: usize,
    /// Columns that must be found in each row, from the first on.
    needed: usize,
    streams: Vec<Stream>,
    /// Streams that show a row, the one with the next row of the answer first: a binary heap.
    heap: Vec<usize>,
    /// Streams that show none though they have not ended: until then nobody knows which row is next.
    awaited: usize,
}

/// What has come of one stream, from the row it shows on.
#[derive(Debug, Default)]
struct Stream {
    queued: VecDeque<Bytes>,
    /// Where its row is in the first of them, and behind it.
    start: usize,
    end: usize,
    /// Its row's columns, and what comes of the first key.
    fields: Fields,
    rank: (u8, u64),
    bytes: usize,
    has_ended: bool,
}

impl Stream {
    fn body(&self) -> &[u8] {
        self.queued.front().and_then(|rows| rows.get(self.start + HEADER_LEN..self.end)).unwrap_or_default()
    }

    fn row(&self) -> Row<'_> {
        Row { body: self.body(), fields: &self.fields }
    }
}

impl Ordered {
    pub(super) fn new(keys: Vec<SortKey>, columns: usize, visible: usize, streams: usize) -> Self {
        Self::showing(keys, columns, visible, streams, columns)
    }

    /// As [`Ordered::new`], for rows of which nobody looks at more than their sort keys.
    pub(super) fn passing_rows_on(keys: Vec<SortKey>, columns: usize, visible: usize, streams: usize) -> Self {
        let of_keys = keys.iter().map(|key| key.column() + 1).max().unwrap_or_default();
        let needed = if visible == columns { of_keys } else { of_keys.max(visible) };
        Self::showing(keys, columns, visible, streams, needed)
    }

    fn showing(keys: Vec<SortKey>, columns: usize, visible: usize, streams: usize, needed: usize) -> Self {
        let all = (0..streams).map(|_| Stream::default()).collect();
        Self { keys, columns, visible, needed, streams: all, heap: Vec::new(), awaited: streams }
    }

    /// Takes rows of that stream in.
    ///
    /// # Errors
    /// The first of them cannot be read.
    pub(super) fn push(&mut self, at: usize, rows: Frames) -> Result<(), Error> {
        let stream = self.streams.get_mut(at).ok_or_else(|| Error::internal("a row of a leg that is not there"))?;
        let shows_none = stream.queued.is_empty();
        stream.bytes += rows.bytes.len() + QUEUED_OVERHEAD_BYTES;
        stream.queued.push_back(rows.bytes);
        if shows_none {
            self.awaited = self.awaited.saturating_sub(1);
            self.show(at)?;
            self.heap.push(at);
            self.rise(self.heap.len() - 1);
        }
        Ok(())
    }

    /// That stream has no more rows.
    pub(super) fn end(&mut self, at: usize) {
        if let Some(stream) = self.streams.get_mut(at).filter(|stream| !stream.has_ended) {
            stream.has_ended = true;
            self.awaited -= usize::from(stream.queued.is_empty());
        }
    }

    /// Bytes held of that stream.
    pub(super) fn held_bytes(&self, at: usize) -> usize {
        self.streams.get(at).map_or(0, |stream| stream.bytes)
    }

    /// Appends the rows that are certain to be next.
    ///
    /// # Errors
    /// A row cannot be read.
    pub(super) fn give(&mut self, due: &mut Due, out: &mut BytesMut) -> Result<(), Error> {
        while self.awaited == 0 && !due.is_paused() {
            let Some(&first) = self.heap.first() else { return Ok(()) };
            let Some(stream) = self.streams.get(first) else { return Ok(()) };
            if due.counts() {
                if self.visible == self.columns {
                    let rows = stream.queued.front().and_then(|rows| rows.get(stream.start..stream.end));
                    out.extend_from_slice(rows.unwrap_or_default());
                } else {
                    let front = stream.body().get(..stream.fields.front_len(self.visible));
                    row::write_front(out, front.unwrap_or_default(), self.visible);
                }
            }
            self.pass(first)?;
        }
        Ok(())
    }

    /// The row that is certain to be next, and its rank.
    pub(super) fn first(&self) -> Option<(Row<'_>, (u8, u64))> {
        let stream = self.streams.get(*self.heap.first().filter(|_| self.awaited == 0)?)?;
        Some((stream.row(), stream.rank))
    }

    /// Whether all rows of all streams have been given.
    pub(super) fn has_ended(&self) -> bool {
        self.awaited == 0 && self.heap.is_empty()
    }

    /// Goes on behind that row.
    ///
    /// # Errors
    /// The one behind it in its stream cannot be read.
    pub(super) fn advance(&mut self) -> Result<(), Error> {
        self.heap.first().copied().map_or(Ok(()), |first| self.pass(first))
    }

    /// Goes on to the next row of the stream that is first.
    fn pass(&mut self, first: usize) -> Result<(), Error> {
        let Some(stream) = self.streams.get_mut(first) else { return Ok(()) };
        stream.start = stream.end;
        if stream.queued.front().is_some_and(|rows| rows.len() <= stream.start) {
            let given = stream.queued.pop_front().map_or(0, |rows| rows.len() + QUEUED_OVERHEAD_BYTES);
            stream.bytes -= given.min(stream.bytes);
            stream.start = 0;
        }
        if stream.queued.is_empty() {
            self.awaited += usize::from(!stream.has_ended);
            self.heap.swap_remove(0);
        } else {
            self.show(first)?;
        }
        self.sink(0);
        Ok(())
    }

    /// Reads the row that a stream is at.
    fn show(&mut self, at: usize) -> Result<(), Error> {
        let Some(stream) = self.streams.get_mut(at) else { return Ok(()) };
        let rest = stream.queued.front().and_then(|rows| rows.get(stream.start..)).unwrap_or_default();
        let header = frame::peek(rest, rest.len()).ok().flatten();
        let header = header.ok_or_else(|| Error::internal("a shard's row ends too early"))?;
        stream.end = stream.start + header.total;
        let body = rest.get(HEADER_LEN..header.total).unwrap_or_default();
        stream.fields.read_front(body, self.columns, self.needed)?;
        let row = Row { body, fields: &stream.fields };
        let mut keys = self.keys.iter();
        stream.rank = keys.next().map_or(Ok((0, 0)), |key| key.rank(&row))?;
        keys.try_for_each(|key| key.rank(&row).map(drop))
    }

    /// Whether the row of the stream at that place of the heap comes before another's.
    fn is_before(&self, a: usize, b: usize) -> bool {
        let (Some(&a), Some(&b)) = (self.heap.get(a), self.heap.get(b)) else { return false };
        let (Some(one), Some(other)) = (self.streams.get(a), self.streams.get(b)) else { return false };
        let order = one.rank.cmp(&other.rank).then_with(|| {
            let (one, other) = (one.row(), other.row());
            let told = usize::from(self.keys.first().is_some_and(SortKey::is_told_by_rank));
            let later = self.keys.iter().skip(told).map(|key| key.compare(&one, &other));
            later.into_iter().find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        });
        order.then(a.cmp(&b)).is_lt()
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 && self.is_before(at, (at - 1) / 2) {
            self.heap.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= self.heap.len() {
                return;
            }
            let child = if right < self.heap.len() && self.is_before(right, left) { right } else { left };
            if !self.is_before(child, at) {
                return;
            }
            self.heap.swap(child, at);
            at = child;
        }
    }
}
