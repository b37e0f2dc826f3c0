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
        ("select * from orders where customer_id = null", vec![0]),
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
