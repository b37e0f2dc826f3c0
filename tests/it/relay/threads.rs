//! Clients that move from thread to thread while they work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::proxy::{PATIENCE, Proxy};
use crate::harness::eventually;
use crate::harness::wire::rows;

#[tokio::test]
async fn clients_keep_their_sessions_while_they_move_between_threads() {
    const CLIENTS: usize = 12;
    let proxy = Proxy::start("max_connections = 4").await;
    let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut working = Vec::new();
    for number in 0..CLIENTS {
        let (mut client, stop, turns) = (proxy.wire().await, Arc::clone(&stop), Arc::clone(&turns));
        client.query(&format!("set work_mem to '{}kB'", 100 + number)).await;
        working.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                client.query("begin").await;
                let shown = client.query(&format!("select current_setting('work_mem'), {number}")).await;
                let wanted = [Some(format!("{}kB", 100 + number)), Some(number.to_string())];
                assert_eq!(rows(&shown), [wanted]);
                client.query("commit").await;
                turns.fetch_add(1, Ordering::Relaxed);
            }
            client
        }));
    }
    for threads in [3, 1, 2, 3, 1, 3] {
        proxy.use_threads(threads);
        let from = turns.load(Ordering::Relaxed);
        let all_went_on = async || turns.load(Ordering::Relaxed) > from + 10 * CLIENTS;
        eventually(PATIENCE, "every client goes on", all_went_on).await;
    }
    assert!(proxy.moves() >= CLIENTS as u64 / 2, "{} moves", proxy.moves());
    stop.store(true, Ordering::Relaxed);
    for client in working {
        client.await.expect("every answer was its own");
    }
    proxy.examine().await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_client_that_has_moved_can_be_cancelled_and_sent_away() {
    let proxy = Proxy::start("max_connections = 2").await;
    let mut clients = [proxy.wire().await, proxy.wire().await, proxy.wire().await];
    proxy.use_threads(3);
    for client in &mut clients {
        client.query("select 1").await;
    }
    let straight = proxy.database.client().await;
    for client in &mut clients {
        client.say(|out| pgherd::wire::writer::query(out, b"select pg_sleep(60)")).await;
        let running = "select 1 from pg_stat_activity where datname = current_database() and query like 'select pg_sleep%' and state = 'active'";
        eventually(PATIENCE, "it runs", async || !straight.query(running, &[]).await.expect("query").is_empty()).await;
        client.cancel().await;
        let answers = client.until_ready().await;
        let code = answers.iter().find(|it| it.tag == b'E').and_then(|it| it.field(b'C'));
        assert_eq!(code.as_deref(), Some("57014"));
    }
    proxy.drain(PATIENCE).await;
    for client in &mut clients {
        let last = client.ended().await;
        assert_eq!(last.last().and_then(|it| it.field(b'C')).as_deref(), Some("57P01"));
    }
}
