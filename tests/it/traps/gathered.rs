//! Statements that PostgreSQL merges on the coordinator: what goes wrong there ends once and everywhere, nothing is left behind,
//! and the client's settings, names and transactions hold as on one server.

use std::time::Duration;

use pgherd::commands::demo::servers::{PostgresServer, StopMode};
use pgherd::wire::writer;

use super::herd::Herd;
use crate::answers::{Answer, MANNERS, Manner, ask};
use crate::harness::wire::{WireClient, bind};
use crate::harness::{self, Database};

const DEADLINE: Duration = Duration::from_secs(20);

/// A statement that no stream can answer, over all rows of a table.
const MEDIAN: &str = "select region, percentile_disc(0.5) within group (order by id), array_agg(sku order by sku, n)
    from sales s join lines l on l.sale_id = s.id group by region order by region";

/// Hours of work, all of it behind the shipping.
const ENDLESS: &str = "with s as materialized (select k from slow) select count(*) from s a, s b, s c, s d, s e";

/// Both agree, nothing is held, and the coordinator has no temporary table.
async fn is_well(herd: &Herd, client: &mut WireClient) {
    let wanted = ask(&mut herd.oracle().await, Manner::Text, MEDIAN).await;
    assert!(wanted.rows.len() > 3, "there is something to compare");
    assert_eq!(ask(client, Manner::Text, MEDIAN).await, wanted);
    herd.comes_to_rest().await;
    nothing_is_left(&herd.primary).await;
}

/// All catalogs have been read.
async fn is_answered(herd: &Herd) {
    let wanted = ask(&mut herd.oracle().await, Manner::Text, MEDIAN).await;
    harness::eventually(DEADLINE, "the coordinator is asked", async || {
        ask(&mut herd.client().await, Manner::Text, MEDIAN).await == wanted
    })
    .await;
}

async fn nothing_is_left(coordinator: &Database) {
    let observer = coordinator.client().await;
    let left = "select (select count(*) from pg_class where relpersistence = 't' and relkind = 'r')
        + (select count(*) from pg_stat_activity where datname = current_database() and xact_start is not null
           and pid <> pg_backend_pid() and backend_type = 'client backend' and state <> 'active')";
    harness::eventually(DEADLINE, "the coordinator is empty", async || {
        observer.query_one(left, &[]).await.expect("left").get::<_, i64>(0) == 0
    })
    .await;
}

async fn works(database: &Database, query: &str) {
    let observer = database.client().await;
    let text = format!(
        "select count(*) from pg_stat_activity where datname = current_database() and state = 'active'
         and pid <> pg_backend_pid() and query like '%{query}%'"
    );
    harness::eventually(DEADLINE, "the server works", async || {
        observer.query_one(&text, &[]).await.expect("activity").get::<_, i64>(0) > 0
    })
    .await;
}

#[tokio::test]
async fn a_cancel_and_a_leave_reach_the_coordinator() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    client.say(|out| writer::query(out, ENDLESS.as_bytes())).await;
    works(&herd.primary, "from s a, s b").await;
    client.cancel().await;
    let answer = Answer::read(&client.until_ready().await);
    assert_eq!((answer.code(), answer.status), (Some("57014"), 'I'), "{answer:?}");
    is_well(&herd, &mut client).await;
    client.say(|out| writer::query(out, ENDLESS.as_bytes())).await;
    works(&herd.primary, "from s a, s b").await;
    drop(client);
    is_well(&herd, &mut herd.client().await).await;
}

/// A lock holds a shard up where it is first asked for the table: for its rows, or for how many there are.
async fn reaches_a_shard(key_list_max: u32, asked: &str) {
    let rest = format!("[fanout]\nkey_list_max = {key_list_max}\n[cache]\nenabled = false\n");
    let herd = Herd::over(harness::fresh_databases(3).await, &rest).await;
    let mut client = herd.client().await;
    let mut holder = herd.shards[1].client().await;
    let held = holder.transaction().await.expect("begin");
    held.batch_execute("lock table lines in access exclusive mode").await.expect("lock");
    client.say(|out| writer::query(out, MEDIAN.as_bytes())).await;
    works(&herd.shards[1], asked).await;
    client.cancel().await;
    let answer = Answer::read(&client.until_ready().await);
    assert_eq!((answer.code(), answer.status), (Some("57014"), 'I'), "{answer:?}");
    client.query("set statement_timeout to '300ms'").await;
    let answer = ask(&mut client, Manner::Text, MEDIAN).await;
    assert_eq!(answer.error, Some(("57014".into(), "canceling statement due to statement timeout".into())));
    client.query("reset statement_timeout").await;
    client.say(|out| writer::query(out, MEDIAN.as_bytes())).await;
    works(&herd.shards[1], asked).await;
    drop(client);
    held.rollback().await.expect("rollback");
    is_well(&herd, &mut herd.client().await).await;
}

#[tokio::test]
async fn a_cancel_and_a_leave_and_a_timeout_reach_a_shard_that_ships() {
    reaches_a_shard(0, "COPY (SELECT").await;
}

#[tokio::test]
async fn a_cancel_and_a_leave_and_a_timeout_reach_a_shard_that_counts() {
    reaches_a_shard(5000, "EXPLAIN SELECT").await;
}

#[tokio::test]
async fn errors_are_postgresqls_and_come_once() {
    let herd = Herd::start(3, true).await;
    let mut client = herd.client().await;
    for text in [
        "select id, 1 / (id - 200) from (select id from sales offset 1) s order by 1",
        "select no_such from sales s join lines l on l.sale_id = s.id",
        "select count(*) from sales s join lines l on l.sale_id = s.tag",
        "select region, id from sales s join lines l on l.sale_id = s.id group by region",
        "select array_agg(id) from sales having no_such_function(1) > 0",
        "select s.id from sales s, lines s where s.id = s.sale_id",
    ] {
        for manner in MANNERS {
            let wanted = ask(&mut herd.oracle().await, manner, text).await;
            let given = ask(&mut client, manner, text).await;
            assert!(wanted.error.is_some(), "{text}");
            assert!(given.code() == Some("0A000") || given.error == wanted.error, "{text} {manner:?}: {given:?}");
            assert_eq!((given.tag.as_str(), given.status), ("", 'I'), "{text}");
        }
    }
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn a_mistyped_statement_is_told_as_postgresql_tells_it() {
    let herd = Herd::start(2, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for text in ["select * form sales", "update sales st qty = 1", "selec * from sales", "delete sales where id = 1"] {
        for manner in MANNERS {
            let wanted = ask(&mut oracle, manner, text).await;
            assert_eq!(wanted.code(), Some("42601"), "{text}");
            assert_eq!(ask(&mut client, manner, text).await, wanted, "{text}");
        }
    }
    // What only pgherd cannot read is refused as before.
    let unread = "select id from sales where qty between symmetric 3 and 1";
    assert_eq!(ask(&mut client, Manner::Text, unread).await.code(), Some("0A000"));
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn a_condition_fails_only_where_postgresql_would_have_judged_it() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    for text in [
        "select (select count(*) from lines l where 1 / (l.n - l.n) > 0) from countries c where c.code = 'no such'",
        "select case when count(*) < 0 then (select max(id) from sales s where 1 / (s.id - s.id) = 1) end from countries",
        "select (select count(*) from lines l where 1 / (l.n - l.n) > 0) from countries c",
        "select count(*) from sales s where 1 / (s.id - s.id) > 0 having max(s.region) is not null",
    ] {
        for manner in MANNERS {
            let wanted = ask(&mut herd.oracle().await, manner, text).await;
            assert_eq!(ask(&mut client, manner, text).await, wanted, "{text} {manner:?}");
        }
    }
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn of_alternatives_each_table_ships_what_one_of_them_may_want() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    let wanted = "((l.n between 1 and 3 and s.v > 5) or (l.n > 4 and l.sku is not null and s.v < 3))";
    let text = format!(
        "select l.sale_id, l.n, s.k, s.v from lines l, slow s where l.n = s.k and {wanted} order by 1, 2, 3, 4"
    );
    for manner in MANNERS {
        let answer = ask(&mut herd.oracle().await, manner, &text).await;
        assert_eq!(ask(&mut client, manner, &text).await, answer, "{manner:?}");
    }
    let ships = async |client: &mut _, text: &str| -> Vec<String> {
        let route = ask(client, Manner::Simple, &format!("explain (route) {text}")).await;
        let words = |row: Vec<Option<Vec<u8>>>| -> Vec<String> {
            row.into_iter().map(|value| String::from_utf8(value.unwrap_or_default()).expect("a text")).collect()
        };
        let rows = route.rows.into_iter().map(words).filter(|row| row[0] == "ships");
        rows.map(|row| row[1].clone()).collect()
    };
    let both = ships(&mut client, &text).await;
    assert!(both.len() == 2 && both.iter().all(|text| text.contains("WHERE") && text.contains(" OR ")), "{both:?}");
    // An alternative that says nothing of a table wants all of its rows.
    let half = text.replace("and s.v > 5", "");
    let halves = ships(&mut client, &half).await;
    assert_eq!(halves.iter().filter(|text| text.contains("WHERE")).count(), 1, "{halves:?}");
}

#[tokio::test]
async fn what_is_too_much_to_ship_is_refused_and_nothing_else() {
    for limit in ["max_shipped_rows = 500", "max_shipped_bytes = \"9KiB\""] {
        let shards = harness::fresh_databases(2).await;
        let herd = Herd::over(shards, &format!("[fanout]\n{limit}\n[cache]\nenabled = false\n")).await;
        let mut client = herd.client().await;
        for manner in MANNERS {
            let answer =
                ask(&mut client, manner, "select percentile_disc(0.5) within group (order by v) from slow").await;
            assert_eq!((answer.code(), answer.status), (Some("54000"), 'I'), "{answer:?}");
            let few = ask(
                &mut client,
                manner,
                "select string_agg(title, ',' order by title) from countries c
                where exists (select from nothing) or code <> ''",
            )
            .await;
            assert_eq!(few.error, None);
        }
        herd.comes_to_rest().await;
        nothing_is_left(&herd.primary).await;
    }
}

#[tokio::test]
async fn a_coordinator_that_is_down_releases_the_shards() {
    let server = PostgresServer::start(harness::ground(), &harness::options()).expect("server");
    let coordinator = harness::database_on(&server).await;
    coordinator.execute("create type mood as enum ('sad', 'ok', 'happy')").await;
    let herd = Herd::coordinated_by(&coordinator).await;
    let mut client = herd.client().await;
    let wanted = ask(&mut herd.oracle().await, Manner::Text, MEDIAN).await;
    harness::eventually(DEADLINE, "the coordinator's catalog is known", async || {
        ask(&mut herd.client().await, Manner::Text, MEDIAN).await == wanted
    })
    .await;
    server.stop(StopMode::Immediate).expect("stopped");
    let answer = ask(&mut client, Manner::Text, MEDIAN).await;
    let code = answer.code().unwrap_or_default().to_owned();
    assert!(code.starts_with("08") || code.starts_with("57") || code == "0A000", "{answer:?}");
    assert_eq!(answer.status, 'I');
    let others = ask(&mut client, Manner::Text, "select count(*) from sales").await;
    assert_eq!(others.error, None, "what needs no coordinator goes on");
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_coordinator_that_sorts_an_enum_otherwise_is_not_asked() {
    let coordinator = harness::fresh_database().await;
    coordinator.execute("create type mood as enum ('happy', 'ok', 'sad')").await;
    let herd = Herd::coordinated_by(&coordinator).await;
    let mut client = herd.client().await;
    let wanted = ask(&mut herd.oracle().await, Manner::Text, MEDIAN).await;
    harness::eventually(DEADLINE, "the coordinator's catalog is known", async || {
        ask(&mut herd.client().await, Manner::Text, MEDIAN).await == wanted
    })
    .await;
    for text in
        ["select feeling, count(distinct region) from sales group by 1 order by 1", "table sales order by feeling"]
    {
        assert_eq!(ask(&mut client, Manner::Text, text).await.code(), Some("0A000"), "{text}");
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn names_settings_and_transactions_hold_on_the_coordinator() {
    let herd = Herd::start(2, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    let text = "select at, made, day, span, price, cash, list, raw from (select * from sales offset 0) s order by id";
    for setting in [
        "set datestyle to 'sql, dmy'",
        "set timezone to 'America/New_York'",
        "set intervalstyle to 'sql_standard'",
        "set extra_float_digits to -5",
        "set bytea_output to escape",
        "set search_path to public, pg_temp",
        "set search_path to ''",
        "set search_path to pg_catalog, public",
    ] {
        oracle.query(setting).await;
        client.query(setting).await;
        for text in [text, &text.replace("sales", "public.sales")] {
            for manner in [Manner::Simple, Manner::Binary] {
                let wanted = ask(&mut oracle, manner, text).await;
                let given = ask(&mut client, manner, text).await;
                assert_eq!(given, wanted, "{setting}: {text}");
            }
        }
    }
    client.query("reset all").await;
    client.query("begin").await;
    assert_eq!(ask(&mut client, Manner::Simple, MEDIAN).await.status, 'T');
    let failed = ask(&mut client, Manner::Simple, "select 1 / count(*) from (select from nothing) n").await;
    assert_eq!((failed.code(), failed.status), (Some("22012"), 'E'));
    client.query("rollback").await;
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn shadowed_and_qualified_names_mean_what_they_mean_on_one_server() {
    let herd = Herd::start(2, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for text in [
        "with sales as (select 1 as id) select id, (select count(*) from public.sales) from sales",
        "with recursive lines as (select 1 as n union all select n + 1 from lines where n < 5) select sum(n), count(distinct n) from lines, countries",
        "select public.sales.id, sales.region from public.sales where exists (select from lines where sale_id = public.sales.id) order by 1",
        "select sales from sales where id in (select sale_id from lines where n = 1) order by sales.id limit 5",
        "select row_to_json(l) from lines l where l.n > (select avg(n) from lines) order by l.sale_id, l.customer_id",
        "select l.* from lines l natural join (select customer_id, sale_id from lines) x order by 1, 2",
        "select a, b from lines as l (a, b) where a in (select k from slow) order by 1, 2",
        "select count(l), count(s.*) from lines l left join sales s on s.id = l.sale_id",
        "select \"id\", lines.n from sales join lines using (customer_id) order by 1, 2 limit 9",
        "select region, id, count(*) over (partition by region) from sales where (region, qty) in (select sku, n from lines union select region, qty from sales) order by id",
        "values (1, (select count(*) from sales)), (2, (select max(n) from lines))",
        "select exists (select from sales), (select string_agg(code, ',' order by code) from countries)",
        "select json_populate_record(null::sales, '{\"id\":3}')::text, percentile_disc(0.5) within group (order by id) from sales",
        "select r.qty, string_agg(s.region, ',' order by s.id) from sales s, jsonb_populate_recordset(null::public.sales, '[{\"qty\":3}]') r group by 1",
        "select a.id, b.id from sales a, sales b where a.id > 80 and b.id = a.id - 78 and concat(b.*, b.id) like '%1%' order by 1, 2",
        "select a.id from sales a, sales b where a.id > 80 and b.id = a.id - 78 and to_jsonb(b.*) ->> 'region' = 'north' order by 1",
        "select count(*) from sales s where exists (select from lines l where l.n < num_nonnulls(s.*) and l.sale_id <> s.id)",
        "select j::text from (sales s join lines l using (customer_id)) j order by 1",
        "select count(*), sum(a) from (sales s join lines l using (customer_id)) j (a, b) where num_nonnulls(j.*) > 1 and a > 3",
        "select j.n, to_jsonb(j) ->> 'region' from ((lines l join sales s on s.id = l.sale_id) join countries c on true) j order by 1, 2",
        "select array_length('{}'::sales[], 1), string_agg(region, ',' order by id) from sales",
    ] {
        for manner in MANNERS {
            let wanted = ask(&mut oracle, manner, text).await;
            let given = ask(&mut client, manner, text).await;
            // A row's type is one of its own in each database.
            let is_row = text.starts_with("select sales from");
            let known = |mut answer: Answer| {
                answer.columns.iter_mut().filter(|column| column.1 >= 16384).for_each(|column| column.1 = 16384);
                answer
            };
            assert_eq!(wanted.error, None, "{text}");
            let is_refused = is_row && given.code() == Some("0A000");
            assert!(
                is_refused || known(given.clone()) == known(wanted.clone()),
                "{text} {manner:?}:\n{given:?}\n{wanted:?}"
            );
        }
    }
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn a_name_that_a_schema_of_the_shards_alone_may_hide_is_refused() {
    let shards = harness::fresh_databases(2).await;
    for shard in &shards {
        let hiding = "create schema only_here; create table only_here.sales (id int8, customer_id int4, region text);
            create view only_here.countries as select 'x' as code, 'y' as title";
        shard.execute(hiding).await;
    }
    let herd = Herd::over(shards, "[cache]\nenabled = true\n").await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for path in ["only_here, public", "public, only_here", "only_here"] {
        for session in [&mut oracle, &mut client] {
            let set = format!("set search_path = {path}");
            assert_eq!(ask(session, Manner::Simple, &set).await.error, None);
        }
        for manner in MANNERS {
            for text in [
                "select count(*) from sales",
                "select id from sales where customer_id = 7",
                "select c.title, count(*) from sales s join countries c on c.code = s.region group by 1",
                "update sales set region = 'gone' where customer_id = 7",
                "delete from countries",
            ] {
                let given = ask(&mut client, manner, text).await;
                assert_eq!(given.code(), Some("0A000"), "{path}, {manner:?}: {text}: {given:?}");
            }
            let qualified = "select count(*), min(region) from public.sales";
            let wanted = ask(&mut oracle, manner, qualified).await;
            assert_eq!(ask(&mut client, manner, qualified).await, wanted, "{path}, {manner:?}");
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn what_is_made_on_the_primary_is_looked_for_by_whoever_keeps_a_catalog() {
    /// As many as would take five times as long if one of the three were left to its own round.
    const TIMES: u32 = 8;
    const ROUND: Duration = Duration::from_secs(5);
    let coordinator = harness::fresh_database().await;
    coordinator.execute("create type mood as enum ('sad', 'ok', 'happy')").await;
    let herd = Herd::coordinated_by(&coordinator).await;
    let mut client = herd.client().await;
    is_answered(&herd).await;
    let databases = herd.pgherd.databases();
    let database = databases.iter().find(|database| database.config.name == "app").expect("it is served");
    let kept = [Some(&database.catalog), database.shard_catalog.as_ref(), database.coordinator_catalog.as_ref()];
    let kept: Vec<_> = kept.into_iter().flatten().collect();
    assert_eq!(kept.len(), 3, "the primary's, the shards', the coordinator's");
    let began = std::time::Instant::now();
    for time in 0..TIMES {
        let made = std::time::Instant::now();
        let ddl = format!("create table made_{time} (a int4)");
        assert_eq!(ask(&mut client, Manner::Simple, &ddl).await.error, None);
        harness::eventually(DEADLINE, "all three have looked", async || {
            kept.iter().all(|catalog| catalog.loaded_at().is_some_and(|at| at > made))
        })
        .await;
    }
    assert!(began.elapsed() < ROUND * TIMES / 2, "{:?} for {TIMES} changes", began.elapsed());
}

#[tokio::test]
async fn a_row_type_of_what_is_not_read_is_refused_and_so_is_the_mode_that_only_the_shards_are_in() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    for text in [
        "select json_populate_record(null::lines, '{}')::text, percentile_disc(0.5) within group (order by id) from sales",
        "select current_setting('transaction_read_only'), count(*) from sales group by 1",
        "select current_setting('Transaction_Read_Only'), percentile_disc(0.5) within group (order by id) from sales",
    ] {
        for manner in MANNERS {
            assert_eq!(ask(&mut client, manner, text).await.code(), Some("0A000"), "{text}");
        }
    }
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn a_shard_whose_logins_have_another_time_zone_is_asked_only_where_the_session_has_its_own() {
    let herd = Herd::start(2, false).await;
    let name = &herd.primary.name;
    herd.primary.execute(&format!("alter database {name} set timezone = 'Asia/Tokyo'")).await;
    let away = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let days = "select date_trunc('day', at), count(*) from sales group by 1 order by 1";
    let one = "select at from sales where customer_id = 1 order by id";
    harness::eventually(DEADLINE, "logins to the primary are others", async || {
        herd.primary.execute(away).await;
        let mut client = herd.client().await;
        let answer = ask(&mut client, Manner::Text, days).await;
        answer.error.is_some_and(|(code, text)| code == "0A000" && text.contains("timezone"))
    })
    .await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    assert_eq!(ask(&mut client, Manner::Text, one).await.code(), Some("0A000"));
    assert_eq!(ask(&mut client, Manner::Text, MEDIAN).await.code(), Some("0A000"));
    for session in [&mut oracle, &mut client] {
        assert_eq!(ask(session, Manner::Simple, "set timezone = 'Europe/Berlin'").await.error, None);
    }
    for text in [days, one, MEDIAN] {
        let wanted = ask(&mut oracle, Manner::Text, text).await;
        assert_eq!(ask(&mut client, Manner::Text, text).await, wanted, "{text}");
    }
}

#[tokio::test]
async fn of_equal_values_that_differ_every_row_sees_the_same() {
    let herd = Herd::start(2, false).await;
    for (at, database) in herd.shards.iter().chain([&herd.whole]).enumerate() {
        let rates = if at == 0 { "(1.0), (1.00)" } else { "(1.00), (1.0)" };
        let rows =
            format!("insert into countries (code, rate) select 'r' || rate, rate from (values {rates}) v (rate)");
        database.execute(&format!("alter table countries add rate numeric; {rows}")).await;
    }
    let mut client = herd.client().await;
    let all = ask(&mut client, Manner::Text, "select count(*) from sales").await.rows;
    let none = vec![vec![Some(b"0".to_vec())]];
    harness::eventually(DEADLINE, "the column is known", async || {
        ask(&mut herd.client().await, Manner::Text, "select count(rate) from countries, sales where sales.id < 0")
            .await
            .error
            .is_none()
    })
    .await;
    for condition in [
        "(select max(rate)::text from countries) = '1.00'",
        "'1.0' in (select rate::text from (select distinct rate from countries) q)",
        "(select rate::text from countries where rate is not null group by rate) = '1.00'",
        "'1.0' in (select q.r::text from (select rate r from countries union select rate from countries) q)",
    ] {
        let answer = ask(&mut client, Manner::Text, &format!("select count(*) from sales where {condition}")).await;
        assert!(answer.rows == all || answer.rows == none, "{condition}: {answer:?}");
    }
    for write in [
        "update countries set title = (select max(rate)::text from countries)",
        "insert into countries (code, rate) select distinct 'x', rate from countries",
        "update sales set label = 'x' where (select max(rate)::text from countries) = '1.00'",
    ] {
        assert_eq!(ask(&mut client, Manner::Text, write).await.code(), Some("0A000"), "{write}");
    }
    is_well(&herd, &mut client).await;
}

#[tokio::test]
async fn a_row_limit_suspends_the_portal() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    client
        .say(|out| {
            writer::parse(out, b"", b"select id from (select id from sales offset 0) s order by id", &[]);
            bind(out, "", "", &[], 0);
            writer::execute(out, b"", 3);
            writer::sync(out);
        })
        .await;
    let answer = Answer::read(&client.until_ready().await);
    assert_eq!((answer.tag.as_str(), answer.rows.len(), answer.status), ("suspended", 3, 'I'));
    is_well(&herd, &mut client).await;
}
