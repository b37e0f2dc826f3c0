//! Random SELECTs over random tables: pgherd over shards says what one PostgreSQL with all rows says, or refuses.
//!
//! Some seconds in the quick tier; `PGHERD_SOAK_SECONDS=600` runs so long, `PGHERD_SOAK_SEED` repeats a run. `--nocapture` shows
//! how many statements were refused, and why.

mod kinds;
mod schema;
mod statements;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::schema::World;
use self::statements::{Select, Writer};
use crate::answers::{Answer, Manner, ask};
use crate::harness::wire::WireClient;

/// How long the quick tier runs.
const QUICK: Duration = Duration::from_secs(4);

/// Statements over one schema before another is made.
const OF_ONE_SCHEMA: usize = 3000;

/// How long PostgreSQL may take; a random join of everything with everything is left out.
const PATIENCE: &str = "set statement_timeout to '5s'";

/// Statements at least, however slow the machine.
const LEAST: usize = 40;

#[derive(Debug, Default)]
struct Tally {
    equal: usize,
    failed_alike: usize,
    /// Took PostgreSQL too long.
    left_out: usize,
    /// How many for each reason, and the first of them.
    refused: BTreeMap<String, (usize, String)>,
    wrong: Vec<String>,
    /// Statements by plan.
    plans: BTreeMap<&'static str, f64>,
    /// Answers with rows.
    with_rows: usize,
}

impl Tally {
    fn all(&self) -> usize {
        self.equal + self.failed_alike + self.refused.values().map(|(count, _)| count).sum::<usize>() + self.wrong.len()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn random_selects_are_answered_as_by_one_postgresql() {
    let seed = number("PGHERD_SOAK_SEED").unwrap_or_else(rand::random);
    let end = Instant::now() + number("PGHERD_SOAK_SECONDS").map_or(QUICK, Duration::from_secs);
    let mut dice = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    while Instant::now() < end || tally.all() < LEAST {
        let shards = dice.random_range(2..5);
        let world = World::new(&mut dice, shards).await;
        let (mut oracle, mut client) = (world.oracle().await, world.client().await);
        oracle.query(PATIENCE).await;
        for _ in 0..OF_ONE_SCHEMA {
            if Instant::now() >= end && tally.all() >= LEAST {
                break;
            }
            if dice.random_range(0..150) == 0 {
                let zone = ["UTC", "America/New_York", "Asia/Kolkata", "Europe/Berlin"][dice.random_range(0..4)];
                let style = ["iso, mdy", "sql, dmy", "german", "postgres, mdy"][dice.random_range(0..4)];
                for one in [&mut oracle, &mut client] {
                    one.query(&format!("set timezone to '{zone}'")).await;
                    one.query(&format!("set datestyle to '{style}'")).await;
                }
            }
            let select = Writer::new(&mut dice, &world.tables).statement();
            let manner = [Manner::Simple, Manner::Text, Manner::Binary, Manner::Prepared][dice.random_range(0..4)];
            compare(&select, manner, &mut oracle, &mut client, &mut tally).await;
        }
        for plan in ["shard", "fanout", "gather"] {
            *tally.plans.entry(plan).or_default() += world.answered(plan).await;
        }
        world.stop().await;
        if tally.wrong.len() > 20 {
            break;
        }
    }
    let Tally { equal, failed_alike, left_out, refused, wrong, plans, with_rows } = &tally;
    eprintln!(
        "seed {seed}: {} statements, {equal} equal ({with_rows} with rows, by plan {plans:?}), {failed_alike} failed alike, {left_out} left out, {} refused: {refused:#?}",
        tally.all(),
        refused.values().map(|(count, _)| count).sum::<usize>()
    );
    assert!(wrong.is_empty(), "seed {seed}: {} differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(with_rows * 2 > *equal && plans.values().all(|&count| count > 0.0), "there was something to compare");
}

/// Asks both, and notes what came of it.
async fn compare(select: &Select, manner: Manner, oracle: &mut WireClient, client: &mut WireClient, tally: &mut Tally) {
    let wanted = ask(oracle, manner, &select.text).await;
    if wanted.code() == Some("57014") {
        tally.left_out += 1;
        return;
    }
    let given = ask(client, manner, &select.text).await;
    if given.code() == Some("0A000") && wanted.error.is_none() {
        let message = given.error.map_or_else(String::new, |(_, message)| message);
        tally.refused.entry(message).or_insert_with(|| (0, select.text.clone())).0 += 1;
        return;
    }
    // What PostgreSQL itself does not answer may be refused.
    if wanted.error.is_some() && (wanted.code() == given.code() || given.code() == Some("0A000")) {
        tally.failed_alike += 1;
        return;
    }
    let (wanted, given) = (comparable(select, wanted), comparable(select, given));
    if wanted == given {
        tally.equal += 1;
        tally.with_rows += usize::from(!given.rows.is_empty());
    } else {
        tally.wrong.push(difference(select, manner, &wanted, &given));
    }
}

fn comparable(select: &Select, mut answer: Answer) -> Answer {
    // A type of the user's has an oid of its own in each database; arrays of it hold that in their binary form. A statement that is
    // described before it is bound does not say yet which form that is.
    let is_own = |column: &(String, i32, i32, i16)| column.1 >= 16384;
    let own: Vec<usize> = (0..answer.columns.len()).filter(|&at| is_own(&answer.columns[at])).collect();
    for row in &mut answer.rows {
        for &at in &own {
            if let Some(oid) =
                row[at].as_mut().filter(|value| value.starts_with(b"\0\0\0")).and_then(|value| value.get_mut(8..12))
            {
                oid.fill(0);
            }
        }
    }
    answer.columns.iter_mut().filter(|column| column.1 >= 16384).for_each(|column| column.1 = 16384);
    if select.is_ordered { answer } else { answer.sorted() }
}

fn difference(select: &Select, manner: Manner, wanted: &Answer, given: &Answer) -> String {
    let heads = |answer: &Answer| format!("{:?} {} {:?}", answer.columns, answer.tag, answer.error);
    let text = &select.text;
    if heads(wanted) != heads(given) {
        return format!("{text}\n  {manner:?}: {}\n  instead of {}", heads(given), heads(wanted));
    }
    let at = wanted.rows.iter().zip(&given.rows).position(|(wanted, given)| wanted != given).unwrap_or(0);
    let shown = |answer: &Answer| match answer.rows.get(at) {
        Some(row) => {
            row.iter().map(|value| value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())).collect()
        }
        None => Vec::new(),
    };
    format!("{text}\n  {manner:?}: row {at} is {:?} instead of {:?}", shown(given), shown(wanted))
}
