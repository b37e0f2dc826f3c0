//! Statements that PostgreSQL merges: rows go from the shards into temporary tables of one server, where the client's own
//! statement then runs. One error at most, every connection left clean, nothing left behind: it all ends in ROLLBACK.
//!
//! The first shard parses and describes the statement, so that a mistake in it is told as that shard tells it, and columns are
//! described as those of a streamed statement are.

mod cursor;
mod explain;
pub(in crate::exec) mod line;
mod order;
mod portal;
mod ship;

use std::future::poll_fn;
use std::time::Duration;

use bytes::BufMut;
use futures_util::future::{join_all, try_join_all};
use tokio_util::sync::CancellationToken;

pub use self::cursor::{Opening, declare};
pub use self::explain::{Told, ToldShipment, explain};
use self::line::Line;
pub use self::order::KeptTo;
use self::order::Order;
pub use self::portal::{abandon, resume};
use self::ship::ship;
pub use self::ship::without_position;
pub use self::ship::{Budget, Shipped};
use super::fanout::{Failure, Leg, Sink};
use super::two_phase::TwoPhase;
use super::two_phase::latch::{Guard, Kind, Left};
use crate::backend::signature::{Signature, Whence};
use crate::catalog::model::Oid;
use crate::error::{Error, ErrorKind};
use crate::exec::merge::description::{Description, format_of};
use crate::plan::distribute::{Gathered, Shipment};
use crate::wire::frame::{Frame, HEADER_LEN};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// All statements of one leg see one snapshot.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Texts that mean the same under any settings of the coordinator.
const EXACT_TEXTS: &str = "SET LOCAL \"DateStyle\" = 'ISO, YMD'; SET LOCAL \"IntervalStyle\" = 'iso_8601'; \
     SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'";

/// Has the coordinator read texts as the shards have written them, whatever the client has set.
const READ_EXACTLY: &str = "SELECT pg_catalog.set_config('pgherd.array_nulls', pg_catalog.current_setting('array_nulls'), true), \
     pg_catalog.set_config('pgherd.xmloption', pg_catalog.current_setting('xmloption'), true), \
     pg_catalog.set_config('array_nulls', 'on', true), pg_catalog.set_config('xmloption', 'content', true)";

/// The client's own settings again.
const READ_AS_SET: &str = "SELECT pg_catalog.set_config('array_nulls', pg_catalog.current_setting('pgherd.array_nulls'), true), \
     pg_catalog.set_config('xmloption', pg_catalog.current_setting('pgherd.xmloption'), true)";

/// Rows from which on a temporary table is indexed and analyzed before it is read.
const TUNED_ROWS: u64 = 1000;

/// One statement to run.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// What is shipped and run.
    pub plan: &'a Gathered,
    /// The client's text.
    pub text: &'a [u8],
    /// Declared parameter types, as the client's Parse gave them.
    pub types: &'a [Oid],
    /// Format codes of the parameters.
    pub parameter_formats: &'a [i16],
    /// Parameters; `None` is NULL.
    pub values: &'a [Option<&'a [u8]>],
    /// Formats that the client wants its columns in.
    pub result_formats: &'a [i16],
    /// Whether the client is sent a RowDescription.
    pub describe: bool,
    /// What the client was told of the statement before.
    pub told: Option<&'a Signature>,
    /// Whether the client is sent NoData where there are no rows to describe.
    pub tells_no_data: bool,
    /// Execute's row limit; 0 is none.
    pub max_rows: i32,
    /// What may be shipped.
    pub budget: Budget,
    /// How long connections may take to become idle after an error or a cancel.
    pub drain_timeout: Duration,
}

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Whether the portal is suspended, which keeps the coordinator then, or what went wrong. On success the last message is queued in the sink already.
    pub result: Result<bool, Failure>,
    /// Legs that are not idle and drained: their connections must be closed. The coordinator counts as the last.
    pub broken: Vec<usize>,
    /// What was shipped.
    pub shipped: Shipped,
}

/// Runs the statement: leg `i` is a connection to shard `plan.shards[i]`, the last one to the coordinator; all are idle.
///
/// The sink gets RowDescription (if asked for), DataRows and CommandComplete or PortalSuspended; nothing after an error. The shards'
/// snapshots are taken under the latch of `two_phase`.
pub async fn run<L: Leg, S: Sink>(
    run: &Run<'_>,
    legs: &mut [L],
    sink: &mut S,
    cancel: &CancellationToken,
    two_phase: Option<&TwoPhase>,
) -> Outcome {
    let mut lines: Vec<Line<'_, L>> = legs.iter_mut().map(Line::new).collect();
    let mut work = Work { shipped: Shipped::default(), two_phase, with_conditions: true, is_gathered: false };
    let mut result = attempt(run, &mut lines, sink, cancel, &mut work).await;
    if let Err(Failure::Server(frame)) = &result
        && !work.is_gathered
        && run.plan.shipments.iter().any(|it| it.select_all.is_some() || !it.key_lists.is_empty())
        && may_be_a_conditions(frame)
        && lines.iter().all(Line::is_at_rest)
    {
        // The statement may never have come to judge the row that a condition failed on: PostgreSQL is to say.
        work = Work { shipped: Shipped::default(), two_phase, with_conditions: false, is_gathered: false };
        result = attempt(run, &mut lines, sink, cancel, &mut work).await;
    }
    // The portal keeps the coordinator.
    let kept = matches!(result, Ok(true)).then(|| lines.len() - 1);
    let broken = (0..lines.len()).filter(|&at| Some(at) != kept && !lines[at].is_at_rest()).collect();
    Outcome { result, broken, shipped: work.shipped }
}

/// How far a statement has come.
struct Work<'a> {
    shipped: Shipped,
    two_phase: Option<&'a TwoPhase>,
    /// Whether the shards apply the statement's conditions to what they ship.
    with_conditions: bool,
    /// Whether all rows are on the coordinator.
    is_gathered: bool,
}

/// Runs the statement once; after an error everything has been brought to rest, as far as it could be.
async fn attempt<L: Leg, S: Sink>(
    run: &Run<'_>,
    lines: &mut [Line<'_, L>],
    sink: &mut S,
    cancel: &CancellationToken,
    work: &mut Work<'_>,
) -> Result<bool, Failure> {
    let result = match lines.split_last_mut() {
        Some((coordinator, shards)) if shards.len() == run.plan.shards.len() && !shards.is_empty() => {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Failure::Own(cancelled())),
                result = answer(run, shards, coordinator, sink, work) => result,
            }
        }
        _ => Err(Failure::Own(Error::internal("a gathered statement has a leg for each shard and one more"))),
    };
    if result.is_err() {
        let rest = join_all(lines.iter_mut().map(Line::bring_to_rest));
        // Who is not idle by then is reported as broken.
        let _ = tokio::time::timeout(run.drain_timeout, rest).await;
    }
    result
}

/// Whether an error may come from judging a row: data, cardinality, constraints of domains, a function's own.
fn may_be_a_conditions(frame: &Frame) -> bool {
    const CLASSES: [&[u8]; 5] = [b"21", b"22", b"23", b"38", b"P0"];
    code_of(frame).is_some_and(|code| CLASSES.iter().any(|class| code.starts_with(class)))
}

/// An error's SQLSTATE.
fn code_of(frame: &Frame) -> Option<&[u8]> {
    let mut body = crate::wire::frame::Body::new(frame.body());
    while let Some(field) = body.u8().filter(|&field| field != 0) {
        let text = body.cstr()?;
        if field == b'C' {
            return Some(text);
        }
    }
    None
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "canceling statement due to user request")
}

async fn answer<L: Leg, S: Sink>(
    run: &Run<'_>,
    shards: &mut [Line<'_, L>],
    coordinator: &mut Line<'_, L>,
    sink: &mut S,
    work: &mut Work<'_>,
) -> Result<bool, Failure> {
    let description = {
        let gathering = gather(run, shards, coordinator, work);
        tokio::select! {
            biased;
            error = poll_fn(|cx| sink.poll_gone(cx)) => return Err(Failure::Own(error)),
            description = gathering => description?,
        }
    };
    work.is_gathered = true;
    let suspended = relay(run, &description, coordinator, sink).await?;
    if !suspended {
        coordinator.query("ROLLBACK");
        coordinator.settle(|_| {}).await?;
    }
    Ok(suspended)
}

/// Brings all rows to the coordinator; returns how the first shard describes the statement.
async fn gather<L: Leg>(
    run: &Run<'_>,
    shards: &mut [Line<'_, L>],
    coordinator: &mut Line<'_, L>,
    work: &mut Work<'_>,
) -> Result<Description, Failure> {
    let (description, ()) = tokio::try_join!(describe_first(run, shards), prepare(run, coordinator))?;
    let left = open_all(shards, work.two_phase).await?;
    set_exact_texts(run, shards).await?;
    ship_all(run, shards, coordinator, &mut work.shipped, work.with_conditions).await?;
    for line in shards.iter_mut() {
        line.query("ROLLBACK");
    }
    try_join_all(shards.iter_mut().map(|line| line.settle(|_| {}))).await?;
    if let Some(left) = left {
        left.verdict().await.map_err(Failure::Own)?;
    }
    Ok(description)
}

/// Ships every table.
async fn ship_all<L: Leg>(
    run: &Run<'_>,
    shards: &mut [Line<'_, L>],
    coordinator: &mut Line<'_, L>,
    sum: &mut Shipped,
    with_conditions: bool,
) -> Result<(), Failure> {
    let mut order = Order::new(run, with_conditions);
    read_texts(run, coordinator, READ_EXACTLY).await?;
    while let Some(turn) = order.next(shards).await? {
        let shipment = &run.plan.shipments[turn.at];
        let shipping = ship(shipment, &turn.select, shards, coordinator, sum, run.budget);
        let shipped = shipping.await.map_err(|failure| of_views(shipment, failure))?;
        tune(shipment, &shipped, coordinator).await?;
        order.note(&turn, &shipped, coordinator).await?;
    }
    read_texts(run, coordinator, READ_AS_SET).await?;
    make_views(run, coordinator).await
}

/// Says how texts are to be read, where some are shipped.
async fn read_texts<L: Leg>(run: &Run<'_>, coordinator: &mut Line<'_, L>, how: &str) -> Result<(), Failure> {
    if run.plan.shipments.iter().all(|shipment| shipment.is_binary) {
        return Ok(());
    }
    coordinator.query(how);
    coordinator.settle(|_| {}).await.map_err(of_pgherds_own)
}

/// Makes the views of what was shipped, and sees to it that their names mean them.
async fn make_views<L: Leg>(run: &Run<'_>, coordinator: &mut Line<'_, L>) -> Result<(), Failure> {
    for view in &run.plan.views {
        coordinator.query(&view.create);
        probe(&view.probe, coordinator).await?;
    }
    Ok(())
}

/// A view is read with its owner's rights, its tables' rows are shipped with the client's.
fn of_views(shipment: &Shipment, failure: Failure) -> Failure {
    const DENIED: &[u8] = b"42501";
    match failure {
        Failure::Server(frame) if shipment.is_of_views && code_of(&frame) == Some(DENIED) => {
            let message = "a view whose tables its reader may not read, over several shards";
            let hint = "Grant SELECT on its tables, or tie the statement to one shard key.";
            Failure::Own(Error::refused(message).hint(hint))
        }
        other => other,
    }
}

/// Gives a shipped table its key, and what makes reading many rows fast.
async fn tune<L: Leg>(shipment: &Shipment, shipped: &[Shipped], coordinator: &mut Line<'_, L>) -> Result<(), Failure> {
    let rows: u64 = shipped.iter().map(|shipped| shipped.rows).sum();
    let tune = shipment.tune.iter().filter(|_| rows >= TUNED_ROWS);
    shipment.key.iter().chain(tune).for_each(|sql| coordinator.query(sql));
    coordinator.settle(|_| {}).await.map_err(of_pgherds_own)
}

/// Has a shard describe the statement, and see to it that its views may be read. Whatever locks that waits for are waited for here,
/// before the latch is taken.
async fn describe<L: Leg>(run: &Run<'_>, line: &mut Line<'_, L>) -> Result<Description, Failure> {
    writer::parse(line.out(), b"", run.text, run.types);
    writer::describe(line.out(), b'S', b"");
    line.sync();
    run.plan.views.iter().filter_map(|view| view.allowed.as_deref()).for_each(|sql| line.query(sql));
    let mut description = None;
    while !line.is_settled() {
        let frame = poll_fn(|cx| line.poll_frame(cx)).await?;
        match frame.tag() {
            b'E' if description.is_some() => return Err(Failure::Server(without_position(&frame))),
            b'E' => return Err(Failure::Server(frame)),
            b'T' if description.is_none() => {
                if let Some(told) = run.told.filter(|_| !run.describe) {
                    let whence = Whence::Elsewhere(run.result_formats);
                    told.check_rows(frame.body(), 0, whence).map_err(Failure::Own)?;
                }
                description = Some(Description::read(frame.body()).map_err(Failure::Own)?);
            }
            // COPY: it gives no rows of the protocol's.
            b'n' if description.is_none() => description = Some(Description { columns: Vec::new() }),
            _ => {}
        }
    }
    description.ok_or_else(|| Failure::Own(Error::internal("a shard did not describe the statement")))
}

/// Takes the shards' snapshots under the latch, where there is one: no table is touched, so that no lock is waited for.
async fn open_all<L: Leg>(shards: &mut [Line<'_, L>], two_phase: Option<&TwoPhase>) -> Result<Option<Left>, Failure> {
    let latch = match two_phase.filter(|_| shards.len() > 1) {
        Some(two_phase) => Some(two_phase.enter(Kind::Read).await.map_err(Failure::Own)?),
        None => None,
    };
    for line in shards.iter_mut() {
        line.query(BEGIN);
        line.query("SELECT 1");
    }
    try_join_all(shards.iter_mut().map(|line| line.settle(|_| {}))).await.map_err(of_pgherds_own)?;
    Ok(latch.map(Guard::leave))
}

/// Has texts mean the same everywhere, where values travel as text.
async fn set_exact_texts<L: Leg>(run: &Run<'_>, shards: &mut [Line<'_, L>]) -> Result<(), Failure> {
    if run.plan.shipments.iter().any(|shipment| !shipment.is_binary) {
        shards.iter_mut().for_each(|line| line.query(EXACT_TEXTS));
        try_join_all(shards.iter_mut().map(|line| line.settle(|_| {}))).await.map_err(of_pgherds_own)?;
    }
    Ok(())
}

/// The first shard describes the statement.
async fn describe_first<L: Leg>(run: &Run<'_>, shards: &mut [Line<'_, L>]) -> Result<Description, Failure> {
    match shards.first_mut() {
        Some(first) => describe(run, first).await,
        None => Err(Failure::Own(Error::internal("a gathered statement has shards"))),
    }
}

/// Begins the coordinator's transaction and makes the temporary tables.
async fn prepare<L: Leg>(run: &Run<'_>, coordinator: &mut Line<'_, L>) -> Result<(), Failure> {
    // In one string with BEGIN: if that fails, by a cancel of the statement before, no table is made that would outlive the statement.
    let creates = run.plan.shipments.iter().map(|shipment| &*shipment.create);
    let texts: Vec<&str> = std::iter::once("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").chain(creates).collect();
    coordinator.query(&texts.join("; "));
    probe(&run.plan.probe, coordinator).await
}

/// Makes the temporary tables in the transaction at hand.
async fn make_tables<L: Leg>(run: &Run<'_>, coordinator: &mut Line<'_, L>, on_commit: &str) -> Result<(), Failure> {
    for shipment in &run.plan.shipments {
        coordinator.query(&[&*shipment.create, on_commit].concat());
    }
    probe(&run.plan.probe, coordinator).await
}

/// Sees to it that names mean what was made for the statement.
async fn probe<L: Leg>(sql: &str, coordinator: &mut Line<'_, L>) -> Result<(), Failure> {
    coordinator.query(sql);
    let mut is_plain = false;
    coordinator
        .settle(|frame| {
            if frame.tag() == b'D' {
                is_plain = frame.body() == b"\0\x01\0\0\0\x01t";
            }
        })
        .await
        .map_err(of_pgherds_own)?;
    if is_plain {
        return Ok(());
    }
    let error = Error::refused("a table's name would mean another table on the coordinator");
    Err(Failure::Own(error.hint("Leave pg_temp out of search_path, or write the tables' schemas.")))
}

fn of_pgherds_own(failure: Failure) -> Failure {
    match failure {
        Failure::Server(frame) => Failure::Server(without_position(&frame)),
        own => own,
    }
}

/// Runs the statement on the coordinator and passes its rows on; returns whether the portal is suspended.
async fn relay<L: Leg, S: Sink>(
    run: &Run<'_>,
    description: &Description,
    coordinator: &mut Line<'_, L>,
    sink: &mut S,
) -> Result<bool, Failure> {
    coordinator.query("SET TRANSACTION READ ONLY");
    coordinator.settle(|_| {}).await.map_err(of_pgherds_own)?;
    let out = coordinator.out();
    writer::parse(out, b"", run.plan.sql.as_bytes(), run.types);
    writer::describe(out, b'S', b"");
    bind(out, run);
    writer::execute(out, b"", run.max_rows);
    coordinator.sync();
    portal::pass(run.plan.is_verbatim, coordinator, sink, |frame, out| match frame.tag() {
        b'T' => {
            agree(run, description, frame)?;
            if run.describe {
                let before = out.len();
                description.write(out, description.columns.len(), run.result_formats);
                if let Some(told) = run.told {
                    told.note_rows(&out[before + HEADER_LEN..]);
                }
            }
            Ok(())
        }
        b'n' if run.tells_no_data => {
            out.extend_from_slice(&frame.bytes);
            Ok(())
        }
        _ => Ok(()),
    })
    .await
}

/// The client is told what the shard says of the columns: what the coordinator sends must be just that.
fn agree(run: &Run<'_>, shard: &Description, frame: &Frame) -> Result<(), Failure> {
    let own = Description::read(frame.body()).map_err(Failure::Own)?;
    let is_alike = shard.without_modifiers().is_alike(&own.without_modifiers(), |at| format_of(run.result_formats, at));
    if is_alike {
        return Ok(());
    }
    let error = Error::new(
        ErrorKind::Backend,
        SqlState::FEATURE_NOT_SUPPORTED,
        "the coordinator describes the result otherwise than the shards",
    );
    Err(Failure::Own(error.hint("Bring types and functions of the coordinator in line: run pgherd check.")))
}

fn bind(out: &mut bytes::BytesMut, run: &Run<'_>) {
    writer::message(out, b'B', |out| {
        out.put_slice(b"\0\0");
        put_formats(out, run.parameter_formats);
        out.put_u16(u16::try_from(run.values.len()).unwrap_or(u16::MAX));
        for value in run.values {
            match value {
                None => out.put_i32(-1),
                Some(bytes) => {
                    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
                    out.put_slice(bytes);
                }
            }
        }
        put_formats(out, run.result_formats);
    });
}

fn put_formats(out: &mut bytes::BytesMut, formats: &[i16]) {
    out.put_u16(u16::try_from(formats.len()).unwrap_or(u16::MAX));
    formats.iter().for_each(|&format| out.put_i16(format));
}
