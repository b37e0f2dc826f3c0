//! Groups over several shards: rows of equal keys become one, in a map of bounded size.

use std::cmp::Ordering;

use super::aggregate::{Method, State};
use super::description::{Description, format_of};
use super::encode::Computed;
use super::order::{self, Keys};
use super::row::{Fields, Row};
use super::store::Store;
use super::types::{Reader, refused, unreadable};
use crate::error::{Error, ErrorKind};
use crate::plan::distribute::{Condition, Groups, Output, Sort, SortBy};
use crate::plan::value::{Kind, Numeric, Value, binary, float};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

use bytes::{BufMut, BytesMut};

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
    methods: Vec<Method>,
    /// Visible columns that show each aggregate.
    shown: Vec<Vec<usize>>,
    /// The aggregate that a visible column shows.
    outputs: Vec<Option<usize>>,
    having: Option<Condition>,
    sort: Vec<Sort>,
    sort_readers: Vec<SortReader>,
    formats: Vec<i16>,
    columns: usize,
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
        let reader = |hidden| Reader::new(description, visible, hidden);
        let keys: Result<Vec<_>, _> = plan.keys.iter().map(|&key| Reader::grouped(description, visible, key)).collect();
        let methods: Result<Vec<_>, _> =
            plan.aggregates.iter().map(|aggregate| Method::new(aggregate, reader)).collect();
        let methods = methods?;
        let mut shown = vec![Vec::new(); methods.len()];
        let mut outputs = vec![None; visible];
        for &(at, Output::Aggregate(number)) in &plan.outputs {
            let (Some(columns), Some(output)) = (shown.get_mut(number), outputs.get_mut(at)) else {
                return Err(Error::internal("an aggregate is missing"));
            };
            columns.push(at);
            *output = Some(number);
        }
        let mut sort_readers = Vec::new();
        for key in sort {
            sort_readers.push(match key.by {
                SortBy::Hidden(key) => SortReader::Column(Reader::sorted(description, visible, key)?),
                SortBy::Aggregate(number) => SortReader::Aggregate(number),
                SortBy::Visible(..) => return Err(Error::internal("groups are sorted by hidden columns")),
            });
        }
        let width = methods.len();
        let grouped = Self {
            keys: keys?,
            methods,
            shown,
            outputs,
            having: plan.having.clone(),
            sort: sort.to_vec(),
            sort_readers,
            formats: (0..visible).map(|at| format_of(formats, at)).collect(),
            columns: description.columns.len(),
            groups: Store::new(width),
            fields: Fields::default(),
            key: Vec::new(),
            used_bytes: 0,
            memory_bytes,
        };
        grouped.having.as_ref().map_or(Ok(()), |having| grouped.check(having))?;
        Ok(grouped)
    }

    /// Whether floats are written as text by pgherd itself.
    pub(super) fn prints_floats(&self) -> bool {
        self.outputs.iter().zip(&self.formats).any(|(output, format)| {
            let method = output.and_then(|number| self.methods.get(number));
            let is_computed = method.is_some_and(|method| !matches!(method, Method::Best { .. }));
            *format == 0
                && is_computed
                && method.is_some_and(|method| matches!(method.kind(), Kind::Float4 | Kind::Float8))
        })
    }

    fn check(&self, condition: &Condition) -> Result<(), Error> {
        match condition {
            Condition::And(a, b) | Condition::Or(a, b) => self.check(a).and_then(|()| self.check(b)),
            Condition::Not(inner) => self.check(inner),
            Condition::IsNull { .. } => Ok(()),
            Condition::Compare { aggregate, .. } => match self.methods.get(*aggregate).map(Method::kind) {
                Some(Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Numeric | Kind::Float4 | Kind::Float8) => Ok(()),
                _ => Err(refused("HAVING that compares this type")),
            },
        }
    }

    /// Takes one shard's row in.
    pub(super) fn push(&mut self, body: &[u8]) -> Result<(), Error> {
        self.fields.read(body, self.columns)?;
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
                let states = || self.methods.iter().map(Method::start);
                let weight = states().map(|state| state.weight()).sum::<usize>();
                self.used_bytes += self.key.len() + body.len() + GROUP_OVERHEAD_BYTES + weight;
                if self.used_bytes > self.memory_bytes || self.groups.is_full() {
                    return Err(self.full());
                }
                self.groups.add(&self.key, body, states())
            }
        };
        let states = self.groups.states_mut(number);
        for ((method, state), shown) in self.methods.iter().zip(states).zip(&self.shown) {
            let is_of_one_size = !matches!(state, State::Best(..));
            let before = if is_of_one_size { 0 } else { state.weight() };
            method.take(state, &row, shown)?;
            if !is_of_one_size {
                self.used_bytes = (self.used_bytes + state.weight()).saturating_sub(before);
            }
        }
        Ok(())
    }

    fn full(&self) -> Error {
        let message =
            format!("the groups of this statement need more than fanout.memory ({} bytes)", self.memory_bytes);
        Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, message)
            .hint("raise fanout.memory, filter more, or group by the shard key as well")
    }

    /// The answer's groups in order, by number, to be written one by one.
    pub(super) fn finish(&mut self) -> Result<Vec<usize>, Error> {
        let is_shown = |number: &usize| {
            let holds = |having| holds(having, self.groups.states(*number)) == Some(true);
            self.having.as_ref().is_none_or(holds)
        };
        let shown = (0..self.groups.len()).filter(is_shown);
        if self.sort.is_empty() {
            return Ok(shown.collect());
        }
        let (mut rows, mut fields): (Vec<(Keys, usize)>, _) = (Vec::new(), Fields::default());
        for number in shown {
            let body = self.groups.row(number);
            fields.read(body, self.columns)?;
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
            rows.push((keys?, number));
        }
        rows.sort_by(|(a, _), (b, _)| order::compare(&self.sort, a, b));
        Ok(rows.into_iter().map(|(_, number)| number).collect())
    }

    /// Appends a group's DataRow.
    pub(super) fn write(&mut self, number: usize, out: &mut BytesMut) -> Result<(), Error> {
        let (row, states) = (self.groups.row(number), self.groups.states(number));
        self.fields.read(row, self.columns)?;
        let columns = i16::try_from(self.outputs.len()).unwrap_or(i16::MAX);
        writer::message(out, b'D', |out| {
            out.put_i16(columns);
            for (at, output) in self.outputs.iter().enumerate() {
                match output.and_then(|at| states.get(at).zip(self.shown.get(at))) {
                    None => put(out, self.fields.get(row, at)),
                    Some((State::Best(_, bytes), shown)) => {
                        let place = shown.iter().position(|&shown| shown == at);
                        put(out, place.and_then(|place| bytes.get(place)?.as_deref()));
                    }
                    Some((state, _)) => put_computed(out, &state.computed(), self.formats.get(at) == Some(&1)),
                }
            }
        });
        Ok(())
    }
}

/// A column of a DataRow.
fn put(out: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        None => out.put_i32(-1),
        Some(bytes) => {
            out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
            out.put_slice(bytes);
        }
    }
}

/// A column of a DataRow that pgherd computed itself.
fn put_computed(out: &mut BytesMut, value: &Computed, is_binary: bool) {
    let at = out.len();
    out.put_i32(-1);
    if value.write(is_binary, out) {
        let len = i32::try_from(out.len() - at - 4).unwrap_or(i32::MAX);
        out[at..at + 4].copy_from_slice(&len.to_be_bytes());
    }
}

/// Three-valued: `None` is unknown.
fn holds(condition: &Condition, states: &[State]) -> Option<bool> {
    match condition {
        Condition::And(a, b) => match (holds(a, states), holds(b, states)) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        },
        Condition::Or(a, b) => match (holds(a, states), holds(b, states)) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _ => None,
        },
        Condition::Not(inner) => holds(inner, states).map(|holds| !holds),
        Condition::IsNull { aggregate, negated } => {
            Some(states.get(*aggregate).and_then(State::value).is_none() != *negated)
        }
        Condition::Compare { aggregate, holds, number } => {
            let value = states.get(*aggregate).and_then(State::value)?;
            Some(holds.contains(&against(&value, number)?))
        }
    }
}

fn against(value: &Value, number: &Numeric) -> Option<Ordering> {
    match value {
        Value::Int(value) => Some(Numeric::from_i128(i128::from(*value)).compare(number)),
        Value::Numeric(value) => Some(value.compare(number)),
        Value::Float(value) => Some(float(*value, number.to_string().parse().ok()?)),
        _ => None,
    }
}
