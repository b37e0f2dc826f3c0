//! Cancel requests: pgherd's own keys, and the server or the work that each of them stands for at the moment.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use foldhash::HashMap;
use parking_lot::Mutex;
use rand::RngCore as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::auth::password;
use crate::backend::cancel::{self, CancelTarget};

/// How long delivering a cancel request may take.
const DELIVERY_LIMIT: Duration = Duration::from_secs(10);

/// A key as a client shows it: process id and secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CancelKey {
    /// Stands where PostgreSQL has a process id.
    pub pid: i32,
    /// 4 bytes in protocol 3.0, 32 from 3.2 on.
    pub secret: Bytes,
}

/// What a cancel of one client reaches now, and the secret that it needs.
#[derive(Debug, Default)]
pub struct Slot {
    secret: Box<[u8]>,
    state: Mutex<State>,
    delivered: Notify,
}

#[derive(Debug, Default)]
struct State {
    server: Option<Arc<CancelTarget>>,
    work: Option<CancellationToken>,
    in_flight: u32,
    fired: u64,
}

impl Slot {
    /// The secret of its key.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// From now on a cancel reaches this server.
    pub fn aim_at(&self, server: Arc<CancelTarget>) {
        self.state.lock().server = Some(server);
    }

    /// From now on a cancel also ends this work of pgherd's own.
    pub fn aim_at_work(&self, work: CancellationToken) {
        self.state.lock().work = Some(work);
    }

    /// The work is over.
    pub fn work_is_over(&self) {
        self.state.lock().work = None;
    }

    /// A cancel reaches no server any more. Returns whether one is still on its way: then the server must not be used
    /// again before [`Slot::delivered`].
    pub fn clear(&self) -> bool {
        let mut state = self.state.lock();
        state.server = None;
        state.in_flight > 0
    }

    /// How many cancels there have been.
    pub fn fired(&self) -> u64 {
        self.state.lock().fired
    }

    /// Waits until no cancel is on its way.
    pub async fn delivered(&self) {
        loop {
            let notified = self.delivered.notified();
            if self.state.lock().in_flight == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Sends a cancel to whatever the client has running.
    pub async fn fire(&self) {
        let server = {
            let mut state = self.state.lock();
            state.fired += 1;
            if let Some(work) = &state.work {
                work.cancel();
            }
            let server = state.server.clone();
            state.in_flight += u32::from(server.is_some());
            server
        };
        let Some(server) = server else { return };
        let _landing = Landing(self);
        if let Err(error) = cancel::send(&server.address, &server.tls, server.pid, &server.secret, DELIVERY_LIMIT).await
        {
            tracing::warn!(%error, "could not deliver a cancel request");
        }
    }
}

/// Sends a cancel request to a server process, and waits until it has been delivered.
pub(super) async fn deliver(target: &CancelTarget) {
    let sent = cancel::send(&target.address, &target.tls, target.pid, &target.secret, DELIVERY_LIMIT).await;
    if let Err(error) = sent {
        tracing::warn!(%error, "could not deliver a cancel request");
    }
}

/// Counts a cancel as delivered however its sending ends.
struct Landing<'a>(&'a Slot);

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.0.state.lock().in_flight -= 1;
        self.0.delivered.notify_waiters();
    }
}

/// The keys of all clients.
#[derive(Debug, Default)]
pub struct CancelKeys {
    slots: Mutex<HashMap<i32, Arc<Slot>>>,
    next_pid: AtomicI32,
}

impl CancelKeys {
    /// Gives a new client its key.
    pub fn register(self: &Arc<Self>, secret_len: usize) -> Registration {
        let mut secret = vec![0; secret_len].into_boxed_slice();
        rand::rng().fill_bytes(&mut secret);
        let slot = Arc::new(Slot { secret, ..Slot::default() });
        let mut slots = self.slots.lock();
        loop {
            let pid = self.next_pid.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & i32::MAX;
            // After two thousand million clients one of the first may still be there.
            if let Entry::Vacant(place) = slots.entry(pid) {
                place.insert(Arc::clone(&slot));
                return Registration { keys: Arc::clone(self), pid, slot };
            }
        }
    }

    /// Whether a client of this process has that key.
    pub fn knows(&self, key: &CancelKey) -> bool {
        self.slot(key).is_some()
    }

    fn slot(&self, key: &CancelKey) -> Option<Arc<Slot>> {
        let slot = self.slots.lock().get(&key.pid).cloned();
        slot.filter(|slot| password::equal(&slot.secret, &key.secret))
    }

    /// Cancels what the client with that key has running; an unknown key does nothing, as in PostgreSQL.
    pub async fn cancel(&self, key: &CancelKey) {
        if let Some(slot) = self.slot(key) {
            slot.fire().await;
        }
    }
}

/// A client's key for as long as the client is there.
#[derive(Debug)]
pub struct Registration {
    keys: Arc<CancelKeys>,
    pid: i32,
    /// What it reaches.
    pub slot: Arc<Slot>,
}

impl Registration {
    /// The key's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.keys.slots.lock().remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (Arc<CancelKeys>, CancellationToken, Registration) {
        let (keys, work) = (Arc::new(CancelKeys::default()), CancellationToken::new());
        let client = keys.register(4);
        client.slot.aim_at_work(work.clone());
        (keys, work, client)
    }

    #[tokio::test]
    async fn a_cancel_needs_the_whole_secret() {
        let (keys, work, client) = keys();
        let secret = client.slot.secret().to_vec();
        let mut other = secret.clone();
        other[3] ^= 1;
        for wrong in [other, secret[..3].to_vec(), Vec::new()] {
            keys.cancel(&CancelKey { pid: client.pid(), secret: wrong.into() }).await;
        }
        keys.cancel(&CancelKey { pid: client.pid() + 1, secret: secret.clone().into() }).await;
        assert!(!work.is_cancelled());
        keys.cancel(&CancelKey { pid: client.pid(), secret: secret.into() }).await;
        assert!(work.is_cancelled());
    }

    #[tokio::test]
    async fn a_key_goes_with_its_client() {
        let (keys, work, client) = keys();
        let key = CancelKey { pid: client.pid(), secret: client.slot.secret().to_vec().into() };
        drop(client);
        keys.cancel(&key).await;
        assert!(!work.is_cancelled());
    }

    #[test]
    fn a_process_id_that_is_in_use_is_passed_over() {
        let (keys, _work, first) = keys();
        keys.next_pid.store(first.pid() - 1, Ordering::Relaxed);
        let second = keys.register(32);
        assert_eq!((second.pid(), second.slot.secret().len()), (first.pid() + 1, 32));
        drop(second);
        assert!(keys.slots.lock().contains_key(&first.pid()));
    }
}
