//! EXPLAIN of a streamed statement's parts, on the shards that run them.

use bytes::BufMut;
use futures_util::future::{join_all, try_join_all};
use tokio_util::sync::CancellationToken;

use super::leg::{put_formats, types, used};
use super::{Failure, Leg, Run, cancelled};
use crate::exec::coordinator::line::Line;
use crate::exec::merge::description::format_of;
use crate::wire::frame::Body;
use crate::wire::writer;

/// What each leg's PostgreSQL says to `explain` (EXPLAIN and its options) and its part of the statement, line by line; and the legs
/// that did not come to rest.
pub async fn plans<L: Leg>(
    run: &Run<'_>,
    explain: &str,
    legs: &mut [L],
    cancel: &CancellationToken,
) -> (Result<Vec<Vec<String>>, Failure>, Vec<usize>) {
    let mut lines: Vec<Line<'_, L>> = legs.iter_mut().map(Line::new).collect();
    let sql = [explain, &run.plan.sql].concat();
    let result = {
        let plans = try_join_all(lines.iter_mut().map(|line| plan(run, &sql, line)));
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Failure::Own(cancelled())),
            plans = plans => plans,
        }
    };
    if result.is_err() {
        let rest = join_all(lines.iter_mut().map(Line::bring_to_rest));
        // Who is not idle by then is reported as broken.
        let _ = tokio::time::timeout(run.drain_timeout, rest).await;
    }
    let broken = (0..lines.len()).filter(|&at| !lines[at].is_at_rest()).collect();
    (result, broken)
}

async fn plan<L: Leg>(run: &Run<'_>, sql: &str, line: &mut Line<'_, L>) -> Result<Vec<String>, Failure> {
    line.query("BEGIN READ ONLY");
    writer::parse(line.out(), b"", sql.as_bytes(), &types(run));
    let used = used(run);
    writer::message(line.out(), b'B', |out| {
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
        out.put_u16(0);
    });
    writer::execute(line.out(), b"", 0);
    line.sync();
    let mut plan = Vec::new();
    line.settle(|frame| plan.extend(line_of(frame))).await?;
    line.query("ROLLBACK");
    line.settle(|_| {}).await?;
    Ok(plan)
}

/// The text of a DataRow with one column.
pub(in crate::exec) fn line_of(frame: &crate::wire::frame::Frame) -> Option<String> {
    let mut body = Body::new(frame.body());
    let is_row = frame.tag() == b'D' && body.i16() == Some(1);
    let len = is_row.then(|| body.i32())?.and_then(|len| usize::try_from(len).ok())?;
    Some(String::from_utf8_lossy(body.bytes(len)?).into_owned())
}
