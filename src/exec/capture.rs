//! An answer that is kept while it comes: in pieces, so that a large one is never copied as a whole by a thread that serves.

use bytes::{Bytes, BytesMut};

/// A piece grows to this size; then another one is begun.
const PIECE_BYTES: usize = 1 << 20;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Capture {
    /// Pieces that are full.
    full: Vec<Bytes>,
    last: BytesMut,
    len: usize,
}

impl Capture {
    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        if !self.last.is_empty() && self.last.len() + bytes.len() > PIECE_BYTES {
            self.full.push(std::mem::take(&mut self.last).freeze());
            self.last.reserve(PIECE_BYTES.max(bytes.len()));
        }
        self.last.extend_from_slice(bytes);
    }

    /// The pieces in order, from that byte on.
    pub fn pieces_from(&self, start: usize) -> impl Iterator<Item = &[u8]> {
        let pieces = self.full.iter().map(|piece| &piece[..]).chain([&self.last[..]]);
        pieces.scan(start, |skipped, piece| {
            let from = (*skipped).min(piece.len());
            *skipped -= from;
            Some(&piece[from..])
        })
    }

    /// All of it in one piece; a large one is put together beside the threads that serve. `None` if pgherd is ending.
    pub async fn whole(self) -> Option<Bytes> {
        if self.full.is_empty() {
            return Some(self.last.freeze());
        }
        let join = move || {
            let mut whole = Vec::with_capacity(self.len);
            self.pieces_from(0).for_each(|piece| whole.extend_from_slice(piece));
            Bytes::from(whole)
        };
        tokio::task::spawn_blocking(join).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_put_together_as_they_came() {
        for (pieces, of) in [(0, 0), (1, 5), (3, PIECE_BYTES / 2), (5, PIECE_BYTES), (4, PIECE_BYTES * 3 / 2 + 1)] {
            let (mut capture, mut wanted) = (Capture::default(), Vec::new());
            for piece in 0..pieces {
                let bytes = vec![b'a' + piece as u8; of];
                capture.push(&bytes);
                wanted.extend(bytes);
            }
            assert_eq!((capture.len(), capture.is_empty()), (wanted.len(), wanted.is_empty()));
            for start in [0, 3, PIECE_BYTES + 7] {
                assert_eq!(capture.pieces_from(start).collect::<Vec<_>>().concat(), wanted[start.min(wanted.len())..]);
            }
            assert_eq!(capture.whole().await.expect("it goes on"), wanted);
        }
    }
}
