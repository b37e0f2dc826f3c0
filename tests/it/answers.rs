//! Asking the same of PostgreSQL and of pgherd, in every way that the protocol has, and comparing what they say.
#![allow(unreachable_pub, reason = "what its sibling modules share")]

use bytes::Buf;
use pgherd::wire::writer;

use crate::harness::wire::{Message, WireClient, bind};

/// How a statement is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// A simple Query.
    Simple,
    /// Parse, Bind, Describe of the portal, Execute and Sync in one flight; results as text.
    Text,
    /// The same with binary results.
    Binary,
    /// Parse, Describe of the statement and Sync first, as most drivers do; then Bind, Execute and Sync. Binary results.
    Prepared,
}

pub const MANNERS: [Manner; 4] = [Manner::Simple, Manner::Text, Manner::Binary, Manner::Prepared];

/// What a client sees of an answer. Not compared: table oids and attribute numbers, which differ between any two databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Name, type, type modifier and format of each column.
    pub columns: Vec<(String, i32, i32, i16)>,
    pub rows: Vec<Vec<Option<Vec<u8>>>>,
    pub tag: String,
    /// SQLSTATE and message.
    pub error: Option<(String, String)>,
    /// Transaction status of the last ReadyForQuery.
    pub status: char,
}

impl Answer {
    pub fn read(messages: &[Message]) -> Self {
        let mut answer = Self { columns: Vec::new(), rows: Vec::new(), tag: String::new(), error: None, status: ' ' };
        for message in messages {
            match message.tag {
                b'T' => answer.columns = columns(message),
                b'D' => answer.rows.push(row(message)),
                b'C' => answer.tag = message.text(),
                b's' => answer.tag = "suspended".into(),
                b'E' => {
                    let field = |code| message.field(code).unwrap_or_default();
                    assert!(answer.error.is_none(), "two errors before one ReadyForQuery: {messages:?}");
                    answer.error = Some((field(b'C'), field(b'M')));
                }
                b'Z' => answer.status = char::from(message.body[0]),
                _ => {}
            }
        }
        answer
    }

    /// The SQLSTATE, if it failed.
    pub fn code(&self) -> Option<&str> {
        self.error.as_ref().map(|(code, _)| code.as_str())
    }

    /// For rows whose order nothing fixes.
    pub fn sorted(mut self) -> Self {
        self.rows.sort();
        self
    }

    /// Values of one column as text, NULL as `None`.
    pub fn column(&self, at: usize) -> Vec<Option<String>> {
        let text = |value: &Vec<u8>| String::from_utf8_lossy(value).into_owned();
        self.rows.iter().map(|row| row[at].as_ref().map(text)).collect()
    }
}

fn columns(message: &Message) -> Vec<(String, i32, i32, i16)> {
    let mut body = message.body.as_slice();
    let mut columns = Vec::new();
    for _ in 0..body.get_i16() {
        let end = body.iter().position(|&byte| byte == 0).expect("a name ends");
        let name = String::from_utf8(body[..end].to_vec()).expect("utf8");
        body.advance(end + 1);
        let (_table, _attribute, oid, _size) = (body.get_i32(), body.get_i16(), body.get_i32(), body.get_i16());
        columns.push((name, oid, body.get_i32(), body.get_i16()));
    }
    columns
}

fn row(message: &Message) -> Vec<Option<Vec<u8>>> {
    let mut body = message.body.as_slice();
    let count = body.get_i16();
    let value = |_| {
        let len = usize::try_from(body.get_i32()).ok()?;
        let value = body[..len].to_vec();
        body.advance(len);
        Some(value)
    };
    (0..count).map(value).collect()
}

/// Sends a statement without parameters and reads its answer up to ReadyForQuery.
pub async fn ask(client: &mut WireClient, manner: Manner, text: &str) -> Answer {
    ask_with(client, manner, text, &[]).await
}

/// As [`ask`], with parameters in text form, whose types the server finds out. A simple Query has none.
pub async fn ask_with(client: &mut WireClient, manner: Manner, text: &str, values: &[Option<&str>]) -> Answer {
    ask_typed(client, manner, text, values, &[]).await
}

/// As [`ask_with`], with types that Parse declares; 0 is one that the server finds out.
pub async fn ask_typed(
    client: &mut WireClient,
    manner: Manner,
    text: &str,
    values: &[Option<&str>],
    types: &[u32],
) -> Answer {
    let name = if manner == Manner::Prepared { "statement" } else { "" };
    let format = i16::from(matches!(manner, Manner::Binary | Manner::Prepared));
    let mut described = Vec::new();
    match manner {
        Manner::Simple => return Answer::read(&client.query(text).await),
        Manner::Text | Manner::Binary => client.say(|out| writer::parse(out, b"", text.as_bytes(), types)).await,
        Manner::Prepared => {
            client
                .say(|out| {
                    writer::close(out, b'S', name.as_bytes());
                    writer::parse(out, name.as_bytes(), text.as_bytes(), types);
                    writer::describe(out, b'S', name.as_bytes());
                    writer::sync(out);
                })
                .await;
            let messages = client.until_ready().await;
            let answer = Answer::read(&messages);
            if answer.error.is_some() {
                return answer;
            }
            described = answer.columns;
        }
    }
    client
        .say(|out| {
            bind(out, "", name, values, format);
            if manner != Manner::Prepared {
                writer::describe(out, b'P', b"");
            }
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    let mut answer = Answer::read(&client.until_ready().await);
    if manner == Manner::Prepared {
        answer.columns = described;
    }
    answer
}
