//! Shipping the rows of one table: COPY out of several shards at once, into the coordinator, with no more held than a queue.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::BufMut;

use super::line::Line;
use crate::error::{Error, ErrorKind};
use crate::exec::fanout::{Failure, Leg};
use crate::limits;
use crate::plan::distribute::Shipment;
use crate::wire::frame::{Frame, Frames};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// PostgreSQL's manual, COPY, "File Header": signature, flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The file trailer.
const TRAILER: &[u8] = b"\xff\xff";

/// Bytes queued for the coordinator beyond which shards are not read.
const QUEUE_HIGH_BYTES: usize = limits::CLIENT_QUEUE_BYTES;

/// Bytes gathered before they are sent, while shards have more at hand.
const QUEUE_LOW_BYTES: usize = limits::READ_CHUNK_BYTES;

/// What one statement may ship.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// `fanout.max_shipped_rows`
    pub rows: u64,
    /// `fanout.max_shipped_bytes`
    pub bytes: u64,
    /// `fanout.key_list_max`
    pub keys: u64,
}

impl From<&crate::config::model::Fanout> for Budget {
    fn from(fanout: &crate::config::model::Fanout) -> Self {
        Self { rows: fanout.max_shipped_rows, bytes: fanout.max_shipped_bytes, keys: fanout.key_list_max }
    }
}

/// What one statement has shipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shipped {
    /// Rows of all tables.
    pub rows: u64,
    /// Their bytes, as COPY writes them.
    pub bytes: u64,
}

impl Shipped {
    fn add(&mut self, bytes: u64) {
        self.rows += 1;
        self.bytes += bytes;
    }
}

/// A shard that is read.
struct Origin {
    line: usize,
    has_begun: bool,
    is_over: bool,
    shipped: Shipped,
}

/// Ships the rows of one table that `select` gives. Returns what came from each of the shards that it is read from.
pub(super) async fn ship<L: Leg>(
    shipment: &Shipment,
    select: &[u8],
    lines: &mut [Line<'_, L>],
    coordinator: &mut Line<'_, L>,
    shipped: &mut Shipped,
    budget: Budget,
) -> Result<Vec<Shipped>, Failure> {
    coordinator.query(&shipment.load);
    let unload = shipment.unload(select);
    let mut origins: Vec<Origin> = shipment
        .from
        .iter()
        .map(|&line| Origin { line, has_begun: false, is_over: false, shipped: Shipped::default() })
        .collect();
    for origin in &origins {
        lines[origin.line].query_bytes(&unload);
    }
    while coordinator.frame().await?.tag() != b'G' {}
    coordinator.is_copying = true;
    if shipment.is_binary {
        writer::message(coordinator.out(), b'd', |out| out.put_slice(HEADER));
    }
    let mut next = 0;
    while origins.iter().any(|origin| !origin.is_over) {
        let (at, frames) = poll_fn(|cx| poll_next(&origins, lines, coordinator, &mut next, cx)).await?;
        let origin = &mut origins[at];
        match frames.bytes.first() {
            Some(b'd') => pass(shipment, &frames, origin, coordinator.out(), |bytes| {
                shipped.add(bytes);
                shipped.rows <= budget.rows && shipped.bytes <= budget.bytes
            })?
            .then_some(())
            .ok_or_else(|| Failure::Own(too_much(budget)))?,
            Some(b'E') => return Err(Failure::Server(without_position(&Frame { bytes: frames.bytes }))),
            Some(b'Z') => origin.is_over = lines[origin.line].is_settled(),
            _ => {}
        }
    }
    if shipment.is_binary {
        writer::message(coordinator.out(), b'd', |out| out.put_slice(TRAILER));
    }
    writer::message(coordinator.out(), b'c', |_| {});
    coordinator.is_copying = false;
    coordinator.settle(|_| {}).await?;
    Ok(origins.into_iter().map(|origin| origin.shipped).collect())
}

/// Gives rows on; false as soon as `may` says of one of them, by its bytes, that it is one too many.
fn pass(
    shipment: &Shipment,
    frames: &Frames,
    origin: &mut Origin,
    out: &mut bytes::BytesMut,
    mut may: impl FnMut(u64) -> bool,
) -> Result<bool, Failure> {
    // Rows that go on as they came are put together.
    let (mut start, mut end) = (0, 0);
    for (body, behind) in frames.bodies() {
        let row = if shipment.is_binary { row_of(origin, body)? } else { Some(body) };
        if let Some(row) = row {
            origin.shipped.add(row.len() as u64);
            if !may(row.len() as u64) {
                return Ok(false);
            }
        }
        if row.map(<[u8]>::len) != Some(body.len()) {
            out.extend_from_slice(frames.bytes.get(start..end).unwrap_or_default());
            start = behind;
            if let Some(row) = row {
                writer::message(out, b'd', |out| out.put_slice(row));
            }
        }
        end = behind;
    }
    out.extend_from_slice(frames.bytes.get(start..end).unwrap_or_default());
    Ok(true)
}

/// The next messages of any shard, as long as the coordinator takes rows.
fn poll_next<L: Leg>(
    origins: &[Origin],
    lines: &mut [Line<'_, L>],
    coordinator: &mut Line<'_, L>,
    next: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<(usize, Frames), Failure>> {
    let queued = coordinator.out().len();
    if queued >= QUEUE_LOW_BYTES {
        // It may have something against the rows.
        if let Poll::Ready(answer) = coordinator.poll_frame(cx) {
            let frame = answer?;
            if frame.tag() == b'E' {
                coordinator.is_copying = false;
                return Poll::Ready(Err(Failure::Server(frame)));
            }
        }
        if coordinator.out().len() >= QUEUE_HIGH_BYTES {
            return Poll::Pending;
        }
    }
    for offset in 0..origins.len() {
        let at = (*next + offset) % origins.len();
        if origins[at].is_over {
            continue;
        }
        if let Poll::Ready(frames) = lines[origins[at].line].poll_frames(cx, b'd') {
            *next = at + 1;
            return Poll::Ready(frames.map(|frames| (at, frames)));
        }
    }
    *next = (*next + 1) % origins.len().max(1);
    // Nothing to read: what there is may go, however little.
    match coordinator.poll_frame(cx) {
        Poll::Ready(Ok(frame)) if frame.tag() == b'E' => {
            coordinator.is_copying = false;
            Poll::Ready(Err(Failure::Server(frame)))
        }
        Poll::Ready(Ok(_)) => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Poll::Ready(Err(failure)) => Poll::Ready(Err(failure)),
        Poll::Pending => Poll::Pending,
    }
}

/// A row of COPY's binary format: PostgreSQL sends each in a message of its own (manual, 55.2.7), the first behind the header.
fn row_of<'f>(origin: &mut Origin, mut row: &'f [u8]) -> Result<Option<&'f [u8]>, Failure> {
    if !std::mem::replace(&mut origin.has_begun, true) {
        let extension = row.get(15..19).and_then(|len| len.try_into().ok()).map(u32::from_be_bytes);
        let behind = extension.and_then(|len| row.get(19 + len as usize..));
        row = behind.ok_or_else(|| Failure::Own(Error::internal("a shard's COPY has no header")))?;
    }
    Ok((row != TRAILER && !row.is_empty()).then_some(row))
}

fn too_much(budget: Budget) -> Error {
    let Budget { rows, bytes, .. } = budget;
    let message = format!("the statement would ship more than {rows} rows or {bytes} bytes between servers");
    Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, message).hint(
        "Filter more, tie the tables to a shard key, or raise fanout.max_shipped_rows and fanout.max_shipped_bytes.",
    )
}

/// An error of a statement that the client did not write: its position would point nowhere.
pub fn without_position(frame: &Frame) -> Frame {
    use crate::wire::frame::Body;
    let mut bytes = bytes::BytesMut::new();
    writer::message(&mut bytes, b'E', |out| {
        let mut body = Body::new(frame.body());
        while let Some(code) = body.u8().filter(|&code| code != 0) {
            let Some(text) = body.cstr() else { break };
            if !matches!(code, b'P' | b'p' | b'q') {
                out.put_u8(code);
                writer::cstr(out, text);
            }
        }
        out.put_u8(0);
    });
    Frame { bytes: bytes.freeze() }
}
