use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::config::model::Secret;
use crate::session::context::Database;

const DEADLINE: Duration = Duration::from_secs(10);

struct Server {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Lets requests with that token change what there is: nothing.
struct Empty(Option<&'static str>);

impl World for Empty {
    fn token(&self) -> Option<Secret> {
        self.0.map(Secret::new)
    }

    fn databases(&self) -> Vec<Arc<Database>> {
        Vec::new()
    }
}

async fn start() -> Server {
    start_with(None).await
}

async fn start_with(token: Option<&'static str>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (metrics, readiness, stop) = (Arc::new(Metrics::new()), Readiness::default(), CancellationToken::new());
    let task = tokio::spawn(serve(listener, metrics.clone(), readiness.clone(), Arc::new(Empty(token)), stop.clone()));
    Server { address, metrics, readiness, stop, task }
}

/// One request, and all that comes back until the server closes.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = Vec::new();
    timeout(DEADLINE, socket.read_to_end(&mut answer)).await.expect("in time").expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get_path(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn each_page_answers() {
    let server = start().await;
    server.metrics.refusal("window");
    let metrics = get_path(server.address, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    assert!(metrics.contains("content-type: application/openmetrics-text; version=1.0.0"), "{metrics}");
    assert!(metrics.contains("pgherd_refusals_total{code=\"window\"} 1"), "{metrics}");
    assert!(get_path(server.address, "/healthz/live").await.ends_with("live\n"));
    assert!(get_path(server.address, "/nope").await.starts_with("HTTP/1.1 404"));
    let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(ask(server.address, post).await.starts_with("HTTP/1.1 405"));
}

async fn post(address: SocketAddr, path: &str, headers: &str) -> String {
    let rest = "Host: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    ask(address, &format!("POST {path} HTTP/1.1\r\n{headers}{rest}")).await
}

#[tokio::test]
async fn nothing_is_changed_without_the_token() {
    const BEARER: &str = "Authorization: Bearer a-token-of-some-length\r\n";
    let server = start().await;
    let refused = post(server.address, "/cache/purge", BEARER).await;
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("admin.http_token is not set"), "{refused}");

    let server = start_with(Some("a-token-of-some-length")).await;
    for headers in [
        "",
        "Authorization: Bearer \r\n",
        "Authorization: Bearer a-token-of-some-lengtH\r\n",
        "Authorization: Basic eDp5\r\n",
    ] {
        let refused = post(server.address, "/cache/purge", headers).await;
        assert!(
            refused.starts_with("HTTP/1.1 401") && refused.contains("www-authenticate: Bearer"),
            "{headers}: {refused}"
        );
    }
    assert!(get_path(server.address, "/cache/purge").await.starts_with("HTTP/1.1 405"));
    // With it, it is looked at.
    for wrong in ["?table=a.b.c", "?statement=2a", "?tabel=a", "?table=a&statement=0000000000000000000000000000002a"] {
        let refused = post(server.address, &format!("/cache/purge{wrong}"), BEARER).await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{wrong}: {refused}");
    }
    assert!(post(server.address, "/cache/purge?database=none", BEARER).await.starts_with("HTTP/1.1 404"));
    assert!(post(server.address, "/cache/purge", BEARER).await.contains("there is no result cache"));
}

#[tokio::test]
async fn readiness_says_why_not() {
    let server = start().await;
    let not_yet = get_path(server.address, "/healthz/ready").await;
    assert!(not_yet.starts_with("HTTP/1.1 503") && not_yet.ends_with("not listening yet\n"), "{not_yet}");
    server.readiness.set_listening(true);
    timeout(DEADLINE, server.readiness.ready()).await.expect("in time");
    assert!(get_path(server.address, "/healthz/ready").await.starts_with("HTTP/1.1 200"));
    server.readiness.set_draining();
    assert!(get_path(server.address, "/healthz/ready").await.contains("draining"));
}

#[tokio::test]
async fn bad_bytes_and_long_heads_are_turned_away() {
    let server = start().await;
    assert!(ask(server.address, "\x16\x03\x01 not http at all\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let long = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(2 * limits::HTTP_HEAD_BYTES));
    assert!(ask(server.address, &long).await.starts_with("HTTP/1.1 431"));
    assert!(get_path(server.address, "/healthz/live").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_next_one_served() {
    let server = start().await;
    let mut open = Vec::new();
    for _ in 0..limits::HTTP_CONNECTIONS {
        let mut socket = TcpStream::connect(server.address).await.expect("a connection");
        socket.write_all(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
        let mut first = [0; 12];
        timeout(DEADLINE, socket.read_exact(&mut first)).await.expect("in time").expect("an answer");
        open.push(socket);
    }
    let mut extra = TcpStream::connect(server.address).await.expect("a connection");
    let turned_away = timeout(DEADLINE, extra.read(&mut [0; 1])).await.expect("in time");
    assert!(matches!(turned_away, Ok(0) | Err(_)));
    drop(open);
    let served = async {
        while !get_path_or_nothing(server.address).await.starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, served).await.expect("in time");
}

/// Like `get_path`, where the server may also close at once.
async fn get_path_or_nothing(address: SocketAddr) -> String {
    let Ok(mut socket) = TcpStream::connect(address).await else { return String::new() };
    let _ = socket.write_all(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn it_stops_with_an_idle_connection_open() {
    let server = start().await;
    let mut idle = TcpStream::connect(server.address).await.expect("a connection");
    idle.write_all(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
    timeout(DEADLINE, idle.read(&mut [0; 16])).await.expect("in time").expect("an answer");
    server.stop.cancel();
    timeout(DEADLINE, server.task).await.expect("in time").expect("no panic");
}

#[tokio::test]
async fn who_came_before_it_stopped_is_answered_still() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (mut client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let client = client.as_mut().expect("a connection");
    let stop = CancellationToken::new();
    stop.cancel();
    let shared =
        Shared { metrics: Arc::new(Metrics::new()), readiness: Readiness::default(), world: Arc::new(Empty(None)) };
    let serving = tokio::spawn(connection(accepted.expect("accepted").0, router(shared), stop));
    client.write_all(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
    let mut answer = String::new();
    timeout(DEADLINE, client.read_to_string(&mut answer)).await.expect("in time").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    timeout(DEADLINE, serving).await.expect("in time").expect("no panic");
}
