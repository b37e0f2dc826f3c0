//! Whether a query over reference tables gives the same on every shard: their rows are the same, but not the order they lie in.
//!
//! Where one of several equal values is taken (the greatest, the one that stands for a group), which one it is hangs on that order, unless
//! equal values are identical: numeric 1.0 and 1.00 are equal and are not. Where such a number is only compared with another one, any of the
//! equal ones will do: `rate = (SELECT max(rate) FROM rates)`, `rate IN (SELECT DISTINCT rate FROM rates)`.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Distinct, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments,
    GroupByExpr, Query, Select, SelectItem, SetExpr, SetOperator, SetQuantifier, TableFactor, Value as Literal, Visit,
    Visitor,
};

use super::functions::Functions;
use super::items::ordinal;
use super::scope::parts;
use crate::catalog::model::{Catalog, Column, Oid, RelationKind};

/// Aggregates whose results do not hang on the order of their input, whatever its type.
const ORDERLESS: [&str; 5] = ["count", "bool_and", "bool_or", "every", "bit_or"];

/// Those that give one of their input's values.
const CHOOSING: [&str; 2] = ["min", "max"];

/// Types of which equal values are identical: bool, bytea, name, int8, int2, int4, text, oid, varchar, date, time, timestamp, timestamptz,
/// timetz, uuid.
const IDENTICAL: [Oid; 15] = [16, 17, 19, 20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184, 1266, 2950];
/// `char(n)` and numeric: where the column says how long or with which scale.
const WITH_MODIFIER: [Oid; 2] = [1042, 1700];
const DEFAULT_COLLATION: Oid = 100;
/// Types of numbers, which PostgreSQL compares by their values, each with each: int8, int2, int4, float4, float8, numeric.
const NUMBERS: [Oid; 6] = [20, 21, 23, 700, 701, 1700];

/// Whether nothing in it picks some of several rows, or looks at the order that they come in.
pub(super) fn is_steady(tree: &impl Visit, functions: Functions<'_>) -> bool {
    let mut aliases = Aliases(BTreeSet::new());
    let _ = tree.visit(&mut aliases);
    let mut finder = Finder { functions, aliases: aliases.0, compared: Vec::new() };
    matches!(tree.visit(&mut finder), ControlFlow::Continue(()))
}

/// Names that columns are given on the way: what such a name means is not looked up.
struct Aliases(BTreeSet<String>);

impl Visitor for Aliases {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let ctes = query.with.iter().flat_map(|with| &with.cte_tables);
        self.0.extend(ctes.flat_map(|cte| &cte.alias.columns).map(|column| column.name.value.clone()));
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.0.extend(select.projection.iter().filter_map(|item| match item {
            SelectItem::ExprWithAlias { alias, .. } => Some(alias.value.clone()),
            _ => None,
        }));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let alias = match factor {
            TableFactor::Table { alias, .. }
            | TableFactor::Derived { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::UNNEST { alias, .. }
            | TableFactor::NestedJoin { alias, .. } => alias.as_ref(),
            _ => None,
        };
        self.0.extend(alias.into_iter().flat_map(|alias| &alias.columns).map(|column| column.name.value.clone()));
        ControlFlow::Continue(())
    }
}

struct Finder<'a> {
    functions: Functions<'a>,
    aliases: BTreeSet<String>,
    /// SELECTs of one number that is compared with a number and not shown, and the calls in them that choose it: by where they lie.
    compared: Vec<usize>,
}

fn flow(is_steady: bool) -> ControlFlow<()> {
    if is_steady { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

impl Finder<'_> {
    /// Whether equal values of it are identical.
    fn is_identical(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Nested(inner) => self.is_identical(inner),
            Expr::Value(_) => true,
            Expr::Identifier(name) => self.is_identical_column(&name.value),
            Expr::CompoundIdentifier(names) => names.last().is_some_and(|name| self.is_identical_column(&name.value)),
            Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, data_type, .. } => matches!(
                data_type,
                DataType::Text
                    | DataType::Int2(None)
                    | DataType::Int4(None)
                    | DataType::Int8(None)
                    | DataType::SmallInt(None)
                    | DataType::Int(None)
                    | DataType::Integer(None)
                    | DataType::BigInt(None)
                    | DataType::Date
                    | DataType::Bool
                    | DataType::Boolean
                    | DataType::Uuid
            ),
            _ => false,
        }
    }

    /// Whether that holds for every column of that name.
    fn is_identical_column(&self, name: &str) -> bool {
        let catalog = self.functions.catalog;
        let relations = catalog.relations.values().filter(|relation| relation.kind != RelationKind::Other);
        let mut columns = relations.flat_map(|relation| &relation.columns).filter(|column| *column.name == *name);
        let first = columns.next();
        !self.aliases.contains(name)
            && first.is_some_and(|first| std::iter::once(first).chain(columns).all(|column| is_fit(catalog, column)))
    }

    /// Whether it is a number, of any type that has any.
    fn is_number(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Nested(inner) => self.is_number(inner),
            Expr::Value(value) => matches!(value.value, Literal::Number(..)),
            Expr::Identifier(name) => self.is_number_column(&name.value),
            Expr::CompoundIdentifier(names) => names.last().is_some_and(|name| self.is_number_column(&name.value)),
            _ => false,
        }
    }

    /// Whether that holds for every column of that name.
    fn is_number_column(&self, name: &str) -> bool {
        let relations = self.functions.catalog.relations.values();
        let columns = relations.filter(|it| it.kind != RelationKind::Other).flat_map(|it| &it.columns);
        let mut found = columns.filter(|column| *column.name == *name).peekable();
        !self.aliases.contains(name) && found.peek().is_some() && found.all(|column| NUMBERS.contains(&column.type_oid))
    }

    /// Notes what of a comparison gives one number out of several equal ones.
    fn note_compared(&mut self, expr: &Expr) {
        use BinaryOperator as Op;
        let (number, query) = match expr {
            Expr::BinaryOp { left, op: Op::Eq | Op::NotEq | Op::Lt | Op::LtEq | Op::Gt | Op::GtEq, right } => {
                match (&**left, &**right) {
                    (number, Expr::Subquery(query)) | (Expr::Subquery(query), number) => (number, query),
                    _ => return,
                }
            }
            Expr::InSubquery { expr, subquery, .. } => (&**expr, subquery),
            _ => return,
        };
        let SetExpr::Select(select) = &*query.body else { return };
        let [SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }] = &*select.projection else {
            return;
        };
        let chosen = choice(item);
        if self.is_number(number) && self.is_number(chosen.map_or(item, |(_, argument)| argument)) {
            self.compared.push(place(&**select));
            self.compared.extend(chosen.map(|(function, _)| place(function)));
        }
    }

    fn are_identical(&self, items: &[SelectItem]) -> bool {
        items.iter().all(|item| match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => self.is_identical(expr),
            _ => false,
        })
    }

    /// Whether the rows of such a body are identical where they are equal.
    fn has_identical_rows(&self, body: &SetExpr) -> bool {
        match body {
            SetExpr::Select(select) => self.are_identical(&select.projection),
            SetExpr::Query(query) => self.has_identical_rows(&query.body),
            SetExpr::SetOperation { left, right, .. } => {
                self.has_identical_rows(left) && self.has_identical_rows(right)
            }
            SetExpr::Values(values) => values.rows.iter().all(|row| row.content.iter().all(|it| self.is_identical(it))),
            _ => false,
        }
    }

    /// Whether each set operation in it keeps all rows, or rows that are identical where they are equal.
    fn keeps_steady_rows(&self, body: &SetExpr) -> bool {
        let SetExpr::SetOperation { op, set_quantifier, left, right } = body else { return true };
        let keeps_all = matches!((op, set_quantifier), (SetOperator::Union, SetQuantifier::All));
        (keeps_all || self.has_identical_rows(body)) && self.keeps_steady_rows(left) && self.keeps_steady_rows(right)
    }

    /// Whether the values of a key of GROUP BY are identical where they are equal; a number is the place of an item.
    fn is_key(&self, key: &Expr, select: &Select) -> bool {
        let is_fit = |item: &SelectItem| match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                self.is_identical(expr) || self.is_aggregate(expr)
            }
            _ => false,
        };
        match ordinal(key) {
            Some(_) => select.projection.iter().all(is_fit),
            None => self.is_identical(key),
        }
    }

    fn is_aggregate(&self, expr: &Expr) -> bool {
        let Expr::Function(function) = expr else { return false };
        parts(&function.name).is_some_and(|(schema, name)| self.functions.is_aggregate(schema, name))
    }

    fn argument_is_identical(&self, function: &Function) -> bool {
        let FunctionArguments::List(list) = &function.args else { return false };
        list.args.iter().all(|argument| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => self.is_identical(expr),
            _ => false,
        })
    }
}

/// Where a part of the tree lies.
fn place<T>(part: &T) -> usize {
    std::ptr::from_ref(part).addr()
}

/// The call that gives the least or the greatest of something, and of what.
fn choice(expr: &Expr) -> Option<(&Function, &Expr)> {
    let Expr::Function(function) = expr else { return None };
    let FunctionArguments::List(list) = &function.args else { return None };
    match (parts(&function.name), list.args.as_slice()) {
        (Some((_, name)), [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))]) if CHOOSING.contains(&name) => {
            Some((function, argument))
        }
        _ => None,
    }
}

fn is_fit(catalog: &Catalog, column: &Column) -> bool {
    let is_enum = || catalog.types.get(&column.type_oid).is_some_and(|known| known.kind == 'e');
    let has_one_form = IDENTICAL.contains(&column.type_oid)
        || (WITH_MODIFIER.contains(&column.type_oid) && column.typmod >= 0)
        || is_enum();
    let collation = match column.collation {
        0 => return has_one_form,
        DEFAULT_COLLATION => catalog.default_collation.as_ref(),
        other => catalog.collations.get(&other),
    };
    has_one_form && collation.is_some_and(|collation| collation.deterministic)
}

impl Visitor for Finder<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        flow(query.limit_clause.is_none() && query.fetch.is_none() && self.keeps_steady_rows(&query.body))
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        let is_distinct_steady = match &select.distinct {
            None | Some(Distinct::All) => true,
            Some(Distinct::Distinct) => {
                self.compared.contains(&place(select)) || self.are_identical(&select.projection)
            }
            Some(Distinct::On(_)) => false,
        };
        let is_group_steady = match &select.group_by {
            GroupByExpr::Expressions(keys, modifiers) => {
                modifiers.is_empty() && keys.iter().all(|key| self.is_key(key, select))
            }
            GroupByExpr::All(_) => false,
        };
        flow(is_distinct_steady && is_group_steady && select.named_window.is_empty())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.note_compared(expr);
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        let is_steady = parts(&function.name).is_some_and(|(schema, name)| {
            !self.functions.is_aggregate(schema, name)
                || ORDERLESS.contains(&name)
                || (CHOOSING.contains(&name)
                    && (self.compared.contains(&place(function)) || self.argument_is_identical(function)))
        });
        flow(function.over.is_none() && is_steady)
    }
}
