//! TRUNCATE and DDL on sharded and reference tables: the same on every shard, if it looks at nothing beyond one.

use std::ops::ControlFlow;

use sqlparser::ast::{
    AlterColumnOperation, AlterTableOperation, ColumnDef, ColumnOption, CreateTable, DataType, Expr, Ident,
    IndexColumn, ObjectName, ObjectType, Statement, TableConstraint, visit_relations,
};

use super::check::check;
use super::functions::Functions;
use super::gather::ctes;
use super::model::{Distributed, Input};
use super::refuse::refuse;
use super::scatter::{Part, Scattered, Tally, finished};
use super::scope::parts;
use crate::catalog::model::{DefaultKind, Type};
use crate::config::model::Distribution;
use crate::plan::{Reason, Refusal};
use crate::sql::facts::Name;
use crate::sql::{parse, types};

/// Plans DDL whose tables are on the shards, as `is_on_shards` says; `Elsewhere` if none of them is, or its form is not read.
///
/// # Errors
/// Tables here and there, or a change that one shard alone cannot judge.
pub fn ddl(input: &Input<'_>, is_on_shards: impl Fn(&Name) -> Result<bool, Refusal>) -> Result<Distributed, Refusal> {
    let tree = parse::parse(input.text.as_bytes(), input.session.standard_conforming_strings);
    let Some((tree, names)) = tree.as_ref().and_then(|tree| Some((tree, tables(tree)?))) else {
        return Ok(Distributed::Elsewhere);
    };
    let mut on_shards = 0;
    for name in names.iter() {
        let Some((schema, name)) = parts(name) else { return Ok(Distributed::Elsewhere) };
        on_shards += usize::from(is_on_shards(&Name { schema: schema.map(Into::into), name: name.into() })?);
    }
    match on_shards {
        0 => return Ok(Distributed::Elsewhere),
        count if count < names.len() => {
            let message = "one statement changes tables of the shards and of the primary";
            return Err(refuse("mixed", message, "send a statement for each"));
        }
        _ => {}
    }
    judge(input, tree)?;
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
            is_on_primary: false,
            reason,
        },
    )
}

/// The tables, views or indexes that it is about; for a view that is made, those that it reads.
fn tables(tree: &Statement) -> Option<Vec<ObjectName>> {
    match tree {
        Statement::Truncate(truncate) => Some(truncate.table_names.iter().map(|target| target.name.clone()).collect()),
        Statement::CreateIndex(index) => Some(vec![index.table_name.clone()]),
        Statement::Drop { object_type: ObjectType::Table | ObjectType::View | ObjectType::Index, names, .. } => {
            Some(names.clone())
        }
        Statement::AlterTable(alter) => Some(vec![alter.name.clone()]),
        Statement::CreateTable(create) if !create.temporary => Some(vec![create.name.clone()]),
        Statement::CreateView(create) if !create.materialized && !create.temporary => {
            let ctes = ctes(&create.query);
            let mut names = Vec::new();
            let _ = visit_relations(&create.query, |name| {
                let is_cte = parts(name).is_some_and(|(schema, name)| schema.is_none() && ctes.contains(name));
                names.extend((!is_cte).then(|| name.clone()));
                ControlFlow::<()>::Continue(())
            });
            Some(names)
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

fn judge(input: &Input<'_>, tree: &Statement) -> Result<(), Refusal> {
    match tree {
        Statement::CreateIndex(index) if index.concurrently => Err(beyond("CREATE INDEX CONCURRENTLY")),
        Statement::CreateIndex(index) if index.unique => {
            unique(key_of(input, &index.table_name), &index.columns, "a unique index")
        }
        Statement::AlterTable(alter) => {
            let key = key_of(input, &alter.name);
            alter.operations.iter().try_for_each(|operation| alteration(input, key, operation))
        }
        Statement::CreateTable(create) => creation(input, create),
        _ => Ok(()),
    }
}

/// The shard key of a table; no column for a reference table.
fn key_of<'i>(input: &Input<'i>, name: &ObjectName) -> &'i [String] {
    let Some((schema, name)) = parts(name) else { return &[] };
    let is_it = |table: &&crate::config::model::Table| {
        *table.name == *name && schema.is_none_or(|schema| *table.schema == *schema)
    };
    input.database.tables.iter().find(is_it).map_or(&[], |table| table.distribution.key())
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

fn alteration(input: &Input<'_>, key: &[String], operation: &AlterTableOperation) -> Result<(), Refusal> {
    let is_key = |name: &Ident| key.contains(&name.value);
    match operation {
        AlterTableOperation::AddColumn { column_def, .. } => {
            column(input, key, column_def)?;
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
        AlterTableOperation::AddConstraint { constraint, .. } => self::constraint(input, key, constraint),
        AlterTableOperation::DropConstraint { .. } => Ok(()),
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

fn creation(input: &Input<'_>, create: &CreateTable) -> Result<(), Refusal> {
    let is_plain = create.query.is_none()
        && create.like.is_none()
        && create.clone.is_none()
        && create.inherits.is_none()
        && create.partition_by.is_none();
    if !is_plain || create.columns.is_empty() {
        return Err(beyond("this form of CREATE TABLE"));
    }
    let key = key_of(input, &create.name);
    if let Some(key) = key.iter().find(|key| !create.columns.iter().any(|column| column.name.value == **key)) {
        return Err(beyond(&format!("CREATE TABLE without the shard key \"{key}\"")));
    }
    create.columns.iter().try_for_each(|it| column(input, key, it))?;
    create.constraints.iter().try_for_each(|it| constraint(input, key, it))
}

fn is_serial(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Custom(name, _) if parts(name).is_some_and(|(_, name)| name.contains("serial")))
}

fn column(input: &Input<'_>, key: &[String], column: &ColumnDef) -> Result<(), Refusal> {
    let is_key = key.iter().all(|key| column.name.value == *key);
    for option in &column.options {
        match &option.option {
            ColumnOption::PrimaryKey(_) | ColumnOption::Unique(_) if !is_key => {
                return Err(beyond("a unique constraint without the shard key"));
            }
            ColumnOption::ForeignKey(foreign) => references(input, &foreign.foreign_table)?,
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

fn constraint(input: &Input<'_>, key: &[String], constraint: &TableConstraint) -> Result<(), Refusal> {
    match constraint {
        TableConstraint::PrimaryKey(it) => unique(key, &it.columns, "a primary key"),
        TableConstraint::Unique(it) => unique(key, &it.columns, "a unique constraint"),
        TableConstraint::ForeignKey(it) => references(input, &it.foreign_table),
        TableConstraint::Check(_) => Ok(()),
        _ => Err(beyond("this form of constraint")),
    }
}

/// A foreign key may ask for rows that every shard has.
fn references(input: &Input<'_>, name: &ObjectName) -> Result<(), Refusal> {
    let Some((schema, name)) = parts(name) else { return Err(beyond("a foreign key")) };
    let is_reference = input.database.tables.iter().any(|table| {
        *table.name == *name
            && schema.is_none_or(|schema| *table.schema == *schema)
            && matches!(table.distribution, Distribution::Reference)
    });
    if is_reference { Ok(()) } else { Err(beyond("a foreign key to a table that is no reference table")) }
}
