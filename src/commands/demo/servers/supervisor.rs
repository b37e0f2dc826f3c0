//! A program under a small shell that outlives us just long enough to stop it and to remove its folder.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{Ground, ServerError};

/// Reads words from standard input: `start`, or a signal's name. At the end of input, which our death brings about too, it sends the
/// last signal and removes the folder. The inner subshell reports the program's start and end; SIGPIPE must not cut the cleaning short.
const SCRIPT: &str = r#"
trap '' PIPE
dir=$1; last=$2; shift 2
job=
stop() {
  [ -n "$job" ] || return 0
  pid=$(cat "$dir/pid")
  kill -"$1" "$pid"
  turns=0
  while kill -0 "$pid" && [ $turns -lt 600 ]; do
    if [ $turns -lt 50 ]; then sleep 0.01; else sleep 0.05; fi
    turns=$((turns + 1))
  done
  kill -9 "$pid"
  wait "$job"
  job=
}
while read -r word; do
  case $word in
    start)
      stop "$last"
      ( "$@" </dev/null >>"$dir/log" 2>&1 & echo $! >"$dir/pid"; echo "started $!"; wait $!; echo "ended $?" ) &
      job=$! ;;
    *) stop "$word" ;;
  esac
done
stop "$last"
turns=0
while ls "$dir"/*/pid && [ $turns -lt 300 ]; do sleep 0.1; turns=$((turns + 1)); done
rm -rf "$dir" || { sleep 1; rm -rf "$dir"; }
"#;

/// How long starting and stopping may take: the script itself gives a stop half a minute before it kills.
const PATIENCE: Duration = Duration::from_secs(60);

/// One supervised folder, and the program that runs there now and then.
#[derive(Debug)]
pub struct Supervisor {
    folder: PathBuf,
    shell: Child,
    words: Option<ChildStdin>,
    reports: Receiver<Report>,
    pid: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Report {
    Started(u32),
    Ended(i32),
}

impl Supervisor {
    /// Takes charge of `folder` (which it will remove) and of `command`, which [`Self::start`] runs there as the ground's user.
    /// `last_signal` is what ends the program when we go.
    ///
    /// # Errors
    /// No shell could be started.
    pub fn new(ground: &Ground, folder: &Path, command: &[&str], last_signal: &str) -> Result<Self, ServerError> {
        Self::spawn(ground.command("/bin/sh"), folder, command, last_signal)
    }

    pub(super) fn spawn(
        mut sh: Command,
        folder: &Path,
        command: &[&str],
        last_signal: &str,
    ) -> Result<Self, ServerError> {
        // Its own process group: Ctrl-C at the terminal is for us alone, the shell hears of it by our end.
        sh.process_group(0).arg("-c").arg(SCRIPT).arg("pgherd-supervisor").arg(folder).arg(last_signal).args(command);
        sh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = sh.spawn().map_err(|error| ServerError::io("cannot start /bin/sh", &error))?;
        let words = shell.stdin.take();
        let (sender, reports) = channel();
        if let Some(stdout) = shell.stdout.take() {
            std::thread::spawn(move || {
                for report in BufReader::new(stdout).lines().map_while(Result::ok).filter_map(|line| report_of(&line)) {
                    if sender.send(report).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self { folder: folder.to_path_buf(), shell, words, reports, pid: None })
    }

    /// Runs the program and waits until `is_ready` says so.
    ///
    /// # Errors
    /// The program ended, or was not ready in time; the tail of its log is in the text.
    pub fn start(&mut self, mut is_ready: impl FnMut(u32) -> bool) -> Result<(), ServerError> {
        self.say("start")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.reports.recv_timeout(Duration::from_millis(10)) {
                Ok(Report::Started(pid)) => self.pid = Some(pid),
                // An end is of this start only if its beginning was seen; before that it is the end of the run before.
                Ok(Report::Ended(status)) if self.pid.is_some() => {
                    self.pid = None;
                    return Err(self.failure(&format!("ended at once with status {status}")));
                }
                Ok(Report::Ended(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure("lost its supervisor")),
            }
            if self.pid.is_some_and(&mut is_ready) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.failure("was not ready in time"));
            }
        }
    }

    /// Sends a signal such as `INT` that ends the program, and waits for its end. Nothing happens if it does not run.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn stop(&mut self, signal: &str) -> Result<(), ServerError> {
        if self.pid.is_none() {
            return Ok(());
        }
        self.say(signal)?;
        loop {
            match self.reports.recv_timeout(PATIENCE) {
                Ok(Report::Ended(_)) => {
                    self.pid = None;
                    return Ok(());
                }
                Ok(Report::Started(_)) => {}
                Err(_) => return Err(self.failure("did not end in time")),
            }
        }
    }

    /// The program's process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The file that the program's output goes to.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The last lines of the program's output.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn say(&mut self, word: &str) -> Result<(), ServerError> {
        let said = self.words.as_mut().map(|words| writeln!(words, "{word}").and_then(|()| words.flush()));
        match said {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(ServerError::io("the server's supervisor is gone", &error)),
            None => Err(ServerError("the server's supervisor is gone".to_owned())),
        }
    }

    fn failure(&self, what: &str) -> ServerError {
        ServerError(format!("the server in {} {what}; its log ends with:\n{}", self.folder.display(), self.log_tail()))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.words = None;
        // Waiting shows the caller a clean machine. The script bounds its own time, so that this ends.
        let _ = self.shell.wait();
    }
}

fn report_of(line: &str) -> Option<Report> {
    match line.split_once(' ')? {
        ("started", pid) => pid.parse().ok().map(Report::Started),
        ("ended", status) => status.parse().ok().map(Report::Ended),
        _ => None,
    }
}
