//! Whether the rows on a shard are those that the method puts there, asked of the shard's own PostgreSQL.

use super::client::{Client, identifier, literal};
use super::tables::{Column, Shape, sql_name};
use crate::config::model::{Distribution, ListPart, RangePart, Table};
use crate::error::Error;

/// Rows above which a sample is looked at instead of all of them.
const ALL_ROWS: f64 = 1_000_000.0;
/// Rows of a sample, about.
const SAMPLE_ROWS: f64 = 200_000.0;
/// Bytes of a row, where the server does not say how many rows there are.
const GUESSED_ROW_BYTES: f64 = 100.0;

/// What was found on one shard.
pub(super) struct Placement {
    /// Rows that were looked at.
    pub(super) rows: u64,
    /// Those that belong to another shard, or to none.
    pub(super) misplaced: u64,
    /// The key of one of them.
    pub(super) example: Option<String>,
    /// Whether only a sample was looked at.
    pub(super) sampled: bool,
}

/// Looks at the rows of a sharded table on shard `index` of `shards`.
pub(super) async fn placement(
    client: &mut Client,
    table: &Table,
    shape: &Shape,
    index: usize,
    shards: usize,
) -> Result<Placement, Error> {
    let name = sql_name(table);
    let columns: Vec<String> = table.distribution.key().iter().map(|column| identifier(column)).collect();
    let (prepare, condition) = match &table.distribution {
        Distribution::Reference => return Err(Error::internal("a reference table has no placement")),
        Distribution::Hash { .. } => {
            let key = columns.join(", ");
            // The server's own answer: a partitioned table with the same key, which the transaction's end drops.
            let prepare =
                format!("CREATE TEMPORARY TABLE pgherd_check (LIKE {name}) PARTITION BY HASH ({key}) ON COMMIT DROP; ");
            let condition =
                format!("satisfies_hash_partition('pg_temp.pgherd_check'::regclass, {shards}, {index}, {key})");
            (prepare, condition)
        }
        Distribution::Range { columns, ranges, default } => {
            let part = |range: &RangePart| range_condition(shape, columns, range);
            (String::new(), of_shard(ranges.iter().map(|range| (range.shard, part(range))), *default, index))
        }
        Distribution::List { column, parts, default } => {
            let part = |part: &ListPart| (part.shard, list_condition(shape, column, part));
            (String::new(), of_shard(parts.iter().map(part), *default, index))
        }
    };
    let key = match columns.as_slice() {
        [only] => only.clone(),
        several => format!("ROW({})", several.join(", ")),
    };
    let estimate = if shape.estimated_rows >= 0.0 { shape.estimated_rows } else { shape.bytes / GUESSED_ROW_BYTES };
    let sampled = estimate > ALL_ROWS;
    let sample = if sampled {
        format!(" TABLESAMPLE SYSTEM ({:.6})", (100.0 * SAMPLE_ROWS / estimate).clamp(0.0001, 100.0))
    } else {
        String::new()
    };
    let sql = format!(
        "{prepare}SELECT count(*), count(*) FILTER (WHERE ok IS NOT TRUE), min(k::text) FILTER (WHERE ok IS NOT TRUE) \
         FROM (SELECT {key} AS k, {condition} AS ok FROM {name}{sample}) looked_at"
    );
    let row = client.rows(&sql).await?.into_iter().next().unwrap_or_default();
    let number = |at: usize| row.get(at).and_then(|value| value.as_deref()?.parse().ok()).unwrap_or(0);
    Ok(Placement { rows: number(0), misplaced: number(1), example: row.get(2).cloned().flatten(), sampled })
}

/// The type without its modifier: a literal must not be cut to the column's length before it is compared.
fn bare_type(shape: &Shape, column: &str) -> String {
    let name = shape.column(column).map_or("text", |column| column.type_name.as_str());
    match (name.find('('), name.find(')')) {
        // `timestamp(3) without time zone` and `numeric(10,2)` alike; bare `character` would mean one character.
        (Some(open), Some(close)) if open < close => {
            let bare = format!("{}{}", &name[..open], &name[close + 1..]);
            if bare == "character" { "bpchar".into() } else { bare }
        }
        _ => name.to_string(),
    }
}

/// Whether a row belongs to that shard, by the conditions of all parts.
fn of_shard(parts: impl Iterator<Item = (usize, String)>, default: Option<usize>, index: usize) -> String {
    let parts: Vec<(usize, String)> = parts.collect();
    let own: Vec<String> = parts.iter().filter(|part| part.0 == index).map(|part| part.1.clone()).collect();
    if default != Some(index) {
        return any_of(&own);
    }
    let listed: Vec<String> = parts.into_iter().map(|part| part.1).collect();
    format!("({} OR ({}) IS NOT TRUE)", any_of(&own), any_of(&listed))
}

fn range_condition(shape: &Shape, columns: &[String], range: &RangePart) -> String {
    let compared = |bound: &[String], operator: &str| {
        let given = columns.iter().zip(bound);
        let keys: Vec<String> = given.clone().map(|(column, _)| identifier(column)).collect();
        let values: Vec<String> =
            given.map(|(column, value)| format!("{}::{}", literal(value), bare_type(shape, column))).collect();
        format!("({}) {operator} ({})", keys.join(", "), values.join(", "))
    };
    // No range takes a NULL.
    let mut bounds: Vec<String> = columns.iter().map(|column| format!("{} IS NOT NULL", identifier(column))).collect();
    bounds.extend(range.from.as_deref().map(|from| compared(from, ">=")));
    bounds.extend(range.to.as_deref().map(|to| compared(to, "<")));
    bounds.join(" AND ")
}

fn list_condition(shape: &Shape, column: &str, part: &ListPart) -> String {
    let (key, bare) = (identifier(column), bare_type(shape, column));
    let values = part.values.iter().map(|value| match value {
        Some(value) => format!("{key} ={}::{bare}", literal(value)),
        None => format!("{key} IS NULL"),
    });
    any_of(&values.collect::<Vec<_>>())
}

fn any_of(conditions: &[String]) -> String {
    if conditions.is_empty() { "false".into() } else { format!("(({}))", conditions.join(") OR (")) }
}

/// Pairs of ranges, or of listed values, that the server finds to overlap by the column's own type and collation.
pub(super) async fn overlaps(client: &mut Client, table: &Table, shape: &Shape) -> Result<Vec<String>, Error> {
    let sql = match &table.distribution {
        Distribution::Range { columns, ranges, .. } => range_overlaps(shape, columns, ranges),
        Distribution::List { column, parts, .. } => list_overlaps(shape, column, parts),
        _ => None,
    };
    let Some(sql) = sql else { return Ok(Vec::new()) };
    Ok(client.rows(&sql).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

fn typed(shape: &Shape, column: &str, value: Option<&String>) -> String {
    let bare = bare_type(shape, column);
    let collation = shape.column(column).map_or("", |column: &Column| column.collation.as_str());
    let collate = if collation.is_empty() { String::new() } else { format!(" COLLATE {collation}") };
    value.map_or(format!("NULL::{bare}{collate}"), |value| format!("({}::{bare}{collate})", literal(value)))
}

fn range_overlaps(shape: &Shape, columns: &[String], ranges: &[RangePart]) -> Option<String> {
    let [column] = columns else { return tuple_overlaps(shape, columns, ranges) };
    let bound = |bound: &Option<Vec<String>>| typed(shape, column, bound.as_ref().and_then(|values| values.first()));
    let row = |(index, range): (usize, &RangePart)| {
        format!("SELECT {index} AS i, {} AS lower, {} AS upper", bound(&range.from), bound(&range.to))
    };
    let rows: Vec<String> = ranges.iter().enumerate().map(row).collect();
    (!rows.is_empty()).then(|| {
        format!(
            "WITH r AS ({}) SELECT 'ranges[' || i || '] holds nothing' FROM r WHERE NOT lower < upper UNION ALL \
             SELECT 'ranges[' || a.i || '] and ranges[' || b.i || '] overlap' FROM r a JOIN r b ON a.i < b.i \
             WHERE coalesce(a.lower < b.upper, true) AND coalesce(b.lower < a.upper, true)",
            rows.join(" UNION ALL ")
        )
    })
}

fn tuple_overlaps(shape: &Shape, columns: &[String], ranges: &[RangePart]) -> Option<String> {
    // Whether a lower bound lies below an upper one; one with fewer values lies before all that begin with them.
    let below = |from: Option<&Vec<String>>, to: Option<&Vec<String>>| {
        let (Some(from), Some(to)) = (from, to) else { return "true".to_owned() };
        let row = |bound: &[String], other: &[String]| {
            let both = columns.iter().zip(bound).take(other.len());
            let values: Vec<String> = both.map(|(column, value)| typed(shape, column, Some(value))).collect();
            values.join(", ")
        };
        let operator = if from.len() < to.len() { "<=" } else { "<" };
        format!("({}) {operator} ({})", row(from, to), row(to, from))
    };
    let mut found = Vec::new();
    for (i, a) in ranges.iter().enumerate() {
        let own = below(a.from.as_ref(), a.to.as_ref());
        found.push(format!("SELECT 'ranges[{i}] holds nothing' WHERE NOT ({own})"));
        for (j, b) in ranges.iter().enumerate().skip(i + 1) {
            let (ab, ba) = (below(a.from.as_ref(), b.to.as_ref()), below(b.from.as_ref(), a.to.as_ref()));
            found.push(format!("SELECT 'ranges[{i}] and ranges[{j}] overlap' WHERE ({ab}) AND ({ba})"));
        }
    }
    (!found.is_empty()).then(|| found.join(" UNION ALL "))
}

fn list_overlaps(shape: &Shape, column: &str, parts: &[ListPart]) -> Option<String> {
    let values = parts.iter().flat_map(|part| part.values.iter().flatten());
    let rows: Vec<String> = values
        .enumerate()
        .map(|(index, value)| format!("SELECT {index} AS i, {} AS v", typed(shape, column, Some(value))))
        .collect();
    (!rows.is_empty()).then(|| {
        format!(
            "WITH r AS ({}) SELECT DISTINCT quote_literal(a.v::text) || ' is listed twice' FROM r a JOIN r b \
             ON a.i < b.i AND a.v = b.v",
            rows.join(" UNION ALL ")
        )
    })
}

/// Rows of a reference table, and a checksum that their order does not change.
pub(super) async fn checksum(client: &mut Client, table: &Table) -> Result<(String, String), Error> {
    let sql =
        format!("SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {} t", sql_name(table));
    let mut row = client.rows(&sql).await?.into_iter().next().unwrap_or_default().into_iter();
    let mut next = || row.next().flatten().unwrap_or_default();
    Ok((next(), next()))
}
