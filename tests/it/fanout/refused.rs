//! What cannot be exact over several shards is refused, by a stable code that names the clause.

use pgherd::plan::distribute::Parameters;

use super::cluster::Cluster;

/// Code and statement.
const TRAPS: &[(&str, &str)] = &[
    ("server-function", "select id, current_database() from orders where customer_id = 1"),
    ("server-function", "select current_catalog from countries"),
    ("aggregate", "select stddev(amount) from orders"),
    ("aggregate", "select string_agg(region, ',') from orders"),
    ("aggregate", "select region, array_agg(id) from orders group by region"),
    ("aggregate", "select json_agg(id) from orders"),
    ("aggregate", "select percentile_cont(0.5) within group (order by price) from orders"),
    ("aggregate", "select sum(qty order by id) from orders"),
    ("aggregate-distinct", "select count(distinct region) from orders"),
    ("aggregate-expression", "select sum(qty) / count(*) from orders"),
    ("aggregate-expression", "select round(avg(amount), 2) from orders"),
    ("aggregate-expression", "select region, count(*) from orders group by region order by sum(qty) + 1"),
    ("having", "select region from orders group by region having max(day) > '2024-01-01'"),
    ("having", "select region from orders group by region having sum(qty) > max(qty)"),
    ("set-returning", "select region, unnest(array[1, 2]), count(*) from orders group by region"),
    ("set-returning", "select generate_series(1, 3), count(*) from orders"),
    ("window", "select rank() over (order by id) from orders"),
    ("window", "select rank() over (partition by region order by id) from orders"),
    ("window", "select sum(qty) over w from orders window w as (partition by customer_id)"),
    ("sub-query", "select * from orders where id in (select order_id from items)"),
    ("sub-query", "select id from orders o where exists (select from items i where i.order_id = o.id)"),
    ("sub-query", "select id from orders o where exists (select from items i where i.customer_id = o.id)"),
    (
        "sub-query",
        "select id from orders o where exists (select from items i where i.customer_id = o.customer_id or i.n = 1)",
    ),
    ("sub-query", "select id from orders where customer_id not in (select customer_id from items)"),
    ("sub-query", "select id from orders where customer_id in (select customer_id from items) or qty > 0"),
    ("sub-query", "select id from orders where not (customer_id in (select customer_id from items))"),
    ("sub-query", "select id from orders where customer_id in (select customer_id from items limit 10)"),
    ("sub-query", "select id from orders where customer_id in (select max(customer_id) from items)"),
    (
        "sub-query",
        "select id from orders where customer_id in (select max(customer_id) from items group by customer_id % 3)",
    ),
    ("sub-query", "select id from orders where qty in (select customer_id from items)"),
    ("sub-query", "select id from orders where customer_id in (select n from items)"),
    (
        "sub-query",
        "select id from orders o where customer_id in (select i.customer_id from countries c left join items i on true)",
    ),
    ("sub-query", "select v from pairs where a in (select x from halves)"),
    ("sub-query", "select id from orders where country = (select code from countries limit 1)"),
    ("sub-query", "select id from orders where country in (select distinct on (label) code from countries)"),
    ("sub-query", "select (select sum(o.qty)) from orders o"),
    ("sub-query", "select (select count(o.*)) from orders o"),
    ("sub-query", "select region, (select count(to_jsonb(o.*))) from orders o group by region"),
    ("sub-query", "select region from orders o group by region having (select count(o.*)) > 5"),
    ("join", "select o.id from orders o left join items i on i.customer_id = i.customer_id"),
    ("join", "select o.id from orders o join items i on i.customer_id = i.customer_id"),
    (
        "sub-query",
        "select (select count(*) from items i where i.customer_id = o.customer_id and sum(o.qty) > 1) from orders o group by o.customer_id",
    ),
    (
        "sub-query",
        "select id from orders o where exists (select from items i where i.customer_id = o.customer_id for update)",
    ),
    ("sub-query", "select * from (select id from orders order by id) o"),
    ("sub-query", "select * from (select id from orders limit 3) o"),
    ("sub-query", "select * from (select count(*) as n from orders) o"),
    ("sub-query", "select * from (select region, count(*) as n from orders group by region) o"),
    ("sub-query", "select * from (select distinct region from orders) o"),
    ("sub-query", "select * from (select id, row_number() over (order by id) as n from orders) o"),
    ("sub-query", "select * from (select id from orders union all select order_id from items) o"),
    ("sub-query", "select * from (select id, extract(year from day) from orders) o"),
    ("join", "select * from (select id from orders) o join items i on i.customer_id = o.id"),
    ("join", "select * from (select id as customer_id from orders) o join items i using (customer_id)"),
    (
        "join",
        "select o.id from (select customer_id as k, id as customer_id, id from orders) o join items i on i.customer_id = o.customer_id",
    ),
    ("select-list", "select (select * from countries) from orders"),
    ("sub-query", "select (select count(*) from items) from orders"),
    ("cte", "with x as (select * from orders) select * from x"),
    ("set-operation", "select id from orders union all select order_id from items"),
    ("set-operation", "select id from orders except select order_id from items"),
    ("distinct-on", "select distinct on (region) region, id from orders order by region, id"),
    ("distinct", "select distinct customer_id from orders order by id"),
    ("distinct", "select distinct count(*) from orders group by region"),
    ("grouping-sets", "select region, count(*) from orders group by rollup (region)"),
    ("grouping-sets", "select region, country, count(*) from orders group by grouping sets ((region), (country))"),
    ("with-ties", "select id from orders order by qty fetch first 3 rows with ties"),
    ("limit", "select id from orders limit 1 + 1"),
    ("limit", "select id from orders limit -1"),
    ("limit", "select id from orders limit (select 1)"),
    ("outer-join", "select * from countries c left join orders o on o.country = c.code"),
    ("outer-join", "select * from orders o right join countries c on o.country = c.code"),
    ("outer-join", "select * from orders o full join countries c on o.country = c.code"),
    ("join", "select * from orders o join items i on i.order_id = o.id"),
    ("join", "select * from orders o, items i"),
    ("join", "select * from orders o left join items i on i.order_id = o.id"),
    ("join", "select * from orders o join texts t on t.v = o.customer_id"),
    ("join", "select * from orders o join notes n on n.id = o.customer_id"),
    ("natural-join", "select * from orders natural join items"),
    ("stable-function", "select id, current_timestamp from orders"),
    ("volatile-function", "select id, now() from orders"),
    ("volatile-function", "select id from orders order by random()"),
    ("volatile-function", "select id from orders where at > clock_timestamp()"),
    ("volatile-function", "select txid_current_snapshot() from orders"),
    ("volatile-function", "select pg_backend_pid() from orders"),
    ("stable-function", "select id from orders where at < 'now'"),
    ("server-function", "select nextval('s') from orders where customer_id = 1"),
    ("server-function", "select pg_advisory_lock(1) from orders where customer_id = 1"),
    ("function", "select slug(region) from orders"),
    ("function", "select no_such(region) from orders where customer_id = 1"),
    ("system-column", "select ctid from orders"),
    ("system-column", "select o.tableoid from orders o"),
    ("cast", "select 'orders'::regclass from orders"),
    ("tablesample", "select * from orders tablesample system (10)"),
    ("for-update", "select * from orders for update"),
    ("unsharded-table", "select * from orders o join local l on l.id = o.id"),
    ("unsharded-table", "select * from orders, pg_class"),
    ("view", "select * from open_orders"),
    ("from", "select * from orders, generate_series(1, 3) g"),
    ("column-alias", "select * from orders as o (a, b)"),
    ("multi-shard-write", "update orders set qty = 1"),
    ("multi-shard-write", "delete from orders where qty = 1"),
    ("multi-shard-write", "insert into orders (id, customer_id) values (1, 1), (2, 2), (3, 3), (4, 4)"),
    ("shard-key-update", "update orders set customer_id = 8 where customer_id = 7"),
    (
        "shard-key-update",
        "insert into items values (7, 1, 'x', 2) on conflict (order_id) do update set customer_id = 3",
    ),
    ("insert-key", "insert into orders (id, customer_id) values (1, 3 + 4)"),
    ("insert-key", "insert into orders (id, customer_id) values (1, 7.2)"),
    ("insert-key", "insert into orders (id, customer_id) values (1, default)"),
    ("insert-select", "insert into orders (id, customer_id) select id, id::int4 from orders"),
    ("insert-select", "insert into items select customer_id, id, region, qty from orders limit 3"),
    ("no-shard", "insert into accounts values ('gold', 1)"),
    ("reference-write", "insert into countries values ('x', 'y')"),
    ("reference-write", "update countries set label = 'x'"),
    ("reference-write", "delete from countries"),
    ("statement", "truncate orders"),
    ("statement", "copy orders to stdout"),
    ("statement", "copy orders from stdin"),
    ("join", "merge into orders o using items i on i.order_id = o.id when matched then delete"),
    ("statement", "alter table orders add column x int"),
    ("opaque", "do $$ begin delete from orders; end $$"),
    ("explain", "explain select * from orders"),
    ("order-by", "select extract(year from day) from orders order by \"extract\""),
];

#[tokio::test]
async fn every_trap_is_refused_by_name() {
    let mut cluster = Cluster::start(2).await;
    let mut wrong = Vec::new();
    for &(code, text) in TRAPS {
        match cluster.plan(text, Some(Parameters::NONE)) {
            Err(refusal) if refusal.code == code => {
                assert!(!refusal.message.is_empty() && !refusal.hint.is_empty(), "{text}");
            }
            other => wrong.push(format!("{text}: not {code} but {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.pure_functions.push("public.slug(text)".into());
    cluster.same("select slug(region) s, id from orders order by id").await;
}

#[tokio::test]
async fn types_and_collations_that_pgherd_does_not_compare_are_refused_before_anything_runs() {
    let cluster = Cluster::start(2).await;
    for text in [
        "select id from orders order by country",
        "select min(country) from orders",
        "select country, count(*) from orders group by country order by country",
        "select sum(span) from orders",
        "select array[qty] from orders order by 1",
        "select array[qty], count(*) from orders group by 1",
        "select id from orders order by lower(country)",
        "select max(array[id]) from orders",
    ] {
        let answer = cluster.distributed(text, &[], &[], &[0]).await.expect(text);
        assert_eq!(answer.error.map(|(code, _)| code).as_deref(), Some("0A000"), "{text}");
        assert!(answer.rows.is_empty() && answer.tag.is_empty(), "{text}");
    }
}
