//! Arrays of one dimension as PostgreSQL writes them (manual, 8.15.6) and sends them (`array_send`).

use super::constant::Constant;
use crate::plan::value::{Kind, Value};

/// Elements at most: a longer list is no constant to look at one by one.
const MOST_ELEMENTS: usize = 65_536;

/// The elements of an array's text form, `None` among them for NULL; `None` for bounds, nested arrays and what is malformed.
pub(super) fn parse(text: &str) -> Option<Vec<Option<String>>> {
    let inner = text.trim_ascii().strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    if inner.trim_ascii().is_empty() {
        return Some(elements);
    }
    let mut rest = inner.chars().peekable();
    loop {
        while rest.next_if(char::is_ascii_whitespace).is_some() {}
        let (mut element, mut is_quoted) = (String::new(), false);
        if rest.next_if_eq(&'"').is_some() {
            is_quoted = true;
            loop {
                match rest.next()? {
                    '"' => break,
                    '\\' => element.push(rest.next()?),
                    other => element.push(other),
                }
            }
            while rest.next_if(char::is_ascii_whitespace).is_some() {}
        } else {
            while let Some(&next) = rest.peek() {
                match next {
                    ',' => break,
                    '{' | '}' | '"' => return None,
                    '\\' => {
                        // An escaped blank at the end would be kept: rare enough to be left to the servers.
                        return None;
                    }
                    other => element.push(other),
                }
                rest.next();
            }
            element.truncate(element.trim_ascii_end().len());
            if element.is_empty() {
                return None;
            }
        }
        let is_null = !is_quoted && element.eq_ignore_ascii_case("null");
        elements.push(Some(element).filter(|_| !is_null));
        if elements.len() > MOST_ELEMENTS {
            return None;
        }
        match rest.next() {
            None => return Some(elements),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

/// The elements of an array's binary form.
pub(super) fn from_binary(bytes: &[u8], kind: Kind) -> Option<Vec<Constant>> {
    let mut rest = bytes;
    let mut int = || {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        Some(i32::from_be_bytes(*head))
    };
    let (dimensions, _, oid) = (int()?, int()?, int()?);
    if dimensions == 0 {
        return Some(Vec::new());
    }
    let named = Kind::of(u32::try_from(oid).ok()?)?;
    let (count, _) = (usize::try_from(int()?).ok()?, int()?);
    if dimensions != 1 || named != kind || count > MOST_ELEMENTS {
        return None;
    }
    let mut elements = Vec::with_capacity(count.min(rest.len()));
    for _ in 0..count {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        match usize::try_from(i32::from_be_bytes(*head)) {
            Err(_) => elements.push(None),
            Ok(len) => {
                let (value, tail) = rest.split_at_checked(len)?;
                rest = tail;
                elements.push(Some(Value::from_binary(kind, value)?));
            }
        }
    }
    rest.is_empty().then_some(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_as_postgresql_cuts_them() {
        let some = |texts: &[&str]| Some(texts.iter().map(|text| Some((*text).to_owned())).collect::<Vec<_>>());
        assert_eq!(parse("{}"), some(&[]));
        assert_eq!(parse(" { 1, 2 ,3} "), some(&["1", "2", "3"]));
        assert_eq!(parse(r#"{"a,b", "\"x\\", c d ,"null",""}"#), some(&["a,b", "\"x\\", "c d", "null", ""]));
        assert_eq!(parse("{NULL,1,null}"), Some(vec![None, Some("1".into()), None]));
        for text in ["", "1", "{1", "{1,}", "{,}", "{{1},{2}}", "[0:1]={1,2}", "{a\"b}", "{\"a\"b}", "{\"a}", r"{a\ }"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn binary_arrays_are_read_to_their_end_or_not_at_all() {
        let mut bytes: Vec<u8> = [1_i32, 1, 23, 2, 1, 4, 7, -1].iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(from_binary(&bytes, Kind::Int4), Some(vec![Some(Value::Int(7)), None]));
        assert_eq!(from_binary(&bytes, Kind::Int8), None);
        bytes.push(0);
        assert_eq!(from_binary(&bytes, Kind::Int4), None);
        for len in 0..bytes.len() - 1 {
            assert_eq!(from_binary(&bytes[..len], Kind::Int4), None, "{len}");
        }
        assert_eq!(from_binary(&[0; 12], Kind::Int4), Some(Vec::new()));
        let huge: Vec<u8> = [1_i32, 0, 23, i32::MAX, 1].iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(from_binary(&huge, Kind::Int4), None);
    }
}
