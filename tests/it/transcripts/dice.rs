//! Random pipelines over shards: errors, names that are closed and taken again, transactions that fail. Each message comes as from one
//! PostgreSQL, up to where pgherd refuses.
//!
//! `PGHERD_SOAK_SECONDS=600` runs so long, `PGHERD_SOAK_SEED` repeats a run. Not in the quick tier: what it has found so far is mended and told by
//! the transcripts in `shards`, but it has not run clean for long yet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::play::{Before, Trace, play};
use super::spread::Spread;
use super::step::Step;

/// Scripts at least, however slow the machine.
const LEAST: usize = 60;

/// Statements and what is bound to them.
const STATEMENTS: [(&str, &str); 29] = [
    ("select count(*) from spread", ""),
    ("select k, v from spread order by k limit 3", ""),
    ("select sum(1 / (k - 50)) from spread", ""),
    ("select a.k, b.v from spread a join spread b on b.k = a.v order by 1, 2 limit 3", ""),
    ("select v from spread where k = 7", ""),
    ("select sum(1 / (k - 7)) from spread where k = 7", ""),
    ("select v from spread where k = $1", "7"),
    ("select count(*) from spread where k > $1", "20"),
    ("select count(*) from spread where d < '03/02/2026'", ""),
    ("select d from spread where d = '02/03/2026' and k = 33", ""),
    ("select k, nothing from spread", ""),
    ("insert into spread (k, v) values (901, 1)", ""),
    ("insert into spread (k, v) values (902, 1), (903, 2) returning k", ""),
    ("update spread set v = v + 1 where k > 900", ""),
    ("delete from spread where k > 900", ""),
    ("delete from spread where k = 901", ""),
    ("select count(*) from t", ""),
    ("select 1 / (a - 1) from t where a = 1", ""),
    ("insert into empty values (1)", ""),
    ("insert into spread (k, v, d) values ($1, 1, '02/03/2026')", "904"),
    ("update spread set v = v + 1 where k > 900 and d = '02/03/2026'", ""),
    ("select count(*) from empty", ""),
    ("select $1::int4 + 1", "5"),
    ("select $1::int4 + 1", "x"),
    ("select '02/03/2026'::date", ""),
    ("select 1", ""),
    ("select nothing", ""),
    ("selec 1", ""),
    ("", ""),
];

/// What changes the session or its transaction.
const CONTROLS: [&str; 19] = [
    "begin",
    "begin",
    "begin",
    "commit",
    "commit",
    "rollback",
    "rollback",
    "savepoint a",
    "rollback to a",
    "release a",
    "set datestyle to dmy",
    "set datestyle to mdy",
    "set local datestyle to dmy",
    "reset datestyle",
    "deallocate all",
    "deallocate s",
    "discard all",
    "set application_name to 'it'",
    "show datestyle",
];

/// A client's lines, in the words of a transcript.
struct Dice {
    random: StdRng,
    /// What is bound to the statement of that name, as far as anybody knows.
    bound: BTreeMap<&'static str, &'static str>,
    lines: Vec<String>,
}

impl Dice {
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        *choices.choose(&mut self.random).expect("a choice")
    }

    fn is(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    fn say(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    fn statement(&mut self) -> (&'static str, &'static str) {
        if self.is(22) { (self.of(&CONTROLS), "") } else { self.of(&STATEMENTS) }
    }

    /// Some flights, each with one ReadyForQuery.
    fn script(&mut self) -> Vec<String> {
        self.bound.clear();
        self.lines.clear();
        for _ in 0..self.random.random_range(2..8) {
            let together = if self.is(15) { self.random.random_range(2..4) } else { 1 };
            (0..together).for_each(|_| self.flight());
            self.say(format!("<{}", " Z".repeat(together)));
        }
        std::mem::take(&mut self.lines)
    }

    fn flight(&mut self) {
        if self.is(30) {
            let text = if self.is(60) { self.of(&CONTROLS) } else { self.of(&STATEMENTS).0 };
            return self.say(format!("Q {text}"));
        }
        for _ in 0..self.random.random_range(1..5) {
            self.execution();
        }
        self.say("S");
    }

    /// Parse, Bind, Describe, Execute: or some of these.
    fn execution(&mut self) {
        let (name, portal) = (self.of(&["", "s", "s", "u"]), self.of(&["", "", "p"]));
        if self.is(70) {
            if !name.is_empty() && self.is(60) {
                self.say(format!("CS {name}"));
            }
            let (text, values) = self.statement();
            self.bound.insert(name, values);
            self.say(format!("P {name} | {text}"));
        }
        if self.is(25) {
            self.say(format!("DS {name}"));
        }
        if self.is(88) {
            let values = self.bound.get(name).copied().unwrap_or_default();
            if !portal.is_empty() && self.is(50) {
                self.say(format!("CP {portal}"));
            }
            self.say(format!("B {portal} | {name} | {values}"));
        }
        if self.is(30) {
            self.say(format!("DP {portal}"));
        }
        if self.is(88) {
            let rows = if self.is(12) { 2 } else { 0 };
            self.say(format!("E {portal} | {rows}"));
        }
        match self.random.random_range(0..30) {
            0 => self.say(format!("CS {name}")),
            1 => self.say(format!("CP {portal}")),
            2 => self.say("H"),
            _ => {}
        }
    }
}

fn is_refusal(line: &str) -> bool {
    line.starts_with("E[") && line.contains("\\x00C0A000\\x00")
}

/// Of a statement that has a mistake, under a name that is taken, PostgreSQL tells the mistake and pgherd the name.
fn is_taken_first(wanted: Option<&String>, given: Option<&String>) -> bool {
    wanted.is_some_and(|line| line.starts_with("E[")) && given.is_some_and(|line| line.contains("\\x00C42P05\\x00"))
}

/// What is wrong with pgherd's trace.
fn fault(wanted: &Trace, given: &Trace) -> Option<String> {
    let refused = given.iter().zip(wanted).position(|(given, wanted)| is_refusal(given) && given != wanted);
    let end = refused.unwrap_or(wanted.len().max(given.len()));
    let at = (0..end).find(|&at| wanted.get(at) != given.get(at) && !is_taken_first(wanted.get(at), given.get(at)));
    if let Some(at) = at {
        return Some(format!("message {at} is {:?} instead of {:?}", given.get(at), wanted.get(at)));
    }
    let is_bad = |line: &&String| line.contains("\\x00CXX000\\x00") || ["silence", "closed"].contains(&line.as_str());
    given.iter().find(is_bad).map(|line| format!("{line} behind a refusal"))
}

struct Player {
    spread: Spread,
    straight: tokio_postgres::Client,
    behind: tokio_postgres::Client,
    refused: usize,
}

impl Player {
    async fn over(more: &str) -> Self {
        let spread = Spread::start(more).await;
        let straight = spread.straight.client().await;
        let behind = spread.behind().client().await;
        Self { spread, straight, behind, refused: 0 }
    }

    async fn plays(&mut self, lines: &[String]) -> Option<String> {
        let steps: Vec<Step> = lines.iter().map(|line| Step::read(line).expect("a step")).collect();
        let behind = self.spread.behind();
        let straight = Before { port: self.spread.straight.port, database: &self.spread.straight };
        let through = Before { port: behind.port, database: &behind };
        let ((wanted, _), (given, _)) = tokio::join!(play(straight, &steps), play(through, &steps));
        for client in [&self.straight, &self.behind] {
            client.batch_execute("delete from spread where k > 900").await.expect("cleared");
            client.batch_execute("delete from empty").await.expect("cleared");
        }
        self.refused += usize::from(given.iter().any(|line| is_refusal(line)));
        fault(&wanted, &given)
    }

    /// The shortest script found that still shows a fault.
    async fn shortened(&mut self, mut lines: Vec<String>) -> (Vec<String>, Option<String>) {
        let mut found = None;
        let mut at = lines.len();
        while at > 0 {
            at -= 1;
            let shorter = without(&lines, at);
            if shorter.len() < lines.len()
                && let Some(fault) = self.plays(&shorter).await
            {
                (lines, found) = (shorter, Some(fault));
                at = at.min(lines.len());
            }
        }
        (lines, found)
    }
}

/// The lines without that one; with a Sync or a Query the ReadyForQuery goes that it brings.
fn without(lines: &[String], at: usize) -> Vec<String> {
    let mut shorter = lines.to_vec();
    let line = shorter.remove(at);
    if line == "S" || line.starts_with("Q ") {
        let read = shorter[at..].iter().position(|line| line.starts_with('<')).expect("it is read") + at;
        let fewer = shorter[read].trim_end_matches(" Z").len() + shorter[read].matches(" Z").count() * 2 - 2;
        shorter[read].truncate(fewer);
    }
    if line.starts_with('<') {
        return lines.to_vec();
    }
    shorter
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_pipelines_over_shards_are_answered_as_by_one_postgresql() {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let Some(limit) = number("PGHERD_SOAK_SECONDS").map(Duration::from_secs) else { return };
    let seed = number("PGHERD_SOAK_SEED").unwrap_or_else(rand::random);
    let began = Instant::now();
    let mut dice = Dice { random: StdRng::seed_from_u64(seed), bound: BTreeMap::new(), lines: Vec::new() };
    let (mut played, mut refused) = (0, 0);
    let mut players =
        [Player::over("[cache]\nenabled = false\n").await, Player::over("[cache]\nenabled = true\n").await];
    while played < LEAST || began.elapsed() < limit {
        let lines = dice.script();
        let player = &mut players[played % 2];
        if let Some(fault) = player.plays(&lines).await {
            let (lines, shortest) = player.shortened(lines).await;
            panic!("seed {seed}, script {played}: {}\n{}", shortest.unwrap_or(fault), lines.join("\n"));
        }
        played += 1;
    }
    players.iter().for_each(|player| refused += player.refused);
    eprintln!("seed {seed}: {played} scripts, {refused} with a refusal");
    assert!(refused * 2 < played, "{refused} of {played} are refused");
}
