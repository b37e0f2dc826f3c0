//! Groups in memory: keys and rows one behind the other in large pieces, states of all groups in one list.

use std::hash::{BuildHasher, Hasher};

use hashbrown::HashTable;

use super::aggregate::State;

/// Keys and rows lie in pieces of this size, or of their own if they are larger.
const PIECE_BYTES: usize = 256 * 1024;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Store {
    numbers: HashTable<u32>,
    groups: Vec<Place>,
    states: Vec<State>,
    pieces: Vec<Vec<u8>>,
    hashing: foldhash::fast::RandomState,
}

/// Where a group's key and row lie: in that piece, the key from `start` on, the row behind it.
#[derive(Debug, Clone, Copy)]
struct Place {
    hash: u64,
    piece: u32,
    start: u32,
    key_len: u32,
    row_len: u32,
}

impl Store {
    /// The number of the group with that key.
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        let hash = self.hash(key);
        self.numbers.find(hash, |&number| self.key(number) == key).map(|&number| number as usize)
    }

    /// A new group, and its number.
    pub(super) fn add(&mut self, key: &[u8], row: &[u8], states: impl Iterator<Item = State>) -> usize {
        let len = key.len() + row.len();
        if self.pieces.last().is_none_or(|piece| piece.capacity() - piece.len() < len) {
            self.pieces.push(Vec::with_capacity(len.max(PIECE_BYTES)));
        }
        let number = self.groups.len();
        let hash = self.hash(key);
        let at = self.pieces.len() - 1;
        let piece = &mut self.pieces[at];
        let small = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let place = Place {
            hash,
            piece: small(at),
            start: small(piece.len()),
            key_len: small(key.len()),
            row_len: small(row.len()),
        };
        piece.extend_from_slice(key);
        piece.extend_from_slice(row);
        self.groups.push(place);
        self.states.extend(states);
        let groups = &self.groups;
        self.numbers.insert_unique(hash, small(number), |&number| groups[number as usize].hash);
        number
    }

    /// Whether there is no number for another group.
    pub(super) fn is_full(&self) -> bool {
        self.groups.len() >= u32::MAX as usize
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The states of a group, of `count` for each.
    pub(super) fn states(&self, number: usize, count: usize) -> &[State] {
        self.states.get(number * count..(number + 1) * count).unwrap_or_default()
    }

    /// The same, to be changed.
    pub(super) fn states_mut(&mut self, number: usize, count: usize) -> &mut [State] {
        self.states.get_mut(number * count..(number + 1) * count).unwrap_or_default()
    }

    /// The body of one of a group's rows.
    pub(super) fn row(&self, number: usize) -> &[u8] {
        let place = self.groups[number];
        let start = place.start as usize + place.key_len as usize;
        &self.pieces[place.piece as usize][start..start + place.row_len as usize]
    }

    fn key(&self, number: u32) -> &[u8] {
        let place = self.groups[number as usize];
        let start = place.start as usize;
        &self.pieces[place.piece as usize][start..start + place.key_len as usize]
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hashing.build_hasher();
        hasher.write(key);
        hasher.finish()
    }
}
