//! Several connections to one server that see the same moment, so that each can read its part of a table.
//!
//! The first leg locks the tables of the statement, then takes a snapshot and exports it; the others import it and lock what they will
//! read. Every lock is asked for with NOWAIT: a leg that waited behind somebody who waits for another leg would wait for ever, and
//! nobody would see the circle. Once all locks are held nothing can be truncated, rewritten or renamed before every leg has read, and
//! it does not matter which leg ends first.

use std::future::poll_fn;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{Failure, Leg, Run, cancelled};
use crate::catalog::model::Oid;
use crate::error::Error;
use crate::exec::coordinator::line::Line;
use crate::exec::merge::description::Description;
use crate::plan::distribute::{Leaf, Split};
use crate::wire::frame::{Body, Frame};
use crate::wire::writer;

/// What legs run that have their snapshot.
#[derive(Debug)]
pub struct Prepared {
    /// Each leg's own text.
    pub sqls: Vec<String>,
    /// The statement as PostgreSQL describes the client's own text.
    pub description: Description,
    /// Types of its parameters, as PostgreSQL tells them.
    pub types: Vec<Oid>,
}

/// How legs come to stand ready.
pub enum Readiness {
    /// They are in one snapshot, with all locks.
    Ready(Prepared),
    /// The server is not as the plan was made from, or holds something back: such rows are read in the usual way.
    Otherwise(&'static str),
}

/// Brings every leg into the snapshot of the first. Leg `i` reads the partitions `dealt[i]`. Returns the legs that are not idle and
/// drained, too, unless they are ready: then all of them are in a transaction.
pub async fn prepare<L: Leg>(
    run: &Run<'_>,
    (split, text): (&Split, &str),
    dealt: &[Vec<&Leaf>],
    legs: &mut [L],
    cancel: &CancellationToken,
) -> (Result<Readiness, Failure>, Vec<usize>) {
    let mut lines: Vec<Line<'_, L>> = legs.iter_mut().map(Line::new).collect();
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Failure::Own(cancelled())),
        result = stand_ready(run, (split, text), dealt, &mut lines) => result,
    };
    if matches!(result, Ok(Readiness::Ready(_))) {
        return (result, Vec::new());
    }
    // Who is not idle by then is reported as broken.
    let _ = tokio::time::timeout(run.drain_timeout, join_all(lines.iter_mut().map(Line::bring_to_rest))).await;
    let broken = (0..lines.len()).filter(|&at| !lines[at].is_at_rest()).collect();
    (result, broken)
}

async fn stand_ready<L: Leg>(
    run: &Run<'_>,
    (split, text): (&Split, &str),
    dealt: &[Vec<&Leaf>],
    lines: &mut [Line<'_, L>],
) -> Result<Readiness, Failure> {
    let Some((leader, followers)) = lines.split_first_mut() else {
        return Err(Failure::Own(Error::internal("a split scan has no legs")));
    };
    let told = lead(run, split, text, leader).await?;
    if let Err(why) = told.is_as_planned(split) {
        return Ok(Readiness::Otherwise(why));
    }
    let (Some(snapshot), Some(description)) = (&told.snapshot, told.description) else {
        return Ok(Readiness::Otherwise("the statement gives no rows"));
    };
    let own = dealt.iter().skip(1);
    let follow = followers.iter_mut().zip(own).map(|(line, leaves)| follow(split, snapshot, leaves, line));
    join_all(follow).await.into_iter().collect::<Result<(), Failure>>()?;
    let sqls = dealt.iter().map(|leaves| split.sql_of(leaves)).collect();
    Ok(Readiness::Ready(Prepared { sqls, description, types: told.types }))
}

/// What the first leg is told.
#[derive(Debug, Default)]
struct Told {
    snapshot: Option<String>,
    /// What the names mean, in the order of [`Split::named`].
    means: Vec<Option<String>>,
    /// The relations of the statement: oid, schema, name, and whether row-level security is on.
    relations: Vec<[Option<Bytes>; 4]>,
    description: Option<Description>,
    types: Vec<Oid>,
}

impl Told {
    /// Whether the tables are what the plan was made from.
    fn is_as_planned(&self, split: &Split) -> Result<(), &'static str> {
        let oid = |text: &Option<Bytes>| std::str::from_utf8(text.as_deref()?).ok()?.parse::<Oid>().ok();
        let meant = split.named.iter().map(|named| Some(named.oid.to_string()));
        if !self.means.iter().cloned().eq(meant) {
            return Err("a name means another table");
        }
        if self.relations.iter().any(|[_, _, _, security]| security.as_deref() != Some(b"f")) {
            return Err("row-level security is on");
        }
        let others: Vec<Oid> = split.named.iter().map(|named| named.oid).filter(|&oid| oid != split.table).collect();
        let mut tree: Vec<Oid> = self.relations.iter().filter_map(|row| oid(&row[0])).collect();
        tree.retain(|oid| !others.contains(oid));
        tree.sort_unstable();
        let is_there = |leaf: &Leaf| {
            self.relations.iter().any(|row| {
                let is = |at: usize, name: &str| row[at].as_deref() == Some(name.as_bytes());
                oid(&row[0]) == Some(leaf.oid) && is(1, &leaf.schema) && is(2, &leaf.name)
            })
        };
        if tree != split.tree || !split.leaves.iter().all(is_there) {
            return Err("its partitions have changed");
        }
        Ok(())
    }

    fn take(&mut self, frame: &Frame) {
        match frame.tag() {
            b'D' => match values(frame).as_slice() {
                [oid, schema, name, security] => {
                    self.relations.push([oid, schema, name, security].map(Option::clone));
                }
                [one] => {
                    let text = one.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
                    match &self.snapshot {
                        None => self.snapshot = text,
                        Some(_) => self.means.push(text),
                    }
                }
                _ => {}
            },
            b't' => {
                let mut body = Body::new(frame.body());
                let count = body.i16().unwrap_or_default();
                self.types = (0..count).filter_map(|_| body.i32()).map(|oid| oid as Oid).collect();
            }
            _ => {}
        }
    }
}

fn values(frame: &Frame) -> Vec<Option<Bytes>> {
    let mut body = Body::new(frame.body());
    let count = body.i16().unwrap_or_default();
    let one = |_| {
        let len = usize::try_from(body.i32()?).ok();
        Some(len.and_then(|len| body.bytes(len)).map(Bytes::copy_from_slice))
    };
    (0..count).map_while(one).collect()
}

/// The first leg: locks, then the snapshot, then what it shows of the tables, and how the client's own text is described.
async fn lead<L: Leg>(run: &Run<'_>, split: &Split, text: &str, line: &mut Line<'_, L>) -> Result<Told, Failure> {
    // The table takes along what belongs to it now, which by the time of the snapshot may be less.
    let leaves = split.leaves.iter().map(|leaf| format!("ONLY {}", leaf.quoted()));
    let names: Vec<String> = split.named.iter().map(|named| named.name.to_string()).chain(leaves).collect();
    line.query(&format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT",
        names.join(", ")
    ));
    line.query("SELECT pg_catalog.pg_export_snapshot()");
    for named in &split.named {
        // As the text of a literal: whichever way backslashes are read there.
        let name = named.name.replace('\\', "\\\\").replace('\'', "''");
        line.query(&format!("SELECT pg_catalog.to_regclass(E'{name}')::pg_catalog.oid"));
    }
    line.query(&relations(split));
    writer::parse(line.out(), b"", text.as_bytes(), run.types);
    writer::describe(line.out(), b'S', b"");
    line.sync();
    let mut told = Told::default();
    let mut described = None;
    let mut is_parsed = false;
    settle(line, |frame| {
        is_parsed |= frame.tag() == b'1';
        match frame.tag() {
            b'T' if is_parsed => described = Some(Description::read(frame.body())),
            _ => told.take(frame),
        }
    })
    .await?;
    told.description = described.transpose().map_err(Failure::Own)?;
    Ok(told)
}

/// Reads everything that was asked for. Behind an error nothing is left but what its transaction refuses: that is read, too.
async fn settle<L: Leg>(line: &mut Line<'_, L>, mut see: impl FnMut(&Frame)) -> Result<(), Failure> {
    let mut error = None;
    while !line.is_settled() {
        let frame = poll_fn(|cx| line.poll_frame(cx)).await?;
        match frame.tag() {
            b'E' if error.is_none() => error = Some(frame),
            b'E' => {}
            _ => see(&frame),
        }
    }
    error.map_or(Ok(()), |frame| Err(Failure::Server(frame)))
}

/// Asks for the table, its partitions and the other tables as the transaction's snapshot shows them. Operators by schema: a user's own
/// would be found before PostgreSQL's where `search_path` says so.
fn relations(split: &Split) -> String {
    let oids: Vec<String> = split.named.iter().map(|named| format!("({}::pg_catalog.oid)", named.oid)).collect();
    format!(
        "WITH RECURSIVE tree (oid) AS (VALUES {} UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree t \
         ON i.inhparent OPERATOR(pg_catalog.=) t.oid \
         WHERE coalesce(pg_catalog.to_jsonb(i) OPERATOR(pg_catalog.->>) 'inhdetachpending', '') \
         OPERATOR(pg_catalog.<>) 'true') \
         SELECT c.oid, n.nspname, c.relname, c.relrowsecurity FROM tree t \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.oid \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace",
        oids.join(", ")
    )
}

/// Another leg: the same snapshot, and locks on what it reads.
async fn follow<L: Leg>(
    split: &Split,
    snapshot: &str,
    leaves: &[&Leaf],
    line: &mut Line<'_, L>,
) -> Result<(), Failure> {
    let own = leaves.iter().map(|leaf| format!("ONLY {}", leaf.quoted()));
    let others = split.named.iter().filter(|named| named.oid != split.table).map(|named| named.name.to_string());
    let locked: Vec<String> = own.chain(others).collect();
    line.query(&format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{snapshot}'; \
         LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT",
        locked.join(", ")
    ));
    settle(line, |_| {}).await
}
