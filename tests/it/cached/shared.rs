//! `cache.share_roles`: who may read the same is given the same answer, and nobody else.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::stage::{From, Stage, rows};
use crate::harness::{fresh_database, unique};

struct Roles {
    ann: String,
    bob: String,
    eve: String,
}

/// Two roles that may read `notes`, and one that may not.
async fn scene(sql: &str) -> (Stage, Roles) {
    let [ann, bob, eve] = ["ann", "bob", "eve"].map(unique);
    let database = fresh_database().await;
    let sql = format!(
        "create role {ann} login; create role {bob} login; create role {eve} login;
         create table notes (owner text, note text); grant select on notes to {ann}, {bob};
         insert into notes values ('{ann}', 'a'), ('{bob}', 'b'); {}",
        sql.replace("ANN", &ann).replace("BOB", &bob).replace("EVE", &eve)
    );
    let stage = Stage::with(database, &sql, &[&ann, &bob, &eve], "olap_only = false\nshare_roles = true").await;
    (stage, Roles { ann, bob, eve })
}

async fn refused(client: &Client, text: &str, code: &SqlState) {
    let error = client.simple_query(text).await.expect_err(text);
    assert_eq!(error.code(), Some(code), "{text}: {error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_read_the_same_shares_it_and_nobody_else() {
    let (stage, Roles { ann, bob, eve }) = scene("create table other (a int)").await;
    let (as_ann, as_bob, as_eve) = (stage.client(&ann).await, stage.client(&bob).await, stage.client(&eve).await);
    let text = "select count(*), max(note) from notes";
    let truth = stage.cached(&as_ann, text).await;
    assert_eq!(stage.ask(&as_bob, text).await, (truth.clone(), From::Cache));
    // By SET ROLE, too.
    let admin = stage.client("postgres").await;
    admin.batch_execute(&format!("set role {bob}")).await.expect("set role");
    assert_eq!(stage.ask(&admin, text).await, (truth.clone(), From::Cache));
    admin.batch_execute("reset role").await.expect("reset");
    refused(&as_eve, text, &SqlState::INSUFFICIENT_PRIVILEGE).await;
    assert!(stage.fleet.stats(0).shared_lookups > 0);

    // Some columns are not the table: she has an answer of her own.
    admin.batch_execute(&format!("grant select (note) on notes to {eve}")).await.expect("grant");
    let by_column = "select max(note) from notes";
    stage.cached(&as_ann, by_column).await;
    assert_ne!(stage.ask(&as_eve, by_column).await.1, From::Cache);

    // What is granted counts from then on, and what is revoked does not.
    admin.batch_execute(&format!("grant select on notes to {eve}")).await.expect("grant");
    stage.cached(&as_ann, text).await;
    assert_eq!(stage.cached(&as_eve, text).await, truth);
    admin.batch_execute(&format!("revoke select on notes from {bob}")).await.expect("revoke");
    refused(&as_bob, text, &SqlState::INSUFFICIENT_PRIVILEGE).await;
    stage.cached(&as_ann, text).await;
    refused(&as_bob, text, &SqlState::INSUFFICIENT_PRIVILEGE).await;
    admin.batch_execute(&format!("grant {ann} to {bob}")).await.expect("grant");
    stage.cached(&as_ann, text).await;
    assert_eq!(stage.cached(&as_bob, text).await, truth);

    // The schema counts, and what PostgreSQL lets everybody call.
    admin
        .batch_execute(&format!("revoke usage on schema public from public; grant usage on schema public to {ann}"))
        .await
        .expect("revoke");
    stage.cached(&as_ann, text).await;
    refused(&as_eve, text, &SqlState::UNDEFINED_TABLE).await;
    admin
        .batch_execute("grant usage on schema public to public; revoke execute on function upper(text) from public")
        .await
        .expect("revoke");
    let shouted = "select max(upper(note)) from notes";
    admin.batch_execute(&format!("grant execute on function upper(text) to {ann}")).await.expect("grant");
    let of_ann = stage.cached(&as_ann, shouted).await;
    refused(&as_eve, shouted, &SqlState::INSUFFICIENT_PRIVILEGE).await;
    admin.batch_execute("grant execute on function upper(text) to public").await.expect("grant");
    assert_eq!(stage.cached(&as_eve, shouted).await, of_ann);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_depends_on_who_asks_is_not_shared() {
    let (stage, Roles { ann, bob, .. }) = scene(
        "create function whose() returns text language sql immutable as $$ select current_user::text $$;
         create view mine with (security_invoker) as select note from notes;
         create view loud with (security_invoker = 'TRUE') as select note from notes; grant select on loud to ANN, BOB;
         create schema private; grant usage on schema private to ANN; create table private.secret (a int);
         create table named (tbl regclass, note text); insert into named values ('private.secret', 'x'); grant select on named to ANN, BOB;
         create view over_mine as select note from mine; grant select on mine, over_mine to ANN, BOB;
         create view all_notes as select * from notes; grant select on all_notes to ANN, BOB;
         create table own (owner text, note text); insert into own select * from notes;
         alter table own enable row level security; create policy p on own using (owner = current_user);
         grant select on own to ANN, BOB;
         create schema ANN; create schema BOB; grant usage on schema ANN to ANN; grant usage on schema BOB to BOB;
         create table ANN.t as select 'of ann' as v; create table BOB.t as select 'of bob' as v;
         grant select on ANN.t to ANN; grant select on BOB.t to BOB; create type mood as enum ('good', 'bad')",
    )
    .await;
    let (as_ann, as_bob) = (stage.client(&ann).await, stage.client(&bob).await);
    let direct = async |role: &str, text: &str| {
        let client = stage.database.client().await;
        client.batch_execute(&format!("set session authorization {role}")).await.expect("as that role");
        rows(&client, text).await
    };
    for text in [
        "select note from notes where owner = current_user",
        "select note from notes where owner = current_role::text or owner = user",
        "select note from notes where owner = pg_catalog.\"current_user\"()::text",
        "select note from notes where owner = whose()",
        "select max(note) from mine",
        "select max(note) from over_mine",
        "select max(note) from loud",
        "select max(note), count(*) from own",
        "select 'good'::mood::text, count(*) from notes",
        "select max(note collate \"C\") from notes",
    ] {
        let truth = [direct(&ann, text).await, direct(&bob, text).await];
        let mut answers = Vec::new();
        for client in [&as_ann, &as_bob] {
            let before = stage.fleet.stats(0).shared_lookups;
            answers.push(rows(client, text).await);
            answers.push(rows(client, text).await);
            assert_eq!(stage.fleet.stats(0).shared_lookups, before, "{text}");
        }
        assert_eq!(answers, [truth[0].clone(), truth[0].clone(), truth[1].clone(), truth[1].clone()], "{text}");
    }
    // Whoever may not look into the schema may not ask by its names.
    let by_name = "select max(note) from named where coalesce(tbl, 'private.secret') is not null";
    stage.cached(&as_ann, by_name).await;
    refused(&as_bob, by_name, &SqlState::INSUFFICIENT_PRIVILEGE).await;
    // The same path means something else to each.
    let by_path = "select max(v) from t";
    assert_eq!(stage.cached(&as_ann, by_path).await, direct(&ann, by_path).await);
    assert_eq!(stage.cached(&as_bob, by_path).await, direct(&bob, by_path).await);
    // A view with its owner's rights is shared.
    let through_a_view = "select count(*) from all_notes";
    for client in [&as_ann, &as_bob] {
        client.batch_execute("set search_path = public").await.expect("set");
    }
    let truth = stage.cached(&as_ann, through_a_view).await;
    assert_eq!(stage.ask(&as_bob, through_a_view).await, (truth, From::Cache));
    let told = rows(&as_ann, &format!("explain (route) {through_a_view}")).await;
    let shared = told.iter().find(|row| row[0].as_deref() == Some("shared by")).expect("it is told");
    assert_eq!(shared[1].as_deref(), Some("roles that may read it"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_a_role_make_answers_of_its_own() {
    let (stage, Roles { ann, bob, .. }) = scene("alter role BOB set timezone = 'Asia/Tokyo'").await;
    let (as_ann, as_bob) = (stage.client(&ann).await, stage.client(&bob).await);
    let text = "select max('2026-01-01 00:00:00Z'::timestamptz::text) from notes";
    let (of_ann, of_bob) = (stage.cached(&as_ann, text).await, stage.cached(&as_bob, text).await);
    assert_ne!(of_ann, of_bob);
    // The same setting from the session itself is another question, with the same answer.
    as_ann.batch_execute("set timezone = 'Asia/Tokyo'").await.expect("set");
    assert_eq!(stage.cached(&as_ann, text).await, of_bob);
}

/// Whoever asks what a role may read asks PostgreSQL's own functions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_can_answer_for_postgresql() {
    let (stage, Roles { ann, eve, .. }) = scene(
        "create schema lies authorization EVE; grant usage on schema lies to public;
         create function lies.has_table_privilege(name, oid, text) returns bool language sql as 'select true';
         create function lies.has_schema_privilege(name, oid, text) returns bool language sql as 'select true';
         grant all on schema lies to EVE",
    )
    .await;
    let (as_ann, as_eve) = (stage.client(&ann).await, stage.client(&eve).await);
    let text = "select max(note) from public.notes";
    as_eve.batch_execute("set search_path = lies, pg_catalog, public").await.expect("set");
    as_ann.batch_execute("set search_path = lies, pg_catalog, public").await.expect("set");
    stage.cached(&as_ann, text).await;
    for _ in 0..3 {
        refused(&as_eve, text, &SqlState::INSUFFICIENT_PRIVILEGE).await;
    }
}

/// `pg_database_owner` has the database's owner for its member, which no row of `pg_auth_members` says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_the_database_may_change() {
    let (stage, Roles { ann, bob, .. }) =
        scene("create table of_owner as select 1 as a; grant select on of_owner to pg_database_owner, ANN").await;
    let (admin, name) = (stage.client("postgres").await, &stage.database.name);
    admin.batch_execute(&format!("alter database {name} owner to {bob}")).await.expect("alter");
    let (as_ann, as_bob) = (stage.client(&ann).await, stage.client(&bob).await);
    let text = "select sum(a) from of_owner";
    let truth = stage.cached(&as_ann, text).await;
    assert_eq!(stage.cached(&as_bob, text).await, truth);
    admin.batch_execute(&format!("alter database {name} owner to postgres")).await.expect("alter");
    stage.cached(&as_ann, text).await;
    refused(&as_bob, text, &SqlState::INSUFFICIENT_PRIVILEGE).await;
}
