//! One fill for all who wait: who asks for a key that is being filled waits for that fill, in this process, and shares its failure.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::key::Key;
use crate::wire::backend::ErrorFields;
use crate::wire::frame::HEADER_LEN;

/// How a fill failed, for all who waited for it.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The ErrorResponse, whole.
    pub message: Bytes,
    /// Whether the statement had been parsed before.
    pub parsed: bool,
    /// Whether it had been bound.
    pub bound: bool,
}

impl Failure {
    /// Whether it is the data's fault (class 22), so that any role would get it.
    pub(crate) fn is_of_data(&self) -> bool {
        let fields = self.message.get(HEADER_LEN..).and_then(|body| ErrorFields::parse(body).ok());
        fields.is_some_and(|fields| fields.code().starts_with("22"))
    }
}

/// The fills under way.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    under_way: Mutex<HashMap<Key, Waiting>>,
}

/// Whoever holds it fills; dropping it lets the waiters go on.
#[derive(Debug)]
pub(crate) struct Turn {
    flights: Arc<Flights>,
    key: Key,
    done: watch::Sender<Option<Failure>>,
}

/// Closes, with its failure if it has one, when another's fill has ended.
pub(crate) type Waiting = watch::Receiver<Option<Failure>>;

/// What `Flights::join` gives.
#[derive(Debug)]
pub(crate) enum Joined {
    /// Nobody was filling: it is the caller's turn.
    Mine(Turn),
    /// Somebody is: wait until this closes, then look again.
    Theirs(Waiting),
}

impl Flights {
    pub(crate) fn join(self: &Arc<Self>, key: &Key) -> Joined {
        let mut under_way = self.under_way.lock();
        match under_way.entry(key.clone()) {
            Slot::Occupied(slot) => Joined::Theirs(slot.get().clone()),
            Slot::Vacant(slot) => {
                let (done, waiting) = watch::channel(None);
                slot.insert(waiting);
                Joined::Mine(Turn { flights: self.clone(), key: key.clone(), done })
            }
        }
    }
}

/// Returns when the fill that `waiting` belongs to has ended, however it ended, and how it failed if it did.
pub(crate) async fn ended(mut waiting: watch::Receiver<Option<Failure>>) -> Option<Failure> {
    while waiting.changed().await.is_ok() {}
    waiting.borrow().clone()
}

impl Turn {
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// All who wait get this error.
    pub(crate) fn fail(self, failure: Failure) {
        self.done.send_replace(Some(failure));
    }
}

impl Drop for Turn {
    /// The slot is freed before the sender goes, so that the first waiter to wake finds it free.
    fn drop(&mut self) {
        self.flights.under_way.lock().remove(&self.key);
    }
}
