//! The same bytes go to PostgreSQL and through pgherd; the traces are equal. The transcripts lie in `tests/transcripts`.

use std::path::Path;

use bytes::BytesMut;
use pgherd::wire::writer;

use super::proxy::Proxy;
use crate::harness::wire::{Message, WireClient, bind};
use crate::harness::{Database, fresh_database};

/// What every transcript finds.
const SETUP: &str = "create table t (a int primary key, b text);
    insert into t select n, 'row ' || n from generate_series(1, 10) n;
    create table empty (a int, b text);
    create table deferred (a int unique deferrable initially deferred);
    create function loud(text) returns int language plpgsql as $$ begin raise notice 'heard %', $1; return 1; end $$;";

struct Transcript {
    name: String,
    steps: Vec<String>,
}

fn transcripts() -> Vec<Transcript> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    let mut all: Vec<Transcript> = Vec::new();
    for file in files.into_iter().filter(|file| file.extension().is_some_and(|name| name == "txt")) {
        for line in std::fs::read_to_string(&file).expect("transcript").lines() {
            match (line.strip_prefix("== "), all.last_mut()) {
                (Some(name), _) => all.push(Transcript { name: name.to_owned(), steps: Vec::new() }),
                (None, Some(last)) if !line.trim().is_empty() && !line.starts_with('#') => {
                    last.steps.push(line.to_owned())
                }
                _ => {}
            }
        }
    }
    all
}

/// Plays one transcript on a connection of its own.
async fn play(port: u16, database: &Database, steps: &[String]) -> Vec<String> {
    let mut client = WireClient::login(port, "postgres", &database.name).await;
    let (mut out, mut trace) = (BytesMut::new(), Vec::new());
    for step in steps {
        let Some(until) = step.strip_prefix('<') else {
            write(&mut out, step);
            continue;
        };
        client.send(&out.split()).await;
        for count in until.split_whitespace() {
            loop {
                let Some(message) = client.try_next().await else {
                    trace.push("closed".to_owned());
                    return trace;
                };
                trace.push(show(&message));
                if count.starts_with(char::from(message.tag)) {
                    break;
                }
            }
        }
    }
    trace
}

fn write(out: &mut BytesMut, step: &str) {
    let (tag, rest) = step.split_once(' ').unwrap_or((step, ""));
    let parts: Vec<&str> = rest.split('|').map(|part| part.trim().trim_matches('"')).collect();
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    match tag {
        "Q" => writer::query(out, rest.as_bytes()),
        "P" => {
            let types: Vec<u32> = part(2).split_whitespace().map(|oid| oid.parse().expect("oid")).collect();
            writer::parse(out, part(0).as_bytes(), part(1).as_bytes(), &types);
        }
        "B" => {
            let large = "x".repeat(600_000);
            let value = |text| match text {
                "NULL" => None,
                "LARGE" => Some(large.as_str()),
                text => Some(text),
            };
            let values: Vec<Option<&str>> = part(2).split_whitespace().map(value).collect();
            bind(out, part(0), part(1), &values, part(3).parse().unwrap_or(0));
        }
        "DS" => writer::describe(out, b'S', part(0).as_bytes()),
        "DP" => writer::describe(out, b'P', part(0).as_bytes()),
        "CS" => writer::close(out, b'S', part(0).as_bytes()),
        "CP" => writer::close(out, b'P', part(0).as_bytes()),
        "E" => writer::execute(out, part(0).as_bytes(), part(1).parse().unwrap_or(0)),
        "S" => writer::sync(out),
        "H" => writer::flush(out),
        "d" => writer::message(out, b'd', |out| {
            out.extend_from_slice(rest.replace("\\n", "\n").replace("\\t", "\t").as_bytes())
        }),
        "c" => writer::message(out, b'c', |_| {}),
        "f" => writer::message(out, b'f', |out| writer::cstr(out, rest.as_bytes())),
        "F" => writer::message(out, b'F', |out| {
            // A function that takes one int4 in text and gives its result as text.
            out.extend_from_slice(&part(0).parse::<u32>().expect("oid").to_be_bytes());
            out.extend_from_slice(&[0, 0, 0, 1]);
            out.extend_from_slice(&i32::try_from(part(1).len()).expect("short").to_be_bytes());
            out.extend_from_slice(part(1).as_bytes());
            out.extend_from_slice(&[0, 0]);
        }),
        "X" => writer::terminate(out),
        other => panic!("unknown step {other:?}"),
    }
}

/// A message with what may differ taken out: the process id of a notification, the tables' OIDs of a RowDescription, the place
/// in PostgreSQL's source that an error comes from.
fn show(message: &Message) -> String {
    let mut message = message.clone();
    if message.tag == b'A' {
        message.body[..4].fill(0);
    }
    if matches!(message.tag, b'E' | b'N') {
        let fields =
            message.body.split(|&byte| byte == 0).filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')));
        message.body = fields.collect::<Vec<_>>().join(&0);
    }
    if message.tag == b'T' {
        let mut at = 2;
        while let Some(end) = message.body[at..].iter().position(|&byte| byte == 0) {
            message.body[at + end + 1..at + end + 5].fill(0);
            at += end + 19;
        }
    }
    format!("{message:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_get_the_same_answers() {
    let (straight, behind) = (fresh_database().await, fresh_database().await);
    straight.execute(SETUP).await;
    behind.execute(SETUP).await;
    let transcripts = transcripts();
    assert!(transcripts.len() >= 25, "{} transcripts", transcripts.len());
    for mode in ["transaction", "session"] {
        let proxy = Proxy::before(behind.clone(), &format!("max_connections = 3, mode = \"{mode}\"")).await;
        // The second time statements are prepared, and servers have been used by others.
        for round in ["cold", "warm"] {
            for transcript in &transcripts {
                let wanted = play(straight.port, &straight, &transcript.steps).await;
                let got = play(proxy.port, &behind, &transcript.steps).await;
                let (wanted, got) = (wanted.join("\n"), got.join("\n").replace(&behind.name, &straight.name));
                assert_eq!(got, wanted, "{} ({round}, {mode} mode)", transcript.name);
            }
        }
        proxy.examine().await;
        proxy.stop().await;
    }
}
