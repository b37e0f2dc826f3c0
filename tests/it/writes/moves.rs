//! INSERT of a query's rows that go to other shards than those they are read from: the same on one PostgreSQL and through pgherd.

use super::several::Twins;
use super::stage::{SCHEMA, Stage, ok, say};
use crate::answers::{Answer, MANNERS};
use crate::harness;

#[tokio::test]
async fn rows_of_a_query_go_where_they_belong() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            // Streamed, sorted, limited, grouped, from one shard, from no shard at all.
            "insert into entries (account_id, amount) select 1 + id, balance from accounts",
            "insert into entries (account_id, amount, note) select id * 7, balance, owner from accounts order by id desc limit 9 returning account_id, amount, note",
            "insert into entries (account_id, amount) select count(*), sum(balance) from accounts",
            "insert into entries (account_id, amount, note) select max(id), sum(balance), owner from accounts group by owner",
            "insert into entries (account_id, amount) select id + 1000, 1 from accounts where id = 5 returning *",
            "insert into entries (account_id, amount) select g, g * 2 from generate_series(1, 20) g",
            // By PostgreSQL, on the coordinator.
            "insert into entries (account_id, amount, note) with big as (select id, balance from accounts where balance >= 100) select b.id + a.id, b.balance, 'cte' from big b join accounts a on a.balance = b.balance and a.id < 3",
            "insert into entries (account_id, amount) select id, 1 from accounts union select id + 1, 2 from accounts where id < 5",
            "insert into entries (account_id, amount, note) select id % 5, row_number() over (order by id), percentile_cont(0.5) within group (order by balance)::text from accounts group by id",
            // Into reference tables: every shard gets all of them.
            "insert into rates select owner, balance from accounts where id < 6 returning code, rate",
            "insert into rates select 'sum', sum(balance) from accounts",
            "insert into rates (code, rate) select owner, sum(balance) + 1.50 from accounts where id < 9 group by owner on conflict (code) do update set rate = excluded.rate + rates.rate returning *",
            "insert into rates select code || 'x', rate from rates where code < 'c' order by code limit 1",
            // Nothing at all.
            "insert into entries (account_id, amount) select id + 1, 1 from accounts where balance < 0",
            "insert into entries (account_id, amount) select id + 1, 1 from accounts where balance < 0 returning note",
            "delete from entries",
            "delete from rates where code not in ('a', 'b')",
        ] {
            // An id of its shard's own is another one than that of one PostgreSQL.
            let sql = sql.replace(
                "returning *",
                if sql.contains("into rates") { "returning *" } else { "returning account_id, amount, note" },
            );
            let answer = twins.same(&mut clients, manner, &sql).await;
            assert_eq!(answer.error, None, "{sql}");
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn what_postgresql_makes_of_values_is_what_is_stored() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            // The shard of a row is that of the key as its column stores it.
            "insert into accounts (id, owner, balance, at) select id::int8 + 200, owner, balance, null from accounts where id < 10",
            "insert into accounts (id, owner, balance, at) select id + 300.4, 'x', 1, '2026-01-01' from accounts where id < 10 returning id",
            "insert into accounts (id, owner, balance, at) select id + 400::int2, null, '7', null from accounts where id < 10 returning owner, balance",
            "insert into accounts (id, owner, balance, at) select id + 500, $$it's \\ \"q\" {}, NULL$$, id, '2026-01-01 12:00+00' from accounts where id < 10 returning owner",
            "insert into accounts (id, owner, balance) select id + 600, at::text, 1 from accounts where id > 500 and id < 510 returning owner",
            "insert into accounts (id, owner, balance, at) select distinct 700 + id % 7, 'x', 1, timestamptz '2026-01-01' from accounts where id < 100",
            // Mistakes.
            "insert into accounts (id, balance) select id::int8 + 4000000000, 1 from accounts",
            "insert into accounts (id, balance) select id, 1, 2 from accounts",
            "insert into accounts (id, balance) select owner, 1 from accounts",
            "insert into accounts (id, at) select distinct 800 + id, '2026-01-01' from accounts",
            "insert into accounts (id, nothing) select id + 1, 2 from accounts",
            "insert into accounts (id, balance) select id + 1000, nothing from accounts",
            "insert into accounts (id, balance) select id + 1000, 1000 / abs(id - 20) from accounts",
            "insert into accounts (id, balance) select id + 1000, null from accounts",
            "insert into accounts (id, balance) select id + 1000, 10 - id from accounts where id < 20",
            "insert into accounts (id, balance) select null, balance from accounts",
            "insert into accounts (id, balance) select id % 3 + 2000, 1 from accounts",
            "insert into accounts (id, balance) select id + 39, 1 from accounts",
            // One time for all rows.
            "insert into accounts (id, balance) select id + 900, 1 from accounts where id < 20",
            "select count(distinct at)::int4, count(*)::int4 from accounts where id between 900 and 950",
            "delete from accounts where id > 40",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

/// Tables whose keys and columns are of many types.
const TYPES: &str = "
create type mood as enum ('sad', 'ok', 'happy');
create table raw (n int8, t text, m mood, tags text[], nums int4[], f float8, b bytea, j jsonb, at timestamptz, d date, i interval, u uuid, c char(3));
create table by_day (day date primary key, name varchar(5), m mood, tags text[] default '{none}', f float8, at timestamptz, i interval);
create table by_word (word varchar(6) primary key, j jsonb, b bytea, nums int8[], u uuid, c char(5), n numeric(8, 3));
create table by_price (price numeric(6, 2) primary key, t text, at timestamp(0), d date default '2020-02-02');
create table by_both (a int8, b text, c char(4), primary key (a, b));
";

async fn typed_twins() -> Twins {
    let shards = harness::fresh_databases(3).await;
    let whole = harness::fresh_database().await;
    for database in shards.iter().chain([&whole]) {
        database.execute(TYPES).await;
    }
    let tables = [("raw", "n"), ("by_day", "day"), ("by_word", "word"), ("by_price", "price")];
    let mut rest = String::new();
    for (table, key) in tables {
        rest += &format!("[[database.table]]\nname = \"public.{table}\"\nshard_key = \"{key}\"\nmethod = \"hash\"\n");
    }
    rest += "[[database.table]]\nname = \"public.by_both\"\nshard_key = [\"a\", \"b\"]\nmethod = \"hash\"\n";
    let stage = Stage::over(shards, &rest).await;
    whole.execute(&SCHEMA.replace("%shards%", "1").replace("%shard%", "0")).await;
    let pgherd = stage.pgherd().await;
    Twins { stage, pgherd, whole }
}

#[tokio::test]
async fn values_of_all_types_arrive_as_they_were() {
    let twins = typed_twins().await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "insert into raw select g, 'w' || g, (array['sad', 'ok', 'happy'])[g % 3 + 1]::mood, array['a,\"', null, 'b' || g], array[g, null], g / 7.0, '\\x00ff22'::bytea, \
             jsonb_build_object('k', g, 'q', E'\"\\\\'), '2026-01-01 00:00+00'::timestamptz + g * interval '1 h 0.001 s', date '2026-01-01' + g, g * interval '1 mon -3 days', \
             ('00000000-0000-0000-0000-0000000000' || lpad(g::text, 2, '0'))::uuid, 'x' from generate_series(1, 30) g",
            "insert into by_day select d, t, m, tags, f, at, i from raw where n < 20",
            "insert into by_day (day, name, at) select max(at), 'most', min(d) from raw where n > 20",
            "insert into by_day (m, day) select 'happy', d from raw where n = 21",
            "insert into by_day (day, name) select '2030-01-01', 'x' from raw where n = 22",
            "insert into by_day (day, name) select d, 'too long' from raw where n = 23",
            "insert into by_day (day, name) select d, 'spaces     ' from raw where n = 23",
            "insert into by_day (day, name) select d, 'sp       ' from raw where n = 24 returning name, day",
            "insert into by_word (word, j, b, nums, u, c, n) select t, j, b, nums, u, c, f from raw",
            "insert into by_word (word) select t || '   ' || tags[1] from raw where n = 1",
            "insert into by_word (word) select 'end' || n || '         ' from raw where n < 4",
            "insert into by_word (word, c) select m, c || 'abc' from raw where n < 4",
            "insert into by_price (price, t, at) select n / 3.0, f::text, at from raw",
            "insert into by_price (price, t) select n * 100000, 'x' from raw",
            "insert into by_price (price, t) select f + 50, i from raw returning price, t, d",
            "insert into by_price (price) select null from raw",
            "insert into by_both select n, t, m from raw",
            "insert into by_both select n % 3, 'k' || n / 3, c from raw order by n limit 11 on conflict (a, b) do update set c = excluded.c || 'z'",
            "insert into by_both (b, a, c) select word, count(*) over () , c from by_word where c <> 'y'",
            "insert into raw (n, tags, nums) select sum(n), array_agg(t order by n), array_agg(n order by n) from raw group by n % 4",
            "insert into raw (n, m) select n, word from by_word",
            "insert into raw (n, f, t) select 90 + n, f, null from raw where n < 10 and f is not null",
            "set datestyle = 'SQL, DMY'",
            "insert into raw (n, at, i, d) select 190 + n, at, i, d from raw where n < 10 and at is not null",
            "set datestyle = 'ISO, MDY'",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        for table in ["raw", "by_day", "by_word", "by_price", "by_both"] {
            let all = format!("select {table}::text from {table}");
            assert!(!twins.same(&mut clients, manner, &all).await.rows.is_empty(), "{table}");
            let by = if table == "by_both" { "a = 1" } else { "true" };
            twins.same(&mut clients, manner, &format!("select count(*) from {table} where {by}")).await;
        }
        // Rows lie where their keys are looked for.
        for sql in [
            "select name from by_day where day = '2026-01-06'",
            "select j from by_word where word = 'w7'",
            "select word from by_word where word = 'end1  '",
            "select t from by_price where price = 0.67",
            "select c from by_both where a = 1 and b = 'k1'",
        ] {
            assert_eq!(twins.same(&mut clients, manner, sql).await.rows.len(), 1, "{sql}");
        }
        for table in ["raw", "by_day", "by_word", "by_price", "by_both"] {
            twins.same(&mut clients, manner, &format!("delete from {table}")).await;
        }
    }
    twins.stage.is_clean().await;
}

#[tokio::test]
async fn conflicts_are_settled_on_the_shard_of_the_row() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "insert into entries (account_id, amount) select g, 100 from generate_series(30, 60) g",
            "insert into accounts (id, owner, balance, at) select account_id + 1, 'new', amount, null from entries order by account_id on conflict (id) do nothing returning id",
            "insert into accounts as a (id, owner, balance, at) select account_id + 2, note, amount, null from entries on conflict (id) do update set balance = a.balance + excluded.balance, owner = excluded.owner || a.owner where a.id % 2 = 0 returning a.id, a.balance, owner",
            // The same row twice in one statement.
            "insert into accounts (id, balance, at) select account_id % 2 + 31, amount, null from entries on conflict (id) do update set balance = 0",
            "insert into accounts (id, balance, at) select id + 1, 5, null from accounts where id = 3 on conflict (id) do update set id = 7",
            "delete from entries",
            "delete from accounts where id > 40",
            "update accounts set balance = 100",
        ] {
            if sql.contains("set id = 7") {
                assert_eq!(say(&mut clients.1, sql).await.code(), Some("0A000"), "{sql}");
                continue;
            }
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn they_are_part_of_the_transaction_and_all_or_nothing() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "begin",
            "insert into entries (account_id, amount) select id + 1, balance from accounts",
            "savepoint s",
            "insert into accounts (id, balance, at) values (50, 1, null)",
            "rollback to s",
            "commit",
            "begin",
            "select count(*)::int4 from entries",
            "insert into entries (account_id, amount) select amount % 17, 5 from entries",
            "delete from entries where amount = 5 and account_id > 3",
            "rollback",
            "begin",
            "insert into accounts (id, balance) select id + 20, 1 from accounts",
            "select 1",
            "rollback",
            "begin",
            "insert into rates select owner, balance from accounts",
            "rollback",
            "insert into accounts (id, balance) select id + 20, 1 from accounts",
            "delete from entries",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn parameters_may_stand_anywhere() {
    use tokio_postgres::types::ToSql;
    let twins = Twins::set(3).await;
    let (whole, herd) = (twins.whole.client().await, twins.pgherd.client("app").await);
    let insert = "insert into accounts (id, owner, balance, at) select id + $1, $2, balance + $3, null from accounts where id <= $4 \
         on conflict (id) do update set owner = accounts.owner || $5 returning id, owner || $2 as both";
    for round in 0..3_i32 {
        let values: [&(dyn ToSql + Sync); 5] = [&(35 + round), &"p", &2_i64, &9_i32, &"c"];
        let mut rows = Vec::new();
        for client in [&whole, &herd] {
            let mut got: Vec<(i32, String)> = client
                .query(insert, &values)
                .await
                .expect("inserted")
                .iter()
                .map(|it| (it.get(0), it.get(1)))
                .collect();
            got.sort();
            rows.push(got);
        }
        assert_eq!(rows[0], rows[1]);
    }
    let sql = "insert into entries (account_id, amount, note) select sum(id)::int4 + $2, max(balance) + $1, null from accounts where owner <> $3";
    let count = [whole.execute(sql, &[&5_i64, &1_i32, &"p"]).await, herd.execute(sql, &[&5_i64, &1_i32, &"p"]).await];
    assert_eq!(count.map(|it| it.expect("inserted")), [1, 1]);
    let statement = herd
        .prepare("insert into entries (account_id, amount) select id * $1, $2 from accounts")
        .await
        .expect("prepared");
    assert_eq!(
        herd.execute(&statement, &[&3_i32, &4_i64]).await.expect("inserted"),
        herd.execute(&statement, &[&3_i32, &4_i64]).await.expect("again")
    );
    for _ in 0..2 {
        whole
            .execute("insert into entries (account_id, amount) select id * 3, 4 from accounts", &[])
            .await
            .expect("inserted");
    }
    twins.is_same().await;
}

#[tokio::test]
async fn what_could_not_be_right_is_refused_and_changes_nothing() {
    let twins = Twins::set(2).await;
    let mut client = twins.pgherd.wire("app").await;
    for sql in [
        "insert into accounts (owner, balance) select owner, balance from accounts where id < 1 for update",
        "insert into entries (account_id, amount) select id + 1, 1 from accounts returning (select count(*) from entries)",
        "insert into entries (account_id, amount) select id + 1, 1 from accounts returning now()",
        "insert into accounts (id, balance) select id + 1, 1 from accounts on conflict (id) do update set at = now()",
        "insert into accounts (id, balance) select id + 1, 1 from accounts on conflict (id) do update set balance = random()",
        "insert into accounts select id + 100, owner, balance from accounts",
        "insert into local_notes select id, owner from accounts returning id",
        "insert into local_notes select n.id, a.owner from accounts a join local_notes n on n.id = a.id",
        "insert into local_notes values ((select max(id) from accounts), 'x')",
        "explain insert into entries (account_id, amount) select id + 1, 1 from accounts",
    ] {
        let refused = say(&mut client, sql).await;
        assert_eq!((refused.code(), refused.status), (Some("0A000"), 'I'), "{sql}: {refused:?}");
    }
    ok(&mut client, "begin").await;
    ok(&mut client, "update accounts set balance = 100 where id = 1").await;
    let gathered = "insert into entries (account_id, amount) select a.id + 1, 1 from accounts a join accounts b on a.balance = b.id";
    assert_eq!(
        say(&mut client, gathered).await.code(),
        Some("0A000"),
        "it would have to see what the transaction wrote"
    );
    ok(&mut client, "rollback").await;
    ok(&mut client, "begin").await;
    ok(&mut client, "alter table entries add column more int4").await;
    let sql = "insert into entries (account_id, amount) select id + 1, 1 from accounts";
    assert_eq!(say(&mut client, sql).await.code(), Some("0A000"), "tables are planned for as they were");
    ok(&mut client, "rollback").await;
    ok(&mut client, "begin isolation level repeatable read").await;
    assert_eq!(say(&mut client, sql).await.code(), Some("0A000"));
    ok(&mut client, "rollback").await;
    twins.is_same().await;
}

const REPORT: &str = "
create type mood as enum ('sad', 'ok');
create table report (id int4 primary key, total numeric(8, 2) check (total > 0), at timestamptz default now(), note varchar(8), m mood default 'ok', s serial);
create table seen (what text);
create function see() returns trigger language plpgsql as $$ begin insert into seen values (tg_op || tg_level); return new; end $$;
create trigger each_row before insert on report for each row execute function see();
create trigger each_statement after insert on report for each statement execute function see();
";

#[tokio::test]
async fn rows_of_the_shards_go_into_tables_of_the_primary() {
    let mut stage = Stage::over(harness::fresh_databases(3).await, "").await;
    // Reads of the primary are answered from the cache as long as nothing is written.
    stage.toml += "[cache]\nenabled = true\n";
    let whole = harness::fresh_database().await;
    whole.execute(&SCHEMA.replace("%shards%", "1").replace("%shard%", "0")).await;
    whole.execute("create table local_notes (id int4, note text)").await;
    stage.primary.execute(REPORT).await;
    whole.execute(REPORT).await;
    let pgherd = stage.pgherd().await;
    let twins = Twins { stage, pgherd, whole };
    let mut clients = twins.clients().await;
    let look = "select id, total, note, m::text from report";
    for manner in MANNERS {
        for sql in [
            "insert into report (id, total) select id, balance from accounts where id < 20 order by id",
            look,
            "select id, s from report",
            "insert into report (id, total, note, m) select 100 + id, balance / 7.0, owner, 'sad' from accounts order by id desc limit 3",
            "insert into report (id, total, note) select 200 + count(*), sum(balance), 'all' from accounts",
            "insert into report as r (id, total) select id, 5 from accounts where id > 15 on conflict (id) do update set total = r.total + excluded.total, at = now()",
            look,
            "insert into report select id from accounts",
            "insert into report (id, total) select id + 300, balance - 100 from accounts",
            "insert into report (id, note) select id + 300, 'far too long' from accounts",
            "insert into report (id, m) select id + 300, owner from accounts",
            "insert into report (id, nothing) select id, 1 from accounts",
            "insert into report (id, total) select id + 400, r.rate from accounts a, rates r where r.code = 'a' and a.id = 7",
            look,
            "select what, count(*) from seen group by what",
            "begin",
            "insert into report (id, total) select id + 500, balance from accounts",
            "select count(*) from report",
            "rollback",
            look,
            "begin",
            "insert into local_notes select id, owner from accounts where balance > 50",
            "commit",
            "select count(*), sum(id), min(note) from local_notes",
            "begin",
            "insert into local_notes select id / 0, owner from accounts where balance > 50",
            "select 1",
            "rollback",
            "delete from report",
            look,
            "delete from local_notes",
            "delete from seen",
            "alter sequence report_s_seq restart",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
    }
    let shown = say(&mut clients.1, "explain (route) insert into local_notes select id, owner from accounts").await;
    assert!(text_of(&shown).contains("into public.local_notes, on the primary"), "{}", text_of(&shown));
    twins.is_same().await;
}

#[tokio::test]
async fn a_transaction_may_write_on_the_primary_and_on_shards() {
    let twins = Twins::set(3).await;
    twins.whole.execute("create table local_notes (id int4, note text)").await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "begin",
            "insert into local_notes select id, owner from accounts",
            "update accounts set balance = balance + 1",
            "commit",
            "begin",
            "insert into local_notes select id, owner from accounts",
            "update accounts set balance = balance - 1000",
            "rollback",
            "select count(*), sum(id) from local_notes",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn tables_are_made_of_rows_of_the_shards() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    let columns = "select attname::text, format_type(atttypid, atttypmod), attnotnull, collname::text from pg_attribute \
         left join pg_collation c on c.oid = attcollation where attrelid = 'made'::regclass and attnum > 0";
    for manner in MANNERS {
        for query in [
            "create table made as select id, owner, balance from accounts where id < 20",
            "create table if not exists made (a, b) with (fillfactor = 70) as select a.id, sum(e.amount) over () from accounts a left join entries e on e.amount = a.balance with data",
            "create table made as select count(*), avg(balance), max(owner)::varchar(5) as v, 1.5::numeric(4, 2), array_agg(id order by id) ids, 'x', null, interval '1 day' i from accounts",
            "create unlogged table public.made as with few as (select * from rates) select f.code, a.id::bit(4) from few f, accounts a with no data",
        ] {
            for sql in [
                query,
                columns,
                "select * from made",
                "create table made as select id from accounts",
                "create table if not exists made as select id from accounts",
                "drop table made",
                "begin",
                "create table made as select id + 1 as one, at from accounts where id = 3",
                "select one from made",
                "rollback",
            ] {
                twins.same(&mut clients, manner, sql).await;
            }
        }
        for sql in [
            "create table made as select id, id from accounts",
            "create table made as select nothing from accounts",
            "create table made as select 1 / (id - id) from accounts",
        ] {
            assert!(twins.same(&mut clients, manner, sql).await.error.is_some(), "{sql}");
        }
    }
    for sql in [
        "create temporary table made as select id from accounts",
        "create table rates (a) as select id from accounts",
        "create table made as select owner::name::text from accounts",
        "create table made as select pg_client_encoding()::text, id from accounts",
        "create table pg_temp.made as select id from accounts",
        "create table made as select owner collate \"C\" from accounts",
        "create table made as select a.id from accounts a join local_notes n on n.id = a.id",
        "select id into made from accounts",
        "create materialized view made as select id from accounts",
    ] {
        assert_eq!(say(&mut clients.1, sql).await.code(), Some("0A000"), "{sql}");
    }
    twins.is_same().await;
}

fn text_of(answer: &Answer) -> String {
    let fields = answer.rows.iter().flatten().flatten();
    fields.map(|field| String::from_utf8_lossy(field).into_owned()).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn the_route_is_shown() {
    let twins = Twins::set(2).await;
    let mut client = twins.pgherd.wire("app").await;
    let shown =
        say(&mut client, "explain (route) insert into entries (account_id, amount) select id + 1, 1 from accounts")
            .await;
    let text = text_of(&shown);
    for part in ["insert-select", "fan-out", "into public.entries, by shard key"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let shown =
        say(&mut client, "explain (route) insert into rates select owner, sum(balance) over () from accounts").await;
    let text = text_of(&shown);
    for part in ["gather", "into public.rates, to all 2 shards"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
