//! A SELECT over several shards: which shape it has, what each shard runs, how the rows are merged.

use std::ops::ControlFlow;
use std::sync::Arc;

use sqlparser::ast::{
    AccessExpr, DataType, Distinct, Expr, Function, GroupByExpr, LimitClause, OrderByExpr, OrderByKind, OrderBySort,
    Query, Select, SetExpr, Statement, Visit, Visitor, WindowType,
};

use super::analysis::Block;
use super::constant::Constants;
use super::functions::Functions;
use super::group;
use super::items::{Item, Items, Meant, bare, texts, wrapped};
use super::model::{Collating, Distributed, Key, Merge, Sort, SortBy, Streamed};
use super::refuse::{clause, refuse};
use super::scope::{Resolved, Scope, parts};
use super::source::{Clauses, Source};
use crate::catalog::model::{Oid, Type};
use crate::plan::shard_key;
use crate::plan::value::Kind;
use crate::plan::{Reason, Refusal};
use crate::sql::{parse, types};

/// Everything about the SELECT that is being split.
pub(super) struct Job<'t> {
    pub(super) query: &'t Query,
    pub(super) select: &'t Select,
    pub(super) scope: &'t Scope<'t>,
    pub(super) source: &'t Source<'t>,
    pub(super) clauses: Clauses,
    pub(super) items: Items<'t>,
    pub(super) constants: Constants<'t>,
    pub(super) functions: Functions<'t>,
    pub(super) columns: Hidden,
}

/// Hidden columns as they are gathered.
#[derive(Debug, Default)]
pub(super) struct Hidden(Vec<String>);

impl Hidden {
    /// The number of the hidden column with that expression, added if it is new.
    pub(super) fn add(&mut self, text: String) -> usize {
        match self.0.iter().position(|known| *known == text) {
            Some(at) => at,
            None => {
                self.0.push(text);
                self.0.len() - 1
            }
        }
    }

    /// The expression of a hidden column.
    pub(super) fn text(&self, hidden: usize) -> &str {
        &self.0[hidden]
    }
}

/// LIMIT and OFFSET as numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Bounds {
    limit: Option<u64>,
    offset: u64,
}

/// Splits a SELECT whose sharded relations lie together.
///
/// # Errors
/// A shape that cannot be merged exactly.
pub(super) fn plan(
    query: &Query,
    block: &Block<'_>,
    source: &Source<'_>,
    constants: Constants<'_>,
    functions: Functions<'_>,
) -> Result<Distributed, Refusal> {
    block.joined.together.clone()?;
    let SetExpr::Select(select) = &*query.body else {
        return Err(clause("set-operation", "UNION, INTERSECT or EXCEPT"));
    };
    plain(query, select, &block.scope)?;
    let clauses = source.clauses().ok_or_else(|| clause("query", "this form of query"))?;
    let items = Items::read(select, &clauses, source, &block.scope)?;
    let mut job = Job {
        query,
        select,
        scope: &block.scope,
        source,
        clauses,
        items,
        constants,
        functions,
        columns: Hidden::default(),
    };
    let bounds = job.bounds()?;
    let shape = job.shape()?;
    let (merge, sort, having_stays) = match shape {
        Shape::Rows => (Merge::Rows, job.sort()?, true),
        Shape::Groups => group::grouped(&mut job)?,
        Shape::Distinct => group::distinct(&mut job)?,
    };
    let (sql, inserted) = match &merge {
        Merge::Rows => job.rewritten(Some(&sort), bounds, having_stays)?,
        Merge::Groups(groups) if groups.order.is_empty() => job.rewritten(None, bounds, having_stays)?,
        // A shard's part of the answer's first groups is among its own first, unless some of them are not shown.
        Merge::Groups(groups) => {
            let bounds = if having_stays { bounds } else { Bounds::default() };
            job.rewritten(Some(&groups.order), bounds, having_stays)?
        }
    };
    let what = match (&shape, sort.is_empty()) {
        (Shape::Rows, true) => "rows of all shards one after the other",
        (Shape::Rows, false) => "rows of all shards merged by their sort keys",
        (Shape::Groups, _) => "partial aggregates of all shards merged",
        (Shape::Distinct, _) => "distinct rows of all shards merged",
    };
    let code = match (&shape, sort.is_empty()) {
        (Shape::Rows, true) => "concatenate",
        (Shape::Rows, false) => "ordered-merge",
        (Shape::Groups, _) => "aggregate-merge",
        (Shape::Distinct, _) => "distinct-merge",
    };
    Ok(Distributed::Streamed(Arc::new(Streamed {
        // Where no shard can have rows of use, one is asked all the same: an aggregate has a value without any.
        shards: match block.joined.shards.is_empty() {
            true => vec![0],
            false => block.joined.shards.iter().copied().collect(),
        },
        sql: sql.into(),
        hidden: job.columns.0.len(),
        inserted,
        named: job.named(&sort),
        merge,
        sort,
        offset: bounds.offset,
        limit: bounds.limit,
        reason: Reason { code, text: what.into() },
    })))
}

enum Shape {
    /// Each row of a shard is a row of the answer.
    Rows,
    /// Groups reach over shards.
    Groups,
    /// DISTINCT over columns without the shard key.
    Distinct,
}

/// Refuses what no shape below can do.
fn plain(query: &Query, select: &Select, scope: &Scope<'_>) -> Result<(), Refusal> {
    if !query.locks.is_empty() {
        return Err(clause("for-update", "FOR UPDATE or FOR SHARE"));
    }
    if let Some(fetch) = &query.fetch
        && (fetch.with_ties || fetch.percent)
    {
        return Err(clause("with-ties", "FETCH ... WITH TIES"));
    }
    if matches!(select.distinct, Some(Distinct::On(_))) {
        return Err(clause("distinct-on", "DISTINCT ON"));
    }
    if !select.named_window.is_empty() {
        return Err(clause("window", "a WINDOW clause"));
    }
    if let Some(source) = scope.sources.iter().find(|source| !source.role.is_table()) {
        return Err(clause("from", &format!("\"{}\", which is no plain table,", source.alias)));
    }
    Ok(())
}

impl<'t> Job<'t> {
    fn shape(&self) -> Result<Shape, Refusal> {
        let groups = self.group_by()?;
        let calls = calls_in(self, &self.select.projection);
        let elsewhere = (
            self.select.having.as_ref().map(|having| calls_in(self, having)),
            self.query.order_by.as_ref().map(|order| calls_in(self, order)),
        );
        let has_aggregate = calls.aggregate
            || self.select.having.is_some()
            || elsewhere.0.is_some_and(|calls| calls.aggregate)
            || elsewhere.1.is_some_and(|calls| calls.aggregate);
        let is_windowed = calls.window || elsewhere.1.is_some_and(|calls| calls.window);
        let is_foreign_window = calls.foreign_window || elsewhere.1.is_some_and(|calls| calls.foreign_window);
        let is_grouped = !groups.is_empty() || has_aggregate;
        let has_key_group = self.scope.hold_key(groups.iter().filter_map(|meant| self.expr_of(meant)));
        if is_windowed && (is_foreign_window || is_grouped) {
            return Err(clause("window", "a window function whose PARTITION BY lacks the shard key"));
        }
        let is_distinct = matches!(self.select.distinct, Some(Distinct::Distinct));
        if is_grouped && !has_key_group {
            if is_distinct {
                return Err(clause("distinct", "DISTINCT together with GROUP BY or aggregates"));
            }
            return Ok(Shape::Groups);
        }
        let spelled_out = |text: &str| {
            self.items.is_exact && self.items.all.iter().any(|item| item.expr.is_none() && item.text == *text)
        };
        let shows_key = self.scope.hold_key_and(self.items.all.iter().filter_map(|item| item.expr), spelled_out);
        Ok(if is_distinct && !shows_key { Shape::Distinct } else { Shape::Rows })
    }

    fn expr_of(&self, meant: &Meant<'t>) -> Option<&'t Expr> {
        match meant {
            Meant::Item(at) => self.items.all[*at].expr,
            Meant::Expr(expr, _) => Some(expr),
        }
    }

    /// The elements of GROUP BY.
    pub(super) fn group_by(&self) -> Result<Vec<Meant<'t>>, Refusal> {
        let GroupByExpr::Expressions(exprs, modifiers) = &self.select.group_by else {
            return Err(clause("group-by", "GROUP BY ALL"));
        };
        if !modifiers.is_empty() {
            return Err(clause("grouping-sets", "GROUP BY with modifiers"));
        }
        if exprs.is_empty() {
            return Ok(Vec::new());
        }
        let texts = texts(self.source, &self.clauses.group);
        if texts.len() != exprs.len() || exprs.iter().any(|expr| matches!(bare(expr), Expr::Tuple(_))) {
            return Err(clause("group-by", "this form of GROUP BY"));
        }
        exprs.iter().zip(texts).map(|(expr, text)| self.items.grouped(expr, text, self.scope)).collect()
    }

    /// The elements of ORDER BY with their trees' options.
    pub(super) fn order_by(&self) -> Result<Vec<(Meant<'t>, Direction)>, Refusal> {
        let Some(order_by) = &self.query.order_by else { return Ok(Vec::new()) };
        let OrderByKind::Expressions(elements) = &order_by.kind else { return Err(clause("order-by", "ORDER BY ALL")) };
        let texts = texts(self.source, &self.clauses.order);
        if texts.len() != elements.len() || order_by.interpolate.is_some() {
            return Err(clause("order-by", "this form of ORDER BY"));
        }
        elements
            .iter()
            .zip(texts)
            .map(|(element, text)| Ok((self.items.ordered(&element.expr, text)?, direction(element)?)))
            .collect()
    }

    /// Sort keys as hidden columns.
    fn sort(&mut self) -> Result<Vec<Sort>, Refusal> {
        let elements = self.order_by()?;
        self.check_distinct(&elements)?;
        Ok(elements
            .into_iter()
            .map(|(meant, direction)| {
                let visible = self.shown(&meant).map(|(at, collating)| SortBy::Visible(at, collating));
                direction.sort(visible.unwrap_or_else(|| SortBy::Hidden(self.key(&meant))))
            })
            .collect())
    }

    /// The visible column that shows that element, if rows can be told apart by what it shows in text and in binary form alike:
    /// then no hidden one is needed.
    fn shown(&self, meant: &Meant<'_>) -> Option<(usize, Collating)> {
        let column = |at: usize| self.column_of(&self.items.all[at]);
        let at = match meant {
            Meant::Item(at) => *at,
            Meant::Expr(expr, _) => {
                let wanted = self.scope.column(expr).filter(|found| found.level == 0)?;
                let is_it =
                    |found: Resolved<'_>| found.index == wanted.index && found.column.name == wanted.column.name;
                (0..self.items.all.len()).find(|&at| column(at).is_some_and(is_it))?
            }
        };
        let is_sure = self.items.is_exact && self.items.all[at].name.is_some();
        let found = column(at).filter(|_| is_sure)?.column;
        let collating = self.collating_of(found.collation);
        match Kind::of(found.type_oid)? {
            Kind::Int2 | Kind::Int4 | Kind::Int8 => Some((at, collating)),
            Kind::Text | Kind::Varchar if collating == Collating::Bytes => Some((at, collating)),
            _ => None,
        }
    }

    /// The names of visible sort keys.
    fn named(&self, sort: &[Sort]) -> Vec<(usize, Box<str>)> {
        let visible = sort.iter().filter_map(|sort| match sort.by {
            SortBy::Visible(at, _) => Some((at, self.items.all[at].name.clone()?)),
            SortBy::Hidden(_) | SortBy::Aggregate(_) => None,
        });
        visible.collect()
    }

    /// The column that a visible column is, if it is nothing but one.
    pub(super) fn column_of(&self, item: &Item<'t>) -> Option<Resolved<'_>> {
        match item.expr {
            Some(expr) => self.scope.column(expr).filter(|found| found.level == 0),
            None => self.scope.columns().find(|found| item.stands_for(&found.source.alias, &found.column.name)),
        }
    }

    /// Under DISTINCT a hidden column must not add a distinction: PostgreSQL sorts by listed expressions only.
    pub(super) fn check_distinct(&self, elements: &[(Meant<'_>, Direction)]) -> Result<(), Refusal> {
        let is_listed = |meant: &Meant<'_>| match meant {
            Meant::Item(_) => true,
            Meant::Expr(expr, _) => self.items.all.iter().any(|item| item.expr.map(bare) == Some(*expr)),
        };
        if self.select.distinct.is_some() && !elements.iter().all(|(meant, _)| is_listed(meant)) {
            return Err(clause("distinct", "DISTINCT with ORDER BY of an expression that is not listed"));
        }
        Ok(())
    }

    /// A hidden column with the value of that element.
    pub(super) fn key(&mut self, meant: &Meant<'_>) -> Key {
        let (text, collating) = match meant {
            Meant::Item(at) => {
                let item = &self.items.all[*at];
                (
                    item.text.clone(),
                    item.expr.map_or_else(|| self.general_collating(false), |expr| self.collating(expr)),
                )
            }
            Meant::Expr(expr, text) => (text.clone(), self.collating(expr)),
        };
        Key { hidden: self.columns.add(wrapped(&text)), collating }
    }

    /// What is known of that collation; nothing of how the server compares texts that come in another encoding.
    pub(super) fn collating_of(&self, collation: Oid) -> Collating {
        if collation != 0 && !self.constants.input.session.same_encoding {
            return Collating::Unknown;
        }
        shard_key::collating(collation, self.constants.input.catalog)
    }

    /// What is known of an expression's collation, should its type have one.
    pub(super) fn collating(&self, expr: &Expr) -> Collating {
        if let Some(found) = self.scope.column(expr).filter(|found| found.level == 0) {
            return self.collating_of(found.column.collation);
        }
        self.general_collating(calls_in(self, expr).collate)
    }

    /// The least that is known of all collations that an expression could take its own from.
    fn general_collating(&self, has_collate: bool) -> Collating {
        let catalog = self.constants.input.catalog;
        let columns = self
            .scope
            .sources
            .iter()
            .filter_map(|source| source.relation.as_ref())
            .flat_map(|relation| &relation.columns);
        let least = columns.map(|column| self.collating_of(column.collation)).min().unwrap_or(Collating::Bytes);
        let default = catalog.default_collation.as_ref().map_or(Collating::Unknown, |_| self.collating_of(100));
        if has_collate { Collating::Unknown } else { least.min(default) }
    }

    /// Whether a cast to that type can bring a collation, as one to a domain may.
    fn collates(&self, data_type: &DataType) -> bool {
        let Some(name) = types::name(data_type) else { return true };
        let catalog = self.constants.input.catalog;
        let is_it =
            |it: &&Type| *it.name == *name.name && name.schema.as_ref().is_none_or(|schema| it.schema == *schema);
        let mut found = catalog.types.values().filter(is_it).peekable();
        found.peek().is_none() || found.any(|it| shard_key::brings_collation(it.collation, catalog))
    }

    fn bounds(&self) -> Result<Bounds, Refusal> {
        let mut bounds = Bounds::default();
        let unreadable = || {
            refuse(
                "limit",
                "LIMIT and OFFSET over shards take numbers or parameters only",
                "compute the number in the client",
            )
        };
        let count = |expr: &Expr| match self.constants.count(expr) {
            Some(Some(count)) => u64::try_from(count).map(Some).map_err(|_| unreadable()),
            Some(None) => Ok(None),
            None => Err(unreadable()),
        };
        match &self.query.limit_clause {
            None => {}
            Some(LimitClause::LimitOffset { limit, offset, limit_by }) => {
                if !limit_by.is_empty() {
                    return Err(unreadable());
                }
                bounds.limit = limit.as_ref().map_or(Ok(None), count)?;
                bounds.offset = offset.as_ref().map_or(Ok(None), |offset| count(&offset.value))?.unwrap_or(0);
            }
            Some(LimitClause::OffsetCommaLimit { .. }) => return Err(unreadable()),
        }
        if let Some(fetch) = &self.query.fetch {
            if bounds.limit.is_some() {
                return Err(unreadable());
            }
            bounds.limit = fetch.quantity.as_ref().map_or(Ok(Some(1)), count)?;
        }
        Ok(bounds)
    }

    /// The shards' text, in that order or without a tail, and where how much was put in.
    fn rewritten(
        &self,
        sort: Option<&[Sort]>,
        bounds: Bounds,
        having_stays: bool,
    ) -> Result<(String, (usize, usize)), Refusal> {
        let text = self.source.text;
        let prefix = unused_prefix(text);
        let hidden: String =
            self.columns.0.iter().enumerate().map(|(at, column)| format!(", {column} AS {prefix}{at}")).collect();
        let piece = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
        let clauses = &self.clauses;
        // Straight before FROM, behind the line end of any `--` comment.
        let mut sql = piece(0, clauses.from).to_owned();
        let at = sql.chars().count();
        sql.push_str(&hidden);
        sql.push(' ');
        let body_end = clauses.tail.min(clauses.end);
        match &clauses.having {
            Some(having) if !having_stays => {
                sql.push_str(piece(clauses.from, having.start));
                sql.push_str(piece(having.end, body_end));
            }
            _ => sql.push_str(piece(clauses.from, body_end)),
        }
        if let Some(sort) = sort {
            sql.push_str(&tail(sort, bounds, &prefix));
        }
        self.verify(&sql)?;
        Ok((sql, (at, hidden.chars().count() + 1)))
    }

    /// Reads the new text again: it must be the old statement with the hidden columns and nothing else changed.
    fn verify(&self, sql: &str) -> Result<(), Refusal> {
        let failed =
            || refuse("text", "the statement could not be split safely", "write the statement in a plainer way");
        let parsed = parse::parse(sql.as_bytes(), self.constants.input.session.standard_conforming_strings)
            .ok_or_else(failed)?;
        let Statement::Query(query) = parsed else { return Err(failed()) };
        let SetExpr::Select(select) = *query.body else { return Err(failed()) };
        let visible = self.select.projection.len();
        let is_same = select.projection.len() == visible + self.columns.0.len()
            && select.projection[..visible] == self.select.projection[..]
            && select.from == self.select.from
            && select.selection == self.select.selection
            && select.group_by == self.select.group_by
            && select.distinct == self.select.distinct
            && (select.having.is_none() || select.having == self.select.having);
        if is_same { Ok(()) } else { Err(failed()) }
    }
}

/// ORDER BY and LIMIT for the shards.
fn tail(sort: &[Sort], bounds: Bounds, prefix: &str) -> String {
    let mut tail = String::new();
    for (at, key) in sort.iter().enumerate() {
        let column = match key.by {
            SortBy::Hidden(Key { hidden, .. }) => format!("{prefix}{hidden}"),
            SortBy::Visible(number, _) => (number + 1).to_string(),
            SortBy::Aggregate(_) => continue,
        };
        let direction = if key.descending { "DESC" } else { "ASC" };
        let nulls = if key.nulls_first { "FIRST" } else { "LAST" };
        let lead = if at == 0 { " ORDER BY" } else { "," };
        tail.push_str(&format!("{lead} {column} {direction} NULLS {nulls}"));
    }
    // A sum beyond bigint limits nothing.
    let rows = bounds.limit.and_then(|limit| i64::try_from(limit.checked_add(bounds.offset)?).ok());
    if let Some(rows) = rows {
        tail.push_str(&format!(" LIMIT {rows}"));
    }
    tail
}

/// A prefix for names that the text does not have.
fn unused_prefix(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut prefix = "pgherd_".to_owned();
    while lower.contains(&prefix) {
        prefix.push('_');
    }
    prefix
}

/// ASC or DESC, and where NULLs go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Direction {
    descending: bool,
    nulls_first: bool,
}

impl Direction {
    pub(super) fn sort(self, by: SortBy) -> Sort {
        Sort { by, descending: self.descending, nulls_first: self.nulls_first }
    }
}

fn direction(element: &OrderByExpr) -> Result<Direction, Refusal> {
    let descending = match &element.options.sort {
        Some(OrderBySort::Using(_)) => return Err(clause("order-by", "ORDER BY ... USING")),
        sort => matches!(sort, Some(OrderBySort::Desc)),
    };
    Ok(Direction { descending, nulls_first: element.options.nulls_first.unwrap_or(descending) })
}

/// What an expression calls.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Calls {
    /// An aggregate that is no window function.
    pub(super) aggregate: bool,
    /// A window function.
    pub(super) window: bool,
    /// A window function whose partitions can reach over shards.
    pub(super) foreign_window: bool,
    /// Something that gives a text another collation than columns and the database have.
    pub(super) collate: bool,
    /// A function that can give several rows for one.
    pub(super) set: bool,
}

struct CallFinder<'j, 't> {
    job: &'j Job<'t>,
    calls: Calls,
    /// How many inner queries enclose what is looked at: what they call is their own.
    depth: usize,
}

impl Visitor for CallFinder<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth += 1;
        // What it gives may have any collation.
        self.calls.collate = true;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.depth > 0 {
            return ControlFlow::Continue(());
        }
        match expr {
            Expr::Collate { .. } => self.calls.collate = true,
            Expr::CompoundFieldAccess { access_chain, .. } => {
                // A field has a collation of its own, which the catalog of a composite type knows.
                self.calls.collate |= access_chain.iter().any(|access| matches!(access, AccessExpr::Dot(_)));
            }
            Expr::Cast { data_type, .. } => self.calls.collate |= self.job.collates(data_type),
            Expr::TypedString(typed) => self.calls.collate |= self.job.collates(&typed.data_type),
            Expr::Function(function) => self.function(function),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl CallFinder<'_, '_> {
    fn function(&mut self, function: &Function) {
        let name = parts(&function.name);
        self.calls.collate |= name.is_none_or(|(schema, name)| self.job.functions.may_collate(schema, name));
        match &function.over {
            Some(WindowType::WindowSpec(spec)) => {
                self.calls.window = true;
                let has_key = self.job.scope.hold_key(&spec.partition_by);
                self.calls.foreign_window |= !has_key || spec.window_name.is_some();
            }
            Some(WindowType::NamedWindow(_)) => {
                self.calls.window = true;
                self.calls.foreign_window = true;
            }
            None => {
                self.calls.set |= name.is_none_or(|(schema, name)| self.job.functions.may_return_set(schema, name));
                self.calls.aggregate |= name.is_none_or(|(schema, name)| self.job.functions.is_aggregate(schema, name));
            }
        }
    }
}

/// What a tree calls.
pub(super) fn calls_in(job: &Job<'_>, tree: &impl Visit) -> Calls {
    let mut finder = CallFinder { job, calls: Calls::default(), depth: 0 };
    let _: ControlFlow<()> = tree.visit(&mut finder);
    finder.calls
}
