//! A plan as rows of text: what `EXPLAIN (ROUTE)` and `pgherd explain` show.

use std::sync::Arc;

use super::distribute::Answered;
use super::{Local, Plan, names};
use crate::sql::facts::{Class, Facts, Name, Statement};
use crate::sql::lexer::{Lexer, TokenKind};

/// Property and value, in the order to show them. Names and settings only: never a literal of the statement's, of which SQL that
/// runs on servers has `?` instead. `standard_conforming_strings` is the session's.
pub fn render(plan: &Plan, facts: &Facts, standard_conforming_strings: bool) -> Vec<(String, String)> {
    let mut rows = Rows(Vec::new());
    rows.add("plan", plan.kind());
    way(&mut rows, plan, standard_conforming_strings);
    rows.add("reason", plan.code());
    if let Some(reason) = plan.reason() {
        rows.add("why", reason.text.as_ref());
    }
    rows.add("fingerprint", facts.fingerprint.to_string());
    for statement in &facts.statements {
        describe(&mut rows, statement);
    }
    rows.0
}

/// A text with `?` for each of its literals, and without its comments.
pub fn masked(sql: &str, standard_conforming_strings: bool) -> String {
    let bytes = sql.as_bytes();
    let mut masked = String::with_capacity(sql.len());
    for token in Lexer::new(bytes, standard_conforming_strings) {
        let is_literal = token.kind.is_string() || token.kind == TokenKind::Number;
        match token.kind {
            _ if is_literal => masked.push('?'),
            TokenKind::Comment => masked.push(' '),
            _ => masked.push_str(&String::from_utf8_lossy(token.bytes(bytes))),
        }
    }
    masked
}

fn way(rows: &mut Rows, plan: &Plan, scs: bool) {
    match plan {
        Plan::Primary(_) | Plan::Replica(_) | Plan::NeedsBind(_) => {}
        Plan::Cached(cached) => {
            rows.add("ttl", format!("{} s", cached.ttl.as_secs_f64()));
            let is_shared = cached.shared_by_readers_of.is_some();
            rows.add("shared by", if is_shared { "roles that may read it" } else { "nobody else" }.to_owned());
            rows.add("filled from", if cached.from_replica { "a replica" } else { "the primary" }.to_owned());
            rows.add("depends on", format!("{} relations", cached.relations.len()));
            rows.add("catalog version", cached.catalog_version.to_string());
        }
        Plan::Shard { shard, .. } => rows.add("shard", shard.to_string()),
        Plan::FanOut(streamed) => {
            let shards: Vec<String> = streamed.shards.iter().map(ToString::to_string).collect();
            rows.add("shards", shards.join(", "));
            rows.add("merge", merge(streamed));
            rows.add("runs", masked(&streamed.sql, scs));
        }
        Plan::Split(split) => {
            let dealt = split.deal(split.streamed.shards.len());
            for (leg, leaves) in dealt.iter().enumerate() {
                let (pages, count) = (leaves.iter().map(|leaf| leaf.pages).sum::<u64>(), leaves.len());
                rows.add(&format!("leg {leg}"), format!("{count} partitions, {pages} pages"));
            }
            rows.add("merge", merge(&split.streamed));
            let first = dealt.first().map_or(&[][..], Vec::as_slice);
            rows.add("runs", masked(&split.sql_of(first), scs));
        }
        Plan::Explain(explained) => {
            rows.add("explains", explained.plan.kind());
            way(rows, &explained.plan, scs);
        }
        Plan::Gather(gathered) | Plan::Cursor(gathered) => {
            let shards: Vec<String> = gathered.shards.iter().map(ToString::to_string).collect();
            rows.add("shards", shards.join(", "));
            rows.add("merge", "by PostgreSQL, on the coordinator");
            for shipment in &gathered.shipments {
                let from: Vec<String> =
                    shipment.from.iter().filter_map(|&at| gathered.shards.get(at)).map(ToString::to_string).collect();
                let unload = shipment.unload(shipment.select.as_bytes());
                let unload = masked(&String::from_utf8_lossy(&unload), scs);
                rows.add("ships", format!("{} from {}: {unload}", shipment.table, from.join(", ")));
                if let Some(whose) = key_lists(gathered, shipment) {
                    rows.add("restricted", format!("{} to the keys of {whose}, where they are few", shipment.table));
                }
            }
            for view in &gathered.views {
                rows.add("makes", format!("view {}", view.view));
            }
            rows.add("runs", masked(&gathered.sql, scs));
        }
        Plan::CopyIn(copied) => rows.add("shards", copied.shards.to_string()),
        Plan::InsertSelect(moved) => {
            let query = match &moved.answered {
                Answered::Streamed(streamed) => Plan::FanOut(Arc::clone(streamed)),
                Answered::Gathered(gathered) => Plan::Gather(Arc::clone(gathered)),
            };
            rows.add("reads", query.kind());
            way(rows, &query, scs);
            rows.add("inserts", format!("into {}, {}", moved.table, moved.spread()));
        }
        Plan::KeyMove(moved) => {
            let shown = |shards: &[usize]| shards.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            rows.add("shards", shown(&moved.sources));
            rows.add("runs", masked(&moved.select, scs));
            rows.add("moves", format!("rows of {}, by shard key {}", moved.table, moved.key()));
            rows.add("to shards", shown(&moved.targets));
        }
        Plan::Maintain(maintained) => {
            let shards: Vec<String> = maintained.shards.iter().map(ToString::to_string).collect();
            rows.add("primary", if maintained.on_primary { "the statement" } else { "nothing" });
            rows.add("shards", shards.join(", "));
        }
        Plan::Scatter(scattered) => {
            for part in &scattered.parts {
                let what = match part.rows.len() {
                    0 => "the statement".to_owned(),
                    count => format!("{count} rows"),
                };
                rows.add(&format!("shard {}", part.shard), what);
            }
        }
        Plan::Local(Local::Empty) => rows.add("answer", "an empty query"),
        Plan::Local(Local::ExplainRoute(_)) => rows.add("answer", "the plan of the statement inside"),
        Plan::Refuse(refusal) => {
            rows.add("refused", refusal.message.as_str());
            rows.add("hint", refusal.hint.as_str());
        }
    }
}

struct Rows(Vec<(String, String)>);

impl Rows {
    fn add(&mut self, property: &str, value: impl Into<String>) {
        self.0.push((property.into(), value.into()));
    }

    fn list(&mut self, property: &str, values: impl IntoIterator<Item = String>) {
        let values: Vec<String> = values.into_iter().collect();
        if !values.is_empty() {
            self.add(property, values.join(", "));
        }
    }
}

/// Whose keys the rows of a table may be restricted to, in words.
pub fn key_lists(gathered: &super::distribute::Gathered, shipment: &super::distribute::Shipment) -> Option<String> {
    let places = shipment.key_lists.iter().map(|place| {
        let whose = place.iter().filter_map(|list| {
            let of = gathered.shipments.get(list.of)?;
            Some(format!("{}.{}", of.table, list.of_column.trim_matches('"')))
        });
        whose.collect::<Vec<_>>().join(" and ")
    });
    let places: Vec<String> = places.collect();
    (!places.is_empty()).then(|| places.join(" or "))
}

/// How rows of the shards become the answer's, in words.
pub fn merge(streamed: &super::distribute::Streamed) -> String {
    let mut parts = vec![match &streamed.merge {
        super::distribute::Merge::Rows if streamed.sort.is_empty() => "rows as they come".to_owned(),
        super::distribute::Merge::Rows => format!("sorted by {} keys", streamed.sort.len()),
        super::distribute::Merge::Groups(groups) => {
            let order = if groups.order.is_empty() { "" } else { ", in the order of their keys" };
            format!("groups by {} keys, {} aggregates{order}", groups.keys.len(), groups.aggregates.len())
        }
    }];
    if streamed.offset > 0 {
        parts.push(format!("offset {}", streamed.offset));
    }
    if let Some(limit) = streamed.limit {
        parts.push(format!("limit {limit}"));
    }
    parts.join(", ")
}

fn describe(rows: &mut Rows, statement: &Statement) {
    rows.add("statement", class(statement.class));
    let shown = |list: &[Name]| list.iter().map(names::display).collect::<Vec<_>>();
    rows.list("reads", shown(&statement.reads));
    rows.list("writes", shown(&statement.writes));
    rows.list("calls", shown(&statement.functions));
    let shape = statement.shape;
    rows.list(
        "shape",
        [
            (shape.aggregate, "aggregate"),
            (shape.group_by, "group by"),
            (shape.distinct, "distinct"),
            (shape.window, "window"),
            (shape.set_operation, "set operation"),
            (shape.join, "join"),
            (shape.subquery, "sub-query"),
            (shape.key_equality, "key equality"),
            (shape.sampled, "sample"),
        ]
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, name)| name.to_owned()),
    );
}

fn class(class: Class) -> &'static str {
    match class {
        Class::Empty => "empty",
        Class::Read => "read",
        Class::Show => "show",
        Class::ExplainRoute => "explain route",
        Class::Session => "session",
        Class::Transaction(_) => "transaction",
        Class::CopyOut => "copy out",
        Class::CopyIn => "copy in",
        Class::Write => "write",
        Class::Ddl => "ddl",
        Class::Utility => "utility",
        Class::Opaque => "opaque",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_literal_is_shown() {
        let text = "select 'it''s', 1.5e3, x'1f', $1, $$body$$, \"1\" /* 7 */ from t1 where a = E'\\'' -- 8";
        assert_eq!(masked(text, true), "select ?, ?, ?, $1, ?, \"1\"   from t1 where a = ?  ");
    }
}
