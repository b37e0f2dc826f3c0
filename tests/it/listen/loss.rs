//! When the listener's own connection is lost, clients learn that notifications may have been.

use tokio::time::timeout;

use super::{hears, listeners, run, told};
use crate::harness::eventually;
use crate::harness::wire::tags;
use crate::relay::proxy::{PATIENCE, Proxy};

async fn kill_listener(proxy: &Proxy) -> i32 {
    let pid = listeners(&proxy.database).await[0];
    proxy.database.execute(&format!("select pg_terminate_backend({pid})")).await;
    pid
}

#[tokio::test]
async fn clients_that_listen_are_closed_and_no_others() {
    let proxy = Proxy::start("max_connections = 3").await;
    let (mut listens, mut in_transaction, mut bystander) = (proxy.wire().await, proxy.wire().await, proxy.wire().await);
    run(&mut listens, "listen a").await;
    run(&mut in_transaction, "listen a").await;
    run(&mut in_transaction, "begin").await;
    kill_listener(&proxy).await;
    for client in [&mut listens, &mut in_transaction] {
        let last = timeout(PATIENCE, client.ended()).await.expect("closed");
        assert_eq!((tags(&last).as_str(), last[0].field(b'C').as_deref()), ("E", Some("57P01")));
    }
    run(&mut bystander, "listen a").await;
    run(&mut bystander, "notify a, 'on'").await;
    hears(&mut bystander, "a", "on").await;
    assert_eq!(proxy.listener().expect("one").lost, 1);
    drop(bystander);
    proxy.examine().await;
}

#[tokio::test]
async fn or_they_are_told_and_listen_on() {
    let proxy = Proxy::start("max_connections = 3, on_listener_loss = \"notice\"").await;
    let mut clients = [proxy.wire().await, proxy.wire().await];
    for client in &mut clients {
        run(client, "listen a").await;
    }
    run(&mut clients[1], "listen b").await;
    let killed = kill_listener(&proxy).await;
    for client in &mut clients {
        let notice = client.next().await;
        assert_eq!((notice.tag, notice.field(b'C').as_deref()), (b'N', Some("01000")));
    }
    let another = async || listeners(&proxy.database).await.iter().any(|&pid| pid != killed);
    eventually(PATIENCE, "there is another", another).await;
    proxy.database.execute("notify a, 'x'; notify b, 'y'").await;
    for client in &mut clients {
        hears(client, "a", "x").await;
    }
    hears(&mut clients[1], "b", "y").await;
}

#[tokio::test]
async fn a_listen_that_cannot_be_carried_out_is_refused_and_nothing_is_listened_to() {
    let database = crate::harness::fresh_database().await;
    let proxy = Proxy::before(database, "max_connections = 2").await;
    let mut client = proxy.wire().await;
    run(&mut client, "select 1").await;
    // The server lets nobody in any more; who is there stays.
    let straight = proxy.database.client().await;
    let allow = |so: bool| format!("update pg_database set datallowconn = {so} where datname = current_database()");
    straight.batch_execute(&allow(false)).await.expect("closed");
    run(&mut client, "begin").await;
    let answer = client.query("listen a").await;
    assert_eq!(tags(&answer), "CZ", "nothing is needed before the commit");
    let answer = client.query("commit").await;
    assert_eq!(answer[0].tag, b'E', "{answer:?}");
    assert_eq!(tags(&client.query("rollback").await), "CZ");
    straight.batch_execute(&allow(true)).await.expect("open again");
    let mut heard = run(&mut client, "select pg_notify('a', 'unheard')").await;
    run(&mut client, "listen b").await;
    heard.extend(run(&mut client, "select pg_notify('b', 'heard')").await);
    if heard.is_empty() {
        heard.push(told(&client.next().await));
    }
    assert_eq!(heard, [("b".to_owned(), "heard".to_owned())]);
}
