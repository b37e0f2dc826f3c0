//! A deadline that moves with every message and hardly ever comes.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// One timer for all deadlines of a task, one after the other. While they move on, it is left where it stands, and set anew
/// only when it goes off: a statement costs no timer, nor does a wait for a server connection.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready at `at`.
    pub fn poll_at(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_goes_off_at_the_deadline_of_the_moment_however_that_has_moved() {
        let begin = Instant::now();
        let mut alarm = Alarm::default();
        for hours in [5, 3, 60, 7] {
            let at = begin + Duration::from_secs(hours * 3600);
            let polled = poll_fn(|cx| Poll::Ready(alarm.poll_at(at, cx))).await;
            assert!(polled.is_pending(), "{hours} h");
        }
        for millis in [20, 40] {
            let at = begin + Duration::from_millis(millis);
            poll_fn(|cx| alarm.poll_at(at, cx)).await;
            assert!(Instant::now() >= at);
        }
        let polled = poll_fn(|cx| Poll::Ready(alarm.poll_at(begin, cx))).await;
        assert!(polled.is_ready(), "one that is over is over");
    }
}
