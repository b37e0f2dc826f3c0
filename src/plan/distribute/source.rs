//! The statement's own text cut into clauses by PostgreSQL's tokens: what is spliced is always the original's bytes.

mod update;

use std::collections::BTreeSet;
use std::ops::Range;

use sqlparser::ast::{Function, ObjectNamePart};

use crate::sql::lexer::{Lexer, Token, TokenKind};
use crate::sql::{literal, parse};

/// A text and its significant tokens, trailing semicolons left out.
#[derive(Debug, Clone)]
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    tokens: Vec<Token>,
}

/// Where the clauses of one plain SELECT stand, in bytes.
#[derive(Debug)]
pub(super) struct Clauses {
    /// Each item of the select list, alias included.
    pub(super) items: Vec<Range<usize>>,
    /// Where FROM begins.
    pub(super) from: usize,
    /// Each item of GROUP BY.
    pub(super) group: Vec<Range<usize>>,
    /// HAVING with its condition.
    pub(super) having: Option<Range<usize>>,
    /// Each item of ORDER BY without ASC, DESC, NULLS.
    pub(super) order: Vec<Range<usize>>,
    /// Where ORDER BY, LIMIT, OFFSET or FETCH begins, whichever is first.
    pub(super) tail: usize,
    /// Behind the last token.
    pub(super) end: usize,
}

/// Two parts of a name with a dot between them.
#[derive(Debug)]
pub(super) struct Qualified {
    /// The first.
    pub(super) schema: String,
    /// The second.
    pub(super) name: String,
    /// Whether a third stands before them.
    pub(super) is_behind_dot: bool,
}

/// The text of a function call behind its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    /// What stands between its parentheses.
    pub(super) arguments: &'a str,
    /// `FILTER (...)`, or nothing.
    pub(super) filter: &'a str,
}

const CLAUSES: [&str; 9] = ["from", "where", "group", "having", "window", "order", "limit", "offset", "fetch"];

impl<'a> Source<'a> {
    pub(super) fn new(text: &'a str, standard_conforming_strings: bool) -> Self {
        let mut tokens: Vec<Token> = Lexer::new(text.as_bytes(), standard_conforming_strings).significant().collect();
        while tokens.last().is_some_and(|token| token.is_punctuation(text.as_bytes(), b';')) {
            tokens.pop();
        }
        Self { text, tokens }
    }

    pub(super) fn slice(&self, range: &Range<usize>) -> &'a str {
        self.text.get(range.clone()).unwrap_or_default()
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is_word(self.text.as_bytes(), word))
    }

    fn is_punctuation(&self, at: usize, byte: u8) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is_punctuation(self.text.as_bytes(), byte))
    }

    /// Tokens outside of any parentheses, by index.
    fn outer(&self) -> Vec<usize> {
        let mut depth = 0_i32;
        let mut outer = Vec::new();
        for at in 0..self.tokens.len() {
            let closes = self.is_punctuation(at, b')') || self.is_punctuation(at, b']');
            depth -= i32::from(closes);
            if depth == 0 {
                outer.push(at);
            }
            depth += i32::from(self.is_punctuation(at, b'(') || self.is_punctuation(at, b'['));
        }
        outer
    }

    /// The clause that the outer token begins; these words are reserved, so elsewhere they are labels behind `AS` or a dot.
    fn clause(&self, at: usize) -> Option<usize> {
        let clause = CLAUSES.iter().position(|word| self.is(at, word))?;
        let before = at.checked_sub(1)?;
        let is_label = self.is(before, "as") || self.is_punctuation(before, b'.');
        let is_part = (clause == 0 && self.is(before, "distinct")) || (clause == 2 && self.is(before, "within"));
        (!is_label && !is_part).then_some(clause)
    }

    /// Cuts one plain SELECT into its clauses; `None` if the text does not begin with SELECT or has no FROM.
    pub(super) fn clauses(&self) -> Option<Clauses> {
        let outer = self.outer();
        if !self.is(0, "select") {
            return None;
        }
        let mut starts: [Option<usize>; CLAUSES.len()] = [None; CLAUSES.len()];
        for &at in &outer {
            if let Some(clause) = self.clause(at) {
                starts[clause].get_or_insert(at);
            }
        }
        let from = starts[0]?;
        let last = self.tokens.len();
        let next = |clause: usize| {
            starts
                .iter()
                .skip(clause + 1)
                .flatten()
                .copied()
                .filter(|&at| Some(at) > starts[clause])
                .min()
                .unwrap_or(last)
        };
        let list_start = if self.is(1, "distinct") || self.is(1, "all") { 2 } else { 1 };
        let list = |clause: usize| starts[clause].map_or(Vec::new(), |at| self.split(&outer, at + 2, next(clause)));
        let tail = starts[5..].iter().flatten().copied().min();
        let end = self.tokens.last()?.end;
        Some(Clauses {
            items: self.ranges(&self.split(&outer, list_start, from)),
            from: self.tokens[from].start,
            group: self.ranges(&list(2)),
            having: starts[3].map(|at| self.tokens[at].start..self.tokens[next(3) - 1].end),
            order: self.ranges(&list(5).into_iter().map(|item| self.without_direction(item)).collect::<Vec<_>>()),
            tail: tail.map_or(end, |at| self.tokens[at].start),
            end,
        })
    }

    /// The tokens from `from` to `to`, split at outer commas.
    fn split(&self, outer: &[usize], from: usize, to: usize) -> Vec<Range<usize>> {
        let mut parts = Vec::new();
        let mut start = from;
        for &at in outer.iter().filter(|&&at| at >= from && at < to) {
            if self.is_punctuation(at, b',') {
                parts.push(start..at);
                start = at + 1;
            }
        }
        parts.push(start..to);
        parts
    }

    fn without_direction(&self, mut item: Range<usize>) -> Range<usize> {
        let last = |item: &Range<usize>, word| item.len() > 1 && self.is(item.end - 1, word);
        if (last(&item, "first") || last(&item, "last")) && item.len() > 2 && self.is(item.end - 2, "nulls") {
            item.end -= 2;
        }
        if last(&item, "asc") || last(&item, "desc") {
            item.end -= 1;
        }
        item
    }

    /// Token ranges as byte ranges; empty ones stay empty.
    fn ranges(&self, parts: &[Range<usize>]) -> Vec<Range<usize>> {
        let bytes = |part: &Range<usize>| match (self.tokens.get(part.start), part.end.checked_sub(1)) {
            (Some(first), Some(last)) if !part.is_empty() => {
                first.start..self.tokens.get(last).map_or(first.end, |token| token.end)
            }
            _ => 0..0,
        };
        parts.iter().map(bytes).collect()
    }

    /// The part of a select item before `[AS] alias`.
    pub(super) fn without_alias(&self, item: &Range<usize>) -> Range<usize> {
        let tokens: Vec<usize> = (0..self.tokens.len())
            .filter(|&at| self.tokens[at].start >= item.start && self.tokens[at].end <= item.end)
            .collect();
        let mut kept = tokens.len().saturating_sub(1);
        if kept > 0 && self.is(tokens[kept - 1], "as") {
            kept -= 1;
        }
        match kept.checked_sub(1) {
            Some(last) => item.start..self.tokens[tokens[last]].end,
            None => item.clone(),
        }
    }

    /// The text of a call's arguments and FILTER clause.
    pub(super) fn call(&self, function: &Function) -> Option<Call<'a>> {
        let ObjectNamePart::Identifier(name) = function.name.0.first()? else { return None };
        let start = parse::offset(name.span.start)?;
        let name = self.tokens.iter().position(|token| token.start == start)?;
        let open = (name..self.tokens.len()).find(|&at| self.is_punctuation(at, b'('))?;
        let close = self.closing(open)?;
        let filter_end = match self.is(close + 1, "filter") {
            true => self.closing(close + 2)?,
            false => close,
        };
        Some(Call {
            arguments: self.text.get(self.tokens[open].end..self.tokens[close].start)?,
            filter: self.text.get(self.tokens[close].end..self.tokens[filter_end].end)?,
        })
    }

    /// The text of each row of an INSERT's `VALUES (...), (...)`, parentheses included.
    pub(super) fn rows_of_values(&self) -> Option<Vec<Range<usize>>> {
        let is_start = |&at: &usize| self.is(at, "values") && self.is_punctuation(at + 1, b'(') && at >= 3;
        let mut open = self.outer().into_iter().find(is_start)? + 1;
        let mut rows = Vec::new();
        loop {
            let close = self.closing(open)?;
            rows.push(self.tokens.get(open)?.start..self.tokens.get(close)?.end);
            if !self.is_punctuation(close + 1, b',') || !self.is_punctuation(close + 2, b'(') {
                return Some(rows);
            }
            open = close + 2;
        }
    }

    /// Where the parenthesis behind an INSERT's columns stands, if it lists any.
    pub(super) fn end_of_columns(&self) -> Option<usize> {
        let values = self
            .outer()
            .into_iter()
            .find(|&at| self.is(at, "values") && self.is_punctuation(at + 1, b'(') && at >= 3)?;
        let open = (2..values).find(|&at| self.is_punctuation(at, b'('))?;
        Some(self.tokens.get(self.closing(open)?)?.start)
    }

    fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0_i32;
        (open..self.tokens.len()).find(|&at| {
            depth += i32::from(self.is_punctuation(at, b'(')) - i32::from(self.is_punctuation(at, b')'));
            depth == 0
        })
    }

    /// How many tokens there are.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Behind the last token.
    pub(super) fn end(&self) -> usize {
        self.tokens.last().map_or(0, |token| token.end)
    }

    /// The identifier at that place, keywords included.
    pub(super) fn name_at(&self, at: usize) -> Option<String> {
        literal::identifier(*self.tokens.get(at)?, self.text.as_bytes())
    }

    /// The operator at that place.
    pub(super) fn operator_at(&self, at: usize) -> Option<&'a str> {
        let token = self.tokens.get(at).filter(|token| token.kind == TokenKind::Operator)?;
        self.text.get(token.start..token.end)
    }

    /// Whether the token at that place is not quoted, no label and no part of a longer name.
    pub(super) fn is_bare(&self, at: usize) -> bool {
        let before = at.checked_sub(1);
        self.tokens.get(at).is_some_and(|token| token.kind == TokenKind::Word)
            && !before.is_some_and(|before| self.is_punctuation(before, b'.') || self.is(before, "as"))
            && !self.is_punctuation(at + 1, b'.')
    }

    /// Whether ONLY at that place is that of `FETCH FIRST ROW ONLY`.
    pub(super) fn is_rows_only(&self, at: usize) -> bool {
        self.is(at, "only") && at.checked_sub(1).is_some_and(|before| self.is(before, "row") || self.is(before, "rows"))
    }

    /// Whether a parenthesis stands behind the token.
    pub(super) fn is_call(&self, at: usize) -> bool {
        self.is_punctuation(at + 1, b'(')
    }

    /// Whether nothing stands between the parentheses behind the token.
    pub(super) fn is_empty_call(&self, at: usize) -> bool {
        self.is_call(at) && self.is_punctuation(at + 2, b')')
    }

    /// The bytes of the tokens from one to another.
    pub(super) fn range_of(&self, first: usize, last: usize) -> Option<Range<usize>> {
        Some(self.tokens.get(first)?.start..self.tokens.get(last)?.end)
    }

    /// The query of an INSERT that takes its rows from one: what stands between the columns and ON CONFLICT or RETURNING.
    pub(super) fn query_of_insert(&self) -> Option<Range<usize>> {
        let outer = self.outer();
        let begins = |at: &&usize| **at >= 3 && (self.is(**at, "select") || self.is(**at, "with"));
        let first = *outer.iter().find(begins)?;
        let ends = |at: &&usize| {
            **at > first
                && ((self.is(**at, "returning") && self.is_bare(**at))
                    || (self.is(**at, "on") && self.is(**at + 1, "conflict")))
        };
        let last = outer.iter().find(ends).map_or(self.len(), |at| *at).checked_sub(1)?;
        self.range_of(first, last)
    }

    /// Schema and name of the table that `CREATE [UNLOGGED] TABLE [IF NOT EXISTS]` makes.
    pub(super) fn created_table(&self) -> Option<(Option<String>, String)> {
        let mut at = if self.is(1, "unlogged") { 2 } else { 1 };
        if !self.is(0, "create") || !self.is(at, "table") {
            return None;
        }
        at += if self.is(at + 1, "if") && self.is(at + 2, "not") { 4 } else { 1 };
        let first = self.name_at(at)?;
        match self.is_punctuation(at + 1, b'.') {
            true => Some((Some(first), self.name_at(at + 2)?)),
            false => Some((None, first)),
        }
    }

    /// The query of `CREATE TABLE ... AS query [WITH [NO] DATA]`.
    pub(super) fn query_of_create(&self) -> Option<Range<usize>> {
        let begins = |at: &usize| self.is(*at, "as") && (self.is(*at + 1, "select") || self.is(*at + 1, "with"));
        let first = self.outer().into_iter().find(begins)? + 1;
        let len = self.len();
        let data = match (self.is(len.checked_sub(1)?, "data"), self.is(len - 2, "with"), self.is(len - 2, "no")) {
            (true, true, _) => 2,
            (true, _, true) => 3,
            _ => 0,
        };
        self.range_of(first, (len - data).checked_sub(1)?)
    }

    /// The name before the dot before that place.
    pub(super) fn schema_at(&self, at: usize) -> Option<String> {
        let dot = at.checked_sub(1).filter(|&dot| self.is_punctuation(dot, b'.'))?;
        self.name_at(dot.checked_sub(1)?)
    }

    /// The token that begins there.
    pub(super) fn place_of(&self, start: usize) -> Option<usize> {
        self.tokens.iter().position(|token| token.start == start)
    }

    /// The text around a token between the ANDs, clauses and parentheses that are nearest on both sides; and, if parentheses
    /// enclose it, the place of the opening one. A guess: whoever asks reads the text again.
    pub(super) fn condition_around(&self, place: usize) -> Option<(&'a str, Option<usize>)> {
        const BEFORE: [&str; 5] = ["where", "on", "and", "having", "when"];
        const BEHIND: [&str; 21] = [
            "group",
            "having",
            "window",
            "order",
            "limit",
            "offset",
            "fetch",
            "union",
            "intersect",
            "except",
            "join",
            "left",
            "right",
            "full",
            "inner",
            "cross",
            "natural",
            "for",
            "where",
            "returning",
            "then",
        ];
        let closes = |at: usize| self.is_punctuation(at, b')') || self.is_punctuation(at, b']');
        let opens = |at: usize| self.is_punctuation(at, b'(') || self.is_punctuation(at, b'[');
        let (mut first, mut depth) = (place, 0_i32);
        while let Some(before) = first.checked_sub(1) {
            depth += i32::from(closes(before)) - i32::from(opens(before));
            if depth < 0 || (depth == 0 && BEFORE.iter().any(|word| self.is(before, word))) {
                break;
            }
            first = before;
        }
        let (mut end, mut depth, mut betweens, mut cases) = (first, 0_i32, 0_u32, 0_u32);
        while end < self.len() {
            depth += i32::from(opens(end)) - i32::from(closes(end));
            if depth < 0 {
                break;
            }
            if depth == 0 {
                betweens += u32::from(self.is(end, "between"));
                cases += u32::from(self.is(end, "case"));
                let is_end = BEHIND.iter().any(|word| self.is(end, word)) && !self.is_call(end);
                if self.is_punctuation(end, b',') || (is_end && cases == 0) {
                    break;
                }
                if self.is(end, "and") && cases == 0 {
                    if betweens == 0 {
                        break;
                    }
                    betweens -= 1;
                }
                cases = cases.saturating_sub(u32::from(self.is(end, "end")));
            }
            end += 1;
        }
        let (from, last) = (self.tokens.get(first)?, self.tokens.get(end.checked_sub(1)?)?);
        let enclosing = first.checked_sub(1).filter(|&before| self.is_punctuation(before, b'('));
        Some((self.text.get(from.start..last.end)?, enclosing))
    }

    /// Whether it has a GROUP BY anywhere.
    pub(super) fn has_group_by(&self) -> bool {
        (0..self.len()).any(|at| self.is(at, "group") && self.is(at + 1, "by"))
    }

    /// Whether some identifier is longer than PostgreSQL reads it.
    pub(super) fn has_long_name(&self) -> bool {
        const LONGEST: usize = 63;
        let is_name =
            |kind| matches!(kind, TokenKind::Word | TokenKind::QuotedIdentifier | TokenKind::UnicodeIdentifier);
        self.tokens.iter().any(|token| is_name(token.kind) && token.end - token.start > LONGEST)
    }

    /// Whether columns are meant that are not named: by `t.*`, which may be a whole row within a call, or by NATURAL.
    pub(super) fn means_unnamed_columns(&self) -> bool {
        let is_star = |at: usize| self.range_of(at, at).is_some_and(|range| self.slice(&range) == "*");
        (0..self.len()).any(|at| self.is(at, "natural") || (self.is_punctuation(at, b'.') && is_star(at + 1)))
    }

    /// The first operator, or function that is called without its schema, for which that holds.
    pub(super) fn unqualified(&self, is_meant: impl Fn(&str) -> bool) -> Option<String> {
        (0..self.len()).find_map(|at| {
            let name = match self.operator_at(at) {
                Some(operator) => operator.to_owned(),
                None => self.name_at(at).filter(|_| self.is_call(at) && self.schema_at(at).is_none())?,
            };
            is_meant(&name).then_some(name)
        })
    }

    /// Whether the name of the database is asked for.
    pub(super) fn asks_for_database(&self) -> bool {
        (0..self.len()).any(|at| match self.name_at(at).as_deref() {
            Some("current_database") => self.is_empty_call(at),
            Some("current_catalog") => self.is_bare(at),
            _ => false,
        })
    }

    /// Whether a constant is the name of that setting, which `current_setting` may be asked for.
    pub(super) fn names_setting(&self, setting: &str) -> bool {
        let value = |token: &Token| literal::string(*token, self.text.as_bytes());
        self.tokens.iter().filter_map(value).any(|value| value.eq_ignore_ascii_case(setting))
    }

    /// How often that name stands where it qualifies no other.
    pub(super) fn count_of(&self, name: &str) -> usize {
        (0..self.len())
            .filter(|&at| !self.is_punctuation(at + 1, b'.') && self.name_at(at).is_some_and(|it| it == name))
            .count()
    }

    /// Every identifier, keywords included.
    pub(super) fn identifiers(&self) -> BTreeSet<String> {
        (0..self.len()).filter_map(|at| self.name_at(at)).collect()
    }

    /// Names that two parts of a longer name make, with where the first of the two stands.
    pub(super) fn qualified_names(&self) -> Vec<(Qualified, usize, usize)> {
        let pair = |at: usize| {
            let (schema, name) = (self.name_at(at)?, self.name_at(at + 2)?);
            let is_behind_dot = at.checked_sub(1).is_some_and(|before| self.is_punctuation(before, b'.'));
            let token = self.tokens.get(at).filter(|_| self.is_punctuation(at + 1, b'.'))?;
            Some((Qualified { schema, name, is_behind_dot }, token.start, token.end))
        };
        (0..self.len()).filter_map(pair).collect()
    }

    /// Whether the constant at that location is `N'...'`, which is a `char(n)` constant and not an untyped one.
    pub(super) fn is_national(&self, start: usize) -> bool {
        start
            .checked_sub(1)
            .and_then(|before| self.text.as_bytes().get(before))
            .is_some_and(|byte| matches!(byte, b'n' | b'N'))
    }
}
