//! Row-level security: an answer belongs to everybody for whom the policies show the same rows, and to nobody else.

use tokio_postgres::Client;

use super::stage::{From, Rows, Stage, rows};
use crate::harness::unique;

/// Rows of two tenants under a policy that reads a setting, and views over them.
fn scene(ann: &str, bob: &str) -> String {
    format!(
        "create role {ann} login; create role {bob} login;
         create table tenants (tenant text, n int); grant select, insert on tenants to {ann}, {bob};
         insert into tenants values ('a', 1), ('b', 2);
         create policy own on tenants using (tenant = current_setting('app.tenant', true));
         alter table tenants enable row level security;
         create view all_tenants as select * from tenants;
         create view owners_tenants as select * from tenants;
         alter view owners_tenants owner to {bob};
         grant select on all_tenants, owners_tenants to {ann};
         create table members (name text, n int); insert into members values ('{ann}', 1), ('{bob}', 2);
         grant select on members to {ann}, {bob};
         create table shared (n int); insert into shared values (1), (2), (3); grant select on shared to {ann}, {bob};
         create policy mine on shared using (exists (select from members m where m.n = shared.n and m.name = current_user));
         alter table shared enable row level security;
         create function tenant() returns text language sql stable as 'select current_setting(''app.tenant'', true)';
         create table by_code (tenant text, n int); grant select on by_code to {ann}; insert into by_code values ('a', 1);
         create policy own on by_code using (tenant = tenant()); alter table by_code enable row level security;
         create table by_clock (n int); grant select on by_clock to {ann}; insert into by_clock values (1);
         create policy own on by_clock using (current_date > '2020-01-01'); alter table by_clock enable row level security;
         create table by_state (n int); grant select on by_state to {ann}; insert into by_state values (1);
         create policy own on by_state using (current_setting('transaction_read_only') = 'off');
         alter table by_state enable row level security;
         create table later (n int); insert into later values (1); grant select on later to {ann};"
    )
}

fn one(rows: &Rows) -> Option<&str> {
    rows[0][0].as_deref()
}

async fn become_tenant(client: &Client, tenant: &str) {
    client.batch_execute(&format!("set app.tenant = '{tenant}'")).await.expect("set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tenant_has_answers_of_its_own() {
    let (ann, bob) = (unique("ann"), unique("bob"));
    let stage = Stage::set(&scene(&ann, &bob), &[&ann, &bob]).await;
    let (as_ann, as_bob) = (stage.client(&ann).await, stage.client(&bob).await);
    let text = "select sum(n) from tenants";
    for view in [text, "select sum(n) from all_tenants", "select sum(n) from owners_tenants"] {
        for (tenant, expected) in [("a", Some("1")), ("b", Some("2")), ("a", Some("1")), ("c", None)] {
            become_tenant(&as_ann, tenant).await;
            let truth = stage.database.client_as(&ann).await;
            become_tenant(&truth, tenant).await;
            let read = stage.cached(&as_ann, view).await;
            assert_eq!(read, rows(&truth, view).await, "{view} as {tenant}");
            if view == text {
                assert_eq!(one(&read), expected, "{tenant}");
            }
        }
    }
    // The superuser sees all, whoever asked before.
    assert_eq!(one(&stage.cached(&stage.client("postgres").await, text).await), Some("3"));
    // Who has no tenant sees nothing, and another role with the same tenant the same rows.
    assert_eq!(one(&stage.cached(&as_bob, text).await), None);
    become_tenant(&as_bob, "b").await;
    assert_eq!(one(&stage.cached(&as_bob, text).await), Some("2"));
    // A tenant's write is seen by that tenant, at once.
    as_bob.batch_execute("insert into tenants values ('b', 40)").await.expect("insert");
    assert_eq!(one(&rows(&as_bob, text).await), Some("42"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_for_one_transaction_only() {
    let (ann, bob) = (unique("ann"), unique("bob"));
    let stage = Stage::set(&scene(&ann, &bob), &[&ann, &bob]).await;
    let as_ann = stage.client(&ann).await;
    let text = "select sum(n) from tenants";
    become_tenant(&as_ann, "a").await;
    stage.cached(&as_ann, text).await;
    for (tenant, expected) in [("b", "2"), ("a", "1"), ("b", "2")] {
        for set in [
            format!("set local app.tenant = '{tenant}'"),
            format!("select set_config('app.tenant', '{tenant}', true)"),
            format!("select set_config('app.tenant', x, true) from (values ('{tenant}')) v (x)"),
        ] {
            as_ann.batch_execute("begin").await.expect("begin");
            as_ann.batch_execute(&set).await.expect("set");
            for _ in 0..2 {
                assert_eq!(one(&rows(&as_ann, text).await), Some(expected), "{set}");
            }
            as_ann.batch_execute("commit").await.expect("commit");
            assert_eq!(one(&rows(&as_ann, text).await), Some("1"), "after {set}");
        }
    }
    // Set by code that nobody sees through.
    as_ann.batch_execute("do 'begin perform set_config(''app.tenant'', ''b'', false); end'").await.expect("do");
    for _ in 0..3 {
        assert_eq!(one(&rows(&as_ann, text).await), Some("2"));
    }
    as_ann.batch_execute("reset app.tenant").await.expect("reset");
    assert_eq!(one(&rows(&as_ann, text).await), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_reads_another_table_follows_its_writes() {
    let (ann, bob) = (unique("ann"), unique("bob"));
    let stage = Stage::set(&scene(&ann, &bob), &[&ann, &bob]).await;
    let (as_ann, as_bob, admin) = (stage.client(&ann).await, stage.client(&bob).await, stage.client("postgres").await);
    let text = "select sum(n) from shared";
    assert_eq!(one(&stage.cached(&as_ann, text).await), Some("1"));
    assert_eq!(one(&stage.cached(&as_bob, text).await), Some("2"));
    admin.batch_execute(&format!("insert into members values ('{ann}', 3)")).await.expect("insert");
    assert_eq!(one(&rows(&as_ann, text).await), Some("4"));
    assert_eq!(one(&stage.cached(&as_bob, text).await), Some("2"));
    // Other policies, and none.
    stage.cached(&as_ann, text).await;
    admin.batch_execute("alter policy mine on shared using (n = 3)").await.expect("alter");
    assert_eq!(one(&rows(&as_ann, text).await), Some("3"));
    stage.cached(&as_ann, text).await;
    admin.batch_execute(&format!("alter role {ann} bypassrls")).await.expect("alter");
    assert_eq!(one(&rows(&as_ann, text).await), Some("6"));
    stage.cached(&as_ann, text).await;
    admin.batch_execute(&format!("alter role {ann} nobypassrls")).await.expect("alter");
    assert_eq!(one(&rows(&as_ann, text).await), Some("3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_that_depend_on_more_are_left_alone() {
    let (ann, bob) = (unique("ann"), unique("bob"));
    let stage = Stage::set(&scene(&ann, &bob), &[&ann, &bob]).await;
    let as_ann = stage.client(&ann).await;
    for table in ["by_code", "by_clock", "by_state"] {
        let text = format!("select sum(n) from {table}");
        assert_eq!(stage.why(&as_ann, &text).await, "primary: row-security", "{table}");
        rows(&as_ann, &text).await;
        assert_eq!(stage.ask(&as_ann, &text).await.1, From::Primary, "{table}");
    }
    // Switched on later, through pgherd.
    stage.cached(&as_ann, "select sum(n) from later").await;
    stage.client("postgres").await.batch_execute("alter table later enable row level security").await.expect("alter");
    assert_eq!(rows(&as_ann, "select sum(n) from later").await, [[None]]);
}
