//! Foreign keys of tables on the shards: allowed where every shard has the rows that its own rows refer to.

use sqlparser::ast::{ColumnDef, ColumnOption, ForeignKeyConstraint, Ident, ReferentialAction};

use super::model::Input;
use super::named::{self, configured};
use super::refuse::refuse;
use crate::catalog::model::{Column, DefaultKind, Relation};
use crate::config::model::{Distribution, Table};
use crate::plan::Refusal;
use crate::plan::shard_key::Layout;
use crate::sql::type_name;

/// The table that gets the foreign key, and its columns where it is being made.
#[derive(Clone, Copy)]
pub(super) struct Child<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) table: &'a Table,
    pub(super) columns: Option<&'a [ColumnDef]>,
}

fn refused(message: String, hint: impl Into<String>) -> Refusal {
    refuse("foreign-key", message, hint)
}

/// Why a table of the primary does not refer to one of the shards.
pub(super) fn from_primary(child: &str, parent: &str) -> Refusal {
    let message = format!(
        "a foreign key from {child}, which is not on the shards, to {parent}, which is: the primary has none of the rows that it would look for"
    );
    let hint =
        format!("make {child} a sharded or reference table as well (database.table), or leave the foreign key out");
    refused(message, hint)
}

impl Child<'_> {
    /// Judges a foreign key of these columns; none where it stands in a column's own definition, which is `own` then.
    ///
    /// # Errors
    /// A shard need not have the rows that it refers to, or an action of it would change a shard key.
    pub(super) fn judge(&self, key: &ForeignKeyConstraint, own: Option<&Ident>) -> Result<(), Refusal> {
        let child = named::of(self.table);
        let Some(parent) = configured(self.input, &key.foreign_table)? else {
            let parent = &key.foreign_table;
            let message = format!(
                "a foreign key from {child}, which is on the shards, to {parent}, which is no table of theirs by this name"
            );
            let hint = "make it a reference table, so that every shard has its rows, or leave the foreign key out; where it is one, write its schema";
            return Err(refused(message, hint));
        };
        let columns: Vec<&str> = match own {
            Some(own) => vec![&own.value],
            None => key.columns.iter().map(|column| column.value.as_str()).collect(),
        };
        self.check_actions(key, &columns, parent)?;
        if parent.distribution == Distribution::Reference {
            return Ok(());
        }
        let name = named::of(parent);
        if self.table.distribution == Distribution::Reference {
            let message = format!(
                "a foreign key from the reference table {child} to the sharded table {name}: each shard has all rows of the one, and a part of the other's"
            );
            let hint =
                format!("shard {child} by the columns that refer to {name}'s shard key, or leave the foreign key out");
            return Err(refused(message, hint));
        }
        let mut keys = self.table.distribution.key().iter().zip(parent.distribution.key());
        let referred = self.referred(key, parent)?;
        let pairs = |(own, theirs): (&String, &String)| {
            columns.iter().zip(&referred).any(|(column, referred)| **column == **own && **referred == **theirs)
        };
        let has_all = self.table.distribution.key().len() == parent.distribution.key().len();
        if !has_all || !keys.all(pairs) {
            let message = format!(
                "a foreign key from {child} to {name} that does not pair their shard keys: the row that is referred to may be on another shard"
            );
            let (own, theirs) = (self.table.distribution.key().join(", "), parent.distribution.key().join(", "));
            let hint = format!(
                "refer by the shard key as well: FOREIGN KEY ({own}, ...) REFERENCES {name} ({theirs}, ...), which takes a unique constraint on these"
            );
            return Err(refused(message, hint));
        }
        if self.lies_with(parent) {
            return Ok(());
        }
        let message = format!(
            "a foreign key from {child} to {name}, whose rows with equal shard keys need not be on the same shard"
        );
        let hint = "let both have the same method, bounds, and types and collations of their shard keys (database.table.group), or leave the foreign key out";
        Err(refused(message, hint))
    }

    /// A row whose shard key an action changes would be on the wrong shard. Where the keys are paired the parent's stays as it is.
    fn check_actions(&self, key: &ForeignKeyConstraint, columns: &[&str], parent: &Table) -> Result<(), Refusal> {
        if !self.table.distribution.key().iter().any(|key| columns.contains(&key.as_str())) {
            return Ok(());
        }
        let resets = |action| matches!(action, Some(ReferentialAction::SetNull | ReferentialAction::SetDefault));
        let cascades =
            key.on_update == Some(ReferentialAction::Cascade) && parent.distribution == Distribution::Reference;
        let action = if resets(key.on_delete) {
            "ON DELETE SET NULL or SET DEFAULT"
        } else if resets(key.on_update) {
            "ON UPDATE SET NULL or SET DEFAULT"
        } else if cascades {
            "ON UPDATE CASCADE"
        } else {
            return Ok(());
        };
        let message = format!(
            "a foreign key of {} with {action} on its shard key: rows would stay on a shard where they no longer belong",
            named::of(self.table)
        );
        Err(refused(message, "use ON DELETE CASCADE, RESTRICT or NO ACTION, or leave the shard key out of it"))
    }

    /// The columns that are referred to: the primary key where the text does not say.
    fn referred(&self, key: &ForeignKeyConstraint, parent: &Table) -> Result<Vec<String>, Refusal> {
        if !key.referred_columns.is_empty() {
            return Ok(key.referred_columns.iter().map(|column| column.value.clone()).collect());
        }
        match self.relation(parent) {
            Some(relation) => Ok(relation.primary_key.iter().map(ToString::to_string).collect()),
            None => {
                let name = named::of(parent);
                let message = format!("a foreign key to {name}, of which it is not known yet what its primary key is");
                Err(refused(message, "name the columns that it refers to"))
            }
        }
    }

    fn relation(&self, table: &Table) -> Option<&Relation> {
        self.input.catalog.relation(&table.schema, &table.name).map(|relation| &**relation)
    }

    /// Whether rows of the two with equal shard keys lie on one shard.
    fn lies_with(&self, parent: &Table) -> bool {
        if (&self.table.schema, &self.table.name) == (&parent.schema, &parent.name) {
            return true;
        }
        let Some(relation) = self.relation(parent) else { return false };
        let made;
        let own = match self.columns {
            None => self.relation(self.table),
            Some(columns) => {
                let columns = columns.iter().filter_map(|column| self.column(column)).collect();
                made = Relation { columns, ..relation.clone() };
                Some(&made)
            }
        };
        let layout = |table: &Table, relation: &Relation| {
            Layout::new(table, relation, self.input.catalog, self.input.database.shards.len())
        };
        let both = own.and_then(|own| Some((layout(self.table, own)?, layout(parent, relation)?)));
        both.is_some_and(|(own, theirs)| own.is_colocated(&theirs))
    }

    /// A column of PostgreSQL's own types as it will be; `None` where that cannot be told.
    fn column(&self, column: &ColumnDef) -> Option<Column> {
        if column.options.iter().any(|it| matches!(it.option, ColumnOption::Collation(_))) {
            return None;
        }
        let name = type_name(&column.data_type).filter(|name| name.schema.is_none())?;
        let types = &self.input.catalog.types;
        let (oid, known) = types.iter().find(|(_, it)| it.name == name.name && &*it.schema == "pg_catalog")?;
        Some(Column {
            name: column.name.value.as_str().into(),
            type_oid: *oid,
            typmod: -1,
            collation: known.collation,
            not_null: false,
            has_default: false,
            is_generated: false,
            default: DefaultKind::None,
            moment: None,
        })
    }
}
