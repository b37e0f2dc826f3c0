//! What follows an error: a transaction that failed takes nothing any more, and behind an error in a pipeline nothing is looked at up to
//! the Sync, on whichever server it happened.

use pgherd::wire::writer;

use super::several::Twins;
use super::stage::ok;
use crate::answers::{MANNERS, Manner};
use crate::harness::wire::{Message, WireClient, bind};

const NOTES: &str = "create table local_notes (id int4, note text)";

async fn twins() -> (Twins, WireClient, WireClient) {
    let twins = Twins::set(3).await;
    twins.whole.execute(NOTES).await;
    let (oracle, client) = twins.clients().await;
    (twins, oracle, client)
}

#[tokio::test]
async fn a_read_that_fails_beside_the_transaction_fails_it() {
    let (twins, oracle, client) = twins().await;
    let mut clients = (oracle, client);
    for manner in MANNERS {
        for first in ["select count(*) from local_notes", "show timezone", "select 1", "select max(id) from accounts"] {
            for failing in [
                "select 1 / (balance - balance) from accounts where id = 6",
                "select nothing from accounts where id = 6",
                "select 1 / (rate - rate) from rates where code = 'a'",
                "select sum(1 / (balance - balance)) from accounts",
            ] {
                for sql in [
                    "begin",
                    first,
                    failing,
                    "insert into local_notes values (777, 'must not stay')",
                    "insert into accounts (id, balance) values (777, 1)",
                    "commit",
                    "select count(*) from local_notes",
                    "select count(*) from accounts",
                ] {
                    twins.same(&mut clients, manner, sql).await;
                }
            }
        }
    }
    // A savepoint is gone back to as ever.
    for sql in [
        "begin",
        "insert into local_notes values (1, 'stays')",
        "savepoint a",
        "select 1 / (balance - balance) from accounts where id = 6",
        "select 1",
        "rollback to a",
        "insert into local_notes values (2, 'stays')",
        "commit",
        "select id, note from local_notes",
        "delete from local_notes",
    ] {
        twins.same(&mut clients, Manner::Simple, sql).await;
    }
    twins.is_same().await;
}

/// A message of a pipeline.
#[derive(Debug, Clone, Copy)]
enum Say<'a> {
    /// Parse, Bind, Execute of the unnamed statement.
    Run(&'a str),
    /// The same, with everything described.
    Ask(&'a str),
    /// Parse under a name.
    Prepare(&'a str, &'a str),
    /// Bind and Execute of a statement of that name.
    Again(&'a str),
    Sync,
}

/// What the client is told that matters: rows, tags, errors, where the transaction stands.
async fn told(client: &mut WireClient, script: &[Say<'_>]) -> Vec<String> {
    client
        .say(|out| {
            for say in script {
                match say {
                    Say::Run(sql) => {
                        writer::parse(out, b"", sql.as_bytes(), &[]);
                        bind(out, "", "", &[], 0);
                        writer::execute(out, b"", 0);
                    }
                    Say::Ask(sql) => {
                        writer::parse(out, b"", sql.as_bytes(), &[]);
                        writer::describe(out, b'S', b"");
                        bind(out, "", "", &[], 0);
                        writer::describe(out, b'P', b"");
                        writer::execute(out, b"", 0);
                    }
                    Say::Prepare(name, sql) => writer::parse(out, name.as_bytes(), sql.as_bytes(), &[]),
                    Say::Again(name) => {
                        bind(out, "", name, &[], 0);
                        writer::execute(out, b"", 0);
                    }
                    Say::Sync => writer::sync(out),
                }
            }
        })
        .await;
    let mut told = Vec::new();
    for _ in script.iter().filter(|say| matches!(say, Say::Sync)) {
        told.extend(client.until_ready().await.iter().filter_map(gist));
    }
    told
}

/// Equal, or refused where PostgreSQL does not take it either.
fn is_alike(given: &[String], wanted: &[String], script: &[Say<'_>]) {
    let as_told = |(given, wanted): (&String, &String)| match given == "E 0A000" && wanted.starts_with('E') {
        true => wanted.clone(),
        false => given.clone(),
    };
    let alike: Vec<String> = given.iter().zip(wanted).map(as_told).collect();
    assert_eq!((alike.as_slice(), given.len()), (wanted, wanted.len()), "{script:?}\n{given:?}");
}

fn gist(message: &Message) -> Option<String> {
    match message.tag {
        b'C' | b'Z' => Some(format!("{} {}", char::from(message.tag), String::from_utf8_lossy(&message.body))),
        b'E' => Some(format!("E {}", message.field(b'C').unwrap_or_default())),
        b'D' => Some(format!("D {:?}", message.values())),
        b'I' => Some("I".to_owned()),
        _ => None,
    }
}

#[tokio::test]
async fn nothing_is_looked_at_behind_an_error_in_a_pipeline() {
    use Say::{Again, Ask, Prepare, Run, Sync};
    let (twins, mut oracle, mut client) = twins().await;
    let accounts = twins.stage.one_of_each().await;
    let update = |at: usize| format!("update accounts set balance = balance + 1 where id = {}", accounts[at]);
    let (one, two, three) = (update(0), update(1), update(2));
    let (one, two, three) = (Run(&one), Run(&two), Run(&three));
    let fails_there = format!("update accounts set balance = -1 where id = {}", accounts[1]);
    let fails_elsewhere = [
        Run("insert into local_notes values (1 / 0, 'no')"),
        Run(&fails_there),
        Run("select nonsense"),
        Ask("select no_function(code) from rates"),
        Ask("select no_function(id) from accounts"),
    ];
    let count = Run("select count(*), sum(balance) from accounts");
    let note = Run("insert into local_notes values (1, 'yes')");
    for fails in fails_elsewhere {
        for control in [
            Run("commit"),
            Run("rollback"),
            Run("rollback to a"),
            Run("release a"),
            Run("savepoint b"),
            Run(""),
            Run("set extra_float_digits = 0"),
            count,
            Ask("select count(*) from accounts group by id % 7 having 1 / (count(*) - 5) >= 0"),
            two,
            three,
            note,
        ] {
            for script in [
                // The error is on a server that the transaction has; what follows it is for all of them, or another.
                &[Run("begin"), count, Run("set local datestyle = default"), fails, control, note, Sync][..],
                &[Run("begin"), one, Run("savepoint a"), two, note, Sync, one, fails, control, Sync, note, Sync],
                &[Run("begin"), Run("savepoint a"), one, Sync, fails, control, Sync, note, Sync],
                &[Run("begin"), Run("savepoint a"), Sync, fails, control, Sync, note, Sync],
                &[Run("begin"), one, Run("savepoint a"), fails, control, Sync, note, Sync],
                &[Run("begin"), Sync, fails, control, Sync, Run("rollback to a"), Sync, note, Sync],
                &[Run("begin"), count, Run("set local datestyle = default"), fails, control, note, Sync],
            ] {
                let script = [script, &[Run("rollback"), Sync, count, Sync]].concat();
                let (wanted, given) = (told(&mut oracle, &script).await, told(&mut client, &script).await);
                is_alike(&given, &wanted, &script);
            }
        }
        // What would have been prepared is not there, and what was stays as it was.
        let insert = format!("update accounts set balance = balance + 10 where id = {}", accounts[2]);
        for name in ["s1", ""] {
            for script in [
                &[Run("begin"), one, Sync, fails, Prepare(name, &insert), Sync, Run("rollback"), Sync][..],
                &[Again(name), Sync],
                &[Prepare(name, &insert), Again(name), Sync],
                &[Prepare("s1", &insert), Sync],
                &[fails, Prepare("s2", &insert), Sync, Again("s2"), Sync],
                &[Prepare("s2", "select 2"), Again("s2"), Sync],
                &[Run("deallocate all"), Sync],
            ] {
                if name.is_empty() && matches!(script[0], Again(_)) {
                    continue;
                }
                let (wanted, given) = (told(&mut oracle, script).await, told(&mut client, script).await);
                is_alike(&given, &wanted, script);
            }
        }
    }
    ok(&mut client, "delete from local_notes").await;
    twins.is_same().await;
}

#[tokio::test]
async fn what_is_parsed_behind_a_sync_is_not_the_statement_that_failed() {
    use Say::{Again, Prepare, Sync};
    let (_twins, mut oracle, mut client) = twins().await;
    let count = "select count(*) from accounts";
    for script in [
        &[Prepare("", "selec nonsense"), Sync, Prepare("", count), Again(""), Sync][..],
        &[Prepare("", "select nothing from local_notes"), Sync, Prepare("", count), Again(""), Sync],
        &[Prepare("s", "select 1"), Sync, Say::Run("deallocate s"), Sync, Prepare("s", count), Again("s"), Sync],
        &[Prepare("", count), Again(""), Sync, Prepare("", "select nothing"), Again(""), Sync, Again(""), Sync],
        &[Say::Run("deallocate all"), Sync],
    ] {
        let (wanted, given) = (told(&mut oracle, script).await, told(&mut client, script).await);
        assert_eq!(given, wanted, "{script:?}");
    }
}
