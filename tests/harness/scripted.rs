//! A server that says and hears exactly what a test wrote down, for what a real PostgreSQL would never do.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long the server waits for what it should hear.
const PATIENCE: Duration = Duration::from_secs(20);

/// One step of a script.
#[derive(Debug, Clone)]
pub enum Act {
    /// Reads a startup message (declining SSLRequest and GSSENCRequest) and logs the client in without a password.
    Login,
    /// Reads a startup message, and answers nothing.
    Startup,
    /// Reads one message of that tag.
    Expect(u8),
    /// Reads messages until one has that tag.
    Until(u8),
    /// Sends bytes as they are.
    Send(Vec<u8>),
    /// Waits until the other side closes.
    UntilClosed,
    /// Closes with a TCP reset instead of an orderly end.
    Reset,
}

/// A listener that plays one script for each connection in turn, and then accepts no more.
pub struct ScriptedServer {
    /// The port on 127.0.0.1.
    pub port: u16,
    task: JoinHandle<()>,
}

impl ScriptedServer {
    /// Starts listening.
    pub async fn start(scripts: Vec<Vec<Act>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let port = listener.local_addr().expect("address").port();
        let task = tokio::spawn(async move {
            let mut played = Vec::new();
            for script in scripts {
                let (stream, _) = listener.accept().await.expect("accept");
                played.push(tokio::spawn(play(stream, script)));
            }
            for script in played {
                script.await.expect("the script was played to its end");
            }
        });
        Self { port, task }
    }

    /// Waits until all scripts were played; panics if one heard something else than was written.
    pub async fn done(self) {
        timeout(PATIENCE, self.task).await.expect("the scripts end in time").expect("the scripts were played");
    }

    /// A connection string for a TOML.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=scripted sslmode=disable", self.port)
    }
}

async fn play(mut stream: TcpStream, script: Vec<Act>) {
    for act in script {
        match act {
            Act::Login => {
                startup(&mut stream).await;
                stream.write_all(&login_answer()).await.expect("send");
            }
            Act::Startup => startup(&mut stream).await,
            Act::Expect(tag) => assert_eq!(char::from(message(&mut stream).await), char::from(tag)),
            Act::Until(tag) => while message(&mut stream).await != tag {},
            Act::Send(bytes) => stream.write_all(&bytes).await.expect("send"),
            Act::UntilClosed => while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {},
            Act::Reset => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger"),
        }
    }
}

async fn startup(stream: &mut TcpStream) {
    const SSL_REQUEST: i32 = 80_877_103;
    const GSSENC_REQUEST: i32 = 80_877_104;
    loop {
        let len = timeout(PATIENCE, stream.read_i32()).await.expect("in time").expect("a startup message");
        let mut body = vec![0; usize::try_from(len - 4).expect("a length")];
        stream.read_exact(&mut body).await.expect("a whole startup message");
        let code = i32::from_be_bytes(body[..4].try_into().expect("four bytes"));
        if code != SSL_REQUEST && code != GSSENC_REQUEST {
            return;
        }
        stream.write_all(b"N").await.expect("decline");
    }
}

async fn message(stream: &mut TcpStream) -> u8 {
    let tag = timeout(PATIENCE, stream.read_u8()).await.expect("in time").expect("a message");
    let len = stream.read_i32().await.expect("a length");
    let mut body = vec![0; usize::try_from(len - 4).expect("a length")];
    stream.read_exact(&mut body).await.expect("a whole message");
    tag
}

/// What PostgreSQL says after a login without a password.
pub fn login_answer() -> Vec<u8> {
    use bytes::{BufMut, BytesMut};
    use pgherd::wire::writer::{self, TransactionStatus};
    let mut out = BytesMut::new();
    writer::message(&mut out, b'R', |out| out.put_i32(0));
    let settings = [
        ("server_version", "15.0"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
        ("session_authorization", "postgres"),
        ("application_name", ""),
        ("default_transaction_read_only", "off"),
        ("in_hot_standby", "off"),
    ];
    settings.iter().for_each(|(name, value)| writer::parameter_status(&mut out, name, value));
    writer::message(&mut out, b'K', |out| {
        out.put_i32(1);
        out.put_i32(2);
    });
    writer::ready_for_query(&mut out, TransactionStatus::Idle);
    out.to_vec()
}
