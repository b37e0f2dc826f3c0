//! An answer belongs to whoever asked for it: role, privileges, search path, settings, formats.

use tokio_postgres::error::SqlState;

use super::stage::{From, Stage, rows};
use crate::harness::wire::{Message, bind, rows as wire_rows, tags};
use crate::harness::{fresh_database, unique};
use pgherd::wire::writer;

const SALES: &str = "create table sales (region text, amount numeric, at timestamptz, day date, took interval, share float8, raw bytea);
    insert into sales values ('north', 1.50, '2026-01-02 03:04:05Z', '2026-02-01', '1 day 2:03:04', 0.1::float8 + 0.2, '\\x00ff');";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_has_answers_of_its_own() {
    let (ann, bob) = (unique("ann"), unique("bob"));
    let sql = format!(
        "create role {ann} login; create role {bob} login; grant {bob} to {ann};
         create table notes (owner text, note text); grant select on notes to {ann}, {bob};
         insert into notes values ('{ann}', 'a'), ('{bob}', 'b');"
    );
    let stage = Stage::set(&sql, &[&ann, &bob]).await;
    let (as_ann, as_bob) = (stage.client(&ann).await, stage.client(&bob).await);
    for text in ["select note from notes where owner = current_user", "select count(*), current_role::text from notes"]
    {
        let (of_ann, of_bob) = (stage.cached(&as_ann, text).await, stage.cached(&as_bob, text).await);
        assert_ne!(of_ann, of_bob, "{text}");
        as_ann.batch_execute(&format!("set role {bob}")).await.expect("set role");
        // The login role is another still, so this is not bob's own answer, but it is the same.
        assert_eq!(stage.cached(&as_ann, text).await, of_bob, "{text}");
        as_ann.batch_execute("reset role").await.expect("reset role");
        assert_eq!(stage.ask(&as_ann, text).await, (of_ann, From::Cache), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_is_not_served_any_more() {
    let ann = unique("ann");
    let sql = format!(
        "create role {ann} login; create table secrets (a int, b int); insert into secrets values (1, 2); grant select on secrets to {ann};"
    );
    let stage = Stage::set(&sql, &[&ann]).await;
    let (admin, as_ann) = (stage.client("postgres").await, stage.client(&ann).await);
    let text = "select sum(b) from secrets";
    let refused = async || {
        let error = as_ann.simple_query(text).await.expect_err("revoked");
        // A schema that may not be used is not looked into.
        let refusals = [&SqlState::INSUFFICIENT_PRIVILEGE, &SqlState::UNDEFINED_TABLE];
        assert!(error.code().is_some_and(|code| refusals.contains(&code)), "{error:?}");
    };
    stage.cached(&as_ann, text).await;
    admin.batch_execute(&format!("revoke select on secrets from {ann}")).await.expect("revoke");
    refused().await;
    admin.batch_execute(&format!("grant select (a, b) on secrets to {ann}")).await.expect("grant");
    stage.cached(&as_ann, text).await;
    admin.batch_execute(&format!("revoke select (b) on secrets from {ann}")).await.expect("revoke");
    refused().await;
    admin
        .batch_execute(&format!(
            "create role {ann}_group; grant select on secrets to {ann}_group; grant {ann}_group to {ann}"
        ))
        .await
        .expect("grant");
    stage.cached(&as_ann, text).await;
    admin.batch_execute(&format!("revoke {ann}_group from {ann}")).await.expect("revoke");
    refused().await;
    admin.batch_execute(&format!("grant {ann}_group to {ann}")).await.expect("grant");
    stage.cached(&as_ann, text).await;
    admin.batch_execute("revoke usage on schema public from public").await.expect("revoke");
    refused().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_means_what_the_search_path_says() {
    let ann = unique("ann");
    let sql = format!(
        "create role {ann} login; create schema one; create schema two; create schema {ann};
         grant usage on schema one, two, {ann} to {ann};
         create table one.t (v text); insert into one.t values ('one');
         create table two.t (v text); insert into two.t values ('two');
         create table {ann}.t (v text); insert into {ann}.t values ('own');
         grant select on one.t, two.t, {ann}.t to {ann};"
    );
    let stage = Stage::set(&sql, &[&ann]).await;
    let client = stage.client(&ann).await;
    let read = async |path: &str| {
        client.batch_execute(&format!("set search_path to {path}")).await.expect("set");
        stage.cached(&client, "select max(v) from t").await[0][0].clone().expect("a value")
    };
    for _ in 0..2 {
        assert_eq!(read("one").await, "one");
        assert_eq!(read("two, one").await, "two");
        assert_eq!(read("\"$user\", one").await, "own");
        assert_eq!(read("nowhere, one").await, "one");
    }
    // A table that comes to stand in front.
    assert_eq!(read("public, one").await, "one");
    let admin = stage.client("postgres").await;
    admin
        .batch_execute(&format!("create table public.t as select 'public' as v; grant select on public.t to {ann}"))
        .await
        .expect("create");
    assert_eq!(read("public, one").await, "public");
    // SET LOCAL and set_config are seen too.
    client.batch_execute("set search_path to one").await.expect("set");
    client.batch_execute("begin; set local search_path to two").await.expect("begin");
    assert_eq!(rows(&client, "select max(v) from t").await[0][0].as_deref(), Some("two"));
    client.batch_execute("rollback").await.expect("rollback");
    assert_eq!(rows(&client, "select max(v) from t").await[0][0].as_deref(), Some("one"));
    client.simple_query("select set_config('search_path', 'two', false)").await.expect("set_config");
    assert_eq!(rows(&client, "select max(v) from t").await[0][0].as_deref(), Some("two"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_change_the_text_are_part_of_the_question() {
    let stage = Stage::set(SALES, &[]).await;
    let (client, direct) = (stage.client("postgres").await, stage.database.client().await);
    let text = "select max(at), max(day), max(took), max(share), min(raw), max(amount)::money, max(at)::text, \
                to_char(max(at), 'Day HH24 TZ'), max('01/02/2003'::date) from sales";
    let settings = [
        "timezone = 'Asia/Tokyo'",
        "timezone = 'UTC'",
        "datestyle = 'German'",
        "datestyle = 'ISO, DMY'",
        "datestyle = 'ISO, MDY'",
        "intervalstyle = 'iso_8601'",
        "extra_float_digits = 0",
        "bytea_output = 'escape'",
        "lc_monetary = 'C'",
        "standard_conforming_strings = off",
        "client_encoding = 'LATIN1'",
        "timezone = 'America/Phoenix'",
    ];
    // min() of bytea is younger than some servers: PostgreSQL decides.
    let text = if direct.simple_query(text).await.is_ok() {
        text.to_owned()
    } else {
        text.replace("min(raw)", "min(raw::text)")
    };
    for _ in 0..2 {
        for setting in settings {
            client.batch_execute(&format!("set {setting}")).await.expect("set");
            direct.batch_execute(&format!("set {setting}")).await.expect("set");
            assert_eq!(stage.cached(&client, &text).await, rows(&direct, &text).await, "{setting}");
        }
        client.batch_execute("reset all").await.expect("reset");
        direct.batch_execute("reset all").await.expect("reset");
        assert_eq!(stage.cached(&client, &text).await, rows(&direct, &text).await);
    }
}

/// Parse, Bind, Describe, Execute, Sync in one go.
async fn extended(stage: &Stage, text: &str, types: &[u32], values: &[Option<&str>], format: i16) -> Vec<Message> {
    let mut wire = stage.wire().await;
    wire.say(|out| {
        writer::parse(out, b"", text.as_bytes(), types);
        bind(out, "", "", values, format);
        writer::describe(out, b'P', b"");
        writer::execute(out, b"", 0);
        writer::sync(out);
    })
    .await;
    let messages = wire.until_ready().await;
    assert_eq!(tags(&messages), "12TDCZ", "{messages:?}");
    messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn formats_types_and_values_of_parameters_are_part_of_the_question() {
    let stage = Stage::set("create table t (a int4); insert into t values (1), (2), (3);", &[]).await;
    let text = "select sum(a) as total, pg_typeof($1)::text as kind from t where a::text <> $1::text";
    const INT4: u32 = 23;
    const TEXT: u32 = 25;
    for _ in 0..3 {
        let as_text = extended(&stage, text, &[TEXT], &[Some("1")], 0).await;
        assert_eq!(wire_rows(&as_text), [["5".to_owned(), "text".into()].map(Some)]);
        let other = extended(&stage, text, &[INT4], &[Some("1")], 0).await;
        assert_eq!(wire_rows(&other), [["5".to_owned(), "integer".into()].map(Some)]);
        let other = extended(&stage, text, &[TEXT], &[Some("2")], 0).await;
        assert_eq!(wire_rows(&other), [["4".to_owned(), "text".into()].map(Some)]);
        let none = extended(&stage, text, &[TEXT], &[None], 0).await;
        assert_eq!(wire_rows(&none), [[None, Some("text".to_owned())]]);
        let binary = extended(&stage, text, &[TEXT], &[Some("1")], 1).await;
        assert_eq!(binary[3].body[6..14], 5_i64.to_be_bytes(), "{binary:?}");
        assert_ne!(binary[2], as_text[2], "the row description names the format");
    }
    let stats = stage.fleet.stats(0);
    assert!(stats.memory_hits >= 10 && stats.fills >= 5, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_databases_of_one_name_for_a_table_share_nothing() {
    let (one, other) = (fresh_database().await, fresh_database().await);
    let first = Stage::with(one, "create table t as select 1 as a", &[], "").await;
    let second = Stage::with(other, "create table t as select 2 as a", &[], "").await;
    let (a, b) = (first.client("postgres").await, second.client("postgres").await);
    assert_eq!(first.cached(&a, "select sum(a) from t").await[0][0].as_deref(), Some("1"));
    assert_eq!(second.cached(&b, "select sum(a) from t").await[0][0].as_deref(), Some("2"));
}
