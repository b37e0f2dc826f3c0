//! Portals, parameters and pipelines of statements over several shards, message by message as PostgreSQL answers them.

use bytes::{BufMut, BytesMut};
use pgherd::wire::writer;

use super::herd::Herd;
use crate::answers::{Answer, MANNERS, Manner, ask_with};
use crate::harness::wire::{Message, WireClient, bind, tags};

/// The tags of an answer: runs of DataRow as one, so that their number is compared elsewhere.
fn shape(messages: &[Message]) -> String {
    let mut shape = tags(messages);
    while shape.contains("DD") {
        shape = shape.replace("DD", "D");
    }
    shape
}

/// Sends the same messages to both and compares all that comes up to ReadyForQuery; a refusal is said to be one.
async fn same(herd: &Herd, what: &str, fill: impl Fn(&mut BytesMut)) -> Result<Answer, Answer> {
    let mut said = Vec::new();
    for client in [&mut herd.oracle().await, &mut herd.client().await] {
        client.say(&fill).await;
        said.push(client.until_ready().await);
    }
    let (wanted, given) = (&said[0], &said[1]);
    let answer = Answer::read(given);
    if answer.code() == Some("0A000") {
        return Err(answer);
    }
    assert_eq!(shape(given), shape(wanted), "{what}: {given:?}");
    assert_eq!(answer, Answer::read(wanted), "{what}");
    Ok(answer)
}

#[tokio::test]
async fn an_execute_takes_as_many_rows_as_it_asks_for() {
    let herd = Herd::start(4, false).await;
    for text in ["select id, region from sales order by id", "select region, sum(qty) from sales group by 1 order by 1"]
    {
        for rows in [1, 5, 7, 1000] {
            let answer = same(&herd, text, |out| {
                writer::parse(out, b"", text.as_bytes(), &[]);
                bind(out, "", "", &[], 1);
                writer::describe(out, b'P', b"");
                writer::execute(out, b"", rows);
                writer::sync(out);
            })
            .await;
            let answer = answer.unwrap_or_else(|refused| panic!("{text}, {rows} rows: {refused:?}"));
            assert!(answer.rows.len() <= usize::try_from(rows).expect("small"));
        }
        // More of the same portal: the rest of the rows.
        let rest = same(&herd, text, |out| {
            writer::parse(out, b"", text.as_bytes(), &[]);
            bind(out, "", "", &[], 0);
            writer::execute(out, b"", 3);
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
        rest.unwrap_or_else(|refused| panic!("{text}: {refused:?}"));
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_portal_is_not_resumed_in_a_later_flight_with_rows_that_it_gave_already() {
    let herd = Herd::start(2, false).await;
    let mut answers = Vec::new();
    for client in [&mut herd.oracle().await, &mut herd.client().await] {
        client.query("begin").await;
        client
            .say(|out| {
                writer::parse(out, b"s", b"select id from sales order by id", &[]);
                bind(out, "p", "s", &[], 0);
                writer::execute(out, b"p", 4);
                writer::sync(out);
            })
            .await;
        answers.push(Answer::read(&client.until_ready().await));
        client
            .say(|out| {
                writer::execute(out, b"p", 4);
                writer::sync(out);
            })
            .await;
        answers.push(Answer::read(&client.until_ready().await));
        client.query("rollback").await;
    }
    assert_eq!(answers[0], answers[2], "the first four rows");
    assert_eq!(answers[1], answers[3], "the next four rows");
    assert_eq!(herd.client().await.query("select 1").await.last().map(|message| message.tag), Some(b'Z'));
    herd.comes_to_rest().await;
}

/// A row, a sorted one, a group and a gathered one at a time; and one shard's.
const IN_PARTS: [&str; 6] = [
    "select id, region from sales order by id",
    "select region, count(*), sum(price) from sales group by region order by region",
    "select id from sales order by id limit 7",
    "select s.id, l.n from sales s join lines l on l.sale_id = s.id order by 1, 2 limit 20",
    "select id from sales where customer_id = 7 order by id",
    "select id from sales where id < 0",
];

/// Executes a portal; nothing else is in the flight.
async fn executed(client: &mut WireClient, portal: &str, rows: i32) -> Answer {
    client
        .say(|out| {
            writer::execute(out, portal.as_bytes(), rows);
            writer::sync(out);
        })
        .await;
    Answer::read(&client.until_ready().await)
}

#[tokio::test]
async fn portals_give_their_rows_in_as_many_parts_as_are_asked_for() {
    let herd = Herd::start(3, false).await;
    for size in [1, 3, 7] {
        let mut said = Vec::new();
        for client in [&mut herd.oracle().await, &mut herd.client().await] {
            let mut answers = Vec::new();
            client.query("begin").await;
            for (at, text) in IN_PARTS.iter().enumerate().filter(|(at, _)| *at != 4) {
                let name = format!("p{at}");
                client
                    .say(|out| {
                        writer::parse(out, name.as_bytes(), text.as_bytes(), &[]);
                        bind(out, &name, &name, &[], 1);
                        if at % 2 == 0 {
                            writer::execute(out, name.as_bytes(), size);
                        }
                        writer::sync(out);
                    })
                    .await;
                answers.push(Answer::read(&client.until_ready().await));
            }
            // All of them in turn, each to its end.
            for _ in 0..5 {
                for at in [0, 1, 2, 3] {
                    answers.push(executed(client, &format!("p{at}"), size).await);
                }
            }
            answers.push(executed(client, "p3", 0).await);
            client
                .say(|out| {
                    writer::close(out, b'P', b"p1");
                    writer::sync(out);
                })
                .await;
            answers.push(Answer::read(&client.until_ready().await));
            answers.push(Answer::read(&client.query("select count(*) from sales").await));
            answers.push(executed(client, "p0", 0).await);
            answers.push(Answer::read(&client.query("commit").await));
            said.push(answers);
        }
        let given = said.pop().expect("two");
        for (at, (wanted, given)) in said.pop().expect("two").into_iter().zip(given).enumerate() {
            assert_eq!(given, wanted, "{size} rows, step {at}");
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_suspended_portal_ends_with_its_transaction_its_name_or_its_client() {
    let herd = Herd::start(3, false).await;
    let texts = ["select k from slow", IN_PARTS[3]];
    for text in texts {
        for end in ["rollback", "commit", "savepoint a_1", "select 1 / 0", "", "bind", "leave"] {
            let mut client = herd.client().await;
            client.query("begin").await;
            if end == "savepoint a_1" {
                client.query(end).await;
            }
            client
                .say(|out| {
                    writer::parse(out, b"", text.as_bytes(), &[]);
                    bind(out, "p", "", &[], 0);
                    writer::execute(out, b"p", 2);
                    writer::sync(out);
                })
                .await;
            let first = Answer::read(&client.until_ready().await);
            assert_eq!((first.rows.len(), first.tag.as_str()), (2, "suspended"), "{first:?}");
            match end {
                "" => {
                    client.cancel().await;
                    let rest = executed(&mut client, "p", 0).await;
                    assert_eq!(rest.error, None, "a cancel between two Executes is of nothing");
                    client.query("commit").await;
                }
                "bind" => {
                    client
                        .say(|out| {
                            bind(out, "p", "", &[], 0);
                            writer::execute(out, b"p", 1);
                            writer::sync(out);
                        })
                        .await;
                    client.until_ready().await;
                    client.query("commit").await;
                }
                "leave" => {}
                "savepoint a_1" => {
                    client.query("rollback to a_1").await;
                    assert!(executed(&mut client, "p", 1).await.error.is_some());
                    client.query("rollback").await;
                }
                other => {
                    client.query(other).await;
                    let after = executed(&mut client, "p", 1).await;
                    assert!(matches!(after.code(), Some("34000" | "25P02")), "{other}: {after:?}");
                    client.query("rollback").await;
                }
            }
            drop(client);
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_statement_is_described_before_its_parameters_are_known() {
    let herd = Herd::start(4, false).await;
    for text in [
        "select id, region, amount from sales where customer_id = $1 order by id",
        "select region, sum(qty) from sales where qty > $1 group by region order by region",
        "select id from sales where customer_id in ($1, $2) order by id",
        "select id from sales order by id limit $1",
        "select title from countries where code = $1::text",
    ] {
        for (name, resync) in [("", false), ("named", true)] {
            let described = same(&herd, text, |out| {
                writer::parse(out, name.as_bytes(), text.as_bytes(), &[]);
                writer::describe(out, b'S', name.as_bytes());
                writer::sync(out);
            })
            .await;
            let described = described.unwrap_or_else(|refused| panic!("{text}: {refused:?}"));
            assert!(!described.columns.is_empty(), "{text} {resync}");
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn parameters_decide_the_shard_at_bind() {
    let herd = Herd::start(4, true).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for (text, values) in [
        ("select id, region from sales where customer_id = $1 order by id", &[Some("7")][..]),
        ("select id, region from sales where customer_id = $1 order by id", &[Some("8")]),
        ("select id, region from sales where customer_id = $1 order by id", &[None]),
        ("select count(*) from sales where customer_id = $1", &[Some("3")]),
        ("select count(*) from sales where qty > $1 and region = $2", &[Some("0"), Some("north")]),
        ("select id from sales where region = $1 order by id", &[Some("Äst")]),
        ("select id from sales where id > $1 order by id limit $2 offset $3", &[Some("9"), Some("5"), Some("2")]),
        ("select id from sales where id > $1 order by id limit $2", &[Some("9"), None]),
        (
            "select region, count(*) from sales group by region having count(*) > $1::int8 order by region",
            &[Some("41")],
        ),
    ] {
        for manner in MANNERS.into_iter().filter(|manner| *manner != Manner::Simple) {
            for _ in 0..2 {
                let wanted = ask_with(&mut oracle, manner, text, values).await;
                let given = ask_with(&mut client, manner, text, values).await;
                assert_eq!((given.error.as_ref(), given.status), (None, 'I'), "{text} {values:?} {manner:?}");
                assert_eq!(given, wanted, "{text} {values:?} {manner:?}");
            }
        }
    }
    herd.comes_to_rest().await;
}

/// Statements of which any two may be bound at once: over the shards, merged by PostgreSQL, of one shard, of none.
const PAIRED: [&str; 5] = [
    "select count(*) as sales from sales",
    "select id, region from sales order by id limit 3",
    "select l.n from sales s join lines l on l.sale_id = s.id order by 1 limit 2",
    "select qty from sales where customer_id = 7 order by id",
    "select 1 as one",
];

#[tokio::test]
async fn a_portal_is_described_as_itself_whatever_was_bound_behind_it() {
    let herd = Herd::start(2, false).await;
    let (mut answered, mut refused) = (0, 0);
    for first in PAIRED {
        for second in PAIRED.into_iter().filter(|second| *second != first) {
            for (described, executed) in [("one", "one"), ("one", "two"), ("two", "one"), ("two", "two")] {
                let what = format!("{first}; {second}: {described} is described, {executed} executed");
                let given = same(&herd, &what, |out| {
                    for (name, text) in [("one", first), ("two", second)] {
                        writer::parse(out, name.as_bytes(), text.as_bytes(), &[]);
                        bind(out, name, name, &[], 0);
                    }
                    writer::describe(out, b'P', described.as_bytes());
                    writer::execute(out, executed.as_bytes(), 0);
                    writer::sync(out);
                })
                .await;
                answered += usize::from(given.is_ok());
                refused += usize::from(given.is_err());
            }
        }
    }
    eprintln!("{answered} are answered, {refused} refused");
    assert!(answered > 0 && refused > 0);
    herd.comes_to_rest().await;
}

/// Reads that many ReadyForQuery.
async fn flights(client: &mut WireClient, count: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(Answer::read(&client.until_ready().await));
    }
    answers
}

#[tokio::test]
async fn a_pipeline_of_flights_keeps_its_order() {
    let herd = Herd::start(2, false).await;
    let texts = [
        "select count(*) from sales",
        "select 1 / 0",
        "select id from sales where customer_id = 3 order by id",
        "select region, count(*) from sales group by region order by region",
        "select 1 / (id - 200) from sales",
        "select sum(qty) from sales",
    ];
    let mut said = Vec::new();
    for client in [&mut herd.oracle().await, &mut herd.client().await] {
        client
            .say(|out| {
                for text in texts {
                    writer::parse(out, b"", text.as_bytes(), &[]);
                    bind(out, "", "", &[], 1);
                    writer::describe(out, b'P', b"");
                    writer::execute(out, b"", 0);
                    writer::sync(out);
                }
            })
            .await;
        said.push(flights(client, texts.len()).await);
    }
    for (at, text) in texts.iter().enumerate() {
        let (wanted, given) = (&said[0][at], &said[1][at]);
        assert_eq!((&given.error, &given.tag, given.status), (&wanted.error, &wanted.tag, wanted.status), "{text}");
        if wanted.error.is_none() {
            assert_eq!(given, wanted, "{text}");
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn several_executions_before_one_sync_are_answered_or_refused() {
    let herd = Herd::start(2, false).await;
    let texts = [
        ["select count(*) from sales", "select sum(qty) from sales"],
        ["select count(*) from sales where customer_id = 3", "select sum(qty) from sales"],
        ["select 1", "select sum(qty) from sales"],
        ["select sum(qty) from sales", "select 1"],
        ["select sum(qty) from sales", "select 1 / (id - 200) from sales"],
        ["select 1 / (id - 200) from sales", "select sum(qty) from sales"],
    ];
    for pair in texts {
        let mut said = Vec::new();
        for client in [&mut herd.oracle().await, &mut herd.client().await] {
            client
                .say(|out| {
                    for text in pair {
                        writer::parse(out, b"", text.as_bytes(), &[]);
                        bind(out, "", "", &[], 0);
                        writer::execute(out, b"", 0);
                    }
                    writer::sync(out);
                })
                .await;
            said.push(client.until_ready().await);
        }
        let (wanted, given) = (Answer::read(&said[0]), Answer::read(&said[1]));
        match given.code() {
            Some("0A000") => assert_eq!(given.status, 'I'),
            Some("22012") => assert_eq!(wanted.code(), Some("22012"), "{pair:?}"),
            _ => assert_eq!(given, wanted, "{pair:?}"),
        }
        assert_eq!(tags(&said[1]).matches('Z').count(), 1);
    }
    herd.comes_to_rest().await;
}

/// A Bind without parameters that asks for these formats.
fn bind_formats(out: &mut BytesMut, portal: &str, statement: &str, formats: &[i16]) {
    writer::message(out, b'B', |out| {
        writer::cstr(out, portal.as_bytes());
        writer::cstr(out, statement.as_bytes());
        out.put_i32(0);
        out.put_i16(i16::try_from(formats.len()).expect("few"));
        formats.iter().for_each(|&format| out.put_i16(format));
    });
}

#[tokio::test]
async fn formats_are_none_or_one_or_as_many_as_columns() {
    let herd = Herd::start(3, false).await;
    for text in [
        "select id, region, qty from sales order by id",
        "select region, count(*), sum(qty) from sales group by region order by region",
    ] {
        for formats in [&[][..], &[1], &[0, 1], &[1, 0, 1], &[0, 0, 0, 0]] {
            let answer = same(&herd, text, |out| {
                writer::parse(out, b"", text.as_bytes(), &[]);
                bind_formats(out, "", "", formats);
                writer::execute(out, b"", 0);
                writer::sync(out);
            })
            .await;
            let answer = answer.unwrap_or_else(|refused| panic!("{text} {formats:?}: {refused:?}"));
            let is_wrong = matches!(formats.len(), 2 | 4);
            assert_eq!(answer.code(), is_wrong.then_some("08P01"), "{text} {formats:?}");
        }
    }
    // The coordinator is asked once the Bind has been answered.
    let mut client = herd.client().await;
    client
        .say(|out| {
            writer::parse(out, b"", b"select s.id, l.n, s.qty from sales s join lines l on l.sale_id = s.id", &[]);
            bind_formats(out, "", "", &[0, 1]);
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    assert_eq!(Answer::read(&client.until_ready().await).code(), Some("08P01"));
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_portal_that_is_there_is_not_bound_again() {
    let herd = Herd::start(3, false).await;
    let mut said = Vec::new();
    for client in [&mut herd.oracle().await, &mut herd.client().await] {
        let mut answers = Vec::new();
        for (name, rows) in [("p", 2), ("p", 0), ("q", -1)] {
            client.query("begin").await;
            for is_closed in [false, true, false] {
                client
                    .say(|out| {
                        if is_closed {
                            writer::close(out, b'P', name.as_bytes());
                        }
                        writer::parse(out, b"", b"select id from sales order by id", &[]);
                        bind(out, name, "", &[], 0);
                        if rows >= 0 {
                            writer::execute(out, name.as_bytes(), rows);
                        }
                        writer::sync(out);
                    })
                    .await;
                let messages = client.until_ready().await;
                answers.push((shape(&messages), Answer::read(&messages)));
            }
            client.query("rollback").await;
        }
        // The unnamed one gives way, and none outlives its transaction.
        for end in ["commit", "rollback"] {
            for begin in ["begin", "start transaction"] {
                client.query(begin).await;
                for name in ["", "p", ""] {
                    client
                        .say(|out| {
                            writer::parse(out, b"", b"select id from sales order by id", &[]);
                            bind(out, name, "", &[], 0);
                            writer::execute(out, name.as_bytes(), 2);
                            writer::sync(out);
                        })
                        .await;
                    answers.push((String::new(), Answer::read(&client.until_ready().await)));
                }
                client
                    .say(|out| {
                        writer::parse(out, b"", end.as_bytes(), &[]);
                        bind(out, "", "", &[], 0);
                        writer::execute(out, b"", 0);
                        writer::sync(out);
                    })
                    .await;
                client.until_ready().await;
            }
        }
        said.push(answers);
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(said[1].iter().filter(|(_, answer)| answer.code() == Some("42P03")).count(), 3, "{:?}", said[1]);
    herd.comes_to_rest().await;
}
