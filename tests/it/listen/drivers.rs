//! LISTEN as drivers do it: psql, which prints what it was told behind its next query, and tokio-postgres, which waits for it.

use std::future::poll_fn;

use tokio::process::Command;
use tokio_postgres::{AsyncMessage, NoTls};

use super::{listeners, nobody_listens, stage};
use crate::harness::ground;
use crate::relay::proxy::PATIENCE;

#[tokio::test]
async fn tokio_postgres_is_told_while_it_waits() {
    let proxy = stage().await;
    let (client, mut connection) = tokio_postgres::connect(&proxy.conninfo(), NoTls).await.expect("connected");
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    let driven = tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = sender.send((notification.channel().to_owned(), notification.payload().to_owned()));
            }
        }
    });
    client.batch_execute("listen a").await.expect("listening");
    let shown: Vec<String> = client
        .query("select pg_listening_channels()", &[])
        .await
        .expect("shown")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(shown, ["a"]);
    client.execute("select pg_notify('a', $1)", &[&"from itself"]).await.expect("notified");
    proxy.database.execute("notify a, 'from elsewhere'").await;
    for payload in ["from itself", "from elsewhere"] {
        let heard = tokio::time::timeout(PATIENCE, told.recv()).await.expect("in time").expect("told");
        assert_eq!(heard, ("a".to_owned(), payload.to_owned()));
    }
    drop(client);
    driven.await.expect("ended");
    nobody_listens(&proxy.database).await;
}

#[tokio::test]
async fn psql_prints_what_it_was_told() {
    let proxy = stage().await;
    let mut psql = Command::new(ground().binaries().postgres_program("psql"));
    psql.args(["-X", "-At", "-d", &proxy.conninfo()]);
    psql.args(["-c", "listen a", "-c", "notify a, 'me'"]);
    // It looks for notifications behind each of its queries.
    for _ in 0..50 {
        psql.args(["-c", "select pg_sleep(0.02)"]);
    }
    let output = psql.output().await.expect("psql ran");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.matches("Asynchronous notification \"a\" with payload \"me\"").count(), 1, "{said}");
    assert!(listeners(&proxy.database).await.len() <= 1);
}
