//! The beginning of pgherd's end, as every session hears of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

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

    /// Whether it has begun. Who waits for it by asking again must be woken by others: see `Clients::wake_all`.
    pub fn has_begun(&self) -> bool {
        self.0.has_begun.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_woken_and_later_ones_know_at_once() {
        let drain = Drain::default();
        let watched = drain.clone();
        let waiting = tokio::spawn(async move { watched.begun().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && !drain.has_begun());
        drain.begin();
        waiting.await.expect("woken");
        assert!(drain.has_begun());
        drain.begun().await;
    }
}
