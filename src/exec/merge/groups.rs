//! Groups over several shards: rows of equal keys become one, in a map of bounded size.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::aggregate::{Method, State};
use super::description::{Description, format_of};
use super::order::{self, Keys};
use super::row;
use super::types::{Reader, refused};
use crate::error::{Error, ErrorKind};
use crate::plan::distribute::{Condition, Groups, Output, Sort, SortBy};
use crate::plan::value::{Kind, Numeric, Value, float};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

use bytes::BytesMut;

/// Bytes that one group costs beside its key, row and states.
const GROUP_OVERHEAD_BYTES: usize = 96;

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
    groups: HashMap<Box<[u8]>, Group>,
    used_bytes: usize,
    memory_bytes: usize,
}

#[derive(Debug)]
struct Group {
    /// The body of one of its rows.
    row: Box<[u8]>,
    states: Vec<State>,
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
            });
        }
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
            groups: HashMap::new(),
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
        let columns = row::columns(body, self.columns)?;
        let mut key = Vec::new();
        for reader in &self.keys {
            match reader.read(&columns)? {
                None => key.push(0),
                Some(value) => {
                    key.push(1);
                    value.canonical(&mut key);
                }
            }
        }
        let key = key.into_boxed_slice();
        if !self.groups.contains_key(&key) {
            let states: Vec<State> = self.methods.iter().map(Method::start).collect();
            self.used_bytes +=
                key.len() + body.len() + GROUP_OVERHEAD_BYTES + states.iter().map(State::weight).sum::<usize>();
            if self.used_bytes > self.memory_bytes {
                return Err(self.full());
            }
            self.groups.insert(key.clone(), Group { row: body.into(), states });
        }
        let Some(group) = self.groups.get_mut(&key) else { return Ok(()) };
        for ((method, state), shown) in self.methods.iter().zip(&mut group.states).zip(&self.shown) {
            let before = state.weight();
            method.take(state, &columns, shown)?;
            self.used_bytes = (self.used_bytes + state.weight()).saturating_sub(before);
        }
        Ok(())
    }

    fn full(&self) -> Error {
        let message =
            format!("the groups of this statement need more than fanout.memory ({} bytes)", self.memory_bytes);
        Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, message)
            .hint("raise fanout.memory, filter more, or group by the shard key as well")
    }

    /// Bytes held.
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// The answer's rows in order, to be written one by one.
    pub(super) fn finish(&mut self) -> Result<Vec<Box<[u8]>>, Error> {
        let mut rows: Vec<(Keys, Group)> = Vec::new();
        for (_, group) in self.groups.drain() {
            if self.having.as_ref().is_none_or(|having| holds(having, &group.states) == Some(true)) {
                let columns = row::columns(&group.row, self.columns)?;
                let keys: Result<Keys, Error> = self
                    .sort_readers
                    .iter()
                    .map(|reader| match reader {
                        SortReader::Column(reader) => reader.read(&columns),
                        SortReader::Aggregate(number) => Ok(group.states.get(*number).and_then(State::value)),
                    })
                    .collect();
                rows.push((keys?, group));
            }
        }
        rows.sort_by(|(a, _), (b, _)| order::compare(&self.sort, a, b));
        rows.iter().map(|(_, group)| self.written(group)).collect()
    }

    /// One DataRow of the answer.
    fn written(&self, group: &Group) -> Result<Box<[u8]>, Error> {
        let columns = row::columns(&group.row, self.columns)?;
        let mut computed: Vec<Option<Vec<u8>>> = Vec::with_capacity(self.outputs.len());
        for (at, output) in self.outputs.iter().enumerate() {
            computed.push(match output.and_then(|number| group.states.get(number).zip(self.shown.get(number))) {
                None => columns.get(at).copied().flatten().map(Into::into),
                Some((State::Best(_, bytes), shown)) => {
                    let place = shown.iter().position(|&shown| shown == at);
                    place.and_then(|place| bytes.get(place)).cloned().flatten().map(Into::into)
                }
                Some((state, _)) => state.computed().bytes(self.formats.get(at) == Some(&1)),
            });
        }
        let mut out = BytesMut::new();
        writer::data_row(&mut out, computed.iter().map(|value| value.as_deref()));
        Ok(out[..].into())
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
