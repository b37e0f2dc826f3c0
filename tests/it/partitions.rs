//! Scans of a partitioned table, split over several connections that share one snapshot: every answer is that of PostgreSQL, and what
//! cannot be split is answered as if nobody had tried.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::answers::{Answer, MANNERS, Manner, ask, ask_with};
use crate::harness::wire::{Message, WireClient};
use crate::harness::{self, Database, Pgherd, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// Partitions with other orders of columns and dropped ones, two levels, a default; a table beside it; and tables that are not split.
const SCHEMA: &str = r#"
create table events (id int8 not null, kind int4, day date not null, amount numeric(12,2), note varchar(40),
  word text collate "C", ratio float8, ok bool, size int2) partition by range (day);
create table events_a (note varchar(40), gone int4, size int2, ok bool, ratio float8, word text collate "C", amount numeric(12,2),
  day date not null, kind int4, id int8 not null);
alter table events_a drop column gone;
alter table events attach partition events_a for values from ('2024-01-01') to ('2024-02-01');
create table "Events B" partition of events for values from ('2024-02-01') to ('2024-03-01') partition by list (kind);
create table events_b1 partition of "Events B" for values in (0, 1, 2);
create table events_b2 (kind int4, id int8 not null, day date not null, amount numeric(12,2), note varchar(40),
  word text collate "C", ratio float8, ok bool, size int2);
alter table "Events B" attach partition events_b2 default;
create table events_c partition of events for values from ('2024-03-01') to ('2024-04-01');
create table events_rest partition of events default;
insert into events select n, nullif(n % 7, 6), '2023-12-20'::date + n % 130, (n * 7919 % 100000) / 100.0, 'note ' || n % 50,
  chr(97 + n % 26) || n % 11, n % 32 / 4.0, n % 3 = 0, n % 100 from generate_series(1, 4000) n;
insert into events (id, day) values (4001, '2024-01-05'), (4002, '2024-02-05'), (4003, '2024-09-05');
create table kinds (code int4 primary key, name text);
insert into kinds select n, 'kind ' || n from generate_series(0, 5) n;
create table empty_parts (a int4) partition by list (a);
create table empty_parts_1 partition of empty_parts for values in (1);
create table empty_parts_2 partition of empty_parts for values in (2);
analyze;
"#;

const SPLIT: &str = "parallel_partitions = 4\nparallel_partitions_from = 1\n";

/// Statements that are split.
const SPLIT_ONES: &[&str] = &[
    "select count(*) from events",
    "select count(*), count(kind), sum(amount), avg(amount), min(amount), max(word), sum(id), avg(id), sum(kind) from events",
    "select sum(ratio), avg(ratio), min(ratio), max(ratio), bool_and(ok), bool_or(ok), bit_or(size), sum(size) from events",
    "select kind, count(*), avg(amount) from events group by kind order by kind",
    "select kind, ok, sum(amount) from public.events e group by e.kind, ok order by 1 nulls first, 2",
    "select word, count(*) as n from events where amount > 500 group by word having count(*) > 3 order by word desc",
    "select distinct kind, ok from events order by kind, ok",
    "select distinct word from events",
    "select count(*) from events where note like 'note 1%' and ok",
    "select id, day, amount, note from events order by id limit 10",
    "select id, day from events order by id desc offset 5 limit 7",
    "select id, kind, word from events order by word, id limit 20",
    "select * from events where amount > 990 and note is not null",
    "select e.*, e.amount * 2 as twice from only_events e where e.size < 2",
    "select note, id from events where ratio < 0.5 order by id",
    "select max(id) filter (where ok), min(day) from events",
    "select k.name, count(*), sum(e.amount) from events e join kinds k on k.code = e.kind group by k.name order by count(*), 3",
    "select count(*) from events e left join kinds k on code = e.kind where k.name is null",
    "select count(*) from events where size in (select code from kinds where name > 'kind 2')",
    "select x.twice, count(*) from (select size * 2 as twice from events where ok) x group by x.twice order by 1",
    "select count(*) from events where amount < -1",
    "select kind from events where amount < -1",
    "select sum(amount) from events where amount < -1 group by kind",
    "select count(*) as \"events\" from \"events\" /* a comment */ -- another\n where ok;",
];

/// Statements that are not, and why.
const PLAIN_ONES: &[(&str, &str)] = &[
    ("select count(*) from events where day = '2024-01-15'", "partitions-key"),
    ("select count(*) from events where day >= '2024-01-15' and ok", "partitions-key"),
    ("select count(*) from events where kind = 3", "partitions-key"),
    ("select * from events where id = 17", "partitions-lookup"),
    ("select id from events where ok limit 3", "partitions-limit"),
    ("select count(distinct kind) from events", "partitions-shape"),
    ("select tableoid::regclass, count(*) from events group by 1 order by 1", "partitions-shape"),
    ("select count(*) from only events", "partitions-shape"),
    ("select count(ctid) from events", "partitions-shape"),
    ("select count(e) from events e", "partitions-row"),
    ("select array_agg(id order by id) from events where size = 3 and ok", "partitions-shape"),
    ("select count(*) from events a join events b on a.id = b.id", "partitions-shape"),
    ("select count(*) from events where amount > (select avg(amount) from events)", "partitions-shape"),
    ("select sum(n) from (select count(*) as n from events group by kind) x", "partitions-shape"),
    ("with e as (select * from events) select count(*) from e", "partitions-shape"),
    ("select rank() over (order by id), id from events where size < 5 order by id", "partitions-shape"),
    ("select id from events where size < 1 union select code from kinds", "partitions-shape"),
    ("select count(*) from events where note <> current_user", "partitions-shape"),
    ("select count(*) from events, empty_parts", "partitions-several"),
    ("select id from events order by id for share limit 1", "partitions-not-plain"),
    ("select count(*) from empty_parts", "partitions-small"),
    ("select count(*) from kinds", "read"),
    ("select 1 as x", "read"),
];

async fn herd(toml: &str) -> (Database, Pgherd) {
    let database = harness::fresh_database().await;
    database.execute(SCHEMA).await;
    let pgherd = over(&database, toml).await;
    (database, pgherd)
}

async fn over(database: &Database, toml: &str) -> Pgherd {
    Pgherd::over(database, &format!("{toml}[cache]\nenabled = false\n")).await
}

/// What EXPLAIN (ROUTE) says of a property.
async fn route(client: &mut WireClient, text: &str, property: &str) -> Option<String> {
    let answer = ask(client, Manner::Simple, &format!("explain (route) {text}")).await;
    let at = answer.column(0).iter().position(|name| name.as_deref() == Some(property))?;
    answer.column(1)[at].clone()
}

/// Waits until a statement is seen to go that way.
async fn goes(client: &mut WireClient, text: &str, reason: &str) {
    for _ in 0..2000 {
        if route(client, text, "reason").await.as_deref() == Some(reason) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let said = ask(client, Manner::Simple, &format!("explain (route) {text}")).await;
    panic!("{text}: {:?} {:?} and not {reason}", said.column(0), said.column(1));
}

async fn legs(pgherd: &Pgherd) -> f64 {
    pgherd.metric("pgherd_fanout_legs_total", "").await
}

async fn straight(database: &Database) -> WireClient {
    WireClient::login(database.port, "postgres", &database.name).await
}

fn in_order(text: &str, answer: Answer) -> Answer {
    if text.contains("order by") && !text.contains("twice from") { answer } else { answer.sorted() }
}

/// The messages' bytes but for rows, which may come in any order: what describes the columns must be equal to the last bit.
fn around_rows(messages: &[Message]) -> Vec<(u8, Vec<u8>)> {
    messages.iter().filter(|message| message.tag != b'D').map(|message| (message.tag, message.body.clone())).collect()
}

#[tokio::test]
async fn answers_are_put_together_from_partitions_and_equal_postgresqls() {
    let (database, pgherd) = herd(SPLIT).await;
    let (mut oracle, mut client) = (straight(&database).await, pgherd.wire(&database.name).await);
    goes(&mut client, SPLIT_ONES[0], "partitions").await;
    for text in SPLIT_ONES {
        let text = text.replace("only_events", "events");
        assert_eq!(route(&mut client, &text, "reason").await.as_deref(), Some("partitions"), "{text}");
        for manner in MANNERS {
            let before = legs(&pgherd).await;
            let wanted = in_order(&text, ask(&mut oracle, manner, &text).await);
            assert_eq!(wanted.error, None, "{text}");
            assert_eq!(in_order(&text, ask(&mut client, manner, &text).await), wanted, "{text} {manner:?}");
            assert_eq!(legs(&pgherd).await - before, 4.0, "{text} {manner:?}");
        }
        let (wanted, got) = (oracle.query(&text).await, client.query(&text).await);
        assert_eq!(around_rows(&got), around_rows(&wanted), "{text}");
    }
    assert_eq!(route(&mut client, SPLIT_ONES[0], "plan").await.as_deref(), Some("fan-out"));
    assert!(route(&mut client, SPLIT_ONES[0], "leg 3").await.is_some_and(|leg| leg.contains("partitions")));
    assert!(pgherd.metric("pgherd_statements_total", "plan=\"fanout\"").await > 50.0);
    // Nothing is left behind: the same connections serve on.
    assert_eq!(
        ask(&mut client, Manner::Simple, "show transaction_isolation").await.column(0)[0].as_deref(),
        Some("read committed")
    );
}

#[tokio::test]
async fn what_is_not_split_is_answered_all_the_same() {
    let (database, pgherd) = herd(SPLIT).await;
    let (mut oracle, mut client) = (straight(&database).await, pgherd.wire(&database.name).await);
    goes(&mut client, SPLIT_ONES[0], "partitions").await;
    let before = legs(&pgherd).await;
    for &(text, reason) in PLAIN_ONES {
        assert_eq!(route(&mut client, text, "reason").await.as_deref(), Some(reason), "{text}");
        for manner in MANNERS {
            let wanted = in_order(text, ask(&mut oracle, manner, text).await);
            assert_eq!(in_order(text, ask(&mut client, manner, text).await), wanted, "{text} {manner:?}");
        }
    }
    // In a transaction the session's own server answers.
    for text in [
        "begin",
        "select count(*) from events",
        "insert into events values (5000, 1, '2024-03-03')",
        "select count(*) from events",
        "rollback",
    ] {
        let (wanted, got) =
            (ask(&mut oracle, Manner::Simple, text).await, ask(&mut client, Manner::Simple, text).await);
        assert_eq!(got.rows, wanted.rows, "{text}");
    }
    assert_eq!(legs(&pgherd).await, before);
}

#[tokio::test]
async fn parameters_are_read_as_postgresql_reads_them() {
    let (database, pgherd) = herd(SPLIT).await;
    let (mut oracle, mut client) = (straight(&database).await, pgherd.wire(&database.name).await);
    goes(&mut client, SPLIT_ONES[0], "partitions").await;
    let before = legs(&pgherd).await;
    let mut asked = 0.0;
    for (text, values) in [
        ("select count(*), sum(amount + $1) from events where size < $2", &[Some("1.5"), Some("40")][..]),
        ("select kind, sum(size) from events where note like $1 group by kind order by kind", &[Some("note 2%")]),
        ("select id, $2::text from events where word > $1 order by id limit 9", &[Some("k"), None]),
        ("select count(*) from events where size < $1", &[None]),
        ("select id from events order by id limit $1 offset $2", &[Some("3"), Some("4")]),
    ] {
        for manner in [Manner::Text, Manner::Binary, Manner::Prepared] {
            let wanted = in_order(text, ask_with(&mut oracle, manner, text, values).await);
            assert_eq!(wanted.error, None, "{text}");
            assert_eq!(in_order(text, ask_with(&mut client, manner, text, values).await), wanted, "{text} {manner:?}");
            asked += 4.0;
        }
    }
    assert_eq!(legs(&pgherd).await - before, asked);
}

#[tokio::test]
async fn mistakes_are_told_as_postgresql_tells_them() {
    let (database, pgherd) = herd(SPLIT).await;
    let (mut oracle, mut client) = (straight(&database).await, pgherd.wire(&database.name).await);
    goes(&mut client, SPLIT_ONES[0], "partitions").await;
    for text in [
        "select sum(1 / (size - 5)) from events",
        "select count(*), nothing from events group by 2",
        "select count(nothing) from events",
        "select id, count(*) from events",
        "select note::int4 from events where ok order by id",
        "select kind, count(*) from events where note::int4 > 1 group by kind",
        "select count(*) from events where missing.a > 1",
        "select count(*) from events where size < 'x'",
    ] {
        for manner in MANNERS {
            let (wanted, got) = (ask(&mut oracle, manner, text).await, ask(&mut client, manner, text).await);
            assert!(wanted.error.is_some(), "{text}");
            assert_eq!((got.error, got.status), (wanted.error, wanted.status), "{text} {manner:?}");
        }
        let position = |answer: Vec<Message>| answer.iter().find(|it| it.tag == b'E').and_then(|it| it.field(b'P'));
        assert_eq!(position(client.query(text).await), position(oracle.query(text).await), "{text}");
    }
    assert_eq!(
        ask(&mut client, Manner::Text, "select count(*) from events").await.column(0)[0].as_deref(),
        Some("4003")
    );
}

#[tokio::test]
async fn partitions_come_and_go_between_plans() {
    let (database, pgherd) = herd(SPLIT).await;
    let (mut oracle, mut client) = (straight(&database).await, pgherd.wire(&database.name).await);
    let text = "select count(*), sum(id) from events";
    goes(&mut client, text, "partitions").await;
    for change in [
        "alter table events detach partition events_c",
        "alter table events attach partition events_c for values from ('2024-03-01') to ('2024-04-01')",
        "create table events_d partition of events for values from ('2025-01-01') to ('2025-02-01');
         insert into events select n, 1, '2025-01-07' from generate_series(1, 100) n",
        "begin; alter table events_b1 rename to was_b1; create table events_b1 (like was_b1); insert into events_b1 select * from was_b1 limit 7; commit",
        "alter table events rename column size to extent",
        "alter table events add column more int4 default 7",
        "drop table events_d",
        "truncate events_c",
    ] {
        // Straight to the server: pgherd has heard nothing of it when the next statement comes.
        database.execute(change).await;
        for text in [text, "select * from events where id < 30"] {
            let wanted = ask(&mut oracle, Manner::Simple, text).await.sorted();
            assert_eq!(ask(&mut client, Manner::Simple, text).await.sorted(), wanted, "{text} after {change}");
        }
    }
    database.execute("analyze").await;
    goes(&mut client, text, "partitions").await;
    let before = legs(&pgherd).await;
    let wanted = ask(&mut oracle, Manner::Simple, text).await;
    eventually(PATIENCE, "the new partitions are read in parts", || async {
        let mut client = pgherd.wire(&database.name).await;
        assert_eq!(ask(&mut client, Manner::Simple, text).await, wanted);
        legs(&pgherd).await > before
    })
    .await;
}

#[tokio::test]
async fn all_legs_see_one_moment() {
    let database = harness::fresh_database().await;
    database
        .execute(
            "create table accounts (id int4, side int4, money int8) partition by list (side);
             create table left_side partition of accounts for values in (0);
             create table right_side partition of accounts for values in (1);
             create table third_side partition of accounts for values in (2);
             insert into accounts select n, n % 3, 100 from generate_series(1, 300) n; analyze",
        )
        .await;
    let pgherd = over(&database, SPLIT).await;
    let mut client = pgherd.wire(&database.name).await;
    let text = "select count(*), sum(money) from accounts";
    goes(&mut client, text, "partitions").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (stop, database) = (Arc::clone(&stop), database.clone());
            tokio::spawn(async move {
                let client = database.client().await;
                let mut moved = 0;
                while !stop.load(Ordering::Relaxed) {
                    let (from, to) = (writer * 100 + 1 + moved % 100, writer * 100 + 1 + (moved * 7 + 3) % 100);
                    // Money moves, and so do rows from one partition to another.
                    let text = format!(
                        "begin; update accounts set money = money - 7, side = (side + 1) % 3 where id = {from};
                         update accounts set money = money + 7 where id = {to}; commit"
                    );
                    client.batch_execute(&text).await.expect("moved");
                    moved += 1;
                }
                moved
            })
        })
        .collect();
    let before = legs(&pgherd).await;
    for round in 0..200 {
        let manner = MANNERS[round % MANNERS.len()];
        let answer = ask(&mut client, manner, text).await;
        assert_eq!(answer.error, None);
        let wanted = if manner == Manner::Simple || manner == Manner::Text {
            vec![vec![Some(b"300".to_vec()), Some(b"30000".to_vec())]]
        } else {
            continue;
        };
        assert_eq!(answer.rows, wanted, "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.expect("it ran") > 0);
    }
    assert!(legs(&pgherd).await - before >= 300.0, "most of them were split");
}

#[tokio::test]
async fn rights_on_the_table_are_what_counts() {
    let (database, role) = (harness::fresh_database().await, harness::unique("reader"));
    database.execute(SCHEMA).await;
    database
        .execute(&format!("create role {role} login; grant select on events to {role}; create role {role}_leaf login; grant select on events_a, events_b1, events_b2, events_c, events_rest, \"Events B\" to {role}_leaf"))
        .await;
    let name = &database.name;
    let users: String = [&role, &format!("{role}_leaf")]
        .map(|user| format!("[[user]]\nname = \"{user}\"\nauth = \"trust\"\n"))
        .concat();
    let pgherd = Pgherd::start(&format!(
        "[[database]]\nname = \"{name}\"\nprimary = \"{}\"\n{SPLIT}[cache]\nenabled = false\n[[user]]\nname = \"postgres\"\nauth = \"trust\"\n{users}",
        database.address()
    ))
    .await;
    let text = "select count(*) from events";
    let mut owner = pgherd.wire(name).await;
    goes(&mut owner, text, "partitions").await;
    // Rights on the table alone: PostgreSQL does not ask for more, and it is remembered.
    let mut client = WireClient::login(pgherd.port, &role, name).await;
    for manner in MANNERS {
        let answer = ask(&mut client, manner, text).await;
        assert_eq!((answer.error, answer.rows.len()), (None, 1));
    }
    goes(&mut client, text, "partitions-refused").await;
    goes(&mut owner, text, "partitions").await;
    // Rights on all partitions, but none on the table.
    let mut client = WireClient::login(pgherd.port, &format!("{role}_leaf"), name).await;
    for manner in MANNERS {
        let answer = ask(&mut client, manner, text).await;
        assert_eq!(answer.error, Some(("42501".into(), "permission denied for table events".into())));
    }
    // The owner may read in another's name.
    for (set, code) in [(format!("set role {role}"), None), (format!("set role {role}_leaf"), Some("42501"))] {
        ask(&mut owner, Manner::Simple, &set).await;
        assert_eq!(ask(&mut owner, Manner::Text, text).await.code(), code, "{set}");
    }
    // Row-level security, on the table or on a partition, switched on behind pgherd's back.
    let oracle = database.client_as(&role).await;
    for change in [
        "alter table events enable row level security",
        &format!("create policy p on events for select to {role} using (ok)"),
        "alter table events disable row level security; alter table events_c enable row level security",
    ] {
        database.execute(&format!("grant select on all tables in schema public to {role}; {change}")).await;
        let mut client = WireClient::login(pgherd.port, &role, name).await;
        let wanted: i64 = oracle.query_one(text, &[]).await.expect("counted").get(0);
        let got = ask(&mut client, Manner::Simple, text).await;
        assert_eq!(got.column(0)[0].as_deref(), Some(wanted.to_string().as_str()), "{change}");
    }
}

#[tokio::test]
async fn nobody_is_waited_for() {
    let (database, pgherd) = herd(&format!("{SPLIT}pool = {{ max_connections = 2 }}\n")).await;
    let (mut client, mut other) = (pgherd.wire(&database.name).await, pgherd.wire(&database.name).await);
    let text = "select count(*) from events";
    goes(&mut client, text, "partitions").await;
    let counted = Some("4003".to_owned());
    eventually(PATIENCE, "both connections are used", || async {
        let mut client = pgherd.wire(&database.name).await;
        assert_eq!(ask(&mut client, Manner::Simple, text).await.column(0)[0], counted);
        legs(&pgherd).await > 0.0
    })
    .await;
    let before = legs(&pgherd).await - 2.0;
    // With one connection in somebody's hands the other does it alone.
    ask(&mut other, Manner::Simple, "begin").await;
    ask(&mut other, Manner::Simple, "select 1").await;
    for manner in MANNERS {
        assert_eq!(ask(&mut client, manner, text).await.error, None);
    }
    assert_eq!(legs(&pgherd).await - before, 2.0);
    ask(&mut other, Manner::Simple, "commit").await;
    assert_eq!(ask(&mut client, Manner::Simple, text).await.error, None);
    assert_eq!(legs(&pgherd).await - before, 4.0);
}

#[tokio::test]
async fn the_cache_goes_first_and_fills_from_one_connection() {
    let database = harness::fresh_database().await;
    database.execute(SCHEMA).await;
    let pgherd = Pgherd::over(&database, &format!("{SPLIT}[cache]\nenabled = true\n")).await;
    let mut client = pgherd.wire(&database.name).await;
    let text = "select count(*) from events";
    let uncached = format!("/* pgherd: cache=off */ {text}");
    goes(&mut client, &uncached, "partitions").await;
    assert_eq!(route(&mut client, text, "plan").await.as_deref(), Some("cached"));
    for manner in MANNERS {
        for _ in 0..2 {
            assert_eq!(ask(&mut client, manner, text).await.error, None);
        }
    }
    assert_eq!(legs(&pgherd).await, 0.0);
    ask(&mut client, Manner::Simple, "insert into events values (9000, 1, '2024-03-03')").await;
    assert_eq!(ask(&mut client, Manner::Simple, &uncached).await.column(0)[0].as_deref(), Some("4004"));
    assert_eq!(ask(&mut client, Manner::Simple, text).await.column(0)[0].as_deref(), Some("4004"));
    assert!(legs(&pgherd).await > 0.0);
}

#[tokio::test]
async fn who_waits_for_the_table_is_waited_for_by_one_connection_alone() {
    let (database, pgherd) = herd(SPLIT).await;
    let mut client = pgherd.wire(&database.name).await;
    let text = "select count(*) from events";
    goes(&mut client, text, "partitions").await;
    for locked in ["events", "events_c"] {
        let (holder, waiter, look) = (database.client().await, database.client().await, database.client().await);
        holder.batch_execute(&format!("begin; lock table {locked} in access share mode")).await.expect("locked");
        let waiting = tokio::spawn(async move { waiter.batch_execute("begin; truncate events_c; rollback").await });
        let waits = "select count(*) from pg_locks where not granted and database = (select oid from pg_database where datname = current_database())";
        let counts = |count: i64| look.query_one(waits, &[]).then_is(count);
        eventually(PATIENCE, "somebody waits for the table", || counts(1)).await;
        let asked = {
            let mut client = pgherd.wire(&database.name).await;
            tokio::spawn(async move { ask(&mut client, Manner::Text, text).await })
        };
        if locked == "events_c" {
            eventually(PATIENCE, "the reader queues behind", || counts(2)).await;
        }
        holder.batch_execute("commit").await.expect("given free");
        let answer = tokio::time::timeout(PATIENCE, asked).await.expect("in time").expect("it ran");
        assert_eq!(answer.column(0)[0].as_deref(), Some("4003"));
        let _ = tokio::time::timeout(PATIENCE, waiting).await.expect("in time");
    }
}

/// Whether a query's one number is that.
trait ThenIs {
    async fn then_is(self, count: i64) -> bool;
}

impl<F: Future<Output = Result<tokio_postgres::Row, tokio_postgres::Error>>> ThenIs for F {
    async fn then_is(self, count: i64) -> bool {
        self.await.expect("a row").get::<_, i64>(0) == count
    }
}

#[tokio::test]
async fn cancels_and_timeouts_reach_every_leg() {
    let (database, pgherd) = herd(&format!("{SPLIT}pool = {{ query_timeout = \"1500ms\" }}\n")).await;
    let look = database.client().await;
    // Slow by what it computes: functions that sleep are not split.
    let slow = "select sum(octet_length(repeat(md5(repeat(e.note, 200000 + size)), 2))) from events e, kinds k, kinds l, kinds m";
    let mut client = pgherd.wire(&database.name).await;
    goes(&mut client, slow, "partitions").await;
    let running = "select count(*) from pg_stat_activity where datname = current_database() and state = 'active' and query like '%repeat%' and pid <> pg_backend_pid()";
    let is = |count: i64| look.query_one(running, &[]).then_is(count);
    client.say(|out| pgherd::wire::writer::query(out, slow.as_bytes())).await;
    eventually(PATIENCE, "four legs run", || is(4)).await;
    client.cancel().await;
    let answer = Answer::read(&client.until_ready().await);
    assert_eq!(answer.error, Some(("57014".into(), "canceling statement due to user request".into())));
    eventually(PATIENCE, "none is left", || is(0)).await;
    ask(&mut client, Manner::Simple, "set statement_timeout = '300ms'").await;
    let answer = ask(&mut client, Manner::Text, slow).await;
    assert_eq!(answer.error, Some(("57014".into(), "canceling statement due to statement timeout".into())));
    ask(&mut client, Manner::Simple, "reset statement_timeout").await;
    let answer = ask(&mut client, Manner::Text, slow).await;
    assert_eq!(answer.error, Some(("57014".into(), "canceling statement due to pool.query_timeout".into())));
    // Who leaves takes its legs along.
    client.say(|out| pgherd::wire::writer::query(out, slow.as_bytes())).await;
    eventually(PATIENCE, "four legs run", || is(4)).await;
    client.reset();
    eventually(PATIENCE, "none is left", || is(0)).await;
    let mut client = pgherd.wire(&database.name).await;
    assert_eq!(ask(&mut client, Manner::Text, "select count(*) from events").await.error, None);
}

#[tokio::test]
async fn settings_hold_on_every_leg_and_answers_may_be_large() {
    let (database, pgherd) = herd(SPLIT).await;
    let (mut oracle, mut client) = (straight(&database).await, pgherd.wire(&database.name).await);
    goes(&mut client, SPLIT_ONES[0], "partitions").await;
    for set in ["set datestyle = 'german'", "set extra_float_digits = 0", "set timezone = 'Asia/Tokyo'"] {
        for client in [&mut oracle, &mut client] {
            client.query(set).await;
        }
        let text = "select day, ratio, day::timestamptz as moment, count(*) from events group by 1, 2, 3";
        let text = if set.contains("timezone") { text } else { "select day, ratio, id from events where size > 3" };
        let wanted = ask(&mut oracle, Manner::Text, text).await.sorted();
        assert_eq!(ask(&mut client, Manner::Text, text).await.sorted(), wanted, "{set}");
    }
    // Larger than what is held back.
    let text = "select e.*, repeat(e.note, 20) as long from events e order by e.id";
    for manner in MANNERS {
        let wanted = ask(&mut oracle, manner, text).await;
        assert!(wanted.rows.iter().flatten().flatten().map(Vec::len).sum::<usize>() > 500_000);
        assert!(ask(&mut client, manner, text).await == wanted, "{manner:?}");
    }
    let text = format!("{text} limit 3900");
    let wanted = ask(&mut oracle, Manner::Simple, &text).await;
    assert!(ask(&mut client, Manner::Simple, &text).await == wanted);
    goes(&mut client, &text, "partitions-refused").await;
}

#[tokio::test]
async fn nothing_is_split_unless_it_is_asked_for() {
    for toml in ["", "parallel_partitions_from = 1\n", "parallel_partitions = 4\n"] {
        let (database, pgherd) = herd(toml).await;
        let mut client = pgherd.wire(&database.name).await;
        if toml.contains("partitions =") {
            goes(&mut client, SPLIT_ONES[0], "partitions-small").await;
        }
        assert_eq!(ask(&mut client, Manner::Text, SPLIT_ONES[0]).await.column(0)[0].as_deref(), Some("4003"));
        assert_eq!(legs(&pgherd).await, 0.0);
    }
    let (database, pgherd) = herd(SPLIT).await;
    let mut client = pgherd.wire(&database.name).await;
    let hinted = format!("/* pgherd: route=primary */ {}", SPLIT_ONES[0]);
    goes(&mut client, SPLIT_ONES[0], "partitions").await;
    assert_eq!(route(&mut client, &hinted, "reason").await.as_deref(), Some("hint"));
}

#[tokio::test]
async fn foreign_and_temporary_tables_are_left_to_postgresql() {
    let (database, pgherd) = herd(SPLIT).await;
    let (mut oracle, mut client) = (straight(&database).await, pgherd.wire(&database.name).await);
    goes(&mut client, SPLIT_ONES[0], "partitions").await;
    // A temporary table of the same name is what the client means.
    client.query("create temp table events (id int4); insert into events values (1)").await;
    assert_eq!(ask(&mut client, Manner::Simple, SPLIT_ONES[0]).await.column(0)[0].as_deref(), Some("1"));
    client.query("drop table pg_temp.events").await;
    goes(&mut client, SPLIT_ONES[0], "partitions").await;
    // A table further ahead in search_path, made behind pgherd's back.
    database
        .execute("create schema ahead; create table ahead.kinds (kind int4); create table ahead.other (a int4)")
        .await;
    client.query("set search_path = ahead, public").await;
    oracle.query("set search_path = ahead, public").await;
    database.execute("create table ahead.events (id int4); insert into ahead.events values (1), (2)").await;
    let wanted = ask(&mut oracle, Manner::Text, SPLIT_ONES[0]).await;
    assert_eq!(wanted.column(0)[0].as_deref(), Some("2"));
    assert_eq!(ask(&mut client, Manner::Text, SPLIT_ONES[0]).await, wanted);
    client.query("reset search_path").await;
    // A foreign table among the partitions.
    database
        .execute(&format!(
            "create extension postgres_fdw; create server loop foreign data wrapper postgres_fdw options (port '{}', host '127.0.0.1', dbname '{}');
             create user mapping for postgres server loop options (user 'postgres');
             create table far_off (like public.events); insert into far_off (id, day) values (1, '2026-01-01');
             create foreign table public.events_far partition of public.events for values from ('2026-01-01') to ('2027-01-01')
             server loop options (table_name 'far_off')",
            database.port, database.name
        ))
        .await;
    let wanted = ask(&mut oracle, Manner::Text, "select count(*) from public.events").await;
    assert_eq!(ask(&mut client, Manner::Text, "select count(*) from public.events").await, wanted);
    goes(&mut client, "select count(*) from public.events", "partitions-kind").await;
    assert_eq!(ask(&mut client, Manner::Text, "select count(*) from public.events").await, wanted);
}
