//! Random SELECTs over random tables: pgherd over shards says what one PostgreSQL with all rows says, or refuses.
//!
//! Some seconds in the quick tier; `PGHERD_SOAK_SECONDS=600` runs so long, `PGHERD_SOAK_SEED` repeats a run. `--nocapture` shows
//! how many statements were refused, and why.

mod compare;
mod joins;
mod kinds;
mod parameters;
mod pipelines;
mod scalars;
mod schema;
mod spelling;
mod statements;
mod turns;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::compare::{Outcome, Pair, Tally};
use self::pipelines::Form;
use self::schema::World;
use self::statements::{Select, Writer};
use crate::answers::{MANNERS, Manner};

/// How long the quick tier runs.
const QUICK: Duration = Duration::from_secs(4);

/// Statements over one schema before another is made.
const OF_ONE_SCHEMA: usize = 3000;

/// How long PostgreSQL may take; a random join of everything with everything is left out.
const PATIENCE: &str = "set statement_timeout to '5s'";

/// Differences after which a run ends.
const TOO_MANY: usize = 20;

/// Statements at least, however slow the machine.
const LEAST: usize = 120;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn random_selects_are_answered_as_by_one_postgresql() {
    let seed = number("PGHERD_SOAK_SEED").unwrap_or_else(rand::random);
    let end = Instant::now() + number("PGHERD_SOAK_SECONDS").map_or(QUICK, Duration::from_secs);
    let mut dice = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    while (Instant::now() < end || tally.all() < LEAST) && tally.wrong.len() < TOO_MANY {
        let shards = dice.random_range(2..5);
        let world = World::new(&mut dice, shards).await;
        let until = tally.all() + OF_ONE_SCHEMA;
        let mut pair = login(&world).await;
        while tally.all() < until && (Instant::now() < end || tally.all() < LEAST) && tally.wrong.len() < TOO_MANY {
            let outcome = one(&world, &mut pair, &mut dice, &mut tally).await;
            if outcome == Outcome::Wrong
                && let Some(wrong) = tally.wrong.last_mut()
            {
                // Settings of long ago may be what matters.
                wrong.push_str(&format!("\n  behind {:#?}{}", pair.past, world.shown()));
            }
            if outcome != Outcome::Alike {
                pair = login(&world).await;
            }
        }
        for plan in ["shard", "fanout", "gather"] {
            *tally.plans.entry(plan).or_default() += world.answered(plan).await;
        }
        world.stop().await;
    }
    let Tally { equal, failed_alike, left_out, refused, wrong, plans, of_rows, with_rows, rejected } = &tally;
    eprintln!(
        "seed {seed}: {} statements, {equal} equal ({with_rows} with rows, by plan {plans:?}), {failed_alike} failed alike: {rejected:#?}, {left_out} left out, {} refused: {refused:#?}",
        tally.all(),
        tally.refusals()
    );
    assert!(wrong.is_empty(), "seed {seed}: {} differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(with_rows * 3 > *of_rows && plans.values().all(|&count| count > 0.0), "there was something to compare");
}

/// Both, logged in anew.
async fn login(world: &World) -> Pair {
    let mut pair = Pair { oracle: world.oracle().await, client: world.client().await, past: Vec::new() };
    pair.oracle.query(PATIENCE).await;
    pair
}

/// One statement, some in a row, or some in one flight.
async fn one(world: &World, pair: &mut Pair, dice: &mut StdRng, tally: &mut Tally) -> Outcome {
    let kind = dice.random_range(0..100);
    if kind < 85 {
        let manner: Manner = MANNERS[dice.random_range(0..MANNERS.len())];
        let is_binary = matches!(manner, Manner::Binary | Manner::Prepared);
        let mut writer = Writer::new(dice, world.tables(is_binary), is_binary);
        let select = if manner == Manner::Simple { writer.statement() } else { writer.either() };
        return pair.compare(&select, manner, tally).await;
    }
    let is_transaction = dice.random_range(0..100) < 70;
    let is_binary = dice.random_range(0..100) < 50;
    let turn = Writer::new(dice, world.tables(is_binary), is_binary).turn(is_transaction);
    let forms: Vec<Form> = turn.iter().map(|_| Form::random(dice, is_binary)).collect();
    let outcome = if kind < 97 {
        in_a_row(pair, &turn, (dice, is_binary), tally).await
    } else {
        pair.pipeline(&turn, &forms, tally).await
    };
    for one in [&mut pair.oracle, &mut pair.client] {
        one.query("rollback").await;
    }
    pair.past.push("rollback".into());
    pair.oracle.query(PATIENCE).await;
    outcome
}

/// Statements one after another, up to one that only one of both has done.
async fn in_a_row(
    pair: &mut Pair,
    turn: &[Select],
    (dice, is_binary): (&mut StdRng, bool),
    tally: &mut Tally,
) -> Outcome {
    let manners = if is_binary { &MANNERS[1..] } else { &MANNERS[..2] };
    for select in turn {
        let manner: Manner = manners[dice.random_range(0..manners.len())];
        let manner = if select.parameters.is_empty() { manner } else { Manner::Text };
        let outcome = pair.compare(select, manner, tally).await;
        if outcome != Outcome::Alike {
            return outcome;
        }
    }
    Outcome::Alike
}
