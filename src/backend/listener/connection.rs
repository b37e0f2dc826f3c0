//! The task that owns a listener's server connection: it sends LISTEN and UNLISTEN, and passes on what is notified.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::mailbox::{Channel, End, Mail, Mailbox};
use super::{APPLICATION_NAME, Command, Listener, lost};
use crate::backend::connect;
use crate::backend::failure::server_error;
use crate::backend::server::ServerConn;
use crate::config::model::OnListenerLoss;
use crate::error::{Error, ErrorKind};
use crate::wire::frame::{Body, Frame};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// Statements on their way at once: few enough that the server takes all of them before it has answered any.
const IN_FLIGHT: usize = 200;
/// How long a connection that nobody listens to is kept.
const LINGER: Duration = Duration::from_secs(5);
/// How long to wait before a failed reconnection is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the server may take to answer a check.
const CHECK_DEADLINE: Duration = Duration::from_secs(5);

/// A statement that is not answered yet.
enum Asked {
    Listen { channels: Vec<Channel>, mailbox: Arc<Mailbox>, done: oneshot::Sender<Result<(), Error>> },
    Unlisten,
    Check,
}

/// Why a connection is not served any more.
enum Served {
    /// Nobody listens.
    Unwanted,
    /// The database is gone from the configuration, or pgherd ends.
    Closed,
    /// The connection was lost, or had to be given up.
    Lost(Error),
}

struct Connection<'a> {
    listener: &'a Listener,
    server: ServerConn,
    asked: VecDeque<Asked>,
    /// What the server said against the first of them.
    refusal: Option<Error>,
    /// When the server is asked whether it is still there, or, while it is being asked, taken for gone.
    check_at: Instant,
    unwanted_since: Option<Instant>,
}

/// Serves a listener until nobody listens any more or its connection is lost for good.
pub(super) async fn run(listener: Arc<Listener>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut had_connection = false;
    loop {
        let served = match open(&listener).await {
            Ok(Some(mut connection)) => match connection.resume(had_connection).await {
                Ok(()) => {
                    had_connection = true;
                    let served = connection.serve(&mut commands).await;
                    connection.fail_all();
                    let Connection { server, .. } = connection;
                    server.close().await;
                    served
                }
                Err(error) => Served::Lost(error),
            },
            Ok(None) => Served::Closed,
            Err(error) => Served::Lost(error),
        };
        listener.pid.send_replace(0);
        match served {
            Served::Unwanted if listener.ends(&commands) => return,
            Served::Unwanted => {}
            Served::Closed => return listener.gives_up(&mut commands, &lost()),
            Served::Lost(error) => {
                listener.note_lost(had_connection, &error);
                // Who waits has not been refused: the connection that it would have been asked on is gone.
                let error = if had_connection { lost() } else { error };
                if !had_connection || listener.on_loss == OnListenerLoss::Close {
                    return listener.gives_up(&mut commands, &error);
                }
                listener.refuse_all(&mut commands, &error);
                if listener.ends(&commands) {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = listener.ground.closed.cancelled() => return listener.gives_up(&mut commands, &lost()),
                }
            }
        }
    }
}

/// A new connection; `None` if none is wanted any more.
async fn open(listener: &Listener) -> Result<Option<Connection<'_>>, Error> {
    let ground = &listener.ground;
    tokio::select! {
        () = ground.closed.cancelled() => return Ok(None),
        () = ground.gate.opened() => {}
    }
    let login = listener.state.lock().login.clone().ok_or_else(|| Error::internal("nobody has listened"))?;
    let mut address = ground.address.clone();
    address.application_name = Some(APPLICATION_NAME.to_owned());
    listener.pid.send_replace(-1);
    let connected = connect::connect(&address, &login).await?;
    let server = ServerConn::new(connected, &address, &login.tls, 0);
    listener.pid.send_replace(server.pid);
    listener.state.lock().encoding = server.parameter("client_encoding").map(Arc::from);
    let check_at = Instant::now() + listener.check_interval;
    let (asked, refusal, unwanted_since) = (VecDeque::new(), None, None);
    Ok(Some(Connection { listener, server, asked, refusal, check_at, unwanted_since }))
}

impl Connection<'_> {
    /// Listens again to what an earlier connection listened to.
    async fn resume(&mut self, again: bool) -> Result<(), Error> {
        if !again {
            return Ok(());
        }
        let channels: Vec<Channel> = self.listener.state.lock().channels.keys().cloned().collect();
        let patience = self.listener.patience;
        let resumed = timeout(patience, self.server.run(&listen_sql(&channels))).await;
        resumed.map_err(|_| lost())??;
        self.listener.state.lock().mailboxes().iter().for_each(|mailbox| {
            mailbox.post(Mail::MayHaveLost);
        });
        tracing::info!(server = %self.listener.ground.address, channels = channels.len(), "listening again");
        Ok(())
    }

    async fn serve(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Served {
        let ground = &self.listener.ground;
        loop {
            let is_unwanted = self.asked.is_empty() && self.listener.state.lock().channels.is_empty();
            self.unwanted_since = is_unwanted.then(|| self.unwanted_since.unwrap_or_else(Instant::now));
            let wake_at = match self.unwanted_since {
                Some(since) => (since + LINGER).min(self.check_at),
                None => self.check_at,
            };
            tokio::select! {
                biased;
                () = ground.closed.cancelled() => return Served::Closed,
                () = ground.gate.barred() => return Served::Lost(given_up()),
                frame = self.server.read_frame() => match frame {
                    Ok(frame) => if let Err(error) = self.take(&frame) {
                        return Served::Lost(error);
                    },
                    Err(error) => return Served::Lost(error),
                },
                // The listener keeps the sender until it is told that this ends.
                Some(command) = commands.recv(), if self.asked.len() < IN_FLIGHT => {
                    self.send(command);
                    if let Err(error) = self.server.flush().await {
                        return Served::Lost(error);
                    }
                }
                () = sleep_until(wake_at) => {
                    if self.unwanted_since.is_some_and(|since| since.elapsed() >= LINGER) {
                        return Served::Unwanted;
                    }
                    if let Err(error) = self.check().await {
                        return Served::Lost(error);
                    }
                }
            }
        }
    }

    fn send(&mut self, command: Command) {
        if self.asked.is_empty() {
            self.check_at = Instant::now() + CHECK_DEADLINE;
        }
        match command {
            Command::Listen { channels, mailbox, done } => {
                writer::query(&mut self.server.outbuf, listen_sql(&channels).as_bytes());
                self.asked.push_back(Asked::Listen { channels, mailbox, done });
            }
            Command::Unlisten(channel) => {
                if self.listener.state.lock().forget(&channel) {
                    let sql = format!("UNLISTEN {}", quoted(&channel));
                    writer::query(&mut self.server.outbuf, sql.as_bytes());
                    self.asked.push_back(Asked::Unlisten);
                }
            }
        }
    }

    /// Asks a server that has been silent whether it is still there.
    async fn check(&mut self) -> Result<(), Error> {
        if Instant::now() < self.check_at {
            return Ok(());
        }
        if !self.asked.is_empty() {
            return Err(lost().detail(format!("The server did not answer within {CHECK_DEADLINE:?}.")));
        }
        writer::query(&mut self.server.outbuf, b"");
        self.asked.push_back(Asked::Check);
        self.check_at = Instant::now() + CHECK_DEADLINE;
        self.server.flush().await
    }

    fn take(&mut self, frame: &Frame) -> Result<(), Error> {
        match frame.tag() {
            b'A' => {
                let mut body = Body::new(frame.body());
                let channel = body.i32().and_then(|_| std::str::from_utf8(body.cstr()?).ok());
                if let Some(channel) = channel {
                    // A copy: a few bytes that wait for a slow client must not keep a whole buffer.
                    self.listener.dispatch(channel, &Bytes::copy_from_slice(&frame.bytes));
                }
            }
            b'E' if self.asked.is_empty() => return Err(server_error(frame.body())),
            b'E' => self.refusal = Some(server_error(frame.body())),
            b'Z' => self.answered(),
            _ => self.server.note(frame),
        }
        Ok(())
    }

    fn answered(&mut self) {
        let refusal = self.refusal.take();
        if let Some(Asked::Listen { channels, mailbox, done }) = self.asked.pop_front() {
            self.listener.note_listened(&channels, &mailbox, refusal.is_none());
            let _ = done.send(refusal.map_or(Ok(()), Err));
        }
        let next = if self.asked.is_empty() { self.listener.check_interval } else { CHECK_DEADLINE };
        self.check_at = Instant::now() + next;
    }

    /// Nothing that was asked will be answered.
    fn fail_all(&mut self) {
        for asked in self.asked.drain(..) {
            if let Asked::Listen { channels, mailbox, done } = asked {
                self.listener.note_listened(&channels, &mailbox, false);
                let _ = done.send(Err(lost()));
            }
        }
    }
}

impl Listener {
    /// The task ends, unless somebody has asked for something meanwhile.
    fn ends(&self, commands: &mpsc::UnboundedReceiver<Command>) -> bool {
        let mut state = self.state.lock();
        let ends = commands.is_empty() && state.channels.is_empty();
        if ends {
            state.commands = None;
        }
        ends
    }

    /// The task ends, and whoever listens or wants to hears of it.
    fn gives_up(&self, commands: &mut mpsc::UnboundedReceiver<Command>, error: &Error) {
        let mut state = self.state.lock();
        state.commands = None;
        let mailboxes = state.mailboxes();
        state.channels.clear();
        drop(state);
        mailboxes.iter().for_each(|mailbox| mailbox.end(End::Lost));
        self.refuse_all(commands, error);
    }

    /// Whoever waits for a LISTEN hears why there is none.
    fn refuse_all(&self, commands: &mut mpsc::UnboundedReceiver<Command>, error: &Error) {
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Listen { channels, mailbox, done } => {
                    self.note_listened(&channels, &mailbox, false);
                    let _ = done.send(Err(error.again()));
                }
                Command::Unlisten(channel) => drop(self.state.lock().forget(&channel)),
            }
        }
    }

    fn note_lost(&self, had_connection: bool, error: &Error) {
        let server = &self.ground.address;
        if had_connection {
            self.ground.metrics.lost.inc();
            tracing::warn!(%error, %server, "the listener lost its server connection");
        } else {
            tracing::warn!(%error, %server, "the listener cannot connect");
        }
    }
}

/// A PAUSE or KILL.
fn given_up() -> Error {
    let message = "the database was paused or killed";
    Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT_NOW, message)
}

fn listen_sql(channels: &[Channel]) -> String {
    let statements: Vec<String> = channels.iter().map(|channel| format!("LISTEN {}", quoted(channel))).collect();
    statements.join(";")
}

/// A name as an identifier that means just it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
