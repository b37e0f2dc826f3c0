//! An UPDATE of the shard key on its way, within transactions on all shards that take part: rows are locked and read where they lie,
//! those that stay are changed there, those that leave are inserted where they belong and then deleted.
//!
//! New rows come before old ones go, so that what must be unique is judged as PostgreSQL judges it in some order of the rows: a row
//! that takes the key of another which has yet to leave fails, and so does a ring of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::insert_select::{Described, MOST_BYTES, arrays, describe, fields};
use super::merge::description::Description;
use super::scatter::{Answer, Failure, Said, Statement, each};
use crate::backend::server::ServerConn;
use crate::catalog::model::{Catalog, FIRST_USER_OID};
use crate::error::{Error, ErrorKind};
use crate::plan::distribute::{Carrier, KeyMove, Part, marker};
use crate::wire::frame::{Body, HEADER_LEN};
use crate::wire::sqlstate::SqlState;

/// Whether rows may be deleted and inserted, whether the table is still what the plan was made for, whether nothing may be written.
const READY: &str = "\
    SELECT pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_table_privilege(c.oid, 'INSERT') \
      AND pg_catalog.has_table_privilege(c.oid, 'DELETE'), \
    c.relkind = 'r' AND NOT c.relrowsecurity \
      AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 \
        AND NOT a.attisdropped) = $3::pg_catalog.int8 \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D') \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = c.oid) \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = c.oid OR i.inhrelid = c.oid) \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS k WHERE k.contype = 'f' AND k.confrelid = c.oid), \
    pg_catalog.current_setting('transaction_read_only') = 'on' \
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
    WHERE n.nspname = $1::pg_catalog.text AND c.relname = $2::pg_catalog.text";

/// Whom a lock against moves keeps out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Those that move rows.
    Still,
    /// They and those that rows may not move under.
    Moving,
}

/// Has rows of these tables stay where they are until the transaction ends, or has nobody else work on them. Whoever needs this on
/// several servers takes it on one after the other, in the order of the shards, so that nobody waits for each other.
///
/// # Errors
/// The lock was not to be had, or the server was lost.
pub async fn hold(
    server: &mut ServerConn,
    tables: &[Box<str>],
    hold: Hold,
    cancel: &CancellationToken,
    halt: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let shared = if hold == Hold::Still { "_shared" } else { "" };
    let lock = |at: usize| {
        format!(
            "pg_catalog.pg_advisory_xact_lock{shared}(pg_catalog.hashtextextended('pgherd move ' || ${at}::pg_catalog.text, 0))"
        )
    };
    let locks: Vec<String> = (1..=tables.len()).map(lock).collect();
    let more = tables.iter().map(|table| text(table)).collect();
    let part = own(0, format!("SELECT {}", locks.join(", ")), more);
    each(vec![server], std::slice::from_ref(&part), &Statement::OWN, cancel, halt).await.map(|_| ())
}

/// A statement of pgherd's own for a shard.
fn own(shard: usize, sql: impl Into<std::sync::Arc<str>>, more: Vec<(i16, Bytes)>) -> Part {
    Part { shard, sql: sql.into(), rows: Vec::new(), is_verbatim: false, more }
}

/// A parameter in text form.
fn text(value: &str) -> (i16, Bytes) {
    (0, Bytes::copy_from_slice(value.as_bytes()))
}

/// The servers of a move, by shard.
pub struct Line<'s, H> {
    servers: Vec<(usize, &'s mut ServerConn)>,
    cancel: &'s CancellationToken,
    halt: H,
}

/// What is known once the servers are ready.
#[derive(Debug)]
pub struct Ready {
    /// Types of the statement's parameters; 0 where they have other oids elsewhere.
    pub types: Vec<u32>,
    /// What reads the rows.
    pub select: String,
    moments: Vec<String>,
}

/// A row that was read.
struct Read {
    /// The DataRow's body.
    row: Bytes,
    to: usize,
}

impl<'s, F: Future<Output = ()>, H: Fn() -> F> Line<'s, H> {
    /// Over servers within the transaction, in ascending order of their shards; `halt` cancels what runs on them.
    pub fn new(servers: Vec<(usize, &'s mut ServerConn)>, cancel: &'s CancellationToken, halt: H) -> Self {
        Self { servers, cancel, halt }
    }

    /// Keeps others out, has mistakes in the client's text told, and looks whether rows can move. `statement` has the types that
    /// the client declares.
    ///
    /// # Errors
    /// They cannot.
    pub async fn begin(&mut self, plan: &KeyMove, client: &[u8], statement: &Statement<'_>) -> Result<Ready, Failure> {
        for (_, server) in &mut self.servers {
            hold(server, std::slice::from_ref(&plan.table), Hold::Moving, self.cancel, (self.halt)()).await?;
        }
        let first = plan.sources.first().copied().unwrap_or(0);
        let types = self.described(first, client, statement.types).await?;
        self.look(plan, client, statement, first).await?;
        let mut moments = Vec::new();
        if !plan.moments.is_empty() {
            let said = self
                .ask(&[own(first, format!("SELECT {}", plan.moments.join(", ")), Vec::new())], &Statement::OWN)
                .await?;
            for value in row_of(&said)? {
                moments.push(value.ok_or_else(|| Failure::Own(Error::internal("a moment has no value")))?);
            }
        }
        Ok(Ready { types, select: filled(&plan.select, &moments), moments })
    }

    /// Parameter types, as a server says.
    async fn described(&mut self, shard: usize, client: &[u8], types: &[u32]) -> Result<Vec<u32>, Failure> {
        let server = self.servers.iter_mut().find(|(at, _)| *at == shard).map(|(_, server)| server);
        let Some(server) = server else { return Err(Failure::Own(missing())) };
        server.take_over();
        let described = {
            let mut described = std::pin::pin!(describe(server, client, types));
            tokio::select! {
                biased;
                described = &mut described => described,
                () = self.cancel.cancelled() => tokio::join!((self.halt)(), described).1,
            }
        };
        match described {
            Ok(described) => {
                server.hand_back();
                let described = described.map_err(|message| Failure::Server(message, 0))?;
                // Types that users made have other oids on other shards: there they are found out anew.
                let known = |oid: u32| if oid < FIRST_USER_OID { oid } else { 0 };
                Ok(described.types.into_iter().map(known).collect())
            }
            Err(error) => {
                server.mark_broken();
                Err(Failure::Own(error))
            }
        }
    }

    async fn look(
        &mut self,
        plan: &KeyMove,
        client: &[u8],
        statement: &Statement<'_>,
        first: usize,
    ) -> Result<(), Failure> {
        let more = vec![text(&plan.schema), text(&plan.name), text(&plan.width.to_string())];
        let parts: Vec<Part> = plan.shards().into_iter().map(|shard| own(shard, READY, more.clone())).collect();
        let said = self.ask(&parts, &Statement::OWN).await?;
        for said in &said {
            let answer = row_of(std::slice::from_ref(said))?;
            let is = |at: usize| answer.get(at).and_then(Option::as_deref) == Some("t");
            if is(2) {
                let sql = String::from_utf8_lossy(client).into_owned();
                let part = Part { is_verbatim: true, ..own(first, sql, Vec::new()) };
                self.ask(&[part], statement).await?;
                return Err(Failure::Own(Error::internal("a READ ONLY transaction writes")));
            }
            if !is(1) {
                let message = "an UPDATE that moves rows between shards of a table that is another than pgherd knows";
                let hint = "Try again in some seconds; foreign keys to it, triggers, rules, partitions and row-level security keep its rows where they are.";
                return Err(Failure::Own(Error::refused(message).hint(hint)));
            }
            if !is(0) {
                let message =
                    "an UPDATE that moves rows between shards without the right to select, insert and delete them";
                return Err(Failure::Own(
                    Error::refused(message)
                        .hint("GRANT SELECT, INSERT and DELETE on the table, or let its shard key be."),
                ));
            }
        }
        Ok(())
    }

    /// Moves the rows. `statement` is the client's with the types of [`Ready`], `described` what shard 0, whose catalog it is, says
    /// of what reads them.
    ///
    /// # Errors
    /// Nothing may stay of it: the transactions must be rolled back.
    pub async fn finish(
        &mut self,
        plan: &KeyMove,
        ready: &Ready,
        statement: &Statement<'_>,
        described: &Described,
        catalog: &Catalog,
    ) -> Result<Answer, Failure> {
        let columns =
            described.columns.as_ref().ok_or_else(|| Failure::Own(Error::internal("a SELECT without columns")))?;
        let key_width = plan.key_width();
        let carriers = carriers(columns, 1 + key_width, catalog).map_err(Failure::Own)?;
        let mut formats = vec![0];
        formats.resize(1 + key_width, 1);
        formats.extend(carriers.iter().map(Carrier::format));
        let reading =
            Statement { result_formats: &formats, holds: "an UPDATE that moves rows between shards", ..*statement };
        let parts: Vec<Part> = plan.sources.iter().map(|shard| own(*shard, &*ready.select, Vec::new())).collect();
        let said = self.ask(&parts, &reading).await?;
        let mut rows: BTreeMap<usize, Vec<Read>> = BTreeMap::new();
        let mut notices = Vec::new();
        for (&shard, said) in plan.sources.iter().zip(said) {
            is_as_described(&said, columns, &formats).map_err(Failure::Own)?;
            notices.extend(said.notices);
            let placed =
                said.rows.iter().map(|row| placed(plan, row)).collect::<Result<_, _>>().map_err(Failure::Own)?;
            rows.insert(shard, placed);
        }
        self.write(plan, ready, statement, &carriers, &rows, notices).await
    }

    async fn write(
        &mut self,
        plan: &KeyMove,
        ready: &Ready,
        statement: &Statement<'_>,
        carriers: &[Carrier],
        rows: &BTreeMap<usize, Vec<Read>>,
        notices: Vec<Bytes>,
    ) -> Result<Answer, Failure> {
        let first = statement.values.len() + 1;
        let is_staying = |shard: usize| move |it: &&Read| it.to == shard;
        let mut answer = Answer { messages: notices, ..Answer::default() };
        let update: std::sync::Arc<str> = filled(&plan.update(first), &ready.moments).into();
        let updates: Result<Vec<(Part, usize)>, Error> = rows
            .iter()
            .map(|(&shard, rows)| {
                let staying: Vec<Bytes> = rows.iter().filter(is_staying(shard)).map(|it| it.row.clone()).collect();
                Ok((own(shard, update.clone(), places(&staying)?), staying.len()))
            })
            .collect();
        self.all(updates.map_err(Failure::Own)?, statement, Some(&mut answer)).await?;
        let mut arriving: BTreeMap<usize, Vec<Bytes>> = BTreeMap::new();
        let mut deletes = Vec::new();
        for (&shard, rows) in rows {
            let leaving: Vec<&Read> = rows.iter().filter(|it| it.to != shard).collect();
            if leaving.is_empty() {
                continue;
            }
            leaving.iter().for_each(|it| arriving.entry(it.to).or_default().push(it.row.clone()));
            let leaving: Vec<Bytes> = leaving.into_iter().map(|it| it.row.clone()).collect();
            deletes.push((own(shard, plan.delete(1), places(&leaving).map_err(Failure::Own)?), leaving.len()));
        }
        let insert: std::sync::Arc<str> = filled(&plan.insert(carriers, first), &ready.moments).into();
        let columns: Vec<(usize, &Carrier)> = (1 + plan.key_width()..).zip(carriers).collect();
        let inserts: Result<Vec<(Part, usize)>, Error> = arriving
            .iter()
            .map(|(&shard, rows)| {
                Ok((own(shard, insert.clone(), bounded(arrays(rows, &columns)?, first)?), rows.len()))
            })
            .collect();
        self.all(inserts.map_err(Failure::Own)?, statement, Some(&mut answer)).await?;
        self.all(deletes, &Statement::OWN, None).await?;
        let count: usize = rows.values().map(Vec::len).sum();
        answer.tag = format!("UPDATE {count}");
        Ok(answer)
    }

    /// Runs parts that each have that many rows to do with, and adds what they say to the answer.
    async fn all(
        &mut self,
        parts: Vec<(Part, usize)>,
        statement: &Statement<'_>,
        answer: Option<&mut Answer>,
    ) -> Result<(), Failure> {
        if parts.is_empty() {
            return Ok(());
        }
        let (parts, counts): (Vec<Part>, Vec<usize>) = parts.into_iter().unzip();
        let said = self.ask(&parts, statement).await?;
        let counted = |said: &Said| said.tag.rsplit_once(' ').and_then(|(_, count)| count.parse::<usize>().ok());
        if said.iter().zip(&counts).any(|(said, count)| counted(said) != Some(*count)) {
            return Err(Failure::Own(Error::internal("rows have changed that were locked to be moved")));
        }
        let Some(answer) = answer else { return Ok(()) };
        for said in said {
            answer.description = answer.description.take().or(said.description);
            answer.rows += said.rows.len();
            answer.messages.extend(said.notices);
            answer.messages.extend(said.rows);
        }
        Ok(())
    }

    /// Runs each part on the server of its shard, at once; parts are in ascending order of their shards.
    async fn ask(&mut self, parts: &[Part], statement: &Statement<'_>) -> Result<Vec<Said>, Failure> {
        let is_asked = |shard: usize| parts.iter().any(|part| part.shard == shard);
        let servers: Vec<&mut ServerConn> =
            self.servers.iter_mut().filter(|(shard, _)| is_asked(*shard)).map(|(_, server)| &mut **server).collect();
        if servers.len() != parts.len() {
            return Err(Failure::Own(missing()));
        }
        each(servers, parts, statement, self.cancel, (self.halt)()).await
    }
}

fn missing() -> Error {
    Error::internal("a shard of a move is missing")
}

/// The text with moments in place of their marks.
fn filled(sql: &str, moments: &[String]) -> String {
    moments.iter().enumerate().fold(sql.to_owned(), |sql, (number, value)| sql.replace(&marker(number), value))
}

/// The only row of an answer, as texts.
fn row_of(said: &[Said]) -> Result<Vec<Option<String>>, Failure> {
    let row = said.first().and_then(|said| said.rows.first());
    let fields = match row {
        Some(row) => fields(row.get(HEADER_LEN..).unwrap_or_default()).map_err(Failure::Own)?,
        None => Vec::new(),
    };
    Ok(fields.into_iter().map(|it| it.map(|bytes| String::from_utf8_lossy(bytes).into_owned())).collect())
}

/// How the columns travel that rows are made of.
fn carriers(columns: &Description, from: usize, catalog: &Catalog) -> Result<Vec<Carrier>, Error> {
    let carrier = |column: &super::merge::description::Column| {
        Carrier::of(column.type_oid, catalog).map_err(|_| {
            let message = "an UPDATE that moves rows between shards, with a column of a type that pgherd cannot carry";
            Error::refused(message)
                .hint("Delete the rows and insert them anew, or give the column a type of PostgreSQL's own.")
        })
    };
    columns.columns.iter().skip(from).map(carrier).collect()
}

/// A shard whose table has come to be another one gives rows that mean something else.
fn is_as_described(said: &Said, columns: &Description, formats: &[i16]) -> Result<(), Error> {
    let own = match &said.description {
        Some(description) => Description::read(description.get(HEADER_LEN..).unwrap_or_default())?,
        None => return Err(Error::internal("rows without their description")),
    };
    if columns.is_alike(&own, |at| formats.get(at).copied().unwrap_or(0)) {
        return Ok(());
    }
    let message = "an UPDATE that moves rows between shards of a table that is not the same on all of them";
    Err(Error::refused(message).hint("Make it so; pgherd check shows where it differs."))
}

fn placed(plan: &KeyMove, row: &Bytes) -> Result<Read, Error> {
    let row = row.slice(HEADER_LEN..);
    let to = {
        let fields = fields(&row)?;
        let key = fields.get(1..=plan.key_width()).ok_or_else(|| Error::internal("a row without its key"))?;
        plan.place(key).map_err(|refusal| Error::refused(refusal.message).hint(refusal.hint))?
    };
    Ok(Read { row, to })
}

/// Where rows lie, as a parameter.
fn places(rows: &[Bytes]) -> Result<Vec<(i16, Bytes)>, Error> {
    let mut list = String::from("{");
    for (at, row) in rows.iter().enumerate() {
        let mut body = Body::new(row);
        let place = body.i16().and_then(|_| body.i32()).and_then(|len| body.bytes(usize::try_from(len).ok()?));
        let place = place.and_then(|place| std::str::from_utf8(place).ok());
        list.push_str(if at > 0 { ",\"" } else { "\"" });
        list.push_str(place.ok_or_else(|| Error::internal("a row without its place"))?);
        list.push('"');
    }
    list.push('}');
    bounded(vec![(0, list.into())], 1)
}

/// Parameters, as far as a server takes them in one message.
fn bounded(more: Vec<(i16, Bytes)>, first: usize) -> Result<Vec<(i16, Bytes)>, Error> {
    let bytes: usize = more.iter().map(|(_, value)| value.len()).sum();
    if bytes > MOST_BYTES || first + more.len() > usize::from(u16::MAX) {
        let message = format!("an UPDATE moves more than {MOST_BYTES} bytes of rows to one shard");
        return Err(
            Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, message).hint("Change fewer rows at once.")
        );
    }
    Ok(more)
}
