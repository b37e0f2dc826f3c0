//! Random writes: after each of them one PostgreSQL and the shards behind pgherd hold the same, or pgherd has refused.
//!
//! Some seconds in the quick tier; `PGHERD_SOAK_SECONDS=600` runs so long, `PGHERD_SOAK_SEED` repeats a run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::answers::{Answer, Manner, ask};
use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};
use crate::layouts::Layout;

const QUICK: Duration = Duration::from_secs(4);

/// Statements at least, however slow the machine.
const LEAST: usize = 60;

/// Statements over one schema before another is made, and between two looks at everything.
const OF_ONE_SCHEMA: usize = 1500;
const BETWEEN_LOOKS: usize = 20;

/// `t` and `u` lie together, `w` by another key, `r` is whole on every shard.
const TABLES: &str = "
create table t (k %key%, id int4, v int4 default 7 check (v between -1000 and 1000), s text, n numeric(20, 3) default 1.5, primary key (k, id));
create table u (k %key%, id int4, v int4, s text default 'none', primary key (k, id));
create table w (id int4 primary key, b int8, at timestamptz default '2026-01-01', tags text[] default '{}');
create table r (code text primary key, v int4 not null, s text);
";

struct World {
    whole: Database,
    shards: Vec<Database>,
    pgherd: Pgherd,
    key: &'static str,
    layouts: [(&'static str, Layout); 3],
}

/// How the tables are spread: the first two alike, by the key alone or by both columns of their primary keys.
fn layouts(dice: &mut StdRng, key: &str) -> [(&'static str, Layout); 3] {
    let both = match (dice.random_range(0..6), key) {
        (0..2, _) => Layout::hash(&["k"]),
        (2, _) => Layout::hash(&["k", "id"]),
        (3, _) => Layout::hash(&["id", "k"]),
        (4, "text") => Layout::texts("k"),
        (4, "int4" | "int8") => Layout::numbers("k"),
        (5, "int4" | "int8") => Layout::range(&["k", "id"]),
        _ => Layout::range(&["id"]),
    };
    let other = match dice.random_range(0..3) {
        0 => Layout::hash(&["id"]),
        1 => Layout::range(&["id"]),
        _ => Layout::numbers("id"),
    };
    [("t", both.clone()), ("u", both), ("w", other)]
}

impl World {
    async fn new(dice: &mut StdRng) -> Self {
        let key = ["int4", "int8", "text", "uuid"][dice.random_range(0..4)];
        let schema = TABLES.replace("%key%", key);
        let (whole, primary) = (harness::fresh_database().await, harness::fresh_database().await);
        let shards = harness::fresh_databases(dice.random_range(2..5)).await;
        let mut conninfos = Vec::new();
        for database in shards.iter().chain([&whole]) {
            database.execute(&schema).await;
        }
        let role = "do $$ begin create role decider login superuser; \
                    exception when duplicate_object or unique_violation then null; end $$";
        primary.execute(role).await;
        shards.iter().for_each(|shard| conninfos.push(format!("\"{}\"", shard.conninfo())));
        let mut toml = format!(
            "[[database]]\nname = \"app\"\nprimary = \"{}\"\nshards = [{}]\ntwo_phase = {{ user = \"decider\" }}\n",
            primary.conninfo(),
            conninfos.join(", ")
        );
        let layouts = layouts(dice, key);
        for (table, layout) in &layouts {
            toml += &layout.toml(table, shards.len());
        }
        toml += "[[database.table]]\nname = \"public.r\"\nreference = true\n[[user]]\nname = \"postgres\"\nauth = \"trust\"\n\
                 [pool]\nmin_connections = 0\n[cache]\nenabled = false\n[fanout]\nkey_moves = \"move\"\n";
        Self { whole, shards, pgherd: Pgherd::start(&toml).await, key, layouts }
    }

    /// What all tables hold, by table; every shard has the same of `r`.
    async fn compare(&self) -> Result<(), String> {
        for table in ["t", "u", "w", "r"] {
            let sql = format!("select {table}::text from {table} order by 1");
            let truth = rows(&self.whole, &sql).await;
            let mut parts = Vec::new();
            for shard in &self.shards {
                parts.push(rows(shard, &sql).await);
            }
            if table == "r" {
                if let Some(other) = parts.iter().find(|part| **part != truth) {
                    return Err(format!("{table}: {other:?} instead of {truth:?}"));
                }
                continue;
            }
            let mut all = parts.concat();
            all.sort();
            let mut truth = truth;
            truth.sort();
            if all != truth {
                let of_one: Vec<_> = all.iter().filter(|row| !truth.contains(row)).collect();
                let of_other: Vec<_> = truth.iter().filter(|row| !all.contains(row)).collect();
                return Err(format!("{table}: has {of_one:?} for {of_other:?}"));
            }
        }
        // Every row is where a read by its key looks for it.
        for (table, layout) in &self.layouts {
            for (at, shard) in self.shards.iter().enumerate() {
                let sql = layout.misplaced(table, self.shards.len(), at);
                let client = shard.client().await;
                let (first, last) = sql.rsplit_once("; ").unwrap_or(("", &sql));
                client.batch_execute(first).await.expect("a partitioned table");
                let misplaced: i64 = client.query_one(last, &[]).await.expect(last).get(0);
                if misplaced > 0 {
                    return Err(format!("{misplaced} rows of {table} on shard {at} belong elsewhere"));
                }
            }
        }
        Ok(())
    }
}

async fn rows(database: &Database, sql: &str) -> Vec<String> {
    database.client().await.query(sql, &[]).await.expect(sql).iter().map(|row| row.get(0)).collect()
}

/// Writes statements.
struct Writer<'a> {
    dice: &'a mut StdRng,
    key: &'static str,
}

impl Writer<'_> {
    fn of<'t>(&mut self, choices: &[&'t str]) -> &'t str {
        choices.choose(self.dice).copied().unwrap_or_default()
    }

    fn key(&mut self) -> String {
        let n = self.dice.random_range(0..12);
        if self.key == "uuid" {
            format!("'{n:08x}-0000-0000-0000-000000000000'")
        } else if self.key == "text" {
            format!("'{}'", ["a", "b", "", "é", "it''s", "Z", "long key", "0", "1", "\\x", "(", "a;b"][n as usize])
        } else {
            format!("{n}")
        }
    }

    fn number(&mut self) -> String {
        match self.dice.random_range(0..12) {
            0 => "null".into(),
            1 => "default".into(),
            2 => "5000".into(),
            n => format!("{}", n * 9 - 30),
        }
    }

    fn text(&mut self) -> &'static str {
        self.of(&["'x'", "null", "'it''s'", "E'a\\tb'", "$$), (1$$", "'values (1)'", "'ü'"])
    }

    fn rows(&mut self, row: impl Fn(&mut Self) -> String) -> String {
        let count = [1, 1, 2, 3, 5, 9][self.dice.random_range(0..6)];
        (0..count).map(|_| row(self)).collect::<Vec<_>>().join(", ")
    }

    fn condition(&mut self, table: &str) -> String {
        let (key, id) = (self.key(), self.dice.random_range(0..6));
        match self.dice.random_range(0..9) {
            0 | 1 => format!("{table}.k = {key}"),
            2 => format!("{table}.k in ({key}, {})", self.key()),
            3 => format!("{table}.id = {id}"),
            4 => format!("{table}.v > {}", self.dice.random_range(-30..60)),
            5 => format!("{table}.s is null or {table}.k = {key}"),
            6 => format!("{table}.k = {key} and {table}.id < {id}"),
            7 => format!("{table}.s like '%x%' and not {table}.id = {id}"),
            _ => "true".into(),
        }
    }

    fn statement(&mut self) -> String {
        let returning = self.of(&["", "", " returning k, id, v", " returning v + 1 as next, s"]);
        match self.dice.random_range(0..23) {
            20.. => self.of_moves(),
            0..=3 => {
                let values = self.rows(|it| {
                    let (key, id) = (it.key(), it.dice.random_range(0..6));
                    format!("({key}, {id}, {}, {})", it.number(), it.text())
                });
                let conflict = self.of(&[
                    "",
                    " on conflict do nothing",
                    " on conflict (k, id) do update set v = excluded.v, s = t.s || '!'",
                    " on conflict (k, id) do update set v = 1 where t.v < 10",
                ]);
                format!("insert into t (k, id, v, s) values {values}{conflict}{returning}")
            }
            4 => {
                let values = self.rows(|it| {
                    let (key, id) = (it.key(), it.dice.random_range(0..6));
                    format!("({key}, {id}, {})", it.dice.random_range(0..99))
                });
                format!(
                    "insert into u values {values} on conflict (k, id) do update set v = u.v + excluded.v{returning}"
                )
            }
            5 => {
                let values = self.rows(|it| {
                    format!("({}, {}, '2026-02-03 04:05+00')", it.dice.random_range(0..40), it.dice.random_range(0..9))
                });
                format!("insert into w (id, b, at) values {values} on conflict do nothing returning id")
            }
            6 => {
                let set = self.of(&[
                    "v = v + 1",
                    "s = upper(s)",
                    "v = v * 3, s = v::text",
                    "n = n / 3",
                    "v = default, s = null",
                ]);
                format!("update t set {set} where {}{returning}", self.condition("t"))
            }
            7 => format!("update u set v = v - 1, s = s || k where {}{returning}", self.condition("u")),
            8 => {
                let condition = self.condition("t");
                format!("update t set v = u.v % 500, s = u.s from u where t.k = u.k and t.id = u.id and ({condition})")
            }
            9 => format!("update t set s = r.s from r where r.v = t.id and r.code = 'a' and ({})", self.condition("t")),
            10 => format!("delete from t where {}{returning}", self.condition("t")),
            11 => {
                let condition = self.condition("u");
                format!(
                    "delete from u using t where t.k = u.k and t.id = u.id and t.v > 10 and ({condition}) returning u.id"
                )
            }
            12 => format!(
                "update w set b = b + 1, tags = tags || 'x'::text where id % {} = 0 returning id, tags",
                self.dice.random_range(2..5)
            ),
            13 => format!(
                "insert into r values ('{}', {}) on conflict (code) do update set v = r.v + 1 returning *",
                self.of(&["a", "b", "c"]),
                self.dice.random_range(0..6)
            ),
            14 => self.of_query(),
            15 => {
                let condition = self.condition("t");
                let (verb, what) = *[
                    ("delete from t", ""),
                    ("update t set v = 3", ""),
                    ("update t set s = (select count(*)::text from u where u.k = t.k and u.id = t.id)", " or true"),
                ]
                .choose(self.dice)
                .expect("some");
                format!(
                    "{verb} where ({condition}) and (exists (select 1 from u where u.k = t.k and u.id = t.id){what})"
                )
            }
            16 => {
                let (first, second) = (self.condition("t"), self.dice.random_range(0..40));
                format!(
                    "merge into t using u on t.k = u.k and t.id = u.id when matched and ({first}) then delete \
                     when matched then update set v = u.v % 500, s = u.s \
                     when not matched and u.v > {second} then insert (id, k, v) values (u.id, u.k, u.v % 900)"
                )
            }
            17 => self.of_reference().into(),
            _ => self
                .of(&[
                    "update t set k = k",
                    "truncate u",
                    "delete from w where b > 3",
                    "update t set v = (select 1)",
                    "delete from t where v = 1 / id",
                ])
                .into(),
        }
    }
}

impl Writer<'_> {
    fn of_reference(&mut self) -> &'static str {
        self.of(&[
            "update r set v = v + 1 where v < 100 returning code, v",
            "delete from r where v > 5",
            "update r set s = code || v::text",
        ])
    }

    /// An UPDATE of shard keys, where it hangs on no order of the rows whether one takes the key of another that has yet to leave.
    fn of_moves(&mut self) -> String {
        let (key, id, returning) = (
            self.key(),
            self.dice.random_range(0..6),
            self.of(&["", " returning k, id, v, s", " returning n, id + 1 as next, k"]),
        );
        let set =
            self.of(&["", ", v = v + 1", ", s = upper(s), n = n / 3", ", s = v::text", ", v = 5000", ", s = 'it''s'"]);
        match self.dice.random_range(0..7) {
            0 | 1 => format!("update t set k = {key}{set} where t.k = {} and t.id = {id}{returning}", self.key()),
            2 => format!("update t set k = {key}{set} where id = {id}{returning}"),
            3 => format!(
                "update u set (k, v) = ({key}, v * 2) where id = {id} and v > {}",
                self.dice.random_range(0..40)
            ),
            4 => format!("update t set id = {}{set} where id = {id}{returning}", self.dice.random_range(0..6)),
            5 if self.key.starts_with("int") => {
                format!("update t set k = k + {}{set} where k < 50{returning}", self.dice.random_range(100..200))
            }
            _ => format!(
                "update w set id = id + 100, tags = tags || 'm'::text where id < 50 and id % 3 = {} returning id, b, tags",
                id % 3
            ),
        }
    }

    /// An INSERT of rows that are there.
    fn of_query(&mut self) -> String {
        let (conflict, condition) = (
            self.of(&[
                "",
                " on conflict do nothing",
                " on conflict (k, id) do update set v = excluded.v returning k, id, v",
            ]),
            self.condition("t"),
        );
        match self.dice.random_range(0..6) {
            0 => format!("insert into u select k, id, v, s from t where {condition}{conflict}"),
            1 => format!("insert into u (id, k) select id, k from t where {condition}{conflict}"),
            2 => format!("insert into u (k, v, id) select t.k, count(*), t.id from t group by t.id, t.k{conflict}"),
            3 => format!("insert into t (k, id, v) select t.k, t.id, r.v from t join r on r.v = t.id where {condition} on conflict do nothing"),
            4 => "insert into w (id, b) select id + 20, b from w where id < 20 on conflict do nothing".to_owned(),
            _ => "insert into r select code || 'x', v + 1 from r where char_length(code) < 3 on conflict (code) do update set v = 0 returning *"
                .to_owned(),
        }
    }
}

#[derive(Default)]
struct Tally {
    equal: usize,
    failed_alike: usize,
    transactions: usize,
    refused: BTreeMap<String, usize>,
}

impl Tally {
    fn all(&self) -> usize {
        self.equal + self.failed_alike + self.refused.values().sum::<usize>()
    }
}

/// Both in or out of a transaction.
struct Pair {
    whole: WireClient,
    herd: WireClient,
    in_transaction: bool,
}

impl Pair {
    /// pgherd first: what it refuses is not done.
    async fn say(&mut self, manner: Manner, sql: &str, tally: &mut Tally) -> Result<(), String> {
        let given = ask(&mut self.herd, manner, sql).await;
        if given.code() == Some("0A000") {
            let (_, message) = given.error.unwrap_or_default();
            *tally.refused.entry(message).or_default() += 1;
            if self.in_transaction {
                self.both("rollback").await?;
                self.in_transaction = false;
            }
            return Ok(());
        }
        let wanted = ask(&mut self.whole, manner, sql).await;
        tally.failed_alike += usize::from(wanted.error.is_some());
        tally.equal += usize::from(wanted.error.is_none());
        same(sql, manner, wanted, given)
    }

    async fn both(&mut self, sql: &str) -> Result<(), String> {
        let given = ask(&mut self.herd, Manner::Simple, sql).await;
        same(sql, Manner::Simple, ask(&mut self.whole, Manner::Simple, sql).await, given)
    }
}

fn same(sql: &str, manner: Manner, wanted: Answer, given: Answer) -> Result<(), String> {
    let seen =
        |answer: &Answer| (answer.code().map(str::to_owned), answer.tag.clone(), answer.status, answer.rows.clone());
    let (wanted, given) = (wanted.sorted(), given.sorted());
    // Which of two errors comes first, and what was told before it, is the servers' to choose.
    if wanted.error.is_some() && given.error.is_some() && wanted.status == given.status {
        return Ok(());
    }
    if seen(&wanted) == seen(&given) && wanted.columns == given.columns {
        return Ok(());
    }
    Err(format!("{manner:?} {sql}\n  {given:?}\n  instead of {wanted:?}"))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn random_writes_leave_what_one_postgresql_would_hold() {
    let seed = number("PGHERD_SOAK_SEED").unwrap_or_else(rand::random);
    let end = Instant::now() + number("PGHERD_SOAK_SECONDS").map_or(QUICK, Duration::from_secs);
    let mut dice = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    while Instant::now() < end || tally.all() < LEAST {
        let world = World::new(&mut dice).await;
        let whole = WireClient::login(world.whole.port, "postgres", &world.whole.name).await;
        let mut pair = Pair { whole, herd: world.pgherd.wire("app").await, in_transaction: false };
        let mut history = Vec::new();
        for at in 1..=OF_ONE_SCHEMA {
            if Instant::now() >= end && tally.all() >= LEAST && !pair.in_transaction {
                break;
            }
            let sql = match (pair.in_transaction, dice.random_range(0..30)) {
                (false, 0..4) => {
                    pair.in_transaction = true;
                    tally.transactions += 1;
                    "begin".to_owned()
                }
                (true, 0..5) => {
                    pair.in_transaction = false;
                    ["commit", "commit", "commit", "rollback"][dice.random_range(0..4)].to_owned()
                }
                (true, 5..7) => "savepoint s".to_owned(),
                (true, 7..9) => "rollback to s".to_owned(),
                _ => Writer { dice: &mut dice, key: world.key }.statement(),
            };
            let manner = [Manner::Simple, Manner::Text, Manner::Binary, Manner::Prepared][dice.random_range(0..4)];
            history.push(sql.clone());
            let mut outcome = pair.say(manner, &sql, &mut tally).await;
            if outcome.is_ok() && at % BETWEEN_LOOKS == 0 && !pair.in_transaction {
                outcome = world.compare().await;
            }
            if let Err(difference) = outcome {
                let last = history.split_off(history.len().saturating_sub(BETWEEN_LOOKS + 5));
                panic!("seed {seed}: {difference}\nafter\n{}", last.join(";\n"));
            }
        }
        if pair.in_transaction {
            pair.both("rollback").await.expect("the same");
        }
        if let Err(difference) = world.compare().await {
            panic!("seed {seed}: at the end {difference}");
        }
        world.pgherd.stop().await;
    }
    let Tally { equal, failed_alike, transactions, refused } = &tally;
    eprintln!(
        "seed {seed}: {} statements, {equal} equal, {failed_alike} failed alike, {transactions} transactions, {} refused: {refused:#?}",
        tally.all(),
        refused.values().sum::<usize>()
    );
    assert!(*equal > tally.all() / 3, "there was something to compare");
}
