//! COPY through the relay where something goes wrong in the middle of it.

use bytes::{BufMut, BytesMut};
use pgherd::wire::writer;

use super::proxy::Proxy;
use crate::harness::wire::{WireClient, bind, rows, tags};

async fn with_table(pool: &str) -> Proxy {
    let proxy = Proxy::start(pool).await;
    proxy.database.execute("create table t (a int, b text)").await;
    proxy
}

fn data(out: &mut BytesMut, text: &str) {
    writer::message(out, b'd', |out| out.put_slice(text.as_bytes()));
}

/// The header of a CopyData of so many bytes, and some of them.
fn half_data(out: &mut BytesMut, total: usize, sent: usize) {
    out.put_u8(b'd');
    out.put_i32(i32::try_from(total + 4).expect("short"));
    out.put_bytes(b'Q', sent);
}

async fn until(client: &mut WireClient, tag: u8) {
    while client.next().await.tag != tag {}
}

/// The server has failed the COPY and is at rest while half a message is still on its way to it: nobody else may have it.
#[tokio::test]
async fn a_copy_that_fails_in_the_middle_of_a_message_gives_no_half_message_to_the_next_client() {
    let proxy = with_table("max_connections = 1").await;
    let mut copying = proxy.wire().await;
    copying.say(|out| writer::query(out, b"copy t from stdin")).await;
    until(&mut copying, b'G').await;
    copying
        .say(|out| {
            data(out, "not a number\tx\n");
            half_data(out, 100_000, 50_000);
        })
        .await;
    let failed = copying.until_ready().await;
    assert_eq!(tags(&failed), "EZ");

    // Another client waits for the only server, and gets it when the message has ended, not before.
    let mut other = proxy.wire().await;
    other.say(|out| writer::query(out, b"select 'mine'")).await;
    other.silent(std::time::Duration::from_millis(200)).await;
    copying.say(|out| out.put_bytes(b'Q', 50_000)).await;
    assert_eq!(rows(&other.until_ready().await), [[Some("mine".to_owned())]]);
    assert_eq!(rows(&copying.query("select 'and mine'").await), [[Some("and mine".to_owned())]]);
    proxy.examine().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_message_costs_that_server_connection_only() {
    let proxy = with_table("max_connections = 1").await;
    for leave in [false, true] {
        let mut copying = proxy.wire().await;
        copying.say(|out| writer::query(out, b"copy t from stdin")).await;
        until(&mut copying, b'G').await;
        copying
            .say(|out| {
                data(out, "1\tone\n");
                half_data(out, 100_000, 10);
            })
            .await;
        if leave {
            copying.reset()
        } else {
            drop(copying)
        }
        let mut other = proxy.wire().await;
        assert_eq!(rows(&other.query("select count(*) from t").await), [[Some("0".to_owned())]]);
    }
    proxy.examine().await;
}

/// A Sync sent ahead is ignored by a server that takes COPY data: its implicit transaction is open until the next.
#[tokio::test]
async fn a_copy_without_its_last_sync_is_not_taken_for_finished() {
    let proxy = with_table("max_connections = 1").await;
    let mut copying = proxy.wire().await;
    copying
        .say(|out| {
            writer::parse(out, b"", b"copy t from stdin", &[]);
            bind(out, "", "", &[], 0);
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    until(&mut copying, b'G').await;
    copying
        .say(|out| {
            data(out, "1\tone\n");
            writer::message(out, b'c', |_| {});
            writer::flush(out);
        })
        .await;
    until(&mut copying, b'C').await;
    drop(copying);
    let mut other = proxy.wire().await;
    assert_eq!(rows(&other.query("select count(*) from t").await), [[Some("0".to_owned())]]);
    assert_eq!(tags(&other.query("begin").await), "CZ");
    assert_eq!(tags(&other.query("commit").await), "CZ");
    drop(other);
    proxy.examine().await;
}

#[tokio::test]
async fn a_large_copy_goes_through_in_messages_of_any_size() {
    let proxy = with_table("max_connections = 2").await;
    let mut client = proxy.wire().await;
    client.say(|out| writer::query(out, b"copy t from stdin")).await;
    until(&mut client, b'G').await;
    for size in [1_usize, 100, 70_000, 3_000_000] {
        client.say(|out| data(out, &format!("{size}\t{}\n", "z".repeat(size)))).await;
    }
    client.say(|out| writer::message(out, b'c', |_| {})).await;
    assert_eq!(tags(&client.until_ready().await), "CZ");
    let lengths = client.query("select sum(length(b)) from t").await;
    assert_eq!(rows(&lengths), [[Some("3070101".to_owned())]]);
    drop(client);
    proxy.examine().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_rows_come_costs_a_cancel() {
    let proxy = with_table("max_connections = 1").await;
    for text in [
        "copy (select repeat('x', 1000) from generate_series(1, 1000000)) to stdout",
        "select repeat('x', 1000) from generate_series(1, 1000000)",
    ] {
        let mut client = proxy.wire().await;
        client.say(|out| writer::query(out, text.as_bytes())).await;
        client.next().await;
        drop(client);
        let mut other = proxy.wire().await;
        assert_eq!(rows(&other.query("select 1").await), [[Some("1".to_owned())]], "{text}");
    }
    proxy.examine().await;
}
