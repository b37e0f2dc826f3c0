//! Which shards a statement reaches: decisions without a connection.

use pgherd::plan::distribute::{Distributed, Parameters};

use super::cluster::Cluster;

/// The shards of the plan, and whether it is forwarded untouched.
fn shards(cluster: &Cluster, text: &str, types: &[u32], values: &[Option<&[u8]>]) -> (Vec<usize>, bool) {
    match cluster.plan(text, Some(Parameters { types, formats: &[], values })) {
        Ok(Distributed::Shard { shard, .. }) => (vec![shard], true),
        Ok(Distributed::Streamed(plan)) => (plan.shards.clone(), false),
        other => panic!("{text}: {other:?}"),
    }
}

#[tokio::test]
async fn one_key_value_is_one_shard() {
    let cluster = Cluster::start(4).await;
    let (home, _) = shards(&cluster, "select * from orders where customer_id = 7", &[], &[]);
    for text in [
        "select * from orders where customer_id = '7'",
        "select * from orders o where 7 = o.customer_id and qty > 1",
        "select * from orders where (customer_id) = (7) or customer_id in (7)",
        "select * from orders where customer_id = 7::bigint",
        "select * from orders where customer_id = cast('7' as int) for update",
        "select * from orders o join items i on i.customer_id = o.customer_id where i.customer_id = 7",
        "select * from orders o left join items i on i.customer_id = o.customer_id where o.customer_id = 7",
        "select * from orders o, countries c where customer_id = 7",
        "select * from countries c left join orders o on o.customer_id = 7",
        "with x as (select * from orders where customer_id = 7) select count(*) from x",
        "select (select max(n) from items where customer_id = 7), count(*) over () from orders where customer_id = 7",
        "select 1 from orders where customer_id = 7 union select 2 from items where customer_id = 7 order by 1",
        "select * from orders o where customer_id = 7 and exists (select 1 from items i where i.customer_id = o.customer_id)",
        "select now(), random() from orders where customer_id = 7",
        "select * from public.orders where orders.customer_id = 7",
        "update orders set qty = 1 where customer_id = 7 returning *",
        "delete from orders using items where orders.customer_id = 7 and items.customer_id = orders.customer_id",
        "insert into orders (id, customer_id) values (1, 7), (2, '7') on conflict do nothing",
        "insert into items values (7, 1, 'x', 2)",
        "explain select * from orders where customer_id = 7",
    ] {
        assert_eq!(shards(&cluster, text, &[], &[]), (home.clone(), true), "{text}");
    }
    for (types, value) in [(&[][..], &b"7"[..]), (&[23], b"7"), (&[20], b"7"), (&[21], b"7")] {
        let text = "select * from orders where customer_id = $1";
        assert_eq!(shards(&cluster, text, types, &[Some(value)]), (home.clone(), true), "{types:?}");
    }
    assert!(matches!(cluster.plan("select * from orders where customer_id = $1", None), Ok(Distributed::NeedsBind)));
    let insert = "insert into orders (customer_id, id) values ($1, $2)";
    assert!(matches!(cluster.plan(insert, None), Ok(Distributed::NeedsBind)));
}

#[tokio::test]
async fn a_constant_that_changes_the_operator_prunes_nothing() {
    let cluster = Cluster::start(4).await;
    let all = (vec![0, 1, 2, 3], false);
    for text in [
        "select * from orders where customer_id = 7.0",
        "select * from orders where customer_id = 7::numeric",
        "select * from orders where customer_id = '7'::float8",
        "select * from orders where customer_id + 0 = 7",
        "select * from orders where customer_id = 7 or qty = 1",
        "select * from orders where not customer_id = 7",
        "select * from orders where customer_id <> 7",
        "select * from orders where (customer_id = 7) is not true",
        "select * from texts where k = 'a'::char(5)",
        "select * from texts where k = N'a'",
        "select * from texts where k collate \"C\" = 'a'",
        "select * from visits where day < now()::date or true",
    ] {
        let planned = cluster.plan(text, Some(Parameters::NONE));
        match planned {
            Err(refusal) => assert_eq!(refusal.code, "volatile-function", "{text}"),
            Ok(_) => assert_eq!(shards(&cluster, text, &[], &[]), all, "{text}"),
        }
    }
    assert_eq!(shards(&cluster, "select * from orders where customer_id = $1", &[1700], &[Some(b"7")]), all);
    assert_eq!(shards(&cluster, "select * from orders where customer_id = $1", &[701], &[Some(b"7")]), all);
}

#[tokio::test]
async fn ranges_and_lists_leave_only_the_shards_that_can_match() {
    let cluster = Cluster::start(4).await;
    for (text, wanted) in [
        ("select * from visits where day = '2024-01-08'", vec![0]),
        ("select * from visits where day = '2024-01-09'", vec![1]),
        ("select * from visits where day < '2024-01-09'", vec![0]),
        ("select * from visits where day <= '2024-01-09'", vec![0, 1]),
        ("select * from visits where day > '2024-01-16'", vec![1, 2, 3]),
        ("select * from visits where day between '2024-01-10' and '2024-01-18'", vec![1, 2]),
        ("select * from visits where '2024-01-25' <= day", vec![3]),
        ("select * from visits where day >= '2024-01-25' and day < '2024-01-02'", vec![0]),
        ("select * from visits where day = 'infinity'", vec![3]),
        ("select * from visits where day < '01/09/2024'", vec![0, 1, 2, 3]),
        ("select * from accounts where plan = 'pro'", vec![2]),
        ("select * from accounts where plan in ('free', 'vip')", vec![0, 3]),
        ("select * from accounts where plan is null", vec![3]),
        ("select * from accounts where plan = 'none'", vec![0]),
        // It may mean IS NULL.
        ("select * from orders where customer_id = null", vec![0, 1, 2, 3]),
        ("select * from orders where (customer_id) = (null)", vec![0, 1, 2, 3]),
        ("select * from orders where customer_id > null", vec![0]),
        ("select * from orders where customer_id is null", vec![0]),
        ("select * from countries", vec![0]),
    ] {
        assert_eq!(shards(&cluster, text, &[], &[]).0, wanted, "{text}");
    }
}

#[tokio::test]
async fn what_does_not_concern_the_shards_is_left_alone() {
    let cluster = Cluster::start(2).await;
    for text in [
        "select 1",
        "select * from local",
        "select * from pg_class",
        "create table orders2 (id int)",
        "begin",
        "vacuum local",
    ] {
        assert!(matches!(cluster.plan(text, Some(Parameters::NONE)), Ok(Distributed::Elsewhere)), "{text}");
    }
}

#[tokio::test]
async fn every_column_of_a_key_is_needed_to_find_its_shard() {
    let cluster = Cluster::start(4).await;
    let all = vec![0, 1, 2, 3];
    let home = |text: &str| shards(&cluster, text, &[], &[]);
    let (one, is_untouched) = home("select * from pairs where a = 3 and b = 'b1'");
    assert!(one.len() == 1 && is_untouched);
    for text in [
        "select * from pairs where b = 'b1' and (a = 3)",
        "select * from pairs where (a, b) = (3, 'b1')",
        "select * from pairs where (b, a) in (('b1', 3))",
        "select * from pairs where a in (3, 3) and b = any(array['b1'])",
        "select * from pairs where a = any('{3}') and b = any('{b1,b1}'::text[])",
        "select * from pairs where a = 3 and b = 'b1' or b = 'b1' and a = 3 and v > 7",
        "select * from pairs p join halves h on p.a = h.x and p.b = h.y where p.a = 3 and h.y = 'b1'",
        "select * from pairs p join halves h on p.a = h.x and p.b = h.y and h.x = 3 where p.b = 'b1'",
        "select * from pairs p where a = 3 and b = 'b1' and exists (select 1 from halves h where h.x = p.a and p.b = h.y)",
        "select * from pairs p left join halves h on h.x = p.a and h.y = p.b where a = 3 and b = 'b1'",
        "update pairs set v = 1 where a = 3 and b = 'b1'",
        "delete from pairs using halves where a = 3 and b = 'b1' and x = a and y = b",
        "insert into pairs (b, v, a) values ('b1', 1, 3), ('b1', 2, '3')",
    ] {
        assert_eq!(home(text), (one.clone(), true), "{text}");
    }
    for text in [
        "select * from pairs where a = 3",
        "select * from pairs where b = 'b1'",
        "select * from pairs where a = 3 or b = 'b1'",
        "select * from pairs where a = 3 and b > 'b1'",
        "select * from pairs where a = 3 and b = 'b1' or a = 4",
        "select * from pairs where (a, b) > (3, 'b1')",
    ] {
        assert_eq!(home(text), (all.clone(), false), "{text}");
    }
    let text = "select * from pairs where a = any($1) and b = $2";
    for (types, value) in [(&[][..], &b"{3}"[..]), (&[1007], b"{3}"), (&[1016], b"{ 3 }")] {
        assert_eq!(shards(&cluster, text, types, &[Some(value), Some(b"b1")]), (one.clone(), true), "{types:?}");
    }
    assert_eq!(shards(&cluster, text, &[1231], &[Some(b"{3}"), Some(b"b1")]), (all, false));
    for text in [
        "select * from pairs p join halves h on p.a = h.x",
        "select * from pairs p join halves h on p.a = h.x and p.b = h.y || ''",
        "select * from pairs p join halves h on p.a = h.x and p.b = p.b and h.y = h.y",
        "select count(distinct a) from pairs",
        "select rank() over (partition by a) from pairs",
    ] {
        assert!(cluster.plan(text, Some(Parameters::NONE)).is_err(), "{text}");
    }
}

#[tokio::test]
async fn ranges_of_several_columns_and_default_shards_are_pruned() {
    let cluster = Cluster::start(4).await;
    for (text, wanted) in [
        ("select * from grid where x = 3 and y = '2024-01-01'", vec![0]),
        ("select * from grid where x = 20 and y = '2024-01-09'", vec![1]),
        ("select * from grid where x = 20 and y = '2024-01-10'", vec![3]),
        // A row without a day lies on the default shard, whatever its x is.
        ("select * from grid where x = 3", vec![0, 3]),
        ("select * from grid where x < 10 and y > '2024-01-01'", vec![0]),
        ("select * from grid where x <= 10 and y > '2024-01-01'", vec![0, 1]),
        ("select * from grid where x = 20 and y < '2024-01-10'", vec![1]),
        ("select * from grid where x = 20 and y <= '2024-01-10'", vec![1, 3]),
        ("select * from grid where x > 20 and y > '2024-01-01'", vec![3]),
        ("select * from grid where x in (3, 12) and y between '2024-01-01' and '2024-01-03'", vec![0, 1]),
        ("select * from grid where y = '2024-01-01'", vec![0, 1, 3]),
        ("select * from grid where x is null", vec![3]),
        ("select * from grid where x = 3 and y is null", vec![3]),
        ("select * from grid where x < 5 and x > 7 and y = '2024-01-01'", vec![0]),
        ("select * from tiers where tier = 'low'", vec![0]),
        ("select * from tiers where tier = 'other'", vec![3]),
        ("select * from tiers where tier is null", vec![3]),
        ("select * from tiers where tier in ('low', 'x')", vec![0, 3]),
        ("insert into tiers values ('anything', 1), (null, 2)", vec![3]),
        ("insert into grid values (20, '2024-01-10', 1), (null, '2024-01-10', 2)", vec![3]),
        ("select * from visits where day = any('{2024-01-09,2024-01-10}')", vec![1]),
        ("select * from visits where day = any(array['2024-01-09'::date, '2024-01-30'])", vec![1, 3]),
        ("select * from visits where day = any(null)", vec![0]),
    ] {
        assert_eq!(shards(&cluster, text, &[], &[]).0, wanted, "{text}");
    }
}
