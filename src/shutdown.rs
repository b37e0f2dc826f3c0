//! The beginning of pgherd's end, as every session hears of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Whether pgherd drains: no new clients, and those that are idle are sent away.
#[derive(Debug, Default, Clone)]
pub struct Drain(Arc<State>);

#[derive(Debug, Default)]
struct State {
    has_begun: AtomicBool,
    token: CancellationToken,
}

impl Drain {
    /// Begins it.
    pub fn begin(&self) {
        self.0.has_begun.store(true, Ordering::Release);
        self.0.token.cancel();
    }

    /// Waits for its beginning.
    pub async fn begun(&self) {
        self.0.token.cancelled().await;
    }

    /// What one task waits with, again and again.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch {
            state: Arc::clone(&self.0),
            begun: Box::pin(self.0.token.clone().cancelled_owned()),
            is_registered: false,
        }
    }
}

/// One task's wait for the drain. After the first poll another costs one atomic load: one task polls it at a time, see [`DrainWatch::move_here`].
#[derive(Debug)]
pub struct DrainWatch {
    state: Arc<State>,
    begun: Pin<Box<WaitForCancellationFutureOwned>>,
    is_registered: bool,
}

impl DrainWatch {
    /// Another task polls from now on.
    pub fn move_here(&mut self) {
        *self = Drain(Arc::clone(&self.state)).watch();
    }

    /// Ready once the drain has begun.
    pub fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_registered && !self.state.has_begun.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        self.is_registered = true;
        self.begun.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_waits_is_woken_and_later_ones_know_at_once() {
        let drain = Drain::default();
        let mut watch = drain.watch();
        let waiting = tokio::spawn(async move { std::future::poll_fn(|cx| watch.poll_begun(cx)).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drain.begin();
        waiting.await.expect("woken");
        let mut late = drain.watch();
        std::future::poll_fn(|cx| late.poll_begun(cx)).await;
    }
}
