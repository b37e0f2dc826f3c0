//! INSERT whose rows come from a query: whether each row belongs to the shard that it is read from.

use sqlparser::ast::{Expr, Insert, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Statement};

use super::analysis::{Analysis, Block};
use super::model::{Distributed, Input, Merge};
use super::refuse::refuse;
use super::scope::{Scope, parts};
use super::source::Source;
use super::tie::Ties;
use crate::catalog::model::Relation;
use crate::plan::Refusal;
use crate::plan::shard_key::{Layout, ShardSet};
use crate::plan::value::Value;
use crate::sql::{self, parse};

/// Where rows belong that a query gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// All on that shard: their key is constant.
    Shard(usize),
    /// Where they are read: their key is that of a relation which is spread alike.
    Source,
    /// Nobody knows before they are there.
    Unknown,
}

/// One column that a query gives.
enum Given<'t> {
    Expr(&'t Expr),
    /// A column that `*` stands for: of the relation of that number in its block.
    Column(usize, String),
}

pub(super) fn across() -> Refusal {
    refuse(
        "insert-select",
        "INSERT of a query's rows that need not belong to the shards they are read from",
        "take the shard key from the shard key of a table that is sharded alike, or read the rows first and insert them with VALUES",
    )
}

/// Whether the INSERT takes its rows from a query instead of VALUES.
pub(super) fn is_query(insert: &Insert) -> bool {
    insert.source.as_ref().is_some_and(|query| !matches!(&*query.body, SetExpr::Values(_)))
}

/// Where the rows of an INSERT's query belong, and how many columns it gives, where that can be counted.
pub(super) fn home(
    analysis: &Analysis<'_>,
    insert: &Insert,
    layout: &Layout,
    relation: &Relation,
    block: Option<&Block<'_>>,
) -> (Home, Option<usize>) {
    let select = insert.source.as_ref().and_then(|query| plain(query));
    let given = select.zip(block).and_then(|(select, block)| given(select, &block.scope));
    let (Some(given), Some(block)) = (given, block) else { return (Home::Unknown, None) };
    let names: Vec<&str> = match insert.columns.as_slice() {
        [] => relation.columns.iter().map(|column| &*column.name).collect(),
        listed => listed.iter().filter_map(|name| Some(parts(name)?.1)).collect(),
    };
    let key = layout.key.iter().map(|column| {
        let at = names.iter().position(|name| **name == *column.column.name)?;
        given.get(at)
    });
    let key: Option<Vec<&Given<'_>>> = key.collect();
    let home = key.map_or(Home::Unknown, |key| home_of(analysis, layout, &block.scope, &key));
    (home, Some(given.len()))
}

/// Where rows belong whose keys are these expressions over a block's relations.
pub(super) fn home_of_exprs(analysis: &Analysis<'_>, layout: &Layout, scope: &Scope<'_>, key: &[&Expr]) -> Home {
    let given: Vec<Given<'_>> = key.iter().map(|expr| Given::Expr(expr)).collect();
    home_of(analysis, layout, scope, &given.iter().collect::<Vec<_>>())
}

fn home_of(analysis: &Analysis<'_>, layout: &Layout, scope: &Scope<'_>, key: &[&Given<'_>]) -> Home {
    let constants: Option<Vec<Option<Value>>> = layout
        .key
        .iter()
        .zip(key)
        .map(|(column, given)| match given {
            Given::Expr(expr) => Ties::inserted(analysis.constants, column, expr),
            Given::Column(..) => None,
        })
        .collect();
    if let Some(constants) = constants {
        return layout.place(&constants).map_or(Home::Unknown, Home::Shard);
    }
    let origin = |given: &Given<'_>| match given {
        Given::Expr(expr) => {
            let found = scope.column(expr).filter(|found| found.level == 0)?;
            Some((found.index, found.column.name.to_string()))
        }
        Given::Column(index, name) => Some((*index, name.clone())),
    };
    let origins: Option<Vec<(usize, String)>> = key.iter().map(|given| origin(given)).collect();
    let Some(origins) = origins else { return Home::Unknown };
    let Some(&(index, _)) = origins.first() else { return Home::Unknown };
    let from = scope.sources.get(index).filter(|source| !source.nullable).and_then(|source| source.layout());
    let is_key = |from: &Layout| {
        let mut places = origins.iter().enumerate();
        places.all(|(at, (other, name))| *other == index && from.position(name) == Some(at))
    };
    match from {
        Some(from) if from.is_colocated(layout) && is_key(from) => Home::Source,
        _ => Home::Unknown,
    }
}

fn plain(query: &Query) -> Option<&Select> {
    match &*query.body {
        SetExpr::Select(select) if query.with.is_none() => Some(select),
        _ => None,
    }
}

/// The columns of a select list, `*` spelled out; `None` where it cannot be.
fn given<'t>(select: &'t Select, scope: &Scope<'_>) -> Option<Vec<Given<'t>>> {
    let mut given = Vec::new();
    for item in &select.projection {
        let of = match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                given.push(Given::Expr(expr));
                continue;
            }
            SelectItem::Wildcard(_) if scope.merged.is_empty() && scope.blurred.is_empty() => None,
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                Some(name.0.last()?.as_ident()?.value.as_str())
            }
            _ => return None,
        };
        let meant = scope.sources.iter().enumerate();
        for (index, source) in meant.filter(|(_, source)| of.is_none_or(|alias| *source.alias == *alias)) {
            let columns = &source.relation.as_ref()?.columns;
            given.extend(columns.iter().map(|column| Given::Column(index, column.name.to_string())));
        }
    }
    Some(given)
}

/// The shards that an INSERT of rows runs on which belong where they are read.
///
/// # Errors
/// The query's rows are not those that each shard gives by itself: LIMIT, groups that reach over shards, sub-queries.
pub(super) fn shards(input: &Input<'_>, insert: &Insert, source: &Source<'_>) -> Result<ShardSet, Refusal> {
    let scs = input.session.standard_conforming_strings;
    let range = source.query_of_insert().ok_or_else(across)?;
    let text = source.slice(&range);
    let is_it = match (parse::parse(text.as_bytes(), scs), &insert.source) {
        (Some(Statement::Query(read)), Some(query)) => read == *query,
        _ => false,
    };
    let facts = sql::facts_of(text, scs);
    let statement = facts.single().filter(|_| is_it).ok_or_else(across)?;
    match super::plan(&Input { text, statement, coordinator: None, ..*input })? {
        Distributed::Streamed(streamed)
            if streamed.merge == Merge::Rows && streamed.limit.is_none() && streamed.offset == 0 =>
        {
            Ok(streamed.shards.iter().copied().collect())
        }
        Distributed::Shard { shard, .. } => Ok(ShardSet::from([shard])),
        _ => Err(across()),
    }
}
