//! What a transaction sets holds wherever it reads and writes, as far and as long as in one PostgreSQL.

use pgherd::wire::writer;

use super::several::Twins;
use super::stage::{ok, say};
use crate::answers::{Answer, MANNERS, Manner, ask, ask_with};
use crate::harness::wire::{Message, WireClient, bind};

/// Settings as a statement sees them that is streamed from all shards, one that is tied to a shard, and one of no table.
const LOOKS: [&str; 4] = [
    "select id, at, owner from accounts where id < 9 order by id",
    "select at, coalesce(current_setting('app.tenant', true), ''), current_setting('work_mem'), '01/02/2003'::date from accounts where id = 7",
    "select at, coalesce(current_setting('app.tenant', true), ''), '01/02/2003'::date from accounts where id = 8",
    "select coalesce(current_setting('app.tenant', true), ''), current_setting('work_mem'), current_setting('timezone')",
];

/// What PostgreSQL merges: refused where the transaction has written.
const MERGED: &str = "select id, at, coalesce(current_setting('app.tenant', true), ''), rank() over (order by balance, id) from accounts where id < 9";

async fn both(rest: &str) -> [Twins; 2] {
    let all = [Twins::with(3, rest).await, Twins::without_two_phase(rest).await];
    for twins in &all {
        for database in twins.stage.shards.iter().chain([&twins.whole]) {
            database.execute("update accounts set at = '2026-01-02 03:04:05+00'").await;
        }
    }
    all
}

async fn looks(twins: &Twins, clients: &mut (WireClient, WireClient), manner: Manner, has_written: bool) {
    for sql in LOOKS.into_iter().chain((!has_written).then_some(MERGED)) {
        twins.same(clients, manner, sql).await;
    }
}

/// Runs a script on both sides; a star looks at the settings, two stars in a transaction that has written.
async fn script(twins: &Twins, clients: &mut (WireClient, WireClient), manner: Manner, steps: &[&str]) {
    for sql in steps {
        match *sql {
            "*" => looks(twins, clients, manner, false).await,
            "**" => looks(twins, clients, manner, true).await,
            sql => drop(twins.same(clients, manner, sql).await),
        }
    }
}

#[tokio::test]
async fn what_a_transaction_sets_holds_wherever_it_reads() {
    for twins in both("").await {
        let mut clients = twins.clients().await;
        for manner in MANNERS {
            let steps = [
                "begin",
                "set local app.tenant = 'one'",
                "*",
                "savepoint s",
                "set local app.tenant to 'two'",
                "set time zone 'Asia/Tokyo'",
                "set datestyle = 'SQL, DMY'",
                "*",
                "show timezone",
                "rollback to s",
                "*",
                "show timezone",
                "select set_config('app.tenant', 'it''s \\ three', true), set_config('timezone', 'Europe/Paris', false)",
                "*",
                "release s",
                "set work_mem = '7MB'",
                "*",
                "reset work_mem",
                "*",
                "set work_mem = '7MB'",
                "set local work_mem = '9MB'",
                "*",
                "commit",
                "*",
                "show work_mem",
                "show timezone",
                "begin",
                "set work_mem = '11MB'",
                "set datestyle = 'SQL, DMY'",
                "*",
                "rollback",
                "*",
                "reset all",
                "*",
            ];
            script(&twins, &mut clients, manner, &steps).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn what_is_set_before_and_behind_a_write_holds() {
    for twins in both("").await {
        let mut clients = twins.clients().await;
        for manner in MANNERS {
            let steps = [
                "begin",
                "set local app.tenant = 'one'",
                "select set_config('work_mem', '5MB', true)",
                "savepoint s",
                "set local timezone = 'Asia/Tokyo'",
                "update accounts set owner = current_setting('app.tenant') where id = 7 returning id, owner, at",
                "**",
                "set local app.tenant = 'two'",
                "**",
                "savepoint t",
                "set local datestyle = 'SQL, DMY'",
                "select set_config('app.tenant', 'three', true)",
                "**",
                "select 1 / (balance - 100) from accounts",
                "select 1",
                "rollback to t",
                "**",
                "rollback to s",
                "**",
                "update accounts set owner = current_setting('app.tenant') where id = 7 returning id, owner, at",
                "set timezone = 'Asia/Tokyo'",
                "**",
                "commit",
                "*",
                "reset all",
                "*",
            ];
            script(&twins, &mut clients, manner, &steps).await;
        }
        twins.is_same().await;
    }
}

/// A driver that sets something first is not tied to the server that has taken it.
#[tokio::test]
async fn a_transaction_that_has_set_something_may_go_to_any_server() {
    for twins in both("").await {
        let mut clients = twins.clients().await;
        for manner in MANNERS {
            for id in [1, 2, 3, 4] {
                let write = format!("update accounts set balance = balance + 1 where id = {id} returning balance");
                let read = format!("select owner, balance, at from accounts where id = {id} for update");
                for (begin, set) in [
                    ("begin", "set local statement_timeout = '20s'"),
                    ("begin", "select set_config('app.tenant', 'x', true), 1"),
                    ("begin isolation level repeatable read", "set local statement_timeout = '20s'"),
                    ("begin isolation level serializable", "set local app.tenant = 'x'"),
                ] {
                    let steps = [
                        begin,
                        set,
                        "savepoint s",
                        "set local timezone = 'Asia/Tokyo'",
                        &read,
                        &write,
                        "rollback to s",
                        "show timezone",
                        &read,
                        "show statement_timeout",
                        "select coalesce(current_setting('app.tenant', true), '')",
                        &write,
                        "commit",
                        "show statement_timeout",
                        "show timezone",
                    ];
                    script(&twins, &mut clients, manner, &steps).await;
                }
            }
            // A query of one snapshot keeps it where it was taken.
            let account = twins.stage.one_of_each().await;
            for sql in ["begin isolation level repeatable read", "set local app.tenant = 'x'", "select 1"] {
                ok(&mut clients.1, sql).await;
            }
            let read = format!("select balance from accounts where id = {}", account[1]);
            assert_eq!(ask(&mut clients.1, manner, &read).await.code(), Some("0A000"), "{manner:?}");
            ok(&mut clients.1, "rollback").await;
            // To the primary as well, and not anywhere else then.
            let steps =
                ["begin", "set local timezone = 'Asia/Tokyo'", "insert into local_notes values (1, now()::text)"];
            ok(&mut clients.1, "rollback").await;
            for sql in steps {
                assert_eq!(ask(&mut clients.1, manner, sql).await.error, None, "{sql}");
            }
            assert_eq!(ask(&mut clients.1, manner, "show timezone").await.column(0), [Some("Asia/Tokyo".into())]);
            ok(&mut clients.1, "commit").await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn what_a_query_sets_holds_on_every_server_of_a_transaction() {
    let [twins, _] = both("").await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        let steps = [
            "begin",
            "select set_config('app.tenant', 'one', true), 1",
            "update accounts set balance = 101 where id = 1",
            "update accounts set balance = 102 where id = 2",
            "update accounts set balance = 103 where id = 3",
            "insert into entries (account_id, amount) values (1, 1), (2, 2), (3, 3), (4, 4)",
            "**",
            "savepoint s",
            "select set_config('app.tenant', current_setting('app.tenant') || ' and two', true)",
            "**",
            "select 1 / (balance - 102) from accounts where id = 2",
            "rollback to s",
            "**",
            "select set_config('work_mem', '6MB', false)",
            "update accounts set owner = current_setting('app.tenant') where id = 1 returning owner",
            "update accounts set owner = current_setting('app.tenant') where id = 2 returning owner",
            "update accounts set owner = current_setting('work_mem') where id = 3 returning owner",
            "commit",
            "*",
            "reset all",
            "*",
        ];
        script(&twins, &mut clients, manner, &steps).await;
    }
    // Values come as parameters, as a rule.
    for manner in MANNERS.into_iter().filter(|manner| *manner != Manner::Simple) {
        for client in [&mut clients.0, &mut clients.1] {
            ok(client, "begin").await;
        }
        for (sql, values) in [
            ("select set_config('app.tenant', $1, true)", &[Some("it's $2 ü")][..]),
            ("select id, current_setting('app.tenant') from accounts where id < 4 order by id", &[]),
            ("update accounts set owner = current_setting('app.tenant') where id = $1 returning owner", &[Some("5")]),
            ("update accounts set owner = current_setting('app.tenant') where id = $1 returning owner", &[Some("6")]),
            ("update accounts set owner = current_setting('app.tenant') where id = $1 returning owner", &[Some("7")]),
        ] {
            let truth = ask_with(&mut clients.0, manner, sql, values).await;
            assert_eq!(truth, ask_with(&mut clients.1, manner, sql, values).await, "{manner:?} {sql}");
        }
        script(&twins, &mut clients, manner, &["**", "commit", "*"]).await;
    }
    twins.is_same().await;
}

#[tokio::test]
async fn what_fails_fails_all_of_it() {
    for twins in both("").await {
        let mut clients = twins.clients().await;
        for manner in MANNERS {
            let steps = [
                "begin",
                "savepoint s",
                "set local work_mem = 'nonsense'",
                "select count(*) from accounts",
                "rollback to s",
                "*",
                "set local app.tenant = 'one'",
                "select 1 / (id - 7) from accounts where id = 7",
                // The server that has taken the settings must know.
                "select 1",
                "rollback to s",
                "*",
                "set local app.tenant = 'two'",
                "select 1 / (id - 7) from accounts",
                "select 1",
                "rollback to s",
                "select count(*) from accounts",
                "set local timezone = 'Asia/Tokyo'",
                "select 1 / (id - 7), rank() over (order by id) from accounts",
                "show timezone",
                "commit",
                "show timezone",
                "*",
                "begin",
                "set local app.tenant = 'three'",
                "select set_config('work_mem', 'nonsense', true)",
                "commit",
                "*",
            ];
            for sql in steps {
                match sql {
                    "*" => looks(&twins, &mut clients, manner, false).await,
                    sql => {
                        let mut said = Vec::new();
                        for client in [&mut clients.0, &mut clients.1] {
                            let mut answer = ask(client, manner, sql).await.sorted();
                            if answer.error.is_some() {
                                answer.rows.clear();
                                answer.columns.clear();
                            }
                            said.push(answer);
                        }
                        assert_eq!(said[0], said[1], "{manner:?} {sql}");
                    }
                }
            }
        }
        twins.is_same().await;
    }
}

/// A read on the primary keeps the transaction there; what fails beside it fails it.
#[tokio::test]
async fn a_read_that_fails_beside_its_transaction_fails_it() {
    let twins = Twins::without_two_phase("").await;
    for manner in MANNERS {
        let mut client = twins.clients().await.1;
        for (sql, code, status) in [
            ("begin", None, 'T'),
            ("savepoint s", None, 'T'),
            ("select note from local_notes", None, 'T'),
            ("select 1 / (id - 7) from accounts where id = 7", Some("22012"), 'E'),
            ("select note from local_notes", Some("25P02"), 'E'),
            ("rollback to s", None, 'T'),
            ("select note from local_notes", None, 'T'),
            ("select 1 / (id - 7) from accounts where id = 7", Some("22012"), 'E'),
            ("commit", None, 'I'),
        ] {
            let answer = ask(&mut client, manner, sql).await;
            assert_eq!(answer.code(), code, "{manner:?} {sql}: {:?}", answer.error);
            // What is described first fails by itself.
            assert!(answer.status == status, "{manner:?} {sql}: {}", answer.status);
        }
        assert_eq!(ask(&mut client, manner, "select count(*) from accounts").await.column(0).len(), 1);
    }
}

/// What a client is told of its settings, in the order in which it is told.
fn told(messages: &[Message]) -> Vec<String> {
    let report = |message: &Message| String::from_utf8_lossy(&message.body).replace('\0', " ");
    let mut told: Vec<String> = messages.iter().filter(|message| message.tag == b'S').map(report).collect();
    told.sort();
    told
}

#[tokio::test]
async fn a_client_is_told_what_is_set_and_what_is_taken_back() {
    for twins in both("").await {
        let mut clients = twins.clients().await;
        for end in ["commit", "rollback", "select 1 / (id - 7) from accounts where id = 7"] {
            for sql in [
                "begin",
                "savepoint s",
                "set local timezone = 'Asia/Tokyo'",
                "select id from accounts where id = 7",
                "select count(*) from accounts",
                "set application_name = 'story'",
                "rollback to s",
                "set local datestyle = 'SQL, DMY'",
                "select count(*) from accounts",
                "select id from accounts where id = 7 for update",
                "set local timezone = 'Asia/Tokyo'",
                "update accounts set balance = 50 where id = 7",
                "set application_name = 'story'",
                "select count(*) from accounts",
                end,
                "rollback",
                "reset application_name",
            ] {
                let (truth, said) = (clients.0.query(sql).await, clients.1.query(sql).await);
                assert_eq!(told(&truth), told(&said), "{end}: {sql}");
                assert_eq!(Answer::read(&truth).code(), Answer::read(&said).code(), "{end}: {sql}");
            }
        }
        twins.is_same().await;
    }
}

/// One message after the other, and only then a Sync.
async fn pipeline(client: &mut WireClient, texts: &[&str]) -> Answer {
    client
        .say(|out| {
            for text in texts {
                writer::parse(out, b"", text.as_bytes(), &[]);
                bind(out, "", "", &[], 0);
                writer::execute(out, b"", 0);
            }
            writer::sync(out);
        })
        .await;
    let messages = client.until_ready().await;
    let mut answer = Answer::read(&messages);
    answer.columns.clear();
    answer
}

#[tokio::test]
async fn a_pipeline_that_sets_and_reads_is_right_or_refused() {
    for twins in both("").await {
        let mut clients = twins.clients().await;
        let set = "set local app.tenant = 'one'";
        let one = "select current_setting('app.tenant'), id from accounts where id = 7";
        let all = "select current_setting('app.tenant'), id from accounts order by id limit 3";
        for texts in [
            &["begin", set, one][..],
            &["begin", set, all],
            &["begin", "select set_config('app.tenant', 'two', true)", one],
            &[set, one],
            &["begin", set],
        ] {
            let (truth, said) = (pipeline(&mut clients.0, texts).await, pipeline(&mut clients.1, texts).await);
            let is_refused = said.code() == Some("0A000");
            assert!(is_refused || truth == said, "{texts:?}: {truth:?} {said:?}");
            if !is_refused {
                for sql in [one, all] {
                    let truth = ask(&mut clients.0, Manner::Text, sql).await;
                    let said = ask(&mut clients.1, Manner::Text, sql).await;
                    assert_eq!((truth.code(), &truth.rows), (said.code(), &said.rows), "{texts:?} {sql}");
                }
            }
            for client in [&mut clients.0, &mut clients.1] {
                ok(client, "rollback").await;
            }
        }
        twins.is_same().await;
    }
}

/// A role and a tenant that are set for one transaction decide which rows it sees, on every shard.
#[tokio::test]
async fn row_level_security_reads_what_is_set() {
    let role = crate::harness::unique("settings_role");
    for twins in both("").await {
        for database in twins.stage.shards.iter().chain([&twins.whole, &twins.stage.primary]) {
            let sql = format!(
                "do $$ begin create role {role}; \
                 exception when duplicate_object or unique_violation then null; end $$; grant usage on schema public to {role}"
            );
            database.execute(&sql).await;
        }
        for database in twins.stage.shards.iter().chain([&twins.whole]) {
            let sql = format!(
                "grant select, insert, update on accounts, entries to {role}; grant usage on all sequences in schema public to {role}; \
                 alter table entries enable row level security; \
                 create policy tenant on entries using (note = current_setting('app.tenant', true)); \
                 insert into entries (account_id, amount, note) select id, id, 'tenant ' || id % 3 from accounts"
            );
            database.execute(&sql).await;
        }
        let mut clients = twins.clients().await;
        let (set_role, set_again) =
            (format!("set local role {role}"), format!("select set_config('role', '{role}', true)"));
        let (all, one) = (
            "select account_id, note from entries order by account_id, note",
            "select account_id, note from entries where account_id = 7",
        );
        for manner in MANNERS {
            for set_role in [&set_role, &set_again] {
                let steps = [
                    "begin",
                    set_role,
                    "set local app.tenant = 'tenant 1'",
                    all,
                    one,
                    "savepoint s",
                    "select set_config('app.tenant', 'tenant 2', true)",
                    all,
                    one,
                    "rollback to s",
                    all,
                    "insert into entries (account_id, amount, note) values (7, 1, 'tenant 1') returning note",
                    all,
                    one,
                    "insert into entries (account_id, amount, note) values (7, 1, 'tenant 2') returning note",
                    "rollback",
                    all,
                    one,
                ];
                for sql in steps {
                    twins.same(&mut clients, manner, sql).await;
                }
            }
        }
    }
}

/// Time limits are for each statement; what is cancelled fails the transaction.
#[tokio::test]
async fn a_statement_timeout_of_one_transaction_ends_what_takes_too_long() {
    for twins in both("").await {
        let sql = "insert into entries (account_id, amount, note) select id, 1, repeat('x', 60) from accounts";
        for database in twins.stage.shards.iter().chain([&twins.whole]) {
            database.execute(sql).await;
        }
        let mut clients = twins.clients().await;
        let waits = "select count(*) from entries where repeat(note, 90000) ~ '(x+)+y'";
        for client in [&mut clients.0, &mut clients.1] {
            for before in [&[][..], &["update accounts set balance = 1 where id = 3"]] {
                ok(client, "begin").await;
                for sql in before {
                    ok(client, sql).await;
                }
                ok(client, "savepoint s").await;
                ok(client, "set local statement_timeout = '300ms'").await;
                let late = say(client, waits).await;
                assert_eq!((late.code(), late.status), (Some("57014"), 'E'), "{late:?}");
                assert_eq!(say(client, "select count(*) from accounts").await.code(), Some("25P02"));
                ok(client, "rollback to s").await;
                assert_eq!(say(client, "select count(*) from accounts").await.column(0), [Some("40".into())]);
                ok(client, "rollback").await;
                assert_eq!(say(client, "show statement_timeout").await.column(0), [Some("0".into())]);
            }
        }
    }
}

/// Connections that were given what one transaction had set are everybody's again.
#[tokio::test]
async fn nobody_else_gets_what_a_transaction_has_set() {
    for twins in both("").await {
        let mut others = twins.clients().await;
        let mut clients = twins.clients().await;
        for manner in MANNERS {
            for end in ["commit", "rollback"] {
                let steps = [
                    "begin",
                    "set local app.tenant = 'mine'",
                    "set local timezone = 'Asia/Tokyo'",
                    "set local enable_seqscan = off",
                    "*",
                    "update accounts set balance = balance + 1 where id = 3",
                    "**",
                    end,
                ];
                script(&twins, &mut clients, manner, &steps).await;
                for sql in
                    ["select id, at from accounts where id < 9 order by id", "show enable_seqscan", "show timezone"]
                {
                    twins.same(&mut others, manner, sql).await;
                }
                let sql = "select distinct coalesce(current_setting('app.tenant', true), '') from accounts";
                twins.same(&mut others, manner, sql).await;
                twins.same(&mut clients, manner, sql).await;
            }
        }
    }
}

/// What cannot be known is refused, and says what helps.
#[tokio::test]
async fn settings_that_cannot_be_followed_are_refused() {
    for twins in both("").await {
        let mut client = twins.clients().await.1;
        for set in [
            "set local standard_conforming_strings = off",
            "select set_config(name, 'x', true) from (values ('app.one'), ('app.two')) v (name)",
        ] {
            for before in [&[][..], &["update accounts set balance = 1 where id = 3"]] {
                let mut client = twins.clients().await.1;
                ok(&mut client, "begin").await;
                for sql in before {
                    ok(&mut client, sql).await;
                }
                ok(&mut client, set).await;
                let answer = say(&mut client, "select count(*) from accounts").await;
                assert_eq!((answer.code(), answer.status), (Some("0A000"), 'E'), "{set}: {answer:?}");
                ok(&mut client, "rollback").await;
            }
        }
        // Isolation is no setting that others could be given.
        ok(&mut client, "begin").await;
        ok(&mut client, "set local transaction_isolation = 'repeatable read'").await;
        let answer = say(&mut client, "select count(*) from accounts").await;
        assert_eq!(answer.code(), Some("0A000"), "{answer:?}");
        ok(&mut client, "rollback").await;
        assert_eq!(ok(&mut client, "select count(*) from accounts").await, "SELECT 1");
    }
}
