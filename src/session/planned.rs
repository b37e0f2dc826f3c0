//! From a plan to what the session does: which server a statement goes to, or how pgherd answers it.

use std::sync::Arc;

use bytes::Bytes;

use super::Session;
use super::context::Target;
use super::late_begin::{is_plain_savepoint, no_savepoint, savepoint_named_in};
use super::memo::World;
use crate::cache::{Audit, Entry, Failure, FillTicket};
use crate::catalog::model::{Catalog, FIRST_USER_OID};
use crate::error::{Error, ErrorKind};
use crate::plan::distribute::{CopiedIn, Gathered, InsertSelect, KeyMove, Scattered, Split, Streamed, Unstreamed};
use crate::plan::rules::{self, Bound, Input, SessionView, Transaction};
use crate::plan::{CachedRead, Explained, Local, Maintained, Plan, Refusal};
use crate::sql::facts::{Class, Facts, SharedFacts, TransactionControl};
use crate::telemetry::metrics::PlanClass;
use crate::wire::frame::Frame;
use crate::wire::frontend::Bind;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::TransactionStatus;

/// A statement that is about to run, with all that a plan may ask of it.
pub(super) struct Execution<'a> {
    /// Its facts.
    pub(super) facts: &'a SharedFacts,
    /// Its text.
    pub(super) text: &'a [u8],
    /// Declared parameter types.
    pub(super) types: &'a [u32],
    /// The Bind, whole and read; `None` for a simple query, or before Bind.
    pub(super) bind: Option<(&'a Frame, &'a Bind<'a>)>,
    /// Execute's row limit; 0 is none.
    pub(super) max_rows: i32,
    /// ParseComplete and BindComplete, as far as the client has not been given them yet.
    pub(super) unanswered: &'a [u8],
}

impl<'a> Execution<'a> {
    /// A statement of which nothing is known but itself: a simple query, or one that is only described.
    pub(super) fn described(facts: &'a SharedFacts, text: &'a [u8], types: &'a [u32]) -> Self {
        Self { facts, text, types, bind: None, max_rows: 0, unanswered: b"" }
    }
}

/// What the session does with an execution.
pub(super) enum Way {
    /// Passes it on.
    Relay(Target),
    /// Runs it on a server connection of its own, in a READ ONLY transaction.
    ReadOnly(Target),
    /// Answers it from the cache; sometimes the answer is checked then.
    Hit(Arc<Entry>, Option<Audit>),
    /// Answers it with the error of another session's fill.
    Failed(Failure),
    /// Runs it on the primary, in a READ ONLY transaction, and keeps the answer.
    Fill(FillTicket, Arc<CachedRead>),
    /// Runs it on several shards.
    FanOut(Arc<Streamed>),
    /// Scans a partitioned table on several connections of the primary.
    Split(Arc<Split>),
    /// Runs it on the coordinator, with rows from several shards.
    Gather(Arc<Gathered>),
    /// Declares a cursor on the coordinator, over rows from several shards.
    Cursor(Arc<Gathered>),
    /// Tells how several shards, and the coordinator, would run it, or have.
    ExplainOver(Arc<Explained>),
    /// Runs on several servers, on each by itself.
    Maintain(Arc<Maintained>),
    /// Writes on several shards.
    Scatter(Arc<Scattered>),
    /// Reads a query's rows and inserts them where they belong.
    InsertSelect(Arc<InsertSelect>),
    /// Changes rows and moves them where they belong from then on.
    KeyMove(Arc<KeyMove>),
    /// Copies the client's rows to several shards.
    CopyIn(Arc<CopiedIn>),
    /// Shows where it would run.
    Explain(Vec<(String, String)>),
    /// Executes a portal again that a row limit has suspended.
    Resume,
    /// Binds a portal over several shards, which is executed later.
    Bind,
    /// Describes what no server can: an INSERT of which none has all tables, or `EXPLAIN (ROUTE)`. It has no parameters.
    Describe(&'static [u8]),
    /// There is nothing to run.
    Empty,
    /// Begins a transaction that no server knows of yet.
    Begin,
    /// Sets a savepoint, or constraints, in one that no server knows of yet.
    Savepoint,
    /// Goes back to a savepoint of one that no server knows of: so many of its statements stay.
    RollbackTo(usize),
    /// Releases a savepoint of one that no server knows of: which of its statements set it.
    Release(usize),
    /// Ends one that no server knows of; true is COMMIT.
    End(bool),
    /// Ends one that no server knows of, and begins its like; true is COMMIT.
    EndAndChain(bool),
    /// Ends a transaction over several servers; true is COMMIT. Its like begins with these.
    ChainEverywhere(bool, Vec<Bytes>),
    /// Runs SAVEPOINT, RELEASE or ROLLBACK TO on every server of the transaction.
    Everywhere,
    /// Ends a transaction over several servers; true is COMMIT.
    EndEverywhere(bool),
    /// Fails it with the ErrorResponse of a server of the transaction.
    Fail(Bytes),
}

impl Way {
    /// Whether it is run on a server connection of its own, whose word on Parse and Bind is passed on.
    pub(super) fn is_read_aside(&self) -> bool {
        matches!(
            self,
            Self::ReadOnly(_)
                | Self::Fill(..)
                | Self::FanOut(_)
                | Self::Split(_)
                | Self::Failed(_)
                | Self::Maintain(_)
                | Self::Scatter(_)
                | Self::InsertSelect(_)
                | Self::KeyMove(_)
        )
    }

    /// The server of something that is passed on; the primary for all else.
    pub(super) fn relay_target(&self) -> Target {
        match self {
            Self::Relay(target) => *target,
            _ => Target::Primary,
        }
    }

    /// The server that can describe a statement which goes this way.
    pub(super) fn describe_target(&self) -> Target {
        match self {
            Self::Relay(target) | Self::ReadOnly(target @ Target::Shard(_)) => *target,
            Self::FanOut(streamed) => Target::Shard(streamed.shards.first().copied().unwrap_or(0)),
            Self::Gather(gathered) | Self::Cursor(gathered) => {
                Target::Shard(gathered.shards.first().copied().unwrap_or(0))
            }
            Self::ExplainOver(_) | Self::InsertSelect(_) => Target::Shard(0),
            Self::KeyMove(moved) => Target::Shard(moved.sources.first().copied().unwrap_or(0)),
            Self::Maintain(maintained) if !maintained.on_primary => Target::Shard(0),
            Self::Scatter(scattered) => Target::Shard(scattered.parts.first().map_or(0, |part| part.shard)),
            _ => Target::Primary,
        }
    }

    /// The metric label.
    pub(super) fn class(&self) -> PlanClass {
        match self {
            Self::Relay(Target::Shard(_)) => PlanClass::Shard,
            Self::Relay(_) => PlanClass::Primary,
            Self::ReadOnly(Target::Shard(_)) => PlanClass::Shard,
            Self::ReadOnly(Target::Primary) => PlanClass::Primary,
            Self::ReadOnly(_) => PlanClass::Replica,
            Self::Hit(..) | Self::Fill(..) | Self::Failed(_) => PlanClass::Cached,
            Self::FanOut(_) | Self::Split(_) | Self::Resume => PlanClass::FanOut,
            Self::Gather(_) | Self::Cursor(_) | Self::ExplainOver(_) => PlanClass::Gather,
            Self::Scatter(_) | Self::InsertSelect(_) | Self::KeyMove(_) | Self::CopyIn(_) | Self::Maintain(_) => {
                PlanClass::Scatter
            }
            Self::Explain(_)
            | Self::Bind
            | Self::Describe(_)
            | Self::Empty
            | Self::Begin
            | Self::Savepoint
            | Self::RollbackTo(_)
            | Self::Release(_)
            | Self::End(_)
            | Self::Everywhere
            | Self::EndEverywhere(_)
            | Self::EndAndChain(_)
            | Self::ChainEverywhere(..)
            | Self::Fail(_) => PlanClass::Local,
        }
    }
}

/// Client encodings whose characters may hold ASCII bytes, so that a quote may be hidden in one.
const DECEPTIVE_ENCODINGS: [&str; 7] = ["SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004"];

impl Session {
    /// The server where a statement goes that is passed on without a plan of its own.
    pub(super) fn target_for(&self, _facts: &Facts) -> Result<Target, Error> {
        Ok(self.flight_target.unwrap_or_else(|| self.default_target()))
    }

    /// Decides what to do with an execution.
    pub(super) async fn way(&mut self, execution: &Execution<'_>) -> Result<Way, Error> {
        if self.db.config.is_distributed() && self.held_server().is_some_and(|server| !server.expects.is_unsynced()) {
            // A pipeline: where the transaction stands is known when what was synced before has been answered.
            if !self.is_as_bound_after_answers(execution).await? {
                return Ok(Way::Relay(self.default_target()));
            }
        }
        self.show_that_it_has_read(execution.facts);
        if self.span.as_ref().is_some_and(|span| !span.set_by_query.is_empty()) {
            Box::pin(self.repeat_what_a_query_set()).await?;
        }
        let spans = self.span.is_some() || (!self.lazy_begin.is_empty() && self.db.config.is_distributed());
        if spans && let Some(message) = self.note_for_span(execution).await? {
            return Ok(Way::Fail(message));
        }
        if let Some(way) = self.way_of_transaction(execution)? {
            return Ok(way);
        }
        if self.status == TransactionStatus::Failed && self.server.is_some() {
            return Ok(Way::Relay(self.default_target()));
        }
        if self.is_known_primary(execution.facts)
            || (!self.db.config.is_distributed() && self.db.may_run_unseen(execution.facts))
        {
            return Ok(Way::Relay(self.target_of_primary(execution)?));
        }
        if self.db.config.schemas.is_some() {
            Box::pin(self.learn_exact_settings()).await?;
        }
        if !self.settings.parse_is_certain() {
            Box::pin(self.learn_what_names_mean(execution.facts)).await?;
        }
        let plan = self.plan(execution).await?;
        self.count_cache_refusal(&plan);
        let is_read = execution.facts.single().is_some_and(|statement| statement.class == Class::Read);
        if !is_read || !self.trusts_user_code(execution.facts) {
            self.memo.note_plan(execution.facts.fingerprint, &plan);
        }
        self.check_tables(execution, &plan)?;
        match plan {
            Plan::Primary(_) => self.way_of_primary(execution),
            Plan::NeedsBind(_) if execution.bind.is_none() => Ok(Way::Relay(Target::Shard(0))),
            Plan::NeedsBind(reason) => {
                Err(Error::refused(format!("where this statement runs is not known: {}", reason.text))
                    .hint("Give the parameters their types in Parse."))
            }
            Plan::Shard { shard, detachable, .. } => {
                let target = Target::Shard(shard);
                let may_read = self.may_read_aside(execution.facts) || self.may_read_beside(execution.facts, target);
                let aside = detachable && execution.max_rows == 0 && may_read;
                Ok(if aside { Way::ReadOnly(target) } else { Way::Relay(target) })
            }
            // In the middle of a pipeline it sees what the pipeline has written, and is answered behind it.
            Plan::Replica(_) if execution.max_rows > 0 || self.is_mid_flight() => Ok(Way::Relay(Target::Primary)),
            Plan::Replica(_) => self.way_of_replica().await,
            Plan::Cached(read) => {
                if self.waits_to_look_up(execution, &read).await {
                    return match self.is_as_bound_after_answers(execution).await? {
                        true => Box::pin(self.way(execution)).await,
                        false => Ok(Way::Relay(self.default_target())),
                    };
                }
                self.way_of_cached(execution, read).await
            }
            Plan::FanOut(streamed) => self.way_of_fan_out(Way::FanOut(streamed)),
            Plan::Split(split) => Ok(self.way_of_split(execution, split)),
            Plan::Gather(gathered) => self.way_of_fan_out(Way::Gather(gathered)),
            Plan::Cursor(gathered) => self.way_of_fan_out(Way::Cursor(gathered)),
            Plan::Explain(explained) => self.way_of_fan_out(Way::ExplainOver(explained)),
            Plan::CopyIn(copied) => self.way_of_fan_out(Way::CopyIn(copied)),
            Plan::Maintain(maintained) => self.way_of_maintenance(maintained),
            Plan::Scatter(scattered) => self.way_of_fan_out(Way::Scatter(scattered)),
            Plan::KeyMove(moved) => self.way_of_fan_out(Way::KeyMove(moved)),
            Plan::InsertSelect(plan) => self.way_of_fan_out(Way::InsertSelect(plan)),
            Plan::Local(Local::Empty) => Ok(Way::Empty),
            Plan::Local(Local::ExplainRoute(inner)) => self.explain_route(execution, &inner).await.map(Way::Explain),
            Plan::Refuse(refusal) => match Box::pin(self.is_mistyped(execution, &refusal)).await {
                true => Ok(Way::Relay(Target::Primary)),
                false => Err(self.refused(refusal)),
            },
        }
    }

    /// Waits for all answers that are owed. False if the statement is not what it was then: its Parse was among what failed, and what
    /// becomes of it is the server's to say. What stands with its own Parse was not meant by any of them.
    async fn is_as_bound_after_answers(&mut self, execution: &Execution<'_>) -> Result<bool, Error> {
        let bound = |session: &Self| {
            let prepared = session.statement(execution.bind?.1.statement)?;
            std::ptr::eq(prepared.text().as_ptr(), execution.text.as_ptr()).then_some(prepared.serial)
        };
        let before = bound(self);
        self.wait_for_answers().await?;
        Ok(bound(self) == before)
    }

    /// SET TRANSACTION behind a query is an error: the server must know of one where all were answered aside.
    fn show_that_it_has_read(&mut self, facts: &Facts) {
        let sets = |class| matches!(class, Class::Transaction(control) if control.sets_transaction());
        if self.has_read_aside && !self.lazy_begin.is_empty() && facts.statements.iter().any(|it| sets(it.class)) {
            self.has_read_aside = false;
            self.lazy_begin.push(Bytes::from_static(b"SELECT 1"));
        }
    }

    /// Whether a read in a transaction may run on a connection of its own, so that the transaction stays free to go to any
    /// shard: READ COMMITTED, and nothing written or locked so far.
    fn may_read_aside(&self, facts: &Facts) -> bool {
        self.transaction_view() == Transaction::VirginReadCommitted
            && !self.is_mid_flight()
            && !self.db.writes_unseen(facts.fingerprint)
    }

    /// Whether a statement like it went to the primary before, for reasons that have not changed. With shards or replicas a
    /// plan depends on more than the facts.
    pub(super) fn is_known_primary(&mut self, facts: &Facts) -> bool {
        if self.plans_look_beyond_facts() {
            return false;
        }
        self.turn_to_memory(self.db.catalog.version());
        self.memo.is_primary(facts.fingerprint)
    }

    /// Whether plans of this database depend on keys and on replicas, too.
    pub(super) fn plans_look_beyond_facts(&self) -> bool {
        self.db.config.is_distributed() || !self.db.config.replicas.is_empty()
    }

    /// Turns to what is known of statements of sessions like this one, as of that version of the catalog.
    pub(super) fn turn_to_memory(&mut self, catalog: u64) {
        let world = World { catalog, epoch: self.db.gate.epoch() };
        let (db, user) = (&self.db, &self.user);
        self.memo.check(world, self.settings.now(), &db.plan_memories, || db.login_role(user));
    }

    pub(super) fn refused(&self, refusal: Refusal) -> Error {
        self.db.shared.metrics.refusal(refusal.code);
        Error::refused(refusal.message).hint(refusal.hint)
    }

    /// Transactions begin and end without a server as long as they touch none.
    fn way_of_transaction(&mut self, execution: &Execution<'_>) -> Result<Option<Way>, Error> {
        let (facts, text) = (execution.facts, execution.text);
        let control = match facts.single().map(|statement| statement.class) {
            Some(Class::Transaction(control)) => Some(control),
            _ => None,
        };
        let savepoint = facts.single().and_then(|statement| statement.savepoint.as_deref());
        if !self.lazy_begin.is_empty() && self.server.is_none() {
            match control {
                Some(TransactionControl::Savepoint)
                    if self.status != TransactionStatus::Failed && is_plain_savepoint(text) =>
                {
                    return Ok(Some(Way::Savepoint));
                }
                Some(TransactionControl::SetAllConstraints) if self.status != TransactionStatus::Failed => {
                    return Ok(Some(Way::Savepoint));
                }
                Some(TransactionControl::Commit) => {
                    return Ok(Some(Way::End(self.status != TransactionStatus::Failed)));
                }
                Some(TransactionControl::Rollback) => return Ok(Some(Way::End(false))),
                Some(TransactionControl::CommitAndChain) => {
                    return Ok(Some(Way::EndAndChain(self.status != TransactionStatus::Failed)));
                }
                Some(TransactionControl::RollbackAndChain) => return Ok(Some(Way::EndAndChain(false))),
                Some(TransactionControl::RollbackTo) if let Some(name) = savepoint => {
                    match savepoint_named_in(&self.lazy_begin, name) {
                        Some(kept) => return Ok(Some(Way::RollbackTo(kept))),
                        None if self.status == TransactionStatus::Failed => return Err(no_savepoint(name)),
                        None => return Ok(None),
                    }
                }
                Some(TransactionControl::Release)
                    if self.status != TransactionStatus::Failed
                        && let Some(kept) = savepoint.and_then(|name| savepoint_named_in(&self.lazy_begin, name)) =>
                {
                    return Ok(Some(Way::Release(kept - 1)));
                }
                // It brings the first server, and others may join that.
                Some(TransactionControl::Savepoint)
                    if self.status != TransactionStatus::Failed && (execution.bind.is_some() || !self.in_extended) =>
                {
                    self.span.get_or_insert_default();
                    self.note_savepoint(facts, text);
                    return Ok(None);
                }
                // Bind is refused even then.
                _ if execution.bind.is_none() && facts.statements.iter().all(|it| it.class == Class::Empty) => {
                    return Ok(Some(Way::Empty));
                }
                // A mistake in the grammar comes first.
                _ if self.status == TransactionStatus::Failed && is_unread(facts) => {
                    return Ok(Some(Way::Relay(Target::Primary)));
                }
                _ if self.status == TransactionStatus::Failed => return Err(aborted()),
                _ => return Ok(None),
            }
        }
        if let (Some(control), true) = (control, self.server.is_some() && self.span.is_some())
            && (execution.bind.is_some() || !self.in_extended)
        {
            return self.way_of_span(control, facts, text);
        }
        let begins = matches!(
            control,
            Some(TransactionControl::Begin | TransactionControl::BeginReadOnly | TransactionControl::BeginOther)
        );
        Ok((begins && self.server.is_none() && self.status == TransactionStatus::Idle).then_some(Way::Begin))
    }

    /// The plan for an execution, from what is known now.
    pub(super) async fn plan(&mut self, execution: &Execution<'_>) -> Result<Plan, Error> {
        self.plan_knowing(execution, None).await
    }

    pub(super) async fn plan_knowing(
        &mut self,
        execution: &Execution<'_>,
        unstreamed: Option<Unstreamed>,
    ) -> Result<Plan, Error> {
        self.db.wait_for_catalogs().await?;
        let catalog = self.db.catalog.current();
        let shards = self.db.shard_catalog.as_ref().map(|handle| handle.current());
        let bound = execution.bind.map(|(_, bind)| Bound {
            types: execution.types,
            formats: &bind.formats,
            values: &bind.values,
            result_formats: &bind.result_formats,
        });
        let Ok(text) = std::str::from_utf8(execution.text) else {
            // Only where no byte can be misread may a statement go anywhere but to the primary.
            return self.plan_of_foreign_text(execution.facts);
        };
        let plan = self.decide(execution.facts, text, &catalog, shards.as_deref(), bound.as_ref(), unstreamed);
        let plan = self.judged_within(plan);
        let is_known_whole =
            || self.db.unsplit.has(catalog.version, execution.facts.fingerprint, &self.effective_role());
        if matches!(plan, Plan::Split(_)) && is_known_whole() {
            let text = "an earlier run showed that PostgreSQL does not take it in parts";
            return Ok(Plan::Primary(crate::plan::Reason { code: "partitions-refused", text: text.into() }));
        }
        let is_read = matches!(plan, Plan::Primary(_) | Plan::Replica(_) | Plan::Cached(_));
        if is_read && self.db.writes_unseen(execution.facts.fingerprint) {
            return Ok(Plan::Primary(crate::plan::Reason {
                code: "writes-unseen",
                text: "an earlier run in a READ ONLY transaction showed that it writes".into(),
            }));
        }
        Ok(plan)
    }

    /// A text that is not UTF-8: nothing in it can be compared with the names of sharded tables.
    fn plan_of_foreign_text(&self, _facts: &Facts) -> Result<Plan, Error> {
        if !self.db.config.is_distributed() {
            return Ok(Plan::Primary(crate::plan::Reason { code: "encoding", text: "the text is not UTF-8".into() }));
        }
        Err(Error::refused("a statement that is not UTF-8 cannot be planned in a database with sharded tables")
            .hint("Use client_encoding = UTF8."))
    }

    fn decide(
        &self,
        facts: &Facts,
        text: &str,
        catalog: &Catalog,
        shards: Option<&Catalog>,
        bound: Option<&Bound<'_>>,
        unstreamed: Option<Unstreamed>,
    ) -> Plan {
        let coordinator = self.db.coordinator_catalog.as_ref().map(|handle| handle.current());
        let partitions = self.db.config.split_scans.and_then(|_| self.db.catalog.partitions());
        self.seen_by(&self.effective_role(), catalog, text, |view| {
            rules::decide(&Input {
                facts,
                text,
                session: view,
                catalog: (catalog.version > 0).then_some(catalog),
                database: &self.db.config,
                cache: &self.db.cache_config,
                fanout: &self.db.fanout,
                shards,
                bound,
                coordinator: coordinator.as_deref().or(Some(catalog)).filter(|catalog| catalog.version > 0),
                unstreamed,
                partitions: partitions.as_deref(),
            })
        })
    }

    /// What a plan may ask of the session, as that role on the server of that catalog.
    pub(super) fn seen_by<T>(
        &self,
        role: &str,
        catalog: &Catalog,
        text: &str,
        judge: impl FnOnce(&SessionView<'_>) -> T,
    ) -> T {
        let search_path = self.search_path(catalog, role);
        let listed_path = self.listed_path(role);
        let encoding = self.setting("client_encoding").unwrap_or_else(|| "UTF8".into());
        judge(&SessionView {
            role,
            search_path: &search_path,
            listed_path: listed_path.as_deref().unwrap_or_default(),
            path_is_known: listed_path.is_some(),
            in_transaction: self.transaction_view(),
            pinned: self.pins.any() || self.mode == crate::config::model::PoolMode::Session,
            server_attached: self.server.is_some(),
            has_temporary_objects: self.pins.has(super::pin::Pin::Temporary),
            read_only: self.read_only,
            standard_conforming_strings: self.conforming_strings(),
            same_encoding: Some(&*encoding) == self.reported_at_login("server_encoding").as_deref(),
            text_is_plain: text.is_ascii() || !DECEPTIVE_ENCODINGS.contains(&&*encoding),
        })
    }

    /// Where the transaction stands, as far as a plan must know.
    pub(super) fn transaction_view(&self) -> Transaction {
        match self.status {
            TransactionStatus::Failed => Transaction::Failed,
            _ if !self.can_plan_by_settings() => Transaction::Written,
            _ if self.is_isolated() => Transaction::Isolated,
            TransactionStatus::Idle => Transaction::Outside,
            TransactionStatus::InTransaction if self.written => Transaction::Written,
            TransactionStatus::InTransaction => Transaction::VirginReadCommitted,
        }
    }

    /// Whether the transaction has one snapshot for all of its statements.
    pub(super) fn is_isolated(&self) -> bool {
        self.isolated || self.setting_at_begin("default_transaction_isolation").as_deref() != Some("read committed")
    }

    async fn way_of_replica(&mut self) -> Result<Way, Error> {
        Ok(match self.fresh_replica().await {
            Some(target) => Way::ReadOnly(target),
            None => Way::Relay(Target::Primary),
        })
    }

    /// A read on the primary that calls code of a user's runs READ ONLY: nothing else would show that it writes. Within a
    /// transaction it is put down as a write instead.
    pub(super) fn way_of_primary(&mut self, execution: &Execution<'_>) -> Result<Way, Error> {
        let unbound = execution.bind.is_none() && self.in_extended;
        let alone = self.server.is_none() && self.status == TransactionStatus::Idle && execution.max_rows == 0;
        let is_read = execution.facts.single().is_some_and(|statement| {
            statement.class == Class::Read && !statement.locks_rows && statement.effects.is_empty()
        });
        let guarded = alone && is_read && !unbound && self.db.cache.is_some() && self.trusts_user_code(execution.facts);
        if guarded && !self.db.writes_unseen(execution.facts.fingerprint) {
            Ok(Way::ReadOnly(Target::Primary))
        } else {
            self.target_of_primary(execution).map(Way::Relay)
        }
    }

    /// Whether a statement calls code of a user's that says it does not write.
    pub(super) fn trusts_user_code(&mut self, facts: &SharedFacts) -> bool {
        self.written_by(facts).trusts_code
    }

    pub(super) fn way_of_fan_out(&self, way: Way) -> Result<Way, Error> {
        if self.is_mid_flight() {
            return Err(Error::refused("a statement over several shards cannot stand in the middle of a pipeline")
                .hint("Send Sync before it."));
        }
        Ok(way)
    }

    /// Whether the server held has a pipeline open, whose order an answer of pgherd's own would break.
    pub(super) fn is_mid_flight(&self) -> bool {
        self.server.as_ref().is_some_and(|attached| attached.lease.is_unsynced())
    }
}

impl super::Prepared {
    /// The statement's text.
    pub(super) fn text(&self) -> Bytes {
        self.text.clone()
    }

    /// Parameter types: as a server told them where it has been asked, else as declared. What a server told of types that users
    /// made holds there alone: others have other oids for them, and find them out from the text as it did.
    pub(super) fn known_types(&self) -> Vec<u32> {
        let declared = |at: usize| self.types.get(at).copied().unwrap_or(0);
        let known = |(at, told)| if told < FIRST_USER_OID { told } else { declared(at) };
        match self.told.parameters() {
            Some(told) => told.iter().copied().enumerate().map(known).collect(),
            None => self.types.clone(),
        }
    }
}

/// Whether some of it could not be read.
pub(super) fn is_unread(facts: &Facts) -> bool {
    facts.statements.iter().any(|statement| statement.class == Class::Opaque)
}

pub(super) fn aborted() -> Error {
    Error::new(
        ErrorKind::Refused,
        SqlState::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}
