//! Random COPY data: what one PostgreSQL stores is stored over shards, where it belongs, or pgherd refuses and nothing is.
//!
//! Some seconds in the quick tier; `PGHERD_SOAK_SECONDS=600` runs so long, `PGHERD_SOAK_SEED` repeats a run.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::copies::copy;
use super::stage::{Stage, ok};
use crate::harness::wire::{WireClient, rows};
use crate::harness::{self, Database, Pgherd};

const QUICK: Duration = Duration::from_secs(2);

/// COPYs at least, however slow the machine.
const LEAST: usize = 60;

const TABLES: &str = "create table words (k text, s text); create table numbers (k int4, s text); create table whole (k text, s text);
                      create table by_text (k text) partition by hash (k); create table by_number (k int4) partition by hash (k)";

struct World {
    oracle: WireClient,
    client: WireClient,
    whole: Database,
    stage: Stage,
    _pgherd: Pgherd,
}

impl World {
    async fn new() -> Self {
        let mut stage = Stage::set(3).await;
        for (name, rest) in [
            ("words", "shard_key = \"k\"\nmethod = \"hash\""),
            ("numbers", "shard_key = \"k\"\nmethod = \"hash\""),
            ("whole", "reference = true"),
        ] {
            let table = format!("[[database.table]]\nname = \"public.{name}\"\n{rest}\n[[database.table]]");
            stage.toml = stage.toml.replacen("[[database.table]]", &table, 1);
        }
        let whole = harness::fresh_database().await;
        for database in stage.shards.iter().chain([&whole]) {
            database.execute(TABLES).await;
        }
        let pgherd = stage.pgherd().await;
        let oracle = WireClient::login(whole.port, "postgres", &whole.name).await;
        Self { oracle, client: pgherd.wire("app").await, whole, stage, _pgherd: pgherd }
    }

    /// How many rows lie where nobody looks for them.
    async fn misplaced(&self) -> i64 {
        let mut misplaced = 0;
        for (at, shard) in self.stage.shards.iter().enumerate() {
            for (table, by) in [("words", "by_text"), ("numbers", "by_number")] {
                let sql = format!(
                    "select count(*) from {table} where not satisfies_hash_partition('{by}'::regclass, 3, {at}, k)"
                );
                misplaced += shard.client().await.query_one(&sql, &[]).await.expect("a count").get::<_, i64>(0);
            }
        }
        misplaced
    }
}

#[derive(Debug, Default)]
struct Tally {
    stored: usize,
    failed_alike: usize,
    refused: usize,
    /// Of these PostgreSQL has stored something.
    refused_rows: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn all(&self) -> usize {
        self.stored + self.failed_alike + self.refused + self.wrong.len()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn random_data_are_stored_as_by_one_postgresql() {
    let seed = number("PGHERD_SOAK_SEED").unwrap_or_else(rand::random);
    let end = Instant::now() + number("PGHERD_SOAK_SECONDS").map_or(QUICK, Duration::from_secs);
    let mut dice = StdRng::seed_from_u64(seed);
    let (mut world, mut tally) = (World::new().await, Tally::default());
    while (Instant::now() < end || tally.all() < LEAST) && tally.wrong.len() < 20 {
        let (table, sql, data) = random_copy(&mut dice);
        let step = *[1, 2, 5, 1000].choose(&mut dice).expect("one");
        compare(&mut world, table, &sql, &data, step, &mut tally).await;
    }
    eprintln!("seed {seed}: {tally:?}");
    assert!(tally.wrong.is_empty(), "seed {seed}: {} differ\n{}", tally.wrong.len(), tally.wrong.join("\n"));
    assert!(tally.stored > 0 && tally.failed_alike > 0, "there was something to compare");
    drop(world.whole);
}

async fn compare(world: &mut World, table: &str, sql: &str, data: &[u8], step: usize, tally: &mut Tally) {
    let wanted = copy(&mut world.oracle, sql, data, step).await;
    let given = copy(&mut world.client, sql, data, step).await;
    let read = format!("select k, s from {table}");
    let (mut stored, mut kept) = (rows(&world.oracle.query(&read).await), rows(&world.client.query(&read).await));
    stored.sort();
    kept.sort();
    // A look at every shard takes as long as many COPYs.
    let is_misplaced = !kept.is_empty() && tally.stored.is_multiple_of(10) && world.misplaced().await > 0;
    let is_refused = given.0.as_deref() == Some("0A000");
    // Not the line that an error names: PostgreSQL counts an end of line within quotes once it has seen one outside of them, and a shard
    // has not seen those of the others.
    let is_alike = (&wanted.0, &wanted.2, wanted.3) == (&given.0, &given.2, given.3) && stored == kept;
    let is_right = if is_refused { kept.is_empty() } else { is_alike };
    if !is_right || is_misplaced {
        let data = data.escape_ascii();
        tally.wrong.push(format!("{sql}\n  \"{data}\" in steps of {step}\n  {given:?} {kept:?}\n  instead of {wanted:?} {stored:?}, misplaced: {is_misplaced}"));
    } else if is_refused {
        tally.refused += 1;
        tally.refused_rows += usize::from(!stored.is_empty());
    } else if wanted.0.is_some() {
        tally.failed_alike += 1;
    } else {
        tally.stored += 1;
    }
    for (one, is_there) in [(&mut world.oracle, !stored.is_empty()), (&mut world.client, !kept.is_empty())] {
        if is_there {
            ok(one, &format!("delete from {table}")).await;
        }
    }
}

/// A table, a COPY into it, and data for that.
fn random_copy(dice: &mut StdRng) -> (&'static str, String, Vec<u8>) {
    let table = *["words", "words", "numbers", "whole"].choose(dice).expect("one");
    let columns = *["(k)", "(k)", "(k, s)", "(s, k)", ""].choose(dice).expect("one");
    let form = *["text", "text", "csv", "csv", "binary"].choose(dice).expect("one");
    let mut options = vec![format!("format {form}")];
    let mut delimiter = if form == "csv" { "," } else { "\t" };
    if form != "binary" {
        if dice.random_bool(0.3) {
            delimiter = *[",", "|", "a", "N", "\\", "\""].choose(dice).expect("one");
            options.push(format!("delimiter '{delimiter}'"));
        }
        if dice.random_bool(0.2) {
            options.push(format!("null '{}'", ["", "a", "\\N", "N", "aa", "\\a", "1"].choose(dice).expect("one")));
        }
        if dice.random_bool(0.3) {
            options.push(
                (*["header", "header true", "header off", "header 1", "header match"].choose(dice).expect("one"))
                    .into(),
            );
        }
    }
    if form == "csv" {
        for name in ["quote", "escape"] {
            if dice.random_bool(0.2) {
                options.push(format!("{name} '{}'", ["\\", "a", "''", "."].choose(dice).expect("one")));
            }
        }
        if dice.random_bool(0.05) {
            options
                .push((*["force_null (s)", "force_not_null (k)", "force_quote *"].choose(dice).expect("one")).into());
        }
    }
    let sql = format!("copy {table} {columns} from stdin ({})", options.join(", "));
    let fields: i16 = if columns == "(k)" { 1 } else { 2 };
    let data = match form {
        "binary" => binary(dice, fields, if table == "numbers" && columns != "(s, k)" { 0 } else { 9 }),
        _ if dice.random_bool(0.3) => (0..dice.random_range(0..20)).flat_map(|_| piece(dice, delimiter)).collect(),
        _ => lines(dice, fields, delimiter),
    };
    (table, sql, data)
}

/// Any of what means something to one form or the other.
fn piece(dice: &mut StdRng, delimiter: &str) -> Vec<u8> {
    let piece = ["\\", ".", ",", "\"", "\t", "\n", "\r", "N", "a", "1", "\\.", "\\.\n", "\r\n", "\n\\.\n", delimiter];
    piece.choose(dice).expect("one").as_bytes().to_vec()
}

/// Lines as they should be, but for one piece here and there.
fn lines(dice: &mut StdRng, fields: i16, delimiter: &str) -> Vec<u8> {
    let end = *["\n", "\n", "\n", "\r\n", "\r"].choose(dice).expect("one");
    let mut data = Vec::new();
    for line in 0..dice.random_range(0..8) {
        for field in 0..fields {
            if field > 0 {
                data.extend_from_slice(delimiter.as_bytes());
            }
            let value = ["1", "11", "a", "aN", "1.", "\"1\"", "\"a\n1\"", "\"a\"\"\"", "\\\\", "\\N", "", "7", "12"];
            match dice.random_range(0..12) {
                0 => data.extend(piece(dice, delimiter)),
                1..6 => data.extend_from_slice(value.choose(dice).expect("one").as_bytes()),
                _ => data.extend_from_slice((line + 1).to_string().as_bytes()),
            }
        }
        match dice.random_range(0..15) {
            0 => data.extend(piece(dice, delimiter)),
            1 => data.extend_from_slice(format!("{end}\\.{end}").as_bytes()),
            _ => data.extend_from_slice(end.as_bytes()),
        }
    }
    if dice.random_bool(0.3) {
        data.truncate(data.len().saturating_sub(end.len()));
    }
    data
}

/// Rows as PostgreSQL writes them, with mistakes; the field at `number` is an `int4`.
fn binary(dice: &mut StdRng, fields: i16, number: i16) -> Vec<u8> {
    let rare = |dice: &mut StdRng| dice.random_range(0..40) == 0;
    let mut data = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    if rare(dice) {
        data[15..].copy_from_slice(&[[0, 0, 0, 3], [0, 1, 0, 0], [255, 255, 255, 255]].choose(dice).expect("one")[..]);
        data.extend_from_slice(b"abc");
    }
    for row in 0..dice.random_range(0..6) {
        let count = if rare(dice) { dice.random_range(-3..4) } else { fields };
        data.extend_from_slice(&count.to_be_bytes());
        for field in 0..count.max(0) {
            let value = match field == number {
                true => i32::to_be_bytes(row).to_vec(),
                false => b"a1N.\\"[..dice.random_range(0..5)].to_vec(),
            };
            let len = match dice.random_range(0..40) {
                0 => dice.random_range(-3..7),
                _ => i32::try_from(value.len()).expect("short"),
            };
            data.extend_from_slice(&len.to_be_bytes());
            data.extend_from_slice(&value);
        }
    }
    if dice.random_bool(0.8) {
        data.extend_from_slice(b"\xff\xff");
    }
    match dice.random_range(0..20) {
        0 => data.truncate(dice.random_range(0..=data.len())),
        1 => data.extend_from_slice(&b"\0\x01\xff\xff"[..dice.random_range(0..5)]),
        2 => data.extend_from_slice(&[0, 1, 0, 0, 0, 1, b'a']),
        3 if !data.is_empty() => {
            let at = dice.random_range(0..data.len());
            data[at] = dice.random_range(0..4);
        }
        _ => {}
    }
    data
}
