//! Names in one query block: its relations, what the configuration says of them, and which of them a column belongs to.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlparser::ast::{Expr, Ident, ObjectName, ObjectNamePart};

use crate::catalog::model::{Column, Relation};
use crate::plan::shard_key::{Layout, ShardSet};

/// One relation in a FROM list.
#[derive(Debug)]
pub(super) struct Source {
    /// What columns are qualified with: the alias, or the table's name.
    pub(super) alias: Box<str>,
    /// The table's schema where it has no alias: `schema.table.column`.
    pub(super) schema: Option<Box<str>>,
    /// Its entry in the catalog, or one made up for a query that stands for a table; `None` for other queries, CTEs and functions.
    pub(super) relation: Option<Arc<Relation>>,
    /// What it is to the shards.
    pub(super) role: Role,
    /// Whether an outer join can put NULLs in place of its rows.
    pub(super) nullable: bool,
    /// Shards that have rows of it, where that is known from within.
    pub(super) within: Option<ShardSet>,
    /// Shards that WHERE and inner joins leave for its rows.
    pub(super) filtered: ShardSet,
    /// The same, with the condition of its own outer join.
    pub(super) tied: ShardSet,
}

/// What a relation is to the shards.
#[derive(Debug)]
pub(super) enum Role {
    /// Spread by a key.
    Sharded(Box<Layout>),
    /// Whole on every shard.
    Reference,
    /// A sub-query, CTE or function: judged on its own.
    Derived,
    /// A table of the primary or of the system.
    Foreign,
}

impl Source {
    pub(super) fn layout(&self) -> Option<&Layout> {
        match &self.role {
            Role::Sharded(layout) => Some(layout),
            _ => None,
        }
    }

    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.relation.as_ref()?.columns.iter().find(|column| *column.name == *name)
    }
}

/// The relations of one block, and of the blocks around it.
#[derive(Debug)]
pub(super) struct Scope<'o> {
    pub(super) sources: Vec<Source>,
    /// Columns that USING of an inner or left join merges: the leftmost relation's stands for all.
    pub(super) merged: BTreeSet<Box<str>>,
    /// Columns that USING of a right or full join merges: none of the relations' own stands for them.
    pub(super) blurred: BTreeSet<Box<str>>,
    pub(super) outer: Option<&'o Self>,
}

/// A column of a relation that a name was resolved to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolved<'s> {
    /// The relation.
    pub(super) source: &'s Source,
    /// Its index in its scope.
    pub(super) index: usize,
    /// The column.
    pub(super) column: &'s Column,
    /// How many blocks further out the relation stands.
    pub(super) level: usize,
}

impl<'s> Resolved<'s> {
    /// The layout and the column's place in the shard key, if the column is part of its relation's.
    pub(super) fn key(&self) -> Option<(&'s Layout, usize)> {
        let layout = self.source.layout()?;
        Some((layout, layout.position(&self.column.name)?))
    }
}

impl<'o> Scope<'o> {
    pub(super) fn new(outer: Option<&'o Self>) -> Self {
        Self { sources: Vec::new(), merged: BTreeSet::new(), blurred: BTreeSet::new(), outer }
    }

    /// The column that an expression is, if it is nothing but one.
    pub(super) fn column(&self, expr: &Expr) -> Option<Resolved<'_>> {
        match expr {
            Expr::Nested(inner) => self.column(inner),
            Expr::Identifier(name) => self.unqualified(name, 0),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, name] => self.qualified(None, &table.value, &name.value, 0),
                [schema, table, name] => self.qualified(Some(&schema.value), &table.value, &name.value, 0),
                _ => None,
            },
            _ => None,
        }
    }

    /// All columns of its own relations.
    pub(super) fn columns(&self) -> impl Iterator<Item = Resolved<'_>> {
        self.sources.iter().enumerate().flat_map(|(index, source)| {
            let columns = source.relation.iter().flat_map(|relation| &relation.columns);
            columns.map(move |column| Resolved { source, index, column, level: 0 })
        })
    }

    fn unqualified(&self, name: &Ident, level: usize) -> Option<Resolved<'_>> {
        if self.blurred.contains(&*name.value) {
            return None;
        }
        let mut found =
            self.sources.iter().enumerate().filter_map(|(index, source)| {
                Some(Resolved { source, index, column: source.column(&name.value)?, level })
            });
        match (found.next(), found.next()) {
            (Some(first), None) => Some(first),
            (Some(first), Some(_)) => self.merged.contains(&*name.value).then_some(first),
            // A relation whose columns are not known may have it.
            (None, _) if self.sources.iter().any(|source| source.relation.is_none()) => None,
            (None, _) => self.outer?.unqualified(name, level + 1),
        }
    }

    fn qualified(&self, schema: Option<&str>, table: &str, name: &str, level: usize) -> Option<Resolved<'_>> {
        let is_meant = |source: &Source| {
            *source.alias == *table && schema.is_none_or(|schema| source.schema.as_deref() == Some(schema))
        };
        match self.sources.iter().position(is_meant) {
            Some(index) => {
                let source = &self.sources[index];
                Some(Resolved { source, index, column: source.column(name)?, level })
            }
            None => self.outer?.qualified(schema, table, name, level + 1),
        }
    }

    /// Whether the expressions hold the whole shard key of a sharded relation whose rows are never replaced by NULLs.
    pub(super) fn hold_key<'e>(&self, exprs: impl IntoIterator<Item = &'e Expr>) -> bool {
        self.hold_key_and(exprs, |_| false)
    }

    /// As [`Scope::hold_key`], where columns may also be there as texts: `"relation"."column"`.
    pub(super) fn hold_key_and<'e>(
        &self,
        exprs: impl IntoIterator<Item = &'e Expr>,
        is_shown: impl Fn(&str) -> bool,
    ) -> bool {
        let named: Vec<(usize, usize)> = exprs
            .into_iter()
            .filter_map(|expr| self.column(expr).filter(|found| found.level == 0))
            .filter_map(|found| Some((found.index, found.key()?.1)))
            .collect();
        let is_there = |index: usize, source: &Source, position: usize, column: &str| {
            named.contains(&(index, position)) || is_shown(&format!("\"{}\".\"{column}\"", source.alias))
        };
        self.sharded().filter(|(_, source, _)| !source.nullable).any(|(index, source, layout)| {
            let mut key = layout.key.iter().enumerate();
            key.all(|(position, it)| is_there(index, source, position, &it.column.name))
        })
    }

    /// The sharded relations.
    pub(super) fn sharded(&self) -> impl Iterator<Item = (usize, &Source, &Layout)> {
        self.sources.iter().enumerate().filter_map(|(index, source)| Some((index, source, source.layout()?)))
    }
}

/// Schema and name of an object name of one to three parts.
pub(super) fn parts(name: &ObjectName) -> Option<(Option<&str>, &str)> {
    let part = |at: usize| name.0.get(at).and_then(ObjectNamePart::as_ident).map(|ident| ident.value.as_str());
    match name.0.len() {
        1 => Some((None, part(0)?)),
        2 => Some((part(0), part(1)?)),
        3 => Some((part(1), part(2)?)),
        _ => None,
    }
}
