//! One line of a transcript: a message to send, a wait for answers, or another session's turn.

use bytes::{BufMut, BytesMut};
use pgherd::wire::writer;

/// What one line asks for.
#[derive(Debug)]
pub(super) enum Step {
    /// The lines below are another session's; parameters open it in that way.
    Session { name: String, parameters: Vec<(String, String)> },
    /// A message is queued.
    Send(Vec<u8>),
    /// What is queued goes out, and answers are read up to each of those tags.
    Read(Vec<u8>),
    /// What is queued goes out.
    Go,
    /// A CancelRequest for that session.
    Cancel(String),
    /// The connection is dropped without Terminate.
    Drop,
}

impl Step {
    pub(super) fn read(line: &str) -> Result<Self, String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if let Some(name) = word.strip_prefix('@') {
            return session(name, rest);
        }
        match word {
            "<" => Ok(Self::Read(rest.split_whitespace().map(|tag| tag.as_bytes()[0]).collect())),
            ">" => Ok(Self::Go),
            "cancel" => Ok(Self::Cancel(rest.trim().to_owned())),
            "drop" => Ok(Self::Drop),
            _ => message(word, rest).map(|out| Self::Send(out.to_vec())),
        }
    }
}

fn session(name: &str, rest: &str) -> Result<Step, String> {
    let mut parameters = Vec::new();
    for part in rest.split('|').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is not key=value"))?;
        parameters.push((key.to_owned(), value.to_owned()));
    }
    Ok(Step::Session { name: name.to_owned(), parameters })
}

fn message(tag: &str, rest: &str) -> Result<BytesMut, String> {
    let parts: Vec<&str> = rest.split('|').map(|part| part.trim().trim_matches('"')).collect();
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let mut buffer = BytesMut::new();
    let out = &mut buffer;
    match tag {
        "Q" => writer::query(out, rest.as_bytes()),
        "P" => {
            let oids: Result<Vec<u32>, _> = part(2).split_whitespace().map(str::parse).collect();
            writer::parse(out, part(0).as_bytes(), part(1).as_bytes(), &oids.map_err(|_| "a type is an OID")?);
        }
        "B" => bind(out, &parts)?,
        "DS" => writer::describe(out, b'S', part(0).as_bytes()),
        "DP" => writer::describe(out, b'P', part(0).as_bytes()),
        "CS" => writer::close(out, b'S', part(0).as_bytes()),
        "CP" => writer::close(out, b'P', part(0).as_bytes()),
        "E" => writer::execute(out, part(0).as_bytes(), part(1).parse().unwrap_or(0)),
        "S" => writer::sync(out),
        "H" => writer::flush(out),
        "d" => writer::message(out, b'd', |out| {
            out.extend_from_slice(rest.replace("\\n", "\n").replace("\\t", "\t").as_bytes());
        }),
        "c" => writer::message(out, b'c', |_| {}),
        "f" => writer::message(out, b'f', |out| writer::cstr(out, rest.as_bytes())),
        "p" => writer::message(out, b'p', |out| writer::cstr(out, rest.as_bytes())),
        "F" => call(out, &parts)?,
        "X" => writer::terminate(out),
        "raw" => out.extend_from_slice(&hex(rest)?),
        other => return Err(format!("unknown step {other:?}")),
    }
    Ok(buffer)
}

/// `portal | statement | values | result formats | parameter formats`
fn bind(out: &mut BytesMut, parts: &[&str]) -> Result<(), String> {
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let values: Vec<Option<Vec<u8>>> = part(2).split_whitespace().map(value).collect::<Result<_, _>>()?;
    let (results, given) = (formats(part(3))?, formats(part(4))?);
    writer::message(out, b'B', |out| {
        writer::cstr(out, part(0).as_bytes());
        writer::cstr(out, part(1).as_bytes());
        put_formats(out, &given);
        put_values(out, &values);
        put_formats(out, &results);
    });
    Ok(())
}

/// `oid | values | result format | parameter formats`
fn call(out: &mut BytesMut, parts: &[&str]) -> Result<(), String> {
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let oid: u32 = part(0).parse().map_err(|_| "a function is an OID")?;
    let values: Vec<Option<Vec<u8>>> = part(1).split_whitespace().map(value).collect::<Result<_, _>>()?;
    let (result, given) = (formats(part(2))?, formats(part(3))?);
    writer::message(out, b'F', |out| {
        out.put_u32(oid);
        put_formats(out, &given);
        put_values(out, &values);
        out.put_i16(result.first().copied().unwrap_or(0));
    });
    Ok(())
}

fn value(word: &str) -> Result<Option<Vec<u8>>, String> {
    Ok(match word {
        "NULL" => None,
        "EMPTY" => Some(Vec::new()),
        "LARGE" => Some(vec![b'x'; 600_000]),
        _ => match word.strip_prefix("\\x") {
            Some(digits) => Some(hex(digits)?),
            None => Some(word.as_bytes().to_vec()),
        },
    })
}

fn formats(words: &str) -> Result<Vec<i16>, String> {
    words.split_whitespace().map(|word| word.parse().map_err(|_| format!("{word:?} is no format"))).collect()
}

fn put_formats(out: &mut BytesMut, formats: &[i16]) {
    out.put_i16(i16::try_from(formats.len()).expect("few"));
    formats.iter().for_each(|&format| out.put_i16(format));
}

fn put_values(out: &mut BytesMut, values: &[Option<Vec<u8>>]) {
    out.put_i16(i16::try_from(values.len()).expect("few"));
    for value in values {
        out.put_i32(value.as_ref().map_or(-1, |bytes| i32::try_from(bytes.len()).expect("short")));
        out.put_slice(value.as_deref().unwrap_or_default());
    }
}

fn hex(digits: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<char> = digits.chars().filter(|digit| !digit.is_whitespace()).collect();
    let byte = |pair: &[char]| {
        u8::from_str_radix(&pair.iter().collect::<String>(), 16).map_err(|_| "not hexadecimal".to_owned())
    };
    digits.chunks(2).map(byte).collect()
}
