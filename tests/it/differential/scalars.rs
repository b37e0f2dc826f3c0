//! What stands in a select list besides columns: casts, calls, operators, constants, whole rows, and how PostgreSQL names them.

use rand::Rng;

use super::schema::Sort;
use super::statements::{Item, Source, Writer, orderable};

use Sort::{
    Big, Bool, Bytes, Date, Even, Int, Json, Label, LabelC, List, Money, Mood, Pair, PairC, Small, Stamp, Text, TextC,
    Uuid, Zoned,
};

/// Constants, and what looks like a column and is none.
const CONSTANTS: [&str; 16] = [
    "1",
    "'x'",
    "null",
    "true",
    "1.50",
    "'x'::text",
    "date '2024-01-01'",
    "interval '1 day'",
    "int8 '5'",
    "'5'::int8",
    "cast('7' as numeric(10, 2))",
    "current_schema",
    "row(1, 'a')",
    "array[1, 2]",
    "current_setting('TimeZone')",
    "null::numeric(5, 1)",
];

impl Writer<'_, '_> {
    pub(super) fn scalar(&mut self, sources: &[Source]) -> Item {
        let Some((column, sort)) = self.column(sources, |_| true) else { return Item::new("1", None) };
        let number = sort.is_number() && sort != Sort::Wide;
        let (text, sort) = match self.dice.random_range(0..20) {
            0 if number => (format!("{column} + 1.5"), None),
            1 if number => (format!("{column} % 3"), None),
            2 if sort == Text => (format!("upper({column})"), Some(Text)),
            3 if sort == Text => (format!("{column} || 'x'"), Some(Text)),
            4 if sort == Zoned => (format!("date_trunc('day', {column})"), Some(Zoned)),
            5 if sort == Date => (format!("extract(dow from {column})"), None),
            6 => (format!("{column} is null"), Some(Bool)),
            7 => (format!("case when {column} is null then 'no' else 'yes' end"), Some(Text)),
            8 => (format!("{column}::text"), None),
            9 => (self.one_of(&CONSTANTS), None),
            10 => (self.comparison(sources), Some(Bool)),
            11..=13 => self.cast(column, sort),
            14 if !self.is_binary && self.chance(50) => self.whole_row(sources),
            _ => (column, Some(sort)),
        };
        Item::new(text, sort.and_then(orderable))
    }

    /// A column as another type; the names of such columns are the types' or the functions' where the column has none.
    fn cast(&mut self, column: String, sort: Sort) -> (String, Option<Sort>) {
        let at = self.dice.random_range(0..5);
        let (form, sort) = match (sort, at) {
            (Int | Small | Money, 0) => ("$::int8", Some(Big)),
            (Int | Small, 1) => ("cast($ as numeric(10,2))", Some(Money)),
            (Int | Small | Big, 2) => ("$::numeric(21, 2)::numeric(20, 1)", Some(Money)),
            (Int | Small, 3) => ("int8($)", Some(Big)),
            (Int | Small | Money | Big, _) => ("(-$)::text::numeric", Some(Money)),
            (Text | TextC, 0) => ("$::varchar(2)", None),
            (Text | TextC, 1) => ("length($)", Some(Int)),
            (Text | TextC, 2) => ("cast($ as char(3))", None),
            (Text, 3) => ("lower($)::text", Some(Text)),
            (Text | TextC, _) => ("text($)", None),
            (Date, 0) => ("$::timestamp", Some(Stamp)),
            (Date, 1) => ("cast($ as timestamptz)", Some(Zoned)),
            (Date, _) => ("$ + 1", Some(Date)),
            (Stamp | Zoned, 0) => ("$::date", Some(Date)),
            (Stamp | Zoned, 1) => ("date($)", Some(Date)),
            (Zoned, 2) => ("$::timestamp(0)", Some(Stamp)),
            (Stamp, 2) => ("timestamptz($)", Some(Zoned)),
            (Bool, 0) => ("$::int4", Some(Int)),
            (Bool, _) => ("not $", Some(Bool)),
            (Mood | Uuid, 0 | 1) => ("$::text", Some(Text)),
            (Json, 0) => ("$ -> 'k'", None),
            (Json, _) => ("($ ->> 'k')::int4", Some(Int)),
            (List, 0 | 1) => ("$[1]", Some(Int)),
            (List, _) => ("cardinality($)", Some(Int)),
            (Bytes, 0 | 1) => ("encode($, 'hex')", Some(Text)),
            (Bytes, _) => ("length($)", Some(Int)),
            (Label | LabelC, 0) => ("$::text", None),
            (Label | LabelC, 1) => ("lower($)", None),
            (Even, 0) => ("$ + 1", Some(Int)),
            (Even, 1) => ("$::int8", Some(Big)),
            (Pair | PairC, 0) => ("($).n", Some(Int)),
            (Pair, 1) => ("($).t", Some(Text)),
            (PairC, 1) => ("($).t", None),
            (sort, 3) if !self.is_binary || !sort.is_own() => ("array[$]", None),
            (_, 4) if !self.is_binary => ("row($, 1)", None),
            // Not `coalesce($, null)`: PostgreSQL's planner makes the column of it, and a portal then has the column's type modifier,
            // which pgherd, who asks of the statement, does not tell.
            (sort, _) => ("coalesce($, $)", Some(sort)),
        };
        let column = if column.contains('(') || form == "$[1]" { format!("({column})") } else { column };
        (form.replace('$', &column), sort)
    }

    /// A relation's name in the place of a column.
    fn whole_row(&mut self, sources: &[Source]) -> (String, Option<Sort>) {
        let whole: Vec<&str> = sources.iter().map(|source| source.alias.as_str()).filter(|it| !it.is_empty()).collect();
        let alias = self.one_of(&whole);
        let form = self.one_of(&["$", "$", "$ is null", "row($.*)", "row($.*)::text", "$ = $"]);
        (form.replace('$', &alias), None)
    }
}
