//! The common story in tokio-postgres.

use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::Scene;
use crate::harness::tls::Tls;

/// 2026-11-23 12:30:15.123456 UTC
fn at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_795_437_015, 123_456_000)
}

pub(super) async fn tell(scene: &Scene) {
    let tls = Tls::new(&std::fs::read_to_string(&scene.ca).expect("the authority"), None);
    let mut client = login(scene, &tls).await;
    prepared_statements(&client).await;
    binary_results(&client).await;
    transaction(&mut client).await;
    copies(&client).await;
    cancel(&client, &tls).await;
    errors(&client).await;
    pipeline(&client).await;
    spread(&client).await;
    setting(scene, &tls, &client).await;
}

async fn login(scene: &Scene, tls: &Tls) -> Client {
    let conninfo = format!(
        "host=127.0.0.1 port={} user={} password=secret dbname={} sslmode=require channel_binding=require",
        scene.port, scene.user, scene.database
    );
    tls.connect(&conninfo).await.expect("login by SCRAM over TLS")
}

async fn count(client: &Client) -> i64 {
    client.query_one("select count(*) from story_items", &[]).await.expect("count").get(0)
}

fn code(error: &Error) -> Option<&SqlState> {
    error.code()
}

async fn prepared_statements(client: &Client) {
    // The price is spelled as text: tokio-postgres has no numeric of its own.
    let text = "insert into story_items (id, name, price, at, data) values ($1, $2, $3::text::numeric, $4, $5)";
    let insert = client.prepare(text).await.expect("prepare");
    for item in 1..=8_i32 {
        let data = (item != 3).then(|| vec![0, u8::try_from(item).expect("small"), 255]);
        let price = (f64::from(item) / 4.0).to_string();
        let done = client.execute(&insert, &[&item, &format!("item {item} é"), &price, &at(), &data]).await;
        assert_eq!(done.expect("insert"), 1);
    }
    let by_id = client.prepare("select name from story_items where id = $1").await.expect("prepare");
    for item in (0..24).map(|turn| turn % 8 + 1) {
        let row = client.query_one(&by_id, &[&item]).await.expect("select");
        assert_eq!(row.get::<_, String>(0), format!("item {item} é"));
    }
}

async fn binary_results(client: &Client) {
    let rows = client
        .query("select id, name, price::float8, at, data from story_items order by id", &[])
        .await
        .expect("select");
    assert_eq!(rows.len(), 8);
    assert_eq!((rows[0].get::<_, i32>(0), rows[0].get::<_, &str>(1), rows[0].get::<_, f64>(2)), (1, "item 1 é", 0.25));
    assert_eq!(rows[0].get::<_, SystemTime>(3), at());
    assert_eq!(rows[0].get::<_, &[u8]>(4), [0, 1, 255]);
    assert_eq!(rows[2].get::<_, Option<&[u8]>>(4), None);
}

async fn transaction(client: &mut Client) {
    let mut transaction = client.transaction().await.expect("begin");
    transaction.execute("insert into story_items (id, name) values (100, 'gone')", &[]).await.expect("insert");
    let inner = transaction.savepoint("inner_one").await.expect("savepoint");
    let twice = inner.execute("insert into story_items (id, name) values (100, 'twice')", &[]).await;
    assert_eq!(code(&twice.expect_err("a duplicate")), Some(&SqlState::UNIQUE_VIOLATION));
    let failed = inner.query("select 1", &[]).await;
    assert_eq!(code(&failed.expect_err("a failed transaction")), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    inner.rollback().await.expect("rollback to savepoint");
    let seen: i64 = transaction.query_one("select count(*) from story_items", &[]).await.expect("count").get(0);
    assert_eq!(seen, 9);
    // A portal, fetched in pieces.
    let portal = transaction.bind("select id from story_items order by id", &[]).await.expect("bind");
    let first = transaction.query_portal(&portal, 4).await.expect("fetch");
    let rest = transaction.query_portal(&portal, 0).await.expect("fetch");
    assert_eq!((first.len(), rest.len(), rest[4].get::<_, i32>(0)), (4, 5, 100));
    transaction.rollback().await.expect("rollback");
    assert_eq!(count(client).await, 8);
}

async fn copies(client: &Client) {
    let lines: String = (1000..3000).map(|item| format!("{item}\tcopied {item}\n")).collect();
    let mut sink = pin!(client.copy_in("copy story_items (id, name) from stdin").await.expect("copy in"));
    for piece in lines.as_bytes().chunks(1000) {
        sink.send(Bytes::copy_from_slice(piece)).await.expect("send");
    }
    assert_eq!(sink.finish().await.expect("finish"), 2000);
    let copy = "copy (select id, name from story_items where id >= 1000 order by id) to stdout";
    let out: Vec<Bytes> = client.copy_out(copy).await.expect("copy out").try_collect().await.expect("rows");
    assert_eq!(out.concat(), lines.as_bytes());
}

async fn cancel(client: &Client, tls: &Tls) {
    let began = Instant::now();
    let token = client.cancel_token();
    let sleep = client.query("select pg_sleep(30)", &[]);
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        token.cancel_query(tls.clone()).await.expect("the cancel request is sent");
    };
    let (slept, ()) = tokio::join!(sleep, cancel);
    assert_eq!(code(&slept.expect_err("a cancel")), Some(&SqlState::QUERY_CANCELED));
    assert!(began.elapsed() < Duration::from_secs(15));
    assert_eq!(client.query_one("select 2", &[]).await.expect("reuse").get::<_, i32>(0), 2);
}

async fn errors(client: &Client) {
    let divide = client.prepare("select 10 / $1::int").await.expect("prepare");
    for _ in 0..3 {
        let error = client.query_one(&divide, &[&0_i32]).await.expect_err("a division by zero");
        assert_eq!(code(&error), Some(&SqlState::DIVISION_BY_ZERO));
        assert_eq!(client.query_one(&divide, &[&5_i32]).await.expect("reuse").get::<_, i32>(0), 2);
    }
    let error = client.prepare("select nonsense").await.expect_err("no such column");
    assert_eq!(code(&error), Some(&SqlState::UNDEFINED_COLUMN));
}

async fn pipeline(client: &Client) {
    // Futures polled together travel together.
    let double = client.prepare("select $1::int * 2").await.expect("prepare");
    let doubled = (0..50).map(|number: i32| {
        let double = &double;
        async move { Ok::<_, Error>((number, client.query_one(double, &[&number]).await?.get::<_, i32>(0))) }
    });
    for (number, doubled) in try_join_all(doubled).await.expect("a pipeline") {
        assert_eq!(doubled, number * 2);
    }
    let (before, bad, after) = tokio::join!(
        client.simple_query("select 1"),
        client.simple_query("select 1 / 0"),
        client.simple_query("select 3")
    );
    assert!(before.is_ok() && after.is_ok());
    assert_eq!(code(&bad.expect_err("a division by zero")), Some(&SqlState::DIVISION_BY_ZERO));
    let rows = client.query_raw(&double, [4_i32]).await.expect("query");
    assert_eq!(pin!(rows).next().await.expect("a row").expect("a row").get::<_, i32>(0), 8);
}

async fn spread(client: &Client) {
    let grouped = "select region, count(*), sum(amount) from story_events group by region order by region";
    let read = async || -> Vec<(i32, i64, i64)> {
        let rows = client.query(grouped, &[]).await.expect("select");
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    };
    for _ in 0..4 {
        assert_eq!(read().await, [(0, 10, 2200), (1, 10, 1900), (2, 10, 2000), (3, 10, 2100)]);
    }
    let insert = "insert into story_events (customer_id, region, amount) values ($1, $2, $3)";
    assert_eq!(client.execute(insert, &[&41_i32, &1_i32, &5_i32]).await.expect("insert"), 1);
    assert_eq!(read().await, [(0, 10, 2200), (1, 11, 1905), (2, 10, 2000), (3, 10, 2100)]);
    let one = client.query_one("select amount from story_events where customer_id = $1", &[&41_i32]).await;
    assert_eq!(one.expect("one row").get::<_, i32>(0), 5);
}

async fn setting(scene: &Scene, tls: &Tls, client: &Client) {
    let text = "select at::text from story_items where id = 1";
    client.batch_execute("set timezone to 'Asia/Tokyo'").await.expect("set");
    let other = login(scene, tls).await;
    other.batch_execute("set timezone to 'UTC'").await.expect("set");
    for _ in 0..3 {
        let tokyo: String = client.query_one(text, &[]).await.expect("select").get(0);
        let utc: String = other.query_one(text, &[]).await.expect("select").get(0);
        assert_eq!((&*tokyo, &*utc), ("2026-11-23 21:30:15.123456+09", "2026-11-23 12:30:15.123456+00"));
    }
}
