//! What a transaction may have written: put in doubt before a byte is sent that can lead to a commit, settled when its
//! outcome is known.

use std::sync::Arc;

use super::Session;
use super::context::Target;
use super::memo::Written;
use super::relocate::leaves_nothing;
use crate::cache::{BackendId, Doubt, ResultCache, WriteSetView};
use crate::catalog::model::Catalog;
use crate::error::Error;
use crate::plan::{WriteSet, rules};
use crate::sql::facts::{Class, Facts, SharedFacts, TransactionControl};
use crate::wire::writer::TransactionStatus;

/// The writes of one transaction on one server.
#[derive(Debug)]
pub(super) struct Writes {
    /// What has been sent and is not in doubt yet.
    pending: WriteSet,
    /// The oldest version of the catalog that any of `pending` was computed from.
    computed_from: u64,
    /// The mark on what is in doubt.
    doubt: Option<Doubt>,
    /// A statement was sent that may end the transaction itself.
    may_commit: bool,
    /// A statement was sent that may change the catalog.
    pub(super) ddl: bool,
}

impl Default for Writes {
    fn default() -> Self {
        Self { pending: WriteSet::default(), computed_from: u64::MAX, doubt: None, may_commit: false, ddl: false }
    }
}

impl Writes {
    /// Whether anything was written that the cache must hear of.
    pub(super) fn any(&self) -> bool {
        self.doubt.is_some() || !self.pending.is_empty()
    }

    /// Puts what is pending in doubt, as written by that server process.
    async fn raise(&mut self, cache: &ResultCache, backend: BackendId) -> Result<(), Error> {
        let version = std::mem::replace(&mut self.computed_from, u64::MAX);
        let doubt = self.doubt.get_or_insert_with(|| cache.epochs().open(backend));
        let pending = std::mem::take(&mut self.pending);
        let raised = doubt
            .raise(&WriteSetView {
                database: pending.database,
                catalog: pending.catalog,
                relations: &pending.relations,
                catalog_version: version,
            })
            .await;
        if raised.is_err() {
            // What could not be put in doubt is not forgotten: the transaction may still try to commit.
            self.pending.add(&pending);
            self.computed_from = version;
        }
        raised
    }
}

/// The writes of one transaction, by server: each answers for its own.
#[derive(Debug, Default)]
pub(super) struct AllWrites {
    /// On the primary.
    pub(super) primary: Writes,
    shards: Vec<(usize, Writes)>,
}

impl AllWrites {
    fn on(&mut self, target: Target) -> &mut Writes {
        let Target::Shard(shard) = target else { return &mut self.primary };
        let at = self.shards.iter().position(|(known, _)| *known == shard).unwrap_or_else(|| {
            self.shards.push((shard, Writes::default()));
            self.shards.len() - 1
        });
        &mut self.shards[at].1
    }

    fn known_on(&mut self, target: Target) -> Option<&mut Writes> {
        match target {
            Target::Shard(shard) => self.shards.iter_mut().find(|(known, _)| *known == shard).map(|(_, writes)| writes),
            _ => Some(&mut self.primary),
        }
    }

    /// What was written there, which is then no longer among them.
    fn take(&mut self, target: Target) -> Writes {
        self.known_on(target).map(std::mem::take).unwrap_or_default()
    }
}

impl Session {
    /// Notes what a statement that is about to run may write.
    pub(super) async fn note_writes(&mut self, facts: &SharedFacts) -> Result<(), Error> {
        if !self.db.is_planned() {
            return Ok(());
        }
        let target = self.db.written_at(self.flight_target.unwrap_or_else(|| self.default_target()));
        if let Target::Shard(shard) = target
            && self.db.shard_catalog.is_some()
        {
            return match self.note_writes_on_shard(shard, facts)? {
                true => self.before_commit().await,
                false => Ok(()),
            };
        }
        let catalog_version = self.db.catalog.version();
        let written = self.written_by(facts);
        if written.changes_session
            && let Some(server) = self.held_server()
        {
            server.dirty = true;
        }
        let nothing = WriteSet::default();
        let set = written.set.as_deref().unwrap_or(&nothing);
        let mut database = set.database;
        database |= finishes_prepared(facts) || self.db.writes_unseen(facts.fingerprint);
        let class = facts.class();
        // Not alone in a READ ONLY transaction, which would have shown what it does.
        database |= class == Class::Read && self.db.cache.is_some() && written.trusts_code;
        let writes_any = database || !set.is_empty();
        self.written |= class >= Class::CopyIn || writes_any;
        if self.db.cache.is_some() && self.spans_servers() && writes_any {
            return Err(writes_on_both());
        }
        let writes = &mut self.writes.get_or_insert_default().primary;
        writes.may_commit |= matches!(class, Class::Transaction(_) | Class::Opaque) || facts.statements.len() > 1;
        writes.ddl |= set.catalog;
        if self.db.cache.is_some() {
            writes.pending.add(set);
            writes.pending.database |= database;
            writes.computed_from = writes.computed_from.min(catalog_version);
        }
        if writes.may_commit || class == Class::Utility {
            // COMMIT, CALL, DO and VACUUM commit as they run: their Execute is enough, a Flush sends it.
            self.before_commit().await?;
        }
        Ok(())
    }

    /// Notes what a statement writes on the primary that pgherd runs itself, in a transaction that it may end itself.
    pub(super) async fn note_writes_of_own(&mut self, facts: &SharedFacts) -> Result<(), Error> {
        let target = self.flight_target.replace(Target::Primary);
        let noted = self.note_writes(facts).await;
        self.flight_target = target;
        noted?;
        if let Some(writes) = &mut self.writes {
            writes.primary.may_commit = true;
        }
        self.before_commit().await
    }

    /// Notes what a statement may write on a shard. Returns whether that may be committed as it runs.
    ///
    /// # Errors
    /// The shard's answers are cached, and what the statement does cannot be followed.
    pub(super) fn note_writes_on_shard(&mut self, shard: usize, facts: &SharedFacts) -> Result<bool, Error> {
        let role = self.effective_role();
        let Some(known) = self.db.shard_caches.get(shard) else {
            // Nothing that lies on the shards is cached, so nobody has to be told.
            let Some(shards) = &self.db.shard_catalog else { return Ok(false) };
            let catalog = shards.current();
            let search_path = self.search_path(&catalog, &role);
            self.written |= !rules::write_set(facts, &catalog, &search_path).is_empty();
            return Ok(false);
        };
        let class = facts.class();
        if facts.statements.iter().any(|it| it.class == Class::Transaction(TransactionControl::Prepare)) {
            return Err(prepared_on_shard());
        }
        let catalog = known.catalog.current();
        let is_unknown = catalog.version == 0 || !self.names_are_certain();
        let search_path = self.search_path(&catalog, &role);
        let set = if is_unknown { everything(class) } else { self.write_set(facts, &catalog, &search_path) };
        self.written |= !set.is_empty();
        // As on the primary: a read that is not alone in a READ ONLY transaction does not show what it does.
        let runs_code = class == Class::Read && (is_unknown || rules::trusts_user_code(facts, &catalog, &search_path));
        let database = runs_code || finishes_prepared(facts) || self.db.writes_unseen(facts.fingerprint);
        let writes = self.writes.get_or_insert_default().on(Target::Shard(shard));
        writes.may_commit |= matches!(class, Class::Transaction(_) | Class::Opaque) || facts.statements.len() > 1;
        writes.ddl |= set.catalog;
        writes.pending.add(&set);
        writes.pending.database |= database;
        writes.computed_from = writes.computed_from.min(catalog.version);
        Ok(writes.may_commit || class == Class::Utility)
    }

    /// Notes what a statement writes on several shards, in a transaction that does not end with it.
    pub(super) fn note_writes_on_shards(
        &mut self,
        shards: impl Iterator<Item = usize>,
        facts: &SharedFacts,
    ) -> Result<(), Error> {
        for shard in shards {
            self.note_writes_on_shard(shard, facts)?;
        }
        Ok(())
    }

    /// What a statement may write, by facts, catalog and search path.
    pub(super) fn written_by(&mut self, facts: &SharedFacts) -> Written {
        let catalog = self.db.catalog.current();
        let only_sets = || self.db.config.is_distributed() && facts.statements.iter().all(leaves_nothing);
        if catalog.version > 0 && !self.names_are_certain() && only_sets() {
            return Written::default();
        }
        if catalog.version == 0 || !self.names_are_certain() {
            return Written {
                set: Some(Arc::new(everything(facts.class()))),
                changes_session: false,
                trusts_code: true,
            };
        }
        self.turn_to_memory(catalog.version);
        if let Some(known) = self.memo.written(facts.fingerprint) {
            return known;
        }
        let role = self.effective_role();
        let search_path = self.search_path(&catalog, &role);
        let set = self.write_set(facts, &catalog, &search_path);
        let written = Written {
            trusts_code: rules::trusts_user_code(facts, &catalog, &search_path),
            set: (!set.is_empty()).then(|| Arc::new(set)),
            changes_session: rules::may_change_session(facts, &catalog, &search_path),
        };
        self.memo.note_written(facts.fingerprint, &written);
        written
    }

    fn write_set(&self, facts: &Facts, catalog: &Catalog, search_path: &[Box<str>]) -> WriteSet {
        #[cfg(feature = "faults")]
        if self.db.cache.as_ref().is_some_and(|cache| cache.ignores_cascades()) {
            return rules::named_only(facts, catalog, search_path);
        }
        rules::write_set(facts, catalog, search_path)
    }

    /// Notes that something is about to run that may write anything.
    pub(super) async fn note_opaque_write(&mut self) -> Result<(), Error> {
        self.written = true;
        self.transaction_has_worked();
        let target = self.db.written_at(self.default_target());
        let is_cached = self.cache_at(target).is_some();
        let writes = self.writes.get_or_insert_default().on(target);
        writes.pending.database |= is_cached;
        writes.may_commit = true;
        self.before_commit().await
    }

    /// The cache of what lies on that server.
    fn cache_at(&self, target: Target) -> Option<&Arc<ResultCache>> {
        match target {
            Target::Shard(shard) => self.db.shard_caches.get(shard).map(|known| &known.cache),
            _ => self.db.cache.as_ref(),
        }
    }

    /// Puts what was written on the server at hand in doubt, if what is sent next can lead to a commit there.
    pub(super) async fn before_commit(&mut self) -> Result<(), Error> {
        let is_inside = self.status == TransactionStatus::InTransaction;
        let (Some(all), Some(attached)) = (&mut self.writes, &self.server) else { return Ok(()) };
        let target = self.db.written_at(attached.target);
        let can_commit = |writes: &&mut Writes| !writes.pending.is_empty() && (!is_inside || writes.may_commit);
        if all.known_on(target).filter(can_commit).is_none() {
            return Ok(());
        }
        let Some(cache) = self.cache_at(target).cloned() else { return Ok(()) };
        let Some(server) = self.held_server() else { return Ok(()) };
        let backend = BackendId { pid: server.pid, start_us: server.backend_start_us };
        let raised = self.writes.get_or_insert_default().on(target).raise(&cache, backend).await;
        if raised.is_err() && self.held_server().is_none_or(|server| server.is_at_rest()) {
            // Nothing at all has been sent, so there is nothing to be in doubt about.
            self.settle_writes_on(target);
        }
        raised
    }

    /// Puts what the transaction has written in doubt on all of its servers: nothing has been sent that could commit on any.
    pub(super) async fn before_commit_everywhere(&mut self) -> Result<(), Error> {
        let Some(mut all) = self.writes.take() else { return Ok(()) };
        let mut processes = Vec::new();
        let others = self.span.iter_mut().flat_map(|span| span.others.iter_mut());
        for attached in self.server.iter_mut().chain(others) {
            let target = self.db.written_at(attached.target);
            let server = attached.lease.server();
            processes.push((target, BackendId { pid: server.pid, start_us: server.backend_start_us }));
        }
        let mut raised = Ok(());
        for (target, backend) in processes {
            let writes = all.known_on(target).filter(|writes| !writes.pending.is_empty());
            if let (Some(writes), Some(cache), true) = (writes, self.cache_at(target), raised.is_ok()) {
                raised = writes.raise(cache, backend).await;
            }
        }
        self.writes = Some(all);
        raised
    }

    /// All that was sent has been answered and the transaction is still open: nothing of it can commit before more is sent.
    pub(super) fn transaction_goes_on(&mut self) {
        let target = self.db.written_at(self.default_target());
        if let Some(writes) = self.writes.as_mut().and_then(|all| all.known_on(target)) {
            writes.may_commit = false;
        }
    }

    /// The server at hand was lost before it said how the transaction ended: the doubt stays until its process is gone.
    pub(super) fn abandon_writes(&mut self) {
        let target = self.db.written_at(self.default_target());
        if let Some(all) = &mut self.writes {
            drop(all.take(target));
        }
    }

    /// The transaction has ended, and the server at hand has said so. It is the only one, or others would have been told.
    pub(super) fn settle_writes(&mut self) {
        if self.writes.is_none() {
            return;
        }
        self.settle_writes_on(self.db.written_at(self.default_target()));
        self.writes = None;
    }

    /// A transaction has ended on that server, and the server has said so.
    pub(super) fn settle_writes_on(&mut self, target: Target) {
        let Some(all) = &mut self.writes else { return };
        let writes = all.take(target);
        self.settle(writes);
    }

    /// A transaction over several servers has ended. On those that are named it is not known how, or nobody may see it yet: there the
    /// doubt stays until the server process is gone, with all that it has prepared.
    pub(super) fn settle_all_but(&mut self, all: AllWrites, unknown: &[Target]) {
        let AllWrites { primary, shards } = all;
        let shards = shards.into_iter().map(|(shard, writes)| (Target::Shard(shard), writes));
        for (target, writes) in std::iter::once((Target::Primary, primary)).chain(shards) {
            if !unknown.contains(&target) {
                self.settle(writes);
            }
        }
    }

    fn settle(&self, writes: Writes) {
        if let Some(doubt) = writes.doubt {
            doubt.settle();
        }
        if writes.ddl {
            self.db.catalog_may_have_changed();
        }
    }
}

/// The doubt about what was written on the primary ends with its process, and a prepared transaction outlives that.
fn writes_on_both() -> Error {
    Error::refused(
        "a write on the primary of a database whose answers are cached, in a transaction over several servers",
    )
    .hint("Write on the primary in a transaction of its own, or set database.cache = false.")
}

/// It would be finished by whoever names it, on the primary or past pgherd.
fn prepared_on_shard() -> Error {
    Error::refused("PREPARE TRANSACTION on a shard whose answers are cached")
        .hint("Use COMMIT, or set cache.shards = false.")
}

/// Whether it ends a prepared transaction, which may have written anything.
fn finishes_prepared(facts: &Facts) -> bool {
    let finishes = Class::Transaction(TransactionControl::FinishPrepared);
    facts.statements.iter().any(|statement| statement.class == finishes)
}

/// The writes of a statement that nothing is known of but its class.
fn everything(class: Class) -> WriteSet {
    let harmless = matches!(
        class,
        Class::Empty | Class::Show | Class::ExplainRoute | Class::Session | Class::Transaction(_) | Class::CopyOut
    );
    WriteSet { database: !harmless, catalog: class >= Class::Ddl, relations: Vec::new() }
}
