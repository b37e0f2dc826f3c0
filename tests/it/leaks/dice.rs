//! What a client may do next, thrown with its own dice.

use bytes::{BufMut, BytesMut};
use pgherd::wire::writer;
use rand::Rng;
use rand::rngs::StdRng;

use super::line::Until;
use crate::harness::wire::bind;

/// One thing that a client says, and how far it listens before it goes on.
#[derive(Debug)]
pub(super) struct Step {
    /// For people.
    pub(super) name: String,
    pub(super) said: BytesMut,
    pub(super) until: Until,
    /// pgherd may answer it with 0A000.
    pub(super) may_be_refused: bool,
    /// It makes the client keep its server connection.
    pub(super) pins: bool,
    /// It runs until it is cancelled.
    pub(super) cancels: bool,
}

impl Step {
    fn new(name: impl Into<String>, until: Until, fill: impl FnOnce(&mut BytesMut)) -> Self {
        let mut said = BytesMut::new();
        fill(&mut said);
        Self { name: name.into(), said, until, may_be_refused: false, pins: false, cancels: false }
    }

    fn query(text: &str) -> Self {
        Self::new(text, Until::Ready(1), |out| writer::query(out, text.as_bytes()))
    }

    fn refusable(mut self) -> Self {
        self.may_be_refused = true;
        self
    }

    fn pinning(mut self) -> Self {
        self.pins = true;
        self
    }
}

/// Settings and values to give them, as SET spells them. `%` is the client's mark.
const SETTINGS: [(&str, [&str; 3]); 18] = [
    ("work_mem", ["'1MB'", "'2MB'", "'3333kB'"]),
    ("search_path", ["a", "b, public", "\"$user\", b"]),
    ("application_name", ["'%'", "'% again'", "''"]),
    ("timezone", ["'Asia/Tokyo'", "'America/New_York'", "'-3'"]),
    ("datestyle", ["german", "'sql, dmy'", "'postgres, ymd'"]),
    ("intervalstyle", ["iso_8601", "sql_standard", "postgres_verbose"]),
    ("extra_float_digits", ["0", "-3", "3"]),
    ("bytea_output", ["escape", "hex", "'escape'"]),
    ("statement_timeout", ["'95s'", "0", "'2min'"]),
    ("lock_timeout", ["'95s'", "0", "'2min'"]),
    ("default_transaction_isolation", ["'repeatable read'", "'read committed'", "'repeatable read'"]),
    ("default_transaction_read_only", ["on", "off", "off"]),
    ("client_encoding", ["latin1", "'utf8'", "'win1252'"]),
    ("standard_conforming_strings", ["off", "on", "off"]),
    ("row_security", ["off", "on", "off"]),
    ("enable_seqscan", ["off", "on", "off"]),
    ("app.tenant", ["'% tenant'", "'%'", "''"]),
    ("app.other", ["'% other'", "'% more'", "'x'"]),
];

/// The dice of one client.
pub(super) struct Dice {
    pub(super) random: StdRng,
    /// What marks everything of this client's.
    pub(super) mark: String,
    pub(super) roles: [String; 2],
    /// A number that every step may use once.
    count: u32,
    /// Does what makes pgherd keep the server connection.
    pub(super) pins: bool,
    /// Does what nobody sees: DO, functions, triggers.
    pub(super) hides: bool,
    key: i64,
    /// Does not take another session authorization.
    pub(super) is_itself: bool,
}

impl Dice {
    pub(super) fn new(mut random: StdRng, mark: String, key: i64, roles: [String; 2]) -> Self {
        let pins = random.random_ratio(1, 5);
        let hides = random.random_ratio(1, 4);
        Self { random, mark, roles, count: 0, pins, hides, key, is_itself: false }
    }

    fn of<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.random.random_range(0..list.len())]
    }

    fn is(&mut self, one_in: u32) -> bool {
        self.random.random_ratio(1, one_in)
    }

    /// What the client says first: who it is.
    pub(super) fn introduction(&self) -> Step {
        Step::query(&format!("select set_config('app.me', '{}', false)", self.mark))
    }

    /// The next step. `status` is the transaction's.
    pub(super) fn next(&mut self, status: u8) -> Step {
        self.count += 1;
        if status == b'E' && self.is(2) {
            return self.transaction(status);
        }
        match self.random.random_range(0..30) {
            0..=8 => self.setting(),
            9..=11 => self.transaction(status),
            12..=15 => self.statement(),
            16 | 17 => self.row(),
            18 | 19 => self.pipeline(),
            20 => self.string(),
            21 => self.portal(status),
            22 => self.copy(),
            23 if self.hides => self.hidden(),
            24 | 25 if self.pins => self.pinned(),
            26 => self.role(),
            27 => self.discard(),
            28 if self.is(4) => self.cancelled(),
            _ => self.setting_by_messages(),
        }
    }

    fn assignment(&mut self) -> (&'static str, String) {
        let (name, values) = &SETTINGS[self.random.random_range(0..SETTINGS.len())];
        let value = self.of(values);
        (name, value.replace('%', &self.mark))
    }

    fn set(&mut self) -> String {
        let (name, value) = self.assignment();
        match self.random.random_range(0..8) {
            0 => format!("reset {name}"),
            1 => format!("set {name} to default"),
            2 | 3 => format!("set local {name} to {value}"),
            4 => format!("set session {name} = {value}"),
            5 if value.starts_with('\'') => {
                format!("select set_config('{name}', {value}, {})", self.random.random_bool(0.5))
            }
            _ => format!("set {name} to {value}"),
        }
    }

    fn setting(&mut self) -> Step {
        let text = if self.is(14) { "reset all".to_owned() } else { self.set() };
        if self.is(4) { self.by_messages(&text) } else { Step::query(&text) }
    }

    /// One statement by Parse, Bind, Execute and Sync.
    fn by_messages(&mut self, text: &str) -> Step {
        let described = self.random.random_bool(0.5);
        Step::new(format!("<{text}>"), Until::Ready(1), |out| {
            writer::parse(out, b"", text.as_bytes(), &[]);
            bind(out, "", "", &[], 0);
            if described {
                writer::describe(out, b'P', b"");
            }
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .refusable()
    }

    /// `set_config` where only the server knows what is set: by parameters, by rows, by a FunctionCall. It pins.
    fn setting_by_messages(&mut self) -> Step {
        if !self.pins {
            return self.setting();
        }
        let local = if self.random.random_bool(0.3) { "true" } else { "false" };
        let value = format!("{} by parameter", self.mark);
        match self.random.random_range(0..3) {
            0 => Step::new("set_config($1, $2, $3)", Until::Ready(1), |out| {
                writer::parse(out, b"", b"select set_config($1, $2, $3)", &[25, 25, 16]);
                bind(out, "", "", &[Some("app.other"), Some(&value), Some(local)], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
            }),
            1 => Step::new("call of set_config", Until::Ready(1), |out| {
                call(out, 2078, &["app.tenant", &value, local]);
            }),
            _ => Step::query(&format!(
                "select set_config(name, '{value}', {local}) from (values ('app.tenant'), ('app.other')) v (name)"
            )),
        }
        .pinning()
    }

    fn transaction(&mut self, status: u8) -> Step {
        let text = if status == b'I' {
            self.of(&[
                "begin",
                "begin",
                "begin",
                "begin isolation level repeatable read",
                "start transaction",
                "commit",
                "rollback",
            ])
        } else {
            self.of(&[
                "commit",
                "rollback",
                "commit",
                "end",
                "savepoint one",
                "savepoint two",
                "rollback to one",
                "rollback to two",
                "release one",
                "release savepoint two",
                "commit and chain",
                "rollback and chain",
                "select 1/0",
            ])
        };
        if self.is(4) { self.by_messages(text) } else { Step::query(text) }
    }

    fn role(&mut self) -> Step {
        let [one, other] = self.roles.clone();
        let text = match self.random.random_range(0..9) {
            0 | 1 => format!("set role {one}"),
            2 => format!("set local role {other}"),
            3 => format!("set session role '{other}'"),
            4 => "reset role".to_owned(),
            5 => "set role none".to_owned(),
            6 if !self.is_itself => format!("set session authorization {one}"),
            7 => "reset session authorization".to_owned(),
            _ => format!("select set_config('role', '{other}', false)"),
        };
        Step::query(&text)
    }

    fn discard(&mut self) -> Step {
        let text = self.of(&[
            "discard all",
            "discard all",
            "discard plans",
            "discard sequences",
            "discard temp",
            "deallocate all",
            "deallocate s1",
        ]);
        if self.is(3) { self.by_messages(text) } else { Step::query(text) }
    }

    /// Statements under names that all clients use, with texts and types that differ.
    fn statement(&mut self) -> Step {
        let name = self.of(&["s1", "s2", "s3", ""]);
        let (text, types, value): (String, Vec<u32>, Option<&str>) = match self.random.random_range(0..8) {
            0 => ("select pg_typeof($1)::text, $1::text".into(), vec![self.type_of_one()], Some("1")),
            1 => ("select name from who".into(), vec![], None),
            2 => ("select '01/02/03'::date::text, '1 day'::interval, 'a\\b', now() is null".into(), vec![], None),
            3 => (format!("select '{} {}'", self.mark, self.count), vec![], None),
            4 => ("select name, $1::text from who".into(), vec![25], Some("x")),
            5 => ("select current_user, coalesce(current_setting('app.me', true), ''), $1".into(), vec![25], Some("y")),
            6 => ("select nonsense from who".into(), vec![], None),
            _ => (
                "select 0.1::float8 / 3, decode('deadbeef', 'hex'), timestamptz '2024-02-01 03:04:05+00'".into(),
                vec![],
                None,
            ),
        };
        let name = if text.contains("nonsense") { "" } else { name };
        let prepares = self.random.random_bool(0.5);
        let closes = self.is(6);
        let described = self.is(3);
        let label = format!("{name:?} {}{text} {types:?}", if prepares { "prepared: " } else { "run, perhaps " });
        Step::new(label, Until::Ready(1), |out| {
            if closes {
                writer::close(out, b'S', name.as_bytes());
            }
            if prepares {
                writer::parse(out, name.as_bytes(), text.as_bytes(), &types);
            }
            if described {
                writer::describe(out, b'S', name.as_bytes());
            }
            let values: &[Option<&str>] = if value.is_some() { &[value] } else { &[] };
            bind(out, "", name, values, 0);
            writer::describe(out, b'P', b"");
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .refusable()
    }

    fn type_of_one(&mut self) -> u32 {
        [20, 21, 23, 25, 700, 1043, 1700][self.random.random_range(0..7)]
    }

    /// Rows of the client's own.
    fn row(&mut self) -> Step {
        let (mark, n) = (&self.mark, self.count);
        match self.random.random_range(0..5) {
            0 | 1 => Step::query(&format!("insert into public.rows values ('{mark}', {n}) returning owner, n")),
            2 => Step::query(&format!("update public.rows set n = n + 1 where owner = '{mark}'")),
            3 => Step::query(&format!("select owner, n from public.rows where owner = '{mark}' order by n")),
            _ => Step::new("insert by messages", Until::Ready(1), |out| {
                writer::parse(out, b"", b"insert into public.rows values ($1, $2) returning *", &[]);
                bind(out, "", "", &[Some(mark), Some(&n.to_string())], 0);
                writer::execute(out, b"", 0);
                writer::sync(out);
            }),
        }
    }

    /// Several messages in one go, with or without an error among them, over one Sync or several.
    fn pipeline(&mut self) -> Step {
        let (parts, mut label, mut syncs) = (self.random.random_range(2..6), String::from("pipeline"), 0);
        let mut said = BytesMut::new();
        for part in 0..parts {
            let text = match self.random.random_range(0..7) {
                0 | 1 => self.set(),
                2 => "select 1/0".to_owned(),
                3 => format!("insert into public.rows values ('{}', {})", self.mark, self.count * 10 + part),
                4 => "select nonsense".to_owned(),
                _ => format!("select '{}', name from who", self.mark),
            };
            // Of two errors at once, a name that is taken and a text that makes no sense, pgherd tells the first.
            let name = if text.contains("nonsense") { "" } else { self.of(&["", "", "s1", "s2"]) };
            writer::parse(&mut said, name.as_bytes(), text.as_bytes(), &[]);
            bind(&mut said, "", name, &[], 0);
            writer::describe(&mut said, b'P', b"");
            writer::execute(&mut said, b"", 0);
            label += &format!(" | {name} {text}");
            if part + 1 == parts || self.is(3) {
                writer::sync(&mut said);
                label += " SYNC";
                syncs += 1;
            }
        }
        Step { name: label, said, until: Until::Ready(syncs), may_be_refused: true, pins: false, cancels: false }
    }

    /// Several statements in one string.
    fn string(&mut self) -> Step {
        let begin = self.of(&["", "", "begin; ", "savepoint one; "]);
        let (one, other) = (self.set(), self.set());
        let middle =
            self.of(&["", "select 1/0; ", "insert into public.rows values ('%', 1); "]).replace('%', &self.mark);
        let end = self.of(&["", "; commit", "; rollback", "; select name from who"]);
        Step::query(&format!("{begin}{one}; {middle}{other}{end}"))
    }

    /// A portal that is fetched bit by bit, with Flush before its Sync.
    fn portal(&mut self, status: u8) -> Step {
        let mark = self.mark.clone();
        let flushes = self.random.random_bool(0.5);
        let until = if status == b'E' || !flushes { Until::Ready(1) } else { Until::Any(b"sE") };
        Step::new(format!("portal, status {status}, flush {flushes}"), until, |out| {
            writer::parse(out, b"", format!("select n, '{mark}' from generate_series(1, 9) n").as_bytes(), &[]);
            bind(out, "p", "", &[], 0);
            writer::execute(out, b"p", 4);
            if flushes && status != b'E' {
                writer::flush(out);
            } else {
                writer::execute(out, b"p", 0);
                writer::close(out, b'P', b"p");
                writer::sync(out);
            }
        })
        .refusable()
    }

    /// What brings an open pipeline to its Sync.
    pub(super) fn sync(&mut self) -> Step {
        let again = self.random.random_bool(0.5);
        Step::new("sync", Until::Ready(1), |out| {
            if again {
                writer::execute(out, b"p", 3);
                writer::close(out, b'P', b"p");
            }
            writer::sync(out);
        })
        .refusable()
    }

    fn copy(&mut self) -> Step {
        let (mark, n) = (self.mark.clone(), self.count);
        let fails = self.is(3);
        if self.is(2) {
            return Step::query(&format!("copy (select '{mark}', n from generate_series(1, 30) n) to stdout"));
        }
        Step::new(format!("copy from stdin, fails {fails}"), Until::Ready(1), |out| {
            writer::query(out, b"copy public.rows from stdin");
            let text = format!("{mark}\t{n}\n{mark}\t{}\n", if fails { "x" } else { "7" });
            writer::message(out, b'd', |out| out.put_slice(text.as_bytes()));
            writer::message(out, b'c', |_| {});
        })
    }

    /// Settings changed by code that no text shows.
    fn hidden(&mut self) -> Step {
        let value = format!("{} hidden", self.mark);
        let text = match self.random.random_range(0..5) {
            0 => format!("do $$ begin perform set_config('app.hidden', '{value}', false); end $$"),
            1 => format!("select public.hides('{value}')"),
            2 => format!("insert into public.triggers values ('{value}')"),
            3 => format!("call public.hides_too('{value}')"),
            _ => "do $$ begin set enable_hashjoin to off; end $$".to_owned(),
        };
        if self.is(3) { self.by_messages(&text) } else { Step::query(&text) }
    }

    /// What lives in the server's session.
    fn pinned(&mut self) -> Step {
        let (key, mark) = (self.key, self.mark.clone());
        let text = match self.random.random_range(0..16) {
            0 | 1 => format!("create temp table mine as select '{mark}' as owner"),
            2 => "select owner from mine".to_owned(),
            3 => "drop table mine".to_owned(),
            4 => format!("listen {mark}"),
            5 => format!("notify {mark}, '{mark}'"),
            6 => "unlisten *".to_owned(),
            7 => format!("select pg_advisory_lock({key})"),
            8 => format!("select pg_advisory_unlock({key}), pg_try_advisory_lock({})", key + 1),
            9 => format!("declare c cursor with hold for select n, '{mark}' from generate_series(1, 9) n"),
            10 => "fetch 2 from c".to_owned(),
            11 => "close c".to_owned(),
            12 => format!("prepare q1 (int) as select '{mark}', $1"),
            13 => "execute q1 (5)".to_owned(),
            14 => "deallocate q1".to_owned(),
            _ => "select setseed(0.25), random()".to_owned(),
        };
        let step = if self.is(4) { self.by_messages(&text) } else { Step::query(&text) };
        step.pinning().refusable()
    }

    /// A statement that runs until it is cancelled.
    fn cancelled(&mut self) -> Step {
        let mut step = Step::query("select pg_sleep(60)");
        step.cancels = true;
        step
    }
}

/// A FunctionCall with text arguments and a text result.
fn call(out: &mut BytesMut, oid: u32, arguments: &[&str]) {
    writer::message(out, b'F', |out| {
        out.put_u32(oid);
        out.put_i16(0);
        out.put_i16(i16::try_from(arguments.len()).expect("few"));
        for argument in arguments {
            out.put_i32(i32::try_from(argument.len()).expect("short"));
            out.put_slice(argument.as_bytes());
        }
        out.put_i16(0);
    });
}
