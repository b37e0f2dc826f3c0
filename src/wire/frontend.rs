//! Reading the frontend messages whose content steers pgherd. Every body must end exactly where its fields end.

use super::frame::Body;

/// A message body that its type does not allow; the text says what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// `Parse`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parse<'a> {
    /// The statement's name; empty is the unnamed one.
    pub name: &'a [u8],
    /// Its text.
    pub text: &'a [u8],
    /// Declared parameter types; 0 is unspecified, which `unknown` is too.
    pub types: Vec<u32>,
}

/// The type of a literal that has none yet (`pg_type`).
const UNKNOWN: u32 = 705;

/// `Bind`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind<'a> {
    /// The portal's name; empty is the unnamed one.
    pub portal: &'a [u8],
    /// The statement's name; empty is the unnamed one.
    pub statement: &'a [u8],
    /// Format codes of the parameters: none, one for all, or one each.
    pub formats: Vec<i16>,
    /// Parameter values; `None` is NULL.
    pub values: Vec<Option<&'a [u8]>>,
    /// Format codes of the result columns: none, one for all, or one each.
    pub result_formats: Vec<i16>,
}

/// `Describe` or `Close`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Whether it speaks of a portal (`P`) or a statement (`S`).
    pub is_portal: bool,
    /// The name.
    pub name: &'a [u8],
}

/// `Execute`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execute<'a> {
    /// The portal's name.
    pub portal: &'a [u8],
    /// Rows at most; 0 is all.
    pub max_rows: i32,
}

fn ended<T>(body: &Body<'_>, value: T) -> Result<T, Malformed> {
    if body.rest().is_empty() { Ok(value) } else { Err(Malformed("bytes behind its last field")) }
}

fn count(body: &mut Body<'_>) -> Result<usize, Malformed> {
    let count = body.i16().ok_or(Malformed("a count is missing"))?;
    // The protocol's counts are unsigned 16-bit on servers since 7.4: up to 65,535 parameters.
    Ok(usize::from(count as u16))
}

fn text<'a>(body: &mut Body<'a>) -> Result<&'a [u8], Malformed> {
    body.cstr().ok_or(Malformed("a text has no end"))
}

/// Reads the text of a `Query`.
///
/// # Errors
/// A text without its NUL, or bytes behind it.
pub fn query(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut body = Body::new(body);
    let query = text(&mut body)?;
    ended(&body, query)
}

/// Reads a `Parse`.
///
/// # Errors
/// A field that is missing, cut short, or followed by bytes that belong to none.
pub fn parse(body: &[u8]) -> Result<Parse<'_>, Malformed> {
    let mut body = Body::new(body);
    let (name, query) = (text(&mut body)?, text(&mut body)?);
    let mut types = Vec::new();
    for _ in 0..count(&mut body)? {
        let oid = body.i32().ok_or(Malformed("a parameter type is missing"))? as u32;
        // PostgreSQL finds out what is declared as `unknown` like what is not declared.
        types.push(if oid == UNKNOWN { 0 } else { oid });
    }
    ended(&body, Parse { name, text: query, types })
}

/// Reads a `Bind`.
///
/// # Errors
/// As [`parse`]; also a format count that is neither 0, 1 nor the number of values.
pub fn bind(body: &[u8]) -> Result<Bind<'_>, Malformed> {
    let mut body = Body::new(body);
    let (portal, statement) = (text(&mut body)?, text(&mut body)?);
    let formats = formats(&mut body)?;
    let mut values = Vec::new();
    for _ in 0..count(&mut body)? {
        let len = body.i32().ok_or(Malformed("a parameter's length is missing"))?;
        values.push(match usize::try_from(len) {
            Ok(len) => Some(body.bytes(len).ok_or(Malformed("a parameter is cut short"))?),
            Err(_) if len == -1 => None,
            Err(_) => return Err(Malformed("a parameter's length is negative")),
        });
    }
    let result_formats = self::formats(&mut body)?;
    ended(&body, Bind { portal, statement, formats, values, result_formats })
}

fn formats(body: &mut Body<'_>) -> Result<Vec<i16>, Malformed> {
    let mut formats = Vec::new();
    for _ in 0..count(body)? {
        formats.push(body.i16().ok_or(Malformed("a format code is missing"))?);
    }
    Ok(formats)
}

/// Portal and statement name at the front of a `Bind`, for passing the rest on unread; `None` if they are cut short.
pub fn bind_names(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut body = Body::new(body);
    Some((body.cstr()?, body.cstr()?))
}

/// Name and text at the front of a `Parse`; `None` if they are cut short.
pub fn parse_names(body: &[u8]) -> Option<(&[u8], &[u8])> {
    bind_names(body)
}

/// Reads a `Describe` or a `Close`.
///
/// # Errors
/// As [`parse`]; also a kind that is neither `S` nor `P`.
pub fn target(body: &[u8]) -> Result<Target<'_>, Malformed> {
    let mut body = Body::new(body);
    let is_portal = match body.u8() {
        Some(b'P') => true,
        Some(b'S') => false,
        _ => return Err(Malformed("neither a statement nor a portal is named")),
    };
    let name = text(&mut body)?;
    ended(&body, Target { is_portal, name })
}

/// Reads an `Execute`.
///
/// # Errors
/// As [`parse`].
pub fn execute(body: &[u8]) -> Result<Execute<'_>, Malformed> {
    let mut body = Body::new(body);
    let portal = text(&mut body)?;
    let max_rows = body.i32().ok_or(Malformed("the row limit is missing"))?;
    ended(&body, Execute { portal, max_rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_without_its_nul_is_malformed() {
        assert_eq!(query(b"select 1"), Err(Malformed("a text has no end")));
        assert_eq!(query(b"select 1\0Q\0"), Err(Malformed("bytes behind its last field")));
        assert_eq!(query(b"select 1\0"), Ok(&b"select 1"[..]));
    }

    #[test]
    fn a_parse_without_its_type_count_is_malformed() {
        assert_eq!(parse(b"s\0select 1\0"), Err(Malformed("a count is missing")));
        let parsed = parse(b"s\0select $1\0\0\x01\0\0\0\x17").expect("valid");
        assert_eq!((parsed.name, parsed.types.as_slice()), (&b"s"[..], &[23][..]));
    }

    #[test]
    fn a_parameter_declared_as_unknown_is_not_declared() {
        let parsed = parse(b"\0select $1, $2\0\0\x02\0\0\x02\xc1\0\0\0\x19").expect("valid");
        assert_eq!(parsed.types, [0, 25]);
    }

    #[test]
    fn a_bind_keeps_null_apart_from_empty() {
        let bytes = b"\0s\0\0\0\0\x02\xff\xff\xff\xff\0\0\0\0\0\x01\0\x01";
        let bound = bind(bytes).expect("valid");
        assert_eq!(bound.values, [None, Some(&b""[..])]);
        assert_eq!(bound.result_formats, [1]);
        assert_eq!(bind(&bytes[..bytes.len() - 1]), Err(Malformed("a format code is missing")));
        assert_eq!(bind(b"\0s\0\0\0\0\x01\0\0\0\x09x"), Err(Malformed("a parameter is cut short")));
    }
}
