//! Prepared statements: who they are, and which of them a server connection holds.
//!
//! A statement is known by its text, its parameter types and every setting that parse analysis reads; clients' own names
//! never reach a server. One that is used under other settings than it was prepared under is another statement, too: a server may
//! read it anew at any time, and under these then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use hashlink::LinkedHashMap;
use parking_lot::Mutex;

use super::settings::{Settings, SharedSettings};
use crate::wire::writer;

/// The prefix of every statement name that pgherd gives on a server.
pub const NAME_PREFIX: &str = "pgherd_";

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    text: Bytes,
    types: Box<[u32]>,
    parsed_under: Option<SharedSettings>,
    used_under: Option<SharedSettings>,
    /// Of which statement it is that for which what it is used under is its own.
    of: Option<u64>,
}

/// One statement, the same for every client that prepares the same thing.
#[derive(Debug)]
pub struct Identity {
    /// Unique in this process.
    pub id: u64,
    /// The name it has on servers.
    pub server_name: Box<str>,
    key: Arc<Key>,
    of: Option<Arc<Self>>,
    standing: AtomicU8,
}

/// No server has accepted it, or one has refused it since.
const UNPROVEN: u8 = 0;
/// A server has accepted it, and none has refused it since.
const ACCEPTED: u8 = 1;
/// Its result type has changed: it is another statement from then on.
const RETIRED: u8 = 2;

impl Identity {
    /// The statement's text.
    pub fn text(&self) -> &Bytes {
        &self.key.text
    }

    /// Declared parameter types.
    pub fn types(&self) -> &[u32] {
        &self.key.types
    }

    /// The parse-relevant settings it was prepared under; `None` where nobody could know them: then it has its meaning on the
    /// server where it was prepared, and nowhere else.
    pub fn parsed_under(&self) -> Option<&SharedSettings> {
        self.key.parsed_under.as_ref()
    }

    /// The parse-relevant settings that all who use it have, where they are others, and not only where names are looked up.
    pub fn used_under(&self) -> Option<&SharedSettings> {
        self.key.used_under.as_ref()
    }

    /// The same statement for those who use it under the settings that it was prepared under.
    pub fn own(self: &Arc<Self>) -> &Arc<Self> {
        self.of.as_ref().unwrap_or(self)
    }

    /// Whether a server has accepted it, and none has refused it since: a Parse of it needs no server then. What a later
    /// change of the schema makes of it is seen at Bind.
    pub fn is_accepted(&self) -> bool {
        self.standing.load(Ordering::Relaxed) == ACCEPTED
    }

    /// Whether its result type has changed since it was prepared. See [`Registry::renew`].
    pub fn is_retired(&self) -> bool {
        self.standing.load(Ordering::Relaxed) == RETIRED
    }

    /// Notes what a server made of its Parse.
    pub fn note_parsed(&self, accepted: bool) {
        let standing = if accepted { ACCEPTED } else { UNPROVEN };
        let _ = self
            .standing
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| (before != RETIRED).then_some(standing));
    }

    /// Appends the Parse message that prepares it on a server.
    pub fn write_parse(&self, out: &mut BytesMut) {
        writer::parse(out, self.server_name.as_bytes(), &self.key.text, &self.key.types);
    }
}

/// All statements that some client holds, so that equal ones share an identity. One lock a Parse.
#[derive(Debug, Default)]
pub struct Registry {
    known: Mutex<HashMap<Arc<Key>, Weak<Identity>>>,
    next: AtomicU64,
    serials: AtomicU64,
}

impl Registry {
    /// The identity of that statement, made if nobody holds it yet.
    pub fn intern(&self, text: Bytes, types: &[u32], parsed_under: &SharedSettings) -> Arc<Identity> {
        let parsed_under = Some(Arc::clone(parsed_under));
        self.intern_key(Key { text, types: types.into(), parsed_under, used_under: None, of: None }, None)
    }

    /// The same statement, prepared and used under other settings than those of `of`.
    pub fn intern_used_under(
        &self,
        of: &Arc<Identity>,
        parsed_under: &SharedSettings,
        used_under: &SharedSettings,
    ) -> Arc<Identity> {
        let of = of.own();
        let (parsed_under, used_under) = (Some(Arc::clone(parsed_under)), Some(Arc::clone(used_under)));
        let (text, types) = (of.text().clone(), of.types().into());
        self.intern_key(Key { text, types, parsed_under, used_under, of: Some(of.id) }, Some(Arc::clone(of)))
    }

    fn intern_key(&self, key: Key, of: Option<Arc<Identity>>) -> Arc<Identity> {
        let mut known = self.known.lock();
        if let Some(identity) = known.get(&key).and_then(Weak::upgrade) {
            return identity;
        }
        if known.len() >= 1024 && known.len().is_power_of_two() {
            known.retain(|_, identity| identity.strong_count() > 0);
        }
        // A text cut out of a socket buffer would keep the whole buffer alive.
        let key = Arc::new(Key { text: Bytes::copy_from_slice(&key.text), ..key });
        let identity = self.identity(Arc::clone(&key), of);
        known.insert(key, Arc::downgrade(&identity));
        identity
    }

    /// A server has said that a statement's result type has changed. What servers still hold of it is of no use to anybody: it is
    /// another statement from now on, which is returned.
    pub fn renew(&self, old: &Identity) -> Arc<Identity> {
        let mut known = self.known.lock();
        old.standing.store(RETIRED, Ordering::Relaxed);
        if let Some(identity) = known.get(&old.key).and_then(Weak::upgrade).filter(|known| !known.is_retired()) {
            return identity;
        }
        let identity = self.identity(Arc::clone(&old.key), old.of.clone());
        known.insert(Arc::clone(&old.key), Arc::downgrade(&identity));
        identity
    }

    /// All that some client or server holds, in order of their making.
    pub fn all(&self) -> Vec<Arc<Identity>> {
        let mut all: Vec<_> = self.known.lock().values().filter_map(Weak::upgrade).collect();
        all.sort_unstable_by_key(|identity| identity.id);
        all
    }

    /// A number for an unnamed statement, so that no two of all clients' are taken for each other on a server. Never 0.
    pub fn next_serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// An identity that nobody shares: for a statement whose settings are not known exactly, or that only its client may use.
    pub fn private(&self, text: Bytes, types: &[u32], parsed_under: Option<SharedSettings>) -> Arc<Identity> {
        let key = Key { text, types: types.into(), parsed_under, used_under: None, of: None };
        self.identity(Arc::new(key), None)
    }

    fn identity(&self, key: Arc<Key>, of: Option<Arc<Identity>>) -> Arc<Identity> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Identity {
            id,
            server_name: format!("{NAME_PREFIX}{id}").into(),
            key,
            of,
            standing: AtomicU8::new(UNPROVEN),
        })
    }
}

/// The statements that one server connection holds, least recently used first.
#[derive(Debug)]
pub struct Held {
    statements: LinkedHashMap<u64, Arc<Identity>>,
    capacity: usize,
}

impl Held {
    /// Room for `capacity` statements.
    pub fn new(capacity: usize) -> Self {
        Self { statements: LinkedHashMap::new(), capacity: capacity.max(1) }
    }

    /// Whether the server holds that statement; it becomes the most recently used.
    pub fn touch(&mut self, id: u64) -> bool {
        match self.statements.raw_entry_mut().from_key(&id) {
            hashlink::linked_hash_map::RawEntryMut::Occupied(mut entry) => {
                entry.to_back();
                true
            }
            hashlink::linked_hash_map::RawEntryMut::Vacant(_) => false,
        }
    }

    /// Notes that a Parse of it is on its way; returns the statement that must be closed to make room.
    pub fn insert(&mut self, identity: Arc<Identity>) -> Option<Arc<Identity>> {
        let evicted = if self.statements.len() >= self.capacity { self.statements.pop_front() } else { None };
        self.statements.insert(identity.id, identity);
        evicted.map(|(_, identity)| identity)
    }

    /// Gives up a statement. Returns whether the server holds it, where it must be closed then.
    pub fn take(&mut self, id: u64) -> bool {
        self.statements.remove(&id).is_some()
    }

    /// Notes that a Parse failed or the statement was closed.
    pub fn remove(&mut self, id: u64) {
        self.take(id);
    }

    /// Notes `DEALLOCATE ALL` or `DISCARD ALL`.
    pub fn clear(&mut self) {
        self.statements.clear();
    }

    /// How many it holds.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// The names that the server must hold, for checking what it does hold.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.statements.values().map(|identity| &*identity.server_name)
    }
}

/// Settings under which nothing that parse analysis reads was changed.
pub fn default_parse_settings() -> SharedSettings {
    Arc::new(Settings::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_statement_has_one_identity_and_other_types_another() {
        let (registry, defaults) = (Registry::default(), default_parse_settings());
        let a = registry.intern(Bytes::from_static(b"select $1"), &[23], &defaults);
        let b = registry.intern(Bytes::from_static(b"select $1"), &[23], &defaults);
        let c = registry.intern(Bytes::from_static(b"select $1"), &[20], &defaults);
        assert_eq!(a.id, b.id);
        assert_ne!(a.id, c.id);
    }

    #[test]
    fn another_date_style_is_another_statement() {
        let (registry, defaults) = (Registry::default(), default_parse_settings());
        let mut dmy = Settings::default();
        dmy.set("datestyle", "ISO, DMY");
        let a = registry.intern(Bytes::from_static(b"select '01/02/2003'::date"), &[], &defaults);
        let b = registry.intern(Bytes::from_static(b"select '01/02/2003'::date"), &[], &Arc::new(dmy));
        assert_ne!(a.id, b.id);
    }

    #[test]
    fn other_settings_at_its_use_make_another_statement() {
        let (registry, defaults) = (Registry::default(), default_parse_settings());
        let mut dmy = Settings::default();
        dmy.set("datestyle", "ISO, DMY");
        let dmy = Arc::new(dmy);
        let a = registry.intern(Bytes::from_static(b"select '01/02/2003'::date"), &[], &defaults);
        let b = registry.intern_used_under(&a, &defaults, &dmy);
        assert_ne!(a.id, b.id);
        assert_eq!(registry.intern_used_under(&b, &defaults, &dmy).id, b.id);
        assert_eq!((b.text(), b.parsed_under(), b.used_under()), (a.text(), Some(&defaults), Some(&dmy)));
        assert!(a.own().id == a.id && b.own().id == a.id);
    }

    #[test]
    fn a_statement_whose_result_type_changed_is_another_one() {
        let (registry, defaults) = (Registry::default(), default_parse_settings());
        let prepare = || registry.intern(Bytes::from_static(b"select * from t"), &[], &defaults);
        let old = prepare();
        old.note_parsed(true);
        let new = registry.renew(&old);
        assert!(new.id != old.id && new.text() == old.text() && old.is_retired() && !old.is_accepted());
        assert_eq!(registry.renew(&old).id, new.id, "who hears of it later gets the same");
        old.note_parsed(true);
        assert!(old.is_retired(), "a late answer does not bring it back");
        assert_eq!(prepare().id, new.id);
    }

    #[test]
    fn a_full_server_gives_up_the_least_recently_used() {
        let (registry, defaults) = (Registry::default(), default_parse_settings());
        let [a, b, c] = ["a", "b", "c"].map(|text| registry.intern(Bytes::from(text), &[], &defaults));
        let mut held = Held::new(2);
        assert!(held.insert(Arc::clone(&a)).is_none());
        assert!(held.insert(Arc::clone(&b)).is_none());
        assert!(held.touch(a.id));
        assert_eq!(held.insert(c).map(|evicted| evicted.id), Some(b.id));
        assert!(held.touch(a.id) && !held.touch(b.id));
    }
}
