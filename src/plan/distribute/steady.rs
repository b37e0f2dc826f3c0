//! Whether a query over reference tables gives the same on every shard: their rows are the same, but not the order they lie in.

use std::ops::ControlFlow;

use sqlparser::ast::{Distinct, Expr, Query, Select, Visit, Visitor};

use super::functions::Functions;
use super::scope::parts;

/// Aggregates whose results do not hang on the order of their input, whatever its type.
const ORDERLESS: [&str; 7] = ["count", "min", "max", "bool_and", "bool_or", "every", "bit_or"];

/// Whether nothing in it picks some of several rows, or looks at the order that they come in.
pub(super) fn is_steady(tree: &impl Visit, functions: Functions<'_>) -> bool {
    let mut finder = Finder { functions };
    matches!(tree.visit(&mut finder), ControlFlow::Continue(()))
}

struct Finder<'a> {
    functions: Functions<'a>,
}

fn flow(is_steady: bool) -> ControlFlow<()> {
    if is_steady { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

impl Visitor for Finder<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        flow(query.limit_clause.is_none() && query.fetch.is_none())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        flow(!matches!(select.distinct, Some(Distinct::On(_))) && select.named_window.is_empty())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        let is_orderless = parts(&function.name)
            .is_some_and(|(schema, name)| !self.functions.is_aggregate(schema, name) || ORDERLESS.contains(&name));
        flow(function.over.is_none() && is_orderless)
    }
}
