//! `[[database.table]]`: how a table's rows are spread over the shards.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::config::model::{Distribution, ListPart, RangePart, Table as Distributed};
use crate::config::names;
use crate::config::raw::Table;

/// Reads all tables of a database that has `shards` shards.
pub(super) fn read_all(database: &Table<'_>, shards: usize) -> Vec<Distributed> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for table in database.tables("table") {
        if shards == 0 {
            table.fault("name", "this database has no shards", "name them in the [[database]]'s shards");
        }
        let Some((schema, name)) = name(&table) else {
            // Its other keys are read all the same, for their faults.
            distribution(&table, shards);
            continue;
        };
        if !seen.insert((schema.clone(), name.clone())) {
            table.fault("name", "this table stands here twice", "keep one of the two");
        }
        if let Some(distribution) = distribution(&table, shards) {
            out.push(Distributed { schema, name, distribution });
        }
    }
    out
}

fn name(table: &Table<'_>) -> Option<(String, String)> {
    let text = table.required_text("name", "write schema.table, as \"public.orders\"")?;
    match names::qualified(&text) {
        Ok((schema, name)) => Some((schema.unwrap_or_else(|| "public".into()), name)),
        Err(problem) => {
            table.fault("name", problem, "write schema.table, with \"quotes\" around parts that need them");
            None
        }
    }
}

fn distribution(table: &Table<'_>, shards: usize) -> Option<Distribution> {
    if table.flag("reference") {
        for key in ["shard_key", "method", "ranges", "lists"] {
            if table.has(key) {
                table.fault(key, "a reference table is whole on every shard", "remove this, or reference = true");
            }
        }
        return Some(Distribution::Reference);
    }
    let column = shard_key(table);
    if !table.has("method") {
        let help = "write method = \"hash\", \"range\" or \"list\", or reference = true";
        table.fault("method", "how the rows are spread is not said", help);
        return None;
    }
    let method = ["hash", "range", "list"][table.choice("method")?];
    for (key, wanted) in [("ranges", "range"), ("lists", "list")] {
        match (method == wanted, table.has(key)) {
            (false, true) => {
                let problem = format!("a table of method \"{method}\" has no {key}");
                table.fault(key, problem, format!("remove it, or set method = \"{wanted}\""));
            }
            (true, false) => {
                let help = if wanted == "range" {
                    "write ranges = [{ to = \"1000\", shard = 0 }, { from = \"1000\", shard = 1 }]"
                } else {
                    "write lists = [{ values = [\"a\", \"b\"], shard = 0 }]"
                };
                table.fault(key, format!("method = \"{wanted}\" needs them"), help);
            }
            _ => {}
        }
    }
    match method {
        "range" => Some(Distribution::Range { ranges: ranges(table, shards), column: column? }),
        "list" => Some(Distribution::List { parts: lists(table, shards), column: column? }),
        _ => Some(Distribution::Hash { column: column? }),
    }
}

fn shard_key(table: &Table<'_>) -> Option<String> {
    let text = table.required_text("shard_key", "name the column whose value decides the shard")?;
    names::single(&text).map_err(|problem| table.fault("shard_key", problem, "name one column")).ok()
}

fn shard(part: &Table<'_>, shards: usize) -> usize {
    if !part.has("shard") {
        part.fault("shard", "this key is missing", "give the index of a shard, from 0");
        return 0;
    }
    // Without shards there is a fault already, and no bound to speak of.
    part.count("shard", 0..shards.max(1) as u64).unwrap_or(0) as usize
}

fn ranges(table: &Table<'_>, shards: usize) -> Vec<RangePart> {
    let parts = table.tables("ranges");
    let ranges: Vec<RangePart> = parts
        .iter()
        .map(|part| RangePart { from: part.value("from"), to: part.value("to"), shard: shard(part, shards) })
        .collect();
    let order = Order::of(&ranges);
    for (index, (range, part)) in ranges.iter().zip(&parts).enumerate() {
        if order.is_empty(range) {
            part.fault("from", "the range holds nothing: from is not below to", order.help());
        }
        if let Some(earlier) = ranges[..index].iter().position(|earlier| order.overlap(earlier, range)) {
            let problem = format!("the range overlaps with ranges[{earlier}]");
            part.fault(if range.from.is_some() { "from" } else { "to" }, problem, order.help());
        }
    }
    ranges
}

/// How bounds are compared before the column's type is known: as numbers where all of them are, else byte by byte, which
/// is also right for dates in ISO form. `check` compares them again on the server, by the column's own type.
enum Order {
    Numbers,
    Bytes,
}

impl Order {
    fn of(ranges: &[RangePart]) -> Self {
        let mut bounds = ranges.iter().flat_map(|range| [&range.from, &range.to]).flatten();
        if bounds.all(|bound| number(bound).is_some()) { Self::Numbers } else { Self::Bytes }
    }

    fn compare(&self, a: &str, b: &str) -> Ordering {
        match (self, number(a), number(b)) {
            (Self::Numbers, Some(a), Some(b)) => a.cmp(&b),
            _ => a.cmp(b),
        }
    }

    /// Whether `a`, a lower bound, lies below `b`, an upper one; no bound is infinitely far.
    fn below(&self, a: Option<&str>, b: Option<&str>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => self.compare(a, b) == Ordering::Less,
            _ => true,
        }
    }

    fn is_empty(&self, range: &RangePart) -> bool {
        !self.below(range.from.as_deref(), range.to.as_deref())
    }

    fn overlap(&self, a: &RangePart, b: &RangePart) -> bool {
        self.below(a.from.as_deref(), b.to.as_deref()) && self.below(b.from.as_deref(), a.to.as_deref())
    }

    fn help(&self) -> &'static str {
        match self {
            Self::Numbers => "lower bounds are included, upper ones are not; these are compared as numbers",
            Self::Bytes => "lower bounds are included, upper ones are not; these are compared byte by byte",
        }
    }
}

fn number(text: &str) -> Option<bigdecimal::BigDecimal> {
    // Plain digits only: an exponent could ask for a number of any length.
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '-');
    plain.then(|| text.parse().ok()).flatten()
}

fn lists(table: &Table<'_>, shards: usize) -> Vec<ListPart> {
    let mut seen: HashSet<Option<String>> = HashSet::new();
    let mut out = Vec::new();
    for part in table.tables("lists") {
        let mut values: Vec<Option<String>> = part.texts("values").into_iter().map(Some).collect();
        if part.flag("null") {
            values.push(None);
        }
        if values.is_empty() {
            part.fault("values", "no value leads to this shard", "write values = [...], or null = true, or remove it");
        }
        for value in &values {
            if !seen.insert(value.clone()) {
                let (key, shown) = match value {
                    Some(value) => ("values", format!("\"{}\"", value.escape_debug())),
                    None => ("null", "NULL".to_string()),
                };
                part.fault(key, format!("{shown} is listed twice"), "a value leads to one shard only");
            }
        }
        out.push(ListPart { values, shard: shard(&part, shards) });
    }
    out
}
