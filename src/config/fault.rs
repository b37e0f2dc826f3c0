//! What is wrong with a TOML file: every fault with its key path, line, the value seen and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong, or (in [`Loaded::warnings`](super::Loaded)) one that is only unwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key's path, `database[1].table[0].method`; empty for the file as a whole.
    pub path: String,
    /// The line in the file, from 1; `None` for the file as a whole.
    pub line: Option<usize>,
    /// The value as it was typed, shortened; never that of a secret.
    pub seen: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub help: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.path.is_empty()) {
            (Some(line), false) => write!(f, "line {line}: {}", self.path)?,
            (Some(line), true) => write!(f, "line {line}")?,
            (None, false) => write!(f, "{}", self.path)?,
            (None, true) => write!(f, "the file")?,
        }
        if let Some(seen) = &self.seen {
            write!(f, " = {seen}")?;
        }
        write!(f, "\n    {}", self.problem)?;
        if !self.help.is_empty() {
            write!(f, "\n    -> {}", self.help)?;
        }
        Ok(())
    }
}

/// Every fault of one file, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// The file.
    pub file: PathBuf,
    /// At least one fault.
    pub faults: Vec<Fault>,
}

impl Faults {
    /// Orders the faults by line and drops what was said twice.
    pub(crate) fn new(file: &Path, mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|a, b| (a.line, &a.path).cmp(&(b.line, &b.path)));
        faults.dedup();
        Self { file: file.to_path_buf(), faults }
    }

    /// A fault of the file as a whole.
    pub(crate) fn of_file(file: &Path, problem: impl Into<String>, help: impl Into<String>) -> Self {
        let fault = Fault { path: String::new(), line: None, seen: None, problem: problem.into(), help: help.into() };
        Self { file: file.to_path_buf(), faults: vec![fault] }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.faults.len();
        write!(f, "{}: {count} fault{}", self.file.display(), if count == 1 { "" } else { "s" })?;
        for fault in &self.faults {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
