//! Writes that read other rows than they write: what they read is that of one moment on all shards.

use std::time::Duration;

use super::stage::{Stage, ok};
use crate::harness::{self, Database};

const PATIENCE: Duration = Duration::from_secs(20);

/// What reads the balances of two accounts on two shards and keeps them, and a table that it reads besides.
fn keepers(from: i32, to: i32) -> [String; 3] {
    let which = format!("a.id in ({from}, {to}) and r.code = 'a'");
    [
        format!(
            "insert into entries (account_id, id, amount) select a.id, 1, a.balance from accounts a, rates r where {which}"
        ),
        format!("update entries set amount = a.balance from accounts a, rates r where a.id = account_id and {which}"),
        format!(
            "update entries set amount = (select a.balance from accounts a, rates r where a.id = account_id and {which})"
        ),
    ]
}

async fn kept(shards: &[Database]) -> i64 {
    let mut sum = 0;
    for shard in shards {
        let client = shard.client().await;
        let row = client.query_one("select coalesce(sum(amount), 0)::int8 from entries", &[]).await.expect("read");
        sum += row.get::<_, i64>(0);
    }
    sum
}

#[tokio::test]
async fn a_transfer_is_kept_whole_or_not_at_all_however_long_a_shard_waits() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let (from, to) = (accounts[0], accounts[1]);
    let mut transfers = pgherd.wire("app").await;
    for within in [false, true] {
        for keep in keepers(from, to) {
            let locked = stage.shards[1].client().await;
            locked.batch_execute("begin; lock table rates in access exclusive mode").await.expect("locked");
            let mut client = pgherd.wire("app").await;
            let keeping = tokio::spawn({
                let keep = keep.clone();
                async move {
                    if within {
                        ok(&mut client, "begin").await;
                    }
                    ok(&mut client, &keep).await;
                    if within {
                        ok(&mut client, "commit").await;
                    }
                }
            });
            let watch = stage.shards[1].client().await;
            let waits = "select count(*) from pg_locks where not granted and relation = 'rates'::regclass";
            harness::eventually(PATIENCE, "the second shard waits", async || {
                watch.query_one(waits, &[]).await.expect("asked").get::<_, i64>(0) > 0
            })
            .await;
            // Nobody's commit waits for whoever waits for a lock.
            ok(&mut transfers, "begin").await;
            ok(&mut transfers, &format!("update accounts set balance = balance - 10 where id = {from}")).await;
            ok(&mut transfers, &format!("update accounts set balance = balance + 10 where id = {to}")).await;
            assert_eq!(ok(&mut transfers, "commit").await, "COMMIT", "{keep}");
            locked.batch_execute("commit").await.expect("unlocked");
            keeping.await.expect("kept");
            assert_eq!(kept(&stage.shards).await, 200, "within a transaction: {within}, {keep}");
        }
        for shard in &stage.shards {
            shard.execute("truncate entries").await;
        }
    }
    stage.is_clean().await;
}

#[tokio::test]
async fn a_commit_waits_for_no_writer_that_waits_for_its_rows() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let (from, to) = (accounts[0], accounts[1]);
    for shard in &stage.shards {
        shard.execute("insert into entries (account_id, id, amount) select id, 1, balance from accounts").await;
    }
    let mut first = pgherd.wire("app").await;
    ok(&mut first, "begin").await;
    ok(&mut first, &format!("update entries set note = 'first' where account_id = {from}")).await;
    ok(&mut first, &format!("update entries set note = 'first' where account_id = {to}")).await;
    let mut second = pgherd.wire("app").await;
    let update = tokio::spawn(async move {
        ok(&mut second, "update entries set amount = a.balance + 1 from accounts a where a.id = account_id").await
    });
    let watch = stage.shards[1].client().await;
    harness::eventually(PATIENCE, "it waits for the first", async || {
        let waits = "select count(*) from pg_locks where not granted";
        watch.query_one(waits, &[]).await.expect("asked").get::<_, i64>(0) > 0
    })
    .await;
    assert_eq!(ok(&mut first, "commit").await, "COMMIT");
    assert_eq!(update.await.expect("joined"), "UPDATE 40");
    stage.is_clean().await;
}
