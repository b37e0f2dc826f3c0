//! A transaction over several servers: the connections that take part beside the one at hand, and what a server that joins must
//! be told first.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::context::{Database, Target};
use super::cursor::Cursors;
use super::planned::{Execution, Way, aborted};
use super::{Attached, Session};
use crate::backend::expect::Expect;
use crate::backend::reset;
use crate::error::Error;
use crate::exec::two_phase::TwoPhase;
use crate::exec::two_phase::commit::{self, Ended, Part};
use crate::exec::two_phase::latch::{Guard, Kind};
use crate::sql::facts::{Class, Effect, Facts, Statement, TransactionControl};
use crate::wire::backend::ErrorFields;
use crate::wire::frame::HEADER_LEN;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

/// See the module's description. It is there from a transaction's first statement that reached a server on.
#[derive(Default)]
pub(super) struct Span {
    /// Connections of the transaction that are not at hand now.
    pub(super) others: Vec<Attached>,
    log: Vec<Entry>,
    /// Settings were changed in it.
    sets: bool,
    /// Something was run that cannot be repeated where a server joins late.
    pub(super) cannot_grow: bool,
    /// Something was run that is more than what every server of the transaction must have run.
    pub(super) has_worked: bool,
    /// What a query has set just now: to what is not known yet.
    pub(super) set_by_query: Vec<Effect>,
    /// Tables of the shards were changed in it: plans know them as they were.
    pub(super) changed_tables: BTreeSet<Box<str>>,
    /// Where its cursors are.
    pub(super) cursors: Cursors,
}

/// What was run that every server of the transaction must have run.
struct Entry {
    text: Bytes,
    savepoint: Option<Box<str>>,
}

impl Entry {
    fn new(text: &[u8]) -> Self {
        Self { text: Bytes::copy_from_slice(text), savepoint: None }
    }
}

impl Span {
    /// How many of the entries stay when the transaction goes back to that savepoint.
    fn savepoint(&self, name: &str) -> Option<usize> {
        self.log.iter().rposition(|entry| entry.savepoint.as_deref() == Some(name))
    }

    /// All that every server of the transaction must have run.
    pub(super) fn script(&self) -> Result<String, Error> {
        let texts = self.log.iter().map(|entry| String::from_utf8(entry.text.to_vec()));
        let texts: Result<Vec<String>, _> = texts.collect();
        let texts = texts.map_err(|_| Error::refused("a transaction's beginning that is not UTF-8"))?;
        Ok(texts.iter().map(|text| format!("{text}\n;\n")).collect())
    }

    /// Notes what every server that joins must run, too.
    pub(super) fn repeat(&mut self, text: &[u8]) {
        self.log.push(Entry::new(text));
    }

    /// What was run that every server of the transaction must have run.
    pub(super) fn texts(&self) -> impl Iterator<Item = &Bytes> {
        self.log.iter().map(|entry| &entry.text)
    }

    /// The next transaction on the server at hand began with that. False if others cannot join it.
    pub(super) fn begin_again(&mut self, begin: Vec<Bytes>) -> bool {
        if self.sets || self.cannot_grow || !self.others.is_empty() {
            return false;
        }
        self.log = begin.into_iter().map(|text| Entry { text, savepoint: None }).collect();
        self.changed_tables.clear();
        true
    }

    fn note(&mut self, control: TransactionControl, text: &[u8], name: Option<&str>) {
        if control == TransactionControl::RollbackTo {
            self.cursors.may_be_gone();
        }
        let found = name.and_then(|name| self.savepoint(name));
        match (control, found) {
            (TransactionControl::Savepoint, _) => {
                self.log.push(Entry { text: Bytes::copy_from_slice(text), savepoint: name.map(Into::into) });
            }
            (TransactionControl::RollbackTo, Some(at)) => self.log.truncate(at + 1),
            (TransactionControl::Release, Some(at)) => {
                // What was set since stays.
                let behind = self.log.split_off(at);
                self.log.extend(behind.into_iter().filter(|entry| entry.savepoint.is_none()));
            }
            _ => {}
        }
    }
}

impl Session {
    /// What a transaction began with is remembered where others may join it.
    pub(super) fn begin_span(&mut self) {
        if self.lazy_begin.is_empty() || !self.db.config.is_distributed() || self.keeps_server() {
            return;
        }
        let entry = |text: &Bytes| {
            let facts = self.db.shared.analyzer.facts(text, self.conforming_strings());
            let savepoint = facts.single().and_then(|statement| statement.savepoint.clone());
            Entry { text: text.clone(), savepoint }
        };
        let mut log: Vec<Entry> = self.lazy_begin.iter().map(entry).collect();
        // What was noted of the statement that brings the first server.
        let mut span = self.span.take().unwrap_or_default();
        log.append(&mut span.log);
        span.log = log;
        self.span = Some(span);
    }

    /// Whether the transaction has connections besides the one at hand.
    pub(super) fn spans_servers(&self) -> bool {
        self.span.as_ref().is_some_and(|span| !span.others.is_empty())
    }

    /// The server connection of that target becomes the one at hand, within the transaction. False where there is no transaction
    /// that could go on there, too.
    pub(super) async fn switch_to(&mut self, target: Target) -> Result<bool, Error> {
        if self.span.is_none() || self.status == TransactionStatus::Idle {
            return Ok(false);
        }
        self.come_to_rest().await?;
        if self.status == TransactionStatus::Failed || self.skipping {
            return Err(aborted());
        }
        if self.may_relocate() {
            return Box::pin(self.relocate(target)).await.map(|()| true);
        }
        if self.db.two_phase.is_none() {
            return Ok(false);
        }
        if self.keeps_server() {
            return Err(Error::refused(
                "a transaction over several servers of a session that keeps a server connection for itself",
            )
            .hint("Use another session for it."));
        }
        let known = self.span.as_ref().and_then(|span| span.others.iter().position(|it| it.target == target));
        let next = match known {
            Some(at) => self.span.as_mut().map(|span| span.others.swap_remove(at)),
            None => Some(self.join(target).await?),
        };
        let Some(next) = next else { return Ok(false) };
        self.untie_cancel().await;
        if let (Some(mut current), Some(span)) = (self.server.replace(next), &mut self.span) {
            current.lease.server().spill(&mut self.client.outbuf);
            span.others.push(current);
        }
        self.aim_cancel();
        Ok(true)
    }

    /// From now on a cancel reaches the server at hand.
    pub(super) fn aim_cancel(&mut self) {
        if let Some(attached) = &mut self.server {
            self.cancel.slot.aim_at(std::sync::Arc::clone(&attached.lease.server().cancel_target));
        }
    }

    /// All that was sent is answered, and no pipeline is open.
    pub(super) async fn come_to_rest(&mut self) -> Result<(), Error> {
        if let Some(server) = self.held_server()
            && server.expects.is_unsynced()
        {
            // Inside of a transaction block a Sync ends nothing but the pipeline.
            writer::sync(&mut server.outbuf);
            server.expects.push(Expect::Sync { hidden: true });
            self.hidden_sync = true;
        }
        self.wait_for_answers().await
    }

    /// Whether PostgreSQL would not look at a message: it stands behind an error, and no Sync between them.
    pub(super) fn is_unheard(&mut self) -> bool {
        self.skipping || self.held_server().is_some_and(|server| server.expects.is_skipping())
    }

    /// Refuses what PostgreSQL would not look at. Nobody is told of it: of the error they have been.
    fn check_heard(&mut self) -> Result<(), Error> {
        if self.is_unheard() { Err(aborted()) } else { Ok(()) }
    }

    /// Why no further server may take part in the transaction at hand.
    fn why_alone(&self) -> Option<Error> {
        let refused = |what: &str, hint: &str| {
            Some(Error::refused(format!("a transaction over several servers {what}")).hint(hint))
        };
        if self.is_isolated() {
            return refused(
                "under REPEATABLE READ or SERIALIZABLE",
                "Use READ COMMITTED, or let the transaction touch one shard or the primary only.",
            );
        }
        if self.span.as_ref().is_some_and(|span| span.cannot_grow) {
            return refused(
                "that has changed settings in a way that cannot be repeated on another server",
                "Change settings by SET, or before the transaction; constraints by SET CONSTRAINTS ALL.",
            );
        }
        if self.listening.is_some() || self.keeps_server() {
            return refused(
                "of a session that listens, or that keeps a server connection for itself",
                "Use another session for it.",
            );
        }
        if self.db.cache.is_some() && self.writes.as_ref().is_some_and(|writes| writes.primary.any()) {
            return refused(
                "that has written on the primary of a database whose answers are cached",
                "Write on the primary in a transaction of its own, or set database.cache = false.",
            );
        }
        None
    }

    /// Another server takes part from now on: it is told how the transaction began.
    async fn join(&mut self, target: Target) -> Result<Attached, Error> {
        if let Some(error) = self.why_alone() {
            return Err(error);
        }
        let lock_timeout = self.lock_timeout();
        let settings = Arc::clone(&self.settings.current);
        let lease = self.lease_with(target, &settings).await?;
        let mut joined = Attached { lease, target };
        let Some(span) = &self.span else { return Err(Error::internal("nothing can be joined")) };
        let script = span.script()? + lock_timeout.as_deref().unwrap_or_default();
        tell(&mut joined, &script).await?;
        let is_second = span.others.is_empty();
        if let (true, Some(sql)) = (is_second, &lock_timeout) {
            // The first one waits for locks no longer than the others: else two transactions could wait for each other for ever.
            if let Some(first) = &mut self.server {
                first.lease.server().spill(&mut self.client.outbuf);
                tell(first, sql).await?;
            }
        }
        Ok(joined)
    }

    /// Bounds how long a statement waits for locks, where the client has set no bound.
    fn lock_timeout(&self) -> Option<String> {
        let limit_ms = self.db.two_phase.as_ref()?.lock_timeout.as_millis();
        Some(format!(
            "SELECT pg_catalog.set_config('lock_timeout', CASE pg_catalog.current_setting('lock_timeout') WHEN '0' \
             THEN '{limit_ms}ms' ELSE pg_catalog.current_setting('lock_timeout') END, true)"
        ))
    }

    /// Notes what is about to run, so that a server that joins later can be told; tells those that have joined already.
    /// Returns the ErrorResponse of one that would not.
    pub(super) async fn note_for_span(&mut self, execution: &Execution<'_>) -> Result<Option<Bytes>, Error> {
        let facts = execution.facts;
        if self.server.is_none() {
            // It is forgotten again if no server gets to see the statement.
            let is_told = |it: &Statement| {
                matches!(it.class, Class::Transaction(control) if control.sets_transaction()
                || control == TransactionControl::SetConstraints)
            };
            self.span = (changes_settings(facts) || facts.statements.iter().any(is_told)).then(Box::default);
        }
        let Some(span) = &mut self.span else { return Ok(None) };
        let is_control = |it: &Statement| matches!(it.class, Class::Transaction(_));
        let Some(statement) = facts.single() else {
            let controls = facts.statements.iter().any(is_control);
            if controls && !span.others.is_empty() {
                return Err(Error::refused(
                    "transaction control within a string of several statements, over several servers",
                )
                .hint("Send the statements one by one."));
            }
            span.cannot_grow |= controls || changes_settings(facts);
            return Ok(None);
        };
        let sets = changes_settings(facts);
        let is_set = matches!(statement.class, Class::Transaction(control)
            if control.sets_transaction() || control == TransactionControl::SetAllConstraints);
        let names_constraints = statement.class == Class::Transaction(TransactionControl::SetConstraints);
        if !sets && !is_set && !names_constraints {
            return Ok(None);
        }
        if execution.bind.is_none() && self.in_extended {
            return Ok(None);
        }
        span.sets |= sets;
        let can_be_repeated = is_set || (statement.class == Class::Session && statement.parameters == 0);
        if !can_be_repeated {
            if !names_constraints && statement.effects.iter().all(names_setting) {
                span.set_by_query.extend(statement.effects.iter().cloned());
                return Ok(None);
            }
            span.cannot_grow = true;
            if span.others.is_empty() {
                return Ok(None);
            }
            let (what, hint) = match names_constraints {
                true => ("SET CONSTRAINTS with names", "Use SET CONSTRAINTS ALL."),
                false => (
                    "a change of settings whose names are not in the text",
                    "Use SET, or set_config with the setting's name and true or false in it.",
                ),
            };
            return Err(Error::refused(format!("{what}, in a transaction over several servers")).hint(hint));
        }
        if self.status != TransactionStatus::InTransaction {
            return Ok(None);
        }
        let is_alone = span.others.is_empty();
        if !is_alone {
            self.come_to_rest().await?;
            self.check_heard()?;
        }
        let Some(span) = &mut self.span else { return Ok(None) };
        span.repeat(execution.text);
        if is_alone {
            return Ok(None);
        }
        let text = std::str::from_utf8(execution.text).map_err(|_| Error::refused("a SET that is not UTF-8"))?;
        self.tell_others(text).await
    }

    /// Has the servers of the transaction that are not at hand run something. Returns the ErrorResponse of one that would not.
    pub(super) async fn tell_others(&mut self, text: &str) -> Result<Option<Bytes>, Error> {
        let Some(span) = &mut self.span else { return Ok(None) };
        let mut parts: Vec<Part<'_>> = span.others.iter_mut().map(part).collect();
        for answer in commit::everywhere(&mut parts, text).await {
            if let Err(message) = answer? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Transaction control within a transaction that a server knows of.
    pub(super) fn way_of_span(
        &mut self,
        control: TransactionControl,
        facts: &Facts,
        text: &[u8],
    ) -> Result<Option<Way>, Error> {
        use TransactionControl as Control;
        let spans = self.spans_servers();
        match control {
            Control::Savepoint | Control::Release | Control::RollbackTo if spans => Ok(Some(Way::Everywhere)),
            Control::Commit | Control::Rollback if spans => Ok(Some(Way::EndEverywhere(control == Control::Commit))),
            Control::CommitAndChain | Control::RollbackAndChain if spans => {
                self.way_of_chain(control == Control::CommitAndChain).map(Some)
            }
            Control::Prepare if spans => Err(Error::refused(
                "PREPARE TRANSACTION in a transaction over several servers",
            )
            .hint(
                "Use COMMIT, which is done on all of them or on none, or let the transaction touch one server only.",
            )),
            Control::Savepoint | Control::Release if self.status == TransactionStatus::Failed => Ok(None),
            Control::Savepoint | Control::Release | Control::RollbackTo => {
                self.note_savepoint(facts, text);
                Ok(None)
            }
            Control::CommitAndChain | Control::RollbackAndChain => {
                self.chain_on_one();
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Notes a savepoint of a transaction that is on one server.
    pub(super) fn note_savepoint(&mut self, facts: &Facts, text: &[u8]) {
        if let (Some(span), Some(statement)) = (&mut self.span, facts.single())
            && let Class::Transaction(control) = statement.class
        {
            span.note(control, text, statement.savepoint.as_deref());
        }
    }

    /// SAVEPOINT, RELEASE or ROLLBACK TO on every server of the transaction. `Err` inside is the ErrorResponse of one that would not.
    pub(super) async fn control_everywhere(&mut self, execution: &Execution<'_>) -> Result<Result<(), Bytes>, Error> {
        self.come_to_rest().await?;
        self.check_heard()?;
        let text = std::str::from_utf8(execution.text).map_err(|_| Error::refused("a text that is not UTF-8"))?;
        let goes_back =
            execution.facts.single().map(|it| it.class) == Some(Class::Transaction(TransactionControl::RollbackTo));
        if self.status == TransactionStatus::Failed && !goes_back {
            // Of its servers only those have failed that had a reason to: the others would take it.
            return Err(aborted());
        }
        self.settings.forget_exact();
        let mut script = text.to_owned();
        if goes_back && let Some(sql) = self.lock_timeout() {
            // It may have been set behind that savepoint.
            script = format!("{text}\n;\n{sql}");
        }
        self.spill();
        let mut parts = parts(&mut self.server, &mut self.span);
        for answer in commit::everywhere(&mut parts, &script).await {
            match answer {
                Ok(Ok(())) => {}
                Ok(Err(message)) => return Ok(Err(message)),
                Err(error) => return Err(error.fatal()),
            }
        }
        self.note_savepoint(execution.facts, execution.text);
        self.status = TransactionStatus::InTransaction;
        Ok(Ok(()))
    }

    /// What keeps commits over several servers out while a statement takes its snapshots on that many shards.
    pub(super) fn gatekeeper(&self, shards: usize) -> Option<Arc<TwoPhase>> {
        self.db.two_phase.clone().filter(|it| shards > 1 && it.latch.is_on())
    }

    /// What the server at hand has said goes before whatever pgherd says itself.
    pub(super) fn spill(&mut self) {
        if let Some(attached) = &mut self.server {
            attached.lease.server().spill(&mut self.client.outbuf);
        }
    }

    /// Ends the transaction on every server. True if it is committed; the bytes are the ErrorResponse of a server that would not.
    pub(super) async fn end_everywhere(&mut self, commit: bool) -> Result<Result<bool, Bytes>, Error> {
        self.come_to_rest().await?;
        self.check_heard()?;
        let commit = commit && self.status != TransactionStatus::Failed;
        // What is lost here by an error is closed, and so rolled back.
        self.untie_cancel().await;
        self.spill();
        let marked = if commit { self.before_commit_everywhere().await } else { Ok(()) };
        // If this is given up in the middle, nobody knows what became of them.
        let writes = self.writes.take();
        let two_phase = self.db.two_phase.clone();
        let mut parts = parts(&mut self.server, &mut self.span);
        let ended = match marked {
            Ok(()) if commit => commit::commit(two_phase.as_deref(), &mut parts).await.map(|ended| match ended {
                Ended::Committed => Ok(true),
                Ended::RolledBack(message) => Err(message),
            }),
            marked => {
                commit::roll_back(&mut parts).await;
                marked.map(|()| Ok(false))
            }
        };
        drop(parts);
        if let Some(writes) = writes {
            let unknown = self.servers_that_did_not_say();
            self.settle_all_but(*writes, &unknown);
        }
        self.status = TransactionStatus::Idle;
        let has_changed_tables = self.span.as_ref().is_some_and(|span| !span.changed_tables.is_empty());
        let settings_are_lost = self.release_span().await;
        self.transaction_is_over();
        if has_changed_tables && matches!(ended, Ok(Ok(true))) {
            Box::pin(self.learn_changed_shards()).await;
        }
        self.db.metrics.transactions.inc();
        if settings_are_lost && matches!(ended, Ok(Ok(true))) {
            return Err(Error::internal("the settings that a transaction left were lost with its servers").fatal());
        }
        ended
    }

    /// Servers of a transaction that has ended which have not said that it has ended there.
    fn servers_that_did_not_say(&mut self) -> Vec<Target> {
        let others = self.span.iter_mut().flat_map(|span| span.others.iter_mut());
        let mut silent = Vec::new();
        for attached in self.server.iter_mut().chain(others) {
            if !attached.lease.server().is_reusable() {
                silent.push(self.db.written_at(attached.target));
            }
        }
        silent
    }

    /// Gives all connections of a transaction that is over back. True if nobody is left who knows the session's settings.
    async fn release_span(&mut self) -> bool {
        let Some(mut span) = self.span.take() else { return false };
        let must_read_back = self.settings.must_read_back();
        if self.held_server().is_none_or(|server| server.is_broken()) {
            let whole = span.others.iter_mut().position(|other| !other.lease.server().is_broken());
            self.server = whole.map(|at| span.others.swap_remove(at));
        }
        let is_lost = self.server.is_none() && must_read_back;
        for mut other in span.others {
            let server = other.lease.server();
            if (span.sets || must_read_back || server.dirty) && server.is_reusable() {
                // Its settings are what the transaction left; nobody has asked what that is.
                let _ = reset::discard_all(server).await;
            }
            other.lease.release();
        }
        if is_lost {
            self.settings.settle_as_before();
        }
        if let Err(error) = self.release_if_at_rest(tokio::time::Instant::now()).await {
            tracing::debug!(%error, "a server connection was lost behind its transaction");
            self.server = None;
            return must_read_back;
        }
        is_lost
    }

    /// The client has left in the middle of a transaction over several servers.
    pub(super) async fn give_up_others(&mut self) {
        let Some(mut span) = self.span.take() else { return };
        let mut parts: Vec<Part<'_>> = span.others.iter_mut().map(part).collect();
        const DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);
        let told = tokio::time::timeout(DEADLINE, commit::roll_back(&mut parts)).await;
        drop(parts);
        for mut other in span.others {
            if told.is_ok() && other.lease.server().is_reusable() {
                // It is rolled back there. Else the doubt stays until the server process is gone.
                self.settle_writes_on(self.db.written_at(other.target));
                let _ = tokio::time::timeout(DEADLINE, reset::discard_all(other.lease.server())).await;
            }
            other.lease.release();
        }
    }
}

/// Runs statements that a client's transaction needs and does not see.
pub(super) async fn tell(attached: &mut Attached, text: &str) -> Result<(), Error> {
    match commit::command(attached.lease.server(), text).await? {
        Ok(()) => Ok(()),
        Err(message) => {
            let body = &message[HEADER_LEN..];
            let was_cancelled =
                ErrorFields::parse(body).is_ok_and(|fields| fields.get(b'C') == Some(SqlState::QUERY_CANCELED.code()));
            Err(if was_cancelled { super::failure::cancelled() } else { crate::backend::failure::server_error(body) })
        }
    }
}

/// All connections of the transaction, the one at hand first.
pub(super) fn parts<'a>(server: &'a mut Option<Attached>, span: &'a mut Option<Box<Span>>) -> Vec<Part<'a>> {
    let others = span.iter_mut().flat_map(|span| span.others.iter_mut());
    server.iter_mut().chain(others).map(part).collect()
}

fn part(attached: &mut Attached) -> Part<'_> {
    let at = match attached.target {
        Target::Shard(shard) => shard + 1,
        Target::Primary | Target::Replica(_) | Target::Coordinator => 0,
    };
    Part { server: attached.lease.server(), at }
}

/// Whether it sets a setting whose name is known.
fn names_setting(effect: &Effect) -> bool {
    matches!(effect, Effect::Set(_) | Effect::SetLocal(_))
}

fn changes_settings(facts: &Facts) -> bool {
    facts.effects().any(|effect| {
        matches!(
            effect,
            Effect::Set(_)
                | Effect::SetLocal(_)
                | Effect::Reset(_)
                | Effect::ResetLocal(_)
                | Effect::ResetAll
                | Effect::OpaqueSettings
        )
    })
}

/// Takes the latch for what reads on that many shards, if there is one to take.
pub(super) async fn latch_snapshots(
    db: &Database,
    shards: usize,
    work: &CancellationToken,
) -> Result<Option<Guard>, Error> {
    let Some(two_phase) = db.two_phase.as_ref().filter(|it| shards > 1 && it.latch.is_on()) else { return Ok(None) };
    tokio::select! {
        biased;
        () = work.cancelled() => Err(super::failure::cancelled()),
        guard = two_phase.enter(Kind::Read) => guard.map(Some),
        () = tokio::time::sleep(db.fanout.query_timeout) => Err(super::failure::too_slow("fanout.query_timeout")),
    }
}
