//! COPY as drivers really do it: data sent before they are asked for, and errors in the middle of a message.

use bytes::{BufMut, BytesMut};
use pgherd::wire::writer;

use crate::harness::wire::{WireClient, bind, rows, tags};
use crate::harness::{Database, Pgherd, fresh_database};

fn copy_data(out: &mut BytesMut, data: &[u8]) {
    writer::message(out, b'd', |out| out.put_slice(data));
}

fn copy_done(out: &mut BytesMut) {
    writer::message(out, b'c', |_| {});
}

fn copy_fail(out: &mut BytesMut) {
    writer::message(out, b'f', |out| writer::cstr(out, b"no more"));
}

/// One server connection for everybody: what is left on it shows in the next story's first line.
async fn scene(rest: &str) -> (Database, Pgherd) {
    let database = fresh_database().await;
    database.execute("create table t (a int)").await;
    let pool = "pool = { max_connections = 1, min_connections = 1, acquire_timeout = \"5s\" }";
    let pgherd = Pgherd::over(&database, &format!("{pool}\n{rest}")).await;
    (database, pgherd)
}

async fn count(client: &mut WireClient) -> Option<String> {
    rows(&client.query("select count(*) from t").await)[0][0].clone()
}

#[tokio::test]
async fn data_may_come_before_they_are_asked_for() {
    for rest in ["", "[cache]\nenabled = true"] {
        let (database, pgherd) = scene(rest).await;
        let straight = WireClient::login(database.port, "postgres", &database.name).await;
        for mut client in [straight, pgherd.wire(&database.name).await] {
            client.query("truncate t").await;
            client
                .say(|out| {
                    for _ in 0..2 {
                        writer::query(out, b"copy t from stdin");
                        copy_data(out, b"1\n2\n");
                        copy_done(out);
                    }
                    writer::query(out, b"copy t from stdin");
                    copy_fail(out);
                    writer::query(out, b"select count(*) from t");
                })
                .await;
            let messages = client.expect("GCZGCZGEZTDCZ").await;
            assert_eq!(rows(&messages), [[Some("4".to_owned())]]);
        }
    }
}

#[tokio::test]
async fn so_may_they_in_the_extended_protocol() {
    let (database, pgherd) = scene("").await;
    let straight = WireClient::login(database.port, "postgres", &database.name).await;
    for mut client in [straight, pgherd.wire(&database.name).await] {
        client.query("truncate t").await;
        client
            .say(|out| {
                writer::parse(out, b"", b"copy t from stdin", &[]);
                bind(out, "", "", &[], 0);
                writer::execute(out, b"", 0);
                copy_data(out, b"1\n");
                writer::sync(out);
                copy_data(out, b"2\n");
                copy_done(out);
                writer::sync(out);
                writer::query(out, b"select count(*) from t");
            })
            .await;
        let messages = client.expect("12GCZTDCZ").await;
        assert_eq!(rows(&messages), [[Some("2".to_owned())]], "a Sync among the data is ignored");
    }
}

#[tokio::test]
async fn data_for_no_copy_are_ignored() {
    let (database, pgherd) = scene("").await;
    let straight = WireClient::login(database.port, "postgres", &database.name).await;
    for mut client in [straight, pgherd.wire(&database.name).await] {
        client
            .say(|out| {
                copy_data(out, b"1\n");
                copy_done(out);
                writer::query(out, b"select 1");
                copy_data(out, b"2\n");
                copy_fail(out);
                copy_done(out);
                writer::query(out, b"copy nowhere from stdin");
                copy_data(out, b"3\n");
                copy_done(out);
                writer::query(out, b"select 2");
            })
            .await;
        assert_eq!(tags(&client.expect("TDCZEZTDCZ").await), "TDCZEZTDCZ");
    }
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_message_leaves_nothing_on_the_server() {
    let (database, pgherd) = scene("").await;
    let mut client = pgherd.wire(&database.name).await;
    client.say(|out| writer::query(out, b"copy t from stdin")).await;
    client.expect("G").await;
    let mut out = BytesMut::new();
    copy_data(&mut out, b"not a number\n");
    let large = vec![b'7'; 300_000];
    copy_data(&mut out, &large);
    let (first, rest) = out.split_at(100_000);
    client.send(first).await;
    let messages = client.expect("EZ").await;
    assert_eq!(messages[0].field(b'C').as_deref(), Some("22P02"));

    // The end of the message belongs to the server that has its beginning: nobody else's words may come between.
    let mut other = pgherd.wire(&database.name).await;
    other.say(|out| writer::query(out, b"select 'other'")).await;
    client.send(rest).await;
    assert_eq!(rows(&other.until_ready().await), [[Some("other".to_owned())]]);
    assert_eq!(count(&mut client).await.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_message_leaves_nothing_behind() {
    let (database, pgherd) = scene("").await;
    let mut client = pgherd.wire(&database.name).await;
    client.say(|out| writer::query(out, b"copy t from stdin")).await;
    client.expect("G").await;
    let mut out = BytesMut::new();
    copy_data(&mut out, b"1\n");
    copy_data(&mut out, &vec![b'7'; 300_000]);
    client.send(&out[..200_000]).await;
    client.reset();
    let mut other = pgherd.wire(&database.name).await;
    assert_eq!(count(&mut other).await.as_deref(), Some("0"));
}
