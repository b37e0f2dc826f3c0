//! How legs end: an error is told, who still runs is cancelled, and every connection is left clean or known to be broken.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures_util::future::join_all;

use super::Leg;
use super::leg::{Progress, Stage};
use crate::wire::frame::{Body, Frame};
use crate::wire::writer;

/// How long a leg that is to end may be silent before it is cancelled once more.
const CANCEL_AGAIN: Duration = Duration::from_millis(500);

/// Legs that are not idle and drained.
pub(super) fn broken(progress: &[Progress]) -> Vec<usize> {
    (0..progress.len()).filter(|&at| !matches!(progress[at].stage, Stage::Done | Stage::Waiting)).collect()
}

/// Ends every leg: cancels those that run, rolls back, and reads until they are idle or the time is up.
pub(super) async fn give_up<L: Leg>(progress: &mut [Progress], legs: &mut [L], drain_timeout: Duration) {
    let running = progress.iter().zip(legs.iter()).filter(|(progress, _)| progress.stage == Stage::Running);
    let cancels: Vec<_> = running.map(|(_, leg)| leg.cancel()).collect();
    let drain = async {
        join_all(cancels).await;
        let drains = progress.iter_mut().zip(legs.iter_mut()).map(|(progress, leg)| drain(progress, leg));
        join_all(drains).await;
    };
    // Who is not idle by then is reported as broken.
    let _ = tokio::time::timeout(drain_timeout, drain).await;
}

/// Reads a leg to its end, throwing everything away.
async fn drain<L: Leg>(progress: &mut Progress, leg: &mut L) {
    if progress.is_over() || progress.stage == Stage::Waiting {
        return;
    }
    if progress.is_synced {
        // A cancel that came too late for the statement must not meet the next one: a round trip lets it pass.
        writer::sync(leg.queue());
        progress.readies += 1;
    } else {
        progress.close(leg.queue(), b"ROLLBACK");
    }
    while !progress.is_over() {
        let next = poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = leg.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            leg.poll_frame(cx)
        });
        let Ok(frame) = tokio::time::timeout(CANCEL_AGAIN, next).await else {
            // The first cancel may have come before the statement began: then PostgreSQL ignored it.
            leg.cancel().await;
            continue;
        };
        match frame {
            Ok(frame) if frame.tag() == b'Z' => progress.ready(frame.body().first().copied().unwrap_or(0)),
            Ok(_) => {}
            Err(_) => progress.stage = Stage::Broken,
        }
    }
}

/// The error with its position moved to where it is in the client's own text.
pub(super) fn located(frame: &Frame, (start, len): (usize, usize)) -> Frame {
    let mut bytes = BytesMut::new();
    writer::message(&mut bytes, b'E', |out| {
        let mut body = Body::new(frame.body());
        while let Some(code) = body.u8().filter(|&code| code != 0) {
            let Some(text) = body.cstr() else { break };
            let position = Some(text)
                .filter(|_| code == b'P')
                .and_then(|text| std::str::from_utf8(text).ok()?.parse::<usize>().ok());
            let moved = match position {
                Some(position) if position > start + len => Some((position - len).to_string()),
                Some(position) if position > start => None,
                _ => Some(String::from_utf8_lossy(text).into_owned()),
            };
            match moved {
                Some(moved) if position.is_some() => {
                    out.put_u8(code);
                    writer::cstr(out, moved.as_bytes());
                }
                None => {}
                Some(_) => {
                    out.put_u8(code);
                    writer::cstr(out, text);
                }
            }
        }
        out.put_u8(0);
    });
    Frame { bytes: bytes.freeze() }
}
