//! The pieces of an UPDATE's text.

use std::ops::Range;

use super::Source;

/// Where the clauses of one plain UPDATE stand, in bytes.
#[derive(Debug)]
pub(in crate::plan::distribute) struct UpdateClauses {
    /// All that stands before WHERE and RETURNING.
    pub(in crate::plan::distribute) head: Range<usize>,
    /// The table, alias included.
    pub(in crate::plan::distribute) table: Range<usize>,
    /// What each assignment assigns: as a whole, and field by field if it stands in parentheses.
    pub(in crate::plan::distribute) values: Vec<(Range<usize>, Vec<Range<usize>>)>,
    /// What stands behind WHERE.
    pub(in crate::plan::distribute) condition: Option<Range<usize>>,
    /// What stands behind RETURNING.
    pub(in crate::plan::distribute) returning: Option<Range<usize>>,
}

impl Source<'_> {
    /// Cuts an UPDATE without FROM into its clauses. A guess: whoever asks reads the pieces again.
    pub(in crate::plan::distribute) fn update(&self) -> Option<UpdateClauses> {
        let outer = self.outer();
        let behind = |from: usize, word: &str| {
            outer.iter().copied().find(|&at| at > from && self.is(at, word) && self.is_bare(at))
        };
        if !self.is(0, "update") {
            return None;
        }
        let set = behind(1, "set")?;
        let (condition, returning) = (behind(set, "where"), behind(set, "returning"));
        let last = returning.unwrap_or(self.len());
        let end = condition.unwrap_or(last);
        let values: Option<Vec<_>> =
            self.split(&outer, set + 1, end).iter().map(|it| self.assigned(&outer, it)).collect();
        let from = |at: usize, end: usize| self.range_of(at + 1, end.checked_sub(1)?);
        Some(UpdateClauses {
            head: self.range_of(0, end.checked_sub(1)?)?,
            table: self.range_of(1, set - 1)?,
            values: values?,
            condition: match condition {
                Some(at) => Some(from(at, last)?),
                None => None,
            },
            returning: match returning {
                Some(at) => Some(from(at, self.len())?),
                None => None,
            },
        })
    }

    /// What stands behind the `=` of an assignment.
    fn assigned(&self, outer: &[usize], assignment: &Range<usize>) -> Option<(Range<usize>, Vec<Range<usize>>)> {
        let equals = outer.iter().copied().find(|at| assignment.contains(at) && self.operator_at(*at) == Some("="))?;
        let whole = equals + 1..assignment.end;
        let last = whole.end.checked_sub(1).filter(|last| whole.contains(last))?;
        let is_row = self.is_punctuation(whole.start, b'(') && self.closing(whole.start) == Some(last);
        let fields = if is_row { self.fields(whole.start + 1, last) } else { Vec::new() };
        let fields: Option<Vec<_>> = fields.iter().map(|it| self.range_of(it.start, it.end.checked_sub(1)?)).collect();
        Some((self.range_of(whole.start, last)?, fields?))
    }

    /// The tokens from `from` to `to`, split at commas that no parentheses enclose.
    fn fields(&self, from: usize, to: usize) -> Vec<Range<usize>> {
        let mut depth = 0_i32;
        let mut commas = Vec::new();
        for at in from..to {
            depth += i32::from(self.is_punctuation(at, b'(') || self.is_punctuation(at, b'['));
            depth -= i32::from(self.is_punctuation(at, b')') || self.is_punctuation(at, b']'));
            if depth == 0 {
                commas.push(at);
            }
        }
        self.split(&commas, from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Option<Vec<&str>> {
        let clauses = Source::new(text, true).update()?;
        let mut pieces = vec![&text[clauses.head], &text[clauses.table]];
        for (whole, fields) in clauses.values {
            pieces.push(&text[whole]);
            pieces.extend(fields.into_iter().map(|it| &text[it]));
        }
        pieces.extend([clauses.condition, clauses.returning].into_iter().flatten().map(|it| &text[it]));
        Some(pieces)
    }

    #[test]
    fn an_update_is_cut_at_its_own_words_alone() {
        let text = "update public.t as x set k = (1 + 2) * 3, (a, b) = (f(1, 2), ARRAY[3, 4]), c = d is distinct from e \
                    where a in (select b from c where d) and \"set\" returning a as where, b;";
        let wanted = [
            "update public.t as x set k = (1 + 2) * 3, (a, b) = (f(1, 2), ARRAY[3, 4]), c = d is distinct from e",
            "public.t as x",
            "(1 + 2) * 3",
            "(f(1, 2), ARRAY[3, 4])",
            "f(1, 2)",
            "ARRAY[3, 4]",
            "d is distinct from e",
            "a in (select b from c where d) and \"set\"",
            "a as where, b",
        ];
        assert_eq!(cut(text).expect("an UPDATE"), wanted);
        assert_eq!(cut("UPDATE t SET k=-1").expect("an UPDATE"), ["UPDATE t SET k=-1", "t", "-1"]);
        for text in
            ["update t", "update t set", "update t set k", "update t set k =", "update t set k = 1 where", "select 1"]
        {
            assert_eq!(cut(text), None, "{text}");
        }
    }
}
