//! Triggers that may change the shard key of a row which a shard has been given: the row would be stored where nobody looks for it.

use sqlparser::ast::{Insert, OnConflictAction, OnInsert, Statement};

use super::analysis::table;
use super::functions::Functions;
use super::model::Input;
use super::refuse::refuse;
use crate::catalog::model::{Assigns, Relation, RelationKind, RowTrigger};
use crate::plan::Refusal;

/// What a statement does to rows, as far as triggers tell it apart.
#[derive(Debug, Clone, Copy)]
struct Fires {
    inserts: bool,
    updates: bool,
    deletes: bool,
}

impl Fires {
    /// What a write to `relation` does there.
    fn of(tree: &Statement, relation: &Relation) -> Self {
        let none = Self { inserts: false, updates: false, deletes: false };
        match tree {
            Statement::Insert(insert) => Self { inserts: true, updates: updates_on_conflict(insert), deletes: false },
            // A row that moves from partition to partition is inserted there.
            Statement::Update(_) => {
                Self { inserts: relation.kind == RelationKind::PartitionedTable, updates: true, deletes: false }
            }
            Statement::Delete(_) => Self { deletes: true, ..none },
            _ => Self { inserts: true, updates: true, deletes: true },
        }
    }

    /// What it does to rows that refer to those which it writes: foreign keys update them in turn, if anything.
    fn in_turn(self) -> Self {
        Self { inserts: false, updates: self.updates || self.deletes, deletes: false }
    }

    fn fire(self, trigger: &RowTrigger) -> bool {
        (self.inserts && trigger.on_insert) || (self.updates && trigger.on_update)
    }
}

fn updates_on_conflict(insert: &Insert) -> bool {
    let Some(OnInsert::OnConflict(conflict)) = &insert.on else { return insert.on.is_some() };
    matches!(conflict.action, OnConflictAction::DoUpdate(_))
}

/// Whether a write to a sharded table leaves all rows on their shards, whatever triggers it fires there.
///
/// # Errors
/// A trigger of the table, of a partition, or of a table that a foreign key's action changes may assign the shard key.
pub(super) fn check(input: &Input<'_>, tree: &Statement, relation: &Relation) -> Result<(), Refusal> {
    let written = || relation.writes.iter().filter_map(|oid| input.catalog.relations.get(oid));
    if written().all(|each| each.row_triggers.is_empty()) {
        return Ok(());
    }
    let functions = Functions { catalog: input.catalog, pure_functions: input.pure_functions };
    let own = Fires::of(tree, relation);
    let keys = |each: &Relation| table(input.database, each).map(|table| table.distribution.key());
    let all_keys: Vec<&String> = written().filter_map(|each| keys(each)).flatten().collect();
    let is_cascading = written().any(|each| each.oid != relation.oid && keys(each).is_some());
    for each in written() {
        let (key, fires) = match keys(each) {
            Some(key) if each.oid == relation.oid => (key.iter().collect(), own),
            Some(key) => (key.iter().collect(), own.in_turn()),
            // A partition, of whichever of them.
            None => (all_keys.clone(), Fires { updates: own.updates || (is_cascading && own.deletes), ..own }),
        };
        let found = each.row_triggers.iter().find(|trigger| {
            fires.fire(trigger)
                && may_assign(trigger, each, &key)
                && !functions.is_declared_trigger(&trigger.schema, &trigger.function)
        });
        if let Some(trigger) = found {
            return Err(refused(trigger, each));
        }
    }
    Ok(())
}

/// Whether the trigger may change a column of the key, be it one that is computed from others.
fn may_assign(trigger: &RowTrigger, relation: &Relation, key: &[&String]) -> bool {
    let is_key = |name: &str| key.iter().any(|column| **column == *name);
    match &trigger.assigns {
        Assigns::Anything => !key.is_empty(),
        Assigns::Columns(columns) => {
            columns.iter().any(|column| is_key(column))
                || relation.columns.iter().any(|column| column.is_generated && is_key(&column.name))
        }
    }
}

fn refused(trigger: &RowTrigger, relation: &Relation) -> Refusal {
    let function = format!("{}.{}()", trigger.schema, trigger.function);
    refuse(
        "trigger",
        format!(
            "the trigger function {function} of \"{}\" may change the shard key, and with it the shard of a row",
            relation.name
        ),
        format!(
            "add \"{function}\" to fanout.pure_functions if it leaves the shard key alone, or write on the shard itself"
        ),
    )
}
