//! What the console shows, to psql, to tools made for PgBouncer, and over the extended protocol.

use std::process::Stdio;

use super::{PATIENCE, code, pgherd_before, pool_of, row, row_with, scene, shown};
use crate::harness::wire::{WireClient, tags};
use crate::harness::{self, eventually, ground};
use pgherd::wire::writer;

async fn psql(port: u16, database: &str, command: &str) -> (bool, String, String) {
    let mut psql = tokio::process::Command::new(ground().binaries().postgres_program("psql"));
    psql.args([
        "-X",
        "-A",
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-p",
        &port.to_string(),
        "-d",
        database,
        "-c",
        command,
    ]);
    let output = psql.stdin(Stdio::null()).current_dir(ground().folder()).output().await.expect("psql runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_shows_pools_with_pgbouncers_columns_under_either_name() {
    let (database, pgherd, _console) = scene().await;
    let client = pgherd.client(&database.name).await;
    client.simple_query("select 1").await.expect("an answer");
    for console in ["pgherd", "pgbouncer"] {
        let (worked, out, err) = psql(pgherd.port, console, "SHOW POOLS").await;
        assert!(worked, "{err}");
        let mut lines = out.lines();
        assert_eq!(
            lines.next(),
            Some(
                "database|user|cl_active|cl_waiting|cl_active_cancel_req|cl_waiting_cancel_req|sv_active|sv_active_cancel|\
                 sv_being_canceled|sv_idle|sv_used|sv_tested|sv_login|maxwait|maxwait_us|pool_mode|load_balance_hosts"
            )
        );
        // A health check may hold a connection for a moment, or have opened another.
        let is_listed = async || {
            let (_, out, _) = psql(pgherd.port, console, "SHOW POOLS").await;
            let begin = format!("{}|postgres|1|0|0|0|0|0|0|", database.name);
            let rest = out.lines().find_map(|line| line.strip_prefix(&begin).map(str::to_owned));
            rest.is_some_and(|rest| !rest.starts_with('0') && rest.ends_with("|0|0|0|0|0|transaction|"))
        };
        eventually(PATIENCE, "the pool is listed", is_listed).await;
    }
    let (worked, _, help) = psql(pgherd.port, "pgherd", "SHOW HELP").await;
    assert!(worked && help.contains("NOTICE:  Console usage") && help.contains("RECONNECT [<db>]"), "{help}");
    let (worked, _, err) = psql(pgherd.port, "pgherd", "select 1").await;
    assert!(!worked && err.contains("invalid command 'select 1'") && err.contains("SHOW HELP"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_and_servers_are_shown_as_they_are() {
    let (database, pgherd, console) = scene().await;
    let name = &database.name;
    let conninfo = format!("{} application_name=teller", pgherd.conninfo("postgres", name));
    let client = harness::connect(&conninfo).await;
    let idle = row(&console, "show clients", "application_name", "teller").await;
    assert_eq!((idle["state"].as_str(), idle["type"].as_str(), idle["user"].as_str()), ("idle", "C", "postgres"));
    assert_eq!((idle["addr"].as_str(), idle["local_port"].as_str()), ("127.0.0.1", pgherd.port.to_string().as_str()));

    client.batch_execute("begin").await.expect("begun");
    let pid: i32 = client.query_one("select pg_backend_pid()", &[]).await.expect("a pid").get(0);
    let active = row_with(&console, "show clients", &[("application_name", "teller"), ("state", "active")]).await;
    let server = row_with(&console, "show servers", &[("remote_pid", &pid.to_string()), ("state", "active")]).await;
    assert_eq!((server["state"].as_str(), server["link"].as_str()), ("active", active["ptr"].as_str()));
    assert_eq!((active["link"].as_str(), server["database"].as_str()), (server["ptr"].as_str(), name.as_str()));
    client.batch_execute("commit").await.expect("committed");
    row_with(&console, "show servers", &[("remote_pid", &pid.to_string()), ("state", "idle")]).await;

    client.batch_execute("create temp table mine (a int)").await.expect("created");
    let pinned = row(&console, "show pins", "reasons", "temporary-object").await;
    assert_eq!(pinned["client"], active["id"]);
    client.batch_execute("listen here; notify here, 'x'").await.expect("listening");
    let listener = row(&console, "show listeners", "received", "1").await;
    assert_eq!((listener["clients"].as_str(), listener["channels"].as_str()), ("1", "1"));
    assert_eq!((&listener["database"], listener["delivered"].as_str()), (name, "1"));
    drop(client);
    let gone = async || shown(&console, "show clients").await.iter().all(|row| row["application_name"] != "teller");
    eventually(PATIENCE, "it is gone from the list", gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_server_is_counted_as_waiting() {
    let database = harness::fresh_database().await;
    let pgherd = pgherd_before(&database, "max_connections = 1").await;
    let console = pgherd.client("pgherd").await;
    let (holder, waiter) = (pgherd.client(&database.name).await, pgherd.client(&database.name).await);
    holder.batch_execute("begin; select 1").await.expect("begun");
    let waiting = tokio::spawn(async move { waiter.simple_query("select 2").await.map(|_| ()) });
    let counted = async || pool_of(&console, &database.name).await["cl_waiting"] == "1";
    eventually(PATIENCE, "somebody waits", counted).await;
    let pool = pool_of(&console, &database.name).await;
    assert_eq!((pool["cl_active"].as_str(), pool["sv_active"].as_str()), ("1", "1"));
    holder.batch_execute("commit").await.expect("committed");
    waiting.await.expect("joined").expect("served");
    let nobody = async || pool_of(&console, &database.name).await["cl_waiting"] == "0";
    eventually(PATIENCE, "nobody waits any more", nobody).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_are_what_was_done() {
    let (database, pgherd, console) = scene().await;
    let client = pgherd.client(&database.name).await;
    let before = row(&console, "show stats", "database", &database.name).await;
    for _ in 0..10 {
        client.simple_query("select 'a text of some bytes'").await.expect("an answer");
    }
    client.simple_query("select pg_sleep(0.05)").await.expect("an answer");
    let after = row(&console, "show stats", "database", &database.name).await;
    let grown = |name: &str| after[name].parse::<u64>().expect(name) - before[name].parse::<u64>().expect(name);
    assert_eq!((grown("total_query_count"), grown("total_xact_count")), (11, 11));
    assert!(grown("total_server_assignment_count") >= 11, "with those of health checks");
    assert!(grown("total_query_time") >= 50_000 && grown("total_xact_time") >= 50_000, "{after:?}");
    assert!(grown("total_received") > 300 && grown("total_sent") > 600, "{after:?}");
    let totals = row(&console, "show stats_totals", "database", &database.name).await;
    assert_eq!(totals["query_count"], after["total_query_count"]);
    let averages = row(&console, "show stats_averages", "database", &database.name).await;
    assert!(averages.contains_key("bytes_received") && after.contains_key("avg_recv"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_topic_answers_with_rows_of_its_columns() {
    let (database, pgherd, console) = scene().await;
    let client = pgherd.client(&database.name).await;
    client.query("select $1::int", &[&1]).await.expect("an answer");
    for (topic, wanted) in [
        ("databases", database.name.as_str()),
        ("users", "watcher"),
        ("lists", "used_clients"),
        ("config", "max_client_conn"),
        ("mem", "client_slots"),
        ("version", concat!("pgherd ", env!("CARGO_PKG_VERSION"))),
        ("shards", "primary"),
        ("statements", "select $1::int"),
        ("state", "active"),
        ("totals", "total_server_bytes"),
        ("stats_averages", database.name.as_str()),
    ] {
        let rows = shown(&console, &format!("SHOW {topic};")).await;
        assert!(rows.iter().any(|row| row.values().any(|value| value == wanted)), "{topic}: {rows:?}");
    }
    for topic in ["cache", "pins", "servers", "clients", "help"] {
        shown(&console, &format!("show {topic}")).await;
    }
    assert_eq!(row(&console, "show config", "key", "admin.users").await["value"], "postgres");
    let rows = shown(&console, "show lists; show version").await;
    assert!(rows.len() > 12, "two commands in one string");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_that_speak_the_extended_protocol_get_typed_values() {
    let (database, pgherd, console) = scene().await;
    let client = pgherd.client(&database.name).await;
    client.simple_query("select 1").await.expect("an answer");
    let asked = async || {
        let pools = console.query("SHOW POOLS", &[]).await.expect("pools");
        let is_it = |row: &tokio_postgres::Row| {
            row.get::<_, &str>("database") == database.name && row.get::<_, &str>("user") == "postgres"
        };
        pools.into_iter().find(is_it).expect("the pool")
    };
    eventually(PATIENCE, "the server connection is given back", async || {
        let pool = asked().await;
        (pool.get::<_, i32>("cl_active"), pool.get::<_, i32>("sv_idle")) == (1, 1)
    })
    .await;
    let pool = asked().await;
    assert_eq!(pool.get::<_, Option<&str>>("load_balance_hosts"), None);
    let statement = console.prepare("show databases").await.expect("prepared");
    assert_eq!(statement.columns().len(), 18);
    assert_eq!(console.query(&statement, &[]).await.expect("databases").len(), 2);
    console.execute("reconnect", &[]).await.expect("done");
    let error = console.query("select 1", &[]).await.expect_err("no command");
    assert_eq!(error.code().map(|code| code.code()), Some("42601"));
    assert!(console.query("show version", &[]).await.is_ok(), "the console lives on");

    let mut wire = WireClient::login(pgherd.port, "postgres", "pgherd").await;
    wire.say(|out| {
        writer::parse(out, b"", b"show lists", &[]);
        harness::wire::bind(out, "", "", &[], 0);
        writer::execute(out, b"", 5);
        writer::execute(out, b"", 0);
        writer::sync(out);
    })
    .await;
    assert_eq!(tags(&wire.until_ready().await), "12DDDDDsDDDDDDDCZ");
    wire.say(|out| writer::message(out, b'F', |out| out.extend_from_slice(&[0; 10]))).await;
    let refused = wire.until_ready().await;
    assert_eq!((tags(&refused).as_str(), refused[0].field(b'C').as_deref()), ("EZ", Some("0A000")));
    assert_eq!(tags(&wire.query("").await), "IZ");
    assert_eq!(tags(&wire.query("set extra_float_digits = 3").await), "CZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_who_are_named_get_in_and_only_administrators_do_more_than_look() {
    let (_database, pgherd, _console) = scene().await;
    let error = harness::try_connect(&pgherd.conninfo("guest", "pgherd")).await.map(|_| ()).expect_err("refused");
    let error = error.as_db_error().expect("an answer");
    assert_eq!(error.code().code(), "42501");
    assert!(error.hint().is_some_and(|hint| hint.contains("[admin]")), "{error:?}");
    let watcher = harness::connect(&pgherd.conninfo("watcher", "pgbouncer")).await;
    assert!(!shown(&watcher, "show databases").await.is_empty());
    for command in ["pause", "kill", "reload", "shutdown", "kill_client 1", "suspend"] {
        assert_eq!(code(&watcher, command).await, "42501", "{command}");
    }
    assert!(watcher.query("pause", &[]).await.is_err(), "nor over the extended protocol");
}
