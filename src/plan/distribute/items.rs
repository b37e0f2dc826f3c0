//! The select list: which expression stands at which place, under which name, and what ORDER BY and GROUP BY mean by it.

use std::ops::Range;

use sqlparser::ast::{
    Expr, ObjectNamePart, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, UnaryOperator,
    Value as Literal, ValueWithSpan,
};

use super::label::Label;
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
    /// What it is called without an alias.
    label: Label,
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
                SelectItem::UnnamedExpr(expr) => {
                    let label = Label::of(expr);
                    items.all.push(Item {
                        text: source.slice(range).to_owned(),
                        expr: Some(expr),
                        name: label.clone().name(),
                        label,
                    });
                }
                SelectItem::ExprWithAlias { expr, alias } => items.all.push(Item {
                    text: source.slice(&source.without_alias(range)).to_owned(),
                    name: Some(alias.value.as_str().into()),
                    expr: Some(expr),
                    label: Label::Strong(alias.value.as_str().into()),
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
                let label = Label::Strong(column.name.clone());
                self.all.push(Item { text, expr: None, name: Some(column.name.clone()), label });
            }
        }
    }

    /// What an element of ORDER BY means: an ordinal, then an output column's name, then an expression over the input.
    pub(super) fn ordered(&self, expr: &'t Expr, text: &str) -> Result<Meant<'t>, Refusal> {
        let expr = bare(expr);
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
        let expr = bare(expr);
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
        let at = match ordinal(expr) {
            None => return Ok(None),
            Some(ordinal) => ordinal.and_then(|ordinal| ordinal.checked_sub(1)).filter(|&at| at < self.all.len()),
        };
        match at {
            Some(at) if self.is_exact => Ok(Some(Meant::Item(at))),
            _ => Err(refuse(
                "ordinal",
                "a constant in ORDER BY or GROUP BY that is no known position of the select list",
                "name the column instead of its position",
            )),
        }
    }

    /// The visible column of that name, if there is one.
    fn named(&self, name: &str) -> Result<Option<usize>, Refusal> {
        let found: Vec<usize> = (0..self.all.len()).filter(|&at| self.all[at].name.as_deref() == Some(name)).collect();
        if self.all.iter().any(|item| item.label.may_be(name)) {
            return Err(refuse(
                "order-by",
                format!("what \"{name}\" names is not certain"),
                "give the select list item an alias with AS",
            ));
        }
        match found.as_slice() {
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

/// An expression without the parentheses around it, which PostgreSQL's grammar drops: `ORDER BY (2)` is a position, `GROUP BY (a)` a name.
pub(super) fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Nested(inner) => bare(inner),
        expr => expr,
    }
}

/// The position that an element of ORDER BY or GROUP BY names; `None` inside for a constant that can be none. The grammar takes minus signs
/// before a number into it.
pub(super) fn ordinal(expr: &Expr) -> Option<Option<usize>> {
    match bare(expr) {
        Expr::Value(ValueWithSpan { value: Literal::Number(digits, _), .. }) => Some(digits.parse().ok()),
        Expr::Value(_) => Some(None),
        // Nobody writes `- -1`, which is 1.
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => ordinal(expr).map(|_| None),
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
