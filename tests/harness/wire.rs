//! A client that speaks in single protocol messages, for stories about their order and their bytes.

use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use pgherd::wire::writer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long one message may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// One message from the backend.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

/// A connection on which the test says every message itself.
pub struct WireClient {
    stream: TcpStream,
    inbox: BytesMut,
    /// Process id and secret of BackendKeyData, for [`Self::cancel`].
    pub key: Vec<u8>,
    port: u16,
}

impl WireClient {
    /// Connects a bare socket: nothing is sent.
    pub async fn bare(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, inbox: BytesMut::new(), key: Vec::new(), port }
    }

    /// Connects and logs in where no password is asked for.
    pub async fn login(port: u16, user: &str, database: &str) -> Self {
        let mut client = Self::bare(port).await;
        client.startup(0x0003_0000, &[("user", user), ("database", database)]).await;
        for message in client.until_ready().await {
            match message.tag {
                b'E' => panic!("login failed: {message:?}"),
                b'K' => client.key = message.body,
                _ => {}
            }
        }
        client
    }

    /// Sends a startup message of that protocol version.
    pub async fn startup(&mut self, version: i32, parameters: &[(&str, &str)]) {
        let mut body = BytesMut::new();
        for (name, value) in parameters {
            writer::cstr(&mut body, name.as_bytes());
            writer::cstr(&mut body, value.as_bytes());
        }
        body.put_u8(0);
        let mut out = BytesMut::new();
        out.put_i32(i32::try_from(body.len() + 8).expect("short"));
        out.put_i32(version);
        out.put_slice(&body);
        self.send(&out).await;
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("send");
    }

    /// Sends what `fill` writes, such as several messages of [`writer`] and [`bind`] in one go.
    pub async fn say(&mut self, fill: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        fill(&mut out);
        self.send(&out).await;
    }

    /// The next message; panics when the connection ends or nothing comes.
    pub async fn next(&mut self) -> Message {
        self.try_next().await.expect("the connection ended where a message should come")
    }

    /// The next message, or `None` when the connection has ended.
    pub async fn try_next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = cut(&mut self.inbox) {
                return Some(message);
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.inbox)).await;
            match read.unwrap_or_else(|_| panic!("no message came within {PATIENCE:?}")) {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// One raw byte, as the answer to SSLRequest is.
    pub async fn byte(&mut self) -> u8 {
        timeout(PATIENCE, self.stream.read_u8()).await.expect("in time").expect("a byte")
    }

    /// Reads one message for each letter and panics if a tag differs; notices and parameter reports must be spelled out too.
    pub async fn expect(&mut self, tags: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        for tag in tags.bytes() {
            let message = self.next().await;
            assert_eq!(char::from(message.tag), char::from(tag), "in {tags:?} after {messages:?} came {message:?}");
            messages.push(message);
        }
        messages
    }

    /// Everything up to and including ReadyForQuery (or the ErrorResponse that a login ends with).
    pub async fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.try_next().await {
            let ready = message.tag == b'Z';
            messages.push(message);
            if ready {
                break;
            }
        }
        messages
    }

    /// A simple query and everything it brings.
    pub async fn query(&mut self, text: &str) -> Vec<Message> {
        self.say(|out| writer::query(out, text.as_bytes())).await;
        self.until_ready().await
    }

    /// Checks that the other side has closed the connection, after whatever it still had to say.
    pub async fn ended(&mut self) -> Vec<Message> {
        let mut last = Vec::new();
        while let Some(message) = self.try_next().await {
            last.push(message);
        }
        last
    }

    /// Checks that nothing more comes for now: `wait` is how long to listen.
    pub async fn silent(&mut self, wait: Duration) {
        assert!(self.inbox.is_empty(), "unread: {:?}", self.inbox);
        let read = timeout(wait, self.stream.read_buf(&mut self.inbox)).await;
        assert!(read.is_err(), "something came: {:?}", self.inbox);
    }

    /// Sends a CancelRequest with this session's key on a connection of its own, and waits until that is closed.
    pub async fn cancel(&self) {
        let mut other = Self::bare(self.port).await;
        let mut out = BytesMut::new();
        out.put_i32(i32::try_from(self.key.len() + 8).expect("short"));
        out.put_i32(80_877_102);
        out.put_slice(&self.key);
        other.send(&out).await;
        assert!(other.try_next().await.is_none(), "a cancel request is not answered");
    }

    /// Drops the connection with a TCP reset, as a crashed client's kernel may.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("linger");
    }
}

fn cut(inbox: &mut BytesMut) -> Option<Message> {
    let len = usize::try_from(i32::from_be_bytes(inbox.get(1..5)?.try_into().expect("four bytes"))).expect("a length");
    assert!(len >= 4, "a message of length {len}");
    if inbox.len() < len + 1 {
        return None;
    }
    let mut frame = inbox.split_to(len + 1);
    let tag = frame[0];
    frame.advance(5);
    Some(Message { tag, body: frame.to_vec() })
}

/// Appends a Bind with text parameters; `result_format` is 0 for text, 1 for binary.
pub fn bind(out: &mut BytesMut, portal: &str, statement: &str, values: &[Option<&str>], result_format: i16) {
    writer::message(out, b'B', |out| {
        writer::cstr(out, portal.as_bytes());
        writer::cstr(out, statement.as_bytes());
        out.put_i16(0);
        out.put_i16(i16::try_from(values.len()).expect("few"));
        for value in values {
            match value {
                None => out.put_i32(-1),
                Some(text) => {
                    out.put_i32(i32::try_from(text.len()).expect("short"));
                    out.put_slice(text.as_bytes());
                }
            }
        }
        out.put_i16(1);
        out.put_i16(result_format);
    });
}

/// The tags of a run of messages, such as `"TDCZ"`.
pub fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

/// The values of all DataRows among them, as text.
pub fn rows(messages: &[Message]) -> Vec<Vec<Option<String>>> {
    messages.iter().filter(|message| message.tag == b'D').map(Message::values).collect()
}

impl Message {
    /// A DataRow's values, as text.
    pub fn values(&self) -> Vec<Option<String>> {
        let mut body = self.body.as_slice();
        let count = body.get_u16();
        (0..count)
            .map(|_| {
                let len = usize::try_from(body.get_i32()).ok()?;
                let (value, rest) = body.split_at(len);
                body = rest;
                Some(String::from_utf8_lossy(value).into_owned())
            })
            .collect()
    }

    /// A field of an ErrorResponse or NoticeResponse: `b'C'` is the SQLSTATE, `b'M'` the message, `b'H'` the hint.
    pub fn field(&self, code: u8) -> Option<String> {
        let fields = self.body.split(|&byte| byte == 0);
        let field = fields.filter(|field| field.first() == Some(&code)).find_map(|field| field.get(1..))?;
        Some(String::from_utf8_lossy(field).into_owned())
    }

    /// The body up to its first NUL: a CommandComplete's tag, a ParameterStatus' name.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.body.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}]", char::from(self.tag), self.body.escape_ascii())
    }
}
