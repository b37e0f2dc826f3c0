//! Each supported shape over 1, 2 and 4 shards, in text and binary form, against one PostgreSQL with all rows.

use super::cluster::Cluster;

async fn same_everywhere(statements: &[&str]) {
    for shards in [1, 2, 4] {
        let cluster = Cluster::start(shards).await;
        for statement in statements {
            cluster.same(statement).await;
        }
    }
}

#[tokio::test]
async fn rows_are_concatenated() {
    same_everywhere(&[
        "select * from orders",
        "select id, upper(region) u, amount * 2 from orders where qty > 0 and region like '%t%'",
        "select o.id, i.sku, c.label from orders o join items i on i.customer_id = o.customer_id left join countries c on c.code = o.country where o.id < 50",
        "select o.id, i.n from orders o left join items i using (customer_id) where o.id < 40",
        "select o.id, unnest(array['x', o.region]) from orders o left join items i on i.customer_id = o.customer_id where i.customer_id is null",
        "select o.id, i.n from orders o left join items i on i.customer_id = o.customer_id and i.n = 9 where i.customer_id is null or i.n = 1",
        "select o.id, i.sku from orders o full join items i on o.customer_id = i.customer_id where o.id < 20 or o.id is null",
        "select o.id, c.label from countries c, orders o where c.code = o.country",
        "select * from empty",
        "select id, case when ok then 'y' else 'n' end, coalesce(region, '?'), extract(year from day) from orders",
        "select id, row_number() over (partition by customer_id order by id) from orders",
        "select distinct customer_id, region from orders",
        "select k, v from texts where k in ('ää3', 'ä1', '')",
        "select 'it''s -- from' as \"From\", id /* from x */ from orders -- where\n where id < 10;",
        "select id from orders where id % 2 = 0 -- the end",
        "select o.* from orders as o where o.day between '2024-01-05' and date '2024-02-01'",
        "select day, n from visits where day >= '2024-01-07' and day < '2024-01-20'",
        "select plan, balance from accounts where plan in ('free', 'vip')",
    ])
    .await;
}

#[tokio::test]
async fn queries_over_rows_with_the_same_key_run_where_those_rows_are() {
    same_everywhere(&[
        "select id from orders o where exists (select from items i where i.customer_id = o.customer_id and i.n = 2)",
        "select id, region from orders o where not exists (select 1 from items i where i.customer_id = o.customer_id and i.n > o.qty)",
        "select region, count(*) from orders o where exists (select from items i where o.customer_id = i.customer_id) group by region order by region",
        "select id, (select max(sku) from items i where i.customer_id = o.customer_id) best from orders o order by id limit 50",
        "select id, (select count(*) from items i where i.customer_id = o.customer_id and i.n = o.small % 4) from orders o",
        "select id from orders o order by (select count(*) from items i where i.customer_id = o.customer_id), id limit 30",
        "select sum((select count(*) from items i where i.customer_id = o.customer_id)) from orders o",
        "select o.id from orders o where qty > (select avg(n) from items i where i.customer_id = o.customer_id)",
        "select o.id from orders o where exists (select from items i where i.customer_id = o.customer_id and exists (select from orders p where p.customer_id = i.customer_id and p.id <> o.id and p.region = o.region))",
        "select o.id from orders o where exists (select from items i join orders p on p.customer_id = i.customer_id where i.customer_id = o.customer_id and p.id > o.id + 200)",
        "select o.id, (select i.sku from items i where i.customer_id = o.customer_id order by i.order_id limit 1) from orders o",
        "select o.id from orders o where o.country in (select code from countries where label like '%a%')",
        "select o.id from orders o where o.country not in (select code from countries)",
        "select id, (select label from countries c where c.code = o.country) label from orders o order by id desc limit 9",
        "select id from orders where customer_id in (select customer_id from items where n = 3)",
        "select id from orders where customer_id in (select customer_id from items group by customer_id having sum(n) > 12)",
        "select id from orders where qty > 0 and (customer_id in (select distinct i.customer_id from items i, countries c where c.code = 'de' and i.n = 1))",
        "select v from pairs where (a, b) in (select x, y from halves where w % 2 = 0)",
        "select v from pairs where (b, a) in (select y, x from halves)",
        "select v from pairs p where exists (select from halves h where (h.x, h.y) = (p.a, p.b))",
        "select region, count(*), sum(qty) from orders where customer_id in (select customer_id from items where n = 1) group by 1 order by 1",
        "select count(*) from orders o left join items i on i.customer_id = o.customer_id where exists (select from items j where j.customer_id = i.customer_id and j.n = 3)",
    ])
    .await;
}

#[tokio::test]
async fn queries_in_from_stand_for_tables() {
    same_everywhere(&[
        "select * from (select id, customer_id from orders) o",
        "select o.id as n, o.* from (select id, region as r from orders where qty > 0) as o order by o.id desc limit 20",
        "select r, count(*), sum(q) from (select region as r, qty as q from orders) d group by r order by r",
        "select y, sum(volume) from (select extract(year from o.day) as y, o.amount * i.n as volume from orders o, items i where o.customer_id = i.customer_id) as shipping group by y",
        "select d.label, count(*) from (select c.label, o.id from orders o join countries c on c.code = o.country) d group by d.label order by 2 desc, 1",
        "select max(n), min(n), avg(n) from (select customer_id, count(*) as n from orders group by customer_id) d where n > 3",
        "select n, count(*) from (select customer_id, count(*) as n from items group by 1) d group by n order by n",
        "select o.id, d.n from orders o join (select customer_id as c, sum(n) as n from items group by customer_id) d on d.c = o.customer_id order by o.id",
        "select o.id, d.n from orders o left join (select customer_id, sum(n) from items group by customer_id) d (c, n) on d.c = o.customer_id order by o.id",
        "select d.c, e.n from (select distinct customer_id c from orders) d join (select customer_id c, n from items where n > 1) e using (c) order by 1, 2",
        "select * from (select id, row_number() over (partition by customer_id order by id) as place from orders) d where place <= 2",
        "select id, label from (select id, country from orders) o join (select code, upper(label) as label from countries) c on c.code = o.country order by id",
        "select id from (select * from orders where customer_id = 5) o",
        "select id from (select * from (select * from orders where ok) a where qty > 0) b where region = 'north'",
        "select id from (select id, customer_id k from orders) o where exists (select from items i where i.customer_id = o.k and i.n = 1)",
        "select id from orders o where exists (select from (select customer_id, n from items where n > 1) i where i.customer_id = o.customer_id)",
        "select x.a, count(*) from (select a, b from pairs) x join (select x, y from halves) h on (x.a, x.b) = (h.x, h.y) group by x.a order by 1",
        "select distinct c from (select customer_id as c, region from orders) d order by c",
        "select distinct region from (select customer_id as c, region from orders) d",
        "select o.id, d.n from orders o left join (select customer_id c, n from items where customer_id = 5) d on d.c = o.customer_id order by o.id, d.n",
        "select o.id, d.n from (select customer_id c, n from items where customer_id in (5, 6)) d right join orders o on d.c = o.customer_id order by 1, 2",
        "select count(*), count(d.c), count(e.c) from (select customer_id c from items where customer_id = 5) d full join (select customer_id c from orders where customer_id = 7) e using (c)",
        "select r, count(*) from (select customer_id, region from orders) d (region, r) group by r order by r",
        "select k, count(*) from (select customer_id, id from orders) d (id, k) where k = 5 group by k",
        "select p.b, count(*) from (select a, b from pairs) p (b, a) group by p.b order by 1",
        "select count(*), max(id) from (select * from orders) d where customer_id = 1 and customer_id = 2",
        "select count(*) from orders where customer_id = 1 and customer_id = 2 and customer_id in (select customer_id from items)",
    ])
    .await;
}

#[tokio::test]
async fn ordered_streams_are_merged_in_postgresqls_order() {
    same_everywhere(&[
        "select id, amount from orders order by amount, id",
        "select id, amount from orders order by amount desc, id desc",
        "select id, amount from orders order by 2 nulls first, 1",
        "select id, region from orders order by region desc nulls last, id",
        "select id r, -price as p from orders order by p desc, r",
        "select id from orders order by price, ratio desc, id",
        "select id from orders order by price * -1, id limit 20",
        "select * from orders order by at desc limit 7 offset 5",
        "select o.* from orders o order by 1",
        "select id, made from orders order by made desc offset 390",
        "select case when ok then 1 end from orders order by \"case\"",
        "select (qty + 1)::int8 from orders order by int8",
        "select id from orders order by clock, id",
        "select id from orders order by ok desc, small, id",
        "select id from orders order by code",
        "select id from orders order by raw desc",
        "select id from orders order by span desc, id",
        "select id from orders order by big, id fetch first 5 rows only",
        "select id from orders order by customer_id nulls first, day, id limit all",
        "select id from orders order by id limit null offset 2",
        "select id from orders order by id limit 0",
        "select id from orders order by id offset 1000",
        "select id from orders order by id limit 9223372036854775807 offset 398",
        "select distinct customer_id c, ok from orders order by c desc, ok",
        "select id, case when ok then 0 else (select max(i.n) as top from items i where i.customer_id = o.customer_id) end from orders o order by top, id",
        "select id, case when ok then 0 else qty end from orders order by qty, id",
        "select id, (case when ok then 0 else qty end)::int8 from orders order by qty, id",
        "select distinct customer_id, qty from orders order by qty, customer_id limit 10",
        "select id, sum(qty) over (partition by customer_id order by id) s from orders order by s, id",
        "select o.id, i.order_id from orders o join items i on o.customer_id = i.customer_id order by o.id, i.order_id limit 40",
    ])
    .await;
}

#[tokio::test]
async fn a_limit_without_an_order_gives_as_many_rows_as_postgresql() {
    let cluster = Cluster::start(4).await;
    for (text, rows) in [
        ("select id from orders limit 10", 10),
        ("select id from orders limit 10 offset 395", 5),
        ("select id from orders offset 390", 10),
        ("select id from orders fetch next row only", 1),
    ] {
        let given = cluster.distributed(text, &[], &[], &[0]).await.expect(text);
        assert_eq!((given.rows.len(), given.tag), (rows, format!("SELECT {rows}")), "{text}");
    }
}

#[tokio::test]
async fn aggregates_over_everything_are_merged() {
    same_everywhere(&[
        "select count(*) from orders",
        "select count(*), count(amount), count(region) from orders where id < 0",
        "select sum(qty), sum(small), sum(id), sum(amount), sum(price), sum(ratio), sum(big) from orders",
        "select avg(qty), avg(small), avg(id), avg(amount), avg(price), avg(ratio), avg(big) from orders",
        "select sum(v), avg(v), min(v), max(k), count(*) from empty",
        "select min(id), max(qty), min(amount), max(price), min(ratio), max(day), min(at), max(made), min(clock), max(big) from orders",
        "select min(region), max(region), max(span) from orders",
        "select bool_and(ok), bool_or(ok), every(id > 0) from orders",
        "select bit_and(qty), bit_or(qty), bit_xor(qty), bit_or(small), bit_xor(small), bit_and(id), bit_xor(id) from orders",
        "select bit_or(k), bit_xor(k) from empty",
        "select region, bit_or(qty) filter (where qty < 0), bit_xor(id) from orders group by region having bit_or(small) <> 7 order by region",
        "select count(*) filter (where ok), sum(amount) filter (where qty > 0), avg(amount) filter (where region = 'north') from orders",
        "select count(distinct customer_id), sum(distinct customer_id) from orders",
        "select 'x' as x, 1 + 1, count(*) n, avg(amount) as \"Avg\" from orders",
        "select count(*) from orders o join items i on i.customer_id = o.customer_id join countries c on c.code = o.country",
        "select sum(amount) from orders having count(*) > 5",
        "select sum(amount) from orders having count(*) > 5000",
        "select max(n) from visits where day > '2024-01-20'",
        "select avg(v) from texts where k is null",
    ])
    .await;
}

#[tokio::test]
async fn groups_are_merged_by_value() {
    same_everywhere(&[
        "select region, count(*) from orders group by region",
        "select region, count(*) from orders group by region order by region",
        "select region r, country, sum(amount), avg(amount), min(day), max(at) from orders group by r, country order by 1, avg desc, min desc",
        "select country, avg(price) a from orders group by 1 order by a, sum(qty) desc",
        "select qty, count(*), avg(amount), sum(amount) from orders group by qty order by qty desc nulls first limit 4 offset 1",
        "select qty, ok, count(*), max(at) from orders group by ok, qty order by ok nulls first, qty desc limit 7",
        "select id % 7 as rest, ok, day, sum(amount) from orders group by 1, 2, 3 having sum(qty) > 2 order by day desc, rest limit 9",
        "select price, country, min(at), count(price) from orders group by price, country",
        "select distinct qty, ok from orders order by ok, qty desc limit 5",
        "select distinct region, country from orders",
        "select extract(month from day) as m, count(*) from orders group by m order by m",
        "select qty from orders group by qty having qty > 3 order by qty limit 2",
        "select qty, ok, count(*) from orders group by qty, ok order by count(*) desc, qty, ok nulls first limit 5",
        "select price, count(*) from orders group by price order by price desc nulls last",
        "select amount % 3 as rest, sum(id) from orders group by amount % 3 order by 1",
        "select count(*), sum(id), min(day) from orders group by span order by min(id)",
        "select country, count(*) from orders group by country having count(*) > 99 and not avg(amount) < 0 order by count(*), min(id)",
        "select country, sum(qty) from orders group by country having sum(qty) between -10 and 1000 or max(price) is null",
        "select region, max(amount) from orders group by region having region <> 'north' order by max(amount) desc",
        "select date_trunc('month', made), count(*) from orders group by 1 order by 1",
        "select c.label, count(*), sum(o.amount) from orders o join countries c on c.code = o.country group by c.label having sum(o.amount) > -10000",
        "select distinct region from orders",
        "select distinct region, qty from orders order by qty desc, region",
        "select distinct price from orders order by 1 limit 5 offset 2",
        "select tag, count(*) from orders group by tag",
        "select count(*) from orders group by region having min(region) is not null order by 1, min(id)",
        "select count(*) from orders group by big order by big desc limit 3",
    ])
    .await;
}

#[tokio::test]
async fn groups_with_the_shard_key_are_left_to_the_shards() {
    same_everywhere(&[
        "select customer_id, array_agg(id order by id), string_agg(region, ',' order by id), stddev(amount) from orders group by customer_id",
        "select customer_id, count(distinct region) n from orders group by 1 having count(*) > 3 order by n desc, customer_id limit 10",
        "select o.customer_id, percentile_cont(0.5) within group (order by o.price) from orders o group by o.customer_id order by 1",
        "select customer_id, round(avg(amount), 2) from orders group by customer_id, ok order by customer_id, ok, 2",
    ])
    .await;
}

#[tokio::test]
async fn parameters_reach_the_shards_and_the_limits() {
    for shards in [1, 2, 4] {
        let cluster = Cluster::start(shards).await;
        let text = "select id, $3::text from orders where qty > $1 order by id limit $2 offset $4";
        cluster.same_with(text, &[], &[Some(b"0"), Some(b"7"), Some("ä".as_bytes()), Some(b"3")]).await;
        cluster.same_with("select id from orders order by id limit $1", &[20], &[None]).await;
        cluster
            .same_with(
                "select region, sum(qty) from orders group by 1 having sum(qty) > $1 order by 1, 2",
                &[20],
                &[Some(b"3")],
            )
            .await;
    }
}

#[tokio::test]
async fn an_average_has_postgresqls_digits_in_hundreds_of_random_groups() {
    let cluster = Cluster::start(4).await;
    let fill = "create table numbers (k int4, g int4, v numeric, f numeric(30,10));
        select setseed(0.5);
        insert into numbers select g % 101, g % 397, case when random() < 0.05 then null when random() < 0.01 then 'NaN'
          when random() < 0.01 then 'Infinity' else round((random()::numeric - 0.5) * power(10::numeric, (random() * 40)::int), (random() * 25)::int) end,
          (random()::numeric - 0.3) * power(10::numeric, (random() * 18)::int) from generate_series(1, 4000) g;";
    let seeded = "create table by_int (k int4) partition by hash (k);
        delete from numbers where not satisfies_hash_partition('by_int'::regclass, 4, %, k);";
    cluster.whole.execute(fill).await;
    for (at, shard) in cluster.shards.iter().enumerate() {
        shard.execute(&format!("{fill}{}", seeded.replace('%', &at.to_string()))).await;
    }
    let mut cluster = cluster;
    cluster.catalog = pgherd::catalog::load::load(&cluster.shards[0].client().await).await.expect("catalog");
    let mut table = cluster.configured.tables[0].clone();
    table.name = "numbers".into();
    table.distribution = pgherd::config::model::Distribution::Hash { columns: vec!["k".into()] };
    cluster.configured.tables.push(table);
    cluster
        .same("select g, sum(v), avg(v), min(v), max(v), sum(f), avg(f), count(v) from numbers group by g order by g")
        .await;
    cluster.same("select v, count(*) from numbers group by v").await;
    cluster.same("select k, g, v from numbers order by v desc, k, g").await;
}

#[tokio::test]
async fn keys_of_several_columns_and_default_shards_are_read_as_one_table() {
    same_everywhere(&[
        "select * from pairs",
        "select p.v, h.w from pairs p join halves h on p.a = h.x and p.b = h.y",
        "select p.v, h.w from pairs p left join halves h on (p.a, p.b) = (h.x, h.y) and h.w > 9",
        "select a, b, count(*), sum(v) from pairs group by a, b",
        "select a, b, array_agg(v order by v) from pairs group by b, a",
        "select a, count(*) from pairs group by a order by a",
        "select distinct b, v % 2, a from pairs",
        "select distinct a from pairs order by a",
        "select a, rank() over (partition by b, a order by v) from pairs",
        "select v from pairs where a = 3 and b = 'b1'",
        "select v from pairs where (a, b) in ((1, 'b1'), (2, 'b2'), (3, null)) order by v",
        "select v from pairs where a in (1, 2) and b in ('b0', 'b3') or a = 4 and b = 'b2' order by v",
        "select v from pairs where a is null and b is null order by v",
        "select v from pairs where a = 1 and b is null order by v",
        "select v from grid where x < 10 order by v",
        "select v from grid where x = 20 and y < '2024-01-05' order by v",
        "select v from grid where x between 5 and 12 and y > '2024-01-08' order by v",
        "select v from grid where x is null or y is null order by v",
        "select x, y, v from grid where x >= 20 order by x, y, v limit 5",
        "select v from tiers where tier = 'none' order by v",
        "select v from tiers where tier in ('low', 'none') order by v",
        "select v from tiers where tier is null order by v",
        "select tier, count(*) from tiers group by tier",
    ])
    .await;
}
