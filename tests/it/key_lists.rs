//! Tables of which the shards ship only rows with the keys of another: every answer is that of one PostgreSQL, and rows are held
//! back just where no place in the statement can use them.

use std::fmt::Write as _;

use crate::answers::{MANNERS, Manner, ask};
use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};
use crate::layouts::Layout;

/// Many rows and few with the same columns; their keys are equal where their numbers are, and one in some is NULL.
const SCHEMA: &str = r#"
create table many (id int4, k int4, b int8, s int2, n numeric, t text, c text collate "C", v varchar(20), p char(12), g uuid, d date);
create table few (like many);
create table none (like many);
create table all_null (like many);
create table other (like many);
create function word(n int) returns text immutable language sql as $$ select case n % 8
  when 0 then 'it''s ' || n when 1 then 'back\slash' || n when 2 then '{a,"b"} ' || n when 3 then 'NULL' when 4 then 'tab' || chr(9) || n
  when 5 then '' when 6 then 'Q' || n else 'q' || n end $$;
create function line(g int, n int) returns many immutable language sql as $$ select row(g, n, n, n,
  case when g % 2 = 0 then n::numeric(8, 1) else n::numeric(9, 3) end, word(n), word(n), 'v' || n, 'p' || n || repeat(' ', g % 3),
  md5(n::text)::uuid, '2024-01-01'::date + n)::many $$;
insert into many select l.* from generate_series(1, 2000) g, line(g, nullif(g % 200, 199)) l;
insert into few select l.* from generate_series(1, 40) g, line(g, nullif(g % 9 * 11, 22)) l;
insert into other select l.* from generate_series(1, 300) g, line(g, g % 50) l;
insert into many (id, t, c) values (2001, 'é', 'ß'), (2002, 'ß', 'é'), (2003, 'e', 'e');
insert into few (id, t, c) values (41, 'é', 'é'), (42, 'ß', 'ß');
insert into all_null select g from generate_series(1, 5) g;
"#;

const TABLES: [&str; 5] = ["many", "few", "none", "all_null", "other"];

struct Herd {
    whole: Database,
    pgherd: Pgherd,
}

impl Herd {
    /// `more` is run on every server, `fanout` belongs to that section of the TOML.
    async fn start(shards: usize, more: &str, fanout: &str) -> Self {
        let (whole, primary) = (harness::fresh_database().await, harness::fresh_database().await);
        whole.execute(&format!("{SCHEMA}{more}")).await;
        primary.execute(more).await;
        let mut toml = format!("[[database]]\nname = \"app\"\nprimary = \"{}\"\nshards = [", primary.conninfo());
        let layout = Layout::hash(&["id"]);
        for (at, shard) in harness::fresh_databases(shards).await.iter().enumerate() {
            let own: String = TABLES.iter().map(|table| layout.keep_own(table, shards, at)).collect();
            shard.execute(&format!("{SCHEMA}{more}{own}analyze")).await;
            let _ = write!(toml, "\"{}\", ", shard.conninfo());
        }
        toml += "]\n";
        TABLES.iter().for_each(|table| toml += &layout.toml(table, shards));
        toml += "[[user]]\nname = \"postgres\"\nauth = \"trust\"\n[cache]\nenabled = false\n";
        let _ =
            write!(toml, "[fanout]\npure_functions = [\"ops.same(character varying, character varying)\"]\n{fanout}");
        Self { whole, pgherd: Pgherd::start(&toml).await }
    }

    async fn clients(&self) -> (WireClient, WireClient) {
        (WireClient::login(self.whole.port, "postgres", &self.whole.name).await, self.pgherd.wire("app").await)
    }
}

/// The answers are equal in every manner; how many rows of `many` were shipped, and what EXPLAIN ANALYZE says of the keys.
async fn told(oracle: &mut WireClient, client: &mut WireClient, text: &str) -> (u64, Vec<String>) {
    for manner in MANNERS {
        let wanted = ask(oracle, manner, text).await.sorted();
        assert_eq!(wanted.error, None, "{text}");
        assert_eq!(ask(client, manner, text).await.sorted(), wanted, "{text} {manner:?}");
    }
    let answer = ask(client, Manner::Simple, &format!("explain (analyze) {text}")).await;
    let lines: Vec<String> = answer.column(0).into_iter().flatten().map(|line| line.trim().to_owned()).collect();
    let shipped = lines.iter().find_map(|line| line.strip_prefix("->  Ship public.many "));
    let rows = shipped.and_then(|line| line.split_once("rows=")?.1.split(' ').next()?.parse().ok());
    let rows = rows.unwrap_or_else(|| panic!("many is shipped: {text}\n{}", lines.join("\n")));
    (rows, lines.into_iter().filter(|line| line.starts_with("Restricted to")).collect())
}

/// Rows of `many` in all.
const ALL: u64 = 2003;

#[tokio::test]
async fn rows_whose_keys_nobody_has_stay_where_they_are() {
    let herd = Herd::start(3, "", "").await;
    let (mut oracle, mut client) = herd.clients().await;
    for column in ["k", "b", "s", "n", "t", "c", "v", "p", "g"] {
        let text = format!("select m.id, f.id, m.{column} from many m, few f where m.{column} = f.{column}");
        let (rows, kept) = told(&mut oracle, &mut client, &text).await;
        assert!(rows < ALL / 2, "{text}: {rows} rows");
        assert_eq!(kept.len(), 1, "{text}: {kept:?}");
        assert!(kept[0].ends_with(&format!("keys of public.few.{column}")), "{kept:?}");
    }
    for text in [
        "select count(*), sum(m.id) from many m join few f on f.k = m.k where f.id < 20",
        "select m.id from many m where m.k in (select f.k from few f)",
        "select m.id from many m where m.id < 900 and exists (select from few f where f.k = m.k and f.id > 3)",
        "select m.id from many m where exists (select 1, f.* from few f where f.k = m.k)",
        // Whatever a sub-query does, it sees all rows that its own conditions let through for the rows around it.
        "select f.id, (select count(*) from many m where m.k = f.k), (select max(m.id) from many m where f.k = m.k) from few f",
        "select f.id from few f where not exists (select from many m where m.k = f.k and m.id > 1500)",
        "select f.id, m.id from few f left join many m on m.k = f.k and m.id < 100",
        "select f.id, m.id from few f left join many m using (k)",
        "select f.id, m.id from few f, other o left join many m on m.id = o.id where f.id < 3 and f.k = o.k and o.id < 30",
        "select f.id from few f where f.k in (select m.k from many m where m.id < 1000)",
        "select a.id, b.id from many a join few f on a.k = f.k, many b where b.k = f.k and b.id < 400",
        "select f.id from few f where (f.k = 11 and f.id < 9) or (select count(*) from many m where m.t = f.t and m.c = f.c) > 3",
        "select m.id from many m, few f where (m.k = f.k and f.id < 9) or (f.k = m.k and m.id < 99)",
        "with w as (select m.id, m.k from many m, few f where m.k = f.k) select k, count(*) from w group by k",
        "select k, n from (select m.k, count(*) as n from many m where m.k in (select k from few) group by 1) x where n > 2",
        "select m.id from few f, lateral (select m.id from many m where m.k = f.k order by m.id limit 3) m",
    ] {
        let (rows, kept) = told(&mut oracle, &mut client, text).await;
        let is_exempt = text.contains("lateral");
        assert!(is_exempt || (rows < ALL / 2 && !kept.is_empty()), "{text}: {rows} rows, {kept:?}");
    }
}

#[tokio::test]
async fn rows_that_some_place_can_use_are_all_shipped() {
    let herd = Herd::start(2, "", "").await;
    let (mut oracle, mut client) = herd.clients().await;
    for text in [
        "select m.id, f.id from many m left join few f on m.k = f.k",
        "select m.id, f.id from few f right join many m on m.k = f.k",
        "select m.id, f.id from many m full join few f on m.k = f.k",
        // It could be bound; a LEFT JOIN the other way round is.
        "select f.id, m.id from many m right join few f on m.k = f.k",
        "select m.id from many m where m.k not in (select f.k from few f where f.k is not null)",
        "select m.id from many m where m.k not in (select f.k from few f)",
        "select m.id from many m where not exists (select from few f where f.k = m.k)",
        "select m.id from many m where not (m.k in (select f.k from few f))",
        "select m.id, m.k in (select f.k from few f) from many m",
        "select m.id from many m where (m.k in (select f.k from few f)) is not true",
        "select f.id from few f where f.k not in (select m.k from many m)",
        "select f.id, f.k in (select m.k from many m) from few f",
        "select f.id from few f where f.k in (select m.k from many m order by m.id offset 5)",
        "select f.id from few f where f.k in (select m.k from many m group by m.k having count(*) > 9)",
        // A count gives a row where it counts none.
        "select m.id from many m where exists (select count(*) from few f where f.k = m.k)",
        "select m.id from many m where m.k = 5 or m.k in (select f.k from few f)",
        "select m.id from many m, few f where m.k = f.k or m.id = f.id",
        "select m.id from many m, few f where m.k + 0 = f.k and f.id < 4",
        "select m.id from many m, few f where m.k <> f.k and f.id = 1",
        // Columns of two types or two collations.
        "select m.id from many m, few f where m.k = f.b",
        "select m.id from many m, few f where m.n = f.k",
        "select m.id from many m, few f where m.v = f.t",
        "select m.id from many m, few f where m.p = f.v",
        "select m.id from many m, few f where m.c = f.t collate \"C\"",
        // A type whose text depends on settings.
        "select m.id from many m, few f where m.d = f.d",
        // A second place wants every row.
        "select m.id, (select count(*) from many) from many m, few f where m.k = f.k",
        "select m.id from many m join few f on m.k = f.k union all select id from many",
        "select m.id from many m where m.k = (select max(f.k) from few f)",
        "select m.id from many m join (few f left join other o on o.k = f.k) on m.k = f.k",
        "with few as (select 11 as k) select m.id, (select count(*) from public.few) from many m, few where m.k = few.k",
        "select m.id, f.id from (select 1) x left join many m on true left join few f on m.k = f.k",
    ] {
        let (rows, kept) = told(&mut oracle, &mut client, text).await;
        assert_eq!(rows, ALL, "{text}: {kept:?}");
    }
}

#[tokio::test]
async fn no_keys_and_null_keys_and_too_many_keys() {
    let herd = Herd::start(2, "", "key_list_max = 8\n").await;
    let (mut oracle, mut client) = herd.clients().await;
    for (text, shipped) in [
        ("select count(*), sum(m.id) from many m, none f where m.k = f.k", 0),
        ("select count(*), sum(m.id) from many m, none f where m.t = f.t", 0),
        ("select count(*), sum(m.id) from many m, all_null f where m.k = f.k", 0),
        ("select f.id, m.id from all_null f left join many m on m.k = f.k", 0),
        ("select m.id from many m where m.k not in (select k from none)", ALL),
        ("select m.id from many m where m.k not in (select k from all_null)", ALL),
        // Eight keys and NULL, ten rows of each; and nine.
        ("select count(*), sum(m.id) from many m, few f where m.k = f.k and f.id < 30", 80),
        ("select count(*), sum(m.id) from many m, (select 1) x, other f where m.k = f.k and f.id < 10", ALL),
        ("select count(*), sum(m.id) from many m, other f where m.k = f.k and f.id < 9", 80),
        ("select count(*), sum(m.id) from many m, few f, none e where m.k = f.k and m.n = e.n", 0),
    ] {
        let (rows, kept) = told(&mut oracle, &mut client, text).await;
        assert_eq!(rows, shipped, "{text}: {kept:?}");
    }
    let off = Herd::start(2, "", "key_list_max = 0\n").await;
    let (mut oracle, mut client) = off.clients().await;
    let text = "select count(*), sum(m.id) from many m, few f where m.k = f.k";
    assert_eq!(told(&mut oracle, &mut client, text).await, (ALL, Vec::new()));
}

#[tokio::test]
async fn keys_of_what_was_itself_kept_to_keys() {
    let herd = Herd::start(4, "", "").await;
    let (mut oracle, mut client) = herd.clients().await;
    let text =
        "select m.id, o.id, f.id from many m, other o, few f where m.k = o.k and o.n = f.n and f.id between 2 and 4";
    let (rows, kept) = told(&mut oracle, &mut client, text).await;
    assert!(rows <= 40 && kept.len() == 2, "{rows} rows, {kept:?}");
    let route = ask(&mut client, Manner::Simple, &format!("explain (route) {text}")).await;
    let said =
        route.column(0).into_iter().zip(route.column(1)).filter(|(name, _)| name.as_deref() == Some("restricted"));
    let said: Vec<String> = said.filter_map(|(_, value)| value).collect();
    assert!(
        said.iter().any(|text| text == "public.many to the keys of public.other.k, where they are few"),
        "{said:?}"
    );
}

#[tokio::test]
async fn two_names_of_one_table_each_with_conditions_of_its_own() {
    let herd = Herd::start(3, "", "").await;
    let (mut oracle, mut client) = herd.clients().await;
    for text in [
        "select m.id, few.id, f.id from many m, few, few f where few.id < 3 and few.k = m.k and f.k = m.k and (f.id = 1 or f.id = 40)",
        "select m.id, f.id, few.id from many m, few f, few where few.id < 3 and few.k = m.k and f.k = m.k and (f.id = 1 or f.id = 40)",
        "select m.id, a.id, b.id from many m, few a, few b where a.id < 3 and a.k = m.k and b.t like 'Q22%' and b.k = m.k",
        "select m.id, (select count(*) from few b where b.id > 30 and b.k = m.k) from many m, few a where a.id = 3 and a.k = m.k",
        "select m.id from many m, public.few where few.id between 4 and 6 and few.k = m.k and exists (select from few where id > 35 and k = m.k)",
    ] {
        let (rows, kept) = told(&mut oracle, &mut client, text).await;
        assert!(rows <= 80 && !kept.is_empty(), "{text}: {rows} rows, {kept:?}");
    }
    // In either name's condition the table goes by that name.
    let text = "select a.id, b.id from few a, few b where a.id < 3 and b.id > 39 and a.k is distinct from b.k";
    let route = ask(&mut client, Manner::Simple, &format!("explain (route) {text}")).await;
    let shown = route
        .column(1)
        .into_iter()
        .flatten()
        .find(|value| value.starts_with("public.few from"))
        .expect("it is shipped");
    assert!(
        shown.contains("AS \"a\" WHERE")
            && shown.contains("EXISTS (SELECT ? FROM (SELECT \"a\".\"id\") AS \"b\" WHERE"),
        "{shown}"
    );
    assert_eq!(
        ask(&mut client, Manner::Text, text).await.sorted(),
        ask(&mut oracle, Manner::Text, text).await.sorted()
    );
}

#[tokio::test]
async fn settings_encodings_cursors_and_copies() {
    let herd = Herd::start(2, "", "").await;
    let (mut oracle, mut client) = herd.clients().await;
    let text = "select m.id, m.t, m.c from many m, few f where m.t = f.t and m.c > 'z'";
    for setting in [
        "set client_encoding to latin1",
        "set client_encoding to utf8",
        "set standard_conforming_strings to off",
        "set search_path to public, pg_catalog",
        "set extra_float_digits to 0",
    ] {
        for one in [&mut oracle, &mut client] {
            assert_eq!(ask(one, Manner::Simple, setting).await.error, None);
        }
        let (rows, kept) = told(&mut oracle, &mut client, text).await;
        // Keys beyond ASCII are not written where they would have to be converted.
        assert_eq!(kept.is_empty(), setting.contains("latin1"), "{setting}: {rows} rows, {kept:?}");
    }
    for one in [&mut oracle, &mut client] {
        ask(one, Manner::Simple, "reset all").await;
        ask(one, Manner::Simple, "begin").await;
        ask(one, Manner::Simple, &format!("declare c cursor for {text} order by 1")).await;
    }
    let wanted = ask(&mut oracle, Manner::Simple, "fetch all from c").await;
    assert!(!wanted.rows.is_empty());
    assert_eq!(ask(&mut client, Manner::Simple, "fetch all from c").await, wanted);
    for one in [&mut oracle, &mut client] {
        ask(one, Manner::Simple, "commit").await;
    }
    let copy = format!("copy ({text} order by 1) to stdout");
    assert_eq!(client.query(&copy).await, oracle.query(&copy).await);
}

#[tokio::test]
async fn an_equality_of_the_users_own_making_is_not_guessed() {
    let more = "create schema ops;
        create function ops.same(varchar, varchar) returns bool immutable language sql as 'select pg_catalog.left($1, 2) operator(pg_catalog.=) pg_catalog.left($2, 2)';
        create operator ops.= (leftarg = varchar, rightarg = varchar, function = ops.same);";
    let herd = Herd::start(2, more, "").await;
    let (mut oracle, mut client) = herd.clients().await;
    for path in ["public", "public, ops"] {
        for one in [&mut oracle, &mut client] {
            ask(one, Manner::Simple, &format!("set search_path to {path}")).await;
        }
        let text = "select count(*), sum(m.id) from many m, few f where m.v = f.v and f.id < 5";
        let (rows, _) = told(&mut oracle, &mut client, text).await;
        assert_eq!(rows, ALL, "{path}");
        let text = "select count(*), sum(m.id) from many m, few f where m.t = f.t and f.id < 5";
        let (rows, _) = told(&mut oracle, &mut client, text).await;
        assert_ne!(rows, ALL, "{path}");
    }
    // It could be the equality of shard keys, too.
    ask(&mut client, Manner::Simple, "set search_path to ops, pg_catalog, public").await;
    let text = "select count(*), sum(m.id) from many m, few f where m.t = f.t and f.id < 5";
    assert_eq!(ask(&mut client, Manner::Simple, text).await.code(), Some("0A000"));
}

#[tokio::test]
async fn who_may_not_read_a_table_is_told_so_once() {
    let role = harness::fresh_role("pg_read_all_settings").await;
    let more = format!("do $$ begin grant select on few to {role}; exception when undefined_table then null; end $$;");
    let herd = Herd::start(2, &more, "").await;
    let (mut oracle, mut client) = herd.clients().await;
    for one in [&mut oracle, &mut client] {
        assert_eq!(ask(one, Manner::Simple, &format!("set role {role}")).await.error, None);
    }
    for text in [
        "select m.id from many m, few f where m.k = f.k",
        "select f.id from few f, other o where f.k = o.k",
        "select f.id from few f where f.k not in (select m.k from many m)",
    ] {
        for manner in MANNERS {
            let wanted = ask(&mut oracle, manner, text).await.sorted();
            assert_eq!(wanted.code(), Some("42501"), "{text}");
            assert_eq!(ask(&mut client, manner, text).await.sorted(), wanted, "{text} {manner:?}");
        }
    }
}

#[tokio::test]
async fn a_plus_of_a_users_counts_nothing() {
    let more = "create schema ops; create operator ops.+ (leftarg = int4, rightarg = int4, function = int4mi);";
    let herd = Herd::start(2, more, "key_list_max = 8\n").await;
    let (mut oracle, mut client) = herd.clients().await;
    for one in [&mut oracle, &mut client] {
        ask(one, Manner::Simple, "set search_path to ops, pg_catalog, public").await;
    }
    let (rows, kept) =
        told(&mut oracle, &mut client, "select count(*), sum(m.id) from many m, few f where m.k = f.k and f.id < 40")
            .await;
    assert!(rows < ALL && kept.len() == 1, "{rows} {kept:?}");
}

#[tokio::test]
async fn long_keys_are_no_list() {
    let herd = Herd::start(2, "", "").await;
    let (mut oracle, mut client) = herd.clients().await;
    for one in [&mut oracle, &mut client] {
        let long = "insert into few (id, t) values (50, repeat('x', 2000000))";
        assert_eq!(ask(one, Manner::Simple, long).await.error, None);
    }
    let (rows, kept) =
        told(&mut oracle, &mut client, "select count(*), sum(m.id) from many m, few f where m.t = f.t").await;
    assert_eq!((rows, kept.len()), (ALL, 0), "{kept:?}");
    // A name that PostgreSQL cuts off could be another one.
    let name = "p".repeat(64);
    let cut = format!("select count(*) from many {name}, few f where {name}.k = f.k");
    assert_eq!(ask(&mut client, Manner::Simple, &cut).await.code(), Some("0A000"));
}

#[tokio::test]
async fn who_may_read_some_columns_needs_no_others() {
    let role = harness::fresh_role("pg_read_all_settings").await;
    let more =
        format!("do $$ begin grant select (id, k) on few to {role}; exception when undefined_table then null; end $$;");
    let herd = Herd::start(2, &more, "").await;
    let (mut oracle, mut client) = herd.clients().await;
    for one in [&mut oracle, &mut client] {
        assert_eq!(ask(one, Manner::Simple, &format!("set role {role}")).await.error, None);
    }
    let text = "select x.id, y.id from few x, few y where x.id < 3 and y.id > 39 and x.k is distinct from y.k";
    let wanted = ask(&mut oracle, Manner::Simple, text).await.sorted();
    assert_eq!(wanted.error, None);
    assert_eq!(ask(&mut client, Manner::Simple, text).await.sorted(), wanted);
}
