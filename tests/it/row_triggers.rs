//! What the triggers of a table may assign in its rows, as it is read from their functions' code.

use std::fmt::Write as _;

use pgherd::catalog::load::load;
use pgherd::catalog::model::{Assigns, Catalog, RowTrigger};

use crate::harness;

/// Bodies of functions, and what they may assign: columns, split by commas; `*` is any of them.
const BODIES: &[(&str, &str)] = &[
    ("begin new.id := 1; return new; end", "id"),
    ("begin new.id = 1; return new; end", "id"),
    ("begin new.\"Id\" = 1; return new; end", "Id"),
    ("begin new.\"a\"\"b\" = 1; return new; end", "a\"b"),
    ("begin \"new\".ID := 1; return new; end", "id"),
    ("begin new . id[1] := 1; return new; end", "id"),
    ("begin new.id[a[2]] := 1; return new; end", "id"),
    ("begin new.id.part := 1; return new; end", "id"),
    ("begin new /* x */ . /* y */ id -- z\n := 1; return new; end", "id"),
    ("declare r record; begin select * into new from t; return new; end", "*"),
    ("begin new := null; return new; end", "*"),
    ("begin new = old; return new; end", "*"),
    ("begin select 1 into new.id; return new; end", "id"),
    ("begin select into strict new.id 1; return new; end", "id"),
    ("begin select 1, 2 into x, new.id from t; return new; end", "id"),
    ("begin select 1, 2 into x , new.\"Id\" , y from t; return new; end", "Id"),
    ("begin execute 'select 1' into new.id using 1; return new; end", "id"),
    ("begin insert into log values (new.id) returning id into new.id; return new; end", "id"),
    ("begin fetch c into new.id; return new; end", "id"),
    ("begin for new.id in 1..3 loop end loop; return new; end", "id"),
    ("begin for x, new.id in select 1, 2 loop end loop; return new; end", "id"),
    ("begin foreach new.id in array a loop end loop; return new; end", "id"),
    ("begin foreach new.id slice 1 in array a loop end loop; return new; end", "id"),
    ("begin for new in select * from t loop end loop; return new; end", "*"),
    ("declare r alias for new; begin r.id := 1; return r; end", "*"),
    ("begin call p(new.id); return new; end", "*"),
    ("declare r record; begin r := new; return r; end", "*"),
    ("begin return (new); end", "*"),
    ("begin get diagnostics new.id = row_count; return new; end", "id"),
    ("begin if true then new.id = 1; end if; return new; end", "id"),
    ("<<a>> begin f.new.id := 1; return new; end", "id"),
    ("begin raise notice 'x -- '; new.id := 2; return new; end", "id"),
    ("begin raise notice '/*'; new.id := 2; raise notice '*/'; return new; end", "id"),
    ("begin raise notice e'it\\'s'; new.id := 2; raise notice 'x'; return new; end", "id"),
    ("begin x := $$it's$$; new.id := 2; y := $$it's$$; return new; end", "id"),
    ("begin x := $a$it's$a$; new.id := 2; y := $a$it's$a$; return new; end", "id"),
    ("begin x := $a$it's $b$ $a$; new.id := 2; y := $a$it's$a$; return new; end", "*"),
    ("begin /* /* */ */ new.id := 2; return new; end", "*"),
    ("begin old.id := 3; return old; end", "id"),
    ("begin new.updated_at := now(); return new; end", "updated_at"),
    ("begin new.updated_at = now(); return new; end", "updated_at"),
    ("begin NEW.updated_at = now(); RETURN NEW; end", "updated_at"),
    ("begin insert into log values (new.id); return new; end", ""),
    ("begin insert into log (id) values (new.id); return coalesce(new, old); end", ""),
    ("begin if new.id = 5 then raise exception 'new.id := %', new.id; end if; return new; end", ""),
    ("begin if (new.id = old.id) and new.id=3 or not new.id = 4 then return null; end if; return new; end", ""),
    ("begin select count(*) into n from t where new.id = id; return new; end", ""),
    ("begin if new is distinct from old then new.at := 1; end if; return new; end", "at"),
    ("begin if new.* is distinct from old.* then return old; end if; return new; end", ""),
    ("-- new.id := 1\n begin return new; /* new.id := 2; */ end", ""),
    ("begin x := new.id; perform f(new); return new; end", ""),
    ("begin update t set n = n + 1 where id = new.id; return new; end", ""),
    ("begin new.note = case when new.id = 1 then 'new.id = 3' end; return new; end", "note"),
    ("begin if tg_op = 'DELETE' then return old; elsif new.id <= 3 then return null; end if; return new; end", ""),
    ("begin perform set_config('a.b', new.id::text, true); return new; end", ""),
    ("begin new.u&\"id\" := 1; return new; end", "*"),
    ("begin new.ÄÖ := 1; return new; end", "ÄÖ"),
    ("begin select a into new.name, new.mail from u where u.id = new.id; return new; end", "mail,name"),
    ("begin new.total := new.a + new.b; new.slug := lower(new.title); return new; end", "slug,total"),
    ("begin select f(x) into new.a, y, new.id; return new; end", "a,id"),
    ("begin select 1, 2 into new.\"a,b\", new.c; return new; end", "a,b,c"),
    ("begin for i in 1..3 loop new.id[i] := 1; end loop; return new; end", "id"),
    ("begin new.a[1] := 3; if new.a[1] > 0 then new.id := b[1] = 3; end if; return new; end", "a,id"),
    ("begin new.id:=1;return new;end", "id"),
    ("begin if x then return new; else new.id:=1;end if; return new;end", "id"),
    ("begin into_x := new.id; return new; end", ""),
    ("begin return new::accounts; end", "*"),
    ("begin return null::accounts; end", "*"),
    ("begin return f(new); end", "*"),
    ("begin select x.* into new from jsonb_populate_record(new, '{}') x; return new; end", "*"),
    ("begin new := new #= hstore('id', '1'); return new; end", "*"),
];

async fn catalog_of(statements: &str) -> Catalog {
    let database = harness::fresh_database().await;
    database.execute(statements).await;
    load(&database.client().await).await.expect("a catalog")
}

fn triggers<'a>(catalog: &'a Catalog, table: &str) -> &'a [RowTrigger] {
    &catalog.relation("public", table).unwrap_or_else(|| panic!("{table}")).row_triggers
}

/// As [`BODIES`] have it.
fn assigned(triggers: &[RowTrigger]) -> String {
    let of = |trigger: &RowTrigger| match &trigger.assigns {
        Assigns::Anything => "*".to_owned(),
        Assigns::Columns(columns) => columns.join(","),
    };
    triggers.iter().map(of).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn what_row_triggers_assign_is_read_from_their_code() {
    let mut statements = "set check_function_bodies = off;".to_owned();
    for (at, (body, _)) in BODIES.iter().enumerate() {
        let body = body.replace('\'', "''");
        let _ = write!(
            statements,
            "create table t{at} (id int); create function f{at}() returns trigger language plpgsql as '{body}';
             create trigger t before insert on t{at} for each row execute function f{at}();"
        );
    }
    let catalog = catalog_of(&statements).await;
    for (at, (body, columns)) in BODIES.iter().enumerate() {
        assert_eq!(assigned(triggers(&catalog, &format!("t{at}"))), *columns, "{body}");
    }
}

#[tokio::test]
async fn only_triggers_that_can_change_a_row_count() {
    let catalog = catalog_of(
        "create function f() returns trigger language plpgsql as 'begin new.id := 1; return new; end';
         create table after (id int); create trigger t after insert on after for each row execute function f();
         create table statement (id int); create trigger t before insert on statement execute function f();
         create table deleted (id int); create trigger t before delete on deleted for each row execute function f();
         create table disabled (id int); create trigger t before insert on disabled for each row execute function f();
         alter table disabled disable trigger t;
         create table updated (id int); create trigger t before update of id on updated for each row execute function f();
         create table replica (id int); create trigger t before insert or update on replica for each row execute function f();
         alter table replica enable replica trigger t;
         create table part (id int) partition by list (id); create table part_1 partition of part for values in (1);
         create trigger t before insert on part for each row execute function f();
         create table words (id text, found tsvector);
         create trigger t before insert or update on words for each row
           execute function tsvector_update_trigger('found', 'pg_catalog.english', 'id');
         create table same (id int);
         create trigger t before update on same for each row execute function suppress_redundant_updates_trigger()",
    )
    .await;
    for name in ["after", "statement", "deleted", "disabled", "same"] {
        assert_eq!(triggers(&catalog, name), [], "{name}");
    }
    let trigger = |on_insert, on_update| {
        let assigns = Assigns::Columns(vec!["id".into()]);
        [RowTrigger { schema: "public".into(), function: "f".into(), on_insert, on_update, assigns }]
    };
    assert_eq!(triggers(&catalog, "updated"), trigger(false, true));
    assert_eq!(triggers(&catalog, "replica"), trigger(true, true));
    assert_eq!(triggers(&catalog, "part"), trigger(true, false));
    assert_eq!(triggers(&catalog, "part_1"), trigger(true, false), "of its parent");
    assert_eq!(assigned(triggers(&catalog, "words")), "found");
}
