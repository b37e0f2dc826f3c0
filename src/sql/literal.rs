//! What a token stands for: identifiers folded and unquoted, string constants decoded (PostgreSQL manual 4.1).

use std::borrow::Cow;

use super::lexer::{Token, TokenKind, continuation};

/// The identifier's name as PostgreSQL stores it: unquoted ones in lower case (ASCII only), quoted ones as written.
///
/// `None` for a token that is no identifier, or for `U&"..."` with an escape that PostgreSQL refuses.
pub fn identifier(token: Token, text: &[u8]) -> Option<String> {
    let bytes = token.bytes(text);
    match token.kind {
        TokenKind::Word => Some(String::from_utf8_lossy(&bytes.to_ascii_lowercase()).into_owned()),
        TokenKind::QuotedIdentifier => Some(undouble(bytes.get(1..bytes.len() - 1)?, b'"')),
        TokenKind::UnicodeIdentifier => unicode(&undouble(bytes.get(3..bytes.len() - 1)?, b'"')),
        _ => None,
    }
}

/// A string constant's value, its continuations joined. `None` for a token that is no string, or one that PostgreSQL refuses.
pub fn string(token: Token, text: &[u8]) -> Option<String> {
    let bytes = token.bytes(text);
    match token.kind {
        TokenKind::DollarString => {
            let tag = bytes.iter().skip(1).position(|&byte| byte == b'$')? + 2;
            Some(lossy(bytes.get(tag..bytes.len().checked_sub(tag)?)?).into_owned())
        }
        TokenKind::String => Some(undouble(&joined(bytes, 1, false), b'\'')),
        TokenKind::BitString | TokenKind::HexString => Some(lossy(&joined(bytes, 2, false)).into_owned()),
        TokenKind::UnicodeString => unicode(&undouble(&joined(bytes, 3, false), b'\'')),
        TokenKind::EscapeString => {
            let prefix = if bytes.first() == Some(&b'\'') { 1 } else { 2 };
            unescape(&joined(bytes, prefix, true))
        }
        _ => None,
    }
}

fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn undouble(bytes: &[u8], quote: u8) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut doubled = false;
    for &byte in bytes {
        doubled = byte == quote && !doubled;
        if !doubled {
            out.push(byte);
        }
    }
    lossy(&out).into_owned()
}

/// The inner text of a quoted constant with the gaps of its continuations left out; quotes stay doubled.
fn joined(bytes: &[u8], prefix: usize, backslash: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = prefix;
    while let Some(&byte) = bytes.get(at) {
        match (byte, bytes.get(at + 1)) {
            (b'\\', Some(&next)) if backslash => {
                out.extend_from_slice(&[b'\\', next]);
                at += 2;
            }
            (b'\'', Some(b'\'')) => {
                out.extend_from_slice(b"''");
                at += 2;
            }
            (b'\'', _) => match continuation(bytes, at + 1) {
                Some(next) => at = next,
                None => break,
            },
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// `\XXXX` and `\+XXXXXX`, with surrogate pairs; `\\` is a backslash.
fn unicode(text: &str) -> Option<String> {
    let mut units = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(found) = rest.find('\\') {
        units.extend(rest.get(..found)?.encode_utf16());
        rest = rest.get(found + 1..)?;
        if let Some(after) = rest.strip_prefix('\\') {
            units.push(u16::from(b'\\'));
            rest = after;
            continue;
        }
        let (digits, skip) = if rest.starts_with('+') { (rest.get(1..7)?, 7) } else { (rest.get(..4)?, 4) };
        let value = u32::from_str_radix(digits, 16).ok()?;
        match char::from_u32(value) {
            Some(c) => units.extend(c.encode_utf16(&mut [0; 2]).iter()),
            None => units.push(u16::try_from(value).ok()?),
        }
        rest = rest.get(skip..)?;
    }
    units.extend(rest.encode_utf16());
    String::from_utf16(&units).ok()
}

/// `E'...'`'s escapes; a doubled quote is one quote.
fn unescape(bytes: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\'' => {
                out.push(b'\'');
                at += 1;
            }
            b'\\' => at += escape(bytes.get(at..)?, &mut out)?,
            _ => out.push(byte),
        }
    }
    Some(lossy(&out).into_owned())
}

/// One escape behind its backslash; returns how many bytes it took.
fn escape(rest: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let first = *rest.first()?;
    let plain = match first {
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 11,
        b'0'..=b'7' => {
            let (value, taken) = radix(rest, 8, 3);
            out.push((value & 0xff) as u8);
            return Some(taken);
        }
        b'x' if rest.get(1).is_some_and(u8::is_ascii_hexdigit) => {
            let (value, taken) = radix(rest.get(1..)?, 16, 2);
            out.push((value & 0xff) as u8);
            return Some(taken + 1);
        }
        b'u' | b'U' => {
            let width = if first == b'u' { 4 } else { 8 };
            let (value, taken) = radix(rest.get(1..)?, 16, width);
            // A surrogate pair is rare enough to give up on: the value is then unknown, which is safe.
            let c = char::from_u32(value).filter(|_| taken == width)?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(taken + 1);
        }
        other => other,
    };
    out.push(plain);
    Some(1)
}

fn radix(bytes: &[u8], base: u32, width: usize) -> (u32, usize) {
    let mut value = 0_u32;
    let mut taken = 0;
    for digit in bytes.iter().take(width).map_while(|&byte| char::from(byte).to_digit(base)) {
        value = value.wrapping_mul(base).wrapping_add(digit);
        taken += 1;
    }
    (value, taken)
}

#[cfg(test)]
mod tests {
    use super::super::lexer::Lexer;
    use super::*;

    fn only(text: &str) -> Token {
        Lexer::new(text.as_bytes(), true).significant().next().expect("a token")
    }

    #[test]
    fn strings_decode_as_postgresql_decodes_them() {
        for (text, value) in [
            ("'it''s'", "it's"),
            (r"'a\n'", r"a\n"),
            (r"E'a\'b\n\x41\101\u00e9'''", "a'b\nAA\u{e9}'"),
            ("$tag$ it's $$ $tag$", " it's $$ "),
            (r"U&'d\0061t\+000061 \\ \D83D\DE00'", "data \\ \u{1f600}"),
            ("'a'\n 'b'", "ab"),
            ("E'a\\''\n'b'", "a'b"),
            ("x'1F'", "1F"),
        ] {
            assert_eq!(string(only(text), text.as_bytes()).as_deref(), Some(value), "{text}");
        }
        assert_eq!(string(only(r"U&'\00'"), br"U&'\00'"), None);
    }

    #[test]
    fn identifiers_fold_in_ascii_only() {
        for (text, name) in [("FooÄ", "fooÄ"), ("\"Foo\"\"x\"", "Foo\"x"), (r#"U&"d\0061ta""#, "data")] {
            assert_eq!(identifier(only(text), text.as_bytes()).as_deref(), Some(name), "{text}");
        }
        assert_eq!(identifier(only("'x'"), b"'x'"), None);
    }
}
