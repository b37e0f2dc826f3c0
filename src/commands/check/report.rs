//! What `check` found, as a list that people read.

use std::fmt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not well, or could not be told.
    Warning,
    /// pgherd would not work, or not be right.
    Fault,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Where: `database app, shard 1`.
    pub place: String,
    /// What was found.
    pub text: String,
    /// What to do; empty where nothing is to be done.
    pub help: String,
}

/// All findings, in the order in which they were made.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Notes what is as it should be.
    pub fn ok(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.add(Level::Ok, place, text, "");
    }

    /// Notes what is unwise or could not be told.
    pub fn warning(&mut self, place: impl Into<String>, text: impl Into<String>, help: impl Into<String>) {
        self.add(Level::Warning, place, text, help);
    }

    /// Notes what is wrong.
    pub fn fault(&mut self, place: impl Into<String>, text: impl Into<String>, help: impl Into<String>) {
        self.add(Level::Fault, place, text, help);
    }

    /// Takes over another report's findings.
    pub fn extend(&mut self, other: Self) {
        self.findings.extend(other.findings);
    }

    /// How many findings are of a level.
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    fn add(&mut self, level: Level, place: impl Into<String>, text: impl Into<String>, help: impl Into<String>) {
        self.findings.push(Finding { level, place: place.into(), text: text.into(), help: help.into() });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = "";
        for finding in &self.findings {
            if finding.place != place {
                place = &finding.place;
                writeln!(f, "{place}")?;
            }
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Fault => "FAULT",
            };
            writeln!(f, "  {level:<8} {}", finding.text.replace('\n', "\n           "))?;
            if !finding.help.is_empty() {
                writeln!(f, "           -> {}", finding.help.replace('\n', "\n              "))?;
            }
        }
        let (faults, warnings) = (self.count(Level::Fault), self.count(Level::Warning));
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        write!(f, "{faults} fault{}, {warnings} warning{}", plural(faults), plural(warnings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_stand_below_their_place_with_what_to_do() {
        let mut report = Report::default();
        report.ok("database app, primary", "PostgreSQL 15");
        report.fault("database app, primary", "it is in recovery", "name the primary");
        report.warning("redis", "slow", "");
        assert_eq!(
            report.to_string(),
            "database app, primary\n  ok       PostgreSQL 15\n  FAULT    it is in recovery\n           -> name the primary\n\
             redis\n  warning  slow\n1 fault, 1 warning"
        );
    }
}
