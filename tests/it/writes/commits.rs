//! Transactions that touch several shards: one outcome, savepoints, settings, errors.

use super::stage::{Stage, ok, say};
use crate::answers::{MANNERS, ask};

#[tokio::test]
async fn a_transfer_between_shards_is_committed_on_both_or_on_none() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let (from, to) = (accounts[0], accounts[1]);
    for (manner, done) in MANNERS.into_iter().zip(1..) {
        let mut client = pgherd.wire("app").await;
        ok(&mut client, "begin").await;
        let take = format!("update accounts set balance = balance - 10 where id = {from}");
        let give = format!("update accounts set balance = balance + 10 where id = {to}");
        assert_eq!(ask(&mut client, manner, &take).await.tag, "UPDATE 1");
        let given = ask(&mut client, manner, &give).await;
        assert_eq!((given.tag.as_str(), given.status), ("UPDATE 1", 'T'), "{manner:?} {given:?}");
        assert_eq!(stage.balance(to).await, Some(100 + 10 * (done - 1)), "nothing is committed yet");
        let committed = ask(&mut client, manner, "commit").await;
        assert_eq!((committed.tag.as_str(), committed.status), ("COMMIT", 'I'), "{committed:?}");
        assert_eq!(
            (stage.balance(from).await, stage.balance(to).await),
            (Some(100 - 10 * done), Some(100 + 10 * done))
        );

        ok(&mut client, "begin").await;
        ask(&mut client, manner, &take).await;
        ask(&mut client, manner, &give).await;
        assert_eq!(ask(&mut client, manner, "rollback").await.tag, "ROLLBACK");
        assert_eq!(
            (stage.balance(from).await, stage.balance(to).await),
            (Some(100 - 10 * done), Some(100 + 10 * done))
        );
    }
    stage.is_clean().await;
}

#[tokio::test]
async fn an_error_on_one_shard_fails_the_transaction_on_all() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let (from, to) = (accounts[0], accounts[1]);
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "begin").await;
    ok(&mut client, &format!("update accounts set balance = balance + 1000 where id = {to}")).await;
    let failed = say(&mut client, &format!("update accounts set balance = balance - 1000 where id = {from}")).await;
    assert_eq!((failed.code(), failed.status), (Some("23514"), 'E'));
    let after = say(&mut client, &format!("select * from accounts where id = {to}")).await;
    assert_eq!((after.code(), after.status), (Some("25P02"), 'E'));
    assert_eq!(ok(&mut client, "commit").await, "ROLLBACK", "COMMIT of a failed transaction is ROLLBACK everywhere");
    assert_eq!((stage.balance(from).await, stage.balance(to).await), (Some(100), Some(100)));
    assert_eq!(ok(&mut client, &format!("update accounts set balance = 5 where id = {to}")).await, "UPDATE 1");
    stage.is_clean().await;
}

#[tokio::test]
async fn a_server_that_is_lost_while_another_works_rolls_the_transaction_back_for_certain() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let add = |at: usize| format!("update accounts set balance = balance + 1 where id = {}", accounts[at]);
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "begin").await;
    ok(&mut client, &add(0)).await;
    ok(&mut client, &add(1)).await;
    // As idle_in_transaction_session_timeout would do it on a shard that is not at hand.
    let end = "select count(pg_terminate_backend(pid, 20000)) from pg_stat_activity
               where datname = current_database() and state = 'idle in transaction'";
    let ended = stage.shards[0].client().await.query_one(end, &[]).await.expect("asked");
    assert_eq!(ended.get::<_, i64>(0), 1);
    let lost = say(&mut client, "commit").await;
    assert_eq!((lost.code(), lost.status), (Some("40000"), 'I'), "{lost:?}");
    assert_eq!((stage.balance(accounts[0]).await, stage.balance(accounts[1]).await), (Some(100), Some(100)));
    stage.is_clean().await;
}

#[tokio::test]
async fn savepoints_reach_shards_that_were_there_and_shards_that_came_later() {
    let stage = Stage::set(3).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let add = |at: usize, amount: i32| {
        format!("update accounts set balance = balance + {amount} where id = {}", accounts[at])
    };
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "begin").await;
    ok(&mut client, "savepoint early").await;
    ok(&mut client, &add(0, 1)).await;
    assert_eq!(ok(&mut client, "savepoint s").await, "SAVEPOINT");
    ok(&mut client, &add(0, 10)).await;
    ok(&mut client, &add(1, 10)).await;
    ok(&mut client, "savepoint within").await;
    ok(&mut client, &add(2, 10)).await;
    // A failure on one shard, then back on all of them: one of them came after the savepoint.
    assert_eq!(say(&mut client, &add(1, -1000)).await.code(), Some("23514"));
    // A savepoint in a transaction that has failed is none, on the shards that have not failed either.
    for control in ["savepoint s", "release s"] {
        let refused = say(&mut client, control).await;
        assert_eq!((refused.code(), refused.status), (Some("25P02"), 'E'), "{control}");
    }
    let back = say(&mut client, "rollback to s").await;
    assert_eq!((back.tag.as_str(), back.status), ("ROLLBACK", 'T'), "{back:?}");
    assert_eq!(say(&mut client, "rollback to within").await.code(), Some("3B001"), "it is gone");
    ok(&mut client, "rollback to savepoint s").await;
    ok(&mut client, &add(2, 5)).await;
    assert_eq!(ok(&mut client, "release s").await, "RELEASE");
    assert_eq!(ok(&mut client, "commit").await, "COMMIT");
    let mut balances = Vec::new();
    for account in &accounts {
        balances.push(stage.balance(*account).await);
    }
    assert_eq!(balances, [Some(101), Some(100), Some(105)]);
    stage.is_clean().await;
}

#[tokio::test]
async fn settings_of_a_transaction_hold_on_every_shard_and_end_as_one_server_would_end_them() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let zone = |at: usize| {
        format!(
            "select current_setting('timezone'), current_setting('work_mem') from accounts where id = {}",
            accounts[at]
        )
    };
    let mut client = pgherd.wire("app").await;
    for (end, wanted) in [("rollback", "UTC"), ("commit", "Asia/Tokyo")] {
        ok(&mut client, "set timezone = 'UTC'").await;
        ok(&mut client, "begin").await;
        ok(&mut client, "set local work_mem = '5MB'").await;
        ok(&mut client, &format!("update accounts set balance = 1 where id = {}", accounts[0])).await;
        ok(&mut client, "set timezone = 'Asia/Tokyo'").await;
        ok(&mut client, &format!("update accounts set balance = 1 where id = {}", accounts[1])).await;
        for at in [0, 1] {
            let row = say(&mut client, &zone(at)).await;
            assert_eq!(
                (row.column(0), row.column(1)),
                (vec![Some("Asia/Tokyo".into())], vec![Some("5MB".into())]),
                "shard {at}"
            );
        }
        ok(&mut client, end).await;
        for at in [0, 1] {
            let row = say(&mut client, &zone(at)).await;
            assert_eq!(
                (row.column(0), row.column(1)),
                (vec![Some(wanted.into())], vec![Some("4MB".into())]),
                "shard {at} after {end}"
            );
        }
    }
}

#[tokio::test]
async fn a_transaction_that_wrote_on_one_shard_commits_plainly() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let mut client = pgherd.wire("app").await;
    // Nobody could prepare it: it holds a lock that PREPARE TRANSACTION does not take along. And nobody has to.
    ok(&mut client, "begin").await;
    ok(&mut client, &format!("update accounts set balance = 7 where id = {}", accounts[0])).await;
    ok(&mut client, "insert into local_notes values (1, 'x')").await;
    ok(&mut client, "notify nobody").await;
    let failed = say(&mut client, "commit").await;
    assert_eq!((failed.code(), failed.status), (Some("0A000"), 'I'), "PostgreSQL does not prepare NOTIFY: {failed:?}");
    assert_eq!(stage.balance(accounts[0]).await, Some(100));
    ok(&mut client, "begin").await;
    ok(&mut client, &format!("select * from accounts where id = {}", accounts[1])).await;
    ok(&mut client, "select * from local_notes").await;
    ok(&mut client, &format!("update accounts set balance = 7 where id = {}", accounts[0])).await;
    assert_eq!(ok(&mut client, "commit").await, "COMMIT");
    assert_eq!(stage.balance(accounts[0]).await, Some(7));
    stage.is_clean().await;
}

#[tokio::test]
async fn snapshots_that_would_be_torn_are_refused() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    for level in ["repeatable read", "serializable"] {
        let mut client = pgherd.wire("app").await;
        ok(&mut client, &format!("begin isolation level {level}")).await;
        ok(&mut client, &format!("select * from accounts where id = {}", accounts[0])).await;
        let refused = say(&mut client, &format!("update accounts set balance = 1 where id = {}", accounts[1])).await;
        assert_eq!((refused.code(), refused.status), (Some("0A000"), 'E'), "{level}");
        assert_eq!(ok(&mut client, "commit").await, "ROLLBACK");
    }
}

#[tokio::test]
async fn two_transactions_that_wait_for_each_other_on_two_shards_do_not_wait_for_ever() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let set = |at: usize| format!("update accounts set balance = balance + 1 where id = {}", accounts[at]);
    let (mut one, mut other) = (pgherd.wire("app").await, pgherd.wire("app").await);
    for client in [&mut one, &mut other] {
        ok(client, "begin").await;
    }
    ok(&mut one, &set(0)).await;
    ok(&mut other, &set(1)).await;
    let (of_one, of_other) = (set(1), set(0));
    let (first, second) = tokio::join!(say(&mut one, &of_one), say(&mut other, &of_other));
    let codes = [first.code(), second.code()];
    assert!(codes.contains(&Some("55P03")), "{codes:?}");
    for client in [&mut one, &mut other] {
        say(client, "commit").await;
    }
    stage.is_clean().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_nothing_behind() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "begin").await;
    for account in &accounts {
        ok(&mut client, &format!("update accounts set balance = 1 where id = {account}")).await;
    }
    drop(client);
    let mut next = pgherd.wire("app").await;
    for account in &accounts {
        // Waits for the lock until the other's transaction is gone.
        ok(&mut next, &format!("update accounts set balance = balance + 1 where id = {account}")).await;
        assert_eq!(stage.balance(*account).await, Some(101));
    }
}

#[tokio::test]
async fn a_setting_that_one_server_refuses_is_refused_in_that_servers_words() {
    let stage = Stage::set(2).await;
    stage.shards[0].execute("create text search configuration mine (copy = simple)").await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    // The server at hand refuses it, or the other one.
    for order in [[0, 1], [1, 0]] {
        for (manner, add) in MANNERS.into_iter().zip(1..) {
            let mut client = pgherd.wire("app").await;
            ok(&mut client, "begin").await;
            for at in order {
                ok(&mut client, &format!("update accounts set balance = {add} where id = {}", accounts[at])).await;
            }
            let refused = ask(&mut client, manner, "set default_text_search_config = 'public.mine'").await;
            assert_eq!((refused.code(), refused.status), (Some("22023"), 'E'), "{order:?} {manner:?} {refused:?}");
            assert_eq!(say(&mut client, "select 1").await.code(), Some("25P02"));
            assert_eq!(ok(&mut client, "commit").await, "ROLLBACK");
            assert_eq!(stage.balance(accounts[0]).await, Some(100));
            ok(&mut client, &format!("select * from accounts where id = {}", accounts[1])).await;
        }
    }
    stage.is_clean().await;
}
