//! Without two-phase commit: what a transaction that has written on one server reads on another.

use super::own_reads::limited;
use super::several::Twins;
use super::stage::ok;
use crate::answers::{MANNERS, ask};

#[tokio::test]
async fn without_two_phase_a_read_of_another_shard_is_read_beside() {
    let twins = Twins::without_two_phase("").await;
    let (mut clients, mut others) = (twins.clients().await, twins.clients().await);
    let elsewhere = |id: i32| {
        [
            format!("select id, balance from accounts where id = {id}"),
            format!(
                "select a.balance, e.amount from accounts a left join entries e on e.account_id = a.id where a.id = {id} and e.account_id = {id}"
            ),
            format!("select count(*), max(balance) from accounts where id in ({id}, {id})"),
            "select code, rate from rates order by code".to_owned(),
        ]
    };
    for manner in MANNERS {
        for written in [3, 4, 5] {
            let write = format!("update accounts set balance = balance + 1 where id = {written}");
            for sql in ["begin", &write, "savepoint s"] {
                twins.same(&mut clients, manner, sql).await;
            }
            for id in 1..10 {
                for sql in elsewhere(id) {
                    twins.same(&mut clients, manner, &sql).await;
                }
            }
            // What others have committed meanwhile shows, as in every statement of READ COMMITTED; what they have not does not.
            for other in [&mut others.0, &mut others.1] {
                ok(other, "update accounts set balance = balance + 7 where id = 8").await;
                ok(other, "begin").await;
                ok(other, "update accounts set balance = balance + 7 where id = 9").await;
            }
            for id in 8..10 {
                for sql in elsewhere(id) {
                    twins.same(&mut clients, manner, &sql).await;
                }
            }
            for other in [&mut others.0, &mut others.1] {
                ok(other, "rollback").await;
            }
            for id in 1..7 {
                let fails = format!("select 1 / (id - {id}) from accounts where id = {id}");
                for sql in [&fails, "select 1", "rollback to s"] {
                    twins.same(&mut clients, manner, sql).await;
                }
            }
            for sql in ["commit", "select count(*), sum(balance) from accounts"] {
                twins.same(&mut clients, manner, sql).await;
            }
        }
        for sql in [
            "begin",
            "insert into local_notes values (1, 'one')",
            "select id, balance from accounts where id = 3",
            "select id, balance from accounts where id = 4",
            "select note from local_notes",
            "rollback",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
    }
    twins.is_same().await;
}

#[tokio::test]
async fn without_two_phase_what_is_more_than_a_read_of_another_shard_is_refused() {
    let twins = Twins::without_two_phase("").await;
    let account = twins.stage.one_of_each().await;
    for manner in MANNERS {
        for sql in [
            format!("select balance from accounts where id = {} for update", account[1]),
            format!("select now() from accounts where id = {}", account[1]),
            format!("update accounts set balance = 1 where id = {}", account[1]),
        ] {
            let mut client = twins.clients().await.1;
            ok(&mut client, "begin").await;
            ok(&mut client, &format!("update accounts set balance = 1 where id = {}", account[0])).await;
            let answer = ask(&mut client, manner, &sql).await;
            assert_eq!((answer.code(), answer.status), (Some("0A000"), 'E'), "{manner:?} {sql}: {answer:?}");
            assert_eq!(ok(&mut client, "commit").await, "ROLLBACK");
        }
        // Nor is a portal with a row limit, whose other rows nobody would have.
        let mut client = twins.clients().await.1;
        ok(&mut client, "begin").await;
        ok(&mut client, &format!("update accounts set balance = 1 where id = {}", account[0])).await;
        let sql = format!("select id from accounts where id = {}", account[1]);
        assert_eq!(limited(&mut client, &sql, 1).await.code(), Some("0A000"));
    }
    twins.is_same().await;
}
