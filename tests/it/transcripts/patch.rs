//! Known differences: a reviewed patch from PostgreSQL's trace to pgherd's, with the reason, beside the transcript.

use std::path::Path;

use super::play::Trace;
use super::script::Scope;

/// One difference: where it holds, why, and what it looks like.
#[derive(Debug, Default)]
pub(super) struct Patch {
    scope: Scope,
    reason: String,
    lines: Vec<String>,
}

/// The differences that are known of a transcript.
pub(super) fn known(script: &Path) -> Vec<Patch> {
    let Ok(text) = std::fs::read_to_string(script.with_extension("patch")) else { return Vec::new() };
    let mut patches: Vec<Patch> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let begins = line.starts_with('#') || line.starts_with('%');
        if patches.last().is_none_or(|last| begins && !last.lines.is_empty()) {
            patches.push(Patch::default());
        }
        let patch = patches.last_mut().expect("one was pushed");
        match line.strip_prefix('#') {
            Some(reason) => patch.reason += reason,
            None if patch.scope.read(line) => {}
            None => patch.lines.push(line.to_owned()),
        }
    }
    for patch in &patches {
        assert!(
            patch.reason.trim().len() > 20 && !patch.lines.is_empty(),
            "{}: a patch tells its reason",
            script.display()
        );
    }
    patches
}

/// What is known to differ in that mode before a server of that version.
pub(super) fn wanted<'a>(patches: &'a [Patch], mode: &str, server: u32) -> &'a [String] {
    patches.iter().find(|patch| patch.scope.holds(mode, server)).map(|patch| patch.lines.as_slice()).unwrap_or_default()
}

/// The lines that differ, each with `-` for PostgreSQL's and `+` for pgherd's; what is equal is left out.
pub(super) fn difference(postgres: &Trace, pgherd: &Trace) -> Vec<String> {
    // lengths[i][j]: the longest common subsequence of what is left behind i and j.
    let (rows, columns) = (postgres.len(), pgherd.len());
    let begin = postgres.iter().zip(pgherd).take_while(|(a, b)| a == b).count();
    if begin == rows && begin == columns {
        return Vec::new();
    }
    let mut lengths = vec![vec![0_u32; columns + 1]; rows + 1];
    for i in (begin..rows).rev() {
        for j in (begin..columns).rev() {
            lengths[i][j] = if postgres[i] == pgherd[j] {
                lengths[i + 1][j + 1] + 1
            } else {
                lengths[i + 1][j].max(lengths[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (begin, begin, Vec::new());
    while i < rows || j < columns {
        if i < rows && j < columns && postgres[i] == pgherd[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == columns || (i < rows && lengths[i + 1][j] >= lengths[i][j + 1]) {
            lines.push(format!("-{}", postgres[i]));
            i += 1;
        } else {
            lines.push(format!("+{}", pgherd[j]));
            j += 1;
        }
    }
    lines
}

#[test]
fn a_difference_leaves_out_what_is_equal() {
    let trace = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
    let (postgres, pgherd) = (trace(&["one", "two", "three", "four"]), trace(&["one", "2", "three", "four", "five"]));
    assert_eq!(difference(&postgres, &pgherd), ["-two", "+2", "+five"]);
    assert!(difference(&postgres, &postgres).is_empty());
}
