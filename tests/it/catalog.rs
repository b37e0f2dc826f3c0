//! The catalog as pgherd reads it, against what a real server holds.

use std::time::Instant;

use pgherd::catalog::load::load;
use pgherd::catalog::model::{Catalog, Persistence, Relation, RelationKind, Volatility};
use pgherd::catalog::refresh::CatalogHandle;

use crate::harness::{self, fresh_database, fresh_role};

async fn catalog_of(statements: &str) -> Catalog {
    let database = harness::fresh_database().await;
    database.execute(statements).await;
    load(&database.client().await).await.expect("a catalog")
}

fn table<'a>(catalog: &'a Catalog, name: &str) -> &'a Relation {
    catalog.relation("public", name).unwrap_or_else(|| panic!("{name}"))
}

/// The names behind the oids, in alphabetical order.
fn names(catalog: &Catalog, oids: &[u32]) -> Vec<String> {
    let mut names: Vec<String> = oids.iter().map(|oid| catalog.relations[oid].name.to_string()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn relations_come_with_their_columns_keys_and_kinds() {
    let catalog = catalog_of(
        "create schema \"S\";
         create table t (id int generated always as identity primary key, a text collate \"C\" not null default 'x', b numeric(5, 2));
         create unlogged table \"S\".u (x int, y int, primary key (y, x));
         create sequence s; create index i on t (a);
         create type mood as enum ('sad', 'happy');
         create domain short as text check (length(value) < 9)",
    )
    .await;
    let t = table(&catalog, "t");
    assert_eq!((t.kind, t.persistence, t.row_security), (RelationKind::Table, Persistence::Permanent, false));
    assert_eq!(t.columns.iter().map(|column| &*column.name).collect::<Vec<_>>(), ["id", "a", "b"]);
    assert!(t.columns[0].has_default && t.columns[1].has_default && !t.columns[2].has_default);
    assert!(t.columns[1].not_null && !t.columns[2].not_null);
    assert_eq!(t.columns[2].typmod, (5 << 16) + 2 + 4);
    assert!(catalog.collations[&t.columns[1].collation].is_byte_order());
    assert_eq!(t.primary_key, ["id".into()] as [Box<str>; 1]);
    let u = catalog.relation("S", "u").expect("S.u");
    assert_eq!(u.persistence, Persistence::Unlogged);
    assert_eq!(u.primary_key, ["y".into(), "x".into()] as [Box<str>; 2]);
    assert_eq!(table(&catalog, "s").kind, RelationKind::Sequence);
    assert_eq!(table(&catalog, "i").kind, RelationKind::Other);
    assert!(catalog.relation("pg_catalog", "pg_class").is_some());
    assert_eq!(
        catalog.resolve(&["nowhere".into(), "S".into(), "public".into()], "t").map(|t| &*t.schema),
        Some("public")
    );
    assert!(catalog.types.values().any(|t| &*t.name == "mood" && t.kind == 'e'));
    assert!(catalog.types.values().any(|t| &*t.name == "short" && t.kind == 'd' && t.base == 25));
    assert_eq!(&*catalog.default_isolation, "read committed");
    assert!(catalog.server_version >= 130_000);
    assert!(catalog.default_collation.is_some());
}

#[tokio::test]
async fn a_read_reaches_partitions_children_and_views_bases() {
    let catalog = catalog_of(
        "create table part (k int, v int) partition by list (k);
         create table part_1 partition of part for values in (1);
         create table part_2 partition of part default partition by list (v);
         create table part_2_1 partition of part_2 default;
         create table parent (a int); create table child () inherits (parent);
         create view inner_view as select v from part;
         create view outer_view as select i.v, p.a from inner_view i, parent p;
         create materialized view m as select * from outer_view;
         create view over_m as select * from m",
    )
    .await;
    let reads = |name: &str| names(&catalog, &table(&catalog, name).reads);
    assert_eq!(reads("part"), ["part", "part_1", "part_2", "part_2_1"]);
    assert_eq!(reads("parent"), ["child", "parent"]);
    assert_eq!(
        reads("outer_view"),
        ["child", "inner_view", "outer_view", "parent", "part", "part_1", "part_2", "part_2_1"]
    );
    assert_eq!(reads("m"), ["m"]);
    assert_eq!(reads("over_m"), ["m", "over_m"]);
}

#[tokio::test]
async fn a_write_reaches_cascades_parents_and_views_bases() {
    let catalog = catalog_of(
        "create table a (id int primary key);
         create table b (id int primary key, a int references a on delete cascade);
         create table c (b int references b on update set null);
         create table d (a int references a);
         create table part (k int) partition by list (k);
         create table part_1 partition of part for values in (1);
         create table part_2 partition of part for values in (2);
         create view v as select * from a",
    )
    .await;
    let writes = |name: &str| names(&catalog, &table(&catalog, name).writes);
    assert_eq!(writes("a"), ["a", "b", "c"]);
    assert_eq!(writes("d"), ["d"]);
    assert_eq!(writes("v"), ["a", "b", "c", "v"]);
    assert_eq!(writes("part"), ["part", "part_1", "part_2"]);
    assert_eq!(writes("part_1"), ["part", "part_1"]);
    assert!(["a", "b", "c", "d", "v", "part"].iter().all(|name| !table(&catalog, name).writes_opaque));
}

#[tokio::test]
async fn writes_that_run_unseen_code_are_opaque() {
    let catalog = catalog_of(
        "create function f() returns trigger language plpgsql as 'begin return new; end';
         create function g() returns int volatile language sql as 'select 1';
         create table triggered (a int); create trigger t after insert on triggered execute function f();
         create table disabled (a int); create trigger t after insert on disabled execute function f();
         alter table disabled disable trigger t;
         create table ruled (a int); create rule r as on insert to ruled do also select 1;
         create table defaulted (a int default g());
         create table checked (a int check (a > g()));
         create table cascading (id int primary key);
         create table cascaded (id int references cascading on delete cascade);
         create trigger t after delete on cascaded execute function f();
         create table part (k int) partition by list (k);
         create table part_1 partition of part for values in (1);
         create trigger t after insert on part for each row execute function f();
         create table serial (a serial);
         create table plain (a int default 1)",
    )
    .await;
    for name in ["triggered", "ruled", "defaulted", "checked", "cascading", "cascaded", "part", "part_1"] {
        assert!(table(&catalog, name).writes_opaque, "{name}");
    }
    for name in ["disabled", "serial", "plain"] {
        assert!(!table(&catalog, name).writes_opaque, "{name}");
    }
}

#[tokio::test]
async fn row_security_and_functions_show_through_views() {
    let catalog = catalog_of(
        "create table secured (a int); alter table secured enable row level security;
         create view over_secured as select * from secured;
         create view plain as select 1 as one;
         create view invoker as select 1 as one;
         create view random_one as select random() as r;
         create view over_random as select r from random_one;
         create view dated as select current_date as d;
         create view located as select ctid from secured;
         create view texted as select 'x'::text as t;
         create view parsed as select t::date as d from texted;
         create view sampled as select * from secured tablesample system (1);
         create materialized view stored as select now() as n;
         create view over_stored as select n from stored",
    )
    .await;
    assert!(table(&catalog, "secured").row_security && table(&catalog, "over_secured").row_security);
    assert!(!table(&catalog, "plain").row_security);
    let function = |name: &str| catalog.functions[name].iter().map(|function| function.oid).collect::<Vec<_>>();
    let calls = |view: &str, name: &str| {
        let called = &table(&catalog, view).view_functions;
        function(name).iter().any(|oid| called.contains(oid))
    };
    assert!(calls("random_one", "random") && calls("over_random", "random"));
    for view in ["dated", "located", "parsed"] {
        assert!(calls(view, "now"), "{view}");
    }
    assert!(calls("sampled", "system"));
    assert!(!calls("texted", "now") && !calls("over_stored", "now"));
    assert!(table(&catalog, "plain").view_functions.is_empty());
}

#[tokio::test]
async fn what_policies_read_is_told() {
    let catalog = catalog_of(
        "create table tenants (tenant text, n int); alter table tenants enable row level security;
         create policy own on tenants using (tenant = current_setting('App.Tenant', true) or tenant = current_setting('app.other'));
         create policy writes on tenants for insert with check (n < random());
         create table members (name text);
         create table joined (n int); alter table joined enable row level security;
         create policy members on joined using (exists (select from members m where m.name = current_user));
         create view over_joined as select j.n from joined j join tenants t on t.n = j.n;
         create table computed (n int); alter table computed enable row level security;
         create policy computed on computed using (current_setting('app.' || 'tenant') = 'x');
         create table dated (n int); alter table dated enable row level security;
         create policy dated on dated using (n < extract(day from current_date));
         create table off (n int); create policy off on off using (current_setting('app.tenant') = 'x')",
    )
    .await;
    let rules = |name: &str| table(&catalog, name).row_rules.clone();
    let settings = |name: &str| rules(name).settings.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!(settings("tenants"), ["app.other", "app.tenant"]);
    assert_eq!(settings("over_joined"), ["app.other", "app.tenant"]);
    assert!(!rules("tenants").opaque && !rules("joined").opaque && !rules("over_joined").opaque);
    assert!(rules("computed").opaque && rules("dated").opaque);
    assert_eq!(rules("off"), Default::default());
    let random = catalog.functions["random"][0].oid;
    assert!(!rules("tenants").functions.contains(&random) && !rules("tenants").functions.is_empty());
    let members = table(&catalog, "members").oid;
    assert!(
        table(&catalog, "joined").reads.contains(&members) && table(&catalog, "over_joined").reads.contains(&members)
    );
}

#[tokio::test]
async fn two_snapshots_that_differ_in_privileges_differ() {
    let database = fresh_database().await;
    let role = fresh_role("pg_read_all_stats").await;
    let client = database.client().await;
    client.batch_execute("create table t (a int); alter table t enable row level security").await.expect("table");
    let handle = CatalogHandle::new();
    assert!(handle.refresh(&client).await.expect("refresh"));
    for change in [
        format!("grant select on t to {role}"),
        format!("grant update (a) on t to {role}"),
        format!("grant usage on schema public to {role}"),
        "create policy p on t using (a = 1)".into(),
        "alter policy p on t using (a = 2)".into(),
        format!("alter role {role} bypassrls"),
        format!("revoke pg_read_all_stats from {role}"),
        format!("alter role {role} set app.tenant = 'x'"),
        "alter table t force row level security".into(),
        format!("alter table t owner to {role}"),
        "alter table t owner to postgres".into(),
    ] {
        client.batch_execute(&change).await.expect("change");
        assert!(handle.refresh(&client).await.expect("refresh"), "{change}");
    }
}

#[tokio::test]
async fn functions_operators_and_casts_come_with_their_volatility() {
    let catalog = catalog_of(
        "create function f(int) returns int immutable language sql as 'select 1';
         create function f(text) returns int volatile security definer language sql as 'select 1';
         create function eq(point, point) returns bool stable language sql as 'select true';
         create operator === (leftarg = point, rightarg = point, function = eq);
         create type pair as (a int, b int);
         create function pair_of(int) returns pair stable language sql as 'select row(1, 2)::pair';
         create cast (int as pair) with function pair_of(int)",
    )
    .await;
    let overloads = &catalog.functions["f"];
    assert_eq!(overloads.len(), 2);
    assert!(overloads.iter().all(|function| function.user_defined && &*function.schema == "public"));
    assert!(
        overloads.iter().any(|f| f.volatility == Volatility::Volatile && f.security_definer && f.arguments == [25])
    );
    assert_eq!(catalog.functions["now"][0].volatility, Volatility::Stable);
    assert!(!catalog.functions["now"][0].user_defined);
    assert_eq!(catalog.user_operators["==="], [Volatility::Stable]);
    assert!(catalog.has_user_casts && catalog.has_impure_user_casts);
    let empty = catalog_of("select 1").await;
    assert!(!empty.has_user_casts && empty.user_operators.is_empty());
}

#[tokio::test]
async fn a_refresh_takes_in_what_changed_and_nothing_else() {
    let database = harness::fresh_database().await;
    database.execute("create table t (a int)").await;
    let client = database.client().await;
    let handle = CatalogHandle::new();
    assert_eq!((handle.current().version, handle.loaded_at()), (0, None));

    assert!(handle.refresh(&client).await.expect("first"));
    assert_eq!(handle.current().version, 1);
    let looked = handle.loaded_at().expect("a time");

    database.execute("insert into t select generate_series(1, 1000); analyze t; create temp table x (a int)").await;
    assert!(!handle.refresh(&client).await.expect("nothing new"));
    database.execute("alter table t set (autovacuum_enabled = off)").await;
    assert!(!handle.refresh(&client).await.expect("nothing that is read here"));
    assert_eq!(handle.current().version, 1);
    assert!(handle.loaded_at().expect("a time") > looked);

    for (change, version) in [
        ("alter table t add b int", 2),
        ("alter table t drop b", 3),
        ("create table u (a int primary key)", 4),
        ("alter table t add foreign key (a) references u on delete cascade not valid", 5),
        ("create view v as select * from t", 6),
        ("create or replace view v as select * from t where a > random()", 7),
        ("create function f() returns int language sql as 'select 1'", 8),
        ("alter function f() immutable", 9),
        ("alter table t enable row level security", 10),
        ("alter table t rename to t2", 11),
        ("create schema s", 12),
        ("drop view v", 13),
        ("grant select on t2 to public", 14),
    ] {
        database.execute(change).await;
        assert!(handle.refresh(&client).await.expect(change), "{change}");
        assert_eq!(handle.current().version, version, "{change}");
    }
}

#[tokio::test]
async fn an_empty_database_is_read_quickly() {
    let database = harness::fresh_database().await;
    let client = database.client().await;
    load(&client).await.expect("warm");
    let mut best = std::time::Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        load(&client).await.expect("a catalog");
        best = best.min(begun.elapsed());
    }
    eprintln!("loading the catalog of an empty database took {best:?}");
    // Wide enough for an unoptimized build on a busy machine: what is watched for is a query that grows with the square of something.
    assert!(best.as_millis() < 1_000, "{best:?}");
}
