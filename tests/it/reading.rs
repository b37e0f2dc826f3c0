//! Reading SQL against PostgreSQL itself: what one side reads as a constant, a statement or a relation, the other must read alike.

use pgherd::catalog::load::load;
use pgherd::sql::facts::Class;
use pgherd::sql::lexer::Lexer;
use pgherd::sql::{Analyzer, literal};
use tokio_postgres::SimpleQueryMessage;

use crate::harness;

/// Constants as a session may write them, awkward ones first.
const CONSTANTS: &[&str] = &[
    r"'it''s'",
    r"'back\slash'",
    r"E'a\'b'",
    r"e'\x41\101\n\t\b\f\r\\\u00e9\U0001F600'",
    r"E'a''b\''",
    r"E'\q'",
    "$$a'b$$",
    "$tag$ $$ $other$ $tag$",
    "$é1$ body $é1$",
    r"U&'d\0061t\+000061 \\'",
    r"U&'\D83D\DE00'",
    "'a'\n  'b'",
    "'a' -- comment\n\t'b'",
    "E'a\\''\n'b\\''",
    "N'x'",
    "''",
    "'; drop table t; --'",
    "'/* no comment */'",
];

async fn value_of(client: &tokio_postgres::Client, constant: &str) -> String {
    let messages = client.simple_query(&format!("select {constant}::text")).await;
    let messages = messages.unwrap_or_else(|error| panic!("{constant}: {error:?}"));
    let row = messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.unwrap_or_else(|| panic!("{constant}: no row"))
}

fn our_value_of(constant: &str, standard_conforming_strings: bool) -> String {
    let text = constant.as_bytes();
    let token = Lexer::new(text, standard_conforming_strings).filter(|token| token.kind.is_string()).last();
    literal::string(token.expect("a string"), text).unwrap_or_else(|| panic!("{constant}: not decoded"))
}

#[tokio::test]
async fn constants_end_and_decode_as_on_the_server() {
    let client = harness::fresh_database().await.client().await;
    for constant in CONSTANTS {
        assert_eq!(our_value_of(constant, true), value_of(&client, constant).await, "{constant}");
    }
    client.batch_execute("set standard_conforming_strings = off; set escape_string_warning = off").await.expect("set");
    for constant in [r"'it''s'", r"'a\'b'", r"'a\\'", "'a\\n'\n'b'", "$$a\\$$"] {
        assert_eq!(our_value_of(constant, false), value_of(&client, constant).await, "{constant}");
    }
}

#[tokio::test]
async fn a_string_is_cut_into_as_many_statements_as_the_server_runs() {
    let client = harness::fresh_database().await.client().await;
    client.batch_execute("create table t (a int)").await.expect("create");
    for text in [
        "select 1; select 2",
        ";;select 1;;",
        "select ';'; select $$;$$; select \"a;b\" from (select 1 as \"a;b\") s",
        "select 1 /* ; /* ; */ ; */; select 2 -- ;\n; select 3",
        "create rule r as on insert to t do also (select 1; select 2); drop rule r on t",
        "create function f() returns int language sql begin atomic select case when true then 1 end; select 2; end; select f()",
        "begin; select 1; end",
        "select 2*/**/3; select 1+-+1; select 'a'--x\n'b'",
    ] {
        let tags = client.simple_query(text).await.unwrap_or_else(|error| panic!("{text}: {error:?}"));
        let ran = tags.iter().filter(|message| matches!(message, SimpleQueryMessage::CommandComplete(_))).count();
        let found = Analyzer::with_memo_bytes(1 << 16).facts(text.as_bytes(), true).statements.len();
        assert_eq!(found, ran, "{text}");
    }
}

#[tokio::test]
async fn identifiers_fold_as_on_the_server() {
    let client = harness::fresh_database().await.client().await;
    for name in ["FooBar", "\"FooBar\"", "\"a\"\"b\"", r#"U&"d\0061ta""#, "ÄrgerStraße", "a$1", "_x1"] {
        let row = client
            .query_one(&format!("select 1 as {name}"), &[])
            .await
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let token = Lexer::new(name.as_bytes(), true).next().expect("a token");
        assert_eq!(token.end, name.len(), "{name}");
        assert_eq!(literal::identifier(token, name.as_bytes()).as_deref(), Some(row.columns()[0].name()), "{name}");
    }
}

/// Queries of every shape over the tables a, b, c and the partitioned p: PostgreSQL says which of them each one reads.
const QUERIES: &[&str] = &[
    "select 1 as x",
    "select * from a",
    "select a.x from only a",
    "select a.x from a, b as c",
    "select c.* from a join b using (x) left join c on c.x = a.x and exists (select 1 from p)",
    "select x from a where x in (select x from b where y > all (select y from c))",
    "with a as (select * from b) select * from a",
    "with a as (select * from a) select * from a",
    "with recursive a(x) as (select x from b union all select x + 1 from a where x < 5) select * from a",
    "with one as (select * from a), two as (select one.x from one, b) select two.x as x1 from two join c on true",
    "select (with a as (select 1 as x) select x from a) as x from b",
    "select s.y from (with b as (select 1 as y) select y from b) s, b",
    "select x from a union (select x from b except all select x from c) intersect select x from p",
    "select sum(x) filter (where y > (select max(y) from c)) over (partition by y order by x) as s from a",
    "select array(select x from b) as l, row(1, (select max(x) from c)) = row(1, 2) as r from a",
    "select case when x > 1 then (select 1 from b limit 1) else (select 2 from c limit 1) end as k from a",
    "select * from generate_series(1, (select max(x) from a)) g(i)",
    "select i from a, lateral (select b.x as i from b where b.x = a.x) s",
    "select x from a group by grouping sets ((x), ()) having count(*) > (select count(*) from b)",
    "select distinct on (x) x from a order by x, (select max(y) from b)",
    "select x from a order by 1 limit (select 1) offset (select 0 from b limit 1)",
    "values (1, (select max(x) from a))",
    "table a",
    "select extract(year from current_date) as y, trim(both 'x' from 'xax') as t, position('a' in 'ba') as p, x from a",
    "select U&\"\\0078\" from a",
    "select $q$ from b $q$ as q, 'it''s from c' as s, E'\\' from c' as e from a",
    "select a.x as \"from\" from a /* , b */ -- , c\n",
    "select x from a where (x, y) in (select x, y from b) and x between 1 and (select max(x) from c)",
    "select x::int8 as x8, cast(y as text) as yt, t at time zone 'UTC' as z from (select x, y, now() as t from a) q, lateral (select t as x1) w",
    "select coalesce(nullif(x, 1), greatest(x, y)) as g from a where x is distinct from (select y from b limit 1)",
    "select x from a where x = any (array(select x from b)) and y = some (select y from c)",
    "select s.x from (a join b using (x)) join (select x as x from c) s on true",
    "select x from public.a where not exists (table b)",
];

#[tokio::test]
async fn queries_read_what_postgresql_says_they_read() {
    let database = harness::fresh_database().await;
    let client = database.client().await;
    let tables = "create table a (x int, y int); create table b (x int, y int); create table c (x int, y int);
                  create table p (x int) partition by list (x)";
    client.batch_execute(tables).await.expect("tables");
    let mut faults = Vec::new();
    for (number, query) in QUERIES.iter().enumerate() {
        if let Err(error) = client.batch_execute(&format!("create view v{number} as {query}")).await {
            faults.push(format!("{query}: {error:?}"));
        }
    }
    let catalog = load(&client).await.expect("a catalog");
    let analyzer = Analyzer::with_memo_bytes(1 << 20);
    let mut opaque = 0;
    for (number, query) in QUERIES.iter().enumerate() {
        let facts = analyzer.facts(query.as_bytes(), true);
        let statement = facts.single().expect(query);
        let Some(view) = catalog.relation("public", &format!("v{number}")) else { continue };
        if statement.class == Class::Opaque {
            opaque += 1;
            continue;
        }
        let mut theirs: Vec<&str> =
            view.reads.iter().filter(|&&oid| oid != view.oid).map(|oid| &*catalog.relations[oid].name).collect();
        theirs.sort_unstable();
        let mut ours: Vec<&str> = statement.reads.iter().map(|name| &*name.name).collect();
        ours.dedup();
        if ours != theirs {
            faults.push(format!("{query}: we say {ours:?}, PostgreSQL says {theirs:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(opaque <= 2, "{opaque} of {} could not be read", QUERIES.len());
}
