//! One write on several servers at once, within their transactions: all answers are read to the end, and put together.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::backend::server::ServerConn;
use crate::backend::signature::{Signature, Whence};
use crate::error::{Error, ErrorKind};
use crate::exec::merge::description::format_of;
use crate::exec::two_phase::latch::Guard;
use crate::plan::distribute::{Part, Tally};
use crate::sql::parameters;
use crate::wire::backend::ErrorFields;
use crate::wire::frame::{Body, Frame, HEADER_LEN};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// What the parts of a statement have in common: what Parse and Bind brought.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    /// Declared parameter types.
    pub types: &'a [u32],
    /// Format codes of the parameters.
    pub formats: &'a [i16],
    /// Parameters; `None` is NULL.
    pub values: &'a [Option<&'a [u8]>],
    /// How the client wants its columns.
    pub result_formats: &'a [i16],
    /// The session's setting of that name.
    pub standard_conforming_strings: bool,
    /// Bytes of rows at most.
    pub memory_bytes: usize,
    /// What gives rows, for people.
    pub holds: &'static str,
}

impl Statement<'static> {
    /// One of pgherd's own, without parameters.
    pub const OWN: Self = Self {
        types: &[],
        formats: &[],
        values: &[],
        result_formats: &[],
        standard_conforming_strings: true,
        memory_bytes: 1 << 20,
        holds: "a statement of pgherd's own",
    };
}

/// What gives rows in most of them.
pub const RETURNING: &str = "RETURNING over several shards";

/// The answer, as one server would have given it.
#[derive(Debug, Default)]
pub struct Answer {
    /// RowDescription, where there are rows.
    pub description: Option<Bytes>,
    /// Notices and DataRows, in order.
    pub messages: Vec<Bytes>,
    /// How many of them are rows.
    pub rows: usize,
    /// The command tag.
    pub tag: String,
}

impl Answer {
    /// The same, if its rows, in formats as in Bind, are those that the client was told of.
    ///
    /// # Errors
    /// They are not.
    pub fn is_as_told(self, told: Option<&Signature>, formats: &[i16]) -> Result<Self, Failure> {
        match (told, &self.description) {
            (Some(told), Some(description)) => {
                let body = description.get(HEADER_LEN..).unwrap_or_default();
                told.check_rows(body, 0, Whence::Elsewhere(formats)).map_err(Failure::Own).map(|()| self)
            }
            _ => Ok(self),
        }
    }
}

/// Why there is none.
#[derive(Debug)]
pub enum Failure {
    /// A server's ErrorResponse, and how many of ParseComplete and BindComplete it sent before.
    Server(Bytes, usize),
    /// pgherd's own.
    Own(Error),
}

/// What one server said.
#[derive(Debug, Default)]
pub struct Said {
    /// RowDescription, where there are rows.
    pub description: Option<Bytes>,
    /// Notices.
    pub notices: Vec<Bytes>,
    /// DataRows.
    pub rows: Vec<Bytes>,
    /// The command tag.
    pub tag: String,
    /// How many of ParseComplete and BindComplete came.
    pub completed: usize,
    /// The ErrorResponse, if it failed.
    pub error: Option<Frame>,
}

/// What all parts look at.
struct Common<'a> {
    statement: &'a Statement<'a>,
    asks: Asks<'a>,
    bytes: AtomicUsize,
    /// The first that failed.
    failed: Mutex<Option<usize>>,
    stop: CancellationToken,
}

/// What a server is asked to do with its part.
#[derive(Clone, Copy)]
enum Asks<'a> {
    /// To read it, which takes the locks that reading its tables needs.
    Read,
    /// To run it.
    Run,
    /// To run it, and all are waited for to begin.
    Begin(&'a Begun),
}

/// How many parts have not begun.
struct Begun {
    left: AtomicUsize,
    all: Notify,
}

impl Begun {
    fn note(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all.notify_one();
        }
    }

    /// PostgreSQL takes the snapshot of a statement that writes when it executes it, and says nothing of that: BindComplete is the
    /// last that it says before. The Execute lies behind the Bind, so it comes to it at once.
    async fn for_good(&self) {
        self.all.notified().await;
        tokio::time::sleep(TO_EXECUTE).await;
    }
}

/// How long a server may take from Bind to the snapshot of the Execute that came with it.
const TO_EXECUTE: Duration = Duration::from_secs(1);

/// Has each server read its part, which takes the locks of its tables, and runs none. Within a transaction they are kept.
///
/// # Errors
/// The first that failed, and why.
pub async fn read(
    servers: Vec<&mut ServerConn>,
    parts: &[Part],
    statement: &Statement<'_>,
    cancel: &CancellationToken,
    halt: impl Future<Output = ()>,
) -> Result<(), Failure> {
    all(Asks::Read, servers, parts, statement, cancel, halt).await.map(drop)
}

/// As [`run`], where the parts read rows under a latch, so that no commit over several servers comes between their snapshots. It is
/// given free when they are done or have all begun.
///
/// # Errors
/// As [`run`]; or nobody knows whether a commit came between.
pub async fn run_under(
    latch: Guard,
    servers: Vec<&mut ServerConn>,
    parts: &[Part],
    tally: Tally,
    statement: &Statement<'_>,
    cancel: &CancellationToken,
    halt: impl Future<Output = ()>,
) -> Result<Answer, Failure> {
    let begun = Begun { left: AtomicUsize::new(parts.len()), all: Notify::new() };
    let mut running = std::pin::pin!(all(Asks::Begin(&begun), servers, parts, statement, cancel, halt));
    let (said, left) = tokio::select! {
        biased;
        said = &mut running => (said, latch.leave()),
        () = begun.for_good() => {
            let left = latch.leave();
            (running.await, left)
        }
    };
    let answers = said?;
    left.verdict().await.map_err(Failure::Own)?;
    together(answers, parts, tally).map_err(Failure::Own)
}

/// Runs each part on its server; `halt` cancels what runs on all of them, when one has failed or `cancel` says so. When it returns
/// every server has answered all that it was sent, or is broken.
pub async fn run(
    servers: Vec<&mut ServerConn>,
    parts: &[Part],
    tally: Tally,
    statement: &Statement<'_>,
    cancel: &CancellationToken,
    halt: impl Future<Output = ()>,
) -> Result<Answer, Failure> {
    let answers = each(servers, parts, statement, cancel, halt).await?;
    together(answers, parts, tally).map_err(Failure::Own)
}

/// The same; what each of them said.
///
/// # Errors
/// The first of them that failed, and why.
pub async fn each(
    servers: Vec<&mut ServerConn>,
    parts: &[Part],
    statement: &Statement<'_>,
    cancel: &CancellationToken,
    halt: impl Future<Output = ()>,
) -> Result<Vec<Said>, Failure> {
    all(Asks::Run, servers, parts, statement, cancel, halt).await
}

async fn all(
    asks: Asks<'_>,
    servers: Vec<&mut ServerConn>,
    parts: &[Part],
    statement: &Statement<'_>,
    cancel: &CancellationToken,
    halt: impl Future<Output = ()>,
) -> Result<Vec<Said>, Failure> {
    let common =
        Common { statement, asks, bytes: AtomicUsize::new(0), failed: Mutex::default(), stop: cancel.child_token() };
    let said = {
        let each =
            servers.into_iter().zip(parts).enumerate().map(|(at, (server, part))| one(&common, at, server, part));
        let mut running = std::pin::pin!(join_all(each));
        tokio::select! {
            biased;
            said = &mut running => said,
            () = common.stop.cancelled() => tokio::join!(halt, running).1,
        }
    };
    if common.bytes.load(Ordering::Relaxed) > statement.memory_bytes {
        return Err(Failure::Own(too_many_rows(statement.holds, statement.memory_bytes)));
    }
    let first = *common.failed.lock();
    let mut answers = Vec::with_capacity(said.len());
    for (at, said) in said.into_iter().enumerate() {
        let is_first = first.is_none_or(|first| first == at);
        match said {
            Ok(Said { error: None, .. }) if first.is_some() => {}
            Ok(said @ Said { error: None, .. }) => answers.push(said),
            _ if !is_first => {}
            Ok(Said { error: Some(frame), completed, .. }) => {
                // Where the shard's text is not the client's, a place in it means nothing to the client.
                let is_own_text = parts.get(at).is_some_and(|part| part.is_verbatim);
                let message = if is_own_text { frame.bytes } else { without_position(&frame) };
                return Err(Failure::Server(message, completed));
            }
            Err(error) => return Err(Failure::Own(error)),
        }
    }
    Ok(answers)
}

/// Runs the same statement on each server, whatever becomes of it on the others; `halt` cancels what still runs when `cancel` says so.
/// The inner error is a connection that was lost.
pub async fn apart(
    servers: Vec<&mut ServerConn>,
    sql: &str,
    cancel: &CancellationToken,
    halt: impl Future<Output = ()>,
) -> Vec<Result<Said, Error>> {
    let part = Part { shard: 0, sql: sql.into(), rows: Vec::new(), is_verbatim: true, more: Vec::new() };
    let each = servers.into_iter().map(|server| async {
        // Each of its own: none is stopped by another's error.
        let stop = CancellationToken::new();
        let common = Common {
            statement: &Statement::OWN,
            asks: Asks::Run,
            bytes: AtomicUsize::new(0),
            failed: Mutex::default(),
            stop,
        };
        one(&common, 0, server, &part).await
    });
    let mut running = std::pin::pin!(join_all(each));
    tokio::select! {
        biased;
        said = &mut running => said,
        () = cancel.cancelled() => tokio::join!(halt, running).1,
    }
}

async fn one(common: &Common<'_>, at: usize, server: &mut ServerConn, part: &Part) -> Result<Said, Error> {
    server.take_over();
    server.unnamed = None;
    ask(server.queue(), part, common);
    let mut said = Said::default();
    let outcome = async {
        server.flush().await?;
        loop {
            let frame = server.read_frame().await?;
            server.note(&frame);
            match frame.tag() {
                b'1' => said.completed += 1,
                b'2' => {
                    said.completed += 1;
                    if let Asks::Begin(begun) = common.asks {
                        begun.note();
                    }
                }
                b'T' => said.description = Some(frame.bytes),
                b'N' => said.notices.push(frame.bytes),
                b'D' => {
                    let before = common.bytes.fetch_add(frame.bytes.len(), Ordering::Relaxed);
                    if before + frame.bytes.len() <= common.statement.memory_bytes {
                        said.rows.push(frame.bytes);
                    } else {
                        common.stop.cancel();
                    }
                }
                b'C' => said.tag = tag_of(&frame),
                b'E' => {
                    common.failed.lock().get_or_insert(at);
                    common.stop.cancel();
                    said.error = Some(frame);
                }
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    };
    let outcome: Result<(), Error> = outcome.await;
    match outcome {
        Ok(()) => server.hand_back(),
        Err(error) => {
            common.failed.lock().get_or_insert(at);
            common.stop.cancel();
            server.mark_broken();
            return Err(error);
        }
    }
    Ok(said)
}

fn tag_of(frame: &Frame) -> String {
    let tag = frame.body().split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(tag).into_owned()
}

/// Queues Parse, Bind, Describe, Execute and Sync, or as much of them as is asked for. A part need not use all parameters of the statement: those that it does not are NULL.
fn ask(out: &mut BytesMut, part: &Part, common: &Common<'_>) {
    let statement = common.statement;
    const TEXT_OID: u32 = 25;
    let sql = &part.sql;
    let used = used(sql, statement);
    let declared = |at: usize| statement.types.get(at).copied().unwrap_or(0);
    let type_of = |at: usize| if used[at] || declared(at) != 0 { declared(at) } else { TEXT_OID };
    let types: Vec<u32> = (0..used.len()).map(type_of).collect();
    writer::parse(out, b"", sql.as_bytes(), &types);
    if matches!(common.asks, Asks::Read) {
        writer::sync(out);
        return;
    }
    writer::message(out, b'B', |out| {
        out.put_slice(b"\0\0");
        let own = (0..used.len()).map(|at| format_of(statement.formats, at));
        put_formats(out, &own.chain(part.more.iter().map(|(format, _)| *format)).collect::<Vec<_>>());
        out.put_u16(u16::try_from(used.len() + part.more.len()).unwrap_or(u16::MAX));
        for (value, used) in statement.values.iter().zip(&used) {
            match value.filter(|_| *used) {
                None => out.put_i32(-1),
                Some(bytes) => {
                    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
                    out.put_slice(bytes);
                }
            }
        }
        for (_, value) in &part.more {
            out.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
            out.put_slice(value);
        }
        put_formats(out, statement.result_formats);
    });
    writer::describe(out, b'P', b"");
    if matches!(common.asks, Asks::Begin(_)) {
        writer::flush(out);
    }
    writer::execute(out, b"", 0);
    writer::sync(out);
}

fn put_formats(out: &mut BytesMut, formats: &[i16]) {
    out.put_u16(u16::try_from(formats.len()).unwrap_or(u16::MAX));
    formats.iter().for_each(|&format| out.put_i16(format));
}

fn used(sql: &str, statement: &Statement<'_>) -> Vec<bool> {
    let uses = parameters::uses(sql.as_bytes(), statement.values.len(), statement.standard_conforming_strings);
    uses.into_iter().map(|uses| uses > 0).collect()
}

/// One answer out of all.
fn together(mut said: Vec<Said>, parts: &[Part], tally: Tally) -> Result<Answer, Error> {
    let Some(first) = said.first() else { return Err(Error::internal("a write without a server")) };
    let description = first.description.clone();
    if tally == Tally::Alike {
        if let Some(other) = said.iter().find(|other| other.tag != first.tag || other.rows.len() != first.rows.len()) {
            let message = format!("shards that should be alike differ: {} on one, {} on another", first.tag, other.tag);
            let error = Error::new(ErrorKind::Backend, SqlState::INTERNAL_ERROR, message);
            return Err(error
                .hint("Nothing was changed. Bring the reference table in line; pgherd check shows where it differs."));
        }
        said.truncate(1);
    }
    let tag = sum(said.iter().map(|said| said.tag.as_str()));
    let mut messages: Vec<Bytes> = Vec::new();
    let mut rows: Vec<(usize, Bytes)> = Vec::new();
    let in_order = said.iter().zip(parts).all(|(said, part)| said.rows.len() == part.rows.len());
    for (at, said) in said.into_iter().enumerate() {
        messages.extend(said.notices);
        let place = |row: usize| parts.get(at).and_then(|part| part.rows.get(row)).copied().unwrap_or(0);
        rows.extend(said.rows.into_iter().enumerate().map(|(row, bytes)| (place(row), bytes)));
    }
    if in_order {
        rows.sort_by_key(|(place, _)| *place);
    }
    let count = rows.len();
    messages.extend(rows.into_iter().map(|(_, bytes)| bytes));
    Ok(Answer { description, messages, rows: count, tag })
}

/// The tags' last numbers added up.
fn sum<'t>(tags: impl Iterator<Item = &'t str>) -> String {
    let mut total: Option<(String, u64)> = None;
    for tag in tags {
        let counted = tag.rsplit_once(' ').and_then(|(name, count)| Some((name, count.parse::<u64>().ok()?)));
        let Some((name, count)) = counted else { return tag.to_owned() };
        total = Some((name.to_owned(), total.map_or(0, |(_, total)| total) + count));
    }
    total.map_or_else(String::new, |(name, total)| format!("{name} {total}"))
}

fn too_many_rows(what: &str, limit: usize) -> Error {
    let message = format!("{what} gives more than {limit} bytes of rows");
    Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, message)
        .hint("Raise fanout.memory, or write fewer rows at once.")
}

fn without_position(frame: &Frame) -> Bytes {
    edited(frame.body(), |code, text| (code != b'P').then(|| text.to_vec()), None)
}

/// An ErrorResponse with more detail, given its body.
pub fn with_detail(body: &[u8], more: &str) -> Bytes {
    let has_own = ErrorFields::parse(body).is_ok_and(|fields| fields.detail().is_some());
    let added = |code: u8, text: &[u8]| {
        Some(if code == b'D' { [text, b"\n", more.as_bytes()].concat() } else { text.to_vec() })
    };
    edited(body, added, (!has_own).then_some((b'D', more)))
}

/// An ErrorResponse with its fields as `edit` says, and with one more.
fn edited(body: &[u8], edit: impl Fn(u8, &[u8]) -> Option<Vec<u8>>, added: Option<(u8, &str)>) -> Bytes {
    let mut bytes = BytesMut::new();
    writer::message(&mut bytes, b'E', |out| {
        let mut body = Body::new(body);
        while let Some(code) = body.u8().filter(|&code| code != 0) {
            let Some(text) = body.cstr() else { break };
            if let Some(text) = edit(code, text) {
                out.put_u8(code);
                writer::cstr(out, &text);
            }
        }
        if let Some((code, text)) = added {
            out.put_u8(code);
            writer::cstr(out, text.as_bytes());
        }
        out.put_u8(0);
    });
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(tag: &str, rows: &[&'static str]) -> Said {
        let rows = rows.iter().map(|row| Bytes::from_static(row.as_bytes())).collect();
        Said { rows, tag: tag.into(), ..Said::default() }
    }

    fn part(shard: usize, rows: &[usize]) -> Part {
        Part { shard, sql: "".into(), rows: rows.to_vec(), is_verbatim: false, more: Vec::new() }
    }

    #[test]
    fn rows_of_an_insert_come_in_the_order_that_they_were_given_in() {
        let parts = [part(0, &[1, 2]), part(3, &[0, 3])];
        let answer =
            together(vec![said("INSERT 0 2", &["b", "c"]), said("INSERT 0 2", &["a", "d"])], &parts, Tally::Sum);
        let answer = answer.expect("together");
        assert_eq!((answer.messages.concat(), answer.tag.as_str()), (b"abcd".to_vec(), "INSERT 0 4"));
    }

    #[test]
    fn an_error_is_told_with_what_became_of_the_others() {
        let body = b"SERROR\0C42P01\0Mno such table\0\0";
        let told = with_detail(body, "Done on shard 0.");
        assert_eq!(&told[5..], b"SERROR\0C42P01\0Mno such table\0DDone on shard 0.\0\0");
        let twice = with_detail(&told[5..], "x");
        assert_eq!(&twice[5..], b"SERROR\0C42P01\0Mno such table\0DDone on shard 0.\nx\0\0");
    }

    #[test]
    fn copies_that_differ_are_told() {
        let parts = [part(0, &[]), part(1, &[])];
        let alike = together(vec![said("UPDATE 2", &["a"]), said("UPDATE 2", &["a"])], &parts, Tally::Alike);
        assert_eq!(alike.map(|answer| (answer.rows, answer.tag)).expect("alike"), (1, "UPDATE 2".into()));
        together(vec![said("UPDATE 2", &[]), said("UPDATE 1", &[])], &parts, Tally::Alike).expect_err("not alike");
        let none = together(vec![said("TRUNCATE TABLE", &[]), said("TRUNCATE TABLE", &[])], &parts, Tally::Alike);
        assert_eq!(none.expect("alike").tag, "TRUNCATE TABLE");
    }
}
