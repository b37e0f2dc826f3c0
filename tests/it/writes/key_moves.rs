//! UPDATE of the shard key where the TOML lets rows move: the same on one PostgreSQL and through pgherd.

use std::time::Duration;

use super::several::Twins;
use super::stage::{SCHEMA, Stage, ok, say};
use crate::answers::{Answer, MANNERS, Manner, ask_with};
use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};

const MOVE: &str = "\n[fanout]\nkey_moves = \"move\"\n";

async fn twins(shards: usize) -> Twins {
    over(harness::fresh_databases(shards).await, "", "").await
}

/// With tables of a story's own on all servers.
async fn over(shards: Vec<Database>, tables: &str, rest: &str) -> Twins {
    let whole = harness::fresh_database().await;
    for database in shards.iter().chain([&whole]) {
        database.execute(tables).await;
    }
    let mut stage = Stage::over(shards, rest).await;
    stage.toml += MOVE;
    whole.execute(&SCHEMA.replace("%shards%", "1").replace("%shard%", "0")).await;
    let pgherd = stage.pgherd().await;
    Twins { stage, pgherd, whole }
}

/// All rows of a table, on the shards together and on the one server.
async fn holds_the_same(twins: &Twins, table: &str) {
    let sql = format!("select {table}::text from {table}");
    let mut all = Vec::new();
    for shard in &twins.stage.shards {
        all.extend(texts(shard, &sql).await);
    }
    all.sort();
    let mut truth = texts(&twins.whole, &sql).await;
    truth.sort();
    assert_eq!(all, truth, "{table}");
}

async fn texts(database: &Database, sql: &str) -> Vec<String> {
    database.client().await.query(sql, &[]).await.expect(sql).iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn rows_move_to_where_their_new_keys_belong() {
    let twins = twins(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "update accounts set id = id + 100",
            "update accounts set id = id - 100, balance = balance + 1 where id > 100 returning id, owner, balance",
            "update accounts set id = 500 where id = 7 returning id, owner",
            "update accounts set id = 7 where id = 500",
            "update accounts as a set (id, owner) = (a.id + 200, upper(a.owner)) where a.owner like 'owner 1%' returning a.id, a.owner as name, a.balance * 2",
            "update accounts set id = id - 200, owner = lower(owner) where id > 200;",
            "update public.accounts set owner = owner || '!', id=-id where accounts.id in (1, 2, 3) returning accounts.id, accounts.owner",
            "update accounts set id = -id where id < 0 and owner is distinct from 'x'",
            // Rows that stay.
            "update accounts set id = 5, balance = 7 where id = 5 returning id, balance",
            "update accounts set id = id where id in (3, 4, 5) returning id",
            "update accounts set id = case when id = 20 then 720 else id end where id between 15 and 25 returning id",
            "update accounts set id = 20 where id = 720",
            // None at all.
            "update accounts set id = 41 where balance < 0 returning owner, id",
            "update accounts set id = 41 where id = 999",
            "update accounts set id = 41 where id = 1 and id = 2",
            // What PostgreSQL makes of a value is the key.
            "update accounts set id = 41.4 where id = 9 returning id",
            "update accounts set id = '9' where id = 41 returning id",
            "update accounts set id = id::int8 * 30, owner = null, at = '2026-01-01' where id = 10 returning id, owner, at",
            "update accounts set id = id / 30.0 where id = 300 returning id",
            // One time for all rows.
            "update accounts set id = id + 300, at = now() where id < 9",
            "select count(distinct at)::int4, count(*)::int4 from accounts where id > 300",
            "update accounts set id = id - 300 where id > 300",
            // Without anything that is unique.
            "insert into entries (account_id, amount) select g, g from generate_series(1, 60) g",
            "update entries set account_id = account_id % 5, note = null where amount > 20 returning account_id, amount, note",
            "update entries set account_id = 3, amount = amount * 2",
            "update entries set account_id = amount",
            "delete from entries",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
    assert!(twins.pgherd.metrics().await.contains("scatter"));
}

#[tokio::test]
async fn what_postgresql_will_not_have_changes_nothing() {
    let twins = twins(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for (sql, code) in [
            ("update accounts set id = null where id = 3", "23502"),
            ("update accounts set id = 6 where id = 5", "23505"),
            ("update accounts set id = 6 where owner = 'owner 5'", "23505"),
            ("update accounts set id = 1000", "23505"),
            // A ring of rows that take each other's keys fails in whatever order they are taken.
            ("update accounts set id = 3 - id where id in (1, 2)", "23505"),
            ("update accounts set id = 41 - id", "23505"),
            ("update accounts set id = 900 + id, balance = -1 where id < 4", "23514"),
            ("update accounts set id = 'x' where id = 1", "22P02"),
            ("update accounts set id = id + 2147483640", "22003"),
            ("update accounts set id = 100 / (id - 5)", "22012"),
            ("update accounts set nothing = 1, id = 2", "42703"),
            ("update accounts set id = 2, id = 3", "42601"),
            ("update accounts set id = owner", "42804"),
            ("update accounts set id = count(*)", "42803"),
            ("update accounts set id = 50 where owner = 7", "42883"),
            ("update accounts set id = 50 where id = 1 returning nothing", "42703"),
        ] {
            let answer = twins.same(&mut clients, manner, sql).await;
            assert_eq!(answer.code(), Some(code), "{manner:?} {sql}");
            assert_eq!(answer.status, 'I', "{sql}");
        }
        for sql in ["begin read only", "update accounts set id = id + 100", "rollback"] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn moves_are_part_of_their_transaction() {
    let twins = twins(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "begin",
            "update accounts set balance = balance + 1 where id = 5",
            "update accounts set id = id + 100 where id < 6 returning id, balance",
            "select id, balance from accounts where id = 105",
            "select id, balance from accounts where id = 5",
            "update accounts set balance = balance + 10 where id = 105",
            "savepoint s",
            "update accounts set id = id + 100 where id > 100",
            "select id from accounts where id = 105",
            "rollback to s",
            "update accounts set balance = 3 where id > 100 returning id, balance",
            "commit",
            "begin",
            "update accounts set id = id - 100 where id > 100",
            "update accounts set id = 2 where id = 1",
            "select 1",
            "rollback",
            "begin",
            "update accounts set id = id - 100 where id > 100",
            "rollback",
            "begin",
            "update accounts set id = id - 100 where id > 100",
            "delete from accounts where id = 1",
            "insert into accounts (id, owner, balance) values (1, 'new', 5), (101, 'more', 6)",
            "update accounts set id = 102 where id = 101",
            "delete from accounts where id = 102 returning owner",
            "commit",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

/// Begins with `first` in a transaction, sends `second`, commits the first once somebody waits for it, and gives the second's answer.
async fn raced(
    clients: &mut (WireClient, WireClient),
    watched: &[Database],
    first: &str,
    second: &str,
    third: &str,
) -> (String, Answer, Answer) {
    ok(&mut clients.0, "begin").await;
    let tag = ok(&mut clients.0, first).await;
    let sent = clients.1.query(second);
    let meanwhile = async {
        harness::eventually(Duration::from_secs(20), "the second waits for the first", async || {
            let mut waiting = 0;
            for database in watched {
                let sql =
                    "select pid::text from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
                waiting += texts(database, sql).await.len();
            }
            waiting > 0
        })
        .await;
        ok(&mut clients.0, "commit").await;
    };
    let (answer, ()) = tokio::join!(sent, meanwhile);
    (tag, Answer::read(&answer).sorted(), say(&mut clients.1, third).await)
}

#[tokio::test]
async fn who_waits_for_a_row_that_moves_finds_it_where_it_is() {
    let twins = twins(3).await;
    let mut whole = (twins.clients().await.0, twins.clients().await.0);
    let mut herd = (twins.clients().await.1, twins.clients().await.1);
    for (first, second, third) in [
        // Two who move the same row: the second looks at it again.
        (
            "update accounts set id = 107 where owner = 'owner 7'",
            "update accounts set id = 207 where owner = 'owner 7' returning id",
            "select id from accounts where owner = 'owner 7'",
        ),
        (
            "update accounts set id = 108 where id = 8",
            "update accounts set id = 208 where id = 8 returning id",
            "select id from accounts where owner = 'owner 8'",
        ),
        (
            "update accounts set id = 109, balance = 9 where id = 9",
            "update accounts set id = 209 where owner = 'owner 9' and balance = 100 returning id",
            "select id, balance from accounts where owner = 'owner 9'",
        ),
        // One who changes it, wherever it is.
        (
            "update accounts set id = id + 100 where owner = 'owner 10'",
            "update accounts set balance = balance + 5 where owner = 'owner 10' returning id, balance",
            "select id, balance from accounts where owner = 'owner 10'",
        ),
        (
            "update accounts set id = id + 100 where id = 11",
            "update accounts set balance = 0 where id = 11",
            "select id, balance from accounts where owner = 'owner 11'",
        ),
        (
            "update accounts set id = id + 100 where owner in ('owner 12', 'owner 13')",
            "delete from accounts where owner in ('owner 12', 'owner 14') returning id",
            "select count(*)::int4 from accounts",
        ),
        // And one who moves a row that is being changed.
        (
            "update accounts set balance = balance + 1 where id = 15",
            "update accounts set id = 115, balance = balance * 2 where owner = 'owner 15' and balance < 102 returning balance",
            "select id, balance from accounts where owner = 'owner 15'",
        ),
        (
            "update accounts set balance = balance + 1, owner = 'nobody' where id = 16",
            "update accounts set id = 116 where owner = 'owner 16'",
            "select id, balance from accounts where owner = 'nobody'",
        ),
    ] {
        let truth = raced(&mut whole, std::slice::from_ref(&twins.whole), first, second, third).await;
        let given = raced(&mut herd, &twins.stage.shards, first, second, third).await;
        assert_eq!(truth.0, given.0, "{first}");
        assert_eq!((&truth.1.tag, &truth.1.rows), (&given.1.tag, &given.1.rows), "{second} behind {first}: {given:?}");
        assert_eq!(truth.2.rows, given.2.rows, "{third} behind {second}");
    }
    twins.is_same().await;
}

#[tokio::test]
async fn a_cancel_reaches_a_move_that_waits() {
    use pgherd::wire::writer;
    let twins = twins(3).await;
    let (mut first, mut second) = (twins.clients().await.1, twins.clients().await.1);
    // Behind a row that another changes, and behind another mover.
    for holding in ["update accounts set balance = 5 where id = 7", "update accounts set id = 107 where id = 7"] {
        ok(&mut first, "begin").await;
        ok(&mut first, holding).await;
        second.say(|out| writer::query(out, b"update accounts set id = id + 1000")).await;
        harness::eventually(Duration::from_secs(20), "the move waits", async || {
            let mut waiting = 0;
            for shard in &twins.stage.shards {
                let sql =
                    "select pid::text from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
                waiting += texts(shard, sql).await.len();
            }
            waiting > 0
        })
        .await;
        second.cancel().await;
        let cancelled = Answer::read(&second.until_ready().await);
        assert_eq!((cancelled.code(), cancelled.status), (Some("57014"), 'I'), "{cancelled:?}");
        ok(&mut first, "rollback").await;
    }
    twins.is_same().await;
    assert_eq!(ok(&mut second, "update accounts set id = id + 1000").await, "UPDATE 40");
}

/// Tables whose rows lie by ranges, by lists and by several columns, with columns that are not plain.
const TABLES: &str = "
create type mood as enum ('sad', 'ok', 'happy');
create domain short as varchar(6) check (value <> 'never');
create table spans (k int8 primary key, note varchar(5), m mood, d date, n numeric(6, 2));
create table regions (region text, n int4, tags text[] default '{none}', twice int4 generated always as (n * 2) stored,
  id int4 generated always as identity, j jsonb, s short, f float8, c char(4), primary key (region, n));
create table pairs (a int8, b varchar(4), v int4, u uuid default '00000000-0000-0000-0000-000000000001', primary key (a, b));
create table customers (id int4 primary key, name text);
create table orders (customer_id int4 not null references customers (id), id int4, code text default 'a', primary key (customer_id, id));
";

const LAYOUT: &str = r#"
[[database.table]]
name = "public.spans"
shard_key = "k"
method = "range"
ranges = [{ to = 100, shard = 0 }, { from = 100, to = 200, shard = 1 }, { from = 200, to = 300, shard = 2 }]
[[database.table]]
name = "public.regions"
shard_key = "region"
method = "list"
lists = [{ values = ["eu"], shard = 0 }, { values = ["us", "it's \\"], shard = 1 }]
default_shard = 2
[[database.table]]
name = "public.pairs"
shard_key = ["a", "b"]
method = "hash"
[[database.table]]
name = "public.customers"
shard_key = "id"
method = "hash"
[[database.table]]
name = "public.orders"
shard_key = "customer_id"
method = "hash"
"#;

async fn typed_twins() -> Twins {
    let twins = over(harness::fresh_databases(3).await, TABLES, LAYOUT).await;
    for database in twins.stage.shards.iter().chain([&twins.whole]) {
        database.execute("alter table orders add foreign key (code) references rates (code)").await;
    }
    // pgherd must have seen it.
    let mut client = twins.pgherd.wire("app").await;
    ok(&mut client, "alter table orders add column late int4 default 1").await;
    twins.whole.execute("alter table orders add column late int4 default 1").await;
    twins
}

#[tokio::test]
async fn every_method_and_type_moves() {
    let twins = typed_twins().await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "insert into spans values (1, 'one', 'sad', '2026-01-01', 1.5), (101, 'two', 'ok', null, 2), (298, null, 'happy', '2026-02-02', null)",
            "update spans set k = k + 110, note = 'x', n = n / 3 where k < 200 returning k, note, m::text, d, n",
            "update spans set k = k - 110, m = 'ok', d = '2026-03-03' where k in (111, 211) and n is not null returning k, m::text as mood, d",
            "update spans set k = 299, note = 'too long' where k = 1",
            "update spans set k = 299, note = 'sp       ' where k = 1 returning note",
            "update spans set k = 2, n = 100000 where k = 299",
            "update spans set k = 3, m = 'angry' where k = 299",
            "insert into regions (region, n, j, s, f, c) values ('eu', 1, '{\"a\": [1, null]}', 'a', 0.1, 'x'), ('us', 2, null, null, 'nan', null), ('mars', 3, '\"q\\\\\"', 'b', 1e300, 'yy')",
            "update regions set region = 'us', n = n + 10, tags = tags || 'a,\"'::text where region = 'eu' returning region, n, twice, tags, j, s, f, c",
            "update regions set region = 'it''s \\', s = n::text || 'x', f = f / 3, c = 'ab' where region <> 'it''s' returning region, n, twice, s, f, c",
            "update regions set region = 'eu', s = 'never' where n = 2",
            "update regions set region = upper(region), j = to_jsonb(n), tags = array['\\', null, '{}'] returning region, j, tags",
            "update regions set region = 'eu', twice = 3",
            "update regions set region = 'eu', id = 3",
            "update regions set region = 'venus' where n = 11 returning region, twice",
            "insert into pairs (a, b, v) values (1, 'a', 1), (1, 'b', 2), (2, 'a', 3), (2, 'b', 4)",
            "update pairs set a = a + 10 returning a, b, v, u",
            "update pairs set b = b || v::text, a = 7 where v < 4 returning a, b",
            "update pairs set b = 'long ones' where v = 1",
            "update pairs set b = 'pad        ' where v = 1 returning b",
            "update pairs set (b, a) = ('z', v), v = v + 100, u = '00000000-0000-0000-0000-000000000002' returning a, b, v, u",
            "insert into customers values (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd'), (5, 'e')",
            "insert into orders (customer_id, id) values (1, 1), (1, 2), (2, 3), (3, 4), (4, 5)",
            // Parents of rows that move are on the shard that these move to.
            "update orders set customer_id = 5 where id = 1 returning customer_id, id, late",
            "update orders set customer_id = customer_id + 1, code = 'b', late = 7 where customer_id < 4 returning customer_id, id, code",
            "update orders set customer_id = 6 where id = 3",
            "update orders set customer_id = 1, code = 'none' where id = 3",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        for table in ["spans", "pairs", "customers", "orders"] {
            holds_the_same(&twins, table).await;
        }
        // Rows lie where their keys are looked for.
        for sql in [
            "select note from spans where k = 299",
            "select n, twice, s from regions where region = 'venus'",
            "select v from pairs where a = 101 and b = 'z'",
            "select id from orders where customer_id = 5",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        for table in ["spans", "regions", "pairs", "orders", "customers"] {
            twins.same(&mut clients, manner, &format!("delete from {table}")).await;
        }
    }
    // A key that no shard takes.
    ok(&mut clients.1, "insert into spans (k) values (5)").await;
    for sql in ["update spans set k = 5000 where k = 5", "update spans set k = k + 5000", "update spans set k = null"] {
        let refused = say(&mut clients.1, sql).await;
        assert_eq!(refused.code(), Some("0A000"), "{sql}");
        assert!(refused.error.expect("an error").1.contains("no shard takes"), "{sql}");
    }
    assert_eq!(say(&mut clients.1, "select k from spans").await.column(0), [Some("5".to_owned())]);
    twins.stage.is_clean().await;
}

#[tokio::test]
async fn parameters_may_be_keys() {
    use tokio_postgres::types::ToSql;
    let twins = typed_twins().await;
    let (whole, herd) = (twins.whole.client().await, twins.pgherd.client("app").await);
    let insert = "insert into spans (k, note, m) values (1, 'a', 'sad'), (150, 'b', 'ok'), (250, 'c', 'happy')";
    let update = "update spans set k = $1, note = $2, m = $3::text::mood where k = $4 returning k, note || $5, m::text";
    let all = "update spans set k = k + $1, n = $2::int4 where note <> $3";
    let by_owner = "update accounts set id = $2, owner = $1 where owner = $3 returning id";
    let mut answers = Vec::new();
    for client in [&whole, &herd] {
        client.execute(insert, &[]).await.expect("inserted");
        let statement = client.prepare(update).await.expect("prepared");
        let mut seen = Vec::new();
        for (to, from) in [(260_i64, 1_i64), (2, 260), (2, 2), (251, 2)] {
            let values: [&(dyn ToSql + Sync); 5] = [&to, &"new", &"happy", &from, &"!"];
            let rows = client.query(&statement, &values).await.expect("moved");
            seen.extend(rows.iter().map(|it| (it.get::<_, i64>(0), it.get::<_, String>(1), it.get::<_, String>(2))));
        }
        let count = client.execute(all, &[&10_i64, &7_i32, &"c"]).await.expect("moved");
        let rows = client.query(by_owner, &[&"me", &700_i32, &"owner 7"]).await.expect("moved");
        answers.push((seen, count, rows.iter().map(|it| it.get::<_, i32>(0)).collect::<Vec<_>>()));
    }
    assert_eq!(answers[0], answers[1]);
    // Types of one's own have other oids on each server.
    let mut clients = twins.clients().await;
    for (manner, at) in [Manner::Text, Manner::Binary, Manner::Prepared].into_iter().zip(["-150", "-155", "-20"]) {
        let sql = "update spans set k = k + $1, m = $2, note = $3 where m = $4 returning k, m::text, note";
        let values = [Some(at), Some("ok"), None, Some("happy")];
        let truth = ask_with(&mut clients.0, manner, sql, &values).await.sorted();
        let given = ask_with(&mut clients.1, manner, sql, &values).await.sorted();
        assert_eq!((truth.error, truth.tag, truth.rows), (given.error, given.tag, given.rows), "{manner:?}");
        for client in [&whole, &herd] {
            let back = "update spans set k = k - $1, m = 'happy', note = 'back' where note is null";
            client.execute(back, &[&at.parse::<i64>().expect("a number")]).await.expect("moved back");
        }
    }
    holds_the_same(&twins, "spans").await;
    twins.is_same().await;
}

/// Tables whose rows had better stay where they are.
const TIED: &str = "
create table parents (id int4 primary key, v int4);
create table children (parent_id int4 references parents (id) on delete cascade, v int4);
create table watched (id int4 primary key, v int4);
create function watch() returns trigger language plpgsql as 'begin return new; end';
create trigger watching before update on watched for each row execute function watch();
create table ruled (id int4 primary key, v int4);
create rule nothing as on delete to ruled do instead nothing;
create table secret (id int4 primary key, v int4);
alter table secret enable row level security;
create table late (id int4 unique deferrable, v int4);
create table split (id int4, v int4) partition by range (v);
create table split_1 partition of split for values from (0) to (100);
create table loose (id int4, parent_id int4 references parents (id), v int4);
create table computed (v int4, id int4 generated always as (v + 1) stored);
create table points (id int4, v int4, at point[]);
";

#[tokio::test]
async fn what_cannot_be_shown_to_be_right_is_refused_and_changes_nothing() {
    let mut rest = String::new();
    for table in ["parents", "watched", "ruled", "secret", "late", "split", "loose", "computed", "points"] {
        rest += &format!("[[database.table]]\nname = \"public.{table}\"\nshard_key = \"id\"\nmethod = \"hash\"\n");
    }
    rest += "[[database.table]]\nname = \"public.children\"\nshard_key = \"parent_id\"\nmethod = \"hash\"\n";
    let twins = over(harness::fresh_databases(2).await, TIED, &rest).await;
    let mut client = twins.pgherd.wire("app").await;
    ok(&mut client, "insert into points (id, v) values (1, 1), (2, 2), (3, 3), (4, 4)").await;
    for sql in [
        "update parents set id = id + 1",
        "update watched set id = id + 1",
        "update ruled set id = id + 1",
        "update secret set id = id + 1",
        "update late set id = id + 1",
        "update split set id = id + 1",
        "update loose set id = id + 1",
        "update computed set v = v + 1",
        "update points set id = id + 1",
        "update accounts set id = id + 1 from rates where rates.code = 'a'",
        "update accounts set id = (select max(id) from accounts) + 1",
        "update accounts set id = id + 1 where owner in (select code from rates)",
        "update accounts set id = (random() * 10)::int",
        "update accounts set id = 50, balance = random() where owner = 'x'",
        "update accounts set id = id + 1, owner = current_user",
        "update accounts set id = id + 1 returning now()",
        "update accounts set id = default",
        "update accounts set id = id + 1, at = default",
        "update accounts set (id, balance) = (select 1, 2)",
        "update accounts set id = id + 1 returning ctid",
        "insert into accounts (id, balance) values (1, 1) on conflict (id) do update set id = 7",
        "merge into accounts a using entries e on a.id = e.account_id when matched then update set id = 5",
        "explain update accounts set id = id + 1",
        "explain analyze update accounts set id = id + 1 where id = 1",
        "with moved as (update accounts set id = 50 returning id) select * from moved",
        "update accounts set id = 50 where current of c",
    ] {
        let messages = client.query(sql).await;
        let error = messages.iter().find(|message| message.tag == b'E').unwrap_or_else(|| panic!("{sql}: no error"));
        assert_eq!(error.field(b'C').as_deref(), Some("0A000"), "{sql}: {error:?}");
        assert!(error.field(b'H').is_some_and(|hint| !hint.is_empty()), "{sql}: {error:?}");
    }
    ok(&mut client, "begin isolation level repeatable read").await;
    assert_eq!(say(&mut client, "update accounts set id = id + 1 where id = 1").await.code(), Some("0A000"));
    ok(&mut client, "rollback").await;
    twins.is_same().await;
    // Found out on the shards, where pgherd has not heard of it yet.
    for shard in &twins.stage.shards {
        shard.execute("create table joined (id int4 references accounts (id) on delete cascade)").await;
    }
    assert_eq!(say(&mut client, "update accounts set id = id + 100").await.code(), Some("0A000"));
    twins.is_same().await;
}

#[tokio::test]
async fn a_role_needs_the_rights_to_insert_and_delete() {
    let shards = harness::fresh_databases(2).await;
    let role = format!("mover_{}", shards[0].name);
    shards[0].execute(&format!("create role {role} login")).await;
    let twins = over(shards, "", &format!("[[user]]\nname = \"{role}\"\nauth = \"trust\"\n")).await;
    for shard in &twins.stage.shards {
        shard.execute(&format!("grant select, update (owner) on accounts to {role}")).await;
    }
    // Each client logs in to the shards as itself.
    let pgherd = Pgherd::start(&twins.stage.toml.replace(" user=postgres", "")).await;
    let client = pgherd.client_as(&role, "app").await;
    let moved = async || {
        let moved = client.execute("update accounts set id = id + 100", &[]).await;
        moved.map_err(|error| error.code().map(|code| code.code().to_owned()))
    };
    assert_eq!(moved().await, Err(Some("0A000".to_owned())), "it may neither insert nor delete");
    for shard in &twins.stage.shards {
        shard.execute(&format!("grant insert, delete on accounts to {role}")).await;
    }
    assert_eq!(moved().await, Err(Some("42501".to_owned())), "it may not change the key");
    twins.is_same().await;
    for shard in &twins.stage.shards {
        shard.execute(&format!("grant update on accounts to {role}")).await;
    }
    assert_eq!(moved().await, Ok(40));
    twins.stage.is_clean().await;
}

#[tokio::test]
async fn nothing_moves_unless_it_is_asked_for() {
    let twins = Twins::set(2).await;
    let mut client = twins.pgherd.wire("app").await;
    for sql in ["update accounts set id = id + 1", "update accounts set id = 1 where id = 1"] {
        let messages = client.query(sql).await;
        let error = messages.iter().find(|message| message.tag == b'E').expect("an error");
        assert_eq!(error.field(b'C').as_deref(), Some("0A000"), "{sql}");
        assert!(error.field(b'H').is_some_and(|hint| hint.contains("key_moves")), "{sql}: {error:?}");
    }
    twins.is_same().await;
}

#[tokio::test]
async fn rows_on_the_way_are_bounded_and_the_plan_is_shown() {
    let mut stage = Stage::set(3).await;
    stage.toml += MOVE;
    stage.toml += "memory = \"64KiB\"\n";
    let pgherd = Pgherd::start(&stage.toml).await;
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "update accounts set owner = repeat('x', 4000)").await;
    let refused = say(&mut client, "update accounts set id = id + 100").await;
    assert_eq!((refused.code(), refused.status), (Some("54000"), 'I'), "{refused:?}");
    assert_eq!(stage.balance(5).await, Some(100));
    assert_eq!(ok(&mut client, "update accounts set id = id + 100 where id < 6").await, "UPDATE 5");
    assert_eq!(stage.balance(105).await, Some(100));
    stage.is_clean().await;
    let route = crate::answers::ask(
        &mut client,
        Manner::Simple,
        "explain (route) update accounts set id = id + 1 where id in (1, 2)",
    )
    .await;
    let shown: Vec<String> = route
        .rows
        .iter()
        .map(|row| {
            row.iter().flatten().map(|it| String::from_utf8_lossy(it).into_owned()).collect::<Vec<_>>().join(": ")
        })
        .collect();
    for line in [
        "plan: key-move",
        "reason: key-move",
        "to shards: 0, 1, 2",
        "moves: rows of public.accounts, by shard key \"id\"",
    ] {
        assert!(shown.iter().any(|row| row == line), "{line}: {shown:#?}");
    }
    assert!(shown.iter().any(|row| row.starts_with("runs: SELECT") && row.contains("FOR UPDATE")), "{shown:#?}");
    let route = say(&mut client, "explain (route) update accounts set id = 8, balance = 1 where id = 8").await;
    assert!(
        route.rows.iter().any(|row| row[1].as_deref() == Some(b"shard")),
        "what stays goes to its shard: {route:?}"
    );
}
