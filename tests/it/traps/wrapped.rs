//! Statements that hold a query over several shards: COPY of its rows, cursors over them, EXPLAIN of its plan.

use super::herd::Herd;
use crate::answers::{Answer, MANNERS, Manner, ask, ask_with};
use crate::harness::wire::{Message, WireClient, rows, tags};

/// Queries for one shard, for streams and for the coordinator.
const QUERIES: [&str; 6] = [
    "select id, region, qty, price, day, at, span, list, raw, made from sales order by id",
    "select region, count(*), sum(price), avg(qty) from sales group by region order by region",
    "select s.id, l.n, l.sku from sales s join lines l on l.sale_id = s.id where s.qty > 2 order by 1, 2, 3",
    "select code, title from public.countries c order by code",
    "select id, \"region\" from public.sales where customer_id = 7 order by id",
    "select row_number() over (order by id), 'a,b\"c' || chr(10) || region, null from sales order by id",
];

/// The bytes of COPY's rows, and the messages around them.
fn copied(messages: &[Message]) -> (String, Vec<u8>) {
    let mut shape = tags(messages);
    while shape.contains("dd") {
        shape = shape.replace("dd", "d");
    }
    let parts =
        |tag| messages.iter().filter(move |message| message.tag == tag).flat_map(|message| message.body.clone());
    (shape, parts(b'H').chain(parts(b'd')).chain(parts(b'C')).collect())
}

#[tokio::test]
async fn copy_of_a_query_gives_the_bytes_of_one_postgresql() {
    let herd = Herd::start(3, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for settings in ["set datestyle to 'sql, dmy'; set extra_float_digits to 1", "reset all"] {
        for one in settings.split(';') {
            oracle.query(one).await;
            client.query(one).await;
        }
        for query in QUERIES {
            for options in
                ["", "(format csv, header, force_quote *)", "with (format binary)", "csv delimiter '|' null '~'"]
            {
                let text = format!("copy ({query}) to stdout {options};");
                let (wanted, given) = (oracle.query(&text).await, client.query(&text).await);
                assert!(tags(&wanted).starts_with('H'), "{text}: {wanted:?}");
                assert_eq!(copied(&given), copied(&wanted), "{text}");
            }
        }
    }
    for manner in [Manner::Text, Manner::Binary, Manner::Prepared] {
        let text = "copy (select id from sales order by id) to stdout";
        let (wanted, given) = (ask(&mut oracle, manner, text).await, ask(&mut client, manner, text).await);
        assert_eq!(given, wanted, "{manner:?}");
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn copy_of_a_table_gives_the_rows_of_all_shards() {
    let herd = Herd::start(3, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    let sorted = |messages: &[Message]| {
        let data = messages.iter().filter(|message| message.tag == b'd').flat_map(|message| message.body.clone());
        let text = String::from_utf8(data.collect()).expect("text");
        let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for text in [
        "copy sales to stdout",
        "copy public.sales (id, \"region\", qty) to stdout (format csv, force_quote *)",
        "copy lines to stdout with csv delimiter '|'",
        "copy nothing to stdout",
        "copy countries to stdout (format csv, header)",
    ] {
        let (wanted, given) = (oracle.query(text).await, client.query(text).await);
        assert!(tags(&wanted).starts_with('H'), "{text}: {wanted:?}");
        assert_eq!(sorted(&given), sorted(&wanted), "{text}");
        assert_eq!(copied(&given).0, copied(&wanted).0, "{text}");
    }
    for text in ["copy sales (no_such) to stdout", "copy sales to stdout (format nonsense)"] {
        let (wanted, given) = (Answer::read(&oracle.query(text).await), Answer::read(&client.query(text).await));
        // Of a query PostgreSQL says "column ... does not exist", of a table "column ... of relation ... does not exist".
        let code = |answer: &Answer| answer.error.as_ref().map(|error| error.0.clone());
        assert!(wanted.error.is_some(), "{text}");
        assert_eq!(code(&given), code(&wanted), "{text}");
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_copy_that_fails_or_is_refused_sends_no_rows() {
    let herd = Herd::start(2, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for text in [
        "copy (select 1 / (id - id) from sales) to stdout",
        "copy (select no_such from sales) to stdout (format csv)",
        "copy (select id from sales) to stdout (format nonsense)",
        "copy (select id from sales where $1) to stdout",
    ] {
        let (wanted, given) = (oracle.query(text).await, client.query(text).await);
        let (wanted, given) = (Answer::read(&wanted), Answer::read(&given));
        assert!(wanted.error.is_some(), "{text}");
        assert!(given.error == wanted.error || given.code() == Some("0A000"), "{text}: {given:?} {wanted:?}");
        assert_eq!((given.rows.len(), given.status), (0, 'I'));
    }
    for text in [
        "copy sales to '/tmp/x'",
        "copy (delete from sales returning id) to stdout",
        "copy (select id from sales) to '/tmp/x'",
        "copy (select id from sales for update) to stdout",
        "copy (select s.id from sales s, local_notes) to stdout",
    ] {
        assert_eq!(Answer::read(&client.query(text).await).code(), Some("0A000"), "{text}");
    }
    herd.comes_to_rest().await;
}

async fn both(oracle: &mut WireClient, client: &mut WireClient, manner: Manner, text: &str) -> Answer {
    let wanted = ask(oracle, manner, text).await;
    let given = ask(client, manner, text).await;
    assert_eq!(given, wanted, "{manner:?}: {text}");
    given
}

#[tokio::test]
async fn cursors_move_as_in_one_postgresql() {
    let herd = Herd::start(3, false).await;
    for manner in MANNERS {
        let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
        for text in [
            "begin",
            "declare c scroll cursor for select id, region, price, cash from public.sales order by id",
            "fetch 3 from c",
            "fetch backward 2 from c",
            "move forward 5 in c",
            "fetch absolute 2 from c",
            "fetch last from c",
            "declare d binary cursor for select s.id, l.n from sales s join lines l on l.sale_id = s.id order by 1, 2",
            "fetch 4 from d",
            "fetch prior from c",
            "savepoint x_1",
            "declare e no scroll cursor for select count(*), max(region) from sales",
            "fetch all from e",
            "rollback to savepoint x_1",
            "fetch 1 from d",
            "close d",
            "select count(*) from sales",
            "fetch all from c",
            "commit",
        ] {
            both(&mut oracle, &mut client, manner, text).await;
        }
        for text in ["fetch 1 from c", "declare c cursor for select id from sales"] {
            assert_eq!(both(&mut oracle, &mut client, manner, text).await.status, 'I');
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_cursor_is_as_old_as_its_declaration_and_ends_with_its_transaction() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    client.query("begin read only").await;
    client.query("declare c cursor for select count(*) from slow").await;
    let before = rows(&herd.oracle().await.query("select count(*) from slow").await);
    for shard in &herd.shards {
        shard.execute("insert into slow select -g from generate_series(1, 10) g").await;
    }
    assert_eq!(rows(&client.query("fetch all from c").await), before);
    assert_ne!(
        rows(&client.query("select count(*) from slow").await),
        before,
        "READ COMMITTED sees what others commit"
    );
    let written = Answer::read(&client.query("create temporary table x (a int)").await);
    assert_eq!(written.code(), Some("25006"), "the transaction is READ ONLY: {written:?}");
    client.query("rollback").await;
    client.query("begin").await;
    assert_eq!(Answer::read(&client.query("fetch all from c").await).code(), Some("34000"));
    client.query("rollback").await;
    let left = herd.primary.client().await;
    let count = "select count(*) from pg_class where relpersistence = 't' and relkind = 'r'";
    assert_eq!(left.query_one(count, &[]).await.expect("tables").get::<_, i64>(0), 0);
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn mistakes_in_a_declaration_fail_its_transaction_and_no_more() {
    let herd = Herd::start(2, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for mistake in [
        "declare c cursor for select no_such from sales",
        "declare c cursor for select id from sales where id = 'x'",
        "declare first_one cursor for select id from sales",
    ] {
        for text in [
            "begin",
            "declare first_one cursor for select id from sales where 1 / (id - 3) is not null order by id",
            "savepoint s_1",
            mistake,
            "fetch 1 from first_one",
            "rollback to s_1",
            "fetch 2 from first_one",
            "fetch 1 from first_one",
            "commit",
            "select 1",
        ] {
            let wanted = ask(&mut oracle, Manner::Simple, text).await;
            let given = ask(&mut client, Manner::Simple, text).await;
            assert_eq!((given.error, given.rows, given.status), (wanted.error, wanted.rows, wanted.status), "{text}");
        }
    }
    for (before, text) in [
        ("begin", "declare c cursor with hold for select id from sales"),
        ("begin; insert into local_notes values (7)", "declare c cursor for select id from sales for update"),
        ("begin isolation level repeatable read", "declare c cursor for select id from sales"),
    ] {
        client.query(before).await;
        assert_eq!(Answer::read(&client.query(text).await).code(), Some("0A000"), "{text}");
        assert_eq!(Answer::read(&client.query("rollback").await).status, 'I');
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn explain_shows_what_runs_where() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    let lines = |answer: &Answer| {
        assert_eq!((answer.error.as_ref(), answer.tag.as_str()), (None, "EXPLAIN"), "{answer:?}");
        assert_eq!(
            answer.columns.iter().map(|column| (column.0.as_str(), column.1)).collect::<Vec<_>>(),
            [("QUERY PLAN", 25)]
        );
        answer.column(0).into_iter().flatten().collect::<Vec<_>>().join("\n")
    };
    for manner in MANNERS {
        let plan =
            lines(&ask(&mut client, manner, "explain (costs off) select id from sales order by id limit 3").await);
        for part in [
            "Fan-Out over shards 0, 1: sorted by 1 keys, limit 3",
            "->  Shard 0",
            "->  Shard 1",
            "Seq Scan",
            "Runs: select",
        ] {
            assert!(plan.contains(part), "{part}: {plan}");
        }
        assert!(!plan.contains("rows=") && !plan.contains("cost="), "{plan}");
        let plan =
            lines(&ask(&mut client, manner, "explain analyze select region, sum(qty) from sales group by 1").await);
        assert!(plan.contains("actual time") && plan.contains("->  Shard 1 (rows="), "{plan}");
        let gathered =
            "select percentile_disc(0.5) within group (order by s.id) from sales s join lines l on l.sale_id = s.id";
        let plan = lines(&ask(&mut client, manner, &format!("explain {gathered}")).await);
        assert!(
            plan.contains("nothing was shipped") && plan.contains("->  Ship public.lines from shards 0, 1"),
            "{plan}"
        );
        let plan =
            lines(&ask(&mut client, manner, &format!("explain (analyze, timing off, costs off) {gathered}")).await);
        // PostgreSQL 18 shows rows with two decimals.
        assert!(plan.contains("Aggregate (actual rows=1") && plan.contains("(rows="), "{plan}");
        assert!(!plan.contains("time="), "{plan}");
        let shipped = plan.lines().find(|line| line.contains("Ship public.sales")).expect("a shipment").to_owned();
        // Whichever table is shipped first is so whole, of the other only rows with its keys.
        let count = "select count(*), count(*) filter (where id in (select sale_id from lines)) from sales";
        let counted = rows(&herd.oracle().await.query(count).await)[0].clone();
        let is_counted = |count: &Option<String>| {
            count.as_ref().is_some_and(|count| shipped.contains(&format!("(rows={count} bytes=")))
        };
        assert!(counted.iter().any(is_counted), "{shipped}: {counted:?}");
    }
    let one = lines(
        &ask(&mut client, Manner::Simple, "explain (costs off) select id from sales where customer_id = 7").await,
    );
    assert!(!one.contains("Shard"), "one shard's plan is PostgreSQL's own: {one}");
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn explain_keeps_values_to_itself_and_fails_as_the_statement_would() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    let text = "explain select id from sales where region <> 'secret' order by id limit $1";
    for manner in [Manner::Text, Manner::Prepared] {
        let answer = ask_with(&mut client, manner, text, &[Some("4321")]).await;
        let runs = answer.column(0).into_iter().flatten().find(|line| line.contains("Runs:")).expect("what runs");
        assert!(!runs.contains("4321") && !runs.contains("secret") && runs.ends_with("LIMIT ?"), "{runs}");
    }
    for route in [
        "select id from sales where region <> 'secret'",
        "select count(distinct region) from sales where region <> 'secret' and qty < 4321",
    ] {
        let shown = format!("{:?}", rows(&client.query(&format!("explain (route) {route}")).await));
        assert!(shown.contains("runs") && !shown.contains("secret") && !shown.contains("4321"), "{shown}");
    }
    for (text, code) in [
        ("explain analyze select 1 / (id - id) from sales", "22012"),
        ("explain select no_such from sales", "42703"),
        ("explain select no_such, count(distinct id) from sales", "42703"),
        ("explain (nonsense) select id from sales", "42601"),
        ("explain (format json) select id from sales", "0A000"),
        ("explain analyze delete from sales", "0A000"),
        ("explain declare c cursor for select id from sales", "0A000"),
    ] {
        let answer = ask(&mut client, Manner::Simple, text).await;
        assert_eq!((answer.code(), answer.status), (Some(code), 'I'), "{text}: {answer:?}");
    }
    herd.comes_to_rest().await;
}
