//! When PostgreSQL reads a prepared statement anew: the same plays on PostgreSQL, where each client has a server process of its own, and
//! through pgherd, where they share a few.

use std::collections::BTreeMap;

use pgherd::wire::writer;

use super::proxy::Proxy;
use crate::harness::wire::{Message, WireClient, bind, rows, tags};

const SCENE: &str = "create schema a; create schema b; create schema empty; create schema secret;
    create table a.t (v text, d date); insert into a.t values ('of a', '2003-02-01');
    create table b.t (v text, d date); insert into b.t values ('of b', '2001-02-03');
    create table public.t (v text, d date); insert into public.t values ('of public', '2001-02-03');
    create table secret.t (v text, d int); create role guest_NAME; grant usage on schema a, b, empty to guest_NAME;
    grant select on all tables in schema a, b, public to guest_NAME;";

/// What a client does.
#[derive(Debug, Clone, Copy)]
enum Do {
    /// A simple query.
    Say(&'static str),
    /// Parse and Sync, without a Describe, so that nothing is known but the text.
    Prepare(&'static str),
    /// Bind, Execute and Sync of what was prepared.
    Run,
    /// The same with a Describe of the portal.
    RunDescribed,
    /// Describe of the statement, and Sync.
    Describe,
}
use Do::{Describe, Prepare, Run, RunDescribed, Say};

async fn does(client: &mut WireClient, what: Do, name: &str) -> Vec<Message> {
    match what {
        Say(text) => return client.query(text).await,
        Prepare(text) => client.say(|out| writer::parse(out, name.as_bytes(), text.as_bytes(), &[])).await,
        Run => client.say(|out| bind(out, "", name, &[], 0)).await,
        RunDescribed => {
            client
                .say(|out| {
                    bind(out, "", name, &[], 0);
                    writer::describe(out, b'P', b"");
                })
                .await;
        }
        Describe => client.say(|out| writer::describe(out, b'S', name.as_bytes())).await,
    }
    client
        .say(|out| {
            if matches!(what, Run | RunDescribed) {
                writer::execute(out, b"", 0);
            }
            writer::sync(out);
        })
        .await;
    client.until_ready().await
}

/// What a client sees of an answer: messages, rows, and the SQLSTATE of an error.
fn seen(answer: &[Message]) -> String {
    let codes: Vec<_> = answer.iter().filter(|it| it.tag == b'E').filter_map(|it| it.field(b'C')).collect();
    format!("{} {:?} {codes:?}", tags(answer).replace('S', ""), rows(answer))
}

/// Plays on PostgreSQL and through pools of one and of two servers. `statement` is the name of everybody's statement.
async fn is_the_same_as_on_postgresql(statement: &str, play: &[(&str, Do)]) {
    is_the_same_over(&[1, 2], statement, play).await;
}

async fn is_the_same_over(pools: &[usize], statement: &str, play: &[(&str, Do)]) {
    for servers in pools {
        let proxy = Proxy::start(&format!("max_connections = {servers}")).await;
        let database = &proxy.database;
        database.execute(&SCENE.replace("guest_NAME", &format!("guest_{}", database.name))).await;
        let mut clients = BTreeMap::new();
        for (at, (who, what)) in play.iter().enumerate() {
            if !clients.contains_key(who) {
                let direct = WireClient::login(database.port, "postgres", &database.name).await;
                clients.insert(*who, (direct, proxy.wire().await));
            }
            let (direct, through) = clients.get_mut(who).expect("a client");
            if let Say("set role guest") = what {
                let text = format!("set role guest_{}", database.name);
                direct.query(&text).await;
                through.query(&text).await;
                continue;
            }
            let wanted = seen(&does(direct, *what, statement).await);
            let found = seen(&does(through, *what, statement).await);
            assert_eq!(found, wanted, "{servers} servers, step {at}: {who} does {what:?}");
        }
        drop(clients);
        proxy.examine().await;
        database.execute(&format!("drop owned by guest_{0}; drop role guest_{0}", database.name)).await;
    }
}

const DATE: &str = "select to_char('01/02/03'::date, 'YYYY-MM-DD')";
const OF_T: &str = "select v from t where d = '01/02/03'";

#[tokio::test]
async fn another_path_makes_it_read_anew_under_all_that_is_set() {
    for statement in ["s", ""] {
        let first = [("one", Prepare(DATE)), ("one", Run)];
        let second = [
            ("two", Prepare(DATE)),
            // Another's path: the shared copy has been read for it, under the settings that are its own.
            ("one", Say("set search_path to a, public")),
        ];
        let moved = [
            ("one", Run),
            ("two", Say("set search_path to a, public")),
            ("two", Say("set datestyle to ymd")),
            ("two", Run),
            ("one", Run),
            ("two", RunDescribed),
        ];
        if statement.is_empty() {
            // A simple query takes the unnamed statement with it.
            is_the_same_as_on_postgresql(
                statement,
                &[&first[..], &second[..1], &[("two", Run), ("one", Run)]].concat(),
            )
            .await;
        } else {
            is_the_same_as_on_postgresql(statement, &[&first[..], &second[..], &moved[..]].concat()).await;
        }
    }
}

#[tokio::test]
async fn a_path_that_is_the_same_in_effect_does_not() {
    let mut play = vec![("one", Say("set search_path to a, public")), ("one", Prepare(OF_T)), ("one", Run)];
    for path in [
        "set search_path to a, nowhere, public",
        "set search_path to a, public, a, public",
        "set search_path to pg_temp, a, public",
        "set search_path to public, a",
        "set search_path to a, public",
    ] {
        for style in ["set datestyle to dmy", "set datestyle to ymd", "set datestyle to mdy"] {
            play.extend([("one", Say(path)), ("one", Say(style)), ("two", Say(path)), ("two", Prepare(OF_T))]);
            play.extend([("one", Run), ("two", Run), ("one", Describe), ("two", Say("deallocate s"))]);
        }
    }
    is_the_same_as_on_postgresql("s", &play).await;
}

#[tokio::test]
async fn the_path_of_the_last_reading_counts_not_the_first() {
    let play = [
        ("one", Say("set search_path to a")),
        ("one", Prepare(OF_T)),
        ("one", Say("set search_path to b")),
        ("one", Run),
        ("one", Say("set search_path to a")),
        ("one", Say("set datestyle to dmy")),
        ("one", Run),
        ("one", Say("set datestyle to ymd")),
        ("one", Run),
        ("one", Say("set search_path to b")),
        ("one", Run),
        ("one", Run),
    ];
    is_the_same_as_on_postgresql("s", &play).await;
}

#[tokio::test]
async fn a_role_that_may_not_look_into_a_schema_has_another_path() {
    let mut play = vec![("one", Say("set search_path to secret, a, public"))];
    play.extend([("one", Say("set role guest")), ("one", Prepare(OF_T)), ("one", Run)]);
    for _ in 0..2 {
        play.extend([("one", Say("set datestyle to dmy")), ("one", Run)]);
        play.extend([("one", Say("reset role")), ("one", Say("set search_path to a, public")), ("one", Run)]);
        play.extend([("one", Say("set datestyle to ymd")), ("one", Run), ("one", Say("set role guest"))]);
        play.extend([("one", Run), ("one", Say("set search_path to b, secret")), ("one", Run)]);
    }
    is_the_same_as_on_postgresql("s", &play).await;
}

/// A table that changes makes a server read all that speaks of it anew, under the settings of whoever comes first. A server that is
/// only given the statement behind the change has nothing to read anew: it gives the client's reading of before.
#[tokio::test]
async fn what_a_server_reads_anew_for_one_is_not_what_another_gets() {
    let mut play = Vec::new();
    for who in ["one", "two", "three"] {
        play.extend([(who, Say("set search_path to a")), (who, Prepare(OF_T)), (who, Run)]);
    }
    play.extend([("two", Say("set datestyle to dmy")), ("three", Say("set datestyle to ymd"))]);
    play.extend([("one", Run), ("two", Run), ("three", Run)]);
    for change in ["alter table a.t set (fillfactor = 90)", "analyze a.t", "alter table a.t set (fillfactor = 80)"] {
        play.extend([("four", Say(change)), ("three", Run), ("two", Run), ("one", Run)]);
        play.extend([("two", Describe), ("one", RunDescribed), ("three", Run), ("two", Run), ("one", Run)]);
    }
    is_the_same_over(&[1], "s", &play).await;
}

#[tokio::test]
async fn another_shape_in_another_schema_is_an_error_once_and_new_rows_never_unasked() {
    let proxy = Proxy::start("max_connections = 1").await;
    proxy
        .database
        .execute(
            "create schema a; create table a.t (v int); create schema b; create table b.t (v text, w int); \
         insert into a.t values (1); insert into b.t values ('b', 2)",
        )
        .await;
    let (mut one, mut two) = (proxy.wire().await, proxy.wire().await);
    for client in [&mut one, &mut two] {
        client.query("set search_path to a").await;
        does(client, Prepare("select * from t where '01/02/03'::date > '1900-01-01'"), "s").await;
        assert_eq!(tags(&does(client, Run, "s").await), "2DCZ");
    }
    one.query("set search_path to b; set datestyle to dmy").await;
    let stale = does(&mut one, Run, "s").await;
    assert_eq!((tags(&stale).as_str(), stale[0].field(b'C').as_deref()), ("EZ", Some("0A000")), "{stale:?}");
    assert_eq!(tags(&does(&mut two, Run, "s").await), "2DCZ", "the other's is what it was");
    drop((one, two));
    proxy.examine().await;
}

#[tokio::test]
async fn within_a_transaction_too() {
    let mut play = vec![("one", Say("set search_path to a")), ("one", Prepare(OF_T)), ("one", Run)];
    play.extend([("two", Say("set search_path to a")), ("two", Prepare(OF_T))]);
    for set in [
        "begin; set local search_path to b",
        "begin; set local datestyle to ymd",
        "begin; set local search_path to b; set local datestyle to ymd",
        "begin; set local search_path to b; savepoint x; set datestyle to dmy; rollback to x",
    ] {
        play.extend([("one", Say(set)), ("one", Run), ("one", Describe), ("one", RunDescribed), ("one", Run)]);
        play.extend([("one", Say("commit")), ("two", Run), ("one", Run)]);
    }
    is_the_same_as_on_postgresql("s", &play).await;
}

/// As PostgREST does it: every request sets its role and its path for one transaction, whatever a statement was prepared under.
#[tokio::test]
async fn a_statement_prepared_for_one_tenant_runs_for_the_next_on_any_server() {
    let proxy = Proxy::start("max_connections = 3").await;
    proxy.database.execute(&SCENE.replace("guest_NAME", &format!("guest_{}", proxy.database.name))).await;
    let role = format!("guest_{}", proxy.database.name);
    let mut client = proxy.wire().await;
    for (turn, (tenant, who)) in
        ["a", "b", "a", "public", "b", "a"].iter().zip([&*role, "none"].iter().cycle()).enumerate()
    {
        // The server of before is taken.
        let mut holders = Vec::new();
        for _ in 0..turn % 3 {
            let mut holder = proxy.wire().await;
            holder.query("begin").await;
            holders.push(holder);
        }
        let set = format!(
            "begin; select set_config('search_path', '{tenant}', true), set_config('role', '{who}', true), \
             set_config('timezone', 'Asia/Tokyo', true)"
        );
        client.query(&set).await;
        if turn == 0 {
            does(&mut client, Prepare("select v, current_setting('timezone'), current_user from t"), "s").await;
        }
        let answer = does(&mut client, Run, "s").await;
        let user = if *who == "none" { "postgres" } else { who };
        let wanted = [format!("of {tenant}"), "Asia/Tokyo".to_owned(), user.to_owned()].map(Some);
        assert_eq!(rows(&answer), [wanted], "{turn}: {answer:?}");
        client.query("commit").await;
        let after = client.query("select current_setting('search_path'), current_user").await;
        assert_eq!(rows(&after), [["\"$user\", public", "postgres"].map(|it| Some(it.to_owned()))]);
        for mut holder in holders {
            holder.query("rollback").await;
        }
    }
    drop(client);
    proxy.examine().await;
    proxy.database.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn where_its_table_is_not_there_it_fails_and_works_again_behind() {
    let mut play = vec![("one", Say("set search_path to a")), ("one", Prepare(OF_T)), ("one", Run)];
    for (away, back) in [
        ("set search_path to empty", "set search_path to a"),
        ("set search_path to empty; set datestyle to dmy", "set search_path to a"),
        ("set search_path to empty; set datestyle to ymd", "reset all; set search_path to a"),
        ("set search_path to b; set datestyle to dmy", "set search_path to empty, a"),
    ] {
        play.extend([("one", Say(away)), ("one", Run), ("one", Run), ("one", Say(back)), ("one", Run), ("one", Run)]);
        play.extend([("one", Say("begin")), ("one", Say(away)), ("one", Run), ("one", Run), ("one", Say("rollback"))]);
        play.extend([("one", Run), ("two", Say("set search_path to a")), ("two", Prepare(OF_T)), ("two", Run)]);
        play.push(("two", Say("deallocate s")));
    }
    is_the_same_as_on_postgresql("s", &play).await;
}
