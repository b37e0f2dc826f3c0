//! LISTEN in transaction mode: one server connection listens for all clients of a database.

mod crowd;
mod drivers;
mod loss;
mod transactions;

use crate::harness::wire::{Message, WireClient};
use crate::harness::{Database, eventually};
use crate::relay::proxy::{PATIENCE, Proxy};

/// Channel and payload of a NotificationResponse.
fn told(message: &Message) -> (String, String) {
    assert_eq!(message.tag, b'A', "{message:?}");
    let mut texts = message.body[4..].split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
    (texts.next().expect("a channel"), texts.next().expect("a payload"))
}

/// What a client is told next, and nothing else.
async fn hears(client: &mut WireClient, channel: &str, payload: &str) {
    let message = client.next().await;
    assert_eq!(told(&message), (channel.to_owned(), payload.to_owned()));
}

/// The tags of an answer without what was notified, and what was.
fn parts(messages: &[Message]) -> (String, Vec<(String, String)>) {
    let (notified, rest): (Vec<&Message>, Vec<&Message>) = messages.iter().partition(|it| it.tag == b'A');
    (rest.iter().map(|it| char::from(it.tag)).collect(), notified.into_iter().map(told).collect())
}

/// Runs a statement that works, and returns what was notified meanwhile.
async fn run(client: &mut WireClient, text: &str) -> Vec<(String, String)> {
    let messages = client.query(text).await;
    let (tags, notified) = parts(&messages);
    assert!(!tags.contains('E'), "{text}: {messages:?}");
    notified
}

/// Process ids of pgherd's listeners in a database.
async fn listeners(database: &Database) -> Vec<i32> {
    let sql =
        "select pid from pg_stat_activity where datname = current_database() and application_name = 'pgherd listener'";
    let rows = database.client().await.query(sql, &[]).await.expect("activity");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Waits until no listener is left, as after the last client has left.
async fn nobody_listens(database: &Database) {
    eventually(PATIENCE, "the listener is closed", async || listeners(database).await.is_empty()).await;
}

/// Before a pool of one, so that whoever held a server would be in everybody's way.
async fn stage() -> Proxy {
    Proxy::start("max_connections = 1").await
}
