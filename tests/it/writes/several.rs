//! Writes that concern several shards: the same on one PostgreSQL and through pgherd, and the same contents afterwards.

use super::stage::{Stage, ok, say};
use crate::answers::{Answer, MANNERS, Manner, ask};
use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};

/// Shards behind pgherd, and one PostgreSQL with all of it.
pub(super) struct Twins {
    pub(super) stage: Stage,
    pub(super) pgherd: Pgherd,
    pub(super) whole: Database,
}

impl Twins {
    pub(super) async fn set(shards: usize) -> Self {
        Self::with(shards, "").await
    }

    /// With more TOML at the end.
    pub(super) async fn with(shards: usize, rest: &str) -> Self {
        let mut stage = Stage::set(shards).await;
        stage.toml += rest;
        let whole = harness::fresh_database().await;
        whole.execute(&super::stage::SCHEMA.replace("%shards%", "1").replace("%shard%", "0")).await;
        let pgherd = stage.pgherd().await;
        Self { stage, pgherd, whole }
    }

    /// Without two-phase commit, with more TOML at the end.
    pub(super) async fn without_two_phase(rest: &str) -> Self {
        let mut stage = Stage::over(harness::fresh_databases(3).await, "# two_phase is not wanted\n").await;
        stage.toml += rest;
        let whole = harness::fresh_database().await;
        whole.execute(&super::stage::SCHEMA.replace("%shards%", "1").replace("%shard%", "0")).await;
        whole.execute("create table local_notes (id int4, note text)").await;
        let pgherd = stage.pgherd().await;
        Self { stage, pgherd, whole }
    }

    pub(super) async fn clients(&self) -> (WireClient, WireClient) {
        (WireClient::login(self.whole.port, "postgres", &self.whole.name).await, self.pgherd.wire("app").await)
    }

    /// Both say the same; rows whose order nothing fixes are sorted.
    pub(super) async fn same(&self, clients: &mut (WireClient, WireClient), manner: Manner, sql: &str) -> Answer {
        let truth = ask(&mut clients.0, manner, sql).await.sorted();
        let answer = ask(&mut clients.1, manner, sql).await.sorted();
        assert_eq!(truth.code(), answer.code(), "{manner:?} {sql}: {:?} {:?}", truth.error, answer.error);
        assert_eq!(
            (&truth.tag, &truth.rows, truth.status),
            (&answer.tag, &answer.rows, answer.status),
            "{manner:?} {sql}"
        );
        assert_eq!(truth.columns, answer.columns, "{manner:?} {sql}");
        answer
    }

    /// All tables hold the same on both sides, reference tables on every shard.
    pub(super) async fn is_same(&self) {
        for (table, columns) in
            [("accounts", "id, owner, balance"), ("entries", "account_id, amount, note"), ("rates", "code, rate")]
        {
            let sql = format!("select ({columns})::text from {table}");
            let mut parts = Vec::new();
            for shard in &self.stage.shards {
                parts.push(rows(shard, &sql).await);
            }
            let truth = rows(&self.whole, &sql).await;
            if table == "rates" {
                assert!(parts.iter().all(|part| *part == truth), "{table}: {parts:?} {truth:?}");
                continue;
            }
            let mut all = parts.concat();
            all.sort();
            assert_eq!(all, truth, "{table}");
        }
        for (at, shard) in self.stage.shards.iter().enumerate() {
            let of = self.stage.shards.len();
            let sql = format!(
                "select 'x' from accounts where not satisfies_hash_partition('by_int'::regclass, {of}, {at}, id)"
            );
            assert_eq!(rows(shard, &sql).await, Vec::<String>::new(), "shard {at} has rows of others");
        }
        self.stage.is_clean().await;
    }
}

async fn rows(database: &Database, sql: &str) -> Vec<String> {
    let mut rows: Vec<String> =
        database.client().await.query(sql, &[]).await.expect(sql).iter().map(|row| row.get(0)).collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn rows_of_one_insert_go_where_they_belong() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for (manner, base) in MANNERS.into_iter().zip([100, 200, 300, 400]) {
        let row = |add: i32| {
            format!("({}, E'it''s; (), $$x$$ {add}', {add}, now_is)", base + add).replace("now_is", "'2026-01-01'")
        };
        let values: Vec<String> = (1..8).map(row).collect();
        let into = "insert into accounts (id, owner, balance, at) values";
        let all = values.join(" , ");
        twins.same(&mut clients, manner, &format!("{into} {all}")).await;
        let again = format!("{into} {all}, ({}, null, 5, null)", base + 50);
        assert_eq!(twins.same(&mut clients, manner, &again).await.code(), Some("23505"), "nothing of it is there");
        twins
            .same(
                &mut clients,
                manner,
                &format!("{into} {all} on conflict (id) do update set balance = excluded.balance + 1"),
            )
            .await;
        let sql =
            format!("{into} {all}, ({}, 'new', 5, '2026-01-02') on conflict do nothing returning id, owner", base + 60);
        twins.same(&mut clients, manner, &sql).await;
        let sql = format!(
            "insert into accounts (id, balance) values ({}, 1), ({}, 1), ({}, 1)",
            base + 70,
            base + 71,
            base + 72
        );
        twins.same(&mut clients, manner, &format!("{sql}, ({}, 1)", base + 73)).await;
        let sql = format!(
            "select count(distinct at)::int4, count(*) from accounts where id between {} and {}",
            base + 70,
            base + 73
        );
        let times = twins.same(&mut clients, manner, &sql).await;
        assert_eq!(times.rows.len(), 1, "all rows of one statement have one time");
    }
    twins.is_same().await;
}

#[tokio::test]
async fn returning_gives_the_rows_in_the_order_of_the_insert() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    let values: Vec<String> = (0..20).map(|at| format!("({}, {at})", 1000 + (at * 7) % 20)).collect();
    let sql = format!(
        "insert into entries (account_id, amount) values {} returning amount, account_id, note",
        values.join(",")
    );
    for manner in MANNERS {
        let (truth, answer) = (ask(&mut clients.0, manner, &sql).await, ask(&mut clients.1, manner, &sql).await);
        assert_eq!(truth, answer, "{manner:?}");
    }
    twins.is_same().await;
    // Every row has an id of its own, on its shard.
    for shard in &twins.stage.shards {
        assert_eq!(
            rows(shard, "select id::text from entries group by id having count(*) > 1").await,
            Vec::<String>::new()
        );
    }
}

#[tokio::test]
async fn rows_of_another_length_are_postgresqls_error() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    let [a, b, c] = twins.stage.one_of_each().await[..] else { panic!("three shards") };
    for manner in MANNERS {
        for rows in [
            format!("({a}, 1), ({b}, 2, 'x')"),
            format!("({a}, 1, 'x'), ({b}, 2), ({c}, 3, 'y')"),
            format!("({a}, 1, 'x', 2), ({b}, 2, 'y', 3)"),
        ] {
            let into = "insert into entries (account_id, amount, note) values";
            let answer = twins.same(&mut clients, manner, &format!("{into} {rows}")).await;
            assert_eq!(answer.code(), Some("42601"), "{rows}");
        }
        twins.same(&mut clients, manner, "insert into rates values ('x', 1), ('y')").await;
    }
    twins.is_same().await;
}

#[tokio::test]
async fn updates_and_deletes_without_a_key_reach_all_shards() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "update accounts set balance = balance + 1",
            "update accounts set owner = upper(owner) where balance > 100 returning id, owner",
            "update accounts a set balance = a.balance + 10 from rates r where r.code = 'a' and a.id % 2 = 0 returning a.id, r.rate",
            "update accounts set balance = 1 where id in (1, 2, 3, 4)",
            "delete from accounts where id > 35 and balance < 0 returning *",
            "delete from accounts where balance = 1 returning id",
            "insert into accounts (id, balance) values (1, 100), (2, 100), (3, 100), (4, 100) on conflict do nothing",
            // Fails on some of them: nothing is done on any.
            "update accounts set balance = balance - 105 where id <> 7",
            "update accounts set owner = repeat('x', 10) where 1 / (id - 20) > -100",
            "update accounts set nothing = 1",
        ] {
            // A column of the session's time differs from server to server.
            let sql = sql.replace("returning *", "returning id");
            twins.same(&mut clients, manner, &sql).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn reference_tables_stay_the_same_on_every_shard() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for (manner, name) in MANNERS.into_iter().zip(["p", "q", "r", "s"]) {
        for sql in [
            format!("insert into rates values ('{name}', 1.50), ('{name}2', 2) returning *"),
            "update rates set rate = rate * 1.1 where code <> 'b' returning code, rate".to_owned(),
            format!(
                "insert into rates values ('{name}', 7) on conflict (code) do update set rate = rates.rate + excluded.rate"
            ),
            format!("delete from rates where code = '{name}2' returning code"),
            format!("insert into rates values ('{name}', 9)"),
        ] {
            twins.same(&mut clients, manner, &sql).await;
        }
    }
    twins.is_same().await;
    // Writers that meet come in one order on all shards.
    let mut tasks = Vec::new();
    for who in 0..4 {
        let mut client = twins.pgherd.wire("app").await;
        tasks.push(tokio::spawn(async move {
            for round in 0..5 {
                let sql = match (who + round) % 3 {
                    0 => "update rates set rate = rate * 2",
                    1 => "update rates set rate = rate + 1",
                    _ => "delete from rates where rate > 1000",
                };
                say(&mut client, sql).await;
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let sql = "select (code, rate)::text from rates";
    let first = rows(&twins.stage.shards[0], sql).await;
    for shard in &twins.stage.shards[1..] {
        assert_eq!(rows(shard, sql).await, first);
    }
    twins.stage.shards[1].execute("update rates set rate = -5 where code = 'b'").await;
    let differs = say(&mut clients.1, "delete from rates where rate < 0").await;
    assert_eq!((differs.code(), differs.status), (Some("XX000"), 'I'), "copies that differ are told: {differs:?}");
    twins.stage.is_clean().await;
}

#[tokio::test]
async fn in_a_transaction_they_are_part_of_it() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "begin",
            "update accounts set balance = balance + 1 where id = 5",
            "update accounts set balance = balance + 2",
            "savepoint s",
            "delete from accounts where id % 3 = 0",
            "update accounts set balance = balance - 1000",
            "select 1",
            "rollback to s",
            "insert into accounts (id, balance) values (61, 1), (62, 1), (63, 1), (64, 1)",
            "delete from accounts where id > 60 returning id",
            "commit",
            "begin",
            "delete from accounts",
            "update rates set rate = 0",
            "rollback",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn what_could_not_be_right_is_refused_and_changes_nothing() {
    let twins = Twins::set(2).await;
    let mut client = twins.pgherd.wire("app").await;
    for sql in [
        "update accounts set at = now() returning now()",
        "update accounts set at = clock_timestamp()",
        "update accounts set at = current_timestamp(3)",
        "delete from accounts where id in (select account_id from entries)",
        "update accounts set owner = (select code from rates limit 1)",
        "update accounts set owner = (select string_agg(code, '') from rates)",
        "update accounts set balance = (random() * 10)::int",
        "update accounts set balance = 0 where ctid = '(0,1)'",
        "update accounts set id = id + 1",
        "delete from accounts where balance < (select avg(balance) from accounts)",
        "update accounts a set balance = 0 from accounts b where a.balance = b.balance",
        // All rows of one statement have one time, and each shard has its own.
        "insert into accounts values (71, '', 1), (72, '', 1), (73, '', 1), (74, '', 1)",
        "insert into accounts (id, balance, at) values (71, 1, default), (72, 1, default), (73, 1, default), (74, 1, default)",
        "update rates set rate = random()",
        "update rates set rate = balance from accounts where accounts.id = 1",
        "explain analyze update rates set rate = 1",
        "explain analyze update accounts set balance = 1",
    ] {
        let refused = say(&mut client, sql).await;
        assert_eq!((refused.code(), refused.status), (Some("0A000"), 'I'), "{sql}");
    }
    let mut client = twins.pgherd.wire("app").await;
    ok(&mut client, "begin isolation level repeatable read").await;
    assert_eq!(say(&mut client, "update accounts set balance = 1").await.code(), Some("0A000"));
    twins.is_same().await;
}

#[tokio::test]
async fn without_two_phase_commit_they_are_refused_with_what_to_do() {
    let stage = Stage::set(2).await;
    let toml = stage.toml.replace("two_phase = {", "#");
    let pgherd = Pgherd::start(&toml).await;
    let mut client = pgherd.wire("app").await;
    for sql in [
        "update accounts set balance = 1",
        "update rates set rate = 1",
        "insert into entries (account_id, amount) values (1, 1), (2, 2), (3, 3), (4, 4)",
    ] {
        let messages = client.query(sql).await;
        let error = messages.iter().find(|message| message.tag == b'E').expect("an error");
        assert_eq!(error.field(b'C').as_deref(), Some("0A000"), "{sql}");
        assert!(error.field(b'H').is_some_and(|hint| hint.contains("two_phase")), "{sql}: {error:?}");
    }
    // Rows of one shard need none of it.
    let account = stage.one_of_each().await[0];
    ok(&mut client, &format!("insert into entries (account_id, amount) values ({account}, 1), ({account}, 2)")).await;
}

#[tokio::test]
async fn in_a_pipeline_with_others_they_are_refused() {
    use pgherd::wire::writer;
    let twins = Twins::set(2).await;
    let mut client = twins.pgherd.wire("app").await;
    // One transaction up to its Sync: what comes last may fail, and then nothing of it may stay.
    client
        .say(|out| {
            for sql in ["update accounts set balance = 0", "select 1 / 0"] {
                writer::parse(out, b"", sql.as_bytes(), &[]);
                crate::harness::wire::bind(out, "", "", &[], 0);
                writer::execute(out, b"", 0);
            }
            writer::sync(out);
        })
        .await;
    let answer = Answer::read(&client.until_ready().await);
    assert_eq!((answer.code(), answer.status), (Some("0A000"), 'I'));
    twins.is_same().await;
}

#[tokio::test]
async fn truncate_and_ddl_reach_every_shard_or_none() {
    let twins = Twins::set(2).await;
    let mut clients = twins.clients().await;
    for sql in [
        "alter table accounts add column note text default 'none', add constraint rich check (balance < 100000)",
        "create index notes on accounts (note)",
        "update accounts set note = 'changed' where id < 10 returning id, note",
        "begin",
        "truncate entries, rates",
        "alter table accounts rename column note to remark",
        "insert into rates values ('z', 3)",
        "rollback",
        "select count(*) from rates",
        "alter table accounts rename column note to remark",
        "insert into accounts (id, remark, balance) values (90, 'a', 1), (91, 'b', 1), (92, 'c', 1), (93, 'd', 1)",
        "select id, remark from accounts where remark <> 'none' order by id",
        "drop index notes",
        "drop index notes",
        "drop index if exists notes",
        "alter table accounts add constraint poor check (balance < 5)",
        "truncate rates",
        "insert into rates values ('n', 1)",
        "drop table entries",
        "create table entries (account_id int4 not null, id bigserial, amount int8 not null, note text default 'again')",
        "insert into entries (account_id, amount) values (1, 1), (2, 2), (3, 3), (4, 4)",
        "select account_id, note from entries order by 1",
    ] {
        twins.same(&mut clients, Manner::Simple, sql).await;
    }
    twins.is_same().await;
    // Rows are placed by the columns that the catalog knows.
    for insert in ["insert into entries values (5, 6, 7)", "insert into entries (account_id, amount) values (5, 6)"] {
        ok(&mut clients.1, "begin").await;
        ok(&mut clients.1, "alter table entries add column first int4").await;
        assert_eq!(say(&mut clients.1, insert).await.code(), Some("0A000"), "{insert}");
        ok(&mut clients.1, "rollback").await;
    }
    // Fails on one shard, because of what stands there: it is done on none.
    twins.stage.shards[1].execute("create table accounts_by_owner (x int)").await;
    let failed = say(&mut clients.1, "create index accounts_by_owner on accounts (owner)").await;
    assert_eq!(failed.code(), Some("42P07"));
    let sql = "select indexname::text from pg_indexes where tablename = 'accounts'";
    assert_eq!(rows(&twins.stage.shards[0], sql).await, ["accounts_pkey"]);
    for sql in [
        "create unique index owners on accounts (owner)",
        "alter table accounts drop column id",
        "alter table accounts rename to others",
        "alter table accounts add column seen timestamptz default now()",
        "alter table entries add foreign key (id) references accounts (id)",
        "create index concurrently slow on accounts (owner)",
        "drop table accounts, local_notes",
        "lock table accounts",
    ] {
        assert_eq!(say(&mut clients.1, sql).await.code(), Some("0A000"), "{sql}");
    }
    twins.stage.is_clean().await;
}
