//! PostgreSQL's lexical rules (manual 4.1, `scan.l`) over bytes: one pass, no allocation, every byte in exactly one token.

/// What a token is. Literals are told apart because each is decoded by its own rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Spaces, tabs, line ends.
    Whitespace,
    /// `-- ...` up to the line's end, or `/* ... */` with nesting.
    Comment,
    /// An unquoted identifier or keyword.
    Word,
    /// `"..."`
    QuotedIdentifier,
    /// `U&"..."`
    UnicodeIdentifier,
    /// `'...'` read by `standard_conforming_strings = on`, or `N'...'`'s text.
    String,
    /// `E'...'`, or `'...'` with `standard_conforming_strings = off`.
    EscapeString,
    /// `U&'...'`
    UnicodeString,
    /// `$tag$...$tag$`
    DollarString,
    /// `B'...'`
    BitString,
    /// `X'...'`
    HexString,
    /// `1`, `1_000`, `0x1F`, `1.5e3`
    Number,
    /// `$1`
    Parameter,
    /// One or more of `~ ! @ # ^ & | \` ? + - * / % < > =`
    Operator,
    /// One of `( ) [ ] , ; : .`
    Punctuation,
    /// `::`
    DoubleColon,
    /// `:=`
    ColonEquals,
    /// `..`
    DotDot,
    /// A byte that PostgreSQL's lexer does not know, or a literal or comment without an end.
    Invalid,
}

impl TokenKind {
    /// Whether it separates tokens and says nothing itself.
    pub fn is_blank(self) -> bool {
        matches!(self, Self::Whitespace | Self::Comment)
    }

    /// Whether it is a string or bit-string constant.
    pub fn is_string(self) -> bool {
        matches!(
            self,
            Self::String
                | Self::EscapeString
                | Self::UnicodeString
                | Self::DollarString
                | Self::BitString
                | Self::HexString
        )
    }

    /// Whether it is an identifier of any spelling (keywords included).
    pub fn is_identifier(self) -> bool {
        matches!(self, Self::Word | Self::QuotedIdentifier | Self::UnicodeIdentifier)
    }
}

/// One token: its kind and where it stands, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Offset of its first byte.
    pub start: usize,
    /// Offset behind its last byte.
    pub end: usize,
}

impl Token {
    /// Its bytes in `text`, the text that it was read from.
    pub fn bytes(self, text: &[u8]) -> &[u8] {
        text.get(self.start..self.end).unwrap_or_default()
    }

    /// Whether it is the unquoted word `keyword` (given in lower case) in any case.
    pub fn is_word(self, text: &[u8], keyword: &str) -> bool {
        self.kind == TokenKind::Word && self.bytes(text).eq_ignore_ascii_case(keyword.as_bytes())
    }

    /// Whether it is that one punctuation byte.
    pub fn is_punctuation(self, text: &[u8], byte: u8) -> bool {
        self.kind == TokenKind::Punctuation && self.bytes(text) == [byte]
    }
}

/// Yields the tokens of a text in order, blanks included; the spans follow each other without gaps.
#[derive(Debug, Clone)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    standard_conforming_strings: bool,
}

impl<'a> Lexer<'a> {
    /// A lexer at the start of `text`. `standard_conforming_strings` is the session's setting of that name.
    pub fn new(text: &'a [u8], standard_conforming_strings: bool) -> Self {
        Self { text, at: 0, standard_conforming_strings }
    }

    /// Where the next token starts.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Passes over tokens that were read by other means.
    pub(super) fn advance_to(&mut self, at: usize) {
        self.at = at;
    }

    /// The same tokens without blanks.
    pub fn significant(self) -> impl Iterator<Item = Token> + 'a {
        self.filter(|token| !token.kind.is_blank())
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.text.get(self.at + offset).copied()
    }

    fn token_at(&self, first: u8) -> (TokenKind, usize) {
        use TokenKind::*;
        let text = self.text;
        let at = self.at;
        match first {
            b if is_space(b) => (Whitespace, skip_while(text, at, is_space)),
            b'-' if self.byte(1) == Some(b'-') => (Comment, line_end(text, at)),
            b'/' if self.byte(1) == Some(b'*') => match block_comment(text, at) {
                Some(end) => (Comment, end),
                None => (Invalid, text.len()),
            },
            b'\'' if self.standard_conforming_strings => self.string(at + 1, String),
            b'\'' => self.string(at + 1, EscapeString),
            b'e' | b'E' if self.byte(1) == Some(b'\'') => self.string(at + 2, EscapeString),
            b'b' | b'B' if self.byte(1) == Some(b'\'') => self.string(at + 2, BitString),
            b'x' | b'X' if self.byte(1) == Some(b'\'') => self.string(at + 2, HexString),
            b'u' | b'U' if self.byte(1) == Some(b'&') && self.byte(2) == Some(b'\'') => {
                self.string(at + 3, UnicodeString)
            }
            b'u' | b'U' if self.byte(1) == Some(b'&') && self.byte(2) == Some(b'"') => {
                ended(UnicodeIdentifier, quoted(text, at + 3, b'"', false), text)
            }
            b'"' => ended(QuotedIdentifier, quoted(text, at + 1, b'"', false), text),
            b if is_identifier_start(b) => (Word, skip_while(text, at, is_identifier_part)),
            b'0'..=b'9' => (Number, number(text, at)),
            b'.' => match self.byte(1) {
                Some(b'0'..=b'9') => (Number, number(text, at)),
                Some(b'.') => (DotDot, at + 2),
                _ => (Punctuation, at + 1),
            },
            b'$' => self.dollar(),
            b':' => match self.byte(1) {
                Some(b':') => (DoubleColon, at + 2),
                Some(b'=') => (ColonEquals, at + 2),
                _ => (Punctuation, at + 1),
            },
            b'(' | b')' | b'[' | b']' | b',' | b';' => (Punctuation, at + 1),
            b if is_operator(b) => (Operator, operator(text, at)),
            _ => (Invalid, at + 1),
        }
    }

    /// The end of a string constant whose text starts at `from`, its continuations on later lines included.
    fn string(&self, from: usize, kind: TokenKind) -> (TokenKind, usize) {
        let mut from = from;
        loop {
            let end = match kind {
                TokenKind::EscapeString => quoted(self.text, from, b'\'', true),
                TokenKind::BitString | TokenKind::HexString => find(self.text, from, b'\'').map(|quote| quote + 1),
                _ => quoted(self.text, from, b'\'', false),
            };
            let Some(end) = end else { return (TokenKind::Invalid, self.text.len()) };
            match continuation(self.text, end) {
                Some(next) => from = next,
                None => return (kind, end),
            }
        }
    }

    /// `$1`, `$tag$...$tag$`, or a lone `$`.
    fn dollar(&self) -> (TokenKind, usize) {
        let (text, at) = (self.text, self.at);
        match self.byte(1) {
            Some(b'0'..=b'9') => {
                return (TokenKind::Parameter, skip_while(text, at + 1, |b| b.is_ascii_digit()));
            }
            Some(b) if b == b'$' || is_identifier_start(b) => {}
            _ => return (TokenKind::Invalid, at + 1),
        }
        let tag_end = skip_while(text, at + 1, |b| is_identifier_start(b) || b.is_ascii_digit());
        if text.get(tag_end) != Some(&b'$') {
            return (TokenKind::Invalid, at + 1);
        }
        let delimiter = text.get(at..=tag_end).unwrap_or_default();
        match find_bytes(text, tag_end + 1, delimiter) {
            Some(found) => (TokenKind::DollarString, found + delimiter.len()),
            None => (TokenKind::Invalid, text.len()),
        }
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let first = self.byte(0)?;
        let start = self.at;
        let (kind, end) = self.token_at(first);
        self.at = end;
        Some(Token { kind, start, end })
    }
}

const SPACE: u8 = 1;
const IDENTIFIER_START: u8 = 2;
const IDENTIFIER_PART: u8 = 4;
const OPERATOR: u8 = 8;

/// What each byte may be: one look instead of a chain of comparisons, since every statement passes here.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        // PostgreSQL's `space`: `\v` joined it in version 16, and is an error before.
        if matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c) {
            classes[byte] |= SPACE;
        }
        if b.is_ascii_alphabetic() || b == b'_' || b >= 0x80 {
            classes[byte] |= IDENTIFIER_START | IDENTIFIER_PART;
        }
        if b.is_ascii_digit() || b == b'$' {
            classes[byte] |= IDENTIFIER_PART;
        }
        if matches!(
            b,
            b'~' | b'!'
                | b'@'
                | b'#'
                | b'^'
                | b'&'
                | b'|'
                | b'`'
                | b'?'
                | b'+'
                | b'-'
                | b'*'
                | b'/'
                | b'%'
                | b'<'
                | b'>'
                | b'='
        ) {
            classes[byte] |= OPERATOR;
        }
        byte += 1;
    }
    classes
};

const fn is(byte: u8, class: u8) -> bool {
    CLASSES[byte as usize] & class != 0
}

pub(super) const fn is_space(byte: u8) -> bool {
    is(byte, SPACE)
}

pub(super) const fn is_identifier_start(byte: u8) -> bool {
    is(byte, IDENTIFIER_START)
}

pub(super) const fn is_identifier_part(byte: u8) -> bool {
    is(byte, IDENTIFIER_PART)
}

pub(super) const fn is_operator(byte: u8) -> bool {
    is(byte, OPERATOR)
}

fn skip_while(text: &[u8], from: usize, accept: impl Fn(u8) -> bool) -> usize {
    text.iter().skip(from).position(|&byte| !accept(byte)).map_or(text.len(), |found| from + found)
}

fn find(text: &[u8], from: usize, byte: u8) -> Option<usize> {
    text.get(from..)?.iter().position(|&b| b == byte).map(|found| from + found)
}

fn find_bytes(text: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
    let mut at = from;
    while let Some(dollar) = find(text, at, b'$') {
        if text.get(dollar..)?.starts_with(needle) {
            return Some(dollar);
        }
        at = dollar + 1;
    }
    None
}

/// The offset of the line's end (not included), or of the text's.
fn line_end(text: &[u8], from: usize) -> usize {
    skip_while(text, from, |byte| byte != b'\n' && byte != b'\r')
}

fn block_comment(text: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = from;
    loop {
        match text.get(at..)? {
            [b'/', b'*', ..] => {
                depth += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Some(at);
                }
            }
            [] => return None,
            _ => at += 1,
        }
    }
}

/// The offset behind the closing quote of a quoted text that starts at `from`; a doubled quote does not close.
fn quoted(text: &[u8], from: usize, quote: u8, backslash: bool) -> Option<usize> {
    let mut at = from;
    loop {
        match *text.get(at)? {
            b'\\' if backslash => at += 2,
            byte if byte == quote => {
                if text.get(at + 1) == Some(&quote) {
                    at += 2;
                } else {
                    return Some(at + 1);
                }
            }
            _ => at += 1,
        }
    }
}

fn ended(kind: TokenKind, end: Option<usize>, text: &[u8]) -> (TokenKind, usize) {
    match end {
        Some(end) => (kind, end),
        None => (TokenKind::Invalid, text.len()),
    }
}

/// Where the text of a continued constant goes on: PostgreSQL joins `'a'` newline `'b'`, with `--` comments between.
pub(super) fn continuation(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    let mut newline = false;
    loop {
        match *text.get(at)? {
            b'\n' | b'\r' => {
                newline = true;
                at += 1;
            }
            byte if is_space(byte) => at += 1,
            b'-' if text.get(at + 1) == Some(&b'-') => at = line_end(text, at),
            b'\'' if newline => return Some(at + 1),
            _ => return None,
        }
    }
}

fn digits(text: &[u8], from: usize, accept: impl Fn(u8) -> bool) -> usize {
    let mut at = from;
    loop {
        match (text.get(at), text.get(at + 1)) {
            (Some(&byte), _) if accept(byte) => at += 1,
            (Some(b'_'), Some(&byte)) if accept(byte) && at > from => at += 1,
            _ => return at,
        }
    }
}

fn number(text: &[u8], from: usize) -> usize {
    let radix: Option<fn(u8) -> bool> = match (text.get(from), text.get(from + 1)) {
        (Some(b'0'), Some(b'x' | b'X')) => Some(|b: u8| b.is_ascii_hexdigit()),
        (Some(b'0'), Some(b'o' | b'O')) => Some(|b: u8| matches!(b, b'0'..=b'7')),
        (Some(b'0'), Some(b'b' | b'B')) => Some(|b: u8| matches!(b, b'0' | b'1')),
        _ => None,
    };
    if let Some(accept) = radix {
        // `0x_1F` is allowed: an underscore may follow the prefix.
        let body = if text.get(from + 2) == Some(&b'_') { from + 3 } else { from + 2 };
        let end = digits(text, body, accept);
        if end > body {
            return end;
        }
    }
    let decimal = |byte: u8| byte.is_ascii_digit();
    let mut at = digits(text, from, decimal);
    // `1..2` is an integer and two dots; a dot alone belongs to the number, with or without digits behind it.
    if text.get(at) == Some(&b'.') && text.get(at + 1) != Some(&b'.') {
        at = digits(text, at + 1, decimal);
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let end = digits(text, at + 1 + sign, decimal);
        if end > at + 1 + sign {
            at = end;
        }
    }
    at
}

/// An operator's end: the longest run, cut before a comment, and without trailing `+ -` unless a character allows them.
fn operator(text: &[u8], from: usize) -> usize {
    let run = skip_while(text, from, is_operator);
    let mut end = run;
    for at in from..run {
        if matches!(text.get(at..at + 2), Some(b"--" | b"/*")) && at > from {
            end = at;
            break;
        }
    }
    let free = text.get(from..end).unwrap_or_default().iter().any(|byte| b"~!@#^&|`?%".contains(byte));
    while !free && end - from > 1 && matches!(text.get(end - 1), Some(b'+' | b'-')) {
        end -= 1;
    }
    end
}

#[cfg(test)]
#[path = "lexer_tests.rs"]
mod tests;
