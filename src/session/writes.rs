//! What a transaction may have written: put in doubt before a byte is sent that can lead to a commit, settled when its
//! outcome is known.

use std::sync::Arc;

use super::Session;
use super::context::Target;
use super::memo::Written;
use crate::cache::{BackendId, Doubt, WriteSetView};
use crate::catalog::model::Catalog;
use crate::error::Error;
use crate::plan::{WriteSet, rules};
use crate::sql::facts::{Class, Facts, SharedFacts, TransactionControl};
use crate::wire::writer::TransactionStatus;

/// The writes of one transaction.
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
}

impl Session {
    /// Notes what a statement that is about to run may write.
    pub(super) async fn note_writes(&mut self, facts: &SharedFacts) -> Result<(), Error> {
        if !self.db.is_planned() {
            return Ok(());
        }
        let target = self.flight_target.unwrap_or_else(|| self.default_target());
        if let (Target::Shard(_), Some(shards)) = (target, &self.db.shard_catalog) {
            // Nothing that lies on the shards is cached, so nobody has to be told.
            let catalog = shards.current();
            let role = self.effective_role();
            let search_path = self.search_path(&catalog, &role);
            self.written |= !rules::write_set(facts, &catalog, &search_path).is_empty();
            return Ok(());
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
        let finishes_prepared = Class::Transaction(TransactionControl::FinishPrepared);
        if facts.statements.iter().any(|statement| statement.class == finishes_prepared)
            || self.db.writes_unseen(facts.fingerprint)
        {
            database = true;
        }
        let class = facts.class();
        // Not alone in a READ ONLY transaction, which would have shown what it does.
        database |= class == Class::Read && self.db.cache.is_some() && written.trusts_code;
        let writes_any = database || !set.is_empty();
        self.written |= class >= Class::CopyIn || writes_any;
        if self.db.cache.is_some() && self.spans_servers() && writes_any {
            return Err(writes_on_both());
        }
        let writes = self.writes.get_or_insert_default();
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
            writes.may_commit = true;
        }
        self.before_commit().await
    }

    /// What a statement may write, by facts, catalog and search path.
    pub(super) fn written_by(&mut self, facts: &SharedFacts) -> Written {
        let catalog = self.db.catalog.current();
        if catalog.version == 0 || self.settings.is_uncertain() {
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
        let writes = self.writes.get_or_insert_default();
        writes.pending.database |= self.db.cache.is_some();
        writes.may_commit = true;
        self.before_commit().await
    }

    /// Puts what was written in doubt, if what is sent next can lead to a commit.
    pub(super) async fn before_commit(&mut self) -> Result<(), Error> {
        let is_inside = self.status == TransactionStatus::InTransaction;
        let can_commit = |writes: &Writes| !writes.pending.is_empty() && (!is_inside || writes.may_commit);
        if !self.writes.as_deref().is_some_and(can_commit) {
            return Ok(());
        }
        let Some(cache) = self.db.cache.clone() else { return Ok(()) };
        let Some(server) = self.held_server() else { return Ok(()) };
        let backend = BackendId { pid: server.pid, start_us: server.backend_start_us };
        let writes = self.writes.get_or_insert_default();
        let version = std::mem::replace(&mut writes.computed_from, u64::MAX);
        let doubt = writes.doubt.get_or_insert_with(|| cache.epochs().open(backend));
        let pending = std::mem::take(&mut writes.pending);
        let raised = doubt
            .raise(&WriteSetView {
                database: pending.database,
                catalog: pending.catalog,
                relations: &pending.relations,
                catalog_version: version,
            })
            .await;
        if raised.is_err() {
            self.keep_unmarked(pending, version);
        }
        raised
    }

    /// What could not be put in doubt is not forgotten: the transaction may still try to commit. Where nothing at all has
    /// been sent there is nothing to be in doubt about.
    fn keep_unmarked(&mut self, pending: WriteSet, version: u64) {
        if self.held_server().is_none_or(|server| server.is_at_rest()) {
            self.settle_writes();
            return;
        }
        let writes = self.writes.get_or_insert_default();
        writes.pending.add(&pending);
        writes.computed_from = writes.computed_from.min(version);
    }

    /// All that was sent has been answered and the transaction is still open: nothing of it can commit before more is sent.
    pub(super) fn transaction_goes_on(&mut self) {
        if let Some(writes) = &mut self.writes {
            writes.may_commit = false;
        }
    }

    /// The server was lost before it said how the transaction ended: the doubt stays until its process is gone.
    pub(super) fn abandon_writes(&mut self) {
        self.writes = None;
    }

    /// A transaction has ended, and the server has said so.
    pub(super) fn settle_writes(&mut self) {
        let Some(writes) = self.writes.take() else { return };
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

/// The writes of a statement that nothing is known of but its class.
fn everything(class: Class) -> WriteSet {
    let harmless = matches!(
        class,
        Class::Empty | Class::Show | Class::ExplainRoute | Class::Session | Class::Transaction(_) | Class::CopyOut
    );
    WriteSet { database: !harmless, catalog: class >= Class::Ddl, relations: Vec::new() }
}
