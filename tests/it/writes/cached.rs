//! What each shard gives is cached by shard: a write to one shard asks one shard again, and the whole is of one moment.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgherd::commands::demo::servers::RedisServer;
use pgherd::session::purge::{self, Purge};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::several::Twins;
use super::stage::{Stage, ok, say};
use crate::answers::{Answer, MANNERS, Manner};
use crate::harness::serving::{Serving, free_port};
use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};

const SUM: &str = "select sum(balance), count(*) from accounts";
const CACHE: &str = "[cache]\nenabled = true\nolap_only = false\nshards = true\n";

/// Legs that were run, and parts that were replayed.
async fn legs(pgherd: &Pgherd) -> (u64, u64) {
    let (run, cached) =
        (pgherd.metric("pgherd_fanout_legs_total", "app"), pgherd.metric("pgherd_fanout_legs_cached_total", "app"));
    (run.await as u64, cached.await as u64)
}

/// Asks, and says how many legs were run and how many parts were replayed for it.
async fn asked(pgherd: &Pgherd, client: &mut WireClient, sql: &str) -> (Answer, (u64, u64)) {
    let before = legs(pgherd).await;
    let answer = say(client, sql).await;
    let after = legs(pgherd).await;
    (answer, (after.0 - before.0, after.1 - before.1))
}

/// Waits until the shards' caches answer all of it.
async fn warm(pgherd: &Pgherd, shards: usize, sql: &str) {
    let client = tokio::sync::Mutex::new(pgherd.wire("app").await);
    harness::eventually(Duration::from_secs(30), "all of it is replayed", async || {
        let mut client = client.lock().await;
        asked(pgherd, &mut client, sql).await.1 == (0, shards as u64)
    })
    .await;
}

async fn stage(shards: usize) -> (Stage, Pgherd) {
    let mut stage = Stage::set(shards).await;
    stage.toml += CACHE;
    let pgherd = stage.pgherd().await;
    warm(&pgherd, shards, SUM).await;
    (stage, pgherd)
}

fn first(answer: &Answer) -> String {
    assert_eq!(answer.error, None);
    answer.column(0)[0].clone().expect("a value")
}

#[tokio::test]
async fn a_write_to_one_shard_asks_one_shard_again() {
    let (stage, pgherd) = stage(3).await;
    let accounts = stage.one_of_each().await;
    let mut client = pgherd.wire("app").await;
    for (turn, account) in accounts.iter().enumerate() {
        ok(&mut client, &format!("update accounts set balance = balance + 1 where id = {account}")).await;
        let (answer, how) = asked(&pgherd, &mut client, SUM).await;
        assert_eq!((first(&answer), how), ((4001 + turn).to_string(), (1, 2)), "one of three");
        let (answer, how) = asked(&pgherd, &mut client, SUM).await;
        assert_eq!((first(&answer), how), ((4001 + turn).to_string(), (0, 3)), "none");
    }
    // What is written elsewhere leaves it alone; what is rolled back costs that shard no more than one question.
    ok(&mut client, &format!("insert into entries (account_id, amount) values ({}, 1)", accounts[0])).await;
    assert_eq!(asked(&pgherd, &mut client, SUM).await.1, (0, 3), "another table");
    for sql in ["begin", &format!("delete from accounts where id = {}", accounts[1])] {
        ok(&mut client, sql).await;
    }
    let mut other = pgherd.wire("app").await;
    let (answer, how) = asked(&pgherd, &mut other, SUM).await;
    assert_eq!((first(&answer), how.0 + how.1), ("4003".into(), 3), "it is not committed");
    ok(&mut client, "rollback").await;
    assert_eq!(first(&say(&mut other, SUM).await), "4003");
    // Both ends of a transfer are asked again, the third shard is not.
    for sql in [
        "begin".to_owned(),
        format!("update accounts set balance = balance - 5 where id = {}", accounts[0]),
        format!("update accounts set balance = balance + 6 where id = {}", accounts[2]),
        "commit".to_owned(),
    ] {
        ok(&mut client, &sql).await;
    }
    warm(&pgherd, 3, "select count(*) from entries").await;
    let (answer, how) = asked(&pgherd, &mut other, SUM).await;
    assert_eq!((first(&answer), how), ("4004".into(), (2, 1)));
    // The text of a route, and the console, tell of it.
    let route = say(&mut client, &format!("explain (route) {SUM}")).await;
    let row = route.rows.iter().find(|row| row[0].as_deref() == Some(b"cached by shard")).expect("a row");
    assert!(row[1].as_ref().is_some_and(|text| text.starts_with(b"yes")), "{row:?}");
    let purged = purge::purge(&pgherd.databases(), &Purge::All).await.expect("purged");
    assert!(purged > 0, "{purged} were there");
    assert_eq!(asked(&pgherd, &mut client, SUM).await.1, (3, 0), "all is forgotten");
}

#[tokio::test]
async fn nothing_is_cached_by_shard_unless_it_is_asked_for() {
    let mut stage = Stage::set(2).await;
    stage.toml += "[cache]\nenabled = true\nolap_only = false\n";
    let pgherd = stage.pgherd().await;
    let mut client = pgherd.wire("app").await;
    for _ in 0..4 {
        assert_eq!(asked(&pgherd, &mut client, SUM).await.1, (2, 0));
    }
}

/// Reads of every class that streams.
const READS: [&str; 9] = [
    SUM,
    "select min(balance), max(id), avg(balance) from accounts where balance > 90",
    "select owner, balance from accounts order by id limit 7",
    "select id, owner from accounts where balance <> 100",
    "select balance, count(*) from accounts group by balance having count(*) > 1",
    "select note, count(*), sum(amount) from entries group by note",
    "select count(*) from accounts a join entries e on e.account_id = a.id",
    "select sum(a.balance * r.rate) from accounts a join rates r on r.code = 'b'",
    "select distinct note from entries",
];

/// A change of an account writes another table, of which no statement says a word.
const MIRRORED: &str = "
create function mirrored() returns trigger language plpgsql as
$$ begin insert into entries (account_id, amount, note) values (new.id, new.balance, 'mirrored'); return new; end $$;
create trigger mirrors after update on accounts for each row execute function mirrored();
";

#[tokio::test]
async fn what_a_trigger_writes_unseen_is_asked_for_again() {
    let mut stage = Stage::set(3).await;
    for shard in &stage.shards {
        shard.execute(MIRRORED).await;
    }
    stage.toml += CACHE;
    let pgherd = stage.pgherd().await;
    let notes = "select count(*) from entries where note = 'mirrored'";
    warm(&pgherd, 3, notes).await;
    let mut client = pgherd.wire("app").await;
    for (turn, account) in stage.one_of_each().await.into_iter().enumerate() {
        ok(&mut client, &format!("update accounts set owner = 'x' where id = {account}")).await;
        let (answer, how) = asked(&pgherd, &mut client, notes).await;
        // What else the function may write cannot be told: all of that shard is in doubt, and of no other.
        assert_eq!((first(&answer), how), ((turn + 1).to_string(), (1, 2)));
    }
}

#[tokio::test]
async fn rows_that_move_to_another_shard_show_where_they_are() {
    let mut stage = Stage::set(3).await;
    stage.toml += &format!("{CACHE}[fanout]\nkey_moves = \"move\"\n");
    let pgherd = stage.pgherd().await;
    let keys = "select sum(id), count(*) from accounts";
    warm(&pgherd, 3, keys).await;
    let mut client = pgherd.wire("app").await;
    let mut sum = 820;
    for account in stage.one_of_each().await {
        ok(&mut client, &format!("update accounts set id = id + 1000 where id = {account}")).await;
        sum += 1000;
        for _ in 0..2 {
            let answer = say(&mut client, keys).await;
            assert_eq!((first(&answer), answer.column(1)[0].as_deref()), (sum.to_string(), Some("40")));
        }
    }
}

#[tokio::test]
async fn answers_are_those_of_one_postgresql_whatever_is_written() {
    let twins = Twins::with(3, CACHE).await;
    warm(&twins.pgherd, 3, SUM).await;
    let mut clients = twins.clients().await;
    let writes = [
        "update accounts set balance = balance + 1 where id % 3 = 0",
        "insert into accounts (id, owner, balance, at) values (101, 'a', 1, '2026-01-01'), (102, 'b', 2, '2026-01-01'), (103, 'c', 3, '2026-01-01')",
        "insert into entries (account_id, amount, note) select id, balance, owner from accounts where id < 20",
        "update rates set rate = rate * 3",
        "delete from accounts where id in (7, 8, 9)",
        "update accounts set owner = 'x' where id = 11",
        "update accounts set balance = balance + 1 where id = 12",
        "update accounts set balance = balance + 1 where id in (1, 2, 3, 4, 5, 6)",
        "alter table accounts add column more int4 default 5",
        "update accounts set more = 6 where id = 13",
        "truncate entries",
        "begin; insert into entries (account_id, amount) values (1, 1); rollback",
        "create index on entries (account_id)",
        "alter table accounts drop column more",
    ];
    for (turn, write) in writes.iter().enumerate() {
        let manner = MANNERS[turn % MANNERS.len()];
        for read in READS {
            twins.same(&mut clients, manner, read).await;
        }
        let is_string = write.starts_with("begin");
        let parts: Vec<&str> = if is_string { write.split("; ").collect() } else { vec![write] };
        for part in parts {
            twins.same(&mut clients, Manner::Simple, part).await;
        }
        for read in READS {
            twins.same(&mut clients, manner, read).await;
            twins.same(&mut clients, manner, read).await;
        }
    }
    // Rows that are copied in.
    for (port, name) in [(twins.whole.port, twins.whole.name.clone()), (twins.pgherd.port, "app".to_owned())] {
        let client = harness::connect(&format!("host=127.0.0.1 port={port} user=postgres dbname={name}")).await;
        copy(&client).await;
    }
    for read in READS.iter().chain(&READS) {
        twins.same(&mut clients, Manner::Text, read).await;
    }
    let (_, cached) = legs(&twins.pgherd).await;
    assert!(cached > 500, "{cached} parts were replayed");
    twins.stage.is_clean().await;
}

async fn copy(client: &Client) {
    use futures_util::SinkExt as _;
    let sink = client.copy_in("copy accounts (id, owner, balance, at) from stdin").await.expect("it begins");
    let mut sink = std::pin::pin!(sink);
    for id in 200..230 {
        sink.send(bytes::Bytes::from(format!("{id}\tcopied\t{id}\t2026-01-01\n"))).await.expect("a row");
    }
    sink.close().await.expect("it ends");
}

#[tokio::test]
async fn nobody_is_given_what_another_role_or_session_was() {
    let mut stage = Stage::set(2).await;
    let (ann, bob) = (harness::unique("ann"), harness::unique("bob"));
    for shard in stage.shards.iter().chain([&stage.primary]) {
        for role in [&ann, &bob] {
            let sql = format!(
                "do $$ begin create role {role} login; \
                 exception when duplicate_object or unique_violation then null; end $$"
            );
            shard.execute(&sql).await;
        }
    }
    for shard in &stage.shards {
        // The table's own lock first: an autovacuum that waits for a GRANT's row would wait for this in a circle.
        shard
            .execute(&format!(
                "alter table accounts enable row level security; grant select on accounts to {ann}, {bob}; \
                 create policy own on accounts using ((id % 2 = 0) = (current_user = '{ann}'))"
            ))
            .await;
    }
    for role in [&ann, &bob] {
        let _ = write!(stage.toml, "[[user]]\nname = \"{role}\"\nauth = \"trust\"\n");
    }
    // Each logs in as it is called.
    stage.toml = stage.toml.replace(" user=postgres", "") + CACHE;
    let pgherd = stage.pgherd().await;
    warm(&pgherd, 2, SUM).await;
    let ask = async |client: &Client, sql: &str| text_of(client, sql).await.expect("an answer");
    let (one, two) = (pgherd.client_as(&ann, "app").await, pgherd.client_as(&bob, "app").await);
    let even = "select sum(id) from accounts";
    let before = legs(&pgherd).await.1;
    for _ in 0..3 {
        assert_eq!((ask(&one, even).await, ask(&two, even).await), ("420".to_owned(), "400".to_owned()));
    }
    // Not the first time: what a login is given on the shards was not known then.
    assert!(legs(&pgherd).await.1 >= before + 4, "each is given its own");
    // SET ROLE, and what of a session changes how values are written.
    let any = pgherd.client("app").await;
    assert_eq!(ask(&any, even).await, "820");
    any.batch_execute(&format!("set role {ann}")).await.expect("a role");
    assert_eq!(ask(&any, even).await, "420");
    any.batch_execute("reset role").await.expect("no role");
    let at = "select max(at) from accounts";
    let mut times = Vec::new();
    for zone in ["UTC", "Asia/Tokyo", "UTC", "Asia/Tokyo"] {
        any.batch_execute(&format!("set timezone = '{zone}'")).await.expect("a zone");
        times.push(ask(&any, at).await);
    }
    assert_eq!((&times[0], &times[1]), (&times[2], &times[3]));
    assert_ne!(times[0], times[1]);
    // Who may not read any more is not given what was kept.
    for shard in &stage.shards {
        shard.execute(&format!("revoke select on accounts from {bob}")).await;
    }
    harness::eventually(Duration::from_secs(20), "it is seen", async || text_of(&two, even).await.is_err()).await;
}

#[tokio::test]
async fn what_is_prepared_by_a_client_is_refused_on_a_shard() {
    let (stage, pgherd) = stage(2).await;
    let accounts = stage.one_of_each().await;
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "begin").await;
    ok(&mut client, &format!("update accounts set balance = 1 where id = {}", accounts[0])).await;
    assert_eq!(say(&mut client, "prepare transaction 'mine'").await.code(), Some("0A000"));
    ok(&mut client, "rollback").await;
    assert_eq!(first(&say(&mut client, SUM).await), "4000");
}

/// The first value of an answer, as text.
async fn text_of(client: &Client, sql: &str) -> Result<String, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(row.expect("a value"))
}

/// Moves money between shards until the others have seen enough.
async fn transfers(client: Client, ids: [i32; 2], ends: Arc<AtomicBool>) -> u64 {
    let mut done = 0;
    while !ends.load(Ordering::Relaxed) {
        let sql = format!(
            "update accounts set balance = balance + {} where id = {}; update accounts set balance = balance - {} where id = {}",
            done % 3,
            ids[0],
            done % 3,
            ids[1]
        );
        client.batch_execute("begin").await.expect("begin");
        let mut is_good = true;
        for part in sql.split("; ") {
            is_good = is_good && client.batch_execute(part).await.is_ok();
        }
        let end = if is_good { "commit" } else { "rollback" };
        done += u64::from(client.batch_execute(end).await.is_ok() && is_good);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_sum_shows_half_of_a_transfer_while_parts_are_replayed() {
    let Some(redis) = RedisServer::start(harness::ground()).expect("Redis starts") else { return };
    let mut stage = Stage::set(4).await;
    stage.toml += &format!("{CACHE}redis = {{ url = \"{}\", timeout = \"100ms\" }}\n", redis.url());
    let herds = Arc::new([stage.pgherd().await, stage.pgherd().await]);
    for herd in &*herds {
        warm(herd, 4, SUM).await;
    }
    let accounts = stage.one_of_each().await;
    let ends = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for (at, ids) in [[accounts[0], accounts[1]], [accounts[1], accounts[2]]].into_iter().enumerate() {
        let client = herds[at].client("app").await;
        writers.push(tokio::spawn(transfers(client, ids, Arc::clone(&ends))));
    }
    let (sums, before) = (Arc::new(AtomicU64::new(0)), [legs(&herds[0]).await, legs(&herds[1]).await]);
    let mut readers = Vec::new();
    for at in 0..4 {
        let (herds, sums, ends) = (Arc::clone(&herds), Arc::clone(&sums), Arc::clone(&ends));
        readers.push(tokio::spawn(async move {
            let client = herds[at % 2].client("app").await;
            while !ends.load(Ordering::Relaxed) {
                assert_eq!(text_of(&client, "select sum(balance) from accounts").await.expect("a sum"), "4000");
                sums.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    // As much as there is time for.
    let end = Instant::now() + Duration::from_secs(60);
    let replayed = async || legs(&herds[0]).await.1 + legs(&herds[1]).await.1 - before[0].1 - before[1].1;
    while Instant::now() < end && (replayed().await < 1000 || sums.load(Ordering::Relaxed) < 500) {
        assert!(!readers.iter().any(tokio::task::JoinHandle::is_finished), "a reader has seen another sum");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let replayed = replayed().await;
    ends.store(true, Ordering::Relaxed);
    let mut done = 0;
    for writer in writers {
        done += writer.await.expect("no panic");
    }
    for reader in readers {
        reader.await.expect("no other sum");
    }
    let now = [legs(&herds[0]).await, legs(&herds[1]).await];
    eprintln!("{done} transfers, {} sums, legs run and replayed: {before:?} to {now:?}", sums.load(Ordering::Relaxed));
    assert!(done > 10 && replayed > 20, "{done} transfers, {replayed} parts replayed");
    // At rest both say what the shards hold.
    let all = "select id, balance from accounts order by id";
    let mut truth = Vec::new();
    for shard in &stage.shards {
        let rows = shard.client().await.query(all, &[]).await.expect("rows");
        truth.extend(rows.iter().map(|row| (row.get::<_, i32>(0), row.get::<_, i64>(1))));
    }
    truth.sort_unstable();
    for herd in &*herds {
        let rows = herd.client("app").await.query(all, &[]).await.expect("rows");
        let told: Vec<(i32, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(told, truth);
    }
}

/// Which database a name of a prepared transaction means by that server.
async fn place(database: &Database) -> String {
    let sql = "select format('%s.%s', to_hex(system_identifier), to_hex(d.oid::int8)) from pg_control_system(), pg_database d \
               where d.datname = current_database()";
    database.client().await.query_one(sql, &[]).await.expect("a name").get(0)
}

/// Writes that the only transaction which is prepared is to be committed, on the shard that decides about it.
async fn decide(stage: &Stage) {
    let sql = "select gid from pg_prepared_xacts where database = current_database()";
    // As whoever takes the latch for it leaves it: reads see to what was cut short first.
    stage.primary.execute("insert into pgherd.unfinished (latch) values (1)").await;
    let mut participants = Vec::new();
    for shard in &stage.shards {
        participants.push(place(shard).await);
    }
    for (shard, name) in stage.shards.iter().zip(&participants) {
        let client = shard.client().await;
        let gid: String = client.query_one(sql, &[]).await.expect("it is prepared").get(0);
        let mut parts = gid.split(':').skip(1);
        let (decider, coordinator, number) = (parts.next(), parts.next().expect("it"), parts.next().expect("a number"));
        if decider != Some(name.as_str()) {
            continue;
        }
        let (key, coordinator) = (format!("{coordinator}:{number}"), i64::from_str_radix(coordinator, 16).expect("it"));
        let sql = "insert into pgherd.decision (transaction, coordinator, outcome, participants) values ($1, $2, 'commit', $3)";
        client.execute(sql, &[&key, &coordinator, &participants]).await.expect("decided");
        // From now on anybody may finish it.
        return;
    }
    panic!("nobody decides");
}

#[tokio::test]
async fn what_a_killed_pgherd_has_left_prepared_is_waited_for_before_anything_is_served() {
    let Some(redis) = RedisServer::start(harness::ground()).expect("Redis starts") else { return };
    let shards = harness::fresh_databases(2).await;
    let mut stage = Stage::over(shards, "two_phase = { user = \"decider\", lock_timeout = \"30s\" }\n").await;
    let redis = format!("redis = {{ url = \"{}\", timeout = \"100ms\", lease = \"1s\" }}\n", redis.url());
    stage.toml += &format!("{CACHE}{redis}");
    let port = free_port();
    let folder = harness::ground().folder().join(harness::unique("killed"));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("proxy.toml");
    std::fs::write(&path, format!("{}\n[listen]\naddress = \"127.0.0.1:{port}\"\n", stage.toml)).expect("a file");
    let doomed = Serving::start(&path);
    let other = stage.pgherd().await;
    warm(&other, 2, SUM).await;
    let accounts = stage.one_of_each().await;
    // Its commit prepares everywhere, and then waits for the latch.
    let latch = stage.primary.client().await;
    latch.batch_execute("select pg_advisory_lock_shared(hashtextextended('pgherd latch', 0))").await.expect("a lock");
    let writer = harness::connect(&format!("host=127.0.0.1 port={port} user=postgres dbname=app")).await;
    writer.batch_execute("begin").await.expect("begin");
    for (account, amount) in accounts.iter().zip([7, -7]) {
        let sql = format!("update accounts set balance = balance + {amount} where id = {account}");
        writer.batch_execute(&sql).await.expect("an update");
    }
    let committing = tokio::spawn(async move { writer.batch_execute("commit").await });
    harness::eventually(Duration::from_secs(20), "it is prepared", async || stage.left_over().await.0 == 2).await;
    doomed.signal("-STOP");
    let mut client = other.wire("app").await;
    let (answer, how) = asked(&other, &mut client, SUM).await;
    assert_eq!((first(&answer), how), ("4000".into(), (2, 0)), "it is in doubt on both");
    decide(&stage).await;
    let ends = "select min(balance), max(balance) from accounts";
    let seen = |answer: &Answer| (answer.column(0)[0].clone(), answer.column(1)[0].clone());
    let after = (Some("93".to_owned()), Some("107".to_owned()));
    // Whoever reads next finishes it; but who wrote it may still be about to write, as far as anybody knows.
    for _ in 0..20 {
        let (answer, how) = asked(&other, &mut client, ends).await;
        assert_eq!((seen(&answer), how), (after.clone(), (2, 0)));
    }
    assert_eq!(stage.left_over().await.0, 0);
    doomed.signal("-KILL");
    assert!(committing.await.expect("no panic").is_err(), "nobody has told its client");
    // Now nobody is, and answers are kept again.
    warm(&other, 2, ends).await;
    let (answer, how) = asked(&other, &mut client, ends).await;
    assert_eq!((seen(&answer), how), (after, (0, 2)));
}
