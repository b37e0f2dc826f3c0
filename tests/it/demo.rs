//! `pgherd demo` as people run it: a process, its output, its end.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::harness::{ground, wait_until};

/// Starts the demo with a folder of its own for temporary files, so that what it leaves can be seen.
fn demo(arguments: &[&str], temporary: &std::path::Path) -> (Child, std::io::Lines<BufReader<ChildStdout>>) {
    std::fs::create_dir(temporary).expect("folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
    command.arg("demo").args(arguments).env("TMPDIR", temporary).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("pgherd");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    (child, lines)
}

/// A short folder: a Unix socket's path may not be long.
fn temporary(name: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    // The servers' user must be able to walk through.
    std::fs::set_permissions(ground().folder(), std::fs::Permissions::from_mode(0o711)).expect("permissions");
    ground().folder().join(name)
}

fn left_in(folder: &std::path::Path) -> usize {
    std::fs::read_dir(folder).expect("folder").count()
}

#[test]
fn the_tour_goes_as_it_must_and_leaves_nothing() {
    let folder = temporary("once");
    let (mut child, lines) = demo(&["--once", "--show-config"], &folder);
    let text: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().expect("ended");
    let text = text.join("\n");
    assert!(status.success(), "{text}");
    for told in ["[[database]]", "steps went as they must", "memory", "shard 0 + shard 1", "0A000", "hint"] {
        assert!(text.contains(told), "{told:?} is missing in:\n{text}");
    }
    let wide = text.lines().filter(|line| line.chars().count() > 100 && !line.contains("host=")).collect::<Vec<_>>();
    assert!(wide.is_empty(), "lines of more than 100 columns: {wide:#?}");
    assert_eq!(left_in(&folder), 0);
}

#[test]
fn without_redis_it_keeps_results_in_memory_and_says_so() {
    let folder = temporary("memory");
    std::fs::create_dir(&folder).expect("folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
    let output =
        command.args(["demo", "--once"]).env("TMPDIR", &folder).env("PGHERD_REDIS", "").output().expect("pgherd");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("Redis is not installed") && text.contains("memory"), "{text}");
    assert!(!text.contains("second pgherd"), "{text}");
}

#[test]
fn a_signal_ends_it_and_removes_the_data() {
    let folder = temporary("term");
    let (mut child, mut lines) = demo(&[], &folder);
    let up = lines.by_ref().map_while(Result::ok).any(|line| line.contains("psql \"host="));
    assert!(up, "the demo ended by itself");
    assert_eq!(left_in(&folder), 1);
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(child.wait().expect("ended").success(), "{rest:?}");
    wait_until(Duration::from_secs(20), "the data are removed", || left_in(&folder) == 0);
}
