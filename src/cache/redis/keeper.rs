//! What goes on in the background: staying registered, telling Redis of settled writes, and removing members that died.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::types::Value;

use super::connection::{Connection, Failure, Reply};
use super::registry::{Registration, Settled};
use super::script::Script;
use super::writes::{backend_name, backend_named};
use super::{PATIENCE, Shared, millis, number, text};
use crate::cache::doubt::{BackendChecker, BackendId};
use crate::cache::epochs::{CatalogEpoch, LocalEpochs, fresh_catalog_epoch};

/// Between attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The least time between two heartbeats that are sent because there are news.
const NEWS: Duration = Duration::from_millis(5);
/// Settled writes told to Redis in one round trip.
const BATCH: usize = 256;
/// How long PostgreSQL may take to say whether a server process is gone.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

impl Shared {
    /// Runs until dropped.
    pub(crate) async fn keep(&self, local: &LocalEpochs, checker: &dyn BackendChecker) {
        tokio::join!(self.keep_registered(local, checker), self.keep_settling(), self.keep_removing(local, checker));
    }

    /// Says goodbye, if nothing is open: the others need not wait for the lease.
    pub(crate) async fn leave(&self) {
        let Some(connection) = self.connection.load_full() else { return };
        if self.registry.lock().is_idle() {
            let _ = connection.call(Script::Leave, self.identity(&connection), PATIENCE).await;
        }
        self.disconnect(Some(&connection));
    }

    async fn keep_registered(&self, local: &LocalEpochs, checker: &dyn BackendChecker) {
        let mut scopes = self.scope.subscribe();
        let mut pause = RETRY.0;
        let longest = RETRY.1.min(self.settings.lease / 4);
        loop {
            let Some(scope) = scopes.borrow_and_update().clone() else {
                // The sender lives in `self`.
                let _ = scopes.changed().await;
                continue;
            };
            if !self.is_in_sight() {
                // Who registered under the name of a server that is gone would take the place of those who know the new one.
                tokio::time::sleep(RETRY.0).await;
                continue;
            }
            match self.establish(&scope, local).await {
                Ok((connection, young_for)) => {
                    pause = RETRY.0;
                    let served = async {
                        self.wait_for_orphans(&connection, young_for, checker).await;
                        std::future::pending::<()>().await;
                    };
                    tokio::select! {
                        () = self.hold(&connection, local) => {}
                        () = served => {}
                    }
                }
                Err(failure) => {
                    self.count(&failure);
                    tracing::warn!(%failure, "cannot register with Redis");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
            }
        }
    }

    /// Connects and registers with all that is open. Says how long the generation is young.
    async fn establish(&self, scope: &str, local: &LocalEpochs) -> Result<(Arc<Connection>, Duration), Failure> {
        let space = format!("{}:{scope}", self.space);
        let mut connection = Connection::open(&self.fred, &space, self.settings.replicas, self.faults).await?;
        #[cfg(test)]
        if self.is_cut_off() {
            return Err(Failure::Broken("cut off".into()));
        }
        connection.take_over(&self.space, scope).await?;
        let mut registration = self.registry.lock().register();
        if self.faults.register_without_doubts() {
            registration.tokens.clear();
        }
        let args = self.register_args(&connection, &registration);
        let reply = connection.call_surely(Script::Register, args, PATIENCE.max(self.settings.timeout)).await?;
        if reply.word() != "ok" {
            return Err(Failure::Broken(format!("registering was answered with {}", reply.word())));
        }
        connection.generation = reply.text(1).to_owned();
        connection.fence = registration.fence;
        let young_for = Duration::from_millis(reply.number(3).unwrap_or(0));
        if self.settings.replicas > 0 {
            connection.settles_at = Some(Instant::now() + young_for);
        }
        let connection = Arc::new(connection);
        {
            let mut registry = self.registry.lock();
            if self.scope.borrow().as_deref() != Some(scope) {
                return Err(Failure::Broken("the server has changed meanwhile".into()));
            }
            let catalog = reply.number(2).map(CatalogEpoch);
            registry.registered(&registration, reply.number(4).unwrap_or(0), catalog, oids(&reply, 5));
            self.connection.store(Some(connection.clone()));
            self.changes.send_modify(|count| *count += 1);
            self.told.notify_waiters();
        }
        self.follow_catalog(local, reply.number(2));
        self.failures.store(0, std::sync::atomic::Ordering::Relaxed);
        self.work.notify_one();
        self.stats.add(|stats| &stats.registrations);
        tracing::info!(member = self.member, generation = connection.generation, "registered with Redis");
        Ok((connection, young_for))
    }

    fn register_args(&self, connection: &Connection, registration: &Registration) -> Vec<Value> {
        let flag = |on: bool| text(if on { "1" } else { "0" });
        let mut args = vec![
            text(&self.member),
            number(registration.fence),
            number(self.expiry(connection, registration.sent_at)),
            number(millis(self.settings.lease)),
            text(&format!("{:032x}", rand::random::<u128>())),
            number(fresh_catalog_epoch()),
            flag(registration.renew_database),
            flag(registration.change_catalog),
            number(registration.tokens.len() as u64),
        ];
        args.extend(registration.tokens.iter().map(|token| text(&self.token(*token))));
        args.extend(registration.backends.iter().map(|backend| text(&backend_name(*backend))));
        args
    }

    /// Renews the registration until the connection is given up.
    async fn hold(&self, connection: &Arc<Connection>, local: &LocalEpochs) {
        let mut changes = self.changes.subscribe();
        let mut told_at = Instant::now();
        while self.is_mine(connection) {
            let acts_upon = self.registry.lock().acts_upon();
            tokio::select! {
                _ = changes.changed() => continue,
                () = connection.news(acts_upon) => {
                    // Many at once are one.
                    tokio::time::sleep(NEWS.saturating_sub(told_at.elapsed())).await;
                    told_at = Instant::now();
                }
                () = tokio::time::sleep(self.settings.lease / 3) => {}
            }
            #[cfg(test)]
            if self.is_deaf() {
                tokio::time::sleep(RETRY.0 / 10).await;
                continue;
            }
            let sent_at = {
                let mut registry = self.registry.lock();
                if !self.is_mine(connection) {
                    return;
                }
                registry.heartbeat()
            };
            if let Err(failure) = self.heartbeat(connection, sent_at, local).await {
                self.count(&failure);
                tracing::warn!(%failure, "the registration with Redis could not be renewed");
                let registry = self.registry.lock();
                self.disconnect(Some(connection));
                drop(registry);
            }
        }
    }

    async fn heartbeat(&self, connection: &Connection, sent_at: Instant, local: &LocalEpochs) -> Result<(), Failure> {
        let mut args = self.identity(connection);
        args.push(number(self.expiry(connection, sent_at)));
        args.push(number(self.registry.lock().acts_upon()));
        let reply = self
            .expect_ok(connection.call_surely(Script::Heartbeat, args, PATIENCE.max(self.settings.lease / 6)).await?)?;
        connection.counts_replicas().await?;
        if let Some(now) = reply.number(2) {
            connection.clock_is(now);
        }
        self.follow_catalog(local, reply.number(1));
        self.failures.store(0, std::sync::atomic::Ordering::Relaxed);
        let lapses = usize::try_from(reply.number(4).unwrap_or(0)).unwrap_or(0);
        let lapsed: Vec<String> = reply.texts_from(5).take(lapses).map(str::to_owned).collect();
        if !lapsed.is_empty() {
            *self.suspects.lock() = lapsed;
            self.suspected.notify_one();
        }
        self.act(connection, sent_at, &reply, 5 + lapses).await
    }

    /// Acts upon what a heartbeat has brought; what is looked at now stands from there on.
    async fn act(&self, connection: &Connection, sent_at: Instant, reply: &Reply, from: usize) -> Result<(), Failure> {
        let acting = {
            let mut registry = self.registry.lock();
            let counter = reply.number(3).unwrap_or(0);
            let news = (counter != registry.acts_upon()).then(|| oids(reply, from));
            registry.heard(sent_at, counter, reply.number(1).map(CatalogEpoch), news)
        };
        let Some(mut acting) = acting else { return Ok(()) };
        if self.faults.act_without_past_writes() {
            acting.written.clear();
        }
        let mut args = self.identity(connection);
        args.push(number(acting.number));
        args.push(number(acting.written.len() as u64));
        args.extend(acting.written.iter().map(|oid| number(u64::from(*oid))));
        let open = if self.faults.act_without_open_writes() { &[][..] } else { &acting.open };
        for (token, relations) in open {
            args.push(text(&self.token(*token)));
            args.push(number(relations.len() as u64));
            args.extend(relations.iter().map(|oid| number(u64::from(*oid))));
        }
        self.expect_ok(connection.call_surely(Script::Act, args, PATIENCE.max(self.settings.lease / 6)).await?)?;
        self.registry.lock().acted(&acting);
        self.work.notify_one();
        Ok(())
    }

    async fn keep_settling(&self) {
        loop {
            self.work.notified().await;
            while let Some(connection) = self.connection.load_full() {
                let batch = self.registry.lock().take_settled(BATCH);
                let outcome = match batch.is_empty() {
                    true => self.tell_backends(&connection).await,
                    false => self.tell_settled(&connection, &batch).await,
                };
                match outcome {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(failure) => {
                        // What was in the batch is settled by the next registration, which does not carry it; if there has been one already,
                        // that may have carried it.
                        self.count(&failure);
                        tracing::warn!(%failure, "settled writes could not be told to Redis");
                        let mut registry = self.registry.lock();
                        if !self.is_mine(&connection) {
                            registry.settle_again(&batch);
                        }
                        self.disconnect(Some(&connection));
                        drop(registry);
                    }
                }
            }
        }
    }

    async fn tell_settled(&self, connection: &Connection, batch: &[Settled]) -> Result<bool, Failure> {
        let mut args = Vec::new();
        for settled in batch {
            args.push(text(&self.token(settled.token)));
            args.push(settled.catalog.map_or_else(|| text(""), |epoch| number(epoch.0)));
            args.push(number((settled.relations.len() + usize::from(settled.statement.is_some())) as u64));
            args.extend(settled.relations.iter().map(|oid| number(u64::from(*oid))));
            args.extend(settled.statement.map(|fingerprint| text(&format!("p{fingerprint:032x}"))));
        }
        self.expect_ok(connection.call(Script::Settle, args, PATIENCE).await?)?;
        let mut registry = self.registry.lock();
        for settled in batch {
            registry.forget(settled.token);
        }
        self.told.notify_waiters();
        Ok(true)
    }

    async fn tell_backends(&self, connection: &Connection) -> Result<bool, Failure> {
        let (published, retired) = self.registry.lock().backend_changes();
        if published.is_empty() && retired.is_empty() {
            return Ok(false);
        }
        let mut args = self.identity(connection);
        args.push(number(published.len() as u64));
        args.extend(published.iter().chain(&retired).map(|backend| text(&backend_name(*backend))));
        self.expect_ok(connection.call(Script::Backends, args, PATIENCE).await?)?;
        self.registry.lock().backends_told(&published, &retired);
        Ok(true)
    }

    async fn keep_removing(&self, local: &LocalEpochs, checker: &dyn BackendChecker) {
        loop {
            self.suspected.notified().await;
            let suspects = std::mem::take(&mut *self.suspects.lock());
            for suspect in suspects {
                let Some(connection) = self.connection.load_full() else { break };
                if let Err(failure) = self.remove_if_dead(&connection, &suspect, local, checker).await {
                    self.count(&failure);
                    tracing::warn!(%failure, member = suspect, "a member that has lapsed could not be looked at");
                }
            }
        }
    }

    /// Removes a member whose registration has lapsed and whose server processes are all gone. Until then what it was writing
    /// may yet be committed, and everybody does without the cache.
    async fn remove_if_dead(
        &self,
        connection: &Connection,
        suspect: &str,
        local: &LocalEpochs,
        checker: &dyn BackendChecker,
    ) -> Result<(), Failure> {
        let args = vec![text(&connection.generation), text(suspect)];
        let reply = connection.call(Script::Suspect, args, PATIENCE).await?;
        if reply.word() != "lapsed" {
            return Ok(());
        }
        for name in reply.texts_from(2) {
            let backend = backend_named(name).ok_or_else(|| Failure::Broken(format!("no server process: {name}")))?;
            if !is_gone(checker, backend).await {
                return Ok(());
            }
        }
        let catalog = fresh_catalog_epoch();
        let args = vec![text(&connection.generation), text(suspect), text(reply.text(1)), number(catalog)];
        if connection.call(Script::Remove, args, PATIENCE).await?.word() == "ok" {
            self.stats.add(|stats| &stats.members_removed);
            tracing::warn!(member = suspect, "removed a pgherd that died");
            self.follow_catalog(local, Some(catalog));
        }
        Ok(())
    }

    pub(super) fn identity(&self, connection: &Connection) -> Vec<Value> {
        vec![text(&connection.generation), text(&self.member), number(connection.fence)]
    }

    pub(super) fn is_mine(&self, connection: &Arc<Connection>) -> bool {
        self.connection.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, connection))
    }

    pub(super) fn expect_ok(&self, reply: Reply) -> Result<Reply, Failure> {
        if reply.word() == "ok" { Ok(reply) } else { Err(Failure::Broken(format!("Redis says {}", reply.word()))) }
    }
}

/// The oids of what is looked at, from there on.
fn oids(reply: &Reply, from: usize) -> HashSet<u32> {
    reply.texts_from(from).filter_map(|oid| oid.parse().ok()).collect()
}

async fn is_gone(checker: &dyn BackendChecker, backend: BackendId) -> bool {
    match tokio::time::timeout(CHECK_TIMEOUT, checker.backend_gone(backend)).await {
        Ok(Ok(gone)) => gone,
        Ok(Err(error)) => {
            tracing::warn!(%error, pid = backend.pid, "cannot ask whether a server process is gone");
            false
        }
        Err(_) => false,
    }
}
