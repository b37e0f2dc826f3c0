//! DEFAULT as a value, and columns whose type brings one: all rows get what one PostgreSQL would give them, and every copy the same.

use super::stage::{Stage, ok, say};
use crate::harness::wire::WireClient;
use crate::harness::{self, Pgherd};

const TABLES: &str = "
create domain stamped as uuid default gen_random_uuid();
create domain seconds as stamped;
create domain counted as int4 default 5;
create domain plain as int4;
create table copies (id int4 primary key, u uuid default gen_random_uuid(), s timestamptz default now(), d stamped, n int4 default 7,
  c counted, g text generated always as (u::text) stored);
insert into copies select g, md5(g::text)::uuid, '2026-01-01', md5(g::text)::uuid, g from generate_series(1, 4) g;
create table times (k int4, at timestamptz default now(), n int4 default 3, u uuid default gen_random_uuid());
";

struct Scene {
    stage: Stage,
    _pgherd: Pgherd,
    client: WireClient,
}

impl Scene {
    async fn set() -> Self {
        let shards = harness::fresh_databases(2).await;
        for shard in &shards {
            shard.execute(TABLES).await;
        }
        let tables = "[[database.table]]\nname = \"public.copies\"\nreference = true\n\
                      [[database.table]]\nname = \"public.times\"\nshard_key = \"k\"\nmethod = \"hash\"\n";
        let stage =
            Stage::over(shards, &format!("two_phase = {{ user = \"decider\", lock_timeout = \"2s\" }}\n{tables}"))
                .await;
        let pgherd = stage.pgherd().await;
        let mut client = pgherd.wire("app").await;
        ok(&mut client, "insert into times (k, at) values (1, '2026-01-01'), (2, '2026-01-01'), (3, '2026-01-01'), (4, '2026-01-01')")
            .await;
        Self { stage, _pgherd: pgherd, client }
    }

    async fn refuses(&mut self, statements: &[&str]) {
        for sql in statements {
            let refused = say(&mut self.client, sql).await;
            assert_eq!((refused.code(), refused.status), (Some("0A000"), 'I'), "{sql}: {:?}", refused.error);
        }
    }

    async fn does(&mut self, statements: &[&str]) {
        for sql in statements {
            ok(&mut self.client, sql).await;
        }
    }

    /// Every shard's copies are alike, and more than none.
    async fn copies_are_alike(&self) {
        let mut all = Vec::new();
        for shard in &self.stage.shards {
            let sql = "select coalesce(string_agg(copies::text, ';' order by id), '') from copies";
            all.push(shard.client().await.query_one(sql, &[]).await.expect("copies").get::<_, String>(0));
        }
        assert!(!all[0].is_empty());
        assert_eq!(all[0], all[1]);
    }
}

#[tokio::test]
async fn default_as_a_value_never_makes_copies_differ() {
    let mut scene = Scene::set().await;
    scene
        .refuses(&[
            "update copies set u = default",
            "update copies set u = (DEFAULT)",
            "update copies set s = default where id = 1",
            "update copies set d = default",
            "update copies set (u, s) = (default, default)",
            "update copies set (n, u) = (1, default)",
            "update copies set (n, u) = row(1, default)",
            "insert into copies (id, u, s, d) values (1, null, null, null) on conflict (id) do update set u = default",
            "insert into copies (id, u, s, d) values (9, (default), null, null)",
            "insert into copies (id, u, s, d) select id, u, s, d from copies on conflict (id) do update set s = default",
            "insert into copies (id, u, s, d) select k, null, null, null from times on conflict (id) do update set s = default",
            "merge into copies c using rates r on c.n = r.rate when matched then update set u = default",
            "merge into copies c using rates r on c.n = r.rate when matched then update set (n, s) = (1, default)",
        ])
        .await;
    scene.copies_are_alike().await;
    scene
        .does(&[
            "update copies set n = default, c = default",
            "update copies set (n, c) = (default, (default)) where id = 2",
            "update copies set u = md5('x')::uuid, g = default",
            "insert into copies (id, u, s, d) values (2, null, null, null) on conflict (id) do update set n = default, u = excluded.u",
            "insert into copies (id, u, s, d) values (12, null, now(), null)",
        ])
        .await;
    scene.copies_are_alike().await;
    let told = say(&mut scene.client, "select id, n, c from copies order by id").await;
    assert_eq!(told.rows.len(), 5, "{told:?}");
    scene.stage.is_clean().await;
}

#[tokio::test]
async fn a_default_that_is_one_for_all_rows_is_one_or_refused() {
    let mut scene = Scene::set().await;
    scene
        .refuses(&[
            "update times set at = default",
            "update times set (n, at) = (default, default)",
            "update times set at = default where n > 0 returning k",
            "insert into times (k, n, at) select k, n, at from times on conflict do update set at = default",
            "merge into times t using times s on t.k = s.k when matched then update set at = default",
            "merge into times t using times s on t.k = s.k when not matched then insert (k, at) values (s.k, default)",
        ])
        .await;
    scene.does(&["update times set n = default, u = default", "update times set at = default where k = 1"]).await;
    let times = say(&mut scene.client, "select count(distinct u) from times").await;
    assert_eq!(times.rows, [[Some(b"4".to_vec())]], "each row has its own random default");
    scene.does(&["update times set at = now()"]).await;
    let times = say(&mut scene.client, "select count(distinct at) from times").await;
    assert_eq!(times.rows, [[Some(b"1".to_vec())]]);
    scene.stage.is_clean().await;
}

#[tokio::test]
async fn a_new_column_is_filled_alike_on_every_shard() {
    let mut scene = Scene::set().await;
    scene
        .refuses(&[
            "alter table copies add column q stamped",
            "alter table copies add column q public.stamped not null",
            "alter table copies add column q seconds",
            "alter table copies add column q information_schema.time_stamp",
            "alter table copies add column q int4 generated always as identity",
            "alter table copies add column q int4 generated by default as identity (start 5)",
            "alter table copies add column q bigserial",
            "alter table copies add column q uuid default gen_random_uuid()",
            "alter table copies add column q no_such_type",
            "alter table times add column q stamped",
            "alter table copies alter column n type text using random()::text",
            "alter table copies alter column n add generated always as identity",
        ])
        .await;
    scene
        .does(&[
            "alter table copies add column a stamped default null",
            "alter table copies add column b counted",
            "alter table copies add column e plain, add column f stamped[]",
            "alter table copies add column h int4 generated always as (n * 2) stored",
            "alter table copies add column i varchar(10) default 'x', add column j double precision",
            "alter table copies alter column b type int8",
        ])
        .await;
    scene.copies_are_alike().await;
    let told = say(&mut scene.client, "select count(*) from copies where b = 5 and a is null").await;
    assert_eq!(told.rows, [[Some(b"4".to_vec())]], "every row has the constant");
    scene.stage.is_clean().await;
}
