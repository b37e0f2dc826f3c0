//! Many clients on one listener: each hears everything once and in order.

use std::time::Duration;

use tokio::task::JoinSet;

use super::{hears, listeners, nobody_listens, run, told};
use crate::harness::eventually;
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
            for text in ["listen everybody".to_owned(), format!("listen some_{}", number % 7)] {
                let listened = tokio::time::timeout(PATIENCE - Duration::from_secs(5), run(&mut client, &text)).await;
                assert!(listened.is_ok(), "client {number}: {text} is not answered");
            }
            (number, client)
        });
    }
    let mut clients = logins.join_all().await;
    assert_eq!(listeners(&proxy.database).await.len(), 1, "one server connection listens");
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let straight = proxy.database.client().await;
    // The story's own connections come and go.
    let few = async || straight.query_one(sql, &[]).await.expect("counted").get::<_, i64>(0) <= 5;
    eventually(PATIENCE, "five server connections serve them all", few).await;

    let notifier = proxy.client().await;
    for round in 0..20 {
        notifier
            .batch_execute(&format!("notify everybody, '{round}'; notify some_{}, 'of {round}'", round % 7))
            .await
            .expect("notified");
        if round % 4 == 0 {
            // Sessions move to another thread when they have done something.
            proxy.use_threads(1 + round % 3);
            for (_, client) in clients.iter_mut().skip(round).step_by(3) {
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
                let next = tokio::time::timeout(PATIENCE - Duration::from_secs(5), client.next()).await;
                let message = next.unwrap_or_else(|_| panic!("client {number} has heard {heard:?} only"));
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

/// More waits than is put before a client's socket at once: all of it comes when it reads again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_late_hears_all_that_its_queue_holds() {
    const NOTIFICATIONS: usize = 1_500;
    let proxy = Proxy::start("max_connections = 3, notification_queue = \"64MiB\"").await;
    let mut late = proxy.wire().await;
    run(&mut late, "listen a").await;
    let notifier = proxy.client().await;
    let sql = "select pg_notify('a', n || repeat('x', 7900)) from generate_series($1::int, $1 + 499) n";
    for from in (0..NOTIFICATIONS).step_by(500) {
        notifier.query(sql, &[&(from as i32)]).await.expect("notified");
    }
    let delivered = async || proxy.listener().is_some_and(|it| it.delivered == NOTIFICATIONS as u64);
    eventually(PATIENCE, "all wait", delivered).await;
    for n in 0..NOTIFICATIONS {
        let payload = told(&late.next().await).1;
        assert_eq!(payload.trim_end_matches('x'), n.to_string());
    }
}

/// Clients that listen by the shared listener.
fn listening(proxy: &Proxy) -> usize {
    proxy.listener().map_or(0, |figures| figures.clients)
}
