//! The portal of a gathered statement on its coordinator: rows on their way to the client, and what is left for a later Execute.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;

use super::cancelled;
use super::line::Line;
use super::ship::without_position;
use crate::exec::fanout::{Failure, Leg, Sink};
use crate::limits;
use crate::wire::frame::Frame;
use crate::wire::writer;

/// Executes a suspended portal once more. Returns whether it is suspended again, and whether the leg can still be used; unless it is
/// suspended the leg is at rest.
pub async fn resume<L: Leg, S: Sink>(
    is_verbatim: bool,
    max_rows: i32,
    leg: &mut L,
    sink: &mut S,
    cancel: &CancellationToken,
    drain_timeout: Duration,
) -> (Result<bool, Failure>, bool) {
    let mut line = Line::within(leg);
    writer::execute(line.out(), b"", max_rows);
    line.sync();
    let executed = async {
        let suspended = pass(is_verbatim, &mut line, sink, |_, _| Ok(())).await?;
        if !suspended {
            line.query("ROLLBACK");
            line.settle(|_| {}).await?;
        }
        Ok(suspended)
    };
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Failure::Own(cancelled())),
        result = executed => result,
    };
    if result.is_err() {
        let _ = tokio::time::timeout(drain_timeout, line.bring_to_rest()).await;
    }
    let is_fit = if matches!(result, Ok(true)) { line.has_stopped() } else { line.is_at_rest() };
    (result, is_fit)
}

/// Gives a suspended portal up; whether the leg is at rest.
pub async fn abandon<L: Leg>(leg: &mut L, drain_timeout: Duration) -> bool {
    let mut line = Line::within(leg);
    let _ = tokio::time::timeout(drain_timeout, line.bring_to_rest()).await;
    line.is_at_rest()
}

/// Passes rows on up to ReadyForQuery; returns whether the portal is suspended. What comes before rows is `tell`'s.
pub(super) async fn pass<L: Leg, S: Sink>(
    is_verbatim: bool,
    coordinator: &mut Line<'_, L>,
    sink: &mut S,
    mut tell: impl FnMut(&Frame, &mut BytesMut) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let mut suspended = false;
    while !coordinator.is_settled() {
        let frame = poll_fn(|cx| {
            if sink.queue().len() >= limits::CLIENT_QUEUE_BYTES {
                match sink.poll_flush(cx) {
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Own(error))),
                    Poll::Ready(Ok(())) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
            if let Poll::Ready(error) = sink.poll_gone(cx) {
                return Poll::Ready(Err(Failure::Own(error)));
            }
            let frame = coordinator.poll_frame(cx);
            if frame.is_pending()
                && let Poll::Ready(Err(error)) = sink.poll_flush(cx)
            {
                return Poll::Ready(Err(Failure::Own(error)));
            }
            frame
        })
        .await?;
        match frame.tag() {
            b'T' | b'n' => tell(&frame, sink.queue())?,
            // COPY's rows: CopyOutResponse, CopyData, CopyDone.
            b'D' | b'C' | b'N' | b'H' | b'd' | b'c' => sink.queue().extend_from_slice(&frame.bytes),
            b's' => {
                suspended = true;
                sink.queue().extend_from_slice(&frame.bytes);
            }
            b'E' if is_verbatim => return Err(Failure::Server(frame)),
            b'E' => return Err(Failure::Server(without_position(&frame))),
            _ => {}
        }
    }
    Ok(suspended)
}
