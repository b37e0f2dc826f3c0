//! The binary as a process of its own, for stories about signals, ends and upgrades.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::wait_until;

/// How long it may take to say something.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running pgherd, killed if the story ends before it does.
pub struct Serving {
    child: Child,
    log: PathBuf,
}

impl Serving {
    /// Starts it from that file; its log stands beside it.
    pub fn start(path: &Path) -> Self {
        Self::start_with(path, &[])
    }

    /// The same with more in its environment.
    pub fn start_with(path: &Path, environment: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let log = path.with_file_name(format!("log.{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let file = std::fs::File::create(&log).expect("a log");
        // A soak may want another build than its own, an optimized one.
        let binary = std::env::var_os("PGHERD_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_pgherd").into());
        let mut command = Command::new(binary);
        command.envs(environment.iter().copied());
        command.arg("-c").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Self { child: command.spawn().expect("the binary runs"), log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal, as `-TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits until it has said that.
    pub fn wait_for_log(&self, part: &str) {
        wait_until(DEADLINE, part, || self.log().contains(part));
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits until it has ended; its exit code, or `None` if a signal ended it.
    pub fn ended(&mut self, deadline: Duration) -> Option<i32> {
        wait_until(deadline, "the end", || !self.is_running());
        self.child.wait().expect("a child").code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody has now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// What is answered to a GET; empty where nobody answers.
pub fn get(port: u16, path: &str) -> String {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let _ = write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer);
    answer
}
