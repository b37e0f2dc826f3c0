//! LISTEN in transaction mode: what the client listens to, what its transaction makes of that, and when it is told.
//!
//! LISTEN and UNLISTEN run on the client's server as they stand, so that their errors and answers are PostgreSQL's; what they mean
//! is kept here, undone and done with the transaction, and carried out by the database's shared listener. The server forgets it
//! before it goes back to its pool.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Session;
use super::context::Target;
use super::pin::Pin;
use crate::backend::listener::{Channel, End, Mail, Subscription, quoted};
use crate::config::model::{ListenMode, PoolMode};
use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::sql::facts::{Class, Effect, Facts, Statement, TransactionControl};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

/// Bytes of a name in PostgreSQL (NAMEDATALEN less one).
const NAME_BYTES: usize = 63;
/// Bytes that may wait for the client's socket when more notifications are put behind them.
const QUEUED_BYTES: usize = 64 * 1024;

/// One thing that a transaction has done about listening.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Listen(Channel),
    Unlisten(Channel),
    UnlistenAll,
    Savepoint(Box<str>),
    Release(Box<str>),
    RollbackTo(Box<str>),
}

/// How a statement ends its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Commit,
    Rollback,
}

/// A query string, or an execution, that concerns listening.
#[derive(Debug, Default, PartialEq, Eq)]
struct Doing {
    steps: Vec<Step>,
    ending: Option<Ending>,
}

/// What a client listens to.
pub(super) struct Listening {
    subscription: Subscription,
    /// By transactions that were committed, in order.
    channels: Vec<Channel>,
    /// What the transaction at hand has done so far.
    done: Vec<Step>,
    /// What is being done now.
    doing: Option<Doing>,
    /// The listener has been asked for more than `channels`.
    has_asked: bool,
    /// The server at hand listens, too.
    server_listens: bool,
    /// It listens to just `channels`.
    server_shows: bool,
}

impl Session {
    /// Whether LISTEN is followed here instead of tying the client to its server.
    fn shares_listener(&self) -> bool {
        self.mode == PoolMode::Transaction
            && self.db.config.pool.listen == ListenMode::Shared
            && !self.pins.has(Pin::Listen)
    }

    /// Notes what a statement that is about to be sent does about listening. Nothing of a client that has never listened
    /// is looked at but `asks`: whether there is a LISTEN or UNLISTEN in it.
    pub(super) async fn note_listening(&mut self, facts: &Facts, asks: bool) -> Result<(), Error> {
        let concerns = self.listening.as_ref().is_some_and(|it| !it.done.is_empty())
            && facts.statements.iter().any(|it| matches!(it.class, Class::Transaction(_)));
        if !asks && !concerns {
            return Ok(());
        }
        if !self.shares_listener() {
            let listens = facts.effects().any(|effect| matches!(effect, Effect::Listen(_)));
            return if listens { self.listen_on_own_server() } else { Ok(()) };
        }
        let listens = facts.effects().any(|effect| matches!(effect, Effect::Listen(_)));
        if self.listening.is_none() && !listens {
            // UNLISTEN of a client that listens to nothing.
            return Ok(());
        }
        if listens && !self.can_follow_names(facts) {
            return self.listen_on_own_server();
        }
        // What was sent before decides where the transaction stands.
        self.wait_for_answers().await?;
        let Some(doing) = doing(facts, self.status == TransactionStatus::Failed)? else { return Ok(()) };
        let db = Arc::clone(&self.db);
        let login = db.login(&self.user, Target::Primary);
        let listening = self.listening.get_or_insert_with(|| Box::new(Listening::new(db.listener().subscribe())));
        if doing.steps.len() + listening.done.len() + listening.channels.len() > limits::CHANNELS {
            let message = format!("more than {} channels", limits::CHANNELS);
            return Err(Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, message));
        }
        if doing.ending == Some(Ending::Commit) || self.status == TransactionStatus::Idle {
            let new = listening.new_channels(&doing.steps);
            if !new.is_empty() {
                listening.has_asked = true;
                listening.subscription.listen(login, new).await?;
            }
        }
        listening.server_listens |= listens;
        listening.server_shows = false;
        listening.doing = Some(doing);
        Ok(())
    }

    /// Whether the channels' names are known for certain: what is not ASCII depends on encodings.
    fn can_follow_names(&self, facts: &Facts) -> bool {
        facts.effects().all(|effect| match effect {
            Effect::Listen(name) | Effect::Unlisten(name) => {
                let own = self.setting("client_encoding");
                let at_login = self.reported_at_login("client_encoding");
                let is_utf8 = |encoding: Option<&str>| encoding == Some("UTF8");
                let same = is_utf8(own.as_deref())
                    && is_utf8(at_login.as_deref())
                    && is_utf8(self.reported_at_login("server_encoding").as_deref());
                !name.is_empty() && (name.is_ascii() || same)
            }
            _ => true,
        })
    }

    /// The client's own server listens for it from now on.
    fn listen_on_own_server(&mut self) -> Result<(), Error> {
        if self.listening.is_some() {
            return Err(Error::refused("a channel of that name cannot be listened to by this client")
                .detail("What the name is in the server's encoding is not known, and the client listens to others.")
                .hint("Set pool.listen = \"pin\", or use names of ASCII letters."));
        }
        self.pin(Pin::Listen);
        self.seen.takes_notifications = true;
        Ok(())
    }

    /// Whether the outcome of what is being sent must be known before anything else is.
    pub(super) fn awaits_listening(&self) -> bool {
        self.listening.as_ref().is_some_and(|it| it.doing.is_some() || !it.done.is_empty() || it.has_asked)
    }

    /// In a pipeline: what was just sent has worked, or everything up to the Sync is skipped.
    pub(super) async fn after_listening(&mut self) -> Result<(), Error> {
        if self.listening.as_ref().is_none_or(|it| it.doing.is_none()) {
            return Ok(());
        }
        self.wait_for_answers().await?;
        let failed = self.skipping || self.held_server().is_none_or(|server| server.expects.is_skipping());
        if let Some(listening) = &mut self.listening {
            listening.settle(!failed);
        }
        self.stop_listening_if_idle();
        Ok(())
    }

    /// ReadyForQuery has come.
    pub(super) fn listening_turn_is_over(&mut self, succeeded: bool) {
        let Some(listening) = &mut self.listening else { return };
        listening.settle(succeeded);
        if self.status == TransactionStatus::Idle {
            listening.end(if succeeded { Ending::Commit } else { Ending::Rollback });
            self.stop_listening_if_idle();
        }
    }

    /// What was about to be sent was not.
    pub(super) fn forget_doing(&mut self) {
        if let Some(listening) = &mut self.listening {
            listening.doing = None;
        }
    }

    /// `DISCARD ALL`.
    pub(super) fn stop_listening(&mut self) {
        if let Some(listening) = &mut self.listening {
            listening.done = vec![Step::UnlistenAll];
            listening.end(Ending::Commit);
            self.stop_listening_if_idle();
        }
    }

    /// A client that listens to nothing needs no place for it.
    fn stop_listening_if_idle(&mut self) {
        if self.listening.as_ref().is_some_and(|it| it.is_idle()) {
            self.listening = None;
        }
    }

    /// Whether the server at hand listens to something.
    pub(super) fn server_listens(&self) -> bool {
        self.listening.as_ref().is_some_and(|it| it.server_listens)
    }

    /// Has the server at hand forget what it listens to; it is at rest.
    pub(super) async fn unlisten_server(&mut self) -> Result<(), Error> {
        let Some(attached) = self.server.as_mut() else { return Ok(()) };
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        server.run("UNLISTEN *").await?;
        if let Some(listening) = &mut self.listening {
            (listening.server_listens, listening.server_shows) = (false, false);
        }
        self.stop_listening_if_idle();
        Ok(())
    }

    /// `pg_listening_channels()` is about to be asked for: the server at hand listens to what the client does.
    pub(super) async fn show_channels(&mut self, facts: &Facts, target: Target) -> Result<(), Error> {
        if !facts.effects().any(|effect| *effect == Effect::ListeningShown) {
            return Ok(());
        }
        let Some(listening) = self.listening.as_ref().filter(|it| !it.channels.is_empty() && !it.server_shows) else {
            return Ok(());
        };
        let channels: Vec<String> = listening.channels.iter().map(|it| format!("LISTEN {}", quoted(it))).collect();
        let in_pipeline = self.held_server().is_some_and(|server| server.expects.is_unsynced());
        if !in_pipeline {
            self.wait_for_answers().await?;
        }
        if in_pipeline || self.status != TransactionStatus::Idle || facts.statements.len() > 1 {
            return Err(Error::refused(
                "pg_listening_channels() cannot be answered in a transaction of a client that listens",
            )
            .hint("Ask for it outside a transaction."));
        }
        self.attach(target).await?;
        let Some(attached) = self.server.as_mut() else { return Ok(()) };
        let server = attached.lease.server();
        server.spill(&mut self.client.outbuf);
        server.run(&format!("UNLISTEN *; {}", channels.join("; "))).await?;
        if let Some(listening) = &mut self.listening {
            (listening.server_listens, listening.server_shows) = (true, true);
        }
        Ok(())
    }

    /// Puts what has been notified behind what is the client's already, where it may hear of it: between its transactions.
    /// Pending as long as there is nothing: the session is woken by what comes.
    ///
    /// # Errors
    /// The client cannot be told any more; it must know.
    pub(super) fn poll_notifications(&mut self, cx: &mut Context<'_>, is_quiet: bool) -> Poll<Error> {
        let Some(listening) = &self.listening else { return Poll::Pending };
        let may_tell = is_quiet && !self.skipping && self.flight.is_empty() && self.client.outbuf.len() < QUEUED_BYTES;
        match listening.subscription.mailbox().poll_take(cx, may_tell) {
            Poll::Ready(Ok(mail)) => match self.tell(mail) {
                // Once more: what has come meanwhile has woken nobody.
                Ok(()) => self.poll_notifications(cx, is_quiet),
                Err(error) => Poll::Ready(error),
            },
            Poll::Ready(Err(end)) => Poll::Ready(ended(end)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether something waits that there is room for now: nothing else may wake the session for it.
    pub(super) fn has_more_to_tell(&self, is_quiet: bool) -> bool {
        let has_mail = self.listening.as_ref().is_some_and(|it| it.subscription.mailbox().has_mail());
        has_mail && is_quiet && !self.skipping && self.flight.is_empty() && self.client.outbuf.len() < QUEUED_BYTES
    }

    fn tell(&mut self, mail: VecDeque<Mail>) -> Result<(), Error> {
        let Some(listening) = &self.listening else { return Ok(()) };
        if let Some(attached) = &mut self.server {
            attached.lease.server().spill(&mut self.client.outbuf);
        }
        let encoding = listening.subscription.encoding();
        let own = self.setting("client_encoding");
        let is_same = encoding.as_deref() == own.as_deref();
        for mail in mail {
            match mail {
                Mail::Notification(channel, _) if !listening.channels.contains(&channel) => {}
                Mail::Notification(_, frame) if !is_same && !is_ascii(&frame) => {
                    return Err(cannot_convert(encoding.as_deref(), own.as_deref()));
                }
                Mail::Notification(_, frame) => self.client.outbuf.extend_from_slice(&frame),
                Mail::MayHaveLost => {
                    let message = "notifications may have been lost";
                    let detail = "The server connection that listens for this client was lost and has been made again.";
                    writer::warning(&mut self.client.outbuf, "01000", message, detail);
                }
            }
        }
        Ok(())
    }
}

impl Listening {
    fn new(subscription: Subscription) -> Self {
        Self {
            subscription,
            channels: Vec::new(),
            done: Vec::new(),
            doing: None,
            has_asked: false,
            server_listens: false,
            server_shows: false,
        }
    }

    fn is_idle(&self) -> bool {
        self.channels.is_empty() && self.done.is_empty() && self.doing.is_none() && !self.server_listens
    }

    /// What a commit of the transaction, with these steps behind it, would listen to that is not listened to yet.
    fn new_channels(&self, steps: &[Step]) -> Vec<Channel> {
        let mut new: Vec<Channel> = Vec::new();
        for step in self.done.iter().chain(steps) {
            if let Step::Listen(channel) = step
                && !self.channels.contains(channel)
                && !new.contains(channel)
            {
                new.push(Arc::clone(channel));
            }
        }
        new
    }

    /// What was being done has worked, or has not.
    fn settle(&mut self, succeeded: bool) {
        let Some(doing) = self.doing.take().filter(|_| succeeded) else { return };
        doing.steps.into_iter().for_each(|step| take_step(&mut self.done, step));
        if let Some(ending) = doing.ending {
            self.end(ending);
        }
    }

    /// The transaction has ended.
    fn end(&mut self, ending: Ending) {
        let done = std::mem::take(&mut self.done);
        if done.is_empty() && !self.has_asked {
            return;
        }
        if ending == Ending::Commit {
            done.iter().for_each(|step| carry_out(&mut self.channels, step));
        }
        self.has_asked = false;
        self.subscription.keep_only(&self.channels);
    }
}

/// Adds a step to those of a transaction. A savepoint before the first of them need not be known: going back to one that is not
/// there undoes all.
fn take_step(done: &mut Vec<Step>, step: Step) {
    let place_of = |done: &[Step], name: &str| {
        done.iter().rposition(|it| matches!(it, Step::Savepoint(known) if **known == *name))
    };
    match step {
        Step::Savepoint(_) if done.is_empty() => {}
        Step::Release(name) => {
            if let Some(at) = place_of(done, &name) {
                let kept = done.split_off(at);
                done.extend(kept.into_iter().filter(|it| !matches!(it, Step::Savepoint(_))));
            }
        }
        Step::RollbackTo(name) => done.truncate(place_of(done, &name).map_or(0, |at| at + 1)),
        step => done.push(step),
    }
}

/// What a committed step makes of the channels.
fn carry_out(channels: &mut Vec<Channel>, step: &Step) {
    match step {
        Step::Listen(channel) if !channels.contains(channel) => channels.push(Arc::clone(channel)),
        Step::Unlisten(channel) => channels.retain(|known| known != channel),
        Step::UnlistenAll => channels.clear(),
        _ => {}
    }
}

/// What a string does about listening; nothing if it only fails.
fn doing(facts: &Facts, in_failed_transaction: bool) -> Result<Option<Doing>, Error> {
    let mut doing = Doing::default();
    let last = facts.statements.len().saturating_sub(1);
    for (at, statement) in facts.statements.iter().enumerate() {
        let Some(control) = control(statement) else {
            if !in_failed_transaction {
                doing.steps.extend(statement.effects.iter().filter_map(step));
            }
            continue;
        };
        let is_alone = last == 0;
        match control {
            Control::Nothing => {}
            Control::Ends(ending) if at == last => {
                doing.ending = Some(if in_failed_transaction { Ending::Rollback } else { ending });
            }
            Control::Moves(step @ Step::RollbackTo(_)) if is_alone => doing.steps.push(step),
            Control::Moves(_) if is_alone && in_failed_transaction => {}
            Control::Moves(step) if is_alone => doing.steps.push(step),
            _ => return Err(cannot_follow()),
        }
    }
    if in_failed_transaction && last > 0 {
        // Its first statement is refused, and nothing behind it is run.
        return Ok(None);
    }
    Ok((doing != Doing::default()).then_some(doing))
}

/// What a statement does to its transaction.
enum Control {
    Nothing,
    Ends(Ending),
    Moves(Step),
}

fn control(statement: &Statement) -> Option<Control> {
    use TransactionControl::{Commit, CommitAndChain, Release, Rollback, RollbackAndChain, RollbackTo, Savepoint};
    let Class::Transaction(control) = statement.class else { return None };
    let named = |step: fn(Box<str>) -> Step| Control::Moves(step(statement.savepoint.clone().unwrap_or_default()));
    Some(match control {
        Commit | CommitAndChain => Control::Ends(Ending::Commit),
        Rollback | RollbackAndChain => Control::Ends(Ending::Rollback),
        Savepoint => named(Step::Savepoint),
        Release => named(Step::Release),
        RollbackTo => named(Step::RollbackTo),
        _ => Control::Nothing,
    })
}

fn step(effect: &Effect) -> Option<Step> {
    match effect {
        Effect::Listen(name) => Some(Step::Listen(truncated(name).into())),
        Effect::Unlisten(name) => Some(Step::Unlisten(truncated(name).into())),
        Effect::UnlistenAll => Some(Step::UnlistenAll),
        _ => None,
    }
}

/// A name as long as PostgreSQL keeps it, cut between two characters.
pub(super) fn truncated(name: &str) -> &str {
    let end = (0..=NAME_BYTES.min(name.len())).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    &name[..end]
}

/// Whether nothing in a NotificationResponse depends on the encoding: behind its header and the process id.
fn is_ascii(frame: &[u8]) -> bool {
    frame.get(9..).is_none_or(<[u8]>::is_ascii)
}

fn cannot_follow() -> Error {
    Error::refused("LISTEN cannot be followed through savepoints or a COMMIT in the middle of one query string")
        .hint("Send the statements one by one, or set pool.listen = \"pin\".")
}

fn cannot_convert(from: Option<&str>, to: Option<&str>) -> Error {
    let message = format!(
        "a notification in encoding {} cannot be given to a client of encoding {}",
        from.unwrap_or("unknown"),
        to.unwrap_or("unknown")
    );
    Error::refused(message).hint("Use the server's encoding as client_encoding, or set pool.listen = \"pin\".").fatal()
}

/// Why a client that listens is sent away.
fn ended(end: End) -> Error {
    match end {
        End::Lost => Error::new(
            ErrorKind::Backend,
            SqlState::ADMIN_SHUTDOWN,
            "terminating connection: notifications may have been lost",
        )
        .detail("The server connection that listens for this client was lost.")
        .hint("Connect again, LISTEN, and look at what the notifications were about."),
        End::TooSlow => Error::new(
            ErrorKind::Limit,
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "terminating connection due to pool.notification_queue",
        )
        .detail("More notifications wait for this client than its queue holds.")
        .hint("Read notifications sooner, or raise pool.notification_queue."),
    }
    .fatal()
}

#[cfg(test)]
#[path = "listen_tests.rs"]
mod tests;
