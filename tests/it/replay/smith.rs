//! What sqlsmith makes up from the catalog of one database (`apt-get install sqlsmith`), over sharded copies of it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::{Copies, Tally, replay};
use crate::harness;

/// Tables with NULLs, duplicates and a type or two that pgherd does not merge itself.
const SCHEMA: &str = "
    create type mood as enum ('sad', 'ok', 'happy');
    create table orders (id int4, customer int8, total numeric(12, 2), placed timestamptz, note text);
    create table items (order_id int8, line int2, price numeric, label text, tags text[]);
    create table people (id int8, name varchar(20), born date, feels mood, is_well bool);
    create table measures (taken timestamp, sensor int4, value float8, raw bytea, doc jsonb);
    create table countries (code char(2), name text);
    insert into orders select n, n % 7, nullif(n % 9, 4) * 1.25, '2024-03-30 00:00+00'::timestamptz + n * interval '7 hours',
      nullif((array['a', 'B', 'b', 'é', ''])[1 + n % 5], '') from generate_series(1, 40) n;
    insert into items select n % 12, n % 3, n * 0.10, 'item ' || n % 8, array['x', 'y' || n % 3] from generate_series(1, 50) n;
    insert into people select n % 15, 'n' || n % 6, date '1980-01-01' + n * 31, (array['sad', 'ok', 'happy']::mood[])[1 + n % 3],
      n % 4 = 0 from generate_series(1, 30) n;
    insert into measures select timestamp '2024-01-01' + n * interval '1 hour', n % 5, n * 0.5, decode(md5(n::text), 'hex'),
      jsonb_build_object('k', n % 4) from generate_series(1, 30) n;
    insert into countries values ('at', 'Austria'), ('be', 'Belgium'), ('ch', null);";

const KEYED: [(&str, &str); 4] =
    [("orders", "customer"), ("items", "order_id"), ("people", "id"), ("measures", "sensor")];

/// Statements of one run of sqlsmith: each needs to read the catalog anew.
const OF_ONE_RUN: usize = 5000;

#[tokio::test]
async fn what_sqlsmith_makes_up_is_answered_as_by_one_postgresql() {
    let Some(wanted) = std::env::var("PGHERD_SQLSMITH").ok().and_then(|text| text.parse::<usize>().ok()) else {
        return;
    };
    let seed: u32 = std::env::var("PGHERD_SOAK_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let whole = harness::fresh_database().await;
    whole.execute(SCHEMA).await;
    let copies = Copies::new(whole, &KEYED, 3).await;
    let mut tally = Tally::default();
    for run in 0..wanted.div_ceil(OF_ONE_RUN) {
        let statements = OF_ONE_RUN.min(wanted - run * OF_ONE_RUN);
        let mut smith = Command::new("sqlsmith")
            .arg("--dry-run")
            .arg("--exclude-catalog")
            .arg(format!("--seed={}", seed + run as u32))
            .arg(format!("--max-queries={statements}"))
            .arg(format!("--target={}", copies.whole.conninfo()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sqlsmith is installed");
        let lines = BufReader::new(smith.stdout.take().expect("its output")).lines().map_while(Result::ok);
        replay(&copies, reads(lines), &mut tally).await;
        let _ = smith.wait();
    }
    copies.stop().await;
    tally.tell(&format!("sqlsmith from seed {seed}"));
    assert!(tally.wrong.is_empty(), "{} differ\n{}", tally.wrong.len(), tally.wrong.join("\n"));
    assert!(tally.equal > 0 && tally.with_rows > 0, "there was something to compare");
}

/// Its SELECTs: it writes statements over several lines, each ended by a semicolon.
fn reads(lines: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    let mut text = String::new();
    lines.filter_map(move |line| {
        text = format!("{text}\n{line}");
        let whole = line.trim_end().ends_with(';').then(|| std::mem::take(&mut text))?;
        let whole = whole.trim().trim_end_matches(';').to_owned();
        let lower = whole.to_ascii_lowercase();
        let is_read = lower.starts_with("select") || lower.starts_with("with") && !lower.contains("returning");
        // What waits or looks at time, chance or the server itself.
        let is_plain = ![
            "pg_sleep",
            "random",
            "for update",
            "for share",
            "txid",
            "pg_advisory",
            "setseed",
            "tablesample",
            "current_database",
        ]
        .iter()
        .any(|word| lower.contains(word));
        (is_read && is_plain).then_some(whole)
    })
}
