//! Types that users made have other oids on each server: what a client was told of them by one shard means nothing to the others.

use bytes::BufMut;
use pgherd::wire::writer;

use super::several::Twins;
use super::stage::{SCHEMA, Stage, ok};
use crate::answers::{Answer, MANNERS, Manner, ask, ask_with};
use crate::harness::wire::{WireClient, bind};
use crate::harness::{self, Database};

/// An enum and a domain.
const TYPES: &str = "
create type mood as enum ('sad', 'ok', 'happy');
create domain size as int4 check (value < 1000);
";

/// Tables of moods and sizes.
const TABLES: &str = "
create table moods (id int4 primary key, m mood, s size, note text);
create table moods_of_all (m mood primary key, s size);
insert into moods_of_all values ('sad', 1), ('ok', 2);
";

async fn oid_of_mood(database: &Database) -> u32 {
    database.client().await.query_one("select 'mood'::regtype::oid", &[]).await.expect("a type").get(0)
}

async fn twins() -> Twins {
    twins_with("").await
}

/// Shards on which `mood` has three oids; on those of the others lie types that hold other values. `more` is TOML.
async fn twins_with(more: &str) -> Twins {
    let shards = harness::fresh_databases(3).await;
    let whole = harness::fresh_database().await;
    for (at, shard) in shards.iter().enumerate() {
        for pad in 0..at * 2 {
            shard.execute(&format!("create type pad_{pad} as enum ('another')")).await;
        }
    }
    for database in shards.iter().chain([&whole]) {
        database.execute(TYPES).await;
        database.execute(TABLES).await;
    }
    // Where rows of several shards meet.
    let primary = harness::fresh_database().await;
    primary.execute(TYPES).await;
    let mut oids = vec![];
    for shard in &shards {
        oids.push(oid_of_mood(shard).await);
    }
    assert!(oids[0] != oids[1] && oids[1] != oids[2] && oids[0] != oids[2], "{oids:?}");
    let rest = "[[database.table]]\nname = \"public.moods\"\nshard_key = \"id\"\nmethod = \"hash\"\n\
                [[database.table]]\nname = \"public.moods_of_all\"\nreference = true\n";
    let mut stage = Stage::between(primary, shards, rest).await;
    stage.toml += more;
    whole.execute(&SCHEMA.replace("%shards%", "1").replace("%shard%", "0")).await;
    let pgherd = stage.pgherd().await;
    Twins { stage, pgherd, whole }
}

/// Both say the same, but for the oids of types.
async fn same(clients: &mut (WireClient, WireClient), manner: Manner, sql: &str, values: &[Option<&str>]) {
    let truth = ask_with(&mut clients.0, manner, sql, values).await.sorted();
    let answer = ask_with(&mut clients.1, manner, sql, values).await.sorted();
    assert_eq!(truth.error, answer.error, "{manner:?} {sql}");
    assert_eq!((&truth.tag, &truth.rows, truth.status), (&answer.tag, &answer.rows, answer.status), "{manner:?} {sql}");
    let names =
        |columns: &[(String, i32, i32, i16)]| -> Vec<String> { columns.iter().map(|it| it.0.clone()).collect() };
    assert_eq!(names(&truth.columns), names(&answer.columns), "{manner:?} {sql}");
}

#[tokio::test]
async fn each_shard_finds_out_for_itself_what_a_parameter_is() {
    let twins = twins().await;
    let mut clients = twins.clients().await;
    for manner in MANNERS.into_iter().filter(|it| *it != Manner::Simple) {
        for (sql, values) in [
            (
                "insert into moods (id, m, s) values (1, $1, $2), (2, $1, 2), (3, 'ok', 3), (4, $3, 4), (5, $1, 5), (6, $3, $2)",
                &[Some("sad"), Some("7"), Some("happy")][..],
            ),
            (
                "update moods set m = $1, note = $2 where m = $3 returning id, m, note",
                &[Some("ok"), Some("x"), Some("sad")],
            ),
            ("select id, m from moods where m >= $1 order by id", &[Some("ok")]),
            ("select id from moods where id = $1 and m = $2", &[Some("4"), Some("happy")]),
            ("select id from moods where id = $1 and m = $2", &[Some("3"), Some("ok")]),
            ("select m, count(*) from moods where m = any ($1) group by m", &[Some("{happy,ok}")]),
            (
                "select a.id from moods a join moods b on a.id = b.id + 1 where a.m = $1 and b.s < $2::size",
                &[Some("ok"), Some("9")],
            ),
            ("update moods_of_all set s = s + 1 where m = $1", &[Some("ok")]),
            ("update moods set m = $1", &[Some("nothing of the sort")]),
            ("delete from moods where m = $1 or s = $2::size", &[Some("happy"), Some("5")]),
            ("delete from moods where m is not null", &[]),
        ] {
            same(&mut clients, manner, sql, values).await;
            let all = "select (id, m, s, note)::text from moods";
            assert_eq!(
                ask(&mut clients.0, Manner::Simple, all).await.sorted(),
                ask(&mut clients.1, Manner::Simple, all).await.sorted(),
                "{manner:?} {sql}"
            );
        }
    }
    twins.stage.is_clean().await;
}

#[tokio::test]
async fn rows_that_move_take_such_parameters_along() {
    let twins = twins().await;
    let mut clients = twins.clients().await;
    for manner in MANNERS.into_iter().filter(|it| *it != Manner::Simple) {
        for (sql, values) in [
            ("insert into moods select g, 'ok', g, 'first' from generate_series(1, 9) g", &[][..]),
            (
                "insert into moods (id, m, s, note) select id + 50, $1, $2, note from moods where m = $3 and id < $4 returning id, m, s",
                &[Some("happy"), Some("12"), Some("ok"), Some("5")],
            ),
            ("insert into moods (id, m) select id + $2, ($1) from moods where id < 3", &[Some("sad"), Some("100")]),
            ("insert into moods (id, m) select id + 120, $1 from moods where id < 3", &[None]),
            ("insert into moods (id, m) select id + 140, $1 from moods where id < 3", &[Some("nothing of the sort")]),
            ("insert into moods (id, s) select id + 140, $1 from moods where id < 3", &[Some("1000")]),
            // On the coordinator.
            (
                "insert into moods (id, m, s) select a.id + 200, $1, b.s from moods a join moods b on a.id = b.id + 1 where b.m >= $2",
                &[Some("sad"), Some("ok")],
            ),
            (
                "insert into moods_of_all (m, s) select m, count(*) from moods where m is not null group by m \
                 on conflict (m) do update set s = excluded.s + $1 where moods_of_all.m <> $2 returning m, s, m = $3 as yes",
                &[Some("3"), Some("sad"), Some("ok")],
            ),
            (
                "insert into moods (id, m) select id + 1, m from moods where id = 1 on conflict (id) do update set m = $1 returning id, $1",
                &[Some("happy")],
            ),
            ("delete from moods", &[]),
            ("delete from moods_of_all where m = $1", &[Some("happy")]),
        ] {
            same(&mut clients, manner, sql, values).await;
            for all in ["select (id, m, s, note)::text from moods", "select (m, s)::text from moods_of_all"] {
                assert_eq!(
                    ask(&mut clients.0, Manner::Simple, all).await.sorted(),
                    ask(&mut clients.1, Manner::Simple, all).await.sorted(),
                    "{manner:?} {sql}"
                );
            }
        }
        same(&mut clients, manner, "insert into moods (id, m) values (1, 'ok'), (2, 'sad'), (3, 'ok')", &[]).await;
        for sql in [
            "insert into moods (id, m) select id + 1, $1 from moods returning $1",
            "insert into moods (id, s, m) select q.*, $1 from (select id + 1, 5 from moods) q",
        ] {
            let refused = ask_with(&mut clients.1, manner, sql, &[Some("ok")]).await;
            assert_eq!((refused.code(), refused.status), (Some("0A000"), 'I'), "{manner:?} {sql}: {refused:?}");
        }
        same(&mut clients, manner, "delete from moods", &[]).await;
    }
    twins.stage.is_clean().await;
}

#[tokio::test]
async fn what_a_client_declares_must_be_what_the_shards_find_out() {
    let twins = twins().await;
    let mut client = twins.pgherd.wire("app").await;
    let filled = "insert into moods (id, m) values (1, 'ok'), (2, 'ok'), (3, 'ok'), (4, 'ok')";
    assert_eq!(ask(&mut client, Manner::Text, filled).await.tag, "INSERT 0 4");
    let (first, second) = (oid_of_mood(&twins.stage.shards[0]).await, oid_of_mood(&twins.stage.shards[1]).await);
    for (sql, oid, outcome) in [
        ("update moods set m = $1", first, Ok("UPDATE 4")),
        ("select id from moods where m = $1", first, Ok("SELECT 4")),
        ("insert into moods (id, m) select id + 10, $1 from moods", first, Ok("INSERT 0 4")),
        ("update moods set m = $1", second, Err("0A000")),
        ("select id, $1 from moods", first, Err("0A000")),
    ] {
        client
            .say(|out| {
                writer::parse(out, b"", sql.as_bytes(), &[oid]);
                bind(out, "", "", &[Some("happy")], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
            })
            .await;
        let answer = Answer::read(&client.until_ready().await);
        let found = answer.code().map_or(Ok(answer.tag.as_str()), Err);
        assert_eq!((found, answer.status), (outcome, 'I'), "{sql}");
    }
    twins.stage.is_clean().await;
}

/// A statement whose parameters are all of them in binary, their types left to the server; described first or not.
async fn in_binary(client: &mut WireClient, sql: &str, values: &[&[u8]], is_described: bool) -> Answer {
    client
        .say(|out| {
            writer::close(out, b'S', b"binary");
            writer::parse(out, b"binary", sql.as_bytes(), &[]);
            if is_described {
                writer::describe(out, b'S', b"binary");
                writer::sync(out);
            }
        })
        .await;
    if is_described {
        let described = Answer::read(&client.until_ready().await);
        if described.error.is_some() {
            return described;
        }
    }
    client
        .say(|out| {
            writer::message(out, b'B', |out| {
                out.put_slice(b"\0binary\0\0\x01\0\x01");
                out.put_i16(i16::try_from(values.len()).expect("few"));
                for value in values {
                    out.put_i32(i32::try_from(value.len()).expect("short"));
                    out.put_slice(value);
                }
                out.put_i16(0);
            });
            writer::describe(out, b'P', b"");
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    Answer::read(&client.until_ready().await)
}

/// What a server describes as a domain comes in the binary form of the type beneath it.
#[tokio::test]
async fn rows_whose_key_changes_take_binary_parameters_along() {
    let twins = twins_with("\n[fanout]\nkey_moves = \"move\"\n").await;
    let mut clients = twins.clients().await;
    let int = |value: i32| value.to_be_bytes();
    for is_described in [true, false] {
        for (sql, values) in [
            ("insert into moods select g, 'ok', g % 4, 'first' from generate_series(1, 30) g", vec![]),
            ("update moods set id = id + 100 where s = $1 returning id, s", vec![int(3).to_vec()]),
            (
                "update moods set id = id + 200, s = $1 where s = $2 returning id, s",
                vec![int(7).to_vec(), int(2).to_vec()],
            ),
            (
                "update moods set id = id + $1, s = $2 where m = $3",
                vec![int(400).to_vec(), int(8).to_vec(), b"ok".to_vec()],
            ),
            (
                "update moods set id = id - $1, m = $2, s = $3 where s = $3 and id > $1 returning id, m, s",
                vec![int(400).to_vec(), b"sad".to_vec(), int(8).to_vec()],
            ),
            (
                "update moods set id = id + 500, s = $1::size + 1 where s < $2::size",
                vec![int(4).to_vec(), int(5).to_vec()],
            ),
            ("update moods set id = id + 600, s = $1", vec![int(1000).to_vec()]),
            (
                "update moods set id = id + 600, note = $1 where s = $2 returning note, $1",
                vec![b"x".to_vec(), int(5).to_vec()],
            ),
            ("delete from moods", vec![]),
        ] {
            let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
            let truth = in_binary(&mut clients.0, sql, &values, is_described).await.sorted();
            let said = in_binary(&mut clients.1, sql, &values, is_described).await.sorted();
            let refused = !is_described && said.code() == Some("0A000");
            assert!(refused || truth.error == said.error, "{sql}: {truth:?} {said:?}");
            assert!(refused || (truth.tag == said.tag && truth.rows == said.rows), "{sql}: {truth:?} {said:?}");
            if refused {
                // Both go on alike.
                let refused = said.error.expect("it is refused");
                assert!(refused.1.contains("is not known"), "{sql}: {refused:?}");
                in_binary(&mut clients.1, sql, &values, true).await;
            }
            let all = "select (id, m, s, note)::text from moods";
            assert_eq!(
                ask(&mut clients.0, Manner::Simple, all).await.sorted(),
                ask(&mut clients.1, Manner::Simple, all).await.sorted(),
                "{sql}"
            );
        }
    }
    twins.stage.is_clean().await;
}

/// Rows move by what their table was when the catalog was read; and nobody waits for a lock of the transaction's own.
#[tokio::test]
async fn rows_of_a_table_that_its_transaction_has_changed_stay() {
    let twins = twins_with("\n[fanout]\nkey_moves = \"move\"\n").await;
    let mut client = twins.clients().await.1;
    ok(&mut client, "insert into moods select g, 'ok', g, 'first' from generate_series(1, 9) g").await;
    for change in ["alter table moods add column more int4", "alter table moods alter column s type int8"] {
        for manner in MANNERS {
            ok(&mut client, "begin").await;
            ok(&mut client, "update moods set id = id + 100 where s = 3").await;
            ok(&mut client, change).await;
            let values: &[Option<&str>] = if manner == Manner::Simple { &[] } else { &[Some("4")] };
            let condition = if manner == Manner::Simple { "4" } else { "$1" };
            let sql = format!("update moods set id = id + 100 where s = {condition}");
            let refused = ask_with(&mut client, manner, &sql, values).await;
            assert_eq!((refused.code(), refused.status), (Some("0A000"), 'E'), "{manner:?} {change}: {refused:?}");
            ok(&mut client, "rollback").await;
        }
    }
    assert_eq!(ok(&mut client, "update moods set id = id + 100 where s = 4").await, "UPDATE 1");
    twins.stage.is_clean().await;
}
