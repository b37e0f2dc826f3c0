//! Reads over several shards that wait for locks: commits over several shards do not wait for them, and who has to begin again still
//! sees all of a commit or nothing.

use std::time::Duration;

use pgherd::wire::writer;

use super::stage::{Stage, ok, say};
use crate::answers::Answer;
use crate::harness::wire::WireClient;
use crate::harness::{self, Database};

const DEADLINE: Duration = Duration::from_secs(20);

/// The one is streamed, the other one is merged by PostgreSQL.
const COUNTS: [&str; 2] =
    ["select count(*) from entries", "select percentile_disc(0.5) within group (order by note), count(*) from entries"];

const SUM: &str = "select sum(balance) from accounts";

/// Waits until somebody waits for a lock of a table there.
async fn somebody_waits(shard: &Database) {
    let observer = shard.client().await;
    let waiting = "select count(*) from pg_locks where not granted and locktype = 'relation'
                   and database = (select oid from pg_database where datname = current_database())";
    harness::eventually(DEADLINE, "somebody waits for the lock", async || {
        observer.query_one(waiting, &[]).await.expect("locks").get::<_, i64>(0) > 0
    })
    .await;
}

/// Moves that much from the first account to the second, by a commit over two shards.
async fn transfer(client: &mut WireClient, accounts: &[i32], amount: i32) -> Answer {
    ok(client, "begin").await;
    for (account, amount) in accounts.iter().zip([-amount, amount]) {
        ok(client, &format!("update accounts set balance = balance + {amount} where id = {account}")).await;
    }
    say(client, "commit").await
}

fn last_of(answer: &Answer) -> Option<&str> {
    answer.rows.first()?.last()?.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok())
}

#[tokio::test]
async fn a_read_that_waits_for_a_table_keeps_nobody_from_committing() {
    let stage = Stage::set(2).await;
    let (pgherd, other) = (stage.pgherd().await, stage.pgherd().await);
    let accounts = stage.one_of_each().await;
    for herd in [&pgherd, &other] {
        harness::eventually(DEADLINE, "all catalogs have been read", async || {
            last_of(&say(&mut herd.wire("app").await, SUM).await) == Some("4000")
        })
        .await;
    }
    for (read, at) in COUNTS.into_iter().flat_map(|read| [(read, 0), (read, 1)]) {
        let mut holder = stage.shards[at].client().await;
        let held = holder.transaction().await.expect("begin");
        held.batch_execute("lock table entries in access exclusive mode").await.expect("lock");
        let mut reader = pgherd.wire("app").await;
        reader.say(|out| writer::query(out, read.as_bytes())).await;
        somebody_waits(&stage.shards[at]).await;
        for herd in [&pgherd, &other] {
            let mut client = herd.wire("app").await;
            let committed = transfer(&mut client, &accounts, 10).await;
            assert_eq!((committed.tag.as_str(), committed.error), ("COMMIT", None), "{read}");
            assert_eq!(last_of(&say(&mut client, SUM).await), Some("4000"));
        }
        held.rollback().await.expect("rollback");
        let answer = Answer::read(&reader.until_ready().await);
        assert_eq!((answer.error, answer.rows.len()), (None, 1), "{read}");
    }
    stage.is_clean().await;
}

#[tokio::test]
async fn a_read_that_looks_for_what_was_cut_short_ends_nobodys_commit_that_waits_for_it() {
    let stage = Stage::set(2).await;
    let accounts = stage.one_of_each().await;
    for is_another in [false, true] {
        let committing = stage.pgherd().await;
        let reading = if is_another { Some(stage.pgherd().await) } else { None };
        let reading = reading.as_ref().unwrap_or(&committing);
        harness::eventually(DEADLINE, "all catalogs have been read", async || {
            say(&mut reading.wire("app").await, &format!("explain (route) {SUM}")).await.error.is_none()
        })
        .await;
        let mut reader = reading.wire("app").await;
        let holder = stage.primary.client().await;
        if !is_another {
            // Some pgherd has died over a commit; the other time it is the first read of a new one that looks.
            holder.batch_execute("insert into pgherd.unfinished (latch) values (1)").await.expect("marked");
        }
        let latch = "hashtextextended('pgherd latch', 0)";
        holder.batch_execute(&format!("select pg_advisory_lock({latch})")).await.expect("taken");
        reader.say(|out| writer::query(out, SUM.as_bytes())).await;
        let waiting = "select count(*) from pg_locks where not granted and locktype = 'advisory'
                       and database = (select oid from pg_database where datname = current_database())";
        harness::eventually(DEADLINE, "the read waits for the latch", async || {
            holder.query_one(waiting, &[]).await.expect("locks").get::<_, i64>(0) > 0
        })
        .await;
        let mut writer = committing.wire("app").await;
        let before = stage.balance(accounts[1]).await.expect("an account");
        let commit = async { transfer(&mut writer, &accounts, 10).await };
        let release = async {
            harness::eventually(DEADLINE, "the commit is prepared", async || stage.left_over().await.0 == 2).await;
            holder.batch_execute(&format!("select pg_advisory_unlock({latch})")).await.expect("given back");
        };
        let (committed, ()) = tokio::join!(commit, release);
        assert_eq!((committed.tag.as_str(), committed.error), ("COMMIT", None), "another pgherd reads: {is_another}");
        assert_eq!(stage.balance(accounts[1]).await, Some(before + 10));
        assert_eq!(last_of(&Answer::read(&reader.until_ready().await)), Some("4000"));
    }
    stage.is_clean().await;
}

#[tokio::test]
async fn who_has_locked_a_table_commits_before_those_who_wait_to_read_it() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    for count in COUNTS {
        let mut writer = pgherd.wire("app").await;
        for account in stage.one_of_each().await {
            ok(&mut writer, &format!("insert into entries (account_id, amount) values ({account}, 1)")).await;
        }
        assert_eq!(last_of(&say(&mut writer, count).await), Some("2"));
        ok(&mut writer, "begin").await;
        ok(&mut writer, "truncate entries").await;
        let mut reader = pgherd.wire("app").await;
        reader.say(|out| writer::query(out, count.as_bytes())).await;
        somebody_waits(&stage.shards[0]).await;
        assert_eq!(ok(&mut writer, "commit").await, "COMMIT");
        let answer = Answer::read(&reader.until_ready().await);
        assert_eq!((answer.error.as_ref(), last_of(&answer)), (None, Some("0")), "{count}");
    }
    stage.is_clean().await;
}

/// Accounts that are partitioned on each shard: a statement's Parse locks the parent only.
async fn partitioned() -> Stage {
    let shards = harness::fresh_databases(2).await;
    let stage = Stage::over(shards, "two_phase = { user = \"decider\", lock_timeout = \"20s\" }\n").await;
    for shard in &stage.shards {
        let sql = "alter table accounts rename to one_part;
                   create table accounts (like one_part including defaults including constraints) partition by range (id);
                   alter table accounts attach partition one_part for values from (1) to (1000)";
        shard.execute(sql).await;
    }
    stage
}

#[tokio::test]
async fn a_read_that_waits_for_a_partition_gives_way_and_then_sees_all_of_what_was_committed() {
    let stage = partitioned().await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let sum = format!("select sum(balance) from accounts where id in ({}, {})", accounts[0], accounts[1]);
    for within in [false, true] {
        let mut reader = pgherd.wire("app").await;
        if within {
            ok(&mut reader, "begin").await;
            ok(&mut reader, "insert into rates values ('within', 1)").await;
        }
        let mut holder = stage.shards[1].client().await;
        let held = holder.transaction().await.expect("begin");
        held.batch_execute("lock table one_part in access exclusive mode").await.expect("lock");
        reader.say(|out| writer::query(out, sum.as_bytes())).await;
        somebody_waits(&stage.shards[1]).await;
        // On the shard that is held nobody can write through the partition: others commit meanwhile.
        let mut writer = pgherd.wire("app").await;
        ok(&mut writer, "begin").await;
        for account in &accounts {
            ok(&mut writer, &format!("insert into entries (account_id, amount) values ({account}, 1)")).await;
        }
        assert_eq!(ok(&mut writer, "commit").await, "COMMIT", "within a transaction: {within}");
        held.batch_execute("update one_part set balance = balance + 0").await.expect("update");
        held.commit().await.expect("commit");
        let answer = Answer::read(&reader.until_ready().await);
        assert_eq!((answer.error.as_ref(), last_of(&answer)), (None, Some("200")), "within a transaction: {within}");
        if within {
            ok(&mut reader, "rollback").await;
        }
        assert_eq!(transfer(&mut writer, &accounts, 0).await.tag, "COMMIT");
    }
    stage.is_clean().await;
}
