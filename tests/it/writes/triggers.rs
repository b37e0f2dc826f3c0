//! Triggers that change rows before they are stored: a row must not be stored on another shard than the one that its key belongs to.

use std::fmt::Write as _;

use super::stage::{Stage, ok, say};
use crate::answers::{MANNERS, ask};
use crate::harness;
use crate::harness::wire::WireClient;

/// A table of the shards with a trigger: its name, when the trigger runs, and the body of its function.
type Triggered = (&'static str, &'static str, &'static str);

const ALWAYS: &str = "before insert or update";

/// Triggers that change the shard key, or might.
const MOVING: &[Triggered] = &[
    ("sets", ALWAYS, "begin new.id := new.id + 1; return new; end"),
    ("sets_by_equals", ALWAYS, "begin if tg_op <> '' then NEW . \"id\" = 7; end if; return new; end"),
    ("sets_in_disguise", ALWAYS, "begin raise debug '--'; new/**/.id := 7; return new; end"),
    ("whole", ALWAYS, "declare r record; begin r := new; r.id := 7; new := r; return new; end"),
    ("whole_into", ALWAYS, "begin select 7, 'x', now() into new; return new; end"),
    ("into_one", ALWAYS, "begin select 7 into strict new.id; return new; end"),
    ("into_second", ALWAYS, "declare x int; begin select 1, 7 into x, new.id; return new; end"),
    ("other", ALWAYS, "declare r record; begin r := new; r.id := 7; return r; end"),
    ("by_alias", ALWAYS, "declare r alias for new; begin r.id := 7; return new; end"),
    ("old_one", ALWAYS, "begin if tg_op = 'UPDATE' then old.id := 7; return old; end if; return new; end"),
];

/// Triggers that leave it alone, or do not run.
const STAYING: &[Triggered] = &[
    ("stamped", ALWAYS, "begin new.updated_at := '2026-01-01 00:00Z'; return new; end"),
    ("stamped_by_equals", ALWAYS, "begin NEW.updated_at = '2026-01-01 00:00Z'; RETURN NEW; end"),
    ("audited", "after insert or update", "begin insert into log values (new.id); return new; end"),
    ("audited_before", ALWAYS, "begin insert into log (id) values (new.id); return coalesce(new, old); end"),
    ("checked", ALWAYS, "begin if new.id = 0 or (new.id = -1) then raise 'new.id := 0'; end if; return new; end"),
    ("declared", ALWAYS, "declare r record; begin r := new; r.updated_at := '2026-01-01 00:00Z'; return r; end"),
    ("disabled", ALWAYS, "begin new.id := new.id + 1; return new; end"),
];

/// Fired by one of both alone.
const ONE_EVENT: &[Triggered] = &[
    ("on_insert", "before insert", "begin new.id := new.id + 1; return new; end"),
    ("on_update", "before update", "begin new.id := new.id + 1; return new; end"),
];

/// Two shards behind pgherd with those tables. Row 1 of each is there before its trigger is.
async fn stage(tables: &[&[Triggered]], more: &str, more_tables: &str) -> Stage {
    let mut made = "create table log (id int4);".to_owned();
    let mut rest = String::new();
    for (name, when, body) in tables.iter().copied().flatten() {
        let body = body.replace('\'', "''");
        let _ = write!(
            made,
            "create table {name} (id int4 primary key, note text, updated_at timestamptz);
             create function {name}_f() returns trigger language plpgsql as '{body}';
             insert into {name} select 1, 'old' from by_int_of_one;
             create trigger {name}_t {when} on {name} for each row execute function {name}_f();"
        );
        if *name == "disabled" {
            made += "alter table disabled disable trigger disabled_t;";
        }
        let _ = write!(rest, "[[database.table]]\nname = \"public.{name}\"\nshard_key = \"id\"\nmethod = \"hash\"\n");
    }
    rest += more_tables;
    let stage = Stage::over(harness::fresh_databases(2).await, &rest).await;
    for (at, shard) in stage.shards.iter().enumerate() {
        let one = format!(
            "create view by_int_of_one as select where satisfies_hash_partition('by_int'::regclass, 2, {at}, 1)"
        );
        shard.execute(&format!("{one}; {made} {more}")).await;
    }
    stage
}

/// Rows of a table on all shards: id, note, whether they are stamped. None may be where it does not belong.
async fn stored(stage: &Stage, name: &str) -> Vec<(i32, String, bool)> {
    let mut rows = Vec::new();
    for (at, shard) in stage.shards.iter().enumerate() {
        let client = shard.client().await;
        let belongs = format!("satisfies_hash_partition('by_int'::regclass, 2, {at}, id)");
        let sql = format!("select id, note, updated_at is not null, {belongs} from {name}");
        for row in client.query(&sql, &[]).await.expect("read") {
            assert!(row.get::<_, bool>(3), "a row of {name} is on the wrong shard");
            rows.push((row.get(0), row.get(1), row.get(2)));
        }
    }
    rows.sort();
    rows
}

fn inserts(name: &str) -> [String; 3] {
    [
        format!("insert into {name} (id, note) values (2, 'new')"),
        format!("insert into {name} (id, note) values (2, 'new') on conflict do nothing"),
        format!("explain analyze insert into {name} (id, note) values (2, 'new')"),
    ]
}

fn updates(name: &str) -> [String; 2] {
    [
        format!("update {name} set note = 'changed' where id = 1"),
        format!("explain (analyze) update {name} set note = 'changed' where id = 1"),
    ]
}

fn both(name: &str) -> [String; 2] {
    [
        format!("insert into {name} (id, note) values (1, 'new') on conflict (id) do update set note = 'changed'"),
        format!(
            "merge into {name} using (select 1 as id) s on {name}.id = s.id and {name}.id = 1 \
             when matched then update set note = 'changed'"
        ),
    ]
}

async fn is_refused(client: &mut WireClient, sql: &str) {
    for manner in MANNERS {
        let answer = ask(client, manner, sql).await;
        assert_eq!(answer.code(), Some("0A000"), "{manner:?} {sql}");
        let (_, message) = answer.error.unwrap_or_default();
        assert!(message.contains("may change the shard key"), "{sql}: {message}");
    }
}

#[tokio::test]
async fn a_trigger_that_may_change_the_shard_key_is_not_fired() {
    let stage = stage(&[MOVING, ONE_EVENT], "", "").await;
    let pgherd = stage.pgherd().await;
    let mut client = pgherd.wire("app").await;
    let old = [(1, "old".to_owned(), false)];
    for (name, ..) in MOVING {
        for sql in inserts(name).iter().chain(&updates(name)).chain(&both(name)) {
            is_refused(&mut client, sql).await;
        }
        assert_eq!(stored(&stage, name).await, old, "{name}");
        assert_eq!(ok(&mut client, &format!("delete from {name} where id = 1")).await, "DELETE 1");
    }
    for sql in inserts("on_insert").iter().chain(&updates("on_update")).chain(&both("on_update")) {
        is_refused(&mut client, sql).await;
    }
    ok(&mut client, &inserts("on_update")[0]).await;
    ok(&mut client, &updates("on_insert")[0]).await;
    assert_eq!(stored(&stage, "on_insert").await, [(1, "changed".to_owned(), false)]);
    assert_eq!(stored(&stage, "on_update").await, [old[0].clone(), (2, "new".to_owned(), false)]);
    let error = say(&mut client, &inserts("on_insert")[0]).await.error.expect("refused").1;
    assert!(error.contains("public.on_insert_f()"), "{error}");
}

#[tokio::test]
async fn triggers_that_leave_the_shard_key_alone_run() {
    let mut stage = stage(&[STAYING], "", "").await;
    stage.toml += "[fanout]\npure_functions = [\"public.declared_f()\"]\n";
    let pgherd = stage.pgherd().await;
    let mut client = pgherd.wire("app").await;
    for (name, ..) in STAYING {
        ok(&mut client, &inserts(name)[0]).await;
        ok(&mut client, &updates(name)[0]).await;
        ok(&mut client, &both(name)[0]).await;
        let is_stamped = name.starts_with("stamped") || *name == "declared";
        let rows = [(1, "changed".to_owned(), is_stamped), (2, "new".to_owned(), is_stamped)];
        assert_eq!(stored(&stage, name).await, rows, "{name}");
    }
    let mut logged = 0;
    for shard in &stage.shards {
        logged += shard.client().await.query_one("select count(*) from log", &[]).await.expect("read").get::<_, i64>(0);
    }
    // `audited` once for each write; ON CONFLICT fires what runs before both.
    assert_eq!(logged, 3 + 4);
}

/// Rows that others lead to: partitions, and rows that refer to those of the statement.
const REACHED: &str = "
create function moves() returns trigger language plpgsql as 'begin new.id := new.id + 1; return new; end';
create table split (id int4, v int4) partition by range (v);
create table split_1 partition of split for values from (0) to (100);
create table split_2 partition of split for values from (100) to (200);
create trigger t before insert on split_2 for each row execute function moves();
create table parents (id int4, v int4, primary key (id, v));
create table children (id int4, v int4, foreign key (id, v) references parents (id, v) on update cascade);
create trigger t before update on children for each row execute function moves();
insert into parents select 1, 1 from by_int_of_one;
insert into children select 1, 1 from by_int_of_one;
";

#[tokio::test]
async fn neither_is_one_that_other_tables_lead_to() {
    let mut tables = String::new();
    for table in ["split", "parents", "children"] {
        tables += &format!("[[database.table]]\nname = \"public.{table}\"\nshard_key = \"id\"\nmethod = \"hash\"\n");
    }
    let stage = stage(&[], REACHED, &tables).await;
    let pgherd = stage.pgherd().await;
    let mut client = pgherd.wire("app").await;
    for sql in [
        "insert into split values (1, 101)",
        "update split set v = 101 where id = 1",
        "update parents set v = 2 where id = 1",
        "update children set v = 2 where id = 1",
    ] {
        is_refused(&mut client, sql).await;
    }
    ok(&mut client, "delete from split where id = 1").await;
    ok(&mut client, "insert into parents values (1, 3)").await;
    ok(&mut client, "insert into children values (1, 3)").await;
    ok(&mut client, "delete from children where id = 1").await;
}
