//! Groups in memory: keys and rows one behind the other in large pieces, states in pieces of their own.

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use hashbrown::HashTable;

use super::aggregate::State;

/// Keys and rows lie in pieces of this size, or of their own if they are larger.
const PIECE_BYTES: usize = 256 * 1024;
/// States lie in pieces of so many groups, so that none of them is ever moved.
const PIECE_GROUPS: usize = 1024;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Store {
    numbers: HashTable<u32>,
    groups: Vec<Place>,
    /// How many states each group has.
    width: usize,
    states: Vec<Vec<State>>,
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
    /// One for groups of so many states.
    pub(super) fn new(width: usize) -> Self {
        Self {
            numbers: HashTable::new(),
            groups: Vec::new(),
            width,
            states: Vec::new(),
            pieces: Vec::new(),
            hashing: foldhash::fast::RandomState::default(),
        }
    }

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
        if number.is_multiple_of(PIECE_GROUPS) {
            self.states.push(Vec::with_capacity(PIECE_GROUPS * self.width));
        }
        if let Some(piece) = self.states.last_mut() {
            piece.extend(states);
        }
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

    /// The states of a group.
    pub(super) fn states(&self, number: usize) -> &[State] {
        let piece = self.states.get(number / PIECE_GROUPS);
        piece.and_then(|piece| piece.get(self.range(number))).unwrap_or_default()
    }

    /// The same, to be changed.
    pub(super) fn states_mut(&mut self, number: usize) -> &mut [State] {
        let range = self.range(number);
        let piece = self.states.get_mut(number / PIECE_GROUPS);
        piece.and_then(|piece| piece.get_mut(range)).unwrap_or_default()
    }

    fn range(&self, number: usize) -> Range<usize> {
        let first = number % PIECE_GROUPS * self.width;
        first..first + self.width
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
