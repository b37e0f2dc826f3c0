//! The console beside a real PgBouncer's, where one is installed: what its tools look for is there, under the same names.

use std::path::PathBuf;

use pgherd::commands::demo::servers::{Supervisor, free_port};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{shown, toml};
use crate::harness::{self, Database, Pgherd, ground};

/// A PgBouncer before that database, if there is one on this machine.
fn pgbouncer(database: &Database) -> Option<(Supervisor, u16)> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&folders).chain([PathBuf::from("/usr/sbin")]);
    let program = folders.map(|folder| folder.join("pgbouncer")).find(|path| path.exists())?;
    let (folder, port) = (ground().server_folder("pgbouncer").expect("a folder"), free_port().expect("a port"));
    let (users, config) = (folder.join("userlist.txt"), folder.join("pgbouncer.ini"));
    ground().write(&users, "\"postgres\" \"\"\n").expect("written");
    let text = format!(
        "[databases]\n{} = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = {}\nadmin_users = postgres\npool_mode = transaction\n\
         ignore_startup_parameters = extra_float_digits\n",
        database.name,
        database.port,
        users.display()
    );
    ground().write(&config, &text).expect("written");
    let command = [program.to_string_lossy(), config.to_string_lossy()];
    let mut process = Supervisor::new(ground(), &folder, &[&*command[0], &*command[1]], "KILL").expect("a supervisor");
    process.start(|_| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).expect("it answers");
    Some((process, port))
}

/// The columns of a SHOW, or `None` where there is no such topic.
async fn columns(console: &Client, command: &str) -> Option<Vec<String>> {
    let messages = console.simple_query(command).await.ok()?;
    messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::RowDescription(columns) => Some(columns.iter().map(|it| it.name().to_owned()).collect()),
        _ => None,
    })
}

const TOPICS: [&str; 13] = [
    "pools",
    "clients",
    "servers",
    "databases",
    "users",
    "stats",
    "stats_totals",
    "stats_averages",
    "totals",
    "lists",
    "config",
    "mem",
    "version",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_column_of_pgbouncers_is_there_in_its_order() {
    let database = harness::fresh_database().await;
    let Some((mut process, port)) = pgbouncer(&database) else {
        eprintln!("PgBouncer is not installed: nothing is compared");
        return;
    };
    let pgherd = Pgherd::start(&toml(&database, "", &["postgres"], "")).await;
    let conninfo =
        |port: u16, user: &str, database: &str| format!("host=127.0.0.1 port={port} user={user} dbname={database}");
    for (port, user) in [(port, "postgres"), (pgherd.port, "postgres")] {
        harness::connect(&conninfo(port, user, &database.name))
            .await
            .simple_query("select 1")
            .await
            .expect("an answer");
    }
    let theirs = harness::connect(&conninfo(port, "postgres", "pgbouncer")).await;
    let ours = harness::connect(&conninfo(pgherd.port, "boss", "pgbouncer")).await;
    let mut compared = 0;
    for topic in TOPICS {
        let command = format!("show {topic}");
        let Some(wanted) = columns(&theirs, &command).await else { continue };
        let all = columns(&ours, &command).await.unwrap_or_else(|| panic!("{command} has no columns"));
        let common: Vec<String> = all.iter().filter(|column| wanted.contains(column)).cloned().collect();
        assert_eq!(common, wanted, "{command}");
        compared += 1;
    }
    assert!(compared >= 11, "{compared} topics");
    // Where rows are named, those names are there too.
    for (command, column) in [("show lists", "list"), ("show totals", "name")] {
        let names = async |console: &Client| -> Vec<String> {
            shown(console, command).await.into_iter().map(|row| row[column].clone()).collect()
        };
        let here = names(&ours).await;
        for name in names(&theirs).await {
            assert!(here.contains(&name), "{command}: {name} in {here:?}");
        }
    }
    let in_both = async |console: &Client| shown(console, "show databases").await;
    let row = |rows: &[std::collections::BTreeMap<String, String>]| {
        rows.iter().find(|row| row["name"] == database.name).expect("the database").clone()
    };
    let (here, there) = (row(&in_both(&ours).await), row(&in_both(&theirs).await));
    for column in ["name", "host", "port", "database", "force_user", "pool_mode", "paused", "disabled"] {
        let there = if column == "pool_mode" { "transaction" } else { &there[column] };
        assert_eq!(here[column], there, "{column}");
    }
    process.stop("INT").expect("it ends");
}
