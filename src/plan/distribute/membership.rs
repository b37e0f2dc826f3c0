//! `key IN (query)`: what a row's own shard says of it is the whole truth, if the query gives shard keys, each where it lies.

use sqlparser::ast::{BinaryOperator, Expr, Query, SelectItem, SetExpr};

use super::scope::Scope;
use super::tie::{self, Link};
use crate::plan::shard_key::Layout;

/// A condition of WHERE that must hold, joined to the others by AND: elsewhere it matters whether it is false or unknown.
#[derive(Debug)]
pub(super) struct Membership {
    /// Where the query's tree lies: a name for it, no more.
    query: usize,
    /// For each field on the left: the relation, the place in its shard key, and how it lies, if it is such a column.
    fields: Vec<Option<(usize, usize, Layout)>>,
}

impl Membership {
    /// All such conditions.
    pub(super) fn all(condition: &Expr, scope: &Scope<'_>) -> Vec<Self> {
        match condition {
            Expr::Nested(inner) => Self::all(inner, scope),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                let mut all = Self::all(left, scope);
                all.extend(Self::all(right, scope));
                all
            }
            Expr::InSubquery { expr, subquery, negated: false } => {
                let field = |expr: &Expr| {
                    let found = scope.column(expr).filter(|found| found.level == 0)?;
                    found.key().map(|(layout, at)| (found.index, at, layout.clone()))
                };
                let fields = match &**expr {
                    Expr::Tuple(fields) => fields.iter().map(field).collect(),
                    expr => vec![field(expr)],
                };
                vec![Self { query: name(subquery), fields }]
            }
            _ => Vec::new(),
        }
    }

    /// Whether it is the condition of that query.
    pub(super) fn is_of(&self, query: &Query) -> bool {
        self.query == name(query)
    }

    /// Whether what the query gives for the whole key of a relation is a whole key too, of rows that lie alike.
    pub(super) fn binds(&self, query: &Query, inner: &Scope<'_>) -> bool {
        let SetExpr::Select(select) = &*query.body else { return false };
        if select.projection.len() != self.fields.len() {
            return false;
        }
        let links = self.fields.iter().zip(&select.projection).filter_map(|(field, item)| {
            let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else { return None };
            let (outer, at, layout) = field.as_ref()?;
            let found = inner.column(expr).filter(|found| found.level == 0 && !found.source.nullable)?;
            let (other, to) = found.key()?;
            // Relations outside have numbers of their own.
            let b = inner.sources.len() + outer;
            (*at == to && layout.is_colocated(other)).then_some(Link {
                a: found.index,
                b,
                position: to,
                columns: layout.key.len(),
            })
        });
        !tie::whole(&links.collect::<Vec<_>>()).is_empty()
    }
}

fn name(query: &Query) -> usize {
    std::ptr::from_ref(query).addr()
}
