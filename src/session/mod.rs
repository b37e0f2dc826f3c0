//! One client's session: from its handshake to its last byte, one turn a message.

mod answer;
mod answers;
mod anywhere;
mod at_once;
mod cached;
mod call;
pub mod cancel;
mod chain;
pub mod clients;
pub mod context;
mod copy_in;
mod cursor;
mod declared;
mod explain;
mod express;
mod extended;
mod failed;
mod failure;
mod fan_out;
mod flight;
mod gather;
mod greet;
pub mod handshake;
mod insert_select;
mod key_move;
mod late_begin;
mod lease;
mod legs;
mod levels;
mod listen;
mod maintain;
mod meaning;
mod memo;
mod mistyped;
mod named;
mod others;
mod own_rows;
pub mod pin;
mod pinned;
mod planned;
mod portals;
pub mod purge;
mod query;
mod relocate;
mod renewal;
mod replica;
pub mod replication;
mod restore;
mod rights;
mod route;
mod scatter;
mod seen_settings;
mod span;
mod split;
mod state;
mod turn;
mod unit;
mod unseen;
mod unstreamed;
mod within;
mod writes;

use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use tokio::time::Instant;

use crate::backend::alarm::Alarm;
use crate::backend::expect::Expect;
use crate::backend::pool::{Lease, Pool};
use crate::backend::scan::Seen;
use crate::backend::settings::SharedSettings;
use crate::backend::signature::Signature;
use crate::backend::statements::Identity;
use crate::config::model::{PoolMode, User};
use crate::error::Error;
use crate::exec::relay::ClientSide;
use crate::net::home::Surplus;
use crate::net::spare;
use crate::session::cancel::Registration;
use crate::session::clients::ListedClient;
use crate::session::context::{Database, Target};
use crate::session::flight::Flight;
use crate::session::handshake::Authenticated;
use crate::session::listen::Listening;
use crate::session::memo::PlanMemo;
use crate::session::pin::Pins;
use crate::session::pinned::Pinned;
use crate::session::span::Span;
use crate::session::state::SessionSettings;
use crate::session::writes::AllWrites;
use crate::shutdown::Drain;
use crate::sql::facts::SharedFacts;
use crate::wire::writer::TransactionStatus;

/// Bytes of a cancel key's secret in protocol 3.0.
const SECRET_BYTES_3_0: usize = 4;
/// Bytes of a cancel key's secret from protocol 3.2 on.
const SECRET_BYTES_3_2: usize = 32;

/// Bytes of a cancel key's secret in that minor version of protocol 3.
fn secret_len(minor: u16) -> usize {
    if minor >= 2 { SECRET_BYTES_3_2 } else { SECRET_BYTES_3_0 }
}

/// A statement that the client has prepared.
#[derive(Debug)]
struct Prepared {
    /// Who it is on servers; `None` for the unnamed statement.
    identity: Option<Arc<Identity>>,
    /// Tells one Parse from every other of any client.
    serial: u64,
    /// The Parse message as the client sent it.
    parse: Bytes,
    /// Its text.
    text: Bytes,
    /// Its parameter types, as declared.
    types: Vec<u32>,
    /// What servers have told of it.
    told: Arc<Signature>,
    /// What it does.
    facts: SharedFacts,
    /// `standard_conforming_strings` was on when it was read.
    conforming: bool,
    /// The session's settings when PostgreSQL would have read it last for this client; nobody's if they were not certain.
    under: SharedSettings,
    /// What of them parse analysis reads; `None` where it is not known.
    read_under: Option<SharedSettings>,
}

impl Prepared {
    /// The same statement, which is another one on servers now: nothing that they said of the first holds for it.
    fn renewed(&self, identity: Arc<Identity>) -> Self {
        Self { identity: Some(identity), ..self.again(self.serial, &self.under, self.read_under.clone()) }
    }

    /// The same message once more: its settings may be others, so nothing that a server said of the first holds for it.
    fn again(&self, serial: u64, under: &SharedSettings, read_under: Option<SharedSettings>) -> Self {
        Self {
            identity: None,
            serial,
            parse: self.parse.clone(),
            text: self.text.clone(),
            types: self.types.clone(),
            told: Arc::default(),
            facts: Arc::clone(&self.facts),
            conforming: self.conforming,
            under: Arc::clone(under),
            read_under,
        }
    }

    /// The same statement for a client that has changed its settings.
    fn read_again(&self, identity: Arc<Identity>, under: SharedSettings, read_under: SharedSettings) -> Self {
        let told = Arc::clone(&self.told);
        Self { identity: Some(identity), told, ..self.again(self.serial, &under, Some(read_under)) }
    }
}

/// A server connection that the session holds.
struct Attached {
    lease: Lease,
    target: Target,
}

/// How a session's stay on a thread ended.
pub enum Stay {
    /// The session is over. An error is what ended it early; the client has been told where it could be.
    Over(Result<(), Error>),
    /// It goes on on another thread: [`Session::move_here`], then [`Session::stay`].
    Moves(Box<Session>),
}

/// Why a session stopped serving its client.
enum Served {
    ClientLeft,
    Moves,
}

/// One client's session.
pub struct Session {
    db: Arc<Database>,
    user: Arc<User>,
    client: ClientSide,
    /// The primary's connections for this user.
    primary: Arc<Pool>,
    server: Option<Attached>,
    /// Bytes of a client message that are still to be passed on (or dropped) unread.
    passing: usize,
    /// What the client believes of its transaction.
    status: TransactionStatus,
    settings: SessionSettings,
    named: foldhash::HashMap<Bytes, Arc<Prepared>>,
    unnamed: Option<Arc<Prepared>>,
    /// What it was before, as far as a Parse that is not answered may turn out to be skipped.
    unnamed_before: Vec<Arc<Prepared>>,
    portals: foldhash::HashMap<Bytes, Arc<Prepared>>,
    /// Portals over several shards: no server has them whole.
    suspended: Option<Box<portals::Suspended>>,
    pins: Pins,
    /// More about them, if there are any.
    pinned: Option<Box<Pinned>>,
    /// What the client listens to by the shared listener, if it does.
    listening: Option<Box<Listening>>,
    mode: PoolMode,
    /// An error was given to the client in the extended protocol: everything up to its Sync is dropped.
    skipping: bool,
    /// The whole server session is thrown away when it is given back.
    must_discard: bool,
    /// Something was run that may have changed which code changes sessions unseen.
    changes_code: bool,
    /// `DISCARD ALL` or `DEALLOCATE ALL` is under way: its success empties these.
    forgets_statements: bool,
    forgets_pins: bool,
    /// Errors that the server answered with since the last ReadyForQuery.
    errors_in_turn: u32,
    /// What the server at hand has said and the session has not acted on yet.
    seen: Seen,
    /// What is known already of statements.
    memo: PlanMemo,
    /// Facts that were read just now, with their text, for whoever reads the same message next.
    read_ahead: Option<(Bytes, SharedFacts)>,
    /// Messages held back until their Sync.
    flight: Flight,
    /// Where the messages at hand go.
    flight_target: Option<Target>,
    /// Nothing since the last Flush or Sync has bound or executed anything.
    only_statements: bool,
    /// The client's Flush became a Sync on the server: an error there must still skip to the client's own Sync.
    hidden_sync: bool,
    /// The next Sync was sent while COPY data was awaited.
    ignores_sync: bool,
    /// A BEGIN that no server knows of yet, and the savepoints behind it; empty where there is none.
    lazy_begin: Vec<Bytes>,
    /// The transaction's other servers, and what one that joins is told, in a database with shards.
    span: Option<Box<Span>>,
    /// The transaction is REPEATABLE READ or SERIALIZABLE.
    isolated: bool,
    /// The transaction is READ ONLY.
    read_only: bool,
    /// The transaction has read on connections other than its own.
    has_read_aside: bool,
    /// The transaction may have written.
    written: bool,
    /// What it may have written.
    writes: Option<Box<AllWrites>>,
    /// Where the last write stands in the primary's WAL: `None` if there was none, `Some(None)` if nobody has asked yet.
    last_write: Option<Option<Arc<replica::Position>>>,
    /// The client speaks the extended protocol at the moment.
    in_extended: bool,
    /// The bytes being passed on unread go to the server: it has the message's beginning.
    passing_to_server: bool,
    /// The client has sent Terminate: what it asked for before runs to its end.
    has_said_goodbye: bool,
    /// When the present state (running, idle in transaction, idle) began.
    since: Instant,
    /// The running statement has been cancelled for taking too long.
    timed_out: bool,
    cancel: Registration,
    /// Its place among all clients.
    listed: ListedClient,
    /// pgherd ends: the client is sent away when it is idle.
    drain: Drain,
    /// How many sessions this thread wants to be rid of.
    surplus: Arc<Surplus>,
    /// Goes off when the present state has lasted too long.
    alarm: Alarm,
}

impl Session {
    /// A session for a client that has just proved who it is.
    pub fn new(db: Arc<Database>, authenticated: Authenticated, drain: &Drain) -> Box<Self> {
        let minor = authenticated.startup.minor;
        let cancel = db.shared.cancel_keys.register(secret_len(minor));
        let listed = db.shared.clients.enter(&authenticated.user, &db.config, &authenticated.stream);
        let mode = db.pool_mode(&authenticated.user);
        let seen = Seen { takes_notifications: mode == PoolMode::Session, tells_statements: true, ..Seen::default() };
        Box::new(Self {
            mode,
            primary: db.pool(&authenticated.user, Target::Primary),
            db,
            user: authenticated.user,
            client: ClientSide {
                stream: authenticated.stream,
                inbuf: authenticated.inbuf,
                outbuf: authenticated.outbuf,
            },
            server: None,
            passing: 0,
            status: TransactionStatus::Idle,
            settings: SessionSettings::default(),
            named: foldhash::HashMap::default(),
            unnamed: None,
            unnamed_before: Vec::new(),
            portals: foldhash::HashMap::default(),
            suspended: None,
            pins: Pins::default(),
            pinned: None,
            listening: None,
            skipping: false,
            must_discard: false,
            changes_code: false,
            forgets_statements: false,
            forgets_pins: false,
            errors_in_turn: 0,
            seen,
            memo: PlanMemo::default(),
            read_ahead: None,
            flight: Flight::default(),
            flight_target: None,
            only_statements: true,
            hidden_sync: false,
            ignores_sync: false,
            lazy_begin: Vec::new(),
            span: None,
            isolated: false,
            read_only: false,
            has_read_aside: false,
            written: false,
            writes: None,
            last_write: None,
            in_extended: false,
            passing_to_server: false,
            has_said_goodbye: false,
            since: Instant::now(),
            timed_out: false,
            cancel,
            drain: drain.clone(),
            surplus: Arc::default(),
            alarm: Alarm::default(),
            listed,
        })
    }

    /// Tells a client that it cannot be served, though it has proved who it is; returns the refusal.
    pub async fn turn_away(mut self: Box<Self>, refusal: Error) -> Error {
        self.say_goodbye(&refusal).await;
        refusal
    }

    /// Greets the client with its settings, its cancel key and ReadyForQuery.
    ///
    /// # Errors
    /// Why there is no session; the client has been told where it could be.
    pub async fn open(mut self: Box<Self>, startup: Vec<(String, String)>) -> Result<Box<Self>, Error> {
        let kill_switch = self.listed.kill_switch();
        let greeted = kill_switch.or(pin!(self.greet(startup))).await;
        match greeted {
            Ok(()) => {
                self.note_whereabouts();
                Ok(self)
            }
            Err(error) => {
                self.leave(Some(&error)).await;
                Err(error)
            }
        }
    }

    /// Serves the client on this thread until it leaves, or until the thread has a surplus of sessions and this one is free to go.
    pub async fn stay(mut self: Box<Self>, surplus: Arc<Surplus>) -> Stay {
        self.surplus = surplus;
        let kill_switch = self.listed.kill_switch();
        let served = kill_switch.or(pin!(self.serve())).await;
        let result = match served {
            Ok(Served::Moves) => return Stay::Moves(self),
            Ok(Served::ClientLeft) => Ok(()),
            Err(error) => Err(error),
        };
        Box::pin(self.leave(result.as_ref().err())).await;
        Stay::Over(result)
    }

    /// Brings the session to this thread, which [`Session::stay`] is then to be called on.
    ///
    /// # Errors
    /// The client's socket could not be brought along.
    pub fn move_here(&mut self) -> Result<(), Error> {
        self.alarm = Alarm::default();
        self.client.stream.move_here().map_err(Error::from)
    }

    async fn leave(&mut self, reason: Option<&Error>) {
        if let Some(error) = reason {
            self.say_goodbye(error).await;
        }
        if self.listed.is_killed() {
            self.cut_server_off().await;
        }
        self.give_up_others().await;
        self.give_up_server().await;
        let rest = self.listed.rest(self.client.stream.traffic());
        self.db.metrics.bytes_in.inc_by(rest.read);
        self.db.metrics.bytes_out.inc_by(rest.written);
    }

    /// Brings what others can see of this client up to date: between its transactions.
    fn note_whereabouts(&mut self) {
        let server = self.server.as_ref().map_or(0, |attached| attached.lease.number());
        self.listed.holds(server);
        self.listed.has(self.pins, self.named.len());
        if let Some(traffic) = self.listed.uncounted(self.client.stream.traffic()) {
            self.db.metrics.bytes_in.inc_by(traffic.read);
            self.db.metrics.bytes_out.inc_by(traffic.written);
        }
        if self.listed.has_new_settings(&self.settings.current) {
            self.listed.set_application_name(self.settings.current.get("application_name"));
        }
    }
}

impl Session {
    /// Where pgherd's own answers go: behind everything that is already the client's.
    fn out(&mut self) -> &mut BytesMut {
        if let Some(attached) = &mut self.server {
            attached.lease.server().spill(&mut self.client.outbuf);
        }
        spare::lend(&mut self.client.outbuf);
        &mut self.client.outbuf
    }

    /// This user's connections to a server.
    fn pool(&self, target: Target) -> Arc<Pool> {
        match target {
            Target::Primary => Arc::clone(&self.primary),
            other => self.db.pool(&self.user, other),
        }
    }

    /// What was known of the transaction is over with it.
    fn transaction_is_over(&mut self) {
        self.lazy_begin.clear();
        self.span = None;
        if self.written {
            self.last_write = Some(None);
        }
        (self.isolated, self.read_only, self.written) = (false, false, false);
        self.portals.clear();
        self.suspended = None;
        self.settings.transaction_ended();
    }

    /// Gives the client these bytes when everything asked before them is answered.
    fn answer_in_turn(&mut self, bytes: &'static [u8]) {
        match &mut self.server {
            Some(attached) => attached.lease.server().expects.push(Expect::Inject(Bytes::from_static(bytes))),
            None => self.client.outbuf.extend_from_slice(bytes),
        }
        self.inject();
    }

    /// Passes on what waits for nothing any more.
    fn inject(&mut self) {
        if let Some(attached) = &mut self.server {
            attached.lease.server().inject(&mut self.client.outbuf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<S, A, F: Future>(_: impl Fn(S, A) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn an_idle_client_takes_little_room() {
        let (session, stay) = (std::mem::size_of::<Session>(), size_of_future(Session::stay));
        assert!(session + stay <= 1450, "{session} and {stay} bytes");
    }
}
