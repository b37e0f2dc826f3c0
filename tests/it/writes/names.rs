//! DDL concerns the table that PostgreSQL would take its name for: one of the shards, or another that happens to be called so.

use super::stage::{Stage, ok, say};
use crate::harness;

/// Whether a server has a relation.
async fn has(database: &harness::Database, relation: &str) -> bool {
    let sql = format!("select to_regclass('{relation}') is not null");
    database.client().await.query_one(&sql, &[]).await.expect("read").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_the_primary_may_be_called_like_one_of_the_shards_in_another_schema() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "create schema archive").await;
    for (sql, tag) in [
        ("create table archive.accounts (id int4 primary key, owner text)", "CREATE TABLE"),
        ("alter table archive.accounts add column closed date", "ALTER TABLE"),
        ("comment on table archive.accounts is 'of the primary'", "COMMENT"),
        ("create index on archive.accounts (owner)", "CREATE INDEX"),
        ("grant select on archive.accounts to public", "GRANT"),
        ("insert into archive.accounts values (1, 'ann', null)", "INSERT 0 1"),
        ("vacuum archive.accounts", "VACUUM"),
        ("alter table archive.accounts enable row level security", "ALTER TABLE"),
        ("create materialized view archive.owners as select owner from archive.accounts", "SELECT 1"),
        ("alter table archive.accounts rename to entries", "ALTER TABLE"),
        ("drop table archive.entries cascade", "DROP TABLE"),
    ] {
        assert_eq!(ok(&mut client, sql).await, tag, "{sql}");
    }
    for shard in &stage.shards {
        assert!(has(shard, "public.accounts").await && has(shard, "public.entries").await);
        let sql =
            "select count(*) from pg_attribute where attrelid = 'public.accounts'::regclass and attname = 'closed'";
        assert_eq!(shard.client().await.query_one(sql, &[]).await.expect("read").get::<_, i64>(0), 0);
    }
    // The path says which is meant, where it leaves no doubt.
    ok(&mut client, "set search_path = archive").await;
    assert_eq!(ok(&mut client, "create table accounts (id int4)").await, "CREATE TABLE");
    assert_eq!(ok(&mut client, "alter table accounts alter column id set statistics 7").await, "ALTER TABLE");
    assert_eq!(ok(&mut client, "comment on table accounts is 'archived'").await, "COMMENT");
    assert!(has(&stage.primary, "archive.accounts").await && !has(&stage.primary, "public.accounts").await);
    ok(&mut client, "set search_path = public").await;
    assert_eq!(ok(&mut client, "alter table accounts add column note text").await, "ALTER TABLE");
    for shard in &stage.shards {
        let sql = "select count(*) from pg_attribute where attrelid = 'public.accounts'::regclass and attname = 'note'";
        assert_eq!(shard.client().await.query_one(sql, &[]).await.expect("read").get::<_, i64>(0), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_a_sequence_or_a_view_lies_where_its_table_does_and_no_namesake_of_the_primary_is_taken_for_it() {
    let stage = Stage::set(2).await;
    for shard in &stage.shards {
        shard.execute("create view rich as select id from accounts where balance > 1000").await;
    }
    // As a table leaves them behind that has been renamed.
    let namesakes = "create table kept (id int4, note text); create index entries_note on kept (note);
                     create view poor as select id from kept; create sequence ids";
    stage.primary.execute(namesakes).await;
    let pgherd = stage.pgherd().await;
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "create index entries_note on entries (note)").await;
    ok(&mut client, "create index entries_amount on entries (amount)").await;
    let refused = [
        "alter index accounts_pkey rename to accounts_key",
        "alter index public.accounts_pkey set (fillfactor = 50)",
        "alter sequence entries_id_seq increment by 2",
        "drop sequence entries_id_seq",
        "alter view rich rename to wealthy",
        "comment on view rich is 'of the shards'",
        "alter index entries_note rename to entries_notes",
        "drop index entries_note",
        "alter table entries_note rename to entries_notes",
        "reindex index entries_note",
    ];
    for sql in refused {
        assert_eq!(say(&mut client, sql).await.code(), Some("0A000"), "{sql}");
    }
    for database in stage.shards.iter().chain([&stage.primary]) {
        assert!(has(database, "public.entries_note").await);
    }
    for (sql, tag) in [
        ("reindex index entries_amount", "REINDEX"),
        ("drop index entries_amount", "DROP INDEX"),
        ("alter view poor rename to poorer", "ALTER VIEW"),
        ("alter sequence ids increment by 2", "ALTER SEQUENCE"),
        ("comment on view poorer is 'rich'", "COMMENT"),
        ("drop sequence ids", "DROP SEQUENCE"),
    ] {
        assert_eq!(ok(&mut client, sql).await, tag, "{sql}");
    }
    for shard in &stage.shards {
        assert!(!has(shard, "public.entries_amount").await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_name_may_be_that_of_a_table_of_the_shards_it_is_refused() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let mut client = pgherd.wire("app").await;
    ok(&mut client, "create schema archive").await;
    ok(&mut client, "create table archive.accounts (id int4)").await;
    ok(&mut client, "create table archive.others (id int4)").await;
    for sql in [
        "comment on table accounts is 'whose?'",
        "comment on table public.accounts is 'of the shards'",
        "alter table public.local_notes rename to accounts",
        "alter table archive.accounts set schema public",
        "create table copied (like public.accounts)",
        "create trigger t before insert on accounts for each row execute function f()",
        "lock table accounts",
        "select 1; comment on table accounts is 'x'",
    ] {
        assert_eq!(say(&mut client, sql).await.code(), Some("0A000"), "{sql}");
    }
    // The first of the path that the role may use is meant, which pgherd does not know.
    ok(&mut client, "set search_path = archive, public").await;
    // It is refused until the catalog shows what was made a moment ago, and never a table of the shards is taken for it.
    for sql in ["alter table accounts add x int", "truncate accounts", "drop table accounts"] {
        let answer = say(&mut client, sql).await;
        assert!(matches!(answer.code(), None | Some("0A000")), "{sql}: {answer:?}");
    }
    for shard in &stage.shards {
        let sql = "select count(*), count(*) filter (where to_jsonb(a) ? 'x') from public.accounts a";
        let row = shard.client().await.query_one(sql, &[]).await.expect("it is there");
        assert!(row.get::<_, i64>(0) > 0 && row.get::<_, i64>(1) == 0, "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_materialized_view_over_the_shards_is_refused_with_what_helps() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let mut client = pgherd.wire("app").await;
    let sql = "create materialized view rich as select owner, balance from accounts where balance > 10";
    let refused = client.query(sql).await;
    let error = refused.iter().find(|message| message.tag == b'E').expect("refused");
    assert_eq!(error.field(b'C').as_deref(), Some("0A000"));
    let (message, hint) = (error.field(b'M').unwrap_or_default(), error.field(b'H').unwrap_or_default());
    assert!(message.contains("materialized view over public.accounts"), "{message}");
    assert!(hint.contains("CREATE TABLE ... AS"), "{hint}");
    // What the hint says works.
    let tag = ok(&mut client, "create table rich as select owner, balance from accounts where balance > 10").await;
    assert_eq!(tag, "SELECT 40");
    assert!(has(&stage.primary, "public.rich").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_a_transaction_makes_is_written_once_it_is_committed() {
    let fresh = "[[database.table]]\nname = \"public.fresh\"\nshard_key = \"id\"\nmethod = \"hash\"\n";
    let stage = Stage::over(harness::fresh_databases(2).await, fresh).await;
    let pgherd = stage.pgherd().await;
    let mut client = pgherd.wire("app").await;
    for sql in ["insert into fresh values (1)", "select count(*) from public.fresh"] {
        ok(&mut client, "begin").await;
        ok(&mut client, "create table fresh (id int4 primary key)").await;
        ok(&mut client, "create index on fresh (id)").await;
        assert_eq!(say(&mut client, sql).await.code(), Some("0A000"), "{sql}");
        assert_eq!(ok(&mut client, "commit").await, "ROLLBACK");
        assert!(!has(&stage.shards[0], "public.fresh").await);
    }
    ok(&mut client, "begin").await;
    ok(&mut client, "create table fresh (id int4 primary key)").await;
    assert_eq!(ok(&mut client, "commit").await, "COMMIT");
    assert_eq!(ok(&mut client, "insert into fresh select id from accounts").await, "INSERT 0 40");
    stage.is_clean().await;
}
