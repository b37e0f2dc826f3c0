//! A transcript as it lies in `tests/transcripts`, read; the format is told in that folder's README.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::step::Step;

/// Where and with which servers something holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scope {
    modes: Vec<String>,
    servers: Option<RangeInclusive<u32>>,
}

/// One file.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) path: PathBuf,
    /// The folder and the file's name, without its ending.
    pub(super) name: String,
    pub(super) scope: Scope,
    pub(super) steps: Vec<Step>,
}

impl Scope {
    pub(super) fn holds(&self, mode: &str, server: u32) -> bool {
        (self.modes.is_empty() || self.modes.iter().any(|it| it == mode))
            && self.servers.as_ref().is_none_or(|range| range.contains(&server))
    }

    /// Reads `%modes transaction cache` or `%servers 13-17`; false if it is neither.
    pub(super) fn read(&mut self, line: &str) -> bool {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "%modes" => self.modes = rest.split_whitespace().map(str::to_owned).collect(),
            "%servers" => {
                let (from, to) = rest.trim().split_once('-').expect("%servers FROM-TO");
                let from = from.parse().expect("a major version");
                self.servers = Some(from..=if to.is_empty() { u32::MAX } else { to.parse().expect("a major version") });
            }
            _ => return false,
        }
        true
    }
}

/// Every transcript, by name; `PGHERD_TEST_TRANSCRIPTS` takes those only whose name holds that word.
pub(super) fn all() -> Vec<Script> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let wanted = std::env::var("PGHERD_TEST_TRANSCRIPTS").unwrap_or_default();
    let mut files: Vec<PathBuf> =
        entries(&folder).into_iter().filter(|path| path.is_dir()).flat_map(|it| entries(&it)).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "txt"));
    files.sort();
    let scripts = files.into_iter().map(|path| read(&folder, path));
    scripts.filter(|script| script.name.contains(&wanted)).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

fn read(folder: &Path, path: PathBuf) -> Script {
    let name = path.with_extension("").strip_prefix(folder).expect("below").to_string_lossy().into_owned();
    let text = std::fs::read_to_string(&path).expect("a transcript");
    assert!(text.starts_with("# "), "{name} does not begin with what it tells");
    let (mut scope, mut steps) = (Scope::default(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') || scope.read(line) {
            continue;
        }
        let step = Step::read(line).unwrap_or_else(|why| panic!("{name}.txt, line {number}: {why}"));
        steps.push(step);
    }
    Script { path, name, scope, steps }
}
