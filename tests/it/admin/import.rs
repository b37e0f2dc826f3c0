//! `pgherd import`: what it writes is a configuration that `pgherd check` accepts, and what it cannot carry over it names.

use std::process::Command;

use crate::harness;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_file_passes_check_and_names_what_it_lacks() {
    let database = harness::fresh_database().await;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (name, port) = (&database.name, database.port);
    std::fs::write(at("users.txt"), "\"postgres\" \"se${cret\"\n\"old\" \"md5d41d8cd98f00b204e9800998ecf8427e\"\n")
        .expect("written");
    let ini = format!(
        "; a comment\n[databases]\napp = host=127.0.0.1 port={port} dbname={name} pool_size=7 max_db_connections=8 connect_query='select 1'\n* = host=x\n\
         [users]\npostgres = max_user_client_connections=50 max_user_connections=9\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = 6499\nauth_type = scram-sha-256\nauth_file = users.txt\n\
         pool_mode = transaction\nmax_client_conn = 300\nmax_db_client_connections = 60\nquery_wait_timeout = 2.5\nserver_idle_timeout = 0\n\
         admin_users = postgres, boss\nserver_reset_query = DISCARD ALL\nlogfile = /x\n"
    );
    std::fs::write(at("pgbouncer.ini"), ini).expect("written");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pgherd")).args(arguments).output().expect("the binary runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (ini, toml) = (at("pgbouncer.ini"), at("proxy.toml"));
    let (ini, toml) = (ini.to_str().expect("a path"), toml.to_str().expect("a path"));
    let (worked, _, said) = run(&["import", ini, "--output", toml]);
    assert!(worked, "{said}");
    for lacking in ["connect_query", "database *", "user old", "no user boss", "server_reset_query", "logfile"] {
        assert!(said.contains(lacking), "{lacking} in {said}");
    }
    let config = pgherd::config::load(std::path::Path::new(toml)).unwrap_or_else(|faults| panic!("{faults}"));
    let app = &config.databases["app"];
    assert_eq!((config.listen.address.port(), config.listen.max_clients, app.pool.max_connections), (6499, 300, 7));
    assert_eq!(app.pool.acquire_timeout, std::time::Duration::from_millis(2500));
    assert_eq!((app.pool.idle_timeout, config.users["postgres"].max_clients), (None, Some(50)));
    assert_eq!(config.users["postgres"].password.as_ref().map(|secret| secret.expose()), Some("se${cret"));
    assert_eq!((app.pool.max_database_connections, app.max_clients), (Some(8), Some(60)));
    assert_eq!(config.users["postgres"].max_server_connections, Some(9));
    assert_eq!(config.admin.users, ["postgres"]);
    let (accepted, out, err) = run(&["check", "--config", toml]);
    assert!(accepted, "{out}{err}");
    let (again, _, said) = run(&["import", ini, "--output", toml]);
    assert!(!again && said.contains("cannot be written"), "{said}");
}
