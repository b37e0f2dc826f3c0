//! What a peer controls is bounded, and full queues in every direction come to rest.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use pgherd::wire::writer;
use tokio::time::timeout;

use super::proxy::{PATIENCE, Proxy};
use crate::harness::wire::{bind, rows, tags};

#[tokio::test]
async fn a_pipeline_larger_than_every_queue_is_answered_although_the_server_was_busy() {
    let proxy = Proxy::start("max_connections = 2").await;
    proxy.database.execute("create table t (a int, b text)").await;
    let blocker = proxy.database.client().await;
    blocker.batch_execute("begin; lock table t").await.expect("locked");
    let mut client = proxy.wire().await;
    let count = 20_000;
    let mut out = BytesMut::new();
    writer::parse(&mut out, b"i", b"insert into t values ($1, $2)", &[23, 25]);
    for n in 0..count {
        bind(&mut out, "", "i", &[Some(&n.to_string()), Some(&"v".repeat(200))], 0);
        writer::execute(&mut out, b"", 0);
    }
    writer::sync(&mut out);
    let send = client.send(&out);
    let unblock = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        blocker.batch_execute("commit").await.expect("unlocked");
    };
    // Everything was sent before anything is read: the server's answers wait in its own and pgherd's buffers.
    timeout(PATIENCE, async { tokio::join!(send, unblock) }).await.expect("the whole pipeline is taken");
    let answers = timeout(PATIENCE, client.until_ready()).await.expect("all is answered");
    assert_eq!(answers.len(), 1 + 2 * count + 1);
    assert_eq!(rows(&client.query("select count(*) from t").await), [[Some(count.to_string())]]);
}

#[tokio::test]
async fn a_client_that_asks_and_never_listens_is_not_read_for_ever() {
    let proxy = Proxy::start("max_connections = 2").await;
    for held in [false, true] {
        let mut client = proxy.wire().await;
        if held {
            client.query("begin").await;
        }
        // Each is answered by pgherd itself where it can be.
        let mut out = BytesMut::new();
        for _ in 0..10_000 {
            writer::close(&mut out, b'S', b"nothing");
            writer::sync(&mut out);
        }
        let mut sent = 0_usize;
        while sent < 256 << 20 && timeout(Duration::from_secs(2), client.send(&out)).await.is_ok() {
            sent += out.len();
        }
        assert!(sent < 64 << 20, "{sent} bytes were taken from a client that reads nothing (held: {held})");
    }
}

#[tokio::test]
async fn a_notice_or_an_error_as_large_as_a_client_likes_passes_without_being_held() {
    let proxy = Proxy::start("max_connections = 1").await;
    let mut client = proxy.wire().await;
    let notice = "do $$ begin raise notice '%', repeat('n', 30000000); end $$";
    let answers = client.query(notice).await;
    assert_eq!(tags(&answers), "NCZ");
    assert!(answers[0].body.len() > 30_000_000);
    let answers = client.query("do $$ begin raise exception '%', repeat('e', 30000000); end $$").await;
    assert_eq!(tags(&answers), "EZ");
    assert!(answers[0].body.len() > 30_000_000);
    assert_eq!(rows(&client.query("select 1").await), [[Some("1".to_owned())]]);
    drop(client);
    proxy.examine().await;
}

#[tokio::test]
async fn a_large_row_and_a_large_parameter_go_through_and_come_back() {
    let proxy = Proxy::start("max_connections = 1").await;
    let mut client = proxy.wire().await;
    let value = "v".repeat(20_000_000);
    client
        .say(|out| {
            writer::parse(out, b"", b"select $1::text", &[]);
            bind(out, "", "", &[Some(&value)], 0);
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    let answers = client.until_ready().await;
    assert_eq!(rows(&answers), [[Some(value)]]);
    drop(client);
    proxy.examine().await;
}

/// Every frontend type with bodies that no driver sends: pgherd answers or closes, and other clients do not notice.
#[tokio::test]
async fn nonsense_bytes_end_only_the_session_that_sent_them() {
    let proxy = Proxy::start("max_connections = 2").await;
    let bodies: [&[u8]; 7] = [b"", b"\0", b"x", b"x\0", b"\0\0\xff\xff", b"S\0\xff", b"\xff\xff\xff\xff\xff\xff"];
    for tag in 0..=255_u8 {
        for body in bodies {
            let mut client = proxy.wire().await;
            client
                .say(|out| {
                    out.put_u8(tag);
                    out.put_i32(i32::try_from(body.len() + 4).expect("short"));
                    out.put_slice(body);
                    writer::sync(out);
                    writer::terminate(out);
                })
                .await;
            timeout(PATIENCE, client.ended()).await.unwrap_or_else(|_| panic!("{tag} {body:?} is never answered"));
        }
    }
    for length in [-1, 0, 3, i32::MIN, i32::MAX] {
        let mut client = proxy.wire().await;
        client
            .say(|out| {
                out.put_u8(b'Q');
                out.put_i32(length);
            })
            .await;
        let last = timeout(PATIENCE, client.ended()).await.expect("closed");
        assert_eq!(tags(&last), "E", "length {length}");
    }
    assert_eq!(rows(&proxy.wire().await.query("select 1").await), [[Some("1".to_owned())]]);
    proxy.examine().await;
}
