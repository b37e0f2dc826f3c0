//! Taking clients in: limits first, then the handshake, then a session, each in a task of its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::House;
use crate::config::model::User;
use crate::error::{Error, ErrorKind};
use crate::net::listener::Listener;
use crate::net::stream::Stream;
use crate::session::Session;
use crate::session::cancel::CancelKey;
use crate::session::handshake::{self, Authenticated, Handshake};
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
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                house.sessions.spawn(serve(Arc::clone(&house), stream));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a client");
                tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
            }
        }
    }
}

async fn serve(house: Arc<House>, stream: Stream) {
    let config = house.config.load_full();
    let context = house.handshake.load_full();
    match house.door.load().enter(stream.peer().ip(), config.security.max_connections_per_ip) {
        Ok(entered) => {
            let handshake = Box::pin(handshake::accept(stream, &context)).await;
            go_on(&house, handshake).await;
            drop(entered);
        }
        // Even in a full house a cancel request is honoured.
        Err(refusal) => go_on(&house, Box::pin(handshake::turn_away(stream, &context, refusal)).await).await,
    }
}

/// Does what a connection turned out to want.
async fn go_on(house: &House, handshake: Result<Handshake, Error>) {
    match handshake {
        Ok(Handshake::Session(authenticated)) => Box::pin(run_session(house, *authenticated)).await,
        Ok(Handshake::Cancel { pid, secret, mut stream }) => {
            house.shared.cancel_keys.cancel(&CancelKey { pid, secret }).await;
            // libpq 17 and later cancels over TLS, and takes an end without close_notify for a failure.
            let _ = tokio::time::timeout(house.config.load().listen.login_timeout, stream.shutdown()).await;
        }
        Ok(Handshake::Closed) => {}
        Err(error) => {
            house.metrics.client_rejected(error.kind().label());
            tracing::info!(%error, "client turned away");
        }
    }
}

async fn run_session(house: &House, authenticated: Authenticated) {
    let Some(db) = house.databases.get(&authenticated.database.name) else { return };
    let logged_in = house.door.load().log_in(&authenticated.user);
    let _counted = house.metrics.client(&authenticated.database.name, &authenticated.user.name);
    let settings = authenticated.startup.settings.clone();
    let session = Session::new(db, authenticated, &house.drain);
    let ended = match logged_in {
        Ok(_place) => session.run(settings).await,
        Err(refusal) => session.turn_away(refusal).await,
    };
    if let Err(error) = ended {
        house.metrics.error(error.kind());
        tracing::info!(%error, "session ended");
    }
}
