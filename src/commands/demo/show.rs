//! Printing for a terminal of 100 columns.

use std::io::{self, Write};
use std::time::Duration;

use super::truth::Answer;

/// Columns of the terminal.
const WIDTH: usize = 100;
/// Rows of an answer that are shown.
const ROWS: usize = 6;

/// Prints one line; a reader that has gone away (`| head`) is no reason to stop.
pub(super) fn line(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// A step's heading.
pub(super) fn heading(number: usize, title: &str) {
    let head = format!("{number:>2}. {title} ");
    line(&format!("\n{head}{}", "-".repeat(WIDTH.saturating_sub(head.chars().count()))));
}

/// A text behind a label, broken at blanks.
pub(super) fn labelled(label: &str, text: &str) {
    let mut lines = wrap(text, WIDTH - 12).into_iter();
    line(&format!("    {label:<7} {}", lines.next().unwrap_or_default()));
    lines.for_each(|rest| line(&format!("            {rest}")));
}

/// The first rows of an answer, aligned, or the number of rows that a write changed.
pub(super) fn answer(answer: &Answer) {
    if answer.columns.is_empty() {
        return labelled("answer", &format!("{} row changed", answer.affected));
    }
    let mut table: Vec<Vec<String>> = vec![answer.columns.clone()];
    let cell = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
    table.extend(answer.rows.iter().take(ROWS).map(|row| row.iter().map(cell).collect()));
    let mut lines = aligned(&table).into_iter();
    line(&format!("    answer  {}", lines.next().unwrap_or_default()));
    lines.for_each(|row| line(&format!("            {row}")));
    if answer.rows.len() > ROWS {
        line(&format!("            ... and {} rows more", answer.rows.len() - ROWS));
    }
}

/// Rows with their columns below each other; numbers stand to the right.
pub(super) fn aligned(table: &[Vec<String>]) -> Vec<String> {
    let columns = table.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        table.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let is_number = |cell: &String| {
        cell.starts_with(|first: char| first.is_ascii_digit() || first == '-') && !cell.contains([' ', ':'])
    };
    let numeric = |column: usize| table.len() > 1 && table[1..].iter().filter_map(|row| row.get(column)).all(is_number);
    let row = |cells: &Vec<String>| {
        let cells: Vec<String> = cells
            .iter()
            .enumerate()
            .map(
                |(at, cell)| {
                    if numeric(at) { format!("{cell:>0$}", widths[at]) } else { format!("{cell:<0$}", widths[at]) }
                },
            )
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    table.iter().map(row).collect()
}

/// The text cut to a number of characters, with an ellipsis where something is missing.
pub(super) fn shortened(text: &str, width: usize) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if one_line.chars().count() <= width {
        return one_line;
    }
    let head: String = one_line.chars().take(width.saturating_sub(3)).collect();
    format!("{}...", head.trim_end())
}

/// A duration as milliseconds.
pub(super) fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let full = lines
            .last()
            .is_some_and(|last| !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width);
        if full {
            lines.push(String::new());
        }
        if let Some(last) = lines.last_mut() {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_broken_at_blanks() {
        assert_eq!(wrap("select a,  b\n from t", 10), ["select a,", "b from t"]);
        assert_eq!(wrap("", 10), [""]);
    }

    #[test]
    fn numbers_stand_to_the_right() {
        let table = [
            vec!["name".to_owned(), "n".to_owned()],
            vec!["a".to_owned(), "10".to_owned()],
            vec!["b".to_owned(), "9".to_owned()],
        ];
        assert_eq!(aligned(&table), ["name   n", "a     10", "b      9"]);
    }

    #[test]
    fn long_texts_end_in_an_ellipsis() {
        assert_eq!(shortened("select   1", 20), "select 1");
        assert_eq!(shortened("select something long", 12), "select so...");
    }
}
