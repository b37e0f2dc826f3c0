//! Who reads, what is read, and what must be in it.

use tokio_postgres::{Client, SimpleQueryMessage, Statement, error::SqlState};

use super::chains::Chains;
use super::fleet::Fleet;
use super::world::{CHILD, KEPT, LEDGER, LOG, MIRROR, NORTH, PART, SOUTH, SWAP, World};

/// Time zones without summer time: name and hours east of Greenwich.
pub(super) const ZONES: [(&str, i64); 3] = [("UTC", 0), ("Asia/Tokyo", 9), ("America/Phoenix", -7)];

/// How one reader's sessions are.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    pub(super) herd: usize,
    /// Which owner it is in effect.
    pub(super) owner: usize,
    pub(super) zone: (&'static str, i64),
    pub(super) schema: &'static str,
    pub(super) extended: bool,
}

/// What the third column of a read must say.
#[derive(Debug, Clone, Copy)]
enum Mark {
    /// Where the row comes from, and its time in the reader's zone.
    Item,
    /// The reader's name.
    Owner,
    /// What only some may read.
    Secret,
    Fixed(&'static str),
}

/// One query that is asked again and again.
#[derive(Debug, Clone)]
pub(super) struct Read {
    sql: String,
    pub(super) chains: Vec<i32>,
    mark: Mark,
    /// The reader may not: SQLSTATE 42501 is the only right answer.
    forbidden: bool,
}

/// A connection, and what is asked on it.
pub(super) struct Reader {
    profile: Profile,
    client: Client,
    pub(super) reads: Vec<Read>,
    prepared: Vec<Option<Statement>>,
    role: String,
}

/// How a read ended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ended {
    pub(super) is_near: bool,
    pub(super) was_read: bool,
}

impl Reader {
    pub(super) async fn open(fleet: &Fleet, world: &World, profile: Profile) -> Self {
        let role = world.owners[profile.owner].clone();
        let login = &world.owners[profile.owner.min(1) * usize::from(profile.owner != 2)];
        let (zone, schema) = (profile.zone.0, profile.schema);
        // One half says so at startup, the other by SET.
        let client = if profile.extended {
            let options = format!("options='-c search_path={schema},shop -c timezone={zone}'");
            fleet.client_with(profile.herd, login, &options).await
        } else {
            let client = fleet.client(profile.herd, login).await;
            let set = format!("set search_path to {schema}, shop; set timezone to '{zone}'");
            client.batch_execute(&set).await.expect("set");
            client
        };
        if profile.owner == 2 {
            client.batch_execute(&format!("set role {role}")).await.expect("set role");
        }
        let reads = reads(&profile);
        let prepared = vec![None; reads.len()];
        Self { profile, client, reads, prepared, role }
    }

    /// Which of the reads touch a chain.
    pub(super) fn of_chain(&self, chain: i32) -> Vec<usize> {
        (0..self.reads.len()).filter(|&at| self.reads[at].chains.contains(&chain)).collect()
    }

    /// Asks, and judges the answer.
    pub(super) async fn ask(&mut self, chains: &Chains, at: usize, in_transaction: bool) -> Ended {
        if in_transaction {
            self.client.batch_execute("begin").await.expect("begin");
        }
        let read = self.reads[at].clone();
        let before = chains.before(&read.chains);
        let answer = if self.profile.extended { self.extended(at).await } else { self.simple(&read.sql).await };
        let what = format!("{:?} {:?}", self.profile, read.sql);
        let was_read = answer.is_ok();
        match answer {
            Ok(_) if read.forbidden => chains.violation(format!("FOREIGN {what}: answered where it is forbidden")),
            Ok(rows) => {
                let marks: Vec<String> = rows.iter().map(|(_, v, _)| self.expected(read.mark, *v)).collect();
                chains.judge(&what, &read.chains, &before, &rows, &marks);
            }
            Err(error) if read.forbidden && error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
            Err(error) => chains.violation(format!("ERROR {what}: {error:?}")),
        }
        if in_transaction {
            self.client.batch_execute("commit").await.expect("commit");
        }
        Ended { is_near: before.is_near, was_read }
    }

    async fn simple(&self, sql: &str) -> Result<Vec<(i32, i64, String)>, tokio_postgres::Error> {
        let messages = self.client.simple_query(sql).await?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let field = |at: usize| row.get(at).unwrap_or("0");
                let number = |at| field(at).parse::<i64>().unwrap_or(i64::MIN);
                Some((i32::try_from(number(0)).unwrap_or(-1), number(1), field(2).to_owned()))
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    async fn extended(&mut self, at: usize) -> Result<Vec<(i32, i64, String)>, tokio_postgres::Error> {
        if self.prepared[at].is_none() {
            self.prepared[at] = Some(self.client.prepare(&self.reads[at].sql).await?);
        }
        let Some(statement) = &self.prepared[at] else { return Ok(Vec::new()) };
        let rows = self.client.query(statement, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
    }

    fn expected(&self, mark: Mark, v: i64) -> String {
        match mark {
            Mark::Item => format!("{}|{}", self.profile.schema, moment(v, self.profile.zone.1)),
            Mark::Owner => self.role.clone(),
            Mark::Secret => format!("secret of {}", self.role),
            Mark::Fixed(text) => text.to_owned(),
        }
    }
}

/// `to_timestamp(seconds)` as PostgreSQL writes it under that zone; for some days around the epoch.
fn moment(seconds: i64, hours_east: i64) -> String {
    let local = seconds + hours_east * 3600;
    let date = match local.div_euclid(86_400) {
        -1 => "1969-12-31",
        0 => "1970-01-01",
        1 => "1970-01-02",
        day => panic!("day {day} is further than the checker counts"),
    };
    let second = local.rem_euclid(86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{date} {hour:02}:{minute:02}:{second:02}{hours_east:+03}")
}

fn reads(profile: &Profile) -> Vec<Read> {
    let read =
        |sql: &str, chains: &[i32], mark| Read { sql: sql.into(), chains: chains.to_vec(), mark, forbidden: false };
    let items = if profile.schema == "north" { NORTH } else { SOUTH };
    let mut secret = read(
        "select chain, max(v), max(secret) from ledger where owner = current_user group by chain order by chain",
        &LEDGER[profile.owner..=profile.owner],
        Mark::Secret,
    );
    secret.forbidden = profile.owner == 1;
    vec![
        read(
            "select chain, max(v), max(origin) || '|' || max(at)::text from item group by chain order by chain",
            &items,
            Mark::Item,
        ),
        // Takes its time after its snapshot.
        read(
            "select chain, max(v), max(mark) from (select chain, v, origin || '|' || at::text as mark from item) item, \
             generate_series(1, 3000) group by chain order by chain",
            &items,
            Mark::Item,
        ),
        read(
            "select chain, max(v), max(owner) from ledger where owner = current_user group by chain order by chain",
            &LEDGER[profile.owner..=profile.owner],
            Mark::Owner,
        ),
        secret,
        read("select chain, min(v), 'child' from child group by chain order by chain", &CHILD, Mark::Fixed("child")),
        read("select chain, min(v) - 1, 'kept' from kept group by chain order by chain", &KEPT, Mark::Fixed("kept")),
        read("select chain, max(v), 'mirror' from mirror group by chain", &MIRROR, Mark::Fixed("mirror")),
        read("select chain, max(v), 'part' from part group by chain order by chain", &PART, Mark::Fixed("part")),
        read("select chain, max(v), 'low' from part_low group by chain order by chain", &PART[..2], Mark::Fixed("low")),
        read(
            "select chain, max(v), max(origin) from north_items group by chain order by chain",
            &NORTH,
            Mark::Fixed("north"),
        ),
        read("select chain, max(v), 'swap' from swap group by chain", &SWAP, Mark::Fixed("swap")),
        read("select chain, max(v), 'log' from log group by chain", &LOG, Mark::Fixed("log")),
    ]
}
