//! One trap a row: statements that must equal one PostgreSQL's answer (`=`), or have as many rows where values are of the
//! moment (`~`), and statements that must be refused (`!`).

use super::herd::Herd;
use crate::answers::{Answer, MANNERS, ask};

struct Trap {
    name: &'static str,
    statements: &'static [&'static str],
}

const fn trap(name: &'static str, statements: &'static [&'static str]) -> Trap {
    Trap { name, statements }
}

const TRAPS: &[Trap] = &[
    trap(
        "avg of averages, and its scale",
        &[
            "= select avg(amount), avg(qty), avg(small), avg(big), avg(wide) from sales where wide < 'Infinity'",
            "= select region, avg(amount), avg(qty) from sales group by region order by region",
            "= select round(avg(amount), 2) from sales",
            "= select sum(amount) / count(*) from sales",
        ],
    ),
    trap(
        "types of sums, averages and counts",
        &[
            "= select sum(qty), sum(small), sum(big), sum(ratio), sum(price), sum(amount), count(*) from sales where price <> 'NaN'",
            "= select avg(qty), avg(price), avg(ratio) from sales where price <> 'NaN'",
            "= select sum(cash) from sales",
            "= select sum(span) from sales",
        ],
    ),
    trap(
        "order in which floats are added",
        &["= select sum(price), sum(ratio) from sales where price <> 'NaN'", "= select stddev(price) from sales"],
    ),
    trap(
        "NaN, Infinity, many digits and trailing zeros of numeric",
        &[
            "= select sum(wide), avg(wide), min(wide), max(wide) from sales where id % 40 <> 0",
            "= select sum(wide), max(wide) from sales",
            "= select id % 9 as part, sum(wide), avg(wide) from sales where wide < 'Infinity' group by 1 order by 1",
            "= select id, wide from sales order by wide, id",
            "= select id, wide from sales order by wide desc nulls last, id limit 30",
        ],
    ),
    trap(
        "min and max of types beyond numbers",
        &[
            "= select min(region), max(region) from sales",
            "= select min(label) from sales",
            "= select max(feeling) from sales",
            "= select min(list) from sales",
            "= select max(host) from sales",
            "= select min(cash) from sales",
            "= select min(span), max(span) from sales",
            "= select min(day), max(at), min(made) from sales",
            "= select max(tag) from sales",
            "= select max(name) from sales",
            "= select max(name collate \"C\") from sales",
        ],
    ),
    trap(
        "collations",
        &[
            "= select id, region from sales order by region, id",
            "= select id, label from sales order by label, id",
            "= select label, count(*) from sales group by label",
            "= select region, count(*) from sales group by region order by region desc",
            "= select id from sales order by label collate \"C\", id",
            "= select id from sales order by lower(region), id",
            "= select max(label) from sales group by region",
            "= select distinct label from sales",
        ],
    ),
    trap(
        "parentheses, which the grammar drops, around positions and names",
        &[
            "= select id, -id from odd order by (2) limit 3",
            "= select id, -id from odd order by ((2)) desc, (1) limit 3",
            "= select -id as id from odd order by (id) limit 3",
            "= select -id as id from odd order by ((id)) desc limit 3",
            "= select abs(zz) x, count(*) from odd group by (1)",
            "= select abs(zz) x, count(*) from odd group by (x)",
            "= select id as y from odd order by (y) limit 5",
            "= select max(id) as id, zz from odd group by zz order by (id)",
            "= select max(id) as id, k from odd group by k order by (id) limit 5",
            "= select distinct on ((1)) zz, id from odd order by (1), (2)",
            "= select distinct (zz) from odd order by (zz)",
            "= select distinct zz from odd order by (1)",
            "= select zz, id from odd group by ((zz, id)) order by 1, 2 limit 5",
            "= select d.n, count(*) from (select k, count(*) as n from odd group by (1)) d group by (d.n) order by 1",
            "= select count(*) from (select zz, count(*) as n from odd group by (1)) d",
            "= select id from odd order by -1",
            "= select id from odd order by (-1)",
            "= select id, zz from odd order by - (-2), 1 limit 3",
            "= select id from odd order by 'x'",
            "= select zz, count(*) from odd group by -1",
            "= select zz, count(*) from odd group by (3)",
        ],
    ),
    trap(
        "names that casts and the grammar give to columns, beside columns of that name",
        &[
            "= select id, (a || b)::uuid from odd order by uuid limit 5",
            "= select id, (a || b)::uuid from odd group by id, a, b order by uuid limit 5",
            "= select id, (a || 'x')::name from odd order by name limit 5",
            "= select id, (id + 0)::text::money from odd order by money limit 5",
            "= select id, (case when id % 2 = 0 then 'new' else 'old' end)::status from odd order by status, id limit 5",
            "= select (id + 0)::int from odd order by int4 limit 5",
            "= select (0 - id)::double precision from odd order by float8 limit 5",
            "= select (a || b)::bytea from odd order by bytea limit 5",
            "= select extract(day from date '2024-01-01' + zz), id from odd order by extract, id limit 3",
            "= select (id - 0)::int4 as x, zz from odd order by int4 limit 3",
            "= select -id, zz + 1, id from odd order by \"?column?\" limit 3",
            "= select -id, id from odd order by \"?column?\" limit 3",
            "= select true, id from odd order by bool, id limit 2",
            "= select case when id > 3 then 1 end, id from odd order by \"case\", id limit 2",
            "= select (select 1 + 1)::int, id from odd order by \"?column?\", id limit 2",
            "= select overlay(a placing 'x' from 1), id from odd order by overlay limit 3",
        ],
    ),
    trap(
        "collations that come from domains and from fields",
        &[
            "= select id, w from odd order by w::den, id",
            "= select id, w from odd order by (c).s, id",
            "= select id from odd order by lower(w::den), id limit 50",
            "= select count(*) from odd group by (c).c",
            "= select count(*) from odd group by w::dci",
            "= select count(*), max(id) from odd group by (c).s order by (c).s",
            "= select distinct lower((c).s) from odd",
            "= select min(w::den), max((c).s) from odd",
            "= select (c).n, count(*) from odd group by (c).n order by 1",
        ],
    ),
    trap(
        "digits of floats on and beside halfway points",
        &[
            "= select sum(case when id = 1 then 1e23::float8 else 0 end) from sales",
            "= select sum(case when id = 1 then power(2::float8, -25) else 0 end), max(price) from sales where price <> 'NaN'",
            "= select zz, sum(case when id < 8 then 9007199254740993::float8 * (id + 6) else 0 end) from odd group by zz order by zz",
            "= select sum(case when id = 1 then 8.5e9::float4 else 0::float4 end) from sales",
        ],
    ),
    trap(
        "order of NULL",
        &[
            "= select id, region from sales order by region, id",
            "= select id, region from sales order by region desc, id",
            "= select id, region from sales order by region nulls first, id",
            "= select id, region from sales order by region desc nulls last, id",
            "= select customer_id, amount from sales order by amount nulls first, id limit 40",
        ],
    ),
    trap(
        "values that are equal and look different",
        &[
            "= select count(*) from sales group by price order by price",
            "= select id, price from sales order by price desc, id",
            "= select count(*), min(id) from sales group by wide order by wide",
            "= select tag, count(*) from sales group by tag",
            "= select id from sales order by tag, id",
            "= select id, at from sales order by at desc, id limit 20",
            "= select at, count(*) from sales where at in ('infinity', '-infinity') group by at order by at",
            "= select id from sales where tag = 'b' order by id",
        ],
    ),
    trap(
        "LIMIT",
        &[
            "= select id from sales limit 7",
            "= select id from sales limit 10 offset 290",
            "= select id from sales order by id limit 7 offset 100",
            "= select id from sales order by id offset 380",
            "= select id from sales order by id limit null",
            "= select id from sales order by id limit all offset 3",
            "= select id from sales order by id limit 0",
            "= select id from sales order by id fetch first row only",
            "= select qty from sales order by qty fetch first 3 rows with ties",
            "= select id from sales order by id limit 1 + 2",
            "= select id from sales order by id limit (select 3)",
        ],
    ),
    trap(
        "DISTINCT with ORDER BY and LIMIT",
        &[
            "= select distinct region from sales",
            "= select distinct region, qty from sales order by qty desc, region limit 9",
            "= select distinct region from sales order by region desc nulls last limit 3 offset 1",
            "= select distinct on (region) region, id from sales order by region, id",
            "= select distinct region from sales group by region, qty",
            "= select distinct count(*) from sales group by region",
        ],
    ),
    trap(
        "HAVING, FILTER, ORDER BY of aggregates",
        &[
            "= select region from sales group by region having count(*) > 40 order by region",
            "= select region, count(*) from sales group by region having sum(amount) > 0 and region <> 'south' order by sum(qty), region",
            "= select count(*) filter (where ok), sum(qty) filter (where region = 'north') from sales",
            "= select region from sales group by region order by count(*) desc, min(id)",
            "= select region from sales group by region having sum(qty) > max(small) / 2",
            "= select count(*) from sales having count(*) < 0",
        ],
    ),
    trap(
        "count of DISTINCT",
        &[
            "= select count(distinct customer_id) from sales",
            "= select count(distinct region) from sales",
            "= select region, count(distinct qty) from sales group by region order by region",
            "= select sum(distinct qty) from sales",
        ],
    ),
    trap(
        "aggregates that are not sums",
        &[
            "= select percentile_cont(0.5) within group (order by price) from sales",
            "= select mode() within group (order by qty) from sales",
            "= select array_agg(id order by id) from sales",
            "= select string_agg(region, ',' order by id) from sales",
            "= select json_agg(qty order by id) from sales",
            "= select corr(price, qty), regr_count(price, qty) from sales",
            "= select bool_and(ok), bool_or(ok), every(id > 0) from sales",
            "= select bit_and(qty), bit_or(qty) from sales",
            "= select variance(qty) from sales",
            "= select customer_id, array_agg(id order by id), stddev(qty) from sales group by customer_id order by customer_id",
        ],
    ),
    trap(
        "shards and tables without rows",
        &[
            "= select sum(v), count(*), count(v), avg(v), min(v), max(v) from nothing",
            "= select k, sum(v) from nothing group by k order by k",
            "= select * from nothing order by k",
            "= select sum(qty), avg(amount), min(region), count(*) from sales where id < 0",
            "= select count(*) from sales where id < 0 group by region",
            "= select distinct v from nothing",
        ],
    ),
    trap(
        "window functions",
        &[
            "= select id, rank() over (order by qty) from sales order by id",
            "= select id, sum(qty) over (partition by region order by id) from sales order by id",
            "= select id, sum(qty) over (partition by customer_id order by id) s from sales order by id",
            "= select id, row_number() over (partition by customer_id, region order by id desc) n from sales order by n, id",
            "= select id, lag(qty) over w from sales window w as (order by id) order by id",
        ],
    ),
    trap(
        "sub-queries, WITH, UNION, EXISTS, IN",
        &[
            "= select id from sales where id in (select sale_id from lines) order by id",
            "= select id from sales s where exists (select 1 from lines l where l.customer_id = s.customer_id) order by id",
            "= select count(*) from (select region from sales group by region) r",
            "= with s as (select * from sales) select count(*) from s",
            "= select id from sales union select sale_id from lines",
            "= select id from sales union all select sale_id from lines",
            "= select id, (select count(*) from lines) from sales order by id",
            "= select id from sales where amount > (select avg(amount) from sales) order by id",
            "= select id from sales where region in (select code from countries) order by id",
            "= select id from sales where region not in (select code from countries) order by id",
            "= select id from sales s where not exists (select 1 from lines l where l.sale_id = s.id) order by id",
            "= select count(*) from recent",
        ],
    ),
    trap(
        "outer joins to reference tables",
        &[
            "= select c.code, s.id from countries c left join sales s on s.region = c.code",
            "= select c.code, s.id from sales s right join countries c on s.region = c.code",
            "= select c.code, s.id from sales s full join countries c on s.region = c.code",
            "= select s.id, c.title from sales s left join countries c on s.region = c.code order by s.id",
            "= select s.id, c.title from sales s join countries c on s.region = c.code order by s.id",
            "= select s.id, l.sku from sales s left join lines l on l.customer_id = s.customer_id and l.sale_id = s.id order by s.id",
            "= select s.id, l.sku from sales s full join lines l on l.customer_id = s.customer_id and l.sale_id = s.id",
            "= select s.id, l.sku from sales s join lines l on l.sale_id = s.id order by s.id",
            "= select count(*) from sales a, sales b where a.customer_id = b.customer_id",
            "= select count(*) from sales s, countries c",
        ],
    ),
    trap(
        "values that differ from shard to shard",
        &[
            "~ select id, now() from sales",
            "~ select id from sales where at < current_timestamp",
            "~ select id from sales order by random()",
            "! select nextval('numbers') from sales",
            "~ select id from sales where at < 'now'",
            "~ select gen_random_uuid() from sales",
            "~ select clock_timestamp(), count(*) from sales",
        ],
    ),
    trap(
        "ordering by what is not selected",
        &[
            "= select region from sales order by id",
            "= select region from sales order by amount * -1, id",
            "= select id as n from sales order by customer_id desc, n limit 12",
            "= select sum(qty) from sales group by region order by region",
            "= select s.* from lines s order by s.sku, s.sale_id, s.customer_id",
        ],
    ),
    trap(
        "metadata of columns",
        &[
            "= select amount, name, tag, region from sales order by id",
            "= select amount as \"Amount\", 1 + qty, 'x', null as nothing, day::text from sales order by id",
            "= select max(amount), max(qty), count(*) as \"N\" from sales",
            "= select feeling from sales order by id",
            "= select feeling, count(*) from sales group by feeling",
        ],
    ),
    trap(
        "system columns and server functions",
        &[
            "! select ctid from sales",
            "! select xmin, id from sales",
            "! select tableoid from sales",
            "! select pg_backend_pid(), id from sales",
            "! select 'sales'::regclass, id from sales",
            "! select pg_relation_size('sales'), count(*) from sales",
        ],
    ),
    trap(
        "rows of reference tables are counted once",
        &[
            "= select count(*) from countries",
            "= select * from countries order by code",
            "= select code, title from countries",
        ],
    ),
    trap(
        "every shard in one write",
        &[
            "! update sales set qty = 1",
            "! delete from sales",
            "! insert into sales (id, customer_id) values (1001, 1), (1002, 2), (1003, 3), (1004, 4), (1005, 5)",
            "! insert into sales (id) select 1",
            "! update countries set title = 'x'",
            "! truncate sales",
            "! do $$ begin delete from sales; end $$",
            "! create index on sales (id)",
            "! lock table sales",
            "! select * from sales for update",
        ],
    ),
    trap(
        "types and aggregates that pgherd does not know",
        &[
            "= select id, doc from sales order by doc, id",
            "= select id, period from sales order by period, id",
            "= select id, list from sales order by list, id",
            "= select id, code from sales order by code",
            "= select id, raw from sales order by raw",
            "= select id, cash, host, period, list, doc from sales order by id",
            "= select host, count(*) from sales group by host",
            "= select doc, count(*) from sales group by doc",
            "! select lowered(region) from sales order by id",
            "! select * from sales, local_notes",
            "= select region, count(*) from sales group by rollup (region)",
        ],
    ),
];

/// Whether nothing fixes which rows come.
fn is_any_rows(text: &str) -> bool {
    (text.contains(" limit ") || text.contains(" offset ")) && !text.contains("order by")
}

fn is_ordered(text: &str) -> bool {
    text.rfind("order by").is_some_and(|at| {
        let tail = &text[at..];
        !tail.contains(')') || tail.contains("lower(") || tail.starts_with("order by (")
    })
}

/// What PostgreSQL and pgherd said, made comparable.
fn comparable(mark: &str, text: &str, mut answer: Answer) -> Answer {
    // A type of the user's has an oid of its own in each database.
    answer.columns.iter_mut().filter(|column| column.1 >= 16384).for_each(|column| column.1 = 16384);
    if is_any_rows(text) || mark == "~" {
        answer.rows.iter_mut().for_each(Vec::clear);
    }
    if is_ordered(text) { answer } else { answer.sorted() }
}

fn judge(mark: &str, text: &str, given: Answer, wanted: Option<Answer>) -> Result<char, String> {
    if given.code() == Some("0A000") {
        let is_clean = given.rows.is_empty() && given.status == 'I' && mark == "!";
        return if is_clean { Ok('!') } else { Err(format!("refused: {:?}", given.error)) };
    }
    let Some(wanted) = wanted.filter(|_| mark != "!") else { return Err(format!("not refused: {:?}", given.error)) };
    let (given, wanted) = (comparable(mark, text, given), comparable(mark, text, wanted));
    if given == wanted {
        return Ok('=');
    }
    if (&given.columns, &given.tag, &given.error) != (&wanted.columns, &wanted.tag, &wanted.error) {
        return Err(format!(
            "{:?} {} {:?} instead of {:?} {} {:?}",
            given.columns, given.tag, given.error, wanted.columns, wanted.tag, wanted.error
        ));
    }
    let at = given.rows.iter().zip(&wanted.rows).position(|(given, wanted)| given != wanted);
    Err(format!("row {at:?}: {:?} instead of {:?}", at.map(|at| &given.rows[at]), at.map(|at| &wanted.rows[at])))
}

async fn tell(shards: usize, cached: bool) {
    let herd = Herd::start(shards, cached).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    let (mut faults, mut equal, mut refused) = (Vec::new(), 0, 0);
    for trap in TRAPS {
        for statement in trap.statements {
            let (mark, text) = statement.split_at(1);
            let text = text.trim_start();
            let mut seen = String::new();
            for manner in MANNERS {
                // A write must not reach the oracle: it would change what the next statement is compared with.
                let wanted = if mark == "!" { None } else { Some(ask(&mut oracle, manner, text).await) };
                // Twice: with a cache the second answer may come from it.
                for turn in 1..=2 {
                    let given = ask(&mut client, manner, text).await;
                    match judge(mark, text, given, wanted.clone()) {
                        Ok(outcome) => seen.push(outcome),
                        Err(fault) => {
                            faults.push(format!("{}: {text}\n  {manner:?}, turn {turn}: {fault}", trap.name));
                        }
                    }
                }
            }
            equal += usize::from(seen.contains('='));
            refused += usize::from(seen.contains('!'));
            if seen.contains('=') && seen.contains('!') {
                faults.push(format!("{}: {text}\n  answered or refused by manner: {seen}", trap.name));
            }
        }
    }
    eprintln!("{} rows over {shards} shards, cache {cached}: {equal} equal, {refused} refused", TRAPS.len());
    assert!(faults.is_empty(), "{} faults over {shards} shards:\n{}", faults.len(), faults.join("\n"));
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn every_row_over_two_shards_with_a_cache() {
    tell(2, true).await;
}

#[tokio::test]
async fn every_row_over_four_shards_of_which_one_is_empty() {
    tell(4, false).await;
}
