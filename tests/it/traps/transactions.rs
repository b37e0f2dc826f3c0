//! Reads over shards in transactions: as in PostgreSQL while nothing is written, refused where a snapshot would be torn.

use super::herd::Herd;
use crate::answers::{Answer, MANNERS, Manner, ask};
use crate::harness::wire::WireClient;

const COUNT: &str = "select count(*), sum(qty) from sales";

async fn say(client: &mut WireClient, text: &str) -> Answer {
    Answer::read(&client.query(text).await)
}

#[tokio::test]
async fn read_committed_reads_over_shards_and_sees_what_others_commit() {
    let herd = Herd::start(2, false).await;
    let (mut oracle, mut client, mut other) = (herd.oracle().await, herd.client().await, herd.client().await);
    for begin in ["begin", "start transaction", "begin isolation level read committed", "begin read only"] {
        for session in [&mut oracle, &mut client] {
            assert_eq!(say(session, begin).await.status, 'T', "{begin}");
        }
        for manner in MANNERS {
            let wanted = ask(&mut oracle, manner, COUNT).await;
            let given = ask(&mut client, manner, COUNT).await;
            // Whoever cannot tell READ COMMITTED from what else stands in BEGIN may refuse; then the transaction has failed.
            if given.code() == Some("0A000") {
                assert_eq!((given.status, begin != "begin"), ('E', true), "{begin} {manner:?} {given:?}");
                break;
            }
            assert_eq!((given.status, &given), ('T', &wanted), "{begin} {manner:?}");
        }
        for session in [&mut oracle, &mut client] {
            say(session, "rollback").await;
        }
    }
    say(&mut client, "begin").await;
    let before = ask(&mut client, Manner::Simple, COUNT).await;
    let insert = "insert into sales (id, customer_id, qty) values (3001, 6, 1000)";
    assert_eq!(say(&mut other, insert).await.tag, "INSERT 0 1");
    let after = ask(&mut client, Manner::Simple, COUNT).await;
    assert_ne!(before.rows, after.rows, "READ COMMITTED sees the commit");
    assert_eq!(say(&mut client, "commit").await.tag, "COMMIT");
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_transaction_that_has_written_is_not_shown_half_of_its_writes() {
    let herd = Herd::start(2, true).await;
    for manner in MANNERS {
        let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
        for text in [
            "begin",
            COUNT,
            "insert into sales (id, customer_id, qty) values (4001, 6, 1)",
            "select count(*) from sales where customer_id = 6 and id = 4001",
            COUNT,
            "select count(*) from sales where id = 4001",
            "rollback",
            COUNT,
        ] {
            let (wanted, given) = (ask(&mut oracle, manner, text).await, ask(&mut client, manner, text).await);
            assert_eq!(given, wanted, "{manner:?} {text}");
        }
        // What the coordinator would merge is refused, and nothing stays of it.
        say(&mut client, "begin").await;
        say(&mut client, "insert into sales (id, customer_id, qty) values (4001, 6, 1)").await;
        let ranked = "select id, rank() over (order by id) from sales";
        let given = ask(&mut client, manner, ranked).await;
        assert_eq!((given.code(), given.status), (Some("0A000"), 'E'), "{manner:?}: {given:?}");
        assert_eq!(ask(&mut client, manner, COUNT).await.code(), Some("25P02"), "the transaction has failed");
        let commit = say(&mut client, "commit").await;
        assert_eq!((commit.tag.as_str(), commit.status), ("ROLLBACK", 'I'), "COMMIT of a failed transaction");
        let gone = ask(&mut client, manner, "select count(*) from sales where id = 4001").await;
        assert_eq!((gone.error, gone.rows.len()), (None, 1), "{manner:?}");
        let gone = say(&mut client, "select count(*) from sales where id = 4001").await;
        assert_eq!(gone.column(0), [Some("0".into())], "{manner:?}: nothing stays of it");
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_transaction_writes_on_one_shard_only() {
    let herd = Herd::start(4, false).await;
    let mut client = herd.client().await;
    let mut refused = 0;
    for customer in 0..12 {
        say(&mut client, "begin").await;
        assert_eq!(say(&mut client, "insert into sales (id, customer_id) values (5001, 0)").await.tag, "INSERT 0 1");
        let second = say(&mut client, &format!("insert into sales (id, customer_id) values (5002, {customer})")).await;
        refused += usize::from(second.code() == Some("0A000"));
        assert!(second.error.is_none() || (second.code(), second.status) == (Some("0A000"), 'E'), "{second:?}");
        let wanted = if second.error.is_none() { "2" } else { "0" };
        say(&mut client, "commit").await;
        let kept = say(&mut client, "select count(*) from sales where id in (5001, 5002)").await;
        assert_eq!(kept.error, None, "customer {customer}, {second:?}");
        assert_eq!(kept.column(0), [Some(wanted.into())], "both or none, customer {customer}");
        for key in [0, customer] {
            say(&mut client, &format!("delete from sales where customer_id = {key} and id > 5000")).await;
        }
    }
    assert!((1..12).contains(&refused), "{refused} of 12 customers live on another shard");
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn one_snapshot_over_several_shards_is_refused() {
    let herd = Herd::start(2, true).await;
    for begin in [
        &["begin isolation level repeatable read"][..],
        &["begin transaction isolation level serializable read only"],
        &["begin", "set transaction isolation level repeatable read"],
        &["set default_transaction_isolation to 'repeatable read'", "begin"],
        &["set session characteristics as transaction isolation level serializable", "begin"],
    ] {
        for manner in MANNERS {
            let mut client = herd.client().await;
            for text in begin {
                assert_eq!(say(&mut client, text).await.error, None, "{begin:?}");
            }
            let given = ask(&mut client, manner, COUNT).await;
            assert_eq!((given.code(), given.status), (Some("0A000"), 'E'), "{begin:?} {manner:?}: {given:?}");
            assert_eq!(say(&mut client, "rollback").await.status, 'I');
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_read_that_fails_over_shards_fails_the_transaction() {
    let herd = Herd::start(2, false).await;
    for manner in MANNERS {
        let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
        for text in ["begin", COUNT, "select 1 / (id - 200) from sales", COUNT, "commit", COUNT] {
            let wanted = ask(&mut oracle, manner, text).await;
            let given = ask(&mut client, manner, text).await;
            assert_eq!(
                (given.code(), &given.tag, given.status),
                (wanted.code(), &wanted.tag, wanted.status),
                "{text} {manner:?}"
            );
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_savepoint_brings_back_a_transaction_that_only_read() {
    let herd = Herd::start(2, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for text in [
        "begin",
        "savepoint first_one",
        COUNT,
        "select 1 / (id - 200) from sales",
        "rollback to savepoint first_one",
        COUNT,
        "release savepoint first_one",
        COUNT,
        "commit",
        COUNT,
    ] {
        let wanted = say(&mut oracle, text).await;
        let given = say(&mut client, text).await;
        if given.code() == Some("0A000") {
            say(&mut client, "rollback").await;
            break;
        }
        assert_eq!((given.code(), &given.tag, given.status), (wanted.code(), &wanted.tag, wanted.status), "{text}");
    }
    assert_eq!(say(&mut client, COUNT).await, say(&mut oracle, COUNT).await);
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_savepoint_that_a_failed_transaction_has_not_is_told_as_postgresql_does() {
    let herd = Herd::start(2, false).await;
    for manner in MANNERS {
        let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
        for text in [
            "begin",
            "savepoint \"S\"",
            "select 1 / (id - 200) from sales",
            "rollback to s",
            "rollback work to savepoint \"s\"",
            COUNT,
            "rollback transaction to /* itself */ \"S\"",
            COUNT,
            "select 1 / (id - 200) from sales",
            "release s",
            "rollback",
            COUNT,
        ] {
            let wanted = ask(&mut oracle, manner, text).await;
            let given = ask(&mut client, manner, text).await;
            assert_eq!(
                (given.error, &given.tag, given.status),
                (wanted.error, &wanted.tag, wanted.status),
                "{text} {manner:?}"
            );
        }
    }
    herd.comes_to_rest().await;
}

/// Savepoints that were set, and released, before any server knew of the transaction are there, and gone, on each that joins it.
#[tokio::test]
async fn savepoints_of_before_the_first_server_are_the_same_on_every_server() {
    let herd = Herd::start(3, false).await;
    let on = |key: i32| format!("select count(*) from sales where customer_id = {key}");
    let scripts: [&[&str]; 6] = [
        &["begin", "savepoint u", "release savepoint u", &on(1), &on(2), &on(3), "rollback to savepoint u"],
        &["begin", "savepoint u", "savepoint v", "release u", &on(2), &on(5), "release v"],
        &["begin", "savepoint u", "savepoint v", "release v", &on(2), &on(5), "rollback to u", &on(3), "commit"],
        &[
            "begin",
            "savepoint u",
            "savepoint u",
            "release u",
            &on(4),
            &on(1),
            "rollback to u",
            "release u",
            &on(2),
            "commit",
        ],
        &["begin", "release u", &on(1)],
        &[
            "begin",
            "savepoint \"A name\"",
            &on(1),
            &on(2),
            &on(3),
            "rollback to \"A name\"",
            "release \"A name\"",
            "commit",
        ],
    ];
    for script in scripts {
        for manner in [Manner::Simple, Manner::Text, Manner::Prepared] {
            let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
            for text in script {
                let wanted = ask(&mut oracle, manner, text).await;
                let given = ask(&mut client, manner, text).await;
                assert_eq!(given, wanted, "{manner:?} {text} in {script:?}");
            }
        }
    }
    herd.comes_to_rest().await;
}
