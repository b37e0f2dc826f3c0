//! Inner queries of which each shard gives its part: nothing in them looks at rows of several shards, so that the shards' answers
//! together are the whole answer, each row once. In FROM such a query stands for a sharded table; behind IN it may be asked for each
//! shard's own keys.

use std::ops::ControlFlow;
use std::sync::Arc;

use sqlparser::ast::{
    Distinct, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, TableAlias, Visit, Visitor, WindowType,
};

use super::analysis::Block;
use super::functions::Functions;
use super::items::{bare, ordinal};
use super::label::Label;
use super::scope::{Resolved, Role, Scope, Source, parts};
use crate::catalog::model::{Column, DefaultKind, Oid, Persistence, Relation, RelationKind, RowRules};
use crate::plan::shard_key::{Layout, ShardSet};

/// A collation that nobody has: nothing is known of it.
const UNKNOWN_COLLATION: Oid = Oid::MAX;
/// A name that no column has.
const NAMELESS: &str = "\0";

/// What such a query gives.
#[derive(Debug)]
pub(super) struct Part {
    /// Its columns, if all their names are certain; a type of 0 is not known.
    columns: Option<Vec<Column>>,
    /// Where its rows lie, by those of its columns that are a shard key; `None` if every shard has all of them.
    layout: Option<Layout>,
    /// Shards that have rows of it.
    shards: ShardSet,
}

/// Reads a query whose block has been walked: `None` if a shard's answer is not simply its part of the whole one.
pub(super) fn part(query: &Query, block: &Block<'_>, functions: Functions<'_>) -> Option<Part> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let scope = &block.scope;
    let is_bare = query.with.is_none()
        && query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none()
        && query.locks.is_empty();
    let is_of_tables = scope.sources.iter().all(|source| source.role.is_table());
    if !is_bare || !is_of_tables || block.joined.together.is_err() || !keeps_apart(select, scope, functions) {
        return None;
    }
    let given = given(select, scope);
    let layout = scope.sharded().next().map(|(_, _, any)| {
        layout(scope, given.as_deref().unwrap_or_default()).unwrap_or_else(|| {
            let mut layout = any.clone();
            layout.key.iter_mut().for_each(|it| it.column.name = NAMELESS.into());
            layout
        })
    });
    let columns = given.map(|given| given.into_iter().map(|(column, _)| column).collect());
    Some(Part { columns, layout, shards: block.joined.shards.clone() })
}

impl Part {
    /// The FROM item that it is; `None` if its columns' names are not certain.
    pub(super) fn source(self, alias: Option<&TableAlias>) -> Option<Source> {
        let alias = alias?;
        let (mut columns, mut layout) = (self.columns?, self.layout);
        if alias.columns.len() > columns.len() || has_twins(&columns) {
            return None;
        }
        let place = |name: &str| columns.iter().position(|column| *column.name == *name);
        let key: Vec<Option<usize>> =
            layout.iter().flat_map(|layout| &layout.key).map(|it| place(&it.column.name)).collect();
        for (column, new) in columns.iter_mut().zip(&alias.columns) {
            column.name = new.name.value.as_str().into();
        }
        for (it, place) in layout.iter_mut().flat_map(|layout| &mut layout.key).zip(key) {
            if let Some(place) = place {
                it.column.name = columns[place].name.clone();
            }
        }
        if has_twins(&columns) {
            return None;
        }
        let name: Box<str> = alias.name.value.as_str().into();
        let relation = Relation {
            oid: 0,
            schema: "".into(),
            name: name.clone(),
            kind: RelationKind::View,
            table: 0,
            persistence: Persistence::Permanent,
            row_security: false,
            row_rules: RowRules::default(),
            security_invoker: false,
            columns,
            primary_key: Vec::new(),
            reads: Vec::new(),
            view_functions: Vec::new(),
            definition: None,
            writes: Vec::new(),
            writes_opaque: false,
            row_triggers: Vec::new(),
            foreign_keys: Vec::new(),
            is_referenced: false,
            is_judged_late: false,
        };
        let within = layout.is_some().then_some(self.shards);
        Some(Source {
            alias: name,
            schema: None,
            relation: Some(Arc::new(relation)),
            role: layout.map_or(Role::Reference, |layout| Role::Sharded(Box::new(layout))),
            nullable: false,
            within,
            filtered: ShardSet::new(),
            tied: ShardSet::new(),
        })
    }
}

fn has_twins(columns: &[Column]) -> bool {
    (0..columns.len()).any(|at| columns[..at].iter().any(|column| column.name == columns[at].name))
}

/// Whether DISTINCT, groups, aggregates and windows, if there are any, each go by the shard key.
fn keeps_apart(select: &Select, scope: &Scope<'_>, functions: Functions<'_>) -> bool {
    if scope.sharded().next().is_none() {
        return true;
    }
    let is_distinct_apart = match &select.distinct {
        None => true,
        Some(Distinct::Distinct) => scope.hold_key(select.projection.iter().filter_map(shown)),
        Some(_) => false,
    };
    let mut calls = Calls { scope, functions, aggregate: false, is_foreign_window: !select.named_window.is_empty() };
    let _ = select.projection.visit(&mut calls);
    let _ = select.having.visit(&mut calls);
    let GroupByExpr::Expressions(groups, modifiers) = &select.group_by else { return false };
    let is_grouped = !groups.is_empty() || calls.aggregate || select.having.is_some();
    let are_groups_apart =
        !is_grouped || (modifiers.is_empty() && scope.hold_key(groups.iter().filter_map(|group| meant(select, group))));
    is_distinct_apart && are_groups_apart && !calls.is_foreign_window
}

/// The expression of an item of the select list; `None` for a `*`.
fn shown(item: &SelectItem) -> Option<&Expr> {
    match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    }
}

/// What an element of GROUP BY means, an ordinal if it is a number; `None` where a `*` leaves open what it counts.
fn meant<'t>(select: &'t Select, group: &'t Expr) -> Option<&'t Expr> {
    let at = match ordinal(group) {
        None => return Some(bare(group)),
        Some(ordinal) => ordinal?.checked_sub(1)?,
    };
    let is_plain = select.projection.iter().all(|item| shown(item).is_some());
    select.projection.get(at).filter(|_| is_plain).and_then(shown)
}

/// What a select list calls, inner queries left out.
struct Calls<'s> {
    scope: &'s Scope<'s>,
    functions: Functions<'s>,
    aggregate: bool,
    /// A window function whose partitions can reach over shards.
    is_foreign_window: bool,
}

impl Visitor for Calls<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        match &function.over {
            Some(WindowType::WindowSpec(spec)) => {
                self.is_foreign_window |= spec.window_name.is_some() || !self.scope.hold_key(&spec.partition_by);
            }
            Some(WindowType::NamedWindow(_)) => self.is_foreign_window = true,
            // One of an inner query counts as well: to be too careful costs little here.
            None => {
                self.aggregate |=
                    parts(&function.name).is_none_or(|(schema, name)| self.functions.is_aggregate(schema, name));
            }
        }
        ControlFlow::Continue(())
    }
}

/// The columns that a select list gives, each with the relation's column that it shows unchanged; `None` if a name is not certain.
fn given<'s>(select: &Select, scope: &'s Scope<'_>) -> Option<Vec<(Column, Option<Resolved<'s>>)>> {
    let mut given = Vec::new();
    let is_plain = scope.merged.is_empty() && scope.blurred.is_empty();
    for item in &select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) => given.push(column(scope, expr, &Label::of(expr).name()?)),
            SelectItem::ExprWithAlias { expr, alias } => given.push(column(scope, expr, &alias.value)),
            SelectItem::Wildcard(_) if is_plain => {
                if scope.sources.iter().any(|source| source.relation.is_none()) {
                    return None;
                }
                given.extend(scope.columns().map(|found| (found.column.clone(), Some(found))));
            }
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                let (None, alias) = parts(name)? else { return None };
                let source = scope.sources.iter().find(|source| *source.alias == *alias)?;
                source.relation.as_ref()?;
                let columns = scope.columns().filter(|found| *found.source.alias == *alias);
                given.extend(columns.map(|found| (found.column.clone(), Some(found))));
            }
            _ => return None,
        }
    }
    Some(given)
}

fn column<'s>(scope: &'s Scope<'_>, expr: &Expr, name: &str) -> (Column, Option<Resolved<'s>>) {
    let shown = scope.column(expr).filter(|found| found.level == 0);
    let column = match &shown {
        Some(found) => Column { name: name.into(), ..found.column.clone() },
        None => Column {
            name: name.into(),
            type_oid: 0,
            typmod: -1,
            collation: UNKNOWN_COLLATION,
            not_null: false,
            has_default: false,
            is_generated: false,
            default: DefaultKind::None,
            moment: None,
        },
    };
    (column, shown)
}

/// The layout of a relation whose whole key is among the given columns, by their new names.
fn layout(scope: &Scope<'_>, given: &[(Column, Option<Resolved<'_>>)]) -> Option<Layout> {
    let shown_as = |index: usize, name: &str| {
        let is_it = |found: &Resolved<'_>| found.index == index && *found.column.name == *name;
        given.iter().find(|(_, shown)| shown.as_ref().is_some_and(is_it)).map(|(column, _)| column.name.clone())
    };
    scope.sharded().filter(|(_, source, _)| !source.nullable).find_map(|(index, _, layout)| {
        let mut renamed = layout.clone();
        for it in &mut renamed.key {
            it.column.name = shown_as(index, &it.column.name)?;
        }
        Some(renamed)
    })
}

/// Whether a query calls an aggregate that may belong to a query around it (section 4.2.7 of the manual: one over outer columns
/// alone does), or locks rows.
pub(super) fn is_entangled(query: &Query, scope: Option<&Scope<'_>>, functions: Functions<'_>) -> bool {
    let mut finder = Entangled { scope, functions, depth: 0 };
    query.visit(&mut finder).is_break()
}

struct Entangled<'s> {
    scope: Option<&'s Scope<'s>>,
    functions: Functions<'s>,
    depth: usize,
}

impl Visitor for Entangled<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.depth += 1;
        if query.locks.is_empty() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        // Queries further in are looked at by themselves.
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        let is_aggregate =
            || parts(&function.name).is_none_or(|(schema, name)| self.functions.is_aggregate(schema, name));
        if self.depth > 1 || function.over.is_some() || !is_aggregate() {
            return ControlFlow::Continue(());
        }
        if shows_a_row(function) { ControlFlow::Break(()) } else { function.visit(&mut Columns { scope: self.scope }) }
    }
}

/// Whether an argument is `relation.*`, which is no expression of its own.
fn shows_a_row(function: &Function) -> bool {
    let FunctionArguments::List(list) = &function.args else { return false };
    list.args.iter().any(|argument| {
        let (FunctionArg::Unnamed(argument)
        | FunctionArg::Named { arg: argument, .. }
        | FunctionArg::ExprNamed { arg: argument, .. }) = argument;
        matches!(argument, FunctionArgExpr::QualifiedWildcard(_))
    })
}

/// Ends at a column that is not one of the scope's own.
struct Columns<'s> {
    scope: Option<&'s Scope<'s>>,
}

impl Visitor for Columns<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) if shows_a_row(function) => return ControlFlow::Break(()),
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {}
            _ => return ControlFlow::Continue(()),
        }
        let is_own = self.scope.and_then(|scope| scope.column(expr)).is_some_and(|found| found.level == 0);
        if is_own { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}
