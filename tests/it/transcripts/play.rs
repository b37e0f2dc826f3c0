//! Plays a transcript before one port, and writes down what every session was told.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use super::step::Step;
use crate::harness::Database;
use crate::harness::wire::{Message, WireClient};

/// One message, or the connection's end, as a line; what differs by nature is taken out.
pub(super) type Trace = Vec<String>;

/// Startup parameters that are the script's own.
const OWN: [&str; 2] = ["version", "ask"];
/// How long an answer may take; a transcript that waits longer ends there.
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes of a message that are shown; of more, their number and a sum.
const SHOWN: usize = 400;

/// Where a transcript is played.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before<'a> {
    pub(super) port: u16,
    pub(super) database: &'a Database,
}

struct Player<'a> {
    before: Before<'a>,
    sessions: BTreeMap<String, WireClient>,
    current: String,
    many: bool,
    trace: Trace,
    /// The tags that were seen, for knowing what the transcripts cover.
    tags: Vec<u8>,
}

/// The trace, and the tags of all messages in it.
pub(super) async fn play(before: Before<'_>, steps: &[Step]) -> (Trace, Vec<u8>) {
    let many = steps.iter().any(|step| matches!(step, Step::Session { .. }));
    let mut player = Player {
        before,
        sessions: BTreeMap::new(),
        current: "a".to_owned(),
        many,
        trace: Trace::new(),
        tags: Vec::new(),
    };
    let mut queued = Vec::new();
    for step in steps {
        match step {
            Step::Send(bytes) => queued.extend_from_slice(bytes),
            Step::Go => player.send(&mut queued).await,
            Step::Read(tags) => {
                player.send(&mut queued).await;
                if !player.read(tags).await {
                    return (sort_reports(player.trace), player.tags);
                }
            }
            Step::Session { name, parameters } => {
                assert!(queued.is_empty(), "something is queued when the session changes");
                player.turn_to(name, parameters).await;
            }
            Step::Cancel(name) => {
                if timeout(PATIENCE, player.sessions[name].cancel()).await.is_err() {
                    player.note("a cancel request is not answered");
                }
            }
            Step::Drop => drop(player.sessions.remove(&player.current)),
        }
    }
    assert!(queued.is_empty(), "something was never sent");
    (sort_reports(player.trace), player.tags)
}

/// Reports of several settings at once come in the order of a hash table, which is the server version's own.
fn sort_reports(mut trace: Trace) -> Trace {
    let is_report = |line: &String| line.starts_with("S[") || line.contains(": S[");
    trace.chunk_by_mut(|a, b| is_report(a) && is_report(b)).for_each(<[String]>::sort);
    trace
}

impl Player<'_> {
    fn note(&mut self, line: &str) {
        let line = if self.many { format!("{}: {line}", self.current) } else { line.to_owned() };
        self.trace.push(line);
    }

    async fn session(&mut self) -> &mut WireClient {
        if !self.sessions.contains_key(&self.current) {
            let client = WireClient::login(self.before.port, "postgres", &self.before.database.name).await;
            self.sessions.insert(self.current.clone(), client);
        }
        self.sessions.get_mut(&self.current).expect("it is there")
    }

    async fn send(&mut self, queued: &mut Vec<u8>) {
        let bytes = std::mem::take(queued);
        self.session().await.send(&bytes).await;
    }

    /// Reads up to each of those tags; false if the connection ended or nothing came.
    async fn read(&mut self, tags: &[u8]) -> bool {
        for &wanted in tags {
            loop {
                let Ok(message) = timeout(PATIENCE, self.session().await.try_next()).await else {
                    self.note("silence");
                    return false;
                };
                let Some(message) = message else {
                    self.note("closed");
                    return false;
                };
                self.tags.push(message.tag);
                self.note(&show(&message));
                if message.tag == wanted {
                    break;
                }
            }
        }
        true
    }

    /// Another session's turn. One that is opened with parameters shows its greeting; the order of its reports is nobody's.
    async fn turn_to(&mut self, name: &str, parameters: &[(String, String)]) {
        self.current = name.to_owned();
        if parameters.is_empty() {
            return;
        }
        let mut client = WireClient::bare(self.before.port).await;
        let given = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        if let Some(what) = given("ask") {
            let code: u32 = match what {
                "ssl" => 80_877_103,
                "gss" => 80_877_104,
                other => panic!("nobody asks for {other:?}"),
            };
            client.send(&[8_u32.to_be_bytes(), code.to_be_bytes()].concat()).await;
            let answer = char::from(client.byte().await);
            self.note(&format!("answer {answer}"));
        }
        let version = given("version").unwrap_or("3.0");
        let (major, minor) = version.split_once('.').expect("a version such as 3.2");
        let version = major.parse::<i32>().expect("major") << 16 | minor.parse::<i32>().expect("minor");
        let mut pairs = vec![("user", "postgres"), ("database", self.before.database.name.as_str())];
        pairs.retain(|(key, _)| given(key).is_none());
        let more = parameters.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        pairs.extend(more.filter(|(key, _)| !OWN.contains(key)));
        client.startup(version, &pairs).await;
        let Ok(mut greeting) = timeout(PATIENCE, client.until_ready()).await else {
            self.note("silence");
            return;
        };
        if let Some(key) = greeting.iter().find(|message| message.tag == b'K') {
            client.key.clone_from(&key.body);
        }
        let ended = greeting.last().is_none_or(|last| last.tag != b'Z');
        greeting.sort_by_key(|message| {
            (
                message.tag != b'v',
                message.tag != b'R',
                message.tag != b'S',
                if message.tag == b'S' { message.text() } else { String::new() },
            )
        });
        for message in greeting {
            self.tags.push(message.tag);
            self.note(&show(&message));
        }
        if ended {
            self.note("closed");
        }
        self.sessions.insert(name.to_owned(), client);
    }
}

/// A message with what may differ taken out: the process id of a notification and the cancel key, the tables' OIDs of a
/// RowDescription, the place in PostgreSQL's source that an error comes from.
fn show(message: &Message) -> String {
    let mut message = message.clone();
    match message.tag {
        b'A' => message.body[..4].fill(0),
        b'K' => return format!("K[a process id and a secret of {} bytes]", message.body.len() - 4),
        b'E' | b'N' => {
            let fields = message.body.split(|&byte| byte == 0);
            let fields = fields.filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')));
            message.body = fields.collect::<Vec<_>>().join(&0);
        }
        b'T' => {
            let mut at = 2;
            while let Some(end) = message.body[at..].iter().position(|&byte| byte == 0) {
                message.body[at + end + 1..at + end + 5].fill(0);
                at += end + 19;
            }
        }
        _ => {}
    }
    if message.body.len() > SHOWN {
        let sum = message.body.iter().fold(0_u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let (len, begin) = (message.body.len(), message.body[..SHOWN].escape_ascii());
        return format!("{}[{begin}... {len} bytes, sum {sum:x}]", char::from(message.tag));
    }
    format!("{message:?}")
}
