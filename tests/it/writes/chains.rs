//! COMMIT AND CHAIN and ROLLBACK AND CHAIN: what follows is a transaction of the same kind, over several servers as on one.

use super::several::Twins;
use super::stage::{ok, say};
use crate::answers::{MANNERS, Manner};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_over_several_servers_end_and_begin_as_on_one() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "begin",
            "update accounts set balance = balance + 1",
            "commit and chain",
            "update accounts set balance = balance - 5 where id <= 20",
            "rollback and chain",
            "select count(*), sum(balance) from accounts",
            "savepoint a",
            "insert into entries (account_id, amount) values (1, 7), (2, 7), (3, 7)",
            "rollback to a",
            "insert into entries (account_id, amount) values (1, 8), (2, 8), (3, 8)",
            "commit and chain",
            "commit and chain",
            "rollback and chain",
            "insert into entries (account_id, amount) values (4, 9)",
            "commit",
            "select sum(amount), count(*) from entries",
            "commit and chain",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
    }
    twins.is_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_from_one_server_may_go_on_over_several() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for sql in [
        "begin",
        "update accounts set balance = balance + 1 where id = 1",
        "commit and chain",
        "update accounts set balance = balance + 2",
        "commit and chain",
        "update accounts set balance = balance + 4 where id = 2",
        "rollback and chain",
        "update accounts set balance = balance + 8 where id in (1, 2, 3, 4, 5)",
        "commit",
        "select id, balance from accounts order by id",
    ] {
        twins.same(&mut clients, Manner::Simple, sql).await;
    }
    twins.is_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_transaction_is_chained_as_rolled_back() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for sql in [
        // On several servers.
        "begin",
        "update accounts set balance = balance + 1",
        "update accounts set balance = -1",
        "select 1",
        "commit and chain",
        "update accounts set balance = balance + 2",
        "select 1 / 0",
        "rollback and chain",
        "update accounts set balance = balance + 4",
        "commit",
        "select id, balance from accounts order by id",
    ] {
        twins.same(&mut clients, Manner::Simple, sql).await;
    }
    twins.is_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_transaction_is_of_the_same_kind() {
    let twins = Twins::set(2).await;
    let mut clients = twins.clients().await;
    for sql in [
        "begin read only",
        "select balance from accounts where id = 1",
        "commit and chain",
        "show transaction_read_only",
        "insert into rates values ('x', 1)",
        "rollback and chain",
        "insert into rates values ('x', 1)",
        "rollback",
        "begin",
        "update accounts set balance = balance + 1",
        "set transaction read only",
        "commit and chain",
        "savepoint a",
        "commit and chain",
        "update accounts set balance = balance + 1",
        "rollback",
        "begin",
        "update accounts set balance = balance + 1",
        "set transaction isolation level serializable",
        "rollback",
        "begin isolation level repeatable read",
        "update accounts set balance = balance + 1 where id = 1",
        "commit and chain",
        "show transaction_isolation",
        "commit",
        "show transaction_isolation",
        // What was set within stays, what was set for it alone goes.
        "begin",
        "set local work_mem = '7MB'",
        "set statement_timeout = '77s'",
        "update accounts set balance = balance + 1",
        "commit and chain",
        "show work_mem",
        "show statement_timeout",
        "update accounts set balance = balance + 1",
        "commit",
        "show statement_timeout",
    ] {
        twins.same(&mut clients, Manner::Simple, sql).await;
    }
    twins.is_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_whose_kind_is_not_known_is_refused_with_what_to_do() {
    let twins = Twins::set(2).await;
    let mut client = twins.pgherd.wire("app").await;
    ok(&mut client, "begin").await;
    ok(&mut client, "update accounts set balance = balance + 1").await;
    ok(&mut client, "set default_transaction_read_only = on").await;
    let answer = client.query("commit and chain").await;
    let error = answer.iter().find(|message| message.tag == b'E').expect("refused");
    assert_eq!(error.field(b'C').as_deref(), Some("0A000"));
    assert!(error.field(b'M').unwrap_or_default().contains("AND CHAIN"), "{error:?}");
    assert!(error.field(b'H').unwrap_or_default().contains("BEGIN"), "{error:?}");
    assert_eq!(say(&mut client, "rollback").await.status, 'I');
    ok(&mut client, "begin").await;
    ok(&mut client, "update accounts set balance = balance + 1").await;
    let prepared = say(&mut client, "prepare transaction 'x'").await;
    assert_eq!(prepared.code(), Some("0A000"));
    assert!(prepared.error.expect("refused").1.starts_with("PREPARE TRANSACTION in"));
    ok(&mut client, "rollback").await;
    twins.is_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_no_server_knows_of_is_chained_too() {
    let twins = Twins::set(2).await;
    let mut client = twins.pgherd.wire("app").await;
    ok(&mut client, "begin read only").await;
    assert_eq!(say(&mut client, "lock table accounts").await.code(), Some("0A000"));
    for sql in ["rollback and chain", "rollback to nothing", "commit and chain", "rollback and chain"] {
        let answer = say(&mut client, sql).await;
        let expected = if sql == "rollback to nothing" { (Some("3B001"), 'E') } else { (None, 'T') };
        assert_eq!((answer.code(), answer.status), expected, "{sql}");
    }
    assert_eq!(say(&mut client, "insert into rates values ('x', 1)").await.code(), Some("25006"), "still READ ONLY");
    let answer = say(&mut client, "commit").await;
    assert_eq!((answer.tag.as_str(), answer.status), ("ROLLBACK", 'I'));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_is_followed_by_nothing() {
    let twins = Twins::set(2).await;
    let checked = "create function fails() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$; \
                   create constraint trigger late after update on accounts deferrable initially deferred \
                   for each row when (new.balance = 13) execute function fails()";
    twins.whole.execute(checked).await;
    for shard in &twins.stage.shards {
        shard.execute(checked).await;
    }
    let mut clients = twins.clients().await;
    for sql in [
        "begin",
        "update accounts set balance = 12 where id = 1",
        "update accounts set balance = 13 where id = 1",
        "update rates set rate = 7 where code = 'a'",
        "commit and chain",
        "select balance from accounts where id = 1",
        "rollback",
    ] {
        twins.same(&mut clients, Manner::Simple, sql).await;
    }
    twins.is_same().await;
}
