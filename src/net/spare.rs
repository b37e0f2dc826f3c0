//! Buffers that are not in use, kept by each thread: a socket that is silent holds none.

use std::cell::RefCell;

use bytes::BytesMut;

/// Bytes of a spare buffer.
pub const SPARE_BYTES: usize = 8 * 1024;
/// Buffers that a thread keeps.
const KEPT: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Gives `buffer` room if it has none at all.
pub fn lend(buffer: &mut BytesMut) {
    if buffer.capacity() == 0 {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        *buffer = spare.unwrap_or_else(|| BytesMut::with_capacity(SPARE_BYTES));
    }
}

/// Takes the room of `buffer` away if it is empty: it is kept if it is a spare one's that nobody else shares.
pub fn give_back(buffer: &mut BytesMut) {
    if !buffer.is_empty() || buffer.capacity() == 0 {
        return;
    }
    let mut buffer = std::mem::take(buffer);
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < KEPT && buffer.capacity() <= SPARE_BYTES && buffer.try_reclaim(SPARE_BYTES) {
            spare.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_buffer_is_lent_again_and_a_full_one_stays() {
        let mut buffer = BytesMut::new();
        lend(&mut buffer);
        buffer.extend_from_slice(b"hello");
        let room = buffer.as_ptr();
        give_back(&mut buffer);
        assert_eq!(&buffer[..], b"hello");
        buffer.clear();
        give_back(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
        let mut other = BytesMut::new();
        lend(&mut other);
        assert_eq!(other.as_ptr(), room);
    }

    #[test]
    fn a_buffer_of_which_somebody_holds_a_part_is_not_lent_again() {
        let mut buffer = BytesMut::new();
        lend(&mut buffer);
        buffer.extend_from_slice(b"hello");
        let part = buffer.split_to(5).freeze();
        give_back(&mut buffer);
        let mut other = BytesMut::new();
        lend(&mut other);
        other.extend_from_slice(b"other");
        assert_eq!(&part[..], b"hello");
        assert_ne!(part.as_ptr(), other.as_ptr());
    }
}
