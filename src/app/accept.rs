//! Taking clients in: limits first, then the handshake, then a session, each in a task of its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::House;
use super::workers::Seat;
use crate::config::model::User;
use crate::error::{Error, ErrorKind};
use crate::net::listener::Listener;
use crate::net::stream::Stream;
use crate::session::cancel::CancelKey;
use crate::session::context::Database;
use crate::session::handshake::{self, Authenticated, Handshake};
use crate::session::{Session, Stay};
use crate::telemetry::metrics::ClientCount;
use crate::wire::sqlstate::SqlState;

/// Pause after the system refused an accept (out of descriptors), so that the loop does not spin.
const PAUSE_AFTER_FAILED_ACCEPT: std::time::Duration = std::time::Duration::from_millis(50);

/// Addresses whose rate is remembered before the memory is swept of those that are quiet.
const RATED_ADDRESSES: usize = 10_000;

type RateLimiter = governor::DefaultKeyedRateLimiter<IpAddr>;

/// Counts clients against `listen.max_clients` and `[security]`.
pub(super) struct Door {
    places: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    by_user: Mutex<HashMap<String, usize>>,
    rate: Option<RateLimiter>,
}

impl Door {
    /// A door for that configuration.
    pub(super) fn new(config: &crate::config::model::Config) -> Self {
        let per_minute = config.security.rate_limit_per_minute.and_then(std::num::NonZeroU32::new);
        Self {
            places: Arc::new(Semaphore::new(config.listen.max_clients.min(Semaphore::MAX_PERMITS))),
            by_address: Mutex::default(),
            by_user: Mutex::default(),
            rate: per_minute.map(|rate| RateLimiter::keyed(governor::Quota::per_minute(rate))),
        }
    }

    /// Lets a client in, or says why not.
    fn enter(self: &Arc<Self>, address: Option<IpAddr>, per_address: Option<usize>) -> Result<Entered, Error> {
        let refused = |message: &str, hint: &str| {
            Err(Error::new(ErrorKind::Limit, SqlState::TOO_MANY_CONNECTIONS, message).hint(hint).fatal())
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return refused("sorry, too many clients already", "Raise listen.max_clients.");
        };
        let Some(address) = address else {
            return Ok(Entered { _place: place, door: Arc::clone(self), address: None });
        };
        if let Some(rate) = &self.rate {
            if rate.len() > RATED_ADDRESSES {
                rate.retain_recent();
            }
            if rate.check_key(&address).is_err() {
                return refused(
                    "too many new connections from this address",
                    "Keep connections open, or raise security.rate_limit_per_minute.",
                );
            }
        }
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_default();
        if per_address.is_some_and(|limit| *count >= limit) {
            return refused(
                "too many connections from this address",
                "Close some of them, or raise security.max_connections_per_ip.",
            );
        }
        *count += 1;
        Ok(Entered { _place: place, door: Arc::clone(self), address: Some(address) })
    }
}

impl Door {
    /// Counts a client against `user.max_clients`, now that it is known who it is.
    fn log_in(self: &Arc<Self>, user: &User) -> Result<LoggedIn, Error> {
        let mut by_user = self.by_user.lock();
        let count = by_user.entry(user.name.clone()).or_default();
        if user.max_clients.is_some_and(|limit| *count >= limit) {
            let message = format!("too many connections for role \"{}\"", user.name);
            return Err(Error::new(ErrorKind::Limit, SqlState::TOO_MANY_CONNECTIONS, message)
                .hint("Close some of them, or raise the user's max_clients.")
                .fatal());
        }
        *count += 1;
        Ok(LoggedIn { door: Arc::clone(self), user: user.name.clone() })
    }
}

/// A client's place among those of its user; given up when dropped.
struct LoggedIn {
    door: Arc<Door>,
    user: String,
}

impl Drop for LoggedIn {
    fn drop(&mut self) {
        let mut by_user = self.door.by_user.lock();
        if let Some(count) = by_user.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                by_user.remove(&self.user);
            }
        }
    }
}

/// A client's place; given up when dropped.
struct Entered {
    _place: OwnedSemaphorePermit,
    door: Arc<Door>,
    address: Option<IpAddr>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut by_address = self.door.by_address.lock();
        if let Some(count) = by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&address);
            }
        }
    }
}

/// Accepts clients until pgherd drains.
pub(super) async fn accept_loop(house: Arc<House>, listener: Listener) {
    loop {
        let accepted = tokio::select! {
            () = house.drain.begun() => return,
            () = house.console.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let seat = house.workers.seat();
                let handle = seat.handle().clone();
                house.sessions.spawn_on(serve(Arc::clone(&house), stream, seat), &handle);
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a client");
                tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
            }
        }
    }
}

async fn serve(house: Arc<House>, stream: Stream, seat: Seat) {
    // Boxed, so that what a login needs is gone when it is over.
    if let Some(guest) = Box::pin(receive(&house, stream)).await {
        attend(house, guest, seat).await;
    }
}

/// Does what a connection wants, up to the greeting if it is a session.
async fn receive(house: &Arc<House>, mut stream: Stream) -> Option<Guest> {
    if let Err(error) = stream.move_here() {
        tracing::debug!(%error, "a client was lost before it had said anything");
        return None;
    }
    let config = house.config.load_full();
    let context = house.handshake.load_full();
    let entered = house.door.load().enter(stream.peer().ip(), config.security.max_connections_per_ip);
    let (handshake, entered) = match entered {
        Ok(entered) => (handshake::accept(stream, &context).await, Some(entered)),
        // Even in a full house a cancel request is honoured.
        Err(refusal) => (handshake::turn_away(stream, &context, refusal).await, None),
    };
    match handshake {
        Ok(Handshake::Session(authenticated)) => open_session(house, *authenticated, entered).await,
        Ok(Handshake::Cancel { pid, secret, mut stream }) => {
            house.shared.cancel_keys.cancel(&CancelKey { pid, secret }).await;
            // libpq 17 and later cancels over TLS, and takes an end without close_notify for a failure.
            let _ = tokio::time::timeout(config.listen.login_timeout, stream.shutdown()).await;
            None
        }
        Ok(Handshake::Console(operator)) => {
            Box::pin(house.open_console(*operator)).await;
            drop(entered);
            None
        }
        Ok(Handshake::Closed) => None,
        Err(error) => {
            house.metrics.client_rejected(error.kind().label());
            tracing::info!(%error, "client turned away");
            None
        }
    }
}

/// A session, and what counts it.
struct Guest {
    session: Box<Session>,
    counted: Counted,
}

/// A client's places in all that is limited and shown.
struct Counted {
    _entered: Option<Entered>,
    _place: LoggedIn,
    _gauge: ClientCount,
}

/// The database was closed to new clients in the console.
fn disabled(db: &Database) -> Error {
    let message = format!("database \"{}\" does not accept connections at the moment", db.config.name);
    Error::new(ErrorKind::Limit, SqlState::CANNOT_CONNECT_NOW, message)
        .hint("An administrator has disabled it; ENABLE in the console ends that.")
        .fatal()
}

async fn open_session(house: &House, authenticated: Authenticated, entered: Option<Entered>) -> Option<Guest> {
    let db = house.databases.get(&authenticated.database.name)?;
    let is_disabled = db.gate.is_disabled();
    let logged_in = if is_disabled { Err(disabled(&db)) } else { house.door.load().log_in(&authenticated.user) };
    let gauge = house.metrics.client(&authenticated.database.name, &authenticated.user.name);
    let settings = authenticated.startup.settings.clone();
    let session = Session::new(db, authenticated, &house.drain);
    let opened = match logged_in {
        Ok(place) => session.open(settings).await.map(|session| (session, place)),
        Err(refusal) => Err(session.turn_away(refusal).await),
    };
    match opened {
        Ok((session, place)) => {
            Some(Guest { session, counted: Counted { _entered: entered, _place: place, _gauge: gauge } })
        }
        Err(error) => {
            note_early_end(house, &error);
            None
        }
    }
}

fn note_early_end(house: &House, error: &Error) {
    house.metrics.error(error.kind());
    tracing::info!(%error, "session ended");
}

/// Serves a session on the thread at hand, then, if it has to go there, on another. Boxed, because it spawns itself.
fn attend(house: Arc<House>, guest: Guest, seat: Seat) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let Guest { session, counted } = guest;
        match session.stay(seat.surplus()).await {
            Stay::Over(Ok(())) => {}
            Stay::Over(Err(error)) => note_early_end(&house, &error),
            Stay::Moves(session) => {
                drop(seat);
                move_elsewhere(house, Guest { session, counted });
            }
        }
    })
}

/// Gives a session a seat on another thread.
fn move_elsewhere(house: Arc<House>, mut guest: Guest) {
    house.metrics.moves.inc();
    let seat = house.workers.seat();
    let handle = seat.handle().clone();
    let tracker = house.sessions.clone();
    let arrival = async move {
        match guest.session.move_here() {
            Ok(()) => attend(house, guest, seat).await,
            Err(error) => note_early_end(&house, &error),
        }
    };
    tracker.spawn_on(arrival, &handle);
}
