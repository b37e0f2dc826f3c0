//! What one client is still to be told of: a bounded queue of notifications, and who is to be woken for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

/// A channel's name, as PostgreSQL has it.
pub type Channel = Arc<str>;

/// What a queued notification costs beside its own bytes.
const OVERHEAD_BYTES: usize = 64;

/// Why a client cannot be told any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The listener's connection was lost, and what was notified meanwhile with it.
    Lost,
    /// More waits for it than may.
    TooSlow,
}

/// One thing that a client is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mail {
    /// A NotificationResponse on that channel.
    Notification(Channel, Bytes),
    /// Notifications may have been lost: pgherd has had to listen again.
    MayHaveLost,
}

/// The queue of one client.
#[derive(Debug)]
pub struct Mailbox {
    limit: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    queue: VecDeque<Mail>,
    bytes: usize,
    end: Option<End>,
    is_closed: bool,
    waker: Option<Waker>,
}

impl Mailbox {
    /// An empty one for that many bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, inside: Mutex::default() }
    }

    /// Puts something in. Returns whether this is what makes it too much.
    pub(super) fn post(&self, mail: Mail) -> bool {
        let mut inside = self.inside.lock();
        if inside.end.is_some() || inside.is_closed {
            return false;
        }
        let cost = OVERHEAD_BYTES + if let Mail::Notification(_, bytes) = &mail { bytes.len() } else { 0 };
        let is_too_much = inside.bytes + cost > self.limit;
        if is_too_much {
            (inside.queue, inside.bytes) = Default::default();
            inside.end = Some(End::TooSlow);
        } else {
            inside.bytes += cost;
            inside.queue.push_back(mail);
        }
        let waker = inside.waker.take();
        drop(inside);
        waker.into_iter().for_each(Waker::wake);
        is_too_much
    }

    /// Its client cannot be told any more.
    pub(super) fn end(&self, end: End) {
        let mut inside = self.inside.lock();
        inside.end.get_or_insert(end);
        let waker = inside.waker.take();
        drop(inside);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Throws away what waits on these channels: it was notified before their LISTEN.
    pub(super) fn purge(&self, channels: &[Channel]) {
        let mut inside = self.inside.lock();
        let is_stale = |mail: &Mail| matches!(mail, Mail::Notification(channel, _) if channels.contains(channel));
        inside.queue.retain(|mail| !is_stale(mail));
        inside.bytes = inside.queue.iter().map(Mail::cost).sum();
    }

    /// Its client is gone, or listens to nothing any more.
    pub(super) fn close(&self) {
        let mut inside = self.inside.lock();
        *inside = Inside { is_closed: true, ..Inside::default() };
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inside.lock().is_closed
    }

    /// Whether something waits.
    pub fn has_mail(&self) -> bool {
        !self.inside.lock().queue.is_empty()
    }

    /// Takes everything that waits, if it is `wanted` now. Pending: whoever polled is woken by what comes next.
    ///
    /// # Errors
    /// The client cannot be told any more.
    pub fn poll_take(&self, cx: &mut Context<'_>, wanted: bool) -> Poll<Result<VecDeque<Mail>, End>> {
        let mut inside = self.inside.lock();
        if let Some(end) = inside.end {
            return Poll::Ready(Err(end));
        }
        if wanted && !inside.queue.is_empty() {
            inside.bytes = 0;
            return Poll::Ready(Ok(std::mem::take(&mut inside.queue)));
        }
        match &mut inside.waker {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Mail {
    fn cost(&self) -> usize {
        OVERHEAD_BYTES + if let Self::Notification(_, bytes) = self { bytes.len() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn mail(channel: &str, len: usize) -> Mail {
        Mail::Notification(channel.into(), Bytes::from(vec![b'x'; len]))
    }

    #[tokio::test]
    async fn who_waits_is_woken_and_gets_all_in_order() {
        let mailbox = Arc::new(Mailbox::new(1000));
        let reader = Arc::clone(&mailbox);
        let waiting = tokio::spawn(async move { poll_fn(|cx| reader.poll_take(cx, true)).await });
        tokio::task::yield_now().await;
        assert!(!mailbox.post(mail("a", 1)) && !mailbox.post(mail("b", 2)));
        let taken = waiting.await.expect("woken").expect("mail");
        assert_eq!(taken, [mail("a", 1), mail("b", 2)]);
        assert!(!mailbox.has_mail());
    }

    #[tokio::test]
    async fn at_the_limit_it_holds_and_one_byte_past_it_it_ends() {
        let mailbox = Mailbox::new(2 * (OVERHEAD_BYTES + 10));
        assert!(!mailbox.post(mail("a", 10)) && !mailbox.post(mail("a", 10)));
        assert!(mailbox.post(mail("a", 0)));
        assert!(!mailbox.post(mail("a", 0)), "it ends once");
        let ended = poll_fn(|cx| Poll::Ready(mailbox.poll_take(cx, false))).await;
        assert_eq!(ended, Poll::Ready(Err(End::TooSlow)));
    }

    #[test]
    fn what_is_purged_makes_room() {
        let mailbox = Mailbox::new(2 * (OVERHEAD_BYTES + 10));
        mailbox.post(mail("a", 10));
        mailbox.post(mail("b", 10));
        mailbox.purge(&["a".into()]);
        assert!(!mailbox.post(mail("b", 10)));
        mailbox.close();
        assert!(!mailbox.post(mail("b", 10)) && !mailbox.has_mail(), "nobody is there");
    }
}
