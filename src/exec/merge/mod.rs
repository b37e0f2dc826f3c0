//! Merging shards' rows into the answer's: state machines fed with DataRows by leg, giving DataRow bytes.

mod aggregate;
pub mod description;
mod due;
pub mod encode;
mod fixed;
mod groups;
pub mod numeric;
mod order;
mod ordered;
mod row;
mod shape;
mod shortest;
mod sorted_groups;
mod store;
mod sum;
mod types;

use std::collections::VecDeque;

use bytes::BytesMut;

use self::description::{Description, format_of};
use self::due::Due;
use self::groups::Grouped;
use self::order::SortKey;
use self::ordered::Ordered;
use self::row::Fields;
use self::shape::Shape;
use self::sorted_groups::SortedGroups;
use self::types::{Reader, refused};
use crate::error::{Error, ErrorKind};
use crate::plan::distribute::{Merge, SortBy, Streamed};
use crate::wire::frame::Frames;
use crate::wire::sqlstate::SqlState;

/// What the client asked its columns to look like.
#[derive(Debug, Clone, Copy)]
pub struct ResultFormats<'a> {
    /// Format codes: none is text, one is for all, else one for each visible column.
    pub codes: &'a [i16],
    /// The session's setting of that name, which says how floats are printed.
    pub extra_float_digits: i32,
}

impl ResultFormats<'_> {
    /// Fails as PostgreSQL does where there are more or fewer of them than columns.
    ///
    /// # Errors
    /// That.
    pub fn check(&self, columns: usize) -> Result<(), Error> {
        let count = self.codes.len();
        if count <= 1 || count == columns {
            return Ok(());
        }
        let message = format!("bind message has {count} result formats but query has {columns} columns");
        Err(Error::new(ErrorKind::Protocol, SqlState::PROTOCOL_VIOLATION, message))
    }
}

/// Merges the rows of one statement.
#[derive(Debug)]
pub struct Merger {
    machine: Machine,
    due: Due,
}

#[derive(Debug)]
enum Machine {
    Concatenated(Concatenated),
    Ordered(Ordered),
    Grouped { groups: Box<Grouped>, open: usize, answer: std::vec::IntoIter<usize> },
    SortedGroups(Box<SortedGroups>),
}

/// Rows in whichever order they come.
#[derive(Debug)]
struct Concatenated {
    columns: usize,
    visible: usize,
    fields: Fields,
    /// Rows that came while it paused, and of which leg.
    waiting: VecDeque<(usize, Frames)>,
    /// Their bytes, by leg.
    held: Vec<usize>,
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
        let is_called = |(at, name): &(usize, Box<str>)| {
            *at < visible && description.columns.get(*at).is_some_and(|column| column.name == name.as_bytes())
        };
        if !plan.named.iter().all(is_called) {
            return Err(refused("ORDER BY of a column that is not where it was"));
        }
        let machine = match &plan.merge {
            Merge::Rows if plan.sort.is_empty() => {
                let (fields, waiting, held) = (Fields::default(), VecDeque::new(), vec![0; legs]);
                Machine::Concatenated(Concatenated { columns, visible, fields, waiting, held })
            }
            Merge::Rows => {
                let mut keys = Vec::new();
                for sort in &plan.sort {
                    let reader = match sort.by {
                        SortBy::Hidden(key) => Reader::sorted(description, visible, key)?,
                        SortBy::Visible(at, collating) => Reader::shown(description, at, collating)?,
                        SortBy::Aggregate(_) => return Err(Error::internal("a row has no aggregates")),
                    };
                    let is_text = reader.at < visible && format_of(formats.codes, reader.at) == 0;
                    keys.push(SortKey::new(reader, is_text, sort)?);
                }
                Machine::Ordered(Ordered::passing_rows_on(keys, columns, visible, legs))
            }
            Merge::Groups(groups) if !groups.order.is_empty() => {
                let groups = SortedGroups::new(groups, description, visible, formats.codes, legs)?;
                check_floats(groups.shape(), formats)?;
                Machine::SortedGroups(Box::new(groups))
            }
            Merge::Groups(groups) => {
                let groups = Grouped::new(groups, &plan.sort, description, visible, formats.codes, memory_bytes)?;
                check_floats(groups.shape(), formats)?;
                Machine::Grouped { groups: Box::new(groups), open: legs, answer: Vec::new().into_iter() }
            }
        };
        Ok(Self { machine, due: Due::new(plan.offset, plan.limit) })
    }

    /// From now on it gives so many rows (`None`: all) and then pauses; rows that are due already are appended to `out`.
    ///
    /// # Errors
    /// As [`Merger::push`].
    pub fn allow(&mut self, rows: Option<u64>, out: &mut BytesMut) -> Result<(), Error> {
        self.due.quota = rows;
        match &mut self.machine {
            Machine::Concatenated(concatenated) => concatenated.give(&mut self.due, out),
            Machine::Ordered(ordered) => ordered.give(&mut self.due, out),
            Machine::SortedGroups(groups) => groups.give(&mut self.due, out),
            Machine::Grouped { .. } => Ok(()),
        }
    }

    /// Whether it has given as many rows as it may for now.
    pub fn is_paused(&self) -> bool {
        self.due.is_paused()
    }

    /// Takes DataRows of that leg in; rows that are due are appended to `out`.
    ///
    /// # Errors
    /// A row that cannot be read, a sum out of range, or groups beyond the memory allowed (`54000`).
    pub fn push(&mut self, leg: usize, rows: impl Into<Frames>, out: &mut BytesMut) -> Result<(), Error> {
        let rows = rows.into();
        match &mut self.machine {
            Machine::Concatenated(concatenated) => {
                concatenated.push(leg, rows);
                concatenated.give(&mut self.due, out)
            }
            Machine::Grouped { groups, .. } => rows.bodies().try_for_each(|(body, _)| groups.push(body)),
            Machine::Ordered(ordered) => {
                ordered.push(leg, rows)?;
                ordered.give(&mut self.due, out)
            }
            Machine::SortedGroups(groups) => {
                groups.push(leg, rows)?;
                groups.give(&mut self.due, out)
            }
        }
    }

    /// Notes that a leg has no more rows.
    ///
    /// # Errors
    /// As [`Merger::push`].
    pub fn end(&mut self, leg: usize, out: &mut BytesMut) -> Result<(), Error> {
        match &mut self.machine {
            Machine::Concatenated(_) => Ok(()),
            Machine::Grouped { groups, open, answer } => {
                *open = open.saturating_sub(1);
                if *open == 0 {
                    *answer = groups.finish()?.into_iter();
                }
                Ok(())
            }
            Machine::Ordered(ordered) => {
                ordered.end(leg);
                ordered.give(&mut self.due, out)
            }
            Machine::SortedGroups(groups) => {
                groups.end(leg);
                groups.give(&mut self.due, out)
            }
        }
    }

    /// After all legs have ended: appends rows until `out` holds `high_bytes`. Whether there are more.
    ///
    /// # Errors
    /// As [`Merger::push`].
    pub fn finish(&mut self, out: &mut BytesMut, high_bytes: usize) -> Result<bool, Error> {
        while !self.due.is_paused()
            && let Machine::Grouped { groups, answer, .. } = &mut self.machine
        {
            if out.len() >= high_bytes && answer.len() > 0 {
                return Ok(true);
            }
            let Some(group) = answer.next() else { break };
            if self.due.counts() {
                groups.write(group, out)?;
            }
        }
        Ok(false)
    }

    /// Bytes held for that leg, where that is what bounds how far it is read.
    pub fn held_bytes(&self, leg: usize) -> usize {
        match &self.machine {
            Machine::Ordered(ordered) => ordered.held_bytes(leg),
            Machine::SortedGroups(groups) => groups.held_bytes(leg),
            Machine::Concatenated(concatenated) => concatenated.held.get(leg).copied().unwrap_or(0),
            Machine::Grouped { .. } => 0,
        }
    }

    /// Whether it gives no row before it has all of all legs.
    pub fn gives_at_the_end(&self) -> bool {
        matches!(self.machine, Machine::Grouped { .. })
    }

    /// Whether a row of every leg must be at hand before one can be given.
    pub fn needs_all_legs(plan: &Streamed) -> bool {
        match &plan.merge {
            Merge::Rows => !plan.sort.is_empty(),
            Merge::Groups(groups) => !groups.order.is_empty(),
        }
    }

    /// Rows given so far.
    pub fn rows(&self) -> u64 {
        self.due.rows
    }
}

/// Refuses floats that pgherd would have to write as text in a way that it does not.
fn check_floats(shape: &Shape, formats: ResultFormats<'_>) -> Result<(), Error> {
    match shape.prints_floats() && formats.extra_float_digits < 1 {
        true => Err(refused("a float aggregate under extra_float_digits below 1")),
        false => Ok(()),
    }
}

impl Concatenated {
    /// Takes rows of that leg in.
    fn push(&mut self, leg: usize, rows: Frames) {
        self.held[leg] += rows.bytes.len();
        self.waiting.push_back((leg, rows));
    }

    /// Appends what waits, up to a pause.
    fn give(&mut self, due: &mut Due, out: &mut BytesMut) -> Result<(), Error> {
        while !due.is_paused()
            && let Some((leg, rows)) = self.waiting.pop_front()
        {
            self.held[leg] -= rows.bytes.len();
            if self.visible == self.columns && due.count_all(rows.count) {
                out.extend_from_slice(&rows.bytes);
                continue;
            }
            let (mut given, mut count) = (0, 0);
            for (body, end) in rows.bodies() {
                if due.is_paused() {
                    break;
                }
                if due.counts() {
                    self.fields.read(body, self.columns)?;
                    let front = body.get(..self.fields.front_len(self.visible));
                    row::write_front(out, front.unwrap_or_default(), self.visible);
                }
                (given, count) = (end, count + 1);
            }
            let left = Frames { bytes: rows.bytes.slice(given..), count: rows.count - count };
            if left.count > 0 {
                self.held[leg] += left.bytes.len();
                self.waiting.push_front((leg, left));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::description::Column;
    use super::*;
    use crate::plan::Reason;
    use crate::wire::writer;

    fn row(bytes: usize) -> Frames {
        let mut out = BytesMut::new();
        writer::data_row(&mut out, [Some(&*vec![b'x'; bytes])].into_iter());
        Frames { bytes: out.freeze(), count: 1 }
    }

    #[test]
    fn rows_that_come_during_a_pause_count_as_their_legs() {
        let plan = Streamed {
            shards: vec![0, 1],
            sql: "".into(),
            hidden: 0,
            inserted: (0, 0),
            named: Vec::new(),
            merge: Merge::Rows,
            sort: Vec::new(),
            offset: 0,
            limit: None,
            reason: Reason { code: "test", text: "".into() },
        };
        let column = Column { name: "c".into(), table: 0, attribute: 0, type_oid: 25, size: -1, typmod: -1 };
        let formats = ResultFormats { codes: &[], extra_float_digits: 1 };
        let mut merger = Merger::new(&plan, &Description { columns: vec![column] }, formats, 2, 1 << 20).expect("one");
        let mut out = BytesMut::new();
        merger.allow(Some(2), &mut out).expect("allowed");
        for leg in [0, 1, 1, 0, 1] {
            merger.push(leg, row(100), &mut out).expect("pushed");
        }
        let one = row(100).bytes.len();
        assert_eq!((merger.rows(), merger.is_paused(), out.len()), (2, true, 2 * one));
        assert_eq!((merger.held_bytes(0), merger.held_bytes(1)), (one, 2 * one));
        merger.allow(Some(1), &mut out).expect("allowed");
        assert_eq!((merger.held_bytes(0), merger.held_bytes(1)), (one, one), "the one that came first is given first");
        merger.allow(None, &mut out).expect("allowed");
        assert_eq!((merger.rows(), merger.held_bytes(0), merger.held_bytes(1)), (5, 0, 0));
    }
}
