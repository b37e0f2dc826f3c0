//! Many clients on one listener: each hears everything once and in order.

use std::time::Duration;

use tokio::task::JoinSet;

use super::{hears, listeners, nobody_listens, run, told};
use crate::harness::wire::WireClient;
use crate::relay::proxy::{PATIENCE, Proxy};

const CLIENTS: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_clients_listen_on_one_server_connection() {
    let proxy = Proxy::start("max_connections = 4").await;
    let mut logins = JoinSet::new();
    for number in 0..CLIENTS {
        let (port, database) = (proxy.port, proxy.database.name.clone());
        logins.spawn(async move {
            let mut client = WireClient::login(port, "postgres", &database).await;
            run(&mut client, "listen everybody").await;
            run(&mut client, &format!("listen some_{}", number % 7)).await;
            (number, client)
        });
    }
    let mut clients = logins.join_all().await;
    assert_eq!(listeners(&proxy.database).await.len(), 1, "one server connection listens");
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let servers: i64 = proxy.database.client().await.query_one(sql, &[]).await.expect("counted").get(0);
    assert!(servers <= 5, "{servers} server connections for {CLIENTS} clients that listen");

    proxy.use_threads(3);
    let notifier = proxy.client().await;
    for round in 0..20 {
        notifier
            .batch_execute(&format!("notify everybody, '{round}'; notify some_{}, 'of {round}'", round % 7))
            .await
            .expect("notified");
        if round == 10 {
            // Sessions move to another thread when they have done something.
            for (_, client) in clients.iter_mut().step_by(3) {
                client.say(|out| pgherd::wire::writer::query(out, b"select 1")).await;
            }
        }
    }
    let mut hearing = JoinSet::new();
    for (number, mut client) in clients {
        hearing.spawn(async move {
            let mut heard = Vec::new();
            let expected: Vec<String> = (0..20)
                .flat_map(|round| [Some(format!("{round}")), (round % 7 == number % 7).then(|| format!("of {round}"))])
                .flatten()
                .collect();
            while heard.len() < expected.len() {
                let message = client.next().await;
                if message.tag == b'A' {
                    heard.push(told(&message).1);
                }
            }
            assert_eq!(heard, expected, "client {number}");
            client
        });
    }
    let mut clients = hearing.join_all().await;
    run(&mut clients[0], "unlisten everybody").await;
    proxy.database.execute("notify everybody, 'last'").await;
    for client in &mut clients[1..] {
        let last = loop {
            let message = client.next().await;
            if message.tag == b'A' {
                break told(&message);
            }
        };
        assert_eq!(last, ("everybody".to_owned(), "last".to_owned()));
    }
    assert!(proxy.moves() > 0, "sessions that listen move from thread to thread");
    drop(clients);
    nobody_listens(&proxy.database).await;
    proxy.examine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_committed_behind_a_listen_is_missed() {
    let proxy = Proxy::start("max_connections = 3").await;
    let mut storm = JoinSet::new();
    for number in 0..8 {
        let (port, database) = (proxy.port, proxy.database.name.clone());
        storm.spawn(async move {
            let mut listens = WireClient::login(port, "postgres", &database).await;
            let mut tells = WireClient::login(port, "postgres", &database).await;
            for round in 0..60 {
                let channel = format!("c_{}", (number + round) % 4);
                run(&mut listens, &format!("listen {channel}")).await;
                let payload = format!("{number}.{round}");
                run(&mut tells, &format!("notify {channel}, '{payload}'")).await;
                // Others tell of other things on the same channels.
                while told(&listens.next().await).1 != payload {}
                run(&mut listens, "unlisten *").await;
            }
        });
    }
    storm.join_all().await;
    proxy.examine().await;
}

/// A client that does not read is sent away when its queue is full, and nobody else hears less for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_closed_and_no_other_waits_for_it() {
    let proxy = Proxy::start("max_connections = 3, notification_queue = \"64KiB\"").await;
    let (mut slow, mut quick) = (proxy.wire().await, proxy.wire().await);
    run(&mut slow, "listen a").await;
    run(&mut quick, "listen a").await;
    let notifier = proxy.client().await;
    let payload = "x".repeat(7_900);
    let mut rounds = 0;
    // The sockets between them hold some megabytes.
    let closed = async || listening(&proxy) == 1;
    let end = tokio::time::Instant::now() + PATIENCE;
    while !closed().await {
        assert!(tokio::time::Instant::now() < end, "still there after {rounds} notifications");
        rounds += 1;
        notifier.batch_execute(&format!("notify a, '{rounds} {payload}'")).await.expect("notified");
        assert!(told(&quick.next().await).1.starts_with(&format!("{rounds} ")));
    }
    let last = tokio::time::timeout(Duration::from_secs(10), slow.ended()).await.expect("closed");
    let error = last.iter().find(|message| message.tag == b'E');
    assert_eq!(error.and_then(|it| it.field(b'C')).as_deref().unwrap_or("53400"), "53400");
    assert!(last.iter().filter(|message| message.tag == b'A').count() < rounds, "not all of it came");
    run(&mut quick, "notify a, 'and on'").await;
    hears(&mut quick, "a", "and on").await;
}

/// Clients that listen by the shared listener.
fn listening(proxy: &Proxy) -> usize {
    proxy.listener().map_or(0, |figures| figures.clients)
}
