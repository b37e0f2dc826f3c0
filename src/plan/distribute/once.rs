//! `now()` and its like in a write over several shards: computed once, on one of them, and written into what all of them run.

use std::ops::Range;

use super::scatter::marker;
use super::source::Source;

/// Functions that give one moment for the whole statement, or transaction, with how they are written and what they give. Which of
/// two neighbouring moments is meant is not told apart: one statement has one.
const MOMENTS: [(&str, bool, &str); 7] = [
    ("now", true, "timestamptz"),
    ("transaction_timestamp", true, "timestamptz"),
    ("statement_timestamp", true, "timestamptz"),
    ("current_timestamp", false, "timestamptz"),
    ("current_date", false, "date"),
    ("localtimestamp", false, "timestamp"),
    ("localtime", false, "time"),
];

/// Whether a function call without arguments is one of them.
pub(super) fn is_moment(name: &str, is_call: bool) -> bool {
    MOMENTS.iter().any(|(moment, call, _)| *moment == name && *call == is_call)
}

/// What is put in place of pieces of a text, in order.
#[derive(Debug, Default)]
pub(super) struct Edits {
    edits: Vec<(Range<usize>, String)>,
    /// For each of the markers put in, an expression that gives its value as a literal.
    pub(super) moments: Vec<Box<str>>,
}

impl Edits {
    /// Puts a marker, numbered from `first` on, in place of each moment. `None` where one stands in RETURNING, whose columns are
    /// named after it.
    pub(super) fn of(source: &Source<'_>, first: usize) -> Option<Self> {
        let mut edits = Self::default();
        let mut kinds: Vec<&str> = Vec::new();
        let mut is_returning = false;
        for at in 0..source.len() {
            let Some(name) = source.name_at(at) else { continue };
            is_returning |= name == "returning" && source.is_bare(at);
            let schema = source.schema_at(at);
            let is_plain = source.is_bare(at) || schema.as_deref() == Some("pg_catalog");
            let Some((name, is_call, kind)) = MOMENTS.iter().find(|(moment, ..)| *moment == name) else { continue };
            let is_meant = is_plain && source.is_call(at) == *is_call && (!is_call || source.is_empty_call(at));
            if !is_meant || (!is_call && schema.is_some()) {
                continue;
            }
            if is_returning {
                return None;
            }
            let number = kinds.iter().position(|known| known == kind).unwrap_or_else(|| {
                kinds.push(kind);
                let value = format!("{name}{}", if *is_call { "()" } else { "" });
                let value = if schema.is_some() { format!("pg_catalog.{value}") } else { value };
                edits.moments.push(literal(&value, &format!("pg_catalog.{kind}")));
                kinds.len() - 1
            });
            let begin = if schema.is_some() { at - 2 } else { at };
            let end = if *is_call { at + 2 } else { at };
            let range = source.range_of(begin, end)?;
            edits.edits.push((range, format!("({}::pg_catalog.{kind})", marker(first + number))));
        }
        Some(edits)
    }

    /// Whether nothing is replaced.
    pub(super) fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// That piece of the text with what is put into it.
    pub(super) fn slice(&self, text: &str, range: Range<usize>) -> String {
        let (mut sql, mut at) = (String::new(), range.start);
        for (place, with) in self.edits.iter().filter(|(place, _)| place.start >= range.start && place.end <= range.end)
        {
            sql += text.get(at..place.start).unwrap_or_default();
            sql += with;
            at = place.end;
        }
        sql + text.get(at..range.end).unwrap_or_default()
    }
}

/// An expression that gives the value of another one as a literal that means the same under every setting.
pub(super) fn literal(expression: &str, type_name: &str) -> Box<str> {
    let text = format!("pg_catalog.to_json(({expression})::{type_name}) OPERATOR(pg_catalog.#>>) '{{}}'");
    format!("COALESCE(pg_catalog.quote_literal({text}), 'NULL')").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str) -> Option<(String, usize)> {
        let edits = Edits::of(&Source::new(text, true), 0)?;
        Some((edits.slice(text, 0..text.len()), edits.moments.len()))
    }

    #[test]
    fn every_moment_is_replaced_by_one_value() {
        let (sql, moments) =
            edited("update t set a = now(), b = NOW ( ) + '1 day', c = pg_catalog.now(), d = current_date")
                .expect("no RETURNING");
        assert_eq!(
            sql,
            "update t set a = (\0\u{30}\0::pg_catalog.timestamptz), b = (\0\u{30}\0::pg_catalog.timestamptz) + '1 day', \
             c = (\0\u{30}\0::pg_catalog.timestamptz), d = (\0\u{31}\0::pg_catalog.date)"
        );
        assert_eq!(moments, 2);
        for text in [
            "update t set now = 1, a = t.now, b = 'now()', c = \"current_date\", d = app.now()",
            "update t as now set a = current_timestamp(3)",
        ] {
            assert_eq!(edited(text), Some((text.to_owned(), 0)));
        }
        assert_eq!(edited("update t set a = 1 returning now()"), None);
    }
}
