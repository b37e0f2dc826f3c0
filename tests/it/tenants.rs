//! Schemas per tenant: each lies whole on one shard, and statements follow the schemas that they, or `search_path`, name.

use std::fmt::Write as _;

use pgherd::commands::check::{self, Level};
use pgherd::wire::writer;

use crate::answers::{Answer, MANNERS, Manner, ask};
use crate::harness::wire::{WireClient, bind, rows};
use crate::harness::{self, Database, Pgherd};

struct Stage {
    primary: Database,
    shards: Vec<Database>,
    toml: String,
    pgherd: Pgherd,
}

/// `acme` and `globex` are listed on two shards, `t_...` go by their names' hash; `countries` is on both.
async fn stage(two_phase: bool) -> Stage {
    let (primary, shards) = (harness::fresh_database().await, harness::fresh_databases(2).await);
    primary.execute("create table local_notes (id int4); insert into local_notes values (1)").await;
    let role = "do $$ begin create role decider login superuser; \
                exception when duplicate_object or unique_violation then null; end $$";
    primary.execute(role).await;
    let mut toml = format!("[[database]]\nname = \"app\"\nprimary = \"{}\"\nshards = [", primary.conninfo());
    for shard in &shards {
        shard.execute("create table countries (code text); insert into countries values ('de'), ('fr'); create table spread (k int4, v int4)").await;
        let _ = write!(toml, "\"{}\", ", shard.conninfo());
    }
    toml += "]\nshard_by = \"schema\"\nschemas = [\"t_*\"]\n";
    if two_phase {
        toml += "two_phase = { user = \"decider\" }\n";
    }
    toml += "schema = [{ name = \"acme\", shard = 0 }, { name = \"globex\", shard = 1 }]\n\
             table = [{ name = \"countries\", reference = true }, { name = \"spread\", shard_key = \"k\", method = \"hash\" }]\n\
             [[user]]\nname = \"postgres\"\nauth = \"trust\"\n[pool]\nmin_connections = 0\nmax_connections = 5\n";
    Stage { primary, shards, pgherd: Pgherd::start(&toml).await, toml }
}

async fn ok(client: &mut WireClient, sql: &str) -> Answer {
    let answer = Answer::read(&client.query(sql).await);
    assert_eq!(answer.error, None, "{sql}");
    answer
}

async fn refused(client: &mut WireClient, sql: &str) {
    let answer = Answer::read(&client.query(sql).await);
    assert_eq!((answer.code(), answer.status), (Some("0A000"), 'I'), "{sql}: {answer:?}");
}

#[tokio::test]
async fn statements_go_where_the_schemas_lie_that_they_name() {
    let stage = stage(true).await;
    let mut client = stage.pgherd.wire("app").await;
    for (schema, id) in [("acme", 1), ("globex", 2)] {
        for sql in [
            format!("create schema {schema}"),
            format!("create table {schema}.t (id int4 primary key, code text, tenant_id int4)"),
            format!("create index on {schema}.t (code)"),
            format!("insert into {schema}.t values ({id}, 'de', 7), ({id} + 10, 'fr', 7)"),
            format!(
                "create function {schema}.f() returns int4 language sql as 'select count(*)::int4 from {schema}.t'"
            ),
            format!("do $$ begin update {schema}.t set tenant_id = 8; end $$"),
        ] {
            ok(&mut client, &sql).await;
        }
    }
    for (shard, schema, other) in [(0, "acme", "globex"), (1, "globex", "acme")] {
        let there = stage.shards[shard].client().await;
        let sql = format!("select count(*) from {schema}.t where tenant_id = 8");
        assert_eq!(there.query_one(&sql, &[]).await.expect(schema).get::<_, i64>(0), 2);
        assert!(there.query_one(&format!("select 1 from {other}.t"), &[]).await.is_err());
    }
    for manner in MANNERS {
        for (sql, wanted) in [
            ("select id from acme.t order by id", vec!["1", "11"]),
            ("select t.id from globex.t join countries using (code) order by 1", vec!["2", "12"]),
            ("select acme.f()", vec!["2"]),
            ("with x as (select * from globex.t) select max(id) from x", vec!["12"]),
            ("select id from local_notes", vec!["1"]),
            ("select count(*) from countries", vec!["2"]),
            ("select count(*) from spread", vec!["0"]),
        ] {
            let answer = ask(&mut client, manner, sql).await;
            assert_eq!(answer.error, None, "{sql}");
            let given: Vec<Vec<u8>> = answer.rows.into_iter().map(|mut row| row.remove(0).expect("a value")).collect();
            if matches!(manner, Manner::Simple | Manner::Text) {
                assert_eq!(given, wanted.iter().map(|it| it.as_bytes().to_vec()).collect::<Vec<_>>(), "{sql}");
            }
        }
    }
    for sql in [
        "select * from acme.t, globex.t",
        "select * from acme.t, local_notes",
        "select * from acme.t, spread",
        "select * from acme.t where id in (select id from globex.t)",
        "insert into acme.t select * from globex.t",
        "create table acme.copy as select * from globex.t",
        "select 1 from acme.t; select 1 from globex.t",
        "do $$ begin delete from acme.t; delete from spread; end $$",
    ] {
        refused(&mut client, sql).await;
    }
    let route = ok(&mut client, "explain (route) select * from globex.t").await;
    let shown =
        |name: &str| route.rows.iter().find(|row| row[0].as_deref() == Some(name.as_bytes())).map(|row| row[1].clone());
    assert_eq!(shown("shard"), Some(Some(b"1".to_vec())));
    assert_eq!(shown("reason"), Some(Some(b"schema".to_vec())));
    // One transaction over both.
    ok(&mut client, "begin").await;
    ok(&mut client, "update acme.t set id = id + 100").await;
    ok(&mut client, "update globex.t set id = id + 100").await;
    ok(&mut client, "rollback").await;
    ok(&mut client, "begin").await;
    ok(&mut client, "delete from acme.t where id = 11").await;
    ok(&mut client, "delete from globex.t where id = 12").await;
    ok(&mut client, "commit").await;
    assert_eq!(rows(&client.query("select id from acme.t").await).len(), 1);
    assert_eq!(rows(&client.query("select id from globex.t").await).len(), 1);
}

#[tokio::test]
async fn search_path_says_whose_names_without_a_schema_are() {
    let stage = stage(false).await;
    let mut client = stage.pgherd.wire("app").await;
    // By the hash of their names; both shards have some of them.
    let names: Vec<String> = (1..=6).map(|at| format!("t_{at}")).collect();
    for (at, name) in names.iter().enumerate() {
        // With another tenant in search_path it would be refused.
        ok(&mut client, "set search_path to public").await;
        ok(&mut client, &format!("create schema {name}")).await;
        ok(&mut client, &format!("set search_path to {name}, public")).await;
        ok(&mut client, "create table orders (id serial, what text)").await;
        ok(&mut client, &format!("insert into orders (what) select '{name}' from generate_series(1, {at} + 1)")).await;
        assert_eq!(rows(&client.query("select nextval('orders_id_seq')").await).len(), 1, "a sequence of the tenant's");
    }
    let mut spread = [0, 0];
    for (at, shard) in stage.shards.iter().enumerate() {
        let sql = "select count(*) from pg_namespace where nspname like 't\\_%'";
        spread[at] = shard.client().await.query_one(sql, &[]).await.expect("schemas").get::<_, i64>(0);
    }
    assert!(spread[0] > 0 && spread[1] > 0 && spread[0] + spread[1] == 6, "{spread:?}");
    for manner in MANNERS {
        for (at, name) in names.iter().enumerate() {
            ok(&mut client, &format!("set search_path to {name}, public")).await;
            let sql = "select what from orders join countries on code = 'de' where what like 't%'";
            let answer = ask(&mut client, manner, sql).await;
            assert_eq!((answer.error.as_ref(), answer.rows.len()), (None, at + 1), "{name}");
            assert!(answer.rows.iter().all(|row| row[0].as_deref() == Some(name.as_bytes())), "{name}: {answer:?}");
        }
    }
    // For one transaction alone.
    ok(&mut client, "set search_path to public").await;
    for manner in MANNERS {
        for (at, name) in names.iter().enumerate() {
            for set in [
                format!("set local search_path to {name}, public"),
                format!("select set_config('search_path', '{name}, public', true)"),
            ] {
                ok(&mut client, "begin").await;
                ok(&mut client, "savepoint s").await;
                assert_eq!(ask(&mut client, manner, &set).await.error, None, "{set}");
                for more in 0..2 {
                    let answer = ask(&mut client, manner, "select what from orders").await;
                    assert_eq!((answer.error.as_ref(), answer.rows.len()), (None, at + 1 + more), "{manner:?} {set}");
                    let write = "insert into orders (what) values ('more')";
                    assert_eq!(ask(&mut client, manner, write).await.error, None, "{manner:?} {set}");
                }
                ok(&mut client, "rollback to s").await;
                assert!(ask(&mut client, manner, "select what from orders").await.error.is_some(), "{manner:?} {set}");
                ok(&mut client, "rollback").await;
            }
        }
    }
    ok(&mut client, &format!("set search_path to {}, public", names[5])).await;
    refused(&mut client, "select * from spread").await;
    ok(&mut client, "select count(*) from public.spread").await;
    ok(&mut client, "begin").await;
    ok(&mut client, "insert into orders (what) values ('kept')").await;
    ok(&mut client, "savepoint s").await;
    ok(&mut client, "delete from orders").await;
    ok(&mut client, "rollback to s").await;
    ok(&mut client, "commit").await;
    assert_eq!(rows(&client.query("select 1 from orders where what = 'kept'").await).len(), 1);
    ok(&mut client, "begin").await;
    ok(&mut client, "declare c cursor for select id from orders order by id").await;
    assert_eq!(rows(&client.query("fetch 2 from c").await).len(), 2);
    ok(&mut client, "commit").await;
    // Two schemas of different shards: nobody knows which is meant.
    ok(&mut client, "set search_path to acme, globex").await;
    refused(&mut client, "select * from orders").await;
    ok(&mut client, "set search_path to public").await;
    assert_eq!(rows(&client.query("select * from local_notes").await).len(), 1);
    drop(client);
    // A role's own schema.
    let mut client = stage.pgherd.wire("app").await;
    assert_eq!(Answer::read(&client.query("select * from orders").await).code(), Some("42P01"));
}

#[tokio::test]
async fn a_prepared_statement_follows_search_path_from_tenant_to_tenant() {
    let stage = stage(false).await;
    let mut client = stage.pgherd.wire("app").await;
    let names: Vec<String> = (1..=6).map(|at| format!("t_{at}")).collect();
    for name in &names {
        ok(&mut client, &format!("create schema {name}")).await;
        ok(&mut client, &format!("create table {name}.notes (id int4, note text)")).await;
    }
    ok(&mut client, &format!("set search_path to {}", names[0])).await;
    client
        .say(|out| {
            writer::parse(out, b"put", b"insert into notes values ($1, $2)", &[]);
            writer::parse(out, b"get", b"select id, note from notes order by id", &[]);
            for name in ["put", "get"] {
                writer::describe(out, b'S', name.as_bytes());
            }
            writer::sync(out);
        })
        .await;
    assert_eq!(Answer::read(&client.until_ready().await).error, None);
    for round in 0..3 {
        for (at, name) in names.iter().enumerate() {
            let within = round == 2;
            ok(&mut client, if within { "begin" } else { "set search_path to public" }).await;
            let local = if within { "local " } else { "" };
            ok(&mut client, &format!("set {local}search_path to {name}, public")).await;
            let id = format!("{at}");
            client
                .say(|out| {
                    bind(out, "", "put", &[Some(&id), Some(name)], 0);
                    writer::execute(out, b"", 0);
                    bind(out, "", "get", &[], 0);
                    writer::execute(out, b"", 0);
                    writer::sync(out);
                })
                .await;
            let messages = client.until_ready().await;
            assert_eq!(Answer::read(&messages).error, None, "{name}, round {round}");
            let wanted = vec![vec![Some(id), Some(name.clone())]; round + 1];
            assert_eq!(rows(&messages), wanted, "{name}, round {round}");
            if within {
                ok(&mut client, "commit").await;
            }
        }
    }
    for name in &names {
        assert_eq!(rows(&client.query(&format!("select count(*) from {name}.notes")).await), [[Some("3".to_owned())]]);
    }
}

#[tokio::test]
async fn a_search_path_set_within_a_transaction_is_followed_or_refused() {
    let stage = stage(true).await;
    stage.primary.execute("create table notes (id int4, what text)").await;
    let mut client = stage.pgherd.wire("app").await;
    for schema in ["acme", "globex"] {
        ok(&mut client, &format!("create schema {schema}")).await;
        ok(&mut client, &format!("create table {schema}.notes (id int4, what text)")).await;
    }
    let insert = "insert into notes values (99, 'tenant')";
    for manner in MANNERS {
        for set in ["set local search_path = acme, public", "set search_path = acme, public"] {
            for text in [
                "begin",
                set,
                insert,
                "savepoint s",
                "set local search_path = public",
                insert,
                "rollback to s",
                insert,
                "commit",
            ] {
                let answer = ask(&mut client, manner, text).await;
                assert_eq!(answer.error, None, "{manner:?} {set}: {text}");
            }
            ok(&mut client, "set search_path to public").await;
            let found = ok(&mut client, "delete from acme.notes").await;
            assert_eq!(found.tag, "DELETE 2", "{manner:?} {set}");
        }
        // A query may set it, too.
        ok(&mut client, "begin").await;
        ok(&mut client, "select set_config('search_path', 'acme, public', true)").await;
        let inserted = ask(&mut client, manner, insert).await;
        assert_eq!((inserted.tag.as_str(), inserted.status), ("INSERT 0 1", 'T'), "{manner:?} {inserted:?}");
        assert_eq!(ok(&mut client, "delete from acme.notes").await.tag, "DELETE 1", "{manner:?}");
        ok(&mut client, "rollback").await;
    }
    // In one string the names are looked up before anybody can be asked.
    for set in ["set search_path = acme, public", "select set_config('search_path', 'acme, public', false)"] {
        refused(&mut client, &format!("{set}; {insert}")).await;
    }
    client
        .say(|out| {
            for text in ["set search_path = acme, public", insert] {
                writer::parse(out, b"", text.as_bytes(), &[]);
                bind(out, "", "", &[], 0);
                writer::execute(out, b"", 0);
            }
            writer::sync(out);
        })
        .await;
    let answer = Answer::read(&client.until_ready().await);
    assert_eq!((answer.code(), answer.status), (Some("0A000"), 'I'), "a pipeline: {answer:?}");
    ok(&mut client, "set search_path to public").await;
    let left = stage.primary.client().await.query_one("select count(*) from notes", &[]).await.expect("a count");
    assert_eq!(left.get::<_, i64>(0), 0, "nothing of it went to the primary");
}

/// Where the schemas lie: none for the primary, else the shard.
async fn homes(stage: &Stage, schema: &str) -> Vec<Option<usize>> {
    let mut homes = Vec::new();
    let servers = stage.shards.iter().enumerate().map(|(at, shard)| (Some(at), shard));
    for (at, server) in servers.chain([(None, &stage.primary)]) {
        let sql = "select 1 from pg_namespace where nspname = $1";
        if server.client().await.query_opt(sql, &[&schema]).await.expect("a look").is_some() {
            homes.push(at);
        }
    }
    homes
}

#[tokio::test]
async fn a_schema_is_not_given_a_name_whose_home_is_elsewhere() {
    let stage = stage(true).await;
    let mut client = stage.pgherd.wire("app").await;
    let mut of_shard = [Vec::new(), Vec::new()];
    for at in 0..12 {
        let name = format!("t_{at}");
        ok(&mut client, &format!("create schema {name}")).await;
        let [Some(home)] = homes(&stage, &name).await[..] else { panic!("{name} lies on one shard") };
        ok(&mut client, &format!("drop schema {name}")).await;
        of_shard[home].push(name);
    }
    let [[a, b, c, ..], [other, another, ..]] = [&of_shard[0][..], &of_shard[1][..]] else { panic!("{of_shard:?}") };
    for name in [a, other] {
        ok(&mut client, &format!("create schema {name}")).await;
        ok(&mut client, &format!("create table {name}.o (i int4)")).await;
        ok(&mut client, &format!("insert into {name}.o values (1)")).await;
    }
    ok(&mut client, "create schema plain").await;
    for sql in [
        format!("alter schema {a} rename to {another}"),
        format!("alter schema {a} rename to \"{another}\""),
        format!("alter schema {a} rename to globex"),
        format!("alter schema {a} rename to plain_too"),
        format!("alter schema plain rename to {b}"),
        format!("drop schema {a}, {other} cascade"),
        format!("drop schema if exists {a}, {another} cascade"),
        format!("drop schema if exists {a}, plain cascade"),
        format!("grant usage on schema {a}, {other} to public"),
        format!("alter table {a}.o set schema public"),
        format!("alter table {a}.o set schema {other}"),
        "create schema authorization current_user".to_owned(),
        "create schema if not exists authorization session_user".to_owned(),
    ] {
        refused(&mut client, &sql).await;
    }
    assert_eq!(homes(&stage, "plain").await, [None]);
    // What stays at home is done.
    ok(&mut client, &format!("alter schema {a} rename to {c}")).await;
    assert_eq!(rows(&client.query(&format!("select i from {c}.o")).await).len(), 1);
    ok(&mut client, "alter schema plain rename to plain_too").await;
    assert_eq!(homes(&stage, "plain_too").await, [None]);
    ok(&mut client, &format!("create schema if not exists {b}")).await;
    ok(&mut client, &format!("alter table {c}.o set schema {b}")).await;
    ok(&mut client, &format!("create table {c}.columns (schema text, i int4)")).await;
    ok(&mut client, &format!("create index on {c}.columns (schema, i)")).await;
    ok(&mut client, &format!("drop schema {b}, {c} cascade")).await;
    for server in stage.shards.iter().chain([&stage.primary]) {
        let role = format!(
            "do $$ begin create role {another}; exception when duplicate_object or unique_violation then null; end $$"
        );
        server.execute(&role).await;
    }
    ok(&mut client, &format!("create schema authorization {another} create table made (i int4)")).await;
    assert_eq!(homes(&stage, another).await, [Some(1)]);
    assert_eq!(rows(&client.query(&format!("select * from {another}.made")).await).len(), 0);
    ok(&mut client, &format!("drop schema {another} cascade")).await;
}

#[tokio::test]
async fn a_name_in_a_constant_is_looked_up_where_its_schema_lies() {
    let stage = stage(true).await;
    let mut client = stage.pgherd.wire("app").await;
    for name in ["acme", "globex"] {
        ok(&mut client, &format!("create schema {name}")).await;
        ok(&mut client, &format!("create table {name}.o (i serial)")).await;
    }
    for name in ["acme", "globex"] {
        for (sql, value) in [
            (format!("select to_regclass('{name}.o') is not null"), "t"),
            (format!("select to_regclass('\"{name}\".o')::text"), &*format!("{name}.o")),
            (format!("select '{name}.o'::regclass::text"), &*format!("{name}.o")),
            (format!("select cast('{name}.o' as regclass)::text"), &*format!("{name}.o")),
            (format!("select to_regtype('{name}.o') is not null"), "t"),
            (format!("select to_regnamespace('{name}') is not null"), "t"),
            (format!("select to_regnamespace('{name}_not') is not null"), "f"),
            (format!("select relname from pg_class where oid = '{name}.o'::regclass"), "o"),
            (format!("select pg_get_serial_sequence('{name}.o', 'i')"), &*format!("{name}.o_i_seq")),
            (format!("select regexp_replace('{name}', '^.*$', 'x') || '{name}.o'"), &*format!("x{name}.o")),
            ("select to_regclass('local_notes') is not null".to_owned(), "t"),
        ] {
            for manner in MANNERS {
                assert_eq!(ask(&mut client, manner, &sql).await.error, None, "{manner:?} {sql}");
            }
            assert_eq!(rows(&client.query(&sql).await), [[Some(value.to_owned())]], "{sql}");
        }
    }
    for sql in [
        "select to_regclass('acme.o'), to_regclass('globex.o')",
        "select to_regclass('globex.o') from acme.o",
        "select 'globex.o'::regclass from local_notes",
    ] {
        refused(&mut client, sql).await;
    }
}

#[tokio::test]
async fn check_finds_schemas_that_are_where_nobody_looks() {
    let stage = stage(false).await;
    stage.shards[0].execute("create schema acme; create table acme.t (a int)").await;
    stage.shards[1].execute("create schema globex; create schema t_empty").await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    std::fs::write(&path, &stage.toml).expect("a file");
    let report = check::run(&path).await.unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(report.count(Level::Fault), 0, "{report}");
    stage.shards[1].execute("create schema acme; create table acme.t (a int); drop schema globex").await;
    stage.primary.execute("create schema globex; create table globex.t (a int)").await;
    let report = check::run(&path).await.unwrap_or_else(|faults| panic!("{faults}"));
    let found = |place: &str, text: &str| {
        report.findings.iter().any(|finding| finding.place.contains(place) && finding.text.contains(text))
    };
    assert!(found("shard 1", "the schema acme has tables here, but belongs to shard 0"), "{report}");
    assert!(found("primary", "the schema globex has tables here, but belongs to shard 1"), "{report}");
    assert!(found("shard 1", "there is no schema globex"), "{report}");
}
