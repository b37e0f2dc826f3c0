//! pg_dump and pg_restore through the port: the database that comes out is the one that went in, and nothing of the two stays behind.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::{Database, fresh_database, ground};
use crate::relay::proxy::Proxy;

const PATIENCE: Duration = Duration::from_secs(60);
/// Something of everything that a dump has its own way with.
const SCHEMA: &str = r#"
create schema "Odd ""one";
create type mood as enum ('sad', 'ok', 'happy'); create domain positive as int check (value > 0);
create table people (id int generated always as identity primary key, name text not null, mood mood default 'ok',
  n positive, b bytea, at timestamptz, f float8);
create table "Odd ""one"."Table" (id int references people on delete cascade, "Name" text collate "C", primary key (id, "Name"));
create table parts (k int, v text) partition by hash (k);
create table parts_0 partition of parts for values with (modulus 2, remainder 0);
create table parts_1 partition of parts for values with (modulus 2, remainder 1);
create sequence numbers start 100 increment 7; select nextval('numbers');
create view adults as select id, name from people where mood > 'sad';
create materialized view counted as select count(*) from people;
create function touched() returns trigger language plpgsql as $$ begin new.name := coalesce(new.name, 'nobody'); return new; end $$;
create trigger touched before insert on people for each row execute function touched();
create rule quiet as on delete to parts do also select 1; create index on people (lower(name)) where id > 3;
alter table people enable row level security; create policy own on people using (name = current_user);
comment on table people is 'Who there is, in "quotes" and ''others'''; create statistics both_of on id, n from people;
insert into people (name, n, b, at, f) select 'n' || i || E'\t\\\n\'"', i, decode('00ff', 'hex'),
  '2024-02-29 12:00:00.123456+05', i / 3.0::float8 from generate_series(1, 500) i;
insert into "Odd ""one"."Table" select id, 'x' || id from people;
insert into parts select i, repeat('v', i) from generate_series(1, 300) i;
refresh materialized view counted; select lo_from_bytea(4711, 'large'); comment on large object 4711 is 'an object';
"#;

async fn run(program: &str, folder: &Path, port: u16, arguments: &[&str]) -> String {
    let mut command = Command::new(ground().binaries().postgres_program(program));
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()]).args(arguments);
    command.current_dir(folder).env("LC_ALL", "C.UTF-8").kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").expect("it ran");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All of a database as SQL, straight from its server. The key of `\restrict` is a new one each time.
async fn whole(folder: &Path, database: &Database) -> String {
    let text = run("pg_dump", folder, database.port, &["-d", &database.name]).await;
    let lines = text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.map(|line| format!("{line}\n")).collect()
}

async fn dumped_and_restored(pool: &str, dump: &[&str], restore: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Proxy::start(pool).await;
    source.database.execute(SCHEMA).await;
    let target = Proxy::before(fresh_database().await, pool).await;
    let (from, to) = (source.database.name.clone(), target.database.name.clone());
    run("pg_dump", folder.path(), source.port, &[dump, &["-f", "dump", "-d", &from]].concat()).await;
    run("pg_restore", folder.path(), target.port, &[restore, &["-d", &to, "--exit-on-error", "dump"]].concat()).await;
    let (wanted, got) = (whole(folder.path(), &source.database).await, whole(folder.path(), &target.database).await);
    assert!(wanted.contains("an object") && wanted.len() > 20_000, "{} bytes", wanted.len());
    let differs = wanted.lines().zip(got.lines()).find(|(wanted, got)| wanted != got);
    assert!(wanted == got, "{differs:?}");
    source.examine().await;
    target.examine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_at_a_time() {
    dumped_and_restored("max_connections = 2", &["-Fc"], &[]).await;
}

/// The workers read one snapshot that the first of them has exported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_workers_at_once() {
    dumped_and_restored("max_connections = 6", &["-Fd", "-j", "3"], &["-j", "3"]).await;
}
