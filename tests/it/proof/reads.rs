//! Who reads, what is read, and what must be in it.

use futures_util::future::join_all;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, SimpleQueryMessage, Statement};

use super::chains::{Before, Chains, Rows};
use super::seat::{Line, PATIENCE, is_loss};
use super::world::{
    CHILD, EDITION, GATE, HUNG, KEPT, LEDGER, LOG, MATVIEW, MIRROR, NORTH, PART, RULED, SOUTH, STAMP, SWAP, TENANTS,
    TOGGLED, WIDE, World,
};

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
    /// Which tenant it reads as.
    pub(super) tenant: usize,
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
    /// The reader's tenant.
    Tenant,
    Fixed(&'static str),
    /// The columns change.
    Any,
}

/// What is right, beside rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    Always,
    /// SQLSTATE 42501 is the only right answer.
    Never,
    /// At even versions.
    AtTimes,
}

/// One query that is asked again and again.
#[derive(Debug, Clone)]
pub(super) struct Read {
    sql: String,
    /// What stands for `$1`.
    parameter: Option<i32>,
    pub(super) chains: Vec<i32>,
    mark: Mark,
    right: Right,
}

/// A connection, and what is asked on it.
pub(super) struct Reader {
    profile: Profile,
    line: Line,
    pub(super) reads: Vec<Read>,
    prepared: Vec<Option<Statement>>,
    role: String,
}

/// How a burst of reads ended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ended {
    pub(super) reads: u64,
    pub(super) near: u64,
    /// The connection is of no use any more.
    pub(super) is_lost: bool,
}

const TENANT_NAMES: [&str; 2] = ["a", "b"];

impl Reader {
    /// Connects to that port; `None` where nobody answers.
    pub(super) async fn open(port: u16, world: &World, profile: Profile) -> Option<Self> {
        let role = world.owners[profile.owner].clone();
        let login = &world.owners[profile.owner.min(1) * usize::from(profile.owner != 2)];
        let (zone, schema, tenant) = (profile.zone.0, profile.schema, TENANT_NAMES[profile.tenant]);
        let conninfo = format!("host=127.0.0.1 port={port} user={login} dbname={}", world.database.name);
        // One half says so at startup, the other by SET.
        let line = if profile.extended {
            let options = format!("-c search_path={schema},shop -c timezone={zone} -c app.tenant={tenant}");
            Line::open(&format!("{conninfo} options='{options}'")).await?
        } else {
            let line = Line::open(&conninfo).await?;
            let set =
                format!("set search_path to {schema}, shop; set timezone to '{zone}'; set app.tenant = '{tenant}'");
            within(line.client.batch_execute(&set)).await?.ok()?;
            line
        };
        if profile.owner == 2 {
            within(line.client.batch_execute(&format!("set role {role}"))).await?.ok()?;
        }
        let reads = reads(&profile);
        let prepared = vec![None; reads.len()];
        Some(Self { profile, line, reads, prepared, role })
    }

    /// Which of the reads touch a chain.
    pub(super) fn of_chain(&self, chain: i32) -> Vec<usize> {
        (0..self.reads.len()).filter(|&at| self.reads[at].chains.contains(&chain)).collect()
    }

    /// Asks the same so many times without waiting in between, and judges the answers.
    pub(super) async fn ask(&mut self, chains: &Chains, at: usize, times: usize, in_transaction: bool) -> Ended {
        match within(self.ask_at_leisure(chains, at, times, in_transaction)).await {
            Some(ended) => ended,
            None => Ended { is_lost: true, ..Ended::default() },
        }
    }

    async fn ask_at_leisure(&mut self, chains: &Chains, at: usize, times: usize, in_transaction: bool) -> Ended {
        let lost = Ended { is_lost: true, ..Ended::default() };
        if self.profile.extended && self.prepared[at].is_none() {
            match self.line.client.prepare(&self.reads[at].sql).await {
                Ok(statement) => self.prepared[at] = Some(statement),
                // One that may not read cannot prepare either.
                Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
                Err(error) => return self.failed(chains, at, &error),
            }
        }
        if in_transaction && self.line.client.batch_execute("begin").await.is_err() {
            return lost;
        }
        let before = chains.before(&self.reads[at].chains);
        let answers = join_all((0..times).map(|_| self.question(at))).await;
        let mut ended = Ended::default();
        let mut has_failed = false;
        for answer in answers {
            if in_transaction && has_failed {
                // A transaction that has failed answers nothing more.
                break;
            }
            let was_read = answer.is_ok();
            has_failed |= !was_read;
            let one = self.judge(chains, at, &before, answer);
            ended.is_lost |= one.is_lost;
            ended.reads += u64::from(was_read);
            ended.near += u64::from(was_read && before.is_near);
        }
        if in_transaction && self.line.client.batch_execute("commit").await.is_err() {
            ended.is_lost = true;
        }
        ended
    }

    fn judge(&self, chains: &Chains, at: usize, before: &Before, answer: Result<Rows, Error>) -> Ended {
        let read = &self.reads[at];
        let what = || self.what(at);
        let is_refused = |error: &Error| error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
        match (answer, read.right) {
            (Ok(_), Right::Never) => chains.violation(format!("FOREIGN {}: answered where it is forbidden", what())),
            (Ok(_), Right::AtTimes) => chains.judge_parity(&what, read.chains[0], before, false),
            (Ok(rows), Right::Always) => {
                chains.judge(&what, &read.chains, before, &rows, &|v| self.expected(read.mark, v));
            }
            (Err(error), Right::Never) if is_refused(&error) => {}
            (Err(error), Right::AtTimes) if is_refused(&error) => {
                chains.judge_parity(&what, read.chains[0], before, true);
            }
            (Err(error), _) => return self.failed(chains, at, &error),
        }
        Ended::default()
    }

    fn failed(&self, chains: &Chains, at: usize, error: &Error) -> Ended {
        if !is_loss(error) {
            chains.violation(format!("ERROR {}: {error:?}", self.what(at)));
        }
        Ended { is_lost: true, ..Ended::default() }
    }

    fn what(&self, at: usize) -> String {
        format!("{:?} {:?} {:?}", self.profile, self.reads[at].sql, self.reads[at].parameter)
    }

    async fn question(&self, at: usize) -> Result<Rows, Error> {
        let (client, read) = (&self.line.client, &self.reads[at]);
        match &self.prepared[at] {
            Some(statement) => extended(client, statement, read.parameter).await,
            None => match read.parameter {
                Some(value) => simple(client, &read.sql.replace("$1", &value.to_string())).await,
                None => simple(client, &read.sql).await,
            },
        }
    }

    fn expected(&self, mark: Mark, v: i64) -> Option<String> {
        Some(match mark {
            Mark::Item => format!("{}|{}", self.profile.schema, moment(v, self.profile.zone.1)),
            Mark::Owner => self.role.clone(),
            Mark::Secret => format!("secret of {}", self.role),
            Mark::Tenant => TENANT_NAMES[self.profile.tenant].to_owned(),
            Mark::Fixed(text) => text.to_owned(),
            Mark::Any => return None,
        })
    }
}

async fn within<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(PATIENCE, work).await.ok()
}

async fn simple(client: &Client, sql: &str) -> Result<Rows, Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let field = |at: usize| row.try_get(at).ok().flatten().unwrap_or_default();
            let number = |at| field(at).parse::<i64>().unwrap_or(i64::MIN);
            Some((i32::try_from(number(0)).unwrap_or(-1), number(1), field(2).to_owned()))
        }
        _ => None,
    });
    Ok(rows.collect())
}

async fn extended(client: &Client, statement: &Statement, parameter: Option<i32>) -> Result<Rows, Error> {
    let values: Vec<&(dyn ToSql + Sync)> = parameter.iter().map(|value| value as _).collect();
    let rows = client.query(statement, &values).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

/// `to_timestamp(seconds)` as PostgreSQL writes it under that zone; for some days around the epoch.
fn moment(seconds: i64, hours_east: i64) -> String {
    let local = seconds + hours_east * 3600;
    let date = match local.div_euclid(86_400) {
        -1 => "1969-12-31",
        0 => "1970-01-01",
        1 => "1970-01-02",
        _ => return format!("a day further than the checker counts: {seconds}"),
    };
    let second = local.rem_euclid(86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{date} {hour:02}:{minute:02}:{second:02}{hours_east:+03}")
}

fn reads(profile: &Profile) -> Vec<Read> {
    let read = |sql: &str, chains: &[i32], mark| Read {
        sql: sql.into(),
        parameter: None,
        chains: chains.to_vec(),
        mark,
        right: Right::Always,
    };
    let by_chain = |table: &'static str, value: &str, chains: &[i32]| {
        let sql = format!("select chain, {value}, '{table}' from {table} group by chain order by chain");
        read(&sql, chains, Mark::Fixed(table))
    };
    let items = if profile.schema == "north" { NORTH } else { SOUTH };
    let own = &LEDGER[profile.owner..=profile.owner];
    let of_some = if profile.owner == 1 { Right::Never } else { Right::Always };
    let secret = Read {
        right: of_some,
        ..read(
            "select chain, max(v), max(secret) from ledger where owner = current_user group by chain order by chain",
            own,
            Mark::Secret,
        )
    };
    let edition = "select max(901), max(edition()), max('edition'::text) from one";
    let mut all = vec![
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
            own,
            Mark::Owner,
        ),
        secret,
        by_chain("child", "min(v)", &CHILD),
        by_chain("kept", "min(v) - 1", &KEPT),
        by_chain("mirror", "max(v)", &MIRROR),
        by_chain("part", "max(v)", &PART),
        by_chain("part_low", "max(v)", &PART[..2]),
        read(
            "select chain, max(v), max(origin) from north_items group by chain order by chain",
            &NORTH,
            Mark::Fixed("north"),
        ),
        by_chain("swap", "max(v)", &SWAP),
        by_chain("log", "max(v)", &LOG),
        // The same text for all who may read it.
        Read { right: of_some, ..by_chain("sealed", "max(v)", &LOG) },
        read(
            "select chain, max(v), max(tenant) from tenants group by chain order by chain",
            &TENANTS[profile.tenant..=profile.tenant],
            Mark::Tenant,
        ),
        by_chain("stamp", "max(v)", &STAMP),
        read(edition, &EDITION, Mark::Fixed("edition")),
        by_chain("wide", "max(v)", &WIDE),
        by_chain("hung", "max(v)", &HUNG),
        Read { right: Right::AtTimes, ..by_chain("gate", "max(v)", &GATE) },
        by_chain("mat", "max(v)", &MATVIEW),
        by_chain("ruled", "max(v)", &RULED),
        by_chain("toggled", "max(v)", &TOGGLED),
    ];
    for chain in items {
        let text = "select chain, v, origin || '|' || at::text from item where chain = $1";
        all.push(Read { parameter: Some(chain), ..read(text, &[chain], Mark::Item) });
    }
    if !profile.extended {
        // Its columns come and go.
        all.push(read("select * from wide order by chain", &WIDE, Mark::Any));
    }
    all
}
