//! Figures by database: totals since the start, and averages over the last period.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::World;
use super::value::{Column, Row, Type, Value};
use crate::session::context::Database;
use crate::telemetry::metrics::PlanClass;

/// How long a period of averages is: PgBouncer's default.
pub const PERIOD: Duration = Duration::from_secs(60);

/// What a database did, times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Figures {
    transactions: u64,
    queries: u64,
    assignments: u64,
    closes: u64,
    received: u64,
    sent: u64,
    transaction_time: u64,
    query_time: u64,
    wait_time: u64,
    server_lifetime: u64,
}

impl Figures {
    fn of(world: &dyn World, database: &Database) -> Self {
        let metrics = &database.metrics;
        let mut figures = Self {
            transactions: metrics.transactions.get(),
            queries: PlanClass::ALL.iter().map(|plan| metrics.statements(*plan)).sum(),
            received: metrics.bytes_in.get(),
            sent: metrics.bytes_out.get(),
            query_time: micros(metrics.statement_time()),
            ..Self::default()
        };
        for client in world.clients().all().iter().filter(|client| client.database.name == database.config.name) {
            let uncounted = client.uncounted();
            figures.received += uncounted.read;
            figures.sent += uncounted.written;
        }
        for (_, pool) in database.pools() {
            let totals = pool.roster().totals();
            figures.assignments += totals.taken;
            figures.closes += totals.closed;
            figures.transaction_time += micros(totals.held);
            figures.server_lifetime += micros(totals.lifetime);
            figures.wait_time += micros(pool.waited());
        }
        figures
    }

    fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    fn minus(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    fn with(self, other: Self, of: fn(u64, u64) -> u64) -> Self {
        Self {
            transactions: of(self.transactions, other.transactions),
            queries: of(self.queries, other.queries),
            assignments: of(self.assignments, other.assignments),
            closes: of(self.closes, other.closes),
            received: of(self.received, other.received),
            sent: of(self.sent, other.sent),
            transaction_time: of(self.transaction_time, other.transaction_time),
            query_time: of(self.query_time, other.query_time),
            wait_time: of(self.wait_time, other.wait_time),
            server_lifetime: of(self.server_lifetime, other.server_lifetime),
        }
    }

    /// Counts and bytes a second; times for each of what took them.
    fn averaged(self, over: Duration) -> Self {
        let second = |count: u64| (count as f64 / over.as_secs_f64().max(0.001)) as u64;
        let each = |time: u64, count: u64| time.checked_div(count).unwrap_or(0);
        Self {
            transactions: second(self.transactions),
            queries: second(self.queries),
            assignments: second(self.assignments),
            closes: second(self.closes),
            received: second(self.received),
            sent: second(self.sent),
            transaction_time: each(self.transaction_time, self.transactions),
            query_time: each(self.query_time, self.queries),
            wait_time: each(self.wait_time, self.assignments),
            server_lifetime: each(self.server_lifetime, self.closes),
        }
    }

    /// In the order of [`TOTALS`]; pgherd does not count Parse and Bind, as PgBouncer does not either without tracking them.
    fn totals(self) -> [u64; 13] {
        let Self { transactions, queries, assignments, closes, received, sent, .. } = self;
        let Self { transaction_time, query_time, wait_time, server_lifetime, .. } = self;
        [
            transactions,
            queries,
            assignments,
            closes,
            received,
            sent,
            transaction_time,
            query_time,
            wait_time,
            server_lifetime,
            0,
            0,
            0,
        ]
    }

    /// In the order of [`AVERAGES`].
    fn averages(self) -> [u64; 12] {
        let [transactions, queries, assignments, _, rest @ ..] = self.totals();
        let [received, sent, transaction_time, query_time, wait_time, lifetime, ..] = rest;
        [transactions, queries, assignments, received, sent, transaction_time, query_time, wait_time, lifetime, 0, 0, 0]
    }
}

/// The averages of the last period that is over.
#[derive(Debug, Default)]
pub struct Averages(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    begun: Option<Instant>,
    at_begin: HashMap<String, Figures>,
    last: HashMap<String, Figures>,
}

impl Averages {
    /// A period is over: to be called every [`PERIOD`], and once at the start.
    pub fn turn(&self, world: &dyn World) {
        let now: HashMap<String, Figures> = world
            .databases()
            .iter()
            .map(|database| (database.config.name.clone(), Figures::of(world, database)))
            .collect();
        let mut state = self.0.lock();
        let over = state.begun.map(|begun| begun.elapsed());
        state.last = match over {
            None => HashMap::new(),
            Some(over) => now
                .iter()
                .map(|(name, figures)| {
                    let before = state.at_begin.get(name).copied().unwrap_or_default();
                    (name.clone(), figures.minus(before).averaged(over))
                })
                .collect(),
        };
        (state.begun, state.at_begin) = (Some(Instant::now()), now);
    }

    fn of(&self, database: &str) -> Figures {
        self.0.lock().last.get(database).copied().unwrap_or_default()
    }
}

const TOTALS: [&str; 13] = [
    "total_xact_count",
    "total_query_count",
    "total_server_assignment_count",
    "total_server_closed_count",
    "total_received",
    "total_sent",
    "total_xact_time",
    "total_query_time",
    "total_wait_time",
    "total_server_lifetime",
    "total_client_parse_count",
    "total_server_parse_count",
    "total_bind_count",
];

const AVERAGES: [&str; 12] = [
    "avg_xact_count",
    "avg_query_count",
    "avg_server_assignment_count",
    "avg_recv",
    "avg_sent",
    "avg_xact_time",
    "avg_query_time",
    "avg_wait_time",
    "avg_server_lifetime",
    "avg_client_parse_count",
    "avg_server_parse_count",
    "avg_bind_count",
];

/// Which of the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Both,
    Totals,
    Averages,
}

impl Part {
    fn has_totals(self) -> bool {
        self != Self::Averages
    }

    fn has_averages(self) -> bool {
        self != Self::Totals
    }
}

/// PgBouncer's names where there is one half only, without what tells the halves apart.
fn short(name: &'static str) -> &'static str {
    match name {
        "total_received" | "avg_recv" => "bytes_received",
        "total_sent" | "avg_sent" => "bytes_sent",
        name => name.strip_prefix("total_").or_else(|| name.strip_prefix("avg_")).unwrap_or(name),
    }
}

pub(super) fn columns(part: Part) -> Vec<Column> {
    let totals = TOTALS.iter().filter(|_| part.has_totals());
    let averages = AVERAGES.iter().filter(|_| part.has_averages());
    let names = totals.chain(averages).map(|name| if part == Part::Both { *name } else { short(name) });
    let figures = names.map(|name| (name, Type::Numeric));
    std::iter::once(("database", Type::Text)).chain(figures).collect()
}

pub(super) fn rows(world: &dyn World, part: Part) -> Vec<Row> {
    let mut rows = Vec::new();
    for database in world.databases() {
        let name = &database.config.name;
        let mut row: Row = vec![name.as_str().into()];
        if part.has_totals() {
            row.extend(Figures::of(world, &database).totals().map(Value::from));
        }
        if part.has_averages() {
            row.extend(world.averages().of(name).averages().map(Value::from));
        }
        rows.push(row);
    }
    rows
}

/// PgBouncer's names in SHOW TOTALS.
fn of_all(name: &'static str) -> &'static str {
    match name {
        "total_received" => "total_client_bytes",
        "total_sent" => "total_server_bytes",
        "avg_recv" => "avg_client_bytes",
        "avg_sent" => "avg_server_bytes",
        name => name,
    }
}

pub(super) const ALL_COLUMNS: [Column; 2] = [("name", Type::Text), ("value", Type::Numeric)];

/// SHOW TOTALS: all databases together.
pub(super) fn all(world: &dyn World) -> Vec<Row> {
    let databases = world.databases();
    let total = databases.iter().fold(Figures::default(), |sum, database| sum.plus(Figures::of(world, database)));
    let average = databases.iter().fold(Figures::default(), |sum, it| sum.plus(world.averages().of(&it.config.name)));
    let totals = TOTALS.into_iter().zip(total.totals());
    let averages = AVERAGES.into_iter().zip(average.averages());
    totals.chain(averages).map(|(name, value)| vec![of_all(name).into(), value.into()]).collect()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_a_second_or_for_each_and_nothing_divides_by_nothing() {
        let did = Figures { transactions: 120, transaction_time: 2_400, sent: 600, ..Figures::default() };
        let average = did.averaged(Duration::from_secs(60));
        assert_eq!((average.transactions, average.transaction_time, average.sent), (2, 20, 10));
        assert_eq!((average.queries, average.query_time), (0, 0));
        assert_eq!(Figures::default().minus(did), Figures::default());
        assert_eq!(columns(Part::Both).len(), 1 + did.totals().len() + did.averages().len());
    }
}
