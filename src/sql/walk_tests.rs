use super::*;
use crate::sql::Analyzer;
use crate::sql::facts::{Operand, TransactionControl};

fn of(text: &str) -> Statement {
    let facts = Analyzer::with_memo_bytes(1 << 20).facts(text.as_bytes(), true);
    facts.single().unwrap_or_else(|| panic!("one statement: {text}")).clone()
}

fn names(list: &[Name]) -> Vec<String> {
    list.iter()
        .map(|name| match &name.schema {
            Some(schema) => format!("{schema}.{}", name.name),
            None => name.name.to_string(),
        })
        .collect()
}

fn reads(text: &str) -> Vec<String> {
    let statement = of(text);
    assert_ne!(statement.class, Class::Opaque, "{text}");
    names(&statement.reads)
}

#[test]
fn every_relation_of_a_query_is_found_wherever_it_stands() {
    for (text, expected) in [
        ("select 1", vec![]),
        ("select from t", vec!["t"]),
        ("select * from only t", vec!["t"]),
        ("select * from t tablesample system (1)", vec!["t"]),
        ("select * from S.\"T\" as x, \"S\".u y", vec!["S.u", "s.T"]),
        ("select * from db.s.t", vec!["s.t"]),
        (
            "select * from a join b using (id) left join lateral (select * from c where c.id = a.id) c on true",
            vec!["a", "b", "c"],
        ),
        (
            "select (select max(x) from u) from t where exists (select 1 from v) and y in (select y from w)",
            vec!["t", "u", "v", "w"],
        ),
        ("select a from t union all select b from u intersect (select c from v)", vec!["t", "u", "v"]),
        ("with x as (select * from t) select * from x join y on true", vec!["t", "y"]),
        ("with t as (select * from t) select * from t", vec!["t"]),
        ("with recursive t as (select 1 union select * from t) select * from t", vec![]),
        ("with a as (select * from b), b as (select 1) select * from a, b", vec!["b"]),
        ("select * from (with x as (select 1) select * from x) s, x", vec!["x"]),
        ("with x as (select 1) select * from s.x", vec!["s.x"]),
        ("table t", vec!["t"]),
        ("table only s.t", vec!["s.t"]),
        ("values (1, (select a from t))", vec!["t"]),
        (
            "select count(*) filter (where x in (select x from u)) over (partition by (select 1 from v)) from t",
            vec!["t", "u", "v"],
        ),
        (
            "select case when exists (select 1 from a) then (select 1 from b) else (select 1 from c) end",
            vec!["a", "b", "c"],
        ),
        ("select array(select x from t)", vec!["t"]),
        (
            "select * from t order by (select 1 from u) limit (select 1 from v) offset (select 1 from w)",
            vec!["t", "u", "v", "w"],
        ),
        ("select * from generate_series(1, (select max(i) from t)) g", vec!["t"]),
        ("select a from t group by a having max(b) > (select 1 from u)", vec!["t", "u"]),
        ("select x = any (select y from u) from t", vec!["t", "u"]),
        ("select * from t for no key update", vec!["t"]),
    ] {
        assert_eq!(reads(text), expected, "{text}");
    }
}

#[test]
fn writes_are_found_in_every_kind_of_dml() {
    for (text, reads, writes) in [
        ("insert into t values (1)", vec![], vec!["t"]),
        ("insert into s.t (a) select b from u returning a", vec!["u"], vec!["s.t"]),
        ("insert into t default values", vec![], vec!["t"]),
        ("insert into t values (1) on conflict (a) do update set b = (select 1 from u)", vec!["u"], vec!["t"]),
        ("update t set a = u.a from u where t.id = u.id", vec!["u"], vec!["t"]),
        ("update only t set a = default", vec![], vec!["t"]),
        ("delete from t using u where t.id = u.id returning (select 1 from v)", vec!["u", "v"], vec!["t"]),
        ("with x as (insert into t values (1) returning *) select * from x, u", vec!["u"], vec!["t"]),
        ("with x as (delete from t returning *), y as (update u set a = 1) select 1", vec![], vec!["t", "u"]),
        (
            "merge into t using u on t.id = u.id when matched then update set a = u.a when not matched then insert values (1)",
            vec!["u"],
            vec!["t"],
        ),
        ("select * into new_t from t", vec!["t"], vec!["new_t"]),
        ("explain analyze insert into t values (1)", vec![], vec!["t"]),
        ("explain (analyze, buffers) delete from t", vec![], vec!["t"]),
        ("copy (insert into t values (1) returning a) to stdout", vec![], vec!["t"]),
    ] {
        let found = of(text);
        assert_eq!(found.class, Class::Write, "{text}");
        assert_eq!((names(&found.reads), names(&found.writes)), (strings(&reads), strings(&writes)), "{text}");
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn the_class_of_every_kind_of_statement() {
    use Class::*;
    use TransactionControl as T;
    for (text, class) in [
        ("/* c */ -- d\n select 1", Read),
        ("(select 1)", Read),
        ("show all", Show),
        ("explain select 1", Utility),
        ("explain (analyze off) delete from t", Utility),
        ("explain (select 1)", Utility),
        ("explain analyze select 1", Read),
        ("explain analyse verbose select 1", Read),
        ("EXPLAIN (ROUTE) select 1", ExplainRoute),
        ("set x to 1", Session),
        ("set constraints all deferred", Transaction(T::SetAllConstraints)),
        ("set constraints a, s.b immediate", Transaction(T::SetConstraints)),
        ("set constraints = 1", Session),
        ("begin", Transaction(T::Begin)),
        ("begin work isolation level read committed, read write, not deferrable", Transaction(T::Begin)),
        ("start transaction read only", Transaction(T::BeginReadOnly)),
        ("begin isolation level repeatable read read only", Transaction(T::BeginOther)),
        ("begin transaction isolation level serializable", Transaction(T::BeginOther)),
        ("start transaction read only, deferrable", Transaction(T::BeginOther)),
        ("commit work", Transaction(T::Commit)),
        ("end and no chain", Transaction(T::Commit)),
        ("commit and chain", Transaction(T::CommitAndChain)),
        ("abort", Transaction(T::Rollback)),
        ("rollback transaction and chain", Transaction(T::RollbackAndChain)),
        ("rollback to a", Transaction(T::RollbackTo)),
        ("rollback work to savepoint a", Transaction(T::RollbackTo)),
        ("savepoint a", Transaction(T::Savepoint)),
        ("release a", Transaction(T::Release)),
        ("prepare transaction 'x'", Transaction(T::Prepare)),
        ("commit prepared 'x'", Transaction(T::FinishPrepared)),
        ("rollback prepared 'x'", Transaction(T::FinishPrepared)),
        ("set transaction read write", Transaction(T::SetTransactionPlain)),
        ("set transaction isolation level read committed", Transaction(T::SetTransactionPlain)),
        ("set local transaction isolation level read committed, read only", Transaction(T::SetTransactionReadOnly)),
        ("set transaction snapshot 'x'", Transaction(T::SetTransaction)),
        ("set session characteristics as transaction read only", Transaction(T::SetTransaction)),
        ("set local transaction isolation level serializable", Transaction(T::SetTransaction)),
        ("copy t to stdout", CopyOut),
        ("copy s.t (a, b) to stdout with (format csv)", CopyOut),
        ("copy (select * from t) to stdout", CopyOut),
        ("copy binary t from stdin", CopyIn),
        ("copy t from stdin where f(a) > 1", CopyIn),
        ("copy t from '/tmp/x'", Write),
        ("copy t to '/tmp/x'", Utility),
        ("copy t to program 'cat'", Opaque),
        ("copy t from program 'cat'", Opaque),
        ("create table t (a int)", Ddl),
        ("create table t as select 1", Ddl),
        ("alter system set x = 1", Ddl),
        ("truncate only t, s.u * restart identity", Ddl),
        ("security label on table t is 'x'", Ddl),
        ("vacuum t", Utility),
        ("lock table t", Utility),
        ("notify a, 'b'", Utility),
        ("refresh materialized view concurrently m", Utility),
        ("do $$ begin end $$", Opaque),
        ("call f()", Opaque),
        ("execute p", Opaque),
        ("select sum(x) over (rows 1 preceding exclude ties) from t", Read),
        ("with recursive r as (select 1 as a) search depth first by a set b select a from r", Opaque),
        ("frobnicate", Opaque),
        ("select 'open", Opaque),
    ] {
        assert_eq!(of(text).class, class, "{text}");
    }
}

#[test]
fn what_a_statement_does_to_the_session() {
    use Effect::*;
    let set = |name: &str| Set(name.into());
    for (text, effects) in [
        ("set a to 1", vec![set("a")]),
        ("SET SESSION DateStyle = iso, mdy", vec![set("datestyle")]),
        ("set local a.b = 'x'", vec![SetLocal("a.b".into())]),
        ("set \"Session\".x = 1", vec![set("session.x")]),
        ("set session.x = 1", vec![set("session.x")]),
        ("set time zone 'UTC'", vec![set("timezone")]),
        ("set time zone local", vec![Reset("timezone".into())]),
        ("set local time zone interval '1' hour to minute", vec![SetLocal("timezone".into())]),
        ("set names 'latin1'", vec![set("client_encoding")]),
        ("set role r", vec![set("role")]),
        ("set role none", vec![set("role")]),
        ("set local role r", vec![SetLocal("role".into())]),
        ("set session authorization x", vec![set("session_authorization")]),
        ("set session authorization default", vec![Reset("session_authorization".into())]),
        ("set session characteristics as transaction read only", vec![set("default_transaction_read_only")]),
        (
            "set session characteristics as transaction isolation level read committed",
            vec![set("default_transaction_isolation")],
        ),
        ("set xml option document", vec![set("xmloption")]),
        ("set schema 'x'", vec![set("search_path")]),
        ("set a to default", vec![Reset("a".into())]),
        ("set local a to default", vec![ResetLocal("a".into())]),
        ("reset a", vec![Reset("a".into())]),
        ("reset time zone", vec![Reset("timezone".into())]),
        ("reset all", vec![ResetAll]),
        ("discard all", vec![DiscardAll]),
        ("discard temp", vec![DiscardTemp]),
        ("discard plans", vec![Discard]),
        ("select set_config('Search_Path', '', false)", vec![set("search_path")]),
        ("select pg_catalog.set_config('a', 'b', true)", vec![SetLocal("a".into())]),
        ("select set_config($1, $2, false)", vec![OpaqueSettings]),
        ("select set_config(name, 'x', false) from pg_settings", vec![OpaqueSettings]),
        ("update pg_settings set setting = 'x' where name = 'a'", vec![OpaqueSettings]),
        ("prepare p (int) as select $1", vec![Prepare("p".into())]),
        ("prepare p as select set_config('a', 'b', false)", vec![Prepare("p".into()), Opaque]),
        ("execute p (1)", vec![Execute("p".into())]),
        ("deallocate prepare p", vec![Deallocate("p".into())]),
        ("deallocate \"all\"", vec![Deallocate("all".into())]),
        ("deallocate all", vec![DeallocateAll]),
        ("listen X", vec![Listen("x".into())]),
        ("listen \"X\"", vec![Listen("X".into())]),
        ("unlisten x", vec![Unlisten("x".into())]),
        ("unlisten *", vec![UnlistenAll]),
        ("select pg_listening_channels()", vec![ListeningShown]),
        ("select * from pg_listening_channels()", vec![ListeningShown]),
        ("create temp table t (a int)", vec![TemporaryObject]),
        ("create or replace temporary view v as select 1", vec![TemporaryObject]),
        ("create local temporary sequence s", vec![TemporaryObject]),
        ("create table pg_temp.t (a int)", vec![TemporaryObject]),
        ("select 1 into temp t", vec![TemporaryObject]),
        ("declare c cursor for select 1", vec![Cursor]),
        ("declare c binary scroll cursor with hold for select * from t", vec![HoldCursor]),
        ("close c", vec![CloseCursor]),
        ("select pg_advisory_lock(1)", vec![AdvisoryLock]),
        ("select pg_try_advisory_lock_shared(1)", vec![AdvisoryLock]),
        ("select pg_advisory_xact_lock(1)", vec![]),
        ("select pg_advisory_unlock_all()", vec![AdvisoryUnlock]),
        ("select currval('s')", vec![SequenceState]),
        ("select * from lastval()", vec![SequenceState]),
        ("select setseed(0.5)", vec![ServerState]),
        ("select lo_open(1, 2)", vec![ServerState]),
        ("load 'x'", vec![Load]),
        ("do $$ begin perform set_config('a', 'b', false); end $$", vec![OpaqueSettings, Opaque]),
        ("explain select set_config('a', 'b', false)", vec![]),
        ("explain analyze select set_config('a', 'b', false)", vec![set("a")]),
    ] {
        assert_eq!(of(text).effects, effects, "{text}");
    }
}

#[test]
fn functions_casts_operators_and_columns_that_matter() {
    let found =
        of("select f(a), s.g(b), extract(year from c), d at time zone 'UTC', now() from h(1) where x -> 'k' @> y");
    assert_eq!(names(&found.functions), ["extract", "f", "h", "now", "timezone", "s.g"]);
    assert_eq!(found.operators, ["->".into(), "@>".into()] as [Box<str>; 2]);
    let found = of("select current_date, localtimestamp(3), user, t.user, \"user\", current_schema, current_schema()");
    assert_eq!(
        found.value_functions.iter().map(|name| &**name).collect::<Vec<_>>(),
        ["current_date", "current_schema", "localtimestamp", "user"]
    );
    let found = of("select a::public.mood, cast(b as numeric(3, 1)), date '2020-01-01', c::int[], d::\"char\"");
    assert_eq!(names(&found.casts), ["char", "date", "int4", "numeric", "public.mood"]);
    assert!(of("select ctid from t").system_columns);
    assert!(of("select 1 from t where t.tableoid = 1").system_columns);
    assert!(!of("select a from t").system_columns);
    assert!(of("select a from t for share").locks_rows);
    assert!(!of("select a from t").locks_rows);
    assert_eq!(of("select $2, $17").parameters, 17);
    assert!(of("explain analyze select 1").explain);
}

#[test]
fn what_is_cast_to_a_time_type_is_noted_unless_it_is_a_constant() {
    assert!(of("select '2020-01-01'::date, $1::timestamptz, (x at time zone 'UTC')::date").time_casts.is_empty());
    assert_eq!(
        of("select a::date, f(b)::timestamp, (c || 'x')::time, (d + interval '1 day')::date").time_casts,
        [Operand::Column("a".into()), Operand::Function(Name::bare("f")), Operand::Other, Operand::Column("d".into())]
    );
}

#[test]
fn shapes() {
    for (text, analytical) in [
        ("select a from t where id = 1", false),
        ("select a from t where 5 = id", false),
        ("select count(*) from t", true),
        ("select a from t group by a", true),
        ("select distinct a from t", true),
        ("select rank() over (order by a) from t", true),
        ("select 1 union select 2", true),
        ("select * from t join u using (id)", true),
        ("select * from t join u using (id) where t.id = $1", false),
        ("select * from t, u", true),
        ("select a from t where id in (1, 2)", false),
    ] {
        assert_eq!(of(text).shape.is_analytical(), analytical, "{text}");
    }
    assert!(of("select * from t tablesample bernoulli (1)").shape.sampled);
    assert!(of("select string_agg(a, ',' order by a) from t").shape.aggregate);
}

#[test]
fn literals_that_sqlparser_prints_wrongly_are_read_rightly() {
    // Each text reads t alone: what looks like SQL in a literal is not.
    for text in [
        r"select E'ab\'cd; select * from u' from t",
        r"select 'ab\' from t",
        r"select E'a\\b''''cd' from t",
        "select interval(2) '1.234 s' from t",
        r#"select U&"d\0061ta" from t"#,
        r"select U&'\0027; select * from u' from t",
        "select $q$ from u $q$ from t",
        "select a from t group by grouping sets (rollup (a, b), a)",
        "select '; drop table u' from t -- '; select * from u",
        "select 'x' /* from u /* nested */ from u */ from t",
        "select b'01', x'1f', n'x', 1_000, 0x1f from t",
    ] {
        let found = of(text);
        if found.class != Class::Opaque {
            assert_eq!(names(&found.reads), ["t"], "{text}");
        }
    }
}

#[test]
fn a_backslash_ends_or_continues_a_string_as_the_session_says() {
    let text = br"select 'a\' from t; delete from u --'";
    let analyzer = Analyzer::with_memo_bytes(1 << 20);
    assert_eq!(analyzer.facts(text, true).class(), Class::Write);
    assert_eq!(analyzer.facts(text, false).statements.len(), 1);
}

#[test]
fn what_sqlparser_accepts_and_postgresql_reads_otherwise_is_opaque() {
    for text in [
        "select * from t lateral",
        "select from from t",
        "select * from where",
        "select top 5 * from t",
        "select * from t limit 1, 2",
        "select a from t qualify true",
        "insert overwrite t values (1)",
        "select * from t as of timestamp now()",
        "select a div b from t",
        "select * exclude (a) from t",
        "select try_cast(a as int) from t",
    ] {
        let found = of(text);
        assert!(found.class == Class::Opaque || names(&found.reads) == ["t"], "{text}: {found:?}");
    }
}

#[test]
fn opaque_statements_list_what_they_could_reach() {
    let found = of("do $$ begin execute 'delete from ' || quote_ident('Orders'); end $$");
    for name in ["orders", "Orders", "delete"] {
        assert!(found.identifiers.iter().any(|found| &**found == name), "{name}");
    }
    assert!(of("call p(1)").identifiers.iter().any(|name| &**name == "p"));
}
