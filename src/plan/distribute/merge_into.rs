//! MERGE into a sharded or reference table: on one shard, or on all of them where each row of the source meets its targets, and is
//! inserted, on the shard that it lies on.

use sqlparser::ast::{
    Join, JoinConstraint, JoinOperator, Merge, MergeAction, MergeClauseKind, MergeInsertKind, MergeUpdateKind,
    TableFactor, TableWithJoins,
};

use super::analysis::{Analysis, Tie};
use super::defaults::is_default;
use super::refuse::refuse;
use super::scatter::{Sharded, Written};
use super::scope::{Role, Scope, parts};
use super::select_into::{self, Home};
use super::write;
use crate::catalog::model::{DefaultKind, Relation};
use crate::plan::Refusal;
use crate::plan::shard_key::Layout;

fn refused(what: &str) -> Refusal {
    refuse(
        "merge",
        format!("{what} in MERGE on sharded data"),
        "join on the whole shard key, or use INSERT ... ON CONFLICT",
    )
}

/// Reads a MERGE.
pub(super) fn merge(analysis: &mut Analysis<'_>, merge: &Merge) -> Result<Written, Refusal> {
    let inserts = merge.clauses.iter().any(|clause| !matches!(clause.clause_kind, MergeClauseKind::Matched));
    let is_known = |kind: &MergeClauseKind| matches!(kind, MergeClauseKind::Matched | MergeClauseKind::NotMatched);
    if merge.output.is_some() || !merge.clauses.iter().all(|clause| is_known(&clause.clause_kind)) {
        return Err(refused("this clause"));
    }
    // Rows of the source that meet none are there all the same where they are inserted.
    let on = JoinConstraint::On((*merge.on).clone());
    let (first, second, operator) = match inserts {
        true => (merge.source.clone(), merge.table.clone(), JoinOperator::Left(on)),
        false => (merge.table.clone(), merge.source.clone(), JoinOperator::Inner(on)),
    };
    let target = usize::from(inserts);
    let join = Join { relation: second, global: false, join_operator: operator };
    let from = [TableWithJoins { relation: first, joins: vec![join] }];
    let block = analysis.block(&from, None, None, &Vec::new())?;
    analysis.expressions(&merge.clauses, Some(&block.scope), &Vec::new())?;
    let written = block.scope.sources.get(target).ok_or_else(|| refused("this target"))?;
    match (&written.role, written.relation.clone()) {
        (Role::Reference, Some(relation)) => {
            if !matches!(merge.source, TableFactor::Table { .. }) {
                return Err(refused("a source that is no table"));
            }
            if inserts && relation.columns.iter().any(|column| column.default > DefaultKind::Constant) {
                return Err(refused("an INSERT of defaults that could be others on each shard"));
            }
            Ok(Written::Reference(relation))
        }
        (Role::Sharded(layout), Some(relation)) => {
            let home = clauses(analysis, merge, layout, &relation, &block.scope)?;
            let mut shards = block.joined.together.map(|()| block.joined.shards);
            match home {
                None | Some(Home::Source) => {}
                Some(Home::Shard(shard)) => {
                    analysis.take(shard);
                    if analysis.tie == Tie::Many {
                        shards = Err(refused("rows for one shard from several"));
                    }
                }
                Some(Home::Unknown) => {
                    analysis.tie = Tie::Many;
                    shards = Err(refused("an INSERT whose shard key is not that of its source"));
                }
            }
            Ok(Written::Sharded(Sharded { relation, rows: Vec::new(), shards, width: None, moves: None }))
        }
        (Role::Reference | Role::Sharded(_), None) => Err(refused("this target")),
        (Role::Derived | Role::Foreign, _) => Ok(Written::Elsewhere),
    }
}

/// Looks at what the clauses do; where inserted rows belong, if there are any.
fn clauses(
    analysis: &Analysis<'_>,
    merge: &Merge,
    layout: &Layout,
    relation: &Relation,
    scope: &Scope<'_>,
) -> Result<Option<Home>, Refusal> {
    let mut home = None;
    for clause in &merge.clauses {
        match &clause.action {
            MergeAction::Update(update) => match &update.kind {
                MergeUpdateKind::Set(assignments)
                    if update.update_predicate.is_none() && update.delete_predicate.is_none() =>
                {
                    write::assignments(layout, assignments)?;
                }
                _ => return Err(refused("this form of UPDATE")),
            },
            MergeAction::Insert(insert) => {
                let MergeInsertKind::Values(values) = &insert.kind else { return Err(refused("this form of INSERT")) };
                let [row] = values.rows.as_slice() else { return Err(refused("this form of INSERT")) };
                let names: Vec<&str> = match insert.columns.as_slice() {
                    [] => relation.columns.iter().map(|column| &*column.name).collect(),
                    listed => listed.iter().filter_map(|name| Some(parts(name)?.1)).collect(),
                };
                let left_out = relation.columns.iter().find(|column| {
                    let given = || names.iter().zip(row.iter()).find(|(name, _)| ***name == *column.name);
                    column.default == DefaultKind::Moment && given().is_none_or(|(_, value)| is_default(value))
                });
                if let Some(column) = left_out {
                    return Err(refused(&format!("the default of \"{}\", which is one for all rows,", column.name)));
                }
                let place = |name: &str| row.get(names.iter().position(|it| *it == name)?);
                let key: Option<Vec<_>> = layout.key.iter().map(|column| place(&column.column.name)).collect();
                let own = key.map_or(Home::Unknown, |key| select_into::home_of_exprs(analysis, layout, scope, &key));
                home = match home {
                    None => Some(own),
                    Some(known) if known == own => Some(own),
                    Some(_) => Some(Home::Unknown),
                };
            }
            MergeAction::Delete { .. } | MergeAction::DoNothing { .. } => {}
        }
    }
    Ok(home)
}
