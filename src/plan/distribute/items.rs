//! The select list: which expression stands at which place, under which name, and what ORDER BY and GROUP BY mean by it.

use std::ops::Range;

use sqlparser::ast::{
    AccessExpr, Expr, ObjectNamePart, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr,
    Value as Literal, ValueWithSpan,
};

use super::refuse::{clause, refuse};
use super::scope::Scope;
use super::source::{Clauses, Source};
use crate::plan::Refusal;

/// One visible column of the answer.
#[derive(Debug, Clone)]
pub(super) struct Item<'t> {
    /// The expression's text.
    pub(super) text: String,
    /// Its tree; `None` for a column that a `*` stands for.
    pub(super) expr: Option<&'t Expr>,
    /// The column's name in the answer, where it is certain.
    pub(super) name: Option<Box<str>>,
}

/// The whole select list.
#[derive(Debug)]
pub(super) struct Items<'t> {
    /// Visible columns in order; with `is_exact` unset there may be more or others.
    pub(super) all: Vec<Item<'t>>,
    /// Whether every `*` could be spelled out.
    pub(super) is_exact: bool,
    /// Whether there is a `*`.
    pub(super) has_wildcard: bool,
}

/// What an element of ORDER BY or GROUP BY means.
#[derive(Debug, Clone)]
pub(super) enum Meant<'t> {
    /// That visible column.
    Item(usize),
    /// An expression of its own.
    Expr(&'t Expr, String),
}

impl Item<'_> {
    /// Whether a `*` has put it there for that column of that relation.
    pub(super) fn stands_for(&self, alias: &str, column: &str) -> bool {
        self.expr.is_none() && self.text == spelled(alias, column)
    }
}

/// A column of a relation, as SQL.
fn spelled(alias: &str, column: &str) -> String {
    format!("{}.{}", quoted(alias), quoted(column))
}

impl<'t> Items<'t> {
    pub(super) fn read(
        select: &'t Select,
        clauses: &Clauses,
        source: &Source<'_>,
        scope: &Scope<'_>,
    ) -> Result<Self, Refusal> {
        if clauses.items.len() != select.projection.len() {
            return Err(refuse(
                "text",
                "the select list could not be cut out of the text",
                "write the statement in a plainer way",
            ));
        }
        let mut items = Self { all: Vec::new(), is_exact: true, has_wildcard: false };
        for (item, range) in select.projection.iter().zip(&clauses.items) {
            match item {
                SelectItem::UnnamedExpr(expr) if is_nameless(expr) => {
                    return Err(clause("select-list", "a sub-query whose column has no certain name"));
                }
                SelectItem::UnnamedExpr(expr) => items.all.push(Item {
                    text: source.slice(range).to_owned(),
                    name: implicit_name(expr).map(Into::into),
                    expr: Some(expr),
                }),
                SelectItem::ExprWithAlias { expr, alias } => items.all.push(Item {
                    text: source.slice(&source.without_alias(range)).to_owned(),
                    name: Some(alias.value.as_str().into()),
                    expr: Some(expr),
                }),
                SelectItem::Wildcard(_) => items.wildcard(scope, None),
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                    let table = name.0.last().and_then(ObjectNamePart::as_ident).map(|ident| ident.value.as_str());
                    items.wildcard(scope, table);
                }
                _ => return Err(clause("select-list", "this form of select list item")),
            }
        }
        Ok(items)
    }

    fn wildcard(&mut self, scope: &Scope<'_>, table: Option<&str>) {
        self.has_wildcard = true;
        self.is_exact &= table.is_some() || (scope.merged.is_empty() && scope.blurred.is_empty());
        for source in scope.sources.iter().filter(|source| table.is_none_or(|table| *source.alias == *table)) {
            let Some(relation) = &source.relation else {
                self.is_exact = false;
                continue;
            };
            for column in &relation.columns {
                let text = spelled(&source.alias, &column.name);
                self.all.push(Item { text, expr: None, name: Some(column.name.clone()) });
            }
        }
    }

    /// What an element of ORDER BY means: an ordinal, then an output column's name, then an expression over the input.
    pub(super) fn ordered(&self, expr: &'t Expr, text: &str) -> Result<Meant<'t>, Refusal> {
        if let Some(meant) = self.ordinal(expr)? {
            return Ok(meant);
        }
        if let Expr::Identifier(ident) = expr
            && let Some(at) = self.named(&ident.value)?
        {
            return Ok(Meant::Item(at));
        }
        Ok(Meant::Expr(expr, text.to_owned()))
    }

    /// What an element of GROUP BY means: an ordinal, then an input column, then an output column's alias, then an expression.
    pub(super) fn grouped(&self, expr: &'t Expr, text: &str, scope: &Scope<'_>) -> Result<Meant<'t>, Refusal> {
        if let Some(meant) = self.ordinal(expr)? {
            return Ok(meant);
        }
        if let Expr::Identifier(ident) = expr
            && !scope.sources.iter().any(|source| source.column(&ident.value).is_some())
            && let Some(at) = self.named(&ident.value)?
        {
            return Ok(Meant::Item(at));
        }
        Ok(Meant::Expr(expr, text.to_owned()))
    }

    fn ordinal(&self, expr: &Expr) -> Result<Option<Meant<'t>>, Refusal> {
        let Expr::Value(ValueWithSpan { value, .. }) = expr else { return Ok(None) };
        let Literal::Number(digits, _) = value else {
            return Err(refuse("ordinal", "a constant in ORDER BY or GROUP BY", "name a column or its position"));
        };
        let at =
            digits.parse::<usize>().ok().and_then(|ordinal| ordinal.checked_sub(1)).filter(|&at| at < self.all.len());
        match at {
            Some(at) if self.is_exact => Ok(Some(Meant::Item(at))),
            _ => Err(refuse(
                "ordinal",
                format!("position {digits} of the select list is not known"),
                "name the column instead of its position",
            )),
        }
    }

    /// The visible column of that name, if there is one.
    fn named(&self, name: &str) -> Result<Option<usize>, Refusal> {
        let found: Vec<usize> = (0..self.all.len()).filter(|&at| self.all[at].name.as_deref() == Some(name)).collect();
        let is_uncertain = self.all.iter().any(|item| item.name.is_none());
        match found.as_slice() {
            [] if is_uncertain && UNCERTAIN_NAMES.contains(&name) => Err(refuse(
                "order-by",
                format!("what \"{name}\" names is not certain"),
                "give the select list item an alias with AS",
            )),
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            [first, rest @ ..] => {
                let is_same = rest.iter().all(|&at| self.all[at].text == self.all[*first].text);
                if is_same {
                    Ok(Some(*first))
                } else {
                    Err(refuse("order-by", format!("\"{name}\" is ambiguous"), "use another alias"))
                }
            }
        }
    }
}

/// Names that PostgreSQL may give to columns whose name [`implicit_name`] leaves open.
const UNCERTAIN_NAMES: [&str; 30] = [
    "case",
    "coalesce",
    "greatest",
    "least",
    "nullif",
    "extract",
    "date_part",
    "overlay",
    "position",
    "substring",
    "btrim",
    "ltrim",
    "rtrim",
    "ceil",
    "floor",
    "timezone",
    "row",
    "array",
    "exists",
    "interval",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "int4",
    "int8",
    "numeric",
    "text",
    "bool",
    "varchar",
];

/// The name that PostgreSQL's `FigureColname` gives a column, where it hangs on names in the text alone.
pub(super) fn implicit_name(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Identifier(ident) => Some(&ident.value),
        Expr::CompoundIdentifier(idents) => idents.last().map(|ident| ident.value.as_str()),
        Expr::Function(function) => Some(&function.name.0.last()?.as_ident()?.value),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => implicit_name(inner),
        Expr::Cast { expr, .. } => implicit_name(expr),
        // Of what stands behind ELSE, if that has one.
        Expr::Case { else_result: Some(expr), .. } => implicit_name(expr),
        Expr::CompoundFieldAccess { root, access_chain } => {
            let field = access_chain.iter().rev().find_map(|access| match access {
                AccessExpr::Dot(Expr::Identifier(field)) => Some(&*field.value),
                _ => None,
            });
            field.or_else(|| implicit_name(root))
        }
        Expr::Subquery(query) => match first_item(query)? {
            SelectItem::UnnamedExpr(expr) => implicit_name(expr),
            SelectItem::ExprWithAlias { alias, .. } => Some(&alias.value),
            _ => None,
        },
        _ => None,
    }
}

fn first_item(query: &Query) -> Option<&SelectItem> {
    match &*query.body {
        SetExpr::Select(select) => select.projection.first(),
        _ => None,
    }
}

/// Whether an expression takes its name from a query that may call it anything.
fn is_nameless(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner)
        | Expr::Collate { expr: inner, .. }
        | Expr::Cast { expr: inner, .. }
        | Expr::Case { else_result: Some(inner), .. }
        | Expr::CompoundFieldAccess { root: inner, .. } => is_nameless(inner),
        Expr::Subquery(query) => match first_item(query) {
            Some(SelectItem::UnnamedExpr(expr)) => is_nameless(expr),
            Some(SelectItem::ExprWithAlias { .. }) => false,
            _ => true,
        },
        _ => false,
    }
}

/// A range of the text in parentheses, fit to stand as one operand or item.
pub(super) fn wrapped(text: &str) -> String {
    format!("({text})")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The ranges' texts.
pub(super) fn texts<'s>(source: &Source<'s>, ranges: &[Range<usize>]) -> Vec<&'s str> {
    ranges.iter().map(|range| source.slice(range)).collect()
}
