//! Compares the two readings of every statement of SQL files: `statements FILE...`.

use std::collections::BTreeMap;

use pgherd_fuzz::oracle;

fn main() {
    let (mut read, mut alike) = (0_u32, 0_u32);
    let mut differences: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in std::env::args().skip(1) {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        // psql's own commands and COPY data end a statement here.
        let text: String =
            text.lines().map(|line| if line.starts_with('\\') { ";" } else { line }).collect::<Vec<_>>().join("\n");
        for statement in pg_query::split_with_scanner(&text).unwrap_or_default() {
            if pg_query::parse(statement, pg_query::ParserOptions::default()).is_err() {
                continue;
            }
            read += 1;
            match oracle::compare(statement.as_bytes()) {
                Ok(()) => alike += 1,
                Err(difference) => differences.entry(difference).or_default().push(format!("{path}: {statement}")),
            }
        }
    }
    for (difference, statements) in &differences {
        println!("{} x {difference}\n    {}", statements.len(), statements[0].replace('\n', "\n    "));
    }
    println!("{alike} of {read} statements that PostgreSQL accepts are read alike");
    std::process::exit(i32::from(!differences.is_empty()));
}
