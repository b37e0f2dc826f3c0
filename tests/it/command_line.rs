//! The binary itself: exit codes, what it says, readiness, signals.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::harness::serving::{Serving, free_port, get};
use crate::harness::{self, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);

fn pgherd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(arguments: &[&str]) -> Output {
    pgherd().args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with a proxy.toml for one database.
fn folder(primary: &str, more: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    let toml = format!(
        "[pool]\nmin_connections = 0\nmax_connections = 3\n[[database]]\nname = \"app\"\nprimary = \"{primary}\"\n\
         [[user]]\nname = \"postgres\"\nauth = \"trust\"\n{more}"
    );
    std::fs::write(&path, toml).expect("a file");
    (folder, path)
}

fn path_of(path: &Path) -> &str {
    path.to_str().expect("a path")
}

#[test]
fn a_wrong_command_line_exits_with_2_and_a_wrong_file_with_1() {
    assert_eq!(output(&["frobnicate"]).status.code(), Some(2));
    let missing = output(&["-c", "/nonexistent/proxy.toml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("it cannot be read"), "{}", text(&missing.stderr));

    let (_folder, path) = folder("host=x", "[pol]\na = 1\n[telemetry]\notlp = \"x\"\n");
    for command in ["serve", "check"] {
        let refused = output(&[command, "-c", path_of(&path)]);
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused.stderr);
        assert!(said.contains("2 faults") && said.contains("did you mean \"pool\"?"), "{said}");
        assert!(said.contains("telemetry.otlp") && said.contains("not supported in this version"), "{said}");
    }
    let help = text(&output(&["--help"]).stdout);
    assert!(help.contains("serve") && help.contains("check") && help.contains("--config"), "{help}");
}

#[test]
fn a_port_that_is_taken_is_told_once_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let (_folder, path) = folder("host=127.0.0.1 port=1", &format!("[listen]\naddress = \"127.0.0.1:{port}\"\n"));
    let refused = output(&["serve", "-c", path_of(&path)]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert_eq!(said.matches("in use").count(), 1, "{said}");
    assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("listen.address"), "{said}");
}

#[test]
fn a_table_that_stands_there_twice_and_a_level_that_there_is_not_are_told_with_their_lines() {
    let more =
        "[listen]\naddress = \"127.0.0.1:0\"\n[telemetry]\nlog = \"verbose\"\n[listen]\nhttp = \"127.0.0.1:0\"\n";
    let (_folder, path) = folder("host=127.0.0.1 port=1", more);
    let written = std::fs::read_to_string(&path).expect("the file");
    let first = written.lines().position(|line| line == "[listen]").expect("a table") + 1;
    for command in ["serve", "check"] {
        let refused = output(&[command, "-c", path_of(&path)]);
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused.stderr);
        assert!(said.contains(&format!("line {}: [listen]", first + 4)), "{said}");
        assert!(said.contains(&format!("line {first} has it already")), "{said}");
        assert!(said.contains("\"verbose\" is no level") && said.contains("trace"), "{said}");
    }
}

#[tokio::test]
async fn check_exits_by_what_it_found() {
    let database = harness::fresh_database().await;
    let (_folder, path) = folder(&database.address(), "");
    let good = output(&["check", "-c", path_of(&path)]);
    assert_eq!(good.status.code(), Some(0), "{}{}", text(&good.stdout), text(&good.stderr));
    assert!(text(&good.stdout).contains("0 faults"));
    let (_folder, path) = folder("host=127.0.0.1 port=1", "");
    let bad = output(&["check", "-c", path_of(&path)]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stdout).contains("FAULT"), "{}", text(&bad.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_gets_ready_reloads_at_sighup_and_ends_at_sigterm() {
    let database = harness::fresh_database().await;
    let (port, http) = (free_port(), free_port());
    let listen =
        format!("[listen]\naddress = \"127.0.0.1:{port}\"\nhttp = \"127.0.0.1:{http}\"\n[cache]\nenabled = true\n");
    let (_folder, path) = folder(&database.address(), &listen);
    let mut serving = Serving::start(&path);
    wait_until(DEADLINE, "ready", || get(http, "/healthz/ready").starts_with("HTTP/1.1 200"));

    let client = harness::connect(&format!("host=127.0.0.1 port={port} user=postgres dbname=app")).await;
    client.simple_query("select 1").await.expect("an answer");
    let metrics = get(http, "/metrics");
    assert!(metrics.contains("pgherd_clients{database=\"app\",user=\"postgres\"} 1"), "{metrics}");

    assert!(metrics.contains("pgherd_cache_entries{cache=\"app\"}"), "{metrics}");

    serving.signal("-HUP");
    wait_until(DEADLINE, "a reload", || {
        get(http, "/metrics").contains("pgherd_config_reloads_total{result=\"applied\"} 1")
    });
    client.simple_query("select 1").await.expect("the client stays");

    let toml = std::fs::read_to_string(&path).expect("the file");
    std::fs::write(&path, format!("{toml}nonsense = 1\n")).expect("a file");
    serving.wait_for_log("nonsense");
    assert!(serving.log().contains("the configuration stays as it is"), "{}", serving.log());
    assert!(get(http, "/metrics").contains("pgherd_config_last_reload_successful 0"));

    drop(client);
    serving.signal("-TERM");
    assert_eq!(serving.ended(DEADLINE), Some(0), "{}", serving.log());
}
