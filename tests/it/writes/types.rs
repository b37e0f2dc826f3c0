//! Types that users made have other oids on each server: what a client was told of them by one shard means nothing to the others.

use super::several::Twins;
use super::stage::{SCHEMA, Stage};
use crate::answers::{MANNERS, Manner, ask, ask_with};
use crate::harness::wire::WireClient;
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

/// Shards on which `mood` has three oids; on those of the others lie types that hold other values.
async fn twins() -> Twins {
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
    let stage = Stage::between(primary, shards, rest).await;
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
