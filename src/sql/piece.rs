//! One statement of a query string as significant tokens, with the small questions that reading by keyword asks.

use super::facts::{Name, Statement};
use super::lexer::{Lexer, Token};
use super::literal;

/// A statement's facts, and whether they hold for this text alone instead of for its fingerprint.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) statement: Statement,
    pub(super) literal_sensitive: bool,
}

impl From<Statement> for Found {
    fn from(statement: Statement) -> Self {
        Self { statement, literal_sensitive: false }
    }
}

/// The tokens of one statement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a [u8],
    pub(super) tokens: &'a [Token],
}

impl<'a> Piece<'a> {
    pub(super) fn token(self, at: usize) -> Option<Token> {
        self.tokens.get(at).copied()
    }

    /// Whether the token at `at` is that keyword.
    pub(super) fn is(self, at: usize, keyword: &str) -> bool {
        self.token(at).is_some_and(|token| token.is_word(self.text, keyword))
    }

    /// Whether the tokens from `at` on are these keywords.
    pub(super) fn are(self, at: usize, keywords: &[&str]) -> bool {
        keywords.iter().enumerate().all(|(i, keyword)| self.is(at + i, keyword))
    }

    /// Whether one of these keywords stands at `at`.
    pub(super) fn is_one(self, at: usize, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.is(at, keyword))
    }

    /// `at + 1` if the keyword stands there, else `at`.
    pub(super) fn skip(self, at: usize, keyword: &str) -> usize {
        at + usize::from(self.is(at, keyword))
    }

    pub(super) fn is_punctuation(self, at: usize, byte: u8) -> bool {
        self.token(at).is_some_and(|token| token.is_punctuation(self.text, byte))
    }

    pub(super) fn bytes(self, at: usize) -> &'a [u8] {
        self.token(at).map_or(&[], |token| token.bytes(self.text))
    }

    /// The token's text in lower case, for keywords and settings.
    pub(super) fn lower(self, at: usize) -> String {
        String::from_utf8_lossy(&self.bytes(at).to_ascii_lowercase()).into_owned()
    }

    pub(super) fn identifier(self, at: usize) -> Option<String> {
        literal::identifier(self.token(at)?, self.text)
    }

    /// A name of one to three parts, and the place behind it.
    pub(super) fn name(self, at: usize) -> Option<(Name, usize)> {
        let mut parts = vec![self.identifier(at)?];
        let mut at = at + 1;
        while self.is_punctuation(at, b'.') {
            parts.push(self.identifier(at + 1)?);
            at += 2;
        }
        let name = parts.pop()?;
        let schema = parts.pop().map(Into::into);
        Some((Name { schema, name: name.into() }, at))
    }

    /// The place behind the parenthesis that closes the one at `at`.
    pub(super) fn behind_parenthesis(self, at: usize) -> Option<usize> {
        let mut depth = 0_usize;
        for place in at..self.tokens.len() {
            if self.is_punctuation(place, b'(') {
                depth += 1;
            } else if self.is_punctuation(place, b')') {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(place + 1);
                }
            }
        }
        None
    }

    pub(super) fn from(self, at: usize) -> Self {
        Self { tokens: self.tokens.get(at..).unwrap_or_default(), ..self }
    }

    pub(super) fn range(self, from: usize, to: usize) -> Self {
        Self { tokens: self.tokens.get(from..to).unwrap_or_default(), ..self }
    }

    /// Every identifier, keywords included, each once.
    pub(super) fn identifiers(self) -> Vec<Box<str>> {
        let mut all: Vec<Box<str>> =
            (0..self.tokens.len()).filter_map(|at| self.identifier(at)).map(Into::into).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Every identifier, and every word in its strings that could be one, as written and in lower case, each once.
    pub(super) fn identifiers_and_bodies(self) -> Vec<Box<str>> {
        let mut all = self.identifiers();
        for token in self.tokens.iter().filter(|token| token.kind.is_string()) {
            let Some(body) = literal::string(*token, self.text) else { continue };
            let words = body.split(|c: char| c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' && c != '$');
            for word in words.filter(|word| !word.is_empty()) {
                all.push(word.into());
                all.push(word.to_ascii_lowercase().into());
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The significant tokens of each statement: split at semicolons outside of parentheses and of `BEGIN ATOMIC` bodies.
pub(super) fn split(text: &[u8], standard_conforming_strings: bool) -> Vec<Vec<Token>> {
    let mut pieces = Vec::new();
    let mut piece: Vec<Token> = Vec::new();
    let mut parentheses = 0_usize;
    let mut blocks = 0_usize;
    let mut tokens = Lexer::new(text, standard_conforming_strings).significant().peekable();
    while let Some(token) = tokens.next() {
        if token.is_punctuation(text, b'(') {
            parentheses += 1;
        } else if token.is_punctuation(text, b')') {
            parentheses = parentheses.saturating_sub(1);
        } else if parentheses == 0 && is_routine(&piece, text) {
            // `begin` alone may be the routine's name.
            let atomic = token.is_word(text, "begin") && tokens.peek().is_some_and(|next| next.is_word(text, "atomic"));
            if atomic || (blocks > 0 && token.is_word(text, "case")) {
                blocks += 1;
            } else if blocks > 0 && token.is_word(text, "end") {
                blocks -= 1;
            }
        }
        if token.is_punctuation(text, b';') && parentheses == 0 && blocks == 0 {
            if !piece.is_empty() {
                pieces.push(std::mem::take(&mut piece));
            }
        } else {
            piece.push(token);
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// Where each statement of a query string ends, in bytes: behind its last token.
pub fn statement_ends(text: &[u8], standard_conforming_strings: bool) -> Vec<usize> {
    let pieces = split(text, standard_conforming_strings);
    pieces.iter().filter_map(|tokens| tokens.last()).map(|last| last.end).collect()
}

/// Whether the tokens begin CREATE FUNCTION or CREATE PROCEDURE, whose SQL bodies hold semicolons.
fn is_routine(tokens: &[Token], text: &[u8]) -> bool {
    let piece = Piece { text, tokens };
    let kind = if piece.are(1, &["or", "replace"]) { 3 } else { 1 };
    piece.is(0, "create") && piece.is_one(kind, &["function", "procedure"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> usize {
        split(text.as_bytes(), true).len()
    }

    #[test]
    fn statements_are_split_at_semicolons_that_end_one() {
        assert_eq!(count(""), 0);
        assert_eq!(count(" ; ;; -- x"), 0);
        assert_eq!(count("select 1"), 1);
        assert_eq!(count("select ';'; select \";\"; select $$;$$"), 3);
        assert_eq!(count("create rule r as on insert to t do (select 1; select 2); select 3"), 2);
        let atomic = "create or replace function f() returns int begin atomic select case when true then 1 end; select 2; end; select 3";
        assert_eq!(count(atomic), 2);
        assert_eq!(count("create function begin() returns int return 1; select 2; select 3"), 3);
        assert_eq!(count("begin; select 1; end"), 3);
    }

    #[test]
    fn a_body_gives_up_its_words() {
        let text = "do $$ begin execute 'delete from Orders'; end $$";
        let pieces = split(text.as_bytes(), true);
        let words = Piece { text: text.as_bytes(), tokens: &pieces[0] }.identifiers_and_bodies();
        for word in ["do", "Orders", "orders", "delete"] {
            assert!(words.iter().any(|found| &**found == word), "{word}");
        }
    }
}
