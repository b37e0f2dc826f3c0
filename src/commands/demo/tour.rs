//! The tour itself: each step through pgherd, its plan, its time, who answered, and whether PostgreSQL agrees.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::data;
use super::show;
use super::sources::{Counters, Source};
use super::steps::{Check, Door, Expected, Step};
use super::truth::{Answer, Oracle, Truth, ask, connect};

/// A way into a pgherd.
pub(super) struct Entrance {
    client: Client,
    http: SocketAddr,
}

impl Entrance {
    /// Connects to a database of a pgherd whose metrics are at `http`.
    pub(super) async fn open(
        address: SocketAddr,
        http: SocketAddr,
        database: &str,
    ) -> Result<Self, tokio_postgres::Error> {
        let user = data::ROLE;
        let conninfo = format!("host={} port={} user={user} dbname={database}", address.ip(), address.port());
        Ok(Self { client: connect(&conninfo).await?, http })
    }
}

/// Everything that a step needs.
pub(super) struct Tour {
    pub(super) first: Entrance,
    pub(super) second: Option<Entrance>,
    pub(super) replica: Entrance,
    pub(super) truth: Truth,
    /// The servers' names by `host:port`.
    pub(super) names: BTreeMap<String, String>,
}

/// How a step went.
pub(super) struct Outcome {
    pub(super) title: &'static str,
    pub(super) from: String,
    pub(super) time: Duration,
    pub(super) verdict: Verdict,
}

/// Whether a step went as it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// PostgreSQL says the same, and who should answer did.
    Right(&'static str),
    /// What is wrong.
    Wrong(String),
}

type Heard = Result<Answer, tokio_postgres::Error>;

/// Asked until it is answered from the cache; no step asks it.
const WARM_UP: &str = "select count(*), max(stock) from products";
/// How long the cache may take to be ready: the catalog is to be read, and a Redis lease to pass.
const WARM_UP_PATIENCE: Duration = Duration::from_secs(30);

impl Tour {
    /// Waits until every pgherd of the tour serves from its cache.
    pub(super) async fn warm_up(&self) -> Result<(), String> {
        for entrance in std::iter::once(&self.first).chain(&self.second) {
            let began = Instant::now();
            loop {
                let before = self.counters(entrance).await?;
                ask(&entrance.client, WARM_UP).await.map_err(|error| readable(&error))?;
                let source = self.counters(entrance).await?.source(&before, &self.names);
                if matches!(source, Source::Memory | Source::Redis) {
                    break;
                }
                if began.elapsed() > WARM_UP_PATIENCE {
                    return Err(format!("the cache does not begin to serve: {} answered", source.label()));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Takes one step and prints it.
    pub(super) async fn step(&self, number: usize, step: &Step) -> Result<Outcome, String> {
        show::heading(number, step.title);
        show::labelled("SQL", step.sql);
        let entrance = self.entrance(step.door).ok_or("there is no second pgherd")?;
        let route = ask(&entrance.client, &format!("explain (route) {}", step.sql)).await;
        print_route(&route);

        let before = self.counters(entrance).await?;
        let began = Instant::now();
        let heard = ask(&entrance.client, step.sql).await;
        let time = began.elapsed();
        let source = self.counters(entrance).await?.source(&before, &self.names);

        print_heard(&heard);
        let verdict =
            match self.check(step, &heard).await.and_then(|ok| answered_by(step.expected, &source).map(|()| ok)) {
                Ok(ok) => Verdict::Right(ok),
                Err(wrong) => Verdict::Wrong(wrong),
            };
        let from = source.label();
        let checked = match &verdict {
            Verdict::Right(ok) => (*ok).to_owned(),
            Verdict::Wrong(wrong) => format!("WRONG: {wrong}"),
        };
        show::labelled("from", &format!("{from} in {}; {checked}", show::milliseconds(time)));
        Ok(Outcome { title: step.title, from, time, verdict })
    }

    fn entrance(&self, door: Door) -> Option<&Entrance> {
        match door {
            Door::First => Some(&self.first),
            Door::Second => self.second.as_ref(),
            Door::Replica => Some(&self.replica),
        }
    }

    async fn counters(&self, entrance: &Entrance) -> Result<Counters, String> {
        Counters::read(entrance.http).await.map_err(|error| format!("cannot read the metrics: {error}"))
    }

    async fn check(&self, step: &Step, heard: &Heard) -> Result<&'static str, String> {
        match (step.check, heard) {
            (Check::None, Err(error)) => {
                is_refusal(error).then_some("refused with 0A000 and a hint").ok_or_else(|| readable(error))
            }
            (Check::None, Ok(_)) => Err("it was answered".to_owned()),
            (_, Err(error)) => Err(readable(error)),
            (Check::Same(oracle), Ok(answer)) => self.same(oracle, step.sql, answer).await,
            (Check::Written { oracle, probe, spread }, Ok(answer)) => self.written(oracle, probe, spread, answer).await,
        }
    }

    async fn same(&self, oracle: Oracle, sql: &str, answer: &Answer) -> Result<&'static str, String> {
        let mut truth = self.truth.ask(oracle, sql).await.map_err(|error| readable(&error))?;
        let mut answer = answer.clone();
        if !sql.contains("order by") {
            // SQL leaves the order open: only which rows there are counts.
            truth.rows.sort_unstable();
            answer.rows.sort_unstable();
        }
        if truth == answer { Ok("PostgreSQL says the same") } else { Err(format!("PostgreSQL says {:?}", truth.rows)) }
    }

    async fn written(
        &self,
        oracle: Oracle,
        probe: &str,
        spread: Option<&str>,
        answer: &Answer,
    ) -> Result<&'static str, String> {
        if answer.affected != 1 {
            return Err(format!("{} rows were written", answer.affected));
        }
        if let Some(table) = spread {
            self.truth.refresh(table).await.map_err(|error| readable(&error))?;
        }
        let found = self.truth.ask(oracle, probe).await.map_err(|error| readable(&error))?;
        let one = [[Some("1".to_owned())]];
        if found.rows == one {
            Ok("PostgreSQL has the row once")
        } else {
            Err(format!("PostgreSQL has it {:?} times", found.rows))
        }
    }
}

/// Whether those answered who should have.
fn answered_by(expected: Expected, source: &Source) -> Result<(), String> {
    let servers = |names: &[&str]| *source == Source::Servers(names.iter().map(|&name| name.to_owned()).collect());
    let as_expected = match expected {
        Expected::Primary => servers(&["primary"]),
        Expected::Replica => servers(&["replica"]),
        Expected::Filled => *source == Source::Filled,
        Expected::Memory => *source == Source::Memory,
        Expected::Redis => *source == Source::Redis,
        Expected::OneShard => servers(&["shard 0"]) || servers(&["shard 1"]),
        Expected::AllShards => servers(&["shard 0", "shard 1"]),
        Expected::Refused => *source == Source::Pgherd,
    };
    if as_expected { Ok(()) } else { Err(format!("{expected:?} was to answer, not {}", source.label())) }
}

fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.code().code() == "0A000" && db.hint().is_some_and(|hint| !hint.is_empty()))
}

/// Lines of EXPLAIN (ROUTE) that say where a statement runs and why; the others say how it was read.
const TOLD: [&str; 6] = ["plan", "shard", "shards", "merge", "ttl", "why"];

fn print_route(route: &Heard) {
    match route {
        Ok(answer) => {
            let lines = answer.rows.iter().filter_map(|row| Some((row.first()?.as_deref()?, row.get(1)?.as_deref()?)));
            let told = lines.filter(|(key, _)| TOLD.contains(key));
            let told: Vec<String> = told
                .map(|(key, value)| if key == "plan" { value.to_owned() } else { format!("{key}: {value}") })
                .collect();
            show::labelled("plan", &told.join("; "));
        }
        Err(error) => show::labelled("plan", &readable(error)),
    }
}

fn print_heard(heard: &Heard) {
    match heard {
        Ok(answer) => show::answer(answer),
        Err(error) => {
            show::labelled("error", &readable(error));
            if let Some(hint) = error.as_db_error().and_then(tokio_postgres::error::DbError::hint) {
                show::labelled("hint", hint);
            }
        }
    }
}

/// An error in words: PostgreSQL's own message and SQLSTATE where there is one.
pub(super) fn readable(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        None => format!("{error}: {}", std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()),
    }
}

/// All steps once more, one a line.
pub(super) fn print_summary(outcomes: &[Outcome]) {
    let mut table = vec![["", "step", "answered by", "time", "check"].map(str::to_owned).to_vec()];
    for (at, outcome) in outcomes.iter().enumerate() {
        let check = if matches!(outcome.verdict, Verdict::Right(_)) { "ok" } else { "WRONG" };
        let title = show::shortened(outcome.title, 56);
        table.push(vec![
            (at + 1).to_string(),
            title,
            outcome.from.clone(),
            show::milliseconds(outcome.time),
            check.to_owned(),
        ]);
    }
    show::line("");
    show::aligned(&table).iter().for_each(|row| show::line(&format!("  {row}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_from_elsewhere_is_not_as_it_must_be() {
        let both = Source::Servers(vec!["shard 0".to_owned(), "shard 1".to_owned()]);
        assert!(answered_by(Expected::AllShards, &both).is_ok());
        assert!(answered_by(Expected::OneShard, &both).is_err());
        assert!(answered_by(Expected::Memory, &Source::Redis).is_err());
        assert!(answered_by(Expected::OneShard, &Source::Servers(vec!["shard 1".to_owned()])).is_ok());
    }
}
