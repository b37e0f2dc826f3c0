//! One thing spelt in many ways: superfluous parentheses; positions, names and expressions in ORDER BY and GROUP BY; output names
//! that are also those of columns or types.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::schema::Sort;
use super::statements::{Item, Select, Source, Writer};

/// Output names: of tables' columns, of types, of functions, of key words, some of which have to be quoted.
const NAMES: [&str; 16] = [
    "k",
    "id",
    "c0",
    "c1",
    "C2",
    "x",
    "V",
    "date",
    "int4",
    "count",
    "name",
    "\"K\"",
    "\"A name\"",
    "\"select\"",
    "uuid",
    "\"c3\"",
];

impl Item {
    pub(super) fn new(text: impl Into<String>, sort: Option<Sort>) -> Self {
        Self { text: text.into(), sort, name: None }
    }

    pub(super) fn is_clear(&self) -> bool {
        self.sort.is_some_and(|sort| !sort.is_ambiguous())
    }

    /// The name of its output column as PostgreSQL keeps it, where that is easy to tell: an alias, a column's name, a function's.
    pub(super) fn output(&self) -> Option<String> {
        if let Some(name) = &self.name {
            return Some(folded(name));
        }
        let is_word = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(|c| c.is_ascii_alphanumeric())
        };
        let last = self.text.rsplit_once('.').map_or(self.text.as_str(), |(_, last)| last);
        let is_plain = |text: &str| text.bytes().all(|c| c == b'.' || c == b'"' || c.is_ascii_alphanumeric());
        if !["true", "null"].contains(&self.text.as_str())
            && is_plain(&self.text)
            && (is_word(last) || last.starts_with('"'))
        {
            return Some(folded(last));
        }
        let (function, arguments) = self.text.split_once('(')?;
        let is_whole = arguments.find(['(', ')']).is_some_and(|at| at + 1 == arguments.len());
        (is_word(function) && is_whole).then(|| function.to_owned())
    }

    /// As it stands in a select list.
    fn listed(&self, text: &str) -> String {
        match &self.name {
            None => text.to_owned(),
            Some(name) => format!("{text} as {name}"),
        }
    }
}

/// A name as PostgreSQL keeps it.
fn folded(name: &str) -> String {
    match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
        Some(quoted) => quoted.to_owned(),
        None => name.to_lowercase(),
    }
}

/// What a key of ORDER BY or GROUP BY is, and how it is spelt.
struct Key {
    text: String,
    /// The item that it means, counted from 0.
    item: usize,
}

impl Writer<'_, '_> {
    /// In as many superfluous parentheses as the dice say.
    pub(super) fn wrapped(&mut self, text: &str) -> String {
        match self.dice.random_range(0..24) {
            0 | 1 => format!("({text})"),
            2 => format!("(({text}))"),
            3 => format!("( ( ({text})))"),
            _ => text.to_owned(),
        }
    }

    /// A query as a sub-query.
    pub(super) fn nested(&mut self, query: &str) -> String {
        match self.dice.random_range(0..12) {
            0 => format!("(({query}))"),
            1 => format!("( (({query})) )"),
            _ => format!("({query})"),
        }
    }

    /// Gives some items names of their own.
    pub(super) fn named(&mut self, items: &mut [Item]) {
        if !self.chance(35) {
            return;
        }
        for item in items {
            if self.chance(50) {
                item.name = Some(self.one_of(&NAMES));
            }
        }
    }

    pub(super) fn select(&mut self, kind: &str, items: &[Item], from: &str, rest: &str) -> String {
        let list: Vec<String> = items
            .iter()
            .map(|item| {
                let text = self.wrapped(&item.text);
                item.listed(&text)
            })
            .collect();
        format!("select {kind}{} from {from}{rest}", list.join(", "))
    }

    /// The keys of GROUP BY for items: expressions, positions, names that no column has.
    pub(super) fn group_keys(&mut self, items: &[Item], sources: &[Source]) -> Vec<String> {
        (0..items.len())
            .map(|at| {
                let key = match (self.dice.random_range(0..8), items[at].output()) {
                    (0 | 1, _) => (at + 1).to_string(),
                    (2 | 3, Some(name)) if items[at].name.is_some() && self.may_group_by(&name, items, sources) => {
                        self.quoted(&name)
                    }
                    _ => items[at].text.clone(),
                };
                self.wrapped(&key)
            })
            .collect()
    }

    /// Whether a name in GROUP BY means the output column: a table's column of that name comes first. Seldom it is tried nevertheless.
    fn may_group_by(&mut self, name: &str, items: &[Item], sources: &[Source]) -> bool {
        let is_input =
            sources.iter().any(|source| !source.is_whole || source.columns.iter().any(|column| column.name == name));
        (!is_input && is_only(items, name)) || self.chance(2)
    }

    /// A kept name as it may be written.
    fn quoted(&mut self, name: &str) -> String {
        if name.bytes().any(|c| !c.is_ascii_lowercase() && !c.is_ascii_digit()) || name == "select" || self.chance(15) {
            return format!("\"{name}\"");
        }
        if self.chance(10) { name.to_uppercase() } else { name.to_owned() }
    }

    /// A key of ORDER BY for an item: its position, its name, or what it says.
    fn order_key(&mut self, items: &[Item], at: usize) -> Key {
        let item = &items[at];
        let key = match (self.dice.random_range(0..8), item.output()) {
            (0..3, Some(name)) if is_only(items, &name) => Key { text: self.quoted(&name), item: at },
            (3..6, _) if !item.text.is_empty() && item.text.parse::<f64>().is_err() && !item.text.starts_with('\'') => {
                // A bare name is an output column's before it is an input column's.
                let bare = items.iter().position(|other| other.output().as_ref() == Some(&folded(&item.text)));
                let named = if item.text.contains(['.', '(', ' ', ':']) { None } else { bare };
                Key { text: item.text.clone(), item: named.unwrap_or(at) }
            }
            _ => Key { text: (at + 1).to_string(), item: at },
        };
        Key { text: self.wrapped(&key.text), ..key }
    }

    /// ORDER BY and LIMIT behind a query whose items are known.
    pub(super) fn finished(&mut self, text: String, items: &[Item]) -> Select {
        if !self.chance(60) {
            return Select::new(self.at_rest(text), false);
        }
        let keys: Vec<usize> = (0..items.len()).filter(|&at| items[at].sort.is_some()).collect();
        let mut keys: Vec<Key> = keys.into_iter().map(|at| self.order_key(items, at)).collect();
        // Which key comes first matters more than that all do.
        let len = keys.len();
        if len > 1 {
            let first = self.dice.random_range(0..len);
            keys.swap(0, first);
        }
        if keys.is_empty() {
            return Select::new(self.at_rest(text), false);
        }
        let is_total = (0..items.len()).all(|at| items[at].is_clear() && keys.iter().any(|key| key.item == at));
        let keys: Vec<String> = keys
            .iter()
            .map(|key| {
                let direction = self.one_of(&["", "", " desc", " nulls first", " desc nulls last"]);
                format!("{}{direction}", key.text)
            })
            .collect();
        let text = if self.chance(4) { format!("({text})") } else { text };
        let mut text = format!("{text} order by {}", keys.join(", "));
        if is_total && self.chance(50) {
            let number = self.dice.random_range(0..30);
            let rows = self.count(number);
            text += &match self.dice.random_range(0..6) {
                0 => format!(" limit {rows} offset {}", number / 2),
                1 => format!(" offset {rows}"),
                2 => format!(" fetch first {} rows only", number + 1),
                3 => format!(" offset ({rows} / 2) limit (({rows}))"),
                4 => format!(" limit {rows} + 1"),
                _ => format!(" limit {rows}"),
            };
        }
        Select::new(self.at_rest(text), is_total)
    }

    /// A whole statement, which may stand in parentheses, too.
    fn at_rest(&mut self, text: String) -> String {
        if self.chance(4) { self.nested(&text) } else { text }
    }

    /// Columns of all that FROM names by a star, and whole rows.
    pub(super) fn star(&mut self, from: &str, filter: &str, sources: &[Source]) -> (String, Vec<Item>) {
        let all = |source: &Source| {
            let item = |column: &super::schema::Column| {
                Item::new(source.name_of(column), super::statements::orderable(column.sort))
            };
            source.columns.iter().map(item).collect::<Vec<_>>()
        };
        let is_whole = sources.iter().all(|source| source.is_whole);
        if self.chance(40) || !is_whole {
            let items = if is_whole { sources.iter().flat_map(all).collect() } else { Vec::new() };
            return (format!("select * from {from}{filter}"), items);
        }
        let (mut list, mut items) = (Vec::new(), Vec::new());
        for _ in 0..self.dice.random_range(1..3) {
            let source = sources.choose(self.dice).expect("some");
            items.extend(all(source));
            list.push(format!("{}.*", source.alias));
        }
        if let Some((column, sort)) = self.column(sources, |_| true) {
            list.push(format!("({column}) as more"));
            items.push(Item::new(column, super::statements::orderable(sort)));
            items.last_mut().expect("it").name = Some("more".into());
        }
        (format!("select {} from {from}{filter}", list.join(", ")), items)
    }
}

/// Whether one item alone has a name.
fn is_only(items: &[Item], name: &str) -> bool {
    items.iter().filter(|item| item.output().as_deref() == Some(name)).count() == 1
}
