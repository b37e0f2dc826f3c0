//! What groups are made of: the aggregates' states, how a row is taken into them, and the row that shows them.

use std::cmp::Ordering;

use bytes::{BufMut, BytesMut};

use super::aggregate::{Method, State};
use super::description::{Description, format_of};
use super::row::Row;
use super::types::{Reader, refused};
use crate::error::Error;
use crate::plan::distribute::{Condition, Groups, Output};
use crate::plan::value::{Kind, Numeric, Value, float};
use crate::wire::writer;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Shape {
    methods: Vec<Method>,
    /// Visible columns that show each aggregate.
    shown: Vec<Vec<usize>>,
    /// The aggregate that a visible column shows.
    outputs: Vec<Option<usize>>,
    having: Option<Condition>,
    formats: Vec<i16>,
    columns: usize,
}

impl Shape {
    /// # Errors
    /// `0A000` for aggregates of types that pgherd does not merge exactly.
    pub(super) fn new(
        plan: &Groups,
        description: &Description,
        visible: usize,
        formats: &[i16],
    ) -> Result<Self, Error> {
        let reader = |hidden| Reader::new(description, visible, hidden);
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
        let shape = Self {
            methods,
            shown,
            outputs,
            having: plan.having.clone(),
            formats: (0..visible).map(|at| format_of(formats, at)).collect(),
            columns: description.columns.len(),
        };
        shape.having.as_ref().map_or(Ok(()), |having| shape.check(having))?;
        Ok(shape)
    }

    /// Columns of a shard's row.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// How many states a group has.
    pub(super) fn width(&self) -> usize {
        self.methods.len()
    }

    /// The states of a group without rows.
    pub(super) fn start(&self) -> impl Iterator<Item = State> {
        self.methods.iter().map(Method::start)
    }

    /// Takes a row into its group's states. Returns by how many bytes they have grown.
    ///
    /// # Errors
    /// A value that cannot be read, or a sum out of range.
    pub(super) fn take(&self, states: &mut [State], row: &Row<'_>) -> Result<isize, Error> {
        let mut grown = 0;
        for ((method, state), shown) in self.methods.iter().zip(states).zip(&self.shown) {
            if matches!(state, State::Best(..)) {
                let before = state.weight();
                method.take(state, row, shown)?;
                grown += state.weight().cast_signed() - before.cast_signed();
            } else {
                method.take(state, row, shown)?;
            }
        }
        Ok(grown)
    }

    /// Whether HAVING shows that group.
    pub(super) fn is_shown(&self, states: &[State]) -> bool {
        self.having.as_ref().is_none_or(|having| holds(having, states) == Some(true))
    }

    /// Appends a group's DataRow, what is no aggregate as in that row of it.
    pub(super) fn write(&self, row: &Row<'_>, states: &[State], out: &mut BytesMut) {
        let columns = i16::try_from(self.outputs.len()).unwrap_or(i16::MAX);
        writer::message(out, b'D', |out| {
            out.put_i16(columns);
            for (at, output) in self.outputs.iter().enumerate() {
                match output.and_then(|at| states.get(at).zip(self.shown.get(at))) {
                    None => put(out, row.get(at)),
                    Some((State::Best(_, bytes), shown)) => {
                        let place = shown.iter().position(|&shown| shown == at);
                        put(out, place.and_then(|place| bytes.get(place)?.as_deref()));
                    }
                    Some((state, _)) => put_computed(out, state, self.formats.get(at) == Some(&1)),
                }
            }
        });
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
fn put_computed(out: &mut BytesMut, state: &State, is_binary: bool) {
    let at = out.len();
    out.put_i32(-1);
    let is_written = match state.fixed().filter(|_| !is_binary) {
        Some(fixed) => {
            fixed.write(out);
            true
        }
        None => state.computed().write(is_binary, out),
    };
    if is_written {
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
