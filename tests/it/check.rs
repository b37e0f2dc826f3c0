//! `pgherd check` on real servers: a good herd passes, and each thing that is wrong is named.

use pgherd::commands::check::{self, Level, Report};

use crate::harness::{self, Database};

struct Herd {
    primary: Database,
    shards: Vec<Database>,
}

/// Tables of the stories; `{i}` is the shard's index.
const TABLES: &str = "
    create table orders (customer_id bigint not null, at date, total numeric(10,2), primary key (customer_id, at));
    create table items (customer_id bigint not null, at date, item varchar(20),
        foreign key (customer_id, at) references orders (customer_id, at));
    create table events (id bigint not null, note text);
    create table stores (region varchar(5), name text);
    create table countries (code char(2) primary key, name text);
    insert into countries values ('de', 'Germany'), ('fr', 'France');
";

/// What the TOML says of them.
const LAYOUT: &str = r#"
    table = [
        { name = "orders", shard_key = "customer_id", method = "hash" },
        { name = "items", shard_key = "customer_id", method = "hash" },
        { name = "events", shard_key = "id", method = "range", ranges = [{ to = 100, shard = 0 }, { from = 100, shard = 1 }] },
        { name = "stores", shard_key = "region", method = "list", lists = [
            { values = ["eu", "o'c\\"], shard = 0 }, { values = ["us"], null = true, shard = 1 }] },
        { name = "countries", reference = true },
    ]
"#;

impl Herd {
    /// A primary and two shards with rows where they belong.
    async fn new() -> Self {
        let primary = harness::fresh_database().await;
        let shards = harness::fresh_databases(2).await;
        for (index, shard) in shards.iter().enumerate() {
            shard.execute(TABLES).await;
            // PostgreSQL itself says which rows are this shard's.
            shard
                .execute(&format!(
                    "create table h (k bigint) partition by hash (k);
                     insert into orders select k, '2026-01-01', k from generate_series(1, 500) k
                       where satisfies_hash_partition('h'::regclass, 2, {index}, k::bigint);
                     drop table h;
                     insert into items select customer_id, at, 'x' from orders;
                     insert into events select k, 'n' from generate_series({index} * 100, {index} * 100 + 99) k;"
                ))
                .await;
        }
        shards[0].execute("insert into stores values ('eu', 'a'), (E'o''c\\\\', 'b')").await;
        shards[1].execute("insert into stores values ('us', 'c'), (null, 'd')").await;
        Self { primary, shards }
    }

    async fn check(&self, layout: &str) -> Report {
        let shards: Vec<String> = self.shards.iter().map(|shard| format!("\"{}\"", shard.address())).collect();
        let toml = format!(
            "[pool]\nmax_connections = 5\nmin_connections = 0\n[[user]]\nname = \"postgres\"\nauth = \"trust\"\n\
             [[database]]\nname = \"app\"\nprimary = \"{}\"\nshards = [{}]\n{layout}\n",
            self.primary.address(),
            shards.join(", ")
        );
        run(&toml).await
    }
}

pub(super) async fn run(toml: &str) -> Report {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    std::fs::write(&path, toml).expect("a file");
    check::run(&path).await.unwrap_or_else(|faults| panic!("{faults}\n{toml}"))
}

/// Findings of a level whose place and text hold these words.
pub(super) fn found(report: &Report, level: Level, place: &str, text: &str) -> bool {
    report
        .findings
        .iter()
        .any(|finding| finding.level == level && finding.place.contains(place) && finding.text.contains(text))
}

#[track_caller]
pub(super) fn assert_fault(report: &Report, place: &str, text: &str) {
    assert!(found(report, Level::Fault, place, text), "no fault \"{text}\" at {place}:\n{report}");
    let helpful =
        report.findings.iter().filter(|finding| finding.level != Level::Ok).all(|finding| !finding.help.is_empty());
    assert!(helpful, "a finding without help:\n{report}");
}

#[tokio::test]
async fn rows_that_others_refer_to_are_named_where_rows_may_move() {
    let herd = Herd::new().await;
    let moves = format!("{LAYOUT}\n[fanout]\nkey_moves = \"move\"");
    for (layout, is_told) in [(LAYOUT, false), (&moves, true)] {
        let report = herd.check(layout).await;
        assert_eq!(report.count(Level::Fault), 0, "{report}");
        let text = "its shard key stays refused: table public.items refers to it";
        assert_eq!(found(&report, Level::Warning, "table public.orders", text), is_told, "{report}");
    }
}

#[tokio::test]
async fn a_good_herd_passes() {
    let herd = Herd::new().await;
    let report = herd.check(LAYOUT).await;
    assert_eq!(report.count(Level::Fault), 0, "{report}");
    assert!(found(&report, Level::Ok, "app, primary", "postgres can log in"), "{report}");
    assert!(found(&report, Level::Ok, "app, primary", "PostgreSQL 1"), "{report}");
    for table in ["orders", "items", "events", "stores"] {
        for shard in ["shard 0", "shard 1"] {
            let place = |finding: &&check::Finding| finding.place.contains(shard) && finding.place.contains(table);
            let placed: Vec<_> = report.findings.iter().filter(place).collect();
            assert!(
                placed.iter().any(|finding| finding.text.ends_with("all where they belong")),
                "{shard} {table}\n{report}"
            );
        }
    }
    assert!(found(&report, Level::Ok, "countries", "2 rows, the same as on the first shard"), "{report}");
    assert!(found(&report, Level::Ok, "server 127.0.0.1", "pools may open 15 connections"), "{report}");
}

/// Tables by several columns, with default shards and in groups.
const WIDE: &str = "
    create table pairs (a int, b text collate \"C\", v int, primary key (a, b, v));
    create table halves (x int, y text collate \"C\", w int);
    create table grid (x int, y date, v int);
    create table tiers (tier text, v int);";

const WIDE_LAYOUT: &str = r#"
    table = [
        { name = "pairs", shard_key = ["a", "b"], method = "hash", group = "pairs" },
        { name = "halves", shard_key = ["x", "y"], method = "hash", group = "pairs" },
        { name = "grid", shard_key = ["x", "y"], method = "range", default_shard = 1, ranges = [
            { to = [10], shard = 0 }, { from = [10], to = [20, "2024-01-10"], shard = 0 }] },
        { name = "tiers", shard_key = "tier", method = "list", default_shard = 1, lists = [{ values = ["low"], shard = 0 }] },
    ]
"#;

#[tokio::test]
async fn keys_of_several_columns_default_shards_and_groups_are_checked() {
    let herd = Herd::new().await;
    for (index, shard) in herd.shards.iter().enumerate() {
        shard
            .execute(&format!(
                "{WIDE} create table h (a int, b text collate \"C\") partition by hash (a, b);
                 insert into pairs select a, b, min(g) from (select g, g % 9 a, 'b' || g % 7 b from generate_series(1, 60) g) x
                   where satisfies_hash_partition('h'::regclass, 2, {index}, a, b) group by 1, 2; drop table h;
                 insert into halves select a, b, 2 from pairs;"
            ))
            .await;
    }
    herd.shards[0]
        .execute(
            "insert into grid values (1, '2024-01-01', 1), (20, '2024-01-09', 2); insert into tiers values ('low', 1)",
        )
        .await;
    herd.shards[1].execute("insert into grid values (null, '2024-01-01', 1), (3, null, 1), (20, '2024-01-10', 2); insert into tiers values ('x', 1), (null, 2)").await;
    let report = herd.check(WIDE_LAYOUT).await;
    assert_eq!(report.count(Level::Fault), 0, "{report}");
    herd.shards[0]
        .execute("insert into grid values (20, '2024-01-10', 1), (null, null, 1); insert into tiers values ('y', 1)")
        .await;
    herd.shards[1].execute("insert into grid values (0, '2024-01-10', 7); insert into tiers values ('low', 1)").await;
    for (at, shard) in herd.shards.iter().enumerate() {
        shard.execute("create unique index too_narrow on pairs (v, a); alter table halves alter x type int8").await;
        shard
            .execute(&format!("insert into pairs select g, 'q', 100 * {at} + g from generate_series(1000, 1040) g"))
            .await;
    }
    let report = herd.check(WIDE_LAYOUT).await;
    assert_fault(&report, "grid", "2 of 4 rows belong elsewhere");
    assert_fault(&report, "grid", "1 of 4 rows belong elsewhere, one with key \"(0,2024-01-10)\"");
    assert_fault(&report, "tiers", "1 of 2 rows belong elsewhere, one with key \"y\"");
    assert_fault(&report, "tiers", "1 of 3 rows belong elsewhere, one with key \"low\"");
    assert_fault(&report, "pairs", "unique index too_narrow does not hold the shard key");
    assert_fault(
        &report,
        "halves",
        "its shard key is of type bigint, text pg_catalog.\"C\", that of table public.pairs",
    );
    let report = herd
        .check(
            &WIDE_LAYOUT
                .replace("{ from = [10], to", "{ from = [9, \"2024-01-01\"], to")
                .replace("{ to = [10], shard", "{ to = [9, \"2023-06-01\"], shard"),
        )
        .await;
    assert!(!found(&report, Level::Fault, "grid", "overlap"), "{report}");
    let report = herd
        .check(
            &WIDE_LAYOUT
                .replace("{ from = [10], to", "{ from = [10, \"2024-1-15\"], to")
                .replace("{ to = [10], shard", "{ to = [10, \"2024-02-01\"], shard"),
        )
        .await;
    assert_fault(&report, "grid", "ranges[0] and ranges[1] overlap");
}

#[tokio::test]
async fn rows_on_the_wrong_shard_are_counted() {
    let herd = Herd::new().await;
    herd.shards[0].execute("insert into events values (100, 'x'), (7777, 'x')").await;
    herd.shards[0].execute("insert into stores values (null, 'x')").await;
    herd.shards[1].execute("insert into stores values ('asia', 'x')").await;
    // Both shards now hold the same rows, so half of each is misplaced.
    herd.shards[1].execute("insert into orders select k, '2000-01-01', 0 from generate_series(1, 500) k").await;
    herd.shards[1].execute("insert into countries values ('it', 'Italy')").await;
    let report = herd.check(LAYOUT).await;
    assert_fault(&report, "shard 0", "2 of 102 rows belong elsewhere, one with key \"100\"");
    assert_fault(&report, "shard 0", "1 of 3 rows belong elsewhere, one with key NULL");
    assert_fault(&report, "shard 1", "1 of 3 rows belong elsewhere, one with key \"asia\"");
    assert!(
        report
            .findings
            .iter()
            .any(|f| f.place.contains("shard 1") && f.place.contains("orders") && f.level == Level::Fault)
    );
    assert!(found(&report, Level::Ok, "orders", "all where they belong"), "{report}");
    assert_fault(&report, "countries", "it has 3 rows, the first shard's 2");
    herd.shards[1]
        .execute("delete from countries where code = 'it'; update countries set name = 'x' where code = 'de'")
        .await;
    assert_fault(&herd.check(LAYOUT).await, "countries", "its 2 rows differ");
}

#[tokio::test]
async fn what_looks_beyond_one_shard_is_found() {
    let herd = Herd::new().await;
    for shard in &herd.shards {
        shard
            .execute(
                "update events set note = id;
                 alter table events add unique (note);
                 alter table events enable row level security;
                 create function f() returns trigger language plpgsql as 'begin return new; end';
                 create trigger t before insert on events for each row execute function f();
                 create rule r as on delete to stores do instead nothing;
                 create table local (id int primary key);
                 alter table stores add local int references local;
                 alter table items add other bigint, add foreign key (other, at) references orders (customer_id, at);
                 alter table events add seq bigserial;",
            )
            .await;
    }
    let report = herd.check(LAYOUT).await;
    assert_fault(&report, "events", "unique index events_note_key does not hold the shard key");
    assert!(found(&report, Level::Warning, "events", "row-level security is enabled"), "{report}");
    assert_fault(&report, "events", "trigger t sees one shard's rows only");
    assert_fault(&report, "stores", "rule r sees one shard's rows only");
    assert_fault(&report, "stores", "refers to public.local, which pgherd takes to be on the primary");
    assert_fault(&report, "items", "refers to public.orders, whose row may be on another shard");
    assert!(found(&report, Level::Warning, "events", "seq counts on each shard alone"), "{report}");
}

#[tokio::test]
async fn sequences_that_step_apart_give_no_value_twice() {
    let herd = Herd::new().await;
    for (at, shard) in herd.shards.iter().enumerate() {
        let start = at + 1;
        shard
            .execute(&format!(
                "alter table events add a bigint generated by default as identity (increment 2 start {start});
                 create sequence b_seq increment 2 start {start}; alter table events add b bigint default nextval('b_seq');
                 alter sequence b_seq owned by events.b; alter table stores add c serial;"
            ))
            .await;
    }
    let report = herd.check(LAYOUT).await;
    assert!(!found(&report, Level::Warning, "events", "counts on each shard alone"), "{report}");
    assert!(found(&report, Level::Warning, "stores", "c counts on each shard alone"), "{report}");
    herd.shards[1].execute("alter sequence b_seq increment 3").await;
    assert!(found(&herd.check(LAYOUT).await, Level::Warning, "events", "b counts on each shard alone"));
}

#[tokio::test]
async fn tables_that_differ_or_are_missing_are_found() {
    let herd = Herd::new().await;
    herd.primary.execute("create table public.orders (a int)").await;
    herd.shards[1]
        .execute(
            "drop table items; alter table events alter note type varchar(9); alter table stores rename region to r",
        )
        .await;
    let report = herd.check(LAYOUT).await;
    assert_fault(&report, "app, primary", "the primary has a table of this name, which postgres can read");
    assert_fault(&report, "shard 1", "there is no such table");
    assert_fault(&report, "shard 1", "instead of \"note text pg_catalog");
    assert_fault(&report, "shard 1", "it has no column \"region\"");
}

#[tokio::test]
async fn keys_and_bounds_that_do_not_fit_are_found() {
    let herd = Herd::new().await;
    let report = herd
        .check(
            r#"table = [
                { name = "events", shard_key = "id", method = "range", ranges = [{ to = "x", shard = 0 }] },
                { name = "stores", shard_key = "region", method = "range", ranges = [{ from = "a", to = "b", shard = 0 }] },
                { name = "orders", shard_key = "at", method = "range", ranges = [{ to = "2026-02-01", shard = 0 }, { from = "2026-1-15", shard = 1 }] },
                { name = "countries", shard_key = "code", method = "list", lists = [{ values = ["de"], shard = 0 }, { values = ["de "], shard = 1 }] },
            ]"#,
        )
        .await;
    assert_fault(&report, "events", "do not fit the shard key");
    assert_fault(&report, "countries", "is listed twice");
    assert_fault(&report, "orders", "ranges[0] and ranges[1] overlap");
}

#[tokio::test]
async fn servers_that_do_not_answer_or_refuse_are_named() {
    let database = harness::fresh_database().await;
    let role = harness::fresh_role("scram").await;
    let address = database.address();
    let report = run(&format!(
        "[pool]\nmax_connections = 900\nmin_connections = 0\n\
         [[user]]\nname = \"{role}\"\npassword = \"wrong\"\n[[user]]\nname = \"postgres\"\nauth = \"trust\"\n\
         [[database]]\nname = \"app\"\nprimary = \"{address}\"\nreplicas = [\"{address}x\"]\n\
         [[database]]\nname = \"gone\"\nprimary = \"host=127.0.0.1 port=1\"\n\
         [cache]\nenabled = true\nredis = {{ url = \"redis://:hunter2@127.0.0.1:1\" }}\n"
    ))
    .await;
    assert_fault(&report, "app, primary", &format!("{role} cannot log in"));
    assert!(found(&report, Level::Ok, "app, primary", "postgres can log in"), "{report}");
    assert_fault(&report, "app, replica 0", "does not exist");
    assert_fault(&report, "gone, primary", "could not connect");
    assert_fault(&report, "redis", "cannot be reached");
    assert!(found(&report, Level::Warning, "server 127.0.0.1", "pools may open"), "{report}");
    assert!(!report.to_string().contains("hunter2") && !report.to_string().contains("wrong"), "{report}");
}

#[tokio::test]
async fn a_primary_among_the_replicas_is_found() {
    let (one, two) = (harness::fresh_database().await, harness::fresh_database().await);
    let report = run(&format!(
        "[pool]\nmin_connections = 0\n[[user]]\nname = \"postgres\"\nauth = \"trust\"\n\
         [[database]]\nname = \"app\"\nprimary = \"{}\"\nreplicas = [\"{}\"]\n",
        one.address(),
        two.address()
    ))
    .await;
    assert_fault(&report, "replica 0", "it is not in recovery");
}

#[tokio::test]
async fn servers_that_cannot_commit_together_are_found() {
    let herd = Herd::new().await;
    let (able, unable) = (harness::unique("able"), harness::unique("unable"));
    herd.primary.execute(&format!("create role {able} login superuser; create role {unable} login")).await;
    let report = herd.check(&format!("two_phase = {{ user = \"{able}\" }}\n{LAYOUT}")).await;
    assert_eq!(report.count(Level::Fault), 0, "{report}");
    for place in ["app, primary", "shard 0", "shard 1"] {
        assert!(found(&report, Level::Ok, place, "up to 200 prepared transactions"), "{report}");
    }
    let report = herd.check(&format!("two_phase = {{ user = \"{unable}\", latch = \"off\" }}\n{LAYOUT}")).await;
    assert_fault(&report, "shard 1", "may neither create the schema pgherd");
    assert_fault(&report, "app, primary", "cannot finish transactions of postgres");
    assert!(found(&report, Level::Warning, "database app", "latch = \"off\""), "{report}");
    let report = herd.check(&format!("two_phase = {{ user = \"nobody_there\" }}\n{LAYOUT}")).await;
    assert_fault(&report, "shard 0", "nobody_there of two_phase cannot log in");

    // A copy of the harness's server: what was made first in both has one name.
    let (server, shared) = (harness::start(&harness::options().set("max_prepared_transactions", 0)), &herd.shards[0]);
    let copy = harness::database_on(&server).await;
    let toml = format!(
        "[pool]\nmax_connections = 5\nmin_connections = 0\n[[user]]\nname = \"postgres\"\nauth = \"trust\"\n[[database]]\n\
         name = \"app\"\nprimary = \"{}\"\nshards = [\"{}\"]\ntwo_phase = {{ user = \"{able}\" }}\n",
        shared.address(),
        copy.address()
    );
    copy.execute(&format!("create role {able} login superuser")).await;
    assert_fault(&run(&toml).await, "shard 0", "max_prepared_transactions = 0");
}

/// Types and a function that the tables and the TOML of the next stories name.
const OWN: &str = "create type mood as enum ('sad', 'ok', 'happy'); create domain positive as int check (value > 0);
    create function slug(text) returns text immutable language sql as 'select lower($1)';
    create table moods (id bigint not null, feeling mood, feelings mood[], n positive);
    create function touch() returns trigger language plpgsql as 'begin return new; end';
    create view happy as select id from moods where feeling = 'happy'; create view very_happy as select id from happy where id > 0;";
const MOODS: &str = r#"
    table = [{ name = "moods", shard_key = "id", method = "hash" }]
    [fanout]
    pure_functions = ["public.slug(text)", "public.touch()"]
"#;

#[tokio::test]
async fn a_coordinator_and_shards_with_the_same_definitions_pass() {
    let herd = Herd::new().await;
    for shard in &herd.shards {
        shard.execute(OWN).await;
    }
    herd.primary.execute(OWN.rsplit_once("create table").expect("a table").0).await;
    let report = herd.check(MOODS).await;
    assert_eq!(report.count(Level::Fault), 0, "{report}");
    for place in ["shard 0", "shard 1", "primary"] {
        assert!(found(&report, Level::Ok, place, "it has the types and functions"), "{report}");
    }
}

#[tokio::test]
async fn definitions_that_differ_are_named() {
    let herd = Herd::new().await;
    herd.shards[0].execute(OWN).await;
    let other = OWN.replace("'sad', 'ok'", "'ok', 'sad'").replace("value > 0", "value >= 0").replace("lower", "upper");
    let other = other.replace("where id > 0", "where id > 1");
    herd.shards[1].execute(&other).await;
    let coordinator = harness::fresh_database().await;
    coordinator.execute("create type mood as enum ('sad', 'ok', 'happy', 'new')").await;
    coordinator.execute(&format!("revoke temporary on database \"{}\" from public", coordinator.name)).await;
    let report = herd.check(&format!("coordinator = \"{}\"\n{MOODS}", coordinator.address())).await;
    assert_fault(&report, "shard 1", "type public.mood is e: 'ok', 'sad', 'happy', on the first shard e: 'sad'");
    assert_fault(&report, "shard 1", "type public.positive is d: integer CHECK ((VALUE >= 0))");
    assert_fault(&report, "shard 1", "function public.slug(text) is another");
    assert_fault(&report, "shard 1", "view public.very_happy is another");
    assert!(!found(&report, Level::Fault, "shard 1", "view public.happy is"), "{report}");
    assert_fault(&report, "coordinator", "type public.mood is e: 'sad', 'ok', 'happy', 'new'");
    assert_fault(&report, "coordinator", "there is no type public.positive");
    assert_fault(&report, "coordinator", "there is no function public.slug(text)");
    assert!(!found(&report, Level::Fault, "coordinator", "touch"), "no table there fires a trigger: {report}");
    assert!(!found(&report, Level::Fault, "primary", "type"), "the primary is not the coordinator: {report}");
}
