//! A SELECT over shards in a transaction that has written: it sees what the transaction wrote, as in one PostgreSQL, and leaves the
//! transaction as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgherd::wire::writer;

use super::several::Twins;
use super::stage::{ok, say};
use crate::answers::{Answer, MANNERS, Manner, ask, ask_with};
use crate::harness::wire::{WireClient, bind};

/// Rows, counts, groups, sorting, limits, joins on the key and with a reference table.
const READS: [&str; 16] = [
    "select count(*) from accounts",
    "select count(*), sum(balance), min(id), max(id), avg(balance) from accounts",
    "select balance, count(*) from accounts group by balance",
    "select balance % 7, sum(id) from accounts group by 1 having count(*) > 1 order by 1",
    "select id, owner, balance from accounts order by balance desc, id limit 6",
    "select id from accounts order by id offset 3 limit 4",
    "select id, balance from accounts where balance <> 100",
    "select distinct balance from accounts where id > 7",
    "select id from accounts where id in (3, 7, 11, 150)",
    "select id from accounts where balance < -5",
    "select a.id, e.amount, e.note from accounts a join entries e on e.account_id = a.id order by a.id, e.amount, e.note",
    "select a.id, r.code, a.balance * r.rate from accounts a join rates r on r.rate > 1 where a.balance > 100",
    "select count(*) from accounts a where exists (select 1 from entries e where e.account_id = a.id)",
    "select count(*), sum(amount) from entries",
    "select account_id, amount from entries order by amount, account_id limit 2",
    "select exists (select 1), id from accounts where id < 4 order by id",
];

/// Both say the same; how many rows come before an error is open, as their order is.
async fn alike(clients: &mut (WireClient, WireClient), manner: Manner, sql: &str, values: &[Option<&str>]) {
    let mut said = Vec::new();
    for client in [&mut clients.0, &mut clients.1] {
        let mut answer = ask_with(client, manner, sql, values).await.sorted();
        if answer.error.is_some() {
            answer.rows.clear();
        }
        said.push(answer);
    }
    assert_eq!(said[0], said[1], "{manner:?} {sql}");
}

async fn reads(twins: &Twins, clients: &mut (WireClient, WireClient), manner: Manner) {
    for sql in READS {
        twins.same(clients, manner, sql).await;
    }
}

#[tokio::test]
async fn a_select_sees_what_its_transaction_has_written() {
    let twins = Twins::with(3, "\n[fanout]\nkey_moves = \"move\"\n").await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "begin",
            "insert into accounts (id, owner, balance) values (101, 'new', 7)",
            "*",
            "update accounts set balance = 100 + id where id % 3 = 0",
            "insert into entries (account_id, amount) values (1, 5), (2, 6), (3, 7), (150, 8)",
            "*",
            "savepoint s",
            "delete from accounts where id > 20",
            "update accounts set id = id + 100 where id < 10",
            "*",
            "savepoint t",
            "truncate entries",
            "*",
            "update rates set rate = rate * 3",
            "*",
            "rollback to t",
            "*",
            "rollback to s",
            "*",
            "release s",
            "commit",
            "*",
            "begin",
            "update accounts set id = id + 200 where id = 3",
            "*",
            "rollback",
            "*",
            "begin",
            "delete from entries",
            "*",
            "delete from accounts where id = 101",
            "update accounts set balance = 100",
            "*",
            "commit",
        ] {
            match sql {
                "*" => reads(&twins, &mut clients, manner).await,
                sql => drop(twins.same(&mut clients, manner, sql).await),
            }
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn errors_fail_the_transaction_and_savepoints_bring_it_back() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            "begin",
            "update accounts set balance = 77 where id = 9",
            "savepoint t",
            // On the shard that was written to, and on one that the transaction has not reached.
            "select 1 / (balance - 77) from accounts",
            "select count(*) from accounts",
            "rollback to t",
            "select count(*), sum(balance) from accounts",
            "select 1 / (id - 2) from accounts order by 1",
            "rollback to t",
            "select 1 / (id - 5) from accounts",
            "rollback to t",
            "select no_such from accounts",
            "rollback to t",
            "select count(*), sum(balance) from accounts",
            "insert into accounts (id, balance) values (201, 1), (202, 2), (203, 3)",
            "select count(*), sum(balance) from accounts",
            "select sum(1 / (id - 202)) from accounts",
            "rollback to t",
            "select count(*), sum(balance) from accounts",
            "commit",
            "select count(*), sum(balance) from accounts",
            "begin",
            "update accounts set balance = 3",
            "select 1 / (balance - 3) from accounts",
            "commit",
            "select count(*), sum(balance) from accounts",
            "update accounts set balance = 100",
        ] {
            alike(&mut clients, manner, sql, &[]).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn without_two_phase_a_transaction_that_writes_on_one_server_reads_on_all() {
    let twins = Twins::without_two_phase("").await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for (end, id) in [("rollback", 7), ("commit", 7), ("commit", 8), ("commit", 9)] {
            for sql in [
                "begin".to_owned(),
                format!("update accounts set balance = balance + {id} where id = {id}"),
                "*".to_owned(),
                "savepoint s".to_owned(),
                format!("insert into entries (account_id, amount) values ({id}, 5)"),
                "*".to_owned(),
                "select 1 / (id - 2) from accounts".to_owned(),
                "select count(*) from accounts".to_owned(),
                "rollback to s".to_owned(),
                "*".to_owned(),
                format!("insert into entries (account_id, amount) values ({id}, 6)"),
                end.to_owned(),
                "*".to_owned(),
            ] {
                match sql.as_str() {
                    "*" => reads(&twins, &mut clients, manner).await,
                    sql => alike(&mut clients, manner, sql, &[]).await,
                }
            }
            // What fails on a shard beside it fails all of it.
            for sql in [
                "begin",
                &format!("delete from accounts where id = {id}"),
                "select 1 / (id - 2), 1 / (id - 3), 1 / (id - 4) from accounts",
                "commit",
                "select count(*) from accounts",
            ] {
                alike(&mut clients, manner, sql, &[]).await;
            }
        }
        // Written on the primary alone.
        for sql in ["begin", "insert into local_notes values (1, 'one')", "*", "select note from local_notes", "commit"]
        {
            match sql {
                "*" => reads(&twins, &mut clients, manner).await,
                sql => alike(&mut clients, manner, sql, &[]).await,
            }
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn what_others_commit_meanwhile_is_seen_and_nothing_else_of_theirs() {
    for twins in [Twins::set(3).await, Twins::without_two_phase("").await] {
        let (mut clients, mut others) = (twins.clients().await, twins.clients().await);
        for manner in MANNERS {
            twins.same(&mut clients, manner, "begin").await;
            twins.same(&mut clients, manner, "update accounts set balance = 200 where id = 5").await;
            for (id, balance) in [(30, 300), (31, 301), (32, 302), (33, 303)] {
                for other in [&mut others.0, &mut others.1] {
                    ok(other, &format!("update accounts set balance = {balance} where id = {id}")).await;
                }
                reads(&twins, &mut clients, manner).await;
            }
            for other in [&mut others.0, &mut others.1] {
                ok(other, "begin").await;
                ok(other, "update accounts set balance = 400 where id = 12").await;
            }
            reads(&twins, &mut clients, manner).await;
            // Nor do others see anything of it.
            twins.same(&mut others, manner, "select id, balance from accounts where balance <> 100").await;
            for other in [&mut others.0, &mut others.1] {
                ok(other, "commit").await;
            }
            reads(&twins, &mut clients, manner).await;
            twins.same(&mut clients, manner, "commit").await;
            twins.is_same().await;
            for id in [5, 12, 30, 31, 32, 33] {
                for other in [&mut others.0, &mut others.1] {
                    ok(other, &format!("update accounts set balance = 100 where id = {id}")).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn parameters_go_to_all_legs() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for manner in MANNERS.into_iter().filter(|it| *it != Manner::Simple) {
        for (sql, values) in [
            ("begin", &[][..]),
            ("update accounts set balance = $1 where id = $2", &[Some("900"), Some("4")]),
            ("select id, balance from accounts where balance > $1 order by id limit $2", &[Some("100"), Some("3")]),
            ("select count(*) from accounts where balance = $1", &[Some("900")]),
            ("select id + $1 from accounts where owner = $2", &[Some("1"), Some("owner 4")]),
            ("select 1 / (balance - $1) from accounts", &[Some("900")]),
            ("rollback", &[]),
        ] {
            alike(&mut clients, manner, sql, values).await;
        }
    }
    twins.is_same().await;
}

/// Executes an unnamed statement up to a row limit.
pub(super) async fn limited(client: &mut WireClient, sql: &str, rows: i32) -> Answer {
    client
        .say(|out| {
            writer::parse(out, b"", sql.as_bytes(), &[]);
            bind(out, "", "", &[], 0);
            writer::describe(out, b'P', b"");
            writer::execute(out, b"", rows);
            writer::sync(out);
        })
        .await;
    Answer::read(&client.until_ready().await)
}

async fn again(client: &mut WireClient) -> Answer {
    client
        .say(|out| {
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    Answer::read(&client.until_ready().await)
}

#[tokio::test]
async fn a_row_limit_is_kept_and_what_it_leaves_is_refused() {
    let twins = Twins::set(3).await;
    for shard in &twins.stage.shards {
        let sql = "insert into entries (account_id, amount, note) select a.id, g, repeat('x', 900) from accounts a, generate_series(1, 300) g";
        shard.execute(sql).await;
    }
    let mut clients = twins.clients().await;
    for client in [&mut clients.0, &mut clients.1] {
        ok(client, "begin").await;
        ok(client, "update accounts set balance = 1 where id = 6").await;
        ok(client, "savepoint s").await;
    }
    for (sql, rows) in [
        ("select count(*) from accounts", 1),
        ("select count(*) from accounts", 2),
        ("select id, balance from accounts order by id", 7),
        ("select id, balance from accounts order by id", 40),
        ("select id, balance from accounts order by id", 41),
        ("select balance, count(*) from accounts group by balance order by balance", 1),
    ] {
        let (truth, answer) = (limited(&mut clients.0, sql, rows).await, limited(&mut clients.1, sql, rows).await);
        assert_eq!(truth, answer, "{sql} {rows}");
        let count = "select count(*), sum(balance) from accounts";
        twins.same(&mut clients, Manner::Text, count).await;
        // What has come to its end gives no more rows, as in PostgreSQL; what was suspended is not kept.
        limited(&mut clients.0, sql, rows).await;
        limited(&mut clients.1, sql, rows).await;
        let (truth, then) = (again(&mut clients.0).await, again(&mut clients.1).await);
        match answer.tag == "suspended" {
            true => assert_eq!((then.code(), then.status), (Some("0A000"), 'E'), "{sql} {rows}"),
            false => assert_eq!(truth, then, "{sql} {rows}"),
        }
        for client in [&mut clients.0, &mut clients.1] {
            ok(client, "rollback to s").await;
        }
    }
    // Much is left behind it.
    for sql in ["select note from entries", "select note from entries order by amount, account_id"] {
        let answer = limited(&mut clients.1, sql, 3).await;
        assert_eq!((answer.tag.as_str(), answer.rows.len(), answer.status), ("suspended", 3, 'T'), "{sql}");
        assert_eq!(ok(&mut clients.1, "select count(*) from accounts").await, "SELECT 1");
    }
    assert_eq!(ok(&mut clients.1, "commit").await, "COMMIT");
    assert_eq!(twins.stage.balance(6).await, Some(1));
    twins.stage.is_clean().await;
}

#[tokio::test]
async fn a_portal_of_before_a_write_is_not_shown_the_write() {
    let twins = Twins::set(2).await;
    let mut client = twins.clients().await.1;
    ok(&mut client, "begin").await;
    client
        .say(|out| {
            writer::parse(out, b"s", b"select count(*) from accounts", &[]);
            bind(out, "p", "s", &[], 0);
            writer::sync(out);
        })
        .await;
    assert_eq!(Answer::read(&client.until_ready().await).error, None);
    ok(&mut client, "delete from accounts where id = 1").await;
    client
        .say(|out| {
            writer::execute(out, b"p", 0);
            writer::sync(out);
        })
        .await;
    let answer = Answer::read(&client.until_ready().await);
    assert_eq!((answer.code(), answer.status, answer.rows.len()), (Some("0A000"), 'E', 0), "{answer:?}");
    assert_eq!(ok(&mut client, "commit").await, "ROLLBACK");
    twins.is_same().await;
}

/// What a refusal says, and its hint.
async fn refusal(client: &mut WireClient, sql: &str) -> (String, String) {
    let messages = client.query(sql).await;
    let error = messages.iter().find(|message| message.tag == b'E').unwrap_or_else(|| panic!("{sql}: {messages:?}"));
    let field = |code| error.field(code).unwrap_or_default();
    assert_eq!(field(b'C'), "0A000", "{sql}: {messages:?}");
    (field(b'M'), field(b'H'))
}

#[tokio::test]
async fn what_stays_refused_says_what_helps() {
    let twins = Twins::set(2).await;
    let mut client = twins.clients().await.1;
    for (before, sql, says, helps) in [
        (
            "",
            "select a.id from accounts a join accounts b on a.balance = b.id",
            "has written: it is not streamed: ",
            "Commit first",
        ),
        ("", "select id, rank() over (order by balance) from accounts", "window", "streamed sees"),
        ("", "copy (select id from accounts) to stdout", "COPY", "by itself"),
        ("", "declare c cursor for select id from accounts", "cursor", "by itself"),
        ("", "explain select id from accounts", "EXPLAIN", "EXPLAIN (ROUTE)"),
        (
            "",
            "insert into entries (account_id, amount) select id + 1, rank() over (order by balance) from accounts",
            "window",
            "Commit first",
        ),
        (
            "set local standard_conforming_strings = off",
            "select count(*) from accounts",
            "settings are not known",
            "before the transaction",
        ),
        ("alter table accounts add column more int4", "select count(*) from accounts", "changed tables", "Commit"),
    ] {
        ok(&mut client, "begin").await;
        ok(&mut client, "update accounts set balance = 5 where id = 1").await;
        if !before.is_empty() {
            ok(&mut client, before).await;
        }
        let (message, hint) = refusal(&mut client, sql).await;
        assert!(message.contains(says) && hint.contains(helps), "{sql}: {message} / {hint}");
        assert_eq!(ok(&mut client, "rollback").await, "ROLLBACK");
    }
    ok(&mut client, "begin isolation level repeatable read").await;
    ok(&mut client, "update accounts set balance = 5 where id = 1").await;
    let (message, _) = refusal(&mut client, "select count(*) from accounts").await;
    assert!(message.contains("REPEATABLE READ"), "{message}");
    ok(&mut client, "rollback").await;
    // And where it would run.
    ok(&mut client, "begin").await;
    ok(&mut client, "update accounts set balance = 5 where id = 1").await;
    let route = say(&mut client, "explain (route) select count(*) from accounts").await;
    let shown = format!("{:?} {:?}", route.column(0), route.column(1));
    assert!(shown.contains("fan-out") && shown.contains("sees what it has written"), "{shown}");
    let route = say(&mut client, "explain (route) select id, rank() over (order by balance) from accounts").await;
    assert!(format!("{:?}", route.column(1)).contains("has written"), "{route:?}");
    ok(&mut client, "rollback").await;
    twins.is_same().await;
}

#[tokio::test]
async fn a_cancel_fails_the_transaction_and_reaches_what_comes_next() {
    let twins = Twins::set(3).await;
    let mut client = twins.clients().await.1;
    let waits =
        "select count(*) from accounts a join entries e on e.account_id = a.id where repeat(e.note, 90000) ~ '(x+)+y'";
    ok(&mut client, "begin").await;
    ok(&mut client, "update accounts set balance = 5 where id = 1").await;
    ok(&mut client, "insert into entries (account_id, amount, note) select id, 1, repeat('x', 50) from accounts").await;
    ok(&mut client, "savepoint s").await;
    for sql in [waits, waits, "select count(*) from accounts where id = 1 and pg_sleep(600) is not null"] {
        client.say(|out| writer::query(out, sql.as_bytes())).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.cancel().await;
        let cancelled = Answer::read(&client.until_ready().await);
        assert_eq!((cancelled.code(), cancelled.status), (Some("57014"), 'E'), "{sql}: {cancelled:?}");
        ok(&mut client, "rollback to s").await;
        let sum = say(&mut client, "select sum(balance), count(*) from accounts").await;
        assert_eq!(sum.column(0), [Some("3905".into())], "{sql}");
    }
    ok(&mut client, "rollback").await;
    twins.is_same().await;
}

#[tokio::test]
async fn a_server_that_is_lost_takes_the_transaction_with_it() {
    let twins = Twins::set(3).await;
    let account = twins.stage.one_of_each().await;
    let mut client = twins.clients().await.1;
    ok(&mut client, "begin").await;
    ok(&mut client, &format!("update accounts set balance = 5 where id = {}", account[1])).await;
    ok(&mut client, "select count(*) from accounts").await;
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'";
    twins.stage.shards[1].execute(kill).await;
    client.say(|out| writer::query(out, b"select count(*) from accounts")).await;
    let said = client.ended().await;
    assert!(said.iter().any(|message| message.tag == b'E'), "{said:?}");
    assert!(!said.iter().any(|message| message.tag == b'C'), "{said:?}");
    assert_eq!(twins.stage.balance(account[1]).await, Some(100));
    twins.is_same().await;
}

#[tokio::test]
async fn nothing_of_it_comes_from_the_cache_or_goes_there() {
    let twins = Twins::with(2, "[cache]\nenabled = true\nolap_only = false\nshards = true\n").await;
    let sum = "select sum(balance), count(*) from accounts";
    let mut clients = (twins.clients().await.1, twins.clients().await.1);
    let cached = async || twins.pgherd.metric("pgherd_fanout_legs_cached_total", "app").await;
    for manner in MANNERS {
        // Until all of it is replayed.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let before = cached().await;
            assert_eq!(ask(&mut clients.1, Manner::Simple, sum).await.column(0), [Some("4000".into())]);
            if cached().await > before + 1.5 {
                break;
            }
            assert!(Instant::now() < deadline, "it is never cached");
        }
        let before = cached().await;
        ok(&mut clients.0, "begin").await;
        ok(&mut clients.0, "update accounts set balance = 0 where id = 1").await;
        let own = ask(&mut clients.0, manner, sum).await;
        assert_eq!((own.rows.len(), own.error), (1, None));
        let own = say(&mut clients.0, sum).await;
        assert_eq!(own.column(0), [Some("3900".into())], "{manner:?}");
        assert!((cached().await - before).abs() < 0.5, "nothing is replayed");
        assert_eq!(say(&mut clients.1, sum).await.column(0), [Some("4000".into())], "{manner:?}");
        ok(&mut clients.0, "rollback").await;
        for _ in 0..3 {
            assert_eq!(say(&mut clients.1, sum).await.column(0), [Some("4000".into())], "{manner:?}");
        }
    }
    twins.is_same().await;
}

/// Moves ten from one account to another and looks at the whole in between, as often as time lets it.
async fn transfers(mut client: WireClient, who: i32, until: Instant, done: Arc<AtomicU64>) {
    let sum = "select sum(balance), count(*) from accounts";
    let mut round = who;
    while Instant::now() < until {
        round = (round * 7 + who + 1) % 40;
        let (from, to) = (round + 1, (round + 13) % 40 + 1);
        let take = format!("update accounts set balance = balance - 10 where id = {from}");
        let give = format!("update accounts set balance = balance + 10 where id = {to}");
        let mut steps =
            [("begin", ""), (&take, ""), (sum, "3990"), (&give, ""), (sum, "4000"), ("commit", "")].into_iter();
        let failed = loop {
            let Some((sql, wanted)) = steps.next() else { break None };
            let answer = say(&mut client, sql).await;
            match answer.code() {
                None if wanted.is_empty() => {}
                None => assert_eq!(answer.column(0), [Some(wanted.into())], "{sql}, {who}"),
                Some(code) => break Some(code.to_owned()),
            }
        };
        match failed.as_deref() {
            None => drop(done.fetch_add(1, Ordering::Relaxed)),
            // Deadlocks end, and accounts run dry.
            Some("55P03" | "40P01" | "23514") => drop(ok(&mut client, "rollback").await),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn sums_within_transfers_are_whole_and_nobody_waits_for_ever() {
    let twins = Twins::set(3).await;
    let (until, done) = (Instant::now() + Duration::from_secs(6), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for who in 0..8 {
        tasks.push(tokio::spawn(transfers(twins.pgherd.wire("app").await, who, until, Arc::clone(&done))));
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("nobody waits for ever").expect("no panic");
    }
    let done = done.load(Ordering::Relaxed);
    assert!(done > 10, "{done} transfers");
    let mut client = twins.clients().await.1;
    assert_eq!(say(&mut client, "select sum(balance) from accounts").await.column(0), [Some("4000".into())]);
    twins.stage.is_clean().await;
}

#[tokio::test]
async fn going_back_to_a_savepoint_of_several_servers_takes_only_portals_behind_it() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    let mut said = Vec::new();
    for client in [&mut clients.0, &mut clients.1] {
        let mut answers = Vec::new();
        ok(client, "begin").await;
        answers.push(executed(client, "p", Some("select id from accounts order by id"), 3).await);
        for sql in ["update accounts set balance = balance + 1 where id in (1, 2, 3, 4, 5, 6)", "savepoint a"] {
            ok(client, sql).await;
        }
        answers.push(executed(client, "p", None, 2).await);
        answers.push(executed(client, "q", Some("select id, balance from accounts order by id"), 50).await);
        ok(client, "update accounts set balance = 7 where id < 9").await;
        for _ in 0..2 {
            ok(client, "rollback to a").await;
            answers.push(executed(client, "p", None, 2).await);
            answers.push(executed(client, "q", None, 2).await);
        }
        ok(client, "rollback to a").await;
        ok(client, "release a").await;
        answers.push(executed(client, "p", None, 0).await);
        ok(client, "commit").await;
        said.push(answers);
    }
    assert_eq!(said[1], said[0]);
    assert_eq!(said[0].iter().filter(|answer| answer.code() == Some("34000")).count(), 2, "{:?}", said[0]);
    twins.is_same().await;
}

/// Executes a portal up to a row limit, bound to that statement if there is one.
async fn executed(client: &mut WireClient, portal: &str, sql: Option<&str>, rows: i32) -> Answer {
    client
        .say(|out| {
            if let Some(sql) = sql {
                writer::parse(out, b"", sql.as_bytes(), &[]);
                bind(out, portal, "", &[], 0);
            }
            writer::execute(out, portal.as_bytes(), rows);
            writer::sync(out);
        })
        .await;
    Answer::read(&client.until_ready().await)
}
