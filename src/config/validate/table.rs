//! `[[database.table]]`: how a table's rows are spread over the shards.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::config::model::{Distribution, ListPart, RangePart, Table as Distributed};
use crate::config::names;
use crate::config::raw::Table;

/// Columns of a shard key at most, as PostgreSQL's partition keys have it.
const MOST_COLUMNS: usize = 32;

/// Reads all tables of a database that has `shards` shards.
pub(super) fn read_all(database: &Table<'_>, shards: usize) -> Vec<Distributed> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    let raw = database.tables("table");
    for table in &raw {
        if shards == 0 {
            table.fault("name", "this database has no shards", "name them in the [[database]]'s shards");
        }
        let Some((schema, name)) = name(table) else {
            // Its other keys are read all the same, for their faults.
            distribution(table, shards);
            continue;
        };
        if !seen.insert((schema.clone(), name.clone())) {
            table.fault("name", "this table stands here twice", "keep one of the two");
        }
        if let Some(distribution) = distribution(table, shards) {
            out.push((table, Distributed { schema, name, distribution, group: group(table) }));
        }
    }
    check_groups(&out);
    out.into_iter().map(|(_, table)| table).collect()
}

fn group(table: &Table<'_>) -> Option<String> {
    let name = table.text("group")?;
    if table.flag("reference") {
        let help = "a reference table lies together with every other table as it is";
        table.fault("group", "a reference table belongs to no group", help);
    }
    Some(name)
}

/// Tables of one group are spread alike; types are for `check` to look at.
fn check_groups(tables: &[(&Table<'_>, Distributed)]) {
    for (at, (raw, table)) in tables.iter().enumerate() {
        let Some(group) = &table.group else { continue };
        let first = tables[..at].iter().map(|(_, other)| other).find(|other| other.group.as_ref() == Some(group));
        if let Some(first) = first.filter(|first| !first.distribution.is_alike(&table.distribution)) {
            let problem = format!("{}.{} of this group is spread otherwise", first.schema, first.name);
            let help =
                "give tables of a group the same method, number of key columns, bounds or values, and default_shard";
            raw.fault("group", problem, help);
        }
    }
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
        for key in ["shard_key", "method", "ranges", "lists", "default_shard"] {
            if table.has(key) {
                table.fault(key, "a reference table is whole on every shard", "remove this, or reference = true");
            }
        }
        return Some(Distribution::Reference);
    }
    let columns = shard_key(table);
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
    let default = default_shard(table, method, shards);
    let width = columns.as_ref().map_or(usize::MAX, Vec::len);
    match method {
        "range" => Some(Distribution::Range { ranges: ranges(table, shards, width), columns: columns?, default }),
        "list" => {
            let parts = lists(table, shards);
            if width > 1 && columns.is_some() {
                let help = "name one column, or take method = \"hash\" or \"range\"";
                table.fault("shard_key", "lists are of one column's values", help);
                return None;
            }
            Some(Distribution::List { parts, column: columns?.into_iter().next()?, default })
        }
        _ => Some(Distribution::Hash { columns: columns? }),
    }
}

fn default_shard(table: &Table<'_>, method: &str, shards: usize) -> Option<usize> {
    if !table.has("default_shard") {
        return None;
    }
    if method == "hash" {
        table.fault("default_shard", "by hash every key has its shard", "remove it, or take \"range\" or \"list\"");
        return None;
    }
    table.count("default_shard", 0..shards.max(1) as u64).map(|shard| shard as usize)
}

fn shard_key(table: &Table<'_>) -> Option<Vec<String>> {
    let help = "name the column whose value decides the shard, or several as [\"a\", \"b\"]";
    if !table.has("shard_key") {
        table.fault("shard_key", "this key is missing", help);
        return None;
    }
    let mut columns: Vec<String> = Vec::new();
    for text in table.texts("shard_key") {
        match names::single(&text) {
            Ok(name) if columns.contains(&name) => {
                table.fault("shard_key", format!("column \"{name}\" stands in it twice"), "name it once");
                return None;
            }
            Ok(name) => columns.push(name),
            Err(problem) => {
                table.fault("shard_key", problem, help);
                return None;
            }
        }
    }
    if columns.is_empty() {
        // A value of a wrong type has its fault already.
        if table.texts_len("shard_key") == 0 && table.is_array("shard_key") {
            table.fault("shard_key", "no column is named", help);
        }
        return None;
    }
    if columns.len() > MOST_COLUMNS {
        table.fault("shard_key", "these are too many columns", format!("name at most {MOST_COLUMNS}"));
        return None;
    }
    Some(columns)
}

fn shard(part: &Table<'_>, shards: usize) -> usize {
    if !part.has("shard") {
        part.fault("shard", "this key is missing", "give the index of a shard, from 0");
        return 0;
    }
    // Without shards there is a fault already, and no bound to speak of.
    part.count("shard", 0..shards.max(1) as u64).unwrap_or(0) as usize
}

fn ranges(table: &Table<'_>, shards: usize, width: usize) -> Vec<RangePart> {
    let parts = table.tables("ranges");
    let bound = |part: &Table<'_>, key: &str| {
        let values = part.has(key).then(|| part.texts(key)).filter(|values| !values.is_empty())?;
        if values.len() > width {
            part.fault(key, "the bound has more values than the shard key has columns", "give one for each column");
        }
        Some(values)
    };
    let ranges: Vec<RangePart> = parts
        .iter()
        .map(|part| RangePart { from: bound(part, "from"), to: bound(part, "to"), shard: shard(part, shards) })
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

/// How the bounds of each column are compared before its type is known: as numbers where all of them are, else byte by byte,
/// which is also right for dates in ISO form. `check` compares them again on the server, by the columns' own types.
struct Order {
    /// By place in the key.
    is_number: Vec<bool>,
}

impl Order {
    fn of(ranges: &[RangePart]) -> Self {
        let mut is_number = Vec::new();
        for bound in ranges.iter().flat_map(|range| [&range.from, &range.to]).flatten() {
            for (at, value) in bound.iter().enumerate() {
                if at == is_number.len() {
                    is_number.push(true);
                }
                is_number[at] &= number(value).is_some();
            }
        }
        Self { is_number }
    }

    fn compare(&self, at: usize, a: &str, b: &str) -> Ordering {
        match (self.is_number.get(at), number(a), number(b)) {
            (Some(true), Some(a), Some(b)) => a.cmp(&b),
            _ => a.cmp(b),
        }
    }

    /// Whether `a`, a lower bound, lies below `b`, an upper one; no bound is infinitely far.
    fn below(&self, a: Option<&[String]>, b: Option<&[String]>) -> bool {
        let (Some(a), Some(b)) = (a, b) else { return true };
        let differing = a.iter().zip(b).enumerate().map(|(at, (a, b))| self.compare(at, a, b));
        differing.into_iter().find(|order| order.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len())).is_lt()
    }

    fn is_empty(&self, range: &RangePart) -> bool {
        !self.below(range.from.as_deref(), range.to.as_deref())
    }

    fn overlap(&self, a: &RangePart, b: &RangePart) -> bool {
        self.below(a.from.as_deref(), b.to.as_deref()) && self.below(b.from.as_deref(), a.to.as_deref())
    }

    fn help(&self) -> &'static str {
        match self.is_number.iter().all(|is_number| *is_number) {
            true => "lower bounds are included, upper ones are not; these are compared as numbers",
            false => "lower bounds are included, upper ones are not; these are compared byte by byte",
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
