//! psql through pgherd shows what it shows on PostgreSQL: the same script goes to both, and both answers are equal.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

use crate::harness::{Database, Pgherd, eventually, fresh_database, ground};

const PATIENCE: Duration = Duration::from_secs(60);

async fn scene() -> (Database, Pgherd) {
    let database = fresh_database().await;
    let tables = "create table people (id int primary key, name text not null, born date);
                  create index people_name on people (name);
                  create view adults as select * from people where born < '2008-01-01';
                  create table houses (id int primary key, owner int references people);
                  create function twice(int) returns int language sql immutable return $1 * 2;
                  insert into people values (1, 'Ann', '1990-05-06'), (2, 'Bob', null), (3, 'Žofie', '2015-01-01');";
    database.execute(tables).await;
    let pgherd = Pgherd::over(&database, "[cache]\nenabled = true").await;
    (database, pgherd)
}

fn psql(port: u16, database: &Database) -> Command {
    let mut command = Command::new(ground().binaries().postgres_program("psql"));
    command.args(["-X", "-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string(), "-d", &database.name]);
    command.env("PGCONNECT_TIMEOUT", "20").env("LC_ALL", "C.UTF-8").env("PAGER", "cat").current_dir(ground().folder());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Everything that psql printed for a script, errors in their places.
async fn printed(port: u16, database: &Database, script: &str) -> String {
    let mut child = psql(port, database).arg("-f").arg("-").spawn().expect("psql");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(format!("\\o /dev/stdout\n{script}\n").as_bytes()).await.expect("script");
    drop(stdin);
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("psql ends").expect("psql ran");
    format!("{}---\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn same_on_both(script: &str) {
    let (database, pgherd) = scene().await;
    let straight = printed(database.port, &database, script).await;
    // Again on the same data: a story that writes cleans up behind itself.
    let through = printed(pgherd.port, &database, script).await;
    assert_eq!(through, straight, "for the script:\n{script}");
    assert!(straight.len() > 20, "{straight}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn describes() {
    same_on_both("\\d\n\\d people\n\\d+ adults\n\\dt *.*\n\\di\n\\df\n\\dn\n\\du postgres\n\\dx\n\\sf twice\n\\sv adults\n\\l template*\n\\dp\n\\z people").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_and_transactions() {
    let script = "select nonsense from people;\nselect 1/0;\nselect * frm people;\n\\errverbose\nbegin;\ninsert into people values (4, 'Dan');\n\
                  insert into people values (4, 'Dan');\nselect 1;\ncommit;\nselect count(*) from people;\n\\set ON_ERROR_ROLLBACK on\nbegin;\n\
                  insert into people values (5, 'Eve');\nselect nonsense;\nselect name from people where id = 5;\nrollback;\n\
                  select 1 as a; select 2 as b\\; select 3 as c;\n\\gdesc\nselect 7 as seven \\gset\n\\echo :seven\n\
                  select $$a$$ as \"Ünïcode\", null, true, 1.50, now() is null \\gx\ndo 'begin raise notice ''seen %'', 1; end';";
    same_on_both(script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_prepared_statements_and_cursors() {
    let script = "set timezone to 'Asia/Tokyo';\nshow timezone;\nselect timestamptz '2026-01-01 00:00Z';\nset datestyle to german;\n\
                  select born from people order by id;\nreset all;\nprepare p(int) as select name from people where id = $1;\nexecute p(1);\n\
                  execute p(3);\ndeallocate p;\nexecute p(1);\nbegin;\ndeclare c cursor for select id from people order by id;\nfetch 2 from c;\n\
                  move c;\nfetch c;\nclose c;\nend;\ncreate temp table t (a int);\ninsert into t values (1), (2);\nselect sum(a) from t;\n\
                  \\set FETCH_COUNT 1\nselect id, name from people order by id;\n\\encoding LATIN1\nselect 'é';\n";
    same_on_both(script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies() {
    let script = "\\copy people to 'people.out'\n\\copy (select id, name from people order by id) to stdout csv header\n\
                  create temp table again (like people);\n\\copy again from 'people.out'\nselect count(*), max(name) from again;\n\
                  copy again (id, name) from stdin;\n9\tNine\n\\.\nselect * from again where id = 9;\n\
                  copy again (id, name) from stdin;\nnot a number\tx\n\\.\nselect count(*) from again;\n\\copy nowhere from 'people.out'\n";
    same_on_both(script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_cancels_the_query_and_ends_a_watch() {
    let (database, pgherd) = scene().await;
    for port in [database.port, pgherd.port] {
        // A psql that reads a script ends when it is interrupted: one for each.
        let (mut child, mut lines, mut errors) =
            talk(port, &database, "select 'sleeping';\nselect pg_sleep(60);\n").await;
        wait_for_line(&mut lines, "sleeping").await;
        let straight = database.client().await;
        let sleeps = "select 1 from pg_stat_activity where datname = current_database() and state = 'active'
                         and query like 'select pg_sleep%'";
        eventually(PATIENCE, "the query runs", async || !straight.query(sleeps, &[]).await.expect("query").is_empty())
            .await;
        interrupt(&child).await;
        wait_for_line(&mut errors, "canceling statement due to user request").await;
        timeout(PATIENCE, child.wait()).await.expect("psql ends").expect("psql ran");
        eventually(PATIENCE, "the query ends", async || straight.query(sleeps, &[]).await.expect("query").is_empty())
            .await;

        let (mut child, mut lines, _errors) = talk(port, &database, "select 'watched' \\watch 0.1\n").await;
        wait_for_line(&mut lines, "watched").await;
        wait_for_line(&mut lines, "watched").await;
        interrupt(&child).await;
        timeout(PATIENCE, child.wait()).await.expect("psql ends").expect("psql ran");
    }
}

type Reader<R> = Lines<BufReader<R>>;

/// A psql that has been told something and still listens.
async fn talk(port: u16, database: &Database, script: &str) -> (Child, Reader<ChildStdout>, Reader<ChildStderr>) {
    let mut child = psql(port, database).arg("-At").spawn().expect("psql");
    child.stdin.as_mut().expect("piped").write_all(script.as_bytes()).await.expect("script");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let errors = BufReader::new(child.stderr.take().expect("piped")).lines();
    (child, lines, errors)
}

async fn wait_for_line<R: tokio::io::AsyncBufRead + Unpin>(lines: &mut Lines<R>, wanted: &str) {
    let found = async {
        while let Some(line) = lines.next_line().await.expect("a line") {
            if line.contains(wanted) {
                return;
            }
        }
        panic!("psql ended before it said {wanted:?}");
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("psql did not say {wanted:?}"));
}

async fn interrupt(child: &Child) {
    let pid = child.id().expect("running").to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.expect("kill").success());
}
