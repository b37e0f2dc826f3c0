//! A front end that is nothing but the handshake: who gets in is told so by any query, and all outcomes are kept.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgherd::auth::scram::ScramStore;
use pgherd::error::{Error, ErrorKind};
use pgherd::net::framed::read_frame;
use pgherd::net::listener::Listener;
use pgherd::net::stream::Stream;
use pgherd::net::tls::ServerTls;
use pgherd::session::handshake::{self, Authenticated, Handshake, HandshakeContext};
use pgherd::wire::sqlstate::SqlState;
use pgherd::wire::writer::{self, TransactionStatus};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::harness::certificates::write;
use crate::harness::{certificates, ground, unique};

/// What came of one connection.
pub(super) enum Outcome {
    /// Someone got in: user, database, minor version, settings.
    In { user: String, database: String, minor: u16, settings: Vec<(String, String)> },
    /// A cancel request.
    Cancel(i32, Vec<u8>),
    /// The client left.
    Closed,
    /// It was refused.
    Refused(Error),
}

/// The listener and what it heard.
pub(super) struct Front {
    /// The TCP port on 127.0.0.1.
    pub(super) port: u16,
    /// The folder of its Unix socket, which has the same port number.
    pub(super) folder: PathBuf,
    full: Arc<AtomicBool>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
}

/// Every kind of user, all with the password `secret`.
const USERS: &str = r#"
    user = [
        { name = "sam", auth = "scram", password = "secret" },
        { name = "stored", auth = "scram", scram_secret = "SCRAM_SECRET" },
        { name = "mia", auth = "md5", password = "secret" },
        { name = "clara", auth = "cleartext", password = "secret" },
        { name = "carl", auth = "cert" },
        { name = "tom", auth = "trust" },
        { name = "only", auth = "scram", password = "secret", databases = ["other"] },
    ]
"#;

/// The stored verifier of `secret`: salt `0123456789abcdef`, 4096 rounds.
const SCRAM_SECRET: &str = "SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$";

impl Front {
    /// TLS is offered, not demanded.
    pub(super) async fn start() -> Self {
        Self::with("prefer", "5s").await
    }

    /// With that TLS mode and login timeout.
    pub(super) async fn with(mode: &str, login_timeout: &str) -> Self {
        let (ca, cert, key) = certificates().paths();
        let tls = match mode {
            "off" => "{ mode = \"off\" }".to_owned(),
            mode => format!("{{ mode = {mode:?}, cert = {cert:?}, key = {key:?}, client_ca = {ca:?} }}"),
        };
        // The configuration refuses users who could only prove themselves under TLS where there is none.
        let users =
            USERS.lines().filter(|line| mode != "off" || !(line.contains("cleartext") || line.contains("cert")));
        let users = users.collect::<Vec<_>>().join("\n").replace("SCRAM_SECRET", &stored_secret());
        let text = format!(
            "{users}\ndatabase = [{{ name = \"app\", primary = \"host=127.0.0.1\" }}, {{ name = \"other\", primary = \"host=127.0.0.1\" }}]\n\
             [listen]\naddress = \"127.0.0.1:0\"\nlogin_timeout = {login_timeout:?}\ntls = {tls}\n"
        );
        let path = write("proxy.toml", &text);
        let config = pgherd::config::load(&path).unwrap_or_else(|faults| panic!("{faults}"));
        let tls = ServerTls::load(&config.listen.tls).expect("certificates").map(Arc::new);
        let context = HandshakeContext { config: Arc::new(config), tls, scram: Arc::new(ScramStore::new()) };

        let tcp = Listener::bind_tcp(context.config.listen.address).expect("bound");
        let port = tcp.local_addr().expect("TCP").port();
        let folder = ground().folder().join(unique("front"));
        std::fs::create_dir(&folder).expect("folder");
        let unix = Listener::bind_unix(&folder, port).expect("bound");
        let (sender, outcomes) = mpsc::unbounded_channel();
        let full = Arc::new(AtomicBool::new(false));
        for listener in [tcp, unix] {
            let (context, sender, full) = (context.clone(), sender.clone(), Arc::clone(&full));
            tokio::spawn(async move {
                while let Ok(stream) = listener.accept().await {
                    let full = full.load(Ordering::Relaxed);
                    tokio::spawn(serve(stream, context.clone(), sender.clone(), full));
                }
            });
        }
        Self { port, folder, full, outcomes }
    }

    /// A connection string over TCP; `host` is the name that certificates are checked against.
    pub(super) fn conninfo(&self, user: &str, rest: &str) -> String {
        format!("host=localhost hostaddr=127.0.0.1 port={} user={user} dbname=app {rest}", self.port)
    }

    /// From now on everybody is turned away.
    pub(super) fn close_the_house(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    /// The next outcome.
    pub(super) async fn outcome(&mut self) -> Outcome {
        timeout(Duration::from_secs(20), self.outcomes.recv()).await.expect("in time").expect("an outcome")
    }

    /// The next refusal.
    pub(super) async fn refusal(&mut self) -> Error {
        match self.outcome().await {
            Outcome::Refused(error) => error,
            Outcome::In { user, .. } => panic!("{user} got in"),
            Outcome::Cancel(..) | Outcome::Closed => panic!("nobody was refused"),
        }
    }
}

fn stored_secret() -> String {
    // As `CREATE ROLE ... PASSWORD 'secret'` would store it, with a salt that the test chose.
    let client = pgherd::auth::scram::ScramVerifier::derive(b"secret", b"0123456789abcdef", 4096);
    let text = client.to_string();
    assert!(text.starts_with(SCRAM_SECRET), "{text}");
    text
}

async fn serve(stream: Stream, context: HandshakeContext, sender: mpsc::UnboundedSender<Outcome>, full: bool) {
    let shaken = if full {
        let refusal = Error::new(ErrorKind::Limit, SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already");
        handshake::turn_away(stream, &context, refusal).await
    } else {
        handshake::accept(stream, &context).await
    };
    let outcome = match shaken {
        Ok(Handshake::Session(client)) => {
            let _ = sender.send(Outcome::In {
                user: client.user.name.clone(),
                database: client.database.name.clone(),
                minor: client.startup.minor,
                settings: client.startup.settings.clone(),
            });
            return session(*client).await;
        }
        Ok(Handshake::Cancel { pid, secret, .. }) => Outcome::Cancel(pid, secret.to_vec()),
        Ok(Handshake::Replication(..)) => panic!("nobody may replicate here"),
        Ok(Handshake::Console(_)) => panic!("nobody may use the console here"),
        Ok(Handshake::Closed) => Outcome::Closed,
        Err(error) => Outcome::Refused(error),
    };
    let _ = sender.send(outcome);
}

/// Ends the login, then answers each query by one row: user, database and TLS version.
async fn session(client: Authenticated) {
    let Authenticated { mut stream, mut inbuf, mut outbuf, user, database, .. } = client;
    let tls = stream.tls_info().map_or("none", |info| info.version);
    writer::parameter_status(&mut outbuf, "server_version", "15.0");
    writer::parameter_status(&mut outbuf, "client_encoding", "UTF8");
    writer::message(&mut outbuf, b'K', |out| out.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]));
    writer::ready_for_query(&mut outbuf, TransactionStatus::Idle);
    stream.write_all_buf(&mut outbuf).await.expect("written");
    while let Ok(Some(frame)) = read_frame(&mut stream, &mut inbuf, 10_000).await {
        if frame.tag() != b'Q' {
            return;
        }
        let row = [user.name.as_bytes(), database.name.as_bytes(), tls.as_bytes()].map(Some);
        writer::text_row_description(&mut outbuf, &["user", "database", "tls"]);
        writer::data_row(&mut outbuf, row.into_iter());
        writer::command_complete(&mut outbuf, "SELECT 1");
        writer::ready_for_query(&mut outbuf, TransactionStatus::Idle);
        stream.write_all_buf(&mut outbuf).await.expect("written");
    }
}
