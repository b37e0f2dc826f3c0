//! A forwarder between two sockets that can hold back, slow down or cut what passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to the bytes that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Nothing passes, either way, until this is false again.
    pub paused: bool,
    /// Each piece waits so long before it passes.
    pub delay: Duration,
    /// Bytes from the client's side after which a connection is cut; counted from the connection's start.
    pub cut_up_after: Option<usize>,
    /// Bytes from the server's side after which a connection is cut.
    pub cut_down_after: Option<usize>,
    /// Connections are closed as soon as they are made, and those that exist are cut.
    pub down: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    faults: Faults,
    /// How often all connections were cut.
    cuts: usize,
}

/// A TCP port that forwards to another.
pub struct Forwarder {
    /// The port on 127.0.0.1 to connect to.
    pub port: u16,
    state: Arc<watch::Sender<State>>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Starts forwarding to that port of 127.0.0.1, without faults.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let port = listener.local_addr().expect("address").port();
        let state = Arc::new(watch::Sender::new(State::default()));
        let accepted = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(accept(listener, target, state.clone(), accepted.clone()));
        Self { port, state, accepted, task }
    }

    /// Replaces the faults, for connections that exist too.
    pub fn set(&self, faults: Faults) {
        self.state.send_modify(|state| state.faults = faults);
    }

    /// No faults from here on.
    pub fn heal(&self) {
        self.set(Faults::default());
    }

    /// Cuts every connection that exists now; new ones pass.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// How many connections were made so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: u16, state: Arc<watch::Sender<State>>, accepted: Arc<AtomicUsize>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        accepted.fetch_add(1, Ordering::Relaxed);
        if state.borrow().faults.down {
            continue;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
        connections.spawn(forward(client, server, state.subscribe()));
    }
}

async fn forward(client: TcpStream, server: TcpStream, state: watch::Receiver<State>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let cuts = state.borrow().cuts;
    let mut watch = state.clone();
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let up = pump(client_read, server_write, state.clone(), |faults| faults.cut_up_after);
    let down = pump(server_read, client_write, state, |faults| faults.cut_down_after);
    // Whichever way ends first ends both: half-closed connections are not what PostgreSQL speaks.
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = watch.wait_for(|state| state.faults.down || state.cuts != cuts) => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    limit: impl Fn(&Faults) -> Option<usize>,
) {
    let (mut buffer, mut passed) = (vec![0; 16 * 1024], 0);
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let Ok(now) = state.wait_for(|state| !state.faults.paused).await.map(|state| state.faults) else { return };
        if !now.delay.is_zero() {
            tokio::time::sleep(now.delay).await;
        }
        let room = limit(&now).map_or(read, |limit| limit.saturating_sub(passed).min(read));
        if to.write_all(&buffer[..room]).await.is_err() || room < read {
            return;
        }
        passed += read;
    }
}
