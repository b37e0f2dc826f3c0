//! Bytes from the network: whatever is read is written back the same, and nothing is read past its end.

use std::sync::Arc;

use bytes::BytesMut;
use pgherd::auth::scram::ScramVerifier;
use pgherd::auth::scram::client::{Binding, Proof, Start};
use pgherd::auth::scram::server::Offer;
use pgherd::exec::merge::description::Description;
use pgherd::plan::value::{Kind, Numeric, Value};
use pgherd::wire::authentication::{self, Authentication, SaslInitialResponse};
use pgherd::wire::backend::{self, BackendKeyData, ErrorFields, ParameterStatus};
use pgherd::wire::frame::{self, Frame, HEADER_LEN};
use pgherd::wire::startup::{self, StartupPacket};
use pgherd::wire::{frontend, options, writer};

pub const FRAMES: &[&[u8]] = &[
    b"Q\0\0\0\x0dselect 1\0",
    b"P\0\0\0\x15s\0select $1\0\0\x01\0\0\0\x17",
    b"B\0\0\0\x18\0s\0\0\x01\0\x01\0\x01\0\0\0\x02hi\0\x01\0\x01D\0\0\0\x06P\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04",
    b"C\0\0\0\x07Ss\0H\0\0\0\x04X\0\0\0\x04",
];

pub const STARTUPS: &[&[u8]] = &[
    b"\0\0\0\x08\x04\xd2\x16\x2f",
    b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01abcd",
    b"\0\0\0\x26\0\x03\0\0user\0ann\0database\0app\0options\0-c a=b\0\0",
    b"\0\0\0\x2a\0\x03\0\x02user\0ann\0replication\0on\0_pq_.x\0y\0a.b\0\xc3\xa9\0\0",
];

pub const ANSWERS: &[&[u8]] = &[
    b"T\0\0\0\x1a\0\x01a\0\0\0\0\x01\0\x02\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0b\0\x01\0\0\0\x011",
    b"E\0\0\0\x2dSERROR\0VERROR\0C42601\0Mno\0Dd\0Hh\0P1\0\0",
    b"S\0\0\0\x15TimeZone\0Etc/UTC\0K\0\0\0\x0c\0\0\0\x01abcdZ\0\0\0\x05I",
    b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0R\0\0\0\x0c\0\0\0\x05saltR\0\0\0\x08\0\0\0\0",
];

pub const SCRAM: &[&[u8]] = &[
    b"\0n,,n=,r=rOprNGfwEbeRWgbNEkqO",
    b"\x01p=tls-server-end-point,,n=,r=abc",
    b"\x02,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1",
    b"\x03c=biws,r=,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
    b"\x04SCRAM-SHA-256$1:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
];

pub const VALUES: &[&[u8]] = &[
    b"\x08\0\x02\0\0\0\0\0\x02\0\x01\x09\xc4",
    b"\x082024-02-29 23:59:60.000001+14:00",
    b"\x07-12345.678900e-3",
    b"\x09\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x03",
];

/// Cuts a stream into messages and reads each as a client's.
pub fn frame(data: &[u8]) {
    let whole = cut_all(data, data.len().max(1));
    assert_eq!(whole, cut_all(data, 1), "how the bytes arrive must not matter");
    for frame in &whole.0 {
        client_message(frame);
    }
}

/// The messages, and what was left when there was no more or an error.
fn cut_all(data: &[u8], chunk: usize) -> (Vec<Frame>, Vec<u8>, Option<frame::FrameError>) {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in data.chunks(chunk) {
        buffer.extend_from_slice(piece);
        loop {
            match frame::cut(&mut buffer, 1 << 16) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Vec::new(), Some(error)),
            }
        }
    }
    let cut: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
    assert_eq!([frames.iter().flat_map(|frame| frame.bytes.to_vec()).collect(), buffer.to_vec()].concat(), data);
    assert_eq!(cut + buffer.len(), data.len());
    (frames, buffer.to_vec(), None)
}

/// What could be read is written back as it was.
fn client_message(frame: &Frame) {
    let body = frame.body();
    let mut out = BytesMut::new();
    if let Ok(text) = frontend::query(body) {
        writer::query(&mut out, text);
        assert_eq!(&out[HEADER_LEN..], body);
    }
    out.clear();
    if let Ok(parse) = frontend::parse(body) {
        writer::parse(&mut out, parse.name, parse.text, &parse.types);
        assert_eq!(&out[HEADER_LEN..], body);
        assert_eq!(frontend::parse_names(body), Some((parse.name, parse.text)));
    }
    out.clear();
    if let Ok(target) = frontend::target(body) {
        writer::describe(&mut out, if target.is_portal { b'P' } else { b'S' }, target.name);
        assert_eq!(&out[HEADER_LEN..], body);
    }
    out.clear();
    if let Ok(execute) = frontend::execute(body) {
        writer::execute(&mut out, execute.portal, execute.max_rows);
        assert_eq!(&out[HEADER_LEN..], body);
    }
    if let Ok(bind) = frontend::bind(body) {
        assert_eq!(frontend::bind_names(body), Some((bind.portal, bind.statement)));
        let values: usize = bind.values.iter().map(|value| 4 + value.map_or(0, <[u8]>::len)).sum();
        let names = bind.portal.len() + bind.statement.len() + 2;
        let codes = 2 * (bind.formats.len() + bind.result_formats.len());
        assert_eq!(names + codes + values + 6, body.len());
    }
    let _ = authentication::password(body);
    let _ = SaslInitialResponse::parse(body);
}

/// Reads what opens a connection.
pub fn startup(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(packet)) = startup::cut(&mut buffer) {
        match startup::read(packet) {
            Ok(StartupPacket::Startup(message)) => {
                assert!(
                    message.minor <= startup::NEWEST_MINOR && !message.user.is_empty() && !message.database.is_empty()
                );
                let mut parameters = vec![("user", message.user.as_str()), ("database", message.database.as_str())];
                let taken = ["user", "database", "replication", "options", ""];
                let by_name = message.settings.iter().filter(|(name, value)| {
                    !taken.contains(&name.as_str())
                        && !name.starts_with("_pq_.")
                        && !name.contains('\0')
                        && !value.contains('\0')
                });
                parameters.extend(by_name.map(|(name, value)| (name.as_str(), value.as_str())));
                let mut out = BytesMut::new();
                startup::startup_message(&mut out, message.minor, &parameters);
                // One that grew by a database that was not named may be too long now.
                let Ok(Some(packet)) = startup::cut(&mut out) else { continue };
                let Ok(StartupPacket::Startup(again)) = startup::read(packet) else { panic!("{parameters:?}") };
                assert_eq!(
                    (&again.user, &again.database, again.minor),
                    (&message.user, &message.database, message.minor)
                );
                assert!(
                    again.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).eq(parameters[2..].iter().copied())
                );
                startup::negotiate_protocol_version(&mut out, &message);
            }
            Ok(StartupPacket::Cancel(cancel)) => {
                let mut out = BytesMut::new();
                startup::cancel_request(&mut out, cancel.pid, &cancel.secret);
                let again = startup::cut(&mut out).expect("well formed").expect("whole");
                assert_eq!(startup::read(again).ok(), Some(StartupPacket::Cancel(cancel)));
            }
            _ => {}
        }
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(settings) = options::settings(text)
    {
        assert!(settings.iter().all(|(name, _)| !name.is_empty()));
    }
}

/// Reads what a server sends, as login, relay and merge do.
pub fn server(data: &[u8]) {
    for frame in cut_all(data, data.len().max(1)).0 {
        let body = frame.body();
        let mut out = BytesMut::new();
        if let Ok(description) = Description::read(body) {
            let again = |formats: &[i16]| {
                let mut out = BytesMut::new();
                description.write(&mut out, description.columns.len(), formats);
                Description::read(&out[HEADER_LEN..]).expect("what pgherd writes")
            };
            assert_eq!(again(&[]), description);
            assert!(description.is_alike(&again(&[1]), |_| 1));
        }
        if let Ok(fields) = ErrorFields::parse(body) {
            let error = fields.to_server_error();
            assert_eq!(fields.is_fatal(), matches!(error.severity.as_str(), "FATAL" | "PANIC"));
        }
        let _ = ParameterStatus::parse(body);
        let _ = BackendKeyData::parse(body);
        let _ = backend::ready_for_query(body);
        if let Ok(request) = Authentication::parse(body)
            && !matches!(request, Authentication::Other(_))
        {
            authentication::request(&mut out, &request);
            assert_eq!(&out[HEADER_LEN..], body);
        }
    }
}

/// Both sides of SCRAM before a peer that says anything.
pub fn scram(data: &[u8]) {
    let Some((&side, message)) = data.split_first() else { return };
    let verifier = Arc::new(ScramVerifier::derive(b"secret", b"salt", 1));
    match side % 5 {
        0 | 1 => {
            let end_point = (side % 5 == 1).then_some(&b"hash"[..]);
            let mechanism: &[u8] = if end_point.is_some() { b"SCRAM-SHA-256-PLUS" } else { b"SCRAM-SHA-256" };
            if let Ok(challenge) = (Offer { verifier, end_point }).first(mechanism, message) {
                assert!(challenge.finish(message).is_err(), "no first message is a proof");
            }
        }
        2 | 3 => {
            let start = Start::new(Binding::None);
            // What must extend our nonce could not be guessed.
            let nonce = start.message().rsplit("r=").next().unwrap_or_default().to_owned();
            let first = [b"r=", nonce.as_bytes(), message].concat();
            if side % 5 == 3 {
                let challenge = Offer { verifier, end_point: None }.first(b"SCRAM-SHA-256", start.message().as_bytes());
                let challenge = challenge.expect("our own client's message");
                assert!(challenge.finish(message).is_err(), "a proof was guessed");
            } else if rounds(message) < 5_000
                && let Ok(answer) = start.challenge(&first, Proof::Password(b"secret"))
            {
                assert!(answer.finish(message).is_err(), "a proof was guessed");
            }
        }
        _ => {
            if let Some(verifier) = std::str::from_utf8(message).ok().and_then(ScramVerifier::parse) {
                let text = verifier.to_string();
                assert!(ScramVerifier::parse(&text).is_some_and(|again| again == verifier));
            }
        }
    }
}

/// PBKDF2's rounds that a message asks for: the fuzzer has no time for the 100,000 that are allowed.
fn rounds(message: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(message);
    let asked = text.split(',').filter_map(|part| part.strip_prefix("i=")?.parse().ok());
    asked.max().unwrap_or(0)
}

const KINDS: [Kind; 17] = [
    Kind::Bool,
    Kind::Int2,
    Kind::Int4,
    Kind::Int8,
    Kind::Float4,
    Kind::Float8,
    Kind::Numeric,
    Kind::Date,
    Kind::Time,
    Kind::Timestamp,
    Kind::TimestampTz,
    Kind::Interval,
    Kind::Uuid,
    Kind::Bytea,
    Kind::Text,
    Kind::Varchar,
    Kind::Bpchar,
];

/// Values as shards and clients send them: order is an order, and the canonical form follows it.
pub fn value(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    let kind = KINDS[usize::from(kind) % KINDS.len()];
    let (left, right) = bytes.split_at(bytes.len() / 2);
    let mut values: Vec<Value> =
        [left, right, bytes].iter().filter_map(|part| Value::from_binary(kind, part)).collect();
    for part in [left, right, bytes] {
        values.extend(std::str::from_utf8(part).ok().and_then(|text| Value::parse(kind, text)));
    }
    for a in &values {
        assert_eq!(a.compare(a), std::cmp::Ordering::Equal, "{a:?}");
        for b in &values {
            assert_eq!(a.compare(b), b.compare(a).reverse(), "{a:?} {b:?}");
            let canonical = |value: &Value| {
                let mut out = Vec::new();
                value.canonical(&mut out);
                out
            };
            assert_eq!(a.compare(b).is_eq(), canonical(a) == canonical(b), "{a:?} {b:?}");
        }
    }
    for value in &values {
        if let Value::Numeric(number) = value {
            numeric(number);
        }
    }
}

/// What a numeric becomes in binary is the same number.
fn numeric(number: &Numeric) {
    let mut out = Vec::new();
    if number.to_binary(&mut out).is_some() {
        let again = Numeric::from_binary(&out).expect("what pgherd writes");
        assert!(again.compare(number).is_eq(), "{number:?} {again:?}");
    }
}
