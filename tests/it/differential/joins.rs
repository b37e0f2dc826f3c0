//! What stands in FROM: tables, views, sub-queries, and joins in every spelling.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::schema::{Column, Sort, Table};
use super::statements::{Source, Writer};

impl Source {
    pub(super) fn of(alias: &str, table: &Table) -> Self {
        Self { alias: alias.into(), columns: table.columns.clone(), is_whole: table.is_whole }
    }

    /// A column of it as it is spelt outside; columns that a join has merged belong to no relation.
    pub(super) fn name_of(&self, column: &Column) -> String {
        if self.alias.is_empty() { column.name.clone() } else { format!("{}.{}", self.alias, column.name) }
    }
}

impl Writer<'_, '_> {
    pub(super) fn from(&mut self, depth: u32) -> (String, Vec<Source>) {
        if self.chance(12)
            && let Some(merged) = self.merged()
        {
            return merged;
        }
        let (mut text, first) = self.source(depth);
        let mut sources = vec![first];
        let joins = [0, 0, 0, 1, 1, 2][self.dice.random_range(0..6)];
        for _ in 0..joins {
            let (other, source) = self.source(depth);
            let Some(on) = self.equality(&sources, &source) else { continue };
            let on = self.wrapped(&on);
            let kind = self.one_of(&["join", "inner join", "left join", "right join", "full join", "left outer join"]);
            let more = if kind != "full join" && self.chance(30) {
                let own = [source];
                self.is_crowded = true;
                let text = format!(" and {}", self.comparison(&own));
                self.is_crowded = false;
                let [source] = own;
                sources.push(source);
                text
            } else {
                sources.push(source);
                String::new()
            };
            text = format!("{text} {kind} {other} on {on}{more}");
            if self.chance(12) {
                text = self.nested(&text);
            }
        }
        (text, sources)
    }

    /// Relations with commas between them, and what joins them, which belongs into WHERE.
    pub(super) fn listed(&mut self, depth: u32) -> Option<(String, Vec<Source>, String)> {
        let ((left, first), (right, second)) = (self.source(depth), self.source(depth));
        let on = self.equality(std::slice::from_ref(&first), &second)?;
        let comma = self.one_of(&[", ", ", ", " cross join "]);
        Some((format!("{left}{comma}{right}"), vec![first, second], on))
    }

    /// Joins by names that both sides have: USING and NATURAL.
    fn merged(&mut self) -> Option<(String, Vec<Source>)> {
        let ((left, first), (right, second)) = (self.source(0), self.source(0));
        let is_common = |a: &&Column| second.columns.iter().any(|b| a.name == b.name && a.sort == b.sort);
        let common: Vec<Column> = first.columns.iter().filter(is_common).cloned().collect();
        let column = common.choose(self.dice)?.clone();
        let kind = self.one_of(&["join", "left join", "right join", "full join"]);
        let name = &column.name;
        let both = Source { alias: String::new(), columns: vec![column.clone()], is_whole: false };
        match self.dice.random_range(0..4) {
            0 => {
                let text = format!("{left} natural {kind} (select {name} from {right}) n");
                Some((text, vec![partial(first), both]))
            }
            1 => {
                let alias = self.alias();
                let is_of_one = |a: &&Column| !second.columns.iter().any(|b| a.name == b.name);
                let mut columns: Vec<Column> = first.columns.iter().filter(is_of_one).cloned().collect();
                columns.push(column.clone());
                let text = format!("({left} {kind} {right} using ({name})) {alias}");
                Some((text, vec![Source { alias, columns, is_whole: false }]))
            }
            _ => {
                let mut text = format!("{left} {kind} {right} using ({name})");
                if self.chance(20) {
                    text = self.nested(&text);
                }
                Some((text, vec![partial(first), partial(second), both]))
            }
        }
    }

    pub(super) fn source(&mut self, depth: u32) -> (String, Source) {
        let alias = self.alias();
        if depth > 0 && self.chance(15) {
            return self.derived(depth, alias);
        }
        // Outer joins with the reference table, which every shard has whole, are a trap of their own.
        let table = if self.chance(15) { self.tables.last() } else { self.tables.choose(self.dice) };
        let table = table.expect("tables");
        let name = self.name_of(table);
        let name = if self.dice.random_range(0..8) == 0 { format!("public.{name}") } else { name };
        let mut source = Source::of(&alias, table);
        if self.chance(6) {
            // The first columns get other names, which may be those of others behind them.
            let names = [["i", "j"], ["k", "id"], ["c0", "x"]][self.dice.random_range(0..3)];
            let behind = &source.columns[2..];
            if !behind.iter().any(|column| names.contains(&column.name.as_str())) {
                source.columns.iter_mut().zip(names).for_each(|(column, name)| column.name = name.into());
                return (format!("{name} {alias} ({})", names.join(", ")), source);
            }
        }
        let between = self.one_of(&[" ", " ", " as "]);
        (format!("{name}{between}{alias}"), source)
    }

    /// A sub-query in FROM, with names of its own or with those that its columns have.
    fn derived(&mut self, depth: u32, alias: String) -> (String, Source) {
        let (text, items) = self.block(depth - 1);
        let query = self.nested(&text);
        let outputs: Option<Vec<String>> = items.iter().map(super::statements::Item::output).collect();
        let distinct = |names: &Vec<String>| (1..names.len()).all(|at| !names[..at].contains(&names[at]));
        let is_plain = |names: &Vec<String>| {
            names
                .iter()
                .all(|name| name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) && name != "select")
        };
        let kept = outputs.filter(|names| distinct(names) && is_plain(names) && self.chance(50));
        let list = kept.is_none() && !items.is_empty();
        let names = kept.unwrap_or_else(|| (0..items.len()).map(|at| format!("d{at}")).collect());
        let is_whole = !items.is_empty() && items.iter().all(|item| item.sort.is_some());
        let known =
            items.iter().zip(&names).filter_map(|(item, name)| Some(Column { name: name.clone(), sort: item.sort? }));
        let source = Source { alias, columns: known.collect(), is_whole };
        let list = if list { format!(" ({})", names.join(", ")) } else { String::new() };
        (format!("{query} {}{list}", source.alias), source)
    }

    /// The table's name, or that of the view over it.
    pub(super) fn name_of(&mut self, table: &Table) -> String {
        if self.chance(12) { format!("{}_v", table.name) } else { table.name.clone() }
    }

    /// An equality of columns of one sort, by preference of keys.
    pub(super) fn equality(&mut self, sources: &[Source], other: &Source) -> Option<String> {
        let mut pairs = Vec::new();
        for source in sources.iter().filter(|source| !source.alias.is_empty()) {
            for a in &source.columns {
                for b in other.columns.iter().filter(|b| b.sort == a.sort) {
                    let weight = if a.name == "k" && b.name == "k" { 6 } else { 1 };
                    let pair = format!("{} = {}", source.name_of(a), other.name_of(b));
                    pairs.extend(std::iter::repeat_n(pair, weight));
                }
            }
        }
        pairs.choose(self.dice).cloned()
    }

    /// A column of them, at times without its relation's name where nothing else has the name.
    pub(super) fn column(&mut self, sources: &[Source], fits: impl Fn(Sort) -> bool) -> Option<(String, Sort)> {
        let of = |at: usize| sources[at].columns.iter().map(move |column| (at, column));
        let all: Vec<(usize, &Column)> =
            (0..sources.len()).flat_map(of).filter(|(_, column)| fits(column.sort)).collect();
        let &(at, column) = all.choose(self.dice)?;
        let is_sure = !self.is_crowded && (sources.len() == 1 || sources.iter().all(|source| source.is_whole));
        let same = sources.iter().flat_map(|source| &source.columns).filter(|other| other.name == column.name).count();
        let bare = is_sure && same == 1 && self.chance(25);
        Some((if bare { column.name.clone() } else { sources[at].name_of(column) }, column.sort))
    }
}

/// One of whose names a join has made another use.
fn partial(source: Source) -> Source {
    Source { is_whole: false, ..source }
}
