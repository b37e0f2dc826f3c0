//! Merging shards' rows into the answer's: state machines fed with DataRow frames by leg, giving DataRow bytes.

mod aggregate;
pub mod description;
pub mod encode;
mod groups;
pub mod numeric;
mod order;
mod row;
mod types;

use std::collections::VecDeque;

use bytes::BytesMut;

use self::description::Description;
use self::groups::Grouped;
use self::order::Keys;
use self::types::{Reader, refused};
use crate::error::Error;
use crate::plan::distribute::{Merge, Sort, SortBy, Streamed};
use crate::wire::frame::Frame;

/// Bytes that a queued row costs beside its frame.
const ROW_OVERHEAD_BYTES: usize = 96;

/// What the client asked its columns to look like.
#[derive(Debug, Clone, Copy)]
pub struct ResultFormats<'a> {
    /// Format codes: none is text, one is for all, else one for each visible column.
    pub codes: &'a [i16],
    /// The session's setting of that name, which says how floats are printed.
    pub extra_float_digits: i32,
}

/// Merges the rows of one statement.
#[derive(Debug)]
pub struct Merger {
    machine: Machine,
    visible: usize,
    is_whole: bool,
    skip: u64,
    left: Option<u64>,
    rows: u64,
    /// Rows that may be given before it pauses.
    quota: Option<u64>,
    /// Rows that came while it paused, where nothing else keeps them.
    waiting: VecDeque<Frame>,
}

#[derive(Debug)]
enum Machine {
    Concatenate,
    Ordered(Ordered),
    Grouped { groups: Box<Grouped>, open: usize, answer: VecDeque<Box<[u8]>> },
}

/// Streams of one order, merged into one of the same.
#[derive(Debug)]
struct Ordered {
    readers: Vec<Reader>,
    sort: Vec<Sort>,
    columns: usize,
    legs: Vec<LegQueue>,
}

#[derive(Debug, Default)]
struct LegQueue {
    rows: VecDeque<(Keys, Frame)>,
    bytes: usize,
    ended: bool,
}

impl Merger {
    /// A merger of `legs` streams whose rows look like `description`, hidden columns last and in binary form.
    ///
    /// # Errors
    /// `0A000` for sort keys, group keys or aggregates of types that pgherd does not merge exactly.
    pub fn new(
        plan: &Streamed,
        description: &Description,
        formats: ResultFormats<'_>,
        legs: usize,
        memory_bytes: usize,
    ) -> Result<Self, Error> {
        let columns = description.columns.len();
        let visible = columns
            .checked_sub(plan.hidden)
            .ok_or_else(|| Error::internal("a shard sent fewer columns than were hidden"))?;
        let machine = match &plan.merge {
            Merge::Rows if plan.sort.is_empty() => Machine::Concatenate,
            Merge::Rows => {
                let mut readers = Vec::new();
                for sort in &plan.sort {
                    let SortBy::Hidden(key) = sort.by else { return Err(Error::internal("a row has no aggregates")) };
                    readers.push(Reader::sorted(description, visible, key)?);
                }
                let legs = (0..legs).map(|_| LegQueue::default()).collect();
                Machine::Ordered(Ordered { readers, sort: plan.sort.clone(), columns, legs })
            }
            Merge::Groups(groups) => {
                let groups = Grouped::new(groups, &plan.sort, description, visible, formats.codes, memory_bytes)?;
                if groups.prints_floats() && formats.extra_float_digits < 1 {
                    return Err(refused("a float aggregate under extra_float_digits below 1"));
                }
                Machine::Grouped { groups: Box::new(groups), open: legs, answer: VecDeque::new() }
            }
        };
        Ok(Self {
            machine,
            visible,
            is_whole: plan.hidden == 0,
            skip: plan.offset,
            left: plan.limit,
            rows: 0,
            quota: None,
            waiting: VecDeque::new(),
        })
    }

    /// From now on it gives so many rows (`None`: all) and then pauses; rows that are due already are appended to `out`.
    ///
    /// # Errors
    /// As [`Merger::push`].
    pub fn allow(&mut self, rows: Option<u64>, out: &mut BytesMut) -> Result<(), Error> {
        self.quota = rows;
        while !self.is_paused()
            && let Some(frame) = self.waiting.pop_front()
        {
            self.emit(&frame, out)?;
        }
        self.drain_ordered(out)
    }

    /// Whether it has given as many rows as it may for now.
    pub fn is_paused(&self) -> bool {
        self.quota == Some(0)
    }

    /// Takes a DataRow of that leg in; rows that are due are appended to `out`.
    ///
    /// # Errors
    /// A row that cannot be read, a sum out of range, or groups beyond the memory allowed (`54000`).
    pub fn push(&mut self, leg: usize, frame: Frame, out: &mut BytesMut) -> Result<(), Error> {
        match &mut self.machine {
            Machine::Concatenate if self.quota == Some(0) => {
                self.waiting.push_back(frame);
                Ok(())
            }
            Machine::Concatenate => self.emit(&frame, out),
            Machine::Grouped { groups, .. } => groups.push(frame.body()),
            Machine::Ordered(ordered) => {
                ordered.push(leg, frame)?;
                self.drain_ordered(out)
            }
        }
    }

    /// Notes that a leg has no more rows.
    ///
    /// # Errors
    /// As [`Merger::push`].
    pub fn end(&mut self, leg: usize, out: &mut BytesMut) -> Result<(), Error> {
        match &mut self.machine {
            Machine::Concatenate => Ok(()),
            Machine::Grouped { groups, open, answer } => {
                *open = open.saturating_sub(1);
                if *open == 0 {
                    *answer = groups.finish()?.into();
                }
                Ok(())
            }
            Machine::Ordered(ordered) => {
                if let Some(queue) = ordered.legs.get_mut(leg) {
                    queue.ended = true;
                }
                self.drain_ordered(out)
            }
        }
    }

    /// After all legs have ended: appends rows until `out` holds `high_bytes`. Whether there are more.
    pub fn finish(&mut self, out: &mut BytesMut, high_bytes: usize) -> bool {
        loop {
            if self.is_paused() {
                return false;
            }
            let Machine::Grouped { answer, .. } = &mut self.machine else { return false };
            if out.len() >= high_bytes && !answer.is_empty() {
                return true;
            }
            let Some(row) = answer.pop_front() else { return false };
            if self.is_due() {
                out.extend_from_slice(&row);
            }
        }
    }

    /// Bytes held for that leg; of groups, an equal share.
    pub fn held_bytes(&self, leg: usize) -> usize {
        match &self.machine {
            Machine::Ordered(ordered) => ordered.legs.get(leg).map_or(0, |queue| queue.bytes),
            Machine::Grouped { .. } | Machine::Concatenate => 0,
        }
    }

    /// Bytes held in all.
    pub fn total_bytes(&self) -> usize {
        match &self.machine {
            Machine::Ordered(ordered) => ordered.legs.iter().map(|queue| queue.bytes).sum(),
            Machine::Grouped { groups, .. } => groups.used_bytes(),
            Machine::Concatenate => 0,
        }
    }

    /// Whether a row of every leg must be at hand before one can be given.
    pub fn needs_all_legs(plan: &Streamed) -> bool {
        matches!(plan.merge, Merge::Rows) && !plan.sort.is_empty()
    }

    /// Rows given so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether no further row can be due.
    pub fn is_satisfied(&self) -> bool {
        self.left == Some(0) && !matches!(self.machine, Machine::Grouped { .. })
    }

    /// Counts a row against OFFSET and LIMIT; whether it belongs to the answer.
    fn is_due(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.left {
            Some(0) => return false,
            Some(left) => *left -= 1,
            None => {}
        }
        self.rows += 1;
        self.quota = self.quota.map(|quota| quota.saturating_sub(1));
        true
    }

    fn emit(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), Error> {
        if !self.is_due() {
            return Ok(());
        }
        if self.is_whole {
            out.extend_from_slice(&frame.bytes);
            return Ok(());
        }
        let body = frame.body();
        let len = row::visible_len(body, self.visible)?;
        row::write_front(out, body.get(..len).unwrap_or_default(), self.visible);
        Ok(())
    }

    fn drain_ordered(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        while !self.is_paused() {
            let Machine::Ordered(ordered) = &mut self.machine else { return Ok(()) };
            let Some(frame) = ordered.pop() else { return Ok(()) };
            self.emit(&frame, out)?;
        }
        Ok(())
    }
}

impl Ordered {
    fn push(&mut self, leg: usize, frame: Frame) -> Result<(), Error> {
        let columns = row::columns(frame.body(), self.columns)?;
        let keys: Result<Keys, Error> = self.readers.iter().map(|reader| reader.read(&columns)).collect();
        let queue = self.legs.get_mut(leg).ok_or_else(|| Error::internal("a row of a leg that is not there"))?;
        queue.bytes += frame.bytes.len() + ROW_OVERHEAD_BYTES;
        queue.rows.push_back((keys?, frame));
        Ok(())
    }

    /// The next row of the answer, if every leg has shown its next one or ended.
    fn pop(&mut self) -> Option<Frame> {
        let mut best: Option<usize> = None;
        for (at, queue) in self.legs.iter().enumerate() {
            let Some((keys, _)) = queue.rows.front() else {
                if queue.ended {
                    continue;
                }
                return None;
            };
            let is_better = best
                .and_then(|best| self.legs.get(best)?.rows.front())
                .is_none_or(|(best, _)| order::compare(&self.sort, keys, best).is_lt());
            if is_better {
                best = Some(at);
            }
        }
        let queue = self.legs.get_mut(best?)?;
        let (_, frame) = queue.rows.pop_front()?;
        queue.bytes = queue.bytes.saturating_sub(frame.bytes.len() + ROW_OVERHEAD_BYTES);
        Some(frame)
    }
}
