//! What crashes leave behind, and who may finish it how.

use std::sync::Arc;
use std::time::Duration;

use pgherd::backend::connect::Login;
use pgherd::config::dsn;
use pgherd::config::model::{LatchScope, ServerAddress};
use pgherd::exec::two_phase::gid::Transaction;
use pgherd::exec::two_phase::{Outcome, TwoPhase};
use pgherd::net::tls::ClientTls;

use super::stage::{Stage, ok, say};
use crate::harness::{self, Database};

/// What a pgherd that is no more would have held: server 0 is the primary, the shards follow.
fn another(stage: &Stage) -> Arc<TwoPhase> {
    let server = |database: &Database| -> (ServerAddress, Login) {
        let address = dsn::parse(&database.conninfo()).expect("a connection string");
        let login = Login {
            user: "decider".into(),
            password: None,
            scram_keys: None,
            database: database.name.clone(),
            startup: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            tls: ClientTls::new(),
        };
        (address, login)
    };
    let servers = std::iter::once(&stage.primary).chain(&stage.shards).map(server).collect();
    TwoPhase::new(servers, LatchScope::Fleet, Duration::from_secs(2))
}

/// Prepares a change of an account on each of the first two shards, as a transaction that shard 0 decides about.
async fn prepare(stage: &Stage, accounts: &[i32], transaction: &Transaction) {
    for (part, (shard, account)) in stage.shards.iter().zip(accounts).take(2).enumerate() {
        let client = shard.client().await;
        let gid = transaction.gid(part);
        let sql = format!("begin; update accounts set balance = 555 where id = {account}; prepare transaction '{gid}'");
        client.batch_execute(&sql).await.expect("prepared");
    }
}

async fn is_prepared(database: &Database, gid: &str) -> bool {
    let sql = "select exists (select from pg_prepared_xacts where gid = $1)";
    database.client().await.query_one(sql, &[&gid]).await.expect("read").get(0)
}

#[tokio::test]
async fn a_transaction_of_another_fleet_is_reported_and_left_alone() {
    let stage = Stage::set(2).await;
    let accounts = stage.one_of_each().await;
    // Its decider is no server of this configuration; and one is not even pgherd's.
    let theirs = "pgherd:1234.5:77:1:0";
    let (shard, client) = (&stage.shards[0], stage.shards[0].client().await);
    for (gid, account) in [(theirs, accounts[0]), ("mine", 100_000)] {
        let sql = format!("begin; update accounts set balance = 1 where id = {account}; prepare transaction '{gid}'");
        client.batch_execute(&sql).await.expect("prepared");
    }
    let pgherd = stage.pgherd().await;
    harness::eventually(Duration::from_secs(20), "the orphan is counted", async || {
        pgherd.metric("pgherd_transactions_orphaned", "app").await == 1.0
    })
    .await;
    for gid in [theirs, "mine"] {
        assert!(is_prepared(shard, gid).await, "{gid} is somebody else's to finish");
        client.batch_execute(&format!("rollback prepared '{gid}'")).await.expect("by hand");
    }
    assert_eq!(stage.balance(accounts[0]).await, Some(100));
}

#[tokio::test]
async fn a_crash_between_two_commits_is_finished_as_it_was_decided() {
    let stage = Stage::set(2).await;
    let accounts = stage.one_of_each().await;
    let crashed = another(&stage);
    let decider = crashed.recorder(1).await.expect("shard 0");
    let places = [decider.place, crashed.place(2).await.expect("shard 1")];
    // One is decided and half done, the next is decided, and one was prepared only.
    let [half, whole, nothing] = [decider.begin(), decider.begin(), decider.begin()];
    prepare(&stage, &accounts, &half).await;
    assert_eq!(decider.commit(&half, &places).await.expect("decided"), Outcome::Commit);
    let sql = format!("commit prepared '{}'", half.gid(0));
    stage.shards[0].client().await.batch_execute(&sql).await.expect("committed");
    assert_eq!((stage.balance(accounts[0]).await, stage.balance(accounts[1]).await), (Some(555), Some(100)));
    let others: Vec<i32> = {
        let mut others = Vec::new();
        for shard in &stage.shards {
            let row = shard.client().await.query_one("select max(id) from accounts", &[]).await.expect("read");
            others.push(row.get(0));
        }
        others
    };
    prepare(&stage, &others, &whole).await;
    assert_eq!(decider.commit(&whole, &places).await.expect("decided"), Outcome::Commit);
    let middle: i32 = {
        let sql = format!("select min(id) from accounts where id <> {}", accounts[0]);
        stage.shards[0].client().await.query_one(&sql, &[]).await.expect("read").get(0)
    };
    let sql = format!(
        "begin; update accounts set balance = 555 where id = {middle}; prepare transaction '{}'",
        nothing.gid(0)
    );
    stage.shards[0].client().await.batch_execute(&sql).await.expect("prepared");
    drop((decider, crashed));

    let pgherd = stage.pgherd().await;
    stage.is_clean().await;
    for account in accounts.iter().chain(&others) {
        assert_eq!(stage.balance(*account).await, Some(555), "committed on both");
    }
    assert_eq!(stage.balance(middle).await, Some(100), "nobody had decided");
    assert_eq!(pgherd.metric("pgherd_transactions_recovered_total", "app").await, 4.0);
    assert_eq!(pgherd.metric("pgherd_transactions_orphaned", "app").await, 0.0);
}

#[tokio::test]
async fn commit_and_abort_are_never_both_the_decision() {
    let stage = Stage::set(2).await;
    let accounts = stage.one_of_each().await;
    let (one, other) = (another(&stage), another(&stage));
    let (decider, places) = (one.recorder(1).await.expect("shard 0"), [one.place(1).await.expect("it")]);
    let recovery = other.recorder(1).await.expect("shard 0");

    let late = decider.begin();
    assert_eq!(recovery.abort(&late).await.expect("written"), Outcome::Abort);
    assert_eq!(decider.commit(&late, &places).await.expect("read"), Outcome::Abort, "it came too late");
    let early = decider.begin();
    assert_eq!(decider.commit(&early, &places).await.expect("written"), Outcome::Commit);
    assert_eq!(recovery.abort(&early).await.expect("read"), Outcome::Commit);
    recovery.commit(&early, &places).await.expect_err("only the connection that it began on may commit");

    let mut seen = [0; 2];
    for _ in 0..50 {
        let transaction = decider.begin();
        let (commit, abort) = tokio::join!(decider.commit(&transaction, &places), recovery.abort(&transaction));
        let (commit, abort) = (commit.expect("decided"), abort.expect("decided"));
        assert_eq!(commit, abort, "both are told the same");
        seen[usize::from(commit == Outcome::Commit)] += 1;
    }
    eprintln!("{} aborted, {} committed", seen[0], seen[1]);

    // While the connection lives that may write COMMIT, its abort record stays; and what it has prepared is left alone at first.
    let open = decider.begin();
    prepare(&stage, &accounts, &open).await;
    let report = other.recover().await;
    assert!(report.is_complete() && report.rolled_back == 0, "{report:?}");
    assert!(is_prepared(&stage.shards[1], &open.gid(1)).await);
    assert_eq!(decider.outcome(&late).await.expect("read"), Some(Outcome::Abort));
    drop((decider, one));
    harness::eventually(Duration::from_secs(10), "all is rolled back and forgotten", async || {
        let report = other.recover().await;
        report.is_complete() && stage.left_over().await == (0, 0)
    })
    .await;
    assert_eq!(stage.balance(accounts[1]).await, Some(100));
}

#[tokio::test]
async fn servers_that_cannot_be_told_apart_do_not_commit_together() {
    // Two clones of one cluster: the same system identifier, and what was made first in each has the same oid.
    let options = harness::options();
    let servers = [harness::start(&options), harness::start(&options)];
    let shards = vec![harness::database_on(&servers[0]).await, harness::database_on(&servers[1]).await];
    let stage = Stage::over(shards, "").await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "begin").await;
    for account in &accounts {
        ok(&mut client, &format!("update accounts set balance = 1 where id = {account}")).await;
    }
    let failed = say(&mut client, "commit").await;
    assert_eq!((failed.code(), failed.status), (Some("55000"), 'I'), "{failed:?}");
    for account in &accounts {
        assert_eq!(stage.balance(*account).await, Some(100), "rolled back on both");
    }
    // On one of them, all is as ever.
    let alone = format!("update accounts set balance = 2 where id = {}", accounts[0]);
    for statement in ["begin", &alone, "commit"] {
        ok(&mut client, statement).await;
    }
    assert_eq!(stage.balance(accounts[0]).await, Some(2));
}

#[tokio::test]
async fn a_server_without_prepared_transactions_is_told_with_what_to_do() {
    let options = harness::options().set("max_prepared_transactions", 0);
    let server = harness::start(&options);
    let shards = vec![harness::fresh_database().await, harness::database_on(&server).await];
    let stage = Stage::over(shards, "").await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "begin").await;
    for account in &accounts {
        ok(&mut client, &format!("update accounts set balance = 1 where id = {account}")).await;
    }
    let messages = client.query("commit").await;
    let error = messages.iter().find(|message| message.tag == b'E').expect("an error");
    assert_eq!(error.field(b'C').as_deref(), Some("55000"));
    assert!(error.field(b'H').is_some_and(|hint| hint.contains("max_prepared_transactions")), "{error:?}");
    for account in &accounts {
        assert_eq!(stage.balance(*account).await, Some(100), "rolled back on both");
    }
}
