//! One FROM list: its relations, the joins between them, whether sharded ones lie together, and which shards are left.

use std::ops::Range;

use sqlparser::ast::{Expr, Join, JoinConstraint, JoinOperator, TableFactor, TableWithJoins};

use super::constant::Constants;
use super::refuse::{clause, refuse};
use super::scope::{Role, Scope, parts};
use super::tie::{self, Link, Sets, Ties};
use crate::plan::Refusal;
use crate::plan::shard_key::ShardSet;

/// How a relation joins what stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// First of its chain, or inner join.
    Inner,
    /// `LEFT JOIN`: it may be missing.
    Left,
    /// `RIGHT JOIN`: what stands before it may be missing.
    Right,
    /// `FULL JOIN`
    Full,
}

/// Side and constraint of a join; `None` for what PostgreSQL does not have.
pub(super) fn side(join: &Join) -> Option<(Side, &JoinConstraint)> {
    match &join.join_operator {
        JoinOperator::Join(constraint) | JoinOperator::Inner(constraint) | JoinOperator::CrossJoin(constraint) => {
            Some((Side::Inner, constraint))
        }
        JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) => Some((Side::Left, constraint)),
        JoinOperator::Right(constraint) | JoinOperator::RightOuter(constraint) => Some((Side::Right, constraint)),
        JoinOperator::FullOuter(constraint) => Some((Side::Full, constraint)),
        _ => None,
    }
}

/// The tables of a FROM list in order, with how each joins.
pub(super) fn factors(from: &[TableWithJoins]) -> Result<Vec<(usize, Side, &JoinConstraint, &TableFactor)>, Refusal> {
    let mut factors = Vec::new();
    for (chain, item) in from.iter().enumerate() {
        factors.push((chain, Side::Inner, &JoinConstraint::None, &item.relation));
        for join in &item.joins {
            let (side, constraint) = side(join).ok_or_else(|| clause("join", "this kind of join"))?;
            if matches!(constraint, JoinConstraint::Natural) {
                return Err(refuse(
                    "natural-join",
                    "NATURAL JOIN is not supported over shards",
                    "name the columns: USING (...) or ON",
                ));
            }
            factors.push((chain, side, constraint, &join.relation));
        }
    }
    Ok(factors)
}

/// What a block's joins and conditions make of its sharded relations.
#[derive(Debug)]
pub(super) struct Joined {
    /// Whether rows that meet lie on one shard, so that the shards' answers together are the whole answer.
    pub(super) together: Result<(), Refusal>,
    /// Shards that can give rows, if they lie together.
    pub(super) shards: ShardSet,
    /// Whether an equality of keys binds one of them to a relation further out, so that no row counts but those that lie where
    /// that one's do.
    pub(super) is_bound: bool,
}

/// Reads joins and WHERE: fills each relation's shard sets in and says whether the sharded ones lie together.
pub(super) fn join(
    scope: &mut Scope<'_>,
    constants: Constants<'_>,
    joins: &[(usize, Side, &JoinConstraint)],
    selection: Option<&Expr>,
) -> Joined {
    let (found, links, own) = read(scope, constants, joins, selection);
    let is_bound = is_bound(scope, constants, joins, selection);
    let mut union = Union::new(scope.sources.len());
    links.iter().for_each(|&(a, b)| union.join(a, b));
    let mut groups = Sets::new();
    let ties = Ties { constants, scope };
    for (index, reach) in found {
        ties.and(&mut groups, Sets::from([(union.root(index), reach)]));
    }
    for index in 0..scope.sources.len() {
        let Some(all) = scope.sources[index].layout().map(crate::plan::shard_key::Layout::all) else { continue };
        let filtered = groups.get(&union.root(index)).map_or(all, |reach| reach.shards.clone());
        let source = &mut scope.sources[index];
        source.tied = filtered.clone();
        source.filtered = filtered;
        if let Some(within) = &source.within {
            source.tied.retain(|shard| within.contains(shard));
            // Of one that an outer join may miss, rows of other shards show without it.
            if !source.nullable {
                source.filtered.retain(|shard| within.contains(shard));
            }
        }
    }
    for (index, (sets, links)) in own.iter().enumerate() {
        let mut tied = scope.sources[index].tied.clone();
        if let Some(reach) = sets.get(&index) {
            tied.retain(|shard| reach.shards.contains(shard));
        }
        // What a RIGHT or FULL JOIN's condition says binds only rows that meet: the joined relation shows the others too.
        let is_left = joins[index].1 == Side::Left;
        for &(a, b) in links.iter().filter(|(a, b)| is_left && (*a == index || *b == index)) {
            let other = &scope.sources[if a == index { b } else { a }].tied;
            tied.retain(|shard| other.contains(shard));
        }
        scope.sources[index].tied = tied;
    }
    let shards = scope.sharded().map(|(_, source, _)| &source.filtered).fold(None, |shards: Option<ShardSet>, set| {
        Some(shards.map_or_else(|| set.clone(), |shards| shards.intersection(set).copied().collect()))
    });
    Joined { together: together(scope, joins, &own, &mut union), shards: shards.unwrap_or_default(), is_bound }
}

fn is_bound(
    scope: &Scope<'_>,
    constants: Constants<'_>,
    joins: &[(usize, Side, &JoinConstraint)],
    selection: Option<&Expr>,
) -> bool {
    let ties = Ties { constants, scope };
    let conditions = joins.iter().filter_map(|(_, side, constraint)| match (side, constraint) {
        (Side::Inner, JoinConstraint::On(condition)) => Some(condition),
        _ => None,
    });
    let bound = selection.into_iter().chain(conditions).flat_map(|condition| ties.correlated(condition));
    bound.into_iter().any(|(index, _)| scope.sources.get(index).is_some_and(|source| !source.nullable))
}

/// A LEFT JOIN's own condition, by relation: sets and links that bind only the joined relation.
type Own = Vec<(Sets, Vec<(usize, usize)>)>;

fn read(
    scope: &mut Scope<'_>,
    constants: Constants<'_>,
    joins: &[(usize, Side, &JoinConstraint)],
    selection: Option<&Expr>,
) -> (Sets, Vec<(usize, usize)>, Own) {
    // A RIGHT or FULL JOIN shows rows that an inner join before it dropped.
    let inner_filters = !joins.iter().any(|(_, side, _)| matches!(side, Side::Right | Side::Full));
    let ties = Ties { constants, scope };
    let (mut sets, mut links) = match selection {
        Some(condition) => (ties.sets(condition), ties.links(condition)),
        None => (Sets::new(), Vec::<Link>::new()),
    };
    let mut own = Own::new();
    for (index, (chain, side, constraint)) in joins.iter().enumerate() {
        let before = joins.iter().position(|(first, _, _)| first == chain).unwrap_or(0)..index;
        let (mut on_sets, mut on_links) = match constraint {
            JoinConstraint::On(condition) => (ties.sets(condition), ties.links(condition)),
            JoinConstraint::Using(columns) => (Sets::new(), using(ties, columns, before, index)),
            _ => (Sets::new(), Vec::new()),
        };
        match side {
            Side::Inner => {
                links.append(&mut on_links);
                if inner_filters {
                    ties.and(&mut sets, on_sets);
                }
                own.push((Sets::new(), Vec::new()));
            }
            Side::Left => own.push((on_sets, tie::whole(&on_links))),
            Side::Right | Side::Full => {
                on_sets.clear();
                own.push((on_sets, tie::whole(&on_links)));
            }
        }
    }
    // Links of inner joins bind across a later outer join too, but a shard set then does not.
    (sets, tie::whole(&links), own)
}

fn using(ties: Ties<'_>, columns: &[sqlparser::ast::ObjectName], before: Range<usize>, index: usize) -> Vec<Link> {
    let names = columns.iter().filter_map(|column| parts(column)).map(|(_, name)| name);
    names.flat_map(|name| before.clone().filter_map(move |at| ties.link(at, index, name, name))).collect()
}

fn together(
    scope: &Scope<'_>,
    joins: &[(usize, Side, &JoinConstraint)],
    own: &Own,
    union: &mut Union,
) -> Result<(), Refusal> {
    let mut all: Vec<usize> = Vec::new();
    let mut chain_members: Vec<usize> = Vec::new();
    let mut current = usize::MAX;
    for (index, (chain, side, _)) in joins.iter().enumerate() {
        if *chain != current {
            current = *chain;
            connect(scope, &mut all, &chain_members, union)?;
            chain_members.clear();
        }
        let is_sharded = scope.sources[index].layout().is_some();
        let has_link = own[index].1.iter().any(|(a, b)| *a == index || *b == index);
        match (side, is_sharded, chain_members.is_empty()) {
            (Side::Inner, true, false) => {
                connect(scope, &mut chain_members.clone(), &[index], union)?;
            }
            (Side::Left | Side::Right | Side::Full, true, false) if !has_link => {
                return Err(not_together(scope, index));
            }
            (Side::Left | Side::Full, true, true) | (Side::Right | Side::Full, false, false) => {
                return Err(preserved(scope, index));
            }
            _ => {}
        }
        if is_sharded {
            chain_members.push(index);
        }
    }
    connect(scope, &mut all, &chain_members, union)
}

/// Takes `more` in, if an equality of keys binds it to what is there.
fn connect(scope: &Scope<'_>, members: &mut Vec<usize>, more: &[usize], union: &mut Union) -> Result<(), Refusal> {
    let is_linked = members.is_empty()
        || more.is_empty()
        || more.iter().any(|&new| members.iter().any(|&old| union.root(new) == union.root(old)));
    if !is_linked {
        return Err(not_together(scope, more[0]));
    }
    members.extend_from_slice(more);
    Ok(())
}

fn not_together(scope: &Scope<'_>, index: usize) -> Refusal {
    let alias = &scope.sources[index].alias;
    refuse(
        "join",
        format!("the join with sharded table \"{alias}\" is not on the shard keys of tables that are sharded alike"),
        "join sharded tables on their shard keys, or tie them all to one value of the key",
    )
}

fn preserved(scope: &Scope<'_>, index: usize) -> Refusal {
    let alias = &scope.sources[index].alias;
    refuse(
        "outer-join",
        format!("the outer join with \"{alias}\" would show unmatched rows of a reference table once per shard"),
        "put the sharded table on the outer join's preserved side",
    )
}

impl Role {
    /// Whether a streamed statement may read it.
    pub(super) fn is_table(&self) -> bool {
        matches!(self, Self::Sharded(_) | Self::Reference)
    }
}

/// Which relations are bound to each other.
#[derive(Debug)]
struct Union(Vec<usize>);

impl Union {
    fn new(len: usize) -> Self {
        Self((0..len).collect())
    }

    fn root(&self, mut at: usize) -> usize {
        while self.0[at] != at {
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a] = b;
    }
}
