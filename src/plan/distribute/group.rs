//! Groups that reach over shards: partial aggregates in hidden columns, merged by value; and DISTINCT in the same way.

use sqlparser::ast::{
    DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
};

use super::having;
use super::items::Meant;
use super::model::{Aggregate, BitOperation, Groups, Merge, Output, Sort, SortBy};
use super::ordered::{self, GroupKey};
use super::refuse::{clause, refuse};
use super::scope::parts;
use super::stream::{Job, calls_in};
use crate::catalog::model::Oid;
use crate::plan::Refusal;

const FLOAT4: Oid = 700;

/// How rows are merged, the answer's order, and whether HAVING stays with the shards.
type Plan = (Merge, Vec<Sort>, bool);

/// GROUP BY without the shard key, or aggregates over everything.
pub(super) fn grouped(job: &mut Job<'_>) -> Result<Plan, Refusal> {
    if job.items.has_wildcard {
        return Err(clause("group-by", "SELECT * with GROUP BY"));
    }
    let mut aggregates = Aggregates::default();
    let by = job.group_by()?;
    let keys: Vec<GroupKey> = by.iter().map(|meant| GroupKey::new(job, meant)).collect();
    let mut outputs = Vec::new();
    for at in 0..job.items.all.len() {
        let Some(expr) = job.items.all[at].expr else { continue };
        if let Some(number) = aggregates.of(job, expr)? {
            outputs.push((at, Output::Aggregate(number)));
        } else if calls_in(job, expr).set {
            return Err(clause("set-returning", "a set-returning function beside groups"));
        }
    }
    let mut sort = Vec::new();
    for (meant, direction) in job.order_by()? {
        let expr = match &meant {
            Meant::Item(at) => job.items.all[*at].expr,
            Meant::Expr(expr, _) => Some(*expr),
        };
        let by = match expr.map_or(Ok(None), |expr| aggregates.of(job, expr))? {
            Some(number) => SortBy::Aggregate(number),
            None => SortBy::Hidden(job.key(&meant)),
        };
        sort.push(direction.sort(by));
    }
    let condition = job.select.having.as_ref().filter(|having| calls_in(job, *having).aggregate);
    let having = condition.map(|having| having::read(job, &mut aggregates, having)).transpose()?;
    let having_stays = having.is_none();
    let order = ordered::order(job, &keys, &sort);
    let keys = keys.iter().map(|key| key.key).collect();
    let groups = Groups { keys, aggregates: aggregates.0, outputs, having, order };
    Ok((Merge::Groups(groups), sort, having_stays))
}

/// DISTINCT over columns that do not hold the shard key.
pub(super) fn distinct(job: &mut Job<'_>) -> Result<Plan, Refusal> {
    if job.items.has_wildcard && !job.items.is_exact {
        return Err(clause("distinct", "DISTINCT over a * that cannot be spelled out"));
    }
    let elements = job.order_by()?;
    job.check_distinct(&elements)?;
    let keys: Vec<GroupKey> = (0..job.items.all.len()).map(|at| GroupKey::new(job, &Meant::Item(at))).collect();
    let sort: Vec<Sort> =
        elements.into_iter().map(|(meant, direction)| direction.sort(SortBy::Hidden(job.key(&meant)))).collect();
    let order = ordered::order(job, &keys, &sort);
    let keys = keys.iter().map(|key| key.key).collect();
    let groups = Groups { keys, aggregates: Vec::new(), outputs: Vec::new(), having: None, order };
    Ok((Merge::Groups(groups), sort, true))
}

/// Aggregates as they are gathered.
#[derive(Debug, Default)]
pub(super) struct Aggregates(Vec<Aggregate>);

impl Aggregates {
    /// The number of the aggregate that the expression is; `None` if it calls no aggregate.
    pub(super) fn of(&mut self, job: &mut Job<'_>, expr: &Expr) -> Result<Option<usize>, Refusal> {
        if !calls_in(job, expr).aggregate {
            return Ok(None);
        }
        match expr {
            Expr::Nested(inner) => self.of(job, inner),
            Expr::Function(function) if is_aggregate(job, function) => {
                let aggregate = merged(job, function)?;
                let known = self.0.iter().position(|known| *known == aggregate);
                Ok(Some(known.unwrap_or_else(|| {
                    self.0.push(aggregate);
                    self.0.len() - 1
                })))
            }
            _ => Err(refuse(
                "aggregate-expression",
                "an expression over aggregates of several shards is not supported",
                "select the aggregates themselves and compute in the client",
            )),
        }
    }
}

fn is_aggregate(job: &Job<'_>, function: &Function) -> bool {
    parts(&function.name).is_some_and(|(schema, name)| job.functions.is_aggregate(schema, name))
}

fn merged(job: &mut Job<'_>, function: &Function) -> Result<Aggregate, Refusal> {
    let (schema, name) = parts(&function.name).ok_or_else(|| clause("aggregate", "this aggregate"))?;
    let unsupported = || {
        let hint =
            "group by the shard key, so that each group lies on one shard, or tie the statement to one shard key";
        refuse(
            "aggregate",
            format!("aggregate {name}() in this form cannot be merged exactly over several shards"),
            hint,
        )
    };
    let FunctionArguments::List(list) = &function.args else { return Err(unsupported()) };
    let is_plain = function.over.is_none()
        && function.within_group.is_empty()
        && function.null_treatment.is_none()
        && matches!(function.parameters, FunctionArguments::None)
        && list.clauses.is_empty()
        && list.args.len() == 1;
    if !is_plain || !job.functions.is_built_in(schema, name) {
        return Err(unsupported());
    }
    let argument = argument(list);
    if list.duplicate_treatment == Some(DuplicateTreatment::Distinct)
        && !matches!(name, "min" | "max")
        && !argument.is_some_and(|expr| job.scope.hold_key([expr]))
    {
        return Err(refuse(
            "aggregate-distinct",
            format!("{name}(DISTINCT ...) of anything but the shard key cannot be merged"),
            "select the distinct values themselves (SELECT DISTINCT ...)",
        ));
    }
    let call = job.source.call(function).ok_or_else(unsupported)?;
    let partial = |job: &mut Job<'_>, name: &str| {
        job.columns.add(format!("pg_catalog.{name}({}){}", call.arguments, call.filter))
    };
    Ok(match name {
        "count" => Aggregate::Count { partial: partial(job, "count") },
        "sum" => Aggregate::Sum { partial: partial(job, "sum") },
        "avg" => {
            let is_real =
                argument.and_then(|expr| job.scope.column(expr)).is_some_and(|found| found.column.type_oid == FLOAT4);
            let sum = match is_real && list.duplicate_treatment.is_none() {
                // PostgreSQL averages real in double precision.
                true => {
                    job.columns.add(format!("pg_catalog.sum(({})::pg_catalog.float8){}", call.arguments, call.filter))
                }
                false => partial(job, "sum"),
            };
            Aggregate::Avg { sum, count: partial(job, "count") }
        }
        "min" | "max" => {
            let collating = argument.map(|expr| job.collating(expr)).ok_or_else(unsupported)?;
            let partial = partial(job, name);
            if name == "min" { Aggregate::Min { partial, collating } } else { Aggregate::Max { partial, collating } }
        }
        "bool_and" | "every" => Aggregate::BoolAnd { partial: partial(job, "bool_and") },
        "bool_or" => Aggregate::BoolOr { partial: partial(job, "bool_or") },
        "bit_and" => Aggregate::Bits { partial: partial(job, name), operation: BitOperation::And },
        "bit_or" => Aggregate::Bits { partial: partial(job, name), operation: BitOperation::Or },
        "bit_xor" => Aggregate::Bits { partial: partial(job, name), operation: BitOperation::Xor },
        _ => return Err(unsupported()),
    })
}

fn argument(list: &FunctionArgumentList) -> Option<&Expr> {
    match list.args.first() {
        Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))) => Some(expr),
        _ => None,
    }
}
