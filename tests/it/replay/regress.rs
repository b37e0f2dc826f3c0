//! The SELECTs of PostgreSQL's regression tests, over sharded copies of the tables that the tests begin with.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Copies, Tally, replay};
use crate::harness;

/// Tables of `test_setup.sql` by keys that have something to tell apart.
const KEYED: [(&str, &str); 14] = [
    ("onek", "unique1"),
    ("tenk1", "unique1"),
    ("tenk2", "unique2"),
    ("int2_tbl", "f1"),
    ("int4_tbl", "f1"),
    ("int8_tbl", "q1"),
    ("text_tbl", "f1"),
    ("varchar_tbl", "f1"),
    ("float8_tbl", "f1"),
    ("emp", "name"),
    ("student", "name"),
    ("person", "name"),
    ("road", "name"),
    ("a_star", "class"),
];

#[tokio::test]
async fn the_selects_of_postgresqls_tests_are_answered_as_by_one_postgresql() {
    let Some(suite) = std::env::var_os("PGHERD_REGRESS_SUITE").map(PathBuf::from) else { return };
    let whole = harness::fresh_database().await;
    set_up(&suite, &whole.conninfo());
    let there = whole.client().await;
    let mut keyed = Vec::new();
    for (table, key) in KEYED {
        let found = there
            .query_one(
                "select count(*) > 0 from pg_attribute join pg_class c on c.oid = attrelid and relkind = 'r'
                 where relname = $1 and attname = $2 and not exists (select from pg_inherits where inhparent = c.oid or inhrelid = c.oid)",
                &[&table, &key],
            )
            .await
            .expect("the catalog");
        if found.get(0) {
            keyed.push((table, key));
        }
    }
    drop(there);
    eprintln!("sharded: {keyed:?}");
    assert!(keyed.len() > 8, "the tables are there: {keyed:?}");
    let copies = Copies::new(whole, &keyed, 3).await;
    let mut tally = Tally::default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(suite.join("sql"))
        .expect("the suite's tests")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    for file in files {
        let text = String::from_utf8_lossy(&std::fs::read(&file).expect("a test")).into_owned();
        replay(&copies, selects(&text, &keyed).into_iter(), &mut tally).await;
    }
    copies.stop().await;
    tally.tell("PostgreSQL's regression tests");
    assert!(tally.wrong.is_empty(), "{} differ\n{}", tally.wrong.len(), tally.wrong.join("\n"));
    assert!(tally.with_rows > 100, "there was something to compare");
}

/// Runs `test_setup.sql` as pg_regress does.
fn set_up(suite: &Path, conninfo: &str) {
    let psql = harness::ground().binaries().postgres_program("psql");
    let mut command = harness::ground().command(psql);
    command.args(["-X", "-q", "-d", conninfo, "-f"]).arg(suite.join("sql/test_setup.sql"));
    command.env("PG_ABS_SRCDIR", suite).env("PG_LIBDIR", suite).env("PG_DLSUFFIX", ".so");
    let output = Command::output(&mut command).expect("psql runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// The SELECTs of a test that name a sharded table, cut apart by PostgreSQL's lexical rules.
fn selects(text: &str, keyed: &[(&str, &str)]) -> Vec<String> {
    use pgherd::sql::lexer::{Lexer, TokenKind};
    // psql's own lines are not SQL.
    let lines: Vec<&str> =
        text.lines().map(|line| if line.trim_start().starts_with('\\') { "" } else { line }).collect();
    let text = lines.join("\n");
    let (mut start, mut found) = (0, Vec::new());
    let mut names: Vec<String> = Vec::new();
    for token in Lexer::new(text.as_bytes(), true).significant() {
        let bytes = token.bytes(text.as_bytes());
        if token.kind == TokenKind::Word {
            names.push(String::from_utf8_lossy(bytes).to_ascii_lowercase());
        }
        if bytes == b";" {
            let statement = text[start..token.start].trim().to_owned();
            start = token.end;
            let is_read = matches!(names.first().map(String::as_str), Some("select" | "with" | "values" | "table"));
            let is_plain = !names.iter().any(|name| {
                matches!(
                    name.as_str(),
                    "insert" | "update" | "delete" | "into" | "random" | "pg_sleep" | "share" | "tablesample"
                )
            });
            if is_read && is_plain && names.iter().any(|name| keyed.iter().any(|(table, _)| table == name)) {
                found.push(statement);
            }
            names.clear();
        }
    }
    found
}
