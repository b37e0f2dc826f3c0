//! What a client does in a row: transactions in which something fails, savepoints, settings that change what answers look like.

use rand::Rng;

use super::schema::Sort;
use super::statements::{Select, Writer};

/// How transactions begin.
const BEGINS: [&str; 9] = [
    "begin",
    "begin work",
    "start transaction",
    "begin read only",
    "begin isolation level read committed",
    "begin isolation level repeatable read",
    "begin isolation level repeatable read, read only",
    "start transaction isolation level repeatable read read only",
    "begin transaction isolation level serializable, read only, deferrable",
];

/// How they end.
const ENDS: [&str; 7] = ["commit", "commit", "rollback", "end", "abort", "commit and no chain", "rollback work"];

/// Settings that change what an answer says, with some of their values; the last of each is none.
const SETTINGS: [(&str, &[&str]); 8] = [
    ("timezone", &["'UTC'", "'America/New_York'", "'Asia/Kolkata'", "'Europe/Berlin'", "'+05:30'", "'Nowhere/There'"]),
    ("datestyle", &["'iso, mdy'", "'sql, dmy'", "'german'", "'postgres, mdy'", "iso, ymd", "'never'"]),
    ("intervalstyle", &["postgres", "'postgres_verbose'", "sql_standard", "iso_8601", "'never'"]),
    ("extra_float_digits", &["0", "1", "-3", "3", "-15", "99"]),
    ("bytea_output", &["hex", "'escape'", "never"]),
    ("search_path", &["public", "other, public", "public, other", "other,public,nowhere", "\"$user\", public", "''"]),
    ("enable_hashagg", &["on", "off", "'perhaps'"]),
    ("client_min_messages", &["notice", "error", "'loud'"]),
];

impl Writer<'_, '_> {
    /// A transaction, or some statements outside of any that set things or fail.
    pub(super) fn turn(&mut self, is_transaction: bool) -> Vec<Select> {
        let mut turn = Vec::new();
        if is_transaction {
            // Over several shards one snapshot is refused: such transactions are few.
            let begins = if self.chance(12) { &BEGINS[..] } else { &BEGINS[..5] };
            turn.push(said(self.one_of(begins)));
        }
        for _ in 0..self.dice.random_range(2..8) {
            turn.push(match self.dice.random_range(0..20) {
                0..7 => self.either(),
                7..10 => self.failing(),
                10..12 if is_transaction => said(self.one_of(&["savepoint s", "savepoint u", "SAVEPOINT \"s\""])),
                12..14 if is_transaction => said(self.one_of(&[
                    "rollback to s",
                    "rollback to savepoint u",
                    "rollback work to savepoint s",
                    "release s",
                    "release savepoint u",
                    "rollback transaction to \"s\"",
                ])),
                14..18 => self.setting(),
                18 => said(self.one_of(&[
                    "select 1",
                    "show timezone",
                    "select current_setting('datestyle')",
                    "show search_path",
                ])),
                _ => self.setting(),
            });
        }
        if is_transaction {
            turn.push(said(self.one_of(&ENDS)));
        }
        turn.push(self.either());
        turn
    }

    /// Changes or shows a setting.
    pub(super) fn setting(&mut self) -> Select {
        let (name, values) = SETTINGS[self.dice.random_range(0..SETTINGS.len())];
        // A value that there is not comes seldom.
        let many = if self.chance(8) { values.len() } else { values.len() - 1 };
        let value = values[self.dice.random_range(0..many)];
        let kind = self.one_of(&["set ", "set local ", "set session ", "set local "]);
        said(match self.dice.random_range(0..12) {
            0 => format!("{kind}{name} to default"),
            1 => format!("{kind}{name} = default"),
            2 => format!("reset {name}"),
            3 if name == "timezone" => format!("{kind}time zone {value}"),
            4 => format!("select set_config('{name}', '{}', {})", value.replace('\'', ""), self.chance(50)),
            5 => format!("show {name}"),
            6 if self.chance(30) => "reset all".into(),
            _ => format!("{kind}{name} {} {value}", self.one_of(&["to", "="])),
        })
    }

    /// What mostly fails, some of it only where a row has what it fails of.
    pub(super) fn failing(&mut self) -> Select {
        let (from, sources) = self.from(0);
        let filter = if self.chance(40) { format!(" where {}", self.condition(&sources, 0)) } else { String::new() };
        let n = self.dice.random_range(0..6);
        let number = self.column(&sources, |sort| matches!(sort, Sort::Int | Sort::Big | Sort::Small));
        let text = self.column(&sources, |sort| matches!(sort, Sort::Text | Sort::TextC));
        let date = self.column(&sources, |sort| sort == Sort::Date);
        let any = self.column(&sources, |_| true).map_or_else(|| "1".to_owned(), |(column, _)| column);
        let table = self.one_of(&["a", "b", "c", "r"]);
        said(match (self.dice.random_range(0..18), number, text, date) {
            (0 | 1, Some((column, _)), ..) => format!("select 1 / ({column} - {n}) from {from}{filter}"),
            (2, Some((column, _)), ..) => format!("select sum(10 / ({column} - {n})) from {from}{filter}"),
            (3, Some((column, _)), ..) => format!("select {any} from {from} where 10 % ({column} - {n}) = 0"),
            (4, Some((column, _)), ..) => format!("select {column} * 2147483647 * 2147483647 * 4 from {from}{filter}"),
            (5, Some((column, _)), ..) => format!("select sqrt(({column} - {n})::float8) from {from}{filter}"),
            (6 | 7, _, Some((column, _)), _) => format!("select {column}::int4 from {from}{filter}"),
            (8, _, Some((column, _)), _) => format!("select cast({column} as date), {any} from {from}{filter}"),
            (9, _, _, Some((column, _))) => format!("select {column} + 2147483647 from {from}{filter}"),
            (10, ..) => format!("select {any} from {from}{filter} limit -1"),
            (11, ..) => format!("select {any} from {from}{filter} offset (-{n} - 1)"),
            (12, ..) => format!("select {any}, (select id from {table} where id > {n}) from {from}{filter}"),
            (13, ..) => format!("select 1 / (count(*) - {n}) from {table} group by id % 7"),
            (14, ..) => format!("select id % 7 from {table} group by 1 having 1 / (count(*) - {n}) >= 0"),
            (15, ..) => self.one_of(&[
                "selec 1",
                "select 1 / 0",
                "select 'x'::int4",
                "select * from nowhere",
                "select nothing from a",
                "select id, count(*) from b",
                "select 1 from a group by 2",
                "select 1 order by 2",
                "table",
            ]),
            (16, ..) => format!("select no_function({any}) from {from}{filter}"),
            _ => format!("select {any} / '1' || {any} from {from}{filter}"),
        })
    }
}

fn said(text: impl Into<String>) -> Select {
    Select::new(text, false)
}
