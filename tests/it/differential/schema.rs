//! Random tables, the same rows whole on one PostgreSQL and spread over shards behind pgherd.

use std::fmt::Write as _;

use rand::Rng;
use rand::rngs::StdRng;

use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};
use crate::layouts::Layout;

/// What a column holds. Values of one sort that are equal look alike, unless [`Sort::is_ambiguous`] says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Int,
    Big,
    Small,
    Money,
    Wide,
    Float,
    Text,
    TextC,
    Char,
    Bool,
    Date,
    Stamp,
    Zoned,
    Span,
    Uuid,
    Mood,
    Json,
    List,
    Bytes,
    /// A domain over text.
    Label,
    /// A domain over text that has a collation of its own.
    LabelC,
    /// A domain over int4 with a CHECK.
    Even,
    /// A composite type.
    Pair,
    /// A composite type with a collation of a field's own.
    PairC,
}

/// The types that are not PostgreSQL's own.
const TYPES: &str = "create type mood as enum ('sad', 'ok', 'happy');
    create domain label as text;
    create domain label_c as text collate \"C\";
    create domain even as int4 check (value % 2 = 0);
    create type pair as (n int4, t text);
    create type pair_c as (n int4, t text collate \"C\");";

use Sort::{Big, Bool, Bytes, Char, Date, Float, Int, Json, List, Money, Mood, Small, Span, Stamp, Text, TextC};
use Sort::{Even, Label, LabelC, Pair, PairC, Uuid, Wide, Zoned};

/// Every sort that a column may be of.
const SORTS: [Sort; 24] = [
    Int, Big, Small, Money, Wide, Float, Text, TextC, Char, Bool, Date, Stamp, Zoned, Span, Uuid, Mood, Json, List,
    Bytes, Label, LabelC, Even, Pair, PairC,
];

impl Sort {
    /// Its type, as CREATE TABLE takes it.
    fn definition(self) -> &'static str {
        match self {
            Int => "int4",
            Big => "int8",
            Small => "int2",
            Money => "numeric(12,2)",
            Wide => "numeric",
            Float => "float8",
            Text => "text",
            TextC => "text collate \"C\"",
            Char => "char(5)",
            Bool => "bool",
            Date => "date",
            Stamp => "timestamp",
            Zoned => "timestamptz",
            Span => "interval",
            Uuid => "uuid",
            Mood => "mood",
            Json => "jsonb",
            List => "int4[]",
            Bytes => "bytea",
            Label => "label",
            LabelC => "label_c",
            Even => "even",
            Pair => "pair",
            PairC => "pair_c",
        }
    }

    /// A value made from the integer `g`, of which there are few different ones.
    fn value(self, many: u32) -> String {
        let g = format!("(g * 7919 % {many})");
        match self {
            Int => format!("{g} - 3"),
            Big => format!("case when g % 5 = 0 then 9223372036854775807 - {g} else {g} end"),
            Small => format!("{g} % 100"),
            Money => format!("{g} * 1.25 - 10"),
            Wide => format!(
                "case when g % 23 = 0 then 'NaN'::numeric else {g} * 10000000000000000000000000000.5 + (g % 3)::numeric(6,3) end"
            ),
            Float => format!("case {g} % 9 when 0 then 'NaN' when 1 then 'Infinity' else {g} * 0.25 end::float8"),
            Text => format!("(array['a', 'B', 'b', 'A', 'é', 'E', '', 'Zz'])[1 + {g} % 8]"),
            TextC => format!("(array['north', 'North', 'Äst', 'äst', 'south', 'x''y'])[1 + {g} % 6]"),
            Char => format!("(array['a', 'b ', 'C', 'cc'])[1 + {g} % 4]"),
            Bool => format!("{g} % 2 = 0"),
            Date => format!("'2024-01-01'::date + {g}::int4"),
            Stamp => format!("'2024-01-01'::timestamp + {g} * interval '11 hours'"),
            Zoned => format!(
                "case when g % 29 = 0 then 'infinity'::timestamptz else '2024-03-30 00:00+00'::timestamptz + {g} * interval '7 hours' end"
            ),
            Span => format!("{g} % 5 * interval '1 day' + {g} % 3 * interval '1 hour'"),
            Uuid => format!("md5({g}::text)::uuid"),
            Mood => format!("(array['sad', 'ok', 'happy']::mood[])[1 + {g} % 3]"),
            Json => format!("jsonb_build_object('k', {g} % 4)"),
            List => format!("array[{g} % 3, {g} % 4]::int4[]"),
            Bytes => format!("decode(md5(({g} % 6)::text), 'hex')"),
            Label => format!("(array['a', 'B', 'b', 'Ä', ''])[1 + {g} % 5]::label"),
            LabelC => format!("(array['a', 'B', 'b', 'Ä', 'ab'])[1 + {g} % 5]::label_c"),
            Even => format!("2 * ({g} - 2)"),
            Pair => format!("row({g} % 3, (array['a', 'B', null, 'b'])[1 + {g} % 4])::pair"),
            PairC => format!("row({g} % 2, (array['a', 'B', 'b'])[1 + {g} % 3])::pair_c"),
        }
    }

    /// Whether equal values may look different, so that which of them a group shows is chance.
    pub(super) fn is_ambiguous(self) -> bool {
        matches!(self, Wide | Float | Char | Span)
    }

    /// Whether its type is not PostgreSQL's own.
    pub(super) fn is_own(self) -> bool {
        matches!(self, Mood | Label | LabelC | Even) || self.is_row()
    }

    /// Whether it has fields.
    pub(super) fn is_row(self) -> bool {
        matches!(self, Pair | PairC)
    }

    /// Whether it can be added up.
    pub(super) fn is_number(self) -> bool {
        matches!(self, Int | Big | Small | Money | Wide | Even)
    }

    /// Whether `min` and `max` take it.
    pub(super) fn has_extremes(self) -> bool {
        !matches!(self, Bool | Json | Uuid | Bytes | Pair | PairC) && !self.is_ambiguous()
    }

    /// A constant of it.
    pub(super) fn constant(self, dice: &mut StdRng) -> String {
        let n = dice.random_range(0..12);
        match self {
            Int | Big | Small => format!("{n}"),
            Money | Wide => format!("{n}.5"),
            Float => format!("{}", f64::from(n) * 0.25),
            Text => ["'a'", "'B'", "'é'", "''"][n as usize % 4].into(),
            TextC => ["'north'", "'North'", "'äst'", "'x''y'"][n as usize % 4].into(),
            Char => ["'a'", "'b'", "'C  '"][n as usize % 3].into(),
            Bool => ["true", "false"][n as usize % 2].into(),
            Date => format!("'2024-01-{:02}'", n + 1),
            Stamp => format!("'2024-01-{:02} 11:00'", n + 1),
            Zoned => format!("'2024-03-{:02} 02:30+01'", n + 18),
            Span => format!("interval '{} days'", n % 5),
            Uuid => format!("'{:08x}-0000-0000-0000-000000000000'", n * 0x1000_0000_u32),
            Mood => ["'sad'", "'ok'", "'happy'"][n as usize % 3].into(),
            Json => format!("'{{\"k\": {}}}'", n % 4),
            List => format!("'{{{},{}}}'", n % 3, n % 4),
            Bytes => "'\\x00'".into(),
            Label | LabelC => ["'a'", "'B'", "'Ä'", "'b'"][n as usize % 4].into(),
            Even => format!("{}", n / 2 * 2),
            Pair | PairC => {
                let type_name = self.definition();
                format!("'{}'::{type_name}", ["(1,a)", "(0,B)", "(2,)", "(1,b)"][n as usize % 4])
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) sort: Sort,
}

#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
    /// Whether these are all of them.
    pub(super) is_whole: bool,
    /// How many rows it has.
    pub(super) rows: u32,
    /// How its rows are spread; none for a reference table.
    layout: Option<Layout>,
    /// What the view over it does, whose columns are the table's.
    view: &'static str,
}

/// Queries of views over a table; `$t` is its name.
const VIEWS: [&str; 8] = [
    "select * from $t",
    "select * from $t where id % 5 <> 2",
    "select v.* from $t v where v.id > 3 or v.id is null",
    "select * from (select * from $t where id < 70) v offset 0",
    "select * from $t union all select * from $t where id < 9",
    "select distinct * from $t",
    "with w as (select * from $t) select * from w",
    "select * from $t where id in (select max(id) from $t group by id % 11)",
];

/// Random tables: the first two by the same key, one by another, one with no rows at all, one on every shard.
pub(super) fn tables(dice: &mut StdRng) -> Vec<Table> {
    let key = [Int, Big, Text][dice.random_range(0..3)];
    let (both, other) = layouts(dice, key);
    let mut tables = Vec::new();
    for (name, key, rows) in
        [("a", Some(key), 120), ("b", Some(key), 60), ("c", Some(Int), 80), ("void", Some(Int), 0), ("r", None, 9)]
    {
        let mut columns = vec![Column { name: "id".into(), sort: Int }];
        if let Some(key) = key {
            columns.push(Column { name: "k".into(), sort: key });
        }
        for at in 0..dice.random_range(5..10) {
            columns.push(Column { name: format!("c{at}"), sort: SORTS[dice.random_range(0..SORTS.len())] });
        }
        let layout = match name {
            "a" | "b" => both.clone(),
            _ => other.clone(),
        };
        let view = VIEWS[dice.random_range(0..VIEWS.len())];
        tables.push(Table { name: name.into(), columns, is_whole: true, rows, layout: key.map(|_| layout), view });
    }
    tables
}

/// How the first two tables are spread, and the others, whose key is an integer.
fn layouts(dice: &mut StdRng, key: Sort) -> (Layout, Layout) {
    let by = ["k", "id"];
    let both = match (dice.random_range(0..8), key) {
        (0..4, _) => Layout::hash(&["k"]),
        (4..6, _) => Layout::hash(&by),
        (6, Text) => Layout::texts("k"),
        (6, _) => Layout::numbers("k"),
        (_, Text) => Layout::hash(&["id", "k"]),
        _ => Layout::range(&["k"]),
    };
    let other = match dice.random_range(0..4) {
        0 => Layout::hash(&["k"]),
        1 => Layout::range(&by),
        2 => Layout::numbers("k"),
        _ => Layout::hash(&["id", "k"]),
    };
    (both, other)
}

fn creation(table: &Table, dice: &mut StdRng) -> String {
    let definitions: Vec<String> =
        table.columns.iter().map(|column| format!("{} {}", column.name, column.sort.definition())).collect();
    let values: Vec<String> = table
        .columns
        .iter()
        .map(|column| match column.name.as_str() {
            "id" => "g".into(),
            _ => {
                let value = column.sort.value([5, 17, 60][dice.random_range(0..3)]);
                let nulls = [4, 9, 1000][dice.random_range(0..3)];
                format!("case when (g + {}) % {nulls} = 0 then null else {value} end", dice.random_range(0..9))
            }
        })
        .collect();
    format!(
        "create table {} ({}); insert into {0} select {} from generate_series(1, {}) g;",
        table.name,
        definitions.join(", "),
        values.join(", "),
        table.rows
    )
}

fn plain(table: &Table) -> Table {
    let columns: Vec<Column> = table.columns.iter().filter(|column| !column.sort.is_row()).cloned().collect();
    Table { is_whole: columns.len() == table.columns.len(), columns, ..table.clone() }
}

/// Servers with the tables' rows.
pub(super) struct World {
    tables: Vec<Table>,
    /// Without the columns that have fields.
    plain: Vec<Table>,
    whole: Database,
    pgherd: Pgherd,
    /// How the tables are made, before each shard is left its own rows.
    schema: String,
    toml: String,
}

impl World {
    pub(super) async fn new(dice: &mut StdRng, shards: usize) -> Self {
        let tables = tables(dice);
        let mut schema = format!("{TYPES} create schema other;");
        tables.iter().for_each(|table| schema += &creation(table, dice));
        for table in &tables {
            let _ = write!(schema, "create view {}_v as {};", table.name, table.view.replace("$t", &table.name));
        }
        schema += "set search_path to other, public;";
        for table in &tables {
            schema += &creation(&Table { rows: table.rows / 3, ..table.clone() }, dice);
            let _ = write!(schema, "create view {}_v as select * from {0};", table.name);
        }
        schema += "reset search_path;";
        let (whole, primary) = (harness::fresh_database().await, harness::fresh_database().await);
        whole.execute(&schema).await;
        primary.execute(&format!("{TYPES} create schema other")).await;
        let mut toml = format!("[[database]]\nname = \"app\"\nprimary = \"{}\"\nshards = [", primary.conninfo());
        for (at, shard) in harness::fresh_databases(shards).await.iter().enumerate() {
            let mut own = schema.clone();
            for table in &tables {
                let Some(layout) = &table.layout else { continue };
                own += &layout.keep_own(&table.name, shards, at);
                let elsewhere = layout.keep_own(&table.name, shards, at);
                let _ = write!(own, "set search_path to other, public; {elsewhere} reset search_path;");
            }
            shard.execute(&own).await;
            let _ = write!(toml, "\"{}\", ", shard.conninfo());
        }
        toml += "]\n";
        for table in &tables {
            let entry = match &table.layout {
                Some(layout) => layout.toml(&table.name, shards),
                None => format!("[[database.table]]\nname = \"public.{}\"\nreference = true\n", table.name),
            };
            toml += &entry;
            toml += &entry.replace("\"public.", "\"other.");
        }
        toml +=
            "[[user]]\nname = \"postgres\"\nauth = \"trust\"\n[pool]\nmin_connections = 0\n[cache]\nenabled = false\n";
        let pgherd = Pgherd::start(&toml).await;
        Self { plain: tables.iter().map(plain).collect(), tables, whole, pgherd, schema, toml }
    }

    /// What statements may be made of whose rows may be asked for in binary form.
    pub(super) fn tables(&self, is_binary: bool) -> &[Table] {
        if is_binary { &self.plain } else { &self.tables }
    }

    /// What it is made of, for people.
    pub(super) fn shown(&self) -> String {
        format!("\n  in\n{}\n{}", self.schema, self.toml)
    }

    /// Straight to the one PostgreSQL.
    pub(super) async fn oracle(&self) -> WireClient {
        WireClient::login(self.whole.port, "postgres", &self.whole.name).await
    }

    /// Through pgherd.
    pub(super) async fn client(&self) -> WireClient {
        self.pgherd.wire("app").await
    }

    /// How many statements were answered in that way.
    pub(super) async fn answered(&self, plan: &str) -> f64 {
        self.pgherd.metric("pgherd_statements_total", &format!("plan=\"{plan}\"")).await
    }

    pub(super) async fn stop(self) {
        self.pgherd.stop().await;
    }
}
