//! EXPLAIN of a statement over several shards as PostgreSQL's text form has it: indented lines, the shards' own plans among them.

use std::time::Duration;

use crate::exec::coordinator::Told;
use crate::exec::fanout::Given;
use crate::plan::distribute::{Gathered, Streamed};
use crate::plan::explain;
use crate::sql::Explaining;

/// How a statement's own SQL is shown.
#[derive(Debug, Clone, Copy)]
pub struct Manner<'a> {
    /// What was asked for.
    pub asked: &'a Explaining,
    /// Whether literals may be the values of parameters: then none is shown.
    pub masks: bool,
    /// The session's setting of that name.
    pub standard_conforming_strings: bool,
}

/// What a streamed statement's run brought.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Of each shard.
    pub given: Vec<Given>,
    /// Rows of the answer.
    pub rows: u64,
    /// Bytes of the answer, as it would go to the client.
    pub bytes: u64,
    /// From the first message to the last row.
    pub took: Duration,
}

struct Lines<'a> {
    lines: Vec<String>,
    manner: Manner<'a>,
}

/// A streamed statement. `plans` are the shards' own.
pub fn streamed(streamed: &Streamed, plans: &[Vec<String>], ran: Option<&Ran>, manner: Manner<'_>) -> Vec<String> {
    let mut out = Lines { lines: Vec::new(), manner };
    let over = numbers(streamed.shards.iter().copied());
    out.add(0, format!("Fan-Out over shards {over}: {}{}", explain::merge(streamed), out.ran(ran)));
    out.sql(1, "Runs", &streamed.sql);
    for (at, (shard, plan)) in streamed.shards.iter().zip(plans).enumerate() {
        let gave = ran.and_then(|ran| ran.given.get(at)).map_or_else(String::new, |given| {
            format!(" (rows={} bytes={}{})", given.rows, given.bytes, out.time(given.took))
        });
        out.add(1, format!("->  Shard {shard}{gave}"));
        out.plan(3, plan);
    }
    out.lines
}

/// A gathered statement.
pub fn gathered(gathered: &Gathered, told: &Told, manner: Manner<'_>) -> Vec<String> {
    let mut out = Lines { lines: Vec::new(), manner };
    out.add(0, "Merge by PostgreSQL on the coordinator".to_owned());
    if gathered.reason.code == "memory" {
        out.add(1, "Streaming was given up: the groups need more than fanout.memory".to_owned());
    }
    out.sql(1, "Runs", &gathered.sql);
    if !manner.asked.analyze {
        out.add(1, "Planned without rows: nothing was shipped".to_owned());
    }
    out.plan(1, &told.statement);
    for (shipment, told) in gathered.shipments.iter().zip(&told.shipments) {
        let shards: Vec<usize> = shipment.from.iter().filter_map(|&from| gathered.shards.get(from)).copied().collect();
        let total = told.shipped.iter().fold((0, 0), |sum, one| (sum.0 + one.rows, sum.1 + one.bytes));
        let all = if manner.asked.analyze {
            format!(" (rows={} bytes={}{})", total.0, total.1, out.time(told.took))
        } else {
            String::new()
        };
        out.add(1, format!("->  Ship {} from shards {}{all}", shipment.table, numbers(shards.iter().copied())));
        out.sql(3, "Runs", &shipment.select);
        for kept in &told.kept {
            let of = gathered.shipments.get(kept.of).map_or("", |of| &*of.table);
            out.add(3, format!("Restricted to the {} keys of {of}.{}", kept.keys, kept.of_column.trim_matches('"')));
        }
        if let Some(whose) = explain::key_lists(gathered, shipment).filter(|_| !manner.asked.analyze) {
            out.add(3, format!("May be restricted to the keys of {whose}"));
        }
        for (at, (shard, plan)) in shards.iter().zip(&told.plans).enumerate() {
            let gave = told
                .shipped
                .get(at)
                .map_or_else(String::new, |one| format!(" (rows={} bytes={})", one.rows, one.bytes));
            out.add(3, format!("->  Shard {shard}{gave}"));
            out.plan(5, plan);
        }
    }
    out.lines
}

fn numbers(shards: impl Iterator<Item = usize>) -> String {
    shards.map(|shard| shard.to_string()).collect::<Vec<_>>().join(", ")
}

impl Lines<'_> {
    fn add(&mut self, depth: usize, text: String) {
        self.lines.push(format!("{}{text}", "  ".repeat(depth)));
    }

    /// SQL on one line.
    fn sql(&mut self, depth: usize, label: &str, sql: &str) {
        let shown = if self.manner.masks {
            explain::masked(sql, self.manner.standard_conforming_strings)
        } else {
            sql.to_owned()
        };
        self.add(depth, format!("{label}: {}", shown.split_ascii_whitespace().collect::<Vec<_>>().join(" ")));
    }

    fn plan(&mut self, depth: usize, plan: &[String]) {
        plan.iter().for_each(|line| self.add(depth, line.clone()));
    }

    fn ran(&self, ran: Option<&Ran>) -> String {
        ran.map_or_else(String::new, |ran| format!(" (rows={} bytes={}{})", ran.rows, ran.bytes, self.time(ran.took)))
    }

    fn time(&self, took: Duration) -> String {
        if self.manner.asked.timing { format!(" time={:.3} ms", took.as_secs_f64() * 1000.0) } else { String::new() }
    }
}
