//! SQL of any kind: tokens cover the text and stand alone, the memo changes nothing, and what writes is never called a read.

use pgherd::sql::facts::{Class, Facts, Statement};
use pgherd::sql::fingerprint::fingerprint;
use pgherd::sql::lexer::{Lexer, Token, TokenKind};
use pgherd::sql::{Analyzer, explain_route_inner, literal};

pub const TEXTS: &[&[u8]] = &[
    b"\x01select a, 'x' from t where id = 1 and b = $1 -- c",
    b"\x01with w as (insert into t values (1) returning *) select * from w",
    b"\x01select E'a\\'b', U&'\\0061', $q$x$q$, N'y', B'01', X'1f', 1_0.5e-3, 0x1f",
    b"\x00select 'a\\'b'; set local role 'x'; begin; copy t from stdin; explain (analyze 0, route) update t set a = 1",
    b"\x01create function f() returns int begin atomic select case when a then 1 end; end; select 1 for update",
    b"\x01declare c cursor with hold for select 1; prepare p as select 1; select set_config('a', 'b', false)",
    b"\x01select * into x from only t tablesample system (1) for no key update; table t; values (1)",
];

/// The session's `standard_conforming_strings`, and the text.
fn split(data: &[u8]) -> Option<(bool, &[u8])> {
    data.split_first().map(|(first, text)| (first & 1 == 1, text))
}

/// Tokens.
pub fn lexer(data: &[u8]) {
    let Some((standard, text)) = split(data) else { return };
    let tokens: Vec<Token> = Lexer::new(text, standard).collect();
    let mut at = 0;
    for token in &tokens {
        assert!(token.start == at && token.end > at, "a gap, or nothing at all, at {at}: {token:?}");
        at = token.end;
        decoded(*token, text, standard);
    }
    assert_eq!(at, text.len(), "tokens end with the text");
    let inner = explain_route_inner(text, standard);
    assert!(inner.is_none_or(|from| from <= text.len()));

    if tokens.iter().any(|token| token.kind == TokenKind::Invalid) {
        return;
    }
    // Each token is itself wherever it stands, so blanks between tokens can be any.
    let significant: Vec<Token> = tokens.iter().copied().filter(|token| !token.kind.is_blank()).collect();
    for token in &significant {
        let alone: Vec<Token> = Lexer::new(token.bytes(text), standard).collect();
        assert!(matches!(alone.as_slice(), [only] if only.kind == token.kind), "{token:?} alone: {alone:?}");
    }
    let spaced = spaced(&significant, text, |token| token.bytes(text).to_vec());
    let kinds = |tokens: &[Token]| tokens.iter().map(|token| token.kind).collect::<Vec<_>>();
    let again: Vec<Token> = Lexer::new(&spaced, standard).significant().collect();
    assert_eq!(kinds(&significant), kinds(&again), "{}", String::from_utf8_lossy(&spaced));
    assert_eq!(fingerprint(text, standard), fingerprint(&spaced, standard), "blanks do not count");
    let other = with_literals(&significant, text, 7);
    assert_eq!(fingerprint(text, standard), fingerprint(&other, standard), "literals do not count");
}

/// What a token stands for, written as a plain constant, stands for the same.
fn decoded(token: Token, text: &[u8], standard: bool) {
    let _ = literal::identifier(token, text);
    let Some(value) = literal::string(token, text) else { return };
    if token.kind == TokenKind::BitString || token.kind == TokenKind::HexString || (!standard && value.contains('\\')) {
        return;
    }
    let quoted = format!("'{}'", value.replace('\'', "''"));
    let read: Vec<Token> = Lexer::new(quoted.as_bytes(), standard).collect();
    assert!(matches!(read.as_slice(), [only] if literal::string(*only, quoted.as_bytes()).as_ref() == Some(&value)));
}

/// The tokens with one space between them; nothing inside of a token changes, and N'...' stays one.
fn spaced(tokens: &[Token], text: &[u8], write: impl Fn(Token) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    for token in tokens {
        out.extend_from_slice(&write(*token));
        let national = token.is_word(text, "n") && matches!(text.get(token.end), Some(b'\''));
        if !national {
            out.push(b' ');
        }
    }
    out
}

/// The text with every literal's value another, chosen by `salt`.
fn with_literals(tokens: &[Token], text: &[u8], salt: u8) -> Vec<u8> {
    spaced(tokens, text, |token| match token.kind {
        TokenKind::Number => if salt & 1 == 1 { "1" } else { "0" }.into(),
        TokenKind::String | TokenKind::EscapeString | TokenKind::UnicodeString | TokenKind::DollarString => {
            ["'on'", "'off'", "'false'", "'now'"][usize::from(salt / 2 % 4)].into()
        }
        TokenKind::BitString => "B'1'".into(),
        TokenKind::HexString => "X'1'".into(),
        _ => token.bytes(text).to_vec(),
    })
}

/// Facts.
pub fn facts(data: &[u8]) {
    let Some((standard, text)) = split(data) else { return };
    let shared = Analyzer::with_memo_bytes(1 << 16);
    let facts = shared.facts(text, standard);
    assert_eq!(facts.fingerprint, fingerprint(text, standard));
    assert_eq!(*shared.facts_of_parse(text, standard), *facts);
    let tokens: Vec<Token> = Lexer::new(text, standard).significant().collect();
    if tokens.iter().any(|token| token.kind == TokenKind::Invalid) {
        // PostgreSQL refuses the whole string.
        return;
    }
    claims(&facts, &tokens, text);
    // Texts that differ in literals may share their facts, where the memo says so, and only there.
    for salt in 0..8 {
        let other = with_literals(&tokens, text, salt);
        let (found, fresh) = (shared.facts(&other, standard), of(&other, standard));
        assert!(judged(&found) == judged(&fresh), "{}\n{found:?}\n{fresh:?}", String::from_utf8_lossy(&other));
    }
}

/// Facts without what the memo has seen before.
fn of(text: &[u8], standard: bool) -> Facts {
    let analyzer = Analyzer::with_memo_bytes(0);
    Facts::clone(&analyzer.facts(text, standard))
}

/// What facts say where both are no worse than each other: an opaque statement may be so for a literal's spelling.
fn judged(facts: &Facts) -> Vec<Option<&Statement>> {
    facts.statements.iter().map(|statement| (statement.class != Class::Opaque).then_some(statement)).collect()
}

/// Keywords that PostgreSQL reserves and that only a statement that is no pure read has.
fn claims(facts: &Facts, tokens: &[Token], text: &[u8]) {
    if facts.class() != Class::Read {
        return;
    }
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(text, word));
    let after = |at: usize, word: &str| at > 0 && is(at - 1, word);
    let names = |at: usize| at == 0 || after(at, "as") || tokens[at - 1].is_punctuation(text, b'.');
    for at in 0..tokens.len() {
        if is(at, "into") && !names(at) {
            panic!("INTO in a read: {}", String::from_utf8_lossy(text));
        }
        let opens = at > 0 && tokens[at - 1].is_punctuation(text, b'(');
        let writes = (is(at, "insert") && is(at + 1, "into")) || (is(at, "delete") && is(at + 1, "from"));
        assert!(!(opens && writes), "DML in a read: {}", String::from_utf8_lossy(text));
    }
}
