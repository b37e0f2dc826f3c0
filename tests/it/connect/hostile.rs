//! What no honest client sends: each is an error for that client, and the next one is served.

use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use pgherd::wire::{authentication, startup, writer};

use super::front::{Front, Outcome};
use crate::harness::certificates;
use crate::harness::tls::Tls;
use crate::harness::wire::WireClient;

const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
const GSSENC_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 48];
const VERSION: i32 = 0x0003_0000;

#[tokio::test]
async fn bytes_behind_an_sslrequest_are_an_attack() {
    let mut front = Front::start().await;
    let mut client = WireClient::bare(front.port).await;
    let mut smuggled = BytesMut::from(SSL_REQUEST);
    startup::startup_message(&mut smuggled, 0, &[("user", "tom"), ("database", "app")]);
    client.send(&smuggled).await;
    assert_eq!(client.byte().await, b'S');
    assert!(client.ended().await.is_empty(), "nothing is answered in the clear");
    let error = front.refusal().await;
    assert_eq!((error.sqlstate().code(), error.message()), ("08P01", "received unencrypted data after SSL request"));
}

#[tokio::test]
async fn requests_for_encryption_are_answered_once() {
    let front = Front::with("off", "5s").await;
    let mut client = WireClient::bare(front.port).await;
    client.send(GSSENC_REQUEST).await;
    assert_eq!(client.byte().await, b'N');
    client.send(SSL_REQUEST).await;
    assert_eq!(client.byte().await, b'N');
    client.send(SSL_REQUEST).await;
    let error = client.next().await;
    assert_eq!(error.field(b'C').as_deref(), Some("0A000"));
    assert_eq!(
        error.field(b'M').as_deref(),
        Some("unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2")
    );
    assert!(client.ended().await.is_empty());
}

#[tokio::test]
async fn another_major_version_and_a_broken_packet_are_told_why() {
    let front = Front::start().await;
    for (version, code) in [(0x0002_0000, "0A000"), (0x0004_0000, "0A000")] {
        let mut client = WireClient::bare(front.port).await;
        client.startup(version, &[("user", "tom")]).await;
        assert_eq!(client.next().await.field(b'C').as_deref(), Some(code));
    }
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 7, 0, 3, 0], &[0, 0, 0, 9, 0, 3, 0, 0, b'x']] {
        let mut client = WireClient::bare(front.port).await;
        client.send(bytes).await;
        assert_eq!(client.next().await.field(b'C').as_deref(), Some("08P01"), "{bytes:?}");
        assert!(client.ended().await.is_empty());
    }
}

#[tokio::test]
async fn a_newer_minor_version_is_negotiated_down() {
    let mut front = Front::start().await;
    let mut client = WireClient::bare(front.port).await;
    client.startup(VERSION | 9999, &[("user", "tom"), ("database", "app"), ("_pq_.novelty", "on")]).await;
    let negotiated = &client.expect("vRSSKZ").await[0];
    assert_eq!(negotiated.body, b"\0\x03\0\x02\0\0\0\x01_pq_.novelty\0");
    assert!(matches!(front.outcome().await, Outcome::In { minor: 2, .. }));
}

#[tokio::test]
async fn a_cancel_request_hands_over_its_key() {
    let mut front = Front::start().await;
    let mut client = WireClient::bare(front.port).await;
    client.say(|out| startup::cancel_request(out, -7, &[5; 256])).await;
    assert!(matches!(front.outcome().await, Outcome::Cancel(-7, secret) if secret == [5; 256]));
    assert!(client.ended().await.is_empty(), "a cancel request is not answered");
}

#[tokio::test]
async fn a_port_probe_and_a_client_that_goes_to_ask_for_a_password_are_no_errors() {
    let mut front = Front::start().await;
    drop(WireClient::bare(front.port).await);
    assert!(matches!(front.outcome().await, Outcome::Closed));
    let mut client = WireClient::bare(front.port).await;
    client.startup(VERSION, &[("user", "sam"), ("database", "app")]).await;
    client.expect("R").await;
    drop(client);
    assert!(matches!(front.outcome().await, Outcome::Closed));
}

#[tokio::test]
async fn who_does_not_finish_in_time_is_let_go() {
    let mut front = Front::with("prefer", "300ms").await;
    let began = Instant::now();
    let mut silent = WireClient::bare(front.port).await;
    let mut halfway = WireClient::bare(front.port).await;
    halfway.startup(VERSION, &[("user", "sam"), ("database", "app")]).await;
    halfway.expect("R").await;
    assert_eq!(halfway.next().await.field(b'C').as_deref(), Some("57014"));
    assert!(silent.ended().await.len() <= 1);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(front.refusal().await.message(), "canceling authentication due to timeout");
}

#[tokio::test]
async fn garbage_instead_of_a_password_is_refused() {
    let front = Front::start().await;
    let scram = |message: &[u8]| {
        let mut out = BytesMut::new();
        authentication::sasl_initial_response(&mut out, "SCRAM-SHA-256", message);
        out.to_vec()
    };
    let frame = |tag: u8, body: &[u8]| {
        let mut out = BytesMut::new();
        writer::message(&mut out, tag, |out| out.put_slice(body));
        out.to_vec()
    };
    let table = [
        ("sam", frame(b'Q', b"select 1\0"), "08P01"),
        ("sam", frame(b'p', b""), "08P01"),
        ("sam", frame(b'p', b"SCRAM-SHA-256\0\0\0\x01\0"), "08P01"),
        ("sam", frame(b'p', b"SCRAM-SHA-256-PLUS\0\0\0\0\x09n,,n=,r=a"), "08P01"),
        ("sam", scram(b"n,,"), "08P01"),
        ("sam", scram(b"\xff\xfe"), "08P01"),
        ("sam", scram(b"n,a=tom,n=,r=abc"), "0A000"),
        ("mia", frame(b'p', b"md5"), "08P01"),
        ("mia", frame(b'p', b"md5\0"), "28P01"),
        ("sam", vec![b'p', 0xff, 0xff, 0xff, 0xff], "08P01"),
        ("sam", vec![b'p', 0x00, 0x01, 0x00, 0x00], "08P01"),
        ("sam", vec![b'p', 0x7f, 0xff, 0xff, 0xff], "08P01"),
    ];
    for (user, bytes, code) in table {
        let mut client = WireClient::bare(front.port).await;
        client.startup(VERSION, &[("user", user), ("database", "app")]).await;
        client.expect("R").await;
        client.send(&bytes).await;
        let error = client.next().await;
        assert_eq!(error.field(b'C').as_deref(), Some(code), "{user} {bytes:?}: {error:?}");
        assert_eq!(error.field(b'V').as_deref(), Some("FATAL"));
        assert!(client.ended().await.is_empty());
    }
}

#[tokio::test]
async fn random_bytes_leave_the_next_client_unharmed() {
    let mut front = Front::with("prefer", "500ms").await;
    for round in 0..200_u32 {
        let mut bytes: Vec<u8> = (0..rand::random_range(1..200)).map(|_| rand::random()).collect();
        // Half of them look like a packet that the server must read to its end; some look like TLS.
        if round % 2 == 0 {
            let len = u32::try_from(bytes.len() + 8).expect("short");
            bytes = [&len.to_be_bytes()[..], &VERSION.to_be_bytes(), &bytes].concat();
        } else if round % 3 == 0 {
            bytes[0] = 0x16;
        }
        let mut client = WireClient::bare(front.port).await;
        client.send(&bytes).await;
        drop(client);
        // A task that panicked would leave no outcome.
        assert!(!matches!(front.outcome().await, Outcome::In { .. }), "{bytes:?}");
    }
    let tls = Tls::new(&certificates().ca, None);
    tls.connect(&front.conninfo("sam", "password=secret sslmode=require")).await.expect("logged in");
}
