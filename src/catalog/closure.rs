//! What a read reads and what a write can change, followed to the end through partitions, views, foreign keys and rules.

use std::collections::{HashMap, HashSet};

use super::model::{Oid, Relation, RelationKind, RowRules};
use super::policies;

/// `now()`: stands in a view's functions for whatever else ties its rows to the moment.
const NOW: Oid = 1299;

/// How relations hang together.
#[derive(Debug, Default)]
pub(super) struct Edges {
    /// Partitions and inheritance children by parent.
    pub(super) children: HashMap<Oid, Vec<Oid>>,
    /// Parents by child.
    pub(super) parents: HashMap<Oid, Vec<Oid>>,
    /// Referencing tables that a foreign key's action writes to, by referenced table.
    pub(super) cascades: HashMap<Oid, Vec<Oid>>,
    /// Relations where a write runs code that the catalog does not show.
    pub(super) opaque: HashSet<Oid>,
    /// Row-level security's policies, with the relations that each reads, by the table that they are on.
    pub(super) policies: HashMap<Oid, Vec<(Vec<Oid>, RowRules)>>,
    bases: HashMap<Oid, Vec<Oid>>,
    functions: HashMap<Oid, Vec<Oid>>,
}

impl Edges {
    /// Takes in one row of `pg_rewrite`: a view's definition, or a rule that turns writes into something else.
    pub(super) fn rule(&mut self, relation: Oid, is_view: bool, bases: Vec<Oid>, functions: Vec<Oid>, momentary: bool) {
        if !is_view {
            self.opaque.insert(relation);
            return;
        }
        let called = self.functions.entry(relation).or_default();
        called.extend(functions.into_iter().filter(|&function| function != 0));
        if momentary {
            called.push(NOW);
        }
        self.bases.entry(relation).or_default().extend(bases);
    }
}

/// Fills in `reads`, `writes`, `writes_opaque`, `view_functions`, `row_rules` and the row security of views.
pub(super) fn close(relations: &mut HashMap<Oid, Relation>, edges: &Edges) {
    let kinds: HashMap<Oid, RelationKind> = relations.iter().map(|(&oid, relation)| (oid, relation.kind)).collect();
    let secured: HashSet<Oid> =
        relations.values().filter(|relation| relation.row_security).map(|relation| relation.oid).collect();
    let is = |oid: Oid, kind: RelationKind| kinds.get(&oid) == Some(&kind);
    let none = Vec::new();
    // A policy that is on a table without row-level security is not looked at.
    let seen_by_policies: HashMap<Oid, Vec<Oid>> = secured
        .iter()
        .map(|&oid| {
            (oid, edges.policies.get(&oid).into_iter().flatten().flat_map(|(reads, _)| reads.clone()).collect())
        })
        .collect();
    for (&oid, relation) in relations.iter_mut() {
        // A materialized view holds its rows: reading it reads no base.
        let reads = reach(oid, |at| {
            let bases = if is(at, RelationKind::View) { edges.bases.get(&at).unwrap_or(&none) } else { &none };
            [edges.children.get(&at).unwrap_or(&none), bases, seen_by_policies.get(&at).unwrap_or(&none)]
        });
        let mut writes = reach(oid, |at| {
            let bases = if is(at, RelationKind::View) { edges.bases.get(&at).unwrap_or(&none) } else { &none };
            [edges.children.get(&at).unwrap_or(&none), edges.cascades.get(&at).unwrap_or(&none), bases]
        });
        // A parent holds its partitions' rows, but a write to one partition leaves the others alone.
        for at in writes.clone() {
            writes.extend(reach(at, |child| [edges.parents.get(&child).unwrap_or(&none)]));
        }
        writes.sort_unstable();
        writes.dedup();
        relation.row_security |= reads.iter().any(|base| secured.contains(base));
        relation.row_rules = policies::together(reads.iter().filter(|base| secured.contains(base)), &edges.policies);
        relation.writes_opaque =
            writes.iter().any(|&at| edges.opaque.contains(&at) || is(at, RelationKind::ForeignTable));
        let mut called = Vec::new();
        if matches!(relation.kind, RelationKind::View | RelationKind::MaterializedView) {
            // What a materialized view calls, it called when it was refreshed.
            let live = reads.iter().filter(|&&at| at == oid || !is(at, RelationKind::MaterializedView));
            called.extend(live.filter_map(|at| edges.functions.get(at)).flatten());
        }
        called.sort_unstable();
        called.dedup();
        relation.view_functions = called;
        relation.reads = reads;
        relation.writes = writes;
    }
}

/// Everything that can be reached from `start`, itself included, sorted.
fn reach<'a, const N: usize>(start: Oid, next: impl Fn(Oid) -> [&'a Vec<Oid>; N]) -> Vec<Oid> {
    let mut found = vec![start];
    let mut at = 0;
    let mut seen = HashSet::from([start]);
    while let Some(&oid) = found.get(at) {
        at += 1;
        for &reached in next(oid).into_iter().flatten() {
            if seen.insert(reached) {
                found.push(reached);
            }
        }
    }
    found.sort_unstable();
    found
}
