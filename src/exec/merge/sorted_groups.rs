//! Groups of shards that give them in the order of their keys: merged as they meet, one at a time.

use std::cmp::Ordering;

use bytes::BytesMut;

use super::aggregate::State;
use super::description::Description;
use super::due::Due;
use super::order::SortKey;
use super::ordered::Ordered;
use super::row::{Fields, Row};
use super::shape::Shape;
use super::types::Reader;
use crate::error::Error;
use crate::plan::distribute::{Groups, SortBy};
use crate::wire::frame::Frames;

/// See the module's description.
#[derive(Debug)]
pub(super) struct SortedGroups {
    shape: Shape,
    keys: Vec<SortKey>,
    rows: Ordered,
    /// Whether there is a group at hand: one of its rows, and its states.
    is_open: bool,
    body: Vec<u8>,
    fields: Fields,
    rank: (u8, u64),
    states: Vec<State>,
}

impl SortedGroups {
    /// Merges the groups of so many streams.
    ///
    /// # Errors
    /// `0A000` for keys or aggregates of types that pgherd does not merge exactly.
    pub(super) fn new(
        plan: &Groups,
        description: &Description,
        visible: usize,
        formats: &[i16],
        streams: usize,
    ) -> Result<Self, Error> {
        plan.keys.iter().try_for_each(|&key| Reader::grouped(description, visible, key).map(drop))?;
        let mut keys = Vec::new();
        for sort in &plan.order {
            let SortBy::Hidden(key) = sort.by else {
                return Err(Error::internal("groups come in the order of hidden columns"));
            };
            keys.push(SortKey::new(Reader::sorted(description, visible, key)?, false, sort)?);
        }
        let columns = description.columns.len();
        Ok(Self {
            shape: Shape::new(plan, description, visible, formats)?,
            rows: Ordered::new(keys.clone(), columns, columns, streams),
            keys,
            is_open: false,
            body: Vec::new(),
            fields: Fields::default(),
            rank: (0, 0),
            states: Vec::new(),
        })
    }

    /// What the groups are made of.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Takes rows of that stream in.
    ///
    /// # Errors
    /// The first of them cannot be read.
    pub(super) fn push(&mut self, stream: usize, rows: Frames) -> Result<(), Error> {
        self.rows.push(stream, rows)
    }

    /// That stream has no more rows.
    pub(super) fn end(&mut self, stream: usize) {
        self.rows.end(stream);
    }

    /// Bytes held of that stream.
    pub(super) fn held_bytes(&self, stream: usize) -> usize {
        self.rows.held_bytes(stream)
    }

    /// Appends the groups that are complete.
    ///
    /// # Errors
    /// A row that cannot be read or is out of order, or a sum out of range.
    pub(super) fn give(&mut self, due: &mut Due, out: &mut BytesMut) -> Result<(), Error> {
        while !due.is_paused() {
            let Some((row, rank)) = self.rows.first() else {
                if self.rows.has_ended() && self.is_open {
                    self.close(due, out);
                }
                return Ok(());
            };
            let order = if self.is_open { self.order(&row, rank) } else { Ordering::Less };
            match order {
                Ordering::Equal => {
                    self.shape.take(&mut self.states, &row)?;
                }
                Ordering::Less if self.is_open => {
                    self.close(due, out);
                    continue;
                }
                Ordering::Less => {
                    self.body.clear();
                    self.body.extend_from_slice(row.body);
                    self.fields.clone_from(row.fields);
                    self.rank = rank;
                    self.states.clear();
                    self.states.extend(self.shape.start());
                    self.shape.take(&mut self.states, &row)?;
                    self.is_open = true;
                }
                // Its group may have been given already.
                Ordering::Greater => {
                    return Err(Error::internal("a shard's groups are not in the order of their keys"));
                }
            }
            self.rows.advance()?;
        }
        Ok(())
    }

    /// Where the group at hand stands to the next row.
    fn order(&self, row: &Row<'_>, rank: (u8, u64)) -> Ordering {
        let open = Row { body: &self.body, fields: &self.fields };
        let by_rank = self.rank.cmp(&rank);
        if by_rank.is_ne() {
            return by_rank;
        }
        let told = usize::from(self.keys.first().is_some_and(SortKey::is_told_by_rank));
        let later = self.keys.iter().skip(told).map(|key| key.compare(&open, row));
        later.into_iter().find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    }

    /// Gives the group at hand.
    fn close(&mut self, due: &mut Due, out: &mut BytesMut) {
        self.is_open = false;
        if self.shape.is_shown(&self.states) && due.counts() {
            self.shape.write(&Row { body: &self.body, fields: &self.fields }, &self.states, out);
        }
    }
}
