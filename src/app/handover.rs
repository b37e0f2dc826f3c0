//! The upgrade in place: a new process takes over the listening sockets of the one that runs, which then sends its clients away as
//! they become idle, and ends.
//!
//! Over the Unix socket `listen.handover` the old process sends its listening sockets. The new one gets ready, begins to accept, and
//! says so; only then the old one stops. Both have the same sockets, with one queue of connections: none is refused, none is lost. As long
//! as the old one has clients, the new one passes on to it the cancel requests that it knows nothing of itself.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use super::House;
use crate::error::{Error, ErrorKind};
use crate::net::handover;
use crate::session::cancel::CancelKey;
use crate::wire::sqlstate::SqlState;

/// How long a process may take to send its sockets.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a new process waits to be ready before it takes over anyway.
const READY: Duration = Duration::from_secs(10);
/// How long a new process may take from getting the sockets to accepting.
const TAKING_OVER: Duration = Duration::from_secs(60);
/// How long clients may go on after a hand-over before the idle ones are sent away: who comes for one transaction is gone by then.
const SETTLE: Duration = Duration::from_secs(1);
/// Cancel requests on their way to the process before this one.
const CANCELS: usize = 256;
/// Says that the new process accepts.
const TAKEN: u8 = b'T';
/// Begins a cancel request: process id, length of the secret, secret.
const CANCEL: u8 = b'C';

/// What of a hand-over a running pgherd has.
#[derive(Default)]
pub(super) struct Handover {
    /// The listening sockets once more; empty once they are closed or another's.
    sockets: Mutex<Vec<(String, OwnedFd)>>,
    /// Another process accepts now.
    is_over: watch::Sender<bool>,
    /// To the process before this one, as long as it lives.
    predecessor: Mutex<Option<mpsc::Sender<CancelKey>>>,
}

impl Handover {
    /// A listening socket that a later process may have, under that name.
    pub(super) fn offer(&self, name: String, socket: io::Result<OwnedFd>) {
        match socket {
            Ok(socket) => self.sockets.lock().push((name, socket)),
            Err(error) => tracing::warn!(%error, name, "this socket cannot be handed over"),
        }
    }

    /// The sockets are closed: nobody must find them open here.
    pub(super) fn withdraw(&self) {
        self.sockets.lock().clear();
    }

    /// Whether another process accepts now.
    pub(super) fn is_over(&self) -> bool {
        *self.is_over.borrow()
    }

    fn shared(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let sockets = self.sockets.lock();
        sockets.iter().map(|(name, socket)| Ok((name.clone(), socket.try_clone()?))).collect()
    }
}

/// The process that runs already, and what it gave.
pub(super) struct Predecessor {
    stream: UnixStream,
    sockets: HashMap<String, OwnedFd>,
}

impl Predecessor {
    /// Asks the process that listens there for its sockets; `None` where there is none.
    ///
    /// # Errors
    /// There is something that does not answer as a pgherd should.
    pub(super) async fn find(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |cause: io::Error| {
            let message = format!("cannot take over from the process that listens on {}", path.display());
            Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, message)
                .hint("End that process first, or choose another listen.handover.")
                .cause(cause)
        };
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let received = tokio::time::timeout(PATIENCE, handover::receive(&stream)).await;
        let received = received.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match received {
            Ok(sockets) => Ok(Some(Self { stream, sockets: sockets.into_iter().collect() })),
            // It ends just now, and has closed its sockets.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The socket of that name, if it had one.
    pub(super) fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.sockets.remove(name)
    }
}

impl House {
    /// Cancels what the client with that key has running, be it one of the process before this one.
    pub(super) async fn cancel(&self, key: CancelKey) {
        if self.shared.cancel_keys.knows(&key) {
            return self.shared.cancel_keys.cancel(&key).await;
        }
        let predecessor = self.handover.predecessor.lock().clone();
        if let Some(predecessor) = predecessor {
            // Where more than that many are under way, one that is lost is lost among many.
            let _ = predecessor.try_send(key);
        }
    }

    /// Waits until this pgherd is ready, so that clients find it so from the first on.
    pub(super) async fn wait_to_take_over(&self) {
        self.readiness.set_listening(true);
        if tokio::time::timeout(READY, self.readiness.ready()).await.is_err() {
            let report = self.readiness.report().text;
            tracing::warn!(report, "not ready, and taking over all the same");
        }
    }

    /// Tells the process before this one that its clients come here now; listens for the one after this.
    pub(super) fn take_over_from(self: &Arc<Self>, predecessor: Option<Predecessor>, path: PathBuf) {
        let house = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Some(Predecessor { stream, sockets }) = predecessor {
                // Those that this configuration does not name.
                drop(sockets);
                house.follow(stream).await;
            }
        });
        let house = Arc::clone(self);
        self.tasks.spawn(async move {
            match bind(&path) {
                Ok(listener) => house.wait_for_successors(listener, &path).await,
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "no process can take over from this one");
                }
            }
        });
    }

    /// Says that this process accepts, then passes on cancel requests until the other has ended.
    async fn follow(self: &Arc<Self>, mut stream: UnixStream) {
        let (sender, mut cancels) = mpsc::channel(CANCELS);
        *self.handover.predecessor.lock() = Some(sender);
        if let Err(error) = stream.write_all(&[TAKEN]).await {
            tracing::info!(%error, "the process before this one has ended");
        }
        tracing::info!("took over from the process before this one");
        let (mut from, mut to) = stream.into_split();
        let mut nothing = [0];
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                // It says nothing more: this is its end.
                _ = from.read(&mut nothing) => break,
                Some(key) = cancels.recv() => {
                    let mut message = vec![CANCEL];
                    message.extend_from_slice(&key.pid.to_be_bytes());
                    message.push(u8::try_from(key.secret.len()).unwrap_or(u8::MAX));
                    message.extend(key.secret.iter().take(usize::from(u8::MAX)));
                    if to.write_all(&message).await.is_err() {
                        break;
                    }
                }
            }
        }
        *self.handover.predecessor.lock() = None;
        tracing::info!("the process before this one has ended");
    }

    /// Gives the sockets to whoever asks, until one has taken over.
    async fn wait_for_successors(self: &Arc<Self>, listener: UnixListener, path: &Path) {
        while !self.handover.is_over() {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else { continue };
            if let Err(error) = self.hand_over(stream).await {
                tracing::warn!(%error, "another process asked for the sockets and did not take over");
            }
        }
        if !self.handover.is_over() {
            let _ = std::fs::remove_file(path);
        }
    }

    async fn hand_over(self: &Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let sockets = self.handover.shared()?;
        if sockets.is_empty() {
            // This one ends: there is nothing to be had any more.
            return Ok(());
        }
        tokio::time::timeout(PATIENCE, handover::send(&stream, &sockets)).await??;
        drop(sockets);
        let mut answer = [0];
        tokio::time::timeout(TAKING_OVER, stream.read_exact(&mut answer)).await??;
        if answer != [TAKEN] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        tracing::info!("another process has taken over: no new clients");
        self.handover.is_over.send_replace(true);
        self.readiness.set_draining();
        self.console.closing.cancel();
        self.http_stop.cancel();
        self.handover.withdraw();
        let house = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = house.stop.cancelled() => {}
                _ = house.heed(stream) => {}
            }
        });
        Ok(())
    }

    /// Carries out the cancel requests that the process after this one passes on.
    async fn heed(self: &Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        loop {
            if stream.read_u8().await? != CANCEL {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let pid = stream.read_i32().await?;
            let mut secret = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut secret).await?;
            let house = Arc::clone(self);
            let key = CancelKey { pid, secret: Bytes::from(secret) };
            self.tasks.spawn(async move { house.cancel(key).await });
        }
    }
}

impl super::Running {
    /// Waits until another process has taken over.
    pub async fn handed_over(&self) {
        // The sender lives as long as the house.
        let _ = self.house.handover.is_over.subscribe().wait_for(|is_over| *is_over).await;
    }

    /// After a hand-over: whoever comes for one transaction leaves by himself, the others are sent away as they become idle.
    pub async fn follow_the_clients(&self, patience: Duration) {
        self.house.sessions.close();
        let _ = tokio::time::timeout(SETTLE.min(patience), self.house.sessions.wait()).await;
    }
}

/// The socket for the next process, in the place of that of the one before: only whoever runs pgherd may connect.
fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let _ = std::fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, path)?;
    Ok(listener)
}
