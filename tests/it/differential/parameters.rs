//! Constants as parameters: with a type that Parse declares, with a cast, or with whatever PostgreSQL finds out.

use rand::Rng;

use super::schema::Sort;
use super::statements::{Select, Writer, type_name};

/// A parameter's value in text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parameter {
    pub(super) value: Option<String>,
    /// What Parse declares; 0 for nothing.
    pub(super) oid: u32,
}

impl Writer<'_, '_> {
    /// A constant of a sort, or a parameter that holds it.
    pub(super) fn constant(&mut self, sort: Sort) -> String {
        let text = sort.constant(self.dice);
        if self.parameters.is_none() || self.chance(30) {
            return text;
        }
        let value = (!self.chance(4)).then(|| plain(&text));
        match self.dice.random_range(0..5) {
            // Compared with an untyped constant, a row is one of no type.
            0 | 1 if !sort.is_row() => self.parameter(value, 0),
            0..=2 => format!("{}::{}", self.parameter(value, 0), type_name(sort)),
            3 => format!("cast({} as {})", self.parameter(value, 0), type_name(sort)),
            _ if sort.is_row() => self.constant(sort),
            _ => self.parameter(value, oid(sort)),
        }
    }

    /// A number of rows for LIMIT or OFFSET.
    pub(super) fn count(&mut self, rows: u32) -> String {
        if self.parameters.is_none() || self.chance(50) {
            return rows.to_string();
        }
        self.parameter(Some(rows.to_string()), 0)
    }

    fn parameter(&mut self, value: Option<String>, oid: u32) -> String {
        let parameters = self.parameters.as_mut().expect("it has some");
        parameters.push(Parameter { value, oid });
        format!("${}", parameters.len())
    }

    /// A statement with those of the parameters that it names, numbered from 1 in an order of their own.
    pub(super) fn with_parameters(&mut self, select: Select) -> Select {
        let Some(all) = self.parameters.take() else { return select };
        let mut used: Vec<usize> = (1..=all.len()).filter(|&number| names(&select.text, number)).collect();
        if self.chance(30) {
            used.reverse();
        }
        // From the back, so that `$1` is not found in `$12`; under other signs, so that none is replaced twice.
        let mut text = select.text;
        for number in (1..=all.len()).rev() {
            if let Some(at) = used.iter().position(|&it| it == number) {
                text = text.replace(&format!("${number}"), &format!("?{}", at + 1));
            }
        }
        let parameters = used.iter().map(|&number| all[number - 1].clone()).collect();
        Select { text: text.replace('?', "$"), parameters, ..select }
    }
}

/// Whether a text has the parameter of that number.
fn names(text: &str, number: usize) -> bool {
    let sign = format!("${number}");
    let is_end = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
    text.match_indices(&sign).any(|(at, _)| is_end(&text[at + sign.len()..]))
}

/// A constant as its type reads it.
fn plain(constant: &str) -> String {
    let text = constant.strip_prefix("interval ").unwrap_or(constant);
    let text = text.split_once("::").map_or(text, |(text, _)| text);
    match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        Some(quoted) => quoted.replace("''", "'"),
        None => text.to_owned(),
    }
}

/// The type's oid; 0 for types that have another one on each server.
fn oid(sort: Sort) -> u32 {
    match sort {
        Sort::Int => 23,
        Sort::Big => 20,
        Sort::Small => 21,
        Sort::Money | Sort::Wide => 1700,
        Sort::Float => 701,
        Sort::Text | Sort::TextC => 25,
        Sort::Char => 1042,
        Sort::Bool => 16,
        Sort::Date => 1082,
        Sort::Stamp => 1114,
        Sort::Zoned => 1184,
        Sort::Span => 1186,
        Sort::Uuid => 2950,
        Sort::Json => 3802,
        Sort::List => 1007,
        Sort::Bytes => 17,
        Sort::Mood | Sort::Label | Sort::LabelC | Sort::Even | Sort::Pair | Sort::PairC => 0,
    }
}
