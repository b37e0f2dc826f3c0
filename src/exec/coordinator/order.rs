//! In which order tables are shipped, and of which the shards keep rows back: those with few rows first, so that their keys can
//! tell which rows of others count.
//!
//! How many rows there are to ship PostgreSQL says, by its own estimates; a wrong one costs time and nothing else.

use futures_util::future::try_join_all;

use super::line::Line;
use super::ship::Shipped;
use super::{Run, of_pgherds_own};
use crate::error::Error;
use crate::exec::fanout::{Failure, Leg};
use crate::plan::distribute::{KeyList, Shipment};
use crate::wire::frame::{Body, Frame};

/// Bytes of one list of keys at most.
const MOST_BYTES: usize = 1 << 20;

/// For each key that is wanted so many rows are looked at for distinct ones, and no more.
const ROWS_FOR_ONE_KEY: u64 = 5;

/// The keys of one column that was shipped.
#[derive(Debug)]
struct Keys {
    count: u64,
    /// An array of them, as PostgreSQL writes it.
    array: Vec<u8>,
}

/// One table that is to be shipped now.
#[derive(Debug)]
pub(super) struct Turn {
    /// Its place in the plan.
    pub(super) at: usize,
    /// The SELECT of the rows that count.
    pub(super) select: Vec<u8>,
    /// Whose keys those rows must have, and how many there are.
    pub(super) kept: Vec<KeptTo>,
}

/// The keys that rows of a table were kept to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptTo {
    /// The other table, by place in the plan's shipments.
    pub of: usize,
    /// Its column.
    pub of_column: Box<str>,
    /// How many different ones there are.
    pub keys: u64,
}

/// Tables that wait for their turn.
pub(super) struct Order<'r> {
    run: &'r Run<'r>,
    with_conditions: bool,
    is_on: bool,
    waiting: Vec<usize>,
    /// What is expected of each table; `None` until PostgreSQL has been asked.
    expected: Vec<Option<u64>>,
    /// By table and column.
    keys: Vec<(usize, &'r str, Keys)>,
}

impl<'r> Order<'r> {
    pub(super) fn new(run: &'r Run<'r>, with_conditions: bool) -> Self {
        let shipments = &run.plan.shipments;
        let is_on =
            with_conditions && run.budget.keys > 0 && shipments.iter().any(|shipment| !shipment.key_lists.is_empty());
        let (waiting, expected) = ((0..shipments.len()).collect(), vec![None; shipments.len()]);
        Self { run, with_conditions, is_on, waiting, expected, keys: Vec::new() }
    }

    /// What is shipped next; `None` when all is.
    pub(super) async fn next<L: Leg>(&mut self, shards: &mut [Line<'_, L>]) -> Result<Option<Turn>, Failure> {
        if self.is_on && self.waiting.len() > 1 {
            self.expect(shards).await?;
            let expected = |at: &usize| self.expected.get(*at).copied().flatten();
            self.waiting.sort_by_key(|at| (expected(at), *at));
        }
        if self.waiting.is_empty() {
            return Ok(None);
        }
        let at = self.waiting.remove(0);
        let (select, kept) = self.select(at);
        Ok(Some(Turn { at, select, kept }))
    }

    /// A table has been shipped: its keys are asked for, where they can keep rows of others back.
    pub(super) async fn note<L: Leg>(
        &mut self,
        turn: &Turn,
        shipped: &[Shipped],
        coordinator: &mut Line<'_, L>,
    ) -> Result<(), Failure> {
        let rows: u64 = shipped.iter().map(|shipped| shipped.rows).sum();
        if !self.is_on || rows > self.run.budget.keys.saturating_mul(ROWS_FOR_ONE_KEY) {
            return Ok(());
        }
        let mut wanted: Vec<&'r KeyList> = Vec::new();
        for &at in self.waiting.iter().filter(|&&at| self.expected[at].is_some_and(|expected| expected > rows)) {
            for list in lists(self.shipment(at)).filter(|list| list.of == turn.at) {
                if !wanted.iter().any(|known| known.of_column == list.of_column) {
                    wanted.push(list);
                }
            }
        }
        let table = &self.shipment(turn.at).name;
        for list in &wanted {
            coordinator.query(&keys_of(table, &list.of_column, self.run.budget.keys));
        }
        let mut answers = Vec::new();
        coordinator
            .settle(|frame| {
                if frame.tag() == b'D' {
                    answers.push(keys_in(frame));
                }
            })
            .await
            .map_err(of_pgherds_own)?;
        if answers.len() != wanted.len() {
            return Err(Failure::Own(Error::internal("the coordinator did not count the keys that it was asked for")));
        }
        for (list, keys) in wanted.into_iter().zip(answers) {
            if let Some(keys) = keys.filter(|keys| self.is_fit(keys)) {
                self.keys.push((turn.at, &list.of_column, keys));
                // Of those that are bound by them fewer rows are to be expected.
                for &at in &self.waiting {
                    if lists(self.shipment(at)).any(|other| other.of == turn.at && other.of_column == list.of_column) {
                        self.expected[at] = None;
                    }
                }
            }
        }
        Ok(())
    }

    fn shipment(&self, at: usize) -> &'r Shipment {
        &self.run.plan.shipments[at]
    }

    /// Whether they can be written into a statement: any lexer takes ASCII for what it is.
    fn is_fit(&self, keys: &Keys) -> bool {
        keys.count <= self.run.budget.keys
            && keys.array.len() <= MOST_BYTES
            && (keys.array.is_ascii() || self.run.plan.same_encoding)
    }

    /// Asks the shards how many rows they expect to send of each table where that is not known.
    async fn expect<L: Leg>(&mut self, shards: &mut [Line<'_, L>]) -> Result<(), Failure> {
        let asked: Vec<usize> = self.waiting.iter().copied().filter(|&at| self.expected[at].is_none()).collect();
        for &at in &asked {
            let sql = [b"EXPLAIN ", &*self.select(at).0].concat();
            for &from in &self.shipment(at).from {
                shards[from].query_bytes(&sql);
            }
        }
        let answers = try_join_all(shards.iter_mut().map(async |line| {
            let mut found: Vec<u64> = Vec::new();
            let mut is_first = true;
            line.settle(|frame| match frame.tag() {
                b'D' if is_first => {
                    is_first = false;
                    found.push(rows_in(frame));
                }
                b'Z' => is_first = true,
                _ => {}
            })
            .await
            .map_err(of_pgherds_own)?;
            Ok::<_, Failure>(found)
        }))
        .await?;
        let mut answers: Vec<_> = answers.into_iter().map(Vec::into_iter).collect();
        for at in asked {
            let each = self.shipment(at).from.iter().map(|&from| answers[from].next().unwrap_or(u64::MAX));
            self.expected[at] = Some(each.fold(0, u64::saturating_add));
        }
        Ok(())
    }

    /// The SELECT of a table's rows, as far as is known which of them count.
    fn select(&self, at: usize) -> (Vec<u8>, Vec<KeptTo>) {
        let shipment = self.shipment(at);
        let plain = shipment.plain(self.with_conditions);
        let places: Vec<Vec<&KeyList>> = shipment
            .key_lists
            .iter()
            .map(|place| place.iter().filter(|list| self.known(list).is_some()).collect())
            .collect();
        if places.is_empty() || places.iter().any(Vec::is_empty) {
            return (plain.as_bytes().to_vec(), Vec::new());
        }
        let mut sql = [b"SELECT * FROM (", plain.as_bytes(), b") AS \"shipped\" WHERE "].concat();
        let mut kept: Vec<KeptTo> = Vec::new();
        for (number, place) in places.iter().enumerate() {
            sql.extend_from_slice(if number == 0 { b"(" } else { b" OR (" });
            for (number, list) in place.iter().enumerate() {
                let Some(keys) = self.known(list) else { continue };
                sql.extend_from_slice(if number == 0 { b"" } else { b" AND " });
                condition(list, keys, &mut sql);
                let told = KeptTo { of: list.of, of_column: list.of_column.clone(), keys: keys.count };
                if !kept.contains(&told) {
                    kept.push(told);
                }
            }
            sql.push(b')');
        }
        (sql, kept)
    }

    fn known(&self, list: &KeyList) -> Option<&Keys> {
        let found = self.keys.iter().find(|(of, column, _)| *of == list.of && **column == *list.of_column);
        found.map(|(_, _, keys)| keys)
    }
}

fn lists(shipment: &Shipment) -> impl Iterator<Item = &KeyList> {
    shipment.key_lists.iter().flatten()
}

/// Counts a shipped column's keys, and names them if they are few and short: only then is there an array. NULL equals nothing.
fn keys_of(table: &str, column: &str, most: u64) -> String {
    let keys = format!("SELECT DISTINCT {column} AS k FROM pg_temp.{table} WHERE {column} IS NOT NULL");
    let one_more = most.saturating_add(1);
    format!(
        "SELECT few.number, CASE WHEN few.number OPERATOR(pg_catalog.<=) {most} AND few.bytes OPERATOR(pg_catalog.<=) {MOST_BYTES} \
         THEN (SELECT pg_catalog.array_agg(k) FROM ({keys}) AS keys) END FROM (SELECT pg_catalog.count(*) AS number, \
         pg_catalog.sum(pg_catalog.octet_length(k::pg_catalog.text)) AS bytes FROM ({keys} LIMIT {one_more}) AS keys) AS few"
    )
}

/// The answer to [`keys_of`]; `None` if there are too many.
fn keys_in(frame: &Frame) -> Option<Keys> {
    let mut body = Body::new(frame.body());
    body.i16().filter(|&columns| columns == 2)?;
    let mut value = || {
        let len = usize::try_from(body.i32()?).ok();
        Some(len.map(|len| body.bytes(len)).unwrap_or_default().map(<[u8]>::to_vec))
    };
    let count: u64 = std::str::from_utf8(&value()??).ok()?.parse().ok()?;
    match value()? {
        Some(array) => Some(Keys { count, array }),
        None => (count == 0).then(|| Keys { count, array: b"{}".to_vec() }),
    }
}

/// How many rows the first line of a plan expects.
fn rows_in(frame: &Frame) -> u64 {
    let line = crate::exec::fanout::line_of(frame).unwrap_or_default();
    let rows = line.rsplit_once("rows=").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    rows.unwrap_or(u64::MAX)
}

/// The condition that a row's column is one of the keys.
fn condition(list: &KeyList, keys: &Keys, sql: &mut Vec<u8>) {
    if keys.count == 0 {
        sql.extend_from_slice(b"false");
        return;
    }
    sql.extend_from_slice(format!("{} OPERATOR(pg_catalog.=) ANY (E'", list.column).as_bytes());
    for &byte in &keys.array {
        if matches!(byte, b'\'' | b'\\') {
            sql.push(byte);
        }
        sql.push(byte);
    }
    sql.extend_from_slice(format!("'::pg_catalog.{}[])", list.type_name).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_so_that_any_lexer_reads_them() {
        let list = KeyList { column: "\"k\"".into(), type_name: "text".into(), of: 0, of_column: "\"j\"".into() };
        let mut sql = Vec::new();
        condition(&list, &Keys { count: 2, array: br#"{"it's","a\\b"}"#.to_vec() }, &mut sql);
        let wanted = r#""k" OPERATOR(pg_catalog.=) ANY (E'{"it''s","a\\\\b"}'::pg_catalog.text[])"#;
        assert_eq!(String::from_utf8(sql).expect("text"), wanted);
        let mut sql = Vec::new();
        condition(&list, &Keys { count: 0, array: b"{}".to_vec() }, &mut sql);
        assert_eq!(sql, b"false");
    }
}
