//! What is sent where it must not go: to a replica, to the cache or to several shards, though it writes, locks or belongs to a session.
//! Each row is asked of a database with a replica and a cache, and of one with shards and a cache.
//!
//! | row | stories |
//! |---|---|
//! | `SELECT f()` where `f` writes | `a_function_that_writes`, `cached::conduct`, `plan::rules::tests` |
//! | `WITH x AS (INSERT ...)` | `what_writes_inside` |
//! | `SELECT ... FOR UPDATE` | `what_locks` |
//! | `EXPLAIN ANALYZE INSERT`, `COPY (INSERT ... RETURNING) TO` | `what_writes_inside` |
//! | `CALL`, `DO` | `what_cannot_be_read_off_its_text` |
//! | `SELECT lo_*`, `SELECT nextval` | `a_function_that_writes` |
//! | `LOCK` | `what_locks` |
//! | `SET TRANSACTION READ WRITE`, `PREPARE TRANSACTION` | `transactions_are_the_primarys`, `traps::transactions` |
//! | cursors | `what_belongs_to_a_session`, `traps::wrapped` |
//! | multi-statement strings | `strings_of_several_statements` |
//! | comments before keywords | `comments_hide_nothing` |
//! | `BEGIN; SELECT`, then a write | `a_transaction_that_reads_first_and_writes_then` |
//! | texts that PostgreSQL reads otherwise than pgherd's parser | `texts_that_mean_something_else`, `reading`, `fuzzing` (the oracle) |

use std::time::Duration;

use pgherd::wire::writer;

use super::herd::Herd;
use crate::answers::Answer;
use crate::harness::wire::{WireClient, bind, rows, tags};
use crate::harness::{self, Database, Pgherd};

const PATIENCE: Duration = Duration::from_secs(20);

/// A database whose reads go to a replica, unless they are cached.
struct Plain {
    primary: Database,
    pgherd: Pgherd,
}

impl Plain {
    async fn start() -> Self {
        // What matters is where pgherd would go: the replica is never asked.
        let (primary, replica) = (harness::fresh_database().await, harness::fresh_database().await);
        primary
            .execute(
                "create table t (id int4 primary key, v int4); insert into t values (1, 1); create sequence s;
                 create function writes() returns int4 language sql as 'update t set v = v + 1 returning v';
                 create procedure p() language sql as 'update t set v = v + 1'",
            )
            .await;
        let toml = format!(
            "[[database]]\nname = \"app\"\nprimary = \"{}\"\nreplicas = [\"{}\"]\nreads = \"replica\"\n\
             [[user]]\nname = \"postgres\"\nauth = \"trust\"\n[pool]\nmin_connections = 0\n[cache]\nenabled = true\n",
            primary.conninfo(),
            replica.conninfo()
        );
        Self { primary, pgherd: Pgherd::start(&toml).await }
    }
}

/// Where a read is answered: both servers have a table `here` that says so.
async fn read_on(client: &mut WireClient) -> String {
    let messages = client.query("select name from here").await;
    assert_eq!(Answer::read(&messages).error, None);
    rows(&messages)[0][0].clone().expect("a name")
}

#[tokio::test]
async fn a_replica_whose_logins_are_set_otherwise_is_read_only_by_sessions_with_values_of_their_own() {
    for by_role in [false, true] {
        let (primary, replica) = (harness::fresh_database().await, harness::fresh_database().await);
        let role = harness::fresh_role("pg_read_all_data").await;
        for (database, name) in [(&primary, "primary"), (&replica, "replica")] {
            database.execute(&format!("create table here (name text); insert into here values ('{name}')")).await;
        }
        let of = if by_role { format!("role {role} in database") } else { "database".to_owned() };
        let set = async |what: &str| replica.execute(&format!("alter {of} {} {what}", replica.name)).await;
        set("set timezone = 'Asia/Tokyo'").await;
        let toml = format!(
            "[[database]]\nname = \"app\"\nprimary = \"{}\"\nreplicas = [\"{}\"]\nreads = \"replica\"\n\
             [[user]]\nname = \"{role}\"\nauth = \"trust\"\n[pool]\nmin_connections = 0\n",
            primary.address(),
            replica.address()
        );
        let pgherd = Pgherd::start(&toml).await;
        let mut client = WireClient::login(pgherd.port, &role, "app").await;
        for time in 0..4 {
            assert_eq!(read_on(&mut client).await, "primary", "read {time}, by_role: {by_role}");
        }
        client.query("set timezone = 'Europe/Berlin'").await;
        assert_eq!(read_on(&mut client).await, "replica", "it has its own time zone, by_role: {by_role}");
        client.query("reset timezone").await;
        assert_eq!(read_on(&mut client).await, "primary", "by_role: {by_role}");
        set("reset timezone").await;
        let away = format!(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{}' and pid <> pg_backend_pid()",
            replica.name
        );
        replica.execute(&away).await;
        harness::eventually(PATIENCE, "a login has shown that they are alike now", async || {
            let mut client = WireClient::login(pgherd.port, &role, "app").await;
            client.query("set timezone = 'Europe/Berlin'").await;
            read_on(&mut client).await;
            client.query("reset timezone").await;
            read_on(&mut client).await == "replica"
        })
        .await;
    }
}

/// A pipeline is one transaction: what reads behind a write sees it, and is answered behind it.
#[tokio::test]
async fn what_stands_behind_a_write_in_a_pipeline_is_not_read_on_a_replica() {
    let (primary, replica) = (harness::fresh_database().await, harness::fresh_database().await);
    for (database, name) in [(&primary, "primary"), (&replica, "replica")] {
        database.execute(&format!("create table here (name text); insert into here values ('{name}')")).await;
    }
    for more in ["", "[cache]\nenabled = true\n"] {
        let toml = format!(
            "[[database]]\nname = \"app\"\nprimary = \"{}\"\nreplicas = [\"{}\"]\nreads = \"replica\"\n\
             [[user]]\nname = \"postgres\"\nauth = \"trust\"\n[pool]\nmin_connections = 0\n{more}",
            primary.address(),
            replica.address()
        );
        let pgherd = Pgherd::start(&toml).await;
        // The cache keeps none of it.
        const READ: &str = "select name, now() is null from here where name <> 'own'";
        const WRITE: &str = "insert into here values ('own')";
        harness::eventually(PATIENCE, "a replica answers", async || {
            let mut client = WireClient::login(pgherd.port, "postgres", "app").await;
            rows(&client.query(READ).await)[0][0].as_deref() == Some("replica")
        })
        .await;
        for texts in [[READ, WRITE, READ], [WRITE, READ, READ], [WRITE, WRITE, READ]] {
            let mut client = WireClient::login(pgherd.port, "postgres", "app").await;
            client
                .say(|out| {
                    for text in texts {
                        writer::parse(out, b"", text.as_bytes(), &[]);
                        bind(out, "", "", &[], 0);
                        writer::execute(out, b"", 0);
                        // What is flushed has been answered before the rest is looked at.
                        writer::flush(out);
                    }
                    writer::sync(out);
                })
                .await;
            let messages = client.until_ready().await;
            let wanted: String = texts.iter().map(|&text| if text == READ { "12DC" } else { "12C" }).collect();
            assert_eq!(tags(&messages), wanted + "Z", "{texts:?} {more}");
            let last = rows(&messages).pop().expect("a row");
            assert_eq!(last[0].as_deref(), Some("primary"), "{texts:?} {more}");
        }
    }
}

async fn plan(client: &mut WireClient, text: &str) -> String {
    let answer = Answer::read(&client.query(&format!("explain (route) {text}")).await);
    assert_eq!(answer.error, None, "{text}");
    let plan = answer.rows.iter().find(|row| row[0].as_deref() == Some(&b"plan"[..]));
    String::from_utf8(plan.and_then(|row| row[1].clone()).expect("a plan")).expect("text")
}

/// In the one database everything goes to the primary; in the other it is refused where it names a table of the shards.
async fn stay(plain: &[&str], sharded: &[&str]) {
    let (world, herd) = (Plain::start().await, Herd::start(2, true).await);
    let (mut client, mut over_shards) = (world.pgherd.wire("app").await, herd.client().await);
    for text in plain {
        assert_eq!(plan(&mut client, text).await, "primary", "{text}");
    }
    for text in sharded {
        assert_eq!(plan(&mut over_shards, text).await, "refuse", "{text}");
    }
    assert!(matches!(plan(&mut client, "select count(*) from t").await.as_str(), "cached" | "replica"));
    assert_eq!(plan(&mut over_shards, "select count(*) from sales").await, "fan-out");
}

#[tokio::test]
async fn a_function_that_writes() {
    let plain = [
        "select writes()",
        "select v, writes() from t",
        "select * from writes()",
        "select nextval('s')",
        "select setval('s', 5)",
        "select lo_create(0)",
        "select lo_import('/nowhere')",
        "select pg_advisory_lock(1)",
        "select pg_notify('x', 'y')",
        "select no_such_function()",
    ];
    let sharded = [
        "select nextval('numbers') from sales",
        "select lo_create(0) from sales",
        "select pg_advisory_lock(id) from sales",
        "select lowered(region) from sales",
    ];
    stay(&plain, &sharded).await;
}

#[tokio::test]
async fn what_writes_inside() {
    let plain = [
        "with x as (insert into t values (2, 2) returning *) select * from x",
        "with x as (delete from t returning *) select count(*) from x",
        "explain analyze insert into t values (2, 2)",
        "explain (analyze, costs off) update t set v = 1",
        "copy (insert into t values (2, 2) returning id) to stdout",
        "select * into u from t",
        "create table u as select * from t",
    ];
    let sharded = [
        "with x as (insert into sales (id) values (2) returning *) select * from x",
        "with x as (delete from sales returning *) select count(*) from x",
        "with x as (select 1) insert into sales (id, customer_id) select id, customer_id from sales",
        "copy (delete from sales returning id) to stdout",
        "explain analyze delete from sales",
        "select * into u from sales",
        "create table u as select * from sales",
    ];
    stay(&plain, &sharded).await;
}

#[tokio::test]
async fn what_locks() {
    let plain = [
        "select * from t for update",
        "select * from t for no key update skip locked",
        "select * from t for key share",
        "(select * from t for share)",
        "select * from (select * from t for update) x",
        "lock table t",
        "lock t in access share mode",
    ];
    let sharded = [
        "select * from sales for update",
        "select * from (select * from sales for update) x",
        "with x as (select * from sales for share) select * from x",
        "lock table sales",
        "lock public.sales in share mode nowait",
    ];
    stay(&plain, &sharded).await;
}

#[tokio::test]
async fn what_cannot_be_read_off_its_text() {
    let plain = [
        "call p()",
        "do $$ begin update t set v = 2; end $$",
        "do 'begin perform writes(); end'",
        "execute something",
        "security label on table t is 'x'",
    ];
    let sharded = [
        "do $$ begin delete from sales; end $$",
        "do 'begin delete from sales; end'",
        "do language plpgsql $x$ begin perform 1 from public.\"sales\"; end $x$",
        "prepare p as select * from sales",
        "refresh materialized view sales",
        "security label on table sales is 'x'",
    ];
    stay(&plain, &sharded).await;
}

#[tokio::test]
async fn transactions_are_the_primarys() {
    let plain = [
        "set transaction read write",
        "set session characteristics as transaction read only",
        "prepare transaction 'x'",
        "commit prepared 'x'",
        "savepoint s",
        "start transaction isolation level serializable",
    ];
    stay(&plain, &[]).await;
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    // READ ONLY holds on every shard, also when it is taken back too late.
    client.query("begin read only").await;
    assert_eq!(rows(&client.query("select count(*) from sales").await).len(), 1);
    let late = Answer::read(&client.query("set transaction read write").await);
    assert_eq!(late.code(), Some("25001"), "{late:?}");
    client.query("rollback").await;
    client.query("begin read only").await;
    let written = Answer::read(&client.query("delete from sales where customer_id = 7").await);
    assert_eq!((written.code(), written.status), (Some("25006"), 'E'));
    client.query("rollback").await;
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn what_belongs_to_a_session() {
    let plain = [
        "declare c cursor for select * from t",
        "declare c cursor with hold for select * from t",
        "fetch all from c",
        "listen x",
        "set application_name to 'x'",
        "select set_config('application_name', 'x', false)",
        "create temporary table u (a int4)",
        "discard all",
    ];
    let sharded = [
        "declare c cursor with hold for select * from sales",
        "declare c cursor for select * from sales for update",
        "create temporary table u as select * from sales",
    ];
    stay(&plain, &sharded).await;
}

#[tokio::test]
async fn strings_of_several_statements() {
    let (world, herd) = (Plain::start().await, Herd::start(2, true).await);
    let (mut client, mut over_shards) = (world.pgherd.wire("app").await, herd.client().await);
    for text in [
        "select v from t; update t set v = v + 1",
        "select v from t; select writes(); select v from t",
        "begin; delete from t; rollback",
    ] {
        let answer = Answer::read(&client.query(text).await);
        assert_eq!((answer.error, answer.status), (None, 'I'), "{text}");
    }
    let client_of_primary = world.primary.client().await;
    assert_eq!(client_of_primary.query_one("select v from t", &[]).await.expect("a row").get::<_, i32>(0), 3);
    for text in [
        "select 1; select count(*) from sales",
        "select count(*) from sales; delete from sales",
        "select 1 from sales where customer_id = 1; select 2",
    ] {
        let answer = Answer::read(&over_shards.query(text).await);
        assert_eq!((answer.code(), answer.status), (Some("0A000"), 'I'), "{text}");
    }
}

#[tokio::test]
async fn comments_hide_nothing() {
    let plain = [
        "/* select */ insert into t values (2, 2)",
        "-- select 1\nupdate t set v = 1",
        "/* a /* nested */ comment */ with x as (delete from t returning 1) select 1",
        "select /* x */ * from t /* y */ for -- z\n update",
        "/**/lock/**/t",
        "select writes /* x */ ( )",
    ];
    let sharded = [
        "/* select */ with x as (delete from sales returning 1) select 1",
        "select * from /* t */ sales -- where\n for update",
        "/* a /* b */ c */ do $$ begin delete from sales; end $$",
        "-- select\nlock sales",
    ];
    stay(&plain, &sharded).await;
}

#[tokio::test]
async fn texts_that_mean_something_else() {
    let plain = [
        "select $$for update$$, writes()",
        "select E'\\'', writes() -- '",
        "select U&'\\0061' , writes()",
        "select \"writes\"()",
        "select U&\"\\0077rites\"()",
        "select 1 where 1 operator(pg_catalog.=) writes()",
        "table t for update",
    ];
    let sharded = ["table sales for update", "select $$x$$ from U&\"s\\0061les\" for update"];
    stay(&plain, &sharded).await;
}

#[tokio::test]
async fn a_transaction_that_reads_first_and_writes_then() {
    let (world, herd) = (Plain::start().await, Herd::start(2, true).await);
    let (mut client, mut over_shards) = (world.pgherd.wire("app").await, herd.client().await);
    for text in ["begin", "select v from t", "update t set v = v + 1"] {
        let answer = Answer::read(&client.query(text).await);
        assert_eq!((answer.error, answer.status), (None, 'T'), "{text}");
    }
    assert_eq!(rows(&client.query("select v from t").await), [[Some("2".to_owned())]], "its own write is seen");
    client.query("rollback").await;
    let left = world.primary.client().await.query_one("select v from t", &[]).await.expect("a row");
    assert_eq!(left.get::<_, i32>(0), 1);
    let count = "select count(*) from sales where customer_id = 7";
    let before = rows(&over_shards.query(count).await);
    over_shards.query("begin").await;
    rows(&over_shards.query("select count(*) from sales").await);
    over_shards.query("insert into sales (id, customer_id) values (5001, 7)").await;
    assert_ne!(rows(&over_shards.query(count).await), before, "its own write is seen");
    let own = rows(&over_shards.query("select count(*) from sales").await);
    over_shards.query("rollback").await;
    assert_ne!(rows(&over_shards.query("select count(*) from sales").await), own, "its own write was among them");
    assert_eq!(rows(&over_shards.query(count).await), before);
    herd.comes_to_rest().await;
}
