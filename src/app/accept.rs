//! Taking clients in: limits first, then the handshake, then a session, each in a task of its own.

use std::pin::Pin;
use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;

use super::House;
use super::door::{Entered, LoggedIn, Shut};
use super::workers::Seat;
use crate::error::{Error, ErrorKind};
use crate::net::listener::Listener;
use crate::net::stream::Stream;
use crate::session::cancel::CancelKey;
use crate::session::context::Database;
use crate::session::handshake::{self, Authenticated, Handshake};
use crate::session::{Session, Stay, replication};
use crate::telemetry::metrics::ClientCount;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::Replication;

/// Pause after the system refused an accept (out of descriptors), so that the loop does not spin.
const PAUSE_AFTER_FAILED_ACCEPT: std::time::Duration = std::time::Duration::from_millis(50);

/// Accepts clients until pgherd drains.
pub(super) async fn accept_loop(house: Arc<House>, listener: Listener) {
    loop {
        let accepted = tokio::select! {
            () = house.drain.begun() => return,
            () = house.console.closing.cancelled() => {
                if house.handover.is_over() {
                    listener.leave();
                }
                return;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let seat = house.workers.seat();
                let handle = seat.handle().clone();
                // Boxed out here, so that an idle client's task has no room for what its login needed.
                let receiving = Box::pin(receive(Arc::clone(&house), stream));
                house.sessions.spawn_on(serve(Arc::clone(&house), receiving, seat), &handle);
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a client");
                tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
            }
        }
    }
}

async fn serve(house: Arc<House>, receiving: Pin<Box<impl Future<Output = Option<Guest>>>>, seat: Seat) {
    let Some(guest) = receiving.await else { return };
    attend(house, guest, seat).await;
}

/// Does what a connection wants, up to the greeting if it is a session.
async fn receive(house: Arc<House>, mut stream: Stream) -> Option<Guest> {
    if let Err(error) = stream.move_here() {
        tracing::debug!(%error, "a client was lost before it had said anything");
        return None;
    }
    let config = house.config.load_full();
    let context = house.handshake.load_full();
    let address = stream.peer().ip();
    let (handshake, entered) = match house.door.enter(address, &config) {
        Ok(entered) => (handshake::accept(stream, &context).await, Some(entered)),
        // Even in a full house a cancel request is honoured.
        Err(Shut::Refused(refusal)) => (handshake::turn_away(stream, &context, refusal).await, None),
        Err(Shut::Full(refusal)) => {
            let mut entered = None;
            let admit = |user: &str| {
                entered = config.may_use_reserve(user).then(|| house.door.enter_by_reserve(address, &config)).flatten();
                entered.is_some()
            };
            (handshake::accept_some(stream, &context, refusal, admit).await, entered)
        }
    };
    match handshake {
        Ok(Handshake::Session(authenticated)) => open_session(&house, *authenticated, entered).await,
        Ok(Handshake::Cancel { pid, secret, mut stream }) => {
            house.cancel(CancelKey { pid, secret }).await;
            // libpq 17 and later cancels over TLS, and takes an end without close_notify for a failure.
            let _ = tokio::time::timeout(config.listen.login_timeout, stream.shutdown()).await;
            None
        }
        Ok(Handshake::Replication(authenticated, kind)) => {
            Box::pin(replicate(&house, *authenticated, kind)).await;
            drop(entered);
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
    let (user, database) = (&authenticated.user, &authenticated.database);
    let may_use_reserve = house.config.load().may_use_reserve(&user.name);
    let logged_in = match is_disabled {
        true => Err(disabled(&db)),
        false => house.door.log_in(user, database, may_use_reserve),
    };
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

/// Serves a replication connection to its end, on the thread where it began.
async fn replicate(house: &House, authenticated: Authenticated, kind: Replication) {
    let Some(db) = house.databases.get(&authenticated.database.name) else { return };
    let (user, database) = (&authenticated.user, &authenticated.database);
    let may_use_reserve = house.config.load().may_use_reserve(&user.name);
    let logged_in = match db.gate.is_disabled() {
        true => Err(disabled(&db)),
        false => house.door.log_in(user, database, may_use_reserve),
    };
    let _gauge = house.metrics.client(&database.name, &user.name);
    let served = match logged_in {
        Ok(_place) => replication::serve(db, authenticated, kind, &house.drain).await,
        Err(refusal) => Err(Session::new(db, authenticated, &house.drain).turn_away(refusal).await),
    };
    if let Err(error) = served {
        note_early_end(house, &error);
    }
}

fn note_early_end(house: &House, error: &Error) {
    house.metrics.error(error.kind());
    tracing::info!(%error, "session ended");
}

/// Serves a session on the thread at hand, then, if it has to go there, on another. Boxed, because it spawns itself.
fn attend(house: Arc<House>, guest: Guest, seat: Seat) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    // Out here: what is moved into a future and then taken apart in it has its room twice.
    let Guest { session, counted } = guest;
    Box::pin(async move {
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
