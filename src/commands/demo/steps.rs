//! The tour's steps: what is said, to whom, and who must answer.

use super::truth::Oracle;

/// Which door a statement goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The first pgherd, database `shop`.
    First,
    /// The second pgherd, which shares the first's Redis.
    Second,
    /// The first pgherd, database `shop_replica`.
    Replica,
}

/// Who must answer for the step to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Primary,
    /// The primary, whose answer is then kept.
    Filled,
    Memory,
    Redis,
    Replica,
    /// One shard, whichever it is.
    OneShard,
    AllShards,
    /// Nobody: `0A000` with a hint.
    Refused,
}

/// How the answer is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// PostgreSQL gives the same rows for the same statement.
    Same(Oracle),
    /// One row was written, and PostgreSQL itself answers `1` to this afterwards. `spread` is the sharded table that changed.
    Written { oracle: Oracle, probe: &'static str, spread: Option<&'static str> },
    /// There is none: the statement was refused.
    None,
}

/// One step of the tour.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) title: &'static str,
    pub(super) door: Door,
    pub(super) sql: &'static str,
    pub(super) expected: Expected,
    pub(super) check: Check,
}

const REVENUE: &str = "select p.category, count(*) as sales, sum(s.quantity) as pieces, sum(s.amount) as revenue \
                       from sales s join products p on p.product_id = s.product_id \
                       group by p.category order by revenue desc";

/// Everything that is shown, in order. Without Redis the step that needs it is left out.
pub(super) fn all(with_redis: bool) -> Vec<Step> {
    let steps = [local(), cached(), spread(), last()].concat();
    steps.into_iter().filter(|step| with_redis || step.door != Door::Second).collect()
}

fn local() -> Vec<Step> {
    vec![
        Step {
            title: "A write goes to the primary",
            door: Door::First,
            sql: "insert into sales (product_id, quantity, amount) values (42, 3, 89.70)",
            expected: Expected::Primary,
            check: Check::Written {
                oracle: Oracle::Primary,
                probe: "select count(*) from sales where product_id = 42 and amount = 89.70",
                spread: None,
            },
        },
        Step {
            title: "A point read goes to the primary too",
            door: Door::First,
            sql: "select product_id, name, category, price, stock from products where product_id = 42",
            expected: Expected::Primary,
            check: Check::Same(Oracle::Primary),
        },
    ]
}

fn cached() -> Vec<Step> {
    let revenue =
        |title, door, expected| Step { title, door, sql: REVENUE, expected, check: Check::Same(Oracle::Primary) };
    vec![
        revenue("An analytical query, for the first time", Door::First, Expected::Filled),
        revenue("The same again: from memory", Door::First, Expected::Memory),
        revenue("The same through a second pgherd: from the Redis that both share", Door::Second, Expected::Redis),
        Step {
            title: "A write to one of its tables",
            door: Door::First,
            sql: "insert into sales (product_id, quantity, amount) values (7, 1, 1000000.00)",
            expected: Expected::Primary,
            check: Check::Written {
                oracle: Oracle::Primary,
                probe: "select count(*) from sales where amount = 1000000.00",
                spread: None,
            },
        },
        revenue("The same query again: what was kept no longer counts", Door::First, Expected::Filled),
    ]
}

fn spread() -> Vec<Step> {
    let together =
        |title, sql, expected| Step { title, door: Door::First, sql, expected, check: Check::Same(Oracle::Together) };
    vec![
        together(
            "Orders are spread over two shards: a count of all",
            "select count(*), min(placed), max(placed) from orders",
            Expected::AllShards,
        ),
        together(
            "Groups of both shards become one",
            "select status, count(*), sum(amount), avg(amount) from orders group by status order by status",
            Expected::AllShards,
        ),
        together(
            "A join inside each shard, its groups merged",
            "select k.continent, count(*) as orders, sum(o.amount) as revenue from orders o \
             join customers c on c.customer_id = o.customer_id join countries k on k.code = c.country \
             where o.status <> 'returned' group by k.continent order by revenue desc limit 3",
            Expected::AllShards,
        ),
        together(
            "The largest orders of all: both shards sort, pgherd merges",
            "select order_id, customer_id, amount from orders order by amount desc, order_id limit 5",
            Expected::AllShards,
        ),
        together(
            "One customer's orders lie on one shard",
            "select order_id, placed, status, amount from orders where customer_id = 4711 order by order_id",
            Expected::OneShard,
        ),
        Step {
            title: "A new order goes to its customer's shard",
            door: Door::First,
            sql: "insert into orders (order_id, customer_id, placed, status, amount) \
                  values (1000001, 4711, '2026-11-23 12:00:00+00', 'new', 12.50)",
            expected: Expected::OneShard,
            check: Check::Written {
                oracle: Oracle::Together,
                probe: "select count(*) from orders where customer_id = 4711 and order_id = 1000001",
                spread: Some("orders"),
            },
        },
        together(
            "And is there for a question to all shards",
            "select status, count(*), max(order_id) from orders where amount < 100 group by status order by status",
            Expected::AllShards,
        ),
    ]
}

fn last() -> Vec<Step> {
    vec![
        Step {
            title: "What pgherd could not answer rightly, it refuses",
            door: Door::First,
            sql: "select amount from orders order by amount desc limit 3 for update",
            expected: Expected::Refused,
            check: Check::None,
        },
        Step {
            title: "Reads of a database with reads = \"replica\" go to the replica",
            door: Door::Replica,
            sql: "select category, count(*), avg(price) from products group by category order by category",
            expected: Expected::Replica,
            check: Check::Same(Oracle::Primary),
        },
    ]
}
