//! What a session has set decides what texts mean and how they sort; on each server of a statement it must decide the same.

use pgherd::wire::writer;

use super::herd::Herd;
use crate::answers::{Answer, MANNERS, ask};
use crate::harness;
use crate::harness::wire::{WireClient, bind};

/// Both are asked in every way: the same answer, or a refusal. Returns how often it was refused.
async fn same(herd: &Herd, settings: &[&str], statements: &[&str]) -> usize {
    let mut refused = 0;
    for manner in MANNERS {
        let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
        for setting in settings {
            for client in [&mut oracle, &mut client] {
                assert_eq!(Answer::read(&client.query(setting).await).error, None, "{setting}");
            }
        }
        for text in statements {
            let wanted = ask(&mut oracle, manner, text).await;
            let given = ask(&mut client, manner, text).await;
            if given.code() == Some("0A000") {
                refused += 1;
                continue;
            }
            let (wanted, given) =
                if text.contains("order by") { (wanted, given) } else { (wanted.sorted(), given.sorted()) };
            assert_eq!(given, wanted, "{settings:?} {manner:?} {text}");
        }
    }
    refused
}

#[tokio::test]
async fn texts_in_another_encoding_sort_as_on_the_server() {
    let herd = Herd::start(3, false).await;
    let statements = [
        "select k, word from worded order by word desc, k limit 4",
        "select k from worded order by word, k",
        "select max(word), min(word) from worded",
        "select k % 3 as m, max(word) from worded group by 1 order by 1",
        "select distinct word from worded order by word",
        "select word, count(*) from worded group by word order by word",
        "select count(distinct word) from worded",
        "select k, note from worded where k < 9 order by k",
        "select xmlagg(note order by k)::text from worded where k < 9",
    ];
    for encoding in ["WIN1252", "UTF8"] {
        let refused = same(&herd, &[&format!("set client_encoding = '{encoding}'")], &statements).await;
        assert_eq!(refused, 0, "{encoding}");
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_collation_is_the_columns_own_wherever_names_are_looked_up() {
    let herd = Herd::start(3, false).await;
    let statements = [
        "select count(distinct folded) from public.worded",
        "select count(*) from public.worded a join public.worded b on a.folded = b.folded",
        "select k from public.worded order by folded, k",
        "select folded, rank() over (order by folded) from public.worded where k < 9 order by k",
    ];
    for path in ["alt, public", "''", "public, alt"] {
        assert_eq!(same(&herd, &[&format!("set search_path = {path}")], &statements).await, 0, "{path}");
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn what_is_shipped_is_read_as_it_was_written() {
    let herd = Herd::start(3, false).await;
    let statements = [
        "select k, moods::text, moods[2] is null from worded order by moods, k",
        "select count(*) from (select unnest(moods) m from worded limit 1000) x where m is null",
        "select k, note::text, '{a,NULL}'::text[] from worded order by note::text, k limit 5",
        "select current_setting('array_nulls'), current_setting('xmloption'), max(moods)::text from worded",
    ];
    for settings in [&["set array_nulls = off"][..], &["set xmloption = document"], &["set array_nulls = on"]] {
        same(&herd, settings, &statements).await;
    }
    // A cursor ships within the client's own transaction, whose settings stay what they are.
    let mut said = Vec::new();
    for client in [&mut herd.oracle().await, &mut herd.client().await] {
        let mut answers = Vec::new();
        for text in [
            "set array_nulls = off",
            "begin",
            "declare c cursor for select k, moods::text from worded order by moods, k",
            "fetch 3 from c",
            "show array_nulls",
            "show xmloption",
            "commit",
        ] {
            answers.push(Answer::read(&client.query(text).await));
        }
        said.push(answers);
    }
    assert_eq!(said[1], said[0]);
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_moment_in_a_constant_is_one_moment() {
    let shards = harness::fresh_databases(3).await;
    let role = "do $$ begin create role decider login superuser; \
                exception when duplicate_object or unique_violation then null; end $$";
    for shard in &shards {
        shard.execute(role).await;
    }
    let herd = Herd::with_keys(shards, "two_phase = { user = \"decider\" }\n", "[cache]\nenabled = false\n").await;
    let mut client = herd.client().await;
    for text in [
        "select distinct timestamptz 'now' from worded",
        "select timestamptz 'now' x, count(*) from worded group by 1",
        "select distinct timestamp with time zone E'now' from worded",
        "select distinct v.x from worded join (select timestamp 'now' as x) v on true",
    ] {
        for manner in MANNERS {
            let answer = ask(&mut client, manner, text).await;
            assert_eq!((answer.error.as_ref(), answer.rows.len()), (None, 1), "{manner:?} {text}");
        }
    }
    // A write, or DDL, that would read it on each shard is refused.
    for text in [
        "update worded set at = timestamptz 'now'",
        "alter table worded alter at set default 'now'",
        "alter table worded add since timestamptz default timestamptz 'today'",
        "alter table worded add check (at > timestamptz 'yesterday')",
        "create index on worded (k) where at > 'tomorrow'",
        "create view moments as select k, timestamptz 'now' as m from worded",
        "insert into worded (k, at) select k + 1000, 'now' from worded where k < 9",
    ] {
        assert_eq!(Answer::read(&client.query(text).await).code(), Some("0A000"), "{text}");
    }
    let updated = Answer::read(&client.query("update worded set at = now()").await);
    assert_eq!(updated.tag, "UPDATE 60");
    let moments = Answer::read(&client.query("select count(distinct at) from worded").await);
    assert_eq!(moments.column(0), [Some("1".into())]);
    herd.comes_to_rest().await;
}

/// A flight in which search_path is set: what stands behind means tables by a path that nobody can be asked about.
#[tokio::test]
async fn a_path_that_a_flight_sets_is_not_taken_for_the_one_before() {
    let herd = Herd::start(3, false).await;
    let fly = async |client: &mut WireClient| {
        client.query("set search_path = ''").await;
        client
            .say(|out| {
                for text in ["set local search_path = public", "select max(k) from worded"] {
                    writer::parse(out, b"", text.as_bytes(), &[]);
                    bind(out, "", "", &[], 0);
                    writer::execute(out, b"", 0);
                }
                writer::sync(out);
            })
            .await;
        Answer::read(&client.until_ready().await)
    };
    let wanted = fly(&mut herd.oracle().await).await;
    let given = fly(&mut herd.client().await).await;
    assert_eq!(wanted.error, None);
    assert!(given == wanted || given.code() == Some("0A000"), "{given:?}");
    herd.comes_to_rest().await;
}

/// What pgherd cannot read names a sharded table by a view only: the primary does not know it, and is not asked.
#[tokio::test]
async fn an_unreadable_statement_over_a_view_is_refused() {
    let herd = Herd::start(3, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for text in [
        "select region, count(*) from recent group by rollup (((region)))",
        "select region, count(*) from recent group by cube (((region)), ((id)))",
        "prepare p as select * from recent",
    ] {
        for manner in MANNERS {
            let wanted = ask(&mut oracle, manner, text).await.sorted();
            let given = ask(&mut client, manner, text).await.sorted();
            assert!(given == wanted || given.code() == Some("0A000"), "{manner:?} {text}: {given:?}");
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_of_a_users_is_not_taken_for_the_equality_of_keys() {
    let herd = Herd::start(3, false).await;
    let operators = "create operator alt.= (function = int4ne, leftarg = int4, rightarg = int4);
        create function public.modeq(int4, text) returns bool language sql immutable as 'select $1 % 10 = $2::int4 % 10';
        create operator public.= (function = public.modeq, leftarg = int4, rightarg = text)";
    for database in herd.shards.iter().chain([&herd.whole, &herd.primary]) {
        database.execute(operators).await;
    }
    harness::eventually(std::time::Duration::from_secs(20), "the catalog is read again", async || {
        let mut client = herd.client().await;
        client.query("set search_path = alt, pg_catalog, public").await;
        Answer::read(&client.query("select count(*) from worded where k = 3").await).code() == Some("0A000")
    })
    .await;
    let statements = [
        "select count(*) from worded where k = any(array['3'])",
        "select count(*) from worded where k = any(array['3', null])",
        "select count(*) from worded where k = some(array['3', '4'])",
        "select count(*) from worded where k = any(array['3', '4']::int4[])",
        "select count(*) from worded where k = '3'::text",
        "select count(*) from worded where k in ('3', '4')",
        "select count(*) from worded where k = any('{3,4}')",
    ];
    assert_eq!(same(&herd, &[], &statements).await, 0);
    let mut said = Vec::new();
    for client in [&mut herd.oracle().await, &mut herd.client().await] {
        client
            .say(|out| {
                writer::parse(out, b"", b"select count(*) from worded where k = any(array[$1])", &[]);
                bind(out, "", "", &[Some("3")], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
            })
            .await;
        said.push(Answer::read(&client.until_ready().await));
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(same(&herd, &["set search_path = alt, pg_catalog, public"], &statements[..1]).await, MANNERS.len());
    herd.comes_to_rest().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bind_with_parameters_too_many_or_too_few_fails_as_on_one_server() {
    let herd = Herd::start(3, false).await;
    let statements = [
        ("select count(*) from worded", 0),
        ("select k from worded where k > $1::int4 order by k", 1),
        ("select count(*) from worded a join worded b on a.note::text = b.note::text", 0),
        ("select * from worded where k = $1", 1),
        ("update worded set note = null where k > $1::int4", 1),
        ("select count(*) from countries", 0),
    ];
    for (text, parameters) in statements {
        for bound in (0..4_usize).filter(|bound| *bound != parameters) {
            let mut said = Vec::new();
            for client in [&mut herd.oracle().await, &mut herd.client().await] {
                client
                    .say(|out| {
                        writer::parse(out, b"", text.as_bytes(), &[]);
                        bind(out, "", "", &vec![Some("1"); bound], 0);
                        writer::execute(out, b"", 0);
                        writer::sync(out);
                    })
                    .await;
                let messages = client.until_ready().await;
                said.push((harness::wire::tags(&messages), Answer::read(&messages).error));
            }
            assert_eq!(said[0], said[1], "{text} with {bound}");
        }
    }
    herd.comes_to_rest().await;
}
