//! Ways to spread a table's rows over shards: what the TOML says of each, and what PostgreSQL makes of it.

use std::fmt::Write as _;

/// How a table of the fuzzers is spread.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The shard key's columns.
    pub(crate) key: Vec<&'static str>,
    method: Method,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Hash,
    /// Of integers: keys below 3, keys from there to (5) or (5, 20), and a default shard for all others.
    Range,
    /// Of integers: 0, 1 and 2; 3 and NULL; and a default shard for all others.
    Numbers,
    /// Of texts: `a` and `B`; `é` and NULL; and a default shard for all others.
    Texts,
}

impl Layout {
    pub(crate) fn hash(key: &[&'static str]) -> Self {
        Self { key: key.to_vec(), method: Method::Hash }
    }

    pub(crate) fn range(key: &[&'static str]) -> Self {
        Self { key: key.to_vec(), method: Method::Range }
    }

    pub(crate) fn numbers(key: &'static str) -> Self {
        Self { key: vec![key], method: Method::Numbers }
    }

    pub(crate) fn texts(key: &'static str) -> Self {
        Self { key: vec![key], method: Method::Texts }
    }

    /// The table's entry in the TOML.
    pub(crate) fn toml(&self, table: &str, shards: usize) -> String {
        let key = self.key.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
        let mut toml = format!("[[database.table]]\nname = \"public.{table}\"\nshard_key = [{key}]\n");
        let last = shards - 1;
        let _ = match self.method {
            Method::Hash => writeln!(toml, "method = \"hash\""),
            Method::Range => writeln!(
                toml,
                "method = \"range\"\nranges = [{{ to = 3, shard = 0 }}, {{ from = [3], to = {}, shard = {} }}]\n\
                 default_shard = {last}",
                if self.key.len() > 1 { "[5, 20]" } else { "5" },
                1 % shards
            ),
            Method::Numbers | Method::Texts => {
                let (some, more) =
                    if self.method == Method::Numbers { ("0, 1, 2", "3") } else { ("\"a\", \"B\"", "\"é\"") };
                writeln!(
                    toml,
                    "method = \"list\"\nlists = [{{ values = [{some}], shard = 0 }}, {{ values = [{more}], null = true, shard = {} }}]\n\
                     default_shard = {last}",
                    1 % shards
                )
            }
        };
        toml
    }

    /// Drops the rows of a table that are not this shard's.
    pub(crate) fn keep_own(&self, table: &str, shards: usize, shard: usize) -> String {
        let key = self.key.join(", ");
        if self.method == Method::Hash {
            return format!(
                "create table parts_{table} (like {table}) partition by hash ({key});
                 delete from {table} where not satisfies_hash_partition('parts_{table}'::regclass, {shards}, {shard}, {key});
                 drop table parts_{table};"
            );
        }
        format!("delete from {table} where ({}) <> {shard};", self.shard_of(shards))
    }

    /// How many rows of a table are not this shard's: a query.
    pub(crate) fn misplaced(&self, table: &str, shards: usize, shard: usize) -> String {
        let condition = match self.method {
            Method::Hash => {
                let key = self.key.join(", ");
                format!("not satisfies_hash_partition('parts_{table}'::regclass, {shards}, {shard}, {key})")
            }
            _ => format!("({}) <> {shard}", self.shard_of(shards)),
        };
        let parts = match self.method {
            Method::Hash => {
                format!("create temp table parts_{table} (like {table}) partition by hash ({});", self.key.join(", "))
            }
            _ => String::new(),
        };
        format!("{parts} select count(*) from {table} where {condition}")
    }

    fn shard_of(&self, shards: usize) -> String {
        let (k, last, second) = (self.key[0], shards - 1, 1 % shards);
        match self.method {
            Method::Hash => unreachable!("PostgreSQL says it"),
            Method::Range => {
                let key = self.key.join(", ");
                let upper = if self.key.len() > 1 { "(5, 20)" } else { "(5)" };
                let no_null = self.key.iter().map(|it| format!("{it} is not null")).collect::<Vec<_>>().join(" and ");
                format!(
                    "case when {no_null} and {k} < 3 then 0 when {no_null} and {k} >= 3 and ({key}) < {upper} then {second} else {last} end"
                )
            }
            Method::Numbers => {
                format!("case when {k} in (0, 1, 2) then 0 when {k} = 3 or {k} is null then {second} else {last} end")
            }
            Method::Texts => format!(
                "case when {k} in ('a', 'B') then 0 when {k} = 'é' or {k} is null then {second} else {last} end"
            ),
        }
    }
}
