//! One connection that speaks raw messages and may end at any moment without anybody being wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use pgherd::wire::writer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::wire::Message;

/// How long an answer may take: many clients wait for one server connection.
const PATIENCE: Duration = Duration::from_secs(90);

/// Up to where answers are read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// So many ReadyForQuery.
    Ready(usize),
    /// The first message of one of these tags.
    Any(&'static [u8]),
}

/// What a side said to one step.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) messages: Vec<Message>,
    /// The connection ended before the answer did.
    pub(super) ended: bool,
    /// Nothing came for a long time.
    pub(super) silent: bool,
}

/// A connection to one of the two sides.
pub(super) struct Line {
    stream: TcpStream,
    inbox: BytesMut,
    port: u16,
    key: Vec<u8>,
    /// What ParameterStatus has told so far.
    pub(super) told: BTreeMap<String, String>,
}

impl Line {
    /// Logs in with those parameters.
    pub(super) async fn open(port: u16, parameters: &[(&str, &str)]) -> Result<Self, Answer> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        let mut line = Self { stream, inbox: BytesMut::new(), port, key: Vec::new(), told: BTreeMap::new() };
        let mut body = BytesMut::new();
        for (name, value) in parameters {
            writer::cstr(&mut body, name.as_bytes());
            writer::cstr(&mut body, value.as_bytes());
        }
        body.put_u8(0);
        let mut out = BytesMut::new();
        out.put_i32(i32::try_from(body.len() + 8).expect("short"));
        out.put_i32(0x0003_0000);
        out.put_slice(&body);
        line.send(&out).await;
        let greeting = line.read(Until::Ready(1)).await;
        if greeting.ended || greeting.silent || greeting.messages.iter().any(|message| message.tag == b'E') {
            return Err(greeting);
        }
        if let Some(key) = greeting.messages.iter().find(|message| message.tag == b'K') {
            line.key.clone_from(&key.body);
        }
        Ok(line)
    }

    /// Sends bytes; whether the other side still takes them is seen when its answer is read.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE, self.stream.write_all(bytes)).await;
    }

    /// Reads the answer to a step.
    pub(super) async fn read(&mut self, until: Until) -> Answer {
        let (mut answer, mut left) = (Answer::default(), if let Until::Ready(count) = until { count } else { 1 });
        while left > 0 {
            let Some(message) = cut(&mut self.inbox) else {
                match timeout(PATIENCE, self.stream.read_buf(&mut self.inbox)).await {
                    Ok(Ok(read)) if read > 0 => continue,
                    Ok(_) => answer.ended = true,
                    Err(_) => answer.silent = true,
                }
                return answer;
            };
            if message.tag == b'S' {
                let mut parts =
                    message.body.split(|&byte| byte == 0).map(|it| String::from_utf8_lossy(it).into_owned());
                self.told.insert(parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            }
            left -= usize::from(match until {
                Until::Ready(_) => message.tag == b'Z',
                Until::Any(tags) => tags.contains(&message.tag),
            });
            answer.messages.push(message);
        }
        answer
    }

    /// Waits until something has come, or the connection has ended.
    pub(super) async fn peek(&mut self) {
        if self.inbox.is_empty() {
            let _ = self.stream.read_buf(&mut self.inbox).await;
        }
    }

    /// Sends a CancelRequest for this session, and waits until it has been taken.
    pub(super) async fn cancel(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.expect("connect");
        let mut out = BytesMut::new();
        out.put_i32(i32::try_from(self.key.len() + 8).expect("short"));
        out.put_i32(80_877_102);
        out.put_slice(&self.key);
        let _ = stream.write_all(&out).await;
        let _ = timeout(PATIENCE, stream.read_u8()).await;
    }

    /// Drops the connection with a TCP reset.
    pub(super) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("linger");
    }
}

fn cut(inbox: &mut BytesMut) -> Option<Message> {
    let len = usize::try_from(i32::from_be_bytes(inbox.get(1..5)?.try_into().expect("four bytes"))).expect("a length");
    if inbox.len() < len + 1 {
        return None;
    }
    let mut frame = inbox.split_to(len + 1);
    let tag = frame[0];
    frame.advance(5);
    Some(Message { tag, body: frame.to_vec() })
}
