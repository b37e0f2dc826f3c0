//! A fan-out that stands still between two Executes of its portal: its shards wait for their sockets to be read.

use std::time::Duration;

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;

use super::gate::Snapshots;
use super::leg::Progress;
use super::{Fanout, Leg, Outcome, Run, Sink, broken, give_up};
use crate::exec::merge::Merger;
use crate::exec::merge::description::Description;

/// How far a suspended fan-out is.
#[derive(Debug)]
pub struct Course {
    legs: Vec<Progress>,
    description: Option<Description>,
    merger: Option<Merger>,
    next: usize,
    bound: usize,
}

impl Course {
    pub(super) fn of(fanout: Fanout<'_>) -> Self {
        let Fanout { legs, description, merger, next, bound, .. } = fanout;
        Self { legs, description, merger, next, bound }
    }
}

/// Goes on where it stopped, with the same legs and the same run but for `max_rows`.
pub async fn resume<L: Leg, S: Sink>(
    run: &Run<'_>,
    course: Course,
    legs: &mut [L],
    sink: &mut S,
    cancel: &CancellationToken,
) -> Outcome {
    let Course { legs: progress, description, merger, next, bound } = course;
    let fanout = Fanout {
        run,
        legs: progress,
        description,
        merger,
        next,
        unanswered: b"",
        describes: BytesMut::new(),
        snapshots: Snapshots::behind(None),
        bound,
        prepared: None,
        is_within: false,
    };
    fanout.carry_on(legs, sink, cancel).await
}

/// Gives it up; returns the legs that did not come to rest.
pub async fn abandon<L: Leg>(mut course: Course, legs: &mut [L], drain_timeout: Duration) -> Vec<usize> {
    give_up(&mut course.legs, legs, drain_timeout).await;
    broken(&course.legs)
}
