//! Statements that hold a query: `COPY (query) TO`, `DECLARE ... CURSOR FOR query` and `EXPLAIN query`, cut open.

use std::ops::Range;

use super::command::explained;
use super::facts::Name;
use super::piece::{self, Piece};

/// A statement that holds a query, and where that stands in its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// What it does with the query.
    pub wrapping: Wrapping,
    /// The query, in bytes.
    pub query: Range<usize>,
    /// Behind the statement's last token.
    pub end: usize,
}

/// What a statement does with the query in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrapping {
    /// `COPY (query) TO ...`
    Copy,
    /// `DECLARE name ... CURSOR ... FOR query`
    Cursor {
        /// `WITH HOLD`
        hold: bool,
    },
    /// `EXPLAIN ... query`
    Explain(Explaining),
}

/// What an EXPLAIN asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explaining {
    /// `ANALYZE`
    pub analyze: bool,
    /// Whether the answer is to be in PostgreSQL's text form.
    pub is_text: bool,
    /// `TIMING`, on unless it is switched off.
    pub timing: bool,
    /// EXPLAIN as it was written, up to the query.
    pub written: Box<str>,
    /// The same without ANALYZE, and without the options that need it.
    pub plain: Box<str>,
}

/// Cuts a statement open that stands alone in its query string; `None` if it holds no query.
pub fn wrapped(text: &str, standard_conforming_strings: bool) -> Option<Wrapped> {
    let pieces = piece::split(text.as_bytes(), standard_conforming_strings);
    let [tokens] = pieces.as_slice() else { return None };
    let piece = Piece { text: text.as_bytes(), tokens };
    let end = tokens.last()?.end;
    match piece.lower(0).as_str() {
        "copy" if piece.is_punctuation(1, b'(') => {
            let last = piece.behind_parenthesis(1)?.checked_sub(2)?;
            let query = piece.token(2)?.start..piece.token(last)?.end;
            Some(Wrapped { wrapping: Wrapping::Copy, query, end })
        }
        "declare" => {
            // The name comes first, and may be `cursor` too.
            let cursor = (2..tokens.len()).find(|&at| piece.is(at, "cursor"))?;
            let hold = piece.are(cursor + 1, &["with", "hold"]);
            let query = (cursor..tokens.len()).find(|&at| piece.is(at, "for"))? + 1;
            Some(Wrapped { wrapping: Wrapping::Cursor { hold }, query: piece.token(query)?.start..end, end })
        }
        "explain" => {
            let inner = explained(piece)?;
            let start = piece.token(inner.inner)?.start;
            let mut explaining = options(piece, inner.inner);
            explaining.analyze = inner.analyze;
            explaining.written = text.get(..start)?.into();
            Some(Wrapped { wrapping: Wrapping::Explain(explaining), query: start..end, end })
        }
        _ => None,
    }
}

/// `COPY table (columns) TO ...`, cut open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedTable {
    /// The table.
    pub name: Name,
    /// Its name as it is written, in bytes.
    pub written: Range<usize>,
    /// The columns as they are written, without their parentheses.
    pub columns: Option<Range<usize>>,
    /// Where TO begins.
    pub rest: usize,
}

/// Cuts a COPY of a table to somewhere open that stands alone in its query string.
pub fn copied_table(text: &str, standard_conforming_strings: bool) -> Option<CopiedTable> {
    let pieces = piece::split(text.as_bytes(), standard_conforming_strings);
    let [tokens] = pieces.as_slice() else { return None };
    let piece = Piece { text: text.as_bytes(), tokens };
    let (name, behind) = piece.name(1).filter(|_| piece.is(0, "copy"))?;
    let written = piece.token(1)?.start..piece.token(behind - 1)?.end;
    let (columns, to) = match piece.is_punctuation(behind, b'(') {
        true => {
            let end = piece.behind_parenthesis(behind)?;
            (Some(piece.token(behind)?.end..piece.token(end - 1)?.start), end)
        }
        false => (None, behind),
    };
    let rest = piece.token(to).filter(|_| piece.is(to, "to"))?.start;
    Some(CopiedTable { name, written, columns, rest })
}

/// Reads the options of an EXPLAIN whose query begins at the token `inner`.
fn options(piece: Piece<'_>, inner: usize) -> Explaining {
    let mut found =
        Explaining { analyze: false, is_text: true, timing: true, written: Box::default(), plain: "EXPLAIN ".into() };
    if !piece.is_punctuation(1, b'(') || inner < 3 {
        if (1..inner).any(|at| piece.is(at, "verbose")) {
            found.plain = "EXPLAIN VERBOSE ".into();
        }
        return found;
    }
    let mut kept: Vec<String> = Vec::new();
    for at in 2..inner {
        if !piece.is_punctuation(at - 1, b'(') && !piece.is_punctuation(at - 1, b',') {
            continue;
        }
        let Some(name) = piece.identifier(at) else { continue };
        let has_value = !piece.is_punctuation(at + 1, b',') && !piece.is_punctuation(at + 1, b')');
        let value = if has_value { piece.lower(at + 1) } else { String::new() };
        let value = value.trim_matches(['\'', '"']);
        match name.as_str() {
            "verbose" | "costs" | "settings" | "summary" | "generic_plan" | "memory" => {
                kept.push(format!("{name} {value}"));
            }
            "format" => found.is_text = value == "text",
            "timing" => found.timing = !matches!(value, "off" | "false" | "0"),
            _ => {}
        }
    }
    if !kept.is_empty() {
        found.plain = format!("EXPLAIN ({}) ", kept.join(", ")).into();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Option<(Wrapping, &str)> {
        wrapped(text, true).map(|found| (found.wrapping, &text[found.query]))
    }

    #[test]
    fn the_query_is_cut_out_to_the_letter() {
        let (wrapping, inner) = query("copy (select ')' from t) to stdout (format csv);").expect("COPY");
        assert_eq!((wrapping, inner), (Wrapping::Copy, "select ')' from t"));
        let (wrapping, inner) = query("declare cursor binary cursor with hold for select 1 for").expect("DECLARE");
        assert_eq!((wrapping, inner), (Wrapping::Cursor { hold: true }, "select 1 for"));
        assert!(matches!(query("declare c cursor for select 1"), Some((Wrapping::Cursor { hold: false }, "select 1"))));
        assert_eq!(query("copy t to stdout"), None);
        assert_eq!(query("select 1"), None);
        assert_eq!(query("explain select 1; select 2"), None);
    }

    #[test]
    fn a_copied_table_is_cut_out_with_its_columns() {
        let text = "copy Public.\"T\" ( a, \"b)\" ) to stdout (format csv)";
        let found = copied_table(text, true).expect("COPY");
        assert_eq!((found.name.schema.as_deref(), &*found.name.name), (Some("public"), "T"));
        assert_eq!((&text[found.written], &text[found.columns.expect("columns")]), ("Public.\"T\"", " a, \"b)\" "));
        assert_eq!(&text[found.rest..], "to stdout (format csv)");
        assert_eq!(copied_table("copy t to stdout", true).map(|found| found.columns), Some(None));
        for text in
            ["copy t from stdin", "copy (select 1) to stdout", "copy binary t to stdout", "copy t to stdout; select 1"]
        {
            assert_eq!(copied_table(text, true), None, "{text}");
        }
    }

    #[test]
    fn options_of_explain_are_read_and_analyze_is_taken_away() {
        let asked = |text| match query(text) {
            Some((Wrapping::Explain(asked), inner)) => (asked, inner),
            other => panic!("{text}: {other:?}"),
        };
        let (plain, inner) = asked("explain /* x */ select 1 ");
        assert_eq!((plain.analyze, &*plain.plain, inner), (false, "EXPLAIN ", "select 1"));
        assert_eq!(&*plain.written, "explain /* x */ ");
        let (old, inner) = asked("explain analyze verbose (select 1)");
        assert_eq!((old.analyze, &*old.plain, inner), (true, "EXPLAIN VERBOSE ", "(select 1)"));
        let (listed, _) = asked("explain (analyze, timing off, costs 'off', buffers) select 1");
        assert_eq!((listed.analyze, listed.timing, &*listed.plain), (true, false, "EXPLAIN (costs off) "));
        assert!(!asked("explain (format json) select 1").0.is_text);
        assert!(asked("explain (format text, analyze off) select 1").0.is_text);
    }
}
