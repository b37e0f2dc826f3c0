//! sqlparser's tree of one statement, under limits that make its depth small whatever the text holds.

use std::borrow::Cow;

use sqlparser::ast::Statement;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::lexer::{Lexer, Token, TokenKind};
use super::tokens;
use crate::limits;

/// The tree of the single statement in `text`, if sqlparser reads it whole and within the limits.
///
/// A span's location is `line 1, column = byte offset in text + 1`. Identifiers are folded as PostgreSQL folds them and
/// strings decoded. Never print the tree: splice the text.
pub fn parse(text: &[u8], standard_conforming_strings: bool) -> Option<Statement> {
    let mut all: Vec<Token> = Lexer::new(text, standard_conforming_strings).significant().collect();
    while all.last().is_some_and(|token| token.is_punctuation(text, b';')) {
        all.pop();
    }
    parse_tokens(&all, text)
}

/// The offset in the text that a sqlparser location of our making stands for.
pub fn offset(location: sqlparser::tokenizer::Location) -> Option<usize> {
    usize::try_from(location.column).ok()?.checked_sub(1)
}

/// The tree of one statement whose significant tokens are `all`.
pub(super) fn parse_tokens(all: &[Token], text: &[u8]) -> Option<Statement> {
    let (first, last) = (all.first()?, all.last()?);
    if last.end - first.start > limits::PARSED_STATEMENT_BYTES || !is_shallow(all, text) {
        return None;
    }
    let tokens = tokens::convert(&readable(all, text), text)?;
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect).with_recursion_limit(limits::PARSE_DEPTH).with_tokens_with_locations(tokens);
    let statement = parser.parse_statement().ok()?;
    let whole = parser.peek_token_ref().token == sqlparser::tokenizer::Token::EOF;
    whole.then_some(statement)
}

/// The tokens without what sqlparser has no grammar for and that names nothing: EXCLUDE of a window's frame, and the FROM of
/// `trim(both from x)`. Texts are spliced, not printed, so PostgreSQL gets them all the same.
fn readable<'t>(all: &'t [Token], text: &[u8]) -> Cow<'t, [Token]> {
    let word = |at: usize, word: &str| all.get(at).is_some_and(|token| token.is_word(text, word));
    let behind = |at: usize, words: &[&str]| at > 0 && words.iter().any(|wanted| word(at - 1, wanted));
    let closes = |at: usize| all.get(at).is_some_and(|token| token.is_punctuation(text, b')'));
    let superfluous = |at: usize| -> usize {
        if word(at, "exclude") && behind(at, &["row", "preceding", "following"]) {
            let pair = word(at + 1, "current") && word(at + 2, "row") || word(at + 1, "no") && word(at + 2, "others");
            let single = word(at + 1, "group") || word(at + 1, "ties");
            return match (pair && closes(at + 3), single && closes(at + 2)) {
                (true, _) => 3,
                (_, true) => 2,
                _ => 0,
            };
        }
        let is_trim = || at > 2 && word(at - 3, "trim") && behind(at, &["both", "leading", "trailing"]);
        usize::from(word(at, "from") && is_trim() && all[at - 2].is_punctuation(text, b'('))
    };
    let Some(first) = (0..all.len()).find(|&at| superfluous(at) > 0) else { return Cow::Borrowed(all) };
    let (mut kept, mut at) = (all[..first].to_vec(), first);
    while at < all.len() {
        match superfluous(at) {
            0 => {
                kept.push(all[at]);
                at += 1;
            }
            skipped => at += skipped,
        }
    }
    Cow::Owned(kept)
}

/// Whether no tree of these tokens can be deep: sqlparser's recursion limit bounds nesting, but `a + a + a ...` and
/// `SELECT 1 UNION SELECT 1 ...` make trees as deep as they are long, and those are dropped by recursion.
fn is_shallow(tokens: &[Token], text: &[u8]) -> bool {
    let mut open: Vec<usize> = Vec::new();
    let mut outer = 0;
    let mut chain = 0_usize;
    let mut joins = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match (token.kind, token.bytes(text)) {
            (TokenKind::Punctuation, b"(" | b"[") => {
                open.push(chain);
                outer += chain;
                chain = 0;
                if open.len() > limits::PARSE_DEPTH {
                    return false;
                }
            }
            (TokenKind::Punctuation, b")" | b"]") => {
                let Some(before) = open.pop() else { return false };
                outer -= before;
                chain = before + 1;
            }
            (TokenKind::Punctuation, b",") => chain = 0,
            (TokenKind::Word, word) => {
                chain += 1;
                // `a JOIN b JOIN c ON .. ON ..` nests one level for each JOIN that still waits for its condition.
                if word.eq_ignore_ascii_case(b"join") && !is_unconditional(&tokens[..at], text) {
                    joins += 1;
                } else if word.eq_ignore_ascii_case(b"on") || word.eq_ignore_ascii_case(b"using") {
                    joins = joins.saturating_sub(1);
                }
            }
            _ => chain += 1,
        }
        if joins > limits::PARSE_DEPTH {
            return false;
        }
        if outer + chain > limits::PARSE_CHAIN_TOKENS {
            return false;
        }
    }
    true
}

/// Whether the JOIN behind these tokens is CROSS or NATURAL.
fn is_unconditional(before: &[Token], text: &[u8]) -> bool {
    before.iter().rev().take(3).any(|token| token.is_word(text, "cross") || token.is_word(text, "natural"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parses(text: &str) -> bool {
        parse(text.as_bytes(), true).is_some()
    }

    /// Everything below runs with the stack of a tokio worker.
    fn on_a_small_stack(run: impl FnOnce() + Send + 'static) {
        std::thread::Builder::new()
            .stack_size(2 * 1024 * 1024)
            .spawn(run)
            .expect("a thread")
            .join()
            .expect("no overflow");
    }

    #[test]
    fn what_names_nothing_does_not_hide_a_statement() {
        for frame in ["exclude current row", "exclude group", "exclude ties", "exclude no others"] {
            assert!(parses(&format!(
                "select sum(x) over (order by y rows between 2 preceding and 2 following {frame}) from t"
            )));
            assert!(parses(&format!("select sum(x) over w from t window w as (groups current row {frame})")));
        }
        assert!(parses("select trim(trailing from a), trim(both from b) from t"));

        assert!(!parses("select sum(x) over (rows current row exclude nobody) from t"));
        assert!(!parses("select sum(x) over (rows current row exclude ties exclude ties) from t"));
    }

    #[test]
    fn behind_a_dot_no_word_is_a_keyword() {
        assert!(parses(
            "select pg_catalog.session_user(), pg_catalog.current_user() as c, t.of, t.interval, s.from.end from s.from t"
        ));
        assert!(parses("select t.order, t.select from public.group t where t.not is not null order by t.desc desc"));
        assert!(parses("select x::pg_catalog.int4, y::pg_catalog.varchar(3) from t"));
        assert!(!parses("select from.a from t"));
    }

    #[test]
    fn statements_are_read_whole_or_not_at_all() {
        assert!(parses("select 1"));
        assert!(parses("select 1;"));
        assert!(parses("table t order by 1"));
        assert!(!parses("select 1 select 2"));
        assert!(!parses("select 1; select 2"));
        assert!(!parses("select 'open"));
        assert!(!parses(""));
    }

    #[test]
    fn long_chains_and_deep_nests_are_given_up_without_a_deep_stack() {
        on_a_small_stack(|| {
            for (repeat, wrap) in [
                ("1+", "select # 1"),
                ("1 union select ", "select # 1"),
                ("- ", "select # 1"),
                ("not ", "select # true"),
                ("(", "select # 1"),
                ("a.", "select # a"),
                ("x is null or ", "select # 1"),
                ("t join ", "select * from # t"),
                ("isnull ", "select 1 #"),
                ("case when 1 then ", "select # 1"),
                ("array<", "select 1::# int"),
                ("[", "select array# 1"),
                ("explain ", "# select 1"),
                ("with a as (select 1) ", "# select 1"),
                ("a[1]", "select #"),
                ("::int", "select 1 #"),
                ("collate \"C\" ", "select a #"),
                ("natural join t ", "select * from t #"),
                ("t natural join ", "select * from # t"),
                ("1 between 1 and ", "select # 1"),
                ("t cross join ", "select * from # t"),
                ("t left join ", "select * from # t"),
                ("interval ", "select # '1'"),
                ("exists ", "select # (select 1)"),
                ("prior ", "select # 1"),
                ("struct<a ", "select 1::# int"),
            ] {
                for count in [1, 60, 1_000, 3_990, 20_000] {
                    drop(parse(wrap.replace('#', &repeat.repeat(count)).as_bytes(), true));
                }
            }
        });
    }

    #[test]
    fn the_limits_hold_at_the_limit_and_one_past_it() {
        on_a_small_stack(|| {
            let nested = |depth: usize| format!("select {}1{}", "(".repeat(depth), ")".repeat(depth));
            assert!(parses(&nested(10)));
            assert!(!parses(&nested(limits::PARSE_DEPTH + 1)));
            let chain = |terms: usize| format!("select {}1", "1+".repeat(terms));
            let most = (limits::PARSE_CHAIN_TOKENS - 2) / 2;
            assert!(parses(&chain(most)));
            assert!(!parses(&chain(most + 1)));
            let bytes = |length: usize| format!("select '{}'", "x".repeat(length - 9));
            assert!(parses(&bytes(limits::PARSED_STATEMENT_BYTES)));
            assert!(!parses(&bytes(limits::PARSED_STATEMENT_BYTES + 1)));
        });
    }

    #[test]
    fn spans_are_byte_offsets() {
        use sqlparser::ast::Spanned;
        let text = "select 'é', \"B\" from t";
        let statement = parse(text.as_bytes(), true).expect("a statement");
        let span = statement.span();
        assert_eq!(offset(span.start), Some(0));
        assert_eq!(offset(span.end), Some(text.len()));
    }
}
