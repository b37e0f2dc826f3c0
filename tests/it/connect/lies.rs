//! Servers that do what PostgreSQL never would: none gets a password or a connection out of us that it should not have.

use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use pgherd::backend::cancel;
use pgherd::backend::connect::{Login, connect};
use pgherd::config::dsn;
use pgherd::config::model::Secret;
use pgherd::error::Error;
use pgherd::net::tls::ClientTls;
use pgherd::wire::authentication::{Authentication, request};
use pgherd::wire::writer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::scripted::{Act, ScriptedServer, login_answer};

fn login(limit: Duration) -> Login {
    Login {
        user: "me".to_owned(),
        password: Some(Secret::new("secret")),
        scram_keys: None,
        startup: Vec::new(),
        database: "app".to_owned(),
        connect_timeout: limit,
        tls: ClientTls::new(),
    }
}

/// What we make of a server that plays these acts.
async fn outcome(acts: Vec<Act>, rest: &str) -> Result<(), Error> {
    let server = ScriptedServer::start(vec![acts]).await;
    let address = dsn::parse(&format!("{} {rest}", server.conninfo())).expect("valid");
    connect(&address, &login(Duration::from_secs(20))).await.map(|_| ())
}

fn asking(authentication: &Authentication<'_>) -> Act {
    let mut out = BytesMut::new();
    request(&mut out, authentication);
    Act::Send(out.to_vec())
}

fn sending(tag: u8, body: &[u8]) -> Act {
    let mut out = BytesMut::new();
    writer::message(&mut out, tag, |out| out.put_slice(body));
    Act::Send(out.to_vec())
}

#[tokio::test]
async fn an_honest_script_logs_us_in() {
    assert!(outcome(vec![Act::Login], "").await.is_ok());
}

#[tokio::test]
async fn what_breaks_the_protocol_is_named() {
    let plus = Authentication::Sasl { mechanisms: vec![b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"] };
    let unknown = Authentication::Sasl { mechanisms: vec![b"SCRAM-SHA-512"] };
    let scram = || asking(&Authentication::Sasl { mechanisms: vec![b"SCRAM-SHA-256"] });
    let table = [
        (vec![asking(&plus)], "without TLS"),
        (vec![asking(&unknown)], "SCRAM-SHA-512"),
        (vec![asking(&Authentication::Other(7))], "not supported"),
        (vec![scram(), Act::Expect(b'p'), asking(&Authentication::Ok)], "no SCRAM challenge"),
        (
            vec![scram(), Act::Expect(b'p'), asking(&Authentication::SaslContinue(b"r=other,s=c2FsdA==,i=4096"))],
            "nonce",
        ),
        (vec![sending(b'R', b"\0\0")], "kind is missing"),
        (vec![sending(b'v', b"\0\x02\0\0\0\0\0\0")], "protocol 3.0"),
        (vec![sending(b'D', b"\0\0")], "authentication request"),
        (vec![sending(b'E', b"Mno end")], "no end"),
        (vec![asking(&Authentication::Ok), sending(b'K', b"\0\0\0\x01")], "secret is missing"),
        (vec![asking(&Authentication::Ok), sending(b'Z', b"T")], "not idle"),
        (vec![asking(&Authentication::Ok), sending(b'D', b"\0\0")], "before it was ready"),
        (vec![Act::Send(vec![b'R', 0xff, 0xff, 0xff, 0xff])], "below the minimum"),
        (vec![Act::Send(vec![b'R', 0x7f, 0xff, 0xff, 0xff])], "over the limit"),
        (vec![], "lost the connection"),
    ];
    for (acts, why) in table {
        let acts = [vec![Act::Startup], acts].concat();
        let error = outcome(acts, "").await.expect_err(why);
        assert!(error.message().contains(why) && error.message().contains("127.0.0.1"), "{why}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_skips_its_proof_is_not_believed() {
    // Someone in between who does not know the password could still say "fine" after our proof.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listening");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut buf = vec![0; 4096];
        let _ = stream.read(&mut buf).await.expect("a startup packet");
        let mut out = BytesMut::new();
        request(&mut out, &Authentication::Sasl { mechanisms: vec![b"SCRAM-SHA-256"] });
        stream.write_all_buf(&mut out).await.expect("sent");
        let count = stream.read(&mut buf).await.expect("a first message");
        let first = String::from_utf8_lossy(&buf[..count]).into_owned();
        let nonce = first.rsplit_once("r=").expect("a nonce").1;
        request(&mut out, &Authentication::SaslContinue(format!("r={nonce}x,s=c2FsdA==,i=4096").as_bytes()));
        stream.write_all_buf(&mut out).await.expect("sent");
        let _ = stream.read(&mut buf).await.expect("our proof");
        stream.write_all(&login_answer()).await.expect("sent");
        let _ = stream.read(&mut buf).await;
    });
    let address = dsn::parse(&format!("host=127.0.0.1 port={port} sslmode=disable")).expect("valid");
    let error = connect(&address, &login(Duration::from_secs(20))).await.expect_err("no proof");
    assert!(error.message().contains("no SCRAM proof of its own"), "{error}");
}

#[tokio::test]
async fn an_answer_to_sslrequest_that_is_neither_yes_nor_no_is_not_shown() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listening");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        stream.write_all(b"EPlease visit evil.example").await.expect("sent");
        let _ = stream.read(&mut [0; 64]).await;
    });
    let address = dsn::parse(&format!("host=127.0.0.1 port={port} sslmode=prefer")).expect("valid");
    let error = connect(&address, &login(Duration::from_secs(20))).await.expect_err("refused");
    assert!(error.message().contains("0x45") && !format!("{error:?}").contains("evil"), "{error:?}");
}

#[tokio::test]
async fn silence_is_bounded_by_one_deadline() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listening");
    let port = listener.local_addr().expect("bound").port();
    let address = dsn::parse(&format!("host=127.0.0.1 port={port} sslmode=require")).expect("valid");
    let began = Instant::now();
    let error = connect(&address, &login(Duration::from_millis(100))).await.expect_err("silence");
    assert!(error.message().contains("within 100ms"), "{error}");
    let sent = cancel::send(&address, &ClientTls::new(), 1, b"1234", Duration::from_millis(100)).await;
    assert!(sent.expect_err("silence").message().contains("within 100ms"));
    assert!(began.elapsed() < Duration::from_secs(10));
}
