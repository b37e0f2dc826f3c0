use proptest::prelude::*;

use super::TokenKind::*;
use super::*;

fn kinds(text: &str) -> Vec<(TokenKind, &str)> {
    Lexer::new(text.as_bytes(), true).significant().map(|token| (token.kind, &text[token.start..token.end])).collect()
}

#[test]
fn a_plain_statement_falls_into_words_numbers_and_punctuation() {
    assert_eq!(
        kinds("SELECT a.b, 1.5 FROM t;"),
        [
            (Word, "SELECT"),
            (Word, "a"),
            (Punctuation, "."),
            (Word, "b"),
            (Punctuation, ","),
            (Number, "1.5"),
            (Word, "FROM"),
            (Word, "t"),
            (Punctuation, ";")
        ]
    );
}

#[test]
fn strings_end_where_postgresql_ends_them() {
    for (text, kind) in [
        (r"'it''s'", String),
        (r"'back\'", String),
        (r"E'a\'b'", EscapeString),
        (r"e'a''b\\'", EscapeString),
        (r"U&'d\0061t\+000061'", UnicodeString),
        (r"B'0101'", BitString),
        (r"x'1F'", HexString),
        (r"$$a'b$$", DollarString),
        (r"$q$ $$ $x$ $q$", DollarString),
        (r"$é1$ body $é1$", DollarString),
        ("'a'\n  'b'", String),
        ("'a' -- why\n -- and\n 'b'", String),
        ("E'a'\n'\\''", EscapeString),
    ] {
        assert_eq!(kinds(text), [(kind, text)], "{text}");
    }
}

#[test]
fn two_strings_on_one_line_stay_two() {
    assert_eq!(kinds("'a' 'b'"), [(String, "'a'"), (String, "'b'")]);
    assert_eq!(kinds("'a' /* \n */ 'b'"), [(String, "'a'"), (String, "'b'")]);
    assert_eq!(kinds("B'0''1'"), [(BitString, "B'0'"), (String, "'1'")]);
}

#[test]
fn without_standard_conforming_strings_a_backslash_escapes() {
    let text = r"'a\'b' x";
    let tokens: Vec<Token> = Lexer::new(text.as_bytes(), false).significant().collect();
    assert_eq!(tokens[0], Token { kind: EscapeString, start: 0, end: 6 });
    assert_eq!(kinds(text)[0], (String, r"'a\'"));
}

#[test]
fn comments_nest_and_end_operators() {
    assert_eq!(kinds("a /* x /* y */ z */ b -- c"), [(Word, "a"), (Word, "b")]);
    assert_eq!(kinds("1+-- x\n2"), [(Number, "1"), (Operator, "+"), (Number, "2")]);
    assert_eq!(kinds("1*/*x*/2"), [(Number, "1"), (Operator, "*"), (Number, "2")]);
    assert_eq!(kinds("/* open"), [(Invalid, "/* open")]);
}

#[test]
fn operators_drop_a_trailing_sign_unless_a_character_allows_it() {
    for (text, operators) in [
        ("a=-1", vec!["="]),
        ("a<=-1", vec!["<="]),
        ("a@-b", vec!["@-"]),
        ("a*-+b", vec!["*"]),
        ("a->>'k'", vec!["->>"]),
        ("a||b", vec!["||"]),
        ("a !~~* b", vec!["!~~*"]),
        ("a => b", vec!["=>"]),
    ] {
        let found: Vec<&str> =
            kinds(text).into_iter().filter(|(kind, _)| *kind == Operator).map(|(_, op)| op).collect();
        assert_eq!(found[0], operators[0], "{text}");
    }
    assert_eq!(kinds("- -1").len(), 3);
}

#[test]
fn numbers_of_every_spelling() {
    for text in ["1", "1.", ".5", "1.5e-3", "1e10", "1_000", "0x1F", "0X_ff", "0o17", "0b101", "1_0.2_5"] {
        assert_eq!(kinds(text), [(Number, text)], "{text}");
    }
    assert_eq!(kinds("1..2"), [(Number, "1"), (DotDot, ".."), (Number, "2")]);
    assert_eq!(kinds("1e"), [(Number, "1"), (Word, "e")]);
    assert_eq!(kinds("1_"), [(Number, "1"), (Word, "_")]);
}

#[test]
fn dollars_are_parameters_tags_or_part_of_an_identifier() {
    assert_eq!(kinds("$1"), [(Parameter, "$1")]);
    assert_eq!(kinds("a$b$c"), [(Word, "a$b$c")]);
    assert_eq!(kinds("$a b"), [(Invalid, "$"), (Word, "a"), (Word, "b")]);
    assert_eq!(kinds("$$open"), [(Invalid, "$$open")]);
    assert_eq!(kinds("$1$$x$$"), [(Parameter, "$1"), (DollarString, "$$x$$")]);
}

#[test]
fn identifiers_may_be_quoted_unicode_or_of_high_bytes() {
    assert_eq!(kinds(r#""a""b""#), [(QuotedIdentifier, r#""a""b""#)]);
    assert_eq!(kinds(r#"U&"d\0061ta""#), [(UnicodeIdentifier, r#"U&"d\0061ta""#)]);
    assert_eq!(kinds("straße_1"), [(Word, "straße_1")]);
    assert_eq!(kinds("N'x'"), [(Word, "N"), (String, "'x'")]);
    assert_eq!(kinds("u & 'x'")[0], (Word, "u"));
}

#[test]
fn colons() {
    assert_eq!(kinds("a::int"), [(Word, "a"), (DoubleColon, "::"), (Word, "int")]);
    assert_eq!(kinds("a := 1")[1], (ColonEquals, ":="));
    assert_eq!(kinds("a[1:2]")[3], (Punctuation, ":"));
}

proptest! {
    #[test]
    fn any_bytes_are_covered_without_gaps(text in proptest::collection::vec(any::<u8>(), 0..200), on in any::<bool>()) {
        let mut at = 0;
        for token in Lexer::new(&text, on) {
            prop_assert_eq!(token.start, at);
            prop_assert!(token.end > token.start);
            prop_assert!(token.end <= text.len());
            at = token.end;
        }
        prop_assert_eq!(at, text.len());
    }

    #[test]
    fn any_mix_of_awkward_characters_is_covered(text in "['\"$\\\\eEuU&bBxX/*\\-\n a1._:;()+<=>@]{0,60}", on in any::<bool>()) {
        let end = Lexer::new(text.as_bytes(), on).fold(0, |at, token| {
            assert_eq!(token.start, at);
            token.end
        });
        prop_assert_eq!(end, text.len());
    }
}
