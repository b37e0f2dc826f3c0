//! The shared tier as people have it: over TLS with a user of its own, behind sentinels, in a cluster; and what becomes of it when they fail over.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use pgherd::commands::demo::servers::{Ground, RedisServer, Supervisor, free_port};

use super::fleet::{Fleet, Plan, redis};
use super::stage::rows;
use crate::harness::{Database, certificates, eventually, fresh_database, ground};

const PATIENCE: Duration = Duration::from_secs(60);
const TEXT: &str = "select sum(a) from t";

/// Two pgherds in front of a database of their own, with that Redis.
async fn pair(redis: &str) -> (Database, Fleet, Fleet) {
    let database = fresh_database().await;
    database.execute("create table t (a int); insert into t select generate_series(1, 10)").await;
    let cache = format!("olap_only = false\nredis = {{ {redis}, timeout = \"500ms\", lease = \"1s\" }}");
    let plan = Plan { users: vec!["postgres".into()], cache, ..Plan::default() };
    let (one, other) = (Fleet::start(&database, &plan).await, Fleet::start(&database, &plan).await);
    (database, one, other)
}

/// Asks until the answer comes from the cache; it must be right each time.
async fn served(herd: &Fleet, right: &str) {
    let client = herd.client(0, "postgres").await;
    eventually(PATIENCE, "it is served from the cache", || async {
        let before = herd.stats(0).memory_hits;
        assert_eq!(rows(&client, TEXT).await[0][0].as_deref(), Some(right));
        herd.stats(0).memory_hits > before
    })
    .await;
}

/// One asks, and then the other is served by Redis, with that answer. Redis has it a moment after one's memory does, so the other may be too soon:
/// then it is another question.
async fn shared(one: &Fleet, other: &Fleet, right: &str) {
    served(one, right).await;
    let (here, there) = (one.client(0, "postgres").await, other.client(0, "postgres").await);
    let number = AtomicU32::new(0);
    eventually(PATIENCE, "Redis gives one's answer to the other", || async {
        let text = format!("{TEXT} -- {}", number.fetch_add(1, SeqCst));
        let before = other.stats(0).redis_hits;
        for client in [&here, &there] {
            assert_eq!(rows(client, &text).await[0][0].as_deref(), Some(right));
        }
        other.stats(0).redis_hits > before
    })
    .await;
}

/// One command of Redis' inline protocol; what it answered at first.
fn say(port: u16, command: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("Redis");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    stream.write_all(format!("{command}\r\n").as_bytes()).expect("sent");
    let mut answer = vec![0; 16 * 1024];
    let read = stream.read(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_as_a_user_of_its_own_in_resp3() {
    if redis().is_none() {
        return;
    }
    let folder = ground().server_folder("redis-tls").expect("a folder");
    let made = certificates();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        ground().write(&path, text).expect("a file");
        path.display().to_string()
    };
    let (ca, cert, key) = (file("ca", &made.ca), file("cert", &made.server.cert), file("key", &made.server.key));
    let port = free_port().expect("a port");
    let tls_port = port.to_string();
    let tls = ["--tls-port", &tls_port, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let tls = [&tls[..], &["--tls-auth-clients", "no"]].concat();
    let server = RedisServer::start_with(ground(), &tls).expect("it starts").expect("installed");
    assert!(say(server.port(), "ACL SETUSER herd on >secret ~pgherd:* +@all -@dangerous +info").starts_with("+OK"));
    let url = |user: &str| format!("url = \"rediss://{user}@localhost:{port}/0\", ca = \"{ca}\"");
    let (database, one, other) = pair(&url("herd:secret")).await;
    shared(&one, &other, "55").await;
    one.client(0, "postgres").await.execute("insert into t values (1)", &[]).await.expect("written");
    served(&other, "56").await;
    let clients = say(server.port(), "CLIENT LIST");
    let ours: Vec<&str> = clients.lines().filter(|line| line.contains("user=herd")).collect();
    assert!(ours.len() >= 2 && ours.iter().all(|line| line.contains("resp=3")), "{clients}");
    one.stop().await;
    other.stop().await;
    // A wrong password and a certificate of nobody known are no way in.
    for wrong in [url("herd:wrong"), format!("url = \"rediss://herd:secret@localhost:{port}/0\"")] {
        let cache = format!("olap_only = false\nredis = {{ {wrong}, timeout = \"500ms\", lease = \"1s\" }}");
        let plan = Plan { users: vec!["postgres".into()], cache, ..Plan::default() };
        let herd = Fleet::start(&database, &plan).await;
        let client = herd.client(0, "postgres").await;
        eventually(PATIENCE, "Redis turns it away", || async { herd.stats(0).redis_errors > 1 }).await;
        assert_eq!(rows(&client, TEXT).await[0][0].as_deref(), Some("56"));
        assert_eq!(herd.stats(0).registrations, 0);
        herd.stop().await;
    }
}

/// A sentinel of its own that watches `master`.
fn sentinel(master: u16) -> (Supervisor, u16) {
    let (folder, port) = (ground().server_folder("sentinel").expect("a folder"), free_port().expect("a port"));
    let config = folder.join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor herd 127.0.0.1 {master} 1\n\
         sentinel down-after-milliseconds herd 500\nsentinel failover-timeout herd 3000\n",
        folder.display()
    );
    ground().write(&config, &text).expect("a file");
    let program = ground().binaries().redis.clone().expect("installed");
    let (program, config) = (program.display().to_string(), config.display().to_string());
    let mut process = Supervisor::new(ground(), &folder, &[&program, &config, "--sentinel"], "KILL").expect("a shell");
    process
        .start(|_| {
            let slaves = || say(port, "SENTINEL master herd");
            TcpStream::connect(("127.0.0.1", port)).is_ok() && slaves().contains("num-slaves\r\n$1\r\n1")
        })
        .expect("it starts");
    (process, port)
}

/// Writes through one pgherd and reads through both, all the time: what is read is never older than what was written.
async fn write_and_read(one: &Fleet, other: &Fleet, expected: &mut i64) {
    let (writer, near, far) =
        (one.client(0, "postgres").await, one.client(0, "postgres").await, other.client(0, "postgres").await);
    writer.execute("insert into t values (1)", &[]).await.expect("written");
    *expected += 1;
    for client in [&near, &far] {
        assert_eq!(rows(client, TEXT).await[0][0].as_deref(), Some(expected.to_string().as_str()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_sentinel_that_promotes_a_replica() {
    let Some(first) = redis() else { return };
    let second_of = ["--replicaof", "127.0.0.1", &first.port().to_string()].map(str::to_owned);
    let second_of: Vec<&str> = second_of.iter().map(String::as_str).collect();
    let second = RedisServer::start_with(ground(), &second_of).expect("it starts").expect("installed");
    let (_sentinel, port) = sentinel(first.port());
    let url = format!("url = \"redis-sentinel://127.0.0.1:{port}/0?sentinelServiceName=herd\", replicas = 1");
    let (_database, one, other) = pair(&url).await;
    shared(&one, &other, "55").await;
    let mut expected = 55;
    write_and_read(&one, &other, &mut expected).await;
    served(&other, "56").await;
    first.kill9().expect("it dies");
    // The new master has no replica: nothing that is written there is sure, so nothing is served, and writes go on.
    for _ in 0..20 {
        write_and_read(&one, &other, &mut expected).await;
    }
    eventually(PATIENCE, "the second is promoted", || async { say(second.port(), "ROLE").contains("master") }).await;
    for _ in 0..5 {
        write_and_read(&one, &other, &mut expected).await;
    }
    // It comes back, and the sentinel makes it a replica.
    first.restart().expect("it starts");
    let right = expected.to_string();
    served(&one, &right).await;
    served(&other, &right).await;
    write_and_read(&one, &other, &mut expected).await;
    served(&other, &expected.to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_of_three_with_replicas() {
    if redis().is_none() {
        return;
    }
    let mut nodes = Vec::new();
    for _ in 0..6 {
        let bus = free_port().expect("a port").to_string();
        let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", &bus];
        nodes.push(RedisServer::start_with(ground(), &arguments).expect("it starts").expect("installed"));
    }
    let redis_cli = ground().binaries().redis.clone().expect("installed").with_file_name("redis-cli");
    let mut create = ground().command(redis_cli);
    create.args(["--cluster", "create"]);
    create.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())));
    Ground::run(create.args(["--cluster-replicas", "1", "--cluster-yes"])).expect("a cluster");
    eventually(PATIENCE, "every master has its replica", || async {
        let state = |node: &RedisServer| say(node.port(), "INFO replication");
        nodes.iter().all(|node| {
            let state = state(node);
            state.contains("connected_slaves:1") || state.contains("master_link_status:up")
        })
    })
    .await;
    let seeds = format!("redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}", nodes[0].port(), nodes[1].port());
    let (_database, one, other) = pair(&format!("url = \"{seeds}\", replicas = 1")).await;
    shared(&one, &other, "55").await;
    let mut expected = 55;
    write_and_read(&one, &other, &mut expected).await;
    served(&other, "56").await;
    // All that is theirs lies on one master.
    let holds = |node: &RedisServer| {
        say(node.port(), "INFO replication").contains("role:master") && !say(node.port(), "DBSIZE").starts_with(":0")
    };
    let holders: Vec<&RedisServer> = nodes.iter().filter(|node| holds(node)).collect();
    assert_eq!(holders.len(), 1, "one master has the keys");
    holders[0].kill9().expect("it dies");
    for _ in 0..20 {
        write_and_read(&one, &other, &mut expected).await;
    }
    eventually(PATIENCE, "a replica is promoted", || async {
        nodes.iter().filter(|node| node.pid().is_some()).any(|node| {
            say(node.port(), "CLUSTER INFO").contains("cluster_state:ok")
                && say(node.port(), "INFO replication").contains("connected_slaves:0")
                && say(node.port(), "INFO replication").contains("role:master")
        })
    })
    .await;
    holders[0].restart().expect("it starts");
    let right = expected.to_string();
    served(&one, &right).await;
    served(&other, &right).await;
    write_and_read(&one, &other, &mut expected).await;
}
