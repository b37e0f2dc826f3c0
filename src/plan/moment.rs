//! Texts that PostgreSQL turns into the moment at which it reads them: `'now'`, `'today'`, `'tomorrow'`, `'yesterday'`.
//!
//! No function is called for them in the text: the input functions of the date and time types do it, wherever a constant, a
//! parameter or a text becomes a date or time.

use super::Reason;
use super::cacheable::no;
use super::rules::Input;
use crate::catalog::model::{Catalog, Oid, Relation};
use crate::sql::facts::{Operand, Statement};
use crate::sql::lexer::Lexer;
use crate::sql::literal;

const TIMETZ: Oid = 1266;

/// Whether the answer could depend on the moment by way of a text.
///
/// # Errors
/// The reason why it could.
pub(super) fn check(
    input: &Input<'_>,
    statement: &Statement,
    catalog: &Catalog,
    relations: &[&Relation],
) -> Result<(), Reason> {
    if relations.iter().any(|relation| relation.columns.iter().any(|column| column.type_oid == TIMETZ)) {
        return Err(no("time-text", "the offset of a time with time zone is read off the day"));
    }
    let text = input.text.as_bytes();
    let mut strings =
        Lexer::new(text, input.session.standard_conforming_strings).filter(|token| token.kind.is_string());
    if strings.any(|token| literal::string(token, text).is_none_or(|value| names_a_moment(value.as_bytes()))) {
        return Err(no("time-text", "a constant may say now, today, tomorrow or yesterday"));
    }
    let values = input.bound.map(|bound| bound.values).unwrap_or_default();
    if values.iter().flatten().any(|value| names_a_moment(value)) {
        return Err(no("time-text", "a parameter may say now, today, tomorrow or yesterday"));
    }
    match statement.time_casts.iter().find(|operand| !is_no_text(operand, catalog, relations)) {
        Some(_) => Err(no("time-text", "a text that is cast to a date or time may say now")),
        None => Ok(()),
    }
}

/// Whether one of the words stands in it, with no letter beside.
fn names_a_moment(value: &[u8]) -> bool {
    value.split(|byte| !byte.is_ascii_alphabetic()).any(|word| {
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        is("now") || is("today") || is("tomorrow") || is("yesterday")
    })
}

/// Whether the operand is certainly a number, a date or a time.
fn is_no_text(operand: &Operand, catalog: &Catalog, relations: &[&Relation]) -> bool {
    let types: Vec<Oid> = match operand {
        Operand::Column(name) => relations
            .iter()
            .flat_map(|relation| relation.columns.iter())
            .filter(|column| column.name == *name)
            .map(|column| column.type_oid)
            .collect(),
        Operand::Function(name) => {
            let overloads = catalog.functions.get(&name.name).map(Vec::as_slice).unwrap_or_default();
            overloads.iter().map(|function| function.result).collect()
        }
        Operand::Other => Vec::new(),
    };
    // int8, int2, int4, float4, float8, date, time, timestamp, timestamptz, interval, numeric
    let plain = |oid: &Oid| matches!(oid, 20 | 21 | 23 | 700 | 701 | 1082 | 1083 | 1114 | 1184 | 1186 | 1700);
    !types.is_empty() && types.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_count_in_any_case_and_only_whole() {
        for value in ["now", " NOW ", "today 12:00", "{now,2020-01-01}", "[Yesterday,)", "tomorrow12:00"] {
            assert!(names_a_moment(value.as_bytes()), "{value}");
        }
        for value in ["", "know", "nowhere", "2020-01-01", "todays"] {
            assert!(!names_a_moment(value.as_bytes()), "{value}");
        }
    }
}
