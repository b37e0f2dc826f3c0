//! The HTTP server: few connections, short requests, a deadline on each.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::{Readiness, World, purge};
use crate::limits;
use crate::telemetry::metrics::{CONTENT_TYPE, Metrics};

/// How long a client may take for a request's head, and how long a connection may lie idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may live; Prometheus then makes another.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(120);
/// How long an answer under way may take to be read once its connection is to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client that has just come may take for its request once its connection is to end.
const HEARING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait after `accept` failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    world: Arc<dyn World>,
}

impl FromRef<Shared> for Arc<dyn World> {
    fn from_ref(shared: &Shared) -> Self {
        Arc::clone(&shared.world)
    }
}

/// Serves until `stop`, then lets answers under way end.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    world: Arc<dyn World>,
    stop: CancellationToken,
) {
    let router = router(Shared { metrics, readiness, world });
    let permits = Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                warn!(%error, "an HTTP connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            debug!("an HTTP connection was turned away: {} are open", limits::HTTP_CONNECTIONS);
            continue;
        };
        let connection = connection(socket, router.clone(), stop.clone());
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    connections.close();
    connections.wait().await;
}

async fn connection(socket: TcpStream, router: Router, stop: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(limits::HTTP_HEAD_BYTES);
    let (answers, heard) = (TowerToHyperService::new(router), CancellationToken::new());
    let service = service_fn(|request| {
        heard.cancel();
        answers.call(request)
    });
    let served = http.serve_connection(TokioIo::new(socket), service);
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = async { tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(CONNECTION_LIFETIME) => {} } } => {
            // Whoever has come and not been heard yet is answered, too.
            let hearing = async { tokio::select! { _ = &mut served => true, () = heard.cancelled() => false } };
            if tokio::time::timeout(HEARING_TIMEOUT, hearing).await == Ok(true) {
                return;
            }
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(END_TIMEOUT, served).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an HTTP connection ended badly");
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz/live", get(live))
        .route("/healthz/ready", get(ready))
        .route("/cache/purge", post(purge::purge))
        .fallback(not_found)
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n").into_response(),
    }
}

/// Answering at all is the proof.
async fn live() -> Result<&'static str, Infallible> {
    Ok("live\n")
}

async fn ready(State(shared): State<Shared>) -> Response {
    let report = shared.readiness.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, report.text).into_response()
}

async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "there is /metrics, /healthz/live, /healthz/ready and POST /cache/purge\n")
}

#[cfg(test)]
mod tests;
