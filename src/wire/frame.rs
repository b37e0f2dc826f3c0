//! Cutting single messages out of a byte stream: headers are read, bodies are not.
//!
//! After startup every message is `tag: u8, length: i32 (counts itself, not the tag), body` (PostgreSQL manual, 55.2).

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Bytes of tag and length together.
pub const HEADER_LEN: usize = 5;

/// A header that no PostgreSQL peer may send.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The length field is below its own four bytes.
    #[error("message {tag:?} claims a length of {len}, below the minimum of 4")]
    TooShort {
        /// The message's tag as a character.
        tag: char,
        /// The length that was claimed.
        len: i32,
    },
    /// The message is larger than the state allows.
    #[error("message {tag:?} of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// The message's tag as a character.
        tag: char,
        /// The length that was claimed.
        len: usize,
        /// What the state allows.
        limit: usize,
    },
}

/// Tag and total length of the message at the front of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The message's type byte.
    pub tag: u8,
    /// Bytes of the whole message, tag and length field included.
    pub total: usize,
}

impl Header {
    /// Bytes behind the header.
    pub fn body_len(self) -> usize {
        self.total - HEADER_LEN
    }
}

/// Reads the header at the front of `buf`, or `None` if fewer than five bytes are there.
///
/// # Errors
/// A length under four or a message over `limit` bytes in total.
#[inline]
pub fn peek(buf: &[u8], limit: usize) -> Result<Option<Header>, FrameError> {
    let Some((head, _)) = buf.split_at_checked(HEADER_LEN) else { return Ok(None) };
    let tag = head[0];
    let len = i32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if len < 4 {
        return Err(FrameError::TooShort { tag: tag as char, len });
    }
    let total = len as usize + 1;
    if total > limit {
        return Err(FrameError::TooLong { tag: tag as char, len: total, limit });
    }
    Ok(Some(Header { tag, total }))
}

/// One whole message, cut out of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Tag, length and body, exactly as they came.
    pub bytes: Bytes,
}

impl Frame {
    /// The message's type byte.
    pub fn tag(&self) -> u8 {
        self.bytes[0]
    }

    /// The bytes behind the header.
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..]
    }
}

/// Cuts the message at the front of `buf` out, or returns `None` until it is complete.
///
/// # Errors
/// As [`peek`].
pub fn cut(buf: &mut BytesMut, limit: usize) -> Result<Option<Frame>, FrameError> {
    let Some(header) = peek(buf, limit)? else { return Ok(None) };
    if buf.len() < header.total {
        return Ok(None);
    }
    Ok(Some(Frame { bytes: buf.split_to(header.total).freeze() }))
}

/// Several whole messages of one type, as they lay behind each other in their stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    /// Tags, lengths and bodies, exactly as they came.
    pub bytes: Bytes,
    /// How many messages.
    pub count: usize,
}

impl Frames {
    /// The bodies, and where each message ends in `bytes`.
    pub fn bodies(&self) -> impl Iterator<Item = (&[u8], usize)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let total = peek(&self.bytes[at..], usize::MAX).ok()??.total;
            let body = self.bytes.get(at + HEADER_LEN..at + total)?;
            at += total;
            Some((body, at))
        })
    }
}

impl From<Frame> for Frames {
    fn from(frame: Frame) -> Self {
        Self { bytes: frame.bytes, count: 1 }
    }
}

/// Cuts all whole messages with that tag out of the front of `buf`; `None` if it begins with none.
///
/// # Errors
/// As [`peek`], of the first.
pub fn cut_all(buf: &mut BytesMut, tag: u8, limit: usize) -> Result<Option<Frames>, FrameError> {
    let (mut end, mut count) = (0, 0);
    loop {
        match peek(&buf[end..], limit) {
            Ok(Some(header)) if header.tag == tag && buf.len() - end >= header.total => {
                (end, count) = (end + header.total, count + 1);
            }
            Err(error) if count == 0 => return Err(error),
            // What is wrong with a later one is said when it is the first.
            _ if count == 0 => return Ok(None),
            _ => return Ok(Some(Frames { bytes: buf.split_to(end).freeze(), count })),
        }
    }
}

/// A cursor over a message body that never reads past its end.
#[derive(Debug, Clone)]
pub struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    /// A cursor at the front of `body` (the bytes behind the header).
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    /// The bytes up to the next NUL, which is consumed too.
    pub fn cstr(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(0, self.0)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(text)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        (!self.0.is_empty()).then(|| self.0.get_u8())
    }

    /// A big-endian 16-bit integer.
    pub fn i16(&mut self) -> Option<i16> {
        (self.0.len() >= 2).then(|| self.0.get_i16())
    }

    /// A big-endian 32-bit integer.
    pub fn i32(&mut self) -> Option<i32> {
        (self.0.len() >= 4).then(|| self.0.get_i32())
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_cut_only_when_it_is_whole() {
        let mut buf = BytesMut::from(&b"Q\0\0\0\x07hi"[..]);
        assert_eq!(cut(&mut buf, 100), Ok(None));
        buf.extend_from_slice(b"\0X");
        let frame = cut(&mut buf, 100).expect("valid").expect("whole");
        assert_eq!((frame.tag(), frame.body()), (b'Q', &b"hi\0"[..]));
        assert_eq!(&buf[..], b"X");
    }

    #[test]
    fn a_length_below_four_is_an_error() {
        assert_eq!(peek(b"Q\0\0\0\x03", 100), Err(FrameError::TooShort { tag: 'Q', len: 3 }));
        assert_eq!(peek(b"Q\xff\xff\xff\xff", 100), Err(FrameError::TooShort { tag: 'Q', len: -1 }));
    }

    #[test]
    fn the_limit_holds_and_one_past_it_fails() {
        assert!(peek(b"Q\0\0\0\x09", 10).is_ok());
        assert_eq!(peek(b"Q\0\0\0\x0a", 10), Err(FrameError::TooLong { tag: 'Q', len: 11, limit: 10 }));
    }

    #[test]
    fn messages_of_one_type_are_cut_together() {
        let mut buf = BytesMut::from(&b"D\0\0\0\x05aD\0\0\0\x06bcC\0\0\0\x04D\0\0\0\x05"[..]);
        let rows = cut_all(&mut buf, b'D', 100).expect("valid").expect("two");
        assert_eq!(rows.bodies().collect::<Vec<_>>(), [(&b"a"[..], 6), (&b"bc"[..], 13)]);
        assert_eq!((rows.count, cut_all(&mut buf, b'D', 100)), (2, Ok(None)));
        assert_eq!(cut(&mut buf, 100).expect("valid").expect("whole").tag(), b'C');
        assert_eq!(cut_all(&mut buf, b'D', 100), Ok(None));
        assert_eq!(cut_all(&mut buf, b'D', 5), Err(FrameError::TooLong { tag: 'D', len: 6, limit: 5 }));
        let mut buf = BytesMut::from(&b"D\0\0\0\x05aD\0\0\0\x02"[..]);
        assert_eq!(cut_all(&mut buf, b'D', 100).expect("the first is valid").map(|rows| rows.count), Some(1));
        assert_eq!(cut_all(&mut buf, b'D', 100), Err(FrameError::TooShort { tag: 'D', len: 2 }));
    }

    #[test]
    fn a_body_cursor_stops_at_its_end() {
        let mut body = Body::new(b"ab\0\0\x01x");
        assert_eq!(body.cstr(), Some(&b"ab"[..]));
        assert_eq!(body.i16(), Some(1));
        assert_eq!(body.i32(), None);
        assert_eq!(body.cstr(), None);
        assert_eq!(body.rest(), b"x");
    }
}
