//! The word DEFAULT in place of a value, and what a column is given by it.

use std::ops::ControlFlow;

use sqlparser::ast::{
    Assignment, AssignmentTarget, Expr, MergeAction, MergeUpdateKind, OnConflictAction, OnInsert, Statement, Visit,
    Visitor,
};

use super::refuse::refuse;
use super::scatter::one_for_all;
use super::scope::parts;
use crate::catalog::model::{Column, DefaultKind, Relation};
use crate::plan::Refusal;

/// Whether an expression is the word DEFAULT; parentheses around it are nothing to PostgreSQL's grammar.
pub(super) fn is_default(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_default(inner),
        Expr::Identifier(word) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case("default"),
        _ => false,
    }
}

/// Copies of a reference table would come to differ in that column.
pub(super) fn differs(column: &Column) -> Refusal {
    let message = format!("the default of \"{}\" could be another one on each shard", column.name);
    refuse("default", message, "give the column's value in the statement")
}

/// Refuses `SET column = DEFAULT` where shards would compute other values than each other, or than one PostgreSQL would.
pub(super) fn check_assigned(tree: &Statement, relation: &Relation, is_reference: bool) -> Result<(), Refusal> {
    let assigned = |name: &str| relation.columns.iter().find(|column| *column.name == *name);
    for column in set_to_default(tree).into_iter().filter_map(assigned) {
        match column.default {
            DefaultKind::None | DefaultKind::Constant => {}
            DefaultKind::PerRow if !is_reference => {}
            _ if is_reference => return Err(differs(column)),
            _ => return Err(one_for_all(column)),
        }
    }
    Ok(())
}

/// Columns that are assigned their defaults by UPDATE, ON CONFLICT DO UPDATE or MERGE.
fn set_to_default(tree: &Statement) -> Vec<&str> {
    match tree {
        Statement::Update(update) => among(&update.assignments),
        Statement::Insert(insert) => match &insert.on {
            Some(OnInsert::OnConflict(conflict)) => match &conflict.action {
                OnConflictAction::DoUpdate(update) => among(&update.assignments),
                OnConflictAction::DoNothing => Vec::new(),
            },
            _ => Vec::new(),
        },
        Statement::Merge(merge) => {
            let updates = merge.clauses.iter().filter_map(|clause| match &clause.action {
                MergeAction::Update(update) => Some(&update.kind),
                _ => None,
            });
            updates
                .flat_map(|kind| match kind {
                    MergeUpdateKind::Set(assignments) => among(assignments),
                    _ => Vec::new(),
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

fn among(assignments: &[Assignment]) -> Vec<&str> {
    let mut found = Vec::new();
    for Assignment { target, value } in assignments {
        match (target, value) {
            (AssignmentTarget::ColumnName(name), value) if is_default(value) => {
                found.extend(parts(name).map(|(_, name)| name));
            }
            (AssignmentTarget::ColumnName(_), _) => {}
            (AssignmentTarget::Tuple(names), Expr::Tuple(values)) if names.len() == values.len() => {
                let pairs = names.iter().zip(values).filter(|(_, value)| is_default(value));
                found.extend(pairs.filter_map(|(name, _)| Some(parts(name)?.1)));
            }
            // ROW(...), or a form that nobody has counted: any of them may be meant.
            (AssignmentTarget::Tuple(names), value) if holds_default(value) => {
                found.extend(names.iter().filter_map(|name| Some(parts(name)?.1)));
            }
            (AssignmentTarget::Tuple(_), _) => {}
        }
    }
    found
}

/// Whether the word stands anywhere in an expression.
fn holds_default(expr: &Expr) -> bool {
    struct Finder;
    impl Visitor for Finder {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if is_default(expr) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    expr.visit(&mut Finder).is_break()
}
