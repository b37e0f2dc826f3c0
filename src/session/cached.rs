//! A session and the result cache: what its questions are known by, serving what is there, keeping what is not, checking some of it.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::Session;
use super::answer::Carried;
use super::context::Target;
use super::planned::{Execution, Way};
use crate::backend::settings::Settings;
use crate::backend::signature::{Signature, Whence};
use crate::cache::{Audit, Entry, Failure, FillTicket, Key, Lookup, Protocol};
use crate::error::{Error, ErrorKind};
use crate::exec::readonly::{self, Captured, Read};
use crate::limits;
use crate::plan::distribute::Streamed;
use crate::plan::{CachedRead, Plan};
use crate::wire::frame::HEADER_LEN;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// How long a check of a hit waits for a server connection.
const CHECK_PATIENCE: Duration = Duration::from_millis(50);

impl Session {
    /// Looks an answer up. Where it is not there it is filled, unless the session holds a server or asks for part of it.
    pub(super) async fn way_of_cached(
        &mut self,
        execution: &Execution<'_>,
        read: Arc<CachedRead>,
    ) -> Result<Way, Error> {
        let Some(cache) = self.db.cache.clone() else { return self.way_of_primary(execution) };
        // Before Bind there is nothing to look up.
        let unbound = execution.bind.is_none() && self.in_extended;
        if unbound || execution.max_rows > 0 || self.is_mid_flight() {
            return self.way_of_primary(execution);
        }
        let shared = self.shared_identity(&read, execution.types).await;
        let is_shared = shared.is_some();
        if is_shared {
            cache.count_shared_lookup();
        }
        let Some(key) = self.cache_key(execution, shared) else { return self.way_of_primary(execution) };
        let found = self.cancellable(cache.lookup(&key, &read.relations, read.catalog_version)).await?;
        match found {
            Lookup::Hit { entry, is_sampled, .. } => {
                let audit =
                    if is_sampled { cache.audit(&key, &entry, &read.relations, read.catalog_version) } else { None };
                self.note_answer(execution, &key, &read);
                Ok(Way::Hit(entry, audit))
            }
            Lookup::Fill(ticket) if self.server.is_none() => {
                Ok(Way::Fill(ticket.pinned(read.is_pinned).shared_by_roles(is_shared), read))
            }
            Lookup::Failed(failure) => Ok(Way::Failed(failure)),
            Lookup::Fill(_) | Lookup::Bypass(_) => self.way_of_primary(execution),
        }
    }

    /// Whether something that was sent without waiting for what is before it is looked up once that is answered: an answer of pgherd's
    /// own would come too early, and a server would have to run what the cache may know.
    pub(super) async fn waits_to_look_up(&mut self, execution: &Execution<'_>, read: &CachedRead) -> bool {
        let Some(cache) = self.db.cache.clone() else { return false };
        let is_behind = self
            .held_server()
            .is_some_and(|server| !server.expects.is_unsynced() && !server.expects.is_empty() && !server.copying_in);
        let is_whole = execution.max_rows == 0 && (execution.bind.is_some() || !self.in_extended);
        if !is_behind || !is_whole {
            return false;
        }
        let shared = self.shared_identity(read, execution.types).await;
        self.cache_key(execution, shared).is_some_and(|key| cache.is_worth_asking(&key))
    }

    /// Whoever waits for another session's fill may be cancelled. What is there at once costs nothing more.
    async fn cancellable(&self, lookup: impl Future<Output = Lookup>) -> Result<Lookup, Error> {
        let mut lookup = std::pin::pin!(lookup);
        let at_once = std::future::poll_fn(|cx| {
            Poll::Ready(match lookup.as_mut().poll(cx) {
                Poll::Ready(found) => Some(found),
                Poll::Pending => None,
            })
        });
        if let Some(found) = at_once.await {
            return Ok(found);
        }
        let work = CancellationToken::new();
        self.cancel.slot.aim_at_work(work.clone());
        let found = work.run_until_cancelled(lookup).await;
        self.cancel.slot.work_is_over();
        found.ok_or_else(|| {
            let message = "canceling statement due to user request";
            Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, message)
        })
    }

    /// Everything that can change the answer. Where roles share it, `shared` stands for what of a role does.
    fn cache_key(&self, execution: &Execution<'_>, shared: Option<String>) -> Option<Key> {
        let cache = self.db.cache.as_ref()?;
        let baseline = self.primary.baseline()?;
        let current: &Settings = self.settings.now();
        let login = self.db.login_role(&self.user);
        let authorization = current.get("session_authorization").unwrap_or(login);
        let settings = settings_of(&baseline.settings, current);
        let settings =
            settings.filter(|(name, _)| shared.is_none() || !matches!(*name, "role" | "session_authorization"));
        let protocol = if execution.bind.is_some() { Protocol::ExtendedDescribed } else { Protocol::Simple };
        let role = self.effective_role();
        // No role has an empty name.
        let (role, authorization, at_another_login) = match &shared {
            Some(shared) => ("", shared.as_str(), None),
            None => (role.as_str(), authorization, (authorization != login).then_some(("", login))),
        };
        let key = cache
            .key(protocol)
            .identity(&self.db.config.name, role, authorization)
            .statement(execution.text)
            .fingerprint(execution.facts.fingerprint.0)
            // What ALTER ROLE gives to the login role's sessions stays theirs under another authorization.
            .settings(settings.chain(at_another_login));
        Some(match execution.bind {
            None => key.build(),
            Some((_, bind)) => key
                .parameter_types(execution.types, &bind.formats)
                .parameters(bind.values.iter().copied())
                .result_formats(&bind.result_formats)
                .build(),
        })
    }

    /// As [`Session::cache_key`], of what that shard is sent for a part of the answer.
    pub(super) fn key_of_part(&self, execution: &Execution<'_>, streamed: &Streamed, shard: usize) -> Option<Key> {
        let cache = &self.db.shard_caches.get(shard)?.cache;
        let baseline = self.pool(Target::Shard(shard)).baseline()?;
        let current: &Settings = &self.settings.current;
        let login = self.login_role_of_shard(shard);
        let authorization = current.get("session_authorization").unwrap_or(login);
        let key = cache
            .key(Protocol::Leg)
            .identity(&self.db.config.name, &self.role_on_shard(shard), authorization)
            .statement(streamed.sql.as_bytes())
            .fingerprint(execution.facts.fingerprint.0)
            .settings(settings_of(&baseline.settings, current).chain([("", login)]));
        let (formats, values, result_formats) = match execution.bind {
            Some((_, bind)) => (bind.formats.as_slice(), bind.values.as_slice(), bind.result_formats.as_slice()),
            None => (&[][..], &[][..], &[][..]),
        };
        // The columns at the end that the client does not see travel in a form of their own.
        let hidden = i16::try_from(streamed.hidden).ok()?;
        let result_formats: Vec<i16> = result_formats.iter().copied().chain([-1, hidden]).collect();
        let key = key.parameter_types(execution.types, formats).parameters(values.iter().copied());
        Some(key.result_formats(&result_formats).build())
    }

    fn login_role_of_shard(&self, shard: usize) -> &str {
        self.db.address(Target::Shard(shard)).user.as_deref().unwrap_or(&self.user.name)
    }

    /// `current_user` on a shard.
    pub(super) fn role_on_shard(&self, shard: usize) -> String {
        let set = |name| self.settings.now().get(name).filter(|role| *role != "none");
        let role = set("role").or_else(|| set("session_authorization"));
        role.unwrap_or_else(|| self.login_role_of_shard(shard)).to_owned()
    }

    /// Counts a read that is not cached where there is a cache.
    pub(super) fn count_cache_refusal(&self, plan: &Plan) {
        if self.db.cache.is_none() {
            return;
        }
        if let Plan::Primary(reason) | Plan::Replica(reason) = plan {
            self.db.shared.metrics.cache_refusal(reason.code);
            tracing::debug!(database = self.db.config.name, reason = reason.code, why = %reason.text, "not cached");
        }
    }

    /// Gives the client an answer from the cache.
    pub(super) async fn serve_entry(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        entry: &Entry,
    ) -> Result<(), Error> {
        if let Some(told) = self.told_before(execution) {
            note_or_check(&told, entry.row_description(), described)?;
        }
        self.give_entry(entry, described).await
    }

    /// Gives the client an answer that was kept, which is of the rows that it knows.
    pub(super) async fn give_entry(&mut self, entry: &Entry, described: bool) -> Result<(), Error> {
        let bytes = if described { entry.bytes.clone() } else { entry.rows_and_tag() };
        self.serve_bytes(&bytes).await
    }

    /// A small answer joins what is queued for the client. A large one is written from where it lies, as fast as the client takes it.
    async fn serve_bytes(&mut self, bytes: &Bytes) -> Result<(), Error> {
        let out = self.out();
        if bytes.len() <= limits::READ_CHUNK_BYTES {
            out.extend_from_slice(bytes);
            return Ok(());
        }
        readonly::send(&mut self.client, bytes).await
    }

    /// Stores a captured answer, if it is one that can be, then gives it to the client: nobody who waits for it waits for the
    /// client too.
    pub(super) async fn keep(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        (ticket, read): (FillTicket, &CachedRead),
        captured: Captured,
        (began, cost): (Instant, Duration),
    ) -> Result<(), Error> {
        let Captured { bytes, row_description_len, rows } = captured;
        let bytes = bytes.whole().await.ok_or_else(|| Error::internal("an answer was not put together").fatal())?;
        let entry = Entry::new(bytes.clone(), row_description_len, rows, cost, read.ttl).as_of(began);
        if entry.remaining().is_zero() {
            // Those who wait would fill one after the other, each in vain.
            ticket.uncacheable("it takes longer than its answer may be kept");
        } else {
            ticket.store(entry).await;
        }
        if let Some(told) = self.told_before(execution) {
            note_or_check(&told, &bytes[..row_description_len], described)?;
        }
        let unasked = if described { 0 } else { row_description_len };
        self.serve_bytes(&bytes.slice(unasked..)).await
    }

    /// The server that was to fill could not be used. All who wait are told, unless it was this client that went; an answer that is
    /// old is given where the configuration asks for it.
    pub(super) async fn give_up_fill(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        ticket: FillTicket,
        error: Error,
    ) -> Result<Carried, Error> {
        if matches!(error.kind(), ErrorKind::Backend | ErrorKind::Pool)
            && let Some(old) = ticket.stale()
        {
            drop(ticket);
            self.out().extend_from_slice(execution.unanswered);
            self.serve_entry(execution, described, &old).await?;
            return Ok(Carried::Answered);
        }
        // Whoever has it cancelled does so for itself alone.
        if !matches!(error.kind(), ErrorKind::Io | ErrorKind::Cancelled) && !error.is_fatal() {
            let mut message = BytesMut::new();
            writer::error_response(&mut message, &error);
            ticket.fail(Failure { message: message.freeze(), parsed: false, bound: false });
        }
        Err(error)
    }

    /// Gives the client the error of the fill that it waited for, as if it had been its own.
    pub(super) fn share_failure(&mut self, execution: &Execution<'_>, failure: &Failure) -> Carried {
        let mut unanswered = execution.unanswered;
        for came_to in [failure.parsed.then_some(b'1'), failure.bound.then_some(b'2')].into_iter().flatten() {
            if unanswered.first() == Some(&came_to)
                && let Some((told, rest)) = unanswered.split_at_checked(5)
            {
                self.out().extend_from_slice(told);
                unanswered = rest;
            }
        }
        self.out().extend_from_slice(&failure.message);
        if unanswered.starts_with(b"1")
            && let Some((_, bind)) = execution.bind
        {
            self.forget_statement(bind.statement);
        }
        self.failed_read(execution)
    }

    /// Runs what was just answered from the cache once more, in the background, and has the answers compared.
    pub(super) async fn check_hit(&mut self, execution: &Execution<'_>, audit: Audit) -> Result<(), Error> {
        self.client.flush().await?;
        let Ok(settings) = self.settings_beside().await else { return Ok(()) };
        let leased = tokio::time::timeout(CHECK_PATIENCE, self.lease_with(Target::Primary, &settings)).await;
        let undo = self.trusts_user_code(execution.facts);
        self.note_whereabouts();
        // Where there is no connection to spare, this hit goes unchecked.
        let Ok(Ok(mut lease)) = leased else { return Ok(()) };
        let text = Bytes::copy_from_slice(execution.text);
        let types = execution.types.to_vec();
        let bind = execution.bind.map(|(bind, _)| bind.clone());
        let (limit, patience) = (self.db.cache_config.max_entry_bytes, self.db.config.olap_timeout);
        self.db.shared.tasks.spawn(async move {
            let protocol = match &bind {
                None => readonly::Protocol::Simple,
                Some(bind) => readonly::Protocol::Extended {
                    types: &types,
                    bind: bind.body(),
                    described: true,
                    told: None,
                    unanswered: b"",
                },
            };
            let read = Read { text: &text, protocol, undo };
            let answer = tokio::time::timeout(patience, readonly::again(lease.server(), read, limit)).await;
            match answer {
                Ok(Ok(answer)) => {
                    lease.release();
                    if let Some(answer) = answer
                        && let Some(bytes) = answer.bytes.whole().await
                    {
                        audit.judge(&bytes).await;
                    }
                }
                _ => {
                    lease.server().mark_broken();
                    lease.release();
                }
            }
        });
        Ok(())
    }
}

/// Every setting that can change an answer: as at login on that server, or as set since.
fn settings_of<'s>(
    at_login: &'s [(String, String)],
    current: &'s Settings,
) -> impl Iterator<Item = (&'s str, &'s str)> {
    let is_besides = |name: &str| {
        at_login.binary_search_by(|(known, _)| known.as_str().cmp(name)).is_err() && name != "application_name"
    };
    let at_login = at_login.iter().map(|(name, value)| (name.as_str(), current.get(name).unwrap_or(value.as_str())));
    at_login.chain(current.iter().filter(move |(name, _)| is_besides(name)))
}

/// Notes what a client is told of an answer's rows, or sees to it that they are those that it was told of before.
pub(super) fn note_or_check(told: &Signature, description: &[u8], described: bool) -> Result<(), Error> {
    match description.split_at_checked(HEADER_LEN) {
        Some((_, body)) if description.starts_with(b"T") && described => told.note_rows(body),
        Some((_, body)) if description.starts_with(b"T") => told.check_rows(body, 0, Whence::Here)?,
        _ => {}
    }
    Ok(())
}
