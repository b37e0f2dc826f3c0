//! Random SELECTs over random tables, with what is known of their answers.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::parameters::Parameter;
use super::schema::{Column, Sort, Table};

/// A statement.
#[derive(Debug)]
pub(super) struct Select {
    pub(super) text: String,
    /// Whether its ORDER BY fixes the order of its rows.
    pub(super) is_ordered: bool,
    /// What `$1` and so on are.
    pub(super) parameters: Vec<Parameter>,
}

impl Select {
    pub(super) fn new(text: impl Into<String>, is_ordered: bool) -> Self {
        Self { text: text.into(), is_ordered, parameters: Vec::new() }
    }
}

/// A relation in a FROM list.
pub(super) struct Source {
    pub(super) alias: String,
    pub(super) columns: Vec<Column>,
    /// Whether these are all of its columns, in their order.
    pub(super) is_whole: bool,
}

/// An item of a select list.
pub(super) struct Item {
    pub(super) text: String,
    /// What it gives, if more may be done with it.
    pub(super) sort: Option<Sort>,
    /// A name for its output column, as it is written.
    pub(super) name: Option<String>,
}

pub(super) struct Writer<'d, 't> {
    pub(super) dice: &'d mut StdRng,
    pub(super) tables: &'t [Table],
    /// Those of the statement at hand, if it may have some.
    pub(super) parameters: Option<Vec<Parameter>>,
    /// Whether its rows may be asked for in binary form. That of types that are not PostgreSQL's own has oids in it, which several
    /// servers do not share: pgherd refuses it by design.
    pub(super) is_binary: bool,
    /// Whether it stands where more relations can be seen than are given.
    pub(super) is_crowded: bool,
    next_alias: usize,
}

impl<'d, 't> Writer<'d, 't> {
    pub(super) fn new(dice: &'d mut StdRng, tables: &'t [Table], is_binary: bool) -> Self {
        Self { dice, tables, parameters: None, is_binary, is_crowded: false, next_alias: 0 }
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.dice.random_range(0..100) < percent
    }

    pub(super) fn one_of(&mut self, texts: &[&str]) -> String {
        (*texts.choose(self.dice).expect("some")).to_owned()
    }

    pub(super) fn alias(&mut self) -> String {
        self.next_alias += 1;
        format!("t{}", self.next_alias)
    }

    /// A whole statement, with parameters or without.
    pub(super) fn either(&mut self) -> Select {
        if self.chance(40) { self.prepared() } else { self.statement() }
    }

    /// A whole statement, some of whose constants are parameters.
    pub(super) fn prepared(&mut self) -> Select {
        self.parameters = Some(Vec::new());
        let select = self.statement();
        self.with_parameters(select)
    }

    /// A whole statement.
    pub(super) fn statement(&mut self) -> Select {
        match self.dice.random_range(0..16) {
            0 => self.set_operation(),
            1 => self.with(),
            2 => self.recursive(),
            3 => self.lateral(),
            4 => self.distinct_on(),
            5 => self.grouping_sets(),
            6 => self.moments(),
            7 => self.collated(),
            8 => self.framed(),
            _ => {
                let (text, items) = self.block(2);
                self.finished(text, &items)
            }
        }
    }

    fn set_operation(&mut self) -> Select {
        let sorts: Vec<Sort> = {
            let table = self.tables.choose(self.dice).expect("tables");
            let some = table.columns.iter().filter(|column| !column.sort.is_ambiguous());
            some.map(|column| column.sort).take(2).collect()
        };
        let mut sides = Vec::new();
        for _ in 0..self.dice.random_range(2..4) {
            let source = self.tables.choose(self.dice).expect("tables").clone();
            let mut list = Vec::new();
            for &sort in &sorts {
                let same: Vec<&Column> = source.columns.iter().filter(|column| column.sort == sort).collect();
                list.push(match same.choose(self.dice) {
                    Some(column) => column.name.clone(),
                    None => format!("null::{}", type_name(sort)),
                });
            }
            let filter =
                if self.chance(50) { format!(" where id < {}", self.dice.random_range(1..90)) } else { String::new() };
            sides.push(format!("select {} from {}{filter}", list.join(", "), source.name));
        }
        let mut text = sides.remove(0);
        for side in sides {
            let operation = self.one_of(&["union", "union all", "intersect", "except", "except all", "intersect all"]);
            text = format!("({text}) {operation} ({side})");
        }
        let items: Vec<Item> = sorts.iter().map(|&sort| Item::new("", orderable(sort))).collect();
        self.finished(text, &items)
    }

    fn with(&mut self) -> Select {
        let (inner, items) = self.block(1);
        if items.is_empty() {
            return self.finished(inner, &items);
        }
        let names: Vec<String> = (0..items.len()).map(|at| format!("x{at}")).collect();
        let materialized = self.one_of(&["", "materialized ", "not materialized "]);
        let list: Vec<Item> =
            items.into_iter().zip(&names).map(|(item, name)| Item { text: name.clone(), name: None, ..item }).collect();
        let (columns, from) = (names.join(", "), if self.chance(30) { "w cross join r" } else { "w" });
        let text = format!("with w ({columns}) as {materialized}({inner}) select {columns} from {from}");
        self.finished(text, &list)
    }

    /// A SELECT without its tail; `depth` levels of sub-queries may stand in it.
    pub(super) fn block(&mut self, depth: u32) -> (String, Vec<Item>) {
        let listed = if self.chance(12) { self.listed(depth) } else { None };
        let (from, sources, on) = match listed {
            Some((from, sources, on)) => (from, sources, Some(on)),
            None => {
                let (from, sources) = self.from(depth);
                (from, sources, None)
            }
        };
        let own = self.chance(65).then(|| self.condition(&sources, depth));
        let filter = match (on, own) {
            (None, None) => String::new(),
            (Some(one), None) | (None, Some(one)) => format!(" where {}", self.wrapped(&one)),
            (Some(on), Some(own)) if own.contains(" or ") => format!(" where {on} and ({own})"),
            (Some(on), Some(own)) => format!(" where {} and {own}", self.wrapped(&on)),
        };
        match self.dice.random_range(0..22) {
            0..=7 => self.rows(&from, &filter, &sources, depth),
            8..=13 => self.groups(&from, &filter, &sources),
            14 | 15 => self.distinct(&from, &filter, &sources),
            16 | 17 => self.windows(&from, &filter, &sources),
            18 | 19 if !self.is_binary => self.star(&from, &filter, &sources),
            _ => self.totals(&from, &filter, &sources),
        }
    }

    pub(super) fn condition(&mut self, sources: &[Source], depth: u32) -> String {
        match self.dice.random_range(0..12) {
            0 => {
                let (one, other) = (self.comparison(sources), self.comparison(sources));
                format!("{} and {}", self.wrapped(&one), self.wrapped(&other))
            }
            1 => format!("({} or {})", self.comparison(sources), self.comparison(sources)),
            2 => format!("not ({})", self.comparison(sources)),
            3 | 4 if depth > 0 => self.sub_condition(sources),
            _ => self.comparison(sources),
        }
    }

    fn sub_condition(&mut self, sources: &[Source]) -> String {
        let alias = self.alias();
        let table = self.tables.choose(self.dice).expect("tables").clone();
        let inner = Source::of(&alias, &table);
        let (name, not) = (self.name_of(&table), self.one_of(&["", "not "]));
        let own = [inner];
        match self.dice.random_range(0..6) {
            0 => {
                let Some(on) = self.equality(sources, &own[0]) else { return "true".into() };
                let more = self.comparison(&own);
                let query = self.nested(&format!("select 1 from {name} {alias} where {on} and {more}"));
                format!("{not}exists {query}")
            }
            1 => {
                let Some((column, sort)) = self.column(sources, |sort| sort != Sort::Json) else {
                    return "true".into();
                };
                let Some((other, _)) = self.column(&own, |own| own == sort) else { return "true".into() };
                let query = self.nested(&format!("select {other} from {name} {alias} where {other} is not null"));
                format!("{column} {not}in {query}")
            }
            2 => {
                let Some(on) = self.equality(sources, &own[0]) else { return "true".into() };
                let (what, n) = (self.one_of(&["count(*)", "count(*) + 1"]), self.dice.random_range(0..4));
                let query = self.nested(&format!("select {what} from {name} {alias} where {on}"));
                format!("{query} > {n}")
            }
            3 => {
                let on = self.equality(sources, &own[0]);
                let Some((outer, inner)) = on.as_deref().and_then(|on| on.split_once(" = ")) else {
                    return "true".into();
                };
                let (more, n) = (self.comparison(&own), self.dice.random_range(0..3));
                let tail = match self.dice.random_range(0..3) {
                    0 => format!("where {more}"),
                    1 => format!("where {more} group by {inner} having count(*) > {n}"),
                    _ => format!("group by 1 having count(*) > {n}"),
                };
                let query = self.nested(&format!("select {inner} from {name} {alias} {tail}"));
                format!("{outer} {not}in {query}")
            }
            4 => {
                let Some(on) = self.equality(sources, &own[0]) else { return "true".into() };
                let more = self.comparison(&own);
                let derived = format!("{} {alias}", self.nested(&format!("select * from {name} where id > 2")));
                format!("{not}exists (select from {derived} where {on} and {more})")
            }
            _ => {
                let Some((column, sort)) = self.column(sources, Sort::is_number) else { return "true".into() };
                let Some((other, _)) = self.column(&own, |own| own == sort) else { return "true".into() };
                let query = self.nested(&format!("select avg({other}) from {name} {alias}"));
                format!("{column} >= {query}")
            }
        }
    }

    pub(super) fn comparison(&mut self, sources: &[Source]) -> String {
        let Some((column, sort)) = self.column(sources, |_| true) else { return "true".into() };
        let constant = self.constant(sort);
        let (column, constant) = (self.wrapped(&column), self.wrapped(&constant));
        match self.dice.random_range(0..9) {
            0 => format!("{column} is null"),
            1 => format!("{column} is not null"),
            2 => format!("{column} in ({constant}, {})", self.constant(sort)),
            3 => format!("{column} between {constant} and {}", self.constant(sort)),
            4 => format!("{column} is distinct from {constant}"),
            5 => format!("coalesce({column} = {constant}, false)"),
            _ => format!("{column} {} {constant}", self.one_of(&["=", "<", ">", "<=", ">=", "<>"])),
        }
    }

    fn rows(&mut self, from: &str, filter: &str, sources: &[Source], depth: u32) -> (String, Vec<Item>) {
        let mut items: Vec<Item> = (0..self.dice.random_range(1..5)).map(|_| self.scalar(sources)).collect();
        if depth > 0 && self.chance(15) {
            let alias = self.alias();
            let table = self.tables.choose(self.dice).expect("tables").clone();
            let inner = [Source::of(&alias, &table)];
            if let Some(on) = self.equality(sources, &inner[0]) {
                let name = self.name_of(&table);
                let text = self.nested(&format!("select count(*) from {name} {alias} where {on}"));
                items.push(Item::new(text, Some(Sort::Big)));
            }
        }
        self.named(&mut items);
        (self.select("", &items, from, filter), items)
    }

    fn distinct(&mut self, from: &str, filter: &str, sources: &[Source]) -> (String, Vec<Item>) {
        let mut items = Vec::new();
        for _ in 0..self.dice.random_range(1..3) {
            if let Some((text, sort)) = self.column(sources, |sort| !sort.is_ambiguous()) {
                items.push(Item::new(text, orderable(sort)));
            }
        }
        if items.is_empty() {
            items.push(Item::new("1", None));
        }
        self.named(&mut items);
        let kind = self.one_of(&["distinct ", "distinct ", "all "]);
        (self.select(&kind, &items, from, filter), items)
    }

    pub(super) fn aggregate(&mut self, sources: &[Source]) -> Item {
        let number = self.column(sources, Sort::is_number);
        let any = self.column(sources, |sort| !sort.is_ambiguous());
        let extreme = self.column(sources, Sort::has_extremes);
        let flag = self.column(sources, |sort| sort == Sort::Bool);
        let (text, sort) = match (self.dice.random_range(0..16), number, any, extreme, flag) {
            (0 | 1, Some((column, _)), ..) => (format!("sum({column})"), None),
            (2 | 3, Some((column, _)), ..) => (format!("avg({column})"), None),
            (4 | 5, _, _, Some((column, sort)), _) => (format!("min({column})"), orderable(sort)),
            (6, _, _, Some((column, sort)), _) => (format!("max({column})"), orderable(sort)),
            (7, _, Some((column, _)), ..) => (format!("count(distinct {column})"), Some(Sort::Big)),
            (8, _, _, _, Some((column, _))) => (format!("bool_or({column})"), Some(Sort::Bool)),
            (9, Some((column, _)), ..) => (format!("round(avg({column}), 2)"), None),
            (10, Some((column, sort)), ..) if sort != Sort::Wide => (format!("stddev({column})"), None),
            (11, _, Some((column, sort)), ..) if !self.is_binary || !sort.is_own() => {
                (format!("array_agg({column} order by {column})"), None)
            }
            (12, _, Some((column, _)), ..) => {
                (format!("string_agg({column}::text, ',' order by {column}::text)"), None)
            }
            (13, Some((column, sort)), ..) if sort != Sort::Wide => (format!("sum({column}) / count(*)"), None),
            (14, _, Some((column, _)), ..) => {
                (format!("count(*) filter (where {column} is not null)"), Some(Sort::Big))
            }
            (15, Some((column, Sort::Int)), ..) => (format!("bit_or({column})"), Some(Sort::Int)),
            _ => ("count(*)".into(), Some(Sort::Big)),
        };
        Item::new(text, sort)
    }

    fn totals(&mut self, from: &str, filter: &str, sources: &[Source]) -> (String, Vec<Item>) {
        let mut items: Vec<Item> = (0..self.dice.random_range(1..5)).map(|_| self.aggregate(sources)).collect();
        self.named(&mut items);
        (self.select("", &items, from, filter), items)
    }

    fn groups(&mut self, from: &str, filter: &str, sources: &[Source]) -> (String, Vec<Item>) {
        let mut items = Vec::new();
        for _ in 0..self.dice.random_range(1..3) {
            if let Some((text, sort)) = self.column(sources, |sort| !sort.is_ambiguous()) {
                items.push(Item::new(text, orderable(sort)));
            }
        }
        if self.chance(20) {
            let key = self.scalar(sources);
            items.extend(key.is_clear().then_some(key));
        }
        if items.is_empty() {
            return self.totals(from, filter, sources);
        }
        self.named(&mut items);
        let keys = self.group_keys(&items, sources).join(", ");
        let is_distinct =
            items.iter().enumerate().all(|(at, item)| !items[..at].iter().any(|it| are_one(&it.text, &item.text)));
        let keys = match self.dice.random_range(0..10) {
            _ if !is_distinct => keys,
            0 => format!("rollup ({keys})"),
            1 => format!("cube ({keys})"),
            _ => keys,
        };
        for _ in 0..self.dice.random_range(0..4) {
            let mut aggregate = [self.aggregate(sources)];
            self.named(&mut aggregate);
            items.extend(aggregate);
        }
        let having = match self.dice.random_range(0..6) {
            0 => format!(" having count(*) > {}", self.dice.random_range(0..5)),
            1 => format!(" having {} is not null", self.aggregate(sources).text),
            _ => String::new(),
        };
        (self.select("", &items, from, &format!("{filter} group by {keys}{having}")), items)
    }

    fn windows(&mut self, from: &str, filter: &str, sources: &[Source]) -> (String, Vec<Item>) {
        let mut items: Vec<Item> = (0..self.dice.random_range(1..3)).map(|_| self.scalar(sources)).collect();
        let partition = match self.column(sources, |sort| !sort.is_ambiguous()) {
            Some((column, _)) if self.chance(60) => format!("partition by {column} "),
            _ => String::new(),
        };
        let Some((order, sort)) = self.column(sources, |sort| sort != Sort::Json) else {
            return self.rows(from, filter, sources, 0);
        };
        let direction = self.one_of(&["", " desc"]);
        let over = format!("over ({partition}order by {order}{direction})");
        let call = match self.dice.random_range(0..4) {
            0 => "rank()".into(),
            1 => "dense_rank()".into(),
            2 => format!("count({order})"),
            _ if sort.is_number() => format!("sum({order})"),
            _ => "cume_dist()".into(),
        };
        items.push(Item::new(format!("{call} {over}"), None));
        (self.select("", &items, from, filter), items)
    }
}

/// What ORDER BY can sort by so that ties look alike.
pub(super) fn orderable(sort: Sort) -> Option<Sort> {
    (sort != Sort::Json).then_some(sort)
}

pub(super) fn type_name(sort: Sort) -> &'static str {
    match sort {
        Sort::Int => "int4",
        Sort::Big => "int8",
        Sort::Small => "int2",
        Sort::Money => "numeric",
        Sort::Text | Sort::TextC => "text",
        Sort::Bool => "bool",
        Sort::Date => "date",
        Sort::Stamp => "timestamp",
        Sort::Zoned => "timestamptz",
        Sort::Uuid => "uuid",
        Sort::Mood => "mood",
        Sort::Json => "jsonb",
        Sort::List => "int4[]",
        Sort::Bytes => "bytea",
        Sort::Wide => "numeric",
        Sort::Float => "float8",
        Sort::Char => "char(5)",
        Sort::Span => "interval",
        Sort::Label => "label",
        Sort::LabelC => "label_c",
        Sort::Even => "even",
        Sort::Pair => "pair",
        Sort::PairC => "pair_c",
    }
}

/// Whether two keys may be one column. Where such keys stand in different grouping sets PostgreSQL 15 takes the columns of the answer for
/// equal, one of which is NULL: in what order its rows come then is its planner's choice.
pub(super) fn are_one(one: &str, other: &str) -> bool {
    let bare = |key: &str| {
        let key = key.trim_matches(['(', ')', ' ']);
        key.rsplit('.').next().unwrap_or(key).trim_matches('"').to_owned()
    };
    bare(one) == bare(other)
}
