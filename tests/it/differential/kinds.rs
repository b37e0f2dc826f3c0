//! Kinds of SELECTs that have a form of their own: recursion, LATERAL, DISTINCT ON, grouping sets, moments, collations, frames.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::schema::{Sort, Table};
use super::statements::{Item, Select, Source, Writer, are_one, orderable};

impl Writer<'_, '_> {
    fn table(&mut self) -> Table {
        self.tables.choose(self.dice).expect("tables").clone()
    }

    /// WITH RECURSIVE, over numbers or over a table's own rows.
    pub(super) fn recursive(&mut self) -> Select {
        let (table, n) = (self.table(), self.dice.random_range(2..9));
        let name = &table.name;
        let union = self.one_of(&["union", "union all"]);
        let text = match self.dice.random_range(0..3) {
            0 => format!(
                "with recursive n (i) as (select 1 union all select i + 1 from n where i < {n})
                 select n.i, count(t.id) from n left join {name} t on t.id % {n} = n.i group by n.i"
            ),
            1 => format!(
                "with recursive w (id, depth) as (select id, 0 from {name} where id <= 3
                 {union} select t.id, w.depth + 1 from {name} t join w on t.id = w.id * 2 where w.depth < {n})
                 select id, max(depth) from w group by id"
            ),
            _ => format!(
                "with recursive w (id) as (select min(id) from {name}
                 union select t.id + {n} from {name} t, w where t.id = w.id)
                 select id, (select count(*) from {name} o where o.id <= w.id) from w"
            ),
        };
        let items = [Sort::Int, Sort::Big].map(|sort| Item::new("", Some(sort)));
        self.finished(text, &items)
    }

    /// A sub-query in FROM that sees what stands before it.
    pub(super) fn lateral(&mut self) -> Select {
        let (from, sources) = self.from(0);
        let table = self.table();
        let inner = [Source::of("i", &table)];
        let Some(on) = self.equality(&sources, &inner[0]) else { return self.recursive() };
        let (first, second) = (self.aggregate(&inner), self.comparison(&inner));
        let join = self.one_of(&["cross join lateral", "left join lateral", "join lateral"]);
        let tail = if join.starts_with("cross") { "" } else { " on true" };
        let (name, aggregate) = (&table.name, &first.text);
        let from = if self.chance(50) {
            format!("{from} {join} (select {aggregate} from {name} i where {on} and {second}) l (v){tail}")
        } else {
            format!("{from} {join} (select i.id from {name} i where {on} order by i.id limit 2) l (v){tail}")
        };
        let sort = if from.contains("order by i.id limit 2") { Some(Sort::Int) } else { first.sort };
        let mut items = vec![Item::new("l.v", sort)];
        if let Some((text, sort)) = self.column(&sources, |sort| !sort.is_ambiguous()) {
            items.push(Item::new(text, orderable(sort)));
        }
        let text = self.select("", &items, &from, "");
        self.finished(text, &items)
    }

    /// DISTINCT ON: which row is first is fixed where the order is that of all that is shown.
    pub(super) fn distinct_on(&mut self) -> Select {
        let (from, sources) = self.from(1);
        let mut shown: Vec<String> = Vec::new();
        for _ in 0..self.dice.random_range(2..4) {
            if let Some((column, _)) = self.column(&sources, |sort| !sort.is_ambiguous() && orderable(sort).is_some())
                && !shown.contains(&column)
            {
                shown.push(column);
            }
        }
        if shown.is_empty() {
            return self.recursive();
        }
        let filter = if self.chance(40) { format!(" where {}", self.condition(&sources, 1)) } else { String::new() };
        let direction = self.one_of(&["", " desc", " nulls first"]);
        let list = shown.join(", ");
        let text = format!("select distinct on ({}) {list} from {from}{filter} order by {}", shown[0], {
            let keys: Vec<String> = shown.iter().map(|column| format!("{column}{direction}")).collect();
            keys.join(", ")
        });
        Select::new(text, true)
    }

    /// GROUPING SETS and their like, with GROUPING().
    pub(super) fn grouping_sets(&mut self) -> Select {
        let (from, sources) = self.from(0);
        let clear = |sort: Sort| !sort.is_ambiguous();
        let (Some((a, first)), Some((b, second))) = (self.column(&sources, clear), self.column(&sources, clear)) else {
            return self.recursive();
        };
        if are_one(&a, &b) {
            return self.recursive();
        }
        let sets = match self.dice.random_range(0..4) {
            0 => format!("grouping sets (({a}), ({b}), ())"),
            1 => format!("grouping sets (({a}, {b}), ({b}))"),
            2 => format!("{a}, rollup ({b})"),
            _ => format!("cube ({a}, {b})"),
        };
        let mut items = vec![
            Item::new(a.clone(), orderable(first)),
            Item::new(b.clone(), orderable(second)),
            Item::new(format!("grouping({a}, {b})"), Some(Sort::Int)),
        ];
        let aggregate = self.aggregate(&sources);
        items.push(aggregate);
        let text = self.select("", &items, &from, &format!(" group by {sets}"));
        self.finished(text, &items)
    }

    /// What depends on TimeZone and DateStyle.
    pub(super) fn moments(&mut self) -> Select {
        let (from, sources) = self.from(0);
        let is_moment = |sort| matches!(sort, Sort::Zoned | Sort::Stamp | Sort::Date);
        let Some((column, sort)) = self.column(&sources, is_moment) else { return self.recursive() };
        let (text, sort) = match (sort, self.dice.random_range(0..6)) {
            (Sort::Zoned, 0) => (format!("{column}::date"), Sort::Date),
            (Sort::Zoned, 1) => (format!("{column} at time zone 'America/New_York'"), Sort::Stamp),
            (Sort::Zoned, 2) => (format!("date_trunc('day', {column})"), Sort::Zoned),
            (Sort::Zoned, 3) => (format!("to_char({column}, 'YYYY-MM-DD HH24:MI OF')"), Sort::TextC),
            (_, 0) => (format!("{column}::timestamptz"), Sort::Zoned),
            (_, 1) => (format!("{column}::text"), Sort::TextC),
            (_, 2) => (format!("extract(epoch from {column}::timestamptz)::int8"), Sort::Big),
            (sort, _) => (column, sort),
        };
        let is_text = sort == Sort::TextC;
        let shown = if is_text { None } else { Some(sort) };
        let constant = self.constant(sort);
        let filter = if is_text || self.chance(50) { String::new() } else { format!(" where {text} < {constant}") };
        if self.chance(50) {
            let items = [Item::new(text, shown), Item::new("count(*)", Some(Sort::Big))];
            let text = self.select("", &items, &from, &format!("{filter} group by 1"));
            return self.finished(text, &items);
        }
        let items = [Item::new(text, shown)];
        let text = self.select("", &items, &from, &filter);
        self.finished(text, &items)
    }

    /// Orders and comparisons by another collation than the column's.
    pub(super) fn collated(&mut self) -> Select {
        let (from, sources) = self.from(0);
        let is_text = |sort| matches!(sort, Sort::Text | Sort::TextC | Sort::Label | Sort::LabelC);
        let Some((column, _)) = self.column(&sources, is_text) else { return self.recursive() };
        let collation =
            self.one_of(&["\"C\"", "\"POSIX\"", "\"default\"", "ucs_basic", "\"en-x-icu\"", "\"sv-x-icu\""]);
        match self.dice.random_range(0..4) {
            0 => Select::new(format!("select {column} from {from} order by {column} collate {collation}"), true),
            1 => Select::new(
                format!("select min({column} collate {collation}), max({column} collate {collation}) from {from}"),
                false,
            ),
            2 => Select::new(
                format!(
                    "select {column}, count(*) from {from} where {column} collate {collation} > 'a' group by {column}
                     order by {column} collate {collation} desc nulls last"
                ),
                true,
            ),
            _ => Select::new(
                format!(
                    "select distinct {column} collate {collation} from {from} order by {column} collate {collation} limit 4"
                ),
                true,
            ),
        }
    }

    /// Windows with frames, where ties do not decide.
    pub(super) fn framed(&mut self) -> Select {
        let (from, sources) = self.from(0);
        let clear = |sort: Sort| !sort.is_ambiguous() && orderable(sort).is_some();
        let (Some((order, _)), Some((number, _))) =
            (self.column(&sources, clear), self.column(&sources, |sort| sort.is_number() && sort != Sort::Wide))
        else {
            return self.recursive();
        };
        let partition = match self.column(&sources, clear) {
            Some((column, _)) if self.chance(50) => format!("partition by {column} "),
            _ => String::new(),
        };
        let frame = self.one_of(&[
            "range between unbounded preceding and current row",
            "groups between 1 preceding and current row",
            "range between current row and unbounded following",
            "groups between unbounded preceding and 1 following",
        ]);
        let call = self.one_of(&["sum", "count", "min", "max", "avg"]);
        let named = self.chance(40);
        let spec = format!("({partition}order by {order} {frame})");
        let (over, window) =
            if named { ("w".to_owned(), format!(" window w as {spec}")) } else { (spec, String::new()) };
        let extra = self.one_of(&["percent_rank()", "dense_rank()", "cume_dist()"]);
        let text =
            format!("select {order}, {number}, {call}({number}) over {over}, {extra} over {over} from {from}{window}");
        Select::new(text, false)
    }
}
