//! Whether this pgherd should be sent clients, and why not.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How many health-check intervals a primary may stay unheard of: one that is late, and the time that a check takes.
const INTERVALS: u32 = 2;

/// What is known now. Cheap to clone; all clones share it.
#[derive(Debug, Clone)]
pub struct Readiness(watch::Sender<State>);

#[derive(Debug, Clone, Default)]
struct State {
    listening: bool,
    draining: bool,
    primaries: BTreeMap<String, Primary>,
}

/// The last that was heard of one database's primary.
#[derive(Debug, Clone)]
struct Primary {
    interval: Duration,
    checked: Option<(Instant, Result<(), String>)>,
}

/// An answer for `/healthz/ready`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether clients should be sent here.
    pub ready: bool,
    /// Why, a line for each cause or database.
    pub text: String,
}

impl Default for Readiness {
    fn default() -> Self {
        Self(watch::Sender::new(State::default()))
    }
}

impl Readiness {
    /// Says that clients can connect, or no longer can.
    pub fn set_listening(&self, listening: bool) {
        self.0.send_modify(|state| state.listening = listening);
    }

    /// Says that pgherd will end: from now on it is not ready, whatever else happens.
    pub fn set_draining(&self) {
        self.0.send_modify(|state| state.draining = true);
    }

    /// Says which databases there are, and how often each one's primary is checked. What was heard of them stays.
    pub fn set_databases<'n>(&self, databases: impl IntoIterator<Item = (&'n str, Duration)>) {
        self.0.send_modify(|state| {
            let mut before = std::mem::take(&mut state.primaries);
            for (name, interval) in databases {
                let checked = before.remove(name).and_then(|primary| primary.checked);
                state.primaries.insert(name.to_string(), Primary { interval, checked });
            }
        });
    }

    /// Says what the last check of a database's primary found. The text is shown to whoever asks: no secrets.
    pub fn primary(&self, database: &str, found: Result<(), String>) {
        self.0.send_modify(|state| {
            if let Some(primary) = state.primaries.get_mut(database) {
                primary.checked = Some((Instant::now(), found));
            }
        });
    }

    /// What `/healthz/ready` answers now.
    pub fn report(&self) -> Report {
        self.0.borrow().report(Instant::now())
    }

    /// Waits until pgherd is ready.
    pub async fn ready(&self) {
        let mut receiver = self.0.subscribe();
        // The sender lives as long as `self`.
        let _ = receiver.wait_for(|state| state.report(Instant::now()).ready).await;
    }
}

impl State {
    fn report(&self, now: Instant) -> Report {
        let mut text = String::new();
        let mut ready = true;
        let mut not_ready = |line: std::fmt::Arguments<'_>| {
            ready = false;
            let _ = writeln!(text, "{line}");
        };
        if self.draining {
            not_ready(format_args!("draining: this pgherd is about to end"));
        }
        if !self.listening && !self.draining {
            not_ready(format_args!("not listening yet"));
        }
        for (name, primary) in &self.primaries {
            match &primary.checked {
                None => not_ready(format_args!("database {name}: its primary was not checked yet")),
                Some((_, Err(problem))) => not_ready(format_args!("database {name}: {problem}")),
                Some((at, Ok(()))) if now.duration_since(*at) > primary.interval * INTERVALS => {
                    let seconds = now.duration_since(*at).as_secs();
                    not_ready(format_args!("database {name}: its primary was last checked {seconds} s ago"));
                }
                Some((_, Ok(()))) => {}
            }
        }
        if ready {
            text.push_str("ready\n");
        }
        Report { ready, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn it_is_ready_once_it_listens_and_each_primary_answered() {
        let readiness = Readiness::default();
        readiness.set_databases([("app", MINUTE), ("other", MINUTE)]);
        assert!(readiness.report().text.contains("not listening yet"));
        readiness.set_listening(true);
        readiness.primary("app", Ok(()));
        let report = readiness.report();
        assert!(!report.ready);
        assert_eq!(report.text, "database other: its primary was not checked yet\n");
        readiness.primary("other", Err("connection refused".into()));
        assert_eq!(readiness.report().text, "database other: connection refused\n");
        readiness.primary("other", Ok(()));
        assert_eq!(readiness.report(), Report { ready: true, text: "ready\n".into() });
    }

    #[test]
    fn what_was_heard_too_long_ago_no_longer_counts() {
        let primary = Primary { interval: MINUTE, checked: Some((Instant::now(), Ok(()))) };
        let state = State { listening: true, draining: false, primaries: BTreeMap::from([("app".into(), primary)]) };
        assert!(state.report(Instant::now() + 2 * MINUTE - Duration::from_secs(1)).ready);
        let late = state.report(Instant::now() + 2 * MINUTE + Duration::from_secs(1));
        assert!(!late.ready && late.text.contains("last checked 121 s ago"), "{}", late.text);
    }

    #[test]
    fn draining_ends_it_and_a_reload_keeps_what_was_heard() {
        let readiness = Readiness::default();
        readiness.set_listening(true);
        readiness.set_databases([("app", MINUTE)]);
        readiness.primary("app", Ok(()));
        readiness.set_databases([("app", MINUTE)]);
        assert!(readiness.report().ready);
        readiness.primary("unknown", Err("x".into()));
        assert!(readiness.report().ready);
        readiness.set_draining();
        assert!(readiness.report().text.starts_with("draining"));
    }
}
