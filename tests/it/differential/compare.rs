//! Asking one PostgreSQL and pgherd the same, and what came of it.

use std::collections::BTreeMap;

use super::statements::Select;
use crate::answers::{Answer, Manner, ask_typed};
use crate::harness::wire::WireClient;

/// Own types' oids begin here; they differ between any two databases.
const FIRST_OWN: i32 = 16384;

const RECORD: i32 = 2249;

const RECORDS: i32 = 2287;

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) equal: usize,
    pub(super) failed_alike: usize,
    /// Took PostgreSQL too long, or its own answer is not determined.
    pub(super) left_out: usize,
    /// How many for each reason, and the first of them.
    pub(super) refused: BTreeMap<String, (usize, String)>,
    pub(super) wrong: Vec<String>,
    /// Statements by plan.
    pub(super) plans: BTreeMap<&'static str, f64>,
    /// Equal answers that may have rows, and those that have some.
    pub(super) of_rows: usize,
    pub(super) with_rows: usize,
    /// What PostgreSQL has not taken, by SQLSTATE, and the first of them.
    pub(super) rejected: BTreeMap<String, (usize, String)>,
}

impl Tally {
    pub(super) fn all(&self) -> usize {
        self.equal + self.failed_alike + self.refusals() + self.wrong.len()
    }

    pub(super) fn refusals(&self) -> usize {
        self.refused.values().map(|(count, _)| count).sum()
    }

    pub(super) fn refuse(&mut self, given: &Answer, text: &str) {
        let message = given.error.as_ref().map_or_else(String::new, |(_, message)| message.clone());
        self.refused.entry(message).or_insert_with(|| (0, text.to_owned())).0 += 1;
    }

    pub(super) fn fail_alike(&mut self, wanted: &Answer, text: &str) {
        self.failed_alike += 1;
        let (code, message) = wanted.error.clone().unwrap_or_default();
        self.rejected.entry(code).or_insert_with(|| (0, format!("{message}: {text}"))).0 += 1;
    }
}

/// What came of asking both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Both are where they were, or went the same way.
    Alike,
    /// Only one of them has done it: both have to begin anew.
    Apart,
    /// They differ.
    Wrong,
}

/// The two that are asked.
pub(super) struct Pair {
    pub(super) oracle: WireClient,
    pub(super) client: WireClient,
    /// What they were asked, since they logged in.
    pub(super) past: Vec<String>,
}

impl Pair {
    /// Asks both, and notes what came of it.
    pub(super) async fn compare(&mut self, select: &Select, manner: Manner, tally: &mut Tally) -> Outcome {
        self.past.push(format!("{manner:?}: {}", select.text));
        let types: Vec<u32> = select.parameters.iter().map(|parameter| parameter.oid).collect();
        let values: Vec<Option<&str>> = select.parameters.iter().map(|parameter| parameter.value.as_deref()).collect();
        let wanted = ask_typed(&mut self.oracle, manner, &select.text, &values, &types).await;
        if wanted.code() == Some("57014") {
            tally.left_out += 1;
            return Outcome::Apart;
        }
        let given = ask_typed(&mut self.client, manner, &select.text, &values, &types).await;
        if wanted.error.is_some() != given.error.is_some()
            && [&wanted, &given].iter().any(|answer| answer.code() == Some("22012"))
        {
            // Of which rows a condition is asked that may divide by zero is the planner's choice.
            tally.left_out += 1;
            return Outcome::Apart;
        }
        if given.code() == Some("0A000") && wanted.error.is_none() {
            tally.refuse(&given, &select.text);
            return Outcome::Apart;
        }
        // What PostgreSQL itself does not answer may be refused.
        let refuses = given.code() == Some("0A000");
        // Where a transaction has failed before any server knew of it, none is asked for the grammar of what follows.
        let is_unread = (wanted.code(), given.code()) == (Some("42601"), Some("25P02"));
        let fails = wanted.error.is_some() && (wanted.code() == given.code() || refuses || is_unread);
        if fails && wanted.status == given.status {
            tally.fail_alike(&wanted, &select.text);
            return Outcome::Alike;
        }
        let (wanted, given) = (comparable(select, wanted), comparable(select, given));
        if wanted == given {
            tally.equal += 1;
            tally.of_rows += usize::from(!given.columns.is_empty());
            tally.with_rows += usize::from(!given.rows.is_empty());
            return Outcome::Alike;
        }
        if differ_by_order_of_sets(select, &wanted, &given) {
            tally.left_out += 1;
            return Outcome::Alike;
        }
        tally.wrong.push(difference(select, manner, &wanted, &given));
        Outcome::Wrong
    }
}

/// An answer without what is allowed to differ.
pub(super) fn comparable(select: &Select, mut answer: Answer) -> Answer {
    // A statement that is described before it is bound does not say yet whether a value is binary.
    let composed: Vec<usize> = (0..answer.columns.len())
        .filter(|&at| answer.columns[at].1 >= FIRST_OWN || [RECORD, RECORDS].contains(&answer.columns[at].1))
        .collect();
    for row in &mut answer.rows {
        for &at in &composed {
            if let Some(value) = &mut row[at] {
                without_own_oids(value);
            }
        }
    }
    answer.columns.iter_mut().filter(|column| column.1 >= FIRST_OWN).for_each(|column| column.1 = FIRST_OWN);
    if select.is_ordered { answer } else { answer.sorted() }
}

/// Whether they differ in nothing but the order of the rows of grouping sets (with a limit: in which rows come first). PostgreSQL 15
/// takes columns for equal there that are so below the grouping alone (one column twice, or by a join's condition), one of which is NULL
/// in some sets: it does not sort by the second then, and in what order rows come is its planner's choice.
pub(super) fn differ_by_order_of_sets(select: &Select, wanted: &Answer, given: &Answer) -> bool {
    let has = |words: &[&str]| words.iter().any(|word| select.text.contains(word));
    let heads = |answer: &Answer| (answer.columns.clone(), answer.tag.clone(), answer.error.clone(), answer.status);
    has(&["rollup (", "cube (", "grouping sets ("])
        && heads(wanted) == heads(given)
        && (has(&[" limit ", " offset ", " fetch "]) || wanted.clone().sorted() == given.clone().sorted())
}

/// Blanks out the oids of own types that the binary forms of arrays and of rows hold.
fn without_own_oids(value: &mut [u8]) {
    let Some(fields) = fields(value) else {
        // Dimensions, a flag for NULLs, and the elements' type.
        let is_own = |oid: &[u8]| oid.try_into().is_ok_and(|oid| i32::from_be_bytes(oid) >= FIRST_OWN);
        if value.starts_with(b"\0\0\0") && value.get(8..12).is_some_and(is_own) {
            value[8..12].fill(0);
        }
        return;
    };
    for (oid, start, len) in fields {
        without_own_oids(&mut value[start..start + len]);
        if oid >= FIRST_OWN {
            value[start - 8..start - 4].fill(0);
        }
    }
}

/// The fields of a row in binary form, each with its type's oid, where its value begins, and its length; none if it is no row.
fn fields(value: &[u8]) -> Option<Vec<(i32, usize, usize)>> {
    let int = |at: usize| Some(i32::from_be_bytes(value.get(at..at + 4)?.try_into().ok()?));
    let (count, mut at) = (usize::try_from(int(0)?).ok().filter(|&count| count < 1000)?, 4);
    let mut fields = Vec::new();
    for _ in 0..count {
        let (oid, len) = (int(at)?, usize::try_from(int(at + 4)?).unwrap_or(0));
        fields.push((oid, at + 8, len));
        at += 8 + len;
    }
    (at == value.len() && count > 0).then_some(fields)
}

fn difference(select: &Select, manner: Manner, wanted: &Answer, given: &Answer) -> String {
    let heads = |answer: &Answer| format!("{:?} {} {:?} {}", answer.columns, answer.tag, answer.error, answer.status);
    let text = format!("{} {:?}", select.text, select.parameters);
    if heads(wanted) != heads(given) {
        return format!("{text}\n  {manner:?}: {}\n  instead of {}", heads(given), heads(wanted));
    }
    let at = wanted.rows.iter().zip(&given.rows).position(|(wanted, given)| wanted != given).unwrap_or(0);
    let shown = |answer: &Answer| match answer.rows.get(at) {
        Some(row) => {
            row.iter().map(|value| value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())).collect()
        }
        None => Vec::new(),
    };
    format!("{text}\n  {manner:?}: row {at} is {:?} instead of {:?}", shown(given), shown(wanted))
}
