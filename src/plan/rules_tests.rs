use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::catalog::model::{Catalog, Oid, Relation, RelationKind};
use crate::catalog::partitions::Partitions;
use crate::config::model::{self as config, Reads, SplitScans};
use crate::plan::WriteSet;
use crate::sql::Analyzer;
use world::{World, address, relation, sharded};

#[path = "rules_world.rs"]
mod world;

#[test]
fn reads_are_cached_when_every_input_is_known() {
    World::new().all(&[
        ("select a from t where id = 1", "cached/cacheable"),
        ("select count(*), upper(a) from t join u using (id) group by 2", "cached/cacheable"),
        ("select * from public.v, part, m", "cached/cacheable"),
        ("select to_char(at, 'YYYY'), coalesce(a, 'x'), current_user from t", "cached/cacheable"),
        ("select date_trunc('day', at)::date from t where at > '2020-01-01'", "cached/cacheable"),
        ("select pure(1), a::mood, a -> 'x' from t", "cached/cacheable"),
        ("with x as (select * from t) select * from x order by 1 limit 3", "cached/cacheable"),
        ("/* pgherd: cache=on */ select 1", "cached/cache-hint"),
        ("values (1), (2)", "cached/cacheable"),
        ("select * from secured", "cached/cacheable"),
    ]);
}

#[test]
fn each_reason_not_to_cache_has_its_code() {
    World::new().all(&[
        ("/* pgherd: cache=off */ select a from t", "primary/hint"),
        ("select a from t for update", "primary/row-locks"),
        ("select a from t tablesample system (1)", "primary/sample"),
        ("select ctid from t", "primary/system-columns"),
        ("explain analyze select a from t", "primary/explain"),
        ("select nextval('seq')", "primary/volatile-function"),
        ("select now()", "primary/stable-function"),
        ("select current_date", "primary/volatile-function"),
        ("select localtimestamp from t", "primary/volatile-function"),
        ("select session_user", "primary/volatile-function"),
        ("select random() from t", "primary/volatile-function"),
        ("select writer()", "primary/volatile-function"),
        ("select reader()", "primary/stable-function"),
        ("select definer()", "primary/security-definer"),
        ("select unknown_function()", "primary/volatile-function"),
        ("select to_tsvector(a) from t", "primary/stable-function"),
        ("select current_setting('x')", "primary/stable-function"),
        ("select t.row_volatile from t", "primary/volatile-function"),
        ("select (t).row_volatile from t", "primary/volatile-function"),
        ("select a @@ 'x' from t", "primary/operator"),
        ("select 't'::regclass", "primary/cast"),
        ("select a::xml from t", "primary/cast"),
        ("select '12:00'::timetz", "primary/cast"),
        ("select a::short from t", "primary/user-type"),
        ("select a::nothing from t", "primary/cast"),
        ("select * from nowhere", "primary/unknown-relation"),
        ("select * from pg_class", "primary/system-catalog"),
        ("select * from far", "primary/foreign-table"),
        ("select * from unlogged", "primary/unlogged-table"),
        ("select * from secured_by_zone", "primary/row-security"),
        ("select * from secured_by_all", "primary/row-security"),
        ("select * from secured_by_code", "primary/row-security"),
        ("select * from secured_by_owner", "primary/row-security"),
        ("select * from seq", "primary/not-a-table"),
        ("select * from dated", "primary/stable-function"),
        ("select * from writing_view", "primary/volatile-function"),
        ("select * from secret", "primary/table-rule"),
        ("select pg_advisory_lock(1)", "primary/session-effect"),
        ("select set_config('a', 'b', false)", "primary/session-effect"),
    ]);
}

#[test]
fn a_text_that_means_the_moment_is_never_cached() {
    let mut world = World::new();
    world.all(&[
        ("select * from t where at > 'today'", "primary/time-text"),
        ("select date 'yesterday'", "primary/time-text"),
        ("select E'n\\x6fw'::timestamp", "primary/time-text"),
        ("select a::date from t", "primary/time-text"),
        ("select date(a) from t", "primary/time-text"),
        ("select (a || '')::timestamp from t", "primary/time-text"),
        ("select upper(a)::date from t", "primary/time-text"),
        ("select x::date from (select a as x from t) s", "primary/time-text"),
        ("select * from zoned", "primary/time-text"),
        ("select at::date, (at + interval '1 day')::date from t", "cached/cacheable"),
        ("select * from t where a = 'known'", "cached/cacheable"),
    ]);
    world.values = vec![Some(b"NOW".to_vec())];
    world.all(&[("select * from t where at > $1", "primary/time-text")]);
    world.values = vec![Some(b"2020-01-01".to_vec()), None];
    world.all(&[("select * from t where at > $1", "cached/cacheable")]);
}

#[test]
fn the_session_decides_with() {
    let mut world = World::new();
    for (state, route) in [
        (Transaction::Outside, "cached/cacheable"),
        (Transaction::VirginReadCommitted, "cached/cacheable"),
        (Transaction::Written, "primary/after-write"),
        (Transaction::Isolated, "primary/isolation"),
        (Transaction::Failed, "primary/failed-transaction"),
    ] {
        world.in_transaction = state;
        assert_eq!(world.route("select * from t"), route, "{state:?}");
    }
    world.in_transaction = Transaction::Outside;
    world.temporary = true;
    world.all(&[("select * from t", "primary/temporary-objects"), ("select * from public.t", "cached/cacheable")]);
    world.cache.enabled = false;
    world.all(&[("select * from t", "primary/read")]);
}

#[test]
fn rules_by_table_and_by_fingerprint() {
    use crate::config::model::CacheRule;
    let mut world = World::new();
    let kept = |world: &World, text: &str| match world.plan(text) {
        crate::plan::Plan::Cached(read) => Ok((read.ttl.as_secs(), read.is_pinned)),
        other => Err(other.code()),
    };
    assert_eq!(kept(&world, "select a from t"), Ok((300, false)));
    assert_eq!(kept(&world, "select a from slow"), Ok((9, false)));
    assert_eq!(kept(&world, "select t.a from t, u, slow"), Ok((9, true)));
    assert_eq!(kept(&world, "select a from secret"), Err("table-rule"));
    let of = |text: &str| crate::sql::fingerprint::fingerprint(text.as_bytes(), true).0;
    world.cache.statements = [
        (of("select a from secret"), CacheRule::Ttl(std::time::Duration::from_secs(2))),
        (of("select a from t where id = 1"), CacheRule::Never),
        (of("select id from t"), CacheRule::Pin),
    ]
    .into();
    assert_eq!(kept(&world, "select a from secret"), Ok((2, false)));
    assert_eq!(kept(&world, "SELECT a FROM t WHERE id = 77"), Err("statement-rule"));
    assert_eq!(kept(&world, "select id from t"), Ok((300, true)));
    world.in_transaction = Transaction::VirginReadCommitted;
    assert_eq!(kept(&world, "select id from t"), Ok((300, true)));
    world.cache.in_transactions = false;
    assert_eq!(kept(&world, "select id from t"), Err("in-transaction"));
}

#[test]
fn olap_only_caches_analytical_shapes_and_what_is_asked_for() {
    let mut world = World::new();
    world.cache.olap_only = true;
    world.all(&[
        ("select a from t where id = 1", "primary/point-read"),
        ("select count(*) from t", "cached/cacheable"),
        ("/* pgherd: cache=on */ select a from t where id = 1", "cached/cache-hint"),
    ]);
}

#[test]
fn a_cached_read_depends_on_everything_below_it_for_the_shortest_time() {
    let world = World::new();
    let cached = |text: &str| match world.plan(text) {
        Plan::Cached(cached) => cached,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(cached("select * from v, part").relations, [1, 3, 4, 5]);
    assert_eq!(cached("select 1").relations, [0; 0]);
    assert_eq!(cached("select * from t").catalog_version, 7);
    assert_eq!(cached("select * from t").ttl, Duration::from_secs(300));
    assert_eq!(cached("select * from t, slow").ttl, Duration::from_secs(9));
    assert_eq!(cached("select * from slow /* pgherd: ttl=2m */").ttl, Duration::from_secs(120));
}

#[test]
fn a_name_that_two_schemas_have_depends_on_both() {
    let mut world = World::new();
    let mut other = relation(99, "t", RelationKind::Table);
    other.schema = "app".into();
    world.catalog.relation_by_name.insert(("app".into(), "t".into()), 99);
    world.catalog.relations.insert(99, Arc::new(other));
    world.path.push("app".into());
    match world.plan("select * from t") {
        Plan::Cached(cached) => assert_eq!(cached.relations, [1, 99]),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.writes("update t set a = 1").relations, [1, 99]);
}

/// Every trap of routing: what can write, lock or change the session never leaves the primary.
#[test]
fn nothing_that_can_write_goes_to_a_replica() {
    let mut world = World::new();
    world.cache.enabled = false;
    world.database.replicas = vec![address()];
    world.database.reads = Reads::Replica;
    world.all(&[
        ("select a from t", "replica/read"),
        ("select now(), count(*) from v", "replica/read"),
        ("select reader() from t", "replica/read"),
        ("select writer()", "primary/volatile-function"),
        ("select * from writing_view", "primary/primary-relation"),
        ("with x as (insert into t values (1) returning *) select * from x", "primary/write"),
        ("select a from t for update", "primary/not-plain"),
        ("select a from t for no key update", "primary/not-plain"),
        ("explain analyze insert into t values (1)", "primary/write"),
        ("copy (insert into t values (1) returning a) to stdout", "primary/write"),
        ("call p()", "primary/opaque"),
        ("select lo_create(1)", "primary/not-plain"),
        ("select lo_import('/etc/passwd')", "primary/not-plain"),
        ("select nextval('seq')", "primary/volatile-function"),
        ("lock table t", "primary/utility"),
        ("set transaction read write", "primary/transaction"),
        ("prepare transaction 'x'", "primary/transaction"),
        ("declare c cursor for select * from t", "primary/session"),
        ("select 1; insert into t values (1)", "primary/multi-statement"),
        ("/* c */ -- d\n insert into t values (1)", "primary/write"),
        ("begin", "primary/transaction"),
        ("select 1 into x", "primary/write"),
        ("select pg_is_in_recovery()", "primary/volatile-function"),
        ("select * from unlogged", "primary/primary-relation"),
        ("select * from pg_class", "primary/primary-relation"),
        ("select * from far", "primary/primary-relation"),
        ("select * from nowhere", "primary/unknown-relation"),
        ("table t", "replica/read"),
        ("values (1)", "replica/read"),
        ("/* pgherd: route=primary */ select a from t", "primary/hint"),
    ]);
    world.in_transaction = Transaction::VirginReadCommitted;
    world.all(&[("select a from t", "primary/in-transaction")]);
    world.in_transaction = Transaction::Outside;
    world.pinned = true;
    world.all(&[("select a from t", "primary/in-transaction")]);
    world.pinned = false;
    world.database.reads = Reads::Primary;
    world.all(&[("select a from t", "primary/read"), ("/* pgherd: route=replica */ select a from t", "replica/read")]);
    world.database.replicas.clear();
    world.all(&[("/* pgherd: route=replica */ select a from t", "primary/read")]);
}

#[test]
fn everything_else_has_its_place() {
    World::new().all(&[
        ("", "local/empty"),
        (" ; -- x", "local/empty"),
        ("explain (route) select 1", "local/explain-route"),
        ("explain (route) select 1; select 2", "refuse/explain-route"),
        ("show all", "primary/show"),
        ("set a to 1", "primary/session"),
        ("commit", "primary/transaction"),
        ("copy t to stdout", "primary/copy"),
        ("copy t from stdin", "primary/copy"),
        ("create table x ()", "primary/ddl"),
        ("vacuum", "primary/utility"),
        ("explain select 1", "primary/utility"),
        ("do $$ begin end $$", "primary/opaque"),
        ("select 1; select 2", "primary/multi-statement"),
    ]);
    match World::new().plan("explain (route) /* x */ select a from t") {
        Plan::Local(Local::ExplainRoute(inner)) => assert_eq!(&*inner, "/* x */ select a from t"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_write_set_holds_all_that_a_statement_may_change() {
    let world = World::new();
    let relations = |oids: &[Oid]| WriteSet { relations: oids.to_vec(), ..WriteSet::default() };
    let database = WriteSet { database: true, ..WriteSet::default() };
    let everything = WriteSet { database: true, catalog: true, relations: Vec::new() };
    for (text, expected) in [
        ("select a from t", relations(&[])),
        ("select random(), nextval('seq'), set_config('a', 'b', true)", relations(&[])),
        ("insert into t values (1)", relations(&[1])),
        ("update part set a = 1", relations(&[3, 4])),
        ("delete from part_1", relations(&[3, 4])),
        ("delete from cascading", relations(&[2, 14])),
        ("insert into v values (1)", relations(&[1, 5])),
        ("with x as (update u set a = 1 returning *) insert into t select * from x", relations(&[1, 2])),
        ("copy t from stdin", relations(&[1])),
        ("refresh materialized view m", relations(&[15])),
        ("insert into t values (1); update u set a = 2", relations(&[1, 2])),
        ("update pg_settings set setting = 'x'", relations(&[])),
        ("lock table t; vacuum t; analyze; notify x; checkpoint", relations(&[])),
        ("begin; set a to 1; show a; commit", relations(&[])),
        ("explain delete from t", relations(&[])),
        ("explain analyze delete from t", relations(&[1])),
        ("insert into triggered values (1)", database.clone()),
        ("select writer()", database.clone()),
        ("select query_to_xml('delete from t', true, true, '')", database.clone()),
        ("select lo_create(1)", database.clone()),
        ("select unknown_function()", database.clone()),
        ("select t.row_volatile from t", database.clone()),
        ("select * from writing_view", database.clone()),
        ("declare c cursor for select writer()", database.clone()),
        ("copy (select writer()) to stdout", database.clone()),
        ("copy t from stdin where writer() is null", database),
        ("insert into nowhere values (1)", everything.clone()),
        ("select 1 into x", everything.clone()),
        ("delete from pg_class", everything.clone()),
        ("create table x ()", everything.clone()),
        ("truncate t", everything.clone()),
        ("grant select on t to public", everything.clone()),
        ("call p()", everything.clone()),
        ("do $$ begin end $$", everything.clone()),
        ("execute p", everything.clone()),
        ("frobnicate", everything),
    ] {
        assert_eq!(world.writes(text), expected, "{text}");
    }
    let nothing_known = write_set(
        &Analyzer::with_memo_bytes(1 << 20).facts(b"update t set a = 1", true),
        &Catalog::default(),
        &world.path,
    );
    assert!(nothing_known.database);
}

#[test]
fn volatile_code_of_users_may_change_the_session() {
    let world = World::new();
    let may = |text: &str| {
        let facts = Analyzer::with_memo_bytes(1 << 20).facts(text.as_bytes(), true);
        may_change_session(&facts, &world.catalog, &world.path)
    };
    assert!(may("select writer()") && !may("select random(), reader(), pure(1)"));
}

#[test]
fn what_might_reach_the_shards_unseen_is_refused() {
    let world = sharded();
    world.all(&[
        ("do $$ begin delete from orders; end $$", "refuse/names-shards"),
        ("do $$ begin execute 'delete from \"orders\"'; end $$", "refuse/names-shards"),
        ("do $$ begin perform 1; end $$", "primary/opaque"),
        ("do $$ begin perform writer(); end $$", "refuse/user-function"),
        ("call writer()", "refuse/user-function"),
        ("select writer() from u", "refuse/user-function"),
        ("insert into u select writer()", "refuse/user-function"),
        ("select reader() from u", "primary/stable-function"),
        ("select slug(a) from u", "primary/volatile-function"),
        ("alter table orders add x int", "refuse/multi-shard-write"),
        ("truncate u, orders", "refuse/mixed"),
        ("create table u2 ()", "primary/ddl"),
        ("lock table orders", "refuse/names-shards"),
        ("prepare p as select * from orders", "refuse/names-shards"),
        ("declare c cursor for select * from orders", "refuse/unknown-table"),
        ("explain select * from orders", "refuse/unknown-table"),
        ("explain analyze select * from orders", "refuse/unknown-table"),
        ("select * from orders; select 1", "refuse/multi-statement"),
        ("select * from orders, u", "refuse/mixed"),
        ("insert into u select * from orders", "refuse/unknown-table"),
        ("insert into u select o.* from orders o, u", "refuse/mixed"),
        ("select * from t", "refuse/ambiguous-name"),
        ("select * from u", "cached/cacheable"),
        ("with orders as (select 1) select * from orders", "cached/cacheable"),
        ("select f(variadic a) from orders", "refuse/names-shards"),
    ]);
    let mut temporary = sharded();
    temporary.temporary = true;
    temporary.all(&[("select * from orders", "refuse/ambiguous-name")]);
}

#[test]
fn ddl_is_about_the_table_that_its_name_means() {
    let mut world = sharded();
    world.catalog.schemas.push("other".into());
    let named = "refuse/names-shards";
    world.all(&[
        ("alter table other.orders add x int", "primary/ddl"),
        ("create table other.orders (a int)", "primary/ddl"),
        ("create index on other.orders (a)", "primary/ddl"),
        ("drop table other.orders, other.countries", "primary/ddl"),
        ("comment on column other.orders.a is 'orders'", "primary/ddl"),
        ("grant select on other.orders to bob", "primary/ddl"),
        ("lock table other.orders", "primary/utility"),
        ("alter table other.a rename to orders", "primary/ddl"),
        ("notify orders", "primary/utility"),
        ("comment on table orders is 'x'", named),
        ("comment on table public.orders is 'x'", named),
        ("comment on table app.public.orders is 'x'", named),
        ("comment on table other.orders is 'x'; comment on table orders is 'x'", named),
        ("drop table other.orders, public.orders", "refuse/mixed"),
        ("alter table u rename to orders", named),
        ("alter table other.orders set schema public", named),
        ("create schema public create table orders (a int)", named),
        ("comment on table t is 'x'", "refuse/ambiguous-name"),
        ("create materialized view m as select * from orders", "refuse/materialized-view"),
        ("create table kid (a int references orders)", "refuse/foreign-key"),
        ("alter table u add foreign key (a) references public.countries (code)", "refuse/foreign-key"),
        ("create table kid (a int references other.orders)", "primary/ddl"),
    ]);
    world.path = vec!["pg_catalog".into(), "other".into()];
    world.all(&[
        ("drop table orders", "primary/ddl"),
        ("comment on table orders is 'x'", "primary/ddl"),
        ("create table orders (a int references countries)", "primary/ddl"),
        ("select 1; comment on table orders is 'x'", named),
        ("drop table public.orders", "refuse/multi-shard-write"),
    ]);
    // A table is made in the first schema of the path, and looked for in all.
    world.path.push("public".into());
    world.all(&[("create table orders (a int)", named), ("drop table orders", "refuse/ambiguous-name")]);
    world.path.swap(1, 2);
    world.all(&[("create table orders (customer_id int)", "refuse/multi-shard-write")]);
    let other = config::Table { schema: "other".into(), ..world.database.tables[0].clone() };
    world.database.tables.push(other);
    world.all(&[("alter table orders add x int", "refuse/ambiguous-name")]);
}

#[test]
fn maintenance_goes_where_its_tables_are() {
    let everywhere = "maintain/maintenance";
    let world = sharded();
    world.all(&[
        ("vacuum", everywhere),
        ("analyze", everywhere),
        ("vacuum (analyze) countries, public.orders (customer_id)", everywhere),
        ("reindex table orders", everywhere),
        ("reindex schema public", everywhere),
        ("reindex database app", everywhere),
        ("cluster orders using i", everywhere),
        ("analyze u", "primary/utility"),
        ("vacuum other.orders", "primary/utility"),
        ("vacuum u, orders", "refuse/mixed"),
        ("analyze t", "refuse/ambiguous-name"),
        ("analyze; select 1", "refuse/multi-statement"),
        ("vacuum orders; vacuum u", "refuse/multi-statement"),
        ("vacuum u; analyze u", "primary/multi-statement"),
        ("vacuum orders u", "refuse/names-shards"),
        ("checkpoint", "primary/utility"),
    ]);
    let mut apart = sharded();
    apart.database.shards[1].dbname = Some("app_1".into());
    apart.all(&[("reindex database app", "refuse/server-function"), ("reindex database", everywhere)]);
    // Without shards there is one server.
    World::new().all(&[("vacuum", "primary/utility"), ("analyze orders", "primary/utility")]);
}

#[test]
fn ddl_that_reaches_the_shards_without_naming_a_table_is_refused() {
    let refused = "refuse/ddl-beyond-names";
    let mut world = sharded();
    world.all(&[
        ("alter type mood rename value 'a' to 'b'", refused),
        ("ALTER TYPE public.\"mood\" ADD VALUE 'x' BEFORE 'a'", refused),
        ("alter type elsewhere.mood add value 'x'", "primary/ddl"),
        ("alter type unknown add value 'x'", "primary/ddl"),
        ("alter domain short add constraint c check (value <> '')", refused),
        ("drop domain if exists unknown, short cascade", refused),
        ("create domain longer as text", "primary/ddl"),
        ("grant select on all tables in schema other, public to bob", refused),
        ("revoke all on all tables in schema other from bob", "primary/ddl"),
        ("grant usage on schema public to bob", refused),
        ("grant usage on type mood to bob", refused),
        ("revoke execute on function pure(int, numeric(1, 2)) from bob", refused),
        ("grant select on u to bob", "primary/ddl"),
        ("drop owned by bob", refused),
        ("reassign owned by bob to ann", refused),
        ("alter default privileges in schema public grant select on tables to bob", refused),
        ("alter database app set timezone = 'UTC'", refused),
        ("drop schema other, public cascade", refused),
        ("alter schema public rename to p", refused),
        ("create schema other", "primary/ddl"),
        ("drop extension if exists citext cascade", refused),
        ("create or replace function pure(i int) returns int language sql as 'select 1'", refused),
        ("create function purer(i int) returns int language sql as 'select 1'", "primary/ddl"),
        ("drop function purer(), public.pure(int)", refused),
        ("select 1; drop owned by bob", refused),
        ("grant bob to ann", "primary/ddl"),
        ("alter role bob set timezone = 'UTC'", "primary/ddl"),
        ("alter role bob in database app set timezone = 'UTC'", refused),
    ]);
    // Roles belong to a server: here the shards have others.
    world.database.shards[1].port += 1;
    world.all(&[
        ("grant bob to ann", refused),
        ("revoke bob from ann", refused),
        ("alter user bob nosuperuser", refused),
        ("create role carl", "primary/ddl"),
    ]);
    // Without shards there is nothing beyond.
    World::new().all(&[("drop owned by bob", "primary/ddl"), ("alter type mood add value 'x'", "primary/ddl")]);
}

#[test]
fn scans_of_large_partitions_are_split_where_they_may_be() {
    let mut world = World::new();
    world.cache.enabled = false;
    world.database.split_scans = Some(SplitScans { legs: 4, from_bytes: 100 * 8192 });
    let many = [30, 31, 32, 33];
    let names = ["big", "big_1", "big_2", "big_3"];
    for (oid, name) in many.into_iter().zip(names) {
        let kind = if oid == 30 { RelationKind::PartitionedTable } else { RelationKind::Table };
        let reads = if oid == 30 { many.to_vec() } else { vec![oid] };
        let relation = Relation { reads, ..relation(oid, name, kind) };
        world.catalog.relation_by_name.insert(("public".into(), name.into()), oid);
        world.catalog.relations.insert(oid, relation.into());
    }
    let sizes = |pages: u64| Partitions {
        pages: many[1..].iter().map(|&oid| (oid, pages)).collect(),
        keys: [(30, "RANGE (at)".into())].into(),
    };
    world.all(&[("select a from big", "primary/partitions-unknown")]);
    world.partitions = Some(sizes(20));
    world.all(&[("select a from big", "primary/partitions-small")]);
    let mut uneven = sizes(10);
    uneven.pages.insert(32, 900);
    world.partitions = Some(uneven);
    world.all(&[("select a from big", "primary/partitions-uneven")]);
    world.partitions = Some(sizes(40));
    world.all(&[
        ("select a from big", "fan-out/partitions"),
        ("select id from big where id > 7 order by id limit 3", "fan-out/partitions"),
        ("select big.a from t, public.big where t.id = big.id", "fan-out/partitions"),
        ("select a from big limit 3", "primary/partitions-limit"),
        ("select a from big where a = 7", "primary/partitions-lookup"),
        ("select a from big where at > '2020-01-01'", "primary/partitions-key"),
        ("select a from big where id > any (select id from big)", "primary/partitions-shape"),
        ("select a from big for update", "primary/partitions-not-plain"),
        ("select a from big, part", "primary/partitions-several"),
        ("select a from only big", "primary/partitions-shape"),
        ("select big from big", "primary/partitions-row"),
        ("/* pgherd: route=primary */ select a from big", "primary/hint"),
        ("select a from t", "primary/read"),
        ("insert into big select a from big", "primary/write"),
    ]);
    world.in_transaction = Transaction::VirginReadCommitted;
    world.all(&[("select a from big", "primary/partitions-transaction")]);
    world.in_transaction = Transaction::Outside;
    world.pinned = true;
    world.all(&[("select a from big", "primary/partitions-transaction")]);
    world.pinned = false;
    world.temporary = true;
    world.all(&[("select a from big", "primary/partitions-temporary")]);
    world.temporary = false;
    let relations = &mut world.catalog.relations;
    let secured = Relation { row_security: true, ..Relation::clone(&relations[&30]) };
    relations.insert(30, secured.into());
    world.all(&[("select a from big", "primary/partitions-row-security")]);
    world.database.split_scans = None;
    world.all(&[("select a from big", "primary/read")]);
}

#[test]
fn a_plan_is_shown_without_a_literal() {
    let world = World::new();
    let text = "select count(*), 'secret word' from t where a = 'secret word' group by 2";
    let facts = Analyzer::with_memo_bytes(1 << 20).facts(text.as_bytes(), true);
    let rows = crate::plan::explain::render(&world.plan(text), &facts, true);
    let value = |property: &str| rows.iter().find(|(name, _)| name == property).map(|(_, value)| value.as_str());
    assert_eq!(value("plan"), Some("cached"));
    assert_eq!(value("reason"), Some("cacheable"));
    assert_eq!(value("reads"), Some("t"));
    assert_eq!(value("shape"), Some("aggregate, group by, key equality"));
    assert!(rows.iter().all(|(_, value)| !value.contains("secret")));
}
