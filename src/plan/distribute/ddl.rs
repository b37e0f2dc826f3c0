//! TRUNCATE and DDL on sharded and reference tables: the same on every shard, if it looks at nothing beyond one.

use std::ops::ControlFlow;

use sqlparser::ast::{
    AlterColumnOperation, AlterTableOperation, ColumnDef, ColumnOption, CreateTable, DataType, Expr,
    ForeignKeyConstraint, Ident, IndexColumn, ObjectName, ObjectType, Statement, TableConstraint, visit_relations,
};

use super::check::{check, says_a_moment};
use super::foreign_key::{self, Child};
use super::functions::Functions;
use super::gather::ctes;
use super::model::{Distributed, Input};
use super::named::{created, existing, first_of_path, meant};
use super::refuse::refuse;
use super::scatter::{Part, Scattered, Tally, finished, quiet};
use super::scope::parts;
use crate::catalog::model::{DefaultKind, Type};
use crate::config::model::Table;
use crate::plan::names::display;
use crate::plan::{Reason, Refusal};
use crate::sql::facts::Name;
use crate::sql::{parse, types};

/// Plans DDL whose tables are on the shards, as `is_on_shards` says; `Elsewhere` if none of them is, or its form is not read.
///
/// # Errors
/// Tables here and there, or a change that one shard alone cannot judge.
pub fn ddl(input: &Input<'_>, is_on_shards: impl Fn(&Name) -> Result<bool, Refusal>) -> Result<Distributed, Refusal> {
    let tree = parse::parse(input.text.as_bytes(), input.session.standard_conforming_strings);
    let Some((tree, names)) = tree.as_ref().and_then(|tree| Some((tree, tables(input, tree)?))) else {
        return Ok(Distributed::Elsewhere);
    };
    let mut on_shards = 0;
    for name in &names {
        on_shards += usize::from(is_on_shards(name)?);
    }
    match on_shards {
        0 => return refers_to_shards(tree, &names, is_on_shards),
        count if count < names.len() => {
            let message = "one statement changes tables of the shards and of the primary";
            return Err(refuse("mixed", message, "send a statement for each"));
        }
        _ => {}
    }
    if !matches!(tree, Statement::CreateView(_)) {
        names.iter().try_for_each(|name| first_of_path(input, name))?;
    }
    judge(input, tree, &names)?;
    let part = |shard| Part { shard, sql: input.text.into(), rows: Vec::new(), is_verbatim: true, more: Vec::new() };
    let parts = (0..input.database.shards.len()).map(part).collect();
    let reason = Reason { code: "ddl", text: "every shard has the table".into() };
    let serial = Some("ddl".into());
    let moments = Vec::new();
    finished(
        input,
        Scattered {
            parts,
            tally: Tally::Alike,
            serial,
            still: Vec::new(),
            moments,
            is_ddl: true,
            reads: false,
            is_on_primary: false,
            reason,
        },
    )
}

/// The tables, views or indexes that it is about; for a view that is made, those that it reads.
fn tables(input: &Input<'_>, tree: &Statement) -> Option<Vec<Name>> {
    match tree {
        Statement::Truncate(truncate) => truncate.table_names.iter().map(|target| existing(&target.name)).collect(),
        Statement::CreateIndex(index) => Some(vec![existing(&index.table_name)?]),
        Statement::Drop { object_type: ObjectType::Table | ObjectType::View | ObjectType::Index, names, .. } => {
            names.iter().map(existing).collect()
        }
        Statement::AlterTable(alter) => Some(vec![existing(&alter.name)?]),
        Statement::CreateTable(create) if !create.temporary => Some(vec![created(input, &create.name)?]),
        Statement::CreateView(create) if !create.materialized && !create.temporary => {
            let ctes = ctes(&create.query);
            let mut names = Vec::new();
            let _ = visit_relations(&create.query, |name| {
                let is_cte = parts(name).is_some_and(|(schema, name)| schema.is_none() && ctes.contains(name));
                names.extend((!is_cte).then(|| existing(name)));
                ControlFlow::<()>::Continue(())
            });
            names.into_iter().collect()
        }
        _ => None,
    }
}

/// Whether a text drops views.
pub fn drops_views(text: &str, standard_conforming_strings: bool) -> bool {
    let tree = parse::parse(text.as_bytes(), standard_conforming_strings);
    matches!(tree, Some(Statement::Drop { object_type: ObjectType::View, .. }))
}

/// The name of the view that a text makes.
pub fn created_view(text: &str, standard_conforming_strings: bool) -> Option<Name> {
    match parse::parse(text.as_bytes(), standard_conforming_strings)? {
        Statement::CreateView(create) => {
            let (schema, name) = parts(&create.name)?;
            Some(Name { schema: schema.map(Into::into), name: name.into() })
        }
        _ => None,
    }
}

fn beyond(what: &str) -> Refusal {
    refuse("ddl", format!("{what} on a sharded or reference table"), "run it on each shard, and pgherd check after it")
}

/// A table of the primary that would refer to one of the shards.
fn refers_to_shards(
    tree: &Statement,
    names: &[Name],
    is_on_shards: impl Fn(&Name) -> Result<bool, Refusal>,
) -> Result<Distributed, Refusal> {
    let of_columns = |columns: &[ColumnDef]| -> Vec<ObjectName> {
        let options = columns.iter().flat_map(|column| &column.options);
        let targets = options.filter_map(|it| match &it.option {
            ColumnOption::ForeignKey(key) => Some(key.foreign_table.clone()),
            _ => None,
        });
        targets.collect()
    };
    let of_constraint = |constraint: &TableConstraint| match constraint {
        TableConstraint::ForeignKey(key) => Some(key.foreign_table.clone()),
        _ => None,
    };
    let targets: Vec<ObjectName> = match tree {
        Statement::CreateTable(create) => {
            let of_constraints = create.constraints.iter().filter_map(of_constraint);
            of_columns(&create.columns).into_iter().chain(of_constraints).collect()
        }
        Statement::AlterTable(alter) => {
            let of_operation = |operation: &AlterTableOperation| match operation {
                AlterTableOperation::AddColumn { column_def, .. } => of_columns(std::slice::from_ref(column_def)),
                AlterTableOperation::AddConstraint { constraint, .. } => {
                    of_constraint(constraint).into_iter().collect()
                }
                _ => Vec::new(),
            };
            alter.operations.iter().flat_map(of_operation).collect()
        }
        _ => Vec::new(),
    };
    for target in targets.iter().filter_map(existing) {
        if is_on_shards(&target)? {
            let child = names.first().map_or_else(String::new, display);
            return Err(foreign_key::from_primary(&child, &display(&target)));
        }
    }
    Ok(Distributed::Elsewhere)
}

fn judge(input: &Input<'_>, tree: &Statement, names: &[Name]) -> Result<(), Refusal> {
    let table = || names.first().map_or(Ok(None), |name| meant(input, name));
    if !matches!(tree, Statement::Truncate(_) | Statement::Drop { .. })
        && says_a_moment(input.text, input.session.standard_conforming_strings)
    {
        let message = "a constant such as 'now' in DDL, which is another moment on each shard";
        return Err(refuse("ddl", message, "write now() or current_date, or a constant of one moment"));
    }
    match tree {
        Statement::Truncate(_) => names.iter().try_for_each(|name| untriggered(input, name)),
        Statement::CreateIndex(index) if index.concurrently => Err(beyond("CREATE INDEX CONCURRENTLY")),
        Statement::CreateIndex(index) if index.unique => unique(key_of(table()?), &index.columns, "a unique index"),
        Statement::AlterTable(alter) => {
            let changed = Changed { input, table: table()?, columns: None };
            alter.operations.iter().try_for_each(|operation| alteration(&changed, operation))
        }
        Statement::CreateTable(create) => {
            creation(&Changed { input, table: table()?, columns: Some(&create.columns) }, create)
        }
        _ => Ok(()),
    }
}

/// Triggers of a statement fire on each shard.
fn untriggered(input: &Input<'_>, name: &Name) -> Result<(), Refusal> {
    let relation = match &name.schema {
        Some(schema) => input.catalog.relation(schema, &name.name),
        None => input.catalog.resolve(input.search_path, &name.name),
    };
    relation.map_or(Ok(()), |relation| quiet(relation))
}

/// The shard key of a table; no column for a reference table.
fn key_of(table: Option<&Table>) -> &[String] {
    table.map_or(&[], |table| table.distribution.key())
}

/// The table that is made or changed.
struct Changed<'a> {
    input: &'a Input<'a>,
    table: Option<&'a Table>,
    /// Its columns, where it is made.
    columns: Option<&'a [ColumnDef]>,
}

impl<'a> Changed<'a> {
    fn key(&self) -> &'a [String] {
        key_of(self.table)
    }

    /// Judges a foreign key; `own` is the column in whose definition it stands.
    fn refers(&self, key: &ForeignKeyConstraint, own: Option<&Ident>) -> Result<(), Refusal> {
        let Some(table) = self.table else { return Err(beyond("a foreign key")) };
        Child { input: self.input, table, columns: self.columns }.judge(key, own)
    }
}

/// Only rows of one shard are compared with each other.
fn unique(key: &[String], columns: &[IndexColumn], what: &str) -> Result<(), Refusal> {
    let names =
        |key: &str, column: &IndexColumn| matches!(&column.column.expr, Expr::Identifier(it) if it.value == *key);
    match key.iter().find(|key| !columns.iter().any(|column| names(key, column))) {
        Some(key) => Err(beyond(&format!("{what} without the shard key \"{key}\""))),
        None => Ok(()),
    }
}

fn alteration(changed: &Changed<'_>, operation: &AlterTableOperation) -> Result<(), Refusal> {
    let (input, key) = (changed.input, changed.key());
    let is_key = |name: &Ident| key.contains(&name.value);
    match operation {
        AlterTableOperation::AddColumn { column_def, .. } => {
            column(changed, column_def)?;
            filled(input, column_def)
        }
        AlterTableOperation::DropColumn { column_names, .. } if !column_names.iter().any(is_key) => Ok(()),
        AlterTableOperation::RenameColumn { old_column_name, .. } if !is_key(old_column_name) => Ok(()),
        AlterTableOperation::AlterColumn { column_name, op } => match op {
            AlterColumnOperation::SetNotNull
            | AlterColumnOperation::DropNotNull
            | AlterColumnOperation::SetDefault { .. }
            | AlterColumnOperation::DropDefault => Ok(()),
            AlterColumnOperation::SetDataType { using: None, .. }
                if !is_key(column_name) && !input.catalog.has_impure_user_casts =>
            {
                Ok(())
            }
            _ => Err(beyond("this form of ALTER COLUMN")),
        },
        AlterTableOperation::AddConstraint { constraint, .. } => self::constraint(changed, constraint),
        AlterTableOperation::DropConstraint { .. } | AlterTableOperation::ValidateConstraint { .. } => Ok(()),
        _ => Err(beyond("this form of ALTER TABLE, or one of the shard key,")),
    }
}

/// Whether the rows that are there are given the same in a new column on every shard: each computes its default now.
fn filled(input: &Input<'_>, column: &ColumnDef) -> Result<(), Refusal> {
    if is_serial(&column.data_type) {
        return Err(beyond("ADD COLUMN with a sequence"));
    }
    for option in &column.options {
        match &option.option {
            ColumnOption::Default(expr) => {
                let functions = Functions { catalog: input.catalog, pure_functions: input.pure_functions };
                return check(expr, functions)?.one_shard.map_or(Ok(()), Err);
            }
            // It is computed from the row's other columns.
            ColumnOption::Generated { generation_expr: Some(_), .. } => return Ok(()),
            ColumnOption::Generated { .. } | ColumnOption::Identity(_) => {
                return Err(beyond("ADD COLUMN with a sequence"));
            }
            _ => {}
        }
    }
    match own_default(input, &column.data_type) {
        Some(DefaultKind::None | DefaultKind::Constant) => Ok(()),
        Some(_) => Err(refuse(
            "ddl",
            "ADD COLUMN of a domain whose default could be another one on each shard",
            "give the column a DEFAULT of its own, which may be NULL",
        )),
        None => Err(beyond("ADD COLUMN of a type that pgherd does not know")),
    }
}

/// The default that a type brings; the worst of those of that name. `None` if there is no such type.
fn own_default(input: &Input<'_>, data_type: &DataType) -> Option<DefaultKind> {
    if matches!(data_type, DataType::Array(_)) {
        return Some(DefaultKind::None);
    }
    let name = types::name(data_type)?;
    let is_it = |it: &&Type| *it.name == *name.name && name.schema.as_ref().is_none_or(|schema| it.schema == *schema);
    input.catalog.types.values().filter(is_it).map(|it| it.default).max()
}

fn creation(changed: &Changed<'_>, create: &CreateTable) -> Result<(), Refusal> {
    let is_plain = create.query.is_none()
        && create.like.is_none()
        && create.clone.is_none()
        && create.inherits.is_none()
        && create.partition_by.is_none();
    if !is_plain || create.columns.is_empty() {
        return Err(beyond("this form of CREATE TABLE"));
    }
    if let Some(key) = changed.key().iter().find(|key| !create.columns.iter().any(|column| column.name.value == **key))
    {
        return Err(beyond(&format!("CREATE TABLE without the shard key \"{key}\"")));
    }
    create.columns.iter().try_for_each(|it| column(changed, it))?;
    create.constraints.iter().try_for_each(|it| constraint(changed, it))
}

fn is_serial(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Custom(name, _) if parts(name).is_some_and(|(_, name)| name.contains("serial")))
}

fn column(changed: &Changed<'_>, column: &ColumnDef) -> Result<(), Refusal> {
    let is_key = changed.key().iter().all(|key| column.name.value == *key);
    for option in &column.options {
        match &option.option {
            ColumnOption::PrimaryKey(_) | ColumnOption::Unique(_) if !is_key => {
                return Err(beyond("a unique constraint without the shard key"));
            }
            ColumnOption::ForeignKey(foreign) => changed.refers(foreign, Some(&column.name))?,
            ColumnOption::Null
            | ColumnOption::NotNull
            | ColumnOption::Default(_)
            | ColumnOption::PrimaryKey(_)
            | ColumnOption::Unique(_)
            | ColumnOption::Check(_)
            | ColumnOption::Collation(_)
            | ColumnOption::Generated { .. }
            | ColumnOption::Identity(_) => {}
            _ => return Err(beyond("this form of column")),
        }
    }
    Ok(())
}

fn constraint(changed: &Changed<'_>, constraint: &TableConstraint) -> Result<(), Refusal> {
    let key = changed.key();
    match constraint {
        TableConstraint::PrimaryKey(it) => unique(key, &it.columns, "a primary key"),
        TableConstraint::Unique(it) => unique(key, &it.columns, "a unique constraint"),
        TableConstraint::ForeignKey(it) => changed.refers(it, None),
        TableConstraint::Check(_) => Ok(()),
        _ => Err(beyond("this form of constraint")),
    }
}
