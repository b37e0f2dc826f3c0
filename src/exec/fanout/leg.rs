//! One shard's part of a fan-out: what is sent, what comes back, and how its connection is left clean.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};

use super::Run;
use crate::error::Error;
use crate::exec::merge::description::format_of;
use crate::limits;
use crate::sql::parameters;
use crate::wire::frame::{Frame, Frames, HEADER_LEN};
use crate::wire::writer;

/// A server connection at rest that belongs to this fan-out alone.
pub trait Leg: Send {
    /// Whether it is in a transaction that goes on behind the statement; else it is outside of one.
    fn is_within(&self) -> bool {
        false
    }

    /// Where bytes for the server are queued.
    fn queue(&mut self) -> &mut BytesMut;
    /// Sends what is queued.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>>;
    /// The next whole message from the server. Reads no more than it needs once a message is whole.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Error>>;
    /// The next whole messages: of that type as many as are at hand, or one of another. Reads no more than it needs once there is one.
    fn poll_frames(&mut self, cx: &mut Context<'_>, tag: u8) -> Poll<Result<Frames, Error>>;
    /// Whether it only says again what was kept from before: it has no tables to lock.
    fn is_kept(&self) -> bool {
        false
    }

    /// It is run from the beginning once more.
    fn rewind(&mut self) {}

    /// Sends a cancel request for what runs on the connection; ready when the server has taken it.
    fn cancel(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// How far a leg is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing was sent.
    Waiting,
    /// BEGIN, Parse and Describe were sent.
    Describing,
    /// It is described; that its plan is made is awaited.
    Planning,
    /// It is described; nothing runs yet.
    Described,
    /// Bind and Execute were sent, and all that ends the leg.
    Running,
    /// All rows were read, or it was given up; its ReadyForQuery are awaited.
    Ending,
    /// Idle and drained.
    Done,
    /// Not to be used again.
    Broken,
}

/// A leg's progress.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) stage: Stage,
    /// ReadyForQuery that are still to come.
    pub(super) readies: u32,
    /// Whether the last ReadyForQuery said idle, or what idle is within a transaction.
    pub(super) is_idle: bool,
    /// Whether the messages sent since the last Sync end with one.
    pub(super) is_synced: bool,
    /// Whether it has its snapshot: only rows come then, and they can wait.
    pub(super) is_bound: bool,
    /// What it has given so far.
    pub(super) given: Given,
    /// When its statement was sent.
    since: Option<Instant>,
    /// Whether it is in a transaction that goes on behind the statement.
    is_within: bool,
    /// Whether a Bind follows its Describe only so that the plan is made, which locks what Parse does not: partitions, child tables.
    plans_first: bool,
}

/// What one shard gave to an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    /// Rows.
    pub rows: u64,
    /// Their bytes, hidden columns included.
    pub bytes: u64,
    /// From Execute to its last row.
    pub took: Duration,
}

impl Progress {
    pub(super) const NEW: Self = Self {
        stage: Stage::Waiting,
        readies: 0,
        is_idle: true,
        is_synced: true,
        is_bound: false,
        given: Given { rows: 0, bytes: 0, took: Duration::ZERO },
        since: None,
        is_within: false,
        plans_first: false,
    };

    /// A leg that is in a transaction which goes on behind the statement, drained.
    pub(super) const WITHIN: Self = Self { is_within: true, ..Self::NEW };

    pub(super) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Broken)
    }

    /// Queues BEGIN, unless it has begun, and the statement's Parse and Describe, which lock its tables. With `plans_first` a Bind, too.
    pub(super) fn open(&mut self, out: &mut BytesMut, run: &Run<'_>, plans_first: bool) {
        *self = Self { is_idle: false, is_synced: false, plans_first, is_within: self.is_within, ..Self::NEW };
        if !self.is_within {
            // Not at the level of the shard's own default: Parse must not take the snapshot.
            writer::query(out, b"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY");
            self.readies = 1;
        }
        self.go_on(out, &run.plan.sql, run);
    }

    /// A leg that is in a transaction already, drained.
    pub(super) const PREPARED: Self = Self { stage: Stage::Described, is_idle: false, is_synced: false, ..Self::NEW };

    /// Queues Parse and Describe of what such a leg runs.
    pub(super) fn go_on(&mut self, out: &mut BytesMut, sql: &str, run: &Run<'_>) {
        writer::parse(out, b"", sql.as_bytes(), &types(run));
        writer::describe(out, b'S', b"");
        if self.plans_first {
            // Formats do not matter: nothing is fetched.
            bind(out, run, std::iter::empty());
        }
        writer::flush(out);
        self.stage = Stage::Describing;
    }

    /// What its columns are has come.
    pub(super) fn is_described(&mut self) {
        self.stage = if self.plans_first { Stage::Planning } else { Stage::Described };
    }

    /// Queues Bind, Execute, Sync and, where the transaction is the leg's own, COMMIT.
    pub(super) fn run(&mut self, out: &mut BytesMut, run: &Run<'_>, columns: usize, is_awaited: bool) {
        let visible = columns.saturating_sub(run.plan.hidden);
        let hidden = std::iter::repeat_n(1, run.plan.hidden);
        bind(out, run, (0..visible).map(|at| format_of(run.formats.codes, at)).chain(hidden));
        if is_awaited {
            // BindComplete is to come at once: the snapshot is taken then.
            writer::flush(out);
        }
        writer::execute(out, b"", 0);
        if self.is_within {
            // Its name may be the client's own portal's, which must not be taken for this one.
            writer::close(out, b'P', b"");
        }
        self.close(out, b"COMMIT");
        self.stage = Stage::Running;
        self.since = Some(Instant::now());
    }

    /// Counts rows.
    pub(super) fn gives(&mut self, rows: &Frames) {
        self.given.rows += rows.count as u64;
        self.given.bytes += (rows.bytes.len() - rows.count * HEADER_LEN) as u64;
    }

    /// Its last row has come.
    pub(super) fn has_given_all(&mut self) {
        self.stage = Stage::Ending;
        self.given.took = self.since.map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// Queues what ends the leg's own transaction.
    pub(super) fn close(&mut self, out: &mut BytesMut, command: &[u8]) {
        if !self.is_synced {
            writer::sync(out);
            self.readies += 1;
            if !self.is_within {
                writer::query(out, command);
                self.readies += 1;
            }
            self.is_synced = true;
        }
        self.stage = Stage::Ending;
    }

    /// Notes a ReadyForQuery.
    pub(super) fn ready(&mut self, status: u8) {
        self.readies = self.readies.saturating_sub(1);
        self.is_idle = (status == b'I') != self.is_within;
        if self.readies == 0 && self.is_synced {
            self.stage = if self.is_idle { Stage::Done } else { Stage::Broken };
        }
    }
}

/// Parameters that the shards' text still uses: a LIMIT's parameter is a number there already.
pub(super) fn used(run: &Run<'_>) -> Vec<bool> {
    let uses = parameters::uses(run.plan.sql.as_bytes(), run.values.len(), run.standard_conforming_strings);
    uses.into_iter().map(|uses| uses > 0).collect()
}

/// Declared types; a parameter that is not used any more is given one, since PostgreSQL could not infer it.
pub(super) fn types(run: &Run<'_>) -> Vec<u32> {
    const TEXT_OID: u32 = 25;
    let declared = |at: usize| run.types.get(at).copied().unwrap_or(0);
    used(run)
        .iter()
        .enumerate()
        .map(|(at, used)| if *used || declared(at) != 0 { declared(at) } else { TEXT_OID })
        .collect()
}

fn bind(out: &mut BytesMut, run: &Run<'_>, formats: impl Iterator<Item = i16>) {
    let used = used(run);
    writer::message(out, b'B', |out| {
        out.put_slice(b"\0\0");
        put_formats(out, (0..run.values.len()).map(|at| format_of(run.parameter_formats, at)));
        out.put_u16(u16::try_from(run.values.len()).unwrap_or(u16::MAX));
        for (value, used) in run.values.iter().zip(used) {
            match value.filter(|_| used) {
                None => out.put_i32(-1),
                Some(bytes) => {
                    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
                    out.put_slice(bytes);
                }
            }
        }
        put_formats(out, formats);
    });
}

pub(super) fn put_formats(out: &mut BytesMut, formats: impl Iterator<Item = i16>) {
    let formats: Vec<i16> = formats.collect();
    out.put_u16(u16::try_from(formats.len()).unwrap_or(u16::MAX));
    formats.into_iter().for_each(|format| out.put_i16(format));
}

/// How many bytes a sink may hold before legs are no longer read.
pub(super) const SINK_HIGH_BYTES: usize = limits::CLIENT_QUEUE_BYTES;

/// How many bytes a sink gathers while legs have rows at hand.
pub(super) const SINK_LOW_BYTES: usize = limits::READ_CHUNK_BYTES;
