//! A 128-bit identity of a statement's text with its literals left out.

use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use super::facts::Hint;
use super::hint;
use super::lexer::{Lexer, Token, TokenKind, is_identifier_part, is_identifier_start, is_operator, is_space};

/// Same for texts that differ only in literals, comments and white space. XXH3-128 over the lexer's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u128);

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The fingerprint of `text` as a session with that `standard_conforming_strings` reads it. The same in every process.
pub fn fingerprint(text: &[u8], standard_conforming_strings: bool) -> Fingerprint {
    Fingerprint(normalized(text, standard_conforming_strings, 0).0)
}

/// The seeded hash of the normalized tokens, and the hint found in a comment on the way.
///
/// The memo hashes with a seed of its process, so that nobody can prepare two texts that share an entry.
pub(super) fn normalized(text: &[u8], standard_conforming_strings: bool, seed: u64) -> (u128, Hint) {
    let mut sink = Sink { buffer: [0; BUFFER_BYTES], used: 0, seed, overflow: None };
    let mut found = Hint::default();
    let mut lexer = Lexer::new(text, standard_conforming_strings);
    loop {
        lexer.advance_to(sink.plain_tokens(text, lexer.at()));
        let Some(token) = lexer.next() else { break };
        match token.kind {
            TokenKind::Whitespace => {}
            TokenKind::Comment => hint::read(token.bytes(text), &mut found),
            _ => sink.token(token, text),
        }
    }
    (sink.finish(), found)
}

/// Holds what pgbench or an ORM sends whole, so that one call hashes it.
const BUFFER_BYTES: usize = 512;

/// Tokens on their way to the hash: a kind byte, the text where it counts, and a NUL, which no token holds.
struct Sink {
    buffer: [u8; BUFFER_BYTES],
    used: usize,
    seed: u64,
    overflow: Option<Box<Xxh3>>,
}

/// A byte of an unquoted word, folded as the fingerprint keeps it; 0 for every other byte.
const FOLDED: [u8; 256] = {
    let mut folded = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        if is_identifier_part(byte as u8) {
            folded[byte] = (byte as u8).to_ascii_lowercase();
        }
        byte += 1;
    }
    folded
};

/// Bytes that end a run of digits for certain: no number goes on with them.
fn ends_number(byte: Option<&u8>) -> bool {
    byte.is_none_or(|&byte| FOLDED[usize::from(byte)] == 0 && byte != b'.')
}

/// Whether that byte is a token of its own, whatever stands before it.
fn is_one_sign(byte: u8, next: Option<&u8>) -> bool {
    match byte {
        b'(' | b')' | b',' | b';' | b'[' | b']' => true,
        // `.5` is a number and `..` one token.
        b'.' => next.is_some_and(|&next| is_identifier_start(next)),
        _ => is_operator(byte) && !next.is_some_and(|&next| is_operator(next)),
    }
}

impl Sink {
    /// Takes the tokens from `at` on that can be told at one look (words, decimal integers, single signs, spaces) as
    /// [`Lexer`] would read them, and returns where it stopped: at the text's end, or at a token that needs the lexer.
    fn plain_tokens(&mut self, text: &[u8], mut at: usize) -> usize {
        while let Some(&first) = text.get(at) {
            if is_space(first) {
                at += 1;
            } else if is_identifier_start(first) {
                match self.word(text, at) {
                    Some(end) => at = end,
                    None => return at,
                }
            } else if is_one_sign(first, text.get(at + 1)) {
                if !self.small(&[b'o', first, 0]) {
                    return at;
                }
                at += 1;
            } else if matches!(first, b'1'..=b'9') {
                let digits = text.iter().skip(at).take_while(|byte| byte.is_ascii_digit()).count();
                if !ends_number(text.get(at + digits)) || !self.small(b"n\0") {
                    return at;
                }
                at += digits;
            } else {
                return at;
            }
        }
        at
    }

    /// Takes the word at `at`, if it is one for certain and there is room for it, and returns where it ends.
    fn word(&mut self, text: &[u8], at: usize) -> Option<usize> {
        let room = self.buffer.get_mut(self.used..)?;
        let (marker, room) = room.split_first_mut()?;
        let mut len = 0;
        for (&byte, slot) in text.get(at..)?.iter().zip(&mut *room) {
            *slot = FOLDED[usize::from(byte)];
            if *slot == 0 {
                break;
            }
            len += 1;
        }
        // `E'...'`, `B'...'`, `X'...'`, `U&'...'` and `U&"..."` begin with a letter.
        if matches!(text.get(at + len), Some(b'\'' | b'&')) {
            return None;
        }
        *room.get_mut(len)? = 0;
        *marker = b'w';
        self.used += len + 2;
        Some(at + len)
    }

    fn small(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.buffer.get_mut(self.used..self.used + bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.used += bytes.len();
        true
    }

    fn token(&mut self, token: Token, text: &[u8]) {
        let marker = match token.kind {
            TokenKind::Word => b'w',
            TokenKind::QuotedIdentifier => b'q',
            TokenKind::UnicodeIdentifier => b'u',
            TokenKind::Parameter => b'p',
            TokenKind::Number => b'n',
            TokenKind::String | TokenKind::EscapeString | TokenKind::UnicodeString | TokenKind::DollarString => b's',
            TokenKind::BitString => b'b',
            TokenKind::HexString => b'x',
            _ => b'o',
        };
        let kept = match marker {
            b'n' | b's' | b'b' | b'x' => &[][..],
            _ => token.bytes(text),
        };
        let from = self.used;
        match self.buffer.get_mut(from..from + kept.len() + 2) {
            Some([first, middle @ .., last]) => {
                *first = marker;
                middle.copy_from_slice(kept);
                if marker == b'w' {
                    middle.make_ascii_lowercase();
                }
                *last = 0;
                self.used = from + kept.len() + 2;
            }
            _ => {
                let fold = |byte: &u8| if marker == b'w' { byte.to_ascii_lowercase() } else { *byte };
                self.push(marker);
                kept.iter().map(fold).for_each(|byte| self.push(byte));
                self.push(0);
            }
        }
    }

    fn push(&mut self, byte: u8) {
        if self.used == BUFFER_BYTES {
            let seed = self.seed;
            self.overflow.get_or_insert_with(|| Box::new(Xxh3::with_seed(seed))).update(&self.buffer);
            self.used = 0;
        }
        if let Some(slot) = self.buffer.get_mut(self.used) {
            *slot = byte;
            self.used += 1;
        }
    }

    fn finish(mut self) -> u128 {
        let rest = self.buffer.get(..self.used).unwrap_or_default();
        match &mut self.overflow {
            None => xxh3_128_with_seed(rest, self.seed),
            Some(hasher) => {
                hasher.update(rest);
                hasher.digest128()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Fingerprint {
        fingerprint(text.as_bytes(), true)
    }

    #[test]
    fn literals_comments_blanks_and_case_of_keywords_do_not_count() {
        let first = of("SELECT abalance FROM pgbench_accounts WHERE aid = 1;");
        assert_eq!(first, of("select  abalance\nfrom PGBENCH_accounts /* hello */ where aid=12345 ; -- end"));
        assert_eq!(of("select 'a'"), of("select E'b\\''"));
        assert_eq!(of("select $$a$$"), of("select 'b'"));
    }

    #[test]
    fn what_changes_the_meaning_changes_the_fingerprint() {
        let texts = [
            "select a from t",
            "select \"A\" from t",
            "select \"a\" from t",
            "select a from t2",
            "select a, b from t",
            "select a b from t",
            "select ab from t",
            "select 'a' from t",
            "select 1 from t",
            "select $1 from t",
            "select $2 from t",
            "select $1$2 from t",
            "select b'1' from t",
            "select x'1' from t",
            "select a + b from t",
            "select a - b from t",
            "select a from t; delete from t",
            "select a from t;",
            "select null from t",
            "select true from t",
            "",
        ];
        for (i, a) in texts.iter().enumerate() {
            for b in &texts[..i] {
                assert_ne!(of(a), of(b), "{a} / {b}");
            }
        }
    }

    /// By the lexer alone.
    fn token_by_token(text: &[u8], standard_conforming_strings: bool) -> u128 {
        let mut sink = Sink { buffer: [0; BUFFER_BYTES], used: 0, seed: 0, overflow: None };
        Lexer::new(text, standard_conforming_strings).significant().for_each(|token| sink.token(token, text));
        sink.finish()
    }

    proptest::proptest! {
        #[test]
        fn what_is_read_at_one_look_is_what_the_lexer_reads(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "select", "E", "e", "n", "U&", "u", "b", "x", "'", "''", "a'b", "\"", "\"t\"", "$1", "$$", "$a$", "1", "12", "0x1F", "1.5", "1e3", "1_0",
                    "1e", ".", "..", ".5", ":", "::", ":=", "-", "--", "/*", "*/", "/", "*", "+", "=", "<", ">=", "@-", "(", ")", ",", ";", "[", "]",
                    " ", "\n", "\t", "\\", "é", "_a$1", "\u{0}", "{",
                ]),
                0..30,
            ),
            on in proptest::bool::ANY,
        ) {
            let text = parts.concat();
            proptest::prop_assert_eq!(fingerprint(text.as_bytes(), on).0, token_by_token(text.as_bytes(), on));
        }
    }

    #[test]
    fn words_at_the_end_of_the_buffer_hash_like_any_other() {
        for len in BUFFER_BYTES - 20..BUFFER_BYTES + 20 {
            let text = format!("select {} from t", "c".repeat(len));
            assert_eq!(of(&text).0, token_by_token(text.as_bytes(), true), "{len}");
        }
    }

    #[test]
    fn texts_longer_than_the_buffer_hash_like_short_ones() {
        let long = format!("select {} from t", vec!["columns"; 500].join(", "));
        assert_eq!(of(&long), of(&long.replace(", ", "\n,\t")));
        assert_ne!(of(&long), of(&long.replacen("columns", "column", 1)));
    }

    #[test]
    fn standard_conforming_strings_decides_where_a_string_ends() {
        let text = br"select 'a\' or 'b'";
        assert_ne!(fingerprint(text, true), fingerprint(text, false));
    }
}
