//! Random SELECTs over random tables, with what is known of their answers.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::schema::{Column, Sort, Table};

/// A statement.
#[derive(Debug)]
pub(super) struct Select {
    pub(super) text: String,
    /// Whether its ORDER BY fixes the order of its rows.
    pub(super) is_ordered: bool,
}

/// A relation in a FROM list.
pub(super) struct Source {
    pub(super) alias: String,
    pub(super) columns: Vec<Column>,
}

/// An item of a select list.
pub(super) struct Item {
    pub(super) text: String,
    /// What it gives, if more may be done with it.
    pub(super) sort: Option<Sort>,
}

impl Item {
    pub(super) fn is_clear(&self) -> bool {
        self.sort.is_some_and(|sort| !sort.is_ambiguous())
    }
}

pub(super) struct Writer<'d, 't> {
    pub(super) dice: &'d mut StdRng,
    pub(super) tables: &'t [Table],
    next_alias: usize,
}

impl<'d, 't> Writer<'d, 't> {
    pub(super) fn new(dice: &'d mut StdRng, tables: &'t [Table]) -> Self {
        Self { dice, tables, next_alias: 0 }
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

    /// ORDER BY and LIMIT behind a query whose items are known.
    pub(super) fn finished(&mut self, text: String, items: &[Item]) -> Select {
        if !self.chance(60) {
            return Select { text, is_ordered: false };
        }
        let mut keys: Vec<String> = (1..=items.len())
            .filter(|&at| items[at - 1].sort.is_some())
            .map(|at| {
                let direction = self.one_of(&["", "", " desc", " nulls first", " desc nulls last"]);
                format!("{at}{direction}")
            })
            .collect();
        // Which key comes first matters more than that all do.
        let len = keys.len();
        if len > 1 {
            let first = self.dice.random_range(0..len);
            keys.swap(0, first);
        }
        if keys.is_empty() {
            return Select { text, is_ordered: false };
        }
        let is_total = items.iter().all(Item::is_clear);
        let mut text = format!("{text} order by {}", keys.join(", "));
        if is_total && self.chance(50) {
            let rows = self.dice.random_range(0..30);
            text += &match self.dice.random_range(0..4) {
                0 => format!(" limit {rows} offset {}", rows / 2),
                1 => format!(" offset {rows}"),
                2 => format!(" fetch first {} rows only", rows + 1),
                _ => format!(" limit {rows}"),
            };
        }
        Select { text, is_ordered: is_total }
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
        let items: Vec<Item> = sorts.iter().map(|&sort| Item { text: String::new(), sort: orderable(sort) }).collect();
        self.finished(text, &items)
    }

    fn with(&mut self) -> Select {
        let (inner, items) = self.block(1);
        let names: Vec<String> = (0..items.len()).map(|at| format!("x{at}")).collect();
        let materialized = self.one_of(&["", "materialized ", "not materialized "]);
        let list: Vec<Item> =
            items.into_iter().zip(&names).map(|(item, name)| Item { text: name.clone(), ..item }).collect();
        let (columns, from) = (names.join(", "), if self.chance(30) { "w cross join r" } else { "w" });
        let text = format!("with w ({columns}) as {materialized}({inner}) select {columns} from {from}");
        self.finished(text, &list)
    }

    /// A SELECT without its tail; `depth` levels of sub-queries may stand in it.
    pub(super) fn block(&mut self, depth: u32) -> (String, Vec<Item>) {
        let (from, sources) = self.from(depth);
        let filter =
            if self.chance(65) { format!(" where {}", self.condition(&sources, depth)) } else { String::new() };
        match self.dice.random_range(0..10) {
            0..=3 => self.rows(&from, &filter, &sources, depth),
            4..=6 => self.groups(&from, &filter, &sources),
            7 => self.distinct(&from, &filter, &sources),
            8 => self.windows(&from, &filter, &sources),
            _ => self.totals(&from, &filter, &sources),
        }
    }

    pub(super) fn from(&mut self, depth: u32) -> (String, Vec<Source>) {
        let (mut text, first) = self.source(depth);
        let mut sources = vec![first];
        let joins = [0, 0, 0, 1, 1, 2][self.dice.random_range(0..6)];
        for _ in 0..joins {
            let (other, source) = self.source(depth);
            let Some(on) = self.equality(&sources, &source) else { continue };
            let kind = self.one_of(&["join", "join", "left join", "right join", "full join"]);
            let more = if kind != "full join" && self.chance(30) {
                let own = [source];
                let text = format!(" and {}", self.comparison(&own));
                let [source] = own;
                sources.push(source);
                text
            } else {
                sources.push(source);
                String::new()
            };
            text = format!("{text} {kind} {other} on {on}{more}");
        }
        (text, sources)
    }

    pub(super) fn source(&mut self, depth: u32) -> (String, Source) {
        let alias = self.alias();
        if depth > 0 && self.chance(15) {
            let (text, items) = self.block(depth - 1);
            let names: Vec<String> = (0..items.len()).map(|at| format!("d{at}")).collect();
            let columns = items
                .iter()
                .zip(&names)
                .filter_map(|(item, name)| Some(Column { name: name.clone(), sort: item.sort? }))
                .collect();
            return (format!("({text}) {alias} ({})", names.join(", ")), Source { alias, columns });
        }
        // Outer joins with the reference table, which every shard has whole, are a trap of their own.
        let table = if self.chance(15) { self.tables.last() } else { self.tables.choose(self.dice) };
        let table = table.expect("tables");
        let name = self.name_of(table);
        let name = if self.dice.random_range(0..8) == 0 { format!("public.{name}") } else { name };
        (format!("{name} {alias}"), Source { alias, columns: table.columns.clone() })
    }

    /// The table's name, or that of the view over it.
    fn name_of(&mut self, table: &Table) -> String {
        if self.chance(12) { format!("{}_v", table.name) } else { table.name.clone() }
    }

    /// An equality of columns of one sort, by preference of keys.
    pub(super) fn equality(&mut self, sources: &[Source], other: &Source) -> Option<String> {
        let mut pairs = Vec::new();
        for source in sources {
            for a in &source.columns {
                for b in other.columns.iter().filter(|b| b.sort == a.sort) {
                    let weight = if a.name == "k" && b.name == "k" { 6 } else { 1 };
                    let pair = format!("{}.{} = {}.{}", source.alias, a.name, other.alias, b.name);
                    pairs.extend(std::iter::repeat_n(pair, weight));
                }
            }
        }
        pairs.choose(self.dice).cloned()
    }

    pub(super) fn column(&mut self, sources: &[Source], fits: impl Fn(Sort) -> bool) -> Option<(String, Sort)> {
        let all: Vec<(String, Sort)> = sources
            .iter()
            .flat_map(|source| {
                source.columns.iter().map(|column| (format!("{}.{}", source.alias, column.name), column.sort))
            })
            .filter(|(_, sort)| fits(*sort))
            .collect();
        all.choose(self.dice).cloned()
    }

    pub(super) fn condition(&mut self, sources: &[Source], depth: u32) -> String {
        match self.dice.random_range(0..12) {
            0 => format!("{} and {}", self.comparison(sources), self.comparison(sources)),
            1 => format!("({} or {})", self.comparison(sources), self.comparison(sources)),
            2 => format!("not ({})", self.comparison(sources)),
            3 | 4 if depth > 0 => self.sub_condition(sources),
            _ => self.comparison(sources),
        }
    }

    fn sub_condition(&mut self, sources: &[Source]) -> String {
        let alias = self.alias();
        let table = self.tables.choose(self.dice).expect("tables").clone();
        let inner = Source { alias: alias.clone(), columns: table.columns.clone() };
        let (name, not) = (self.name_of(&table), self.one_of(&["", "not "]));
        let own = [inner];
        match self.dice.random_range(0..6) {
            0 => {
                let Some(on) = self.equality(sources, &own[0]) else { return "true".into() };
                let more = self.comparison(&own);
                format!("{not}exists (select 1 from {name} {alias} where {on} and {more})")
            }
            1 => {
                let Some((column, sort)) = self.column(sources, |sort| sort != Sort::Json) else {
                    return "true".into();
                };
                let Some((other, _)) = self.column(&own, |own| own == sort) else { return "true".into() };
                format!("{column} {not}in (select {other} from {name} {alias} where {other} is not null)")
            }
            2 => {
                let Some(on) = self.equality(sources, &own[0]) else { return "true".into() };
                let (what, n) = (self.one_of(&["count(*)", "count(*) + 1"]), self.dice.random_range(0..4));
                format!("(select {what} from {name} {alias} where {on}) > {n}")
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
                format!("{outer} {not}in (select {inner} from {name} {alias} {tail})")
            }
            4 => {
                let Some(on) = self.equality(sources, &own[0]) else { return "true".into() };
                let more = self.comparison(&own);
                let derived = format!("(select * from {name} where id > 2) {alias}");
                format!("{not}exists (select from {derived} where {on} and {more})")
            }
            _ => {
                let Some((column, sort)) = self.column(sources, Sort::is_number) else { return "true".into() };
                let Some((other, _)) = self.column(&own, |own| own == sort) else { return "true".into() };
                format!("{column} >= (select avg({other}) from {name} {alias})")
            }
        }
    }

    pub(super) fn comparison(&mut self, sources: &[Source]) -> String {
        let Some((column, sort)) = self.column(sources, |_| true) else { return "true".into() };
        let constant = sort.constant(self.dice);
        match self.dice.random_range(0..9) {
            0 => format!("{column} is null"),
            1 => format!("{column} is not null"),
            2 => format!("{column} in ({constant}, {})", sort.constant(self.dice)),
            3 => format!("{column} between {constant} and {}", sort.constant(self.dice)),
            4 => format!("{column} is distinct from {constant}"),
            5 => format!("coalesce({column} = {constant}, false)"),
            _ => format!("{column} {} {constant}", self.one_of(&["=", "<", ">", "<=", ">=", "<>"])),
        }
    }

    fn scalar(&mut self, sources: &[Source]) -> Item {
        let Some((column, sort)) = self.column(sources, |_| true) else { return Item { text: "1".into(), sort: None } };
        let number = sort.is_number() && sort != Sort::Wide;
        let (text, sort) = match self.dice.random_range(0..10) {
            0 if number => (format!("{column} + 1.5"), None),
            1 if number => (format!("{column} % 3"), None),
            2 if sort == Sort::Text => (format!("upper({column})"), Some(Sort::Text)),
            3 if sort == Sort::Text => (format!("{column} || 'x'"), Some(Sort::Text)),
            4 if sort == Sort::Zoned => (format!("date_trunc('day', {column})"), Some(Sort::Zoned)),
            5 if sort == Sort::Date => (format!("extract(dow from {column})"), None),
            6 => (format!("{column} is null"), Some(Sort::Bool)),
            7 => (format!("case when {column} is null then 'no' else 'yes' end"), Some(Sort::Text)),
            8 => (format!("{column}::text"), None),
            _ => (column, Some(sort)),
        };
        Item { text, sort: sort.and_then(orderable) }
    }

    fn rows(&mut self, from: &str, filter: &str, sources: &[Source], depth: u32) -> (String, Vec<Item>) {
        let mut items: Vec<Item> = (0..self.dice.random_range(1..5)).map(|_| self.scalar(sources)).collect();
        if depth > 0 && self.chance(15) {
            let alias = self.alias();
            let table = self.tables.choose(self.dice).expect("tables").clone();
            let inner = [Source { alias: alias.clone(), columns: table.columns.clone() }];
            if let Some(on) = self.equality(sources, &inner[0]) {
                let text = format!("(select count(*) from {} {alias} where {on})", self.name_of(&table));
                items.push(Item { text, sort: Some(Sort::Big) });
            }
        }
        (select("", &items, from, filter), items)
    }

    fn distinct(&mut self, from: &str, filter: &str, sources: &[Source]) -> (String, Vec<Item>) {
        let mut items = Vec::new();
        for _ in 0..self.dice.random_range(1..3) {
            if let Some((text, sort)) = self.column(sources, |sort| !sort.is_ambiguous()) {
                items.push(Item { text, sort: orderable(sort) });
            }
        }
        if items.is_empty() {
            items.push(Item { text: "1".into(), sort: None });
        }
        (select("distinct ", &items, from, filter), items)
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
            (11, _, Some((column, _)), ..) => (format!("array_agg({column} order by {column})"), None),
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
        Item { text, sort }
    }

    fn totals(&mut self, from: &str, filter: &str, sources: &[Source]) -> (String, Vec<Item>) {
        let items: Vec<Item> = (0..self.dice.random_range(1..5)).map(|_| self.aggregate(sources)).collect();
        (select("", &items, from, filter), items)
    }

    fn groups(&mut self, from: &str, filter: &str, sources: &[Source]) -> (String, Vec<Item>) {
        let mut items = Vec::new();
        for _ in 0..self.dice.random_range(1..3) {
            if let Some((text, sort)) = self.column(sources, |sort| !sort.is_ambiguous()) {
                items.push(Item { text, sort: orderable(sort) });
            }
        }
        if items.is_empty() {
            return self.totals(from, filter, sources);
        }
        let keys = items.iter().map(|item| item.text.clone()).collect::<Vec<_>>().join(", ");
        let keys = match self.dice.random_range(0..10) {
            0 => format!("rollup ({keys})"),
            1 => format!("cube ({keys})"),
            _ => keys,
        };
        for _ in 0..self.dice.random_range(0..4) {
            let aggregate = self.aggregate(sources);
            items.push(aggregate);
        }
        let having = match self.dice.random_range(0..6) {
            0 => format!(" having count(*) > {}", self.dice.random_range(0..5)),
            1 => format!(" having {} is not null", self.aggregate(sources).text),
            _ => String::new(),
        };
        (select("", &items, from, &format!("{filter} group by {keys}{having}")), items)
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
        items.push(Item { text: format!("{call} {over}"), sort: None });
        (select("", &items, from, filter), items)
    }
}

pub(super) fn select(kind: &str, items: &[Item], from: &str, rest: &str) -> String {
    let list: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
    format!("select {kind}{} from {from}{rest}", list.join(", "))
}

/// What ORDER BY can sort by so that ties look alike.
pub(super) fn orderable(sort: Sort) -> Option<Sort> {
    (sort != Sort::Json).then_some(sort)
}

fn type_name(sort: Sort) -> &'static str {
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
    }
}
