//! Groups over several shards: rows of equal keys become one, in a map of bounded size.

use super::aggregate::State;
use super::description::Description;
use super::order::{self, Keys};
use super::row::{Fields, Row};
use super::shape::Shape;
use super::store::Store;
use super::types::{Reader, unreadable};
use crate::error::{Error, ErrorKind};
use crate::plan::distribute::{Groups, Sort, SortBy};
use crate::plan::value::{Value, binary};
use crate::wire::sqlstate::SqlState;

use bytes::BytesMut;

/// Bytes that one group costs beside its key, row and states.
const GROUP_OVERHEAD_BYTES: usize = 48;

/// What a sort key of a group reads.
#[derive(Debug, Clone, Copy)]
enum SortReader {
    Column(Reader),
    Aggregate(usize),
}

/// Merges groups.
#[derive(Debug)]
pub(super) struct Grouped {
    keys: Vec<Reader>,
    shape: Shape,
    sort: Vec<Sort>,
    sort_readers: Vec<SortReader>,
    groups: Store,
    /// The row at hand, and its key.
    fields: Fields,
    key: Vec<u8>,
    used_bytes: usize,
    memory_bytes: usize,
}

impl Grouped {
    pub(super) fn new(
        plan: &Groups,
        sort: &[Sort],
        description: &Description,
        visible: usize,
        formats: &[i16],
        memory_bytes: usize,
    ) -> Result<Self, Error> {
        let keys: Result<Vec<_>, _> = plan.keys.iter().map(|&key| Reader::grouped(description, visible, key)).collect();
        let shape = Shape::new(plan, description, visible, formats)?;
        let mut sort_readers = Vec::new();
        for key in sort {
            sort_readers.push(match key.by {
                SortBy::Hidden(key) => SortReader::Column(Reader::sorted(description, visible, key)?),
                SortBy::Aggregate(number) => SortReader::Aggregate(number),
                SortBy::Visible(..) => return Err(Error::internal("groups are sorted by hidden columns")),
            });
        }
        Ok(Self {
            keys: keys?,
            sort: sort.to_vec(),
            sort_readers,
            groups: Store::new(shape.width()),
            shape,
            fields: Fields::default(),
            key: Vec::new(),
            used_bytes: 0,
            memory_bytes,
        })
    }

    /// What the groups are made of.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Takes one shard's row in.
    pub(super) fn push(&mut self, body: &[u8]) -> Result<(), Error> {
        self.fields.read(body, self.shape.columns())?;
        let row = Row { body, fields: &self.fields };
        self.key.clear();
        for reader in &self.keys {
            match row.get(reader.at) {
                None => self.key.push(0),
                Some(bytes) if binary::is_value(reader.kind, bytes) => {
                    self.key.push(1);
                    binary::canonical(reader.kind, bytes, &mut self.key);
                }
                Some(_) => return Err(unreadable()),
            }
        }
        let number = match self.groups.find(&self.key) {
            Some(number) => number,
            None => {
                let weight = self.shape.start().map(|state| state.weight()).sum::<usize>();
                self.used_bytes += self.key.len() + body.len() + GROUP_OVERHEAD_BYTES + weight;
                if self.used_bytes > self.memory_bytes || self.groups.is_full() {
                    return Err(self.full());
                }
                self.groups.add(&self.key, body, self.shape.start())
            }
        };
        let grown = self.shape.take(self.groups.states_mut(number), &row)?;
        self.used_bytes = self.used_bytes.saturating_add_signed(grown);
        if grown > 0 { self.check_memory() } else { Ok(()) }
    }

    fn check_memory(&self) -> Result<(), Error> {
        if self.used_bytes > self.memory_bytes { Err(self.full()) } else { Ok(()) }
    }

    fn full(&self) -> Error {
        let message =
            format!("the groups of this statement need more than fanout.memory ({} bytes)", self.memory_bytes);
        Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, message).hint(
            "raise fanout.memory, filter more, group by the shard key as well, or name a database.coordinator, where \
             PostgreSQL merges them",
        )
    }

    /// The answer's groups in order, by number, to be written one by one.
    ///
    /// # Errors
    /// A row that cannot be read, or sort keys beyond the memory allowed (`54000`).
    pub(super) fn finish(&mut self) -> Result<Vec<usize>, Error> {
        let is_shown = |number: &usize| self.shape.is_shown(self.groups.states(*number));
        let shown = (0..self.groups.len()).filter(is_shown);
        if self.sort.is_empty() {
            return Ok(shown.collect());
        }
        let (mut rows, mut fields): (Vec<(Keys, usize)>, _) = (Vec::new(), Fields::default());
        for number in shown {
            let body = self.groups.row(number);
            fields.read(body, self.shape.columns())?;
            let row = Row { body, fields: &fields };
            let states = self.groups.states(number);
            let keys: Result<Keys, Error> = self
                .sort_readers
                .iter()
                .map(|reader| match reader {
                    SortReader::Column(reader) => reader.read(&row),
                    SortReader::Aggregate(at) => Ok(states.get(*at).and_then(State::value)),
                })
                .collect();
            let keys = keys?;
            self.used_bytes += size_of::<(Keys, usize)>() + size_of_val(keys.as_slice());
            self.used_bytes += keys.iter().flatten().map(Value::heap_bytes).sum::<usize>();
            self.check_memory()?;
            rows.push((keys, number));
        }
        rows.sort_by(|(a, _), (b, _)| order::compare(&self.sort, a, b));
        Ok(rows.into_iter().map(|(_, number)| number).collect())
    }

    /// Appends a group's DataRow.
    pub(super) fn write(&mut self, number: usize, out: &mut BytesMut) -> Result<(), Error> {
        let body = self.groups.row(number);
        self.fields.read(body, self.shape.columns())?;
        self.shape.write(&Row { body, fields: &self.fields }, self.groups.states(number), out);
        Ok(())
    }
}
