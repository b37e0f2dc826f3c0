//! Writes that read: INSERT of a query's rows, MERGE, sub-queries, and moments that are one for all shards.

use super::several::Twins;
use super::stage::{ok, say};
use crate::answers::MANNERS;

#[tokio::test]
async fn rows_of_a_query_stay_on_the_shard_that_they_are_read_from() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "insert into entries (account_id, amount) select id, balance from accounts where id % 3 = 0 returning account_id, amount",
            "insert into entries (note, account_id, amount) select 'it''s', a.id, a.balance * r.rate from accounts a, rates r where a.balance > 50 and r.code = 'a'",
            "insert into entries (account_id, amount) select id, count(*) from accounts group by id order by id returning account_id",
            "insert into entries (account_id, amount, note) select a.id, e.amount, a.owner from accounts a join entries e on e.account_id = a.id where e.note = 'none' returning note",
            "insert into accounts (id, owner, balance, at) select id, 'again', 1, '2026-01-01' from accounts on conflict (id) do update set owner = excluded.owner || '!' returning id, owner",
            "insert into accounts select * from accounts where id < 9 on conflict do nothing",
            "insert into entries (account_id, amount) select 7, char_length(code) from rates",
            "insert into entries (account_id, amount) select account_id, amount from entries where account_id = 5 order by amount, note limit 2",
            "insert into rates select code || char_length(code), rate + 1 from rates where char_length(code) < 4 returning *",
            "insert into rates (rate, code) select max(rate), 'most' from rates on conflict (code) do update set rate = excluded.rate",
            "insert into entries (account_id, amount) select id, 1 / (id - 20) from accounts",
            "delete from entries where amount > 60",
            "delete from rates where char_length(code) > 1",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn one_statement_has_one_moment_on_all_shards() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "update accounts set at = now()",
            "update accounts set at = current_timestamp - interval '1 day', owner = to_char(now(), 'x') where id > 3 and at <= now()",
            "update accounts set owner = (current_date - current_date)::text || (localtimestamp is null)::text returning id, owner",
            "insert into accounts (id, balance, at) values (81, 1, now()), (82, 1, statement_timestamp()), (83, 1, pg_catalog.now() + '1 h'), (84, 1, default)",
            "insert into accounts (id, balance) values (85, extract(year from now()) * 0), (86, 2), (87, 3), (88, 4)",
            "delete from accounts where id > 80 and at > now() + '1 minute' returning id",
            "delete from accounts where id > 80 and at <= now() returning id",
            "update rates set rate = extract(year from current_date) where code = 'b'",
            "update accounts set balance = balance / (id - id) where at < now()",
        ] {
            // The default of a column that is given to other rows is one of all of them.
            if sql.contains("default") {
                assert_eq!(say(&mut clients.1, sql).await.code(), Some("0A000"), "{sql}");
                continue;
            }
            twins.same(&mut clients, manner, sql).await;
            let sql = "select count(distinct at)::int4 from accounts where id between 4 and 40";
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
    // The shards' own rows have the very same time.
    ok(&mut clients.1, "update accounts set at = now()").await;
    let mut times = Vec::new();
    for shard in &twins.stage.shards {
        let row = shard.client().await.query_one("select min(at)::text, max(at)::text from accounts", &[]).await;
        let row = row.expect("times");
        times.extend([row.get::<_, String>(0), row.get::<_, String>(1)]);
    }
    times.dedup();
    assert_eq!(times.len(), 1, "{times:?}");
}

#[tokio::test]
async fn sub_queries_over_the_same_key_or_reference_tables_are_judged_on_each_shard() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "insert into entries (account_id, amount) values (1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (1, 1), (77, 1)",
            "update accounts a set balance = a.balance + (select coalesce(sum(amount), 0) from entries e where e.account_id = a.id)",
            "update accounts set balance = balance + (select count(*) from rates where rate > 1) returning id, balance",
            "delete from entries e where not exists (select 1 from accounts a where a.id = e.account_id) returning e.account_id",
            "update accounts a set owner = (select min(note) from entries where account_id = a.id and amount > 5) where exists (select 1 from rates)",
            "update accounts set owner = (select max(code) from rates where code = any (select max(code) from rates))",
            "delete from entries where amount in (select 5 + char_length(code) from rates) returning account_id, amount",
            "insert into accounts (id, balance, at) values (91, (select count(*) from rates), '2026-01-01'), (92, 2, '2026-01-01'), (93, 3, null), (94, 4, null)",
            "delete from accounts where id > 90",
            "delete from entries e using accounts a where a.id = e.account_id and a.balance > (select min(rate::int4) from rates)",
            "update rates set rate = rate + (select max(rate::int4) from rates)",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn merges_run_where_their_rows_meet() {
    let twins = Twins::set(3).await;
    let version = twins.whole.client().await.query_one("select current_setting('server_version_num')::int", &[]).await;
    if version.expect("a version").get::<_, i32>(0) < 150_000 {
        return;
    }
    let mut clients = twins.clients().await;
    let one = ok(&mut clients.1, "insert into entries (account_id, amount) values (1, 1)").await;
    assert_eq!(one, "INSERT 0 1");
    ok(&mut clients.0, "insert into entries (account_id, amount) values (1, 1)").await;
    for manner in MANNERS {
        for sql in [
            "delete from entries",
            "insert into entries (account_id, amount) select id, id from accounts where id % 2 = 0",
            "insert into entries (account_id, amount) values (61, 7), (62, 8), (63, 9), (64, 60)",
            "merge into accounts a using entries e on a.id = e.account_id when matched and e.amount > 30 then delete \
             when matched then update set balance = a.balance + e.amount, owner = e.note \
             when not matched and e.amount < 50 then insert (owner, id, balance, at) values (e.note, e.account_id, e.amount, '2026-01-01')",
            "merge into accounts using rates r on accounts.balance > 100 and r.code = 'a' when matched then update set owner = r.code",
            "merge into rates t using rates s on t.code = s.code || 'x' when matched then update set rate = s.rate \
             when not matched and char_length(s.code) < 3 then insert values (s.code || 'x', s.rate)",
            "merge into accounts a using (values (3)) v(x) on a.id = 7 when matched then update set balance = a.balance + v.x \
             when not matched then insert (id, balance, at) values (7, v.x, '2026-01-01')",
            "merge into accounts a using entries e on a.id = e.account_id when matched then do nothing when not matched then insert (id, balance, at) values (e.account_id, -1, now())",
            "insert into entries (account_id, amount) select account_id, 0 from entries",
            "merge into accounts a using entries e on a.id = e.account_id when matched then update set balance = 0",
            "delete from accounts where id > 60",
            "insert into accounts (id, owner, balance, at) values (32, 'o', 1, null), (34, 'o', 1, null), (36, 'o', 1, null), (38, 'o', 1, null), (40, 'o', 1, null) on conflict do nothing",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
    for sql in [
        "insert into entries (account_id, amount) select id, 1 from accounts returning (select count(*) from entries)",
        "insert into accounts select * from accounts on conflict (id) do update set balance = (select max(amount) from entries)",
        "merge into accounts a using rates r on a.owner = r.code when not matched then insert (id, balance, at) values (1, 1, null)",
        "merge into accounts a using entries e on a.id = e.account_id when matched then update set id = 5",
        "merge into accounts a using entries e on a.id = e.account_id when not matched then insert (id, balance, at) values (e.amount, 1, null)",
        "merge into accounts a using entries e on a.id = e.account_id when not matched then insert (id, balance) values (e.account_id, 1)",
        "merge into accounts a using entries e on a.balance = e.amount when matched then delete",
        "merge into accounts a using (select account_id, sum(amount) s from entries group by 1) e on a.id = e.account_id when matched then delete",
        "merge into rates r using accounts a on r.code = a.owner when matched then delete",
        "merge into rates r using (select code from rates limit 1) s on r.code = s.code when matched then delete",
    ] {
        assert_eq!(say(&mut clients.1, sql).await.code(), Some("0A000"), "{sql}");
    }
    twins.is_same().await;
}

/// Where a number of a reference table is only compared with numbers, any of several equal ones will do: each shard may take another.
#[tokio::test]
async fn of_equal_numbers_that_are_only_compared_any_will_do() {
    let twins = Twins::set(3).await;
    for (at, database) in twins.stage.shards.iter().chain([&twins.whole]).enumerate() {
        let order = if at % 2 == 0 { "asc" } else { "desc" };
        let sql = format!(
            "insert into rates select 'r' || rate, rate from (values (9.0), (9.00), (-2), (-2.000)) v (rate) order by rate::text {order}"
        );
        database.execute(&sql).await;
    }
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "update accounts set owner = 'c' where balance > (select max(rate) from rates) and id % 7 = 0",
            "update accounts set owner = 'd', balance = balance + 1 where id = (select max(rate) from rates) returning id, owner",
            "update accounts set owner = 'e' where id not in (select distinct rate from rates) and id < 12",
            "update accounts set owner = (id <= (select max(r.rate) from rates r))::text where (select min(rate) from rates) < balance",
            "update accounts set owner = 'f' where balance in (select rate from rates where rate > (select min(x.rate) from rates x))",
            "delete from entries where amount = (select max(rate) from rates)",
            "insert into entries (account_id, amount) select id, balance from accounts where id >= (select max(rate) from rates)",
            "delete from accounts where id > 30 and balance > (select min(r.rate) from rates r where r.code <> accounts.owner)",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
    for sql in [
        "update accounts set owner = (select max(rate)::text from rates)",
        "update accounts set owner = 'x' where id = (select max(rate) + 0 from rates)",
        "update accounts set owner = 'x' where (select max(rate)::text from rates) = '9.00'",
    ] {
        assert_eq!(say(&mut clients.1, sql).await.code(), Some("0A000"), "{sql}");
    }
    twins.is_same().await;
}
