//! Which clients there are and what they do, for whoever wants to look: a slot of atomics for each, written where a client
//! asks for a server connection and gives it back. Only coming and going takes a lock.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use foldhash::HashMap;
use parking_lot::Mutex;

use super::pin::Pins;
use crate::config::model::{Database, User};
use crate::error::{Error, ErrorKind};
use crate::net::stream::{Stream, Traffic};
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::Replication;

/// Bytes of a client that are counted for its database at once.
const COUNTED_BYTES: u64 = 16 * 1024;

/// What a client is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// It holds no server connection and wants none.
    Idle = 0,
    /// It wants a server connection.
    Waiting = 1,
    /// It holds one.
    Active = 2,
}

/// All clients of a pgherd.
#[derive(Debug)]
pub struct Clients {
    listed: Mutex<HashMap<u64, Arc<Client>>>,
    /// Gives clients and server connections their numbers.
    pub ids: Arc<AtomicU64>,
    started: Instant,
    started_at: SystemTime,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Its number, which nothing else in this process has.
    pub id: u64,
    /// Who it is.
    pub user: Arc<User>,
    /// What it is connected to.
    pub database: Arc<Database>,
    /// Where it comes from; `None` is a Unix socket.
    pub peer: Option<SocketAddr>,
    /// Our end of it.
    pub local: Option<SocketAddr>,
    /// The TLS version, where there is TLS.
    pub tls: Option<&'static str>,
    /// When it logged in, in microseconds since this pgherd started.
    connected_us: u64,
    /// When it last asked for a server connection, likewise.
    asked_us: AtomicU64,
    activity: AtomicU8,
    /// 0 is none, 1 physical, 2 logical.
    replication: AtomicU8,
    server: AtomicU64,
    pins: AtomicU32,
    statements: AtomicU32,
    /// Bytes of its traffic that its database's figures do not hold yet.
    read: AtomicU64,
    written: AtomicU64,
    application_name: Mutex<Option<Box<str>>>,
    killed: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Default for Clients {
    fn default() -> Self {
        Self { listed: Mutex::default(), ids: Arc::default(), started: Instant::now(), started_at: SystemTime::now() }
    }
}

impl Clients {
    /// A client has logged in.
    pub(super) fn enter(self: &Arc<Self>, user: &Arc<User>, database: &Arc<Database>, stream: &Stream) -> ListedClient {
        let now = self.micros(Instant::now());
        let client = Arc::new(Client {
            id: self.ids.fetch_add(1, Relaxed) + 1,
            user: Arc::clone(user),
            database: Arc::clone(database),
            peer: stream.peer().address(),
            local: stream.local(),
            tls: stream.tls_info().map(|info| info.version),
            connected_us: now,
            asked_us: AtomicU64::new(now),
            activity: AtomicU8::new(Activity::Idle as u8),
            replication: AtomicU8::new(0),
            server: AtomicU64::new(0),
            pins: AtomicU32::new(0),
            statements: AtomicU32::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            application_name: Mutex::default(),
            killed: AtomicBool::new(false),
            waker: Mutex::default(),
        });
        self.listed.lock().insert(client.id, Arc::clone(&client));
        ListedClient { all: Arc::clone(self), client, traffic: Traffic::default(), settings: 0 }
    }

    /// All of them, in order of arrival.
    pub fn all(&self) -> Vec<Arc<Client>> {
        let mut all: Vec<_> = self.listed.lock().values().cloned().collect();
        all.sort_unstable_by_key(|client| client.id);
        all
    }

    /// Lets every session look at what it watches: the drain has begun.
    pub fn wake_all(&self) {
        for client in self.all() {
            if let Some(waker) = &*client.waker.lock() {
                waker.wake_by_ref();
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.listed.lock().len()
    }

    /// When a client logged in.
    pub fn connected_at(&self, client: &Client) -> SystemTime {
        self.started_at + Duration::from_micros(client.connected_us)
    }

    /// When a client last asked for a server connection.
    pub fn asked_at(&self, client: &Client) -> SystemTime {
        self.started_at + Duration::from_micros(client.asked_us.load(Relaxed))
    }

    /// How long a client has been waiting for a server connection; nothing if it does not.
    pub fn waiting(&self, client: &Client) -> Duration {
        if client.activity() != Activity::Waiting {
            return Duration::ZERO;
        }
        Duration::from_micros(self.micros(Instant::now()).saturating_sub(client.asked_us.load(Relaxed)))
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Client {
    /// What it is at.
    pub fn activity(&self) -> Activity {
        match self.activity.load(Relaxed) {
            1 => Activity::Waiting,
            2 => Activity::Active,
            _ => Activity::Idle,
        }
    }

    /// What sort of replication connection it is, as PgBouncer calls it.
    pub fn replication(&self) -> &'static str {
        ["none", "physical", "logical"].get(usize::from(self.replication.load(Relaxed))).copied().unwrap_or_default()
    }

    /// The number of the server connection that it holds; 0 if it holds none.
    pub fn server(&self) -> u64 {
        self.server.load(Relaxed)
    }

    /// Why it keeps its server connection beyond its transaction, as of its last transaction.
    pub fn pins(&self) -> Pins {
        Pins::from_bits(self.pins.load(Relaxed) as u16)
    }

    /// Its prepared statements, as of its last transaction.
    pub fn statements(&self) -> u32 {
        self.statements.load(Relaxed)
    }

    /// What has gone over its socket and is not in its database's figures yet.
    pub fn uncounted(&self) -> Traffic {
        Traffic { read: self.read.load(Relaxed), written: self.written.load(Relaxed) }
    }

    /// Its `application_name`, as of its last transaction.
    pub fn application_name(&self) -> Option<Box<str>> {
        self.application_name.lock().clone()
    }

    /// Ends it, whatever it is doing.
    pub fn kill(&self) {
        self.killed.store(true, Relaxed);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }
}

/// A client's place among all, for as long as its session lives.
#[derive(Debug)]
pub(super) struct ListedClient {
    all: Arc<Clients>,
    client: Arc<Client>,
    /// What of its traffic has been counted.
    traffic: Traffic,
    /// Which settings its application_name was taken from.
    settings: usize,
}

impl Drop for ListedClient {
    fn drop(&mut self) {
        self.all.listed.lock().remove(&self.client.id);
    }
}

impl ListedClient {
    /// Its number.
    pub(super) fn id(&self) -> u64 {
        self.client.id
    }

    /// It asks for something that may need a server connection.
    pub(super) fn asks(&self, since: Instant) {
        self.client.asked_us.store(self.all.micros(since), Relaxed);
    }

    /// It wants a server connection, for what it asked at that time.
    pub(super) fn waits(&self, since: Instant) {
        self.asks(since);
        self.client.activity.store(Activity::Waiting as u8, Relaxed);
    }

    /// It holds that server connection; 0 is none.
    pub(super) fn holds(&self, server: u64) {
        let activity = if server == 0 { Activity::Idle } else { Activity::Active };
        self.client.server.store(server, Relaxed);
        self.client.activity.store(activity as u8, Relaxed);
    }

    /// It is a replication connection, with a server connection of its own.
    pub(super) fn replicates(&self, kind: Replication) {
        let number = if kind == Replication::Physical { 1 } else { 2 };
        self.client.replication.store(number, Relaxed);
        self.client.activity.store(Activity::Active as u8, Relaxed);
    }

    /// What it has at the end of a transaction.
    pub(super) fn has(&self, pins: Pins, statements: usize) {
        self.client.pins.store(u32::from(pins.bits()), Relaxed);
        self.client.statements.store(u32::try_from(statements).unwrap_or(u32::MAX), Relaxed);
    }

    /// What has gone over its socket and is to be counted for its database now: not for each transaction, since all clients
    /// count there.
    pub(super) fn uncounted(&mut self, now: Traffic) -> Option<Traffic> {
        let new = Traffic { read: now.read - self.traffic.read, written: now.written - self.traffic.written };
        let is_much = new.read + new.written >= COUNTED_BYTES;
        self.client.read.store(if is_much { 0 } else { new.read }, Relaxed);
        self.client.written.store(if is_much { 0 } else { new.written }, Relaxed);
        if is_much {
            self.traffic = now;
        }
        is_much.then_some(new)
    }

    /// What was never counted.
    pub(super) fn rest(&mut self, now: Traffic) -> Traffic {
        let new = Traffic { read: now.read - self.traffic.read, written: now.written - self.traffic.written };
        self.traffic = now;
        self.client.read.store(0, Relaxed);
        self.client.written.store(0, Relaxed);
        new
    }

    /// Whether it was killed.
    pub(super) fn is_killed(&self) -> bool {
        self.client.killed.load(Relaxed)
    }

    /// Whether these settings are others than those that its application_name was taken from.
    pub(super) fn has_new_settings<T>(&mut self, settings: &Arc<T>) -> bool {
        let at = Arc::as_ptr(settings) as usize;
        std::mem::replace(&mut self.settings, at) != at
    }

    /// Its `application_name`.
    pub(super) fn set_application_name(&self, name: Option<&str>) {
        *self.client.application_name.lock() = name.map(Box::from);
    }

    /// What its session watches to learn that it was killed.
    pub(super) fn kill_switch(&self) -> KillSwitch {
        KillSwitch { client: Arc::clone(&self.client), known: None }
    }
}

/// Tells a session that its client was killed: one load and one comparison a poll.
pub(super) struct KillSwitch {
    client: Arc<Client>,
    known: Option<Waker>,
}

impl KillSwitch {
    /// The outcome of that work, or the reason why it ends here.
    pub(super) async fn or<T, F>(mut self, mut work: Pin<&mut F>) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(killed) => Poll::Ready(Err(killed)),
            Poll::Pending => work.as_mut().poll(cx),
        })
        .await
    }

    /// Ready with the reason once the client was killed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if self.known.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            self.known = Some(cx.waker().clone());
            *self.client.waker.lock() = Some(cx.waker().clone());
        }
        // Behind the registration, so that a kill in between is seen by one of the two.
        if !self.client.killed.load(Relaxed) {
            return Poll::Pending;
        }
        let message = "terminating connection due to administrator command";
        Poll::Ready(Error::new(ErrorKind::Shutdown, SqlState::ADMIN_SHUTDOWN, message).fatal())
    }
}
