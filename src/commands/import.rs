//! `pgherd import pgbouncer.ini`: an equivalent proxy.toml, and a list of what has no equivalent.

mod ini;
mod write;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::config;

/// Arguments of `pgherd import`.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// PgBouncer's configuration file.
    pub file: PathBuf,
    /// Where to write; without it, to standard output. A file that is there already is not overwritten.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What came of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The text of a proxy.toml.
    pub toml: String,
    /// What of PgBouncer's file it does not carry over, and why.
    pub notes: Vec<String>,
}

/// Imports a file. Fails if it cannot be read, or if what came of it is not a configuration yet.
pub fn main(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("pgherd: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let imported = import(&arguments.file)?;
    match &arguments.output {
        Some(path) => {
            create(path, &imported.toml).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        }
        None => {
            let _ = io::stdout().lock().write_all(imported.toml.as_bytes());
        }
    }
    for note in &imported.notes {
        eprintln!("not carried over: {note}");
    }
    let base = arguments.file.parent().unwrap_or(Path::new(".")).to_path_buf();
    let base = arguments.output.as_deref().and_then(Path::parent).map_or(base, Path::to_path_buf);
    let shown = arguments.output.clone().unwrap_or_else(|| "proxy.toml".into());
    config::parse(&imported.toml, &shown, &base, &|name| std::env::var(name).ok())
        .map(|_| ())
        .map_err(|faults| format!("some of it must be completed by hand first: {faults}"))
}

/// It may hold passwords: for its owner's eyes only.
fn create(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

/// Reads PgBouncer's file and its auth_file.
///
/// # Errors
/// One of them cannot be read.
pub fn import(path: &Path) -> Result<Imported, String> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
    };
    let mut file = ini::File::read(&read(path)?);
    let users = match file.take("pgbouncer", "auth_file").filter(|name| !name.is_empty()) {
        None => Vec::new(),
        Some(name) => {
            // PgBouncer takes it from its working directory; the folder of its file is the best guess.
            let beside = path.parent().unwrap_or(Path::new(".")).join(&name);
            ini::userlist(&read(if beside.exists() { &beside } else { Path::new(&name) })?)
        }
    };
    Ok(write::toml(file, &users))
}

/// [`import`] of texts: PgBouncer's file, and its auth_file wherever that is said to be.
pub fn translate(file: &str, auth_file: &str) -> Imported {
    let mut file = ini::File::read(file);
    file.take("pgbouncer", "auth_file");
    write::toml(file, &ini::userlist(auth_file))
}
