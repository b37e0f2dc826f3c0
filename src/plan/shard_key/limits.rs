//! What a condition leaves of the values of a shard key's columns, and which parts of a range layout that meets.

use std::cmp::Ordering;

use crate::plan::value::Value;

/// Values that a condition leaves to one column.
#[derive(Debug, Clone, PartialEq)]
pub enum Limits {
    /// It says nothing.
    Any,
    /// One of these; `None` is NULL.
    Values(Vec<Option<Value>>),
    /// Between two bounds, neither of which need be there; never NULL.
    Between(Option<Bound>, Option<Bound>),
}

/// One end of an interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// Where it lies.
    pub value: Value,
    /// Whether the value itself is within.
    pub is_included: bool,
}

impl Limits {
    /// What `key <op> value` leaves, where `<op>` holds for these results of comparing key and value; the kind has an order.
    pub fn compared(holds: &[Ordering], value: Value) -> Self {
        let is_included = holds.contains(&Ordering::Equal);
        let bound = Some(Bound { value, is_included });
        match (holds.contains(&Ordering::Less), holds.contains(&Ordering::Greater)) {
            (true, false) => Self::Between(None, bound),
            (false, true) => Self::Between(bound, None),
            (false, false) => Self::Values(bound.into_iter().map(|bound| Some(bound.value)).collect()),
            (true, true) => Self::Any,
        }
    }

    /// What both leave.
    pub fn and(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Any, limits) | (limits, Self::Any) => limits.clone(),
            (Self::Values(values), other) | (other, Self::Values(values)) => {
                Self::Values(values.iter().filter(|value| other.allows(value.as_ref())).cloned().collect())
            }
            (Self::Between(a, b), Self::Between(c, d)) => {
                Self::Between(inner(a, c, Ordering::Greater), inner(b, d, Ordering::Less))
            }
        }
    }

    /// Whether the value is among them.
    pub fn allows(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            (Self::Any, _) => true,
            (Self::Values(values), value) => values.iter().any(|known| same(known.as_ref(), value)),
            (Self::Between(..), None) => false,
            (Self::Between(low, high), Some(value)) => {
                let within = |bound: &Option<Bound>, inside: Ordering| {
                    bound.as_ref().is_none_or(|bound| match value.compare(&bound.value) {
                        Ordering::Equal => bound.is_included,
                        order => order == inside,
                    })
                };
                within(low, Ordering::Greater) && within(high, Ordering::Less)
            }
        }
    }
}

/// Whether both are NULL, or equal.
pub(super) fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.compare(b) == Ordering::Equal,
        _ => false,
    }
}

/// The one of two ends that leaves less; `inside` is how the inner compares to the outer.
fn inner(a: &Option<Bound>, b: &Option<Bound>, inside: Ordering) -> Option<Bound> {
    let (Some(x), Some(y)) = (a, b) else { return a.clone().or_else(|| b.clone()) };
    let chosen = match x.value.compare(&y.value) {
        Ordering::Equal if x.is_included => y,
        Ordering::Equal => x,
        order if order == inside => x,
        _ => y,
    };
    Some(chosen.clone())
}

/// A place in the lexicographic order of keys: before or behind all keys that begin with these values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cut {
    values: Vec<Value>,
    is_behind: bool,
}

impl Cut {
    pub(super) fn before(values: Vec<Value>) -> Self {
        Self { values, is_behind: false }
    }

    pub(super) fn behind(values: Vec<Value>) -> Self {
        Self { values, is_behind: true }
    }

    pub(super) fn compare(&self, other: &Self) -> Ordering {
        let side = |is_behind| if is_behind { Ordering::Greater } else { Ordering::Less };
        let mut both = self.values.iter().zip(&other.values).map(|(a, b)| a.compare(b));
        both.find(|order| order.is_ne()).unwrap_or_else(|| match self.values.len().cmp(&other.values.len()) {
            Ordering::Less => side(self.is_behind),
            Ordering::Greater => side(other.is_behind).reverse(),
            Ordering::Equal => self.is_behind.cmp(&other.is_behind),
        })
    }
}

/// Keys between two places.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub(super) from: Cut,
    pub(super) to: Cut,
}

impl Span {
    /// All keys that begin with `prefix`, in whose next column `next` allows a value; `next` is no list.
    pub(super) fn new(prefix: Vec<Value>, next: &Limits) -> Self {
        let (low, high) = match next {
            Limits::Between(low, high) => (low.as_ref(), high.as_ref()),
            Limits::Any | Limits::Values(_) => (None, None),
        };
        let end = |bound: Option<&Bound>, is_low: bool| {
            let mut values = prefix.clone();
            let is_behind = match bound {
                Some(bound) => {
                    values.push(bound.value.clone());
                    bound.is_included != is_low
                }
                None => !is_low,
            };
            Cut { values, is_behind }
        };
        Self { from: end(low, true), to: end(high, false) }
    }

    pub(super) fn meets(&self, other: &Self) -> bool {
        let is_before = |a: &Cut, b: &Cut| a.compare(b).is_lt();
        is_before(&self.from, &other.to)
            && is_before(&other.from, &self.to)
            && is_before(&self.from, &self.to)
            && is_before(&other.from, &other.to)
    }

    /// Whether every key in it lies in one of these.
    pub(super) fn is_covered(&self, by: &[&Self]) -> bool {
        let mut sorted: Vec<&&Self> = by.iter().collect();
        sorted.sort_by(|a, b| a.from.compare(&b.from));
        let mut at = &self.from;
        for part in sorted {
            if part.from.compare(at).is_gt() {
                break;
            }
            if part.to.compare(at).is_gt() {
                at = &part.to;
            }
        }
        at.compare(&self.to).is_ge()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(value: i64) -> Value {
        Value::Int(value)
    }

    fn between(low: Option<(i64, bool)>, high: Option<(i64, bool)>) -> Limits {
        let bound = |end: Option<(i64, bool)>| end.map(|(value, is_included)| Bound { value: int(value), is_included });
        Limits::Between(bound(low), bound(high))
    }

    #[test]
    fn two_limits_leave_what_both_allow() {
        let some = Limits::Values(vec![None, Some(int(1)), Some(int(5)), Some(int(9))]);
        assert_eq!(
            some.and(&between(Some((1, false)), Some((9, true)))),
            Limits::Values(vec![Some(int(5)), Some(int(9))])
        );
        assert_eq!(
            between(Some((1, true)), None).and(&between(Some((1, false)), Some((4, true)))),
            between(Some((1, false)), Some((4, true)))
        );
        assert_eq!(
            between(None, Some((3, true))).and(&between(None, Some((4, false)))),
            between(None, Some((3, true)))
        );
        assert_eq!(Limits::Any.and(&some), some);
        assert!(some.allows(None) && !between(None, None).allows(None) && Limits::Any.allows(None));
    }

    #[test]
    fn spans_follow_the_lexicographic_order() {
        // Keys (1, x) with x > 4, against ranges of keys.
        let span = Span::new(vec![int(1)], &between(Some((4, false)), None));
        let part = |from: &[i64], to: &[i64]| {
            let cut = |values: &[i64]| Cut::before(values.iter().copied().map(int).collect());
            Span { from: cut(from), to: cut(to) }
        };
        for (from, to, meets) in [
            (&[1][..], &[1, 4][..], false),
            (&[1], &[1, 5], true),
            (&[1, 5], &[2], true),
            (&[1, 900], &[1, 901], true),
            (&[2], &[3], false),
            (&[0], &[1], false),
            (&[0], &[2], true),
            (&[1, 9], &[1, 9], false),
        ] {
            assert_eq!(part(from, to).meets(&span), meets, "{from:?} {to:?}");
        }
        assert!(span.is_covered(&[&part(&[1, 9], &[2]), &part(&[1], &[1, 9])]));
        assert!(!span.is_covered(&[&part(&[1, 9], &[2]), &part(&[1], &[1, 8])]));
        assert!(!span.is_covered(&[]));
    }
}
