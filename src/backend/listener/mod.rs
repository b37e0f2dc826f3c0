//! LISTEN for many by one server connection: who listens to what, and the connection that listens for all of them.
//!
//! It is made when somebody listens and closed when nobody has for a while. A client's LISTEN is carried out there before the
//! client's own transaction may commit, so that nothing notified after that commit is missed; its answer there is also the moment
//! from which the client's mailbox is filled, so that nothing older comes.

mod connection;
mod mailbox;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use connection::quoted;
pub use mailbox::{Channel, End, Mail, Mailbox};

use super::connect::Login;
use super::gate::Gate;
use crate::config::model::{OnListenerLoss, Pool as PoolConfig, ServerAddress};
use crate::error::{Error, ErrorKind};
use crate::telemetry::metrics::ListenerMetrics;
use crate::wire::sqlstate::SqlState;

/// What the listener's connection is called in `pg_stat_activity`.
pub const APPLICATION_NAME: &str = "pgherd listener";

/// What a listener stands on.
pub struct Ground {
    /// The server that it listens at.
    pub address: ServerAddress,
    /// Whether server connections are wanted now.
    pub gate: Arc<Gate>,
    /// Its database is gone.
    pub closed: CancellationToken,
    /// Counts its task.
    pub tasks: TaskTracker,
    /// Its figures.
    pub metrics: ListenerMetrics,
}

/// The listener of one database.
pub struct Listener {
    ground: Ground,
    on_loss: OnListenerLoss,
    queue_bytes: usize,
    patience: Duration,
    check_interval: Duration,
    /// Its server process; 0 while there is none, less while one is being connected to.
    pid: watch::Sender<i32>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    channels: HashMap<Channel, Members>,
    /// How to reach the connection's task, while it runs.
    commands: Option<mpsc::UnboundedSender<Command>>,
    /// How whoever listened last logs in.
    login: Option<Login>,
    /// The encoding that notifications come in.
    encoding: Option<Arc<str>>,
}

/// Who listens to one channel.
#[derive(Default)]
struct Members {
    mailboxes: Vec<Arc<Mailbox>>,
    /// LISTENs on their way.
    asked: usize,
}

enum Command {
    Listen { channels: Vec<Channel>, mailbox: Arc<Mailbox>, done: oneshot::Sender<Result<(), Error>> },
    Unlisten(Channel),
}

/// What SHOW LISTENERS shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// The server process; 0 without a connection.
    pub pid: i32,
    /// Channels that somebody listens to.
    pub channels: usize,
    /// Clients that listen.
    pub clients: usize,
    /// Notifications that came.
    pub received: u64,
    /// Notifications put into clients' queues.
    pub delivered: u64,
    /// Times that the connection was lost.
    pub lost: u64,
    /// Clients that did not keep up.
    pub too_slow: u64,
}

impl Listener {
    /// One that has no connection yet.
    pub fn new(ground: Ground, pool: &PoolConfig) -> Arc<Self> {
        Arc::new(Self {
            ground,
            on_loss: pool.on_listener_loss,
            queue_bytes: pool.notification_queue,
            patience: pool.acquire_timeout,
            check_interval: pool.health_check_interval,
            pid: watch::Sender::new(0),
            state: Mutex::default(),
        })
    }

    /// A client's place, listening to nothing yet.
    pub fn subscribe(self: &Arc<Self>) -> Subscription {
        self.ground.metrics.clients.inc();
        Subscription { listener: Arc::clone(self), mailbox: Arc::new(Mailbox::new(self.queue_bytes)) }
    }

    /// Waits until it has no connection.
    pub async fn is_closed(&self) {
        let _ = self.pid.subscribe().wait_for(|pid| *pid == 0).await;
    }

    /// The encoding that notifications come in, once it is known.
    pub fn encoding(&self) -> Option<Arc<str>> {
        self.state.lock().encoding.clone()
    }

    /// What it does at the moment.
    pub fn figures(&self) -> Figures {
        let metrics = &self.ground.metrics;
        Figures {
            pid: (*self.pid.borrow()).max(0),
            channels: self.state.lock().channels.values().filter(|members| !members.mailboxes.is_empty()).count(),
            clients: usize::try_from(metrics.clients.get()).unwrap_or(0),
            received: metrics.received.get(),
            delivered: metrics.delivered.get(),
            lost: metrics.lost.get(),
            too_slow: metrics.too_slow.get(),
        }
    }

    /// Hands a LISTEN to the connection's task, which is started if there is none.
    fn ask(self: &Arc<Self>, login: Login, channels: Vec<Channel>, mailbox: &Arc<Mailbox>) -> Answer {
        let (done, answer) = oneshot::channel();
        let mut state = self.state.lock();
        state.login = Some(login);
        for channel in &channels {
            state.channels.entry(Arc::clone(channel)).or_default().asked += 1;
        }
        let commands = state.commands.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            self.ground.tasks.spawn(connection::run(Arc::clone(self), receiver));
            sender
        });
        // The task takes the sender away before it ends.
        let _ = commands.send(Command::Listen { channels, mailbox: Arc::clone(mailbox), done });
        answer
    }

    /// A LISTEN has been answered.
    fn note_listened(&self, channels: &[Channel], mailbox: &Arc<Mailbox>, succeeded: bool) {
        let mut state = self.state.lock();
        let mut nobodys = Vec::new();
        for channel in channels {
            let Some(members) = state.channels.get_mut(channel) else { continue };
            members.asked = members.asked.saturating_sub(1);
            if succeeded && !mailbox.is_closed() && !members.mailboxes.iter().any(|known| Arc::ptr_eq(known, mailbox)) {
                members.mailboxes.push(Arc::clone(mailbox));
            }
            if members.mailboxes.is_empty() && members.asked == 0 {
                nobodys.push(Arc::clone(channel));
            }
        }
        mailbox.purge(channels);
        state.nobody_wants(nobodys);
    }

    /// Passes a NotificationResponse on to all who listen to its channel.
    fn dispatch(&self, channel: &str, frame: &bytes::Bytes) {
        let metrics = &self.ground.metrics;
        metrics.received.inc();
        let state = self.state.lock();
        let Some((channel, members)) = state.channels.get_key_value(channel) else { return };
        for mailbox in &members.mailboxes {
            metrics.delivered.inc();
            if mailbox.post(Mail::Notification(Arc::clone(channel), frame.clone())) {
                metrics.too_slow.inc();
            }
        }
    }

    /// That mailbox listens to these channels and no others from now on.
    fn keep_only(&self, mailbox: &Arc<Mailbox>, kept: &[Channel]) {
        let mut state = self.state.lock();
        let mut nobodys = Vec::new();
        for (channel, members) in &mut state.channels {
            if !kept.contains(channel) {
                let before = members.mailboxes.len();
                members.mailboxes.retain(|known| !Arc::ptr_eq(known, mailbox));
                if members.mailboxes.is_empty() && members.asked == 0 && before > 0 {
                    nobodys.push(Arc::clone(channel));
                }
            }
        }
        state.nobody_wants(nobodys);
    }
}

impl State {
    /// The server need not tell of these channels any more.
    fn nobody_wants(&mut self, channels: Vec<Channel>) {
        let Some(commands) = &self.commands else { return };
        for channel in channels {
            let _ = commands.send(Command::Unlisten(channel));
        }
    }

    /// Whether a channel may be forgotten; it is, then.
    fn forget(&mut self, channel: &Channel) -> bool {
        let is_nobodys = self.channels.get(channel).is_some_and(|it| it.mailboxes.is_empty() && it.asked == 0);
        if is_nobodys {
            self.channels.remove(channel);
        }
        is_nobodys
    }

    /// Everybody who listens to anything, once.
    fn mailboxes(&self) -> Vec<Arc<Mailbox>> {
        let mut all: Vec<_> = self.channels.values().flat_map(|it| it.mailboxes.iter().cloned()).collect();
        all.sort_unstable_by_key(|mailbox| Arc::as_ptr(mailbox) as usize);
        all.dedup_by(|one, other| Arc::ptr_eq(one, other));
        all
    }
}

type Answer = oneshot::Receiver<Result<(), Error>>;

/// One client's place; given up when dropped.
pub struct Subscription {
    listener: Arc<Listener>,
    mailbox: Arc<Mailbox>,
}

impl Subscription {
    /// Listens to these channels too; when this returns, whatever is notified from then on comes.
    ///
    /// # Errors
    /// The server cannot be reached, or refused.
    pub async fn listen(&self, login: Login, channels: Vec<Channel>) -> Result<(), Error> {
        match self.ask_once(login.clone(), channels.clone()).await {
            // A connection that is lost while somebody waits for it has refused nothing, and to listen twice does no harm.
            Err(error) if error.sqlstate() == SqlState::CONNECTION_FAILURE && !self.mailbox.is_closed() => {
                self.ask_once(login, channels).await
            }
            answer => answer,
        }
    }

    async fn ask_once(&self, login: Login, channels: Vec<Channel>) -> Result<(), Error> {
        let answer = self.listener.ask(login, channels, &self.mailbox);
        match tokio::time::timeout(self.listener.patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(lost()),
            Err(_) => Err(Error::new(
                ErrorKind::Backend,
                SqlState::CANNOT_CONNECT,
                format!("pgherd's listener could not listen within {:?}", self.listener.patience),
            )
            .hint("See in pgherd's log why not.")),
        }
    }

    /// Listens to these channels and no others from now on.
    pub fn keep_only(&self, channels: &[Channel]) {
        self.listener.keep_only(&self.mailbox, channels);
    }

    /// What the client is to be told.
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// The encoding that notifications come in.
    pub fn encoding(&self) -> Option<Arc<str>> {
        self.listener.encoding()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.mailbox.close();
        self.listener.keep_only(&self.mailbox, &[]);
        self.listener.ground.metrics.clients.dec();
    }
}

/// The connection ended before it had answered.
fn lost() -> Error {
    Error::new(ErrorKind::Backend, SqlState::CONNECTION_FAILURE, "pgherd's listener lost its server connection")
        .hint("Try LISTEN again.")
}
