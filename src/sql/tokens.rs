//! Our lexer's tokens as sqlparser's: the parser then reads exactly what PostgreSQL would have read.
//!
//! sqlparser's own tokenizer disagrees with PostgreSQL on `U&"..."`, `standard_conforming_strings = off`, operators before
//! comments and more; it is never used. A token's location is `line 1, column = byte offset + 1`.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Location, Span, Token as Parsed, TokenWithSpan, Word};

use super::lexer::{Token, TokenKind};
use super::literal;

/// The tokens of one statement for sqlparser, or `None` where one has no counterpart there.
pub(super) fn convert(tokens: &[Token], text: &[u8]) -> Option<Vec<TokenWithSpan>> {
    let mut out = Vec::with_capacity(tokens.len() + 4);
    let mut rest = tokens;
    if let [first, tail @ ..] = tokens
        && first.is_word(text, "table")
    {
        // `TABLE t` is `SELECT * FROM t`, which sqlparser knows only inside of other statements.
        for token in [Parsed::make_word("select", None), Parsed::Mul, Parsed::make_word("from", None)] {
            out.push(TokenWithSpan::new(token, span(*first)));
        }
        rest = tail;
    }
    let mut before = None;
    while let [token, tail @ ..] = rest {
        if let Some(left_out) = left_out(before, rest, text) {
            rest = rest.get(left_out..)?;
            continue;
        }
        let is_behind_dot = before.is_some_and(|token| token.is_punctuation(text, b'.'));
        before = Some(*token);
        let converted = match tail.first() {
            // `N'...'` is lexed as a word and a string that touch.
            Some(next) if next.kind.is_string() && token.is_word(text, "n") && token.end == next.start => {
                rest = tail;
                continue;
            }
            // UESCAPE gives the escapes of the constant before it another letter.
            Some(next) if next.is_word(text, "uescape") => return None,
            // Behind a dot no word is a keyword: `pg_catalog.session_user()`, `t.of`.
            _ if is_behind_dot && token.kind == TokenKind::Word => {
                let value = literal::identifier(*token, text)?;
                Parsed::Word(Word { value, quote_style: None, keyword: Keyword::NoKeyword })
            }
            _ => one(*token, text)?,
        };
        out.push(TokenWithSpan::new(converted, span(*token)));
        rest = tail;
    }
    Some(out)
}

/// How many tokens to pass over here. What they say narrows what is read or locked, never what it is read from.
fn left_out(before: Option<Token>, rest: &[Token], text: &[u8]) -> Option<usize> {
    let is = |at: usize, keyword: &str| rest.get(at).is_some_and(|token| token.is_word(text, keyword));
    let follows = |keyword: &str| before.is_some_and(|token| token.is_word(text, keyword));
    let after_dot = before.is_some_and(|token| token.is_punctuation(text, b'.'));
    if is(0, "only") && !after_dot && !follows("rows") && !follows("row") {
        // `FROM ONLY t`: sqlparser would take the word for a table with the alias t. `FETCH FIRST ROW ONLY` stays.
        return Some(1);
    }
    match () {
        () if follows("for") && is(0, "no") && is(1, "key") && is(2, "update") => Some(2),
        () if follows("for") && is(0, "key") && is(1, "share") => Some(1),
        () => None,
    }
}

fn span(token: Token) -> Span {
    Span::new(Location::new(1, token.start as u64 + 1), Location::new(1, token.end as u64 + 1))
}

fn one(token: Token, text: &[u8]) -> Option<Parsed> {
    let bytes = token.bytes(text);
    Some(match token.kind {
        TokenKind::Word => Parsed::make_word(&literal::identifier(token, text)?, None),
        TokenKind::QuotedIdentifier | TokenKind::UnicodeIdentifier => {
            Parsed::make_word(&literal::identifier(token, text)?, Some('"'))
        }
        TokenKind::String | TokenKind::EscapeString | TokenKind::UnicodeString | TokenKind::DollarString => {
            Parsed::SingleQuotedString(literal::string(token, text)?)
        }
        TokenKind::BitString => Parsed::SingleQuotedByteStringLiteral(literal::string(token, text)?),
        TokenKind::HexString => Parsed::HexStringLiteral(literal::string(token, text)?),
        TokenKind::Number => Parsed::Number(String::from_utf8_lossy(bytes).into_owned(), false),
        TokenKind::Parameter => Parsed::Placeholder(String::from_utf8_lossy(bytes).into_owned()),
        TokenKind::Operator => operator(std::str::from_utf8(bytes).ok()?),
        TokenKind::DoubleColon => Parsed::DoubleColon,
        TokenKind::ColonEquals => Parsed::Assignment,
        TokenKind::Punctuation => match bytes {
            b"(" => Parsed::LParen,
            b")" => Parsed::RParen,
            b"[" => Parsed::LBracket,
            b"]" => Parsed::RBracket,
            b"," => Parsed::Comma,
            b"." => Parsed::Period,
            b":" => Parsed::Colon,
            b";" => Parsed::SemiColon,
            _ => return None,
        },
        TokenKind::Whitespace | TokenKind::Comment | TokenKind::DotDot | TokenKind::Invalid => return None,
    })
}

/// As sqlparser's tokenizer names PostgreSQL's operators; any other is a custom one.
fn operator(text: &str) -> Parsed {
    match text {
        "=" => Parsed::Eq,
        "<>" | "!=" => Parsed::Neq,
        "<" => Parsed::Lt,
        ">" => Parsed::Gt,
        "<=" => Parsed::LtEq,
        ">=" => Parsed::GtEq,
        "+" => Parsed::Plus,
        "-" => Parsed::Minus,
        "*" => Parsed::Mul,
        "/" => Parsed::Div,
        "%" => Parsed::Mod,
        "^" => Parsed::Caret,
        "||" => Parsed::StringConcat,
        "=>" => Parsed::RArrow,
        "|" => Parsed::Pipe,
        "&" => Parsed::Ampersand,
        "#" => Parsed::Sharp,
        "~" => Parsed::Tilde,
        "~*" => Parsed::TildeAsterisk,
        "!~" => Parsed::ExclamationMarkTilde,
        "!~*" => Parsed::ExclamationMarkTildeAsterisk,
        "~~" => Parsed::DoubleTilde,
        "~~*" => Parsed::DoubleTildeAsterisk,
        "!~~" => Parsed::ExclamationMarkDoubleTilde,
        "!~~*" => Parsed::ExclamationMarkDoubleTildeAsterisk,
        "<<" => Parsed::ShiftLeft,
        ">>" => Parsed::ShiftRight,
        "&&" => Parsed::Overlap,
        "!!" => Parsed::DoubleExclamationMark,
        "@" => Parsed::AtSign,
        "^@" => Parsed::CaretAt,
        "|/" => Parsed::PGSquareRoot,
        "||/" => Parsed::PGCubeRoot,
        "->" => Parsed::Arrow,
        "->>" => Parsed::LongArrow,
        "#>" => Parsed::HashArrow,
        "#>>" => Parsed::HashLongArrow,
        "#-" => Parsed::HashMinus,
        "@>" => Parsed::AtArrow,
        "<@" => Parsed::ArrowAt,
        "@?" => Parsed::AtQuestion,
        "@@" => Parsed::AtAt,
        "?" => Parsed::Question,
        "?&" => Parsed::QuestionAnd,
        "?|" => Parsed::QuestionPipe,
        other => Parsed::CustomBinaryOperator(other.to_owned()),
    }
}
