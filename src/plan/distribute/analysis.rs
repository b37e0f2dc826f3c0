//! One walk over all query blocks of a statement: which tables are involved, and whether one shard can answer everything.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use sqlparser::ast::{Expr, JoinConstraint, Query, Select, SetExpr, TableFactor, TableWithJoins, Visit, Visitor};

use super::block::{self, Joined, Side};
use super::constant::Constants;
use super::functions::Functions;
use super::membership::Membership;
use super::model::SplitTable;
use super::part::{self, Part};
use super::refuse::{clause, refuse};
use super::scope::{Role, Scope, Source, parts};
use super::steady::is_steady;
use crate::catalog::model::{Persistence, Relation, RelationKind};
use crate::config::model::{Database, Distribution, Table};
use crate::plan::Refusal;
use crate::plan::shard_key::{Layout, ShardSet};

/// Where all blocks so far can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tie {
    /// Anywhere: no sharded relation yet, or only ones that no row can come from.
    Free,
    /// On that shard.
    One(usize),
    /// On no single shard.
    Many,
}

/// What the walk gathers.
#[derive(Debug)]
pub(super) struct Analysis<'a> {
    pub(super) constants: Constants<'a>,
    pub(super) tie: Tie,
    /// Whether a sharded or reference table is named.
    pub(super) touches: bool,
    /// Whether a sharded table is named.
    pub(super) touches_sharded: bool,
    /// The sharded tables that are named.
    pub(super) sharded: BTreeSet<Box<str>>,
    /// A table that is not on the shards.
    pub(super) foreign: Option<String>,
    /// Sub-queries, CTEs, derived tables.
    pub(super) inner_queries: usize,
    /// Whether one of them reads sharded rows that may lie elsewhere than the rows around it.
    pub(super) is_loose: bool,
    /// Whether one of them reads nothing but reference tables, or nothing at all.
    pub(super) is_apart: bool,
    /// Whether one that reads no sharded rows could give others of its rows on each shard.
    pub(super) is_unsteady: bool,
    /// Whether one of them calls an aggregate that may be an outer query's, or locks rows.
    pub(super) is_entangled: bool,
    /// How many queries enclose what is looked at.
    depth: usize,
    /// How many of them are the statement itself.
    own_depth: usize,
    /// Conditions `key IN (query)` that must hold.
    memberships: Vec<Membership>,
}

/// One analysed block.
#[derive(Debug)]
pub(super) struct Block<'o> {
    pub(super) scope: Scope<'o>,
    pub(super) joined: Joined,
    /// Whether it reads sharded rows that may lie elsewhere than the rows of the queries around it.
    is_loose: bool,
    /// What it gives, if each shard's answer is its part of the whole one.
    part: Option<Part>,
}

/// Names of the CTEs in sight.
type Ctes = Vec<Box<str>>;

impl<'a> Analysis<'a> {
    pub(super) fn new(constants: Constants<'a>) -> Self {
        Self {
            constants,
            tie: Tie::Free,
            touches: false,
            touches_sharded: false,
            sharded: BTreeSet::new(),
            foreign: None,
            inner_queries: 0,
            is_loose: false,
            is_apart: false,
            is_unsteady: false,
            is_entangled: false,
            depth: 0,
            own_depth: 0,
            memberships: Vec::new(),
        }
    }

    /// Walks the query that the statement is.
    pub(super) fn statement(&mut self, query: &Query) -> Result<Option<Block<'static>>, Refusal> {
        self.own_depth = 1;
        self.query(query, None, &Vec::new())
    }

    /// Walks a query; the block is that of its own SELECT, if it is a plain one.
    pub(super) fn query<'o>(
        &mut self,
        query: &Query,
        outer: Option<&'o Scope<'o>>,
        ctes: &Ctes,
    ) -> Result<Option<Block<'o>>, Refusal> {
        let block = self.enclosed(query, outer, ctes)?;
        self.is_loose |= block.as_ref().is_some_and(|block| block.is_loose);
        Ok(block)
    }

    /// The same, where the caller judges whether the query is a loose one.
    fn enclosed<'o>(
        &mut self,
        query: &Query,
        outer: Option<&'o Scope<'o>>,
        ctes: &Ctes,
    ) -> Result<Option<Block<'o>>, Refusal> {
        self.depth += 1;
        let walked = self.parts_of(query, outer, ctes);
        self.depth -= 1;
        let mut block = walked?;
        if (1..=self.depth).contains(&self.own_depth) {
            self.look_at(query, block.as_mut());
        }
        Ok(block)
    }

    /// What an inner query of a SELECT is to the queries around it.
    fn look_at(&mut self, query: &Query, block: Option<&mut Block<'_>>) {
        let input = self.constants.input;
        let functions = Functions { catalog: input.catalog, pure_functions: input.pure_functions };
        self.is_entangled |= part::is_entangled(query, block.as_deref().map(|block| &block.scope), functions);
        let is_sharded = block.as_ref().is_some_and(|block| block.scope.sharded().next().is_some());
        self.is_unsteady |= !is_sharded && !is_steady(query, functions);
        let Some(block) = block else { return };
        block.part = part::part(query, block, functions);
        let member = self.memberships.iter().find(|membership| membership.is_of(query));
        block.is_loose &= block.part.is_none() || !member.is_some_and(|member| member.binds(query, &block.scope));
    }

    fn parts_of<'o>(
        &mut self,
        query: &Query,
        outer: Option<&'o Scope<'o>>,
        ctes: &Ctes,
    ) -> Result<Option<Block<'o>>, Refusal> {
        let mut ctes = ctes.clone();
        if let Some(with) = &query.with {
            for cte in &with.cte_tables {
                self.inner_queries += 1;
                let name: Box<str> = cte.alias.name.value.as_str().into();
                if with.recursive {
                    ctes.push(name.clone());
                }
                self.query(&cte.query, outer, &ctes)?;
                ctes.push(name);
            }
        }
        let block = self.body(&query.body, outer, &ctes)?;
        let scope = block.as_ref().map(|block| &block.scope);
        if let Some(order_by) = &query.order_by {
            self.expressions(order_by, scope, &ctes)?;
        }
        if let Some(limit) = &query.limit_clause {
            self.expressions(limit, scope, &ctes)?;
        }
        Ok(block)
    }

    fn body<'o>(
        &mut self,
        body: &SetExpr,
        outer: Option<&'o Scope<'o>>,
        ctes: &Ctes,
    ) -> Result<Option<Block<'o>>, Refusal> {
        match body {
            SetExpr::Select(select) => self.select(select, outer, ctes).map(Some),
            SetExpr::Query(query) => self.query(query, outer, ctes).map(|_| None),
            SetExpr::SetOperation { left, right, .. } => {
                for side in [left, right] {
                    let block = self.body(side, outer, ctes)?;
                    self.is_loose |= block.is_some_and(|block| block.is_loose);
                }
                Ok(None)
            }
            SetExpr::Values(values) => self.expressions(values, outer, ctes).map(|()| None),
            _ => Err(clause("query", "this form of query")),
        }
    }

    fn select<'o>(&mut self, select: &Select, outer: Option<&'o Scope<'o>>, ctes: &Ctes) -> Result<Block<'o>, Refusal> {
        let block = self.block(&select.from, select.selection.as_ref(), outer, ctes)?;
        let scope = Some(&block.scope);
        self.expressions(&select.distinct, scope, ctes)?;
        self.expressions(&select.projection, scope, ctes)?;
        self.expressions(&select.group_by, scope, ctes)?;
        self.expressions(&select.having, scope, ctes)?;
        self.expressions(&select.named_window, scope, ctes)?;
        Ok(block)
    }

    /// One FROM list with its WHERE.
    pub(super) fn block<'o>(
        &mut self,
        from: &[TableWithJoins],
        selection: Option<&Expr>,
        outer: Option<&'o Scope<'o>>,
        ctes: &Ctes,
    ) -> Result<Block<'o>, Refusal> {
        let factors = block::factors(from)?;
        let mut scope = Scope::new(outer);
        for (_, side, constraint, factor) in &factors {
            let mut source = self.source(factor, &scope, ctes)?;
            source.nullable = matches!(side, Side::Left | Side::Full);
            if matches!(side, Side::Right | Side::Full) {
                scope.sources.iter_mut().for_each(|source| source.nullable = true);
            }
            scope.sources.push(source);
            if let JoinConstraint::Using(columns) = constraint {
                let names = columns.iter().filter_map(|column| Some(parts(column)?.1.into()));
                let is_plain = matches!(side, Side::Inner | Side::Left);
                if is_plain { &mut scope.merged } else { &mut scope.blurred }.extend(names);
            }
        }
        let joins: Vec<(usize, Side, &JoinConstraint)> =
            factors.iter().map(|factor| (factor.0, factor.1, factor.2)).collect();
        let joined = block::join(&mut scope, self.constants, &joins, selection);
        self.narrow(&scope, &joined);
        let (is_inner, is_sharded) = (self.depth > self.own_depth, scope.sharded().next().is_some());
        self.is_apart |= is_inner && !is_sharded;
        let is_loose = is_inner && is_sharded && (joined.together.is_err() || !joined.is_bound);
        self.memberships.extend(selection.into_iter().flat_map(|selection| Membership::all(selection, &scope)));
        for (_, _, constraint) in joins {
            self.expressions(constraint, Some(&scope), ctes)?;
        }
        if let Some(selection) = selection {
            self.expressions(selection, Some(&scope), ctes)?;
        }
        Ok(Block { scope, joined, is_loose, part: None })
    }

    /// Rows of that shard are concerned too.
    pub(super) fn take(&mut self, shard: usize) {
        self.tie = match self.tie {
            Tie::Free => Tie::One(shard),
            Tie::One(one) if one == shard => Tie::One(one),
            _ => Tie::Many,
        };
    }

    fn narrow(&mut self, scope: &Scope<'_>, joined: &Joined) {
        let is_together = joined.together.is_ok() && joined.shards.len() <= 1;
        let mut sets: Vec<&ShardSet> = Vec::new();
        for (_, source, _) in scope.sharded() {
            sets.push(if is_together { &joined.shards } else { &source.tied });
        }
        for set in sets {
            let mut shards = set.iter();
            self.tie = match (self.tie, shards.next(), shards.next()) {
                (Tie::Many, ..) | (_, _, Some(_)) => Tie::Many,
                (tie, None, _) => tie,
                (Tie::Free, Some(&shard), None) => Tie::One(shard),
                (Tie::One(one), Some(&shard), None) => {
                    if one == shard {
                        Tie::One(one)
                    } else {
                        Tie::Many
                    }
                }
            };
        }
    }

    fn source<'o>(&mut self, factor: &TableFactor, scope: &Scope<'o>, ctes: &Ctes) -> Result<Source, Refusal> {
        let derived = |alias: Option<&sqlparser::ast::TableAlias>| Source {
            alias: alias.map_or("", |alias| alias.name.value.as_str()).into(),
            schema: None,
            relation: None,
            role: Role::Derived,
            nullable: false,
            within: None,
            filtered: ShardSet::new(),
            tied: ShardSet::new(),
        };
        match factor {
            TableFactor::Table { name, alias, args: None, .. } => {
                let (schema, table) = parts(name).ok_or_else(|| clause("from", "a table's name"))?;
                if schema.is_none() && ctes.iter().any(|cte| **cte == *table) {
                    let mut source = derived(alias.as_ref());
                    if alias.is_none() {
                        source.alias = table.into();
                    }
                    return Ok(source);
                }
                let (relation, role) = self.relation(schema, table)?;
                let mut source = derived(alias.as_ref());
                if alias.is_none() {
                    source.alias = table.into();
                    source.schema = relation.as_ref().map(|relation| relation.schema.clone());
                }
                let is_renamed = alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
                if is_renamed && matches!(role, Role::Sharded(_)) {
                    return Err(refuse(
                        "column-alias",
                        "new names for a sharded table's columns are not supported",
                        "use the table's own column names",
                    ));
                }
                source.relation = relation.filter(|_| !is_renamed);
                source.role = role;
                Ok(source)
            }
            TableFactor::Table { alias, args: Some(args), .. } => {
                self.expressions(args, Some(scope), ctes)?;
                Ok(derived(alias.as_ref()))
            }
            TableFactor::UNNEST { alias, array_exprs, .. } => {
                self.expressions(array_exprs, Some(scope), ctes)?;
                Ok(derived(alias.as_ref()))
            }
            TableFactor::Derived { lateral, subquery, alias, .. } => {
                self.inner_queries += 1;
                let outer = if *lateral { Some(scope) } else { scope.outer };
                let Some(block) = self.enclosed(subquery, outer, ctes)? else { return Ok(derived(alias.as_ref())) };
                let part = block.part.filter(|_| !lateral).and_then(|part| part.source(alias.as_ref()));
                self.is_loose |= part.is_none() && block.is_loose;
                Ok(part.unwrap_or_else(|| derived(alias.as_ref())))
            }
            _ => Err(clause("join", "a join in parentheses")),
        }
    }

    /// What a table is to the shards.
    pub(super) fn relation(
        &mut self,
        schema: Option<&str>,
        name: &str,
    ) -> Result<(Option<Arc<Relation>>, Role), Refusal> {
        let input = self.constants.input;
        let found = match schema {
            Some(schema) => input.catalog.relation(schema, name),
            None => input.catalog.resolve(input.search_path, name),
        };
        let Some(relation) = found else {
            self.foreign.get_or_insert_with(|| name.to_owned());
            return Ok((None, Role::Foreign));
        };
        if let Some(split) = input.split {
            let role = self.role_in_split(split, relation);
            return Ok((Some(relation.clone()), role));
        }
        match table(input.database, relation) {
            Some(Table { distribution: Distribution::Reference, .. }) => {
                self.touches = true;
                Ok((Some(relation.clone()), Role::Reference))
            }
            Some(table) => {
                self.touches = true;
                self.touches_sharded = true;
                self.sharded.insert(format!("{}.{}", relation.schema, relation.name).into());
                let layout = Layout::new(table, relation, input.catalog, input.database.shards.len());
                let layout = layout.ok_or_else(|| {
                    refuse(
                        "shard-key",
                        format!("table \"{name}\" has no column that is its shard key"),
                        "run pgherd check",
                    )
                })?;
                Ok((Some(relation.clone()), Role::Sharded(Box::new(layout))))
            }
            None => {
                if self.is_bound_to_shards(relation) {
                    self.touches = true;
                    let message = format!("\"{name}\" is a view, partition or parent of a sharded or reference table");
                    return Err(refuse("view", message, "name the table itself"));
                }
                self.foreign.get_or_insert_with(|| name.to_owned());
                Ok((Some(relation.clone()), Role::Foreign))
            }
        }
    }

    /// What a table of one server is to the legs that read the partitions of another: they see it as it is.
    fn role_in_split(&mut self, split: SplitTable, relation: &Relation) -> Role {
        if relation.oid == split.oid {
            (self.touches, self.touches_sharded) = (true, true);
            return Role::Sharded(Box::new(Layout::without_key(split.legs)));
        }
        let is_plain = relation.kind == RelationKind::Table
            && relation.persistence != Persistence::Temporary
            && relation.reads == [relation.oid]
            && !relation.row_security
            && !crate::plan::names::is_system(relation);
        if is_plain {
            self.touches = true;
            return Role::Reference;
        }
        self.foreign.get_or_insert_with(|| relation.name.to_string());
        Role::Foreign
    }

    /// Whether reading the relation reads a distributed table, or the other way round.
    fn is_bound_to_shards(&self, relation: &Relation) -> bool {
        let input = self.constants.input;
        input.database.tables.iter().any(|table| {
            let distributed = input.catalog.relation(&table.schema, &table.name);
            distributed.is_some_and(|distributed| {
                relation.reads.contains(&distributed.oid) || distributed.reads.contains(&relation.oid)
            })
        })
    }

    /// Walks the queries inside of expressions.
    pub(super) fn expressions(
        &mut self,
        tree: &impl Visit,
        scope: Option<&Scope<'_>>,
        ctes: &Ctes,
    ) -> Result<(), Refusal> {
        let mut finder = Finder { analysis: self, scope, ctes, depth: 0 };
        match tree.visit(&mut finder) {
            ControlFlow::Break(refusal) => Err(*refusal),
            ControlFlow::Continue(()) => Ok(()),
        }
    }
}

/// The configuration's entry for a relation.
pub(super) fn table<'d>(database: &'d Database, relation: &Relation) -> Option<&'d Table> {
    database.tables.iter().find(|table| *table.schema == *relation.schema && *table.name == *relation.name)
}

struct Finder<'f, 'a, 's> {
    analysis: &'f mut Analysis<'a>,
    scope: Option<&'s Scope<'s>>,
    ctes: &'s Ctes,
    depth: usize,
}

impl Visitor for Finder<'_, '_, '_> {
    type Break = Box<Refusal>;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        self.depth += 1;
        if self.depth == 1 {
            self.analysis.inner_queries += 1;
            if let Err(refusal) = self.analysis.query(query, self.scope, self.ctes) {
                return ControlFlow::Break(Box::new(refusal));
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<Self::Break> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}
