//! Statements that others wrote, replayed over sharded copies of one database: pgherd says what the database says, or refuses.
//!
//! By hand: `regress` (the SELECTs of PostgreSQL's regression tests, `tests/pg-regress-selects`) and `smith` (what Debian's sqlsmith
//! makes up, `PGHERD_SQLSMITH=20000`). `--nocapture` shows the tally.

mod copies;
mod regress;
mod smith;

use std::collections::BTreeMap;

use self::copies::Copies;
use crate::answers::{Answer, Manner, ask};
use crate::harness::wire::WireClient;

/// What became of all statements.
#[derive(Debug, Default)]
struct Tally {
    equal: usize,
    /// Of those, answers with rows.
    with_rows: usize,
    /// PostgreSQL itself leaves open which rows they give: as many came, described alike.
    open: usize,
    /// The same rows, of which some column is described without the type modifier that PostgreSQL's planner finds for it (docs/fuzzing.md).
    unmodified: usize,
    /// They ask a server about itself (its process, its write-ahead log, its statistics), which several cannot answer as one.
    of_one_server: usize,
    /// PostgreSQL refuses them, and pgherd does.
    failed_alike: usize,
    /// PostgreSQL gives another answer each time, or none in time.
    unsteady: usize,
    /// How many for each reason, and the first of them.
    refused: BTreeMap<String, (usize, String)>,
    /// What PostgreSQL fails on and pgherd answers: it never came to judge the row, or should have failed too.
    lenient: Vec<String>,
    wrong: Vec<String>,
}

impl Tally {
    fn refusals(&self) -> usize {
        self.refused.values().map(|(count, _)| count).sum()
    }

    /// Statements that PostgreSQL accepts, and that say something.
    fn accepted(&self) -> usize {
        self.equal + self.unmodified + self.open + self.refusals() + self.wrong.len()
    }

    fn tell(&self, what: &str) {
        let (refused, accepted) = (self.refusals(), self.accepted());
        for (message, (count, first)) in &self.refused {
            let first: String = first.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
            eprintln!("refused {count}: {message}\n    {first}");
        }
        self.lenient.iter().for_each(|text| eprintln!("answered where PostgreSQL fails: {text}"));
        eprintln!(
            "{what}: {accepted} that PostgreSQL accepts: {} equal ({} with rows, and {} without a type modifier), {} open, {refused} refused ({:.2}%), {} differ; {} failed alike, {} answered where PostgreSQL fails, {} unsteady, {} about one server itself",
            self.equal,
            self.with_rows,
            self.unmodified,
            self.open,
            100.0 * refused as f64 / accepted.max(1) as f64,
            self.wrong.len(),
            self.failed_alike,
            self.lenient.len(),
            self.unsteady,
            self.of_one_server
        );
    }
}

/// Replays statements on both sides.
async fn replay(copies: &Copies, statements: impl Iterator<Item = String>, tally: &mut Tally) {
    let (mut oracle, mut client) = (copies.oracle().await, copies.client().await);
    for (at, text) in statements.enumerate() {
        let manner = [Manner::Simple, Manner::Text, Manner::Binary, Manner::Prepared][at % 4];
        let wanted = ask(&mut oracle, manner, &text).await;
        if wanted.code() == Some("57014") {
            tally.unsteady += 1;
            continue;
        }
        let given = ask(&mut client, manner, &text).await;
        match (&wanted.error, given.code()) {
            (Some(_), Some(_)) => tally.failed_alike += 1,
            (None, Some("0A000" | "54000" | "57014")) => {
                let message = given.error.map_or_else(String::new, |(_, message)| message);
                if message.contains("one server's own state") {
                    tally.of_one_server += 1;
                    continue;
                }
                tally.refused.entry(message).or_insert_with(|| (0, text)).0 += 1;
            }
            (Some((code, message)), None) => tally.lenient.push(format!("{code} {message}: {text}")),
            _ => judge(&mut oracle, manner, text, wanted, given, tally).await,
        }
    }
}

async fn judge(
    oracle: &mut WireClient,
    manner: Manner,
    text: String,
    wanted: Answer,
    given: Answer,
    tally: &mut Tally,
) {
    let rows = wanted.rows.len();
    let (wanted, mut given) = (comparable(wanted), comparable(given));
    let is_modified = wanted.columns.iter().zip(&mut given.columns).fold(true, |all, (wanted, given)| {
        let lacks = given.2 == -1 && wanted.2 != -1;
        given.2 = if lacks { wanted.2 } else { given.2 };
        all && !lacks
    });
    if wanted == given && !is_modified {
        tally.unmodified += 1;
    } else if wanted == given {
        tally.equal += 1;
        tally.with_rows += usize::from(rows > 0);
    } else if comparable(ask(oracle, manner, &text).await) != wanted {
        tally.unsteady += 1;
    } else if is_open(&text)
        && (&wanted.columns, &wanted.error) == (&given.columns, &given.error)
        && (wanted.tag == given.tag || takes_some_within(&text))
        || takes_some_within(&text) && given.code().is_some_and(|code| code.starts_with("22"))
    {
        // What is computed of the rows that were taken may fail for others (SQLSTATE class 22).
        tally.open += 1;
    } else {
        let differing = wanted.rows.iter().zip(&given.rows).find(|(wanted, given)| wanted != given);
        let shown = |row: &[Option<Vec<u8>>]| {
            let texts = row.iter().map(|value| value.as_deref().map(String::from_utf8_lossy));
            texts.collect::<Vec<_>>().iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ")
        };
        let rows = differing.map(|(wanted, given)| format!("{} instead of {}", shown(given), shown(wanted)));
        tally.wrong.push(format!(
            "{text}\n  {manner:?}: {:?} {} {:?}\n  instead of {:?} {} {:?}\n  {}",
            given.columns,
            given.tag,
            given.error,
            wanted.columns,
            wanted.tag,
            wanted.error,
            rows.unwrap_or_default()
        ));
    }
}

/// Rows in one order, floats as far as adding them up in another order leaves them alone, and no oids of users' types.
fn comparable(mut answer: Answer) -> Answer {
    const FLOATS: [i32; 2] = [700, 701];
    for (at, (_, oid, _, format)) in answer.columns.iter().enumerate() {
        for row in answer.rows.iter_mut().filter(|_| FLOATS.contains(oid)) {
            let Some(value) = &row[at] else { continue };
            let number = match (format, value.as_slice()) {
                (0, text) => std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok()),
                (_, &[a, b, c, d]) => Some(f64::from(f32::from_be_bytes([a, b, c, d]))),
                (_, bytes) => bytes.try_into().ok().map(f64::from_be_bytes),
            };
            row[at] = number.map(|number| format!("{number:.5e}").into_bytes());
        }
    }
    answer.columns.iter_mut().filter(|column| column.1 >= 16384).for_each(|column| column.1 = 16384);
    answer.sorted()
}

/// Whether the statement takes some rows of many, or looks at the order in which they come, as PostgreSQL likes.
fn is_open(text: &str) -> bool {
    const OPEN: [&str; 14] = [
        "limit",
        "fetch ",
        "offset",
        "distinct on",
        " over ",
        " over(",
        "_agg",
        "xmlagg",
        "tablesample",
        "first_value",
        "last_value",
        "mode(",
        "ctid",
        "with ties",
    ];
    let lower = text.to_ascii_lowercase();
    OPEN.iter().any(|word| lower.contains(word))
}

/// Whether a sub-query takes some rows of many: what is made of them, and so how many rows the whole has, is open then.
fn takes_some_within(text: &str) -> bool {
    let mut depth = 0;
    let lower = text.to_ascii_lowercase();
    lower.split_inclusive(|c: char| !c.is_ascii_alphanumeric()).any(|piece| {
        let is_inside = depth > 0 && (piece.starts_with("limit") || piece.starts_with("offset"));
        depth += i32::from(piece.ends_with('(')) - i32::from(piece.ends_with(')'));
        is_inside
    })
}

#[test]
fn what_a_sub_query_takes_is_told_from_what_the_whole_does() {
    assert!(takes_some_within("select (select a from t limit 1 offset 3) from u"));
    assert!(takes_some_within("select f(a) from (select a from t\nlimit 3) s"));
    assert!(!takes_some_within("select f(a) from (select a from t) s limit 3"));
}
